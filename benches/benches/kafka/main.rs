//! `cargo bench -p prism-benches --bench kafka`: Appends to a stream on a real Kafka through the whole proxy, beside rdkafka's own
//! producer with the same settings (acks of all replicas, idempotent, the same linger and batches) and as many records under way.
//!
//! Prism (one shard) and, in its own turns, the client stand with all their threads on the first core; load and whatever the system
//! chooses on the second. Kafka is that of `dev/servers` and is not pinned. Both have their turn in every round; figures are medians
//! over rounds.
//!
//! Options: `--quick` (a smoke run whose figures mean nothing), `--rounds <n>`, `--seconds <n>` per turn, `--no-build`.
//! Results: `target/bench/kafka.json`.

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

/// Partitions of the topics.
const PARTITIONS: u32 = 4;

/// Connections to Prism, and appends under way on each.
const SHAPES: [(usize, usize); 2] = [(8, 16), (1, 1)];

/// Who appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Path {
    /// `durability: memory`: answered when Kafka has confirmed.
    Prism,
    /// The plain client.
    Client,
}

const PATHS: [Path; 2] = [Path::Prism, Path::Client];

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
    partitions: u32,
    others_max: f64,
    figures: Vec<Figures>,
    aims: Vec<Row>,
}

/// What stands while it is measured.
struct Stand {
    prism: Prism,
    kafka: (SocketAddr, u32),
    /// The name of the stream and the end of the topics' names.
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
        let processes = [stand.prism.server.id(), stand.kafka.1];
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
    let results = Results { quick, partitions: PARTITIONS, others_max, figures, aims };
    println!("written to {}", save("kafka", &results)?.display());
    Ok(())
}

impl Stand {
    fn start(options: Options) -> Result<Self> {
        let scratch = folder()?.join("kafka-data");
        let _ = std::fs::remove_dir_all(&scratch);
        std::fs::create_dir_all(&scratch)?;
        let kafka = dev_server::up("kafka")?;
        let brokers = kafka.0;
        let more = format!(
            "- {{name: bench-prism, client_api: stream, durability: memory, backend: real}}\n\
             backends:\n- {{name: real, type: kafka, brokers: [\"{brokers}\"], partitions: {PARTITIONS}}}"
        );
        let data = scratch.join("prism");
        let prism = Prism::start_with(&prism::binary("prism")?, &data, &[PRISM_CORE], &more)?;
        let stream = format!("run-{}", std::process::id());
        let stand = Self { prism, kafka, stream, options };
        let topics = PATHS.map(|path| stand.topic(path));
        let topics = topics.each_ref().map(String::as_str);
        client::make_topics(&brokers.to_string(), &topics, PARTITIONS as i32)?;
        Ok(stand)
    }

    /// Prism's is the one of its stream.
    fn topic(&self, path: Path) -> String {
        let namespace = match path {
            Path::Prism => "bench-prism",
            Path::Client => "bench-client",
        };
        format!("{namespace}.{}", self.stream)
    }

    fn turn(&self, path: Path, (connections, in_flight): (usize, usize)) -> Result<Round> {
        let Options { warmup, length, .. } = self.options;
        if path == Path::Client {
            return client::measure(client::Load {
                brokers: self.kafka.0.to_string(),
                topic: self.topic(path),
                under_way: connections * in_flight,
                warmup,
                length,
                core: PRISM_CORE,
            });
        }
        let shape = [connections.to_string(), in_flight.to_string()];
        let arguments = ["--append-to", &self.stream, "--namespace", "bench-prism"];
        let more = ["--connections", &shape[0], "--in-flight", &shape[1]];
        let arguments = [arguments.as_slice(), &more].concat();
        self.prism.turn(&self.options, LOAD_CORE, &arguments)
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        let topics = PATHS.map(|path| self.topic(path));
        let topics = topics.each_ref().map(String::as_str);
        if let Err(error) = client::delete_topics(&self.kafka.0.to_string(), &topics) {
            eprintln!("the topics of this run are left: {error}");
        }
    }
}

fn against(all: &[Figures]) -> Row {
    let rate = |path| {
        let found = all.iter().find(|one| (one.path, one.under_way) == (path, 128));
        found.map_or(f64::NAN, |one| one.median.requests_per_second)
    };
    let measured = rate(Path::Prism) / rate(Path::Client);
    Row::at_least("Append, 128 under way: req/s against rdkafka's producer", measured, 0.7, 0.9)
}

fn table(all: &[Figures]) -> Table {
    let columns = ["", "req/s", "p50 µs", "p99 µs", "CPU µs"];
    let title = "Append on Kafka: 16 B key, 128 B value, records under way";
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
