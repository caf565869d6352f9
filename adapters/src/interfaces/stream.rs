//! The five interfaces of StreamService.
//!
//! What the methods mean stands in `prism/stream/v1/stream.proto`; the conformance suite holds every backend to it. A
//! stream that tails sends only as fast as its [`PageSink`] takes, and waits for news with [`PageSink::wait`]. Offsets are decimal
//! numbers or anything else that increases; callers hand them back as they are.

use prism_proto::catalogue::{Interface, Method};
use prism_proto::view::stream::{
    AcknowledgeRequest, AppendBatchRequest, AppendRequest, AppendToPartitionRequest,
    CompactRequest, CreateConsumerGroupRequest, DeleteConsumerGroupRequest,
    GetConsumerGroupInfoRequest, GetLatestOffsetRequest, GetPartitionsRequest, GetRetentionRequest,
    JoinConsumerGroupRequest, ReadRequest, ReplayRangeRequest, SeekToOffsetRequest,
    SeekToTimestampRequest, SetRetentionRequest,
};

use super::{Check, malformed};
use crate::backend::wrong_shape;
use crate::call::{Context, PageSink, Reply};
use crate::error::Error;
use crate::limits::Limits;

interface! {
    /// Records that stay.
    stream_basic: StreamBasic {
        unary STREAM_APPEND => append(AppendRequest) -> AppendResponse;
        unary STREAM_APPEND_BATCH => append_batch(AppendBatchRequest) -> AppendBatchResponse;
        unary STREAM_GET_LATEST_OFFSET => get_latest_offset(GetLatestOffsetRequest) -> GetLatestOffsetResponse;
        stream STREAM_READ => read(ReadRequest) -> ReadResponse;
    }
}

interface! {
    /// Consumers that share a stream's records. Where the backend's state is the log, a rebalance is written as a record of
    /// JoinConsumerGroup.
    stream_consumer_groups: StreamConsumerGroups {
        unary STREAM_CREATE_CONSUMER_GROUP => create_consumer_group(CreateConsumerGroupRequest) -> CreateConsumerGroupResponse;
        unary STREAM_DELETE_CONSUMER_GROUP => delete_consumer_group(DeleteConsumerGroupRequest) -> DeleteConsumerGroupResponse;
        unary STREAM_ACKNOWLEDGE => acknowledge(AcknowledgeRequest) -> AcknowledgeResponse;
        unary STREAM_GET_CONSUMER_GROUP_INFO => get_consumer_group_info(GetConsumerGroupInfoRequest) -> GetConsumerGroupInfoResponse;
        stream STREAM_JOIN_CONSUMER_GROUP => join_consumer_group(JoinConsumerGroupRequest) -> JoinConsumerGroupResponse;
        record STREAM_JOIN_CONSUMER_GROUP => rebalance;
    }
}

interface! {
    /// The past again.
    stream_replay: StreamReplay {
        unary STREAM_SEEK_TO_OFFSET => seek_to_offset(SeekToOffsetRequest) -> SeekToOffsetResponse;
        unary STREAM_SEEK_TO_TIMESTAMP => seek_to_timestamp(SeekToTimestampRequest) -> SeekToTimestampResponse;
        stream STREAM_REPLAY_RANGE => replay_range(ReplayRangeRequest) -> ReplayRangeResponse;
    }
}

interface! {
    /// How long records stay.
    stream_retention: StreamRetention {
        unary STREAM_SET_RETENTION => set_retention(SetRetentionRequest) -> SetRetentionResponse;
        unary STREAM_GET_RETENTION => get_retention(GetRetentionRequest) -> GetRetentionResponse;
        unary STREAM_COMPACT => compact(CompactRequest) -> CompactResponse;
    }
}

interface! {
    /// The partitions by their numbers.
    stream_partitioning: StreamPartitioning {
        unary STREAM_GET_PARTITIONS => get_partitions(GetPartitionsRequest) -> GetPartitionsResponse;
        unary STREAM_APPEND_TO_PARTITION => append_to_partition(AppendToPartitionRequest) -> AppendToPartitionResponse;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_catalogue_is_declared_once() {
        super::super::assert_declared(&[
            (stream_basic::INTERFACE, stream_basic::METHODS),
            (stream_consumer_groups::INTERFACE, stream_consumer_groups::METHODS),
            (stream_replay::INTERFACE, stream_replay::METHODS),
            (stream_retention::INTERFACE, stream_retention::METHODS),
            (stream_partitioning::INTERFACE, stream_partitioning::METHODS),
        ]);
    }
}
