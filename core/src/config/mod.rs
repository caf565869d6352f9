//! What `prism serve` is told to do: one file, flags over it, and defaults that work on a bare machine.
//!
//! Text becomes a [`Config`] once, in the pure function [`read`]; everything behind it trusts the types. Unknown keys,
//! wrong types and impossible values are refused together, each with file, line, column and a remedy. Never reads a
//! file or the machine by itself, except in [`load`].

pub mod access;
mod audit;
mod backends;
pub mod described;
mod error;
mod grpc;
mod kafka;
mod machine;
mod nats;
pub mod platform;
#[cfg(test)]
mod platform_tests;
mod quotas;
mod read;
mod readers;
pub mod request;
mod show;
#[cfg(test)]
pub(crate) mod tests;
mod transport;
#[cfg(test)]
mod transport_tests;
mod tree;
pub mod units;
mod web;

use prism_adapters::kafka::TopicShape;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prism_proto::catalogue::{Interface, Interfaces, Model};

pub use audit::Audit;
pub(crate) use backends::pair_name;
pub use backends::{BACKENDS_MAX, Backend, BackendKind, OnDataLoss};
pub use error::{ConfigError, ConfigErrors, Origin, nearest};
pub use grpc::Grpc;
pub use machine::{Machine, parse_cores, show_cores};
pub use quotas::Quotas;
pub(crate) use read::{BACKLOG_RECORDS, IDEMPOTENCY_WINDOW, MESSAGE_BYTES_MIN};
pub use read::{load, namespace_name_valid, read};
pub use transport::Transport;
pub use tree::Setting;
pub use web::Web;

use crate::plan::Asked;

/// Most shards that one process runs.
pub const SHARDS_MAX: usize = 256;
/// Most namespaces that one file may hold.
pub const NAMESPACES_MAX: usize = 4096;
/// The shortest time for which an idempotency key is remembered (`design/wal.md`, caller retries).
pub const IDEMPOTENCY_WINDOW_MIN: Duration = Duration::from_secs(600);
/// The longest time for which an idempotency key is remembered.
pub const IDEMPOTENCY_WINDOW_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Everything that `prism serve` was told, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file it came from; `None` without one.
    pub file: Option<PathBuf>,
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// TLS where gRPC is served; `None`: in clear.
    pub tls: Option<Tls>,
    /// What is allowed although it protects nobody.
    pub unprotected: Unprotected,
    /// Where metrics, health and the effective configuration are served over HTTP.
    pub admin: SocketAddr,
    /// The directory of the logs and snapshots.
    pub data_dir: PathBuf,
    /// The core of each shard; its length is the number of shards, 1 to [`SHARDS_MAX`].
    pub cores: Vec<usize>,
    /// Where data may lie; the first is the embedded store.
    pub backends: Vec<Backend>,
    /// How long a shard that has become idle looks for work before it sleeps; zero sleeps at once.
    pub busy_poll: Duration,
    /// What namespaces and backends are planned from; `None`: they are listed.
    pub planned: Option<PlannedFrom>,
    /// What was asked for, of the namespaces that are planned.
    pub asked: Vec<Arc<Asked>>,
    /// The namespaces to serve; at least one, names unique.
    pub namespaces: Vec<Namespace>,
    /// Bounds on what clients may ask for.
    pub limits: Limits,
    /// What the protocol does by itself.
    pub grpc: Grpc,
    /// Bounds on what their connections may do.
    pub transport: Transport,
    /// Calls from browsers.
    pub web: Web,
    /// The log.
    pub wal: Wal,
    /// The embedded store.
    pub memory: Memory,
    /// Log lines.
    pub log: Log,
    /// The audit log.
    pub audit: Audit,
    /// What was accepted but should be told to the operator.
    pub warnings: Vec<String>,
}

impl Config {
    /// The number of shards.
    pub fn shards(&self) -> usize {
        self.cores.len()
    }
}

/// What namespaces are planned from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFrom {
    /// A file of namespace requests, or a folder of them; `None`: they are applied, and the data directory remembers them.
    pub requests: Option<PathBuf>,
    /// The platform team's file; `None`: the embedded store, and any team.
    pub platform: Option<PathBuf>,
}

/// How TLS is accepted. The files are read at start and again on SIGHUP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM: the server's certificate, then what leads from it to an authority.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
    /// Whose certificates clients may show; `None`: they are not asked for one.
    pub clients: Option<TlsClients>,
    /// Most handshakes at a time, of the whole process.
    pub handshakes_max: u32,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
}

/// Clients that show certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsClients {
    /// PEM: the authorities that sign them.
    pub authorities: PathBuf,
    /// Whether one without a certificate is refused in the handshake.
    pub required: bool,
    /// PEM: the authorities' lists of certificates that they have revoked; `None`: nobody looks.
    pub revoked: Option<PathBuf>,
}

/// What is allowed in so many words although it protects nobody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unprotected {
    /// To serve in clear on an address that others reach.
    pub plaintext: bool,
    /// To serve callers that nobody knows on such an address.
    pub anonymous: bool,
}

/// A namespace of the configuration file.
#[derive(Debug, Clone, PartialEq)]
pub struct Namespace {
    /// `[a-z][a-z0-9-]{0,62}`.
    pub name: String,
    /// The client API that it serves.
    pub client_api: ClientApi,
    /// Its place in [`Config::backends`].
    pub backend: usize,
    /// When a caller hears "done".
    pub durability: Durability,
    /// How its topics are kept, where its backend can do so in more than one way.
    pub topics: Topics,
    /// Largest request message, in bytes; at most [`Limits::message_bytes_max`].
    pub max_message_size: u64,
    /// Most bytes of requests that may be in flight at once.
    pub in_flight_bytes_max: u64,
    /// Most bytes that the embedded store may hold for it; at most [`Memory::bytes_max`].
    pub memory_bytes_max: u64,
    /// Most logged writes that may wait for a backend outside the process.
    pub backlog_records_max: u64,
    /// What it may use at a time besides.
    pub quotas: Quotas,
    /// Whether every access to its data is written into the audit log.
    pub audit_logging: bool,
    /// How long an idempotency key and its outcome are remembered.
    pub idempotency_window: Duration,
    /// The shard that is to own it, unless it lives on another already; `None`: by its name.
    pub home: Option<usize>,
    /// How its topics are made on a Kafka, where that is not as the backend says. Those that are there stay as they are.
    pub topic_shape: TopicShape,
    /// Of a reader: the namespaces that it reads, by their places in the list, at most one of each model. Empty: what its
    /// backend holds under its own name.
    pub reads: Vec<usize>,
}

impl Namespace {
    /// Whether it differs from `other` in nothing but its terms: what may change while it is served.
    pub fn is_with_other_terms(&self, other: &Self) -> bool {
        let Self { durability, max_message_size, in_flight_bytes_max, .. } = *other;
        let Self { backlog_records_max, quotas, audit_logging, topic_shape, .. } = *other;
        let terms = Self {
            durability,
            max_message_size,
            in_flight_bytes_max,
            backlog_records_max,
            quotas,
            audit_logging,
            topic_shape,
            ..self.clone()
        };
        terms == *other
    }
}

/// The client APIs that can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClientApi {
    /// `prism.keyvalue.v1.KeyValueService`.
    KeyValue,
    /// `prism.pubsub.v1.PubSubService`.
    PubSub,
    /// `prism.queue.v1.QueueService`.
    Queue,
    /// `prism.stream.v1.StreamService`.
    Stream,
    /// `prism.reader.v1.ReaderService`, over other namespaces or a backend's streams.
    Reader,
    /// `prism.transact.v1.TransactService`, over keys and values of its own.
    Transact,
}

impl ClientApi {
    /// Every client API that can be served.
    pub const ALL: &[Self] =
        &[Self::KeyValue, Self::PubSub, Self::Queue, Self::Stream, Self::Reader, Self::Transact];

    /// As it is written in configuration, metrics and log lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeyValue => "keyvalue",
            Self::PubSub => "pubsub",
            Self::Queue => "queue",
            Self::Stream => "stream",
            Self::Reader => "reader",
            Self::Transact => "transact",
        }
    }

    /// The data model of a namespace's own data.
    pub(crate) fn model(self) -> Model {
        match self {
            Self::KeyValue | Self::Transact => Model::KeyValue,
            Self::PubSub => Model::PubSub,
            Self::Queue => Model::Queue,
            Self::Stream | Self::Reader => Model::Stream,
        }
    }

    /// The interfaces without which a backend cannot serve it; of an empty set any of its model will do.
    pub(crate) fn needs(self) -> Interfaces {
        match self {
            Self::Transact => Interfaces::of(&[Interface::KeyValueTransactional]),
            Self::Reader => Interfaces::of(&[Interface::StreamBasic]),
            _ => Interfaces::NONE,
        }
    }
}

/// When a caller hears "done" (`design/wal.md`, durability levels). A later level is a stronger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// The backend answered; no log. Also written `best-effort`.
    Memory,
    /// The record is on stable storage here. Also written `eventual`.
    Wal,
    /// On stable storage here and confirmed by the backend.
    Strong,
}

impl Durability {
    /// As it is written in configuration and in `prism-durability`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Wal => "wal",
            Self::Strong => "strong",
        }
    }
}

/// How topics on Redis are kept: the plan of a namespace, which decides what it offers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Topics {
    /// As channels: who is not subscribed never hears of an event; patterns are offered.
    #[default]
    Volatile,
    /// As streams: stored, with attributes and ordering keys, for durable subscriptions; without patterns.
    Log,
}

impl Topics {
    /// As it is written in configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Volatile => "volatile",
            Self::Log => "log",
        }
    }
}

/// Bounds on what clients may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest message of a request, in bytes.
    pub message_bytes_max: u64,
    /// Largest request in JSON, in bytes.
    pub json_bytes_max: u64,
    /// Most bytes of requests in flight on one connection.
    pub connection_bytes_in_flight_max: u64,
    /// Most bytes of requests in flight in one namespace, unless it says otherwise.
    pub namespace_bytes_in_flight_max: u64,
    /// Most concurrent streams of one connection.
    pub streams: u32,
    /// Most connections of the whole process.
    pub connections_max: u32,
    /// How long running calls may take to finish after SIGTERM.
    pub drain_timeout: Duration,
    /// The deadline of a call that brings none.
    pub default_deadline: Duration,
}

/// Whether the log's files bypass the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direct {
    /// `O_DIRECT` where the file system has it, else buffered with a warning.
    Preferred,
    /// Refuse to start without `O_DIRECT`.
    Required,
    /// Always buffered.
    Off,
}

impl Direct {
    /// As it is written in configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preferred => "preferred",
            Self::Required => "required",
            Self::Off => "off",
        }
    }
}

/// How a write of the log is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// The quicker of the two, by a short probe of the data directory at start.
    Auto,
    /// `O_DSYNC` writes.
    Dsync,
    /// A write, then `fdatasync`.
    Fdatasync,
}

impl Sync {
    /// As it is written in configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Dsync => "dsync",
            Self::Fdatasync => "fdatasync",
        }
    }
}

/// The log. Sizes are of the whole process and shared evenly by the shards, except those of a segment and a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wal {
    /// Whether its files bypass the page cache.
    pub direct: Direct,
    /// How a write is made durable.
    pub sync: Sync,
    /// Size of a segment file, in bytes; a multiple of 4 KiB.
    pub segment_bytes: u64,
    /// Most bytes of all segment files.
    pub bytes_max: u64,
    /// Free bytes under which writes are refused with `WAL_FULL`.
    pub low_water: u64,
    /// A batch is closed at this many bytes; a larger record makes a batch of its own.
    pub batch_bytes_max: u64,
    /// Writes in flight per shard.
    pub in_flight: u32,
}

/// The embedded store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Most bytes that it may hold, over all shards.
    pub bytes_max: u64,
    /// Longest time between two snapshots while there are writes.
    pub snapshot_interval: Duration,
    /// A snapshot is also taken when a shard's log has grown by this many bytes since the last.
    pub snapshot_bytes: u64,
}

/// Log lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The least serious level that is written.
    pub level: Level,
    /// Their form.
    pub format: LogFormat,
}

/// How serious a log line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something should be looked at.
    Warn,
    /// What an operator wants to know.
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// As it is written in configuration and in log lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people at a terminal.
    Text,
}

impl LogFormat {
    /// As it is written in configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
        }
    }
}

/// Flags of `prism serve` that stand over the file, as they were typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--listen`
    pub listen: Option<String>,
    /// `--admin`
    pub admin: Option<String>,
    /// `--tls-cert`
    pub tls_cert: Option<String>,
    /// `--tls-key`
    pub tls_key: Option<String>,
    /// `--data-dir`
    pub data_dir: Option<String>,
    /// `--shards`
    pub shards: Option<String>,
    /// `--cores`
    pub cores: Option<String>,
    /// `--busy-poll`
    pub busy_poll: Option<String>,
    /// `--log-level`
    pub log_level: Option<String>,
    /// `--log-format`
    pub log_format: Option<String>,
}
