//! Certificates of a test's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// Authorities and what they have signed, in PEM files.
pub(crate) struct Authorities(tempfile::TempDir);

impl Authorities {
    /// An authority `ca`, a `server` and a `client` that it has signed, and a `stranger`, of whom it knows nothing; all are for `name`.
    pub(crate) fn new(name: &str) -> Self {
        // Servers that run as somebody else have to come as far as here.
        let files = Authorities(tempfile::tempdir_in("/var/tmp").unwrap());
        for (ca, signed) in [("ca", &["server", "client"][..]), ("other-ca", &["stranger"])] {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            // OpenSSL takes a certificate whose subject is its issuer for a self-signed one.
            params.distinguished_name.push(DnType::CommonName, ca);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let authority = KeyPair::generate().unwrap();
            let authority = CertifiedIssuer::self_signed(params, authority).unwrap();
            std::fs::write(files.path(&format!("{ca}.pem")), authority.pem()).unwrap();
            for who in signed {
                let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
                params.distinguished_name.push(DnType::CommonName, *who);
                let key = KeyPair::generate().unwrap();
                let certificate = params.signed_by(&key, &authority).unwrap();
                std::fs::write(files.path(&format!("{who}.pem")), certificate.pem()).unwrap();
                std::fs::write(files.path(&format!("{who}.key")), key.serialize_pem()).unwrap();
                // As Kafka wants to have it.
                let both = key.serialize_pem() + &certificate.pem();
                std::fs::write(files.path(&format!("{who}-both.pem")), both).unwrap();
            }
        }
        files
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The same as a text.
    pub(crate) fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Gives all of it to another user, who alone may read the keys then, as PostgreSQL wants to have it.
    pub(crate) fn give_to(&self, user: &str) {
        let directory: &Path = self.0.path();
        let run = |program: &str, arguments: &[&str]| {
            let done = Command::new(program).args(arguments).arg(directory).status().unwrap();
            assert!(done.success(), "{program} {arguments:?}");
        };
        run("chown", &["-R", user]);
        run("chmod", &["-R", "u=rwX,go="]);
    }
}
