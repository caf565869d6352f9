//! A queue's messages as messages of NATS, and back; dead letters are the same with what has become of them beside.

use std::hash::Hasher;

use async_nats::HeaderMap;
use bytes::Bytes;
use prism_proto::prism::queue::v1::DeadLetter;
use prism_proto::prism::r#type::v1::{Message, message::DeliveryTime};
use prism_proto::view::types::{self as view, MessageDeliveryTime};
use siphasher::sip::SipHasher13;

use super::super::durable::rfc3339;
use super::super::event::{ENCODED, MESSAGE_ID, headers, put, read_headers, texts};
use super::super::holds::{Holds, lane_subject, later_subject};
use super::super::link::Outgoing;
use super::super::record::stored_at;
use crate::call::Context;
use crate::interfaces::message::{minted_us, moment_us, span_ms, time};

/// Headers of JetStream for a message that it puts into its stream later.
const SCHEDULE: &str = "Nats-Schedule";
const SCHEDULE_TARGET: &str = "Nats-Schedule-Target";

/// The identity, where the message goes under another one for JetStream.
const ID: &str = "Prism-Id";
/// What the sender has said of the delivery, and when it was sent: milliseconds, of the times since the epoch.
const DELAY: &str = "Prism-Delay";
const DELIVER_AT: &str = "Prism-Deliver-At";
const SENT_AT: &str = "Prism-Sent-At";
/// Of a dead letter: why, how often it was delivered, and since when it is one.
const REASON: &str = "Prism-Reason";
const ATTEMPTS: &str = "Prism-Attempts";
const DEAD_AT: &str = "Prism-Dead-At";

/// Lanes for messages with ordering keys, beside the one for those without: so many keys of a queue may have a message in flight.
pub(super) const LANES: u8 = 64;

/// The lane of messages without an ordering key.
pub(super) const UNORDERED: u8 = 0;

/// The lane of an ordering key.
pub(super) fn lane_of(ordering_key: &str) -> u8 {
    if ordering_key.is_empty() {
        return UNORDERED;
    }
    // The same on every host and in every release: it says where messages lie.
    let mut hasher = SipHasher13::new_with_keys(0x7072_6973_6d2d_7175, 0x6575_652d_6c61_6e65);
    hasher.write(ordering_key.as_bytes());
    1 + (hasher.finish() % u64::from(LANES)) as u8
}

/// The name of the consumer that hands out the messages of a lane.
pub(super) fn consumer_name(lane: u8) -> String {
    match lane {
        UNORDERED => "messages".to_owned(),
        lane => format!("key-{lane}"),
    }
}

/// The lane whose consumer has this name.
pub(super) fn lane_named(name: &str) -> Option<u8> {
    if name == consumer_name(UNORDERED) {
        return Some(UNORDERED);
    }
    let lane = name.strip_prefix("key-")?.parse().ok()?;
    (1..=LANES).contains(&lane).then_some(lane)
}

/// The subject of the messages of a lane.
pub(super) fn subject_of(context: &Context<'_>, queue: &str, lane: u8) -> String {
    match lane {
        UNORDERED => Holds::Messages(queue).subjects(context),
        lane => lane_subject(context, queue, &lane.to_string()),
    }
}

/// A message as it goes to the server; with `due_us` it waits there until then.
pub(super) fn outgoing(
    context: &Context<'_>,
    queue: &str,
    message: &view::Message<'_>,
    id: &str,
    due_us: Option<u64>,
) -> Outgoing {
    let mut headers = headers(message, id);
    match message.delivery_time {
        Some(MessageDeliveryTime::Delay(delay)) => {
            put(&mut headers, DELAY, &span_ms(&delay).to_string());
        }
        Some(MessageDeliveryTime::DeliverAt(at)) => {
            put(&mut headers, DELIVER_AT, &(moment_us(&at) / 1000).to_string());
        }
        None => {}
    }
    let mut subject = subject_of(context, queue, lane_of(message.ordering_key));
    if let Some(due_us) = due_us {
        // What comes of it has lost what JetStream knows it by.
        put(&mut headers, ID, id);
        put(&mut headers, SCHEDULE, &format!("@at {}", rfc3339(due_us)));
        put(&mut headers, SCHEDULE_TARGET, &subject);
        subject = later_subject(context, queue, &token(id));
    }
    let payload = Bytes::copy_from_slice(message.payload);
    Outgoing { headers: Some(headers), ..Outgoing::plain(subject, payload) }
}

/// An identity as a token of a subject.
fn token(id: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if !id.is_empty() && id.bytes().all(is_plain) {
        return id.to_owned();
    }
    let mut hasher = SipHasher13::new();
    hasher.write(id.as_bytes());
    format!("{:016x}", hasher.finish())
}

/// A message that was read, whoever has sent it.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) message: Message,
    /// µs since the epoch.
    pub(super) sent_us: u64,
    reason: String,
    attempts: u32,
    dead_us: u64,
}

impl Kept {
    /// Reads a message that was stored under this number, at this time, µs since the epoch, where that is known.
    pub(super) fn read(
        message: async_nats::Message,
        sequence: u64,
        stored_us: Option<u64>,
    ) -> Self {
        let headers = message.headers.as_ref();
        let stored_us = stored_us.or_else(|| headers.and_then(stored_at)).unwrap_or_default();
        let mut kept = Kept {
            message: Message::default(),
            sent_us: stored_us,
            reason: String::new(),
            attempts: 0,
            dead_us: stored_us,
        };
        let (mut id, mut sent_us, mut delivery_time) = (None, None, None);
        let own = |name: &str, value: String| {
            let ms = value.parse::<u64>().unwrap_or_default();
            match name {
                ID => id = Some(value),
                SENT_AT => sent_us = Some(ms.saturating_mul(1000)),
                DELAY => {
                    let (seconds, nanos) = (ms / 1000, (ms % 1000 * 1_000_000) as i32);
                    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
                    let delay = prost_types::Duration { seconds, nanos };
                    delivery_time = Some(DeliveryTime::Delay(delay));
                }
                DELIVER_AT => {
                    let at = time(ms.saturating_mul(1000));
                    delivery_time = Some(DeliveryTime::DeliverAt(at));
                }
                REASON => kept.reason = value,
                ATTEMPTS => kept.attempts = u32::try_from(ms).unwrap_or(u32::MAX),
                DEAD_AT => kept.dead_us = ms.saturating_mul(1000),
                _ => {}
            }
        };
        let mut read = match headers {
            Some(headers) => read_headers(headers, own),
            None => Message::default(),
        };
        read.delivery_time = delivery_time;
        if let Some(id) = id {
            read.id = id;
        }
        if read.id.is_empty() {
            read.id = sequence.to_string();
        }
        kept.sent_us = sent_us.or_else(|| minted_us(&read.id)).unwrap_or(stored_us);
        read.payload = message.payload;
        Kept { message: read, ..kept }
    }

    /// As a dead letter.
    pub(super) fn dead_letter(self) -> DeadLetter {
        DeadLetter {
            reason: self.reason,
            attempts: self.attempts,
            sent_at: Some(time(self.sent_us)),
            dead_at: Some(time(self.dead_us)),
            message: Some(self.message),
        }
    }
}

/// A dead letter as it goes to the server: the message as it was, and what has become of it.
pub(super) fn dead_letter(
    context: &Context<'_>,
    (queue, sequence): (&str, u64),
    message: &async_nats::Message,
    (reason, attempts, dead_us): (&str, u64, u64),
) -> Outgoing {
    let kept = Kept::read(message.clone(), sequence, None);
    let mut headers = carried(message.headers.as_ref());
    put(&mut headers, ID, &kept.message.id);
    put(&mut headers, SENT_AT, &(kept.sent_us / 1000).to_string());
    put(&mut headers, REASON, reason);
    put(&mut headers, ATTEMPTS, &attempts.to_string());
    put(&mut headers, DEAD_AT, &(dead_us / 1000).to_string());
    let subject = Holds::Dead(queue).subjects(context).replace('*', &sequence.to_string());
    Outgoing { headers: Some(headers), ..Outgoing::plain(subject, message.payload.clone()) }
}

/// A dead letter as it goes back into its queue, as if just sent. JetStream knows it again if it comes a second time.
pub(super) fn redriven(
    context: &Context<'_>,
    queue: &str,
    (sequence, message): (u64, &async_nats::Message),
    now_us: u64,
) -> (u8, Outgoing) {
    let kept = Kept::read(message.clone(), sequence, None);
    let lane = lane_of(&kept.message.ordering_key);
    let mut headers = HeaderMap::new();
    let all = carried(message.headers.as_ref());
    for (name, value) in texts(&all) {
        if ![REASON, ATTEMPTS, DEAD_AT, SENT_AT].contains(&name) {
            put(&mut headers, name, &value);
        }
    }
    put(&mut headers, MESSAGE_ID, &format!("{}-{sequence}", kept.message.id));
    put(&mut headers, SENT_AT, &(now_us / 1000).to_string());
    let subject = subject_of(context, queue, lane);
    (lane, Outgoing { headers: Some(headers), ..Outgoing::plain(subject, message.payload.clone()) })
}

/// The headers of a stored message without those of the server.
fn carried(headers: Option<&HeaderMap>) -> HeaderMap {
    let mut carried = HeaderMap::new();
    for (name, value) in headers.into_iter().flat_map(texts) {
        if !name.starts_with("Nats-") && name != ENCODED {
            put(&mut carried, name, &value);
        }
    }
    carried
}
