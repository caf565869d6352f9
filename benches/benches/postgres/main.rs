//! `cargo bench -p prism-benches --bench postgres`: KeyValue Sets on a real PostgreSQL through the whole proxy, beside a plain client
//! (tokio-postgres) that makes one prepared `INSERT … ON CONFLICT` per call over as many connections as Prism has there.
//!
//! Prism (one shard) and, in its own turns, the client stand on the first core; load and whatever the system chooses on the second.
//! PostgreSQL is that of `dev/servers`, with synchronous commits, and is not pinned. Every case has its turn in every round; figures
//! are medians over rounds.
//!
//! Options: `--quick` (a smoke run whose figures mean nothing), `--rounds <n>`, `--seconds <n>` per turn, `--no-build`.
//! Results: `target/bench/postgres.json`.

mod client;

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::path::{Path as File, PathBuf};
use std::process::Command;
use std::time::Duration;

use prism_benches::aims::{self, Row};
use prism_benches::prism::{self, Prism};
use prism_benches::quiet::{OTHERS_MAX, Watch};
use prism_benches::report::{Table, folder, median, save};
use prism_loadtest::report::Report;
use serde::Serialize;

use self::client::Round;

const PRISM_CORE: usize = 0;
const LOAD_CORE: usize = 1;

/// Connections to PostgreSQL, of Prism as of the client.
const POOL: usize = 2;

/// The database of the measurement, made anew for each run.
const DATABASE: &str = "prism_bench";

/// Callers at a time.
const SHAPES: [usize; 2] = [64, 1];

/// Rounds that are repeated at most because of others, over the whole run.
const DISTURBED_MAX: usize = 4;

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Path {
    /// `durability: memory`: answered when PostgreSQL has committed.
    PrismMemory,
    /// `durability: wal`: answered when it is in the log; PostgreSQL follows.
    PrismWal,
    /// `durability: strong`: both.
    PrismStrong,
    /// The plain client.
    Client,
}

const PATHS: [Path; 4] = [Path::PrismMemory, Path::Client, Path::PrismStrong, Path::PrismWal];

/// One path with so many callers.
#[derive(Serialize)]
struct Figures {
    path: Path,
    at_a_time: usize,
    requests_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    server_cpu_us: Option<f64>,
    rounds: Vec<Round>,
}

#[derive(Serialize)]
struct Results {
    quick: bool,
    pool: usize,
    others_max: f64,
    figures: Vec<Figures>,
    aims: Vec<Row>,
}

/// What stands while it is measured.
struct Stand {
    prism: Prism,
    postgres: (SocketAddr, u32),
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
    let seconds = number("--seconds", if quick { 0.2 } else { 2.0 })?;
    if !has("--no-build") {
        prism::build()?;
    }
    let warmup = Duration::from_millis(if quick { 50 } else { 500 });
    let stand = Stand::start(warmup, Duration::from_secs_f64(seconds))?;
    let (mut figures, mut disturbed, mut others_max) = (Vec::new(), 0, 0.0f64);
    for at_a_time in SHAPES {
        let mut group: Vec<Figures> =
            PATHS.iter().map(|&path| Figures::new(path, at_a_time)).collect();
        let mut kept = 0;
        while kept < rounds {
            let watch = Watch::begin(&stand.processes())?;
            let made = group.iter().map(|one| stand.turn(one.path, at_a_time));
            let made = made.collect::<Result<Vec<_>>>()?;
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
        group.iter_mut().for_each(Figures::settle);
        figures.append(&mut group);
        eprintln!("measured {at_a_time} at a time");
    }
    let aims = rows(&figures);
    println!("{}\n{}", table(&figures), aims::table(&aims));
    println!("others used {:.0} % of the machine at most", others_max * 100.0);
    let results = Results { quick, pool: POOL, others_max, figures, aims };
    println!("written to {}", save("postgres", &results)?.display());
    Ok(())
}

impl Stand {
    fn start(warmup: Duration, length: Duration) -> Result<Self> {
        let scratch = folder()?.join("postgres-data");
        let _ = std::fs::remove_dir_all(&scratch);
        std::fs::create_dir_all(&scratch)?;
        let (address, id) = postgres()?;
        client::empty_database(address, DATABASE)?;
        client::prepare(address, DATABASE)?;
        let password = scratch.join("password");
        std::fs::write(&password, "prism\n")?;
        std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let more = format!(
            "- {{name: on-postgres, client_api: keyvalue, durability: memory, backend: real}}\n\
             - {{name: on-postgres-wal, client_api: keyvalue, durability: wal, backend: real}}\n\
             - {{name: on-postgres-strong, client_api: keyvalue, durability: strong, backend: real}}\n\
             backends:\n- {{name: real, type: postgres, address: \"{address}\", user: prism, database: {DATABASE}, \
             password_file: {}, pool: {POOL}}}",
            password.display()
        );
        let data = scratch.join("prism");
        let prism = Prism::start_with(&prism::binary("prism")?, &data, &[PRISM_CORE], &more)?;
        let loadtest = prism::binary("prism-loadtest")?;
        Ok(Self { prism, postgres: (address, id), loadtest, warmup, length })
    }

    /// Those that a round consists of. PostgreSQL's children are counted as others.
    fn processes(&self) -> Vec<u32> {
        let children =
            std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.postgres.1));
        let children = children.unwrap_or_default();
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        [self.prism.server.id(), self.postgres.1].into_iter().chain(children).collect()
    }

    fn turn(&self, path: Path, at_a_time: usize) -> Result<Round> {
        let namespace = match path {
            Path::Client => {
                return client::measure(client::Load {
                    address: self.postgres.0,
                    database: DATABASE,
                    connections: POOL.min(at_a_time),
                    at_a_time,
                    warmup: self.warmup,
                    length: self.length,
                    core: PRISM_CORE,
                });
            }
            Path::PrismMemory => "on-postgres",
            Path::PrismWal => "on-postgres-wal",
            Path::PrismStrong => "on-postgres-strong",
        };
        let output = Command::new(&self.loadtest)
            .args(["kv", "--output", "json", "--mix", "0:1", "--namespace", namespace])
            .args(["--no-preload", "--in-flight", "1"])
            .args(["--endpoint", &self.prism.endpoint.to_string()])
            .args(["--cores", &LOAD_CORE.to_string(), "--connections", &at_a_time.to_string()])
            .args(["--server-pid", &self.prism.server.id().to_string()])
            .args(["--duration", &format!("{}s", self.length.as_secs_f64())])
            .args(["--warmup", &format!("{}ms", self.warmup.as_millis())])
            .output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            return Err(Error::other(format!("{path:?} {at_a_time}: {text}")));
        }
        let report: Report = serde_json::from_slice(&output.stdout)?;
        if path == Path::PrismWal {
            self.await_drained()?;
        }
        Ok(Round {
            requests_per_second: report.requests_per_second,
            p50_us: report.latency.p50_us,
            p99_us: report.latency.p99_us,
            server_cpu_us: report.server_cpu_us,
        })
    }

    /// What is logged and not with PostgreSQL yet must not weigh on the turn after it.
    fn await_drained(&self) -> Result<()> {
        for _ in 0..600 {
            // The gauge is refreshed more often than that.
            std::thread::sleep(Duration::from_millis(200));
            if self.prism.metric("prism_lane_pending_records")? == 0.0 {
                return Ok(());
            }
        }
        Err(Error::other("the lane is not drained after two minutes"))
    }
}

/// Where the PostgreSQL of `dev/servers` is, and its process.
fn postgres() -> Result<(SocketAddr, u32)> {
    let root = File::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let script = root.join("dev/servers");
    if !Command::new(&script).args(["up", "postgres"]).status()?.success() {
        return Err(Error::other("dev/servers up postgres has failed"));
    }
    let output = Command::new(&script).arg("addresses").output()?;
    let addresses = String::from_utf8_lossy(&output.stdout).into_owned();
    let address = addresses.lines().find_map(|line| line.strip_prefix("postgres "));
    let address = address.and_then(|address| address.parse().ok());
    let id = std::fs::read_to_string(root.join("target/servers/postgres/pid"))?;
    let id = id.split_whitespace().next().and_then(|id| id.parse().ok());
    address.zip(id).ok_or_else(|| Error::other("dev/servers does not say where PostgreSQL is"))
}

impl Figures {
    fn new(path: Path, at_a_time: usize) -> Self {
        let (requests_per_second, p50_us, p99_us) = (0.0, 0.0, 0.0);
        let (server_cpu_us, rounds) = (None, Vec::new());
        Self { path, at_a_time, requests_per_second, p50_us, p99_us, server_cpu_us, rounds }
    }

    fn settle(&mut self) {
        let of =
            |field: fn(&Round) -> f64| median(&self.rounds.iter().map(field).collect::<Vec<_>>());
        self.requests_per_second = of(|round| round.requests_per_second);
        self.p50_us = of(|round| round.p50_us);
        self.p99_us = of(|round| round.p99_us);
        let cpu: Vec<f64> = self.rounds.iter().filter_map(|round| round.server_cpu_us).collect();
        self.server_cpu_us = (!cpu.is_empty()).then(|| median(&cpu));
    }
}

fn rows(all: &[Figures]) -> Vec<Row> {
    let rate = |path, at_a_time| {
        let found = all.iter().find(|one| (one.path, one.at_a_time) == (path, at_a_time));
        found.map_or(f64::NAN, |one| one.requests_per_second)
    };
    let against = |path| rate(path, 64) / rate(Path::Client, 64);
    vec![
        Row::at_least(
            "Set, 64 at a time: req/s against the client",
            against(Path::PrismMemory),
            3.0,
            6.0,
        ),
        Row::at_least("the same at strong", against(Path::PrismStrong), 3.0, 6.0),
    ]
}

fn table(all: &[Figures]) -> Table {
    let columns = ["", "req/s", "p50 µs", "p99 µs", "Prism's CPU µs"];
    let title = "Set on PostgreSQL: 16 B key, 128 B value, callers at a time";
    let mut table = Table::new(title, &columns);
    for figures in all {
        table.row(vec![
            format!("{} {:?}", figures.at_a_time, figures.path),
            format!("{:.0}", figures.requests_per_second),
            format!("{:.0}", figures.p50_us),
            format!("{:.0}", figures.p99_us),
            figures.server_cpu_us.map_or(String::new(), |us| format!("{us:.2}")),
        ]);
    }
    table
}
