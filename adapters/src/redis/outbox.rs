//! Redis's outbox: messages of transactions are entries of the stream `_prism:outbox:<namespace>`, appended by the script that writes the
//! data and deleted when they have arrived.
//!
//! Which entries there are is known beside (in [`Outboxes`](crate::outbox::Outboxes)), and learnt again from the stream when the shard starts, when a Write has
//! ended, and from time to time: what a redis-cli has appended is relayed like any other.

use std::cell::RefCell;

use prism_proto::prism::transact::v1::OutboxMessage;
use prism_proto::view::keyvalue::TransactRequest;
use prism_proto::view::types as view;
use prism_proto::wire;
use prost::Message as _;

use super::Redis;
use super::codec;
use super::errors;
use super::fields::{Kept, TARGET, TARGET_NAMESPACE, count_fields, put_fields};
use super::keyvalue::Answer;
use super::scripts::Script;
use super::stream::Id;
use crate::call::{Context, Reply};
use crate::error::Error;
use crate::interfaces::malformed;
use crate::interfaces::message::message_id;
use crate::outbox::{Chain, MESSAGE_IDS, Outboxes, Outgoing, Place, Target, messages};

/// Entries that are learnt at once.
const ENTRIES_MAX: usize = 1000;
/// Bytes of messages that are read at once, but for one that is longer by itself.
const BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Adds the name of the outbox.
fn put_outbox(out: &mut Vec<u8>, context: &Context<'_>) {
    codec::put_pieces(out, [b"_prism:outbox:", context.namespace_name.as_bytes(), b""]);
}

/// Where an entry stands. That there are more than 2^32 of one millisecond is not to be expected of any Redis.
fn place(id: Id) -> Place {
    Place { lsn: id.ms, index: u32::try_from(id.seq).unwrap_or(u32::MAX) }
}

fn id(place: Place) -> Id {
    Id { ms: place.lsn, seq: place.index.into() }
}

/// A Write's messages as `transact.lua` takes them, and how many parts that is.
fn arguments(
    context: &Context<'_>,
    ids: &[String],
    messages: &[OutboxMessage],
) -> Result<(Vec<u8>, usize), Error> {
    let (mut out, mut parts) = (Vec::new(), 1);
    put_outbox(&mut out, context);
    for (one, id) in messages.iter().zip(ids) {
        let sent = one.message.clone().unwrap_or_default().encode_to_vec();
        let sent = view::Message::decode(&sent).map_err(malformed)?;
        let fields = 2 + count_fields(&sent);
        codec::put_number(&mut out, 2 * fields as u64);
        for (name, value) in [(TARGET_NAMESPACE, &one.target_namespace), (TARGET, &one.target)] {
            codec::put(&mut out, name.as_bytes());
            codec::put(&mut out, value.as_bytes());
        }
        put_fields(&mut out, context, id, &sent);
        parts += 1 + 2 * fields;
    }
    Ok((out, parts))
}

fn text(value: Option<&[u8]>) -> String {
    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
}

impl Redis {
    /// Which messages of transactions are known to be there.
    pub fn outboxes(&self) -> &RefCell<Outboxes> {
        &self.outboxes
    }

    /// Carries out a Write with messages: like a Transact, and stores the messages if it is committed.
    pub(super) async fn write_with_messages(
        &self,
        context: &Context<'_>,
        request: &[u8],
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let transact = TransactRequest::decode(request).map_err(malformed)?;
        let messages = messages(request)?;
        let ids: Vec<_> = (0..messages.len()).map(|index| message_id(context, index)).collect();
        let with = match messages.is_empty() {
            true => Default::default(),
            false => arguments(context, &ids, &messages)?,
        };
        if self.transact_with(context, transact, with, reply).await? {
            for id in &ids {
                wire::put_bytes(&mut reply.head, MESSAGE_IDS, id.as_bytes());
            }
        }
        Ok(())
    }

    /// Learns which messages the outbox of a namespace holds: all of them, or those behind the newest that is known.
    ///
    /// # Errors
    /// The backend is away; worth trying again.
    pub async fn outbox_refresh(&self, context: &Context<'_>, all: bool) -> Result<(), Error> {
        let newest = self.outboxes.borrow().newest(context.namespace).filter(|_| !all);
        let mut after = newest.map_or(Id::default(), id);
        loop {
            let write = |out: &mut Vec<u8>| {
                put_outbox(out, context);
                codec::put(out, after.text().as_bytes());
                codec::put_number(out, ENTRIES_MAX as u64);
            };
            let read = self.script(context, Script::OutboxList, 1, 2, write).await?;
            let mut answer = Answer::new(context, &read);
            let entries = answer.array()?;
            for _ in 0..entries {
                if answer.array()? != 5 {
                    return Err(errors::unexpected(context));
                }
                after = Id::read(context, answer.blob()?)?;
                let accepted_us = text(answer.blob()?).parse().unwrap_or_default();
                let target = Target {
                    namespace: text(answer.blob()?).into(),
                    name: text(answer.blob()?).into(),
                };
                let chain = Chain { target, ordering_key: text(answer.blob()?).into() };
                let mut outboxes = self.outboxes.borrow_mut();
                outboxes.insert(context.namespace, place(after), (accepted_us, chain));
            }
            if (entries as usize) < ENTRIES_MAX {
                return Ok(());
            }
        }
    }

    /// The oldest messages of a chain, at most so many.
    ///
    /// # Errors
    /// The backend is away; worth trying again.
    pub async fn outbox_messages(
        &self,
        context: &Context<'_>,
        chain: &Chain,
        count: usize,
    ) -> Result<Vec<Outgoing>, Error> {
        let oldest = self.outboxes.borrow().oldest(context.namespace, chain, count);
        if oldest.is_empty() {
            return Ok(Vec::new());
        }
        let write = |out: &mut Vec<u8>| {
            put_outbox(out, context);
            codec::put_number(out, BYTES_MAX);
            for (place, _) in &oldest {
                codec::put(out, id(*place).text().as_bytes());
            }
        };
        let arguments = 1 + oldest.len();
        let read = self.script(context, Script::OutboxRead, 1, arguments, write).await?;
        let mut answer = Answer::new(context, &read);
        let mut found = Vec::new();
        for _ in 0..answer.array()? {
            answer.array()?;
            let id = Id::read(context, answer.blob()?)?;
            let (place, mut kept) = (place(id), Kept::read(&mut answer)?);
            if kept.message.id.is_empty() {
                // What was appended by hand is known by its place.
                kept.message.id = format!("{}-{}", context.namespace_name, id.text());
            }
            let [target_namespace, target] = kept.target;
            if target_namespace.is_empty() {
                // It was taken out by hand.
                self.outboxes.borrow_mut().remove(context.namespace, place);
                continue;
            }
            let message = OutboxMessage { target_namespace, target, message: Some(kept.message) };
            found.push(Outgoing { place, accepted_us: kept.sent_us, message });
        }
        Ok(found)
    }

    /// Deletes messages that have arrived.
    ///
    /// # Errors
    /// The backend is away; they are relayed again.
    pub async fn outbox_done(&self, context: &Context<'_>, arrived: &[Place]) -> Result<(), Error> {
        let write = |out: &mut Vec<u8>| {
            codec::put_command(out, 2 + arrived.len());
            codec::put(out, b"XDEL");
            put_outbox(out, context);
            arrived.iter().for_each(|place| codec::put(out, id(*place).text().as_bytes()));
        };
        let read = self.link.call(context, 1, write).await?;
        Answer::new(context, &read).integer()?;
        let mut outboxes = self.outboxes.borrow_mut();
        for place in arrived {
            outboxes.remove(context.namespace, *place);
        }
        Ok(())
    }
}
