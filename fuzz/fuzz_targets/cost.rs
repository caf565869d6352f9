//! The same frames again and again, on ever new streams: eight times as many cost eight times as much, at either end, with the
//! limits as they are by default and with none on rates; of HTTP/2 alone, and with gRPC above it.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use prism_fuzz::linear;
use prism_io::grpc::{ClientConnection, ClientEvent, Event, Message, Route, ServerConnection};
use prism_io::h2::frame::{PREFACE, kind};
use prism_io::h2::{BareConnection, BareEvent, Fields, Limits, Output, Rate, Role};
use prism_judge::frames::{Frame, Sequence};

/// Bytes of the short run.
const SHORT_BYTES: usize = 16 << 10;

fn limits(rates: bool) -> Limits {
    if rates {
        return Limits::default();
    }
    let never = Rate { burst: u32::MAX, per_second: 0 };
    Limits {
        peer_resets: never,
        provoked_resets: never,
        pings: never,
        settings: never,
        empty_data: never,
        idle_frames: never,
        ..Limits::default()
    }
}

/// Puts the frames' streams behind those of the repetitions before.
fn moved(frame: &Frame, repetition: usize, streams: u32) -> Vec<u8> {
    let mut frame = frame.clone();
    let on_stream = !matches!(frame.kind, kind::SETTINGS | kind::PING | kind::GOAWAY);
    if on_stream && frame.stream & 0x7fff_ffff != 0 {
        frame.stream = (frame.stream & 0x7fff_ffff) + repetition as u32 * streams;
    }
    frame.bytes()
}

/// The frames again and again, in pieces as they come from a socket, until so many bytes were given out.
struct Repeated<'a> {
    sequence: &'a Sequence,
    streams: u32,
    repetition: usize,
    given: usize,
    bytes_max: usize,
}

impl<'a> Repeated<'a> {
    fn new(sequence: &'a Sequence, bytes_max: usize) -> Self {
        let streams = sequence.frames.iter().map(|frame| frame.stream & 0xffff).max().unwrap_or(0);
        let streams = streams.next_multiple_of(2) + 2;
        Self { sequence, streams, repetition: 0, given: 0, bytes_max }
    }

    /// Adds a piece to what is there; false when there is no more.
    fn add(&mut self, input: &mut BytesMut) -> bool {
        if self.given >= self.bytes_max {
            return false;
        }
        while input.len() < 8192 {
            for frame in &self.sequence.frames {
                input.extend(moved(frame, self.repetition, self.streams));
            }
            self.repetition += 1;
        }
        self.given += input.len();
        true
    }
}

/// With gRPC above it: every call is one of some method, and every message is echoed.
fn run_grpc(sequence: &Sequence, limits: &Limits, bytes_max: usize) {
    match sequence.role {
        Role::Server => serve_grpc(sequence, limits, bytes_max),
        Role::Client => call_grpc(sequence, limits, bytes_max),
    }
}

fn serve_grpc(sequence: &Sequence, limits: &Limits, bytes_max: usize) {
    let route = |path: &[u8]| {
        let streams = path.len() % 2 == 0;
        Some(Route { id: 1, client_streaming: streams, server_streaming: streams })
    };
    let mut server = ServerConnection::new(limits, route, 0);
    let mut repeated = Repeated::new(sequence, bytes_max);
    let (mut input, mut output) = (BytesMut::from(&PREFACE[..]), Output::default());
    while !server.is_closed() && repeated.add(&mut input) {
        server.receive(&mut input, 0);
        loop {
            while let Some(event) = server.poll_event() {
                match event {
                    Event::Request { stream, message, .. } => {
                        server.respond(stream, Message::new(&message), &[("a-bin", b"b")]);
                    }
                    Event::Message { stream, message, .. } => {
                        server.release(stream, message.len());
                        let _ = server.send_message(stream, Message::new(&message));
                    }
                    Event::HalfClose { stream } => {
                        server.finish(stream, &[]);
                    }
                    Event::Open { .. } | Event::Cancelled { .. } | Event::Writable { .. } => {}
                }
            }
            if !server.is_paused() {
                break;
            }
            server.resume();
        }
        server.swap_output(&mut output);
        assert!(output.len() <= 4 << 20);
    }
}

fn call_grpc(sequence: &Sequence, limits: &Limits, bytes_max: usize) {
    let mut client = ClientConnection::new(limits, "a", 0);
    let mut repeated = Repeated::new(sequence, bytes_max);
    let (mut input, mut output) = (BytesMut::new(), Output::default());
    while !client.is_closed() && repeated.add(&mut input) {
        // Some calls, as far as the server lets there be any, so that there is somebody to be answered.
        for _ in 0..100 {
            if client.start(b"/a/b", &[("x-bin", b"y")], None).is_err() {
                break;
            }
        }
        client.receive(&mut input, 0);
        while let Some(event) = client.poll_event() {
            if let ClientEvent::Message { stream, message, .. } = event {
                client.release(stream, message.len());
            }
        }
        client.swap_output(&mut output);
    }
}

fn run(sequence: &Sequence, limits: &Limits, bytes_max: usize) {
    let mut connection = BareConnection::new(sequence.role, limits, 0);
    if sequence.role == Role::Client {
        let mut fields = Fields::new();
        fields.push(b":path", b"/");
        while connection.open(&fields, true).is_some() {}
    }
    let mut repeated = Repeated::new(sequence, bytes_max);
    let mut input = BytesMut::from(if sequence.role == Role::Server { &PREFACE[..] } else { b"" });
    let mut output = Output::default();
    let mut answer = Fields::new();
    answer.push(b":status", b"200");
    while connection.close_reason().is_none() && repeated.add(&mut input) {
        connection.receive(&mut input, 0);
        while let Some(event) = connection.poll_event() {
            match event {
                BareEvent::Data { stream, payload, end } => {
                    connection.release(stream, payload.len());
                    if end {
                        connection.send_head(stream, &answer, true);
                    }
                }
                BareEvent::Head { stream, end: true, .. } | BareEvent::Trailers { stream, .. } => {
                    connection.send_head(stream, &answer, true);
                }
                _ => {}
            }
        }
        connection.swap_output(&mut output);
        assert!(output.len() <= 2 << 20);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    let role = if first & 1 == 0 { Role::Server } else { Role::Client };
    let sequence = Sequence::new(role, data);
    let limits = limits(first & 2 == 0);
    let run = if first & 4 == 0 { run } else { run_grpc };
    linear(|times| run(&sequence, &limits, SHORT_BYTES * times));
});
