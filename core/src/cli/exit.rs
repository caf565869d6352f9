//! The exit codes of `prism`: few, stable, and told in `--help`.
//!
//! From 64 on they follow BSD's `sysexits.h` where it has one that fits.

use std::process::ExitCode;

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It failed; stderr says why.
    Failure = 1,
    /// The command line is wrong; or `plan` found that something would change ([`Exit::CHANGES`]).
    Usage = 2,
    /// The key does not exist (`kv get`, `kv exists`, `kv ttl`), or no such namespace is asked for (`explain`).
    NotFound = 4,
    /// A condition did not hold, so nothing was changed (`kv set --if`, `kv cas`), or a receipt is no longer good (`ack`, `queue
    /// reject`).
    NotApplied = 5,
    /// Data is damaged (`wal verify`, `audit verify`, a refused recovery).
    Damaged = 65,
    /// The server cannot be reached, or refuses for now; trying again may help.
    Unavailable = 69,
    /// The data directory cannot be used: not writable, or used by another process.
    DataDirectory = 73,
    /// A write of the log failed; nothing was acknowledged after it.
    LogFailed = 74,
    /// Stopped before everything had drained; what is left is safe in the log.
    Undrained = 75,
    /// The configuration is wrong, or a namespace request is refused.
    Config = 78,
}

impl Exit {
    /// Something would change (`plan`); the same code as a wrong command line, as tools that plan have it.
    pub const CHANGES: Self = Self::Usage;

    /// Every exit code with what it means, in the order of the codes.
    pub const ALL: [(Self, &str); 11] = [
        (Self::Ok, "done"),
        (Self::Failure, "failed; stderr says why"),
        (Self::Usage, "the command line is wrong; of `plan`: something would change"),
        (Self::NotFound, "the key or namespace does not exist"),
        (
            Self::NotApplied,
            "a condition did not hold, or a receipt is no longer good; nothing was changed",
        ),
        (Self::Damaged, "data is damaged"),
        (Self::Unavailable, "the server cannot be reached or refuses for now; try again"),
        (Self::DataDirectory, "the data directory is not writable or is used by another process"),
        (Self::LogFailed, "a log write failed; nothing was acknowledged after it"),
        (Self::Undrained, "stopped before everything had drained; the rest is safe in the log"),
        (Self::Config, "the configuration is wrong"),
    ];

    /// The table of exit codes for `--help`.
    pub fn help() -> String {
        let mut text = String::from("Exit codes:\n");
        for (exit, meaning) in Self::ALL {
            text.push_str(&format!("  {:>2}  {meaning}\n", exit as u8));
        }
        text
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_stable() {
        let codes = Exit::ALL.map(|(exit, _)| exit as u8);
        assert_eq!(codes, [0, 1, 2, 4, 5, 65, 69, 73, 74, 75, 78]);
        assert!(Exit::help().contains("  78  the configuration is wrong\n"));
    }
}
