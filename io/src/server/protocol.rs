//! Which protocol a connection speaks: decided by its first bytes, and of no interest to anybody above.

use bytes::BytesMut;

use super::Options;
use crate::grpc::compress::InflateError;
use crate::grpc::{Compressing, Counts, Event, Message, SendError, ServerConnection, Status};
use crate::h2::{CloseReason, Output, Refusal, StreamId};
use crate::web::{Http1Connection, is_http1};

/// The state machine of one connection.
pub(super) struct Protocol {
    spoken: Spoken,
    /// What it takes to speak HTTP/1.1, until it is known whether that is wanted.
    undecided: Option<Box<Options>>,
}

// The large one is the common one, and a box would cost every call a step.
#[allow(clippy::large_enum_variant)]
enum Spoken {
    /// gRPC, gRPC-Web and Connect over HTTP/2.
    Http2(ServerConnection),
    /// gRPC-Web and Connect over HTTP/1.1.
    Http1(Box<Http1Connection>),
}

/// Calls the method of whichever it is.
macro_rules! either {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match &$self.spoken {
            Spoken::Http2(connection) => connection.$method($($argument),*),
            Spoken::Http1(connection) => connection.$method($($argument),*),
        }
    };
    (mut $self:ident.$method:ident($($argument:expr),*)) => {
        match &mut $self.spoken {
            Spoken::Http2(connection) => connection.$method($($argument),*),
            Spoken::Http1(connection) => connection.$method($($argument),*),
        }
    };
}

impl Protocol {
    pub(super) fn new(options: &Options, now_ns: u64) -> Self {
        let mut connection =
            ServerConnection::with_shared(options.limits.clone(), options.route, now_ns);
        if let Some(web) = &options.web {
            connection.serve_web(web.clone());
        }
        let undecided = options.web.is_some().then(|| Box::new(options.clone()));
        Self { spoken: Spoken::Http2(connection), undecided }
    }

    #[inline]
    pub(super) fn receive(&mut self, input: &mut BytesMut, now_ns: u64) {
        if self.undecided.is_some() {
            self.decide(input, now_ns);
        }
        either!(mut self.receive(input, now_ns));
    }

    #[cold]
    fn decide(&mut self, input: &[u8], now_ns: u64) {
        let Some(http1) = is_http1(input) else { return };
        let Some(options) = self.undecided.take() else { return };
        if let Options { limits, route, web: Some(web), .. } = *options
            && http1
        {
            let connection = Http1Connection::new(web, &limits, route, now_ns);
            self.spoken = Spoken::Http1(Box::new(connection));
        }
    }

    /// Whether more is to be read.
    #[inline]
    pub(super) fn wants_input(&self) -> bool {
        match &self.spoken {
            Spoken::Http2(_) => true,
            Spoken::Http1(connection) => connection.wants_input(),
        }
    }

    /// The peer has closed its side. True if it is still to be answered.
    pub(super) fn input_ended(&mut self) -> bool {
        match &mut self.spoken {
            Spoken::Http2(_) => false,
            Spoken::Http1(connection) => {
                connection.input_ended();
                true
            }
        }
    }

    #[inline]
    pub(super) fn poll_event(&mut self) -> Option<Event> {
        either!(mut self.poll_event())
    }

    #[inline]
    pub(super) fn respond(
        &mut self,
        stream: StreamId,
        message: Message<'_>,
        trailers: &[(&str, &[u8])],
    ) -> bool {
        either!(mut self.respond(stream, message, trailers))
    }

    pub(super) fn fail(&mut self, stream: StreamId, status: &Status<'_>) -> bool {
        either!(mut self.fail(stream, status))
    }

    #[inline]
    pub(super) fn try_send(
        &mut self,
        stream: StreamId,
        message: &Message<'_>,
    ) -> Result<bool, SendError> {
        either!(mut self.try_send(stream, message))
    }

    pub(super) fn finish(&mut self, stream: StreamId, trailers: &[(&str, &[u8])]) -> bool {
        either!(mut self.finish(stream, trailers))
    }

    pub(super) fn is_open(&self, stream: StreamId) -> bool {
        either!(self.is_open(stream))
    }

    #[inline]
    pub(super) fn is_writable(&self, stream: StreamId) -> bool {
        either!(self.is_writable(stream))
    }

    /// Gives a message's bytes back to the caller's window; only HTTP/2 has one.
    #[inline]
    pub(super) fn release(&mut self, stream: StreamId, bytes: usize) {
        if let Spoken::Http2(connection) = &mut self.spoken {
            connection.release(stream, bytes);
        }
    }

    pub(super) fn abandon(&mut self, stream: StreamId) {
        either!(mut self.abandon(stream));
    }

    #[inline]
    pub(super) fn output(&mut self) -> &Output {
        either!(mut self.output())
    }

    /// Takes a buffer for what is to be written, if it has none.
    #[inline]
    pub(super) fn lend(&mut self, buffer: impl FnOnce() -> Output) {
        if let Spoken::Http2(connection) = &mut self.spoken {
            connection.lend(buffer);
        }
    }

    #[inline]
    pub(super) fn swap_output(&mut self, output: &mut Output) {
        either!(mut self.swap_output(output));
    }

    /// Gives back what calls have left behind; false while one is open.
    pub(super) fn shrink(&mut self) -> bool {
        match &mut self.spoken {
            Spoken::Http2(connection) => connection.shrink(),
            Spoken::Http1(_) => true,
        }
    }

    /// Sends the head of an answer with custom metadata; the protocols of [`crate::web`] have theirs with the message.
    pub(super) fn send_headers(&mut self, stream: StreamId, metadata: &[(&str, &[u8])]) -> bool {
        match &mut self.spoken {
            Spoken::Http2(connection) => connection.send_headers(stream, metadata),
            Spoken::Http1(_) => false,
        }
    }

    /// Says when messages of an answer are compressed; over HTTP/1.1 none is.
    pub(super) fn set_compressing(&mut self, stream: StreamId, compressing: Compressing) {
        if let Spoken::Http2(connection) = &mut self.spoken {
            connection.set_compressing(stream, compressing);
        }
    }

    pub(super) fn fail_inflate(&mut self, stream: StreamId, error: InflateError) {
        if let Spoken::Http2(connection) = &mut self.spoken {
            connection.fail_inflate(stream, error);
        }
    }

    /// Whether input waits until the others had their turn.
    #[inline]
    pub(super) fn is_paused(&self) -> bool {
        match &self.spoken {
            Spoken::Http2(connection) => connection.is_paused(),
            Spoken::Http1(_) => false,
        }
    }

    pub(super) fn resume(&mut self) {
        if let Spoken::Http2(connection) = &mut self.spoken {
            connection.resume();
        }
    }

    pub(super) fn drain(&mut self, now_ns: u64) {
        either!(mut self.drain(now_ns));
    }

    pub(super) fn lost(&mut self) {
        either!(mut self.lost());
    }

    pub(super) fn poll_timeout(&self) -> Option<u64> {
        either!(self.poll_timeout())
    }

    pub(super) fn handle_timeout(&mut self, now_ns: u64) {
        either!(mut self.handle_timeout(now_ns));
    }

    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        either!(self.is_closed())
    }

    pub(super) fn close_reason(&self) -> Option<CloseReason> {
        either!(self.close_reason())
    }

    /// What was refused or cut off since the last time, by kind.
    pub(super) fn take_refusals(&mut self, each: impl FnMut(Refusal, u32)) {
        either!(mut self.take_refusals(each));
    }

    /// Ends the connection for a limit that its driver keeps.
    pub(super) fn cut_off(&mut self, kind: Refusal, reason: &'static str) {
        either!(mut self.cut_off(kind, reason));
    }

    /// Bytes that it holds: of requests that are not whole, and of answers that wait.
    #[inline]
    pub(super) fn buffered_bytes(&self) -> usize {
        either!(self.buffered_bytes())
    }

    /// What has passed since the start.
    pub(super) fn counts(&self) -> Counts {
        either!(self.counts())
    }

    pub(super) fn open_streams(&self) -> usize {
        either!(self.open_streams())
    }
}
