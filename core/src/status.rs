//! The one place where a failure becomes a gRPC status.

use bytes::Bytes;
use prism_adapters::Error;
use prism_io::grpc::{Code, Status};
use prism_proto::google;
use prism_proto::rpc::StatusDetails;
use prost::Message as _;

/// The encoded `google.rpc.Status` of `error`, for `grpc-status-details-bin`.
pub(crate) fn details(error: &Error) -> Bytes {
    let code = i32::from(error.kind().grpc_code());
    let mut details = StatusDetails::new(code, error.message(), error.reason());
    for (name, value) in error.metadata() {
        details = details.metadata(*name, value.as_ref());
    }
    if let Some(delay) = error.retry_delay() {
        details = details.retry_after(delay);
    }
    if let Some(quota) = error.quota_violation() {
        details = details.quota(&quota.subject, &quota.description);
    }
    for violation in error.violations() {
        details = details.bad_field(&violation.field, violation.description.as_ref());
    }
    details.encode()
}

/// Calls `send` with the status of `error`.
pub(crate) fn with_status<R>(error: &Error, send: impl FnOnce(&Status<'_>) -> R) -> R {
    let details = details(error);
    send(&Status {
        code: Code::from_number(error.kind().grpc_code().into()),
        message: error.message(),
        details: &details,
        trailers: &[],
    })
}

/// Calls `send` with a status that was encoded earlier, and with `trailers`.
pub(crate) fn with_encoded<R>(
    encoded: &[u8],
    trailers: &[(&str, &[u8])],
    send: impl FnOnce(&Status<'_>) -> R,
) -> R {
    // It was encoded by `details`; a log that holds anything else would have failed its checksum.
    let status = google::rpc::Status::decode(encoded).unwrap_or_default();
    send(&Status {
        code: Code::from_number(status.code.unsigned_abs()),
        message: &status.message,
        details: encoded,
        trailers,
    })
}
