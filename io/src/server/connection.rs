//! One connection: the state machine between a socket's two halves, and the handles that answer its calls.
//!
//! One task for each connection: what a pass over its input answers leaves in the same turn, without a wake.

mod stream;
#[cfg(test)]
mod tests;

pub use stream::{StreamCall, StreamClosed};

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use stream::StreamState;

use super::buffers;
use super::guard::Traffic;
use super::listen::Open;
use super::protocol::Protocol;
use super::registry::{Entry, Passed};
use super::{OUTPUT_BYTES_PAUSE, Options, READ_BYTES_MAX, Service};
use crate::clock;
use crate::grpc::{Compressing, Event, Message, Status};
use crate::h2::{CloseReason, Output, Pace, Refusal, StreamId};
use crate::net::{READ_BYTES, ReadHalf, Stream, WriteHalf};
use crate::rt::{self, Signal};
use crate::tls::{PeerIdentity, Revoked};

/// Requests of one connection that one turn of the loop takes: a long queue of one must not be a wait of all others.
const REQUESTS_TURN: usize = 64;

/// Reads into the large buffer that one turn of the loop makes for one connection.
const READS_TURN: usize = 4;

/// Looks after a connection without a call before it rests.
const RESTS_AFTER: u8 = 2;

/// A message that is kept may keep so many times its own size, and a small read buffer.
const KEPT_TIMES_MAX: usize = 4;
/// What it costs to keep a message of a stream that nobody has taken yet, beside its bytes: its place in the queue and the allocator's own.
const WAITING_OVERHEAD_BYTES: usize = 64;

/// Where more than this many bytes are being written to a peer that is at fault, they are cut short.
const LAST_BYTES_MAX: usize = 16 * 1024;

thread_local! {
    /// Takes what does not fit the small buffer of a connection; one for all connections of a thread, because none waits with it.
    static LARGE: Cell<BytesMut> = Cell::default();
}

/// What is remembered of who is at the other end of a connection, so that it is found out once; its meaning is that of whoever keeps
/// it. Nothing is known in the epoch 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Of what it was found out from.
    pub epoch: u32,
    /// What was found out.
    pub row: u32,
    /// Monotonic time until which it holds, in ns.
    pub until_ns: u64,
}

/// What is remembered of the refusals of a connection's calls by whoever refuses them; its meaning is theirs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refused {
    /// Monotonic time until which they are accounted for, in ns.
    pub paid_until_ns: u64,
    /// The number of the group in which the last one waits that was held back.
    pub group: u64,
}

/// A connection of this shard.
pub struct Connection {
    grpc: RefCell<Protocol>,
    message_bytes_max: usize,
    peer: SocketAddr,
    identity: Option<Box<PeerIdentity>>,
    standing: Cell<Standing>,
    /// The number of the list of revoked certificates that its client's was last looked up in.
    revocations_seen: Cell<u64>,
    refused: Cell<Refused>,
    traffic: Rc<Traffic>,
    /// Its place in the list of those that are open, and what that list shows of it.
    entry: Entry,
    shown: Cell<Passed>,
    received_bytes: Cell<u64>,
    sent_bytes: Cell<u64>,
    /// Set when there is something to write, or when the connection has to end.
    work: Signal,
    /// The connection's own task is running: it looks for work before its turn ends, and need not be woken.
    own_turn: Cell<bool>,
    /// Set when the output has become short again.
    drained: Signal,
    ended: Cell<bool>,
    /// Set when a write that is going on is to be cut short.
    aborted: Signal,
    /// Output was taken out of the state machine and has not all been written.
    writing: Cell<bool>,
    /// Bytes of output that the kernel has taken, and writes that have begun.
    progress: Cell<(u64, u64)>,
    /// The progress when it was looked at for a slow reader, and when that was, monotonic ns.
    progress_seen: Cell<((u64, u64), u64)>,
    slow_reader_min: Pace,
    /// Bytes of output that are being written.
    writing_bytes: Cell<usize>,
    /// What this connection counts for in the shard's buffered bytes.
    held_bytes: Cell<usize>,
    faulted: Cell<bool>,
    streams: RefCell<Vec<(StreamId, Rc<StreamState>)>>,
    /// Streams that have got messages in the pass that was last, which may still be slices of its buffer.
    fresh: RefCell<Vec<Rc<StreamState>>>,
    /// Messages of streams that wait to be taken, with what it costs to keep each.
    waiting_bytes: Cell<usize>,
    /// The buffer that the messages of this pass are slices of, in bytes.
    pass_bytes: Cell<usize>,
    bytes_in_flight: Cell<u64>,
    received_ns: Cell<u64>,
    /// The pass over the input has stopped for the others' sake, and goes on in the next turn.
    has_more: Cell<bool>,
    /// Looks after it ([`Connection::handle_timeout`]) without a call, after which it has given back what its calls have left behind.
    rests_after: Cell<u8>,
}

impl Connection {
    pub(super) fn new(
        options: &Options,
        peer: SocketAddr,
        identity: Option<PeerIdentity>,
        traffic: Rc<Traffic>,
    ) -> Self {
        Self {
            grpc: RefCell::new(Protocol::new(options, clock::monotonic_ns())),
            message_bytes_max: options.limits.message_bytes_max as usize,
            peer,
            identity: identity.map(Box::new),
            standing: Cell::default(),
            revocations_seen: Cell::new(0),
            refused: Cell::default(),
            has_more: Cell::new(false),
            entry: {
                traffic.newest.set(traffic.newest.get() + 1);
                traffic.registry.enter(traffic.newest.get(), peer)
            },
            shown: Cell::default(),
            received_bytes: Cell::new(0),
            sent_bytes: Cell::new(0),
            traffic,
            work: Signal::default(),
            own_turn: Cell::new(false),
            drained: Signal::default(),
            ended: Cell::new(false),
            aborted: Signal::default(),
            writing: Cell::new(false),
            progress: Cell::new((0, 0)),
            progress_seen: Cell::new(((0, 0), 0)),
            slow_reader_min: options.limits.slow_reader_min,
            writing_bytes: Cell::new(0),
            held_bytes: Cell::new(0),
            faulted: Cell::new(false),
            streams: RefCell::default(),
            fresh: RefCell::default(),
            waiting_bytes: Cell::new(0),
            pass_bytes: Cell::new(0),
            bytes_in_flight: Cell::new(0),
            received_ns: Cell::new(0),
            rests_after: Cell::new(RESTS_AFTER),
        }
    }

    /// One that leads nowhere, and a stream on it: to measure what is done with a call before it is carried out.
    pub fn to_nowhere(options: &Options, peer: SocketAddr) -> (Rc<Self>, StreamId) {
        let traffic = Rc::new(Traffic::default());
        (Rc::new(Self::new(options, peer, None, traffic)), StreamId::new(1, 0))
    }

    /// The address at the other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Who is at the other end, if a certificate says so.
    pub fn identity(&self) -> Option<&PeerIdentity> {
        self.identity.as_deref()
    }

    /// What the layer above knows of who that is; kept by it.
    pub fn standing(&self) -> &Cell<Standing> {
        &self.standing
    }

    /// What the layer above has refused of it; kept by it.
    pub fn refused(&self) -> &Cell<Refused> {
        &self.refused
    }

    /// Bytes of requests that are being worked on; kept by the layer above.
    pub fn bytes_in_flight(&self) -> &Cell<u64> {
        &self.bytes_in_flight
    }

    /// For whoever keeps a message for longer than a turn: a small one that is a slice of a large read buffer is copied, so that what is kept
    /// is at most a few times what was sent.
    pub fn keep(&self, message: Bytes) -> Bytes {
        let is_worth_it = KEPT_TIMES_MAX * message.len() + READ_BYTES < self.pass_bytes.get();
        if is_worth_it { Bytes::copy_from_slice(&message) } else { message }
    }

    /// When the pass over the input began that is going on, monotonic ns.
    pub fn received_ns(&self) -> u64 {
        self.received_ns.get()
    }

    /// Whether somebody still waits for the answer of a call.
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.grpc.borrow().is_open(stream)
    }

    /// Answers a unary call. Does nothing when the caller has gone.
    pub fn respond(&self, stream: StreamId, message: Message<'_>, trailers: &[(&str, &[u8])]) {
        let mut grpc = self.grpc.borrow_mut();
        grpc.lend(buffers::take);
        grpc.respond(stream, message, trailers);
        self.has_work();
    }

    /// Sends the head of an answer with custom metadata, ahead of `respond`. False when it is too late.
    pub fn send_headers(&self, stream: StreamId, metadata: &[(&str, &[u8])]) -> bool {
        let sent = self.grpc.borrow_mut().send_headers(stream, metadata);
        self.has_work();
        sent
    }

    /// Says when messages of an answer are compressed, if its reader takes gzip. To be called before the answer.
    pub fn set_compressing(&self, stream: StreamId, compressing: Compressing) {
        self.grpc.borrow_mut().set_compressing(stream, compressing);
    }

    /// Ends a call with a status other than OK.
    pub fn fail(&self, stream: StreamId, status: &Status<'_>) {
        self.grpc.borrow_mut().fail(stream, status);
        self.has_work();
    }

    /// Makes a handle for a call that streams either way.
    pub fn stream(self: &Rc<Self>, stream: StreamId) -> StreamCall {
        let state = Rc::new(StreamState::default());
        self.streams.borrow_mut().push((stream, state.clone()));
        StreamCall { connection: self.clone(), stream, state }
    }

    /// Tells the peer to go elsewhere with new calls; those that run may finish.
    pub fn drain(&self) {
        self.grpc.borrow_mut().drain(clock::monotonic_ns());
        self.has_work();
    }

    /// Calls that have not ended.
    pub fn open_streams(&self) -> usize {
        self.grpc.borrow().open_streams()
    }

    /// Whether everything that was to be written has been.
    pub fn is_flushed(&self) -> bool {
        self.ended.get() || (!self.writing.get() && self.grpc.borrow_mut().output().is_empty())
    }

    /// Ends the connection as it stands, also in the middle of a write.
    pub fn abort(&self) {
        self.end();
        self.aborted.set();
    }

    /// Ends the connection after the write that is going on.
    fn end(&self) {
        self.ended.set(true);
        self.has_work();
        self.drained.set();
    }

    fn has_work(&self) {
        if self.own_turn.get() {
            self.work.note();
        } else {
            self.work.set();
        }
    }

    /// Brings up to date what others see of the connection.
    fn show(&self) {
        let grpc = self.grpc.borrow();
        let passed = Passed {
            counts: grpc.counts(),
            open_streams: grpc.open_streams() as u64,
            buffered_bytes: (grpc.buffered_bytes() + self.waiting_bytes.get()) as u64,
            received_bytes: self.received_bytes.get(),
            sent_bytes: self.sent_bytes.get(),
        };
        let before = self.shown.replace(passed);
        if before != passed {
            self.entry.show(passed);
            let mut all = self.traffic.counts.get();
            all.add_growth(&before.counts, &passed.counts);
            self.traffic.counts.set(all);
        }
    }

    fn count_fault(&self) {
        if !self.faulted.replace(true) {
            self.traffic.faulted.set(self.traffic.faulted.get() + 1);
        }
    }

    /// Ends the connection when its peer takes too little of a write.
    pub(super) fn check_progress(&self, now_ns: u64) {
        let ((bytes, writes), since_ns) = self.progress_seen.get();
        let (taken, begun) = self.progress.get();
        let Pace { bytes: least, period_ns } = self.slow_reader_min;
        let same_write = self.writing.get() && begun == writes && least > 0;
        if same_write && now_ns.saturating_sub(since_ns) < period_ns {
            return;
        }
        if same_write && taken - bytes < u64::from(least) {
            self.traffic.refuse(Refusal::SlowReader, 1);
            self.count_fault();
            self.abort();
        }
        self.progress_seen.set(((taken, begun), now_ns));
    }

    pub(super) fn handle_timeout(&self, now_ns: u64) {
        self.check_progress(now_ns);
        self.show();
        self.unshare();
        self.rest();
        let mut grpc = self.grpc.borrow_mut();
        if grpc.poll_timeout().is_some_and(|due| due <= now_ns) {
            grpc.handle_timeout(now_ns);
            drop(grpc);
            self.account();
            self.has_work();
        }
    }

    /// Gives back what calls have left behind, once there was none for some time.
    fn rest(&self) {
        match self.rests_after.get() {
            0 => {}
            1 => {
                if self.grpc.borrow_mut().shrink() {
                    self.rests_after.set(0);
                }
            }
            looks => self.rests_after.set(looks - 1),
        }
    }

    /// Brings the shard's numbers up to date with what this connection holds and what was refused on it.
    fn account(&self) {
        let mut grpc = self.grpc.borrow_mut();
        grpc.take_refusals(|kind, count| self.traffic.refuse(kind, count));
        // What an ended one still holds is on its way out.
        let held = match grpc.is_closed() {
            true => 0,
            false => grpc.buffered_bytes() + self.writing_bytes.get() + self.waiting_bytes.get(),
        };
        self.traffic.hold(self.held_bytes.replace(held), held);
    }

    /// Bytes that it holds, by its last account.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes.get()
    }

    /// Ends the connection for a bound of the shard, with a word if its peer still listens.
    pub(super) fn cut_off(&self, kind: Refusal, reason: &'static str) {
        self.grpc.borrow_mut().cut_off(kind, reason);
        self.account();
        self.count_fault();
        if self.writing_bytes.get() > LAST_BYTES_MAX {
            self.abort();
        } else {
            self.has_work();
        }
    }

    /// Ends the connection if its client's certificate is on this list and was not on the one before.
    pub(super) fn check_revocation(&self, number: u64, revoked: &Revoked) {
        let Some(identity) = &self.identity else { return };
        if self.revocations_seen.replace(number) != number
            && revoked.contains(&identity.certificate)
        {
            self.cut_off(Refusal::Revoked, "the client's certificate has been revoked");
        }
    }

    fn state(&self, stream: StreamId) -> Option<Rc<StreamState>> {
        self.streams.borrow().iter().find(|(id, _)| *id == stream).map(|(_, state)| state.clone())
    }

    /// A message for a call that streams waits until it is taken.
    fn queue(&self, state: &Rc<StreamState>, message: Bytes, compressed: bool) {
        self.waiting_bytes.set(self.waiting_bytes.get() + message.len() + WAITING_OVERHEAD_BYTES);
        state.messages.borrow_mut().push_back((message, compressed));
        if !state.is_fresh.replace(true) {
            self.fresh.borrow_mut().push(state.clone());
        }
        state.wake();
    }

    fn forget_waiting<'a>(&self, messages: impl IntoIterator<Item = &'a Bytes>) {
        let bytes = messages.into_iter().map(|message| message.len() + WAITING_OVERHEAD_BYTES);
        self.waiting_bytes.set(self.waiting_bytes.get() - bytes.sum::<usize>());
    }

    /// What the pass before has brought, and nobody has taken since, is kept by itself.
    fn unshare(&self) {
        self.fresh.borrow_mut().drain(..).for_each(|state| state.unshare());
    }

    fn close_streams(&self) {
        for (_, state) in self.streams.borrow().iter() {
            state.close();
        }
    }

    /// Hands over what has come, at most so many requests of it as one turn may bring.
    fn deliver<S: Service>(self: &Rc<Self>, service: &S) {
        let mut requests = 0;
        self.has_more.set(false);
        loop {
            if requests >= REQUESTS_TURN {
                self.has_more.set(true);
                break;
            }
            let event = self.grpc.borrow_mut().poll_event();
            let Some(event) = event else { break };
            match event {
                Event::Request { stream, route, head, message } => {
                    requests += 1;
                    service.request(self, stream, route, head, message);
                }
                Event::Open { stream, route, head } => {
                    let call = self.stream(stream);
                    call.end_in(head.timeout);
                    service.open(call, route, head);
                }
                Event::Message { stream, message, compressed } => match self.state(stream) {
                    Some(state) => self.queue(&state, message, compressed),
                    // Nobody listens any more: the window is given back all the same.
                    None => self.grpc.borrow_mut().release(stream, message.len()),
                },
                Event::HalfClose { stream } => {
                    if let Some(state) = self.state(stream) {
                        state.half_closed.set(true);
                        state.wake();
                    }
                }
                Event::Cancelled { stream } => match self.state(stream) {
                    Some(state) => state.close(),
                    None => service.cancelled(self, stream),
                },
                Event::Writable { stream } => {
                    if let Some(state) = self.state(stream) {
                        state.wake();
                    }
                }
            }
        }
    }

    /// Serves a socket until both of its directions have ended; `_open` is given back then. It is the whole of the connection's task:
    /// another future around it would hold it twice.
    pub(super) async fn serve<S: Service>(
        self: Rc<Self>,
        socket: Stream,
        service: Rc<S>,
        _open: Open,
    ) {
        let (read, write) = socket.split();
        let mut reading = pin!(self.read_all(read, &*service));
        let mut writing = pin!(self.write_all(write, &*service));
        let (mut read, mut written) = (false, false);
        // First what has come, then what it lets go: the writer finds the answers of this very turn.
        std::future::poll_fn(|context| {
            self.own_turn.set(true);
            read = read || reading.as_mut().poll(context).is_ready();
            written = written || writing.as_mut().poll(context).is_ready();
            self.own_turn.set(false);
            if read && written { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Whether nothing more is to be read for now.
    fn is_full(&self) -> bool {
        let mut grpc = self.grpc.borrow_mut();
        grpc.output().len() > OUTPUT_BYTES_PAUSE || !grpc.wants_input()
    }

    /// A client of HTTP/1.1 may close its side and still wait for its answers.
    async fn answer_the_rest<S: Service>(self: &Rc<Self>, service: &S) {
        if !self.grpc.borrow_mut().input_ended() {
            return;
        }
        self.deliver(service);
        service.turn_ended();
        self.has_work();
        self.go_on(service).await;
        while !self.ended.get() && (!self.grpc.borrow().is_closed() || !self.is_flushed()) {
            self.drained.wait().await;
        }
    }

    /// Reads until the peer or the connection ends.
    async fn read_all<S: Service>(self: &Rc<Self>, mut read: ReadHalf, service: &S) {
        // None: one that all connections of a thread share is found when something has come.
        let mut buffer = BytesMut::new();
        loop {
            while !self.ended.get() && self.is_full() {
                self.drained.wait().await;
            }
            let (result, filled) = read.read(buffer).await;
            buffer = filled;
            let count = match result {
                Ok(0) => {
                    self.answer_the_rest(service).await;
                    break;
                }
                Err(_) => break,
                Ok(count) => count,
            };
            let full = buffer.len() == buffer.capacity();
            self.take_in(&mut buffer, count, service);
            self.go_on(service).await;
            if full && !self.is_full() {
                match self.read_more(&mut read, &mut buffer, service).await {
                    Ok(Some(0)) => {
                        self.answer_the_rest(service).await;
                        break;
                    }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
            buffer = read.give_back(buffer);
        }
        let reason = self.grpc.borrow().close_reason();
        if matches!(reason, Some(CloseReason::Error(..) | CloseReason::Tls | CloseReason::NotHttp2))
        {
            self.count_fault();
        }
        if reason == Some(CloseReason::Tls) {
            self.traffic.unexpected_tls.set(self.traffic.unexpected_tls.get() + 1);
        }
        if read.is_truncated() {
            self.traffic.truncated.set(self.traffic.truncated.get() + 1);
        }
        self.grpc.borrow_mut().lost();
        self.deliver(service);
        while self.has_more.get() {
            self.deliver(service);
        }
        self.account();
        self.close_streams();
        self.show();
        self.end();
    }

    /// More has come than there was room for: takes what is there through the large buffer that this thread's connections share.
    /// Zero: the peer is done. `None`: it was all there is for now.
    async fn read_more<S: Service>(
        self: &Rc<Self>,
        read: &mut ReadHalf,
        buffer: &mut BytesMut,
        service: &S,
    ) -> std::io::Result<Option<usize>> {
        let mut large = LARGE.take();
        large.extend_from_slice(buffer);
        buffer.clear();
        let mut reads = 0;
        let result = loop {
            // Takes the same memory again, unless a slice of what came by it is still held somewhere.
            large.reserve(READ_BYTES_MAX);
            match read.read_at_once(&mut large) {
                Ok(0) => break Ok(Some(0)),
                Ok(count) => {
                    reads += 1;
                    let full = large.len() == large.capacity();
                    self.take_in(&mut large, count, service);
                    self.go_on(service).await;
                    if !full || reads == READS_TURN || self.is_full() {
                        break Ok(Some(count));
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break Ok(None),
                Err(error) => break Err(error),
            }
        };
        buffer.extend_from_slice(&large);
        large.clear();
        LARGE.set(large);
        result
    }

    /// One pass over `count` bytes that were read, and what was left before them.
    #[inline]
    fn take_in<S: Service>(self: &Rc<Self>, buffer: &mut BytesMut, count: usize, service: &S) {
        if self.ended.get() || self.grpc.borrow().is_closed() {
            // What comes after the end is read so that the peer can read our last words, and thrown away.
            buffer.clear();
            return;
        }
        self.traffic.received_bytes.set(self.traffic.received_bytes.get() + count as u64);
        self.received_bytes.set(self.received_bytes.get() + count as u64);
        self.received_ns.set(clock::monotonic_ns());
        self.rests_after.set(RESTS_AFTER);
        self.unshare();
        self.pass_bytes.set(buffer.capacity());
        {
            let mut grpc = self.grpc.borrow_mut();
            grpc.lend(buffers::take);
            grpc.receive(buffer, self.received_ns.get());
        }
        self.deliver(service);
        service.turn_ended();
        self.account();
        self.has_work();
    }

    /// Goes on with a pass that has stopped for the others' sake.
    async fn go_on<S: Service>(self: &Rc<Self>, service: &S) {
        while (self.has_more.get() || self.grpc.borrow().is_paused()) && !self.ended.get() {
            rt::yield_now().await;
            self.grpc.borrow_mut().resume();
            self.deliver(service);
            service.turn_ended();
            self.account();
            self.has_work();
        }
    }

    /// Writes what the kernel did not take at once; `None` when the connection was aborted in the meantime. The ring keeps what it reads
    /// from until it is done.
    async fn write_rest(
        &self,
        write: &mut WriteHalf,
        output: Output,
        written: usize,
    ) -> Option<(std::io::Result<()>, Output)> {
        let progressed = |count: usize| {
            let (bytes, writes) = self.progress.get();
            self.progress.set((bytes + count as u64, writes));
        };
        let (bytes, writes) = self.progress.get();
        self.progress.set((bytes, writes + 1));
        self.writing.set(true);
        self.writing_bytes.set(output.len() - written);
        self.account();
        let result = {
            let mut writing = pin!(write.write_rest(output, written, progressed));
            let mut aborted = pin!(self.aborted.wait());
            std::future::poll_fn(|context| match writing.as_mut().poll(context) {
                Poll::Ready(result) => Poll::Ready(Some(result)),
                Poll::Pending => aborted.as_mut().poll(context).map(|()| None),
            })
            .await
        };
        self.writing.set(false);
        self.writing_bytes.set(0);
        result
    }

    /// Writes until the connection ends.
    async fn write_all<S: Service>(self: &Rc<Self>, mut write: WriteHalf, service: &S) {
        while !self.ended.get() {
            self.work.wait().await;
            while !self.ended.get() {
                let mut output = Output::default();
                self.grpc.borrow_mut().swap_output(&mut output);
                if output.is_empty() {
                    buffers::give_back(output);
                    self.account();
                    break;
                }
                // Room in the output is what streams that were told to wait are waiting for. Where a pass has stopped it goes on by itself.
                if !self.has_more.get() {
                    self.deliver(service);
                }
                self.traffic.sent_bytes.set(self.traffic.sent_bytes.get() + output.len() as u64);
                self.sent_bytes.set(self.sent_bytes.get() + output.len() as u64);
                let output = match write.write_at_once(&output) {
                    Ok(written) if written == output.len() => Some((Ok(()), output)),
                    Ok(written) => self.write_rest(&mut write, output, written).await,
                    Err(error) => Some((Err(error), output)),
                };
                match output {
                    Some((Ok(()), output)) => buffers::give_back(output),
                    Some((Err(_), _)) | None => self.end(),
                }
                self.drained.set();
            }
            if self.grpc.borrow().is_closed() && self.is_flushed() {
                break;
            }
        }
        if self.ended.get() {
            write.close();
            return;
        }
        let _ = write.shutdown().await;
        // A peer that keeps its side open after our end is not waited for.
        rt::timeout(Duration::from_secs(1), async {
            while !self.ended.get() {
                self.work.wait().await;
            }
        })
        .await;
        write.close();
    }
}
