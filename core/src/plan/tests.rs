//! What the planner says, to the letter; that it says the same again; and that it never claims what a build cannot run.

use prism_proto::catalogue::{Interfaces, Model};
use serde_json::Value;

use super::*;
use crate::config::described::Scalar;
use crate::config::platform::{Purpose, Tuning, read_platform};
use crate::config::request::{load_requests, read_requests};
use crate::config::tests::check_transcript;
use crate::config::units::date;

fn interfaces(names: &str) -> Interfaces {
    use prism_proto::catalogue::Interface;
    let mut all = Interfaces::NONE;
    for name in names.split(' ') {
        match Model::by_name(name) {
            Some(model) => all = all.union(model.interfaces()),
            None => all = all.with(Interface::by_name(name).unwrap_or_else(|| panic!("{name}"))),
        }
    }
    all
}

/// A build with adapters for everything, each as far as its backend can serve.
fn whole() -> Capabilities {
    use BackendType::*;
    let offer = |target, names: &str| {
        (target, Offer { interfaces: interfaces(names), durability: Durability::Strong })
    };
    let one = Target::of;
    Capabilities {
        targets: vec![
            (one(Memstore), Offer { interfaces: Interfaces::ALL, durability: Durability::Strong }),
            offer(
                one(Redis),
                "keyvalue pubsub_basic pubsub_wildcards stream_basic stream_consumer_groups queue list set sortedset",
            ),
            offer(
                one(Postgres),
                "keyvalue queue timeseries document graph_basic pubsub_basic pubsub_persistent",
            ),
            offer(
                one(Kafka),
                "stream pubsub_basic pubsub_persistent pubsub_filtering pubsub_ordering",
            ),
            offer(
                one(Nats),
                "pubsub keyvalue_basic keyvalue_ttl queue_basic queue_visibility stream_basic",
            ),
            offer(Target::KAFKA_AND_POSTGRES, "queue"),
            offer(one(ClickHouse), "timeseries"),
        ],
        topic_logs: Vec::new(),
        apis: Api::ALL.to_vec(),
        patterns: Pattern::ALL.to_vec(),
        outboxes: BackendType::ALL.to_vec(),
        tuning: Tuning::ALL.to_vec(),
        own_backends: vec![Redis],
        grants: true,
    }
}

/// A build with the embedded store, Redis and PostgreSQL for key-value, as the first ones were.
fn small() -> Capabilities {
    let offer = |kind, names: &str| {
        (Target::of(kind), Offer { interfaces: interfaces(names), durability: Durability::Strong })
    };
    Capabilities {
        targets: vec![
            offer(
                BackendType::Memstore,
                "keyvalue queue pubsub_basic pubsub_wildcards stream_basic",
            ),
            offer(BackendType::Redis, "keyvalue"),
            offer(BackendType::Postgres, "keyvalue"),
        ],
        topic_logs: Vec::new(),
        apis: vec![Api::KeyValue, Api::PubSub, Api::Queue, Api::Stream],
        patterns: vec![Pattern::Wal],
        outboxes: Vec::new(),
        tuning: vec![Tuning::Backend],
        own_backends: Vec::new(),
        grants: false,
    }
}

fn outcomes(requests: &str, platform: &str, capabilities: &Capabilities) -> Vec<Outcome> {
    let documents = read_requests(&[("request.yaml".to_owned(), requests.to_owned())]);
    let documents = documents.unwrap_or_else(|wrong| panic!("{}", wrong[0]));
    let (platform, _) = read_platform("platform.yaml", platform, Purpose::Plan)
        .unwrap_or_else(|wrong| panic!("{wrong}"));
    let today = date("2026-11-26").unwrap();
    let placed = BTreeMap::from([(
        "placed".to_owned(),
        Placed { backend: Some("cache".to_owned()), home: 2 },
    )]);
    plan_all(
        &documents,
        &Input { platform: &platform, capabilities, shards: 4, today, placed: &placed },
    )
}

fn shown(outcomes: &[Outcome]) -> String {
    let texts: Vec<_> = outcomes.iter().map(outcome_text).collect();
    texts.join("\n").trim_end().to_owned()
}

/// A case is a request, a line `+++`, and a platform.
fn case(text: &str, capabilities: &Capabilities) -> String {
    let (requests, platform) = text.split_once("+++\n").unwrap_or((text, ""));
    shown(&outcomes(requests, platform, capabilities))
}

fn examples() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

#[test]
fn choices_and_their_reasons_are_these() {
    let transcript = include_str!("../../tests/golden/plans.txt");
    check_transcript("plans.txt", transcript, 20, |text| case(text, &whole()));
}

#[test]
fn every_refusal_can_be_provoked_and_says_what_would_lift_it() {
    let transcript = include_str!("../../tests/golden/plan_refusals.txt");
    check_transcript("plan_refusals.txt", transcript, 25, |text| case(text, &small()));
    for rule in Rule::ALL {
        assert!(transcript.contains(&format!(": {rule}: ")), "{rule} is in no case");
    }
}

/// Both with everything, and with what a small build offers: what it cannot run is refused, and shown as what it would be.
#[test]
fn the_examples_are_planned_so() {
    let transcript = include_str!("../../tests/golden/plan_examples.txt");
    let platform = std::fs::read_to_string(examples().join("platform.yaml")).unwrap();
    check_transcript("plan_examples.txt", transcript, 14, |text| {
        let (file, capabilities) = match text.trim_end().rsplit_once(' ') {
            Some((file, "whole")) => (file, whole()),
            Some((file, "small")) => (file, small()),
            _ => panic!("{text}"),
        };
        let requests = std::fs::read_to_string(examples().join("namespaces").join(file)).unwrap();
        shown(&outcomes(&requests, &platform, &capabilities))
    });
    for entry in std::fs::read_dir(examples().join("namespaces")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(transcript.contains(&format!("{name} whole\n")), "{name} has no case");
    }
}

#[test]
fn the_queue_of_the_concepts_is_a_log_with_kafka_and_postgres() {
    let text = "namespace: order-processing\nteam: payments\nclient_api: queue\nneeds:\n  durability: strong\n  retention: 30days\n  write_rps: 5000\n";
    let platform = "backends: [{name: k, type: kafka, brokers: [\"h:3\"]}, {name: p, type: postgres, address: \"h:1\", user: u}]";
    let outcomes = outcomes(text, platform, &whole());
    assert_eq!(outcomes[0].refusals, []);
    let plan = outcomes[0].plan.as_ref().unwrap();
    assert_eq!(plan.patterns, [Pattern::Wal]);
    let kinds: Vec<_> = plan.parts.iter().map(|part| part.kind).collect();
    assert_eq!(kinds, [BackendType::Kafka, BackendType::Postgres]);
    assert_eq!((plan.durability, plan.partitions), (Durability::Strong, 5));
}

fn topics_planned(
    build: &Capabilities,
    (needs, of_backend, pin): (&str, &str, &str),
) -> (BTreeMap<&'static str, u32>, Vec<String>) {
    let text = format!(
        "namespace: n\nteam: web\nclient_api: stream\nneeds: {{durability: strong, {needs}}}\n"
    );
    let platform = format!(
        "backends: [{{name: k, type: kafka, brokers: [\"h:3\"], {of_backend}}}]\nallowed_backends: [kafka]\n{pin}"
    );
    let outcome = outcomes(&text, &platform, build).remove(0);
    let part = outcome.plan.as_ref().expect("it fits").parts[0].settings.clone();
    (part, outcome.refusals.iter().map(ToString::to_string).collect::<Vec<_>>())
}

/// Each namespace's topics are made for it; what the backend says of all of them holds where nothing is said of one.
#[test]
fn topics_are_planned_for_each_namespace() {
    let build = Capabilities::of_this_build();
    for (case, partitions, replication) in [
        (("write_rps: 3k", "partitions: 6, replication: 2", ""), 6, Some(2)),
        (("write_rps: 7k, retention: 8days", "partitions: 6, retention: 7days", ""), 7, None),
        (
            ("", "partitions: 6", "placement: [{namespace: n, backend: {type: k, partitions: 3}}]"),
            3,
            None,
        ),
        (
            (
                "",
                "replication: 2",
                "placement: [{namespace: n, backend: {type: k, replication: 3}}]",
            ),
            4,
            Some(3),
        ),
    ] {
        let (settings, refusals) = topics_planned(&build, case);
        assert_eq!(refusals, [] as [String; 0], "{case:?}");
        let expected = std::iter::once(("partitions", partitions));
        let expected = expected.chain(replication.map(|copies| ("replication", copies)));
        assert_eq!(settings, expected.collect(), "{case:?}");
    }
}

#[test]
fn streams_of_a_nats_have_as_many_copies_as_their_placement_says() {
    let text = "namespace: n\nteam: web\nclient_api: stream\nneeds: {durability: strong}\n";
    let pin = "placement: [{namespace: n, backend: {type: b, replication: 3}}]";
    for (pin, settings) in [("", BTreeMap::new()), (pin, BTreeMap::from([("replication", 3)]))] {
        let platform = format!(
            "backends: [{{name: b, type: nats, address: \"h:1\"}}]\nallowed_backends: [nats]\n{pin}"
        );
        let outcome = outcomes(text, &platform, &Capabilities::of_this_build()).remove(0);
        assert_eq!(outcome.refusals, [], "{pin}");
        assert_eq!(outcome.plan.as_ref().expect("it fits").parts[0].settings, settings);
    }
}

/// A build that makes the topics of a backend all alike says how they are made, and refuses what asks for others.
#[test]
fn topics_are_planned_as_a_build_makes_them() {
    let build = Capabilities { tuning: vec![Tuning::Backend], ..Capabilities::of_this_build() };
    let plan = |needs, of_backend, pin| topics_planned(&build, (needs, of_backend, pin));
    let made = plan("write_rps: 3k", "partitions: 6, replication: 2", "");
    assert_eq!(made, (BTreeMap::from([("partitions", 6), ("replication", 2)]), vec![]));
    assert_eq!(
        plan("retention: 3days", "partitions: 1, retention: 7days", "").1,
        [] as [String; 0]
    );
    for (needs, of_backend, pin, says) in [
        ("write_rps: 7k", "partitions: 6", "", "7 partitions"),
        ("retention: 8days", "retention: 7days", "", "keep records for 7days"),
        (
            "",
            "partitions: 6",
            "placement: [{namespace: n, backend: {type: k, partitions: 8}}]",
            "8 partitions",
        ),
        (
            "",
            "replication: 2",
            "placement: [{namespace: n, backend: {type: k, replication: 3}}]",
            "3 copies",
        ),
    ] {
        let refusals = plan(needs, of_backend, pin).1;
        assert_eq!(refusals.len(), 1, "{refusals:?}");
        assert!(
            refusals[0].contains("NOT_IN_THIS_BUILD") && refusals[0].contains(says),
            "{refusals:?}"
        );
    }
}

#[test]
fn the_same_input_gives_the_same_plan_to_the_byte() {
    let platform = std::fs::read_to_string(examples().join("platform.yaml")).unwrap();
    let once = || {
        let documents = load_requests(&examples().join("namespaces")).unwrap();
        let (platform, _) = read_platform("platform.yaml", &platform, Purpose::Plan).unwrap();
        let (capabilities, today) = (whole(), date("2026-11-26").unwrap());
        let placed = BTreeMap::new();
        let input = Input {
            platform: &platform,
            capabilities: &capabilities,
            shards: 4,
            today,
            placed: &placed,
        };
        let outcomes = plan_all(&documents, &input);
        let json: Vec<Value> = outcomes.iter().map(outcome_json).collect();
        (shown(&outcomes), Value::from(json).to_string())
    };
    let first = once();
    for _ in 0..20 {
        assert_eq!(once(), first);
    }
}

/// Every API with every kind of need, on this build and on a small one: what is called served has nothing in it that the build
/// lacks.
#[test]
fn nothing_is_called_served_that_the_build_cannot_run() {
    let needs = [
        "",
        "durability: strong",
        "durability: eventual",
        "durability: best-effort",
        "ttl: 1h",
        "retention: 90days",
        "replay: true",
        "ordered: true",
        "write_rps: 5k",
        "write_rps: 200k",
        "data_size: 20GB",
        "max_message_size: 2MB",
        "latency: p99 < 3ms",
        "visibility_timeout: 30s",
        "dead_letters: true",
        "kafka_partitions: 9",
    ];
    let policies = ["", "pii_handling: true", "audit_logging: true"];
    let platform = "owner: {team: platform}
teams: [{name: platform, mode: expert}]
backends: [{name: k, type: kafka, brokers: [\"h:3\"]}, {name: p, type: postgres, address: \"h:1\", user: u}, {name: r, type: redis, address: \"h:1\"}, {name: n, type: nats, address: \"h:4\"}]
patterns: [{claim_check: {threshold: 1MB}}, {tiered_storage: {after: 7days}}]";
    let (platform, _) = read_platform("platform.yaml", platform, Purpose::Plan).unwrap();
    let (today, placed) = (date("2026-11-26").unwrap(), BTreeMap::new());
    let (mut served, mut refused) = (0, 0);
    for build in [Capabilities::of_this_build(), small()] {
        for api in Api::ALL {
            for (one, other) in
                needs.iter().flat_map(|one| needs.iter().map(move |other| (one, other)))
            {
                for policy in policies {
                    let needs =
                        if one == other { (*one).to_owned() } else { format!("{one}, {other}") };
                    let twice = one.split(':').next() == other.split(':').next() && one != other;
                    if twice {
                        continue;
                    }
                    let needs = needs.trim_start_matches(", ").trim_end_matches(", ");
                    let text = format!(
                        "namespace: n\nteam: platform\nclient_api: {api}\nneeds: {{{needs}}}\npolicies: {{{policy}}}\n"
                    );
                    let documents =
                        read_requests(&[("request.yaml".to_owned(), text.clone())]).unwrap();
                    let input = Input {
                        platform: &platform,
                        capabilities: &build,
                        shards: 4,
                        today,
                        placed: &placed,
                    };
                    let outcome = &plan(&documents[0], &input);
                    let Some(plan) = outcome.plan.as_ref().filter(|_| outcome.refusals.is_empty())
                    else {
                        assert!(
                            !outcome.refusals.is_empty(),
                            "neither planned nor refused:\n{text}"
                        );
                        refused += 1;
                        continue;
                    };
                    served += 1;
                    assert!(build.apis.contains(api), "{text}");
                    assert!(
                        plan.patterns.iter().all(|pattern| build.patterns.contains(pattern)),
                        "{text}"
                    );
                    assert!(
                        plan.parts.iter().all(|part| part.in_this_build && build.has(part.kind)),
                        "{text}"
                    );
                }
            }
        }
    }
    assert!(served > 100 && refused > 500, "{served} served, {refused} refused");
}

/// docs/planner.md has the tables as they are.
#[test]
fn the_documentation_has_the_rules() {
    let page = include_str!("../../../docs/planner.md");
    let tables = tables();
    assert!(page.contains(&tables), "docs/planner.md lacks:\n{tables}");
    let about = |form: Value| -> Vec<(String, String)> {
        let one = |one: &Value| {
            let text = |key: &str| one[key].as_str().unwrap().to_owned();
            (text("const"), text("description"))
        };
        form["oneOf"].as_array().unwrap().iter().map(one).collect()
    };
    for (name, meaning) in about(Rule::form()) {
        let row = format!("| `{name}` | {meaning} |");
        assert!(page.contains(&row), "docs/planner.md lacks: {row}");
    }
    for (name, meaning) in about(Pattern::form()) {
        let row = format!("| `{name}` | {meaning} |");
        assert!(page.contains(&row), "docs/planner.md lacks: {row}");
    }
}
