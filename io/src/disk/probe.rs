//! How a write becomes durable fastest here: measured, not assumed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::{AlignedMemory, PAGE_BYTES};

/// Writes of each method at most.
const ROUNDS_MAX: usize = 12;
/// The probe ends after this long, once each method had [`ROUNDS_MIN`] writes.
const TIME_MAX: Duration = Duration::from_millis(20);
/// Writes of each method at least.
const ROUNDS_MIN: usize = 3;

/// How a write is made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMethod {
    /// The file is open with O_DSYNC: a write that returns is durable.
    DsyncWrite,
    /// A write, then fdatasync.
    WriteThenDatasync,
}

impl SyncMethod {
    /// The name that an operator sees.
    pub fn name(self) -> &'static str {
        match self {
            SyncMethod::DsyncWrite => "O_DSYNC write",
            SyncMethod::WriteThenDatasync => "write + fdatasync",
        }
    }
}

/// What the probe of a data directory found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncProbe {
    /// The faster method, or the one that was asked for.
    pub method: SyncMethod,
    /// Median of one 4 KiB O_DSYNC write, microseconds.
    pub dsync_us: u64,
    /// Median of one 4 KiB write and its fdatasync, microseconds.
    pub datasync_us: u64,
}

impl SyncProbe {
    /// Median of the chosen method, microseconds.
    pub fn latency_us(&self) -> u64 {
        match self.method {
            SyncMethod::DsyncWrite => self.dsync_us,
            SyncMethod::WriteThenDatasync => self.datasync_us,
        }
    }
}

/// Times both methods in turns on a file that is open twice: `dsync` with O_DSYNC, `plain` without.
pub(super) fn measure(dsync: &File, plain: &File) -> io::Result<SyncProbe> {
    let page = AlignedMemory::zeroed(PAGE_BYTES);
    // The first writes allocate blocks and are not what a log that reuses its segments sees.
    dsync.write_all_at(&page, 0)?;
    let start = Instant::now();
    let (mut dsync_us, mut datasync_us) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS_MAX {
        if round >= ROUNDS_MIN && start.elapsed() > TIME_MAX {
            break;
        }
        dsync_us.push(timed_us(|| dsync.write_all_at(&page, 0))?);
        datasync_us.push(timed_us(|| {
            plain.write_all_at(&page, 0)?;
            plain.sync_data()
        })?);
    }
    let (dsync_us, datasync_us) = (median(&mut dsync_us), median(&mut datasync_us));
    // O_DSYNC costs one system call less, so the other one must win clearly.
    let method = if datasync_us * 5 < dsync_us * 4 {
        SyncMethod::WriteThenDatasync
    } else {
        SyncMethod::DsyncWrite
    };
    Ok(SyncProbe { method, dsync_us, datasync_us })
}

fn timed_us(operation: impl FnOnce() -> io::Result<()>) -> io::Result<u64> {
    let start = Instant::now();
    operation()?;
    Ok(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX))
}

fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}
