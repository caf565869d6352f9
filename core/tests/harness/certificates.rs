//! Certificates that are made for a test and stand for themselves.

use std::path::Path;

use rcgen::{CertificateParams, KeyPair};

/// Writes a certificate for `localhost` and its key: `<name>.pem` and `<name>.key`.
pub fn issue(folder: &Path, name: &str, change: impl FnOnce(&mut CertificateParams)) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    replace(&folder.join(format!("{name}.pem")), &certificate.pem());
    replace(&folder.join(format!("{name}.key")), &key.serialize_pem());
}

/// As tools replace a file: readers see the old one or the new one.
pub fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path).unwrap();
}
