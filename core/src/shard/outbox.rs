//! The relay: brings the messages that transactions have stored to their targets.
//!
//! One task per shard looks for chains of messages (one target, one ordering key) that nobody is at, and starts a task for each,
//! a bounded number per target, so that a target which is away holds up no other. A chain's task makes one call after the other,
//! oldest first, then notes in the log what has arrived; the note takes the messages out of the store (of an outbox outside they are deleted). Promises: at least once, in
//! the order of commits within a chain; where a target can tell a second call by its idempotency key, once. What was not noted when
//! the process ended is relayed again. It never gives a message up but where the target refuses it for its own sake, and then keeps
//! it as a dead letter first.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use prism_adapters::lane::LaneRecord;
use prism_adapters::outbox::{self, Chain, Outgoing, Relayed, Target};
use prism_adapters::{Context, Error, Kind, Limits, Revision};
use prism_io::grpc::Metadata;
use prism_io::rt::Signal;
use prism_io::{clock, rt};
use prism_proto::catalogue::Method;
use prost::Message as _;

use super::Shard;
use crate::namespaces::Namespace;
use crate::request::{offers_key, own};

/// Chains of one target that are under way at once.
const CHAINS_PER_TARGET_MAX: usize = 16;
/// Chains of one shard that are under way at once.
const CHAINS_MAX: usize = 256;
/// Messages of one chain that are relayed before they are noted.
const MESSAGES_PER_NOTE_MAX: usize = 64;
/// How long a target is left alone after a failure: the first, and after many.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often an outbox outside is looked at though nothing was written through this shard.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// A namespace, by its number, and one of its targets.
type Route = (u32, Target);

/// What one shard relays.
#[derive(Default)]
pub(crate) struct Outbox {
    state: RefCell<State>,
    work: Signal,
}

#[derive(Default)]
struct State {
    under_way: HashSet<(u32, Chain)>,
    routes: HashMap<Route, RouteState>,
    /// By namespace on an outside backend: what is known of its outbox.
    looks: HashMap<u32, Look>,
}

/// How it stands with learning what an outbox outside holds.
struct Look {
    is_due: bool,
    is_under_way: bool,
    failures: u32,
    /// Not before, where it is due; else it is due then. Monotonic ns.
    at_ns: u64,
}

impl Default for Look {
    fn default() -> Self {
        // What an earlier process has left.
        Look { is_due: true, is_under_way: false, failures: 0, at_ns: 0 }
    }
}

#[derive(Default)]
struct RouteState {
    chains: usize,
    failures: u32,
    /// Left alone until then, monotonic ns.
    until_ns: u64,
    /// The reason of the last failure that the log was told.
    said: &'static str,
}

impl Outbox {
    /// There may be something new in the outbox of a namespace.
    pub(crate) fn tell_of(&self, namespace: u32) {
        if let Some(look) = self.state.borrow_mut().looks.get_mut(&namespace) {
            look.is_due = true;
        }
        self.work.set();
    }
}

fn pause_after(failures: u32) -> Duration {
    (PAUSE_MIN * (1 << failures.min(10))).min(PAUSE_MAX)
}

fn in_ns(span: Duration) -> u64 {
    clock::monotonic_ns() + span.as_nanos() as u64
}

fn context<'a>(namespace: &'a Namespace, limits: &'a Limits) -> Context<'a> {
    Context {
        namespace: namespace.id,
        namespace_name: &namespace.name,
        partition: 0,
        now_us: clock::wall_us(),
        revision: Revision::default(),
        limits,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    }
}

/// Relays for as long as the shard serves.
pub(super) async fn relay(shard: Rc<Shard>) {
    while !shard.stopping.is_begun() {
        let now_ns = clock::monotonic_ns();
        // Those of a namespace that is not served any more wait until it is.
        for namespace in of_shard(&shard) {
            if namespace.backend != 0 {
                look(&shard, namespace, now_ns);
            }
            start_chains(&shard, namespace, now_ns);
        }
        let pause = {
            let state = shard.outbox.state.borrow();
            let routes = state.routes.values().map(|route| route.until_ns);
            let looks = state.looks.values().filter(|look| !look.is_under_way);
            let next_ns =
                routes.chain(looks.map(|look| look.at_ns)).filter(|at| *at > now_ns).min();
            next_ns.map(|at_ns| Duration::from_nanos(at_ns - now_ns))
        };
        let (mut told, mut stopped) = (pin!(shard.outbox.work.wait()), pin!(shard.stopping.wait()));
        let either = std::future::poll_fn(|context| {
            if stopped.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            told.as_mut().poll(context)
        });
        // Not more often than the clock of the runtime tells apart.
        let pause = pause.unwrap_or(LOOK_EVERY).max(Duration::from_millis(1));
        let _ = rt::timeout(pause, either).await;
    }
}

/// The namespaces of a shard that have an outbox.
fn of_shard(shard: &Shard) -> impl Iterator<Item = &Namespace> {
    let namespaces = shard.namespaces.iter();
    namespaces.filter(|namespace| {
        namespace.home == shard.index && namespace.has_outbox && namespace.terms.is_served()
    })
}

/// Learns what an outbox outside holds, if that is due.
fn look(shard: &Rc<Shard>, namespace: &Namespace, now_ns: u64) {
    let all = {
        let mut state = shard.outbox.state.borrow_mut();
        let look = state.looks.entry(namespace.id).or_default();
        let is_time = look.at_ns <= now_ns;
        if look.is_under_way || !is_time && (!look.is_due || look.failures > 0) {
            return;
        }
        (look.is_under_way, look.is_due) = (true, false);
        is_time
    };
    let (shard, index) = (shard.clone(), namespace.index);
    rt::spawn(async move {
        let namespace = shard.namespaces.at(index);
        let looked = shard
            .backend(namespace)
            .outbox_refresh(&context(namespace, &namespace.limits()), all)
            .await;
        if let Some(look) = shard.outbox.state.borrow_mut().looks.get_mut(&namespace.id) {
            look.is_under_way = false;
            match looked {
                // A look at the newest does not put off that at all.
                Ok(()) if !all => {}
                Ok(()) => (look.failures, look.at_ns) = (0, in_ns(LOOK_EVERY)),
                Err(_) => {
                    (look.is_due, look.at_ns) = (true, in_ns(pause_after(look.failures)));
                    look.failures += 1;
                }
            }
        }
        shard.outbox.work.set();
    });
}

/// Brings what an operator sees of the outboxes up to date.
pub(super) fn show(shard: &Shard, now_us: u64) {
    for namespace in of_shard(shard) {
        let Some(outboxes) = shard.backend(namespace).outboxes() else { continue };
        let facts = outboxes.borrow().facts(namespace.id);
        if facts.messages > 0 || shard.metrics.known_outbox(namespace.index).is_some() {
            let shown = shard.metrics.outbox(namespace.index);
            shown.pending.set(facts.messages);
            let age_us = facts.oldest_us.map_or(0, |oldest_us| now_us.saturating_sub(oldest_us));
            shown.age_us.set(age_us);
        }
    }
}

fn start_chains(shard: &Rc<Shard>, namespace: &Namespace, now_ns: u64) {
    let Some(outboxes) = shard.backend(namespace).outboxes() else { return };
    let chains = {
        let state = shard.outbox.state.borrow();
        let room = |target: &Target| match state.routes.get(&(namespace.id, target.clone())) {
            Some(route) if route.until_ns > now_ns => 0,
            // One tells whether it is back.
            Some(route) if route.failures > 0 => 1usize.saturating_sub(route.chains),
            Some(route) => CHAINS_PER_TARGET_MAX - route.chains,
            None => CHAINS_PER_TARGET_MAX,
        };
        let is_under_way = |chain: &Chain| state.under_way.contains(&(namespace.id, chain.clone()));
        outboxes.borrow().chains(namespace.id, room, is_under_way)
    };
    for chain in chains {
        {
            let mut state = shard.outbox.state.borrow_mut();
            if state.under_way.len() >= CHAINS_MAX {
                return;
            }
            state.routes.entry((namespace.id, chain.target.clone())).or_default().chains += 1;
            state.under_way.insert((namespace.id, chain.clone()));
        }
        rt::spawn(relay_chain(shard.clone(), namespace.index, chain));
    }
}

async fn relay_chain(shard: Rc<Shard>, source: usize, chain: Chain) {
    let namespace = shard.namespaces.at(source);
    let relayed = relay_oldest(&shard, namespace, &chain).await;
    let route = (namespace.id, chain.target.clone());
    let mut state = shard.outbox.state.borrow_mut();
    state.under_way.remove(&(namespace.id, chain));
    if let Some(of) = state.routes.get_mut(&route) {
        of.chains -= 1;
        match relayed {
            Ok(()) => {
                if !std::mem::take(&mut of.said).is_empty() {
                    tracing::info!(
                        namespace = &*namespace.name,
                        target_namespace = &*route.1.namespace,
                        target_name = &*route.1.name,
                        "takes messages of transactions again"
                    );
                }
                (of.failures, of.until_ns) = (0, 0);
                if of.chains == 0 {
                    state.routes.remove(&route);
                }
            }
            Err(error) => {
                shard.metrics.outbox(source).failures.increment();
                if of.said != error.reason() {
                    of.said = error.reason();
                    tracing::warn!(
                        namespace = &*namespace.name,
                        target_namespace = &*route.1.namespace,
                        target_name = &*route.1.name,
                        reason = error.reason(),
                        "messages of transactions wait: {}",
                        error.message()
                    );
                }
                of.until_ns = in_ns(pause_after(of.failures));
                of.failures += 1;
            }
        }
    }
    drop(state);
    shard.outbox.work.set();
}

/// Relays the oldest messages of a chain and notes those that have arrived.
async fn relay_oldest(shard: &Shard, namespace: &Namespace, chain: &Chain) -> Result<(), Error> {
    let limits = namespace.limits();
    let (backend, context) = (shard.backend(namespace), context(namespace, &limits));
    let messages = backend.outbox_messages(&context, chain, MESSAGES_PER_NOTE_MAX).await?;
    let (mut arrived, mut failed) = (Vec::new(), None);
    for outgoing in &messages {
        if shard.stopping.is_begun() {
            break;
        }
        if let Err(error) = relay_one(shard, namespace, outgoing).await {
            failed = Some(error);
            break;
        }
        arrived.push(outgoing.place);
    }
    if !arrived.is_empty() && namespace.backend != 0 {
        backend.outbox_done(&context, &arrived).await?;
    } else if !arrived.is_empty() {
        let note = Relayed::of(&namespace.name, &arrived).encode_to_vec();
        own::call(shard, Method::TRANSACT_TRANSACTION, Metadata::new(), note).await?;
    }
    failed.map_or(Ok(()), Err)
}

async fn relay_one(shard: &Shard, namespace: &Namespace, outgoing: &Outgoing) -> Result<(), Error> {
    let target = shard.namespaces.get(&outgoing.message.target_namespace).ok_or_else(gone)?;
    let model = target.api.model();
    let (method, request) =
        outbox::call(model, "message", &outgoing.message, outgoing.accepted_us)?;
    let mut keyed = Metadata::new();
    if offers_key(target, method, &request) {
        let id = outgoing.message.message.as_ref().map_or("", |message| &message.id);
        keyed.push(b"prism-idempotency-key", id.as_bytes());
        // The key is of a caller of its own: nobody else can have used it.
        keyed.push(b"authorization", b"outbox");
    }
    let mut relayed = own::relay(shard, method, keyed, request.clone()).await;
    if relayed.as_ref().is_err_and(|error| error.reason() == "IDEMPOTENCY_TABLE_FULL") {
        // Rather twice, after a kill, than late.
        relayed = own::relay(shard, method, Metadata::new(), request.clone()).await;
    }
    match relayed {
        Err(error) if is_for_good(&error) => {
            let revision = Revision::logged(outgoing.place.lsn);
            let limits = namespace.limits();
            let now_us = outgoing.accepted_us;
            let context = Context { now_us, revision, ..context(namespace, &limits) };
            let record = LaneRecord { lane_seq: 0, context, method, request: &request };
            shard.dead_letters.keep(namespace, &record, &error).await.map_err(not_kept)?;
            shard.metrics.outbox(namespace.index).dead_letters.increment();
            tracing::warn!(
                namespace = &*namespace.name,
                target_namespace = &*target.name,
                reason = error.reason(),
                "a message of a transaction was refused and is a dead letter now: {}",
                error.message()
            );
            Ok(())
        }
        Err(error) => Err(error),
        Ok(()) => {
            shard.metrics.outbox(namespace.index).relayed.increment();
            Ok(())
        }
    }
}

/// Whether a target refuses a message for its own sake: it will never take it.
fn is_for_good(error: &Error) -> bool {
    error.kind() == Kind::InvalidArgument || error.reason() == "MESSAGE_TOO_LARGE"
}

#[cold]
fn gone() -> Error {
    let message = "the target namespace is not served any more: configure it again";
    Error::new(Kind::FailedPrecondition, "TARGET_UNKNOWN", message)
}

#[cold]
fn not_kept(fault: std::io::Error) -> Error {
    let message = format!("a message that its target refuses could not be kept: {fault}");
    Error::new(Kind::Unavailable, "DEAD_LETTER_FAILED", message)
}
