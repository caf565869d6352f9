//! Groups of streams on a real NATS: what NATS's own client sees of them, and what outlives Prism, the server and a move that was cut off.

mod nats_client;
mod servers;

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::kv;
use bytes::Bytes;
use nats_client::{NAMESPACE, client, run_test, stranger};
use prism_adapters::conformance::{Client, Direct, Failure, Opened};
use prism_adapters::nats::Nats;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::stream::v1::join_consumer_group_response::Event;
use prism_proto::prism::stream::v1::{
    AcknowledgeRequest, AcknowledgeResponse, AppendRequest, AppendResponse,
    CreateConsumerGroupRequest, CreateConsumerGroupResponse, GetConsumerGroupInfoRequest,
    GetConsumerGroupInfoResponse, JoinConsumerGroupRequest, JoinConsumerGroupResponse, NewRecord,
    RecordDelivery,
};
use prism_proto::prism::r#type::v1::{Start, start};
use prost::Message as _;
use servers::{LONG, OwnNats};

async fn call<R: prost::Message + Default>(
    client: &Direct<Nats>,
    method: Method,
    request: &impl prost::Message,
) -> Result<R, Failure> {
    let answer: Bytes = client.unary(method, request.encode_to_vec()).await?;
    Ok(R::decode(answer).expect("a valid message"))
}

fn names() -> (String, String, String) {
    (NAMESPACE.to_owned(), "eu.orders".to_owned(), "billing.eu".to_owned())
}

async fn append(client: &Direct<Nats>, text: &str) {
    let (namespace, stream, _) = names();
    let record = Some(NewRecord { value: text.to_owned().into(), ..Default::default() });
    let request = AppendRequest { namespace, stream, expected_last: None, record };
    let _: AppendResponse = call(client, Method::STREAM_APPEND, &request).await.expect("appended");
}

async fn create(client: &Direct<Nats>) {
    let (namespace, stream, group) = names();
    let request = CreateConsumerGroupRequest {
        namespace,
        stream,
        group,
        start: Some(Start { start: Some(start::Start::Earliest(())) }),
        ack_wait: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        max_in_flight: 2,
        ..Default::default()
    };
    let _: CreateConsumerGroupResponse =
        call(client, Method::STREAM_CREATE_CONSUMER_GROUP, &request).await.expect("created");
}

async fn join(client: &Direct<Nats>) -> impl Opened + '_ {
    let (namespace, stream, group) = names();
    let member = "m".to_owned();
    let request = JoinConsumerGroupRequest { namespace, stream, group, member }.encode_to_vec();
    client.open(Method::STREAM_JOIN_CONSUMER_GROUP, request).await.expect("opened")
}

async fn take(member: &mut impl Opened) -> RecordDelivery {
    loop {
        let message = member.next().await.expect("it goes on").expect("it goes on");
        let response = JoinConsumerGroupResponse::decode(message).expect("a valid message");
        if let Some(Event::Record(record)) = response.event {
            return record;
        }
    }
}

fn text(delivery: &RecordDelivery) -> String {
    let record = delivery.record.as_ref().expect("a record");
    String::from_utf8(record.value.to_vec()).expect("text")
}

async fn acknowledge(client: &Direct<Nats>, delivery: &RecordDelivery) -> bool {
    let (namespace, stream, group) = names();
    let receipts = vec![delivery.receipt.clone()];
    let request = AcknowledgeRequest { namespace, stream, group, receipts };
    let answer: AcknowledgeResponse =
        call(client, Method::STREAM_ACKNOWLEDGE, &request).await.expect("answered");
    answer.results[0].status.is_none()
}

async fn info(client: &Direct<Nats>) -> Result<GetConsumerGroupInfoResponse, Failure> {
    let (namespace, stream, group) = names();
    let request = GetConsumerGroupInfoRequest { namespace, stream, group };
    call(client, Method::STREAM_GET_CONSUMER_GROUP_INFO, &request).await
}

const STREAM: &str = "STREAM_conformance_eu=orders";
const CONSUMER: &str = "billing=eu";

#[test]
fn its_own_client_sees_a_group_as_a_consumer_and_what_it_has_done() {
    let server = OwnNats::start("");
    run_test(async move {
        let client = client(&server);
        for number in 0..3 {
            append(&client, &number.to_string()).await;
        }
        create(&client).await;
        let mut member = join(&client).await;
        let taken = take(&mut member).await;
        assert_eq!((text(&taken), taken.attempt), ("0".to_owned(), 1));
        assert!(acknowledge(&client, &taken).await);
        stranger(&server, |jetstream| async move {
            let stream = jetstream.get_stream(STREAM).await.unwrap();
            let mut consumer: PullConsumer = stream.get_consumer(CONSUMER).await.unwrap();
            let info = consumer.info().await.unwrap();
            assert_eq!(info.config.ack_wait, Duration::from_secs(3600));
            let in_flight = info.config.metadata.get("prism-max-in-flight");
            assert_eq!(in_flight.map(String::as_str), Some("2"));
            assert_eq!(info.ack_floor.stream_sequence, 1);
            stream.delete_consumer(CONSUMER).await.unwrap();
        });
        let told = loop {
            match member.next().await {
                Ok(message) => drop(message.expect("it ends with a word")),
                Err(failure) => break failure,
            }
        };
        assert_eq!((told.code, &*told.reason), (5, "GROUP_NOT_FOUND"), "{told:?}");
        assert_eq!(info(&client).await.unwrap_err().reason, "GROUP_NOT_FOUND");
    });
}

#[test]
fn receipts_outlive_prism_and_the_server() {
    let mut server = OwnNats::start("");
    run_test(async move {
        // It stays as it is to the end, as if it had died with what it holds: it gives nothing back.
        let before = client(&server);
        for number in 0..3 {
            append(&before, &number.to_string()).await;
        }
        create(&before).await;
        let mut dead = join(&before).await;
        let held = [take(&mut dead).await, take(&mut dead).await];
        assert_eq!(held.each_ref().map(text), ["0", "1"]);
        server.stop();
        server.restart();
        let after = client(&server);
        let mut member = join(&after).await;
        let next = take(&mut member).await;
        assert_eq!(text(&next), "2", "the others are away");
        for delivery in held.iter().chain([&next]) {
            assert!(acknowledge(&after, delivery).await);
        }
        let done = info(&after).await.expect("told");
        assert_eq!(done.progress[0].acknowledged.as_deref(), Some("3"));
        assert_eq!(done.progress[0].lag, Some(0));
    });
}

#[test]
fn a_move_that_was_cut_off_is_ended_by_whoever_comes() {
    let server = OwnNats::start("");
    run_test(async move {
        let client = client(&server);
        for number in 0..3 {
            append(&client, &number.to_string()).await;
        }
        create(&client).await;
        stranger(&server, |jetstream| async move {
            let stream = jetstream.get_stream(STREAM).await.unwrap();
            let mut consumer: PullConsumer = stream.get_consumer(CONSUMER).await.unwrap();
            let mut config = serde_json::to_value(&consumer.info().await.unwrap().config).unwrap();
            config["deliver_policy"] = "by_start_sequence".into();
            config["opt_start_seq"] = 3.into();
            let bucket =
                kv::Config { bucket: NAMESPACE.to_owned(), history: 1, ..Default::default() };
            jetstream.create_key_value(bucket).await.unwrap();
            let place = "$KV.conformance.=group.eu=orders.billing=eu";
            let kept = jetstream.publish(place, config.to_string().into()).await;
            kept.unwrap().await.unwrap();
            // Here it was cut off.
            stream.delete_consumer(CONSUMER).await.unwrap();
        });
        let first = rt::timeout(LONG, async { take(&mut join(&client).await).await }).await;
        assert_eq!(text(&first.expect("the group is there")), "2");
        stranger(&server, |jetstream| async move {
            let stream = jetstream.get_stream(STREAM).await.unwrap();
            stream.delete_consumer(CONSUMER).await.unwrap();
        });
        assert_eq!(
            info(&client).await.unwrap_err().reason,
            "GROUP_NOT_FOUND",
            "once moved, it is moved"
        );
    });
}
