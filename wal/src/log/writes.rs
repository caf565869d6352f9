//! Writes and what follows from their completion: group commit, seals, checkpoint slots, the clean close.

use prism_io::disk::BufferPool;

use super::space::Class;
use super::{FileId, Log, Operation, State};
use crate::batch::DurableBatch;
use crate::checkpoint::Checkpoint;
use crate::format::{BatchHeader, body_crc};
use crate::record::{RecordHead, RecordKind, record_bytes};

#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) token: u64,
    pub(super) batch: DurableBatch,
    pub(super) trim_upto: u64,
    pub(super) wants_seal: bool,
    pub(super) completed: bool,
}

#[derive(Debug)]
pub(super) struct CheckpointWriter {
    pub(super) exists: bool,
    pub(super) sequence: u64,
    pub(super) data: Vec<u8>,
    /// LSN of the record with that data.
    pub(super) record_lsn: u64,
    /// Whether something is to be written that no slot says yet.
    pub(super) due: bool,
    /// `record_lsn` of the slot written last.
    pub(super) written_lsn: u64,
    pub(super) in_flight: Option<u64>,
    pub(super) clean_written: bool,
    pub(super) pool: BufferPool,
}

impl Log {
    pub(super) fn poll_write(&mut self) -> Option<Operation> {
        if self.in_flight.len() >= self.config.writes_in_flight_max {
            return None;
        }
        if self.sealed.is_empty() {
            self.seal_when_idle();
            let now_us = self.now_us;
            let window_us =
                if self.state == State::Closing { 0 } else { self.config.batch_window_us };
            if self.gather.as_ref().is_some_and(|gather| gather.opened_at_us + window_us <= now_us)
            {
                self.seal_gather();
            }
        }
        let mut gather = self.sealed.pop_front()?;
        self.sealed_bytes -= gather.bytes();
        let header = BatchHeader {
            nonce: self.nonce,
            epoch: self.epoch,
            segment_seq: gather.segment_seq,
            first_lsn: gather.first_lsn,
            durable_upto: self.durable_upto,
            trim_upto: self.trim_wanted.min(self.durable_upto),
            written_at_us: self.now_us,
            count: gather.count(),
            bytes: gather.bytes() as u32,
            body_crc: body_crc(self.seed, gather.body()),
            previous_crc: self.chain_crc,
            shard: self.config.shard,
            flags: gather.flags,
            next_file: gather.next_file,
        };
        assert!(
            header.durable_upto < header.first_lsn,
            "durable_upto is the prefix before the batch"
        );
        self.chain_crc = header.encode(gather.header_mut());
        let (file, offset, wants_seal) =
            (FileId::Segment(gather.file), gather.offset, gather.wants_seal);
        let token = self.token();
        let batch = DurableBatch {
            first_lsn: gather.first_lsn,
            buffer: gather.freeze(),
            submitted_at_us: self.now_us,
            completed_at_us: self.now_us,
        };
        let buffer = batch.buffer.clone();
        let trim_upto = header.trim_upto;
        self.in_flight.push_back(InFlight {
            token,
            batch,
            trim_upto,
            wants_seal,
            completed: false,
        });
        Some(Operation::Write { token, file, offset, buffer })
    }

    /// Begins a batch with a seal when nothing was written for a while and the last batch has no proof behind it.
    pub(super) fn seal_when_idle(&mut self) {
        if self.seal_due_us().is_some_and(|due| due <= self.now_us)
            && self.make_room(Class::Internal, record_bytes(0, 0)).is_ok()
        {
            self.push(RecordKind::Seal, 0, &RecordHead::default(), &[]);
            self.counters.seals += 1;
            self.unproven = false;
        }
    }

    pub(super) fn seal_due_us(&self) -> Option<u64> {
        let idle = self.in_flight.is_empty() && self.sealed.is_empty() && self.gather.is_none();
        (self.state == State::Open && self.unproven && idle)
            .then(|| self.idle_since_us + self.config.seal_after_us)
    }

    pub(super) fn advance_durable(&mut self) {
        while self.in_flight.front().is_some_and(|write| write.completed) {
            let write = self.in_flight.pop_front().expect("there is a front");
            let upto = write.batch.last_lsn();
            assert!(
                write.batch.first_lsn() == self.durable_upto + 1,
                "batches complete in LSN order"
            );
            self.durable_upto = upto;
            self.unproven = write.wants_seal;
            self.counters.batches += 1;
            self.counters.batch_bytes += write.batch.bytes() as u64;
            self.counters.write_us += write.batch.write_us();
            assert!(write.trim_upto >= self.trim_durable, "trimming never goes back");
            self.trim_durable = write.trim_upto;
            self.completed.push_back(write.batch);
        }
        self.idle_since_us = self.now_us;
        self.counters.recycled += self.segments.recycle(self.trim_durable) as u64;
        if self.state == State::Opening {
            // Before anything is accepted a slot names this epoch: should its open batch rot, that is known.
            self.checkpoint.due = true;
        }
        // A slot says only what a durable record says.
        let record_lsn = self.checkpoint.record_lsn;
        self.checkpoint.due |=
            record_lsn > self.checkpoint.written_lsn && record_lsn <= self.durable_upto;
        self.finish_close();
    }

    /// Whether everything that was accepted is durable and the close may be noted.
    pub(super) fn all_closed(&self) -> bool {
        let nothing_left =
            self.gather.is_none() && self.sealed.is_empty() && self.in_flight.is_empty();
        self.state == State::Closing && nothing_left
    }

    pub(super) fn finish_close(&mut self) {
        if !self.all_closed() || self.checkpoint.in_flight.is_some() {
            return;
        }
        if self.checkpoint.clean_written || !self.close_appended {
            self.state = State::Closed;
        } else {
            self.checkpoint.due = true;
        }
    }

    pub(super) fn poll_checkpoint(&mut self) -> Option<Operation> {
        if !self.checkpoint.due || self.checkpoint.in_flight.is_some() {
            return None;
        }
        let clean = self.all_closed() && self.close_appended;
        let durable_data = self.checkpoint.record_lsn <= self.durable_upto;
        if !durable_data && !clean {
            // The record that carries the data is on its way; its completion makes the slot due again.
            self.checkpoint.due = false;
            return None;
        }
        self.checkpoint.due = false;
        self.checkpoint.written_lsn = self.checkpoint.record_lsn;
        self.checkpoint.clean_written = clean;
        self.checkpoint.sequence += 1;
        let checkpoint = Checkpoint {
            sequence: self.checkpoint.sequence,
            nonce: self.nonce,
            epoch: self.epoch,
            durable_upto: self.durable_upto,
            trim_upto: self.trim_durable,
            record_lsn: self.checkpoint.record_lsn,
            shard: self.config.shard,
            clean,
            data: self.checkpoint.data.clone(),
        };
        let mut buffer = self.checkpoint.pool.take(self.config.slot_bytes());
        checkpoint.encode(&mut buffer);
        let token = self.token();
        self.checkpoint.in_flight = Some(token);
        let offset = (self.checkpoint.sequence % 2) * self.config.slot_bytes() as u64;
        Some(Operation::Write { token, file: FileId::Checkpoint, offset, buffer: buffer.freeze() })
    }
}
