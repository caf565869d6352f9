//! Bounds of the transport that no attack is needed to meet: each bites on a live server, is counted by its kind, and costs nobody else
//! anything.

mod harness;

use std::time::Instant;

use harness::frames::{End, Frame, Raw, framed, head};
use harness::{Caller, PATIENCE, Server, directory, run, serve};
use prism_io::h2::ErrorCode;
use prism_io::h2::frame::{flag, kind, put_header, setting};
use prism_io::h2::hpack::{Encoder, Indexing};
use prism_proto::prism::keyvalue::v1::{GetRequest, ScanRequest, SetRequest};
use prost::Message;

const GET: &str = "/prism.keyvalue.v1.KeyValueService/Get";
const SCAN: &str = "/prism.keyvalue.v1.KeyValueService/Scan";
const SET: &str = "/prism.keyvalue.v1.KeyValueService/Set";

/// No window at all, until it is given one.
const CLOSED: &[(u16, u32)] = &[(setting::INITIAL_WINDOW_SIZE, 0)];

/// Meets a bound of a server with this configuration: it is counted as `kind`, and a call of somebody else is served as ever.
fn meets(kind: &str, config: &str, meet: impl FnOnce(&Server)) {
    let directory = directory();
    let config = format!("wal: {{segment_bytes: 20MiB}}\n{config}\n");
    let server = serve(directory.path()).config(&config).start();
    let before = server.refused(kind);
    meet(&server);
    server.wait_refused(kind, before);
    assert!(!is_there(&server, "another"));
    server.assert_well();
    server.stop();
}

/// Whether a key is there, as somebody else is told, by one connection or, where that is just being asked to leave, the next.
fn is_there(server: &Server, key: &'static str) -> bool {
    let (listen, until) = (server.listen, Instant::now() + PATIENCE);
    run(async move {
        loop {
            let asked = Caller::to(listen, "keyvalue").await.try_get(&[], key).await;
            match asked {
                Ok((answer, _)) => return answer.found,
                Err(refusal) => assert!(Instant::now() < until, "{refusal:?}"),
            }
        }
    })
}

/// Stores values of so many bytes each under `large-0` and so on.
fn store(server: &Server, count: u32, bytes: usize) {
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        for number in 0..count {
            let value = vec![number as u8; bytes];
            caller.set_when_there_is_room(&format!("large-{number}"), &value).await;
        }
    });
}

fn get(key: &str) -> Vec<u8> {
    GetRequest { namespace: "keyvalue".into(), key: key.into() }.encode_to_vec()
}

fn set(key: &str, value: &[u8]) -> Vec<u8> {
    let (namespace, key) = ("keyvalue".into(), key.into());
    SetRequest { namespace, key, value: value.to_vec().into(), ..Default::default() }
        .encode_to_vec()
}

fn ok() -> End {
    End::Status("0".into())
}

/// RESOURCE_EXHAUSTED.
fn exhausted() -> End {
    End::Status("8".into())
}

#[test]
fn a_header_block_beyond_its_bound() {
    meets("header_block", "transport: {header_block_bytes_max: 20KiB}", |server| {
        let mut raw = Raw::open(server);
        // What it says is nothing: the bound is on what it takes.
        raw.frame(kind::HEADERS, 0, 1, &[0x82; 16_384]);
        raw.frame(kind::CONTINUATION, flag::END_HEADERS, 1, &[0x82; 16_384]);
        assert_eq!(raw.end(), End::Goaway(ErrorCode::ENHANCE_YOUR_CALM));
    });
}

/// A client that announces a dynamic table larger than the one that it is offered (RFC 7541, section 6.3).
#[test]
fn a_header_table_beyond_its_bound() {
    meets("connection_error", "transport: {header_table_bytes: 8KiB}", |server| {
        // As large as it may be, and one byte more.
        let mut raw = Raw::open(server);
        let update = |over: u8| [&[0x3f, 0xe1 + over, 0x3f], &head(GET, &[])[..]].concat();
        raw.frame(kind::HEADERS, flag::END_HEADERS, 1, &update(0));
        raw.frame(kind::DATA, flag::END_STREAM, 1, &framed(&get("key")));
        assert_eq!(raw.end_of(1), ok());
        raw.frame(kind::HEADERS, flag::END_HEADERS, 3, &update(1));
        assert_eq!(raw.end(), End::Goaway(ErrorCode::COMPRESSION_ERROR));
    });
}

#[test]
fn a_message_beyond_its_bound() {
    meets("message_size", "limits: {message_bytes_max: 64KiB}", |server| {
        let mut raw = Raw::open(server);
        raw.call(1, SET, &[], &set("key", &[1; 100_000]));
        assert_eq!(raw.end_of(1), exhausted());
        raw.call(3, SET, &[], &set("key", &[1; 50_000]));
        assert_eq!(raw.end_of(3), ok(), "the connection goes on");
    });
}

#[test]
fn a_reply_beyond_its_bound() {
    meets("reply_size", "grpc: {reply_bytes_max: 64KiB}", |server| {
        store(server, 1, 100_000);
        let mut raw = Raw::open(server);
        raw.call(1, GET, &[], &get("large-0"));
        assert_eq!(raw.end_of(1), exhausted());
        raw.call(3, GET, &[], &get("nothing"));
        assert_eq!(raw.end_of(3), ok(), "the connection goes on");
    });
}

/// Nothing is lost: its handler waits, and goes on when there is a window.
#[test]
fn a_stream_that_nobody_reads_waits() {
    const VALUES: u32 = 20;
    meets("stream_queue", "transport: {stream_queue_bytes: 4KiB}", |server| {
        store(server, VALUES, 5_000);
        let mut raw = Raw::open_with(server, CLOSED);
        let scan = ScanRequest { namespace: "keyvalue".into(), page_size: 1, ..Default::default() };
        raw.call(1, SCAN, &[], &scan.encode_to_vec());
        server.wait_refused("stream_queue", 0.0);
        raw.frame(kind::SETTINGS, 0, 0, &[0, 4, 0x7f, 0, 0, 0]);
        raw.frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0x7f, 0, 0]);
        let (mut bytes, mut ended) = (0, false);
        while !ended {
            let Frame { head, payload } = raw.read().expect("the stream goes on");
            bytes += if head.kind == kind::DATA { payload.len() } else { 0 };
            ended = head.stream == 1 && head.has(flag::END_STREAM);
        }
        assert!(bytes > VALUES as usize * 5_000, "{bytes} bytes came");
    });
}

#[test]
fn answers_that_nobody_takes() {
    let config = "limits: {message_bytes_max: 64KiB}\n\
                  transport: {queue_bytes_max: 128KiB, gather_bytes_max: 128KiB}";
    meets("queued", config, |server| {
        store(server, 1, 50_000);
        let mut raw = Raw::open_with(server, CLOSED);
        (0..4).for_each(|call| raw.call(call * 2 + 1, GET, &[], &get("large-0")));
        // Two have room, and wait; what comes on top is told that it was carried out in vain.
        assert_eq!(raw.end_of(7), exhausted());
        raw.frame(kind::SETTINGS, 0, 0, &[0, 4, 0x7f, 0, 0, 0]);
        raw.frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0x7f, 0, 0]);
        assert_eq!(raw.end_of(1), ok());
    });
}

/// Calls of a method that there is not, which are answered with several times as many bytes as they are asked with, and PINGs among
/// them, because what is answered to those is what is bounded.
#[test]
fn a_peer_that_asks_and_never_reads() {
    const CALLS_PER_BURST: u32 = 1_000;
    const BURSTS_MAX: u32 = 2_000;
    meets("output", "transport: {output_bytes_max: 256KiB}", |server| {
        let mut raw = Raw::open(server);
        let (mut encoder, mut stream) = (Encoder::new(4096), 1);
        for burst in 0..BURSTS_MAX {
            let mut bytes = Vec::new();
            for _ in 0..CALLS_PER_BURST {
                let mut block = Vec::new();
                for (name, value) in [
                    (":method", "POST"),
                    (":scheme", "http"),
                    (":path", "/there.is.no.such.Service/WithThisName"),
                    (":authority", "prism"),
                    ("te", "trailers"),
                    ("content-type", "application/grpc"),
                ] {
                    let (name, value) = (name.as_bytes(), value.as_bytes());
                    encoder.field(&mut block, name, value, Indexing::Index);
                }
                let flags = flag::END_HEADERS | flag::END_STREAM;
                put_header(&mut bytes, block.len(), kind::HEADERS, flags, stream);
                bytes.extend_from_slice(&block);
                stream += 2;
            }
            put_header(&mut bytes, 8, kind::PING, 0, 0);
            bytes.extend_from_slice(&[0; 8]);
            // It reads no more either, once its answers wait.
            if !raw.send(&bytes) || (burst % 50 == 0 && server.refused("output") > 0.0) {
                break;
            }
        }
    });
}

/// It has said nothing for a second, and does not answer the PING that asks whether it is there.
#[test]
fn a_client_that_does_not_answer_is_given_up() {
    let config = "grpc: {keepalive_interval: 1s, keepalive_timeout: 1s}";
    meets("keepalive_time", config, |server| {
        let mut raw = Raw::open(server);
        let mut asked = false;
        while let Some(Frame { head, .. }) = raw.read() {
            asked |= head.kind == kind::PING && !head.has(flag::ACK);
            assert!(head.kind != kind::GOAWAY, "what would be said to it would wait in the socket");
        }
        assert!(asked);
    });
}

/// Reads until a GOAWAY: the last stream that it names, and its code.
fn goaway(raw: &mut Raw) -> (u32, ErrorCode) {
    loop {
        let Frame { head, payload } = raw.read().expect("a GOAWAY before the end");
        if head.kind == kind::GOAWAY {
            let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
            return (number(0), ErrorCode(number(4)));
        }
    }
}

/// In two steps: what is on its way when the first comes is still served, and a call that runs has its time of grace.
#[test]
fn a_connection_of_its_age_is_asked_to_leave() {
    const ANY: u32 = (1 << 31) - 1;
    let config = "grpc: {connection_age_max: 1s, connection_age_grace: 5s}\n\
                  transport: {drain_ping_timeout: 1min}";
    meets("connection_age", config, |server| {
        let mut raw = Raw::open(server);
        // A call that does not end.
        raw.head(1, SET, &[], 0);
        raw.frame(kind::DATA, 0, 1, &framed(&set("key", b"value"))[..5]);
        let mut first = None;
        while first.is_none() {
            let Frame { head, payload } = raw.read().expect("a GOAWAY before the end");
            match head.kind {
                kind::GOAWAY => first = Some(payload),
                _ => assert_ne!(head.kind, kind::HEADERS, "it is not to be answered"),
            }
        }
        let first = first.unwrap();
        assert_eq!(first[..8], [ANY.to_be_bytes(), [0; 4]].concat());
        // One that was on its way: the PING that follows the GOAWAY is not answered yet.
        raw.call(3, SET, &[], &set("on its way", b"value"));
        assert_eq!(raw.end_of(3), ok());
        raw.frame(kind::PING, flag::ACK, 0, b"drainnow");
        assert_eq!(goaway(&mut raw), (3, ErrorCode::NO_ERROR));
        // What comes now is not looked at, and may be sent elsewhere.
        raw.call(5, SET, &[], &set("too late", b"value"));
        let (last, code) = goaway(&mut raw);
        assert_eq!((last, code), (3, ErrorCode::NO_ERROR), "its time of grace is up");
        assert_eq!(raw.end(), End::Closed);
        assert!(is_there(server, "on its way") && !is_there(server, "too late"));
    });
}

#[test]
fn a_drain_does_not_wait_for_a_client_that_does_not_answer() {
    let config = "grpc: {connection_age_max: 1s}\ntransport: {drain_ping_timeout: 100ms}";
    meets("drain_time", config, |server| {
        let mut raw = Raw::open(server);
        let mut told = Vec::new();
        while let Some(Frame { head, payload }) = raw.read() {
            if head.kind == kind::GOAWAY {
                told.push(u32::from_be_bytes(payload[..4].try_into().unwrap()));
            }
        }
        assert_eq!(told, [(1 << 31) - 1, 0]);
    });
}

/// The reason of a refusal comes in its details: where these have no room, its words still do.
#[test]
fn a_failure_with_much_to_say_is_cut() {
    meets("trailer_size", "transport: {trailer_bytes_max: 1KiB}", |server| {
        let mut raw = Raw::open(server);
        // Its name is quoted in the message and in the details, and in percent-encoding it is three times as long.
        let unknown = "\u{1f600}".repeat(100);
        let request = GetRequest { namespace: unknown, key: "key".into() };
        raw.call(1, GET, &[], &request.encode_to_vec());
        let end = raw.end_of(1);
        assert!(matches!(&end, End::Status(code) if code != "0"), "{end:?}");
        assert!(raw.last.get("grpc-message").is_some_and(|text| text.len() <= 1024));
        assert!(raw.last.get("grpc-status-details-bin").is_none());
    });
}
