//! The shard's end of the bridge: calls go over, their answers come back as messages or as failures.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::{HeaderMap, Message, Subject};
use bytes::Bytes;
use prism_io::bridge::{Failure, Port, bridge, spawn_beside};
use prism_io::rt;

use super::config::NatsConfig;
use super::errors::{self, Outage};
use super::inbox::Inbox;
use super::session;
use crate::call::Context;
use crate::error::Error;

/// What a server takes in one message before it has said so: the default of `max_payload`.
const MESSAGE_BYTES_DEFAULT: usize = 1024 * 1024;

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

/// What goes over the bridge.
#[derive(Debug)]
pub(super) enum Ask {
    /// A message that is answered by one.
    One(Outgoing),
    /// A message that is answered by several, the last of which has a status.
    Many(Outgoing),
    /// A message that is answered by messages under their own subjects: so many of them, or fewer and a last one with a status.
    Pull(Outgoing, usize),
    /// Messages of which each is answered by one.
    Each(Vec<Outgoing>),
    /// Messages of which only the last is answered.
    Last(Vec<Outgoing>),
    /// Messages that nobody answers; the answer says that the server has taken them.
    Tell(Vec<Outgoing>),
    /// Has what comes to a subject put into an inbox; the answer says that nothing is missed from now on.
    Subscribe(Subject, Arc<Inbox>),
}

impl Ask {
    fn len(&self) -> usize {
        match self {
            Ask::One(message) | Ask::Many(message) | Ask::Pull(message, _) => message.len(),
            Ask::Each(messages) | Ask::Last(messages) | Ask::Tell(messages) => {
                messages.iter().map(Outgoing::len).sum()
            }
            Ask::Subscribe(subject, _) => subject.len(),
        }
    }

    /// The subject that the server would name if it refused it.
    pub(super) fn subject(&self) -> Option<Subject> {
        match self {
            Ask::One(message) | Ask::Many(message) | Ask::Pull(message, _) => {
                Some(message.subject.clone())
            }
            Ask::Each(messages) | Ask::Last(messages) | Ask::Tell(messages) => {
                messages.first().map(|message| message.subject.clone())
            }
            Ask::Subscribe(subject, _) => Some(subject.clone()),
        }
    }
}

/// Something to ask, as long as somebody waits for the answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) ask: Ask,
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
    /// Why there is none.
    Failed(Outage),
}

/// What both ends know of the connection.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) connects: AtomicU64,
    pub(super) outages: AtomicU64,
    pub(super) is_connected: AtomicBool,
    /// What the server takes in one message; 0: it has not said so yet.
    pub(super) payload_bytes_max: AtomicUsize,
}

/// What a connection has done so far; counted by its shard, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionFacts {
    /// Calls that went over the bridge.
    pub calls: u64,
    /// Connections that came about.
    pub connects: u64,
    /// Attempts that failed, and connections that were lost.
    pub outages: u64,
    /// Calls that were refused at once, because there were too many.
    pub refused: u64,
    /// Calls under way.
    pub calls_under_way: usize,
    /// Whether there is a connection.
    pub is_connected: bool,
}

/// See the module.
pub(super) struct Link {
    port: Rc<Port<Asked, Answer>>,
    state: Arc<State>,
    calls_max: usize,
    bytes_max: usize,
    answer_timeout: Duration,
    bytes_under_way: Cell<usize>,
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
        let (port, foreign) = bridge(config.calls_max);
        let state = Arc::new(State::default());
        let (calls_max, bytes_max) = (config.calls_max, config.bytes_max);
        let answer_timeout = config.answer_timeout;
        rt::spawn(port.clone().receive());
        // Where the thread cannot be started the other end is dropped, and every call is told that it is gone.
        let _ = spawn_beside(session::drive(config, foreign, state.clone()));
        Link {
            port,
            state,
            calls_max,
            bytes_max,
            answer_timeout,
            bytes_under_way: Cell::new(0),
            refused: Cell::new(0),
        }
    }

    /// Sends one message and waits for the one that answers it.
    pub(super) async fn one(
        &self,
        context: &Context<'_>,
        message: Outgoing,
    ) -> Result<Message, Error> {
        match self.call(context, Ask::One(message)).await? {
            Answer::One(message) => Ok(message),
            _ => Err(errors::unexpected(context)),
        }
    }

    /// Makes a call. It is not handed to the client any more once its deadline has passed.
    pub(super) async fn call(&self, context: &Context<'_>, ask: Ask) -> Result<Answer, Error> {
        let bytes = ask.len();
        let total = self.bytes_under_way.get();
        if total > 0 && total + bytes > self.bytes_max {
            return Err(self.refuse(context));
        }
        self.bytes_under_way.set(total + bytes);
        let held = Bytesful { total: &self.bytes_under_way, bytes };
        let answer = self.port.call(Asked { ask, deadline_ns: context.deadline_ns }).await;
        drop(held);
        match answer {
            Ok(Answer::Failed(outage)) => Err(outage.error(context)),
            Ok(answer) => Ok(answer),
            Err(Failure::Full) => Err(self.refuse(context)),
            Err(Failure::Lost) => Err(Outage::closed().error(context)),
        }
    }

    #[cold]
    fn refuse(&self, context: &Context<'_>) -> Error {
        self.refused.set(self.refused.get() + 1);
        errors::busy(context, self.calls_max)
    }

    /// How long a call may go without its answer.
    pub(super) fn answer_timeout(&self) -> Duration {
        self.answer_timeout
    }

    /// How long the payload of a message of ours may be.
    pub(super) fn message_bytes_max(&self) -> usize {
        self.payload_bytes_max().saturating_sub(HEADER_BYTES_MAX)
    }

    /// What the server takes in one message, its headers included.
    pub(super) fn payload_bytes_max(&self) -> usize {
        match self.state.payload_bytes_max.load(Ordering::Relaxed) {
            0 => MESSAGE_BYTES_DEFAULT,
            told => told,
        }
    }

    pub(super) fn facts(&self) -> ConnectionFacts {
        let facts = self.port.facts();
        ConnectionFacts {
            calls: facts.calls,
            connects: self.state.connects.load(Ordering::Relaxed),
            outages: self.state.outages.load(Ordering::Relaxed),
            refused: self.refused.get(),
            calls_under_way: facts.under_way,
            is_connected: self.state.is_connected.load(Ordering::Relaxed),
        }
    }
}
