//! What makes messages, attributes, places and spans valid, wherever they stand; the same on every backend.

use prism_proto::view::protobuf::Duration;
use prism_proto::view::types::{
    Message, MessageAttributesEntry, MessageDeliveryTime, Position, Start, StartStart,
};
use prism_proto::wire::Repeated;

use super::keyvalue_checks::{REQUIRED, check_count};
use crate::error::Error;
use crate::filter::Filter;
use crate::limits::{
    ATTRIBUTE_BYTES_MAX, ATTRIBUTES_MAX, BATCH_ITEMS_MAX, CONTENT_TYPE_BYTES_MAX, CURSOR_BYTES_MAX,
    DELAY_MAX_MS, KEY_BYTES_MAX, LEASE_MAX_MS, Limits, MESSAGE_OVERHEAD_BYTES_MAX,
    OFFSET_BYTES_MAX, PRIORITY_MAX, RECEIPT_BYTES_MAX, check_key, timestamp_ms,
};

/// What a kind of message may carry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Carries {
    /// An event: neither priority nor a time of delivery.
    Event,
    /// A queue's message: everything.
    Message,
}

/// A message that is to be sent or published.
pub(super) fn check_message(
    field: &str,
    message: &Message<'_>,
    carries: Carries,
    limits: &Limits,
) -> Result<(), Error> {
    let place = |name: &str| format!("{field}.{name}");
    check_content_type(field, message.content_type)?;
    let attribute_bytes = check_attributes(field, message.attributes)?;
    if !message.ordering_key.is_empty() {
        check_key(&place("ordering_key"), message.ordering_key)?;
    }
    if carries == Carries::Event {
        let queue_only = "is for queues: leave it out of an event";
        if message.priority.is_some() {
            return Err(Error::field("FIELD_NOT_ALLOWED", place("priority"), queue_only));
        }
        if message.delivery_time.is_some() {
            return Err(Error::field("FIELD_NOT_ALLOWED", place("delivery_time"), queue_only));
        }
    }
    if message.priority.is_some_and(|priority| priority > PRIORITY_MAX) {
        return Err(Error::field("PRIORITY_INVALID", place("priority"), "must be 0 to 9"));
    }
    match message.delivery_time {
        None => {}
        Some(MessageDeliveryTime::Delay(delay)) => {
            check_span(&place("delay"), &delay, 0, DELAY_MAX_MS)?;
        }
        Some(MessageDeliveryTime::DeliverAt(at)) => {
            timestamp_ms(&place("deliver_at"), &at)?;
        }
    }
    if let Some(at) = &message.expires_at {
        timestamp_ms(&place("expires_at"), at)?;
    }
    let beside = message.content_type.len() + attribute_bytes + message.ordering_key.len();
    check_size(field, "payload", beside, message.payload, limits)
}

/// Payload and what is beside it fit into any message that carries them.
pub(super) fn check_size(
    field: &str,
    name: &str,
    beside_bytes: usize,
    payload: &[u8],
    limits: &Limits,
) -> Result<(), Error> {
    let bytes_max = limits.max_message_size.saturating_sub(MESSAGE_OVERHEAD_BYTES_MAX);
    if beside_bytes + payload.len() <= bytes_max {
        return Ok(());
    }
    let expected = format!(
        "has {} bytes and {beside_bytes} beside it, together at most {bytes_max} fit into a message of this namespace",
        payload.len()
    );
    Err(Error::field("PAYLOAD_TOO_LARGE", format!("{field}.{name}"), expected))
}

pub(super) fn check_content_type(field: &str, content_type: &str) -> Result<(), Error> {
    let printable = content_type.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if printable && content_type.len() <= CONTENT_TYPE_BYTES_MAX {
        return Ok(());
    }
    let expected = format!("must be at most {CONTENT_TYPE_BYTES_MAX} printable ASCII characters");
    Err(Error::field("CONTENT_TYPE_INVALID", format!("{field}.content_type"), expected))
}

/// The bytes that the attributes take.
pub(super) fn check_attributes(
    field: &str,
    attributes: Repeated<'_, MessageAttributesEntry<'_>>,
) -> Result<usize, Error> {
    check_pairs(field, attributes.len(), attributes.iter().map(|one| (one.key, one.value)))
}

pub(super) fn check_pairs<'a>(
    field: &str,
    count: usize,
    pairs: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<usize, Error> {
    let field = format!("{field}.attributes");
    check_count(&field, count, ATTRIBUTES_MAX)?;
    let (mut names, mut bytes) = ([""; ATTRIBUTES_MAX], 0);
    for (index, (name, value)) in pairs.enumerate() {
        let is_part = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-')
        };
        let begins = name.starts_with(|first: char| first.is_ascii_lowercase());
        if !begins || name.len() > 64 || !name.bytes().all(is_part) {
            let expected = "names must match [a-z][a-z0-9_-]{0,63}";
            return Err(Error::field("ATTRIBUTE_INVALID", field, expected));
        }
        if names[..index].contains(&name) {
            return Err(Error::field("ATTRIBUTE_INVALID", field, "every name may be there once"));
        }
        if value.len() > ATTRIBUTE_BYTES_MAX || value.contains(['\n', '\r', '\0']) {
            let expected = "values must have at most 1,024 bytes, without line breaks and zeros";
            return Err(Error::field("ATTRIBUTE_INVALID", field, expected));
        }
        names[index] = name;
        bytes += name.len() + value.len() + 8;
    }
    Ok(bytes)
}

/// A span of whole milliseconds within these bounds.
pub(super) fn check_span(
    field: &str,
    span: &Duration,
    ms_min: u64,
    ms_max: u64,
) -> Result<(), Error> {
    let sound = (0..1_000_000_000).contains(&span.nanos) && span.seconds >= 0;
    if sound && (ms_min..=ms_max).contains(&super::message::span_ms(span)) {
        return Ok(());
    }
    let expected = format!("must be {ms_min} to {ms_max} milliseconds");
    Err(Error::field("DURATION_INVALID", field, expected))
}

/// How long a delivery waits for its acknowledgement.
pub(super) fn check_lease(field: &str, span: Option<Duration>) -> Result<(), Error> {
    span.map_or(Ok(()), |span| check_span(field, &span, 1, LEASE_MAX_MS))
}

/// Receipts of one call: some, and all different.
pub(super) fn check_receipts<'a>(
    receipts: impl ExactSizeIterator<Item = &'a str>,
) -> Result<(), Error> {
    if receipts.len() == 0 {
        return Err(Error::field("BATCH_EMPTY", "receipts", "must not be empty"));
    }
    check_count("receipts", receipts.len(), BATCH_ITEMS_MAX)?;
    let mut seen = std::collections::HashSet::with_capacity(receipts.len());
    for (index, receipt) in receipts.enumerate() {
        check_receipt(&format!("receipts[{index}]"), receipt)?;
        if !seen.insert(receipt) {
            let expected = "every receipt may stand there only once";
            return Err(Error::field("DUPLICATE_RECEIPT", format!("receipts[{index}]"), expected));
        }
    }
    Ok(())
}

/// A receipt as callers hand it back; whether it is alive is another question.
pub(super) fn check_receipt(field: &str, receipt: &str) -> Result<(), Error> {
    if (1..=RECEIPT_BYTES_MAX).contains(&receipt.len()) {
        return Ok(());
    }
    let expected = format!("must be a receipt as it was delivered, 1 to {RECEIPT_BYTES_MAX} bytes");
    Err(Error::field("RECEIPT_INVALID", field, expected))
}

pub(super) fn check_position(field: &str, position: &Position<'_>) -> Result<(), Error> {
    if (1..=OFFSET_BYTES_MAX).contains(&position.offset.len()) {
        return Ok(());
    }
    let expected = format!("must be an offset as it was told, 1 to {OFFSET_BYTES_MAX} bytes");
    Err(Error::field("POSITION_INVALID", format!("{field}.offset"), expected))
}

/// A place to begin at.
pub(super) fn check_start(start: &Start<'_>) -> Result<(), Error> {
    match &start.start {
        None => Err(Error::field("START_MISSING", "start", REQUIRED)),
        Some(StartStart::At(position)) => check_position("start.at", position),
        Some(StartStart::After(position)) => check_position("start.after", position),
        Some(StartStart::Since(time)) => timestamp_ms("start.since", time).map(drop),
        Some(StartStart::Cursor(cursor)) if cursor.len() > CURSOR_BYTES_MAX => {
            let expected = "must be a cursor as it was told";
            Err(Error::field("CURSOR_INVALID", "start.cursor", expected))
        }
        Some(_) => Ok(()),
    }
}

pub(super) fn check_filter(field: &str, filter: &str) -> Result<(), Error> {
    Filter::parse(filter).map(drop).map_err(|what| Error::field("FILTER_INVALID", field, what))
}

/// A text of a caller's own for people, such as a reason.
pub(super) fn check_text(field: &str, text: &str) -> Result<(), Error> {
    if text.len() <= KEY_BYTES_MAX {
        return Ok(());
    }
    let expected = format!("has {} bytes, at most {KEY_BYTES_MAX} are allowed", text.len());
    Err(Error::field("TEXT_TOO_LONG", field, expected))
}
