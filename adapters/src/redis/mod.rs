//! Redis, from 7.0 on: values as strings under `<namespace>:<key>`, as anybody who knows Redis would store them.
//!
//! One per shard, on its thread, with one connection that all of its namespaces share, and one more each where streams are followed and where topics are subscribed to. A value's version is its SHA-1
//! digest (DIGEST: what went from A to B and back to A has the version it had). Expiries are moments of Redis's clock
//! in milliseconds, so that a write that is sent a second time does not live longer; a Get also goes by the caller's. What
//! one command cannot do atomically is done by a script within Redis. What is durable is what Redis's append-only file
//! makes so.
//!
//! - `config`: where it is and how patient to be
//! - `codec`, `pipeline`: the protocol, and which reply belongs to whom; without I/O
//! - `connection`: the bytes moved, outages survived (with [`crate::breaker`])
//! - `errors`: what goes wrong, as failures that name backend and namespace
//! - `scripts`: what runs within Redis
//! - `keyvalue`, `scan`: the interfaces
//! - `stream`, `walk`, `tail`, `retention`: streams as Redis Streams; appended to, read, waited for on a connection of its own, and
//!   trimmed; `groups`, `members`: consumer groups as Redis's own, and a member's stream
//! - `fields`: messages as fields; `outbox`: those of transactions
//! - `queue`: queues as hashes and sorted sets; `wake`: how those who wait for messages hear of some
//! - `event`, `topics`, `pubsub`: topics as channels, and who hears them on this shard; `topic_log`: topics that are stored instead, as streams
//! - `lane`: logged writes, a batch as one transaction; `ending`: a namespace taken out
//! - `cluster`: the nodes of a Redis Cluster, and which of them a call goes to; it offers fewer interfaces

mod cluster;
mod codec;
mod config;
mod connection;
mod ending;
mod errors;
mod event;
mod fields;
mod groups;
mod keyvalue;
mod lane;
mod members;
mod outbox;
mod pipeline;
mod pubsub;
mod queue;
mod retention;
mod scan;
mod scripts;
mod stream;
mod tail;
mod topic_log;
mod topics;
mod wake;
mod walk;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use prism_proto::catalogue::Method;

pub use self::cluster::RedisCluster;
use self::cluster::{Cluster, LaneCells};
pub use self::config::{Login, RedisConfig};
pub use self::connection::ConnectionFacts;
use self::connection::Link;
use self::errors::Outage;
use self::members::Members;
use self::retention::Trims;
use self::tail::Tail;
pub use self::topic_log::TopicLog;
use self::topics::Topics;
use crate::backend::Admission;
use crate::claims::Promises;
use crate::error::Error;
use crate::outbox::Outboxes;

/// A shard's Redis, see the module. The connection ends with it.
pub struct Redis {
    /// Of a cluster, one that refuses what only a Redis by itself serves.
    link: Rc<Link>,
    cluster: Option<Rc<Cluster>>,
    tail: Rc<Tail>,
    topics: Rc<Topics>,
    trims: Trims,
    members: Members,
    /// What calls on their way to queues have been promised.
    promises: Promises,
    outboxes: RefCell<Outboxes>,
    /// By namespace and partition: the connection on which the lane's cell was read.
    lanes: RefCell<HashMap<(u32, u16), u64>>,
    /// The same in a cluster, with what is known of each slot.
    lane_cells: RefCell<HashMap<(u32, u16), LaneCells>>,
}

crate::backend! {
    Redis: "redis" =>
        keyvalue_basic,
        keyvalue_scan,
        keyvalue_ttl,
        keyvalue_transactional,
        keyvalue_batch,
        keyvalue_cas,
        queue_basic,
        queue_visibility,
        queue_dead_letter,
        queue_priority,
        queue_delayed,
        stream_basic,
        stream_consumer_groups,
        stream_replay,
        stream_retention,
        pubsub_basic,
        pubsub_wildcards;
    outbox write_with_messages
}

impl Redis {
    /// Begins to connect; calls may be made at once. Needs the shard's runtime around it.
    pub fn start(config: RedisConfig) -> Self {
        let tail = Rc::new(Tail::new(config.clone()));
        let cluster = config.cluster.then(|| Cluster::start(config.clone()));
        let doors = cluster.as_ref().map_or_else(|| config.doors(), |cluster| cluster.doors());
        let topics = Topics::new(config.clone(), doors);
        let link = match config.cluster {
            false => Link::start(config),
            true => Link::refusing(config, Outage::not_of_clusters()),
        };
        Redis {
            link,
            cluster,
            tail,
            topics,
            trims: Trims::default(),
            members: Members::default(),
            promises: Promises::default(),
            outboxes: RefCell::default(),
            lanes: RefCell::default(),
            lane_cells: RefCell::default(),
        }
    }

    /// What the connection has done so far.
    pub fn facts(&self) -> ConnectionFacts {
        self.cluster.as_ref().map_or_else(|| self.link.facts(), |cluster| cluster.facts())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.link.stop();
        if let Some(cluster) = &self.cluster {
            cluster.stop();
        }
        self.tail.stop();
        self.topics.stop();
    }
}

impl Admission for Redis {
    /// Redis knows by itself what it has room for, and a record may wait until it has.
    fn admit(&self, _: Method, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}
