//! Who may call, through the real binary: certificates, tokens, grants, and what is refused.

mod harness;

use std::path::Path;

use harness::certificates::{Authority, issue, replace};
use harness::guarded::{DENIED, PERMISSION_DENIED, REQUESTS, UNKNOWN, codes, platform, setup};
use harness::tokens::{Signer, claims, now_s, with};
use harness::{Caller, Server, TempDir, directory, run, serve, together};
use prism_io::client::{Client, StreamReply};
use prism_io::grpc::{Code, Limits};
use prism_io::tls::{Connector, Failure, Identity, Roots};
use prism_proto::catalogue::Method;
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::r#type::v1::{Start, start};
use prost::Message as _;
use serde_json::json;

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

/// A Write needs grants in its own namespace and in those of its messages, and tells nothing of those that it is denied.
#[test]
fn messages_of_a_transaction_need_grants_in_both_namespaces() {
    use prism_proto::catalogue::Method;
    use prism_proto::prism::transact::v1 as transact;
    use prism_proto::prism::r#type::v1::{Message, Operation, Put, operation::Action};

    let folder = directory();
    let setup = setup(folder.path(), "");
    let more = "namespace: ledger\nteam: payments\nclient_api: transact\n---\n\
                namespace: mail\nteam: payments\nclient_api: queue\n---\n\
                namespace: audits\nteam: web\nclient_api: queue\n";
    std::fs::write(folder.path().join("namespaces/more.yaml"), more).unwrap();
    let server = setup.start();
    let (listen, signer) = (server.listen, Signer::new(1));
    run(async move {
        let ledger = Caller::to(listen, "ledger").await;
        let write = async |subject: &str, key: &str, to: &str| {
            let put = Put { value: "1".into(), ..Put::default() };
            let request = transact::WriteRequest {
                namespace: "ledger".to_owned(),
                operations: vec![Operation { key: key.into(), action: Some(Action::Put(put)) }],
                messages: vec![transact::OutboxMessage {
                    target_namespace: to.to_owned(),
                    target: "q".to_owned(),
                    message: Some(Message::default()),
                }],
                ..Default::default()
            };
            let token = signer.token(&claims(subject));
            let metadata: &[(&str, &[u8])] = &[("authorization", token.as_bytes())];
            let method = Method::TRANSACT_WRITE;
            let answer = ledger.call::<transact::WriteResponse>(method, metadata, &request).await;
            answer.map(|(answer, _)| answer)
        };
        let answer = write("checkout", "a", "mail").await.expect("both are granted");
        assert!(answer.committed && answer.message_ids.len() == 1);
        let there = write("checkout", "b", "audits").await.unwrap_err();
        let not_there = write("checkout", "b", "nowhere").await.unwrap_err();
        assert_eq!(there.code as u8, PERMISSION_DENIED);
        assert_eq!((there.message, there.facts), (not_there.message, not_there.facts));
        let denied = write("report", "b", "mail").await.unwrap_err();
        assert_eq!(denied.code as u8, PERMISSION_DENIED, "the ledger is not granted");
        let token = signer.token(&claims("checkout"));
        let metadata: &[(&str, &[u8])] = &[("authorization", token.as_bytes())];
        assert!(ledger.try_get(metadata, "a").await.unwrap().0.found);
        assert!(!ledger.try_get(metadata, "b").await.unwrap().0.found, "nothing was written");
    });
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
fn tokens_that_do_not_hold_are_looked_at_slowly_and_known_ones_do_not_feel_it() {
    const TOKENS: usize = 200;
    let folder = directory();
    let server = setup(folder.path(), "").start();
    let (listen, signer) = (server.listen, Signer::new(1));
    run(async move {
        // One connection is one shard.
        let orders = Caller::to(listen, "orders").await;
        let known = signer.token(&claims("checkout"));
        assert_eq!(codes(&orders, &known).await, (0, 0));
        let bad = Signer::new(2).token(&claims("checkout"));
        let metadata: &[(&str, &[u8])] = &[("authorization", bad.as_bytes())];
        let refusals = together((0..TOKENS).map(|_| orders.try_get(metadata, "key"))).await;
        let refusals: Vec<_> = refusals.into_iter().map(|refusal| refusal.unwrap_err()).collect();
        let of = |code| refusals.iter().filter(move |refusal| refusal.code == code);
        assert!(of(Code::Unauthenticated).count() >= 64);
        assert_eq!(of(Code::ResourceExhausted).count() + of(Code::Unauthenticated).count(), TOKENS);
        let limited = of(Code::ResourceExhausted).next().expect("not all are looked at");
        assert_eq!(limited.reason, "TOKEN_FAILURES");
        assert!(limited.retry.is_some(), "{limited:?}");
        assert_eq!(codes(&orders, &known).await, (0, 0));
        // And after a while one that is not known yet.
        let next = signer.token(&with(claims("checkout"), "jti", json!("another")));
        let in_time = async { while codes(&orders, &next).await != (0, 0) {} };
        prism_io::rt::timeout(harness::PATIENCE, in_time).await.expect("its time comes");
    });
    assert!(server.metric("prism_refused_total") > 0.0);
    server.assert_well();
    server.stop();
}

/// Follows a stream until something ends it; the status with which it was not let in.
async fn follow(facts: &Caller, token: &str) -> Result<StreamReply, Code> {
    let request = stream::ReadRequest {
        namespace: "facts".to_owned(),
        stream: "s".to_owned(),
        start: Some(Start { start: Some(start::Start::Latest(())) }),
        follow: true,
        ..Default::default()
    };
    let (path, message) = (Method::STREAM_READ.path(), request.encode_to_vec());
    let metadata: &[(&str, &[u8])] = &[("authorization", token.as_bytes())];
    let timeout = 10 * harness::PATIENCE;
    let begun = facts.client.stream(path, metadata, &message, timeout).await;
    let mut reply = begun.map_err(|failure| failure.code)?;
    reply.next().await.map_err(|failure| failure.code)?.expect("it goes on");
    Ok(reply)
}

#[test]
fn a_stream_ends_with_its_token() {
    let folder = directory();
    let server = setup(folder.path(), "").start();
    let listen = server.listen;
    run(async move {
        let (facts, signer) = (Caller::to(listen, "facts").await, Signer::new(1));
        let mut life_s = 2;
        let mut reply = loop {
            // Expired, but for the skew of five seconds.
            let soon = with(claims("checkout"), "exp", json!(now_s() + life_s - 5));
            match follow(&facts, &signer.token(&soon)).await {
                Ok(reply) => break reply,
                // A slow machine: it has ended already.
                Err(code) => assert_eq!(code, Code::Unauthenticated),
            }
            life_s *= 2;
            assert!(life_s < 1000, "no token holds long enough");
        };
        let end = loop {
            match reply.next().await {
                Ok(message) => assert!(message.is_some(), "it does not end by itself"),
                Err(failure) => break failure,
            }
        };
        assert_eq!(end.code, Code::Unauthenticated, "{end:?}");
    });
    server.assert_well();
    server.stop();
}

#[test]
fn streams_end_when_their_grant_or_the_key_of_their_token_is_taken_away() {
    let folder = directory();
    let server = setup(folder.path(), "").start();
    let (listen, id) = (server.listen, server.id());
    let (requests, keys) =
        (folder.path().join("namespaces/all.yaml"), folder.path().join("keys.json"));
    run(async move {
        let signer = Signer::new(1);
        let (owner, consumer) =
            (signer.token(&claims("checkout")), signer.token(&claims("report")));
        // Several connections, so that streams stand on either shard.
        let (mut owned, mut consumed, mut callers) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..4 {
            let facts = Caller::to(listen, "facts").await;
            owned.push(follow(&facts, &owner).await.expect("its own"));
            consumed.push(follow(&facts, &consumer).await.expect("granted"));
            callers.push(facts);
        }
        let less = REQUESTS.replace("access: {consumers: [{team: analytics, may: read}]}\n", "");
        replace(&requests, &less);
        harness::signal(id, "HUP");
        for mut reply in consumed {
            let end = reply.next().await.expect_err("it was taken away");
            assert_eq!(end.code, Code::PermissionDenied, "{end:?}");
        }
        let facts = Caller::to(listen, "facts").await;
        let request = stream::AppendRequest {
            namespace: "facts".to_owned(),
            stream: "s".to_owned(),
            record: Some(stream::NewRecord { value: "a fact".into(), ..Default::default() }),
            ..Default::default()
        };
        let metadata: &[(&str, &[u8])] = &[("authorization", owner.as_bytes())];
        let appended =
            facts.call::<stream::AppendResponse>(Method::STREAM_APPEND, metadata, &request);
        appended.await.expect("appended");
        for reply in &mut owned {
            let page = reply.next().await.expect("readable").expect("it goes on");
            assert_eq!(stream::ReadResponse::decode(page).unwrap().records[0].value, "a fact");
        }
        replace(&keys, &Signer::new(2).keys());
        harness::signal(id, "HUP");
        for mut reply in owned {
            let end = reply.next().await.expect_err("its key was taken away");
            assert_eq!(end.code, Code::Unauthenticated, "{end:?}");
        }
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
        Self::start_with(wanted, |_, _| String::new())
    }

    /// With more about TLS in the configuration.
    fn start_with(wanted: &str, more: impl FnOnce(&Path, &Authority) -> String) -> Self {
        let folder = directory();
        let authority = Authority::new();
        let more = more(folder.path(), &authority);
        replace(&folder.path().join("clients.pem"), &authority.pem());
        issue(folder.path(), "server", |_| ());
        let path = |name: &str| folder.path().join(name).display().to_string();
        let tls = format!(
            "tls: {{client_authorities: {}, client_certificates: {wanted}{more}}}\n",
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
fn a_revoked_certificate_opens_nothing() {
    let good = "spiffe://example.org/payments/checkout";
    let mutual = Mutual::start_with("required", |folder, authority| {
        replace(&folder.join("revoked.pem"), &authority.revoked(&[7]));
        format!(", client_revocations: {}", folder.join("revoked.pem").display())
    });
    let folder = mutual.folder.path();
    for (name, serial) in [("kept", 6_u64), ("gone", 7), ("next", 8)] {
        mutual.authority.issue(folder, name, &[good], |params| {
            params.serial_number = Some(rcgen::SerialNumber::from(serial));
        });
    }
    assert_eq!(mutual.codes(Some("kept")), Some((0, 0)));
    assert_eq!(mutual.codes(Some("next")), Some((0, 0)));
    assert_eq!(mutual.codes(Some("gone")), None);

    // A list that cannot be read leaves the one before in force; a new one counts from the signal on.
    let reloads = |of: &str| mutual.server.errors().matches(of).count();
    for (text, says) in [
        ("no list".to_owned(), "the certificate was not replaced"),
        (mutual.authority.revoked(&[7, 8]), "the certificate was read again"),
    ] {
        let before = reloads(says);
        replace(&folder.join("revoked.pem"), &text);
        mutual.server.signal("HUP");
        let until = std::time::Instant::now() + harness::PATIENCE;
        while reloads(says) == before {
            assert!(std::time::Instant::now() < until, "{}", mutual.server.errors());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        assert_eq!(mutual.codes(Some("kept")), Some((0, 0)));
        assert_eq!(mutual.codes(Some("gone")), None);
    }
    assert_eq!(mutual.codes(Some("next")), None, "not by a session of before either");
    mutual.server.stop();
}

#[test]
fn connections_whose_certificate_is_revoked_are_ended_and_others_go_on() {
    let good = "spiffe://example.org/payments/checkout";
    let mutual = Mutual::start_with("required", |folder, authority| {
        replace(&folder.join("revoked.pem"), &authority.revoked(&[]));
        format!(", client_revocations: {}", folder.join("revoked.pem").display())
    });
    let folder = mutual.folder.path();
    for (name, serial) in [("kept", 6_u64), ("gone", 7)] {
        mutual.authority.issue(folder, name, &[good], |params| {
            params.serial_number = Some(rcgen::SerialNumber::from(serial));
        });
    }
    let (listen, id) = (mutual.server.listen, mutual.server.id());
    let (kept, gone) = (mutual.connector(Some("kept")), mutual.connector(Some("gone")));
    let (list, text) = (folder.join("revoked.pem"), mutual.authority.revoked(&[7]));
    run(async move {
        let kept = Caller::secured(listen, &kept, "orders").await;
        let gone = Caller::secured(listen, &gone, "orders").await;
        assert_eq!((codes(&kept, "").await, codes(&gone, "").await), ((0, 0), (0, 0)));
        replace(&list, &text);
        harness::signal(id, "HUP");
        let ended = async { while codes(&gone, "").await == (0, 0) {} };
        prism_io::rt::timeout(harness::PATIENCE, ended).await.expect("in time");
        assert_eq!(codes(&kept, "").await, (0, 0));
    });
    // Shards tell what they have counted once in a while.
    let until = std::time::Instant::now() + harness::PATIENCE;
    while mutual.server.metric("prism_transport_refused_total{kind=\"revoked\"}") != 1.0 {
        assert!(std::time::Instant::now() < until, "{}", mutual.server.admin_page("/metrics"));
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
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
