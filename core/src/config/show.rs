//! The effective configuration as YAML that [`read`](super::read) takes back: what `/config` answers.
//!
//! Holds no secrets: logins of backends are left out, and of a private key there is only the file's name.

use std::fmt;

use prism_adapters::tls::TlsFiles;
use prism_io::tls::Roots;

use super::backends::show_address;
use super::kafka;
use super::nats;
use super::transport::show_transport;
use super::units::{show_bytes, show_duration};
use super::{Backend, BackendKind, Config, Topics, show_cores};

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| serde_json::to_string(text).map_err(|_| fmt::Error);
        writeln!(f, "listen: {}", self.listen)?;
        if let Some(tls) = &self.tls {
            writeln!(f, "tls:")?;
            writeln!(f, "  certificate: {}", quoted(&tls.certificate.to_string_lossy())?)?;
            writeln!(f, "  key: {}", quoted(&tls.key.to_string_lossy())?)?;
            if let Some(clients) = &tls.clients {
                let authorities = clients.authorities.to_string_lossy();
                let wanted = if clients.required { "required" } else { "optional" };
                writeln!(f, "  client_authorities: {}", quoted(&authorities)?)?;
                writeln!(f, "  client_certificates: {wanted}")?;
                if let Some(revoked) = &clients.revoked {
                    writeln!(f, "  client_revocations: {}", quoted(&revoked.to_string_lossy())?)?;
                }
            }
            writeln!(f, "  handshakes_max: {}", tls.handshakes_max)?;
            writeln!(f, "  handshake_timeout: {}", show_duration(tls.handshake_timeout))?;
        }
        let allowed = |is_allowed| if is_allowed { "allowed" } else { "refused" };
        writeln!(f, "unprotected:")?;
        writeln!(f, "  plaintext: {}", allowed(self.unprotected.plaintext))?;
        writeln!(f, "  anonymous: {}", allowed(self.unprotected.anonymous))?;
        writeln!(f, "admin: {}", self.admin)?;
        writeln!(f, "data_dir: {}", quoted(&self.data_dir.to_string_lossy())?)?;
        writeln!(f, "shards: {}", self.shards())?;
        writeln!(f, "cores: \"{}\"", show_cores(&self.cores))?;
        // The first is the embedded store, which needs no entry, nor do those that are two of the others together.
        let is_pair = |backend: &&Backend| matches!(backend.kind, BackendKind::KafkaPostgres(_));
        let entries = self.backends.iter().skip(1).filter(|backend| !is_pair(backend));
        for (index, backend) in entries.enumerate() {
            if index == 0 {
                writeln!(f, "backends:")?;
            }
            writeln!(f, "  - name: {}", backend.name)?;
            writeln!(f, "    type: {}", backend.type_name())?;
            if let BackendKind::Redis(redis) = &backend.kind {
                writeln!(f, "    address: {}", quoted(&show_address(&redis.host, redis.port))?)?;
                writeln!(f, "    database: {}", redis.database)?;
                if redis.cluster {
                    writeln!(f, "    cluster: true")?;
                }
                let others =
                    redis.others.iter().map(|(host, port)| quoted(&show_address(host, *port)));
                let others: Result<Vec<_>, _> = others.collect();
                if let Some(others) = others.ok().filter(|others| !others.is_empty()) {
                    writeln!(f, "    addresses: [{}]", others.join(", "))?;
                }
                if let Some(tls) = &redis.tls {
                    show_tls(f, &tls.files)?;
                }
            }
            if let BackendKind::Postgres(postgres) = &backend.kind {
                let address = show_address(&postgres.host, postgres.port);
                writeln!(f, "    address: {}", quoted(&address)?)?;
                writeln!(f, "    user: {}", quoted(&postgres.user)?)?;
                writeln!(f, "    database: {}", quoted(&postgres.database)?)?;
                writeln!(f, "    pool: {}", postgres.pool)?;
                if let Some(tls) = &postgres.tls {
                    show_tls(f, &tls.files)?;
                }
            }
            if let BackendKind::Kafka(config) = &backend.kind {
                kafka::show(f, config)?;
            }
            if let BackendKind::Nats(config) = &backend.kind {
                nats::show(f, config)?;
            }
        }
        writeln!(f, "busy_poll: {}", show_duration(self.busy_poll))?;
        writeln!(f, "namespaces:")?;
        for namespace in &self.namespaces {
            writeln!(f, "  - name: {}", namespace.name)?;
            writeln!(f, "    client_api: {}", namespace.client_api.name())?;
            writeln!(f, "    backend: {}", self.backends[namespace.backend].name)?;
            writeln!(f, "    durability: {}", namespace.durability.name())?;
            if namespace.topics != Topics::Volatile {
                writeln!(f, "    topics: {}", namespace.topics.name())?;
            }
            if !namespace.reads.is_empty() {
                let names = namespace.reads.iter().map(|at| self.namespaces[*at].name.as_str());
                writeln!(f, "    reads: [{}]", names.collect::<Vec<_>>().join(", "))?;
            }
            writeln!(f, "    max_message_size: {}", show_bytes(namespace.max_message_size))?;
            writeln!(f, "    in_flight_bytes_max: {}", show_bytes(namespace.in_flight_bytes_max))?;
            writeln!(f, "    memory_bytes_max: {}", show_bytes(namespace.memory_bytes_max))?;
            writeln!(f, "    backlog_records_max: {}", namespace.backlog_records_max)?;
            write!(f, "{}", namespace.quotas)?;
            if namespace.audit_logging {
                writeln!(f, "    audit_logging: enabled")?;
            }
            writeln!(f, "    idempotency_window: {}", show_duration(namespace.idempotency_window))?;
        }
        let limits = &self.limits;
        writeln!(f, "limits:")?;
        writeln!(f, "  message_bytes_max: {}", show_bytes(limits.message_bytes_max))?;
        let connection = show_bytes(limits.connection_bytes_in_flight_max);
        writeln!(f, "  connection_bytes_in_flight_max: {connection}")?;
        let namespace = show_bytes(limits.namespace_bytes_in_flight_max);
        writeln!(f, "  namespace_bytes_in_flight_max: {namespace}")?;
        writeln!(f, "  json_bytes_max: {}", show_bytes(limits.json_bytes_max))?;
        writeln!(f, "  streams: {}", limits.streams)?;
        writeln!(f, "  connections_max: {}", limits.connections_max)?;
        writeln!(f, "  drain_timeout: {}", show_duration(limits.drain_timeout))?;
        writeln!(f, "  default_deadline: {}", show_duration(limits.default_deadline))?;
        write!(f, "{}", self.grpc)?;
        show_transport(&self.transport, f)?;
        write!(f, "{}", self.web)?;
        writeln!(f, "wal:")?;
        writeln!(f, "  direct: {}", self.wal.direct.name())?;
        writeln!(f, "  sync: {}", self.wal.sync.name())?;
        writeln!(f, "  segment_bytes: {}", show_bytes(self.wal.segment_bytes))?;
        writeln!(f, "  bytes_max: {}", show_bytes(self.wal.bytes_max))?;
        writeln!(f, "  low_water: {}", show_bytes(self.wal.low_water))?;
        writeln!(f, "  batch_bytes_max: {}", show_bytes(self.wal.batch_bytes_max))?;
        writeln!(f, "  in_flight: {}", self.wal.in_flight)?;
        writeln!(f, "memory:")?;
        writeln!(f, "  bytes_max: {}", show_bytes(self.memory.bytes_max))?;
        writeln!(f, "  snapshot_interval: {}", show_duration(self.memory.snapshot_interval))?;
        writeln!(f, "  snapshot_bytes: {}", show_bytes(self.memory.snapshot_bytes))?;
        writeln!(f, "log:")?;
        writeln!(f, "  level: {}", self.log.level.name())?;
        writeln!(f, "  format: {}", self.log.format.name())?;
        write!(f, "{}", self.audit)
    }
}

/// The section `tls` of a backend.
fn show_tls(f: &mut fmt::Formatter<'_>, tls: &TlsFiles) -> fmt::Result {
    let quoted = |text: &str| serde_json::to_string(text).map_err(|_| fmt::Error);
    writeln!(f, "    tls:")?;
    if let Roots::File(ca) = &tls.roots {
        writeln!(f, "      ca: {}", quoted(&ca.to_string_lossy())?)?;
    }
    writeln!(f, "      server_name: {}", quoted(&tls.server_name)?)?;
    if let Some((certificate, key)) = &tls.identity {
        writeln!(f, "      certificate: {}", quoted(&certificate.to_string_lossy())?)?;
        writeln!(f, "      key: {}", quoted(&key.to_string_lossy())?)?;
    }
    Ok(())
}
