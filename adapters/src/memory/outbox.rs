//! memstore's outbox: messages stored with the data of their transaction, until they are noted to have arrived.
//!
//! A message is an entry of its own, so that snapshots, replay and the account of memory hold for it as for any; which chain it
//! belongs to stands beside.

use std::cell::RefCell;

use prism_proto::prism::transact::v1::OutboxMessage;
use prism_proto::view::keyvalue::TransactRequest;
use prism_proto::wire;
use prost::Message as _;

use super::Memstore;
use super::rooms::{Numbers, Room, put_numbers, read_room_key, room_key};
use crate::call::{Context, Reply};
use crate::error::Error;
use crate::interfaces::malformed;
use crate::interfaces::message::message_id;
use crate::outbox::{Chain, MESSAGE_IDS, Outboxes, Outgoing, Place, Relayed, messages};

/// A message: when it was committed, and the message with its id. Never changes.
const MESSAGE: u8 = b'm';

fn key_of(place: Place) -> Vec<u8> {
    let mut rest = [0; 12];
    rest[..8].copy_from_slice(&place.lsn.to_be_bytes());
    rest[8..].copy_from_slice(&place.index.to_be_bytes());
    room_key(MESSAGE, "", &rest)
}

impl Memstore {
    /// Carries out a Write with messages, which has a record: like a Transact, and stores the messages if it is committed.
    pub fn write(
        &self,
        context: &Context<'_>,
        request: &[u8],
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let transact = TransactRequest::decode(request).map_err(malformed)?;
        let messages = messages(request)?;
        if !self.transact_now(context, transact, reply)? {
            return Ok(());
        }
        for (index, mut message) in messages.into_iter().enumerate() {
            let id = message_id(context, index);
            wire::put_bytes(&mut reply.head, MESSAGE_IDS, id.as_bytes());
            message.message.get_or_insert_default().id = id;
            let place = Place { lsn: context.revision.lsn, index: index as u32 };
            let mut value = Vec::with_capacity(8 + message.encoded_len());
            put_numbers(&mut value, &[context.now_us]);
            message.encode_raw(&mut value);
            self.keep(context, Room::Outbox, &key_of(place), &value);
            let known = (context.now_us, Chain::of(&message));
            self.outboxes.borrow_mut().insert(context.namespace, place, known);
        }
        Ok(())
    }

    /// Forgets messages that have arrived, by a note that has a record.
    ///
    /// # Errors
    /// It is no such note.
    pub fn note_relayed(&self, context: &Context<'_>, request: &[u8]) -> Result<(), Error> {
        let note = Relayed::decode(request).map_err(|_| {
            crate::backend::wrong_shape(prism_proto::catalogue::Method::TRANSACT_TRANSACTION)
        })?;
        for place in note.places() {
            if self.outboxes.borrow_mut().remove(context.namespace, place) {
                self.forget(context, Room::Outbox, &key_of(place));
            }
        }
        Ok(())
    }

    /// Which messages there are.
    pub fn outboxes(&self) -> &RefCell<Outboxes> {
        &self.outboxes
    }

    /// The oldest messages of a chain, at most so many.
    pub fn outbox_messages(&self, namespace: u32, chain: &Chain, count: usize) -> Vec<Outgoing> {
        let oldest = self.outboxes.borrow().oldest(namespace, chain, count);
        let mut messages = Vec::with_capacity(oldest.len());
        for (place, accepted_us) in oldest {
            let value = self.kept(namespace, Room::Outbox, &key_of(place));
            let message = value.and_then(|value| OutboxMessage::decode(value.slice(8..)).ok());
            match message {
                Some(message) => messages.push(Outgoing { place, accepted_us, message }),
                // Nobody would ever come past what cannot be read.
                None => drop(self.outboxes.borrow_mut().remove(namespace, place)),
            }
        }
        messages
    }

    /// The outboxes that a restored store holds.
    pub(super) fn restore_outboxes(&self) -> Outboxes {
        let mut outboxes = Outboxes::default();
        self.each_kept(Room::Outbox, |namespace, key, value| {
            let Some((MESSAGE, _, rest)) = read_room_key(key) else { return };
            let Some((lsn, index)) = rest.split_first_chunk::<8>() else { return };
            let Ok(index) = index.try_into().map(u32::from_be_bytes) else { return };
            let place = Place { lsn: u64::from_be_bytes(*lsn), index };
            let mut numbers = Numbers(value);
            let accepted_us = numbers.next();
            let message = OutboxMessage::decode(numbers.0).unwrap_or_default();
            outboxes.insert(namespace, place, (accepted_us, Chain::of(&message)));
        });
        outboxes
    }
}
