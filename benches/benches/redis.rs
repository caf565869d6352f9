//! `cargo bench -p prism-benches --bench redis`: the Redis adapter by itself beside a plain Rust client (redis-rs, one multiplexed
//! connection, one call at a time per task), both against the Redis of `dev/servers`, in turns, on one core.
//!
//! A call of the adapter is a whole Prism call without the proxy: it decodes a request, asks Redis for value and expiry, computes
//! the version, and encodes the answer; the client does none of that. Options: `--quick` (a smoke run whose figures mean
//! nothing). Results: `target/bench/redis.json`.

use std::cell::{Cell, RefCell};
use std::io::{Error, Result};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use prism_adapters::redis::{Redis, RedisConfig};
use prism_adapters::{Backend, Context, Limits, Reply};
use prism_benches::quiet::{OTHERS_MAX, Watch};
use prism_benches::report::{Table, median, save};
use prism_io::clock::wall_us;
use prism_io::rt::{self, Signal};
use prism_proto::catalogue::Method;
use prism_proto::view::keyvalue::{GetRequest, SetRequest};
use serde::Serialize;

/// The database of the measurement.
const DATABASE: u32 = 9;
/// Different keys, one after the other.
const KEYS: usize = 10_000;
const VALUE_BYTES: usize = 100;
/// The core on which callers and client run; Redis takes another.
const CORE: usize = 0;
/// Rounds are repeated that others disturbed, at most so often.
const REPEATS_MAX: usize = 5;

/// What one round came to.
#[derive(Clone, Copy, Serialize)]
struct Figures {
    calls_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    client_cpu_us_per_call: f64,
}

#[derive(Serialize)]
struct Row {
    call: &'static str,
    at_a_time: usize,
    disturbed: bool,
    prism: Figures,
    client: Figures,
}

/// Counts the calls of one round, as their tasks make them.
struct Round {
    until: Instant,
    next: Cell<usize>,
    running: Cell<usize>,
    latencies: RefCell<Histogram<u64>>,
}

impl Round {
    fn new(at_a_time: usize, length: Duration) -> Rc<Self> {
        // Up to ten seconds, in ns.
        let latencies = Histogram::new_with_max(10_000_000_000, 3).expect("these are bounds");
        let latencies = RefCell::new(latencies);
        let until = Instant::now() + length;
        Rc::new(Round { until, next: Cell::new(0), running: Cell::new(at_a_time), latencies })
    }

    /// The number of the next call, as long as there is time.
    fn next(&self) -> Option<(usize, Instant)> {
        let now = Instant::now();
        let number = self.next.replace(self.next.get() + 1);
        (now < self.until).then_some((number % KEYS, now))
    }

    fn ended(&self, began: Instant) {
        self.latencies.borrow_mut().saturating_record(began.elapsed().as_nanos() as u64);
    }

    fn figures(&self, length: Duration, cpu_ns: u64) -> Figures {
        let latencies = self.latencies.borrow();
        let count = latencies.len() as f64;
        Figures {
            calls_per_s: count / length.as_secs_f64(),
            p50_us: latencies.value_at_quantile(0.5) as f64 / 1e3,
            p99_us: latencies.value_at_quantile(0.99) as f64 / 1e3,
            client_cpu_us_per_call: cpu_ns as f64 / 1e3 / count,
        }
    }
}

fn key(number: usize) -> String {
    format!("user:{number:08}")
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|word| word == "--quick");
    let (rounds, length) =
        if quick { (1, Duration::from_millis(200)) } else { (3, Duration::from_secs(2)) };
    let address = start_redis()?;
    let mut rows = Vec::new();
    for call in ["Set", "Get"] {
        for at_a_time in [1, 16, 128] {
            let (mut prism, mut client, mut disturbed) = (Vec::new(), Vec::new(), false);
            for _ in 0..rounds {
                for repeat in 1..=REPEATS_MAX {
                    let watch = Watch::begin(&[redis_process(&address)?])?;
                    let ours = in_thread({
                        let address = address.clone();
                        move || measure_prism(&address, call, at_a_time, length)
                    })?;
                    let theirs = in_thread({
                        let address = address.clone();
                        move || measure_client(&address, call, at_a_time, length)
                    })?;
                    let quiet = watch.others()? <= OTHERS_MAX;
                    if quiet || quick || repeat == REPEATS_MAX {
                        disturbed |= !quiet;
                        prism.push(ours);
                        client.push(theirs);
                        break;
                    }
                }
            }
            let (prism, client) = (middle(&prism), middle(&client));
            rows.push(Row { call, at_a_time, disturbed, prism, client });
        }
    }
    let columns =
        ["call", "calls/s", "client", "ratio", "p50 µs", "client", "CPU µs/call", "client", ""];
    let mut table = Table::new("The Redis adapter beside redis-rs", &columns);
    for row in &rows {
        let (prism, client) = (row.prism, row.client);
        table.row(vec![
            format!("{} ×{}", row.call, row.at_a_time),
            format!("{:.0}", prism.calls_per_s),
            format!("{:.0}", client.calls_per_s),
            format!("{:.2}", prism.calls_per_s / client.calls_per_s),
            format!("{:.1}", prism.p50_us),
            format!("{:.1}", client.p50_us),
            format!("{:.2}", prism.client_cpu_us_per_call),
            format!("{:.2}", client.client_cpu_us_per_call),
            if row.disturbed { "disturbed" } else { "" }.to_owned(),
        ]);
    }
    println!("{table}");
    println!("{}", save("redis", &rows)?.display());
    Ok(())
}

/// Host and port of the Redis of `dev/servers`.
fn start_redis() -> Result<(String, u16)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dev/servers");
    if !Command::new(&script).args(["up", "redis"]).status()?.success() {
        return Err(Error::other("dev/servers up redis has failed"));
    }
    let output = Command::new(&script).arg("addresses").output()?;
    let addresses = String::from_utf8_lossy(&output.stdout).into_owned();
    let address = addresses.lines().find_map(|line| line.strip_prefix("redis "));
    let address = address.and_then(|address| address.rsplit_once(':'));
    let address = address.and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
    address.ok_or_else(|| Error::other("dev/servers does not say where Redis is"))
}

fn redis_process((host, port): &(String, u16)) -> Result<u32> {
    let mut connection = std::net::TcpStream::connect((host.as_str(), *port))?;
    use std::io::{BufRead, BufReader, Write};
    connection.write_all(b"INFO server\r\n")?;
    for line in BufReader::new(connection).lines() {
        if let Some(process) = line?.strip_prefix("process_id:") {
            return process.parse().map_err(Error::other);
        }
    }
    Err(Error::other("Redis does not tell its process"))
}

/// Runs a measurement on a thread of its own, pinned.
fn in_thread<T: Send + 'static>(measure: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let thread = std::thread::spawn(|| {
        rt::pin(CORE)?;
        measure()
    });
    thread.join().unwrap_or_else(|_| Err(Error::other("the measurement has panicked")))
}

fn thread_cpu_ns() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let first = text.split_whitespace().next().and_then(|first| first.parse().ok());
    first.ok_or_else(|| Error::other("unreadable /proc/thread-self/schedstat"))
}

fn middle(figures: &[Figures]) -> Figures {
    let of = |read: fn(&Figures) -> f64| median(&figures.iter().map(read).collect::<Vec<_>>());
    Figures {
        calls_per_s: of(|figures| figures.calls_per_s),
        p50_us: of(|figures| figures.p50_us),
        p99_us: of(|figures| figures.p99_us),
        client_cpu_us_per_call: of(|figures| figures.client_cpu_us_per_call),
    }
}

fn measure_prism(
    (host, port): &(String, u16),
    call: &'static str,
    at_a_time: usize,
    length: Duration,
) -> Result<Figures> {
    let config = RedisConfig { database: DATABASE, ..RedisConfig::at(host.clone(), *port) };
    rt::run(async move {
        let redis = Rc::new(Redis::start(config));
        let value = [7u8; VALUE_BYTES];
        let requests: Rc<Vec<Vec<u8>>> = Rc::new(
            (0..KEYS)
                .map(|number| {
                    let (mut request, key) = (Vec::new(), key(number));
                    let (namespace, key) = ("orders", key.as_str());
                    match call {
                        "Get" => GetRequest { namespace, key }.encode(&mut request),
                        _ => SetRequest { namespace, key, value: &value, ..Default::default() }
                            .encode(&mut request),
                    }
                    request
                })
                .collect(),
        );
        let method = if call == "Get" { Method::KEYVALUE_GET } else { Method::KEYVALUE_SET };
        let mut figures = Err(Error::other("nothing was measured"));
        // The first, shorter one warms up.
        for length in [length / 4, length] {
            let (round, all) = (Round::new(at_a_time, length), Rc::new(Signal::default()));
            let cpu_ns = thread_cpu_ns()?;
            for _ in 0..at_a_time {
                let (redis, requests, round, all) =
                    (redis.clone(), requests.clone(), round.clone(), all.clone());
                rt::spawn(async move {
                    let (limits, mut reply) = (Limits::default(), Reply::default());
                    while let Some((number, began)) = round.next() {
                        let context = Context {
                            namespace: 1,
                            namespace_name: "orders",
                            partition: 0,
                            now_us: wall_us(),
                            revision: Default::default(),
                            limits: &limits,
                            deadline_ns: prism_adapters::NO_DEADLINE_NS,
                        };
                        reply.clear();
                        let request = &requests[number];
                        redis
                            .unary_checked(&context, method, request, Redis::SERVES, &mut reply)
                            .await
                            .expect("Redis answers");
                        round.ended(began);
                    }
                    round.running.set(round.running.get() - 1);
                    all.set();
                });
            }
            while round.running.get() > 0 {
                all.wait().await;
            }
            figures = Ok(round.figures(length, thread_cpu_ns()? - cpu_ns));
        }
        figures
    })?
}

fn measure_client(
    (host, port): &(String, u16),
    call: &'static str,
    at_a_time: usize,
    length: Duration,
) -> Result<Figures> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async move {
        let client =
            redis::Client::open(format!("redis://{host}:{port}/{DATABASE}?protocol=resp3"))
                .map_err(Error::other)?;
        let connection = client.get_multiplexed_async_connection().await.map_err(Error::other)?;
        let keys: Rc<Vec<String>> =
            Rc::new((0..KEYS).map(|number| format!("orders:{}", key(number))).collect());
        let value = [7u8; VALUE_BYTES];
        let mut figures = Err(Error::other("nothing was measured"));
        for length in [length / 4, length] {
            let round = Round::new(at_a_time, length);
            let cpu_ns = thread_cpu_ns()?;
            let mut running = Vec::new();
            for _ in 0..at_a_time {
                let (mut connection, keys, round) =
                    (connection.clone(), keys.clone(), round.clone());
                running.push(tokio::task::spawn_local(async move {
                    while let Some((number, began)) = round.next() {
                        let mut command = redis::cmd(if call == "Get" { "GET" } else { "SET" });
                        command.arg(&keys[number]);
                        if call == "Get" {
                            let value: Option<Vec<u8>> =
                                command.query_async(&mut connection).await.expect("an answer");
                            assert!(value.is_some_and(|value| value.len() == VALUE_BYTES));
                        } else {
                            command.arg(&value[..]);
                            let () = command.query_async(&mut connection).await.expect("an answer");
                        }
                        round.ended(began);
                    }
                }));
            }
            for task in running {
                task.await.map_err(Error::other)?;
            }
            figures = Ok(round.figures(length, thread_cpu_ns()? - cpu_ns));
        }
        figures
    })
}
