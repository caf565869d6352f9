//! Queues on a real PostgreSQL: what psql sees of them, many calls at once, several hosts at once, and logged records.

mod servers;
mod twins;

use std::cell::{Cell as Slot, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use prism_adapters::lane::{Cell, LaneBackend as _, LaneOwner, LaneRecord};
use prism_adapters::postgres::{Postgres, PostgresConfig};
use prism_adapters::{Backend as _, Context, Error, Limits, Reply, Revision};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::queue::v1::{
    AcknowledgeRequest, AcknowledgeResponse, ConfigureDeadLetterRequest,
    ConfigureDeadLetterResponse, ReceiveRequest, ReceiveResponse, RejectRequest, RejectResponse,
    SendRequest, SendResponse,
};
use prism_proto::prism::r#type::v1::{Delivery, Message, message};
use prost::Message as _;
use servers::{LONG, psql};

const LIMITS: Limits = Limits { max_message_size: 4 * 1024 * 1024 };

/// An empty database, and settings for it.
fn config(database: &str) -> PostgresConfig {
    let address = servers::empty_database(database);
    PostgresConfig {
        password: Some("prism".to_owned()),
        database: database.to_owned(),
        ..PostgresConfig::at(address.ip().to_string(), address.port(), "prism")
    }
}

fn context(lsn: u64) -> Context<'static> {
    Context {
        namespace: 1,
        namespace_name: "jobs",
        partition: 0,
        now_us: wall_us(),
        revision: Revision::logged(lsn),
        limits: &LIMITS,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    }
}

async fn call<R: prost::Message + Default>(
    postgres: &Postgres,
    method: Method,
    request: &impl prost::Message,
) -> Result<R, Error> {
    thread_local!(static LSN: Slot<u64> = const { Slot::new(0) });
    LSN.set(LSN.get() + 1);
    let mut reply = Reply::default();
    let request = request.encode_to_vec();
    let context = context(LSN.get());
    postgres.unary_checked(&context, method, &request, Postgres::SERVES, &mut reply).await?;
    Ok(R::decode(reply.to_bytes()).expect("a valid message"))
}

fn send_request(message: Message) -> SendRequest {
    let (namespace, queue) = ("jobs".to_owned(), "mail.out".to_owned());
    SendRequest { namespace, queue, message: Some(message) }
}

fn text_message(text: &str) -> Message {
    Message { payload: text.as_bytes().to_vec().into(), ..Default::default() }
}

async fn send(postgres: &Postgres, message: Message) -> String {
    let request = send_request(message);
    let sent: SendResponse = call(postgres, Method::QUEUE_SEND, &request).await.expect("sent");
    sent.message_id
}

fn receive_request(max_messages: u32) -> ReceiveRequest {
    let (namespace, queue) = ("jobs".to_owned(), "mail.out".to_owned());
    ReceiveRequest { namespace, queue, max_messages, ..Default::default() }
}

async fn receive(postgres: &Postgres, max_messages: u32) -> Vec<Delivery> {
    let request = receive_request(max_messages);
    let received: ReceiveResponse =
        call(postgres, Method::QUEUE_RECEIVE, &request).await.expect("received");
    received.deliveries
}

fn text(delivery: &Delivery) -> String {
    let payload = delivery.message.as_ref().expect("it has its message").payload.clone();
    String::from_utf8(payload.into()).expect("text")
}

async fn acknowledge(postgres: &Postgres, receipt: &str) -> bool {
    let (namespace, queue) = ("jobs".to_owned(), "mail.out".to_owned());
    let request = AcknowledgeRequest { namespace, queue, receipts: vec![receipt.to_owned()] };
    let answer: AcknowledgeResponse =
        call(postgres, Method::QUEUE_ACKNOWLEDGE, &request).await.expect("answered");
    answer.results[0].status.is_none()
}

#[test]
fn psql_reads_and_writes_the_same_messages() {
    let database = "prism_queue_read_back";
    let config = config(database);
    let address = servers::address("postgres");
    let sql = move |statement: &str| psql(address, database, statement);
    rt::run(async move {
        let postgres = Postgres::start(config);
        let delay = prost_types::Duration { seconds: 3600, nanos: 0 };
        let sent = Message {
            content_type: "text/plain".to_owned(),
            attributes: [("country".to_owned(), "CH \"é\"".to_owned())].into(),
            ordering_key: "order-7".to_owned(),
            priority: Some(5),
            ..text_message("bezahlt €")
        };
        let id = send(&postgres, sent.clone()).await;
        let later = Message {
            delivery_time: Some(message::DeliveryTime::Delay(delay)),
            ..text_message("later")
        };
        send(&postgres, later.clone()).await;
        let row = "SELECT queue, message_id, convert_from(payload, 'UTF8'), content_type, attributes->>'country', ordering_key, \
                   priority, attempts FROM jobs.queue ORDER BY id LIMIT 1";
        let expected = format!("mail.out|{id}|bezahlt €|text/plain|CH \"é\"|order-7|5|0");
        assert_eq!(sql(row), expected);
        let delayed = "SELECT delay_ms, visible_at - sent_at FROM jobs.queue ORDER BY id DESC LIMIT 1";
        assert_eq!(sql(delayed), "3600000|01:00:00");
        assert_eq!(sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'jobs'"), "3");

        // What is sent by hand is delivered like any other.
        sql("INSERT INTO jobs.queue (queue, payload, attributes) VALUES ('mail.out', 'by hand', '{\"n\": 7}')");
        let received = receive(&postgres, 10).await;
        assert_eq!(received.iter().map(text).collect::<Vec<_>>(), ["bezahlt €", "by hand"]);
        assert_eq!(received[0].message, Some(Message { id, ..sent }));
        assert_eq!(received[1].message.as_ref().unwrap().attributes["n"], "7");
        assert!(!received[1].message.as_ref().unwrap().id.is_empty());
        assert_eq!(sql("SELECT count(*) FROM jobs.queue WHERE lease IS NOT NULL"), "2");

        // What was delayed is told as it was said, once its time is brought forward by hand.
        sql("UPDATE jobs.queue SET visible_at = now() WHERE delay_ms IS NOT NULL");
        let brought = receive(&postgres, 10).await;
        assert_eq!(brought[0].message.as_ref().unwrap().delivery_time, later.delivery_time);

        let (namespace, queue) = ("jobs".to_owned(), "mail.out".to_owned());
        let settings =
            ConfigureDeadLetterRequest { namespace: namespace.clone(), queue: queue.clone(), max_deliveries: 3 };
        let method = Method::QUEUE_CONFIGURE_DEAD_LETTER;
        let _: ConfigureDeadLetterResponse = call(&postgres, method, &settings).await.unwrap();
        let receipts = vec![received[0].receipt.clone()];
        let request = RejectRequest { namespace, queue, receipts, reason: "no\0 address".to_owned() };
        let rejected: RejectResponse = call(&postgres, Method::QUEUE_REJECT, &request).await.unwrap();
        assert_eq!(rejected.results[0].status, None);
        let dead = "SELECT queue, convert_from(payload, 'UTF8'), reason, attempts FROM jobs.queue_dead_letter";
        assert_eq!(sql(dead), "mail.out|bezahlt €|no  address|1");
        assert!(acknowledge(&postgres, &received[1].receipt).await);
        assert_eq!(sql("SELECT convert_from(payload, 'UTF8') FROM jobs.queue"), "later");
    })
    .unwrap();
}

#[test]
fn messages_sent_at_once_share_a_statement_and_keep_their_order() {
    let config = config("prism_queue_batches");
    rt::run(async move {
        let postgres = Rc::new(Postgres::start(config));
        send(&postgres, text_message("first")).await;
        let before = postgres.facts();
        let (done, ids) = (Rc::new(rt::Signal::default()), Rc::new(RefCell::new(Vec::new())));
        for number in 0..200u32 {
            let (postgres, done, ids) = (postgres.clone(), done.clone(), ids.clone());
            rt::spawn(async move {
                let id = send(&postgres, text_message(&number.to_string())).await;
                ids.borrow_mut().push(id);
                if ids.borrow().len() == 200 {
                    done.set();
                }
            });
        }
        done.wait().await;
        let facts = postgres.facts();
        assert!(facts.batches - before.batches <= 4, "{facts:?} {before:?}");
        assert_eq!(ids.take().into_iter().collect::<BTreeSet<_>>().len(), 200);
        let received = receive(&postgres, 1000).await;
        let texts: Vec<String> = received.iter().skip(1).map(text).collect();
        assert_eq!(texts, (0..200).map(|number| number.to_string()).collect::<Vec<_>>());
    })
    .unwrap();
}

/// Two hosts and what a third has left behind: no message goes to two receivers, and a receipt is good at any of them.
#[test]
fn hosts_share_a_queue_and_a_receipt_outlives_its_host() {
    let config = config("prism_queue_hosts");
    rt::run(async move {
        let first = Rc::new(Postgres::start(config.clone()));
        for number in 0..100 {
            let ordering_key = format!("key-{}", number % 10);
            send(&first, Message { ordering_key, ..text_message(&number.to_string()) }).await;
        }
        let hosts = [first.clone(), Rc::new(Postgres::start(config.clone()))];
        let (seen, running) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Slot::new(8)));
        let done = Rc::new(rt::Signal::default());
        for worker in 0..8 {
            let (host, other) = (hosts[worker % 2].clone(), hosts[(worker + 1) % 2].clone());
            let (seen, running, done) = (seen.clone(), running.clone(), done.clone());
            rt::spawn(async move {
                let until = std::time::Instant::now() + LONG;
                while seen.borrow().len() < 100 && std::time::Instant::now() < until {
                    for delivery in receive(&host, 3).await {
                        seen.borrow_mut().push(text(&delivery).parse::<u32>().unwrap());
                        assert!(acknowledge(&other, &delivery.receipt).await);
                    }
                }
                running.set(running.get() - 1);
                if running.get() == 0 {
                    done.set();
                }
            });
        }
        done.wait().await;
        let seen = seen.take();
        assert_eq!(seen.len(), 100, "each is delivered once");
        for key in 0..10 {
            let of_key: Vec<u32> =
                seen.iter().copied().filter(|number| number % 10 == key).collect();
            assert!(of_key.is_sorted(), "key {key} came as {of_key:?}");
        }
        send(&first, text_message("held")).await;
        let held = receive(&first, 1).await;
        drop((first, hosts));
        let next = Postgres::start(config);
        assert_eq!(receive(&next, 1).await, []);
        assert!(acknowledge(&next, &held[0].receipt).await);
        assert!(!acknowledge(&next, &held[0].receipt).await);
    })
    .unwrap();
}

#[test]
fn who_waits_hears_of_messages_whoever_sends_them() {
    let database = "prism_queue_waits";
    let config = PostgresConfig { look_every: Duration::from_millis(20), ..config(database) };
    let address = servers::address("postgres");
    rt::run(async move {
        let postgres = Rc::new(Postgres::start(config));
        let ready = |postgres: Rc<Postgres>| async move {
            let request = receive_request(1).encode_to_vec();
            postgres.ready(&context(0), Method::QUEUE_RECEIVE, &request).await;
        };
        assert!(rt::timeout(Duration::from_millis(50), ready(postgres.clone())).await.is_none());
        let sender = postgres.clone();
        rt::spawn(async move { drop(send(&sender, text_message("ours")).await) });
        rt::timeout(LONG, ready(postgres.clone())).await.expect("it hears of our own message");
        // One message is promised to one call.
        assert!(rt::timeout(Duration::from_millis(50), ready(postgres.clone())).await.is_none());
        assert_eq!(text(&receive(&postgres, 1).await[0]), "ours");
        psql(
            address,
            database,
            "INSERT INTO jobs.queue (queue, payload) VALUES ('mail.out', 'theirs')",
        );
        rt::timeout(LONG, ready(postgres.clone())).await.expect("it hears of somebody else's");
        assert_eq!(text(&receive(&postgres, 1).await[0]), "theirs");
    })
    .unwrap();
}

/// What is sent at level `wal` arrives once, however often its batch does, under the identity that the caller was told.
#[test]
fn logged_messages_have_one_effect() {
    const OWNER: LaneOwner = LaneOwner { directory_id: [7; 16], epoch: 3 };
    let database = "prism_queue_lane";
    let config = config(database);
    let address = servers::address("postgres");
    rt::run(async move {
        let postgres = Postgres::start(config);
        let until = std::time::Instant::now() + LONG;
        while postgres.resume(&context(0), &OWNER).await.is_err() {
            assert!(std::time::Instant::now() < until, "it does not resume");
        }
        postgres.set_cell(&context(0), &Cell { owner: OWNER, lane_seq: 0 }).await.unwrap();
        let requests: Vec<Vec<u8>> =
            ["a", "b"].map(|text| send_request(text_message(text)).encode_to_vec()).into();
        let receive = receive_request(2).encode_to_vec();
        let record = |lane_seq, method, request| {
            let context = context(lane_seq);
            LaneRecord { lane_seq, context, method, request }
        };
        let batch = [
            record(1, Method::QUEUE_SEND, &requests[0]),
            record(2, Method::QUEUE_SEND, &requests[1]),
            record(3, Method::QUEUE_RECEIVE, &receive),
        ];
        let mut outcomes = Vec::new();
        postgres.apply(&OWNER, &batch, &mut outcomes).await.unwrap();
        let replies: Vec<_> =
            outcomes.drain(..).map(|outcome| outcome.unwrap().to_bytes()).collect();
        let told = SendResponse::decode(replies[0].clone()).unwrap().message_id;
        let received = ReceiveResponse::decode(replies[2].clone()).unwrap().deliveries;
        assert_eq!(received.iter().map(text).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(received[0].message.as_ref().unwrap().id, told);
        let again = postgres.apply(&OWNER, &batch, &mut outcomes).await;
        assert_eq!(again.unwrap_err().reason(), "LANE_MOVED");
        let rows = "SELECT count(*), max(lane_seq) FROM jobs.queue, jobs.cell";
        assert_eq!(psql(address, database, rows), "2|3");
    })
    .unwrap();
}

/// The same random calls on memstore and on PostgreSQL, at the same times.
#[test]
fn random_calls_are_answered_as_memstore_answers_them() {
    // Nothing is swept by the clock on the wall, which is not the time of the calls.
    let config = PostgresConfig { sweep_every: None, ..config("prism_queue_random") };
    rt::run(async move { twins::queues_agree(Postgres::start(config)).await }).unwrap();
}
