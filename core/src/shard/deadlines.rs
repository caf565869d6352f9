//! Deadlines of calls that wait: one earliest time and one look at all of them when it comes.
//!
//! A call that ends in place never gets here. Most calls that wait end long before their deadline, so nothing is kept per
//! call; when the earliest deadline passes, every waiting call is looked at once and registers again what is still to come. A caller
//! that goes away makes such a time come soon: however many go, the calls that wait are looked at once.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use prism_io::calls::StartCall;
use prism_io::rt::Signal;
use prism_io::{clock, rt};

use super::Shard;

/// Calls are looked at no more often than this.
const TICK_MIN: Duration = Duration::from_millis(1);
/// How long after its caller has gone a call is looked at.
const GONE_AFTER_NS: u64 = 10_000_000;
/// The longest sleep between two looks at the clock.
const TICK_MAX: Duration = Duration::from_secs(3600);

/// The deadlines of a shard.
pub(crate) struct Deadlines {
    /// The time of the last tick, monotonic ns.
    now_ns: Cell<u64>,
    earliest_ns: Cell<u64>,
    /// Callers have gone since the last tick.
    gone: Cell<bool>,
    /// Callers had gone at the last tick.
    looks_for_callers: Cell<bool>,
    changed: Signal,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            now_ns: Cell::new(0),
            earliest_ns: Cell::new(u64::MAX),
            gone: Cell::new(false),
            looks_for_callers: Cell::new(false),
            changed: Signal::default(),
        }
    }
}

impl Deadlines {
    /// Whether `deadline_ns` had passed at the last tick. Asks no clock.
    pub(crate) fn is_past(&self, deadline_ns: u64) -> bool {
        self.now_ns.get() >= deadline_ns
    }

    /// A caller has gone whose call may wait.
    pub(crate) fn caller_gone(&self) {
        if !self.gone.replace(true) {
            self.watch(clock::monotonic_ns().saturating_add(GONE_AFTER_NS));
        }
    }

    /// Whether a call that is polled is to look whether its caller is still there.
    pub(crate) fn looks_for_callers(&self) -> bool {
        self.looks_for_callers.get()
    }

    /// Has the waiting calls polled when `deadline_ns` comes.
    pub(crate) fn watch(&self, deadline_ns: u64) {
        if deadline_ns < self.earliest_ns.get() {
            self.earliest_ns.set(deadline_ns);
            self.changed.set();
        }
    }

    /// Ticks for ever.
    pub(crate) async fn run<A>(&self, shard: &Shard, calls: Rc<dyn StartCall<A>>) {
        loop {
            let left_ns = self.earliest_ns.get().saturating_sub(clock::monotonic_ns());
            let left = Duration::from_nanos(left_ns).clamp(TICK_MIN, TICK_MAX);
            let _ = rt::timeout(left, self.changed.wait()).await;
            let now_ns = clock::monotonic_ns();
            self.now_ns.set(now_ns);
            if now_ns >= self.earliest_ns.get() {
                self.earliest_ns.set(u64::MAX);
                self.looks_for_callers.set(self.gone.take());
                shard.peers.look_for_gone();
                shard.log.expire(shard, now_ns);
                shard.lanes.expire(shard, now_ns);
                calls.wake_all();
                calls.poll_woken();
            }
        }
    }
}
