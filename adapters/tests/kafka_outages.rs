//! What callers see of a Kafka that is down, silent, restarting, or not one at all: a failure that says so, in time, and a recovery
//! without being told.

mod servers;

use std::future::Future;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::{Duration, Instant};

use prism_adapters::breaker::Backoff;
use prism_adapters::kafka::{Kafka, KafkaConfig};
use prism_adapters::{Backend as _, Context, Error, Kind, Limits, PageSink, Reply};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::stream::v1::{AppendRequest, NewRecord, ReadRequest, ReadResponse};
use prism_proto::prism::r#type::v1::{Start, start};
use prost::Message as _;
use servers::OwnKafka;

/// How long the tests let Kafka be silent.
const PATIENCE: Duration = Duration::from_secs(2);

/// How much later than that a call may end on a busy machine.
const LATE: Duration = Duration::from_secs(10);

/// How long a broker may take to be back at work after its start.
const BACK: Duration = Duration::from_secs(60);

fn config(address: impl ToString) -> KafkaConfig {
    KafkaConfig {
        answer_timeout: PATIENCE,
        backoff: Backoff {
            delay_min: Duration::from_millis(5),
            delay_max: Duration::from_millis(100),
        },
        ..KafkaConfig::at(vec![address.to_string()])
    }
}

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(5 * BACK, test).await.expect("the test ends in time") })
        .unwrap();
}

fn context(limits: &Limits) -> Context<'_> {
    Context {
        namespace: 1,
        namespace_name: "orders",
        partition: 0,
        now_us: wall_us(),
        revision: Default::default(),
        limits,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    }
}

async fn append(kafka: &Kafka, text: &str) -> Result<(), Error> {
    let value = text.as_bytes().to_vec().into();
    let request = AppendRequest {
        namespace: "orders".to_owned(),
        stream: "outages".to_owned(),
        expected_last: None,
        record: Some(NewRecord { value, ..Default::default() }),
    };
    let (limits, mut reply) = (Limits::default(), Reply::default());
    let (method, bytes) = (Method::STREAM_APPEND, request.encode_to_vec());
    kafka.unary_checked(&context(&limits), method, &bytes, Kafka::SERVES, &mut reply).await
}

/// Appends until it succeeds; every failure on the way is one that may pass.
async fn recovered(kafka: &Kafka, text: &str) {
    let until = Instant::now() + BACK;
    while let Err(error) = append(kafka, text).await {
        assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
        assert!(Instant::now() < until, "it does not recover: {error:?}");
        rt::sleep(Duration::from_millis(20)).await;
    }
}

fn assert_unavailable(error: &Error, reasons: &[&str]) {
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    assert!(reasons.contains(&error.reason()), "{error:?}");
    assert!(error.metadata().contains(&("backend", "kafka".into())), "{error:?}");
    assert!(error.metadata().contains(&("namespace", "orders".into())), "{error:?}");
    assert!(error.retry_delay().is_some() && error.is_retryable(), "{error:?}");
}

/// Takes what a follower is sent until a record says this.
struct Until {
    text: &'static str,
    heard: Vec<String>,
    /// Set when something was heard.
    begun: Rc<rt::Signal>,
}

impl PageSink for Until {
    async fn send(&mut self, message: bytes::Bytes) -> Result<(), Error> {
        let page = ReadResponse::decode(message).unwrap();
        let texts = page.records.iter().map(|one| String::from_utf8(one.value.to_vec()).unwrap());
        self.heard.extend(texts);
        self.begun.set();
        match self.heard.last().is_some_and(|last| last == self.text) {
            true => Err(Error::new(Kind::Cancelled, "CANCELLED", "that was it")),
            false => Ok(()),
        }
    }

    fn now_us(&self) -> u64 {
        wall_us()
    }

    async fn wait(&mut self, event: impl Future<Output = ()>, _: u64) -> Result<(), Error> {
        event.await;
        Ok(())
    }

    async fn write(&mut self, _: Method, _: Vec<u8>) -> Result<bytes::Bytes, Error> {
        unreachable!("a backend outside keeps what a stream changes itself")
    }
}

/// Follows the stream from its beginning until a record says this.
async fn follow(kafka: &Kafka, text: &'static str, begun: Rc<rt::Signal>) -> Vec<String> {
    let request = ReadRequest {
        namespace: "orders".to_owned(),
        stream: "outages".to_owned(),
        start: Some(Start { start: Some(start::Start::Earliest(())) }),
        follow: true,
        ..Default::default()
    };
    let limits = Limits::default();
    let mut sink = Until { text, heard: Vec::new(), begun };
    let (method, bytes) = (Method::STREAM_READ, request.encode_to_vec());
    let ended = kafka.stream(&context(&limits), method, &bytes, &mut sink).await;
    assert_eq!(ended.unwrap_err().reason(), "CANCELLED", "it follows through every outage");
    sink.heard
}

#[test]
fn nobody_listens() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    run(async move {
        let kafka = Kafka::start(config(address));
        let reasons = ["BACKEND_UNREACHABLE", "BACKEND_UNRESPONSIVE"];
        let began = Instant::now();
        assert_unavailable(&append(&kafka, "x").await.unwrap_err(), &reasons);
        assert!(began.elapsed() < PATIENCE + LATE, "{:?}", began.elapsed());
        while kafka.facts().outages == 0 {
            rt::sleep(Duration::from_millis(5)).await;
        }
        // The circuit is open: calls do not wait for an attempt.
        for _ in 0..1_000 {
            assert_unavailable(&append(&kafka, "x").await.unwrap_err(), &reasons);
        }
        assert!(kafka.facts().refused > 0);
        assert_eq!(kafka.facts().appends_under_way, 0);
    });
}

#[test]
fn somebody_else_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        use std::io::Write as _;
        for mut client in listener.incoming().flatten() {
            let _ = client.write_all(b"-ERR this is no Kafka\r\n");
        }
    });
    run(async move {
        let kafka = Kafka::start(config(address));
        let began = Instant::now();
        let reasons = ["BACKEND_UNREACHABLE", "BACKEND_UNRESPONSIVE"];
        assert_unavailable(&append(&kafka, "x").await.unwrap_err(), &reasons);
        assert!(began.elapsed() < PATIENCE + LATE, "{:?}", began.elapsed());
    });
}

/// A broker that freezes, goes on, is killed and comes back: calls fail in time, and a follower misses nothing.
#[test]
fn a_broker_that_comes_and_goes() {
    let mut own = OwnKafka::start();
    run(async move {
        let kafka = Rc::new(Kafka::start(config(own.address)));
        recovered(&kafka, "first").await;
        let (following, heard) = (kafka.clone(), Rc::new(std::cell::Cell::new(None)));
        let (ended, tell) = (Rc::new(rt::Signal::default()), heard.clone());
        let (told, begun) = (ended.clone(), Rc::new(rt::Signal::default()));
        let begins = begun.clone();
        rt::spawn(async move {
            tell.set(Some(follow(&following, "last", begins).await));
            told.set();
        });
        begun.wait().await;
        let reasons = ["BACKEND_UNREACHABLE", "BACKEND_UNRESPONSIVE"];

        own.set_frozen(true);
        let began = Instant::now();
        assert_unavailable(&append(&kafka, "frozen").await.unwrap_err(), &reasons);
        assert!(began.elapsed() < PATIENCE + LATE, "{:?}", began.elapsed());
        own.set_frozen(false);
        recovered(&kafka, "thawed").await;

        own.kill();
        let began = Instant::now();
        assert_unavailable(&append(&kafka, "killed").await.unwrap_err(), &reasons);
        assert!(began.elapsed() < PATIENCE + LATE, "{:?}", began.elapsed());
        let outages = kafka.facts().outages;
        while kafka.facts().outages == outages {
            rt::sleep(Duration::from_millis(5)).await;
        }
        let began = Instant::now();
        for _ in 0..100 {
            assert_unavailable(&append(&kafka, "killed").await.unwrap_err(), &reasons);
        }
        assert!(began.elapsed() < LATE, "an open circuit refuses at once");
        own.restart();
        recovered(&kafka, "back").await;
        recovered(&kafka, "last").await;
        ended.wait().await;
        let heard = heard.take().unwrap();
        let wanted = ["first", "thawed", "back", "last"];
        let found: Vec<_> = heard.iter().filter(|text| wanted.contains(&&***text)).collect();
        assert!(found.len() >= 4 && found[0] == "first", "{heard:?}");
        assert!(wanted.iter().all(|text| heard.iter().any(|one| one == text)), "{heard:?}");
        assert_eq!(kafka.facts().appends_under_way, 0);
        drop(own);
    });
}
