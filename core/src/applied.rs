//! What was applied: the requests of namespaces as they were sent, and approvals. Part of the registry of a data directory, and where
//! several servers share it ([`crate::shared`]) the same on each.
//!
//! Keeps texts, so that a start plans from what teams wrote and not from what an older version made of it. Decides nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::described::{Day, Name, Scalar, Text};
use crate::config::platform::{Approval, Tuning};
use crate::config::{Origin, Setting};

/// Approvals that are kept at most; those whose day has passed make room first.
pub(crate) const APPROVALS_MAX: usize = 4096;

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Applied {
    /// Counts the changes.
    version: u64,
    requests: BTreeMap<String, Request>,
    approvals: Vec<Approved>,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    /// One YAML document.
    pub(crate) text: String,
    /// How many requests for the namespace took effect, this among them.
    pub(crate) generation: u64,
    /// The change that made the namespace: another one of the name has another.
    #[serde(default)]
    pub(crate) made: u64,
    /// Who applied it; empty where nobody is known.
    pub(crate) by: String,
    /// On which day.
    pub(crate) at: String,
}

/// An approval, as a platform file would have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Approved {
    pub(crate) namespace: String,
    pub(crate) fields: Vec<String>,
    pub(crate) by: String,
    pub(crate) at: String,
    pub(crate) until: String,
    pub(crate) reason: String,
}

impl Approved {
    /// As the planner has it; `None` where it is none.
    fn as_approval(&self) -> Option<Approval> {
        fn written<T>(value: T) -> Setting<T> {
            Setting { value, origin: Origin::Default }
        }
        let field = |name: &String| Tuning::parse(name).ok().map(written);
        let reason = (!self.reason.is_empty()).then(|| written(Text(self.reason.clone())));
        Some(Approval {
            namespace: written(Name(self.namespace.clone())),
            fields: self.fields.iter().map(field).collect::<Option<_>>()?,
            by: written(Text(self.by.clone())),
            at: written(Day::parse(&self.at).ok()?),
            until: written(Day::parse(&self.until).ok()?),
            reason,
        })
    }
}

impl Applied {
    /// Nothing was ever applied.
    pub(crate) fn is_empty(&self) -> bool {
        self.version == 0
    }

    /// Counts the changes.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The requests as texts with a name each, by the namespaces' names.
    pub(crate) fn texts(&self) -> Vec<(String, String)> {
        let text = |(name, request): (&String, &Request)| (file_of(name), request.text.clone());
        self.requests.iter().map(text).collect()
    }

    /// The request of a namespace.
    pub(crate) fn request(&self, name: &str) -> Option<&Request> {
        self.requests.get(name)
    }

    /// The namespaces that are no more in `next`, or are others of the same name there.
    pub(crate) fn ended_in(&self, next: &Self) -> Vec<String> {
        let is_same = |name: &str, made| next.request(name).is_some_and(|of| of.made == made);
        let ended = self.requests.iter().filter(|(name, request)| !is_same(name, request.made));
        ended.map(|(name, _)| name.clone()).collect()
    }

    /// Takes a request for a namespace in the place of the one before.
    pub(crate) fn set(&mut self, name: &str, text: &str, by: &str, at: &str) {
        self.version += 1;
        let (generation, made) =
            self.request(name).map_or((0, self.version), |before| (before.generation, before.made));
        let (text, by, at) = (text.to_owned(), by.to_owned(), at.to_owned());
        let request = Request { text, generation: generation + 1, made, by, at };
        self.requests.insert(name.to_owned(), request);
    }

    /// Forgets the request of a namespace and what was approved for it.
    pub(crate) fn forget(&mut self, name: &str) {
        self.version += 1;
        self.requests.remove(name);
        self.approvals.retain(|approved| approved.namespace != name);
    }

    /// Adds an approval. Those whose last day is before `today` go where there is no room; `false` where there is none then.
    pub(crate) fn approve(&mut self, approved: Approved, today: &str) -> bool {
        if self.approvals.len() >= APPROVALS_MAX {
            // Days are written so that their order is that of their texts.
            self.approvals.retain(|one| one.until.as_str() >= today);
        }
        if self.approvals.len() >= APPROVALS_MAX {
            return false;
        }
        self.version += 1;
        self.approvals.push(approved);
        true
    }

    /// What was approved, as the planner has it.
    pub(crate) fn approvals(&self) -> impl Iterator<Item = Approval> {
        self.approvals.iter().filter_map(Approved::as_approval)
    }
}

/// What the text of an applied request is called in messages.
pub(crate) fn file_of(name: &str) -> String {
    format!("{name} (applied)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn approved(until: &str) -> Approved {
        Approved {
            namespace: "orders".to_owned(),
            fields: vec!["backend".to_owned()],
            by: "ops".to_owned(),
            at: "2026-01-01".to_owned(),
            until: until.to_owned(),
            reason: String::new(),
        }
    }

    #[test]
    fn each_request_for_a_namespace_counts() {
        let mut applied = Applied::default();
        assert!(applied.is_empty());
        applied.set("orders", "one", "", "2026-01-01");
        applied.set("orders", "two", "", "2026-01-02");
        let request = applied.request("orders").unwrap();
        assert_eq!((request.text.as_str(), request.generation, applied.version()), ("two", 2, 2));
        assert_eq!(applied.texts(), [("orders (applied)".to_owned(), "two".to_owned())]);
        applied.forget("orders");
        assert!(applied.texts().is_empty() && !applied.is_empty());
    }

    #[test]
    fn another_namespace_of_the_name_is_told_from_a_change() {
        let mut applied = Applied::default();
        for name in ["orders", "mail", "jobs"] {
            applied.set(name, "one", "", "2026-01-01");
        }
        let mut next = applied.clone();
        next.set("orders", "two", "", "2026-01-02");
        assert!(applied.ended_in(&next).is_empty());
        next.forget("mail");
        next.forget("jobs");
        next.set("jobs", "one", "", "2026-01-03");
        assert_eq!(applied.ended_in(&next), ["jobs", "mail"]);
        assert!(next.ended_in(&next).is_empty());
    }

    #[test]
    fn approvals_that_have_ended_make_room() {
        let mut applied = Applied::default();
        for _ in 0..APPROVALS_MAX {
            assert!(applied.approve(approved("2026-02-01"), "2026-02-01"));
        }
        assert!(!applied.approve(approved("2026-03-01"), "2026-02-01"));
        assert!(applied.approve(approved("2026-03-01"), "2026-02-02"));
        assert_eq!(applied.approvals().count(), 1);
        assert_eq!(applied.approvals().next().unwrap().fields[0].value, Tuning::Backend);
    }

    #[test]
    fn it_reads_back_as_it_was_written() {
        let mut applied = Applied::default();
        applied.set("orders", "namespace: orders\n", "ops", "2026-01-01");
        assert!(applied.approve(approved("2026-02-01"), "2026-01-01"));
        let text = serde_json::to_string(&applied).unwrap();
        assert_eq!(serde_json::from_str::<Applied>(&text).unwrap(), applied);
    }
}
