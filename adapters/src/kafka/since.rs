//! The first record that is not older than a moment. A broker's answer may be before it: the ends of transactions have times of their
//! own, later than those of logged records that have waited for their lane.

use std::time::Instant;

use rdkafka::message::Message as _;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::cluster::{Bounds, Cluster};
use super::errors::Fault;
use super::reader::{Found, Reader};
use super::tail::LOOK;

/// Moves `bounds.since`, as a broker has told it of this moment, on to records that are not older, or to the end. Blocks.
pub(super) fn pass_older(
    cluster: &Cluster,
    reader: &Reader,
    topic: &str,
    bounds: &mut Bounds,
    since_ms: i64,
) -> Result<(), Fault> {
    let numbered = (0_u32..).zip(bounds.since.iter().copied());
    let places: Vec<_> = numbered
        .zip(&bounds.end)
        .filter(|((_, since), end)| since < *end)
        .map(|one| one.0)
        .collect();
    if places.is_empty() {
        return Ok(());
    }
    reader.go_to(cluster, topic, &places)?;
    let mut left: Vec<u32> = places.iter().map(|place| place.0).collect();
    let until = Instant::now() + cluster.config().answer_timeout;
    while !left.is_empty() {
        match reader.look_for(LOOK) {
            Found::Record(record) if record.topic() == topic => {
                let (partition, offset) = (record.partition() as u32, record.offset());
                let number = partition as usize;
                if !left.contains(&partition) || offset < bounds.since[number] {
                    continue;
                }
                let is_older = record.timestamp().to_millis().is_some_and(|ms| ms < since_ms);
                let end = bounds.end[number];
                bounds.since[number] = if is_older { offset + 1 } else { offset }.min(end);
                if !is_older || bounds.since[number] >= end {
                    left.retain(|one| *one != partition);
                }
            }
            Found::End(partition) => {
                if left.contains(&partition) {
                    bounds.since[partition as usize] = bounds.end[partition as usize];
                    left.retain(|one| *one != partition);
                }
            }
            Found::Failure(error) if error.rdkafka_error_code() == Some(Code::AutoOffsetReset) => {
                return Err(cluster.fault()(error));
            }
            // It goes on by itself when it can.
            Found::Record(_) | Found::Failure(_) | Found::Nothing => {}
        }
        if Instant::now() > until {
            return Err(Fault::unresponsive(cluster.config().answer_timeout));
        }
    }
    Ok(())
}
