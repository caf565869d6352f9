//! The section `backends`: where a namespace's data may lie besides the embedded store.
//!
//! A backend has a name of the platform's choosing; namespaces name it. Secrets are read from files or the environment, never
//! from this file, and never shown.

use std::net::SocketAddr;
use std::time::Duration;

use prism_adapters::Backend as _;
use prism_adapters::kafka::{Kafka, KafkaConfig};
use prism_adapters::kafka_postgres::KafkaPostgres;
use prism_adapters::memory::Memstore;
use prism_adapters::nats::{Nats, NatsConfig};
use prism_adapters::postgres::{POOL_MAX, Postgres, PostgresConfig};
use prism_adapters::redis::{Login, Redis, RedisCluster, RedisConfig, TopicLog};
use prism_adapters::tls::{Tls, TlsFiles};
use prism_io::tls::Roots;
use prism_proto::catalogue::{Interfaces, Model};

use super::error::{Origin, Problem};
use super::read::{file, span};
use super::tree::{Report, Section};
use super::{ClientApi, Durability, Topics, kafka, namespace_name_valid, nats};

/// Redis with `appendfsync everysec` loses a second, or two while its disk is busy.
const LOSS_WINDOW: Duration = Duration::from_secs(3);

/// NATS syncs what JetStream has stored every two minutes, unless its `sync_interval` says otherwise.
const LOSS_WINDOW_NATS: Duration = Duration::from_secs(150);

/// Kafka leaves it to the operating system to bring what it has confirmed to its disks, by default within 35 s. That all replicas lose their power
/// at once is what this is for.
const LOSS_WINDOW_KAFKA: Duration = Duration::from_secs(45);

const LOSS_WINDOW_MAX: Duration = Duration::from_secs(86_400);

/// Most backends that one file may hold.
pub const BACKENDS_MAX: usize = 64;

/// A place where data may lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// As namespaces, metrics and errors name it.
    pub name: String,
    /// What it is, and how to reach it.
    pub kind: BackendKind,
    /// What it has confirmed so long ago it does not lose any more: only then the log lets go of it.
    pub loss_window: Duration,
    /// Whether its lanes go on when it has lost more than that.
    pub on_data_loss: OnDataLoss,
}

/// What becomes of a lane whose backend has lost what it had confirmed longer ago than its loss window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDataLoss {
    /// It stops and says so.
    Stop,
    /// It gives up what is lost and goes on.
    Continue,
}

/// What a backend is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendKind {
    /// The embedded store.
    Memory,
    /// A Redis server.
    Redis(Box<RedisConfig>),
    /// A PostgreSQL server.
    Postgres(Box<PostgresConfig>),
    /// A Kafka cluster.
    Kafka(Box<KafkaConfig>),
    /// A NATS server with JetStream.
    Nats(Box<NatsConfig>),
    /// Messages in a Kafka cluster, their state of delivery in a PostgreSQL server.
    KafkaPostgres(Box<(KafkaConfig, PostgresConfig)>),
}

impl Backend {
    /// The embedded store, which is always there and the first of the list.
    pub fn embedded() -> Self {
        Self {
            name: Memstore::NAME.to_owned(),
            kind: BackendKind::Memory,
            loss_window: Duration::ZERO,
            on_data_loss: OnDataLoss::Stop,
        }
    }

    /// As it is written under `type`.
    pub fn type_name(&self) -> &'static str {
        match self.kind {
            BackendKind::Memory => Memstore::NAME,
            BackendKind::Redis(_) => Redis::NAME,
            BackendKind::Postgres(_) => Postgres::NAME,
            BackendKind::Kafka(_) => Kafka::NAME,
            BackendKind::Nats(_) => Nats::NAME,
            BackendKind::KafkaPostgres(_) => KafkaPostgres::NAME,
        }
    }

    /// The interfaces that it serves.
    pub fn serves(&self) -> Interfaces {
        match &self.kind {
            BackendKind::Memory => Memstore::SERVES,
            BackendKind::Redis(redis) if redis.cluster => RedisCluster::SERVES,
            BackendKind::Redis(_) => Redis::SERVES,
            BackendKind::Postgres(_) => Postgres::SERVES,
            BackendKind::Kafka(_) => Kafka::SERVES,
            BackendKind::Nats(_) => Nats::SERVES,
            BackendKind::KafkaPostgres(_) => KafkaPostgres::SERVES,
        }
    }

    /// What its namespaces of this client API offer, with topics kept so.
    pub fn offers(&self, api: ClientApi, topics: Topics) -> Interfaces {
        let serves = match (&self.kind, api, topics) {
            (BackendKind::Redis(redis), ClientApi::PubSub, Topics::Log) if !redis.cluster => {
                TopicLog::SERVES
            }
            _ => self.serves(),
        };
        serves.intersection(api.model().interfaces())
    }

    /// Whether its topics can be kept so.
    pub fn keeps(&self, topics: Topics) -> bool {
        let is_alone = matches!(&self.kind, BackendKind::Redis(redis) if !redis.cluster);
        topics == Topics::Volatile || is_alone
    }

    /// Whether its namespaces of this client API store messages with the data of a transaction.
    pub fn has_outbox(&self, api: ClientApi) -> bool {
        match &self.kind {
            // The outbox of a namespace would have to be in the slot of all of its keys.
            BackendKind::Redis(redis) if redis.cluster => false,
            BackendKind::Memory => api.model() == Model::KeyValue,
            // They are looked through for what an earlier process has left, which is not for every namespace of keys.
            BackendKind::Postgres(_) | BackendKind::Redis(_) => api == ClientApi::Transact,
            BackendKind::Nats(_) | BackendKind::Kafka(_) | BackendKind::KafkaPostgres(_) => false,
        }
    }

    /// The strongest level that its namespaces can have.
    pub fn durability_max(&self) -> Durability {
        match self.kind {
            BackendKind::Memory
            | BackendKind::Redis(_)
            | BackendKind::Postgres(_)
            | BackendKind::Kafka(_)
            | BackendKind::Nats(_)
            | BackendKind::KafkaPostgres(_) => Durability::Strong,
        }
    }
}

/// Reads the section; the embedded store comes first.
pub(super) fn read(list: Option<(Origin, Vec<Section<'_>>)>, report: &Report) -> Vec<Backend> {
    let mut backends = vec![Backend::embedded()];
    let Some((origin, sections)) = list else { return backends };
    if sections.len() > BACKENDS_MAX {
        let message = format!("backends lists {}, at most {BACKENDS_MAX} may be", sections.len());
        report.error(origin, Problem::new(message, "leave out those that no namespace names"));
    }
    for section in sections {
        let origin = section.origin;
        let path = section.path().to_owned();
        let name = section.optional("name", name);
        let kind = section.optional("type", type_name);
        for (key, missing, example) in
            [("name", name.is_none(), "name: cache"), ("type", kind.is_none(), "type: redis")]
        {
            if missing && section.lacks(key) {
                let message = format!("{path} has no `{key}`");
                report.error(
                    origin,
                    Problem::new(message, format!("add a line such as `{example}`")),
                );
            }
        }
        let window = match kind.as_ref().map(|kind| kind.value) {
            Some(Nats::NAME) => LOSS_WINDOW_NATS,
            Some(Kafka::NAME) => LOSS_WINDOW_KAFKA,
            _ => LOSS_WINDOW,
        };
        let window = section.value("loss_window", window, span(Duration::ZERO, LOSS_WINDOW_MAX));
        let on_data_loss = section.value("on_data_loss", OnDataLoss::Stop, on_data_loss);
        // A type that is not known is taken for the first, so that the rest is looked at too.
        let kind = match kind.as_ref().map(|kind| kind.value) {
            Some(Postgres::NAME) => read_postgres(section, report)
                .map(|postgres| BackendKind::Postgres(Box::new(postgres))),
            Some(Kafka::NAME) => {
                kafka::read(section, report).map(|kafka| BackendKind::Kafka(Box::new(kafka)))
            }
            Some(Nats::NAME) => {
                nats::read(section, report).map(|nats| BackendKind::Nats(Box::new(nats)))
            }
            _ => read_redis(section, report)
                .map(|redis| BackendKind::Redis(Box::new(redis)))
                .filter(|_| kind.is_some()),
        };
        let (Some(name), Some(kind)) = (name, kind) else { continue };
        if backends.iter().any(|other| other.name == name.value) {
            let message = format!("the backend `{}` is there twice", name.value);
            let remedy = "give each backend its own name; `memstore` is the embedded store";
            report.error(name.origin, Problem::new(message, remedy));
        }
        backends.push(Backend {
            name: name.value,
            kind,
            loss_window: window.value,
            on_data_loss: on_data_loss.value,
        });
    }
    let pairs = pairs(&backends);
    backends.extend(pairs);
    backends
}

/// What two of the backends are together: each Kafka with each PostgreSQL, under both names (no other has a plus sign).
fn pairs(backends: &[Backend]) -> Vec<Backend> {
    let mut pairs = Vec::new();
    for messages in backends {
        let BackendKind::Kafka(kafka) = &messages.kind else { continue };
        for state in backends {
            let BackendKind::Postgres(postgres) = &state.kind else { continue };
            pairs.push(Backend {
                name: pair_name([messages.name.as_str(), &state.name]),
                kind: BackendKind::KafkaPostgres(Box::new((
                    (**kafka).clone(),
                    (**postgres).clone(),
                ))),
                loss_window: messages.loss_window.max(state.loss_window),
                on_data_loss: state.on_data_loss,
            });
        }
    }
    pairs
}

/// The name of backends that serve a namespace together: `events+database`.
pub(crate) fn pair_name<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().collect::<Vec<_>>().join("+")
}

/// Whether this build can serve backends of a type.
pub(super) fn is_served(kind: &str) -> bool {
    type_name(kind).is_ok()
}

/// The keys that are read of a backend: of the section, which has a name and a type.
pub(super) fn keys(section: Section<'_>, report: &Report) -> Vec<&'static str> {
    let path = section.path().to_owned();
    read(Some((Origin::File, vec![section])), report);
    report.asked(&path)
}

fn read_redis(section: Section<'_>, report: &Report) -> Option<RedisConfig> {
    let address = section.optional("address", host_and_port);
    let addresses = section.list("addresses", addresses);
    let is_told = !section.lacks("address") || !section.lacks("addresses");
    if address.is_none() && addresses.is_none() && !is_told {
        let message = format!("{} has no `address`", section.path());
        let remedy = "add a line such as `address: 127.0.0.1:6379`";
        report.error(section.origin, Problem::new(message, remedy));
    }
    let user = section.optional("user", |text| Ok(text.to_owned()));
    let password = section.optional("password_file", |path| secret(path, report));
    let given_database = section.value("database", 0, database);
    let database = given_database.value;
    let cluster = section.value("cluster", addresses.is_some(), yes_or_no);
    if cluster.value && database != 0 {
        let remedy = "leave `database` out: a cluster has only 0";
        let message = format!("a cluster has no database {database}");
        report.error(given_database.origin, Problem::new(message, remedy));
    }
    if let (Some(addresses), false) = (&addresses, cluster.value) {
        let message = "`addresses` are those of a cluster";
        let remedy = "write `address: HOST:PORT` for a Redis by itself, or leave `cluster` out";
        report.error(addresses.origin, Problem::new(message, remedy));
    }
    if let (Some(user), true) = (&user, section.lacks("password_file")) {
        let remedy = "add `password_file: PATH`, or leave `user` out";
        report.error(user.origin, Problem::new("a user without a password", remedy));
    }
    let tls = section.section("tls");
    section.finish();
    let mut doors: Vec<_> = address.into_iter().map(|address| address.value).collect();
    doors.extend(addresses.into_iter().flat_map(|addresses| addresses.value));
    let mut doors = doors.into_iter();
    let (host, port) = doors.next()?;
    let others = doors.collect();
    let tls = tls.and_then(|tls| read_tls(tls, &host, report));
    let login = password.map(|password| Login {
        user: user.map_or_else(|| "default".to_owned(), |user| user.value),
        password: password.value,
    });
    let cluster = cluster.value;
    Some(RedisConfig { login, tls, database, others, cluster, ..RedisConfig::at(host, port) })
}

/// TLS to the backend at `host`. Its files are read here, so that what is wrong with them is said at start.
fn read_tls(section: Section<'_>, host: &str, report: &Report) -> Option<Tls> {
    let (origin, path) = (section.origin, section.path().to_owned());
    let ca = section.optional("ca", file);
    let server_name = section.optional("server_name", |text| Ok(text.to_owned()));
    let (certificate, key) = (section.optional("certificate", file), section.optional("key", file));
    let is_whole = section.lacks("certificate") == section.lacks("key");
    section.finish();
    if !is_whole {
        let message = format!("{path} has only one of `certificate` and `key`");
        let remedy = "give both, or leave both out where the server does not ask who we are";
        report.error(origin, Problem::new(message, remedy));
        return None;
    }
    let files = TlsFiles {
        roots: ca.map_or(Roots::System, |ca| Roots::File(ca.value)),
        server_name: server_name.map_or_else(|| host.to_owned(), |name| name.value),
        identity: certificate.zip(key).map(|(certificate, key)| (certificate.value, key.value)),
    };
    let remedy = "write `tls: {ca: PATH}`, with `certificate`, `key` and `server_name` where they are needed";
    let refuse = |message| report.error(origin, Problem::new(format!("{path}: {message}"), remedy));
    if !report.reads_files() {
        return None;
    }
    Tls::load(files).map_err(refuse).ok()
}

fn read_postgres(section: Section<'_>, report: &Report) -> Option<PostgresConfig> {
    let address = section.optional("address", host_and_port);
    let text = |text: &str| Ok(text.to_owned());
    let user = section.optional("user", text);
    for (key, missing, example) in [
        ("address", address.is_none(), "address: 127.0.0.1:5432"),
        ("user", user.is_none(), "user: prism"),
    ] {
        if missing && section.lacks(key) {
            let message = format!("{} has no `{key}`", section.path());
            let remedy = format!("add a line such as `{example}`");
            report.error(section.origin, Problem::new(message, remedy));
        }
    }
    let password =
        section.optional("password_file", |path| secret(path, report)).map(|secret| secret.value);
    let database = section.optional("database", text);
    let pool = section.optional("pool", pool);
    let tls = section.section("tls");
    section.finish();
    let ((host, port), user) = (address?.value, user?.value);
    let tls = tls.and_then(|tls| read_tls(tls, &host, report));
    let defaults = PostgresConfig::at(host, port, user);
    Some(PostgresConfig {
        password,
        tls,
        database: database.map_or_else(|| defaults.database.clone(), |database| database.value),
        pool: pool.map_or(defaults.pool, |pool| pool.value),
        ..defaults
    })
}

fn pool(text: &str) -> Result<usize, Problem> {
    let valid = text.parse().ok().filter(|pool| (1..=POOL_MAX).contains(pool));
    valid.ok_or_else(|| {
        let message = format!("`{text}` is no number of connections");
        Problem::new(message, format!("write a number from 1 to {POOL_MAX}"))
    })
}

fn name(text: &str) -> Result<String, Problem> {
    if namespace_name_valid(text) {
        return Ok(text.to_owned());
    }
    let remedy = "write a lower-case letter, then up to 62 lower-case letters, digits and dashes";
    Err(Problem::new(format!("`{text}` is not a name for a backend"), remedy))
}

fn type_name(text: &str) -> Result<&'static str, Problem> {
    match text {
        Redis::NAME => Ok(Redis::NAME),
        Postgres::NAME => Ok(Postgres::NAME),
        Kafka::NAME => Ok(Kafka::NAME),
        Nats::NAME => Ok(Nats::NAME),
        Memstore::NAME => Err(Problem::new(
            "the embedded store needs no entry",
            "leave `backend` out of the namespaces that use it",
        )),
        _ => Err(Problem::new(
            format!("`{text}` is not served yet"),
            format!(
                "served now: {}",
                [Redis::NAME, Postgres::NAME, Kafka::NAME, Nats::NAME].join(", ")
            ),
        )),
    }
}

fn on_data_loss(text: &str) -> Result<OnDataLoss, Problem> {
    match text {
        "stop" => Ok(OnDataLoss::Stop),
        "continue" => Ok(OnDataLoss::Continue),
        _ => Err(Problem::new(format!("`{text}` is not known here"), "write `stop` or `continue`")),
    }
}

pub(super) fn host_and_port(text: &str) -> Result<(String, u16), Problem> {
    let problem = || {
        let remedy = "write it as `127.0.0.1:6379`, `[::1]:6379` or `redis.internal:6379`";
        Problem::new(format!("`{text}` is not a host and a port"), remedy)
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok((address.ip().to_string(), address.port()));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(problem)?;
    let port = port.parse().map_err(|_| problem())?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if host.is_empty() || port == 0 || !host.chars().all(fits) {
        return Err(problem());
    }
    Ok((host.to_owned(), port))
}

/// An address as `address` takes it back.
pub(super) fn show_address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A secret from its file, or nothing where files are left unread.
pub(super) fn secret(path: &str, report: &Report) -> Result<String, Problem> {
    if report.reads_files() { secret_file(path) } else { Ok(String::new()) }
}

fn secret_file(text: &str) -> Result<String, Problem> {
    match std::fs::read_to_string(text) {
        Ok(secret) if !secret.trim_end().is_empty() => Ok(secret.trim_end().to_owned()),
        Ok(_) => Err(Problem::new(format!("{text} is empty"), "put the password into it")),
        Err(error) => {
            let remedy = "make the file, readable by this user alone, with the password in it";
            Err(Problem::new(format!("{text} cannot be read: {error}"), remedy))
        }
    }
}

fn addresses(text: &str) -> Result<Vec<(String, u16)>, Problem> {
    text.split(',').map(|one| host_and_port(one.trim())).collect()
}

fn yes_or_no(text: &str) -> Result<bool, Problem> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Problem::new(format!("`{text}` is not known here"), "write `true` or `false`")),
    }
}

fn database(text: &str) -> Result<u32, Problem> {
    let problem = |_| Problem::new(format!("`{text}` is no database"), "write a number such as 0");
    text.parse().map_err(problem)
}
