//! The backends of a shard: the embedded store, and its own connections to those outside.
//!
//! A call goes to its namespace's backend by a match, not through a pointer to a trait: the futures of adapters stay where
//! the call's own is. A connection is begun when the shard starts and is its own affair from then on: a backend that is away
//! costs the calls that need it an error in time, and the others nothing.

use std::cell::RefCell;
use std::rc::Rc;

use prism_adapters::ending::Endings as _;
use prism_adapters::kafka::Kafka;
use prism_adapters::kafka_postgres::KafkaPostgres;
use prism_adapters::lane::{Cell, LaneBackend, LaneOwner, LaneRecord, Outcome};
use prism_adapters::memory::Memstore;
use prism_adapters::nats::{Nats, NatsConfig};
use prism_adapters::outbox::{Chain, Outboxes, Outgoing, Place};
use prism_adapters::postgres::{Postgres, PostgresConfig};
use prism_adapters::redis::{Redis, RedisConfig, TopicLog};
use prism_adapters::{Backend as _, Context, Error, PageSink, Reply, reader};
use prism_proto::catalogue::{Interfaces, Method};

use crate::config::{Backend, BackendKind};
use crate::namespaces::Namespace;

/// A backend that a shard holds.
pub(crate) enum Attached {
    /// The embedded store.
    Memory(Rc<Memstore>),
    /// A Redis server, and its topics where they are kept as a log ([`Attached::TopicLog`]).
    Redis(Rc<Redis>, Box<Attached>),
    /// The topics of a Redis server as streams.
    TopicLog(TopicLog),
    /// A PostgreSQL server.
    Postgres(Postgres),
    /// A Kafka cluster.
    Kafka(Kafka),
    /// A NATS server with JetStream.
    Nats(Nats),
    /// A Kafka cluster and a PostgreSQL server together.
    KafkaPostgres(Box<KafkaPostgres>),
    /// One that no namespace of this shard uses.
    Unused,
}

impl Attached {
    /// Those of the configuration that `used` says yes to. Needs the shard's runtime around it.
    pub(super) fn all(
        backends: &[Backend],
        store: &Rc<Memstore>,
        client_name: &str,
        used: impl Fn(usize) -> bool,
    ) -> Box<[Attached]> {
        let attach = |(index, backend): (usize, &Backend)| match &backend.kind {
            BackendKind::Memory => Attached::Memory(store.clone()),
            BackendKind::Redis(config) if used(index) => {
                // Lanes tell what a connection before this one has left behind by the name.
                let client_name = client_name.to_owned();
                let config = RedisConfig { client_name, ..(**config).clone() };
                let redis = Rc::new(Redis::start(config));
                let log = Box::new(Attached::TopicLog(TopicLog::over(redis.clone())));
                Attached::Redis(redis, log)
            }
            BackendKind::Postgres(config) if used(index) => {
                let application_name = client_name.to_owned();
                let config = PostgresConfig { application_name, ..(**config).clone() };
                Attached::Postgres(Postgres::start(config))
            }
            // One client for all shards: it has no shard's name.
            BackendKind::Kafka(config) if used(index) => {
                Attached::Kafka(Kafka::start((**config).clone()))
            }
            BackendKind::Nats(config) if used(index) => {
                let client_name = client_name.to_owned();
                Attached::Nats(Nats::start(NatsConfig { client_name, ..(**config).clone() }))
            }
            BackendKind::KafkaPostgres(config) if used(index) => {
                let (messages, state) = (**config).clone();
                let state = PostgresConfig { application_name: client_name.to_owned(), ..state };
                Attached::KafkaPostgres(Box::new(KafkaPostgres::start(messages, state)))
            }
            BackendKind::Redis(_)
            | BackendKind::Postgres(_)
            | BackendKind::Kafka(_)
            | BackendKind::Nats(_)
            | BackendKind::KafkaPostgres(_) => Attached::Unused,
        };
        backends.iter().enumerate().map(attach).collect()
    }

    /// Has the topics of a namespace be made in this shape, where there are topics.
    pub(crate) fn shape_topics(&self, namespace: &Namespace) {
        match self {
            Attached::Kafka(kafka) => kafka.shape_topics(namespace.id, namespace.topic_shape),
            Attached::KafkaPostgres(pair) => pair.shape_topics(namespace.id, namespace.topic_shape),
            Attached::Nats(nats) => nats.replicate(namespace.id, namespace.topic_shape.replication),
            _ => {}
        }
    }

    /// As [`prism_adapters::Backend::unary_checked`].
    pub(crate) async fn unary_checked(
        &self,
        context: &Context<'_>,
        method: Method,
        request: &[u8],
        offered: Interfaces,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        match self {
            Attached::Memory(store) => {
                store.unary_checked(context, method, request, offered, reply).await
            }
            Attached::Redis(redis, _) => {
                redis.unary_checked(context, method, request, offered, reply).await
            }
            Attached::TopicLog(log) => {
                log.unary_checked(context, method, request, offered, reply).await
            }
            Attached::Postgres(postgres) => {
                postgres.unary_checked(context, method, request, offered, reply).await
            }
            Attached::Nats(nats) => {
                nats.unary_checked(context, method, request, offered, reply).await
            }
            Attached::Kafka(kafka) => {
                kafka.unary_checked(context, method, request, offered, reply).await
            }
            Attached::KafkaPostgres(pair) => {
                pair.unary_checked(context, method, request, offered, reply).await
            }
            Attached::Unused => unreachable!("a namespace's backend is attached at its home"),
        }
    }

    /// As [`prism_adapters::Backend::unary`].
    pub(crate) async fn unary(
        &self,
        context: &Context<'_>,
        method: Method,
        request: &[u8],
        reply: &mut Reply,
    ) -> Result<(), Error> {
        match self {
            Attached::Memory(store) => store.unary(context, method, request, reply).await,
            Attached::Redis(redis, _) => redis.unary(context, method, request, reply).await,
            Attached::TopicLog(log) => log.unary(context, method, request, reply).await,
            Attached::Postgres(postgres) => postgres.unary(context, method, request, reply).await,
            Attached::Nats(nats) => nats.unary(context, method, request, reply).await,
            Attached::Kafka(kafka) => kafka.unary(context, method, request, reply).await,
            Attached::KafkaPostgres(pair) => pair.unary(context, method, request, reply).await,
            Attached::Unused => unreachable!("a namespace's backend is attached at its home"),
        }
    }

    /// Which messages of transactions are known to be there, where they are stored with the data.
    pub(crate) fn outboxes(&self) -> Option<&RefCell<Outboxes>> {
        match self {
            Attached::Memory(store) => Some(store.outboxes()),
            Attached::Postgres(postgres) => Some(postgres.outboxes()),
            Attached::Redis(redis, _) => Some(redis.outboxes()),
            Attached::TopicLog(_)
            | Attached::Nats(_)
            | Attached::Kafka(_)
            | Attached::KafkaPostgres(_)
            | Attached::Unused => None,
        }
    }

    /// Learns which messages of transactions there are, all or the newest; the embedded store always knows.
    pub(crate) async fn outbox_refresh(
        &self,
        context: &Context<'_>,
        all: bool,
    ) -> Result<(), Error> {
        match self {
            Attached::Postgres(postgres) => postgres.outbox_refresh(context, all).await,
            Attached::Redis(redis, _) => redis.outbox_refresh(context, all).await,
            _ => Ok(()),
        }
    }

    /// The oldest messages of a chain, at most so many.
    pub(crate) async fn outbox_messages(
        &self,
        context: &Context<'_>,
        chain: &Chain,
        count: usize,
    ) -> Result<Vec<Outgoing>, Error> {
        match self {
            Attached::Memory(store) => Ok(store.outbox_messages(context.namespace, chain, count)),
            Attached::Postgres(postgres) => postgres.outbox_messages(context, chain, count).await,
            Attached::Redis(redis, _) => redis.outbox_messages(context, chain, count).await,
            _ => Ok(Vec::new()),
        }
    }

    /// Deletes messages that have arrived, where that needs no record.
    pub(crate) async fn outbox_done(
        &self,
        context: &Context<'_>,
        arrived: &[Place],
    ) -> Result<(), Error> {
        match self {
            Attached::Postgres(postgres) => postgres.outbox_done(context, arrived).await,
            Attached::Redis(redis, _) => redis.outbox_done(context, arrived).await,
            _ => Ok(()),
        }
    }

    /// As [`reader::unary`].
    pub(crate) async fn read_unary(
        &self,
        context: &Context<'_>,
        call: (Method, &[u8]),
        offered: Interfaces,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        match self {
            Attached::Memory(store) => {
                reader::unary((&**store, Some(&**store)), context, call, offered, reply).await
            }
            Attached::Redis(redis, _) => {
                reader::unary((&**redis, Some(&**redis)), context, call, offered, reply).await
            }
            Attached::TopicLog(log) => {
                reader::unary((log, None), context, call, offered, reply).await
            }
            Attached::Postgres(postgres) => {
                reader::unary((postgres, Some(postgres)), context, call, offered, reply).await
            }
            Attached::Nats(nats) => {
                reader::unary((nats, Some(nats)), context, call, offered, reply).await
            }
            Attached::Kafka(kafka) => {
                reader::unary((kafka, None), context, call, offered, reply).await
            }
            Attached::KafkaPostgres(pair) => {
                reader::unary((&**pair, Some(&**pair)), context, call, offered, reply).await
            }
            Attached::Unused => unreachable!("a namespace's backend is attached at its home"),
        }
    }

    /// As [`reader::stream`].
    pub(crate) async fn read_stream<S: PageSink>(
        &self,
        context: &Context<'_>,
        call: (Method, &[u8]),
        offered: Interfaces,
        sink: &mut S,
    ) -> Result<(), Error> {
        match self {
            Attached::Memory(store) => {
                reader::stream((&**store, Some(&**store)), context, call, offered, sink).await
            }
            Attached::Redis(redis, _) => {
                reader::stream((&**redis, Some(&**redis)), context, call, offered, sink).await
            }
            Attached::TopicLog(log) => {
                reader::stream((log, None), context, call, offered, sink).await
            }
            Attached::Postgres(postgres) => {
                reader::stream((postgres, Some(postgres)), context, call, offered, sink).await
            }
            Attached::Nats(nats) => {
                reader::stream((nats, Some(nats)), context, call, offered, sink).await
            }
            Attached::Kafka(kafka) => {
                reader::stream((kafka, None), context, call, offered, sink).await
            }
            Attached::KafkaPostgres(pair) => {
                reader::stream((&**pair, Some(&**pair)), context, call, offered, sink).await
            }
            Attached::Unused => unreachable!("a namespace's backend is attached at its home"),
        }
    }

    /// As [`LaneBackend::resume`].
    pub(crate) async fn resume(
        &self,
        context: &Context<'_>,
        owner: &LaneOwner,
    ) -> Result<Option<Cell>, Error> {
        match self {
            Attached::Redis(redis, _) => redis.resume(context, owner).await,
            Attached::TopicLog(log) => log.resume(context, owner).await,
            Attached::Postgres(postgres) => postgres.resume(context, owner).await,
            Attached::Kafka(kafka) => kafka.resume(context, owner).await,
            Attached::Nats(nats) => nats.resume(context, owner).await,
            Attached::KafkaPostgres(pair) => pair.resume(context, owner).await,
            Attached::Memory(_) | Attached::Unused => unreachable!("no lane leads there"),
        }
    }

    /// As [`LaneBackend::set_cell`].
    pub(crate) async fn set_cell(&self, context: &Context<'_>, cell: &Cell) -> Result<(), Error> {
        match self {
            Attached::Redis(redis, _) => redis.set_cell(context, cell).await,
            Attached::TopicLog(log) => log.set_cell(context, cell).await,
            Attached::Postgres(postgres) => postgres.set_cell(context, cell).await,
            Attached::Kafka(kafka) => kafka.set_cell(context, cell).await,
            Attached::Nats(nats) => nats.set_cell(context, cell).await,
            Attached::KafkaPostgres(pair) => pair.set_cell(context, cell).await,
            Attached::Memory(_) | Attached::Unused => unreachable!("no lane leads there"),
        }
    }

    /// As [`LaneBackend::apply`].
    pub(crate) async fn apply(
        &self,
        owner: &LaneOwner,
        records: &[LaneRecord<'_>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Error> {
        match self {
            Attached::Redis(redis, _) => redis.apply(owner, records, outcomes).await,
            Attached::TopicLog(log) => log.apply(owner, records, outcomes).await,
            Attached::Postgres(postgres) => postgres.apply(owner, records, outcomes).await,
            Attached::Kafka(kafka) => kafka.apply(owner, records, outcomes).await,
            Attached::Nats(nats) => nats.apply(owner, records, outcomes).await,
            Attached::KafkaPostgres(pair) => pair.apply(owner, records, outcomes).await,
            Attached::Memory(_) | Attached::Unused => unreachable!("no lane leads there"),
        }
    }

    /// As [`prism_adapters::ending::Endings::holds_data`].
    pub(crate) async fn holds_data(&self, context: &Context<'_>) -> Result<bool, Error> {
        match self {
            Attached::Redis(redis, _) => redis.holds_data(context).await,
            Attached::TopicLog(log) => log.holds_data(context).await,
            Attached::Postgres(postgres) => postgres.holds_data(context).await,
            Attached::Kafka(kafka) => kafka.holds_data(context).await,
            Attached::Nats(nats) => nats.holds_data(context).await,
            Attached::KafkaPostgres(pair) => pair.holds_data(context).await,
            Attached::Memory(_) | Attached::Unused => unreachable!("no data lies outside"),
        }
    }

    /// As [`prism_adapters::ending::Endings::erase`].
    pub(crate) async fn erase(&self, context: &Context<'_>) -> Result<(), Error> {
        match self {
            Attached::Redis(redis, _) => redis.erase(context).await,
            Attached::TopicLog(log) => log.erase(context).await,
            Attached::Postgres(postgres) => postgres.erase(context).await,
            Attached::Kafka(kafka) => kafka.erase(context).await,
            Attached::Nats(nats) => nats.erase(context).await,
            Attached::KafkaPostgres(pair) => pair.erase(context).await,
            Attached::Memory(_) | Attached::Unused => unreachable!("no data lies outside"),
        }
    }

    /// As [`prism_adapters::Backend::ready`].
    pub(crate) async fn ready(&self, context: &Context<'_>, method: Method, request: &[u8]) {
        match self {
            Attached::Memory(store) => store.ready(context, method, request).await,
            Attached::Redis(redis, _) => redis.ready(context, method, request).await,
            Attached::TopicLog(log) => log.ready(context, method, request).await,
            Attached::Postgres(postgres) => postgres.ready(context, method, request).await,
            Attached::Nats(nats) => nats.ready(context, method, request).await,
            Attached::Kafka(kafka) => kafka.ready(context, method, request).await,
            Attached::KafkaPostgres(pair) => pair.ready(context, method, request).await,
            Attached::Unused => unreachable!("a namespace's backend is attached at its home"),
        }
    }

    /// As [`prism_adapters::Backend::stream`].
    pub(crate) async fn stream<S: PageSink>(
        &self,
        context: &Context<'_>,
        method: Method,
        request: &[u8],
        sink: &mut S,
    ) -> Result<(), Error> {
        match self {
            Attached::Memory(store) => store.stream(context, method, request, sink).await,
            Attached::Redis(redis, _) => redis.stream(context, method, request, sink).await,
            Attached::TopicLog(log) => log.stream(context, method, request, sink).await,
            Attached::Postgres(postgres) => postgres.stream(context, method, request, sink).await,
            Attached::Nats(nats) => nats.stream(context, method, request, sink).await,
            Attached::Kafka(kafka) => kafka.stream(context, method, request, sink).await,
            Attached::KafkaPostgres(pair) => pair.stream(context, method, request, sink).await,
            Attached::Unused => unreachable!("a namespace's backend is attached at its home"),
        }
    }
}
