//! memstore's KeyValue interfaces, but for scans.
//!
//! A reply that shows what was there is written before the change. Everything is decided by the
//! context's time and stamped with its revision.

use prism_proto::prism::keyvalue::v1::SetCondition;
use prism_proto::rpc::StatusDetails;
use prism_proto::view::keyvalue::{
    BatchDeleteRequest, BatchGetRequest, BatchSetRequest, CompareAndDeleteRequest,
    CompareAndDeleteRequestExpected, CompareAndDeleteResponse, CompareAndSwapRequest,
    CompareAndSwapRequestExpected, CompareAndSwapResponse, DeleteRequest, DeleteResponse,
    ExistsRequest, ExistsResponse, ExpireRequest, ExpireRequestExpiry, ExpireResponse, GetRequest,
    GetResponse, GetTtlRequest, GetTtlResponse, PersistRequest, PersistResponse, SetRequest,
    SetResponse, TransactRequest,
};
use prism_proto::view::protobuf::{Duration, Timestamp};
use prism_proto::view::types::{
    ConditionFailure, ConditionRequirement, Entry as EntryView, OperationAction, OperationResult,
};
use prism_proto::wire::{self, WireType};

use super::Memstore;
use super::entry::{Entry, NEVER, Value};
use super::store::{Expiry, Spot, Store};
use crate::call::{Context, Reply, Version};
use crate::error::{Error, Kind};
use crate::interfaces::keyvalue::{
    KeyValueBasic, KeyValueBatch, KeyValueCas, KeyValueTransactional, KeyValueTtl,
};
use crate::limits::{timestamp_ms, ttl_ms};

/// Bytes of a result that only says that it did not fit.
const TOO_LARGE_BYTES_MAX: usize = 256;

/// Field numbers of the replies whose repeated fields are written piece by piece.
mod field {
    pub(super) const TRANSACT_COMMITTED: u32 = 1;
    pub(super) const TRANSACT_RESULTS: u32 = 2;
    pub(super) const TRANSACT_FAILURES: u32 = 3;
    pub(super) const BATCH_RESULTS: u32 = 1;
    pub(super) const BATCH_STATUS: u32 = 1;
    pub(super) const BATCH_GET_FOUND: u32 = 2;
    pub(super) const BATCH_GET_ENTRY: u32 = 3;
    pub(super) const BATCH_SET_VERSION: u32 = 2;
    pub(super) const BATCH_DELETE_EXISTED: u32 = 2;
}

impl KeyValueBasic for Memstore {
    #[inline]
    async fn get(
        &self,
        context: &Context<'_>,
        request: GetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let store = self.store.borrow();
        if let Some(entry) = find(&store, context, request.key) {
            let version = entry.revision().version();
            let entry_view = Some(view(entry, &version));
            let response = GetResponse { found: true, entry: entry_view };
            response.encode_head(&mut reply.head);
            append(reply, entry.value());
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
        let mut store = self.store.borrow_mut();
        let spot = locate(&mut store, context, request.key);
        let now_us = context.now_us;
        let previous = store.live(spot, now_us);
        let applied = match request.only_if() {
            Some(SetCondition::Absent) => previous.is_none(),
            Some(SetCondition::Exists) => previous.is_some(),
            Some(SetCondition::Unspecified) | None => true,
        };
        let version = context.revision.version();
        let mut response = SetResponse { applied, ..SetResponse::default() };
        response.version = applied.then_some(&*version);
        match previous.filter(|_| request.return_previous) {
            None => response.encode(&mut reply.head),
            Some(previous) => {
                let version = previous.revision().version();
                response.previous = Some(view(previous, &version));
                response.encode_head(&mut reply.head);
                append(reply, previous.value());
            }
        }
        if applied {
            let expiry = expiry(request.ttl, request.keep_ttl, now_us)?;
            let (key, value) = (request.key.as_bytes(), request.value);
            store.put(spot, key, value, expiry, context.revision, now_us);
        }
        Ok(())
    }

    async fn delete(
        &self,
        context: &Context<'_>,
        request: DeleteRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let existed = Some(delete(&mut self.store.borrow_mut(), context, request.key));
        DeleteResponse { existed }.encode(&mut reply.head);
        Ok(())
    }

    async fn exists(
        &self,
        context: &Context<'_>,
        request: ExistsRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let exists = find(&self.store.borrow(), context, request.key).is_some();
        ExistsResponse { exists }.encode(&mut reply.head);
        Ok(())
    }
}

impl KeyValueTtl for Memstore {
    async fn expire(
        &self,
        context: &Context<'_>,
        request: ExpireRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let expires_us = match request.expiry {
            Some(ExpireRequestExpiry::Ttl(ttl)) => after(ttl_ms("ttl", &ttl)?, context.now_us),
            Some(ExpireRequestExpiry::ExpiresAt(time)) => timestamp_ms("expires_at", &time)? * 1000,
            None => NEVER,
        };
        let mut store = self.store.borrow_mut();
        let spot = existing(&store, context, request.key);
        if let Some(spot) = spot {
            match expires_us > context.now_us {
                true => store.set_expiry(spot, expires_us, context.now_us),
                false => store.remove(spot, context.now_us),
            }
        }
        ExpireResponse { existed: Some(spot.is_some()) }.encode(&mut reply.head);
        Ok(())
    }

    async fn get_ttl(
        &self,
        context: &Context<'_>,
        request: GetTtlRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let store = self.store.borrow();
        let Some(entry) = find(&store, context, request.key) else { return Ok(()) };
        let mut response = GetTtlResponse { found: true, ttl: None, expires_at: None };
        if entry.expires_us != NEVER {
            let left_ms = (entry.expires_us - context.now_us).div_ceil(1000);
            response.ttl = Some(Duration {
                seconds: (left_ms / 1000) as i64,
                nanos: (left_ms % 1000) as i32 * 1_000_000,
            });
            response.expires_at = Some(timestamp(entry.expires_us));
        }
        response.encode(&mut reply.head);
        Ok(())
    }

    async fn persist(
        &self,
        context: &Context<'_>,
        request: PersistRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let mut store = self.store.borrow_mut();
        let spot = existing(&store, context, request.key);
        if let Some(spot) = spot {
            store.set_expiry(spot, NEVER, context.now_us);
        }
        PersistResponse { existed: Some(spot.is_some()) }.encode(&mut reply.head);
        Ok(())
    }
}

impl KeyValueTransactional for Memstore {
    async fn transact(
        &self,
        context: &Context<'_>,
        request: TransactRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let mut store = self.store.borrow_mut();
        let head = &mut reply.head;
        for (index, condition) in request.conditions.iter().enumerate() {
            let entry = find(&store, context, condition.key);
            if !holds(condition.requirement, entry) {
                put_failure(head, context, index as u32, entry);
            }
        }
        if !head.is_empty() {
            return Ok(());
        }
        let version = context.revision.version();
        wire::put_tag(head, field::TRANSACT_COMMITTED, WireType::Varint);
        wire::put_varint(head, 1);
        for operation in request.operations.iter() {
            let mut result = OperationResult { version: None };
            if let Some(OperationAction::Put(put)) = operation.action {
                let expiry = expiry(put.ttl, put.keep_ttl, context.now_us)?;
                set(&mut store, context, operation.key, put.value, expiry);
                result.version = Some(&version);
            } else {
                delete(&mut store, context, operation.key);
            }
            wire::put_length(head, field::TRANSACT_RESULTS, result.encoded_len());
            result.encode(head);
        }
        Ok(())
    }
}

impl KeyValueBatch for Memstore {
    async fn batch_get(
        &self,
        context: &Context<'_>,
        request: BatchGetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let store = self.store.borrow();
        let head = &mut reply.head;
        // Every result that does not fit is answered by a short status: room is kept for them.
        let mut reserved = request.keys.len() * TOO_LARGE_BYTES_MAX;
        for key in request.keys.iter() {
            reserved -= TOO_LARGE_BYTES_MAX;
            let Some(entry) = find(&store, context, key) else {
                wire::put_length(head, field::BATCH_RESULTS, 0);
                continue;
            };
            let version = entry.revision().version();
            let view = view(entry, &version);
            let entry_bytes = view.encoded_len();
            let result_bytes = 2 + wire::bytes_field_len(field::BATCH_GET_ENTRY, entry_bytes);
            if head.len() + result_bytes + 8 + reserved > context.limits.max_message_size {
                put_too_large(head);
                continue;
            }
            wire::put_length(head, field::BATCH_RESULTS, result_bytes);
            wire::put_tag(head, field::BATCH_GET_FOUND, WireType::Varint);
            wire::put_varint(head, 1);
            wire::put_length(head, field::BATCH_GET_ENTRY, entry_bytes);
            view.encode(head);
        }
        Ok(())
    }

    async fn batch_set(
        &self,
        context: &Context<'_>,
        request: BatchSetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let mut store = self.store.borrow_mut();
        let version = context.revision.version();
        let length = wire::bytes_field_len(field::BATCH_SET_VERSION, version.len());
        for item in request.items.iter() {
            let expiry = expiry(item.ttl, item.keep_ttl, context.now_us)?;
            set(&mut store, context, item.key, item.value, expiry);
            wire::put_length(&mut reply.head, field::BATCH_RESULTS, length);
            wire::put_bytes(&mut reply.head, field::BATCH_SET_VERSION, &version);
        }
        Ok(())
    }

    async fn batch_delete(
        &self,
        context: &Context<'_>,
        request: BatchDeleteRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let mut store = self.store.borrow_mut();
        for key in request.keys.iter() {
            let existed = delete(&mut store, context, key);
            wire::put_length(&mut reply.head, field::BATCH_RESULTS, 2);
            wire::put_tag(&mut reply.head, field::BATCH_DELETE_EXISTED, WireType::Varint);
            wire::put_varint(&mut reply.head, existed.into());
        }
        Ok(())
    }
}

impl KeyValueCas for Memstore {
    async fn compare_and_swap(
        &self,
        context: &Context<'_>,
        request: CompareAndSwapRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let mut store = self.store.borrow_mut();
        let spot = locate(&mut store, context, request.key);
        let current = store.live(spot, context.now_us);
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
        let swapped = holds(requirement, current);
        let version = context.revision.version();
        let mut response = CompareAndSwapResponse { swapped, ..Default::default() };
        match current.filter(|_| !swapped) {
            None => {
                response.version = swapped.then_some(&*version);
                response.encode(&mut reply.head);
            }
            Some(current) => {
                let version = current.revision().version();
                response.current = Some(view(current, &version));
                response.encode_head(&mut reply.head);
                append(reply, current.value());
            }
        }
        if swapped {
            let expiry = expiry(request.ttl, request.keep_ttl, context.now_us)?;
            let (key, value) = (request.key.as_bytes(), request.value);
            store.put(spot, key, value, expiry, context.revision, context.now_us);
        }
        Ok(())
    }

    async fn compare_and_delete(
        &self,
        context: &Context<'_>,
        request: CompareAndDeleteRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let mut store = self.store.borrow_mut();
        let current = find(&store, context, request.key);
        let requirement = request.expected.map(|expected| match expected {
            CompareAndDeleteRequestExpected::ExpectedValue(value) => {
                ConditionRequirement::Value(value)
            }
            CompareAndDeleteRequestExpected::ExpectedVersion(version) => {
                ConditionRequirement::Version(version)
            }
        });
        let deleted = holds(requirement, current);
        let mut response = CompareAndDeleteResponse { deleted, ..Default::default() };
        match current.filter(|_| !deleted) {
            None => response.encode(&mut reply.head),
            Some(current) => {
                let version = current.revision().version();
                response.current = Some(view(current, &version));
                response.encode_head(&mut reply.head);
                append(reply, current.value());
            }
        }
        if deleted {
            delete(&mut store, context, request.key);
        }
        Ok(())
    }
}

#[inline]
fn find<'s>(store: &'s Store, context: &Context<'_>, key: &str) -> Option<&'s Entry> {
    store.get(context.namespace, context.partition, key.as_bytes(), context.now_us)
}

#[inline]
fn locate(store: &mut Store, context: &Context<'_>, key: &str) -> Spot {
    let (namespace, partition) = (context.namespace, context.partition);
    let lane = store.lane_or_new(namespace, partition, context.namespace_name);
    store.locate(lane, key.as_bytes())
}

/// The spot of a key that exists; makes no lane.
fn existing(store: &Store, context: &Context<'_>, key: &str) -> Option<Spot> {
    let lane = store.lane(context.namespace, context.partition)?;
    let spot = store.locate(lane, key.as_bytes());
    store.live(spot, context.now_us).map(|_| spot)
}

fn set(store: &mut Store, context: &Context<'_>, key: &str, value: &[u8], expiry: Expiry) {
    let spot = locate(store, context, key);
    store.put(spot, key.as_bytes(), value, expiry, context.revision, context.now_us);
}

/// Removes a key; whether it existed.
fn delete(store: &mut Store, context: &Context<'_>, key: &str) -> bool {
    let Some(lane) = store.lane(context.namespace, context.partition) else { return false };
    let spot = store.locate(lane, key.as_bytes());
    let existed = store.live(spot, context.now_us).is_some();
    store.remove(spot, context.now_us);
    existed
}

fn holds(requirement: Option<ConditionRequirement<'_>>, entry: Option<&Entry>) -> bool {
    match requirement {
        Some(ConditionRequirement::Absent(_)) => entry.is_none(),
        Some(ConditionRequirement::Exists(_)) => entry.is_some(),
        Some(ConditionRequirement::Value(value)) => {
            entry.is_some_and(|entry| entry.value().bytes() == value)
        }
        Some(ConditionRequirement::Version(version)) => {
            entry.is_some_and(|entry| &*entry.revision().version() == version)
        }
        None => false,
    }
}

/// Adds a failed condition. The reply holds as many as fit into a message, and at least one.
fn put_failure(head: &mut Vec<u8>, context: &Context<'_>, index: u32, entry: Option<&Entry>) {
    let version = entry.map(|entry| entry.revision().version()).unwrap_or_default();
    let current = entry.map(|entry| view(entry, &version));
    let failure = ConditionFailure { index, current };
    let length = failure.encoded_len();
    if head.is_empty() || head.len() + length + 8 <= context.limits.max_message_size {
        wire::put_length(head, field::TRANSACT_FAILURES, length);
        failure.encode(head);
    }
}

/// What a write makes of the expiry: with neither `ttl` nor `keep_ttl` it is cleared.
#[inline]
fn expiry(ttl: Option<Duration>, keep_ttl: bool, now_us: u64) -> Result<Expiry, Error> {
    Ok(match ttl {
        Some(ttl) => Expiry::At(after(ttl_ms("ttl", &ttl)?, now_us)),
        None if keep_ttl => Expiry::Keep,
        None => Expiry::At(NEVER),
    })
}

/// So many milliseconds from now on, and not less: on a full millisecond.
fn after(ttl_ms: u64, now_us: u64) -> u64 {
    (now_us.div_ceil(1000) + ttl_ms) * 1000
}

#[inline]
pub(super) fn view<'a>(entry: &'a Entry, version: &'a Version) -> EntryView<'a> {
    EntryView {
        key: None,
        version: Some(version),
        expires_at: (entry.expires_us != NEVER).then(|| timestamp(entry.expires_us)),
        value: entry.value().bytes(),
    }
}

fn timestamp(time_us: u64) -> Timestamp {
    Timestamp { seconds: (time_us / 1_000_000) as i64, nanos: (time_us % 1_000_000) as i32 * 1000 }
}

/// Ends a reply with the payload that its head announces: copied, or by reference.
#[inline]
fn append(reply: &mut Reply, value: Value<'_>) {
    match value {
        Value::Small(value) => reply.head.extend_from_slice(value),
        Value::Large(value) => reply.tail = value.clone(),
    }
}

/// Adds a result of BatchGet that says why there is none.
#[cold]
fn put_too_large(head: &mut Vec<u8>) {
    let message = "the results before this one fill a message; get it by itself";
    let code = i32::from(Kind::ResourceExhausted.grpc_code());
    let status = StatusDetails::new(code, message, "REPLY_TOO_LARGE").encode();
    let length = wire::bytes_field_len(field::BATCH_STATUS, status.len());
    assert!(length + 8 <= TOO_LARGE_BYTES_MAX);
    wire::put_length(head, field::BATCH_RESULTS, length);
    wire::put_bytes(head, field::BATCH_STATUS, &status);
}
