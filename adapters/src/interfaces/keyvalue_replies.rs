//! How answers about entries are put together, the same on every backend.
//!
//! Replies with repeated fields are written piece by piece, without a message in between, and never
//! longer than a message may be.

use prism_proto::rpc::StatusDetails;
use prism_proto::view::protobuf::{Duration, Timestamp};
use prism_proto::view::types::{ConditionFailure, Entry, OperationResult};
use prism_proto::wire::{self, WireType};

use crate::call::{BY_REFERENCE_BYTES_MIN, Reply};
use crate::error::{Error, Kind};
use crate::limits::Limits;

/// Bytes of a batch's result that only says why there is none.
pub(crate) const STATUS_BYTES_MAX: usize = 1024;

/// Bytes of a result that only says that it did not fit.
pub(crate) const TOO_LARGE_BYTES_MAX: usize = 256;

/// Field numbers of the replies whose repeated fields are written piece by piece.
mod field {
    pub(super) const TRANSACT_COMMITTED: u32 = 1;
    pub(super) const TRANSACT_RESULTS: u32 = 2;
    pub(super) const TRANSACT_FAILURES: u32 = 3;
    pub(super) const BATCH_RESULTS: u32 = 1;
    pub(super) const BATCH_STATUS: u32 = 1;
    pub(super) const BATCH_GET_FOUND: u32 = 2;
    pub(super) const BATCH_GET_ENTRY: u32 = 3;
    pub(super) const BATCH_SET_VERSION: u32 = 2;
    pub(super) const BATCH_DELETE_EXISTED: u32 = 2;
}

/// µs since the epoch as a point in time.
#[inline]
pub(crate) fn timestamp(time_us: u64) -> Timestamp {
    Timestamp { seconds: (time_us / 1_000_000) as i64, nanos: (time_us % 1_000_000) as i32 * 1000 }
}

/// What is left until `expires_us`, in whole milliseconds, rounded up.
pub(crate) fn time_left(expires_us: u64, now_us: u64) -> Duration {
    let left_ms = expires_us.saturating_sub(now_us).div_ceil(1000);
    Duration { seconds: (left_ms / 1000) as i64, nanos: (left_ms % 1000) as i32 * 1_000_000 }
}

/// So many milliseconds from now on, and not less: on a full millisecond, in µs since the epoch.
pub(crate) fn expires_us(ttl_ms: u64, now_us: u64) -> u64 {
    (now_us.div_ceil(1000) + ttl_ms) * 1000
}

/// Whether a reply's payload leaves by reference instead of being copied to the end of its head.
#[inline]
pub(crate) fn is_by_reference(value: &[u8]) -> bool {
    value.len() >= BY_REFERENCE_BYTES_MIN
}

/// Begins the reply of a Transact that is committed; a result for each operation follows.
pub(crate) fn put_committed(reply: &mut Reply) {
    wire::put_tag(&mut reply.head, field::TRANSACT_COMMITTED, WireType::Varint);
    wire::put_varint(&mut reply.head, 1);
}

/// Adds the result of one operation; a delete has no version.
pub(crate) fn put_operation(reply: &mut Reply, version: Option<&[u8]>) {
    let result = OperationResult { version };
    wire::put_length(&mut reply.head, field::TRANSACT_RESULTS, result.encoded_len());
    result.encode(&mut reply.head);
}

/// Adds a failed condition. The reply holds as many as fit into a message, and at least one.
pub(crate) fn put_failure(
    reply: &mut Reply,
    limits: &Limits,
    index: u32,
    current: Option<Entry<'_>>,
) {
    let head = &mut reply.head;
    let failure = ConditionFailure { index, current };
    let length = failure.encoded_len();
    if head.is_empty() || head.len() + length + 8 <= limits.max_message_size {
        wire::put_length(head, field::TRANSACT_FAILURES, length);
        failure.encode(head);
    }
}

/// Adds what BatchGet found under one key. `reserved` bytes are kept for the results that follow; what does not
/// fit is answered by a status.
pub(crate) fn put_got(
    reply: &mut Reply,
    limits: &Limits,
    reserved: usize,
    entry: Option<Entry<'_>>,
) {
    let head = &mut reply.head;
    let Some(entry) = entry else {
        return wire::put_length(head, field::BATCH_RESULTS, 0);
    };
    let entry_bytes = entry.encoded_len();
    let result_bytes = 2 + wire::bytes_field_len(field::BATCH_GET_ENTRY, entry_bytes);
    if head.len() + result_bytes + 8 + reserved > limits.max_message_size {
        return put_too_large(reply);
    }
    wire::put_length(head, field::BATCH_RESULTS, result_bytes);
    wire::put_tag(head, field::BATCH_GET_FOUND, WireType::Varint);
    wire::put_varint(head, 1);
    wire::put_length(head, field::BATCH_GET_ENTRY, entry_bytes);
    entry.encode(head);
}

/// Adds a result of BatchSet: the version of what was stored.
pub(crate) fn put_set(reply: &mut Reply, version: &[u8]) {
    let length = wire::bytes_field_len(field::BATCH_SET_VERSION, version.len());
    wire::put_length(&mut reply.head, field::BATCH_RESULTS, length);
    wire::put_bytes(&mut reply.head, field::BATCH_SET_VERSION, version);
}

/// Adds a result of BatchSet or BatchDelete that says no more than that it is done.
pub(crate) fn put_done(reply: &mut Reply) {
    wire::put_length(&mut reply.head, field::BATCH_RESULTS, 0);
}

/// Adds a result of BatchDelete.
pub(crate) fn put_deleted(reply: &mut Reply, existed: bool) {
    wire::put_length(&mut reply.head, field::BATCH_RESULTS, 2);
    wire::put_tag(&mut reply.head, field::BATCH_DELETE_EXISTED, WireType::Varint);
    wire::put_varint(&mut reply.head, existed.into());
}

/// Adds a result of a batch that says why this item has none.
#[cold]
pub(crate) fn put_status(reply: &mut Reply, error: &Error) {
    let code = i32::from(error.kind().grpc_code());
    let mut end = error.message().len().min(STATUS_BYTES_MAX / 2);
    while !error.message().is_char_boundary(end) {
        end -= 1;
    }
    let details = StatusDetails::new(code, &error.message()[..end], error.reason());
    put_status_bytes(reply, &details.encode());
}

/// Adds a result of BatchGet that does not fit into the message.
#[cold]
pub(crate) fn put_too_large(reply: &mut Reply) {
    let message = "the results before this one fill a message; get it by itself";
    let code = i32::from(Kind::ResourceExhausted.grpc_code());
    let status = StatusDetails::new(code, message, "REPLY_TOO_LARGE").encode();
    assert!(wire::bytes_field_len(field::BATCH_STATUS, status.len()) + 8 <= TOO_LARGE_BYTES_MAX);
    put_status_bytes(reply, &status);
}

fn put_status_bytes(reply: &mut Reply, status: &[u8]) {
    let length = wire::bytes_field_len(field::BATCH_STATUS, status.len());
    wire::put_length(&mut reply.head, field::BATCH_RESULTS, length);
    wire::put_bytes(&mut reply.head, field::BATCH_STATUS, status);
}
