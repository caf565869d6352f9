//! What serving an interface means: one suite of cases per interface, for every backend.
//!
//! A case is written once, against a [`Client`], and runs wherever there is one: straight on an
//! adapter ([`Direct`]), through the whole proxy over gRPC, in simulation. Which cases run follows
//! from what the client says is offered; what is not offered is shown to be refused. A case uses keys
//! of its own, another time others, so that a namespace can be used for several runs; it fails by panicking, and says in
//! which case.
//!
//! What only the backend knows (`existed`, `version`) may be absent in the answer to a write, as it is
//! where the answer comes from the log; what is there must be right.

mod caller;
mod direct;
mod keyvalue_basic;
mod keyvalue_batch;
mod keyvalue_cas;
mod keyvalue_scan;
mod keyvalue_transactional;
mod keyvalue_ttl;
mod live;
mod model;
mod offered;
mod pubsub;
mod pubsub_durable;
mod queue;
mod reader;
mod stream;
mod stream_groups;

use std::future::Future;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use prism_proto::catalogue::{Interface, Interfaces, Method};

pub use self::direct::{Collect, Direct, block_on};
pub use self::model::random_sequence;
use crate::error::Error;
use crate::limits::Limits;
pub use crate::together::together;

/// What a call failed with, as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// gRPC status code.
    pub code: u8,
    /// `google.rpc.ErrorInfo.reason`.
    pub reason: String,
    /// The message for people.
    pub message: String,
    /// `google.rpc.BadRequest`: the fields at fault.
    pub fields: Vec<String>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure {
            code: error.kind().grpc_code(),
            reason: error.reason().to_owned(),
            message: error.message().to_owned(),
            fields: error.violations().iter().map(|violation| violation.field.clone()).collect(),
        }
    }
}

/// What the versions of a namespace's entries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// Never used again, even after a Delete.
    Revision,
    /// A hash of the value: A → B → A is not seen.
    Digest,
    /// There are none.
    None,
}

/// Whatever takes calls of one namespace to a backend.
#[allow(async_fn_in_trait)] // Runs on one thread.
pub trait Client {
    /// What the namespace offers.
    fn offers(&self) -> Interfaces;

    /// The namespace; the cases write it into their requests.
    fn namespace(&self) -> &str;

    /// The namespace's limits.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// What the versions of entries are.
    fn versions(&self) -> Versions {
        Versions::Revision
    }

    /// Whether [`Client::advance`] costs nothing, because the time is simulated.
    fn is_time_simulated(&self) -> bool;

    /// Makes a unary call.
    async fn unary(&self, method: Method, request: Vec<u8>) -> Result<Bytes, Failure>;

    /// Makes a streaming call and returns its messages; after `messages_max` of them it is cancelled.
    async fn stream(
        &self,
        method: Method,
        request: Vec<u8>,
        messages_max: usize,
    ) -> Result<Vec<Bytes>, Failure>;

    /// A stream that stays open while other calls are made.
    type Opened<'a>: Opened
    where
        Self: 'a;

    /// Begins a streaming call; dropping it cancels the call.
    async fn open(&self, method: Method, request: Vec<u8>) -> Result<Self::Opened<'_>, Failure>;

    /// Comes back when so much time has passed for the backend.
    async fn advance(&self, by: Duration);
}

/// A stream that stays open.
#[allow(async_fn_in_trait)] // Runs on one thread.
pub trait Opened {
    /// The next message, which is to come soon; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure>;
}

/// Longer than any case takes, on however slow a machine.
const CASE_PATIENCE: Duration = Duration::from_secs(300);

/// Names the case that runs, should it panic, and ends the process with its name should it never end: a call that hangs is a failure
/// and no reason to wait.
struct Running {
    name: &'static str,
    /// Dropped when the case has ended.
    _ended: mpsc::Sender<()>,
}

impl Running {
    fn begin(name: &'static str) -> Self {
        let (ended, told) = mpsc::channel();
        std::thread::spawn(move || {
            if told.recv_timeout(CASE_PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                // Not by a macro, whose words the test harness would keep to itself.
                let words = format!("conformance case hangs: {name} runs for {CASE_PATIENCE:?}\n");
                let _ = std::io::stderr().write_all(words.as_bytes());
                std::process::abort();
            }
        });
        Running { name, _ended: ended }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("conformance case failed: {}", self.name);
        }
    }
}

/// A case on the heap: all of them in one future, and in one frame of a build without optimization, would not fit on a thread's stack.
fn boxed<F: Future>(case: impl FnOnce() -> F) -> Pin<Box<F>> {
    Box::pin(case())
}

async fn run_case(name: &'static str, case: impl Future<Output = ()>, ran: &mut Vec<&'static str>) {
    let _running = Running::begin(name);
    case.await;
    ran.push(name);
}

/// Runs the cases of one interface: `cases!(client, ran, keyvalue_basic: [get_missing, …])`.
macro_rules! cases {
    ($client:ident, $ran:ident, $suite:ident: [$($case:ident),* $(,)?]) => {
        $(
            let name = concat!(stringify!($suite), "::", stringify!($case));
            let caller = $crate::conformance::caller::Caller::new($client, name);
            let case = $crate::conformance::boxed(|| $case(&caller));
            $crate::conformance::run_case(name, case, $ran).await;
        )*
    };
}
use cases;

/// Runs every case that applies and returns their names.
///
/// # Panics
/// When a case fails; what it was stands on stderr.
pub async fn run<C: Client>(client: &C) -> Vec<&'static str> {
    let mut ran = Vec::new();
    for interface in client.offers().iter() {
        run_interface(client, interface, &mut ran).await;
    }
    reader::run(client, &mut ran).await;
    offered::run(client, &mut ran).await;
    ran
}

async fn run_interface<C: Client>(client: &C, interface: Interface, ran: &mut Vec<&'static str>) {
    match interface {
        Interface::KeyValueBasic => keyvalue_basic::run(client, ran).await,
        Interface::KeyValueScan => keyvalue_scan::run(client, ran).await,
        Interface::KeyValueTtl => keyvalue_ttl::run(client, ran).await,
        Interface::KeyValueTransactional => keyvalue_transactional::run(client, ran).await,
        Interface::KeyValueBatch => keyvalue_batch::run(client, ran).await,
        Interface::KeyValueCas => keyvalue_cas::run(client, ran).await,
        Interface::QueueBasic
        | Interface::QueueVisibility
        | Interface::QueueDeadLetter
        | Interface::QueuePriority
        | Interface::QueueDelayed => queue::run(client, interface, ran).await,
        Interface::PubSubBasic
        | Interface::PubSubWildcards
        | Interface::PubSubPersistent
        | Interface::PubSubFiltering
        | Interface::PubSubOrdering => pubsub::run(client, interface, ran).await,
        Interface::StreamBasic
        | Interface::StreamConsumerGroups
        | Interface::StreamReplay
        | Interface::StreamRetention
        | Interface::StreamPartitioning => stream::run(client, interface, ran).await,
        other => panic!("{other} is offered, but there are no cases for it yet"),
    }
}
