//! NATS's KeyValue interfaces, but for scans.
//!
//! A plain Set is one message stored, a Get one direct read. What depends on what is there is decided on the shard and stored on
//! the condition that the key is still as it was read ([`super::operation`]). A batch crosses the bridge once, and its messages
//! are under way together.

use ahash::AHashMap;
use bytes::Bytes;
use prism_proto::view::keyvalue::{
    BatchDeleteRequest, BatchGetRequest, BatchSetRequest, CompareAndDeleteRequest,
    CompareAndDeleteResponse, CompareAndSwapRequest, CompareAndSwapResponse, DeleteRequest,
    DeleteResponse, ExistsRequest, ExistsResponse, GetRequest, GetResponse, SetRequest,
    SetResponse,
};
use prism_proto::view::types::Entry;

use super::Nats;
use super::errors;
use super::jetstream::Stored;
use super::operation::{Done, Found, Operation, version};
use super::subject;
use crate::call::{Context, Reply};
use crate::error::Error;
use crate::interfaces::keyvalue::{KeyValueBasic, KeyValueBatch, KeyValueCas};
use crate::interfaces::keyvalue_replies::{
    TOO_LARGE_BYTES_MAX, is_by_reference, put_deleted, put_got, put_set, put_status, put_too_large,
};

/// Bytes of values that one read of many keys brings, about.
const READ_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of subjects that one read of many keys names, about: well below what any server takes in a message.
const SUBJECTS_BYTES_MAX: usize = 256 * 1024;

/// Keys that one read names at most; more is refused by the server.
const READ_KEYS_MAX: usize = 1000;

/// A stored value and its version.
pub(super) struct Stands<'a> {
    value: &'a Bytes,
    version: [u8; 8],
}

impl<'a> Stands<'a> {
    /// What was found, if it is a value; an answer of this namespace can tell it.
    pub(super) fn of(context: &Context<'_>, found: &'a Found) -> Result<Option<Self>, Error> {
        let Some(value) = &found.value else { return Ok(None) };
        if value.len() > context.limits.value_bytes_max() {
            return Err(errors::too_large(context));
        }
        Ok(Some(Stands { value, version: version(found.sequence) }))
    }

    pub(super) fn view(&self) -> Entry<'_> {
        Entry { key: None, version: Some(&self.version), expires_at: None, value: self.value }
    }

    /// Ends a reply with the payload that its head announces.
    fn append(&self, reply: &mut Reply) {
        match is_by_reference(self.value) {
            true => reply.tail = self.value.clone(),
            false => reply.head.extend_from_slice(self.value),
        }
    }
}

/// The answer to a Set.
pub(super) fn reply_set(
    context: &Context<'_>,
    tells_previous: bool,
    done: &Done,
    reply: &mut Reply,
) -> Result<(), Error> {
    let stored = done.sequence.map(version);
    let mut response = SetResponse {
        applied: done.holds,
        version: stored.as_ref().map(|version| &version[..]),
        previous: None,
    };
    match Stands::of(context, &done.before)?.filter(|_| tells_previous) {
        None => response.encode(&mut reply.head),
        Some(previous) => {
            response.previous = Some(previous.view());
            response.encode_head(&mut reply.head);
            previous.append(reply);
        }
    }
    Ok(())
}

/// The answer to a Delete.
pub(super) fn reply_deleted(done: &Done, reply: &mut Reply) {
    DeleteResponse { existed: Some(done.sequence.is_some()) }.encode(&mut reply.head);
}

/// The answer to a CompareAndSwap.
pub(super) fn reply_swapped(
    context: &Context<'_>,
    done: &Done,
    reply: &mut Reply,
) -> Result<(), Error> {
    let mut response = CompareAndSwapResponse { swapped: done.holds, ..Default::default() };
    let stored = done.sequence.map(version);
    if done.holds {
        response.version = stored.as_ref().map(|version| &version[..]);
        response.encode(&mut reply.head);
        return Ok(());
    }
    match Stands::of(context, &done.before)? {
        None => response.encode(&mut reply.head),
        Some(current) => {
            response.current = Some(current.view());
            response.encode_head(&mut reply.head);
            current.append(reply);
        }
    }
    Ok(())
}

/// The answer to a CompareAndDelete.
pub(super) fn reply_compared(
    context: &Context<'_>,
    done: &Done,
    reply: &mut Reply,
) -> Result<(), Error> {
    let mut response = CompareAndDeleteResponse { deleted: done.holds, ..Default::default() };
    if done.holds {
        response.encode(&mut reply.head);
        return Ok(());
    }
    match Stands::of(context, &done.before)? {
        None => response.encode(&mut reply.head),
        Some(current) => {
            response.current = Some(current.view());
            response.encode_head(&mut reply.head);
            current.append(reply);
        }
    }
    Ok(())
}

impl KeyValueBasic for Nats {
    async fn get(
        &self,
        context: &Context<'_>,
        request: GetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let subject = subject::of_key(context.namespace_name, request.key);
        let found = Found::from(self.last(context, &subject).await?);
        if let Some(stands) = Stands::of(context, &found)? {
            let response = GetResponse { found: true, entry: Some(stands.view()) };
            response.encode_head(&mut reply.head);
            stands.append(reply);
        }
        Ok(())
    }

    async fn set(
        &self,
        context: &Context<'_>,
        request: SetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let done = self.carry_out(context, Operation::set(&request)).await?;
        reply_set(context, request.return_previous, &done, reply)
    }

    async fn delete(
        &self,
        context: &Context<'_>,
        request: DeleteRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let done = self.carry_out(context, Operation::remove(request.key)).await?;
        reply_deleted(&done, reply);
        Ok(())
    }

    async fn exists(
        &self,
        context: &Context<'_>,
        request: ExistsRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let subject = subject::of_key(context.namespace_name, request.key);
        let record = self.last(context, &subject).await?;
        let exists = record.is_some_and(|record| record.value.is_some());
        ExistsResponse { exists }.encode(&mut reply.head);
        Ok(())
    }
}

impl KeyValueCas for Nats {
    async fn compare_and_swap(
        &self,
        context: &Context<'_>,
        request: CompareAndSwapRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let done = self.carry_out(context, Operation::swap(&request)).await?;
        reply_swapped(context, &done, reply)
    }

    async fn compare_and_delete(
        &self,
        context: &Context<'_>,
        request: CompareAndDeleteRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let done = self.carry_out(context, Operation::compare_and_delete(&request)).await?;
        reply_compared(context, &done, reply)
    }
}

impl KeyValueBatch for Nats {
    async fn batch_get(
        &self,
        context: &Context<'_>,
        request: BatchGetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let keys: Vec<&str> = request.keys.iter().collect();
        let mut reserved = keys.len() * TOO_LARGE_BYTES_MAX;
        let room = context.limits.max_message_size.saturating_sub(reserved);
        for read in self.read(context, &keys, room).await? {
            reserved -= TOO_LARGE_BYTES_MAX;
            match Read::stands(&read) {
                Some(stands) => put_got(reply, context.limits, reserved, Some(stands.view())),
                None if read.is_there => put_too_large(reply),
                None => put_got(reply, context.limits, reserved, None),
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
        let operations: Vec<_> =
            request.items.iter().map(|item| (Operation::put(item.key, item.value), None)).collect();
        for stored in self.store_each(context, &operations).await? {
            match stored {
                Ok(Stored::At(sequence)) => put_set(reply, &version(sequence)),
                Ok(Stored::Unexpected) => put_status(reply, &errors::unexpected(context)),
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
        let keys: Vec<&str> = request.keys.iter().collect();
        let reads = self.read(context, &keys, 0).await?;
        let there = reads.iter().zip(&keys).filter(|(read, _)| read.is_there);
        let operations: Vec<_> =
            there.map(|(read, key)| (Operation::remove(key), Some(read.found.sequence))).collect();
        let mut outcomes = self.store_each(context, &operations).await?.into_iter();
        for (read, key) in reads.iter().zip(&keys) {
            if !read.is_there {
                put_deleted(reply, false);
                continue;
            }
            let deleted = match outcomes.next() {
                Some(Ok(Stored::At(_))) => Ok(true),
                // Somebody has changed it since it was read.
                Some(Ok(Stored::Unexpected)) => self
                    .carry_out(context, Operation::remove(key))
                    .await
                    .map(|done| done.sequence.is_some()),
                Some(Err(error)) => Err(error),
                None => Err(errors::unexpected(context)),
            };
            match deleted {
                Ok(existed) => put_deleted(reply, existed),
                Err(error) => put_status(reply, &error),
            }
        }
        Ok(())
    }
}

/// What a read of many keys has found under one.
#[derive(Clone, Debug, Default)]
pub(super) struct Read {
    /// Whether there is a value.
    pub(super) is_there: bool,
    /// The value is not here where there was no room for it.
    pub(super) found: Found,
}

impl Read {
    fn stands(&self) -> Option<Stands<'_>> {
        let value = self.found.value.as_ref()?;
        Some(Stands { value, version: version(self.found.sequence) })
    }
}

impl Nats {
    /// Reads these keys, which are different, and keeps so many bytes of values: those of the first keys.
    pub(super) async fn read(
        &self,
        context: &Context<'_>,
        keys: &[&str],
        room: usize,
    ) -> Result<Vec<Read>, Error> {
        let mut reads = vec![Read::default(); keys.len()];
        let mut kept = Kept { room, bytes: 0, last: 0 };
        let mut from = 0;
        while from < keys.len() {
            let (mut subjects, mut bytes) = (Vec::new(), 0);
            for key in keys[from..].iter().take(READ_KEYS_MAX) {
                let subject = subject::of_key(context.namespace_name, key);
                bytes += subject.len();
                if bytes > SUBJECTS_BYTES_MAX && !subjects.is_empty() {
                    break;
                }
                subjects.push(subject);
            }
            let until = from + subjects.len();
            self.read_some(context, &subjects, from, &mut reads, &mut kept).await?;
            from = until;
        }
        Ok(reads)
    }

    /// Reads the keys of these subjects, the first of which is that of `reads[first]`.
    async fn read_some(
        &self,
        context: &Context<'_>,
        subjects: &[String],
        first: usize,
        reads: &mut [Read],
        kept: &mut Kept,
    ) -> Result<(), Error> {
        let places: AHashMap<&str, usize> =
            subjects.iter().enumerate().map(|(place, subject)| (&**subject, place)).collect();
        let mut from = 0;
        loop {
            let walked = self.last_of(context, subjects, from, READ_BYTES_MAX).await?;
            let last = walked.records.last().map(|record| record.sequence);
            for record in walked.records {
                let place = places.get(&*record.subject);
                let place = first + place.ok_or_else(|| errors::unexpected(context))?;
                kept.put(reads, place, Some(record).into());
            }
            // One that was written meanwhile lies behind, and is read again.
            match last {
                Some(last) if walked.behind > 0 => from = last + 1,
                _ => return Ok(()),
            }
        }
    }
}

/// The values that are kept of a read: those of the first keys, as many as there is room for.
struct Kept {
    room: usize,
    bytes: usize,
    /// No value of a key behind this one is kept.
    last: usize,
}

impl Kept {
    fn put(&mut self, reads: &mut [Read], place: usize, found: Found) {
        let before = reads[place].found.value.take();
        self.bytes -= before.map_or(0, |value| value.len());
        self.bytes += found.value.as_ref().map_or(0, Bytes::len);
        reads[place] = Read { is_there: found.value.is_some(), found };
        self.last = self.last.max(place);
        while self.bytes > self.room {
            let dropped = reads[self.last].found.value.take();
            self.bytes -= dropped.map_or(0, |value| value.len());
            if self.last == 0 {
                return;
            }
            self.last -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_the_first_keys_are_kept() {
        let found = |length| Found { sequence: 1, value: Some(vec![0; length].into()) };
        let mut reads = vec![Read::default(); 4];
        let mut kept = Kept { room: 100, bytes: 0, last: 0 };
        for (place, length) in [(3, 60), (1, 50), (2, 40), (0, 20)] {
            kept.put(&mut reads, place, found(length));
        }
        let lengths: Vec<_> =
            reads.iter().map(|read| read.found.value.as_ref().map(Bytes::len)).collect();
        assert_eq!(lengths, [Some(20), Some(50), None, None]);
        assert!(reads.iter().all(|read| read.is_there));
        kept.put(&mut reads, 1, Found { sequence: 2, value: None });
        assert!(!reads[1].is_there);
        assert_eq!(kept.bytes, 20);
        let mut kept = Kept { room: 0, bytes: 0, last: 0 };
        let mut reads = vec![Read::default(); 2];
        kept.put(&mut reads, 1, found(5));
        kept.put(&mut reads, 0, found(5));
        assert!(reads.iter().all(|read| read.is_there && read.found.value.is_none()));
        assert_eq!(kept.bytes, 0);
    }
}
