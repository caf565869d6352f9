//! `prism serve`: the control thread, from the first lock to the exit code.
//!
//! It opens the data directory, binds the ports, starts one thread per shard and then only listens: to signals, and to what
//! the shards report. It touches no request. SIGHUP has it read certificates, keys and grants again, and the files that
//! namespaces are planned from.

use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use prism_adapters::Error;
use prism_io::disk::{Directory, DirectoryError};
use prism_io::rt::{self, Flag};
use prism_io::{mesh, net};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::access::InForce;
use crate::access::keys::{self, KeyStore};
use crate::admin::{Admin, AdminState, Readiness};
use crate::audit::{self, Audit};
use crate::certificates::Certificates;
use crate::cli::{Exit, Serving, first_screen};
use crate::config::{Backend, Config, Tls};
use crate::control::shared::{START_PATIENCE, SharedState};
use crate::control::{Ask, Question};
use crate::metrics::{Labels, Metrics};
use crate::namespaces::Namespaces;
use crate::planned;
use crate::registry::Registry;
use crate::remote::RING_MESSAGES;
use crate::served::{Served, TellErased};
use crate::shard::{
    self, Ended, Errands, Launch, OpenError, REFUSAL_REASONS, Report, directory_options, log_config,
};
use crate::shared::{Seen, SharedStore};

/// How long a shard may take to end once it was told that everybody has drained.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Names or errors that one line of the audit log tells.
const TOLD_MAX: usize = 20;
/// Characters of each of them.
const TOLD_CHARACTERS_MAX: usize = 500;

/// What the control thread hears.
enum News {
    Signal(i32),
    Shard(Report),
    /// About namespaces; whoever asks bounds how many there are at a time.
    Question(Question),
    /// What was seen of the registry that is shared with other servers.
    Shared(Seen),
    /// The backend of a namespace that was deleted, by its id, has taken it out, or cannot for now.
    Erased(u32, Result<(), Error>),
}

/// Serves until a signal or a failure.
pub fn run(config: Config) -> Exit {
    match serve(config) {
        Ok(exit) => exit,
        Err((exit, message)) => {
            tracing::error!("{message}");
            eprintln!("prism: {message}");
            exit
        }
    }
}

type Failure = (Exit, String);

fn serve(config: Config) -> Result<Exit, Failure> {
    let began = Instant::now();
    log_config(&config, 0, config.shards()).validate().map_err(|error| {
        let file = config
            .file
            .as_ref()
            .map_or("the defaults".to_owned(), |file| file.display().to_string());
        (
            Exit::Config,
            format!("{file}: {error}; raise wal.segment_bytes or lower limits.message_bytes_max"),
        )
    })?;
    let certificates = config
        .tls
        .as_ref()
        .map(Certificates::load)
        .transpose()
        .map_err(|error| (Exit::Config, error))?;
    let data = Directory::open(&config.data_dir, directory_options(&config)).map_err(unusable)?;
    let (registry, namespaces, shards) = place(&config)?;
    let deleted: Arc<[u32]> = registry.deleted().into();
    let errands: Vec<Arc<Errands>> = (0..shards).map(|_| Arc::default()).collect();
    let outside: Arc<[u32]> = registry.outside(&Backend::embedded().name).into();
    let keys = Arc::new(KeyStore::kept_in(&config.data_dir));
    let access = planned::access(&config, &namespaces, &registry, &keys)
        .map_err(|error| (Exit::Config, error))?;
    check_exposure(&config, access.is_some())?;
    let access = access.map(InForce::new);
    let config = Arc::new(config);
    let folder = config.audit.directory.clone();
    let folder = folder.unwrap_or_else(|| config.data_dir.join(audit::files::FOLDER));
    let most = config.audit.file_bytes_max;
    let (audit, audit_writer) = audit::start(&folder, most, namespaces.clone(), shards)
        .map_err(|error| (Exit::Failure, format!("thread audit cannot be started: {error}")))?;
    audit.event(started(&config));
    let listeners = net::bind_shared(config.listen, shards)
        .map_err(|error| cannot_listen("--listen", config.listen, &error))?;
    let listen = listeners[0].local_addr().unwrap_or(config.listen);
    let labels = Labels::of(&config, REFUSAL_REASONS);
    let (metrics, writers) = Metrics::new(labels, shards);
    let readiness = Readiness::new(shards);
    let state = AdminState::new(&config, metrics.clone(), readiness.clone())
        .with_audit(audit.view())
        .with_keys(keys.clone());
    let shown = state.config();
    let (tell, news) = channel();
    let ask = {
        let tell = Mutex::new(tell.clone());
        Ask::new(move |question| {
            let tell = tell.lock().unwrap_or_else(PoisonError::into_inner);
            // A question that nobody hears is answered as it is dropped.
            let _ = tell.send(News::Question(question));
        })
    };
    let state = state.asking(ask.clone());
    let admin = Admin::bind(config.admin, state)
        .map_err(|error| cannot_listen("--admin", config.admin, &error))?;
    let admin_address = admin.local_address().unwrap_or(config.admin);

    watch_signals(tell.clone())
        .map_err(|error| (Exit::Failure, format!("signals cannot be watched: {error}")))?;
    let (stop, finish): (Vec<_>, Vec<_>) =
        (0..shards).map(|_| (Arc::new(Flag::default()), Arc::new(Flag::default()))).unzip();
    let ports = mesh::mesh(shards, RING_MESSAGES);
    for (index, ((listener, port), metrics)) in
        listeners.into_iter().zip(ports).zip(writers).enumerate()
    {
        let launch = Launch {
            index,
            shards,
            core: config.cores[index % config.cores.len()],
            config: config.clone(),
            namespaces: namespaces.clone(),
            access: access.clone(),
            audit: audit.port(index),
            ask: ask.clone(),
            directory: config.data_dir.join(format!("shard-{index:03}")),
            start: registry.starts,
            known: index < registry.logs,
            hash_key: registry.hash_key(),
            outside: outside.clone(),
            deleted: deleted.clone(),
            errands: errands[index].clone(),
            listener,
            acceptor: certificates.as_ref().map(|certificates| certificates.acceptor().clone()),
            port,
            metrics,
            tell: Box::new({
                let tell = tell.clone();
                move |report| drop(tell.send(News::Shard(report)))
            }),
            stop: stop[index].clone(),
            finish: finish[index].clone(),
        };
        spawn(format!("shard-{index}"), move || shard::run(launch))?;
    }
    let tell_shared = tell.clone();
    let tell_erased: TellErased = {
        let tell = Mutex::new(tell);
        Arc::new(move |id, told| {
            let tell = tell.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody hears it where the server is stopping; its next start goes on.
            let _ = tell.send(News::Erased(id, told));
        })
    };
    drop(ask);
    let stop_admin =
        admin.stop_handle().map_err(|error| (Exit::Failure, format!("admin port: {error}")))?;
    spawn("admin".to_owned(), move || {
        if let Err(error) = admin.run() {
            tracing::error!("admin port: {error}");
        }
    })?;

    let refresh = access.clone().map(|access| keys::start(keys.clone(), access)).transpose();
    let refresh = refresh
        .map_err(|error| (Exit::Failure, format!("thread keys cannot be started: {error}")))?;
    let served = Served {
        config: config.clone(),
        registry,
        namespaces,
        access,
        keys,
        audit: audit.clone(),
        shards,
        errands,
        orphans: Vec::new(),
        metrics,
        shown,
        tell_erased,
        erasing: Vec::new(),
        shared: None,
    };
    let exit = Exit::Ok;
    let mut control =
        Control { shards, stop, finish, readiness, certificates, served, refresh, audit, exit };
    let serving = |recovered, ready: &Ready| Serving {
        listen,
        admin: admin_address,
        data_dir: config.data_dir.clone(),
        io: rt::driver().name(),
        direct: ready.direct,
        sync: Some((ready.sync, Duration::from_micros(ready.sync_us))),
        recovered,
        ready_after: began.elapsed(),
    };
    if let Some(ready) = control.wait_ready(&news) {
        control.served.go_on_erasing();
        control.share(&news, tell_shared)?;
        let registry = &mut control.served.registry;
        if registry.logs != shards {
            registry.logs = shards;
            registry
                .store(&config.data_dir)
                .map_err(|error| unwritable(&config.data_dir, &error))?;
        }
        if rt::driver() == rt::Driver::Epoll {
            tracing::warn!(
                "this kernel has no io_uring or forbids it: the loop runs on epoll and log writes block it; `prism doctor` \
                 tells the remedy"
            );
        }
        if !ready.direct {
            tracing::warn!(
                "the file system of {} has no O_DIRECT: the log writes through the page cache, slower and with less \
                 predictable latency; put the data directory on a local ext4 or xfs disk",
                config.data_dir.display()
            );
        }
        let recovered = (ready.records > 0).then_some((ready.records, ready.recovery));
        let screen = first_screen(&config, &serving(recovered, &ready));
        // A closed stdout is no reason to stop serving.
        let _ = io::stdout().write_all(screen.as_bytes()).and_then(|()| io::stdout().flush());
        tracing::info!(listen = %listen, admin = %admin_address, shards, "serving");
        control.wait_end(&news, config.limits.drain_timeout);
    }
    stop_admin.stop();
    control.audit.event(audit::event("stop", [("exit", (control.exit as u8).into())]));
    drop(audit_writer);
    drop(data);
    Ok(control.exit)
}

/// What the shards said when they were ready, taken together.
struct Ready {
    records: u64,
    recovery: Duration,
    direct: bool,
    sync: &'static str,
    sync_us: u64,
}

/// The control thread's state.
struct Control {
    shards: usize,
    stop: Vec<Arc<Flag>>,
    finish: Vec<Arc<Flag>>,
    readiness: Readiness,
    certificates: Option<Certificates>,
    served: Served,
    /// Has the keys of issuers got now; `None` where identities are not known.
    refresh: Option<SyncSender<()>>,
    audit: Audit,
    exit: Exit,
}

impl Control {
    /// Waits until every shard serves. `None` when one could not or a signal came first; all have ended then.
    fn wait_ready(&mut self, news: &Receiver<News>) -> Option<Ready> {
        let mut all =
            Ready { records: 0, recovery: Duration::ZERO, direct: true, sync: "", sync_us: 0 };
        let mut missing = self.shards;
        while missing > 0 {
            match news.recv().ok()? {
                News::Shard(Report::Ready {
                    shard,
                    recovery,
                    took,
                    direct,
                    sync,
                    sync_us,
                    orphans,
                }) => {
                    self.readiness.serving(shard);
                    self.served.orphans.extend(orphans);
                    if let Some(cut) = &recovery.cut {
                        tracing::info!(shard, ?cut, "a torn tail that nobody was promised was cut");
                    }
                    all.records += recovery.records;
                    all.recovery = all.recovery.max(took);
                    all.direct &= direct;
                    (all.sync, all.sync_us) = (sync, all.sync_us.max(sync_us));
                    missing -= 1;
                }
                News::Shard(Report::Ended { shard, ended }) => {
                    self.ended(shard, ended);
                    self.stop_all(news, self.shards - 1, Duration::ZERO);
                    return None;
                }
                News::Shard(Report::Drained) => {}
                News::Signal(SIGHUP) => self.reload(),
                News::Question(question) => self.served.answer(question),
                News::Erased(id, told) => self.served.hear_erased(id, told),
                News::Shared(seen) => self.served.hear_shared(seen),
                News::Signal(_) => {
                    self.stop_all(news, self.shards, Duration::ZERO);
                    return None;
                }
            }
        }
        Some(all)
    }

    /// Waits until a signal comes or a shard ends, and then for the others.
    fn wait_end(&mut self, news: &Receiver<News>, drain_timeout: Duration) {
        while let Ok(one) = news.recv() {
            match one {
                News::Signal(SIGHUP) => self.reload(),
                News::Question(question) => self.served.answer(question),
                News::Erased(id, told) => self.served.hear_erased(id, told),
                News::Shared(seen) => self.served.hear_shared(seen),
                News::Signal(signal) => {
                    tracing::info!(signal, "stopping: no new calls, those that run may finish");
                    return self.stop_all(news, self.shards, drain_timeout);
                }
                News::Shard(Report::Ended { shard, ended }) => {
                    self.ended(shard, ended);
                    return self.stop_all(news, self.shards - 1, drain_timeout);
                }
                News::Shard(_) => {}
            }
        }
    }

    /// Begins to share what is applied with other servers, where the platform says so, and waits a while for what they have applied.
    fn share(&mut self, news: &Receiver<News>, tell: Sender<News>) -> Result<(), Failure> {
        let served = &mut self.served;
        let shared = planned::shared(&served.config).map_err(|error| (Exit::Config, error))?;
        let Some(shared) = shared else { return Ok(()) };
        let known = served.registry.applied.version();
        // What was applied to this server alone is no version of the document.
        let known = served.registry.shared.as_ref().map_or(0, |_| known);
        let of_store = tell.clone();
        let store = SharedStore::start(shared, known, move |seen| {
            let _ = of_store.send(News::Shared(seen));
        });
        let store = store.map_err(|error| {
            (Exit::Failure, format!("thread registry cannot be started: {error}"))
        })?;
        served.shared = Some(SharedState::new(store));
        let until = Instant::now() + START_PATIENCE;
        let mut later = Vec::new();
        while !self.served.shared.as_ref().is_none_or(SharedState::is_known) {
            match news.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(News::Shared(seen)) => self.served.hear_shared(seen),
                Ok(other) => later.push(other),
                Err(_) => {
                    tracing::error!(
                        version = known,
                        "the shared registry has not answered yet: what is served is what was known last"
                    );
                    break;
                }
            }
        }
        // What came meanwhile is heard after it.
        later.into_iter().for_each(|one| drop(tell.send(one)));
        Ok(())
    }

    /// Tells all shards to stop and waits for those of them that have not ended.
    fn stop_all(&mut self, news: &Receiver<News>, mut running: usize, drain_timeout: Duration) {
        self.readiness.drain();
        self.stop.iter().for_each(|stop| stop.set());
        let deadline = Instant::now() + drain_timeout + END_TIMEOUT;
        let mut draining = running;
        while running > 0 {
            if draining == 0 {
                self.finish.iter().for_each(|finish| finish.set());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match news.recv_timeout(left) {
                Ok(News::Shard(Report::Drained)) => draining = draining.saturating_sub(1),
                Ok(News::Shard(Report::Ended { shard, ended })) => {
                    self.ended(shard, ended);
                    running -= 1;
                    // One that failed never reports that it has drained.
                    draining = draining.min(running);
                }
                Ok(News::Signal(SIGHUP)) => {}
                Ok(News::Question(question)) => drop(question),
                Ok(News::Erased(id, told)) => self.served.hear_erased(id, told),
                Ok(News::Shared(_)) => {}
                Ok(News::Signal(_)) => {
                    tracing::warn!("a second signal: stopping at once; what is logged is safe");
                    self.fail(Exit::Undrained);
                    return;
                }
                Ok(News::Shard(Report::Ready { .. })) => {}
                Err(_) => {
                    tracing::warn!(running, "shards did not end in time; what is logged is safe");
                    self.fail(Exit::Undrained);
                    return;
                }
            }
        }
    }

    fn reload(&mut self) {
        let is_planned = self.served.config.planned.is_some();
        match &self.certificates {
            Some(certificates) => {
                let replaced = certificates.reload().map(|()| Vec::new());
                self.tell_reload("certificate", replaced.map_err(|error| vec![error]));
            }
            None if is_planned => {}
            None => tracing::info!(
                "SIGHUP reads the certificate and namespace requests again, but there are none here"
            ),
        }
        if is_planned {
            let outcome = self.served.reload();
            self.tell_reload("namespaces", outcome);
        }
        // After the namespaces: one that is new is denied to everybody until it is among the grants.
        let outcome = self.served.reload_access();
        if let Some(refresh) = &self.refresh {
            // One that was told already and has not begun does for this too.
            let _ = refresh.try_send(());
        }
        if let Some(outcome) = outcome {
            self.tell_reload("access", outcome.map(|()| Vec::new()).map_err(|error| vec![error]));
        }
    }

    /// Writes down what a reload has come to: what it has changed, or why it was refused.
    fn tell_reload(&self, of: &str, outcome: Result<Vec<String>, Vec<String>>) {
        let (is_applied, key, mut texts) = match outcome {
            Ok(changes) => ("applied", "changes", changes),
            Err(errors) => ("refused", "errors", errors),
        };
        let left_out = texts.len().saturating_sub(TOLD_MAX);
        texts.truncate(TOLD_MAX);
        let cut = |text: String| text.chars().take(TOLD_CHARACTERS_MAX).collect::<String>();
        let texts: Vec<_> = texts.into_iter().map(cut).collect();
        let mut fields = audit::event(
            "reload",
            [("of", of.into()), ("outcome", is_applied.into()), (key, texts.into())],
        );
        if left_out > 0 {
            fields.push(("left_out", left_out.into()));
        }
        fields.push(("config_sha256", fingerprint(&self.served.config).into()));
        self.audit.event(fields);
    }

    fn ended(&mut self, shard: usize, ended: Ended) {
        self.readiness.stopped(shard);
        match ended {
            Ended::Clean => {}
            Ended::Undrained { calls, records } => {
                tracing::warn!(
                    shard,
                    calls,
                    records,
                    "calls did not end in time, or writes wait for their backend; what is logged is safe"
                );
                self.fail(Exit::Undrained);
            }
            Ended::LogFailed(error) => {
                self.tell(shard, &format!("{error}. Nothing was acknowledged after it; check the disk, then start again"));
                self.fail(Exit::LogFailed);
            }
            Ended::NotOpened(error) => {
                self.tell(shard, &error.to_string());
                self.fail(exit_of(&error));
            }
            Ended::Panicked => {
                self.tell(shard, "a defect of Prism ended this shard (see the panic above); what was acknowledged is in the log");
                self.fail(Exit::Failure);
            }
            Ended::Runtime(error) => {
                self.tell(
                    shard,
                    &format!("the event loop cannot run: {error}; see `prism doctor`"),
                );
                self.fail(Exit::Failure);
            }
        }
    }

    fn tell(&self, shard: usize, message: &str) {
        tracing::error!(shard, "{message}");
        eprintln!("prism: shard {shard}: {message}");
    }

    /// The first reason is the one to report.
    fn fail(&mut self, exit: Exit) {
        if self.exit == Exit::Ok {
            self.exit = exit;
        }
    }
}

/// What the audit log says of a start.
fn started(config: &Config) -> audit::Fields {
    let file = config.file.as_ref().map(|file| file.display().to_string());
    let names: Vec<_> = config.namespaces.iter().map(|namespace| namespace.name.as_str()).collect();
    let told = names.len().min(TOLD_MAX);
    audit::event(
        "start",
        [
            ("version", env!("CARGO_PKG_VERSION").into()),
            ("process", std::process::id().into()),
            ("config", file.into()),
            ("namespaces", names.len().into()),
            ("first", serde_json::Value::from(&names[..told])),
            ("config_sha256", fingerprint(config).into()),
        ],
    )
}

/// The SHA-256 of the effective configuration, as `/config` on the admin port shows it.
fn fingerprint(config: &Config) -> String {
    audit::show(ring::digest::digest(&ring::digest::SHA256, config.to_string().as_bytes()).as_ref())
}

/// Refuses to serve strangers in clear, or strangers at all, where others than this machine reach it, unless that is allowed in so
/// many words.
fn check_exposure(config: &Config, knows_identities: bool) -> Result<(), Failure> {
    if config.listen.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    let listen = config.listen;
    let asks = |tls: &Tls| tls.clients.as_ref().is_some_and(|clients| clients.required);
    let is_closed = knows_identities || config.tls.as_ref().is_some_and(asks);
    for (is_protected, is_allowed, what, key, remedy) in [
        (
            config.tls.is_some(),
            config.unprotected.plaintext,
            "everything passes in clear",
            "plaintext",
            "serve TLS (--tls-cert, --tls-key)",
        ),
        (
            is_closed,
            config.unprotected.anonymous,
            "everybody who reaches it may read and write everything",
            "anonymous",
            "configure identities (docs/security.md)",
        ),
    ] {
        if is_protected {
            continue;
        }
        if !is_allowed {
            let message = format!(
                "{listen} is reached from outside this machine, and {what}: {remedy}, listen on 127.0.0.1, or allow it with \
                 `unprotected: {{{key}: allowed}}` in the configuration"
            );
            return Err((Exit::Config, message));
        }
        tracing::warn!(%listen, "THIS SERVER IS NOT PROTECTED: {what}; {remedy}");
    }
    Ok(())
}

fn exit_of(error: &OpenError) -> Exit {
    use prism_wal::driver::OpenError as LogError;
    match error {
        OpenError::Log(LogError::Config(_)) => Exit::Config,
        OpenError::Log(LogError::Directory(_) | LogError::Start(_)) => Exit::DataDirectory,
        OpenError::Missing(_)
        | OpenError::Log(LogError::Recover(_))
        | OpenError::Snapshots(_)
        | OpenError::Replay { .. } => Exit::Damaged,
    }
}

/// The registry and the table of namespaces of this start, and how many shards it needs: one for every core that was asked
/// for, and for every log that the data directory holds.
fn place(config: &Config) -> Result<(Registry, Arc<Namespaces>, usize), Failure> {
    let unusable = |error: io::Error| (Exit::DataDirectory, error.to_string());
    let random = prism_wal::driver::random_nonce().map_err(unusable)?;
    let mut registry =
        Registry::load(&config.data_dir, random).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => (Exit::Damaged, error.to_string()),
            _ => unusable(error),
        })?;
    let shards = config.shards().max(registry.shards);
    if shards > config.shards() {
        tracing::warn!(
            asked = config.shards(),
            shards,
            "the data directory holds {} logs: each keeps its shard, and shards share cores",
            registry.shards
        );
    }
    for namespace in &config.namespaces {
        let backend = &config.backends[namespace.backend].name;
        if let Some(before) =
            registry.backend_of(&namespace.name).filter(|before| before != backend)
        {
            return Err((
                Exit::Config,
                format!(
                    "namespace `{}` lies on backend `{before}` and would move to `{backend}`, but its data does not move with it: \
                     write `backend: {before}`, or take another name for a namespace that begins empty",
                    namespace.name
                ),
            ));
        }
    }
    let namespaces = Namespaces::new(config, &mut registry, shards);
    registry.shards = shards;
    registry.starts += 1;
    registry.store(&config.data_dir).map_err(|error| unwritable(&config.data_dir, &error))?;
    Ok((registry, Arc::new(namespaces), shards))
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    (
        Exit::DataDirectory,
        format!(
            "{} cannot be written: {error}; give this user write access or choose another --data-dir",
            path.display()
        ),
    )
}

fn unusable(error: DirectoryError) -> Failure {
    (Exit::DataDirectory, error.to_string())
}

fn cannot_listen(flag: &str, address: std::net::SocketAddr, error: &io::Error) -> Failure {
    (
        Exit::Unavailable,
        format!(
            "cannot listen on {address}: {error}; stop what listens there or choose another address with {flag}"
        ),
    )
}

fn watch_signals(tell: Sender<News>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if tell.send(News::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let spawned = thread::Builder::new().name(name.clone()).spawn(work);
    spawned.map(|_| ()).map_err(|error| {
        (
            Exit::Failure,
            format!("thread {name} cannot be started: {error}; raise the limit on processes"),
        )
    })
}
