//! One record: what a caller asked for, or what the log notes about itself.
//!
//! Promises: decoding never panics on any bytes, copies nothing, and accepts only what encoding writes.

use crate::format::{
    RECORD_ALIGN, RECORD_HEADER_BYTES, array, get_u16, get_u32, get_u64, put_u16, put_u32, put_u64,
};

/// A share of a namespace: the unit of write order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// Namespace id, never reused.
    pub namespace: u32,
    /// Partition of the namespace.
    pub partition: u16,
}

/// What a record is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// A call, to be applied to its lane's backend.
    #[default]
    Data = 0,
    /// First record of an epoch (written by the log).
    Open = 1,
    /// The last `lane_seq` of every lane (written by the log).
    Lanes = 2,
    /// Proof that what is before it was durable (written by the log).
    Seal = 3,
    /// Last record of a log that was closed cleanly (written by the log).
    Close = 4,
    /// How far the log may be trimmed, and the caller's data (written by [`crate::Log::trim`]).
    Checkpoint = 5,
    /// Outcome of a keyed call.
    Settlement = 6,
    /// A record of the lane that its backend will never see; its number is in the body.
    Skip = 7,
    /// The lane goes to another log from here on.
    HandOver = 8,
}

impl RecordKind {
    fn from_byte(byte: u8) -> Option<RecordKind> {
        use RecordKind::*;
        [Data, Open, Lanes, Seal, Close, Checkpoint, Settlement, Skip, HandOver]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }

    /// Whether only the log itself writes such records.
    pub fn is_own(self) -> bool {
        use RecordKind::*;
        matches!(self, Open | Lanes | Seal | Close | Checkpoint)
    }
}

/// What the caller says about a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordHead<'a> {
    /// Unit of order.
    pub lane: Lane,
    /// Generation of the namespace's plan.
    pub plan_generation: u32,
    /// Stable number of the method.
    pub method: u16,
    /// Version of the method's meaning.
    pub semantics: u8,
    /// Flags of the caller; the log does not look at them.
    pub flags: u8,
    /// Hash of the caller's identity, the scope of its idempotency keys.
    pub caller: u64,
    /// Idempotency key, empty for none. At most [`IDEMPOTENCY_KEY_BYTES_MAX`] bytes.
    pub idempotency_key: &'a [u8],
    /// Deadline, µs since the Unix epoch; 0 for none.
    pub deadline_us: u64,
    /// Trace id, zero for none.
    pub trace_id: [u8; 16],
}

/// Bytes of an idempotency key at most.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;

/// A record as it stands in the log; key and body point into the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Number in the shard's log.
    pub lsn: u64,
    /// Number in its lane, contiguous from 1; 0 for internal records.
    pub lane_seq: u64,
    /// When it was accepted, µs since the Unix epoch; never less than that of an earlier record.
    pub log_time_us: u64,
    /// What it is.
    pub kind: RecordKind,
    /// What the caller said.
    pub head: RecordHead<'a>,
    /// The request message's bytes.
    pub body: &'a [u8],
}

/// Takes the records of a log that is being recovered. Every closure that takes a record is one.
pub trait Sink {
    /// These come next, if they are accepted: a chance to fetch what they will touch. Promises nothing else.
    fn upcoming(&mut self, _records: &[Record<'_>]) {}

    /// The next record.
    fn record(&mut self, record: &Record<'_>);
}

impl<F: FnMut(&Record<'_>)> Sink for F {
    fn record(&mut self, record: &Record<'_>) {
        self(record);
    }
}

/// Bytes of a record with this key and body in a batch, the gap to the next one included.
pub(crate) fn record_bytes(key: usize, body: usize) -> usize {
    (RECORD_HEADER_BYTES + key + body).next_multiple_of(RECORD_ALIGN)
}

impl<'a> Record<'a> {
    /// Writes the record over the whole of `bytes`, which is [`record_bytes`] long.
    #[inline]
    pub(crate) fn encode(&self, bytes: &mut [u8]) {
        let (key, body) = (self.head.idempotency_key, self.body);
        let key_end = RECORD_HEADER_BYTES + key.len();
        let length = key_end + body.len();
        debug_assert_eq!(bytes.len(), length.next_multiple_of(RECORD_ALIGN));
        let header: &mut [u8; RECORD_HEADER_BYTES] =
            (&mut bytes[..RECORD_HEADER_BYTES]).try_into().expect("the slice has that length");
        put_u32(header, 0, length as u32);
        header[4] = self.kind as u8;
        header[5] = self.head.flags;
        put_u16(header, 6, key.len() as u16);
        put_u64(header, 8, self.lsn);
        put_u64(header, 16, self.lane_seq);
        put_u64(header, 24, self.log_time_us);
        put_u64(header, 32, self.head.deadline_us);
        put_u64(header, 40, self.head.caller);
        header[48..64].copy_from_slice(&self.head.trace_id);
        put_u32(header, 64, self.head.lane.namespace);
        put_u32(header, 68, self.head.plan_generation);
        put_u16(header, 72, self.head.lane.partition);
        put_u16(header, 74, self.head.method);
        header[76] = self.head.semantics;
        header[77..80].fill(0);
        bytes[RECORD_HEADER_BYTES..key_end].copy_from_slice(key);
        bytes[key_end..length].copy_from_slice(body);
        bytes[length..].fill(0);
    }

    /// Reads the record at the start of `bytes`, and how many bytes it takes with the gap behind it. `None` where the
    /// bytes are no record.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<(Record<'a>, usize)> {
        let header = bytes.get(..RECORD_HEADER_BYTES)?;
        let length = get_u32(header, 0) as usize;
        let key_end = RECORD_HEADER_BYTES + usize::from(get_u16(header, 6));
        let taken = length.checked_next_multiple_of(RECORD_ALIGN)?;
        let gap_is_zero = bytes.get(length..taken)?.iter().all(|&byte| byte == 0);
        if key_end > length || !gap_is_zero || header[77..80] != [0; 3] {
            return None;
        }
        let head = RecordHead {
            lane: Lane { namespace: get_u32(header, 64), partition: get_u16(header, 72) },
            plan_generation: get_u32(header, 68),
            method: get_u16(header, 74),
            semantics: header[76],
            flags: header[5],
            caller: get_u64(header, 40),
            idempotency_key: &bytes[RECORD_HEADER_BYTES..key_end],
            deadline_us: get_u64(header, 32),
            trace_id: array(header, 48),
        };
        let record = Record {
            lsn: get_u64(header, 8),
            lane_seq: get_u64(header, 16),
            log_time_us: get_u64(header, 24),
            kind: RecordKind::from_byte(header[4])?,
            head,
            body: &bytes[key_end..length],
        };
        Some((record, taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives() {
        let head = RecordHead {
            lane: Lane { namespace: 7, partition: 3 },
            plan_generation: 2,
            method: 11,
            semantics: 1,
            flags: 9,
            caller: 0x1234_5678_9abc_def0,
            idempotency_key: b"key-1",
            deadline_us: 55,
            trace_id: *b"fedcba9876543210",
        };
        let record = Record {
            lsn: 42,
            lane_seq: 6,
            log_time_us: 77,
            kind: RecordKind::Settlement,
            head,
            body: b"hello",
        };
        let mut bytes = vec![0xff; record_bytes(5, 5)];
        record.encode(&mut bytes);
        assert_eq!(Record::decode(&bytes), Some((record, 96)));
    }

    #[test]
    fn no_bytes_make_decoding_panic() {
        let record = Record {
            lsn: 1,
            lane_seq: 1,
            log_time_us: 1,
            kind: RecordKind::Data,
            head: RecordHead { idempotency_key: b"k", ..RecordHead::default() },
            body: b"body",
        };
        let mut bytes = vec![0; record_bytes(1, 4)];
        record.encode(&mut bytes);
        for length in 0..bytes.len() {
            assert_eq!(Record::decode(&bytes[..length]), None);
        }
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let _ = Record::decode(&bytes);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
