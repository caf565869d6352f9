//! Queues and topics on a real PostgreSQL that goes away: what the log promises of them meanwhile.

mod harness;
#[path = "../../adapters/tests/servers/mod.rs"]
mod servers;

use std::time::Instant;

use harness::{Caller, PATIENCE, Refusal, directory, run, serve};
use prism_io::grpc::Code;
use prism_proto::catalogue::Method;
use prism_proto::prism::r#type::v1::{Delivery, Message};
use prism_proto::prism::{pubsub::v1 as pubsub, queue::v1 as queue};
use servers::OwnPostgres;

fn message(text: &'static str) -> Option<Message> {
    Some(Message { payload: text.into(), ..Default::default() })
}

/// Sends a message; its identity, and whether the answer was that of an earlier call.
async fn send(
    caller: &Caller,
    key: Option<&str>,
    text: &'static str,
) -> Result<(String, bool), Refusal> {
    let (namespace, queue) = (caller.namespace.clone(), "mail".to_owned());
    let request = queue::SendRequest { namespace, queue, message: message(text) };
    let metadata: Vec<_> =
        key.iter().map(|key| ("prism-idempotency-key", key.as_bytes())).collect();
    let (sent, trailers) =
        caller.call::<queue::SendResponse>(Method::QUEUE_SEND, &metadata, &request).await?;
    let is_replayed = harness::calls::trailer(&trailers, "prism-replayed") == Some("true");
    Ok((sent.message_id, is_replayed))
}

async fn receive(caller: &Caller) -> Result<Vec<Delivery>, Refusal> {
    let (namespace, queue) = (caller.namespace.clone(), "mail".to_owned());
    let request =
        queue::ReceiveRequest { namespace, queue, max_messages: 10, ..Default::default() };
    let method = Method::QUEUE_RECEIVE;
    let (received, _) = caller.call::<queue::ReceiveResponse>(method, &[], &request).await?;
    Ok(received.deliveries)
}

#[test]
fn messages_wait_in_the_log_while_postgres_is_away_and_arrive_once() {
    let mut postgres = OwnPostgres::start(&[]);
    let directory = directory();
    let password = directory.path().join("postgres-password");
    std::fs::write(&password, "prism\n").unwrap();
    let config = format!(
        "backends:\n  - {{name: db, type: postgres, address: \"{}\", user: prism, database: postgres, password_file: \"{}\"}}\n\
         namespaces:\n  \
         - {{name: jobs, client_api: queue, backend: db, durability: wal}}\n  \
         - {{name: unlogged, client_api: queue, backend: db, durability: memory}}\n  \
         - {{name: events, client_api: pubsub, backend: db, durability: wal}}\n",
        postgres.address,
        password.display()
    );
    let server = serve(directory.path()).config(&config).start();
    let listen = server.listen;
    let before = run(async move {
        let jobs = Caller::to(listen, "jobs").await;
        send(&jobs.of("unlogged"), None, "x").await.expect("sent");
        send(&jobs, None, "before").await.expect("sent").0
    });
    server.wait_for_metric("prism_lane_pending_records", |pending| pending == 0.0);
    postgres.kill();
    let away = run(async move {
        let jobs = Caller::to(listen, "jobs").await;
        let refused =
            send(&jobs.of("unlogged"), None, "x").await.expect_err("there is no PostgreSQL");
        assert_eq!(refused.code, Code::Unavailable, "{refused:?}");
        assert!(refused.message.contains("postgres"), "{refused:?}");
        let (away, is_replayed) = send(&jobs, Some("once"), "away").await.expect("sent");
        assert!(!is_replayed);
        let again = send(&jobs, Some("once"), "away").await.expect("sent");
        assert_eq!(again, (away.clone(), true), "a retry has no second effect");
        let (namespace, topic) = ("events".to_owned(), "placed".to_owned());
        let request = pubsub::PublishRequest { namespace, topic, message: message("told") };
        let method = Method::PUBSUB_PUBLISH;
        let published = jobs.call::<pubsub::PublishResponse>(method, &[], &request).await;
        assert_eq!(published.expect("published").0.position, None, "only PostgreSQL knows it");
        away
    });
    postgres.restart();
    run(async move {
        let jobs = Caller::to(listen, "jobs").await;
        let (until, mut received) = (Instant::now() + PATIENCE, Vec::new());
        while received.len() < 2 {
            assert!(Instant::now() < until, "the lane does not drain: {received:?}");
            if let Ok(more) = receive(&jobs).await {
                received.extend(more.into_iter().filter_map(|delivery| delivery.message));
            }
        }
        let ids: Vec<_> = received.into_iter().map(|message| message.id).collect();
        assert_eq!(ids, [before, away], "each has the identity that its sender was told");
    });
    server.wait_for_metric("prism_lane_pending_records", |pending| pending == 0.0);
    assert_eq!(postgres.psql("SELECT count(*) FROM jobs.queue"), "2");
    assert_eq!(postgres.psql("SELECT convert_from(payload, 'UTF8') FROM events.pubsub"), "told");
    server.assert_well();
    server.stop();
}
