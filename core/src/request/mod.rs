//! A request's life, as one straight function: [`answer`].
//!
//! It runs to completion where it arrives: a read is answered in the pass over the read buffer that brought it. A write that
//! is in the log waits for the disk as a [`Logged`], without a future, and goes on in [`logged::carry_out`]; what waits for
//! something else (another shard, an earlier record) waits in its slot. Promises: nothing is appended that would be refused
//! afterwards, nothing is applied before it is durable (levels `wal` and `strong`), and a call that was appended takes effect
//! whether or not its caller still waits.

mod audited;
mod durability;
pub(crate) mod logged;
pub(crate) mod outbox;
pub(crate) mod own;
mod permit;
mod retry;
pub(crate) mod stream;
mod trace;
mod transact;
pub(crate) mod transaction;
mod wait;

use std::cell::{Cell, OnceCell};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use prism_adapters::memory::{Memstore, Outcome as FirstOutcome, Ticket};
use prism_adapters::{Backend, Context, Error, Kind, Limits, Reply, interfaces, reader};
use prism_io::clock;
use prism_io::grpc::Metadata;
use prism_io::h2::StreamId;
use prism_io::server::Connection;
use prism_proto::catalogue::{Access, Method};
use prism_wal::{Lane, Record, RecordHead};

use crate::audit::Who;
use crate::config::Durability;
use crate::namespaces::{Namespace, Namespaces};
use crate::shard::{Held, Shard};
use crate::{quota, remote, status};

pub(crate) use audited::LateAnswer;
pub(crate) use durability::{LsnToken, level_from_number, offers_key};
pub(crate) use logged::Logged;
pub(crate) use own::OwnAnswer;
pub(crate) use permit::{Door, NAMESPACE_UNKNOWN, permit};
use retry::Admission;
pub(crate) use trace::{LineBudget, trace_id};

/// The semantics that this version gives to the records it writes; replay refuses what it does not know.
pub(crate) const SEMANTICS: u8 = 1;

/// One call on its way.
pub(crate) struct Call {
    pub(crate) origin: Origin,
    pub(crate) method: Method,
    pub(crate) metadata: Metadata,
    /// Monotonic time after which nobody waits any more, in ns.
    pub(crate) deadline_ns: u64,
    /// Monotonic time at which it was complete, in ns.
    pub(crate) received_ns: u64,
    /// The request message as received.
    pub(crate) message: Bytes,
    /// Whose call it is, once it is known that it has to be written down.
    pub(crate) audited: OnceCell<Arc<Who>>,
    /// It relays a message of an outbox, which has its identity already.
    pub(crate) is_relayed: bool,
}

/// Spans below this are worth asking the clock again before a call has an effect.
const SHORT_NS: u64 = 2_000_000;

impl Call {
    /// Whether its deadline has passed. Asks the clock only where it can matter.
    fn is_late(&self) -> bool {
        let from_afar = matches!(self.origin, Origin::Shard { .. });
        (from_afar || self.deadline_ns.saturating_sub(self.received_ns) < SHORT_NS)
            && self.deadline_ns <= clock::monotonic_ns()
    }
}

/// Where the answer goes.
pub(crate) enum Origin {
    /// To a caller of this shard.
    Caller { connection: Rc<Connection>, stream: StreamId },
    /// To the shard that accepted the call.
    Shard { shard: usize, ticket: u64 },
    /// To a stream of this shard, which makes the call.
    Own(Rc<OwnAnswer>),
}

impl Origin {
    /// Whether nobody waits for the answer any more.
    fn is_gone(&self, shard: &Shard) -> bool {
        match self {
            Origin::Caller { connection, stream } => !connection.is_open(*stream),
            Origin::Shard { shard: from, ticket } => shard.peers.is_gone(*from, *ticket),
            Origin::Own(_) => false,
        }
    }

    /// The connection's count of bytes in flight; those of another shard's caller are counted there.
    pub(crate) fn bytes_in_flight(&self) -> Option<&Cell<u64>> {
        match self {
            Origin::Caller { connection, .. } => Some(connection.bytes_in_flight()),
            Origin::Shard { .. } | Origin::Own(_) => None,
        }
    }
}

/// What a call is answered that was carried out, now or as the first with its idempotency key.
#[derive(Default)]
pub(crate) struct Answer {
    /// The message; where `code` is not 0, the encoded `google.rpc.Status` of the first outcome.
    pub(crate) reply: Reply,
    /// gRPC status code.
    pub(crate) code: u8,
    pub(crate) facts: Facts,
}

/// What the trailers of an answer say.
#[derive(Clone, Copy, Default)]
pub(crate) struct Facts {
    /// The level that was reached; reads have none.
    pub(crate) level: Option<Durability>,
    /// The record.
    pub(crate) lsn: Option<LsnToken>,
    /// It is the outcome of an earlier call with the same idempotency key.
    pub(crate) replayed: bool,
}

/// Where the journey has led when its function returns.
enum Step {
    /// To its answer.
    Answered(Answer),
    /// Into the log: the rest follows when the record is durable.
    Logged(logged::Rest),
}

/// How far a call has come, for whoever stops waiting for it.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    /// It had no effect.
    #[default]
    Nothing,
    /// It is with somebody else (its home shard, or the first call with its key), who knows more.
    Elsewhere,
    /// It is in the log: it takes effect.
    Logged,
}

#[derive(Default)]
struct Progress {
    stage: Cell<Stage>,
    /// Another shard has it, which answers in time itself and knows better how far the call has come.
    forwarded: Cell<bool>,
}

/// How much longer than its deadline a forwarded call waits for what its home shard says of it.
const FORWARDED_GRACE_NS: u64 = 500_000_000;

impl Progress {
    fn give_up_ns(&self, deadline_ns: u64) -> u64 {
        deadline_ns.saturating_add(if self.forwarded.get() { FORWARDED_GRACE_NS } else { 0 })
    }
}

/// Serves one unary call from its arrival to its answer.
pub(crate) async fn serve(shard: Rc<Shard>, mut call: Call) {
    let namespace = Cell::new(None);
    match transact::carried_out_as(call.method, &call.origin, &call.message) {
        Ok(method) => call.method = method,
        Err(error) => return finish(&shard, &call, namespace.get(), Err(error)),
    }
    let progress = Progress::default();
    let message = std::mem::take(&mut call.message);
    let outcome = {
        let mut answer = pin!(answer(&shard, &call, message, &progress, &namespace));
        std::future::poll_fn(|context| match answer.as_mut().poll(context) {
            Poll::Ready(outcome) => Poll::Ready(outcome),
            Poll::Pending if shard.deadlines.is_past(progress.give_up_ns(call.deadline_ns)) => {
                Poll::Ready(Err(expired(progress.stage.get())))
            }
            Poll::Pending if shard.deadlines.looks_for_callers() && call.origin.is_gone(&shard) => {
                Poll::Ready(Err(remote::caller_gone()))
            }
            Poll::Pending => {
                shard.deadlines.watch(progress.give_up_ns(call.deadline_ns));
                Poll::Pending
            }
        })
        .await
    };
    match outcome {
        Ok(Step::Answered(answer)) => finish(&shard, &call, namespace.get(), Ok(answer)),
        Ok(Step::Logged(rest)) => shard.log.wait(Logged { call, rest }, &shard.deadlines),
        Err(error) => finish(&shard, &call, namespace.get(), Err(error)),
    }
}

/// The journey itself. `seen` learns which namespace it is, for the count at the end.
async fn answer(
    shard: &Shard,
    call: &Call,
    message: Bytes,
    progress: &Progress,
    seen: &Cell<Option<usize>>,
) -> Result<Step, Error> {
    let namespace = permit(shard, call, &message, seen)?;
    audited::begin(shard, call, seen, 1)?;
    if call.method == Method::TRANSACT_WRITE {
        // Boxed: rare, and every call's slot would have to hold it.
        Box::pin(outbox::admit(shard, call, namespace, &message)).await?;
    }
    let held = shard.hold(namespace, call, message.len())?;
    let message =
        if may_wait(shard, call, namespace) { kept(shard, call, message) } else { message };
    if namespace.home != shard.index {
        progress.forwarded.set(true);
        if call.method.access() == Access::Write {
            progress.stage.set(Stage::Elsewhere);
        }
        let answered = remote::ask(shard, call, namespace, message).await;
        return answered
            .inspect_err(|error| shard.learn_of_quota(namespace, call, error))
            .map(Step::Answered);
    }
    if call.is_late() {
        return Err(expired(Stage::Nothing));
    }
    shard.make_ready(namespace);
    match call.method.access() {
        // What a stream writes of its own goes by the method of the stream.
        Access::Read
            if !(matches!(call.origin, Origin::Own(_)) && call.method.server_streaming()) =>
        {
            read(shard, call, namespace, message).await.map(Step::Answered)
        }
        _ => write(shard, call, namespace, message, held, progress).await,
    }
}

/// Whether a call may wait for more than the disk, and its message with it.
fn may_wait(shard: &Shard, call: &Call, namespace: &Namespace) -> bool {
    namespace.home != shard.index
        || namespace.backend != 0
        || call.method == Method::QUEUE_RECEIVE
        || !call.metadata.is_empty()
}

/// The message of a call that may wait: the namespace's budget has room for it, not for the read buffer that it is a slice of.
fn kept(shard: &Shard, call: &Call, message: Bytes) -> Bytes {
    let Origin::Caller { connection, .. } = &call.origin else { return message };
    let (bytes, before) = (message.len(), message.as_ptr());
    let message = connection.keep(message);
    if message.as_ptr() != before {
        shard.metrics.connections.payload_copies.increment();
        shard.metrics.connections.payload_copied_bytes.add(bytes as u64);
    }
    message
}

async fn read(
    shard: &Shard,
    call: &Call,
    namespace: &Namespace,
    message: Bytes,
) -> Result<Answer, Error> {
    durability::after(shard, &call.metadata).await?;
    let context = Context {
        namespace: namespace.id,
        namespace_name: &namespace.name,
        partition: 0,
        now_us: clock::wall_us(),
        revision: Default::default(),
        limits: &namespace.limits(),
        deadline_ns: call.deadline_ns,
    };
    let mut reply = shard.replies.take();
    if let Some(lane) = shard.lanes.of(namespace.index).filter(|lane| lane.holds()) {
        interfaces::validate(call.method, &message, namespace.offers, &namespace.limits())?;
        if lane.before_read(namespace, call.method, &message, context.now_us, &mut reply).await? {
            return Ok(Answer { reply, ..Answer::default() });
        }
    }
    let backend = shard.backend(namespace);
    let answered = if reader::serves(call.method) {
        let request = (call.method, &message[..]);
        // Boxed: a read over other interfaces is large, and every call's slot would have to hold it.
        Box::pin(backend.read_unary(&context, request, namespace.offers, &mut reply)).await
    } else {
        backend.unary_checked(&context, call.method, &message, namespace.offers, &mut reply).await
    };
    answered.inspect_err(|error| shard.count_backend_error(namespace.index, error))?;
    Ok(Answer { reply, ..Answer::default() })
}

async fn write(
    shard: &Shard,
    call: &Call,
    namespace: &Namespace,
    message: Bytes,
    held: Held<'_>,
    progress: &Progress,
) -> Result<Step, Error> {
    let level = durability::level(namespace, &call.metadata)?;
    let key = retry::key(&call.metadata)?;
    let lane = shard.lanes.of(namespace.index);
    if !key.is_empty() && !durability::offers_key(namespace, call.method, &message) {
        return Err(durability::key_not_offered(namespace));
    }
    if key.is_empty() {
        shard.admit(namespace, call.method, &message)?;
    }
    let holds = lane.map_or_else(|| shard.log.holds(namespace.id), |lane| lane.holds());
    if let Some(until_ns) = wait::wait_until_ns(call, &message)
        && (key.is_empty() || retry::is_new(shard, call, namespace, key, &message))
    {
        interfaces::validate(call.method, &message, namespace.offers, &namespace.limits())?;
        let context = Context {
            namespace: namespace.id,
            namespace_name: &namespace.name,
            partition: 0,
            now_us: clock::wall_us(),
            revision: Default::default(),
            limits: &namespace.limits(),
            deadline_ns: call.deadline_ns,
        };
        let waited = wait::ready(shard, &context, namespace, (call, &message), until_ns).await;
        if waited == wait::Waited::InVain && key.is_empty() {
            // An answer that takes nothing away needs no record.
            return Ok(Step::Answered(Answer::default()));
        }
    }
    // It may have been deleted while the call waited: then nothing may be written any more.
    let check_is_served = || match namespace.terms.is_served() {
        true => Ok(()),
        false => Err(permit::unknown(&shard.namespaces, &namespace.name)),
    };
    if level == Durability::Memory
        && key.is_empty()
        && !holds
        && !is_of_outbox(namespace, call.method)
    {
        check_is_served()?;
        if namespace.backend != 0 {
            // An outside backend may have it when the caller's time is up.
            progress.stage.set(Stage::Elsewhere);
        }
        return write_unlogged(shard, call, namespace, &message).await.map(Step::Answered);
    }
    // What gets a record must be fit to be carried out.
    validate(call, &message, namespace)?;
    let level = level.max(Durability::Wal);
    if let Some(lane) = lane {
        lane.admit(namespace, level, call.method, &message)?;
    }
    let admission = retry::admit(shard, call, namespace, key, &message, progress).await?;
    let ticket = match admission {
        Admission::Unkeyed => None,
        Admission::First(ticket) => Some(ticket),
        Admission::Again(outcome) => {
            if let Some(lane) = lane.filter(|_| outcome.level >= Durability::Strong as u8) {
                // Its record may have been on its way when the process ended.
                lane.caught_up(namespace).await?;
            }
            return Ok(Step::Answered(retry::first_outcome(shard, outcome)));
        }
    };
    let head = RecordHead {
        lane: Lane { namespace: namespace.id, partition: 0 },
        method: call.method.id(),
        semantics: SEMANTICS,
        flags: level as u8,
        caller: retry::caller(&call.metadata),
        idempotency_key: key,
        trace_id: trace::trace_id(&call.metadata),
        ..RecordHead::default()
    };
    let appended = check_is_served().and_then(|()| shard.log.append(&head, &message));
    let appended = match appended {
        Ok(appended) => appended,
        Err(error) => {
            if let Some(ticket) = ticket {
                shard.store.outcomes_mut().abandon(ticket);
            }
            return Err(error);
        }
    };
    shard.metrics.connections.payload_copies.increment();
    shard.metrics.connections.payload_copied_bytes.add(message.len() as u64);
    // From here on the log's buffer is the one copy.
    drop(message);
    Ok(Step::Logged(logged::Rest {
        lsn: appended.lsn,
        namespace: namespace.index,
        level,
        ticket,
        held_bytes: held.keep(),
        answered: false,
    }))
}

/// Whether a write changes an outbox whose state is the log: it has a record at every level.
fn is_of_outbox(namespace: &Namespace, method: Method) -> bool {
    namespace.backend == 0
        && matches!(method, Method::TRANSACT_WRITE | Method::TRANSACT_TRANSACTION)
}

/// Says of a write all that can be said before it is carried out.
fn validate(call: &Call, message: &[u8], namespace: &Namespace) -> Result<(), Error> {
    let validate =
        if call.is_relayed { interfaces::validate_relayed } else { interfaces::validate };
    validate(call.method, message, namespace.offers, &namespace.limits())
}

/// A write of level `memory`: the backend's answer is all there is to wait for.
async fn write_unlogged(
    shard: &Shard,
    call: &Call,
    namespace: &Namespace,
    message: &[u8],
) -> Result<Answer, Error> {
    let context = Context {
        namespace: namespace.id,
        namespace_name: &namespace.name,
        partition: 0,
        now_us: shard.log.time_us(clock::wall_us()),
        revision: shard.unlogged_revision(),
        limits: &namespace.limits(),
        deadline_ns: call.deadline_ns,
    };
    let mut reply = shard.replies.take();
    let backend = shard.backend(namespace);
    let answered = if call.is_relayed {
        validate(call, message, namespace)?;
        backend.unary(&context, call.method, message, &mut reply).await
    } else {
        let offers = namespace.offers;
        backend.unary_checked(&context, call.method, message, offers, &mut reply).await
    };
    if call.method == Method::TRANSACT_WRITE {
        // Also where it may have been carried out although no answer came.
        shard.outbox.tell_of(namespace.id);
    }
    answered.inspect_err(|error| shard.count_backend_error(namespace.index, error))?;
    let facts = Facts { level: Some(Durability::Memory), ..Facts::default() };
    Ok(Answer { reply, code: 0, facts })
}

/// What records are applied to.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) store: &'a Memstore,
    pub(crate) namespaces: &'a Namespaces,
    /// For [`body_hash`].
    pub(crate) hash_key: (u64, u64),
}

/// Gives a durable record to its backend: on the ordinary path and at replay alike, so that both give the same answers.
async fn apply(
    target: &Target<'_>,
    record: &Record<'_>,
    namespace_name: &str,
    limits: &Limits,
    ticket: Option<Ticket>,
    reply: &mut Reply,
) -> Result<(), Error> {
    let Some(method) = Method::by_id(record.head.method) else {
        return Err(method_unknown());
    };
    let context = Context {
        namespace: record.head.lane.namespace,
        namespace_name,
        partition: record.head.lane.partition,
        now_us: record.log_time_us,
        revision: prism_adapters::Revision::logged(record.lsn),
        limits,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    };
    let outcome = match method {
        Method::TRANSACT_WRITE => target.store.write(&context, record.body, reply),
        Method::TRANSACT_TRANSACTION => target.store.note_relayed(&context, record.body),
        _ => target.store.unary(&context, method, record.body, reply).await,
    };
    if let Some(ticket) = ticket {
        let outcome = outcome.as_ref().map(|()| &*reply);
        settle(target, ticket, (record.lsn, record.head.flags), outcome, record.log_time_us);
    }
    outcome
}

/// Remembers the outcome of a keyed call, which was logged as the record `lsn` at a level.
fn settle(
    target: &Target<'_>,
    ticket: Ticket,
    (lsn, level): (u64, u8),
    outcome: Result<&Reply, &Error>,
    log_time_us: u64,
) {
    let (code, message) = match outcome {
        Ok(reply) => (0, reply.to_bytes()),
        Err(error) => (error.kind().grpc_code(), status::details(error)),
    };
    let first = FirstOutcome { lsn, code, level, message };
    target.store.outcomes_mut().settle(ticket, first, log_time_us);
}

/// Counts the call and sends its answer to wherever it came from.
fn finish(shard: &Shard, call: &Call, namespace: Option<usize>, outcome: Result<Answer, Error>) {
    finish_at(shard, call, namespace, outcome, clock::monotonic_ns());
}

/// As [`finish`], by a clock that was read already.
fn finish_at(
    shard: &Shard,
    call: &Call,
    namespace: Option<usize>,
    outcome: Result<Answer, Error>,
    now_ns: u64,
) {
    let code = outcome.as_ref().map_or_else(|error| error.kind().grpc_code(), |answer| answer.code);
    match &call.origin {
        Origin::Caller { connection, stream } => {
            let outcome = match (outcome, namespace) {
                (Err(error), Some(namespace)) if quota::is_used_up(&error) => {
                    match refuse_over_quota(shard, call, namespace, error, now_ns) {
                        Some(error) => Err(error),
                        None => return,
                    }
                }
                (outcome, _) => {
                    trace::log_line(shard, call, namespace, code, now_ns);
                    outcome
                }
            };
            if let Err(outcome) = audited::end(shard, call, namespace, code, outcome) {
                let elapsed_ns = now_ns.saturating_sub(call.received_ns);
                send(shard, (connection, *stream), namespace, elapsed_ns, outcome);
            }
        }
        Origin::Shard { shard: to, ticket } => remote::answer(shard, *to, *ticket, outcome),
        Origin::Own(answer) => answer.settle(outcome),
    }
}

/// Refuses a caller's call for which its namespace's quota has no room, of which there may be many. Gives the refusal back where the
/// call is written down: then it is answered when that is done.
#[cold]
fn refuse_over_quota(
    shard: &Shard,
    call: &Call,
    namespace: usize,
    error: Error,
    now_ns: u64,
) -> Option<Error> {
    shard.over_quota.count(namespace, error.reason());
    let Origin::Caller { connection, stream } = &call.origin else { return Some(error) };
    if call.audited.get().is_some() {
        return Some(error);
    }
    if tracing::enabled!(tracing::Level::DEBUG) {
        trace::log_line(shard, call, Some(namespace), error.kind().grpc_code(), now_ns);
    }
    let elapsed_ns = now_ns.saturating_sub(call.received_ns);
    let (api, code) = (shard.api(Some(namespace)), error.kind().grpc_code());
    shard.metrics.request(Some(namespace), api, code, elapsed_ns);
    shard.refusals.count(&shard.metrics, &error);
    let refusal = shard.quota_refusal(namespace, &error);
    shard.over_quota.refuse((connection, *stream), refusal, call.deadline_ns, now_ns);
    None
}

/// Counts a caller's call and sends its answer.
fn send(
    shard: &Shard,
    (connection, stream): (&Connection, StreamId),
    namespace: Option<usize>,
    elapsed_ns: u64,
    outcome: Result<Answer, Error>,
) {
    let code = outcome.as_ref().map_or_else(|error| error.kind().grpc_code(), |answer| answer.code);
    shard.metrics.request(namespace, shard.api(namespace), code, elapsed_ns);
    match outcome {
        Ok(mut answer) => {
            durability::respond(connection, stream, &mut answer);
            shard.replies.give_back(answer.reply);
        }
        Err(error) => {
            shard.refusals.count(&shard.metrics, &error);
            status::with_status(&error, |status| connection.fail(stream, status));
        }
    }
}

/// Answers a call that could not even begin.
pub(crate) fn refuse(shard: &Shard, call: &Call, error: Error) {
    finish(shard, call, None, Err(error));
}

/// What a caller hears whose time is up.
fn expired(stage: Stage) -> Error {
    let (reason, message) = match stage {
        Stage::Nothing => (
            "NOT_APPLIED",
            "the deadline passed before the call had any effect; retry with a longer deadline",
        ),
        Stage::Elsewhere => (
            "OUTCOME_PENDING",
            "the deadline passed while it was open whether the write takes effect; retry with the same \
             prism-idempotency-key to learn its outcome",
        ),
        Stage::Logged => (
            "OUTCOME_PENDING",
            "the deadline passed when the write was in the log, so it takes effect all the same; retry with the same \
             prism-idempotency-key to learn its outcome",
        ),
    };
    Error::new(Kind::DeadlineExceeded, reason, message)
}

#[cold]
fn method_unknown() -> Error {
    Error::new(
        Kind::Internal,
        "METHOD_UNKNOWN",
        "the log holds a method that this version does not know",
    )
}

/// Applies a record again at start.
pub(crate) fn replay(
    target: &Target<'_>,
    record: &Record<'_>,
    reply: &mut Reply,
) -> Result<(), Error> {
    if !Method::by_id(record.head.method).is_some_and(|method| method.offered_by(Memstore::SERVES))
    {
        return Err(method_unknown());
    }
    let ticket = retry::ticket_of_record(target, record)?;
    let served = target.namespaces.by_id(record.head.lane.namespace);
    let name = served.map_or("", |namespace| &namespace.name);
    let limits = served.map_or(Limits::default(), Namespace::limits);
    // What was refused the first time is refused again, and for the same reason.
    let _ = at_once(apply(target, record, name, &limits, ticket, reply));
    Ok(())
}

/// Remembers the outcome of a keyed record whose effect is an outside backend's, at start: such a call gets a record only if
/// the log can give its answer.
pub(crate) fn remember(target: &Target<'_>, record: &Record<'_>) -> Result<(), Error> {
    let Some(ticket) = retry::ticket_of_record(target, record)? else { return Ok(()) };
    let mut reply = Reply::default();
    let known = reply_from_log(record, &mut reply);
    let outcome = if known { Ok(&reply) } else { Err(&method_unknown()) };
    settle(target, ticket, (record.lsn, record.head.flags), outcome, record.log_time_us);
    Ok(())
}

/// The answer to a record's caller, where the log can give it (`true`).
pub(crate) fn reply_from_log(record: &Record<'_>, reply: &mut Reply) -> bool {
    let place = interfaces::LogPlace {
        namespace: record.head.lane.namespace,
        log_time_us: record.log_time_us,
        lsn: record.lsn,
    };
    Method::by_id(record.head.method)
        .is_some_and(|method| interfaces::reply_from_log(place, method, record.body, reply))
}

/// The outcome of a future that needs nothing to happen before it ends.
fn at_once<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("memstore answers at once"),
    }
}
