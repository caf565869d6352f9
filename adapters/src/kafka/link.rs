//! A shard's way to a cluster: calls over the bridge, and a circuit that opens while no broker answers.
//!
//! Records go straight into the client's own bounded queue; their confirmations come back over the bridge. What blocks (making
//! topics, asking for offsets, starting and stopping consumers) is done by threads beside the shards, a bounded number at a
//! time. What is handed to the client or to such a thread after its call's deadline is dropped instead. A watch task probes the cluster when something is wrong with it; while it is away calls are refused at once.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use prism_io::bell::Bell;
use prism_io::bridge::{Failure, Foreign, Port, bridge, spawn_beside};
use prism_io::clock::monotonic_ns;
use prism_io::rt::{self, Signal};

use super::cluster::{Cluster, Outlet};
use super::config::{KafkaConfig, TopicShape};
use super::delivery::{Duty, Group, Landed, Parcel};
use super::errors::Fault;
use super::lane::{Way, Ways};
use super::reader::{Idle, Lease, Reader};
use crate::breaker::{Breaker, Circuit};
use crate::call::Context;
use crate::error::Error;
use crate::news::News;

/// Questions that are under way at once, each on a thread of its own.
const QUESTIONS_MAX: usize = 32;

/// After so long a lane looks again whether it is its turn to ask.
const TURN: Duration = Duration::from_millis(2);

/// Consumers that are kept for the next readers.
const READERS_IDLE_MAX: usize = 4;

/// Topics whose partitions are remembered; more than that, and all are asked for again.
const TOPICS_MAX: usize = 16 * 1024;

/// What is asked beside the shard.
type Question = Box<dyn FnOnce(&Cluster) + Send>;

/// What the adapter has done so far; counted by its shard, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KafkaFacts {
    /// Records that were handed to the client.
    pub records: u64,
    /// Records that were confirmed.
    pub confirmed: u64,
    /// Questions beside records.
    pub questions: u64,
    /// Times that the cluster was found to be away.
    pub outages: u64,
    /// Calls that were refused at once, because the cluster was away.
    pub refused: u64,
    /// Readers that have a consumer.
    pub readers: usize,
    /// Appends under way.
    pub appends_under_way: usize,
}

/// See the module.
pub(super) struct Link {
    config: KafkaConfig,
    cluster: Result<Arc<Cluster>, Fault>,
    questions: Rc<Port<Question, ()>>,
    deliveries: Rc<Port<(), Vec<Landed>>>,
    /// Nothing is asked through it; it is there as long as the port is.
    _deliveries: Foreign<(), Vec<Landed>>,
    breaker: RefCell<Breaker>,
    /// Why calls are refused while the circuit is not closed.
    outage: RefCell<Fault>,
    /// Set when there is something for the watch to do.
    work: Signal,
    in_doubt: Cell<bool>,
    stopped: Cell<bool>,
    alarm: Option<Arc<Bell>>,
    idle: Idle,
    /// Lanes that were begun.
    pub(super) ways: Ways,
    /// Partitions by topic.
    topics: RefCell<HashMap<Box<str>, u32, ahash::RandomState>>,
    /// How topics are made, by namespace.
    shapes: RefCell<HashMap<u32, TopicShape, ahash::RandomState>>,
    /// Topics that are being asked for or made, and who waits for that.
    asked: RefCell<HashMap<Box<str>, Rc<News>, ahash::RandomState>>,
    facts: Cell<KafkaFacts>,
}

impl Link {
    /// Begins. Needs a runtime around it.
    pub(super) fn start(config: KafkaConfig) -> Rc<Self> {
        let (questions, foreign) = bridge(QUESTIONS_MAX);
        let (deliveries, _deliveries) = bridge(config.calls_max);
        let mut cluster = Cluster::of(&config);
        rt::spawn(questions.clone().receive());
        rt::spawn(deliveries.clone().receive());
        if let Ok(known) = &cluster
            && spawn_beside(answer_questions(known.clone(), foreign)).is_err()
        {
            cluster = Err(Fault::closed());
        }
        let alarm = cluster.as_ref().ok().map(|cluster| cluster.health.alarm());
        let link = Rc::new(Link {
            breaker: RefCell::new(Breaker::new(config.backoff)),
            outage: RefCell::new(Fault::closed()),
            work: Signal::default(),
            in_doubt: Cell::new(true),
            stopped: Cell::new(false),
            alarm,
            idle: Idle::default(),
            ways: Ways::default(),
            topics: RefCell::default(),
            shapes: RefCell::default(),
            asked: RefCell::default(),
            facts: Cell::default(),
            config,
            cluster,
            questions,
            deliveries,
            _deliveries,
        });
        link.work.set();
        rt::spawn(link.clone().watch());
        rt::spawn(link.clone().hear());
        link
    }

    /// Ends it for good.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
        self.work.set();
        if let Some(alarm) = &self.alarm {
            alarm.ring();
        }
        self.ways.stop();
        let mut readers = self.idle.resting.take();
        readers.append(&mut self.idle.returned.take());
        if !readers.is_empty() {
            // Each says good-bye to the cluster first.
            std::thread::spawn(move || drop(readers));
        }
    }

    pub(super) fn config(&self) -> &KafkaConfig {
        &self.config
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    pub(super) fn facts(&self) -> KafkaFacts {
        let appends_under_way = self.deliveries.facts().under_way;
        KafkaFacts { appends_under_way, ..self.facts.get() }
    }

    fn count(&self, count: impl FnOnce(&mut KafkaFacts)) {
        let mut facts = self.facts.get();
        count(&mut facts);
        self.facts.set(facts);
    }

    /// The cluster, unless calls are refused.
    pub(super) fn cluster(&self, context: &Context<'_>) -> Result<&Arc<Cluster>, Error> {
        let cluster = self.cluster.as_ref().map_err(|fault| self.error(context, fault))?;
        if self.breaker.borrow().circuit() != Circuit::Closed || self.stopped.get() {
            self.count(|facts| facts.refused += 1);
            return Err(self.error(context, &self.outage.borrow()));
        }
        Ok(cluster)
    }

    /// A call's failure.
    pub(super) fn error(&self, context: &Context<'_>, fault: &Fault) -> Error {
        if fault.is_outage {
            self.doubt();
        }
        fault.error(context, self.retry_delay())
    }

    /// Refuses a call whose deadline has passed.
    fn check_in_time(&self, context: &Context<'_>) -> Result<(), Error> {
        match context.deadline_ns <= monotonic_ns() {
            true => Err(self.error(context, &Fault::late())),
            false => Ok(()),
        }
    }

    /// Has the watch look whether the cluster is there.
    fn doubt(&self) {
        if !self.in_doubt.replace(true) {
            self.work.set();
        }
    }

    fn retry_delay(&self) -> Duration {
        match self.breaker.borrow().circuit() {
            Circuit::Open { until_ns } => {
                Duration::from_nanos(until_ns.saturating_sub(monotonic_ns()))
                    .max(self.config.backoff.delay_min)
            }
            Circuit::Closed | Circuit::HalfOpen => self.config.backoff.delay_min,
        }
    }

    /// Asks the cluster something that blocks.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        context: &Context<'_>,
        question: impl FnOnce(&Cluster) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        self.cluster(context)?;
        self.check_in_time(context)?;
        self.count(|facts| facts.questions += 1);
        let deadline_ns = context.deadline_ns;
        let question = move |cluster: &Cluster| match deadline_ns <= monotonic_ns() {
            true => Err(Fault::late()),
            false => question(cluster),
        };
        self.ask_anyway(question).await.map_err(|fault| self.error(context, &fault))
    }

    /// The same for a lane, which waits for its turn where a call would be refused because too much is asked already.
    pub(super) async fn ask_in_turn<T: Send + 'static>(
        &self,
        context: &Context<'_>,
        question: impl FnOnce(&Cluster) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let until_ns = monotonic_ns() + self.config.answer_timeout.as_nanos() as u64;
        while self.questions.facts().under_way >= QUESTIONS_MAX && monotonic_ns() < until_ns {
            rt::sleep(TURN).await;
        }
        self.ask(context, question).await
    }

    /// As [`Link::ask`], without a look at the circuit.
    pub(super) async fn ask_anyway<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Cluster) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let (tell, told) = sync_channel(1);
        let question: Question = Box::new(move |cluster| {
            let _ = tell.send(question(cluster));
        });
        let timeout = self.config.answer_timeout;
        match rt::timeout(timeout, self.questions.call(question)).await {
            None => {
                let refusal = self.cluster.as_ref().ok().and_then(|known| known.health.refusal());
                Err(refusal.unwrap_or_else(|| Fault::unresponsive(timeout)))
            }
            Some(Err(Failure::Full)) => Err(Fault::busy()),
            Some(Err(Failure::Lost)) => Err(Fault::closed()),
            Some(Ok(())) => told.try_recv().unwrap_or_else(|_| Err(Fault::closed())),
        }
    }

    /// Sends `count` records to a topic, put in line by `send` with the parcels that it is given, and waits until all have landed. Of a
    /// lane's call all land, or it fails.
    pub(super) async fn deliver(
        &self,
        context: &Context<'_>,
        topic: &str,
        count: usize,
        send: impl FnOnce(Outlet<'_>, Parcels),
    ) -> Result<Vec<Result<(u32, i64), Fault>>, Error> {
        let way = self.ways.of_call(context);
        let landed = self.deliver_by(context, way.as_deref(), count, send).await?;
        if let Some(way) = way {
            if let Some(fault) = landed.iter().find_map(|landed| landed.as_ref().err()) {
                return Err(self.error(context, fault));
            }
            way.note(topic, landed.iter().flatten().copied());
        }
        Ok(landed)
    }

    /// The same by this lane's producer, or by everybody's.
    pub(super) async fn deliver_by(
        &self,
        context: &Context<'_>,
        way: Option<&Way>,
        count: usize,
        send: impl FnOnce(Outlet<'_>, Parcels),
    ) -> Result<Vec<Result<(u32, i64), Fault>>, Error> {
        let cluster = self.cluster(context)?;
        self.check_in_time(context)?;
        self.count(|facts| facts.records += count as u64);
        let landed = self.deliveries.hand_over(|duty| {
            let outlet = way.map_or_else(|| cluster.outlet(), Way::outlet);
            send(outlet, Parcels::new(count, duty));
        });
        let landed = landed.await.map_err(|failure| match failure {
            Failure::Full => self.error(context, &Fault::busy()),
            Failure::Lost => self.error(context, &Fault::closed()),
        })?;
        let outcome =
            |landed: Landed| landed.map_err(|code| Fault::of_code(code, &cluster.health.said()));
        let landed: Vec<_> = landed.into_iter().map(outcome).collect();
        let confirmed = landed.iter().filter(|landed| landed.is_ok()).count() as u64;
        self.count(|facts| facts.confirmed += confirmed);
        if landed.iter().any(|landed| landed.as_ref().is_err_and(|fault| fault.is_outage)) {
            self.doubt();
        }
        Ok(landed)
    }

    /// The partitions of a topic; absent where it is not there and is not to be made.
    pub(super) async fn partitions(
        &self,
        context: &Context<'_>,
        topic: &str,
        make: bool,
    ) -> Result<Option<u32>, Error> {
        loop {
            if let Some(partitions) = self.topics.borrow().get(topic) {
                return Ok(Some(*partitions));
            }
            let asked = self.asked.borrow().get(topic).map(News::listen);
            match asked {
                Some(told) => told.await,
                None => break,
            }
        }
        let asking = Asking::begin(&self.asked, topic);
        let (name, shape) = (topic.to_owned(), self.shape(context));
        let found = self
            .ask(context, move |cluster| match make {
                true => cluster.topic(&name, &shape).map(Some),
                false => cluster.partitions(&name),
            })
            .await;
        if let Ok(Some(partitions)) = &found {
            let mut topics = self.topics.borrow_mut();
            if topics.len() >= TOPICS_MAX {
                topics.clear();
            }
            topics.insert(topic.into(), *partitions);
        }
        drop(asking);
        found
    }

    /// Has the topics of a namespace be made in another shape than the configuration's.
    pub(super) fn set_shape(&self, namespace: u32, shape: TopicShape) {
        self.shapes.borrow_mut().insert(namespace, shape);
    }

    /// How topics of a namespace are made.
    pub(super) fn shape(&self, context: &Context<'_>) -> TopicShape {
        let own = self.shapes.borrow().get(&context.namespace).copied();
        own.unwrap_or_default().over(&self.config)
    }

    /// With how many partitions topics of a namespace are made.
    pub(super) fn partitions_planned(&self, context: &Context<'_>) -> u32 {
        self.shape(context).partitions.unwrap_or(self.config.partitions)
    }

    /// Has a topic be asked for again, after one that is not there any more.
    pub(super) fn forget(&self, topic: &str) {
        self.topics.borrow_mut().remove(topic);
    }

    /// The same for all topics.
    pub(super) fn forget_all(&self) {
        self.topics.borrow_mut().clear();
    }

    /// A reader of these partitions of a topic from these offsets.
    pub(super) async fn reader(
        self: &Rc<Self>,
        context: &Context<'_>,
        topic: &str,
        places: Vec<(u32, i64)>,
    ) -> Result<Lease, Error> {
        let counted = self.count_reader().map_err(|fault| self.error(context, &fault))?;
        let (topic, idle) = (topic.to_owned(), self.idle.resting.borrow_mut().pop());
        let reader =
            self.ask(context, move |cluster| Reader::at(idle, cluster, &topic, &places)).await?;
        Ok(Lease::new(reader, counted))
    }

    /// Whether one more may read.
    pub(super) fn has_room_for_a_reader(&self) -> bool {
        self.facts.get().readers < self.config.readers_max
    }

    /// Has one more reader counted, as long as that is held.
    pub(super) fn count_reader(self: &Rc<Self>) -> Result<Counted, Fault> {
        match self.has_room_for_a_reader() {
            true => Ok(Counted::new(self.clone())),
            false => Err(Fault::too_many_readers(self.config.readers_max)),
        }
    }

    /// Asks something that takes a reader for as long as the question lasts.
    pub(super) async fn ask_reading<T: Send + 'static>(
        &self,
        context: &Context<'_>,
        question: impl FnOnce(&Cluster, &Reader) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let idle = self.idle.resting.borrow_mut().pop();
        let asked = self.ask_in_turn(context, move |cluster| {
            let reader = Reader::of(idle, cluster)?;
            let answer = question(cluster, &reader)?;
            Ok((answer, Some(reader).filter(Reader::rest)))
        });
        let (answer, reader) = asked.await?;
        reader.into_iter().for_each(|reader| self.keep(reader));
        Ok(answer)
    }

    /// Takes a reader back.
    pub(super) fn give_back(&self, reader: Reader) {
        self.idle.returned.borrow_mut().push(reader);
        self.work.set();
    }

    /// Does what there is to do beside calls, until it is stopped.
    async fn watch(self: Rc<Self>) {
        while !self.stopped.get() {
            self.work.wait().await;
            while let Some(reader) = self.next_returned() {
                let rested = self.ask_anyway(move |_| Ok(Some(reader).filter(Reader::rest))).await;
                if let Ok(Some(reader)) = rested {
                    self.keep(reader);
                }
            }
            while self.in_doubt.get() && !self.stopped.get() {
                self.look_after().await;
            }
        }
    }

    /// Keeps a reader that rests, or ends it.
    fn keep(&self, reader: Reader) {
        let mut resting = self.idle.resting.borrow_mut();
        match resting.len() < READERS_IDLE_MAX && !self.stopped.get() {
            true => resting.push(reader),
            // It says good-bye to the cluster first.
            false => drop(std::thread::spawn(move || drop(reader))),
        }
    }

    fn next_returned(&self) -> Option<Reader> {
        self.idle.returned.borrow_mut().pop()
    }

    /// Probes the cluster once, and waits for the time of the next probe if it is away.
    async fn look_after(&self) {
        self.breaker.borrow_mut().attempt();
        let timeout = self.config.answer_timeout;
        let probed = self.ask_anyway(move |cluster| cluster.probe(timeout)).await;
        let Err(fault) = probed else {
            self.in_doubt.set(false);
            return self.breaker.borrow_mut().succeeded();
        };
        self.count(|facts| facts.outages += 1);
        self.outage.replace(fault);
        let until_ns = self.breaker.borrow_mut().failed(monotonic_ns());
        while !self.stopped.get() && monotonic_ns() < until_ns {
            let left = Duration::from_nanos(until_ns.saturating_sub(monotonic_ns()));
            // In steps, so that a link that is stopped does not outlive it for long.
            rt::sleep(left.clamp(Duration::from_millis(1), Duration::from_millis(250))).await;
        }
    }

    /// Hears the alarm of the cluster's clients.
    async fn hear(self: Rc<Self>) {
        let Some(alarm) = self.alarm.clone() else { return };
        let mut heard = 0;
        while !self.stopped.get() {
            alarm.wait(heard).await;
            heard = alarm.heard();
            self.doubt();
        }
    }
}

/// What goes with the records of one call.
pub(super) enum Parcels {
    One(Option<Duty>),
    Parts(Arc<Group>),
}

impl Parcels {
    fn new(count: usize, duty: Duty) -> Self {
        match count {
            1 => Parcels::One(Some(duty)),
            _ => Parcels::Parts(Group::new(count, duty)),
        }
    }

    /// That of the record at `index`; each is to be asked for once.
    pub(super) fn of(&mut self, index: usize) -> Box<Parcel> {
        Box::new(match self {
            Parcels::One(duty) => {
                Parcel::One(duty.take().unwrap_or_else(|| unreachable!("one record, one parcel")))
            }
            Parcels::Parts(group) => Parcel::Part(group.clone(), index),
        })
    }
}

/// Somebody asks for a topic; whoever waits for that hears when it ends, however it does.
struct Asking<'a> {
    asked: &'a RefCell<HashMap<Box<str>, Rc<News>, ahash::RandomState>>,
    topic: Box<str>,
}

impl<'a> Asking<'a> {
    fn begin(
        asked: &'a RefCell<HashMap<Box<str>, Rc<News>, ahash::RandomState>>,
        topic: &str,
    ) -> Self {
        asked.borrow_mut().insert(topic.into(), Rc::default());
        Asking { asked, topic: topic.into() }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let asked = self.asked.borrow_mut().remove(&self.topic);
        if let Some(asked) = asked {
            asked.tell();
        }
    }
}

/// A reader that is counted.
pub(super) struct Counted(pub(super) Rc<Link>);

impl Counted {
    fn new(link: Rc<Link>) -> Self {
        link.count(|facts| facts.readers += 1);
        Counted(link)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count(|facts| facts.readers -= 1);
    }
}

/// Answers a shard's questions on threads that may block, until the shard has left.
async fn answer_questions(cluster: Arc<Cluster>, questions: Foreign<Question, ()>) {
    while let Some((question, ticket)) = questions.next().await {
        let cluster = cluster.clone();
        drop(tokio::task::spawn_blocking(move || {
            question(&cluster);
            ticket.complete(());
        }));
    }
}
