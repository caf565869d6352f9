//! The connections that are open, for people who look: who is at the other end, and what has passed.
//!
//! A connection's numbers have one writer, its shard's thread, which brings them up to date four times a second; they are read by
//! whoever asks. The list takes a lock when a connection begins and when it ends, and never in between. Keeps nothing of a
//! connection that has ended.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock;
use crate::grpc::Counts;

/// The connections of one shard. Shared with the thread that shows them.
#[derive(Debug, Default)]
pub struct Registry {
    open: Mutex<BTreeMap<u64, Arc<Numbers>>>,
}

/// One connection's numbers.
#[derive(Debug)]
struct Numbers {
    peer: SocketAddr,
    since_ns: u64,
    passed: [AtomicU64; NUMBERS],
}

const NUMBERS: usize = 13;

/// What has passed over a connection, and what is going on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Calls and messages.
    pub counts: Counts,
    /// Calls that have not ended.
    pub open_streams: u64,
    /// Bytes that it holds: of requests that are not whole, and of answers that wait.
    pub buffered_bytes: u64,
    /// Bytes read.
    pub received_bytes: u64,
    /// Bytes written.
    pub sent_bytes: u64,
}

/// What a connection looks like from outside, at one moment. A number may be a moment older than its neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionView {
    /// Its number since the start of its shard, from 1.
    pub number: u64,
    /// The address at the other end.
    pub peer: SocketAddr,
    /// When it was accepted, monotonic nanoseconds.
    pub since_ns: u64,
    /// What has passed.
    pub passed: Passed,
}

impl Registry {
    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Numbers>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a connection; it leaves with what is returned.
    pub(super) fn enter(self: &Arc<Self>, number: u64, peer: SocketAddr) -> Entry {
        let numbers =
            Arc::new(Numbers { peer, since_ns: clock::monotonic_ns(), passed: Default::default() });
        self.open().insert(number, numbers.clone());
        Entry { registry: self.clone(), number, numbers }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open().len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The oldest `count` connections, oldest first.
    pub fn view(&self, count: usize) -> Vec<ConnectionView> {
        let open = self.open();
        open.iter().take(count).map(|(number, numbers)| numbers.view(*number)).collect()
    }
}

impl Passed {
    fn to_numbers(self) -> [u64; NUMBERS] {
        let Counts {
            streams_started,
            streams_succeeded,
            streams_failed,
            messages_received,
            messages_sent,
            keepalives_sent,
            last_stream_ns,
            last_received_ns,
            last_sent_ns,
        } = self.counts;
        [
            streams_started,
            streams_succeeded,
            streams_failed,
            messages_received,
            messages_sent,
            keepalives_sent,
            last_stream_ns,
            last_received_ns,
            last_sent_ns,
            self.open_streams,
            self.buffered_bytes,
            self.received_bytes,
            self.sent_bytes,
        ]
    }

    fn of_numbers(numbers: [u64; NUMBERS]) -> Self {
        let [
            streams_started,
            streams_succeeded,
            streams_failed,
            messages_received,
            messages_sent,
            keepalives_sent,
            last_stream_ns,
            last_received_ns,
            last_sent_ns,
            open_streams,
            buffered_bytes,
            received_bytes,
            sent_bytes,
        ] = numbers;
        let counts = Counts {
            streams_started,
            streams_succeeded,
            streams_failed,
            messages_received,
            messages_sent,
            keepalives_sent,
            last_stream_ns,
            last_received_ns,
            last_sent_ns,
        };
        Self { counts, open_streams, buffered_bytes, received_bytes, sent_bytes }
    }
}

impl Numbers {
    fn view(&self, number: u64) -> ConnectionView {
        let passed = Passed::of_numbers(std::array::from_fn(|at| self.passed[at].load(Relaxed)));
        ConnectionView { number, peer: self.peer, since_ns: self.since_ns, passed }
    }
}

/// A connection's place in the list; given up when it is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    registry: Arc<Registry>,
    number: u64,
    numbers: Arc<Numbers>,
}

impl Entry {
    /// Shows what has passed by now.
    pub(super) fn show(&self, passed: Passed) {
        for (shown, now) in self.numbers.passed.iter().zip(passed.to_numbers()) {
            shown.store(now, Relaxed);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.registry.open().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_seen_while_they_are_open() {
        let registry = Arc::new(Registry::default());
        let peer = "127.0.0.1:9".parse().unwrap();
        let (first, second) = (registry.enter(1, peer), registry.enter(2, peer));
        let counts = Counts {
            streams_started: 1,
            streams_succeeded: 2,
            streams_failed: 3,
            messages_received: 4,
            messages_sent: 5,
            keepalives_sent: 6,
            last_stream_ns: 7,
            last_received_ns: 8,
            last_sent_ns: 9,
        };
        let passed = Passed {
            counts,
            open_streams: 10,
            buffered_bytes: 11,
            received_bytes: 12,
            sent_bytes: 13,
        };
        second.show(passed);
        let seen = registry.view(10);
        assert_eq!((seen.len(), seen[0].number, seen[1].number), (2, 1, 2));
        assert_eq!((seen[0].passed, seen[1].passed), (Passed::default(), passed));
        assert_eq!(registry.view(1).len(), 1);
        drop(first);
        assert_eq!(registry.view(10)[0].number, 2);
        drop(second);
        assert!(registry.is_empty());
    }
}
