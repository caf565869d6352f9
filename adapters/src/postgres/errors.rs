//! What PostgreSQL, or the way to it, says instead of an answer, as failures of a call.
//!
//! Each names the backend and the namespace, keeps its own reason, and says whether a retry can help.
//! <https://www.postgresql.org/docs/15/errcodes-appendix.html>

use std::io;
use std::rc::Rc;
use std::time::Duration;

use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::ErrorResponseBody;
use prism_io::tls::Failure;

use super::codec::ProtocolError;
use crate::call::{Context, NOT_SENT};
use crate::error::{Error, Kind};
use crate::tls::Server;

/// The name of the backend in errors.
pub(super) const BACKEND: &str = "postgres";

/// Bytes of PostgreSQL's own words that are passed on.
const TEXT_BYTES_MAX: usize = 200;

/// When a call that was refused may be tried again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// How PostgreSQL calls its settings of TLS.
const TLS: Server = Server {
    name: "PostgreSQL",
    speaks: "ssl = on",
    asks: "clientcert in pg_hba.conf",
    versions: "ssl_min_protocol_version",
};

/// An error that PostgreSQL has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SqlError {
    code: [u8; 5],
    message: Rc<str>,
}

impl SqlError {
    pub(super) fn new(code: &str, message: &str) -> Self {
        let code = code.as_bytes().try_into().unwrap_or(*b"XX000");
        let mut end = message.len().min(TEXT_BYTES_MAX);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        SqlError { code, message: message[..end].chars().map(printable).collect::<String>().into() }
    }

    pub(super) fn read(body: &ErrorResponseBody) -> Self {
        let (mut code, mut message) = (String::new(), String::new());
        let mut fields = body.fields();
        while let Ok(Some(field)) = fields.next() {
            let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => code = text,
                b'M' => message = text,
                _ => {}
            }
        }
        SqlError::new(&code, &message)
    }

    fn code(&self) -> &str {
        std::str::from_utf8(&self.code).unwrap_or("XX000")
    }

    /// Whether only what was asked for is at fault, so that what was asked for beside it may be tried without it.
    pub(super) fn is_of_one_call(&self) -> bool {
        matches!(&self.code[..2], b"22" | b"23" | b"40" | b"54" | b"0A" | b"PR")
            || &self.code == b"55P03"
    }

    /// Whether the record is refused for its own sake: tried again it would be refused again.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(&self.code[..2], b"22" | b"23" | b"54" | b"0A")
    }

    /// Whether something that Prism has made in the database is not there.
    pub(super) fn is_schema_missing(&self) -> bool {
        matches!(&self.code, b"42P01" | b"3F000" | b"42883" | b"42703")
    }

    /// Whether something was not dropped because something else needs it.
    pub(super) fn is_still_used(&self) -> bool {
        &self.code == b"2BP01"
    }

    /// Kind, reason and advice.
    fn classify(&self) -> (Kind, &'static str, &'static str) {
        match &self.code {
            b"42501" => return REFUSED,
            b"3D000" => {
                return (
                    Kind::FailedPrecondition,
                    "BACKEND_DATABASE_MISSING",
                    "the database is not there: create it, or correct the platform file",
                );
            }
            b"53100" | b"53200" => {
                return (
                    Kind::ResourceExhausted,
                    "BACKEND_FULL",
                    "its disk or memory is used up: make room",
                );
            }
            b"57014" => {
                return (
                    Kind::DeadlineExceeded,
                    "BACKEND_TIMEOUT",
                    "it took too long, or longer than anybody waits: is somebody holding a lock, or is its disk slow?",
                );
            }
            b"25006" => {
                return (
                    Kind::Unavailable,
                    "BACKEND_READ_ONLY",
                    "it takes no writes: wait for the fail-over, or point the platform file to the primary",
                );
            }
            b"55P03" => {
                return (
                    Kind::Aborted,
                    "BACKEND_LOCKED",
                    "somebody else holds a lock on it: look into pg_locks, or try again",
                );
            }
            b"PR001" => {
                return (
                    Kind::Unavailable,
                    "LANE_MOVED",
                    "the lane's watermark is elsewhere: it is asked for again",
                );
            }
            _ => {}
        }
        if self.is_schema_missing() {
            return (
                Kind::FailedPrecondition,
                "BACKEND_SCHEMA_MISSING",
                "somebody has dropped or changed what Prism made there: the next call makes it again if it is gone",
            );
        }
        match &self.code[..2] {
            b"28" => REFUSED,
            b"40" => (Kind::Aborted, "CONFLICT", "another write got in between: try again"),
            b"53" | b"57" | b"08" => (
                Kind::Unavailable,
                "BACKEND_NOT_READY",
                "it cannot serve this at the moment; it is tried again",
            ),
            b"22" | b"23" | b"54" | b"0A" => {
                (Kind::FailedPrecondition, "BACKEND_REFUSED", "it refuses the data as they are")
            }
            _ if &self.code == b"XX001" || &self.code == b"XX002" => {
                (Kind::DataLoss, "BACKEND_DAMAGED", "its data is damaged: look at its log")
            }
            _ => (Kind::Unknown, "BACKEND_ERROR", "it has failed the call"),
        }
    }

    fn text(&self) -> (Kind, &'static str, String) {
        let (kind, reason, advice) = self.classify();
        (kind, reason, format!("{advice} (it says: {}, SQLSTATE {})", self.message, self.code()))
    }
}

const REFUSED: (Kind, &str, &str) = (
    Kind::Unavailable,
    "BACKEND_CREDENTIALS_REFUSED",
    "it refuses the user or the password, or the user may not do this: correct the platform file or its grants",
);

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

    /// TLS stood, and then the peer ended it instead of letting us log in.
    pub(super) fn tls_refused(error: &io::Error) -> Self {
        Outage::new(Kind::Unavailable, "BACKEND_TLS", TLS.refused(error))
    }

    /// Asked for TLS, the peer does not begin it.
    pub(super) fn tls_not_spoken(message: &'static str) -> Self {
        Outage::new(Kind::Unavailable, "BACKEND_TLS", message)
    }

    /// The connection, or the login, took too long.
    pub(super) fn connect_timed_out(timeout: Duration) -> Self {
        let message = format!("no connection could be made within {timeout:?}; it is tried again");
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

    /// The peer talks nonsense.
    pub(super) fn protocol(error: ProtocolError) -> Self {
        let message = format!(
            "what the peer sends is not PostgreSQL's protocol ({}), so the connection was closed; is this its port?",
            error.0
        );
        Outage::new(Kind::Unavailable, "BACKEND_PROTOCOL", message)
    }

    /// The peer is a PostgreSQL that this adapter cannot work with.
    pub(super) fn unfit(reason: &'static str, message: String) -> Self {
        Outage::new(Kind::FailedPrecondition, reason, message)
    }

    /// It asks for a way to log in that is not offered, or does not show that it knows the password itself.
    pub(super) fn login(message: String) -> Self {
        Outage::new(Kind::Unavailable, "BACKEND_CREDENTIALS_REFUSED", message)
    }

    /// The adapter has been shut down.
    pub(super) fn closed() -> Self {
        Outage::new(Kind::Unavailable, "BACKEND_CLOSED", "the connection is closed for good")
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

impl From<SqlError> for Outage {
    fn from(error: SqlError) -> Self {
        let (kind, reason, message) = error.text();
        Outage::new(kind, reason, message)
    }
}

/// Why a call has no answer.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// There is no connection.
    Outage(Outage),
    /// PostgreSQL has refused it; nothing of it took effect.
    Sql(SqlError),
    /// There are too many calls.
    Busy(usize),
    /// Its deadline passed before it was sent.
    NotSent,
    /// The namespace has ended.
    Ended,
}

impl Fault {
    #[cold]
    pub(super) fn error(&self, context: &Context<'_>, retry_after: Duration) -> Error {
        match self {
            Fault::Outage(outage) => outage.error(context, retry_after),
            Fault::Sql(error) => {
                let (kind, reason, message) = error.text();
                let error = failure(context, kind, reason, &message);
                match kind {
                    Kind::Unavailable | Kind::ResourceExhausted => error.retry_after(RETRY_DELAY),
                    _ => error,
                }
            }
            Fault::Busy(calls_max) => {
                let message = format!(
                    "{calls_max} calls are under way, or their requests are too long together: send fewer at once"
                );
                failure(context, Kind::ResourceExhausted, "BACKEND_BUSY", &message)
                    .retry_after(Duration::from_millis(100))
            }
            Fault::NotSent => {
                let (reason, message) = NOT_SENT;
                failure(context, Kind::DeadlineExceeded, reason, message)
            }
            Fault::Ended => failure(
                context,
                Kind::NotFound,
                "NAMESPACE_DELETED",
                "the namespace was deleted, and nothing of it is made again",
            ),
        }
    }
}

/// The lane's cell has not been asked for on this connection.
#[cold]
pub(super) fn lane_moved(context: &Context<'_>) -> Error {
    Fault::Sql(SqlError::new("PR001", "nobody has asked for the cell")).error(context, RETRY_DELAY)
}

/// The cell holds what Prism does not write.
#[cold]
pub(super) fn cell_unreadable(context: &Context<'_>) -> Error {
    let message = format!(
        "the row {} of the namespace's table `cell` does not hold what Prism writes there: somebody has changed it; restore it",
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
        for (code, kind, reason, again) in [
            ("28P01", 14, "BACKEND_CREDENTIALS_REFUSED", true),
            ("42501", 14, "BACKEND_CREDENTIALS_REFUSED", true),
            ("3D000", 9, "BACKEND_DATABASE_MISSING", false),
            ("53100", 8, "BACKEND_FULL", true),
            ("53300", 14, "BACKEND_NOT_READY", true),
            ("57P03", 14, "BACKEND_NOT_READY", true),
            ("57014", 4, "BACKEND_TIMEOUT", false),
            ("25006", 14, "BACKEND_READ_ONLY", true),
            ("40P01", 10, "CONFLICT", true),
            ("55P03", 10, "BACKEND_LOCKED", true),
            ("42P01", 9, "BACKEND_SCHEMA_MISSING", false),
            ("22021", 9, "BACKEND_REFUSED", false),
            ("PR001", 14, "LANE_MOVED", true),
            ("XX001", 15, "BACKEND_DAMAGED", false),
            ("XX000", 2, "BACKEND_ERROR", false),
            ("nonsense", 2, "BACKEND_ERROR", false),
        ] {
            let fault = Fault::Sql(SqlError::new(code, "what it says\nin lines"));
            let error = fault.error(&context, RETRY_DELAY);
            assert_eq!((error.kind().grpc_code(), error.reason()), (kind, reason), "{code}");
            assert_eq!(error.is_retryable(), again, "{code}");
            assert!(error.metadata().contains(&("backend", "postgres".into())));
            assert!(error.metadata().contains(&("namespace", "orders".into())));
            assert!(error.message().contains("orders") && !error.message().contains('\n'));
        }
    }
}
