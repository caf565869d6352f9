//! TLS as operators and stock clients meet it: the real binary, `openssl s_client`, certificates made here.

mod harness;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::certificates::{issue, replace};
use harness::{Caller, PATIENCE, Server, TempDir, directory, prism, run, serve};
use prism_io::client::Client;
use prism_io::grpc::Limits;
use prism_io::tls::{Connector, Failure, Roots};

fn text(path: &Path) -> String {
    path.display().to_string()
}

struct Served {
    folder: TempDir,
    server: Server,
}

impl Served {
    fn start(config: &str) -> Self {
        let folder = directory();
        issue(folder.path(), "server", |_| ());
        let path = |name: &str| text(&folder.path().join(name));
        let server = serve(folder.path())
            .config(&format!("wal: {{segment_bytes: 20MiB}}\n{config}"))
            .flag("--tls-cert", &path("server.pem"))
            .flag("--tls-key", &path("server.key"))
            .start();
        Self { folder, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn connector(&self, name: &str) -> Connector {
        Connector::new(&Roots::File(self.path(name)), "localhost").unwrap()
    }
}

/// Runs `openssl s_client` with what is typed into it: everything that it says on both outputs.
fn s_client(server: &Server, arguments: &[&str], typed: &str) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &server.listen.to_string()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is installed (dev/setup)");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(typed.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn people_reach_it_and_learn_why_when_they_do_not() {
    let served = Served::start("");
    let endpoint = served.server.listen.to_string();
    assert!(served.server.screen.contains("TLS 1.3 and 1.2"), "{}", served.server.screen);
    let authority = text(&served.path("server.pem"));
    let kv = |more: &[&str]| prism(&[&["kv", "--endpoint", &endpoint][..], more].concat());
    let (code, _, errors) = kv(&["--tls-ca", &authority, "set", "greeting", "hello"]);
    assert_eq!(code, 0, "{errors}");
    let (code, value, errors) = kv(&["--tls-ca", &authority, "get", "greeting"]);
    assert_eq!((code, value.trim_end()), (0, "hello"), "{errors}");

    issue(served.folder.path(), "stranger", |_| ());
    let stranger = text(&served.path("stranger.pem"));
    let (code, _, errors) = kv(&["--tls-ca", &stranger, "get", "greeting"]);
    assert_eq!(code, 69);
    assert!(errors.contains("not trusted") && errors.contains("--tls-ca"), "{errors}");
    let (_, _, errors) = kv(&["--tls-ca", &authority, "--tls-name", "example.com", "get", "a"]);
    assert!(errors.contains("not trusted") && errors.contains("--tls-name"), "{errors}");
    let (code, _, errors) = kv(&["--tls-ca", "none.pem", "get", "a"]);
    assert_eq!(code, 2, "{errors}");
    assert!(errors.contains("none.pem: cannot be read"), "{errors}");
    let (code, _, errors) = kv(&["get", "greeting"]);
    assert_eq!(code, 69, "{errors}");
    served.server.stop();
}

#[test]
fn one_who_speaks_tls_to_a_server_in_clear_learns_why_on_both_ends() {
    let folder = directory();
    issue(folder.path(), "server", |_| ());
    let server = serve(folder.path()).start();
    let endpoint = server.listen.to_string();
    let authority = text(&folder.path().join("server.pem"));
    let (code, _, errors) =
        prism(&["kv", "--endpoint", &endpoint, "--tls-ca", &authority, "get", "a"]);
    assert_eq!(code, 69);
    assert!(errors.contains("no TLS with"), "{errors}");
    server.wait_for_metric("prism_tls_unexpected_total", |count| count == 1.0);
    server.terminate();
    let (_, errors) = server.wait_end();
    assert!(errors.contains("began TLS on a port without it"), "{errors}");
}

#[test]
fn versions_protocols_and_renegotiation_are_as_promised() {
    let served = Served::start("");
    let authority = text(&served.path("server.pem"));
    let trusted = ["-CAfile", &authority, "-alpn", "h2"];
    for (version, name) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        let said = s_client(&served.server, &[&trusted[..], &[version]].concat(), "Q\n");
        assert!(said.contains(name) && said.contains("ALPN protocol: h2"), "{said}");
        assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
    }
    // Old versions; a library that has forgotten them cannot even ask.
    let said = s_client(&served.server, &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], "Q\n");
    assert!(said.contains("no peer certificate available"), "{said}");
    assert!(said.contains("Cipher is (NONE)"), "{said}");
    // `R` at the beginning of a line asks for a new handshake.
    let said = s_client(&served.server, &[&trusted[..], &["-tls1_2"]].concat(), "R\n");
    assert!(said.contains("RENEGOTIATING"), "{said}");
    assert!(said.contains("no renegotiation") || said.contains("error"), "{said}");
    let said = s_client(&served.server, &["-alpn", "spdy/3"], "Q\n");
    assert!(said.contains("no application protocol"), "{said}");
    served.server.wait_for_metric("prism_tls_handshakes_failed_total", |count| count >= 1.0);
    served.server.assert_well();
    served.server.stop();
}

#[test]
fn a_certificate_is_replaced_under_load_and_nobody_notices() {
    let served = Served::start("");
    let (listen, first) = (served.server.listen, served.connector("server.pem"));
    let id = served.server.id();
    let folder = served.folder.path().to_owned();
    let connect = move |connector: Connector| async move {
        let limits = Limits::default();
        Client::connect_secured(listen, &connector, "localhost", &limits).await
    };
    run(async move {
        let client = connect(first.clone()).await.unwrap();
        let steady = Caller { client, namespace: "keyvalue".to_owned() };
        steady.set("key", b"value").await;
        for round in 0..5 {
            issue(&folder, "server", |_| ());
            let authority = folder.join("server.pem");
            let second = Connector::new(&Roots::File(authority), "localhost").unwrap();
            harness::signal(id, "HUP");
            let end = Instant::now() + PATIENCE;
            loop {
                steady.get("key").await;
                match connect(second.clone()).await {
                    Ok(_) => break,
                    // Until the signal has been heard.
                    Err(Failure::Untrusted(_)) => assert!(Instant::now() < end, "round {round}"),
                    Err(failure) => panic!("{failure}"),
                }
            }
        }
        // A file that is no certificate changes nothing.
        replace(&folder.join("server.pem"), "nonsense");
        harness::signal(id, "HUP");
    });
    served.server.wait_says("the certificate was not replaced");
    served.server.assert_well();
    served.server.stop();
}

#[test]
fn a_start_with_the_wrong_files_is_refused_with_a_remedy() {
    let folder = directory();
    issue(folder.path(), "one", |_| ());
    issue(folder.path(), "two", |_| ());
    let path = |name: &str| text(&folder.path().join(name));
    for (certificate, key, parts) in [
        ("one.pem", "two.key", ["two.key: this is not the key of", "name the key"]),
        ("none.pem", "one.key", ["none.pem: cannot be read", "check the path"]),
        ("one.key", "one.key", ["one.key: there is no certificate", "BEGIN CERTIFICATE"]),
    ] {
        let (code, errors) = serve(folder.path())
            .flag("--tls-cert", &path(certificate))
            .flag("--tls-key", &path(key))
            .refused();
        assert_eq!(code, 78, "{errors}");
        for part in parts {
            assert!(errors.contains(part), "{part:?} is not in {errors}");
        }
    }
    let (code, errors) = serve(folder.path()).flag("--tls-cert", &path("one.pem")).refused();
    assert_eq!(code, 78, "{errors}");
    assert!(errors.contains("tls has no key"), "{errors}");
}

#[test]
fn doctor_looks_at_the_certificate() {
    let folder = directory();
    let data = text(&folder.path().join("data"));
    let look = |name: &str| {
        let path = |ending: &str| text(&folder.path().join(format!("{name}.{ending}")));
        let (certificate, key) = (path("pem"), path("key"));
        let flags = ["doctor", "--data-dir", &data, "--tls-cert", &certificate, "--tls-key", &key];
        prism(&flags).1
    };
    issue(folder.path(), "good", |_| ());
    let said = look("good");
    assert!(said.contains("certificate") && said.contains("matches its key"), "{said}");
    assert!(said.contains("chmod 600"), "the key of this test is open to others: {said}");
    issue(folder.path(), "old", |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
    });
    assert!(look("old").contains("the certificate has expired"));
    assert!(look("none").contains("cannot be read"));
}

#[test]
fn a_flood_of_handshakes_is_bounded_and_hinders_no_one() {
    let more = "tls: {handshakes_max: 16, handshake_timeout: 60s}\n";
    let served = Served::start(more);
    let (listen, connector) = (served.server.listen, served.connector("server.pem"));
    // Those who begin and never go on.
    let silent: Vec<TcpStream> = (0..16)
        .map(|_| {
            let mut socket = TcpStream::connect(listen).unwrap();
            socket.write_all(&[22, 3, 1, 2]).unwrap();
            socket
        })
        .collect();
    served.server.wait_for_metric("prism_tls_handshakes_in_flight", |count| count == 16.0);
    for _ in 0..50 {
        let mut socket = TcpStream::connect(listen).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let ended = socket.read(&mut [0; 16]);
        assert!(
            matches!(ended, Ok(0))
                || ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
        );
    }
    served.server.wait_refused("handshakes", 49.0);
    drop(silent);
    served.server.wait_for_metric("prism_tls_handshakes_in_flight", |count| count == 0.0);
    run(async move {
        let limits = Limits::default();
        let client = Client::connect_secured(listen, &connector, "localhost", &limits).await;
        let caller = Caller { client: client.unwrap(), namespace: "keyvalue".to_owned() };
        // Whole handshakes one after another, beside one who calls.
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            caller.set("key", b"value").await;
            let other = Client::connect_secured(listen, &connector, "localhost", &limits).await;
            drop(other.unwrap());
        }
    });
    served.server.assert_well();
    served.server.stop();
}
