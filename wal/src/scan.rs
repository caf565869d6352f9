//! Reading a segment from front to back: batches that are valid where they stand, and headers that prove something.

use std::fmt;
use std::io;

use prism_io::disk::{ChunkStream, PAGE_BYTES, Storage};

use crate::format::{
    BATCH_HEADER_BYTES, BATCH_MAGIC, BatchHeader, HeaderFault, Nonce, body_crc, seed,
};
use crate::record::Record;

/// A window that moves forward over one file. What lies within one chunk is looked at where it was read to.
pub(crate) struct SegmentReader {
    stream: Box<dyn ChunkStream>,
    /// Offset of the stream's chunk in the file.
    chunk_start: u64,
    /// Bytes from several chunks, put together, and their offset.
    joined: Vec<u8>,
    joined_start: u64,
    ended: bool,
}

impl SegmentReader {
    pub(crate) fn open(storage: &mut dyn Storage, name: &str) -> io::Result<SegmentReader> {
        Ok(SegmentReader::of(storage.stream(name, 0)?))
    }

    /// Over a file that is streamed from its beginning.
    pub(crate) fn of(stream: Box<dyn ChunkStream>) -> SegmentReader {
        let (chunk_start, joined, joined_start, ended) = (0, Vec::new(), 0, false);
        SegmentReader { stream, chunk_start, joined, joined_start, ended }
    }

    /// The bytes at `offset`, fewer than `length` only at the end of the file. Offsets never go back.
    pub(crate) fn get(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        while offset >= self.chunk_end() && !self.ended {
            self.step()?;
        }
        let end = offset + length as u64;
        if offset >= self.chunk_start && (end <= self.chunk_end() || self.ended) {
            return Ok(part(self.stream.chunk(), self.chunk_start, offset, length));
        }
        let joined_end = self.joined_start + self.joined.len() as u64;
        if offset < self.joined_start || offset >= joined_end {
            self.joined.clear();
            self.joined_start = offset;
            self.joined.extend_from_slice(part(
                self.stream.chunk(),
                self.chunk_start,
                offset,
                length,
            ));
        }
        self.join(end)?;
        Ok(part(&self.joined, self.joined_start, offset, length))
    }

    fn chunk_end(&self) -> u64 {
        self.chunk_start + self.stream.chunk().len() as u64
    }

    /// Goes on to the next chunk.
    fn step(&mut self) -> io::Result<()> {
        let start = self.chunk_end();
        self.ended = self.stream.next_chunk()?.is_empty();
        self.chunk_start = start;
        Ok(())
    }

    /// Has the joined bytes reach to `end`, or to the end of the file.
    fn join(&mut self, end: u64) -> io::Result<()> {
        loop {
            let joined_end = self.joined_start + self.joined.len() as u64;
            if joined_end >= end {
                return Ok(());
            }
            if joined_end == self.chunk_end() {
                if self.ended {
                    return Ok(());
                }
                self.step()?;
            }
            let wanted = usize::try_from(end - joined_end).expect("it is in memory");
            let chunk = part(self.stream.chunk(), self.chunk_start, joined_end, wanted);
            self.joined.extend_from_slice(chunk);
        }
    }
}

/// The bytes at `offset` of what begins at `start`, as far as they are there.
fn part(bytes: &[u8], start: u64, offset: u64, length: usize) -> &[u8] {
    let from = usize::try_from(offset.saturating_sub(start))
        .map_or(bytes.len(), |from| from.min(bytes.len()));
    &bytes[from..(from + length).min(bytes.len())]
}

/// What a batch must be to come next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) nonce: Nonce,
    pub(crate) epoch: u64,
    pub(crate) segment_seq: u64,
    pub(crate) first_lsn: u64,
    /// Header checksum of the batch before, where it was read.
    pub(crate) chain_crc: Option<u32>,
}

/// Why the bytes at a place are not the batch that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BatchFault {
    /// The file ends here.
    EndOfFile,
    /// No header, or a damaged one.
    Header(HeaderFault),
    /// An intact header of an earlier use of the file, or of another place.
    Stale,
    /// The header is the expected one, the records are torn or damaged.
    Body,
}

impl fmt::Display for BatchFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BatchFault::EndOfFile => write!(formatter, "end of the file"),
            BatchFault::Header(fault) => fault.fmt(formatter),
            BatchFault::Stale => {
                write!(formatter, "a batch of another use of the file, or of another place")
            }
            BatchFault::Body => write!(formatter, "a batch whose records are torn or damaged"),
        }
    }
}

/// A valid batch: its header, the header's checksum, and the bytes of its records.
pub(crate) type Batch<'a> = (BatchHeader, u32, &'a [u8]);

/// Reads the batch at `offset`, if it is the one that comes next.
pub(crate) fn read_batch<'a>(
    reader: &'a mut SegmentReader,
    offset: u64,
    expected: &Expected,
) -> io::Result<Result<Batch<'a>, BatchFault>> {
    let bytes = reader.get(offset, BATCH_HEADER_BYTES)?;
    if bytes.len() < BATCH_HEADER_BYTES {
        return Ok(Err(BatchFault::EndOfFile));
    }
    let (header, crc) = match BatchHeader::decode(bytes) {
        Ok(decoded) => decoded,
        Err(fault) => return Ok(Err(BatchFault::Header(fault))),
    };
    let fits = header.nonce == expected.nonce
        && header.epoch == expected.epoch
        && header.segment_seq == expected.segment_seq
        && header.first_lsn == expected.first_lsn
        && expected.chain_crc.is_none_or(|crc| crc == header.previous_crc);
    if !fits {
        return Ok(Err(BatchFault::Stale));
    }
    let batch = reader.get(offset, header.padded_bytes())?;
    if batch.len() < header.padded_bytes() {
        return Ok(Err(BatchFault::Body));
    }
    let (content, padding) = batch.split_at(header.bytes as usize);
    let body = &content[BATCH_HEADER_BYTES..];
    if body_crc(seed(&header.nonce), body) != header.body_crc
        || padding.iter().any(|&byte| byte != 0)
    {
        return Ok(Err(BatchFault::Body));
    }
    Ok(Ok((header, crc, body)))
}

/// The records of a batch in order; `None` in place of one that is none.
pub(crate) struct Records<'a> {
    body: &'a [u8],
    next_lsn: u64,
    left: u32,
}

impl<'a> Records<'a> {
    pub(crate) fn new(header: &BatchHeader, body: &'a [u8]) -> Records<'a> {
        Records { body, next_lsn: header.first_lsn, left: header.count }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Option<Record<'a>>;

    fn next(&mut self) -> Option<Option<Record<'a>>> {
        if self.left == 0 {
            // Nothing may stand behind the last record.
            return (!std::mem::take(&mut self.body).is_empty()).then_some(None);
        }
        match Record::decode(self.body) {
            Some((record, bytes)) if record.lsn == self.next_lsn => {
                self.body = &self.body[bytes..];
                self.next_lsn += 1;
                self.left -= 1;
                Some(Some(record))
            }
            _ => {
                self.left = 0;
                self.body = &[];
                Some(None)
            }
        }
    }
}

/// The intact headers with this nonce at page boundaries from `offset` on. Headers that a payload contains do not pass: the
/// nonce was not known to anybody when the payload was made.
pub(crate) fn headers_behind(
    reader: &mut SegmentReader,
    offset: u64,
    nonce: &Nonce,
    found: &mut dyn FnMut(u64, &BatchHeader),
) -> io::Result<()> {
    let mut offset = offset;
    loop {
        let page = reader.get(offset, PAGE_BYTES)?;
        if page.len() < BATCH_HEADER_BYTES {
            return Ok(());
        }
        if page[..8] == BATCH_MAGIC
            && let Ok((header, _)) = BatchHeader::decode(page)
            && header.nonce == *nonce
        {
            found(offset, &header);
        }
        offset += PAGE_BYTES as u64;
    }
}
