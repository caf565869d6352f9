//! Idempotency keys: a retry gets the first outcome and has no second effect, also after a restart.
//!
//! A key is scoped to (namespace, caller, lane). It stands in the record of its call, so that the log remembers it, and in
//! the store's snapshots once the log is trimmed. UNAVAILABLE is never remembered.

use std::hash::Hasher;
use std::time::Duration;

use prism_adapters::memory::{Lookup, Outcome, OutcomeKey, Ticket, WINDOW_DEFAULT, WINDOW_MIN};
use prism_adapters::{Error, Kind, Reply};
use prism_io::grpc::Metadata;
use prism_wal::Record;
use siphasher::sip::SipHasher13;

use super::{Answer, Call, Facts, Progress, Stage, Target, level_from_number};
use crate::namespaces::Namespace;
use crate::shard::Shard;

/// Request metadata: the key.
const KEY: &str = "prism-idempotency-key";
/// Longest key in bytes.
const KEY_BYTES_MAX: usize = 128;

/// What a keyed call may do.
pub(super) enum Admission {
    /// It has no key.
    Unkeyed,
    /// It is the first of its key; its outcome is to be settled.
    First(Ticket),
    /// It is a retry.
    Again(Outcome),
}

/// The key that a call carries; empty where it carries none.
pub(super) fn key(metadata: &Metadata) -> Result<&[u8], Error> {
    let Some(key) = metadata.get(KEY) else { return Ok(&[]) };
    if key.is_empty()
        || key.len() > KEY_BYTES_MAX
        || !key.iter().all(|byte| (0x20..0x7f).contains(byte))
    {
        return Err(Error::field(
            "IDEMPOTENCY_KEY_INVALID",
            KEY,
            "send 1 to 128 printable ASCII characters, for instance a UUID",
        ));
    }
    Ok(key)
}

/// Who calls, as far as keys are concerned: whoever holds the same credentials.
pub(super) fn caller(metadata: &Metadata) -> u64 {
    let Some(credentials) = metadata.get("authorization") else { return 0 };
    let mut hasher = SipHasher13::new_with_keys(0x7072_6973_6d2d_6361, 0x6c6c_6572);
    hasher.write(credentials);
    hasher.finish().max(1)
}

/// Looks the key up; waits while the first call of it runs.
pub(super) async fn admit(
    shard: &Shard,
    call: &Call,
    namespace: &Namespace,
    key: &[u8],
    message: &[u8],
    progress: &Progress,
) -> Result<Admission, Error> {
    if key.is_empty() {
        return Ok(Admission::Unkeyed);
    }
    let scope =
        OutcomeKey { namespace: namespace.id, partition: 0, caller: caller(&call.metadata), key };
    for _ in 0..2 {
        let now_us = shard.log.time_us(prism_io::clock::wall_us());
        if let Some(admission) = look_up(shard, call, namespace, scope, message, now_us)? {
            return Ok(admission);
        }
        // The first call is in the log already, so the log's last record is one to wait for: when it is applied, so is that.
        progress.stage.set(Stage::Elsewhere);
        shard.log.applied(shard.log.last_lsn()).await?;
        if let Some(lane) = shard.lanes.of(namespace.index) {
            lane.caught_up(namespace).await?;
        }
        progress.stage.set(Stage::Nothing);
    }
    Err(Error::new(
        Kind::Unavailable,
        "IDEMPOTENCY_KEY_RUNNING",
        "the first call with this key has not ended; retry later with the same key",
    ))
}

/// Whether nothing is known of the key, so that its call is the first.
pub(super) fn is_new(
    shard: &Shard,
    call: &Call,
    namespace: &Namespace,
    key: &[u8],
    message: &[u8],
) -> bool {
    let scope =
        OutcomeKey { namespace: namespace.id, partition: 0, caller: caller(&call.metadata), key };
    let body_hash = body_hash(shard.target().hash_key, call.method.id(), message);
    let now_us = shard.log.time_us(prism_io::clock::wall_us());
    matches!(shard.store.outcomes_mut().lookup(scope, body_hash, now_us), Lookup::Unknown)
}

/// What a keyed call may do as things are; `None` while the first call of its key runs.
fn look_up(
    shard: &Shard,
    call: &Call,
    namespace: &Namespace,
    scope: OutcomeKey<'_>,
    message: &[u8],
    now_us: u64,
) -> Result<Option<Admission>, Error> {
    let body_hash = body_hash(shard.target().hash_key, call.method.id(), message);
    // A relayed message is noted soon after it has arrived: there are many, and their keys must not crowd out those of callers.
    let window = match call.is_relayed {
        true => WINDOW_MIN,
        false => Duration::from_micros(namespace.idempotency_window_us),
    };
    let mut outcomes = shard.store.outcomes_mut();
    match outcomes.lookup(scope, body_hash, now_us) {
        Lookup::Unknown => {
            // A retry gets its outcome also when there is no more room; only a first call needs some.
            shard.admit(namespace, call.method, message)?;
            let ticket = outcomes.begin(scope, body_hash, now_us, window, false)?;
            Ok(Some(Admission::First(ticket)))
        }
        Lookup::Settled(outcome) => Ok(Some(Admission::Again(outcome.clone()))),
        Lookup::OtherBody => Err(reused(namespace)),
        Lookup::Running(_) => Ok(None),
    }
}

/// The ticket of a keyed record at replay.
pub(super) fn ticket_of_record(
    target: &Target<'_>,
    record: &Record<'_>,
) -> Result<Option<Ticket>, Error> {
    if record.head.idempotency_key.is_empty() {
        return Ok(None);
    }
    let lane = record.head.lane;
    let scope = OutcomeKey {
        namespace: lane.namespace,
        partition: lane.partition,
        caller: record.head.caller,
        key: record.head.idempotency_key,
    };
    let body_hash = body_hash(target.hash_key, record.head.method, record.body);
    let window = target
        .namespaces
        .by_id(lane.namespace)
        .map_or(WINDOW_DEFAULT, |namespace| Duration::from_micros(namespace.idempotency_window_us));
    // There was room when the record was written.
    target.store.outcomes_mut().begin(scope, body_hash, record.log_time_us, window, true).map(Some)
}

/// The answer of a retry.
pub(super) fn first_outcome(shard: &Shard, outcome: Outcome) -> Answer {
    shard.metrics.store.replayed.increment();
    let mut reply: Reply = shard.replies.take();
    reply.tail = outcome.message;
    let facts = Facts {
        level: Some(level_from_number(outcome.level)),
        lsn: Some(shard.token(outcome.lsn)),
        replayed: true,
    };
    Answer { reply, code: outcome.code, facts }
}

/// Tells requests apart that carry the same key; the same over restarts on one data directory.
fn body_hash(hash_key: (u64, u64), method: u16, body: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(hash_key.0, hash_key.1);
    hasher.write(&method.to_le_bytes());
    hasher.write(body);
    hasher.finish()
}

#[cold]
fn reused(namespace: &Namespace) -> Error {
    Error::new(
        Kind::FailedPrecondition,
        "IDEMPOTENCY_KEY_REUSED",
        "this key was used for another request; use a new key for each new request and the same one only for its retries",
    )
    .with("namespace", namespace.name.to_string())
}
