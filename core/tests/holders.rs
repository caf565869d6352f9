//! Connections that hold what they were given, or say and take little and slowly: each has its time and its bound, and disturbs nobody.

mod harness;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use harness::attack::{ATTACK_KIB_MAX, Attack, beside_a_neighbour, connector, refused_as};
use harness::certificates::issue;
use harness::frames::{End, Raw, framed, head};
use harness::{Caller, PATIENCE, Server, directory, run};
use prism_io::h2::ErrorCode;
use prism_io::h2::frame::{PREFACE, kind, setting};
use prism_io::tls::Sealed;
use prism_proto::prism::keyvalue::v1::{GetRequest, ScanRequest, SetRequest};
use prost::Message;

const GET: &str = "/prism.keyvalue.v1.KeyValueService/Get";
const SCAN: &str = "/prism.keyvalue.v1.KeyValueService/Scan";
const SET: &str = "/prism.keyvalue.v1.KeyValueService/Set";

fn bounded(memory_kib_max: u64, attack: impl FnMut(&Server)) {
    Attack { memory_kib_max, ..Attack::default() }.run(attack);
}

fn get(key: &str) -> Vec<u8> {
    GetRequest { namespace: "keyvalue".into(), key: key.into() }.encode_to_vec()
}

fn set(key: &str, value: &[u8]) -> Vec<u8> {
    let (namespace, key) = ("keyvalue".into(), key.into());
    SetRequest { namespace, key, value: value.to_vec().into(), ..Default::default() }
        .encode_to_vec()
}

/// Connections that say little and slowly: each kind has its time, and holds nothing after it.
#[test]
fn slow_loris() {
    let config = "transport: {first_byte_timeout: 500ms, preface_timeout: 1s, headers_timeout: 1s, \
                  settings_timeout: 1s, idle_timeout: 2s, slow_writer_min: 32KiB / 1s}\n";
    let kinds = [
        "first_byte_time",
        "preface_time",
        "header_time",
        "settings_time",
        "slow_writer",
        "idle_time",
    ];
    Attack { memory_kib_max: ATTACK_KIB_MAX, config, kinds: &kinds, ..Attack::default() }.run(
        |server| {
            const EACH: usize = 20;
            let many = |open: &dyn Fn() -> Raw| (0..EACH).map(|_| open()).collect::<Vec<_>>();
            let block = head(SET, &[]);
            let silent = many(&|| Raw::bare(server));
            let preface = many(&|| {
                let mut raw = Raw::bare(server);
                raw.send(&PREFACE[..3]);
                raw
            });
            let unacknowledged = many(&|| {
                let mut raw = Raw::bare(server);
                raw.send(&[&PREFACE[..], &[0, 0, 0, kind::SETTINGS, 0, 0, 0, 0, 0]].concat());
                raw
            });
            let frame = many(&|| {
                let mut raw = Raw::open(server);
                raw.send(&[0, 0, 200, kind::HEADERS, 5, 0, 0, 0, 1, 0x82]);
                raw
            });
            let continued = many(&|| {
                let mut raw = Raw::open(server);
                raw.frame(kind::HEADERS, 0, 1, &block[..10]);
                raw.frame(kind::CONTINUATION, 0, 1, &block[10..12]);
                raw
            });
            let idle = many(&|| Raw::open(server));
            let mut message = many(&|| {
                let mut raw = Raw::open(server);
                raw.head(1, SET, &[], 0);
                raw.frame(kind::DATA, 0, 1, &framed(&[0; 2000])[..100]);
                raw
            });
            for raw in &mut message {
                assert_eq!(raw.end_of(1), End::Reset(ErrorCode::ENHANCE_YOUR_CALM));
            }
            for (ends, code) in [
                (silent, None),
                (preface, None),
                (unacknowledged, Some(ErrorCode::SETTINGS_TIMEOUT)),
                (frame, Some(ErrorCode::ENHANCE_YOUR_CALM)),
                (continued, Some(ErrorCode::ENHANCE_YOUR_CALM)),
                (idle, Some(ErrorCode::NO_ERROR)),
                (message, Some(ErrorCode::NO_ERROR)),
            ] {
                for mut raw in ends {
                    assert_eq!(raw.end(), code.map_or(End::Closed, End::Goaway));
                }
            }
        },
    );
}

/// Answers that wait for windows that never open: they are given up after a while, and the bytes are there for others.
#[test]
fn zero_window() {
    let config = "transport: {slow_reader_min: 64KiB / 1s}\n";
    let kinds = ["slow_reader"];
    Attack { memory_kib_max: 3 * ATTACK_KIB_MAX, config, kinds: &kinds, ..Attack::default() }.run(
        |server| {
            let listen = server.listen;
            run(async move {
                let caller = Caller::to(listen, "keyvalue").await;
                caller.set("large", &vec![7; 1 << 20]).await;
            });
            let mut readers: Vec<Raw> = (0..4)
                .map(|_| Raw::open_with(server, &[(setting::INITIAL_WINDOW_SIZE, 0)]))
                .collect();
            for reader in &mut readers {
                (0..8).for_each(|call| reader.call(call * 2 + 1, GET, &[], &get("large")));
            }
            for reader in &mut readers {
                for call in 0..8 {
                    let end = reader.end_of(call * 2 + 1);
                    assert_eq!(end, End::Reset(ErrorCode::ENHANCE_YOUR_CALM), "call {call}");
                }
                // A call that takes its answer is served on the same connection.
                reader.frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]);
                reader.call(101, GET, &[], &get("nothing"));
                assert_eq!(reader.end_of(101), End::Status("0".into()));
            }
        },
    );
}

/// When all connections together hold too much, the one that holds most is ended.
#[test]
fn full_shard_buffers_end_the_largest_holder() {
    let config = "transport: {shard_buffer_bytes_max: 8MiB}\n";
    let kinds = ["shard_buffers"];
    Attack { memory_kib_max: 2 * ATTACK_KIB_MAX, config, kinds: &kinds, ..Attack::default() }.run(
        |server| {
            let listen = server.listen;
            run(async move {
                let caller = Caller::to(listen, "keyvalue").await;
                caller.set("large", &vec![7; 1 << 20]).await;
            });
            let zero = [(setting::INITIAL_WINDOW_SIZE, 0)];
            let mut modest = Raw::open_with(server, &zero);
            modest.call(1, GET, &[], &get("large"));
            let mut greedy = Raw::open_with(server, &zero);
            (0..10).for_each(|call| greedy.call(call * 2 + 1, GET, &[], &get("large")));
            assert_eq!(greedy.end(), End::Goaway(ErrorCode::ENHANCE_YOUR_CALM));
            modest.frame(kind::SETTINGS, 0, 0, &[0, 4, 0x7f, 0, 0, 0]);
            modest.frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0x7f, 0, 0]);
            assert_eq!(modest.end_of(1), End::Status("0".into()));
        },
    );
}

/// A message that is whole in a request that is not counts until its end: many of them are refused.
#[test]
fn requests_that_do_not_end() {
    refused_as(&["gathered"], |server| {
        let mut raw = Raw::open(server);
        let body = framed(&set("unended", &vec![1; 1 << 20]));
        for call in 0..20 {
            raw.head(call * 2 + 1, SET, &[], 0);
            for piece in body.chunks(16_384) {
                raw.frame(kind::DATA, 0, call * 2 + 1, piece);
            }
        }
        assert_eq!(raw.end_of(39), End::Status("8".into()));
    });
}

#[test]
fn a_reader_that_never_reads_costs_bounded_memory() {
    const ROUNDS: u32 = 200;
    // Two connections with 64 MiB queued at most, and what the server needs anyway.
    bounded(200 * 1024, |server| {
        // One with windows as wide as they can be, one with none at all.
        let mut readers = [i32::MAX as u32, 0].map(|window| {
            let mut raw = Raw::open_with(server, &[(setting::INITIAL_WINDOW_SIZE, window)]);
            raw.frame(kind::WINDOW_UPDATE, 0, 0, &(i32::MAX as u32 - 65_535).to_be_bytes());
            raw
        });
        let listen = server.listen;
        for round in 0..ROUNDS {
            // Another value each time: an answer that waits is all that holds the one before.
            run(async move {
                let caller = Caller::to(listen, "keyvalue").await;
                caller.set_when_there_is_room("megabyte", &vec![round as u8; 1 << 20]).await;
            });
            for reader in &mut readers {
                reader.call(round * 2 + 1, GET, &[], &get("megabyte"));
            }
        }
        let [mut wide, none] = readers;
        drop(none);
        // When it reads at last, the first answer is whole; the last may have been too many.
        assert_eq!(wide.end_of(1), End::Status("0".into()));
        let last = wide.end_of(ROUNDS * 2 - 1);
        assert!([End::Status("0".into()), End::Status("8".into())].contains(&last), "{last:?}");
        drop(wide);
        server.wait_for_metric("prism_connections", |open| open <= 1.0);
    });
}

#[test]
fn a_stream_that_is_never_read_costs_bounded_memory() {
    bounded(150 * 1024, |server| {
        let listen = server.listen;
        run(async move {
            let caller = Caller::to(listen, "keyvalue").await;
            for key in 0..200 {
                let value = vec![b's'; 100 << 10];
                caller.set_when_there_is_room(&format!("scanned-{key}"), &value).await;
            }
        });
        let scan = ScanRequest { namespace: "keyvalue".into(), ..Default::default() };
        let mut readers: Vec<Raw> = (0..10).map(|_| Raw::open(server)).collect();
        for reader in &mut readers {
            for call in 0..20 {
                reader.call(call * 2 + 1, SCAN, &[], &scan.encode_to_vec());
            }
        }
        // 200 scans of 20 MiB each wait for their readers.
        server.wait_for_metric("prism_streams", |streams| streams >= 200.0);
        drop(readers);
        server.wait_for_metric("prism_streams", |streams| streams <= 1.0);
        server.wait_for_metric("prism_connections", |open| open <= 1.0);
    });
}

#[test]
fn callers_that_leave_in_the_middle_leave_nothing_behind() {
    beside_a_neighbour(|server| {
        for round in 0..50 {
            let mut raw = Raw::open(server);
            for call in 0..40 {
                raw.call(call * 2 + 1, SET, &[], &set(&format!("gone-{round}-{call}"), &[1; 500]));
            }
            // A call of which only the beginning came.
            raw.head(101, SET, &[], 0);
            raw.frame(kind::DATA, 0, 101, &framed(&[0; 2000])[..1000]);
            raw.close();
        }
        server.wait_for_metric("prism_connections", |open| open <= 1.0);
        server.wait_for_metric("prism_request_bytes_in_flight", |bytes| bytes < 1000.0);
    });
}

#[test]
fn two_thousand_idle_connections() {
    const CONNECTIONS: u64 = 2000;
    /// The bar of the issue, in KiB each.
    const EACH_KIB: u64 = 24;
    harness::allow_open_files(2 * CONNECTIONS + 100);
    beside_a_neighbour(|server| {
        let before = server.resident_kib();
        let idle: Vec<Raw> = (0..CONNECTIONS).map(|_| Raw::open(server)).collect();
        server.wait_for_metric("prism_connections", |open| open > CONNECTIONS as f64);
        let each = server.resident_kib().saturating_sub(before) / CONNECTIONS;
        assert!(each <= EACH_KIB, "{each} KiB each");
        drop(idle);
        server.wait_for_metric("prism_connections", |open| open <= 1.0);
    });
}

/// Handshakes that stop at their first bytes, that go as far as the server's signature and are dropped, that are carried
/// through and dropped, and more at a time than may be.
#[test]
fn handshake_flood() {
    const AT_A_TIME: usize = 32;
    let folder = directory();
    issue(folder.path(), "server", |_| ());
    let config = format!("tls: {{handshakes_max: {AT_A_TIME}, handshake_timeout: 1s}}\n");
    let kinds = ["handshakes", "handshake_time"];
    let connector = connector(folder.path());
    let mut hello = Sealed::default();
    connector.session().unwrap().start(&mut hello).unwrap();
    let certificate = Some(folder.path());
    Attack { config: &config, kinds: &kinds, certificate, ..Attack::default() }.run(|server| {
        let connect = |bytes: &[u8]| {
            let mut socket = TcpStream::connect(server.listen).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.write_all(bytes).unwrap();
            socket
        };
        // The server's own flight is there: it has signed, for nothing.
        for _ in 0..4 * AT_A_TIME {
            let mut socket = connect(hello.as_slice());
            assert_eq!(socket.read(&mut [0]).unwrap(), 1);
        }
        let (listen, connector) = (server.listen, connector.clone());
        run(async move {
            for _ in 0..AT_A_TIME {
                drop(Caller::secured(listen, &connector, "keyvalue").await);
            }
        });
        server.wait_for_metric("prism_tls_handshakes_in_flight", |count| count == 0.0);
        // Those who begin and never go on take every place, and whoever comes on top is shown the door at once.
        let mut silent: Vec<_> = (0..AT_A_TIME).map(|_| connect(&hello.as_slice()[..20])).collect();
        server.wait_for_metric("prism_tls_handshakes_in_flight", |count| count == AT_A_TIME as f64);
        for _ in 0..4 * AT_A_TIME {
            assert!(is_closed(&mut connect(&[])));
        }
        // Until their time is up.
        assert!(silent.iter_mut().all(is_closed));
        server.wait_for_metric("prism_tls_handshakes_in_flight", |count| count == 0.0);
    });
}

/// Waits for the end of a connection that is not answered in the clear.
fn is_closed(socket: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Ok(_) => rest.first().is_none_or(|&first| first == 0x15),
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}
