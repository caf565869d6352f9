//! The server's end of a gRPC connection.
//!
//! Use, per turn of the driver: `receive` what was read, `poll_event` until it returns `None`, answering as the answers come,
//! then `swap_output` and write it. Poll again after `swap_output`: the room in the output may have made streams writable.
//! Unary and server-streaming calls appear as one `Event::Request` once their message is there; in the steady state such a
//! call and its answer allocate nothing. No input makes it panic, and nothing it keeps is without a bound in `Limits`.

use super::compress::{self, ACCEPTED, Compressing, InflateError};
use super::counts::Counts;
use super::head::{CONTENT_TYPE, CONTENT_TYPE_GRPC, CachedBlock, ContentType, GRPC_STATUS};
use super::message::{Deframer, FramingError, PREFIX_BYTES, unshare};
use super::request::{Event, HeadSink, RequestHead, RouteFn};
use super::status::{Code, Status, percent_encode};
use crate::h2::connection::{Connection, Incoming, Role};
use crate::h2::hpack::{Indexing, encode::literal};
use crate::h2::stream::Recycle;
use crate::h2::{CloseReason, ErrorCode, Limits, Output, Refusal, StreamId};
use crate::web::Web;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::rc::Rc;

mod answer;
mod web;

/// What is kept per stream.
#[derive(Debug, Default)]
struct Call {
    route: u32,
    client_streaming: bool,
    /// Asked by a browser, or whoever else does not speak gRPC; whether with POST.
    not_grpc: Option<bool>,
    /// The caller knows of it.
    shown: bool,
    /// Its answer is complete, though some of it may be queued.
    finished: bool,
    /// The client takes answers in gzip.
    accepts_gzip: bool,
    /// The head of the answer names gzip, or will when it is sent.
    announces_gzip: bool,
    compressing: Compressing,
    head: RequestHead,
    message: Option<Bytes>,
    message_compressed: bool,
    /// Bytes of `message` that count as gathered, while the end of its request has not come.
    held: usize,
    deframer: Deframer,
    /// Bytes handed out, prefixes included, and not yet released.
    unreleased: u32,
    /// It came by gRPC-Web or Connect.
    web: Option<Box<web::Held>>,
}

impl Recycle for Call {
    #[inline]
    fn recycle(&mut self) {
        self.client_streaming = false;
        self.not_grpc = None;
        self.shown = false;
        self.finished = false;
        self.unreleased = 0;
        self.held = 0;
        if self.web.is_some() {
            self.web = None;
        }
        if self.message.is_some() {
            self.message = None;
        }
        if !self.deframer.is_clean() {
            self.deframer = Deframer::default();
        }
        if !self.head.metadata.is_empty() {
            self.head = RequestHead::default();
        }
    }

    fn awaits_more(&self) -> bool {
        // A call that streams may be silent between its messages.
        !self.finished
            && if self.client_streaming { !self.deframer.is_clean() } else { !self.shown }
    }
}

/// One connection of a client.
pub struct ServerConnection {
    core: Connection<Call>,
    sink: HeadSink,
    events: VecDeque<Event>,
    ok_head: CachedBlock,
    ok_trailers: CachedBlock,
    /// Bytes claimed by messages that are being gathered.
    gathered: usize,
    /// Bytes that were decompressed since `resume`.
    inflated: usize,
    counts: Counts,
    scratch: Vec<u8>,
    /// For what is not gRPC.
    web: Option<Rc<Web>>,
}

/// Decompression of requests pauses after this many bytes, so that a connection cannot hold the others up with little. 4 MiB.
const INFLATE_BYTES_TURN: usize = 4 << 20;

impl ServerConnection {
    /// A connection that has just been accepted; nothing is sent before the client's preface.
    pub fn new(limits: &Limits, route_of: RouteFn, now_ns: u64) -> Self {
        Self::with_shared(limits.shared(), route_of, now_ns)
    }

    /// The same for one of many connections, which share what [`Limits::shared`] gave.
    pub fn with_shared(limits: Rc<Limits>, route_of: RouteFn, now_ns: u64) -> Self {
        Self {
            core: Connection::new(Role::Server, limits, now_ns),
            sink: HeadSink::new(route_of),
            events: VecDeque::new(),
            ok_head: CachedBlock::default(),
            ok_trailers: CachedBlock::default(),
            gathered: 0,
            inflated: 0,
            counts: Counts::default(),
            scratch: Vec::new(),
            web: None,
        }
    }

    /// Takes the whole frames from the front of `input`, as slices of it, and leaves the rest. Poll the events of an earlier
    /// call first: until then nothing is taken.
    pub fn receive(&mut self, input: &mut BytesMut, now_ns: u64) {
        self.core.accept(input, now_ns);
        self.inflated = 0;
    }

    /// Whether `poll_event` has stopped although there is more, because much was decompressed: let others have their turn, then
    /// `resume`.
    #[inline]
    pub fn is_paused(&self) -> bool {
        self.inflated >= INFLATE_BYTES_TURN
    }

    /// Goes on after a pause.
    pub fn resume(&mut self) {
        self.inflated = 0;
    }

    /// The next event, or `None` when everything received has been worked through.
    pub fn poll_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if self.is_paused() && !self.core.is_closed() {
                return None;
            }
            let Some(incoming) = self.core.poll(&mut self.sink) else {
                if self.core.is_closed() && self.core.streams.len() > 0 {
                    self.cancel_all();
                    continue;
                }
                return None;
            };
            let event = match incoming {
                Incoming::Head { stream, end, too_large } => self.head(stream, end, too_large),
                Incoming::Data { stream, payload, end } => self.data(stream, payload, end),
                Incoming::Trailers { stream } => self.data(stream, Bytes::new(), true),
                Incoming::Reset { stream, .. } => self.drop_call(stream),
                Incoming::Writable { stream } => Some(Event::Writable { stream }),
                Incoming::GoAway { .. } => None,
            };
            if event.is_some() {
                return event;
            }
        }
    }

    #[inline]
    fn head(&mut self, stream: StreamId, end: bool, too_large: bool) -> Option<Event> {
        self.counts.streams_started += 1;
        self.counts.last_stream_ns = self.core.now_ns;
        let facts = &self.sink.facts;
        let route = match facts.route {
            Some(route) if !too_large && facts.make_a_call() => route,
            _ => {
                let not_grpc = !too_large && facts.content_type == ContentType::Other;
                if !not_grpc || !self.begin_web(stream, end) {
                    self.refuse(stream, end, too_large);
                }
                return None;
            }
        };
        let compressing = match self.core.limits.compress_bytes_min {
            u32::MAX => Compressing::Never,
            _ => Compressing::WhereItPays,
        };
        let call = &mut self.core.streams.at(stream.slot()).app;
        call.route = route.id;
        call.client_streaming = route.client_streaming;
        call.deframer.set_encoding(facts.encoding);
        call.accepts_gzip = facts.accepts_gzip;
        call.compressing = compressing;
        call.announces_gzip = facts.accepts_gzip && compressing != Compressing::Never;
        let head = std::mem::take(&mut self.sink.head);
        if !route.client_streaming {
            call.head = head;
            if end {
                self.violation(stream, Code::Internal, "the request ended before its message");
            }
            return None;
        }
        call.shown = true;
        if end {
            self.events.push_back(Event::HalfClose { stream });
        }
        Some(Event::Open { stream, route: route.id, head })
    }

    /// Answers a request that cannot become a call.
    #[cold]
    fn refuse(&mut self, stream: StreamId, end: bool, too_large: bool) {
        let not_grpc = !too_large && self.sink.facts.content_type == ContentType::Other;
        if not_grpc && !end {
            // As with any HTTP server, the request is heard out.
            let call = &mut self.core.streams.at(stream.slot()).app;
            call.not_grpc = Some(self.sink.facts.post);
            return;
        }
        self.counts.streams_failed += 1;
        if not_grpc && !self.sink.facts.post {
            return self.refuse_in_text(stream);
        }
        let (status, code, message) = if too_large {
            ("431", Code::ResourceExhausted, "request headers too large".to_string())
        } else if !self.sink.facts.post {
            ("405", Code::Internal, "gRPC requests are POSTs".to_string())
        } else if self.sink.facts.content_type == ContentType::Other {
            ("415", Code::Internal, "the content-type has to be application/grpc".to_string())
        } else if self.sink.facts.content_type == ContentType::OtherMessages {
            let text = "messages have to be protobuf: application/grpc or application/grpc+proto";
            ("200", Code::Unimplemented, text.to_string())
        } else if !self.sink.facts.te {
            let text = "te: trailers is missing: a proxy on the way may not pass trailers on";
            ("200", Code::Internal, text.to_string())
        } else if !self.sink.facts.timeout_ok {
            ("200", Code::Internal, "malformed grpc-timeout".to_string())
        } else {
            let path = String::from_utf8_lossy(&self.sink.unknown_path);
            ("200", Code::Unimplemented, format!("unknown method {path}"))
        };
        self.core.put_block(stream.number(), true, |encoder, out| {
            encoder.field(out, b":status", status.as_bytes(), Indexing::Plain);
            encoder.field(out, CONTENT_TYPE, CONTENT_TYPE_GRPC, Indexing::Index);
            if status == "405" {
                literal(out, b"allow", b"POST");
            }
            literal(out, GRPC_STATUS, code.digits().as_bytes());
            let mut text = Vec::new();
            percent_encode(&message, 1024, &mut text);
            literal(out, b"grpc-message", &text);
        });
        self.core.streams.at(stream.slot()).app.finished = true;
        self.core.end_local(stream.slot());
    }

    /// Answers a browser, or whoever else does not speak gRPC.
    #[cold]
    fn refuse_in_text(&mut self, stream: StreamId) {
        const TEXT: &[u8] = b"gRPC requests are POSTs: use a gRPC client, or grpcurl.\n";
        self.core.put_block(stream.number(), false, |encoder, out| {
            encoder.field(out, b":status", b"405", Indexing::Plain);
            literal(out, CONTENT_TYPE, b"text/plain; charset=utf-8");
            literal(out, b"allow", b"POST");
        });
        let entry = self.core.streams.at(stream.slot());
        entry.headers_sent = true;
        entry.app.finished = true;
        if !self.core.send_data(stream.slot(), b"", TEXT, &Bytes::new(), true) {
            self.core.end_data(stream.slot());
        }
    }

    #[inline]
    fn data(&mut self, stream: StreamId, mut payload: Bytes, end: bool) -> Option<Event> {
        let Limits { message_bytes_max: max, gather_bytes_max: gather, .. } = *self.core.limits;
        let payload_bytes = payload.len() as u32;
        let entry = self.core.streams.at(stream.slot());
        let call = &mut entry.app;
        if call.finished || call.not_grpc.is_some() {
            let not_grpc = call.not_grpc.take_if(|_| end);
            self.core.release(stream, payload_bytes);
            if let Some(post) = not_grpc {
                let facts = &mut self.sink.facts;
                (facts.content_type, facts.post) = (ContentType::Other, post);
                self.refuse(stream, true, false);
            }
            return None;
        }
        if call.client_streaming {
            return self.stream_data(stream, payload, end);
        }
        if call.web.is_some() {
            return self.web_data(stream, payload, end);
        }
        loop {
            match call.deframer.next(&mut payload, max, &mut self.gathered, gather as usize) {
                Ok(Some(message)) if call.message.is_none() => {
                    call.message = Some(message);
                    call.message_compressed = call.deframer.was_compressed();
                    self.counts.messages_received += 1;
                    self.counts.last_received_ns = self.core.now_ns;
                }
                Ok(Some(_)) => {
                    self.core.release(stream, payload_bytes);
                    self.violation(stream, Code::Internal, "more than one request message");
                    return None;
                }
                Ok(None) => break,
                Err(error) => {
                    self.core.release(stream, payload_bytes);
                    self.framing_error(stream, error);
                    return None;
                }
            }
        }
        let event = if !end {
            if call.message.is_some() && call.held == 0 && !self.hold(stream) {
                self.framing_error(stream, FramingError::NoRoom);
            }
            None
        } else if !call.deframer.is_clean() {
            self.violation(stream, Code::Internal, "the request ended inside a message");
            None
        } else if let Some(message) = call.message.take() {
            self.gathered -= std::mem::take(&mut call.held);
            if call.message_compressed {
                self.core.release(stream, payload_bytes);
                return self.inflate_request(stream, &message);
            }
            call.shown = true;
            let head = std::mem::take(&mut call.head);
            Some(Event::Request { stream, route: call.route, head, message })
        } else {
            self.violation(stream, Code::Internal, "the request ended before its message");
            None
        };
        self.core.release(stream, payload_bytes);
        event
    }

    /// The request of a unary call, which came compressed.
    #[cold]
    fn inflate_request(&mut self, stream: StreamId, message: &[u8]) -> Option<Event> {
        let max = self.core.limits.message_bytes_max as usize;
        match compress::inflate(message, max) {
            Ok(message) => {
                self.inflated += message.len();
                let call = &mut self.core.streams.at(stream.slot()).app;
                call.shown = true;
                let mut head = std::mem::take(&mut call.head);
                head.compressed = true;
                Some(Event::Request { stream, route: call.route, head, message })
            }
            Err(error) => {
                // What a bomb has cost counts as well.
                self.inflated += if error == InflateError::TooLarge { message.len() } else { max };
                self.fail_inflate(stream, error);
                None
            }
        }
    }

    /// Ends a call of which a message could not be decompressed.
    #[cold]
    pub fn fail_inflate(&mut self, stream: StreamId, error: InflateError) {
        let max = self.core.limits.message_bytes_max;
        match error {
            InflateError::TooLarge => {
                self.core.refusals.count(Refusal::MessageSize);
                let message = format!("a message larger than {max} bytes once decompressed");
                self.violation(stream, Code::ResourceExhausted, &message);
            }
            InflateError::Malformed => {
                self.violation(stream, Code::Internal, "a compressed message is not valid gzip");
            }
        }
    }

    /// A message whose request has not ended: it counts until then, and must not keep its whole read buffer.
    #[cold]
    fn hold(&mut self, stream: StreamId) -> bool {
        let call = &mut self.core.streams.at(stream.slot()).app;
        let Some(message) = &mut call.message else { return true };
        if self.gathered + message.len() > self.core.limits.gather_bytes_max as usize {
            return false;
        }
        unshare(message);
        call.held = message.len();
        self.gathered += call.held;
        true
    }

    fn stream_data(&mut self, stream: StreamId, mut payload: Bytes, end: bool) -> Option<Event> {
        let Limits { message_bytes_max: max, gather_bytes_max: gather, .. } = *self.core.limits;
        let payload_bytes = payload.len() as u32;
        let mut held = 0;
        let call = &mut self.core.streams.at(stream.slot()).app;
        let fault = loop {
            match call.deframer.next(&mut payload, max, &mut self.gathered, gather as usize) {
                Ok(Some(message)) => {
                    held += (PREFIX_BYTES + message.len()) as u32;
                    self.counts.messages_received += 1;
                    self.counts.last_received_ns = self.core.now_ns;
                    let compressed = call.deframer.was_compressed();
                    self.events.push_back(Event::Message { stream, message, compressed });
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        call.unreleased += held;
        let cut = end && !call.deframer.is_clean();
        // What is being gathered leaves the window open, so that a message may be larger than it; handed out, it counts.
        match payload_bytes.checked_sub(held) {
            Some(rest) => self.core.release(stream, rest),
            None => self.core.withhold(stream, held - payload_bytes),
        }
        if let Some(error) = fault {
            self.framing_error(stream, error);
            self.events.push_back(Event::Cancelled { stream });
        } else if cut {
            self.violation(stream, Code::Internal, "the request ended inside a message");
            self.events.push_back(Event::Cancelled { stream });
        } else if end {
            self.events.push_back(Event::HalfClose { stream });
        }
        self.events.pop_front()
    }

    #[cold]
    fn framing_error(&mut self, stream: StreamId, error: FramingError) {
        let max = self.core.limits.message_bytes_max;
        match error {
            FramingError::TooLarge(_) => self.core.refusals.count(Refusal::MessageSize),
            FramingError::NoRoom => self.core.refusals.count(Refusal::Gathered),
            _ => {}
        }
        match error {
            FramingError::TooLarge(bytes) => {
                let message = format!("message of {bytes} bytes, the limit is {max}");
                self.violation(stream, Code::ResourceExhausted, &message);
            }
            FramingError::NoRoom => self.violation(
                stream,
                Code::ResourceExhausted,
                "too many large messages at once on this connection",
            ),
            FramingError::BadFlag => {
                self.violation(stream, Code::Internal, "invalid compressed flag of a message");
            }
            FramingError::NotAnnounced => {
                let message = "a compressed message without grpc-encoding";
                self.violation(stream, Code::Internal, message);
            }
            FramingError::UnknownEncoding => {
                self.fail(
                    stream,
                    &Status {
                        code: Code::Unimplemented,
                        message: "messages can be compressed with gzip and with nothing else",
                        details: &[],
                        trailers: &[("grpc-accept-encoding", ACCEPTED)],
                    },
                );
            }
        }
    }

    #[cold]
    fn violation(&mut self, stream: StreamId, code: Code, message: &str) {
        self.fail(stream, &Status::new(code, message));
    }

    /// Takes a call that has ended before its answer out of the table.
    #[cold]
    fn drop_call(&mut self, stream: StreamId) -> Option<Event> {
        let call = &self.core.streams.at(stream.slot()).app;
        let tell = call.shown && !call.finished;
        self.counts.streams_failed += u64::from(!call.finished);
        self.finish_call(stream);
        self.core.forget(stream.slot());
        tell.then_some(Event::Cancelled { stream })
    }

    /// The answer of a call is complete: what still comes of its request is thrown away.
    #[inline]
    fn finish_call(&mut self, stream: StreamId) {
        let call = &mut self.core.streams.at(stream.slot()).app;
        call.finished = true;
        if let Some(held) = call.web.take() {
            self.gathered -= held.bytes();
        }
        if call.message.is_some() {
            call.message = None;
        }
        self.gathered -= std::mem::take(&mut call.held);
        let claim = call.deframer.gathered_claim();
        let unreleased = std::mem::take(&mut call.unreleased);
        if claim > 0 {
            call.deframer = Deframer::default();
            self.gathered -= claim;
        }
        if unreleased > 0 {
            self.core.release(stream, unreleased);
        }
    }

    #[cold]
    fn cancel_all(&mut self) {
        let live: Vec<usize> = self.core.streams.live().collect();
        for slot in live {
            let stream = self.core.streams.id(slot);
            let event = self.drop_call(stream);
            self.events.extend(event);
        }
    }

    /// Whether a call can still be answered.
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.answerable(stream)
    }

    /// The stream, if it can still be answered.
    #[inline]
    fn answerable(&self, stream: StreamId) -> bool {
        !self.core.is_closed()
            && self.core.streams.get(stream).is_some_and(|entry| !entry.app.finished)
    }

    /// Whether an answerable stream is not gRPC's.
    #[inline]
    fn is_web(&mut self, stream: StreamId) -> bool {
        self.core.streams.at(stream.slot()).app.web.is_some()
    }

    /// A message of that many bytes of a client-streaming call has been consumed: the client may send as much more.
    pub fn release(&mut self, stream: StreamId, bytes: usize) {
        let Some(entry) = self.core.streams.get_mut(stream) else { return };
        let bytes = (bytes + PREFIX_BYTES).min(entry.app.unreleased as usize) as u32;
        entry.app.unreleased -= bytes;
        if bytes > 0 {
            self.core.release(stream, bytes);
        }
    }

    /// Nobody will answer this call any more: breaks it off unless its answer is complete.
    pub fn abandon(&mut self, stream: StreamId) {
        if self.answerable(stream) {
            self.reset(stream, ErrorCode::INTERNAL_ERROR);
        }
    }

    /// Breaks a call off with RST_STREAM. No event follows.
    pub fn reset(&mut self, stream: StreamId, code: ErrorCode) {
        if let Some(entry) = self.core.streams.get(stream) {
            self.counts.streams_failed += u64::from(!entry.app.finished);
            self.finish_call(stream);
            self.core.reset(stream, code);
        }
    }

    /// What is to be written next.
    #[inline]
    pub fn output(&mut self) -> &Output {
        self.core.pump();
        &self.core.output
    }

    /// Takes a buffer for what is to be written, if it has none.
    #[inline]
    pub(crate) fn lend(&mut self, buffer: impl FnOnce() -> Output) {
        if self.core.output.inline.capacity() == 0 {
            self.core.output = buffer();
        }
    }

    /// Takes all that is to be written in exchange for another output, which is emptied. Two of them take turns.
    #[inline]
    pub fn swap_output(&mut self, output: &mut Output) {
        self.core.swap_output(output);
    }

    /// Gives back what calls have left behind; false, and nothing is, while calls are open. For connections that are idle.
    pub fn shrink(&mut self) -> bool {
        let shrunk = self.events.is_empty() && self.core.shrink();
        if shrunk {
            self.events = VecDeque::new();
            self.scratch = Vec::new();
        }
        shrunk
    }

    /// Begins to drain: no new streams after a round trip, then the end once the open ones are done.
    pub fn drain(&mut self, now_ns: u64) {
        self.core.drain(now_ns);
    }

    /// The socket has ended or failed: calls that were shown get `Cancelled`.
    pub fn lost(&mut self) {
        self.core.close(CloseReason::Lost);
    }

    /// When to call `handle_timeout`, in the clock of `now_ns`.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.core.poll_timeout()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now_ns: u64) {
        self.core.handle_timeout(now_ns);
    }

    /// Whether the socket is to be closed once the output is written. Poll the events to the end first.
    pub fn is_closed(&self) -> bool {
        self.core.is_closed()
    }

    /// Why it has ended.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.core.close_reason()
    }

    /// What was refused or cut off since the last time, by kind.
    pub fn take_refusals(&mut self, each: impl FnMut(Refusal, u32)) {
        self.core.refusals.take(each);
    }

    /// Ends the connection for a limit that its driver keeps.
    pub fn cut_off(&mut self, kind: Refusal, reason: &'static str) {
        // gRPC's clients take the one for RESOURCE_EXHAUSTED, the other for PERMISSION_DENIED.
        let code = match kind {
            Refusal::Revoked => ErrorCode::INADEQUATE_SECURITY,
            _ => ErrorCode::ENHANCE_YOUR_CALM,
        };
        self.core.cut_off(kind, code, reason);
    }

    /// Bytes that it holds: of messages that are being gathered or wait for their end, and of answers that wait.
    pub fn buffered_bytes(&self) -> usize {
        self.gathered + self.core.queue_bytes + self.core.output.len()
    }

    /// What has passed since the start.
    #[inline]
    pub fn counts(&self) -> Counts {
        Counts { keepalives_sent: self.core.keepalive.asked_count(), ..self.counts }
    }

    /// Streams that are open.
    pub fn open_streams(&self) -> usize {
        self.core.streams.len()
    }

    /// Bytes of answers that wait for the client's windows.
    pub fn queued_bytes(&self) -> usize {
        self.core.queue_bytes
    }
}
