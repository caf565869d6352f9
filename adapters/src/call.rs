//! What surrounds one call: its context on the way in, its reply on the way out.

use std::future::Future;

use bytes::Bytes;
use prism_proto::catalogue::Method;

use crate::error::Error;
use crate::limits::Limits;

/// Payloads from this size on leave by reference ([`Reply::tail`]) instead of being copied.
pub const BY_REFERENCE_BYTES_MIN: usize = 4096;

/// The end of a wait that has none, µs since the epoch.
pub const NO_END: u64 = u64::MAX;

/// The deadline of a call that has none, monotonic ns.
pub const NO_DEADLINE_NS: u64 = u64::MAX;

/// Reason and message for a call whose deadline has passed before it was sent to its backend; it never will be.
pub(crate) const NOT_SENT: (&str, &str) = (
    "BACKEND_NOT_ASKED",
    "the deadline passed before the request could be sent, and it is not sent any more; retry with a longer deadline",
);

/// A reply's buffer is kept for the next call unless a large reply has made it larger than this.
const HEAD_KEPT_BYTES_MAX: usize = 64 * 1024;

/// The facts of one call that a backend may decide by. It never asks a clock of its own.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The namespace's number; never used again for another namespace.
    pub namespace: u32,
    /// The namespace's name, for error messages and for names in a backend.
    pub namespace_name: &'a str,
    /// The partition; with the namespace it names the lane.
    pub partition: u16,
    /// µs since the Unix epoch: the log time of the record for writes, the clock for reads.
    /// Of one shard's writes, in the order in which they are applied, it never runs backwards.
    pub now_us: u64,
    /// What a write of this call stamps on the entries that it changes.
    pub revision: Revision,
    /// The namespace's limits.
    pub limits: &'a Limits,
    /// Until when the answer is waited for, monotonic ns: a backend outside the process is not asked any more after it. What has to be
    /// carried out whoever still waits, as every record of a lane has, has none ([`NO_DEADLINE_NS`]).
    pub deadline_ns: u64,
}

/// When an entry was last written, unique in the life of a data directory.
///
/// A logged write has its LSN and zeroes, so that replay gives the same version again. A write
/// without a record has the last LSN before it, the number of the process's start, and a count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// LSN of the record, or of the last record before an unlogged write.
    pub lsn: u64,
    /// Number of the process's start for an unlogged write (never 0), 0 for a logged one.
    pub epoch: u32,
    /// Counts the unlogged writes of one epoch from 1 on, 0 for a logged one.
    pub minor: u64,
}

impl Revision {
    /// Length of the longest encoded version, in bytes.
    pub const VERSION_BYTES_MAX: usize = 20;

    /// The revision of a write that has a record.
    pub const fn logged(lsn: u64) -> Self {
        Revision { lsn, epoch: 0, minor: 0 }
    }

    /// The revision of a write that has no record; `minor` counts from 1 within `epoch`.
    pub const fn unlogged(last_lsn: u64, epoch: u32, minor: u64) -> Self {
        assert!(epoch != 0 && minor != 0);
        Revision { lsn: last_lsn, epoch, minor }
    }

    /// Whether the write has a record.
    pub const fn is_logged(&self) -> bool {
        self.lsn != 0 && self.epoch == 0
    }

    /// The opaque `version` that callers see: 8 bytes for a logged write, 20 for an unlogged one.
    pub fn version(&self) -> Version {
        let mut bytes = [0; Self::VERSION_BYTES_MAX];
        bytes[..8].copy_from_slice(&self.lsn.to_be_bytes());
        if self.epoch == 0 {
            return Version { bytes, length: 8 };
        }
        bytes[8..12].copy_from_slice(&self.epoch.to_be_bytes());
        bytes[12..].copy_from_slice(&self.minor.to_be_bytes());
        Version { bytes, length: 20 }
    }
}

/// A revision in the form that goes to the caller.
#[derive(Clone, Copy, Debug, Default)]
pub struct Version {
    bytes: [u8; Revision::VERSION_BYTES_MAX],
    length: u8,
}

impl AsRef<[u8]> for Version {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length as usize]
    }
}

impl std::ops::Deref for Version {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}

/// The buffer that one unary call's reply is written to: the message is `head` followed by `tail`.
///
/// It is meant to be used again and again: [`Reply::clear`] keeps the head's usual capacity.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The encoded message, but for the tail.
    pub head: Vec<u8>,
    /// The end of the message where that is a payload of [`BY_REFERENCE_BYTES_MIN`] or more,
    /// shared with the store rather than copied.
    pub tail: Bytes,
}

impl Reply {
    /// Makes it empty for the next call.
    pub fn clear(&mut self) {
        self.head.clear();
        self.head.shrink_to(HEAD_KEPT_BYTES_MAX);
        self.tail = Bytes::new();
    }

    /// Length of the whole message in bytes.
    pub fn len(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Whether the message has no bytes (which is a valid message with every field at its default).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole message in one piece, for callers off the hot path.
    pub fn to_bytes(&self) -> Bytes {
        [&self.head[..], &self.tail[..]].concat().into()
    }
}

/// Where a streaming call's messages go, one after the other.
pub trait PageSink {
    /// Hands over one encoded message; ready when there is room for the next one (back-pressure).
    ///
    /// An error means that nobody listens any more: the call ends with it and does nothing more.
    fn send(&mut self, message: Bytes) -> impl Future<Output = Result<(), Error>>;

    /// The time by which the next message is written, µs since the epoch: a stream may last.
    fn now_us(&self) -> u64;

    /// Waits for `event` (such as a [`Listener`](crate::Listener)) until it is `until_us`, µs since the epoch, whichever comes
    /// first; [`NO_END`] is never.
    ///
    /// An error means that nobody listens any more, or that the server is shutting down: the call ends with it.
    fn wait(
        &mut self,
        event: impl Future<Output = ()>,
        until_us: u64,
    ) -> impl Future<Output = Result<(), Error>>;

    /// Has a write of the stream's own carried out, in its lane's order and at the namespace's level, like one of a
    /// caller: what a stream changes for good. Only where the backend's state is the log
    /// ([`memory`](crate::memory)); other backends keep what a stream changes themselves.
    ///
    /// `method` has a `record` in its interface's declaration, which is what is carried out. Returns the reply.
    fn write(
        &mut self,
        method: Method,
        request: Vec<u8>,
    ) -> impl Future<Output = Result<Bytes, Error>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_different_revisions_differ() {
        let revisions = [
            Revision::logged(1),
            Revision::logged(2),
            Revision::unlogged(1, 1, 1),
            Revision::unlogged(1, 1, 2),
            Revision::unlogged(1, 2, 1),
            Revision::unlogged(2, 1, 1),
        ];
        for (index, one) in revisions.iter().enumerate() {
            for other in &revisions[index + 1..] {
                assert_ne!(one.version().as_ref(), other.version().as_ref());
            }
        }
    }
}
