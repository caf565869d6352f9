//! A record as it lies in a topic: key, value and time where Kafka has a place for them, everything else in headers.
//!
//! Attributes are headers under their own names. What is Prism's own has a name that no attribute can have, but for
//! `content-type`, which others use the same way: it is written first, and the first header of that name is it.

use prism_proto::prism::stream::v1::StreamRecord;
use prism_proto::prism::r#type::v1::Position;
use prism_proto::view::stream::NewRecord;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use rdkafka::message::{Header, Headers as _, Message, OwnedHeaders};

use crate::interfaces::message::time;

/// The header of the media type.
const CONTENT_TYPE: &str = "content-type";
/// What headers of Prism's own begin with; attributes have no dots.
const OWN: &str = "prism.";
/// The number of `StreamRecord.value`, and that of `ReadResponse.records`.
const VALUE: u32 = 15;
const RECORDS: u32 = 1;

/// Headers of a record to be sent; absent where there are none.
pub(super) fn headers<'a>(
    content_type: &str,
    attributes: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
) -> Option<OwnedHeaders> {
    let count = attributes.len() + usize::from(!content_type.is_empty());
    if count == 0 {
        return None;
    }
    let mut headers = OwnedHeaders::new_with_capacity(count);
    let mut is_first = true;
    if !content_type.is_empty() {
        headers = headers.insert(Header { key: CONTENT_TYPE, value: Some(content_type) });
        is_first = false;
    }
    for (key, value) in attributes {
        if key == CONTENT_TYPE && is_first {
            // An attribute of this name, and no media type.
            headers = headers.insert(Header { key: CONTENT_TYPE, value: Some("") });
        }
        headers = headers.insert(Header { key, value: Some(value) });
    }
    Some(headers)
}

/// Headers of a stream's record.
pub(super) fn headers_of(record: &NewRecord<'_>) -> Option<OwnedHeaders> {
    let attributes: Vec<_> = record.attributes.iter().map(|one| (one.key, one.value)).collect();
    headers(record.content_type, attributes.into_iter())
}

/// What a record's headers say.
pub(super) struct ReadHeaders {
    pub(super) content_type: String,
    pub(super) attributes: std::collections::HashMap<String, String>,
}

/// Reads headers, whoever has written them; what is no text is read as well as may be.
pub(super) fn read_headers<M: Message>(message: &M) -> ReadHeaders {
    let mut read = ReadHeaders { content_type: String::new(), attributes: Default::default() };
    let mut has_content_type = false;
    for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
        if header.key.starts_with(OWN) {
            continue;
        }
        let value = String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned();
        if header.key == CONTENT_TYPE && !has_content_type {
            has_content_type = true;
            read.content_type = value;
        } else {
            read.attributes.insert(header.key.to_owned(), value);
        }
    }
    read
}

/// The value of a header of Prism's own, where it is text.
pub(super) fn own_header<M: Message>(message: &M, name: &str) -> Option<String> {
    let headers = message.headers()?;
    let found = headers.iter().find(|header| header.key == name)?.value?;
    String::from_utf8(found.to_vec()).ok()
}

/// A record as callers see it, but for its value.
fn beside<M: Message>(message: &M) -> StreamRecord {
    let ReadHeaders { content_type, attributes } = read_headers(message);
    let key = message.key().map(|key| String::from_utf8_lossy(key).into_owned());
    let partition = message.partition() as u32;
    let time_ms = message.timestamp().to_millis().unwrap_or(0).max(0) as u64;
    StreamRecord {
        position: Some(Position { partition, offset: message.offset().to_string() }),
        timestamp: Some(time(time_ms.saturating_mul(1000))),
        tombstone: message.payload().is_none() && key.is_some(),
        key,
        content_type,
        attributes,
        value: Default::default(),
    }
}

/// A record as callers see it; its value is copied.
pub(super) fn stream_record<M: Message>(message: &M) -> StreamRecord {
    let value = bytes::Bytes::copy_from_slice(message.payload().unwrap_or_default());
    StreamRecord { value, ..beside(message) }
}

/// Adds a record to a page of answers (`ReadResponse` and `ReplayRangeResponse` alike): its value is copied once, from where the
/// client has put it.
pub(super) fn put_record<M: Message>(page: &mut Vec<u8>, message: &M) {
    let beside = beside(message);
    let value = message.payload().unwrap_or_default();
    let value_bytes = match value.len() {
        0 => 0,
        length => key_len(VALUE) + encoded_len_varint(length as u64) + length,
    };
    page.reserve(beside.encoded_len() + value_bytes + 8);
    encode_key(RECORDS, WireType::LengthDelimited, page);
    encode_varint((beside.encoded_len() + value_bytes) as u64, page);
    beside.encode_raw(page);
    if !value.is_empty() {
        encode_key(VALUE, WireType::LengthDelimited, page);
        encode_varint(value.len() as u64, page);
        page.extend_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use prism_proto::prism::stream::v1::{ReadResponse, ReplayRangeResponse};
    use rdkafka::Timestamp;
    use rdkafka::message::OwnedMessage;

    use super::*;

    fn message(value: Option<&[u8]>, headers: Option<OwnedHeaders>) -> OwnedMessage {
        let (key, value) = (Some(b"k".to_vec()), value.map(<[u8]>::to_vec));
        let time = Timestamp::CreateTime(1_700_000_000_123);
        OwnedMessage::new(value, key, "t".to_owned(), time, 3, 42, headers)
    }

    #[test]
    fn a_record_comes_back_as_it_was_sent() {
        for (content_type, attributes) in [
            ("text/plain", vec![("kind", "x"), ("content-type", "an attribute")]),
            ("", vec![("content-type", "an attribute"), ("a", "")]),
            ("", vec![]),
        ] {
            let sent = headers(content_type, attributes.clone().into_iter());
            let mut page = Vec::new();
            put_record(&mut page, &message(Some(b"value"), sent));
            put_record(&mut page, &message(None, None));
            put_record(&mut page, &message(Some(b""), None));
            let read = ReadResponse::decode(&page[..]).unwrap();
            assert_eq!(ReplayRangeResponse::decode(&page[..]).unwrap().records, read.records);
            let [first, tomb, empty] = &read.records[..] else { panic!("{read:?}") };
            assert_eq!(first.content_type, content_type);
            let expected =
                attributes.iter().map(|(name, value)| (name.to_string(), value.to_string()));
            assert_eq!(first.attributes, expected.collect());
            assert_eq!((&first.value[..], first.key.as_deref()), (&b"value"[..], Some("k")));
            let position = Position { partition: 3, offset: "42".to_owned() };
            assert_eq!(first.position, Some(position));
            assert_eq!(first.timestamp.unwrap().nanos, 123_000_000);
            assert!(!first.tombstone && tomb.tombstone && !empty.tombstone);
            assert!(empty.value.is_empty());
        }
    }
}
