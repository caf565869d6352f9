//! Which certificates of clients their authorities have revoked, for connections that stand when that becomes known.

use std::collections::HashSet;
use std::sync::Arc;

use rustls::pki_types::CertificateRevocationListDer;
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::der::{Decode, Encode};

/// A certificate as revocation lists name it: by who has issued it and the number it has there (RFC 5280, section 5.1.2.6).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct CertificateId {
    issuer: Arc<[u8]>,
    serial: Box<[u8]>,
}

impl CertificateId {
    pub(super) fn of(certificate: &Certificate) -> Result<Self, x509_cert::der::Error> {
        let of = certificate.tbs_certificate();
        let (issuer, serial) = (of.issuer().to_der()?.into(), of.serial_number().as_bytes().into());
        Ok(Self { issuer, serial })
    }
}

/// The certificates that are on the lists.
#[derive(Debug, Default)]
pub(crate) struct Revoked(HashSet<CertificateId>);

impl Revoked {
    /// Reads lists. What they say is believed: whoever gives the files has got them from the authorities.
    pub(super) fn of(lists: &[CertificateRevocationListDer<'_>]) -> Result<Self, String> {
        let mut all = HashSet::default();
        for list in lists {
            let list: CertificateList =
                CertificateList::from_der(list).map_err(|error| error.to_string())?;
            let list = list.tbs_cert_list;
            let issuer: Arc<[u8]> = list.issuer.to_der().map_err(|error| error.to_string())?.into();
            for revoked in list.revoked_certificates.into_iter().flatten() {
                let serial = revoked.serial_number.as_bytes().into();
                all.insert(CertificateId { issuer: issuer.clone(), serial });
            }
        }
        Ok(Self(all))
    }

    pub(crate) fn contains(&self, certificate: &CertificateId) -> bool {
        self.0.contains(certificate)
    }
}
