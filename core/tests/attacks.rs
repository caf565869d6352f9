//! Connections that mean harm or know no better: each ends with a clear word, costs bounded memory, and disturbs nobody.

mod harness;

use harness::attack::{beside_a_neighbour, refused_as};
use harness::frames::{End, Raw, framed, head};
use harness::{Caller, Server, run};
use prism_io::h2::ErrorCode;
use prism_io::h2::frame::{PREFACE, flag, kind, put_reset};
use prism_proto::prism::keyvalue::v1::{GetRequest, SetRequest};
use prost::Message;

const GET: &str = "/prism.keyvalue.v1.KeyValueService/Get";
const SET: &str = "/prism.keyvalue.v1.KeyValueService/Set";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

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
