//! Consumer groups on Kafka: a group is one of Kafka's own, `<namespace>.<stream>:<group>`, in which this Prism takes part with one
//! consumer for all members that it serves ([`super::session`]). So `kafka-consumer-groups` shows how far it is, and others may take part in it.
//!
//! Kafka shares the partitions among those who take part, and each Prism shares its own among its members. What it keeps no place for is
//! noted beside it ([`super::notes`]). A receipt is of the group's generation, which is kept with each commit.

use prism_proto::prism::stream::v1 as reply;
use prism_proto::prism::stream::v1::join_consumer_group_response::Event;
use prism_proto::view::protobuf::Empty;
use prism_proto::view::stream::{
    AcknowledgeRequest, CreateConsumerGroupRequest, DeleteConsumerGroupRequest,
    GetConsumerGroupInfoRequest, JoinConsumerGroupRequest,
};
use prism_proto::view::types::{Start, StartStart};
use prost::Message as _;

use super::Kafka;
use super::cluster::Cluster;
use super::config::TOPIC_PARTITIONS_MAX;
use super::crowd::{Awaited, Manner, Place, Terms};
use super::errors::{Fault, too_large};
use super::names::{group_of, topic_of};
use super::notes::Note;
use super::offsets::{commit, committed};
use super::reader::Reader;
use super::record::stream_record;
use super::session::{Part, Wanted};
use super::walk::{places, since_ms};
use crate::call::{Context, NO_END, PageSink, Reply};
use crate::error::Error;
use crate::interfaces::message::{item_status, span_ms};
use crate::interfaces::stream::StreamConsumerGroups;
use crate::limits::{IN_FLIGHT_DEFAULT, IN_FLIGHT_MAX, LEASE_DEFAULT_MS};
use crate::memory::delivery::Progress;
use crate::sharing::{
    HEARTBEAT_US, Refused, Seal, encoded, group_active, group_mismatch, group_not_found,
    not_accepted, replaced,
};

/// Of which stream, and the group's name there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name<'a> {
    pub(super) stream: &'a str,
    pub(super) group: &'a str,
}

impl Name<'_> {
    /// What Kafka calls it.
    pub(super) fn in_kafka(&self, context: &Context<'_>) -> String {
        group_of(context.namespace_name, self.stream, self.group)
    }

    fn seal(&self, context: &Context<'_>, note: &Note) -> Seal<'_> {
        let (namespace, created) = (context.namespace, [note.since_us, 0, 0]);
        Seal { namespace, names: [self.stream, self.group], created }
    }
}

/// What a receipt stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Receipt {
    /// Absent where receipts are of no generation.
    pub(super) generation: Option<u64>,
    pub(super) partition: u32,
    pub(super) offset: u64,
}

impl Receipt {
    pub(super) fn read(seal: &Seal<'_>, text: &str, has_generation: bool) -> Option<Self> {
        let (generation, partition, offset) = seal.read(text)?;
        let generation = has_generation.then_some(generation);
        Some(Receipt { generation, partition: partition.try_into().ok()?, offset })
    }

    fn check(&self, now: u64) -> Result<(), Refused> {
        match self.generation.is_none_or(|generation| generation == now) {
            true => Ok(()),
            false => Err(Refused::Stale),
        }
    }
}

impl StreamConsumerGroups for Kafka {
    async fn create_consumer_group(
        &self,
        context: &Context<'_>,
        request: CreateConsumerGroupRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let name = Name { stream: request.stream, group: request.group };
        let group = name.in_kafka(context);
        let mut note = Note {
            since_us: context.now_us,
            topic: topic_of(context.namespace_name, request.stream),
            is_by_record: request.sharing() == Some(reply::Sharing::ByRecord),
            ack_wait_ms: request.ack_wait.as_ref().map_or(LEASE_DEFAULT_MS, span_ms),
            in_flight_max: match request.max_in_flight {
                0 => IN_FLIGHT_DEFAULT,
                asked => asked.min(IN_FLIGHT_MAX),
            },
            ..Note::default()
        };
        match self.note(context, &group).await? {
            Some(there) if !there.is_like(&note) => return Err(group_mismatch(request.group)),
            Some(_) => {}
            None => {
                let start = request.start.unwrap_or_default();
                note.starts = self.starts(context, request.stream, &start).await?;
                self.place_group(context, &group, &note, None).await?.map_err(|_| {
                    // Others take part in a group of this name, which none of Prism's is.
                    group_active(request.group)
                })?;
                self.set_note(context, &group, Some(&note)).await?;
            }
        }
        let sharing = sharing(&note).into();
        reply::CreateConsumerGroupResponse { sharing }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn delete_consumer_group(
        &self,
        context: &Context<'_>,
        request: DeleteConsumerGroupRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let name = Name { stream: request.stream, group: request.group };
        let existed = self.delete_group(context, &name.in_kafka(context)).await?;
        let existed = Some(existed.map_err(|_| group_active(request.group))?);
        reply::DeleteConsumerGroupResponse { existed }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn acknowledge(
        &self,
        context: &Context<'_>,
        request: AcknowledgeRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let name = Name { stream: request.stream, group: request.group };
        let group = name.in_kafka(context);
        let note = match self.known_note(context, &group) {
            Some(note) => Some(note),
            None => self.note(context, &group).await?,
        };
        let note = note.ok_or_else(|| group_not_found(request.group))?;
        let seal = name.seal(context, &note);
        let receipts: Vec<_> =
            request.receipts.iter().map(|text| Receipt::read(&seal, text, true)).collect();
        let done = self.acknowledge_all(context, &group, &note, &receipts).await?;
        let result = |one: Result<(), Refused>| reply::AcknowledgeResult {
            status: one.err().map(|refused| item_status(&not_accepted(refused))),
        };
        let results = done.into_iter().map(result).collect();
        reply::AcknowledgeResponse { results }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_consumer_group_info(
        &self,
        context: &Context<'_>,
        request: GetConsumerGroupInfoRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let name = Name { stream: request.stream, group: request.group };
        let group = name.in_kafka(context);
        let note = self.note(context, &group).await?;
        let note = note.ok_or_else(|| group_not_found(request.group))?;
        let bounds = self.bounds(context, &note.topic, None, true).await?.unwrap_or_default();
        let mut known = self.places_of(context, &group, &note, bounds.end.len() as u32).await?;
        let (_, last) = self.with_last(context, note.topic.clone(), bounds).await?;
        let session = self.sessions.of(&group).filter(|one| one.is_open() && one.is_of(&note));
        let crowd = session.as_ref().map(|session| session.crowd.borrow());
        if let Some(crowd) = &crowd {
            for (partition, place) in crowd.places() {
                if let Some(known) = known.get_mut(partition as usize) {
                    *known = place;
                }
            }
        }
        let progress = known.iter().zip(last).enumerate().map(|(number, (place, last))| {
            let partition = number as u32;
            let end = last.map_or(0, |last| last as u64 + 1);
            let counted = crowd.as_ref().and_then(|crowd| crowd.left(partition, end));
            let is_begun = place.next > place.start;
            reply::GroupProgress {
                partition,
                acknowledged: is_begun.then(|| (place.next - 1).to_string()),
                lag: Some(counted.unwrap_or_else(|| end.saturating_sub(place.next))),
            }
        });
        let progress = progress.collect();
        let kept = known.iter().map(|place| place.generation).max().unwrap_or_default();
        let members = crowd.as_ref().map(|crowd| crowd.members()).unwrap_or_default();
        let member = |(member, mut partitions): (String, Vec<u32>)| {
            if note.is_by_record {
                partitions.clear();
            }
            reply::GroupMember { member, partitions }
        };
        let answer = reply::GetConsumerGroupInfoResponse {
            sharing: sharing(&note).into(),
            generation: crowd.as_ref().map_or(kept, |crowd| crowd.generation().max(kept)),
            members: members.into_iter().map(member).collect(),
            progress,
        };
        answer.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn join_consumer_group<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: JoinConsumerGroupRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let name = Name { stream: request.stream, group: request.group };
        let group = name.in_kafka(context);
        let note = self.note(context, &group).await?;
        let note = note.ok_or_else(|| group_not_found(request.group))?;
        let manner = if note.is_by_record { Manner::Records } else { Manner::Partitions };
        let terms = Terms {
            ack_wait_us: note.ack_wait_ms.saturating_mul(1000),
            in_flight_max: note.in_flight_max,
        };
        let wanted = Wanted { group, note: note.clone(), manner, filter: None };
        let with = (context, &self.link);
        let part = self.sessions.join(with, wanted, (request.member, terms)).await?;
        self.take_part(context, name, &note, &part, sink).await
    }
}

fn sharing(note: &Note) -> reply::Sharing {
    match note.is_by_record {
        true => reply::Sharing::ByRecord,
        false => reply::Sharing::ByPartition,
    }
}

/// What a member has been told of its group.
struct Told {
    generation: u64,
    partitions: Vec<u32>,
}

impl Kafka {
    /// Tells a member what happens in its group, until it leaves or its place is gone.
    async fn take_part<S: PageSink>(
        &self,
        context: &Context<'_>,
        name: Name<'_>,
        note: &Note,
        part: &Part,
        sink: &mut S,
    ) -> Result<(), Error> {
        let (session, number) = (&part.session, part.number);
        let seal = name.seal(context, note);
        let mut news = session.news.listen();
        let (mut told, mut said_us): (Option<Told>, u64) = (None, sink.now_us());
        loop {
            if let Some(error) = session.failure(context) {
                return Err(error);
            }
            let generation = session.crowd.borrow().generation_of(number);
            let generation = match generation {
                _ if !session.is_open() => return Err(group_not_found(name.group)),
                None => return Err(replaced(&part.name)),
                Some(generation) => generation,
            };
            let event = if told.as_ref().map(|told| told.generation) != generation {
                match (told.take(), generation) {
                    (Some(Told { generation, partitions }), _) => {
                        Some(Event::Revoked(reply::Revoked { generation, partitions }))
                    }
                    (None, Some(generation)) => {
                        let mut partitions = session.crowd.borrow().partitions_of(number);
                        if note.is_by_record {
                            partitions.clear();
                        }
                        told = Some(Told { generation, partitions: partitions.clone() });
                        let member = part.name.to_string();
                        Some(Event::Assigned(reply::Assigned { generation, partitions, member }))
                    }
                    (None, None) => None,
                }
            } else {
                let handed = session.crowd.borrow_mut().hand(number, sink.now_us());
                let delivery = handed.map(|handed| {
                    let generation = generation.unwrap_or_default();
                    let receipt = (generation, handed.partition.into(), handed.offset);
                    reply::RecordDelivery {
                        receipt: seal.receipt(receipt.0, receipt.1, receipt.2),
                        attempt: handed.attempt,
                        record: Some(stream_record(&*handed.record)),
                    }
                });
                if let Some(delivery) = &delivery
                    && delivery.encoded_len() > context.limits.max_message_size
                    && let Some(position) =
                        delivery.record.as_ref().and_then(|one| one.position.as_ref())
                {
                    let offset = position.offset.parse().unwrap_or_default();
                    return Err(too_large(context, position.partition, offset));
                }
                delivery.map(Event::Record)
            };
            if let Some(event) = event {
                sink.send(encoded(event)).await?;
                said_us = sink.now_us();
                continue;
            }
            let heartbeat_us = said_us.saturating_add(HEARTBEAT_US);
            let until_us = session.crowd.borrow().next_end_us().unwrap_or(NO_END);
            sink.wait(&mut news, until_us.min(heartbeat_us)).await?;
            if sink.now_us() >= heartbeat_us {
                said_us = sink.now_us();
                let generation = told.as_ref().map_or(0, |told| told.generation);
                sink.send(encoded(Event::Heartbeat(reply::Heartbeat { generation }))).await?;
            }
        }
    }

    /// Where a group begins in each partition of a stream, which is made if it is not there.
    pub(super) async fn starts(
        &self,
        context: &Context<'_>,
        stream: &str,
        start: &Start<'_>,
    ) -> Result<Vec<u64>, Error> {
        let topic = topic_of(context.namespace_name, stream);
        let bounds = self.bounds(context, &topic, since_ms(start), true).await?;
        let bounds = bounds.unwrap_or_default();
        let latest = Start { start: Some(StartStart::Latest(Empty {})) };
        let start = if start.start.is_none() { &latest } else { start };
        let places: Vec<i64> = places(context, stream, start, &bounds)?;
        Ok(places.into_iter().map(|place| place.max(0) as u64).collect())
    }

    /// Marks what receipts stand for as done, one by one; comes back when Kafka keeps it.
    pub(super) async fn acknowledge_all(
        &self,
        context: &Context<'_>,
        group: &str,
        note: &Note,
        receipts: &[Option<Receipt>],
    ) -> Result<Vec<Result<(), Refused>>, Error> {
        let session = self.sessions.of(group).filter(|session| session.is_of(note));
        if let Some(session) = &session
            && session.begun(context).await?
        {
            let (mut done, mut awaited, mut indices) =
                (Vec::new(), Vec::<Awaited>::new(), Vec::new());
            for (index, receipt) in receipts.iter().enumerate() {
                let mut crowd = session.crowd.borrow_mut();
                let generation = crowd.generation();
                let marked = receipt.ok_or(Refused::Expired).and_then(|receipt| {
                    receipt.check(generation)?;
                    crowd.acknowledge(receipt.partition, receipt.offset)
                });
                done.push(marked.map(|one| {
                    awaited.push(one);
                    indices.push(index);
                }));
            }
            session.news.tell();
            let kept = session.kept(context, &awaited).await?;
            for (index, is_kept) in indices.into_iter().zip(kept) {
                if !is_kept {
                    done[index] = Err(Refused::Stale);
                }
            }
            return Ok(done);
        }
        // Nobody takes part here: what is done is moved on in Kafka itself.
        if session.is_some() {
            self.sessions.end(context, group).await?;
        }
        let named = receipts.iter().flatten().map(|receipt| receipt.partition.saturating_add(1));
        let partitions = named.max().unwrap_or_default().min(TOPIC_PARTITIONS_MAX);
        let partitions = partitions.max(note.starts.len() as u32);
        let kept = self.places_of(context, group, note, partitions).await?;
        let generation = kept.iter().map(|place| place.generation).max().unwrap_or_default();
        let resumed = |place: &Place| Progress::resumed(place.start, place.next);
        let mut progress: Vec<Progress> = kept.iter().map(resumed).collect();
        let mut done = Vec::with_capacity(receipts.len());
        for receipt in receipts {
            done.push(receipt.ok_or(Refused::Expired).and_then(|receipt| {
                receipt.check(generation)?;
                let of = progress.get_mut(receipt.partition as usize).ok_or(Refused::Stale)?;
                of.mark(receipt.offset).then_some(()).ok_or(Refused::Expired)
            }));
        }
        let mut moved = Vec::new();
        for (number, (before, after)) in kept.iter().zip(&mut progress).enumerate() {
            after.settle(|from| from);
            if after.next() != before.next {
                moved.push((number as u32, Place { next: after.next(), ..*before }));
            }
        }
        let (name, topic) = (group.to_owned(), note.topic.clone());
        if moved.is_empty() {
            return Ok(done);
        }
        let placed = self.link.ask_in_turn(context, move |cluster| {
            let clerk = Reader::clerk(cluster, &name)?;
            // The last member may be leaving yet.
            Ok(cluster.patiently(|| commit(cluster, &clerk, &topic, &moved)))
        });
        match placed.await? {
            Ok(()) => Ok(done),
            // Others take part, and have what was handed out here.
            Err(fault) if fault.is_regrouped => {
                Ok(done.into_iter().map(|one| one.and(Err(Refused::Stale))).collect())
            }
            Err(fault) => Err(self.link.error(context, &fault)),
        }
    }

    /// How far a group is in each partition, as Kafka keeps it.
    pub(super) async fn places_of(
        &self,
        context: &Context<'_>,
        group: &str,
        note: &Note,
        partitions: u32,
    ) -> Result<Vec<Place>, Error> {
        let (name, topic) = (group.to_owned(), note.topic.clone());
        let numbers: Vec<u32> = (0..partitions).collect();
        let told = self.link.ask_in_turn(context, move |cluster| {
            let clerk = Reader::clerk(cluster, &name)?;
            committed(cluster, &clerk, &topic, &numbers)
        });
        let place = |(number, place): (usize, Option<Place>)| {
            let start = note.start(number as u32);
            place.unwrap_or(Place { next: start, start, generation: 0 })
        };
        Ok(told.await?.into_iter().enumerate().map(place).collect())
    }

    /// Places a group that nobody takes part in: where it begins, or at these offsets of some partitions. An inner failure: somebody does.
    pub(super) async fn place_group(
        &self,
        context: &Context<'_>,
        group: &str,
        note: &Note,
        moved: Option<Vec<(u32, u64)>>,
    ) -> Result<Result<(), Fault>, Error> {
        let (name, topic) = (group.to_owned(), note.topic.clone());
        let all = (0..).zip(note.starts.iter().copied()).collect();
        let (is_moved, places) = (moved.is_some(), moved.unwrap_or(all));
        let placed = self.link.ask_in_turn(context, move |cluster| {
            let clerk = Reader::clerk(cluster, &name)?;
            place(cluster, &clerk, &topic, &places, is_moved)
        });
        placed.await
    }

    /// Deletes a group and what is noted of it; its streams here end. An inner failure: others take part in it.
    pub(super) async fn delete_group(
        &self,
        context: &Context<'_>,
        group: &str,
    ) -> Result<Result<bool, Fault>, Error> {
        let is_noted = self.note(context, group).await?.is_some();
        self.sessions.end(context, group).await?;
        if !is_noted {
            return Ok(Ok(false));
        }
        let name = group.to_owned();
        let deleted =
            self.link.ask_in_turn(context, move |cluster| match cluster.delete_group(&name) {
                Err(fault) if fault.is_regrouped => Ok(Err(fault)),
                deleted => deleted.map(Ok),
            });
        if let Err(fault) = deleted.await? {
            return Ok(Err(fault));
        }
        self.set_note(context, group, None).await?;
        Ok(Ok(true))
    }
}

/// Commits where a group that nobody takes part in goes on. Receipts of before are of a generation that is over.
fn place(
    cluster: &Cluster,
    clerk: &Reader,
    topic: &str,
    places: &[(u32, u64)],
    is_moved: bool,
) -> Result<Result<(), Fault>, Fault> {
    let mut generation = 0;
    if is_moved {
        let numbers: Vec<u32> = places.iter().map(|(partition, _)| *partition).collect();
        let before = committed(cluster, clerk, topic, &numbers)?;
        let before = before.iter().flatten().map(|place| place.generation);
        generation = before.max().unwrap_or_default() + 1;
    }
    let placed: Vec<_> = places
        .iter()
        .map(|(partition, next)| (*partition, Place { next: *next, start: *next, generation }))
        .collect();
    // The last member may be leaving yet.
    match cluster.patiently(|| commit(cluster, clerk, topic, &placed)) {
        Err(fault) if fault.is_regrouped => Ok(Err(fault)),
        placed => placed.map(Ok),
    }
}
