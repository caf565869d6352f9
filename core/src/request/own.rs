//! Calls that a stream makes of its own: they go the way of a caller's, and their answer comes back here.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::Bytes;
use prism_adapters::{Error, Kind};
use prism_io::clock;
use prism_io::grpc::Metadata;
use prism_proto::catalogue::Method;

use super::{Answer, Call, Origin};
use crate::shard::Shard;

/// Where the answer of such a write arrives.
#[derive(Default)]
pub(crate) struct OwnAnswer {
    outcome: Cell<Option<Result<Answer, Error>>>,
    waker: RefCell<Option<Waker>>,
}

impl OwnAnswer {
    pub(super) fn settle(&self, outcome: Result<Answer, Error>) {
        self.outcome.set(Some(outcome));
        self.waker.take().into_iter().for_each(Waker::wake);
    }
}

/// Has a write of the shard's own carried out. One that is given up takes effect all the same once it is in the log.
pub(super) async fn write(shard: &Shard, method: Method, request: Vec<u8>) -> Result<Bytes, Error> {
    call(shard, method, Metadata::new(), request).await
}

/// Has a call of the shard's own carried out, with the metadata of the stream that it is for.
pub(crate) async fn call(
    shard: &Shard,
    method: Method,
    metadata: Metadata,
    request: Vec<u8>,
) -> Result<Bytes, Error> {
    let answered = answer(shard, method, metadata, (request, false)).await?;
    match answered.code {
        0 => Ok(answered.reply.to_bytes()),
        _ => Err(Error::new(Kind::Internal, "CALL_SHAPE", "a write without a key was a retry")),
    }
}

/// Has a message of an outbox brought to its target.
pub(crate) async fn relay(
    shard: &Shard,
    method: Method,
    metadata: Metadata,
    request: Vec<u8>,
) -> Result<(), Error> {
    let answered = answer(shard, method, metadata, (request, true)).await?;
    match answered.code {
        0 => Ok(()),
        // What was refused the first time is refused for good.
        code => {
            let message = format!("the target has refused the message with status code {code}");
            Err(Error::new(Kind::InvalidArgument, "TARGET_REFUSED", message))
        }
    }
}

/// Has a call carried out; `is_relayed`: it is of an outbox.
async fn answer(
    shard: &Shard,
    method: Method,
    metadata: Metadata,
    (request, is_relayed): (Vec<u8>, bool),
) -> Result<Answer, Error> {
    let answer = Rc::new(OwnAnswer::default());
    let received_ns = clock::monotonic_ns();
    shard.start(Call {
        origin: Origin::Own(answer.clone()),
        method,
        metadata,
        deadline_ns: received_ns.saturating_add(shard.default_deadline_ns()),
        received_ns,
        message: request.into(),
        audited: OnceCell::new(),
        is_relayed,
    });
    std::future::poll_fn(|context| match answer.outcome.take() {
        Some(outcome) => Poll::Ready(outcome),
        None => {
            *answer.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        }
    })
    .await
}
