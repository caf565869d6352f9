//! A lane's records on Kafka: a batch is one transaction that also writes the lane's cell.
//!
//! The cell is the last record with the key `cell` of the topic `_prism.cell.<namespace>.<partition>` (no namespace begins with `_`), which is compacted. Each lane
//! has a producer of its own, whose `transactional.id` is made of data directory, namespace and partition: whoever begins a lane has
//! Kafka end what an earlier producer of this id has begun, and take nothing more of it. So readers that see only what is committed
//! (`read_committed`, as Prism's own do) see each record once; others may see what a broken transaction has left, too.
//!
//! A failure ends the producer, and the lane is begun again. What Kafka refuses for its own sake fails the whole transaction: the batch is
//! tried again in halves, until the record stands by itself, and the cell is moved past it.

use futures_util::future::join_all;
use prism_proto::catalogue::Method;
use rdkafka::producer::{Producer as _, ThreadedProducer};
use std::cell::{Cell as Slot, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use super::Kafka;
use super::cluster::{Cluster, Outgoing, Outlet, Watcher};
use super::delivery::Parcel;
use super::errors::{self, Fault};
use super::reader::Reader;
use super::tail::last_records;
use crate::backend::Backend;
use crate::call::{Context, Reply};
use crate::error::{Error, Kind};
use crate::lane::{Cell, LaneBackend, LaneOwner, LaneRecord, Outcome};

/// The key of a cell's records.
const CELL_KEY: &[u8] = b"cell";

/// The key of the record that each start of the lane leaves in the cell's topic.
const BEGUN_KEY: &[u8] = b"begun";

/// Bytes of a segment of a topic of Prism's own: of what is older only the last record of each key stays.
const COMPACTED_SEGMENT_BYTES: &str = "16777216";

/// A lane that was begun.
pub(super) struct Way {
    /// In a transaction that nothing has been sent in yet, between two batches.
    producer: Arc<ThreadedProducer<Watcher>>,
    cell_topic: String,
    /// Where the cell is.
    lane_seq: Slot<u64>,
    /// Calls that have put their records in line.
    calls: Slot<u64>,
    /// The last offset of the transaction in each partition.
    landed: RefCell<HashMap<(String, u32), i64, ahash::RandomState>>,
}

impl Way {
    /// Where the records of a call go, which are about to be put in line.
    pub(super) fn outlet(&self) -> Outlet<'_> {
        self.calls.set(self.calls.get() + 1);
        Outlet(&self.producer)
    }

    /// Takes note of where a call's records have landed.
    pub(super) fn note(&self, topic: &str, places: impl Iterator<Item = (u32, i64)>) {
        let mut landed = self.landed.borrow_mut();
        for (partition, offset) in places {
            let last = landed.entry((topic.to_owned(), partition)).or_insert(offset);
            *last = offset.max(*last);
        }
    }
}

/// The lanes of a shard that were begun.
#[derive(Default)]
pub(super) struct Ways(RefCell<HashMap<(u32, u16), Rc<Way>, ahash::RandomState>>);

impl Ways {
    /// The lane that a call's records are to go through; absent for calls that have no record in the log.
    pub(super) fn of_call(&self, context: &Context<'_>) -> Option<Rc<Way>> {
        context.revision.is_logged().then(|| self.of(context)).flatten()
    }

    fn of(&self, context: &Context<'_>) -> Option<Rc<Way>> {
        self.0.borrow().get(&lane(context)).cloned()
    }

    /// Ends the lane of a namespace, if it was begun.
    pub(super) fn leave(&self, context: &Context<'_>) {
        let left = self.0.borrow_mut().remove(&lane(context));
        end(left.into_iter());
    }

    /// Ends all of them.
    pub(super) fn stop(&self) {
        end(self.0.take().into_values());
    }
}

/// Ends producers, each of which says good-bye to the cluster first.
fn end(ways: impl Iterator<Item = Rc<Way>>) {
    let producers: Vec<_> = ways.map(|way| way.producer.clone()).collect();
    if !producers.is_empty() {
        drop(std::thread::spawn(move || drop(producers)));
    }
}

fn lane(context: &Context<'_>) -> (u32, u16) {
    (context.namespace, context.partition)
}

fn cell_topic(context: &Context<'_>) -> String {
    format!("_prism.cell.{}.{}", context.namespace_name, context.partition)
}

fn transactional_id(context: &Context<'_>, owner: &LaneOwner) -> String {
    let id = u128::from_be_bytes(owner.directory_id);
    format!("prism.{id:032x}.{}.{}", context.namespace_name, context.partition)
}

/// Whether a record's effect is records of Kafka, which can be part of a transaction. Everything else may be done a second time.
fn is_sent(method: Method) -> bool {
    matches!(
        method,
        Method::STREAM_APPEND
            | Method::STREAM_APPEND_BATCH
            | Method::STREAM_APPEND_TO_PARTITION
            | Method::PUBSUB_PUBLISH
            | Method::PUBSUB_PUBLISH_BATCH
            | Method::PUBSUB_PUBLISH_WITH_ATTRIBUTES
            | Method::PUBSUB_PUBLISH_ORDERED
            | Method::PUBSUB_PUBLISH_PERSISTENT
    )
}

/// Whether a call has failed before anything was sent, because of what it asks for.
fn is_unsent(error: &Error) -> bool {
    use Kind::{Aborted, AlreadyExists, InvalidArgument, NotFound, OutOfRange, Unimplemented};
    matches!(
        error.kind(),
        InvalidArgument | Unimplemented | NotFound | OutOfRange | AlreadyExists | Aborted
    )
}

/// Whether Kafka refuses a record for its own sake, so that the lane goes on behind it.
pub(super) fn is_refusal(error: &Error) -> bool {
    is_unsent(error)
        || matches!(
            error.reason(),
            "BACKEND_RECORD_TOO_LARGE"
                | "BACKEND_REFUSES_RECORD"
                | "BACKEND_NAME_TAKEN"
                | "GROUP_ACTIVE"
                | "SUBSCRIPTION_MISMATCH"
                | "BACKEND_GROUPS_MAX"
                | "SHARING_NOT_OFFERED"
                | "RETENTION_NOT_OFFERED"
        )
}

impl LaneBackend for Kafka {
    async fn resume(
        &self,
        context: &Context<'_>,
        owner: &LaneOwner,
    ) -> Result<Option<Cell>, Error> {
        self.link.ways.leave(context);
        // One question after the other: each has its own time, and what one has made is there for the next attempt.
        let cell_topic = cell_topic(context);
        let name = cell_topic.clone();
        self.link.ask_in_turn(context, move |cluster| make_compacted(cluster, &name)).await?;
        // What was begun before is ended by this: so the cell stands still when it is read.
        let way = self.begin_lane(context, owner, cell_topic.clone(), 0).await?;
        let text = self.settled_cell(context, &way).await;
        let unreadable = || errors::cell_unreadable(context, &cell_topic);
        let cell = text.and_then(|text| match &text {
            None => Ok(None),
            Some(text) => Cell::parse(text).ok_or_else(unreadable).map(Some),
        });
        if let Ok(Some(cell)) = &cell {
            way.lane_seq.set(cell.lane_seq);
        }
        drop(way);
        cell.inspect_err(|_| self.link.ways.leave(context))
    }

    async fn set_cell(&self, context: &Context<'_>, cell: &Cell) -> Result<(), Error> {
        let way = self.link.ways.of(context).ok_or_else(|| errors::lane_moved(context))?;
        let set = self.commit(context, &way, cell).await;
        // Whoever holds a producer last waits for its end: not the shard.
        drop(way);
        set.inspect_err(|_| self.link.ways.leave(context))
    }

    async fn apply(
        &self,
        owner: &LaneOwner,
        records: &[LaneRecord<'_>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Error> {
        let Some(first) = records.first() else { return Ok(()) };
        let context = &first.context;
        let way = self.link.ways.of(context);
        let way = way.filter(|way| way.lane_seq.get() + 1 == first.lane_seq);
        let way = way.ok_or_else(|| errors::lane_moved(context))?;
        let applied = self.apply_all(owner, way, records, outcomes).await;
        applied.inspect_err(|error| {
            self.link.ways.leave(context);
            if error.reason() == "BACKEND_TOPIC_GONE" {
                self.link.forget_all();
            }
        })
    }
}

impl Kafka {
    async fn apply_all(
        &self,
        owner: &LaneOwner,
        mut way: Rc<Way>,
        records: &[LaneRecord<'_>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Error> {
        let same_kind = |one: &LaneRecord<'_>, next: &LaneRecord<'_>| {
            is_sent(one.method) == is_sent(next.method)
        };
        // What is to be done next stands last.
        let mut parts: Vec<_> = records.chunk_by(same_kind).collect();
        parts.reverse();
        while let Some(part) = parts.pop() {
            let Some(last) = part.last() else { continue };
            let cell = Cell { owner: *owner, lane_seq: last.lane_seq };
            if !is_sent(last.method) {
                for LaneRecord { context, method, request, .. } in part {
                    let mut reply = Reply::default();
                    let done = self.unary(context, *method, request, &mut reply).await;
                    outcomes.push(match done {
                        Err(error) if !is_refusal(&error) => return Err(error),
                        done => done.map(|()| reply),
                    });
                }
                self.commit(&last.context, &way, &cell).await?;
                continue;
            }
            let refusal = match self.send_together(&way, part).await {
                Ok(sent) => {
                    self.commit(&last.context, &way, &cell).await?;
                    outcomes.extend(sent);
                    continue;
                }
                Err(error) if is_refusal(&error) => error,
                Err(error) => return Err(error),
            };
            // A producer that has failed a record is not sure of its numbers any more.
            way = self.begin_again(&last.context, owner, way).await?;
            if let [_] = part {
                self.commit(&last.context, &way, &cell).await?;
                outcomes.push(Err(refusal));
            } else {
                let (one, other) = part.split_at(part.len() / 2);
                parts.extend([other, one]);
            }
        }
        Ok(())
    }

    /// Has the records' calls made within the lane's transaction. A failure is one of Kafka's, after which nothing of it may stay.
    async fn send_together(
        &self,
        way: &Rc<Way>,
        records: &[LaneRecord<'_>],
    ) -> Result<Vec<Outcome>, Error> {
        let mut calls = Vec::with_capacity(records.len());
        for record in records {
            calls.push(Call::put_in_line(self, way, record).await);
        }
        let landed = join_all(calls.into_iter().map(Call::landed)).await;
        let failures = || landed.iter().filter_map(|landed| landed.as_ref().err());
        // With a record that is refused others fail, whose transaction is given up: it is the one that tells why.
        match failures().find(|error| is_refusal(error)).or_else(|| failures().next()) {
            Some(error) => Err(error.clone()),
            None => Ok(landed.into_iter().flatten().collect()),
        }
    }

    /// Moves the cell, together with what was sent in the transaction.
    async fn commit(&self, context: &Context<'_>, way: &Way, cell: &Cell) -> Result<(), Error> {
        let (producer, topic) = (way.producer.clone(), way.cell_topic.clone());
        let (text, landed) = (cell.to_text(), way.landed.take().into_iter().collect::<Vec<_>>());
        let question = move |cluster: &Cluster| {
            commit(cluster, &producer, &topic, CELL_KEY, &text)?;
            // Readers come to see it a little later than it is decided.
            cluster.await_visible(&landed)
        };
        self.link.ask_in_turn(context, question).await?;
        way.lane_seq.set(cell.lane_seq);
        Ok(())
    }

    /// What stands in the cell, once a transaction of this producer's own is seen behind it: until then a broker may tell of an
    /// earlier end, as after a start, or while it still ends what was committed last.
    async fn settled_cell(
        &self,
        context: &Context<'_>,
        way: &Way,
    ) -> Result<Option<Vec<u8>>, Error> {
        let (producer, topic) = (way.producer.clone(), way.cell_topic.clone());
        let settle = move |cluster: &Cluster| {
            commit(cluster, &producer, &topic, BEGUN_KEY, "")?;
            cluster.await_end_visible(&topic)
        };
        self.link.ask_in_turn(context, settle).await?;
        let topic = way.cell_topic.clone();
        let question = move |cluster: &Cluster, reader: &Reader| last_cell(cluster, reader, &topic);
        self.link.ask_reading(context, question).await
    }

    /// Begins a lane, or begins it again: what was sent for it before, and is not committed, is given up.
    async fn begin_lane(
        &self,
        context: &Context<'_>,
        owner: &LaneOwner,
        cell_topic: String,
        lane_seq: u64,
    ) -> Result<Rc<Way>, Error> {
        let id = transactional_id(context, owner);
        let producer = self.link.ask_in_turn(context, move |cluster| begin(cluster, &id)).await?;
        let way = Rc::new(Way {
            producer: Arc::new(producer),
            cell_topic,
            lane_seq: Slot::new(lane_seq),
            calls: Slot::new(0),
            landed: RefCell::default(),
        });
        self.link.ways.0.borrow_mut().insert(lane(context), way.clone());
        Ok(way)
    }

    async fn begin_again(
        &self,
        context: &Context<'_>,
        owner: &LaneOwner,
        way: Rc<Way>,
    ) -> Result<Rc<Way>, Error> {
        let (cell_topic, lane_seq) = (way.cell_topic.clone(), way.lane_seq.get());
        drop(way);
        self.link.ways.leave(context);
        self.begin_lane(context, owner, cell_topic, lane_seq).await
    }
}

/// A record's call whose records are in line, in the order of the lane.
struct Call<'a> {
    future: Pin<Box<dyn Future<Output = Outcome> + 'a>>,
    outcome: Option<Outcome>,
}

impl<'a> Call<'a> {
    /// Comes back as soon as the call's records are in line, or it has ended without any.
    async fn put_in_line(kafka: &'a Kafka, way: &Way, record: &'a LaneRecord<'a>) -> Self {
        let future = Box::pin(async move {
            let mut reply = Reply::default();
            kafka.unary(&record.context, record.method, record.request, &mut reply).await?;
            Ok(reply)
        });
        let mut call = Call { future, outcome: None };
        let before = way.calls.get();
        poll_fn(|task| {
            match call.future.as_mut().poll(task) {
                Poll::Ready(outcome) => call.outcome = Some(outcome),
                Poll::Pending if way.calls.get() == before => return Poll::Pending,
                Poll::Pending => {}
            }
            Poll::Ready(())
        })
        .await;
        call
    }

    /// Its outcome if all goes well; the failure of the transaction else.
    async fn landed(self) -> Result<Outcome, Error> {
        let outcome = match self.outcome {
            Some(outcome) => outcome,
            None => self.future.await,
        };
        match outcome {
            Err(error) if !is_unsent(&error) => Err(error),
            outcome => Ok(outcome),
        }
    }
}

/// Makes a topic of Prism's own, of which the last record of each key stays, if it is not there. Blocks, as all below.
pub(super) fn make_compacted(cluster: &Cluster, topic: &str) -> Result<(), Fault> {
    if cluster.partitions(topic)?.is_some() {
        return Ok(());
    }
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.bytes", COMPACTED_SEGMENT_BYTES),
        ("retention.ms", "-1"),
    ];
    cluster.make(topic, (1, None), &settings)?;
    cluster.await_topic(topic).map(drop)
}

/// A producer in a transaction. Nothing of an earlier one with this id arrives any more.
fn begin(cluster: &Cluster, id: &str) -> Result<ThreadedProducer<Watcher>, Fault> {
    let config = cluster.config().transactional_producer(id);
    let producer: ThreadedProducer<Watcher> =
        config.create_with_context(Watcher::new(&cluster.health)).map_err(cluster.fault())?;
    let timeout = cluster.config().answer_timeout;
    producer.init_transactions(timeout).map_err(cluster.fault())?;
    producer.begin_transaction().map_err(cluster.fault())?;
    Ok(producer)
}

fn commit(
    cluster: &Cluster,
    producer: &ThreadedProducer<Watcher>,
    topic: &str,
    key: &[u8],
    text: &str,
) -> Result<(), Fault> {
    let record = Outgoing {
        topic,
        partition: Some(0),
        payload: Some(text.as_bytes()),
        key: Some(key),
        timestamp: None,
        headers: None,
        delivery_opaque: Box::new(Parcel::Unasked),
    };
    producer.send(record).map_err(|(error, _)| cluster.fault()(error))?;
    producer.commit_transaction(cluster.config().answer_timeout).map_err(cluster.fault())?;
    producer.begin_transaction().map_err(cluster.fault())
}

/// What stands in the last record of a cell; absent where there is none.
fn last_cell(cluster: &Cluster, reader: &Reader, topic: &str) -> Result<Option<Vec<u8>>, Fault> {
    let bounds = cluster.bounds(topic, 1, None)?;
    let is_cell = |key: Option<&[u8]>| key == Some(CELL_KEY);
    let last = last_records(cluster, reader, topic, &bounds, is_cell)?;
    Ok(last.into_iter().flatten().next().map(|last| last.value))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rdkafka::types::RDKafkaErrorCode as Code;

    use super::*;

    #[test]
    fn what_kafka_refuses_for_its_own_sake_does_not_stop_the_lane_and_all_else_does() {
        let limits = crate::Limits::default();
        let context = Context {
            namespace: 1,
            namespace_name: "orders",
            partition: 0,
            now_us: 0,
            revision: crate::Revision::logged(1),
            limits: &limits,
            deadline_ns: crate::NO_DEADLINE_NS,
        };
        let of = |code| Fault::of_code(code, "").error(&context, Duration::ZERO);
        for code in [Code::MessageSizeTooLarge, Code::InvalidRecord, Code::InvalidTopic] {
            assert!(is_refusal(&of(code)) && !is_unsent(&of(code)), "{code:?}");
        }
        for code in [
            Code::MessageTimedOut,
            Code::PurgeQueue,
            Code::ProducerFenced,
            Code::TopicAuthorizationFailed,
            Code::InvalidReplicationFactor,
            Code::QueueFull,
            Code::Unknown,
        ] {
            assert!(!is_refusal(&of(code)), "{code:?}");
        }
        assert!(is_unsent(&Error::field("PARTITION_UNKNOWN", "partition", "is 9")));
    }
}
