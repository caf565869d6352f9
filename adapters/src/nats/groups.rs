//! Consumer groups on NATS: a group is a durable pull consumer of its stream, which hands a record to whichever member asks.
//!
//! It has the group's name; what a member may hold at a time is in its metadata. A receipt has all that the subject of its acknowledgement
//! needs, so that receipts outlive Prism. Who takes part is known to the shard alone: a namespace's members are all on its home.
//!
//! A consumer cannot be moved in every version that is served, so that a group which goes back is deleted and made again. What it is to be
//! lies in the namespace's bucket meanwhile: whoever finds no consumer makes it from there.

use std::rc::Rc;
use std::time::Duration;

use async_nats::HeaderMap;
use prism_proto::prism::stream::v1 as reply;
use prism_proto::prism::stream::v1::join_consumer_group_response::Event;
use prism_proto::view::protobuf::Empty;
use prism_proto::view::stream::{
    AcknowledgeRequest, CreateConsumerGroupRequest, DeleteConsumerGroupRequest,
    GetConsumerGroupInfoRequest, JoinConsumerGroupRequest,
};
use prism_proto::view::types::{Start, StartStart};
use prost::Message as _;
use serde_json::Value;

use super::Nats;
use super::consumer::{Begin, Consumer, Of};
use super::delivery::{Attached, Delivery, Stream, Subscription};
use super::errors::{self, BACKEND};
use super::jetstream::{Holds, KV_OPERATION, TTL};
use super::link::Outgoing;
use super::record::record;
use super::subject;
use crate::call::{Context, PageSink, Reply};
use crate::error::{Error, Kind};
use crate::interfaces::message::{item_status, span_ms, time};
use crate::interfaces::stream::StreamConsumerGroups;
use crate::limits::{IN_FLIGHT_DEFAULT, IN_FLIGHT_MAX, LEASE_DEFAULT_MS};
use crate::sharing::{
    HEARTBEAT_US, Refused, encoded, group_active, group_mismatch, group_not_found, not_accepted,
    replaced,
};

/// Nothing is shared anew where records are shared one by one.
const GENERATION: u64 = 1;

/// How long a member waits before it looks for what was appended another way, or comes again.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often a group is looked for that others make and delete meanwhile.
const ATTEMPTS_MAX: usize = 8;

/// How long it is remembered that a move is done, in seconds.
const MOVED_SECONDS: u64 = 60;

/// Members on a shard, at most: each may have a call under way.
const MEMBERS_MAX: usize = 4096;

impl StreamConsumerGroups for Nats {
    async fn create_consumer_group(
        &self,
        context: &Context<'_>,
        request: CreateConsumerGroupRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        if request.sharing() == Some(reply::Sharing::ByPartition) {
            return Err(sharing_not_offered());
        }
        let of = Of::group(request.stream, request.group);
        let in_flight = match request.max_in_flight {
            0 => IN_FLIGHT_DEFAULT,
            asked => asked.min(IN_FLIGHT_MAX),
        };
        let ack_wait_ms = request.ack_wait.as_ref().map_or(LEASE_DEFAULT_MS, span_ms);
        let wanted = Consumer {
            incarnation: 0,
            subject: of.holds.subjects(context),
            filter: String::new(),
            is_ordered: false,
            in_flight: Some(in_flight),
            ack_wait_us: ack_wait_ms * 1000,
            delivered: 0,
            acknowledged: 0,
            left: 0,
        };
        let consumer = self.join_or_make(context, of, &wanted, request.start).await?;
        self.deliveries.note(context.namespace, of, consumer);
        let sharing = reply::Sharing::ByRecord.into();
        reply::CreateConsumerGroupResponse { sharing }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn delete_consumer_group(
        &self,
        context: &Context<'_>,
        request: DeleteConsumerGroupRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let of = Of::group(request.stream, request.group);
        let was_moving = self.moving(context, of).await?.is_some();
        if was_moving {
            self.end_move(context, of).await?;
        }
        let existed = Some(self.delete_consumer(context, of).await? || was_moving);
        self.deliveries.forget(context.namespace, of);
        reply::DeleteConsumerGroupResponse { existed }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn acknowledge(
        &self,
        context: &Context<'_>,
        request: AcknowledgeRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let of = Of::group(request.stream, request.group);
        let receipts: Vec<&str> = request.receipts.iter().collect();
        let group = self.known_group(context, of).await?;
        let good = self.acknowledge_receipts(context, of, &group, &receipts).await?;
        let good = good.ok_or_else(|| group_not_found(of.id))?;
        let expired = item_status(&not_accepted(Refused::Expired));
        let result = |is_good: &bool| reply::AcknowledgeResult {
            status: (!is_good).then(|| expired.clone()),
        };
        let results = good.iter().map(result).collect();
        reply::AcknowledgeResponse { results }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_consumer_group_info(
        &self,
        context: &Context<'_>,
        request: GetConsumerGroupInfoRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let of = Of::group(request.stream, request.group);
        let group = self.group(context, of).await?.ok_or_else(|| group_not_found(of.id))?;
        let member = |member| reply::GroupMember { member, partitions: Vec::new() };
        let acknowledged = Some(group.acknowledged).filter(|number| *number > 0);
        let answer = reply::GetConsumerGroupInfoResponse {
            sharing: reply::Sharing::ByRecord.into(),
            generation: GENERATION,
            members: self.members_of(context, of).into_iter().map(member).collect(),
            progress: vec![reply::GroupProgress {
                partition: 0,
                acknowledged: acknowledged.map(|number| number.to_string()),
                lag: Some(group.left),
            }],
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
        let of = Of::group(request.stream, request.group);
        if self.deliveries.attached() >= MEMBERS_MAX {
            return Err(errors::busy(context, MEMBERS_MAX));
        }
        let namespace = context.namespace;
        let mut records = self.deliveries.sources.attend(namespace, request.stream);
        let changes_name = of.source_name();
        let mut changes = self.deliveries.sources.attend(namespace, &changes_name);
        // Asked for anew: what this shard remembers may have been deleted by somebody else.
        let group = self.group(context, of).await?.ok_or_else(|| group_not_found(of.id))?;
        let in_flight = group.in_flight.unwrap_or(IN_FLIGHT_DEFAULT) as usize;
        let group = self.deliveries.note(namespace, of, group);
        let part = self.members.join(namespace, &of.key(), request.member, sink.now_us());
        // Whoever took part under this name before ends.
        self.deliveries.sources.tell(namespace, &changes_name);
        let with = (&self.link, &self.deliveries);
        let Attached(line) = &Stream::attach(context, with, of, group, in_flight);
        let (partitions, member) = (Vec::new(), part.member.to_string());
        let assigned = reply::Assigned { generation: GENERATION, partitions, member };
        sink.send(encoded(Event::Assigned(assigned))).await?;
        let mut said_us = sink.now_us();
        loop {
            if !part.stands() {
                return Err(replaced(&part.member));
            }
            if line.subscription.is_gone.get() {
                return Err(group_not_found(of.id));
            }
            if let Some(delivery) = line.next(sink.now_us()) {
                sink.send(handed(context, &line.subscription, delivery)?).await?;
                said_us = sink.now_us();
                continue;
            }
            let room = line.room(sink.now_us());
            if room > 0 && self.take(context, of, line, room, sink).await? {
                continue;
            }
            let heartbeat_us = said_us.saturating_add(HEARTBEAT_US);
            let look_us = sink.now_us().saturating_add(LOOK_EVERY.as_micros() as u64);
            sink.wait(records.told().or(changes.told()), look_us.min(heartbeat_us)).await?;
            if sink.now_us() >= heartbeat_us {
                said_us = sink.now_us();
                let heartbeat = reply::Heartbeat { generation: GENERATION };
                sink.send(encoded(Event::Heartbeat(heartbeat))).await?;
            }
        }
    }

    async fn rebalance(&self, _: &Context<'_>, _: &[u8], _: &mut Reply) -> Result<(), Error> {
        // Shared record by record, there is nothing to be shared anew.
        Ok(())
    }
}

/// A record as it is handed to a member.
fn handed(
    context: &Context<'_>,
    group: &Subscription,
    delivery: Delivery,
) -> Result<bytes::Bytes, Error> {
    let Delivery { place, message, .. } = delivery;
    let mut record = record(place.sequence, message);
    record.timestamp = Some(time(place.stored_ns / 1000));
    let event = reply::RecordDelivery {
        receipt: place.receipt(group.consumer.incarnation),
        attempt: u32::try_from(place.attempt).unwrap_or(u32::MAX),
        record: Some(record),
    };
    let message = encoded(Event::Record(event));
    match message.len() > context.limits.max_message_size {
        true => Err(errors::too_large(context)),
        false => Ok(message),
    }
}

impl Nats {
    /// Who takes part in a group.
    fn members_of(&self, context: &Context<'_>, of: Of<'_>) -> Vec<String> {
        self.members.names(context.namespace, &of.key())
    }

    /// The consumer of a group, if it is there; one that was being moved is made.
    async fn group(&self, context: &Context<'_>, of: Of<'_>) -> Result<Option<Consumer>, Error> {
        for _ in 0..ATTEMPTS_MAX {
            if let Some(found) = self.consumer(context, of).await? {
                return Ok(Some(found));
            }
            let Some(config) = self.moving(context, of).await? else { return Ok(None) };
            self.ensure_stream(context, of.holds).await?;
            if let Some(made) = self.make_consumer(context, of, &config).await? {
                self.end_move(context, of).await?;
                return Ok(Some(made));
            }
        }
        Err(errors::contended(context))
    }

    async fn known_group(
        &self,
        context: &Context<'_>,
        of: Of<'_>,
    ) -> Result<Rc<Subscription>, Error> {
        if let Some(known) = self.deliveries.known(context.namespace, of) {
            return Ok(known);
        }
        let found = self.group(context, of).await?.ok_or_else(|| group_not_found(of.id))?;
        Ok(self.deliveries.note(context.namespace, of, found))
    }

    /// The group that is there, if it is as wanted, or a new one.
    async fn join_or_make(
        &self,
        context: &Context<'_>,
        of: Of<'_>,
        wanted: &Consumer,
        start: Option<Start<'_>>,
    ) -> Result<Consumer, Error> {
        let latest = Start { start: Some(StartStart::Latest(Empty {})) };
        for _ in 0..ATTEMPTS_MAX {
            if let Some(found) = self.group(context, of).await? {
                let settings = |one: &Consumer| (one.in_flight, one.ack_wait_us);
                return match settings(&found) == settings(wanted) {
                    true => Ok(found),
                    false => Err(group_mismatch(of.id)),
                };
            }
            self.ensure_stream(context, of.holds).await?;
            let extent = self.extent(context, of.stream()).await?;
            let start = start.unwrap_or(latest);
            let after = self.place(context, of.stream(), &start, &extent).await?;
            let config = wanted.config(&of.name(), &Begin::At(after.saturating_add(1)));
            if let Some(made) = self.make_consumer(context, of, &config).await? {
                return Ok(made);
            }
        }
        Err(errors::contended(context))
    }

    /// Has a group without members go on at a record.
    pub(super) async fn move_group(
        &self,
        context: &Context<'_>,
        of: Of<'_>,
        next: u64,
    ) -> Result<(), Error> {
        let found = self.group(context, of).await?.ok_or_else(|| group_not_found(of.id))?;
        if !self.members_of(context, of).is_empty() {
            return Err(group_active(of.id));
        }
        let config = found.config(&of.name(), &Begin::At(next.max(1)));
        let payload = config.to_string().into();
        self.keep_beside(context, Outgoing::plain(move_subject(context, of), payload)).await?;
        self.delete_consumer(context, of).await?;
        self.deliveries.forget(context.namespace, of);
        match self.group(context, of).await? {
            Some(moved) => {
                self.deliveries.note(context.namespace, of, moved);
                Ok(())
            }
            // Somebody has deleted it meanwhile.
            None => Err(group_not_found(of.id)),
        }
    }

    /// What a group is to be that is being moved.
    async fn moving(&self, context: &Context<'_>, of: Of<'_>) -> Result<Option<Value>, Error> {
        if !self.has_stream(context, Holds::Values).await? {
            return Ok(None);
        }
        let kept = self.last(context, &move_subject(context, of)).await?;
        let config = kept.and_then(|record| record.value);
        config
            .map(|config| serde_json::from_slice(&config).map_err(|_| errors::unexpected(context)))
            .transpose()
    }

    async fn end_move(&self, context: &Context<'_>, of: Of<'_>) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        headers.insert(KV_OPERATION, "DEL");
        headers.insert(TTL, MOVED_SECONDS.to_string());
        let subject = move_subject(context, of);
        let message =
            Outgoing { headers: Some(headers), ..Outgoing::plain(subject, bytes::Bytes::new()) };
        self.keep_beside(context, message).await
    }
}

/// The subject that it lies under what a group is to be; no key has such a one.
fn move_subject(context: &Context<'_>, of: Of<'_>) -> String {
    let mut subject = String::new();
    subject::put_bucket(&mut subject, context.namespace_name);
    subject.push_str("=group.");
    subject.push_str(&of.stream().replace('.', "="));
    subject.push('.');
    subject.push_str(&of.name());
    subject
}

#[cold]
fn sharing_not_offered() -> Error {
    let message = "a group on NATS shares its stream record by record, not by partition, of which a stream there has one: ask for \
                   SHARING_BY_RECORD, or leave sharing out";
    Error::new(Kind::FailedPrecondition, "SHARING_NOT_OFFERED", message).with("backend", BACKEND)
}
