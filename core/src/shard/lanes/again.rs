//! A lane's records read again from the log by a thread of their own, while the lane catches up.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use bytes::Bytes;
use prism_adapters::{Error, Kind};
use prism_io::bell::Bell;
use prism_wal::driver::Writer;
use prism_wal::{Lane, Record, read_again};

use super::queue::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};

/// Chunks that the thread may be ahead.
const CHUNKS_AHEAD_MAX: usize = 4;

/// A record with what a backend needs of it.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    pub(super) lane_seq: u64,
    pub(super) lsn: u64,
    pub(super) log_time_us: u64,
    pub(super) method: u16,
    pub(super) body: Bytes,
}

type Chunk = io::Result<Vec<Owned>>;

/// A reading under way; its thread ends with it.
pub(super) struct Again {
    /// The records behind this number of the lane are read.
    pub(super) after_seq: u64,
    chunks: Receiver<Chunk>,
    bell: Arc<Bell>,
    rest: RefCell<VecDeque<Owned>>,
}

impl Again {
    /// Begins to read the records of `lane` behind the number `after_seq`, which have LSNs from `from` to `upto`.
    pub(super) fn start(
        writer: &Writer,
        lane: Lane,
        after_seq: u64,
        (from, upto): (u64, u64),
    ) -> io::Result<Self> {
        let (segments, streams) = (writer.used_segments(), writer.directory().streams());
        let (send, chunks) = sync_channel(CHUNKS_AHEAD_MAX);
        let bell = Arc::new(Bell::default());
        let mut sender = Sender { send, bell: bell.clone(), chunk: Vec::new(), bytes: 0 };
        std::thread::Builder::new().name("lane-read".into()).spawn(move || {
            let result =
                read_again(&segments, from, upto, &mut |name| streams.open(name), &mut |record| {
                    record.head.lane != lane || record.lane_seq <= after_seq || sender.take(record)
                });
            match result {
                Ok(()) => sender.flush(),
                Err(error) => sender.pass(Err(error)),
            };
        })?;
        Ok(Self { after_seq, chunks, bell, rest: RefCell::default() })
    }

    /// The next records, no more than a batch; none when all have been read.
    pub(super) async fn next(&self) -> Result<Vec<Owned>, Error> {
        if self.rest.borrow().is_empty() {
            let chunk = loop {
                let heard = self.bell.heard();
                match self.chunks.try_recv() {
                    Ok(chunk) => break chunk,
                    Err(TryRecvError::Disconnected) => return Ok(Vec::new()),
                    Err(TryRecvError::Empty) => self.bell.wait(heard).await,
                }
            };
            self.rest.borrow_mut().extend(chunk.map_err(|error| unreadable(&error))?);
        }
        let mut rest = self.rest.borrow_mut();
        let count = rest.len().min(BATCH_RECORDS_MAX);
        Ok(rest.drain(..count).collect())
    }
}

/// The thread's end.
struct Sender {
    send: SyncSender<Chunk>,
    bell: Arc<Bell>,
    chunk: Vec<Owned>,
    bytes: usize,
}

impl Sender {
    /// Takes one record; `false` when nobody wants it.
    fn take(&mut self, record: &Record<'_>) -> bool {
        self.bytes += record.body.len();
        self.chunk.push(Owned {
            lane_seq: record.lane_seq,
            lsn: record.lsn,
            log_time_us: record.log_time_us,
            method: record.head.method,
            body: Bytes::copy_from_slice(record.body),
        });
        let is_full = self.chunk.len() >= BATCH_RECORDS_MAX || self.bytes >= BATCH_BYTES_MAX;
        !is_full || self.flush()
    }

    fn flush(&mut self) -> bool {
        self.bytes = 0;
        let chunk = std::mem::take(&mut self.chunk);
        chunk.is_empty() || self.pass(Ok(chunk))
    }

    fn pass(&self, chunk: Chunk) -> bool {
        let passed = self.send.send(chunk).is_ok();
        self.bell.ring();
        passed
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // The end is news too, and the channel must be closed when it is heard.
        let (send, _) = sync_channel(0);
        drop(std::mem::replace(&mut self.send, send));
        self.bell.ring();
    }
}

#[cold]
fn unreadable(error: &io::Error) -> Error {
    let text = format!(
        "the log cannot be read again: {error}; look at the disk, and at what `prism wal verify` says of the data directory"
    );
    Error::new(Kind::DataLoss, "LOG_UNREADABLE", text)
}
