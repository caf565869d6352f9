//! `prism serve`, started for a measurement.

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use prism_loadtest::report::Report;

use crate::process::{Server, free_address, http_get};
use crate::rounds::{Options, Round};

/// How long a start may take.
const START_MAX: Duration = Duration::from_secs(120);
/// Pause between two looks at whether it is ready: the resolution of its ready time.
const LOOK: Duration = Duration::from_micros(500);

/// A running Prism with two namespaces, `memory` and `durable`, at the levels `memory` and `wal`.
pub struct Prism {
    /// The process.
    pub server: Server,
    /// Where it serves gRPC.
    pub endpoint: SocketAddr,
    /// Where it serves metrics.
    pub admin: SocketAddr,
    /// From the start of the process until it said that it was ready.
    pub ready_after: Duration,
}

impl Prism {
    /// Starts `binary` over the data directory `data` with one shard on each of `cores`, and waits until it is ready.
    pub fn start(binary: &Path, data: &Path, cores: &[usize]) -> Result<Self> {
        Self::start_with(binary, data, cores, "")
    }

    /// The same with more lines of configuration.
    pub fn start_with(binary: &Path, data: &Path, cores: &[usize], more: &str) -> Result<Self> {
        let (endpoint, admin) = (free_address()?, free_address()?);
        let config = data.with_extension("yaml");
        let cores: Vec<String> = cores.iter().map(usize::to_string).collect();
        let text = format!(
            "listen: {endpoint}\nadmin: {admin}\ndata_dir: {}\ncores: {}\nnamespaces:\n\
             - {{name: memory, client_api: keyvalue, durability: memory}}\n\
             - {{name: durable, client_api: keyvalue, durability: wal}}\n{more}\n",
            data.display(),
            cores.join(","),
        );
        std::fs::write(&config, text)?;
        let begin = Instant::now();
        let mut command = Command::new(binary);
        command.args(["serve", "--log-level", "warn", "--config"]).arg(&config);
        let mut server = Server::start(command.stderr(Stdio::inherit()))?;
        loop {
            if matches!(http_get(admin, "/readyz"), Ok(Some(_))) {
                return Ok(Self { server, endpoint, admin, ready_after: begin.elapsed() });
            }
            if let Some(status) = server.ended()? {
                return Err(Error::other(format!("prism serve ended: {status}")));
            }
            if begin.elapsed() > START_MAX {
                return Err(Error::other("prism serve is not ready after two minutes"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// One turn of load from `core` by `prism-loadtest kv` with these arguments.
    pub fn turn(&self, options: &Options, core: usize, arguments: &[&str]) -> Result<Round> {
        let output = Command::new(binary("prism-loadtest")?)
            .args(["kv", "--output", "json"])
            .args(arguments)
            .args(["--endpoint", &self.endpoint.to_string(), "--cores", &core.to_string()])
            .args(["--server-pid", &self.server.id().to_string()])
            .args(["--duration", &format!("{}s", options.length.as_secs_f64())])
            .args(["--warmup", &format!("{}ms", options.warmup.as_millis())])
            .output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            return Err(Error::other(format!("{arguments:?}: {text}")));
        }
        let report: Report = serde_json::from_slice(&output.stdout)?;
        Ok(Round::from(&report))
    }

    /// What is logged and not with its backend yet must not weigh on the turn after it.
    pub fn await_drained(&self) -> Result<()> {
        for _ in 0..600 {
            // The gauge is refreshed more often than that.
            std::thread::sleep(Duration::from_millis(200));
            if self.metric("prism_lane_pending_records")? == 0.0 {
                return Ok(());
            }
        }
        Err(Error::other("the lane is not drained after two minutes"))
    }

    /// The sum of all samples of the metric `name`.
    pub fn metric(&self, name: &str) -> Result<f64> {
        metric(self.admin, name)
    }
}

/// The sum of all samples of the metric `name` at the admin port `admin`.
pub fn metric(admin: SocketAddr, name: &str) -> Result<f64> {
    let text = http_get(admin, "/metrics")?.unwrap_or_default();
    let sum = text.lines().filter_map(|line| sample(line, name)).reduce(|sum, value| sum + value);
    sum.ok_or_else(|| Error::other(format!("there is no metric {name}")))
}

fn sample(line: &str, name: &str) -> Option<f64> {
    let rest = line.strip_prefix(name)?;
    let value = match rest.strip_prefix('{') {
        Some(labelled) => labelled.split_once("} ")?.1,
        None => rest.strip_prefix(' ')?,
    };
    value.split(' ').next()?.parse().ok()
}

/// Builds the binaries under measurement as a user would have them.
pub fn build() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "-p", "prism-core", "-p", "prism-loadtest"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()?;
    if built.success() { Ok(()) } else { Err(Error::other("the release binaries do not build")) }
}

/// Where `build` puts the binary `name`: two folders above the running benchmark.
pub fn binary(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let folder = this.parent().and_then(Path::parent);
    folder
        .map(|folder| folder.join(name))
        .ok_or_else(|| Error::other("cannot tell where the binaries are"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_told_apart_by_the_whole_name() {
        assert_eq!(sample("prism_a 4", "prism_a"), Some(4.0));
        assert_eq!(sample("prism_a{shard=\"0\"} 4.5", "prism_a"), Some(4.5));
        assert_eq!(sample("prism_ab 4", "prism_a"), None);
        assert_eq!(sample("# HELP prism_a", "prism_a"), None);
    }
}
