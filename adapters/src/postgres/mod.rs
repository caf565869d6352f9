//! PostgreSQL, from 12 on: one schema per namespace with plain tables, as a person would read them with psql.
//!
//! `SELECT key, convert_from(value, 'UTF8'), expires_at FROM "<namespace>".keyvalue`,
//! `SELECT queue, convert_from(payload, 'UTF8'), attempts FROM "<namespace>".queue`. One adapter per shard, on its thread, with a
//! few connections that all of its namespaces share. A version is a number that no other write ever gets (REVISION): the upper half
//! is the connection's, from a sequence. An entry expires by the time that its readers bring, and is deleted some time later. Schemas are
//! made and brought up to date by the numbered `.sql` files of this folder.
//!
//! - `config`: where it is and how patient to be
//! - `codec`, `statements`, `batch`: the protocol, what is asked, many calls as one transaction; without I/O
//! - `session`, `migrations`: one connection, and what is made in the database
//! - `connection`: calls gathered, outages survived (with [`crate::breaker`])
//! - `errors`: what goes wrong, as failures that name backend and namespace
//! - `keyvalue`, `scan`, `queue`, `pubsub`, `sweep`: the interfaces, and what has expired
//! - `messages`: messages as rows; `outbox`: those of transactions
//! - `lane`: logged records, each with one effect; `ending`: a namespace taken out
//! - `document`: a text that several processes share
//!
//! It speaks TLS where it is told to, and logs in by SCRAM-SHA-256 or with its certificate only.

mod batch;
mod codec;
mod config;
mod connection;
mod document;
mod ending;
mod errors;
mod keyvalue;
mod lane;
mod messages;
mod migrations;
mod outbox;
mod pubsub;
pub(crate) mod queue;
mod scan;
mod session;
mod statements;
mod sweep;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use prism_proto::catalogue::Method;

use self::batch::{Answer, Operation};
pub use self::config::{POOL_MAX, PostgresConfig};
pub use self::connection::ConnectionFacts;
use self::connection::Link;
pub use self::document::Document;
use self::errors::Fault;
use self::lane::Group;
use self::pubsub::{Streams, Topics};
use self::queue::Waiting;
use self::queue::elsewhere::Announced;
use self::statements::Namespace;
use crate::backend::Admission;
use crate::call::Context;
use crate::error::Error;
use crate::outbox::Outboxes;

/// A shard's PostgreSQL, see the module. Its connections end with it.
pub struct Postgres {
    pool: Rc<Pool>,
    /// The calls of a lane's batch, while it is put together.
    group: RefCell<Option<Group>>,
    /// By namespace and partition: what the lane's cell lets us write with.
    lanes: RefCell<HashMap<(u32, u16), i64>>,
    /// Those who wait for messages.
    waiting: Waiting,
    /// Messages whose payload is elsewhere.
    pub(crate) announced: Announced,
    /// Those who wait for events.
    topics: Rc<Topics>,
    streams: Rc<Streams>,
    outboxes: RefCell<Outboxes>,
    look_every: Duration,
}

crate::backend! {
    Postgres: "postgres" =>
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
        pubsub_basic,
        pubsub_wildcards,
        pubsub_persistent,
        pubsub_filtering,
        pubsub_ordering;
    outbox write_with_messages
}

/// The connections, and the namespaces that have been called.
struct Pool {
    links: Box<[Rc<Link>]>,
    namespaces: RefCell<HashMap<u32, Rc<Namespace>>>,
}

impl Pool {
    fn namespace(&self, number: u32, name: &str) -> Rc<Namespace> {
        let mut namespaces = self.namespaces.borrow_mut();
        let namespace = namespaces.entry(number);
        namespace.or_insert_with(|| Rc::new(Namespace::new(number, name))).clone()
    }

    /// No call of a namespace is carried out any more. It stays known, so that nobody who comes late makes it anew.
    fn end(&self, number: u32) {
        let mut namespaces = self.namespaces.borrow_mut();
        namespaces.entry(number).or_insert_with(|| Rc::new(Namespace::new(number, ""))).end();
    }

    /// The connection of a lane's writes: always the same, so that they keep their order.
    fn of_writes(&self, namespace: u32, partition: u16) -> &Rc<Link> {
        &self.links[self.place(namespace, partition)]
    }

    /// The connection of its reads: another where there is one, since they need not wait for commits.
    fn of_reads(&self, namespace: u32, partition: u16) -> &Rc<Link> {
        &self.links[(self.place(namespace, partition) + 1) % self.links.len()]
    }

    fn place(&self, namespace: u32, partition: u16) -> usize {
        (namespace as usize + usize::from(partition)) % self.links.len()
    }
}

impl Postgres {
    /// Begins to connect; calls may be made at once. Needs the shard's runtime around it.
    pub fn start(config: PostgresConfig) -> Self {
        let links =
            (0..config.pool.clamp(1, POOL_MAX)).map(|_| Link::start(config.clone())).collect();
        let pool = Rc::new(Pool { links, namespaces: RefCell::default() });
        if let Some(every) = config.sweep_every {
            sweep::start(&pool, every);
        }
        Postgres {
            pool,
            group: RefCell::new(None),
            lanes: RefCell::default(),
            waiting: Waiting::default(),
            announced: Announced::default(),
            topics: Rc::default(),
            streams: Rc::default(),
            outboxes: RefCell::default(),
            look_every: config.look_every,
        }
    }

    /// What the connections have done so far.
    pub fn facts(&self) -> ConnectionFacts {
        let mut all = ConnectionFacts::default();
        for facts in self.pool.links.iter().map(|link| link.facts()) {
            all.calls += facts.calls;
            all.batches += facts.batches;
            all.reads += facts.reads;
            all.connects += facts.connects;
            all.outages += facts.outages;
            all.refused += facts.refused;
            all.calls_under_way += facts.calls_under_way;
            all.connected += facts.connected;
        }
        all
    }

    /// Which messages of transactions are known to be there.
    pub fn outboxes(&self) -> &RefCell<Outboxes> {
        &self.outboxes
    }

    async fn read(
        &self,
        context: &Context<'_>,
        operations: Vec<Operation>,
    ) -> Result<Answer, Error> {
        let link = self.pool.of_reads(context.namespace, context.partition);
        self.call(link, context, operations).await
    }

    async fn write(
        &self,
        context: &Context<'_>,
        operations: Vec<Operation>,
    ) -> Result<Answer, Error> {
        if self.group.borrow().is_some() {
            return self.join_group(context, operations).await;
        }
        let link = self.pool.of_writes(context.namespace, context.partition);
        self.call(link, context, operations).await
    }

    async fn call(
        &self,
        link: &Link,
        context: &Context<'_>,
        operations: Vec<Operation>,
    ) -> Result<Answer, Error> {
        let namespace = self.pool.namespace(context.namespace, context.namespace_name);
        let answered = link.call(namespace, operations, context.deadline_ns).await;
        answered.map_err(|fault: Fault| fault.error(context, link.retry_delay()))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.pool.links.iter().for_each(|link| link.stop());
        self.streams.stop();
    }
}

impl Admission for Postgres {
    /// PostgreSQL knows by itself what it has room for, and a record may wait until it has.
    fn admit(&self, _: Method, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}
