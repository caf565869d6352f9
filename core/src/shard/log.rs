//! The shard's log as the request path sees it: append, and stand in line until the record is durable.
//!
//! When a write has completed, the calls behind it are carried out in one pass, in the order of their records, each with its
//! record at hand in the buffer that was written. That order is the order in which the backend sees them.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use prism_adapters::{Error, Kind};
use prism_io::calls::StartCall;
use prism_io::clock;
use prism_wal::driver::Writer;
use prism_wal::{AppendError, Appended, DurableBatch, RecordHead, RecordKind};
use slab::Slab;

use super::{Deadlines, RETRY_DELAY, Shard};
use crate::request::logged::{self, FETCH_RECORDS};
use crate::request::{Call, Logged};

/// After how long a write that found the log full may be tried again.
const FULL_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Calls that may wait for the log at once.
const WAITING_MAX: usize = 64 * 1024;

/// By namespace: its last record.
pub(super) type Held = HashMap<u32, u64, ahash::RandomState>;

/// The log of one shard.
pub(crate) struct Log {
    writer: Rc<Writer>,
    /// The calls whose records are not durable yet, in the order of their records.
    waiting: RefCell<VecDeque<Logged>>,
    /// Who waits to read the effects of which record.
    readers: RefCell<Slab<(u64, Waker)>>,
    last: Cell<u64>,
    applied: Cell<u64>,
    failed: Cell<bool>,
    time_us: Cell<u64>,
    /// Log time of the last record that was applied.
    applied_us: Cell<u64>,
    held: RefCell<Held>,
    /// The records up to here are in the older snapshot.
    snapshotted: Cell<u64>,
}

impl Log {
    /// The log behind `writer`, whose last record is `last` and was written at log time `time_us`.
    pub(crate) fn new(
        writer: Rc<Writer>,
        last: u64,
        time_us: u64,
        held: Held,
        snapshotted: u64,
    ) -> Self {
        Self {
            writer,
            waiting: RefCell::default(),
            readers: RefCell::default(),
            last: Cell::new(last),
            applied: Cell::new(last),
            failed: Cell::new(false),
            time_us: Cell::new(time_us),
            applied_us: Cell::new(time_us),
            held: RefCell::new(held),
            snapshotted: Cell::new(snapshotted),
        }
    }

    /// The state machine and its files.
    pub(crate) fn writer(&self) -> &Rc<Writer> {
        &self.writer
    }

    /// Copies one record into the batch that goes out next.
    ///
    /// The call is to [`wait`](Self::wait) for it before the next one is appended.
    pub(crate) fn append(&self, head: &RecordHead<'_>, body: &[u8]) -> Result<Appended, Error> {
        if self.waiting.borrow().len() >= WAITING_MAX {
            return Err(refused(AppendError::Busy));
        }
        let appended =
            self.writer.append(self.time_us(clock::wall_us()), head, body).map_err(refused)?;
        self.last.set(appended.lsn);
        self.time_us.set(appended.log_time_us);
        self.held.borrow_mut().insert(head.lane.namespace, appended.lsn);
        Ok(appended)
    }

    /// The last record that was appended; 0 before the first.
    pub(crate) fn last_lsn(&self) -> u64 {
        self.last.get()
    }

    /// The last record whose effects can be read.
    pub(crate) fn applied_lsn(&self) -> u64 {
        self.applied.get()
    }

    /// The last record of a call whose effects can be read; records of the log itself change nothing.
    pub(crate) fn applied_data_lsn(&self) -> u64 {
        self.held.borrow().values().copied().max().unwrap_or(0).min(self.applied.get())
    }

    /// The wall clock as log time: it never runs backwards.
    pub(crate) fn time_us(&self, wall_us: u64) -> u64 {
        let time_us = self.time_us.get().max(wall_us);
        self.time_us.set(time_us);
        time_us
    }

    /// The time before which no change can come any more.
    pub(crate) fn horizon_us(&self, wall_us: u64) -> u64 {
        if self.applied.get() >= self.last.get() {
            self.time_us(wall_us)
        } else {
            self.applied_us.get()
        }
    }

    /// Whether a namespace has records that a restart would apply again: then its unlogged writes must be logged too, or
    /// they would be undone.
    pub(crate) fn holds(&self, namespace: u32) -> bool {
        self.held.borrow().get(&namespace).is_some_and(|last| *last > self.snapshotted.get())
    }

    /// The records up to `lsn` are in the older snapshot.
    pub(crate) fn note_snapshotted(&self, lsn: u64) {
        self.snapshotted.set(lsn);
    }

    /// Puts a call behind those that were appended before it.
    pub(crate) fn wait(&self, call: Logged, deadlines: &Deadlines) {
        deadlines.watch(call.call.deadline_ns);
        let mut waiting = self.waiting.borrow_mut();
        let last = waiting.back().map_or(0, |last| last.rest.lsn);
        assert!(last < call.rest.lsn, "calls wait in the order of their records");
        waiting.push_back(call);
    }

    /// Calls that wait for their records.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.borrow().len()
    }

    /// Answers the callers whose time is up, and has the others' deadlines watched.
    pub(crate) fn expire(&self, shard: &Shard, now_ns: u64) {
        for call in self.waiting.borrow_mut().iter_mut() {
            if let Some(deadline_ns) = call.expire(shard, now_ns) {
                shard.deadlines.watch(deadline_ns);
            }
        }
    }

    /// Waits until the effects of the records up to `lsn` can be read. May be given up.
    pub(crate) async fn applied(&self, lsn: u64) -> Result<(), Error> {
        let mut place = ReaderPlace { log: self, key: None };
        std::future::poll_fn(|context| {
            if self.applied.get() >= lsn {
                return Poll::Ready(Ok(()));
            }
            if self.failed.get() {
                return Poll::Ready(Err(failed()));
            }
            let mut readers = self.readers.borrow_mut();
            match place.key {
                Some(key) => readers[key].1.clone_from(context.waker()),
                None => place.key = Some(readers.insert((lsn, context.waker().clone()))),
            }
            Poll::Pending
        })
        .await
    }

    /// Carries out the calls whose records are in `batch`, then polls those that wait to read what they have done. Every
    /// batch comes here once, in order.
    pub(crate) fn settle(&self, shard: &Shard, batch: &DurableBatch, calls: &dyn StartCall<Call>) {
        let now_ns = clock::monotonic_ns();
        for (index, record) in batch.records().enumerate() {
            if index % FETCH_RECORDS == 0 {
                let group = index..batch.len().min(index + FETCH_RECORDS);
                logged::fetch(&shard.store, group.map(|index| batch.record(index)));
            }
            self.applied_us.set(record.log_time_us);
            if record.kind == RecordKind::Data {
                let next = self.waiting.borrow_mut().pop_front();
                let call = next.expect("every record of a call has its call waiting");
                assert!(call.rest.lsn == record.lsn, "records are applied in their order");
                match shard.lanes.of(call.rest.namespace) {
                    None => logged::carry_out(shard, call, &record, now_ns),
                    Some(lane) => lane.take(shard, call, (batch, index), &record, now_ns),
                }
            }
        }
        self.applied.set(batch.last_lsn());
        self.wake_readers();
        calls.poll_woken();
    }

    /// Tells everybody who waits that the log has failed.
    pub(crate) fn fail(&self, shard: &Shard, calls: &dyn StartCall<Call>) {
        self.failed.set(true);
        let now_ns = clock::monotonic_ns();
        for call in self.waiting.take() {
            call.fail(shard, failed(), now_ns);
        }
        for lane in shard.lanes.iter() {
            lane.fail(shard, failed, now_ns);
        }
        self.wake_readers();
        calls.poll_woken();
    }

    fn wake_readers(&self) {
        for (_, (lsn, waker)) in self.readers.borrow().iter() {
            if self.failed.get() || self.applied.get() >= *lsn {
                waker.wake_by_ref();
            }
        }
    }
}

/// A reader's place among those that wait; given up when it is dropped.
struct ReaderPlace<'a> {
    log: &'a Log,
    key: Option<usize>,
}

impl Drop for ReaderPlace<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.log.readers.borrow_mut().remove(key);
        }
    }
}

#[cold]
fn refused(error: AppendError) -> Error {
    match error {
        AppendError::Full => Error::new(
            Kind::ResourceExhausted,
            "WAL_FULL",
            "the write-ahead log has no room until its backend has caught up or the disk has space again; reads go on; \
             retry later, free disk space, or raise wal.bytes_max",
        )
        .retry_after(FULL_RETRY_DELAY),
        AppendError::Busy => Error::new(
            Kind::ResourceExhausted,
            "WAL_BUSY",
            "more bytes wait for the log's disk than may; retry later or send fewer at once",
        )
        .retry_after(RETRY_DELAY),
        AppendError::TooLarge { bytes, bytes_max } => Error::new(
            Kind::ResourceExhausted,
            "MESSAGE_TOO_LARGE",
            format!("the request's {bytes} bytes do not fit into a record of the log, which takes {bytes_max}; send less"),
        ),
        AppendError::TooManyLanes => Error::new(
            Kind::ResourceExhausted,
            "WAL_LANES",
            "this data directory's log has seen as many namespaces as it can remember; use another data directory",
        ),
        AppendError::Failed => failed(),
        AppendError::NotOpen => Error::new(
            Kind::Unavailable,
            "SHUTTING_DOWN",
            "this server is shutting down and takes no more writes; retry against another one",
        ),
    }
}

#[cold]
fn failed() -> Error {
    Error::new(
        Kind::Unavailable,
        "WAL_FAILED",
        "a write of the log failed, so it is unknown whether this call took effect; the server restarts and recovers; \
         retry with the same prism-idempotency-key",
    )
}
