//! An event as an entry of its topic's stream, and back.
//!
//! Its fields are `value`, `id`, and where there are any `content-type`, `ordering-key` and `expires-at-us`, and each attribute under its own
//! name; an attribute that is called like one of ours is `attribute.<name>`.

use prism_proto::view::types as view;

use super::super::codec;
use super::super::errors;
use super::super::keyvalue::{Answer, put_key};
use super::super::stream::{ATTRIBUTE, Id};
use crate::call::Context;
use crate::error::Error;
use crate::interfaces::message::{expires_us, time};
use crate::memory::pubsub::Event;

const VALUE: &str = "value";
const ID: &str = "id";
const CONTENT_TYPE: &str = "content-type";
const ORDERING_KEY: &str = "ordering-key";
const EXPIRES_AT_US: &str = "expires-at-us";
const OWN_FIELDS: [&str; 5] = [VALUE, ID, CONTENT_TYPE, ORDERING_KEY, EXPIRES_AT_US];

/// Adds the command that publishes an event.
pub(super) fn put_event(
    out: &mut Vec<u8>,
    context: &Context<'_>,
    topic: &str,
    id: &str,
    message: &view::Message<'_>,
) {
    let expires_us = Some(expires_us(message)).filter(|us| *us != u64::MAX);
    let texts = [(CONTENT_TYPE, message.content_type), (ORDERING_KEY, message.ordering_key)];
    let texts = texts.into_iter().filter(|(_, text)| !text.is_empty());
    let fields =
        2 + texts.clone().count() + usize::from(expires_us.is_some()) + message.attributes.len();
    codec::put_command(out, 3 + 2 * fields);
    codec::put(out, b"XADD");
    put_key(out, context, topic);
    codec::put(out, b"*");
    for (name, text) in [(VALUE, message.payload), (ID, id.as_bytes())] {
        codec::put(out, name.as_bytes());
        codec::put(out, text);
    }
    for (name, text) in texts {
        codec::put(out, name.as_bytes());
        codec::put(out, text.as_bytes());
    }
    if let Some(us) = expires_us {
        codec::put(out, EXPIRES_AT_US.as_bytes());
        codec::put_number(out, us);
    }
    for attribute in message.attributes.iter() {
        let prefix = if OWN_FIELDS.contains(&attribute.key) { ATTRIBUTE } else { "" };
        codec::put_pieces(out, [prefix.as_bytes(), attribute.key.as_bytes(), b""]);
        codec::put(out, attribute.value.as_bytes());
    }
}

/// Reads an entry, whoever has written it; what is no text is read as well as may be. It was sent when Redis has stored it.
pub(super) fn read_event(
    context: &Context<'_>,
    topic: &str,
    answer: &mut Answer<'_>,
) -> Result<(Id, Event), Error> {
    if answer.array()? != 2 {
        return Err(errors::unexpected(context));
    }
    let id = Id::read(context, answer.blob()?)?;
    let sent_us = id.ms.saturating_mul(1000);
    let mut event =
        Event { topic: topic.into(), sent_us, expires_us: u64::MAX, message: Default::default() };
    for _ in 0..answer.array()? / 2 {
        let name = answer.blob()?.unwrap_or_default();
        let value = answer.blob()?.unwrap_or_default();
        let text = || String::from_utf8_lossy(value).into_owned();
        let message = &mut event.message;
        match &*String::from_utf8_lossy(name) {
            VALUE => message.payload = value.to_vec().into(),
            ID => message.id = text(),
            CONTENT_TYPE => message.content_type = text(),
            ORDERING_KEY => message.ordering_key = text(),
            EXPIRES_AT_US => {
                if let Ok(us) = text().parse() {
                    event.expires_us = us;
                    message.expires_at = Some(time(us));
                }
            }
            name => {
                let name = name.strip_prefix(ATTRIBUTE).unwrap_or(name).to_owned();
                message.attributes.insert(name, text());
            }
        }
    }
    Ok((id, event))
}
