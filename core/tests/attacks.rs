//! Connections that mean harm or know no better: each ends with a clear word, costs bounded memory, and disturbs nobody.

mod harness;

use harness::frames::{End, Raw, framed, head};
use harness::{Caller, Neighbour, Server, directory, run, serve};
use prism_io::h2::ErrorCode;
use prism_io::h2::frame::{PREFACE, flag, kind, put_reset, setting};
use prism_proto::prism::keyvalue::v1::{GetRequest, ScanRequest, SetRequest};
use prost::Message;

const GET: &str = "/prism.keyvalue.v1.KeyValueService/Get";
const SCAN: &str = "/prism.keyvalue.v1.KeyValueService/Scan";
const SET: &str = "/prism.keyvalue.v1.KeyValueService/Set";

/// Resident memory that an attack may make the server use at its worst; it begins with about 12 MiB.
const ATTACK_KIB_MAX: u64 = 48 * 1024;

/// Runs `attack` beside a neighbour, and sees that the server is as before.
fn beside_a_neighbour(attack: impl FnOnce(&Server)) {
    bounded(ATTACK_KIB_MAX, attack);
}

fn bounded(memory_kib_max: u64, attack: impl FnOnce(&Server)) {
    let directory = directory();
    let server = serve(directory.path()).start();
    let neighbour = Neighbour::of(&server);
    attack(&server);
    neighbour.leave();
    server.assert_well();
    let memory = server.memory_kib();
    assert!(memory <= memory_kib_max, "{memory} KiB resident");
    server.stop();
}

fn get(key: &str) -> Vec<u8> {
    GetRequest { namespace: "keyvalue".into(), key: key.into() }.encode_to_vec()
}

fn set(key: &str, value: &[u8]) -> Vec<u8> {
    let (namespace, key) = ("keyvalue".into(), key.into());
    SetRequest { namespace, key, value: value.to_vec().into(), ..Default::default() }
        .encode_to_vec()
}

#[test]
fn malformed_frames_end_their_connection_with_the_code_of_the_rfc() {
    use ErrorCode as Code;
    beside_a_neighbour(|server| {
        let block = head(GET, &[]);
        let request = |stream: u32| (kind::HEADERS, flag::END_HEADERS, stream, block.as_slice());
        type Sent<'a> = (u8, u8, u32, &'a [u8]);
        let cases: &[(&str, &[Sent<'_>], Code)] = &[
            ("DATA on stream 0", &[(kind::DATA, 0, 0, b"x")], Code::PROTOCOL_ERROR),
            ("DATA on an idle stream", &[(kind::DATA, 0, 5, b"x")], Code::PROTOCOL_ERROR),
            ("HEADERS on an even stream", &[request(2)], Code::PROTOCOL_ERROR),
            ("HEADERS on stream 0", &[request(0)], Code::PROTOCOL_ERROR),
            ("streams backwards", &[request(5), request(3)], Code::PROTOCOL_ERROR),
            (
                "a block that is no HPACK",
                &[(kind::HEADERS, 4, 1, &[0xff; 20])],
                Code::COMPRESSION_ERROR,
            ),
            (
                "an index beyond the table",
                &[(kind::HEADERS, 4, 1, &[0xfe])],
                Code::COMPRESSION_ERROR,
            ),
            ("SETTINGS of 5 bytes", &[(kind::SETTINGS, 0, 0, &[0; 5])], Code::FRAME_SIZE_ERROR),
            ("SETTINGS on a stream", &[(kind::SETTINGS, 0, 1, &[])], Code::PROTOCOL_ERROR),
            ("PING of 7 bytes", &[(kind::PING, 0, 0, &[0; 7])], Code::FRAME_SIZE_ERROR),
            (
                "WINDOW_UPDATE of nothing",
                &[(kind::WINDOW_UPDATE, 0, 0, &[0; 4])],
                Code::PROTOCOL_ERROR,
            ),
            (
                "a window beyond its bound",
                &[(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])],
                Code::FLOW_CONTROL_ERROR,
            ),
            ("PUSH_PROMISE", &[(kind::PUSH_PROMISE, 4, 1, &[0, 0, 0, 2])], Code::PROTOCOL_ERROR),
            (
                "CONTINUATION of nothing",
                &[(kind::CONTINUATION, 4, 1, &block)],
                Code::PROTOCOL_ERROR,
            ),
            (
                "a frame between HEADERS and CONTINUATION",
                &[(kind::HEADERS, 0, 1, &block[..5]), (kind::PING, 0, 0, &[0; 8])],
                Code::PROTOCOL_ERROR,
            ),
            (
                "RST_STREAM of an idle stream",
                &[(kind::RST_STREAM, 0, 9, &[0; 4])],
                Code::PROTOCOL_ERROR,
            ),
            ("a frame of 17 KiB", &[(kind::DATA, 0, 1, &[0; 17 << 10])], Code::FRAME_SIZE_ERROR),
            (
                "padding longer than its frame",
                &[request(1), (kind::DATA, flag::PADDED, 1, &[200, 1, 2])],
                Code::PROTOCOL_ERROR,
            ),
        ];
        for (what, frames, code) in cases {
            let mut raw = Raw::open(server);
            for (kind, flags, stream, payload) in frames.iter() {
                raw.frame(*kind, *flags, *stream, payload);
            }
            assert_eq!(raw.end(), End::Goaway(*code), "{what}");
        }
    });
}

#[test]
fn malformed_grpc_fails_its_call_and_nothing_else() {
    beside_a_neighbour(|server| {
        let mut raw = Raw::open(server);
        let message = framed(&get("key"));
        let compressed = [&[1], &message[1..]].concat();
        let unknown_flag = [&[7], &message[1..]].concat();
        let twice = [message.clone(), message.clone()].concat();
        let internal = || End::Status("13".into());
        let cases: [(&str, &[u8], End); 6] = [
            ("compressed without saying how", &compressed, internal()),
            ("a flag that does not exist", &unknown_flag, internal()),
            ("cut short", &message[..message.len() - 1], internal()),
            ("half a prefix", &message[..3], internal()),
            ("no message", b"", internal()),
            ("two messages", &twice, internal()),
        ];
        let mut stream = 1;
        for (what, body, end) in cases {
            raw.head(stream, GET, &[], 0);
            raw.frame(kind::DATA, flag::END_STREAM, stream, body);
            assert_eq!(raw.end_of(stream), end, "{what}");
            stream += 2;
        }
        raw.call(stream, GET, &[("grpc-timeout", "1x")], &get("key"));
        assert_eq!(raw.end_of(stream), internal(), "a timeout without a unit");
        stream += 2;
        raw.call(stream, GET, &[], &get("key"));
        assert_eq!(raw.end_of(stream), End::Status("0".into()), "the connection goes on");
    });
}

#[test]
fn what_is_not_http2_is_shown_the_door() {
    beside_a_neighbour(|server| {
        let garbage: Vec<u8> =
            (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 from a client that expects TLS";
        let wrong_end = b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n";
        for sent in [&garbage, &hello[..], &wrong_end[..]] {
            let mut raw = Raw::bare(server);
            raw.send(sent);
            assert_eq!(raw.end(), End::Goaway(ErrorCode::PROTOCOL_ERROR));
        }
        let mut raw = Raw::bare(server);
        raw.send(&[PREFACE.as_slice(), &garbage].concat());
        assert!(matches!(raw.end(), End::Goaway(_)));

        let mut raw = Raw::bare(server);
        raw.send(b"GET / HTTP/1.1\r\nhost: prism\r\n\r\n");
        let answer = String::from_utf8(raw.until_closed()).expect("words in its own language");
        assert!(answer.starts_with("HTTP/1.1 4") && answer.contains("gRPC"), "{answer:?}");
        // And one that hangs up in the middle of the preface.
        let mut raw = Raw::bare(server);
        raw.send(&PREFACE[..10]);
        raw.close();
    });
}

#[test]
fn silence_before_the_preface_ends_the_connection() {
    beside_a_neighbour(|server| {
        let mut raw = Raw::bare(server);
        raw.send(&PREFACE[..3]);
        raw.until_closed();
    });
}

/// Bursts that are sent at most: several times what any limit allows.
const ROUNDS: u32 = 5000;

/// Sends `burst(round)` until the server ends the connection, which it must do with a word.
fn is_calmed_down(server: &Server, mut burst: impl FnMut(u32, &mut Vec<u8>)) {
    let mut raw = Raw::open(server);
    let mut bytes = Vec::new();
    for round in 0..ROUNDS {
        burst(round, &mut bytes);
        if bytes.len() > 16_384 {
            if !raw.send(&bytes) {
                break;
            }
            bytes.clear();
        }
    }
    raw.send(&bytes);
    assert_eq!(raw.end(), End::Goaway(ErrorCode::ENHANCE_YOUR_CALM));
}

fn put(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    prism_io::h2::frame::put_header(bytes, payload.len(), kind, flags, stream);
    bytes.extend_from_slice(payload);
}

#[test]
fn rapid_reset() {
    beside_a_neighbour(|server| {
        let (block, body) = (head(SET, &[]), framed(&set("reset", b"value")));
        is_calmed_down(server, |round, bytes| {
            let stream = round * 2 + 1;
            put(bytes, kind::HEADERS, flag::END_HEADERS, stream, &block);
            put(bytes, kind::DATA, flag::END_STREAM, stream, &body);
            put_reset(bytes, stream, ErrorCode::CANCEL);
        });
    });
}

#[test]
fn made_you_reset() {
    beside_a_neighbour(|server| {
        let block = head(SET, &[]);
        is_calmed_down(server, |round, bytes| {
            let stream = round * 2 + 1;
            put(bytes, kind::HEADERS, flag::END_HEADERS, stream, &block);
            put(bytes, kind::WINDOW_UPDATE, 0, stream, &[0; 4]);
        });
    });
}

#[test]
fn continuation_flood() {
    beside_a_neighbour(|server| {
        let block = head(GET, &[]);
        is_calmed_down(server, |round, bytes| match round {
            0 => put(bytes, kind::HEADERS, 0, 1, &block),
            _ => put(bytes, kind::CONTINUATION, 0, 1, b"\x00\x01x\x01y"),
        });
    });
}

#[test]
fn header_list_bomb() {
    beside_a_neighbour(|server| {
        // One entry of the table of almost 4 KiB, named again and again with one byte each.
        let mut block = vec![0x40, 1, b'x', 0x7f, 0xa1, 0x1e];
        block.extend_from_slice(&[b'y'; 4000]);
        block.extend_from_slice(&[0xbe; 12_000]);
        let mut raw = Raw::open(server);
        let mut stream = 1;
        for _ in 0..200 {
            if !raw.frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &block) {
                break;
            }
            stream += 2;
        }
        assert_eq!(raw.end_of(1), End::Status("8".into()), "too large, not kept");
    });
}

#[test]
fn floods_of_ping_settings_and_empty_data() {
    beside_a_neighbour(|server| {
        is_calmed_down(server, |_, bytes| put(bytes, kind::PING, 0, 0, &[0; 8]));
        is_calmed_down(server, |_, bytes| put(bytes, kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]));
        let block = head(SET, &[]);
        is_calmed_down(server, |round, bytes| match round {
            0 => put(bytes, kind::HEADERS, flag::END_HEADERS, 1, &block),
            _ => put(bytes, kind::DATA, 0, 1, b""),
        });
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
