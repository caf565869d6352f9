//! `cargo bench -p prism-benches --bench unary`: Prism's Get and Set beside a tonic server that answers the same messages and does nothing.
//!
//! It builds the release binaries, starts `prism serve` with one shard and the peer on the same core, and loads them in turn from another core with
//! `prism-loadtest`. Every figure is the median of alternating rounds, and what it is compared with ran in the same minute. Then it measures what does
//! not need a peer: memory, start, recovery, idle connections.
//!
//! Options: `--quick` (a smoke run of seconds whose figures mean nothing), `--rounds <n>`, `--seconds <n>` per round, `--folder <path>` (data directories;
//! on a real disk, not tmpfs), `--cores <server>,<load>`, `--no-build`. Results: `target/bench/unary.json`.

mod aims;
mod around;
mod calls;
mod recovery;

use std::io::{Error, Result};
use std::path::PathBuf;
use std::time::Duration;

use prism_benches::prism;
use prism_benches::report::{folder, save};
use serde::Serialize;

/// How to measure.
pub(crate) struct Plan {
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) warmup: Duration,
    pub(crate) folder: PathBuf,
    pub(crate) server_core: usize,
    pub(crate) load_core: usize,
    pub(crate) prism: PathBuf,
    pub(crate) loadtest: PathBuf,
    pub(crate) peer: PathBuf,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let plan = plan(&arguments)?;
    if !arguments.iter().any(|word| word == "--no-build") {
        prism::build()?;
    }
    let machine = Machine::read();
    println!("{machine}");
    let calls = calls::measure(&plan)?;
    let around = around::measure(&plan)?;
    let rows = aims::rows(&calls, &around);
    println!("{}\n{}\n{}", calls.table(), around.table(), prism_benches::aims::table(&rows));
    let path = save("unary", &Results { machine, quick: plan.quick, calls, around, aims: rows })?;
    println!("written to {}", path.display());
    Ok(())
}

#[derive(Serialize)]
struct Results {
    machine: Machine,
    /// The figures mean nothing then.
    quick: bool,
    calls: calls::Calls,
    around: around::Around,
    aims: Vec<prism_benches::aims::Row>,
}

fn plan(arguments: &[String]) -> Result<Plan> {
    let option = |name: &str| {
        arguments.iter().position(|word| word == name).and_then(|at| arguments.get(at + 1)).cloned()
    };
    let number = |name: &str, otherwise: f64| match option(name) {
        Some(text) => text.parse().map_err(|_| Error::other(format!("{name} takes a number"))),
        None => Ok(otherwise),
    };
    let quick = arguments.iter().any(|word| word == "--quick");
    let cores = option("--cores").unwrap_or_else(|| "0,1".into());
    let cores = cores
        .split_once(',')
        .and_then(|(server, load)| Some((server.parse().ok()?, load.parse().ok()?)));
    let Some((server_core, load_core)) = cores else {
        return Err(Error::other("--cores takes two: the server's and the load's"));
    };
    Ok(Plan {
        quick,
        rounds: number("--rounds", if quick { 1.0 } else { 5.0 })? as usize,
        seconds: number("--seconds", if quick { 0.2 } else { 2.0 })?,
        warmup: Duration::from_millis(if quick { 50 } else { 300 }),
        folder: option("--folder").map_or_else(folder, |path| Ok(PathBuf::from(path)))?,
        server_core,
        load_core,
        prism: prism::binary("prism")?,
        loadtest: prism::binary("prism-loadtest")?,
        peer: PathBuf::from(env!("CARGO_BIN_EXE_tonic-echo")),
    })
}

/// Where it was measured.
#[derive(Serialize)]
struct Machine {
    processor: String,
    cores: usize,
    kernel: String,
}

impl Machine {
    fn read() -> Self {
        let line = |path: &str, name: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let found = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("unknown");
            found.trim_matches([' ', '\t', ':']).to_owned()
        };
        Self {
            processor: line("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: line("/proc/sys/kernel/osrelease", ""),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { processor, cores, kernel } = self;
        write!(out, "{processor}, {cores} cores, Linux {kernel}; server and load share the machine")
    }
}
