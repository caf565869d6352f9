//! Any bytes against HTTP/1.1 with gRPC-Web and Connect: no panic, bounded memory, every call that was shown ends once, and the
//! same bytes in one piece or in many give the same calls and the same answers.
//!
//! The input is a list of instructions, so that mutations stay close to requests that mean something: raw bytes, pieces of heads,
//! whole requests, chunks.
#![no_main]

use std::rc::Rc;

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use prism_io::grpc::{Event, Limits, Message, Output, Route, Status, StreamId};
use prism_io::web::{Http1Connection, Origins, Schema, Web};

const MESSAGE_BYTES_MAX: u32 = 5_000;
const HEAD_BYTES_MAX: u32 = 2_000;

fn route(path: &[u8]) -> Option<Route> {
    let kind = path.strip_prefix(b"/a/")?.first()?;
    Some(Route { id: u32::from(*kind), client_streaming: false, server_streaming: kind & 2 == 2 })
}

const SCHEMA: Schema = Schema {
    request_from_json: |_, json, into| match json.first() {
        Some(b'{') => {
            into.extend_from_slice(json);
            Ok(())
        }
        _ => Err("no".into()),
    },
    reply_to_json: |_, message, into| {
        into.extend_from_slice(message);
        Ok(())
    },
    details_to_json: |_, _| {},
    is_read: |route| route & 1 == 1,
    page: |_, _| (404, "no page".into()),
};

/// Pieces of requests.
const PIECES: [&[u8]; 24] = [
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"POST /a/a HTTP/1.1\r\nhost: a\r\n",
    b"POST /a/b HTTP/1.1\r\nhost: a\r\n",
    b"POST /a/a HTTP/1.0\r\n",
    b"GET /a/a?encoding=json&message=%7B HTTP/1.1\r\nhost: a\r\n\r\n",
    b"OPTIONS /a/a HTTP/1.1\r\nhost: a\r\norigin: http://localhost\r\naccess-control-request-method: POST\r\n\r\n",
    b"content-type: application/json\r\n",
    b"content-type: application/proto\r\n",
    b"content-type: application/grpc-web\r\n",
    b"content-type: application/grpc-web-text\r\n",
    b"content-type: application/connect+json\r\n",
    b"content-length: 1\r\n",
    b"content-length: 7\r\n",
    b"content-length: 300\r\n",
    b"transfer-encoding: chunked\r\n",
    b"expect: 100-continue\r\n",
    b"connection: close\r\n",
    b"\r\n",
    b"1\r\n{\r\n",
    b"7\r\n\0\0\0\0\x02{}\r\n",
    b"0\r\n\r\n",
    b"{",
    b"\0\0\0\0\x02{}",
    b"AAAAAAJ7fQ==",
];

struct Played {
    server: Http1Connection,
    calls: Vec<(u32, Vec<u8>)>,
    open: Vec<StreamId>,
    written: Vec<u8>,
}

impl Played {
    fn new() -> Self {
        let limits = Limits {
            message_bytes_max: MESSAGE_BYTES_MAX,
            header_list_bytes_max: HEAD_BYTES_MAX,
            ..Limits::default()
        };
        let web = Rc::new(Web {
            schema: SCHEMA,
            origins: Origins::default(),
            json_bytes_max: 1_000,
            is_secured: false,
            compress_bytes_min: 100,
        });
        let server = Http1Connection::new(web, &limits, route, 0);
        Self { server, calls: Vec::new(), open: Vec::new(), written: Vec::new() }
    }

    fn feed(&mut self, bytes: &[u8], now_ns: u64) {
        self.server.receive(&mut BytesMut::from(bytes), now_ns);
        loop {
            while let Some(event) = self.server.poll_event() {
                match event {
                    Event::Request { stream, route, message, .. } => {
                        assert!(self.open.is_empty(), "one at a time");
                        assert!(message.len() <= MESSAGE_BYTES_MAX as usize);
                        self.calls.push((route, message.to_vec()));
                        self.open.push(stream);
                    }
                    Event::Cancelled { stream } => {
                        assert_eq!(self.open.pop(), Some(stream));
                    }
                    _ => {}
                }
            }
            // Answered after the events, as calls that wait are.
            let Some(stream) = self.open.pop() else { break };
            let (route, message) = self.calls.last().expect("it was shown");
            if route & 2 == 2 {
                for _ in 0..message.len() % 3 {
                    let _ = self.server.send_message(stream, Message::new(message));
                }
                assert!(self.server.finish(stream, &[("a-bin", b"b")]));
            } else if message.len() % 2 == 0 {
                assert!(self.server.respond(stream, Message::new(message), &[("a", b"b\r\n")]));
            } else {
                let status = Status::new(prism_io::grpc::Code::Internal, "a\n");
                assert!(self.server.fail(stream, &status));
            }
            assert!(!self.server.finish(stream, &[]), "answered twice");
        }
        let held = self.server.buffered_bytes() - self.server.output().len();
        assert!(held <= 60_000, "{held} bytes are held");
        let mut output = Output::default();
        self.server.swap_output(&mut output);
        output.segments().for_each(|segment| self.written.extend_from_slice(segment));
    }
}

fuzz_target!(|data: &[u8]| {
    let (mut wire, mut cuts) = (Vec::new(), Vec::new());
    let mut input = data.iter().copied();
    while let Some(instruction) = input.next() {
        match instruction {
            0..=191 => wire.extend_from_slice(PIECES[usize::from(instruction) % PIECES.len()]),
            192..=250 => wire.extend(input.by_ref().take(usize::from(instruction - 191))),
            251..=253 => cuts.push(wire.len()),
            _ => wire.extend(std::iter::repeat_n(b'x', 400)),
        }
    }
    if wire.len() > 50_000 {
        return;
    }
    let mut whole = Played::new();
    whole.feed(&wire, 0);
    let mut parts = Played::new();
    let mut start = 0;
    for (nth, end) in cuts.into_iter().chain([wire.len()]).enumerate() {
        parts.feed(&wire[start..end], nth as u64);
        start = end;
    }
    assert_eq!(whole.calls, parts.calls);
    assert_eq!(String::from_utf8_lossy(&whole.written), String::from_utf8_lossy(&parts.written));
    assert_eq!(whole.server.is_closed(), parts.server.is_closed());
    whole.server.handle_timeout(u64::MAX);
    whole.feed(b"", u64::MAX);
    parts.server.lost();
    assert!(parts.server.is_closed());
});
