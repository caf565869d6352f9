//! One Kafka cluster as the whole process shares it: its producer, and the clients that ask it things.
//!
//! What is asked here blocks its thread: never a shard's, but one beside them ([`super::link`]). Sending does not block: it copies
//! the record into the client's queue.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use prism_io::bell::Bell;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DeliveryResult, ProducerContext, ThreadedProducer};
use rdkafka::types::{RDKafkaErrorCode as Code, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};

use super::config::{KafkaConfig, RECORD_BYTES_MAX, TopicShape};
use super::delivery::Parcel;
use super::errors::Fault;

/// A topic that is asked for only to see whether anybody answers; it need not be there.
const PROBE: &str = "prism.probe";

/// After so long it is asked again for what passes by itself.
const PASSING: Duration = Duration::from_millis(20);

/// After so long it is asked again for what is about to come.
const SOON: Duration = Duration::from_millis(1);

/// Events that the client keeps until somebody looks, dropped at a time.
const EVENTS_PER_LOOK: usize = 1000;

/// The clusters of this process that shards hold. Locked when a shard starts, never by a call.
static CLUSTERS: Mutex<Vec<Weak<Cluster>>> = Mutex::new(Vec::new());

/// What the clients of a cluster say of its health.
#[derive(Default)]
pub(super) struct Health {
    /// The last trouble, in the client's words. Locked only when there is trouble.
    said: Mutex<String>,
    /// Why nobody is let in, until somebody is.
    refusal: Mutex<Option<Fault>>,
    /// Of the shards, to be rung when no broker is to be reached.
    bells: Mutex<Vec<Weak<Bell>>>,
}

impl Health {
    pub(super) fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why nobody is let in, if that is so.
    pub(super) fn refusal(&self) -> Option<Fault> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why no broker is to be reached.
    fn outage(&self) -> Fault {
        self.refusal().unwrap_or_else(|| Fault::unreachable(&self.said()))
    }

    /// A bell that rings when something is wrong with the whole cluster.
    pub(super) fn alarm(&self) -> Arc<Bell> {
        let bell = Arc::new(Bell::default());
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        bells.retain(|bell| bell.strong_count() > 0);
        bells.push(Arc::downgrade(&bell));
        bell
    }

    fn note(&self, error: &KafkaError, reason: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        // That no broker is left comes behind why.
        if said.is_empty() || error.rdkafka_error_code() != Some(Code::AllBrokersDown) {
            *said = reason.to_owned();
        }
        drop(said);
        let fault = Fault::of(error);
        let is_refusal = matches!(fault.reason, "BACKEND_CREDENTIALS_REFUSED" | "BACKEND_TLS");
        if is_refusal && let Some(code) = error.rdkafka_error_code() {
            let mut refusal = Fault::of_code(code, reason);
            refusal.is_outage = true;
            *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
        } else if !fault.is_outage {
            return;
        }
        let bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        bells.iter().filter_map(Weak::upgrade).for_each(|bell| bell.ring());
    }
}

/// What Kafka does with the partitions of a consumer that has joined a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Given(Vec<u32>),
    TakenBack,
}

/// Hears what a client has to say beside its answers.
pub(super) struct Watcher {
    health: Arc<Health>,
    /// Counts what a look at the client's queue took out and did not hand on.
    pub(super) served: AtomicU64,
    /// Of a consumer in a group: what is to be followed. Touched when its partitions change, never by a call.
    turns: Mutex<VecDeque<Turn>>,
    /// Nobody follows any more: partitions that are given are declined.
    pub(super) is_leaving: AtomicBool,
}

impl Watcher {
    pub(super) fn new(health: &Arc<Health>) -> Self {
        Watcher {
            health: health.clone(),
            served: AtomicU64::new(0),
            turns: Mutex::default(),
            is_leaving: AtomicBool::new(false),
        }
    }

    /// What is to be followed next.
    pub(super) fn next_turn(&self) -> Option<Turn> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

impl ClientContext for Watcher {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {
        // What matters comes as an error too.
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    fn stats_raw(&self, _: &[u8]) {
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.health.note(&error, reason);
    }
}

impl ConsumerContext for Watcher {
    /// Takes note of it: assigning takes a while, and is done by whoever follows, which the client waits for.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        self.served.fetch_add(1, Ordering::Relaxed);
        if self.is_leaving.load(Ordering::Relaxed) {
            let _ = consumer.unassign();
            return;
        }
        let turn = match what {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                let numbers = partitions.elements();
                Turn::Given(numbers.iter().map(|one| one.partition() as u32).collect())
            }
            _ => Turn::TakenBack,
        };
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).push_back(turn);
    }
}

impl ProducerContext for Watcher {
    type DeliveryOpaque = Box<Parcel>;

    fn delivery(&self, result: &DeliveryResult<'_>, parcel: Box<Parcel>) {
        parcel.land(match result {
            Ok(message) => Ok((message.partition() as u32, message.offset())),
            Err((error, _)) => Err(error.rdkafka_error_code().unwrap_or(Code::Unknown)),
        });
    }
}

/// A record to be sent.
pub(super) type Outgoing<'a> = BaseRecord<'a, [u8], [u8], Box<Parcel>>;

/// A producer's way in.
pub(super) struct Outlet<'a>(pub(super) &'a ThreadedProducer<Watcher>);

impl Outlet<'_> {
    /// Puts a record in line. Does not block.
    pub(super) fn send(&self, record: Outgoing<'_>) {
        if let Err((error, record)) = self.0.send(record) {
            let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
            record.delivery_opaque.land(Err(code));
        }
    }
}

/// Where a topic's partitions begin and end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bounds {
    /// The oldest record's offset, or the next one's.
    pub(super) first: Vec<i64>,
    /// The next record's offset.
    pub(super) end: Vec<i64>,
    /// The first offset that is not older than what was asked for; empty if nothing was.
    pub(super) since: Vec<i64>,
}

/// See the module.
pub(super) struct Cluster {
    config: KafkaConfig,
    producer: ThreadedProducer<Watcher>,
    lookout: BaseConsumer<Watcher>,
    admin: AdminClient<Watcher>,
    pub(super) health: Arc<Health>,
}

impl Cluster {
    /// The cluster of this configuration, shared with whoever holds it already.
    pub(super) fn of(config: &KafkaConfig) -> Result<Arc<Self>, Fault> {
        let mut clusters = CLUSTERS.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.retain(|cluster| cluster.strong_count() > 0);
        let mut known = clusters.iter().filter_map(Weak::upgrade);
        if let Some(cluster) = known.find(|cluster| cluster.config == *config) {
            return Ok(cluster);
        }
        drop(known);
        let cluster = Arc::new(Cluster::start(config).map_err(|error| Fault::unusable(&error))?);
        clusters.push(Arc::downgrade(&cluster));
        Ok(cluster)
    }

    fn start(config: &KafkaConfig) -> Result<Self, KafkaError> {
        let health = Arc::new(Health::default());
        let mut lookout = config.client();
        lookout.set("allow.auto.create.topics", "false").set("isolation.level", "read_committed");
        Ok(Cluster {
            producer: config.producer().create_with_context(Watcher::new(&health))?,
            lookout: lookout.create_with_context(Watcher::new(&health))?,
            admin: config.client().create_with_context(Watcher::new(&health))?,
            health,
            config: config.clone(),
        })
    }

    /// The way in for records that are in no transaction.
    pub(super) fn outlet(&self) -> Outlet<'_> {
        Outlet(&self.producer)
    }

    /// Whether anybody answers.
    pub(super) fn probe(&self, timeout: Duration) -> Result<(), Fault> {
        self.drain_events();
        self.lookout.fetch_metadata(Some(PROBE), timeout).map_err(|error| {
            match Fault::of(&error) {
                fault if fault.is_outage => self.health.outage(),
                fault => fault,
            }
        })?;
        *self.health.refusal.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    /// The partitions of a topic; absent where there is none of this name.
    pub(super) fn partitions(&self, topic: &str) -> Result<Option<u32>, Fault> {
        self.drain_events();
        let timeout = self.config.answer_timeout;
        let read = self.lookout.fetch_metadata(Some(topic), timeout).map_err(self.fault())?;
        let Some(found) = read.topics().iter().find(|found| found.name() == topic) else {
            return Ok(None);
        };
        match found.error().map(Code::from) {
            None => Ok(Some(found.partitions().len() as u32).filter(|count| *count > 0)),
            Some(Code::UnknownTopicOrPartition) => Ok(None),
            Some(code) => Err(Fault::of_code(code, "")),
        }
    }

    /// The partitions of a topic, which is made in this shape if it is not there.
    pub(super) fn topic(&self, topic: &str, shape: &TopicShape) -> Result<u32, Fault> {
        if let Some(partitions) = self.partitions(topic)? {
            return Ok(partitions);
        }
        let record_bytes = RECORD_BYTES_MAX.to_string();
        let retention = shape.retention.map_or(-1, |span| span.as_millis() as i64);
        let settings = [
            ("max.message.bytes", record_bytes.as_str()),
            ("retention.ms", &retention.to_string()),
            ("message.timestamp.type", "CreateTime"),
        ];
        let partitions = shape.partitions.unwrap_or(self.config.partitions);
        self.make(topic, (partitions, shape.replication), &settings)?;
        self.await_topic(topic)
    }

    /// The partitions of a topic that was made: it is known to the brokers a little later.
    pub(super) fn await_topic(&self, topic: &str) -> Result<u32, Fault> {
        self.patiently(|| self.partitions(topic)?.ok_or_else(Fault::not_yet))
    }

    /// Makes a topic of so many partitions and replicas, where that many are asked for. One that is there is left as it is.
    pub(super) fn make(
        &self,
        topic: &str,
        (partitions, replicas): (u32, Option<u16>),
        settings: &[(&str, &str)],
    ) -> Result<(), Fault> {
        let replicas = replicas.or(self.config.replication).map_or(-1, i32::from);
        let mut new = NewTopic::new(topic, partitions as i32, TopicReplication::Fixed(replicas));
        for (name, value) in settings {
            new = new.set(name, value);
        }
        let made = wait(self.admin.create_topics([&new], &self.options())).map_err(self.fault())?;
        for outcome in made {
            match outcome {
                Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(Fault::of_code(code, &code.to_string())),
            }
        }
        Ok(())
    }

    /// The topics of which this is so.
    pub(super) fn topics_where(&self, is_so: impl Fn(&str) -> bool) -> Result<Vec<String>, Fault> {
        self.drain_events();
        let timeout = self.config.answer_timeout;
        let read = self.lookout.fetch_metadata(None, timeout).map_err(self.fault())?;
        let names = read.topics().iter().map(|topic| topic.name());
        Ok(names.filter(|name| is_so(name)).map(str::to_owned).collect())
    }

    /// Deletes topics, and waits until they are not told of any more. One that is gone already is none.
    pub(super) fn delete(&self, topics: &[String]) -> Result<(), Fault> {
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        let deleted = wait(self.admin.delete_topics(&names, &self.options()));
        for outcome in deleted.map_err(self.fault())? {
            match outcome {
                Ok(_) | Err((_, Code::UnknownTopicOrPartition | Code::UnknownTopic)) => {}
                Err((_, code)) => return Err(Fault::of_code(code, &code.to_string())),
            }
        }
        self.patiently(|| {
            for topic in topics {
                if self.partitions(topic)?.is_some() {
                    return Err(Fault::not_yet());
                }
            }
            Ok(())
        })
    }

    /// Where a topic's partitions begin, end, and pass a moment.
    pub(super) fn bounds(
        &self,
        topic: &str,
        partitions: u32,
        since_ms: Option<i64>,
    ) -> Result<Bounds, Fault> {
        let offsets = |at| {
            self.patiently(|| match self.offsets(topic, partitions, at) {
                // Of a topic that is new the client may not know every partition yet.
                Err(mut fault) if fault.is_missing && self.partitions(topic)?.is_some() => {
                    fault.is_passing = true;
                    Err(fault)
                }
                offsets => offsets,
            })
        };
        let first = offsets(Offset::Beginning)?;
        let end = offsets(Offset::End)?;
        let since = match since_ms {
            None => Vec::new(),
            Some(ms) => offsets(Offset::Offset(ms))?,
        };
        let known = |(offset, otherwise): (Option<i64>, i64)| offset.unwrap_or(otherwise);
        let end: Vec<i64> = end.into_iter().map(|offset| offset.unwrap_or(0)).collect();
        Ok(Bounds {
            first: first.into_iter().zip(end.iter().copied()).map(known).collect(),
            since: since.into_iter().zip(end.iter().copied()).map(known).collect(),
            end,
        })
    }

    /// Asks again as long as a topic's leaders are being chosen, as they are when it is new or a broker has gone.
    pub(super) fn patiently<T>(&self, ask: impl Fn() -> Result<T, Fault>) -> Result<T, Fault> {
        let until = Instant::now() + self.config.answer_timeout;
        loop {
            match ask() {
                Err(fault) if fault.is_passing && Instant::now() < until => {
                    std::thread::sleep(PASSING);
                }
                answer => return answer,
            }
        }
    }

    /// One offset per partition; absent where there is none.
    fn offsets(&self, topic: &str, partitions: u32, at: Offset) -> Result<Vec<Option<i64>>, Fault> {
        let mut list = TopicPartitionList::with_capacity(partitions as usize);
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition as i32, at).map_err(self.fault())?;
        }
        let timeout = self.config.answer_timeout;
        let found = self.lookout.offsets_for_times(list, timeout).map_err(self.fault())?;
        let mut offsets = vec![None; partitions as usize];
        for found in found.elements() {
            found.error().map_err(self.fault())?;
            if let (Offset::Offset(offset), Some(place)) =
                (found.offset(), offsets.get_mut(found.partition() as usize))
            {
                *place = Some(offset);
            }
        }
        Ok(offsets)
    }

    /// Comes back when readers of what is committed see these records: topic, partition and offset of each.
    pub(super) fn await_visible(&self, places: &[((String, u32), i64)]) -> Result<(), Fault> {
        let mut list = TopicPartitionList::with_capacity(places.len());
        for ((topic, partition), _) in places {
            let (partition, end) = (*partition as i32, Offset::End);
            list.add_partition_offset(topic, partition, end).map_err(self.fault())?;
        }
        let until = Instant::now() + self.config.answer_timeout;
        while !places.is_empty() {
            let timeout = self.config.answer_timeout;
            let ask =
                || self.lookout.offsets_for_times(list.clone(), timeout).map_err(self.fault());
            let told = self.patiently(ask)?;
            let is_seen = |((topic, partition), offset): &((String, u32), i64)| {
                let end = told.find_partition(topic, *partition as i32).map(|end| end.offset());
                matches!(end, Some(Offset::Offset(end)) if end > *offset)
            };
            if places.iter().all(is_seen) {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(Fault::unresponsive(timeout));
            }
            std::thread::sleep(SOON);
        }
        Ok(())
    }

    /// Comes back when readers of what is committed see everything that the topic's one partition held when it was asked.
    pub(super) fn await_end_visible(&self, topic: &str) -> Result<(), Fault> {
        let mut client = self.config.client();
        client.set("allow.auto.create.topics", "false").set("isolation.level", "read_uncommitted");
        let sees_all: BaseConsumer<Watcher> =
            client.create_with_context(Watcher::new(&self.health)).map_err(self.fault())?;
        let timeout = self.config.answer_timeout;
        let (_, end) =
            self.patiently(|| sees_all.fetch_watermarks(topic, 0, timeout).map_err(self.fault()))?;
        let until = Instant::now() + timeout;
        while self.bounds(topic, 1, None)?.end.first().is_none_or(|seen| *seen < end) {
            if Instant::now() > until {
                return Err(Fault::unresponsive(timeout));
            }
            std::thread::sleep(SOON);
        }
        Ok(())
    }

    /// Deletes a group of Kafka's, with what it has committed; whether there was one. Its last member may be leaving yet.
    pub(super) fn delete_group(&self, group: &str) -> Result<bool, Fault> {
        self.patiently(|| {
            let deleted = wait(self.admin.delete_groups(&[group], &self.options()));
            match deleted.map_err(self.fault())?.into_iter().next() {
                None | Some(Ok(_)) => Ok(true),
                Some(Err((_, Code::GroupIdNotFound))) => Ok(false),
                Some(Err((_, code))) => Err(Fault::of_code(code, &code.to_string())),
            }
        })
    }

    /// The settings of a topic, with whether they are its own.
    pub(super) fn settings(&self, topic: &str) -> Result<BTreeMap<String, (String, bool)>, Fault> {
        let resources = [ResourceSpecifier::Topic(topic)];
        let read = wait(self.admin.describe_configs(&resources, &self.options()));
        let mut settings = BTreeMap::new();
        for resource in read.map_err(self.fault())? {
            let resource = resource.map_err(|code| Fault::of_code(code, &code.to_string()))?;
            for entry in resource.entries {
                let is_own = entry.source == ConfigSource::DynamicTopic;
                settings.insert(entry.name, (entry.value.unwrap_or_default(), is_own));
            }
        }
        Ok(settings)
    }

    /// Gives a topic settings; its other own ones stay.
    pub(super) fn set(&self, topic: &str, settings: &[(&str, String)]) -> Result<(), Fault> {
        // The client replaces all of a topic's own settings at once.
        let known = self.settings(topic)?;
        let mut change = AlterConfig::new(ResourceSpecifier::Topic(topic));
        for (name, (value, is_own)) in &known {
            if *is_own {
                change = change.set(name, value);
            }
        }
        for (name, value) in settings {
            change = change.set(name, value);
        }
        for outcome in
            wait(self.admin.alter_configs([&change], &self.options())).map_err(self.fault())?
        {
            outcome.map_err(|(_, code)| Fault::of_code(code, &code.to_string()))?;
        }
        // It is taken down first, and known to the brokers a little later.
        self.patiently(|| {
            let told = self.settings(topic)?;
            let is_told =
                |(name, value): &(&str, String)| told.get(*name).is_some_and(|one| one.0 == *value);
            settings.iter().all(is_told).then_some(()).ok_or_else(Fault::not_yet)
        })
    }

    /// The failure of a question, with what is known beside it.
    pub(super) fn fault(&self) -> impl Fn(KafkaError) -> Fault + '_ {
        |error| match Fault::of(&error) {
            fault if fault.reason == "BACKEND_UNREACHABLE" => self.health.outage(),
            fault => fault,
        }
    }

    pub(super) fn config(&self) -> &KafkaConfig {
        &self.config
    }

    fn options(&self) -> AdminOptions {
        let timeout = Some(self.config.answer_timeout);
        AdminOptions::new().request_timeout(timeout).operation_timeout(timeout)
    }

    /// Nobody else looks at what the client says.
    fn drain_events(&self) {
        for _ in 0..EVENTS_PER_LOOK {
            let served = self.lookout.context().served.load(Ordering::Relaxed);
            if self.lookout.poll(Duration::ZERO).is_none()
                && self.lookout.context().served.load(Ordering::Relaxed) == served
            {
                return;
            }
        }
    }
}

/// Waits, on a thread that may, for what the administrating client's own thread completes.
fn wait<F: Future>(question: F) -> F::Output {
    tokio::runtime::Handle::current().block_on(question)
}
