//! What callers see of a NATS that is down, silent, restarting, refusing, full, too old or not one at all: a failure that says
//! so, in time, and a recovery without being told.

mod servers;

use std::cell::RefCell;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::{Duration, Instant};

use prism_adapters::breaker::{Backoff, STABLE_MIN};
use prism_adapters::nats::{Login, Nats, NatsConfig, Tls};
use prism_adapters::{Admission, Backend, Context, Error, Kind, Limits, Reply};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_io::tls::Roots;
use prism_proto::catalogue::Method;
use prism_proto::view::keyvalue::{GetRequest, SetRequest};
use servers::{LONG, OwnNats, Proxy};

/// How long the tests let NATS be silent.
const PATIENCE: Duration = Duration::from_millis(300);

/// How much later than that a call may end on a busy machine.
const LATE: Duration = Duration::from_secs(5);

fn config(address: SocketAddr) -> NatsConfig {
    NatsConfig {
        connect_timeout: LONG,
        answer_timeout: LONG,
        backoff: Backoff {
            delay_min: Duration::from_millis(5),
            delay_max: Duration::from_millis(50),
        },
        ..NatsConfig::at(address.ip().to_string(), address.port())
    }
}

/// One that soon gives up.
fn impatient(address: SocketAddr) -> NatsConfig {
    NatsConfig {
        connect_timeout: PATIENCE,
        answer_timeout: PATIENCE,
        ping_after: PATIENCE,
        ..config(address)
    }
}

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(6 * LONG, test).await.expect("the test ends in time") })
        .unwrap();
}

async fn call(nats: &Nats, method: Method, request: &[u8]) -> Result<Vec<u8>, Error> {
    let (limits, mut reply) = (Limits::default(), Reply::default());
    let context = Context {
        namespace: 1,
        namespace_name: "orders",
        partition: 0,
        now_us: wall_us(),
        revision: Default::default(),
        limits: &limits,
        deadline_ns: prism_adapters::NO_DEADLINE_NS,
    };
    nats.unary_checked(&context, method, request, Nats::SERVES, &mut reply).await?;
    Ok(reply.to_bytes().to_vec())
}

fn set_request(key: &str, value: &[u8]) -> Vec<u8> {
    let mut request = Vec::new();
    SetRequest { namespace: "orders", key, value, ..SetRequest::default() }.encode(&mut request);
    request
}

async fn set(nats: &Nats, key: &str, value: &[u8]) -> Result<Vec<u8>, Error> {
    call(nats, Method::KEYVALUE_SET, &set_request(key, value)).await
}

async fn get(nats: &Nats, key: &str) -> Result<Vec<u8>, Error> {
    let mut request = Vec::new();
    GetRequest { namespace: "orders", key }.encode(&mut request);
    call(nats, Method::KEYVALUE_GET, &request).await
}

/// Calls until it succeeds; every failure on the way is one that may pass.
async fn recovered(nats: &Nats) {
    let until = Instant::now() + LONG;
    while let Err(error) = get(nats, "key").await {
        assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
        assert!(Instant::now() < until, "it does not recover: {error:?}");
        rt::sleep(Duration::from_millis(5)).await;
    }
}

fn assert_unavailable(error: &Error, reason: &str) {
    assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, reason), "{error:?}");
    assert!(error.metadata().contains(&("backend", "nats".into())), "{error:?}");
    assert!(error.metadata().contains(&("namespace", "orders".into())), "{error:?}");
    assert!(error.retry_delay().is_some() && error.is_retryable(), "{error:?}");
}

/// Starts so many Gets at a time and waits until all have ended.
async fn gets(nats: &Rc<Nats>, count: usize) -> Vec<Result<Vec<u8>, Error>> {
    let outcomes: Rc<RefCell<Vec<_>>> = Rc::default();
    let ended = Rc::new(rt::Signal::default());
    for _ in 0..count {
        let (nats, outcomes, ended) = (nats.clone(), outcomes.clone(), ended.clone());
        rt::spawn(async move {
            let outcome = get(&nats, "key").await;
            outcomes.borrow_mut().push(outcome);
            ended.set();
        });
    }
    while outcomes.borrow().len() < count {
        ended.wait().await;
    }
    outcomes.take()
}

#[test]
fn nobody_listens_and_then_somebody_does() {
    let server = OwnNats::start("");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    run(async move {
        let nats = Nats::start(config(address));
        let began = Instant::now();
        assert_unavailable(&get(&nats, "key").await.unwrap_err(), "BACKEND_UNREACHABLE");
        for _ in 0..100 {
            assert_unavailable(&get(&nats, "key").await.unwrap_err(), "BACKEND_UNREACHABLE");
        }
        assert!(began.elapsed() < LATE, "the circuit is open: calls do not wait for an attempt");
        assert!(!nats.facts().is_connected && nats.facts().outages > 0);
        let _proxy = Proxy::between(TcpListener::bind(address).unwrap(), server.address);
        recovered(&nats).await;
        assert!(nats.facts().is_connected);
    });
}

#[test]
fn a_silent_server_is_given_up_and_taken_again() {
    let server = OwnNats::start("");
    let proxy = Proxy::to(server.address);
    run(async move {
        let nats = Rc::new(Nats::start(impatient(proxy.address)));
        recovered(&nats).await;
        proxy.set_silent(true);
        let began = Instant::now();
        for outcome in gets(&nats, 100).await {
            let error = outcome.unwrap_err();
            let reasons = ["BACKEND_UNRESPONSIVE", "BACKEND_LOST", "BACKEND_UNREACHABLE"];
            assert!(reasons.contains(&error.reason()), "{error:?}");
            assert_unavailable(&error, error.reason());
        }
        assert!(began.elapsed() < PATIENCE + LATE, "{:?}", began.elapsed());
        // Nor does a connection come about now, and nobody waits for long.
        let began = Instant::now();
        while get(&nats, "key").await.unwrap_err().reason() != "BACKEND_UNREACHABLE" {
            assert!(began.elapsed() < PATIENCE + LATE);
            rt::sleep(Duration::from_millis(5)).await;
        }
        proxy.set_silent(false);
        recovered(&nats).await;
        assert_eq!(nats.facts().calls_under_way, 0);
    });
}

#[test]
fn a_silent_server_is_noticed_also_when_nothing_is_asked() {
    let server = OwnNats::start("");
    let proxy = Proxy::to(server.address);
    run(async move {
        let nats = Nats::start(impatient(proxy.address));
        recovered(&nats).await;
        proxy.set_silent(true);
        let (began, before) = (Instant::now(), nats.facts().outages);
        while nats.facts().outages == before {
            assert!(began.elapsed() < LONG, "it is not noticed");
            rt::sleep(Duration::from_millis(5)).await;
        }
        proxy.set_silent(false);
        recovered(&nats).await;
    });
}

#[test]
fn a_lost_connection_fails_what_is_under_way_and_nothing_else() {
    let server = OwnNats::start("");
    let proxy = Proxy::to(server.address);
    run(async move {
        let nats = Rc::new(Nats::start(config(proxy.address)));
        recovered(&nats).await;
        // It has lasted: the next one is made at once, and calls wait for it.
        rt::sleep(STABLE_MIN + Duration::from_millis(100)).await;
        let connects = nats.facts().connects;
        proxy.set_silent(true);
        let (waiting, failed) = (nats.clone(), Rc::new(RefCell::new(None)));
        let (outcome, ended) = (failed.clone(), Rc::new(rt::Signal::default()));
        let told = ended.clone();
        let began = Instant::now();
        rt::spawn(async move {
            *outcome.borrow_mut() = Some(get(&waiting, "key").await);
            told.set();
        });
        while nats.facts().calls_under_way == 0 {
            rt::sleep(Duration::from_millis(1)).await;
        }
        proxy.cut();
        proxy.set_silent(false);
        ended.wait().await;
        assert!(began.elapsed() < LONG, "it is told at once, not when its time is up");
        // The answer may have slipped through before the cut.
        if let Some(Err(error)) = failed.take() {
            assert_unavailable(&error, "BACKEND_LOST");
        }
        recovered(&nats).await;
        for outcome in gets(&nats, 100).await {
            outcome.unwrap();
        }
        assert_eq!(nats.facts().connects, connects + 1);
    });
}

#[test]
fn killed_and_started_again_it_has_what_it_confirmed() {
    let mut server = OwnNats::start("");
    run(async move {
        let nats = Nats::start(config(server.address));
        recovered(&nats).await;
        for round in 0..3 {
            for number in 0..50 {
                let key = format!("{round} {number}");
                set(&nats, &key, key.as_bytes()).await.unwrap();
            }
            server.kill();
            let began = Instant::now();
            assert_eq!(get(&nats, "key").await.unwrap_err().kind(), Kind::Unavailable);
            assert!(began.elapsed() < LATE, "{:?}", began.elapsed());
            server.restart();
            recovered(&nats).await;
        }
        for key in (0..3).flat_map(|round| (0..50).map(move |number| format!("{round} {number}"))) {
            assert!(!get(&nats, &key).await.unwrap().is_empty(), "{key}");
        }
    });
}

#[test]
fn credentials_that_are_refused_and_put_right() {
    let password = OwnNats::start("authorization { user: prism, password: secret }");
    let token = OwnNats::start("authorization { token: s3cr3t }");
    let (login, guess) = (
        Login::Password { user: "prism".to_owned(), password: "secret".to_owned() },
        Login::Password { user: "prism".to_owned(), password: "guess".to_owned() },
    );
    let cases = [
        (password, login, guess),
        (token, Login::Token("s3cr3t".to_owned()), Login::Token("guess".to_owned())),
    ];
    run(async move {
        for (server, login, guess) in cases {
            for wrong in [None, Some(guess)] {
                let nats = Nats::start(NatsConfig { login: wrong, ..config(server.address) });
                let error = get(&nats, "key").await.unwrap_err();
                assert_unavailable(&error, "BACKEND_CREDENTIALS_REFUSED");
                assert!(!error.message().contains("guess"));
            }
            let nats = Nats::start(NatsConfig { login: Some(login), ..config(server.address) });
            get(&nats, "key").await.unwrap();
        }
    });
}

#[test]
fn a_user_who_may_not_write_is_told_so_at_once() {
    let server = OwnNats::start(
        "authorization { users: [{ user: all, password: a }, { user: reader, password: r, permissions: \
         { publish: { deny: [\"$KV.>\"] }, subscribe: \"_INBOX_reader.>\" } }] }",
    );
    run(async move {
        let login = |user: &str, password: &str| {
            Some(Login::Password { user: user.to_owned(), password: password.to_owned() })
        };
        let all = Nats::start(NatsConfig { login: login("all", "a"), ..config(server.address) });
        set(&all, "key", b"value").await.unwrap();
        let inbox_prefix = "_INBOX_reader".to_owned();
        let reader = NatsConfig { inbox_prefix, ..config(server.address) };
        let reader = Nats::start(NatsConfig { login: login("reader", "r"), ..reader });
        assert!(!get(&reader, "key").await.unwrap().is_empty());
        let began = Instant::now();
        let error = set(&reader, "key", b"value").await.unwrap_err();
        assert_unavailable(&error, "BACKEND_CREDENTIALS_REFUSED");
        assert!(began.elapsed() < LONG, "it does not wait for its time to be up");
        assert!(!get(&reader, "key").await.unwrap().is_empty());
        assert_eq!(reader.facts().connects, 1);
    });
}

#[test]
fn what_the_server_has_no_room_for_is_said_and_reads_go_on() {
    let server = OwnNats::start(
        "accounts { A: { users: [{user: a, password: a}], jetstream: { max_file: 1MB } } }",
    );
    run(async move {
        let login = Some(Login::Password { user: "a".to_owned(), password: "a".to_owned() });
        let nats = Nats::start(NatsConfig { login, ..config(server.address) });
        set(&nats, "key", b"value").await.unwrap();
        let value = vec![7; 300_000];
        let mut full = None;
        for number in 0..10 {
            full = set(&nats, &format!("large-{number}"), &value).await.err();
            if full.is_some() {
                break;
            }
        }
        let error = full.expect("a megabyte is soon full");
        assert_eq!(
            (error.kind(), error.reason()),
            (Kind::ResourceExhausted, "BACKEND_FULL"),
            "{error:?}"
        );
        assert!(error.is_retryable());
        assert!(!get(&nats, "key").await.unwrap().is_empty(), "reads go on");
    });
}

#[test]
fn a_message_that_the_server_does_not_take_is_refused_before_it_has_a_record() {
    let server = OwnNats::start("max_payload: 64KB");
    run(async move {
        let nats = Nats::start(config(server.address));
        recovered(&nats).await;
        let request = set_request("key", &[7; 70_000]);
        let error = nats.admit(Method::KEYVALUE_SET, &request).unwrap_err();
        assert_eq!(error.reason(), "BACKEND_MESSAGE_TOO_LARGE");
        nats.admit(Method::KEYVALUE_SET, &set_request("key", &[7; 60_000])).unwrap();
        let error = set(&nats, "key", &[7; 70_000]).await.unwrap_err();
        let found = (error.kind(), error.reason());
        assert_eq!(found, (Kind::ResourceExhausted, "BACKEND_MESSAGE_TOO_LARGE"), "{error:?}");
        set(&nats, "key", &[7; 60_000]).await.unwrap();
    });
}

#[test]
fn a_server_without_jetstream_or_too_old_says_what_to_do() {
    let mut scripted = Vec::new();
    for info in [
        r#"{"server_id":"x","version":"2.9.1","max_payload":1048576,"headers":true,"proto":1}"#,
        r#"{"server_id":"x","version":"2.12.0","max_payload":1048576,"headers":true,"proto":1}"#,
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        scripted.push(listener.local_addr().unwrap());
        // It greets, and answers pings and nothing else.
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let _ = client.write_all(format!("INFO {info}\r\n").as_bytes());
                    let mut buffer = [0; 4096];
                    while let Ok(count @ 1..) = client.read(&mut buffer) {
                        let pings = buffer[..count].windows(4).filter(|part| part == b"PING");
                        for _ in pings {
                            let _ = client.write_all(b"PONG\r\n");
                        }
                    }
                });
            }
        });
    }
    run(async move {
        let old = Nats::start(config(scripted[0]));
        let error = get(&old, "key").await.unwrap_err();
        let found = (error.kind(), error.reason());
        assert_eq!(found, (Kind::FailedPrecondition, "BACKEND_TOO_OLD"), "{error:?}");
        assert!(error.message().contains("2.9.1") && error.message().contains("2.12"), "{error:?}");
        // One that answers pings and no call: the call ends, and so does the connection.
        let mute = Nats::start(NatsConfig { answer_timeout: PATIENCE, ..config(scripted[1]) });
        let error = get(&mute, "key").await.unwrap_err();
        assert_unavailable(&error, "BACKEND_UNRESPONSIVE");
    });
    let without = OwnNats::without_jetstream();
    run(async move {
        let nats = Nats::start(config(without.address));
        let error = get(&nats, "key").await.unwrap_err();
        assert_unavailable(&error, "BACKEND_NOT_READY");
        assert!(error.message().contains("JetStream"), "{error:?}");
    });
}

#[test]
fn what_is_not_a_nats() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    run(async move {
        let nats = Nats::start(config(address));
        assert_unavailable(&get(&nats, "key").await.unwrap_err(), "BACKEND_UNREACHABLE");
    });
}

#[test]
fn what_is_under_way_is_bounded_and_callers_may_go() {
    let server = OwnNats::start("");
    let proxy = Proxy::to(server.address);
    run(async move {
        let nats = Rc::new(Nats::start(NatsConfig {
            calls_max: 64,
            bytes_max: 1024 * 1024,
            ..config(proxy.address)
        }));
        recovered(&nats).await;
        proxy.set_silent(true);
        // Callers who do not wait to the end leave their places to answers that may still come.
        for _ in 0..32 {
            assert!(rt::timeout(Duration::from_millis(2), get(&nats, "key")).await.is_none());
        }
        assert_eq!(nats.facts().calls_under_way, 32);
        let (writer, ended) = (nats.clone(), Rc::new(rt::Signal::default()));
        let told = ended.clone();
        rt::spawn(async move {
            set(&writer, "key", &vec![7; 800 * 1024]).await.unwrap();
            told.set();
        });
        while nats.facts().calls_under_way < 33 {
            rt::yield_now().await;
        }
        let error = set(&nats, "key", &vec![7; 800 * 1024]).await.unwrap_err();
        let busy = |error: &Error| {
            (error.kind(), error.reason()) == (Kind::ResourceExhausted, "BACKEND_BUSY")
        };
        assert!(busy(&error) && error.is_retryable(), "{error:?}");
        proxy.set_silent(false);
        ended.wait().await;
        recovered(&nats).await;
        let refused = gets(&nats, 200).await;
        assert!(refused.iter().filter_map(|one| one.as_ref().err()).all(busy), "{refused:?}");
        assert!(refused.iter().any(Result::is_ok) && refused.iter().any(Result::is_err));
    });
}

#[test]
fn tls_with_a_certificate_that_fits_and_one_that_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(path("other.pem"), other.cert.pem()).unwrap();
    let server = OwnNats::start(&format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\" }}",
        path("cert.pem").display(),
        path("key.pem").display()
    ));
    let tls = |ca: &str| Some(Tls::load(Roots::File(path(ca)), "localhost", None).unwrap());
    let (fits, does_not) = (tls("cert.pem"), tls("other.pem"));
    run(async move {
        let host = "localhost".to_owned();
        let config = NatsConfig { host, ..config(server.address) };
        let nats = Nats::start(NatsConfig { tls: fits, ..config.clone() });
        set(&nats, "key", b"value").await.unwrap();
        assert!(!get(&nats, "key").await.unwrap().is_empty());
        let nats = Nats::start(NatsConfig { tls: does_not, ..config });
        assert_unavailable(&get(&nats, "key").await.unwrap_err(), "BACKEND_TLS");
    });
}
