//! What NATS, or the way to it, says instead of an answer, as failures of a call.
//!
//! Each names the backend and the namespace, keeps its own reason, and says whether a retry can help.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{ConnectError, ConnectErrorKind};

use super::jetstream::ApiError;
use crate::call::{Context, NOT_SENT};
use crate::error::{Error, Kind};

/// The name of the backend in errors.
pub(super) const BACKEND: &str = "nats";

/// Bytes of the server's own words that are passed on.
const TEXT_BYTES_MAX: usize = 200;

/// When a call that was refused may be tried again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Why there is no connection, or no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outage {
    kind: Kind,
    reason: &'static str,
    message: Arc<str>,
}

impl Outage {
    fn new(kind: Kind, reason: &'static str, message: impl Into<Arc<str>>) -> Self {
        Outage { kind, reason, message: message.into() }
    }

    /// No connection came about.
    pub(super) fn of_connecting(error: &ConnectError) -> Self {
        let text = printable(&chain(error));
        let lower = text.to_ascii_lowercase();
        let is_refused = matches!(
            error.kind(),
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication
        ) || lower.contains("authorization violation")
            || lower.contains("authentication");
        if is_refused {
            return Outage::credentials_refused(&text);
        }
        if error.kind() == ConnectErrorKind::Tls
            || lower.contains("certificate")
            || lower.contains("tls")
        {
            return Outage::tls(&text);
        }
        Outage::unreachable(&text)
    }

    /// No connection came about, for this reason.
    pub(super) fn unreachable(text: &str) -> Self {
        let text = printable(text);
        let message = format!("no connection could be made ({text}); it is tried again");
        Outage::new(Kind::Unavailable, "BACKEND_UNREACHABLE", message)
    }

    /// TLS came to nothing, or the server has ended it instead of answering.
    pub(super) fn tls(text: &str) -> Self {
        let message = format!(
            "TLS came to nothing: {}; check tls.ca, whether the server's certificate is for this host, tls.certificate and \
             tls.key where the server asks who we are (verify), and tls.handshake_first",
            printable(text)
        );
        Outage::new(Kind::Unavailable, "BACKEND_TLS", message)
    }

    /// The server said something before it greeted, or in place of an answer to the login.
    pub(super) fn of_greeting(text: &str) -> Self {
        let lower = text.to_ascii_lowercase();
        let is_refused = ["auth", "permissions violation", "expired", "revoked"];
        match is_refused.iter().any(|sign| lower.contains(sign)) {
            true => Outage::credentials_refused(text),
            false => Outage::unreachable(&format!("it says: {text}")),
        }
    }

    /// Whether it says that the login is refused, or the user.
    pub(super) fn is_of_login(&self) -> bool {
        self.reason == "BACKEND_CREDENTIALS_REFUSED"
    }

    /// What came is not what a NATS says.
    pub(super) fn protocol(what: &str) -> Self {
        let message = format!(
            "it sends {what}: is it a NATS, and nothing in between that changes what it says? Whether a write took effect is \
             not known"
        );
        Outage::new(Kind::Unavailable, "BACKEND_PROTOCOL", message)
    }

    /// The server has ended the connection, and has said why.
    pub(super) fn ended(text: &str) -> Self {
        let message = format!(
            "the server has ended the connection while the call was under way ({}); whether a write took effect is not known",
            printable(text)
        );
        Outage::new(Kind::Unavailable, "BACKEND_LOST", message)
    }

    /// The connection, or the greeting, took too long.
    pub(super) fn connect_timed_out(timeout: Duration) -> Self {
        let message = format!("no connection could be made within {timeout:?}; it is tried again");
        Outage::new(Kind::Unavailable, "BACKEND_UNREACHABLE", message)
    }

    /// The server does not want us, or not for this.
    pub(super) fn credentials_refused(text: &str) -> Self {
        let message = format!(
            "it refuses the login, or the user may not do this: correct the platform file or the user's permissions (it \
             says: {})",
            printable(text)
        );
        Outage::new(Kind::Unavailable, "BACKEND_CREDENTIALS_REFUSED", message)
    }

    /// The connection ended while the call was under way.
    pub(super) fn lost() -> Self {
        let message = "the connection was lost while the call was under way; whether a write took effect is not known";
        Outage::new(Kind::Unavailable, "BACKEND_LOST", message)
    }

    /// Nothing came for too long.
    pub(super) fn unresponsive(timeout: Duration) -> Self {
        let message = format!(
            "there was no answer for {timeout:?}; whether a write took effect is not known"
        );
        Outage::new(Kind::Unavailable, "BACKEND_UNRESPONSIVE", message)
    }

    /// The server is older than what is asked of it.
    pub(super) fn too_old(version: &str, wanted: &str) -> Self {
        let message = format!("it is version {}, {wanted} or newer is needed", printable(version));
        Outage::new(Kind::FailedPrecondition, "BACKEND_TOO_OLD", message)
    }

    /// The client would not take a message for the server.
    pub(super) fn not_sent(text: &str) -> Self {
        let message = format!("the message cannot be sent: {}", printable(text));
        Outage::new(Kind::ResourceExhausted, "BACKEND_MESSAGE_TOO_LARGE", message)
    }

    /// The call's deadline passed before it was sent.
    pub(super) fn late() -> Self {
        let (reason, message) = NOT_SENT;
        Outage::new(Kind::DeadlineExceeded, reason, message)
    }

    /// The adapter has been shut down, or its thread is gone.
    pub(super) fn closed() -> Self {
        Outage::new(Kind::Unavailable, "BACKEND_CLOSED", "the connection is closed for good")
    }

    /// The failure of a call because of it.
    #[cold]
    pub(super) fn error(&self, context: &Context<'_>) -> Error {
        let error = failure(context, self.kind, self.reason, &self.message);
        match self.kind {
            Kind::Unavailable => error.retry_after(RETRY_DELAY),
            _ => error,
        }
    }
}

/// There are too many calls under way.
#[cold]
pub(super) fn busy(context: &Context<'_>, calls_max: usize) -> Error {
    let message = format!(
        "{calls_max} calls are under way, or they are too long together: send fewer at once"
    );
    failure(context, Kind::ResourceExhausted, "BACKEND_BUSY", &message)
        .retry_after(Duration::from_millis(100))
}

/// The answer is not what JetStream answers.
#[cold]
pub(super) fn unexpected(context: &Context<'_>) -> Error {
    let message =
        "it answers otherwise than JetStream does: does somebody else answer on its subjects?";
    failure(context, Kind::Unknown, "BACKEND_ANSWER_UNKNOWN", message)
}

/// Others have changed the same key again and again.
#[cold]
pub(super) fn contended(context: &Context<'_>) -> Error {
    let message = "others have changed the key each time before this call could: try again";
    failure(context, Kind::Aborted, "CONFLICT", message).retry_after(Duration::from_millis(50))
}

/// Nobody answers for JetStream.
#[cold]
pub(super) fn no_jetstream(context: &Context<'_>) -> Error {
    let message = "JetStream does not answer: enable it on the server and for the account (`jetstream {}`), or wait until its \
                   cluster has a leader";
    failure(context, Kind::Unavailable, "BACKEND_NOT_READY", message).retry_after(RETRY_DELAY)
}

/// The namespace's stream is of a kind that cannot hold it.
#[cold]
pub(super) fn stream_unfit(context: &Context<'_>, stream: &str, what: &str) -> Error {
    let message = format!("the stream {stream} exists, and {what}");
    failure(context, Kind::FailedPrecondition, "BACKEND_STREAM_UNFIT", &message)
}

/// What is stored is longer than an answer of this namespace may be.
#[cold]
pub(super) fn too_large(context: &Context<'_>) -> Error {
    let message = format!(
        "the value is longer than a message of this namespace may be ({} bytes): somebody else has stored it, or the limit \
         was higher then",
        context.limits.max_message_size
    );
    failure(context, Kind::ResourceExhausted, "REPLY_TOO_LARGE", &message)
}

/// A message is longer than the server takes.
#[cold]
pub(super) fn message_too_large(bytes_max: usize) -> Error {
    let message = format!(
        "{BACKEND}: the server takes messages of {bytes_max} bytes at most: raise its `max_payload`, or write less at once"
    );
    Error::new(Kind::ResourceExhausted, "BACKEND_MESSAGE_TOO_LARGE", message)
        .with("backend", BACKEND)
}

/// The lane's watermark is not what Prism writes.
#[cold]
pub(super) fn cell_unreadable(context: &Context<'_>, subject: &str) -> Error {
    let message = format!(
        "the message on {subject} does not hold what Prism writes there: somebody has changed it; restore it, or purge it and \
         have the lane begin again (on_data_loss: continue)"
    );
    failure(context, Kind::FailedPrecondition, "LANE_CELL_UNREADABLE", &message)
}

/// The lane's watermark is not where it was left.
#[cold]
pub(super) fn cell_moved(context: &Context<'_>) -> Error {
    let message = "the lane's cell is not where this shard has left it; it is read again";
    failure(context, Kind::Unavailable, "LANE_MOVED", message).retry_after(RETRY_DELAY)
}

/// The failure of a call that JetStream answers with an error.
#[cold]
pub(super) fn of_api(context: &Context<'_>, api: &ApiError) -> Error {
    let (kind, reason, advice) = classify(api);
    let says = printable(&api.description);
    let message = format!("{advice} (it says: {says}, {})", api.err_code);
    let error = failure(context, kind, reason, &message);
    match kind {
        Kind::Unavailable | Kind::ResourceExhausted => error.retry_after(RETRY_DELAY),
        _ => error,
    }
}

fn failure(context: &Context<'_>, kind: Kind, reason: &'static str, message: &str) -> Error {
    let name = context.namespace_name;
    Error::new(kind, reason, format!("{BACKEND}, the backend of {name}: {message}"))
        .with("backend", BACKEND)
        .with("namespace", name.to_owned())
}

/// Kind, reason and advice for an error of JetStream, by its code.
/// <https://github.com/nats-io/nats-server/blob/main/server/errors.json>
fn classify(api: &ApiError) -> (Kind, &'static str, &'static str) {
    match api.err_code {
        10002 | 10023 | 10028 | 10047 | 10077 => (
            Kind::ResourceExhausted,
            "BACKEND_FULL",
            "its storage is used up: delete entries, or raise the limits of the stream, the account or the server; reads go on",
        ),
        10054 => (
            Kind::ResourceExhausted,
            "BACKEND_MESSAGE_TOO_LARGE",
            "the stream does not take messages of this size: raise its max_msg_size",
        ),
        10039 | 10076 => (
            Kind::FailedPrecondition,
            "BACKEND_JETSTREAM_OFF",
            "JetStream is not enabled there: enable it on the server and for the account",
        ),
        10065 => (
            Kind::FailedPrecondition,
            "BACKEND_SUBJECTS_TAKEN",
            "another stream already takes the namespace's subjects: rename the namespace, or change that stream",
        ),
        10074 => (
            Kind::FailedPrecondition,
            "BACKEND_REPLICAS",
            "it keeps one copy, because it is no cluster: take `replicas` out of the platform file, or have it join one",
        ),
        10109 => (
            Kind::FailedPrecondition,
            "BACKEND_READ_ONLY",
            "the stream is sealed: it takes no writes any more",
        ),
        _ if matches!(api.code, 429 | 503) => {
            (Kind::Unavailable, "BACKEND_NOT_READY", "it cannot serve this at the moment")
        }
        _ => (Kind::Unknown, "BACKEND_ERROR", "it has failed the call"),
    }
}

/// An error with what it says was its cause.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

fn printable(text: &str) -> String {
    text.chars().take(TEXT_BYTES_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    #[test]
    fn every_error_keeps_its_meaning() {
        let limits = Limits::default();
        let context = Context {
            namespace: 1,
            namespace_name: "orders",
            partition: 0,
            now_us: 0,
            revision: Default::default(),
            limits: &limits,
            deadline_ns: crate::NO_DEADLINE_NS,
        };
        for (code, err_code, description, kind, reason, again) in [
            (503, 10077, "maximum bytes exceeded", 8, "BACKEND_FULL", true),
            (503, 10008, "JetStream system temporarily unavailable", 14, "BACKEND_NOT_READY", true),
            (503, 10076, "JetStream not enabled", 9, "BACKEND_JETSTREAM_OFF", false),
            (500, 10074, "replicas > 1 not supported", 9, "BACKEND_REPLICAS", false),
            (400, 10109, "invalid operation on sealed stream", 9, "BACKEND_READ_ONLY", false),
            (400, 10065, "subjects overlap", 9, "BACKEND_SUBJECTS_TAKEN", false),
            (400, 10999, "something\r\nnew", 2, "BACKEND_ERROR", false),
        ] {
            let api = ApiError { code, err_code, description: description.to_owned() };
            let error = of_api(&context, &api);
            assert_eq!((error.kind().grpc_code(), error.reason()), (kind, reason), "{description}");
            assert_eq!(error.is_retryable(), again, "{description}");
            assert!(error.metadata().contains(&("backend", "nats".into())));
            assert!(error.metadata().contains(&("namespace", "orders".into())));
            assert!(error.message().contains("orders") && !error.message().contains('\n'));
        }
    }
}
