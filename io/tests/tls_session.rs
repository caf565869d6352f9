//! TLS without sockets: whatever way the bytes are cut, both ends hear the same; what is wrong ends with an alert.

mod tls_support;

use std::sync::Arc;

use bytes::BytesMut;
use prism_io::tls::{GATHER_BYTES_MAX, PROTOCOLS, Phase, Sealed, Session};
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig, Error};
use tls_support::{Files, files};

/// One end: what it was sent and has not taken, what it has read, and what it has to say.
struct End {
    session: Session,
    incoming: BytesMut,
    plain: BytesMut,
    sealed: Sealed,
}

impl End {
    fn new(session: Session) -> Self {
        let (incoming, plain) = (BytesMut::new(), BytesMut::new());
        Self { session, incoming, plain, sealed: Sealed::default() }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<Phase, Error> {
        self.incoming.extend_from_slice(bytes);
        self.session.receive(&mut self.incoming, &mut self.plain, &mut self.sealed)
    }

    fn say(&mut self, text: &[u8]) {
        self.session.seal_whole(text, &mut self.sealed).unwrap();
    }

    /// Everything that it has to say.
    fn words(&mut self) -> Vec<u8> {
        let words = self.sealed.as_slice().to_vec();
        self.sealed.clear(0);
        words
    }
}

fn ends(files: &Files) -> (End, End) {
    let client = End::new(files.connector().session().unwrap());
    let server = End::new(files.acceptor().session().unwrap());
    (client, server)
}

/// Hands over what each has to say, `cut` bytes at a time, until both are silent.
fn talk(a: &mut End, b: &mut End, cut: usize) -> Result<(), Error> {
    a.session.start(&mut a.sealed)?;
    loop {
        let (of_a, of_b) = (a.words(), b.words());
        if of_a.is_empty() && of_b.is_empty() {
            return Ok(());
        }
        for part in of_a.chunks(cut) {
            b.take(part)?;
        }
        for part in of_b.chunks(cut) {
            a.take(part)?;
        }
    }
}

#[test]
fn a_handshake_is_the_same_however_its_bytes_are_cut() {
    let files = files();
    for cut in (1..40).chain([100, 255, 256, 1000, 1 << 20]) {
        let (mut client, mut server) = ends(&files);
        talk(&mut client, &mut server, cut).unwrap();
        assert_eq!(client.session.phase(), Phase::Open, "cut {cut}");
        assert_eq!(server.session.phase(), Phase::Open, "cut {cut}");
        assert_eq!(server.session.protocol(), Some(PROTOCOLS[0]));
        assert!(client.incoming.is_empty() && server.incoming.is_empty());
    }
}

#[test]
fn what_was_said_arrives_whole_wherever_it_is_cut() {
    let files = files();
    let (mut client, mut server) = ends(&files);
    talk(&mut client, &mut server, 1 << 20).unwrap();
    let mut said = Vec::new();
    let mut records = Vec::new();
    for length in [1usize, 9, 200, 3000] {
        let text = vec![length as u8; length];
        client.say(&text);
        said.extend(text);
    }
    records.extend(client.words());
    for cut in 0..=records.len() {
        // A fresh conversation for every cut would measure handshakes: the server's answers show that it read everything.
        if cut > 0 {
            for length in [1usize, 9, 200, 3000] {
                client.say(&vec![length as u8; length]);
            }
            records = client.words();
        }
        server.plain.clear();
        server.take(&records[..cut]).unwrap();
        let early = server.plain.len();
        assert!(early <= cut, "nothing comes before its record");
        server.take(&records[cut..]).unwrap();
        assert!(server.plain == said, "cut at {cut}");
        assert!(server.incoming.is_empty());
    }
}

#[test]
fn short_parts_share_a_record_and_long_ones_are_as_few_as_can_be() {
    let files = files();
    let (mut client, mut server) = ends(&files);
    talk(&mut client, &mut server, 1 << 20).unwrap();
    let records = |bytes: &[u8]| {
        let (mut count, mut at) = (0, 0);
        while at < bytes.len() {
            at += 5 + usize::from(u16::from_be_bytes([bytes[at + 3], bytes[at + 4]]));
            count += 1;
        }
        assert_eq!(at, bytes.len());
        count
    };
    for _ in 0..10 {
        server.session.seal(&[7; 100], &mut server.sealed).unwrap();
    }
    assert!(server.sealed.is_empty(), "short parts wait for each other");
    server.session.flush(&mut server.sealed).unwrap();
    let words = server.words();
    assert_eq!(records(&words), 1);
    client.take(&words).unwrap();
    assert_eq!(client.plain.len(), 1000);
    client.plain.clear();

    server.session.seal(&[1; 9], &mut server.sealed).unwrap();
    server.session.seal(&[2; 5 * 16 * 1024 - 1], &mut server.sealed).unwrap();
    server.session.seal(&[3; GATHER_BYTES_MAX - 1], &mut server.sealed).unwrap();
    server.session.flush(&mut server.sealed).unwrap();
    let words = server.words();
    assert_eq!(records(&words), 1 + 5 + 1);
    client.take(&words).unwrap();
    let mut expected = vec![1; 9];
    expected.extend(vec![2; 5 * 16 * 1024 - 1]);
    expected.extend(vec![3; GATHER_BYTES_MAX - 1]);
    assert!(client.plain == expected);
}

#[test]
fn a_close_is_heard_once_and_what_came_before_it_counts() {
    let files = files();
    let (mut client, mut server) = ends(&files);
    talk(&mut client, &mut server, 1 << 20).unwrap();
    client.say(b"last words");
    client.session.close(&mut client.sealed);
    let words = client.words();
    client.session.close(&mut client.sealed);
    assert!(client.sealed.is_empty(), "goodbye is said once");
    assert_eq!(server.take(&words).unwrap(), Phase::PeerClosed);
    assert_eq!(&server.plain[..], b"last words");
    // The other direction stays open until it is closed as well; who has closed does not listen any more.
    server.say(b"and mine");
    server.session.close(&mut server.sealed);
    let words = server.words();
    assert_eq!(client.take(&words), Ok(Phase::Open));
    assert!(client.plain.is_empty() && client.incoming.is_empty());
}

#[test]
fn one_flipped_bit_anywhere_ends_the_connection_with_an_alert() {
    let files = files();
    let (mut client, mut server) = ends(&files);
    talk(&mut client, &mut server, 1 << 20).unwrap();
    client.say(b"something");
    let mut words = client.words();
    let last = words.len() - 1;
    words[last] ^= 1;
    let error = server.take(&words).unwrap_err();
    assert_eq!(error, Error::DecryptError);
    assert!(server.plain.is_empty());
    let alert = server.words();
    let heard = client.take(&alert).unwrap_err();
    assert_eq!(heard, Error::AlertReceived(AlertDescription::BadRecordMac));
    // It is over: nothing is taken or said any more.
    assert!(server.take(b"").is_err());
    server.session.close(&mut server.sealed);
    assert!(server.sealed.is_empty());
}

/// What a client that trusts the authority of these files is made of.
fn strange_client_config(
    files: &Files,
    provider: rustls::crypto::CryptoProvider,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(files.path("ca.pem")).unwrap();
    use rustls::pki_types::pem::PemObject;
    for certificate in rustls::pki_types::CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.unwrap()).unwrap();
    }
    ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// A client that offers what ours never would.
fn strange_client(
    files: &Files,
    change: impl FnOnce(&mut ClientConfig),
) -> rustls::ClientConnection {
    let provider = rustls::crypto::ring::default_provider();
    let mut config = strange_client_config(files, provider, rustls::DEFAULT_VERSIONS);
    change(&mut config);
    let name = ServerName::try_from("localhost").unwrap();
    rustls::ClientConnection::new(Arc::new(config), name).unwrap()
}

/// A client that speaks these suites and no others.
fn strange_client_of(
    files: &Files,
    suites: &[rustls::SupportedCipherSuite],
) -> rustls::ClientConnection {
    let provider = rustls::crypto::CryptoProvider {
        cipher_suites: suites.to_vec(),
        ..rustls::crypto::ring::default_provider()
    };
    let versions: Vec<_> = suites.iter().map(|suite| suite.version()).collect();
    let connector = strange_client_config(files, provider, &versions);
    let name = ServerName::try_from("localhost").unwrap();
    rustls::ClientConnection::new(Arc::new(connector), name).unwrap()
}

#[test]
fn a_client_without_a_protocol_of_ours_is_told_so() {
    let files = files();
    let mut client = strange_client(&files, |config| {
        config.alpn_protocols = vec![b"spdy/3".to_vec()];
    });
    let mut server = End::new(files.acceptor().session().unwrap());
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    assert_eq!(server.take(&hello).unwrap_err(), Error::NoApplicationProtocol);
    client.read_tls(&mut server.sealed.as_slice()).unwrap();
    let heard = client.process_new_packets().unwrap_err();
    assert_eq!(heard, Error::AlertReceived(AlertDescription::NoApplicationProtocol));
}

#[test]
fn keys_are_renewed_when_the_peer_wants_it_and_nothing_is_lost() {
    let files = files();
    let mut client = strange_client(&files, |_| ());
    let mut server = End::new(files.acceptor().session().unwrap());
    let turn = |client: &mut rustls::ClientConnection, server: &mut End| {
        let mut words = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut words).unwrap();
        }
        server.take(&words).unwrap();
        let words = server.words();
        let mut rest = &words[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
        }
    };
    for _ in 0..3 {
        turn(&mut client, &mut server);
    }
    for round in 0..20u8 {
        client.refresh_traffic_keys().unwrap();
        std::io::Write::write_all(&mut client.writer(), &[round; 10]).unwrap();
        turn(&mut client, &mut server);
        assert_eq!(&server.plain[..], [round; 10]);
        server.plain.clear();
        server.say(&[round; 20]);
        turn(&mut client, &mut server);
        let mut back = [0; 20];
        std::io::Read::read_exact(&mut client.reader(), &mut back).unwrap();
        assert_eq!(back, [round; 20]);
    }
}

#[test]
fn rubbish_of_any_kind_ends_in_an_error_and_an_alert() {
    let files = files();
    for rubbish in [
        &b"\0\0\0\0\0\0\0\0\0\0"[..],
        b"\x16\x03\x01\xff\xff\x01\0\0\0",
        b"\x17\x03\x03\0\x05hello",
        b"\x80\x2e\x01\x03\x01\0\x15\0\0\0\x10",
    ] {
        let mut server = End::new(files.acceptor().session().unwrap());
        let error = server.take(rubbish).unwrap_err();
        assert!(!server.sealed.is_empty(), "{error} without an alert");
        assert_eq!(server.words()[0], 21, "an alert");
    }
    // A message longer than any is: rustls says nothing, so the connection just ends.
    let mut server = End::new(files.acceptor().session().unwrap());
    assert!(server.take(b"\x16\x03\x01\0\x05\x01\xff\xff\xff\0").is_err());
}

#[test]
fn a_replaced_certificate_is_shown_to_those_who_come_later() {
    let files = files();
    let acceptor = files.acceptor();
    files.issue("other", |_| ());
    let connector = files.connector();
    let mut before =
        (End::new(connector.session().unwrap()), End::new(acceptor.session().unwrap()));
    acceptor.replace(&files.identity("other"), None).unwrap();
    talk(&mut before.0, &mut before.1, 1000).unwrap();
    // The ticket of the first is good for the second, whatever certificate it was given under.
    let mut after = (End::new(connector.session().unwrap()), End::new(acceptor.session().unwrap()));
    talk(&mut after.0, &mut after.1, 1000).unwrap();
    assert!(!before.1.session.is_resumed());
    assert!(after.1.session.is_resumed());
    assert_eq!(after.1.session.phase(), Phase::Open);
}

/// A record of the handshake as a client that has taken its keys into its own hands seals it.
struct Forger {
    key: ring::aead::LessSafeKey,
    iv: [u8; 12],
    number: u64,
}

impl Forger {
    fn of(client: rustls::ClientConnection) -> Self {
        let secrets = client.dangerous_extract_secrets().unwrap();
        let (number, secrets) = secrets.tx;
        let rustls::ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else {
            panic!("another cipher suite than expected")
        };
        let key = ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, key.as_ref()).unwrap();
        let iv = iv.as_ref().try_into().unwrap();
        Self { key: ring::aead::LessSafeKey::new(key), iv, number }
    }

    fn record(&mut self, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut nonce = self.iv;
        for (byte, of_number) in nonce[4..].iter_mut().zip(self.number.to_be_bytes()) {
            *byte ^= of_number;
        }
        self.number += 1;
        let mut sealed = [payload, &[kind]].concat();
        let length = sealed.len() as u16 + 16;
        let mut record = vec![23, 3, 3];
        record.extend(length.to_be_bytes());
        let nonce = ring::aead::Nonce::assume_unique_for_key(nonce);
        let header = ring::aead::Aad::from(record.clone());
        self.key.seal_in_place_append_tag(nonce, header, &mut sealed).unwrap();
        record.extend(sealed);
        record
    }
}

#[test]
fn a_handshake_message_in_parts_after_the_handshake_is_refused_and_breaks_nothing() {
    let files = files();
    let key_update = [24, 0, 0, 1, 0];
    for forged in [&key_update[..], &key_update[..3], &key_update[..1]] {
        let mut client = strange_client(&files, |config| config.enable_secret_extraction = true);
        let mut server = End::new(files.acceptor().session().unwrap());
        for _ in 0..3 {
            let mut words = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut words).unwrap();
            }
            server.take(&words).unwrap();
            let words = server.words();
            client.read_tls(&mut &words[..]).unwrap();
            client.process_new_packets().unwrap();
        }
        let mut forger = Forger::of(client);
        server.take(&forger.record(23, b"hello")).unwrap();
        assert_eq!(&server.plain[..], b"hello");
        let result = server.take(&forger.record(22, forged));
        assert_eq!(result.is_ok(), forged.len() == key_update.len(), "{forged:?}: {result:?}");
        // What the rest of the program does with it either way.
        let _ = server.session.seal_whole(b"more", &mut server.sealed);
        server.session.close(&mut server.sealed);
        assert!(!server.sealed.is_empty(), "something is said in the end");
        let _ = server.take(&forger.record(23, b"late"));
        let _ = server.session.seal_whole(b"more", &mut server.sealed);
    }
}

/// A ClientHello that goes no higher than this version: what a client of long ago says.
fn old_hello(version: [u8; 2]) -> Vec<u8> {
    let mut body = version.to_vec();
    body.extend_from_slice(&[7; 32]);
    // No session, one suite of that time (TLS_RSA_WITH_AES_128_CBC_SHA), no compression, no extensions.
    body.extend_from_slice(&[0, 0, 2, 0, 0x2f, 1, 0, 0, 0]);
    let mut hello = vec![22, 3, 1];
    hello.extend_from_slice(&(body.len() as u16 + 4).to_be_bytes());
    hello.extend_from_slice(&[1, 0, 0, body.len() as u8]);
    hello.extend_from_slice(&body);
    hello
}

/// RFC 9113, section 9.2: TLS 1.2 at least.
#[test]
fn versions_before_1_2_are_refused() {
    for version in [[3, 0], [3, 1], [3, 2]] {
        let mut server = End::new(files().acceptor().session().unwrap());
        assert!(server.take(&old_hello(version)).is_err(), "{version:?}");
        let alert = server.words();
        assert_eq!((alert[0], alert[5]), (21, 2), "a fatal alert for {version:?}: {alert:02x?}");
    }
}

/// RFC 9113, section 9.2.2 and appendix A: of TLS 1.2 only suites with ephemeral keys and AEAD; and nothing of the kind that is
/// prohibited is taken from a client that has nothing else.
#[test]
fn suites_that_http2_prohibits_are_not_spoken() {
    let files = files();
    let spoken = |suites: &[rustls::SupportedCipherSuite]| {
        let mut client = strange_client_of(&files, suites);
        let mut server = End::new(files.acceptor().session().unwrap());
        for _ in 0..8 {
            let mut said = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut said).unwrap();
            }
            if server.take(&said).is_err() {
                return None;
            }
            let mut answer = &server.words()[..];
            while !answer.is_empty() {
                client.read_tls(&mut answer).unwrap();
                client.process_new_packets().ok()?;
            }
        }
        client.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()))
    };
    let all = rustls::crypto::ring::default_provider().cipher_suites;
    let mut names: Vec<_> =
        all.iter().filter_map(|suite| spoken(std::slice::from_ref(suite))).collect();
    assert!(names.len() >= 6, "{names:?}");
    names.retain(|name| !name.starts_with("TLS13_"));
    for name in &names {
        let is_ephemeral = name.starts_with("TLS_ECDHE_");
        let is_aead = name.contains("_GCM_") || name.contains("_CHACHA20_POLY1305_");
        assert!(is_ephemeral && is_aead, "{name}");
    }
    // One that knows TLS 1.2 and nothing that may be spoken.
    let mut server = End::new(files.acceptor().session().unwrap());
    assert!(server.take(&old_hello([3, 3])).is_err());
    assert_eq!(server.words().first(), Some(&21), "it is told why");
}

/// RFC 9113, section 9.2.1: compression and renegotiation are off. TLS has the one no more, and the other is refused.
#[test]
fn a_client_that_begins_again_is_refused() {
    let files = files();
    let suites: Vec<_> = rustls::crypto::ring::default_provider()
        .cipher_suites
        .into_iter()
        .filter(|suite| suite.tls13().is_none())
        .collect();
    let mut client = strange_client_of(&files, &suites);
    let mut server = End::new(files.acceptor().session().unwrap());
    while client.is_handshaking() {
        let mut said = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut said).unwrap();
        }
        server.take(&said).unwrap();
        let mut answer = &server.words()[..];
        while !answer.is_empty() {
            client.read_tls(&mut answer).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    // In clear where everything is sealed by now: no server may take it for another beginning.
    assert!(server.take(&old_hello([3, 3])).is_err());
}
