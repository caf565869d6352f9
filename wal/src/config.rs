//! The limits of one log, checked against each other once.

use std::fmt;

use prism_io::disk::{PAGE_BYTES, page_ceiling};

use crate::format::{BATCH_HEADER_BYTES, CHECKPOINT_HEADER_BYTES, LANE_ENTRY_BYTES};
use crate::record::{IDEMPOTENCY_KEY_BYTES_MAX, record_bytes};

/// Writes in flight at most, whatever the configuration says.
pub const WRITES_IN_FLIGHT_MAX: usize = 2;

/// How one log is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Shard whose log this is.
    pub shard: u16,
    /// Bytes of a segment file; fixed for the life of the log.
    pub segment_bytes: u64,
    /// Segment files at most: the size of the log. A start may exceed it by one.
    pub segments_max: u32,
    /// Spare segments kept ready, of which [`LogConfig::segments_internal`] are for internal records alone.
    pub segments_ready: u32,
    /// The low-water mark: with fewer spare segments than this a new segment is not opened for calls.
    pub segments_internal: u32,
    /// Bytes that a batch gathers before the next one is begun (one record may be larger).
    pub batch_bytes: usize,
    /// Bytes of key and body of one record at most.
    pub record_bytes_max: usize,
    /// Bytes gathered and not yet submitted at most; beyond, appends are refused as [`crate::AppendError::Busy`].
    pub gather_bytes_max: usize,
    /// How long a batch may wait for company while no write is in flight, µs.
    pub batch_window_us: u64,
    /// Writes in flight, 1 or 2.
    pub writes_in_flight_max: usize,
    /// After this long without a write, a seal proves the last batch, µs.
    pub seal_after_us: u64,
    /// After this long a segment that could not be created (disk full) is tried again, µs.
    pub space_retry_us: u64,
    /// Bytes of the caller's checkpoint data at most.
    pub checkpoint_bytes_max: usize,
    /// Lanes that may ever have written to this log.
    pub lanes_max: usize,
    /// The newest semantics version that this build can replay.
    pub semantics_max: u8,
    /// Free batch buffers that are kept.
    pub buffers_kept_max: usize,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig {
            shard: 0,
            segment_bytes: 64 << 20,
            segments_max: 32,
            segments_ready: 3,
            segments_internal: 1,
            batch_bytes: 256 << 10,
            record_bytes_max: 8 << 20,
            gather_bytes_max: 16 << 20,
            batch_window_us: 0,
            writes_in_flight_max: 1,
            seal_after_us: 50_000,
            space_retry_us: 1_000_000,
            checkpoint_bytes_max: 64 << 10,
            lanes_max: 16 << 10,
            semantics_max: 1,
            buffers_kept_max: 4,
        }
    }
}

/// Limits that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(pub String);

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "write-ahead log configuration: {}", self.0)
    }
}

impl std::error::Error for ConfigError {}

impl LogConfig {
    /// Whether the limits fit together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |text: String| Err(ConfigError(text));
        if self.segment_bytes == 0 || !self.segment_bytes.is_multiple_of(PAGE_BYTES as u64) {
            return refuse(format!(
                "segment size {} is not a multiple of {PAGE_BYTES}",
                self.segment_bytes
            ));
        }
        if self.segment_bytes > u64::from(u32::MAX) {
            return refuse(format!("segment size {} is not below 4 GiB", self.segment_bytes));
        }
        if !(1..=WRITES_IN_FLIGHT_MAX).contains(&self.writes_in_flight_max) {
            return refuse(format!(
                "{} writes in flight; 1 or 2 are possible",
                self.writes_in_flight_max
            ));
        }
        if self.segments_internal < 1 || self.segments_ready <= self.segments_internal {
            return refuse(
                "at least one segment is for internal records, and more than those are kept ready"
                    .into(),
            );
        }
        if self.segments_max < self.segments_ready + 2 {
            return refuse(format!(
                "{} segments at most leave no room beside {} ready ones; at least {} are needed",
                self.segments_max,
                self.segments_ready,
                self.segments_ready + 2
            ));
        }
        let needed =
            page_ceiling(self.first_batch_bytes(self.largest_record_bytes())) + self.vital_bytes();
        if needed as u64 > self.segment_bytes / 2 {
            return refuse(format!(
                "a record of {} bytes, {} lanes and {} bytes of checkpoint do not fit half a segment of {} bytes",
                self.record_bytes_max,
                self.lanes_max,
                self.checkpoint_bytes_max,
                self.segment_bytes
            ));
        }
        if self.gather_bytes_max < self.record_bytes_max + self.batch_bytes {
            return refuse("the gathering bound is below one record and one batch".into());
        }
        Ok(())
    }

    fn largest_record_bytes(&self) -> usize {
        record_bytes(
            IDEMPOTENCY_KEY_BYTES_MAX,
            self.record_bytes_max.max(self.checkpoint_bytes_max + 8),
        )
    }

    /// Bytes of a segment's first batch that holds the lane table and `record` bytes.
    fn first_batch_bytes(&self, record: usize) -> usize {
        BATCH_HEADER_BYTES + record_bytes(0, (self.lanes_max + 1) * LANE_ENTRY_BYTES) + record
    }

    /// Bytes at the end of the very last segment that only trims and the clean close may use: without them a full log
    /// could never be trimmed.
    pub(crate) fn vital_bytes(&self) -> usize {
        const VITAL_BATCHES: usize = 4;
        VITAL_BATCHES
            * page_ceiling(BATCH_HEADER_BYTES + record_bytes(0, self.checkpoint_bytes_max + 8))
    }

    /// Bytes of one of the two checkpoint slots.
    pub(crate) fn slot_bytes(&self) -> usize {
        page_ceiling(CHECKPOINT_HEADER_BYTES + self.checkpoint_bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_fit_together() {
        assert_eq!(LogConfig::default().validate(), Ok(()));
    }

    #[test]
    fn contradictions_are_refused() {
        let refused = |change: fn(&mut LogConfig)| {
            let mut config = LogConfig::default();
            change(&mut config);
            assert!(config.validate().is_err());
        };
        refused(|config| config.segment_bytes = 5000);
        refused(|config| config.segment_bytes = 4 << 20);
        refused(|config| config.segment_bytes = 8 << 30);
        refused(|config| config.writes_in_flight_max = 3);
        refused(|config| config.segments_max = 4);
        refused(|config| config.segments_internal = 0);
        refused(|config| config.gather_bytes_max = 1 << 20);
    }
}
