//! The write-ahead log of one shard: a record made durable before anybody acts on it.
//!
//! [`Log`] is a state machine without I/O or clock; [`driver`] feeds it to files on the shard's ring; [`recover`] decides
//! what a log directory means after a start; [`inspect`] and [`repair`] serve people. The bytes on disk are described in
//! [`format`]. The crate promises what `design/wal.md` lists as invariants 1, 2, 3, 5, 6, 11 and 12, and never knows what
//! a backend is.

mod again;
mod batch;
mod checkpoint;
mod config;
pub mod driver;
mod epoch;
mod error;
pub mod format;
pub mod inspect;
mod lanes;
mod log;
mod record;
mod recovery;
pub mod repair;
mod replay;
mod scan;
mod segment;
mod survey;

pub use again::read_again;
pub use batch::DurableBatch;
pub use checkpoint::Checkpoint;
pub use config::{ConfigError, LogConfig, WRITES_IN_FLIGHT_MAX};
pub use epoch::EpochEnd;
pub use error::{Damage, LsnRange, RecoverError};
pub use lanes::Lanes;
pub use log::{AppendError, Appended, Counters, FileId, Log, Operation, State, Status};
pub use record::{IDEMPOTENCY_KEY_BYTES_MAX, Lane, Record, RecordHead, RecordKind, Sink};
pub use recovery::{Cut, Recovered, RecoveryReport, recover};
pub use segment::UsedSegment;
