//! `cargo bench -p prism-benches --bench loops`: the event loop behind Prism's transport against a ring of our own in its place, with and without a
//! log write before the answer. `docs/decisions` has what came of it.
//!
//! Both sides run the same HTTP/2 and gRPC state machine and the same handler; what differs is who moves the bytes: `prism_io::server` on monoio, or
//! `ring.rs`. "Get" answers at once. "Set" answers when a group of requests has been written to a recycled file with O_DIRECT and O_DSYNC, one
//! write in flight. Neither has Prism's request path above it: a share that is saved here is smaller in a whole call.
//!
//! Options: `--quick` (a smoke run whose figures mean nothing), `--rounds <n>`, `--seconds <n>`, `--folder <path>` (where the log's file goes; on a real
//! disk), `--cores <server>,<load>`. Results: `target/bench/loops.json`.

mod ring;

use std::io::{Error, Result, Write};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use prism_benches::echo::Log;
use prism_benches::echo_server;
use prism_benches::load::{self, Figures, Kind, Load};
use prism_benches::process::Server;
use prism_benches::quiet::{OTHERS_MAX, Watch};
use prism_benches::report::{Table, folder, median, save};
use prism_benches::write;
use serde::Serialize;

const DISTURBED_MAX: usize = 20;
const CALM: Duration = Duration::from_secs(2);
const SHAPES: [(usize, usize); 4] = [(64, 1), (512, 1), (8, 16), (1, 1)];
const LOOPS: [&str; 2] = ["monoio", "ring"];

/// One loop under one load.
#[derive(Serialize)]
struct Row {
    event_loop: &'static str,
    with_log: bool,
    connections: usize,
    in_flight: usize,
    rounds: Vec<Figures>,
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
    let mut servers = Vec::new();
    for with_log in [false, true] {
        for event_loop in LOOPS {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["serve", event_loop, server_core]);
            if with_log {
                let file = scratch.path().join(event_loop);
                write::prepare(&file)?;
                command.arg(&file);
            }
            let mut server = Server::start(&mut command)?;
            let address = server.line()?.parse().map_err(Error::other)?;
            servers.push((event_loop, with_log, server, address));
        }
    }
    let ids: Vec<u32> = servers.iter().map(|(_, _, server, _)| server.id()).collect();
    let (mut rows, mut others_max, mut disturbed) = (Vec::new(), 0.0f64, 0);
    for (connections, in_flight) in SHAPES {
        let mut group: Vec<Row> = servers
            .iter()
            .map(|&(event_loop, with_log, ..)| Row {
                event_loop,
                with_log,
                connections,
                in_flight,
                rounds: Vec::new(),
            })
            .collect();
        while group[0].rounds.len() < rounds {
            let watch = Watch::begin(&ids)?;
            let mut found = Vec::new();
            for (_, _, server, address) in &servers {
                found.push(load::run(Load {
                    address: *address,
                    server: server.id(),
                    core: load_core,
                    kind: Kind::Echo { value_bytes: 128 },
                    connections,
                    in_flight,
                    warmup: Duration::from_secs_f64(seconds / 4.0),
                    duration: Duration::from_secs_f64(seconds),
                })?);
            }
            let others = watch.others()?;
            if others > OTHERS_MAX && !quick && disturbed < DISTURBED_MAX {
                disturbed += 1;
                eprintln!("others used {:.0} % of the machine: once more", others * 100.0);
                std::thread::sleep(CALM);
                continue;
            }
            others_max = others_max.max(others);
            group.iter_mut().zip(found).for_each(|(row, figures)| row.rounds.push(figures));
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
        "ring" => ring::serve(socket, log.as_ref()),
        other => Err(Error::other(format!("unknown loop {other}"))),
    }
}

fn table(rows: &[Row]) -> Table {
    let columns = ["", "requests/s", "p50 µs", "p99 µs", "p99.9 µs", "server CPU µs", "of monoio"];
    let mut table = Table::new("Loops, connections × in flight, medians", &columns);
    for row in rows {
        let of = |rounds: &[Figures], field: fn(&Figures) -> f64| {
            median(&rounds.iter().map(field).collect::<Vec<_>>())
        };
        let cpu: fn(&Figures) -> f64 = |figures| figures.server_cpu_us;
        let same = |other: &&Row| {
            other.event_loop == LOOPS[0]
                && (other.with_log, other.connections, other.in_flight)
                    == (row.with_log, row.connections, row.in_flight)
        };
        let base = rows.iter().find(same).map_or(f64::NAN, |base| of(&base.rounds, cpu));
        let what = if row.with_log { "with log" } else { "at once" };
        table.row(vec![
            format!("{}×{} {what}, {}", row.connections, row.in_flight, row.event_loop),
            format!("{:.0}", of(&row.rounds, |figures| figures.messages_per_second)),
            format!("{:.0}", of(&row.rounds, |figures| figures.latency.p50_us)),
            format!("{:.0}", of(&row.rounds, |figures| figures.latency.p99_us)),
            format!("{:.0}", of(&row.rounds, |figures| figures.latency.p999_us)),
            format!("{:.2}", of(&row.rounds, cpu)),
            format!("{:.2}", of(&row.rounds, cpu) / base),
        ]);
    }
    table
}
