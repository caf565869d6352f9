//! Redis's KeyValue interfaces, but for scans.
//!
//! Where a call takes several commands they go out together and are answered together. Only a write by somebody else can
//! come in between two of them, and only where that would show is a script needed. A value is read with GETRANGE: whoever
//! stored it, an answer is never longer than the namespace allows.

use bytes::Bytes;
use prism_proto::prism::keyvalue::v1::SetCondition;
use prism_proto::view::keyvalue::{
    BatchDeleteRequest, BatchGetRequest, BatchSetItem, BatchSetRequest, CompareAndDeleteRequest,
    CompareAndDeleteRequestExpected, CompareAndDeleteResponse, CompareAndSwapRequest,
    CompareAndSwapRequestExpected, CompareAndSwapResponse, DeleteRequest, DeleteResponse,
    ExistsRequest, ExistsResponse, ExpireRequest, ExpireRequestExpiry, ExpireResponse, GetRequest,
    GetResponse, GetTtlRequest, GetTtlResponse, PersistRequest, PersistResponse, SetRequest,
    SetResponse, TransactRequest,
};
use prism_proto::view::protobuf::Duration;
use prism_proto::view::types::{ConditionRequirement, Entry, OperationAction};

use super::Redis;
use super::cluster::{lane_slot, slot_of};
use super::codec::{self, ProtocolError, Replies, Value};
use super::errors;
use super::scripts::{Script, hex, sha1};
use crate::call::{Context, Reply};
use crate::error::Error;
use crate::interfaces::keyvalue::{
    KeyValueBasic, KeyValueBatch, KeyValueCas, KeyValueTransactional, KeyValueTtl,
};
use crate::interfaces::keyvalue_replies::{
    TOO_LARGE_BYTES_MAX, expires_us, is_by_reference, put_committed, put_deleted, put_failure,
    put_got, put_operation, put_set, put_status, put_too_large, time_left, timestamp,
};
use crate::limits::{timestamp_ms, ttl_ms};

/// What PEXPIRETIME says of a key that is not there, and of one that does not expire.
const NOT_THERE: i64 = -2;
const NEVER: i64 = -1;

/// The reply that one of the calls of this file reads.
pub(super) struct Answer<'a> {
    context: &'a Context<'a>,
    replies: Replies<'a>,
}

impl<'a> Answer<'a> {
    pub(super) fn new(context: &'a Context<'a>, bytes: &'a [u8]) -> Self {
        Answer { context, replies: Replies::new(bytes) }
    }

    /// The next element, an error as a failure of the call.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Value<'a>, Error> {
        match self.replies.next() {
            Ok(Value::Error(text)) => Err(errors::of_reply(self.context, text)),
            Ok(value) => Ok(value),
            Err(ProtocolError(_)) => Err(errors::unexpected(self.context)),
        }
    }

    #[inline]
    pub(super) fn integer(&mut self) -> Result<i64, Error> {
        match self.next()? {
            Value::Integer(number) => Ok(number),
            _ => Err(errors::unexpected(self.context)),
        }
    }

    #[inline]
    pub(super) fn blob(&mut self) -> Result<Option<&'a [u8]>, Error> {
        match self.next()? {
            Value::Blob(value) => Ok(Some(value)),
            Value::Null => Ok(None),
            _ => Err(errors::unexpected(self.context)),
        }
    }

    pub(super) fn array(&mut self) -> Result<u64, Error> {
        match self.next()? {
            Value::Array(count) => Ok(count),
            _ => Err(errors::unexpected(self.context)),
        }
    }

    /// `OK`, or nil where a condition of the command did not hold.
    #[inline]
    fn is_ok(&mut self) -> Result<bool, Error> {
        match self.next()? {
            Value::Simple(_) => Ok(true),
            Value::Null => Ok(false),
            _ => Err(errors::unexpected(self.context)),
        }
    }
}

/// A stored value and what is known about it.
pub(super) struct Stored<'a> {
    pub(super) value: &'a [u8],
    version: [u8; 20],
    expires_us: Option<u64>,
}

impl<'a> Stored<'a> {
    /// What GETRANGE and PEXPIRETIME say of a key together; nothing if it is not there or has expired by the caller's clock.
    #[inline]
    pub(super) fn read(
        context: &Context<'_>,
        value: Option<&'a [u8]>,
        expiry: i64,
    ) -> Result<Option<Self>, Error> {
        let (Some(value), Some(expires_us)) = (value, live_expiry(context, expiry)) else {
            return Ok(None);
        };
        if value.len() > value_bytes_max(context) {
            return Err(errors::too_large(context));
        }
        Ok(Some(Stored { value, version: sha1(value), expires_us }))
    }

    #[inline]
    pub(super) fn view(&self) -> Entry<'_> {
        Entry {
            key: None,
            version: Some(&self.version),
            expires_at: self.expires_us.map(timestamp),
            value: self.value,
        }
    }

    /// Ends a reply with the payload that its head announces: copied, or as a part of what was read.
    #[inline]
    fn append(&self, reply: &mut Reply, read: &Bytes) {
        match is_by_reference(self.value) {
            true => reply.tail = read.slice_ref(self.value),
            false => reply.head.extend_from_slice(self.value),
        }
    }
}

/// The longest value that an answer can tell.
pub(super) fn value_bytes_max(context: &Context<'_>) -> usize {
    context.limits.value_bytes_max()
}

/// When a key expires, from PEXPIRETIME: `None` if it is not there, or has expired by the caller's clock.
#[inline]
fn live_expiry(context: &Context<'_>, expiry: i64) -> Option<Option<u64>> {
    match expiry {
        NOT_THERE => None,
        NEVER => Some(None),
        ms => {
            let expires_us = (ms.max(0) as u64).saturating_mul(1000);
            (expires_us > context.now_us).then_some(Some(expires_us))
        }
    }
}

/// What a write makes of the expiry.
#[derive(Clone, Copy)]
enum Expiry {
    Cleared,
    Kept,
    /// At this moment, in ms since the epoch.
    At(u64),
}

impl Expiry {
    #[inline]
    fn new(ttl: Option<Duration>, keep_ttl: bool, now_us: u64) -> Result<Self, Error> {
        Ok(match ttl {
            Some(ttl) => Expiry::At(expires_us(ttl_ms("ttl", &ttl)?, now_us) / 1000),
            None if keep_ttl => Expiry::Kept,
            None => Expiry::Cleared,
        })
    }

    /// How many parts of a SET say so.
    #[inline]
    fn parts(&self) -> usize {
        match self {
            Expiry::Cleared => 0,
            Expiry::Kept => 1,
            Expiry::At(_) => 2,
        }
    }

    #[inline]
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Expiry::Cleared => {}
            Expiry::Kept => codec::put(out, b"KEEPTTL"),
            Expiry::At(ms) => {
                codec::put(out, b"PXAT");
                codec::put_number(out, *ms);
            }
        }
    }
}

fn condition(only_if: Option<SetCondition>) -> Option<&'static [u8]> {
    match only_if {
        Some(SetCondition::Absent) => Some(b"NX"),
        Some(SetCondition::Exists) => Some(b"XX"),
        Some(SetCondition::Unspecified) | None => None,
    }
}

/// Adds a key as a part: `<namespace>:<key>`.
#[inline]
pub(super) fn put_key(out: &mut Vec<u8>, context: &Context<'_>, key: &str) {
    codec::put_pieces(out, [context.namespace_name.as_bytes(), b":", key.as_bytes()]);
}

/// Adds a command that has only a key.
#[inline]
fn put_keyed(out: &mut Vec<u8>, name: &[u8], context: &Context<'_>, key: &str) {
    codec::put_command(out, 2);
    codec::put(out, name);
    put_key(out, context, key);
}

/// Adds the two commands that [`Stored::read`] reads the answers of.
#[inline]
fn put_read(out: &mut Vec<u8>, context: &Context<'_>, key: &str) {
    codec::put_command(out, 4);
    codec::put(out, b"GETRANGE");
    put_key(out, context, key);
    codec::put(out, b"0");
    // One byte more than is allowed tells that there is more.
    codec::put_number(out, value_bytes_max(context) as u64);
    put_keyed(out, b"PEXPIRETIME", context, key);
}

/// Where a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// To the Redis that is by itself.
    Alone,
    /// To the node of a cluster that has this slot.
    Slot(u16),
    /// To any node, if it is a cluster.
    Anywhere,
}

impl Redis {
    /// Where calls on the key `<namespace>:<key>` go.
    #[inline]
    pub(super) fn at_key(&self, context: &Context<'_>, key: &str) -> At {
        match self.cluster() {
            None => At::Alone,
            Some(_) => At::Slot(slot_of(context.namespace_name, key.as_bytes())),
        }
    }

    /// Where a call on all of these keys goes, which has to be one place.
    fn at_keys<'k>(
        &self,
        context: &Context<'_>,
        mut keys: impl Iterator<Item = &'k str>,
    ) -> Result<At, Error> {
        let first = keys.next().map_or(At::Anywhere, |key| self.at_key(context, key));
        match first == At::Alone || keys.all(|key| self.at_key(context, key) == first) {
            true => Ok(first),
            false => Err(errors::cross_slot(context)),
        }
    }

    /// Makes a call of one or more commands, written by `write` as often as it is sent on, and waits for all of their replies.
    #[inline]
    pub(super) async fn call_at(
        &self,
        context: &Context<'_>,
        at: At,
        replies: usize,
        write: impl Fn(&mut Vec<u8>),
    ) -> Result<Bytes, Error> {
        let slot = match (at, &self.cluster) {
            (At::Alone, _) | (_, None) => return self.link.call(context, replies, write).await,
            (At::Slot(slot), _) => Some(slot),
            (At::Anywhere, _) => None,
        };
        if self.link.is_grouping() {
            let slot = self.group_slot(context, at);
            return Ok(self.link.join(slot, replies, write).await);
        }
        let Some(cluster) = self.cluster() else { return Err(self.link.refusal(context)) };
        // In a box, so that the futures of a Redis by itself are no larger for it.
        Box::pin(cluster.call(context, slot, replies, write)).await
    }

    /// The slot of a call of a group; what has no keys goes with its lane's cell.
    fn group_slot(&self, context: &Context<'_>, at: At) -> u16 {
        match at {
            At::Alone => 0,
            At::Slot(slot) => slot,
            At::Anywhere => lane_slot(context),
        }
    }

    /// Runs a script on a Redis by itself: `write` adds its keys and arguments, of which there are so many.
    pub(super) async fn script(
        &self,
        context: &Context<'_>,
        script: Script,
        keys: usize,
        arguments: usize,
        write: impl Fn(&mut Vec<u8>),
    ) -> Result<Bytes, Error> {
        self.script_at(context, At::Alone, script, keys, arguments, write).await
    }

    /// Runs a script where its keys are.
    pub(super) async fn script_at(
        &self,
        context: &Context<'_>,
        at: At,
        script: Script,
        keys: usize,
        arguments: usize,
        write: impl Fn(&mut Vec<u8>),
    ) -> Result<Bytes, Error> {
        let call = |name: &'static [u8], which: &'static [u8]| {
            let write = &write;
            move |out: &mut Vec<u8>| {
                codec::put_command(out, 3 + keys + arguments);
                codec::put(out, name);
                codec::put(out, which);
                codec::put_number(out, keys as u64);
                write(out);
            }
        };
        if self.link.is_grouping()
            && self.link.is_new_to_group(script, self.group_slot(context, at))
        {
            // Within a transaction there is no second attempt; Redis knows the script when the next one comes to it.
            return self.call_at(context, at, 1, call(b"EVAL", script.source().as_bytes())).await;
        }
        let answer = self.call_at(context, at, 1, call(b"EVALSHA", script.digest())).await?;
        if !answer.starts_with(b"-NOSCRIPT") {
            return Ok(answer);
        }
        // It was told to forget its scripts. EVAL makes it know this one again.
        self.call_at(context, at, 1, call(b"EVAL", script.source().as_bytes())).await
    }

    /// Values and expiries of many keys, as `read.lua` tells them: bytes that they may take together, the same for the first by itself, and
    /// whether the answer is to end before the first that does not fit.
    pub(super) async fn read_keys<'k>(
        &self,
        context: &Context<'_>,
        keys: impl ExactSizeIterator<Item = &'k str> + Clone,
        (room, first, ends): (usize, usize, bool),
    ) -> Result<Bytes, Error> {
        if let Some(cluster) = self.cluster() {
            let keys: Vec<_> = keys.collect();
            return Box::pin(cluster.read_each(context, &keys, (room, first, ends))).await;
        }
        let write = |out: &mut Vec<u8>| {
            keys.clone().for_each(|key| put_key(out, context, key));
            codec::put_number(out, room as u64);
            codec::put_number(out, first as u64);
            codec::put_number(out, ends.into());
        };
        self.script(context, Script::Read, keys.len(), 3, write).await
    }
}

impl KeyValueBasic for Redis {
    #[inline]
    async fn get(
        &self,
        context: &Context<'_>,
        request: GetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let write = |out: &mut Vec<u8>| put_read(out, context, request.key);
        let read = self.call_at(context, self.at_key(context, request.key), 2, write).await?;
        let mut answer = Answer::new(context, &read);
        let (value, expiry) = (answer.blob()?, answer.integer()?);
        if let Some(stored) = Stored::read(context, value, expiry)? {
            let response = GetResponse { found: true, entry: Some(stored.view()) };
            response.encode_head(&mut reply.head);
            stored.append(reply, &read);
        }
        Ok(())
    }

    #[inline]
    async fn set(
        &self,
        context: &Context<'_>,
        request: SetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let expiry = Expiry::new(request.ttl, request.keep_ttl, context.now_us)?;
        let only_if = condition(request.only_if());
        if request.return_previous {
            return self.replace(context, request, expiry, only_if, reply).await;
        }
        let write = |out: &mut Vec<u8>| {
            codec::put_command(out, 3 + expiry.parts() + usize::from(only_if.is_some()));
            codec::put(out, b"SET");
            put_key(out, context, request.key);
            codec::put(out, request.value);
            expiry.put(out);
            if let Some(only_if) = only_if {
                codec::put(out, only_if);
            }
        };
        let read = self.call_at(context, self.at_key(context, request.key), 1, write).await?;
        let applied = Answer::new(context, &read).is_ok()?;
        let version = sha1(request.value);
        let version = applied.then_some(&version[..]);
        SetResponse { applied, version, previous: None }.encode(&mut reply.head);
        Ok(())
    }

    async fn delete(
        &self,
        context: &Context<'_>,
        request: DeleteRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let write = |out: &mut Vec<u8>| put_keyed(out, b"UNLINK", context, request.key);
        let read = self.call_at(context, self.at_key(context, request.key), 1, write).await?;
        let existed = Some(Answer::new(context, &read).integer()? == 1);
        DeleteResponse { existed }.encode(&mut reply.head);
        Ok(())
    }

    async fn exists(
        &self,
        context: &Context<'_>,
        request: ExistsRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        // It says more than EXISTS: whether the key has expired by the caller's clock.
        let write = |out: &mut Vec<u8>| put_keyed(out, b"PEXPIRETIME", context, request.key);
        let read = self.call_at(context, self.at_key(context, request.key), 1, write).await?;
        let expiry = Answer::new(context, &read).integer()?;
        let exists = live_expiry(context, expiry).is_some();
        ExistsResponse { exists }.encode(&mut reply.head);
        Ok(())
    }
}

impl Redis {
    /// A Set that tells what was there.
    async fn replace(
        &self,
        context: &Context<'_>,
        request: SetRequest<'_>,
        expiry: Expiry,
        only_if: Option<&[u8]>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let arguments = 2 + expiry.parts() + usize::from(only_if.is_some());
        let write = |out: &mut Vec<u8>| {
            put_key(out, context, request.key);
            codec::put(out, request.value);
            codec::put_number(out, value_bytes_max(context) as u64 + 1);
            expiry.put(out);
            if let Some(only_if) = only_if {
                codec::put(out, only_if);
            }
        };
        let read = self
            .script_at(
                context,
                self.at_key(context, request.key),
                Script::Replace,
                1,
                arguments,
                write,
            )
            .await?;
        let mut answer = Answer::new(context, &read);
        answer.array()?;
        let (applied, value, expiry) = (answer.integer()? == 1, answer.blob()?, answer.integer()?);
        let previous = Stored::read(context, value, expiry)?;
        let version = sha1(request.value);
        let version = applied.then_some(&version[..]);
        let mut response = SetResponse { applied, version, previous: None };
        match &previous {
            None => response.encode(&mut reply.head),
            Some(previous) => {
                response.previous = Some(previous.view());
                response.encode_head(&mut reply.head);
                previous.append(reply, &read);
            }
        }
        Ok(())
    }
}

impl KeyValueTtl for Redis {
    async fn expire(
        &self,
        context: &Context<'_>,
        request: ExpireRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let at_ms = match request.expiry {
            Some(ExpireRequestExpiry::Ttl(ttl)) => {
                expires_us(ttl_ms("ttl", &ttl)?, context.now_us) / 1000
            }
            Some(ExpireRequestExpiry::ExpiresAt(time)) => timestamp_ms("expires_at", &time)?,
            None => return Err(Error::field("EXPIRY_MISSING", "expiry", "must be given")),
        };
        let write = |out: &mut Vec<u8>| {
            codec::put_command(out, 3);
            codec::put(out, b"PEXPIREAT");
            put_key(out, context, request.key);
            codec::put_number(out, at_ms);
        };
        let read = self.call_at(context, self.at_key(context, request.key), 1, write).await?;
        let existed = Some(Answer::new(context, &read).integer()? == 1);
        ExpireResponse { existed }.encode(&mut reply.head);
        Ok(())
    }

    async fn get_ttl(
        &self,
        context: &Context<'_>,
        request: GetTtlRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let write = |out: &mut Vec<u8>| put_keyed(out, b"PEXPIRETIME", context, request.key);
        let read = self.call_at(context, self.at_key(context, request.key), 1, write).await?;
        let expiry = Answer::new(context, &read).integer()?;
        if let Some(expires_us) = live_expiry(context, expiry) {
            let ttl = expires_us.map(|expires_us| time_left(expires_us, context.now_us));
            let response =
                GetTtlResponse { found: true, ttl, expires_at: expires_us.map(timestamp) };
            response.encode(&mut reply.head);
        }
        Ok(())
    }

    async fn persist(
        &self,
        context: &Context<'_>,
        request: PersistRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        // PERSIST does not tell a key that does not expire from one that is not there.
        let write = |out: &mut Vec<u8>| {
            put_keyed(out, b"PERSIST", context, request.key);
            put_keyed(out, b"EXISTS", context, request.key);
        };
        let read = self.call_at(context, self.at_key(context, request.key), 2, write).await?;
        let mut answer = Answer::new(context, &read);
        answer.integer()?;
        let existed = Some(answer.integer()? == 1);
        PersistResponse { existed }.encode(&mut reply.head);
        Ok(())
    }
}

impl KeyValueTransactional for Redis {
    async fn transact(
        &self,
        context: &Context<'_>,
        request: TransactRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        self.transact_with(context, request, Default::default(), reply).await.map(drop)
    }
}

impl Redis {
    /// As [`KeyValueTransactional::transact`], with so many more arguments of the script; whether it was committed.
    pub(super) async fn transact_with(
        &self,
        context: &Context<'_>,
        request: TransactRequest<'_>,
        (more, more_parts): (Vec<u8>, usize),
        reply: &mut Reply,
    ) -> Result<bool, Error> {
        let (conditions, operations) = (request.conditions, request.operations);
        let condition_keys = conditions.iter().map(|condition| condition.key);
        let operation_keys = operations.iter().map(|operation| operation.key);
        let at = self.at_keys(context, condition_keys.chain(operation_keys))?;
        // Before anything is sent: what cannot be carried out has no effect.
        for operation in operations.iter() {
            if let Some(OperationAction::Put(put)) = operation.action {
                Expiry::new(put.ttl, put.keep_ttl, context.now_us)?;
            }
        }
        let write = |out: &mut Vec<u8>| {
            for condition in conditions.iter() {
                put_key(out, context, condition.key);
            }
            for operation in operations.iter() {
                put_key(out, context, operation.key);
            }
            put_transact_head(out, context, conditions.len());
            for condition in conditions.iter() {
                put_condition(out, condition.requirement);
            }
            for operation in operations.iter() {
                let Some(OperationAction::Put(put)) = operation.action else {
                    put_operation_delete(out);
                    continue;
                };
                let expiry = Expiry::new(put.ttl, put.keep_ttl, context.now_us);
                put_operation_put(out, expiry.unwrap_or(Expiry::Cleared), put.value);
            }
            out.extend_from_slice(&more);
        };
        let keys = conditions.len() + operations.len();
        let arguments = 3 + 2 * conditions.len() + 3 * operations.len() + more_parts;
        let read = self.script_at(context, at, Script::Transact, keys, arguments, write).await?;
        let mut answer = Answer::new(context, &read);
        let failures = match answer.next()? {
            Value::Integer(_) => {
                put_committed(reply);
                for operation in operations.iter() {
                    match operation.action {
                        Some(OperationAction::Put(put)) => {
                            put_operation(reply, Some(&sha1(put.value)));
                        }
                        _ => put_operation(reply, None),
                    }
                }
                return Ok(true);
            }
            Value::Array(failures) => failures,
            _ => return Err(errors::unexpected(context)),
        };
        for _ in 0..failures {
            answer.array()?;
            let (index, value, expiry) = (answer.integer()?, answer.blob()?, answer.integer()?);
            let current = Stored::read(context, value, expiry)?;
            let current = current.as_ref().map(Stored::view);
            put_failure(reply, context.limits, index as u32, current);
        }
        Ok(false)
    }
}

fn put_transact_head(out: &mut Vec<u8>, context: &Context<'_>, conditions: usize) {
    codec::put_number(out, conditions as u64);
    codec::put_number(out, context.limits.max_message_size as u64);
    codec::put_number(out, value_bytes_max(context) as u64 + 1);
}

fn put_condition(out: &mut Vec<u8>, requirement: Option<ConditionRequirement<'_>>) {
    match requirement {
        Some(ConditionRequirement::Exists(_)) => {
            codec::put(out, b"exists");
            codec::put(out, b"");
        }
        Some(ConditionRequirement::Value(value)) => {
            codec::put(out, b"value");
            codec::put(out, value);
        }
        Some(ConditionRequirement::Version(version)) => {
            codec::put(out, b"version");
            // What is no digest is no version of anything.
            match version.try_into() {
                Ok(digest) => codec::put(out, &hex(digest)),
                Err(_) => codec::put(out, b""),
            }
        }
        // That it is given was checked.
        Some(ConditionRequirement::Absent(_)) | None => {
            codec::put(out, b"absent");
            codec::put(out, b"");
        }
    }
}

fn put_operation_put(out: &mut Vec<u8>, expiry: Expiry, value: &[u8]) {
    let mut at_ms = 0;
    codec::put(
        out,
        match expiry {
            Expiry::Cleared => b"put",
            Expiry::Kept => b"keep",
            Expiry::At(ms) => {
                at_ms = ms;
                b"until"
            }
        },
    );
    codec::put_number(out, at_ms);
    codec::put(out, value);
}

fn put_operation_delete(out: &mut Vec<u8>) {
    for part in [&b"delete"[..], b"0", b""] {
        codec::put(out, part);
    }
}

impl KeyValueBatch for Redis {
    async fn batch_get(
        &self,
        context: &Context<'_>,
        request: BatchGetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let keys = request.keys;
        let mut reserved = keys.len() * TOO_LARGE_BYTES_MAX;
        let room = context.limits.max_message_size.saturating_sub(reserved);
        let names: Vec<_> = keys.iter().collect();
        let read = self.read_keys(context, names.iter().copied(), (room, 0, false)).await?;
        let mut answer = Answer::new(context, &read);
        answer.array()?;
        for _ in 0..keys.len() {
            reserved -= TOO_LARGE_BYTES_MAX;
            let value = match answer.next() {
                Ok(Value::Blob(value)) => Ok(Some(value)),
                Ok(Value::Integer(_)) => Ok(None),
                Ok(_) => return Err(errors::unexpected(context)),
                Err(error) => Err(error),
            };
            let expiry = answer.integer()?;
            match value {
                Ok(Some(value)) => {
                    let stored = Stored::read(context, Some(value), expiry)?;
                    let entry = stored.as_ref().map(Stored::view);
                    put_got(reply, context.limits, reserved, entry);
                }
                Ok(None) if live_expiry(context, expiry).is_none() => {
                    put_got(reply, context.limits, reserved, None);
                }
                Ok(None) => put_too_large(reply),
                Err(error) => put_status(reply, &error),
            }
        }
        Ok(())
    }

    async fn batch_set(
        &self,
        context: &Context<'_>,
        request: BatchSetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let items = request.items;
        for item in items.iter() {
            Expiry::new(item.ttl, item.keep_ttl, context.now_us)?;
        }
        let put_one = |out: &mut Vec<u8>, item: &BatchSetItem<'_>| {
            let expiry = Expiry::new(item.ttl, item.keep_ttl, context.now_us);
            let expiry = expiry.unwrap_or(Expiry::Cleared);
            codec::put_command(out, 3 + expiry.parts());
            codec::put(out, b"SET");
            put_key(out, context, item.key);
            codec::put(out, item.value);
            expiry.put(out);
        };
        let read = match self.cluster() {
            None => {
                let write = |out: &mut Vec<u8>| items.iter().for_each(|item| put_one(out, &item));
                self.link.call(context, items.len(), write).await?
            }
            Some(_) => {
                let all: Vec<_> = items.iter().collect();
                let slots =
                    all.iter().map(|item| slot_of(context.namespace_name, item.key.as_bytes()));
                let write = |number: usize, out: &mut Vec<u8>| put_one(out, &all[number]);
                Box::pin(self.call_each(context, slots, write)).await?
            }
        };
        let mut answer = Answer::new(context, &read);
        for item in items.iter() {
            match answer.is_ok() {
                Ok(_) => put_set(reply, &sha1(item.value)),
                Err(error) => put_status(reply, &error),
            }
        }
        Ok(())
    }

    async fn batch_delete(
        &self,
        context: &Context<'_>,
        request: BatchDeleteRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let keys = request.keys;
        let put_unlink = |out: &mut Vec<u8>, key: &str| put_keyed(out, b"UNLINK", context, key);
        let read = match self.cluster() {
            None => {
                let write = |out: &mut Vec<u8>| keys.iter().for_each(|key| put_unlink(out, key));
                self.link.call(context, keys.len(), write).await?
            }
            Some(_) => {
                let all: Vec<_> = keys.iter().collect();
                let slots = all.iter().map(|key| slot_of(context.namespace_name, key.as_bytes()));
                let write = |number: usize, out: &mut Vec<u8>| put_unlink(out, all[number]);
                Box::pin(self.call_each(context, slots, write)).await?
            }
        };
        let mut answer = Answer::new(context, &read);
        for _ in 0..keys.len() {
            match answer.integer() {
                Ok(count) => put_deleted(reply, count == 1),
                Err(error) => put_status(reply, &error),
            }
        }
        Ok(())
    }
}

impl Redis {
    /// A transaction of one condition and one operation on one key; whether it was committed, and the answer otherwise.
    async fn compare(
        &self,
        context: &Context<'_>,
        key: &str,
        requirement: Option<ConditionRequirement<'_>>,
        put: Option<(Expiry, &[u8])>,
    ) -> Result<(bool, Bytes), Error> {
        let write = |out: &mut Vec<u8>| {
            put_key(out, context, key);
            put_key(out, context, key);
            put_transact_head(out, context, 1);
            put_condition(out, requirement);
            match put {
                Some((expiry, value)) => put_operation_put(out, expiry, value),
                None => put_operation_delete(out),
            }
        };
        let read = self
            .script_at(context, self.at_key(context, key), Script::Transact, 2, 3 + 2 + 3, write)
            .await?;
        let committed = matches!(Answer::new(context, &read).next()?, Value::Integer(_));
        Ok((committed, read))
    }
}

/// The entry that a comparison found instead of what was expected.
fn current<'a>(context: &'a Context<'a>, read: &'a [u8]) -> Result<Option<Stored<'a>>, Error> {
    let mut answer = Answer::new(context, read);
    answer.array()?;
    answer.array()?;
    answer.integer()?;
    let (value, expiry) = (answer.blob()?, answer.integer()?);
    Stored::read(context, value, expiry)
}

impl KeyValueCas for Redis {
    async fn compare_and_swap(
        &self,
        context: &Context<'_>,
        request: CompareAndSwapRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let requirement = request.expected.map(|expected| match expected {
            CompareAndSwapRequestExpected::ExpectedValue(value) => {
                ConditionRequirement::Value(value)
            }
            CompareAndSwapRequestExpected::ExpectedAbsent(empty) => {
                ConditionRequirement::Absent(empty)
            }
            CompareAndSwapRequestExpected::ExpectedVersion(version) => {
                ConditionRequirement::Version(version)
            }
        });
        let expiry = Expiry::new(request.ttl, request.keep_ttl, context.now_us)?;
        let put = Some((expiry, request.value));
        let (swapped, read) = self.compare(context, request.key, requirement, put).await?;
        let mut response = CompareAndSwapResponse { swapped, ..Default::default() };
        if swapped {
            let version = sha1(request.value);
            response.version = Some(&version);
            response.encode(&mut reply.head);
            return Ok(());
        }
        match current(context, &read)? {
            None => response.encode(&mut reply.head),
            Some(current) => {
                response.current = Some(current.view());
                response.encode_head(&mut reply.head);
                current.append(reply, &read);
            }
        }
        Ok(())
    }

    async fn compare_and_delete(
        &self,
        context: &Context<'_>,
        request: CompareAndDeleteRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let requirement = request.expected.map(|expected| match expected {
            CompareAndDeleteRequestExpected::ExpectedValue(value) => {
                ConditionRequirement::Value(value)
            }
            CompareAndDeleteRequestExpected::ExpectedVersion(version) => {
                ConditionRequirement::Version(version)
            }
        });
        let (deleted, read) = self.compare(context, request.key, requirement, None).await?;
        let mut response = CompareAndDeleteResponse { deleted, ..Default::default() };
        if deleted {
            response.encode(&mut reply.head);
            return Ok(());
        }
        match current(context, &read)? {
            None => response.encode(&mut reply.head),
            Some(current) => {
                response.current = Some(current.view());
                response.encode_head(&mut reply.head);
                current.append(reply, &read);
            }
        }
        Ok(())
    }
}
