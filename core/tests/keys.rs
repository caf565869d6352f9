//! Keys of issuers that are at a URL, through the real binary: got, kept while nobody gives them, and exchanged.

mod harness;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use harness::certificates::issue;
use harness::guarded::{UNKNOWN, codes, platform, setup};
use harness::tokens::{Signer, claims, with};
use harness::{Caller, Server, directory, run};
use prism_io::net::Listener;
use prism_io::tls::{Acceptor, Identity};
use serde_json::json;

/// Has the platform's keys be at a URL, with more settings of their issuer.
fn keys_at(folder: &Path, url: &str, more: &str) {
    let file = folder.join("keys.json").display().to_string();
    let platform = platform(folder).replace(&file, &format!("'{url}'{more}"));
    std::fs::write(folder.join("platform.yaml"), platform).unwrap();
}

/// What becomes of a read and a write with a new token of the signer.
fn codes_of(server: &Server, signer: u8, id: u32) -> (u8, u8) {
    let listen = server.listen;
    run(async move {
        let token = with(claims("checkout"), "jti", json!(id));
        codes(&Caller::to(listen, "orders").await, &Signer::new(signer).token(&token)).await
    })
}

/// A server of keys in clear on this machine, with what it answers from now on; nothing: it hangs up.
struct KeyServer {
    address: SocketAddr,
    keys: Arc<Mutex<Option<String>>>,
}

impl KeyServer {
    fn start(keys: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server =
            Self { address: listener.local_addr().unwrap(), keys: Arc::new(Mutex::new(keys)) };
        let keys = server.keys.clone();
        // Ends with the process.
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (Ok(mut socket), answer) = (socket, keys.lock().unwrap().clone()) else {
                    return;
                };
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && socket.read_exact(&mut byte).is_ok() {
                    request.push(byte[0]);
                }
                if let Some(keys) = answer {
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", keys.len());
                    let _ = socket.write_all((head + &keys).as_bytes());
                }
            }
        });
        server
    }

    fn set(&self, keys: Option<String>) {
        *self.keys.lock().unwrap() = keys;
    }
}

#[test]
fn keys_come_from_a_url_and_stay_while_it_is_away() {
    let folder = directory();
    let keys = KeyServer::start(None);
    let setup = setup(folder.path(), "");
    keys_at(folder.path(), &format!("http://{}/keys", keys.address), ", keys_refresh: 1h");
    // It serves although nobody gives it keys yet; so no token is taken.
    let server = setup.start();
    server.wait_says("no token of this issuer is taken until they can");
    assert_eq!(codes_of(&server, 1, 0), UNKNOWN);
    let reload = |name: &str| {
        let before = server.metric(name);
        server.signal("HUP");
        server.wait_for_metric(name, |now| now > before);
    };
    // A change is in force soon after the keys have come.
    let becomes = |signer: u8, wanted: (u8, u8)| {
        let end = std::time::Instant::now() + harness::PATIENCE;
        while codes_of(&server, signer, 1) != wanted {
            assert!(std::time::Instant::now() < end, "keys of {signer}: never {wanted:?}");
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    };
    keys.set(Some(Signer::new(1).keys()));
    reload("prism_token_keys_fetched_total");
    becomes(1, (0, 0));
    // Away, and then talking nonsense: the last good ones stay.
    for answer in [None, Some("{}".to_owned())] {
        keys.set(answer);
        reload("prism_token_keys_failed_total");
        assert_eq!(codes_of(&server, 1, 2), (0, 0));
    }
    server.wait_says("those before stay in force");
    keys.set(Some(Signer::new(2).keys()));
    reload("prism_token_keys_fetched_total");
    becomes(2, (0, 0));
    assert_eq!(codes_of(&server, 1, 3), UNKNOWN);
    server.assert_well();

    // Over a death of the server, too, and a start while nobody gives any.
    keys.set(None);
    server.kill();
    let server = setup.start();
    server.wait_for_metric("prism_token_keys_failed_total", |failed| failed >= 1.0);
    assert_eq!(codes_of(&server, 2, 4), (0, 0));
    assert_eq!(codes_of(&server, 1, 5), UNKNOWN);
    keys.set(Some(Signer::new(3).keys()));
    server.signal("HUP");
    let end = std::time::Instant::now() + harness::PATIENCE;
    while codes_of(&server, 3, 6) != (0, 0) {
        assert!(std::time::Instant::now() < end, "new keys are never in force");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert_eq!(codes_of(&server, 2, 7), UNKNOWN);
    server.stop();
    // What is kept is no secret, but has to be right: else keys are got anew.
    std::fs::write(folder.path().join("data/keys.json"), "nonsense").unwrap();
    let server = setup.start();
    assert_eq!(codes_of(&server, 3, 8), (0, 0));
    server.stop();
}

/// A server of keys over TLS, whose certificate stands for itself.
fn secured_keys(folder: &Path) -> SocketAddr {
    issue(folder, "issuer", |_| ());
    let path = |name: &str| folder.join(name);
    let identity = Identity::load(&path("issuer.pem"), &path("issuer.key")).unwrap();
    let acceptor = Acceptor::new(&identity).unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    socket.set_nonblocking(true).unwrap();
    // Ends with the process.
    std::thread::spawn(move || {
        run(async move {
            let listener = Listener::new(socket).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                // Who does not trust it hangs up.
                let Ok(stream) = stream.accept(&acceptor).await else { continue };
                let (mut read, mut write) = stream.split();
                let mut request = BytesMut::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.reserve(4096);
                    let (count, filled) = read.read(request).await;
                    request = filled;
                    if !count.is_ok_and(|count| count > 0) {
                        break;
                    }
                }
                let keys = Signer::new(1).keys();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", keys.len());
                let _ = write.write_all((head + &keys).into_bytes()).await;
                let _ = write.shutdown().await;
            }
        })
    });
    address
}

#[test]
fn keys_come_over_tls_from_a_server_that_is_trusted() {
    let folder = directory();
    let url = format!("https://{}/keys", secured_keys(folder.path()));
    let setup = setup(folder.path(), "");
    let authority = folder.path().join("issuer.pem").display().to_string();
    keys_at(folder.path(), &url, &format!(", keys_ca: {authority}"));
    let server = setup.start();
    assert_eq!(codes_of(&server, 1, 0), (0, 0));
    server.stop();
    // Its certificate leads to none of the authorities that the system trusts.
    let other = directory();
    let setup = harness::guarded::setup(other.path(), "");
    keys_at(other.path(), &url, "");
    let server = setup.start();
    server.wait_says("no token of this issuer is taken until they can");
    assert_eq!(codes_of(&server, 1, 0), UNKNOWN);
    server.stop();
}
