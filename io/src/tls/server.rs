//! The server's role: what every connection of the process is accepted with, and how that is replaced.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::server::ProducesTickets;
use rustls::sign::SingleCertAndKey;
use rustls::{Error, ServerConfig};

use super::revocation::Revoked;
use super::{ClientAuthorities, Identity, PROTOCOLS, Session, provider};

/// Makes the server's side of connections. Clones share what they are made with, so that one [`Acceptor::replace`] reaches every
/// shard; connections that stand keep what they began with, but for those whose client's certificate is revoked.
#[derive(Clone)]
pub struct Acceptor {
    shared: Arc<Shared>,
}

struct Shared {
    /// Read once per handshake, which costs a thousand times as much as this lock; written when the operator says so.
    config: RwLock<Arc<ServerConfig>>,
    /// Encrypts session tickets. It outlives the server's certificate: a client may resume after that was replaced, but not
    /// after the authorities of clients were.
    ticketer: Arc<dyn ProducesTickets>,
    /// The certificates of clients that are revoked, and how often they were replaced. Read by each shard four times a second.
    revoked: RwLock<(u64, Arc<Revoked>)>,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

impl Acceptor {
    /// Accepts connections as `identity`, of whoever comes. Fails where the system has no random numbers.
    pub fn new(identity: &Identity) -> Result<Self, Error> {
        Self::with_clients(identity, None)
    }

    /// Accepts connections as `identity`, of clients that are asked who they are where there are `clients`.
    pub fn with_clients(
        identity: &Identity,
        clients: Option<&ClientAuthorities>,
    ) -> Result<Self, Error> {
        let ticketer = rustls::crypto::ring::Ticketer::new()?;
        let config = RwLock::new(config(identity, clients, ticketer.clone())?);
        let revoked = RwLock::new((1, revoked(clients)));
        Ok(Self { shared: Arc::new(Shared { config, ticketer, revoked }) })
    }

    /// From now on connections are accepted as `identity`, and clients are held to `clients`.
    pub fn replace(
        &self,
        identity: &Identity,
        clients: Option<&ClientAuthorities>,
    ) -> Result<(), Error> {
        // A ticket stands for a certificate that was verified by the authorities of its time.
        let ticketer = match clients {
            Some(_) => rustls::crypto::ring::Ticketer::new()?,
            None => self.shared.ticketer.clone(),
        };
        let config = config(identity, clients, ticketer)?;
        *self.shared.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        // Behind the other: a handshake that the old one has let through is looked at again.
        let mut known = self.shared.revoked.write().unwrap_or_else(PoisonError::into_inner);
        *known = (known.0 + 1, revoked(clients));
        Ok(())
    }

    /// Which certificates of clients are revoked, and the number of this list.
    pub(crate) fn revoked(&self) -> (u64, Arc<Revoked>) {
        self.shared.revoked.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The server's side of a new connection.
    pub fn session(&self) -> Result<Session, Error> {
        let config = self.shared.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        Session::server(config)
    }
}

fn revoked(clients: Option<&ClientAuthorities>) -> Arc<Revoked> {
    clients.map(ClientAuthorities::revoked).unwrap_or_default()
}

fn config(
    identity: &Identity,
    clients: Option<&ClientAuthorities>,
    ticketer: Arc<dyn ProducesTickets>,
) -> Result<Arc<ServerConfig>, Error> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(clients.verifier()),
        None => builder.with_no_client_auth(),
    };
    let certificates = Arc::new(SingleCertAndKey::from(identity.certified.clone()));
    let mut config = builder.with_cert_resolver(certificates);
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    config.ticketer = ticketer;
    // Tickets hold all there is to know: no table of sessions that shards would share.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}
