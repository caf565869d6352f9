//! Logged writes on a real Redis Cluster: one effect each, whatever slot they are in and whatever goes back.

mod servers;

use std::time::{Duration, Instant};

use prism_adapters::lane::{ANSWER_LOST, Cell, LaneBackend as _, LaneOwner, LaneRecord, Outcome};
use prism_adapters::redis::{RedisCluster, RedisConfig};
use prism_adapters::{Context, Error, Limits, Revision};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::{
    BatchSetItem, BatchSetRequest, BatchSetResponse, SetRequest, SetResponse,
};
use prism_proto::prism::queue::v1::{SendRequest, SendResponse};
use prism_proto::prism::r#type::v1::Message;
use prost::Message as _;
use servers::{LONG, OwnCluster};

const OWNER: LaneOwner = LaneOwner { directory_id: [7; 16], epoch: 3 };
const LIMITS: Limits = Limits { max_message_size: 4 * 1024 * 1024 };

fn context(lsn: u64) -> Context<'static> {
    Context {
        namespace: 1,
        namespace_name: "orders",
        partition: 0,
        now_us: wall_us(),
        revision: Revision::logged(lsn),
        limits: &LIMITS,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    }
}

fn namespace() -> String {
    "orders".to_owned()
}

fn set(key: &str, value: &str) -> (Method, Vec<u8>) {
    let value = value.as_bytes().to_vec().into();
    let request =
        SetRequest { namespace: namespace(), key: key.to_owned(), value, ..Default::default() };
    (Method::KEYVALUE_SET, request.encode_to_vec())
}

fn send(queue: &str) -> (Method, Vec<u8>) {
    let message = Some(Message { payload: b"x".to_vec().into(), ..Default::default() });
    let request = SendRequest { namespace: namespace(), queue: queue.to_owned(), message };
    (Method::QUEUE_SEND, request.encode_to_vec())
}

fn batch_set(keys: &[&str]) -> (Method, Vec<u8>) {
    let item = |key: &&str| BatchSetItem {
        key: (*key).to_owned(),
        value: b"batch".to_vec().into(),
        ..Default::default()
    };
    let items = keys.iter().map(item).collect();
    let request = BatchSetRequest { namespace: namespace(), items };
    (Method::KEYVALUE_BATCH_SET, request.encode_to_vec())
}

/// Applies calls as the records from `first` on.
async fn apply(
    redis: &RedisCluster,
    first: u64,
    calls: &[(Method, Vec<u8>)],
) -> Result<Vec<Outcome>, Error> {
    let records: Vec<_> = (first..)
        .zip(calls)
        .map(|(lane_seq, (method, request))| {
            let (context, method) = (context(lane_seq), *method);
            LaneRecord { lane_seq, context, method, request }
        })
        .collect();
    let mut outcomes = Vec::new();
    redis.apply(&OWNER, &records, &mut outcomes).await.map(|()| outcomes)
}

/// Where the lane stands, as soon as that can be asked.
async fn resume(redis: &RedisCluster) -> Option<u64> {
    let until = Instant::now() + LONG;
    loop {
        match redis.resume(&context(0), &OWNER).await {
            Ok(cell) => return cell.map(|cell| cell.lane_seq),
            Err(error) => assert!(Instant::now() < until, "{error:?}"),
        }
        rt::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn records_in_many_slots_have_one_effect_each() {
    let cluster = OwnCluster::start(3, 0, 60_000);
    rt::run(async move {
        let address = cluster.address();
        let config = || RedisConfig::at(address.ip().to_string(), address.port());
        let cli = |key: &str, arguments: &[&str]| {
            let (_, home) = cluster.place_of(key);
            cluster.nodes[home].cli(arguments)
        };
        let redis = RedisCluster::start(config());
        let at = |key: &str| cli(key, &["GET", key]);
        assert!(apply(&redis, 1, &[set("a", "1")]).await.is_err(), "it was not resumed");
        assert_eq!(resume(&redis).await, None);
        redis.set_cell(&context(0), &Cell { owner: OWNER, lane_seq: 0 }).await.unwrap();

        let mut calls: Vec<_> = (0..50).map(|number| set(&format!("key {number}"), "1")).collect();
        calls.push(set("key 0", "2"));
        calls.push(batch_set(&["b 1", "b 2", "b 3", "key 7"]));
        calls.extend([send("mail"), send("mail"), send("post"), set("key 7", "3")]);
        let outcomes = apply(&redis, 1, &calls).await.unwrap();
        assert_eq!(outcomes.len(), 56);
        let reply = |number: usize| outcomes[number].as_ref().unwrap().head.as_slice();
        assert!(SetResponse::decode(reply(0)).unwrap().applied);
        assert_eq!(BatchSetResponse::decode(reply(51)).unwrap().results.len(), 4);
        assert!(!SendResponse::decode(reply(53)).unwrap().message_id.is_empty());
        assert_eq!((&*at("orders:key 0"), &*at("orders:key 7")), ("2", "3"));
        assert_eq!(at("orders:b 2"), "batch");
        let queued = |queue: &str| {
            let key = format!("orders:{queue}");
            cli(&key, &["ZCARD", &format!("{{{key}}}:messages")])
        };
        assert_eq!((&*queued("mail"), &*queued("post")), ("2", "1"));
        assert_eq!(resume(&redis).await, Some(56));

        // The lane's cell was not moved, the answers were lost: what comes again is passed over.
        redis.set_cell(&context(0), &Cell { owner: OWNER, lane_seq: 0 }).await.unwrap();
        assert_eq!(resume(&redis).await, Some(0));
        cli("orders:key 0", &["SET", "orders:key 0", "by hand"]);
        let outcomes = apply(&redis, 1, &calls).await.unwrap();
        let is_lost =
            |outcome: &Outcome| outcome.as_ref().is_err_and(|error| error.reason() == ANSWER_LOST);
        assert!(outcomes.iter().all(is_lost));
        assert_eq!(at("orders:key 0"), "by hand");
        assert_eq!((&*queued("mail"), &*queued("post")), ("2", "1"));

        // Another process, which remembers nothing, goes on likewise.
        let redis = RedisCluster::start(config());
        assert_eq!(resume(&redis).await, Some(56));
        let more = [set("c", "1"), send("mail"), batch_set(&["b 1", "c"])];
        assert!(apply(&redis, 57, &more).await.unwrap().iter().all(Result::is_ok));
        assert_eq!((&*queued("mail"), &*at("orders:c")), ("3", "batch"));

        // A node has lost the last of its writes: with the connections that goes, the lane goes back behind the first that is missing.
        let (slot, home) = cluster.place_of("orders:c");
        let cells = cluster.nodes[home].cli(&["KEYS", "_prism:cell:orders:0:{*"]);
        let is_its = |key: &&str| cluster.place_of(key).0 == slot;
        let cell = cells.lines().find(is_its).expect("the slot of c has a cell").to_owned();
        let before = format!("{} 3 56", "07".repeat(16));
        assert_eq!(cli("orders:c", &["SET", &cell, &before]), "OK");
        cli("orders:c", &["DEL", "orders:c"]);
        let connects = redis.facts().connects;
        for node in &cluster.nodes {
            node.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        }
        let until = Instant::now() + LONG;
        while redis.facts().connects < connects + 3 {
            assert!(Instant::now() < until, "{:?}", redis.facts());
            rt::sleep(Duration::from_millis(5)).await;
        }
        assert!(apply(&redis, 60, &[set("d", "1")]).await.is_err(), "it was not resumed");
        assert_eq!(resume(&redis).await, Some(56));
        let outcomes = apply(&redis, 57, &more).await.unwrap();
        assert!(outcomes[0].is_ok(), "it was missing");
        assert!(is_lost(&outcomes[1]) && is_lost(&outcomes[2]), "they were there, in part");
        assert_eq!((&*queued("mail"), &*at("orders:c")), ("3", "batch"));
        let cell = format!("{} 3 59", "07".repeat(16));
        assert_eq!(at("_prism:cell:orders:0"), cell);
    })
    .unwrap();
}
