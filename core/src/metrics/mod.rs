//! What is counted: lock-free numbers per shard, summed when somebody asks.
//!
//! [`Metrics::new`] makes the reader and one [`ShardMetrics`] per shard. A shard moves its own into its thread and is
//! its only writer, which the type enforces (it can be sent but neither shared nor cloned). Counting never blocks,
//! never takes a lock and allocates only when a namespace is first called on a shard. Label values come from the
//! configuration and the catalogue, never from a request, so that a client cannot make new series.

mod cell;
mod exposition;
mod families;

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

pub use cell::{Counter, Gauge, Histogram, Totals};
pub use exposition::{CONTENT_TYPE, ProcessNumbers};
pub use families::{
    ConnectionMetrics, LaneMetrics, MeshMetrics, OutboxMetrics, StoreMetrics, TlsMetrics,
    WalMetrics,
};

use prism_io::h2::{REFUSALS, Refusal};
use prism_io::server::Registry;

use crate::config::{ClientApi, Config};
use crate::namespaces::places_for_added;

/// gRPC status codes are 0 to 16.
const CODES: usize = 17;

/// The status codes as the label `status` shows them; `OK` is `success`.
const CODE_NAMES: [&str; CODES] = [
    "success",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];

/// A status code as metrics and the audit log show it.
pub(crate) fn code_name(code: u8) -> &'static str {
    CODE_NAMES[code_index(code)]
}

/// The place of a status code; one that gRPC does not have counts as `unknown`.
#[inline]
fn code_index(code: u8) -> usize {
    if usize::from(code) < CODES { usize::from(code) } else { 2 }
}

/// The values that labels may have. Positions in these lists are the indices that a shard counts by.
#[derive(Debug, Clone, Default)]
pub struct Labels {
    /// Names of namespaces, in the order of [`Config::namespaces`].
    pub namespaces: Vec<String>,
    /// Names of those that were added since, in their order; as many as there may be.
    pub added: Box<[OnceLock<String>]>,
    /// Names of client APIs.
    pub apis: Vec<&'static str>,
    /// Names of backends, in the order of [`Config::backends`].
    pub backends: Vec<String>,
    /// Reasons of refusals.
    pub reasons: Vec<&'static str>,
}

impl Labels {
    /// The labels of a configuration: its namespaces, its backends and every client API, with the given reasons.
    pub fn of(config: &Config, reasons: &[&'static str]) -> Self {
        Self {
            namespaces: config.namespaces.iter().map(|namespace| namespace.name.clone()).collect(),
            added: (0..places_for_added(config)).map(|_| OnceLock::new()).collect(),
            apis: ClientApi::ALL.iter().map(|api| api.name()).collect(),
            backends: config.backends.iter().map(|backend| backend.name.clone()).collect(),
            reasons: reasons.to_vec(),
        }
    }

    /// The places of namespaces, taken or not; the next is that of the unknown one.
    fn places(&self) -> usize {
        self.namespaces.len() + self.added.len()
    }
}

/// The label of requests that name no namespace that is served; not a valid name, so that it cannot be taken.
const NAMESPACE_UNKNOWN: &str = "-";

/// The reader of every shard's numbers. `Clone` is cheap.
#[derive(Debug, Clone)]
pub struct Metrics {
    shards: Arc<[Arc<ShardNumbers>]>,
    /// Reloads of the configuration that were applied, and that were refused.
    reloads: Arc<[AtomicU64; 2]>,
}

impl Metrics {
    /// The reader and, in order, the writer of each shard.
    pub fn new(labels: Labels, shards: usize) -> (Self, Vec<ShardMetrics>) {
        let labels = Arc::new(labels);
        let numbers: Arc<[Arc<ShardNumbers>]> =
            (0..shards).map(|_| Arc::new(ShardNumbers::new(labels.clone()))).collect();
        let writers = numbers
            .iter()
            .map(|numbers| ShardMetrics { numbers: numbers.clone(), not_shared: PhantomData })
            .collect();
        (Self { shards: numbers, reloads: Arc::default() }, writers)
    }

    /// Gives the namespace that was added as `number`th, from 0, its label; the first name stays.
    pub fn name_added(&self, number: usize, name: &str) {
        let labels = self.shards.first().map(|shard| &shard.labels);
        if let Some(place) = labels.and_then(|labels| labels.added.get(number)) {
            place.get_or_init(|| name.to_owned());
        }
    }

    /// Counts a reload of the configuration.
    pub fn count_reload(&self, is_applied: bool) {
        self.reloads[usize::from(!is_applied)].fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that ended with `code` (0 to 16) in a namespace, over all shards and client APIs.
    pub fn requests(&self, namespace: usize, code: u8) -> u64 {
        let of_shard = |shard: &Arc<ShardNumbers>| {
            let apis = 0..shard.labels.apis.len();
            apis.filter_map(|api| shard.calls(namespace, api))
                .map(|calls| calls.codes[code_index(code)].get())
                .sum::<u64>()
        };
        self.shards.iter().map(of_shard).sum()
    }

    /// The connections of each shard that serves, with its number.
    pub fn registries(&self) -> impl Iterator<Item = (usize, &Registry)> {
        let shards = self.shards.iter().enumerate();
        shards.filter_map(|(index, shard)| Some((index, &**shard.registry.get()?)))
    }
}

/// The numbers of one shard, for its own thread to write.
#[derive(Debug)]
pub struct ShardMetrics {
    numbers: Arc<ShardNumbers>,
    /// Numbers have one writer: this handle is `Send` but not `Sync`.
    not_shared: PhantomData<Cell<()>>,
}

impl Deref for ShardMetrics {
    type Target = ShardNumbers;

    fn deref(&self) -> &ShardNumbers {
        &self.numbers
    }
}

/// The numbers of one shard.
#[derive(Debug)]
pub struct ShardNumbers {
    labels: Arc<Labels>,
    /// By namespace, then client API; the last namespace is the unknown one. Made at its first call.
    calls: Box<[OnceLock<Box<Calls>>]>,
    /// By namespace, then backend and status code. Made at its first error.
    backend_errors: Box<[OnceLock<Box<[Counter]>>]>,
    refused: Box<[Counter]>,
    /// By [`Refusal`].
    transport_refused: [Counter; REFUSALS],
    /// The log.
    pub wal: WalMetrics,
    /// Connections and bytes.
    pub connections: ConnectionMetrics,
    /// TLS on them.
    pub tls: TlsMetrics,
    /// Handshakes that failed, by [`prism_io::tls::Failure::KINDS`].
    pub tls_failed: [Counter; prism_io::tls::Failure::KINDS.len()],
    /// By namespace: its lane to a backend outside, if it has one here.
    lanes: Box<[OnceLock<Box<LaneMetrics>>]>,
    /// By namespace: its outbox, once it has held something here.
    outboxes: Box<[OnceLock<Box<OutboxMetrics>>]>,
    /// The embedded store.
    pub store: StoreMetrics,
    /// The mesh.
    pub mesh: MeshMetrics,
    /// The connections that are open, once the shard serves.
    pub registry: OnceLock<Arc<Registry>>,
}

/// The calls of one namespace and client API.
#[derive(Debug, Default)]
struct Calls {
    codes: [Counter; CODES],
    duration: Histogram,
}

impl ShardNumbers {
    fn new(labels: Arc<Labels>) -> Self {
        let namespaces = labels.places() + 1;
        let cells = namespaces * labels.apis.len();
        Self {
            calls: (0..cells).map(|_| OnceLock::new()).collect(),
            backend_errors: (0..namespaces).map(|_| OnceLock::new()).collect(),
            lanes: (0..labels.places()).map(|_| OnceLock::new()).collect(),
            outboxes: (0..labels.places()).map(|_| OnceLock::new()).collect(),
            refused: labels.reasons.iter().map(|_| Counter::default()).collect(),
            labels,
            transport_refused: std::array::from_fn(|_| Counter::default()),
            wal: WalMetrics::default(),
            connections: ConnectionMetrics::default(),
            tls: TlsMetrics::default(),
            tls_failed: Default::default(),
            store: StoreMetrics::default(),
            mesh: MeshMetrics::default(),
            registry: OnceLock::new(),
        }
    }

    /// Counts one finished call: its namespace (`None` or out of range where it named none that is served), its
    /// client API, its gRPC status code and the time from its last request byte to its answer.
    #[inline]
    pub fn request(&self, namespace: Option<usize>, api: usize, code: u8, elapsed_ns: u64) {
        let unknown = self.labels.places();
        let namespace = namespace.unwrap_or(unknown).min(unknown);
        debug_assert!(api < self.labels.apis.len(), "client API {api} has no label");
        if let Some(cell) = self.calls.get(namespace * self.labels.apis.len() + api) {
            let calls = match cell.get() {
                Some(calls) => calls,
                None => cell.get_or_init(Box::default),
            };
            calls.codes[code_index(code)].increment();
            calls.duration.record_ns(elapsed_ns);
        }
    }

    /// Counts an error that a backend gave: the position of its name in [`Labels::backends`], and the gRPC status code
    /// that is its kind.
    pub fn backend_error(&self, namespace: usize, backend: usize, code: u8) {
        debug_assert!(backend < self.labels.backends.len(), "backend {backend} has no label");
        let namespace = namespace.min(self.labels.places());
        let counters = self.backend_errors[namespace].get_or_init(|| {
            (0..self.labels.backends.len() * CODES).map(|_| Counter::default()).collect()
        });
        if let Some(counter) = counters.get(backend * CODES + code_index(code)) {
            counter.increment();
        }
    }

    /// The lane of a namespace, made when it is first asked for.
    pub fn lane(&self, namespace: usize) -> &LaneMetrics {
        self.lanes[namespace].get_or_init(Box::default)
    }

    /// The outbox of a namespace, made when it is first asked for.
    pub fn outbox(&self, namespace: usize) -> &OutboxMetrics {
        self.outboxes[namespace].get_or_init(Box::default)
    }

    /// The same, if it is there.
    pub fn known_outbox(&self, namespace: usize) -> Option<&OutboxMetrics> {
        self.outboxes.get(namespace)?.get().map(Box::as_ref)
    }

    /// Counts a call that Prism refused, by the reason's position in [`Labels::reasons`].
    #[inline]
    pub fn refused(&self, reason: usize) {
        debug_assert!(reason < self.refused.len(), "reason {reason} has no label");
        if let Some(counter) = self.refused.get(reason) {
            counter.increment();
        }
    }

    /// Brings what the transport has refused, by its own count since the start, up to date.
    pub fn transport_refused(&self, kind: Refusal, total: u64) {
        let counter = &self.transport_refused[kind as usize];
        counter.add(total.saturating_sub(counter.get()));
    }

    fn calls(&self, namespace: usize, api: usize) -> Option<&Calls> {
        self.calls.get(namespace * self.labels.apis.len() + api)?.get().map(Box::as_ref)
    }

    fn namespace_label(&self, namespace: usize) -> &str {
        let labels = &self.labels;
        let added = |place: usize| labels.added.get(place)?.get();
        let name = labels.namespaces.get(namespace);
        name.or_else(|| added(namespace - labels.namespaces.len()))
            .map_or(NAMESPACE_UNKNOWN, String::as_str)
    }
}
