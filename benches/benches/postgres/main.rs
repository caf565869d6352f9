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

use std::io::Result;
use std::net::SocketAddr;

use prism_benches::aims::{self, Row};
use prism_benches::dev_server;
use prism_benches::prism::{self, Prism};
use prism_benches::report::{Table, folder, save};
use prism_benches::rounds::{Options, Round, Rounds};
use serde::Serialize;

const PRISM_CORE: usize = 0;
const LOAD_CORE: usize = 1;

/// Connections to PostgreSQL, of Prism as of the client.
const POOL: usize = 2;

/// The database of the measurement, made anew for each run.
const DATABASE: &str = "prism_bench";

/// Callers at a time.
const SHAPES: [usize; 2] = [64, 1];

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
    #[serde(flatten)]
    median: Round,
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
    options: Options,
}

fn main() -> Result<()> {
    let options = Options::read()?;
    if options.build {
        prism::build()?;
    }
    let stand = Stand::start(options)?;
    let (mut figures, mut rounds) = (Vec::new(), Rounds::default());
    for at_a_time in SHAPES {
        let processes = stand.processes();
        let turn = |path| stand.turn(path, at_a_time);
        let made = rounds.alternate(&options, &processes, &PATHS, turn)?;
        figures.extend(PATHS.iter().zip(made).map(|(&path, rounds)| {
            let median = Round::median(&rounds);
            Figures { path, at_a_time, median, rounds }
        }));
        eprintln!("measured {at_a_time} at a time");
    }
    let aims = rows(&figures);
    println!("{}\n{}", table(&figures), aims::table(&aims));
    let (quick, others_max) = (options.quick, rounds.others_max);
    println!("others used {:.0} % of the machine at most", others_max * 100.0);
    let results = Results { quick, pool: POOL, others_max, figures, aims };
    println!("written to {}", save("postgres", &results)?.display());
    Ok(())
}

impl Stand {
    fn start(options: Options) -> Result<Self> {
        let scratch = folder()?.join("postgres-data");
        let _ = std::fs::remove_dir_all(&scratch);
        std::fs::create_dir_all(&scratch)?;
        let (address, id) = dev_server::up("postgres")?;
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
        Ok(Self { prism, postgres: (address, id), options })
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
                    warmup: self.options.warmup,
                    length: self.options.length,
                    core: PRISM_CORE,
                });
            }
            Path::PrismMemory => "on-postgres",
            Path::PrismWal => "on-postgres-wal",
            Path::PrismStrong => "on-postgres-strong",
        };
        let at_a_time = at_a_time.to_string();
        let arguments = ["--mix", "0:1", "--no-preload", "--in-flight", "1"];
        let more = ["--namespace", namespace, "--connections", &at_a_time];
        let arguments = [arguments.as_slice(), &more].concat();
        let round = self.prism.turn(&self.options, LOAD_CORE, &arguments)?;
        if path == Path::PrismWal {
            self.prism.await_drained()?;
        }
        Ok(round)
    }
}

fn rows(all: &[Figures]) -> Vec<Row> {
    let rate = |path, at_a_time| {
        let found = all.iter().find(|one| (one.path, one.at_a_time) == (path, at_a_time));
        found.map_or(f64::NAN, |one| one.median.requests_per_second)
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
            format!("{:.0}", figures.median.requests_per_second),
            format!("{:.0}", figures.median.p50_us),
            format!("{:.0}", figures.median.p99_us),
            figures.median.server_cpu_us.map_or(String::new(), |us| format!("{us:.2}")),
        ]);
    }
    table
}
