//! Kafka, from 2.1 on: one topic per stream or topic, named `<namespace>.<name>`, as anybody who knows Kafka would make it.
//!
//! A record's key is the Kafka key, its value the Kafka value (none for a tombstone), its time the record's time; attributes are headers
//! under their own names, the media type is the header `content-type`. A key's partition is the one that Kafka's own
//! clients choose (of its `{tag}`, where it has one). An offset is Kafka's. Appends are answered when every replica that is in sync has
//! them, idempotently and in order; the shards share one producer per cluster, which batches across all of them. Readers see
//! what is committed (`read_committed`).
//!
//! - `config`: where it is, how topics are made, how patient to be
//! - `cluster`: the clients of a cluster, shared by the process; what blocks
//! - `link`: a shard's way there, over the bridge, and what it does while the cluster is away (with [`crate::breaker`])
//! - `delivery`: records on their way; `reader`: a consumer per reader
//! - `names`, `record`, `since`, `tail`: topics, partitions, and what lies in them, from a moment on and to the last
//! - `errors`: what goes wrong, as failures that name backend and namespace
//! - `stream`, `walk`, `retention`, `groups`, `replay`, `pubsub`, `durable`: the interfaces
//! - `session`, `crowd`: this shard's part in a group of Kafka's, and how it is shared; `offsets`, `notes`: what is kept of a group
//! - `lane`: logged records, in transactions
//! - `payloads`: what lies here for a queue whose state is elsewhere ([`crate::kafka_postgres`])
//!
//! The binding copies every value once, into the client's queue, when it is sent; on the way back it is copied once, from the
//! client's buffer into the answer.

mod cluster;
mod config;
mod crowd;
mod delivery;
mod durable;
mod errors;
mod groups;
mod lane;
mod link;
mod names;
mod notes;
mod offsets;
pub(crate) mod payloads;
mod pubsub;
mod reader;
mod record;
mod replay;
mod retention;
mod session;
mod since;
mod stream;
mod tail;
mod walk;

// A namespace taken out.
mod ending;

use std::rc::Rc;

use prism_proto::catalogue::Method;

pub use self::config::{
    KafkaConfig, Login, Mechanism, RECORD_BYTES_MAX, TOPIC_PARTITIONS_MAX, Tls, TopicShape,
};
pub use self::link::KafkaFacts;
use self::link::Link;
use self::notes::Notes;
use self::pubsub::Topics;
use self::session::Sessions;
use crate::backend::Admission;
use crate::error::Error;

/// A shard's Kafka, see the module.
pub struct Kafka {
    link: Rc<Link>,
    topics: Rc<Topics>,
    notes: Notes,
    sessions: Rc<Sessions>,
}

crate::backend! {
    Kafka: "kafka" =>
        stream_basic,
        stream_consumer_groups,
        stream_replay,
        stream_retention,
        stream_partitioning,
        pubsub_basic,
        pubsub_persistent,
        pubsub_filtering,
        pubsub_ordering,
}

impl Kafka {
    /// Begins to look for the cluster; calls may be made at once. Needs the shard's runtime around it.
    pub fn start(config: KafkaConfig) -> Self {
        Kafka {
            link: Link::start(config),
            topics: Rc::default(),
            notes: Notes::default(),
            sessions: Rc::default(),
        }
    }

    /// Has the topics of a namespace be made in another shape than the configuration's. Topics that are there stay as they are.
    pub fn shape_topics(&self, namespace: u32, shape: TopicShape) {
        self.link.set_shape(namespace, shape);
    }

    /// What it has done so far.
    pub fn facts(&self) -> KafkaFacts {
        self.link.facts()
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.sessions.stop();
        self.link.stop();
    }
}

impl Admission for Kafka {
    /// What may be under way is bounded where it is sent.
    fn admit(&self, _: Method, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}
