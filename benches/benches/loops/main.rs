//! `cargo bench -p prism-benches --bench loops`: the event loop behind Prism's transport against a ring of our own in its place, with and without a
//! log write before the answer. `docs/decisions` has what came of it.
//!
//! All sides run the same HTTP/2 and gRPC state machine and the same handler; what differs is who moves the bytes: `prism_io::server` on monoio,
//! `bare.rs` on monoio without what a product's driver does beside that, or `ring.rs`, which does none of it either. One kind of call is answered at once, the other when a group of them has been written to a recycled file with O_DIRECT and O_DSYNC, one
//! write in flight. Neither has Prism's request path above it, so in the same rounds `prism serve` answers whole calls: Get at `memory`, Set at `wal`.
//! What the ring saves of the one is set against what the other costs.
//!
//! Options: `--quick` (a smoke run whose figures mean nothing), `--rounds <n>`, `--seconds <n>`, `--folder <path>` (where logs go; on a real disk),
//! `--cores <server>,<load>`, `--no-build`. Results: `target/bench/loops.json`.

mod bare;
mod ring;

use std::io::{Error, Result, Write};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use prism_benches::echo::Log;
use prism_benches::echo_server;
use prism_benches::load::{self, Kind, Load};
use prism_benches::prism::{self, Prism};
use prism_benches::process::Server;
use prism_benches::quiet::{OTHERS_MAX, Watch};
use prism_benches::report::{Table, folder, median, save};
use prism_benches::write;
use prism_loadtest::kv;
use prism_loadtest::kv::workload::{Mix, Recipe};
use prism_loadtest::random::Distribution;
use serde::Serialize;

const DISTURBED_MAX: usize = 20;
const CALM: Duration = Duration::from_secs(2);
const SHAPES: [(usize, usize); 4] = [(64, 1), (512, 1), (8, 16), (1, 1)];

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Side {
    /// The transport alone, on the product's loop.
    Monoio,
    /// The same loop with a driver as bare as the ring's.
    Bare,
    /// The same on a ring of our own.
    Ring,
    /// `prism serve`: whole calls.
    Whole,
}

impl Side {
    const ALL: [Side; 4] = [Side::Monoio, Side::Bare, Side::Ring, Side::Whole];

    fn name(self) -> &'static str {
        match self {
            Side::Monoio => "monoio",
            Side::Bare => "bare",
            Side::Ring => "ring",
            Side::Whole => "whole call",
        }
    }
}

/// One side under one load: the CPU time of the server per call, and the median latency, of each round.
#[derive(Serialize)]
struct Row {
    side: Side,
    with_log: bool,
    connections: usize,
    in_flight: usize,
    cpu_us: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
}

#[derive(Serialize)]
struct Results {
    quick: bool,
    rows: Vec<Row>,
    others_max: f64,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("serve") => return serve(&arguments[1..]),
        // A measurement that started the whole benchmark again would never end.
        Some(word) if !word.starts_with("--") => {
            return Err(Error::other(format!("unknown measurement {word}")));
        }
        _ => {}
    }
    let option = |name: &str| {
        arguments.iter().position(|word| word == name).and_then(|at| arguments.get(at + 1)).cloned()
    };
    let number = |name: &str, otherwise: f64| match option(name) {
        Some(text) => text.parse().map_err(|_| Error::other(format!("{name} takes a number"))),
        None => Ok(otherwise),
    };
    let quick = arguments.iter().any(|word| word == "--quick");
    let rounds = number("--rounds", if quick { 1.0 } else { 5.0 })? as usize;
    let seconds = number("--seconds", if quick { 0.2 } else { 1.0 })?;
    let cores = option("--cores").unwrap_or_else(|| "0,1".into());
    let Some((server_core, load_core)) = cores.split_once(',') else {
        return Err(Error::other("--cores takes two: the server's and the load's"));
    };
    let load_core: usize = load_core.parse().map_err(Error::other)?;
    let folder = option("--folder").map_or_else(folder, |path| Ok(PathBuf::from(path)))?;
    let scratch = tempfile::tempdir_in(folder)?;
    if !arguments.iter().any(|word| word == "--no-build") {
        prism::build()?;
    }
    let data = scratch.path().join("data");
    let core = server_core.parse().map_err(Error::other)?;
    let prism = Prism::start(&prism::binary("prism")?, &data, &[core])?;
    let mut servers = Vec::new();
    for with_log in [false, true] {
        for side in [Side::Monoio, Side::Bare, Side::Ring] {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["serve", side.name(), server_core]);
            if with_log {
                let file = scratch.path().join(side.name());
                write::prepare(&file)?;
                command.arg(&file);
            }
            let mut server = Server::start(&mut command)?;
            let address = server.line()?.parse().map_err(Error::other)?;
            servers.push((side, with_log, server, address));
        }
    }
    let mut ids: Vec<u32> = servers.iter().map(|(_, _, server, _)| server.id()).collect();
    ids.push(prism.server.id());
    let mut whole = whole_load(&prism, load_core, seconds);
    (whole.connections, whole.in_flight, whole.preload) = (8, 16, true);
    kv::run(&whole)?;
    whole.preload = false;
    let (mut rows, mut others_max, mut disturbed) = (Vec::new(), 0.0f64, 0);
    for (connections, in_flight) in SHAPES {
        let row = |side, with_log| Row {
            side,
            with_log,
            connections,
            in_flight,
            cpu_us: Vec::new(),
            p50_us: Vec::new(),
            p99_us: Vec::new(),
        };
        let mut group: Vec<Row> =
            [false, true].iter().flat_map(|&log| Side::ALL.map(|side| row(side, log))).collect();
        while group[0].cpu_us.len() < rounds {
            let watch = Watch::begin(&ids)?;
            let mut found = Vec::new();
            for row in &group {
                let of =
                    |side: &&(Side, bool, Server, _)| (side.0, side.1) == (row.side, row.with_log);
                found.push(match servers.iter().find(of) {
                    Some((_, _, server, address)) => {
                        let figures = load::run(Load {
                            address: *address,
                            tls: None,
                            server: server.id(),
                            core: load_core,
                            kind: Kind::Echo { value_bytes: 128 },
                            connections,
                            in_flight,
                            warmup: Duration::from_secs_f64(seconds / 4.0),
                            duration: Duration::from_secs_f64(seconds),
                        })?;
                        (figures.server_cpu_us, figures.latency)
                    }
                    None => {
                        (whole.connections, whole.in_flight) = (connections, in_flight);
                        let (mix, namespace) =
                            if row.with_log { ("0:1", "durable") } else { ("1:0", "memory") };
                        whole.recipe.mix = mix.parse().map_err(Error::other)?;
                        whole.recipe.namespace = namespace.into();
                        let report = kv::run(&whole)?;
                        (report.server_cpu_us.unwrap_or(f64::NAN), report.latency)
                    }
                });
            }
            let others = watch.others()?;
            if others > OTHERS_MAX && !quick && disturbed < DISTURBED_MAX {
                disturbed += 1;
                eprintln!("others used {:.0} % of the machine: once more", others * 100.0);
                std::thread::sleep(CALM);
                continue;
            }
            others_max = others_max.max(others);
            for (row, (cpu_us, latency)) in group.iter_mut().zip(found) {
                row.cpu_us.push(cpu_us);
                row.p50_us.push(latency.p50_us);
                row.p99_us.push(latency.p99_us);
            }
        }
        eprintln!("measured {connections}×{in_flight}");
        rows.append(&mut group);
    }
    println!("{}", table(&rows));
    println!("written to {}", save("loops", &Results { quick, rows, others_max })?.display());
    Ok(())
}

/// `serve <loop> <core> [<log file>]`: prints where it listens and serves until it is killed.
fn serve(arguments: &[String]) -> Result<()> {
    let (event_loop, core, log) = match arguments {
        [event_loop, core] => (event_loop, core, None),
        [event_loop, core, file] => (event_loop, core, Some(Log { file: file.into() })),
        _ => return Err(Error::other("serve takes a loop, a core and perhaps a file")),
    };
    prism_io::rt::pin(core.parse().map_err(Error::other)?)?;
    let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
    println!("{}", socket.local_addr()?);
    std::io::stdout().flush()?;
    match event_loop.as_str() {
        "monoio" => echo_server::serve(socket, log),
        "bare" => bare::serve(socket, log),
        "ring" => ring::serve(socket, log.as_ref()),
        other => Err(Error::other(format!("unknown loop {other}"))),
    }
}

/// Whole calls; which ones is filled in.
fn whole_load(prism: &Prism, core: usize, seconds: f64) -> kv::Load {
    kv::Load {
        endpoint: prism.endpoint,
        tls: None,
        recipe: Recipe {
            namespace: "memory".into(),
            stream: None,
            value_bytes: 128,
            mix: Mix { reads: 1, writes: 0 },
            keys: 10_000,
            distribution: Distribution::Uniform,
            seed: 1,
        },
        connections: 1,
        in_flight: 1,
        rate: None,
        beside: None,
        durability: None,
        threads: vec![Some(core)],
        preload: false,
        warmup: Duration::from_secs_f64(seconds / 4.0),
        duration: Duration::from_secs_f64(seconds),
        requests: None,
        timeout: Duration::from_secs(10),
        server_id: Some(prism.server.id()),
    }
}

fn table(rows: &[Row]) -> Table {
    let columns = ["", "server CPU µs", "p50 µs", "p99 µs", "ring saves, of a whole call"];
    let mut table = Table::new("Loops, connections × in flight, medians", &columns);
    for row in rows {
        let cpu = |side| {
            let same = |other: &&Row| {
                (other.side, other.with_log, other.connections, other.in_flight)
                    == (side, row.with_log, row.connections, row.in_flight)
            };
            rows.iter().find(same).map_or(f64::NAN, |row| median(&row.cpu_us))
        };
        // Beside the product's driver the ring also saves what it does not do; beside the bare one only what the loop costs.
        let saved = (cpu(row.side) - cpu(Side::Ring)) / cpu(Side::Whole);
        let compared = matches!(row.side, Side::Monoio | Side::Bare);
        let what = if row.with_log { "with log" } else { "at once" };
        table.row(vec![
            format!("{}×{} {what}, {}", row.connections, row.in_flight, row.side.name()),
            format!("{:.2}", median(&row.cpu_us)),
            format!("{:.0}", median(&row.p50_us)),
            format!("{:.0}", median(&row.p99_us)),
            if compared { format!("{:.0} %", saved * 100.0) } else { String::new() },
        ]);
    }
    table
}
