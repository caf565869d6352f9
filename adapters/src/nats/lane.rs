//! A lane's records on NATS: a batch is one atomic publish that also moves the lane's cell.
//!
//! The cell is the message on `$KV.<namespace>.=cell.<partition>` (no key has that subject); its value says data directory, start
//! and number. It comes first in every batch, on the condition that it is where this shard has left it, and JetStream stores
//! all of a batch or nothing. So a batch that arrives a second time, or late, is refused as a whole. Who begins a lane writes its
//! cell anew: what an earlier connection still holds is then refused too.
//!
//! What a record's write depends on is read before; nobody else writes for the lane meanwhile. Should a person have done so with
//! a client of NATS, the batch is refused, and the lane begins it again.

use ahash::AHashMap;
use async_nats::HeaderMap;
use prism_proto::catalogue::Method;
use prism_proto::view::keyvalue::{
    BatchDeleteRequest, BatchSetRequest, CompareAndDeleteRequest, CompareAndSwapRequest,
    DeleteRequest, SetRequest,
};

use super::Nats;
use super::errors;
use super::jetstream::{
    BATCH_COMMIT, BATCH_ID, BATCH_SEQUENCE, EXPECTED_LAST_SUBJECT_SEQUENCE, Holds, Stored, stored,
};
use super::keyvalue::{reply_compared, reply_deleted, reply_set, reply_swapped};
use super::lane_events::is_event;
use super::link::{Answer, Ask, Outgoing};
use super::operation::{Done, Effect, Found, Operation, version};
use super::subject;
use crate::backend::wrong_shape;
use crate::call::{Context, Reply};
use crate::error::Error;
use crate::interfaces::keyvalue_replies::{put_deleted, put_set};
use crate::interfaces::malformed;
use crate::lane::{Cell, LaneBackend, LaneOwner, LaneRecord, Outcome};

/// Messages of one atomic batch, the cell included; a server takes 1,000 by default.
const BATCH_MESSAGES_MAX: usize = 512;

/// Records of one atomic batch that need to know the value of their key.
const BATCH_LOOKS_MAX: usize = 64;

/// The one refusal that is the record's own.
pub(super) const MESSAGE_TOO_LARGE: &str = "BACKEND_MESSAGE_TOO_LARGE";

/// Bytes of the values that are read for a batch.
const READ_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A lane's cell, as this shard has written or read it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Its number in the stream; 0: it has none yet.
    sequence: u64,
    lane_seq: u64,
}

pub(super) fn lane(context: &Context<'_>) -> (u32, u16) {
    (context.namespace, context.partition)
}

impl LaneBackend for Nats {
    async fn resume(
        &self,
        context: &Context<'_>,
        owner: &LaneOwner,
    ) -> Result<Option<Cell>, Error> {
        self.cells.borrow_mut().remove(&lane(context));
        let subject = subject::of_cell(context.namespace_name, context.partition);
        let found = Found::from(self.last(context, &subject).await?);
        let mut held = Held { sequence: found.sequence, lane_seq: 0 };
        let Some(value) = found.value else {
            self.cells.borrow_mut().insert(lane(context), held);
            self.note_resumed(context, 0);
            return Ok(None);
        };
        let cell = Cell::parse(&value).ok_or_else(|| errors::cell_unreadable(context, &subject))?;
        held.lane_seq = cell.lane_seq;
        self.note_resumed(context, cell.lane_seq);
        self.cells.borrow_mut().insert(lane(context), held);
        // A lane of another data directory is left as it is.
        if cell.owner.directory_id == owner.directory_id {
            self.set_cell(context, &cell).await?;
        }
        Ok(Some(cell))
    }

    async fn set_cell(&self, context: &Context<'_>, cell: &Cell) -> Result<(), Error> {
        let message = self.cell_message(context, cell)?;
        let answer = self.ask_stream(context, Holds::Values, &Ask::One(message)).await?;
        self.cell_moved(context, cell, &answer, 0).map(drop)
    }

    async fn apply(
        &self,
        owner: &LaneOwner,
        records: &[LaneRecord<'_>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Error> {
        let Some(first) = records.first() else { return Ok(()) };
        let held = self.cells.borrow().get(&lane(&first.context)).copied();
        if held.is_none_or(|held| held.lane_seq + 1 != first.lane_seq) {
            return Err(errors::cell_moved(&first.context));
        }
        if is_event(first) {
            return self.apply_events(owner, records, outcomes).await;
        }
        let works: Vec<Work<'_>> = records.iter().map(Work::of).collect::<Result<_, _>>()?;
        let mut rest = &works[..];
        while !rest.is_empty() {
            let count = batch_len(rest);
            let (batch, behind) = rest.split_at(count);
            match self.apply_batch(owner, batch, outcomes).await {
                Err(error) if error.reason() == MESSAGE_TOO_LARGE => {
                    self.apply_each(owner, batch, outcomes).await?;
                }
                applied => applied?,
            }
            rest = behind;
        }
        Ok(())
    }
}

/// A record and the writes that it stands for.
struct Work<'a> {
    record: &'a LaneRecord<'a>,
    operations: Vec<Operation<'a>>,
}

impl<'a> Work<'a> {
    fn of(record: &'a LaneRecord<'a>) -> Result<Self, Error> {
        let request = record.request;
        let operations = match record.method {
            Method::KEYVALUE_SET => {
                vec![Operation::set(&SetRequest::decode(request).map_err(malformed)?)]
            }
            Method::KEYVALUE_DELETE => {
                vec![Operation::remove(DeleteRequest::decode(request).map_err(malformed)?.key)]
            }
            Method::KEYVALUE_COMPARE_AND_SWAP => {
                vec![Operation::swap(&CompareAndSwapRequest::decode(request).map_err(malformed)?)]
            }
            Method::KEYVALUE_COMPARE_AND_DELETE => {
                let request = CompareAndDeleteRequest::decode(request).map_err(malformed)?;
                vec![Operation::compare_and_delete(&request)]
            }
            Method::KEYVALUE_BATCH_SET => {
                let request = BatchSetRequest::decode(request).map_err(malformed)?;
                request.items.iter().map(|item| Operation::put(item.key, item.value)).collect()
            }
            Method::KEYVALUE_BATCH_DELETE => {
                let request = BatchDeleteRequest::decode(request).map_err(malformed)?;
                request.keys.iter().map(Operation::remove).collect()
            }
            other => return Err(wrong_shape(other)),
        };
        Ok(Work { record, operations })
    }

    fn looks_at_values(&self) -> usize {
        self.operations.iter().filter(|one| one.looks_at_value()).count()
    }
}

/// How many of the records go into the next batch; at least one.
fn batch_len(works: &[Work<'_>]) -> usize {
    let (mut messages, mut looks) = (1, 0);
    for (index, work) in works.iter().enumerate() {
        messages += work.operations.len();
        looks += work.looks_at_values();
        if index > 0 && (messages > BATCH_MESSAGES_MAX || looks > BATCH_LOOKS_MAX) {
            return index;
        }
    }
    works.len()
}

/// What is known of a key within a batch.
#[derive(Clone, Debug, Default)]
struct Current {
    found: Found,
    /// The number within the batch of the message that it stands for, where one has been put.
    place: Option<usize>,
}

/// What became of one write of a batch, as far as it is known before the batch is stored.
struct Decided {
    holds: bool,
    place: Option<usize>,
    before: Current,
}

/// A batch that is being put together.
struct Batch<'a> {
    messages: Vec<Outgoing>,
    current: AHashMap<&'a str, Current>,
}

impl<'a> Batch<'a> {
    fn decide(&mut self, context: &Context<'_>, operation: &Operation<'a>) -> Decided {
        // Whatever looks at its key finds it here.
        let before = self.current.get(operation.key).cloned().unwrap_or_default();
        let holds = operation.holds(&before.found, before.place.is_some());
        if !holds || (operation.looks() && !operation.changes(&before.found)) {
            return Decided { holds, place: None, before };
        }
        // The first write to a key that was read holds only if nobody has changed it since.
        let is_first = operation.looks() && before.place.is_none();
        let expected = is_first.then_some(before.found.sequence);
        let message = operation.message(context, expected);
        let value = match operation.effect {
            Effect::Put(_) => Some(message.payload.clone()),
            Effect::Remove => None,
        };
        let place = Some(self.messages.len());
        self.messages.push(message);
        let found = Found { sequence: 0, value };
        self.current.insert(operation.key, Current { found, place });
        Decided { holds, place, before }
    }
}

impl Decided {
    /// The whole outcome, when the numbers of the batch's messages are known.
    fn done(self, sequences: &[u64]) -> Done {
        let sequence_at = |place: usize| sequences.get(place).copied().unwrap_or_default();
        let mut before = self.before.found;
        if let Some(place) = self.before.place {
            before.sequence = sequence_at(place);
        }
        Done { holds: self.holds, sequence: self.place.map(sequence_at), before }
    }
}

impl Work<'_> {
    fn reply(&self, done: Vec<Done>) -> Outcome {
        let (context, mut reply) = (&self.record.context, Reply::default());
        for (operation, done) in self.operations.iter().zip(done) {
            match self.record.method {
                Method::KEYVALUE_SET => {
                    reply_set(context, operation.tells_previous, &done, &mut reply)?;
                }
                Method::KEYVALUE_DELETE => reply_deleted(&done, &mut reply),
                Method::KEYVALUE_COMPARE_AND_SWAP => reply_swapped(context, &done, &mut reply)?,
                Method::KEYVALUE_COMPARE_AND_DELETE => reply_compared(context, &done, &mut reply)?,
                Method::KEYVALUE_BATCH_SET => {
                    put_set(&mut reply, &version(done.sequence.unwrap_or_default()));
                }
                _ => put_deleted(&mut reply, done.sequence.is_some()),
            }
        }
        Ok(reply)
    }
}

impl Nats {
    /// The message that puts the lane's cell there, if it is where it was left.
    fn cell_message(&self, context: &Context<'_>, cell: &Cell) -> Result<Outgoing, Error> {
        let expected = self.cells.borrow().get(&lane(context)).copied();
        let expected = expected.ok_or_else(|| errors::cell_moved(context))?.sequence;
        let mut headers = HeaderMap::new();
        headers.insert(EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
        let subject = subject::of_cell(context.namespace_name, context.partition).into();
        Ok(Outgoing {
            subject,
            reply: None,
            headers: Some(headers),
            payload: cell.to_text().into(),
        })
    }

    /// Notes and returns the cell's number: the cell was so many messages before the one that was confirmed.
    fn cell_moved(
        &self,
        context: &Context<'_>,
        cell: &Cell,
        answer: &Answer,
        behind: u64,
    ) -> Result<u64, Error> {
        let Answer::One(message) = answer else { return Err(errors::unexpected(context)) };
        match stored(context, message)? {
            Stored::At(sequence) => {
                let sequence = sequence.saturating_sub(behind);
                let held = Held { sequence, lane_seq: cell.lane_seq };
                self.cells.borrow_mut().insert(lane(context), held);
                Ok(sequence)
            }
            Stored::Unexpected => {
                self.cells.borrow_mut().remove(&lane(context));
                Err(errors::cell_moved(context))
            }
        }
    }

    /// Applies records one by one, after they were refused together because of one of them.
    async fn apply_each(
        &self,
        owner: &LaneOwner,
        works: &[Work<'_>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Error> {
        for work in works {
            match self.apply_batch(owner, std::slice::from_ref(work), outcomes).await {
                Err(error) if error.reason() == MESSAGE_TOO_LARGE => {
                    let cell = Cell { owner: *owner, lane_seq: work.record.lane_seq };
                    self.set_cell(&work.record.context, &cell).await?;
                    outcomes.push(Err(error));
                }
                applied => applied?,
            }
        }
        Ok(())
    }

    /// Applies records whose messages are few enough, or one record with however many.
    async fn apply_batch(
        &self,
        owner: &LaneOwner,
        works: &[Work<'_>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Error> {
        let Some(last) = works.last() else { return Ok(()) };
        let context = &last.record.context;
        let current = self.look(context, works).await?;
        let mut batch = Batch { messages: Vec::new(), current };
        let mut decided = Vec::with_capacity(works.len());
        for work in works {
            let mut decide = |operation| batch.decide(&work.record.context, operation);
            decided.push(work.operations.iter().map(&mut decide).collect::<Vec<_>>());
        }
        let sequences = self.store_batch(owner, last.record, batch.messages).await?;
        for (work, decided) in works.iter().zip(decided) {
            let done = decided.into_iter().map(|one| one.done(&sequences)).collect();
            outcomes.push(work.reply(done));
        }
        Ok(())
    }

    /// What is there of the keys that the records look at.
    async fn look<'a>(
        &self,
        context: &Context<'_>,
        works: &[Work<'a>],
    ) -> Result<AHashMap<&'a str, Current>, Error> {
        let mut current = AHashMap::new();
        let operations = works.iter().flat_map(|work| &work.operations);
        for operation in operations.filter(|operation| operation.looks()) {
            current.entry(operation.key).or_insert_with(Current::default);
        }
        let keys: Vec<&str> = current.keys().copied().collect();
        for (key, read) in keys.iter().zip(self.read(context, &keys, READ_BYTES_MAX).await?) {
            let mut found = read.found;
            if read.is_there && found.value.is_none() {
                let subject = subject::of_key(context.namespace_name, key);
                found = self.last(context, &subject).await?.into();
            }
            current.insert(*key, Current { found, place: None });
        }
        Ok(current)
    }

    /// Stores the messages behind the cell, which then says that the lane is as far as `last`. Returns their numbers.
    async fn store_batch(
        &self,
        owner: &LaneOwner,
        last: &LaneRecord<'_>,
        messages: Vec<Outgoing>,
    ) -> Result<Vec<u64>, Error> {
        let context = &last.context;
        let mut sequences = Vec::with_capacity(messages.len());
        let mut rest = messages.into_iter();
        loop {
            let part: Vec<Outgoing> = rest.by_ref().take(BATCH_MESSAGES_MAX - 1).collect();
            // A record with more messages than a batch takes is there with the last of them; those before are sent again with it.
            let is_whole = rest.len() == 0;
            let lane_seq = if is_whole { last.lane_seq } else { last.lane_seq - 1 };
            let cell = Cell { owner: *owner, lane_seq };
            let message = self.cell_message(context, &cell)?;
            let count = part.len() as u64;
            let batch = self.as_batch(owner, context.partition, message, part);
            let answer = self.ask_stream(context, Holds::Values, &Ask::Last(batch)).await?;
            let sequence = self.cell_moved(context, &cell, &answer, count)?;
            sequences.extend(sequence + 1..=sequence + count);
            if is_whole {
                return Ok(sequences);
            }
        }
    }

    /// The messages with what makes them one batch.
    fn as_batch(
        &self,
        owner: &LaneOwner,
        partition: u16,
        cell: Outgoing,
        part: Vec<Outgoing>,
    ) -> Vec<Outgoing> {
        if part.is_empty() {
            return vec![cell];
        }
        let number = self.batches.get() + 1;
        self.batches.set(number);
        let id = u128::from_be_bytes(owner.directory_id) as u64;
        let id = format!("{id:016x}-{}-{partition}-{number}", owner.epoch);
        let mut messages = vec![cell];
        messages.extend(part);
        let count = messages.len();
        for (index, message) in messages.iter_mut().enumerate() {
            let headers = message.headers.get_or_insert_with(HeaderMap::new);
            headers.insert(BATCH_ID, id.as_str());
            headers.insert(BATCH_SEQUENCE, (index + 1).to_string());
            if index + 1 == count {
                headers.insert(BATCH_COMMIT, "1");
            }
        }
        messages
    }
}
