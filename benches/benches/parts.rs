//! `cargo bench -p prism-benches --bench parts`: the pieces of a call on their own, without a socket or a disk.
//!
//! Times per call. They add up to what `unary` measures less the kernel's share.

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use prism_adapters::interfaces::keyvalue_basic;
use prism_adapters::limits::Limits;
use prism_adapters::memory::{Memstore, MemstoreLimits};
use prism_adapters::{Context, Reply, Revision};
use prism_io::disk::sim::Simulation;
use prism_io::grpc::{ClientConnection, ClientEvent, Event, Message, ServerConnection};
use prism_io::h2::{self, Output};
use prism_loadtest::kv::workload::{Kind, key_name};
use prism_loadtest::null_server;
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1 as keyvalue;
use prism_proto::view::keyvalue as view;
use prism_wal::driver::start;
use prism_wal::{Lane, LogConfig, Operation, RecordHead, recover};
use prost::Message as _;

/// Calls in one turn of a connection, and records in one batch of the log.
const BATCH: usize = 16;
const KEYS: u64 = 10_000;

fn set_request(number: u64) -> Vec<u8> {
    let (namespace, key, value) = ("keyvalue".to_owned(), key_name(number), vec![b'v'; 128].into());
    keyvalue::SetRequest { namespace, key, value, ..Default::default() }.encode_to_vec()
}

fn get_request(number: u64) -> Vec<u8> {
    keyvalue::GetRequest { namespace: "keyvalue".into(), key: key_name(number) }.encode_to_vec()
}

/// Both ends of HTTP/2 and gRPC, a connection's turn of sixteen calls there and back.
fn transport(criterion: &mut Criterion) {
    let limits = h2::Limits::default();
    let mut client = ClientConnection::new(&limits, "localhost", 0);
    let mut server = ServerConnection::new(&limits, null_server::route, 0);
    let (mut to_server, mut to_client) = (BytesMut::new(), BytesMut::new());
    let mut output = Output::default();
    let (message, (_, answer)) = (set_request(1), null_server::answers(128));
    let mut turn = || {
        for _ in 0..BATCH {
            let path = Kind::Write.path().as_bytes();
            client.call(path, Message::new(&message), &[], None).expect("there is room");
        }
        let mut finished = 0;
        while finished < BATCH {
            client.swap_output(&mut output);
            output.segments().for_each(|part| to_server.extend_from_slice(part));
            server.receive(&mut to_server, 0);
            while let Some(event) = server.poll_event() {
                if let Event::Request { stream, message, .. } = event {
                    black_box(message);
                    server.respond(stream, Message::new(&answer), &[]);
                }
            }
            server.swap_output(&mut output);
            output.segments().for_each(|part| to_client.extend_from_slice(part));
            client.receive(&mut to_client, 0);
            while let Some(event) = client.poll_event() {
                finished += usize::from(matches!(event, ClientEvent::Finished { .. }));
            }
        }
    };
    let mut group = criterion.benchmark_group("transport");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("16 calls, both ends", |bencher| bencher.iter(&mut turn));
    group.finish();
}

fn messages(criterion: &mut Criterion) {
    let set = set_request(1);
    let mut group = criterion.benchmark_group("messages");
    group.bench_function("Set, borrowed view", |bencher| {
        bencher.iter(|| black_box(view::SetRequest::decode(black_box(&set))).is_ok());
    });
    group.bench_function("Set, prost", |bencher| {
        bencher.iter(|| black_box(keyvalue::SetRequest::decode(black_box(&set[..]))).is_ok());
    });
    group.finish();
}

/// A future that has its answer at hand.
fn now<F: Future>(future: F) -> F::Output {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => unreachable!("memstore never waits"),
    }
}

fn memstore(criterion: &mut Criterion) {
    let (store, limits) = (Memstore::new(MemstoreLimits::default()), Limits::default());
    let (sets, gets): (Vec<_>, Vec<_>) =
        (0..KEYS).map(|number| (set_request(number), get_request(number))).unzip();
    let mut reply = Reply::default();
    let mut lsn = 0;
    let mut call = |method, requests: &[Vec<u8>]| {
        lsn += 1;
        let context = Context {
            namespace: 1,
            namespace_name: "keyvalue",
            partition: 0,
            now_us: 1_700_000_000_000_000,
            revision: Revision::logged(lsn),
            limits: &limits,
            deadline_ns: prism_adapters::NO_DEADLINE_NS,
        };
        // A stride that visits all keys in an order that caches do not foresee.
        let request = &requests[(lsn as usize * 7919) % requests.len()];
        reply.clear();
        now(keyvalue_basic::unary(&store, &context, method, request, true, &mut reply))
            .expect("it is taken");
        black_box(reply.len());
    };
    for _ in 0..KEYS {
        call(Method::KEYVALUE_SET, &sets);
    }
    let mut group = criterion.benchmark_group("memstore");
    group.bench_function("Set, 10,000 keys", |bencher| {
        bencher.iter(|| call(Method::KEYVALUE_SET, &sets))
    });
    group.bench_function("Get, 10,000 keys", |bencher| {
        bencher.iter(|| call(Method::KEYVALUE_GET, &gets))
    });
    group.finish();
}

/// The log's share of sixteen records in one batch, but for the write itself.
fn log(criterion: &mut Criterion) {
    let mut disk = Simulation::new(0);
    let config = LogConfig {
        segment_bytes: 8 << 20,
        segments_max: 8,
        record_bytes_max: 1 << 20,
        ..LogConfig::default()
    };
    let recovered =
        recover(&mut disk, &config, &mut |_: &prism_wal::Record<'_>| {}).expect("an empty disk");
    let mut log = start(&mut disk, recovered, config, [1; 16], 0).expect("a disk that works");
    let lane = Lane { namespace: 1, partition: 0 };
    let head = RecordHead { lane, method: Method::KEYVALUE_SET.id(), ..RecordHead::default() };
    let body = set_request(1);
    let mut batches = 0u64;
    let mut turn = || {
        for _ in 0..BATCH {
            log.append(5, &head, &body).expect("there is room");
        }
        let mut durable = 0;
        while let Some(operation) = log.poll_operation(5) {
            let (Operation::Write { token, .. } | Operation::Create { token, .. }) = operation;
            log.handle_completion(token, Ok(()), 5);
            while let Some(batch) = log.poll_durable() {
                durable += batch.records().count();
            }
        }
        black_box(durable);
        batches += 1;
        if batches.is_multiple_of(1024) {
            log.trim(5, log.durable_upto(), &[]).expect("the log is open");
        }
    };
    let mut group = criterion.benchmark_group("log");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("16 records, one batch", |bencher| bencher.iter(&mut turn));
    group.finish();
}

criterion_group!(parts, transport, messages, memstore, log);
criterion_main!(parts);
