//! A shard: everything that one core owns, and what its request path asks of it.
//!
//! Nothing here is shared with another thread but the namespace table (which only grows), the numbers that it counts (it is
//! their only writer) and its end of the mesh.

mod backends;
mod control;
mod dead_letters;
mod deadlines;
mod endings;
mod errands;
pub(crate) mod lanes;
mod log;
mod open;
mod outbox;
mod over_quota;
mod run;
mod service;
mod snapshots;
mod stopping;

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use prism_adapters::memory::Memstore;
use prism_adapters::{Admission as _, Error, Kind, Reply, Revision};
use prism_io::calls::StartCall;
use prism_io::clock;
use prism_io::grpc::Metadata;
use prism_io::server::Connection;
use prism_proto::catalogue::Method;

use backends::Attached;
pub(crate) use dead_letters::DeadLetters;
pub(crate) use deadlines::Deadlines;
pub(crate) use endings::{Endings, has_ended};
pub(crate) use errands::{Ending, Errand, Errands};
use lanes::Lanes;
pub(crate) use log::Log;
pub(crate) use open::{OpenError, directory_options, log_config};
pub(crate) use outbox::Outbox;
pub(crate) use over_quota::OverQuota;
pub(crate) use run::{Ended, Launch, Report, run};
pub(crate) use service::{is_read, route};
pub(crate) use stopping::Stopping;

use crate::access::{Gate, who_connects};
use crate::audit::{ShardAudit, Who};
use crate::config::{Config, Topics};
use crate::control::Ask;
use crate::metrics::ShardMetrics;
use crate::namespaces::{Namespace, Namespaces};
use crate::quota::{QUOTA_REQUESTS, Refusal, Subscription, Usage};
use crate::remote::Peers;
use crate::request::stream::STREAMS_MAX;
use crate::request::{self, Call, Door, LineBudget, LsnToken, Origin, Target};
use crate::services::Health;

/// Reply buffers that a shard keeps.
const REPLIES_MAX: usize = 1024;
/// Reply buffers above this size are given back to the system.
const REPLY_BYTES_KEPT_MAX: usize = 16 * 1024;
/// After how long a call that was refused for want of room may be tried again.
pub(crate) const RETRY_DELAY: std::time::Duration = std::time::Duration::from_millis(100);

/// The reasons that `prism_refused_total` counts by; any other counts as the last.
pub(crate) const REFUSAL_REASONS: &[&str] = &[
    "NAMESPACE_BUSY",
    "CONNECTION_BUSY",
    "SHARD_BUSY",
    "WAL_FULL",
    "WAL_BUSY",
    "WAL_FAILED",
    "BACKLOG_FULL",
    "OUTBOX_FULL",
    "LANE_BEHIND",
    "MEMORY_FULL",
    "MESSAGE_TOO_LARGE",
    "IDEMPOTENCY_TABLE_FULL",
    "IDEMPOTENCY_KEY_REUSED",
    "NAMESPACE_UNKNOWN",
    "INTERFACE_NOT_OFFERED",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "QUOTA_REQUESTS",
    "QUOTA_BYTES",
    "QUOTA_SUBSCRIPTIONS",
    "AUDIT_BUSY",
    "AUDIT_FAILED",
    "TOKEN_FAILURES",
    "OTHER",
];

/// One shard.
pub(crate) struct Shard {
    pub(crate) index: usize,
    pub(crate) namespaces: Arc<Namespaces>,
    /// Who may what; `None`: everybody everything.
    pub(crate) gate: Option<Gate>,
    pub(crate) audit: Rc<ShardAudit>,
    /// The way to the control thread.
    ask: Ask,
    /// Questions that it has not answered.
    questions: Cell<usize>,
    pub(crate) store: Rc<Memstore>,
    /// By place in the configuration; the first is `store`.
    backends: Box<[Attached]>,
    /// As `backends`: those that came into use since the start.
    late_backends: Box<[OnceCell<Attached>]>,
    /// As it was at the start.
    config: Arc<Config>,
    /// What it is called where it connects to backends.
    client_name: String,
    this: Weak<Shard>,
    pub(crate) log: Log,
    pub(crate) lanes: Lanes,
    pub(crate) outbox: Outbox,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) deadlines: Deadlines,
    pub(crate) replies: Replies,
    pub(crate) refusals: Refusals,
    pub(crate) over_quota: OverQuota,
    pub(crate) lines: LineBudget,
    pub(crate) metrics: ShardMetrics,
    pub(crate) peers: Peers,
    pub(crate) health: Rc<Health>,
    /// By place in the configuration: bytes of requests in flight.
    in_flight: Box<[Cell<u64>]>,
    /// By place in the configuration: what was used of quotas.
    usage: Box<[Usage]>,
    connection_bytes_max: u64,
    default_deadline_ns: u64,
    calls: OnceCell<Rc<dyn StartCall<Call>>>,
    streams: Cell<usize>,
    pub(crate) stopping: Stopping,
    pub(crate) endings: Endings,
    /// Number of this start of the process on this data directory, from 1.
    start: u32,
    unlogged: Cell<u64>,
    hash_key: (u64, u64),
}

impl Shard {
    /// Starts a unary call. Answers it at once when every slot is taken.
    pub(crate) fn start(&self, call: Call) {
        let Some(calls) = self.calls.get() else {
            unreachable!("a shard serves after it was wired")
        };
        if let Err(call) = calls.start(call) {
            let error = Error::new(
                Kind::ResourceExhausted,
                "SHARD_BUSY",
                "this shard has as many calls in flight as it may have; retry later",
            )
            .retry_after(RETRY_DELAY);
            request::refuse(self, &call, error);
        }
    }

    /// Reserves room for a request's bytes until the call has ended.
    pub(crate) fn hold<'a>(
        &'a self,
        namespace: &Namespace,
        call: &'a Call,
        bytes: usize,
    ) -> Result<Held<'a>, Error> {
        let bytes = bytes as u64;
        let of_namespace = &self.in_flight[namespace.index];
        let bytes_max = namespace.terms.bytes_in_flight_max();
        if of_namespace.get() + bytes > bytes_max {
            return Err(busy("NAMESPACE_BUSY", "namespace", bytes_max)
                .quota(
                    format!("namespace:{}", namespace.name),
                    format!("{bytes_max} bytes in flight"),
                )
                .with("namespace", namespace.name.to_string()));
        }
        let of_connection = call.origin.bytes_in_flight();
        if let Some(held) = of_connection {
            if held.get() + bytes > self.connection_bytes_max {
                return Err(busy("CONNECTION_BUSY", "connection", self.connection_bytes_max));
            }
            held.set(held.get() + bytes);
        }
        of_namespace.set(of_namespace.get() + bytes);
        Ok(Held { of_namespace, of_connection, bytes })
    }

    /// Counts a step of a transaction, on the shard where its stream is: the transaction has a home only when it commits.
    pub(crate) fn charge_step(&self, namespace: &Namespace, bytes: usize) -> Result<(), Error> {
        let quota = namespace.terms.quota().now();
        if !quota.counts_calls() {
            return Ok(());
        }
        let usage = &self.usage[namespace.index];
        let charged = usage.charge(&quota, bytes, clock::monotonic_ns());
        let (quota, name) = (namespace.terms.quota(), &namespace.name);
        charged.map_err(|exceeded| usage.refused(quota, name, exceeded))
    }

    /// What a call of a namespace that is over its quota is answered with.
    pub(crate) fn quota_refusal(&self, namespace: usize, error: &Error) -> Rc<Refusal> {
        self.usage[namespace].refusal(error)
    }

    /// Learns from a home's refusal until when it need not be asked again.
    pub(crate) fn learn_of_quota(&self, namespace: &Namespace, call: &Call, error: &Error) {
        if let Some(delay) = error.retry_delay().filter(|_| error.reason() == QUOTA_REQUESTS) {
            let delay_ns = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
            self.usage[namespace.index].close(call.received_ns.saturating_add(delay_ns));
        }
    }

    /// A place among the namespace's subscriptions, at its home.
    pub(crate) fn subscribe(&self, namespace: &Namespace) -> Result<Subscription<'_>, Error> {
        self.usage[namespace.index].subscribe(namespace.terms.quota(), &namespace.name)
    }

    /// Gives back the room of a call for which it was kept ([`Held::keep`]).
    pub(crate) fn give_back(&self, namespace: usize, call: &Call, bytes: u64) {
        let of_connection = call.origin.bytes_in_flight();
        drop(Held { of_namespace: &self.in_flight[namespace], of_connection, bytes });
    }

    /// What an unlogged write stamps on its entries.
    pub(crate) fn unlogged_revision(&self) -> Revision {
        let count = self.unlogged.get() + 1;
        self.unlogged.set(count);
        Revision::unlogged(self.log.last_lsn(), self.start, count)
    }

    /// A record of this shard's log for callers.
    pub(crate) fn token(&self, lsn: u64) -> LsnToken {
        LsnToken { shard: self.index as u16, lsn }
    }

    /// Whether the store has room for a write.
    pub(crate) fn admit(
        &self,
        namespace: &Namespace,
        method: Method,
        message: &[u8],
    ) -> Result<(), Error> {
        if method == Method::TRANSACT_WRITE {
            request::outbox::room(self, namespace, message)?;
        }
        if namespace.backend != 0 {
            return Ok(());
        }
        // A namespace has one home, so all of its bytes are here.
        let admitted = self.store.admit(method, message).and_then(|()| {
            self.store.admit_in(namespace.id, namespace.memory_bytes_max, method, message)
        });
        admitted.inspect_err(|error| self.count_backend_error(namespace.index, error))
    }

    /// Who makes a call that was let in.
    pub(crate) fn who(&self, connection: &Connection, metadata: &Metadata) -> Arc<Who> {
        match &self.gate {
            Some(gate) => gate.who(connection, metadata),
            None => who_connects(connection),
        }
    }

    /// Counts a failure that is the backend's own; one that is the request's fault is none.
    pub(crate) fn count_backend_error(&self, namespace: usize, error: &Error) {
        let own = matches!(
            error.kind(),
            Kind::Unknown
                | Kind::DeadlineExceeded
                | Kind::ResourceExhausted
                | Kind::Internal
                | Kind::Unavailable
                | Kind::DataLoss
        );
        if own {
            let backend = self.namespaces.at(namespace).backend;
            self.metrics.backend_error(namespace, backend, error.kind().grpc_code());
        }
    }

    /// The backend of a namespace whose home is here.
    pub(crate) fn backend(&self, namespace: &Namespace) -> &Attached {
        match self.backend_at(namespace.backend) {
            Attached::Redis(_, log) if namespace.topics == Topics::Log => log,
            attached => attached,
        }
    }

    /// The backend at that place of the configuration.
    fn backend_at(&self, backend: usize) -> &Attached {
        match &self.backends[backend] {
            Attached::Unused => self.late_backends[backend].get_or_init(|| self.attach(backend)),
            attached => attached,
        }
    }

    /// Makes ready for a call what a namespace has at its home: it may have come while the shard runs.
    #[inline]
    pub(crate) fn make_ready(&self, namespace: &Namespace) {
        if namespace.backend != 0 && self.lanes.of(namespace.index).is_none() {
            self.begin_lane(namespace);
        }
    }

    /// The number of a namespace's client API, by which metrics count; of none, that of the first.
    pub(crate) fn api(&self, namespace: Option<usize>) -> usize {
        namespace.map_or(0, |namespace| self.namespaces.at(namespace).api as usize)
    }

    /// What records are applied to.
    pub(crate) fn target(&self) -> Target<'_> {
        Target { store: &self.store, namespaces: &self.namespaces, hash_key: self.hash_key }
    }

    /// A place for a streaming call, if there is one left.
    pub(crate) fn take_stream(self: &Rc<Self>) -> Option<StreamPlace> {
        if self.streams.get() >= STREAMS_MAX {
            return None;
        }
        self.streams.set(self.streams.get() + 1);
        Some(StreamPlace(self.clone()))
    }

    /// The deadline of a call that brings none, in ns.
    pub(crate) fn default_deadline_ns(&self) -> u64 {
        self.default_deadline_ns
    }

    /// Bytes of requests in flight, over all namespaces.
    pub(crate) fn bytes_in_flight(&self) -> u64 {
        self.in_flight.iter().map(Cell::get).sum()
    }
}

impl Door for Shard {
    #[inline]
    fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    #[inline]
    fn gate(&self) -> Option<&Gate> {
        self.gate.as_ref()
    }

    #[inline]
    fn charge(&self, namespace: &Namespace, call: &Call, bytes: usize) -> Result<(), Error> {
        charge(&self.usage, self.index, namespace, call, bytes)
    }
}

/// Counts a call of so many bytes against its namespace's quota, at its home, or refuses it. `usage` is the shard's `index`.
#[inline]
pub(crate) fn charge(
    usage: &[Usage],
    index: usize,
    namespace: &Namespace,
    call: &Call,
    bytes: usize,
) -> Result<(), Error> {
    let quota = namespace.terms.quota().now();
    // What a stream writes of its own nobody has asked for.
    let is_own = matches!(call.origin, Origin::Own(_)) && call.method.server_streaming();
    if !quota.counts_calls() || is_own {
        return Ok(());
    }
    let usage = &usage[namespace.index];
    let charged = match namespace.home == index {
        true => usage.charge(&quota, bytes, call.received_ns),
        false => usage.look(&quota, call.received_ns),
    };
    charged.map_err(|exceeded| usage.refused(namespace.terms.quota(), &namespace.name, exceeded))
}

#[cold]
fn busy(reason: &'static str, what: &str, bytes_max: u64) -> Error {
    Error::new(
        Kind::ResourceExhausted,
        reason,
        format!("this {what} has its {bytes_max} bytes of requests in flight; retry later or send fewer at once"),
    )
    .retry_after(RETRY_DELAY)
}

/// Room that a call holds; given back when it is dropped.
pub(crate) struct Held<'a> {
    of_namespace: &'a Cell<u64>,
    of_connection: Option<&'a Cell<u64>>,
    bytes: u64,
}

impl Held<'_> {
    /// Leaves it to [`Shard::give_back`] to give back so many bytes.
    pub(crate) fn keep(self) -> u64 {
        let bytes = self.bytes;
        std::mem::forget(self);
        bytes
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.of_namespace.set(self.of_namespace.get() - self.bytes);
        if let Some(held) = self.of_connection {
            held.set(held.get() - self.bytes);
        }
    }
}

/// A streaming call's place; given back when it is dropped.
pub(crate) struct StreamPlace(Rc<Shard>);

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

/// Reply buffers, used again and again.
#[derive(Default)]
pub(crate) struct Replies(RefCell<Vec<Reply>>);

impl Replies {
    /// An empty buffer.
    pub(crate) fn take(&self) -> Reply {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps a buffer for a later call.
    pub(crate) fn give_back(&self, mut reply: Reply) {
        let mut kept = self.0.borrow_mut();
        if kept.len() < REPLIES_MAX && reply.head.capacity() <= REPLY_BYTES_KEPT_MAX {
            reply.clear();
            kept.push(reply);
        }
    }
}

/// Counts refusals by their reason.
#[derive(Default)]
pub(crate) struct Refusals;

impl Refusals {
    /// Counts one.
    pub(crate) fn count(&self, metrics: &ShardMetrics, error: &Error) {
        let other = REFUSAL_REASONS.len() - 1;
        let reason =
            REFUSAL_REASONS.iter().position(|reason| *reason == error.reason()).unwrap_or(other);
        metrics.refused(reason);
    }
}
