//! Reading batches in order and keeping what a log needs to go on: numbers, lanes, time, positions.

use prism_io::disk::Storage;

use crate::checkpoint::Checkpoint;
use crate::config::LogConfig;
use crate::epoch::{EpochEnd, OpenRecord};
use crate::error::RecoverError;
use crate::format::{BatchHeader, HeaderFault, NO_FILE, get_u64};
use crate::lanes::Lanes;
use crate::record::{Record, RecordKind, Sink};
use crate::recovery::RecoveryReport;
use crate::scan::{BatchFault, Expected, Records, SegmentReader, read_batch};
use crate::segment::UsedSegment;
use crate::survey::SegmentFile;

/// Records that a [`Sink`] is told of before it gets the first of them.
const GROUP_RECORDS: usize = 16;

/// A segment to be read.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) file: SegmentFile,
    /// The header at its beginning.
    pub(crate) header: BatchHeader,
    /// Where its epoch ended in it, if a later epoch recorded that.
    pub(crate) end: Option<EpochEnd>,
}

/// Where reading stopped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stop {
    /// Index of the piece.
    pub(crate) piece: usize,
    /// Offset in it of the first batch that is not valid.
    pub(crate) offset: u64,
    /// Whether something of a batch stands there.
    pub(crate) torn: bool,
    /// Whether the file ends there.
    pub(crate) end_of_file: bool,
    /// Whether the checksum was right and the contents were not.
    pub(crate) malformed: bool,
}

/// What was read so far.
#[derive(Debug)]
pub(crate) struct Replay<'a> {
    config: &'a LogConfig,
    /// Records up to this one are not handed out.
    trim_known: u64,
    /// The LSN that comes next, 0 before anything was read.
    pub(crate) next_lsn: u64,
    chain_crc: Option<u32>,
    position: Option<EpochEnd>,
    last_kind: RecordKind,
    pub(crate) lanes: Option<Lanes>,
    pub(crate) log_time_us: u64,
    pub(crate) trim_upto: u64,
    pub(crate) directory_id: [u8; 16],
    pub(crate) checkpoint_data: Vec<u8>,
    pub(crate) checkpoint_lsn: u64,
    pub(crate) used: Vec<UsedSegment>,
    /// The spare file that the last batch says comes next.
    pub(crate) next_file: Option<u32>,
    pub(crate) skipped: u64,
    pub(crate) report: RecoveryReport,
}

enum TakeError {
    Malformed,
    Refused(RecoverError),
}

impl<'a> Replay<'a> {
    pub(crate) fn new(
        config: &'a LogConfig,
        trim_known: u64,
        slot: Option<&Checkpoint>,
    ) -> Replay<'a> {
        Replay {
            config,
            trim_known,
            next_lsn: 0,
            chain_crc: None,
            position: None,
            last_kind: RecordKind::Data,
            lanes: None,
            log_time_us: 0,
            trim_upto: trim_known,
            directory_id: [0; 16],
            checkpoint_data: slot.map_or_else(Vec::new, |slot| slot.data.clone()),
            checkpoint_lsn: slot.map_or(0, |slot| slot.record_lsn),
            used: Vec::new(),
            next_file: None,
            skipped: 0,
            report: RecoveryReport::default(),
        }
    }

    /// Reads one segment up to its recorded end, or to the first batch that is not valid.
    pub(crate) fn read_piece(
        &mut self,
        storage: &mut dyn Storage,
        index: usize,
        piece: &Piece,
        sink: &mut dyn Sink,
    ) -> Result<Stop, RecoverError> {
        let fault = |error| RecoverError::Read { file: piece.file.name.clone(), error };
        let mut reader = SegmentReader::open(storage, &piece.file.name).map_err(fault)?;
        let mut stop = Stop { piece: index, ..Stop::default() };
        // An epoch may begin behind numbers that a repair left out; the open record says how many.
        let mut expected_lsn = if index == 0 || piece.header.is_open() {
            piece.header.first_lsn
        } else {
            self.next_lsn
        };
        if index == 0 {
            self.next_lsn = piece.header.first_lsn;
        }
        loop {
            if piece.end.is_some_and(|end| stop.offset >= end.offset)
                || stop.offset >= piece.file.bytes
            {
                stop.end_of_file = piece.end.is_none();
                return Ok(stop);
            }
            let expected = Expected {
                nonce: piece.header.nonce,
                epoch: piece.header.epoch,
                segment_seq: piece.header.segment_seq,
                first_lsn: expected_lsn,
                chain_crc: self.chain_crc,
            };
            let (header, crc, body) =
                match read_batch(&mut reader, stop.offset, &expected).map_err(fault)? {
                    Ok(batch) => batch,
                    Err(fault) => {
                        stop.torn = matches!(
                            fault,
                            BatchFault::Body | BatchFault::Header(HeaderFault::Damaged)
                        );
                        stop.end_of_file = fault == BatchFault::EndOfFile
                            || (fault == BatchFault::Body
                                && piece.file.bytes < self.config.segment_bytes);
                        return Ok(stop);
                    }
                };
            let after = stop.offset + header.padded_bytes() as u64;
            match self.take_batch(piece, &header, body, sink) {
                Ok(()) => {}
                Err(TakeError::Refused(error)) => return Err(error),
                Err(TakeError::Malformed) => {
                    stop.malformed = true;
                    return Ok(stop);
                }
            }
            self.chain_crc = Some(crc);
            self.next_lsn = header.last_lsn() + 1;
            expected_lsn = self.next_lsn;
            self.position = Some(EpochEnd {
                nonce: header.nonce,
                epoch: header.epoch,
                segment_seq: header.segment_seq,
                offset: after,
                next_lsn: self.next_lsn,
                chain_crc: crc,
            });
            stop.offset = after;
        }
    }

    fn take_batch(
        &mut self,
        piece: &Piece,
        header: &BatchHeader,
        body: &[u8],
        sink: &mut dyn Sink,
    ) -> Result<(), TakeError> {
        let mut records = Records::new(header, body);
        let mut group: Vec<Record<'_>> = Vec::with_capacity(GROUP_RECORDS);
        loop {
            group.clear();
            for record in records.by_ref().take(GROUP_RECORDS) {
                group.push(record.ok_or(TakeError::Malformed)?);
            }
            if group.is_empty() {
                break;
            }
            sink.upcoming(&group);
            for record in &group {
                self.take_record(piece, record, sink)?;
            }
        }
        self.trim_upto = self.trim_upto.max(header.trim_upto);
        self.next_file = (header.next_file != NO_FILE).then_some(header.next_file);
        self.report.batches += 1;
        self.report.records += u64::from(header.count);
        self.report.bytes += header.padded_bytes() as u64;
        match self.used.last_mut() {
            Some(used) if used.segment_seq == header.segment_seq => {
                used.last_lsn = header.last_lsn()
            }
            _ => self.used.push(UsedSegment {
                file: piece.file.number,
                segment_seq: header.segment_seq,
                first_lsn: header.first_lsn,
                last_lsn: header.last_lsn(),
            }),
        }
        if self.report.first_lsn == 0 {
            self.report.first_lsn = header.first_lsn;
        }
        Ok(())
    }

    fn take_record(
        &mut self,
        piece: &Piece,
        record: &Record<'_>,
        sink: &mut dyn Sink,
    ) -> Result<(), TakeError> {
        let lsn = record.lsn;
        match record.kind {
            RecordKind::Open => {
                let open = OpenRecord::decode(record.body).ok_or(TakeError::Malformed)?;
                let follows = self.position.is_none_or(|position| {
                    position == open.previous && lsn == position.next_lsn + open.skipped
                });
                if !follows {
                    return Err(TakeError::Malformed);
                }
                self.directory_id = open.directory_id;
            }
            RecordKind::Lanes => {
                self.lanes = Some(Lanes::decode(record.body).ok_or(TakeError::Malformed)?)
            }
            RecordKind::Checkpoint => {
                let data = record.body.get(8..).ok_or(TakeError::Malformed)?;
                self.trim_upto = self.trim_upto.max(get_u64(record.body, 0).min(lsn - 1));
                if lsn > self.checkpoint_lsn {
                    self.checkpoint_lsn = lsn;
                    self.checkpoint_data = data.to_vec();
                }
            }
            RecordKind::Data => {
                let semantics = record.head.semantics;
                if semantics > self.config.semantics_max {
                    let file = piece.file.name.clone();
                    return Err(TakeError::Refused(RecoverError::UnknownSemantics {
                        file,
                        lsn,
                        semantics,
                    }));
                }
                let lanes = self.lanes.as_mut().ok_or(TakeError::Malformed)?;
                if lanes.advance(record.head.lane, usize::MAX) != Some(record.lane_seq) {
                    return Err(TakeError::Malformed);
                }
            }
            RecordKind::Seal
            | RecordKind::Close
            | RecordKind::Settlement
            | RecordKind::Skip
            | RecordKind::HandOver => {}
        }
        if record.log_time_us < self.log_time_us {
            return Err(TakeError::Malformed);
        }
        self.log_time_us = record.log_time_us;
        self.last_kind = record.kind;
        if !record.kind.is_own() && lsn > self.trim_known {
            sink.record(record);
        }
        Ok(())
    }

    /// Whether reading stands exactly where a later epoch says that this one ended.
    pub(crate) fn is_at(&self, end: &EpochEnd, offset: u64) -> bool {
        let chain = self.chain_crc.is_none_or(|crc| crc == end.chain_crc);
        offset == end.offset && self.next_lsn == end.next_lsn && chain
    }

    /// Whether the next segment goes on where reading stands.
    pub(crate) fn leads_to(&self, next: &Piece) -> bool {
        next.header.first_lsn == self.next_lsn && self.chain_crc == Some(next.header.previous_crc)
    }

    /// Where the log ends.
    pub(crate) fn end(&self, pieces: &[Piece]) -> EpochEnd {
        let beginning = pieces.first().map(|piece| EpochEnd {
            nonce: piece.header.nonce,
            epoch: piece.header.epoch,
            segment_seq: piece.header.segment_seq,
            offset: 0,
            next_lsn: piece.header.first_lsn,
            chain_crc: piece.header.previous_crc,
        });
        self.position.or(beginning).unwrap_or_default()
    }

    /// Whether reading stands behind the record of a clean close that a slot confirms: nothing can follow.
    pub(crate) fn closed_cleanly(&self, slot: Option<&Checkpoint>) -> bool {
        let nonce = self.position.map(|position| position.nonce);
        self.last_kind == RecordKind::Close
            && slot.is_some_and(|slot| {
                slot.clean && slot.durable_upto + 1 == self.next_lsn && Some(slot.nonce) == nonce
            })
    }
}

/// The record that opens an epoch, when the batch at the beginning of the file is the open batch and is whole.
pub(crate) fn read_open_record(
    storage: &mut dyn Storage,
    file: &SegmentFile,
) -> Result<Option<OpenRecord>, RecoverError> {
    let Some(header) = file.header().filter(BatchHeader::is_open) else { return Ok(None) };
    let fault = |error| RecoverError::Read { file: file.name.clone(), error };
    let mut reader = SegmentReader::open(storage, &file.name).map_err(fault)?;
    let expected = Expected {
        nonce: header.nonce,
        epoch: header.epoch,
        segment_seq: header.segment_seq,
        first_lsn: header.first_lsn,
        chain_crc: None,
    };
    let Ok((header, _, body)) = read_batch(&mut reader, 0, &expected).map_err(fault)? else {
        return Ok(None);
    };
    let first = Records::new(&header, body).next().flatten();
    Ok(first
        .filter(|record| record.kind == RecordKind::Open)
        .and_then(|record| OpenRecord::decode(record.body)))
}
