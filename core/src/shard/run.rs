//! A shard's thread, from opening its log to the last answer.

use std::cell::{Cell, OnceCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prism_adapters::lane::LaneOwner;
use prism_io::calls::{CallPool, StartCall, pump};
use prism_io::mesh::Port;
use prism_io::rt::{Flag, Signal};
use prism_io::server::{Connections, Options, Tls, accept};
use prism_io::web::Web;
use prism_io::{clock, net, rt};
use prism_wal::RecoveryReport;

use super::backends::Attached;
use super::errands::{self, Errands};
use super::lanes::{self, Lanes, Loss};
use super::service::{Front, OWN_SERVICES, route};
use super::snapshots::Snapshots;
use super::{
    DeadLetters, Deadlines, Endings, OpenError, Outbox, OverQuota, Refusals, Replies, Shard,
    Stopping, open, outbox,
};
use crate::access::{Gate, InForce};
use crate::audit::{AuditPort, ShardAudit};
use crate::config::{ClientApi, Config, Durability, OnDataLoss, Topics};
use crate::control::{self, Ask};
use crate::metrics::ShardMetrics;
use crate::namespaces::{Namespace, Namespaces};
use crate::quota::Usage;
use crate::remote::{self, Message, Peers};
use crate::request::{self, Call, LineBudget};
use crate::services::Health;
use crate::web::SCHEMA;

/// Calls that one shard may have waiting.
const CALLS_MAX: usize = 64 * 1024;
/// How often the numbers for operators are brought up to date, and expired entries are reaped.
const HOUSEKEEPING: Duration = Duration::from_millis(100);
/// Expired entries that are reaped before the loop is given back.
const REAP_BUDGET: usize = 512;
/// How often a drain looks whether it is done.
const DRAIN_TICK: Duration = Duration::from_millis(2);
/// How long the last answers of a shard whose log has failed may take to leave.
const FAILED_FLUSH: Duration = Duration::from_millis(250);

/// How a shard tells the control thread.
pub(crate) type Tell = dyn Fn(Report) + Send;

/// What a shard's thread is started with.
pub(crate) struct Launch {
    pub(crate) index: usize,
    pub(crate) shards: usize,
    pub(crate) core: usize,
    pub(crate) config: Arc<Config>,
    pub(crate) namespaces: Arc<Namespaces>,
    /// Who may what; `None`: everybody everything.
    pub(crate) access: Option<Arc<InForce>>,
    /// Where its lines of the audit log go.
    pub(crate) audit: AuditPort,
    /// The way to the control thread.
    pub(crate) ask: Ask,
    /// The shard's own directory.
    pub(crate) directory: PathBuf,
    /// Number of this start on the data directory, from 1.
    pub(crate) start: u32,
    /// The shard has served before, so its log must be there.
    pub(crate) known: bool,
    pub(crate) hash_key: (u64, u64),
    /// Ids of the namespaces whose data lies in a backend outside, also of those that are not configured any more.
    pub(crate) outside: Arc<[u32]>,
    /// Ids of the namespaces that were deleted.
    pub(crate) deleted: Arc<[u32]>,
    /// What the control thread has it do.
    pub(crate) errands: Arc<Errands>,
    pub(crate) listener: std::net::TcpListener,
    /// How TLS is accepted on it; `None`: in clear.
    pub(crate) acceptor: Option<prism_io::tls::Acceptor>,
    pub(crate) port: Port<Message>,
    pub(crate) metrics: ShardMetrics,
    /// Tells the control thread.
    pub(crate) tell: Box<Tell>,
    /// Set when the shard is to end.
    pub(crate) stop: Arc<Flag>,
    /// Set when the other shards have ended their calls too.
    pub(crate) finish: Arc<Flag>,
}

/// What a shard tells the control thread.
pub(crate) enum Report {
    /// It serves.
    Ready {
        shard: usize,
        recovery: Box<RecoveryReport>,
        took: Duration,
        direct: bool,
        sync: &'static str,
        sync_us: u64,
        /// Ids of namespaces that are not served, and of which the log holds writes for a backend outside.
        orphans: Vec<u32>,
    },
    /// Its calls have ended; its log is still open for those of others.
    Drained,
    /// It has ended.
    Ended { shard: usize, ended: Ended },
}

/// How a shard ended.
pub(crate) enum Ended {
    /// With everything answered and the log closed.
    Clean,
    /// With calls that did not end in time.
    Undrained {
        calls: usize,
        /// Logged writes that outside backends have not confirmed.
        records: u64,
    },
    /// Its data could not be opened.
    NotOpened(OpenError),
    /// A write of its log failed.
    LogFailed(String),
    /// A defect: its thread panicked.
    Panicked,
    /// The runtime could not be made.
    Runtime(std::io::Error),
}

/// Runs a shard on the calling thread until it is told to stop.
pub(crate) fn run(mut launch: Launch) {
    let shard = launch.index;
    let tell: Rc<Tell> = Rc::from(std::mem::replace(&mut launch.tell, Box::new(|_| ())));
    if let Err(error) = rt::pin(launch.core) {
        tracing::warn!(shard, "{error}; it runs on any core");
    }
    let mut last_word = LastWord { tell: tell.clone(), shard, ended: Some(Ended::Panicked) };
    last_word.ended = Some(rt::run(serve(launch, tell)).unwrap_or_else(Ended::Runtime));
}

/// Tells the control thread how the shard ended, also when it panicked: a process that lost a shard must not go on.
struct LastWord {
    tell: Rc<Tell>,
    shard: usize,
    ended: Option<Ended>,
}

impl Drop for LastWord {
    fn drop(&mut self) {
        if let Some(ended) = self.ended.take() {
            (self.tell)(Report::Ended { shard: self.shard, ended });
        }
    }
}

async fn serve(launch: Launch, tell: Rc<Tell>) -> Ended {
    let began = Instant::now();
    let (config, namespaces) = (launch.config.clone(), launch.namespaces.clone());
    let (stop, finish) = (launch.stop.clone(), launch.finish.clone());
    let opened = match open::open(&launch).await {
        Ok(opened) => opened,
        Err(error) => return Ended::NotOpened(error),
    };
    let mut snapshots = Snapshots::new(&launch, opened.snapshots);
    if !config.busy_poll.is_zero()
        && let Err(error) = rt::busy_poll(config.busy_poll)
    {
        tracing::warn!(shard = launch.index, "{error}; the shard sleeps when it is idle");
    }
    let services = {
        let mut services: Vec<&'static str> = OWN_SERVICES.to_vec();
        services.push(control::SERVICE);
        for method in prism_proto::catalogue::Method::all() {
            let is_of = |api: ClientApi| {
                method.interface().is_none_or(|interface| {
                    api != ClientApi::Reader && interface.model() == api.model()
                })
            };
            // Where namespaces may come while this runs, so may those of every API.
            let may_come = namespaces.room() > 0
                && ClientApi::ALL.iter().any(|api| is_of(*api))
                && config.backends.iter().any(|backend| {
                    let of = |api, topics| method.offered_by(backend.offers(api, topics));
                    method.offered_by(backend.serves()) || of(ClientApi::PubSub, Topics::Log)
                });
            let served = may_come
                || namespaces
                    .iter()
                    .any(|namespace| method.offered_by(namespace.offers) && is_of(namespace.api));
            if served && !services.contains(&method.service()) {
                services.push(method.service());
            }
        }
        services
    };
    let listener = match net::Listener::new(launch.listener) {
        Ok(listener) => listener,
        Err(error) => return Ended::Runtime(error),
    };
    let took_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let recovered = (opened.report.bytes, took_ns, u64::from(opened.report.cut.is_some()));
    let report = Report::Ready {
        shard: launch.index,
        recovery: Box::new(opened.report),
        took: began.elapsed(),
        direct: opened.direct,
        sync: opened.sync,
        sync_us: opened.sync_us,
        orphans: opened.lanes.orphans().collect(),
    };
    let options = Options {
        limits: grpc_limits(&config).shared(),
        route,
        connections_max: (config.limits.connections_max as usize).div_ceil(launch.shards),
        connections_per_peer_max: (config.transport.connections_per_peer_max as usize)
            .div_ceil(launch.shards),
        buffered_bytes_max: config.transport.shard_buffer_bytes_max as usize,
        web: Some(Rc::new(Web {
            schema: SCHEMA,
            origins: config.web.allowed_origins.clone(),
            json_bytes_max: config.limits.json_bytes_max as u32,
            is_secured: config.tls.is_some(),
            compress_bytes_min: grpc_limits(&config).compress_bytes_min,
        })),
    };
    let (index, drain_timeout) = (launch.index, config.limits.drain_timeout);
    let is_used = |backend| {
        let of_shard = |namespace: &&Namespace| namespace.home == index;
        namespaces.iter().filter(of_shard).any(|namespace| namespace.backend == backend)
    };
    let directory_id = opened.log.writer().directory_id();
    let owner = LaneOwner { directory_id, epoch: launch.start };
    let client_name = format!("prism-{:032x}", u128::from_be_bytes(directory_id));
    let backends = Attached::all(&config.backends, &opened.store, &client_name, is_used);
    for namespace in namespaces.iter().filter(|namespace| namespace.home == index) {
        backends[namespace.backend].shape_topics(namespace);
    }
    for orphan in opened.lanes.orphans() {
        tracing::warn!(
            shard = index,
            namespace = orphan,
            "the log holds writes of a namespace that is not configured any more and that lay on a backend outside: they stay \
             there, and the log grows, until it is configured again and has drained"
        );
    }
    let lanes = {
        let of_shard = |namespace: &Namespace| {
            (namespace.home == index).then(|| loss(&config, namespace)).flatten()
        };
        let last_of_lane = |lane| opened.log.writer().last_of_lane(lane);
        Lanes::new(&namespaces, of_shard, owner, &opened.lanes, last_of_lane)
    };
    let audit = Rc::new(ShardAudit::new(launch.audit));
    let places = namespaces.places();
    let shard = Rc::new_cyclic(|this| Shard {
        index,
        in_flight: (0..namespaces.places()).map(|_| Cell::new(0)).collect(),
        usage: (0..namespaces.places()).map(|_| Usage::default()).collect(),
        namespaces,
        gate: launch.access.map(|access| Gate::new(access, audit.clone())),
        audit,
        ask: launch.ask,
        questions: Cell::new(0),
        late_backends: backends.iter().map(|_| OnceCell::new()).collect(),
        backends,
        config: config.clone(),
        client_name,
        this: this.clone(),
        store: opened.store,
        log: opened.log,
        lanes,
        outbox: Outbox::default(),
        dead_letters: DeadLetters::new(&launch.directory),
        deadlines: Deadlines::default(),
        replies: Replies::default(),
        refusals: Refusals,
        over_quota: OverQuota::new(places, &config.transport.connection),
        lines: LineBudget::default(),
        peers: Peers::new(launch.port, launch.shards),
        health: Rc::new(Health::new(services)),
        connection_bytes_max: config.limits.connection_bytes_in_flight_max,
        default_deadline_ns: config.limits.default_deadline.as_nanos() as u64,
        calls: OnceCell::new(),
        streams: Cell::new(0),
        stopping: Stopping::default(),
        endings: Endings::default(),
        start: launch.start,
        unlogged: Cell::new(0),
        hash_key: launch.hash_key,
        metrics: launch.metrics,
    });
    let wal = &shard.metrics.wal;
    wal.recovery_bytes.set(recovered.0);
    wal.recovery_ns.set(recovered.1);
    wal.cuts.add(recovered.2);
    let calls = wire(&shard);
    let connections = Rc::new(match launch.acceptor.zip(config.tls.as_ref()) {
        None => Connections::default(),
        Some((acceptor, tls)) => Connections::with_tls(Tls {
            acceptor,
            handshakes_max: (tls.handshakes_max as usize).div_ceil(launch.shards),
            timeout: tls.handshake_timeout,
        }),
    });
    // Set once: the shard starts once.
    let _ = shard.metrics.registry.set(connections.traffic().registry.clone());
    let failure = Rc::new(LogFailure::default());

    rt::spawn(write_log(shard.clone(), calls.clone(), failure.clone()));
    for lane in shard.lanes.iter() {
        rt::spawn(lanes::drive(shard.clone(), lane.clone()));
    }
    rt::spawn(outbox::relay(shard.clone()));
    rt::spawn(keep_house(shard.clone(), connections.clone()));
    let auditing = shard.clone();
    rt::spawn(async move { auditing.audit.run(&auditing).await });
    rt::spawn(errands::run(shard.clone(), launch.errands));
    let refusing = shard.clone();
    rt::spawn(async move { refusing.over_quota.answer().await });
    let snapshotting = shard.clone();
    rt::spawn(async move { snapshots.run(&snapshotting).await });
    rt::spawn(connections.clone().watch());
    rt::spawn(accept(listener, Rc::new(Front(shard.clone())), options, connections.clone()));
    tell(report);

    if wait_for_end(&stop, &failure).await {
        tracing::info!(shard = index, "draining");
        shard.health.stop();
        shard.stopping.begin();
        connections.drain();
        let drained =
            rt::timeout(drain_timeout, drain(&shard, &calls, &connections, &failure)).await;
        tell(Report::Drained);
        // The calls of other shards end here too.
        rt::timeout(drain_timeout, wait_for_end(&finish, &failure)).await;
        if failure.get().is_none() {
            shard.log.writer().close().await;
        }
        if failure.get().is_none() {
            connections.abort();
            return match drained {
                Some(()) => Ended::Clean,
                None => Ended::Undrained {
                    calls: calls.in_flight()
                        + shard.log.waiting()
                        + shard.lanes.waiting()
                        + shard.streams.get(),
                    records: shard.lanes.pending(),
                },
            };
        }
    }
    shard.health.stop();
    shard.log.fail(&shard, &*calls);
    let began = Instant::now();
    let is_answered = || shard.audit.waiting() == 0 && connections.is_flushed();
    while !is_answered() && began.elapsed() < FAILED_FLUSH {
        rt::sleep(DRAIN_TICK).await;
    }
    Ended::LogFailed(failure.get().unwrap_or_default())
}

/// What is said of a namespace's backend that loses what it had confirmed, where it is outside and takes logged writes.
fn loss(config: &Config, namespace: &Namespace) -> Option<Loss> {
    let backend = &config.backends[namespace.backend];
    let leads_outside = namespace.backend != 0 && namespace.durability_max >= Durability::Wal;
    leads_outside.then_some(Loss {
        window: backend.loss_window,
        goes_on: backend.on_data_loss == OnDataLoss::Continue,
    })
}

impl Shard {
    /// Makes the lane of a namespace of this shard that came while it runs, where its backend needs one.
    #[cold]
    pub(super) fn begin_lane(&self, namespace: &Namespace) {
        let Some((loss, shard)) = loss(&self.config, namespace).zip(self.this.upgrade()) else {
            return;
        };
        shard.backend(namespace).shape_topics(namespace);
        let last_of_lane = |lane| self.log.writer().last_of_lane(lane);
        let lane = self.lanes.begin_new(namespace, loss, last_of_lane);
        rt::spawn(lanes::drive(shard, lane.clone()));
    }

    /// Connects to a backend that no namespace of this shard used when it started.
    #[cold]
    pub(super) fn attach(&self, backend: usize) -> Attached {
        let is_it = |other| other == backend;
        let all = Attached::all(&self.config.backends, &self.store, &self.client_name, is_it);
        all.into_vec().swap_remove(backend)
    }
}

/// Connects the shard's parts that know each other, and starts what moves calls along.
fn wire(shard: &Rc<Shard>) -> Rc<dyn StartCall<Call>> {
    // The shard holds the pool and the pool's calls hold the shard: it lives as long as the thread.
    let of_calls = shard.clone();
    let calls: Rc<dyn StartCall<Call>> =
        Rc::new(CallPool::new(CALLS_MAX, move |call| request::serve(of_calls.clone(), call)));
    if shard.calls.set(calls.clone()).is_err() {
        unreachable!("a shard is wired once");
    }
    rt::spawn(pump(calls.clone()));
    let (of_ticks, ticked) = (shard.clone(), calls.clone());
    rt::spawn(async move { of_ticks.deadlines.run(&of_ticks, ticked).await });
    let (of_mesh, of_turns, woken) = (shard.clone(), shard.clone(), calls.clone());
    rt::spawn(shard.peers.port().receive(
        move |from, message| remote::deliver(&of_mesh, from, message),
        move || {
            woken.poll_woken();
            of_turns.peers.flush();
        },
    ));
    calls
}

/// What became of the log, once it has failed.
#[derive(Default)]
struct LogFailure {
    text: OnceCell<String>,
    happened: Signal,
}

impl LogFailure {
    fn get(&self) -> Option<String> {
        self.text.get().cloned()
    }
}

async fn write_log(shard: Rc<Shard>, calls: Rc<dyn StartCall<Call>>, failure: Rc<LogFailure>) {
    let writer = shard.log.writer().clone();
    let settle = {
        let shard = shard.clone();
        move |batch: prism_wal::DurableBatch| {
            let wal = &shard.metrics.wal;
            wal.batches.increment();
            wal.records.add(batch.len() as u64);
            wal.append_bytes.add(batch.bytes() as u64);
            wal.sync.record(Duration::from_micros(batch.write_us()));
            shard.log.settle(&shard, &batch, &*calls);
        }
    };
    if let Err(error) = writer.run(settle).await {
        tracing::error!(shard = shard.index, "{error}");
        let _ = failure.text.set(error.to_string());
        failure.happened.set();
    }
}

/// Waits until the shard is told to stop (`true`) or its log has failed (`false`).
async fn wait_for_end(stop: &Flag, failure: &LogFailure) -> bool {
    let (mut stopped, mut failed) =
        (std::pin::pin!(stop.wait()), std::pin::pin!(failure.happened.wait()));
    std::future::poll_fn(|context| {
        if failed.as_mut().poll(context).is_ready() {
            return std::task::Poll::Ready(false);
        }
        stopped.as_mut().poll(context).map(|()| true)
    })
    .await
}

/// Waits until every call has ended and its answer has left, or until the log has failed.
async fn drain(
    shard: &Shard,
    calls: &Rc<dyn StartCall<Call>>,
    connections: &Connections,
    failure: &LogFailure,
) {
    loop {
        let idle = calls.in_flight() + shard.log.waiting() + shard.streams.get() == 0
            && shard.peers.waiting() == 0
            && shard.lanes.pending() == 0;
        if idle && connections.is_drained() || failure.get().is_some() {
            return;
        }
        rt::sleep(DRAIN_TICK).await;
    }
}

/// Reaps what has expired, and brings the numbers for operators up to date.
async fn keep_house(shard: Rc<Shard>, connections: Rc<Connections>) {
    loop {
        rt::sleep(HOUSEKEEPING).await;
        let horizon_us = shard.log.horizon_us(clock::wall_us());
        loop {
            let reaped = shard.store.expire(horizon_us, REAP_BUDGET);
            shard.metrics.store.expired.add(reaped as u64);
            if reaped < REAP_BUDGET {
                break;
            }
            rt::yield_now().await;
        }
        shard.peers.flush();
        let now_ns = clock::monotonic_ns();
        shard.audit.tell_suppressed(now_ns);
        shard.over_quota.tell(&shard.namespaces, now_ns);
        if let Some(gate) = &shard.gate {
            gate.look_after_streams(now_ns);
        }
        let numbers = &shard.metrics;
        for lane in shard.lanes.iter() {
            lane.show(numbers, clock::wall_us());
        }
        outbox::show(&shard, clock::wall_us());
        numbers.connections.open.set(connections.open() as u64);
        numbers.connections.bytes_in_flight.set(shard.bytes_in_flight());
        numbers.connections.streams.set(connections.open_streams() as u64);
        numbers
            .connections
            .accepted
            .add(connections.accepted() - numbers.connections.accepted.get());
        let traffic = connections.traffic();
        let received = &numbers.connections.received_bytes;
        received.add(traffic.received_bytes.get() - received.get());
        let sent = &numbers.connections.sent_bytes;
        sent.add(traffic.sent_bytes.get() - sent.get());
        let faulted = &numbers.connections.faulted;
        faulted.add(traffic.faulted.get() - faulted.get());
        numbers.connections.buffered_bytes.set(traffic.buffered_bytes() as u64);
        traffic.refused(|kind, total| numbers.transport_refused(kind, total));
        let counts = traffic.counts.get();
        for (counter, now) in [
            (&numbers.connections.streams_started, counts.streams_started),
            (&numbers.connections.streams_failed, counts.streams_failed),
            (&numbers.connections.messages_received, counts.messages_received),
            (&numbers.connections.messages_sent, counts.messages_sent),
            (&numbers.connections.keepalives_sent, counts.keepalives_sent),
        ] {
            counter.add(now - counter.get());
        }
        count_tls(numbers, &connections);
        numbers.store.bytes.set(shard.store.used_bytes() as u64);
        numbers.store.keys.set(shard.store.entries() as u64);
        numbers.store.idempotency_keys.set(shard.store.outcomes().len() as u64);
        let status = shard.log.writer().status();
        let wal = &numbers.wal;
        wal.segments.set((status.segments_used + status.segments_spare) as u64);
        wal.segments_pinned.set(status.segments_used as u64);
        wal.segments_reserve.set(status.segments_spare as u64);
        wal.pinned_bytes.set(status.pinned_bytes as u64);
        wal.refused_full.add(status.counters.refused_full - wal.refused_full.get());
        wal.backlog_records.set(shard.log.last_lsn().saturating_sub(shard.log.applied_lsn()));
    }
}

fn count_tls(numbers: &ShardMetrics, connections: &Connections) {
    let (tls, handshakes, traffic) =
        (&numbers.tls, connections.handshakes(), connections.traffic());
    tls.in_flight.set(handshakes.in_flight.get() as u64);
    for (counter, now) in [
        (&tls.full, handshakes.full.get()),
        (&tls.resumed, handshakes.resumed.get()),
        (&tls.truncated, traffic.truncated.get()),
    ] {
        counter.add(now - counter.get());
    }
    for (kind, counter) in numbers.tls_failed.iter().enumerate() {
        counter.add(handshakes.failed(kind) - counter.get());
    }
    let unexpected = traffic.unexpected_tls.get() - tls.unexpected.get();
    tls.unexpected.add(unexpected);
    if unexpected > 0 {
        // One line for all of a tenth of a second: clients must not be able to fill the log.
        tracing::warn!(
            clients = unexpected,
            "clients began TLS on a port without it and got a TLS alert; serve TLS with --tls-cert and --tls-key, or \
             have them connect in clear"
        );
    }
}

fn grpc_limits(config: &Config) -> prism_io::grpc::Limits {
    let ns = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    let ns_or_never = |span: Option<Duration>| span.map_or(u64::MAX, ns);
    let grpc = &config.grpc;
    prism_io::grpc::Limits {
        send_bytes_max: grpc.reply_bytes_max as u32,
        compress_bytes_min: grpc.compress_bytes_min.map_or(u32::MAX, |bytes| bytes as u32),
        keepalive_interval_ns: ns_or_never(grpc.keepalive_interval),
        keepalive_timeout_ns: ns(grpc.keepalive_timeout),
        ping_interval_min_ns: ns(grpc.ping_interval_min),
        ping_strikes_max: grpc.ping_strikes_max,
        connection_age_max_ns: ns_or_never(grpc.connection_age_max),
        connection_age_grace_ns: ns(grpc.connection_age_grace),
        ..config.transport.connection
    }
}
