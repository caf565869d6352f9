//! `cargo bench -p prism-benches --bench nats`: Appends to a stream on a real NATS (JetStream) through the whole proxy, beside async-nats,
//! which publishes the same to a stream of its own with as many acknowledgements awaited.
//!
//! Prism (one shard) and, in its own turns, the client stand with all their threads on the first core; load and whatever the system
//! chooses on the second. NATS is that of `dev/servers` and is not pinned. All have their turn in every round; figures are medians
//! over rounds.
//!
//! Options: `--quick` (a smoke run whose figures mean nothing), `--rounds <n>`, `--seconds <n>` per turn, `--no-build`.
//! Results: `target/bench/nats.json`.

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

/// Connections to Prism, and appends under way on each.
const SHAPES: [(usize, usize); 2] = [(8, 16), (1, 1)];

/// Who appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Path {
    /// `durability: memory`: answered when JetStream has acknowledged.
    Prism,
    /// `durability: wal`: answered when it is in Prism's log, from which NATS gets it in batches.
    PrismWal,
    /// The plain client.
    Client,
}

const PATHS: [Path; 3] = [Path::Prism, Path::PrismWal, Path::Client];

/// One path in one shape.
#[derive(Serialize)]
struct Figures {
    path: Path,
    under_way: usize,
    #[serde(flatten)]
    median: Round,
    rounds: Vec<Round>,
}

#[derive(Serialize)]
struct Results {
    quick: bool,
    others_max: f64,
    figures: Vec<Figures>,
    aims: Vec<Row>,
}

/// What stands while it is measured.
struct Stand {
    prism: Prism,
    nats: (SocketAddr, u32),
    /// The name of the stream, in both of Prism's namespaces, and the end of the client's.
    stream: String,
    options: Options,
}

fn main() -> Result<()> {
    let options = Options::read()?;
    if options.build {
        prism::build()?;
    }
    let stand = Stand::start(options)?;
    let (mut figures, mut rounds) = (Vec::new(), Rounds::default());
    for shape in SHAPES {
        let processes = [stand.prism.server.id(), stand.nats.1];
        let made =
            rounds.alternate(&options, &processes, &PATHS, |path| stand.turn(path, shape))?;
        let under_way = shape.0 * shape.1;
        figures.extend(PATHS.iter().zip(made).map(|(&path, rounds)| {
            let median = Round::median(&rounds);
            Figures { path, under_way, median, rounds }
        }));
        eprintln!("measured {under_way} under way");
    }
    let aims = vec![against(&figures)];
    println!("{}\n{}", table(&figures), aims::table(&aims));
    println!("others used {:.0} % of the machine at most", rounds.others_max * 100.0);
    let (quick, others_max) = (options.quick, rounds.others_max);
    let results = Results { quick, others_max, figures, aims };
    println!("written to {}", save("nats", &results)?.display());
    Ok(())
}

impl Stand {
    fn start(options: Options) -> Result<Self> {
        let scratch = folder()?.join("nats-data");
        let _ = std::fs::remove_dir_all(&scratch);
        std::fs::create_dir_all(&scratch)?;
        let nats = dev_server::up("nats")?;
        let address = nats.0;
        let more = format!(
            "- {{name: bench-prism, client_api: stream, durability: memory, backend: real}}\n\
             - {{name: bench-prism-wal, client_api: stream, durability: wal, backend: real}}\n\
             backends:\n- {{name: real, type: nats, address: \"{address}\"}}"
        );
        let data = scratch.join("prism");
        let prism = Prism::start_with(&prism::binary("prism")?, &data, &[PRISM_CORE], &more)?;
        let stream = format!("run-{}", std::process::id());
        let stand = Self { prism, nats, stream, options };
        client::make_stream(&address.to_string(), &stand.client_stream())?;
        Ok(stand)
    }

    fn client_stream(&self) -> String {
        format!("bench-client-{}", self.stream)
    }

    fn turn(&self, path: Path, (connections, in_flight): (usize, usize)) -> Result<Round> {
        let Options { warmup, length, .. } = self.options;
        let namespace = match path {
            Path::Client => {
                return client::measure(client::Load {
                    address: self.nats.0.to_string(),
                    stream: self.client_stream(),
                    under_way: connections * in_flight,
                    warmup,
                    length,
                    core: PRISM_CORE,
                });
            }
            Path::Prism => "bench-prism",
            Path::PrismWal => "bench-prism-wal",
        };
        let shape = [connections.to_string(), in_flight.to_string()];
        let arguments = ["--append-to", &self.stream, "--namespace", namespace];
        let more = ["--connections", &shape[0], "--in-flight", &shape[1]];
        let arguments = [arguments.as_slice(), &more].concat();
        let round = self.prism.turn(&self.options, LOAD_CORE, &arguments)?;
        if path == Path::PrismWal {
            self.prism.await_drained()?;
        }
        Ok(round)
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        // As `adapters/src/nats/holds.rs` names them.
        let prisms = ["bench-prism", "bench-prism-wal"];
        let mut streams = prisms.map(|name| format!("STREAM_{name}_{}", self.stream)).to_vec();
        streams.push(self.client_stream());
        if let Err(error) = client::delete_streams(&self.nats.0.to_string(), &streams) {
            eprintln!("the streams of this run are left: {error}");
        }
    }
}

fn against(all: &[Figures]) -> Row {
    let rate = |path| {
        let found = all.iter().find(|one| (one.path, one.under_way) == (path, 128));
        found.map_or(f64::NAN, |one| one.median.requests_per_second)
    };
    let measured = rate(Path::Prism) / rate(Path::Client);
    Row::at_least("Append, 128 under way: req/s against async-nats", measured, 0.8, 1.0)
}

fn table(all: &[Figures]) -> Table {
    let columns = ["", "req/s", "p50 µs", "p99 µs", "CPU µs"];
    let title = "Append on NATS: 16 B key, 128 B value, appends under way";
    let mut table = Table::new(title, &columns);
    for Figures { path, under_way, median, .. } in all {
        table.row(vec![
            format!("{under_way} {path:?}"),
            format!("{:.0}", median.requests_per_second),
            format!("{:.0}", median.p50_us),
            format!("{:.0}", median.p99_us),
            median.server_cpu_us.map_or(String::new(), |us| format!("{us:.2}")),
        ]);
    }
    table
}
