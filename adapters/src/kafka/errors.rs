//! What Kafka, its client, or the way to it says instead of an answer, as failures that name the backend and the namespace.

use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::call::{Context, NOT_SENT};
use crate::error::{Error, Kind};

/// The name of the backend in errors.
pub(super) const BACKEND: &str = "kafka";

/// Bytes of others' words that are passed on.
const TEXT_BYTES_MAX: usize = 300;

/// When a call that was refused may be tried again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// What went wrong, whoever's call it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    pub(super) reason: &'static str,
    message: String,
    /// The cluster is away, or may be: worth looking whether it is.
    pub(super) is_outage: bool,
    /// The topic, or the partition of it, is not there.
    pub(super) is_missing: bool,
    /// It passes by itself, and soon.
    pub(super) is_passing: bool,
    /// The members of the group have changed, or are others.
    pub(super) is_regrouped: bool,
}

impl Fault {
    fn new(kind: Kind, reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Fault {
            kind,
            reason,
            message,
            is_outage: false,
            is_missing: false,
            is_passing: false,
            is_regrouped: false,
        }
    }

    /// No broker can be reached; `said` is what the client says of it.
    pub(super) fn unreachable(said: &str) -> Self {
        let message = format!("no broker can be reached{}; it is tried again", quoted(said));
        Fault { is_outage: true, ..Fault::new(Kind::Unavailable, "BACKEND_UNREACHABLE", message) }
    }

    /// Nothing came for too long.
    pub(super) fn unresponsive(timeout: Duration) -> Self {
        let message = format!(
            "there was no answer for {timeout:?}; whether a write took effect is not known"
        );
        Fault { is_outage: true, ..Fault::new(Kind::Unavailable, "BACKEND_UNRESPONSIVE", message) }
    }

    /// The adapter has been shut down, or a thread of its client has died.
    pub(super) fn closed() -> Self {
        let message = "its client has ended; whether a write took effect is not known";
        Fault::new(Kind::Unavailable, "BACKEND_CLOSED", message)
    }

    /// What was changed is not told everywhere yet.
    pub(super) fn not_yet() -> Self {
        let message = "the change was taken, and not every broker knows of it yet: ask again";
        Fault { is_passing: true, ..Fault::new(Kind::Unavailable, "BACKEND_NOT_READY", message) }
    }

    /// The call's deadline passed before anything of it was handed to the client.
    pub(super) fn late() -> Self {
        let (reason, message) = NOT_SENT;
        Fault::new(Kind::DeadlineExceeded, reason, message)
    }

    /// A record is there, and where is not told.
    pub(super) fn unplaced() -> Self {
        let message = "it has taken a record and does not tell where it is: ask again";
        Fault::new(Kind::Unavailable, "BACKEND_RECORD_UNPLACED", message)
    }

    /// There are too many calls under way, or too many bytes wait.
    pub(super) fn busy() -> Self {
        let message = "too many calls are under way, or their records are too large together: send fewer at once";
        Fault::new(Kind::ResourceExhausted, "BACKEND_BUSY", message)
    }

    /// As many read as may.
    pub(super) fn too_many_readers(readers_max: usize) -> Self {
        let message = format!(
            "{readers_max} readers have a consumer each, and no more may on this shard: end some of them"
        );
        Fault::new(Kind::ResourceExhausted, "BACKEND_READERS_MAX", message)
    }

    /// The client cannot be made from what is configured.
    pub(super) fn unusable(error: &KafkaError) -> Self {
        let message = format!("its client cannot be started{}", quoted(&error.to_string()));
        Fault::new(Kind::FailedPrecondition, "BACKEND_CONFIGURATION", message)
    }

    /// What a failure of the client means.
    pub(super) fn of(error: &KafkaError) -> Self {
        match error.rdkafka_error_code() {
            Some(code) => Fault::of_code(code, &error.to_string()),
            None if matches!(error, KafkaError::Canceled) => Fault::closed(),
            None => {
                let message = format!("it has failed the call{}", quoted(&error.to_string()));
                Fault::new(Kind::Unknown, "BACKEND_ERROR", message)
            }
        }
    }

    /// What an error of the protocol, or of the client, means.
    pub(super) fn of_code(code: Code, said: &str) -> Self {
        let (kind, reason, advice) = classify(code);
        Fault {
            is_outage: matches!(reason, "BACKEND_UNREACHABLE" | "BACKEND_UNRESPONSIVE"),
            is_passing: reason == "BACKEND_NOT_READY",
            is_missing: matches!(
                code,
                Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition
            ),
            is_regrouped: matches!(
                code,
                Code::UnknownMemberId
                    | Code::IllegalGeneration
                    | Code::RebalanceInProgress
                    | Code::NonEmptyGroup
                    | Code::AssignmentLost
            ),
            ..Fault::new(kind, reason, format!("{advice}{}", quoted(said)))
        }
    }

    /// The failure of a call because of it.
    #[cold]
    pub(super) fn error(&self, context: &Context<'_>, retry_after: Duration) -> Error {
        let name = context.namespace_name;
        let message = format!("{BACKEND}, the backend of {name}: {}", self.message);
        let error = Error::new(self.kind, self.reason, message)
            .with("backend", BACKEND)
            .with("namespace", name.to_owned());
        match self.kind {
            Kind::Unavailable => error.retry_after(retry_after.max(Duration::from_millis(1))),
            Kind::ResourceExhausted => error.retry_after(RETRY_DELAY),
            _ => error,
        }
    }
}

/// What others have stored is longer than an answer of this namespace may be.
#[cold]
pub(super) fn too_large(context: &Context<'_>, partition: u32, offset: i64) -> Error {
    let name = context.namespace_name;
    let message = format!(
        "{BACKEND}, the backend of {name}: record {offset} of partition {partition} is longer than a message of this namespace \
         may be ({} bytes): somebody else has stored it, or the limit was higher then; read after it",
        context.limits.max_message_size
    );
    Error::new(Kind::ResourceExhausted, "REPLY_TOO_LARGE", message)
        .with("backend", BACKEND)
        .with("namespace", name.to_owned())
}

/// A namespace has as many groups and durable subscriptions as it may have.
#[cold]
pub(super) fn too_many_groups(context: &Context<'_>, groups_max: usize) -> Error {
    let name = context.namespace_name;
    let message = format!(
        "{name} has {groups_max} groups or durable subscriptions, and no more may be: delete some of them"
    );
    Error::new(Kind::ResourceExhausted, "BACKEND_GROUPS_MAX", message)
        .with("backend", BACKEND)
        .with("namespace", name.to_owned())
}

/// The lane's watermark is not where it was left.
#[cold]
pub(super) fn lane_moved(context: &Context<'_>) -> Error {
    let name = context.namespace_name;
    let message = format!(
        "{BACKEND}, the backend of {name}: the lane's cell is not where this shard has left it; it is read again"
    );
    Error::new(Kind::Unavailable, "LANE_MOVED", message)
        .with("backend", BACKEND)
        .with("namespace", name.to_owned())
        .retry_after(RETRY_DELAY)
}

/// Somebody else has written into the topic of a lane's cell.
#[cold]
pub(super) fn cell_unreadable(context: &Context<'_>, topic: &str) -> Error {
    let name = context.namespace_name;
    let message = format!(
        "{BACKEND}, the backend of {name}: the last record of the topic {topic} does not hold what Prism writes there: somebody \
         else has written it; delete the topic and have the lane begin again (on_data_loss: continue)"
    );
    Error::new(Kind::FailedPrecondition, "LANE_CELL_UNREADABLE", message)
        .with("backend", BACKEND)
        .with("namespace", name.to_owned())
}

/// Kind, reason and advice for an error. <https://kafka.apache.org/protocol#protocol_error_codes>
fn classify(code: Code) -> (Kind, &'static str, &'static str) {
    use Kind::{FailedPrecondition, ResourceExhausted, Unavailable, Unknown};
    match code {
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::BrokerNotAvailable => {
            (Unavailable, "BACKEND_UNREACHABLE", "no broker can be reached; it is tried again")
        }
        Code::MessageTimedOut
        | Code::OperationTimedOut
        | Code::RequestTimedOut
        | Code::TimedOutQueue => (
            Unavailable,
            "BACKEND_UNRESPONSIVE",
            "there was no answer in time; whether a write took effect is not known",
        ),
        Code::PurgeQueue | Code::PurgeInflight => {
            (Unavailable, "BACKEND_CLOSED", "its client has ended while the call was under way")
        }
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => (
            Unavailable,
            "LANE_MOVED",
            "a later producer of this lane has taken its place; the lane is begun again",
        ),
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => (
            Unavailable,
            "BACKEND_TOO_FEW_REPLICAS",
            "fewer replicas than min.insync.replicas are in sync: wait until the brokers are back",
        ),
        Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::NotCoordinator
        | Code::ReplicaNotAvailable
        | Code::NotController
        | Code::WaitingForCoordinator
        | Code::UnknownMemberId
        | Code::IllegalGeneration
        | Code::RebalanceInProgress
        | Code::NonEmptyGroup
        | Code::AssignmentLost
        | Code::NetworkException => {
            (Unavailable, "BACKEND_NOT_READY", "it cannot serve this at the moment")
        }
        Code::KafkaStorageError => {
            (Unavailable, "BACKEND_CANNOT_PERSIST", "a broker's disk fails: look at its log")
        }
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::SecurityDisabled => (
            Unavailable,
            "BACKEND_CREDENTIALS_REFUSED",
            "it refuses the user or the password, or the user may not do this: correct the platform file or the cluster's ACL",
        ),
        Code::SSL => (
            Unavailable,
            "BACKEND_TLS",
            "TLS came to nothing: check tls.ca, tls.certificate and tls.key, and whether this is a listener that speaks TLS",
        ),
        Code::QueueFull => (
            ResourceExhausted,
            "BACKEND_BUSY",
            "the records that wait to be sent are too many, or too large together: send fewer at once",
        ),
        Code::PolicyViolation
        | Code::InvalidReplicationFactor
        | Code::InvalidPartitions
        | Code::InvalidConfig => (
            FailedPrecondition,
            "BACKEND_REFUSES_TOPIC",
            "it does not take the topic as it was to be made: correct partitions, replication or retention of the backend",
        ),
        Code::InvalidTopic => (
            FailedPrecondition,
            "BACKEND_NAME_TAKEN",
            "it does not take the topic's name; one that differs only in `.` and `_` may be there: take another name",
        ),
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => (
            FailedPrecondition,
            "BACKEND_RECORD_TOO_LARGE",
            "the record is larger than the topic's max.message.bytes: raise it, or send less",
        ),
        Code::InvalidRecord | Code::InvalidDifferentRecord => (
            FailedPrecondition,
            "BACKEND_REFUSES_RECORD",
            "it refuses the record, or one that went out with it: where records are kept by key, each needs one",
        ),
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => (
            Unavailable,
            "BACKEND_TOPIC_GONE",
            "the topic was deleted: try again, and it is made anew",
        ),
        _ => (Unknown, "BACKEND_ERROR", "it has failed the call"),
    }
}

fn quoted(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let clean = text[..end].chars().map(|c| if c.is_control() { ' ' } else { c });
    format!(" (it says: {})", clean.collect::<String>())
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
            (Code::AllBrokersDown, 14, "BACKEND_UNREACHABLE", true),
            (Code::MessageTimedOut, 14, "BACKEND_UNRESPONSIVE", true),
            (Code::NotEnoughReplicas, 14, "BACKEND_TOO_FEW_REPLICAS", true),
            (Code::SaslAuthenticationFailed, 14, "BACKEND_CREDENTIALS_REFUSED", true),
            (Code::QueueFull, 8, "BACKEND_BUSY", true),
            (Code::MessageSizeTooLarge, 9, "BACKEND_RECORD_TOO_LARGE", false),
            (Code::InvalidTopic, 9, "BACKEND_NAME_TAKEN", false),
            (Code::Fail, 2, "BACKEND_ERROR", false),
        ] {
            let fault = Fault::of_code(code, "so it is\nas it says");
            let error = fault.error(&context, Duration::ZERO);
            assert_eq!((error.kind().grpc_code(), error.reason()), (kind, reason), "{code:?}");
            assert_eq!(error.is_retryable(), again, "{code:?}");
            assert!(error.metadata().contains(&("backend", "kafka".into())));
            assert!(error.metadata().contains(&("namespace", "orders".into())));
            assert!(error.message().contains("orders") && !error.message().contains('\n'));
        }
    }
}
