//! A shard's connection to a PostgreSQL: calls gathered into batches, made again after an outage.
//!
//! One batch is under way at a time; what is asked meanwhile is the next one. So a batch is as large as PostgreSQL is slow, and
//! every call of it shares one commit. A batch that PostgreSQL refuses because of one of its calls has had no effect: its calls are
//! tried again one by one, in their order. While there is no connection, calls wait only as long as one is expected at once; else
//! they are refused at once ([`Breaker`]). A call whose deadline has passed is not sent any more, and a batch that nobody waits for any more
//! is cancelled, so that it does not hold the connection. Every call ends.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use prism_io::clock::monotonic_ns;
use prism_io::rt::{self, Signal};

use super::batch::{Answer, Builder, Operation};
use super::config::PostgresConfig;
use super::errors::{Fault, Outage};
use super::session::{Failure, Session, Waiters};
use super::statements::Namespace;
use crate::breaker::{Breaker, Circuit};
use crate::call::NO_DEADLINE_NS;

/// Operations and bytes of one batch at most, except that one call alone may have more.
const BATCH_OPERATIONS_MAX: usize = 2048;
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a shard's connections have done so far, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionFacts {
    /// Calls that were answered, or refused by PostgreSQL.
    pub calls: u64,
    /// Batches that they were sent in: calls per batch is the batch size reached.
    pub batches: u64,
    /// Reads that brought answers.
    pub reads: u64,
    /// Connections that came about.
    pub connects: u64,
    /// Attempts that failed, and connections that were lost.
    pub outages: u64,
    /// Calls that were refused at once, because there was no connection or there were too many.
    pub refused: u64,
    /// Calls that wait or are under way.
    pub calls_under_way: usize,
    /// Connections that stand.
    pub connected: usize,
}

/// A call that waits or is under way.
struct Call {
    namespace: Rc<Namespace>,
    operations: Vec<Operation>,
    bytes: usize,
    /// Until when its caller waits, monotonic ns.
    deadline_ns: u64,
    /// It is tried without others beside it.
    is_alone: bool,
    /// Shared with the caller: one allocation, beside what a call costs PostgreSQL.
    place: Rc<RefCell<Place>>,
}

enum Place {
    Waiting(Option<Waker>),
    Answered(Result<Answer, Fault>),
}

impl Call {
    fn end(self, result: Result<Answer, Fault>) {
        let before = self.place.replace(Place::Answered(result));
        if let Place::Waiting(Some(waker)) = before {
            waker.wake();
        }
    }

    /// Whether nobody waits for it any more.
    fn is_abandoned(&self) -> bool {
        Rc::strong_count(&self.place) == 1
    }
}

/// See the module.
pub(super) struct Link {
    config: PostgresConfig,
    waiting: RefCell<VecDeque<Call>>,
    waiting_bytes: Cell<usize>,
    under_way: Cell<usize>,
    breaker: RefCell<Breaker>,
    /// Why calls are refused while the circuit is not closed.
    outage: RefCell<Outage>,
    /// Set when there is something to do, or nothing more ever.
    work: Rc<Signal>,
    /// Set when somebody stops waiting for an answer.
    left: Signal,
    stopped: Cell<bool>,
    facts: Cell<ConnectionFacts>,
}

/// Tells a link when its caller goes away before the answer has come.
struct Waits<'a> {
    link: &'a Link,
    is_answered: bool,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.link.left.set();
        }
    }
}

impl Link {
    /// Begins to connect. Needs a runtime around it.
    pub(super) fn start(config: PostgresConfig) -> Rc<Self> {
        let link = Rc::new(Link {
            waiting: RefCell::default(),
            waiting_bytes: Cell::new(0),
            under_way: Cell::new(0),
            breaker: RefCell::new(Breaker::new(config.backoff)),
            outage: RefCell::new(Outage::closed()),
            work: Rc::default(),
            left: Signal::default(),
            stopped: Cell::new(false),
            facts: Cell::default(),
            config,
        });
        rt::spawn(link.clone().run());
        link
    }

    /// Makes a call and waits for its answer. What is to be carried out whoever waits has no deadline.
    pub(super) async fn call(
        &self,
        namespace: Rc<Namespace>,
        operations: Vec<Operation>,
        deadline_ns: u64,
    ) -> Result<Answer, Fault> {
        if self.breaker.borrow().circuit() != Circuit::Closed || self.stopped.get() {
            self.count(|facts| facts.refused += 1);
            return Err(Fault::Outage(self.outage.borrow().clone()));
        }
        operations.iter().for_each(|operation| namespace.note(operation.model()));
        let bytes = operations.iter().map(Operation::len).sum();
        let calls = self.waiting.borrow().len() + self.under_way.get();
        let is_full = self.waiting_bytes.get() > self.config.bytes_max;
        if calls >= self.config.calls_max || is_full {
            self.count(|facts| facts.refused += 1);
            return Err(Fault::Busy(self.config.calls_max));
        }
        let place = Rc::new(RefCell::new(Place::Waiting(None)));
        let (is_alone, waiting) = (false, place.clone());
        let call = Call { namespace, operations, bytes, deadline_ns, is_alone, place: waiting };
        self.waiting_bytes.set(self.waiting_bytes.get() + bytes);
        self.waiting.borrow_mut().push_back(call);
        self.work.set();
        let mut waits = Waits { link: self, is_answered: false };
        let answer = poll_fn(|task| {
            let mut place = place.borrow_mut();
            match std::mem::replace(&mut *place, Place::Waiting(None)) {
                Place::Answered(result) => Poll::Ready(result),
                Place::Waiting(_) => {
                    *place = Place::Waiting(Some(task.waker().clone()));
                    Poll::Pending
                }
            }
        })
        .await;
        waits.is_answered = true;
        answer
    }

    pub(super) fn config(&self) -> &PostgresConfig {
        &self.config
    }

    /// What it has done so far.
    pub(super) fn facts(&self) -> ConnectionFacts {
        let calls_under_way = self.waiting.borrow().len() + self.under_way.get();
        ConnectionFacts { calls_under_way, ..self.facts.get() }
    }

    /// Ends it for good.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
        self.lose(&Outage::closed());
        self.work.set();
    }

    /// When it is worth trying again.
    pub(super) fn retry_delay(&self) -> Duration {
        match self.breaker.borrow().circuit() {
            Circuit::Open { until_ns } => {
                Duration::from_nanos(until_ns.saturating_sub(monotonic_ns()))
                    .max(self.config.backoff.delay_min)
            }
            Circuit::Closed | Circuit::HalfOpen => self.config.backoff.delay_min,
        }
    }

    fn count(&self, count: impl FnOnce(&mut ConnectionFacts)) {
        let mut facts = self.facts.get();
        count(&mut facts);
        self.facts.set(facts);
    }

    /// Every call that waits ends.
    fn lose(&self, outage: &Outage) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        self.waiting_bytes.set(0);
        waiting.into_iter().for_each(|call| call.end(Err(Fault::Outage(outage.clone()))));
    }

    /// Connects, serves, and begins again, until it is stopped.
    async fn run(self: Rc<Self>) {
        while !self.stopped.get() {
            self.breaker.borrow_mut().attempt();
            let timeout = self.config.connect_timeout;
            let connected = rt::timeout(timeout, Session::connect(&self.config, &self.work)).await;
            let timed_out = || Err(Outage::connect_timed_out(timeout));
            let next_ns = match connected.unwrap_or_else(timed_out) {
                Err(outage) => {
                    self.lose(&outage);
                    self.outage.replace(outage);
                    self.breaker.borrow_mut().failed(monotonic_ns())
                }
                Ok(mut session) => {
                    self.count(|facts| (facts.connects, facts.connected) = (facts.connects + 1, 1));
                    self.breaker.borrow_mut().succeeded();
                    let outage = self.serve(&mut session).await;
                    self.count(|facts| facts.connected = 0);
                    let now_ns = monotonic_ns();
                    self.outage.replace(outage);
                    self.breaker.borrow_mut().lost(now_ns, now_ns - session.since_ns)
                }
            };
            self.count(|facts| facts.outages += 1);
            if self.breaker.borrow().circuit() != Circuit::Closed {
                let outage = self.outage.borrow().clone();
                self.lose(&outage);
            }
            while !self.stopped.get() && monotonic_ns() < next_ns {
                let left = Duration::from_nanos(next_ns.saturating_sub(monotonic_ns()));
                // In steps, so that a link that is stopped does not outlive it for long.
                rt::sleep(left.clamp(Duration::from_millis(1), Duration::from_millis(250))).await;
            }
        }
    }

    /// Serves one connection to its end; returns why it ended.
    async fn serve(&self, session: &mut Session) -> Outage {
        loop {
            if self.stopped.get() {
                return Outage::closed();
            }
            if let Some(outage) = session.outage() {
                return outage;
            }
            if session.is_used_up() {
                return Outage::lost();
            }
            let calls = self.take_batch();
            if calls.is_empty() {
                let idle = rt::timeout(self.config.ping_after, self.work.wait()).await;
                if idle.is_none()
                    && let Err(outage) = session.ping().await
                {
                    return outage;
                }
                continue;
            }
            self.under_way.set(calls.len());
            let served = self.serve_batch(session, calls).await;
            self.under_way.set(0);
            let reads = session.reads();
            self.count(|facts| facts.reads += reads);
            if let Err(outage) = served {
                return outage;
            }
        }
    }

    /// The next calls that can share a batch.
    fn take_batch(&self) -> Vec<Call> {
        let (mut calls, mut operations, mut bytes) = (Vec::new(), 0, 0);
        let now_ns = monotonic_ns();
        let mut waiting = self.waiting.borrow_mut();
        while let Some(next) = waiting.front() {
            let is_first = calls.is_empty();
            let fits = operations + next.operations.len() <= BATCH_OPERATIONS_MAX
                && bytes + next.bytes <= BATCH_BYTES_MAX
                && !next.is_alone;
            if !is_first && !fits {
                break;
            }
            let Some(next) = waiting.pop_front() else { break };
            self.waiting_bytes.set(self.waiting_bytes.get().saturating_sub(next.bytes));
            // A caller that is gone before anything was sent is told nothing, and nothing is done.
            if next.is_abandoned() {
                continue;
            }
            if next.deadline_ns <= now_ns {
                next.end(Err(Fault::NotSent));
                continue;
            }
            operations += next.operations.len();
            bytes += next.bytes;
            let is_alone = next.is_alone;
            calls.push(next);
            if is_alone {
                break;
            }
        }
        calls
    }

    async fn serve_batch(&self, session: &mut Session, calls: Vec<Call>) -> Result<(), Outage> {
        let mut ready = Vec::with_capacity(calls.len());
        let mut calls = calls.into_iter();
        while let Some(call) = calls.next() {
            if call.namespace.has_ended() {
                call.end(Err(Fault::Ended));
                continue;
            }
            match session.make_ready(&call.namespace, &call.operations).await {
                Ok(()) => ready.push(call),
                Err(Failure::Sql(error)) => call.end(Err(Fault::Sql(error))),
                Err(Failure::Outage(outage)) => {
                    let rest = ready.into_iter().chain([call]).chain(calls);
                    rest.for_each(|call| call.end(Err(Fault::Outage(outage.clone()))));
                    return match session.outage() {
                        Some(outage) => Err(outage),
                        // The schema is not fit, the connection is.
                        None => Ok(()),
                    };
                }
            }
        }
        if ready.is_empty() {
            return Ok(());
        }
        let (epoch, mut versions) = session.versions();
        let batch = {
            let mut builder = Builder::new(session.prepared());
            for call in &ready {
                let take = |count| Session::take_versions(epoch, &mut versions, count);
                builder.add(&call.namespace, &call.operations, take);
            }
            builder.end()
        };
        self.count(|facts| facts.batches += 1);
        let over_ns = ready.iter().map(|call| call.deadline_ns).max().unwrap_or(NO_DEADLINE_NS);
        let is_waited_for = || ready.iter().any(|call| !call.is_abandoned());
        let waiters = Waiters { over_ns, left: &self.left, is_any_left: &is_waited_for };
        match session.exchange(batch, versions, &waiters).await {
            Err(outage) => {
                ready.into_iter().for_each(|call| call.end(Err(Fault::Outage(outage.clone()))));
                return Err(outage);
            }
            Ok(ended) => match ended.answers {
                Ok(answers) => {
                    self.count(|facts| facts.calls += ready.len() as u64);
                    let answered = ready.into_iter().zip(answers);
                    answered.for_each(|(call, answer)| call.end(Ok(answer)));
                }
                Err(error) if ready.len() > 1 && error.is_of_one_call() => {
                    let mut waiting = self.waiting.borrow_mut();
                    for call in ready.into_iter().rev() {
                        self.waiting_bytes.set(self.waiting_bytes.get() + call.bytes);
                        waiting.push_front(Call { is_alone: true, ..call });
                    }
                }
                Err(error) => {
                    if error.is_schema_missing() {
                        session.forget_schemas();
                    }
                    self.count(|facts| facts.calls += ready.len() as u64);
                    ready.into_iter().for_each(|call| call.end(Err(Fault::Sql(error.clone()))));
                }
            },
        }
        Ok(())
    }
}
