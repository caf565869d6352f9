//! What makes a StreamService request valid, on every backend.

use std::collections::HashSet;

use prism_proto::view::stream::{
    AcknowledgeRequest, AppendBatchRequest, AppendRequest, AppendToPartitionRequest,
    CompactRequest, CreateConsumerGroupRequest, DeleteConsumerGroupRequest,
    GetConsumerGroupInfoRequest, GetLatestOffsetRequest, GetPartitionsRequest, GetRetentionRequest,
    JoinConsumerGroupRequest, NewRecord, ReadRequest, ReplayRangeRequest, ReplayRangeRequestEnd,
    SeekToOffsetRequest, SeekToTimestampRequest, SetRetentionRequest,
};
use prism_proto::view::types::{Position, Start};

use super::Check;
use super::keyvalue_checks::check_count;
use super::message_checks::{
    check_content_type, check_lease, check_pairs, check_position, check_receipts, check_size,
    check_span, check_start,
};
use crate::error::Error;
use crate::limits::{
    BATCH_ITEMS_MAX, Limits, PARTITIONS_MAX, RETENTION_MAX_MS, check_batch_count, check_key,
    timestamp_ms,
};
use crate::topic::check_name;

fn check_record(field: &str, record: &NewRecord<'_>, limits: &Limits) -> Result<(), Error> {
    let place = |name: &str| format!("{field}.{name}");
    if let Some(key) = record.key {
        check_key(&place("key"), key)?;
    }
    check_content_type(field, record.content_type)?;
    let pairs = record.attributes.iter().map(|one| (one.key, one.value));
    let attribute_bytes = check_pairs(field, record.attributes.len(), pairs)?;
    if record.tombstone && (record.key.is_none() || !record.value.is_empty()) {
        let expected = "needs a key and an empty value";
        return Err(Error::field("TOMBSTONE_INVALID", place("tombstone"), expected));
    }
    let beside = record.key.map_or(0, str::len) + record.content_type.len() + attribute_bytes;
    check_size(field, "value", beside, record.value, limits)
}

fn check_append(
    stream: &str,
    record: Option<NewRecord<'_>>,
    expected_last: Option<Position<'_>>,
    limits: &Limits,
) -> Result<(), Error> {
    check_name("stream", stream)?;
    if let Some(position) = &expected_last {
        check_position("expected_last", position)?;
    }
    let Some(record) = record else {
        return Err(Error::field(
            "RECORD_MISSING",
            "record",
            "must be given; its value may be empty",
        ));
    };
    check_record("record", &record, limits)
}

impl Check for AppendRequest<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        check_append(self.stream, self.record, self.expected_last, limits)
    }
}

impl Check for AppendToPartitionRequest<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        check_append(self.stream, self.record, self.expected_last, limits)
    }
}

impl Check for AppendBatchRequest<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        check_name("stream", self.stream)?;
        check_batch_count("records", self.records.len())?;
        for (index, record) in self.records.iter().enumerate() {
            check_record(&format!("records[{index}]"), &record, limits)?;
        }
        Ok(())
    }
}

fn check_mandatory_start(start: Option<Start<'_>>) -> Result<(), Error> {
    check_start(&start.unwrap_or_default())
}

impl Check for ReadRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("stream", self.stream)?;
        check_count("partitions", self.partitions.len(), PARTITIONS_MAX)?;
        check_mandatory_start(self.start)
    }
}

impl Check for ReplayRangeRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("stream", self.stream)?;
        check_count("partitions", self.partitions.len(), PARTITIONS_MAX)?;
        match &self.end {
            None => {}
            Some(ReplayRangeRequestEnd::Until(time)) => {
                timestamp_ms("until", time)?;
            }
            Some(ReplayRangeRequestEnd::Before(position)) => check_position("before", position)?,
        }
        check_mandatory_start(self.start)
    }
}

impl Check for GetLatestOffsetRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("stream", self.stream)
    }
}

fn check_group(stream: &str, group: &str) -> Result<(), Error> {
    check_name("stream", stream)?;
    check_name("group", group)
}

impl Check for CreateConsumerGroupRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_group(self.stream, self.group)?;
        self.start.map_or(Ok(()), |start| check_start(&start))?;
        if self.sharing().is_none() {
            let expected = format!("{} is no known way of sharing", self.sharing);
            return Err(Error::field("SHARING_UNKNOWN", "sharing", expected));
        }
        check_lease("ack_wait", self.ack_wait)
    }
}

impl Check for DeleteConsumerGroupRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_group(self.stream, self.group)
    }
}

impl Check for JoinConsumerGroupRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_group(self.stream, self.group)?;
        if self.member.is_empty() { Ok(()) } else { check_name("member", self.member) }
    }
}

impl Check for AcknowledgeRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_group(self.stream, self.group)?;
        check_receipts(self.receipts.iter())
    }
}

impl Check for GetConsumerGroupInfoRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_group(self.stream, self.group)
    }
}

impl Check for SeekToOffsetRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_group(self.stream, self.group)?;
        let positions = self.positions;
        if positions.is_empty() {
            return Err(Error::field("BATCH_EMPTY", "positions", "must not be empty"));
        }
        check_count("positions", positions.len(), BATCH_ITEMS_MAX)?;
        let mut seen = HashSet::with_capacity(positions.len());
        for (index, position) in positions.iter().enumerate() {
            let field = format!("positions[{index}]");
            check_position(&field, &position)?;
            if !seen.insert(position.partition) {
                let expected = "every partition may stand there only once";
                return Err(Error::field("DUPLICATE_PARTITION", field, expected));
            }
        }
        Ok(())
    }
}

impl Check for SeekToTimestampRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_group(self.stream, self.group)?;
        match &self.timestamp {
            Some(time) => timestamp_ms("timestamp", time).map(drop),
            None => Err(Error::field("TIME_MISSING", "timestamp", "must be given")),
        }
    }
}

impl Check for SetRetentionRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("stream", self.stream)?;
        let Some(retention) = &self.retention else {
            return Err(Error::field("RETENTION_MISSING", "retention", "must be given"));
        };
        if let Some(age) = &retention.max_age {
            check_span("retention.max_age", age, 1000, RETENTION_MAX_MS)?;
        }
        for (field, value) in [
            ("retention.max_bytes", retention.max_bytes),
            ("retention.max_records", retention.max_records),
        ] {
            if value == Some(0) {
                return Err(Error::field("RETENTION_INVALID", field, "must be at least 1"));
            }
        }
        Ok(())
    }
}

impl Check for GetRetentionRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("stream", self.stream)
    }
}

impl Check for CompactRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("stream", self.stream)
    }
}

impl Check for GetPartitionsRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("stream", self.stream)
    }
}
