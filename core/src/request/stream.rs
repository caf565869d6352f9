//! Calls whose answer is a stream: reads that hand over one page after the other, as fast as their caller takes them.
//!
//! Each runs in a task of its own and holds one page. It is bounded in number, ends with its deadline or its caller, and
//! gives the loop back between pages.

use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use prism_adapters::call::NO_END;
use prism_adapters::{Context, Error, Kind, PageSink, interfaces, reader};
use prism_io::grpc::Message;
use prism_io::server::StreamCall;
use prism_io::{clock, rt};
use prism_proto::catalogue::{Method, Model};

use super::{Answer, Call, Origin, Stage, audited, durability, expired, own, permit};
use crate::namespaces::Namespace;
use crate::remote::{self, AskParts, RemoteSink, caller_gone};
use crate::shard::{RETRY_DELAY, Shard, Stopping};
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
        let mut sink = CallerSink { shard: &shard, stream: &stream };
        let served = within(&call, stream.closed(), async {
            let namespace = permit(&*shard, &call, &call.message, &seen)?;
            audited::begin_stream(&shard, &call, &seen).await?;
            while_granted(&shard, &call, (seen.get(), namespace), async {
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
                        is_relayed: false,
                    };
                    remote::ask_stream(&shard, namespace.home, parts, &mut sink).await
                }
            })
            .await
        })
        .await;
        let code = served.as_ref().map_or_else(|error| error.kind().grpc_code(), |()| 0);
        audited::end_stream(&shard, &call, seen.get(), code).await;
        let elapsed_ns = clock::monotonic_ns().saturating_sub(call.received_ns);
        shard.metrics.request(seen.get(), shard.api(seen.get()), code, elapsed_ns);
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

/// Does the work of a stream on the namespace that it has `seen` and the one that holds its data, for as long as there are both and
/// its caller may have it done.
pub(super) async fn while_granted<T>(
    shard: &Shard,
    call: &Call,
    (seen, namespace): (Option<usize>, &Namespace),
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let called = seen.map_or(namespace, |index| shard.namespaces.at(index));
    let work = shard.endings.unless_ended([called, namespace], work);
    match &shard.gate {
        Some(gate) => gate.over(call, [called, namespace], work).await,
        None => work.await,
    }
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
        let served = within(&call, std::future::pending(), async {
            let namespace = permit(&*shard, &call, &call.message, &seen)?;
            let _held = shard.hold(namespace, &call, call.message.len())?;
            let work = serve(&shard, namespace, &call, &mut sink);
            shard.endings.unless_ended([namespace, namespace], work).await
        })
        .await;
        drop(sink);
        let answer = served.map(|()| Answer::default());
        remote::answer(&shard, to, ticket, answer);
        drop(place);
    });
}

/// Refuses a call whose client streams and which no namespace offers yet; its first message says which it is about.
pub(crate) fn refuse_client_streaming(shard: &Rc<Shard>, stream: StreamCall, method: Method) {
    let Some(place) = shard.take_stream() else {
        return status::with_status(&busy(), |status| stream.fail(status));
    };
    let shard = shard.clone();
    rt::spawn(async move {
        let first =
            rt::timeout(Duration::from_nanos(shard.default_deadline_ns()), stream.next()).await;
        let error = match first {
            Some(Ok(Some(_))) => prism_adapters::backend::not_offered("", method),
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

/// As [`PageSink::write`] of a stream that another shard's caller reads.
pub(crate) async fn write(shard: &Shard, method: Method, request: Vec<u8>) -> Result<Bytes, Error> {
    own::write(shard, method, request).await
}

async fn serve(
    shard: &Shard,
    namespace: &Namespace,
    call: &Call,
    sink: &mut impl PageSink,
) -> Result<(), Error> {
    let _place = match is_endless(call.method) {
        true => Some(shard.subscribe(namespace)?),
        false => None,
    };
    interfaces::validate(call.method, &call.message, namespace.offers, &namespace.limits())?;
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
    shard.make_ready(namespace);
    if let Some(lane) = shard.lanes.of(namespace.index) {
        lane.caught_up(namespace).await?;
    }
    let backend = shard.backend(namespace);
    if reader::serves(call.method) {
        let request = (call.method, &call.message[..]);
        return backend.read_stream(&context, request, namespace.offers, sink).await;
    }
    backend.stream(&context, call.method, &call.message, sink).await
}

/// Runs `work` until the call's deadline, or until its caller has `gone`.
async fn within(
    call: &Call,
    gone: impl Future<Output = ()>,
    work: impl Future<Output = Result<(), Error>>,
) -> Result<(), Error> {
    let (mut gone, mut work) = (pin!(gone), pin!(work));
    let work = std::future::poll_fn(|context| {
        if gone.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(caller_gone()));
        }
        work.as_mut().poll(context)
    });
    if call.deadline_ns == NO_DEADLINE_NS {
        return work.await;
    }
    let left_ns = call.deadline_ns.saturating_sub(clock::monotonic_ns());
    rt::timeout(Duration::from_nanos(left_ns), work)
        .await
        .unwrap_or_else(|| Err(expired(Stage::Nothing)))
}

/// The deadline of a stream that may last for ever.
pub(crate) use prism_adapters::NO_DEADLINE_NS;

/// Whether a call of this method that brings no deadline has none: what it reads has no end.
pub(crate) fn is_endless(method: Method) -> bool {
    let model = method.interface().map(|interface| interface.model());
    method == Method::READER_READ
        || method.server_streaming() && matches!(model, Some(Model::PubSub | Model::Stream))
}

/// Waits for `event` until it is `until_us`, µs since the epoch, or until `gone` or the shard's end.
pub(crate) async fn wait(
    shard: &Shard,
    event: impl Future<Output = ()>,
    gone: impl Future<Output = ()>,
    until_us: u64,
) -> Result<(), Error> {
    let (mut event, mut gone) = (pin!(event), pin!(gone));
    let mut stopped = pin!(shard.stopping.wait());
    let first = std::future::poll_fn(|context| {
        if stopped.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(Stopping::error()));
        }
        if gone.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(caller_gone()));
        }
        event.as_mut().poll(context).map(Ok)
    });
    if until_us == NO_END {
        return first.await;
    }
    let left = Duration::from_micros(until_us.saturating_sub(clock::wall_us()));
    rt::timeout(left, first).await.unwrap_or(Ok(()))
}

/// The sink of a stream that a caller of this shard reads.
struct CallerSink<'a> {
    shard: &'a Shard,
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

    async fn wait(&mut self, event: impl Future<Output = ()>, until_us: u64) -> Result<(), Error> {
        // That the caller has gone ends the whole call.
        wait(self.shard, event, std::future::pending(), until_us).await
    }

    async fn write(&mut self, method: Method, request: Vec<u8>) -> Result<Bytes, Error> {
        own::write(self.shard, method, request).await
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
