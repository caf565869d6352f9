//! One thread of the generator: what it sends when, and what it counts.
//!
//! A closed loop is driven by the answers: each one lets the connection that it came on send the next request. An open loop is driven by
//! the clock: the thread spins when the next request is near, because timers are a thousand times too coarse.

use std::cell::{Cell, RefCell};
use std::io::{Error, Result};
use std::rc::Rc;
use std::time::Duration;

use hdrhistogram::Histogram;
use prism_io::clock::monotonic_ns;
use prism_io::grpc::Code;
use prism_io::rt::{self, Signal};

use super::connection::Connection;
use super::workload::{Kind, Recipe, Workload};
use super::{Load, Window};
use crate::report::histogram;

/// An open loop sleeps only when the next request is further away than this; timers are late by up to a millisecond or two.
const SLEEP_MARGIN_NS: u64 = 3_000_000;
/// Requests that the preload keeps in flight on each connection at least.
const PRELOAD_IN_FLIGHT: usize = 64;

/// What a thread has counted.
pub(crate) struct Tally {
    pub(crate) reads: Histogram<u64>,
    pub(crate) writes: Histogram<u64>,
    pub(crate) answered: u64,
    pub(crate) not_found: u64,
    /// By gRPC status code.
    pub(crate) failed: [u64; 17],
    /// Answers of what was asked beside, by gRPC status code.
    pub(crate) beside: [u64; 17],
    pub(crate) unanswered: u64,
    pub(crate) connections_lost: u64,
}

impl Tally {
    fn new() -> Self {
        Self {
            reads: histogram(),
            writes: histogram(),
            answered: 0,
            not_found: 0,
            failed: [0; 17],
            beside: [0; 17],
            unanswered: 0,
            connections_lost: 0,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Preload,
    Run,
}

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) kind: Kind,
    /// When it was meant to be sent.
    pub(crate) due_ns: u64,
    /// It was asked of the other namespace.
    pub(crate) is_beside: bool,
    /// The message of its answer has come and was not empty.
    pub(crate) found: bool,
}

/// The state that the connections of one thread share.
pub(crate) struct Worker {
    workload: Workload,
    /// Of the namespace that is asked beside.
    beside: Option<Workload>,
    phase: Phase,
    window: Window,
    tally: Tally,
    /// Requests still to be sent in the window, where their number is bounded.
    left: u64,
    in_flight_max: usize,
    /// Answers let the next request go.
    closed_loop: bool,
    refusal: Option<Code>,
}

impl Worker {
    pub(crate) fn new(load: &Load, thread: usize) -> Self {
        let threads = load.threads.len();
        Self {
            workload: Workload::new(&load.recipe, thread, threads),
            beside: load.beside.as_ref().map(|beside| {
                let namespace = beside.namespace.clone();
                Workload::new(&Recipe { namespace, ..load.recipe.clone() }, thread, threads)
            }),
            phase: Phase::Idle,
            window: Window { begin_ns: 0, measure_ns: 0, end_ns: 0 },
            tally: Tally::new(),
            left: load.requests.map_or(u64::MAX, |requests| {
                requests * (thread as u64 + 1) / threads as u64
                    - requests * thread as u64 / threads as u64
            }),
            in_flight_max: load.in_flight,
            closed_loop: load.rate.is_none(),
            refusal: None,
        }
    }

    /// Most requests in flight on a connection now.
    #[inline]
    pub(crate) fn in_flight_max(&self) -> usize {
        match self.phase {
            Phase::Preload => self.in_flight_max.max(PRELOAD_IN_FLIGHT),
            _ => self.in_flight_max,
        }
    }

    /// The request that an answer, or the beginning, lets go.
    #[inline]
    pub(crate) fn next(&mut self, now_ns: u64) -> Option<(Sent, &[u8])> {
        let (kind, message) = match self.phase {
            Phase::Preload => self.workload.preload()?,
            Phase::Run if self.closed_loop && now_ns < self.window.end_ns => {
                if now_ns >= self.window.measure_ns {
                    self.left = self.left.checked_sub(1)?;
                }
                self.workload.request()
            }
            _ => return None,
        };
        Some((Sent { kind, due_ns: now_ns, is_beside: false, found: false }, message))
    }

    /// An answer has come.
    #[inline]
    pub(crate) fn answered(&mut self, sent: Sent, code: Code, found: bool, now_ns: u64) {
        if self.phase != Phase::Run {
            if code != Code::Ok {
                self.refusal = Some(code);
            }
            return;
        }
        let window = self.window.measure_ns..self.window.end_ns;
        if sent.is_beside {
            self.tally.beside[code as usize] += u64::from(window.contains(&now_ns));
            return;
        }
        self.tally.answered += u64::from(window.contains(&now_ns));
        if code != Code::Ok {
            self.tally.failed[code as usize] += 1;
            return;
        }
        if window.contains(&sent.due_ns) {
            let latencies = match sent.kind {
                Kind::Read => &mut self.tally.reads,
                Kind::Write | Kind::Append => &mut self.tally.writes,
            };
            latencies.saturating_record(now_ns.saturating_sub(sent.due_ns));
        }
        self.tally.not_found += u64::from(sent.kind == Kind::Read && !found);
    }

    /// A connection has ended with that many requests in flight.
    pub(crate) fn lost(&mut self, in_flight: usize) {
        self.tally.connections_lost += 1;
        self.tally.failed[Code::Unavailable as usize] += in_flight as u64;
        self.refusal = Some(Code::Unavailable);
    }
}

/// What the tasks of one thread share.
pub(crate) struct Shared {
    pub(crate) worker: RefCell<Worker>,
    /// A connection has nothing in flight any more.
    pub(crate) settled: Signal,
    /// Connections with requests in flight.
    pub(crate) busy: Cell<usize>,
}

/// Connects, preloads, meets the other threads, and runs the load to its end.
pub(crate) async fn run(
    worker: Worker,
    load: Load,
    share: usize,
    meet: impl FnOnce() -> Window,
) -> Result<Tally> {
    let shared = Rc::new(Shared {
        worker: RefCell::new(worker),
        settled: Signal::default(),
        busy: Cell::new(0),
    });
    let mut connections = Vec::with_capacity(share);
    for _ in 0..share {
        connections.push(Connection::open(&load, shared.clone()).await?);
    }
    let mut others = Vec::new();
    for _ in 0..load.beside.as_ref().map_or(0, |_| share) {
        others.push(Connection::open(&load, shared.clone()).await?);
    }
    if load.preload {
        shared.worker.borrow_mut().phase = Phase::Preload;
        start_all(&connections);
        while shared.busy.get() > 0 {
            shared.settled.wait().await;
        }
        if let Some(code) = shared.worker.borrow().refusal {
            let hint = "is it the right namespace, and does it take writes?";
            return Err(Error::other(format!(
                "storing the keys failed with {}: {hint}",
                code.name()
            )));
        }
    }
    let window = meet();
    {
        let mut worker = shared.worker.borrow_mut();
        worker.phase = Phase::Run;
        worker.window = window;
    }
    let end_ns = window.end_ns + load.timeout.as_nanos() as u64;
    let unsent = match load.rate {
        None => {
            start_all(&connections);
            0
        }
        Some(rate) => {
            // A task of its own: the loop polls its main future again and again before it looks at the sockets.
            let unsent = Rc::new(Cell::new(None));
            let (shared_too, connections, result) =
                (shared.clone(), connections.clone(), unsent.clone());
            let threads = load.threads.len() as f64;
            let rate = rate / threads;
            let others = Others {
                connections: others.clone(),
                gap_ns: load
                    .beside
                    .as_ref()
                    .map_or(f64::INFINITY, |beside| 1e9 * threads / beside.rate),
            };
            rt::spawn(async move {
                let unsent = pace(&shared_too, &connections, &others, rate, end_ns).await;
                result.set(Some(unsent));
                shared_too.settled.set();
            });
            loop {
                match unsent.get() {
                    Some(unsent) => break unsent,
                    None => shared.settled.wait().await,
                }
            }
        }
    };
    let left = Duration::from_nanos(end_ns.saturating_sub(monotonic_ns()));
    let quiet = async {
        while shared.busy.get() > 0 {
            shared.settled.wait().await;
        }
    };
    // Whether in time or not, what is still in flight then is counted.
    let _ = rt::timeout(left, quiet).await;
    let in_flight: usize = connections.iter().map(|connection| connection.in_flight()).sum();
    let mut worker = shared.worker.borrow_mut();
    let mut tally = std::mem::replace(&mut worker.tally, Tally::new());
    tally.unanswered = in_flight as u64 + unsent;
    Ok(tally)
}

fn start_all(connections: &[Connection]) {
    let now_ns = monotonic_ns();
    for connection in connections {
        connection.fill(now_ns);
    }
}

/// Where requests go that are asked beside, and how often.
struct Others {
    connections: Vec<Connection>,
    gap_ns: f64,
}

impl Others {
    /// Sends those that are due, from the one of this number on. What the connections have no room for is left out: nobody waits for it.
    fn send(&self, worker: &mut Worker, number: &mut u64, now_ns: u64) {
        let begin_ns = worker.window.begin_ns;
        let due = |number: u64| begin_ns.saturating_add((number as f64 * self.gap_ns) as u64);
        while due(*number) <= now_ns && !self.connections.is_empty() {
            let connection = &self.connections[*number as usize % self.connections.len()];
            let due_ns = due(*number);
            *number += 1;
            if !connection.has_room(worker) {
                continue;
            }
            let Some(workload) = &mut worker.beside else { return };
            let (kind, message) = workload.request();
            connection.send(Sent { kind, due_ns, is_beside: true, found: false }, message);
        }
    }

    fn next_ns(&self, begin_ns: u64, number: u64) -> u64 {
        match self.connections.is_empty() {
            true => u64::MAX,
            false => begin_ns.saturating_add((number as f64 * self.gap_ns) as u64),
        }
    }
}

/// Sends requests at their times, over the connections in turn. Returns how many were due in the window and could not be sent before `end_ns`.
async fn pace(
    shared: &Shared,
    connections: &[Connection],
    others: &Others,
    rate: f64,
    end_ns: u64,
) -> u64 {
    let window = shared.worker.borrow().window;
    let gap_ns = 1e9 / rate;
    let due = |number: u64| window.begin_ns + (number as f64 * gap_ns) as u64;
    let (mut number, mut turn) = (0, 0);
    // Not the first at the same time as the other's.
    let mut other = 1;
    loop {
        let mut now_ns = monotonic_ns();
        if now_ns >= end_ns || connections.iter().all(Connection::is_lost) {
            let total = ((window.end_ns - window.begin_ns) as f64 / gap_ns) as u64;
            return total.saturating_sub(number);
        }
        others.send(&mut shared.worker.borrow_mut(), &mut other, now_ns);
        while due(number) <= now_ns {
            let mut worker = shared.worker.borrow_mut();
            if due(number) >= window.end_ns || worker.left == 0 {
                return 0;
            }
            let count = connections.len();
            let room = (0..count)
                .map(|step| (turn + step) % count)
                .find(|&index| connections[index].has_room(&worker));
            let Some(index) = room else { break };
            let due_ns = due(number);
            let (kind, message) = worker.workload.request();
            connections[index].send(Sent { kind, due_ns, is_beside: false, found: false }, message);
            if due_ns >= window.measure_ns {
                worker.left -= 1;
            }
            turn = index + 1;
            number += 1;
            now_ns = monotonic_ns();
        }
        let next_ns = due(number).min(others.next_ns(window.begin_ns, other));
        let wait_ns = next_ns.saturating_sub(monotonic_ns());
        if wait_ns > SLEEP_MARGIN_NS {
            rt::sleep(Duration::from_nanos(wait_ns - SLEEP_MARGIN_NS)).await;
        } else {
            rt::yield_now().await;
        }
    }
}
