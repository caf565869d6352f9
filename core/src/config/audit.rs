//! The section `audit`: where the audit log is, and when its next file begins.

use std::fmt;
use std::path::PathBuf;

use super::error::Origin;
use super::read::{directory, size};
use super::tree::{Node, Report, Section, Value};
use super::units::show_bytes;

const MIB: u64 = 1 << 20;

/// The audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// Its folder; `None`: `audit` in the data directory.
    pub directory: Option<PathBuf>,
    /// A file that has so many bytes gets no more lines, and the next begins.
    pub file_bytes_max: u64,
}

/// Reads the section.
pub(super) fn read(section: Option<Section<'_>>, report: &Report) -> Audit {
    let nothing = Node { origin: Origin::Default, value: Value::Nothing };
    let section = section.unwrap_or_else(|| Section::new(&nothing, "audit", report));
    let audit = Audit {
        directory: section.optional("directory", directory).map(|setting| setting.value),
        file_bytes_max: section.value("file_bytes_max", 64 * MIB, size(MIB, 1 << 40)).value,
    };
    section.finish();
    audit
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "audit:")?;
        if let Some(directory) = &self.directory {
            let path =
                serde_json::to_string(&directory.to_string_lossy()).map_err(|_| fmt::Error)?;
            writeln!(f, "  directory: {path}")?;
        }
        writeln!(f, "  file_bytes_max: {}", show_bytes(self.file_bytes_max))
    }
}
