//! TLS to a server that speaks its own protocol inside: whom we trust, whom we expect and who we are, and what to do where it comes to
//! nothing.

use std::io;
use std::path::PathBuf;

use prism_io::tls::{Connector, Failure, Identity, Roots};

/// TLS to a backend, whose files were read when the configuration was.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Whom we trust, whom we expect, and who we say we are.
    pub connector: Connector,
    /// The same in words, by which two are compared and shown.
    pub files: TlsFiles,
}

/// What a [`Tls`] was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Whose signature under the server's certificate is trusted.
    pub roots: Roots,
    /// The name that the server's certificate has to have.
    pub server_name: String,
    /// Certificate and key that are shown to the server, if it asks.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// In words: which file, what is wrong with it and what to do.
    pub fn load(files: TlsFiles) -> Result<Self, String> {
        let load = |(certificate, key): &(PathBuf, PathBuf)| Identity::load(certificate, key);
        let identity = files.identity.as_ref().map(load).transpose();
        let identity = identity.map_err(|error| error.to_string())?;
        let connector = Connector::for_backend(&files.roots, &files.server_name, identity.as_ref());
        let connector = connector.map_err(|error| error.to_string())?;
        Ok(Tls { connector, files })
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.files == other.files
    }
}

impl Eq for Tls {}

/// What a backend calls its own settings of TLS.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    /// Which port or setting has it speak TLS.
    pub(crate) speaks: &'static str,
    /// What makes it ask for certificates.
    pub(crate) asks: &'static str,
    /// What says which versions it speaks.
    pub(crate) versions: &'static str,
}

impl Server {
    /// Why TLS did not come about, and what to do.
    ///
    /// # Errors
    /// The connection was lost, which has nothing to do with TLS.
    pub(crate) fn failure(&self, failure: Failure, expected: &str) -> Result<String, io::Error> {
        let Server { name, speaks, asks, versions } = self;
        let advice = match &failure {
            Failure::Untrusted(_) => format!(
                "check tls.ca, and whether {name}'s certificate is for `{expected}` (tls.server_name)"
            ),
            Failure::Cleartext | Failure::Malformed(_) => {
                format!("is this the port that {name} speaks TLS on ({speaks})?")
            }
            Failure::Alert(_) => {
                format!("check tls.certificate and tls.key: {name} may ask who we are ({asks})")
            }
            Failure::Disconnected(_) => String::new(),
            Failure::Incompatible(_) | Failure::Protocol(_) | Failure::TimedOut => {
                format!("{name}'s {versions} must include TLSv1.2 or TLSv1.3")
            }
        };
        match failure {
            Failure::Disconnected(error) => Err(error),
            failure => Ok(format!("TLS came to nothing: {failure}; {advice}")),
        }
    }

    /// TLS stood, and then the server ended it instead of answering: with TLS 1.3 it tells only then that it does not take our
    /// certificate.
    pub(crate) fn refused(&self, error: &io::Error) -> String {
        let Server { name, asks, .. } = self;
        format!(
            "{name} ended TLS before it answered ({error}); check tls.certificate and tls.key: it may ask who we are \
             ({asks})"
        )
    }
}
