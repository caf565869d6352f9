//! A shard's end of the audit log: room for its lines, what waits for them, and how many denials are told.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;

use prism_adapters::{Error, Kind};
use prism_io::rt::Signal;
use prism_proto::catalogue::Method;

use super::{Access, ENTRIES_MAX, Entry, Fields, Outcome, Shared, What, Who, event, now_us};
use crate::namespaces::Namespace;
use crate::request::LateAnswer;
use crate::shard::{RETRY_DELAY, Shard};

/// Denials that are told at once; then one for each [`DENIAL_NS`]. More are counted, so that nobody can fill a disk with them.
const DENIALS_AT_ONCE: u64 = 100;
/// What a denial costs: a second.
const DENIAL_NS: u64 = 1_000_000_000;

/// What a shard's thread is given.
#[derive(Debug)]
pub(crate) struct AuditPort {
    pub(super) shard: usize,
    pub(super) queue: SyncSender<Entry>,
    pub(super) shared: Arc<Shared>,
}

/// See the module.
pub(crate) struct ShardAudit {
    port: AuditPort,
    /// Lines that were handed over.
    handed: Cell<u64>,
    /// Lines that will be: of calls under way.
    owed: Cell<u64>,
    waiting: RefCell<VecDeque<(u64, Waiting)>>,
    /// Monotonic time until which denials are paid for, in ns.
    denials_ns: Cell<u64>,
    /// Denials that were not told.
    suppressed: Cell<u64>,
}

/// What goes on when a line is written.
enum Waiting {
    Answer(LateAnswer),
    Task(Rc<Signal>),
}

/// A call as the log tells of it.
pub(crate) struct Told<'a> {
    pub(crate) who: &'a Arc<Who>,
    pub(crate) from: SocketAddr,
    pub(crate) method: Method,
    pub(crate) namespace: usize,
    pub(crate) trace_id: [u8; 16],
}

impl ShardAudit {
    pub(crate) fn new(port: AuditPort) -> Self {
        Self {
            port,
            handed: Cell::new(0),
            owed: Cell::new(0),
            waiting: RefCell::default(),
            denials_ns: Cell::new(0),
            suppressed: Cell::new(0),
        }
    }

    /// Whether nothing can be written any more.
    pub(crate) fn has_failed(&self) -> bool {
        self.port.shared.failed.load(Ordering::Acquire)
    }

    /// Answers that wait for their lines.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.borrow().len()
    }

    /// Keeps room for so many lines of a call, or refuses it.
    pub(crate) fn owe(&self, namespace: &Namespace, lines: u64) -> Result<(), Error> {
        if self.has_failed() {
            return Err(failed(&namespace.name));
        }
        if self.under_way() + lines > ENTRIES_MAX as u64 {
            let text = format!(
                "calls of namespace {} are written down, and as many lines wait as may; retry later",
                namespace.name
            );
            return Err(Error::new(Kind::ResourceExhausted, "AUDIT_BUSY", text)
                .with("namespace", namespace.name.to_string())
                .retry_after(RETRY_DELAY));
        }
        self.owed.set(self.owed.get() + lines);
        Ok(())
    }

    fn written(&self) -> u64 {
        self.port.shared.shards[self.port.shard].count.load(Ordering::Acquire)
    }

    fn under_way(&self) -> u64 {
        self.owed.get() + (self.handed.get() - self.written())
    }

    /// Hands over the line of a stream that begins, and waits until it is written.
    pub(crate) async fn begin(&self, told: &Told<'_>) {
        let ticket = self.tell(told, Outcome::Begun);
        self.wait(ticket).await;
    }

    /// Hands over the line of a stream that has ended with this gRPC status code, and waits until it is written.
    pub(crate) async fn end(&self, told: &Told<'_>, code: u8) {
        let ticket = self.tell(told, Outcome::Ended(code));
        self.wait(ticket).await;
    }

    /// Hands over the line of a call that has ended with this gRPC status code; its answer leaves when that is written.
    pub(crate) fn answer(&self, told: &Told<'_>, code: u8, answer: LateAnswer) {
        let ticket = self.tell(told, Outcome::Ended(code));
        self.waiting.borrow_mut().push_back((ticket, Waiting::Answer(answer)));
    }

    async fn wait(&self, ticket: u64) {
        let signal = Rc::new(Signal::default());
        self.waiting.borrow_mut().push_back((ticket, Waiting::Task(signal.clone())));
        signal.wait().await;
    }

    fn tell(&self, told: &Told<'_>, outcome: Outcome) -> u64 {
        self.owed.set(self.owed.get() - 1);
        self.hand_over(What::Access(Access {
            who: told.who.clone(),
            from: told.from,
            method: told.method,
            namespace: told.namespace,
            trace_id: told.trace_id,
            outcome,
        }))
    }

    fn hand_over(&self, what: What) -> u64 {
        let entry = Entry { at_us: now_us(), shard: Some(self.port.shard), what };
        if self.port.queue.try_send(entry).is_err() {
            // There is room for all that shards may have under way; so the writer has ended, and with it the process.
            tracing::error!("a line of the audit log was lost");
        }
        self.handed.set(self.handed.get() + 1);
        self.handed.get()
    }

    /// Tells of a denial, or counts it where there are too many.
    pub(crate) fn deny(&self, now_ns: u64, fields: impl FnOnce() -> Fields) {
        if !self.take_denial(now_ns) {
            self.suppressed.set(self.suppressed.get() + 1);
            // Shards share it, and a denial is no hot path.
            self.port.shared.suppressed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut fields = fields();
        let suppressed = self.suppressed.take();
        if suppressed > 0 {
            fields.push(("suppressed_before", suppressed.into()));
        }
        self.hand_over(What::Event(fields));
    }

    /// Tells how many denials were only counted, when there is room for that again.
    pub(crate) fn tell_suppressed(&self, now_ns: u64) {
        if self.suppressed.get() > 0 && self.take_denial(now_ns) {
            let count = ("suppressed_before", self.suppressed.take().into());
            self.hand_over(What::Event(event("denials", [count])));
        }
    }

    fn take_denial(&self, now_ns: u64) -> bool {
        let until_ns = self.denials_ns.get().max(now_ns);
        let is_told = until_ns - now_ns <= (DENIALS_AT_ONCE - 1) * DENIAL_NS
            && self.under_way() < ENTRIES_MAX as u64;
        if is_told {
            self.denials_ns.set(until_ns + DENIAL_NS);
        }
        is_told
    }

    /// Lets go on what waited for lines that are written.
    pub(crate) async fn run(&self, shard: &Shard) {
        let bell = &self.port.shared.shards[self.port.shard].bell;
        loop {
            let heard = bell.heard();
            let written = self.written();
            loop {
                let mut waiting = self.waiting.borrow_mut();
                if waiting.front().is_none_or(|(ticket, _)| *ticket > written) {
                    break;
                }
                let next = waiting.pop_front();
                drop(waiting);
                match next {
                    Some((_, Waiting::Answer(answer))) => answer.send(shard),
                    Some((_, Waiting::Task(signal))) => signal.set(),
                    None => break,
                }
            }
            bell.wait(heard).await;
        }
    }
}

/// What a call hears that has to be written down and cannot be.
#[cold]
pub(crate) fn failed(namespace: &str) -> Error {
    let text = format!(
        "calls of namespace {namespace} are written down, and the audit log cannot be written; who runs this server finds the \
         reason in its log"
    );
    Error::new(Kind::Unavailable, "AUDIT_FAILED", text).with("namespace", namespace.to_owned())
}
