//! Who may ask for what: teams, modes, approvals and limits.

use super::{Draft, Input, Refusal, Rule};
use crate::config::described::show_place;
use crate::config::platform::{Mode, Platform, TeamLimits, Tuning};
use crate::config::request::{BackendAsked, Document, Who};
use crate::config::{Origin, nearest};

/// What a team may write; a guided one where the platform names no teams.
pub(super) fn mode(platform: &Platform, team: &str) -> Mode {
    let mode = platform.team(team).and_then(|team| team.mode);
    mode.map_or(Mode::Guided, |mode| mode.value)
}

/// The limits of a team: its own over those of every team. Experts have none.
fn limits(platform: &Platform, team: &str) -> TeamLimits {
    if mode(platform, team) == Mode::Expert {
        return TeamLimits::default();
    }
    let every = &platform.limits.0;
    let own = platform.team(team).map(|team| team.limits.0.clone()).unwrap_or_default();
    TeamLimits {
        write_rps: own.write_rps.or(every.write_rps),
        read_rps: own.read_rps.or(every.read_rps),
        retention: own.retention.or(every.retention),
        data_size: own.data_size.or(every.data_size),
        max_message_size: own.max_message_size.or(every.max_message_size),
        namespaces: own.namespaces.or(every.namespaces),
    }
}

/// Everything that is said without looking at backends.
pub(super) fn check(draft: &mut Draft<'_>) {
    check_teams(draft);
    for (field, origin) in tuning(draft.document) {
        check_tuning(draft, field, origin);
    }
    if let Some(own) = &draft.document.request.backend
        && matches!(own.value, BackendAsked::Own(_))
        && team_mode(draft) != Mode::Expert
    {
        let message = format!(
            "a backend of its own is for the platform team, and team `{}` is {}",
            draft.document.request.team.value,
            team_mode(draft)
        );
        let remedy =
            draft.ask_platform("to declare the backend under `backends`, and leave `backend` out");
        draft.refuse(Rule::ModeExpertOnly, own.origin, message, remedy);
    }
    check_limits(draft);
    check_quotas(draft);
}

fn team_mode(draft: &Draft<'_>) -> Mode {
    mode(draft.input.platform, &draft.document.request.team.value.0)
}

fn check_teams(draft: &mut Draft<'_>) {
    let platform = draft.input.platform;
    if platform.teams.is_empty() {
        return;
    }
    let request = &draft.document.request;
    let granted = request.access.owners.iter().chain(&request.access.consumers);
    let mut named = vec![(&request.team.value, request.team.origin)];
    for grantee in granted {
        if let Who::Team(team) = &grantee.who.value {
            named.push((team, grantee.who.origin));
        }
    }
    for (team, origin) in named {
        if platform.team(&team.0).is_some() {
            continue;
        }
        let names = platform.teams.iter().map(|team| team.name.value.0.as_str());
        let remedy = match nearest(&team.0, names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => draft.ask_platform("to add it under `teams`"),
        };
        draft.refuse(Rule::TeamUnknown, origin, format!("there is no team `{team}`"), remedy);
    }
}

/// The tuning that a request holds.
fn tuning(document: &Document) -> Vec<(Tuning, Origin)> {
    let request = &document.request;
    let needs = &request.needs;
    let mut tuning = Vec::new();
    tuning.extend(needs.kafka_partitions.map(|of| (Tuning::KafkaPartitions, of.origin)));
    tuning.extend(needs.postgres_pool_size.map(|of| (Tuning::PostgresPoolSize, of.origin)));
    if let Some(backend) = &request.backend
        && matches!(backend.value, BackendAsked::Named(_))
    {
        tuning.push((Tuning::Backend, backend.origin));
    }
    tuning
}

/// Whether a request may hold a piece of tuning.
fn check_tuning(draft: &mut Draft<'_>, field: Tuning, origin: Origin) {
    let request = &draft.document.request;
    let (namespace, team) = (&request.namespace.value, &request.team.value);
    match team_mode(draft) {
        Mode::Expert => {}
        Mode::Guided => {
            let message =
                format!("`{field}` is tuning, and team `{team}` is guided: it writes needs only");
            let remedy = draft.ask_platform(&format!(
                "to set `mode: advanced` for the team and to approve `{field}` for `{namespace}`, or leave it out"
            ));
            draft.refuse(Rule::ModeGuided, origin, message, remedy);
        }
        Mode::Advanced => {
            let today = draft.input.today;
            let of_field = |approval: &&crate::config::platform::Approval| {
                approval.namespace.value == *namespace
                    && approval.fields.iter().any(|of| of.value == field)
            };
            let approvals = draft.input.platform.approvals.iter().filter(of_field);
            let approvals: Vec<_> = approvals.collect();
            let holds = |at, until| at <= today && today <= until;
            let valid =
                approvals.iter().find(|one| holds(one.at.value.0, one.until.value.0)).copied();
            if let Some(approval) = valid {
                let because = format!(
                    "approved by {} on {} until {}",
                    approval.by.value, approval.at.value.0, approval.until.value.0
                );
                draft.decide("approval", field.name(), because, vec![]);
                return;
            }
            let (rule, message) = match approvals.last() {
                Some(approval) if approval.at.value.0 > today => (
                    Rule::ApprovalNotYet,
                    format!(
                        "`{field}` is approved from {} on, and today is {today}",
                        approval.at.value.0
                    ),
                ),
                Some(approval) => (
                    Rule::ApprovalExpired,
                    format!(
                        "the approval of `{field}` by {} ended on {}",
                        approval.by.value, approval.until.value.0
                    ),
                ),
                None => (
                    Rule::ApprovalMissing,
                    format!("`{field}` is tuning that nobody has approved for `{namespace}`"),
                ),
            };
            let remedy = draft.ask_platform(&format!(
                "to approve it: {{namespace: {namespace}, fields: [{field}], by: …, at: {today}, until: …}} under `approvals`"
            ));
            draft.refuse(rule, origin, message, remedy);
        }
    }
}

fn check_limits(draft: &mut Draft<'_>) {
    let request = &draft.document.request;
    let (needs, team) = (&request.needs, &request.team.value);
    let limits = limits(draft.input.platform, &team.0);
    // Each: what is asked for, whether it is too much, and what may be asked for.
    let mut over: Vec<(Rule, &str, Origin, String, String)> = Vec::new();
    macro_rules! compare {
        ($rule:expr, $need:ident, $of:ident) => {
            if let (Some(asked), Some(most)) = (needs.$need, limits.$of)
                && asked.value > most.value
            {
                let (asked_for, most) = (asked.value.to_string(), most.value.to_string());
                over.push(($rule, stringify!($need), asked.origin, asked_for, most));
            }
        };
    }
    compare!(Rule::LimitWrites, write_rps, write_rps);
    compare!(Rule::LimitReads, read_rps, read_rps);
    compare!(Rule::LimitRetention, retention, retention);
    compare!(Rule::LimitRetention, ttl, retention);
    compare!(Rule::LimitDataSize, data_size, data_size);
    compare!(Rule::LimitMessageSize, max_message_size, max_message_size);
    for (rule, need, origin, asked, most) in over {
        let message = format!("{need} {asked} is more than team `{team}` may ask for, {most}");
        let remedy = format!(
            "ask for {most} at most, or {}",
            draft.ask_platform("to raise the team's `limits`")
        );
        draft.refuse(rule, origin, message, remedy);
    }
}

fn check_quotas(draft: &mut Draft<'_>) {
    let needs = &draft.document.request.needs;
    let Some(quota) = draft.quotas().requests else { return };
    let rate = |need: Option<crate::config::Setting<crate::config::described::Rate>>| {
        need.map_or(0.0, |rate| rate.value.0)
    };
    let asked = rate(needs.write_rps) + rate(needs.read_rps);
    let origin = needs.write_rps.or(needs.read_rps).map(|rate| rate.origin);
    if let Some(origin) = origin.filter(|_| asked > quota.value.0) {
        let message = format!(
            "{} reads and writes are more than the namespace's quota of {} requests",
            crate::config::units::show_rate(asked),
            quota.value
        );
        let remedy = draft.ask_platform("to raise its `quotas` under `placement`");
        draft.refuse(Rule::QuotaTooSmall, origin, message, remedy);
    }
}

/// The namespaces, by their place among `documents`, that a team has beyond its limit.
pub(super) fn too_many(documents: &[Document], input: &Input<'_>) -> Vec<(usize, Refusal)> {
    let mut refusals = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        let team = &document.request.team;
        let Some(most) = limits(input.platform, &team.value.0).namespaces else { continue };
        let of_team = |other: &&Document| other.request.team.value == team.value;
        let before = documents[..index].iter().filter(of_team).count();
        if before < most.value.0 as usize {
            continue;
        }
        let last = &documents[..index].iter().rfind(of_team);
        let last = last.map(|last| show_place(&last.file, last.request.namespace.origin));
        let message = format!(
            "it is one more than the {} namespaces of team `{}`; the last that fits is at {}",
            most.value,
            team.value,
            last.unwrap_or_default()
        );
        let draft = Draft {
            document,
            input,
            decisions: Vec::new(),
            notes: Vec::new(),
            refusals: Vec::new(),
        };
        let remedy =
            draft.ask_platform("to raise the team's `limits`, or delete one that is not used");
        refusals.push((
            index,
            Refusal {
                rule: Rule::LimitNamespaces,
                file: document.file.to_string(),
                origin: document.request.namespace.origin,
                message,
                remedy,
            },
        ));
    }
    refusals
}
