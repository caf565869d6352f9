//! What backends that deliver messages have in common: identities, times, and the messages of answers.
//!
//! Everything derives from the record of a write, so that replay gives the same again.

use std::hash::Hasher;

use bytes::Bytes;
use prism_proto::catalogue::Method;
use prism_proto::google::rpc::Status;
use prism_proto::prism::stream::v1::StreamRecord;
use prism_proto::prism::r#type::v1::{Message, Position, message};
use prism_proto::rpc::StatusDetails;
use prism_proto::view::protobuf::{Duration, Timestamp};
use prism_proto::view::stream::NewRecord;
use prism_proto::view::types::{self as view, MessageDeliveryTime};
use prism_proto::wire;
use prost::Message as _;
use siphasher::sip::SipHasher13;

use super::malformed;
use crate::call::{Context, Revision};
use crate::error::Error;
use crate::limits::timestamp_ms;

/// The identity of the message at `index` of a write: a UUIDv7 of its log time, unique by its record and increasing with it.
pub fn message_id(context: &Context<'_>, index: usize) -> String {
    message_id_of(context.namespace, context.now_us, context.revision, index)
}

/// The identity of a message as it was sent: the one that it brings, which only a relayed one does, or a new one.
pub fn identity(context: &Context<'_>, index: usize, sent: &view::Message<'_>) -> String {
    if sent.id.is_empty() { message_id(context, index) } else { sent.id.to_owned() }
}

/// Refuses messages that bring an identity.
#[inline]
pub(super) fn check_no_id(method: Method, request: &[u8]) -> Result<(), Error> {
    /// The fields of requests that hold one message, and several.
    const ONE: u32 = 15;
    const MANY: u32 = 3;
    let (number, is_one) = match method {
        Method::QUEUE_SEND
        | Method::QUEUE_SEND_WITH_PRIORITY
        | Method::QUEUE_SEND_DELAYED
        | Method::PUBSUB_PUBLISH
        | Method::PUBSUB_PUBLISH_PERSISTENT
        | Method::PUBSUB_PUBLISH_WITH_ATTRIBUTES
        | Method::PUBSUB_PUBLISH_ORDERED => (ONE, true),
        Method::QUEUE_SEND_BATCH | Method::PUBSUB_PUBLISH_BATCH => (MANY, false),
        _ => return Ok(()),
    };
    let mut index = 0;
    for field in wire::fields(request) {
        if let (found, wire::Value::Bytes(message)) = field.map_err(malformed)?
            && found == number
        {
            if has_id(message)? {
                let field =
                    if is_one { "message.id".into() } else { format!("messages[{index}].id") };
                let expected = "is minted by Prism: leave it empty";
                return Err(Error::field("MESSAGE_ID_GIVEN", field, expected));
            }
            index += 1;
        }
    }
    Ok(())
}

fn has_id(message: &[u8]) -> Result<bool, Error> {
    const ID: u32 = 1;
    for field in wire::fields(message) {
        if let (ID, wire::Value::Bytes(id)) = field.map_err(malformed)?
            && !id.is_empty()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// As [`message_id`], by the facts of the record.
pub(crate) fn message_id_of(
    namespace: u32,
    now_us: u64,
    revision: Revision,
    index: usize,
) -> String {
    let mut hasher = SipHasher13::new_with_keys(u64::from(namespace), now_us);
    for number in [revision.lsn, u64::from(revision.epoch), revision.minor, index as u64] {
        hasher.write_u64(number);
    }
    // RFC 9562, 5.7: milliseconds, the version, a sub-millisecond fraction (6.2, method 3), the variant, and the rest.
    let (ms, fraction) = (now_us / 1000, now_us % 1000 * 4096 / 1000);
    let high = ms << 16 | 0x7000 | fraction;
    let low = hasher.finish() >> 2 | 1 << 63;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

/// When an identity that Prism has minted was (see [`message_id`]: milliseconds come first), µs since the epoch; nothing for any other.
pub(crate) fn minted_us(id: &str) -> Option<u64> {
    let is_minted = id.len() == 36 && id.as_bytes()[14] == b'7';
    let digits = is_minted.then(|| id.get(..8).zip(id.get(9..13))).flatten()?;
    let ms =
        u64::from_str_radix(digits.0, 16).ok()? << 16 | u64::from_str_radix(digits.1, 16).ok()?;
    Some(ms.saturating_mul(1000))
}

/// A message as it is delivered: as it was sent, with its identity.
pub fn owned(sent: &view::Message<'_>, id: String) -> Message {
    Message {
        id,
        content_type: sent.content_type.to_owned(),
        attributes: sent.attributes.iter().map(|one| (one.key.into(), one.value.into())).collect(),
        ordering_key: sent.ordering_key.to_owned(),
        priority: sent.priority,
        expires_at: sent.expires_at.map(owned_timestamp),
        delivery_time: sent.delivery_time.map(|time| match time {
            MessageDeliveryTime::Delay(delay) => {
                message::DeliveryTime::Delay(prost_types::Duration {
                    seconds: delay.seconds,
                    nanos: delay.nanos,
                })
            }
            MessageDeliveryTime::DeliverAt(at) => {
                message::DeliveryTime::DeliverAt(owned_timestamp(at))
            }
        }),
        payload: Bytes::copy_from_slice(sent.payload),
    }
}

/// A record as it is read, at its place; accepted at `now_us`.
pub fn owned_record(new: &NewRecord<'_>, position: Position, now_us: u64) -> StreamRecord {
    StreamRecord {
        position: Some(position),
        timestamp: Some(time(now_us)),
        key: new.key.map(str::to_owned),
        content_type: new.content_type.to_owned(),
        attributes: new.attributes.iter().map(|one| (one.key.into(), one.value.into())).collect(),
        tombstone: new.tombstone,
        value: Bytes::copy_from_slice(new.value),
    }
}

fn owned_timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.seconds, nanos: time.nanos }
}

/// A time in µs since the epoch as callers see it: to the millisecond, rounded down.
pub fn time(time_us: u64) -> prost_types::Timestamp {
    let nanos = (time_us % 1_000_000 / 1000 * 1_000_000) as i32;
    prost_types::Timestamp { seconds: (time_us / 1_000_000) as i64, nanos }
}

/// When a message that was accepted at `now_us` may be delivered, µs since the epoch; `now_us` if it says nothing.
pub fn due_us(sent: &view::Message<'_>, now_us: u64) -> u64 {
    match sent.delivery_time {
        None => now_us,
        Some(MessageDeliveryTime::Delay(delay)) => {
            now_us.saturating_add(span_ms(&delay).saturating_mul(1000))
        }
        Some(MessageDeliveryTime::DeliverAt(at)) => moment_us(&at),
    }
}

/// From when on a message is not delivered any more, µs since the epoch; `u64::MAX` is never.
pub fn expires_us(sent: &view::Message<'_>) -> u64 {
    sent.expires_at.map_or(u64::MAX, |at| moment_us(&at))
}

/// A checked moment in µs since the epoch, on its millisecond.
pub fn moment_us(at: &Timestamp) -> u64 {
    timestamp_ms("", at).map_or(0, |ms| ms * 1000)
}

/// A checked span in whole milliseconds; what is below one is cut off.
pub fn span_ms(span: &Duration) -> u64 {
    let ms = span.seconds.saturating_mul(1000).saturating_add(i64::from(span.nanos) / 1_000_000);
    ms.max(0) as u64
}

/// Why one item of a batch has no other outcome.
#[cold]
pub fn item_status(error: &Error) -> Status {
    let code = i32::from(error.kind().grpc_code());
    let encoded = StatusDetails::new(code, error.message(), error.reason()).encode();
    Status::decode(encoded.as_ref()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_that_increase_and_come_again_from_the_same_record() {
        let now_us = 1_700_000_000_123_456;
        let id = message_id_of(7, now_us, Revision::logged(9), 0);
        assert_eq!(id, message_id_of(7, now_us, Revision::logged(9), 0));
        assert!(id.starts_with("018bcfe5-687b-7"), "{id}");
        assert_eq!((id.len(), id.as_bytes()[14]), (36, b'7'));
        assert!(matches!(id.as_bytes()[19], b'8' | b'9' | b'a' | b'b'), "{id}");
        let others = [
            message_id_of(8, now_us, Revision::logged(9), 0),
            message_id_of(7, now_us, Revision::logged(10), 0),
            message_id_of(7, now_us, Revision::logged(9), 1),
            message_id_of(7, now_us, Revision::unlogged(9, 1, 1), 0),
        ];
        assert!(others.iter().all(|other| *other != id));
        assert!(message_id_of(7, now_us + 1, Revision::logged(1), 0)[..18] > id[..18]);
    }
}
