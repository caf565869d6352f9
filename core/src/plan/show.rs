//! An outcome for people and for programs. The same outcome is the same text, to the byte.

use serde_json::{Value, json};

use super::{Decision, Outcome, Part, Plan};
use crate::config::Durability;
use crate::config::described::ByteRate;
use crate::config::units::{show_bytes, show_duration, show_rate};

/// The outcome as indented lines; with refusals the plan is called what it would be.
pub fn outcome_text(outcome: &Outcome) -> String {
    let mut text = String::new();
    if let Some(plan) = &outcome.plan {
        let would = if outcome.refusals.is_empty() { "" } else { "  NOT SERVED: what it would be" };
        text.push_str(&format!("{}  {}  team {}{would}\n", plan.namespace, plan.api, plan.team));
        for (key, value) in rows(plan) {
            text.push_str(&format!("  {key:<11} {value}\n"));
        }
        text.push_str("  why\n");
        for decision in &plan.decisions {
            text.push_str(&decision_text(decision));
        }
        for note in &plan.notes {
            text.push_str(&format!("  note: {note}\n"));
        }
    } else {
        text.push_str(&format!("{}  NOT SERVED\n", outcome.namespace));
    }
    for refusal in &outcome.refusals {
        text.push_str(&format!("  refused: {}\n", refusal.to_string().replace('\n', "\n  ")));
    }
    text
}

fn decision_text(decision: &Decision) -> String {
    let Decision { subject, choice, because, passed_over } = decision;
    let mut text = format!("    {subject}: {choice}, because: {because}\n");
    for (what, why) in passed_over {
        text.push_str(&format!("      not {what}: {why}\n"));
    }
    text
}

/// What a level promises.
fn promise(durability: Durability) -> &'static str {
    match durability {
        Durability::Memory => "a caller hears \"done\" when the backend has answered",
        Durability::Wal => "a caller hears \"done\" when it is on this disk",
        Durability::Strong => {
            "a caller hears \"done\" when it is on this disk and the backend has confirmed it"
        }
    }
}

fn rows(plan: &Plan) -> Vec<(&'static str, String)> {
    let patterns: Vec<_> = plan.patterns.iter().map(|pattern| pattern.name()).collect();
    let patterns = if patterns.is_empty() { "none".to_owned() } else { patterns.join(", ") };
    let mut rows = vec![("patterns", patterns)];
    for (index, part) in plan.parts.iter().enumerate() {
        rows.push((if index == 0 { "backend" } else { "" }, part_text(part)));
    }
    let durability = plan.durability;
    rows.push(("durability", format!("{}: {}", durability.name(), promise(durability))));
    rows.push(("partitions", plan.partitions.to_string()));
    if let Some(retention) = plan.retention {
        rows.push(("retention", show_duration(retention)));
    }
    rows.push(("limits", limits_text(plan)));
    let homes: Vec<_> = plan.homes.iter().map(|home| format!("shard {home}")).collect();
    rows.push(("home", homes.join(", ")));
    rows
}

fn part_text(part: &Part) -> String {
    let mut text = match part.backend == part.kind.name() {
        true => part.backend.clone(),
        false => format!("{} ({})", part.backend, part.kind),
    };
    if let Some(connection) = &part.connection {
        text.push_str(&format!(" at {connection}"));
    }
    text.push_str(&format!(": {}", part.holds));
    for (setting, value) in &part.settings {
        text.push_str(&format!(", {setting} {value}"));
    }
    if !part.in_this_build {
        text.push_str(" [not in this build]");
    }
    text
}

fn limits_text(plan: &Plan) -> String {
    let limits = &plan.limits;
    let mut text = format!("messages of {}", show_bytes(limits.message_bytes_max));
    let mut add = |what: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!("; {value} {what}"));
        }
    };
    add("writes", limits.writes.map(show_rate));
    add("reads", limits.reads.map(show_rate));
    add("of data", limits.data_bytes.map(show_bytes));
    add("in flight", limits.in_flight_bytes_max.map(show_bytes));
    add("logged writes waiting", limits.backlog_records_max.map(|records| records.to_string()));
    let quotas = &limits.quotas;
    add("requests at most", quotas.requests_per_second.map(show_rate));
    add("of requests at most", quotas.bytes_per_second.map(|rate| ByteRate(rate).to_string()));
    add("subscriptions at most", quotas.subscriptions.map(|count| count.to_string()));
    text
}

/// The outcome as a JSON value.
pub fn outcome_json(outcome: &Outcome) -> Value {
    let refusal = |refusal: &super::Refusal| {
        json!({
            "rule": refusal.rule.name(),
            "place": crate::config::described::show_place(&refusal.file, refusal.origin),
            "message": refusal.message,
            "remedy": refusal.remedy,
        })
    };
    json!({
        "namespace": outcome.namespace,
        "served": outcome.refusals.is_empty() && outcome.plan.is_some(),
        "plan": outcome.plan.as_ref().map(plan_json),
        "refusals": outcome.refusals.iter().map(refusal).collect::<Vec<_>>(),
    })
}

pub(super) fn plan_json(plan: &Plan) -> Value {
    let part = |part: &Part| {
        json!({
            "backend": part.backend,
            "type": part.kind.name(),
            "connection": part.connection,
            "holds": part.holds,
            "settings": part.settings,
            "in_this_build": part.in_this_build,
        })
    };
    let decision = |decision: &Decision| {
        let over = |(what, why): &(String, String)| json!({"what": what, "why": why});
        json!({
            "subject": decision.subject,
            "choice": decision.choice,
            "because": decision.because,
            "passed_over": decision.passed_over.iter().map(over).collect::<Vec<_>>(),
        })
    };
    let limits = &plan.limits;
    json!({
        "namespace": plan.namespace,
        "team": plan.team,
        "client_api": plan.api.name(),
        "patterns": plan.patterns.iter().map(|pattern| pattern.name()).collect::<Vec<_>>(),
        "backends": plan.parts.iter().map(part).collect::<Vec<_>>(),
        "durability": plan.durability.name(),
        "partitions": plan.partitions,
        "retention_seconds": plan.retention.map(|retention| retention.as_secs_f64()),
        "limits": {
            "message_bytes_max": limits.message_bytes_max,
            "write_rps": limits.writes,
            "read_rps": limits.reads,
            "data_bytes": limits.data_bytes,
            "in_flight_bytes_max": limits.in_flight_bytes_max,
            "backlog_records_max": limits.backlog_records_max,
            "requests_per_second_max": limits.quotas.requests_per_second,
            "bytes_per_second_max": limits.quotas.bytes_per_second,
            "subscriptions_max": limits.quotas.subscriptions,
        },
        "homes": plan.homes,
        "decisions": plan.decisions.iter().map(decision).collect::<Vec<_>>(),
        "notes": plan.notes,
    })
}
