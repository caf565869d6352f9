//! The checks of the certificate and its key.

use std::os::unix::fs::PermissionsExt;

use prism_io::clock::wall_us;
use prism_io::tls::Identity;

use super::Check;
use crate::certificates::{about, validity_concern};
use crate::config::Tls;

pub(super) fn examine(tls: &Tls) -> Vec<Check> {
    let identity = match Identity::load(&tls.certificate, &tls.key) {
        Ok(identity) => identity,
        Err(error) => {
            let found = format!("{}: {}", error.path.display(), error.message);
            return vec![Check::fail("certificate", found, error.remedy)];
        }
    };
    let (validity, now_s) = (identity.validity(), wall_us() / 1_000_000);
    let certificate = match validity_concern(validity, now_s) {
        None => {
            let left = about(validity.until_s - now_s);
            Check::ok("certificate", format!("matches its key, holds for another {left}"))
        }
        Some((found, remedy)) => Check::warn("certificate", found, remedy),
    };
    vec![certificate, permissions(tls)]
}

/// A key that others may read is not a secret.
fn permissions(tls: &Tls) -> Check {
    let path = tls.key.display();
    let mode = std::fs::metadata(&tls.key).map(|metadata| metadata.permissions().mode() & 0o777);
    match mode {
        Ok(mode) if mode & 0o077 == 0 => Check::ok("key", format!("{path}, mode {mode:03o}")),
        Ok(mode) => Check::warn(
            "key",
            format!("{path} can be used by others than its owner: mode {mode:03o}"),
            format!("chmod 600 {path}"),
        ),
        Err(error) => Check::warn("key", format!("{path}: {error}"), "check the path".to_owned()),
    }
}
