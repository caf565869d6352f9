//! `/debug/connections`: the connections that are open, as JSON, like gRPC's channelz tells of sockets.

use prism_io::clock;
use prism_io::grpc::Counts;
use prism_io::server::ConnectionView;
use serde_json::{Value, json};

use crate::metrics::Metrics;

/// Most connections that one answer shows; `omitted` says how many there are beside them.
const SHOWN_MAX: usize = 1000;

/// The page.
pub(super) fn render(metrics: &Metrics) -> Vec<u8> {
    let now_ns = clock::monotonic_ns();
    let (mut shown, mut open) = (Vec::new(), 0);
    for (shard, registry) in metrics.registries() {
        open += registry.len();
        let views = registry.view(SHOWN_MAX - shown.len());
        shown.extend(views.iter().map(|view| one(shard, view, now_ns)));
    }
    let omitted = open.saturating_sub(shown.len());
    let page = json!({ "open": open, "omitted": omitted, "connections": shown });
    let mut body = page.to_string().into_bytes();
    body.push(b'\n');
    body
}

fn one(shard: usize, view: &ConnectionView, now_ns: u64) -> Value {
    let ago = |then_ns: u64| now_ns.saturating_sub(then_ns) as f64 / 1e9;
    let last = |then_ns: u64| if then_ns == 0 { Value::Null } else { json!(ago(then_ns)) };
    let Counts {
        streams_started,
        streams_succeeded,
        streams_failed,
        messages_received,
        messages_sent,
        keepalives_sent,
        last_stream_ns,
        last_received_ns,
        last_sent_ns,
    } = view.passed.counts;
    json!({
        "shard": shard,
        "number": view.number,
        "peer": view.peer.to_string(),
        "age_seconds": ago(view.since_ns),
        "streams_open": view.passed.open_streams,
        "streams_started": streams_started,
        "streams_succeeded": streams_succeeded,
        "streams_failed": streams_failed,
        "messages_received": messages_received,
        "messages_sent": messages_sent,
        "keepalives_sent": keepalives_sent,
        "last_stream_seconds_ago": last(last_stream_ns),
        "last_message_received_seconds_ago": last(last_received_ns),
        "last_message_sent_seconds_ago": last(last_sent_ns),
        "received_bytes": view.passed.received_bytes,
        "sent_bytes": view.passed.sent_bytes,
        "buffered_bytes": view.passed.buffered_bytes,
    })
}
