//! What a plan consists of once its backend is chosen: patterns, partitions, what lies where, limits, and what to know.

use std::collections::BTreeMap;

use prism_adapters::kafka::KafkaConfig;

use super::choose::Chosen;
use super::needs::Demand;
use super::routes::{PARTITION_WRITES, PARTITIONS_MAX, REPLICATION, figures};
use super::{Draft, MESSAGE_BYTES, Part, Pattern, PlanLimits, Rule, Target};
use crate::config::described::Count;
use crate::config::platform::{BackendPin, BackendType, Tuning};
use crate::config::request::Api;
use crate::config::units::{show_bytes, show_duration, show_rate};
use crate::config::{Backend, BackendKind, Durability, Origin, Setting, Topics};

/// The patterns, in the order in which a request meets them.
pub(super) fn patterns(
    draft: &mut Draft<'_>,
    api: Api,
    demand: &Demand,
    target: Target,
) -> Vec<Pattern> {
    let request = &draft.document.request;
    let policies = &request.policies;
    let settings = &draft.input.platform.patterns.0;
    let mut asked: Vec<(Pattern, String, Origin)> = Vec::new();
    if let Some(pii) = policies.pii_handling.filter(|switch| switch.value.0) {
        asked.push((Pattern::Encrypt, "policies.pii_handling".into(), pii.origin));
    }
    if let Some(message) = demand.message {
        let most = figures(target, api).message;
        let threshold = settings.claim_check.threshold.map(|threshold| threshold.value.0);
        if let Some(threshold) =
            threshold.map(|set| set.min(most)).filter(|of| message.value.0 > *of)
        {
            let because = format!(
                "max_message_size {} is above the platform's threshold, {}",
                message.value,
                show_bytes(threshold)
            );
            asked.push((Pattern::ClaimCheck, because, message.origin));
        }
    }
    if demand.durability > Durability::Memory && api != Api::Reader {
        let because = format!("durability is {}", demand.durability.name());
        asked.push((Pattern::Wal, because, request.client_api.origin));
    }
    if api == Api::Transact && has_outbox(draft, target) {
        let because = "transact: messages leave with the transaction that they belong to";
        asked.push((Pattern::Outbox, because.into(), request.client_api.origin));
    }
    if let (Some(origin), Api::KeyValue | Api::Document) = (demand.replay, api) {
        asked.push((Pattern::Cdc, format!("replay of what changed in {api}"), origin));
    }
    if let (Some(retention), Some(after)) = (demand.retention, settings.tiered_storage.after)
        && retention.value > after.value
    {
        let because = format!(
            "retention {} is longer than the {} that data stays hot",
            retention.value, after.value
        );
        asked.push((Pattern::TieredStorage, because, retention.origin));
    }
    if let Some(audit) = policies.audit_logging.filter(|switch| switch.value.0) {
        asked.push((Pattern::Audit, "policies.audit_logging".into(), audit.origin));
    }
    if !asked.iter().any(|(pattern, ..)| *pattern == Pattern::Wal) {
        let because = format!("durability is {}", demand.durability.name());
        draft.decide("log", "none", because, vec![]);
    }
    let mut patterns = Vec::new();
    for (pattern, because, origin) in asked {
        if !draft.input.capabilities.patterns.contains(&pattern) {
            let message = format!(
                "it needs the pattern {pattern} ({because}), which this build does not carry out yet"
            );
            draft.refuse(Rule::NotInThisBuild, origin, message, without(pattern));
        }
        draft.decide("pattern", pattern.name(), because, vec![]);
        patterns.push(pattern);
    }
    patterns
}

/// Whether the build stores messages with the data there and relays them; where it does not, it refuses them call by call.
fn has_outbox(draft: &Draft<'_>, target: Target) -> bool {
    let capabilities = draft.input.capabilities;
    capabilities.patterns.contains(&Pattern::Outbox)
        && target.kinds().iter().all(|kind| capabilities.outboxes.contains(kind))
}

/// What does without a pattern.
fn without(pattern: Pattern) -> &'static str {
    match pattern {
        Pattern::Encrypt => {
            "keep personal data out of it, or encrypt in the application, and leave `pii_handling` out"
        }
        Pattern::ClaimCheck => {
            "ask for a `max_message_size` below the threshold, and keep what is larger elsewhere"
        }
        Pattern::Wal => "ask for `durability: best-effort`",
        Pattern::Outbox => "ask for `client_api: keyvalue`, whose Transact has no messages",
        Pattern::Cdc => "leave `replay` out",
        Pattern::TieredStorage => "ask for a `retention` that stays hot",
        Pattern::Audit => "leave `audit_logging` out; the log of the backend may do",
    }
}

pub(super) fn partitions(draft: &mut Draft<'_>, demand: &Demand, chosen: &Chosen) -> u32 {
    let needs = &draft.document.request.needs;
    let has = |kind| chosen.target.kinds().contains(&kind);
    for (field, setting, kind) in [
        (Tuning::KafkaPartitions, needs.kafka_partitions, BackendType::Kafka),
        (Tuning::PostgresPoolSize, needs.postgres_pool_size, BackendType::Postgres),
    ] {
        let Some(setting) = setting else { continue };
        if !has(kind) {
            let message =
                format!("`{field}` tunes {kind}, and the plan lies on {}", chosen.target.name());
            draft.refuse(Rule::TuningWithoutUse, setting.origin, message, "leave it out");
        } else if chosen.is_served && !draft.input.capabilities.tuning.contains(&field) {
            let message = format!("`{field}` for a single namespace is not in this build yet");
            let remedy = draft.ask_platform("to tune the backend as a whole, and leave it out");
            draft.refuse(Rule::NotInThisBuild, setting.origin, message, remedy);
        }
    }
    if !has(BackendType::Kafka) {
        let because = format!("{} keeps a namespace's order as a whole", chosen.target.name());
        draft.decide("partitions", "1", because, vec![]);
        return 1;
    }
    let pinned = chosen.pin.as_ref().and_then(|pin| pin.partitions);
    let (partitions, because) = if let Some(tuned) = needs.kafka_partitions {
        (tuned.value.0, "kafka_partitions".to_owned())
    } else if let Some(pinned) = pinned {
        (pinned.value.0, "the platform says so".to_owned())
    } else if let Some(writes) = demand.writes {
        let partitions = (writes.value.0 / PARTITION_WRITES).ceil().max(1.0) as u32;
        let each = show_rate(PARTITION_WRITES);
        (partitions.min(PARTITIONS_MAX), format!("write_rps {}, {each} for each", writes.value))
    } else {
        (1, "no write_rps is told".to_owned())
    };
    if let Some(topics) = topics_as_made(draft, chosen) {
        check_topics(draft, demand, chosen, &topics, (partitions, &because));
        let because =
            format!("so the topics of {} are made; asked for: {partitions}", chosen.names[0]);
        draft.decide("partitions", topics.partitions.to_string(), because, vec![]);
        return topics.partitions;
    }
    // What was said for every topic there is the least, unless somebody has said otherwise of this namespace.
    let made = cluster(draft, chosen).map_or(0, |cluster| cluster.partitions);
    if needs.kafka_partitions.is_none() && pinned.is_none() && partitions < made {
        let because =
            format!("topics of {} have so many; asked for: {partitions}", chosen.names[0]);
        draft.decide("partitions", made.to_string(), because, vec![]);
        return made;
    }
    draft.decide("partitions", partitions.to_string(), because, vec![]);
    partitions
}

/// How the build makes the topics of a Kafka, where it makes them alike for every namespace there.
fn topics_as_made(draft: &Draft<'_>, chosen: &Chosen) -> Option<KafkaConfig> {
    let is_tuned = draft.input.capabilities.tuning.contains(&Tuning::KafkaPartitions);
    if is_tuned { None } else { cluster(draft, chosen) }
}

/// The Kafka of a plan that the build serves.
fn cluster(draft: &Draft<'_>, chosen: &Chosen) -> Option<KafkaConfig> {
    if !chosen.is_served {
        return None;
    }
    let named = |backend: &&Backend| chosen.names.contains(&backend.name);
    draft.input.platform.backends.configured.iter().filter(named).find_map(|backend| match &backend
        .kind
    {
        BackendKind::Kafka(kafka) => Some((**kafka).clone()),
        _ => None,
    })
}

/// Refuses what asks for other topics than are made.
fn check_topics(
    draft: &mut Draft<'_>,
    demand: &Demand,
    chosen: &Chosen,
    topics: &KafkaConfig,
    (partitions, because): (u32, &str),
) {
    let api = draft.document.request.client_api.origin;
    let name = &chosen.names[0];
    let pin = |of: fn(&BackendPin) -> Option<Setting<Count>>| chosen.pin.as_ref().and_then(of);
    let (pinned, copies) = (pin(|pin| pin.partitions), pin(|pin| pin.replication));
    let mut wrong = Vec::new();
    if partitions > topics.partitions || pinned.is_some_and(|pin| pin.value.0 != topics.partitions)
    {
        let origin = demand.writes.map_or(api, |writes| writes.origin);
        let made = topics.partitions;
        let what =
            format!("{partitions} partitions ({because}), and its topics are made with {made}");
        wrong.push((origin, what, format!("partitions: {partitions}")));
    }
    if let Some(copies) =
        copies.filter(|copies| topics.replication.map(u32::from) != Some(copies.value.0))
    {
        let what = format!(
            "{copies} copies, and its topics are not made with so many",
            copies = copies.value
        );
        wrong.push((api, what, format!("replication: {}", copies.value)));
    }
    if let (Some(asked), Some(kept)) = (demand.retention, topics.retention)
        && asked.value.0 > kept
    {
        let what = format!(
            "a retention of {}, and its topics keep records for {}",
            asked.value,
            show_duration(kept)
        );
        wrong.push((asked.origin, what, format!("retention: {}", asked.value)));
    }
    for (origin, what, setting) in wrong {
        let message = format!("it needs {what}: this build makes the topics of {name} all alike");
        let remedy = draft.ask_platform(&format!("to write `{setting}` for the backend `{name}`"));
        draft.refuse(Rule::NotInThisBuild, origin, message, remedy);
    }
}

/// What lies where, and with which settings.
pub(super) fn parts(
    draft: &mut Draft<'_>,
    chosen: &Chosen,
    partitions: u32,
    topics: Topics,
) -> Vec<Part> {
    let request = &draft.document.request;
    let (namespace, api) = (&request.namespace.value.0, request.client_api.value);
    let is_composed = chosen.target.kinds().len() > 1;
    let mut parts = Vec::new();
    for (kind, name) in chosen.target.kinds().into_iter().zip(&chosen.names) {
        let mut settings = BTreeMap::new();
        let holds = match kind {
            BackendType::Kafka => {
                settings.insert("partitions", partitions);
                let made = cluster(draft, chosen);
                let pinned = chosen.pin.as_ref().and_then(|pin| pin.replication);
                let own = chosen.own.as_ref().and_then(|own| own.replication_factor);
                let replication = match made {
                    Some(made) => {
                        let asked = pinned.or(own).map(|copies| copies.value.0);
                        asked.or(made.replication.map(u32::from))
                    }
                    None => Some(pinned.or(own).map_or(REPLICATION, |copies| copies.value.0)),
                };
                settings.extend(replication.map(|copies| ("replication", copies)));
                match api {
                    Api::Queue => format!("messages, topic {namespace}-queue"),
                    _ => format!("topics {namespace}.<name>"),
                }
            }
            BackendType::Postgres => {
                if let Some(pool) = request.needs.postgres_pool_size {
                    settings.insert("pool_size", pool.value.0);
                }
                match is_composed {
                    true => format!(
                        "delivery state (receipts, attempts, schedule, dead letters), schema {namespace}"
                    ),
                    false => format!("schema {namespace}"),
                }
            }
            BackendType::Redis if topics == Topics::Log => format!("streams {namespace}:<topic>"),
            BackendType::Redis if api == Api::PubSub => format!("channels {namespace}.<topic>"),
            BackendType::Redis if api == Api::Queue => format!("keys {namespace}:<queue>:…"),
            BackendType::Redis => format!("keys {namespace}:<key>"),
            BackendType::Nats => {
                // Where nothing is said, its streams are made as its entry under `backends` says.
                let pinned = chosen.pin.as_ref().and_then(|pin| pin.replication);
                let own = chosen.own.as_ref().and_then(|own| own.replication_factor);
                let copies = pinned.or(own).map(|copies| copies.value.0);
                settings.extend(copies.map(|copies| ("replication", copies)));
                format!("subjects {namespace}.<name>")
            }
            BackendType::Memstore => "in the process".to_owned(),
            _ => format!("data of {namespace}"),
        };
        parts.push(Part {
            backend: name.clone(),
            kind,
            connection: chosen.own.as_ref().map(|own| own.connection.value.text.clone()),
            holds,
            settings,
            in_this_build: draft.input.capabilities.has(kind),
        });
    }
    parts
}

pub(super) fn limits(draft: &Draft<'_>, target: Target) -> PlanLimits {
    let most = figures(target, draft.document.request.client_api.value).message;
    let needs = &draft.document.request.needs;
    let quotas = draft.quotas();
    PlanLimits {
        message_bytes_max: needs
            .max_message_size
            .map_or(MESSAGE_BYTES.min(most), |size| size.value.0),
        writes: needs.write_rps.map(|rate| rate.value.0),
        reads: needs.read_rps.map(|rate| rate.value.0),
        data_bytes: needs.data_size.map(|size| size.value.0),
        in_flight_bytes_max: quotas.bytes_in_flight.map(|size| size.value.0),
        backlog_records_max: quotas.backlog.map(|count| u64::from(count.value.0)),
        quotas: crate::config::Quotas {
            requests_per_second: quotas.requests.map(|rate| rate.value.0),
            bytes_per_second: quotas.bytes.map(|rate| rate.value.0),
            subscriptions: quotas.subscriptions.map(|count| count.value.0),
        },
    }
}

/// What the plan's readers should know about what this build leaves to others.
pub(super) fn notes(draft: &mut Draft<'_>, api: Api, demand: &Demand, target: Target) {
    let request = &draft.document.request;
    let (needs, access) = (&request.needs, &request.access);
    let has_access = !access.owners.is_empty() || !access.consumers.is_empty();
    if has_access && !draft.input.capabilities.grants {
        draft.notes.push(
            "`access` is not enforced by this build: whoever reaches its port may call this namespace".into(),
        );
    }
    if api == Api::Transact && !has_outbox(draft, target) {
        draft.notes.push(format!(
            "messages of Write and Transaction are refused (OUTBOX_NOT_OFFERED): this build keeps no outbox in {} yet",
            target.name()
        ));
    }
    if let Some(ttl) = needs.ttl {
        draft.notes.push(format!(
            "callers give `ttl` with each write ({} here); Prism adds none",
            ttl.value
        ));
    }
    if let Some(timeout) = needs.visibility_timeout {
        draft.notes.push(format!(
            "callers give `visibility_timeout` with Receive ({} here)",
            timeout.value
        ));
    }
    if let Some(deliveries) = needs.max_deliveries {
        let deliveries = deliveries.value;
        draft.notes.push(format!(
            "ConfigureDeadLetter sets `max_deliveries` for each queue ({deliveries} here)"
        ));
    }
    if let Some(retention) = demand.retention {
        let asked = format!("retention {}", retention.value);
        draft.decide("retention", retention.value.to_string(), asked, vec![]);
        let keeps_all = target == Target::of(BackendType::Memstore)
            || target == Target::of(BackendType::Redis) && matches!(api, Api::Stream | Api::Queue);
        let is_shaped = target.kinds().contains(&BackendType::Kafka)
            && draft.input.capabilities.tuning.contains(&Tuning::KafkaPartitions);
        let how = match (keeps_all, api) {
            (true, Api::Queue) => "a message stays until it is acknowledged",
            (true, Api::Stream) => {
                "nothing is removed before; SetRetention narrows it for each stream"
            }
            (true, _) => "nothing is removed before",
            (false, _) if is_shaped => {
                "topics are made to keep it that long; one that is there already stays as it is"
            }
            (false, _) => {
                "the backend has to be set to keep it that long; this build does not set it there"
            }
        };
        draft.notes.push(format!("retention: {how}"));
    }
}
