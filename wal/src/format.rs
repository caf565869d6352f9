//! The bytes on disk, one by one. Everything is little endian.
//!
//! Promises: what is encoded here decodes to the same values, and a header or body that was changed in any bit does not
//! decode. Never reads or writes a file.
//!
//! # Files
//! A log's directory holds `segment-00000000.wal`, `segment-00000001.wal`, … (all of one size) and `checkpoint.wal` (two
//! slots). A segment file is a sequence of batches, each starting at a page boundary (4,096 bytes), from offset 0 on. What
//! follows the last batch is zero or stale (an earlier use of the file) and is recognised as such. The numbers in the file
//! names mean nothing; `segment_seq` in the headers orders them.
//!
//! # Batch: header of 128 bytes, records, zeros up to the page boundary
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `PRISMWAL` (frozen for every version) |
//! | 8 | 4 | format version, now 1 (frozen position) |
//! | 12 | 4 | `header_crc`: CRC32C, seeded with the nonce, of bytes 0–11 and 16–127 (frozen position and rule) |
//! | 16 | 16 | nonce of the epoch, random (frozen position) |
//! | 32 | 8 | epoch, 1 for the first start of this log |
//! | 40 | 8 | `segment_seq`: counts every activation of a segment file |
//! | 48 | 8 | LSN of the first record |
//! | 56 | 8 | `durable_upto`: every LSN up to this one was durable when this batch was submitted |
//! | 64 | 8 | `trim_upto`: no LSN up to this one is needed any more |
//! | 72 | 8 | wall clock at submission, µs since the Unix epoch (for people) |
//! | 80 | 4 | records in the batch, at least 1 |
//! | 84 | 4 | bytes of header and records, without the zeros at the end |
//! | 88 | 4 | `body_crc`: CRC32C, seeded with the nonce, of bytes 128 up to that length |
//! | 92 | 4 | `header_crc` of the batch before (0 for the first batch of a log): the chain |
//! | 96 | 2 | shard |
//! | 98 | 2 | flags: 1 = this is the open batch of its epoch |
//! | 100 | 4 | number of the spare segment file that will be activated next, 0xffffffff = none |
//! | 104 | 24 | zero |
//!
//! The seed is the CRC32C of the 16 nonce bytes. Records follow at multiples of 8, the gaps are zero.
//!
//! # Record: header of 80 bytes, idempotency key, body
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | length: header, key and body |
//! | 4 | 1 | kind, see [`crate::RecordKind`] |
//! | 5 | 1 | flags of the caller |
//! | 6 | 2 | length of the idempotency key |
//! | 8 | 8 | LSN |
//! | 16 | 8 | `lane_seq`; 0 in internal records |
//! | 24 | 8 | log time, µs since the Unix epoch; never runs backwards |
//! | 32 | 8 | deadline, µs since the Unix epoch; 0 = none |
//! | 40 | 8 | hash of the caller's identity |
//! | 48 | 16 | trace id |
//! | 64 | 4 | namespace id |
//! | 68 | 4 | plan generation |
//! | 72 | 2 | partition |
//! | 74 | 2 | method id |
//! | 76 | 1 | semantics version |
//! | 77 | 3 | zero |
//!
//! # Bodies of internal records
//! - *Open* (first record of an epoch): directory id (16), nonce (16), epoch (8), `segment_seq` (8), end offset (8),
//!   next LSN (8) and `header_crc` of the last batch (4) of the epoch before — all zero where there is none —, then 4 zero
//!   bytes and the number of LSNs skipped by a repair (8).
//! - *Lanes* (in the first batch of every segment): 16 bytes per lane: namespace (4), partition (2), flag (2), last
//!   `lane_seq` (8); sorted. Flag 1: no lane, but the number from which lanes that are not named count on.
//! - *Seal*, *Close*: empty. *Checkpoint*: `trim_upto` (8), then the caller's data.
//!
//! # Checkpoint slot (slot 0 at offset 0, slot 1 half way through the file)
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `PRISMCKP` |
//! | 8 | 4 | format version, now 1 |
//! | 12 | 4 | CRC32C of bytes 0–11 and 16 to the end of the data |
//! | 16 | 8 | sequence: the higher one of the two slots is the newer |
//! | 24 | 16 | nonce of the epoch |
//! | 40 | 8 | epoch |
//! | 48 | 8 | `durable_upto` |
//! | 56 | 8 | `trim_upto` |
//! | 64 | 8 | LSN of the checkpoint record with this data, 0 = none |
//! | 72 | 2 | shard |
//! | 74 | 2 | flags: 1 = the log was closed cleanly at `durable_upto` |
//! | 76 | 4 | length of the data |
//! | 80 | … | the caller's data |

use std::fmt;

use prism_io::disk::{PAGE_BYTES, page_ceiling};

/// Magic of a batch.
pub const BATCH_MAGIC: [u8; 8] = *b"PRISMWAL";
/// Magic of a checkpoint slot.
pub const CHECKPOINT_MAGIC: [u8; 8] = *b"PRISMCKP";
/// The one format version that this build reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of a batch header.
pub const BATCH_HEADER_BYTES: usize = 128;
/// Bytes of a record header.
pub const RECORD_HEADER_BYTES: usize = 80;
/// Records start at multiples of this.
pub const RECORD_ALIGN: usize = 8;
/// Bytes of one entry of a *Lanes* record.
pub const LANE_ENTRY_BYTES: usize = 16;
/// Bytes of the header of a checkpoint slot.
pub const CHECKPOINT_HEADER_BYTES: usize = 80;
/// Flag of an epoch's first batch.
pub const BATCH_FLAG_OPEN: u16 = 1;
/// Flag of a checkpoint slot that a clean close wrote.
pub const CHECKPOINT_FLAG_CLEAN: u16 = 1;
/// Name of the checkpoint file.
pub const CHECKPOINT_NAME: &str = "checkpoint.wal";

const _: () =
    assert!(BATCH_HEADER_BYTES.is_multiple_of(RECORD_ALIGN) && BATCH_HEADER_BYTES < PAGE_BYTES);
const _: () = assert!(RECORD_HEADER_BYTES.is_multiple_of(RECORD_ALIGN));

/// Stands for no segment file.
pub const NO_FILE: u32 = u32::MAX;

/// Random number of an epoch.
pub type Nonce = [u8; 16];

/// Name of the segment file with this number.
pub fn segment_name(file: u32) -> String {
    format!("segment-{file:08}.wal")
}

/// The number in the name of a segment file.
pub fn segment_number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("segment-")?.strip_suffix(".wal")?;
    if digits.len() < 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// What stands at the start of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Nonce of the epoch.
    pub nonce: Nonce,
    /// Epoch.
    pub epoch: u64,
    /// Activation number of the segment.
    pub segment_seq: u64,
    /// LSN of the first record.
    pub first_lsn: u64,
    /// Contiguous durable prefix at submission.
    pub durable_upto: u64,
    /// No LSN up to this one is needed any more.
    pub trim_upto: u64,
    /// Wall clock at submission, µs.
    pub written_at_us: u64,
    /// Records in the batch.
    pub count: u32,
    /// Bytes of header and records.
    pub bytes: u32,
    /// Checksum of the records.
    pub body_crc: u32,
    /// Header checksum of the batch before.
    pub previous_crc: u32,
    /// Shard whose log this is.
    pub shard: u16,
    /// [`BATCH_FLAG_OPEN`] or 0.
    pub flags: u16,
    /// The spare segment file that will be activated next; [`NO_FILE`] where there was none.
    pub next_file: u32,
}

/// Why bytes are not a batch header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// All zero: never written.
    Zero,
    /// The magic is not there.
    NotABatch,
    /// The checksum is wrong, or a field has an impossible value.
    Damaged,
    /// Intact, but of a format that this build does not know.
    UnknownVersion(u32),
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderFault::Zero => write!(formatter, "zero"),
            HeaderFault::NotABatch => write!(formatter, "not a batch header"),
            HeaderFault::Damaged => write!(formatter, "damaged batch header"),
            HeaderFault::UnknownVersion(version) => {
                write!(formatter, "unknown format version {version}")
            }
        }
    }
}

/// The seed that an epoch's nonce gives to its checksums.
pub fn seed(nonce: &Nonce) -> u32 {
    crc32c::crc32c(nonce)
}

/// Checksum of a batch's records.
pub fn body_crc(seed: u32, body: &[u8]) -> u32 {
    crc32c::crc32c_append(seed, body)
}

fn header_crc(seed: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &bytes[..12]), &bytes[16..BATCH_HEADER_BYTES])
}

impl BatchHeader {
    /// Bytes that the batch occupies in its file.
    pub fn padded_bytes(&self) -> usize {
        page_ceiling(self.bytes as usize)
    }

    /// LSN of the last record.
    pub fn last_lsn(&self) -> u64 {
        self.first_lsn + u64::from(self.count) - 1
    }

    /// Whether this is the open batch of its epoch.
    pub fn is_open(&self) -> bool {
        self.flags & BATCH_FLAG_OPEN != 0
    }

    /// Writes the header to the start of `bytes` and returns its checksum, the next link of the chain.
    pub fn encode(&self, bytes: &mut [u8]) -> u32 {
        let bytes = &mut bytes[..BATCH_HEADER_BYTES];
        bytes[..8].copy_from_slice(&BATCH_MAGIC);
        put_u32(bytes, 8, FORMAT_VERSION);
        bytes[16..32].copy_from_slice(&self.nonce);
        put_u64(bytes, 32, self.epoch);
        put_u64(bytes, 40, self.segment_seq);
        put_u64(bytes, 48, self.first_lsn);
        put_u64(bytes, 56, self.durable_upto);
        put_u64(bytes, 64, self.trim_upto);
        put_u64(bytes, 72, self.written_at_us);
        put_u32(bytes, 80, self.count);
        put_u32(bytes, 84, self.bytes);
        put_u32(bytes, 88, self.body_crc);
        put_u32(bytes, 92, self.previous_crc);
        put_u16(bytes, 96, self.shard);
        put_u16(bytes, 98, self.flags);
        put_u32(bytes, 100, self.next_file);
        bytes[104..].fill(0);
        let crc = header_crc(seed(&self.nonce), bytes);
        put_u32(bytes, 12, crc);
        crc
    }

    /// Reads the header at the start of `bytes` and its checksum. That the nonce is one we know is for the caller to ask.
    ///
    /// # Panics
    /// When there are fewer than [`BATCH_HEADER_BYTES`].
    pub fn decode(bytes: &[u8]) -> Result<(BatchHeader, u32), HeaderFault> {
        let bytes = &bytes[..BATCH_HEADER_BYTES];
        if bytes[..8] != BATCH_MAGIC {
            let zero = bytes.iter().all(|&byte| byte == 0);
            return Err(if zero { HeaderFault::Zero } else { HeaderFault::NotABatch });
        }
        let nonce: Nonce = array(bytes, 16);
        let crc = header_crc(seed(&nonce), bytes);
        if crc != get_u32(bytes, 12) {
            return Err(HeaderFault::Damaged);
        }
        let version = get_u32(bytes, 8);
        if version != FORMAT_VERSION {
            return Err(HeaderFault::UnknownVersion(version));
        }
        let header = BatchHeader {
            nonce,
            epoch: get_u64(bytes, 32),
            segment_seq: get_u64(bytes, 40),
            first_lsn: get_u64(bytes, 48),
            durable_upto: get_u64(bytes, 56),
            trim_upto: get_u64(bytes, 64),
            written_at_us: get_u64(bytes, 72),
            count: get_u32(bytes, 80),
            bytes: get_u32(bytes, 84),
            body_crc: get_u32(bytes, 88),
            previous_crc: get_u32(bytes, 92),
            shard: get_u16(bytes, 96),
            flags: get_u16(bytes, 98),
            next_file: get_u32(bytes, 100),
        };
        let room = (header.bytes as usize).saturating_sub(BATCH_HEADER_BYTES);
        let sane = header.count >= 1
            && header.count as usize <= room / RECORD_HEADER_BYTES
            && header.first_lsn >= 1
            && header.epoch >= 1
            && header.segment_seq >= 1
            && header.first_lsn.checked_add(u64::from(header.count)).is_some()
            && header.durable_upto < header.first_lsn
            && header.trim_upto <= header.durable_upto
            && header.flags & !BATCH_FLAG_OPEN == 0
            && bytes[104..].iter().all(|&byte| byte == 0);
        if sane { Ok((header, crc)) } else { Err(HeaderFault::Damaged) }
    }
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the range has N bytes")
}

pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> BatchHeader {
        BatchHeader {
            nonce: *b"0123456789abcdef",
            epoch: 3,
            segment_seq: 9,
            first_lsn: 100,
            durable_upto: 99,
            trim_upto: 40,
            written_at_us: 1_700_000_000_000_000,
            count: 2,
            bytes: 400,
            body_crc: 0xdead_beef,
            previous_crc: 0x0bad_cafe,
            shard: 1,
            flags: 0,
            next_file: 4,
        }
    }

    #[test]
    fn a_header_survives_and_every_flipped_bit_is_noticed() {
        let mut bytes = [0; BATCH_HEADER_BYTES];
        let crc = header().encode(&mut bytes);
        assert_eq!(BatchHeader::decode(&bytes), Ok((header(), crc)));
        for bit in 0..BATCH_HEADER_BYTES * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(BatchHeader::decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn an_intact_header_of_another_version_is_told_from_a_damaged_one() {
        let mut bytes = [0; BATCH_HEADER_BYTES];
        header().encode(&mut bytes);
        put_u32(&mut bytes, 8, 2);
        assert_eq!(BatchHeader::decode(&bytes), Err(HeaderFault::Damaged));
        let crc = header_crc(seed(&header().nonce), &bytes);
        put_u32(&mut bytes, 12, crc);
        assert_eq!(BatchHeader::decode(&bytes), Err(HeaderFault::UnknownVersion(2)));
    }

    #[test]
    fn segment_names_carry_their_number() {
        assert_eq!(segment_name(7), "segment-00000007.wal");
        assert_eq!(segment_number("segment-00000007.wal"), Some(7));
        assert_eq!(segment_number("segment-00000007.wal.new"), None);
        assert_eq!(segment_number("segment-+0000007.wal"), None);
    }
}
