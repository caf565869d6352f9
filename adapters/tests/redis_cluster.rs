//! A real Redis Cluster: the conformance suite, calls over all nodes, slots that move and a master that dies while calls are made.

mod servers;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use prism_adapters::conformance::{Collect, Direct, Versions, random_sequence, run};
use prism_adapters::ending::Endings as _;
use prism_adapters::redis::{RedisCluster, RedisConfig};
use prism_adapters::{Backend, Context, Error, Limits, Reply, Revision};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::{
    BatchDeleteRequest, BatchDeleteResponse, BatchGetRequest, BatchGetResponse, BatchSetItem,
    BatchSetRequest, BatchSetResponse, CountRequest, CountResponse, GetRequest, GetResponse,
    ScanKeysRequest, ScanKeysResponse, SetRequest, SetResponse, TransactRequest, TransactResponse,
};
use prism_proto::prism::queue::v1::{ReceiveRequest, ReceiveResponse, SendRequest, SendResponse};
use prism_proto::prism::r#type::v1::operation::Action;
use prism_proto::prism::r#type::v1::{Message, Operation, Put};
use prost::Message as _;
use servers::{LONG, OwnCluster};

const LIMITS: Limits = Limits { max_message_size: 4 * 1024 * 1024 };

fn config(cluster: &OwnCluster) -> RedisConfig {
    let address = cluster.address();
    RedisConfig::at(address.ip().to_string(), address.port())
}

fn context() -> Context<'static> {
    thread_local!(static LSN: Cell<u64> = const { Cell::new(0) });
    LSN.set(LSN.get() + 1);
    Context {
        namespace: 1,
        namespace_name: "orders",
        partition: 0,
        now_us: wall_us(),
        revision: Revision::logged(LSN.get()),
        limits: &LIMITS,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    }
}

async fn call<R: prost::Message + Default>(
    redis: &RedisCluster,
    method: Method,
    request: &impl prost::Message,
) -> Result<R, Error> {
    let (mut reply, request) = (Reply::default(), request.encode_to_vec());
    redis.unary_checked(&context(), method, &request, RedisCluster::SERVES, &mut reply).await?;
    Ok(R::decode(reply.to_bytes()).expect("a valid message"))
}

fn namespace() -> String {
    "orders".to_owned()
}

async fn set(redis: &RedisCluster, key: &str, value: &str) -> Result<(), Error> {
    let value = value.as_bytes().to_vec().into();
    let request =
        SetRequest { namespace: namespace(), key: key.to_owned(), value, ..Default::default() };
    let answer: SetResponse = call(redis, Method::KEYVALUE_SET, &request).await?;
    assert!(answer.applied);
    Ok(())
}

async fn get(redis: &RedisCluster, key: &str) -> Result<Option<String>, Error> {
    let request = GetRequest { namespace: namespace(), key: key.to_owned() };
    let answer: GetResponse = call(redis, Method::KEYVALUE_GET, &request).await?;
    Ok(answer.entry.map(|entry| String::from_utf8(entry.value.into()).expect("text")))
}

async fn scanned(redis: &RedisCluster) -> Result<Vec<String>, Error> {
    let request = ScanKeysRequest { namespace: namespace(), page_size: 7, ..Default::default() };
    let mut sink = Collect { messages: Vec::new(), messages_max: usize::MAX, now_us: wall_us() };
    let bytes = request.encode_to_vec();
    redis.stream(&context(), Method::KEYVALUE_SCAN_KEYS, &bytes, &mut sink).await?;
    let pages = sink.messages.into_iter().map(|page| ScanKeysResponse::decode(page).unwrap());
    let mut keys: Vec<_> = pages.flat_map(|page| page.keys).collect();
    keys.sort();
    keys.dedup();
    Ok(keys)
}

#[test]
fn a_cluster_serves_what_it_declares() {
    let cluster = OwnCluster::start(3, 0, 60_000);
    let config = config(&cluster);
    rt::run(async move {
        let client = Direct::in_real_time(RedisCluster::start(config), Versions::Digest);
        let ran = run(&client).await;
        assert!(ran.len() > 40, "{ran:?}");
        for round in 0..2 {
            random_sequence(&client, wall_us().wrapping_add(round), 1_000).await;
        }
        let facts = client.backend.facts();
        assert!(facts.is_connected && facts.connects >= 3, "{facts:?}");
    })
    .unwrap();
    for node in &cluster.nodes {
        let calls = node.cli(&["INFO", "commandstats"]);
        assert!(calls.contains("cmdstat_set:"), "every node has had its part: {calls}");
    }
}

#[test]
fn calls_over_several_keys_come_to_all_nodes_and_back_in_their_order() {
    let cluster = OwnCluster::start(3, 0, 60_000);
    let config = config(&cluster);
    rt::run(async move {
        // Found by an address that is not the first.
        let dead = ("127.0.0.1".to_owned(), 1);
        let others = vec![(config.host.clone(), config.port)];
        let config = RedisConfig { host: dead.0, port: dead.1, others, ..config };
        let redis = RedisCluster::start(config);
        let until = Instant::now() + LONG;
        while set(&redis, "first", "1").await.is_err() {
            assert!(Instant::now() < until, "it does not come about");
            rt::sleep(Duration::from_millis(20)).await;
        }
        let keys: Vec<_> = (0..100).map(|number| format!("key {number:03}")).collect();
        let item = |key: &String| BatchSetItem {
            key: key.clone(),
            value: key.clone().into_bytes().into(),
            ..Default::default()
        };
        let items = keys.iter().map(item).collect();
        let request = BatchSetRequest { namespace: namespace(), items };
        let answer: BatchSetResponse =
            call(&redis, Method::KEYVALUE_BATCH_SET, &request).await.unwrap();
        assert!(answer.results.iter().all(|one| one.status.is_none()), "{answer:?}");
        for node in &cluster.nodes {
            let here: usize = node.cli(&["DBSIZE"]).parse().unwrap();
            assert!((10..=60).contains(&here), "{here} keys of 101");
        }
        let (_, home) = cluster.place_of("orders:key 007");
        assert_eq!(cluster.nodes[home].cli(&["GET", "orders:key 007"]), "key 007");

        let (_, home) = cluster.place_of("orders:list");
        cluster.nodes[home].cli(&["RPUSH", "orders:list", "a"]);
        let mut asked = keys.clone();
        asked[50] = "missing".to_owned();
        asked[60] = "list".to_owned();
        let request = BatchGetRequest { namespace: namespace(), keys: asked };
        let answer: BatchGetResponse =
            call(&redis, Method::KEYVALUE_BATCH_GET, &request).await.unwrap();
        for (number, (key, result)) in keys.iter().zip(&answer.results).enumerate() {
            let value = result.entry.as_ref().map(|entry| &entry.value[..]);
            match number {
                50 => assert!(!result.found && result.status.is_none()),
                60 => assert_eq!(result.status.as_ref().map(|status| status.code), Some(9)),
                _ => assert_eq!(value, Some(key.as_bytes()), "{key}"),
            }
        }
        cluster.nodes[home].cli(&["DEL", "orders:list"]);

        assert_eq!(scanned(&redis).await.unwrap().len(), 101);
        let request = CountRequest { namespace: namespace(), ..Default::default() };
        let counted: CountResponse = call(&redis, Method::KEYVALUE_COUNT, &request).await.unwrap();
        assert_eq!((counted.count, counted.exact), (101, true));

        // What is to be atomic is of one slot.
        let put = |key: &str| Operation {
            key: key.to_owned(),
            action: Some(Action::Put(Put { value: b"x".to_vec().into(), ..Default::default() })),
        };
        let transact = |keys: [&str; 2]| TransactRequest {
            namespace: namespace(),
            conditions: Vec::new(),
            operations: keys.map(put).into(),
        };
        let method = Method::KEYVALUE_TRANSACT;
        let apart = call::<TransactResponse>(&redis, method, &transact(["a", "b"])).await;
        assert_eq!(apart.unwrap_err().reason(), "CROSS_PARTITION");
        assert_eq!(get(&redis, "a").await.unwrap(), None);
        let together: TransactResponse =
            call(&redis, method, &transact(["{7}a", "{7}b"])).await.unwrap();
        assert!(together.committed && get(&redis, "{7}b").await.unwrap().is_some());

        let request = BatchDeleteRequest { namespace: namespace(), keys: keys[..99].to_vec() };
        let answer: BatchDeleteResponse =
            call(&redis, Method::KEYVALUE_BATCH_DELETE, &request).await.unwrap();
        assert!(answer.results.iter().all(|one| one.existed == Some(true)), "{answer:?}");
        send(&redis, "a").await.unwrap();
        let (_, home) = cluster.place_of("orders:mail");
        assert_eq!(cluster.nodes[home].cli(&["HGET", "{orders:mail}", "last-number"]), "1");
        assert!(redis.holds_data(&context()).await.unwrap());
        redis.erase(&context()).await.unwrap();
        assert!(!redis.holds_data(&context()).await.unwrap());
        for node in &cluster.nodes {
            assert_eq!(node.cli(&["DBSIZE"]), "0");
        }
        assert_eq!((redis.facts().moved, redis.facts().asked), (0, 0));
    })
    .unwrap();
}

async fn send(redis: &RedisCluster, text: &str) -> Result<String, Error> {
    let message = Message { payload: text.as_bytes().to_vec().into(), ..Default::default() };
    let (namespace, queue) = (namespace(), "mail".to_owned());
    let request = SendRequest { namespace, queue, message: Some(message) };
    let sent: SendResponse = call(redis, Method::QUEUE_SEND, &request).await?;
    Ok(sent.message_id)
}

/// Makes a call until it is not refused for a time.
async fn surely<T>(make: impl AsyncFn() -> Result<T, Error>) -> T {
    let until = Instant::now() + 3 * LONG;
    loop {
        match make().await {
            Ok(done) => return done,
            Err(error) => {
                assert_eq!(error.kind().grpc_code(), 14, "{error:?}");
                assert!(Instant::now() < until, "{error:?}");
                rt::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// A slot moves while its keys are read and written and new ones come: nothing is lost, and nobody hears of it.
#[test]
fn a_slot_moves_under_its_calls() {
    let cluster = OwnCluster::start(3, 0, 60_000);
    let config = config(&cluster);
    let (slot, from) = cluster.place_of("orders:{s}");
    let ways = (from, (from + 1) % 3);
    let (queue_slot, queue_from) = cluster.place_of("orders:mail");
    let queue_ways = (queue_from, (queue_from + 1) % 3);
    let (tell, told) = mpsc::channel();
    rt::run(async move {
        let redis = Rc::new(RedisCluster::start(config));
        for number in 0..300 {
            set(&redis, &format!("{{s}}{number}"), "0").await.unwrap();
        }
        send(&redis, "0").await.unwrap();

        // Step by step first: a key that is not there may be on the other side.
        cluster.begin_move(slot, ways);
        assert_eq!(get(&redis, "{s}missing").await.unwrap(), None);
        assert_eq!(get(&redis, "{s}7").await.unwrap().as_deref(), Some("0"));
        set(&redis, "{s}new", "0").await.unwrap();
        assert!(redis.facts().asked >= 2, "{:?}", redis.facts());
        assert_eq!(redis.facts().moved, 0);
        assert_eq!(cluster.move_keys(slot, ways, 50), 50);
        for number in 0..300 {
            let value = get(&redis, &format!("{{s}}{number}")).await.unwrap();
            assert_eq!(value.as_deref(), Some("0"), "{number}");
        }
        // A list of all keys waits for the slot.
        assert_eq!(scanned(&redis).await.unwrap_err().reason(), "BACKEND_NOT_READY");

        // Now all the rest, and a queue, while calls are made.
        let mover = std::thread::spawn(move || {
            while cluster.move_keys(slot, ways, 5) > 0 {}
            cluster.end_move(slot, ways);
            cluster.begin_move(queue_slot, queue_ways);
            while cluster.move_keys(queue_slot, queue_ways, 1) > 0 {}
            cluster.end_move(queue_slot, queue_ways);
            tell.send(()).unwrap();
            cluster
        });
        let (mut written, sent) = (BTreeMap::new(), Cell::new(1));
        let mut rounds = 0;
        while told.try_recv().is_err() {
            rounds += 1;
            let number = rounds % 320;
            let (key, value) = (format!("{{s}}{number}"), rounds.to_string());
            set(&redis, &key, &value).await.unwrap();
            assert_eq!(get(&redis, &key).await.unwrap().as_deref(), Some(&*value));
            written.insert(key, value);
            if rounds % 20 == 0 {
                surely(async || send(&redis, "x").await).await;
                sent.set(sent.get() + 1);
            }
        }
        let cluster = mover.join().unwrap();
        for (key, value) in &written {
            assert_eq!(get(&redis, key).await.unwrap().as_ref(), Some(value));
        }
        assert!(redis.facts().moved >= 1, "{:?}", redis.facts());
        let queued = cluster.nodes[queue_ways.1].cli(&["ZCARD", "{orders:mail}:ready"]);
        assert_eq!(queued, sent.get().to_string());
        let request = ReceiveRequest {
            namespace: namespace(),
            queue: "mail".to_owned(),
            max_messages: 100,
            ..Default::default()
        };
        let answer: ReceiveResponse = call(&redis, Method::QUEUE_RECEIVE, &request).await.unwrap();
        assert_eq!(answer.deliveries.len(), sent.get().min(100));
        let found = scanned(&redis).await.unwrap();
        let expected = 300 + 1 + written.keys().filter(|key| is_new(key)).count();
        assert_eq!(found.len(), expected);
    })
    .unwrap();
}

/// Whether a key was not there before the slot moved.
fn is_new(key: &str) -> bool {
    key.trim_start_matches("{s}").parse::<u32>().is_ok_and(|number| number >= 300)
}

/// A master dies and its replica takes over: calls are refused for a while, and come back.
#[test]
fn a_replica_takes_over() {
    let mut cluster = OwnCluster::start(3, 1, 2_000);
    let config = config(&cluster);
    rt::run(async move {
        let redis = RedisCluster::start(config);
        // Keys of the node that dies, which is also the one that was asked first.
        let keys = (0..).map(|number| format!("k{number}"));
        let is_there = |key: &String| cluster.place_of(&format!("orders:{key}")).1 == 0;
        let keys: Vec<_> = keys.filter(is_there).take(5).collect();
        for key in &keys {
            surely(async || set(&redis, key, "before").await).await;
        }
        let until = Instant::now() + LONG;
        while cluster.nodes[3].cli(&["DBSIZE"]) != "5" {
            assert!(Instant::now() < until, "the replica does not follow");
            rt::sleep(Duration::from_millis(10)).await;
        }
        cluster.nodes[0].kill();
        for key in &keys {
            let value = surely(async || get(&redis, key).await).await;
            assert_eq!(value.as_deref(), Some("before"));
            surely(async || set(&redis, key, "after").await).await;
        }
        assert_eq!(cluster.nodes[3].cli(&["ROLE"]).lines().next(), Some("master"));
        let until = Instant::now() + LONG;
        while !redis.facts().is_connected {
            assert!(Instant::now() < until, "{:?}", redis.facts());
            rt::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(surely(async || scanned(&redis).await).await, keys);
    })
    .unwrap();
}

/// One that is no cluster, and a node of one that is taken for a Redis by itself, say so.
#[test]
fn a_cluster_and_a_redis_by_itself_are_told_apart() {
    let alone = servers::OwnRedis::start(&[]);
    let cluster = OwnCluster::start(1, 0, 60_000);
    rt::run(async move {
        let at = |address: std::net::SocketAddr| {
            RedisConfig::at(address.ip().to_string(), address.port())
        };
        let refused = |error: Error| (error.kind().grpc_code(), error.reason().to_owned());
        let redis = RedisCluster::start(at(alone.address));
        let error = get(&redis, "a").await.unwrap_err();
        assert_eq!(refused(error), (9, "BACKEND_IS_NO_CLUSTER".to_owned()));
        let redis = prism_adapters::redis::Redis::start(at(cluster.address()));
        let request = GetRequest { namespace: namespace(), key: "a".to_owned() }.encode_to_vec();
        let (method, offered) = (Method::KEYVALUE_GET, prism_adapters::redis::Redis::SERVES);
        let mut reply = Reply::default();
        let answer = redis.unary_checked(&context(), method, &request, offered, &mut reply).await;
        assert_eq!(refused(answer.unwrap_err()), (9, "BACKEND_IS_CLUSTER".to_owned()));
    })
    .unwrap();
}
