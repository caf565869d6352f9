//! Certificates that are made when a test wants them, in PEM files that live as long as it.
#![allow(dead_code, unreachable_pub)]

use std::path::PathBuf;

use prism_io::tls::{Acceptor, Connector, Identity, Roots};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// An authority and a certificate for `localhost` and `127.0.0.1` that it has signed.
pub struct Files {
    pub folder: tempfile::TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

pub fn files() -> Files {
    let folder = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    let files = Files { folder, authority };
    files.issue("server", |_| ());
    files
}

impl Files {
    /// Signs another certificate: `<name>.pem` and `<name>.key`.
    pub fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn identity(&self, name: &str) -> Identity {
        let file = |ending: &str| self.path(&format!("{name}.{ending}"));
        Identity::load(&file("pem"), &file("key")).unwrap()
    }

    pub fn acceptor(&self) -> Acceptor {
        Acceptor::new(&self.identity("server")).unwrap()
    }

    pub fn connector(&self) -> Connector {
        Connector::new(&Roots::File(self.path("ca.pem")), "localhost").unwrap()
    }
}
