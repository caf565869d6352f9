//! Messages as they are sent to a queue, delivered and given up.

use prism_proto::prism::queue::v1::DeadLetter;
use prism_proto::prism::r#type::v1::Delivery;
use prism_proto::view::types as view;

use super::super::codec;
use super::super::fields::{Kept, count_fields, put_fields};
use super::MAX_DELIVERIES;
use crate::call::Context;
use crate::interfaces::message::{due_us, expires_us, time};

/// Adds a message as `queue_send.lua` takes it; returns of how many parts that is.
pub(super) fn put_message(
    out: &mut Vec<u8>,
    context: &Context<'_>,
    id: &str,
    message: &view::Message<'_>,
) -> usize {
    codec::put_number(out, due_us(message, context.now_us));
    match expires_us(message) {
        u64::MAX => codec::put(out, b""),
        us => codec::put_number(out, us),
    }
    codec::put(out, message.ordering_key.as_bytes());
    let parts = 2 * count_fields(message);
    codec::put_number(out, parts as u64);
    put_fields(out, context, id, message);
    4 + parts
}

/// The delivery of a message that is handed out now, leased until then. What is kept of it was read before it was.
pub(super) fn delivery(
    kept: Kept,
    number: u64,
    (attempt, lease): (u32, &str),
    until_us: u64,
) -> Delivery {
    Delivery {
        receipt: format!("{number}-{attempt}-{lease}"),
        attempt,
        sent_at: Some(time(kept.sent_us)),
        lease_expires_at: Some(time(until_us)),
        message: Some(kept.message),
    }
}

/// A dead letter as it is told; `given_up_us`: it is one since then, by the passing of time, though nobody has noticed.
pub(super) fn dead_letter(kept: Kept, given_up_us: Option<u64>) -> DeadLetter {
    let reason = match given_up_us {
        Some(_) => MAX_DELIVERIES.to_owned(),
        None => kept.reason,
    };
    DeadLetter {
        reason,
        attempts: kept.attempts,
        sent_at: Some(time(kept.sent_us)),
        dead_at: Some(time(given_up_us.unwrap_or(kept.dead_us))),
        message: Some(kept.message),
    }
}

/// A message's number and which delivery of it a receipt is of; of what is no receipt, those of none.
pub(super) fn read_receipt(receipt: &str) -> (u64, &str) {
    let parts = receipt.split_once('-');
    parts.and_then(|(number, lease)| Some((number.parse().ok()?, lease))).unwrap_or_default()
}
