//! `cargo bench -p prism-benches --bench runtimes`: the durable log write and Prism's transport on each runtime that could have been chosen, so that
//! the choice of `docs/decisions/0001-runtime.md` can be repeated on other hardware.
//!
//! Every measurement is a process of its own, pinned to one core; what is compared takes turns. Options: `--quick` (a smoke run whose figures mean
//! nothing), `--folder <path>` (where the scratch file goes; on the disk in question, not on tmpfs), `--cores <server>,<load>`, `--no-build`. Results:
//! `target/bench/runtimes.json`.

mod echo;
mod writes;

use std::io::{Error, Result};
use std::path::PathBuf;

use prism_benches::prism::build;
use prism_benches::report::{folder, save};
use serde::Serialize;

/// How to measure.
pub(crate) struct Plan {
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    pub(crate) folder: PathBuf,
    pub(crate) server_core: usize,
    pub(crate) load_core: usize,
}

#[derive(Serialize)]
struct Results {
    /// The figures mean nothing then.
    quick: bool,
    writes: Vec<writes::Row>,
    echo: Vec<echo::Row>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("write") => return writes::child(&arguments[1..]),
        Some("serve") => return echo::child(&arguments[1..]),
        // A measurement that started the whole benchmark again would never end.
        Some(word) if !word.starts_with("--") => {
            return Err(Error::other(format!("unknown measurement {word}")));
        }
        _ => {}
    }
    let option = |name: &str| {
        arguments.iter().position(|word| word == name).and_then(|at| arguments.get(at + 1)).cloned()
    };
    let quick = arguments.iter().any(|word| word == "--quick");
    let cores = option("--cores").unwrap_or_else(|| "0,1".into());
    let cores = cores
        .split_once(',')
        .and_then(|(server, load)| Some((server.parse().ok()?, load.parse().ok()?)));
    let Some((server_core, load_core)) = cores else {
        return Err(Error::other("--cores takes two: the server's and the load's"));
    };
    let folder = option("--folder").map_or_else(folder, |path| Ok(PathBuf::from(path)))?;
    let plan = Plan { quick, rounds: if quick { 1 } else { 3 }, folder, server_core, load_core };
    if !arguments.iter().any(|word| word == "--no-build") {
        build()?;
    }
    let results = Results { quick, writes: writes::compare(&plan)?, echo: echo::compare(&plan)? };
    println!("{}\n{}", writes::table(&results.writes), echo::table(&results.echo));
    println!("written to {}", save("runtimes", &results)?.display());
    Ok(())
}
