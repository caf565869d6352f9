//! The outbox in PostgreSQL: rows beside the data.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use prism_io::rt;
use prism_proto::prism::transact::v1 as transact;
use prism_proto::prism::r#type::v1::{Condition, condition::Requirement};

use super::harness::{Caller, PATIENCE, directory, run, serve};
use super::servers::{self, OwnRedis};
use super::{Journal, arrived, message, put, queue, stream, values, write, write_with};

/// A ledger in PostgreSQL at each level, and targets: a queue here, a stream on a Redis.
fn with_postgres(redis: SocketAddr, folder: &std::path::Path, database: &str) -> String {
    let address = servers::empty_database(database);
    let password = folder.join("postgres-password");
    std::fs::write(&password, "prism\n").unwrap();
    let mut config = format!(
        "wal: {{segment_bytes: 20MiB}}\nbackends:\n  \
         - {{name: cache, type: redis, address: \"{redis}\"}}\n  \
         - {{name: db, type: postgres, address: \"{address}\", user: prism, database: {database}, \
         password_file: \"{}\"}}\nnamespaces:\n  \
         - {{name: jobs, client_api: queue}}\n  \
         - {{name: far, client_api: stream, backend: cache, durability: memory, backlog_records_max: 1}}\n  \
         - {{name: rows, client_api: queue, backend: db, durability: wal}}\n  \
         - {{name: kv, client_api: keyvalue, backend: db, durability: memory}}\n",
        password.display()
    );
    for level in ["memory", "wal", "strong"] {
        let line =
            format!("{{name: at-{level}, client_api: transact, backend: db, durability: {level}}}");
        config += &format!("  - {line}\n");
    }
    config
}

const LEVELS: [&str; 3] = ["at-memory", "at-wal", "at-strong"];

#[test]
fn messages_are_rows_beside_the_data_in_postgres_until_they_are_relayed() {
    const DATABASE: &str = "prism_outbox";
    let mut redis = OwnRedis::start(&[]);
    let directory = directory();
    let config = with_postgres(redis.address, directory.path(), DATABASE);
    let database = servers::address("postgres");
    let psql = move |statements: &str| servers::psql(database, DATABASE, statements);
    let setup = serve(directory.path()).shards(2).config(&config);
    redis.kill();
    let server = setup.start();
    let listen = server.listen;
    run(async move {
        // The target's own backlog takes one, and then no more.
        let caller = Caller::to(listen, "at-wal").await;
        write(&caller, "fill", vec![message(("far", "fill"), "", "0")]).await.expect("written");
        wait_until(|| psql("SELECT count(*) FROM \"at-wal\".outbox") == "0").await;
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
                message(("rows", namespace), "", "4"),
            ];
            let answer = write(&caller, "one", messages).await.expect("written");
            assert!(answer.committed);
            let ids = answer.message_ids;
            let jobs = arrived(&caller, "jobs", &queue(namespace), 2).await;
            assert_eq!(jobs, [(ids[0].clone(), "1".to_owned()), (ids[1].clone(), "2".to_owned())]);
            let rows = arrived(&caller, "rows", &queue(namespace), 1).await;
            assert_eq!(rows, [(ids[3].clone(), "4".to_owned())]);
            // What waits can be read; what has arrived is gone.
            let rows = format!(
                "SELECT target_namespace, target, convert_from(payload, 'UTF8'), message_id FROM \"{namespace}\".outbox ORDER BY id"
            );
            let waits = format!("far|{namespace}|3|{}", ids[2]);
            wait_until(|| psql(&rows) == waits).await;
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
            assert_eq!(psql(&rows), waits);
            // A row that was written by hand is relayed as well, at the latest with the next message.
            psql(&format!(
                "INSERT INTO \"{namespace}\".outbox (target_namespace, target, ordering_key, payload) \
                 VALUES ('jobs', '{namespace}', 'k', 'by hand')"
            ));
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
    redis.restart();
    let listen = server.listen;
    run(async move {
        for namespace in LEVELS {
            let caller = Caller::to(listen, namespace).await;
            let far = arrived(&caller, "far", &stream(namespace), 1).await;
            assert!(values(&far).iter().all(|value| *value == "3"));
            let rows = format!("SELECT count(*) FROM \"{namespace}\".outbox");
            wait_until(|| psql(&rows) == "0").await;
        }
    });
    server.wait_for_metric("prism_outbox_pending_messages", |pending| pending == 0.0);
    assert_eq!(server.metric("prism_outbox_dead_letters_total"), 0.0);
    server.assert_well();
    server.stop();
}

/// Waits for what cannot be subscribed to.
pub(super) async fn wait_until(is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "it never came to that");
        rt::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_kill_between_the_commit_in_postgres_and_the_relay_loses_nothing_and_repeats_nothing() {
    const ROUNDS: u64 = 5;
    let redis = OwnRedis::start(&[]);
    let directory = directory();
    let config = with_postgres(redis.address, directory.path(), "prism_outbox_kills");
    let setup = serve(directory.path()).shards(2).config(&config);
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
            for number in 0..sent {
                if caller.get(&number.to_string()).await.is_some() {
                    committed.insert(number);
                }
            }
            write(&caller, "last", vec![message(("jobs", "q"), "k", "last")])
                .await
                .expect("written");
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

pub(super) async fn write_jobs_until_killed(
    listen: SocketAddr,
    namespace: &'static str,
    mut journal: Journal,
) -> Journal {
    let caller = Caller::to(listen, namespace).await;
    loop {
        let number = journal.sent;
        journal.sent += 1;
        let text = number.to_string();
        match write(&caller, &text, vec![message(("jobs", "q"), "k", &text)]).await {
            Ok(answer) => {
                assert!(answer.committed);
                journal.acknowledged.insert(number);
            }
            Err(refusal) if refusal.is_for_want_of_log() => rt::yield_now().await,
            Err(_) => return journal,
        }
    }
}
