//! Certificates and keys from files: what is wrong is said with the file and a remedy.

mod tls_support;

use prism_io::tls::{Connector, ConnectorError, Identity, Roots};
use tls_support::{Files, files};

fn refused(files: &Files, certificate: &str, key: &str) -> String {
    let (certificate, key) = (files.path(certificate), files.path(key));
    let text = Identity::load(&certificate, &key).expect_err("it is refused").to_string();
    text.replace(&files.path("").display().to_string(), "")
}

#[test]
fn what_is_wrong_is_named_with_its_file_and_a_remedy() {
    let files = files();
    files.issue("other", |_| ());
    let write = |name: &str, text: &str| std::fs::write(files.path(name), text).unwrap();
    write("empty.pem", "");
    write(
        "encrypted.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    write("rubbish.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    write("broken.pem", "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n");
    for (certificate, key, parts) in [
        ("none.pem", "server.key", ["none.pem: cannot be read", "check the path"]),
        ("server.pem", "none.key", ["none.key: cannot be read", "check the path"]),
        (
            "server.pem",
            "other.key",
            ["other.key: this is not the key of server.pem", "name the key"],
        ),
        ("empty.pem", "server.key", ["empty.pem: there is no certificate", "BEGIN CERTIFICATE"]),
        ("server.key", "server.key", ["server.key: there is no certificate", "BEGIN CERTIFICATE"]),
        ("server.pem", "server.pem", ["server.pem: there is no private key", "BEGIN PRIVATE KEY"]),
        ("server.pem", "encrypted.key", ["encrypted.key: the key is encrypted", "openssl pkey"]),
        ("rubbish.pem", "server.key", ["rubbish.pem: the first certificate", "export it again"]),
        ("broken.pem", "server.key", ["broken.pem: not a PEM file", "export it again"]),
    ] {
        let text = refused(&files, certificate, key);
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
    }
}

#[test]
fn the_time_of_a_certificate_is_read_from_it() {
    let files = files();
    files.issue("old", |params| {
        params.not_before = rcgen::date_time_ymd(2001, 9, 9);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let validity = files.identity("old").validity();
    assert_eq!(validity.from_s, 999_993_600);
    assert_eq!(validity.until_s, 1_577_836_800);
}

#[test]
fn a_client_says_why_it_cannot_trust_or_name_a_server() {
    let files = files();
    let roots = Roots::File(files.path("ca.pem"));
    assert!(matches!(Connector::new(&roots, "two words"), Err(ConnectorError::Name(_))));
    let missing = Connector::new(&Roots::File(files.path("none.pem")), "localhost").unwrap_err();
    assert!(missing.to_string().contains("none.pem: cannot be read"), "{missing}");
    assert!(Connector::new(&roots, "127.0.0.1").is_ok());
    assert!(Connector::new(&roots, "::1").is_ok());
}
