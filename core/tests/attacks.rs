//! Connections that mean harm or know no better: each ends with a clear word, costs bounded memory, and disturbs nobody.

mod harness;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use harness::certificates::issue;
use harness::frames::{End, Raw, framed, head};
use harness::{Caller, Neighbour, PATIENCE, Server, directory, run, serve};
use prism_io::h2::ErrorCode;
use prism_io::h2::frame::{PREFACE, flag, kind, put_reset, setting};
use prism_io::tls::{Connector, Roots, Sealed};
use prism_proto::prism::keyvalue::v1::{GetRequest, ScanRequest, SetRequest};
use prost::Message;

const GET: &str = "/prism.keyvalue.v1.KeyValueService/Get";
const SCAN: &str = "/prism.keyvalue.v1.KeyValueService/Scan";
const SET: &str = "/prism.keyvalue.v1.KeyValueService/Set";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// Resident memory that an attack may make the server use at its worst; it begins with about 18 MiB.
const ATTACK_KIB_MAX: u64 = 56 * 1024;

/// Rounds of the neighbour that are timed before an attack, and at least during it.
const TIMED: usize = 100;
/// How much slower its 99th percentile may become: a part of the one core that both share, and what a machine does meanwhile.
const SLOWER_MAX: u32 = 10;
const JITTER: Duration = Duration::from_millis(100);
/// How often that is looked at: an attack that is felt is felt each time, what else goes on on the machine is not.
const LOOKS_MAX: usize = 10;

/// A small log, and room in it for what these tests write.
const CONFIG: &str = "wal: {segment_bytes: 20MiB}\n";

/// One attack at a time, so that what a neighbour feels is that attack's.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs `attack` beside a neighbour, and sees that the server is as before.
fn beside_a_neighbour(attack: impl FnMut(&Server)) {
    Attack::default().run(attack);
}

/// The same, and the metric names these kinds of refusal.
fn refused_as(kinds: &[&str], attack: impl FnMut(&Server)) {
    Attack { kinds, ..Attack::default() }.run(attack);
}

struct Attack<'a> {
    memory_kib_max: u64,
    /// Beside `CONFIG`.
    config: &'a str,
    /// What of it the metric has to name.
    kinds: &'a [&'a str],
    /// Where the server's certificate is, if it speaks TLS: `server.pem` and `server.key`.
    certificate: Option<&'a Path>,
}

impl Default for Attack<'_> {
    fn default() -> Self {
        Self { memory_kib_max: ATTACK_KIB_MAX, config: "", kinds: &[], certificate: None }
    }
}

impl Attack<'_> {
    /// Attacks until the neighbour has worked under it for long enough to compare.
    fn run(&self, mut attack: impl FnMut(&Server)) {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = directory();
        let mut setup = serve(directory.path()).config(&format!("{CONFIG}{}", self.config));
        if let Some(folder) = self.certificate {
            for (flag, name) in [("--tls-cert", "server.pem"), ("--tls-key", "server.key")] {
                setup = setup.flag(flag, &folder.join(name).display().to_string());
            }
        }
        let server = setup.start();
        let neighbour = Neighbour::trusting(&server, self.certificate.map(connector));
        let first = neighbour.rounds();
        neighbour.wait_rounds(TIMED);
        let before = neighbour.p99_from(first);
        let refused: Vec<f64> = self.kinds.iter().map(|kind| server.refused(kind)).collect();
        let mut looks = Vec::new();
        let felt_max = before * SLOWER_MAX + JITTER;
        while looks.last().is_none_or(|during| *during > felt_max) {
            assert!(looks.len() < LOOKS_MAX, "p99: {before:?} before, {looks:?} then");
            let first = neighbour.rounds();
            let mut attacks = 0;
            while attacks == 0 || neighbour.rounds() < first + TIMED {
                attack(&server);
                attacks += 1;
            }
            let during = neighbour.p99_from(first);
            println!("p99 of the neighbour: {before:?} before, {during:?} under {attacks} attacks");
            looks.push(during);
        }
        for (kind, before) in self.kinds.iter().zip(refused) {
            server.wait_refused(kind, before);
        }
        neighbour.leave();
        server.assert_well();
        let memory = server.memory_kib();
        assert!(memory <= self.memory_kib_max, "{memory} KiB resident");
        server.stop();
    }
}

/// Trusts the certificate of this folder.
fn connector(folder: &Path) -> Connector {
    Connector::new(&Roots::File(folder.join("server.pem")), "localhost").unwrap()
}

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

#[test]
fn malformed_frames_end_their_connection_with_the_code_of_the_rfc() {
    use ErrorCode as Code;
    refused_as(&["connection_error", "frame_size"], |server| {
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
        for sent in [&garbage[..], &wrong_end[..]] {
            let mut raw = Raw::bare(server);
            raw.send(sent);
            assert_eq!(raw.end(), End::Goaway(ErrorCode::PROTOCOL_ERROR));
        }
        let mut raw = Raw::bare(server);
        raw.send(hello);
        let alert = raw.until_closed();
        assert_eq!(alert.first(), Some(&0x15), "an alert of TLS: {alert:02x?}");
        let mut raw = Raw::bare(server);
        raw.send(&[PREFACE.as_slice(), &garbage].concat());
        assert!(matches!(raw.end(), End::Goaway(_)));

        let mut raw = Raw::bare(server);
        raw.send(b"GET / HTTP/1.1\r\nhost: prism\r\nconnection: close\r\n\r\n");
        let answer = String::from_utf8(raw.until_closed()).expect("words in its own language");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("gRPC"), "{answer:?}");
        // And one that hangs up in the middle of the preface.
        let mut raw = Raw::bare(server);
        raw.send(&PREFACE[..10]);
        raw.close();
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
    refused_as(&["peer_resets"], |server| {
        let (block, body) = (head(SET, &[]), framed(&set("reset", b"value")));
        is_calmed_down(server, |round, bytes| {
            // One that waits for the log, unless that is busy and refuses it at once, and one that waits for its message.
            let (whole, begun) = (round * 4 + 1, round * 4 + 3);
            put(bytes, kind::HEADERS, flag::END_HEADERS, whole, &block);
            put(bytes, kind::DATA, flag::END_STREAM, whole, &body);
            put(bytes, kind::HEADERS, flag::END_HEADERS, begun, &block);
            put_reset(bytes, whole, ErrorCode::CANCEL);
            put_reset(bytes, begun, ErrorCode::CANCEL);
        });
    });
}

#[test]
fn made_you_reset() {
    refused_as(&["provoked_resets", "stream_error"], |server| {
        // Whole calls, which wait for the log while the server is made to reset their streams, and such as are begun only.
        let (block, body) = (head(SET, &[]), framed(&set("reset", b"value")));
        let most = 0x7fff_ffff_u32.to_be_bytes();
        is_calmed_down(server, |round, bytes| {
            let stream = round * 2 + 1;
            put(bytes, kind::HEADERS, flag::END_HEADERS, stream, &block);
            put(bytes, kind::DATA, flag::END_STREAM, stream, &body);
            put(
                bytes,
                kind::WINDOW_UPDATE,
                0,
                stream,
                if round % 2 == 0 { &[0; 4] } else { &most },
            );
        });
        server.wait_for_metric("prism_request_bytes_in_flight", |bytes| bytes == 0.0);
    });
}

#[test]
fn continuation_flood() {
    refused_as(&["continuations"], |server| {
        let block = head(GET, &[]);
        is_calmed_down(server, |round, bytes| match round {
            0 => put(bytes, kind::HEADERS, 0, 1, &block),
            _ => put(bytes, kind::CONTINUATION, 0, 1, b"\x00\x01x\x01y"),
        });
    });
}

#[test]
fn hpack_bomb() {
    refused_as(&["header_list"], |server| {
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
fn ping_flood() {
    refused_as(&["pings"], |server| {
        is_calmed_down(server, |_, bytes| put(bytes, kind::PING, 0, 0, &[0; 8]));
    });
}

#[test]
fn settings_flood() {
    refused_as(&["settings"], |server| {
        is_calmed_down(server, |_, bytes| put(bytes, kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]));
    });
}

#[test]
fn empty_data() {
    refused_as(&["empty_data"], |server| {
        let block = head(SET, &[]);
        is_calmed_down(server, |round, bytes| match round {
            0 => put(bytes, kind::HEADERS, flag::END_HEADERS, 1, &block),
            _ => put(bytes, kind::DATA, 0, 1, b""),
        });
    });
}

#[test]
fn frames_without_effect() {
    refused_as(&["priorities", "idle_frames", "window_updates"], |server| {
        is_calmed_down(server, |_, bytes| put(bytes, kind::PRIORITY, 0, 1, &[0, 0, 0, 3, 9]));
        is_calmed_down(server, |_, bytes| put(bytes, 0x77, 0, 1, b"unknown"));
        is_calmed_down(server, |_, bytes| {
            (0..4).for_each(|_| put(bytes, kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]));
        });
    });
}

/// RFC 9113, section 6.9.1: a window beyond 2³¹−1, of a stream and of the connection.
#[test]
fn window_overflow() {
    refused_as(&["connection_error", "stream_error"], |server| {
        let most = 0x7fff_ffff_u32.to_be_bytes();
        let mut raw = Raw::open(server);
        raw.head(1, SET, &[], 0);
        raw.frame(kind::WINDOW_UPDATE, 0, 1, &most);
        assert_eq!(raw.end_of(1), End::Reset(ErrorCode::FLOW_CONTROL_ERROR));
        raw.frame(kind::WINDOW_UPDATE, 0, 0, &most);
        assert_eq!(raw.end(), End::Goaway(ErrorCode::FLOW_CONTROL_ERROR));
        // And more DATA than the server's windows allow, on a stream whose messages nobody takes.
        let mut raw = Raw::open(server);
        raw.head(1, REFLECTION, &[], 0);
        let frames = [&framed(&[0x3a, 0x01, 0x2a])[..]; 2000].concat();
        let mut ended = false;
        for _ in 0..2000 {
            if ended || !raw.frame(kind::DATA, 0, 1, &frames[..16_000]) {
                ended = true;
            }
        }
        let end = raw.end_of(1);
        assert!(
            [End::Reset(ErrorCode::FLOW_CONTROL_ERROR), End::Goaway(ErrorCode::FLOW_CONTROL_ERROR)]
                .contains(&end),
            "{end:?}"
        );
    });
}

/// The last number that a stream can have is served; what comes after it cannot be.
#[test]
fn stream_id_exhaustion() {
    const LAST: u32 = (1 << 31) - 1;
    refused_as(&["connection_error"], |server| {
        let mut raw = Raw::open(server);
        raw.call(LAST, SET, &[], &set("last", b"value"));
        assert_eq!(raw.end_of(LAST), End::Status("0".into()));
        raw.call(1, SET, &[], &set("again", b"value"));
        assert_eq!(raw.end(), End::Goaway(ErrorCode::PROTOCOL_ERROR));
    });
}

/// Heads that one hop could read otherwise than the next (RFC 9113, sections 8.2 and 8.3): none becomes a call.
#[test]
fn header_smuggling() {
    refused_as(&["malformed_head"], |server| {
        let ok = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", SET),
            (":authority", "prism"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ];
        let with = |name: &'static str, value: &'static str| {
            ok.iter().copied().chain([(name, value)]).collect::<Vec<_>>()
        };
        let instead = |name: &'static str, value: &'static str| {
            let put = |field: (&'static str, &'static str)| match field.0 == name {
                true => (name, value),
                false => field,
            };
            ok.into_iter().map(put).collect::<Vec<_>>()
        };
        let doubled = |name: &'static str, value: &'static str| {
            [(name, value)].into_iter().chain(ok).collect::<Vec<_>>()
        };
        let cases = [
            with("connection", "close"),
            with("connection", "te"),
            with("keep-alive", "1"),
            with("proxy-connection", "close"),
            with("transfer-encoding", "chunked"),
            with("upgrade", "h2c"),
            instead("te", "gzip"),
            with("te", "trailers, deflate"),
            with("X-Upper", "case"),
            with("x y", "space"),
            with("x:y", "colon"),
            with("", "no name"),
            with("x", "line\nfeed"),
            with("x", "carriage\rreturn"),
            with("x", "nul\0"),
            with("x", " leading"),
            with("x", "trailing\t"),
            doubled(":path", SET),
            doubled(":method", "POST"),
            doubled(":scheme", "http"),
            doubled(":authority", "prism"),
            with(":path", SET),
            doubled(":status", "200"),
            doubled(":protocol", "websocket"),
            instead(":path", ""),
            instead(":path", "*"),
            instead(":path", "http://prism/x"),
            instead(":path", "/a b"),
            instead(":path", "/a#b"),
            instead(":path", "/a\u{7f}"),
            instead(":method", "PO ST"),
            instead(":method", ""),
            instead(":scheme", "ht tp"),
            instead(":authority", "user@prism"),
            instead(":authority", "prism/evil"),
            instead(":authority", "prism evil"),
            with("host", "elsewhere"),
            with("content-length", "1"),
            with("content-length", "+5"),
            with("content-length", "5, 6"),
        ];
        let mut raw = Raw::open(server);
        let body = framed(&set("smuggled", b"value"));
        for (number, fields) in cases.iter().enumerate() {
            let stream = number as u32 * 2 + 1;
            let mut block = Vec::new();
            for (name, value) in fields {
                prism_io::h2::hpack::encode::literal(&mut block, name.as_bytes(), value.as_bytes());
            }
            raw.frame(kind::HEADERS, flag::END_HEADERS, stream, &block);
            raw.frame(kind::DATA, flag::END_STREAM, stream, &body);
            let end = raw.end_of(stream);
            assert_eq!(end, End::Reset(ErrorCode::PROTOCOL_ERROR), "{fields:?}");
        }
        // The connection goes on, and a host that agrees is fine.
        let stream = cases.len() as u32 * 2 + 1;
        raw.call(stream, GET, &[("host", "PRISM")], &get("smuggled"));
        assert_eq!(raw.end_of(stream), End::Status("0".into()));
        let listen = server.listen;
        run(async move {
            assert_eq!(Caller::to(listen, "keyvalue").await.get("smuggled").await, None);
        });
    });
}

#[test]
fn many_fields_and_many_streams() {
    refused_as(&["header_count", "streams"], |server| {
        let mut raw = Raw::open(server);
        let many = [("x", "y"); 200];
        raw.call(1, GET, &many, &get("key"));
        assert_eq!(raw.end_of(1), End::Status("8".into()));
        let mut bytes = Vec::new();
        let block = head(SET, &[]);
        for stream in 0..1025 {
            put(&mut bytes, kind::HEADERS, flag::END_HEADERS, stream * 2 + 3, &block);
        }
        raw.send(&bytes);
        assert_eq!(raw.end_of(1024 * 2 + 3), End::Reset(ErrorCode::REFUSED_STREAM));
    });
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
