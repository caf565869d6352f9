//! Topics that a real Redis keeps as streams: the conformance suite, what redis-cli sees and publishes, outages, and what is removed.

mod servers;

use std::rc::Rc;
use std::time::{Duration, Instant};

use prism_adapters::conformance::{Client, Direct, Opened as _, Versions, run};
use prism_adapters::lane::{Cell, LaneBackend as _, LaneOwner, LaneRecord};
use prism_adapters::redis::{Redis, RedisConfig, TopicLog};
use prism_adapters::{Context, Limits, Revision};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1::{
    AcknowledgeRequest, AcknowledgeResponse, EventDelivery, PublishPersistentRequest,
    PublishPersistentResponse, SubscribeDurableRequest, SubscribeRequest, SubscribeResponse,
    subscribe_response::Event,
};
use prism_proto::prism::r#type::v1::{Message, Start, start};
use prost::Message as _;
use servers::{LONG, OwnRedis};

const LIMITS: Limits = Limits { max_message_size: 4 * 1024 * 1024 };

fn client(server: &OwnRedis) -> Direct<TopicLog> {
    let config = RedisConfig::at(server.address.ip().to_string(), server.address.port());
    let log = TopicLog::over(Rc::new(Redis::start(config)));
    Direct::in_real_time(log, Versions::None)
}

fn publish_request(text: &str) -> PublishPersistentRequest {
    let message = Message {
        payload: text.as_bytes().to_vec().into(),
        content_type: "text/plain".to_owned(),
        attributes: [("country".to_owned(), "CH".to_owned()), ("id".to_owned(), "7".to_owned())]
            .into(),
        ordering_key: "order-7".to_owned(),
        ..Default::default()
    };
    let (namespace, topic) = ("conformance".to_owned(), "orders".to_owned());
    PublishPersistentRequest { namespace, topic, message: Some(message) }
}

async fn publish(client: &Direct<TopicLog>, text: &str) -> PublishPersistentResponse {
    let request = publish_request(text).encode_to_vec();
    let until = Instant::now() + LONG;
    loop {
        match client.unary(Method::PUBSUB_PUBLISH_PERSISTENT, request.clone()).await {
            Ok(reply) => return PublishPersistentResponse::decode(reply).expect("a message"),
            Err(failure) => assert!(Instant::now() < until, "{failure:?}"),
        }
        rt::sleep(Duration::from_millis(10)).await;
    }
}

type Live<'a> = <Direct<TopicLog> as Client>::Opened<'a>;

async fn next(stream: &mut Live<'_>) -> Event {
    let come = rt::timeout(LONG, stream.next()).await.expect("something comes");
    let message = come.expect("it stands").expect("it goes on");
    SubscribeResponse::decode(message).expect("a message").event.expect("an event")
}

async fn next_event(stream: &mut Live<'_>) -> EventDelivery {
    match next(stream).await {
        Event::Delivery(delivery) => delivery,
        other => panic!("{other:?}"),
    }
}

fn text(event: &EventDelivery) -> String {
    let message = event.delivery.as_ref().and_then(|one| one.message.as_ref()).expect("an event");
    String::from_utf8(message.payload.to_vec()).expect("text")
}

async fn subscribe_durable(client: &Direct<TopicLog>) -> Live<'_> {
    let request = SubscribeDurableRequest {
        namespace: "conformance".to_owned(),
        topic: "orders".to_owned(),
        subscription_id: "billing".to_owned(),
        start: Some(Start { start: Some(start::Start::Earliest(())) }),
        ..Default::default()
    };
    let opened = client.open(Method::PUBSUB_SUBSCRIBE_DURABLE, request.encode_to_vec()).await;
    let mut stream = opened.expect("subscribed");
    assert!(matches!(next(&mut stream).await, Event::Started(_)));
    stream
}

async fn acknowledge(client: &Direct<TopicLog>, event: &EventDelivery) {
    let receipt = event.delivery.as_ref().expect("an event").receipt.clone();
    let request = AcknowledgeRequest {
        namespace: "conformance".to_owned(),
        topic: "orders".to_owned(),
        subscription_id: "billing".to_owned(),
        receipts: vec![receipt],
    };
    let reply = client.unary(Method::PUBSUB_ACKNOWLEDGE, request.encode_to_vec()).await;
    let answer = AcknowledgeResponse::decode(reply.expect("answered")).expect("a message");
    assert_eq!(answer.results[0].status, None);
}

#[test]
fn topics_kept_as_a_log_conform() {
    let server = OwnRedis::start(&[]);
    rt::run(async move {
        let ran = run(&client(&server)).await;
        assert!(ran.len() > 15, "{ran:?}");
    })
    .unwrap();
}

#[test]
fn redis_cli_reads_and_publishes_the_same_events() {
    let server = OwnRedis::start(&[]);
    rt::run(async move {
        let client = client(&server);
        let request = SubscribeRequest {
            namespace: "conformance".to_owned(),
            topic: "orders".to_owned(),
            ..Default::default()
        };
        let opened = client.open(Method::PUBSUB_SUBSCRIBE, request.encode_to_vec()).await;
        let mut passing = opened.expect("subscribed");
        assert!(matches!(next(&mut passing).await, Event::Started(_)));
        let published = publish(&client, "bezahlt €").await;
        let offset = published.position.expect("its place").offset;
        let entry = server.cli(&["XRANGE", "conformance:orders", "-", "+"]);
        let mut lines: Vec<&str> = entry.lines().collect();
        assert_eq!(lines.remove(0), offset);
        for pair in [
            ["value", "bezahlt €"],
            ["id", &published.message_id],
            ["content-type", "text/plain"],
            ["ordering-key", "order-7"],
            ["country", "CH"],
            ["attribute.id", "7"],
        ] {
            assert!(lines.chunks(2).any(|chunk| chunk == pair), "{pair:?}: {entry}");
        }
        let heard = next_event(&mut passing).await;
        let message = heard.delivery.clone().unwrap().message.unwrap();
        let sent = publish_request("bezahlt €").message.unwrap();
        assert_eq!(message, Message { id: published.message_id, ..sent });
        server.cli(&["XADD", "conformance:orders", "*", "value", "by hand", "n", "1"]);
        let heard = next_event(&mut passing).await;
        assert_eq!(text(&heard), "by hand");

        let mut durable = subscribe_durable(&client).await;
        assert_eq!(text(&next_event(&mut durable).await), "bezahlt €");
        assert_eq!(text(&next_event(&mut durable).await), "by hand");
        let pending = server.cli(&["XPENDING", "conformance:orders", "billing"]);
        assert!(pending.starts_with("2\n"), "{pending}");
        let kept = server.cli(&["HGET", "_prism:subscription:conformance:billing", "topic"]);
        assert_eq!(kept, "orders");
    })
    .unwrap();
}

/// A subscription of either kind goes on where it stood when Redis has been away.
#[test]
fn subscriptions_go_on_after_an_outage() {
    let mut server = OwnRedis::start(&[]);
    rt::run(async move {
        let client = client(&server);
        let request = SubscribeRequest {
            namespace: "conformance".to_owned(),
            topic: "orders".to_owned(),
            ..Default::default()
        };
        let opened = client.open(Method::PUBSUB_SUBSCRIBE, request.encode_to_vec()).await;
        let mut passing = opened.expect("subscribed");
        assert!(matches!(next(&mut passing).await, Event::Started(_)));
        let mut durable = subscribe_durable(&client).await;
        publish(&client, "before").await;
        assert_eq!(text(&next_event(&mut passing).await), "before");
        let held = next_event(&mut durable).await;
        server.kill();
        server.restart();
        publish(&client, "after").await;
        assert_eq!(text(&next_event(&mut passing).await), "after");
        let after = next_event(&mut durable).await;
        assert_eq!(text(&after), "after");
        acknowledge(&client, &held).await;
        acknowledge(&client, &after).await;
        let pending = server.cli(&["XPENDING", "conformance:orders", "billing"]);
        assert!(pending.starts_with('0'), "{pending}");
    })
    .unwrap();
}

/// What a durable subscription has not done with stays, however old it is; the rest goes.
#[test]
fn events_stay_as_long_as_a_durable_subscription_needs_them() {
    let server = OwnRedis::start(&[]);
    rt::run(async move {
        let client = client(&server);
        // Old ones, by hand: in 1970.
        let script =
            "for n = 1, 2000 do redis.call('XADD', KEYS[1], n .. '-0', 'value', 'old') end";
        server.cli(&["EVAL", script, "1", "conformance:orders"]);
        let mut durable = subscribe_durable(&client).await;
        let first = next_event(&mut durable).await;
        let length = || server.cli(&["XLEN", "conformance:orders"]).parse::<u64>().unwrap();
        publish(&client, "new").await;
        assert_eq!(length(), 2001, "the first waits for its acknowledgement");
        acknowledge(&client, &first).await;
        for _ in 1..1500 {
            let event = next_event(&mut durable).await;
            acknowledge(&client, &event).await;
        }
        let until = Instant::now() + LONG;
        while length() > 1000 {
            publish(&client, "new").await;
            assert!(Instant::now() < until, "what is done with stays");
        }
        let event = next_event(&mut durable).await;
        assert_eq!(text(&event), "old", "what is not done with is there");
    })
    .unwrap();
}

/// What is published at level `wal` moves the lane's cell, and has the place that it is told.
#[test]
fn logged_events_go_with_the_cell() {
    const OWNER: LaneOwner = LaneOwner { directory_id: [7; 16], epoch: 3 };
    let server = OwnRedis::start(&[]);
    rt::run(async move {
        let client = client(&server);
        let log = &client.backend;
        let context = |lsn| Context {
            namespace: 1,
            namespace_name: "conformance",
            partition: 0,
            now_us: wall_us(),
            deadline_ns: prism_adapters::NO_DEADLINE_NS,
            revision: Revision::logged(lsn),
            limits: &LIMITS,
        };
        let until = Instant::now() + LONG;
        while log.resume(&context(0), &OWNER).await.is_err() {
            assert!(Instant::now() < until, "it does not resume");
        }
        log.set_cell(&context(0), &Cell { owner: OWNER, lane_seq: 0 }).await.unwrap();
        let requests: Vec<Vec<u8>> =
            ["a", "b"].map(|text| publish_request(text).encode_to_vec()).into();
        let records: Vec<_> = requests
            .iter()
            .zip(1..)
            .map(|(request, lane_seq)| {
                let (context, method) = (context(lane_seq), Method::PUBSUB_PUBLISH_PERSISTENT);
                LaneRecord { lane_seq, context, method, request }
            })
            .collect();
        let mut outcomes = Vec::new();
        log.apply(&OWNER, &records, &mut outcomes).await.unwrap();
        for outcome in outcomes {
            let answer = PublishPersistentResponse::decode(outcome.unwrap().to_bytes()).unwrap();
            let offset = answer.position.expect("its place").offset;
            let entry = server.cli(&["XRANGE", "conformance:orders", &offset, &offset]);
            assert!(entry.contains(&answer.message_id), "{entry}");
        }
        let cell = log.resume(&context(0), &OWNER).await.unwrap().expect("it has one");
        assert_eq!(cell.lane_seq, 2);
    })
    .unwrap();
}
