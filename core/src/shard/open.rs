//! Opening a shard's data: the newest good snapshot, then every record of the log after it.

use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;

use prism_adapters::memory::{Erasure, Memstore, MemstoreLimits};
use prism_adapters::{Error, Reply};
use prism_io::disk::{self, DirectoryOptions, SyncMethod};
use prism_wal::driver::{Writer, holds_log};
use prism_wal::{IDEMPOTENCY_KEY_BYTES_MAX, LogConfig, Record, RecordKind, RecoveryReport, Sink};

use super::Log;
use super::lanes::FoundLanes;
use super::log::Held;
use super::run::Launch;
use super::snapshots::{self, Found, SnapshotsError};
use crate::config::{self, Config};
use crate::request::{self, SEMANTICS, Target, logged};

/// The folder of a shard's log.
pub(crate) const LOG_FOLDER: &str = "wal";

/// Why a shard's data could not be opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// The log was refused or could not be read.
    Log(prism_wal::driver::OpenError),
    /// The log has disappeared.
    Missing(PathBuf),
    /// No snapshot is good, or none reaches back to the beginning of the log.
    Snapshots(SnapshotsError),
    /// A record could not be applied again.
    Replay { lsn: u64, error: Error },
}

impl fmt::Display for OpenError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log(error) => error.fmt(formatter),
            Self::Missing(path) => write!(
                formatter,
                "the log in {} is missing, although this shard has served before; is its disk mounted? Restore the data \
                 directory from a backup",
                path.display()
            ),
            Self::Snapshots(error) => error.fmt(formatter),
            Self::Replay { lsn, error } => write!(
                formatter,
                "record {lsn} of the log cannot be applied: {error}; start the version of Prism that wrote it"
            ),
        }
    }
}

/// What a shard starts with.
pub(super) struct Opened {
    pub(super) store: Rc<Memstore>,
    pub(super) log: Log,
    pub(super) lanes: FoundLanes,
    pub(super) snapshots: Found,
    pub(super) report: RecoveryReport,
    pub(super) direct: bool,
    pub(super) sync: &'static str,
    pub(super) sync_us: u64,
}

/// Opens the data of the shard that is being launched.
pub(super) async fn open(launch: &Launch) -> Result<Opened, OpenError> {
    let config = &launch.config;
    let path = launch.directory.join(LOG_FOLDER);
    if launch.known && !holds_log(&path).unwrap_or(false) {
        return Err(OpenError::Missing(path));
    }
    let limits = MemstoreLimits {
        bytes_max: (config.memory.bytes_max / launch.shards as u64) as usize,
        ..MemstoreLimits::default()
    };
    let (store, found) = snapshots::restore(launch, limits).map_err(OpenError::Snapshots)?;
    for namespace in launch.deleted.iter() {
        store.erase(&mut Erasure::new(*namespace), usize::MAX);
    }
    let store = Rc::new(store);
    let target =
        Target { store: &store, namespaces: &launch.namespaces, hash_key: launch.hash_key };
    let mut replay = Replay {
        target,
        found: &found,
        reply: Reply::default(),
        held: Held::default(),
        outside: &launch.outside,
        deleted: &launch.deleted,
        lanes: FoundLanes::default(),
        failed: None,
        time_us: found.time_us,
    };
    let (writer, report) = Writer::open(
        &path,
        directory_options(config),
        log_config(config, launch.index, launch.shards),
        &mut replay,
    )
    .map_err(OpenError::Log)?;
    let Replay { held, lanes, failed, time_us, .. } = replay;
    if let Some(error) = failed {
        return Err(error);
    }
    if report.first_lsn > found.lsn + 1 {
        let gap = SnapshotsError::Gap { snapshot_lsn: found.lsn, first_lsn: report.first_lsn };
        return Err(OpenError::Snapshots(gap));
    }
    let last = writer.status().next_lsn - 1;
    if last < found.lsn {
        let ahead = SnapshotsError::Ahead { snapshot_lsn: found.lsn, last_lsn: last };
        return Err(OpenError::Snapshots(ahead));
    }
    let (direct, probe) = (writer.directory().is_direct(), writer.directory().probe());
    Ok(Opened {
        store,
        log: Log::new(writer, last, time_us, held, found.older_lsn),
        lanes,
        snapshots: found,
        report,
        direct,
        sync: probe.method.name(),
        sync_us: probe.latency_us(),
    })
}

/// Takes the records of the log into the store.
struct Replay<'a> {
    target: Target<'a>,
    found: &'a Found,
    reply: Reply,
    held: Held,
    /// Ids of the namespaces whose data lies in a backend outside.
    outside: &'a [u32],
    /// Ids of the namespaces that were deleted: their records are of nothing any more.
    deleted: &'a [u32],
    lanes: FoundLanes,
    failed: Option<OpenError>,
    time_us: u64,
}

impl Sink for Replay<'_> {
    fn upcoming(&mut self, records: &[Record<'_>]) {
        logged::fetch(self.target.store, records.iter().copied());
    }

    fn record(&mut self, record: &Record<'_>) {
        if record.kind != RecordKind::Data || self.failed.is_some() {
            return;
        }
        self.time_us = self.time_us.max(record.log_time_us);
        if self.deleted.contains(&record.head.lane.namespace) {
            return;
        }
        if self.outside.contains(&record.head.lane.namespace) {
            match self.target.namespaces.by_id(record.head.lane.namespace) {
                Some(_) => self.lanes.note(record),
                None => self.lanes.note_orphan(record),
            }
            if let Err(error) = request::remember(&self.target, record) {
                self.failed = Some(OpenError::Replay { lsn: record.lsn, error });
            }
            return;
        }
        if record.lsn > self.found.older_lsn {
            self.held.insert(record.head.lane.namespace, record.lsn);
        }
        if record.lsn > self.found.lsn {
            self.reply.clear();
            if let Err(error) = request::replay(&self.target, record, &mut self.reply) {
                self.failed = Some(OpenError::Replay { lsn: record.lsn, error });
            }
        }
    }
}

/// How the data directory is to be opened.
pub(crate) fn directory_options(config: &Config) -> DirectoryOptions {
    DirectoryOptions {
        direct: match config.wal.direct {
            config::Direct::Preferred => disk::Direct::Preferred,
            config::Direct::Required => disk::Direct::Required,
            config::Direct::Off => disk::Direct::Off,
        },
        sync: match config.wal.sync {
            config::Sync::Auto => None,
            config::Sync::Dsync => Some(SyncMethod::DsyncWrite),
            config::Sync::Fdatasync => Some(SyncMethod::WriteThenDatasync),
        },
    }
}

/// How the log of one of `shards` shards is to be run.
pub(crate) fn log_config(config: &Config, shard: usize, shards: usize) -> LogConfig {
    let record_bytes_max = config.limits.message_bytes_max as usize + IDEMPOTENCY_KEY_BYTES_MAX;
    let config = &config.wal;
    let defaults = LogConfig::default();
    let per_shard = |bytes: u64| {
        u32::try_from(bytes / shards as u64 / config.segment_bytes).unwrap_or(u32::MAX)
    };
    LogConfig {
        shard: shard as u16,
        segment_bytes: config.segment_bytes,
        segments_max: per_shard(config.bytes_max).max(defaults.segments_ready + 2),
        segments_internal: per_shard(config.low_water).max(1).min(defaults.segments_ready - 1),
        batch_bytes: config.batch_bytes_max as usize,
        record_bytes_max,
        gather_bytes_max: defaults
            .gather_bytes_max
            .max(2 * record_bytes_max + config.batch_bytes_max as usize),
        writes_in_flight_max: config.in_flight as usize,
        semantics_max: SEMANTICS,
        ..defaults
    }
}
