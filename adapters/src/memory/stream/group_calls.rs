//! The consumer groups of StreamService on memstore, and the way of groups to the store and back.

use prism_proto::catalogue::Method;
use prism_proto::prism::stream::v1 as reply;
use prism_proto::view::protobuf::Empty;
use prism_proto::view::stream::{
    AcknowledgeRequest, CreateConsumerGroupRequest, DeleteConsumerGroupRequest,
    GetConsumerGroupInfoRequest, JoinConsumerGroupRequest, ReplayRangeRequest, SeekToOffsetRequest,
    SeekToTimestampRequest,
};
use prism_proto::view::types::{Start, StartStart};
use prost::Message as _;

use super::super::Memstore;
use super::super::delivery::Progress;
use super::super::rooms::{Numbers, Room, put_numbers, read_room_key, room_key};
use super::calls::known_partition;
use super::groups::{Group, Groups, Name, Settings};
use super::state::{PARTITIONS, Stream};
use super::walk::{known_place, places};
use crate::call::{Context, PageSink, Reply, Revision};
use crate::error::Error;
use crate::interfaces::Check;
use crate::interfaces::message::{item_status, moment_us, span_ms};
use crate::interfaces::stream::{StreamConsumerGroups, StreamReplay};
use crate::limits::{IN_FLIGHT_DEFAULT, IN_FLIGHT_MAX, LEASE_DEFAULT_MS, Limits};
use crate::sharing::{group_active, group_mismatch, group_not_found, not_accepted};

/// A group: its settings, its generation, and the write that created it.
const GROUP: u8 = b'g';
/// How far a group is in a partition.
const PROGRESS: u8 = b'p';

impl StreamConsumerGroups for Memstore {
    async fn create_consumer_group(
        &self,
        context: &Context<'_>,
        request: CreateConsumerGroupRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let in_flight = match request.max_in_flight {
            0 => IN_FLIGHT_DEFAULT,
            asked => asked.min(IN_FLIGHT_MAX),
        };
        let settings = Settings {
            by_record: request.sharing() == Some(reply::Sharing::ByRecord),
            ack_wait_ms: request.ack_wait.as_ref().map_or(LEASE_DEFAULT_MS, span_ms),
            in_flight_max: in_flight,
        };
        let name = (context.namespace, request.stream, request.group);
        match self.groups.with(name, |group| group.settings) {
            Some(there) if there != settings => return Err(group_mismatch(request.group)),
            Some(_) => {}
            None => {
                let latest = Start { start: Some(StartStart::Latest(Empty {})) };
                let start = request.start.unwrap_or(latest);
                let begin = |stream: &Stream| places(context, request.stream, stream, &start);
                let starts = self.with_stream(context.namespace, request.stream, begin)?;
                let group = Group::new(context.revision, settings, starts);
                self.keep_group(context, &name, &group);
                for partition in 0..PARTITIONS {
                    self.keep_progress(context, &name, &group, partition);
                }
                let key = (context.namespace, request.stream.into(), request.group.into());
                self.groups.by_name.borrow_mut().insert(key, group);
            }
        }
        let sharing = sharing(&settings).into();
        reply::CreateConsumerGroupResponse { sharing }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn delete_consumer_group(
        &self,
        context: &Context<'_>,
        request: DeleteConsumerGroupRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let key = (context.namespace, request.stream.into(), request.group.into());
        let existed = self.groups.by_name.borrow_mut().remove(&key).is_some();
        if existed {
            self.forget(context, Room::Groups, &group_key(request.stream, request.group));
            for partition in 0..PARTITIONS {
                let key = progress_key(request.stream, request.group, partition);
                self.forget(context, Room::Groups, &key);
            }
            self.tell_group(&(context.namespace, request.stream, request.group));
        }
        reply::DeleteConsumerGroupResponse { existed: Some(existed) }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn acknowledge(
        &self,
        context: &Context<'_>,
        request: AcknowledgeRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let name = (context.namespace, request.stream, request.group);
        let results = self.with_group(&name, |group, stream| {
            let (mut results, mut touched) = (Vec::new(), [false; PARTITIONS]);
            for receipt in request.receipts.iter() {
                let done = group.read_receipt(&name, receipt).and_then(|(partition, offset)| {
                    touched[partition] = true;
                    group.acknowledge(partition, offset, stream)
                });
                let status = done.err().map(|refused| item_status(&not_accepted(refused)));
                results.push(reply::AcknowledgeResult { status });
            }
            for partition in (0..PARTITIONS).filter(|partition| touched[*partition]) {
                let of = &stream.partitions[partition];
                let first_from =
                    |from| of.records.range(from..).next().map_or(of.next, |one| *one.0);
                group.progress[partition].settle(first_from);
                self.keep_progress(context, &name, group, partition);
            }
            results
        })?;
        self.tell_group(&name);
        reply::AcknowledgeResponse { results }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_consumer_group_info(
        &self,
        context: &Context<'_>,
        request: GetConsumerGroupInfoRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let name = (context.namespace, request.stream, request.group);
        let answer = self.with_group(&name, |group, stream| {
            let members = group.members().map(|(number, member)| reply::GroupMember {
                member: member.name.to_string(),
                partitions: group.partitions_of(number),
            });
            let progress = group.progress.iter().enumerate().map(|(partition, progress)| {
                let of = &stream.partitions[partition];
                reply::GroupProgress {
                    partition: partition as u32,
                    acknowledged: progress.last_done().map(|offset| offset.to_string()),
                    // By offsets: what a retention by key has taken from between is counted too.
                    lag: Some(progress.left(of.first(), of.next)),
                }
            });
            reply::GetConsumerGroupInfoResponse {
                sharing: sharing(&group.settings).into(),
                generation: group.generation,
                members: members.collect(),
                progress: progress.collect(),
            }
        })?;
        answer.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn join_consumer_group<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: JoinConsumerGroupRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        self.take_part(context, request, sink).await
    }

    async fn rebalance(
        &self,
        context: &Context<'_>,
        request: &[u8],
        _: &mut Reply,
    ) -> Result<(), Error> {
        let request =
            JoinConsumerGroupRequest::decode(request).map_err(crate::interfaces::malformed)?;
        let name = (context.namespace, request.stream, request.group);
        self.with_group(&name, |group, _| {
            group.rebalance();
            self.keep_group(context, &name, group);
        })?;
        self.tell_group(&name);
        Ok(())
    }
}

impl StreamReplay for Memstore {
    async fn seek_to_offset(
        &self,
        context: &Context<'_>,
        request: SeekToOffsetRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        let name = (context.namespace, request.stream, request.group);
        self.seek(context, &name, |stream| {
            let mut places = [None; PARTITIONS];
            for (index, position) in request.positions.iter().enumerate() {
                let field = format!("positions[{index}]");
                let partition = known_partition(&format!("{field}.partition"), position.partition)?;
                places[partition] = Some(known_place(&field, stream, &position, false)?);
            }
            Ok(places)
        })
    }

    async fn seek_to_timestamp(
        &self,
        context: &Context<'_>,
        request: SeekToTimestampRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        let name = (context.namespace, request.stream, request.group);
        let time_us = request.timestamp.as_ref().map_or(0, moment_us);
        self.seek(context, &name, |stream| {
            Ok(std::array::from_fn(|number| Some(stream.partitions[number].since(time_us))))
        })
    }

    async fn replay_range<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: ReplayRangeRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        self.replay_stream(context, request, sink).await
    }
}

impl Memstore {
    /// Works on a group and looks at its stream.
    pub(super) fn with_group<R>(
        &self,
        name: &Name<'_>,
        work: impl FnOnce(&mut Group, &Stream) -> R,
    ) -> Result<R, Error> {
        self.with_stream(name.0, name.1, |stream| {
            self.groups.with(*name, |group| work(group, stream))
        })
        .ok_or_else(|| group_not_found(name.2))
    }

    fn seek(
        &self,
        context: &Context<'_>,
        name: &Name<'_>,
        places: impl FnOnce(&Stream) -> Result<[Option<u64>; PARTITIONS], Error>,
    ) -> Result<(), Error> {
        self.with_group(name, |group, stream| {
            group.seek(places(stream)?);
            self.keep_group(context, name, group);
            for partition in 0..PARTITIONS {
                self.keep_progress(context, name, group, partition);
            }
            Ok(())
        })??;
        self.tell_group(name);
        Ok(())
    }

    /// Refuses to move a group that has members. They are no state, so this is asked before there is a record; a member that joins
    /// after it goes on from the new place.
    #[cold]
    pub(in super::super) fn admit_seek(&self, method: Method, request: &[u8]) -> Result<(), Error> {
        // What is not valid is refused for that, by whoever looks at it next.
        let limits = Limits::default();
        let names = match method {
            Method::STREAM_SEEK_TO_OFFSET => SeekToOffsetRequest::decode(request)
                .ok()
                .filter(|request| request.check(&limits).is_ok())
                .map(|request| [request.namespace, request.stream, request.group]),
            _ => SeekToTimestampRequest::decode(request)
                .ok()
                .filter(|request| request.check(&limits).is_ok())
                .map(|request| [request.namespace, request.stream, request.group]),
        };
        let Some(names) = names else { return Ok(()) };
        match self.groups.taken_part.borrow().contains_key(&names.map(Box::from)) {
            true => Err(group_active(names[2])),
            false => Ok(()),
        }
    }

    /// Tells a group's members that something has changed.
    pub(super) fn tell_group(&self, name: &Name<'_>) {
        self.group_sources.tell(name.0, &source_name(name));
    }

    fn keep_group(&self, context: &Context<'_>, name: &Name<'_>, group: &Group) {
        let Settings { by_record, ack_wait_ms, in_flight_max } = group.settings;
        let Revision { lsn, epoch, minor } = group.created;
        let mut value = Vec::new();
        let settings = [u64::from(by_record), ack_wait_ms, u64::from(in_flight_max)];
        put_numbers(&mut value, &settings);
        put_numbers(&mut value, &[group.generation, lsn, u64::from(epoch), minor]);
        self.keep(context, Room::Groups, &group_key(name.1, name.2), &value);
    }

    fn keep_progress(
        &self,
        context: &Context<'_>,
        name: &Name<'_>,
        group: &Group,
        partition: usize,
    ) {
        let mut value = Vec::new();
        group.progress[partition].put(&mut value);
        self.keep(context, Room::Groups, &progress_key(name.1, name.2, partition), &value);
    }

    /// The groups that a restored store holds.
    pub(in super::super) fn restore_groups(&self) -> Groups {
        let groups = Groups::default();
        let mut progress = Vec::new();
        self.each_kept(Room::Groups, |namespace, key, value| {
            let Some((kind, stream, rest)) = read_room_key(key) else { return };
            let Some((&[high, low], name)) = rest.split_first_chunk() else { return };
            let Ok(name) = std::str::from_utf8(name) else { return };
            let key = (namespace, Box::from(stream), Box::from(name));
            if kind == PROGRESS {
                let partition = usize::from(u16::from_be_bytes([high, low]));
                progress.push((key, partition.min(PARTITIONS - 1), Progress::read(value)));
                return;
            }
            let mut numbers = Numbers(value);
            let mut next = || numbers.next();
            let settings = Settings {
                by_record: next() != 0,
                ack_wait_ms: next(),
                in_flight_max: next() as u32,
            };
            let (generation, lsn) = (next(), next());
            let created = Revision { lsn, epoch: next() as u32, minor: next() };
            let mut group = Group::new(created, settings, [0; PARTITIONS]);
            group.generation = generation;
            groups.by_name.borrow_mut().insert(key, group);
        });
        for (key, partition, progress) in progress {
            if let Some(group) = groups.by_name.borrow_mut().get_mut(&key) {
                group.progress[partition] = progress;
            }
        }
        groups
    }
}

fn group_key(stream: &str, group: &str) -> Vec<u8> {
    room_key(GROUP, stream, &[&[0, 0], group.as_bytes()].concat())
}

fn progress_key(stream: &str, group: &str, partition: usize) -> Vec<u8> {
    let partition = (partition as u16).to_be_bytes();
    room_key(PROGRESS, stream, &[&partition, group.as_bytes()].concat())
}

/// Names have no such character.
pub(super) fn source_name((_, stream, group): &Name<'_>) -> String {
    format!("{stream}/{group}")
}

fn sharing(settings: &Settings) -> reply::Sharing {
    match settings.by_record {
        true => reply::Sharing::ByRecord,
        false => reply::Sharing::ByPartition,
    }
}
