//! PostgreSQL's KeyValue interfaces, but for scans.
//!
//! Plain Gets, Sets and Deletes share statements with their neighbours; whatever depends on what is there is one call of the
//! namespace's function `transact`.

use bytes::Bytes;
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
use prism_proto::view::types::{ConditionRequirement, Entry, OperationAction};

use super::Postgres;
use super::batch::{Answer, Operation, moment};
use super::codec::{Parameters, Row, Type};
use super::errors;
use super::statements::Statement;
use crate::call::{Context, Reply};
use crate::error::Error;
use crate::interfaces::keyvalue::{
    KeyValueBasic, KeyValueBatch, KeyValueCas, KeyValueTransactional, KeyValueTtl,
};
use crate::interfaces::keyvalue_replies::{
    TOO_LARGE_BYTES_MAX, expires_us, is_by_reference, put_committed, put_deleted, put_failure,
    put_got, put_operation, put_set, put_too_large, time_left, timestamp,
};
use crate::limits::{timestamp_ms, ttl_ms};

/// What the row of the entry before has for a number.
const PREVIOUS: i64 = -1;

/// A stored entry that has not expired by the caller's clock.
pub(super) struct Stored<'a> {
    value: &'a Bytes,
    version: [u8; 8],
    expires_us: Option<u64>,
}

/// Whether there is an entry, and it has not expired by the caller's clock.
pub(super) fn is_live(context: &Context<'_>, row: &Row) -> bool {
    // No entry has the version 0.
    row.version != 0 && row.expires_us.is_none_or(|expires_us| expires_us > context.now_us)
}

impl<'a> Stored<'a> {
    /// # Errors
    /// The value is longer than any answer may be.
    pub(super) fn read(context: &Context<'_>, row: &'a Row) -> Result<Option<Self>, Error> {
        if !is_live(context, row) {
            return Ok(None);
        }
        let value = row.value.as_ref().ok_or_else(|| errors::too_large(context))?;
        Ok(Some(Stored { value, version: row.version.to_be_bytes(), expires_us: row.expires_us }))
    }

    pub(super) fn view(&self) -> Entry<'_> {
        Entry {
            key: None,
            version: Some(&self.version),
            expires_at: self.expires_us.map(timestamp),
            value: self.value,
        }
    }

    /// Ends a reply with the payload that its head announces: copied, or as a part of what was read.
    fn append(&self, reply: &mut Reply) {
        match is_by_reference(self.value) {
            true => reply.tail = self.value.clone(),
            false => reply.head.extend_from_slice(self.value),
        }
    }
}

/// The longest value that an answer can tell.
pub(super) fn value_bytes_max(context: &Context<'_>) -> i32 {
    i32::try_from(context.limits.value_bytes_max()).unwrap_or(i32::MAX)
}

/// What a write makes of the expiry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expiry {
    Kept,
    /// At this moment, in µs since the epoch, or never.
    Set(Option<u64>),
}

impl Expiry {
    fn new(ttl: Option<Duration>, keep_ttl: bool, now_us: u64) -> Result<Self, Error> {
        Ok(match ttl {
            Some(ttl) => Expiry::Set(Some(expires_us(ttl_ms("ttl", &ttl)?, now_us))),
            None if keep_ttl => Expiry::Kept,
            None => Expiry::Set(None),
        })
    }
}

/// A condition as `transact` takes it.
struct Condition<'a> {
    key: &'a str,
    requirement: i16,
    operand: &'a [u8],
}

impl<'a> Condition<'a> {
    fn new(key: &'a str, requirement: Option<ConditionRequirement<'a>>) -> Self {
        let (requirement, operand) = match requirement {
            Some(ConditionRequirement::Exists(_)) => (2, &b""[..]),
            Some(ConditionRequirement::Value(value)) => (3, value),
            Some(ConditionRequirement::Version(version)) => (4, version),
            // That it is given was checked.
            Some(ConditionRequirement::Absent(_)) | None => (1, &b""[..]),
        };
        Condition { key, requirement, operand }
    }
}

/// An operation as `transact` takes it: what is put, or nothing for a delete.
struct Change<'a> {
    key: &'a str,
    put: Option<(&'a [u8], Expiry)>,
}

/// A call of `transact`.
fn transact(
    context: &Context<'_>,
    conditions: &[Condition<'_>],
    changes: &[Change<'_>],
    tell_previous: bool,
) -> Operation {
    let parameters = parameters(context, conditions, changes, tell_previous);
    Operation::Other { statement: Statement::Transact, parameters, versions: changes.len() as u32 }
}

/// Its parameters, but for the first version.
fn parameters(
    context: &Context<'_>,
    conditions: &[Condition<'_>],
    changes: &[Change<'_>],
    tell_previous: bool,
) -> Parameters {
    let room = i64::try_from(context.limits.max_message_size).unwrap_or(i64::MAX);
    let action = |change: &Change<'_>| -> i16 {
        match change.put {
            None => 0,
            Some((_, Expiry::Set(_))) => 1,
            Some((_, Expiry::Kept)) => 2,
        }
    };
    let expiry = |change: &Change<'_>| match change.put {
        Some((_, Expiry::Set(expires_us))) => expires_us.map(moment),
        _ => None,
    };
    Parameters::default()
        .moment(context.now_us)
        .array(Type::Text, conditions.iter().map(|one| Some(one.key)))
        .array(Type::Int2, conditions.iter().map(|one| Some(one.requirement.to_be_bytes())))
        .array(Type::Bytea, conditions.iter().map(|one| Some(one.operand)))
        .array(Type::Text, changes.iter().map(|one| Some(one.key)))
        .array(Type::Int2, changes.iter().map(|one| Some(action(one).to_be_bytes())))
        .array(Type::Bytea, changes.iter().map(|one| one.put.map(|(value, _)| value)))
        .array(Type::Timestamptz, changes.iter().map(expiry))
        .int8(room)
        .int4(value_bytes_max(context))
        .boolean(tell_previous)
}

/// The condition that did not hold first, if one did not.
fn failure(answer: &Answer) -> Option<&Row> {
    answer.rows.iter().map(|(_, row)| row).find(|row| row.number != PREVIOUS)
}

fn first_version(answer: &Answer) -> [u8; 8] {
    answer.versions.first().copied().unwrap_or_default().to_be_bytes()
}

/// A read of one key, with its value if that is not longer.
fn get(key: &str, value_max: i32) -> Operation {
    Operation::Get { key: key.into(), value_max }
}

impl KeyValueBasic for Postgres {
    async fn get(
        &self,
        context: &Context<'_>,
        request: GetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let answer = self.read(context, vec![get(request.key, value_bytes_max(context))]).await?;
        let Some(row) = answer.row() else { return Ok(()) };
        if let Some(stored) = Stored::read(context, row)? {
            let response = GetResponse { found: true, entry: Some(stored.view()) };
            response.encode_head(&mut reply.head);
            stored.append(reply);
        }
        Ok(())
    }

    async fn set(
        &self,
        context: &Context<'_>,
        request: SetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let expiry = Expiry::new(request.ttl, request.keep_ttl, context.now_us)?;
        let requirement = match request.only_if() {
            Some(SetCondition::Absent) => Some(1),
            Some(SetCondition::Exists) => Some(2),
            Some(SetCondition::Unspecified) | None => None,
        };
        let operation = match (requirement, expiry, request.return_previous) {
            (None, Expiry::Set(expires_us), false) => {
                Operation::Put { key: request.key.into(), value: request.value.into(), expires_us }
            }
            _ => {
                let condition = requirement.map(|requirement| Condition {
                    key: request.key,
                    requirement,
                    operand: b"",
                });
                let change = Change { key: request.key, put: Some((request.value, expiry)) };
                let tell_previous = request.return_previous;
                transact(context, condition.as_slice(), &[change], tell_previous)
            }
        };
        let answer = self.write(context, vec![operation]).await?;
        let applied = failure(&answer).is_none();
        let version = first_version(&answer);
        let version = applied.then_some(&version[..]);
        let mut response = SetResponse { applied, version, previous: None };
        let previous = answer.rows.iter().find(|(_, row)| row.number == PREVIOUS);
        let previous = match previous {
            Some((_, row)) => Stored::read(context, row)?,
            None => None,
        };
        match &previous {
            None => response.encode(&mut reply.head),
            Some(previous) => {
                response.previous = Some(previous.view());
                response.encode_head(&mut reply.head);
                previous.append(reply);
            }
        }
        Ok(())
    }

    async fn delete(
        &self,
        context: &Context<'_>,
        request: DeleteRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let operation = Operation::Delete { key: request.key.into() };
        let answer = self.write(context, vec![operation]).await?;
        let existed = Some(answer.row().is_some_and(|row| is_live(context, row)));
        DeleteResponse { existed }.encode(&mut reply.head);
        Ok(())
    }

    async fn exists(
        &self,
        context: &Context<'_>,
        request: ExistsRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let answer = self.read(context, vec![get(request.key, -1)]).await?;
        let exists = answer.row().is_some_and(|row| is_live(context, row));
        ExistsResponse { exists }.encode(&mut reply.head);
        Ok(())
    }
}

impl KeyValueTtl for Postgres {
    async fn expire(
        &self,
        context: &Context<'_>,
        request: ExpireRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let at_us = match request.expiry {
            Some(ExpireRequestExpiry::Ttl(ttl)) => expires_us(ttl_ms("ttl", &ttl)?, context.now_us),
            Some(ExpireRequestExpiry::ExpiresAt(time)) => {
                timestamp_ms("expires_at", &time)?.saturating_mul(1000)
            }
            None => return Err(Error::field("EXPIRY_MISSING", "expiry", "must be given")),
        };
        let parameters = Parameters::default().bytes(request.key.as_bytes()).moment(context.now_us);
        let parameters = parameters.moment(at_us);
        let operation = Operation::Other { statement: Statement::Expire, parameters, versions: 0 };
        let answer = self.write(context, vec![operation]).await?;
        ExpireResponse { existed: Some(answer.row().is_some()) }.encode(&mut reply.head);
        Ok(())
    }

    async fn get_ttl(
        &self,
        context: &Context<'_>,
        request: GetTtlRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let answer = self.read(context, vec![get(request.key, -1)]).await?;
        if let Some(row) = answer.row().filter(|row| is_live(context, row)) {
            let ttl = row.expires_us.map(|expires_us| time_left(expires_us, context.now_us));
            let expires_at = row.expires_us.map(timestamp);
            GetTtlResponse { found: true, ttl, expires_at }.encode(&mut reply.head);
        }
        Ok(())
    }

    async fn persist(
        &self,
        context: &Context<'_>,
        request: PersistRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let parameters = Parameters::default().bytes(request.key.as_bytes()).moment(context.now_us);
        let operation = Operation::Other { statement: Statement::Persist, parameters, versions: 0 };
        let answer = self.write(context, vec![operation]).await?;
        PersistResponse { existed: Some(answer.row().is_some()) }.encode(&mut reply.head);
        Ok(())
    }
}

impl KeyValueTransactional for Postgres {
    async fn transact(
        &self,
        context: &Context<'_>,
        request: TransactRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let plain = (Statement::Transact, std::convert::identity);
        self.transact_with(context, request, plain, reply).await.map(drop)
    }
}

impl Postgres {
    /// Carries out a Transact by a statement that takes the parameters of `transact`, and more between them and the first
    /// version; whether it was committed.
    pub(super) async fn transact_with(
        &self,
        context: &Context<'_>,
        request: TransactRequest<'_>,
        (statement, more): (Statement, impl FnOnce(Parameters) -> Parameters),
        reply: &mut Reply,
    ) -> Result<bool, Error> {
        let conditions: Vec<_> =
            request.conditions.iter().map(|one| Condition::new(one.key, one.requirement)).collect();
        let mut changes = Vec::with_capacity(request.operations.len());
        for operation in request.operations.iter() {
            let put = match operation.action {
                Some(OperationAction::Put(put)) => {
                    Some((put.value, Expiry::new(put.ttl, put.keep_ttl, context.now_us)?))
                }
                _ => None,
            };
            changes.push(Change { key: operation.key, put });
        }
        let parameters = more(parameters(context, &conditions, &changes, false));
        let operation = Operation::Other { statement, parameters, versions: changes.len() as u32 };
        let answer = self.write(context, vec![operation]).await?;
        if answer.rows.is_empty() {
            put_committed(reply);
            let first = answer.versions.first().copied().unwrap_or_default();
            for (version, change) in (first..).zip(&changes) {
                let version = version.to_be_bytes();
                put_operation(reply, change.put.is_some().then_some(&version[..]));
            }
            return Ok(true);
        }
        for (_, row) in &answer.rows {
            let current = Stored::read(context, row)?;
            let current = current.as_ref().map(Stored::view);
            put_failure(reply, context.limits, row.number as u32, current);
        }
        Ok(false)
    }
}

impl KeyValueBatch for Postgres {
    async fn batch_get(
        &self,
        context: &Context<'_>,
        request: BatchGetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let keys: Vec<&str> = request.keys.iter().collect();
        let mut reserved = keys.len() * TOO_LARGE_BYTES_MAX;
        let room = context.limits.max_message_size.saturating_sub(reserved);
        let parameters = Parameters::default()
            .array(Type::Text, keys.iter().copied().map(Some))
            .int8(i64::try_from(room).unwrap_or(i64::MAX));
        let operation = Operation::Other { statement: Statement::GetMany, parameters, versions: 0 };
        let answer = self.read(context, vec![operation]).await?;
        let mut found: Vec<Option<&Row>> = vec![None; keys.len()];
        for (_, row) in &answer.rows {
            let place = usize::try_from(row.number - 1).ok().and_then(|place| found.get_mut(place));
            if let Some(place) = place {
                *place = Some(row);
            }
        }
        for row in found {
            reserved -= TOO_LARGE_BYTES_MAX;
            match row.filter(|row| is_live(context, row)) {
                None => put_got(reply, context.limits, reserved, None),
                Some(row) if row.value.is_none() => put_too_large(reply),
                Some(row) => {
                    let stored = Stored::read(context, row)?;
                    let entry = stored.as_ref().map(Stored::view);
                    put_got(reply, context.limits, reserved, entry);
                }
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
        let mut operations = Vec::with_capacity(request.items.len());
        for item in request.items.iter() {
            let expiry = Expiry::new(item.ttl, item.keep_ttl, context.now_us)?;
            operations.push(match expiry {
                Expiry::Set(expires_us) => {
                    Operation::Put { key: item.key.into(), value: item.value.into(), expires_us }
                }
                Expiry::Kept => {
                    let change = Change { key: item.key, put: Some((item.value, expiry)) };
                    transact(context, &[], &[change], false)
                }
            });
        }
        let answer = self.write(context, operations).await?;
        answer.versions.iter().for_each(|version| put_set(reply, &version.to_be_bytes()));
        Ok(())
    }

    async fn batch_delete(
        &self,
        context: &Context<'_>,
        request: BatchDeleteRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let operations: Vec<_> =
            request.keys.iter().map(|key| Operation::Delete { key: key.into() }).collect();
        let mut existed = vec![false; operations.len()];
        let answer = self.write(context, operations).await?;
        for (operation, row) in &answer.rows {
            if let Some(existed) = existed.get_mut(*operation as usize) {
                *existed = is_live(context, row);
            }
        }
        existed.into_iter().for_each(|existed| put_deleted(reply, existed));
        Ok(())
    }
}

impl KeyValueCas for Postgres {
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
        let condition = Condition::new(request.key, requirement);
        let change = Change { key: request.key, put: Some((request.value, expiry)) };
        let operation = transact(context, &[condition], &[change], false);
        let answer = self.write(context, vec![operation]).await?;
        let Some(failure) = failure(&answer) else {
            let version = first_version(&answer);
            let response =
                CompareAndSwapResponse { swapped: true, version: Some(&version), current: None };
            response.encode(&mut reply.head);
            return Ok(());
        };
        let mut response = CompareAndSwapResponse::default();
        match Stored::read(context, failure)? {
            None => response.encode(&mut reply.head),
            Some(current) => {
                response.current = Some(current.view());
                response.encode_head(&mut reply.head);
                current.append(reply);
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
        let condition = Condition::new(request.key, requirement);
        let change = Change { key: request.key, put: None };
        let operation = transact(context, &[condition], &[change], false);
        let answer = self.write(context, vec![operation]).await?;
        let mut response = CompareAndDeleteResponse::default();
        let Some(failure) = failure(&answer) else {
            response.deleted = true;
            response.encode(&mut reply.head);
            return Ok(());
        };
        match Stored::read(context, failure)? {
            None => response.encode(&mut reply.head),
            Some(current) => {
                response.current = Some(current.view());
                response.encode_head(&mut reply.head);
                current.append(reply);
            }
        }
        Ok(())
    }
}
