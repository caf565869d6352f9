//! The log as a state machine: it says what to write and is told what was written.
//!
//! Promises: a record is handed out as durable only when it and everything before it is on stable storage; `durable_upto`
//! and log time never run backwards; no LSN and no lane number is given twice; a segment is reused only when a durable
//! batch says that it is not needed; after a failed write nothing is promised any more. Never touches a file, a clock or a
//! runtime: time is an argument, and [`Log::poll_operation`] is executed by somebody else ([`crate::driver`], or a
//! simulation).

mod operation;
mod space;
mod writes;

use std::collections::VecDeque;
use std::io;

use prism_io::disk::BufferPool;

use crate::batch::{DurableBatch, Gather};
use crate::config::LogConfig;
use crate::epoch::OpenRecord;
use crate::format::{CHECKPOINT_NAME, Nonce, seed};
use crate::lanes::Lanes;
use crate::record::{IDEMPOTENCY_KEY_BYTES_MAX, Record, RecordHead, RecordKind, record_bytes};
use crate::recovery::Recovered;
use crate::segment::{Segments, UsedSegment};

pub use operation::{AppendError, Appended, Counters, FileId, Operation, State, Status};
use space::Class;
use writes::{CheckpointWriter, InFlight};

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
        let directory_id =
            if recovered.directory_id == [0; 16] { nonce } else { recovered.directory_id };
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
    pub fn append(
        &mut self,
        now_us: u64,
        head: &RecordHead<'_>,
        body: &[u8],
    ) -> Result<Appended, AppendError> {
        let bytes = self.admit(head, body)?;
        if self.gathered_bytes() + bytes > self.config.gather_bytes_max {
            return Err(AppendError::Busy);
        }
        self.observe(now_us);
        if self.make_room(Class::Call, bytes).is_err() {
            return Err(self.refusal());
        }
        let lane_seq = self
            .lanes
            .advance(head.lane, self.config.lanes_max)
            .ok_or(AppendError::TooManyLanes)?;
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
        assert!(
            kind != RecordKind::Data && !kind.is_own(),
            "{kind:?} is not the caller's to append"
        );
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
            return Err(AppendError::TooLarge {
                bytes: data.len(),
                bytes_max: self.config.checkpoint_bytes_max,
            });
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
        let write =
            &mut self.in_flight[position.expect("an operation with this token is under way")];
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
            full: self.is_full(),
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
            return Err(AppendError::TooLarge {
                bytes: body.len(),
                bytes_max: self.config.record_bytes_max,
            });
        }
        Ok(record_bytes(key, body.len()))
    }

    #[inline]
    fn push(
        &mut self,
        kind: RecordKind,
        lane_seq: u64,
        head: &RecordHead<'_>,
        body: &[u8],
    ) -> Appended {
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
