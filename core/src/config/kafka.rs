//! A backend of type `kafka`: its brokers, how it is shown who we are, and how topics are made.

use std::fmt;
use std::time::Duration;

use prism_adapters::kafka::{KafkaConfig, Login, Mechanism, TOPIC_PARTITIONS_MAX, Tls};

use super::backends::{host_and_port, secret, show_address};
use super::error::Problem;
use super::read::{count, file, span};
use super::tree::{Report, Section};
use super::units::show_duration;

const LINGER_MAX: Duration = Duration::from_secs(1);
const RETENTION_MIN: Duration = Duration::from_secs(1);
const RETENTION_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);
const READERS_MAX: usize = 1024;

pub(super) fn read(section: Section<'_>, report: &Report) -> Option<KafkaConfig> {
    let brokers = section.list("brokers", brokers);
    if brokers.is_none() && section.lacks("brokers") {
        let message = format!("{} has no `brokers`", section.path());
        let remedy = "add a line such as `brokers: [127.0.0.1:9092]`";
        report.error(section.origin, Problem::new(message, remedy));
    }
    let login = read_login(&section, report);
    let tls = section.section("tls").map(|tls| read_tls(tls, report));
    let defaults = KafkaConfig::at(Vec::new());
    let partitions =
        section.value("partitions", defaults.partitions, count(1, TOPIC_PARTITIONS_MAX));
    let replication = section.optional("replication", count(1, 32_u16));
    let retention = section.optional("retention", span(RETENTION_MIN, RETENTION_MAX));
    let linger = section.value("linger", defaults.linger, span(Duration::ZERO, LINGER_MAX));
    let readers = section.value("readers_max", defaults.readers_max, count(1, READERS_MAX));
    section.finish();
    let tls = match tls {
        None => None,
        Some(tls) => Some(tls?),
    };
    Some(KafkaConfig {
        brokers: brokers?.value,
        login,
        tls,
        partitions: partitions.value,
        replication: replication.map(|replication| replication.value),
        retention: retention.map(|retention| retention.value),
        linger: linger.value,
        readers_max: readers.value,
        ..defaults
    })
}

fn read_login(section: &Section<'_>, report: &Report) -> Option<Login> {
    let user = section.optional("user", |text| Ok(text.to_owned()));
    let password = section.optional("password_file", |path| secret(path, report));
    let mechanism = section.value("sasl", Mechanism::ScramSha512, mechanism);
    for (there, missing) in [("user", "password_file"), ("password_file", "user")] {
        if !section.lacks(there) && section.lacks(missing) {
            let message = format!("{} has a `{there}` and no `{missing}`", section.path());
            let remedy = format!("add `{missing}`, or leave `{there}` out");
            report.error(section.origin, Problem::new(message, remedy));
        }
    }
    Some(Login { mechanism: mechanism.value, user: user?.value, password: password?.value })
}

/// The files are the client's to read; here it is only seen to it that they are there.
fn read_tls(section: Section<'_>, report: &Report) -> Option<Tls> {
    let readable = |text: &str| {
        let path = file(text)?;
        if !report.reads_files() {
            return Ok(path);
        }
        match std::fs::File::open(&path) {
            Ok(_) => Ok(path),
            Err(error) => {
                let remedy = "write the path of a PEM file that this user may read";
                Err(Problem::new(format!("{text} cannot be read: {error}"), remedy))
            }
        }
    };
    let ca = section.optional("ca", readable);
    let certificate = section.optional("certificate", readable);
    let key = section.optional("key", readable);
    let is_whole = section.lacks("certificate") == section.lacks("key");
    if !is_whole {
        let message = format!("{} has only one of `certificate` and `key`", section.path());
        let remedy = "give both, or leave both out where the brokers do not ask who we are";
        report.error(section.origin, Problem::new(message, remedy));
    }
    section.finish();
    let identity = certificate.zip(key).map(|(certificate, key)| (certificate.value, key.value));
    is_whole.then_some(Tls { ca: ca.map(|ca| ca.value), identity })
}

fn brokers(text: &str) -> Result<Vec<String>, Problem> {
    let addresses = text.split(',').map(|one| host_and_port(one.trim()));
    let addresses: Result<Vec<_>, _> = addresses.collect();
    Ok(addresses?.iter().map(|(host, port)| show_address(host, *port)).collect())
}

fn mechanism(text: &str) -> Result<Mechanism, Problem> {
    let known = Mechanism::ALL.into_iter().find(|one| one.name().eq_ignore_ascii_case(text));
    known.ok_or_else(|| {
        let names: Vec<_> = Mechanism::ALL.map(|one| one.name().to_lowercase()).into();
        let remedy = format!("write one of {}", names.join(", "));
        Problem::new(format!("`{text}` is no mechanism that is spoken here"), remedy)
    })
}

/// The lines of a backend, without its login.
pub(super) fn show(f: &mut fmt::Formatter<'_>, kafka: &KafkaConfig) -> fmt::Result {
    let quoted = |text: &str| serde_json::to_string(text).map_err(|_| fmt::Error);
    let brokers: Result<Vec<_>, _> = kafka.brokers.iter().map(|one| quoted(one)).collect();
    writeln!(f, "    brokers: [{}]", brokers?.join(", "))?;
    if let Some(tls) = &kafka.tls {
        let mut files = Vec::new();
        if let Some(ca) = &tls.ca {
            files.push(format!("ca: {}", quoted(&ca.to_string_lossy())?));
        }
        if let Some((certificate, key)) = &tls.identity {
            files.push(format!("certificate: {}", quoted(&certificate.to_string_lossy())?));
            files.push(format!("key: {}", quoted(&key.to_string_lossy())?));
        }
        writeln!(f, "    tls: {{{}}}", files.join(", "))?;
    }
    writeln!(f, "    partitions: {}", kafka.partitions)?;
    if let Some(replication) = kafka.replication {
        writeln!(f, "    replication: {replication}")?;
    }
    if let Some(retention) = kafka.retention {
        writeln!(f, "    retention: {}", show_duration(retention))?;
    }
    writeln!(f, "    linger: {}", show_duration(kafka.linger))?;
    writeln!(f, "    readers_max: {}", kafka.readers_max)
}
