//! Get and Set in all shapes, Prism and its peer in turn.

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use prism_benches::prism::Prism;
use prism_benches::process::Server;
use prism_benches::quiet::{OTHERS_MAX, Watch};
use prism_benches::report::{Table, median};
use prism_benches::write;
use prism_loadtest::report::Report;
use serde::Serialize;

use crate::Plan;

/// Connections and requests in flight on each: batched, unbatched, many, idle, saturated.
pub(crate) const SHAPES: [(usize, usize); 5] = [(8, 16), (64, 1), (512, 1), (1, 1), (64, 16)];

/// Rounds that are repeated at most, over the whole run; after that what comes is taken.
const DISTURBED_MAX: usize = 60;
/// Pause after a disturbed round.
const CALM: Duration = Duration::from_secs(5);

/// What is asked of whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Case {
    GetMemory,
    GetTonic,
    SetMemory,
    SetWal,
    SetTonic,
}

impl Case {
    /// In the order of their turns: each beside the one that it is compared with.
    const ALL: [Case; 5] =
        [Case::GetMemory, Case::GetTonic, Case::SetMemory, Case::SetTonic, Case::SetWal];

    fn name(self) -> &'static str {
        match self {
            Case::GetMemory => "Get, memory",
            Case::GetTonic => "Get, tonic echo",
            Case::SetMemory => "Set, memory",
            Case::SetTonic => "Set, tonic echo",
            Case::SetWal => "Set, wal",
        }
    }

    fn namespace(self) -> &'static str {
        if self == Case::SetWal { "durable" } else { "memory" }
    }

    fn mix(self) -> &'static str {
        if matches!(self, Case::GetMemory | Case::GetTonic) { "1:0" } else { "0:1" }
    }

    fn is_peer(self) -> bool {
        matches!(self, Case::GetTonic | Case::SetTonic)
    }
}

/// All rounds of one case in one shape, and their medians.
#[derive(Serialize)]
pub(crate) struct Figures {
    pub(crate) case: Case,
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
    pub(crate) requests_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) cpu_us: f64,
    pub(crate) generator_busy: f64,
    rounds: Vec<Report>,
}

impl Figures {
    fn settle(&mut self) {
        let of =
            |field: fn(&Report) -> f64| median(&self.rounds.iter().map(field).collect::<Vec<_>>());
        self.requests_per_second = of(|round| round.requests_per_second);
        self.p50_us = of(|round| round.latency.p50_us);
        self.p99_us = of(|round| round.latency.p99_us);
        self.p999_us = of(|round| round.latency.p999_us);
        self.cpu_us = of(|round| round.server_cpu_us.unwrap_or(f64::NAN));
        self.generator_busy = of(|round| round.generator_busy);
    }
}

/// Everything that was measured with a peer.
#[derive(Serialize)]
pub(crate) struct Calls {
    pub(crate) figures: Vec<Figures>,
    /// A raw 4 KiB durable write, in turn with the calls of shape 1×1.
    pub(crate) raw_write_p50_us: f64,
    raw_writes: Vec<write::Figures>,
    /// Rounds that were repeated because the machine did other things as well.
    disturbed: usize,
    /// The largest share of the machine that others had in a round that counts.
    others_max: f64,
}

impl Calls {
    pub(crate) fn of(&self, case: Case, shape: (usize, usize)) -> &Figures {
        let wanted = |figures: &&Figures| {
            figures.case == case && (figures.connections, figures.in_flight) == shape
        };
        self.figures.iter().find(wanted).expect("every case was measured in every shape")
    }

    pub(crate) fn table(&self) -> Table {
        let columns = ["", "req/s", "p50 µs", "p99 µs", "p99.9 µs", "server CPU µs", "load busy"];
        let mut table =
            Table::new("Calls: 16 B key, 128 B value, connections × in flight", &columns);
        for figures in &self.figures {
            let Figures { connections, in_flight, .. } = figures;
            table.row(vec![
                format!("{connections}×{in_flight} {}", figures.case.name()),
                format!("{:.0}", figures.requests_per_second),
                format!("{:.0}", figures.p50_us),
                format!("{:.0}", figures.p99_us),
                format!("{:.0}", figures.p999_us),
                format!("{:.2}", figures.cpu_us),
                format!("{:.0} %", figures.generator_busy * 100.0),
            ]);
        }
        table.row(vec![
            "raw 4 KiB O_DIRECT+O_DSYNC write".to_owned(),
            "".to_owned(),
            format!("{:.0}", self.raw_write_p50_us),
            "".to_owned(),
            "".to_owned(),
            "".to_owned(),
            format!("others {:.0} %", self.others_max * 100.0),
        ]);
        table
    }
}

pub(crate) fn measure(plan: &Plan) -> Result<Calls> {
    let scratch = tempfile::tempdir_in(&plan.folder)?;
    let raw_file = scratch.path().join("raw");
    write::prepare(&raw_file)?;
    let data = scratch.path().join("data");
    let prism = Prism::start(&plan.prism, &data, &[plan.server_core])?;
    let core = plan.server_core.to_string();
    let mut peer = Server::start(Command::new(&plan.peer).arg(core))?;
    let peer_address = peer.line()?.parse().map_err(Error::other)?;
    for case in [Case::GetMemory, Case::SetWal] {
        load(plan, case, (8, 16), prism.endpoint, prism.server.id(), true)?;
    }
    let (mut all, mut raw_writes) = (Vec::new(), Vec::new());
    let (mut disturbed, mut others_max) = (0, 0.0f64);
    for shape in SHAPES {
        let mut group: Vec<Figures> = Case::ALL
            .into_iter()
            .map(|case| Figures {
                case,
                connections: shape.0,
                in_flight: shape.1,
                requests_per_second: 0.0,
                p50_us: 0.0,
                p99_us: 0.0,
                p999_us: 0.0,
                cpu_us: 0.0,
                generator_busy: 0.0,
                rounds: Vec::new(),
            })
            .collect();
        let mut kept = 0;
        while kept < plan.rounds {
            let watch = Watch::begin(&[prism.server.id(), peer.id()])?;
            let mut reports = Vec::new();
            for figures in &group {
                let (address, id) = match figures.case.is_peer() {
                    true => (peer_address, peer.id()),
                    false => (prism.endpoint, prism.server.id()),
                };
                reports.push(load(plan, figures.case, shape, address, id, false)?);
            }
            let raw = if shape == (1, 1) { Some(raw_write(plan, &raw_file)?) } else { None };
            let others = watch.others()?;
            if others > OTHERS_MAX && !plan.quick && disturbed < DISTURBED_MAX {
                disturbed += 1;
                eprintln!(
                    "others used {:.0} % of the machine: the round is repeated",
                    others * 100.0
                );
                std::thread::sleep(CALM);
                continue;
            }
            others_max = others_max.max(others);
            raw_writes.extend(raw);
            group.iter_mut().zip(reports).for_each(|(figures, report)| figures.rounds.push(report));
            kept += 1;
        }
        group.iter_mut().for_each(Figures::settle);
        eprintln!("measured {}×{}", shape.0, shape.1);
        all.append(&mut group);
    }
    let raw_write_p50_us = median(&raw_writes.iter().map(|round| round.p50_us).collect::<Vec<_>>());
    Ok(Calls { figures: all, raw_write_p50_us, raw_writes, disturbed, others_max })
}

/// One round of load.
fn load(
    plan: &Plan,
    case: Case,
    (connections, in_flight): (usize, usize),
    address: SocketAddr,
    server: u32,
    preload: bool,
) -> Result<Report> {
    let mut command = Command::new(&plan.loadtest);
    command
        .args(["kv", "--output", "json", "--mix", case.mix(), "--namespace", case.namespace()])
        .args(["--endpoint", &address.to_string(), "--cores", &plan.load_core.to_string()])
        .args(["--connections", &connections.to_string(), "--in-flight", &in_flight.to_string()])
        .args(["--duration", &format!("{}s", plan.seconds)])
        .args(["--warmup", &format!("{}ms", plan.warmup.as_millis())])
        .args(["--server-pid", &server.to_string()]);
    if !preload {
        command.arg("--no-preload");
    }
    let output = command.output()?;
    if !output.status.success() {
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        return Err(Error::other(format!("{} {connections}×{in_flight}: {text}", case.name())));
    }
    let report: Report = serde_json::from_slice(&output.stdout)?;
    if report.not_found > 0 {
        return Err(Error::other(format!("{}: keys that were stored are gone", case.name())));
    }
    Ok(report)
}

/// The disk's own share of a 1×1 Set, from the server's core.
fn raw_write(plan: &Plan, file: &std::path::Path) -> Result<write::Figures> {
    let (core, file) = (plan.server_core, file.to_owned());
    let duration = Duration::from_secs_f64(plan.seconds / 2.0);
    let thread = std::thread::spawn(move || {
        prism_io::rt::pin(core)?;
        write::raw(&file, 4096, duration)
    });
    thread.join().map_err(|_| Error::other("the raw write broke down"))?
}
