//! Any frames against a gRPC server: no panic, bounded memory, and every call that was shown ends once.
//!
//! The input is a list of instructions, so that mutations stay close to frames that mean something: raw bytes, whole frames of
//! any kind, requests that are well-formed, answers, time.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use prism_fuzz::bounded;
use prism_io::grpc::{
    Code, Event, Limits, Message, Output, Route, ServerConnection, Status, StreamId,
};
use prism_io::h2::frame::{PREFACE, put_header, put_settings};
use prism_io::h2::hpack::{Encoder, Indexing};

fn route(path: &[u8]) -> Option<Route> {
    let kind = path.strip_prefix(b"/a/")?.first()?;
    Some(Route { id: 1, client_streaming: kind & 1 == 1, server_streaming: kind & 2 == 2 })
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

fn frames(input: &mut Input<'_>, encoder: &mut Encoder, out: &mut Vec<u8>) -> Option<u8> {
    let instruction = input.byte()?;
    match instruction % 8 {
        0 => {
            let count = usize::from(input.byte()?);
            out.extend_from_slice(input.bytes(count));
        }
        1 | 2 => {
            let (kind, flags, stream) = (input.byte()? % 11, input.byte()?, input.byte()?);
            let count = usize::from(input.byte()?) * if instruction & 0x80 == 0 { 1 } else { 64 };
            let payload = input.bytes(count);
            put_header(out, payload.len(), kind, flags, u32::from(stream));
            out.extend_from_slice(payload);
        }
        3 => {
            let (stream, kind, flags) = (input.byte()?, input.byte()?, input.byte()?);
            let mut block = Vec::new();
            encoder.begin(&mut block);
            encoder.field(&mut block, b":method", b"POST", Indexing::Index);
            encoder.field(&mut block, b":scheme", b"http", Indexing::Index);
            encoder.field(&mut block, b":path", &[b'/', b'a', b'/', kind], Indexing::Index);
            encoder.field(&mut block, b"te", b"trailers", Indexing::Index);
            encoder.field(&mut block, b"content-type", b"application/grpc", Indexing::Index);
            if flags & 0x10 != 0 {
                encoder.field(&mut block, b"grpc-timeout", input.bytes(3), Indexing::Index);
            }
            put_header(out, block.len(), 1, flags & 1 | 4, u32::from(stream | 1));
            out.extend_from_slice(&block);
        }
        4 => {
            let (stream, flags, count) = (input.byte()?, input.byte()?, input.byte()?);
            let payload = input.bytes(usize::from(count));
            put_header(out, payload.len() + 5, 0, flags & 1, u32::from(stream | 1));
            out.extend_from_slice(&[0, 0, 0, 0, count]);
            out.extend_from_slice(payload);
        }
        5 => {
            let value = u32::from(input.byte()?) << (input.byte()? % 25);
            put_settings(out, &[(u16::from(input.byte()? % 8), value)]);
        }
        _ => {}
    }
    Some(instruction)
}

/// What may be held at once besides a few times the input: the queue, twice the output, the streams.
const HELD_BYTES_MAX: usize = 600 << 10;

fuzz_target!(|data: &[u8]| bounded(HELD_BYTES_MAX + 8 * data.len(), || serve(data)));

fn serve(data: &[u8]) {
    let limits = Limits {
        message_bytes_max: 10_000,
        streams_max: 20,
        gather_bytes_max: 15_000,
        queue_bytes_max: 100_000,
        output_bytes_high: 20_000,
        ..Limits::default()
    };
    let mut server = ServerConnection::new(&limits, route, 0);
    let mut encoder = Encoder::new(4096);
    let mut input = Input(data);
    let mut wire = BytesMut::from(&PREFACE[..]);
    let mut first = Vec::new();
    put_settings(&mut first, &[]);
    wire.extend_from_slice(&first);
    let mut output = Output::default();
    let mut open: Vec<StreamId> = Vec::new();
    let mut now_ns = 0;
    loop {
        let mut more = Vec::new();
        let Some(instruction) = frames(&mut input, &mut encoder, &mut more) else { break };
        wire.extend_from_slice(&more);
        if instruction & 0x40 != 0 {
            continue;
        }
        server.receive(&mut wire, now_ns);
        while let Some(event) = server.poll_event() {
            match event {
                Event::Request { stream, message, .. } => {
                    assert!(!open.contains(&stream));
                    if message.len() % 2 == 0 {
                        let tail = Bytes::from(vec![7; message.len() * 100]);
                        server.respond(
                            stream,
                            Message { head: &message, tail },
                            &[("a-bin", b"b")],
                        );
                    } else {
                        open.push(stream);
                    }
                }
                Event::Open { stream, .. } => {
                    assert!(!open.contains(&stream));
                    open.push(stream);
                }
                Event::Message { stream, message, .. } => {
                    server.release(stream, message.len());
                    let _ = server.send_message(stream, Message::new(&message));
                }
                Event::HalfClose { stream } | Event::Writable { stream } => {
                    server.finish(stream, &[]);
                    open.retain(|known| *known != stream);
                }
                Event::Cancelled { stream } => {
                    assert!(open.contains(&stream), "cancelled twice or never shown");
                    open.retain(|known| *known != stream);
                }
            }
        }
        assert!(server.queued_bytes() <= 100_000);
        assert!(server.open_streams() <= 20);
        match instruction >> 3 & 7 {
            0 => now_ns += 10_000_000,
            1 => now_ns += 5_000_000_000,
            2 => server.drain(now_ns),
            3 => {
                if let Some(stream) = open.pop() {
                    server.fail(stream, &Status::new(Code::Internal, "a\n"));
                }
            }
            4 => continue, // the driver does not write
            _ => {}
        }
        server.handle_timeout(now_ns);
        server.swap_output(&mut output);
        assert_eq!(output.segments().map(<[u8]>::len).sum::<usize>(), output.len());
    }
    server.lost();
    while let Some(event) = server.poll_event() {
        if let Event::Cancelled { stream } = event {
            assert!(open.contains(&stream));
            open.retain(|known| *known != stream);
        }
    }
    assert_eq!(server.open_streams(), 0);
}
