//! What lies in a stream of JetStream: its name, its subjects, how it is made, and what one that is there must be like.

use std::borrow::Cow;
use std::hash::Hasher;
use std::time::Duration;

use serde_json::{Value, json};
use siphasher::sip::SipHasher13;

use crate::call::Context;

/// How long a stream remembers the identities of what was stored.
pub(super) const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// Bytes that the name of a stream may have.
const STREAM_NAME_BYTES_MAX: usize = 255;

/// What a stream of JetStream holds of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds<'a> {
    /// The values under its keys, and the cells of its lanes.
    Values,
    /// The events of its topics.
    Events,
    /// The records of this stream of its own.
    Records(&'a str),
    /// The messages of this queue, until they were dealt with.
    Messages(&'a str),
    /// The dead letters of this queue.
    Dead(&'a str),
}

impl Holds<'_> {
    /// What tells it from others of its namespace; no stream or queue has a name with a `$`.
    pub(super) fn key(&self) -> Cow<'_, str> {
        match self {
            Holds::Values => "$values".into(),
            Holds::Events => "$events".into(),
            Holds::Records(name) | Holds::Messages(name) => (*name).into(),
            Holds::Dead(name) => format!("$dead.{name}").into(),
        }
    }

    /// The name of a namespace's stream.
    pub(super) fn stream(self, context: &Context<'_>) -> String {
        match self {
            Holds::Values => format!("KV_{}", context.namespace_name),
            Holds::Events => format!("EVENTS_{}", context.namespace_name),
            Holds::Records(name) => named("STREAM", context, name),
            Holds::Messages(name) => named("QUEUE", context, name),
            Holds::Dead(name) => named("DEAD", context, name),
        }
    }

    /// The subjects that it takes; of a queue those of messages that are due and have no ordering key.
    pub(super) fn subjects(self, context: &Context<'_>) -> String {
        let namespace = context.namespace_name;
        match self {
            Holds::Values => format!("$KV.{namespace}.>"),
            Holds::Events => format!("{namespace}.>"),
            // A namespace may have topics of the same names.
            Holds::Records(name) => format!("$STREAM.{namespace}.{name}"),
            Holds::Messages(name) => format!("$QUEUE.{namespace}.{name}"),
            Holds::Dead(name) => format!("$DEAD.{namespace}.{name}.*"),
        }
    }

    /// All that it takes. No two queues share a subject: one whose name another's begins with has fewer tokens.
    fn all_subjects(self, context: &Context<'_>) -> Vec<String> {
        let mut all = vec![self.subjects(context)];
        if let Holds::Messages(name) = self {
            all.push(lane_subject(context, name, "*"));
            all.push(later_subject(context, name, "*"));
        }
        all
    }

    /// What a stream must have switched on.
    pub(super) fn needed(self) -> &'static [&'static str] {
        match self {
            Holds::Values => &["allow_direct", "allow_msg_ttl", "allow_atomic"],
            Holds::Messages(_) => &["allow_direct", "allow_msg_schedules"],
            Holds::Events | Holds::Records(_) | Holds::Dead(_) => &["allow_direct"],
        }
    }

    /// As a stream is made: of values as NATS's own clients make a bucket, others without a limit. Where somebody sets one, events that
    /// find no room are refused, so that none is thrown away before those who wait for it have had it; of records and dead letters the oldest
    /// go, and of messages too, because JetStream delays none in a stream that refuses. A cluster keeps as many copies as `replicas` says.
    pub(super) fn config(self, context: &Context<'_>, replicas: u16) -> Value {
        let mut config = json!({
            "name": self.stream(context),
            "subjects": self.all_subjects(context),
            "retention": if matches!(self, Holds::Messages(_)) { "workqueue" } else { "limits" },
            "storage": "file",
            "discard": if matches!(self, Holds::Values | Holds::Events) { "new" } else { "old" },
            "num_replicas": replicas,
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_age": 0,
            "max_msg_size": -1,
            "duplicate_window": DUPLICATE_WINDOW.as_nanos() as u64,
        });
        if self == Holds::Values {
            config["max_msgs_per_subject"] = 1.into();
            config["allow_rollup_hdrs"] = true.into();
            config["deny_delete"] = true.into();
        }
        if let Holds::Dead(_) = self {
            // Whoever gives a message up a second time leaves one dead letter.
            config["max_msgs_per_subject"] = 1.into();
        }
        for name in self.needed() {
            config[*name] = true.into();
        }
        config
    }

    /// Why a stream that is there cannot be the namespace's.
    pub(super) fn unfit(self, context: &Context<'_>, config: &Value) -> Option<&'static str> {
        let subjects = config["subjects"].as_array();
        let takes = |wanted: &str| subjects.is_some_and(|all| all.iter().any(|one| one == wanted));
        match self {
            Holds::Values if config["max_msgs_per_subject"] != 1 => Some(
                "keeps a history: Prism needs one value per key (`nats stream edit --max-msgs-per-subject 1`, which drops \
                 the older ones)",
            ),
            Holds::Values => None,
            Holds::Messages(_) if config["retention"] != "workqueue" => Some(
                "keeps what somebody has dealt with; make it anew with `--retention work`, or take another name for the namespace",
            ),
            Holds::Messages(_) if config["discard"] == "new" => Some(
                "refuses what finds no room, and JetStream delays no messages in such a one: edit it (`nats stream edit \
                 --discard old`)",
            ),
            Holds::Events | Holds::Records(_) | Holds::Dead(_)
                if config["retention"] != "limits" =>
            {
                Some(
                    "throws away what somebody has taken, and others are to have it too; make it anew with \
                     `--retention limits`, or take another name for the namespace",
                )
            }
            _ if !self.all_subjects(context).iter().all(|subject| takes(subject)) => Some(
                "does not take the subjects that it is to hold (`NAMESPACE.>` of events, `$STREAM.NAMESPACE.STREAM` of records, \
                 `$QUEUE.NAMESPACE.QUEUE`, `$QUEUE_KEY.NAMESPACE.QUEUE.*` and `$QUEUE_LATER.NAMESPACE.QUEUE.*` of messages, \
                 `$DEAD.NAMESPACE.QUEUE.*` of dead letters): edit it so that it does (`nats stream edit --subjects`), or take another \
                 name for the namespace",
            ),
            _ => None,
        }
    }
}

/// The name of a stream that holds what a namespace calls so. No such name has a `=`, none of a namespace a `_`, and none of
/// JetStream's streams a dot.
fn named(kind: &str, context: &Context<'_>, name: &str) -> String {
    shortened(format!("{kind}_{}_{}", context.namespace_name, name.replace('.', "=")))
}

/// The subject of a queue's messages with ordering keys of a lane.
pub(super) fn lane_subject(context: &Context<'_>, queue: &str, lane: &str) -> String {
    format!("$QUEUE_KEY.{}.{queue}.{lane}", context.namespace_name)
}

/// The subject that a queue's message waits on until it is due.
pub(super) fn later_subject(context: &Context<'_>, queue: &str, id: &str) -> String {
    format!("$QUEUE_LATER.{}.{queue}.{id}", context.namespace_name)
}

/// A name that the server takes: of one that is too long the beginning, and what tells it from others that begin so.
fn shortened(name: String) -> String {
    if name.len() <= STREAM_NAME_BYTES_MAX {
        return name;
    }
    let mut hasher = SipHasher13::new();
    hasher.write(name.as_bytes());
    // It has no other characters than ASCII's.
    let kept = name.get(..STREAM_NAME_BYTES_MAX - 17).unwrap_or_default();
    format!("{kept}={:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_too_long_is_cut_and_stays_its_own() {
        let long = |end: &str| format!("STREAM_{}{end}", "n".repeat(260));
        let (one, other) = (shortened(long("a")), shortened(long("b")));
        assert_eq!((one.len(), other.len()), (STREAM_NAME_BYTES_MAX, STREAM_NAME_BYTES_MAX));
        assert_ne!(one, other);
        assert_eq!(shortened("STREAM_orders_eu=new".to_owned()), "STREAM_orders_eu=new");
    }
}
