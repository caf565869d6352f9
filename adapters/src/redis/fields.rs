//! A message as the fields of a hash or of an entry of a stream, and back: those of queues, and those of transactions.

use std::collections::HashMap;

use prism_proto::prism::r#type::v1::Message;
use prism_proto::prism::r#type::v1::message::DeliveryTime;
use prism_proto::view::types::{self as view, MessageDeliveryTime};

use super::codec;
use super::keyvalue::Answer;
use super::stream::ATTRIBUTE;
use crate::call::Context;
use crate::error::Error;
use crate::interfaces::message::{expires_us, moment_us, span_ms, time};

const ID: &str = "id";
const PAYLOAD: &str = "payload";
const CONTENT_TYPE: &str = "content-type";
const ORDERING_KEY: &str = "ordering-key";
const PRIORITY: &str = "priority";
/// What the sender said about the time of delivery.
const DELAY_MS: &str = "delay-ms";
const DELIVER_AT_US: &str = "deliver-at-us";
const EXPIRES_AT_US: &str = "expires-at-us";
const SENT_AT_US: &str = "sent-at-us";
/// How often it was delivered.
const ATTEMPTS: &str = "attempts";
/// Of a dead letter: what was given to Reject, or `MAX_DELIVERIES`.
const REASON: &str = "reason";
const DEAD_AT_US: &str = "dead-at-us";
/// Of a message of a transaction: where it goes.
pub(super) const TARGET_NAMESPACE: &str = "target-namespace";
pub(super) const TARGET: &str = "target";

/// How many fields [`put_fields`] adds.
pub(super) fn count_fields(message: &view::Message<'_>) -> usize {
    let given = [
        !message.content_type.is_empty(),
        !message.ordering_key.is_empty(),
        message.priority.is_some(),
        message.delivery_time.is_some(),
        message.expires_at.is_some(),
    ];
    3 + given.into_iter().filter(|given| *given).count() + message.attributes.len()
}

/// Adds the fields of a message that is sent now, and their values.
pub(super) fn put_fields(
    out: &mut Vec<u8>,
    context: &Context<'_>,
    id: &str,
    message: &view::Message<'_>,
) {
    let mut numbers = vec![(SENT_AT_US, context.now_us)];
    numbers.extend(message.priority.map(|priority| (PRIORITY, u64::from(priority))));
    numbers.extend(message.delivery_time.map(|when| match when {
        MessageDeliveryTime::Delay(delay) => (DELAY_MS, span_ms(&delay)),
        MessageDeliveryTime::DeliverAt(at) => (DELIVER_AT_US, moment_us(&at)),
    }));
    numbers.extend(message.expires_at.map(|_| (EXPIRES_AT_US, expires_us(message))));
    let texts = [(CONTENT_TYPE, message.content_type), (ORDERING_KEY, message.ordering_key)];
    let texts = texts.into_iter().filter(|(_, text)| !text.is_empty());
    for (name, text) in [(ID, id.as_bytes()), (PAYLOAD, message.payload)] {
        codec::put(out, name.as_bytes());
        codec::put(out, text);
    }
    for (name, text) in texts {
        codec::put(out, name.as_bytes());
        codec::put(out, text.as_bytes());
    }
    for (name, number) in numbers {
        codec::put(out, name.as_bytes());
        codec::put_number(out, number);
    }
    for attribute in message.attributes.iter() {
        codec::put_pieces(out, [ATTRIBUTE.as_bytes(), attribute.key.as_bytes(), b""]);
        codec::put(out, attribute.value.as_bytes());
    }
}

/// A message and what is kept beside it.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) message: Message,
    pub(super) sent_us: u64,
    pub(super) attempts: u32,
    pub(super) reason: String,
    pub(super) dead_us: u64,
    /// Of a transaction: where it goes, namespace and name.
    pub(super) target: [String; 2],
}

impl Kept {
    /// Reads the fields of a hash, whoever has written them; what is no text is read as well as may be.
    pub(super) fn read(answer: &mut Answer<'_>) -> Result<Self, Error> {
        let mut kept = Kept::default();
        let message = &mut kept.message;
        let mut attributes = HashMap::new();
        for _ in 0..answer.array()? / 2 {
            let name = answer.blob()?.unwrap_or_default();
            let value = answer.blob()?.unwrap_or_default();
            let text = || String::from_utf8_lossy(value).into_owned();
            let number = || text().parse::<u64>().unwrap_or_default();
            let name = String::from_utf8_lossy(name);
            match &*name {
                ID => message.id = text(),
                PAYLOAD => message.payload = value.to_vec().into(),
                CONTENT_TYPE => message.content_type = text(),
                ORDERING_KEY => message.ordering_key = text(),
                PRIORITY => message.priority = Some(number().min(9) as u32),
                DELAY_MS => {
                    let (seconds, nanos) = (number() / 1000, number() % 1000 * 1_000_000);
                    let (seconds, nanos) = (seconds as i64, nanos as i32);
                    let delay = prost_types::Duration { seconds, nanos };
                    message.delivery_time = Some(DeliveryTime::Delay(delay));
                }
                DELIVER_AT_US => {
                    message.delivery_time = Some(DeliveryTime::DeliverAt(time(number())));
                }
                EXPIRES_AT_US => message.expires_at = Some(time(number())),
                SENT_AT_US => kept.sent_us = number(),
                ATTEMPTS => kept.attempts = number().min(u32::MAX.into()) as u32,
                REASON => kept.reason = text(),
                DEAD_AT_US => kept.dead_us = number(),
                TARGET_NAMESPACE => kept.target[0] = text(),
                TARGET => kept.target[1] = text(),
                name => {
                    if let Some(name) = name.strip_prefix(ATTRIBUTE) {
                        attributes.insert(name.to_owned(), text());
                    }
                }
            }
        }
        message.attributes = attributes;
        Ok(kept)
    }
}
