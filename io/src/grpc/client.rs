//! The client's end of a gRPC connection.
//!
//! Use, per turn of the driver: `receive` what was read, `poll_event` until it returns `None`, start calls, then `swap_output`
//! and write it. Every call that was started ends with exactly one `Finished`, whatever happens to the connection. The head
//! of a repeated call is a few bytes, and a unary call allocates nothing in the steady state.

use super::answer::AnswerSink;
use super::compress::{self, ACCEPTED, Encoding, GZIP};
use super::head::{CONTENT_TYPE, CONTENT_TYPE_GRPC, CachedBlock, GRPC_ENCODING, custom_fields};
use super::message::{Deframer, FramingError, Message, PREFIX_BYTES, SendError, prefix};
use super::metadata::Metadata;
use super::status::Code;
use super::timeout;
use crate::h2::connection::{Connection, Incoming, Role, Sink};
use crate::h2::frame::STREAM_ID_MAX;
use crate::h2::hpack::{Encoder, Indexing, encode::literal};
use crate::h2::stream::Recycle;
use crate::h2::{CloseReason, ErrorCode, Limits, Output, StreamId};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::time::Duration;

/// Why a call could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// The server allows no more at once; wait for one to finish.
    Streams,
    /// `Limits::queue_bytes_max` is reached on this connection.
    Queue,
    /// The connection has ended or is about to: use another.
    Leaving,
}

/// How a call has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// `grpc-status`, or what stands for it.
    pub code: Code,
    /// `grpc-message`, decoded, or a description of what went wrong on the way.
    pub message: String,
    /// `grpc-status-details-bin`, decoded.
    pub details: Vec<u8>,
    /// Custom trailers.
    pub trailers: Metadata,
    /// The server has certainly not processed the call: it can be repeated without harm.
    pub unprocessed: bool,
}

impl Default for Finished {
    /// An end of which nothing is known: `Code::Unknown`.
    fn default() -> Self {
        Self {
            code: Code::Unknown,
            message: String::new(),
            details: Vec::new(),
            trailers: Metadata::new(),
            unprocessed: false,
        }
    }
}

impl Finished {
    fn local(code: Code, message: &str) -> Self {
        Self { code, message: message.to_string(), ..Self::default() }
    }
}

/// One thing that has happened on a connection.
#[derive(Debug)]
pub enum ClientEvent {
    /// The head of the answer (not of one that consists of trailers alone).
    Headers {
        /// Whose.
        stream: StreamId,
        /// Custom metadata.
        metadata: Metadata,
    },
    /// A message of the answer. For calls begun with `start`, give its window back with `release`.
    Message {
        /// Whose.
        stream: StreamId,
        /// The message as it came.
        message: Bytes,
        /// It is still compressed, so that no more than one has to be held plain: to be given to [`compress::inflate`] when it
        /// is consumed. Only after `accept_compressed`.
        compressed: bool,
    },
    /// The call is over; its handle is dead.
    Finished {
        /// Which.
        stream: StreamId,
        /// How.
        finished: Finished,
    },
    /// A stream on which `send_message` said stop has room again.
    Writable {
        /// Which.
        stream: StreamId,
    },
}

/// What is kept per stream.
#[derive(Debug, Default)]
struct Call {
    /// Started by `call`: messages are released as they are handed out.
    unary: bool,
    /// Its messages are counted and thrown away.
    discards: bool,
    /// Why the answer will be refused in the end, although it goes on.
    not_grpc: Option<u16>,
    deframer: Deframer,
    unreleased: u32,
}

impl Recycle for Call {
    #[inline]
    fn recycle(&mut self) {
        self.unary = false;
        self.discards = false;
        self.not_grpc = None;
        self.unreleased = 0;
        if !self.deframer.is_clean() {
            self.deframer = Deframer::default();
        }
    }
}

/// The head of calls to one path.
struct PathBlock {
    path: Box<[u8]>,
    block: CachedBlock,
}

/// Paths whose heads are kept ready.
const PATHS_CACHED_MAX: usize = 32;

/// One connection to a server.
pub struct ClientConnection {
    core: Connection<Call>,
    sink: AnswerSink,
    /// Messages of the piece of DATA that came last, with whether they are compressed; they come before `events`.
    messages: VecDeque<(StreamId, Bytes, bool)>,
    events: VecDeque<ClientEvent>,
    discarded: u64,
    scheme: &'static [u8],
    authority: Box<[u8]>,
    user_agent: Box<[u8]>,
    paths: Vec<PathBlock>,
    next_path: usize,
    gathered: usize,
    accepts_gzip: bool,
    /// Requests from this size on are compressed where that makes them smaller.
    compress_bytes_min: Option<usize>,
    scratch: Vec<u8>,
}

impl ClientConnection {
    /// A connection that has just been made; the preface is in the output. `authority` is the host and port of the server.
    pub fn new(limits: &Limits, authority: &str, now_ns: u64) -> Self {
        Self {
            core: Connection::new(Role::Client, limits.shared(), now_ns),
            sink: AnswerSink::default(),
            messages: VecDeque::new(),
            events: VecDeque::new(),
            discarded: 0,
            scheme: b"http",
            authority: authority.as_bytes().into(),
            user_agent: concat!("prism/", env!("CARGO_PKG_VERSION")).as_bytes().into(),
            paths: Vec::new(),
            next_path: 0,
            gathered: 0,
            accepts_gzip: false,
            compress_bytes_min: None,
            scratch: Vec::new(),
        }
    }

    /// Says in requests that they come by TLS. To be called before the first call.
    pub fn over_tls(&mut self) {
        self.scheme = b"https";
        self.paths.clear();
    }

    /// Tells the server that answers may come compressed; without it they may not. To be called before the first call.
    pub fn accept_compressed(&mut self) {
        self.accepts_gzip = true;
        self.paths.clear();
    }

    /// Compresses requests of at least `bytes_min` bytes from now on, where that makes them smaller. The server has to know gzip;
    /// Prism's does.
    pub fn compress_requests(&mut self, bytes_min: usize) {
        self.compress_bytes_min = Some(bytes_min);
        self.paths.clear();
    }

    /// How many more calls the server allows right now.
    pub fn room(&self) -> usize {
        if self.is_leaving() {
            return 0;
        }
        (self.core.peer.streams_max as usize).saturating_sub(self.core.streams.len())
    }

    /// Whether no more calls can be started here: it has ended, the server said good-bye, or the stream numbers are used up.
    pub fn is_leaving(&self) -> bool {
        self.core.is_closed()
            || self.core.peer_goaway.is_some()
            || self.core.next_local_stream > STREAM_ID_MAX
    }

    /// A whole call with one message: head, message and end in one go.
    pub fn call(
        &mut self,
        path: &[u8],
        message: Message<'_>,
        metadata: &[(&str, &[u8])],
        timeout: Option<Duration>,
    ) -> Result<StreamId, Busy> {
        if !self.core.queue_has_room(PREFIX_BYTES + message.len()) {
            return Err(Busy::Queue);
        }
        let stream = self.start(path, metadata, timeout)?;
        self.core.streams.at(stream.slot()).app.unary = true;
        self.put_message(stream.slot(), message, true);
        Ok(stream)
    }

    /// Begins a call; `path` is `/package.Service/Method`, names of metadata are in lower case.
    pub fn start(
        &mut self,
        path: &[u8],
        metadata: &[(&str, &[u8])],
        timeout: Option<Duration>,
    ) -> Result<StreamId, Busy> {
        if self.is_leaving() {
            return Err(Busy::Leaving);
        }
        if self.core.streams.len() >= self.core.peer.streams_max as usize {
            return Err(Busy::Streams);
        }
        let number = self.core.next_local_stream;
        self.core.next_local_stream += 2;
        let slot = self.core.open(number);
        self.core.streams.at(slot).headers_sent = true;
        let at = self.path_block(path);
        let cache = &mut self.paths[at].block;
        let (scheme, authority, user_agent) = (self.scheme, &self.authority, &self.user_agent);
        let (accepts_gzip, sends_gzip) = (self.accepts_gzip, self.compress_bytes_min.is_some());
        let scratch = &mut self.scratch;
        self.core.put_block(number, false, |encoder, out| {
            cache.put(encoder, out, |encoder, out| {
                encoder.field(out, b":method", b"POST", Indexing::Index);
                encoder.field(out, b":scheme", scheme, Indexing::Index);
                encoder.field(out, b":path", path, Indexing::Index);
                encoder.field(out, b":authority", authority, Indexing::Index);
                encoder.field(out, b"te", b"trailers", Indexing::Index);
                encoder.field(out, CONTENT_TYPE, CONTENT_TYPE_GRPC, Indexing::Index);
                encoder.field(out, b"user-agent", user_agent, Indexing::Index);
                if sends_gzip {
                    encoder.field(out, GRPC_ENCODING, GZIP, Indexing::Index);
                }
                if accepts_gzip {
                    encoder.field(out, b"grpc-accept-encoding", ACCEPTED, Indexing::Index);
                }
            });
            if let Some(timeout) = timeout {
                scratch.clear();
                timeout::write(timeout, scratch);
                literal(out, b"grpc-timeout", scratch);
            }
            put_metadata(encoder, out, metadata, scratch);
        });
        Ok(self.core.streams.id(slot))
    }

    fn path_block(&mut self, path: &[u8]) -> usize {
        if let Some(at) = self.paths.iter().position(|known| *known.path == *path) {
            return at;
        }
        let new = PathBlock { path: path.into(), block: CachedBlock::default() };
        if self.paths.len() < PATHS_CACHED_MAX {
            self.paths.push(new);
            return self.paths.len() - 1;
        }
        self.next_path = (self.next_path + 1) % PATHS_CACHED_MAX;
        self.paths[self.next_path] = new;
        self.next_path
    }

    /// The stream, if we may still send on it.
    fn sendable(&self, stream: StreamId) -> bool {
        use crate::h2::stream::Ending;
        !self.core.is_closed()
            && self
                .core
                .streams
                .get(stream)
                .is_some_and(|entry| !entry.local_closed && matches!(entry.ending, Ending::Open))
    }

    /// Sends or queues one message. `Ok(false)`: it was taken, but wait for `Writable` before the next.
    pub fn send_message(
        &mut self,
        stream: StreamId,
        message: Message<'_>,
    ) -> Result<bool, SendError> {
        if !self.sendable(stream) {
            return Err(SendError::Closed);
        }
        if !self.core.queue_has_room(PREFIX_BYTES + message.len()) {
            self.core.want_room(stream.slot());
            return Err(SendError::QueueFull);
        }
        self.put_message(stream.slot(), message, false);
        Ok(self.core.is_writable(stream.slot()))
    }

    #[inline]
    fn put_message(&mut self, slot: usize, message: Message<'_>, end: bool) {
        let deflated = match self.compress_bytes_min {
            Some(min) if message.len() >= min => {
                compress::deflate([message.head, &message.tail], message.len())
            }
            _ => None,
        };
        let taken = match deflated {
            None => self.core.send_data(slot, &message.prefix(), message.head, &message.tail, end),
            Some(tail) => {
                self.core.send_data(slot, &prefix(true, tail.len()), b"", &tail.into(), end)
            }
        };
        debug_assert!(taken);
    }

    /// No more messages will follow.
    pub fn half_close(&mut self, stream: StreamId) {
        if self.sendable(stream) {
            self.core.end_data(stream.slot());
        }
    }

    /// Has the messages of a call's answer counted and thrown away, for whoever only wants to know how fast they come. Their bytes
    /// go back to the server's window at once.
    pub fn discard(&mut self, stream: StreamId) {
        if let Some(entry) = self.core.streams.get_mut(stream) {
            entry.app.discards = true;
        }
    }

    /// Messages that were thrown away so far.
    pub fn discarded(&self) -> u64 {
        self.discarded
    }

    /// Messages of a call begun with `start` have been consumed: the server may send as many bytes more.
    pub fn release(&mut self, stream: StreamId, bytes: usize) {
        let Some(entry) = self.core.streams.get_mut(stream) else { return };
        let bytes = bytes.min(entry.app.unreleased as usize) as u32;
        entry.app.unreleased -= bytes;
        if bytes > 0 {
            self.core.release(stream, bytes);
        }
    }

    /// Gives a call up; it ends with `Finished` (CANCELLED).
    pub fn cancel(&mut self, stream: StreamId) {
        if self.core.streams.get(stream).is_some() {
            self.end(stream, Finished::local(Code::Cancelled, "cancelled by the caller"));
        }
    }

    /// Takes the whole frames from the front of `input`, as slices of it, and leaves the rest. Poll the events of an earlier
    /// call first: until then nothing is taken.
    pub fn receive(&mut self, input: &mut BytesMut, now_ns: u64) {
        self.core.accept(input, now_ns);
    }

    /// The next event, or `None` when everything received has been worked through.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        loop {
            // Far smaller than the other events, and many at a time.
            if let Some((stream, message, compressed)) = self.messages.pop_front() {
                return Some(ClientEvent::Message { stream, message, compressed });
            }
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let Some(incoming) = self.core.poll(&mut self.sink) else {
                if self.core.is_closed() && self.core.streams.len() > 0 {
                    self.end_all();
                    continue;
                }
                return None;
            };
            match incoming {
                Incoming::Head { stream, end, too_large } => self.head(stream, end, too_large),
                Incoming::Data { stream, payload, end } => self.data(stream, payload, end),
                Incoming::Trailers { stream } => self.trailers(stream),
                Incoming::Reset { stream, code } => {
                    self.forget(stream.slot());
                    let mut finished = Finished::local(
                        match code {
                            ErrorCode::REFUSED_STREAM => Code::Unavailable,
                            ErrorCode::CANCEL => Code::Cancelled,
                            ErrorCode::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
                            ErrorCode::INADEQUATE_SECURITY => Code::PermissionDenied,
                            _ => Code::Internal,
                        },
                        &format!("stream reset: {code:?}"),
                    );
                    finished.unprocessed = code == ErrorCode::REFUSED_STREAM;
                    self.events.push_back(ClientEvent::Finished { stream, finished });
                }
                Incoming::Writable { stream } => return Some(ClientEvent::Writable { stream }),
                Incoming::GoAway { last } => self.going_away(last),
            }
        }
    }

    #[inline]
    fn head(&mut self, stream: StreamId, end: bool, too_large: bool) {
        if too_large {
            let finished = Finished::local(Code::Internal, "response headers too large");
            self.end(stream, finished);
        } else if end {
            self.trailers(stream);
        } else {
            let call = &mut self.core.streams.at(stream.slot()).app;
            if self.sink.status != 200 || !self.sink.grpc {
                call.not_grpc = Some(self.sink.status);
            }
            call.deframer.set_encoding(match self.sink.encoding {
                Encoding::Gzip if !self.accepts_gzip => Encoding::Unknown,
                encoding => encoding,
            });
            let metadata = std::mem::take(&mut self.sink.metadata);
            self.events.push_back(ClientEvent::Headers { stream, metadata });
        }
    }

    #[inline]
    fn data(&mut self, stream: StreamId, mut payload: Bytes, end: bool) {
        let limits =
            (self.core.limits.message_bytes_max, self.core.limits.gather_bytes_max as usize);
        let payload_bytes = payload.len() as u32;
        let mut held = 0;
        let call = &mut self.core.streams.at(stream.slot()).app;
        if call.not_grpc.is_some() {
            self.core.release(stream, payload_bytes);
            if end {
                self.sink.begin(true);
                self.trailers(stream);
            }
            return;
        }
        let fault = loop {
            if call.discards {
                match call.deframer.skip(&mut payload, limits.0) {
                    Ok(count) => self.discarded += count,
                    Err(error) => break Some(error),
                }
            }
            let sliced = call.deframer.gathered_claim() == 0;
            match call.deframer.next(&mut payload, limits.0, &mut self.gathered, limits.1) {
                Ok(Some(_)) if call.discards => self.discarded += 1,
                Ok(Some(message)) => {
                    if sliced && !call.unary {
                        held += message.len() as u32;
                    }
                    let compressed = call.deframer.was_compressed();
                    self.messages.push_back((stream, message, compressed));
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        call.unreleased += held;
        self.core.release(stream, payload_bytes - held);
        if let Some(error) = fault {
            let finished = match error {
                FramingError::TooLarge(bytes) => Finished::local(
                    Code::ResourceExhausted,
                    &format!("message of {bytes} bytes, the limit is {}", limits.0),
                ),
                FramingError::NoRoom => {
                    Finished::local(Code::ResourceExhausted, "too many large messages at once")
                }
                FramingError::BadFlag => Finished::local(Code::Internal, "invalid message framing"),
                FramingError::NotAnnounced => {
                    Finished::local(Code::Internal, "a compressed message without grpc-encoding")
                }
                FramingError::UnknownEncoding => Finished::local(
                    Code::Internal,
                    "a message in an encoding that was not asked for",
                ),
            };
            self.end(stream, finished);
        } else if end {
            self.sink.begin(true);
            self.trailers(stream);
        }
    }

    /// The answer is complete; the sink holds its trailers.
    #[inline]
    fn trailers(&mut self, stream: StreamId) {
        let call = &self.core.streams.at(stream.slot()).app;
        let http_status = call.not_grpc.unwrap_or(self.sink.status);
        let finished = match self.sink.code {
            Some(_) if !call.deframer.is_clean() => {
                Finished::local(Code::Internal, "the response ended inside a message")
            }
            Some(code) => Finished {
                code,
                message: std::mem::take(&mut self.sink.message),
                details: std::mem::take(&mut self.sink.details),
                trailers: std::mem::take(&mut self.sink.metadata),
                unprocessed: false,
            },
            None if http_status != 0 && http_status != 200 => {
                Finished::local(Code::from_http(http_status), &format!("HTTP status {http_status}"))
            }
            None if call.not_grpc.is_some() => {
                Finished::local(Code::Unknown, "the response is not gRPC")
            }
            None => Finished::local(Code::Internal, "the response ended without a status"),
        };
        self.end(stream, finished);
    }

    /// Ends a call on our side and reports it.
    #[inline]
    fn end(&mut self, stream: StreamId, finished: Finished) {
        let entry = self.core.streams.at(stream.slot());
        if entry.remote_closed && entry.local_closed {
            self.forget(stream.slot());
        } else {
            self.settle(stream.slot());
            self.core.reset(stream, ErrorCode::CANCEL);
        }
        self.events.push_back(ClientEvent::Finished { stream, finished });
    }

    #[inline]
    fn forget(&mut self, slot: usize) {
        self.settle(slot);
        self.core.forget(slot);
    }

    /// Gives back what an ending call holds of the connection's budgets.
    #[inline]
    fn settle(&mut self, slot: usize) {
        let call = &self.core.streams.at(slot).app;
        let (claim, unreleased) = (call.deframer.gathered_claim(), call.unreleased);
        self.gathered -= claim;
        if unreleased > 0 {
            self.core.release_connection(unreleased);
        }
    }

    #[cold]
    fn going_away(&mut self, last: u32) {
        let above: Vec<usize> = self.core.streams.live().collect();
        for slot in above {
            let stream = self.core.streams.id(slot);
            if stream.number() > last {
                self.forget(slot);
                let mut finished = Finished::local(Code::Unavailable, "the server is leaving");
                finished.unprocessed = true;
                self.events.push_back(ClientEvent::Finished { stream, finished });
            }
        }
        self.core.close_if_drained();
    }

    #[cold]
    fn end_all(&mut self) {
        let reason = match self.core.close_reason() {
            Some(CloseReason::Error(code, reason)) => {
                format!("connection error {code:?}: {reason}")
            }
            _ => "the connection was lost".to_string(),
        };
        let live: Vec<usize> = self.core.streams.live().collect();
        for slot in live {
            let stream = self.core.streams.id(slot);
            self.forget(slot);
            let finished = Finished::local(Code::Unavailable, &reason);
            self.events.push_back(ClientEvent::Finished { stream, finished });
        }
    }

    /// What is to be written next.
    #[inline]
    pub fn output(&mut self) -> &Output {
        self.core.pump();
        &self.core.output
    }

    /// Takes all that is to be written in exchange for another output, which is emptied. Two of them take turns.
    #[inline]
    pub fn swap_output(&mut self, output: &mut Output) {
        self.core.swap_output(output);
    }

    /// The socket has ended or failed: every open call gets `Finished` (UNAVAILABLE).
    pub fn lost(&mut self) {
        self.core.close(CloseReason::Lost);
    }

    /// Says good-bye: GOAWAY; open calls are given up.
    pub fn shut_down(&mut self) {
        self.core.fail(ErrorCode::NO_ERROR, "");
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

    /// Calls that are open.
    pub fn open_streams(&self) -> usize {
        self.core.streams.len()
    }
}

/// Custom metadata of a call; credentials are never indexed (RFC 7541, section 7.1.3).
fn put_metadata(
    encoder: &mut Encoder,
    out: &mut Vec<u8>,
    metadata: &[(&str, &[u8])],
    scratch: &mut Vec<u8>,
) {
    for field in metadata {
        if field.0 == "authorization" {
            encoder.field(out, field.0.as_bytes(), field.1, Indexing::Never);
        } else {
            let one = std::slice::from_ref(field);
            custom_fields(one, scratch, &mut |name, value| encoder.repeating(out, name, value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_leaves_when_its_stream_numbers_are_used_up() {
        let mut client = ClientConnection::new(&Limits::default(), "test:1", 0);
        client.core.next_local_stream = STREAM_ID_MAX;
        assert!(!client.is_leaving() && client.room() > 0);
        let last = client.call(b"/t/Unary", Message::new(b"a"), &[], None).unwrap();
        assert_eq!(last.number(), STREAM_ID_MAX);
        // Whoever looks after it sees in time that another connection is needed; the last call goes on.
        assert!(client.is_leaving() && client.room() == 0 && !client.is_closed());
        let refused = client.call(b"/t/Unary", Message::new(b"a"), &[], None);
        assert!(matches!(refused, Err(Busy::Leaving)));
        assert_eq!(client.open_streams(), 1);
    }
}
