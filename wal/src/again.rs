//! Records of a running log read again from its segments, for what memory does not hold any more.
//!
//! The log itself says which segments hold which records, so nothing is decided here: every batch on the way has to be there,
//! and one that is not is an error.

use std::io;

use prism_io::disk::ChunkStream;

use crate::format::{BATCH_HEADER_BYTES, BatchHeader, segment_name};
use crate::record::Record;
use crate::scan::{Expected, Records, SegmentReader, read_batch};
use crate::segment::UsedSegment;

/// Hands out the records from `from` to `upto`, both durable, in LSN order, until `sink` says that it has enough.
///
/// `segments` is [`Log::used_segments`](crate::Log::used_segments), and none of those that hold the records may be trimmed
/// meanwhile. `open` streams a segment from its beginning. Blocking.
///
/// # Errors
/// A file cannot be read, or does not hold what the log has written to it (`InvalidData`).
pub fn read_again(
    segments: &[UsedSegment],
    from: u64,
    upto: u64,
    open: &mut dyn FnMut(&str) -> io::Result<Box<dyn ChunkStream>>,
    sink: &mut dyn FnMut(&Record<'_>) -> bool,
) -> io::Result<()> {
    for (index, segment) in segments.iter().enumerate() {
        // The active one goes on beyond what was last known of it.
        let is_active = index + 1 == segments.len();
        let last_lsn = if is_active { upto } else { segment.last_lsn.min(upto) };
        if segment.first_lsn > upto || last_lsn < from {
            continue;
        }
        let name = segment_name(segment.file);
        let damaged = |offset: u64, fault: &dyn std::fmt::Display| {
            let text = format!("{name}, offset {offset}: {fault}, where records were written");
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let mut reader = SegmentReader::of(open(&name)?);
        let (first, _) = BatchHeader::decode(reader.get(0, BATCH_HEADER_BYTES)?)
            .map_err(|fault| damaged(0, &fault))?;
        let mut expected = Expected {
            nonce: first.nonce,
            epoch: first.epoch,
            segment_seq: segment.segment_seq,
            first_lsn: segment.first_lsn,
            chain_crc: None,
        };
        let mut offset = 0;
        while expected.first_lsn <= last_lsn {
            let (header, crc, body) = read_batch(&mut reader, offset, &expected)?
                .map_err(|fault| damaged(offset, &fault))?;
            for record in Records::new(&header, body) {
                let record = record.ok_or_else(|| damaged(offset, &"a malformed record"))?;
                if (from..=upto).contains(&record.lsn) && !sink(&record) {
                    return Ok(());
                }
            }
            expected.first_lsn = header.last_lsn() + 1;
            expected.chain_crc = Some(crc);
            offset += header.padded_bytes() as u64;
        }
    }
    Ok(())
}
