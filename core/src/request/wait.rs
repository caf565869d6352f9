//! Waits that a call makes before it has any effect: outside its lane, within its caller's time, and no longer than the
//! server serves.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use prism_adapters::Context;
use prism_io::{clock, rt};
use prism_proto::catalogue::Method;
use prism_proto::view::queue::ReceiveRequest;

use super::Call;
use crate::namespaces::Namespace;
use crate::shard::Shard;

/// How long before its caller's deadline a call that waits in vain is answered.
const ANSWER_BEFORE_NS: u64 = 200_000_000;

/// How a wait has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// The call may find something, or it does not wait at all.
    Ready,
    /// It would find nothing.
    InVain,
}

/// Until when a call waits, monotonic ns; `None` where its method never does.
pub(super) fn wait_until_ns(call: &Call, message: &[u8]) -> Option<u64> {
    if call.method != Method::QUEUE_RECEIVE {
        return None;
    }
    let wait = ReceiveRequest::decode(message).ok()?.wait.unwrap_or_default();
    let wait_ns = u64::try_from(wait.seconds).unwrap_or(0).saturating_mul(1_000_000_000);
    let wait_ns = wait_ns.saturating_add(u64::try_from(wait.nanos).unwrap_or(0));
    let latest_ns = call.deadline_ns.saturating_sub(ANSWER_BEFORE_NS);
    Some(call.received_ns.saturating_add(wait_ns).min(latest_ns))
}

/// Waits until the call may find something, but not beyond `until_ns`.
pub(super) async fn ready(
    shard: &Shard,
    context: &Context<'_>,
    namespace: &Namespace,
    (call, message): (&Call, &[u8]),
    until_ns: u64,
) -> Waited {
    let left_ns = until_ns.saturating_sub(clock::monotonic_ns());
    if left_ns == 0 && namespace.backend != 0 {
        // Asking an outside backend costs as much as the call.
        return Waited::Ready;
    }
    let mut ready = pin!(shard.backend(namespace).ready(context, call.method, message));
    let at_once = std::future::poll_fn(|task| Poll::Ready(ready.as_mut().poll(task))).await;
    if at_once.is_ready() {
        return Waited::Ready;
    }
    if left_ns == 0 {
        return Waited::InVain;
    }
    let mut stopped = pin!(shard.stopping.wait());
    // Then the call is refused as a write of a namespace that is not served.
    let mut ended = pin!(shard.endings.wait([namespace, namespace]));
    let either = std::future::poll_fn(|task| {
        if ready.as_mut().poll(task).is_ready() || ended.as_mut().poll(task).is_ready() {
            return Poll::Ready(Waited::Ready);
        }
        stopped.as_mut().poll(task).map(|()| Waited::InVain)
    });
    rt::timeout(Duration::from_nanos(left_ns), either).await.unwrap_or(Waited::InVain)
}
