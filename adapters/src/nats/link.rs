//! The two ways to a NATS: the shard's own connection for whatever is answered by one message, and the bridge to async-nats, which is opened
//! when something is first asked that is answered by several or goes on. Answers come back as messages or as failures.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::{HeaderMap, Message, Subject};
use bytes::Bytes;
use prism_io::bridge::{Failure, Port, bridge, spawn_beside};
use prism_io::rt;
use tokio::sync::Notify;

use super::config::NatsConfig;
use super::errors::{self, Outage};
use super::inbox::Inbox;
use super::session;
use super::wire::Wire;
use crate::call::Context;
use crate::error::Error;

/// Room for a message's headers within what the server takes.
const HEADER_BYTES_MAX: usize = 1024;

/// A message on its way to the server.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub(super) subject: Subject,
    /// Where an answer is to go that is not the call's.
    pub(super) reply: Option<Subject>,
    pub(super) headers: Option<HeaderMap>,
    pub(super) payload: Bytes,
}

impl Outgoing {
    /// A message without headers.
    pub(super) fn plain(subject: impl Into<Subject>, payload: Bytes) -> Self {
        Outgoing { subject: subject.into(), reply: None, headers: None, payload }
    }

    fn len(&self) -> usize {
        self.subject.len() + self.payload.len() + 64
    }
}

/// What is asked of a server.
#[derive(Debug)]
pub(super) enum Ask {
    /// A message that is answered by one.
    One(Outgoing),
    /// Messages of which each is answered by one.
    Each(Vec<Outgoing>),
    /// Messages of which only the last is answered.
    Last(Vec<Outgoing>),
    /// Messages that nobody answers; the answer says that the server has taken them.
    Tell(Vec<Outgoing>),
    /// What goes over the bridge.
    Beside(Beside),
}

impl Ask {
    /// A message that is answered by several, the last of which has a status.
    pub(super) fn many(message: Outgoing) -> Self {
        Ask::Beside(Beside::Many(message))
    }

    /// A message that is answered by messages under their own subjects: so many of them, or fewer and a last one with a status.
    pub(super) fn pull(message: Outgoing, count: usize) -> Self {
        Ask::Beside(Beside::Pull(message, count))
    }

    /// Has what comes to a subject put into an inbox; the answer says that nothing is missed from now on.
    pub(super) fn subscribe(subject: impl Into<Subject>, inbox: Arc<Inbox>) -> Self {
        Ask::Beside(Beside::Subscribe(subject.into(), inbox))
    }

    /// The messages that go over the shard's own connection.
    pub(super) fn messages(&self) -> &[Outgoing] {
        match self {
            Ask::One(message) => std::slice::from_ref(message),
            Ask::Each(messages) | Ask::Last(messages) | Ask::Tell(messages) => messages,
            Ask::Beside(_) => &[],
        }
    }
}

/// What is left to async-nats: whatever is answered by more than one message, or goes on.
#[derive(Clone, Debug)]
pub(super) enum Beside {
    /// See [`Ask::many`].
    Many(Outgoing),
    /// See [`Ask::pull`].
    Pull(Outgoing, usize),
    /// See [`Ask::subscribe`].
    Subscribe(Subject, Arc<Inbox>),
}

impl Beside {
    fn len(&self) -> usize {
        match self {
            Beside::Many(message) | Beside::Pull(message, _) => message.len(),
            Beside::Subscribe(subject, _) => subject.len(),
        }
    }

    /// The subject that the server would name if it refused it.
    pub(super) fn subject(&self) -> &Subject {
        match self {
            Beside::Many(message) | Beside::Pull(message, _) => &message.subject,
            Beside::Subscribe(subject, _) => subject,
        }
    }
}

/// Something to ask, as long as somebody waits for the answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) ask: Beside,
    /// After this it is not sent any more, monotonic ns.
    pub(super) deadline_ns: u64,
}

/// What comes back.
#[derive(Debug)]
pub(super) enum Answer {
    /// The one message that answers.
    One(Message),
    /// All of them.
    Several(Vec<Message>),
    /// The server has taken what it was told.
    Told,
    /// Why there is none.
    Failed(Outage),
}

/// What both ends of the bridge know of the client's connection.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) connects: AtomicU64,
    pub(super) outages: AtomicU64,
    /// Which of the servers the shard's own connection is to; the client begins with the same.
    pub(super) server: AtomicUsize,
    /// Whether that connection stands, and tells when it has come about: then the client's may be expected to come about too.
    pub(super) is_own_there: AtomicBool,
    pub(super) own_came: Notify,
}

/// What the connections have done so far, the shard's own and the client's; counted by their shard, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionFacts {
    /// Calls that were made.
    pub calls: u64,
    /// Writes to the shard's own connection: calls per write is the batch size reached.
    pub writes: u64,
    /// Connections that came about.
    pub connects: u64,
    /// Attempts that failed, and connections that were lost.
    pub outages: u64,
    /// Calls that were refused at once, because there were too many or no connection.
    pub refused: u64,
    /// Calls under way.
    pub calls_under_way: usize,
    /// Whether the shard's own connection stands.
    pub is_connected: bool,
}

/// See the module.
pub(super) struct Link {
    wire: Rc<Wire>,
    /// The way to the client, once something has gone it.
    beside: OnceCell<Rc<Port<Asked, Answer>>>,
    state: Arc<State>,
    config: NatsConfig,
    bytes_beside: Cell<usize>,
    refused: Cell<u64>,
}

/// Bytes of a call that is under way.
struct Bytesful<'a> {
    total: &'a Cell<usize>,
    bytes: usize,
}

impl Drop for Bytesful<'_> {
    fn drop(&mut self) {
        self.total.set(self.total.get() - self.bytes);
    }
}

impl Link {
    /// Begins to connect. Needs a runtime around it.
    pub(super) fn start(config: NatsConfig) -> Self {
        let state = Arc::new(State::default());
        Link {
            wire: Wire::start(config.clone(), state.clone()),
            beside: OnceCell::new(),
            state,
            config,
            bytes_beside: Cell::new(0),
            refused: Cell::new(0),
        }
    }

    /// Ends the shard's own connection; the client's ends with this.
    pub(super) fn stop(&self) {
        self.wire.stop();
    }

    /// Sends one message and waits for the one that answers it.
    pub(super) async fn one(
        &self,
        context: &Context<'_>,
        message: Outgoing,
    ) -> Result<Message, Error> {
        match self.call(context, &Ask::One(message)).await? {
            Answer::One(message) => Ok(message),
            _ => Err(errors::unexpected(context)),
        }
    }

    /// Makes a call. It is not sent any more once its deadline has passed.
    pub(super) async fn call(&self, context: &Context<'_>, ask: &Ask) -> Result<Answer, Error> {
        match ask {
            Ask::Beside(ask) => self.call_beside(context, ask.clone()).await,
            ask => self.wire.call(context, ask).await,
        }
    }

    async fn call_beside(&self, context: &Context<'_>, ask: Beside) -> Result<Answer, Error> {
        let bytes = ask.len();
        let total = self.bytes_beside.get();
        if total > 0 && total + bytes > self.config.bytes_max {
            return Err(self.refuse(context));
        }
        self.bytes_beside.set(total + bytes);
        let held = Bytesful { total: &self.bytes_beside, bytes };
        let port = self.beside.get_or_init(|| self.open_bridge());
        let answer = port.call(Asked { ask, deadline_ns: context.deadline_ns }).await;
        drop(held);
        match answer {
            Ok(Answer::Failed(outage)) => Err(outage.error(context)),
            Ok(answer) => Ok(answer),
            Err(Failure::Full) => Err(self.refuse(context)),
            Err(Failure::Lost) => Err(Outage::closed().error(context)),
        }
    }

    /// Has the client begin to connect.
    fn open_bridge(&self) -> Rc<Port<Asked, Answer>> {
        let (port, foreign) = bridge(self.config.calls_max);
        rt::spawn(port.clone().receive());
        // Where the thread cannot be started the other end is dropped, and every call is told that it is gone.
        let _ = spawn_beside(session::drive(self.config.clone(), foreign, self.state.clone()));
        port
    }

    #[cold]
    fn refuse(&self, context: &Context<'_>) -> Error {
        self.refused.set(self.refused.get() + 1);
        errors::busy(context, self.config.calls_max)
    }

    /// How long a call may go without its answer.
    pub(super) fn answer_timeout(&self) -> Duration {
        self.config.answer_timeout
    }

    /// How long the payload of a message of ours may be.
    pub(super) fn message_bytes_max(&self) -> usize {
        self.payload_bytes_max().saturating_sub(HEADER_BYTES_MAX)
    }

    /// What the server takes in one message, its headers included.
    pub(super) fn payload_bytes_max(&self) -> usize {
        self.wire.payload_bytes_max()
    }

    pub(super) fn facts(&self) -> ConnectionFacts {
        let own = self.wire.facts();
        let beside = self.beside.get().map(|port| port.facts()).unwrap_or_default();
        ConnectionFacts {
            calls: own.calls + beside.calls,
            connects: own.connects + self.state.connects.load(Ordering::Relaxed),
            outages: own.outages + self.state.outages.load(Ordering::Relaxed),
            refused: own.refused + self.refused.get(),
            calls_under_way: own.calls_under_way + beside.under_way,
            ..own
        }
    }
}
