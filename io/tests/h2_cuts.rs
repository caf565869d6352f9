//! A connection is a stream of bytes: wherever reads cut it, the same events come out and the same bytes are written.
//!
//! But for where DATA is cut into frames: what leaves in one write shares frames, and how much that is depends on the reads.

mod h2_support;

use bytes::{Bytes, BytesMut};
use h2_support::{Writer, route};
use prism_io::grpc::{
    ClientConnection, ClientEvent, Event, Limits, Message, Output, ServerConnection,
};
use prism_io::h2::frame::{FrameHeader, HEADER_BYTES, PREFACE, put_header};
use proptest::prelude::*;

/// What came of an input.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    events: Vec<String>,
    written: Vec<u8>,
    end: String,
}

fn limits() -> Limits {
    Limits { message_bytes_max: 5000, header_list_bytes_max: 1000, ..Limits::default() }
}

/// The frames of `bytes`, with DATA that follows DATA of the same stream joined to it.
fn joined(bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    // Where the last frame begins, if it is DATA.
    let mut last: Option<usize> = None;
    let mut rest = bytes;
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let header = FrameHeader::parse(header);
        let Some((payload, after)) = after.split_at_checked(header.length as usize) else { break };
        let earlier = last.map(|start| {
            let header: &[u8; HEADER_BYTES] = all[start..].first_chunk().unwrap();
            (start, FrameHeader::parse(header))
        });
        match earlier {
            Some((start, earlier)) if header.kind == 0 && earlier.stream == header.stream => {
                all.extend_from_slice(payload);
                let length = earlier.length + header.length;
                all[start..start + HEADER_BYTES]
                    .copy_from_slice(&FrameHeader { length, ..header }.bytes());
            }
            _ => {
                last = (header.kind == 0).then_some(all.len());
                all.extend_from_slice(&header.bytes());
                all.extend_from_slice(payload);
            }
        }
        rest = after;
    }
    all.extend_from_slice(rest);
    all
}

/// A server that echoes what it is asked, fed piece by piece.
fn serve<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut server = ServerConnection::new(&limits(), route, 0);
    let (mut input, mut output) = (BytesMut::new(), Output::default());
    let mut outcome = Outcome::default();
    for piece in pieces {
        input.extend_from_slice(piece);
        server.receive(&mut input, 0);
        loop {
            while let Some(event) = server.poll_event() {
                outcome.events.push(serve_event(&mut server, event));
            }
            server.swap_output(&mut output);
            if output.is_empty() {
                break;
            }
            output.segments().for_each(|segment| outcome.written.extend_from_slice(segment));
        }
    }
    outcome.written = joined(&outcome.written);
    outcome.end = format!("{:?} {}", server.close_reason(), server.open_streams());
    outcome
}

fn serve_event(server: &mut ServerConnection, event: Event) -> String {
    match event {
        Event::Request { stream, route, head, message } => {
            let tail = Bytes::from(vec![7; message.len() * 50]);
            server.respond(stream, Message { head: &message, tail }, &[]);
            format!("request {} {route} {head:?} {message:?}", stream.number())
        }
        Event::Open { stream, route, head } => format!("open {} {route} {head:?}", stream.number()),
        Event::Message { stream, message, .. } => {
            server.release(stream, message.len());
            let sent = server.send_message(stream, Message::new(&message));
            format!("message {} {message:?} {sent:?}", stream.number())
        }
        Event::HalfClose { stream } => {
            server.finish(stream, &[]);
            format!("half-close {}", stream.number())
        }
        Event::Cancelled { stream } => format!("cancelled {}", stream.number()),
        Event::Writable { stream } => format!("writable {}", stream.number()),
    }
}

/// A client with three calls under way, fed piece by piece.
fn call<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut client = ClientConnection::new(&limits(), "a", 0);
    for _ in 0..2 {
        client.call(b"/t/Unary", Message::new(b"abc"), &[], None).expect("room");
    }
    client.start(b"/t/Stream", &[("x-bin", b"y")], None).expect("room");
    let (mut input, mut output) = (BytesMut::new(), Output::default());
    let mut outcome = Outcome::default();
    for piece in pieces {
        input.extend_from_slice(piece);
        client.receive(&mut input, 0);
        loop {
            while let Some(event) = client.poll_event() {
                outcome.events.push(match event {
                    ClientEvent::Headers { stream, metadata } => {
                        format!("headers {} {metadata:?}", stream.number())
                    }
                    ClientEvent::Message { stream, message, .. } => {
                        client.release(stream, message.len());
                        format!("message {} {message:?}", stream.number())
                    }
                    ClientEvent::Finished { stream, finished } => {
                        format!("finished {} {finished:?}", stream.number())
                    }
                    ClientEvent::Writable { stream } => format!("writable {}", stream.number()),
                });
            }
            client.swap_output(&mut output);
            if output.is_empty() {
                break;
            }
            output.segments().for_each(|segment| outcome.written.extend_from_slice(segment));
        }
    }
    outcome.end = format!("{:?} {}", client.close_reason(), client.open_streams());
    outcome
}

/// Conversations of a client, without the preface.
const CLIENTS: [&str; 8] = [
    "SETTINGS - 4=1000 1=100
     SETTINGS a
     HEADERS 1 h @req x-a=1 x-b-bin=eHg
     DATA 1 e msg:hello
     HEADERS 3 hpP @req x-a=1
     DATA 3 pe msg:again
     WU 0 100000
     WU 1 10
     SETTINGS - 4=70000
     PING -
     HEADERS 5 - @req
     CONT 5 - x-long=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
     CONT 5 h grpc-timeout=1S
     DATA 5 - 00000000
     DATA 5 - 05
     DATA 5 - 68656c
     DATA 5 e 6c6f
     GOAWAY 0 0",
    "SETTINGS -
     HEADERS 1 h @stream
     DATA 1 - msg:a msg:bb msg: msg:dddddddddd 0000
     DATA 1 p 00000361
     DATA 1 - 6263
     HEADERS 3 h @stream
     DATA 3 - msg:x
     RST 3 8
     HEADERS 1 eh x-trailer=1
     RAW 99 0 1 0102030405
     PRIORITY 5 3
     HEADERS 5 eh @req",
    // Faults of a stream.
    "SETTINGS -
     HEADERS 1 h @req connection=close
     HEADERS 3 h :method=GET :scheme=http :path=/t/Unary
     HEADERS 5 h @silent
     DATA 5 e 0000000005aa
     HEADERS 7 h @stream
     DATA 7 e 02000000
     HEADERS 9 h @stream
     DATA 9 - 0000ffffff
     DATA 7 e msg:late
     WU 9 0
     HEADERS 11 h @req
     DATA 11 e msg:good",
    // A list that is too large, in frames.
    "SETTINGS -
     HEADERS 1 - @req
     CONT 1 - x-a=@long
     CONT 1 h x-b=1
     HEADERS 3 h @req
     DATA 3 e msg:a",
    // Faults of the connection, each behind a call that is answered.
    "SETTINGS -
     HEADERS 1 h @req
     DATA 1 e msg:a
     DATA 3 e msg:idle
     HEADERS 5 h @req",
    "SETTINGS -
     HEADERS 1 h @req
     DATA 1 e msg:a
     HEADERS 3 h 0xff808080808001
     PING -",
    "SETTINGS -
     HEADERS 1 - @req
     PING -",
    "SETTINGS - 5=1
     PING -",
];

/// What a server says to the three calls.
const SERVERS: [&str; 4] = [
    "SETTINGS - 3=100
     SETTINGS a
     HEADERS 1 h :status=103 x-early=1
     HEADERS 1 h :status=200 content-type=application/grpc x-a=b
     DATA 1 - msg:hello
     HEADERS 1 eh grpc-status=0 x-t-bin=eHg
     HEADERS 3 eh :status=200 content-type=application/grpc grpc-status=5 grpc-message=no%20such
     HEADERS 5 hp :status=200 content-type=application/grpc
     DATA 5 - msg:a msg:bb 0000
     DATA 5 p 00000361
     DATA 5 - 6263
     PING -
     HEADERS 5 eh grpc-status=0",
    "SETTINGS -
     RST 1 7
     HEADERS 3 h :status=503 content-type=text/html
     DATA 3 e #200
     GOAWAY 3 0",
    "SETTINGS -
     HEADERS 1 h :status=200 content-type=application/grpc
     DATA 1 e msg:a 00
     HEADERS 3 h :status=200 content-type=application/grpc
     DATA 3 - 0000ffffff
     HEADERS 5 h content-type=application/grpc
     RAW 5 4 1 00000002",
    "PING -",
];

fn client_bytes(text: &str) -> Vec<u8> {
    let text = text.replace("@long", &"a".repeat(1200));
    [PREFACE, &Writer::new().frames(&text)[..]].concat()
}

/// Cut once at every place, and into single bytes.
fn every_cut(bytes: &[u8], run: fn(&mut dyn Iterator<Item = &[u8]>) -> Outcome) {
    let whole = run(&mut std::iter::once(bytes));
    for at in 0..=bytes.len() {
        let cut = run(&mut [&bytes[..at], &bytes[at..]].into_iter());
        assert_eq!(cut, whole, "cut at byte {at} of {}", bytes.len());
    }
    assert_eq!(run(&mut bytes.chunks(1)), whole, "in single bytes");
}

#[test]
fn a_server_takes_any_cut() {
    for text in CLIENTS {
        every_cut(&client_bytes(text), |pieces| serve(pieces));
    }
}

#[test]
fn a_client_takes_any_cut() {
    for text in SERVERS {
        every_cut(&Writer::new().frames(text), |pieces| call(pieces));
    }
}

#[test]
fn what_is_not_http2_is_refused_at_any_cut() {
    for bytes in [
        &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rx",
        b"PRI * HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        b"",
    ] {
        every_cut(bytes, |pieces| serve(pieces));
    }
}

/// The conversations reach what they are meant to reach: without that the cuts would prove little.
#[test]
fn the_conversations_say_something() {
    let count = |of: &dyn Fn(&Outcome) -> usize| -> usize {
        CLIENTS.iter().map(|text| of(&serve(std::iter::once(&client_bytes(text)[..])))).sum()
    };
    let events = |what: &'static str| {
        count(&|outcome| outcome.events.iter().filter(|event| event.starts_with(what)).count())
    };
    let named = ["request", "open", "message", "half-close", "cancelled"].map(events);
    assert!(named.iter().all(|&count| count > 0), "{named:?}");
    let errors = count(&|outcome| usize::from(outcome.end.contains("Error")));
    assert_eq!(errors, 4, "of the last four");
}

/// A header block in two or three frames is the block in one.
#[test]
fn a_header_block_takes_any_cut() {
    let mut writer = Writer::new();
    let block = writer.block(&["@req", "x-a=some", "x-b-bin=eHg", "0x400378787803616263"]);
    let request = |cuts: &[usize]| {
        let mut bytes = client_bytes("SETTINGS -");
        let mut start = 0;
        for (nth, &end) in cuts.iter().chain([&block.len()]).enumerate() {
            let last = if nth == cuts.len() { 4 } else { 0 };
            let kind = if nth == 0 { 1 } else { 9 };
            put_header(&mut bytes, end - start, kind, last, 1);
            bytes.extend_from_slice(&block[start..end]);
            start = end;
        }
        bytes.extend(writer_data(b"\0\0\0\0\x01a", true));
        serve(std::iter::once(&bytes[..]))
    };
    let whole = request(&[]);
    assert_eq!(whole.events.len(), 1, "{whole:?}");
    for first in 0..=block.len() {
        assert_eq!(request(&[first]), whole, "cut at byte {first}");
        let second = first + (block.len() - first) / 2;
        assert_eq!(request(&[first, second]), whole, "cut at bytes {first} and {second}");
    }
}

fn writer_data(payload: &[u8], end: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_header(&mut bytes, payload.len(), 0, u8::from(end), 1);
    bytes.extend_from_slice(payload);
    bytes
}

/// Messages of a stream in any DATA frames are the same messages.
#[test]
fn messages_take_any_cut() {
    let long = "x".repeat(700);
    let text = format!("SETTINGS -\nHEADERS 1 h @stream\nDATA 1 - msg:one msg: msg:{long} msg:x");
    let all = client_bytes(&text);
    let payload_bytes = 4 * 5 + 3 + 700 + 1;
    let (head, payload) = all.split_at(all.len() - payload_bytes);
    let head = &head[..head.len() - HEADER_BYTES];
    let sent = |parts: &[&[u8]]| {
        let mut bytes = head.to_vec();
        for (nth, part) in parts.iter().enumerate() {
            bytes.extend(writer_data(part, nth + 1 == parts.len()));
        }
        serve(std::iter::once(&bytes[..])).events
    };
    let whole = sent(&[payload]);
    assert_eq!(whole.len(), 6, "{whole:?}");
    for at in 0..=payload.len() {
        assert_eq!(sent(&[&payload[..at], &payload[at..]]), whole, "cut at byte {at}");
    }
    for size in [1, 2, 3, 4, 5, 6, 7, 99] {
        // As many frames as bytes, and none of them empty.
        let parts: Vec<&[u8]> = payload.chunks(size).collect();
        assert_eq!(sent(&parts), whole, "in parts of {size}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Cut at random places, and with bytes changed: whatever it means then, it means the same in any pieces.
    #[test]
    fn any_bytes_take_any_cuts(
        text in 0..CLIENTS.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 1..12),
    ) {
        let mut bytes = client_bytes(CLIENTS[text]);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut start = 0;
        for cut in cuts {
            pieces.push(&bytes[start..cut]);
            start = cut;
        }
        pieces.push(&bytes[start..]);
        let whole = serve(std::iter::once(&bytes[..]));
        prop_assert_eq!(serve(pieces.into_iter()), whole);
    }
}
