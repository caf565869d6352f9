//! Reading a stream's past again: groups that go back, and ranges.

use prism_io::rt;
use prism_proto::prism::stream::v1 as reply;
use prism_proto::view::stream::{
    ReplayRangeRequest, ReplayRangeRequestEnd, SeekToOffsetRequest, SeekToTimestampRequest,
};
use prism_proto::view::types::Position;
use prost::Message as _;

use super::Nats;
use super::consumer::Of;
use super::stream::{Extent, check_partition, cursor, offset, trimmed, unknown_position};
use crate::call::{Context, PageSink, Reply};
use crate::error::Error;
use crate::interfaces::message::moment_us;
use crate::interfaces::stream::StreamReplay;
use crate::limits::PAGE_ENTRIES_DEFAULT;

/// The number of a record that was told.
fn told(field: &str, position: &Position<'_>, extent: &Extent) -> Result<u64, Error> {
    check_partition(&format!("{field}.partition"), position.partition)?;
    let offset = offset(position).filter(|offset| *offset <= extent.last);
    offset.ok_or_else(|| unknown_position(field))
}

impl StreamReplay for Nats {
    async fn seek_to_offset(
        &self,
        context: &Context<'_>,
        request: SeekToOffsetRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        let extent = self.extent(context, request.stream).await?;
        let mut next = None;
        for (index, position) in request.positions.iter().enumerate() {
            next = Some(told(&format!("positions[{index}]"), &position, &extent)?);
        }
        let Some(next) = next else { return Ok(()) };
        if next < extent.first {
            return Err(trimmed(extent.first));
        }
        self.move_group(context, Of::group(request.stream, request.group), next).await
    }

    async fn seek_to_timestamp(
        &self,
        context: &Context<'_>,
        request: SeekToTimestampRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        let extent = self.extent(context, request.stream).await?;
        let moment = request.timestamp.as_ref().map_or(0, moment_us);
        let after = self.before_moment(context, request.stream, moment, &extent).await?;
        let next = after.saturating_add(1);
        self.move_group(context, Of::group(request.stream, request.group), next).await
    }

    async fn replay_range<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: ReplayRangeRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        for (index, partition) in request.partitions.iter().enumerate() {
            check_partition(&format!("partitions[{index}]"), partition)?;
        }
        let stream = request.stream;
        let extent = self.extent(context, stream).await?;
        let upto = match &request.end {
            None => extent.last,
            Some(ReplayRangeRequestEnd::Until(moment)) => {
                self.before_moment(context, stream, moment_us(moment), &extent).await?
            }
            Some(ReplayRangeRequestEnd::Before(position)) => {
                told("before", position, &extent)?.saturating_sub(1)
            }
        };
        let start = request.start.unwrap_or_default();
        let mut after = self.place(context, stream, &start, &extent).await?;
        let mut left = if request.limit == 0 { u64::MAX } else { request.limit };
        loop {
            let count = left.min(PAGE_ENTRIES_DEFAULT as u64) as usize;
            let (records, at_end) = self.page(context, stream, &mut after, upto, count).await?;
            left -= records.len() as u64;
            let cursor = cursor(context.namespace, stream, after);
            let message = reply::ReplayRangeResponse { records, cursor };
            sink.send(message.encode_to_vec().into()).await?;
            if left == 0 || at_end {
                return Ok(());
            }
            rt::yield_now().await;
        }
    }
}
