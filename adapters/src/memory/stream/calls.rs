//! The interfaces of StreamService on memstore, and the way of streams to the store and back.

use prism_proto::prism::stream::v1 as reply;
use prism_proto::prism::r#type::v1::Position;
use prism_proto::view::stream::{
    AppendBatchRequest, AppendRequest, AppendToPartitionRequest, CompactRequest,
    GetLatestOffsetRequest, GetPartitionsRequest, GetRetentionRequest, NewRecord, ReadRequest,
    SetRetentionRequest,
};
use prism_proto::view::types as view;
use prost::Message as _;

use super::super::Memstore;
use super::super::rooms::{Numbers, Room, put_numbers, read_room_key, room_key};
use super::Streams;
use super::state::{Known, PARTITIONS, Retention, Stream, partition_of};
use crate::call::{Context, PageSink, Reply};
use crate::error::{Error, Kind};
use crate::interfaces::message::{owned_record, span_ms};
use crate::interfaces::stream::{StreamBasic, StreamPartitioning, StreamRetention};

/// A record: its time, and the record as it is read. Never changes.
const RECORD: u8 = b'r';
/// Where a partition goes on whose newest record is gone.
const NEXT: u8 = b'p';
/// How long a stream's records stay.
const RETENTION: u8 = b't';
/// What retention counts for a record beside its content.
const RECORD_BYTES: u64 = 64;

impl StreamBasic for Memstore {
    async fn append(
        &self,
        context: &Context<'_>,
        request: AppendRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let record = request.record.unwrap_or_default();
        let to = (request.stream, partition_of(record.key));
        let position = self.append_record(context, to, &record, request.expected_last)?;
        reply::AppendResponse { position: Some(position) }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn append_batch(
        &self,
        context: &Context<'_>,
        request: AppendBatchRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let mut answer = reply::AppendBatchResponse::default();
        for record in request.records.iter() {
            let to = (request.stream, partition_of(record.key));
            let position = Some(self.append_record(context, to, &record, None)?);
            answer.results.push(reply::AppendBatchResult { status: None, position });
        }
        answer.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_latest_offset(
        &self,
        context: &Context<'_>,
        request: GetLatestOffsetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let latest = |stream: &Stream| {
            let partitions = stream.partitions.iter().enumerate();
            let latest = partitions.filter_map(|(number, of)| Some(position(number, of.last()?)));
            latest.collect()
        };
        let positions = self.with_stream(context.namespace, request.stream, latest);
        reply::GetLatestOffsetResponse { positions }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn read<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: ReadRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        self.read_stream(context, request, sink).await
    }
}

impl StreamPartitioning for Memstore {
    async fn get_partitions(
        &self,
        context: &Context<'_>,
        request: GetPartitionsRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let partitions = self.with_stream(context.namespace, request.stream, |stream| {
            let partitions = stream.partitions.iter().enumerate();
            let shown = partitions.map(|(number, of)| reply::Partition {
                partition: number as u32,
                earliest: of.last().map(|_| of.first().to_string()),
                latest: of.last().map(|offset| offset.to_string()),
            });
            shown.collect()
        });
        reply::GetPartitionsResponse { partitions }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn append_to_partition(
        &self,
        context: &Context<'_>,
        request: AppendToPartitionRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let record = request.record.unwrap_or_default();
        let partition = known_partition("partition", request.partition)?;
        let to = (request.stream, partition);
        let position = self.append_record(context, to, &record, request.expected_last)?;
        reply::AppendToPartitionResponse { position: Some(position) }.encode_raw(&mut reply.head);
        Ok(())
    }
}

impl StreamRetention for Memstore {
    async fn set_retention(
        &self,
        context: &Context<'_>,
        request: SetRetentionRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let asked = request.retention.unwrap_or_default();
        let retention = Retention {
            age_ms: asked.max_age.as_ref().map_or(u64::MAX, span_ms),
            bytes: asked.max_bytes.unwrap_or(u64::MAX),
            records: asked.max_records.unwrap_or(u64::MAX),
            by_key: asked.by_key,
        };
        let key = (context.namespace, request.stream.into());
        self.streams.borrow_mut().entry(key).or_default().retention = retention;
        let mut value = Vec::new();
        let Retention { age_ms, bytes, records, by_key } = retention;
        put_numbers(&mut value, &[age_ms, bytes, records, u64::from(by_key)]);
        self.keep(context, Room::Streams, &room_key(RETENTION, request.stream, &[]), &value);
        let retention = Some(shown(retention));
        reply::SetRetentionResponse { retention }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_retention(
        &self,
        context: &Context<'_>,
        request: GetRetentionRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let holds = self.with_stream(context.namespace, request.stream, |stream| stream.retention);
        let (retention, plan) = (Some(shown(holds)), Some(shown(Retention::ALL)));
        reply::GetRetentionResponse { retention, plan }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn compact(
        &self,
        context: &Context<'_>,
        request: CompactRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let mut streams = self.streams.borrow_mut();
        if let Some(stream) = streams.get_mut(&(context.namespace, Box::from(request.stream))) {
            if stream.retention.by_key {
                for (partition, offset) in stream.outdated() {
                    self.drop_record(context, (request.stream, stream), partition, offset);
                }
            }
            self.trim(context, (request.stream, stream));
        }
        let state = reply::CompactionState::Done.into();
        reply::CompactResponse { state }.encode_raw(&mut reply.head);
        Ok(())
    }
}

impl Memstore {
    fn append_record(
        &self,
        context: &Context<'_>,
        (name, partition): (&str, usize),
        record: &NewRecord<'_>,
        expected_last: Option<view::Position<'_>>,
    ) -> Result<Position, Error> {
        let mut streams = self.streams.borrow_mut();
        let stream = streams.entry((context.namespace, name.into())).or_default();
        let of = &stream.partitions[partition];
        if let Some(expected) = expected_last {
            let last = of.last().map(|offset| offset.to_string());
            let is_it = expected.partition as usize == partition
                && last.as_deref() == Some(expected.offset);
            if !is_it {
                let newest = last.unwrap_or_else(|| "none".to_owned());
                let message = format!(
                    "partition {partition} has another newest record than expected_last: {newest}"
                );
                return Err(Error::new(
                    Kind::FailedPrecondition,
                    "EXPECTED_LAST_MISMATCH",
                    message,
                )
                .with("latest", newest));
            }
        }
        let offset = of.next;
        let position = position(partition, offset);
        let time_us = context.now_us / 1000 * 1000;
        let owned = owned_record(record, position.clone(), time_us);
        let mut value = Vec::with_capacity(8 + owned.encoded_len());
        put_numbers(&mut value, &[time_us]);
        owned.encode_raw(&mut value);
        self.keep(context, Room::Streams, &record_key(name, partition, offset), &value);
        let key = record.key.map(Box::from);
        if let Some(replaced) = record.key.and_then(|key| stream.replaced(partition, key)) {
            self.drop_record(context, (name, stream), partition, replaced);
        }
        let bytes = value.len() as u64 + RECORD_BYTES;
        stream.insert(partition, offset, Known { time_us, bytes, key });
        self.trim(context, (name, stream));
        drop(streams);
        self.stream_sources.tell(context.namespace, name);
        Ok(position)
    }

    /// Removes what retention does not keep. An append makes little of it surplus; a new retention may make much.
    fn trim(&self, context: &Context<'_>, (name, stream): (&str, &mut Stream)) {
        while let Some((partition, offset)) = stream.surplus(context.now_us) {
            self.drop_record(context, (name, stream), partition, offset);
        }
    }

    fn drop_record(
        &self,
        context: &Context<'_>,
        (name, stream): (&str, &mut Stream),
        partition: usize,
        offset: u64,
    ) {
        self.forget(context, Room::Streams, &record_key(name, partition, offset));
        if stream.remove(partition, offset) {
            // No offset is used twice, whatever is left.
            let mut value = Vec::new();
            put_numbers(&mut value, &[stream.partitions[partition].next]);
            let key = room_key(NEXT, name, &(partition as u16).to_be_bytes());
            self.keep(context, Room::Streams, &key, &value);
        }
    }

    /// Looks at a stream; one that nothing was appended to is empty.
    pub(super) fn with_stream<R>(
        &self,
        namespace: u32,
        name: &str,
        look: impl FnOnce(&Stream) -> R,
    ) -> R {
        match self.streams.borrow().get(&(namespace, Box::from(name))) {
            Some(stream) => look(stream),
            None => look(&Stream::default()),
        }
    }

    /// A record as it is read.
    pub(super) fn kept_record(
        &self,
        namespace: u32,
        (name, partition): (&str, usize),
        offset: u64,
    ) -> Option<reply::StreamRecord> {
        let key = record_key(name, partition, offset);
        let value = self.kept(namespace, Room::Streams, &key)?;
        reply::StreamRecord::decode(value.slice(8..)).ok()
    }

    /// The streams that a restored store holds.
    pub(in super::super) fn restore_streams(&self) -> Streams {
        let mut streams = Streams::default();
        self.each_kept(Room::Streams, |namespace, key, value| {
            let Some((kind, name, rest)) = read_room_key(key) else { return };
            let stream = streams.entry((namespace, name.into())).or_default();
            let mut numbers = Numbers(value);
            let Some((partition, rest)) = rest.split_first_chunk::<2>() else {
                if kind == RETENTION {
                    stream.retention = Retention {
                        age_ms: numbers.next(),
                        bytes: numbers.next(),
                        records: numbers.next(),
                        by_key: numbers.next() != 0,
                    };
                }
                return;
            };
            let partition = usize::from(u16::from_be_bytes(*partition)).min(PARTITIONS - 1);
            match kind {
                RECORD => {
                    let offset = rest.try_into().map_or(0, u64::from_be_bytes);
                    let time_us = numbers.next();
                    let record = reply::StreamRecord::decode(numbers.0).unwrap_or_default();
                    let bytes = value.len() as u64 + RECORD_BYTES;
                    let key = record.key.map(String::into_boxed_str);
                    stream.insert(partition, offset, Known { time_us, bytes, key });
                }
                NEXT => {
                    let of = &mut stream.partitions[partition];
                    of.next = of.next.max(numbers.next());
                }
                _ => {}
            }
        });
        streams
    }
}

fn record_key(name: &str, partition: usize, offset: u64) -> Vec<u8> {
    let mut rest = [0; 10];
    rest[..2].copy_from_slice(&(partition as u16).to_be_bytes());
    rest[2..].copy_from_slice(&offset.to_be_bytes());
    room_key(RECORD, name, &rest)
}

pub(super) fn position(partition: usize, offset: u64) -> Position {
    Position { partition: partition as u32, offset: offset.to_string() }
}

pub(super) fn known_partition(field: &str, partition: u32) -> Result<usize, Error> {
    let number = partition as usize;
    if number < PARTITIONS {
        return Ok(number);
    }
    let expected = format!("is {partition}, the partitions are 0 to {}", PARTITIONS - 1);
    Err(Error::field("PARTITION_UNKNOWN", field, expected))
}

fn shown(retention: Retention) -> reply::Retention {
    let bound = |number: u64| (number != u64::MAX).then_some(number);
    reply::Retention {
        max_age: bound(retention.age_ms).map(|ms| prost_types::Duration {
            seconds: (ms / 1000) as i64,
            nanos: (ms % 1000) as i32 * 1_000_000,
        }),
        max_bytes: bound(retention.bytes),
        max_records: bound(retention.records),
        by_key: retention.by_key,
    }
}
