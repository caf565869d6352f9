//! What `prism serve` says first: where it listens, what it serves, how durable that is, and what to type next.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::output::columns;
use crate::config::{ClientApi, Config, Durability, show_cores, units};

/// What is known once every shard serves.
#[derive(Debug, Clone)]
pub struct Serving {
    /// Where gRPC is served; differs from the configuration where that said port 0.
    pub listen: SocketAddr,
    /// Where the admin port is.
    pub admin: SocketAddr,
    /// The data directory, absolute.
    pub data_dir: PathBuf,
    /// How the loops reach the kernel: `io_uring` or `epoll`.
    pub io: &'static str,
    /// Whether the log bypasses the page cache.
    pub direct: bool,
    /// How a log write is made durable, and what it took when it was measured.
    pub sync: Option<(&'static str, Duration)>,
    /// Records that recovery redid, and how long that took; `None` for an empty data directory.
    pub recovered: Option<(u64, Duration)>,
    /// From the start of the process until every shard served.
    pub ready_after: Duration,
}

/// Renders the first screen; it ends with a newline.
pub fn first_screen(config: &Config, serving: &Serving) -> String {
    let Serving { listen, admin, .. } = serving;
    let shards = match config.shards() {
        1 => format!("1 shard on core {}", show_cores(&config.cores)),
        count => format!("{count} shards on cores {}", show_cores(&config.cores)),
    };
    let tls = if config.tls.is_some() { "TLS 1.3 and 1.2, " } else { "" };
    let direct = if serving.direct { "O_DIRECT" } else { "through the page cache" };
    let sync = match serving.sync {
        Some((method, time)) => format!(", {method}, {} µs each when measured", time.as_micros()),
        None => String::new(),
    };
    let rows = [
        ["gRPC".to_string(), listen.to_string(), format!("{tls}with reflection and health")],
        ["admin".into(), format!("http://{admin}"), "/metrics /healthz /readyz /config".into()],
        ["data".into(), serving.data_dir.display().to_string(), format!("log {direct}{sync}")],
        ["cores".into(), shards, format!("on {}", serving.io)],
    ];
    let mut text = format!("Prism {} serves.\n\n", env!("CARGO_PKG_VERSION"));
    text.push_str(&columns(&rows.map(|row| row.to_vec()), 2));
    text.push('\n');

    /// Namespaces shown at most; `/config` has them all.
    const NAMESPACES_SHOWN_MAX: usize = 12;
    let mut rows = vec![["namespace", "API", "backend", "durability"].map(str::to_owned).to_vec()];
    for namespace in config.namespaces.iter().take(NAMESPACES_SHOWN_MAX) {
        let level = namespace.durability;
        let (mut backend, mut told) = (
            config.backends[namespace.backend].name.clone(),
            format!("{}: {}", level.name(), promise(level)),
        );
        if namespace.client_api == ClientApi::Reader {
            told = "reads what lies there, and writes nothing".into();
            if !namespace.reads.is_empty() {
                let reads = namespace.reads.iter().map(|at| config.namespaces[*at].name.as_str());
                told = format!("reads {}", reads.collect::<Vec<_>>().join(", "));
                backend = "theirs".into();
            }
        }
        let api = namespace.client_api.name().to_string();
        rows.push(vec![namespace.name.clone(), api, backend, told]);
    }
    text.push_str(&columns(&rows, 2));
    if config.namespaces.len() > NAMESPACES_SHOWN_MAX {
        let more = config.namespaces.len() - NAMESPACES_SHOWN_MAX;
        text.push_str(&format!("  and {more} more: http://{admin}/config\n"));
    }

    if let Some((records, time)) = serving.recovered {
        text.push_str(&format!("\nRecovered {records} records in {} ms.\n", time.as_millis()));
    }
    for warning in &config.warnings {
        text.push_str(&format!("\nWarning: {warning}\n"));
    }
    if serving.io != "io_uring" {
        text.push_str(
            "\nWarning: no io_uring here, so that calls cost more; `prism doctor` says why.\n",
        );
    }
    if let Some(namespace) =
        config.namespaces.iter().find(|namespace| namespace.client_api == ClientApi::KeyValue)
    {
        text.push_str(&try_next(*listen, &namespace.name, config.tls.is_some()));
    }
    text.push_str(&format!(
        "\nReady after {} ms. Ctrl-C drains for up to {} and stops.\n",
        serving.ready_after.as_millis(),
        units::show_duration(config.limits.drain_timeout)
    ));
    text
}

fn promise(level: Durability) -> &'static str {
    match level {
        Durability::Memory => "as durable as the backend; nothing is logged",
        Durability::Wal => "on this disk before the caller hears \"done\"",
        Durability::Strong => "on this disk and confirmed by the backend",
    }
}

fn try_next(listen: SocketAddr, namespace: &str, tls: bool) -> String {
    let mut flags = String::new();
    // An unspecified address is not one to connect to.
    let mut reach = listen;
    if reach.ip().is_unspecified() {
        let loopback: std::net::IpAddr = match reach.ip() {
            std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        reach.set_ip(loopback);
    }
    if reach.to_string() != super::ENDPOINT_DEFAULT {
        flags.push_str(&format!(" --endpoint {reach}"));
    }
    if namespace != super::NAMESPACE_DEFAULT {
        flags.push_str(&format!(" --namespace {namespace}"));
    }
    let mut plain = "-plaintext";
    if tls {
        flags.push_str(" --tls --tls-ca CA.pem");
        plain = "-cacert CA.pem";
    }
    format!(
        "
Try:
  prism kv{flags} set greeting hello
  prism kv{flags} get greeting
  grpcurl {plain} -d '{{\"namespace\": \"{namespace}\", \"key\": \"greeting\"}}' \\
    {reach} prism.keyvalue.v1.KeyValueService/Get
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, Machine, read};

    fn screen(text: &str, change: impl FnOnce(&mut Serving)) -> String {
        let machine = Machine { cores: vec![0, 1], memory_bytes: 8 << 30 };
        let file = (std::path::Path::new("prism.yaml"), text);
        let config = read(Some(file), &Flags::default(), &machine).unwrap();
        let mut serving = Serving {
            listen: config.listen,
            admin: config.admin,
            data_dir: "/srv/prism-data".into(),
            io: "io_uring",
            direct: true,
            sync: Some(("O_DSYNC write", Duration::from_micros(123))),
            recovered: None,
            ready_after: Duration::from_millis(42),
        };
        change(&mut serving);
        first_screen(&config, &serving)
    }

    #[test]
    fn a_newcomer_learns_what_to_type_next() {
        let expected = r#"Prism VERSION serves.

  gRPC   127.0.0.1:7400         with reflection and health
  admin  http://127.0.0.1:7401  /metrics /healthz /readyz /config
  data   /srv/prism-data        log O_DIRECT, O_DSYNC write, 123 µs each when measured
  cores  2 shards on cores 0-1  on io_uring

  namespace  API       backend   durability
  keyvalue   keyvalue  memstore  wal: on this disk before the caller hears "done"
  pubsub     pubsub    memstore  wal: on this disk before the caller hears "done"
  queue      queue     memstore  wal: on this disk before the caller hears "done"
  stream     stream    memstore  wal: on this disk before the caller hears "done"
  reader     reader    theirs    reads keyvalue, queue, stream
  transact   transact  memstore  wal: on this disk before the caller hears "done"

Try:
  prism kv set greeting hello
  prism kv get greeting
  grpcurl -plaintext -d '{"namespace": "keyvalue", "key": "greeting"}' \
    127.0.0.1:7400 prism.keyvalue.v1.KeyValueService/Get

Ready after 42 ms. Ctrl-C drains for up to 10s and stops.
"#;
        assert_eq!(screen("", |_| ()), expected.replace("VERSION", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn with_tls_the_next_commands_speak_it() {
        let text = screen("tls: {certificate: a.pem, key: a.key}", |_| ());
        for part in [
            "TLS 1.3 and 1.2, with reflection",
            "prism kv --tls --tls-ca CA.pem get greeting",
            "grpcurl -cacert CA.pem -d",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn what_is_unusual_is_said() {
        let text = screen(
            "listen: 0.0.0.0:9000\nshards: 3\nnamespaces: [{name: orders, client_api: keyvalue, durability: memory}]",
            |serving| {
                serving.io = "epoll";
                serving.direct = false;
                serving.recovered = Some((1_000, Duration::from_millis(7)));
            },
        );
        for part in [
            "prism kv --endpoint 127.0.0.1:9000 --namespace orders set greeting hello",
            "orders     keyvalue  memstore  memory: as durable as the backend; nothing is logged",
            "log through the page cache",
            "Recovered 1000 records in 7 ms.",
            "Warning: several of the 3 shards share a core",
            "Warning: no io_uring here",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
