//! Where a NATS is, as whom to speak to it, and how long to be patient with it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::ServerAddr;
use prism_io::tls::{Connector, Identity, Roots};

use crate::breaker::Backoff;

/// Settings of one NATS. [`NatsConfig::at`] has the defaults.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsConfig {
    /// Host name or IP address; a name is looked up again for every connection.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Hosts and ports of other servers of the same cluster: the next is taken when one is lost.
    pub others: Vec<(String, u16)>,
    /// Who logs in; absent: nobody does.
    pub login: Option<Login>,
    /// How TLS is spoken; absent: it is not, unless the server insists.
    pub tls: Option<Tls>,
    /// What the server calls the connection.
    pub client_name: String,
    /// Under which subject answers come; a user of the server may have to subscribe below it.
    pub inbox_prefix: String,
    /// How long connecting and logging in may take.
    pub connect_timeout: Duration,
    /// How long a call may go without its answer.
    pub answer_timeout: Duration,
    /// After so much silence the server is asked whether it is there; the connection is given up when it does not answer.
    pub ping_after: Duration,
    /// How long to wait between attempts to connect.
    pub backoff: Backoff,
    /// Calls under way at most; one more is refused.
    pub calls_max: usize,
    /// Bytes of the calls under way at most, except that one call alone always may.
    pub bytes_max: usize,
    /// Copies that a cluster keeps of each stream that is made.
    pub replicas: u16,
}

/// Who logs in.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A user with a password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token.
    Token(String),
    /// The content of a credentials file (`.creds`): a JWT and the seed of the key that it was given to.
    Credentials(String),
    /// The seed of a user's key (`SU…`).
    NKey(String),
}

/// TLS to a NATS, whose files were read when the configuration was.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Whom we trust, and who we say we are.
    pub connector: Connector,
    /// Whose signature under the server's certificate is trusted.
    pub roots: Roots,
    /// Certificate and key that are shown to the server, if it asks (`verify`).
    pub identity: Option<(PathBuf, PathBuf)>,
    /// TLS begins before the server says anything (its `handshake_first`), not after its INFO.
    pub handshake_first: bool,
}

impl Tls {
    /// Reads the files. The server's certificate has to be for `host`.
    ///
    /// # Errors
    /// In words: which file, what is wrong with it and what to do.
    pub fn load(
        roots: Roots,
        host: &str,
        identity: Option<(PathBuf, PathBuf)>,
    ) -> Result<Self, String> {
        let load = |(certificate, key): &(PathBuf, PathBuf)| Identity::load(certificate, key);
        let loaded = identity.as_ref().map(load).transpose().map_err(|error| error.to_string())?;
        let connector = Connector::for_backend(&roots, host, loaded.as_ref());
        let connector = connector.map_err(|error| error.to_string())?;
        Ok(Tls { connector, roots, identity, handshake_first: false })
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        let parts = |tls: &Tls| (tls.roots.clone(), tls.identity.clone(), tls.handshake_first);
        parts(self) == parts(other)
    }
}

impl Eq for Tls {}

impl NatsConfig {
    /// NATS at this host and port, without a login, everything else at its default.
    pub fn at(host: impl Into<String>, port: u16) -> Self {
        NatsConfig {
            host: host.into(),
            port,
            others: Vec::new(),
            login: None,
            tls: None,
            client_name: "prism".to_owned(),
            inbox_prefix: "_INBOX".to_owned(),
            connect_timeout: Duration::from_secs(2),
            answer_timeout: Duration::from_secs(5),
            ping_after: Duration::from_secs(10),
            backoff: Backoff::default(),
            calls_max: 8192,
            bytes_max: 64 * 1024 * 1024,
            replicas: 1,
        }
    }

    /// How many servers there are.
    pub(super) fn servers(&self) -> usize {
        1 + self.others.len()
    }

    /// Host and port of one of the servers.
    pub(super) fn server(&self, index: usize) -> (&str, u16) {
        let other = index.checked_sub(1).and_then(|index| self.others.get(index));
        other.map_or((&self.host, self.port), |(host, port)| (host, *port))
    }

    /// All of them as URLs, without the login, beginning with one.
    pub(super) fn urls(&self, first: usize) -> Vec<ServerAddr> {
        let urls = (0..self.servers()).map(|step| self.url((first + step) % self.servers()));
        urls.filter_map(|url| url.parse().ok()).collect()
    }

    fn url(&self, index: usize) -> String {
        let scheme = if self.tls.is_some() { "tls" } else { "nats" };
        let (host, port) = self.server(index);
        match host.contains(':') {
            true => format!("{scheme}://[{host}]:{port}"),
            false => format!("{scheme}://{host}:{port}"),
        }
    }
}

impl fmt::Debug for NatsConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {:?}", self.url(0), self.login)
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Login::Password { user, .. } => write!(formatter, "{user} with a password"),
            Login::Token(_) => formatter.write_str("a token"),
            Login::Credentials(_) => formatter.write_str("a credentials file"),
            Login::NKey(_) => formatter.write_str("a key"),
        }
    }
}
