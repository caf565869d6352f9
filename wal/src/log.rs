//! The log as a state machine: it says what to write and is told what was written.
//!
//! Promises: a record is handed out as durable only when it and everything before it is on stable storage; `durable_upto`
//! and log time never run backwards; no LSN and no lane number is given twice; a segment is reused only when a durable
//! batch says that it is not needed; after a failed write nothing is promised any more. Never touches a file, a clock or a
//! runtime: time is an argument, and [`Log::poll_operation`] is executed by somebody else ([`crate::driver`], or a
//! simulation).

use std::collections::VecDeque;
use std::fmt;
use std::io;

use prism_io::disk::{BufferPool, SharedBuffer, is_out_of_space, page_ceiling};

use crate::batch::{DurableBatch, Gather, Place};
use crate::checkpoint::Checkpoint;
use crate::config::LogConfig;
use crate::epoch::OpenRecord;
use crate::format::{BATCH_FLAG_OPEN, BATCH_HEADER_BYTES, BatchHeader, CHECKPOINT_NAME, NO_FILE, Nonce, body_crc, seed, segment_name};
use crate::lanes::Lanes;
use crate::record::{IDEMPOTENCY_KEY_BYTES_MAX, Record, RecordHead, RecordKind, record_bytes};
use crate::recovery::Recovered;
use crate::segment::{Segments, UsedSegment};

/// A file of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileId {
    /// Segment file with this number.
    Segment(u32),
    /// The file of the two checkpoint slots.
    Checkpoint,
}

impl FileId {
    /// Its name in the log's directory.
    pub fn name(self) -> String {
        match self {
            FileId::Segment(file) => segment_name(file),
            FileId::Checkpoint => CHECKPOINT_NAME.to_string(),
        }
    }
}

/// Something to be done with a file; its completion is reported under its token.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Write the whole buffer at the offset; complete when it is durable.
    Write {
        /// For [`Log::handle_completion`].
        token: u64,
        /// The file.
        file: FileId,
        /// Page-aligned offset.
        offset: u64,
        /// Whole pages.
        buffer: SharedBuffer,
    },
    /// Create the file, zero-filled; complete when contents and name are durable. It may take long.
    Create {
        /// For [`Log::handle_completion`].
        token: u64,
        /// The file.
        file: FileId,
        /// Its size.
        bytes: u64,
    },
}

/// What an append was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Number in the log.
    pub lsn: u64,
    /// Number in the lane; 0 for internal records.
    pub lane_seq: u64,
    /// Log time, µs since the Unix epoch.
    pub log_time_us: u64,
}

/// Why nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// The log is full until something is trimmed (`WAL_FULL`); internal records may still fit.
    Full,
    /// Too much is waiting for the disk; try again when a write has completed.
    Busy,
    /// Key or body is larger than this log takes.
    TooLarge {
        /// Bytes of key and body.
        bytes: usize,
        /// Bytes that are possible.
        bytes_max: usize,
    },
    /// One lane more than this log can remember.
    TooManyLanes,
    /// The log is not open yet, or it is being closed.
    NotOpen,
    /// A write failed; nothing is accepted any more (`WAL_FAILED`).
    Failed,
}

impl fmt::Display for AppendError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AppendError::Full => write!(formatter, "the write-ahead log is full"),
            AppendError::Busy => write!(formatter, "too many writes are waiting for the disk"),
            AppendError::TooLarge { bytes, bytes_max } => {
                write!(formatter, "{bytes} bytes do not fit a record of at most {bytes_max}")
            }
            AppendError::TooManyLanes => write!(formatter, "the write-ahead log cannot remember another lane"),
            AppendError::NotOpen => write!(formatter, "the write-ahead log is not open"),
            AppendError::Failed => write!(formatter, "the write-ahead log has failed"),
        }
    }
}

impl std::error::Error for AppendError {}

/// What the log is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The open batch is not durable yet.
    Opening,
    /// Records are accepted.
    Open,
    /// What was accepted is being written, and then the clean close.
    Closing,
    /// Everything is written; nothing more will be.
    Closed,
    /// A write failed.
    Failed,
}

/// Figures for metrics and people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What the log is doing.
    pub state: State,
    /// Epoch of this start.
    pub epoch: u64,
    /// LSN of the next record.
    pub next_lsn: u64,
    /// Every LSN up to this one is durable.
    pub durable_upto: u64,
    /// No LSN up to this one is needed, and a durable batch says so.
    pub trim_upto: u64,
    /// Segments that hold records.
    pub segments_used: usize,
    /// Segments ready to be used.
    pub segments_spare: usize,
    /// Bytes accepted and not yet submitted.
    pub gathered_bytes: usize,
    /// Bytes of batch memory in use: filled, written, or pinned by readers.
    pub pinned_bytes: usize,
    /// Writes in flight.
    pub writes_in_flight: usize,
    /// Whether calls are refused for want of space.
    pub full: bool,
    /// Lanes that ever wrote.
    pub lanes: usize,
    /// Since the start.
    pub counters: Counters,
}

/// Sums since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records accepted, internal ones included.
    pub records: u64,
    /// Batches made durable.
    pub batches: u64,
    /// Bytes of those batches.
    pub batch_bytes: u64,
    /// Sum of the times from submission to completion, µs.
    pub write_us: u64,
    /// Seals written.
    pub seals: u64,
    /// Segments recycled.
    pub recycled: u64,
    /// Segments that could not be created.
    pub create_failures: u64,
    /// Appends refused because the log was full.
    pub refused_full: u64,
}

/// How much of the last space a record may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// Calls leave the internal segments alone.
    Call,
    /// Internal records leave what a trim needs.
    Internal,
    /// Trims and the clean close take the last byte.
    Vital,
}

#[derive(Debug)]
struct InFlight {
    token: u64,
    batch: DurableBatch,
    trim_upto: u64,
    wants_seal: bool,
    completed: bool,
}

#[derive(Debug)]
struct CheckpointWriter {
    exists: bool,
    sequence: u64,
    data: Vec<u8>,
    /// LSN of the record with that data.
    record_lsn: u64,
    /// Whether something is to be written that no slot says yet.
    due: bool,
    /// `record_lsn` of the slot written last.
    written_lsn: u64,
    in_flight: Option<u64>,
    clean_written: bool,
    pool: BufferPool,
}

/// The log of one shard.
#[derive(Debug)]
pub struct Log {
    config: LogConfig,
    state: State,
    failure: Option<String>,
    epoch: u64,
    nonce: Nonce,
    seed: u32,
    open: OpenRecord,
    now_us: u64,
    log_time_us: u64,
    next_lsn: u64,
    durable_upto: u64,
    chain_crc: u32,
    trim_wanted: u64,
    trim_durable: u64,
    lanes: Lanes,
    segments: Segments,
    /// Offset in the active segment behind the last placed batch; behind its end while no segment is active.
    head: u64,
    gather: Option<Gather>,
    sealed: VecDeque<Gather>,
    sealed_bytes: usize,
    in_flight: VecDeque<InFlight>,
    completed: VecDeque<DurableBatch>,
    checkpoint: CheckpointWriter,
    creating: Option<(u64, FileId)>,
    create_not_before_us: u64,
    unproven: bool,
    idle_since_us: u64,
    close_appended: bool,
    next_token: u64,
    pool: BufferPool,
    counters: Counters,
}

impl Log {
    /// A log that goes on from what recovery found. It accepts records when its open batch is durable
    /// ([`Log::is_open`]); until then it is driven like ever after. `nonce` is random and never used before.
    ///
    /// # Panics
    /// When the configuration does not pass [`LogConfig::validate`].
    pub fn open(recovered: Recovered, config: LogConfig, nonce: Nonce, now_us: u64) -> Log {
        config.validate().expect("the configuration was validated");
        let directory_id = if recovered.directory_id == [0; 16] { nonce } else { recovered.directory_id };
        let open = OpenRecord { directory_id, previous: recovered.end, skipped: recovered.skipped };
        let checkpoint = CheckpointWriter {
            exists: recovered.checkpoint_file,
            sequence: recovered.checkpoint_sequence,
            data: recovered.checkpoint_data,
            record_lsn: recovered.checkpoint_lsn,
            due: false,
            written_lsn: recovered.checkpoint_lsn,
            in_flight: None,
            clean_written: false,
            pool: BufferPool::new(config.slot_bytes(), 1),
        };
        let mut lanes = recovered.lanes;
        lanes.skip(recovered.skipped);
        let mut log = Log {
            state: State::Opening,
            failure: None,
            epoch: recovered.epoch + 1,
            nonce,
            seed: seed(&nonce),
            open,
            now_us,
            log_time_us: recovered.log_time_us.max(now_us),
            next_lsn: recovered.end.next_lsn.max(1) + recovered.skipped,
            durable_upto: recovered.end.next_lsn.max(1) + recovered.skipped - 1,
            chain_crc: recovered.end.chain_crc,
            trim_wanted: recovered.trim_upto,
            trim_durable: recovered.trim_upto,
            lanes,
            segments: Segments::new(recovered.used, recovered.spare, recovered.next_segment_seq),
            head: config.segment_bytes,
            gather: None,
            sealed: VecDeque::new(),
            sealed_bytes: 0,
            in_flight: VecDeque::new(),
            completed: VecDeque::new(),
            checkpoint,
            creating: None,
            create_not_before_us: 0,
            unproven: false,
            idle_since_us: now_us,
            close_appended: false,
            next_token: 0,
            pool: BufferPool::new(config.batch_bytes, config.buffers_kept_max),
            counters: Counters::default(),
            config,
        };
        log.write_open_batch();
        log
    }

    /// Whether records are accepted.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// What the log is doing.
    pub fn state(&self) -> State {
        self.state
    }

    /// What failed, when the state is [`State::Failed`].
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Identity of the log, given at its first start.
    pub fn directory_id(&self) -> [u8; 16] {
        self.open.directory_id
    }

    /// Every LSN up to this one is on stable storage.
    pub fn durable_upto(&self) -> u64 {
        self.durable_upto
    }

    /// The last number of every lane.
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// The segments that hold records, oldest first.
    pub fn used_segments(&self) -> &[UsedSegment] {
        self.segments.used()
    }

    /// The limits it runs under.
    pub fn config(&self) -> &LogConfig {
        &self.config
    }

    /// Accepts a call. It is durable when a batch with its LSN comes out of [`Log::poll_durable`].
    #[inline]
    pub fn append(&mut self, now_us: u64, head: &RecordHead<'_>, body: &[u8]) -> Result<Appended, AppendError> {
        let bytes = self.admit(head, body)?;
        if self.gathered_bytes() + bytes > self.config.gather_bytes_max {
            return Err(AppendError::Busy);
        }
        self.observe(now_us);
        if let Err(error) = self.make_room(Class::Call, bytes) {
            self.counters.refused_full += 1;
            return Err(error);
        }
        let lane_seq = self.lanes.advance(head.lane, self.config.lanes_max).ok_or(AppendError::TooManyLanes)?;
        Ok(self.push(RecordKind::Data, lane_seq, head, body))
    }

    /// Accepts a record about records: a settlement, a skip, a hand-over. It also fits when calls are refused as
    /// [`AppendError::Full`].
    ///
    /// # Panics
    /// When the kind is [`RecordKind::Data`] or one that only the log itself writes.
    pub fn append_internal(
        &mut self,
        now_us: u64,
        kind: RecordKind,
        head: &RecordHead<'_>,
        body: &[u8],
    ) -> Result<Appended, AppendError> {
        assert!(kind != RecordKind::Data && !kind.is_own(), "{kind:?} is not the caller's to append");
        let bytes = self.admit(head, body)?;
        self.observe(now_us);
        self.make_room(Class::Internal, bytes)?;
        Ok(self.push(kind, 0, head, body))
    }

    /// Says that no record up to `upto` is needed any more (confirmed by its backend, its loss window passed, snapshots
    /// and keys saved), with data that recovery is to give back. Lower than before: nothing happens. The space comes back
    /// when a batch that says so is durable.
    ///
    /// # Panics
    /// When `upto` is not durable yet.
    pub fn trim(&mut self, now_us: u64, upto: u64, data: &[u8]) -> Result<(), AppendError> {
        assert!(upto <= self.durable_upto, "only what is durable can be trimmed");
        if data.len() > self.config.checkpoint_bytes_max {
            return Err(AppendError::TooLarge { bytes: data.len(), bytes_max: self.config.checkpoint_bytes_max });
        }
        self.accepts()?;
        if upto < self.trim_wanted || (upto == self.trim_wanted && data == self.checkpoint.data) {
            return Ok(());
        }
        self.observe(now_us);
        let mut body = Vec::with_capacity(8 + data.len());
        body.extend_from_slice(&upto.to_le_bytes());
        body.extend_from_slice(data);
        self.make_room(Class::Vital, record_bytes(0, body.len()))?;
        let appended = self.push(RecordKind::Checkpoint, 0, &RecordHead::default(), &body);
        self.trim_wanted = upto;
        self.checkpoint.data = data.to_vec();
        self.checkpoint.record_lsn = appended.lsn;
        Ok(())
    }

    /// Accepts nothing more, writes what was accepted and then the clean close. The state becomes [`State::Closed`].
    pub fn close(&mut self, now_us: u64) {
        self.observe(now_us);
        if matches!(self.state, State::Open) {
            // Without room for it the log ends as after a crash, which recovery handles as well.
            self.close_appended = self.make_room(Class::Vital, record_bytes(0, 0)).is_ok();
            if self.close_appended {
                self.push(RecordKind::Close, 0, &RecordHead::default(), &[]);
            }
            self.state = State::Closing;
            self.finish_close();
        }
    }

    /// The next thing to do, writes first. Called until it says `None`.
    pub fn poll_operation(&mut self, now_us: u64) -> Option<Operation> {
        self.observe(now_us);
        if matches!(self.state, State::Failed | State::Closed) {
            return None;
        }
        self.poll_write().or_else(|| self.poll_checkpoint()).or_else(|| self.poll_create())
    }

    /// Takes the outcome of an operation.
    ///
    /// # Panics
    /// When no operation with this token is under way.
    pub fn handle_completion(&mut self, token: u64, result: io::Result<()>, now_us: u64) {
        self.observe(now_us);
        if self.state == State::Failed {
            // Whatever completes after a failure is not acknowledged any more.
            return;
        }
        if self.creating.is_some_and(|(creating, _)| creating == token) {
            self.handle_created(result);
            return;
        }
        if self.checkpoint.in_flight == Some(token) {
            self.checkpoint.in_flight = None;
            match result {
                Ok(()) => {
                    if self.state == State::Opening {
                        self.state = State::Open;
                    }
                    self.finish_close();
                }
                Err(error) => self.fail(format!("writing {CHECKPOINT_NAME}: {error}")),
            }
            return;
        }
        let position = self.in_flight.iter().position(|write| write.token == token);
        let write = &mut self.in_flight[position.expect("an operation with this token is under way")];
        if let Err(error) = result {
            let text = format!("writing the batch with LSN {}: {error}", write.batch.first_lsn());
            self.fail(text);
            return;
        }
        write.completed = true;
        write.batch.completed_at_us = self.now_us;
        self.advance_durable();
    }

    /// The next batch that is durable, in LSN order.
    pub fn poll_durable(&mut self) -> Option<DurableBatch> {
        self.completed.pop_front()
    }

    /// When [`Log::poll_operation`] has something to do although nothing completes before, µs since the Unix epoch.
    pub fn poll_timeout(&self) -> Option<u64> {
        if matches!(self.state, State::Failed | State::Closed) {
            return None;
        }
        let can_write = self.in_flight.len() < self.config.writes_in_flight_max;
        let window = self.gather.as_ref().filter(|_| can_write);
        let window = window.map(|gather| gather.opened_at_us + self.config.batch_window_us);
        let create = (self.wants_create().is_some()).then_some(self.create_not_before_us);
        [window, self.seal_due_us(), create].into_iter().flatten().min()
    }

    /// Figures for metrics and people.
    pub fn status(&self) -> Status {
        Status {
            state: self.state,
            epoch: self.epoch,
            next_lsn: self.next_lsn,
            durable_upto: self.durable_upto,
            trim_upto: self.trim_durable,
            segments_used: self.segments.used().len(),
            segments_spare: self.segments.spares(),
            gathered_bytes: self.gathered_bytes(),
            pinned_bytes: self.pool.out_bytes(),
            writes_in_flight: self.in_flight.len(),
            full: !self.has_room_for_calls(0),
            lanes: self.lanes.len(),
            counters: self.counters,
        }
    }

    fn gathered_bytes(&self) -> usize {
        self.sealed_bytes + self.gather.as_ref().map_or(0, Gather::bytes)
    }

    /// Log time and timeouts follow the caller's clock, but never backwards.
    fn observe(&mut self, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
    }

    fn accepts(&self) -> Result<(), AppendError> {
        match self.state {
            State::Open => Ok(()),
            State::Failed => Err(AppendError::Failed),
            State::Opening | State::Closing | State::Closed => Err(AppendError::NotOpen),
        }
    }

    fn admit(&self, head: &RecordHead<'_>, body: &[u8]) -> Result<usize, AppendError> {
        self.accepts()?;
        let key = head.idempotency_key.len();
        if key > IDEMPOTENCY_KEY_BYTES_MAX {
            return Err(AppendError::TooLarge { bytes: key, bytes_max: IDEMPOTENCY_KEY_BYTES_MAX });
        }
        if body.len() > self.config.record_bytes_max {
            return Err(AppendError::TooLarge { bytes: body.len(), bytes_max: self.config.record_bytes_max });
        }
        Ok(record_bytes(key, body.len()))
    }

    /// Sees to it that the gathering batch takes `bytes` more, beginning another batch or segment where it must.
    #[inline]
    fn make_room(&mut self, class: Class, bytes: usize) -> Result<(), AppendError> {
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
    fn has_room_for_calls(&self, bytes: usize) -> bool {
        let placed = self.head + self.gather.as_ref().map_or(0, |gather| gather.padded_bytes() as u64);
        self.segments.spares() >= self.config.segments_internal as usize
            || placed + bytes as u64 <= self.config.segment_bytes / 2
    }

    #[cold]
    fn begin_batch(&mut self, class: Class, bytes: usize) -> Result<(), AppendError> {
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
        let spares_needed = if class == Class::Call { self.config.segments_internal as usize + 1 } else { 1 };
        if spares < spares_needed {
            return Err(AppendError::Full);
        }
        self.seal_gather();
        self.begin_segment(bytes);
        Ok(())
    }

    /// Activates a spare segment and begins its first batch, with the lane table and room for `bytes` more.
    fn begin_segment(&mut self, bytes: usize) {
        let segment = self.segments.activate(self.next_lsn);
        self.head = 0;
        let place = Place { file: segment.file, offset: 0, segment_seq: segment.segment_seq };
        let table = self.lanes.encode();
        let buffer = self.pool.take(BATCH_HEADER_BYTES + record_bytes(0, table.len()) + bytes);
        let limit = self.config.segment_bytes as usize;
        self.gather = Some(Gather::new(buffer, place, limit, self.next_lsn, self.now_us));
        self.push(RecordKind::Lanes, 0, &RecordHead::default(), &table);
    }

    #[inline]
    fn push(&mut self, kind: RecordKind, lane_seq: u64, head: &RecordHead<'_>, body: &[u8]) -> Appended {
        let gather = self.gather.as_mut().expect("room was made");
        self.log_time_us = self.log_time_us.max(self.now_us);
        let appended = Appended { lsn: self.next_lsn, lane_seq, log_time_us: self.log_time_us };
        let Appended { lsn, log_time_us, .. } = appended;
        gather.push(&Record { lsn, lane_seq, log_time_us, kind, head: *head, body });
        gather.wants_seal |= !matches!(kind, RecordKind::Seal | RecordKind::Close);
        self.next_lsn += 1;
        self.counters.records += 1;
        appended
    }

    fn seal_gather(&mut self) {
        if let Some(mut gather) = self.gather.take() {
            gather.next_file = self.segments.next_spare().unwrap_or(NO_FILE);
            self.head += gather.padded_bytes() as u64;
            self.sealed_bytes += gather.bytes();
            self.sealed.push_back(gather);
        }
    }

    /// The first batch of the epoch, into a fresh segment; later, when there is no spare one yet.
    fn write_open_batch(&mut self) {
        if self.state != State::Opening || self.segments.spares() == 0 || !self.checkpoint.exists {
            return;
        }
        let body = self.open.encode();
        let segment = self.segments.activate(self.next_lsn);
        self.head = 0;
        let place = Place { file: segment.file, offset: 0, segment_seq: segment.segment_seq };
        let table = self.lanes.encode();
        let buffer = self.pool.take(BATCH_HEADER_BYTES + record_bytes(0, body.len()) + record_bytes(0, table.len()));
        let limit = self.config.segment_bytes as usize;
        let mut gather = Gather::new(buffer, place, limit, self.next_lsn, self.now_us);
        gather.flags = BATCH_FLAG_OPEN;
        self.gather = Some(gather);
        self.push(RecordKind::Open, 0, &RecordHead::default(), &body);
        self.push(RecordKind::Lanes, 0, &RecordHead::default(), &table);
        self.seal_gather();
    }

    fn poll_write(&mut self) -> Option<Operation> {
        if self.in_flight.len() >= self.config.writes_in_flight_max {
            return None;
        }
        if self.sealed.is_empty() {
            self.seal_when_idle();
            let now_us = self.now_us;
            let window_us = if self.state == State::Closing { 0 } else { self.config.batch_window_us };
            if self.gather.as_ref().is_some_and(|gather| gather.opened_at_us + window_us <= now_us) {
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
        assert!(header.durable_upto < header.first_lsn, "durable_upto is the prefix before the batch");
        self.chain_crc = header.encode(gather.header_mut());
        let (file, offset, wants_seal) = (FileId::Segment(gather.file), gather.offset, gather.wants_seal);
        let token = self.token();
        let batch = DurableBatch {
            first_lsn: gather.first_lsn,
            buffer: gather.freeze(),
            submitted_at_us: self.now_us,
            completed_at_us: self.now_us,
        };
        let buffer = batch.buffer.clone();
        let trim_upto = header.trim_upto;
        self.in_flight.push_back(InFlight { token, batch, trim_upto, wants_seal, completed: false });
        Some(Operation::Write { token, file, offset, buffer })
    }

    /// Begins a batch with a seal when nothing was written for a while and the last batch has no proof behind it.
    fn seal_when_idle(&mut self) {
        if self.seal_due_us().is_some_and(|due| due <= self.now_us)
            && self.make_room(Class::Internal, record_bytes(0, 0)).is_ok()
        {
            self.push(RecordKind::Seal, 0, &RecordHead::default(), &[]);
            self.counters.seals += 1;
            self.unproven = false;
        }
    }

    fn seal_due_us(&self) -> Option<u64> {
        let idle = self.in_flight.is_empty() && self.sealed.is_empty() && self.gather.is_none();
        (self.state == State::Open && self.unproven && idle).then(|| self.idle_since_us + self.config.seal_after_us)
    }

    fn advance_durable(&mut self) {
        while self.in_flight.front().is_some_and(|write| write.completed) {
            let write = self.in_flight.pop_front().expect("there is a front");
            let upto = write.batch.last_lsn();
            assert!(write.batch.first_lsn() == self.durable_upto + 1, "batches complete in LSN order");
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
        self.checkpoint.due |= record_lsn > self.checkpoint.written_lsn && record_lsn <= self.durable_upto;
        self.finish_close();
    }

    /// Whether everything that was accepted is durable and the close may be noted.
    fn all_closed(&self) -> bool {
        let nothing_left = self.gather.is_none() && self.sealed.is_empty() && self.in_flight.is_empty();
        self.state == State::Closing && nothing_left
    }

    fn finish_close(&mut self) {
        if !self.all_closed() || self.checkpoint.in_flight.is_some() {
            return;
        }
        if self.checkpoint.clean_written || !self.close_appended {
            self.state = State::Closed;
        } else {
            self.checkpoint.due = true;
        }
    }

    fn poll_checkpoint(&mut self) -> Option<Operation> {
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

    /// The file that is missing, if any.
    fn wants_create(&self) -> Option<FileId> {
        if self.creating.is_some() || self.state == State::Closing {
            return None;
        }
        if !self.checkpoint.exists {
            return Some(FileId::Checkpoint);
        }
        let spares = self.segments.spares();
        let opening = self.state == State::Opening && spares == 0 && self.head == self.config.segment_bytes;
        let more = self.state == State::Open
            && spares < self.config.segments_ready as usize
            && self.segments.total() < self.config.segments_max as usize;
        // The number is fixed only when the operation is given out.
        (opening || more).then_some(FileId::Segment(0))
    }

    fn poll_create(&mut self) -> Option<Operation> {
        let wanted = self.wants_create()?;
        if self.now_us < self.create_not_before_us {
            return None;
        }
        let (file, bytes) = match wanted {
            FileId::Checkpoint => (FileId::Checkpoint, 2 * self.config.slot_bytes() as u64),
            FileId::Segment(_) => (FileId::Segment(self.segments.new_file()), self.config.segment_bytes),
        };
        let token = self.token();
        self.creating = Some((token, file));
        Some(Operation::Create { token, file, bytes })
    }

    fn handle_created(&mut self, result: io::Result<()>) {
        let (_, file) = self.creating.take().expect("asked by the caller");
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

    fn fail(&mut self, text: String) {
        self.state = State::Failed;
        self.failure.get_or_insert(text);
        self.gather = None;
        self.sealed.clear();
        self.sealed_bytes = 0;
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }
}
