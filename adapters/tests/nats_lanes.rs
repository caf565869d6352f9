//! A lane's records on a real NATS: each has one effect, whatever is lost on the way.

mod servers;

use std::cell::Cell as Slot;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use prism_adapters::breaker::Backoff;
use prism_adapters::ending::Endings as _;
use prism_adapters::lane::{Cell, LaneBackend, LaneOwner, LaneRecord, Outcome};
use prism_adapters::nats::{Nats, NatsConfig};
use prism_adapters::{Backend, Context, Limits, Reply, Revision};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::{
    BatchDeleteRequest, BatchDeleteResponse, BatchSetItem, BatchSetRequest, BatchSetResponse,
    CompareAndDeleteRequest, CompareAndDeleteResponse, CompareAndSwapRequest,
    CompareAndSwapResponse, DeleteRequest, DeleteResponse, GetRequest, GetResponse, SetRequest,
    SetResponse, compare_and_delete_request, compare_and_swap_request,
};
use prism_proto::prism::queue::v1::{
    AcknowledgeRequest, AcknowledgeResponse, ExtendVisibilityRequest, ExtendVisibilityResponse,
    ReceiveRequest, ReceiveResponse, SendRequest, SendResponse,
};
use prism_proto::prism::r#type::v1 as queued;
use prost::Message;
use servers::{LONG, OwnNats, Proxy};

const OWNER: LaneOwner = LaneOwner { directory_id: [7; 16], epoch: 3 };
const LIMITS: Limits = Limits { max_message_size: 4 * 1024 * 1024 };

fn config(address: std::net::SocketAddr) -> NatsConfig {
    NatsConfig {
        backoff: Backoff {
            delay_min: Duration::from_millis(5),
            delay_max: Duration::from_millis(50),
        },
        ..NatsConfig::at(address.ip().to_string(), address.port())
    }
}

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(6 * LONG, test).await.expect("the test ends in time") })
        .unwrap();
}

fn context(lane_seq: u64) -> Context<'static> {
    Context {
        namespace: 1,
        namespace_name: "orders",
        partition: 0,
        now_us: wall_us(),
        revision: Revision::logged(lane_seq),
        limits: &LIMITS,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    }
}

fn namespace() -> String {
    "orders".to_owned()
}

fn set(key: &str, value: &[u8]) -> (Method, Vec<u8>) {
    let (key, value) = (key.to_owned(), value.to_vec().into());
    let request = SetRequest { namespace: namespace(), key, value, ..Default::default() };
    (Method::KEYVALUE_SET, request.encode_to_vec())
}

fn swap(key: &str, expected: Option<&str>, value: &str) -> (Method, Vec<u8>) {
    use compare_and_swap_request::Expected;
    let expected = match expected {
        None => Expected::ExpectedAbsent(()),
        Some(value) => Expected::ExpectedValue(value.as_bytes().to_vec().into()),
    };
    let request = CompareAndSwapRequest {
        namespace: namespace(),
        key: key.to_owned(),
        value: value.as_bytes().to_vec().into(),
        expected: Some(expected),
        ..Default::default()
    };
    (Method::KEYVALUE_COMPARE_AND_SWAP, request.encode_to_vec())
}

fn delete(key: &str) -> (Method, Vec<u8>) {
    let request = DeleteRequest { namespace: namespace(), key: key.to_owned() };
    (Method::KEYVALUE_DELETE, request.encode_to_vec())
}

fn batch_set(items: impl Iterator<Item = (String, String)>) -> (Method, Vec<u8>) {
    let items = items
        .map(|(key, value)| BatchSetItem {
            key,
            value: value.into_bytes().into(),
            ..Default::default()
        })
        .collect();
    let request = BatchSetRequest { namespace: namespace(), items };
    (Method::KEYVALUE_BATCH_SET, request.encode_to_vec())
}

/// Records, numbered from here on.
fn records(from: u64, calls: &[(Method, Vec<u8>)]) -> Vec<LaneRecord<'_>> {
    (from..)
        .zip(calls)
        .map(|(lane_seq, (method, request))| LaneRecord {
            lane_seq,
            context: context(lane_seq),
            method: *method,
            request,
        })
        .collect()
}

fn answer<R: Message + Default>(outcome: &Outcome) -> R {
    let reply = outcome.as_ref().expect("it is not refused");
    R::decode(reply.to_bytes()).expect("a valid message")
}

async fn get(nats: &Nats, key: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let request = GetRequest { namespace: namespace(), key: key.to_owned() }.encode_to_vec();
    let mut reply = Reply::default();
    nats.unary(&context(0), Method::KEYVALUE_GET, &request, &mut reply).await.unwrap();
    let entry = GetResponse::decode(reply.to_bytes()).unwrap().entry?;
    Some((entry.value.to_vec(), entry.version?.to_vec()))
}

/// Asks for the cell until somebody answers.
async fn resumed(nats: &Nats) -> Option<Cell> {
    let until = Instant::now() + LONG;
    loop {
        match nats.resume(&context(0), &OWNER).await {
            Ok(cell) => return cell,
            Err(error) => assert!(Instant::now() < until, "it does not resume: {error:?}"),
        }
        rt::sleep(Duration::from_millis(5)).await;
    }
}

async fn begun(config: NatsConfig) -> Nats {
    let nats = Nats::start(config);
    assert_eq!(resumed(&nats).await, None);
    nats.set_cell(&context(0), &Cell { owner: OWNER, lane_seq: 0 }).await.unwrap();
    nats
}

#[test]
fn a_batch_applies_its_records_and_moves_the_cell_once() {
    let server = OwnNats::start("");
    let config = config(server.address);
    run(async move {
        let nats = Nats::start(config.clone());
        let calls = [set("a", b"1"), set("b", b"2"), delete("a")];
        let batch = records(1, &calls);
        let mut outcomes = Vec::new();
        let error = nats.apply(&OWNER, &batch, &mut outcomes).await.unwrap_err();
        assert_eq!(error.reason(), "LANE_MOVED", "nobody has asked for the cell");
        drop(nats);
        let nats = begun(config.clone()).await;
        nats.apply(&OWNER, &batch, &mut outcomes).await.unwrap();
        assert_eq!(outcomes.len(), 3);
        assert_eq!(answer::<DeleteResponse>(&outcomes[2]).existed, Some(true));
        assert_eq!(get(&nats, "a").await, None);
        let (value, version) = get(&nats, "b").await.unwrap();
        assert_eq!(value, b"2");
        assert_eq!(answer::<SetResponse>(&outcomes[1]).version.unwrap(), version);

        // What is older is not applied again, what is newer not yet.
        let again = [set("b", b"again")];
        for lane_seq in [2, 5] {
            let error = nats.apply(&OWNER, &records(lane_seq, &again), &mut Vec::new()).await;
            assert_eq!(error.unwrap_err().reason(), "LANE_MOVED", "{lane_seq}");
        }
        assert_eq!(get(&nats, "b").await.unwrap().0, b"2");

        // Another connection that asks for the cell takes the lane over.
        let other = Nats::start(config.clone());
        assert_eq!(resumed(&other).await, Some(Cell { owner: OWNER, lane_seq: 3 }));
        let error = nats.apply(&OWNER, &records(4, &again), &mut Vec::new()).await;
        assert_eq!(error.unwrap_err().reason(), "LANE_MOVED");
        other.apply(&OWNER, &records(4, &again), &mut Vec::new()).await.unwrap();
        assert_eq!(get(&other, "b").await.unwrap().0, b"again");

        // Who has another log sees whose lane it is, and leaves it alone.
        let stranger = Nats::start(config);
        let owner = LaneOwner { directory_id: [8; 16], epoch: 1 };
        let cell = stranger.resume(&context(0), &owner).await.unwrap();
        assert_eq!(cell, Some(Cell { owner: OWNER, lane_seq: 4 }));
        other.apply(&OWNER, &records(5, &again), &mut Vec::new()).await.unwrap();
    });
}

#[test]
fn records_of_a_batch_see_those_before_them() {
    let server = OwnNats::start("");
    let config = config(server.address);
    run(async move {
        let nats = begun(config).await;
        let compare_and_delete = |key: &str, value: &str| {
            use compare_and_delete_request::Expected;
            let expected = Some(Expected::ExpectedValue(value.as_bytes().to_vec().into()));
            let request =
                CompareAndDeleteRequest { namespace: namespace(), key: key.to_owned(), expected };
            (Method::KEYVALUE_COMPARE_AND_DELETE, request.encode_to_vec())
        };
        let many = BatchDeleteRequest {
            namespace: namespace(),
            keys: ["n-1", "n-2", "nothing"].map(str::to_owned).to_vec(),
        };
        let calls = [
            swap("n", None, "1"),
            swap("n", Some("1"), "2"),
            swap("n", Some("1"), "3"),
            delete("missing"),
            batch_set((1..=3).map(|n| (format!("n-{n}"), n.to_string()))),
            (Method::KEYVALUE_BATCH_DELETE, many.encode_to_vec()),
            compare_and_delete("n-3", "2"),
            compare_and_delete("n-3", "3"),
        ];
        let mut outcomes = Vec::new();
        nats.apply(&OWNER, &records(1, &calls), &mut outcomes).await.unwrap();
        let swaps: Vec<CompareAndSwapResponse> = outcomes[..3].iter().map(answer).collect();
        assert_eq!(swaps.iter().map(|one| one.swapped).collect::<Vec<_>>(), [true, true, false]);
        let (value, version) = get(&nats, "n").await.unwrap();
        assert_eq!(value, b"2");
        assert_eq!(swaps[1].version.as_deref(), Some(&version[..]));
        let current = swaps[2].current.as_ref().unwrap();
        assert_eq!(
            (&current.value[..], current.version.as_deref()),
            (&b"2"[..], Some(&version[..]))
        );
        assert_eq!(answer::<DeleteResponse>(&outcomes[3]).existed, Some(false));
        let existed = answer::<BatchDeleteResponse>(&outcomes[5]).results;
        let existed: Vec<_> = existed.iter().map(|one| one.existed).collect();
        assert_eq!(existed, [Some(true), Some(true), Some(false)]);
        assert!(!answer::<CompareAndDeleteResponse>(&outcomes[6]).deleted);
        assert!(answer::<CompareAndDeleteResponse>(&outcomes[7]).deleted);
        for gone in ["n-1", "n-2", "n-3"] {
            assert_eq!(get(&nats, gone).await, None, "{gone}");
        }
    });
}

#[test]
fn a_record_with_more_messages_than_a_batch_takes_is_applied_whole() {
    let server = OwnNats::start("");
    let config = config(server.address);
    run(async move {
        let nats = begun(config.clone()).await;
        let calls = [
            set("before", b"1"),
            batch_set((0..1000).map(|n| (format!("key.{n}"), n.to_string()))),
            set("behind", b"1"),
        ];
        let mut outcomes = Vec::new();
        nats.apply(&OWNER, &records(1, &calls), &mut outcomes).await.unwrap();
        let results = answer::<BatchSetResponse>(&outcomes[1]).results;
        assert_eq!(results.len(), 1000);
        for place in [0, 511, 512, 999] {
            let (value, version) = get(&nats, &format!("key.{place}")).await.unwrap();
            assert_eq!(value, place.to_string().into_bytes());
            assert_eq!(results[place].version.as_deref(), Some(&version[..]), "{place}");
        }
        drop(nats);
        let nats = Nats::start(config);
        assert_eq!(resumed(&nats).await, Some(Cell { owner: OWNER, lane_seq: 3 }));
    });
}

/// Each record moves a counter on, on the condition that it stands where the record before has left it.
#[test]
fn records_have_one_effect_while_the_connection_is_cut_again_and_again() {
    const RECORDS: u64 = 300;
    let server = OwnNats::start("");
    let proxy = Proxy::to(server.address);
    let config = config(proxy.address);
    run(async move {
        let nats = begun(config).await;
        let (proxy, done) = (Rc::new(proxy), Rc::new(Slot::new(false)));
        let begun = Rc::new(rt::Signal::default());
        let (cutter, is_done, has_begun) = (proxy.clone(), done.clone(), begun.clone());
        rt::spawn(async move {
            // A batch has begun: at another moment of it each time.
            for round in 0u64.. {
                has_begun.wait().await;
                rt::sleep(Duration::from_micros(round * 331 % 6_000)).await;
                if is_done.get() {
                    return;
                }
                cutter.cut();
            }
        });
        let counter = |number: u64| (number > 0).then(|| number.to_string());
        let calls: Vec<_> = (0..RECORDS)
            .map(|number| swap("counter", counter(number).as_deref(), &(number + 1).to_string()))
            .collect();
        let (mut at, mut failures) = (0, 0);
        while at < RECORDS {
            let end = (at + 7).min(RECORDS);
            let batch = records(at + 1, &calls[at as usize..end as usize]);
            begun.set();
            let mut outcomes = Vec::new();
            match nats.apply(&OWNER, &batch, &mut outcomes).await {
                Ok(()) => {
                    let swapped = |one| answer::<CompareAndSwapResponse>(one).swapped;
                    assert!(
                        outcomes.iter().all(swapped),
                        "each finds what the one before has left"
                    );
                    at = end;
                }
                Err(_) => {
                    failures += 1;
                    if failures == 40 {
                        done.set(true);
                    }
                    let cell = resumed(&nats).await.expect("the lane has begun");
                    assert!([at, end].contains(&cell.lane_seq), "all or nothing: {cell:?} {at}");
                    at = cell.lane_seq;
                }
            }
        }
        done.set(true);
        assert!(failures > 0, "no cut came at a bad moment");
        assert_eq!(get(&nats, "counter").await.unwrap().0, RECORDS.to_string().into_bytes());
    });
}

/// Calls about a queue that have no record.
async fn unlogged<R: Message + Default>(
    nats: &Nats,
    method: Method,
    request: &impl Message,
) -> Result<R, prism_adapters::Error> {
    let mut reply = Reply::default();
    nats.unary(&context(0), method, &request.encode_to_vec(), &mut reply).await?;
    Ok(R::decode(reply.to_bytes()).expect("a valid message"))
}

/// Sends a message to a queue and receives it; the receipt.
async fn received(nats: &Nats) -> String {
    let (namespace, queue) = (namespace(), "jobs".to_owned());
    let message = Some(queued::Message { payload: "x".into(), ..Default::default() });
    let request = SendRequest { namespace: namespace.clone(), queue: queue.clone(), message };
    unlogged::<SendResponse>(nats, Method::QUEUE_SEND, &request).await.unwrap();
    let visibility_timeout = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
    let request =
        ReceiveRequest { namespace, queue, max_messages: 1, visibility_timeout, wait: None };
    let until = Instant::now() + LONG;
    loop {
        let answer = unlogged::<ReceiveResponse>(nats, Method::QUEUE_RECEIVE, &request).await;
        if let Some(delivery) = answer.unwrap().deliveries.pop() {
            return delivery.receipt;
        }
        assert!(Instant::now() < until, "it is not delivered");
        rt::sleep(Duration::from_millis(5)).await;
    }
}

fn acknowledge(receipt: &str) -> AcknowledgeRequest {
    let (namespace, queue) = (namespace(), "jobs".to_owned());
    AcknowledgeRequest { namespace, queue, receipts: vec![receipt.to_owned()] }
}

#[test]
fn an_acknowledgement_that_arrives_twice_says_twice_that_it_is_done() {
    let server = OwnNats::start("");
    let config = config(server.address);
    run(async move {
        let nats = begun(config.clone()).await;
        let receipt = received(&nats).await;
        let calls = [(Method::QUEUE_ACKNOWLEDGE, acknowledge(&receipt).encode_to_vec())];
        // A record keeps its log time, however often it is sent.
        let record = records(1, &calls);
        let apply = async |nats: &Nats, record: &[LaneRecord<'_>]| {
            let mut outcomes = Vec::new();
            nats.apply(&OWNER, record, &mut outcomes).await.unwrap();
            let mut results = answer::<AcknowledgeResponse>(&outcomes[0]).results;
            results.pop().unwrap().status.map(|status| status.code)
        };
        assert_eq!(apply(&nats, &record).await, None);
        assert!(apply(&nats, &records(2, &calls)).await.is_some(), "another record, soon after");
        // As if somebody had died before the cell was moved: this Prism, or the one before it.
        let begins = Cell { owner: OWNER, lane_seq: 0 };
        let other = Nats::start(config);
        for nats in [&nats, &other] {
            assert!(resumed(nats).await.is_some_and(|cell| cell.lane_seq > 0));
            nats.set_cell(&context(0), &begins).await.unwrap();
            assert_eq!(resumed(nats).await, Some(begins));
            assert_eq!(apply(nats, &record).await, None);
        }
        // Another record that comes with the same receipt, later than any that could have been lost, is told that it is over.
        other.set_cell(&context(0), &Cell { lane_seq: 999, ..begins }).await.unwrap();
        assert!(apply(&other, &records(1000, &calls)).await.is_some());
    });
}

#[test]
fn what_is_no_value_is_no_data_of_a_bucket() {
    let server = OwnNats::start("");
    let config = config(server.address);
    run(async move {
        let nats = Nats::start(config);
        let holds = async || nats.holds_data(&context(0)).await.unwrap();
        assert!(!holds().await, "there is nothing at all");
        assert_eq!(resumed(&nats).await, None);
        nats.set_cell(&context(0), &Cell { owner: OWNER, lane_seq: 0 }).await.unwrap();
        assert!(!holds().await, "a lane's cell");
        let receipt = received(&nats).await;
        assert!(holds().await, "a message of a queue");
        let visibility_timeout = Some(prost_types::Duration { seconds: 7200, nanos: 0 });
        let (namespace, queue) = (namespace(), "jobs".to_owned());
        let extend = ExtendVisibilityRequest {
            namespace,
            queue,
            receipt: receipt.clone(),
            visibility_timeout,
        };
        let method = Method::QUEUE_EXTEND_VISIBILITY;
        unlogged::<ExtendVisibilityResponse>(&nats, method, &extend).await.unwrap();
        let (method, request) = (Method::QUEUE_ACKNOWLEDGE, acknowledge(&receipt));
        unlogged::<AcknowledgeResponse>(&nats, method, &request).await.unwrap();
        assert!(!holds().await, "the mark of a lease");
        for (call, has_data) in [(set("a", b"1"), true), (delete("a"), false)] {
            nats.unary(&context(0), call.0, &call.1, &mut Reply::default()).await.unwrap();
            assert_eq!(holds().await, has_data, "a value, and the mark of one that was deleted");
        }
    });
}
