//! `cargo bench -p prism-benches --bench tls`: Prism's transport over TLS beside tonic's, both on rustls with the same cryptography, cipher suite and
//! certificate.
//!
//! Two servers stand on one core and echo; one generator loads them in turn (A B A B …) from another core, and beside them Prism in clear, to show what TLS
//! itself costs. Every figure is the median of alternating rounds.
//!
//! Options: `--quick` (a smoke run whose figures mean nothing), `--rounds <n>`, `--seconds <n>` per round, `--cores <server>,<load>`. Results:
//! `target/bench/tls.json`.

use std::io::{Error, Result, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use prism_benches::aims::{self, Row};
use prism_benches::certificate::Files;
use prism_benches::echo_server;
use prism_benches::load::{self, Figures, Kind, Load};
use prism_benches::process::Server;
use prism_benches::quiet::{OTHERS_MAX, Watch};
use prism_benches::report::{Table, median, save};
use prism_io::server::Tls;
use prism_io::tls::{Acceptor, Connector, Identity};
use serde::Serialize;

/// Rounds that are repeated at most, over the whole run; after that what comes is taken.
const DISTURBED_MAX: usize = 20;
/// Pause after a disturbed round.
const CALM: Duration = Duration::from_secs(2);

const SMALL: Kind = Kind::Echo { value_bytes: 128 };
const LARGE: Kind = Kind::Echo { value_bytes: 1 << 20 };

/// What is compared: what is called, connections and calls in flight on each.
const CASES: [(&str, Kind, (usize, usize)); 3] = [
    ("echo 8×16", SMALL, (8, 16)),
    ("echo 64×1", SMALL, (64, 1)),
    ("1 MiB echo, 1×4", LARGE, (1, 4)),
];

/// The servers, in the order of their turns.
const SIDES: [&str; 3] = ["prism, TLS", "tonic, TLS", "prism, in clear"];

struct Plan {
    quick: bool,
    rounds: usize,
    seconds: f64,
    server_core: usize,
    load_core: usize,
}

/// One case: all rounds of each side.
#[derive(Serialize)]
struct Comparison {
    case: &'static str,
    sides: [Vec<Figures>; SIDES.len()],
}

#[derive(Serialize)]
struct Results {
    /// The figures mean nothing then.
    quick: bool,
    comparisons: Vec<Comparison>,
    aims: Vec<Row>,
    /// The largest share of the machine that others had in a round that counts.
    others_max: f64,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", core] => return serve(core, None),
        ["serve", core, certificate, key] => return serve(core, Some((certificate, key))),
        // A measurement that started the whole benchmark again would never end.
        [word, ..] if !word.starts_with("--") => {
            return Err(Error::other(format!("unknown measurement {word}")));
        }
        _ => {}
    }
    let plan = plan(&arguments)?;
    let files = Files::make()?;
    let servers = Servers::start(&plan, &files)?;
    let (comparisons, others_max) = compare(&plan, &files, &servers)?;
    let aims = rows(&comparisons);
    println!("{}\n{}", table(&comparisons), aims::table(&aims));
    let results = Results { quick: plan.quick, comparisons, aims, others_max };
    println!("written to {}", save("tls", &results)?.display());
    Ok(())
}

/// `serve <core> [certificate key]`: prints where it listens and serves until it is killed.
fn serve(core: &str, files: Option<(&str, &str)>) -> Result<()> {
    prism_io::rt::pin(core.parse().map_err(Error::other)?)?;
    let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
    let tls = files.map(|(certificate, key)| {
        let identity = Identity::load(Path::new(certificate), Path::new(key));
        let acceptor = Acceptor::new(&identity.map_err(Error::other)?).map_err(Error::other)?;
        Ok::<_, Error>(Tls { acceptor, handshakes_max: 1024, timeout: Duration::from_secs(10) })
    });
    println!("{}", socket.local_addr()?);
    std::io::stdout().flush()?;
    echo_server::serve_with(socket, None, tls.transpose()?)
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
        server_core,
        load_core,
    })
}

/// One server for each side.
struct Servers([(Server, SocketAddr); SIDES.len()]);

impl Servers {
    fn start(plan: &Plan, files: &Files) -> Result<Self> {
        let core = plan.server_core.to_string();
        let (certificate, key) = (files.certificate(), files.key());
        let start = |command: &mut Command| -> Result<(Server, SocketAddr)> {
            let mut server = Server::start(command)?;
            let address = server.line()?.parse().map_err(Error::other)?;
            Ok((server, address))
        };
        let this = std::env::current_exe()?;
        let tonic = env!("CARGO_BIN_EXE_tonic-echo");
        Ok(Self([
            start(Command::new(&this).args(["serve", &core]).args([&certificate, &key]))?,
            start(Command::new(tonic).args([&core, "127.0.0.1:0"]).args([&certificate, &key]))?,
            start(Command::new(&this).args(["serve", &core]))?,
        ]))
    }

    fn ids(&self) -> Vec<u32> {
        self.0.iter().map(|(server, _)| server.id()).collect()
    }
}

fn compare(plan: &Plan, files: &Files, servers: &Servers) -> Result<(Vec<Comparison>, f64)> {
    // Lives as long as the process, as the loads' threads may.
    let connector: &'static Connector = Box::leak(Box::new(files.connector()?));
    let (mut all, mut others_max, mut disturbed) = (Vec::new(), 0.0f64, 0);
    for (case, kind, (connections, in_flight)) in CASES {
        let mut comparison = Comparison { case, sides: Default::default() };
        while comparison.sides[0].len() < plan.rounds {
            let watch = Watch::begin(&servers.ids())?;
            let mut round = Vec::new();
            for (side, (server, address)) in SIDES.iter().zip(&servers.0) {
                let figures = load::run(Load {
                    address: *address,
                    tls: side.ends_with("TLS").then_some(connector),
                    server: server.id(),
                    core: plan.load_core,
                    kind,
                    connections,
                    in_flight,
                    warmup: Duration::from_secs_f64(plan.seconds / 4.0),
                    duration: Duration::from_secs_f64(plan.seconds),
                });
                round.push(
                    figures.map_err(|error| Error::other(format!("{case}, {side}: {error}")))?,
                );
            }
            let others = watch.others()?;
            if others > OTHERS_MAX && !plan.quick && disturbed < DISTURBED_MAX {
                disturbed += 1;
                eprintln!("others used {:.0} % of the machine: once more", others * 100.0);
                std::thread::sleep(CALM);
                continue;
            }
            others_max = others_max.max(others);
            comparison.sides.iter_mut().zip(round).for_each(|(side, figures)| side.push(figures));
        }
        eprintln!("measured {case}");
        all.push(comparison);
    }
    Ok((all, others_max))
}

fn of(rounds: &[Figures], field: fn(&Figures) -> f64) -> f64 {
    median(&rounds.iter().map(field).collect::<Vec<_>>())
}

fn rows(comparisons: &[Comparison]) -> Vec<Row> {
    let ratio = |case: &str, field: fn(&Figures) -> f64| {
        let found = comparisons.iter().find(|comparison| comparison.case == case);
        found.map(|found| of(&found.sides[0], field) / of(&found.sides[1], field))
    };
    let cpu = |figures: &Figures| figures.server_cpu_us;
    let rate = |figures: &Figures| figures.messages_per_second;
    let mut rows = Vec::new();
    rows.extend(ratio("echo 8×16", cpu).map(|ratio| {
        Row::at_most("echo over TLS 8×16: CPU against tonic", ratio, 0.35, 0.25, "×")
    }));
    rows.extend(ratio("echo 64×1", cpu).map(|ratio| {
        // The bar and the aim of the same shape in clear.
        Row::at_most("echo over TLS 64×1: CPU against tonic", ratio, 0.55, 0.42, "×")
    }));
    rows.extend(
        ratio("1 MiB echo, 1×4", rate).map(|ratio| {
            Row::at_least("1 MiB over TLS: throughput against tonic", ratio, 1.5, 2.0)
        }),
    );
    rows
}

fn table(comparisons: &[Comparison]) -> Table {
    let columns =
        ["", "messages/s", "p50 µs", "p99 µs", "p99.9 µs", "server CPU µs", "server", "load"];
    let mut table = Table::new("Connections × calls in flight, medians", &columns);
    for comparison in comparisons {
        for (name, rounds) in SIDES.iter().zip(&comparison.sides) {
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
