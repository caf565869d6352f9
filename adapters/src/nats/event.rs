//! An event as a message of NATS: the payload and nothing else, what is beside it in headers.
//!
//! Attributes are headers under their own names; the media type is `Content-Type`, the identity `Nats-Msg-Id`, by which JetStream
//! knows a second arrival. What Prism has of its own begins with `Prism-`; attributes are lower-case. A value that headers cannot carry
//! as it is (they lose blanks at their ends) has those bytes as `%XX`, and its header is named in a `Prism-Encoded`.

use std::str::FromStr;

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, HeaderValue};
use bytes::Bytes;
use prism_proto::prism::r#type::v1::Message;
use prism_proto::view::types as view;

use super::link::Outgoing;
use crate::interfaces::message::{expires_us, minted_us, time};
use crate::memory::pubsub::Event;
use crate::topic::check_name;

pub(super) const MESSAGE_ID: &str = "Nats-Msg-Id";
pub(super) const CONTENT_TYPE: &str = "Content-Type";
const ORDERING_KEY: &str = "Prism-Ordering-Key";
/// Milliseconds since the epoch.
const EXPIRES_AT: &str = "Prism-Expires-At";
pub(super) const ENCODED: &str = "Prism-Encoded";
/// What no attribute of Prism begins with.
const RESERVED: [&str; 2] = ["Nats-", "Prism-"];

/// The subject of a topic, or of a pattern.
pub(super) fn subject(namespace: &str, topic: &str) -> String {
    format!("{namespace}.{topic}")
}

/// An event as it goes to the server.
pub(super) fn outgoing(
    namespace: &str,
    topic: &str,
    message: &view::Message<'_>,
    id: &str,
) -> Outgoing {
    let headers = Some(headers(message, id));
    let payload = Bytes::copy_from_slice(message.payload);
    Outgoing { headers, ..Outgoing::plain(subject(namespace, topic), payload) }
}

/// What is beside the payload of a message.
pub(super) fn headers(message: &view::Message<'_>, id: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    put(&mut headers, MESSAGE_ID, id);
    if !message.content_type.is_empty() {
        put(&mut headers, CONTENT_TYPE, message.content_type);
    }
    if !message.ordering_key.is_empty() {
        put(&mut headers, ORDERING_KEY, message.ordering_key);
    }
    let expires_us = expires_us(message);
    if expires_us != u64::MAX {
        put(&mut headers, EXPIRES_AT, &(expires_us / 1000).to_string());
    }
    for attribute in message.attributes.iter() {
        put(&mut headers, attribute.key, attribute.value);
    }
    headers
}

/// How many bytes an event takes beside its payload, at most.
pub(super) fn header_bytes(message: &view::Message<'_>) -> usize {
    // Names of our own, an identity, a time; every byte of a value may become three.
    let attributes =
        message.attributes.iter().map(|one| 2 * one.key.len() + 3 * one.value.len() + 32);
    256 + 3 * (message.content_type.len() + message.ordering_key.len()) + attributes.sum::<usize>()
}

/// Adds a header.
pub(super) fn put(headers: &mut HeaderMap, name: &str, value: &str) {
    // Names are checked where a request comes in; one that cannot be a header's is none.
    let Ok(header) = HeaderName::from_str(name) else { return };
    let is_plain = value.trim() == value && !value.contains(char::is_control);
    if is_plain && let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(header, value);
    } else if let Ok(value) = HeaderValue::from_str(&encoded(value)) {
        headers.insert(header, value);
        headers.append(ENCODED, name);
    }
}

fn encoded(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 8);
    for c in value.chars() {
        if c != '%' && !c.is_whitespace() && !c.is_control() {
            out.push(c);
            continue;
        }
        for byte in c.encode_utf8(&mut [0; 4]).bytes() {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn decoded(value: &str) -> String {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        let hex = |digit: Option<u8>| char::from(digit.unwrap_or(b'0')).to_digit(16).unwrap_or(0);
        match byte {
            b'%' => out.push((hex(bytes.next()) * 16 + hex(bytes.next())) as u8),
            byte => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The headers of a message as they were meant.
pub(super) fn texts(headers: &HeaderMap) -> impl Iterator<Item = (&str, String)> {
    let encoded: Vec<&str> = headers.get_all(ENCODED).map(HeaderValue::as_str).collect();
    headers.iter().filter_map(move |(name, values)| {
        let (name, value) = (name.as_ref(), values.first()?.as_str());
        let is_encoded = encoded.contains(&name);
        Some((name, if is_encoded { decoded(value) } else { value.to_owned() }))
    })
}

/// Whether a header is the server's or Prism's own, and no attribute.
pub(super) fn is_reserved(name: &str) -> bool {
    RESERVED.iter().any(|own| name.starts_with(own))
}

/// The event that a message is, whoever has sent it; nothing where its subject is no topic of the namespace.
pub(super) fn event(namespace: &str, message: async_nats::Message, heard_us: u64) -> Option<Event> {
    let topic = message.subject.strip_prefix(namespace)?.strip_prefix('.')?;
    check_name("topic", topic).ok()?;
    let topic = topic.into();
    let headers = message.headers.unwrap_or_default();
    let mut event = read_headers(&headers, |_, _| ());
    let sent_us = minted_us(&event.id).unwrap_or(heard_us);
    let expires_us = expires_at_us(&event);
    // What is held for long does not hold on to all that came with it.
    event.payload = Bytes::copy_from_slice(&message.payload);
    Some(Event { topic, sent_us, expires_us, message: event })
}

/// From when on a message that was read is not to be heard any more, µs since the epoch; `u64::MAX` is never.
pub(super) fn expires_at_us(message: &Message) -> u64 {
    message.expires_at.map_or(u64::MAX, |at| {
        (at.seconds.max(0) as u64).saturating_mul(1_000_000) + (at.nanos / 1000) as u64
    })
}

/// What headers say of a message, but for its payload; what else is Prism's own goes to `own`, by name and value.
pub(super) fn read_headers(headers: &HeaderMap, mut own: impl FnMut(&str, String)) -> Message {
    let mut message = Message::default();
    for (name, value) in texts(headers) {
        match name {
            MESSAGE_ID => message.id = value,
            CONTENT_TYPE => message.content_type = value,
            ORDERING_KEY => message.ordering_key = value,
            EXPIRES_AT => {
                let ms = value.parse::<u64>().ok();
                message.expires_at = ms.map(|ms| time(ms.saturating_mul(1000)));
            }
            name if is_reserved(name) => own(name, value),
            name => {
                message.attributes.insert(name.to_owned(), value);
            }
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use prism_proto::prism::r#type::v1 as owned;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    /// As it comes back from a server, which cuts blanks from the ends of headers.
    fn through_the_wire(sent: Outgoing) -> async_nats::Message {
        let mut headers = HeaderMap::new();
        for (name, values) in sent.headers.iter().flat_map(HeaderMap::iter) {
            for value in values {
                headers.append(name.clone(), value.as_str().trim());
            }
        }
        async_nats::Message {
            subject: sent.subject,
            reply: None,
            payload: sent.payload,
            headers: Some(headers),
            status: None,
            description: None,
            length: 0,
        }
    }

    const ID: &str = "018bcfe5-687b-7fff-8000-000000000001";

    proptest! {
        #[test]
        fn an_event_comes_back_as_it_was_sent(
            attributes in prop::collection::hash_map("[a-z][a-z0-9_-]{0,9}", "[^\\r\\n]{0,12}| %|\\PC ", 0..8),
            content_type in "[ -~]{0,12}",
            ordering_key in "\\PC{0,12}",
            payload in prop::collection::vec(any::<u8>(), 0..99),
            expires in prop::option::of(0..4_000_000_000_i64),
        ) {
            let expires_at = expires.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 });
            let payload = payload.into();
            let message = owned::Message {
                content_type, attributes, ordering_key, expires_at, payload, ..Default::default()
            };
            let encoded = message.encode_to_vec();
            let view = view::Message::decode(&encoded).unwrap();
            let sent = outgoing("orders", "eu.new", &view, ID);
            prop_assert_eq!(&*sent.subject, "orders.eu.new");
            let event = event("orders", through_the_wire(sent), 7).unwrap();
            prop_assert_eq!(&*event.topic, "eu.new");
            prop_assert_eq!(event.sent_us, 0x018b_cfe5_687b_u64 * 1000);
            prop_assert_eq!(event.message, owned::Message { id: ID.to_owned(), ..message });
        }
    }

    #[test]
    fn what_others_send_is_an_event_where_its_subject_is_a_topic() {
        let mut headers = HeaderMap::new();
        headers.append(ENCODED, "kind");
        headers.insert("kind", "%");
        headers.insert(EXPIRES_AT, "never");
        headers.insert(MESSAGE_ID, "é18bcfe5-687b-7fff-8000-00000000000");
        let plain =
            Outgoing { headers: Some(headers), ..Outgoing::plain("orders.a", Bytes::new()) };
        let heard = event("orders", through_the_wire(plain), 7).unwrap();
        assert_eq!((heard.sent_us, heard.expires_us), (7, u64::MAX));
        for subject in ["orders", "other.a", "orders.a.$b", "ordersx.a"] {
            let plain = Outgoing::plain(subject, Bytes::new());
            assert!(event("orders", through_the_wire(plain), 7).is_none(), "{subject}");
        }
    }
}
