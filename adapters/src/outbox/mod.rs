//! The outbox: messages that are stored in a transaction, on their way to topics, queues and streams.
//!
//! What holds for it on every backend: what makes a message valid, which call brings it to its target, and how what has arrived is
//! told to the store. A message's call is the same bytes however often it is made, so that an idempotency key can tell a second
//! one. It does no I/O and asks no clock.

mod index;

use std::collections::BTreeMap;

use prism_proto::catalogue::{Method, Model};
use prism_proto::prism::stream::v1::NewRecord;
use prism_proto::prism::transact::v1::OutboxMessage;
use prism_proto::prism::r#type::v1::Message;
use prism_proto::prism::r#type::v1::message::DeliveryTime;
use prism_proto::view::keyvalue::TransactRequest;
use prism_proto::wire::{self, Value};
use prost::Message as _;

pub use self::index::Outboxes;
use crate::error::{Error, Kind};
use crate::interfaces::{Check, malformed};
use crate::limits::Limits;

/// Messages of one transaction.
pub const MESSAGES_MAX: usize = 100;

/// The field `message_ids` of Write's answer.
pub(crate) const MESSAGE_IDS: u32 = 4;

/// Numbers of fields of the messages of TransactService and of the requests that reach a target.
mod field {
    pub(super) const WRITE_MESSAGES: u32 = 4;
    pub(super) const NAMESPACE: u32 = 1;
    pub(super) const TARGET: u32 = 2;
    pub(super) const CONTENT: u32 = 15;
    pub(super) const ATTRIBUTES: u32 = 3;
}

/// Where a message stands: the record of its transaction, and its place there. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The record.
    pub lsn: u64,
    /// Its place among the messages of the transaction, from 0.
    pub index: u32,
}

/// A topic, queue or stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name there.
    pub name: Box<str>,
}

/// Messages that keep their order: those with one ordering key, which may be empty, to one target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chain {
    /// Where they go.
    pub target: Target,
    /// Their ordering key.
    pub ordering_key: Box<str>,
}

impl Chain {
    /// That of a message.
    pub fn of(message: &OutboxMessage) -> Self {
        let target = Target {
            namespace: message.target_namespace.as_str().into(),
            name: message.target.as_str().into(),
        };
        let ordering_key = message.message.as_ref().map_or("", |sent| &sent.ordering_key);
        Chain { target, ordering_key: ordering_key.into() }
    }
}

/// A message that is to be relayed.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// Where it stands.
    pub place: Place,
    /// When its transaction was committed, µs since the epoch.
    pub accepted_us: u64,
    /// The message, with its id.
    pub message: OutboxMessage,
}

/// What an operator sees of a namespace's outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxFacts {
    /// Messages that are still to be relayed.
    pub messages: u64,
    /// When the oldest of them was committed, µs since the epoch.
    pub oldest_us: Option<u64>,
}

/// The note that messages have arrived, as the log keeps it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Relayed {
    /// The namespace whose outbox they leave.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// [`Place::lsn`] of each.
    #[prost(uint64, repeated, tag = "2")]
    pub lsns: Vec<u64>,
    /// [`Place::index`] of each.
    #[prost(uint32, repeated, tag = "3")]
    pub indices: Vec<u32>,
}

impl Relayed {
    /// That these have arrived.
    pub fn of(namespace: &str, places: &[Place]) -> Self {
        Relayed {
            namespace: namespace.to_owned(),
            lsns: places.iter().map(|place| place.lsn).collect(),
            indices: places.iter().map(|place| place.index).collect(),
        }
    }

    /// Which have.
    pub fn places(&self) -> impl Iterator<Item = Place> + '_ {
        self.lsns.iter().zip(&self.indices).map(|(&lsn, &index)| Place { lsn, index })
    }
}

/// How many messages a Write has.
pub fn count(request: &[u8]) -> usize {
    let fields = wire::fields(request).filter_map(Result::ok);
    fields.filter(|(number, _)| *number == field::WRITE_MESSAGES).count()
}

/// The messages of a Write, in their order.
///
/// # Errors
/// INVALID_ARGUMENT `REQUEST_MALFORMED`.
pub fn messages(request: &[u8]) -> Result<Vec<OutboxMessage>, Error> {
    let mut messages = Vec::new();
    for field in wire::fields(request) {
        match field.map_err(malformed)? {
            (field::WRITE_MESSAGES, Value::Bytes(bytes)) => {
                let message = OutboxMessage::decode(bytes).map_err(|error| {
                    let text = format!("the request is not a valid message: {error}");
                    Error::new(Kind::InvalidArgument, "REQUEST_MALFORMED", text)
                })?;
                messages.push(message);
            }
            (field::WRITE_MESSAGES, _) => {
                let wrong = wire::DecodeError::WrongWireType { field: field::WRITE_MESSAGES };
                return Err(malformed(wrong));
            }
            _ => {}
        }
    }
    Ok(messages)
}

/// Says of a Write with messages, or of a note of what has arrived, all that can be said without looking at targets.
pub fn validate(method: Method, request: &[u8], limits: &Limits) -> Result<(), Error> {
    if method != Method::TRANSACT_WRITE {
        let note = Relayed::decode(request).ok();
        let is_sound = note.is_some_and(|note| note.lsns.len() == note.indices.len());
        return if is_sound { Ok(()) } else { Err(crate::backend::wrong_shape(method)) };
    }
    TransactRequest::decode(request).map_err(malformed)?.check(limits)?;
    let messages = messages(request)?;
    if messages.len() > MESSAGES_MAX {
        return Err(too_many());
    }
    Ok(())
}

/// A transaction of more messages than it may have.
#[cold]
pub fn too_many() -> Error {
    let expected = format!("a transaction has at most {MESSAGES_MAX}");
    Error::field("TOO_MANY_ITEMS", "messages", expected)
}

/// The call that brings a message, which was accepted at `accepted_us`, to its target in a namespace of this model: the method
/// and the request.
///
/// # Errors
/// INVALID_ARGUMENT: the model takes no messages, or not with such a field; `field` is what the message is called.
pub fn call(
    model: Model,
    field: &str,
    message: &OutboxMessage,
    accepted_us: u64,
) -> Result<(Method, Vec<u8>), Error> {
    let mut sent = message.message.clone().unwrap_or_default();
    // In one order: a map has another each time.
    let attributes: BTreeMap<String, String> =
        std::mem::take(&mut sent.attributes).into_iter().collect();
    let (method, mut content) = match model {
        Model::Queue | Model::PubSub => {
            if let Some(DeliveryTime::Delay(delay)) = sent.delivery_time {
                sent.delivery_time = Some(DeliveryTime::DeliverAt(after(accepted_us, &delay)));
            }
            let is_queue = model == Model::Queue;
            let method = if is_queue { Method::QUEUE_SEND } else { Method::PUBSUB_PUBLISH };
            (method, sent.encode_to_vec())
        }
        Model::Stream => {
            let not_of_records = [
                ("priority", sent.priority.is_some()),
                ("delivery_time", sent.delivery_time.is_some()),
                ("expires_at", sent.expires_at.is_some()),
            ];
            if let Some((name, _)) = not_of_records.iter().find(|(_, is_set)| *is_set) {
                let expected = "is not for a stream: leave it out of a record";
                let field = format!("{field}.message.{name}");
                return Err(Error::field("FIELD_NOT_ALLOWED", field, expected));
            }
            let record = NewRecord {
                key: Some(sent.ordering_key).filter(|key| !key.is_empty()),
                content_type: sent.content_type,
                value: sent.payload,
                ..NewRecord::default()
            };
            (Method::STREAM_APPEND, record.encode_to_vec())
        }
        _ => {
            let expected = "must be a namespace of queues, topics or streams";
            let field = format!("{field}.target_namespace");
            return Err(Error::field("TARGET_INVALID", field, expected));
        }
    };
    for (name, value) in attributes {
        let mut entry = Vec::with_capacity(name.len() + value.len() + 8);
        wire::put_bytes(&mut entry, 1, name.as_bytes());
        wire::put_bytes(&mut entry, 2, value.as_bytes());
        wire::put_bytes(&mut content, field::ATTRIBUTES, &entry);
    }
    let mut request = Vec::with_capacity(content.len() + 64);
    wire::put_bytes(&mut request, field::NAMESPACE, message.target_namespace.as_bytes());
    wire::put_bytes(&mut request, field::TARGET, message.target.as_bytes());
    wire::put_bytes(&mut request, field::CONTENT, &content);
    Ok((method, request))
}

/// When a message may be delivered at the earliest, µs since the epoch, where it says so; its transaction is committed at `accepted_us`.
pub(crate) fn deliver_us(sent: &Message, accepted_us: u64) -> Option<u64> {
    Some(match sent.delivery_time? {
        DeliveryTime::Delay(delay) => to_us(&after(accepted_us, &delay)),
        DeliveryTime::DeliverAt(at) => to_us(&at),
    })
}

/// When a message expires, µs since the epoch, where it does.
pub(crate) fn expires_us(sent: &Message) -> Option<u64> {
    sent.expires_at.as_ref().map(to_us)
}

/// A checked moment, on its millisecond.
fn to_us(at: &prost_types::Timestamp) -> u64 {
    let seconds = u64::try_from(at.seconds).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000)
        .saturating_add(u64::from(at.nanos.unsigned_abs()) / 1_000_000 * 1000)
}

/// A moment so long after another, to the millisecond; what cannot be a moment stays as the check of the call finds it.
fn after(from_us: u64, delay: &prost_types::Duration) -> prost_types::Timestamp {
    let delay_ms =
        delay.seconds.saturating_mul(1000).saturating_add(i64::from(delay.nanos) / 1_000_000);
    let at_ms = ((from_us / 1000) as i64).saturating_add(delay_ms);
    prost_types::Timestamp {
        seconds: at_ms.div_euclid(1000),
        nanos: (at_ms.rem_euclid(1000) * 1_000_000) as i32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prism_proto::prism::queue::v1::SendRequest;
    use prism_proto::prism::stream::v1::AppendRequest;

    fn message() -> OutboxMessage {
        let attributes = ["a", "b", "c", "d", "e"].map(|name| (name.to_owned(), "1".to_owned()));
        let message = Message {
            id: "id".to_owned(),
            attributes: attributes.into(),
            ordering_key: "one".to_owned(),
            payload: "hello".into(),
            ..Message::default()
        };
        OutboxMessage {
            target_namespace: "jobs".to_owned(),
            target: "mail".to_owned(),
            message: Some(message),
        }
    }

    #[test]
    fn a_message_is_the_same_call_each_time_and_loses_nothing() {
        let given = message();
        let (method, request) = call(Model::Queue, "message", &given, 5).unwrap();
        assert_eq!(method, Method::QUEUE_SEND);
        for _ in 0..20 {
            // Every map has an order of its own.
            assert_eq!(call(Model::Queue, "message", &message(), 5).unwrap().1, request);
        }
        let read = SendRequest::decode(&request[..]).unwrap();
        assert_eq!((&*read.namespace, &*read.queue), ("jobs", "mail"));
        assert_eq!(read.message, given.message);
        let (method, request) = call(Model::Stream, "message", &given, 5).unwrap();
        assert_eq!(method, Method::STREAM_APPEND);
        let record = AppendRequest::decode(&request[..]).unwrap().record.unwrap();
        assert_eq!((record.key.as_deref(), record.attributes.len()), (Some("one"), 5));
        assert_eq!(record.value, "hello");
    }

    #[test]
    fn a_delay_counts_from_the_commit_however_late_the_message_is_relayed() {
        let mut given = message();
        let delay = prost_types::Duration { seconds: 2, nanos: 500_000_000 };
        given.message.as_mut().unwrap().delivery_time = Some(DeliveryTime::Delay(delay));
        let (_, request) = call(Model::Queue, "message", &given, 1_000_700_000).unwrap();
        let sent = SendRequest::decode(&request[..]).unwrap().message.unwrap();
        let at = prost_types::Timestamp { seconds: 1003, nanos: 200_000_000 };
        assert_eq!(sent.delivery_time, Some(DeliveryTime::DeliverAt(at)));
        let refused = call(Model::Stream, "messages[0]", &given, 0).unwrap_err();
        assert_eq!(refused.reason(), "FIELD_NOT_ALLOWED");
        assert_eq!(call(Model::KeyValue, "m", &given, 0).unwrap_err().reason(), "TARGET_INVALID");
    }
}
