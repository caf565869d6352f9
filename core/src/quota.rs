//! What a namespace may use at a time: requests and bytes a second, and streamed calls that are open.
//!
//! A namespace's home shard counts for it, alone: two numbers for each namespace, no lock, no allocation, and no clock but the
//! time at which a call came in. Each rate is kept as the time until which what was used is paid for (the generic cell rate
//! algorithm, ITU-T I.371): it may run ahead of the clock by [`BURST_NS`], so that in any span of t seconds no more than t + 1
//! seconds' worth passes. A message larger than a second's worth passes when there is any room, and is paid for afterwards.
//! A refusal says when the next call has a chance. A quota may be another one from one moment to the next ([`QuotaInForce`]): what was
//! counted by the one before is forgotten then.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use prism_adapters::{Error, Kind};
use prism_io::grpc::{Code, Status};
use prism_io::h2::StreamId;
use prism_io::server::Connection;

use crate::config::Quotas;
use crate::config::described::{ByteRate, Rate};
use crate::status;

/// For how long what was not used may be used at once.
const BURST_NS: u64 = 1_000_000_000;
/// After how long a subscription that was refused may be tried again; nobody knows when another one ends.
const SUBSCRIPTION_RETRY: Duration = Duration::from_secs(1);

/// The reason of a refusal for want of requests.
pub(crate) const QUOTA_REQUESTS: &str = "QUOTA_REQUESTS";
/// And of one for want of bytes.
pub(crate) const QUOTA_BYTES: &str = "QUOTA_BYTES";
/// To what `RetryInfo` is rounded up.
const RETRY_STEP_NS: u64 = 1_000_000;

/// Whether a call was refused for want of requests or bytes, of which there may be many.
#[inline]
pub(crate) fn is_used_up(error: &Error) -> bool {
    error.kind() == Kind::ResourceExhausted
        && (error.reason() == QUOTA_REQUESTS || error.reason() == QUOTA_BYTES)
}

/// A refusal with what it is answered with, encoded: all that come in a millisecond share it.
#[derive(Debug)]
pub(crate) struct Refusal {
    error: Error,
    details: Bytes,
}

impl Refusal {
    fn new(error: Error) -> Self {
        Self { details: status::details(&error), error }
    }

    /// Answers a call with it.
    pub(crate) fn send(&self, connection: &Connection, stream: StreamId) {
        let status = Status {
            code: Code::from_number(self.error.kind().grpc_code().into()),
            message: self.error.message(),
            details: &self.details,
            trailers: &[],
        };
        connection.fail(stream, &status);
    }
}

/// The refusal that was put together last.
#[derive(Debug)]
struct LastRefusal {
    exceeded: Exceeded,
    epoch: u32,
    refusal: Rc<Refusal>,
}

/// The quota of a namespace as it is counted: what its requests and bytes are worth.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Quota {
    /// What one request is worth; 0: requests are not counted.
    request_ns: u64,
    /// What one byte is worth; 0: bytes are not counted.
    byte_ns: f64,
    /// Which of the namespace's quotas it is.
    epoch: u32,
}

impl Quota {
    fn new(asked: Quotas, epoch: u32) -> Self {
        let second_ns = BURST_NS as f64;
        // Rounded up: never more than was asked for.
        let request_ns =
            asked.requests_per_second.map_or(0.0, |rate| second_ns / rate).ceil() as u64;
        let byte_ns = asked.bytes_per_second.map_or(0.0, |rate| second_ns / rate as f64);
        Self { request_ns, byte_ns, epoch }
    }

    /// Whether calls are counted at all.
    #[inline]
    pub(crate) fn counts_calls(&self) -> bool {
        self.request_ns != 0 || self.byte_ns != 0.0
    }
}

/// The quota of a namespace that is served, which may change meanwhile: one thread sets it, every shard reads it without a lock.
#[derive(Debug)]
pub(crate) struct QuotaInForce {
    request_ns: AtomicU64,
    /// As bits.
    byte_ns: AtomicU64,
    epoch: AtomicU32,
    asked: Asked,
}

/// As it was asked for, each number as bits; [`NOTHING`]: not at all.
#[derive(Debug)]
struct Asked {
    requests_per_second: AtomicU64,
    bytes_per_second: AtomicU64,
    subscriptions: AtomicU64,
}

/// No rate and no number is written so.
const NOTHING: u64 = u64::MAX;

impl QuotaInForce {
    pub(crate) fn new(asked: Quotas) -> Self {
        let number = || AtomicU64::new(NOTHING);
        let of = || Asked {
            requests_per_second: number(),
            bytes_per_second: number(),
            subscriptions: number(),
        };
        let (request_ns, byte_ns) = (AtomicU64::new(0), AtomicU64::new(0));
        let in_force = Self { request_ns, byte_ns, epoch: AtomicU32::new(0), asked: of() };
        in_force.set(asked);
        in_force
    }

    /// From now on it is this one. For one thread alone.
    pub(crate) fn set(&self, asked: Quotas) {
        if self.epoch.load(Relaxed) != 0 && self.asked() == asked {
            return;
        }
        let quota = Quota::new(asked, 0);
        let bits = |number: Option<u64>| number.unwrap_or(NOTHING);
        let of = &self.asked;
        of.requests_per_second.store(bits(asked.requests_per_second.map(f64::to_bits)), Relaxed);
        of.bytes_per_second.store(bits(asked.bytes_per_second), Relaxed);
        of.subscriptions.store(bits(asked.subscriptions.map(u64::from)), Relaxed);
        self.request_ns.store(quota.request_ns, Relaxed);
        self.byte_ns.store(quota.byte_ns.to_bits(), Relaxed);
        self.epoch.fetch_add(1, Relaxed);
    }

    /// As it is counted now.
    #[inline]
    pub(crate) fn now(&self) -> Quota {
        Quota {
            request_ns: self.request_ns.load(Relaxed),
            byte_ns: f64::from_bits(self.byte_ns.load(Relaxed)),
            epoch: self.epoch.load(Relaxed),
        }
    }

    /// As it was asked for.
    fn asked(&self) -> Quotas {
        let number = |of: &AtomicU64| Some(of.load(Relaxed)).filter(|bits| *bits != NOTHING);
        Quotas {
            requests_per_second: number(&self.asked.requests_per_second).map(f64::from_bits),
            bytes_per_second: number(&self.asked.bytes_per_second),
            subscriptions: number(&self.asked.subscriptions).map(|count| count as u32),
        }
    }
}

/// What there was too much of, and in how many nanoseconds there is room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exceeded {
    Requests(u64),
    Bytes(u64),
}

impl Exceeded {
    /// So that many calls are refused in the same words.
    fn rounded_up(self) -> Self {
        let round = |left_ns: u64| left_ns.div_ceil(RETRY_STEP_NS).saturating_mul(RETRY_STEP_NS);
        match self {
            Self::Requests(left_ns) => Self::Requests(round(left_ns)),
            Self::Bytes(left_ns) => Self::Bytes(round(left_ns)),
        }
    }
}

/// What a namespace has used, as a shard counts it.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// Monotonic time until which requests are paid for, in ns.
    requests_ns: Cell<u64>,
    /// The same of bytes.
    bytes_ns: Cell<u64>,
    /// Its home has no room for a request before this time, in ns.
    closed_until_ns: Cell<u64>,
    /// The quota that all of these were counted by.
    epoch: Cell<u32>,
    subscriptions: Cell<u32>,
    last_refusal: RefCell<Option<LastRefusal>>,
}

impl Usage {
    /// Counts a request of so many bytes that came at `now_ns`, unless there is no room for it.
    #[inline]
    pub(crate) fn charge(&self, quota: &Quota, bytes: usize, now_ns: u64) -> Result<(), Exceeded> {
        self.count_by(quota);
        let requests_ns = self.requests_ns.get().max(now_ns);
        let ahead_ns = requests_ns - now_ns;
        let ahead_max_ns = BURST_NS.saturating_sub(quota.request_ns);
        if quota.request_ns != 0 && ahead_ns > ahead_max_ns {
            return Err(Exceeded::Requests(ahead_ns - ahead_max_ns));
        }
        let bytes_ns = self.bytes_ns.get().max(now_ns);
        let ahead_ns = bytes_ns - now_ns;
        if quota.byte_ns != 0.0 && ahead_ns >= BURST_NS {
            return Err(Exceeded::Bytes(ahead_ns - BURST_NS + 1));
        }
        self.requests_ns.set(requests_ns.saturating_add(quota.request_ns));
        self.bytes_ns.set(bytes_ns.saturating_add((bytes as f64 * quota.byte_ns) as u64));
        Ok(())
    }

    /// Forgets what was counted by another quota.
    #[inline]
    fn count_by(&self, quota: &Quota) {
        if self.epoch.get() != quota.epoch {
            self.epoch.set(quota.epoch);
            self.requests_ns.set(0);
            self.bytes_ns.set(0);
            self.closed_until_ns.set(0);
        }
    }

    /// Has calls refused here that would cross to the namespace's home in vain.
    pub(crate) fn close(&self, until_ns: u64) {
        self.closed_until_ns.set(until_ns);
    }

    /// Whether the home has room for a request, as far as is known here.
    #[inline]
    pub(crate) fn look(&self, quota: &Quota, now_ns: u64) -> Result<(), Exceeded> {
        self.count_by(quota);
        match self.closed_until_ns.get().checked_sub(now_ns) {
            None | Some(0) => Ok(()),
            Some(left_ns) => Err(Exceeded::Requests(left_ns)),
        }
    }

    /// The refusal of a call for which there is no room.
    #[cold]
    pub(crate) fn refused(&self, quota: &QuotaInForce, name: &str, exceeded: Exceeded) -> Error {
        let (exceeded, epoch) = (exceeded.rounded_up(), quota.epoch.load(Relaxed));
        let mut last = self.last_refusal.borrow_mut();
        if let Some(last) = last.as_ref()
            && (last.exceeded, last.epoch) == (exceeded, epoch)
        {
            return last.refusal.error.clone();
        }
        let error = refused(quota, name, exceeded);
        let refusal = Rc::new(Refusal::new(error.clone()));
        *last = Some(LastRefusal { exceeded, epoch, refusal });
        error
    }

    /// What a refusal is answered with: what is at hand where it is the last one.
    pub(crate) fn refusal(&self, error: &Error) -> Rc<Refusal> {
        let last = self.last_refusal.borrow();
        let last = last.as_ref().filter(|last| last.refusal.error.is_clone_of(error));
        last.map_or_else(|| Rc::new(Refusal::new(error.clone())), |last| last.refusal.clone())
    }

    /// Counts one more streamed call, for as long as its place is held.
    pub(crate) fn subscribe(
        &self,
        quota: &QuotaInForce,
        name: &str,
    ) -> Result<Subscription<'_>, Error> {
        let open = self.subscriptions.get();
        if let Some(most) = quota.asked().subscriptions.filter(|most| open >= *most) {
            let text = format!(
                "namespace {name} has its {most} subscriptions open; end one, or have the platform's owner raise the quota `subscriptions`"
            );
            return Err(refusal("QUOTA_SUBSCRIPTIONS", name, text, SUBSCRIPTION_RETRY)
                .quota(format!("namespace:{name}"), format!("{most} subscriptions")));
        }
        self.subscriptions.set(open + 1);
        Ok(Subscription(&self.subscriptions))
    }
}

/// The place of a streamed call; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Subscription<'a>(&'a Cell<u32>);

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The refusal of a call for which a namespace's quota has no room.
fn refused(quota: &QuotaInForce, name: &str, exceeded: Exceeded) -> Error {
    let asked = quota.asked();
    let (reason, key, most, left_ns) = match exceeded {
        Exceeded::Requests(left_ns) => {
            let rate = Rate(asked.requests_per_second.unwrap_or_default());
            (QUOTA_REQUESTS, "requests", format!("{rate} requests"), left_ns)
        }
        Exceeded::Bytes(left_ns) => {
            let rate = ByteRate(asked.bytes_per_second.unwrap_or_default());
            (QUOTA_BYTES, "bytes", format!("{rate} of requests"), left_ns)
        }
    };
    let text = format!(
        "namespace {name} has used up its quota of {most}; try again in {} ms, send less, or have the platform's owner raise \
         the quota `{key}`",
        left_ns.div_ceil(1_000_000)
    );
    refusal(reason, name, text, Duration::from_nanos(left_ns))
        .quota(format!("namespace:{name}"), most)
}

fn refusal(reason: &'static str, name: &str, text: String, retry: Duration) -> Error {
    Error::new(Kind::ResourceExhausted, reason, text)
        .with("namespace", name.to_owned())
        .retry_after(retry)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn asked(requests: Option<f64>, bytes: Option<u64>) -> Quotas {
        let (requests_per_second, bytes_per_second) = (requests, bytes);
        Quotas { requests_per_second, bytes_per_second, subscriptions: Some(2) }
    }

    fn quota(requests: Option<f64>, bytes: Option<u64>) -> Quota {
        Quota::new(asked(requests, bytes), 1)
    }

    /// How many of `asked` requests of so many bytes pass at a moment.
    fn pass(usage: &Usage, quota: &Quota, bytes: usize, now_ns: u64, asked: usize) -> usize {
        (0..asked).filter(|_| usage.charge(quota, bytes, now_ns).is_ok()).count()
    }

    #[test]
    fn a_second_of_requests_may_come_at_once_and_then_as_they_are_earned() {
        let (usage, quota) = (Usage::default(), quota(Some(100.0), None));
        let begin_ns = 50 * SECOND_NS;
        assert_eq!(pass(&usage, &quota, 10, begin_ns, 1000), 100);
        assert_eq!(usage.charge(&quota, 10, begin_ns), Err(Exceeded::Requests(10_000_000)));
        assert_eq!(usage.charge(&quota, 10, begin_ns + 9_999_999), Err(Exceeded::Requests(1)));
        assert_eq!(pass(&usage, &quota, 10, begin_ns + 10_000_000, 5), 1);
        assert_eq!(pass(&usage, &quota, 10, begin_ns + SECOND_NS / 2, 1000), 49);
        // What was not used is not saved up beyond a second's worth.
        assert_eq!(pass(&usage, &quota, 10, begin_ns + 1000 * SECOND_NS, 1000), 100);
    }

    #[test]
    fn a_rate_below_one_a_second_lets_one_pass_at_a_time() {
        let (usage, quota) = (Usage::default(), quota(Some(10.0 / 3600.0), None));
        assert_eq!(pass(&usage, &quota, 10, SECOND_NS, 5), 1);
        assert_eq!(pass(&usage, &quota, 10, 360 * SECOND_NS, 5), 0);
        assert_eq!(pass(&usage, &quota, 10, 361 * SECOND_NS + 1, 5), 1);
    }

    #[test]
    fn bytes_are_paid_for_even_where_one_message_is_more_than_a_second_of_them() {
        let (usage, quota) = (Usage::default(), quota(None, Some(1000)));
        assert_eq!(pass(&usage, &quota, 100, SECOND_NS, 50), 10);
        assert_eq!(usage.charge(&quota, 1, SECOND_NS), Err(Exceeded::Bytes(1)));
        assert_eq!(pass(&usage, &quota, 5000, 2 * SECOND_NS, 2), 1);
        // Five seconds' worth: the next has room when less than one is left to pay.
        assert_eq!(usage.charge(&quota, 1, 2 * SECOND_NS), Err(Exceeded::Bytes(4 * SECOND_NS + 1)));
        assert_eq!(pass(&usage, &quota, 1, 6 * SECOND_NS, 1), 0);
        assert_eq!(pass(&usage, &quota, 1, 6 * SECOND_NS + 1, 1), 1);
    }

    #[test]
    fn what_is_refused_is_not_counted_and_an_earlier_time_does_no_harm() {
        let (usage, both) = (Usage::default(), quota(Some(10.0), Some(1000)));
        assert_eq!(
            pass(&usage, &both, 500, SECOND_NS, 100),
            2,
            "bytes are what there is too few of"
        );
        assert_eq!(pass(&usage, &both, 500, 2 * SECOND_NS, 100), 2);
        // A call that came earlier, at another shard, and arrives later.
        assert!(usage.charge(&both, 1, SECOND_NS).is_err());
        assert_eq!(pass(&usage, &both, 0, 4 * SECOND_NS, 100), 10, "no refusal took a request");
        let none = quota(None, None);
        assert!(!none.counts_calls());
        assert_eq!(pass(&Usage::default(), &none, usize::MAX, 0, 1000), 1000);
    }

    #[test]
    fn a_door_that_is_closed_opens_at_its_time() {
        let (usage, quota) = (Usage::default(), quota(Some(1.0), None));
        assert_eq!(usage.look(&quota, 0), Ok(()));
        usage.close(2 * SECOND_NS);
        assert_eq!(usage.look(&quota, SECOND_NS), Err(Exceeded::Requests(SECOND_NS)));
        assert_eq!(usage.look(&quota, 2 * SECOND_NS), Ok(()));
    }

    #[test]
    fn subscriptions_have_places() {
        let (usage, quota) = (Usage::default(), QuotaInForce::new(asked(None, None)));
        let first = usage.subscribe(&quota, "orders").expect("a place");
        let _second = usage.subscribe(&quota, "orders").expect("a place");
        let error = usage.subscribe(&quota, "orders").expect_err("no place");
        assert_eq!(error.reason(), "QUOTA_SUBSCRIPTIONS");
        drop(first);
        usage.subscribe(&quota, "orders").expect("a place again");
    }

    #[test]
    fn a_refusal_says_whose_quota_how_much_and_when() {
        let quota = QuotaInForce::new(asked(Some(5000.0), None));
        let error = refused(&quota, "orders", Exceeded::Requests(1_500_000));
        assert_eq!((error.kind(), error.reason()), (Kind::ResourceExhausted, QUOTA_REQUESTS));
        assert!(error.message().contains("5k/s requests; try again in 2 ms"), "{error}");
        let violation = error.quota_violation().expect("a quota");
        assert_eq!(violation.subject, "namespace:orders");
        assert_eq!(error.retry_delay(), Some(Duration::from_nanos(1_500_000)));
    }

    #[test]
    fn refusals_of_one_millisecond_are_put_together_once() {
        let quota = QuotaInForce::new(asked(Some(5000.0), Some(10)));
        let usage = Usage::default();
        let refused = |exceeded| usage.refused(&quota, "orders", exceeded);
        let first = refused(Exceeded::Requests(1_000_001));
        assert_eq!(first.retry_delay(), Some(Duration::from_millis(2)), "never too early");
        assert!(refused(Exceeded::Requests(1_999_999)).is_clone_of(&first));
        assert!(Rc::ptr_eq(&usage.refusal(&first), &usage.refusal(&first)));
        for other in [Exceeded::Requests(2_000_001), Exceeded::Bytes(1_000_001)] {
            assert!(!refused(other).is_clone_of(&first));
        }
        // One that another has taken the place of is answered with what it says all the same.
        assert_eq!(usage.refusal(&first).error, first);
        let before = refused(Exceeded::Requests(1));
        quota.set(asked(Some(1.0), None));
        let after = refused(Exceeded::Requests(1));
        assert!(before.message().contains("5k/s") && after.message().contains("1/s"), "{after}");
    }

    #[test]
    fn another_quota_counts_from_the_moment_on_that_it_is_set() {
        let (usage, quota) =
            (Usage::default(), QuotaInForce::new(asked(Some(10.0 / 3600.0), Some(1))));
        assert!(quota.now().counts_calls());
        assert_eq!(pass(&usage, &quota.now(), 4000, SECOND_NS, 5), 1);
        usage.close(900 * SECOND_NS);
        // The same again changes nothing.
        quota.set(asked(Some(10.0 / 3600.0), Some(1)));
        assert!(usage.look(&quota.now(), SECOND_NS).is_err());
        assert_eq!(pass(&usage, &quota.now(), 1, SECOND_NS, 5), 0);
        quota.set(asked(Some(100.0), Some(1_000_000)));
        assert_eq!(usage.look(&quota.now(), SECOND_NS), Ok(()));
        assert_eq!(pass(&usage, &quota.now(), 1, SECOND_NS, 500), 100);
        quota.set(asked(Some(4.0), None));
        assert_eq!(pass(&usage, &quota.now(), 1, SECOND_NS, 500), 4);
        quota.set(asked(None, None));
        assert!(!quota.now().counts_calls());
        assert_eq!(quota.asked(), asked(None, None));
    }
}
