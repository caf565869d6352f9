//! A cluster of three NATS servers that keeps three copies of each stream: one of them may go, and nothing that was acknowledged with it.

mod servers;

use std::collections::HashSet;
use std::future::Future;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use prism_adapters::breaker::Backoff;
use prism_adapters::conformance::{Client, Direct, Versions};
use prism_adapters::lane::{LaneBackend, LaneOwner, LaneRecord};
use prism_adapters::nats::{Nats, NatsConfig};
use prism_adapters::{Backend, Context, Limits, NO_DEADLINE_NS, Reply, Revision};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::{
    GetRequest, GetResponse, ScanKeysRequest, ScanKeysResponse, SetRequest,
};
use prism_proto::prism::stream::v1::{AppendRequest, NewRecord, ReadRequest, ReadResponse};
use prism_proto::prism::r#type::v1::{Start, start};
use prost::Message as _;
use servers::{LONG, OwnNats};

/// The namespace of [`Direct`].
const NAMESPACE: &str = "conformance";
const LIMITS: Limits = Limits { max_message_size: 4 * 1024 * 1024 };
const OWNER: LaneOwner = LaneOwner { directory_id: [7; 16], epoch: 3 };

/// A cluster may take long to agree on anything while the machine is busy.
const PATIENCE: Duration = Duration::from_secs(300);

fn config(nodes: &[OwnNats], replicas: u16) -> NatsConfig {
    let (delay_min, delay_max) = (Duration::from_millis(20), Duration::from_millis(200));
    let others = nodes[1..].iter().map(|node| (node.address.ip().to_string(), node.address.port()));
    let first = nodes[0].address;
    NatsConfig {
        others: others.collect(),
        replicas,
        answer_timeout: Duration::from_secs(5),
        backoff: Backoff { delay_min, delay_max },
        ..NatsConfig::at(first.ip().to_string(), first.port())
    }
}

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(4 * PATIENCE, test).await.expect("the test ends in time") })
        .unwrap();
}

fn context(revision: Revision) -> Context<'static> {
    Context {
        namespace: 1,
        namespace_name: NAMESPACE,
        partition: 0,
        now_us: wall_us(),
        revision,
        limits: &LIMITS,
        deadline_ns: NO_DEADLINE_NS,
    }
}

fn append_request(value: &str) -> Vec<u8> {
    let request = AppendRequest {
        namespace: NAMESPACE.to_owned(),
        stream: "s".to_owned(),
        record: Some(NewRecord { value: value.to_owned().into(), ..Default::default() }),
        expected_last: None,
    };
    request.encode_to_vec()
}

fn set_request(key: &str) -> Vec<u8> {
    let (namespace, key, value) = (NAMESPACE.to_owned(), key.to_owned(), key.to_owned().into());
    SetRequest { namespace, key, value, ..Default::default() }.encode_to_vec()
}

/// Makes a call until it succeeds; every failure on the way is one that may pass. How often it was made.
async fn until_done(nats: &Nats, method: Method, request: &[u8]) -> (bytes::Bytes, usize) {
    let until = Instant::now() + PATIENCE;
    for attempt in 1.. {
        let mut reply = Reply::default();
        match nats.unary(&context(Revision::default()), method, request, &mut reply).await {
            Ok(()) => return (reply.to_bytes(), attempt),
            Err(error) => assert!(error.is_retryable() && Instant::now() < until, "{error:?}"),
        }
        rt::sleep(Duration::from_millis(20)).await;
    }
    unreachable!("it is made until it succeeds")
}

/// The values of all records, read until nothing fails.
async fn all(client: &Direct<Nats>) -> Vec<String> {
    let request = ReadRequest {
        namespace: NAMESPACE.to_owned(),
        stream: "s".to_owned(),
        start: Some(Start { start: Some(start::Start::Earliest(())) }),
        ..Default::default()
    };
    let until = Instant::now() + PATIENCE;
    let pages = loop {
        match client.stream(Method::STREAM_READ, request.encode_to_vec(), usize::MAX).await {
            Ok(pages) => break pages,
            Err(failure) => assert!(Instant::now() < until, "{failure:?}"),
        }
        rt::sleep(Duration::from_millis(20)).await;
    };
    let pages = pages.into_iter().map(|page| ReadResponse::decode(page).unwrap());
    let records = pages.flat_map(|page| page.records);
    records.map(|record| String::from_utf8(record.value.to_vec()).unwrap()).collect()
}

/// How many copies there are of a stream, and which of the nodes leads.
fn copies_and_leader(nodes: &[OwnNats], name: &str) -> (usize, usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = format!("nats://{}", nodes[0].address);
    runtime.block_on(async move {
        let client = async_nats::connect(url).await.unwrap();
        let stream = jetstream::new(client).get_stream(name).await.unwrap();
        let info = stream.cached_info();
        let leader = info.cluster.as_ref().and_then(|cluster| cluster.leader.clone());
        let leader = leader.expect("it has a leader").trim_start_matches('n').parse().unwrap();
        (info.config.num_replicas, leader)
    })
}

#[test]
fn one_server_may_go_and_nothing_that_was_acknowledged_with_it() {
    let mut nodes = OwnNats::cluster(3);
    run(async move {
        let client = Direct::in_real_time(Nats::start(config(&nodes, 3)), Versions::Revision);
        let nats = &client.backend;
        let mut sent = 0;
        let mut acknowledged = HashSet::new();
        for number in 0..60 {
            if number == 20 {
                let (copies, leader) = copies_and_leader(&nodes, "STREAM_conformance_s");
                assert_eq!(copies, 3);
                nodes[leader].kill();
            }
            let value = number.to_string();
            sent += until_done(nats, Method::STREAM_APPEND, &append_request(&value)).await.1;
            until_done(nats, Method::KEYVALUE_SET, &set_request(&value)).await;
            acknowledged.insert(value);
        }
        let there = all(&client).await;
        assert!(there.len() <= sent, "{} of {sent}", there.len());
        let distinct: HashSet<String> = there.into_iter().collect();
        assert_eq!(distinct, acknowledged, "all of it is there and nothing else");
        for key in &acknowledged {
            let request = GetRequest { namespace: NAMESPACE.to_owned(), key: key.clone() };
            let (reply, _) = until_done(nats, Method::KEYVALUE_GET, &request.encode_to_vec()).await;
            let entry = GetResponse::decode(reply).unwrap().entry.expect("it is there");
            assert_eq!(&entry.value[..], key.as_bytes());
        }
        let request = ScanKeysRequest { namespace: NAMESPACE.to_owned(), ..Default::default() };
        let pages = client.stream(Method::KEYVALUE_SCAN_KEYS, request.encode_to_vec(), usize::MAX);
        let pages = pages.await.expect("it is read").into_iter();
        let keys: HashSet<String> =
            pages.flat_map(|page| ScanKeysResponse::decode(page).unwrap().keys).collect();
        assert_eq!(keys, acknowledged);
    });
}

#[test]
fn logged_appends_go_on_and_arrive_once() {
    const RECORDS: u64 = 80;
    let mut nodes = OwnNats::cluster(3);
    run(async move {
        let client = Direct::in_real_time(Nats::start(config(&nodes, 3)), Versions::Revision);
        let nats = &client.backend;
        let (now_us, until) = (wall_us(), Instant::now() + PATIENCE);
        let requests: Vec<Vec<u8>> =
            (0..=RECORDS).map(|one| append_request(&one.to_string())).collect();
        let record = |lane_seq: u64| LaneRecord {
            lane_seq,
            context: Context { now_us, ..context(Revision::logged(lane_seq)) },
            method: Method::STREAM_APPEND,
            request: &requests[lane_seq as usize],
        };
        let (mut next, mut is_killed) = (1, false);
        while next <= RECORDS {
            assert!(Instant::now() < until, "the lane stands still at {next}");
            let Ok(cell) = nats.resume(&context(Revision::default()), &OWNER).await else {
                rt::sleep(Duration::from_millis(20)).await;
                continue;
            };
            next = cell.map_or(0, |cell| cell.lane_seq) + 1;
            while next <= RECORDS {
                if next > RECORDS / 2 && !is_killed {
                    let leader = copies_and_leader(&nodes, "STREAM_conformance_s").1;
                    nodes[leader].kill();
                    is_killed = true;
                }
                let batch: Vec<_> = (next..=RECORDS.min(next + 9)).map(record).collect();
                let mut outcomes = Vec::new();
                if nats.apply(&OWNER, &batch, &mut outcomes).await.is_err() {
                    break;
                }
                assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
                next += batch.len() as u64;
            }
        }
        assert!(is_killed);
        let expected: Vec<String> = (1..=RECORDS).map(|one| one.to_string()).collect();
        assert_eq!(all(&client).await, expected);
    });
}

#[test]
fn what_keeps_one_copy_says_so() {
    let server = OwnNats::start("");
    run(async move {
        let replicas =
            NatsConfig { replicas: 3, ..NatsConfig::at("127.0.0.1", server.address.port()) };
        let nats = Nats::start(replicas);
        let call = async |request: Vec<u8>| {
            let context = context(Revision::default());
            nats.unary(&context, Method::KEYVALUE_SET, &request, &mut Reply::default()).await
        };
        let until = Instant::now() + LONG;
        let error = loop {
            let error = call(set_request("key")).await.expect_err("it is no cluster");
            if error.reason() == "BACKEND_REPLICAS" {
                break error;
            }
            assert!(error.is_retryable() && Instant::now() < until, "{error:?}");
        };
        assert!(error.message().contains("replicas"), "{error:?}");
        // The plan of a namespace may say otherwise.
        nats.replicate(1, Some(1));
        call(set_request("key")).await.unwrap();
    });
}
