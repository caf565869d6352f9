//! Many namespaces on one server, and a neighbour that asks for more than its quota.

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prism_benches::aims::Row;
use prism_benches::prism::binary;
use prism_benches::process::{Server, free_address, http_get};
use prism_benches::report::{Table, folder, median};
use prism_loadtest::report::Report;
use serde::Serialize;

use crate::Plan;

/// Namespaces of a server with many.
const MANY: usize = 1000;
/// Calls a second that the neighbour may make; ten times as many are asked for.
const QUOTA: u64 = 1000;
/// Calls a second of the namespace that is looked at.
const RATE: u64 = 2000;
/// How long a server may take to be ready.
const START_MAX: Duration = Duration::from_secs(120);

/// What 1,000 namespaces cost.
#[derive(Serialize)]
pub(crate) struct Crowd {
    /// From the command to its end.
    apply_s: f64,
    /// Resident memory of the server before and after, KiB.
    before_kib: f64,
    after_kib: f64,
    idle_kib: f64,
    /// CPU of the server per call, by round: with one namespace, with all.
    one_us: Vec<f64>,
    many_us: Vec<f64>,
}

/// What a neighbour costs.
#[derive(Serialize)]
pub(crate) struct Neighbour {
    /// p99 of the namespace that is looked at, by round: alone, beside a neighbour that asks for its quota, and for ten times as much.
    alone_us: Vec<f64>,
    at_quota_us: Vec<f64>,
    at_ten_us: Vec<f64>,
    /// Calls of the neighbour a second at ten times its quota, by round: let in, refused.
    let_in: Vec<f64>,
    refused: Vec<f64>,
}

/// A server that namespaces are applied to.
struct Applied {
    server: Server,
    endpoint: SocketAddr,
    scratch: tempfile::TempDir,
}

impl Applied {
    fn start(plan: &Plan, platform: &str) -> Result<Self> {
        let scratch = tempfile::tempdir_in(folder()?)?;
        let (endpoint, admin) = (free_address()?, free_address()?);
        let path = |name: &str| scratch.path().join(name);
        std::fs::write(path("platform.yaml"), platform)?;
        let config = format!(
            "listen: {endpoint}\nadmin: {admin}\ndata_dir: {}\ncores: {}\nplatform: {}\n",
            path("data").display(),
            plan.server_core,
            path("platform.yaml").display(),
        );
        std::fs::write(path("prism.yaml"), config)?;
        let mut command = Command::new(binary("prism")?);
        command.args(["serve", "--log-level", "warn", "--config"]).arg(path("prism.yaml"));
        let mut server = Server::start(command.stderr(Stdio::inherit()))?;
        let begun = Instant::now();
        while !matches!(http_get(admin, "/readyz"), Ok(Some(_))) {
            if server.ended()?.is_some() || begun.elapsed() > START_MAX {
                return Err(Error::other("prism serve is not ready"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { server, endpoint, scratch })
    }

    /// Applies namespaces of these names; how long the command has taken.
    fn apply(&self, names: impl Iterator<Item = String>) -> Result<Duration> {
        let request = |name| {
            format!(
                "---\nnamespace: {name}\nteam: bench\nclient_api: keyvalue\nneeds: {{durability: best-effort}}\n"
            )
        };
        let file = self.scratch.path().join("requests.yaml");
        std::fs::write(&file, names.map(request).collect::<String>())?;
        let begun = Instant::now();
        let mut command = Command::new(binary("prism")?);
        command.arg("apply").arg(&file).args(["--endpoint", &self.endpoint.to_string()]);
        let status = command.stdout(Stdio::null()).status()?;
        if status.success() { Ok(begun.elapsed()) } else { Err(Error::other("apply has failed")) }
    }

    fn resident_kib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.server.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let text = line.unwrap_or_default().trim().trim_end_matches("kB").trim();
        text.parse().map_err(Error::other)
    }

    /// Load on a namespace, with these options of prism-loadtest.
    fn load(&self, plan: &Plan, namespace: &str, options: &[&str]) -> Result<Load> {
        let seconds = if plan.quick { "500ms" } else { "5s" };
        let report = self.scratch.path().join(format!("{namespace}.json"));
        let mut command = Command::new(binary("prism-loadtest")?);
        command
            .args(["kv", "--output", "json", "--mix", "1:0", "--keys", "1000"])
            .args(["--namespace", namespace, "--endpoint", &self.endpoint.to_string()])
            .args(["--duration", seconds, "--server-pid", &self.server.id().to_string()])
            .args(["--cores", &plan.load_core.to_string()])
            .args(options)
            .stdout(std::fs::File::create(&report)?);
        Ok(Load { child: command.spawn()?, report })
    }
}

/// A load under way.
struct Load {
    child: Child,
    report: PathBuf,
}

impl Load {
    /// Waits for its end. That calls were refused is no failure of the measurement.
    fn end(mut self) -> Result<Report> {
        self.child.wait()?;
        read(&self.report)
    }
}

fn read(path: &Path) -> Result<Report> {
    serde_json::from_slice(&std::fs::read(path)?).map_err(Error::other)
}

fn server_cpu_us(report: &Report) -> Result<f64> {
    report.server_cpu_us.ok_or_else(|| Error::other("the CPU of the server is not known"))
}

/// One server with one namespace beside one with 1,000, in alternating rounds.
pub(crate) fn crowd(plan: &Plan, rows: &mut Vec<Row>) -> Result<Crowd> {
    let (one, many) = (Applied::start(plan, "{}\n")?, Applied::start(plan, "{}\n")?);
    one.apply(std::iter::once("n-0".to_owned()))?;
    // What the first apply brings once is not the namespaces'.
    many.apply(std::iter::once("first".to_owned()))?;
    let before_kib = many.resident_kib()?;
    let took = many.apply((0..MANY).map(|number| format!("n-{number}")))?;
    let after_kib = many.resident_kib()?;
    let mut crowd = Crowd {
        apply_s: took.as_secs_f64(),
        before_kib,
        after_kib,
        idle_kib: (after_kib - before_kib) / MANY as f64,
        one_us: Vec::new(),
        many_us: Vec::new(),
    };
    for round in 0..plan.rounds {
        crowd.one_us.push(server_cpu_us(&one.load(plan, "n-0", &[])?.end()?)?);
        let asked = format!("n-{}", (round * 337) % MANY);
        crowd.many_us.push(server_cpu_us(&many.load(plan, &asked, &[])?.end()?)?);
    }
    let (one_us, many_us) = (median(&crowd.one_us), median(&crowd.many_us));
    let mut table = Table::new("A server with 1,000 namespaces", &["", "one", "1,000"]);
    table.row(vec!["CPU per Get, µs".to_owned(), format!("{one_us:.3}"), format!("{many_us:.3}")]);
    table.row(vec![
        "resident, KiB".to_owned(),
        format!("{before_kib:.0}"),
        format!("{after_kib:.0}"),
    ]);
    println!("{table}");
    rows.push(Row::at_most("apply of 1,000 namespaces", crowd.apply_s, 5.0, 5.0, "s"));
    rows.push(Row::at_most("memory of an idle namespace", crowd.idle_kib, 32.0, 32.0, "KiB"));
    rows.push(Row::at_most("a call among 1,000 beside one", many_us / one_us, 1.05, 1.05, "×"));
    Ok(crowd)
}

/// A namespace at a steady rate: alone, beside one at its quota, and beside one that asks for ten times its quota, in alternating rounds.
///
/// One loop on one core sends both loads and is the same in all three, so that nothing but the server differs: two generators that spin
/// would take turns of milliseconds on that core, which a p99 would show as the server's.
pub(crate) fn neighbour(plan: &Plan, rows: &mut Vec<Row>) -> Result<Neighbour> {
    let platform = format!("placement: [{{namespace: greedy, quotas: {{requests: {QUOTA}}}}}]\n");
    let server = Applied::start(plan, &platform)?;
    server.apply(["quiet", "greedy"].into_iter().map(str::to_owned))?;
    let rate = RATE.to_string();
    let quiet = |beside: u64| {
        let asked = format!("greedy:{beside}");
        let mut options = vec!["--rate", &rate];
        if beside > 0 {
            options.extend(["--beside", &asked]);
        }
        server.load(plan, "quiet", &options)?.end()
    };
    let mut figures = Neighbour {
        alone_us: Vec::new(),
        at_quota_us: Vec::new(),
        at_ten_us: Vec::new(),
        let_in: Vec::new(),
        refused: Vec::new(),
    };
    for _ in 0..plan.rounds {
        figures.alone_us.push(quiet(0)?.latency.p99_us);
        figures.at_quota_us.push(quiet(QUOTA)?.latency.p99_us);
        let at_ten = quiet(10 * QUOTA)?;
        figures.at_ten_us.push(at_ten.latency.p99_us);
        let a_second = |status: &str| {
            at_ten.beside.get(status).copied().unwrap_or(0) as f64 / at_ten.seconds.max(1e-9)
        };
        figures.let_in.push(a_second("OK"));
        figures.refused.push(a_second("RESOURCE_EXHAUSTED"));
    }
    let alone_us = median(&figures.alone_us);
    let (at_quota_us, at_ten_us) = (median(&figures.at_quota_us), median(&figures.at_ten_us));
    let mut table = Table::new(
        format!(
            "p99 at {RATE} Gets a second beside a neighbour, µs (one generator on one core sends both)"
        ),
        &["alone", "at its quota", "at ten times", "let in a second", "refused a second"],
    );
    table.row(vec![
        format!("{alone_us:.1}"),
        format!("{at_quota_us:.1}"),
        format!("{at_ten_us:.1}"),
        format!("{:.0}", median(&figures.let_in)),
        format!("{:.0}", median(&figures.refused)),
    ]);
    println!("{table}");
    let to_quota = at_ten_us / at_quota_us;
    rows.push(Row::at_most("p99 beside ten times a quota, to one at it", to_quota, 1.2, 1.2, "×"));
    let to_alone = at_ten_us / alone_us;
    rows.push(Row::at_most("p99 beside ten times a quota, to alone", to_alone, 1.2, 1.2, "×"));
    Ok(figures)
}
