//! Going on without what is damaged.
//!
//! Promises: every file that is touched is copied into `quarantine/` first and nothing in there is ever changed or
//! deleted; what is lost is said as LSN ranges; no LSN or lane number that might have been used is used again; a crash at
//! any point leaves the damage as it was, or the repair complete.

use std::fmt;
use std::io;

use prism_io::disk::{PAGE_BYTES, Storage, page_ceiling};

use crate::config::LogConfig;
use crate::driver::{execute, start};
use crate::error::{Damage, LsnRange, RecoverError};
use crate::format::Nonce;
use crate::log::State;
use crate::recovery::salvage;
use crate::scan::SegmentReader;

/// Folder of the copies, within the log's directory.
pub const QUARANTINE: &str = "quarantine";

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// What a start would have refused, in words.
    pub refusals: Vec<String>,
    /// Acknowledged records that are gone.
    pub lost: Vec<LsnRange>,
    /// Copies of damaged files, as paths within the log's directory.
    pub quarantined: Vec<String>,
    /// The last LSN that is kept.
    pub kept_upto: u64,
    /// Where numbering goes on.
    pub next_lsn: u64,
}

impl fmt::Display for RepairReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.refusals.is_empty() {
            return write!(
                formatter,
                "nothing to repair: the log is accepted up to LSN {}",
                self.kept_upto
            );
        }
        for refusal in &self.refusals {
            writeln!(formatter, "found: {refusal}")?;
        }
        for lost in &self.lost {
            writeln!(formatter, "lost: {lost}")?;
        }
        for name in &self.quarantined {
            writeln!(formatter, "copied: {name}")?;
        }
        write!(formatter, "kept up to LSN {}, going on at LSN {}", self.kept_upto, self.next_lsn)
    }
}

/// Why nothing was repaired.
#[derive(Debug)]
pub enum RepairError {
    /// Not damage, but something that a repair cannot help: another version, another shard, a failing disk.
    Refused(RecoverError),
    /// Copying or writing failed.
    Io(io::Error),
}

impl fmt::Display for RepairError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RepairError::Refused(error) => write!(formatter, "a repair cannot help: {error}"),
            RepairError::Io(error) => {
                write!(formatter, "the repair was not finished and may be run again: {error}")
            }
        }
    }
}

impl std::error::Error for RepairError {}

/// Keeps the good prefix, copies what is damaged into `quarantine/`, and opens and closes an epoch that makes it final.
/// Where nothing is damaged, nothing is done. `nonce` is random and never used before.
pub fn repair(
    storage: &mut dyn Storage,
    config: &LogConfig,
    nonce: Nonce,
    now_us: u64,
) -> Result<RepairReport, RepairError> {
    let (recovered, losses) = salvage(storage, config).map_err(RepairError::Refused)?;
    let mut report = RepairReport {
        kept_upto: recovered.end.next_lsn.max(1) - 1,
        next_lsn: recovered.end.next_lsn.max(1) + recovered.skipped,
        ..RepairReport::default()
    };
    if losses.refusals.is_empty() {
        return Ok(report);
    }
    for refusal in &losses.refusals {
        report.refusals.push(refusal.to_string());
        match refusal {
            RecoverError::Damaged(Damage { lost, .. }) | RecoverError::Gap { lost, .. } => {
                report.lost.push(*lost)
            }
            _ => {}
        }
    }
    // Copies first: once the new epoch is open, the originals are void and may be used again.
    let mut touched: Vec<String> =
        losses.damaged.iter().chain(&losses.quarantine).cloned().collect();
    touched.sort();
    touched.dedup();
    for name in touched {
        let copy = format!("{QUARANTINE}/epoch-{}-{name}", recovered.epoch + 1);
        copy_file(storage, &name, &copy).map_err(RepairError::Io)?;
        report.quarantined.push(copy);
    }
    let mut log =
        start(storage, recovered, config.clone(), nonce, now_us).map_err(RepairError::Io)?;
    log.close(now_us);
    while let Some(operation) = log.poll_operation(now_us) {
        let (token, result) = execute(storage, &operation);
        log.handle_completion(token, result, now_us);
    }
    match (log.state(), log.failure()) {
        (State::Closed, _) => Ok(report),
        (_, failure) => Err(RepairError::Io(io::Error::other(
            failure.unwrap_or("it did not close").to_string(),
        ))),
    }
}

/// Copies a file; what is left of an interrupted copy is written over.
fn copy_file(storage: &mut dyn Storage, name: &str, copy: &str) -> io::Result<()> {
    const PIECE_BYTES: usize = 64 * PAGE_BYTES;
    let entry = storage.list()?.into_iter().find(|entry| entry.name == name);
    let bytes = entry.ok_or(io::Error::from(io::ErrorKind::NotFound))?.bytes as usize;
    match storage.create_zeroed(copy, page_ceiling(bytes.max(1)) as u64) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let mut reader = SegmentReader::open(storage, name)?;
    for offset in (0..bytes).step_by(PIECE_BYTES) {
        let mut piece = reader.get(offset as u64, PIECE_BYTES)?.to_vec();
        piece.resize(page_ceiling(piece.len()), 0);
        storage.write_durable(copy, offset as u64, &piece)?;
    }
    Ok(())
}
