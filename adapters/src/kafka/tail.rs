//! The last record of a partition. The end of a partition tells where the next one will be, not where the last one is: ends of
//! transactions have offsets of their own, and so has what was given up with them.

use std::time::{Duration, Instant};

use rdkafka::message::Message as _;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::cluster::{Bounds, Cluster};
use super::errors::Fault;
use super::pubsub::MESSAGE_ID;
use super::reader::{Found, Reader};
use super::record::own_header;

/// Offsets before the end where the last record is looked for first: it, and the end of its transaction.
const LOOK_BACK: i64 = 2;

/// So much further it is looked back each time that there was none.
const LOOK_BACK_GROWTH: i64 = 8;

/// How long a look waits before it looks at the clock.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// The last record of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) offset: i64,
    pub(super) value: Vec<u8>,
    /// Milliseconds since the epoch.
    pub(super) time_ms: i64,
    /// The identity of an event.
    pub(super) id: Option<String>,
}

/// The last committed record of each partition whose key is wanted, as they were when `bounds` were told; absent where there is
/// none. Blocks.
pub(super) fn last_records(
    cluster: &Cluster,
    reader: &Reader,
    topic: &str,
    bounds: &Bounds,
    is_wanted: impl Fn(Option<&[u8]>) -> bool,
) -> Result<Vec<Option<Last>>, Fault> {
    let until = Instant::now() + cluster.config().answer_timeout;
    let mut last = vec![None; bounds.end.len()];
    // Where each partition was looked at from; those that are done are at their beginning.
    let mut from = bounds.end.clone();
    let mut back = LOOK_BACK;
    loop {
        let mut places = Vec::new();
        for (number, from) in from.iter_mut().enumerate() {
            let first = bounds.first[number];
            if last[number].is_none() && *from > first {
                *from = (bounds.end[number] - back).max(first);
                places.push((number as u32, *from));
            }
        }
        if places.is_empty() {
            return Ok(last);
        }
        reader.go_to(cluster, topic, &places)?;
        let mut left: Vec<u32> = places.iter().map(|place| place.0).collect();
        while !left.is_empty() {
            match reader.look_for(LOOK) {
                Found::Record(record) if record.topic() == topic => {
                    let (number, offset) = (record.partition() as usize, record.offset());
                    let end = bounds.end.get(number).copied().unwrap_or_default();
                    if offset < end && is_wanted(record.key()) {
                        let value = record.payload().unwrap_or_default().to_vec();
                        let time_ms = record.timestamp().to_millis().unwrap_or(0);
                        let id = own_header(&record, MESSAGE_ID);
                        last[number] = Some(Last { offset, value, time_ms, id });
                    }
                    if offset + 1 >= end {
                        left.retain(|one| *one as usize != number);
                    }
                }
                Found::End(partition) => left.retain(|one| *one != partition),
                Found::Failure(error)
                    if error.rdkafka_error_code() == Some(Code::AutoOffsetReset) =>
                {
                    return Err(cluster.fault()(error));
                }
                // It goes on by itself when it can.
                Found::Record(_) | Found::Failure(_) | Found::Nothing => {}
            }
            if Instant::now() > until {
                return Err(Fault::unresponsive(cluster.config().answer_timeout));
            }
        }
        back = back.saturating_mul(LOOK_BACK_GROWTH);
    }
}
