//! When to try an outside backend again, and whether calls may meanwhile wait for it.
//!
//! A circuit breaker: *closed* while the connection stands or may be expected to, *open* after a failure until the next
//! attempt is due, *half-open* while that attempt probes the backend. Open and half-open refuse calls at once. The time
//! between attempts doubles with each failure, up to a bound, and is spread at random, so that many shards and hosts do
//! not come back together. It does no I/O and asks no clock.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// A connection that ends sooner than this counts as one more failure.
pub const STABLE_MIN: Duration = Duration::from_secs(1);

/// How long to wait between attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub delay_min: Duration,
    /// However often it has failed.
    pub delay_max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { delay_min: Duration::from_millis(50), delay_max: Duration::from_secs(5) }
    }
}

/// What the breaker lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// Calls pass, or wait for the connection that is being made.
    Closed,
    /// Calls are refused; the next attempt is due at this time, in monotonic ns.
    Open {
        /// Monotonic time of the next attempt, in ns.
        until_ns: u64,
    },
    /// Calls are refused; an attempt is under way.
    HalfOpen,
}

/// See the module.
#[derive(Debug)]
pub struct Breaker {
    backoff: Backoff,
    circuit: Circuit,
    /// Failures since the last success.
    failures: u32,
    random: RandomState,
    draws: u64,
}

impl Breaker {
    /// A closed breaker: the first attempt has not failed yet.
    pub fn new(backoff: Backoff) -> Self {
        let random = RandomState::new();
        Breaker { backoff, circuit: Circuit::Closed, failures: 0, random, draws: 0 }
    }

    /// What it lets pass now.
    #[inline]
    pub fn circuit(&self) -> Circuit {
        self.circuit
    }

    /// The next attempt begins.
    pub fn attempt(&mut self) {
        if self.circuit != Circuit::Closed {
            self.circuit = Circuit::HalfOpen;
        }
    }

    /// The attempt has succeeded. The failures are forgotten only when the connection lasts.
    pub fn succeeded(&mut self) {
        self.circuit = Circuit::Closed;
    }

    /// The attempt has failed; returns when the next one is due, in monotonic ns.
    pub fn failed(&mut self, now_ns: u64) -> u64 {
        let until_ns = now_ns.saturating_add(self.delay_ns());
        self.failures = self.failures.saturating_add(1);
        self.circuit = Circuit::Open { until_ns };
        until_ns
    }

    /// A connection that stood has been lost. After one that had lasted calls may wait for the next, which is due at once.
    pub fn lost(&mut self, now_ns: u64, lasted_ns: u64) -> u64 {
        if u128::from(lasted_ns) < STABLE_MIN.as_nanos() {
            return self.failed(now_ns);
        }
        self.failures = 0;
        self.circuit = Circuit::Closed;
        now_ns
    }

    /// Half of the doubled delay for sure, the other half at random.
    fn delay_ns(&mut self) -> u64 {
        let doubled = self.backoff.delay_min.saturating_mul(1 << self.failures.min(20));
        let delay_ns = doubled.min(self.backoff.delay_max).as_nanos() as u64;
        self.draws += 1;
        delay_ns / 2 + self.random.hash_one(self.draws) % (delay_ns / 2 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG_NS: u64 = STABLE_MIN.as_nanos() as u64;

    #[test]
    fn the_delay_doubles_up_to_its_bound_and_is_spread() {
        let backoff =
            Backoff { delay_min: Duration::from_millis(10), delay_max: Duration::from_millis(100) };
        let mut breaker = Breaker::new(backoff);
        for expected_ms in [10, 20, 40, 80, 100, 100, 100] {
            let until_ns = breaker.failed(1_000);
            assert_eq!(breaker.circuit(), Circuit::Open { until_ns });
            let delay_ms = (until_ns - 1_000) as f64 / 1e6;
            let expected_ms = f64::from(expected_ms);
            assert!(
                (expected_ms / 2.0..=expected_ms).contains(&delay_ms),
                "{delay_ms} {expected_ms}"
            );
            breaker.attempt();
            assert_eq!(breaker.circuit(), Circuit::HalfOpen);
        }
        let delays: Vec<u64> = (0..10).map(|_| breaker.failed(0)).collect();
        assert!(delays.iter().any(|delay| *delay != delays[0]), "{delays:?}");
    }

    #[test]
    fn a_connection_that_lasted_is_followed_by_another_at_once() {
        let mut breaker = Breaker::new(Backoff::default());
        breaker.attempt();
        assert_eq!(breaker.circuit(), Circuit::Closed, "calls wait for the first attempt");
        breaker.succeeded();
        assert_eq!(breaker.lost(7, LONG_NS), 7);
        assert_eq!(breaker.circuit(), Circuit::Closed);
        breaker.attempt();
        breaker.succeeded();
        assert!(breaker.lost(7, LONG_NS - 1) > 7, "one that comes and goes is waited for");
        breaker.attempt();
        assert_eq!(breaker.circuit(), Circuit::HalfOpen);
    }
}
