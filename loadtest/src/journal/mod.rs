//! `prism-loadtest journal` and `verify`: the witness outside, for killing the server under load.
//!
//! It writes ever higher numbers under its keys and notes every write before it is sent and after it is acknowledged, survives the death of the
//! server, and compares afterwards. Each key has one writer with one write under way, so that what may be found there is known exactly:
//! what was acknowledged last, or what was under way then. It promises nothing about its own speed.

mod record;
mod verify;
mod write;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub use verify::verify;
pub use write::write;

/// Most broken promises that are listed one by one.
const LISTED_MAX: usize = 100;

/// What a journal run writes.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server.
    pub endpoint: SocketAddr,
    /// The namespace.
    pub namespace: String,
    /// The journal's file.
    pub journal: PathBuf,
    /// Connections.
    pub connections: usize,
    /// Writers, each with one write under way.
    pub writers: usize,
    /// Keys of each writer.
    pub keys: usize,
    /// Share of the keys whose writes carry an idempotency key, half of them through CompareAndSwap.
    pub keyed: f64,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// `prism-durability` of every request, if any.
    pub durability: Option<String>,
    /// How long to write.
    pub duration: Duration,
    /// How long one call may take.
    pub timeout: Duration,
    /// End with an error when nothing has been answered for so long.
    pub give_up: Duration,
    /// Seed of everything that is chosen at random.
    pub seed: u64,
}

/// What a journal run, or a comparison, has found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Keys in the journal.
    pub keys: u64,
    /// Acknowledged writes in the journal, those of earlier runs included.
    pub acknowledged: u64,
    /// Writes whose outcome is unknown still.
    pub open: u64,
    /// Calls that were repeated under their idempotency key.
    pub repeated: u64,
    /// Of these the ones that the server answered from memory (`prism-replayed`).
    pub replayed: u64,
    /// Writes that were refused for good.
    pub refused: u64,
    /// Times that a connection had to be made again.
    pub reconnects: u64,
    /// Promises that were broken, the first hundred in words.
    pub violations: Vec<String>,
    /// How many there were in all.
    pub violation_count: u64,
}

impl Summary {
    fn violation(&mut self, text: String) {
        self.violation_count += 1;
        if self.violations.len() < LISTED_MAX {
            self.violations.push(text);
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{} acknowledged writes to {} keys, {} with unknown outcome, {} refused",
            self.acknowledged, self.keys, self.open, self.refused
        )?;
        if self.repeated + self.reconnects > 0 {
            writeln!(
                out,
                "{} reconnects, {} keyed calls repeated, {} of them answered from memory",
                self.reconnects, self.repeated, self.replayed
            )?;
        }
        if self.violation_count == 0 {
            return writeln!(out, "no promise was broken");
        }
        writeln!(out, "{} BROKEN PROMISES", self.violation_count)?;
        for text in &self.violations {
            writeln!(out, "  {text}")?;
        }
        let more = self.violation_count - self.violations.len() as u64;
        if more > 0 {
            writeln!(out, "  and {more} more")?;
        }
        Ok(())
    }
}
