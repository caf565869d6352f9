//! A record of a stream as a message of NATS: the value and nothing else, what is beside it in headers, as of events.

use async_nats::header::HeaderValue;
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use prism_proto::prism::stream::v1::StreamRecord;
use prism_proto::view::stream::NewRecord;

use super::durable::position;
use super::event::{CONTENT_TYPE, MESSAGE_ID, is_reserved, put, texts};
use super::jetstream::{EXPECTED_LAST_SEQUENCE, TIME_STAMP};
use super::link::Outgoing;
use crate::interfaces::message::time;

const KEY: &str = "Prism-Key";
const TOMBSTONE: &str = "Prism-Tombstone";

/// A record as it goes to the server: only if the stream's last has this number, and under an identity by which the server knows a second
/// arrival, where those are given.
pub(super) fn outgoing(
    subject: &str,
    record: &NewRecord<'_>,
    expected_last: Option<u64>,
    id: Option<&str>,
) -> Outgoing {
    let mut headers = HeaderMap::new();
    if let Some(id) = id {
        put(&mut headers, MESSAGE_ID, id);
    }
    if let Some(expected) = expected_last {
        headers.insert(EXPECTED_LAST_SEQUENCE, expected.to_string());
    }
    if let Some(key) = record.key {
        put(&mut headers, KEY, key);
    }
    if record.tombstone {
        put(&mut headers, TOMBSTONE, "1");
    }
    if !record.content_type.is_empty() {
        put(&mut headers, CONTENT_TYPE, record.content_type);
    }
    for attribute in record.attributes.iter() {
        put(&mut headers, attribute.key, attribute.value);
    }
    let headers = (!headers.is_empty()).then_some(headers);
    let payload = Bytes::copy_from_slice(record.value);
    Outgoing { headers, ..Outgoing::plain(subject.to_owned(), payload) }
}

/// How many bytes a record takes beside its value, at most.
pub(super) fn header_bytes(record: &NewRecord<'_>) -> usize {
    // Names of our own, an identity; every byte of a value may become three.
    let attributes =
        record.attributes.iter().map(|one| 2 * one.key.len() + 3 * one.value.len() + 32);
    let key = record.key.map_or(0, str::len);
    256 + 3 * (record.content_type.len() + key) + attributes.sum::<usize>()
}

/// The identity that a record was sent under.
pub(super) fn identity(message: &Message) -> Option<&str> {
    message.headers.as_ref()?.get(MESSAGE_ID).map(HeaderValue::as_str)
}

/// The record that a stored message is, whoever has sent it.
pub(super) fn record(sequence: u64, message: Message) -> StreamRecord {
    let mut record = StreamRecord { position: Some(position(sequence)), ..Default::default() };
    let headers = message.headers.unwrap_or_default();
    record.timestamp = stored_at(&headers).map(time);
    for (name, value) in texts(&headers) {
        match name {
            KEY => record.key = Some(value),
            TOMBSTONE => record.tombstone = true,
            CONTENT_TYPE => record.content_type = value,
            name if is_reserved(name) => {}
            name => {
                record.attributes.insert(name.to_owned(), value);
            }
        }
    }
    record.value = message.payload;
    record
}

/// When a message that was read directly was stored, µs since the epoch.
pub(super) fn stored_at(headers: &HeaderMap) -> Option<u64> {
    // The server's come after the message's own.
    let text = headers.get_last(TIME_STAMP)?.as_str();
    let moment: prost_types::Timestamp = text.parse().ok()?;
    let us = u64::try_from(moment.seconds).ok()?.checked_mul(1_000_000)?;
    Some(us + u64::try_from(moment.nanos).ok()? / 1000)
}

#[cfg(test)]
mod tests {
    use prism_proto::prism::stream::v1 as owned;
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_sent() {
        let sent = owned::NewRecord {
            key: Some("ключ 🚀 ".to_owned()),
            content_type: "text/plain".to_owned(),
            attributes: [("kind".to_owned(), " x%".to_owned())].into(),
            tombstone: false,
            value: "value".into(),
        };
        let encoded = sent.encode_to_vec();
        let view = NewRecord::decode(&encoded).unwrap();
        let Outgoing { subject, headers, payload, .. } =
            outgoing("orders.s", &view, Some(7), Some("id"));
        let mut headers = headers.unwrap();
        let header = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        assert_eq!(header(EXPECTED_LAST_SEQUENCE).as_deref(), Some("7"));
        assert_eq!(header(MESSAGE_ID).as_deref(), Some("id"));
        headers.append(TIME_STAMP, "2023-11-14T22:13:20.1239Z");
        let message = Message {
            subject,
            reply: None,
            payload,
            headers: Some(headers),
            status: None,
            description: None,
            length: 0,
        };
        let read = record(9, message);
        assert_eq!((read.key, read.value), (sent.key, sent.value));
        assert_eq!((read.content_type, read.attributes), (sent.content_type, sent.attributes));
        assert_eq!((read.position, read.tombstone), (Some(position(9)), false));
        let nanos = 123_000_000;
        assert_eq!(read.timestamp, Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos }));
    }
}
