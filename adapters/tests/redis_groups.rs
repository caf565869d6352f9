//! Consumer groups on a real Redis: what redis-cli sees of them, what it may do to them, and what outlives Prism.

mod servers;

use std::future::Future;

use prism_adapters::conformance::{Client, Direct, Failure, Opened, Versions};
use prism_adapters::redis::{Redis, RedisConfig};
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::stream::v1::join_consumer_group_response::Event;
use prism_proto::prism::r#type::v1::{Start, start};
use prost::Message as _;
use servers::{LONG, OwnRedis};

fn client(server: &OwnRedis) -> Direct<Redis> {
    // None of this is about a slow Redis.
    let redis = Redis::start(RedisConfig {
        connect_timeout: LONG,
        answer_timeout: LONG,
        ..RedisConfig::at(server.address.ip().to_string(), server.address.port())
    });
    Direct::in_real_time(redis, Versions::Digest)
}

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(3 * LONG, test).await.expect("the test ends in time") })
        .unwrap();
}

/// The namespace, the stream and the group of these tests.
fn names() -> (String, String, String) {
    ("conformance".to_owned(), "s".to_owned(), "g".to_owned())
}

async fn call<R: prost::Message + Default>(
    client: &Direct<Redis>,
    method: Method,
    request: &impl prost::Message,
) -> Result<R, Failure> {
    let answer = client.unary(method, request.encode_to_vec()).await?;
    Ok(R::decode(answer).expect("a valid message"))
}

async fn append(client: &Direct<Redis>, text: &str) {
    let (namespace, stream, _) = names();
    let record =
        Some(stream::NewRecord { value: text.as_bytes().to_vec().into(), ..Default::default() });
    let request = stream::AppendRequest { namespace, stream, record, expected_last: None };
    call::<stream::AppendResponse>(client, Method::STREAM_APPEND, &request)
        .await
        .expect("appended");
}

/// Creates the group at the beginning of the stream.
async fn create(client: &Direct<Redis>) {
    let (namespace, stream, group) = names();
    let start = Some(Start { start: Some(start::Start::Earliest(())) });
    let request = stream::CreateConsumerGroupRequest {
        namespace,
        stream,
        group,
        start,
        ..Default::default()
    };
    let answer: stream::CreateConsumerGroupResponse =
        call(client, Method::STREAM_CREATE_CONSUMER_GROUP, &request).await.expect("created");
    assert_eq!(answer.sharing(), stream::Sharing::ByRecord);
}

async fn join<'a>(
    client: &'a Direct<Redis>,
    member: &str,
) -> <Direct<Redis> as Client>::Opened<'a> {
    let (namespace, stream, group) = names();
    let member = member.to_owned();
    let request = stream::JoinConsumerGroupRequest { namespace, stream, group, member };
    let method = Method::STREAM_JOIN_CONSUMER_GROUP;
    client.open(method, request.encode_to_vec()).await.expect("opened")
}

/// The next record that a member is handed.
async fn record(member: &mut impl Opened) -> stream::RecordDelivery {
    loop {
        let message = member.next().await.expect("it goes on").expect("it goes on");
        let response = stream::JoinConsumerGroupResponse::decode(message).expect("valid");
        if let Some(Event::Record(record)) = response.event {
            return record;
        }
    }
}

fn text(delivery: &stream::RecordDelivery) -> String {
    let value = &delivery.record.as_ref().expect("a record").value;
    String::from_utf8(value.to_vec()).expect("text")
}

fn offset(delivery: &stream::RecordDelivery) -> String {
    let record = delivery.record.as_ref().expect("a record");
    record.position.as_ref().expect("its place").offset.clone()
}

/// Whether a delivery's receipt is accepted.
async fn acknowledge(client: &Direct<Redis>, delivery: &stream::RecordDelivery) -> bool {
    let (namespace, stream, group) = names();
    let receipts = vec![delivery.receipt.clone()];
    let request = stream::AcknowledgeRequest { namespace, stream, group, receipts };
    let answer: stream::AcknowledgeResponse =
        call(client, Method::STREAM_ACKNOWLEDGE, &request).await.expect("answered");
    answer.results[0].status.is_none()
}

/// How many records are under way, as redis-cli tells.
fn pending(server: &OwnRedis) -> String {
    let said = server.cli(&["XPENDING", "conformance:s", "g"]);
    said.lines().next().expect("a number").to_owned()
}

#[test]
fn redis_cli_shows_a_group_and_a_receipt_outlives_prism() {
    let server = OwnRedis::start(&[]);
    run(async move {
        let before = client(&server);
        create(&before).await;
        for number in ["0", "1", "2"] {
            append(&before, number).await;
        }
        let mut member = join(&before, "billing-1").await;
        let first = record(&mut member).await;
        let second = record(&mut member).await;
        assert_eq!((text(&first), text(&second), first.attempt), ("0".into(), "1".into(), 1));
        assert!(server.cli(&["XINFO", "GROUPS", "conformance:s"]).contains("\ng\n"));
        let consumers = server.cli(&["XINFO", "CONSUMERS", "conformance:s", "g"]);
        assert!(consumers.contains("billing-1"), "{consumers}");
        let kept = server.cli(&["HGET", "_prism:group:conformance:s:g", "ack-wait-ms"]);
        assert_eq!(kept, "30000");
        drop(member);
        drop(before);

        let after = client(&server);
        assert!(acknowledge(&after, &first).await);
        assert!(!acknowledge(&after, &first).await, "it is done");
        // Whoever joins again under its name gets what it held, at once.
        let mut member = join(&after, "billing-1").await;
        let again = record(&mut member).await;
        assert_eq!((text(&again), again.attempt), ("1".to_owned(), 2));
        assert!(acknowledge(&after, &second).await, "it waits, and who has done it may say so");
        assert!(!acknowledge(&after, &again).await, "it is done");
        assert!(acknowledge(&after, &record(&mut member).await).await);
        assert_eq!(pending(&server), "0");
    });
}

#[test]
fn a_group_made_by_hand_is_one_and_what_is_taken_by_hand_is_gone() {
    let server = OwnRedis::start(&[]);
    run(async move {
        let client = client(&server);
        append(&client, "0").await;
        append(&client, "1").await;
        server.cli(&["XGROUP", "CREATE", "conformance:s", "g", "0"]);
        let mut member = join(&client, "").await;
        let (first, second) = (record(&mut member).await, record(&mut member).await);
        server.cli(&["XACK", "conformance:s", "g", &offset(&first)]);
        assert!(!acknowledge(&client, &first).await, "it was done by hand");
        // To create it changes nothing.
        create(&client).await;
        assert_eq!(pending(&server), "1");
        assert!(acknowledge(&client, &second).await);
        assert_eq!(pending(&server), "0");
        server.cli(&["XGROUP", "DESTROY", "conformance:s", "g"]);
        append(&client, "2").await;
        let failure = loop {
            if let Err(failure) = member.next().await {
                break failure;
            }
        };
        assert_eq!((failure.code, &*failure.reason), (5, "GROUP_NOT_FOUND"));
    });
}

#[test]
fn a_record_that_was_removed_under_way_holds_up_nobody() {
    let server = OwnRedis::start(&[]);
    run(async move {
        let client = client(&server);
        create(&client).await;
        for number in ["0", "1", "2"] {
            append(&client, number).await;
        }
        let mut member = join(&client, "m").await;
        let first = record(&mut member).await;
        drop(member);
        // The first two go, one of which the member holds.
        server.cli(&["XTRIM", "conformance:s", "MAXLEN", "1"]);
        let mut member = join(&client, "m").await;
        let left = record(&mut member).await;
        assert_eq!(text(&left), "2");
        acknowledge(&client, &first).await;
        assert!(acknowledge(&client, &left).await);
        append(&client, "3").await;
        assert_eq!(text(&record(&mut member).await), "3");
    });
}
