//! The server's end of an HTTP/1.1 connection (RFC 9112), with the interface of [`crate::grpc::ServerConnection`].
//!
//! One request at a time: what a client sends ahead waits, up to a bound, and is answered in its order. What is malformed is
//! answered with its status and ends the connection, because nobody knows where the next request begins.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::{Answer, Asked, Coding, Exchange, Part, Verdict, Web, begin};
use crate::grpc::compress::{Encoding, accepts_gzip};
use crate::grpc::message::PREFIX_BYTES;
use crate::grpc::{
    CloseReason, Code, Counts, ErrorCode, Event, Limits, Message, Metadata, Output, RequestHead,
    RouteFn, SendError, Status, StreamId, timeout,
};
use crate::h2::Refusal;
use crate::h2::queue::REFERENCE_BYTES_MIN;
use crate::h2::refusal::Refusals;
use crate::http1::body::{BodyDecoder, Taken};
use crate::http1::head::{self, BodyLength, Head, Parsed, Refused};

/// Bytes of later requests that a connection holds while one is being answered; it is not read from beyond them.
pub const AHEAD_BYTES_MAX: usize = 64 << 10;
/// Largest body of a refused request that is read, so that the connection can go on; beyond it, it ends.
const DISCARD_BYTES_MAX: u64 = 64 << 10;

/// What an answer has to say besides its content.
#[derive(Debug, Clone, Copy, Default)]
struct Manner {
    /// The connection ends after it.
    close: bool,
    /// The request was HEAD.
    without_body: bool,
    /// HTTP/1.0 knows no chunks: the end of the connection is the end of the body.
    without_chunks: bool,
}

/// A request whose body is being read.
struct Reading {
    decoder: BodyDecoder,
    /// Body bytes that have come.
    bytes: u64,
    since_ns: u64,
    purpose: Purpose,
}

enum Purpose {
    /// It becomes a call.
    Call(Box<Exchange>, RequestHead),
    /// It has its answer already.
    Discard(Part),
}

enum State {
    /// A head is to come, and has begun to come at this time.
    Head { since_ns: Option<u64> },
    /// A body is to come.
    Body(Box<Reading>),
    /// A call is with the layer above.
    Call(Box<Exchange>),
    /// Nothing is read any more.
    Closed(CloseReason),
}

/// One connection of a client.
pub struct Http1Connection {
    web: Rc<Web>,
    limits: Limits,
    route_of: RouteFn,
    state: State,
    manner: Manner,
    /// The answer that has begun comes in chunks.
    chunked: bool,
    input: BytesMut,
    /// Bytes of the input that are known not to hold the end of a head.
    searched: usize,
    output: Output,
    events: VecDeque<Event>,
    /// Number of the running request.
    number: u32,
    /// Somebody waits for the output to become short.
    room_wanted: bool,
    draining: bool,
    /// The client has sent all that it will.
    input_ended: bool,
    now_ns: u64,
    /// When the connection became idle.
    idle_ns: u64,
    refusals: Refusals,
    counts: Counts,
}

impl Http1Connection {
    /// A connection whose first bytes are those of HTTP/1.
    pub fn new(web: Rc<Web>, limits: &Limits, route_of: RouteFn, now_ns: u64) -> Self {
        Self {
            web,
            limits: *limits,
            route_of,
            state: State::Head { since_ns: None },
            manner: Manner::default(),
            chunked: false,
            input: BytesMut::new(),
            searched: 0,
            output: Output::default(),
            events: VecDeque::new(),
            number: 0,
            room_wanted: false,
            draining: false,
            input_ended: false,
            now_ns,
            idle_ns: now_ns,
            refusals: Refusals::default(),
            counts: Counts::default(),
        }
    }

    /// Takes all of `input`.
    pub fn receive(&mut self, input: &mut BytesMut, now_ns: u64) {
        self.now_ns = now_ns;
        if self.is_closed() {
            input.clear();
        } else if self.input.is_empty() {
            self.input = input.split();
        } else {
            self.input.extend_from_slice(input);
            input.clear();
        }
    }

    /// Whether more is to be read from the socket: false while enough of later requests is here.
    pub fn wants_input(&self) -> bool {
        !matches!(self.state, State::Call(_)) || self.input.len() < AHEAD_BYTES_MAX
    }

    /// The client has closed its side. What it has asked is still answered; poll the events.
    pub fn input_ended(&mut self) {
        self.input_ended = true;
    }

    /// The next event, or `None` when everything received has been worked through.
    pub fn poll_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if !self.step() {
                if self.input_ended && matches!(self.state, State::Head { .. } | State::Body(_)) {
                    self.count_cut_off();
                    self.close(CloseReason::Lost);
                }
                return None;
            }
        }
    }

    /// Works on the input. False when more is needed, or when the running call has to be answered first.
    fn step(&mut self) -> bool {
        match &mut self.state {
            State::Head { .. } => self.step_head(),
            State::Body(reading) => match reading.decoder.take(&mut self.input) {
                Ok(Taken::Partial) => false,
                Ok(Taken::Piece(piece)) => {
                    self.piece(piece);
                    true
                }
                Ok(Taken::End) => {
                    self.body_ended();
                    true
                }
                Err(refused) => {
                    self.refuse(refused, Refusal::MalformedHead);
                    false
                }
            },
            State::Call(_) | State::Closed(_) => false,
        }
    }

    fn step_head(&mut self) -> bool {
        // Empty lines before a request are passed over (RFC 9112, section 2.2).
        while self.input.starts_with(b"\r\n") {
            let _ = self.input.split_to(2);
            self.searched = 0;
        }
        if self.draining {
            self.close(CloseReason::Done);
            return false;
        }
        if self.input.is_empty() {
            return false;
        }
        let bytes_max = self.limits.header_list_bytes_max as usize;
        let input = std::mem::take(&mut self.input);
        match head::parse(&input, self.searched, bytes_max) {
            Parsed::Partial => {
                self.searched = input.len();
                if let State::Head { since_ns: since_ns @ None } = &mut self.state {
                    *since_ns = Some(self.now_ns);
                }
                self.input = input;
                false
            }
            Parsed::Refused(refused) => {
                let too_large = matches!(refused.0, 414 | 431);
                self.refuse(
                    refused,
                    if too_large { Refusal::HeaderList } else { Refusal::MalformedHead },
                );
                false
            }
            Parsed::Whole(head, length) => {
                self.begin(&head);
                let mut input = input;
                let _ = input.split_to(length);
                self.input = input;
                self.searched = 0;
                !self.is_closed()
            }
        }
    }

    /// A whole head has come.
    fn begin(&mut self, head: &Head<'_>) {
        self.number = self.number.wrapping_add(1);
        self.counts.streams_started += 1;
        self.counts.last_stream_ns = self.now_ns;
        self.manner = Manner {
            close: head.close || self.draining,
            without_body: head.method == "HEAD",
            without_chunks: !head.is_1_1,
        };
        let mut asked = Asked {
            method: head.method.as_bytes(),
            target: head.target.as_bytes(),
            route: (self.route_of)(head.target.as_bytes()),
            host: head.host,
            content_type: b"",
            grpc_timeout: None,
            grpc_timeout_ok: true,
            coding: Coding::default(),
            fields: Metadata::new(),
        };
        for (name, value) in head.fields() {
            if name.eq_ignore_ascii_case("content-type") {
                asked.content_type = value;
            } else if name.eq_ignore_ascii_case("grpc-timeout") {
                asked.grpc_timeout = timeout::parse(value);
                asked.grpc_timeout_ok = asked.grpc_timeout.is_some();
            } else if name.eq_ignore_ascii_case("grpc-encoding") {
                asked.coding.grpc = Encoding::parse(value);
            } else if name.eq_ignore_ascii_case("grpc-accept-encoding") {
                asked.coding.grpc_accepts_gzip |= accepts_gzip(value);
            } else {
                asked.fields.push(name.to_ascii_lowercase().as_bytes(), value);
            }
        }
        let purpose = match begin(&self.web, self.route_of, asked) {
            Verdict::Call(exchange, head) => Purpose::Call(exchange, head),
            Verdict::Refused(mut exchange, code, message) => {
                self.counts.streams_failed += 1;
                let status = Status::new(code, &message);
                Purpose::Discard(exchange.fail(&self.web.schema, &status))
            }
            Verdict::Answer(answer) => {
                if answer.status == 403 {
                    self.refusals.count(Refusal::Origin);
                }
                self.count_answered(answer.status);
                Purpose::Discard(answer.into_part())
            }
        };
        let bytes_max = match &purpose {
            // What is larger than any message is refused before it is read.
            Purpose::Call(..) => 2 * u64::from(self.limits.message_bytes_max),
            Purpose::Discard(_) => DISCARD_BYTES_MAX,
        };
        let too_large = matches!(head.body, BodyLength::Known(bytes) if bytes > bytes_max);
        match purpose {
            Purpose::Call(mut exchange, _) if too_large => {
                let limit = self.limits.message_bytes_max;
                let message = format!("a body larger than any message; the limit is {limit} bytes");
                let status = Status::new(Code::ResourceExhausted, &message);
                let part = exchange.fail(&self.web.schema, &status);
                self.refusals.count(Refusal::MessageSize);
                self.counts.streams_failed += 1;
                self.end_early(part);
            }
            // A client that waits for leave to send a body does not send one that nobody wants.
            Purpose::Discard(part)
                if too_large || (head.expects_continue && head.body != BodyLength::Known(0)) =>
            {
                self.end_early(part);
            }
            purpose => {
                if head.expects_continue && head.body != BodyLength::Known(0) {
                    self.output.inline.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                self.state = State::Body(Box::new(Reading {
                    decoder: BodyDecoder::new(head.body),
                    bytes: 0,
                    since_ns: self.now_ns,
                    purpose,
                }));
            }
        }
    }

    /// A piece of the body has come.
    fn piece(&mut self, piece: Bytes) {
        let State::Body(reading) = &mut self.state else { return };
        reading.bytes += piece.len() as u64;
        let bytes = reading.bytes;
        match &mut reading.purpose {
            Purpose::Call(exchange, _) => {
                let taken = exchange.take(&self.web, piece, self.limits.message_bytes_max);
                if let Err((code, message)) = taken {
                    let part = exchange.fail(&self.web.schema, &Status::new(code, &message));
                    self.refusals.count(Refusal::MessageSize);
                    self.counts.streams_failed += 1;
                    self.end_early(part);
                }
            }
            Purpose::Discard(part) if bytes > DISCARD_BYTES_MAX => {
                let part = std::mem::take(part);
                self.end_early(part);
            }
            Purpose::Discard(_) => {}
        }
    }

    /// The request is whole.
    fn body_ended(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Head { since_ns: None });
        let State::Body(reading) = state else { return };
        match reading.purpose {
            Purpose::Discard(part) => self.put_last(part),
            Purpose::Call(mut exchange, head) => {
                match exchange.message(&self.web, self.limits.message_bytes_max) {
                    Ok(message) => {
                        let (stream, route) = (self.stream(), exchange.route_id());
                        self.state = State::Call(exchange);
                        self.counts.messages_received += 1;
                        self.counts.last_received_ns = self.now_ns;
                        self.events.push_back(Event::Request { stream, route, head, message });
                    }
                    Err((code, message)) => {
                        let status = Status::new(code, &message);
                        let part = exchange.fail(&self.web.schema, &status);
                        self.counts.streams_failed += 1;
                        self.put_last(part);
                    }
                }
            }
        }
    }

    fn stream(&self) -> StreamId {
        StreamId::new(self.number, 0)
    }

    /// Answers what is no request, and ends.
    fn refuse(&mut self, refused: Refused, kind: Refusal) {
        let Refused(status, reason) = refused;
        self.refusals.count(kind);
        self.count_cut_off();
        self.manner.without_body = false;
        self.end_early(Answer::text(status, format!("Refused: {reason}.")).into_part());
        self.state = State::Closed(CloseReason::Error(ErrorCode::PROTOCOL_ERROR, reason));
    }

    /// Counts a call that ends before its answer, if there is one.
    fn count_cut_off(&mut self) {
        let is_call = match &self.state {
            State::Call(_) => true,
            State::Body(reading) => matches!(reading.purpose, Purpose::Call(..)),
            State::Head { .. } | State::Closed(_) => false,
        };
        self.counts.streams_failed += u64::from(is_call);
    }

    /// Counts a request by the status of its answer.
    fn count_answered(&mut self, status: u16) {
        match status {
            400.. => self.counts.streams_failed += 1,
            _ => self.counts.streams_succeeded += 1,
        }
    }

    fn count_sent(&mut self) {
        self.counts.messages_sent += 1;
        self.counts.last_sent_ns = self.now_ns;
    }

    /// Answers a request that has not been read to its end, which the connection cannot outlive.
    fn end_early(&mut self, part: Part) {
        self.manner.close = true;
        self.put_last(part);
    }

    /// Writes the last piece of an answer, and goes on to the next request.
    fn put_last(&mut self, part: Part) {
        debug_assert!(part.end);
        self.put(part);
        self.idle_ns = self.now_ns;
        if self.manner.close {
            self.close(CloseReason::Done);
        } else if !self.is_closed() {
            self.state = State::Head { since_ns: None };
        }
    }

    /// Writes a piece of an answer.
    fn put(&mut self, part: Part) {
        let bytes = part.body_bytes();
        let Part { head, body, tail, end } = part;
        if let Some((status, fields)) = head {
            self.put_head(status, &fields, end.then_some(bytes));
        }
        let Manner { without_body, .. } = self.manner;
        let out = &mut self.output.inline;
        if bytes > 0 && !without_body {
            if self.chunked {
                out.extend_from_slice(format!("{bytes:x}\r\n").as_bytes());
            }
            out.extend_from_slice(&body);
            if tail.len() >= REFERENCE_BYTES_MIN {
                self.output.push_large(tail);
            } else {
                out.extend_from_slice(&tail);
            }
            if self.chunked {
                self.output.inline.extend_from_slice(b"\r\n");
            }
        }
        if end && self.chunked {
            self.chunked = false;
            if !without_body {
                self.output.inline.extend_from_slice(b"0\r\n\r\n");
            }
        }
    }

    /// Writes the head of an answer whose body has so many bytes, or is not known to the end.
    fn put_head(&mut self, status: u16, fields: &crate::h2::Fields, body_bytes: Option<usize>) {
        let mut first = String::with_capacity(64);
        head::put_status(status, &mut first);
        let out = &mut self.output.inline;
        out.extend_from_slice(first.as_bytes());
        let mut line = |name: &[u8], value: &[u8]| {
            out.extend_from_slice(name);
            out.extend_from_slice(b": ");
            // Nothing that a caller has a hand in may begin a line of its own.
            out.extend(value.iter().map(|&byte| if byte.is_ascii_control() { b' ' } else { byte }));
            out.extend_from_slice(b"\r\n");
        };
        fields.iter().for_each(|(name, value)| line(name, value));
        match body_bytes {
            // RFC 9110, section 8.6: not with 204.
            Some(_) if status == 204 => {}
            Some(bytes) => line(b"content-length", bytes.to_string().as_bytes()),
            None if self.manner.without_chunks => self.manner.close = true,
            None => {
                line(b"transfer-encoding", b"chunked");
                self.chunked = true;
            }
        }
        if self.manner.close {
            line(b"connection", b"close");
        }
        out.extend_from_slice(b"\r\n");
    }

    fn close(&mut self, reason: CloseReason) {
        if !self.is_closed() {
            self.state = State::Closed(reason);
        }
        self.input = BytesMut::new();
    }

    /// The running call, if it is that one.
    fn exchange(&mut self, stream: StreamId) -> Option<&mut Exchange> {
        match &mut self.state {
            State::Call(exchange) if stream.number() == self.number => Some(exchange),
            _ => None,
        }
    }

    /// Answers a call with one message and status OK. False when the call is gone.
    pub fn respond(
        &mut self,
        stream: StreamId,
        message: Message<'_>,
        trailers: &[(&str, &[u8])],
    ) -> bool {
        let schema = self.web.schema;
        let Some(exchange) = self.exchange(stream) else { return false };
        let part = exchange.respond(&schema, message, trailers);
        // What could not be put into the caller's format has failed after all.
        let status = part.head.as_ref().map_or(200, |(status, _)| *status);
        self.count_answered(status);
        self.count_sent();
        self.put_last(part);
        true
    }

    /// Ends a call that has failed. False when the call is gone.
    pub fn fail(&mut self, stream: StreamId, status: &Status<'_>) -> bool {
        let schema = self.web.schema;
        let Some(exchange) = self.exchange(stream) else { return false };
        let part = exchange.fail(&schema, status);
        self.counts.streams_failed += 1;
        self.put_last(part);
        true
    }

    /// Writes one message of a streamed answer. `Ok(false)`: it was taken, but wait for `Writable` before the next.
    pub fn send_message(
        &mut self,
        stream: StreamId,
        message: Message<'_>,
    ) -> Result<bool, SendError> {
        self.try_send(stream, &message)
    }

    /// The same for a message that the caller keeps until it was taken.
    pub(crate) fn try_send(
        &mut self,
        stream: StreamId,
        message: &Message<'_>,
    ) -> Result<bool, SendError> {
        let schema = self.web.schema;
        let queue_bytes_max = self.limits.queue_bytes_max as usize;
        let queued = self.output.len();
        let Some(exchange) = self.exchange(stream) else { return Err(SendError::Closed) };
        if PREFIX_BYTES + message.len() > queue_bytes_max {
            let message = "a message too large to be queued";
            self.fail(stream, &Status::new(Code::ResourceExhausted, message));
            return Err(SendError::Closed);
        }
        if queued + PREFIX_BYTES + message.len() > queue_bytes_max {
            self.room_wanted = true;
            return Err(SendError::QueueFull);
        }
        let part = exchange.send(&schema, message);
        if part.end {
            self.counts.streams_failed += 1;
            self.put_last(part);
            return Err(SendError::Closed);
        }
        self.put(part);
        self.count_sent();
        let room = self.is_writable(stream);
        if !room && !std::mem::replace(&mut self.room_wanted, true) {
            self.refusals.count(Refusal::StreamQueue);
        }
        Ok(room)
    }

    /// Ends a streaming answer with status OK. False when the call is gone.
    pub fn finish(&mut self, stream: StreamId, trailers: &[(&str, &[u8])]) -> bool {
        let schema = self.web.schema;
        let Some(exchange) = self.exchange(stream) else { return false };
        let part = exchange.finish(&schema, trailers);
        self.counts.streams_succeeded += 1;
        self.put_last(part);
        true
    }

    /// Whether a call can still be answered.
    pub fn is_open(&self, stream: StreamId) -> bool {
        matches!(self.state, State::Call(_)) && stream.number() == self.number
    }

    /// Whether a stream has room for another message; if not, `Writable` will say when.
    pub fn is_writable(&self, stream: StreamId) -> bool {
        self.is_open(stream) && self.output.len() < self.limits.stream_queue_bytes as usize
    }

    /// Nobody will answer this call any more.
    pub fn abandon(&mut self, stream: StreamId) {
        // A client that has a part of the answer has to see that it is not whole.
        self.manner.close |= self.exchange(stream).is_some();
        self.fail(stream, &Status::new(Code::Internal, "the call was given up"));
    }

    /// What is to be written next.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Takes all that is to be written in exchange for another output, which is emptied.
    pub fn swap_output(&mut self, output: &mut Output) {
        output.clear();
        std::mem::swap(&mut self.output, output);
        if std::mem::take(&mut self.room_wanted) && matches!(self.state, State::Call(_)) {
            self.events.push_back(Event::Writable { stream: self.stream() });
        }
    }

    /// Ends the connection after the request that is going on.
    pub fn drain(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.draining = true;
        self.manner.close = true;
        if matches!(self.state, State::Head { .. }) && self.input.is_empty() {
            self.close(CloseReason::Done);
        }
    }

    /// The socket has ended or failed: a call that was shown gets `Cancelled`.
    pub fn lost(&mut self) {
        if matches!(self.state, State::Call(_)) {
            self.events.push_back(Event::Cancelled { stream: self.stream() });
        }
        self.count_cut_off();
        self.close(CloseReason::Lost);
    }

    /// When to call `handle_timeout`, in the clock of `now_ns`.
    pub fn poll_timeout(&self) -> Option<u64> {
        match &self.state {
            State::Head { since_ns: None } => {
                Some(self.idle_ns.saturating_add(self.limits.idle_timeout_ns))
            }
            State::Head { since_ns: Some(since_ns) } => {
                Some(since_ns.saturating_add(self.limits.headers_timeout_ns))
            }
            State::Body(reading) => {
                let bytes = u32::try_from(reading.bytes).unwrap_or(u32::MAX);
                Some(self.limits.slow_writer_min.due_ns(reading.since_ns, bytes))
            }
            State::Call(_) | State::Closed(_) => None,
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        if self.poll_timeout().is_none_or(|due_ns| now_ns < due_ns) {
            return;
        }
        let kind = match self.state {
            State::Head { since_ns: None } => Refusal::IdleTime,
            State::Head { .. } => Refusal::HeaderTime,
            _ => Refusal::SlowWriter,
        };
        if kind == Refusal::IdleTime {
            self.refusals.count(kind);
            return self.close(CloseReason::Done);
        }
        self.refuse(Refused(408, "the request did not come in time"), kind);
    }

    /// What was refused or cut off since the last time, by kind.
    pub fn take_refusals(&mut self, each: impl FnMut(Refusal, u32)) {
        self.refusals.take(each);
    }

    /// Ends the connection for a limit that its driver keeps.
    pub fn cut_off(&mut self, kind: Refusal, reason: &'static str) {
        self.refusals.count(kind);
        if matches!(self.state, State::Call(_)) {
            self.events.push_back(Event::Cancelled { stream: self.stream() });
        }
        self.count_cut_off();
        self.close(CloseReason::Error(ErrorCode::ENHANCE_YOUR_CALM, reason));
    }

    /// Bytes that it holds: of requests that are not answered, and of answers that wait.
    pub fn buffered_bytes(&self) -> usize {
        let held = match &self.state {
            State::Body(reading) => match &reading.purpose {
                Purpose::Call(exchange, _) => exchange.held_bytes(),
                Purpose::Discard(part) => part.body_bytes(),
            },
            _ => 0,
        };
        held + self.input.len() + self.output.len()
    }

    /// What has passed since the start.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether the socket is to be closed once the output is written.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed(_))
    }

    /// Why it has ended.
    pub fn close_reason(&self) -> Option<CloseReason> {
        match self.state {
            State::Closed(reason) => Some(reason),
            _ => None,
        }
    }

    /// Requests that have begun and are not answered: one at most.
    pub fn open_streams(&self) -> usize {
        usize::from(matches!(self.state, State::Body(_) | State::Call(_)))
    }
}
