//! What a person sees who writes a wrong configuration, to the letter; and that a right one means what it says.

use std::path::Path;
use std::time::Duration;

use super::*;

fn machine() -> Machine {
    Machine { cores: vec![0, 1, 2, 3], memory_bytes: 8 << 30 }
}

pub(super) fn read_text(text: &str) -> Result<Config, ConfigErrors> {
    read(Some((Path::new("prism.yaml"), text)), &Flags::default(), &machine())
}

/// Reads every `=== name` case of the transcript `name` and compares what follows its last `---` with what is shown. With
/// `UPDATE_GOLDEN=1` the transcript is rewritten instead.
pub(crate) fn check_transcript(
    name: &str,
    transcript: &str,
    cases_min: usize,
    show: impl Fn(&str) -> String,
) {
    let mut rewritten = String::new();
    let mut cases = 0;
    for case in transcript.split("=== ").skip(1) {
        let (title, rest) = case.split_once('\n').unwrap();
        let (text, expected) = rest.rsplit_once("---\n").unwrap();
        let shown = show(text);
        rewritten.push_str(&format!("=== {title}\n{text}---\n{shown}\n"));
        if std::env::var_os("UPDATE_GOLDEN").is_none() {
            assert_eq!(shown, expected.trim_end_matches('\n'), "case: {title}");
        }
        cases += 1;
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, rewritten).unwrap();
    }
    assert!(cases >= cases_min, "only {cases} cases were found");
}

#[test]
fn every_wrong_configuration_is_answered_with_place_and_remedy() {
    let transcript = include_str!("../../tests/golden/config_errors.txt");
    check_transcript("config_errors.txt", transcript, 40, |text| match read_text(text) {
        Ok(_) => "accepted".to_string(),
        Err(errors) => errors.to_string(),
    });
}

#[test]
fn without_a_file_everything_has_a_default() {
    let config = read(None, &Flags::default(), &machine()).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:7400");
    assert_eq!(config.admin.to_string(), "127.0.0.1:7401");
    assert_eq!(config.data_dir, Path::new("./prism-data"));
    assert_eq!(config.cores, [0, 1, 2, 3]);
    assert_eq!(config.namespaces.len(), ClientApi::ALL.len());
    assert_eq!(config.namespaces[0].name, "keyvalue");
    assert_eq!(config.namespaces[0].durability, Durability::Wal);
    assert_eq!(config.namespaces[0].idempotency_window, Duration::from_secs(86_400));
    assert_eq!(config.limits.message_bytes_max, 4 << 20);
    assert_eq!(config.memory.bytes_max, 4 << 30);
    assert_eq!(config.warnings, [] as [String; 0]);
    assert_eq!(
        read_text("").unwrap().namespaces,
        config.namespaces,
        "an empty file changes nothing"
    );
}

#[test]
fn a_full_file_means_what_it_says() {
    let config = read_text(
        "listen: 0.0.0.0:7000
admin: \"[::1]:7001\"
data_dir: /var/lib/prism
cores: [0, 2-3]
namespaces:
  - name: orders
    client_api: keyvalue
    durability: strong
    max_message_size: 100KB
    in_flight_bytes_max: 8MiB
    memory_bytes_max: 1GiB
    idempotency_window: 2days
  - { name: cache, client_api: keyvalue, durability: best-effort }
limits:
  message_bytes_max: 1MiB
  connection_bytes_in_flight_max: 2MiB
  namespace_bytes_in_flight_max: 32MiB
  streams: 100
  connections_max: 10_000
  drain_timeout: 1min
  default_deadline: 500ms
grpc:
  compress_bytes_min: 2KiB
  reply_bytes_max: 8MiB
  keepalive_interval: off
  keepalive_timeout: 5s
  ping_interval_min: 5min
  ping_strikes_max: 0
  connection_age_max: 1h
  connection_age_grace: 10s
wal:
  direct: off
  sync: fdatasync
  segment_bytes: 16MiB
  bytes_max: 1GiB
  low_water: 64MiB
  batch_bytes_max: 256KiB
  in_flight: 2
memory: { bytes_max: 2GiB, snapshot_interval: 10min, snapshot_bytes: 128MiB }
log: { level: debug, format: text }
",
    )
    .unwrap();
    assert_eq!(config.listen.to_string(), "0.0.0.0:7000");
    assert_eq!(config.admin.to_string(), "[::1]:7001");
    assert_eq!(config.cores, [0, 2, 3]);
    let orders = &config.namespaces[0];
    assert_eq!((orders.durability, orders.max_message_size), (Durability::Strong, 100_000));
    assert_eq!((orders.in_flight_bytes_max, orders.memory_bytes_max), (8 << 20, 1 << 30));
    assert_eq!(orders.idempotency_window, Duration::from_secs(172_800));
    let cache = &config.namespaces[1];
    assert_eq!((cache.durability, cache.in_flight_bytes_max), (Durability::Memory, 32 << 20));
    assert_eq!(config.limits.streams, 100);
    assert_eq!(
        config.grpc,
        Grpc {
            compress_bytes_min: Some(2 << 10),
            reply_bytes_max: 8 << 20,
            keepalive_interval: None,
            keepalive_timeout: Duration::from_secs(5),
            ping_interval_min: Duration::from_secs(300),
            ping_strikes_max: 0,
            connection_age_max: Some(Duration::from_secs(3600)),
            connection_age_grace: Duration::from_secs(10),
        }
    );
    assert_eq!(config.limits.default_deadline, Duration::from_millis(500));
    assert_eq!((config.wal.direct, config.wal.sync), (Direct::Off, Sync::Fdatasync));
    assert_eq!((config.wal.batch_bytes_max, config.wal.in_flight), (256 << 10, 2));
    assert_eq!(config.memory.snapshot_bytes, 128 << 20);
    assert_eq!((config.log.level, config.log.format), (Level::Debug, LogFormat::Text));
}

#[test]
fn what_is_shown_reads_back_as_the_same_configuration() {
    for text in [
        "",
        "shards: 7",
        "cores: 2\nwal: {sync: dsync}\nlog: {level: error}\nnamespaces: [{name: a, client_api: keyvalue}]",
        "transport: {pings: 7 + 3/s, slow_writer_min: 0 / 1min, headers_timeout: 1500ms, frame_bytes_max: 17KiB}",
        "data_dir: \"a b: \\\"c\\\"\"\nlimits: {default_deadline: 1500ms, drain_timeout: 0}",
        "backends: [{name: cache, type: redis, address: \"[::1]:6379\", database: 3}]\nnamespaces: [{name: a, client_api: keyvalue, \
         backend: cache, durability: memory}]",
        "backends: [{name: cache, type: redis, address: \"a.internal:6379\", cluster: true, addresses: [\"b.internal:6380\", \"[::1]:1\"]}]\n\
         namespaces: [{name: a, client_api: queue, backend: cache, durability: memory}]",
        "backends: [{name: db, type: postgres, address: \"db.internal:5432\", user: \"a b\", database: orders, pool: 3}]",
        "backends: [{name: log, type: kafka, brokers: [\"a.internal:9092\", \"[::1]:9093\"], tls: {}, partitions: 12, replication: 3, \
         retention: 30days, linger: 2ms, readers_max: 7}]",
        "backends: [{name: bus, type: nats, address: \"a:4222\", others: [\"b:4222\", \"[::1]:4223\"], replicas: 3}]",
        "backends: [{name: bus, type: nats, address: \"[::1]:4222\", inbox_prefix: _INBOX.prism}]\nnamespaces: [{name: a, \
         client_api: keyvalue, backend: bus, durability: strong}]",
    ] {
        // What is shown lists the namespaces, so that nothing is applied beside them.
        let config = Config { planned: None, ..read_text(text).unwrap() };
        assert_eq!(read_text(&config.to_string()).as_ref(), Ok(&config), "{config}");
    }
}

#[test]
fn what_a_redis_cluster_does_not_offer_is_refused_by_name() {
    let read = |backend: &str, namespace: &str| {
        let text = format!(
            "backends: [{{name: cache, type: redis, {backend}}}]\nnamespaces: [{{name: a, backend: cache, {namespace}}}]"
        );
        read_text(&text).map_err(|errors| format!("{errors:?}"))
    };
    let (at, keys) = ("address: \"a:1\"", "client_api: keyvalue, durability: memory");
    let cluster = format!("{at}, cluster: true");
    assert!(read(&cluster, "client_api: queue, durability: strong").is_ok());
    for good in [&cluster, "addresses: [\"a:1\", \"b:2\"]", at] {
        assert!(read(good, keys).is_ok(), "{good}");
    }
    for (backend, namespace, wrong) in [
        (&*cluster, "client_api: stream, durability: memory", "does not serve `stream`"),
        (&*cluster, "client_api: pubsub, durability: memory, topics: log", "`topics: log` means"),
        (&format!("{cluster}, database: 2"), keys, "a cluster has no database 2"),
        (&format!("{at}, cluster: no"), keys, "`no` is not known here"),
        ("addresses: [\"a:1\"], cluster: false", keys, "`addresses` are those of a cluster"),
        ("addresses: [\"a\"]", keys, "is not a host and a port"),
        ("database: 1", keys, "has no `address`"),
    ] {
        let refused = read(backend, namespace).expect_err(wrong);
        assert!(refused.contains(wrong), "{wrong}: {refused}");
    }
}

#[test]
fn tls_to_a_backend_reads_its_files_and_says_what_does_not_fit() {
    let read = |tls: &str| {
        read_text(&format!(
            "backends: [{{name: cache, type: redis, address: \"localhost:6379\", tls: {tls}}}]"
        ))
    };
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (ca, key) = (folder.path().join("ca.pem"), folder.path().join("key.pem"));
    std::fs::write(&ca, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (ca, key) = (ca.display(), key.display());
    let whole = format!("{{ca: {ca}, certificate: {ca}, key: {key}, server_name: redis.internal}}");
    let config = read(&whole).unwrap();
    assert!(config.to_string().contains("server_name: \"redis.internal\""), "{config}");
    assert_eq!(read_text(&config.to_string()).as_ref(), Ok(&config), "{config}");
    for (tls, says) in [
        (format!("{{ca: {ca}, key: {key}}}"), "only one of `certificate` and `key`"),
        ("{ca: /nowhere/ca.pem}".to_owned(), "/nowhere/ca.pem"),
        (format!("{{ca: {ca}, server_name: two words}}"), "neither a host name nor an address"),
    ] {
        let errors = read(&tls).unwrap_err();
        assert!(format!("{errors:?}").contains(says), "{tls}: {errors:?}");
    }
}

#[test]
fn a_login_to_nats_is_read_from_files_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "s3cret\n").unwrap();
    let read = |login: &str| {
        let login = login.replace("FILE", &secret.display().to_string());
        read_text(&format!(
            "backends: [{{name: bus, type: nats, address: \"nats:4222\", {login}}}]"
        ))
    };
    for login in [
        "user: a, password_file: FILE",
        "token_file: FILE",
        "credentials_file: FILE",
        "nkey_file: FILE",
    ] {
        let config = read(login).unwrap();
        let BackendKind::Nats(nats) = &config.backends[1].kind else { panic!("{login}") };
        assert!(nats.login.is_some(), "{login}");
        assert!(!format!("{config} {config:?}").contains("s3cret"), "{login}");
    }
    for (login, says) in [
        ("user: a", "no `password_file`"),
        ("password_file: FILE", "no `user`"),
        ("token_file: FILE, nkey_file: FILE", "more than one way"),
        ("token_file: /nowhere/token", "/nowhere/token"),
        ("inbox_prefix: \"a b\"", "no subject"),
        ("replicas: 6", "replicas"),
        ("others: [nowhere]", "others"),
        ("tls: {key: FILE}", "only one of"),
    ] {
        let errors = format!("{:?}", read(login).unwrap_err());
        assert!(errors.contains(says), "{login}: {errors}");
    }
}

/// The example shows every bound of the transport, each with its default.
#[test]
fn the_example_has_the_transport_as_it_is() {
    let example = include_str!("../../../examples/prism.yaml");
    let (shown, default) = (read_text(example).unwrap(), read_text("").unwrap());
    assert_eq!(shown.transport, default.transport);
    let text = default.to_string();
    let section = text.split("transport:\n").nth(1).unwrap();
    for line in section.lines().take_while(|line| line.starts_with("  ")) {
        let key = line.split(':').next().unwrap();
        assert!(example.lines().any(|line| line.starts_with(&format!("{key}:"))), "{key}");
        let page = include_str!("../../../docs/transport.md");
        assert!(page.contains(&format!("`{}`", key.trim())), "docs/transport.md: {key}");
    }
}

#[test]
fn the_transport_means_what_it_says() {
    let config = read_text(
        "limits: {message_bytes_max: 32MiB, streams: 7}
wal: {segment_bytes: 128MiB}
transport: {peer_resets: 5+1/s, idle_timeout: 1h, slow_reader_min: 0 / 9s, connections_per_peer_max: 3}",
    )
    .unwrap();
    let connection = config.transport.connection;
    assert_eq!((connection.peer_resets.burst, connection.peer_resets.per_second), (5, 1));
    assert_eq!(connection.idle_timeout_ns, 3_600_000_000_000);
    assert_eq!(
        (connection.slow_reader_min.bytes, config.transport.connections_per_peer_max),
        (0, 3)
    );
    assert_eq!((connection.message_bytes_max, connection.streams_max), (32 << 20, 7));
    assert_eq!(connection.gather_bytes_max, 32 << 20, "one message always fits");
}

#[test]
fn flags_stand_over_the_file_and_are_named_in_errors() {
    let flags = Flags {
        listen: Some("127.0.0.1:9000".into()),
        shards: Some("2".into()),
        busy_poll: Some("50us".into()),
        log_format: Some("text".into()),
        ..Flags::default()
    };
    let file = (Path::new("prism.yaml"), "listen: 127.0.0.1:8000\nshards: 4\nlog: {format: json}");
    let config = read(Some(file), &flags, &machine()).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:9000");
    assert_eq!(config.cores, [0, 1]);
    assert_eq!(config.busy_poll, Duration::from_micros(50));
    assert_eq!(config.log.format, LogFormat::Text);

    let flags = Flags {
        listen: Some("here".into()),
        shards: Some("0".into()),
        cores: Some("9".into()),
        log_level: Some("wran".into()),
        ..Flags::default()
    };
    let shown = read(None, &flags, &machine()).unwrap_err().to_string();
    let expected = "\
--cores: cores: this process may not run on core 9
    the cores here are 0-3
--listen: `here` is not an address to listen on
    write an IP address and a port, such as 127.0.0.1:7400 or [::1]:7400
--log-level: `wran` is not one of error, warn, info, debug, trace
    did you mean `warn`?
--shards: `0` is not a number from 1 to 256
    write a whole number from 1 to 256";
    assert_eq!(shown, expected);
}

#[test]
fn shards_that_share_a_core_are_accepted_with_a_warning() {
    let config = read_text("shards: 6").unwrap();
    assert_eq!(config.cores, [0, 1, 2, 3, 0, 1]);
    assert_eq!(config.warnings.len(), 1);
    let config = read_text("memory: {bytes_max: 9GiB}").unwrap();
    assert_eq!(
        config.warnings,
        ["memory.bytes_max is 9GiB, but this process may only use 8GiB".to_string()]
    );
}

#[test]
fn files_that_cannot_be_read_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let load = |path: &Path| load(Some(path), &Flags::default()).unwrap_err().to_string();
    let missing = directory.path().join("none.yaml");
    assert!(load(&missing).contains("none.yaml: the file cannot be read: No such file"));
    let binary = directory.path().join("binary.yaml");
    std::fs::write(&binary, b"listen: \xff").unwrap();
    assert!(load(&binary).contains("binary.yaml: the file is not UTF-8 text (byte 8)"));
    let large = directory.path().join("large.yaml");
    std::fs::write(&large, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(load(&large).contains("large.yaml: the file is larger than 1MiB"));
}

#[test]
fn names_of_namespaces_are_bounded() {
    for good in ["a", "orders", "order-processing-2", &"a".repeat(63)] {
        assert!(namespace_name_valid(good), "{good}");
    }
    for bad in ["", "A", "1a", "-a", "a_b", "a.b", "ä", &"a".repeat(64)] {
        assert!(!namespace_name_valid(bad), "{bad}");
    }
}
