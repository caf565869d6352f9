//! The planner: what a namespace request becomes, and why.
//!
//! A pure function of the request, the platform, what a build can run, the number of shards and the day. The same input gives
//! the same plan, to the byte. Every choice names the need that asked for it and what was passed over; a need that cannot be met
//! is a [`Refusal`] that says what would meet it. Never claims that something runs which the build cannot run: such a plan comes
//! with a refusal, and shows what it would be.

mod authority;
mod capabilities;
mod changes;
mod choose;
mod compose;
mod needs;
mod routes;
mod show;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

pub use capabilities::{Capabilities, Offer};
pub use changes::{
    Asked, Difference, Hindrance, Obstacle, differences, is_lifted_by_approval, is_of_authority,
    keeps_data,
};
pub use routes::{Figures, ROUTES, Route, Shape, figures, tables};
pub use show::{outcome_json, outcome_text};

use crate::choices;
use crate::config::described::show_place;
use crate::config::platform::{BackendType, Platform, Quotas};
use crate::config::request::{Api, Document};
use crate::config::units::Date;
use crate::config::{Durability, Origin, Topics};
use crate::namespaces::rendezvous;

/// A backend, or several that serve an API together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target(BackendType, Option<BackendType>);

impl Target {
    /// Messages in Kafka, their delivery state in PostgreSQL.
    pub const KAFKA_AND_POSTGRES: Self = Self(BackendType::Kafka, Some(BackendType::Postgres));

    /// A backend by itself.
    pub const fn of(kind: BackendType) -> Self {
        Self(kind, None)
    }

    /// Its backends, at least one.
    pub fn kinds(self) -> Vec<BackendType> {
        std::iter::once(self.0).chain(self.1).collect()
    }

    /// As it is shown: `kafka + postgres`.
    pub fn name(self) -> String {
        self.kinds().iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" + ")
    }
}

choices! {
    /// A pattern, in the order in which a request meets them.
    pub enum Pattern {
        /// Personal fields are encrypted before anything is stored.
        Encrypt = "encrypt",
        /// A large payload is stored apart before the message that names it.
        ClaimCheck = "claim_check",
        /// A write is on stable storage here before it goes to the backend.
        Wal = "wal",
        /// Messages are stored in the transaction that they belong to, and sent after it.
        Outbox = "outbox",
        /// What changes in the backend is read from its own log.
        Cdc = "cdc",
        /// Old data is moved to where it costs less.
        TieredStorage = "tiered_storage",
        /// Every access is written down.
        Audit = "audit",
    }
}

choices! {
    /// Why a request is refused. The names are stable.
    pub enum Rule {
        /// The team, or one that is given access, is not among the platform's.
        TeamUnknown = "TEAM_UNKNOWN",
        /// A guided team writes needs only: no tuning, no backend.
        ModeGuided = "MODE_GUIDED",
        /// An advanced team may tune what the platform team has approved for the namespace.
        ApprovalMissing = "APPROVAL_MISSING",
        /// The approval begins on a later day.
        ApprovalNotYet = "APPROVAL_NOT_YET",
        /// The approval has ended.
        ApprovalExpired = "APPROVAL_EXPIRED",
        /// A backend of one's own is for the platform team.
        ModeExpertOnly = "MODE_EXPERT_ONLY",
        /// More writes a second than the team may ask for.
        LimitWrites = "LIMIT_WRITES",
        /// More reads a second than the team may ask for.
        LimitReads = "LIMIT_READS",
        /// A longer retention than the team may ask for.
        LimitRetention = "LIMIT_RETENTION",
        /// More data than the team may ask for.
        LimitDataSize = "LIMIT_DATA_SIZE",
        /// Larger messages than the team may ask for.
        LimitMessageSize = "LIMIT_MESSAGE_SIZE",
        /// More namespaces than the team may have.
        LimitNamespaces = "LIMIT_NAMESPACES",
        /// The namespace's quota is below what it needs.
        QuotaTooSmall = "QUOTA_TOO_SMALL",
        /// The need means nothing for this client API.
        NeedOfAnotherApi = "NEED_OF_ANOTHER_API",
        /// No backend meets the needs together.
        NeedNotMet = "NEED_NOT_MET",
        /// A backend would do, but the team may not be given it.
        BackendNotAllowed = "BACKEND_NOT_ALLOWED",
        /// A backend would do, but the platform declares none of its type.
        BackendNotDeclared = "BACKEND_NOT_DECLARED",
        /// This build of Prism cannot run what the plan needs.
        NotInThisBuild = "NOT_IN_THIS_BUILD",
        /// Tuning of a backend that the plan does not use.
        TuningWithoutUse = "TUNING_WITHOUT_USE",
        /// The namespace's data lies on another backend, and would not move.
        BackendMoves = "BACKEND_MOVES",
        /// The namespace is pinned to a shard that there is not.
        ShardUnknown = "SHARD_UNKNOWN",
    }
}

/// One reason why a request is not served as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The rule.
    pub rule: Rule,
    /// The file, as it was named.
    pub file: String,
    /// Where the cause stands.
    pub origin: Origin,
    /// What is wrong.
    pub message: String,
    /// What would meet it, or who can lift it.
    pub remedy: String,
}

impl fmt::Display for Refusal {
    /// `file:line:column: RULE: message`, then an indented remedy.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = show_place(&self.file, self.origin);
        write!(f, "{place}: {}: {}\n    {}", self.rule, self.message, self.remedy)
    }
}

/// What stands beside the request.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The platform.
    pub platform: &'a Platform,
    /// What the build can run.
    pub capabilities: &'a Capabilities,
    /// How many shards there are, at least one.
    pub shards: usize,
    /// The day, by which approvals hold or do not.
    pub today: Date,
    /// The namespaces that there are, by name: where each lives.
    pub placed: &'a BTreeMap<String, Placed>,
}

/// Where a namespace lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The backend that holds its data, where that is known.
    pub backend: Option<String>,
    /// The shard that owns it.
    pub home: usize,
}

/// What a request comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The namespace.
    pub namespace: String,
    /// The plan; with refusals it is what would be, and `None` where not even that can be told.
    pub plan: Option<Plan>,
    /// Why it is not served; empty: it is.
    pub refusals: Vec<Refusal>,
}

/// A plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The namespace.
    pub namespace: String,
    /// The team that owns it.
    pub team: String,
    /// What the application calls.
    pub api: Api,
    /// The patterns, in the order in which a request meets them.
    pub patterns: Vec<Pattern>,
    /// The backends.
    pub parts: Vec<Part>,
    /// When a caller hears "done".
    pub durability: Durability,
    /// How its topics are kept.
    pub topics: Topics,
    /// Shares that keep their order for themselves.
    pub partitions: u32,
    /// How long data is kept.
    pub retention: Option<std::time::Duration>,
    /// The bounds that it is held to.
    pub limits: PlanLimits,
    /// Whether the size of messages was asked for.
    pub is_message_size_asked: bool,
    /// The shards that own it.
    pub homes: Vec<usize>,
    /// Why it is so.
    pub decisions: Vec<Decision>,
    /// What its readers should know.
    pub notes: Vec<String>,
}

/// A backend's share of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The backend's name.
    pub backend: String,
    /// Its type.
    pub kind: BackendType,
    /// How it is reached, where it is the namespace's own.
    pub connection: Option<String>,
    /// What lies there.
    pub holds: String,
    /// Its settings.
    pub settings: BTreeMap<&'static str, u32>,
    /// Whether this build has an adapter for it.
    pub in_this_build: bool,
}

/// The bounds of a plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlanLimits {
    /// The largest message, in bytes.
    pub message_bytes_max: u64,
    /// Writes a second that it is planned for.
    pub writes: Option<f64>,
    /// Reads a second that it is planned for.
    pub reads: Option<f64>,
    /// Bytes of data that it is planned for.
    pub data_bytes: Option<u64>,
    /// Bytes of requests in flight.
    pub in_flight_bytes_max: Option<u64>,
    /// Logged writes that may wait for the backend.
    pub backlog_records_max: Option<u64>,
    /// Requests, bytes and subscriptions.
    pub quotas: crate::config::Quotas,
}

/// One choice, with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What was to be chosen.
    pub subject: &'static str,
    /// What was chosen.
    pub choice: String,
    /// The need or rule that asked for it.
    pub because: String,
    /// What was not taken, and why.
    pub passed_over: Vec<(String, String)>,
}

/// A message, where neither the request nor the platform says how large it may be.
const MESSAGE_BYTES: u64 = 4 << 20;

/// Plans every request, in their order.
pub fn plan_all(documents: &[Document], input: &Input<'_>) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = documents.iter().map(|one| plan(one, input)).collect();
    for (document, refusal) in authority::too_many(documents, input) {
        outcomes[document].refusals.push(refusal);
    }
    outcomes
}

/// Plans a request.
pub fn plan(document: &Document, input: &Input<'_>) -> Outcome {
    let request = &document.request;
    let mut draft =
        Draft { document, input, decisions: Vec::new(), notes: Vec::new(), refusals: Vec::new() };
    authority::check(&mut draft);
    needs::check(&mut draft);
    let plan = choose::choose(&mut draft);
    let Draft { mut refusals, .. } = draft;
    refusals.sort_by_key(|refusal| (refusal.origin, refusal.rule));
    Outcome { namespace: request.namespace.value.0.clone(), plan, refusals }
}

/// A plan while it is made.
struct Draft<'a> {
    document: &'a Document,
    input: &'a Input<'a>,
    decisions: Vec<Decision>,
    notes: Vec<String>,
    refusals: Vec<Refusal>,
}

impl Draft<'_> {
    fn refuse(
        &mut self,
        rule: Rule,
        origin: Origin,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.refusals.push(Refusal {
            rule,
            file: self.document.file.to_string(),
            origin,
            message: message.into(),
            remedy: remedy.into(),
        });
    }

    /// Refuses to leave a namespace's data behind on another backend.
    fn check_moves(&mut self, backend: &str) {
        let name = &self.document.request.namespace;
        let Some(placed) = self.input.placed.get(&name.value.0) else { return };
        if let Some(before) = placed.backend.as_ref().filter(|before| *before != backend) {
            let message = format!(
                "it lies on backend `{before}` and would move to `{backend}`, but its data does not move with it"
            );
            let remedy = self.ask_platform(&format!(
                "to place it on `{before}`, or take another name for a namespace that begins empty"
            ));
            self.refuse(Rule::BackendMoves, name.origin, message, remedy);
        }
    }

    fn decide(
        &mut self,
        subject: &'static str,
        choice: impl Into<String>,
        because: impl Into<String>,
        passed_over: Vec<(String, String)>,
    ) {
        let (choice, because) = (choice.into(), because.into());
        self.decisions.push(Decision { subject, choice, because, passed_over });
    }

    /// Whom to ask for what only the platform team can give.
    fn ask_platform(&self, what: &str) -> String {
        let owner = &self.input.platform.owner;
        let team = match &owner.team {
            Some(team) => format!("the platform team `{}`", team.value),
            None => "the platform team".to_owned(),
        };
        match &owner.contact {
            Some(contact) => format!("ask {team} ({}) {what}", contact.value),
            None => format!("ask {team} {what}"),
        }
    }

    /// The quotas of the namespace: its placement's over those of every namespace.
    fn quotas(&self) -> Quotas {
        let platform = self.input.platform;
        let every = &platform.quotas.0;
        let own = platform.placement_of(&self.document.request.namespace.value.0);
        let own = own.map(|placement| placement.quotas.0.clone()).unwrap_or_default();
        Quotas {
            requests: own.requests.or(every.requests),
            bytes: own.bytes.or(every.bytes),
            bytes_in_flight: own.bytes_in_flight.or(every.bytes_in_flight),
            subscriptions: own.subscriptions.or(every.subscriptions),
            backlog: own.backlog.or(every.backlog),
        }
    }

    /// The shard that owns the namespace.
    fn home(&mut self) -> usize {
        let request = &self.document.request;
        let (name, shards) = (&request.namespace.value.0, self.input.shards);
        let pin = self.input.platform.placement_of(name).and_then(|placement| placement.shard);
        if let Some(placed) = self.input.placed.get(name) {
            let home = placed.home;
            self.decide("home", format!("shard {home}"), "it lives there, and stays", vec![]);
            if let Some(pin) = pin.filter(|pin| pin.value.0 as usize != home) {
                self.notes.push(format!(
                    "the platform pins it to shard {}; it stays where its log is",
                    pin.value.0
                ));
            }
            return home;
        }
        match pin {
            Some(shard) if (shard.value.0 as usize) < shards => {
                let home = shard.value.0 as usize;
                self.decide("home", format!("shard {home}"), "the platform pins it there", vec![]);
                home
            }
            Some(shard) => {
                let message = format!(
                    "the platform pins it to shard {}, and there are {shards}, counted from 0",
                    shard.value.0
                );
                let remedy =
                    self.ask_platform("for another `shard` under `placement`, or more shards");
                self.refuse(Rule::ShardUnknown, request.namespace.origin, message, remedy);
                0
            }
            None => {
                let home = rendezvous(name, shards);
                let because = format!("its name's highest hash among {shards}");
                self.decide("home", format!("shard {home}"), because, vec![]);
                home
            }
        }
    }
}
