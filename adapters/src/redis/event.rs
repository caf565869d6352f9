//! An event on its way through Redis: its payload and nothing else on the channel `<namespace>.<topic>`, so that whoever subscribes
//! there with any client reads it.
//!
//! A message of Redis has no headers. What is beside the payload goes out just before it, on `_prism:<namespace>.<topic>` (no
//! namespace begins with `_`), as lines of a name and a value, published by the same script, so that nothing comes in between.

use std::hash::Hasher;

use bytes::Bytes;
use prism_proto::prism::r#type::v1::Message;
use prism_proto::view::types as view;
use siphasher::sip::SipHasher13;

use crate::interfaces::message::{expires_us, minted_us, time};
use crate::memory::pubsub::Event;
use crate::topic::check_name;

/// What the channels begin with that carry what is beside the payloads.
pub(super) const BESIDE: &str = "_prism:";

const ID: &str = "id";
const CONTENT_TYPE: &str = "content-type";
/// Of the payload, in a cluster.
const MARK: &str = "payload";
/// Milliseconds since the epoch.
const EXPIRES_AT: &str = "expires-at";

/// The channel of a topic.
pub(super) fn channel(namespace: &str, topic: &str) -> String {
    format!("{namespace}.{topic}")
}

/// The channel of what is beside the payloads on this one; of a pattern likewise.
pub(super) fn beside(channel: &str) -> String {
    format!("{BESIDE}{channel}")
}

/// What is beside a payload, as it is published. Attributes and ordering keys are no part of what is offered here.
pub(super) fn lines(message: &view::Message<'_>, id: &str) -> String {
    let mut lines = format!("{ID} {id}\n");
    if !message.content_type.is_empty() {
        lines.push_str(&format!("{CONTENT_TYPE} {}\n", message.content_type));
    }
    let expires_us = expires_us(message);
    if expires_us != u64::MAX {
        lines.push_str(&format!("{EXPIRES_AT} {}\n", expires_us / 1000));
    }
    lines
}

/// A payload's mark. Between the nodes of a cluster somebody else's message may come between a payload and what is beside it.
pub(super) fn mark(payload: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(payload);
    hasher.finish()
}

/// The line that marks the payload which these lines are beside.
pub(super) fn mark_line(payload: &[u8]) -> String {
    format!("{MARK} {:016x}\n", mark(payload))
}

/// The mark of the payload that these lines are beside, if they tell one.
pub(super) fn marked(lines: &[u8]) -> Option<u64> {
    let lines = std::str::from_utf8(lines).ok()?;
    let found =
        lines.lines().filter_map(|line| line.split_once(' ')).find(|(name, _)| *name == MARK);
    u64::from_str_radix(found?.1, 16).ok()
}

/// The event that came on a channel of the namespace, whoever has published it; nothing where that is no topic's.
pub(super) fn event(
    namespace: &str,
    channel: &[u8],
    lines: Option<&[u8]>,
    payload: &[u8],
    heard_us: u64,
) -> Option<Event> {
    let channel = std::str::from_utf8(channel).ok()?;
    let topic = channel.strip_prefix(namespace)?.strip_prefix('.')?;
    check_name("topic", topic).ok()?;
    // What is held for long does not hold on to all that came with it.
    let mut message = Message { payload: Bytes::copy_from_slice(payload), ..Default::default() };
    let (mut sent_us, mut expires_us) = (heard_us, u64::MAX);
    let lines = String::from_utf8_lossy(lines.unwrap_or_default());
    for (name, value) in lines.lines().filter_map(|line| line.split_once(' ')) {
        match name {
            ID => {
                sent_us = minted_us(value).unwrap_or(heard_us);
                message.id = value.to_owned();
            }
            CONTENT_TYPE => message.content_type = value.to_owned(),
            EXPIRES_AT => {
                if let Ok(ms) = value.parse::<u64>() {
                    expires_us = ms.saturating_mul(1000);
                    message.expires_at = Some(time(expires_us));
                }
            }
            _ => {}
        }
    }
    Some(Event { topic: topic.into(), sent_us, expires_us, message })
}

#[cfg(test)]
mod tests {
    use prism_proto::prism::r#type::v1 as owned;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    const ID: &str = "018bcfe5-687b-7fff-8000-000000000001";

    proptest! {
        #[test]
        fn an_event_comes_back_as_it_was_sent(
            content_type in "[ -~]{0,12}",
            payload in prop::collection::vec(any::<u8>(), 0..99),
            expires in prop::option::of(0..4_000_000_000_i64),
        ) {
            let expires_at = expires.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 });
            let payload = payload.into();
            let message = owned::Message { content_type, expires_at, payload, ..Default::default() };
            let encoded = message.encode_to_vec();
            let lines = lines(&view::Message::decode(&encoded).unwrap(), ID);
            let beside = Some(lines.as_bytes());
            let event = event("orders", b"orders.eu.new", beside, &message.payload, 7).unwrap();
            prop_assert_eq!(&*event.topic, "eu.new");
            prop_assert_eq!(event.sent_us, 0x018b_cfe5_687b_u64 * 1000);
            prop_assert_eq!(event.message, owned::Message { id: ID.to_owned(), ..message });
        }

        #[test]
        fn whatever_others_publish_makes_no_trouble(
            channel in prop::collection::vec(any::<u8>(), 0..20),
            lines in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let _ = event("orders", &channel, Some(&lines), b"", 7);
            let heard = event("orders", b"orders.a", Some(&lines), b"x", 7).unwrap();
            prop_assert_eq!(&heard.message.payload[..], b"x");
        }
    }

    #[test]
    fn what_others_publish_is_an_event_where_its_channel_is_a_topic() {
        let heard = event("orders", b"orders.a", None, b"by hand", 7).unwrap();
        assert_eq!((heard.sent_us, heard.expires_us, &*heard.message.id), (7, u64::MAX, ""));
        for channel in
            ["orders", "other.a", "orders.a.$b", "ordersx.a", "orders.", "_prism:orders.a"]
        {
            assert!(event("orders", channel.as_bytes(), None, b"", 7).is_none(), "{channel}");
        }
    }
}
