//! memstore's KeyValue interfaces, but for scans.
//!
//! A reply that shows what was there is written before the change. Everything is decided by the
//! context's time and stamped with its revision.

use prism_proto::prism::keyvalue::v1::SetCondition;
use prism_proto::view::keyvalue::{
    BatchDeleteRequest, BatchGetRequest, BatchSetRequest, CompareAndDeleteRequest,
    CompareAndDeleteRequestExpected, CompareAndDeleteResponse, CompareAndSwapRequest,
    CompareAndSwapRequestExpected, CompareAndSwapResponse, DeleteRequest, DeleteResponse,
    ExistsRequest, ExistsResponse, ExpireRequest, ExpireRequestExpiry, ExpireResponse, GetRequest,
    GetResponse, GetTtlRequest, GetTtlResponse, PersistRequest, PersistResponse, SetRequest,
    SetResponse, TransactRequest,
};
use prism_proto::view::protobuf::Duration;
use prism_proto::view::types::{ConditionRequirement, Entry as EntryView, OperationAction};

use super::Memstore;
use super::entry::{NEVER, Stored, Value};
use super::store::{Expiry, Spot, Store};
use crate::call::{Context, Reply, Version};
use crate::error::Error;
use crate::interfaces::keyvalue::{
    KeyValueBasic, KeyValueBatch, KeyValueCas, KeyValueTransactional, KeyValueTtl,
};
use crate::interfaces::keyvalue_replies::{
    TOO_LARGE_BYTES_MAX, expires_us, put_committed, put_deleted, put_failure, put_got,
    put_operation, put_set, time_left, timestamp,
};
use crate::limits::{timestamp_ms, ttl_ms};

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
            Some(ExpireRequestExpiry::Ttl(ttl)) => expires_us(ttl_ms("ttl", &ttl)?, context.now_us),
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
            response.ttl = Some(time_left(entry.expires_us, context.now_us));
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
        self.transact_now(context, request, reply).map(drop)
    }
}

impl Memstore {
    /// Carries out a Transact; whether it was committed.
    pub(super) fn transact_now(
        &self,
        context: &Context<'_>,
        request: TransactRequest<'_>,
        reply: &mut Reply,
    ) -> Result<bool, Error> {
        let mut store = self.store.borrow_mut();
        for (index, condition) in request.conditions.iter().enumerate() {
            let entry = find(&store, context, condition.key);
            if !holds(condition.requirement, entry) {
                let version = entry.map(|entry| entry.revision().version()).unwrap_or_default();
                let current = entry.map(|entry| view(entry, &version));
                put_failure(reply, context.limits, index as u32, current);
            }
        }
        if !reply.is_empty() {
            return Ok(false);
        }
        let version = context.revision.version();
        put_committed(reply);
        for operation in request.operations.iter() {
            if let Some(OperationAction::Put(put)) = operation.action {
                let expiry = expiry(put.ttl, put.keep_ttl, context.now_us)?;
                set(&mut store, context, operation.key, put.value, expiry);
                put_operation(reply, Some(&version));
            } else {
                delete(&mut store, context, operation.key);
                put_operation(reply, None);
            }
        }
        Ok(true)
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
        // Every result that does not fit is answered by a short status: room is kept for them.
        let mut reserved = request.keys.len() * TOO_LARGE_BYTES_MAX;
        for key in request.keys.iter() {
            reserved -= TOO_LARGE_BYTES_MAX;
            let entry = find(&store, context, key);
            let version = entry.map(|entry| entry.revision().version()).unwrap_or_default();
            let entry = entry.map(|entry| view(entry, &version));
            put_got(reply, context.limits, reserved, entry);
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
        for item in request.items.iter() {
            let expiry = expiry(item.ttl, item.keep_ttl, context.now_us)?;
            set(&mut store, context, item.key, item.value, expiry);
            put_set(reply, &version);
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
            put_deleted(reply, existed);
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
fn find<'s>(store: &'s Store, context: &Context<'_>, key: &str) -> Option<Stored<'s>> {
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

fn holds(requirement: Option<ConditionRequirement<'_>>, entry: Option<Stored<'_>>) -> bool {
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

/// What a write makes of the expiry: with neither `ttl` nor `keep_ttl` it is cleared.
#[inline]
fn expiry(ttl: Option<Duration>, keep_ttl: bool, now_us: u64) -> Result<Expiry, Error> {
    Ok(match ttl {
        Some(ttl) => Expiry::At(expires_us(ttl_ms("ttl", &ttl)?, now_us)),
        None if keep_ttl => Expiry::Keep,
        None => Expiry::At(NEVER),
    })
}

#[inline]
pub(super) fn view<'a>(entry: Stored<'a>, version: &'a Version) -> EntryView<'a> {
    EntryView {
        key: None,
        version: Some(version),
        expires_at: (entry.expires_us != NEVER).then(|| timestamp(entry.expires_us)),
        value: entry.value().bytes(),
    }
}

/// Ends a reply with the payload that its head announces: copied, or by reference.
#[inline]
fn append(reply: &mut Reply, value: Value<'_>) {
    match value {
        Value::Small(value) => reply.head.extend_from_slice(value),
        Value::Large(value) => reply.tail = value.clone(),
    }
}
