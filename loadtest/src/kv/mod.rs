//! `prism-loadtest kv`: Get and Set at a rate, or as fast as the answers come.
//!
//! One thread per core, each with its own loop, connections and histograms; what they found is added up at the end. An *open* loop sends at fixed
//! times whatever the server does, and counts each latency from the time at which the request was due. A *closed* loop keeps a number of requests
//! in flight and measures how fast the server can be driven; its latencies say little about a server that stalls.

mod connection;
mod worker;
pub mod workload;

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use prism_io::clock::monotonic_ns;
use prism_io::rt;
use prism_io::tls::Connector;

use crate::process::cpu_ns;
use crate::report::{Latency, Report, histogram};
use worker::{Tally, Worker};
use workload::Recipe;

/// What is asked of another namespace meanwhile, as a closed book: only how it was answered counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Beside {
    /// The other namespace.
    pub namespace: String,
    /// Requests per second over all threads.
    pub rate: f64,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Load {
    /// The server.
    pub endpoint: SocketAddr,
    /// Speak TLS.
    pub tls: Option<Connector>,
    /// What is asked.
    pub recipe: Recipe,
    /// Connections over all threads.
    pub connections: usize,
    /// Requests in flight on each connection: kept in a closed loop, a bound in an open one.
    pub in_flight: usize,
    /// Requests per second over all threads; a closed loop without it.
    pub rate: Option<f64>,
    /// What is asked beside it, in an open loop.
    pub beside: Option<Beside>,
    /// `prism-durability` of every request, if any.
    pub durability: Option<String>,
    /// One thread per entry, pinned where it names a core.
    pub threads: Vec<Option<usize>>,
    /// Store every key before the load begins.
    pub preload: bool,
    /// Load before the measurement.
    pub warmup: Duration,
    /// The measurement.
    pub duration: Duration,
    /// End after this many requests, if that comes first.
    pub requests: Option<u64>,
    /// How long the answers that are still missing at the end are waited for.
    pub timeout: Duration,
    /// The server's process id, to report its CPU time.
    pub server_id: Option<u32>,
}

/// The moments of a run, in nanoseconds of this process's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) begin_ns: u64,
    pub(crate) measure_ns: u64,
    pub(crate) end_ns: u64,
}

/// What a thread tells before it ends.
enum Message {
    /// Everything is connected and stored; the load begins when all have met at the barrier.
    Ready,
    Done(Box<Result<Tally>>),
}

/// Runs the load and reports. Fails when a connection cannot be made or the preload is refused.
pub fn run(load: &Load) -> Result<Report> {
    let threads = load.threads.len();
    if threads == 0 || load.connections < threads {
        return Err(Error::other("there are fewer connections than threads"));
    }
    let barrier = Arc::new(Barrier::new(threads + 1));
    let window = Arc::new(std::sync::OnceLock::new());
    let (sender, messages) = channel();
    let workers: Vec<_> = (0..threads)
        .map(|thread| {
            let (load, barrier, window, sender) =
                (load.clone(), barrier.clone(), window.clone(), sender.clone());
            std::thread::spawn(move || {
                let (told, meeting) = (sender.clone(), barrier.clone());
                let result = pin_and_run(thread, &load, move || {
                    // The receiver only goes away with the whole run.
                    let _ = told.send(Message::Ready);
                    meeting.wait();
                    meeting.wait();
                    *window.get().expect("set between the barriers")
                });
                let failed = result.is_err();
                let _ = sender.send(Message::Done(Box::new(result)));
                if !failed {
                    // The CPU time of a thread that has ended cannot be read any more.
                    barrier.wait();
                }
            })
        })
        .collect();
    drop(sender);
    for _ in 0..threads {
        match messages.recv() {
            Ok(Message::Ready) => {}
            Ok(Message::Done(result)) => {
                // Others may stand at the barrier; the caller ends the process.
                return Err(result.err().unwrap_or_else(|| Error::other("a thread ended early")));
            }
            Err(_) => return Err(Error::other("a thread of the generator broke down")),
        }
    }
    barrier.wait();
    let begin_ns = monotonic_ns();
    let measure_ns = begin_ns + load.warmup.as_nanos() as u64;
    let end_ns = measure_ns + load.duration.as_nanos() as u64;
    window.set(Window { begin_ns, measure_ns, end_ns }).expect("set once");
    barrier.wait();

    std::thread::sleep(load.warmup);
    let usage = Usage::now(load)?;
    let mut tallies = Vec::new();
    let mut used = None;
    while tallies.len() < threads {
        let left = Duration::from_nanos(end_ns.saturating_sub(monotonic_ns()));
        let message = match used {
            // The threads drain and close connections after the window; that is not the load's cost.
            None => messages.recv_timeout(left),
            Some(_) => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match message {
            Ok(Message::Ready) => {}
            Ok(Message::Done(result)) => tallies.push((*result)?),
            Err(RecvTimeoutError::Timeout) => used = Some(Usage::now(load)?),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::other("a thread of the generator broke down"));
            }
        }
    }
    let used = match used {
        Some(used) => used,
        None => Usage::now(load)?,
    };
    barrier.wait();
    for worker in workers {
        worker.join().map_err(|_| Error::other("a thread of the generator broke down"))?;
    }
    // What was answered is counted from the one to the other, whenever this thread woke up.
    let measured_ns = used.at_ns.min(end_ns).saturating_sub(measure_ns);
    Ok(report(load, tallies, measured_ns, used.since(&usage)))
}

fn pin_and_run(
    thread: usize,
    load: &Load,
    meet: impl FnOnce() -> Window + 'static,
) -> Result<Tally> {
    if let Some(core) = load.threads[thread] {
        rt::pin(core)?;
    }
    let worker = Worker::new(load, thread);
    let threads = load.threads.len();
    let share = load.connections * (thread + 1) / threads - load.connections * thread / threads;
    rt::run(worker::run(worker, load.clone(), share, meet))?
}

/// CPU time used so far, nanoseconds.
struct Usage {
    at_ns: u64,
    server_ns: Option<u64>,
    generator_ns: u64,
}

impl Usage {
    fn now(load: &Load) -> Result<Self> {
        Ok(Self {
            at_ns: monotonic_ns(),
            server_ns: load.server_id.map(cpu_ns).transpose()?,
            generator_ns: cpu_ns(std::process::id())?,
        })
    }

    fn since(&self, before: &Self) -> Self {
        let server_ns = self.server_ns.zip(before.server_ns);
        Self {
            at_ns: self.at_ns - before.at_ns,
            server_ns: server_ns.map(|(after, before)| after.saturating_sub(before)),
            generator_ns: self.generator_ns.saturating_sub(before.generator_ns),
        }
    }
}

fn report(load: &Load, tallies: Vec<Tally>, measured_ns: u64, used: Usage) -> Report {
    let (mut reads, mut writes) = (histogram(), histogram());
    let mut report = Report { endpoint: load.endpoint.to_string(), ..Report::default() };
    for tally in tallies {
        reads.add(&tally.reads).expect("the same bounds");
        writes.add(&tally.writes).expect("the same bounds");
        report.requests += tally.answered;
        report.not_found += tally.not_found;
        report.unanswered += tally.unanswered;
        report.connections_lost += tally.connections_lost;
        for (code, &count) in tally.beside.iter().enumerate().filter(|&(_, &count)| count > 0) {
            let name = prism_io::grpc::Code::from_number(code as u32).name();
            *report.beside.entry(name.to_owned()).or_default() += count;
        }
        for (code, &count) in tally.failed.iter().enumerate().filter(|&(_, &count)| count > 0) {
            let name = prism_io::grpc::Code::from_number(code as u32).name();
            *report.errors.entry(name.to_owned()).or_default() += count;
        }
    }
    let mut all = reads.clone();
    all.add(&writes).expect("the same bounds");
    let recipe = &load.recipe;
    let shape = format!("{} connections × {} in flight", load.connections, load.in_flight);
    let what = format!(
        "{} B values, {} reads to writes, {} keys ({})",
        recipe.value_bytes, recipe.mix, recipe.keys, recipe.distribution
    );
    let per_request = |ns: u64| ns as f64 / 1e3 / report.requests.max(1) as f64;
    Report {
        load: match load.rate {
            Some(rate) => format!("open loop, {rate} per second over {shape} at most, {what}"),
            None => format!("closed loop, {shape}, {what}"),
        },
        seconds: measured_ns as f64 / 1e9,
        requests_per_second: report.requests as f64 * 1e9 / measured_ns.max(1) as f64,
        wanted_per_second: load.rate,
        latency: Latency::of(&all),
        reads: Latency::of(&reads),
        writes: Latency::of(&writes),
        server_cpu_us: used.server_ns.map(per_request),
        generator_cpu_us: per_request(used.generator_ns),
        generator_busy: used.generator_ns as f64
            / (used.at_ns.max(1) * load.threads.len() as u64) as f64,
        ..report
    }
}
