//! Where a Kafka is, as whom to speak to it, how topics are made, and how long to be patient.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rdkafka::ClientConfig;

use crate::breaker::Backoff;

/// Bytes of one record, with its key and headers, at most: what topics are made with and what is sent.
pub const RECORD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Partitions that a topic may be made with.
pub const TOPIC_PARTITIONS_MAX: u32 = crate::limits::PARTITIONS_MAX as u32;

/// Settings of one Kafka cluster. [`KafkaConfig::at`] has the defaults.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// Brokers to begin with, `host:port`; the cluster tells the others.
    pub brokers: Vec<String>,
    /// Who logs in by SASL; absent: nobody does.
    pub login: Option<Login>,
    /// How TLS is spoken; absent: it is not.
    pub tls: Option<Tls>,
    /// Partitions of the topics that are made.
    pub partitions: u32,
    /// Replicas of the topics that are made; absent: as many as the brokers choose.
    pub replication: Option<u16>,
    /// How long records stay in the topics that are made; absent: without end.
    pub retention: Option<Duration>,
    /// How the brokers' logs call us.
    pub client_name: String,
    /// How long records wait for others to go out with.
    pub linger: Duration,
    /// Bytes of records that go out together, at most.
    pub batch_bytes_max: usize,
    /// Bytes of records that wait to be sent or confirmed, at most.
    pub unsent_bytes_max: usize,
    /// How long a record may wait for its confirmation, and any other question for its answer.
    pub answer_timeout: Duration,
    /// How long to wait between attempts to reach a cluster that is away.
    pub backoff: Backoff,
    /// Appends under way at most; one more is refused.
    pub calls_max: usize,
    /// Readers that have a consumer at the same time, at most; one more is refused.
    pub readers_max: usize,
    /// Bytes that a reader's consumer fetches ahead, at most.
    pub fetched_bytes_max: usize,
}

/// How topics of one namespace are made, where that is not as the cluster's configuration says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicShape {
    /// Partitions.
    pub partitions: Option<u32>,
    /// Replicas of each.
    pub replication: Option<u16>,
    /// How long records stay.
    pub retention: Option<Duration>,
}

impl TopicShape {
    /// With the cluster's own where nothing is said.
    pub(super) fn over(self, config: &KafkaConfig) -> Self {
        TopicShape {
            partitions: Some(self.partitions.unwrap_or(config.partitions)),
            replication: self.replication.or(config.replication),
            retention: self.retention.or(config.retention),
        }
    }
}

/// A user of the cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// How it is shown who we are.
    pub mechanism: Mechanism,
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

/// A SASL mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// The password itself is sent.
    Plain,
    /// RFC 5802 with SHA-256.
    ScramSha256,
    /// RFC 5802 with SHA-512.
    ScramSha512,
}

impl Mechanism {
    /// Every mechanism.
    pub const ALL: [Mechanism; 3] =
        [Mechanism::Plain, Mechanism::ScramSha256, Mechanism::ScramSha512];

    /// As SASL calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// TLS to the brokers, by OpenSSL. The files are read when a connection is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Whose signature under the brokers' certificates is trusted; absent: the authorities of this system.
    pub ca: Option<PathBuf>,
    /// Certificate and key that are shown to the brokers.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl KafkaConfig {
    /// The cluster of these brokers, without a login, everything else at its default.
    pub fn at(brokers: Vec<String>) -> Self {
        KafkaConfig {
            brokers,
            login: None,
            tls: None,
            partitions: 4,
            replication: None,
            retention: None,
            client_name: "prism".to_owned(),
            linger: Duration::from_millis(1),
            batch_bytes_max: 1024 * 1024,
            unsent_bytes_max: 64 * 1024 * 1024,
            answer_timeout: Duration::from_secs(5),
            backoff: Backoff::default(),
            calls_max: 8192,
            readers_max: 64,
            fetched_bytes_max: 4 * 1024 * 1024,
        }
    }

    /// What every client of the cluster has in common.
    pub(super) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        let answer_ms = self.answer_timeout.as_millis().to_string();
        client
            .set("bootstrap.servers", self.brokers.join(","))
            .set("client.id", &self.client_name)
            .set("socket.nagle.disable", "true")
            .set("socket.keepalive.enable", "true")
            .set("socket.timeout.ms", answer_ms)
            .set("reconnect.backoff.ms", self.backoff.delay_min.as_millis().max(1).to_string())
            .set("reconnect.backoff.max.ms", self.backoff.delay_max.as_millis().max(1).to_string())
            // A topic that is new is known at once, one that is gone not for long.
            .set("topic.metadata.refresh.fast.interval.ms", "50")
            .set("receive.message.max.bytes", (4 * RECORD_BYTES_MAX).to_string());
        let protocol = match (&self.tls, &self.login) {
            (None, None) => "PLAINTEXT",
            (Some(_), None) => "SSL",
            (None, Some(_)) => "SASL_PLAINTEXT",
            (Some(_), Some(_)) => "SASL_SSL",
        };
        client.set("security.protocol", protocol);
        if let Some(login) = &self.login {
            client
                .set("sasl.mechanism", login.mechanism.name())
                .set("sasl.username", &login.user)
                .set("sasl.password", &login.password);
        }
        if let Some(Tls { ca, identity }) = &self.tls {
            if let Some(ca) = ca {
                client.set("ssl.ca.location", ca.to_string_lossy());
            }
            if let Some((certificate, key)) = identity {
                client
                    .set("ssl.certificate.location", certificate.to_string_lossy())
                    .set("ssl.key.location", key.to_string_lossy());
            }
        }
        client
    }

    /// The producer: every record confirmed by all replicas that are in sync, none twice, in their order.
    pub(super) fn producer(&self) -> ClientConfig {
        let mut client = self.client();
        let answer_ms = self.answer_timeout.as_millis().to_string();
        client
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", (self.linger.as_micros() as f64 / 1000.0).to_string())
            .set("batch.size", self.batch_bytes_max.to_string())
            .set("batch.num.messages", "100000")
            .set("message.max.bytes", RECORD_BYTES_MAX.to_string())
            .set("queue.buffering.max.messages", "1000000")
            .set("queue.buffering.max.kbytes", (self.unsent_bytes_max / 1024).max(1).to_string())
            .set("request.timeout.ms", &answer_ms)
            .set("message.timeout.ms", answer_ms);
        client
    }

    /// A lane's producer: the same in transactions. Whoever has this id has ended every other producer that has it.
    pub(super) fn transactional_producer(&self, id: &str) -> ClientConfig {
        let mut client = self.producer();
        // How long readers wait for a transaction whose producer is gone, and does not come back.
        let timeout = (2 * self.answer_timeout).max(TRANSACTION_TIMEOUT_MIN);
        client
            .set("transactional.id", id)
            .set("transaction.timeout.ms", timeout.as_millis().to_string());
        client
    }

    /// A reader's consumer: it is told which records to fetch, belongs to no group and commits nothing.
    pub(super) fn consumer(&self) -> ClientConfig {
        let mut client = self.client();
        client
            // The binding takes records only from consumers that have a group; it is never joined.
            .set("group.id", "prism-readers")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed")
            .set("allow.auto.create.topics", "false")
            .set("fetch.wait.max.ms", FETCH_WAIT_MS.to_string())
            .set("fetch.queue.backoff.ms", "20")
            .set("fetch.error.backoff.ms", "100")
            .set("queued.max.messages.kbytes", (self.fetched_bytes_max / 1024).max(1).to_string());
        client
    }

    /// A consumer that takes part in a group of Kafka's; what it commits is told it each time.
    pub(super) fn member(&self, group: &str) -> ClientConfig {
        let mut client = self.consumer();
        client
            .set("group.id", group)
            .set("session.timeout.ms", SESSION_TIMEOUT_MS.to_string())
            .set("heartbeat.interval.ms", HEARTBEAT_MS.to_string())
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "false");
        client
    }
}

/// So long after a Prism has died its partitions go to the others of a group.
const SESSION_TIMEOUT_MS: u64 = 10_000;

/// How soon a member of a group hears that others have come or gone.
const HEARTBEAT_MS: u64 = 500;

/// How long a broker keeps a fetch that finds nothing: so much later a reader is told that it has caught up.
const FETCH_WAIT_MS: u64 = 100;

/// How long a transaction may last, at least.
const TRANSACTION_TIMEOUT_MIN: Duration = Duration::from_secs(30);

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.login.as_ref().map_or("", |login| login.user.as_str());
        write!(formatter, "kafka://{user}@{}", self.brokers.join(","))
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} with a password, by {}", self.user, self.mechanism.name())
    }
}
