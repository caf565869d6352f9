//! Where the next batch goes: room in the active segment, spare segments, and who may take the last of them.

use std::io;

use prism_io::disk::{PAGE_BYTES, is_out_of_space, page_ceiling};

use super::{AppendError, FileId, Log, Operation, State};
use crate::batch::{Gather, Place};
use crate::format::{BATCH_FLAG_OPEN, BATCH_HEADER_BYTES, NO_FILE};
use crate::record::{RecordHead, RecordKind, record_bytes};

/// How much of the last space a record may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// Calls leave the internal segments alone.
    Call,
    /// Internal records leave what a trim needs.
    Internal,
    /// Trims and the clean close take the last byte.
    Vital,
}

impl Log {
    /// Sees to it that the gathering batch takes `bytes` more, beginning another batch or segment where it must.
    #[inline]
    pub(super) fn make_room(&mut self, class: Class, bytes: usize) -> Result<(), AppendError> {
        if class == Class::Call && !self.has_room_for_calls(bytes) {
            return Err(AppendError::Full);
        }
        match &self.gather {
            Some(gather) if gather.fits(bytes) => Ok(()),
            _ => self.begin_batch(class, bytes),
        }
    }

    /// Calls leave to internal records their own spare segments; while those are missing (at a start, or because internal
    /// records took them), the second half of the active one.
    pub(super) fn has_room_for_calls(&self, bytes: usize) -> bool {
        let placed =
            self.head + self.gather.as_ref().map_or(0, |gather| gather.padded_bytes() as u64);
        self.segments.spares() >= self.config.segments_internal as usize
            || placed + bytes as u64 <= self.config.segment_bytes / 2
    }

    /// Whether not even a small call finds a place.
    pub(super) fn is_full(&self) -> bool {
        let placed =
            self.head + self.gather.as_ref().map_or(0, |gather| gather.padded_bytes() as u64);
        let next_page_fits = placed + PAGE_BYTES as u64 <= self.config.segment_bytes
            || self.segments.spares() > self.config.segments_internal as usize;
        !next_page_fits || !self.has_room_for_calls(0)
    }

    /// What a call without room is told: that the log is full, or, while a segment that may still be made is missing, that the
    /// disk is behind.
    #[cold]
    pub(super) fn refusal(&mut self) -> AppendError {
        let grows = self.segments.total() < self.config.segments_max as usize
            && self.segments.spares() < self.config.segments_ready as usize;
        if grows && self.create_not_before_us == 0 {
            return AppendError::Busy;
        }
        self.counters.refused_full += 1;
        AppendError::Full
    }

    #[cold]
    pub(super) fn begin_batch(&mut self, class: Class, bytes: usize) -> Result<(), AppendError> {
        let pending = self.gather.as_ref().map_or(0, Gather::padded_bytes);
        let room = (self.config.segment_bytes - self.head) as usize - pending;
        let spares = self.segments.spares();
        let kept = if class < Class::Vital && spares == 0 { self.config.vital_bytes() } else { 0 };
        let needed = BATCH_HEADER_BYTES + bytes;
        if page_ceiling(needed) + kept <= room {
            self.seal_gather();
            let last = self.segments.used().last().expect("there is room in an active segment");
            let place = Place { file: last.file, offset: self.head, segment_seq: last.segment_seq };
            let buffer = self.pool.take(needed);
            self.gather = Some(Gather::new(buffer, place, room - kept, self.next_lsn, self.now_us));
            return Ok(());
        }
        let spares_needed =
            if class == Class::Call { self.config.segments_internal as usize + 1 } else { 1 };
        if spares < spares_needed {
            return Err(AppendError::Full);
        }
        self.seal_gather();
        self.begin_segment(bytes);
        Ok(())
    }

    /// Activates a spare segment and begins its first batch, with the lane table and room for `bytes` more.
    pub(super) fn begin_segment(&mut self, bytes: usize) {
        let segment = self.segments.activate(self.next_lsn);
        self.head = 0;
        let place = Place { file: segment.file, offset: 0, segment_seq: segment.segment_seq };
        let table = self.lanes.encode();
        let buffer = self.pool.take(BATCH_HEADER_BYTES + record_bytes(0, table.len()) + bytes);
        let limit = self.config.segment_bytes as usize;
        self.gather = Some(Gather::new(buffer, place, limit, self.next_lsn, self.now_us));
        self.push(RecordKind::Lanes, 0, &RecordHead::default(), &table);
    }

    pub(super) fn seal_gather(&mut self) {
        if let Some(mut gather) = self.gather.take() {
            gather.next_file = self.segments.next_spare().unwrap_or(NO_FILE);
            self.head += gather.padded_bytes() as u64;
            self.sealed_bytes += gather.bytes();
            self.sealed.push_back(gather);
        }
    }

    /// The first batch of the epoch, into a fresh segment; later, when there is no spare one yet.
    pub(super) fn write_open_batch(&mut self) {
        if self.state != State::Opening || self.segments.spares() == 0 || !self.checkpoint.exists {
            return;
        }
        let body = self.open.encode();
        let segment = self.segments.activate(self.next_lsn);
        self.head = 0;
        let place = Place { file: segment.file, offset: 0, segment_seq: segment.segment_seq };
        let table = self.lanes.encode();
        let buffer = self
            .pool
            .take(BATCH_HEADER_BYTES + record_bytes(0, body.len()) + record_bytes(0, table.len()));
        let limit = self.config.segment_bytes as usize;
        let mut gather = Gather::new(buffer, place, limit, self.next_lsn, self.now_us);
        gather.flags = BATCH_FLAG_OPEN;
        self.gather = Some(gather);
        self.push(RecordKind::Open, 0, &RecordHead::default(), &body);
        self.push(RecordKind::Lanes, 0, &RecordHead::default(), &table);
        self.seal_gather();
    }

    /// The file that is missing, if any.
    pub(super) fn wants_create(&self) -> Option<FileId> {
        if self.creating.is_some() || self.state == State::Closing {
            return None;
        }
        if !self.checkpoint.exists {
            return Some(FileId::Checkpoint);
        }
        let spares = self.segments.spares();
        let opening =
            self.state == State::Opening && spares == 0 && self.head == self.config.segment_bytes;
        let more = self.state == State::Open
            && spares < self.config.segments_ready as usize
            && self.segments.total() < self.config.segments_max as usize;
        // The number is fixed only when the operation is given out.
        (opening || more).then_some(FileId::Segment(0))
    }

    pub(super) fn poll_create(&mut self) -> Option<Operation> {
        let wanted = self.wants_create()?;
        if self.now_us < self.create_not_before_us {
            return None;
        }
        let (file, bytes) = match wanted {
            FileId::Checkpoint => (FileId::Checkpoint, 2 * self.config.slot_bytes() as u64),
            FileId::Segment(_) => {
                (FileId::Segment(self.segments.new_file()), self.config.segment_bytes)
            }
        };
        let token = self.token();
        self.creating = Some((token, file));
        Some(Operation::Create { token, file, bytes })
    }

    pub(super) fn handle_created(&mut self, result: io::Result<()>) {
        let (_, file) = self.creating.take().expect("asked by the caller");
        if result.is_ok() {
            self.create_not_before_us = 0;
        }
        match (result, file) {
            (Ok(()), FileId::Checkpoint) => self.checkpoint.exists = true,
            (Ok(()), FileId::Segment(number)) => self.segments.add_spare(number),
            (Err(error), _) if self.state == State::Opening => {
                let full = if is_out_of_space(&error) { "the disk is full: " } else { "" };
                self.fail(format!("creating {}: {full}{error}", file.name()));
                return;
            }
            (Err(_), _) => {
                // Nothing was promised with that file. It is tried again later, under another number.
                self.counters.create_failures += 1;
                self.create_not_before_us = self.now_us + self.config.space_retry_us;
            }
        }
        self.write_open_batch();
    }
}
