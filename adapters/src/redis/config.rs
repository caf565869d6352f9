//! Where a Redis is, as whom to speak to it, and how long to be patient with it.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use crate::breaker::Backoff;
use crate::tls::Tls;

/// Addresses, host and port, one of which is to be reached.
pub(super) type Doors = Rc<RefCell<Vec<(String, u16)>>>;

/// Settings of one Redis. [`RedisConfig::at`] has the defaults.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// Host name or IP address; a name is looked up again for every connection.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Further addresses of a cluster, host and port, for when the first is away.
    pub others: Vec<(String, u16)>,
    /// Whether this is a Redis Cluster, whose nodes tell who has which keys.
    pub cluster: bool,
    /// Who logs in; absent: nobody does, and Redis takes us for its `default` user.
    pub login: Option<Login>,
    /// How TLS is spoken; absent: it is not.
    pub tls: Option<Tls>,
    /// Number of the logical database.
    pub database: u32,
    /// What `CLIENT LIST` calls the connection; no blanks.
    pub client_name: String,
    /// How long connecting and logging in may take.
    pub connect_timeout: Duration,
    /// How long the oldest call under way may go without a sign of life from Redis before the connection is given up.
    pub answer_timeout: Duration,
    /// After so much silence with nothing under way Redis is asked whether it is there.
    pub ping_after: Duration,
    /// How long to wait between attempts to connect.
    pub backoff: Backoff,
    /// Calls under way at most; one more is refused.
    pub calls_max: usize,
    /// Bytes of requests that wait to be sent at most, except that one request alone always may.
    pub unsent_bytes_max: usize,
}

/// A user of Redis's access control lists.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The user; `default` where only a password is set (`requirepass`).
    pub user: String,
    /// The password.
    pub password: String,
}

impl RedisConfig {
    /// Redis at this host and port, without a login, everything else at its default.
    pub fn at(host: impl Into<String>, port: u16) -> Self {
        RedisConfig {
            host: host.into(),
            port,
            others: Vec::new(),
            cluster: false,
            login: None,
            tls: None,
            database: 0,
            client_name: "prism".to_owned(),
            connect_timeout: Duration::from_secs(2),
            answer_timeout: Duration::from_secs(5),
            ping_after: Duration::from_secs(10),
            backoff: Backoff::default(),
            calls_max: 8192,
            unsent_bytes_max: 64 * 1024 * 1024,
        }
    }
}

impl RedisConfig {
    /// Where it is looked for, in this order.
    pub(super) fn doors(&self) -> Doors {
        let first = (self.host.clone(), self.port);
        Rc::new(RefCell::new([&[first][..], &self.others].concat()))
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.login.as_ref().map(|login| login.user.as_str());
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
        write!(formatter, "{scheme}://{}@", user.unwrap_or("default"))?;
        write!(formatter, "{}:{}/{}", self.host, self.port, self.database)?;
        if self.cluster { write!(formatter, " (cluster)") } else { Ok(()) }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} with a password", self.user)
    }
}
