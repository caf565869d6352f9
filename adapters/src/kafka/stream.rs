//! The interfaces of StreamService on Kafka, but for retention.

use prism_proto::prism::stream::v1 as reply;
use prism_proto::prism::r#type::v1::Position;
use prism_proto::view::stream::{
    AppendBatchRequest, AppendRequest, AppendToPartitionRequest, GetLatestOffsetRequest,
    GetPartitionsRequest, NewRecord, ReadRequest,
};
use prost::Message as _;

use super::Kafka;
use super::cluster::{Bounds, Cluster, Outgoing, Outlet};
use super::delivery::Parcel;
use super::errors::{BACKEND, Fault};
use super::link::Parcels;
use super::names::{partition_of, topic_of};
use super::reader::Reader;
use super::record::headers_of;
use super::since::pass_older;
use super::tail::last_records;
use crate::call::{Context, PageSink, Reply};
use crate::error::{Error, Kind};
use crate::interfaces::message::item_status;
use crate::interfaces::stream::{StreamBasic, StreamPartitioning};

impl StreamBasic for Kafka {
    async fn append(
        &self,
        context: &Context<'_>,
        request: AppendRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        if request.expected_last.is_some() {
            return Err(expected_last_not_offered());
        }
        let record = request.record.unwrap_or_default();
        let (topic, partitions) = self.known_topic(context, request.stream).await?;
        let partition = partition_of(record.key, partitions);
        let position = self.append_one(context, &topic, partition, &record).await?;
        reply::AppendResponse { position }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn append_batch(
        &self,
        context: &Context<'_>,
        request: AppendBatchRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let (topic, partitions) = self.known_topic(context, request.stream).await?;
        let records: Vec<_> = request.records.iter().collect();
        let landed = self.link.deliver(context, &topic, records.len(), |outlet, mut parcels| {
            for (index, record) in records.iter().enumerate() {
                let partition = partition_of(record.key, partitions);
                let parcel = parcels.of(index);
                outlet.send(outgoing(context, &topic, partition, record, parcel));
            }
        });
        let mut answer = reply::AppendBatchResponse::default();
        for landed in landed.await? {
            answer.results.push(match self.place(context, &topic, landed) {
                Ok(position) => reply::AppendBatchResult { status: None, position },
                Err(error) => {
                    let status = Some(item_status(&error));
                    reply::AppendBatchResult { status, position: None }
                }
            });
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
        let positions = self.shown_partitions(context, request.stream).await?;
        let latest = positions
            .into_iter()
            .filter_map(|of| Some(Position { partition: of.partition, offset: of.latest? }));
        let positions = latest.collect();
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

impl StreamPartitioning for Kafka {
    async fn get_partitions(
        &self,
        context: &Context<'_>,
        request: GetPartitionsRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let partitions = self.shown_partitions(context, request.stream).await?;
        reply::GetPartitionsResponse { partitions }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn append_to_partition(
        &self,
        context: &Context<'_>,
        request: AppendToPartitionRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        if request.expected_last.is_some() {
            return Err(expected_last_not_offered());
        }
        let record = request.record.unwrap_or_default();
        let (topic, partitions) = self.known_topic(context, request.stream).await?;
        check_partition("partition", request.partition, partitions)?;
        let position = self.append_one(context, &topic, request.partition, &record).await?;
        reply::AppendToPartitionResponse { position }.encode_raw(&mut reply.head);
        Ok(())
    }
}

impl Kafka {
    /// The topic of a stream and its partitions; it is made if it is not there.
    pub(super) async fn known_topic(
        &self,
        context: &Context<'_>,
        stream: &str,
    ) -> Result<(String, u32), Error> {
        let topic = topic_of(context.namespace_name, stream);
        let partitions = self.link.partitions(context, &topic, true).await?;
        Ok((topic, partitions.unwrap_or(1)))
    }

    async fn append_one(
        &self,
        context: &Context<'_>,
        topic: &str,
        partition: u32,
        record: &NewRecord<'_>,
    ) -> Result<Option<Position>, Error> {
        let send = |outlet: Outlet<'_>, mut parcels: Parcels| {
            outlet.send(outgoing(context, topic, partition, record, parcels.of(0)));
        };
        let landed = self.link.deliver(context, topic, 1, send).await?;
        let landed = landed.into_iter().next().unwrap_or_else(|| Err(Fault::closed()));
        self.place(context, topic, landed)
    }

    /// Where a record has landed, as its caller is told. Absent where the brokers have had it before, by an attempt of the client whose
    /// answer was lost, and do not know any more where it is.
    pub(super) fn place(
        &self,
        context: &Context<'_>,
        topic: &str,
        landed: Result<(u32, i64), Fault>,
    ) -> Result<Option<Position>, Error> {
        match landed {
            Ok((partition, offset)) => Ok((offset >= 0).then(|| position(partition, offset))),
            Err(fault) => {
                if fault.is_missing {
                    self.link.forget(topic);
                }
                Err(self.link.error(context, &fault))
            }
        }
    }

    /// Where a stream's partitions begin and end; absent where there is no such stream yet.
    pub(super) async fn bounds(
        &self,
        context: &Context<'_>,
        topic: &str,
        since_ms: Option<i64>,
        make: bool,
    ) -> Result<Option<Bounds>, Error> {
        let Some(partitions) = self.link.partitions(context, topic, make).await? else {
            return Ok(None);
        };
        let name = topic.to_owned();
        let bounds = match since_ms {
            None => {
                self.link.ask(context, move |cluster| cluster.bounds(&name, partitions, None)).await
            }
            Some(ms) => {
                let question = move |cluster: &Cluster, reader: &Reader| {
                    let mut bounds = cluster.bounds(&name, partitions, Some(ms))?;
                    pass_older(cluster, reader, &name, &mut bounds, ms)?;
                    Ok(bounds)
                };
                self.link.ask_reading(context, question).await
            }
        };
        bounds.map(Some).inspect_err(|error| {
            if error.reason() == "BACKEND_TOPIC_GONE" {
                self.link.forget(topic);
            }
        })
    }

    /// Where a stream's partitions begin, and the last record of each.
    pub(super) async fn with_last(
        &self,
        context: &Context<'_>,
        topic: String,
        bounds: Bounds,
    ) -> Result<(Vec<i64>, Vec<Option<i64>>), Error> {
        let question = move |cluster: &Cluster, reader: &Reader| {
            let last = last_records(cluster, reader, &topic, &bounds, |_| true)?;
            Ok((bounds.first, last.into_iter().map(|last| Some(last?.offset)).collect()))
        };
        self.link.ask_reading(context, question).await
    }

    async fn shown_partitions(
        &self,
        context: &Context<'_>,
        stream: &str,
    ) -> Result<Vec<reply::Partition>, Error> {
        let topic = topic_of(context.namespace_name, stream);
        let Some(bounds) = self.bounds(context, &topic, None, false).await? else {
            // A stream that nothing was appended to has the partitions that it will get.
            let empty = |partition| reply::Partition { partition, earliest: None, latest: None };
            return Ok((0..self.link.partitions_planned(context)).map(empty).collect());
        };
        let (first, last) = self.with_last(context, topic, bounds).await?;
        let shown =
            first.iter().zip(last).enumerate().map(|(number, (first, last))| reply::Partition {
                partition: number as u32,
                earliest: last.map(|_| first.to_string()),
                latest: last.map(|last| last.to_string()),
            });
        Ok(shown.collect())
    }
}

/// A record as it goes to the client.
pub(super) fn outgoing<'a>(
    context: &Context<'_>,
    topic: &'a str,
    partition: u32,
    record: &NewRecord<'a>,
    parcel: Box<Parcel>,
) -> Outgoing<'a> {
    Outgoing {
        topic,
        partition: Some(partition as i32),
        payload: (!record.tombstone).then_some(record.value),
        key: record.key.map(str::as_bytes),
        timestamp: Some((context.now_us / 1000) as i64),
        headers: headers_of(record),
        delivery_opaque: parcel,
    }
}

pub(super) fn position(partition: u32, offset: i64) -> Position {
    Position { partition, offset: offset.to_string() }
}

pub(super) fn check_partition(field: &str, partition: u32, partitions: u32) -> Result<(), Error> {
    if partition < partitions {
        return Ok(());
    }
    let expected = format!("is {partition}, the partitions are 0 to {}", partitions - 1);
    Err(Error::field("PARTITION_UNKNOWN", field, expected))
}

#[cold]
fn expected_last_not_offered() -> Error {
    let message = "Kafka cannot append under the condition of what is last: leave expected_last out, or take a namespace on \
                   another backend";
    Error::new(Kind::Unimplemented, "EXPECTED_LAST_NOT_OFFERED", message).with("backend", BACKEND)
}
