//! memstore: a shard's own store, in memory, made durable by the log and by snapshots.
//!
//! One per shard, on its thread; the lanes of all its namespaces are in it. Replaying the same records
//! from an older snapshot gives the same state and the same answers. Its unary futures are ready when
//! they are first polled, but for Count on a large lane, which gives way between steps as scans do;
//! these need the shard's runtime.
//!
//! - `slab`, `index`, `entry`, `payloads`: where entries are and how they are found
//! - `store`: changes, expiry (`wheel`) and the memory that is taken
//! - `keyvalue`, `scan`: the interfaces
//! - `rooms`, `sources`: where the other models' data is, and how those who wait for it are told
//! - `queue`, `stream`, `pubsub`: the models; `delivery`: what those have in common that share records among readers
//! - `erasure`: the end of a namespace
//! - `outbox`: messages of transactions, until they are relayed
//! - `outcomes`: what became of calls with an idempotency key
//! - `format`, `snapshot`, `files`: the way to disk and back

pub(crate) mod delivery;
mod entry;
mod erasure;
mod files;
mod format;
mod index;
mod keyvalue;
mod outbox;
mod outcomes;
mod payloads;
pub(crate) mod pubsub;
mod queue;
mod rooms;
mod scan;
mod slab;
mod snapshot;
mod store;
mod stream;
mod wheel;

use std::cell::{Ref, RefCell, RefMut};
use std::hash::RandomState;
use std::io::Read;
use std::rc::Rc;
use std::time::Duration;

use prism_proto::catalogue::Method;
use prism_proto::view::keyvalue::TransactRequest;
use prism_proto::view::types::OperationAction;

pub use self::erasure::Erasure;
pub use self::files::{RestoreError, Restored, SnapshotFiles};
pub use self::format::{SNAPSHOT_VERSION, SnapshotError, SnapshotFacts};
pub use self::outcomes::{
    Lookup, OUTCOME_BYTES_MAX, OUTCOMES_MAX, Outcome, OutcomeKey, Outcomes, Ticket, WINDOW_DEFAULT,
    WINDOW_MIN,
};
use self::pubsub::{Subscriptions, Topics};
use self::queue::Queues;
pub use self::snapshot::{Snapshot, SnapshotStep};
use self::store::Store;
use self::stream::{Groups, Streams};
use crate::backend::Admission;
use crate::error::{Error, Kind};
use crate::outbox::Outboxes;
use crate::sources::Sources;

/// What a new entry takes beside its key and value, about; for admission.
const ENTRY_BYTES: usize = 256;

/// How much a memstore takes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemstoreLimits {
    /// Bytes that entries may take, index and timers included. Writes that are already in the log
    /// when it is reached are still carried out.
    pub bytes_max: usize,
    /// How many outcomes of keyed calls are remembered.
    pub outcomes_max: usize,
    /// Bytes that remembered outcomes may take.
    pub outcome_bytes_max: usize,
}

impl Default for MemstoreLimits {
    fn default() -> Self {
        MemstoreLimits {
            bytes_max: 1 << 30,
            outcomes_max: OUTCOMES_MAX,
            outcome_bytes_max: OUTCOME_BYTES_MAX,
        }
    }
}

/// A shard's store, see the module.
#[derive(Debug, Default)]
pub struct Memstore {
    store: RefCell<Store>,
    outcomes: RefCell<Outcomes>,
    queues: RefCell<Queues>,
    queue_sources: Sources,
    streams: RefCell<Streams>,
    stream_sources: Sources,
    groups: Groups,
    /// By stream and group.
    group_sources: Sources,
    subscriptions: Subscriptions,
    topics: RefCell<Topics>,
    /// By topic and, behind a slash, by durable subscription.
    event_sources: Sources,
    outboxes: RefCell<Outboxes>,
    limits: MemstoreLimits,
    /// Signs page tokens; another one in every process, because positions are.
    page_signer: RandomState,
}

crate::backend! {
    Memstore: "memstore" =>
        keyvalue_basic,
        keyvalue_scan,
        keyvalue_ttl,
        keyvalue_transactional,
        keyvalue_batch,
        keyvalue_cas,
        queue_basic,
        queue_visibility,
        queue_dead_letter,
        queue_priority,
        queue_delayed,
        stream_basic,
        stream_consumer_groups,
        stream_replay,
        stream_retention,
        stream_partitioning,
        pubsub_basic,
        pubsub_wildcards,
        pubsub_persistent,
        pubsub_filtering,
        pubsub_ordering,
}

impl Memstore {
    /// An empty store.
    pub fn new(limits: MemstoreLimits) -> Self {
        let outcomes = Outcomes::new(limits.outcomes_max, limits.outcome_bytes_max);
        Memstore::assemble(limits, Store::default(), outcomes)
    }

    /// The store that a snapshot is of; every byte is checked before it is believed.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] says where; the older snapshot may still be good.
    pub fn restore(
        limits: MemstoreLimits,
        source: impl Read,
    ) -> Result<(Memstore, SnapshotFacts), SnapshotError> {
        snapshot::restore(limits, source)
    }

    fn assemble(limits: MemstoreLimits, store: Store, outcomes: Outcomes) -> Memstore {
        let mut memstore = Memstore {
            store: RefCell::new(store),
            outcomes: RefCell::new(outcomes),
            queues: RefCell::default(),
            queue_sources: Sources::default(),
            streams: RefCell::default(),
            stream_sources: Sources::default(),
            groups: Groups::default(),
            group_sources: Sources::default(),
            subscriptions: Subscriptions::default(),
            topics: RefCell::default(),
            event_sources: Sources::default(),
            outboxes: RefCell::default(),
            limits,
            page_signer: RandomState::new(),
        };
        let queues = memstore.restore_queues();
        *memstore.queues.borrow_mut() = queues;
        let streams = memstore.restore_streams();
        *memstore.streams.borrow_mut() = streams;
        memstore.groups = memstore.restore_groups();
        let topics = memstore.restore_topics();
        *memstore.topics.borrow_mut() = topics;
        let outboxes = memstore.restore_outboxes();
        *memstore.outboxes.borrow_mut() = outboxes;
        memstore
    }

    /// Begins a snapshot of the state as it is now; see [`Snapshot::step`]. One at a time.
    ///
    /// Between a change and the moment when its record counts as contained nothing may come: begin it
    /// when every record up to `facts.lsn` has been applied, and none after it.
    pub fn snapshot(self: &Rc<Self>, facts: &SnapshotFacts) -> Result<Snapshot, SnapshotError> {
        Snapshot::begin(Rc::clone(self), facts)
    }

    /// Brings the entries of a lane's keys into the processor's caches, for calls that come at once; of so many keys as are
    /// worth it. Changes nothing.
    pub fn fetch(&self, namespace: u32, partition: u16, keys: &[&[u8]]) {
        let store = self.store.borrow();
        if let Some(lane) = store.lane(namespace, partition) {
            store.fetch(lane, keys);
        }
    }

    /// About how much memory the entries take, in bytes.
    pub fn used_bytes(&self) -> usize {
        self.store.borrow().used_bytes()
    }

    /// About how much memory the entries of one namespace take, in bytes; a part of
    /// [`Memstore::used_bytes`].
    pub fn namespace_used_bytes(&self, namespace: u32) -> usize {
        self.store.borrow().namespace_bytes(namespace).map_or(0, |(used_bytes, _)| used_bytes)
    }

    /// Refuses a valid call that would take its namespace past the namespace's own share of this
    /// store, `namespace_bytes_max`. It does not look at the store's limit, which
    /// [`Admission::admit`] does.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED `MEMORY_FULL` for what takes space; reads and deletes pass always.
    #[inline]
    pub fn admit_in(
        &self,
        namespace: u32,
        namespace_bytes_max: u64,
        method: Method,
        request: &[u8],
    ) -> Result<(), Error> {
        let used_bytes = self.namespace_used_bytes(namespace);
        if (used_bytes + request.len() + ENTRY_BYTES) as u64 <= namespace_bytes_max {
            return Ok(());
        }
        self.admit_when_share_full(namespace, namespace_bytes_max, method, request)
    }

    /// How many entries there are, those that have expired and are not yet reaped included.
    pub fn entries(&self) -> usize {
        self.store.borrow().entries()
    }

    /// Reaps entries and outcomes that have expired by `horizon_us`, at most `budget` of each.
    ///
    /// `horizon_us` is the log time of the oldest record that is not yet applied, or the time that
    /// the log would give to a record now: no change may come from before it. Returns how many went;
    /// fewer than `budget` means that nothing is left to do.
    pub fn expire(&self, horizon_us: u64, budget: usize) -> usize {
        let entries = self.store.borrow_mut().expire(horizon_us, budget);
        entries + self.outcomes.borrow_mut().expire(horizon_us, budget)
    }

    /// What became of calls with an idempotency key; snapshotted together with the entries.
    pub fn outcomes(&self) -> Ref<'_, Outcomes> {
        self.outcomes.borrow()
    }

    /// The same, to be changed; not to be held across an await.
    pub fn outcomes_mut(&self) -> RefMut<'_, Outcomes> {
        self.outcomes.borrow_mut()
    }

    /// An event that is kept for durable subscriptions only, of which there are none.
    fn keeps_none_of(&self, method: Method) -> bool {
        let is_passing = matches!(
            method,
            Method::PUBSUB_PUBLISH
                | Method::PUBSUB_PUBLISH_BATCH
                | Method::PUBSUB_PUBLISH_WITH_ATTRIBUTES
                | Method::PUBSUB_PUBLISH_ORDERED
        );
        is_passing && !self.has_durable_subscriptions()
    }

    #[cold]
    fn admit_when_full(&self, method: Method, request: &[u8]) -> Result<(), Error> {
        if !takes_space(method, request) || self.keeps_none_of(method) {
            return Ok(());
        }
        let message = format!(
            "the store's memory is used up ({} of {} bytes): delete entries, give them a ttl, or \
             raise the limit; reads and deletes go on",
            self.used_bytes(),
            self.limits.bytes_max
        );
        Err(memory_full(message))
    }

    #[cold]
    fn admit_when_share_full(
        &self,
        namespace: u32,
        namespace_bytes_max: u64,
        method: Method,
        request: &[u8],
    ) -> Result<(), Error> {
        if !takes_space(method, request) || self.keeps_none_of(method) {
            return Ok(());
        }
        let store = self.store.borrow();
        let (used_bytes, name) = store.namespace_bytes(namespace).unwrap_or((0, ""));
        let message = format!(
            "the memory of the namespace {name}{}is used up ({used_bytes} of {namespace_bytes_max} \
             bytes on this shard): delete entries, give them a ttl, or raise the namespace's \
             memory_bytes_max; reads and deletes go on",
            if name.is_empty() { "" } else { " " }
        );
        Err(memory_full(message).with("limit", "memory_bytes_max"))
    }
}

/// Whether a call may add entries or make one longer.
fn takes_space(method: Method, request: &[u8]) -> bool {
    match method {
        Method::KEYVALUE_SET
        | Method::KEYVALUE_BATCH_SET
        | Method::KEYVALUE_COMPARE_AND_SWAP
        | Method::QUEUE_SEND
        | Method::QUEUE_SEND_BATCH
        | Method::QUEUE_SEND_WITH_PRIORITY
        | Method::QUEUE_SEND_DELAYED
        | Method::QUEUE_CONFIGURE_DEAD_LETTER
        | Method::STREAM_APPEND
        | Method::STREAM_APPEND_BATCH
        | Method::STREAM_APPEND_TO_PARTITION
        | Method::STREAM_CREATE_CONSUMER_GROUP
        | Method::PUBSUB_PUBLISH
        | Method::PUBSUB_PUBLISH_BATCH
        | Method::PUBSUB_PUBLISH_PERSISTENT
        | Method::PUBSUB_PUBLISH_WITH_ATTRIBUTES
        | Method::PUBSUB_PUBLISH_ORDERED
        | Method::PUBSUB_SUBSCRIBE_DURABLE
        | Method::STREAM_SET_RETENTION
        | Method::TRANSACT_WRITE => true,
        Method::KEYVALUE_TRANSACT => TransactRequest::decode(request).is_ok_and(|request| {
            let mut operations = request.operations.iter();
            operations.any(|one| matches!(one.action, Some(OperationAction::Put(_))))
        }),
        _ => false,
    }
}

fn memory_full(message: String) -> Error {
    let error = Error::new(Kind::ResourceExhausted, "MEMORY_FULL", message);
    error.with("backend", "memstore").retry_after(Duration::from_secs(1))
}

impl Admission for Memstore {
    #[inline]
    fn admit(&self, method: Method, request: &[u8]) -> Result<(), Error> {
        if matches!(method, Method::STREAM_SEEK_TO_OFFSET | Method::STREAM_SEEK_TO_TIMESTAMP) {
            return self.admit_seek(method, request);
        }
        let needed = self.used_bytes() + request.len() + ENTRY_BYTES;
        if needed <= self.limits.bytes_max {
            return Ok(());
        }
        self.admit_when_full(method, request)
    }
}
