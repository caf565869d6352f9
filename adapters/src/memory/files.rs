//! The snapshots of one shard as files in a folder of its own.
//!
//! A snapshot is written under another name, made durable, and then renamed, so that what has the
//! name is whole. The two newest are kept: the log is trimmed no further than the older one reaches,
//! so that a damaged newest one costs nothing but a longer replay. Writing goes over the shard's ring
//! in small pieces and never holds up the shard; reading is for the start and blocks.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use prism_io::disk::{BufferPool, Directory};
use prism_io::rt::yield_now;

use super::format::{SnapshotError, SnapshotFacts};
use super::snapshot::{Snapshot, SnapshotStep};
use super::{Memstore, MemstoreLimits};

/// How many snapshots are kept.
const KEPT: usize = 2;

/// Bytes of one write: small enough not to hold up the log's own writes.
const PIECE_BYTES: usize = 256 * 1024;

const READ_BYTES: usize = 1 << 20;
const PREFIX: &str = "snapshot-";
const SUFFIX: &str = ".prism";

/// Beside the suffix, while it is being written.
const UNFINISHED: &str = ".new";

/// Beside the suffix, when it turned out to be bad; kept for whoever wants to know.
const DAMAGED: &str = ".damaged";

/// What was found at the start.
#[derive(Debug)]
pub struct Restored {
    /// The state, of the newest good snapshot.
    pub memstore: Memstore,
    /// What the snapshot is of.
    pub facts: SnapshotFacts,
    /// The log is needed from here on, should this snapshot turn out to be bad; 0: all of it.
    pub older_lsn: u64,
    /// Newer ones that are bad, and why; they have been set aside.
    pub damaged: Vec<(PathBuf, SnapshotError)>,
}

/// Why the state could not be restored.
#[derive(Debug)]
pub enum RestoreError {
    /// The folder could not be read.
    Io(PathBuf, io::Error),
    /// There are snapshots and none is good.
    NoneGood(Vec<(PathBuf, SnapshotError)>),
}

impl fmt::Display for RestoreError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestoreError::Io(path, error) => {
                write!(formatter, "snapshots in {} cannot be read: {error}", path.display())
            }
            RestoreError::NoneGood(found) => {
                formatter.write_str("no snapshot is good")?;
                for (path, error) in found {
                    write!(formatter, "; {}: {error}", path.display())?;
                }
                formatter.write_str(
                    "; restore the data directory from a backup, or remove the snapshots if the log \
                     still begins at its first record",
                )
            }
        }
    }
}

impl std::error::Error for RestoreError {}

/// The folder of one shard's snapshots, see the module.
#[derive(Debug)]
pub struct SnapshotFiles {
    folder: PathBuf,
    shard: u32,
    buffers: BufferPool,
}

impl SnapshotFiles {
    /// The snapshots in `folder`, which is made if it is missing, of this shard. What an interrupted
    /// write has left there is removed.
    pub fn open(folder: &Path, shard: u32) -> Result<Self, RestoreError> {
        let prepare = || -> io::Result<PathBuf> {
            fs::create_dir_all(folder)?;
            let folder = folder.canonicalize()?;
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == &UNFINISHED[1..]) {
                    fs::remove_file(path)?;
                }
            }
            if let Some(parent) = folder.parent() {
                sync_folder(parent)?;
            }
            Ok(folder)
        };
        let folder = prepare().map_err(|error| RestoreError::Io(folder.to_path_buf(), error))?;
        Ok(SnapshotFiles { folder, shard, buffers: BufferPool::new(PIECE_BYTES, 1) })
    }

    /// Restores the newest good snapshot; `None` if there is none at all. Blocks.
    pub fn restore(&self, limits: MemstoreLimits) -> Result<Option<Restored>, RestoreError> {
        let fault = |error| RestoreError::Io(self.folder.clone(), error);
        let mut damaged: Vec<(PathBuf, SnapshotError)> = Vec::new();
        let mut lsns = self.list().map_err(fault)?.into_iter().rev();
        while let Some(lsn) = lsns.next() {
            let path = self.path(lsn);
            match self.read(&path, lsn, limits) {
                Ok((memstore, facts)) => {
                    for (path, _) in &damaged {
                        fs::rename(path, with_suffix(path, DAMAGED)).map_err(fault)?;
                    }
                    sync_folder(&self.folder).map_err(fault)?;
                    let older_lsn = lsns.next().unwrap_or(0);
                    return Ok(Some(Restored { memstore, facts, older_lsn, damaged }));
                }
                Err(error) => damaged.push((path, error)),
            }
        }
        if damaged.is_empty() { Ok(None) } else { Err(RestoreError::NoneGood(damaged)) }
    }

    /// Writes a snapshot to the end and removes those that are too old. Returns the LSN up to which
    /// the log is no longer needed: that of the older of the two that are kept, or 0.
    ///
    /// `directory` is any on the same file system; its files are written on the ring of the thread.
    ///
    /// # Errors
    /// What was written is removed; the snapshots that were there stay.
    pub async fn write(
        &self,
        mut snapshot: Snapshot,
        directory: &Directory,
    ) -> Result<u64, SnapshotError> {
        let target = self.path(snapshot.lsn());
        let unfinished = with_suffix(&target, UNFINISHED);
        if let Err(error) = self.write_to(&unfinished, &target, &mut snapshot, directory).await {
            // The first error is the one that matters; leftovers are removed at the next start.
            let _ = fs::remove_file(&unfinished);
            return Err(error);
        }
        drop(snapshot);
        let lsns = self.list()?;
        let (old, kept) = lsns.split_at(lsns.len().saturating_sub(KEPT));
        for &lsn in old {
            fs::remove_file(self.path(lsn))?;
        }
        Ok(if kept.len() == KEPT { kept[0] } else { 0 })
    }

    async fn write_to(
        &self,
        unfinished: &Path,
        target: &Path,
        snapshot: &mut Snapshot,
        directory: &Directory,
    ) -> Result<(), SnapshotError> {
        File::create(unfinished)?;
        let name = unfinished.to_str().ok_or(io::Error::from(io::ErrorKind::InvalidFilename))?;
        let file = directory.open_file(name)?;
        let mut offset = 0;
        let mut piece = self.buffers.take(PIECE_BYTES);
        loop {
            let bytes = match snapshot.step()? {
                SnapshotStep::Bytes(bytes) => bytes,
                SnapshotStep::Working => {
                    yield_now().await;
                    continue;
                }
                SnapshotStep::Done => break,
            };
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(piece.remaining()));
                piece.extend(now.len()).copy_from_slice(now);
                rest = later;
                if piece.remaining() == 0 {
                    let full = std::mem::replace(&mut piece, self.buffers.take(PIECE_BYTES));
                    file.write_durable(full.freeze(), offset).await?;
                    offset += PIECE_BYTES as u64;
                }
            }
        }
        piece.pad_to_page();
        if !piece.is_empty() {
            file.write_durable(piece.freeze(), offset).await?;
        }
        fs::rename(unfinished, target)?;
        // On the ring, so that the folder, which can only be synced here, has nothing left to wait for.
        file.sync_all().await?;
        sync_folder(&self.folder)?;
        Ok(())
    }

    fn read(
        &self,
        path: &Path,
        lsn: u64,
        limits: MemstoreLimits,
    ) -> Result<(Memstore, SnapshotFacts), SnapshotError> {
        let file = BufReader::with_capacity(READ_BYTES, File::open(path)?);
        let (memstore, facts) = Memstore::restore(limits, file)?;
        if facts.shard != self.shard {
            return Err(SnapshotError::Damaged { offset: 0, what: "it is of another shard" });
        }
        if facts.lsn != lsn {
            return Err(SnapshotError::Damaged {
                offset: 0,
                what: "its LSN is not that of its name",
            });
        }
        Ok((memstore, facts))
    }

    /// The LSNs of the snapshots that are there, oldest first.
    fn list(&self) -> io::Result<Vec<u64>> {
        let mut lsns = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let digits = name.to_str().and_then(|name| {
                name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX).filter(|digits| digits.len() == 16)
            });
            lsns.extend(digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()));
        }
        lsns.sort_unstable();
        Ok(lsns)
    }

    fn path(&self, lsn: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{lsn:016x}{SUFFIX}"))
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
