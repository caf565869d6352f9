//! Streams on a real Redis: what retention removes and when, and what readers are told of what was removed before they came to it.

mod servers;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use prism_adapters::redis::{Redis, RedisConfig};
use prism_adapters::{Backend, Context, Error, Kind, Limits, PageSink, Reply};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::r#type::v1::{Position, Start, start};
use prost::Message as _;
use servers::{LONG, OwnRedis};

/// Small messages, so that a page holds few records.
const LIMITS: Limits = Limits { max_message_size: 64 * 1024 };

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

fn redis(server: &OwnRedis) -> Redis {
    // None of this is about a slow Redis.
    Redis::start(RedisConfig {
        connect_timeout: LONG,
        answer_timeout: LONG,
        ..RedisConfig::at(server.address.ip().to_string(), server.address.port())
    })
}

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(3 * LONG, test).await.expect("the test ends in time") })
        .unwrap();
}

async fn call<R: prost::Message + Default>(
    redis: &Redis,
    method: Method,
    request: &impl prost::Message,
) -> Result<R, Error> {
    let (mut reply, request) = (Reply::default(), request.encode_to_vec());
    redis.unary_checked(&context(), method, &request, Redis::SERVES, &mut reply).await?;
    Ok(R::decode(reply.to_bytes()).expect("a valid message"))
}

async fn append(redis: &Redis, text: &str) -> Position {
    let (namespace, stream) = ("orders".to_owned(), "s".to_owned());
    let value = Bytes::copy_from_slice(text.as_bytes());
    let record = Some(stream::NewRecord { value, ..Default::default() });
    let request = stream::AppendRequest { namespace, stream, record, expected_last: None };
    let answer: stream::AppendResponse =
        call(redis, Method::STREAM_APPEND, &request).await.expect("appended");
    answer.position.expect("its place")
}

async fn retain(redis: &Redis, retention: stream::Retention) -> Result<stream::Retention, Error> {
    let (namespace, stream) = ("orders".to_owned(), "s".to_owned());
    let request = stream::SetRetentionRequest { namespace, stream, retention: Some(retention) };
    let answer: stream::SetRetentionResponse =
        call(redis, Method::STREAM_SET_RETENTION, &request).await?;
    Ok(answer.retention.expect("what holds"))
}

async fn compact(redis: &Redis) -> stream::CompactionState {
    let (namespace, stream) = ("orders".to_owned(), "s".to_owned());
    let request = stream::CompactRequest { namespace, stream };
    let answer: stream::CompactResponse =
        call(redis, Method::STREAM_COMPACT, &request).await.expect("compacted");
    answer.state()
}

fn records(count: u64) -> stream::Retention {
    stream::Retention { max_records: Some(count), ..Default::default() }
}

async fn shrinks_to(server: &OwnRedis, length: impl Fn(u64) -> bool) {
    let shrunk = async {
        while !length(server.cli(&["XLEN", "orders:s"]).parse().expect("a number")) {
            rt::sleep(Duration::from_millis(10)).await;
        }
    };
    rt::timeout(LONG, shrunk).await.expect("what is surplus goes");
}

/// Takes pages, does something with each before the next is read, and ends when that says so.
struct Pages<F> {
    texts: Vec<String>,
    cursor: String,
    each: F,
}

impl<F: FnMut(&stream::ReadResponse) -> bool> PageSink for Pages<F> {
    fn now_us(&self) -> u64 {
        wall_us()
    }

    async fn send(&mut self, message: Bytes) -> Result<(), Error> {
        let page = stream::ReadResponse::decode(message).expect("a valid message");
        let texts = page.records.iter().map(|one| String::from_utf8_lossy(&one.value).into_owned());
        self.texts.extend(texts);
        self.cursor.clone_from(&page.cursor);
        match (self.each)(&page) {
            true => Ok(()),
            false => Err(Error::new(Kind::Cancelled, "ENOUGH", "enough")),
        }
    }

    async fn wait(&mut self, event: impl Future<Output = ()>, _: u64) -> Result<(), Error> {
        event.await;
        Ok(())
    }

    async fn write(&mut self, _: Method, _: Vec<u8>) -> Result<Bytes, Error> {
        unreachable!("a stream of Redis keeps what it changes itself")
    }
}

/// Reads until the end, or until `each` has enough: the texts, the last cursor, and why it ended.
async fn read(
    redis: &Redis,
    start: start::Start,
    follow: bool,
    each: impl FnMut(&stream::ReadResponse) -> bool,
) -> (Vec<String>, String, Option<String>) {
    let request = stream::ReadRequest {
        namespace: "orders".to_owned(),
        stream: "s".to_owned(),
        start: Some(Start { start: Some(start) }),
        follow,
        ..Default::default()
    };
    let request = request.encode_to_vec();
    let mut sink = Pages { texts: Vec::new(), cursor: String::new(), each };
    let ended = redis.stream(&context(), Method::STREAM_READ, &request, &mut sink).await;
    (sink.texts, sink.cursor, ended.err().map(|error| error.reason().to_owned()))
}

fn earliest() -> start::Start {
    start::Start::Earliest(())
}

#[test]
fn what_is_too_old_goes_and_redis_cli_shows_what_holds() {
    let server = OwnRedis::start(&[]);
    run(async move {
        let redis = redis(&server);
        server.cli(&["XADD", "orders:s", "1000-0", "value", "old"]);
        append(&redis, "new").await;
        let hour = Some(prost_types::Duration { seconds: 3600, nanos: 500_000_000 });
        let asked = stream::Retention { max_age: hour, ..records(5) };
        assert_eq!(retain(&redis, asked).await.expect("set"), asked);
        let shown = server.cli(&["HGETALL", "_prism:retention:orders:s"]);
        assert_eq!(shown, "max-age-ms\n3600500\nmax-records\n5");
        assert_eq!(compact(&redis).await, stream::CompactionState::Done);
        assert_eq!(read(&redis, earliest(), false, |_| true).await.0, ["new"]);
        for asked in [
            stream::Retention { max_bytes: Some(1000), ..Default::default() },
            stream::Retention { by_key: true, ..Default::default() },
        ] {
            let error = retain(&redis, asked).await.expect_err("Redis cannot");
            assert_eq!(
                (error.kind(), error.reason()),
                (Kind::Unimplemented, "RETENTION_NOT_OFFERED")
            );
        }
        // Without bounds everything stays.
        retain(&redis, stream::Retention::default()).await.expect("set");
        server.cli(&["DEL", "orders:s"]);
        server.cli(&["XADD", "orders:s", "1000-0", "value", "old"]);
        assert_eq!(compact(&redis).await, stream::CompactionState::Done);
        assert_eq!(server.cli(&["XLEN", "orders:s"]), "1");
    });
}

#[test]
fn much_that_is_surplus_goes_in_steps_and_little_with_what_is_appended() {
    let server = OwnRedis::start(&[]);
    run(async move {
        let redis = redis(&server);
        let many = "for n = 1, 25000 do redis.call('XADD', KEYS[1], '*', 'value', n) end";
        server.cli(&["EVAL", many, "1", "orders:s"]);
        retain(&redis, records(3)).await.expect("set");
        assert_eq!(compact(&redis).await, stream::CompactionState::Scheduled);
        shrinks_to(&server, |length| length == 3).await;
        assert_eq!(read(&redis, earliest(), false, |_| true).await.0, ["24998", "24999", "25000"]);
        for number in 0..300 {
            append(&redis, &number.to_string()).await;
        }
        // Nobody asks for it; what came after the last trim may still be there.
        shrinks_to(&server, |length| (3..3 + 128).contains(&length)).await;
        // By age, too.
        let script = "for n = 1, 25000 do redis.call('XADD', KEYS[1], n .. '-1', 'value', n) end";
        server.cli(&["DEL", "orders:s"]);
        server.cli(&["EVAL", script, "1", "orders:s"]);
        let max_age = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
        retain(&redis, stream::Retention { max_age, ..Default::default() }).await.expect("set");
        assert_eq!(compact(&redis).await, stream::CompactionState::Scheduled);
        shrinks_to(&server, |length| length == 0).await;
    });
}

#[test]
fn a_reader_is_told_what_was_removed_before_it_came_there() {
    let server = OwnRedis::start(&[]);
    run(async move {
        let redis = redis(&server);
        let text = "x".repeat(10_000);
        for _ in 0..20 {
            append(&redis, &text).await;
        }
        let mut removed = 0;
        // While it has the first page, so much of the rest goes that something is missing.
        let (texts, cursor, ended) = read(&redis, earliest(), false, |page| {
            removed += page.records.len();
            server.cli(&["XTRIM", "orders:s", "MAXLEN", &(20 - removed - 1).to_string()]);
            true
        })
        .await;
        assert!(!texts.is_empty() && texts.len() < 19, "{}", texts.len());
        assert_eq!(ended.as_deref(), Some("POSITION_TRIMMED"));
        let again = read(&redis, start::Start::Cursor(cursor), false, |_| true).await;
        assert_eq!(again.2.as_deref(), Some("POSITION_TRIMMED"));
    });
}

#[test]
fn a_reader_at_whose_heels_records_go_reads_them_all() {
    let server = OwnRedis::start(&[]);
    run(async move {
        let redis = redis(&server);
        let text = "x".repeat(10_000);
        for _ in 0..20 {
            append(&redis, &text).await;
        }
        let mut left = 20;
        let (texts, cursor, ended) = read(&redis, earliest(), false, |page| {
            left -= page.records.len();
            server.cli(&["XTRIM", "orders:s", "MAXLEN", &left.to_string()]);
            true
        })
        .await;
        assert_eq!((texts.len(), ended), (20, None));
        // It has read everything, so nothing is missing to it that is no longer there.
        let (texts, cursor, ended) =
            read(&redis, start::Start::Cursor(cursor), false, |_| true).await;
        assert_eq!((texts.len(), ended), (0, None));
        append(&redis, "more").await;
        let (texts, cursor, ended) =
            read(&redis, start::Start::Cursor(cursor), false, |_| true).await;
        assert_eq!((texts, ended), (vec!["more".to_owned()], None));
        append(&redis, "unread").await;
        append(&redis, "last").await;
        server.cli(&["XTRIM", "orders:s", "MAXLEN", "1"]);
        let (texts, _, ended) = read(&redis, start::Start::Cursor(cursor), false, |_| true).await;
        assert_eq!((texts.len(), ended.as_deref()), (0, Some("POSITION_TRIMMED")));
    });
}

#[test]
fn a_follower_goes_on_over_what_it_has_read_and_not_over_a_gap() {
    let server = OwnRedis::start(&[]);
    run(async move {
        let redis = redis(&server);
        append(&redis, "0").await;
        let mut pages = 0;
        let add = |text: &str| server.cli(&["XADD", "orders:s", "*", "value", text]);
        let (texts, _, ended) = read(&redis, earliest(), true, |page| {
            if page.records.is_empty() {
                return true;
            }
            pages += 1;
            let (more, kept): (&[&str], &str) = match pages {
                // What it has read goes, and nothing else.
                1 => (&["1", "2"], "2"),
                2 => (&["3", "4", "5"], "1"),
                _ => return false,
            };
            more.iter().for_each(|text| drop(add(text)));
            server.cli(&["XTRIM", "orders:s", "MAXLEN", kept]);
            true
        })
        .await;
        assert_eq!(
            (texts, ended.as_deref()),
            (
                vec!["0", "1", "2"].into_iter().map(str::to_owned).collect(),
                Some("POSITION_TRIMMED")
            )
        );
    });
}
