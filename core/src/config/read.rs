//! From text to a checked [`Config`]: every key, its bounds and its default, in one pure function.
//!
//! Sections are read in the order in which they are documented. Relations between settings are checked after both
//! are known, at the place of the one that was written.

use prism_adapters::kafka::TopicShape;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use prism_proto::catalogue::Interfaces;

use super::described::Switch;
use super::error::{ConfigError, ConfigErrors, Origin, Problem, nearest};
use super::grpc;
use super::quotas;
use super::readers;
use super::transport::read_transport;
use super::tree::{self, FILE_BYTES_MAX, Node, Report, Section, Setting, Value};
use super::units::{self, show_bytes, show_duration};
use super::web;
use super::{
    Backend, ClientApi, Config, Direct, Durability, Flags, IDEMPOTENCY_WINDOW_MAX,
    IDEMPOTENCY_WINDOW_MIN, Level, Limits, Log, LogFormat, Machine, Memory, NAMESPACES_MAX,
    Namespace, PlannedFrom, Quotas, SHARDS_MAX, Sync, Tls, TlsClients, Topics, Unprotected, Wal,
    parse_cores,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A message holds at least a short value beside what comes with it, a key of full length included.
pub(crate) const MESSAGE_BYTES_MIN: u64 = 4 * KIB;
const _: () =
    assert!(MESSAGE_BYTES_MIN > prism_adapters::limits::MESSAGE_OVERHEAD_BYTES_MAX as u64);

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7400);
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7401);
const DATA_DIR: &str = "./prism-data";

/// Segments that each shard's log needs at least: one to write, one to trim, one in reserve, and the internal one.
const SEGMENTS_PER_SHARD_MIN: u64 = 4;

/// Log writes in flight per shard, at most.
const WRITES_IN_FLIGHT_MAX: u32 = prism_wal::WRITES_IN_FLIGHT_MAX as u32;

/// Reads the file at `path`, if there is one to read, and this machine, then calls [`read`].
pub fn load(path: Option<&Path>, flags: &Flags) -> Result<Config, ConfigErrors> {
    let remedy = "check the path given to --config, and that this user may read it";
    let text = match path {
        None => None,
        Some(path) => Some((path, read_file(path, remedy)?)),
    };
    read(text.as_ref().map(|(path, text)| (*path, text.as_str())), flags, &Machine::read())
}

/// The text of a file, with `remedy` for what may be done where it cannot be read.
pub(super) fn read_file(path: &Path, remedy: &str) -> Result<String, ConfigErrors> {
    let refuse = |message: String, remedy: &str| ConfigErrors {
        file: path.display().to_string(),
        errors: vec![ConfigError { origin: Origin::File, message, remedy: remedy.into() }],
    };
    let unreadable =
        |error: std::io::Error| refuse(format!("the file cannot be read: {error}"), remedy);
    let before = std::fs::metadata(path).map_err(unreadable)?;
    if before.len() > FILE_BYTES_MAX {
        let message = format!("the file is larger than {}", show_bytes(FILE_BYTES_MAX));
        return Err(refuse(message, "is this the right file?"));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let after = std::fs::metadata(path).map_err(unreadable)?;
    if before.is_file()
        && (bytes.len() as u64 != after.len() || before.modified().ok() != after.modified().ok())
    {
        let message = "the file changed while it was read".to_owned();
        return Err(refuse(message, "try again; replace files as a whole (`mv`), never in place"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let message = format!("the file is not UTF-8 text (byte {offset})");
        refuse(message, "save it as UTF-8")
    })
}

/// Turns a file's text, the flags over it and the machine's facts into a configuration, or into everything that is
/// wrong with it. Reads nothing else.
pub fn read(
    file: Option<(&Path, &str)>,
    flags: &Flags,
    machine: &Machine,
) -> Result<Config, ConfigErrors> {
    let name = file.map(|(path, _)| path.display().to_string()).unwrap_or_default();
    let tree = match file {
        None => Node { origin: Origin::Default, value: Value::Nothing },
        Some((_, text)) => match tree::parse(text) {
            Ok(tree) => tree,
            Err(error) => return Err(ConfigErrors { file: name, errors: vec![error] }),
        },
    };
    let report = Report::default();
    let config = read_all(&tree, flags, machine, &report);
    let (errors, warnings) = report.finish();
    if !errors.is_empty() {
        return Err(ConfigErrors { file: name, errors });
    }
    Ok(Config { file: file.map(|(path, _)| path.to_path_buf()), warnings, ..config })
}

/// Longer than this is no waiting for the next call any more, but a core that never sleeps.
const BUSY_POLL_MAX: Duration = Duration::from_millis(10);

fn read_all(tree: &Node, flags: &Flags, machine: &Machine, report: &Report) -> Config {
    let top = Section::new(tree, "", report);
    let listen = top.value("listen", LISTEN, address);
    let listen = over("listen", listen, &flags.listen, address, report);
    let admin = top.value("admin", ADMIN, address);
    let admin = over("admin", admin, &flags.admin, address, report);
    if listen.value == admin.value && listen.value.port() != 0 {
        let message = format!("listen and admin are both {}", listen.value);
        report.error(
            listen.origin.max(admin.origin),
            Problem::new(message, "give one of them another port"),
        );
    }
    let tls = read_tls(top.section("tls"), flags, report);
    let unprotected = read_unprotected(top.section("unprotected"));
    let data_dir = top.value("data_dir", PathBuf::from(DATA_DIR), directory);
    let data_dir = over("data-dir", data_dir, &flags.data_dir, directory, report);
    let cores = read_cores(&top, flags, machine, report);
    let backends = super::backends::read(top.sections("backends"), report);
    let busy_poll = span(Duration::ZERO, BUSY_POLL_MAX);
    let setting = top.value("busy_poll", Duration::ZERO, &busy_poll);
    let busy_poll = over("busy-poll", setting, &flags.busy_poll, &busy_poll, report).value;
    let namespaces = top.sections("namespaces");
    let planned = read_planned(&top, report);
    let limits = read_limits(top.section("limits"), report);
    let grpc = grpc::read(top.section("grpc"), report);
    let transport = read_transport(top.section("transport"), &limits, report);
    let web = web::read(top.section("web"), report);
    let wal = read_wal(top.section("wal"), cores.len() as u64, limits.message_bytes_max, report);
    let memory = read_memory(top.section("memory"), machine, report);
    let log = read_log(top.section("log"), flags, report);
    let audit = super::audit::read(top.section("audit"), report);
    let namespaces = match namespaces {
        None => ClientApi::ALL
            .iter()
            .map(|api| Namespace {
                name: api.name().to_string(),
                client_api: *api,
                backend: 0,
                durability: Durability::Wal,
                topics: Topics::Volatile,
                max_message_size: limits.message_bytes_max,
                in_flight_bytes_max: limits.namespace_bytes_in_flight_max,
                memory_bytes_max: memory.bytes_max,
                backlog_records_max: BACKLOG_RECORDS,
                quotas: Quotas::default(),
                audit_logging: false,
                idempotency_window: IDEMPOTENCY_WINDOW,
                home: None,
                topic_shape: TopicShape::default(),
                reads: readers::default(*api),
            })
            .collect(),
        Some((origin, sections)) => {
            read_namespaces(origin, sections, &backends, &limits, &memory, report)
        }
    };
    top.finish();
    Config {
        file: None,
        listen: listen.value,
        tls,
        unprotected,
        admin: admin.value,
        data_dir: data_dir.value,
        cores,
        backends,
        busy_poll,
        planned,
        asked: Vec::new(),
        namespaces,
        limits,
        grpc,
        transport,
        web,
        wal,
        memory,
        log,
        audit,
        warnings: Vec::new(),
    }
}

/// What namespaces are planned from; what it decides is not said here too. Where the file says neither which namespaces nor
/// which backends there are, they are applied.
fn read_planned(top: &Section<'_>, report: &Report) -> Option<PlannedFrom> {
    let path = |text: &str| match text.is_empty() || text.contains('\0') {
        true => Err(Problem::new("it is not a path", "write the path of a file or folder")),
        false => Ok(PathBuf::from(text)),
    };
    let requests = top.optional("requests", path);
    let platform = top.optional("platform", path);
    let key = match (&requests, &platform) {
        (Some(requests), _) => Some(("requests", requests.origin)),
        (None, Some(platform)) => Some(("platform", platform.origin)),
        (None, None) => None,
    };
    let Some((named, origin)) = key else {
        let is_listed = ["namespaces", "backends", "requests", "platform"];
        let is_applied = is_listed.iter().all(|key| top.lacks(key));
        return is_applied.then_some(PlannedFrom { requests: None, platform: None });
    };
    for (key, instead) in
        [("namespaces", "ask for them there"), ("backends", "declare them in `platform`")]
    {
        if !top.lacks(key) {
            let instead = match (named, key) {
                ("platform", "namespaces") => "ask for them with `prism apply`",
                _ => instead,
            };
            let message = format!("`{named}` and `{key}` stand beside each other");
            let remedy = format!("leave `{key}` out and {instead}, or leave `{named}` out");
            report.error(origin, Problem::new(message, remedy));
        }
    }
    Some(PlannedFrom {
        requests: requests.map(|requests| requests.value),
        platform: platform.map(|platform| platform.value),
    })
}

/// A flag's value stands over the file's.
fn over<T>(
    name: &'static str,
    setting: Setting<T>,
    flag: &Option<String>,
    parse: impl Fn(&str) -> Result<T, Problem>,
    report: &Report,
) -> Setting<T> {
    let Some(text) = flag else {
        return setting;
    };
    match parse(text) {
        Ok(value) => Setting { value, origin: Origin::Flag(name) },
        Err(problem) => {
            report.error(Origin::Flag(name), problem);
            setting
        }
    }
}

/// The core of each shard.
fn read_cores(top: &Section<'_>, flags: &Flags, machine: &Machine, report: &Report) -> Vec<usize> {
    let shards = top.optional("shards", shards);
    let cores = top.list("cores", cores);
    let shards = over_optional("shards", shards, &flags.shards, self::shards, report);
    let cores = over_optional("cores", cores, &flags.cores, self::cores, report);
    let cores = match (shards, cores) {
        (None, None) => machine.cores.iter().copied().take(SHARDS_MAX).collect(),
        (Some(shards), None) => machine.cores.iter().copied().cycle().take(shards.value).collect(),
        (None, Some(cores)) => check_cores(cores, machine, report),
        (Some(shards), Some(cores)) => {
            if shards.value != cores.value.len() {
                let message =
                    format!("shards is {}, but cores names {}", shards.value, cores.value.len());
                let remedy = "leave one of them out, or name as many cores as there are shards";
                report.error(shards.origin.max(cores.origin), Problem::new(message, remedy));
            }
            check_cores(cores, machine, report)
        }
    };
    let mut sorted = cores.clone();
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        report.warn(format!(
            "several of the {} shards share a core; each shard is meant to have one of its own",
            cores.len()
        ));
    }
    cores
}

fn over_optional<T>(
    name: &'static str,
    setting: Option<Setting<T>>,
    flag: &Option<String>,
    parse: impl Fn(&str) -> Result<T, Problem>,
    report: &Report,
) -> Option<Setting<T>> {
    let Some(text) = flag else {
        return setting;
    };
    match parse(text) {
        Ok(value) => Some(Setting { value, origin: Origin::Flag(name) }),
        Err(problem) => {
            report.error(Origin::Flag(name), problem);
            setting
        }
    }
}

fn check_cores(cores: Setting<Vec<usize>>, machine: &Machine, report: &Report) -> Vec<usize> {
    if let Some(core) = cores.value.iter().find(|core| !machine.cores.contains(core)) {
        let message = format!("cores: this process may not run on core {core}");
        let remedy = format!("the cores here are {}", super::show_cores(&machine.cores));
        report.error(cores.origin, Problem::new(message, remedy));
    }
    cores.value
}

fn read_tls(section: Option<Section<'_>>, flags: &Flags, report: &Report) -> Option<Tls> {
    let nothing = Node { origin: Origin::Default, value: Value::Nothing };
    let asked = section.is_some();
    let section = section.unwrap_or_else(|| Section::new(&nothing, "tls", report));
    let in_file = (section.optional("certificate", file), section.optional("key", file));
    let handshakes_max = section.value("handshakes_max", 1_024, count(1, 65_536)).value;
    let handshake_timeout =
        section.value("handshake_timeout", seconds(10), span(millis(100), seconds(300))).value;
    let authorities = section.optional("client_authorities", file);
    let required = section.optional("client_certificates", |text| {
        one_of(text, [("required", true), ("optional", false)])
    });
    if let (Some(required), true) = (&required, section.lacks("client_authorities")) {
        let message = "tls.client_certificates without tls.client_authorities";
        let remedy = "name the PEM file of those who sign the clients' certificates";
        report.error(required.origin, Problem::new(message, remedy));
    }
    let revoked = section.optional("client_revocations", file);
    if let (Some(revoked), true) = (&revoked, section.lacks("client_authorities")) {
        let message = "tls.client_revocations without tls.client_authorities";
        let remedy = "name the PEM file of those who sign the clients' certificates";
        report.error(revoked.origin, Problem::new(message, remedy));
    }
    let clients = authorities.map(|authorities| TlsClients {
        authorities: authorities.value,
        required: required.is_none_or(|required| required.value),
        revoked: revoked.map(|revoked| revoked.value),
    });
    let (certificate_named, key_named) = (
        !section.lacks("certificate") || flags.tls_cert.is_some(),
        !section.lacks("key") || flags.tls_key.is_some(),
    );
    let origin = section.origin;
    section.finish();
    let certificate = over_optional("tls-cert", in_file.0, &flags.tls_cert, file, report);
    let key = over_optional("tls-key", in_file.1, &flags.tls_key, file, report);
    let lacks = |origin, what: &str, remedy: &str| {
        report.error(origin, Problem::new(format!("tls has no {what}"), remedy));
    };
    const CERTIFICATE: &str =
        "name its PEM file with tls.certificate or --tls-cert, or leave TLS out";
    const KEY: &str = "name its PEM file with tls.key or --tls-key, or leave TLS out";
    match (certificate, key) {
        (Some(certificate), Some(key)) => {
            return Some(Tls {
                certificate: certificate.value,
                key: key.value,
                clients,
                handshakes_max,
                handshake_timeout,
            });
        }
        // What was named and could not be read has been reported.
        (Some(certificate), None) if !key_named => lacks(certificate.origin, "key", KEY),
        (None, Some(key)) if !certificate_named => lacks(key.origin, "certificate", CERTIFICATE),
        (None, None) if asked && !certificate_named && !key_named => {
            lacks(origin, "certificate", CERTIFICATE);
        }
        _ => {}
    }
    None
}

fn read_unprotected(section: Option<Section<'_>>) -> Unprotected {
    let Some(section) = section else { return Unprotected::default() };
    let allowed = |text: &str| one_of(text, [("allowed", true), ("refused", false)]);
    let unprotected = Unprotected {
        plaintext: section.value("plaintext", false, allowed).value,
        anonymous: section.value("anonymous", false, allowed).value,
    };
    section.finish();
    unprotected
}

fn read_limits(section: Option<Section<'_>>, report: &Report) -> Limits {
    let nothing = Node { origin: Origin::Default, value: Value::Nothing };
    let section = section.unwrap_or_else(|| Section::new(&nothing, "limits", report));
    let message = section.value("message_bytes_max", 4 * MIB, size(MESSAGE_BYTES_MIN, 64 * MIB));
    let in_flight = size(MIB, 64 * GIB);
    let default = (16 * MIB).max(message.value);
    let connection = section.value("connection_bytes_in_flight_max", default, &in_flight);
    let default = (64 * MIB).max(message.value);
    let namespace = section.value("namespace_bytes_in_flight_max", default, &in_flight);
    for (key, setting) in [
        ("connection_bytes_in_flight_max", connection),
        ("namespace_bytes_in_flight_max", namespace),
    ] {
        if setting.value < message.value {
            let message = format!(
                "limits.{key}: {} is less than one message of {}",
                show_bytes(setting.value),
                show_bytes(message.value)
            );
            let remedy = "raise it to at least message_bytes_max";
            report.error(setting.origin, Problem::new(message, remedy));
        }
    }
    let limits = Limits {
        message_bytes_max: message.value,
        json_bytes_max: section.value("json_bytes_max", MIB, size(KIB, 64 * MIB)).value,
        connection_bytes_in_flight_max: connection.value,
        namespace_bytes_in_flight_max: namespace.value,
        streams: section.value("streams", 1_024, count(1, 65_536)).value,
        connections_max: section.value("connections_max", 16_384, count(1, 1_000_000)).value,
        drain_timeout: section
            .value("drain_timeout", seconds(10), span(Duration::ZERO, seconds(3_600)))
            .value,
        default_deadline: section
            .value("default_deadline", seconds(30), span(millis(1), seconds(3_600)))
            .value,
    };
    section.finish();
    limits
}

fn read_wal(
    section: Option<Section<'_>>,
    shards: u64,
    message_bytes_max: u64,
    report: &Report,
) -> Wal {
    let nothing = Node { origin: Origin::Default, value: Value::Nothing };
    let section = section.unwrap_or_else(|| Section::new(&nothing, "wal", report));
    let direct = section.value("direct", Direct::Preferred, |text| {
        one_of(text, [Direct::Preferred, Direct::Required, Direct::Off].map(|d| (d.name(), d)))
    });
    let sync = section.value("sync", Sync::Auto, |text| {
        one_of(text, [Sync::Auto, Sync::Dsync, Sync::Fdatasync].map(|s| (s.name(), s)))
    });
    let segment = section.value("segment_bytes", 64 * MIB, |text| {
        let bytes = size(MIB, 4 * GIB)(text)?;
        if !bytes.is_multiple_of(4 * KIB) {
            let rounded = show_bytes(bytes.next_multiple_of(4 * KIB));
            return Err(Problem::new(
                format!("{} is not a multiple of 4KiB", show_bytes(bytes)),
                format!("write {rounded}"),
            ));
        }
        Ok(bytes)
    });
    let record_max = message_bytes_max + 64 * KIB;
    if segment.value / 2 < record_max {
        let message = format!(
            "wal.segment_bytes: {} is less than twice a message of {}",
            show_bytes(segment.value),
            show_bytes(message_bytes_max)
        );
        let remedy = "raise it, or lower limits.message_bytes_max";
        report.error(segment.origin, Problem::new(message, remedy));
    }
    let bytes_min = segment.value * shards * SEGMENTS_PER_SHARD_MIN;
    let bytes = section.value("bytes_max", (4 * GIB).max(2 * bytes_min), size(4 * MIB, 1 << 50));
    if bytes.value < bytes_min {
        let message = format!(
            "wal.bytes_max: {} is less than {SEGMENTS_PER_SHARD_MIN} segments of {} for each of {shards} shards",
            show_bytes(bytes.value),
            show_bytes(segment.value)
        );
        let remedy = format!("raise it to {} or lower wal.segment_bytes", show_bytes(bytes_min));
        report.error(bytes.origin.min(segment.origin), Problem::new(message, remedy));
    }
    let low_water_min = segment.value * shards;
    let low_water = section.value("low_water", low_water_min, size(0, 1 << 50));
    if low_water.value < low_water_min || low_water.value > bytes.value / 2 {
        let message = format!(
            "wal.low_water: {} is not between one segment for each shard ({}) and half of wal.bytes_max ({})",
            show_bytes(low_water.value),
            show_bytes(low_water_min),
            show_bytes(bytes.value / 2)
        );
        if low_water.origin != Origin::Default {
            let remedy = "leave it out for the default";
            report.error(low_water.origin, Problem::new(message, remedy));
        }
    }
    let batch_max = segment.value / 4;
    let batch = section.value("batch_bytes_max", MIB.min(batch_max), size(4 * KIB, batch_max));
    let wal = Wal {
        direct: direct.value,
        sync: sync.value,
        segment_bytes: segment.value,
        bytes_max: bytes.value,
        low_water: low_water.value,
        batch_bytes_max: batch.value,
        in_flight: section.value("in_flight", 1, count(1, WRITES_IN_FLIGHT_MAX)).value,
    };
    section.finish();
    wal
}

fn read_memory(section: Option<Section<'_>>, machine: &Machine, report: &Report) -> Memory {
    let nothing = Node { origin: Origin::Default, value: Value::Nothing };
    let section = section.unwrap_or_else(|| Section::new(&nothing, "memory", report));
    let default = machine.memory_bytes / 2;
    let bytes = section.value("bytes_max", default, size(MIB, 1 << 50));
    if bytes.value > machine.memory_bytes {
        report.warn(format!(
            "memory.bytes_max is {}, but this process may only use {}",
            show_bytes(bytes.value),
            units::round_bytes(machine.memory_bytes)
        ));
    }
    let memory = Memory {
        bytes_max: bytes.value,
        snapshot_interval: section
            .value("snapshot_interval", seconds(300), span(seconds(1), seconds(7 * 86_400)))
            .value,
        snapshot_bytes: section.value("snapshot_bytes", 256 * MIB, size(MIB, 1 << 50)).value,
    };
    section.finish();
    memory
}

fn read_log(section: Option<Section<'_>>, flags: &Flags, report: &Report) -> Log {
    let nothing = Node { origin: Origin::Default, value: Value::Nothing };
    let section = section.unwrap_or_else(|| Section::new(&nothing, "log", report));
    let level = |text: &str| {
        use Level::{Debug, Error, Info, Trace, Warn};
        one_of(text, [Error, Warn, Info, Debug, Trace].map(|level| (level.name(), level)))
    };
    let format = |text: &str| {
        one_of(text, [LogFormat::Json, LogFormat::Text].map(|format| (format.name(), format)))
    };
    let in_file = (
        section.value("level", Level::Info, level),
        section.value("format", LogFormat::Json, format),
    );
    section.finish();
    Log {
        level: over("log-level", in_file.0, &flags.log_level, level, report).value,
        format: over("log-format", in_file.1, &flags.log_format, format, report).value,
    }
}

pub(crate) const IDEMPOTENCY_WINDOW: Duration = Duration::from_secs(86_400);
/// Logged writes that may wait for an outside backend, unless the namespace says otherwise.
pub(crate) const BACKLOG_RECORDS: u64 = 1_000_000;

fn read_namespaces(
    origin: Origin,
    sections: Vec<Section<'_>>,
    backends: &[Backend],
    limits: &Limits,
    memory: &Memory,
    report: &Report,
) -> Vec<Namespace> {
    if sections.is_empty() || sections.len() > NAMESPACES_MAX {
        let message = format!("namespaces lists {}, not 1 to {NAMESPACES_MAX}", sections.len());
        let remedy = "leave the key out for one namespace of each model, named after it";
        report.error(origin, Problem::new(message, remedy));
    }
    let mut namespaces: Vec<Namespace> = Vec::with_capacity(sections.len());
    let mut named = Vec::with_capacity(sections.len());
    for section in sections {
        let name = section.optional("name", namespace_name);
        let client_api = section.optional("client_api", client_api);
        for (key, missing) in [("name", name.is_none()), ("client_api", client_api.is_none())] {
            if missing && section.lacks(key) {
                let message = format!("{} has no `{key}`", section.path());
                let remedy = match key {
                    "name" => "add a line such as `name: orders`",
                    _ => "add a line such as `client_api: keyvalue`",
                };
                report.error(section.origin, Problem::new(message, remedy));
            }
        }
        let backend = section.value("backend", 0, |text| backend(text, backends));
        let durability = section.value("durability", Durability::Wal, durability);
        let of = &backends[backend.value];
        let topics = section.value("topics", Topics::Volatile, topics);
        if durability.value > of.durability_max() {
            let message = format!(
                "durability `{}` is not offered on backend `{}` ({}) yet",
                durability.value.name(),
                of.name,
                of.type_name()
            );
            let remedy = format!(
                "write `durability: {}`, or leave `backend` out for the embedded store",
                of.durability_max().name()
            );
            let origin = match durability.origin {
                Origin::Default => backend.origin,
                place => place,
            };
            report.error(origin, Problem::new(message, remedy));
        }
        let message = section.value(
            "max_message_size",
            limits.message_bytes_max,
            size(MESSAGE_BYTES_MIN, limits.message_bytes_max),
        );
        let in_flight = section.value(
            "in_flight_bytes_max",
            limits.namespace_bytes_in_flight_max.max(message.value),
            size(message.value, 64 * GIB),
        );
        let memory = section.value("memory_bytes_max", memory.bytes_max, size(0, memory.bytes_max));
        let backlog =
            section.value("backlog_records_max", BACKLOG_RECORDS, count(1, 1_000_000_000_000));
        let quotas = quotas::read(&section);
        let audit_logging = quotas::one(&section, "audit_logging").is_some_and(|Switch(on)| on);
        let window = section.value(
            "idempotency_window",
            IDEMPOTENCY_WINDOW,
            span(IDEMPOTENCY_WINDOW_MIN, IDEMPOTENCY_WINDOW_MAX),
        );
        let reads = section.list("reads", readers::names);
        section.finish();
        let (Some(name), Some(client_api)) = (name, client_api) else {
            continue;
        };
        let api = client_api.value;
        if let Some(reads) = reads.as_ref().filter(|_| api != ClientApi::Reader) {
            let message = format!("`reads` means nothing for `{}`", api.name());
            let remedy = "leave it out, or write `client_api: reader`";
            report.error(reads.origin, Problem::new(message, remedy));
        }
        if topics.value == Topics::Log && !(of.keeps(Topics::Log) && api == ClientApi::PubSub) {
            let message = format!(
                "`topics: log` means nothing for `{}` on backend `{}` ({})",
                api.name(),
                of.name,
                of.type_name()
            );
            let remedy =
                "leave it out, or write `client_api: pubsub` and name a backend of type redis";
            report.error(topics.origin, Problem::new(message, remedy));
        }
        let served = of.offers(api, topics.value);
        let reads_others = api == ClientApi::Reader && reads.is_some();
        if !reads_others && (served == Interfaces::NONE || !served.contains_all(api.needs())) {
            let api = client_api.value.name();
            let message =
                format!("backend `{}` ({}) does not serve `{api}` yet", of.name, of.type_name());
            let remedy = "name another backend; `prism interfaces` lists what each serves";
            report.error(client_api.origin, Problem::new(message, remedy));
        }
        if namespaces.iter().any(|other| other.name == name.value) {
            let message = format!("the namespace `{}` is there twice", name.value);
            report.error(name.origin, Problem::new(message, "give each namespace its own name"));
        }
        namespaces.push(Namespace {
            name: name.value,
            client_api: client_api.value,
            backend: backend.value,
            durability: durability.value,
            topics: topics.value,
            max_message_size: message.value,
            in_flight_bytes_max: in_flight.value,
            memory_bytes_max: memory.value,
            backlog_records_max: backlog.value,
            quotas,
            audit_logging,
            idempotency_window: window.value,
            home: None,
            topic_shape: TopicShape::default(),
            reads: Vec::new(),
        });
        named.push(reads);
    }
    readers::resolve(&mut namespaces, &named, report);
    namespaces
}

/// Whether `name` is `[a-z][a-z0-9-]{0,62}`, the form of a namespace's name.
pub fn namespace_name_valid(name: &str) -> bool {
    let tail = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    match name.as_bytes() {
        [first, rest @ ..] => {
            first.is_ascii_lowercase() && rest.len() <= 62 && rest.iter().copied().all(tail)
        }
        [] => false,
    }
}

pub(super) fn namespace_name(text: &str) -> Result<String, Problem> {
    if namespace_name_valid(text) {
        return Ok(text.to_string());
    }
    let remedy = "write a lower-case letter, then up to 62 lower-case letters, digits and dashes";
    Err(Problem::new(format!("`{text}` is not a name for a namespace"), remedy))
}

fn backend(text: &str, backends: &[Backend]) -> Result<usize, Problem> {
    if let Some(index) = backends.iter().position(|backend| backend.name == text) {
        return Ok(index);
    }
    let names = || backends.iter().map(|backend| backend.name.as_str());
    let remedy = match nearest(text, names()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!(
            "add it to the list `backends`; there are: {}",
            names().collect::<Vec<_>>().join(", ")
        ),
    };
    Err(Problem::new(format!("there is no backend `{text}`"), remedy))
}

fn client_api(text: &str) -> Result<ClientApi, Problem> {
    if let Some(api) = ClientApi::ALL.iter().find(|api| api.name() == text) {
        return Ok(*api);
    }
    let served = ClientApi::ALL.iter().map(|api| api.name()).collect::<Vec<_>>().join(", ");
    let remedy = match nearest(text, ClientApi::ALL.iter().map(|api| api.name())) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("served now: {served}"),
    };
    Err(Problem::new(format!("`{text}` is not served yet"), remedy))
}

fn durability(text: &str) -> Result<Durability, Problem> {
    one_of(
        text,
        [
            ("memory", Durability::Memory),
            ("wal", Durability::Wal),
            ("strong", Durability::Strong),
            ("best-effort", Durability::Memory),
            ("eventual", Durability::Wal),
        ],
    )
}

fn topics(text: &str) -> Result<Topics, Problem> {
    one_of(text, [Topics::Volatile, Topics::Log].map(|topics| (topics.name(), topics)))
}

fn one_of<T: Copy, const N: usize>(text: &str, choices: [(&str, T); N]) -> Result<T, Problem> {
    if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let message = format!("`{text}` is not one of {}", names.join(", "));
    let remedy = match nearest(text, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("write one of {}", names.join(", ")),
    };
    Err(Problem::new(message, remedy))
}

fn address(text: &str) -> Result<SocketAddr, Problem> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let remedy = match (host, port.parse::<u16>()) {
        ("", Ok(port)) => {
            format!("write 127.0.0.1:{port} for this machine or 0.0.0.0:{port} for all")
        }
        ("localhost", Ok(port)) => format!("write 127.0.0.1:{port}"),
        _ => "write an IP address and a port, such as 127.0.0.1:7400 or [::1]:7400".to_string(),
    };
    Err(Problem::new(format!("`{text}` is not an address to listen on"), remedy))
}

pub(super) fn file(text: &str) -> Result<PathBuf, Problem> {
    if text.is_empty() || text.contains('\0') {
        let remedy = "write the path of a PEM file, such as /etc/prism/tls.pem";
        return Err(Problem::new(format!("`{}` is not a path", text.escape_debug()), remedy));
    }
    Ok(PathBuf::from(text))
}

pub(super) fn directory(text: &str) -> Result<PathBuf, Problem> {
    if text.is_empty() || text.contains('\0') {
        let remedy = "write the path of a directory, such as /var/lib/prism";
        return Err(Problem::new(format!("`{}` is not a path", text.escape_debug()), remedy));
    }
    Ok(PathBuf::from(text))
}

fn shards(text: &str) -> Result<usize, Problem> {
    count::<usize>(1, SHARDS_MAX)(text)
}

fn cores(text: &str) -> Result<Vec<usize>, Problem> {
    match parse_cores(text) {
        Some(cores) if cores.len() <= SHARDS_MAX => Ok(cores),
        _ => Err(Problem::new(
            format!("`{text}` is not a list of 1 to {SHARDS_MAX} cores"),
            "write numbers and ranges, such as 0,2-3",
        )),
    }
}

pub(super) fn count<T>(min: T, max: T) -> impl Fn(&str) -> Result<T, Problem>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display + Copy,
{
    move |text| match text.replace('_', "").parse::<T>() {
        Ok(count) if count >= min && count <= max => Ok(count),
        _ => Err(Problem::new(
            format!("`{text}` is not a number from {min} to {max}"),
            format!("write a whole number from {min} to {max}"),
        )),
    }
}

pub(super) fn size(min: u64, max: u64) -> impl Fn(&str) -> Result<u64, Problem> {
    move |text| {
        let bytes = units::bytes(text)?;
        if bytes < min || bytes > max {
            let side = if bytes < min { "less" } else { "more" };
            let bound = show_bytes(bytes.clamp(min, max));
            let range = format!("write a size from {} to {}", show_bytes(min), show_bytes(max));
            return Err(Problem::new(format!("`{text}` is {side} than {bound}"), range));
        }
        Ok(bytes)
    }
}

pub(super) fn span(min: Duration, max: Duration) -> impl Fn(&str) -> Result<Duration, Problem> {
    move |text| {
        let span = units::duration(text)?;
        if span < min || span > max {
            let side = if span < min { "less" } else { "more" };
            let bound = show_duration(span.clamp(min, max));
            let range =
                format!("write a time from {} to {}", show_duration(min), show_duration(max));
            return Err(Problem::new(format!("`{text}` is {side} than {bound}"), range));
        }
        Ok(span)
    }
}

pub(super) const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}
