//! Topics that last on a real NATS: what NATS's own client sees of them, what JetStream refuses, and what outlives an outage.

mod nats_client;
mod servers;

use std::time::Duration;

use async_nats::jetstream;
use bytes::Bytes;
use nats_client::{NAMESPACE, client, run_test, stranger};
use prism_adapters::conformance::{Client, Direct, Failure, Opened};
use prism_adapters::nats::Nats;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1::{
    AcknowledgeRequest, AcknowledgeResponse, EventDelivery, PublishPersistentRequest,
    PublishPersistentResponse, PublishRequest, PublishResponse, SubscribeDurableRequest,
    SubscribeResponse, UnsubscribeRequest, UnsubscribeResponse, subscribe_response,
};
use prism_proto::prism::r#type::v1::{Message, Start, start};
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

fn text(text: &str) -> Message {
    Message { payload: text.to_owned().into(), ..Default::default() }
}

async fn publish(
    client: &Direct<Nats>,
    topic: &str,
    message: Message,
) -> Result<PublishPersistentResponse, Failure> {
    let (namespace, topic) = (NAMESPACE.to_owned(), topic.to_owned());
    let request = PublishPersistentRequest { namespace, topic, message: Some(message) };
    call(client, Method::PUBSUB_PUBLISH_PERSISTENT, &request).await
}

/// A stream of the subscription `eu.billing` of a topic, from the beginning.
async fn subscribe<'a>(client: &'a Direct<Nats>, topic: &str) -> impl Opened + 'a {
    let request = SubscribeDurableRequest {
        namespace: NAMESPACE.to_owned(),
        topic: topic.to_owned(),
        subscription_id: "eu.billing".to_owned(),
        start: Some(Start { start: Some(start::Start::Earliest(())) }),
        ..Default::default()
    };
    let opened = client.open(Method::PUBSUB_SUBSCRIBE_DURABLE, request.encode_to_vec()).await;
    let mut opened = opened.expect("it begins");
    let first = next(&mut opened).await;
    assert!(matches!(first, subscribe_response::Event::Started(_)), "{first:?}");
    opened
}

async fn next(opened: &mut impl Opened) -> subscribe_response::Event {
    let message = opened.next().await.expect("it goes on").expect("it is not at its end");
    SubscribeResponse::decode(message).expect("a valid message").event.expect("an event")
}

async fn take(opened: &mut impl Opened) -> EventDelivery {
    match next(opened).await {
        subscribe_response::Event::Delivery(delivery) => delivery,
        other => panic!("{other:?}"),
    }
}

fn payload(delivery: &EventDelivery) -> String {
    let message = delivery.delivery.as_ref().unwrap().message.as_ref().unwrap();
    String::from_utf8(message.payload.to_vec()).unwrap()
}

fn receipt(delivery: &EventDelivery) -> String {
    delivery.delivery.as_ref().unwrap().receipt.clone()
}

/// Acknowledges and returns, for each receipt, whether it was accepted.
async fn acknowledge(
    client: &Direct<Nats>,
    topic: &str,
    receipts: Vec<String>,
) -> Result<Vec<bool>, Failure> {
    let request = AcknowledgeRequest {
        namespace: NAMESPACE.to_owned(),
        topic: topic.to_owned(),
        subscription_id: "eu.billing".to_owned(),
        receipts,
    };
    let answer: AcknowledgeResponse = call(client, Method::PUBSUB_ACKNOWLEDGE, &request).await?;
    Ok(answer.results.iter().map(|result| result.status.is_none()).collect())
}

#[test]
fn its_own_client_sees_a_stream_and_a_consumer_and_publishes_to_it() {
    let server = OwnNats::start("");
    run_test(async move {
        let client = client(&server);
        let message = Message {
            content_type: "text/plain".to_owned(),
            attributes: [("kind".to_owned(), "new".to_owned())].into(),
            ..text("one")
        };
        let published = publish(&client, "eu.new", message).await.unwrap();
        assert_eq!(published.position.unwrap().offset, "1");
        let mut opened = subscribe(&client, "eu.new").await;
        let one = take(&mut opened).await;
        assert_eq!(acknowledge(&client, "eu.new", vec![receipt(&one)]).await, Ok(vec![true]));
        stranger(&server, |jetstream| async move {
            let mut stream = jetstream.get_stream("EVENTS_conformance").await.unwrap();
            assert_eq!(stream.info().await.unwrap().config.subjects, ["conformance.>"]);
            let stored = stream.get_raw_message(1).await.unwrap();
            assert_eq!(
                (&*stored.subject, &stored.payload[..]),
                ("conformance.eu.new", &b"one"[..])
            );
            let header =
                |name: &str| stored.headers.get(name).map(|value| value.as_str().to_owned());
            assert_eq!(header("Nats-Msg-Id"), Some(published.message_id));
            assert_eq!(header("Content-Type").as_deref(), Some("text/plain"));
            assert_eq!(header("kind").as_deref(), Some("new"));
            let mut consumer: jetstream::consumer::PullConsumer =
                stream.get_consumer("eu=billing").await.unwrap();
            let info = consumer.info().await.unwrap();
            assert_eq!((info.ack_floor.stream_sequence, info.num_ack_pending), (1, 0));
            assert_eq!(info.config.filter_subject, "conformance.eu.new");
            let sent = jetstream.publish("conformance.eu.new", "by hand".into()).await.unwrap();
            assert_eq!(sent.await.unwrap().sequence, 2);
        });
        let by_hand = take(&mut opened).await;
        assert_eq!(payload(&by_hand), "by hand");
        let delivery = by_hand.delivery.clone().unwrap();
        assert_eq!((delivery.attempt, &*delivery.message.unwrap().id), (1, "2"));
        // Receipts are good once for what was handed out, and forged ones for nothing.
        let forged = receipt(&by_hand).replacen('2', "ffffff", 1);
        let receipts = vec![receipt(&by_hand), forged];
        assert_eq!(acknowledge(&client, "eu.new", receipts).await, Ok(vec![true, false]));
    });
}

#[test]
fn a_subscription_that_somebody_deletes_there_ends_and_is_gone() {
    let server = OwnNats::start("");
    run_test(async move {
        let client = client(&server);
        publish(&client, "t", text("one")).await.unwrap();
        let mut opened = subscribe(&client, "t").await;
        let one = take(&mut opened).await;
        stranger(&server, |jetstream| async move {
            let stream = jetstream.get_stream("EVENTS_conformance").await.unwrap();
            stream.delete_consumer("eu=billing").await.unwrap();
        });
        assert_eq!(opened.next().await, Ok(None));
        let refused = acknowledge(&client, "t", vec![receipt(&one)]).await.unwrap_err();
        assert_eq!((refused.code, &*refused.reason), (5, "SUBSCRIPTION_NOT_FOUND"));
        // One that is made anew does not take the receipts of the one before.
        let mut again = subscribe(&client, "t").await;
        assert_eq!(payload(&take(&mut again).await), "one");
        assert_eq!(acknowledge(&client, "t", vec![receipt(&one)]).await, Ok(vec![false]));
    });
}

#[test]
fn what_jetstream_refuses_is_not_published() {
    let server = OwnNats::start("");
    run_test(async move {
        let client = client(&server);
        publish(&client, "t", text("one")).await.unwrap();
        stranger(&server, |jetstream| async move {
            let stream = jetstream.get_stream("EVENTS_conformance").await.unwrap();
            let mut config = stream.cached_info().config.clone();
            config.max_messages = 2;
            jetstream.update_stream(config).await.unwrap();
        });
        publish(&client, "t", text("two")).await.unwrap();
        let refused = publish(&client, "t", text("three")).await.unwrap_err();
        assert_eq!((refused.code, &*refused.reason), (8, "BACKEND_FULL"), "{refused:?}");
        // Nor is what any other method publishes, where it has a record; a client of this kind gives each of its writes one.
        let (namespace, topic) = (NAMESPACE.to_owned(), "t".to_owned());
        let request = PublishRequest { namespace, topic, message: Some(text("three")) };
        let refused = call::<PublishResponse>(&client, Method::PUBSUB_PUBLISH, &request).await;
        assert_eq!(refused.unwrap_err().reason, "BACKEND_FULL");
        // What is there is there for those who subscribe, and nothing else.
        let mut opened = subscribe(&client, "t").await;
        let taken = [take(&mut opened).await, take(&mut opened).await];
        assert_eq!(taken.each_ref().map(payload), ["one", "two"]);
        stranger(&server, |jetstream| async move {
            let stream = jetstream.get_stream("EVENTS_conformance").await.unwrap();
            let mut config = stream.cached_info().config.clone();
            config.max_messages = -1;
            jetstream.update_stream(config).await.unwrap();
        });
        let again: PublishResponse = call(&client, Method::PUBSUB_PUBLISH, &request).await.unwrap();
        assert_eq!(again.position.unwrap().offset, "3");
        assert_eq!(payload(&take(&mut opened).await), "three");
    });
}

#[test]
fn a_stream_that_throws_events_away_is_refused_and_left_as_it_is() {
    let server = OwnNats::start("");
    stranger(&server, |jetstream| async move {
        let config = jetstream::stream::Config {
            name: "EVENTS_conformance".to_owned(),
            subjects: vec!["conformance.>".to_owned()],
            retention: jetstream::stream::RetentionPolicy::WorkQueue,
            ..Default::default()
        };
        jetstream.create_stream(config).await.unwrap();
    });
    run_test(async move {
        let client = client(&server);
        let refused = publish(&client, "t", text("one")).await.unwrap_err();
        assert_eq!((refused.code, &*refused.reason), (9, "BACKEND_STREAM_UNFIT"), "{refused:?}");
        assert!(refused.message.contains("EVENTS_conformance"), "{refused:?}");
    });
}

#[test]
fn events_and_receipts_outlive_the_server_and_prism() {
    let mut server = OwnNats::start("");
    run_test(async move {
        let before = client(&server);
        for number in 0..3 {
            publish(&before, "t", text(&number.to_string())).await.unwrap();
        }
        let mut opened = subscribe(&before, "t").await;
        let taken = [take(&mut opened).await, take(&mut opened).await, take(&mut opened).await];
        assert_eq!(taken.each_ref().map(payload), ["0", "1", "2"]);
        server.kill();
        let refused = publish(&before, "t", text("lost")).await.unwrap_err();
        assert_eq!(refused.code, 14, "{refused:?}");
        server.restart();
        // The stream goes on by itself, with what is published after the outage.
        let publish_again = async {
            while publish(&before, "t", text("3")).await.is_err() {
                rt::sleep(Duration::from_millis(20)).await;
            }
        };
        rt::timeout(LONG, publish_again).await.expect("it comes back");
        // A server that was killed may not know any more what it had handed out, and does so again.
        let mut heard = payload(&take(&mut opened).await);
        while heard != "3" {
            assert!(["0", "1", "2"].contains(&&*heard), "{heard}");
            heard = payload(&take(&mut opened).await);
        }
        // Another Prism knows nothing of them, and takes the receipts of two.
        let after = client(&server);
        let receipts = vec![receipt(&taken[0]), receipt(&taken[2])];
        assert_eq!(acknowledge(&after, "t", receipts).await, Ok(vec![true, true]));
        drop(opened);
        let mut opened = subscribe(&after, "t").await;
        let mut left = [payload(&take(&mut opened).await), payload(&take(&mut opened).await)];
        left.sort();
        assert_eq!(left, ["1", "3"], "what was not acknowledged comes again, and nothing else");
    });
}

#[test]
fn an_ordered_subscription_waits_for_what_a_prism_that_has_died_had_in_hand() {
    let server = OwnNats::start("");
    run_test(async move {
        let dies = client(&server);
        for number in 0..3 {
            publish(&dies, "t", text(&number.to_string())).await.unwrap();
        }
        let request = SubscribeDurableRequest {
            namespace: NAMESPACE.to_owned(),
            topic: "t".to_owned(),
            subscription_id: "eu.billing".to_owned(),
            start: Some(Start { start: Some(start::Start::Earliest(())) }),
            ack_wait: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
            ordered: true,
            ..Default::default()
        };
        let request = request.encode_to_vec();
        let method = Method::PUBSUB_SUBSCRIBE_DURABLE;
        let mut opened = dies.open(method, request.clone()).await.unwrap();
        next(&mut opened).await;
        assert_eq!(payload(&take(&mut opened).await), "0");
        // Nothing of it is given back.
        std::mem::forget(opened);
        let heir = client(&server);
        publish(&heir, "t", text("3")).await.unwrap();
        let mut opened = heir.open(method, request).await.unwrap();
        next(&mut opened).await;
        for expected in ["0", "1", "2", "3"] {
            let taken = take(&mut opened).await;
            assert_eq!(payload(&taken), expected);
            acknowledge(&heir, "t", vec![receipt(&taken)]).await.unwrap();
        }
    });
}

#[test]
fn without_jetstream_a_subscription_that_nobody_has_made_is_deleted_all_the_same() {
    let server = OwnNats::without_jetstream();
    run_test(async move {
        let client = client(&server);
        let (namespace, subscription_id) = (NAMESPACE.to_owned(), "eu.billing".to_owned());
        let request = UnsubscribeRequest { namespace, subscription_id };
        let answer: UnsubscribeResponse =
            call(&client, Method::PUBSUB_UNSUBSCRIBE, &request).await.unwrap();
        assert_eq!(answer.existed, None);
        let refused = publish(&client, "t", text("one")).await.unwrap_err();
        assert_eq!((refused.code, &*refused.reason), (14, "BACKEND_NOT_READY"), "{refused:?}");
    });
}
