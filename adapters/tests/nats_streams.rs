//! Streams on a real NATS: what NATS's own client sees of them, and what outlives an outage.

mod nats_client;
mod servers;

use std::time::Duration;

use bytes::Bytes;
use nats_client::{NAMESPACE, client, run_test, stranger};
use prism_adapters::conformance::{Client, Direct, Failure, Opened};
use prism_adapters::nats::Nats;
use prism_adapters::{Backend, Context, Error, Limits, Reply, Revision};
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::stream::v1::{
    AppendRequest, AppendResponse, NewRecord, ReadRequest, ReadResponse, Retention,
    SetRetentionRequest, SetRetentionResponse, StreamRecord,
};
use prism_proto::prism::r#type::v1::{Position, Start, start};
use prost::Message as _;
use servers::{LONG, OwnNats};

async fn append(
    client: &Direct<Nats>,
    stream: &str,
    record: NewRecord,
    expected_last: Option<u64>,
) -> Result<u64, Failure> {
    let offset = |offset: u64| Position { partition: 0, offset: offset.to_string() };
    let request = AppendRequest {
        namespace: NAMESPACE.to_owned(),
        stream: stream.to_owned(),
        expected_last: expected_last.map(offset),
        record: Some(record),
    };
    let answer: Bytes = client.unary(Method::STREAM_APPEND, request.encode_to_vec()).await?;
    let answer = AppendResponse::decode(answer).expect("a valid message");
    Ok(answer.position.expect("the backend answers").offset.parse().expect("a number"))
}

fn text(text: &str) -> NewRecord {
    NewRecord { value: text.to_owned().into(), ..Default::default() }
}

fn read_request(stream: &str, follow: bool) -> Vec<u8> {
    let request = ReadRequest {
        namespace: NAMESPACE.to_owned(),
        stream: stream.to_owned(),
        start: Some(Start { start: Some(start::Start::Earliest(())) }),
        follow,
        ..Default::default()
    };
    request.encode_to_vec()
}

async fn all(client: &Direct<Nats>, stream: &str) -> Vec<StreamRecord> {
    let request = read_request(stream, false);
    let pages = client.stream(Method::STREAM_READ, request, usize::MAX).await.expect("read");
    let pages = pages.into_iter().map(|page| ReadResponse::decode(page).expect("a valid message"));
    pages.flat_map(|page| page.records).collect()
}

fn texts(records: &[StreamRecord]) -> Vec<String> {
    records.iter().map(|one| String::from_utf8(one.value.to_vec()).unwrap()).collect()
}

#[test]
fn its_own_client_reads_what_was_appended_and_appends() {
    let server = OwnNats::start("");
    run_test(async move {
        let client = client(&server);
        let record = NewRecord {
            key: Some("42".to_owned()),
            content_type: "text/plain".to_owned(),
            attributes: [("kind".to_owned(), "new".to_owned())].into(),
            ..text("one")
        };
        assert_eq!(append(&client, "eu.orders", record, None).await, Ok(1));
        stranger(&server, |jetstream| async move {
            let stream = jetstream.get_stream("STREAM_conformance_eu=orders").await.unwrap();
            assert_eq!(stream.cached_info().config.subjects, ["$STREAM.conformance.eu.orders"]);
            let stored = stream.get_raw_message(1).await.unwrap();
            assert_eq!(&stored.payload[..], b"one");
            let header =
                |name: &str| stored.headers.get(name).map(|value| value.as_str().to_owned());
            assert_eq!(header("Prism-Key").as_deref(), Some("42"));
            assert_eq!(header("Content-Type").as_deref(), Some("text/plain"));
            assert_eq!(header("kind").as_deref(), Some("new"));
            let sent =
                jetstream.publish("$STREAM.conformance.eu.orders", "by hand".into()).await.unwrap();
            assert_eq!(sent.await.unwrap().sequence, 2);
        });
        let records = all(&client, "eu.orders").await;
        assert_eq!(texts(&records), ["one", "by hand"]);
        assert!(records[1].timestamp.is_some() && records[1].key.is_none());
        // Whoever has appended meanwhile, a condition is one on what there is.
        let refused = append(&client, "eu.orders", text("late"), Some(1)).await.unwrap_err();
        assert_eq!((refused.code, &*refused.reason), (9, "EXPECTED_LAST_MISMATCH"));
        assert_eq!(append(&client, "eu.orders", text("three"), Some(2)).await, Ok(3));
    });
}

#[test]
fn an_append_that_arrives_twice_has_one_effect_and_one_answer() {
    let server = OwnNats::start("");
    run_test(async move {
        let client = client(&server);
        append(&client, "s", text("first"), None).await.unwrap();
        let limits = Limits::default();
        let context = |lsn: u64| Context {
            namespace: 1,
            namespace_name: NAMESPACE,
            partition: 0,
            now_us: 1_700_000_000_123_456,
            revision: Revision::logged(lsn),
            limits: &limits,
            deadline_ns: prism_adapters::NO_DEADLINE_NS,
        };
        let apply = async |lsn: u64, value: &str, expected_last: Option<&str>| {
            let position = |offset: &str| Position { partition: 0, offset: offset.to_owned() };
            let request = AppendRequest {
                namespace: NAMESPACE.to_owned(),
                stream: "s".to_owned(),
                expected_last: expected_last.map(position),
                record: Some(text(value)),
            };
            let (request, mut reply) = (request.encode_to_vec(), Reply::default());
            let context = context(lsn);
            client.backend.unary(&context, Method::STREAM_APPEND, &request, &mut reply).await?;
            let answer = AppendResponse::decode(reply.to_bytes()).expect("a valid message");
            Ok::<_, Error>(answer.position.expect("the backend answers").offset)
        };
        for _ in 0..2 {
            assert_eq!(apply(7, "plain", None).await.unwrap(), "2");
            assert_eq!(apply(8, "conditional", Some("2")).await.unwrap(), "3");
        }
        // Another record with the same condition is none of them.
        let refused = apply(9, "other", Some("2")).await.unwrap_err();
        assert_eq!(refused.reason(), "EXPECTED_LAST_MISMATCH");
        assert_eq!(texts(&all(&client, "s").await), ["first", "plain", "conditional"]);
    });
}

#[test]
fn the_limits_of_a_stream_are_its_retention_and_a_reader_is_told_what_is_gone() {
    let server = OwnNats::start("");
    run_test(async move {
        let client = client(&server);
        for number in 0..5 {
            append(&client, "s", text(&number.to_string()), None).await.unwrap();
        }
        let mut opened =
            client.open(Method::STREAM_READ, read_request("s", true)).await.expect("it begins");
        let page = ReadResponse::decode(opened.next().await.unwrap().unwrap()).unwrap();
        assert_eq!(texts(&page.records), ["0", "1", "2", "3", "4"]);
        let request = SetRetentionRequest {
            namespace: NAMESPACE.to_owned(),
            stream: "s".to_owned(),
            retention: Some(Retention {
                max_age: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
                max_records: Some(2),
                ..Default::default()
            }),
        };
        let answer = client.unary(Method::STREAM_SET_RETENTION, request.encode_to_vec()).await;
        let answer = SetRetentionResponse::decode(answer.unwrap()).unwrap();
        assert_eq!(answer.retention, request.retention);
        assert_eq!(texts(&all(&client, "s").await), ["3", "4"]);
        stranger(&server, |jetstream| async move {
            let stream = jetstream.get_stream("STREAM_conformance_s").await.unwrap();
            let config = &stream.cached_info().config;
            assert_eq!((config.max_messages, config.max_age.as_secs()), (2, 60));
            assert!(config.duplicate_window <= config.max_age);
            // By hand, behind the back of the reader that follows.
            stream.purge().await.unwrap();
            for number in 5..9 {
                let sent =
                    jetstream.publish("$STREAM.conformance.s", number.to_string().into()).await;
                sent.unwrap().await.unwrap();
            }
        });
        let told = loop {
            match opened.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ends without a word"),
                Err(failure) => break failure,
            }
        };
        assert_eq!((told.code, &*told.reason), (11, "POSITION_TRIMMED"), "{told:?}");
    });
}

#[test]
fn a_reader_that_follows_goes_on_after_an_outage() {
    let mut server = OwnNats::start("");
    run_test(async move {
        let client = client(&server);
        append(&client, "s", text("0"), None).await.unwrap();
        let opened = client.open(Method::STREAM_READ, read_request("s", true)).await;
        let mut opened = opened.expect("opened");
        let mut next = async || {
            let page = opened.next().await.expect("it goes on").expect("it goes on");
            texts(&ReadResponse::decode(page).expect("a valid message").records)
        };
        assert_eq!(next().await, ["0"]);
        server.kill();
        append(&client, "s", text("lost"), None).await.unwrap_err();
        let append_again = async {
            while append(&client, "s", text("1"), Some(1)).await.is_err() {
                rt::sleep(Duration::from_millis(20)).await;
            }
        };
        // The reader looks while there is no NATS, and when there is one again.
        let there_again = async {
            rt::sleep(Duration::from_millis(700)).await;
            server.restart();
            append_again.await;
        };
        let (heard, ()) = futures_util::future::join(next(), there_again).await;
        assert_eq!(heard, ["1"]);
    });
}

#[test]
fn records_outlive_the_server() {
    let mut server = OwnNats::start("");
    run_test(async move {
        let client = client(&server);
        for number in 0..3 {
            append(&client, "s", text(&number.to_string()), None).await.unwrap();
        }
        server.kill();
        let refused = append(&client, "s", text("lost"), None).await.unwrap_err();
        assert_eq!(refused.code, 14, "{refused:?}");
        server.restart();
        let append_again = async {
            while append(&client, "s", text("3"), Some(3)).await.is_err() {
                rt::sleep(Duration::from_millis(20)).await;
            }
        };
        rt::timeout(LONG, append_again).await.expect("it comes back");
        assert_eq!(texts(&all(&client, "s").await), ["0", "1", "2", "3"]);
    });
}
