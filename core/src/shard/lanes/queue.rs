//! What a lane still has to bring to its backend. It does no I/O and asks no clock.

use std::collections::{HashMap, VecDeque};

use prism_adapters::Reply;
use prism_proto::catalogue::Method;
use prism_proto::wire;
use prism_wal::{DurableBatch, Record};

use super::HISTORY_STEP;
use crate::request::Logged;

/// Bytes of batches that one lane may pin; older records are read again from the log.
const WINDOW_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Records of one batch to the backend.
pub(super) const BATCH_RECORDS_MAX: usize = 512;
/// Bytes of their requests, but for one record that is longer by itself.
pub(super) const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Keys that are told apart; with more of them pending every read waits for all.
const KEYS_MAX: usize = 64 * 1024;

/// A record in a batch that is kept in memory.
#[derive(Clone)]
pub(super) struct Pinned {
    pub(super) lane_seq: u64,
    batch: DurableBatch,
    index: usize,
    /// Bytes of its batch, counted at the first of the lane's records in it.
    bytes: usize,
}

impl Pinned {
    pub(super) fn record(&self) -> Record<'_> {
        self.batch.record(self.index)
    }
}

/// A call that waits for its backend's answer.
pub(super) struct Waiting {
    pub(super) lane_seq: u64,
    pub(super) logged: Logged,
    /// The answer as far as the log can give it.
    pub(super) from_log: Option<Reply>,
}

/// A point up to which everything is confirmed.
#[derive(Clone, Copy)]
struct Mark {
    /// When it was begun; it takes what is confirmed within [`HISTORY_STEP`].
    begun_ns: u64,
    /// When the last of it was confirmed.
    at_ns: u64,
    lsn: u64,
    seq: u64,
}

/// See the module.
pub(super) struct Queue {
    /// The newest records that are not confirmed, contiguous up to the last.
    window: VecDeque<Pinned>,
    window_bytes: usize,
    /// Who waits for the backend's answer, in the order of records.
    pub(super) calls: VecDeque<Waiting>,
    /// The lane's records up to here are in the backend.
    pub(super) confirmed_seq: u64,
    /// No unconfirmed record has an LSN up to this one.
    pub(super) confirmed_lsn: u64,
    /// The last durable record.
    pub(super) last_seq: u64,
    pub(super) last_lsn: u64,
    /// Whether the backend's watermark is known.
    pub(super) is_resumed: bool,
    /// The oldest record that the log is sure to hold.
    pub(super) oldest_seq: u64,
    /// LSN from which on the log is sure to hold the lane's records.
    pub(super) oldest_lsn: u64,
    /// Confirmations that are not old enough to be relied on, the oldest first.
    history: VecDeque<Mark>,
    /// The last write of each single key that may be pending.
    keys: HashMap<Box<[u8]>, u64, ahash::RandomState>,
    /// The last record that may concern any key.
    barrier_seq: u64,
}

impl Queue {
    /// Of a lane whose last record has the number `last_seq`.
    pub(super) fn new(found: Option<Found>, last_seq: u64) -> Self {
        let (first_seq, first_lsn, last_lsn) = match found {
            Some(found) => (found.first_seq, found.first_lsn, found.last_lsn),
            None => (last_seq + 1, u64::MAX, 0),
        };
        Queue {
            window: VecDeque::new(),
            window_bytes: 0,
            calls: VecDeque::new(),
            confirmed_seq: first_seq - 1,
            confirmed_lsn: first_lsn.saturating_sub(1),
            last_seq,
            last_lsn,
            is_resumed: false,
            oldest_seq: first_seq,
            oldest_lsn: first_lsn,
            history: VecDeque::new(),
            keys: HashMap::default(),
            barrier_seq: last_seq,
        }
    }

    /// Records that are not confirmed, as far as is known.
    pub(super) fn pending(&self) -> u64 {
        self.last_seq - self.confirmed_seq
    }

    /// Whether the backend has everything.
    pub(super) fn is_drained(&self) -> bool {
        self.confirmed_seq == self.last_seq
    }

    /// Log time of the oldest pending record, if it is in memory.
    pub(super) fn oldest_us(&self) -> Option<u64> {
        let front = self.window.front()?;
        (front.lane_seq == self.confirmed_seq + 1).then(|| front.record().log_time_us)
    }

    /// Takes the next durable record.
    pub(super) fn push(&mut self, batch: &DurableBatch, index: usize, record: &Record<'_>) {
        assert!(record.lane_seq == self.last_seq + 1, "a lane's records come in their order");
        if self.oldest_lsn == u64::MAX {
            (self.oldest_lsn, self.confirmed_lsn) = (record.lsn, record.lsn - 1);
        }
        (self.last_seq, self.last_lsn) = (record.lane_seq, record.lsn);
        let of_batch = |pinned: &Pinned| pinned.batch.first_lsn() == batch.first_lsn();
        let bytes = if self.window.back().is_some_and(of_batch) { 0 } else { batch.bytes() };
        self.window.push_back(Pinned {
            lane_seq: record.lane_seq,
            batch: batch.clone(),
            index,
            bytes,
        });
        self.window_bytes += bytes;
        while self.window_bytes > WINDOW_BYTES_MAX && self.window.len() > 1 {
            self.drop_front();
        }
        let method = Method::by_id(record.head.method);
        let key =
            method.and_then(Method::key_field).map(|field| wire::route(record.body, Some(field)));
        match key {
            Some(Ok(route)) if self.keys.len() < KEYS_MAX => match self.keys.get_mut(route.key) {
                Some(seq) => *seq = record.lane_seq,
                None => drop(self.keys.insert(route.key.into(), record.lane_seq)),
            },
            _ => {
                self.barrier_seq = record.lane_seq;
                self.keys.clear();
            }
        }
    }

    fn drop_front(&mut self) {
        let Some(front) = self.window.pop_front() else { return };
        self.window_bytes -= front.bytes;
        if let Some(next) = self.window.front_mut()
            && next.batch.first_lsn() == front.batch.first_lsn()
        {
            next.bytes = front.bytes;
            self.window_bytes += front.bytes;
        }
    }

    /// The next records to be sent, if memory holds them.
    pub(super) fn next_in_memory(&self) -> Vec<Pinned> {
        let mut bytes = 0;
        let is_next =
            self.window.front().is_some_and(|front| front.lane_seq <= self.confirmed_seq + 1);
        let fits = |pinned: &&Pinned| {
            let is_first = bytes == 0;
            bytes += pinned.record().body.len() + 1;
            is_first || bytes <= BATCH_BYTES_MAX
        };
        let skip = match self.window.front() {
            Some(front) if is_next => (self.confirmed_seq + 1 - front.lane_seq) as usize,
            _ => return Vec::new(),
        };
        self.window.iter().skip(skip).take(BATCH_RECORDS_MAX).take_while(fits).cloned().collect()
    }

    /// The backend has everything up to this record.
    pub(super) fn confirm(&mut self, seq: u64, lsn: u64, now_ns: u64) {
        self.confirmed_seq = self.confirmed_seq.max(seq);
        self.confirmed_lsn = self.confirmed_lsn.max(lsn);
        while self.window.front().is_some_and(|front| front.lane_seq <= self.confirmed_seq) {
            self.drop_front();
        }
        if self.is_drained() {
            self.keys.clear();
        }
        let (seq, lsn) = (self.confirmed_seq, self.confirmed_lsn);
        match self.history.back_mut() {
            Some(last) if now_ns - last.begun_ns < HISTORY_STEP.as_nanos() as u64 => {
                (last.at_ns, last.lsn, last.seq) = (now_ns, lsn, seq);
            }
            _ => self.history.push_back(Mark { begun_ns: now_ns, at_ns: now_ns, lsn, seq }),
        }
    }

    /// The backend's watermark went back to `seq`: everything behind it is sent again, from the log.
    pub(super) fn go_back(&mut self, seq: u64) {
        self.confirmed_seq = seq;
        self.confirmed_lsn = self.oldest_lsn.saturating_sub(1);
        self.history.clear();
        self.barrier_seq = self.last_seq;
    }

    /// What is pending goes nowhere any more, and the log need not keep it.
    pub(super) fn give_up(&mut self) {
        self.window.clear();
        self.window_bytes = 0;
        self.keys.clear();
        self.history.clear();
        (self.confirmed_seq, self.confirmed_lsn) = (self.last_seq, self.last_lsn);
        self.is_resumed = true;
    }

    /// The log may be trimmed up to this record; what was confirmed within the last `window_ns` stays.
    pub(super) fn trimmable_lsn(&mut self, now_ns: u64, window_ns: u64) -> u64 {
        while self
            .history
            .front()
            .is_some_and(|mark| now_ns.saturating_sub(mark.at_ns) >= window_ns)
        {
            if let Some(mark) = self.history.pop_front() {
                (self.oldest_seq, self.oldest_lsn) = (mark.seq + 1, mark.lsn + 1);
            }
        }
        let all = self.is_drained() && self.is_resumed && self.history.is_empty();
        if all || self.oldest_lsn == u64::MAX { u64::MAX } else { self.oldest_lsn - 1 }
    }

    /// The last record that may concern a key, 0 for none.
    pub(super) fn last_of_key(&self, key: &[u8]) -> u64 {
        self.keys.get(key).copied().unwrap_or(0).max(self.barrier_seq)
    }

    /// The last record of a key, where memory holds it and none behind it concerns the key too.
    pub(super) fn of_single_key(&self, key: &[u8]) -> Option<Record<'_>> {
        let seq = *self.keys.get(key)?;
        let front = self.window.front()?;
        let pinned = self.window.get(seq.checked_sub(front.lane_seq)? as usize)?;
        (seq > self.barrier_seq).then(|| pinned.record())
    }
}

/// What a log holds of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    first_seq: u64,
    first_lsn: u64,
    last_lsn: u64,
}

/// What a log holds of the lanes that lead outside.
#[derive(Debug, Default)]
pub(crate) struct FoundLanes {
    lanes: HashMap<u32, Found, ahash::RandomState>,
    orphans: HashMap<u32, u64, ahash::RandomState>,
}

impl FoundLanes {
    /// Takes note of a record.
    pub(crate) fn note(&mut self, record: &Record<'_>) {
        let (first_seq, lsn) = (record.lane_seq, record.lsn);
        self.lanes
            .entry(record.head.lane.namespace)
            .or_insert(Found { first_seq, first_lsn: lsn, last_lsn: lsn })
            .last_lsn = lsn;
    }

    /// Takes note of a record whose namespace is not configured.
    pub(crate) fn note_orphan(&mut self, record: &Record<'_>) {
        self.orphans.entry(record.head.lane.namespace).or_insert(record.lsn);
    }

    /// The namespaces that are not configured and have records here.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = u32> + '_ {
        self.orphans.keys().copied()
    }

    pub(super) fn orphans_lsn(&self) -> u64 {
        self.orphans.values().min().map_or(u64::MAX, |first_lsn| first_lsn - 1)
    }

    pub(super) fn of(&self, namespace: u32) -> Option<Found> {
        self.lanes.get(&namespace).copied()
    }
}
