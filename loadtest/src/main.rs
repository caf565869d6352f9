//! `prism-loadtest`: load, and a witness, for a running Prism.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use prism_io::tls::{Connector, Roots};
use prism_loadtest::journal;
use prism_loadtest::kv::workload::{Mix, Recipe};
use prism_loadtest::kv::{self, Beside, Load};
use prism_loadtest::random::Distribution;
use prism_loadtest::{idle, null_server};

/// Load for a running Prism, and a witness for what it promises.
///
/// Exit status: 0 everything went well; 1 requests failed, or a promise was broken; 2 the command line makes no sense; 3 it could not be carried
/// out (no server there, namespace refused).
#[derive(Parser)]
#[command(version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Kv(KvArguments),
    NullServer(NullArguments),
    Idle(IdleArguments),
    Journal(JournalArguments),
    Verify(VerifyArguments),
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Where the server is.
#[derive(Args)]
struct Server {
    /// Address of the server
    #[arg(long, default_value = "127.0.0.1:7400", value_parser = address, value_name = "HOST:PORT")]
    endpoint: SocketAddr,
    /// Namespace of every request
    #[arg(long, default_value = "keyvalue")]
    namespace: String,
    /// Ask for a durability level (memory, wal, strong) in every request; without it the namespace's own applies
    #[arg(long, value_name = "LEVEL")]
    durability: Option<String>,
    /// How results are printed
    #[arg(short, long, default_value = "text")]
    output: Format,
}

/// Whether TLS is spoken, and with whom.
#[derive(Args)]
struct Tls {
    /// Speak TLS
    #[arg(long)]
    tls: bool,
    /// Trust the authorities of this PEM file and no others; without it those of this system. Means --tls
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The name in the server's certificate, where it is not the address. Means --tls
    #[arg(long, value_name = "NAME")]
    tls_name: Option<String>,
}

impl Tls {
    fn connector(self, endpoint: SocketAddr) -> std::io::Result<Option<Connector>> {
        if !self.tls && self.tls_ca.is_none() && self.tls_name.is_none() {
            return Ok(None);
        }
        let name = self.tls_name.unwrap_or_else(|| endpoint.ip().to_string());
        let roots = self.tls_ca.map_or(Roots::System, Roots::File);
        Connector::new(&roots, &name).map(Some).map_err(std::io::Error::other)
    }
}

/// Get and Set, at a rate or as fast as the answers come
///
/// With --rate the loop is open: requests leave at their times whatever the server does, and latency counts from the time at which a request was due.
/// Without it the loop is closed: --connections times --in-flight requests are always under way.
///
/// Give the generator a core of its own (--cores 1 beside a server on core 0): an open loop spins to be on time.
///
/// Examples:
///   prism-loadtest kv --connections 8 --in-flight 16 --mix 1:0 --cores 1
///   prism-loadtest kv --rate 20000 --mix 90:10 --distribution zipf --keys 1000000 --duration 60s
///   prism-loadtest kv --namespace stream --append-to orders --duration 5s
#[derive(Args)]
#[command(verbatim_doc_comment)]
struct KvArguments {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    tls: Tls,
    /// Requests per second over all connections (open loop)
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// Ask another namespace too, at a rate of its own and over as many connections of its own: its answers are counted by status and in no
    /// latency. One loop sends both, so that two generators do not wait for each other's core
    #[arg(long, value_parser = beside, value_name = "NAMESPACE:RATE", requires = "rate")]
    beside: Option<Beside>,
    /// Connections
    #[arg(short, long, default_value_t = 8, value_parser = count)]
    connections: usize,
    /// Requests in flight on each connection; with --rate the most that may be
    #[arg(short, long, default_value_t = 16, value_parser = count)]
    in_flight: usize,
    /// Reads to writes
    #[arg(long, default_value = "90:10")]
    mix: Mix,
    /// Append to this stream instead of Set; the mix is 0:1 and nothing is stored before
    #[arg(long, value_name = "STREAM", conflicts_with = "mix")]
    append_to: Option<String>,
    /// Bytes of each value
    #[arg(long, default_value_t = 128)]
    value_size: usize,
    /// Keys, of 16 bytes each
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..1_000_000_000_000))]
    keys: u64,
    /// How keys are chosen: uniform, sequential, zipf or zipf:<exponent>
    #[arg(long, default_value = "uniform")]
    distribution: Distribution,
    /// Length of the measurement, such as 500ms, 10s, 2m
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Load before the measurement
    #[arg(long, default_value = "1s", value_parser = duration)]
    warmup: Duration,
    /// End after so many requests, if that comes first
    #[arg(long)]
    requests: Option<u64>,
    /// How long the last answers are waited for
    #[arg(long, default_value = "10s", value_parser = duration)]
    timeout: Duration,
    /// Do not store every key before the load begins
    #[arg(long)]
    no_preload: bool,
    /// Seed of keys, values and mix
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads, not pinned
    #[arg(long, default_value_t = 1, conflicts_with = "cores", value_parser = count)]
    threads: usize,
    /// One thread on each of these cores, such as 1 or 2,3
    #[arg(long, value_delimiter = ',')]
    cores: Vec<usize>,
    /// Process id of the server, to report the CPU time that a request costs there
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
}

/// Answer Get and Set without doing anything, to see how fast the generator itself is
#[derive(Args)]
struct NullArguments {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:7450", value_parser = address, value_name = "HOST:PORT")]
    listen: SocketAddr,
    /// Core to run on
    #[arg(long)]
    core: Option<usize>,
    /// Bytes of the value in every answer to Get
    #[arg(long, default_value_t = 128)]
    value_size: usize,
}

/// Hold connections open and do nothing, to see what they cost
///
/// Prints one line when all of them are there, and holds them until it is killed.
#[derive(Args)]
struct IdleArguments {
    /// Address of the server
    #[arg(long, default_value = "127.0.0.1:7400", value_parser = address, value_name = "HOST:PORT")]
    endpoint: SocketAddr,
    #[command(flatten)]
    tls: Tls,
    /// Connections
    #[arg(short, long, default_value_t = 10_000, value_parser = count)]
    connections: usize,
}

/// Write, and note what is acknowledged, across the server's death
///
/// Every key has one writer that stores ever higher numbers and notes each write in the journal before it is sent and after it is acknowledged. A share
/// of the keys is written under idempotency keys, which are repeated until they are answered; what a second application would break is
/// checked at once. Run `prism-loadtest verify` afterwards. A journal that is there already is continued.
#[derive(Args)]
struct JournalArguments {
    #[command(flatten)]
    server: Server,
    /// The journal's file
    #[arg(long)]
    journal: PathBuf,
    /// Connections
    #[arg(short, long, default_value_t = 4, value_parser = count)]
    connections: usize,
    /// Writers, each with one write under way
    #[arg(short, long, default_value_t = 64, value_parser = count)]
    writers: usize,
    /// Keys of each writer
    #[arg(long, default_value_t = 16, value_parser = count)]
    keys: usize,
    /// Share of the keys that are written with an idempotency key, from 0 to 1
    #[arg(long, default_value_t = 0.5, value_parser = share)]
    keyed: f64,
    /// Bytes of each value at least
    #[arg(long, default_value_t = 128)]
    value_size: usize,
    /// How long to write
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// How long one call may take
    #[arg(long, default_value = "5s", value_parser = duration)]
    timeout: Duration,
    /// Give up when nothing has been answered for so long
    #[arg(long, default_value = "60s", value_parser = duration)]
    give_up: Duration,
    /// Seed of the order of keys
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Compare a journal with what the server holds now
///
/// Every key must hold what was acknowledged last, or what was under way then; every other byte is a broken promise, which is listed.
#[derive(Args)]
struct VerifyArguments {
    /// Address of the server
    #[arg(long, default_value = "127.0.0.1:7400", value_parser = address, value_name = "HOST:PORT")]
    endpoint: SocketAddr,
    /// The journal's file
    #[arg(long)]
    journal: PathBuf,
    /// How long to wait for the server
    #[arg(long, default_value = "30s", value_parser = duration)]
    wait: Duration,
    /// How results are printed
    #[arg(short, long, default_value = "text")]
    output: Format,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Kv(arguments) => run_kv(arguments),
        Command::NullServer(NullArguments { listen, core, value_size }) => {
            null_server::run(listen, core, value_size).map(|()| true)
        }
        Command::Idle(IdleArguments { endpoint, tls, connections }) => tls
            .connector(endpoint)
            .and_then(|tls| idle::run(endpoint, tls, connections))
            .map(|()| true),
        Command::Journal(arguments) => run_journal(arguments),
        Command::Verify(VerifyArguments { endpoint, journal, wait, output }) => {
            journal::verify(endpoint, &journal, wait).and_then(|summary| {
                print(output, &summary)?;
                Ok(summary.violation_count == 0)
            })
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("prism-loadtest: {error}");
            ExitCode::from(3)
        }
    }
}

fn run_kv(arguments: KvArguments) -> std::io::Result<bool> {
    let KvArguments { server, .. } = arguments;
    let threads = match arguments.cores.as_slice() {
        [] => vec![None; arguments.threads],
        cores => cores.iter().copied().map(Some).collect(),
    };
    let is_append = arguments.append_to.is_some();
    let mix = if is_append { Mix { reads: 0, writes: 1 } } else { arguments.mix };
    let report = kv::run(&Load {
        endpoint: server.endpoint,
        tls: arguments.tls.connector(server.endpoint)?,
        recipe: Recipe {
            namespace: server.namespace,
            stream: arguments.append_to,
            value_bytes: arguments.value_size,
            mix,
            keys: arguments.keys,
            distribution: arguments.distribution,
            seed: arguments.seed,
        },
        connections: arguments.connections,
        in_flight: arguments.in_flight,
        rate: arguments.rate,
        beside: arguments.beside,
        durability: server.durability,
        threads,
        preload: !arguments.no_preload && !is_append,
        warmup: arguments.warmup,
        duration: arguments.duration,
        requests: arguments.requests,
        timeout: arguments.timeout,
        server_id: arguments.server_pid,
    })?;
    print(server.output, &report)?;
    Ok(report.is_clean())
}

fn run_journal(arguments: JournalArguments) -> std::io::Result<bool> {
    let server = arguments.server;
    let summary = journal::write(journal::Options {
        endpoint: server.endpoint,
        namespace: server.namespace,
        durability: server.durability,
        journal: arguments.journal,
        connections: arguments.connections,
        writers: arguments.writers,
        keys: arguments.keys,
        keyed: arguments.keyed,
        value_bytes: arguments.value_size,
        duration: arguments.duration,
        timeout: arguments.timeout,
        give_up: arguments.give_up,
        seed: arguments.seed,
    })?;
    print(server.output, &summary)?;
    Ok(summary.violation_count == 0)
}

fn print<T: serde::Serialize + std::fmt::Display>(
    format: Format,
    value: &T,
) -> std::io::Result<()> {
    match format {
        Format::Text => print!("{value}"),
        Format::Json => println!("{}", serde_json::to_string_pretty(value)?),
    }
    Ok(())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let found = text.to_socket_addrs().map_err(|error| error.to_string())?.next();
    found.ok_or_else(|| "no address has that name".to_owned())
}

fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&count| count > 0).ok_or_else(|| "a number above zero".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "requests per second, above zero".to_owned())
}

fn beside(text: &str) -> Result<Beside, String> {
    let (namespace, per_second) = text.rsplit_once(':').ok_or("NAMESPACE:RATE")?;
    Ok(Beside { namespace: namespace.to_owned(), rate: rate(per_second)? })
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share from 0 to 1".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("a number with ms, s, m or h".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| "a number with ms, s, m or h".to_owned())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_is_asked_beside_has_a_name_and_a_rate() {
        let expected = Beside { namespace: "greedy".to_owned(), rate: 1e4 };
        assert_eq!(beside("greedy:10000"), Ok(expected));
        for wrong in ["greedy", "greedy:", "greedy:0", "greedy:much"] {
            assert!(beside(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "5", "s", "-1s", "5d", "1s2"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
