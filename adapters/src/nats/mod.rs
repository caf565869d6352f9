//! NATS with JetStream, from 2.12 on: values in a bucket per namespace, as NATS's own key-value clients keep them, and topics as
//! subjects.
//!
//! A namespace of values is the bucket of its name (the stream `KV_<namespace>`), a key a subject under `$KV.<namespace>.`, a value a
//! message and nothing else. A value's version is its number in the stream (REVISION: never used again). Whoever has a
//! NATS client with a key-value API reads and writes the same data. A topic is the subject `<namespace>.<topic>`, an event a message
//! on it, with its attributes as headers. What is to last lies in the stream `EVENTS_<namespace>`, and a durable subscription is a durable
//! consumer of it. A stream is the stream `STREAM_<namespace>_<stream>` over the subject
//! `$STREAM.<namespace>.<stream>`, a queue the work-queue stream `QUEUE_<namespace>_<queue>`.
//!
//! Whatever is answered by one message (publishes, acknowledged or not, single reads, management) goes over a connection of the shard's own,
//! on its ring: all calls of a loop turn leave in one write, and their answers are awaited side by side. What is answered by several messages
//! or goes on (scans, subscriptions, what consumers hand out) goes over async-nats, on the thread beside the shards, reached over a bridge; its
//! connection is made when it is first needed. Both carry messages to subjects and answers back; what they mean is said here, on the shard.
//!
//! - `config`: where it is and how patient to be; `login`: who we are
//! - `link`: the two ways; `wire`: the shard's own connection
//! - `session`: the other end of the bridge; `table`: the calls under way there. Both survive outages (with [`crate::breaker`])
//! - `inbox`: what comes to a subject, on its way to the shard
//! - `errors`: what goes wrong, as failures that name backend and namespace
//! - `subject`: keys as subjects, and back
//! - `jetstream`: what is asked of JetStream and what it answers; `holds`: the streams that namespaces lie in
//! - `leader`: reads of streams with replicas
//! - `operation`: what a write does to a key, decided on the shard
//! - `keyvalue`, `scan`: the interfaces
//! - `event`: events as messages, and back; `pubsub`: the interfaces of topics
//! - `durable`: the interface of what lasts; `consumer`: subscriptions as consumers, `delivery`: what their streams have in hand
//! - `place`: deliveries as consumers know them; `queue`: the interfaces of queues
//! - `stream`, `groups`, `replay`, `retention`: the interfaces of streams; `record`: records as messages, and back
//! - `lane`: logged writes, a batch as one atomic publish; `lane_events`: logged events; `ending`: a namespace taken out
//!
//! What it has confirmed is as durable as the server's `sync_interval` makes it.

mod config;
mod consumer;
mod delivery;
mod durable;
mod ending;
mod errors;
mod event;
mod groups;
mod holds;
mod inbox;
mod jetstream;
mod keyvalue;
mod lane;
mod lane_events;
mod leader;
mod link;
mod login;
mod operation;
mod place;
mod pubsub;
mod queue;
mod record;
mod replay;
mod retention;
mod scan;
mod session;
mod stream;
mod subject;
mod table;
mod wire;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use prism_proto::catalogue::Method;
use prism_proto::view::keyvalue::BatchSetRequest;
use prism_proto::view::pubsub::PublishBatchRequest;
use prism_proto::view::queue::SendBatchRequest;
use prism_proto::view::stream::AppendBatchRequest;

pub use self::config::{Login, NatsConfig, Tls};
use self::delivery::Deliveries;
use self::jetstream::Streams;
use self::lane::Held;
use self::lane_events::Resumed;
pub use self::link::ConnectionFacts;
use self::link::Link;
use self::pubsub::Topics;
use self::queue::Queues;
use crate::backend::Admission;
use crate::error::Error;
use crate::members::Members;

/// A shard's NATS, see the module. The connection ends with it.
pub struct Nats {
    link: Rc<Link>,
    streams: Box<Streams>,
    /// By namespace and partition.
    cells: RefCell<HashMap<(u32, u16), Held>>,
    /// The same: which records may be second arrivals.
    resumed: RefCell<HashMap<(u32, u16), Resumed>>,
    /// Atomic batches that were sent: each has a name of its own.
    batches: Cell<u64>,
    topics: Rc<Topics>,
    deliveries: Rc<Deliveries>,
    queues: Queues,
    members: Members,
}

crate::backend! {
    Nats: "nats" =>
        keyvalue_basic,
        keyvalue_scan,
        keyvalue_batch,
        keyvalue_cas,
        pubsub_basic,
        pubsub_wildcards,
        pubsub_persistent,
        pubsub_filtering,
        pubsub_ordering,
        queue_basic,
        queue_visibility,
        queue_dead_letter,
        queue_delayed,
        stream_basic,
        stream_consumer_groups,
        stream_replay,
        stream_retention,
}

impl Nats {
    /// Begins to connect; calls may be made at once. Needs the shard's runtime around it.
    pub fn start(config: NatsConfig) -> Self {
        let streams = Box::new(Streams::new(config.replicas));
        let link = Rc::new(Link::start(config));
        Nats {
            link,
            streams,
            cells: RefCell::default(),
            resumed: RefCell::default(),
            batches: Cell::new(0),
            topics: Rc::default(),
            deliveries: Rc::default(),
            queues: Queues::default(),
            members: Members::default(),
        }
    }

    /// Has the streams of a namespace that are made from now on have so many replicas; nothing: as the configuration says.
    pub fn replicate(&self, namespace: u32, replicas: Option<u16>) {
        self.streams.replicate(namespace, replicas);
    }

    /// What the connection has done so far.
    pub fn facts(&self) -> ConnectionFacts {
        self.link.facts()
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.deliveries.stop();
        self.link.stop();
    }
}

impl Admission for Nats {
    /// A message may not be longer than the server takes (`max_payload`); everything else NATS decides when it comes.
    fn admit(&self, method: Method, request: &[u8]) -> Result<(), Error> {
        let bytes_max = self.link.message_bytes_max();
        if request.len() <= bytes_max {
            return Ok(());
        }
        let longest = match method {
            Method::KEYVALUE_BATCH_SET => BatchSetRequest::decode(request)
                .ok()
                .and_then(|batch| batch.items.iter().map(|item| item.value.len()).max()),
            Method::PUBSUB_PUBLISH_BATCH => PublishBatchRequest::decode(request)
                .ok()
                .and_then(|batch| batch.messages.iter().map(|message| message.payload.len()).max()),
            Method::STREAM_APPEND_BATCH => AppendBatchRequest::decode(request)
                .ok()
                .and_then(|batch| batch.records.iter().map(|record| record.value.len()).max()),
            Method::QUEUE_SEND_BATCH => SendBatchRequest::decode(request)
                .ok()
                .and_then(|batch| batch.messages.iter().map(|message| message.payload.len()).max()),
            Method::STREAM_APPEND
            | Method::QUEUE_SEND
            | Method::QUEUE_SEND_DELAYED
            | Method::PUBSUB_PUBLISH
            | Method::PUBSUB_PUBLISH_PERSISTENT
            | Method::PUBSUB_PUBLISH_WITH_ATTRIBUTES
            | Method::PUBSUB_PUBLISH_ORDERED => Some(request.len()),
            Method::KEYVALUE_SET | Method::KEYVALUE_COMPARE_AND_SWAP => Some(request.len()),
            _ => None,
        };
        match longest.filter(|longest| *longest > bytes_max) {
            Some(_) => Err(errors::message_too_large(bytes_max)),
            None => Ok(()),
        }
    }
}
