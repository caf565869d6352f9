//! The client's role: whom we trust, and whom we expect.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, Error, RootCertStore};

use super::identity::authorities;
use super::{Identity, IdentityError, PROTOCOLS, Session, provider};

/// Whose signature under a server's certificate is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The authorities that this system trusts.
    System,
    /// Those of a PEM file alone.
    File(PathBuf),
}

/// Makes the client's side of connections to one server. Clones share the tickets by which a connection is taken up again.
#[derive(Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why no connection can be tried.
#[derive(Debug)]
pub enum ConnectorError {
    /// The file of authorities.
    File(IdentityError),
    /// The system trusts nobody.
    NoRoots(String),
    /// No name or address that a certificate could have.
    Name(String),
    /// What rustls says.
    Tls(Error),
}

impl fmt::Display for ConnectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::NoRoots(why) => write!(
                f,
                "this system has no certificate authorities{why}; install ca-certificates, or name a PEM file of your own"
            ),
            Self::Name(name) => {
                write!(
                    f,
                    "{name:?} is neither a host name nor an address that a certificate could have"
                )
            }
            Self::Tls(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ConnectorError {}

impl Connector {
    /// For connections to the server whose certificate is for `name`: a host name or an IP address.
    /// They speak HTTP/2.
    pub fn new(roots: &Roots, name: &str) -> Result<Self, ConnectorError> {
        // All that our clients of gRPC speak.
        Self::build(roots, name, None, vec![PROTOCOLS[0].to_vec()])
    }

    /// The same for a protocol that TLS need not know of, as a backend's; `identity` is shown to a server that asks who we are.
    pub fn for_backend(
        roots: &Roots,
        name: &str,
        identity: Option<&Identity>,
    ) -> Result<Self, ConnectorError> {
        Self::build(roots, name, identity, Vec::new())
    }

    fn build(
        roots: &Roots,
        name: &str,
        identity: Option<&Identity>,
        protocols: Vec<Vec<u8>>,
    ) -> Result<Self, ConnectorError> {
        let parsed = ServerName::try_from(name.to_owned());
        let name = parsed.map_err(|_| ConnectorError::Name(name.to_owned()))?;
        let mut store = RootCertStore::empty();
        match roots {
            Roots::File(path) => {
                authorities(path, "server's", &mut store).map_err(ConnectorError::File)?;
            }
            Roots::System => {
                let found = rustls_native_certs::load_native_certs();
                store.add_parsable_certificates(found.certs);
                if store.is_empty() {
                    let why = found.errors.first().map(|error| format!(" ({error})"));
                    return Err(ConnectorError::NoRoots(why.unwrap_or_default()));
                }
            }
        }
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(ConnectorError::Tls)?
            .with_root_certificates(store);
        let mut config = match identity {
            Some(identity) => {
                let shown = SingleCertAndKey::from(identity.certified.clone());
                builder.with_client_cert_resolver(Arc::new(shown))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = protocols;
        Ok(Self { config: Arc::new(config), name })
    }

    /// The same for another server of the same backend, whose certificate is for `name`.
    ///
    /// # Errors
    /// No certificate could have that name.
    pub fn for_host(&self, name: &str) -> Result<Self, ConnectorError> {
        let parsed = ServerName::try_from(name.to_owned());
        let name = parsed.map_err(|_| ConnectorError::Name(name.to_owned()))?;
        Ok(Self { config: self.config.clone(), name })
    }

    /// The same as a client of a backend wants it that brings its own connections. The name is for it to know.
    pub fn client_config(&self) -> ClientConfig {
        (*self.config).clone()
    }

    /// The client's side of a new connection.
    pub fn session(&self) -> Result<Session, Error> {
        Session::client(self.config.clone(), self.name.clone())
    }
}
