//! A queue's messages as rows, and back.

use prism_proto::prism::queue::v1::DeadLetter;
use prism_proto::prism::r#type::v1::{Delivery, Message};
use prism_proto::view::types::{self as view, MessageDeliveryTime};
use prost_types::{Duration, Timestamp};

use super::super::batch::{Operation, moment};
use super::super::codec::Row;
use super::super::messages::{attributes, column, json, read_message};
use super::super::statements::Statement;
use super::QueueStatement;
use super::elsewhere::Elsewhere;
use crate::call::Context;
use crate::interfaces::message::{due_us, expires_us, moment_us, span_ms, time};

/// A message that is sent to a queue; its payload may be elsewhere.
pub(super) fn send(
    context: &Context<'_>,
    queue: &str,
    id: &str,
    message: &view::Message<'_>,
    elsewhere: Option<Elsewhere>,
) -> Operation {
    let (delay_ms, deliver_us) = match message.delivery_time {
        Some(MessageDeliveryTime::Delay(delay)) => (Some(span_ms(&delay) as i64), None),
        Some(MessageDeliveryTime::DeliverAt(at)) => (None, Some(moment_us(&at))),
        None => (None, None),
    };
    let gone_us = elsewhere.map_or(u64::MAX, |payload| payload.expires_us);
    let expires_us = Some(expires_us(message).min(gone_us)).filter(|us| *us != u64::MAX);
    let places = elsewhere.map(|payload| payload.attributes());
    let own = message.attributes.iter().map(|one| (one.key, one.value));
    let places = places.iter().flatten().map(|(name, value)| (*name, value.as_str()));
    let payload = if elsewhere.is_some() { &[] } else { message.payload };
    let key = Some(message.ordering_key).filter(|key| !key.is_empty());
    let priority = message.priority.map(i64::from);
    let values = vec![
        column(queue.as_bytes()),
        column(id.as_bytes()),
        column(payload),
        column(message.content_type.as_bytes()),
        column(json(own.chain(places)).as_bytes()),
        key.and_then(|key| column(key.as_bytes())),
        priority.and_then(|priority| column(&priority.to_be_bytes())),
        delay_ms.and_then(|delay_ms| column(&delay_ms.to_be_bytes())),
        deliver_us.and_then(|us| column(&moment(us))),
        expires_us.and_then(|us| column(&moment(us))),
        column(&moment(context.now_us)),
        column(&moment(due_us(message, context.now_us))),
    ];
    Operation::Row { statement: Statement::Queue(QueueStatement::Send), values }
}

/// The message of a row of one of the statements that tell messages.
pub(super) fn message(row: &Row) -> Message {
    use prism_proto::prism::r#type::v1::message::DeliveryTime;
    let priority = row.number(3).map(|priority| priority.clamp(0, 9) as u32);
    let delay = row.number(4).map(|ms| {
        let (seconds, nanos) = (ms / 1000, (ms % 1000 * 1_000_000) as i32);
        DeliveryTime::Delay(Duration { seconds, nanos })
    });
    let at = |place| row.moment(place).map(time);
    let deliver_at = |at: Timestamp| DeliveryTime::DeliverAt(at);
    Message {
        priority,
        delivery_time: delay.or_else(|| at(5).map(deliver_at)),
        expires_at: at(6),
        ..read_message(row, row.text(0), attributes(&row.text(1)), row.text(2))
    }
}

/// A delivery as it is told to its receiver, leased until then.
pub(super) fn delivery(row: &Row, until_us: u64) -> Delivery {
    let lease = row.number(7).unwrap_or_default();
    Delivery {
        receipt: format!("{:x}-{lease:x}", row.version),
        attempt: row.length,
        sent_at: row.expires_us.map(time),
        lease_expires_at: Some(time(until_us)),
        message: Some(message(row)),
    }
}

/// A dead letter as it is told.
pub(super) fn dead_letter(row: &Row) -> DeadLetter {
    DeadLetter {
        reason: row.text(8),
        attempts: row.length,
        sent_at: row.expires_us.map(time),
        dead_at: row.moment(9).map(time),
        message: Some(message(row)),
    }
}

/// A message's number and which delivery of it a receipt is of; of what is no receipt, those of none.
pub(super) fn read_receipt(receipt: &str) -> (i64, i64) {
    let numbers = receipt.split_once('-').and_then(|(id, lease)| {
        Some((i64::from_str_radix(id, 16).ok()?, i64::from_str_radix(lease, 16).ok()?))
    });
    numbers.unwrap_or((-1, -1))
}
