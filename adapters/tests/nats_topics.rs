//! Topics on a real NATS: what NATS's own client sees of them, and what subscribers see of an outage.

mod servers;

use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;
use prism_adapters::breaker::Backoff;
use prism_adapters::nats::{Nats, NatsConfig};
use prism_adapters::{Backend, Context, Error, Limits, PageSink, Reply};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1::{
    PublishRequest, PublishResponse, SubscribePatternRequest, SubscribeResponse, subscribe_response,
};
use prism_proto::prism::r#type::v1::Message;
use prost::Message as _;
use servers::{LONG, OwnNats};

const LIMITS: Limits = Limits { max_message_size: 4 * 1024 * 1024 };

fn config(server: &OwnNats) -> NatsConfig {
    let (delay_min, delay_max) = (Duration::from_millis(5), Duration::from_millis(50));
    NatsConfig {
        backoff: Backoff { delay_min, delay_max },
        ..NatsConfig::at(server.address.ip().to_string(), server.address.port())
    }
}

fn context() -> Context<'static> {
    Context {
        namespace: 1,
        namespace_name: "orders",
        partition: 0,
        now_us: wall_us(),
        revision: Default::default(),
        limits: &LIMITS,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    }
}

async fn publish(nats: &Nats, topic: &str, message: Message) -> Result<PublishResponse, Error> {
    let (namespace, topic) = ("orders".to_owned(), topic.to_owned());
    let request = PublishRequest { namespace, topic, message: Some(message) }.encode_to_vec();
    let mut reply = Reply::default();
    nats.unary_checked(&context(), Method::PUBSUB_PUBLISH, &request, Nats::SERVES, &mut reply)
        .await?;
    Ok(PublishResponse::decode(reply.to_bytes()).expect("a valid message"))
}

/// Takes messages until there are enough of them, and does something when the stream has begun.
struct Until<F> {
    heard: Vec<SubscribeResponse>,
    count: usize,
    begun: F,
}

impl<F: AsyncFnMut()> PageSink for Until<F> {
    fn now_us(&self) -> u64 {
        wall_us()
    }

    async fn send(&mut self, message: bytes::Bytes) -> Result<(), Error> {
        self.heard.push(SubscribeResponse::decode(message).expect("a valid message"));
        if self.heard.len() == 1 {
            (self.begun)().await;
        }
        match self.heard.len() > self.count {
            true => Err(Error::new(prism_adapters::Kind::Cancelled, "ENOUGH", "enough")),
            false => Ok(()),
        }
    }

    async fn wait(&mut self, event: impl Future<Output = ()>, _: u64) -> Result<(), Error> {
        event.await;
        Ok(())
    }

    async fn write(&mut self, _: Method, _: Vec<u8>) -> Result<bytes::Bytes, Error> {
        unreachable!("a stream of NATS keeps what it changes itself")
    }
}

async fn subscribe_pattern(
    nats: &Nats,
    pattern: &str,
    count: usize,
    begun: impl AsyncFnMut(),
) -> (Vec<SubscribeResponse>, Error) {
    let (namespace, pattern) = ("orders".to_owned(), pattern.to_owned());
    let request = SubscribePatternRequest { namespace, pattern, ..Default::default() };
    let mut sink = Until { heard: Vec::new(), count, begun };
    let request = request.encode_to_vec();
    let ended =
        nats.stream(&context(), Method::PUBSUB_SUBSCRIBE_PATTERN, &request, &mut sink).await;
    (sink.heard, ended.expect_err("it goes on until it is cut off"))
}

/// Runs something with NATS's own client beside the shard, and waits until it is done.
async fn stranger<F>(server: &OwnNats, work: impl FnOnce(async_nats::Client) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let url = format!("nats://{}", server.address);
    let done = std::sync::Arc::new(rt::Flag::default());
    let told = done.clone();
    prism_io::bridge::spawn_beside(async move {
        work(async_nats::connect(url).await.unwrap()).await;
        told.set();
    })
    .unwrap();
    rt::timeout(LONG, done.wait()).await.expect("done in time");
}

#[test]
fn its_own_client_hears_what_is_published_and_is_heard() {
    let server = OwnNats::start("");
    let config = config(&server);
    prism_io::rt::run(async move {
        let nats = Nats::start(config);
        let listening = std::sync::Arc::new(rt::Flag::default());
        let heard = std::sync::Arc::new(std::sync::Mutex::new(None));
        let (told, put) = (listening.clone(), heard.clone());
        let url = format!("nats://{}", server.address);
        let done = std::sync::Arc::new(rt::Flag::default());
        let ended = done.clone();
        prism_io::bridge::spawn_beside(async move {
            let client = async_nats::connect(url).await.unwrap();
            let mut subscriber = client.subscribe("orders.eu.*").await.unwrap();
            client.flush().await.unwrap();
            // What follows on the same connection says that the subscription stands.
            let mut own = client.subscribe("probe").await.unwrap();
            client.publish("probe", "".into()).await.unwrap();
            own.next().await.unwrap();
            told.set();
            *put.lock().unwrap() = subscriber.next().await;
            ended.set();
        })
        .unwrap();
        rt::timeout(LONG, listening.wait()).await.expect("it listens");
        let attributes = [("kind", "new"), ("blank", " two "), ("empty", "")];
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let message = Message {
            payload: b"{}".to_vec().into(),
            content_type: "application/json".to_owned(),
            attributes: attributes.into(),
            ..Default::default()
        };
        let published = publish(&nats, "eu.new", message.clone()).await.unwrap();
        assert_eq!(published.position, None, "nothing is stored");
        rt::timeout(LONG, done.wait()).await.expect("it hears");
        let message = heard.lock().unwrap().take().expect("a message");
        assert_eq!((&*message.subject, &message.payload[..]), ("orders.eu.new", &b"{}"[..]));
        let headers = message.headers.expect("it has some");
        let header = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        assert_eq!(header("Nats-Msg-Id"), Some(published.message_id));
        assert_eq!(header("Content-Type").as_deref(), Some("application/json"));
        assert_eq!(header("kind").as_deref(), Some("new"));

        // And the other way round: with headers of anybody's, and on subjects that are no topics.
        let (events, _) = subscribe_pattern(&nats, "us.>", 2, async || {
            stranger(&server, |client| async move {
                let mut headers = async_nats::HeaderMap::new();
                headers.insert("kind", "by hand");
                headers.insert("Nats-Something", "of the server");
                client.publish("orders.us.$odd", "no topic".into()).await.unwrap();
                client.publish_with_headers("orders.us.a", headers, "one".into()).await.unwrap();
                client.publish("orders.us.b.c", "two".into()).await.unwrap();
                client.flush().await.unwrap();
            })
            .await;
        })
        .await;
        let events: Vec<_> = events.into_iter().filter_map(|one| one.event).collect();
        let [_, subscribe_response::Event::Delivery(one), subscribe_response::Event::Delivery(two)] =
            &events[..]
        else {
            panic!("{events:?}")
        };
        assert_eq!((&*one.topic, &*two.topic), ("us.a", "us.b.c"));
        let message = one.delivery.clone().unwrap().message.unwrap();
        assert_eq!(&message.payload[..], b"one");
        assert_eq!(message.attributes, [("kind".to_owned(), "by hand".to_owned())].into());
    })
    .unwrap();
}

#[test]
fn a_subscriber_is_told_of_an_outage_and_may_come_back() {
    let mut server = OwnNats::start("");
    let config = config(&server);
    prism_io::rt::run(async move {
        let nats = Nats::start(config);
        let text = |text: &'static str| Message { payload: text.into(), ..Default::default() };
        publish(&nats, "t", text("it is there")).await.unwrap();
        let (heard, error) = subscribe_pattern(&nats, "*", 9, async || server.kill()).await;
        assert_eq!(heard.len(), 1);
        assert_eq!(error.reason(), "SUBSCRIPTION_CUT_OFF");
        assert!(error.is_retryable());
        let error = publish(&nats, "t", text("lost")).await.expect_err("nobody is there");
        assert!(error.message().contains("orders") && error.is_retryable(), "{error:?}");
        server.restart();
        let back = async {
            while publish(&nats, "t", text("again")).await.is_err() {
                rt::sleep(Duration::from_millis(20)).await;
            }
        };
        rt::timeout(LONG, back).await.expect("it comes back");
        let (heard, _) = subscribe_pattern(&nats, "*", 1, async || {
            publish(&nats, "t", text("heard")).await.unwrap();
        })
        .await;
        assert_eq!(heard.len(), 2);
    })
    .unwrap();
}
