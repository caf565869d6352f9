//! The server's certificate, and whose certificates its clients may show: read at start, told about while it holds, read again when the operator says so.
//!
//! A certificate that cannot be read stops the start; later it leaves the one that is there in force. One that has expired is served
//! all the same, with a warning: clients refuse it by themselves, and a server that is gone helps nobody.

use prism_io::clock::wall_us;
use prism_io::tls::{Acceptor, ClientAuthorities, Identity, IdentityError, Validity};

use crate::config::{Tls, TlsClients, units};

/// A certificate that ends within this time is warned of. 14 days.
const EXPIRY_NOTICE_S: u64 = 14 * 86_400;

/// The certificate of this process and its files.
pub(crate) struct Certificates {
    files: Tls,
    acceptor: Acceptor,
}

impl Certificates {
    /// Reads the files.
    pub(crate) fn load(files: &Tls) -> Result<Self, String> {
        let (identity, clients) = read(files).map_err(|error| error.to_string())?;
        let acceptor = Acceptor::with_clients(&identity, clients.as_ref())
            .map_err(|error| format!("no TLS here: {error}"))?;
        Ok(Self { files: files.clone(), acceptor })
    }

    /// What connections are accepted with, now and after every reload.
    pub(crate) fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// Reads the files again. New connections get what they hold; those that stand go on. Says in the log how it went.
    pub(crate) fn reload(&self) -> Result<(), String> {
        let replaced =
            read(&self.files).map_err(|error| error.to_string()).and_then(|(identity, clients)| {
                self.acceptor
                    .replace(&identity, clients.as_ref())
                    .map_err(|error| error.to_string())
            });
        match &replaced {
            Ok(()) => tracing::info!(
                certificate = %self.files.certificate.display(),
                "the certificate was read again; new connections get it"
            ),
            Err(error) => {
                tracing::error!(
                    "the certificate was not replaced, the one before stays in force: {error}"
                );
            }
        }
        replaced
    }
}

fn read(files: &Tls) -> Result<(Identity, Option<ClientAuthorities>), IdentityError> {
    let identity = Identity::load(&files.certificate, &files.key)?;
    if let Some((found, remedy)) = validity_concern(identity.validity(), wall_us() / 1_000_000) {
        tracing::warn!("{}: {found}; {remedy}", files.certificate.display());
    }
    let load = |of: &TlsClients| {
        ClientAuthorities::load(&of.authorities, of.required, of.revoked.as_deref())
    };
    let clients = files.clients.as_ref().map(load).transpose()?;
    Ok((identity, clients))
}

/// What is to be said about the time in which a certificate holds, and what to do: nothing while all is well.
pub(crate) fn validity_concern(validity: Validity, now_s: u64) -> Option<(String, &'static str)> {
    if now_s < validity.from_s {
        let found = format!("the certificate holds only in {}", about(validity.from_s - now_s));
        return Some((found, "check this machine's clock, or wait: clients refuse it until then"));
    }
    if now_s > validity.until_s {
        let found = format!("the certificate has expired, {} ago", about(now_s - validity.until_s));
        return Some((found, "get a new one and send SIGHUP: clients refuse this one"));
    }
    let left_s = validity.until_s - now_s;
    (left_s < EXPIRY_NOTICE_S).then(|| {
        let found = format!("the certificate expires in {}", about(left_s));
        (found, "get a new one and send SIGHUP before that")
    })
}

/// A span in its largest unit, rounded down.
pub(crate) fn about(seconds: u64) -> String {
    let unit_s = [86_400, 3_600, 60].into_iter().find(|unit_s| seconds >= *unit_s).unwrap_or(1);
    units::show_duration(std::time::Duration::from_secs(seconds / unit_s * unit_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wrong_or_near_is_told() {
        let validity = Validity { from_s: 1_000_000, until_s: 9_000_000 };
        let concern = |now_s| validity_concern(validity, now_s).map(|(found, _)| found);
        assert_eq!(concern(5_000_000), None);
        assert!(concern(1).unwrap().contains("holds only in"));
        assert!(concern(9_000_000 - 3_600).unwrap().contains("expires in 1h"));
        assert!(concern(9_000_000 + 7_200).unwrap().contains("has expired, 2h ago"));
    }
}
