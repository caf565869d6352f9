//! What a snapshot looks like on disk: blocks with checksums, between a header and a footer.
//!
//! ```text
//! block  := kind u32 | number u32 | payload length u32 | CRC32C u32 | payload
//! header := magic | version | shard | LSN | log time | attachment | lanes (namespace, partition, name)
//! entries, outcomes := records, one after the other
//! footer := entries | outcomes | CRC32C of all the blocks' CRCs
//! ```
//! Numbers are little-endian. A block's CRC covers its head and payload, and goes on from the CRC of
//! the header, so that a block of another snapshot does not pass. A snapshot without a footer that
//! agrees is no snapshot. Entries name their lane by its number in the header.

use std::fmt;
use std::io::{self, Read};

use bytes::Bytes;

use super::entry::Stored;
use super::outcomes::{Outcome, Remembered};
use crate::call::Revision;

/// First bytes of a snapshot.
pub(crate) const MAGIC: &[u8; 8] = b"PRSMSNAP";

/// The format that is written, and the only one that is read.
pub const SNAPSHOT_VERSION: u32 = 1;

/// A block is closed when it has reached so many bytes; one large entry may make it longer.
pub(crate) const BLOCK_BYTES: usize = 256 * 1024;

/// No block is longer; what claims to be is damaged.
const BLOCK_BYTES_MAX: usize = 256 * 1024 * 1024;

pub(crate) const BLOCK_HEAD_BYTES: usize = 16;

const FLAG_EXPIRES: u8 = 1;
const FLAG_UNLOGGED: u8 = 2;

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum BlockKind {
    Header = 1,
    Entries = 2,
    Outcomes = 3,
    Footer = 4,
}

/// What a snapshot is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// The shard.
    pub shard: u32,
    /// Every record up to this LSN is contained, and none after it.
    pub lsn: u64,
    /// Log time of the cut, µs since the epoch; what had expired by then is left out.
    pub log_time_us: u64,
    /// Whatever the caller wants to find again beside the state.
    pub attachment: Bytes,
}

/// Why a snapshot cannot be taken or used.
#[derive(Debug)]
pub enum SnapshotError {
    /// The file could not be read or written.
    Io(io::Error),
    /// It was written by a version of Prism with another format.
    Version(u32),
    /// It is not what was written: where (byte offset of the block) and what is wrong.
    Damaged {
        /// Byte offset of the block in the snapshot.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Entries changed faster than the snapshot could be written; take another one.
    Overrun,
    /// One snapshot at a time.
    Running,
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SnapshotError::Io(error) => {
                write!(formatter, "the snapshot cannot be accessed: {error}")
            }
            SnapshotError::Version(version) => write!(
                formatter,
                "the snapshot has format {version}, this version of Prism reads {SNAPSHOT_VERSION}"
            ),
            SnapshotError::Damaged { offset, what } => {
                write!(formatter, "the snapshot is damaged at byte {offset}: {what}")
            }
            SnapshotError::Overrun => {
                formatter.write_str("entries changed faster than the snapshot could be written")
            }
            SnapshotError::Running => formatter.write_str("a snapshot is already being taken"),
        }
    }
}

impl std::error::Error for SnapshotError {}

impl From<io::Error> for SnapshotError {
    fn from(error: io::Error) -> Self {
        SnapshotError::Io(error)
    }
}

/// Builds blocks; their order is the order in which they are finished.
#[derive(Debug, Default)]
pub(crate) struct BlockWriter {
    number: u32,
    seed: u32,
    chain: u32,
}

impl BlockWriter {
    /// An empty block with room for its head.
    pub(crate) fn begin(capacity: usize) -> Vec<u8> {
        let mut block = Vec::with_capacity(capacity + BLOCK_HEAD_BYTES);
        block.resize(BLOCK_HEAD_BYTES, 0);
        block
    }

    /// Fills in the head.
    pub(crate) fn finish(&mut self, kind: BlockKind, block: &mut [u8]) {
        let payload_bytes = (block.len() - BLOCK_HEAD_BYTES) as u32;
        block[..4].copy_from_slice(&(kind as u32).to_le_bytes());
        block[4..8].copy_from_slice(&self.number.to_le_bytes());
        block[8..12].copy_from_slice(&payload_bytes.to_le_bytes());
        let crc = block_crc(self.seed, block);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
        self.count(crc);
    }

    /// The footer, which ends the snapshot.
    pub(crate) fn footer(&mut self, entries: u64, outcomes: u64) -> Vec<u8> {
        let mut block = Self::begin(20);
        block.extend_from_slice(&entries.to_le_bytes());
        block.extend_from_slice(&outcomes.to_le_bytes());
        block.extend_from_slice(&self.chain.to_le_bytes());
        self.finish(BlockKind::Footer, &mut block);
        block
    }

    fn count(&mut self, crc: u32) {
        if self.number == 0 {
            self.seed = crc;
        }
        self.chain = crc32c::crc32c_append(self.chain, &crc.to_le_bytes());
        self.number += 1;
    }
}

fn block_crc(seed: u32, block: &[u8]) -> u32 {
    let head = crc32c::crc32c_append(seed, &block[..12]);
    crc32c::crc32c_append(head, &block[BLOCK_HEAD_BYTES..])
}

/// Reads a snapshot block by block and believes nothing that it has not checked.
pub(crate) struct BlockReader<R> {
    source: R,
    writer: BlockWriter,
    block: Vec<u8>,
    offset: u64,
}

impl<R: Read> BlockReader<R> {
    pub(crate) fn new(source: R) -> Self {
        BlockReader { source, writer: BlockWriter::default(), block: Vec::new(), offset: 0 }
    }

    /// The next block's kind and payload.
    pub(crate) fn next(&mut self) -> Result<(BlockKind, Fields<'_>), SnapshotError> {
        self.offset += self.block.len() as u64;
        let chain = self.writer.chain;
        self.block.clear();
        self.fill(BLOCK_HEAD_BYTES)?;
        let word = |at: usize| u32::from_le_bytes(self.block[at..at + 4].try_into().unwrap());
        let (kind, number, payload_bytes, crc) = (word(0), word(4), word(8) as usize, word(12));
        let kind = match kind {
            1 => BlockKind::Header,
            2 => BlockKind::Entries,
            3 => BlockKind::Outcomes,
            4 => BlockKind::Footer,
            _ => return Err(self.damaged("unknown kind of block")),
        };
        if number != self.writer.number || (number == 0) != (kind == BlockKind::Header) {
            return Err(self.damaged("block out of order"));
        }
        if payload_bytes > BLOCK_BYTES_MAX {
            return Err(self.damaged("block too long"));
        }
        self.fill(BLOCK_HEAD_BYTES + payload_bytes)?;
        if block_crc(self.writer.seed, &self.block) != crc {
            return Err(self.damaged("checksum does not match"));
        }
        self.writer.count(crc);
        let fields = Fields { bytes: &self.block[BLOCK_HEAD_BYTES..], chain, offset: self.offset };
        Ok((kind, fields))
    }

    fn fill(&mut self, upto: usize) -> Result<(), SnapshotError> {
        let have = self.block.len();
        let wanted = (upto - have) as u64;
        let got = self.source.by_ref().take(wanted).read_to_end(&mut self.block)?;
        if (got as u64) < wanted {
            return Err(self.damaged("it ends too early"));
        }
        Ok(())
    }

    fn damaged(&self, what: &'static str) -> SnapshotError {
        SnapshotError::Damaged { offset: self.offset, what }
    }
}

/// The fields of one block.
pub(crate) struct Fields<'a> {
    bytes: &'a [u8],
    /// CRC of the CRCs of all blocks before this one.
    pub(crate) chain: u32,
    offset: u64,
}

impl<'a> Fields<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], SnapshotError> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(length)
            .ok_or_else(|| self.damaged("a record is longer than its block"))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        Ok(self.take(N)?.try_into().expect("a slice of that length"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, SnapshotError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, SnapshotError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, SnapshotError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, SnapshotError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn damaged(&self, what: &'static str) -> SnapshotError {
        SnapshotError::Damaged { offset: self.offset, what }
    }
}

/// The header's payload.
pub(crate) fn put_header<'a>(
    out: &mut Vec<u8>,
    facts: &SnapshotFacts,
    lanes: impl ExactSizeIterator<Item = (u32, u16, &'a str)>,
) {
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&SNAPSHOT_VERSION.to_le_bytes());
    out.extend_from_slice(&facts.shard.to_le_bytes());
    out.extend_from_slice(&facts.lsn.to_le_bytes());
    out.extend_from_slice(&facts.log_time_us.to_le_bytes());
    out.extend_from_slice(&(facts.attachment.len() as u32).to_le_bytes());
    out.extend_from_slice(&facts.attachment);
    out.extend_from_slice(&(lanes.len() as u32).to_le_bytes());
    for (namespace, partition, name) in lanes {
        out.extend_from_slice(&namespace.to_le_bytes());
        out.extend_from_slice(&partition.to_le_bytes());
        out.extend_from_slice(&(name.len() as u16).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
    }
}

/// The header's facts; the lanes follow.
pub(crate) fn take_header(fields: &mut Fields<'_>) -> Result<SnapshotFacts, SnapshotError> {
    if fields.take(MAGIC.len())? != MAGIC {
        return Err(fields.damaged("not a snapshot"));
    }
    let version = fields.u32()?;
    if version != SNAPSHOT_VERSION {
        return Err(SnapshotError::Version(version));
    }
    let (shard, lsn, log_time_us) = (fields.u32()?, fields.u64()?, fields.u64()?);
    let length = fields.u32()? as usize;
    let attachment = Bytes::copy_from_slice(fields.take(length)?);
    Ok(SnapshotFacts { shard, lsn, log_time_us, attachment })
}

/// One entry as a record of an entries block.
pub(crate) fn put_entry(out: &mut Vec<u8>, lane: u32, entry: Stored<'_>) {
    let (key, value, revision) = (entry.key(), entry.value(), entry.revision());
    let expires = entry.expires_us != super::entry::NEVER;
    let unlogged = revision.epoch != 0;
    let flags = (FLAG_EXPIRES * u8::from(expires)) | (FLAG_UNLOGGED * u8::from(unlogged));
    out.extend_from_slice(&lane.to_le_bytes());
    out.push(flags);
    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
    out.extend_from_slice(&(value.bytes().len() as u32).to_le_bytes());
    out.extend_from_slice(&revision.lsn.to_le_bytes());
    if unlogged {
        out.extend_from_slice(&revision.epoch.to_le_bytes());
        out.extend_from_slice(&revision.minor.to_le_bytes());
    }
    if expires {
        out.extend_from_slice(&entry.expires_us.to_le_bytes());
    }
    out.extend_from_slice(key);
    out.extend_from_slice(value.bytes());
}

/// An entry as it was found in a snapshot.
pub(crate) struct EntryRecord<'a> {
    pub(crate) lane: u32,
    pub(crate) revision: Revision,
    pub(crate) expires_us: Option<u64>,
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

/// The next record of an entries block.
pub(crate) fn take_entry<'a>(fields: &mut Fields<'a>) -> Result<EntryRecord<'a>, SnapshotError> {
    let (lane, flags) = (fields.u32()?, fields.u8()?);
    let (key_bytes, value_bytes) = (fields.u16()? as usize, fields.u32()? as usize);
    let mut revision = Revision::logged(fields.u64()?);
    if flags & FLAG_UNLOGGED != 0 {
        (revision.epoch, revision.minor) = (fields.u32()?, fields.u64()?);
    }
    let expires_us = if flags & FLAG_EXPIRES != 0 { Some(fields.u64()?) } else { None };
    let (key, value) = (fields.take(key_bytes)?, fields.take(value_bytes)?);
    if key.is_empty() {
        return Err(fields.damaged("an entry without a key"));
    }
    Ok(EntryRecord { lane, revision, expires_us, key, value })
}

/// One remembered outcome as a record of an outcomes block.
pub(crate) fn put_outcome(out: &mut Vec<u8>, remembered: &Remembered<'_>) {
    let outcome = remembered.outcome;
    out.extend_from_slice(&remembered.namespace.to_le_bytes());
    out.extend_from_slice(&remembered.partition.to_le_bytes());
    out.extend_from_slice(&remembered.caller.to_le_bytes());
    out.extend_from_slice(&remembered.body_hash.to_le_bytes());
    out.extend_from_slice(&remembered.expires_us.to_le_bytes());
    out.extend_from_slice(&outcome.lsn.to_le_bytes());
    out.extend_from_slice(&[outcome.code, outcome.level]);
    out.extend_from_slice(&(remembered.key.len() as u16).to_le_bytes());
    out.extend_from_slice(&(outcome.message.len() as u32).to_le_bytes());
    out.extend_from_slice(remembered.key);
    out.extend_from_slice(&outcome.message);
}

/// The next record of an outcomes block, handed to `restore`.
pub(crate) fn take_outcome(
    fields: &mut Fields<'_>,
    restore: impl FnOnce(Remembered<'_>),
) -> Result<(), SnapshotError> {
    let (namespace, partition) = (fields.u32()?, fields.u16()?);
    let (caller, body_hash, expires_us) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (lsn, code, level) = (fields.u64()?, fields.u8()?, fields.u8()?);
    let (key_bytes, message_bytes) = (fields.u16()? as usize, fields.u32()? as usize);
    let key = fields.take(key_bytes)?;
    let message = Bytes::copy_from_slice(fields.take(message_bytes)?);
    let outcome = &Outcome { lsn, code, level, message };
    restore(Remembered { namespace, partition, caller, key, body_hash, expires_us, outcome });
    Ok(())
}
