//! Builds the `google.rpc.Status` that stands behind a failed call, for the
//! trailer `grpc-status-details-bin`.
//!
//! Every failure carries one `ErrorInfo` of domain `prism`; what else helps
//! the caller comes beside it. The module packs bytes; which failure it is, is
//! decided elsewhere.

use std::time::Duration;

use bytes::Bytes;
use prost::{Message, Name};
use prost_types::Any;

use crate::google::rpc::{
    BadRequest, ErrorInfo, Help, PreconditionFailure, QuotaFailure, RetryInfo, Status, bad_request,
    help, precondition_failure, quota_failure,
};

/// The `domain` of every `ErrorInfo` of Prism.
pub const ERROR_DOMAIN: &str = "prism";

/// Collects what is to be said about a failure.
///
/// ```text
/// StatusDetails::new(8, "the log is full", "WAL_FULL")
///     .metadata("namespace", "orders")
///     .retry_after(Duration::from_millis(250))
///     .encode()
/// ```
#[derive(Clone, Debug)]
pub struct StatusDetails {
    code: i32,
    message: String,
    info: ErrorInfo,
    retry: Option<RetryInfo>,
    bad_request: BadRequest,
    quota: QuotaFailure,
    precondition: PreconditionFailure,
    help: Help,
}

impl StatusDetails {
    /// A failure with a gRPC status code (1 to 16), a message for people and a
    /// stable reason in UPPER_SNAKE_CASE for programs.
    pub fn new(code: i32, message: impl Into<String>, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        debug_assert!((1..=16).contains(&code), "not a failure: {code}");
        debug_assert!(
            reason.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_')),
            "not UPPER_SNAKE_CASE: {reason}"
        );
        StatusDetails {
            code,
            message: message.into(),
            info: ErrorInfo { reason, domain: ERROR_DOMAIN.to_owned(), ..Default::default() },
            retry: None,
            bad_request: BadRequest::default(),
            quota: QuotaFailure::default(),
            precondition: PreconditionFailure::default(),
            help: Help::default(),
        }
    }

    /// Adds metadata to the `ErrorInfo`: namespace, interface, backend, …
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.info.metadata.insert(name.into(), value.into());
        self
    }

    /// A retry after this time may succeed (`RetryInfo`).
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        let retry_delay = Some(prost_types::Duration {
            seconds: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
            nanos: delay.subsec_nanos() as i32,
        });
        self.retry = Some(RetryInfo { retry_delay });
        self
    }

    /// A field of the request is bad (`BadRequest`).
    #[must_use]
    pub fn bad_field(mut self, field: impl Into<String>, description: impl Into<String>) -> Self {
        self.bad_request.field_violations.push(bad_request::FieldViolation {
            field: field.into(),
            description: description.into(),
            ..Default::default()
        });
        self
    }

    /// A limit was hit (`QuotaFailure`): whose, and how.
    #[must_use]
    pub fn quota(mut self, subject: impl Into<String>, description: impl Into<String>) -> Self {
        self.quota.violations.push(quota_failure::Violation {
            subject: subject.into(),
            description: description.into(),
            ..Default::default()
        });
        self
    }

    /// A precondition did not hold (`PreconditionFailure`): of which type, of what, and how.
    #[must_use]
    pub fn precondition(
        mut self,
        kind: impl Into<String>,
        subject: impl Into<String>,
        description: impl Into<String>,
    ) -> Self {
        self.precondition.violations.push(precondition_failure::Violation {
            r#type: kind.into(),
            subject: subject.into(),
            description: description.into(),
        });
        self
    }

    /// Where to read on (`Help`).
    #[must_use]
    pub fn help(mut self, description: impl Into<String>, url: impl Into<String>) -> Self {
        self.help.links.push(help::Link { description: description.into(), url: url.into() });
        self
    }

    /// The status as a message, for the `status` of a batch's item.
    pub fn into_status(self) -> Status {
        let mut details = vec![pack(&self.info)];
        details.extend(self.retry.as_ref().map(pack));
        if !self.bad_request.field_violations.is_empty() {
            details.push(pack(&self.bad_request));
        }
        if !self.quota.violations.is_empty() {
            details.push(pack(&self.quota));
        }
        if !self.precondition.violations.is_empty() {
            details.push(pack(&self.precondition));
        }
        if !self.help.links.is_empty() {
            details.push(pack(&self.help));
        }
        Status { code: self.code, message: self.message, details }
    }

    /// The encoded status: the value of `grpc-status-details-bin` before base64.
    pub fn encode(self) -> Bytes {
        self.into_status().encode_to_vec().into()
    }
}

/// The first detail of type `T` in a status, for clients and tests; `None`
/// when there is none or it does not decode.
pub fn detail<T: Message + Name + Default>(status: &Status) -> Option<T> {
    let type_url = T::type_url();
    let any = status.details.iter().find(|any| any.type_url == type_url)?;
    T::decode(any.value.as_slice()).ok()
}

fn pack<T: Message + Name>(message: &T) -> Any {
    Any { type_url: T::type_url(), value: message.encode_to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_carries_what_was_said_about_it() {
        let encoded = StatusDetails::new(8, "the log is full", "WAL_FULL")
            .metadata("namespace", "orders")
            .retry_after(Duration::from_millis(250))
            .bad_field("key", "is empty")
            .quota("namespace:orders", "1 MiB in flight")
            .precondition("FENCE", "epoch", "is stale")
            .help("limits", "https://example.org")
            .encode();
        let status = Status::decode(encoded).expect("a status");
        assert_eq!((status.code, status.message.as_str()), (8, "the log is full"));
        assert_eq!(status.details[0].type_url, "type.googleapis.com/google.rpc.ErrorInfo");
        let info: ErrorInfo = detail(&status).expect("info");
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("WAL_FULL", "prism"));
        assert_eq!(info.metadata["namespace"], "orders");
        let retry: RetryInfo = detail(&status).expect("retry");
        assert_eq!(retry.retry_delay.expect("delay").nanos, 250_000_000);
        assert_eq!(detail::<BadRequest>(&status).expect("bad").field_violations[0].field, "key");
        assert_eq!(detail::<QuotaFailure>(&status).expect("quota").violations.len(), 1);
        assert_eq!(detail::<PreconditionFailure>(&status).expect("pre").violations.len(), 1);
        assert_eq!(detail::<Help>(&status).expect("help").links.len(), 1);
    }

    #[test]
    fn a_bare_status_has_its_reason_alone() {
        let status = StatusDetails::new(5, "no such key", "NOT_FOUND").into_status();
        assert_eq!(status.details.len(), 1);
    }
}
