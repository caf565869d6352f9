//! Calls that are written down: those of callers, to namespaces with `audit_logging`, once they are let in.
//!
//! Room for the line is kept before anything is done, and the answer leaves when the line is on stable storage. What a
//! stream or a transaction does is one access from its begin to its end, with a line for each of the two. That a transaction
//! sends messages is an access to their namespaces, which begins when they are looked at.

use std::cell::Cell;
use std::rc::Rc;

use prism_adapters::Error;
use prism_io::clock;
use prism_io::h2::StreamId;
use prism_io::server::Connection;

use super::{Answer, Call, Origin, send, trace};
use crate::audit::shard::{Told, failed};
use crate::namespaces::Namespace;
use crate::shard::Shard;

/// An answer that waits for its line.
pub(crate) struct LateAnswer {
    connection: Rc<Connection>,
    stream: StreamId,
    namespace: Option<usize>,
    received_ns: u64,
    outcome: Result<Answer, Error>,
}

impl LateAnswer {
    /// Sends it.
    pub(crate) fn send(self, shard: &Shard) {
        let outcome = match self.namespace.filter(|_| shard.audit.has_failed()) {
            Some(namespace) => Err(failed(&shard.namespaces.at(namespace).name)),
            None => self.outcome,
        };
        let elapsed_ns = clock::monotonic_ns().saturating_sub(self.received_ns);
        send(shard, (&self.connection, self.stream), self.namespace, elapsed_ns, outcome);
    }
}

/// Keeps room for so many lines of a call, if it has to be written down.
#[inline]
pub(super) fn begin(
    shard: &Shard,
    call: &Call,
    seen: &Cell<Option<usize>>,
    lines: u64,
) -> Result<(), Error> {
    let Origin::Caller { connection, .. } = &call.origin else { return Ok(()) };
    let Some(namespace) = seen.get().map(|index| shard.namespaces.at(index)) else { return Ok(()) };
    if !namespace.terms.is_audited() {
        return Ok(());
    }
    shard.audit.owe(namespace, lines)?;
    // A call begins once.
    let _ = call.audited.set(shard.who(connection, &call.metadata));
    Ok(())
}

/// Whether a call is written down; then its answer is sent when that is done.
pub(super) fn end(
    shard: &Shard,
    call: &Call,
    namespace: Option<usize>,
    code: u8,
    outcome: Result<Answer, Error>,
) -> Result<(), Result<Answer, Error>> {
    let (Some(told), Origin::Caller { connection, stream }) = (told(call, namespace), &call.origin)
    else {
        return Err(outcome);
    };
    let late = LateAnswer {
        connection: connection.clone(),
        stream: *stream,
        namespace,
        received_ns: call.received_ns,
        outcome,
    };
    shard.audit.answer(&told, code, late);
    Ok(())
}

/// As [`begin`], of a stream, whose begin is written down by itself.
pub(super) async fn begin_stream(
    shard: &Shard,
    call: &Call,
    seen: &Cell<Option<usize>>,
) -> Result<(), Error> {
    begin(shard, call, seen, 2)?;
    let Some(told) = told(call, seen.get()) else { return Ok(()) };
    shard.audit.begin(&told).await;
    match shard.audit.has_failed() {
        true => Err(failed(&shard.namespaces.at(told.namespace).name)),
        false => Ok(()),
    }
}

/// Writes down that a call sends to another namespace, before it does, if that has to be written down.
pub(super) async fn send_to(shard: &Shard, call: &Call, target: &Namespace) -> Result<(), Error> {
    let Origin::Caller { connection, .. } = &call.origin else { return Ok(()) };
    if !target.terms.is_audited() {
        return Ok(());
    }
    shard.audit.owe(target, 1)?;
    let who = shard.who(connection, &call.metadata);
    let told = Told {
        who: &who,
        from: connection.peer(),
        method: call.method,
        namespace: target.index,
        trace_id: trace::trace_id(&call.metadata),
    };
    shard.audit.begin(&told).await;
    if shard.audit.has_failed() { Err(failed(&target.name)) } else { Ok(()) }
}

/// Writes down that a stream has ended.
pub(super) async fn end_stream(shard: &Shard, call: &Call, namespace: Option<usize>, code: u8) {
    if let Some(told) = told(call, namespace) {
        shard.audit.end(&told, code).await;
    }
}

fn told(call: &Call, namespace: Option<usize>) -> Option<Told<'_>> {
    let (who, Origin::Caller { connection, .. }) = (call.audited.get()?, &call.origin) else {
        return None;
    };
    Some(Told {
        who,
        from: connection.peer(),
        method: call.method,
        namespace: namespace?,
        trace_id: trace::trace_id(&call.metadata),
    })
}
