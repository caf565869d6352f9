//! Why a log was not accepted: what, where, which records, and what to do.

use std::fmt;
use std::io;

/// Records that are known, or may be assumed, to be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LsnRange {
    /// First LSN.
    pub first: u64,
    /// Last LSN.
    pub last: u64,
}

impl fmt::Display for LsnRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "LSN {} to {}", self.first, self.last)
    }
}

/// Acknowledged data that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: String,
    /// Where in the file the first batch stands that is not valid.
    pub offset: u64,
    /// The records that were acknowledged and are not there.
    pub lost: LsnRange,
    /// What proves that they were.
    pub proof: String,
}

/// Why recovery refused. It has changed nothing.
#[derive(Debug)]
pub enum RecoverError {
    /// A file could not be read; never taken for a torn tail.
    Read {
        /// The file.
        file: String,
        /// What the system said.
        error: io::Error,
    },
    /// Written by another version of Prism.
    UnknownVersion {
        /// The file.
        file: String,
        /// Its format version.
        version: u32,
    },
    /// A record whose meaning this build does not know.
    UnknownSemantics {
        /// The file.
        file: String,
        /// The record.
        lsn: u64,
        /// Its semantics version.
        semantics: u8,
    },
    /// The log of another shard.
    OtherShard {
        /// The file.
        file: String,
        /// Shard in the file.
        found: u16,
        /// Shard that was asked for.
        expected: u16,
    },
    /// Acknowledged data is damaged.
    Damaged(Damage),
    /// Records between what was trimmed and what is there are missing.
    Gap {
        /// What is missing.
        lost: LsnRange,
        /// The file that comes behind the gap.
        before: String,
        /// Files without a readable beginning, one of which may have held them.
        suspects: Vec<String>,
    },
}

const REMEDY: &str = "run `prism wal verify` for details and `prism wal repair` to quarantine the damage and go on \
                      without the lost records, or restore the data directory from a copy";

impl fmt::Display for RecoverError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoverError::Read { file, error } => write!(
                formatter,
                "{file} could not be read: {error}; check the disk (`dmesg`, SMART) before anything else"
            ),
            RecoverError::UnknownVersion { file, version } => write!(
                formatter,
                "{file} has log format version {version}, this build knows version {}; start the Prism that wrote it",
                crate::format::FORMAT_VERSION
            ),
            RecoverError::UnknownSemantics { file, lsn, semantics } => write!(
                formatter,
                "{file}: record {lsn} has semantics version {semantics}, which this build does not know; start the Prism \
                 that wrote it"
            ),
            RecoverError::OtherShard { file, found, expected } => write!(
                formatter,
                "{file} belongs to the log of shard {found}, not {expected}; files of two logs were mixed up"
            ),
            RecoverError::Damaged(Damage { file, offset, lost, proof }) => write!(
                formatter,
                "acknowledged data is damaged: {file} at offset {offset}, {lost} ({proof}); {REMEDY}"
            ),
            RecoverError::Gap { lost, before, suspects } => {
                write!(formatter, "acknowledged data is missing: {lost}, before {before}")?;
                if !suspects.is_empty() {
                    write!(formatter, " (no readable beginning: {})", suspects.join(", "))?;
                }
                write!(formatter, "; {REMEDY}")
            }
        }
    }
}

impl std::error::Error for RecoverError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RecoverError::Read { error, .. } => Some(error),
            _ => None,
        }
    }
}
