//! What a log asks for, answers, and tells about itself.

use std::fmt;

use prism_io::disk::SharedBuffer;

use crate::format::{CHECKPOINT_NAME, segment_name};

/// A file of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileId {
    /// Segment file with this number.
    Segment(u32),
    /// The file of the two checkpoint slots.
    Checkpoint,
}

impl FileId {
    /// Its name in the log's directory.
    pub fn name(self) -> String {
        match self {
            FileId::Segment(file) => segment_name(file),
            FileId::Checkpoint => CHECKPOINT_NAME.to_string(),
        }
    }
}

/// Something to be done with a file; its completion is reported under its token.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Write the whole buffer at the offset; complete when it is durable.
    Write {
        /// For [`Log::handle_completion`].
        token: u64,
        /// The file.
        file: FileId,
        /// Page-aligned offset.
        offset: u64,
        /// Whole pages.
        buffer: SharedBuffer,
    },
    /// Create the file, zero-filled; complete when contents and name are durable. It may take long.
    Create {
        /// For [`Log::handle_completion`].
        token: u64,
        /// The file.
        file: FileId,
        /// Its size.
        bytes: u64,
    },
}

/// What an append was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Number in the log.
    pub lsn: u64,
    /// Number in the lane; 0 for internal records.
    pub lane_seq: u64,
    /// Log time, µs since the Unix epoch.
    pub log_time_us: u64,
}

/// Why nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// The log is full until something is trimmed (`WAL_FULL`); internal records may still fit.
    Full,
    /// Too much is waiting for the disk, or a segment that is still being made; try again when a write has completed.
    Busy,
    /// Key or body is larger than this log takes.
    TooLarge {
        /// Bytes of key and body.
        bytes: usize,
        /// Bytes that are possible.
        bytes_max: usize,
    },
    /// One lane more than this log can remember.
    TooManyLanes,
    /// The log is not open yet, or it is being closed.
    NotOpen,
    /// A write failed; nothing is accepted any more (`WAL_FAILED`).
    Failed,
}

impl fmt::Display for AppendError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AppendError::Full => write!(formatter, "the write-ahead log is full"),
            AppendError::Busy => write!(formatter, "too many writes are waiting for the disk"),
            AppendError::TooLarge { bytes, bytes_max } => {
                write!(formatter, "{bytes} bytes do not fit a record of at most {bytes_max}")
            }
            AppendError::TooManyLanes => {
                write!(formatter, "the write-ahead log cannot remember another lane")
            }
            AppendError::NotOpen => write!(formatter, "the write-ahead log is not open"),
            AppendError::Failed => write!(formatter, "the write-ahead log has failed"),
        }
    }
}

impl std::error::Error for AppendError {}

/// What the log is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The open batch is not durable yet.
    Opening,
    /// Records are accepted.
    Open,
    /// What was accepted is being written, and then the clean close.
    Closing,
    /// Everything is written; nothing more will be.
    Closed,
    /// A write failed.
    Failed,
}

/// Figures for metrics and people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What the log is doing.
    pub state: State,
    /// Epoch of this start.
    pub epoch: u64,
    /// LSN of the next record.
    pub next_lsn: u64,
    /// Every LSN up to this one is durable.
    pub durable_upto: u64,
    /// No LSN up to this one is needed, and a durable batch says so.
    pub trim_upto: u64,
    /// Segments that hold records.
    pub segments_used: usize,
    /// Segments ready to be used.
    pub segments_spare: usize,
    /// Bytes accepted and not yet submitted.
    pub gathered_bytes: usize,
    /// Bytes of batch memory in use: filled, written, or pinned by readers.
    pub pinned_bytes: usize,
    /// Writes in flight.
    pub writes_in_flight: usize,
    /// Whether calls are refused for want of space.
    pub full: bool,
    /// Lanes that ever wrote.
    pub lanes: usize,
    /// Since the start.
    pub counters: Counters,
}

/// Sums since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records accepted, internal ones included.
    pub records: u64,
    /// Batches made durable.
    pub batches: u64,
    /// Bytes of those batches.
    pub batch_bytes: u64,
    /// Sum of the times from submission to completion, µs.
    pub write_us: u64,
    /// Seals written.
    pub seals: u64,
    /// Segments recycled.
    pub recycled: u64,
    /// Segments that could not be created.
    pub create_failures: u64,
    /// Appends refused because the log was full.
    pub refused_full: u64,
}
