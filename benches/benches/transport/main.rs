//! `cargo bench -p prism-benches --bench transport`: Prism's HTTP/2 and gRPC beside tonic's, without anything behind them.
//!
//! Two servers stand on one core and do the same: `prism_io::server` and `tonic-echo`. One generator loads them in turn (A B A B …) from another core.
//! Every figure is the median of alternating rounds. Small calls in four shapes, large messages over one connection, a stream of small messages, and
//! the instructions of one call by callgrind.
//!
//! Options: `--quick` (a smoke run of seconds whose figures mean nothing), `--rounds <n>`, `--seconds <n>` per round, `--only <part>` (`calls`, `large`,
//! `stream` or `instructions`), `--cores <server>,<load>`, `--peer <path>` (an earlier build of this benchmark in tonic's place, to see what a change
//! brings). Results: `target/bench/transport.json`.

mod instructions;

use std::io::{Error, Result, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use instructions::Instructions;
use prism_benches::aims::{self, Row};
use prism_benches::echo_server;
use prism_benches::load::{self, Figures, Kind, Load};
use prism_benches::process::Server;
use prism_benches::quiet::{OTHERS_MAX, Watch};
use prism_benches::report::{Table, median, save};
use serde::Serialize;

/// Rounds that are repeated at most, over the whole run; after that what comes is taken.
const DISTURBED_MAX: usize = 20;
/// Pause after a disturbed round.
const CALM: Duration = Duration::from_secs(2);

const SMALL: Kind = Kind::Echo { value_bytes: 128 };
const LARGE: Kind = Kind::Echo { value_bytes: 1 << 20 };
const STREAMED: Kind = Kind::Stream { messages: 200_000, through_channel: false };
const STREAMED_THROUGH_CHANNEL: Kind = Kind::Stream { messages: 200_000, through_channel: true };

/// What is compared: the part of the benchmark, what is called, connections and calls in flight on each.
const CASES: [(&str, &str, Kind, (usize, usize)); 8] = [
    ("calls", "echo 8×16", SMALL, (8, 16)),
    ("calls", "echo 64×1", SMALL, (64, 1)),
    ("calls", "echo 512×1", SMALL, (512, 1)),
    ("calls", "echo 1×1", SMALL, (1, 1)),
    ("large", "1 MiB echo, 1×4", LARGE, (1, 4)),
    ("large", "1 MiB echo, 1×1", LARGE, (1, 1)),
    ("stream", "stream of 128 B, 1×1", STREAMED, (1, 1)),
    ("stream", "stream of 128 B, 1×1, peer through a channel", STREAMED_THROUGH_CHANNEL, (1, 1)),
];

struct Plan {
    quick: bool,
    rounds: usize,
    seconds: f64,
    only: Option<String>,
    peer: Option<String>,
    server_core: usize,
    load_core: usize,
}

impl Plan {
    fn takes(&self, part: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == part)
    }
}

/// One case: all rounds of both sides.
#[derive(Serialize)]
struct Comparison {
    case: &'static str,
    kind: Kind,
    connections: usize,
    in_flight: usize,
    prism: Vec<Figures>,
    tonic: Vec<Figures>,
}

#[derive(Serialize)]
struct Results {
    /// The figures mean nothing then.
    quick: bool,
    comparisons: Vec<Comparison>,
    instructions: Option<Instructions>,
    aims: Vec<Row>,
    /// The largest share of the machine that others had in a round that counts.
    others_max: f64,
    /// Rounds that were repeated because the machine did other things as well.
    disturbed: usize,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", core] => return serve(core.parse().map_err(Error::other)?),
        ["turns", calls, prost] => {
            let parse = Error::other::<std::num::ParseIntError>;
            instructions::run(calls.parse().map_err(parse)?, prost == "true");
            return Ok(());
        }
        // A measurement that started the whole benchmark again would never end.
        [word, ..] if !word.starts_with("--") => {
            return Err(Error::other(format!("unknown measurement {word}")));
        }
        _ => {}
    }
    let plan = plan(&arguments)?;
    let (comparisons, others_max, disturbed) = compare(&plan)?;
    let instructions = if plan.takes("instructions") { instructions::count()? } else { None };
    let aims = rows(&comparisons, instructions.as_ref());
    println!("{}\n{}", table(&comparisons), aims::table(&aims));
    if let Some(Instructions { batched, alone, with_prost }) = instructions {
        println!(
            "instructions per echo: {batched:.0} (16 a pass), {alone:.0} (one a pass), {with_prost:.0} (16 a pass, with prost)"
        );
    }
    let results =
        Results { quick: plan.quick, comparisons, instructions, aims, others_max, disturbed };
    println!("written to {}", save("transport", &results)?.display());
    Ok(())
}

/// `serve <core>`: prints where it listens and serves until it is killed.
fn serve(core: usize) -> Result<()> {
    prism_io::rt::pin(core)?;
    let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
    println!("{}", socket.local_addr()?);
    std::io::stdout().flush()?;
    echo_server::serve(socket, None)
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
        seconds: number("--seconds", if quick { 0.2 } else { 1.0 })?,
        only: option("--only"),
        peer: option("--peer"),
        server_core,
        load_core,
    })
}

fn compare(plan: &Plan) -> Result<(Vec<Comparison>, f64, usize)> {
    let core = plan.server_core.to_string();
    let this = std::env::current_exe()?;
    let start = |program: &Path, arguments: &[&str]| -> Result<(Server, SocketAddr)> {
        let mut server = Server::start(Command::new(program).args(arguments))?;
        let address = server.line()?.parse().map_err(Error::other)?;
        Ok((server, address))
    };
    let prism = start(&this, &["serve", &core])?;
    let tonic = match &plan.peer {
        Some(path) => start(Path::new(path), &["serve", &core])?,
        None => start(Path::new(env!("CARGO_BIN_EXE_tonic-echo")), &[&core])?,
    };
    let (mut all, mut others_max, mut disturbed) = (Vec::new(), 0.0f64, 0);
    for (part, case, kind, (connections, in_flight)) in CASES {
        if !plan.takes(part) {
            continue;
        }
        let mut comparison =
            Comparison { case, kind, connections, in_flight, prism: Vec::new(), tonic: Vec::new() };
        while comparison.prism.len() < plan.rounds {
            let watch = Watch::begin(&[prism.0.id(), tonic.0.id()])?;
            let round = |(server, address): &(Server, SocketAddr)| {
                load::run(Load {
                    address: *address,
                    tls: None,
                    server: server.id(),
                    core: plan.load_core,
                    kind,
                    connections,
                    in_flight,
                    warmup: Duration::from_secs_f64(plan.seconds / 4.0),
                    duration: Duration::from_secs_f64(plan.seconds),
                })
                .map_err(|error| Error::other(format!("{case} at {address}: {error}")))
            };
            let figures = (round(&prism)?, round(&tonic)?);
            let others = watch.others()?;
            if others > OTHERS_MAX && !plan.quick && disturbed < DISTURBED_MAX {
                disturbed += 1;
                eprintln!("others used {:.0} % of the machine: once more", others * 100.0);
                std::thread::sleep(CALM);
                continue;
            }
            others_max = others_max.max(others);
            comparison.prism.push(figures.0);
            comparison.tonic.push(figures.1);
        }
        eprintln!("measured {case}");
        all.push(comparison);
    }
    Ok((all, others_max, disturbed))
}

fn of(rounds: &[Figures], field: fn(&Figures) -> f64) -> f64 {
    median(&rounds.iter().map(field).collect::<Vec<_>>())
}

impl Comparison {
    fn ratio(&self, field: fn(&Figures) -> f64) -> f64 {
        of(&self.prism, field) / of(&self.tonic, field)
    }
}

fn rows(comparisons: &[Comparison], instructions: Option<&Instructions>) -> Vec<Row> {
    let find = |case: &str| comparisons.iter().find(|comparison| comparison.case == case);
    let mut rows = Vec::new();
    for (case, measure, bar, aim) in [
        ("echo 8×16", "echo 8×16: CPU against tonic", 0.15, 0.1),
        ("echo 64×1", "echo 64×1: CPU against tonic", 0.55, 0.42),
        ("echo 512×1", "echo 512×1: CPU against tonic", 0.4, 0.3),
        ("echo 1×1", "echo 1×1: CPU against tonic", 0.8, 0.65),
    ] {
        let ratio = find(case).map(|case| case.ratio(|figures| figures.server_cpu_us));
        rows.extend(ratio.map(|ratio| Row::at_most(measure, ratio, bar, aim, "×")));
    }
    for (case, measure, bar, aim) in [
        ("1 MiB echo, 1×4", "1 MiB messages: throughput against tonic", 1.5, 2.0),
        ("stream of 128 B, 1×1", "stream of 128 B: messages/s against tonic", 4.0, 8.0),
        (
            "stream of 128 B, 1×1, peer through a channel",
            "same, against tonic through a channel",
            4.0,
            8.0,
        ),
    ] {
        let ratio = find(case).map(|case| case.ratio(|figures| figures.messages_per_second));
        rows.extend(ratio.map(|ratio| Row::at_least(measure, ratio, bar, aim)));
    }
    rows.extend(instructions.map(|counted| {
        Row::at_most("instructions per echo over memory", counted.batched, 4000.0, 2000.0, "")
    }));
    rows
}

fn table(comparisons: &[Comparison]) -> Table {
    let columns =
        ["", "messages/s", "p50 µs", "p99 µs", "p99.9 µs", "server CPU µs", "server", "load"];
    let mut table = Table::new("Connections × calls in flight, medians", &columns);
    for comparison in comparisons {
        for (name, rounds) in [("prism", &comparison.prism), ("tonic", &comparison.tonic)] {
            table.row(vec![
                format!("{} {name}", comparison.case),
                format!("{:.0}", of(rounds, |figures| figures.messages_per_second)),
                format!("{:.0}", of(rounds, |figures| figures.latency.p50_us)),
                format!("{:.0}", of(rounds, |figures| figures.latency.p99_us)),
                format!("{:.0}", of(rounds, |figures| figures.latency.p999_us)),
                format!("{:.3}", of(rounds, |figures| figures.server_cpu_us)),
                format!("{:.0} %", of(rounds, |figures| figures.server_busy * 100.0)),
                format!("{:.0} %", of(rounds, |figures| figures.load_busy * 100.0)),
            ]);
        }
    }
    table
}
