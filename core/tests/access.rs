//! Who may call, through the real binary: certificates, tokens, grants, and what is refused.

mod harness;

use std::path::Path;

use harness::certificates::{Authority, issue, replace};
use harness::tokens::{ISSUER, Signer, claims, now_s, with};
use harness::{Caller, Server, Setup, TempDir, directory, run, serve};
use prism_io::client::Client;
use prism_io::grpc::Limits;
use prism_io::tls::{Connector, Failure, Identity, Roots};
use serde_json::json;

const REQUESTS: &str = "namespace: orders
team: payments
client_api: keyvalue
access: {consumers: [{team: analytics, may: read}]}
---
namespace: sessions
team: web
client_api: keyvalue
";

const UNAUTHENTICATED: u8 = 16;
const PERMISSION_DENIED: u8 = 7;

fn platform(folder: &Path) -> String {
    format!(
        "tokens: [{{issuer: '{ISSUER}', audience: [prism], keys: {}, clock_skew: 5s}}]
identities:
  - {{id: 'spiffe://example.org/payments/*', team: payments}}
  - {{id: checkout, issuer: '{ISSUER}', team: payments, service: checkout}}
  - {{id: report, issuer: '{ISSUER}', team: analytics}}
grants: [{{service: checkout, namespace: 'sess*', may: read}}]
",
        folder.join("keys.json").display()
    )
}

/// A server that knows identities, with its files in a folder.
fn setup(folder: &Path, more: &str) -> Setup {
    let requests = folder.join("namespaces");
    std::fs::create_dir_all(&requests).unwrap();
    std::fs::write(requests.join("all.yaml"), REQUESTS).unwrap();
    std::fs::write(folder.join("keys.json"), Signer::new(1).keys()).unwrap();
    std::fs::write(folder.join("platform.yaml"), platform(folder)).unwrap();
    serve(folder).shards(2).config(&format!(
        "wal: {{segment_bytes: 20MiB}}\nplatform: {}\nrequests: {}\n{more}",
        folder.join("platform.yaml").display(),
        requests.display()
    ))
}

/// The status with which a read and a write end.
async fn codes(caller: &Caller, token: &str) -> (u8, u8) {
    let metadata: &[(&str, &[u8])] = &[("authorization", token.as_bytes())];
    let metadata = if token.is_empty() { &[] } else { metadata };
    let read = caller.try_get(metadata, "key").await.err();
    let write = caller.try_set(metadata, &caller.set_request("key", b"value")).await.err();
    let code = |refusal: Option<harness::Refusal>| refusal.map_or(0, |refusal| refusal.code as u8);
    (code(read), code(write))
}

const DENIED: (u8, u8) = (PERMISSION_DENIED, PERMISSION_DENIED);
const UNKNOWN: (u8, u8) = (UNAUTHENTICATED, UNAUTHENTICATED);

#[test]
fn a_token_opens_what_was_granted_and_nothing_else() {
    let folder = directory();
    let server = setup(folder.path(), "").start();
    let (listen, signer) = (server.listen, Signer::new(1));
    run(async move {
        let orders = Caller::to(listen, "orders").await;
        let (sessions, nowhere) = (orders.of("sessions"), orders.of("nowhere"));
        let (checkout, report) =
            (signer.token(&claims("checkout")), signer.token(&claims("report")));
        for _ in 0..2 {
            // The second time from memory.
            assert_eq!(codes(&orders, &checkout).await, (0, 0), "the owning team");
            assert_eq!(codes(&orders, &report).await, (0, PERMISSION_DENIED), "a consumer");
            assert_eq!(codes(&sessions, &checkout).await, (0, PERMISSION_DENIED), "a grant");
            assert_eq!(codes(&sessions, &report).await, DENIED);
            assert_eq!(codes(&nowhere, &checkout).await, DENIED, "as if it were there");
            assert_eq!(codes(&orders, "").await, UNKNOWN);
            assert_eq!(codes(&orders, &signer.token(&claims("stranger"))).await, DENIED);
        }
        // Neither the words nor the details tell what there is.
        let metadata: &[(&str, &[u8])] = &[("authorization", report.as_bytes())];
        let there = sessions.try_get(metadata, "key").await.unwrap_err();
        let not_there = nowhere.try_get(metadata, "key").await.unwrap_err();
        assert_eq!((there.message, there.reason), (not_there.message, not_there.reason));
        assert_eq!(there.facts, not_there.facts);
    });
    server.wait_says("nothing grants it");
    server.assert_well();
    server.stop();
}

#[test]
fn a_token_that_does_not_hold_opens_nothing() {
    let folder = directory();
    let server = setup(folder.path(), "").start();
    let (listen, signer) = (server.listen, Signer::new(1));
    run(async move {
        let orders = Caller::to(listen, "orders").await;
        let good = claims("checkout");
        let mut bad = vec![
            ("another's key", Signer::new(2).token(&good)),
            ("expired", signer.token(&with(good.clone(), "exp", json!(now_s() - 60)))),
            ("not yet valid", signer.token(&with(good.clone(), "nbf", json!(now_s() + 60)))),
            ("nbf of another type", signer.token(&with(good.clone(), "nbf", json!("soon")))),
            ("exp of another type", signer.token(&with(good.clone(), "exp", json!("late")))),
            ("another audience", signer.token(&with(good.clone(), "aud", json!("others")))),
            ("another issuer", signer.token(&with(good.clone(), "iss", json!("https://x")))),
            ("alg none", signer.sign(&json!({"alg": "none"}), &good)),
            ("alg HS256", signer.sign(&json!({"alg": "HS256"}), &good)),
            ("alg of another key", signer.sign(&json!({"alg": "ES256"}), &good)),
            ("crit", signer.sign(&json!({"alg": "EdDSA", "crit": ["x"], "x": 1}), &good)),
            ("basic", "Basic YTpi".to_owned()),
            ("nothing", "Bearer".to_owned()),
            ("no token", "Bearer a.b.c".to_owned()),
        ];
        for claim in ["exp", "aud", "iss", "sub"] {
            let mut lacking = good.clone();
            lacking.as_object_mut().unwrap().remove(claim);
            bad.push((claim, signer.token(&lacking)));
        }
        let whole = signer.token(&good);
        bad.push(("no signature", whole[..=whole.rfind('.').unwrap()].to_owned()));
        for (what, token) in bad {
            assert_eq!(codes(&orders, &token).await, UNKNOWN, "{what}");
        }
        // Within the skew.
        let late = signer.token(&with(good.clone(), "nbf", json!(now_s() + 2)));
        assert_eq!(codes(&orders, &late).await, (0, 0));
    });
    server.assert_well();
    server.stop();
}

#[test]
fn keys_and_grants_are_read_again_and_a_fault_leaves_them_in_force() {
    let folder = directory();
    let server = setup(folder.path(), "").start();
    let (old, new) = (Signer::new(1), Signer::new(2));
    let codes_of = |token: String| {
        let listen = server.listen;
        run(async move { codes(&Caller::to(listen, "orders").await, &token).await })
    };
    let (by_old, by_new) = (old.token(&claims("checkout")), new.token(&claims("checkout")));
    assert_eq!(codes_of(by_old.clone()), (0, 0));
    replace(&folder.path().join("keys.json"), "{}");
    server.signal("HUP");
    server.wait_says("were not replaced");
    assert_eq!(codes_of(by_old.clone()), (0, 0));
    replace(&folder.path().join("keys.json"), &new.keys());
    server.signal("HUP");
    server.wait_says("were read again");
    assert_eq!(codes_of(by_old), UNKNOWN);
    assert_eq!(codes_of(by_new), (0, 0));
    server.stop();
}

struct Mutual {
    folder: TempDir,
    server: Server,
    authority: Authority,
}

impl Mutual {
    fn start(wanted: &str) -> Self {
        let folder = directory();
        let authority = Authority::new();
        replace(&folder.path().join("clients.pem"), &authority.pem());
        issue(folder.path(), "server", |_| ());
        let path = |name: &str| folder.path().join(name).display().to_string();
        let tls = format!(
            "tls: {{client_authorities: {}, client_certificates: {wanted}}}\n",
            path("clients.pem")
        );
        let server = setup(folder.path(), &tls)
            .flag("--tls-cert", &path("server.pem"))
            .flag("--tls-key", &path("server.key"))
            .start();
        Self { folder, server, authority }
    }

    fn connector(&self, name: Option<&str>) -> Connector {
        let path = |file: String| self.folder.path().join(file);
        let identity = name.map(|name| {
            Identity::load(&path(format!("{name}.pem")), &path(format!("{name}.key"))).unwrap()
        });
        let roots = Roots::File(path("server.pem".to_owned()));
        Connector::for_backend(&roots, "localhost", identity.as_ref()).unwrap()
    }

    /// What becomes of a read and a write, or of the connection: a server says no after the client's last word of the handshake.
    fn codes(&self, name: Option<&str>) -> Option<(u8, u8)> {
        let (listen, connector) = (self.server.listen, self.connector(name));
        run(async move {
            let limits = Limits::default();
            let client: Result<Client, Failure> =
                Client::connect_secured(listen, &connector, "localhost", &limits).await;
            let caller = Caller { client: client.ok()?, namespace: "orders".to_owned() };
            Some(codes(&caller, "").await).filter(|codes| codes.0 != 14)
        })
    }
}

#[test]
fn a_certificate_says_who_calls() {
    let mutual = Mutual::start("required");
    let folder = mutual.folder.path();
    let (good, other) = ("spiffe://example.org/payments/checkout", "spiffe://example.org/web/a");
    mutual.authority.issue(folder, "good", &[good], |_| ());
    mutual.authority.issue(folder, "other", &[other], |_| ());
    mutual.authority.issue(folder, "none", &[], |_| ());
    mutual.authority.issue(folder, "two", &[good, other], |_| ());
    mutual.authority.issue(folder, "web", &["https://example.org/payments/a"], |_| ());
    mutual.authority.issue(folder, "expired", &[good], |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    mutual.authority.issue(folder, "early", &[good], |params| {
        params.not_before = rcgen::date_time_ymd(4000, 1, 1);
    });
    Authority::new().issue(folder, "foreign", &[good], |_| ());
    assert_eq!(mutual.codes(Some("good")), Some((0, 0)));
    assert_eq!(mutual.codes(Some("other")), Some(DENIED));
    for refused in ["none", "two", "web", "expired", "early", "foreign"] {
        assert_eq!(mutual.codes(Some(refused)), None, "{refused}");
    }
    assert_eq!(mutual.codes(None), None);

    // Another authority from now on; who is connected stays so.
    let (listen, connector) = (mutual.server.listen, mutual.connector(Some("good")));
    let next = Authority::new();
    next.issue(folder, "next", &[good], |_| ());
    let (id, bundle, pem) = (mutual.server.id(), folder.join("clients.pem"), next.pem());
    run(async move {
        let caller = Caller::secured(listen, &connector, "orders").await;
        assert_eq!(codes(&caller, "").await, (0, 0));
        replace(&bundle, &pem);
        harness::signal(id, "HUP");
        let replaced = async {
            // A session is not taken up again that stood for the authority before.
            while let Ok(client) =
                Client::connect_secured(listen, &connector, "localhost", &Limits::default()).await
            {
                let caller = Caller { client, namespace: "orders".to_owned() };
                if codes(&caller, "").await.0 == 14 {
                    break;
                }
            }
        };
        prism_io::rt::timeout(harness::PATIENCE, replaced).await.expect("in time");
        assert_eq!(codes(&caller, "").await, (0, 0));
    });
    assert_eq!(mutual.codes(Some("next")), Some((0, 0)));
    mutual.server.assert_well();
    mutual.server.stop();
}

#[test]
fn a_certificate_may_be_left_out_where_a_token_says_it() {
    let mutual = Mutual::start("optional");
    assert_eq!(mutual.codes(None), Some(UNKNOWN));
    let (listen, connector) = (mutual.server.listen, mutual.connector(None));
    run(async move {
        let caller = Caller::secured(listen, &connector, "orders").await;
        let token = Signer::new(1).token(&claims("checkout"));
        assert_eq!(codes(&caller, &token).await, (0, 0));
    });
    mutual.server.stop();
}

#[test]
fn strangers_come_in_only_where_that_was_said() {
    let folder = directory();
    let setup = setup(folder.path(), "");
    let anonymous = "anonymous: {from: loopback, namespace: sessions, may: read}\n";
    let platform = platform(folder.path()) + anonymous;
    std::fs::write(folder.path().join("platform.yaml"), platform).unwrap();
    let server = setup.start();
    let listen = server.listen;
    run(async move {
        let sessions = Caller::to(listen, "sessions").await;
        assert_eq!(codes(&sessions, "").await, (0, PERMISSION_DENIED));
        assert_eq!(codes(&sessions.of("orders"), "").await, DENIED);
    });
    server.stop();
    let open = |config: &str| {
        let folder = directory();
        serve(folder.path()).config(config).flag("--listen", "0.0.0.0:0").refused()
    };
    let (code, errors) = open("wal: {segment_bytes: 20MiB}\n");
    assert!(code == 78 && errors.contains("plaintext: allowed"), "{code} {errors}");
    let (code, errors) = open("wal: {segment_bytes: 20MiB}\nunprotected: {plaintext: allowed}\n");
    assert!(code == 78 && errors.contains("anonymous: allowed"), "{code} {errors}");
    let config =
        "wal: {segment_bytes: 20MiB}\nunprotected: {plaintext: allowed, anonymous: allowed}\n";
    let folder = directory();
    let server = serve(folder.path()).config(config).flag("--listen", "0.0.0.0:0").start();
    server.wait_says("NOT PROTECTED");
    server.stop();
}
