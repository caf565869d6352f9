//! Topics on a real Redis: what redis-cli sees and publishes of them, how many subscriptions of Redis that takes, and what
//! subscribers see of a slow reader and of an outage.

mod servers;

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use prism_adapters::breaker::Backoff;
use prism_adapters::conformance::{Client, Direct, Failure, Opened, Versions};
use prism_adapters::redis::{Login, Redis, RedisConfig};
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1 as pubsub;
use prism_proto::prism::r#type::v1::Message;
use prost::Message as _;
use servers::{LONG, OwnRedis};

fn config(server: &OwnRedis) -> RedisConfig {
    let (delay_min, delay_max) = (Duration::from_millis(5), Duration::from_millis(50));
    RedisConfig {
        backoff: Backoff { delay_min, delay_max },
        // None of this is about a slow Redis.
        connect_timeout: LONG,
        answer_timeout: LONG,
        ..RedisConfig::at(server.address.ip().to_string(), server.address.port())
    }
}

fn client(server: &OwnRedis) -> Direct<Redis> {
    Direct::in_real_time(Redis::start(config(server)), Versions::Digest)
}

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(3 * LONG, test).await.expect("the test ends in time") })
        .unwrap();
}

async fn publish(client: &Direct<Redis>, topic: &str, message: Message) -> Result<String, Failure> {
    let (namespace, topic) = (client.namespace().to_owned(), topic.to_owned());
    let request = pubsub::PublishRequest { namespace, topic, message: Some(message) };
    let answer = client.unary(Method::PUBSUB_PUBLISH, request.encode_to_vec()).await?;
    Ok(pubsub::PublishResponse::decode(answer).expect("a valid message").message_id)
}

fn text(text: &'static str) -> Message {
    Message { payload: text.into(), ..Default::default() }
}

/// Subscribes, by a pattern where it is one, and waits until that stands.
async fn subscribe<'a>(
    client: &'a Direct<Redis>,
    heard: &str,
) -> Result<<Direct<Redis> as Client>::Opened<'a>, Failure> {
    let (namespace, heard) = (client.namespace().to_owned(), heard.to_owned());
    let (method, request) = match heard.contains(['*', '>']) {
        true => {
            let pattern = heard;
            let request =
                pubsub::SubscribePatternRequest { namespace, pattern, ..Default::default() };
            (Method::PUBSUB_SUBSCRIBE_PATTERN, request.encode_to_vec())
        }
        false => {
            let request =
                pubsub::SubscribeRequest { namespace, topic: heard, ..Default::default() };
            (Method::PUBSUB_SUBSCRIBE, request.encode_to_vec())
        }
    };
    let mut opened = client.open(method, request).await?;
    opened.next().await?.expect("a stream begins with `started`");
    Ok(opened)
}

/// The topic and the message of the next event.
async fn heard(opened: &mut impl Opened) -> Result<(String, Message), Failure> {
    let message = opened.next().await?.expect("it goes on");
    match pubsub::SubscribeResponse::decode(message).expect("a valid message").event {
        Some(pubsub::subscribe_response::Event::Delivery(heard)) => {
            Ok((heard.topic, heard.delivery.expect("a delivery").message.expect("a message")))
        }
        other => panic!("an event is to come, not {other:?}"),
    }
}

/// What redis-cli prints, line by line, until it is told to end.
struct Cli(std::process::Child, Receiver<String>);

impl Cli {
    fn subscribe(server: &OwnRedis, channel_name: &str) -> Self {
        let mut child = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &server.address.port().to_string()])
            .args(["SUBSCRIBE", channel_name])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("redis-cli, of the Debian package redis-tools, is there");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            lines.map_while(Result::ok).take_while(|line| tell.send(line.clone()).is_ok()).count()
        });
        let cli = Cli(child, told);
        assert_eq!(cli.lines(3), ["subscribe", channel_name, "1"]);
        cli
    }

    fn lines(&self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.1.recv_timeout(LONG).expect("a line comes")).collect()
    }
}

impl Drop for Cli {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn redis_cli_hears_payloads_and_is_heard() {
    let server = OwnRedis::start(&[]);
    run(async move {
        let client = client(&server);
        let cli = Cli::subscribe(&server, "conformance.eu.new");
        let typed = Message { content_type: "text/plain".to_owned(), ..text("bezahlt €") };
        publish(&client, "eu.new", typed).await.unwrap();
        assert_eq!(cli.lines(3), ["message", "conformance.eu.new", "bezahlt €"]);

        let mut all = subscribe(&client, "eu.>").await.unwrap();
        let mut one = subscribe(&client, "eu.new").await.unwrap();
        server.cli(&["PUBLISH", "conformance.eu.$odd", "no topic"]);
        server.cli(&["PUBLISH", "conformance.eu.new", "by hand"]);
        // What is beside the payload of another event is not taken for this one's.
        server.cli(&["PUBLISH", "_prism:conformance.eu.new", "id forged"]);
        server.cli(&["PUBLISH", "conformance.eu.other", "plain"]);
        let by_hand = ("eu.new".to_owned(), text("by hand"));
        assert_eq!(heard(&mut all).await.unwrap(), by_hand);
        assert_eq!(heard(&mut one).await.unwrap(), by_hand);
        assert_eq!(heard(&mut all).await.unwrap(), ("eu.other".to_owned(), text("plain")));
        let id = publish(&client, "eu.new", text("ours")).await.unwrap();
        let ours = ("eu.new".to_owned(), Message { id, ..text("ours") });
        assert_eq!(heard(&mut all).await.unwrap(), ours);
        assert_eq!(heard(&mut one).await.unwrap(), ours);
    });
}

/// How many subscriptions Redis knows: channels, and patterns.
fn subscriptions(server: &OwnRedis) -> (usize, String) {
    let channels = server.cli(&["PUBSUB", "CHANNELS"]);
    (channels.lines().filter(|line| !line.is_empty()).count(), server.cli(&["PUBSUB", "NUMPAT"]))
}

#[test]
fn subscribers_of_a_shard_share_what_they_ask_of_redis_and_take_it_back() {
    let server = OwnRedis::start(&[]);
    run(async move {
        let client = client(&server);
        // All three patterns are one of Redis's, each with what is beside the payloads.
        let mut any = subscribe(&client, "a.>").await.unwrap();
        let mut any_too = subscribe(&client, "a.>").await.unwrap();
        let mut one = subscribe(&client, "a.*").await.unwrap();
        let mut ends = subscribe(&client, "a.*.c").await.unwrap();
        let mut topic = subscribe(&client, "a.b.c").await.unwrap();
        assert_eq!(subscriptions(&server), (2, "2".to_owned()));
        publish(&client, "a.b", text("1")).await.unwrap();
        publish(&client, "a.b.c", text("2")).await.unwrap();
        for opened in [&mut any, &mut any_too] {
            assert_eq!(heard(opened).await.unwrap().0, "a.b");
            assert_eq!(heard(opened).await.unwrap().0, "a.b.c");
        }
        assert_eq!(heard(&mut one).await.unwrap().0, "a.b");
        assert_eq!(heard(&mut ends).await.unwrap().0, "a.b.c");
        assert_eq!(heard(&mut topic).await.unwrap().0, "a.b.c");
        drop((any, any_too, ends, topic));
        publish(&client, "a.d", text("3")).await.unwrap();
        assert_eq!(heard(&mut one).await.unwrap().0, "a.d", "who is left goes on");
        drop(one);
        let gone = async {
            while subscriptions(&server) != (0, "0".to_owned()) {
                rt::sleep(Duration::from_millis(5)).await;
            }
        };
        rt::timeout(LONG, gone).await.expect("nothing is left subscribed");
        // And it may begin again.
        let mut again = subscribe(&client, "a.b").await.unwrap();
        publish(&client, "a.b", text("4")).await.unwrap();
        assert_eq!(heard(&mut again).await.unwrap().1.payload, "4");
    });
}

#[test]
fn a_slow_subscriber_is_told_and_holds_up_nobody() {
    let server = OwnRedis::start(&[]);
    run(async move {
        let client = client(&server);
        let mut slow = subscribe(&client, "t").await.unwrap();
        let mut quick = subscribe(&client, "t").await.unwrap();
        for _ in 0..1_500 {
            publish(&client, "t", text("x")).await.unwrap();
            heard(&mut quick).await.expect("it hears everything");
        }
        let mut count = 0;
        let failure = loop {
            match heard(&mut slow).await {
                Ok(_) => count += 1,
                Err(failure) => break failure,
            }
        };
        assert_eq!((failure.code, &*failure.reason), (11, "SUBSCRIBER_BEHIND"));
        assert!((1_000..1_500).contains(&count), "{count}");
    });
}

#[test]
fn a_subscriber_is_told_of_an_outage_and_may_come_back() {
    let mut server = OwnRedis::start(&[]);
    run(async move {
        let client = client(&server);
        let mut topic = subscribe(&client, "t").await.unwrap();
        let mut pattern = subscribe(&client, "*").await.unwrap();
        publish(&client, "t", text("before")).await.unwrap();
        assert_eq!(heard(&mut topic).await.unwrap().1.payload, "before");
        server.kill();
        // What came before the end is heard before it.
        assert_eq!(heard(&mut pattern).await.unwrap().1.payload, "before");
        for opened in [heard(&mut topic).await, heard(&mut pattern).await] {
            let failure = opened.expect_err("the connection is gone");
            assert_eq!((failure.code, &*failure.reason), (14, "SUBSCRIPTION_CUT_OFF"));
        }
        let failure = subscribe(&client, "t").await.err().expect("nobody is there");
        assert_eq!(failure.code, 14, "{failure:?}");
        let failure = publish(&client, "t", text("lost")).await.expect_err("nobody is there");
        assert_eq!(failure.code, 14, "{failure:?}");
        server.restart();
        let back = async {
            loop {
                if let Ok(opened) = subscribe(&client, "t").await
                    && publish(&client, "t", text("after")).await.is_ok()
                {
                    return opened;
                }
                rt::sleep(Duration::from_millis(20)).await;
            }
        };
        let mut opened = rt::timeout(LONG, back).await.expect("it comes back");
        assert_eq!(heard(&mut opened).await.unwrap().1.payload, "after");
    });
}

#[test]
fn a_user_who_may_not_subscribe_is_told_and_harms_nobody() {
    let server = OwnRedis::start(&[]);
    let rules = ["on", ">secret", "~*", "+@all", "resetchannels", "&*conformance.mine"];
    assert_eq!(server.cli(&[&["ACL", "SETUSER", "app"], &rules[..]].concat()), "OK");
    run(async move {
        let login = Some(Login { user: "app".to_owned(), password: "secret".to_owned() });
        let redis = Redis::start(RedisConfig { login, ..config(&server) });
        let client = Direct::in_real_time(redis, Versions::Digest);
        let mut mine = subscribe(&client, "mine").await.unwrap();
        for other in ["other", "mine.>"] {
            let failure = subscribe(&client, other).await.err().expect("it may not");
            assert_eq!((failure.code, &*failure.reason), (14, "BACKEND_CREDENTIALS_REFUSED"));
        }
        assert!(publish(&client, "other", text("x")).await.is_err());
        publish(&client, "mine", text("heard")).await.unwrap();
        assert_eq!(heard(&mut mine).await.unwrap().1.payload, "heard", "its connection stands");
    });
}
