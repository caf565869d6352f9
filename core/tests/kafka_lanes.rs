//! Logged writes on their way to a real Kafka: in order and each there once, whatever dies on the way.

mod harness;
#[path = "../../adapters/tests/servers/mod.rs"]
mod servers;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use harness::{Caller, Refusal, Server, Setup, directory, run, serve};
use prism_io::grpc::Code;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::stream::v1::{
    AppendRequest, AppendResponse, NewRecord, ReadRequest, ReadResponse,
};
use prism_proto::prism::r#type::v1::{Start, start};
use prost::Message as _;
use servers::OwnKafka;

const STRONG: [(&str, &[u8]); 1] = [("prism-durability", b"strong")];

/// How long a broker may take to be back at work after its start, and a lane to get there.
const BACK: Duration = Duration::from_secs(120);

fn setup(path: &Path, kafka: SocketAddr) -> Setup {
    serve(path).config(&format!(
        "backends:\n  - {{name: log, type: kafka, brokers: [\"{kafka}\"], replication: 1}}\nnamespaces:\n  \
         - {{name: events, client_api: stream, backend: log, durability: wal}}\n"
    ))
}

async fn append(
    caller: &Caller,
    metadata: &[(&str, &[u8])],
    number: u64,
) -> Result<AppendResponse, Refusal> {
    let value = number.to_string().into_bytes().into();
    let request = AppendRequest {
        namespace: caller.namespace.clone(),
        stream: "orders".to_owned(),
        record: Some(NewRecord { value, ..Default::default() }),
        ..Default::default()
    };
    Ok(caller.call(Method::STREAM_APPEND, metadata, &request).await?.0)
}

/// Waits until Kafka has everything that was acknowledged: a record whose place Kafka itself has to tell stands behind it all.
fn drained(server: &Server, number: u64) {
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "events").await;
        let until = Instant::now() + BACK;
        loop {
            match append(&caller, &STRONG, number).await {
                Ok(answer) => break assert!(answer.position.is_some(), "Kafka has answered"),
                Err(refusal) => assert!(Instant::now() < until, "{refusal:?}"),
            }
            rt::sleep(Duration::from_millis(20)).await;
        }
    });
    server.wait_for_metric("prism_lane_pending_records", |pending| pending == 0.0);
}

/// All that is there, in its order.
fn all(server: &Server) -> Vec<u64> {
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "events").await;
        let request = ReadRequest {
            namespace: caller.namespace.clone(),
            stream: "orders".to_owned(),
            start: Some(Start { start: Some(start::Start::Earliest(())) }),
            ..Default::default()
        };
        let (path, bytes) = (Method::STREAM_READ.path(), request.encode_to_vec());
        let mut reply = caller.client.stream(path, &[], &bytes, BACK).await.expect("begun");
        let mut numbers = Vec::new();
        while let Some(page) = reply.next().await.expect("read") {
            let page = ReadResponse::decode(page).expect("a valid page");
            let number = |value: &[u8]| std::str::from_utf8(value).unwrap().parse().unwrap();
            numbers.extend(page.records.iter().map(|one| -> u64 { number(&one.value) }));
        }
        numbers
    })
}

#[test]
fn acknowledged_appends_outlive_the_outage_of_kafka_and_the_death_of_the_server() {
    let mut kafka = OwnKafka::start();
    let directory = directory();
    let setup = setup(directory.path(), kafka.address);
    let server = setup.start();
    let listen = server.listen;
    drained(&server, 0);
    kafka.kill();
    run(async move {
        let caller = Caller::to(listen, "events").await;
        for number in 1..=300 {
            let answer = append(&caller, &[], number).await.expect("the log takes it");
            assert_eq!(answer.position, None, "only Kafka knows it");
        }
        // What needs Kafka is refused before there is a record, as soon as it is known to be away.
        let until = Instant::now() + BACK;
        loop {
            let refused = append(&caller, &STRONG, 0).await.expect_err("there is no Kafka");
            assert!(Instant::now() < until, "{refused:?}");
            if refused.reason == "LANE_BEHIND" {
                assert_eq!(refused.code, Code::Unavailable, "{refused:?}");
                assert!(refused.message.contains("events"), "{refused:?}");
                break;
            }
        }
    });
    server.kill();
    // The log holds them over a start without Kafka, too.
    let server = setup.start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "events").await;
        append(&caller, &[], 301).await.expect("the log takes it");
    });
    kafka.restart();
    drained(&server, 302);
    let mut found = all(&server);
    // A strong append that was begun when Kafka had just gone may have a record, too: it says 0.
    found.retain(|number| *number != 0);
    // One whose answer was lost may be there before the one that was answered.
    found.dedup_by(|one, other| *one == 302 && *other == 302);
    assert_eq!(found, (1..=302).collect::<Vec<_>>());
    server.stop();
}

/// Appends ever higher numbers until the server is gone; those that were acknowledged.
async fn load(listen: SocketAddr, last: Rc<RefCell<u64>>) -> Vec<u64> {
    let caller = Caller::to(listen, "events").await;
    let mut acknowledged = Vec::new();
    loop {
        let number = *last.borrow() + 1;
        *last.borrow_mut() = number;
        match append(&caller, &[], number).await {
            Ok(_) => acknowledged.push(number),
            Err(refusal) if refusal.reason.is_empty() => return acknowledged,
            Err(refusal) if refusal.is_for_want_of_log() => rt::yield_now().await,
            Err(refusal) => panic!("{refusal:?}"),
        }
    }
}

#[test]
fn none_is_lost_or_doubled_when_either_side_is_killed_under_load() {
    let mut kafka = OwnKafka::start();
    let directory = directory();
    let setup = setup(directory.path(), kafka.address);
    let (mut last, mut acknowledged) = (0, Vec::new());
    for round in 0..4u64 {
        let server = setup.start();
        let (listen, id) = (server.listen, server.id());
        if round > 0 {
            // It has something to do with Kafka before it is killed.
            last += 1;
            drained(&server, last);
        }
        let with_kafka = round == 2;
        let killer = std::thread::spawn({
            let kafka_id = kafka.id();
            move || {
                std::thread::sleep(Duration::from_millis(300));
                if with_kafka {
                    harness::signal(kafka_id, "KILL");
                }
                std::thread::sleep(Duration::from_millis(300));
                harness::signal(id, "KILL");
            }
        });
        (last, acknowledged) = run(async move {
            let last = Rc::new(RefCell::new(last));
            acknowledged.extend(load(listen, last.clone()).await);
            let last = *last.borrow();
            (last, acknowledged)
        });
        killer.join().unwrap();
        server.kill();
        if with_kafka {
            kafka.kill();
            kafka.restart();
        }
    }
    let server = setup.start();
    drained(&server, last + 1);
    let found = all(&server);
    let strays: Vec<_> = found.windows(2).filter(|pair| pair[0] > pair[1]).collect();
    assert!(strays.is_empty(), "in their order: {strays:?} of {found:?}");
    let mut once = found.clone();
    once.dedup();
    assert!(acknowledged.iter().all(|number| once.binary_search(number).is_ok()), "none is lost");
    assert!(
        acknowledged.iter().all(|number| found.iter().filter(|one| *one == number).count() == 1)
    );
    assert!(acknowledged.len() > 100, "there was load: {}", acknowledged.len());
    server.stop();
}
