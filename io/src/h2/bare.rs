//! HTTP/2 with nothing above it: heads, payloads and trailers as they were understood, and answers of any kind.
//!
//! It is how the state machine is judged beside others, which know nothing of gRPC. It promises to show everything that a
//! layer above would be told, in order, and adds no rule of its own. It never answers by itself and keeps no payload.

use super::connection::{CloseReason, Connection, Incoming, Role, Sink};
use super::fields::Fields;
use super::frame::STREAM_ID_MAX;
use super::hpack::{Field, Indexing};
use super::stream::Recycle;
use super::{ErrorCode, Limits, Output, StreamId, block::HEADS_REMEMBERED};
use bytes::{Bytes, BytesMut};

/// One thing that has arrived.
#[derive(Debug)]
pub enum BareEvent {
    /// The head of a request, or of a final response.
    Head {
        /// Whose.
        stream: StreamId,
        /// Pseudo-headers and fields, in order.
        fields: Fields,
        /// Nothing follows.
        end: bool,
        /// The list is longer than `Limits::header_list_bytes_max`; `fields` are its beginning.
        too_large: bool,
    },
    /// A part of the payload; give its window back with `release`.
    Data {
        /// Whose.
        stream: StreamId,
        /// Without padding; empty only at the end.
        payload: Bytes,
        /// Nothing follows.
        end: bool,
    },
    /// Trailers; nothing follows.
    Trailers {
        /// Whose.
        stream: StreamId,
        /// In order.
        fields: Fields,
    },
    /// The stream is gone: reset by the peer, or by us for an error of the peer's.
    Reset {
        /// Which.
        stream: StreamId,
        /// Why.
        code: ErrorCode,
    },
    /// The peer takes its leave; streams of ours above `last` were not processed and are gone.
    GoAway {
        /// Highest stream that may have been processed.
        last: u32,
        /// Why.
        code: ErrorCode,
    },
}

/// Nothing is kept per stream.
#[derive(Debug, Default)]
struct Nothing;

impl Recycle for Nothing {
    fn recycle(&mut self) {}
}

/// Keeps the fields of the head or the trailers that are being decoded.
#[derive(Debug, Default)]
struct Gather {
    fields: Fields,
    saved: [Fields; HEADS_REMEMBERED],
}

impl Sink for Gather {
    fn begin(&mut self, _trailers: bool) {
        self.fields.clear();
    }

    fn field(&mut self, field: &Field<'_>) {
        self.fields.push_marked(field.name, field.value, field.sensitive);
    }

    fn save(&mut self, number: usize) -> bool {
        self.saved[number].clone_from(&self.fields);
        true
    }

    fn restore(&mut self, number: usize) {
        self.fields.clone_from(&self.saved[number]);
    }
}

/// One connection, at either end.
pub struct BareConnection {
    core: Connection<Nothing>,
    sink: Gather,
}

impl BareConnection {
    /// An end that has just been connected. A client's preface is in the output; a server waits for it.
    pub fn new(role: Role, limits: &Limits, now_ns: u64) -> Self {
        Self { core: Connection::new(role, limits.shared(), now_ns), sink: Gather::default() }
    }

    /// Takes the whole frames from the front of `input` and leaves the rest. Poll the events of an earlier call first.
    pub fn receive(&mut self, input: &mut BytesMut, now_ns: u64) {
        self.core.accept(input, now_ns);
    }

    /// The next event, or `None` when everything received has been worked through.
    pub fn poll_event(&mut self) -> Option<BareEvent> {
        loop {
            let incoming = self.core.poll(&mut self.sink)?;
            return Some(match incoming {
                Incoming::Head { stream, end, too_large } => {
                    self.remote_end(stream, end);
                    let fields = std::mem::take(&mut self.sink.fields);
                    BareEvent::Head { stream, fields, end, too_large }
                }
                Incoming::Trailers { stream } => {
                    self.remote_end(stream, true);
                    let fields = std::mem::take(&mut self.sink.fields);
                    BareEvent::Trailers { stream, fields }
                }
                Incoming::Data { stream, payload, end } => {
                    self.remote_end(stream, end);
                    BareEvent::Data { stream, payload, end }
                }
                Incoming::Reset { stream, code } => {
                    self.core.forget(stream.slot());
                    BareEvent::Reset { stream, code }
                }
                Incoming::GoAway { last } => {
                    self.going_away(last);
                    let code = self.core.peer_goaway.map_or(ErrorCode::NO_ERROR, |(_, code)| code);
                    BareEvent::GoAway { last, code }
                }
                Incoming::Writable { .. } => continue,
            });
        }
    }

    /// A stream is over once both sides have ended.
    fn remote_end(&mut self, stream: StreamId, end: bool) {
        if end && self.core.streams.get(stream).is_some_and(|entry| entry.local_closed) {
            self.core.forget(stream.slot());
        }
    }

    fn going_away(&mut self, last: u32) {
        if self.core.role == Role::Client {
            let live: Vec<usize> = self.core.streams.live().collect();
            for slot in live {
                if self.core.streams.id(slot).number() > last {
                    self.core.forget(slot);
                }
            }
        }
        self.core.close_if_drained();
    }

    /// Payload of that many bytes has been consumed. Also for streams that have ended since.
    pub fn release(&mut self, stream: StreamId, bytes: usize) {
        self.core.release(stream, bytes as u32);
    }

    /// Whether the stream is there and our side of it has not ended.
    fn sendable(&self, stream: StreamId) -> bool {
        !self.core.is_closed()
            && self.core.streams.get(stream).is_some_and(|entry| !entry.local_closed)
    }

    fn put_fields(&mut self, number: u32, fields: &Fields, end: bool) {
        self.core.put_block(number, end, |encoder, out| {
            for (name, value, sensitive) in fields.iter_marked() {
                let indexing = if sensitive { Indexing::Never } else { Indexing::Index };
                encoder.field(out, name, value, indexing);
            }
        });
    }

    /// Opens a stream with a request's head. `None` when no more can be opened.
    pub fn open(&mut self, fields: &Fields, end: bool) -> Option<StreamId> {
        let number = self.core.next_local_stream;
        let room = self.core.streams.len() < self.core.peer.streams_max as usize;
        if self.core.is_closed()
            || self.core.role != Role::Client
            || self.core.peer_goaway.is_some()
            || number > STREAM_ID_MAX
            || !room
        {
            return None;
        }
        self.core.next_local_stream += 2;
        let slot = self.core.open(number);
        self.core.streams.at(slot).headers_sent = true;
        self.put_fields(number, fields, end);
        let stream = self.core.streams.id(slot);
        if end {
            self.core.end_local(slot);
        }
        Some(stream)
    }

    /// Answers with a final head. False when the stream is gone.
    pub fn send_head(&mut self, stream: StreamId, fields: &Fields, end: bool) -> bool {
        if !self.sendable(stream) {
            return false;
        }
        self.core.streams.at(stream.slot()).headers_sent = true;
        self.put_fields(stream.number(), fields, end);
        if end {
            self.core.end_local(stream.slot());
        }
        true
    }

    /// Sends or queues payload. False when the stream is gone or `Limits::queue_bytes_max` is reached.
    pub fn send_data(&mut self, stream: StreamId, payload: Bytes, end: bool) -> bool {
        self.sendable(stream) && self.core.send_data(stream.slot(), &[], &[], &payload, end)
    }

    /// Ends our side with trailers, after what is queued. False when the stream is gone.
    pub fn send_trailers(&mut self, stream: StreamId, fields: Fields) -> bool {
        if !self.sendable(stream) {
            return false;
        }
        if self.core.queue_is_empty(stream.slot()) {
            self.put_fields(stream.number(), &fields, true);
            self.core.end_local(stream.slot());
        } else {
            self.core.queue_trailers(stream.slot(), fields);
        }
        true
    }

    /// Breaks a stream off. No event follows.
    pub fn reset(&mut self, stream: StreamId, code: ErrorCode) {
        self.core.reset(stream, code);
    }

    /// Takes all that is to be written in exchange for another output, which is emptied.
    pub fn swap_output(&mut self, output: &mut Output) {
        self.core.swap_output(output);
    }

    /// Begins to drain, as a server does before it ends.
    pub fn drain(&mut self, now_ns: u64) {
        self.core.drain(now_ns);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now_ns: u64) {
        self.core.handle_timeout(now_ns);
    }

    /// Why it has ended, if it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.core.close_reason()
    }

    /// Streams that are open.
    pub fn open_streams(&self) -> usize {
        self.core.streams.len()
    }

    /// Bytes that wait for the peer's windows.
    pub fn queued_bytes(&self) -> usize {
        self.core.queue_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9113, section 5.1.1: a client whose numbers are used up opens no more streams; the last number is one that it can use.
    #[test]
    fn a_client_stops_when_its_stream_numbers_are_used_up() {
        let mut client = BareConnection::new(Role::Client, &Limits::default(), 0);
        client.core.next_local_stream = STREAM_ID_MAX - 2;
        let mut head = Fields::new();
        for (name, value) in [(":method", "GET"), (":scheme", "http"), (":path", "/")] {
            head.push(name.as_bytes(), value.as_bytes());
        }
        let mut numbers = Vec::new();
        while let Some(stream) = client.open(&head, true) {
            numbers.push(stream.number());
        }
        assert_eq!(numbers, [STREAM_ID_MAX - 2, STREAM_ID_MAX]);
        assert_eq!((client.open_streams(), client.close_reason()), (2, None), "they may end");
    }
}
