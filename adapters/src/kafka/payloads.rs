//! Payloads that lie in a topic for somebody who keeps in mind where each one is: a queue's messages, whose state is elsewhere.
//!
//! A record is what anybody who knows Kafka would make of a message: its ordering key is the key, its attributes are headers, beside the queue
//! and the message's identity. A message that was sent twice is there twice under one identity; only one of them is kept in mind.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prism_proto::view::types::Message;
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::types::RDKafkaErrorCode as Code;

use super::Kafka;
use super::cluster::{Cluster, Outgoing, Outlet};
use super::errors::Fault;
use super::lane::is_refusal;
use super::link::Parcels;
use super::names::partition_of;
use super::pubsub::MESSAGE_ID;
use super::reader::{Found, Reader};
use super::record::headers;
use crate::call::Context;
use crate::error::Error;

/// The header of the queue that a message was sent to.
const QUEUE: &str = "prism.queue";

/// Records that are read past on the way to the next one that is wanted; beyond that it is gone there directly.
const READ_PAST_MAX: i64 = 500;

/// How often a record is sent whose place is not told.
const ATTEMPTS_MAX: usize = 5;

/// How long a look waits before it looks at the clock.
const LOOK: Duration = Duration::from_millis(100);

/// Partition and offset of a record.
pub(crate) type Place = (u32, i64);

/// A message whose payload is to be kept.
pub(crate) struct Kept<'a> {
    pub(crate) queue: &'a str,
    pub(crate) id: &'a str,
    pub(crate) message: &'a Message<'a>,
}

impl Kept<'_> {
    fn headers(&self) -> OwnedHeaders {
        let message = self.message;
        let attributes: Vec<_> =
            message.attributes.iter().map(|one| (one.key, one.value)).collect();
        let headers = headers(message.content_type, attributes.into_iter()).unwrap_or_default();
        let id = Header { key: MESSAGE_ID, value: Some(self.id) };
        headers.insert(id).insert(Header { key: QUEUE, value: Some(self.queue) })
    }

    /// Messages of one ordering key are together, others are spread.
    fn partition(&self, partitions: u32) -> u32 {
        let key = Some(self.message.ordering_key).filter(|key| !key.is_empty());
        partition_of(key.or(Some(self.id)), partitions)
    }
}

impl Kafka {
    /// Fails as a call would fail now because the cluster is away.
    pub(crate) fn check_reachable(&self, context: &Context<'_>) -> Result<(), Error> {
        self.link.cluster(context).map(drop)
    }

    /// Puts messages into a topic, which is made if it is not there; where each one is. None for one that Kafka refuses for its own sake.
    pub(crate) async fn put_payloads(
        &self,
        context: &Context<'_>,
        topic: &str,
        messages: &[Kept<'_>],
    ) -> Result<Vec<Option<Place>>, Error> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let partitions = self.link.partitions(context, topic, true).await?.unwrap_or(1);
        let mut places = vec![None; messages.len()];
        let mut left: Vec<usize> = (0..messages.len()).collect();
        for _ in 0..ATTEMPTS_MAX {
            let landed = self.put_some(context, (topic, partitions), messages, &left).await?;
            let mut unknown = Vec::new();
            for (index, landed) in left.into_iter().zip(landed) {
                match landed {
                    Ok((partition, offset)) if offset >= 0 => {
                        places[index] = Some((partition, offset));
                    }
                    // The brokers have had it before, by an attempt of the client whose answer was lost, and do not know any more where
                    // it is.
                    Ok(_) => unknown.push(index),
                    Err(fault) => {
                        if fault.is_missing {
                            self.link.forget(topic);
                        }
                        let error = self.link.error(context, &fault);
                        if !is_refusal(&error) {
                            return Err(error);
                        }
                    }
                }
            }
            if unknown.is_empty() {
                return Ok(places);
            }
            left = unknown;
        }
        Err(self.link.error(context, &Fault::unplaced()))
    }

    async fn put_some(
        &self,
        context: &Context<'_>,
        (topic, partitions): (&str, u32),
        messages: &[Kept<'_>],
        which: &[usize],
    ) -> Result<Vec<Result<Place, Fault>>, Error> {
        let send = |outlet: Outlet<'_>, mut parcels: Parcels| {
            for (number, kept) in which.iter().map(|index| &messages[*index]).enumerate() {
                let key = Some(kept.message.ordering_key.as_bytes()).filter(|key| !key.is_empty());
                outlet.send(Outgoing {
                    topic,
                    partition: Some(kept.partition(partitions) as i32),
                    payload: Some(kept.message.payload),
                    key,
                    timestamp: Some((context.now_us / 1000) as i64),
                    headers: Some(kept.headers()),
                    delivery_opaque: parcels.of(number),
                });
            }
        };
        self.link.deliver(context, topic, which.len(), send).await
    }

    /// Takes the topic away.
    pub(crate) async fn delete_payloads(
        &self,
        context: &Context<'_>,
        topic: &str,
    ) -> Result<(), Error> {
        self.link.forget(topic);
        let name = topic.to_owned();
        let delete = move |cluster: &Cluster| {
            let topics = cluster.topics_where(|topic| topic == name)?;
            if topics.is_empty() { Ok(()) } else { cluster.delete(&topics) }
        };
        self.link.ask_in_turn(context, delete).await
    }

    /// The payloads at these places. What is not among them is not in the topic any more.
    pub(crate) async fn payloads_at(
        &self,
        context: &Context<'_>,
        topic: &str,
        places: Vec<Place>,
    ) -> Result<HashMap<Place, Bytes>, Error> {
        let Some(partitions) = self.link.partitions(context, topic, false).await? else {
            return Ok(HashMap::new());
        };
        let topic = topic.to_owned();
        let question = move |cluster: &Cluster, reader: &Reader| {
            read_at(cluster, reader, (&topic, partitions), places)
        };
        self.link.ask_reading(context, question).await
    }
}

/// What is still to be found, by partition, in the order of the offsets.
type Left = BTreeMap<u32, VecDeque<i64>>;

/// See [`Kafka::payloads_at`]. Blocks.
fn read_at(
    cluster: &Cluster,
    reader: &Reader,
    (topic, partitions): (&str, u32),
    mut places: Vec<Place>,
) -> Result<HashMap<Place, Bytes>, Fault> {
    let until = Instant::now() + cluster.config().answer_timeout;
    let mut found = HashMap::new();
    let mut left = Left::new();
    places.sort_unstable();
    places.dedup();
    for (partition, offset) in places {
        // A partition that the topic does not have has no records.
        if partition < partitions {
            left.entry(partition).or_default().push_back(offset);
        }
    }
    while !left.is_empty() {
        let next = |(partition, offsets): (&u32, &VecDeque<i64>)| (*partition, offsets[0]);
        let mut reading: BTreeMap<u32, i64> = left.iter().map(next).collect();
        let places: Vec<_> = reading.iter().map(|(partition, at)| (*partition, *at)).collect();
        reader.go_to(cluster, topic, &places)?;
        while !reading.is_empty() {
            match reader.look_for(LOOK) {
                Found::Record(record) if record.topic() == topic => {
                    let (partition, offset) = (record.partition() as u32, record.offset());
                    if !reading.contains_key(&partition) {
                        continue;
                    }
                    let Some(offsets) = left.get_mut(&partition) else { continue };
                    // What was read past is not there.
                    while offsets.front().is_some_and(|wanted| *wanted < offset) {
                        offsets.pop_front();
                    }
                    if offsets.front() == Some(&offset) {
                        let payload = Bytes::copy_from_slice(record.payload().unwrap_or_default());
                        found.insert((partition, offset), payload);
                        offsets.pop_front();
                    }
                    match offsets.front() {
                        None => {
                            left.remove(&partition);
                            reading.remove(&partition);
                        }
                        Some(next) if next - offset > READ_PAST_MAX => {
                            reading.remove(&partition);
                        }
                        Some(_) => {}
                    }
                }
                Found::End(partition) if reading.contains_key(&partition) => {
                    drop_gone(cluster, (topic, partitions), &mut left)?;
                    if left.contains_key(&partition) {
                        return Err(Fault::not_yet());
                    }
                    reading.retain(|partition, _| left.contains_key(partition));
                }
                Found::Failure(error)
                    if error.rdkafka_error_code() == Some(Code::AutoOffsetReset) =>
                {
                    let before = left.values().map(VecDeque::len).sum::<usize>();
                    drop_gone(cluster, (topic, partitions), &mut left)?;
                    if left.values().map(VecDeque::len).sum::<usize>() == before {
                        return Err(cluster.fault()(error));
                    }
                    // The others are gone to again.
                    break;
                }
                // It goes on by itself when it can.
                Found::Record(_) | Found::End(_) | Found::Failure(_) | Found::Nothing => {}
            }
            if Instant::now() > until {
                return Err(Fault::unresponsive(cluster.config().answer_timeout));
            }
        }
    }
    Ok(found)
}

/// Gives up what retention has removed, and what the cluster has lost.
fn drop_gone(
    cluster: &Cluster,
    (topic, partitions): (&str, u32),
    left: &mut Left,
) -> Result<(), Fault> {
    let bounds = cluster.bounds(topic, partitions, None)?;
    left.retain(|partition, offsets| {
        let number = *partition as usize;
        let there = bounds.first.get(number).copied()..bounds.end.get(number).copied();
        offsets.retain(|offset| there.contains(&Some(*offset)));
        !offsets.is_empty()
    });
    Ok(())
}
