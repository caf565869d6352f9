//! A certificate with its private key, from PEM files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_cert::der::Decode;

use super::provider;

/// Largest file that is taken for a certificate or a key.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Who we say we are: a chain of certificates and the key of the first.
#[derive(Clone, Debug)]
pub struct Identity {
    pub(super) certified: Arc<CertifiedKey>,
    validity: Validity,
}

/// From when until when a certificate holds, seconds of Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub from_s: u64,
    /// The last second.
    pub until_s: u64,
}

/// Why there is no identity: the file, what is wrong with it and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.path.display(), self.message, self.remedy)
    }
}

impl std::error::Error for IdentityError {}

impl IdentityError {
    pub(super) fn new(path: &Path, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { path: path.to_path_buf(), message: message.into(), remedy: remedy.into() }
    }
}

impl Identity {
    /// Reads the chain of `certificate` (the server's own first) and the key of `key`, and sees whether they belong together.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let chain = certificates(certificate)?;
        let private = private_key(key)?;
        let refuse = |path: &Path, error: rustls::Error, remedy: &str| {
            let message = match &error {
                rustls::Error::General(text) => text.clone(),
                other => other.to_string(),
            };
            IdentityError::new(path, message, remedy)
        };
        let signer = provider().key_provider.load_private_key(private).map_err(|error| {
            refuse(
                key,
                error,
                "use a key of RSA (2048 bits or more), ECDSA P-256 or P-384, or Ed25519",
            )
        })?;
        let validity = Validity::of(&chain[0]).map_err(|message| {
            IdentityError::new(
                certificate,
                format!("the first certificate cannot be read: {message}"),
                "export it again as PEM (X.509)",
            )
        })?;
        let certified = CertifiedKey::new(chain, signer);
        match certified.keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
                let message = format!("this is not the key of {}", certificate.display());
                let remedy = "name the key that the certificate was made for; the server's own certificate stands first in \
                              its file";
                return Err(IdentityError::new(key, message, remedy));
            }
            // Some key providers cannot tell.
            Err(rustls::Error::InconsistentKeys(_)) => {}
            Err(error) => {
                return Err(refuse(
                    certificate,
                    error,
                    "export it again as PEM (X.509, version 3)",
                ));
            }
        }
        Ok(Self { certified: Arc::new(certified), validity })
    }

    /// From when until when the server's own certificate holds.
    pub fn validity(&self) -> Validity {
        self.validity
    }
}

impl Validity {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let parsed =
            x509_cert::Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        let validity = *parsed.tbs_certificate().validity();
        Ok(Self {
            from_s: validity.not_before.to_unix_duration().as_secs(),
            until_s: validity.not_after.to_unix_duration().as_secs(),
        })
    }
}

/// Adds the certificates of a PEM file to those of authorities; `whose` certificates they sign.
pub(super) fn authorities(
    path: &Path,
    whose: &str,
    store: &mut rustls::RootCertStore,
) -> Result<(), IdentityError> {
    for certificate in certificates(path)? {
        store.add(certificate).map_err(|error| {
            let message = format!("a certificate in it cannot be an authority: {error}");
            let remedy = format!("give the certificate of the authority that signed the {whose}");
            IdentityError::new(path, message, remedy)
        })?;
    }
    Ok(())
}

/// All certificates of a PEM file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let text = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = all.map_err(|error| not_pem(path, &error))?;
    if chain.is_empty() {
        let message = "there is no certificate in it";
        let remedy = "give a PEM file with a part that begins with -----BEGIN CERTIFICATE-----";
        return Err(IdentityError::new(path, message, remedy));
    }
    Ok(chain)
}

/// All revocation lists of a PEM file; at least one.
pub(super) fn revocation_lists(
    path: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, IdentityError> {
    let text = read(path)?;
    let all: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&text).collect();
    let lists = all.map_err(|error| not_pem(path, &error))?;
    if lists.is_empty() {
        let message = "there is no revocation list in it";
        let remedy = "give a PEM file with a part that begins with -----BEGIN X509 CRL-----";
        return Err(IdentityError::new(path, message, remedy));
    }
    Ok(lists)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound if contains(&text, b"ENCRYPTED PRIVATE KEY") => IdentityError::new(
            path,
            "the key is encrypted",
            "decrypt it (openssl pkey -in KEY -out PLAIN) and keep it readable for this user alone",
        ),
        pem::Error::NoItemsFound => IdentityError::new(
            path,
            "there is no private key in it",
            "give a PEM file with a part that begins with -----BEGIN PRIVATE KEY-----",
        ),
        other => not_pem(path, &other),
    })
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

fn not_pem(path: &Path, error: &pem::Error) -> IdentityError {
    IdentityError::new(path, format!("not a PEM file: {error}"), "export it again as PEM")
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let unreadable = |error: std::io::Error| {
        IdentityError::new(
            path,
            format!("cannot be read: {error}"),
            "check the path, and that this user may read it",
        )
    };
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if metadata.len() > FILE_BYTES_MAX {
        let message = format!("larger than {FILE_BYTES_MAX} bytes");
        return Err(IdentityError::new(path, message, "is this the right file?"));
    }
    std::fs::read(path).map_err(unreadable)
}
