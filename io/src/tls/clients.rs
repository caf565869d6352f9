//! Who the clients of a server are: whose certificates are taken, and the one name that each has.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::identity::{Validity, authorities, revocation_lists};
use super::revocation::{CertificateId, Revoked};
use super::{IdentityError, provider};

/// Longest SPIFFE id, in bytes (SPIFFE-ID, section 2.3).
const NAME_BYTES_MAX: usize = 2048;

/// Whose certificates clients may show. A certificate that is shown has to hold, to lead to one of these authorities, not to be on their
/// lists of revoked ones where there are such, and to have exactly one URI among its names, a SPIFFE id (X509-SVID, section 2); otherwise
/// the handshake fails.
#[derive(Clone, Debug)]
pub struct ClientAuthorities {
    verifier: Arc<dyn ClientCertVerifier>,
    revoked: Arc<Revoked>,
}

impl ClientAuthorities {
    /// Reads the authorities of a PEM file. Where a certificate is not `required`, clients without one are taken too, as nobody. With
    /// `revoked`, a PEM file of revocation lists (RFC 5280, section 5), a certificate on a list is refused, and so is one whose issuer has
    /// none there.
    pub fn load(
        path: &Path,
        required: bool,
        revoked: Option<&Path>,
    ) -> Result<Self, IdentityError> {
        let mut store = RootCertStore::empty();
        authorities(path, "client's", &mut store)?;
        let builder = WebPkiClientVerifier::builder_with_provider(store.into(), provider());
        let lists = revoked.map(revocation_lists).transpose()?;
        let listed = match (&lists, revoked) {
            (Some(lists), Some(path)) => {
                Revoked::of(lists).map_err(|error| not_a_list(path, error))?
            }
            _ => Revoked::default(),
        };
        let builder = match lists {
            Some(lists) => builder.with_crls(lists).only_check_end_entity_revocation(),
            None => builder,
        };
        let builder = if required { builder } else { builder.allow_unauthenticated() };
        let inner = builder.build().map_err(|error| match (error, revoked) {
            (VerifierBuilderError::InvalidCrl(error), Some(revoked)) => {
                not_a_list(revoked, format!("{error:?}"))
            }
            (error, _) => {
                let remedy = "give the certificates of the authorities that sign the clients'";
                IdentityError::new(path, error.to_string(), remedy)
            }
        })?;
        Ok(Self { verifier: Arc::new(Named { inner }), revoked: Arc::new(listed) })
    }

    /// The certificates that are on the lists.
    pub(super) fn revoked(&self) -> Arc<Revoked> {
        self.revoked.clone()
    }

    pub(super) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        self.verifier.clone()
    }
}

fn not_a_list(path: &Path, error: String) -> IdentityError {
    let message = format!("a revocation list in it is not valid: {error}");
    IdentityError::new(path, message, "get it again from the authority")
}

/// Who a client has shown to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its SPIFFE id, such as `spiffe://example.org/payments/checkout`.
    pub name: Box<str>,
    /// From when until when its certificate holds.
    pub validity: Validity,
    /// Which certificate it has shown.
    pub(crate) certificate: CertificateId,
}

impl PeerIdentity {
    /// Of a certificate that was verified; `None` where it has not exactly one name.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
        let (_, names) = parsed.tbs_certificate().get_extension::<SubjectAltName>().ok()??;
        let mut uris = names.0.iter().filter_map(|name| match name {
            GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str()),
            _ => None,
        });
        let (name, more) = (uris.next()?, uris.next());
        if more.is_some() || !is_spiffe_id(name) {
            return None;
        }
        Some(Self {
            name: name.into(),
            validity: Validity::of(certificate).ok()?,
            certificate: CertificateId::of(&parsed).ok()?,
        })
    }
}

/// Whether a text is a SPIFFE id: `spiffe://`, a trust domain, and a path without empty or relative parts.
pub fn is_spiffe_id(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("spiffe://") else { return false };
    let (domain, path) = match rest.split_once('/') {
        Some((domain, path)) => (domain, Some(path)),
        None => (rest, None),
    };
    let of_domain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    let of_path = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_part =
        |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(of_path);
    text.len() <= NAME_BYTES_MAX
        && !domain.is_empty()
        && domain.bytes().all(of_domain)
        && path.is_none_or(|path| path.split('/').all(is_part))
}

/// Verifies as rustls does, and takes only a certificate with exactly one name.
#[derive(Debug)]
struct Named {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for Named {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        match PeerIdentity::of(end_entity) {
            Some(_) => Ok(verified),
            None => {
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::is_spiffe_id;

    #[test]
    fn names_are_what_the_specification_says() {
        for good in ["spiffe://example.org", "spiffe://a_b.c-1/ns/payments/sa/Checkout.v2"] {
            assert!(is_spiffe_id(good), "{good}");
        }
        for bad in [
            "",
            "https://example.org/a",
            "SPIFFE://example.org/a",
            "spiffe://",
            "spiffe:///a",
            "spiffe://Example.org/a",
            "spiffe://example.org/",
            "spiffe://example.org/a//b",
            "spiffe://example.org/a/../b",
            "spiffe://example.org/a?b",
            "spiffe://example.org/a#b",
            "spiffe://user@example.org/a",
            "spiffe://example.org:80/a",
            "spiffe://example.org/\u{e4}",
        ] {
            assert!(!is_spiffe_id(bad), "{bad}");
        }
    }
}
