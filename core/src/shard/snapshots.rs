//! Snapshots of the shard's store: what lets its log be trimmed, and makes a restart short.
//!
//! One is taken when the log has grown by so many bytes, or so much time has passed, since the last; after a start that had
//! to replay; and whenever the log fills half of the segments that it may have (each start takes a fresh one, so that many
//! starts fill a log without a single write). It is cut between two turns of the loop, when every record up to its LSN is
//! applied and none after it, and written piece by piece beside the ordinary work. Two are kept; the log is trimmed up to
//! the older.

use std::fmt;
use std::time::Duration;

use prism_adapters::memory::{
    Memstore, MemstoreLimits, RestoreError, SnapshotError, SnapshotFacts, SnapshotFiles,
};
use prism_io::{clock, rt};

use super::run::Launch;
use super::{Shard, log_config};

/// The folder of a shard's snapshots.
pub(crate) const SNAPSHOTS_FOLDER: &str = "snapshots";
/// How often it is asked whether a snapshot is due.
const TICK: Duration = Duration::from_millis(200);
/// How long to wait after a snapshot that failed.
const FAILED_PAUSE: Duration = Duration::from_secs(5);

/// What was found at start.
pub(super) struct Found {
    files: SnapshotFiles,
    /// The records up to here are in the store.
    pub(super) lsn: u64,
    /// The records up to here are in the older snapshot.
    pub(super) older_lsn: u64,
    /// Log time of the last of those records.
    pub(super) time_us: u64,
}

/// Why no snapshot could be used.
#[derive(Debug)]
pub(crate) enum SnapshotsError {
    /// They could not be read, or none is good.
    Restore(RestoreError),
    /// The log begins after what the newest good snapshot holds.
    Gap { snapshot_lsn: u64, first_lsn: u64 },
    /// The log ends before what the newest snapshot holds.
    Ahead { snapshot_lsn: u64, last_lsn: u64 },
}

impl fmt::Display for SnapshotsError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restore(error) => error.fmt(formatter),
            Self::Ahead { snapshot_lsn, last_lsn } => write!(
                formatter,
                "the newest snapshot holds everything up to record {snapshot_lsn}, but the log ends at record {last_lsn}: it is \
                 not the log that belongs to it; restore the data directory from a backup"
            ),
            Self::Gap { snapshot_lsn, first_lsn } => write!(
                formatter,
                "the log begins at record {first_lsn}, but the newest good snapshot ends at record {snapshot_lsn}: what is \
                 between them is missing; restore the data directory from a backup"
            ),
        }
    }
}

/// The store of the newest good snapshot of the shard that is being launched, or an empty one.
pub(super) fn restore(
    launch: &Launch,
    limits: MemstoreLimits,
) -> Result<(Memstore, Found), SnapshotsError> {
    let folder = launch.directory.join(SNAPSHOTS_FOLDER);
    let files =
        SnapshotFiles::open(&folder, launch.index as u32).map_err(SnapshotsError::Restore)?;
    let Some(restored) = files.restore(limits).map_err(SnapshotsError::Restore)? else {
        return Ok((Memstore::new(limits), Found { files, lsn: 0, older_lsn: 0, time_us: 0 }));
    };
    for (path, error) in &restored.damaged {
        tracing::error!(
            shard = launch.index,
            "snapshot {} is damaged and was set aside: {error}",
            path.display()
        );
    }
    let found = Found {
        files,
        lsn: restored.facts.lsn,
        older_lsn: restored.older_lsn,
        time_us: restored.facts.log_time_us,
    };
    Ok((restored.memstore, found))
}

/// Takes a shard's snapshots.
pub(super) struct Snapshots {
    files: SnapshotFiles,
    lsn: u64,
    shard: u32,
    interval_ns: u64,
    bytes: u64,
    segments_max: usize,
    /// Tells the records of [`Snapshots::step_on`] apart.
    steps: u64,
}

impl Snapshots {
    /// Of the shard that is being launched, going on from what was found.
    pub(super) fn new(launch: &Launch, found: Found) -> Self {
        let memory = &launch.config.memory;
        Self {
            files: found.files,
            lsn: found.lsn,
            shard: launch.index as u32,
            interval_ns: u64::try_from(memory.snapshot_interval.as_nanos()).unwrap_or(u64::MAX),
            bytes: memory.snapshot_bytes,
            segments_max: log_config(&launch.config, launch.index, launch.shards).segments_max
                as usize,
            steps: 0,
        }
    }

    /// Takes snapshots for ever.
    pub(super) async fn run(&mut self, shard: &Shard) {
        let (mut last_ns, mut last_bytes) =
            (clock::monotonic_ns(), shard.metrics.wal.append_bytes.get());
        let mut first = true;
        loop {
            if !first {
                rt::sleep(TICK).await;
            }
            let (now_ns, bytes) = (clock::monotonic_ns(), shard.metrics.wal.append_bytes.get());
            let grown = now_ns - last_ns >= self.interval_ns || bytes - last_bytes >= self.bytes;
            let changed = shard.log.applied_data_lsn() > self.lsn;
            let full = 2 * shard.log.writer().status().segments_used >= self.segments_max;
            let after_start = std::mem::take(&mut first);
            let due =
                changed && (grown || after_start) || full && shard.log.applied_lsn() > self.lsn;
            if !due {
                if full && self.lsn > 0 && self.lsn >= shard.log.applied_lsn() {
                    self.step_on(shard);
                }
                continue;
            }
            match self.take(shard).await {
                Ok(()) => {
                    shard.metrics.store.snapshots.increment();
                    (last_ns, last_bytes) = (now_ns, bytes);
                }
                Err(error) => {
                    shard.metrics.store.snapshots_failed.increment();
                    tracing::error!(
                        shard = self.shard,
                        "a snapshot failed, the log is kept until one succeeds: {error}"
                    );
                    rt::sleep(FAILED_PAUSE).await;
                }
            }
        }
    }

    /// Writes a record of no effect, so that a second snapshot of the same state can have an LSN of its own.
    ///
    /// The log is trimmed up to the older of two snapshots. When it is full, no call moves it on; without this the first
    /// snapshot would stay the only one, and the log full for ever.
    fn step_on(&mut self, shard: &Shard) {
        let writer = shard.log.writer();
        self.steps += 1;
        // What has room for nothing else has room for this; where it fails all the same, the next tick tries again.
        let _ = writer.trim(writer.status().trim_upto, &self.steps.to_le_bytes());
    }

    async fn take(&mut self, shard: &Shard) -> Result<(), SnapshotError> {
        let lsn = shard.log.applied_lsn();
        let facts = SnapshotFacts {
            shard: self.shard,
            lsn,
            log_time_us: shard.log.time_us(clock::wall_us()),
            ..Default::default()
        };
        let snapshot = shard.store.snapshot(&facts)?;
        let needed_from = self.files.write(snapshot, shard.log.writer().directory()).await?;
        self.lsn = lsn;
        if needed_from > 0 {
            shard.log.note_snapshotted(needed_from);
            // A log that is full or closing keeps its records: that costs space, not safety.
            let upto = needed_from.min(shard.lanes.trimmable_lsn());
            if let Err(error) = shard.log.writer().trim(upto, &[]) {
                tracing::warn!(shard = self.shard, ?error, "the log was not trimmed");
            }
        }
        Ok(())
    }
}
