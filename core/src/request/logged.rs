//! A write between its append and its answer: what it waits with, and what happens to it when its record is durable.
//!
//! There are many of them at once and each waits for the same thing, so none has a future: they stand in the order of their
//! records, and one pass over a durable batch carries all of it out. Promises: each record is applied once, in the order of
//! records, also when its caller has given up; no caller is answered twice.

use prism_adapters::memory::{Memstore, Ticket};
use prism_adapters::{Error, Reply};
use prism_proto::catalogue::Method;
use prism_proto::wire;
use prism_wal::{Record, RecordKind};

use super::{Answer, Call, Facts, Stage, apply, at_once, expired, finish_at, settle};
use crate::config::Durability;
use crate::shard::Shard;

/// A call whose record is on its way to the disk.
pub(crate) struct Logged {
    pub(crate) call: Call,
    pub(crate) rest: Rest,
}

/// What is left to do for it.
pub(crate) struct Rest {
    pub(crate) lsn: u64,
    /// Its place in the configuration.
    pub(crate) namespace: usize,
    pub(crate) level: Durability,
    /// Of its idempotency key.
    pub(crate) ticket: Option<Ticket>,
    /// Of the budgets for bytes in flight.
    pub(crate) held_bytes: u64,
    /// Its caller was told that its time was up.
    pub(crate) answered: bool,
}

impl Logged {
    /// Answers its caller that its time is up, if it is; the record is applied all the same. Returns the deadline that is
    /// still to come.
    pub(crate) fn expire(&mut self, shard: &Shard, now_ns: u64) -> Option<u64> {
        if self.rest.answered || self.call.deadline_ns > now_ns {
            return (!self.rest.answered).then_some(self.call.deadline_ns);
        }
        self.answer(shard, Err(expired(Stage::Logged)), now_ns);
        None
    }

    /// Answers its caller that the log has failed.
    pub(crate) fn fail(mut self, shard: &Shard, error: Error, now_ns: u64) {
        self.answer(shard, Err(error), now_ns);
        shard.give_back(self.rest.namespace, &self.call, self.rest.held_bytes);
    }

    /// Ends a call whose record an outside backend has, or whose answer the log gives: settles its idempotency key, answers its
    /// caller and gives back what it held.
    pub(crate) fn end(
        mut self,
        shard: &Shard,
        outcome: Result<Reply, Error>,
        log_time_us: u64,
        now_ns: u64,
    ) {
        let Rest { lsn, namespace, level, ticket, held_bytes, .. } = self.rest;
        if let Some(ticket) = ticket {
            settle(&shard.target(), ticket, (lsn, level as u8), outcome.as_ref(), log_time_us);
        }
        let facts = Facts { level: Some(level), lsn: Some(shard.token(lsn)), replayed: false };
        let outcome = outcome.map(|reply| Answer { reply, code: 0, facts });
        self.answer(shard, outcome, now_ns);
        shard.give_back(namespace, &self.call, held_bytes);
    }

    fn answer(&mut self, shard: &Shard, outcome: Result<Answer, Error>, now_ns: u64) {
        if !std::mem::replace(&mut self.rest.answered, true) {
            finish_at(shard, &self.call, Some(self.rest.namespace), outcome, now_ns);
        }
    }
}

/// Records whose entries are fetched ahead at once.
pub(crate) const FETCH_RECORDS: usize = 16;

/// Brings the entries that these records will touch into the processor's caches, as far as they are of the first one's lane:
/// one after the other each would wait for memory by itself.
pub(crate) fn fetch<'a>(store: &Memstore, mut records: impl Iterator<Item = Record<'a>>) {
    let Some(first) = records.next() else { return };
    let lane = first.head.lane;
    let (mut keys, mut count) = ([&[][..]; FETCH_RECORDS], 0);
    for record in std::iter::once(first).chain(records).take(FETCH_RECORDS) {
        let key_field = Method::by_id(record.head.method).and_then(Method::key_field);
        let of_lane = record.kind == RecordKind::Data && record.head.lane == lane;
        if of_lane
            && key_field.is_some()
            && let Ok(route) = wire::route(record.body, key_field)
        {
            keys[count] = route.key;
            count += 1;
        }
    }
    store.fetch(lane.namespace, lane.partition, &keys[..count]);
}

/// Applies a durable record and answers its caller.
pub(crate) fn carry_out(shard: &Shard, mut logged: Logged, record: &Record<'_>, now_ns: u64) {
    let Rest { lsn, namespace, level, ticket, held_bytes, .. } = logged.rest;
    let mut reply: Reply = shard.replies.take();
    let limits = &shard.namespaces.at(namespace).limits();
    let name = &shard.namespaces.at(namespace).name;
    let outcome = at_once(apply(&shard.target(), record, name, limits, ticket, &mut reply));
    if logged.call.method == Method::TRANSACT_WRITE {
        shard.outbox.tell_of(record.head.lane.namespace);
    }
    let facts = Facts { level: Some(level), lsn: Some(shard.token(lsn)), replayed: false };
    let outcome = outcome
        .inspect_err(|error| shard.count_backend_error(namespace, error))
        .map(|()| Answer { reply, code: 0, facts });
    logged.answer(shard, outcome, now_ns);
    shard.give_back(namespace, &logged.call, held_bytes);
}
