//! What Redis, or the way to it, says instead of an answer, as failures of a call.
//!
//! Each names the backend and the namespace, keeps its own reason, and says whether a retry can help: nothing is flattened
//! to "internal".

use std::io;
use std::rc::Rc;
use std::time::Duration;

use prism_io::tls::Failure;

use super::codec::ProtocolError;
use crate::call::{Context, NOT_SENT};
use crate::error::{Error, Kind};
use crate::tls::Server;

/// The name of the backend in errors.
pub(super) const BACKEND: &str = "redis";

/// Bytes of Redis's own words that are passed on.
const TEXT_BYTES_MAX: usize = 200;

/// When a call that was refused may be tried again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// How Redis calls its settings of TLS.
const TLS: Server = Server {
    name: "Redis",
    speaks: "tls-port",
    asks: "tls-auth-clients",
    versions: "tls-protocols",
};

/// Why there is no connection, or no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outage {
    kind: Kind,
    reason: &'static str,
    message: Rc<str>,
}

impl Outage {
    fn new(kind: Kind, reason: &'static str, message: impl Into<Rc<str>>) -> Self {
        Outage { kind, reason, message: message.into() }
    }

    /// No connection came about.
    pub(super) fn unreachable(error: &io::Error) -> Self {
        let message = format!("no connection could be made ({error}); it is tried again");
        Outage::new(Kind::Unavailable, "BACKEND_UNREACHABLE", message)
    }

    /// No connection came about because TLS did not.
    pub(super) fn tls(failure: Failure, name: &str) -> Self {
        match TLS.failure(failure, name) {
            Ok(message) => Outage::new(Kind::Unavailable, "BACKEND_TLS", message),
            Err(error) => Outage::unreachable(&error),
        }
    }

    /// TLS stood, and then the peer ended it instead of answering the greeting.
    pub(super) fn tls_refused(error: &io::Error) -> Self {
        Outage::new(Kind::Unavailable, "BACKEND_TLS", TLS.refused(error))
    }

    /// The connection, or the greeting, took too long.
    pub(super) fn connect_timed_out(timeout: Duration, is_tls: bool) -> Self {
        // A Redis without TLS waits for the end of what it takes for a command.
        let advice =
            if is_tls { " (is this the port that Redis speaks TLS on, its tls-port?)" } else { "" };
        let message =
            format!("no connection could be made within {timeout:?}{advice}; it is tried again");
        Outage::new(Kind::Unavailable, "BACKEND_UNREACHABLE", message)
    }

    /// The connection ended while the call was under way.
    pub(super) fn lost() -> Self {
        let message = "the connection was lost while the call was under way; whether a write took effect is not known";
        Outage::new(Kind::Unavailable, "BACKEND_LOST", message)
    }

    /// Nothing came for too long.
    pub(super) fn unresponsive(timeout: Duration) -> Self {
        let message = format!(
            "there was no sign of life for {timeout:?}, so the connection was given up; whether a write took effect is \
             not known"
        );
        Outage::new(Kind::Unavailable, "BACKEND_UNRESPONSIVE", message)
    }

    /// The call's deadline passed before it was sent.
    pub(super) fn not_sent() -> Self {
        let (reason, message) = NOT_SENT;
        Outage::new(Kind::DeadlineExceeded, reason, message)
    }

    /// The peer talks nonsense.
    pub(super) fn protocol(error: ProtocolError) -> Self {
        let message = format!(
            "what the peer sends is not RESP3 ({error}), so the connection was closed; is this the port of a Redis?"
        );
        Outage::new(Kind::Unavailable, "BACKEND_PROTOCOL", message)
    }

    /// The peer is a Redis that this adapter cannot work with.
    pub(super) fn unfit(reason: &'static str, message: String) -> Self {
        Outage::new(Kind::FailedPrecondition, reason, message)
    }

    /// A node of a cluster knows none that has slots.
    pub(super) fn no_slots() -> Self {
        let message =
            "no node of the cluster has slots: was it created (redis-cli --cluster create)?";
        Outage::new(Kind::Unavailable, "BACKEND_NOT_READY", message)
    }

    /// What a Redis by itself serves and a cluster does not.
    pub(super) fn not_of_clusters() -> Self {
        let message = "a cluster does not serve this: point the platform file to a Redis by itself";
        Outage::new(Kind::FailedPrecondition, "BACKEND_IS_CLUSTER", message)
    }

    /// The adapter has been shut down.
    pub(super) fn closed() -> Self {
        Outage::new(Kind::Unavailable, "BACKEND_CLOSED", "the connection is closed for good")
    }

    /// An error in answer to the greeting.
    pub(super) fn of_greeting(text: &[u8]) -> Self {
        let (kind, reason, advice) = classify(text);
        Outage::new(kind, reason, format!("{advice} (it says: {})", printable(text)))
    }

    /// The failure of a call because of it.
    #[cold]
    pub(super) fn error(&self, context: &Context<'_>, retry_after: Duration) -> Error {
        let error = failure(context, self.kind, self.reason, &self.message);
        match self.kind {
            Kind::Unavailable => error.retry_after(retry_after),
            _ => error,
        }
    }
}

/// The failure of a call that got an error for an answer.
#[cold]
pub(super) fn of_reply(context: &Context<'_>, text: &[u8]) -> Error {
    let (kind, reason, advice) = classify(text);
    let error = failure(context, kind, reason, &format!("{advice} (it says: {})", printable(text)));
    match kind {
        Kind::Unavailable | Kind::ResourceExhausted => error.retry_after(RETRY_DELAY),
        _ => error,
    }
}

/// There are too many calls under way.
#[cold]
pub(super) fn busy(context: &Context<'_>, calls_max: usize) -> Error {
    let message = format!(
        "{calls_max} calls are under way, or the requests that wait to be sent are too long together: send fewer at once"
    );
    failure(context, Kind::ResourceExhausted, "BACKEND_BUSY", &message)
        .retry_after(Duration::from_millis(100))
}

/// One node of a cluster sends the call to the other, and that one on.
#[cold]
pub(super) fn sent_around(context: &Context<'_>, times: usize) -> Error {
    let message = format!(
        "its nodes have sent the call on {times} times: they do not agree yet about who has its key; the last one has not carried it out"
    );
    failure(context, Kind::Unavailable, "BACKEND_NOT_READY", &message).retry_after(RETRY_DELAY)
}

/// Nobody has the slot of a key.
#[cold]
pub(super) fn slot_unserved(context: &Context<'_>, slot: Option<u16>) -> Error {
    let slot = slot.map_or_else(|| "a slot".to_owned(), |slot| format!("slot {slot}"));
    let message = format!(
        "no node of the cluster has {slot}: wait for the fail-over, or look at `redis-cli --cluster check`"
    );
    failure(context, Kind::Unavailable, "BACKEND_NOT_READY", &message).retry_after(RETRY_DELAY)
}

/// A node cannot be asked what it knows.
#[cold]
pub(super) fn nodes_unknown(context: &Context<'_>) -> Error {
    let message = "a node of the cluster cannot be asked which slots it has";
    failure(context, Kind::Unavailable, "BACKEND_NOT_READY", message).retry_after(RETRY_DELAY)
}

/// The cluster's slots go on moving while they are looked through.
#[cold]
pub(super) fn slots_move(context: &Context<'_>) -> Error {
    let message = "slots of the cluster are on their way from one node to another, and what is in them may have been missed: \
                   try again when that is done";
    failure(context, Kind::Unavailable, "BACKEND_NOT_READY", message).retry_after(RETRY_DELAY)
}

/// A record is there since an earlier attempt, whose answer nobody has heard.
#[cold]
pub(super) fn answer_lost(context: &Context<'_>, reason: &'static str) -> Error {
    let message = "the write took effect, but its answer was lost with a connection: read to learn what it did";
    failure(context, Kind::Unknown, reason, message)
}

/// The keys of a call that must be atomic are in several slots.
#[cold]
pub(super) fn cross_slot(context: &Context<'_>) -> Error {
    let (kind, reason, advice) = classify(b"CROSSSLOT");
    failure(context, kind, reason, advice)
}

/// The answer is not what the command answers.
#[cold]
pub(super) fn unexpected(context: &Context<'_>) -> Error {
    let message = "it answers otherwise than a Redis does: is there a proxy in between, or a renamed command?";
    failure(context, Kind::Unknown, "BACKEND_ANSWER_UNKNOWN", message)
}

/// The lane's watermark is not what Prism writes.
#[cold]
pub(super) fn cell_unreadable(context: &Context<'_>) -> Error {
    let name = context.namespace_name;
    let message = format!(
        "the key _prism:cell:{name}:{} does not hold what Prism writes there: somebody has changed it; restore it, or delete it \
         and have the lane begin again (on_data_loss: resend)",
        context.partition
    );
    failure(context, Kind::FailedPrecondition, "LANE_CELL_UNREADABLE", &message)
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

fn failure(context: &Context<'_>, kind: Kind, reason: &'static str, message: &str) -> Error {
    let name = context.namespace_name;
    Error::new(kind, reason, format!("{BACKEND}, the backend of {name}: {message}"))
        .with("backend", BACKEND)
        .with("namespace", name.to_owned())
}

/// Kind, reason and advice for an error of Redis, by its first word.
/// <https://redis.io/docs/latest/develop/reference/protocol-spec/#simple-errors>
fn classify(text: &[u8]) -> (Kind, &'static str, &'static str) {
    let code = text.split(|&byte| byte == b' ').next().unwrap_or_default();
    match code {
        b"OOM" => (
            Kind::ResourceExhausted,
            "BACKEND_FULL",
            "its memory is used up: delete entries, give them a ttl, or raise maxmemory; reads and deletes go on",
        ),
        b"READONLY" => (
            Kind::Unavailable,
            "BACKEND_READ_ONLY",
            "it is a replica and takes no writes: wait for the fail-over, or point the platform file to the primary",
        ),
        b"LOADING" => {
            (Kind::Unavailable, "BACKEND_LOADING", "it is loading its data: wait until it has")
        }
        b"BUSY" | b"TRYAGAIN" | b"MASTERDOWN" | b"CLUSTERDOWN" | b"NOREPLICAS" => {
            (Kind::Unavailable, "BACKEND_NOT_READY", "it cannot serve this at the moment")
        }
        b"MISCONF" => (
            Kind::Unavailable,
            "BACKEND_CANNOT_PERSIST",
            "it cannot write to its disk and takes no writes: look at its log",
        ),
        b"NOAUTH" | b"WRONGPASS" | b"NOPERM" => (
            Kind::Unavailable,
            "BACKEND_CREDENTIALS_REFUSED",
            "it refuses the user or the password, or the user may not do this: correct the platform file or its ACL",
        ),
        b"WRONGTYPE" => (
            Kind::FailedPrecondition,
            "BACKEND_WRONG_TYPE",
            "the key holds something else than a string: somebody else has stored it; delete it or take another key",
        ),
        b"CROSSSLOT" => (
            Kind::FailedPrecondition,
            "CROSS_PARTITION",
            "the keys are not of one slot: give them a common {tag}",
        ),
        b"MOVED" | b"ASK" => (
            Kind::FailedPrecondition,
            "BACKEND_IS_CLUSTER",
            "it is a node of a cluster: write `cluster: true` beside its address",
        ),
        b"ERR" if text.starts_with(b"ERR unknown") || text.starts_with(b"ERR syntax") => (
            Kind::FailedPrecondition,
            "BACKEND_TOO_OLD",
            "it does not know a command or an option: Redis 7.0 or newer is needed, without renamed commands",
        ),
        _ => (Kind::Unknown, "BACKEND_ERROR", "it has failed the call"),
    }
}

fn printable(text: &[u8]) -> String {
    let text = &text[..text.len().min(TEXT_BYTES_MAX)];
    String::from_utf8_lossy(text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
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
        for (text, kind, reason, again) in [
            ("OOM command not allowed when used memory > 'maxmemory'.", 8, "BACKEND_FULL", true),
            (
                "READONLY You can't write against a read only replica.",
                14,
                "BACKEND_READ_ONLY",
                true,
            ),
            ("LOADING Redis is loading the dataset in memory", 14, "BACKEND_LOADING", true),
            ("NOAUTH Authentication required.", 14, "BACKEND_CREDENTIALS_REFUSED", true),
            ("WRONGTYPE Operation against a key", 9, "BACKEND_WRONG_TYPE", false),
            ("MOVED 3999 127.0.0.1:6381", 9, "BACKEND_IS_CLUSTER", false),
            ("ASK 3999 127.0.0.1:6381", 9, "BACKEND_IS_CLUSTER", false),
            ("CROSSSLOT Keys in request don't hash to the same slot", 9, "CROSS_PARTITION", false),
            ("MISCONF Errors writing to the AOF file", 14, "BACKEND_CANNOT_PERSIST", true),
            ("ERR unknown command 'PEXPIRETIME'", 9, "BACKEND_TOO_OLD", false),
            ("ERR something\r\nnew", 2, "BACKEND_ERROR", false),
            ("", 2, "BACKEND_ERROR", false),
        ] {
            let error = of_reply(&context, text.as_bytes());
            assert_eq!((error.kind().grpc_code(), error.reason()), (kind, reason), "{text}");
            assert_eq!(error.is_retryable(), again, "{text}");
            assert!(error.metadata().contains(&("backend", "redis".into())));
            assert!(error.metadata().contains(&("namespace", "orders".into())));
            assert!(error.message().contains("orders") && !error.message().contains('\n'));
        }
    }
}
