//! Calls that live on another shard: asked once, answered once, their bytes moved by reference.
//!
//! A sender first takes a credit; one that has none left refuses the call. Answers therefore always find room: what a full
//! ring does not take at once waits here, bounded by the credits that were given, and two full rings cannot wait for each
//! other. Messages of a stream are paid for one by one.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::Bytes;
use prism_adapters::{Error, Kind, PageSink};
use prism_io::grpc::Metadata;
use prism_io::mesh::Port;
use prism_proto::catalogue::Method;
use slab::Slab;

use crate::namespaces::Namespace;
use crate::request::{Answer, Call, Origin, stream};
use crate::shard::{RETRY_DELAY, Shard};

/// Messages that the ring of an ordered pair of shards holds.
pub(crate) const RING_MESSAGES: usize = 2048;
/// Calls that a shard may have in flight at another.
const CREDITS: usize = RING_MESSAGES / 2;
/// Messages of one stream that may be on their way.
const STREAM_CREDITS: usize = 8;

/// What shards say to each other.
pub(crate) enum Message {
    /// Serve this call.
    Ask(Ask),
    /// The outcome of a call.
    Answer { ticket: u64, outcome: Result<Answer, Error> },
    /// One message of a streamed answer.
    Item { ticket: u64, bytes: Bytes },
    /// One message of a stream was taken (`false`: nobody listens any more).
    Taken { stream: u64, goes_on: bool },
    /// Nobody waits for the outcome of a call any more.
    Gone { ticket: u64 },
}

/// A call for its home shard.
pub(crate) struct Ask {
    ticket: u64,
    method: Method,
    metadata: Metadata,
    deadline_ns: u64,
    received_ns: u64,
    message: Bytes,
    /// It relays a message of an outbox.
    is_relayed: bool,
    /// It is answered with `Item`s and a closing `Answer`.
    streamed: bool,
}

/// One shard's ends of its calls to and from the others.
pub(crate) struct Peers {
    port: Rc<Port<Message>>,
    credits: Box<[Cell<usize>]>,
    /// What full rings did not take.
    unsent: Box<[RefCell<VecDeque<Message>>]>,
    asked: RefCell<Slab<Asked>>,
    /// Streams that this shard serves, by the shard that asked and its ticket.
    streams: RefCell<HashMap<(usize, u64), Streamed>>,
    /// Calls whose callers have gone since the last look, and those that the last look is for; by the shard that asked and its ticket.
    gone: RefCell<[HashSet<(usize, u64)>; 2]>,
    serial: Cell<u32>,
}

/// A call that this shard has sent out.
struct Asked {
    serial: u32,
    outcome: Option<Result<Answer, Error>>,
    items: VecDeque<Bytes>,
    waker: Option<Waker>,
}

/// A stream that this shard serves for another.
struct Streamed {
    credits: usize,
    closed: bool,
    waker: Option<Waker>,
}

fn ticket(serial: u32, key: usize) -> u64 {
    u64::from(serial) << 32 | key as u64
}

fn key_of(ticket: u64) -> (u32, usize) {
    ((ticket >> 32) as u32, (ticket & u64::from(u32::MAX)) as usize)
}

impl Peers {
    /// The ends of a shard with this port, among `shards`.
    pub(crate) fn new(port: Port<Message>, shards: usize) -> Self {
        Self {
            port: Rc::new(port),
            credits: (0..shards).map(|_| Cell::new(CREDITS)).collect(),
            unsent: (0..shards).map(|_| RefCell::default()).collect(),
            asked: RefCell::default(),
            streams: RefCell::default(),
            gone: RefCell::default(),
            serial: Cell::new(0),
        }
    }

    /// The port, for the task that receives.
    pub(crate) fn port(&self) -> Rc<Port<Message>> {
        self.port.clone()
    }

    fn next_serial(&self) -> u32 {
        self.serial.set(self.serial.get().wrapping_add(1));
        self.serial.get()
    }

    fn post(&self, to: usize, message: Message) {
        let mut unsent = self.unsent[to].borrow_mut();
        if !unsent.is_empty() {
            return unsent.push_back(message);
        }
        if let Err(message) = self.port.send(to, message) {
            unsent.push_back(message);
        }
    }

    /// Sends what full rings did not take. Returns whether everything has gone.
    pub(crate) fn flush(&self) -> bool {
        let mut all = true;
        for (to, unsent) in self.unsent.iter().enumerate() {
            let mut unsent = unsent.borrow_mut();
            while let Some(message) = unsent.pop_front() {
                if let Err(message) = self.port.send(to, message) {
                    unsent.push_front(message);
                    all = false;
                    break;
                }
            }
        }
        all
    }

    /// Calls that wait for another shard.
    pub(crate) fn waiting(&self) -> usize {
        self.asked.borrow().len()
    }

    fn send_ask(&self, home: usize, call: AskParts<'_>, streamed: bool) -> Result<u64, Error> {
        let credits = &self.credits[home];
        if credits.get() == 0 {
            return Err(Error::new(
                Kind::ResourceExhausted,
                "SHARD_BUSY",
                "the shard that owns this namespace has as many calls in flight as it may have; retry later",
            )
            .retry_after(RETRY_DELAY));
        }
        credits.set(credits.get() - 1);
        let serial = self.next_serial();
        let asked = Asked { serial, outcome: None, items: VecDeque::new(), waker: None };
        let ticket = ticket(serial, self.asked.borrow_mut().insert(asked));
        let ask = Ask {
            ticket,
            method: call.method,
            metadata: call.metadata.clone(),
            deadline_ns: call.deadline_ns,
            received_ns: call.received_ns,
            message: call.message,
            is_relayed: call.is_relayed,
            streamed,
        };
        self.post(home, Message::Ask(ask));
        Ok(ticket)
    }

    /// Begins a look at the calls whose callers have gone. Those of the look before are forgotten: they have ended, or had ended already.
    pub(crate) fn look_for_gone(&self) {
        let mut gone = self.gone.borrow_mut();
        let now = std::mem::take(&mut gone[0]);
        gone[1] = now;
    }

    /// Whether the caller of another shard's call has gone.
    pub(crate) fn is_gone(&self, from: usize, ticket: u64) -> bool {
        self.gone.borrow()[1].contains(&(from, ticket))
    }

    fn with_asked<R>(&self, ticket: u64, act: impl FnOnce(&mut Asked) -> R) -> Option<R> {
        let (serial, key) = key_of(ticket);
        let mut asked = self.asked.borrow_mut();
        asked.get_mut(key).filter(|asked| asked.serial == serial).map(act)
    }
}

/// What of a call crosses the mesh.
pub(crate) struct AskParts<'a> {
    pub(crate) method: Method,
    pub(crate) metadata: &'a Metadata,
    pub(crate) deadline_ns: u64,
    pub(crate) received_ns: u64,
    pub(crate) message: Bytes,
    pub(crate) is_relayed: bool,
}

/// Forgets a call when nobody waits for its answer any more.
struct Forget<'a> {
    peers: &'a Peers,
    ticket: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let (serial, key) = key_of(self.ticket);
        let mut asked = self.peers.asked.borrow_mut();
        if asked.get(key).is_some_and(|asked| asked.serial == serial) {
            asked.remove(key);
        }
    }
}

/// Tells the home shard that nobody waits for the outcome of a call any more, unless it has come.
struct Waits<'a> {
    peers: &'a Peers,
    home: usize,
    ticket: u64,
    is_answered: bool,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.peers.post(self.home, Message::Gone { ticket: self.ticket });
        }
    }
}

/// Tells the home shard that nobody listens to a stream any more; one that has ended there passes over it.
struct Leave<'a> {
    peers: &'a Peers,
    home: usize,
    ticket: u64,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.peers.post(self.home, Message::Taken { stream: self.ticket, goes_on: false });
    }
}

/// Has the home shard serve a unary call.
pub(crate) async fn ask(
    shard: &Shard,
    call: &Call,
    namespace: &Namespace,
    message: Bytes,
) -> Result<Answer, Error> {
    let parts = AskParts {
        method: call.method,
        metadata: &call.metadata,
        deadline_ns: call.deadline_ns,
        received_ns: call.received_ns,
        message,
        is_relayed: call.is_relayed,
    };
    let peers = &shard.peers;
    let ticket = peers.send_ask(namespace.home, parts, false).inspect_err(|_| {
        shard.metrics.mesh.refused.increment();
    })?;
    shard.metrics.mesh.sent.increment();
    let _forget = Forget { peers, ticket };
    let mut waits = Waits { peers, home: namespace.home, ticket, is_answered: false };
    let outcome = std::future::poll_fn(|context| {
        let outcome = peers.with_asked(ticket, |asked| {
            if asked.outcome.is_none() && asked.waker.is_none() {
                asked.waker = Some(context.waker().clone());
            }
            asked.outcome.take()
        });
        match outcome.flatten() {
            Some(outcome) => Poll::Ready(outcome),
            None => Poll::Pending,
        }
    })
    .await;
    waits.is_answered = true;
    outcome
}

/// Has the home shard serve a streaming call, and hands its messages to `sink`.
pub(crate) async fn ask_stream(
    shard: &Shard,
    home: usize,
    parts: AskParts<'_>,
    sink: &mut impl PageSink,
) -> Result<(), Error> {
    let peers = &shard.peers;
    let ticket = peers.send_ask(home, parts, true)?;
    shard.metrics.mesh.sent.increment();
    let _forget = Forget { peers, ticket };
    let _leave = Leave { peers, home, ticket };
    loop {
        let next = std::future::poll_fn(|context| {
            let next = peers.with_asked(ticket, |asked| {
                asked.waker = Some(context.waker().clone());
                match asked.items.pop_front() {
                    Some(item) => Some(Ok(item)),
                    None => asked.outcome.take().map(Err),
                }
            });
            next.flatten().map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        let item = match next {
            Ok(item) => item,
            Err(outcome) => return outcome.map(|_| ()),
        };
        let taken = sink.send(item).await;
        peers.post(home, Message::Taken { stream: ticket, goes_on: taken.is_ok() });
        taken?;
    }
}

/// Sends the outcome of a call back to the shard that asked.
pub(crate) fn answer(shard: &Shard, to: usize, ticket: u64, outcome: Result<Answer, Error>) {
    shard.peers.post(to, Message::Answer { ticket, outcome });
}

/// The sink of a stream that another shard's caller reads.
pub(crate) struct RemoteSink<'a> {
    shard: &'a Shard,
    to: usize,
    ticket: u64,
}

impl<'a> RemoteSink<'a> {
    /// The sink of the call that `to` knows by `ticket`.
    pub(crate) fn new(shard: &'a Shard, to: usize, ticket: u64) -> Self {
        let entry = Streamed { credits: STREAM_CREDITS, closed: false, waker: None };
        shard.peers.streams.borrow_mut().insert((to, ticket), entry);
        Self { shard, to, ticket }
    }
}

impl PageSink for RemoteSink<'_> {
    async fn send(&mut self, message: Bytes) -> Result<(), Error> {
        std::future::poll_fn(|context| {
            let mut streams = self.shard.peers.streams.borrow_mut();
            let entry = match streams.get_mut(&(self.to, self.ticket)) {
                Some(entry) if !entry.closed => entry,
                _ => return Poll::Ready(Err(caller_gone())),
            };
            if entry.credits > 0 {
                entry.credits -= 1;
                return Poll::Ready(Ok(()));
            }
            entry.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await?;
        self.shard.peers.post(self.to, Message::Item { ticket: self.ticket, bytes: message });
        Ok(())
    }

    fn now_us(&self) -> u64 {
        prism_io::clock::wall_us()
    }

    async fn wait(&mut self, event: impl Future<Output = ()>, until_us: u64) -> Result<(), Error> {
        let gone = std::future::poll_fn(|context| {
            let mut streams = self.shard.peers.streams.borrow_mut();
            match streams.get_mut(&(self.to, self.ticket)) {
                Some(entry) if !entry.closed => {
                    entry.waker = Some(context.waker().clone());
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        });
        stream::wait(self.shard, event, gone, until_us).await
    }

    async fn write(&mut self, method: Method, request: Vec<u8>) -> Result<Bytes, Error> {
        stream::write(self.shard, method, request).await
    }
}

impl Drop for RemoteSink<'_> {
    fn drop(&mut self) {
        self.shard.peers.streams.borrow_mut().remove(&(self.to, self.ticket));
    }
}

/// What ends a call whose caller has gone.
#[cold]
pub(crate) fn caller_gone() -> Error {
    Error::new(Kind::Cancelled, "CALLER_GONE", "the caller has ended the call")
}

/// Takes one message of the mesh.
pub(crate) fn deliver(shard: &Rc<Shard>, from: usize, message: Message) {
    let peers = &shard.peers;
    match message {
        Message::Ask(ask) => {
            shard.metrics.mesh.received.increment();
            let call = Call {
                origin: Origin::Shard { shard: from, ticket: ask.ticket },
                method: ask.method,
                metadata: ask.metadata,
                deadline_ns: ask.deadline_ns,
                received_ns: ask.received_ns,
                message: ask.message,
                audited: OnceCell::new(),
                is_relayed: ask.is_relayed,
            };
            if ask.streamed {
                crate::request::stream::start_remote(shard, call)
            } else {
                shard.start(call)
            }
        }
        Message::Answer { ticket, outcome } => {
            let credits = &peers.credits[from];
            credits.set(credits.get() + 1);
            // A late answer of a call that nobody waits for is dropped.
            let waker = peers.with_asked(ticket, |asked| {
                asked.outcome = Some(outcome);
                asked.waker.take()
            });
            waker.flatten().into_iter().for_each(Waker::wake);
        }
        Message::Item { ticket, bytes } => {
            let waker = peers.with_asked(ticket, |asked| {
                asked.items.push_back(bytes);
                asked.waker.take()
            });
            match waker {
                Some(waker) => waker.into_iter().for_each(Waker::wake),
                None => peers.post(from, Message::Taken { stream: ticket, goes_on: false }),
            }
        }
        Message::Gone { ticket } => {
            peers.gone.borrow_mut()[0].insert((from, ticket));
            shard.deadlines.caller_gone();
        }
        Message::Taken { stream, goes_on } => {
            let waker = peers.streams.borrow_mut().get_mut(&(from, stream)).and_then(|entry| {
                entry.credits += 1;
                entry.closed |= !goes_on;
                entry.waker.take()
            });
            waker.into_iter().for_each(Waker::wake);
        }
    }
}
