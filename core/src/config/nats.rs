//! A backend of type `nats`: where it is, and how it is shown who we are.

use std::fmt;

use prism_adapters::nats::{Login, NatsConfig, Tls};
use prism_io::tls::Roots;

use super::backends::{host_and_port, secret, show_address};
use super::error::Problem;
use super::read::{count, file};
use super::tree::{Report, Section};

/// Copies that JetStream keeps of a stream, at most.
const REPLICAS_MAX: u16 = 5;

pub(super) fn read(section: Section<'_>, report: &Report) -> Option<NatsConfig> {
    let address = section.optional("address", host_and_port);
    if address.is_none() && section.lacks("address") {
        let message = format!("{} has no `address`", section.path());
        let remedy = "add a line such as `address: 127.0.0.1:4222`";
        report.error(section.origin, Problem::new(message, remedy));
    }
    let login = read_login(&section, report);
    let others = section.list("others", addresses);
    let replicas = section.value("replicas", 1, count(1, REPLICAS_MAX));
    let inbox_prefix = section.optional("inbox_prefix", inbox_prefix);
    let tls = section.section("tls");
    section.finish();
    let (host, port) = address?.value;
    let tls = match tls {
        None => None,
        Some(tls) => match (read_tls(tls, &host, report), report.reads_files()) {
            (None, true) => return None,
            (tls, _) => tls,
        },
    };
    let defaults = NatsConfig::at(host, port);
    let inbox_prefix =
        inbox_prefix.map_or_else(|| defaults.inbox_prefix.clone(), |prefix| prefix.value);
    let others = others.map(|others| others.value).unwrap_or_default();
    let replicas = replicas.value;
    Some(NatsConfig { others, login: login?, tls, inbox_prefix, replicas, ..defaults })
}

/// Who logs in, if somebody does. Nothing where that was refused.
fn read_login(section: &Section<'_>, report: &Report) -> Option<Option<Login>> {
    let user = section.optional("user", |text| Ok(text.to_owned()));
    let secret = |path: &str| secret(path, report);
    let password = section.optional("password_file", secret);
    let token = section.optional("token_file", secret);
    let credentials = section.optional("credentials_file", secret);
    let nkey = section.optional("nkey_file", secret);
    let ways = ["user", "token_file", "credentials_file", "nkey_file"];
    if ways.iter().filter(|way| !section.lacks(way)).count() > 1 {
        let message = format!("{} says in more than one way who logs in", section.path());
        let remedy = format!("keep one of {}", ways.join(", "));
        report.error(section.origin, Problem::new(message, remedy));
        return None;
    }
    for (there, missing) in [("user", "password_file"), ("password_file", "user")] {
        if !section.lacks(there) && section.lacks(missing) {
            let message = format!("{} has a `{there}` and no `{missing}`", section.path());
            let remedy = format!("add `{missing}`, or leave `{there}` out");
            report.error(section.origin, Problem::new(message, remedy));
            return None;
        }
    }
    let password = user
        .zip(password)
        .map(|(user, password)| Login::Password { user: user.value, password: password.value });
    let token = token.map(|token| Login::Token(token.value));
    let credentials = credentials.map(|file| Login::Credentials(file.value));
    let nkey = nkey.map(|seed| Login::NKey(seed.value));
    Some(password.or(token).or(credentials).or(nkey))
}

/// TLS to the NATS at `host`. Its files are read here, so that what is wrong with them is said at start.
fn read_tls(section: Section<'_>, host: &str, report: &Report) -> Option<Tls> {
    let (origin, path) = (section.origin, section.path().to_owned());
    let ca = section.optional("ca", file);
    let (certificate, key) = (section.optional("certificate", file), section.optional("key", file));
    let handshake_first = section.value("handshake_first", false, truth).value;
    let is_whole = section.lacks("certificate") == section.lacks("key");
    section.finish();
    if !is_whole {
        let message = format!("{path} has only one of `certificate` and `key`");
        let remedy = "give both, or leave both out where the server does not ask who we are";
        report.error(origin, Problem::new(message, remedy));
        return None;
    }
    let roots = ca.map_or(Roots::System, |ca| Roots::File(ca.value));
    let identity = certificate.zip(key).map(|(certificate, key)| (certificate.value, key.value));
    let remedy = "write `tls: {ca: PATH}`, with `certificate` and `key` where they are needed";
    let refuse = |message| report.error(origin, Problem::new(format!("{path}: {message}"), remedy));
    if !report.reads_files() {
        return None;
    }
    let tls = Tls::load(roots, host, identity).map_err(refuse).ok()?;
    Some(Tls { handshake_first, ..tls })
}

fn addresses(text: &str) -> Result<Vec<(String, u16)>, Problem> {
    let addresses = text.split(',').map(str::trim).filter(|one| !one.is_empty());
    addresses.map(host_and_port).collect()
}

fn truth(text: &str) -> Result<bool, Problem> {
    text.parse().map_err(|_| {
        Problem::new(format!("`{text}` is neither true nor false"), "write `true` or `false`")
    })
}

fn inbox_prefix(text: &str) -> Result<String, Problem> {
    let is_token = |token: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        !token.is_empty() && token.chars().all(fits)
    };
    if text.len() <= 128 && text.split('.').all(is_token) {
        return Ok(text.to_owned());
    }
    let remedy =
        "write tokens of letters, digits, `-` and `_`, joined by dots, such as `_INBOX_prism`";
    Err(Problem::new(format!("`{text}` is no subject that answers can come to"), remedy))
}

/// The lines of a backend, without its login.
pub(super) fn show(f: &mut fmt::Formatter<'_>, nats: &NatsConfig) -> fmt::Result {
    let quoted = |text: &str| serde_json::to_string(text).map_err(|_| fmt::Error);
    writeln!(f, "    address: {}", quoted(&show_address(&nats.host, nats.port))?)?;
    if !nats.others.is_empty() {
        let others = nats.others.iter().map(|(host, port)| quoted(&show_address(host, *port)));
        writeln!(f, "    others: [{}]", others.collect::<Result<Vec<_>, _>>()?.join(", "))?;
    }
    writeln!(f, "    replicas: {}", nats.replicas)?;
    writeln!(f, "    inbox_prefix: {}", nats.inbox_prefix)?;
    let Some(tls) = &nats.tls else { return Ok(()) };
    let mut files = Vec::new();
    if let Roots::File(ca) = &tls.roots {
        files.push(format!("ca: {}", quoted(&ca.to_string_lossy())?));
    }
    if let Some((certificate, key)) = &tls.identity {
        files.push(format!("certificate: {}", quoted(&certificate.to_string_lossy())?));
        files.push(format!("key: {}", quoted(&key.to_string_lossy())?));
    }
    if tls.handshake_first {
        files.push("handshake_first: true".to_owned());
    }
    writeln!(f, "    tls: {{{}}}", files.join(", "))
}
