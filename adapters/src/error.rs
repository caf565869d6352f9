//! The one error type of the adapters: what went wrong, where, and what to do about it.
//!
//! It becomes a gRPC status in one place, above the adapters. A reason is a promise to programs and
//! never changes; a message is for people and says what to do. Everything but the kind and the
//! reason lies behind one pointer, so that a `Result` on the hot path stays small.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What kind of failure it is; each is one gRPC status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The call was cancelled, usually by its caller.
    Cancelled = 1,
    /// A failure that nothing more is known about.
    Unknown = 2,
    /// The request can never succeed as it stands.
    InvalidArgument = 3,
    /// The deadline passed.
    DeadlineExceeded = 4,
    /// What was asked for does not exist.
    NotFound = 5,
    /// What was to be made exists.
    AlreadyExists = 6,
    /// The caller may not do this.
    PermissionDenied = 7,
    /// A quota, a budget or space is used up.
    ResourceExhausted = 8,
    /// The state does not allow the call; retrying alone does not help.
    FailedPrecondition = 9,
    /// Another call got in between; the whole of it may be tried again.
    Aborted = 10,
    /// Past the valid range.
    OutOfRange = 11,
    /// The namespace does not offer this.
    Unimplemented = 12,
    /// A defect of Prism.
    Internal = 13,
    /// Not possible at the moment; try again.
    Unavailable = 14,
    /// Stored data is damaged.
    DataLoss = 15,
    /// Nobody said who is calling.
    Unauthenticated = 16,
}

impl Kind {
    /// The gRPC status code (`google.rpc.Code`).
    pub const fn grpc_code(self) -> u8 {
        self as u8
    }
}

/// What is wrong with one field of a request (`google.rpc.BadRequest.FieldViolation`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field, for instance `entries[3].key`.
    pub field: String,
    /// What is expected instead.
    pub description: Cow<'static, str>,
}

/// Which limit was met (`google.rpc.QuotaFailure.Violation`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaViolation {
    /// Whose limit, for instance `namespace:orders`.
    pub subject: String,
    /// Which, and how much it is.
    pub description: String,
}

/// A failure of a call.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    reason: &'static str,
    /// Shared by its clones, so that a failure that comes again and again is put together once.
    details: Arc<Details>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Details {
    message: Cow<'static, str>,
    metadata: Vec<(&'static str, Cow<'static, str>)>,
    retry_after: Option<Duration>,
    quota: Option<QuotaViolation>,
    violations: Vec<FieldViolation>,
}

impl Error {
    /// A failure with a stable `reason` (UPPER_SNAKE) and a message that says what to do.
    #[cold]
    pub fn new(kind: Kind, reason: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        debug_assert!(reason.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'));
        let details = Details { message: message.into(), ..Details::default() };
        Error { kind, reason, details: Arc::new(details) }
    }

    /// INVALID_ARGUMENT because of one field.
    #[cold]
    pub fn field(
        reason: &'static str,
        field: impl Into<String>,
        description: impl Into<Cow<'static, str>>,
    ) -> Self {
        let (field, description) = (field.into(), description.into());
        let mut error =
            Error::new(Kind::InvalidArgument, reason, format!("{field}: {description}"));
        error.change().violations.push(FieldViolation { field, description });
        error
    }

    /// Says since when, where or with what it happened (`google.rpc.ErrorInfo.metadata`).
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.change().metadata.push((name, value.into()));
        self
    }

    /// Says after how long a retry has a chance (`google.rpc.RetryInfo`).
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.change().retry_after = Some(delay);
        self
    }

    /// Says whose limit was met, and which (`google.rpc.QuotaFailure`).
    #[must_use]
    pub fn quota(mut self, subject: impl Into<String>, description: impl Into<String>) -> Self {
        let (subject, description) = (subject.into(), description.into());
        self.change().quota = Some(QuotaViolation { subject, description });
        self
    }

    /// Gives the fields at fault the names that they have in a request around the one that was looked at.
    #[must_use]
    pub fn within(mut self, name: impl Fn(&str) -> String) -> Self {
        let details = self.change();
        for violation in &mut details.violations {
            violation.field = name(&violation.field);
        }
        if let Some(first) = details.violations.first() {
            details.message = format!("{}: {}", first.field, first.description).into();
        }
        self
    }

    fn change(&mut self) -> &mut Details {
        Arc::make_mut(&mut self.details)
    }

    /// Whether the one is a clone of the other.
    pub fn is_clone_of(&self, other: &Error) -> bool {
        Arc::ptr_eq(&self.details, &other.details)
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The stable reason, UPPER_SNAKE (`google.rpc.ErrorInfo.reason`).
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// The message for people.
    pub fn message(&self) -> &str {
        &self.details.message
    }

    /// Names and values for programs, such as `backend` and `interface`.
    pub fn metadata(&self) -> &[(&'static str, Cow<'static, str>)] {
        &self.details.metadata
    }

    /// After how long a retry has a chance; absent where none has.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.details.retry_after
    }

    /// The limit that was met.
    pub fn quota_violation(&self) -> Option<&QuotaViolation> {
        self.details.quota.as_ref()
    }

    /// The fields at fault.
    pub fn violations(&self) -> &[FieldViolation] {
        &self.details.violations
    }

    /// Whether the same call may succeed later without being changed.
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, Kind::Unavailable | Kind::Aborted) || self.retry_delay().is_some()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.reason, self.details.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} {self} {:?}", self.kind, self.details.metadata)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_small_and_tells_everything() {
        assert!(size_of::<Result<(), Error>>() <= 32);
        let error = Error::field("KEY_INVALID", "key", "must not be empty")
            .with("namespace", "orders")
            .quota("namespace:orders", "1k/s requests")
            .retry_after(Duration::from_secs(1));
        assert_eq!(error.kind().grpc_code(), 3);
        assert_eq!(error.to_string(), "KEY_INVALID: key: must not be empty");
        assert_eq!(error.violations()[0].field, "key");
        assert_eq!(error.metadata()[0].1, "orders");
        assert_eq!(error.quota_violation().expect("it was said").subject, "namespace:orders");
        assert!(error.is_retryable());
        let within = error.within(|field| format!("items[2].{field}"));
        assert_eq!(within.to_string(), "KEY_INVALID: items[2].key: must not be empty");
        assert_eq!(within.violations()[0].field, "items[2].key");
    }
}
