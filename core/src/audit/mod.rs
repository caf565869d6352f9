//! The audit log: who did what, when and from where; what was denied, and what changed in the configuration. Never keys, never
//! values.
//!
//! Lines of JSON that only grow, each with the hash of all before it ([`chain`]), in files of their own ([`files`]), written by one
//! thread ([`writer`]). A shard hands over what is to be written ([`shard`]) and never waits for the disk. Promises: a call of a
//! namespace that asks for it (`audit_logging`) is refused where its line would have no room, and its answer leaves only when
//! its line is on stable storage. Denials are bounded in number, and those that are too many are counted in a line.

pub(crate) mod chain;
pub(crate) mod files;
pub(crate) mod shard;
mod writer;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prism_io::bell::Bell;
use prism_proto::catalogue::Method;
use serde_json::Value;

pub(crate) use chain::{Fields, Head, show};
pub(crate) use shard::{AuditPort, ShardAudit};
pub(crate) use writer::start;

/// Lines that one shard may have on their way, those of calls that are not answered yet among them.
const ENTRIES_MAX: usize = 2048;

/// Who called.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Who {
    /// The SPIFFE id of a certificate, the `sub` of a token, or `anonymous`.
    pub(crate) id: Box<str>,
    /// Who says so, where it is a token's.
    pub(crate) issuer: Option<Box<str>>,
}

impl Who {
    pub(crate) fn anonymous() -> Self {
        Self { id: "anonymous".into(), issuer: None }
    }
}

/// One line to write.
#[derive(Debug)]
struct Entry {
    at_us: u64,
    /// The shard that waits for it.
    shard: Option<usize>,
    what: What,
}

#[derive(Debug)]
enum What {
    Event(Fields),
    Access(Access),
    /// The last; the writer ends.
    End,
}

/// A caller's access to the data of a namespace.
#[derive(Debug)]
struct Access {
    who: Arc<Who>,
    from: SocketAddr,
    method: Method,
    /// Its place among the namespaces.
    namespace: usize,
    trace_id: [u8; 16],
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// A stream has begun.
    Begun,
    /// A call has ended with this gRPC status code.
    Ended(u8),
}

/// What the writer tells of itself.
#[derive(Debug)]
struct Shared {
    /// It cannot write any more.
    failed: AtomicBool,
    lines: AtomicU64,
    head: Mutex<Head>,
    suppressed: AtomicU64,
    shards: Box<[Written]>,
}

/// How far the writer is with the lines of a shard.
#[derive(Debug, Default)]
struct Written {
    count: AtomicU64,
    bell: Bell,
}

/// The control thread's handle. `Clone` shares it.
#[derive(Debug, Clone)]
pub(crate) struct Audit {
    queue: SyncSender<Entry>,
    shared: Arc<Shared>,
}

impl Audit {
    /// Writes down what happened, soon.
    pub(crate) fn event(&self, fields: Fields) {
        let entry = Entry { at_us: now_us(), shard: None, what: What::Event(fields) };
        // The writer is there for as long as there is a handle.
        let _ = self.queue.send(entry);
    }

    /// Where a shard puts its lines.
    pub(crate) fn port(&self, shard: usize) -> AuditPort {
        AuditPort { shard, queue: self.queue.clone(), shared: self.shared.clone() }
    }

    /// For whoever shows it.
    pub(crate) fn view(&self) -> AuditView {
        AuditView(self.shared.clone())
    }
}

/// What can be seen of the audit log. `Clone` shares it.
#[derive(Debug, Clone)]
pub struct AuditView(Arc<Shared>);

impl AuditView {
    /// Lines written since the start, and denials that were counted instead.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        (read(&self.0.lines), read(&self.0.suppressed))
    }

    /// Whether it cannot be written any more.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.failed.load(Ordering::Acquire)
    }

    /// The last line that is on stable storage.
    pub(crate) fn head(&self) -> Head {
        *self.0.head.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An event with this name, and what belongs to it.
pub(crate) fn event(name: &str, more: impl IntoIterator<Item = (&'static str, Value)>) -> Fields {
    std::iter::once(("event", Value::from(name))).chain(more).collect()
}

fn now_us() -> u64 {
    prism_io::clock::wall_us()
}

/// A time as lines have it.
fn show_time(at_us: u64) -> String {
    crate::logging::timestamp(time(at_us))
}

fn time(at_us: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(at_us)
}
