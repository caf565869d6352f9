//! Where a PostgreSQL is, as whom to speak to it, and how long to be patient with it.

use std::fmt;
use std::time::Duration;

use crate::breaker::Backoff;
use crate::tls::Tls;

/// Most connections of one shard.
pub const POOL_MAX: usize = 32;

/// Settings of one PostgreSQL. [`PostgresConfig::at`] has the defaults.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    /// Host name or IP address; a name is looked up again for every connection.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The role that logs in; it may create schemas in the database, or finds them created.
    pub user: String,
    /// Its password, for SCRAM-SHA-256.
    pub password: Option<String>,
    /// How TLS is spoken; absent: it is not.
    pub tls: Option<Tls>,
    /// Name of the database.
    pub database: String,
    /// What `pg_stat_activity` calls the connections.
    pub application_name: String,
    /// Connections of one shard, from 1 to [`POOL_MAX`]. A lane's writes stay on one of them, its reads on the next.
    pub pool: usize,
    /// How long connecting, logging in and bringing `prism_meta` up to date may take.
    pub connect_timeout: Duration,
    /// How long PostgreSQL may work on one statement, and be silent under way, before the connection is given up.
    pub answer_timeout: Duration,
    /// How long a statement waits for a row that somebody else has locked.
    pub lock_timeout: Duration,
    /// After so much silence with nothing under way PostgreSQL is asked whether it is there.
    pub ping_after: Duration,
    /// How long to wait between attempts to connect.
    pub backoff: Backoff,
    /// How often expired entries are looked for; absent: never (what has expired is not told either way).
    pub sweep_every: Option<Duration>,
    /// How often somebody who waits for messages looks whether some have come another way than through this shard.
    pub look_every: Duration,
    /// Calls that wait or are under way on one connection at most; one more is refused.
    pub calls_max: usize,
    /// Bytes of their requests at most, except that one request alone always may.
    pub bytes_max: usize,
}

impl PostgresConfig {
    /// PostgreSQL at this host and port, as this role in the database of the same name, everything else at its default.
    pub fn at(host: impl Into<String>, port: u16, user: impl Into<String>) -> Self {
        let user = user.into();
        PostgresConfig {
            host: host.into(),
            port,
            database: user.clone(),
            user,
            password: None,
            tls: None,
            application_name: "prism".to_owned(),
            pool: 2,
            connect_timeout: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(1),
            ping_after: Duration::from_secs(10),
            backoff: Backoff::default(),
            sweep_every: Some(Duration::from_secs(10)),
            look_every: Duration::from_millis(500),
            calls_max: 8192,
            bytes_max: 64 * 1024 * 1024,
        }
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PostgresConfig { user, host, port, database, .. } = self;
        write!(formatter, "postgres://{user}@{host}:{port}/{database}")?;
        if self.tls.is_some() { write!(formatter, "?sslmode=verify-full") } else { Ok(()) }
    }
}
