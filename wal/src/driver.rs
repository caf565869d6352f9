//! Feeds one shard's [`Log`] to its files: blocking at start, on the shard's ring from then on.
//!
//! One task ([`Writer::run`]) owns all writes; appending only fills memory and wakes it. Promises: batches are handed out
//! in LSN order, each one before the next write is submitted by the same turn; the first failed write ends the task with
//! [`WalFailure`], and nothing is handed out after it.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use prism_io::clock::wall_us;
use prism_io::disk::{Directory, DirectoryError, DirectoryOptions, File, Storage};
use prism_io::rt::{self, Signal};

use crate::batch::DurableBatch;
use crate::config::{ConfigError, LogConfig, WRITES_IN_FLIGHT_MAX};
use crate::error::RecoverError;
use crate::format::{Nonce, segment_number};
use crate::log::{AppendError, Appended, FileId, Log, Operation, State, Status};
use crate::record::{Lane, RecordHead, RecordKind, Sink};
use crate::recovery::{Recovered, RecoveryReport, recover};
use crate::segment::UsedSegment;

/// Why a log could not be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The limits contradict each other.
    Config(ConfigError),
    /// The directory was refused.
    Directory(DirectoryError),
    /// Recovery refused; nothing was changed.
    Recover(RecoverError),
    /// Recovery accepted, but the new epoch could not be written.
    Start(io::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Config(error) => error.fmt(formatter),
            OpenError::Directory(error) => error.fmt(formatter),
            OpenError::Recover(error) => error.fmt(formatter),
            OpenError::Start(error) => {
                write!(formatter, "the write-ahead log could not be started: {error}")
            }
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Config(error) => Some(error),
            OpenError::Directory(error) => Some(error),
            OpenError::Recover(error) => Some(error),
            OpenError::Start(error) => Some(error),
        }
    }
}

/// The log failed: nothing is accepted or acknowledged any more, and the process is to exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalFailure(pub String);

impl fmt::Display for WalFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the write-ahead log has failed: {}; restart to recover", self.0)
    }
}

impl std::error::Error for WalFailure {}

/// Makes recovery's decision final on stable storage and returns a log that accepts records: syncs every segment relied
/// on, removes what is of no use, and writes and syncs the open batch. Blocking; it may crash anywhere and be run again.
pub fn start(
    storage: &mut dyn Storage,
    recovered: Recovered,
    config: LogConfig,
    nonce: Nonce,
    now_us: u64,
) -> io::Result<Log> {
    for segment in &recovered.used {
        storage.sync(&FileId::Segment(segment.file).name())?;
    }
    for name in &recovered.useless {
        storage.remove(name)?;
    }
    let mut log = Log::open(recovered, config, nonce, now_us);
    while !log.is_open() {
        let operation =
            log.poll_operation(now_us).expect("a log that is not open has something to write");
        let (token, result) = execute(storage, &operation);
        log.handle_completion(token, result, now_us);
        if let Some(text) = log.failure() {
            return Err(io::Error::other(text.to_string()));
        }
    }
    // Nobody waits for the records that open an epoch.
    while log.poll_durable().is_some() {}
    Ok(log)
}

/// Executes one operation, blocking; returns its token and outcome.
pub fn execute(storage: &mut dyn Storage, operation: &Operation) -> (u64, io::Result<()>) {
    match operation {
        Operation::Write { token, file, offset, buffer } => {
            (*token, storage.write_durable(&file.name(), *offset, buffer.as_slice()))
        }
        Operation::Create { token, file, bytes } => {
            (*token, storage.create_zeroed(&file.name(), *bytes))
        }
    }
}

/// Whether `path` holds a log: at least one segment, whatever its state.
pub fn holds_log(path: &Path) -> io::Result<bool> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    for entry in entries {
        if entry?.file_name().to_str().and_then(segment_number).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A nonce from the kernel's random numbers.
pub fn random_nonce() -> io::Result<Nonce> {
    let mut nonce = [0; 16];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut nonce)?;
    Ok(nonce)
}

/// The log of the shard that runs on this thread.
pub struct Writer {
    log: RefCell<Log>,
    directory: Directory,
    work: Signal,
    ended: Signal,
    has_ended: Cell<bool>,
}

impl Writer {
    /// Locks the directory, recovers the log (`replay` gets the records, see [`recover`]), and starts a new epoch.
    /// Blocking: for the start of a shard, before it serves.
    pub fn open(
        path: &Path,
        options: DirectoryOptions,
        config: LogConfig,
        replay: &mut dyn Sink,
    ) -> Result<(Rc<Writer>, RecoveryReport), OpenError> {
        config.validate().map_err(OpenError::Config)?;
        let mut directory = Directory::open(path, options).map_err(OpenError::Directory)?;
        let recovered = recover(&mut directory, &config, replay).map_err(OpenError::Recover)?;
        let report = recovered.report.clone();
        let nonce = random_nonce().map_err(OpenError::Start)?;
        let log =
            start(&mut directory, recovered, config, nonce, wall_us()).map_err(OpenError::Start)?;
        let writer = Writer {
            log: RefCell::new(log),
            directory,
            work: Signal::default(),
            ended: Signal::default(),
            has_ended: Cell::new(false),
        };
        Ok((Rc::new(writer), report))
    }

    /// As [`Log::append`]. The time is the caller's, so that what else happens by the clock and the log agree on it.
    pub fn append(
        &self,
        now_us: u64,
        head: &RecordHead<'_>,
        body: &[u8],
    ) -> Result<Appended, AppendError> {
        let appended = self.log.borrow_mut().append(now_us, head, body)?;
        self.work.set();
        Ok(appended)
    }

    /// As [`Log::append_internal`], at the present time.
    pub fn append_internal(
        &self,
        kind: RecordKind,
        head: &RecordHead<'_>,
        body: &[u8],
    ) -> Result<Appended, AppendError> {
        let appended = self.log.borrow_mut().append_internal(wall_us(), kind, head, body)?;
        self.work.set();
        Ok(appended)
    }

    /// As [`Log::trim`].
    pub fn trim(&self, upto: u64, data: &[u8]) -> Result<(), AppendError> {
        self.log.borrow_mut().trim(wall_us(), upto, data)?;
        self.work.set();
        Ok(())
    }

    /// Identity of the log.
    pub fn directory_id(&self) -> [u8; 16] {
        self.log.borrow().directory_id()
    }

    /// The last number of a lane, 0 before its first record.
    pub fn last_of_lane(&self, lane: Lane) -> u64 {
        self.log.borrow().lanes().last(lane)
    }

    /// The segments that hold records now, for [`read_again`](crate::read_again).
    pub fn used_segments(&self) -> Vec<UsedSegment> {
        self.log.borrow().used_segments().to_vec()
    }

    /// Figures for metrics and people.
    pub fn status(&self) -> Status {
        self.log.borrow().status()
    }

    /// The directory, to see its sync method and whether it does without O_DIRECT.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Writes what was accepted and the clean close. [`Writer::run`] must be running; it ends, and so does this.
    pub async fn close(&self) {
        self.log.borrow_mut().close(wall_us());
        self.work.set();
        while !self.has_ended.get() {
            self.ended.wait().await;
        }
    }

    /// Does the writing until the log is closed (`Ok`) or fails. `on_durable` gets every batch in LSN order and may append.
    pub async fn run(
        self: Rc<Self>,
        on_durable: impl FnMut(DurableBatch),
    ) -> Result<(), WalFailure> {
        let result = Running::new(&self, on_durable).run().await;
        self.has_ended.set(true);
        self.ended.set();
        result
    }
}

/// A future kept in place, so that the next one of its kind needs no allocation.
struct Slot<F> {
    token: u64,
    future: Pin<Box<Option<F>>>,
}

impl<F: Future> Slot<F> {
    fn new() -> Slot<F> {
        Slot { token: 0, future: Box::pin(None) }
    }

    fn is_free(&self) -> bool {
        self.future.is_none()
    }

    fn set(&mut self, token: u64, future: F) {
        assert!(self.is_free(), "a slot holds one future");
        self.token = token;
        self.future.as_mut().set(Some(future));
    }

    /// The outcome, once; the slot is free afterwards.
    fn poll(&mut self, context: &mut Context<'_>) -> Option<F::Output> {
        let output = match self.future.as_mut().as_pin_mut()?.poll(context) {
            Poll::Ready(output) => output,
            Poll::Pending => return None,
        };
        self.future.as_mut().set(None);
        Some(output)
    }
}

/// Writes of segments and, beside them, one of a checkpoint slot.
const WRITE_SLOTS: usize = WRITES_IN_FLIGHT_MAX + 1;

struct Running<'a, D> {
    writer: &'a Rc<Writer>,
    on_durable: D,
    /// Files that are open for writing; the active segment and the checkpoint file are used all the time.
    files: Vec<(FileId, Rc<File>)>,
}

impl<'a, D: FnMut(DurableBatch)> Running<'a, D> {
    fn new(writer: &'a Rc<Writer>, on_durable: D) -> Running<'a, D> {
        Running { writer, on_durable, files: Vec::new() }
    }

    async fn run(&mut self) -> Result<(), WalFailure> {
        let mut writes: [Slot<_>; WRITE_SLOTS] = std::array::from_fn(|_| Slot::new());
        let mut create = Slot::new();
        let mut alarm = Slot::new();
        let mut wake = Slot::new();
        let mut alarm_at_us = u64::MAX;
        loop {
            // Everything the log wants done now.
            loop {
                let operation = self.writer.log.borrow_mut().poll_operation(wall_us());
                match operation {
                    Some(Operation::Write { token, file, offset, buffer }) => {
                        let opened = self.open(file);
                        let slot = writes.iter_mut().find(|slot| slot.is_free());
                        let slot = slot.expect("the log keeps to its limit of writes in flight");
                        slot.set(token, async move { opened?.write_durable(buffer, offset).await });
                    }
                    Some(Operation::Create { token, file, bytes }) => {
                        let writer = self.writer.clone();
                        create.set(token, async move {
                            writer.directory.create_zeroed_in_pieces(&file.name(), bytes).await
                        });
                    }
                    None => break,
                }
            }
            self.check()?;
            if self.writer.log.borrow().state() == State::Closed {
                return Ok(());
            }
            // An alarm that rings too early is only looked at again; so it is not set anew for every write.
            let timeout_us = self.writer.log.borrow().poll_timeout();
            if let Some(due_us) = timeout_us
                && (alarm.is_free() || due_us < alarm_at_us)
            {
                alarm = Slot::new();
                alarm_at_us = due_us;
                alarm.set(0, rt::sleep(Duration::from_micros(due_us.saturating_sub(wall_us()))));
            }
            if wake.is_free() {
                let writer = self.writer.clone();
                wake.set(0, async move { writer.work.wait().await });
            }
            std::future::poll_fn(|context| {
                let mut ready = wake.poll(context).is_some() | alarm.poll(context).is_some();
                for slot in &mut writes {
                    if let Some(result) = slot.poll(context) {
                        self.writer.log.borrow_mut().handle_completion(
                            slot.token,
                            result,
                            wall_us(),
                        );
                        ready = true;
                    }
                }
                if let Some(result) = create.poll(context) {
                    self.writer.log.borrow_mut().handle_completion(create.token, result, wall_us());
                    ready = true;
                }
                if ready { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            self.hand_out();
        }
    }

    fn check(&self) -> Result<(), WalFailure> {
        match self.writer.log.borrow().failure() {
            Some(text) => Err(WalFailure(text.to_string())),
            None => Ok(()),
        }
    }

    fn hand_out(&mut self) {
        loop {
            let batch = self.writer.log.borrow_mut().poll_durable();
            match batch {
                Some(batch) => (self.on_durable)(batch),
                None => return,
            }
        }
    }

    fn open(&mut self, file: FileId) -> io::Result<Rc<File>> {
        if let Some((_, open)) = self.files.iter().find(|(id, _)| *id == file) {
            return Ok(open.clone());
        }
        // Two segments may be written at once around a change; older ones are done with.
        let segments = self.files.iter().filter(|(id, _)| *id != FileId::Checkpoint).count();
        if segments >= WRITES_IN_FLIGHT_MAX
            && let Some(oldest) = self.files.iter().position(|(id, _)| *id != FileId::Checkpoint)
        {
            self.files.remove(oldest);
        }
        let open = Rc::new(self.writer.directory.open_file(&file.name())?);
        self.files.push((file, open.clone()));
        Ok(open)
    }
}
