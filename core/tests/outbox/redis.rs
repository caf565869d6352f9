//! The outbox in Redis: entries of a stream beside the data.

use std::collections::BTreeSet;

use prism_proto::prism::transact::v1 as transact;
use prism_proto::prism::r#type::v1::{Condition, condition::Requirement};

use super::harness::{Caller, directory, run, serve};
use super::postgres::{wait_until, write_jobs_until_killed};
use super::servers::{OwnRedis, redis_cli};
use super::{Journal, arrived, message, put, queue, stream, values, write, write_with};

const LEVELS: [&str; 3] = ["at-memory", "at-wal", "at-strong"];

/// A ledger in one Redis at each level, and targets: a queue here, a queue there, a stream on another Redis.
fn config(ledger: &OwnRedis, far: &OwnRedis) -> String {
    let mut config = format!(
        "wal: {{segment_bytes: 20MiB}}\nbackends:\n  \
         - {{name: cache, type: redis, address: \"{}\"}}\n  \
         - {{name: away, type: redis, address: \"{}\"}}\nnamespaces:\n  \
         - {{name: jobs, client_api: queue}}\n  \
         - {{name: there, client_api: queue, backend: cache, durability: memory}}\n  \
         - {{name: far, client_api: stream, backend: away, durability: memory, backlog_records_max: 1}}\n  \
         - {{name: kv, client_api: keyvalue, backend: cache, durability: memory}}\n",
        ledger.address, far.address
    );
    for level in ["memory", "wal", "strong"] {
        let line = format!(
            "{{name: at-{level}, client_api: transact, backend: cache, durability: {level}}}"
        );
        config += &format!("  - {line}\n");
    }
    config
}

#[test]
fn messages_are_entries_beside_the_data_in_redis_until_they_are_relayed() {
    let (ledger, mut far) = (OwnRedis::start(&[]), OwnRedis::start(&[]));
    let directory = directory();
    let setup = serve(directory.path()).shards(2).config(&config(&ledger, &far));
    let address = ledger.address;
    let cli = move |arguments: &[&str]| redis_cli(address, 0, arguments);
    far.kill();
    let server = setup.start();
    let listen = server.listen;
    run(async move {
        // The target's own backlog takes one, and then no more.
        let caller = Caller::to(listen, "at-wal").await;
        write(&caller, "fill", vec![message(("far", "fill"), "", "0")]).await.expect("written");
        wait_until(|| cli(&["XLEN", "_prism:outbox:at-wal"]) == "0").await;
        for namespace in LEVELS {
            let caller = Caller::to(listen, namespace).await;
            let mut first = message(("jobs", namespace), "k", "1");
            let attributes = [("kind".to_owned(), "paid".to_owned())].into();
            let sent = first.message.as_mut().unwrap();
            (sent.attributes, sent.priority) = (attributes, Some(3));
            let messages = vec![
                first,
                message(("jobs", namespace), "k", "2"),
                message(("far", namespace), "", "3"),
                message(("there", namespace), "", "4"),
            ];
            let answer = write(&caller, "one", messages).await.expect("written");
            assert!(answer.committed);
            let ids = answer.message_ids;
            assert_eq!(ids.len(), 4);
            let jobs = arrived(&caller, "jobs", &queue(namespace), 2).await;
            assert_eq!(jobs, [(ids[0].clone(), "1".to_owned()), (ids[1].clone(), "2".to_owned())]);
            let there = arrived(&caller, "there", &queue(namespace), 1).await;
            assert_eq!(there, [(ids[3].clone(), "4".to_owned())]);
            // What waits can be read; what has arrived is gone.
            let outbox = format!("_prism:outbox:{namespace}");
            wait_until(|| cli(&["XLEN", &outbox]) == "1").await;
            let entry = cli(&["XRANGE", &outbox, "-", "+"]);
            let lines: Vec<&str> = entry.lines().collect();
            for pair in [
                ["target-namespace", "far"],
                ["target", namespace],
                ["payload", "3"],
                ["id", &ids[2]],
            ] {
                assert!(lines[1..].chunks(2).any(|chunk| chunk == pair), "{pair:?}: {entry}");
            }
            let exists =
                Condition { key: "one".to_owned(), requirement: Some(Requirement::Absent(())) };
            let request = transact::WriteRequest {
                namespace: namespace.to_owned(),
                conditions: vec![exists],
                operations: vec![put("one", "two")],
                messages: vec![message(("jobs", namespace), "k", "never")],
            };
            let answer = write_with(&caller, &[], request).await.expect("answered");
            assert!(!answer.committed && answer.failures.len() == 1, "{answer:?}");
            assert!(answer.message_ids.is_empty());
            assert_eq!(cli(&["XLEN", &outbox]), "1");
            // What was appended by hand is relayed as well, at the latest with the next message.
            let by_hand = ["target-namespace", "jobs", "target", namespace, "ordering-key", "k"];
            cli(&[&["XADD", &outbox, "*"][..], &by_hand, &["payload", "by hand"]].concat());
            write(&caller, "one", vec![message(("jobs", namespace), "k", "5")])
                .await
                .expect("written");
            let jobs = arrived(&caller, "jobs", &queue(namespace), 4).await;
            assert_eq!(values(&jobs), ["1", "2", "by hand", "5"]);
        }
        let kv = Caller::to(listen, "kv").await;
        let refused = write(&kv, "a", vec![message(("jobs", "q"), "", "x")]).await.unwrap_err();
        assert_eq!(refused.reason, "OUTBOX_NOT_OFFERED");
    });
    server.wait_for_metric("prism_outbox_pending_messages", |pending| pending == 3.0);
    server.kill();
    let server = setup.start();
    server.wait_for_metric("prism_outbox_pending_messages", |pending| pending == 3.0);
    far.restart();
    let listen = server.listen;
    run(async move {
        for namespace in LEVELS {
            let caller = Caller::to(listen, namespace).await;
            let far = arrived(&caller, "far", &stream(namespace), 1).await;
            assert!(values(&far).iter().all(|value| *value == "3"));
            let outbox = format!("_prism:outbox:{namespace}");
            wait_until(|| cli(&["XLEN", &outbox]) == "0").await;
        }
    });
    server.wait_for_metric("prism_outbox_pending_messages", |pending| pending == 0.0);
    assert_eq!(server.metric("prism_outbox_dead_letters_total"), 0.0);
    server.assert_well();
    server.stop();
}

#[test]
fn a_kill_between_the_commit_in_redis_and_the_relay_loses_nothing_and_repeats_nothing() {
    const ROUNDS: u64 = 3;
    let (ledger, far) = (OwnRedis::start(&[]), OwnRedis::start(&[]));
    let directory = directory();
    let setup = serve(directory.path()).shards(2).config(&config(&ledger, &far));
    let mut journal = Journal::default();
    for round in 0..ROUNDS {
        let server = setup.start();
        let listen = server.listen;
        let level = LEVELS[round as usize % LEVELS.len()];
        let writer =
            std::thread::spawn(move || run(write_jobs_until_killed(listen, level, journal)));
        let relayed = (3 * round) as f64;
        server.wait_for_metric("prism_outbox_relayed_total", |count| count > relayed);
        server.kill();
        journal = writer.join().unwrap();
    }
    let server = setup.start();
    let (listen, sent, acknowledged) = (server.listen, journal.sent, journal.acknowledged);
    run(async move {
        let mut committed = BTreeSet::new();
        for namespace in LEVELS {
            let caller = Caller::to(listen, namespace).await;
            // What was under way when the process ended arrives before this.
            write(&caller, "last", vec![message(("jobs", "q"), "k", "last")])
                .await
                .expect("written");
            for number in 0..sent {
                if caller.get(&number.to_string()).await.is_some() {
                    committed.insert(number);
                }
            }
        }
        assert!(committed.is_superset(&acknowledged));
        let caller = Caller::to(listen, "at-wal").await;
        let jobs = arrived(&caller, "jobs", &queue("q"), committed.len() + LEVELS.len()).await;
        let numbers: Vec<usize> = jobs.iter().filter_map(|(_, value)| value.parse().ok()).collect();
        assert_eq!(numbers.len(), committed.len(), "each once");
        assert_eq!(numbers.iter().copied().collect::<BTreeSet<_>>(), committed);
    });
    server.assert_well();
    server.stop();
}
