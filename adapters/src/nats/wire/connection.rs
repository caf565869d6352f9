//! The one connection of a shard to a NATS that is its own: made, watched, and made again.
//!
//! Calls of one turn of the loop go out in one write, and the answers that one read brings are handed out in one pass. Where there are
//! several servers the next one is taken when one is lost, or says that it leaves. While there is no connection, calls wait only as long as
//! one is expected at once; else they are refused at once ([`Breaker`]). Every call ends: with its answer, when its time is up, or when the
//! connection is lost or given up as dead. Three tasks belong to it: one that connects and reads, one that writes, one that watches the
//! time.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::hash::BuildHasher;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use prism_io::clock::monotonic_ns;
use prism_io::net::{Closer, ReadHalf, WriteHalf};
use prism_io::rt::{self, Signal};

use super::super::config::NatsConfig;
use super::super::errors::{self, Outage};
use super::super::link::{Answer, Ask, ConnectionFacts, State};
use super::calls::{Calls, Refusal, Said, Ticket};
use super::greeting::{Connected, Info, connect};
use crate::breaker::{Breaker, Circuit};
use crate::call::Context;
use crate::error::Error;

/// The buffer that answers are read into, while they are small.
pub(super) const READ_BYTES: usize = 64 * 1024;

/// A read is not begun with less room than this.
const READ_BYTES_MIN: usize = 4 * 1024;

/// Room that is made at a time for a long message: who announces one has not sent it yet.
const READ_BYTES_MAX: usize = 1024 * 1024;

/// What a server takes in one message before it has said so: the default of `max_payload`.
const PAYLOAD_BYTES_DEFAULT: usize = 1024 * 1024;

/// See the module.
pub(in super::super) struct Wire {
    config: NatsConfig,
    calls: RefCell<Calls>,
    breaker: RefCell<Breaker>,
    /// Why calls are refused while the circuit is not closed.
    outage: RefCell<Outage>,
    /// Set when there is something to write, or nothing more ever.
    work: Signal,
    /// What the server takes in one message; nothing: it has not said so yet.
    payload_bytes_max: Cell<Option<usize>>,
    /// Which of the servers is tried first.
    server: Cell<usize>,
    state: Arc<State>,
    /// Ends the wait for the next attempt, and the watch.
    stopped: Cell<bool>,
    session: RefCell<Option<Rc<Session>>>,
    facts: Cell<ConnectionFacts>,
}

/// What the tasks of one connection share.
struct Session {
    closer: Closer,
    /// Why it ends, once it does.
    ending: RefCell<Option<Outage>>,
    /// What the server has said about its end, before that.
    said: RefCell<Option<Outage>>,
    /// When something last came, in monotonic ns.
    heard_ns: Cell<u64>,
    /// The server is about to shut down: nothing is sent to it any more.
    is_leaving: Cell<bool>,
    writer_ended: Signal,
}

impl Session {
    fn is_ending(&self) -> bool {
        self.ending.borrow().is_some()
    }

    /// Ends the connection; the first reason counts.
    fn end(&self, outage: Outage) {
        self.ending.borrow_mut().get_or_insert(outage);
        self.closer.close();
    }

    /// Why the connection has ended without us.
    fn lost(&self) -> Outage {
        self.said.borrow().clone().unwrap_or_else(Outage::lost)
    }
}

/// Gives up a call whose caller goes away.
struct Guard<'a> {
    calls: &'a RefCell<Calls>,
    ticket: Option<Ticket>,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.calls.borrow_mut().abandon(ticket);
        }
    }
}

impl Wire {
    /// Begins to connect. Needs a runtime around it.
    pub(in super::super) fn start(config: NatsConfig, state: Arc<State>) -> Rc<Self> {
        let random = std::hash::RandomState::new();
        let inbox =
            format!("{}.{:016x}", config.inbox_prefix, random.hash_one(&config.client_name));
        // The shards of many hosts begin at different servers.
        let server = random.hash_one(0) as usize % config.servers();
        state.server.store(server, Ordering::Relaxed);
        let wire = Rc::new(Wire {
            calls: RefCell::new(Calls::new(&inbox, config.calls_max, config.bytes_max)),
            breaker: RefCell::new(Breaker::new(config.backoff)),
            outage: RefCell::new(Outage::closed()),
            work: Signal::default(),
            payload_bytes_max: Cell::new(None),
            server: Cell::new(server),
            state,
            stopped: Cell::new(false),
            session: RefCell::new(None),
            facts: Cell::default(),
            config,
        });
        rt::spawn(wire.clone().run());
        wire
    }

    /// Makes a call and waits for its answer.
    pub(in super::super) async fn call(
        &self,
        context: &Context<'_>,
        ask: &Ask,
    ) -> Result<Answer, Error> {
        if self.breaker.borrow().circuit() != Circuit::Closed || self.stopped.get() {
            return Err(self.refusal(context));
        }
        let times = (monotonic_ns(), context.deadline_ns);
        // As long as the server has not said what it takes, that is asked again when the call is sent.
        let bytes_max = self.payload_bytes_max.get().unwrap_or(usize::MAX);
        let begun = self.calls.borrow_mut().begin(ask, times, bytes_max);
        let ticket = match begun {
            Ok(ticket) => ticket,
            Err(Refusal::Full) => {
                self.count(|facts| facts.refused += 1);
                return Err(errors::busy(context, self.config.calls_max));
            }
            Err(Refusal::Unfit(outage)) => return Err(outage.error(context)),
        };
        self.count(|facts| facts.calls += 1);
        self.work.set();
        let mut guard = Guard { calls: &self.calls, ticket: Some(ticket) };
        let answered = poll_fn(|task| self.calls.borrow_mut().poll(ticket, task.waker())).await;
        guard.ticket = None;
        answered.map_err(|outage| outage.error(context))
    }

    /// What the server takes in one message, its headers included.
    pub(in super::super) fn payload_bytes_max(&self) -> usize {
        self.payload_bytes_max.get().unwrap_or(PAYLOAD_BYTES_DEFAULT)
    }

    /// What it has done so far.
    pub(in super::super) fn facts(&self) -> ConnectionFacts {
        let calls_under_way = self.calls.borrow().under_way();
        let is_connected = self.session.borrow().is_some();
        ConnectionFacts { calls_under_way, is_connected, ..self.facts.get() }
    }

    /// Ends it for good.
    pub(in super::super) fn stop(&self) {
        self.stopped.set(true);
        if let Some(session) = self.session.borrow().as_ref() {
            session.end(Outage::closed());
        }
        self.calls.borrow_mut().lose_all(&Outage::closed());
        self.work.set();
    }

    /// Why calls are refused.
    #[cold]
    fn refusal(&self, context: &Context<'_>) -> Error {
        self.count(|facts| facts.refused += 1);
        self.outage.borrow().error(context)
    }

    fn count(&self, count: impl FnOnce(&mut ConnectionFacts)) {
        let mut facts = self.facts.get();
        count(&mut facts);
        self.facts.set(facts);
    }

    /// Connects, serves, and begins again, until it is stopped.
    async fn run(self: Rc<Self>) {
        while !self.stopped.get() {
            self.breaker.borrow_mut().attempt();
            let (outage, next_ns) = match self.connect().await {
                Err(outage) => (outage, self.breaker.borrow_mut().failed(monotonic_ns())),
                Ok(connected) => {
                    self.count(|facts| facts.connects += 1);
                    self.breaker.borrow_mut().succeeded();
                    let since_ns = monotonic_ns();
                    let outage = self.serve(connected).await;
                    self.server.set((self.server.get() + 1) % self.config.servers());
                    let now_ns = monotonic_ns();
                    (outage, self.breaker.borrow_mut().lost(now_ns, now_ns - since_ns))
                }
            };
            // Calls that were not sent wait for a connection that is expected at once.
            match self.breaker.borrow().circuit() {
                Circuit::Closed => self.calls.borrow_mut().lose_sent(&outage),
                _ => self.calls.borrow_mut().lose_all(&outage),
            }
            self.outage.replace(outage);
            self.count(|facts| facts.outages += 1);
            while !self.stopped.get() && monotonic_ns() < next_ns {
                let left = Duration::from_nanos(next_ns.saturating_sub(monotonic_ns()));
                // In steps, so that one that is stopped does not outlive it for long.
                rt::sleep(left.clamp(Duration::from_millis(1), Duration::from_millis(250))).await;
            }
        }
    }

    /// Connects to one of the servers, each of which is tried once.
    async fn connect(&self) -> Result<Connected, Outage> {
        let (first, servers) = (self.server.get(), self.config.servers());
        let answers = self.calls.borrow().answers();
        let mut last = Outage::closed();
        for index in (0..servers).map(|step| (first + step) % servers) {
            let timeout = self.config.connect_timeout;
            let attempt = connect(&self.config, self.config.server(index), &answers);
            match rt::timeout(timeout, attempt).await {
                Some(Ok(connected)) => {
                    self.server.set(index);
                    self.state.server.store(index, Ordering::Relaxed);
                    return Ok(connected);
                }
                Some(Err(outage)) => last = outage,
                None => last = Outage::connect_timed_out(timeout),
            }
            if self.stopped.get() {
                break;
            }
        }
        Err(last)
    }

    /// Serves one connection to its end; returns why it ended.
    async fn serve(self: &Rc<Self>, connected: Connected) -> Outage {
        let Connected { read, write, closer, buffer, info } = connected;
        self.note(&info);
        let session = Rc::new(Session {
            closer,
            ending: RefCell::new(None),
            said: RefCell::new(None),
            heard_ns: Cell::new(monotonic_ns()),
            is_leaving: Cell::new(false),
            writer_ended: Signal::default(),
        });
        if self.stopped.get() {
            return Outage::closed();
        }
        self.session.replace(Some(session.clone()));
        self.state.is_own_there.store(true, Ordering::Relaxed);
        self.state.own_came.notify_one();
        rt::spawn(self.clone().write_all(session.clone(), write));
        rt::spawn(Self::watch(Rc::downgrade(self), session.clone()));
        let outage = self.read_all(&session, read, buffer).await;
        session.end(outage);
        self.session.replace(None);
        self.state.is_own_there.store(false, Ordering::Relaxed);
        // The writer first: what it still holds belongs to calls that end now.
        self.work.set();
        session.writer_ended.wait().await;
        session.ending.borrow().clone().unwrap_or_else(Outage::lost)
    }

    fn note(&self, info: &Info) {
        if info.max_payload > 0 {
            self.payload_bytes_max.set(Some(info.max_payload));
        }
    }

    /// Reads answers and hands them out, until the connection ends.
    async fn read_all(
        &self,
        session: &Session,
        mut read: ReadHalf,
        mut buffer: BytesMut,
    ) -> Outage {
        let mut is_large = false;
        loop {
            if let Err(outage) = self.hear(session, &mut buffer) {
                return outage;
            }
            if is_large && buffer.is_empty() {
                // A buffer that a long answer has made large would be kept and used again for as long as the connection.
                (buffer, is_large) = (BytesMut::with_capacity(READ_BYTES), false);
            }
            if buffer.capacity() - buffer.len() < READ_BYTES_MIN {
                let wanted = self.calls.borrow().wanted_bytes(&buffer);
                is_large |= wanted > READ_BYTES;
                buffer.reserve(wanted.clamp(READ_BYTES, READ_BYTES_MAX));
            }
            let (result, filled) = read.read(buffer).await;
            buffer = filled;
            match result {
                Ok(0) | Err(_) => return session.lost(),
                Ok(_) if session.is_ending() => return session.lost(),
                Ok(_) => {}
            }
            session.heard_ns.set(monotonic_ns());
        }
    }

    /// Takes what was read.
    fn hear(&self, session: &Session, buffer: &mut BytesMut) -> Result<(), Outage> {
        let mut calls = self.calls.borrow_mut();
        loop {
            match calls.receive(buffer).map_err(|error| Outage::protocol(error.0))? {
                None => break,
                Some(Said::Info(info)) => {
                    let info = Info::parse(&info)?;
                    self.note(&info);
                    // Where there is no other, it serves as long as it does.
                    session.is_leaving.set(info.is_leaving && self.config.servers() > 1);
                }
                Some(Said::Error(text)) => {
                    let is_denied = text.to_ascii_lowercase().contains("permissions violation");
                    let outage = match Outage::of_greeting(&text) {
                        outage if outage.is_of_login() => outage,
                        _ => Outage::ended(&text),
                    };
                    if is_denied {
                        // Answers do not come any more.
                        return Err(outage);
                    }
                    session.said.borrow_mut().get_or_insert(outage);
                }
            }
        }
        if calls.has_unsent() {
            self.work.set();
        }
        if session.is_leaving.get() && calls.sent() == 0 {
            return Err(Outage::ended("it is about to shut down"));
        }
        Ok(())
    }

    /// Writes what calls have left to be sent, as much at a time as there is.
    async fn write_all(self: Rc<Self>, session: Rc<Session>, mut write: WriteHalf) {
        let mut buffer = Vec::new();
        while !session.is_ending() {
            let (now_ns, bytes_max) = (monotonic_ns(), self.payload_bytes_max());
            let is_open = !session.is_leaving.get();
            buffer = self.calls.borrow_mut().take_unsent(buffer, now_ns, bytes_max, is_open);
            if buffer.is_empty() {
                self.work.wait().await;
                continue;
            }
            self.count(|facts| facts.writes += 1);
            let result;
            (result, buffer) = write.write_all(buffer).await;
            if result.is_err() {
                session.end(session.lost());
            }
        }
        session.writer_ended.set();
    }

    /// Ends calls whose time is up, and the connection when the server shows no sign of life; asks for one when there was none for long.
    async fn watch(wire: Weak<Self>, session: Rc<Session>) {
        let mut asked_ns = 0;
        loop {
            let Some(this) = wire.upgrade() else { return };
            if session.is_ending() {
                return;
            }
            let (answer_timeout, ping_after) = (this.config.answer_timeout, this.config.ping_after);
            let (now_ns, heard_ns) = (monotonic_ns(), session.heard_ns.get());
            let unresponsive = Outage::unresponsive(answer_timeout);
            let patience_ns = answer_timeout.as_nanos() as u64;
            let expired =
                this.calls.borrow_mut().expire(now_ns, heard_ns, patience_ns, &unresponsive);
            let due_ns = match expired {
                Ok(due_ns) => due_ns.unwrap_or(u64::MAX),
                Err(outage) => return session.end(outage),
            };
            let silent = Duration::from_nanos(now_ns.saturating_sub(heard_ns));
            if silent >= ping_after + answer_timeout {
                return session.end(unresponsive);
            }
            if silent >= ping_after && asked_ns != heard_ns {
                asked_ns = heard_ns;
                this.calls.borrow_mut().ping();
                this.work.set();
            }
            if session.is_leaving.get() && this.calls.borrow().sent() == 0 {
                return session.end(Outage::ended("it is about to shut down"));
            }
            drop(this);
            // A call that begins meanwhile is noticed late by less than an eighth of its time.
            let (least, step) = (Duration::from_millis(1), (answer_timeout / 8).min(ping_after));
            rt::sleep(Duration::from_nanos(due_ns).min(step).max(least)).await;
        }
    }
}
