//! What stands in a log directory, for people and their tools. It only reads.

use std::fmt;
use std::io;

use prism_io::disk::Storage;

use crate::checkpoint::Checkpoint;
use crate::config::LogConfig;
use crate::error::RecoverError;
use crate::format::{BatchHeader, CHECKPOINT_NAME, segment_number};
use crate::record::Record;
use crate::recovery::{Recovered, recover};
use crate::scan::{Expected, Records, SegmentReader, read_batch};
use crate::survey::survey;

/// One thing found, in the order of the files.
#[derive(Clone, Debug)]
pub enum Item<'a> {
    /// A checkpoint slot; `None` where it is empty or damaged.
    Slot {
        /// 0 or 1.
        index: usize,
        /// What it says.
        slot: Option<&'a Checkpoint>,
    },
    /// A segment file begins; its batches follow.
    Segment {
        /// File name.
        name: &'a str,
        /// Its length.
        bytes: u64,
        /// The header at its beginning; `None` where it is zero or damaged.
        header: Option<BatchHeader>,
    },
    /// An intact batch; its records follow.
    Batch {
        /// Where it stands in the segment.
        offset: u64,
        /// Its header.
        header: BatchHeader,
    },
    /// A record of that batch.
    Record(Record<'a>),
    /// The segment has no further batch of this use of the file.
    End {
        /// Where reading stopped.
        offset: u64,
        /// What stands there.
        reason: String,
    },
}

impl fmt::Display for Item<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Slot { index, slot: None } => {
                write!(formatter, "checkpoint slot {index}: empty or damaged")
            }
            Item::Slot { index, slot: Some(slot) } => write!(
                formatter,
                "checkpoint slot {index}: sequence {}, epoch {}, durable up to {}, trimmed up to {}, {} bytes of data{}",
                slot.sequence,
                slot.epoch,
                slot.durable_upto,
                slot.trim_upto,
                slot.data.len(),
                if slot.clean { ", closed cleanly" } else { "" }
            ),
            Item::Segment { name, bytes, header: None } => {
                write!(formatter, "{name}: {bytes} bytes, no batch at its beginning")
            }
            Item::Segment { name, bytes, header: Some(header) } => write!(
                formatter,
                "{name}: {bytes} bytes, shard {}, epoch {}, activation {}, from LSN {}",
                header.shard, header.epoch, header.segment_seq, header.first_lsn
            ),
            Item::Batch { offset, header } => write!(
                formatter,
                "  batch at {offset}: LSN {} to {}, {} bytes, durable up to {}, trimmed up to {}{}",
                header.first_lsn,
                header.last_lsn(),
                header.bytes,
                header.durable_upto,
                header.trim_upto,
                if header.is_open() { ", opens the epoch" } else { "" }
            ),
            Item::Record(record) => {
                let head = &record.head;
                write!(formatter, "    {} {:?}", record.lsn, record.kind)?;
                if !record.kind.is_own() {
                    write!(
                        formatter,
                        " namespace {} partition {} number {} method {} (semantics {}, plan {})",
                        head.lane.namespace,
                        head.lane.partition,
                        record.lane_seq,
                        head.method,
                        head.semantics,
                        head.plan_generation
                    )?;
                }
                if !head.idempotency_key.is_empty() {
                    write!(formatter, " key {}", head.idempotency_key.escape_ascii())?;
                }
                write!(formatter, ", at {} µs, {} bytes", record.log_time_us, record.body.len())
            }
            Item::End { offset, reason } => write!(formatter, "  ends at {offset}: {reason}"),
        }
    }
}

/// Goes through checkpoint slots, segments, batches and records.
pub fn inspect(
    storage: &mut dyn Storage,
    config: &LogConfig,
    sink: &mut dyn FnMut(Item<'_>),
) -> Result<(), RecoverError> {
    let survey = survey(storage, config)?;
    for (index, slot) in survey.slots.iter().enumerate() {
        sink(Item::Slot { index, slot: slot.as_ref() });
    }
    for file in &survey.files {
        sink(Item::Segment { name: &file.name, bytes: file.bytes, header: file.header() });
        if let Some(header) = file.header() {
            inspect_segment(storage, &file.name, &header, sink)
                .map_err(|error| RecoverError::Read { file: file.name.clone(), error })?;
        }
    }
    Ok(())
}

fn inspect_segment(
    storage: &mut dyn Storage,
    name: &str,
    first: &BatchHeader,
    sink: &mut dyn FnMut(Item<'_>),
) -> io::Result<()> {
    let mut reader = SegmentReader::open(storage, name)?;
    let (nonce, epoch, segment_seq) = (first.nonce, first.epoch, first.segment_seq);
    let mut expected =
        Expected { nonce, epoch, segment_seq, first_lsn: first.first_lsn, chain_crc: None };
    let mut offset = 0;
    loop {
        let (header, crc, body) = match read_batch(&mut reader, offset, &expected)? {
            Ok(batch) => batch,
            Err(fault) => {
                sink(Item::End { offset, reason: fault.to_string() });
                return Ok(());
            }
        };
        sink(Item::Batch { offset, header });
        for record in Records::new(&header, body).map_while(|record| record) {
            sink(Item::Record(record));
        }
        expected.first_lsn = header.last_lsn() + 1;
        expected.chain_crc = Some(crc);
        offset += header.padded_bytes() as u64;
    }
}

/// Does what a start would do, without changing anything: every batch is read and every decision of the recovery table
/// is made.
pub fn verify(storage: &mut dyn Storage, config: &LogConfig) -> Result<Recovered, RecoverError> {
    recover(storage, config, &mut |_: &Record<'_>| {})
}

/// Whether the name is that of a file of a log.
pub fn is_log_file(name: &str) -> bool {
    name == CHECKPOINT_NAME || segment_number(name).is_some()
}

#[cfg(test)]
mod tests {
    use prism_io::disk::sim::Simulation;

    use super::*;
    use crate::record::RecordHead;

    #[test]
    fn everything_that_was_written_is_shown() {
        let mut disk = Simulation::new(1_000);
        let config = LogConfig {
            segment_bytes: 64 << 10,
            batch_bytes: 4096,
            record_bytes_max: 4096,
            checkpoint_bytes_max: 64,
            lanes_max: 8,
            ..LogConfig::default()
        };
        let recovered = recover(&mut disk, &config, &mut |_: &Record<'_>| {}).unwrap();
        let mut log =
            crate::driver::start(&mut disk, recovered, config.clone(), [7; 16], 1_000).unwrap();
        let head = RecordHead { idempotency_key: b"order-1", method: 3, ..RecordHead::default() };
        log.append(1_000, &head, b"hello").unwrap();
        log.close(1_000);
        while let Some(operation) = log.poll_operation(1_000) {
            let (token, result) = crate::driver::execute(&mut disk, &operation);
            log.handle_completion(token, result, 1_000);
        }
        let mut text = String::new();
        inspect(&mut disk, &config, &mut |item| text += &format!("{item}\n")).unwrap();
        let expected = "\
checkpoint slot 0: sequence 2, epoch 1, durable up to 4, trimmed up to 0, 0 bytes of data, closed cleanly
checkpoint slot 1: sequence 1, epoch 1, durable up to 2, trimmed up to 0, 0 bytes of data
segment-00000000.wal: 65536 bytes, shard 0, epoch 1, activation 1, from LSN 1
  batch at 0: LSN 1 to 2, 368 bytes, durable up to 0, trimmed up to 0, opens the epoch
    1 Open, at 1000 µs, 80 bytes
    2 Lanes, at 1000 µs, 0 bytes
  batch at 4096: LSN 3 to 4, 304 bytes, durable up to 2, trimmed up to 0
    3 Data namespace 0 partition 0 number 1 method 3 (semantics 0, plan 0) key order-1, at 1000 µs, 5 bytes
    4 Close, at 1000 µs, 0 bytes
  ends at 8192: zero
";
        assert_eq!(text, expected);
        assert!(verify(&mut disk, &config).unwrap().report.clean);
        assert!(
            is_log_file(CHECKPOINT_NAME)
                && is_log_file("segment-00000000.wal")
                && !is_log_file("LOCK")
        );
    }
}
