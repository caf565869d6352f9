//! Queues on a real NATS: what NATS's own client sees of them, and what outlives Prism and the server.

mod nats_client;
mod servers;

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::stream::RetentionPolicy;
use bytes::Bytes;
use futures_util::TryStreamExt;
use nats_client::{NAMESPACE, client, run_test, stranger};
use prism_adapters::conformance::{Client, Direct, Failure};
use prism_adapters::nats::Nats;
use prism_adapters::{Backend, Context, Limits, NO_DEADLINE_NS};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::queue::v1::{
    AcknowledgeRequest, AcknowledgeResponse, ConfigureDeadLetterRequest,
    ConfigureDeadLetterResponse, ExtendVisibilityRequest, ExtendVisibilityResponse,
    GetScheduledCountRequest, GetScheduledCountResponse, ReceiveRequest, ReceiveResponse,
    RejectRequest, RejectResponse, ReleaseRequest, ReleaseResponse, SendDelayedRequest,
    SendDelayedResponse, SendRequest, SendResponse,
};
use prism_proto::prism::r#type::v1::{Delivery, Message, message::DeliveryTime};
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

fn keyed(key: &str, payload: &str) -> Message {
    Message { ordering_key: key.to_owned(), ..text(payload) }
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// Calls about one queue.
struct Queue<'a>(&'a Direct<Nats>, &'static str);

impl Queue<'_> {
    fn names(&self) -> (String, String) {
        (NAMESPACE.to_owned(), self.1.to_owned())
    }

    async fn send(&self, message: Message) -> Result<String, Failure> {
        let (namespace, queue) = self.names();
        let request = SendRequest { namespace, queue, message: Some(message) };
        Ok(call::<SendResponse>(self.0, Method::QUEUE_SEND, &request).await?.message_id)
    }

    async fn receive(&self, max_messages: u32) -> Result<Vec<Delivery>, Failure> {
        let (namespace, queue) = self.names();
        let visibility_timeout = Some(seconds(3600));
        let request =
            ReceiveRequest { namespace, queue, max_messages, visibility_timeout, wait: None };
        Ok(call::<ReceiveResponse>(self.0, Method::QUEUE_RECEIVE, &request).await?.deliveries)
    }

    /// What comes, though not at once.
    async fn receive_in_time(&self, max_messages: u32) -> Vec<Delivery> {
        let some = async {
            loop {
                match self.receive(max_messages).await {
                    Ok(deliveries) if !deliveries.is_empty() => return deliveries,
                    _ => rt::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        rt::timeout(LONG, some).await.expect("a message comes")
    }

    /// The reason why a receipt was refused; empty where it was not.
    async fn acknowledge(&self, receipt: &str) -> String {
        let (namespace, queue) = self.names();
        let receipts = vec![receipt.to_owned()];
        let request = AcknowledgeRequest { namespace, queue, receipts };
        let answer: AcknowledgeResponse =
            call(self.0, Method::QUEUE_ACKNOWLEDGE, &request).await.expect("answered");
        let status = answer.results.into_iter().next().expect("one result").status;
        status.map_or(String::new(), |status| status.message)
    }

    async fn extend(&self, receipt: &str) -> Result<ExtendVisibilityResponse, Failure> {
        let (namespace, queue) = self.names();
        let (receipt, visibility_timeout) = (receipt.to_owned(), Some(seconds(7200)));
        let request = ExtendVisibilityRequest { namespace, queue, receipt, visibility_timeout };
        call(self.0, Method::QUEUE_EXTEND_VISIBILITY, &request).await
    }

    async fn release(&self, receipt: &str) -> Result<ReleaseResponse, Failure> {
        let (namespace, queue) = self.names();
        let request = ReleaseRequest { namespace, queue, receipt: receipt.to_owned(), delay: None };
        call(self.0, Method::QUEUE_RELEASE, &request).await
    }
}

fn texts(deliveries: &[Delivery]) -> Vec<String> {
    let payload = |one: &Delivery| one.message.as_ref().expect("a message").payload.to_vec();
    deliveries.iter().map(|one| String::from_utf8(payload(one)).expect("text")).collect()
}

#[test]
fn its_own_client_sees_the_messages_sends_one_and_takes_one() {
    let server = OwnNats::start("");
    run_test(async move {
        let client = client(&server);
        let queue = Queue(&client, "eu.mail");
        let message = Message {
            content_type: "text/plain".to_owned(),
            attributes: [("kind".to_owned(), "new".to_owned())].into(),
            ..text("one")
        };
        let id = queue.send(message).await.unwrap();
        queue.send(keyed("customer 7", "two")).await.unwrap();
        let (namespace, name) = queue.names();
        let later = Some(DeliveryTime::Delay(seconds(3600)));
        let later = Some(Message { delivery_time: later, ..text("later") });
        let request = SendDelayedRequest { namespace, queue: name, message: later };
        let _: SendDelayedResponse =
            call(&client, Method::QUEUE_SEND_DELAYED, &request).await.unwrap();
        stranger(&server, |jetstream| async move {
            let stream = jetstream.get_stream("QUEUE_conformance_eu=mail").await.unwrap();
            let config = &stream.cached_info().config;
            assert_eq!(config.retention, RetentionPolicy::WorkQueue);
            assert_eq!(config.subjects[0], "$QUEUE.conformance.eu.mail");
            let stored = stream.get_raw_message(1).await.unwrap();
            assert_eq!(
                (&*stored.subject, &stored.payload[..]),
                (&*config.subjects[0], &b"one"[..])
            );
            let header =
                |name: &str| stored.headers.get(name).map(|value| value.as_str().to_owned());
            assert_eq!(header("Nats-Msg-Id"), Some(id));
            assert_eq!(header("Content-Type").as_deref(), Some("text/plain"));
            assert_eq!(header("kind").as_deref(), Some("new"));
            assert!(stream.get_raw_message(2).await.unwrap().subject.starts_with("$QUEUE_KEY."));
            let sent = jetstream.publish("$QUEUE.conformance.eu.mail", "from outside".into()).await;
            sent.unwrap().await.unwrap();
            let consumer: PullConsumer = stream.get_consumer("messages").await.unwrap();
            let mut first = consumer.fetch().max_messages(1).messages().await.unwrap();
            let first = first.try_next().await.unwrap().expect("the first message");
            assert_eq!(&first.payload[..], b"one");
            first.double_ack().await.unwrap();
        });
        let received = queue.receive_in_time(10).await;
        assert_eq!(texts(&received), ["two", "from outside"]);
        assert!(received.iter().all(|one| !one.message.as_ref().unwrap().id.is_empty()));
        for delivery in &received {
            assert_eq!(queue.acknowledge(&delivery.receipt).await, "");
        }
        let (namespace, name) = queue.names();
        let request = GetScheduledCountRequest { namespace, queue: name };
        let scheduled: GetScheduledCountResponse =
            call(&client, Method::QUEUE_GET_SCHEDULED_COUNT, &request).await.unwrap();
        assert_eq!(scheduled.count, 1);
        stranger(&server, |jetstream| async move {
            let stream = jetstream.get_stream("QUEUE_conformance_eu=mail").await.unwrap();
            let left = stream.cached_info().state.messages;
            assert_eq!(left, 1, "what was dealt with is gone, what is for later is there");
        });
    });
}

#[test]
fn dead_letters_lie_in_a_stream_of_their_own_with_what_became_of_them() {
    let server = OwnNats::start("");
    run_test(async move {
        let client = client(&server);
        let queue = Queue(&client, "jobs");
        let (namespace, name) = queue.names();
        let request = ConfigureDeadLetterRequest { namespace, queue: name, max_deliveries: 3 };
        let _: ConfigureDeadLetterResponse =
            call(&client, Method::QUEUE_CONFIGURE_DEAD_LETTER, &request).await.unwrap();
        let id = queue.send(text("bad")).await.unwrap();
        let received = queue.receive(1).await.unwrap();
        let (namespace, name) = queue.names();
        let (receipts, reason) = (vec![received[0].receipt.clone()], "cannot parse".to_owned());
        let request = RejectRequest { namespace, queue: name, receipts, reason };
        let _: RejectResponse = call(&client, Method::QUEUE_REJECT, &request).await.unwrap();
        stranger(&server, |jetstream| async move {
            let work = jetstream.get_stream("QUEUE_conformance_jobs").await.unwrap();
            let info = work.cached_info();
            assert_eq!(info.state.messages, 0);
            let max = info.config.metadata.get("prism-max-deliveries");
            assert_eq!(max.map(String::as_str), Some("3"));
            let dead = jetstream.get_stream("DEAD_conformance_jobs").await.unwrap();
            let letter = dead.get_raw_message(1).await.unwrap();
            assert_eq!(
                (&*letter.subject, &letter.payload[..]),
                ("$DEAD.conformance.jobs.1", &b"bad"[..])
            );
            let header =
                |name: &str| letter.headers.get(name).map(|value| value.as_str().to_owned());
            assert_eq!(header("Prism-Reason").as_deref(), Some("cannot parse"));
            assert_eq!(header("Prism-Attempts").as_deref(), Some("1"));
            assert_eq!(header("Prism-Id"), Some(id));
        });
    });
}

#[test]
fn receipts_outlive_prism_and_the_server() {
    let mut server = OwnNats::start("");
    run_test(async move {
        let before = client(&server);
        let queue = Queue(&before, "q");
        for number in 0..4 {
            queue.send(text(&number.to_string())).await.unwrap();
        }
        let held = queue.receive(3).await.unwrap();
        assert_eq!(texts(&held), ["0", "1", "2"]);
        queue.extend(&held[1].receipt).await.unwrap();
        queue.release(&held[2].receipt).await.unwrap();
        drop(before);
        server.stop();
        server.restart();
        let after = client(&server);
        let queue = Queue(&after, "q");
        let again = queue.receive_in_time(10).await;
        assert_eq!(texts(&again), ["2", "3"], "the others are still away");
        assert_eq!(again[0].attempt, 2);
        assert_eq!(queue.acknowledge(&held[0].receipt).await, "");
        assert_eq!(queue.acknowledge(&held[1].receipt).await, "");
        let expired = queue.acknowledge(&held[0].receipt).await;
        assert!(expired.contains("over"), "it is acknowledged: {expired}");
        let stale = queue.release(&held[2].receipt).await.unwrap_err();
        assert_eq!(stale.reason, "RECEIPT_EXPIRED", "it was given back");
        assert_eq!(queue.acknowledge(&again[0].receipt).await, "");
        assert_eq!(queue.acknowledge(&again[1].receipt).await, "");
        assert_eq!(queue.receive(10).await.unwrap(), []);
    });
}

#[test]
fn two_of_prism_keep_the_order_of_a_key() {
    let server = OwnNats::start("");
    run_test(async move {
        let (one, other) = (client(&server), client(&server));
        let (one, other) = (Queue(&one, "q"), Queue(&other, "q"));
        for payload in ["a1", "a2"] {
            one.send(keyed("a", payload)).await.unwrap();
        }
        let held = one.receive(10).await.unwrap();
        assert_eq!(texts(&held), ["a1"]);
        other.send(text("free")).await.unwrap();
        assert_eq!(texts(&other.receive_in_time(10).await), ["free"]);
        assert_eq!(other.receive(10).await.unwrap(), [], "one of the key is away");
        // Good for whoever is asked.
        assert_eq!(other.acknowledge(&held[0].receipt).await, "");
        assert_eq!(texts(&other.receive_in_time(10).await), ["a2"]);
        assert_eq!(one.receive(10).await.unwrap(), []);
    });
}

#[test]
fn an_answer_has_as_many_messages_as_it_has_room_for() {
    let server = OwnNats::start("");
    run_test(async move {
        let client = client(&server);
        let queue = Queue(&client, "q");
        // Before the server has said what it takes in one message, nothing so large is sent.
        Queue(&client, "first").send(text("small")).await.unwrap();
        let large = "x".repeat(1 << 20);
        for number in 0..6 {
            queue.send(text(&format!("{number}{large}"))).await.unwrap();
        }
        let mut received = Vec::new();
        while received.len() < 6 {
            received.extend(queue.receive_in_time(10).await);
        }
        let numbers: Vec<String> =
            texts(&received).iter().map(|text| text[..1].to_owned()).collect();
        assert_eq!(numbers, ["0", "1", "2", "3", "4", "5"]);
        assert!(received.iter().all(|one| one.attempt == 1), "none was taken in vain");
    });
}

#[test]
fn who_waits_hears_of_what_another_prism_sends() {
    let server = OwnNats::start("");
    run_test(async move {
        let (one, other) = (client(&server), client(&server));
        let (namespace, queue) = Queue(&one, "q").names();
        let request = ReceiveRequest { namespace, queue, ..Default::default() }.encode_to_vec();
        let limits = Limits::default();
        let context = Context {
            namespace: 1,
            namespace_name: NAMESPACE,
            partition: 0,
            now_us: wall_us(),
            deadline_ns: NO_DEADLINE_NS,
            revision: Default::default(),
            limits: &limits,
        };
        let sent = async {
            rt::yield_now().await;
            Queue(&other, "q").send(text("hello")).await.unwrap();
        };
        let ready = one.backend.ready(&context, Method::QUEUE_RECEIVE, &request);
        let both = futures_util::future::join(ready, sent);
        rt::timeout(LONG, both).await.expect("it is told");
        assert_eq!(texts(&Queue(&one, "q").receive_in_time(1).await), ["hello"]);
    });
}
