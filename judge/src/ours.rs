//! Prism's state machine under the application of the comparison.

use crate::seen::{FieldMap, OutputReader, Seen};
use crate::{Application, CLIENT_REQUESTS, STREAM_WINDOW_BYTES, STREAMS_MAX};
use bytes::{Bytes, BytesMut};
use prism_io::h2::{BareConnection, BareEvent, Fields, Limits, Output, Rate, Role, StreamId};
use std::collections::BTreeMap;

/// Limits that do not bite where `h2` has none: the attacks have their own tests.
fn limits() -> Limits {
    let never = Rate { burst: u32::MAX, per_second: 0 };
    Limits {
        streams_max: STREAMS_MAX,
        stream_window_bytes: STREAM_WINDOW_BYTES,
        connection_window_bytes: 65_535,
        header_list_bytes_max: 1 << 20,
        header_block_bytes_max: 1 << 20,
        continuations_max: 1 << 16,
        peer_resets: never,
        provoked_resets: never,
        pings: never,
        settings: never,
        empty_data: never,
        idle_frames: never,
        ..Limits::default()
    }
}

/// One end of a connection.
pub struct Ours {
    connection: BareConnection,
    role: Role,
    input: BytesMut,
    output: Output,
    reader: OutputReader,
    /// Bytes that were not consumed, by stream.
    held: BTreeMap<u32, usize>,
    /// What was observed so far.
    pub seen: Seen,
}

impl Ours {
    /// An end that has just been connected. A client has begun its requests.
    pub fn new(role: Role) -> Self {
        let mut ours = Self {
            connection: BareConnection::new(role, &limits(), 0),
            role,
            input: BytesMut::new(),
            output: Output::default(),
            reader: OutputReader::default(),
            held: BTreeMap::new(),
            seen: Seen::default(),
        };
        if role == Role::Client {
            for nth in 0..CLIENT_REQUESTS {
                let mut fields = Fields::new();
                for (name, value) in
                    [(":method", "POST"), (":scheme", "http"), (":path", "/a"), (":authority", "b")]
                {
                    fields.push(name.as_bytes(), value.as_bytes());
                }
                let application = Application::of(nth * 2 + 1);
                let bytes = application.answer_bytes;
                let stream = ours.connection.open(&fields, bytes == Some(0));
                let stream = stream.expect("a fresh connection has room");
                if let Some(bytes @ 1..) = bytes {
                    ours.connection.send_data(stream, vec![7; bytes].into(), true);
                }
            }
        }
        ours.turn();
        ours
    }

    /// Takes bytes and does everything that follows from them.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        self.turn();
    }

    fn turn(&mut self) {
        loop {
            self.connection.receive(&mut self.input, 0);
            let mut idle = true;
            while let Some(event) = self.connection.poll_event() {
                idle = false;
                self.event(event);
            }
            self.connection.swap_output(&mut self.output);
            for segment in self.output.segments() {
                idle = false;
                self.reader.read(segment, &mut self.seen);
            }
            if idle {
                break;
            }
        }
        self.seen.closed = self.connection.close_reason().is_some();
    }

    fn event(&mut self, event: BareEvent) {
        match event {
            BareEvent::Head { stream, fields, end, too_large } => {
                assert!(!too_large, "no list is that large");
                let told = self.seen.told(stream.number());
                told.head = Some(field_map(&fields));
                self.ended(stream, end);
            }
            BareEvent::Data { stream, payload, end } => {
                self.seen.told(stream.number()).body.extend_from_slice(&payload);
                if Application::of(stream.number()).consumes {
                    self.connection.release(stream, payload.len());
                } else {
                    *self.held.entry(stream.number()).or_default() += payload.len();
                }
                self.ended(stream, end);
            }
            BareEvent::Trailers { stream, fields } => {
                self.seen.told(stream.number()).trailers = Some(field_map(&fields));
                self.ended(stream, true);
            }
            BareEvent::Reset { stream, code } => {
                // What it has not consumed goes with a stream that breaks off.
                let held = self.held.remove(&stream.number()).unwrap_or(0);
                if !self.seen.told(stream.number()).ended {
                    self.connection.release(stream, held);
                }
                self.seen.told(stream.number()).reset = Some(code.0);
            }
            BareEvent::GoAway { last, code } => {
                if self.role == Role::Client {
                    self.gone_above(last, code.0);
                }
            }
        }
    }

    /// The requests that the server will not process are over.
    fn gone_above(&mut self, last: u32, code: u32) {
        for number in (0..CLIENT_REQUESTS).map(|nth| nth * 2 + 1).filter(|&number| number > last) {
            let sent = self.seen.written.get(&number).is_some_and(|written| written.ended);
            let told = self.seen.told(number);
            if !(told.ended && sent) {
                told.reset.get_or_insert(code);
            }
        }
    }

    fn ended(&mut self, stream: StreamId, end: bool) {
        if !end {
            return;
        }
        self.seen.told(stream.number()).ended = true;
        let application = Application::of(stream.number());
        if self.role == Role::Client {
            return;
        }
        let Some(bytes) = application.answer_bytes else { return };
        let mut head = Fields::new();
        head.push(b":status", b"200");
        self.connection.send_head(stream, &head, bytes == 0 && !application.trailers);
        if bytes > 0 {
            self.connection.send_data(stream, Bytes::from(vec![7; bytes]), !application.trailers);
        }
        if application.trailers {
            let mut trailers = Fields::new();
            trailers.push(b"a-trailer", b"1");
            self.connection.send_trailers(stream, trailers);
        }
    }
}

fn field_map(fields: &Fields) -> FieldMap {
    let mut map = FieldMap::new();
    for (name, value) in fields.iter() {
        let name = String::from_utf8_lossy(name).into_owned();
        map.entry(name).or_default().push(value.to_vec());
    }
    map
}
