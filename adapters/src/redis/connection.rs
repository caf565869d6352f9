//! The one connection of a shard to a Redis: made, watched, and made again.
//!
//! Calls of one turn of the loop go out in one write, and the answers that one read brings are handed out in one pass.
//! While there is no connection, calls wait only as long as one is expected at once; else they are refused at once
//! ([`Breaker`]). Every call ends: with its answer, or when the connection is lost or given up as dead. Three tasks
//! belong to it: one that connects and reads, one that writes, one that watches the time.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prism_io::clock::monotonic_ns;
use prism_io::net::{Closer, ReadHalf, Stream, WriteHalf, resolve};
use prism_io::rt::{self, Signal};

use super::codec::{self, Framer, Replies, Value};
use super::config::{Doors, RedisConfig};
use super::errors::{self, Outage};
use super::pipeline::{Pipeline, Ticket};
use super::scripts::Script;
use super::topics::Topics;
use crate::breaker::{Breaker, Circuit};
use crate::call::{Context, NO_DEADLINE_NS};
use crate::error::Error;

/// The buffer that answers are read into, while they are small.
const READ_BYTES: usize = 64 * 1024;

/// A read is not begun with less room than this.
const READ_BYTES_MIN: usize = 4 * 1024;

/// Buffers of a group that are larger are not kept for the next one.
const GROUP_BYTES_KEPT_MAX: usize = 256 * 1024;

/// The oldest Redis that has what is asked of it (PEXPIRETIME, `SET … GET` with a condition).
const MAJOR_VERSION_MIN: u32 = 7;

/// What a connection has done so far; counted by its shard, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionFacts {
    /// Calls that were sent.
    pub calls: u64,
    /// Writes that they were sent with: calls per write is the batch size reached.
    pub writes: u64,
    /// Reads that brought answers.
    pub reads: u64,
    /// Connections that came about.
    pub connects: u64,
    /// Attempts that failed, and connections that were lost.
    pub outages: u64,
    /// Calls that were refused at once, because there was no connection or there were too many.
    pub refused: u64,
    /// Calls that a node of a cluster has sent on because a slot is somewhere else now (MOVED).
    pub moved: u64,
    /// Calls that it has sent on because a slot is on its way (ASK).
    pub asked: u64,
    /// Calls under way.
    pub calls_under_way: usize,
    /// Whether there is a connection.
    pub is_connected: bool,
}

/// Commands of several calls that go out as parts of one.
#[derive(Default)]
pub(super) struct Group {
    pub(super) buffer: Vec<u8>,
    pub(super) commands: usize,
    pub(super) members: Vec<GroupMember>,
    /// Scripts whose source is among the commands already, of which slot.
    scripts: Vec<(Script, u16)>,
}

/// One call of a group.
pub(super) struct GroupMember {
    /// Replies that it gets.
    pub(super) replies: usize,
    /// In a cluster, the slot of its keys.
    pub(super) slot: u16,
    /// Where its commands are in the buffer.
    pub(super) bytes: Range<usize>,
    /// Where it looks for them.
    seat: u32,
}

/// Where the calls of groups look for their replies; the places are used again.
#[derive(Default)]
struct Seats {
    replies: Vec<Option<Bytes>>,
    free: Vec<u32>,
}

/// The place of one call, which it leaves when it ends.
struct Seat<'a>(&'a RefCell<Seats>, u32);

impl<'a> Seat<'a> {
    fn take(seats: &'a RefCell<Seats>) -> Self {
        let mut all = seats.borrow_mut();
        let number = all.free.pop().unwrap_or(all.replies.len() as u32);
        if number as usize == all.replies.len() {
            all.replies.push(None);
        }
        Seat(seats, number)
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut all = self.0.borrow_mut();
        all.replies[self.1 as usize] = None;
        all.free.push(self.1);
    }
}

/// See the module.
pub(super) struct Link {
    config: RedisConfig,
    /// Where it may be made to.
    doors: Doors,
    /// Attempts so far: each begins with another one of these.
    attempts: Cell<usize>,
    /// Where it was last made to.
    address: RefCell<(String, u16)>,
    /// Set while calls are gathered.
    group: RefCell<Option<Group>>,
    seats: RefCell<Seats>,
    /// A group that was sent, whose buffers the next one uses.
    spare: Cell<Option<Group>>,
    /// Number of the connection that stands; 0: none does.
    serial: Cell<u64>,
    pipeline: RefCell<Pipeline>,
    breaker: RefCell<Breaker>,
    /// Why calls are refused while the circuit is not closed.
    outage: RefCell<Outage>,
    /// Set when there is something to write, or nothing more ever.
    work: Signal,
    /// Who hears what Redis says by itself, on a connection that is subscribed.
    topics: Weak<Topics>,
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
    /// When something last came, in monotonic ns.
    heard_ns: Cell<u64>,
    since_ns: u64,
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
}

/// Gives up a call whose caller goes away.
struct Guard<'a> {
    pipeline: &'a RefCell<Pipeline>,
    ticket: Option<Ticket>,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.pipeline.borrow_mut().abandon(ticket);
        }
    }
}

impl Link {
    /// Begins to connect. Needs a runtime around it.
    pub(super) fn start(config: RedisConfig) -> Rc<Self> {
        let doors = config.doors();
        Self::start_for(config, Weak::new(), doors)
    }

    /// The same to any of several doors, and for subscriptions: these are told what comes, and when the connection ends.
    pub(super) fn start_for(config: RedisConfig, topics: Weak<Topics>, doors: Doors) -> Rc<Self> {
        let link = Rc::new(Self::new(config, topics, doors));
        rt::spawn(link.clone().run());
        link
    }

    /// One that is never made: its calls are refused.
    pub(super) fn refusing(config: RedisConfig, outage: Outage) -> Rc<Self> {
        let doors = config.doors();
        let link = Self::new(config, Weak::new(), doors);
        link.stopped.set(true);
        link.outage.replace(outage);
        Rc::new(link)
    }

    fn new(config: RedisConfig, topics: Weak<Topics>, doors: Doors) -> Self {
        Link {
            pipeline: RefCell::new(Pipeline::new(config.calls_max, config.unsent_bytes_max)),
            breaker: RefCell::new(Breaker::new(config.backoff)),
            outage: RefCell::new(Outage::closed()),
            work: Signal::default(),
            stopped: Cell::new(false),
            session: RefCell::new(None),
            facts: Cell::default(),
            group: RefCell::new(None),
            seats: RefCell::default(),
            spare: Cell::default(),
            serial: Cell::new(0),
            topics,
            address: RefCell::new((config.host.clone(), config.port)),
            doors,
            attempts: Cell::new(0),
            config,
        }
    }

    /// Makes a call of one or more commands, written by `write`, and waits for all of their replies.
    #[inline]
    pub(super) async fn call(
        &self,
        context: &Context<'_>,
        replies: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Bytes, Error> {
        if self.is_grouping() {
            return Ok(self.join(0, replies, write).await);
        }
        if self.breaker.borrow().circuit() != Circuit::Closed || self.stopped.get() {
            return Err(self.refusal(context));
        }
        let times = (monotonic_ns(), context.deadline_ns);
        let begun = self.pipeline.borrow_mut().begin(replies as u32, times, write);
        let Some(ticket) = begun else {
            self.count(|facts| facts.refused += 1);
            return Err(errors::busy(context, self.config.calls_max));
        };
        self.count(|facts| facts.calls += 1);
        self.work.set();
        let mut guard = Guard { pipeline: &self.pipeline, ticket: Some(ticket) };
        let answered = poll_fn(|task| self.pipeline.borrow_mut().poll(ticket, task.waker())).await;
        guard.ticket = None;
        answered.map_err(|outage| outage.error(context, self.retry_delay()))
    }

    /// Gathers the commands of the calls that `begin` polls, instead of sending them.
    pub(super) fn group<T>(&self, begin: impl FnOnce() -> T) -> (T, Group) {
        self.group.replace(Some(self.spare.take().unwrap_or_default()));
        let begun = begin();
        (begun, self.group.take().unwrap_or_default())
    }

    /// Gives a call of a group its replies.
    pub(super) fn answer(&self, member: &GroupMember, replies: Bytes) {
        self.seats.borrow_mut().replies[member.seat as usize] = Some(replies);
    }

    /// Keeps the buffers of a group for the next one, unless they have become large.
    pub(super) fn give_back(&self, mut group: Group) {
        if group.buffer.capacity() <= GROUP_BYTES_KEPT_MAX {
            group.buffer.clear();
            group.members.clear();
            group.scripts.clear();
            group.commands = 0;
            self.spare.set(Some(group));
        }
    }

    /// Whether calls are being gathered: then each gets one answer, and cannot ask again.
    #[inline]
    pub(super) fn is_grouping(&self) -> bool {
        self.group.borrow().is_some()
    }

    /// Whether a script's source has to come along: the first time in a group, where there is no second attempt.
    /// In a cluster each slot's commands are a transaction of their own.
    pub(super) fn is_new_to_group(&self, script: Script, slot: u16) -> bool {
        let mut group = self.group.borrow_mut();
        let Some(group) = &mut *group else { return false };
        let is_new = !group.scripts.contains(&(script, slot));
        if is_new {
            group.scripts.push((script, slot));
        }
        is_new
    }

    /// Calls that have been gathered so far.
    pub(super) fn group_members(&self) -> usize {
        self.group.borrow().as_ref().map_or(0, |group| group.members.len())
    }

    /// A call of a group, on keys of this slot where that is a cluster's.
    pub(super) async fn join(
        &self,
        slot: u16,
        replies: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Bytes {
        let seat = Seat::take(&self.seats);
        if let Some(group) = &mut *self.group.borrow_mut() {
            let begin = group.buffer.len();
            write(&mut group.buffer);
            let bytes = begin..group.buffer.len();
            group.commands += replies;
            group.members.push(GroupMember { replies, slot, bytes, seat: seat.1 });
        }
        // Nobody is woken: whoever has gathered the calls polls them when their answers are there.
        let take = || self.seats.borrow_mut().replies[seat.1 as usize].take();
        poll_fn(|_| take().map_or(Poll::Pending, Poll::Ready)).await
    }

    /// Number of the connection that stands, never used again; 0: none does.
    pub(super) fn session(&self) -> u64 {
        match self.session.borrow().is_some() {
            true => self.serial.get(),
            false => 0,
        }
    }

    /// What CLIENT LIST calls the connection.
    pub(super) fn client_name(&self) -> &str {
        &self.config.client_name
    }

    /// Where the connection was last made to.
    pub(super) fn address(&self) -> (String, u16) {
        self.address.borrow().clone()
    }

    /// Why calls were last refused.
    pub(super) fn last_outage(&self) -> Outage {
        self.outage.borrow().clone()
    }

    /// What it has done so far.
    pub(super) fn facts(&self) -> ConnectionFacts {
        let calls_under_way = self.pipeline.borrow().calls();
        let is_connected = self.session.borrow().is_some();
        ConnectionFacts { calls_under_way, is_connected, ..self.facts.get() }
    }

    /// Ends it for good.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
        if let Some(session) = self.session.borrow().as_ref() {
            session.end(Outage::closed());
        }
        self.lose(&Outage::closed());
        self.work.set();
    }

    /// Ends every call and every subscription of a connection that is gone.
    fn lose(&self, outage: &Outage) {
        self.pipeline.borrow_mut().lose(outage);
        if let Some(topics) = self.topics.upgrade() {
            topics.cut_off();
        }
    }

    /// Why calls are refused.
    #[cold]
    pub(super) fn refusal(&self, context: &Context<'_>) -> Error {
        self.count(|facts| facts.refused += 1);
        self.outage.borrow().error(context, self.retry_delay())
    }

    /// When it is worth trying again.
    fn retry_delay(&self) -> Duration {
        match self.breaker.borrow().circuit() {
            Circuit::Open { until_ns } => {
                Duration::from_nanos(until_ns.saturating_sub(monotonic_ns()))
                    .max(self.config.backoff.delay_min)
            }
            Circuit::Closed | Circuit::HalfOpen => self.config.backoff.delay_min,
        }
    }

    #[inline]
    fn count(&self, count: impl FnOnce(&mut ConnectionFacts)) {
        let mut facts = self.facts.get();
        count(&mut facts);
        self.facts.set(facts);
    }

    /// Connects, serves, and begins again, until it is stopped.
    async fn run(self: Rc<Self>) {
        while !self.stopped.get() {
            self.breaker.borrow_mut().attempt();
            let timeout = self.config.connect_timeout;
            let connected = rt::timeout(timeout, self.connect()).await;
            let next_ns = match connected.unwrap_or_else(|| {
                Err(Outage::connect_timed_out(timeout, self.config.tls.is_some()))
            }) {
                Err(outage) => {
                    self.lose(&outage);
                    self.outage.replace(outage);
                    self.breaker.borrow_mut().failed(monotonic_ns())
                }
                Ok((read, write, closer)) => {
                    self.count(|facts| facts.connects += 1);
                    self.breaker.borrow_mut().succeeded();
                    let outage = self.serve(read, write, closer).await;
                    let (since_ns, now_ns) = (outage.1, monotonic_ns());
                    self.outage.replace(outage.0);
                    self.breaker.borrow_mut().lost(now_ns, now_ns - since_ns)
                }
            };
            self.count(|facts| facts.outages += 1);
            while !self.stopped.get() && monotonic_ns() < next_ns {
                let left = Duration::from_nanos(next_ns.saturating_sub(monotonic_ns()));
                // In steps, so that a link that is stopped does not outlive it for long.
                rt::sleep(left.clamp(Duration::from_millis(1), Duration::from_millis(250))).await;
            }
        }
    }

    /// Serves one connection to its end; returns why it ended, and since when it stood.
    async fn serve(
        self: &Rc<Self>,
        read: ReadHalf,
        write: WriteHalf,
        closer: Closer,
    ) -> (Outage, u64) {
        let now_ns = monotonic_ns();
        let session = Rc::new(Session {
            closer,
            ending: RefCell::new(None),
            heard_ns: Cell::new(now_ns),
            since_ns: now_ns,
            writer_ended: Signal::default(),
        });
        if self.stopped.get() {
            return (Outage::closed(), now_ns);
        }
        self.serial.set(self.serial.get() + 1);
        self.session.replace(Some(session.clone()));
        rt::spawn(self.clone().write_all(session.clone(), write));
        rt::spawn(Self::watch(Rc::downgrade(self), session.clone()));
        let outage = self.read_all(&session, read).await;
        session.end(outage);
        self.session.replace(None);
        let outage = session.ending.borrow().clone().unwrap_or_else(Outage::lost);
        // The writer first: what it still holds belongs to calls that end now.
        self.work.set();
        session.writer_ended.wait().await;
        self.lose(&outage);
        (outage, session.since_ns)
    }

    /// Reads answers and hands them out, until the connection ends.
    async fn read_all(&self, session: &Session, mut read: ReadHalf) -> Outage {
        let (mut buffer, mut is_large) = (BytesMut::with_capacity(READ_BYTES), false);
        loop {
            if is_large && buffer.is_empty() {
                // A buffer that a long answer has made large would be kept and used again for as long as the connection.
                (buffer, is_large) = (BytesMut::with_capacity(READ_BYTES), false);
            }
            if buffer.capacity() - buffer.len() < READ_BYTES_MIN {
                let wanted = self.pipeline.borrow().wanted_bytes(&buffer);
                is_large |= wanted > READ_BYTES;
                buffer.reserve(wanted.max(READ_BYTES));
            }
            let (result, filled) = read.read(buffer).await;
            buffer = filled;
            match result {
                Ok(0) => return Outage::lost(),
                Ok(_) if session.is_ending() => return Outage::lost(),
                Ok(_) => {}
                Err(_) => return Outage::lost(),
            }
            session.heard_ns.set(monotonic_ns());
            self.count(|facts| facts.reads += 1);
            let topics = self.topics.upgrade();
            let pushed = |frame: &[u8]| match &topics {
                Some(topics) => topics.hear(frame),
                None => Ok(false),
            };
            let received = self.pipeline.borrow_mut().receive(&mut buffer, pushed);
            if let Err(error) = received {
                return Outage::protocol(error);
            }
            if topics.is_some() {
                // Subscribers have their turn, however much there is to be read.
                rt::yield_now().await;
            }
        }
    }

    /// Writes what calls have left to be sent, as much at a time as there is.
    async fn write_all(self: Rc<Self>, session: Rc<Session>, mut write: WriteHalf) {
        let mut buffer = Vec::new();
        while !session.is_ending() {
            buffer = self.pipeline.borrow_mut().take_unsent(buffer, monotonic_ns());
            if buffer.is_empty() {
                self.work.wait().await;
                continue;
            }
            self.count(|facts| facts.writes += 1);
            let result;
            (result, buffer) = write.write_all(buffer).await;
            if result.is_err() {
                session.end(Outage::lost());
            }
        }
        session.writer_ended.set();
    }

    /// Gives the connection up when Redis shows no sign of life, and asks for one when there was none for long.
    async fn watch(link: Weak<Self>, session: Rc<Session>) {
        loop {
            let Some(this) = link.upgrade() else { return };
            if session.is_ending() {
                return;
            }
            let (answer_timeout, ping_after) = (this.config.answer_timeout, this.config.ping_after);
            let (now_ns, heard_ns) = (monotonic_ns(), session.heard_ns.get());
            let oldest_ns = this.pipeline.borrow().oldest_ns();
            // Long answers come in pieces; every piece is a sign of life.
            let (since_ns, patience) = match oldest_ns {
                Some(oldest_ns) => (oldest_ns.max(heard_ns), answer_timeout),
                None => (heard_ns, ping_after),
            };
            let silent = Duration::from_nanos(now_ns.saturating_sub(since_ns));
            if silent >= patience {
                if oldest_ns.is_some() {
                    return session.end(Outage::unresponsive(answer_timeout));
                }
                this.ping();
            }
            drop(this);
            // A call that begins meanwhile is noticed late by less than an eighth of its time.
            let step = answer_timeout / 8;
            rt::sleep(patience.saturating_sub(silent).clamp(Duration::from_millis(1), step)).await;
        }
    }

    /// Asks for a sign of life that nobody waits for.
    fn ping(&self) {
        self.tell(1, |out| {
            codec::put_command(out, 1);
            codec::put(out, b"PING");
        });
    }

    /// Sends what nobody waits for the replies of, unless too much is under way.
    pub(super) fn tell(&self, replies: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let mut pipeline = self.pipeline.borrow_mut();
        if let Some(ticket) = pipeline.begin(replies, (monotonic_ns(), NO_DEADLINE_NS), write) {
            pipeline.abandon(ticket);
            self.work.set();
        }
    }

    /// Makes a connection on which calls can be made: logged in, database chosen, scripts loaded.
    async fn connect(&self) -> Result<(ReadHalf, WriteHalf, Closer), Outage> {
        let stream = self.dial().await.map_err(|error| Outage::unreachable(&error))?;
        let stream = match &self.config.tls {
            None => stream,
            Some(tls) => stream
                .secure_to(&tls.connector)
                .await
                .map_err(|failure| Outage::tls(failure, &tls.files.server_name))?,
        };
        let closer = stream.closer().map_err(|error| Outage::unreachable(&error))?;
        let (mut read, mut write) = stream.split();
        let (greeting, commands) = self.greeting();
        let (sent, _) = write.write_all(greeting).await;
        // With TLS 1.3 a server tells only now that it does not take our certificate.
        let broken = |error: &io::Error| match self.config.tls {
            Some(_) => Outage::tls_refused(error),
            None => Outage::unreachable(error),
        };
        sent.map_err(|error| broken(&error))?;
        let (mut framer, mut buffer) = (Framer::default(), BytesMut::with_capacity(READ_BYTES));
        for command in 0..commands {
            let reply = loop {
                if let Some(frame) = framer.find(&buffer).map_err(Outage::protocol)? {
                    break buffer.split_to(frame.length);
                }
                buffer.reserve(READ_BYTES_MIN);
                let (result, filled) = read.read(buffer).await;
                buffer = filled;
                match result {
                    Ok(0) => return Err(Outage::unreachable(&io::ErrorKind::UnexpectedEof.into())),
                    Ok(_) => {}
                    Err(error) => return Err(broken(&error)),
                }
            };
            let mut replies = Replies::new(&reply);
            match replies.next().map_err(Outage::protocol)? {
                Value::Error(text) => return Err(Outage::of_greeting(text)),
                Value::Map(pairs) if command == 0 => {
                    check_server(&mut replies, pairs, self.config.cluster)?;
                }
                _ => {}
            }
        }
        Ok((read, write, closer))
    }

    async fn dial(&self) -> io::Result<Stream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let mut doors = self.doors.borrow().clone();
        // One that never answers costs an attempt; the next one begins with another.
        let first = self.attempts.replace(self.attempts.get() + 1) % doors.len().max(1);
        doors.rotate_left(first);
        for (host, port) in doors {
            let addresses = match resolve(&host, port).await {
                Ok(addresses) => addresses,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            for address in addresses {
                match Stream::connect(address).await {
                    Ok(stream) => {
                        self.address.replace((host, port));
                        return Ok(stream);
                    }
                    Err(error) => last = error,
                }
            }
        }
        Err(last)
    }

    /// What is said first, and how many commands that is.
    fn greeting(&self) -> (Vec<u8>, usize) {
        let (config, mut out) = (&self.config, Vec::new());
        codec::put_command(&mut out, if config.login.is_some() { 7 } else { 4 });
        codec::put(&mut out, b"HELLO");
        codec::put(&mut out, b"3");
        if let Some(login) = &config.login {
            codec::put(&mut out, b"AUTH");
            codec::put(&mut out, login.user.as_bytes());
            codec::put(&mut out, login.password.as_bytes());
        }
        codec::put(&mut out, b"SETNAME");
        codec::put(&mut out, config.client_name.as_bytes());
        let mut commands = 1;
        if config.database != 0 {
            codec::put_command(&mut out, 2);
            codec::put(&mut out, b"SELECT");
            codec::put_number(&mut out, config.database.into());
            commands += 1;
        }
        for script in Script::ALL {
            codec::put_command(&mut out, 3);
            codec::put(&mut out, b"SCRIPT");
            codec::put(&mut out, b"LOAD");
            codec::put(&mut out, script.source().as_bytes());
            commands += 1;
        }
        (out, commands)
    }
}

/// Whether the server that HELLO describes is one to work with.
fn check_server(
    replies: &mut Replies<'_>,
    pairs: u64,
    is_cluster_expected: bool,
) -> Result<(), Outage> {
    for _ in 0..pairs {
        let (name, value) = (replies.next(), replies.next());
        let (name, value) = (name.map_err(Outage::protocol)?, value.map_err(Outage::protocol)?);
        match (name, value) {
            (Value::Blob(b"version"), Value::Blob(version)) => {
                let version = String::from_utf8_lossy(version);
                let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
                if major.is_some_and(|major| major < MAJOR_VERSION_MIN) {
                    let message =
                        format!("it is Redis {version}; {MAJOR_VERSION_MIN}.0 or newer is needed");
                    return Err(Outage::unfit("BACKEND_TOO_OLD", message));
                }
            }
            (Value::Blob(b"mode"), Value::Blob(mode)) => match (mode, is_cluster_expected) {
                (b"cluster", false) => {
                    let message =
                        "it is a node of a cluster: write `cluster: true` beside its address";
                    return Err(Outage::unfit("BACKEND_IS_CLUSTER", message.to_owned()));
                }
                (b"standalone" | b"sentinel", true) => {
                    let message = "it is no node of a cluster: leave `cluster` out";
                    return Err(Outage::unfit("BACKEND_IS_NO_CLUSTER", message.to_owned()));
                }
                _ => {}
            },
            (_, Value::Array(count)) => replies.skip(count).map_err(Outage::protocol)?,
            (_, Value::Map(pairs)) => replies.skip(2 * pairs).map_err(Outage::protocol)?,
            _ => {}
        }
    }
    Ok(())
}
