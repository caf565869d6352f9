//! Messages in DATA frames that are cut anywhere, some of them wrong: what comes out is what a reader of the whole would say.
#![no_main]

use arbitrary::Arbitrary;
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use prism_fuzz::bounded;
use prism_io::grpc::{Event, Limits, Message, Output, Route, ServerConnection};
use prism_io::h2::frame::{PREFACE, flag, kind, put_header, put_settings};
use prism_io::h2::hpack::{Encoder, Indexing};

#[derive(Debug, Arbitrary)]
struct Sent {
    streaming: bool,
    messages: Vec<Framed>,
    /// Bytes of the DATA frames, one after the other and from the start again.
    cuts: Vec<u8>,
    /// Bytes that are missing at the end.
    missing: u8,
    padded: bool,
    trailers: bool,
}

#[derive(Debug, Arbitrary)]
struct Framed {
    flag: u8,
    bytes: u16,
}

const MESSAGE_BYTES_MAX: u32 = 3000;

fn route(path: &[u8]) -> Option<Route> {
    let client_streaming = path == b"/a/stream";
    Some(Route { id: 1, client_streaming, server_streaming: client_streaming })
}

/// What the messages have to come to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Expected {
    messages: Vec<Vec<u8>>,
    fault: bool,
}

/// The framing by the protocol page, over the whole.
fn expected(mut all: &[u8]) -> Expected {
    let mut expected = Expected::default();
    while !all.is_empty() {
        let Some((&[flag, a, b, c, d], rest)) = all.split_first_chunk::<5>() else {
            expected.fault = true;
            break;
        };
        let length = u32::from_be_bytes([a, b, c, d]);
        if flag != 0 || length > MESSAGE_BYTES_MAX || rest.len() < length as usize {
            expected.fault = true;
            break;
        }
        let (message, rest) = rest.split_at(length as usize);
        expected.messages.push(message.to_vec());
        all = rest;
    }
    expected
}

fn head(streaming: bool) -> Vec<u8> {
    let path: &[u8] = if streaming { b"/a/stream" } else { b"/a/unary" };
    let mut block = Vec::new();
    let mut encoder = Encoder::new(0);
    encoder.begin(&mut block);
    for (name, value) in [
        (&b":method"[..], &b"POST"[..]),
        (b":scheme", b"http"),
        (b":path", path),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ] {
        encoder.field(&mut block, name, value, Indexing::Plain);
    }
    let mut frame = Vec::new();
    put_header(&mut frame, block.len(), kind::HEADERS, flag::END_HEADERS, 1);
    frame.extend(block);
    frame
}

fuzz_target!(|sent: Sent| {
    let mut all = Vec::new();
    for (nth, framed) in sent.messages.iter().take(40).enumerate() {
        // Mostly whole and small.
        let bytes = usize::from(if framed.flag & 0x30 == 0 {
            framed.bytes % 3100
        } else {
            framed.bytes % 70
        });
        let flag = if framed.flag > 250 { framed.flag - 250 } else { 0 };
        all.push(flag);
        all.extend((bytes as u32).to_be_bytes());
        all.extend(vec![nth as u8; bytes]);
    }
    all.truncate(all.len().saturating_sub(usize::from(if sent.missing > 200 {
        sent.missing - 200
    } else {
        0
    })));
    let expected = expected(&all);

    let mut wire = Vec::from(&PREFACE[..]);
    put_settings(&mut wire, &[]);
    wire.extend(head(sent.streaming));
    let mut cuts = sent.cuts.iter().map(|&cut| usize::from(cut) + 1).cycle();
    let mut rest = &all[..];
    let mut frames = 0;
    loop {
        // Not more frames than the budget for small ones has room for.
        let size = if frames < 60 { cuts.next().unwrap_or(rest.len()) } else { rest.len() };
        let (part, tail) = rest.split_at(size.min(rest.len()).min(16_000));
        rest = tail;
        frames += 1;
        let end = rest.is_empty() && !sent.trailers;
        let (pad, flags) = if sent.padded { (2, flag::PADDED) } else { (0, 0) };
        put_header(&mut wire, part.len() + pad, kind::DATA, flags | u8::from(end), 1);
        wire.extend(&[1][..pad.min(1)]);
        wire.extend_from_slice(part);
        wire.extend(&[0][..pad / 2]);
        if rest.is_empty() {
            break;
        }
    }
    if sent.trailers {
        put_header(&mut wire, 0, kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1);
    }

    bounded((256 << 10) + 4 * wire.len(), || {
        let limits = Limits { message_bytes_max: MESSAGE_BYTES_MAX, ..Limits::default() };
        let mut server = ServerConnection::new(&limits, route, 0);
        let mut input = BytesMut::from(&wire[..]);
        let mut output = Output::default();
        let (mut messages, mut ends, mut cancelled, mut request) = (Vec::new(), 0, 0, None);
        server.receive(&mut input, 0);
        while let Some(event) = server.poll_event() {
            match event {
                Event::Open { .. } => assert!(sent.streaming),
                Event::Message { stream, message, .. } => {
                    server.release(stream, message.len());
                    messages.push(message.to_vec());
                }
                Event::HalfClose { stream } => {
                    ends += 1;
                    server.finish(stream, &[]);
                }
                Event::Request { stream, message, .. } => {
                    request = Some(message.to_vec());
                    server.respond(stream, Message::new(b"a"), &[]);
                }
                Event::Cancelled { .. } => cancelled += 1,
                Event::Writable { .. } => {}
            }
        }
        server.swap_output(&mut output);
        assert!(input.is_empty() && !server.is_closed(), "{:?}", server.close_reason());
        assert_eq!(server.open_streams(), 0);
        if sent.streaming {
            assert_eq!(messages, expected.messages);
            assert_eq!((ends, cancelled), if expected.fault { (0, 1) } else { (1, 0) });
        } else {
            let whole = !expected.fault && expected.messages.len() == 1;
            assert_eq!(request.is_some(), whole);
            assert!(!whole || request.as_ref() == expected.messages.first());
        }
    });
});
