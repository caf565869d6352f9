//! What became of calls that carried an idempotency key.
//!
//! A key is scoped to (namespace, caller, lane) and remembered from the moment its call begins until
//! its window has passed, counted in log time. A retry finds that the first call still runs, or its
//! outcome, or that the key was used for another request. The table is bounded: when it is full a
//! new keyed call is refused, none is forgotten early. It does not decide which outcomes are worth
//! remembering: what must not be (UNAVAILABLE) is abandoned by the caller.

use std::time::Duration;

use ahash::RandomState;
use bytes::Bytes;
use hashbrown::HashTable;

use super::slab::{NOWHERE, Slab};
use super::wheel::{LEVELS, Wheel};
use crate::error::{Error, Kind};

/// How long an outcome is remembered unless the namespace says otherwise.
pub const WINDOW_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);

/// No outcome is remembered for less.
pub const WINDOW_MIN: Duration = Duration::from_secs(10 * 60);

/// How many outcomes a shard remembers unless told otherwise.
pub const OUTCOMES_MAX: usize = 4_000_000;

/// How many bytes of keys and replies a shard remembers unless told otherwise.
pub const OUTCOME_BYTES_MAX: usize = 512 * 1024 * 1024;

/// What a record takes beside its key and reply, about.
const RECORD_BYTES: usize = Slab::<Record>::SLOT_BYTES + Wheel::TIMER_BYTES + 48;

/// Whose key it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OutcomeKey<'a> {
    /// The namespace's number.
    pub namespace: u32,
    /// The partition; with the namespace it names the lane.
    pub partition: u16,
    /// A hash of the caller's identity.
    pub caller: u64,
    /// The idempotency key, 1–128 bytes.
    pub key: &'a [u8],
}

/// What the first call was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The record of the call.
    pub lsn: u64,
    /// gRPC status code; 0 is success.
    pub code: u8,
    /// Durability level reached, as the caller of this table numbers them.
    pub level: u8,
    /// On success the reply message, else an encoded `google.rpc.Status`.
    pub message: Bytes,
}

/// What is known about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// Nothing: it may begin.
    Unknown,
    /// The first call still runs.
    Running(Ticket),
    /// The first call was answered this.
    Settled(&'a Outcome),
    /// The key was used for a request with another body.
    OtherBody,
}

/// A running call's place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    position: u32,
    serial: u64,
}

/// A settled outcome with everything that a snapshot keeps of it.
pub(crate) struct Remembered<'a> {
    pub(crate) namespace: u32,
    pub(crate) partition: u16,
    pub(crate) caller: u64,
    pub(crate) key: &'a [u8],
    pub(crate) body_hash: u64,
    pub(crate) expires_us: u64,
    pub(crate) outcome: &'a Outcome,
}

#[derive(Debug)]
struct Record {
    namespace: u32,
    partition: u16,
    /// Snapshot generation in which it was settled.
    generation: u32,
    caller: u64,
    body_hash: u64,
    expires_us: u64,
    serial: u64,
    /// Its timer in the wheel once it is settled, else [`NOWHERE`].
    timer: u32,
    key: Box<[u8]>,
    outcome: Option<Outcome>,
}

impl Record {
    fn key(&self) -> OutcomeKey<'_> {
        let (namespace, partition) = (self.namespace, self.partition);
        OutcomeKey { namespace, partition, caller: self.caller, key: &self.key }
    }

    fn memory_bytes(&self) -> usize {
        let message = self.outcome.as_ref().map_or(0, |outcome| outcome.message.len());
        RECORD_BYTES + self.key.len() + message
    }
}

/// The table, see the module.
#[derive(Debug)]
pub struct Outcomes {
    hasher: RandomState,
    records: Slab<Record>,
    index: HashTable<u32>,
    wheel: Wheel,
    serial: u64,
    used_bytes: usize,
    outcomes_max: usize,
    bytes_max: usize,
    pub(crate) generation: u32,
}

impl Default for Outcomes {
    fn default() -> Self {
        Outcomes::new(OUTCOMES_MAX, OUTCOME_BYTES_MAX)
    }
}

impl Outcomes {
    /// An empty table that takes so many outcomes and so many bytes.
    pub fn new(outcomes_max: usize, bytes_max: usize) -> Self {
        Outcomes {
            hasher: RandomState::new(),
            records: Slab::default(),
            index: HashTable::new(),
            wheel: Wheel::default(),
            serial: 0,
            used_bytes: 0,
            outcomes_max,
            bytes_max,
            generation: 0,
        }
    }

    /// How many calls are remembered, running ones included.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// About how much memory they take, in bytes.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// What is known about a key at log time `now_us`; `body_hash` is a keyed hash of the request's
    /// bytes as received, under a key that outlives the process.
    pub fn lookup(&self, key: OutcomeKey<'_>, body_hash: u64, now_us: u64) -> Lookup<'_> {
        let Some(position) = self.find(key) else { return Lookup::Unknown };
        let record = self.records.at(position);
        match &record.outcome {
            Some(_) if record.expires_us <= now_us => Lookup::Unknown,
            _ if record.body_hash != body_hash => Lookup::OtherBody,
            Some(outcome) => Lookup::Settled(outcome),
            None => Lookup::Running(Ticket { position, serial: record.serial }),
        }
    }

    /// Notes that a call begins whose key is [`Lookup::Unknown`], to be remembered for `window`
    /// (no less than [`WINDOW_MIN`]) from log time `now_us` on.
    ///
    /// On replay (`admitted`) it takes the place of what is known about the key: the window may be
    /// longer than the one under which the call was let in as the key's first.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED `IDEMPOTENCY_TABLE_FULL` when there is no room; never on replay
    /// (`admitted`), where the room was found when the record was written.
    pub fn begin(
        &mut self,
        key: OutcomeKey<'_>,
        body_hash: u64,
        now_us: u64,
        window: Duration,
        admitted: bool,
    ) -> Result<Ticket, Error> {
        if let Some(position) = self.find(key) {
            let record = self.records.at(position);
            let is_over = record.outcome.is_some() && record.expires_us <= now_us;
            assert!(is_over || admitted, "a key began that is in use");
            self.remove(position);
        }
        let full = self.records.len() >= self.outcomes_max || self.used_bytes >= self.bytes_max;
        if full && !admitted {
            return Err(full_error());
        }
        let window_us = window.max(WINDOW_MIN).as_micros() as u64;
        let expires_us = now_us.saturating_add(window_us);
        let position = self.insert(key, body_hash, expires_us, None);
        Ok(Ticket { position, serial: self.serial })
    }

    /// Remembers what the running call was answered.
    pub fn settle(&mut self, ticket: Ticket, outcome: Outcome, now_us: u64) {
        let record = self.records.at_mut(ticket.position);
        assert!(record.serial == ticket.serial && record.outcome.is_none(), "settled twice");
        self.used_bytes += outcome.message.len();
        record.outcome = Some(outcome);
        record.generation = self.generation;
        record.timer = self.wheel.schedule(0, ticket.position, record.expires_us, now_us);
    }

    /// Forgets a running call, which had no effect or whose outcome must not be remembered.
    pub fn abandon(&mut self, ticket: Ticket) {
        let record = self.records.at(ticket.position);
        assert!(record.serial == ticket.serial && record.outcome.is_none(), "it was settled");
        self.remove(ticket.position);
    }

    /// Forgets at most `budget` outcomes that have expired at log time `now_us`.
    pub fn expire(&mut self, now_us: u64, budget: usize) -> usize {
        let mut looks = budget.saturating_mul(LEVELS);
        let mut expired = 0;
        while expired < budget
            && let Some((_, position)) = self.wheel.pop_due(now_us, &mut looks)
        {
            self.records.at_mut(position).timer = NOWHERE;
            self.remove(position);
            expired += 1;
        }
        expired
    }

    /// One past the highest position, for a walk with [`Outcomes::remembered`].
    pub(crate) fn end(&self) -> u32 {
        self.records.end()
    }

    /// The settled outcome at a position, if it was settled before the snapshot `generation`.
    pub(crate) fn remembered(&self, position: u32, generation: u32) -> Option<Remembered<'_>> {
        let record = self.records.get(position)?;
        let outcome = record.outcome.as_ref()?;
        (record.generation < generation).then_some(Remembered {
            namespace: record.namespace,
            partition: record.partition,
            caller: record.caller,
            key: &record.key,
            body_hash: record.body_hash,
            expires_us: record.expires_us,
            outcome,
        })
    }

    /// Puts back what a snapshot kept.
    pub(crate) fn restore(&mut self, kept: Remembered<'_>, now_us: u64) {
        let Remembered { namespace, partition, caller, key, .. } = kept;
        let key = OutcomeKey { namespace, partition, caller, key };
        let outcome = Some(kept.outcome.clone());
        let position = self.insert(key, kept.body_hash, kept.expires_us, outcome);
        let timer = self.wheel.schedule(0, position, kept.expires_us, now_us);
        self.records.at_mut(position).timer = timer;
    }

    fn find(&self, key: OutcomeKey<'_>) -> Option<u32> {
        let is_it = |&position: &u32| self.records.at(position).key() == key;
        self.index.find(self.hasher.hash_one(key), is_it).copied()
    }

    fn insert(
        &mut self,
        key: OutcomeKey<'_>,
        body_hash: u64,
        expires_us: u64,
        outcome: Option<Outcome>,
    ) -> u32 {
        self.serial += 1;
        let record = Record {
            namespace: key.namespace,
            partition: key.partition,
            generation: self.generation,
            caller: key.caller,
            body_hash,
            expires_us,
            serial: self.serial,
            timer: NOWHERE,
            key: key.key.into(),
            outcome,
        };
        self.used_bytes += record.memory_bytes();
        let position = self.records.insert(record);
        let (hasher, records) = (&self.hasher, &self.records);
        self.index.insert_unique(hasher.hash_one(key), position, |&position| {
            hasher.hash_one(records.at(position).key())
        });
        position
    }

    fn remove(&mut self, position: u32) {
        let record = self.records.remove(position);
        if record.timer != NOWHERE {
            self.wheel.cancel(record.timer);
        }
        self.used_bytes -= record.memory_bytes();
        let hash = self.hasher.hash_one(record.key());
        let found = self.index.find_entry(hash, |&other| other == position);
        found.expect("every outcome is in the index").remove();
    }
}

#[cold]
fn full_error() -> Error {
    Error::new(
        Kind::ResourceExhausted,
        "IDEMPOTENCY_TABLE_FULL",
        "too many idempotency keys are remembered: call again later, shorten the namespace's window, \
         or call without a key",
    )
    .retry_after(Duration::from_secs(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: u64 = 3_600_000_000;

    fn key(key: &[u8]) -> OutcomeKey<'_> {
        OutcomeKey { namespace: 1, partition: 0, caller: 7, key }
    }

    fn outcome(lsn: u64) -> Outcome {
        Outcome { lsn, code: 0, level: 1, message: Bytes::from_static(b"reply") }
    }

    #[test]
    fn a_retry_finds_the_running_call_then_its_outcome_until_the_window_has_passed() {
        let mut table = Outcomes::default();
        assert_eq!(table.lookup(key(b"a"), 5, 0), Lookup::Unknown);
        let ticket = table.begin(key(b"a"), 5, 0, WINDOW_DEFAULT, false).unwrap();
        assert_eq!(table.lookup(key(b"a"), 5, 1), Lookup::Running(ticket));
        assert_eq!(table.lookup(key(b"a"), 6, 1), Lookup::OtherBody);
        table.settle(ticket, outcome(9), 2);
        assert_eq!(table.lookup(key(b"a"), 5, 3), Lookup::Settled(&outcome(9)));
        assert_eq!(table.lookup(key(b"a"), 6, 3), Lookup::OtherBody);
        let other = OutcomeKey { caller: 8, ..key(b"a") };
        assert_eq!(table.lookup(other, 5, 3), Lookup::Unknown);
        assert_eq!(table.lookup(key(b"a"), 5, 24 * HOUR_US), Lookup::Unknown);
        let again = table.begin(key(b"a"), 6, 24 * HOUR_US, WINDOW_DEFAULT, false).unwrap();
        assert_eq!(table.len(), 1);
        table.abandon(again);
        assert!(table.is_empty());
        assert_eq!(table.used_bytes(), 0);
    }

    #[test]
    fn on_replay_a_call_takes_the_place_of_what_is_known_about_its_key() {
        let mut table = Outcomes::default();
        let ticket = table.begin(key(b"a"), 5, 0, WINDOW_DEFAULT, true).unwrap();
        table.settle(ticket, outcome(9), 0);
        // The live call came when a shorter window had passed.
        let ticket = table.begin(key(b"a"), 6, HOUR_US, WINDOW_DEFAULT, true).unwrap();
        table.settle(ticket, outcome(10), HOUR_US);
        assert_eq!(table.lookup(key(b"a"), 6, 24 * HOUR_US), Lookup::Settled(&outcome(10)));
        table.begin(key(b"b"), 7, HOUR_US, WINDOW_DEFAULT, true).unwrap();
        let ticket = table.begin(key(b"b"), 8, HOUR_US, WINDOW_DEFAULT, true).unwrap();
        assert_eq!(table.lookup(key(b"b"), 8, HOUR_US), Lookup::Running(ticket));
        table.abandon(ticket);
        assert_eq!(table.len(), 1);
        assert_eq!(table.expire(24 * HOUR_US, 100), 0, "the first one's timer is gone");
        assert_eq!(table.expire(25 * HOUR_US, 100), 1);
        assert_eq!((table.len(), table.used_bytes()), (0, 0));
    }

    #[test]
    fn the_window_is_never_under_ten_minutes_and_expiry_makes_room() {
        let mut table = Outcomes::new(1, 1 << 20);
        let ticket = table.begin(key(b"a"), 5, 0, Duration::ZERO, false).unwrap();
        table.settle(ticket, outcome(9), 0);
        let full = table.begin(key(b"b"), 5, 1, WINDOW_DEFAULT, false).unwrap_err();
        assert_eq!(full.reason(), "IDEMPOTENCY_TABLE_FULL");
        assert_eq!(table.expire(HOUR_US / 6 - 1, 100), 0);
        assert_eq!(table.expire(HOUR_US / 6, 100), 1);
        table.begin(key(b"b"), 5, HOUR_US / 6, WINDOW_DEFAULT, false).unwrap();
        table.begin(key(b"c"), 5, HOUR_US / 6, WINDOW_DEFAULT, true).expect("replay is admitted");
    }
}
