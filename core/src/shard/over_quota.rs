//! Refusals for want of quota: what a namespace that asks for far too much costs the others is bounded.
//!
//! Three things bound it. The refusal of a namespace is put together and encoded once for each millisecond of its `RetryInfo`
//! ([`crate::quota::Refusal`]). A connection that is refused often is answered late, and its answers leave together: a caller that asks
//! again as soon as it was refused is slowed to so many calls in [`DELAY_NS`] as it keeps in flight, and a flood costs one write for many
//! answers. And instead of a line of the log for each there is one for each namespace and reason in [`LINES_NS`], with a count.
//!
//! What is held back is bounded by connection and by shard; beyond that it is answered at once. No call that was let in waits for any of
//! it, also on the same connection: the streams that are held are a quarter of those that a connection may have.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use prism_io::h2::StreamId;
use prism_io::rt::{self, Signal};
use prism_io::server::{Connection, Refused};
use prism_io::{clock, grpc};

use crate::namespaces::Namespaces;
use crate::quota::{QUOTA_BYTES, QUOTA_REQUESTS, Refusal};

/// A connection is refused at once so often: 100 times a second.
const REFUSAL_NS: u64 = 10_000_000;
/// And so many times more at the beginning, or after a rest.
const AT_ONCE: u64 = 32;
/// How long the answer of a connection that is refused more often waits.
const DELAY_NS: u64 = 20_000_000;
/// Answers that a shard holds back.
const HELD_MAX: usize = 16 * 1024;
/// The share of a connection's streams that may wait so.
const STREAMS_SHARE: u32 = 4;
/// How often the log speaks of a namespace's refusals.
const LINES_NS: u64 = 10_000_000_000;

/// The refusals of one shard.
pub(crate) struct OverQuota {
    /// In the order in which they are due.
    groups: RefCell<VecDeque<Group>>,
    /// The number of the first of them, from 1.
    first: Cell<u64>,
    held: Cell<usize>,
    /// Most that one connection may have held.
    of_connection_max: usize,
    came: Signal,
    /// By place in the configuration.
    counts: Box<[Count]>,
    /// Some were counted that the log does not speak of yet.
    is_untold: Cell<bool>,
}

/// Answers that one connection waits for.
struct Group {
    connection: Rc<Connection>,
    due_ns: u64,
    answers: Vec<(StreamId, Rc<Refusal>)>,
}

/// Of one namespace, since the last line.
#[derive(Default)]
struct Count {
    requests: Cell<u64>,
    bytes: Cell<u64>,
    /// The log has spoken of it, and does not again before.
    quiet_until_ns: Cell<u64>,
}

impl OverQuota {
    pub(crate) fn new(places: usize, limits: &grpc::Limits) -> Self {
        Self {
            groups: RefCell::default(),
            first: Cell::new(1),
            held: Cell::new(0),
            of_connection_max: (limits.streams_max / STREAMS_SHARE).max(1) as usize,
            came: Signal::default(),
            counts: (0..places).map(|_| Count::default()).collect(),
            is_untold: Cell::new(false),
        }
    }

    /// Counts a refusal, for the log.
    pub(crate) fn count(&self, namespace: usize, reason: &str) {
        let count = &self.counts[namespace];
        let count = if reason == QUOTA_BYTES { &count.bytes } else { &count.requests };
        count.set(count.get() + 1);
        self.is_untold.set(true);
    }

    /// Refuses a call of a connection, now or in a while.
    pub(crate) fn refuse(
        &self,
        (connection, stream): (&Rc<Connection>, StreamId),
        refusal: Rc<Refusal>,
        deadline_ns: u64,
        now_ns: u64,
    ) {
        let is_late = is_refused_often(connection, now_ns)
            && now_ns + DELAY_NS < deadline_ns
            && self.held.get() < HELD_MAX;
        if !is_late || !self.hold(connection, (stream, refusal.clone()), now_ns) {
            refusal.send(connection, stream);
        }
    }

    /// False where the connection has as many as it may.
    fn hold(
        &self,
        connection: &Rc<Connection>,
        answer: (StreamId, Rc<Refusal>),
        now_ns: u64,
    ) -> bool {
        let mut groups = self.groups.borrow_mut();
        let Refused { group, .. } = connection.refused().get();
        let known = group.checked_sub(self.first.get()).map(|at| at as usize);
        match known.and_then(|at| groups.get_mut(at)) {
            Some(group) if group.answers.len() >= self.of_connection_max => return false,
            Some(group) => group.answers.push(answer),
            None => {
                let number = self.first.get() + groups.len() as u64;
                connection.refused().set(Refused { group: number, ..connection.refused().get() });
                let (connection, due_ns) = (connection.clone(), now_ns + DELAY_NS);
                groups.push_back(Group { connection, due_ns, answers: vec![answer] });
                self.came.set();
            }
        }
        self.held.set(self.held.get() + 1);
        true
    }

    /// Takes the first group if it is due, or says when it is; nothing where nothing waits.
    fn next(&self, now_ns: u64) -> Option<Result<Group, u64>> {
        let mut groups = self.groups.borrow_mut();
        let due_ns = groups.front()?.due_ns;
        if due_ns > now_ns {
            return Some(Err(due_ns));
        }
        let group = groups.pop_front()?;
        self.first.set(self.first.get() + 1);
        self.held.set(self.held.get() - group.answers.len());
        Some(Ok(group))
    }

    /// Answers what waits when it is due, for ever. Everybody else has a turn between two connections.
    pub(crate) async fn answer(&self) {
        loop {
            let now_ns = clock::monotonic_ns();
            match self.next(now_ns) {
                None => self.came.wait().await,
                Some(Err(due_ns)) => rt::sleep(Duration::from_nanos(due_ns - now_ns)).await,
                Some(Ok(Group { connection, answers, .. })) => {
                    for (stream, refusal) in answers {
                        refusal.send(&connection, stream);
                    }
                    rt::yield_now().await;
                }
            }
        }
    }

    /// Has the log speak of what was refused.
    pub(crate) fn tell(&self, namespaces: &Namespaces, now_ns: u64) {
        if !self.is_untold.replace(false) {
            return;
        }
        for (index, count) in self.counts.iter().enumerate() {
            let (requests, bytes) = (count.requests.get(), count.bytes.get());
            if requests + bytes == 0 {
                continue;
            }
            if now_ns < count.quiet_until_ns.get() {
                self.is_untold.set(true);
                continue;
            }
            count.quiet_until_ns.set(now_ns + LINES_NS);
            for (reason, counter) in
                [(QUOTA_REQUESTS, &count.requests), (QUOTA_BYTES, &count.bytes)]
            {
                let refused = counter.take();
                if refused > 0 {
                    tracing::warn!(
                        namespace = &*namespaces.at(index).name,
                        reason,
                        refused,
                        "calls were refused because the namespace has used up its quota; raise it in the platform file, or have its \
                         callers keep to RetryInfo"
                    );
                }
            }
        }
    }
}

/// Whether a connection is refused more often than it is answered at once; counts this time.
fn is_refused_often(connection: &Connection, now_ns: u64) -> bool {
    let refused = connection.refused().get();
    let paid_until_ns = refused.paid_until_ns.max(now_ns) + REFUSAL_NS;
    if paid_until_ns - now_ns > AT_ONCE * REFUSAL_NS {
        return true;
    }
    connection.refused().set(Refused { paid_until_ns, ..refused });
    false
}

#[cfg(test)]
mod tests {
    use prism_io::grpc::Limits;
    use prism_io::server::Options;

    use super::*;
    use crate::config::Quotas;
    use crate::quota::{QuotaInForce, Usage};

    const NOW_NS: u64 = 1_000_000_000_000;

    fn refusal() -> Rc<Refusal> {
        let quotas = Quotas { requests_per_second: Some(1.0), ..Quotas::default() };
        let (usage, quota) = (Usage::default(), QuotaInForce::new(quotas));
        usage.charge(&quota.now(), 1, NOW_NS).expect("the first has room");
        let exceeded = usage.charge(&quota.now(), 1, NOW_NS).expect_err("no second has");
        let error = usage.refused(&quota, "orders", exceeded);
        usage.refusal(&error)
    }

    fn connection() -> (Rc<Connection>, StreamId) {
        let options = Options::new(Limits::default(), |_| None, 1);
        Connection::to_nowhere(&options, ([127, 0, 0, 1], 1).into())
    }

    #[test]
    fn who_is_refused_often_waits_and_nobody_else() {
        let over = OverQuota::new(1, &Limits { streams_max: 40, ..Limits::default() });
        let ((often, stream), (seldom, _), refusal) = (connection(), connection(), refusal());
        let refuse = |connection, deadline_ns, now_ns| {
            over.refuse((connection, stream), refusal.clone(), deadline_ns, now_ns);
        };
        for _ in 0..AT_ONCE {
            refuse(&often, u64::MAX, NOW_NS);
        }
        assert_eq!(over.held.get(), 0);
        for _ in 0..100 {
            refuse(&often, u64::MAX, NOW_NS);
        }
        assert_eq!(over.held.get(), 10, "a quarter of its streams");
        // Neither does another connection wait, nor a call that has not the time.
        refuse(&seldom, u64::MAX, NOW_NS);
        let (hasty, _) = connection();
        for _ in 0..=AT_ONCE {
            refuse(&hasty, NOW_NS + DELAY_NS, NOW_NS);
        }
        assert_eq!(over.held.get(), 10);
        assert!(matches!(over.next(NOW_NS), Some(Err(due_ns)) if due_ns == NOW_NS + DELAY_NS));
        // They leave together, and a next one waits for a time of its own.
        let group = over.next(NOW_NS + DELAY_NS).expect("one").expect("due");
        assert!(Rc::ptr_eq(&group.connection, &often) && group.answers.len() == 10);
        assert!(over.next(NOW_NS + DELAY_NS).is_none() && over.held.get() == 0);
        refuse(&often, u64::MAX, NOW_NS + 1);
        assert_eq!(over.held.get(), 1);
        // After a rest it is answered at once again.
        refuse(&often, u64::MAX, NOW_NS + AT_ONCE * REFUSAL_NS);
        assert_eq!(over.held.get(), 1);
    }

    #[test]
    fn a_shard_holds_no_more_than_its_bound() {
        let over = OverQuota::new(1, &Limits::default());
        let refusal = refusal();
        let connections: Vec<_> = (0..HELD_MAX / 200).map(|_| connection()).collect();
        for (connection, stream) in &connections {
            for _ in 0..AT_ONCE + 300 {
                over.refuse((connection, *stream), refusal.clone(), u64::MAX, NOW_NS);
            }
        }
        assert_eq!(over.held.get(), HELD_MAX);
    }
}
