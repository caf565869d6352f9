//! Calls of NamespaceService on their way to the control thread and back.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use prism_adapters::{Error, Kind};
use prism_io::grpc::{Message, Metadata, RequestHead};
use prism_io::h2::StreamId;
use prism_io::rt;
use prism_io::server::Connection;
use prism_proto::wire;

use super::{RETRY_DELAY, Shard, StreamPlace};
use crate::access::{Asking, Called};
use crate::control::{Asker, Method, Question};
use crate::status;

/// Questions that one shard has open at a time.
pub(super) const QUESTIONS_MAX: usize = 8;

/// Asks the control thread for the answer to a call, and answers it when it is there.
pub(super) fn ask(
    shard: &Rc<Shard>,
    connection: &Rc<Connection>,
    stream: StreamId,
    method: Method,
    head: RequestHead,
    message: &[u8],
) {
    let received_ns = connection.received_ns();
    let begun = begin(shard, connection, &head.metadata, received_ns, method);
    let (asker, place) = match begun {
        Ok(begun) => begun,
        Err(error) => return fail(shard, connection, stream, &error),
    };
    // It outlives the read buffer that it came in.
    let message = Bytes::copy_from_slice(message);
    let (question, answer) = Question::new(method, message.clone(), asker);
    shard.ask.ask(question);
    let (shard, connection) = (shard.clone(), connection.clone());
    let patience = head.timeout.unwrap_or(Duration::from_nanos(shard.default_deadline_ns()));
    rt::spawn(async move {
        let told = rt::timeout(patience, answer.wait()).await;
        match told.unwrap_or_else(|| Err(late(method))) {
            Ok(answer) => connection.respond(stream, Message::new(&answer), &[]),
            Err(error) => {
                if error.reason() == "PERMISSION_DENIED"
                    && let Some(gate) = &shard.gate
                {
                    let asking = asking(&connection, &head.metadata, received_ns, method);
                    gate.tell_denied(asking, wire::namespace_of(&message).unwrap_or_default());
                }
                fail(&shard, &connection, stream, &error);
            }
        }
        drop(place);
    });
}

/// Who asks, and a place for the question.
fn begin(
    shard: &Rc<Shard>,
    connection: &Connection,
    metadata: &Metadata,
    received_ns: u64,
    method: Method,
) -> Result<(Asker, Places), Error> {
    let asker = match &shard.gate {
        None => Asker::Anybody,
        Some(gate) => {
            Asker::Known(gate.caller(asking(connection, metadata, received_ns, method))?)
        }
    };
    if shard.questions.get() >= QUESTIONS_MAX {
        return Err(busy());
    }
    let stream = shard.take_stream().ok_or_else(busy)?;
    shard.questions.set(shard.questions.get() + 1);
    Ok((asker, Places { shard: shard.clone(), _stream: stream }))
}

fn asking<'a>(
    connection: &'a Connection,
    metadata: &'a Metadata,
    received_ns: u64,
    method: Method,
) -> Asking<'a> {
    Asking { connection, metadata, received_ns, called: Called::Control(method.path()) }
}

/// What an open question holds; given back when it is dropped. A drain waits for it as for a stream.
struct Places {
    shard: Rc<Shard>,
    _stream: StreamPlace,
}

impl Drop for Places {
    fn drop(&mut self) {
        self.shard.questions.set(self.shard.questions.get() - 1);
    }
}

fn fail(shard: &Shard, connection: &Connection, stream: StreamId, error: &Error) {
    shard.refusals.count(&shard.metrics, error);
    status::with_status(error, |status| connection.fail(stream, status));
}

#[cold]
fn busy() -> Error {
    let message = "this shard has as many questions about namespaces open as it may; retry later";
    Error::new(Kind::ResourceExhausted, "SHARD_BUSY", message).retry_after(RETRY_DELAY)
}

fn late(method: Method) -> Error {
    let message = match method.is_read() {
        true => "the deadline passed; retry with a longer one",
        false => {
            "the deadline passed, and the change may take effect all the same; List and Get tell"
        }
    };
    let reason = if method.is_read() { "NOT_APPLIED" } else { "OUTCOME_PENDING" };
    Error::new(Kind::DeadlineExceeded, reason, message)
}
