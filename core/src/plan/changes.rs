//! What becomes different when a request is asked for in another way, and what cannot become so while the data stays.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::{Outcome, Plan, Rule, show};
use crate::choices;
use crate::config::Origin;
use crate::config::described::show_place;
use crate::config::request::{Api, Document, Grantee, Request, Who};
use crate::config::units::show_bytes;

/// A request with what it was planned as.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The request.
    pub document: Document,
    /// Its plan.
    pub plan: Plan,
}

impl Asked {
    /// As the planner told it.
    pub fn outcome(&self) -> Outcome {
        let (namespace, plan) = (self.plan.namespace.clone(), Some(self.plan.clone()));
        Outcome { namespace, plan, refusals: Vec::new() }
    }
}

/// One thing that becomes different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What, such as `durability` or `limits.write_rps`.
    pub what: String,
    /// What it is now; empty: nothing.
    pub from: String,
    /// What it becomes; empty: nothing.
    pub to: String,
}

impl fmt::Display for Difference {
    /// `durability: wal -> strong`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_nothing = |text: &str| if text.is_empty() { "nothing" } else { text }.to_owned();
        write!(f, "{}: {} -> {}", self.what, or_nothing(&self.from), or_nothing(&self.to))
    }
}

/// What becomes different, by name. What is only explained in other words is not.
pub fn differences(before: &Asked, after: &Asked) -> Vec<Difference> {
    let (mut before, after) = (facts(before), facts(after));
    let mut found = Vec::new();
    for (what, to) in after {
        let from = before.remove(&what).unwrap_or_default();
        if from != to {
            found.push(Difference { what, from, to });
        }
    }
    let gone = before.into_iter().map(|(what, from)| Difference { what, from, to: String::new() });
    found.extend(gone);
    found.sort_by(|one, other| one.what.cmp(&other.what));
    found
}

/// Everything that a request and its plan settle, each under its name.
fn facts(asked: &Asked) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    let mut plan = show::plan_json(&asked.plan);
    if let Some(plan) = plan.as_object_mut() {
        // Where it lives does not follow from what is asked for, and the reasons are no facts.
        for key in ["namespace", "decisions", "notes", "homes"] {
            plan.remove(key);
        }
    }
    flatten("", &plan, &mut facts);
    let request = &asked.document.request;
    let access = &request.access;
    insert(&mut facts, "access.owners", shown(&access.owners, false));
    insert(&mut facts, "access.consumers", shown(&access.consumers, true));
    facts
}

fn insert(facts: &mut BTreeMap<String, String>, what: &str, value: String) {
    if !value.is_empty() {
        facts.insert(what.to_owned(), value);
    }
}

fn flatten(what: &str, value: &Value, facts: &mut BTreeMap<String, String>) {
    let within = |key: &str| match what {
        "" => key.to_owned(),
        what => format!("{what}.{key}"),
    };
    match value {
        Value::Object(entries) => {
            entries.iter().for_each(|(key, value)| flatten(&within(key), value, facts));
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            let items = items.iter().enumerate();
            items.for_each(|(index, item)| flatten(&within(&index.to_string()), item, facts));
        }
        Value::Array(items) => {
            let texts: Vec<_> = items.iter().map(text).collect();
            insert(facts, what, texts.join(", "));
        }
        value => insert(facts, what, text(value)),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// Those who are given access, in an order of its own, so that another order in the file is no difference.
fn shown(grantees: &[Grantee], with_rights: bool) -> String {
    let mut texts: Vec<_> = grantees
        .iter()
        .map(|grantee| {
            let who = match &grantee.who.value {
                Who::Team(name) => format!("team {name}"),
                Who::Service(name) => format!("service {name}"),
            };
            if with_rights { format!("{who} may {}", grantee.may) } else { who }
        })
        .collect();
    texts.sort_unstable();
    texts.join(", ")
}

choices! {
    /// Why a request that could be planned does not take effect where a server runs. The names are stable.
    pub enum Obstacle {
        /// The namespace is listed in the server's configuration.
        Configured = "NAMESPACE_CONFIGURED",
        /// What it holds is of another data model, and would not be found.
        ApiChanges = "API_CHANGES",
        /// A queue's log tells the same again only with the size of messages that it was written with.
        MessageSizeStays = "MESSAGE_SIZE_STAYS",
        /// Messages as large as are asked for are more than the server takes.
        ServerLimit = "SERVER_LIMIT",
        /// The backend is one that this server does not know.
        BackendUnknown = "BACKEND_UNKNOWN",
        /// The log holds writes of it for its backend, from a time when it was served.
        WritesPending = "WRITES_PENDING",
        /// One of the name was deleted, and its backend has still to take it out.
        StillEnding = "NAMESPACE_ENDING",
        /// The server has room for no more namespaces until it is started again.
        NoRoom = "NO_ROOM",
    }
}

/// One obstacle, at its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hindrance {
    /// Which.
    pub obstacle: Obstacle,
    /// Where in its document the cause stands.
    pub origin: Origin,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

impl Hindrance {
    /// `file:line:column: OBSTACLE: message`, then an indented remedy: as a refusal of the planner.
    pub fn shown(&self, file: &str) -> String {
        let place = show_place(file, self.origin);
        format!("{place}: {}: {}\n    {}", self.obstacle, self.message, self.remedy)
    }
}

/// Why a namespace that holds data as `before` cannot become what is asked for.
pub fn keeps_data(before: &Asked, after: &Request, plan: Option<&Plan>) -> Result<(), Hindrance> {
    let request = &before.document.request;
    let (was, becomes) = (request.client_api.value, after.client_api);
    let name = &after.namespace;
    if was != becomes.value {
        return Err(Hindrance {
            obstacle: Obstacle::ApiChanges,
            origin: becomes.origin,
            message: format!(
                "it is there with client_api {was}, and what it holds would not be found as {}",
                becomes.value
            ),
            remedy: format!(
                "take another name for the new one, or delete this one first (`prism delete {}`)",
                name.value
            ),
        });
    }
    let size = before.plan.limits.message_bytes_max;
    if was == Api::Queue && plan.is_some_and(|plan| plan.limits.message_bytes_max != size) {
        return Err(Hindrance {
            obstacle: Obstacle::MessageSizeStays,
            origin: after.needs.max_message_size.map_or(name.origin, |size| size.origin),
            message: format!(
                "it is a queue with messages of {} at most, and stays so: what its receivers got is told again from the log at a start, \
                 and depends on it",
                show_bytes(size)
            ),
            remedy: format!(
                "leave `max_message_size: {}`, or take another name for a queue with other messages",
                show_bytes(size)
            ),
        });
    }
    Ok(())
}

/// Whether a rule says who may ask for what. A namespace that was let in under such a rule is not ended by a later day or a
/// lower limit.
pub fn is_of_authority(rule: Rule) -> bool {
    match rule {
        Rule::TeamUnknown
        | Rule::ModeGuided
        | Rule::ApprovalMissing
        | Rule::ApprovalNotYet
        | Rule::ApprovalExpired
        | Rule::ModeExpertOnly
        | Rule::LimitWrites
        | Rule::LimitReads
        | Rule::LimitRetention
        | Rule::LimitDataSize
        | Rule::LimitMessageSize
        | Rule::LimitNamespaces
        | Rule::QuotaTooSmall => true,
        Rule::NeedOfAnotherApi
        | Rule::NeedNotMet
        | Rule::BackendNotAllowed
        | Rule::BackendNotDeclared
        | Rule::NotInThisBuild
        | Rule::TuningWithoutUse
        | Rule::BackendMoves
        | Rule::ShardUnknown => false,
    }
}

/// Whether an approval of the platform team would lift a rule.
pub fn is_lifted_by_approval(rule: Rule) -> bool {
    matches!(rule, Rule::ApprovalMissing | Rule::ApprovalNotYet | Rule::ApprovalExpired)
}
