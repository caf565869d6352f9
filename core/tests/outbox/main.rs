//! Messages of transactions through the whole proxy: they leave if the transaction is committed, whatever dies or is away in between.

#[path = "../harness/mod.rs"]
mod harness;
mod postgres;
mod redis;
#[path = "../../../adapters/tests/servers/mod.rs"]
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use harness::{Caller, PATIENCE, Refusal, directory, run, serve, together};
use prism_io::grpc::Code;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1 as pubsub;
use prism_proto::prism::reader::v1 as reader;
use prism_proto::prism::reader::v1::source::Source;
use prism_proto::prism::transact::v1 as transact;
use prism_proto::prism::transact::v1::transaction_request::Request;
use prism_proto::prism::transact::v1::transaction_response::Response;
use prism_proto::prism::r#type::v1::message::DeliveryTime;
use prism_proto::prism::r#type::v1::{
    Condition, Message, Operation, Put, Start, condition::Requirement, operation::Action, start,
};
use prost::Message as _;
use servers::OwnRedis;

const NAMESPACES: &str = "wal: {segment_bytes: 20MiB}\nnamespaces:\n  \
    - {name: ledger, client_api: transact}\n  \
    - {name: volatile, client_api: transact, durability: memory}\n  \
    - {name: accounts, client_api: keyvalue, durability: strong}\n  \
    - {name: jobs, client_api: queue}\n  \
    - {name: passing, client_api: queue, durability: memory}\n  \
    - {name: news, client_api: pubsub}\n  \
    - {name: facts, client_api: stream}\n  \
    - {name: small, client_api: queue, max_message_size: 64KiB}\n  \
    - {name: view, client_api: reader, reads: [facts]}\n";

fn put(key: &str, value: &str) -> Operation {
    let put = Put { value: value.to_owned().into(), ..Put::default() };
    Operation { key: key.to_owned(), action: Some(Action::Put(put)) }
}

fn message(to: (&str, &str), ordering_key: &str, payload: &str) -> transact::OutboxMessage {
    let message = Message {
        ordering_key: ordering_key.to_owned(),
        payload: payload.to_owned().into(),
        ..Message::default()
    };
    transact::OutboxMessage {
        target_namespace: to.0.to_owned(),
        target: to.1.to_owned(),
        message: Some(message),
    }
}

async fn write_with(
    caller: &Caller,
    metadata: harness::calls::Fields<'_>,
    request: transact::WriteRequest,
) -> Result<transact::WriteResponse, Box<Refusal>> {
    let answer = caller.call(Method::TRANSACT_WRITE, metadata, &request).await;
    answer.map(|(answer, _)| answer).map_err(Box::new)
}

async fn write(
    caller: &Caller,
    key: &str,
    messages: Vec<transact::OutboxMessage>,
) -> Result<transact::WriteResponse, Box<Refusal>> {
    let namespace = caller.namespace.clone();
    let operations = vec![put(key, key)];
    let conditions = Vec::new();
    write_with(caller, &[], transact::WriteRequest { namespace, conditions, operations, messages })
        .await
}

/// Everything that a queue or a stream holds, without taking it: keys (of a message its id) and values; nothing while it is away.
async fn held(caller: &Caller, namespace: &str, source: &Source) -> Vec<(String, String)> {
    let request = reader::ReadRequest {
        namespace: namespace.to_owned(),
        source: Some(reader::Source { source: Some(source.clone()) }),
        start: Some(Start { start: Some(start::Start::Earliest(())) }),
        ..Default::default()
    };
    let path = Method::READER_READ.path();
    let begun = caller.client.stream(path, &[], &request.encode_to_vec(), PATIENCE).await;
    let (mut reply, mut records) = (begun.expect("begun"), Vec::new());
    loop {
        let page = match reply.next().await {
            Ok(Some(page)) => page,
            Ok(None) => break,
            // A backend that was away is not back at once.
            Err(failure) if failure.code == Code::Unavailable => return Vec::new(),
            Err(failure) => panic!("it cannot be read: {failure:?}"),
        };
        let page = reader::ReadResponse::decode(page).expect("a valid page");
        records.extend(page.records.into_iter().map(|one| {
            let text = String::from_utf8(one.value.to_vec()).expect("text");
            (one.key.unwrap_or_default(), text)
        }));
    }
    records
}

fn queue(name: &str) -> Source {
    Source::Queue(name.to_owned())
}

fn stream(name: &str) -> Source {
    Source::Stream(name.to_owned())
}

/// The same, as soon as there are so many or more.
async fn arrived(
    caller: &Caller,
    namespace: &str,
    source: &Source,
    count: usize,
) -> Vec<(String, String)> {
    let end = Instant::now() + PATIENCE;
    loop {
        let held = held(caller, namespace, source).await;
        if held.len() >= count {
            return held;
        }
        assert!(Instant::now() < end, "{} of {count} have arrived in {namespace}", held.len());
        rt::sleep(Duration::from_millis(2)).await;
    }
}

fn values(held: &[(String, String)]) -> Vec<&str> {
    held.iter().map(|(_, value)| value.as_str()).collect()
}

#[test]
fn messages_reach_queues_topics_and_streams_if_the_transaction_is_committed() {
    let directory = directory();
    let server = serve(directory.path()).shards(2).config(NAMESPACES).start();
    let listen = server.listen;
    run(async move {
        for namespace in ["ledger", "volatile", "accounts"] {
            let caller = Caller::to(listen, namespace).await;
            let (q, s) = (format!("q-{namespace}"), format!("s-{namespace}"));
            let subscribe = pubsub::SubscribeDurableRequest {
                namespace: "news".to_owned(),
                topic: namespace.to_owned(),
                subscription_id: namespace.to_owned(),
                ..Default::default()
            };
            let path = Method::PUBSUB_SUBSCRIBE_DURABLE.path();
            let subscribed =
                caller.client.stream(path, &[], &subscribe.encode_to_vec(), PATIENCE).await;
            let mut subscribed = subscribed.expect("subscribed");
            subscribed.next().await.expect("readable").expect("it has started");
            let mut event = message(("news", namespace), "", "c");
            let attributes = [("kind".to_owned(), "paid".to_owned())].into();
            event.message.as_mut().unwrap().attributes = attributes;
            let messages = vec![
                message(("jobs", &q), "", "a"),
                message(("facts", &s), "k", "b"),
                event,
                message(("passing", &q), "", "d"),
            ];
            let answer = write(&caller, "one", messages.clone()).await.expect("written");
            assert!(answer.committed);
            assert_eq!((answer.results.len(), answer.message_ids.len()), (1, 4));
            assert_eq!(caller.get("one").await.unwrap(), b"one");
            let ids = answer.message_ids;
            assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 4, "{ids:?}");

            let jobs = arrived(&caller, "jobs", &queue(&q), 1).await;
            assert_eq!(jobs, [(ids[0].clone(), "a".to_owned())]);
            let facts = arrived(&caller, "facts", &stream(&s), 1).await;
            assert_eq!(facts, [("k".to_owned(), "b".to_owned())]);
            let passing = arrived(&caller, "passing", &queue(&q), 1).await;
            assert_eq!(passing, [(ids[3].clone(), "d".to_owned())]);
            let delivery = loop {
                use pubsub::subscribe_durable_response::Event;
                let next = subscribed.next().await.expect("readable").expect("it goes on");
                let event = pubsub::SubscribeDurableResponse::decode(next).expect("valid").event;
                if let Some(Event::Delivery(event)) = event {
                    break event.delivery.and_then(|one| one.message).expect("a message");
                }
            };
            assert_eq!((&delivery.id, &delivery.payload[..]), (&ids[2], &b"c"[..]));
            assert_eq!(delivery.attributes["kind"], "paid");

            // A condition that does not hold keeps everything back, and a retry of a keyed call sends nothing again.
            let absent =
                Condition { key: "one".to_owned(), requirement: Some(Requirement::Absent(())) };
            let request = |conditions| transact::WriteRequest {
                namespace: namespace.to_owned(),
                conditions,
                operations: vec![put("one", "two")],
                messages: vec![message(("jobs", &q), "", "e")],
            };
            let answer = write_with(&caller, &[], request(vec![absent])).await.expect("answered");
            assert!(!answer.committed && answer.message_ids.is_empty());
            let key: harness::calls::Fields<'_> = &[("prism-idempotency-key", b"once")];
            let first = write_with(&caller, key, request(vec![])).await.expect("written");
            let again = write_with(&caller, key, request(vec![])).await.expect("answered");
            assert_eq!(first, again);
            // Of one chain, and behind whatever a second effect would have sent.
            write(&caller, "last", vec![message(("jobs", &q), "", "f")]).await.expect("written");
            let jobs = arrived(&caller, "jobs", &queue(&q), 3).await;
            assert_eq!(values(&jobs), ["a", "e", "f"]);
            assert_eq!(jobs[1].0, first.message_ids[0]);
        }
    });
    server.wait_for_metric("prism_outbox_pending_messages", |pending| pending == 0.0);
    assert_eq!(server.metric("prism_outbox_dead_letters_total"), 0.0);
    server.assert_well();
    server.stop();
}

#[test]
fn a_transaction_step_by_step_sends_with_its_commit() {
    let directory = directory();
    let server = serve(directory.path()).shards(2).config(NAMESPACES).start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "ledger").await;
        let put = transact::TransactionPut {
            key: "a".to_owned(),
            put: Some(Put { value: "1".into(), ..Put::default() }),
        };
        let bad = [
            (message(("nowhere", "q"), "", ""), "TARGET_UNKNOWN"),
            (message(("jobs", ""), "", ""), "NAME_INVALID"),
        ];
        for (message, reason) in bad {
            let steps = vec![Request::Message(message)];
            assert_eq!(step_by_step(&caller, steps).await.unwrap_err().reason, reason);
        }
        let one = |payload| Request::Message(message(("jobs", "q"), "", payload));
        let steps = vec![Request::Put(put.clone()), one("rolled back"), Request::Rollback(())];
        assert!(matches!(step_by_step(&caller, steps).await, Ok(Response::RolledBack(_))));
        let steps = vec![one("1"), Request::Put(put), one("2"), Request::Commit(())];
        let Ok(Response::Committed(done)) = step_by_step(&caller, steps).await else {
            panic!("not committed");
        };
        assert_eq!((done.results.len(), done.message_ids.len()), (1, 2));
        // One that only sends.
        let steps = vec![one("3"), Request::Commit(())];
        let Ok(Response::Committed(only)) = step_by_step(&caller, steps).await else {
            panic!("not committed");
        };
        assert_eq!((only.results.len(), only.message_ids.len()), (0, 1));
        let jobs = arrived(&caller, "jobs", &queue("q"), 3).await;
        assert_eq!(values(&jobs), ["1", "2", "3"]);
        assert_eq!(jobs[0].0, done.message_ids[0]);
        let mut many = vec![one("x"); 101];
        many.push(Request::Commit(()));
        assert_eq!(step_by_step(&caller, many).await.unwrap_err().reason, "TOO_MANY_ITEMS");
    });
    server.assert_well();
    server.stop();
}

/// The last answer of a transaction, or the refusal that ended it.
async fn step_by_step(caller: &Caller, steps: Vec<Request>) -> Result<Response, Box<Refusal>> {
    let path = Method::TRANSACT_TRANSACTION.path();
    let mut stream = caller.client.open(path, &[], PATIENCE).await.expect("opened");
    let mut last = None;
    let begin = Request::Begin(transact::Begin::default());
    for (id, request) in std::iter::once(begin).chain(steps).enumerate() {
        let namespace = caller.namespace.clone();
        let request = Some(request);
        let message = transact::TransactionRequest { namespace, id: id as u64, request };
        stream.send(&message.encode_to_vec()).expect("sent");
        let answer = stream.next().await.map_err(|failure| Box::new(failure.into()))?;
        let answer = transact::TransactionResponse::decode(answer.expect("answered"));
        last = answer.expect("a valid answer").response;
    }
    Ok(last.expect("a response"))
}

#[test]
fn what_could_not_be_relayed_is_refused_before_the_commit() {
    let directory = directory();
    let server = serve(directory.path()).shards(2).config(NAMESPACES).start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "ledger").await;
        let with = |change: fn(&mut Message)| {
            let mut changed = message(("jobs", "q"), "", "x");
            change(changed.message.as_mut().unwrap());
            changed
        };
        let mut prioritized = message(("facts", "s"), "", "x");
        prioritized.message.as_mut().unwrap().priority = Some(1);
        let missing = transact::OutboxMessage { message: None, ..message(("jobs", "q"), "", "") };
        let cases = [
            (message(("", "q"), "", "x"), "TARGET_MISSING", "messages[1].target_namespace"),
            (message(("nowhere", "q"), "", "x"), "TARGET_UNKNOWN", "messages[1].target_namespace"),
            (message(("view", "s"), "", "x"), "TARGET_INVALID", "messages[1].target_namespace"),
            (message(("accounts", "k"), "", "x"), "TARGET_INVALID", "messages[1].target_namespace"),
            (message(("jobs", ""), "", "x"), "NAME_INVALID", "messages[1].target"),
            (missing, "MESSAGE_MISSING", "messages[1].message"),
            (with(|one| one.id = "mine".into()), "MESSAGE_ID_GIVEN", "messages[1].message.id"),
            (
                with(|one| one.priority = Some(10)),
                "PRIORITY_INVALID",
                "messages[1].message.priority",
            ),
            (prioritized, "FIELD_NOT_ALLOWED", "messages[1].message.priority"),
        ];
        for (bad, reason, field) in cases {
            let good = message(("jobs", "q"), "", "good");
            let refused = write(&caller, "key", vec![good, bad]).await.unwrap_err();
            assert_eq!((refused.code, &*refused.reason), (Code::InvalidArgument, reason));
            assert_eq!(refused.fields, [field], "{refused:?}");
        }
        let large = "x".repeat(64 * 1024);
        let refused = write(&caller, "key", vec![message(("small", "q"), "", &large)]).await;
        assert_eq!(refused.unwrap_err().reason, "MESSAGE_TOO_LARGE");
        let many = vec![message(("jobs", "q"), "", "x"); 101];
        assert_eq!(write(&caller, "key", many).await.unwrap_err().reason, "TOO_MANY_ITEMS");
        // Nothing of it was written or sent.
        assert_eq!(caller.get("key").await, None);
        write(&caller, "key", vec![message(("jobs", "q"), "", "last")]).await.expect("written");
        let jobs = arrived(&caller, "jobs", &queue("q"), 1).await;
        assert_eq!(values(&jobs), ["last"]);
        // A delay counts from the commit.
        let mut later = message(("jobs", "later"), "", "later");
        let hour = prost_types::Duration { seconds: 3600, nanos: 0 };
        later.message.as_mut().unwrap().delivery_time = Some(DeliveryTime::Delay(hour));
        write(&caller, "key", vec![later]).await.expect("written");
        arrived(&caller, "jobs", &queue("later"), 1).await;
    });
    server.assert_well();
    server.stop();
}

#[test]
fn messages_with_one_ordering_key_arrive_in_the_order_of_commits() {
    const CHAINS: usize = 6;
    const MESSAGES: usize = 40;
    let directory = directory();
    let server = serve(directory.path()).shards(2).config(NAMESPACES).start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "ledger").await;
        let writers = (0..CHAINS).map(|chain| {
            let caller = caller.clone();
            async move {
                for number in 0..MESSAGES / 2 {
                    // Two in one transaction are in their order too.
                    let [one, other] = [2 * number, 2 * number + 1].map(|number| {
                        message(("facts", "s"), &format!("k{chain}"), &number.to_string())
                    });
                    write(&caller, "key", vec![one, other]).await.expect("written");
                }
            }
        });
        together(writers).await;
        let facts = arrived(&caller, "facts", &stream("s"), CHAINS * MESSAGES).await;
        let mut by_key: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (key, value) in &facts {
            by_key.entry(key).or_default().push(value.parse().unwrap());
        }
        assert_eq!(by_key.len(), CHAINS);
        for (key, numbers) in by_key {
            assert_eq!(numbers, (0..MESSAGES).collect::<Vec<_>>(), "{key}");
        }
    });
    server.assert_well();
    server.stop();
}

/// What a killed writer knows: numbers that were sent, and those that were acknowledged.
#[derive(Default)]
struct Journal {
    sent: usize,
    acknowledged: BTreeSet<usize>,
}

async fn write_until_killed(listen: SocketAddr, mut journal: Journal) -> Journal {
    let caller = Caller::to(listen, "ledger").await;
    loop {
        let number = journal.sent;
        journal.sent += 1;
        let text = number.to_string();
        let messages = vec![
            message(("jobs", "q"), &format!("k{}", number % 3), &text),
            message(("facts", "s"), "", &text),
        ];
        match write(&caller, &text, messages).await {
            Ok(answer) => {
                assert!(answer.committed);
                journal.acknowledged.insert(number);
            }
            Err(refusal) if refusal.is_for_want_of_log() => rt::yield_now().await,
            Err(_) => return journal,
        }
    }
}

#[test]
fn a_kill_between_commit_and_relay_loses_nothing_and_repeats_nothing() {
    const ROUNDS: u64 = 8;
    let directory = directory();
    let setup = serve(directory.path()).shards(2).config(NAMESPACES);
    let mut journal = Journal::default();
    for round in 0..ROUNDS {
        let server = setup.start();
        let listen = server.listen;
        let writer = std::thread::spawn(move || run(write_until_killed(listen, journal)));
        // Somewhere within what this many messages take.
        let relayed = (3 * round * round) as f64;
        server.wait_for_metric("prism_outbox_relayed_total", |count| count > relayed);
        server.kill();
        journal = writer.join().unwrap();
    }
    let server = setup.start();
    let (listen, sent, acknowledged) = (server.listen, journal.sent, journal.acknowledged);
    run(async move {
        let caller = Caller::to(listen, "ledger").await;
        let mut committed = BTreeSet::new();
        for number in 0..sent {
            if caller.get(&number.to_string()).await.is_some() {
                committed.insert(number);
            }
        }
        assert!(committed.is_superset(&acknowledged));
        // The last ones of their chains: when they have arrived, so have all.
        for key in ["k0", "k1", "k2"] {
            let last = vec![message(("jobs", "q"), key, "last"), message(("facts", "s"), "", key)];
            write(&caller, "last", last).await.expect("written");
        }
        let jobs = arrived(&caller, "jobs", &queue("q"), committed.len() + 3).await;
        let facts = arrived(&caller, "facts", &stream("s"), committed.len() + 3).await;
        for arrived in [&jobs, &facts] {
            let numbers: Vec<usize> =
                arrived.iter().filter_map(|(_, value)| value.parse().ok()).collect();
            assert_eq!(numbers.len(), committed.len(), "each once");
            assert_eq!(numbers.iter().copied().collect::<BTreeSet<_>>(), committed);
            for key in 0..3 {
                let of_key: Vec<_> = numbers.iter().filter(|number| *number % 3 == key).collect();
                assert!(of_key.is_sorted(), "in the order of commits");
            }
        }
    });
    server.assert_well();
    server.stop();
}

#[test]
fn a_target_that_is_away_holds_up_neither_the_data_nor_other_targets() {
    let mut redis = OwnRedis::start(&[]);
    let directory = directory();
    let config = format!(
        "wal: {{segment_bytes: 20MiB}}\nbackends:\n  - {{name: cache, type: redis, address: \"{}\"}}\nnamespaces:\n  \
         - {{name: ledger, client_api: transact, backlog_records_max: 10}}\n  \
         - {{name: jobs, client_api: queue}}\n  \
         - {{name: far, client_api: stream, backend: cache, durability: memory, backlog_records_max: 2}}\n  \
         - {{name: on-redis, client_api: keyvalue, backend: cache, durability: memory}}\n",
        redis.address
    );
    let setup = serve(directory.path()).shards(2).config(&config);
    redis.kill();
    let server = setup.start();
    let listen = server.listen;
    // The target's own backlog takes two, and then no more.
    run(async move {
        let caller = Caller::to(listen, "ledger").await;
        for text in ["0", "1"] {
            write(&caller, text, vec![message(("far", "s"), "k", text)]).await.expect("committed");
        }
    });
    server.wait_for_metric("prism_outbox_relayed_total", |relayed| relayed >= 2.0);
    run(async move {
        let caller = Caller::to(listen, "ledger").await;
        for number in 2..10 {
            let text = number.to_string();
            let messages =
                vec![message(("far", "s"), "k", &text), message(("jobs", "q"), "k", &text)];
            // The other target keeps up, so that only the far one's messages fill the outbox.
            assert!(write(&caller, &text, messages).await.expect("committed").committed);
            arrived(&caller, "jobs", &queue("q"), number - 1).await;
        }
        assert_eq!(caller.get("9").await.unwrap(), b"9");
    });
    server.wait_for_metric("prism_outbox_pending_messages", |pending| pending == 8.0);
    server.wait_for_metric("prism_outbox_pending_age_microseconds", |age| age > 0.0);
    server.wait_for_metric("prism_outbox_failures_total", |failures| failures > 0.0);
    run(async move {
        let caller = Caller::to(listen, "ledger").await;
        let three = vec![message(("jobs", "q"), "", "x"); 3];
        let refused = write(&caller, "full", three).await.unwrap_err();
        assert_eq!((refused.code, &*refused.reason), (Code::ResourceExhausted, "OUTBOX_FULL"));
        assert!(refused.retry.is_some());
        assert_eq!(caller.get("full").await, None);
        caller.set("free", b"of messages").await;
        let on_redis = caller.of("on-redis");
        let refused = write(&on_redis, "a", vec![message(("jobs", "q"), "", "x")]).await;
        assert_eq!(refused.unwrap_err().reason, "OUTBOX_NOT_OFFERED");
    });
    // They wait over a restart too.
    server.kill();
    let server = setup.start();
    server.wait_for_metric("prism_outbox_failures_total", |failures| failures > 0.0);
    redis.restart();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "ledger").await;
        let facts = arrived(&caller, "far", &stream("s"), 10).await;
        let mut numbers: Vec<usize> = facts.iter().map(|one| one.1.parse().unwrap()).collect();
        // At least once.
        numbers.dedup();
        assert_eq!(numbers, (0..10).collect::<Vec<_>>());
    });
    server.wait_for_metric("prism_outbox_pending_messages", |pending| pending == 0.0);
    server.assert_well();
    server.stop();
}
