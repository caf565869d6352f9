//! What a write does to one key: a guard on what is there, and what it leaves.
//!
//! The decision is taken here, on the shard, from what was read; the server is told to store it only if the key is still as it
//! was read, and otherwise it is decided again. The same for calls by themselves and for those of a lane's batch.

use async_nats::HeaderMap;
use bytes::Bytes;
use prism_proto::prism::keyvalue::v1::SetCondition;
use prism_proto::view::keyvalue::{
    CompareAndDeleteRequest, CompareAndDeleteRequestExpected, CompareAndSwapRequest,
    CompareAndSwapRequestExpected, SetRequest,
};

use super::Nats;
use super::errors;
use super::jetstream::{
    EXPECTED_LAST_SUBJECT_SEQUENCE, Holds, KV_OPERATION, Record, Stored, TTL, stored,
};
use super::link::{Answer, Ask, Outgoing};
use super::subject;
use crate::call::Context;
use crate::error::Error;

/// How often a call is decided anew because others have changed its key meanwhile.
const ATTEMPTS_MAX: usize = 128;

/// How long the mark of a deleted key is kept, in seconds: for those who watch the bucket.
const MARK_SECONDS: u64 = 3600;

/// What a key must be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard<'a> {
    Any,
    Absent,
    Exists,
    Value(&'a [u8]),
    /// Of this version; nothing where it is the version of no value.
    Version(Option<u64>),
}

/// What a write leaves under its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect<'a> {
    Put(&'a [u8]),
    Remove,
}

/// A write to one key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation<'a> {
    pub(super) key: &'a str,
    pub(super) guard: Guard<'a>,
    pub(super) effect: Effect<'a>,
    /// Whether its caller is told what was there.
    pub(super) tells_previous: bool,
}

/// What is known of a key.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// The number of its last message, 0 if it has none.
    pub(super) sequence: u64,
    /// Its value, if it has one.
    pub(super) value: Option<Bytes>,
}

/// What became of a write.
#[derive(Clone, Debug)]
pub(super) struct Done {
    /// Whether the key was as it must be.
    pub(super) holds: bool,
    /// The number of the message that was stored.
    pub(super) sequence: Option<u64>,
    /// What was there before; empty where nobody has looked.
    pub(super) before: Found,
}

/// The version of a value that is stored under this number.
pub(super) fn version(sequence: u64) -> [u8; 8] {
    sequence.to_be_bytes()
}

fn sequence_of(version: &[u8]) -> Option<u64> {
    version.try_into().ok().map(u64::from_be_bytes).filter(|sequence| *sequence > 0)
}

impl From<Option<Record>> for Found {
    fn from(record: Option<Record>) -> Self {
        record.map_or_else(Found::default, |record| Found {
            sequence: record.sequence,
            value: record.value,
        })
    }
}

impl<'a> Operation<'a> {
    /// A write that takes effect whatever is there.
    pub(super) fn put(key: &'a str, value: &'a [u8]) -> Self {
        Operation { key, guard: Guard::Any, effect: Effect::Put(value), tells_previous: false }
    }

    pub(super) fn remove(key: &'a str) -> Self {
        Operation { key, guard: Guard::Any, effect: Effect::Remove, tells_previous: false }
    }

    pub(super) fn set(request: &SetRequest<'a>) -> Self {
        let guard = match request.only_if() {
            Some(SetCondition::Absent) => Guard::Absent,
            Some(SetCondition::Exists) => Guard::Exists,
            Some(SetCondition::Unspecified) | None => Guard::Any,
        };
        let tells_previous = request.return_previous;
        Operation { guard, tells_previous, ..Operation::put(request.key, request.value) }
    }

    pub(super) fn swap(request: &CompareAndSwapRequest<'a>) -> Self {
        let guard = match request.expected {
            Some(CompareAndSwapRequestExpected::ExpectedValue(value)) => Guard::Value(value),
            Some(CompareAndSwapRequestExpected::ExpectedVersion(version)) => {
                Guard::Version(sequence_of(version))
            }
            // That one is given was checked.
            Some(CompareAndSwapRequestExpected::ExpectedAbsent(_)) | None => Guard::Absent,
        };
        Operation { guard, tells_previous: true, ..Operation::put(request.key, request.value) }
    }

    pub(super) fn compare_and_delete(request: &CompareAndDeleteRequest<'a>) -> Self {
        let guard = match request.expected {
            Some(CompareAndDeleteRequestExpected::ExpectedValue(value)) => Guard::Value(value),
            Some(CompareAndDeleteRequestExpected::ExpectedVersion(version)) => {
                Guard::Version(sequence_of(version))
            }
            None => Guard::Version(None),
        };
        Operation { guard, tells_previous: true, ..Operation::remove(request.key) }
    }

    /// Whether it has to be known what is there.
    pub(super) fn looks(&self) -> bool {
        self.guard != Guard::Any || self.effect == Effect::Remove || self.tells_previous
    }

    /// Whether the value that is there has to be known too.
    pub(super) fn looks_at_value(&self) -> bool {
        self.guard != Guard::Any || self.tells_previous
    }

    /// Whether the key is as it must be. `is_pending`: what is there is a write whose number nobody knows yet.
    pub(super) fn holds(&self, found: &Found, is_pending: bool) -> bool {
        match self.guard {
            Guard::Any => true,
            Guard::Absent => found.value.is_none(),
            Guard::Exists => found.value.is_some(),
            Guard::Value(expected) => found.value.as_deref() == Some(expected),
            Guard::Version(expected) => {
                !is_pending && found.value.is_some() && expected == Some(found.sequence)
            }
        }
    }

    /// Whether it changes anything, if the key is as it must be.
    pub(super) fn changes(&self, found: &Found) -> bool {
        self.effect != Effect::Remove || found.value.is_some()
    }

    /// The message that carries it out, if the subject's last one has this number.
    pub(super) fn message(&self, context: &Context<'_>, expected: Option<u64>) -> Outgoing {
        let mut headers = HeaderMap::new();
        if let Some(expected) = expected {
            headers.insert(EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
        }
        let payload = match self.effect {
            Effect::Put(value) => Bytes::copy_from_slice(value),
            Effect::Remove => {
                headers.insert(KV_OPERATION, "DEL");
                headers.insert(TTL, MARK_SECONDS.to_string());
                Bytes::new()
            }
        };
        let headers = (!headers.is_empty()).then_some(headers);
        let subject = subject::of_key(context.namespace_name, self.key).into();
        Outgoing { subject, reply: None, headers, payload }
    }
}

impl Nats {
    /// Carries a write out by itself.
    pub(super) async fn carry_out(
        &self,
        context: &Context<'_>,
        operation: Operation<'_>,
    ) -> Result<Done, Error> {
        let blind = |sequence| Done { holds: true, sequence, before: Found::default() };
        if !operation.looks() {
            return match self.store(context, &operation, None).await? {
                Stored::At(sequence) => Ok(blind(Some(sequence))),
                Stored::Unexpected => Err(errors::unexpected(context)),
            };
        }
        // A version says which message has to be there, and so does absence unless something was deleted there.
        let guess = match operation.guard {
            Guard::Version(expected) => expected,
            Guard::Absent => Some(0),
            _ => None,
        };
        if guess.is_some()
            && let Stored::At(sequence) = self.store(context, &operation, guess).await?
        {
            return Ok(blind(Some(sequence)));
        }
        let subject = subject::of_key(context.namespace_name, operation.key);
        for _ in 0..ATTEMPTS_MAX {
            let before = Found::from(self.last(context, &subject).await?);
            let holds = operation.holds(&before, false);
            if !holds || !operation.changes(&before) {
                return Ok(Done { holds, sequence: None, before });
            }
            let stored = self.store(context, &operation, Some(before.sequence)).await?;
            if let Stored::At(sequence) = stored {
                return Ok(Done { holds, sequence: Some(sequence), before });
            }
        }
        Err(errors::contended(context))
    }

    async fn store(
        &self,
        context: &Context<'_>,
        operation: &Operation<'_>,
        expected: Option<u64>,
    ) -> Result<Stored, Error> {
        let ask = Ask::One(operation.message(context, expected));
        match self.ask_stream(context, Holds::Values, &ask).await? {
            Answer::One(message) => stored(context, &message),
            _ => Err(errors::unexpected(context)),
        }
    }

    /// Carries writes out side by side, each if its subject's last message has the number that is given for it.
    pub(super) async fn store_each(
        &self,
        context: &Context<'_>,
        operations: &[(Operation<'_>, Option<u64>)],
    ) -> Result<Vec<Result<Stored, Error>>, Error> {
        if operations.is_empty() {
            return Ok(Vec::new());
        }
        let message = |(operation, expected): &(Operation<'_>, Option<u64>)| {
            operation.message(context, *expected)
        };
        let ask = Ask::Each(operations.iter().map(message).collect());
        match self.ask_stream(context, Holds::Values, &ask).await? {
            Answer::Several(messages) if messages.len() == operations.len() => {
                Ok(messages.iter().map(|message| stored(context, message)).collect())
            }
            _ => Err(errors::unexpected(context)),
        }
    }
}
