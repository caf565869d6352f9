//! `cargo bench -p prism-benches --bench permit`: what every call costs before it is carried out, and what namespaces cost each other.
//!
//! *permit*: route, permit and quota of a call, in process: ns, instructions (callgrind) and allocations, with one namespace and with 1,000.
//! *crowd*: 1,000 namespaces applied to a real `prism serve` at once, the CPU of a call beside those of a server with one, and the memory of
//! one that is idle. *neighbour*: the p99 of a namespace while another one is asked for ten times its quota, beside that while it is asked for its
//! quota, and that alone; one loop on one core sends both loads, the server has the other core.
//!
//! Options: `--quick` (figures mean nothing), `--rounds <n>`, `--only <part>` (`permit`, `crowd` or `neighbour`), `--no-build`,
//! `--cores <server>,<load>`. Results: `target/bench/permit.json`.

mod crowd;
mod door;

use std::io::{Error, Result};

use prism_benches::aims::{self, Row};
use prism_benches::prism::build;
use prism_benches::report::save;
use serde::Serialize;

/// What is run.
pub(crate) struct Plan {
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    only: Option<String>,
    pub(crate) server_core: usize,
    pub(crate) load_core: usize,
}

impl Plan {
    fn takes(&self, part: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == part)
    }
}

#[derive(Serialize)]
struct Results {
    /// The figures mean nothing then.
    quick: bool,
    door: Option<door::Figures>,
    crowd: Option<crowd::Crowd>,
    neighbour: Option<crowd::Neighbour>,
    rows: Vec<Row>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // What callgrind runs: `calls <namespaces>`.
    if let [word, namespaces] = &arguments[..]
        && word == "calls"
    {
        return door::run(namespaces.parse().map_err(Error::other)?);
    }
    let option = |name: &str| {
        arguments.iter().position(|word| word == name).and_then(|at| arguments.get(at + 1)).cloned()
    };
    let quick = arguments.iter().any(|word| word == "--quick");
    let rounds = option("--rounds").map_or(Ok(if quick { 1 } else { 5 }), |text| text.parse());
    let cores = option("--cores").unwrap_or_else(|| "0,1".to_owned());
    let (server, load) =
        cores.split_once(',').ok_or_else(|| Error::other("--cores <server>,<load>"))?;
    let plan = Plan {
        quick,
        rounds: rounds.map_err(Error::other)?,
        only: option("--only"),
        server_core: server.parse().map_err(Error::other)?,
        load_core: load.parse().map_err(Error::other)?,
    };
    let needs_binary = plan.takes("crowd") || plan.takes("neighbour");
    if needs_binary && !arguments.iter().any(|word| word == "--no-build") {
        build()?;
    }
    let mut rows = Vec::new();
    let door = plan.takes("permit").then(|| door::measure(&plan, &mut rows)).transpose()?;
    let crowd = plan.takes("crowd").then(|| crowd::crowd(&plan, &mut rows)).transpose()?;
    let neighbour =
        plan.takes("neighbour").then(|| crowd::neighbour(&plan, &mut rows)).transpose()?;
    println!("{}", aims::table(&rows));
    let results = Results { quick, door, crowd, neighbour, rows };
    println!("written to {}", save("permit", &results)?.display());
    Ok(())
}
