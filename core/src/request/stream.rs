//! Calls whose answer is a stream: reads that hand over one page after the other, as fast as their caller takes them.
//!
//! Each runs in a task of its own and holds one page. It is bounded in number, ends with its deadline or its caller, and
//! gives the loop back between pages.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use prism_adapters::{Context, Error, Kind, PageSink, interfaces};
use prism_io::grpc::Message;
use prism_io::server::StreamCall;
use prism_io::{clock, rt};
use prism_proto::catalogue::Method;

use super::{Answer, Call, Origin, Stage, durability, expired, permit};
use crate::namespaces::Namespace;
use crate::remote::{self, AskParts, RemoteSink, caller_gone};
use crate::shard::{RETRY_DELAY, Shard};
use crate::status;

/// Streamed calls that one shard serves at once.
pub(crate) const STREAMS_MAX: usize = 4096;

/// Starts a streaming call of one of this shard's callers.
pub(crate) fn start(shard: &Rc<Shard>, stream: StreamCall, mut call: Call) {
    // A stream may last; a slice would keep its whole read buffer.
    call.message = Bytes::copy_from_slice(&call.message);
    let Some(place) = shard.take_stream() else {
        return status::with_status(&busy(), |status| stream.fail(status));
    };
    let shard = shard.clone();
    rt::spawn(async move {
        let seen = std::cell::Cell::new(None);
        let mut sink = CallerSink { stream: &stream };
        let served = within(&call, async {
            let namespace = permit(&shard, call.method, &call.message, &seen)?;
            let _held = shard.hold(namespace, &call, call.message.len())?;
            if namespace.home == shard.index {
                serve(&shard, namespace, &call, &mut sink).await
            } else {
                let parts = AskParts {
                    method: call.method,
                    metadata: &call.metadata,
                    deadline_ns: call.deadline_ns,
                    received_ns: call.received_ns,
                    message: call.message.clone(),
                };
                remote::ask_stream(&shard, namespace.home, parts, &mut sink).await
            }
        })
        .await;
        let code = served.as_ref().map_or_else(|error| error.kind().grpc_code(), |()| 0);
        let elapsed_ns = clock::monotonic_ns().saturating_sub(call.received_ns);
        shard.metrics.request(seen.get(), 0, code, elapsed_ns);
        match served {
            Ok(()) => stream.finish(&[]),
            Err(error) => {
                shard.refusals.count(&shard.metrics, &error);
                status::with_status(&error, |status| stream.fail(status));
            }
        }
        drop(place);
    });
}

/// Starts a streaming call for another shard's caller.
pub(crate) fn start_remote(shard: &Rc<Shard>, call: Call) {
    let Origin::Shard { shard: to, ticket } = call.origin else { return };
    let Some(place) = shard.take_stream() else {
        return remote::answer(shard, to, ticket, Err(busy()));
    };
    let shard = shard.clone();
    rt::spawn(async move {
        let seen = std::cell::Cell::new(None);
        let mut sink = RemoteSink::new(&shard, to, ticket);
        let served = within(&call, async {
            let namespace = permit(&shard, call.method, &call.message, &seen)?;
            let _held = shard.hold(namespace, &call, call.message.len())?;
            serve(&shard, namespace, &call, &mut sink).await
        })
        .await;
        drop(sink);
        let answer = served.map(|()| Answer::default());
        remote::answer(&shard, to, ticket, answer);
        drop(place);
    });
}

/// Refuses a call whose client streams: no namespace offers one yet, and its first message says which it is about.
pub(crate) fn refuse_client_streaming(shard: &Rc<Shard>, stream: StreamCall, method: Method) {
    let Some(place) = shard.take_stream() else {
        return status::with_status(&busy(), |status| stream.fail(status));
    };
    let shard = shard.clone();
    rt::spawn(async move {
        let first =
            rt::timeout(Duration::from_nanos(shard.default_deadline_ns()), stream.next()).await;
        let error = match first {
            Some(Ok(Some(message))) => permit(&shard, method, &message, &Default::default())
                .err()
                .unwrap_or_else(|| prism_adapters::backend::not_offered("", method)),
            Some(Ok(None)) => {
                Error::field("NAMESPACE_MISSING", "namespace", "send a first message that names it")
            }
            Some(Err(_)) => caller_gone(),
            None => expired(Stage::Nothing),
        };
        status::with_status(&error, |status| stream.fail(status));
        drop(place);
    });
}

async fn serve(
    shard: &Shard,
    namespace: &Namespace,
    call: &Call,
    sink: &mut impl PageSink,
) -> Result<(), Error> {
    interfaces::validate(call.method, &call.message, namespace.offers, &namespace.limits)?;
    durability::after(shard, &call.metadata).await?;
    let context = Context {
        namespace: namespace.id,
        namespace_name: &namespace.name,
        partition: 0,
        now_us: clock::wall_us(),
        revision: Default::default(),
        limits: &namespace.limits,
    };
    if let Some(lane) = shard.lanes.of(namespace.index) {
        lane.caught_up(namespace).await?;
    }
    shard.backend(namespace).stream(&context, call.method, &call.message, sink).await
}

/// Runs `work` until the call's deadline.
async fn within(call: &Call, work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let left_ns = call.deadline_ns.saturating_sub(clock::monotonic_ns());
    rt::timeout(Duration::from_nanos(left_ns), work)
        .await
        .unwrap_or_else(|| Err(expired(Stage::Nothing)))
}

/// The sink of a stream that a caller of this shard reads.
struct CallerSink<'a> {
    stream: &'a StreamCall,
}

impl PageSink for CallerSink<'_> {
    async fn send(&mut self, message: Bytes) -> Result<(), Error> {
        let message = Message { head: &[], tail: message };
        self.stream.send(message).await.map_err(|_| caller_gone())
    }

    fn now_us(&self) -> u64 {
        clock::wall_us()
    }
}

/// The refusal of one stream too many.
#[cold]
pub(crate) fn busy() -> Error {
    Error::new(
        Kind::ResourceExhausted,
        "SHARD_BUSY",
        "this shard serves as many streams as it may; retry later",
    )
    .retry_after(RETRY_DELAY)
}
