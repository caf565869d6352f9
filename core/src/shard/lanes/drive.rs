//! The task that brings a lane's records to their backend.

use std::rc::Rc;
use std::time::Duration;

use prism_adapters::lane::{ANSWER_LOST, Cell, LaneRecord, Outcome};
use prism_adapters::{Context, Error, Kind, Limits, Reply, Revision};
use prism_io::{clock, rt};
use prism_proto::catalogue::Method;

use super::OutsideLane;
use super::again::{Again, Owned};
use super::queue::{Pinned, Queue, Waiting};
use crate::namespaces::Namespace;
use crate::shard::Shard;

/// How long a lane waits after a failure: the first, and after many.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// How long a lane waits that does not go on by itself, but only when somebody acts.
const STOPPED_PAUSE: Duration = Duration::from_secs(5);

/// Brings records to the backend until the lane is closed.
pub(in crate::shard) async fn drive(shard: Rc<Shard>, lane: Rc<OutsideLane>) {
    bring(&shard, &lane).await;
    // A step that was under way may have moved it.
    lane.queue.borrow_mut().give_up();
    lane.is_at_rest.set(true);
}

async fn bring(shard: &Shard, lane: &OutsideLane) {
    let (mut again, mut failures) = (None, 0u32);
    let mut said = "";
    while !lane.is_closed.get() {
        let is_idle = {
            let queue = lane.queue.borrow();
            queue.is_drained() && (queue.is_resumed || queue.last_seq == 0)
        };
        if is_idle {
            again = None;
            lane.work.wait().await;
            continue;
        }
        match step(shard, lane, &mut again).await {
            // That the watermark could be read does not say yet that writes are taken.
            Ok(false) => {}
            Ok(true) => {
                failures = 0;
                if lane.stalled.take().is_some() {
                    tracing::info!(
                        namespace = &*shard.namespaces.at(lane.namespace).name,
                        "its backend takes writes again"
                    );
                    said = "";
                }
            }
            Err(error) => {
                again = None;
                if lane.is_closed.get() {
                    return;
                }
                lane.queue.borrow_mut().is_resumed = false;
                shard.count_backend_error(lane.namespace, &error);
                if said != error.reason() {
                    said = error.reason();
                    tracing::warn!(
                        namespace = &*shard.namespaces.at(lane.namespace).name,
                        reason = error.reason(),
                        "its logged writes wait: {}",
                        error.message()
                    );
                }
                let is_stopped = error.kind() == Kind::FailedPrecondition;
                lane.stalled.replace(Some(error));
                lane.wake_readers();
                // The backend's own connection has a circuit breaker, which fails this at once while it is open.
                let pause = (PAUSE_MIN * (1 << failures.min(10))).min(PAUSE_MAX);
                failures += 1;
                rt::sleep(if is_stopped { STOPPED_PAUSE } else { pause }).await;
            }
        }
    }
}

/// Asks for the watermark if that is not known, else brings one batch to the backend.
///
/// Returns whether the backend has taken something, or has nothing left to take.
async fn step(shard: &Shard, lane: &OutsideLane, again: &mut Option<Again>) -> Result<bool, Error> {
    let namespace = shard.namespaces.at(lane.namespace);
    let limits = namespace.limits();
    let of = (namespace, &limits);
    if !lane.queue.borrow().is_resumed {
        resume(shard, lane, namespace).await?;
        return Ok(lane.queue.borrow().is_drained());
    }
    let pinned = lane.queue.borrow().next_in_memory();
    if !pinned.is_empty() {
        *again = None;
        let records: Vec<LaneRecord<'_>> =
            pinned.iter().map(|pinned| of_pinned(of, pinned)).collect::<Result<_, _>>()?;
        let last = pinned.last().map(|pinned| pinned.record().lsn);
        apply(shard, lane, namespace, &records, last.unwrap_or_default()).await?;
        return Ok(true);
    }
    let reading = match again {
        Some(reading) => reading,
        None => again.insert(begin_again(shard, lane)?),
    };
    let owned = reading.next().await?;
    let next_seq = lane.queue.borrow().confirmed_seq + 1;
    match owned.first() {
        // What was read ahead may have come to an end before what has been written since.
        None if reading.after_seq + 1 < next_seq => {
            *again = None;
            Ok(false)
        }
        None => Err(log_gap(next_seq, "which ends before it")),
        Some(first) if first.lane_seq == next_seq => {
            let records: Vec<LaneRecord<'_>> =
                owned.iter().map(|owned| of_owned(of, owned)).collect::<Result<_, _>>()?;
            let last = owned.last().map_or(0, |owned| owned.lsn);
            apply(shard, lane, namespace, &records, last).await?;
            Ok(true)
        }
        Some(first) => Err(log_gap(next_seq, &format!("which goes on with {}", first.lane_seq))),
    }
}

fn begin_again(shard: &Shard, lane: &OutsideLane) -> Result<Again, Error> {
    let (after_seq, from, upto) = {
        let queue = lane.queue.borrow();
        (queue.confirmed_seq, queue.confirmed_lsn + 1, queue.last_lsn)
    };
    Again::start(shard.log.writer(), lane.lane, after_seq, (from, upto)).map_err(|error| {
        let text = format!("no thread could be started to read the log again: {error}");
        Error::new(Kind::ResourceExhausted, "THREADS_EXHAUSTED", text)
    })
}

/// Finds out where the backend stands.
async fn resume(shard: &Shard, lane: &OutsideLane, namespace: &Namespace) -> Result<(), Error> {
    let limits = namespace.limits();
    let context = context((namespace, &limits), clock::wall_us(), 0);
    let backend = shard.backend(namespace);
    let cell = backend.resume(&context, &lane.owner).await?;
    if let Some(cell) = cell
        && cell.owner.directory_id != lane.owner.directory_id
    {
        return Err(foreign(namespace, &cell));
    }
    let seq = cell.map_or(0, |cell| cell.lane_seq);
    let (confirmed_seq, oldest_seq, last_seq) = {
        let queue = lane.queue.borrow();
        (queue.confirmed_seq, queue.oldest_seq, queue.last_seq)
    };
    if seq > last_seq {
        return Err(log_behind(namespace, seq, last_seq));
    }
    let mut from_seq = seq;
    if seq + 1 < oldest_seq {
        if !lane.loss.goes_on {
            return Err(went_back(namespace, seq, oldest_seq));
        }
        from_seq = confirmed_seq.max(oldest_seq - 1);
        tracing::warn!(
            namespace = &*namespace.name,
            lost = from_seq - seq,
            "its backend has lost records that it had confirmed; the lane goes on, as on_data_loss says"
        );
    }
    if cell.is_none() || from_seq != seq {
        let cell = Cell { owner: lane.owner, lane_seq: from_seq };
        backend.set_cell(&context, &cell).await?;
    }
    let now_ns = clock::monotonic_ns();
    let mut queue = lane.queue.borrow_mut();
    if from_seq < confirmed_seq {
        tracing::warn!(
            namespace = &*namespace.name,
            records = confirmed_seq - from_seq,
            "its backend went back; what it has lost is sent again"
        );
        queue.go_back(from_seq);
    }
    queue.is_resumed = true;
    shard.metrics.lane(lane.namespace).resumes.increment();
    let arrived = from_seq.max(queue.confirmed_seq);
    // Of the records that arrived without our hearing of it the LSNs are not known; those before them are.
    let lsn = if arrived == queue.last_seq { queue.last_lsn } else { queue.confirmed_lsn };
    let calls = arrived_unheard(&mut queue, arrived, lsn, now_ns);
    drop(queue);
    for waiting in calls {
        let outcome = waiting.from_log.ok_or_else(|| unheard(namespace));
        waiting.logged.end(shard, outcome, clock::wall_us(), now_ns);
    }
    lane.wake_readers();
    Ok(())
}

/// Those whose records are in the backend although its answer was lost.
fn arrived_unheard(queue: &mut Queue, seq: u64, lsn: u64, now_ns: u64) -> Vec<Waiting> {
    queue.confirm(seq, lsn, now_ns);
    let mut calls = Vec::new();
    while queue.calls.front().is_some_and(|call| call.lane_seq <= seq)
        && let Some(call) = queue.calls.pop_front()
    {
        calls.push(call);
    }
    calls
}

async fn apply(
    shard: &Shard,
    lane: &OutsideLane,
    namespace: &Namespace,
    records: &[LaneRecord<'_>],
    last_lsn: u64,
) -> Result<(), Error> {
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(records.len());
    let applied = shard.backend(namespace).apply(&lane.owner, records, &mut outcomes).await;
    if records.iter().any(|record| record.method == Method::TRANSACT_WRITE) {
        // Also where they may have arrived although no answer came.
        shard.outbox.tell_of(namespace.id);
    }
    applied?;
    assert!(outcomes.len() == records.len(), "an outcome for every record");
    let now_ns = clock::monotonic_ns();
    for (record, outcome) in records.iter().zip(outcomes) {
        let call = {
            let mut queue = lane.queue.borrow_mut();
            match queue.calls.front() {
                Some(call) if call.lane_seq == record.lane_seq => queue.calls.pop_front(),
                _ => None,
            }
        };
        let (call, outcome) = heard_earlier(call, outcome);
        if let Err(error) = &outcome {
            shard.count_backend_error(lane.namespace, error);
        }
        match (call, outcome) {
            (Some(call), outcome) => {
                if let (true, Err(error)) = (call.logged.rest.answered, &outcome) {
                    // Its caller gave up waiting, and knows that the record is in the log.
                    shard.metrics.lane(lane.namespace).refused.increment();
                    bury(shard, namespace, record, error).await;
                }
                call.logged.end(shard, outcome, record.context.now_us, now_ns);
            }
            (None, Ok(reply)) => shard.replies.give_back(reply),
            (None, Err(error)) => {
                shard.metrics.lane(lane.namespace).refused.increment();
                bury(shard, namespace, record, &error).await;
            }
        }
    }
    let shown = shard.metrics.lane(lane.namespace);
    shown.batches.increment();
    shown.records.add(records.len() as u64);
    let last_seq = records.last().map_or(0, |record| record.lane_seq);
    lane.queue.borrow_mut().confirm(last_seq, last_lsn, now_ns);
    lane.wake_readers();
    Ok(())
}

/// Of a record that is in the backend since an earlier attempt whose answer was lost, the answer as far as the log can give it: nothing has
/// refused it.
fn heard_earlier(mut call: Option<Waiting>, outcome: Outcome) -> (Option<Waiting>, Outcome) {
    let outcome = match outcome {
        Err(error) if error.reason() == ANSWER_LOST => match &mut call {
            Some(call) if !call.logged.rest.answered => call.from_log.take().ok_or(error),
            _ => Ok(Reply::default()),
        },
        outcome => outcome,
    };
    (call, outcome)
}

/// Keeps a record that the backend refuses although its caller was told that it is done. Goes on only when that is durable.
async fn bury(shard: &Shard, namespace: &Namespace, record: &LaneRecord<'_>, error: &Error) {
    while let Err(fault) = shard.dead_letters.keep(namespace, record, error).await {
        tracing::error!(
            namespace = &*namespace.name,
            "a record that its backend refuses could not be kept, its lane waits: {fault}"
        );
        rt::sleep(STOPPED_PAUSE).await;
    }
}

/// A namespace, and its limits as they are now.
type Of<'a> = (&'a Namespace, &'a Limits);

fn context<'a>((namespace, limits): Of<'a>, now_us: u64, lsn: u64) -> Context<'a> {
    Context {
        namespace: namespace.id,
        namespace_name: &namespace.name,
        partition: 0,
        now_us,
        revision: Revision::logged(lsn),
        limits,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    }
}

fn of_pinned<'a>(of: Of<'a>, pinned: &'a Pinned) -> Result<LaneRecord<'a>, Error> {
    let record = pinned.record();
    Ok(LaneRecord {
        lane_seq: pinned.lane_seq,
        context: context(of, record.log_time_us, record.lsn),
        method: method(record.head.method)?,
        request: record.body,
    })
}

fn of_owned<'a>(of: Of<'a>, owned: &'a Owned) -> Result<LaneRecord<'a>, Error> {
    Ok(LaneRecord {
        lane_seq: owned.lane_seq,
        context: context(of, owned.log_time_us, owned.lsn),
        method: method(owned.method)?,
        request: &owned.body,
    })
}

fn method(id: u16) -> Result<Method, Error> {
    Method::by_id(id).ok_or_else(|| {
        let text = format!(
            "the log holds a call of the method {id}, which this version does not know; start the version of Prism that wrote it"
        );
        Error::new(Kind::FailedPrecondition, "METHOD_UNKNOWN", text)
    })
}

#[cold]
fn log_gap(seq: u64, found: &str) -> Error {
    let text = format!(
        "record {seq} of the lane is not in the log, {found}: was the log repaired? Look at what `prism wal verify` and `prism wal inspect` say"
    );
    Error::new(Kind::FailedPrecondition, "LOG_GAP", text)
}

#[cold]
fn unheard(namespace: &Namespace) -> Error {
    let text = format!(
        "the write took effect, but the answer of backend {} was lost with the connection: read to learn what it did",
        namespace.backend_name
    );
    Error::new(Kind::Unknown, ANSWER_LOST, text)
}

#[cold]
fn foreign(namespace: &Namespace, cell: &Cell) -> Error {
    let id = u128::from_be_bytes(cell.owner.directory_id);
    let text = format!(
        "the backend {} holds namespace {} of another data directory ({id:032x}): two of them must not write one namespace; stop the \
         other one, or give this namespace another name. To take it over for good, delete its lane's cell in the backend",
        namespace.backend_name, namespace.name
    );
    Error::new(Kind::FailedPrecondition, "LANE_OF_ANOTHER_DIRECTORY", text)
}

#[cold]
fn log_behind(namespace: &Namespace, seq: u64, last_seq: u64) -> Error {
    let text = format!(
        "the backend {} holds record {seq} of namespace {}, but this log ends with {last_seq}: is the data directory an old copy? \
         Restore the newest one",
        namespace.backend_name, namespace.name
    );
    Error::new(Kind::FailedPrecondition, "LOG_BEHIND_BACKEND", text)
}

#[cold]
fn went_back(namespace: &Namespace, seq: u64, oldest_seq: u64) -> Error {
    let text = format!(
        "the backend {} has lost writes of namespace {} that it had confirmed: it knows those up to {seq}, and the log holds only those \
         from {oldest_seq} on. Restore the backend from a backup, or set `on_data_loss: continue` for it and restart, which gives \
         up what is lost",
        namespace.backend_name, namespace.name
    );
    Error::new(Kind::FailedPrecondition, "BACKEND_WENT_BACK", text)
}
