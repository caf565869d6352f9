//! The identity of the servers that are measured over TLS.

use std::io::{Error, Result};
use std::path::PathBuf;

use prism_io::tls::{Connector, Roots};
use rcgen::{CertificateParams, KeyPair};

/// A certificate for the servers' address, which stands for itself, and its key.
#[derive(Debug)]
pub struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    /// Makes both, in a folder that ends with the value.
    pub fn make() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let key = KeyPair::generate().map_err(Error::other)?;
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).map_err(Error::other)?;
        let certificate = params.self_signed(&key).map_err(Error::other)?;
        std::fs::write(folder.path().join("server.pem"), certificate.pem())?;
        std::fs::write(folder.path().join("server.key"), key.serialize_pem())?;
        Ok(Self { folder })
    }

    /// The PEM file of the certificate.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("server.pem")
    }

    /// The PEM file of its key.
    pub fn key(&self) -> PathBuf {
        self.folder.path().join("server.key")
    }

    /// A client that trusts it and nobody else.
    pub fn connector(&self) -> Result<Connector> {
        Connector::new(&Roots::File(self.certificate()), "127.0.0.1").map_err(Error::other)
    }
}
