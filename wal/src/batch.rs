//! A batch: gathered in one aligned buffer, written as it is, and read from the same memory afterwards.

use prism_io::disk::{AlignedBuffer, PAGE_BYTES, SharedBuffer, page_ceiling};

use crate::format::{BATCH_HEADER_BYTES, NO_FILE};
use crate::record::{Record, record_bytes};

/// A batch that is being filled, or is full and waits for its write.
#[derive(Debug)]
pub(crate) struct Gather {
    buffer: AlignedBuffer,
    /// File number of its segment.
    pub(crate) file: u32,
    /// Where it will stand in the segment.
    pub(crate) offset: u64,
    /// Activation of that segment.
    pub(crate) segment_seq: u64,
    /// Bytes that it may take at most.
    pub(crate) limit: usize,
    pub(crate) first_lsn: u64,
    pub(crate) opened_at_us: u64,
    pub(crate) flags: u16,
    /// The spare file that comes after its segment, known when it is full.
    pub(crate) next_file: u32,
    /// Whether something in it wants a seal behind it.
    pub(crate) wants_seal: bool,
}

/// Where a batch goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) file: u32,
    pub(crate) offset: u64,
    pub(crate) segment_seq: u64,
}

impl Gather {
    pub(crate) fn new(
        mut buffer: AlignedBuffer,
        place: Place,
        limit: usize,
        first_lsn: u64,
        now_us: u64,
    ) -> Gather {
        let Place { file, offset, segment_seq } = place;
        let limit = limit.min(buffer.capacity());
        buffer.extend(BATCH_HEADER_BYTES);
        Gather {
            buffer,
            file,
            offset,
            segment_seq,
            limit,
            first_lsn,
            opened_at_us: now_us,
            flags: 0,
            next_file: NO_FILE,
            wants_seal: false,
        }
    }

    #[inline]
    pub(crate) fn fits(&self, bytes: usize) -> bool {
        self.buffer.len() + bytes <= self.limit
    }

    #[inline]
    pub(crate) fn push(&mut self, record: &Record<'_>) {
        self.buffer.mark();
        let bytes = record_bytes(record.head.idempotency_key.len(), record.body.len());
        record.encode(self.buffer.extend(bytes));
    }

    pub(crate) fn bytes(&self) -> usize {
        self.buffer.len()
    }

    pub(crate) fn padded_bytes(&self) -> usize {
        page_ceiling(self.buffer.len())
    }

    pub(crate) fn count(&self) -> u32 {
        self.buffer.marks().len() as u32
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.buffer.as_slice()[BATCH_HEADER_BYTES..]
    }

    pub(crate) fn header_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.as_mut_slice()[..BATCH_HEADER_BYTES]
    }

    /// Ends the filling.
    pub(crate) fn freeze(mut self) -> SharedBuffer {
        self.buffer.pad_to_page();
        debug_assert!(self.buffer.len().is_multiple_of(PAGE_BYTES));
        self.buffer.freeze()
    }
}

/// A batch that is on stable storage. Clones are cheap; while one lives, the batch's memory is pinned.
#[derive(Clone, Debug)]
pub struct DurableBatch {
    pub(crate) buffer: SharedBuffer,
    pub(crate) first_lsn: u64,
    pub(crate) submitted_at_us: u64,
    pub(crate) completed_at_us: u64,
}

impl DurableBatch {
    /// LSN of the first record.
    pub fn first_lsn(&self) -> u64 {
        self.first_lsn
    }

    /// LSN of the last record.
    pub fn last_lsn(&self) -> u64 {
        self.first_lsn + self.len() as u64 - 1
    }

    /// Records in the batch, internal ones included; at least one.
    pub fn len(&self) -> usize {
        self.buffer.marks().len()
    }

    /// Never true; here because `len` is.
    pub fn is_empty(&self) -> bool {
        self.buffer.marks().is_empty()
    }

    /// The record at `index`, counted from 0 (its LSN is `first_lsn + index`).
    ///
    /// # Panics
    /// When there is no such record.
    #[inline]
    pub fn record(&self, index: usize) -> Record<'_> {
        let start = self.buffer.marks()[index] as usize;
        let (record, _) = Record::decode(&self.buffer.as_slice()[start..])
            .expect("the log wrote this record itself");
        record
    }

    /// The record with this LSN, where it is in this batch.
    pub fn by_lsn(&self, lsn: u64) -> Option<Record<'_>> {
        let index = usize::try_from(lsn.checked_sub(self.first_lsn)?).ok()?;
        (index < self.len()).then(|| self.record(index))
    }

    /// The records in LSN order.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        (0..self.len()).map(|index| self.record(index))
    }

    /// Bytes written for it.
    pub fn bytes(&self) -> usize {
        self.buffer.as_slice().len()
    }

    /// From the submission of the write to its completion, µs.
    pub fn write_us(&self) -> u64 {
        self.completed_at_us.saturating_sub(self.submitted_at_us)
    }
}
