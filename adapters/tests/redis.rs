//! Redis, a real one: the conformance suite, random calls against the model, and what redis-cli sees.

mod servers;

use prism_adapters::conformance::{Direct, Versions, random_sequence, run};
use prism_adapters::redis::{Redis, RedisConfig};
use prism_adapters::{Backend, Context, Error, Limits, Reply};
use prism_io::clock::wall_us;
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::{
    BatchGetRequest, BatchGetResponse, CompareAndSwapRequest, CompareAndSwapResponse, GetRequest,
    GetResponse, ScanKeysRequest, ScanKeysResponse, SetRequest, compare_and_swap_request,
};
use prism_proto::prism::stream::v1::{
    AppendRequest, AppendResponse, GetLatestOffsetRequest, GetLatestOffsetResponse, NewRecord,
};
use prism_proto::prism::r#type::v1::Position;
use prost::Message;
use servers::{OwnRedis, redis_cli};

/// Databases, so that tests that run side by side do not see each other.
const RANDOM: u32 = 2;
const READ_BACK: u32 = 3;
const FOREIGN: u32 = 4;
const STREAMS: u32 = 5;

/// An empty database.
fn config(database: u32) -> RedisConfig {
    let address = servers::address("redis");
    assert_eq!(redis_cli(address, database, &["FLUSHDB"]), "OK");
    RedisConfig { database, ..RedisConfig::at(address.ip().to_string(), address.port()) }
}

async fn call<R: Message + Default>(
    redis: &Redis,
    method: Method,
    request: &impl Message,
) -> Result<R, Error> {
    let (limits, mut reply) = (Limits::default(), Reply::default());
    let context = Context {
        namespace: 1,
        namespace_name: "orders",
        partition: 0,
        now_us: wall_us(),
        revision: Default::default(),
        limits: &limits,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    };
    let request = request.encode_to_vec();
    redis.unary_checked(&context, method, &request, Redis::SERVES, &mut reply).await?;
    Ok(R::decode(reply.to_bytes()).expect("a valid message"))
}

fn get(key: &str) -> GetRequest {
    GetRequest { namespace: "orders".to_owned(), key: key.to_owned() }
}

fn set(key: &str, value: &[u8]) -> SetRequest {
    SetRequest {
        namespace: "orders".to_owned(),
        key: key.to_owned(),
        value: value.to_vec().into(),
        ..SetRequest::default()
    }
}

#[test]
fn redis_serves_what_it_declares() {
    let server = OwnRedis::start(&[]);
    let config = RedisConfig::at(server.address.ip().to_string(), server.address.port());
    prism_io::rt::run(async {
        let client = Direct::in_real_time(Redis::start(config), Versions::Digest);
        let ran = run(&client).await;
        assert!(ran.len() > 60, "{ran:?}");
    })
    .unwrap();
}

#[test]
fn random_sequences_agree_with_a_model() {
    let seed = match std::env::var("PRISM_SEED") {
        Ok(seed) => seed.parse().expect("PRISM_SEED is a number"),
        Err(_) => wall_us(),
    };
    let config = config(RANDOM);
    prism_io::rt::run(async move {
        let client = Direct::in_real_time(Redis::start(config), Versions::Digest);
        for round in 0..4 {
            random_sequence(&client, seed.wrapping_add(round), 2_500).await;
        }
    })
    .unwrap();
}

#[test]
fn redis_cli_reads_and_writes_the_same_data() {
    let config = config(READ_BACK);
    let address = servers::address("redis");
    let cli = move |arguments: &[&str]| redis_cli(address, READ_BACK, arguments);
    prism_io::rt::run(async move {
        let redis = Redis::start(RedisConfig { client_name: "prism-test".to_owned(), ..config });
        let ttl = Some(prost_types::Duration { seconds: 3_600, nanos: 0 });
        let request = SetRequest { ttl, ..set("{7}:status", "bezahlt €".as_bytes()) };
        call::<()>(&redis, Method::KEYVALUE_SET, &request).await.unwrap();
        assert_eq!(cli(&["GET", "orders:{7}:status"]), "bezahlt €");
        let left: u64 = cli(&["TTL", "orders:{7}:status"]).parse().unwrap();
        assert!((3_590..=3_600).contains(&left), "{left}");
        assert!(cli(&["CLIENT", "LIST"]).contains("name=prism-test"));

        assert_eq!(cli(&["SET", "orders:by hand", "written by hand", "PX", "90000"]), "OK");
        let response: GetResponse =
            call(&redis, Method::KEYVALUE_GET, &get("by hand")).await.unwrap();
        let entry = response.entry.unwrap();
        assert_eq!(&entry.value[..], b"written by hand");
        assert!(entry.expires_at.is_some());

        // The version is the value's SHA-1, which anybody can compute.
        let version = entry.version.unwrap();
        let hex: String = version.iter().map(|byte| format!("{byte:02x}")).collect();
        let script = "return redis.sha1hex(redis.call('GET', KEYS[1]))";
        assert_eq!(cli(&["EVAL", script, "1", "orders:by hand"]), hex);
        let expected = Some(compare_and_swap_request::Expected::ExpectedVersion(version));
        let request = CompareAndSwapRequest {
            namespace: "orders".to_owned(),
            key: "by hand".to_owned(),
            value: b"swapped".to_vec().into(),
            expected,
            ..CompareAndSwapRequest::default()
        };
        let method = Method::KEYVALUE_COMPARE_AND_SWAP;
        let response: CompareAndSwapResponse = call(&redis, method, &request).await.unwrap();
        assert!(response.swapped);
        assert_eq!(cli(&["GET", "orders:by hand"]), "swapped");

        // Redis forgets its scripts; the next call makes it know them again.
        assert_eq!(cli(&["SCRIPT", "FLUSH"]), "OK");
        let response: CompareAndSwapResponse = call(&redis, method, &request).await.unwrap();
        assert_eq!(&response.current.expect("it is not as expected").value[..], b"swapped");
        assert_eq!(redis.facts().connects, 1);
    })
    .unwrap();
}

#[test]
fn redis_cli_reads_and_appends_the_same_streams() {
    let config = config(STREAMS);
    let address = servers::address("redis");
    let cli = move |arguments: &[&str]| redis_cli(address, STREAMS, arguments);
    prism_io::rt::run(async move {
        let redis = Redis::start(config);
        let attributes = [("key".to_owned(), "an attribute".to_owned())].into();
        let record = NewRecord {
            key: Some("7".to_owned()),
            value: b"paid".to_vec().into(),
            content_type: "text/plain".to_owned(),
            attributes,
            ..NewRecord::default()
        };
        let (namespace, stream) = ("orders".to_owned(), "events".to_owned());
        let request =
            AppendRequest { namespace, stream, record: Some(record), expected_last: None };
        let answer: AppendResponse = call(&redis, Method::STREAM_APPEND, &request).await.unwrap();
        let offset = answer.position.expect("its place").offset;
        let fields = "value\npaid\nkey\n7\ncontent-type\ntext/plain\nattribute.key\nan attribute";
        assert_eq!(cli(&["XRANGE", "orders:events", "-", "+"]), format!("{offset}\n{fields}"));

        let by_hand = cli(&["XADD", "orders:events", "*", "value", "by hand", "kind", "x"]);
        let request =
            GetLatestOffsetRequest { namespace: "orders".to_owned(), stream: "events".to_owned() };
        let method = Method::STREAM_GET_LATEST_OFFSET;
        let answer: GetLatestOffsetResponse = call(&redis, method, &request).await.unwrap();
        assert_eq!(answer.positions[0].offset, by_hand);

        // Behind what somebody else has appended it goes only if that is what it expects.
        let append = |offset: &str| AppendRequest {
            namespace: "orders".to_owned(),
            stream: "events".to_owned(),
            record: Some(NewRecord { value: b"behind".to_vec().into(), ..NewRecord::default() }),
            expected_last: Some(Position { partition: 0, offset: offset.to_owned() }),
        };
        let method = Method::STREAM_APPEND;
        let refused = call::<AppendResponse>(&redis, method, &append(&offset)).await.unwrap_err();
        assert_eq!(refused.reason(), "EXPECTED_LAST_MISMATCH");
        assert!(refused.metadata().contains(&("latest", by_hand.clone().into())));
        assert_eq!(cli(&["XLEN", "orders:events"]), "2");
        let appended: AppendResponse = call(&redis, method, &append(&by_hand)).await.unwrap();
        let newest = cli(&["XREVRANGE", "orders:events", "+", "-", "COUNT", "1"]);
        assert_eq!(newest, format!("{}\nvalue\nbehind", appended.position.unwrap().offset));
        let nonsense = call::<AppendResponse>(&redis, method, &append("none")).await.unwrap_err();
        assert_eq!(nonsense.reason(), "POSITION_INVALID");
    })
    .unwrap();
}

#[test]
fn what_others_have_stored_harms_nobody() {
    let config = config(FOREIGN);
    let address = servers::address("redis");
    let cli = move |arguments: &[&str]| redis_cli(address, FOREIGN, arguments);
    prism_io::rt::run(async move {
        let redis = Redis::start(config);
        cli(&["RPUSH", "orders:list", "a"]);
        cli(&["SET", "orders:", "no key of ours"]);
        cli(&["SET", "orders:line\nend", "no key of ours"]);
        cli(&["SET", "order", "another namespace"]);
        cli(&["SET", "orders-old:1", "another namespace"]);
        cli(&["SET", "orders:plain", "ours"]);
        cli(&["EVAL", "redis.call('SET', KEYS[1], string.rep('x', 40000000))", "1", "orders:huge"]);

        let list = call::<GetResponse>(&redis, Method::KEYVALUE_GET, &get("list")).await;
        let error = list.unwrap_err();
        assert_eq!(error.reason(), "BACKEND_WRONG_TYPE");
        assert_eq!(error.kind().grpc_code(), 9);
        let huge = call::<GetResponse>(&redis, Method::KEYVALUE_GET, &get("huge")).await;
        assert_eq!(huge.unwrap_err().reason(), "REPLY_TOO_LARGE");

        let keys = ["plain", "list", "huge", "missing"].map(str::to_owned).to_vec();
        let request = BatchGetRequest { namespace: "orders".to_owned(), keys };
        let response: BatchGetResponse =
            call(&redis, Method::KEYVALUE_BATCH_GET, &request).await.unwrap();
        let codes: Vec<i32> =
            response.results.iter().map(|one| one.status.as_ref().map_or(0, |s| s.code)).collect();
        assert_eq!(codes, [0, 9, 8, 0]);
        assert!(response.results[0].found && !response.results[3].found);

        let request = ScanKeysRequest { namespace: "orders".to_owned(), ..Default::default() };
        let mut sink = prism_adapters::conformance::Collect {
            messages: Vec::new(),
            messages_max: usize::MAX,
            now_us: wall_us(),
        };
        let limits = Limits::default();
        let context = Context {
            namespace: 1,
            namespace_name: "orders",
            partition: 0,
            now_us: wall_us(),
            revision: Default::default(),
            limits: &limits,
            deadline_ns: prism_adapters::NO_DEADLINE_NS,
        };
        let bytes = request.encode_to_vec();
        redis.stream(&context, Method::KEYVALUE_SCAN_KEYS, &bytes, &mut sink).await.unwrap();
        let mut keys: Vec<String> = Vec::new();
        for page in sink.messages {
            keys.extend(ScanKeysResponse::decode(page).unwrap().keys);
        }
        keys.sort();
        assert_eq!(keys, ["huge", "plain"]);
        assert_eq!(redis.facts().connects, 1, "the connection has survived all of it");
        cli(&["FLUSHDB"]);
    })
    .unwrap();
}
