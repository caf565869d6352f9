//! What callers see of a PostgreSQL that is down, silent, restarting, refusing, read-only, out of connections or not one at all: a
//! failure that says so, in time, and a recovery without being told.

mod servers;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::{Duration, Instant};

use prism_adapters::breaker::Backoff;
use prism_adapters::postgres::{Postgres, PostgresConfig};
use prism_adapters::{Backend, Context, Error, Kind, Limits, Reply};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::view::keyvalue::{GetRequest, SetRequest};
use servers::{LONG, OwnPostgres, Proxy};

/// How long the tests let PostgreSQL be silent.
const PATIENCE: Duration = Duration::from_millis(500);

/// How much later than that a call may end on a busy machine.
const LATE: Duration = Duration::from_secs(5);

fn config(address: SocketAddr, database: &str) -> PostgresConfig {
    PostgresConfig {
        password: Some("prism".to_owned()),
        database: database.to_owned(),
        sweep_every: None,
        pool: 1,
        connect_timeout: PATIENCE,
        answer_timeout: PATIENCE,
        ping_after: PATIENCE,
        backoff: Backoff {
            delay_min: Duration::from_millis(5),
            delay_max: Duration::from_millis(50),
        },
        ..PostgresConfig::at(address.ip().to_string(), address.port(), "prism")
    }
}

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(3 * LONG, test).await.expect("the test ends in time") })
        .unwrap();
}

async fn call(postgres: &Postgres, method: Method, request: &[u8]) -> Result<Vec<u8>, Error> {
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
    postgres.unary_checked(&context, method, request, Postgres::SERVES, &mut reply).await?;
    Ok(reply.to_bytes().to_vec())
}

async fn set(postgres: &Postgres, key: &str, value: &[u8]) -> Result<Vec<u8>, Error> {
    let mut request = Vec::new();
    SetRequest { namespace: "orders", key, value, ..SetRequest::default() }.encode(&mut request);
    call(postgres, Method::KEYVALUE_SET, &request).await
}

async fn get(postgres: &Postgres, key: &str) -> Result<Vec<u8>, Error> {
    let mut request = Vec::new();
    GetRequest { namespace: "orders", key }.encode(&mut request);
    call(postgres, Method::KEYVALUE_GET, &request).await
}

/// Calls until it succeeds; every failure on the way is one that may pass.
async fn recovered(postgres: &Postgres) {
    let until = Instant::now() + LONG;
    while let Err(error) = set(postgres, "key", b"value").await {
        assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
        assert!(Instant::now() < until, "it does not recover: {error:?}");
        rt::sleep(Duration::from_millis(5)).await;
    }
}

#[track_caller]
fn assert_unavailable(error: &Error, reasons: &[&str]) {
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    assert!(reasons.contains(&error.reason()), "{error:?}");
    assert!(error.metadata().contains(&("backend", "postgres".into())), "{error:?}");
    assert!(error.metadata().contains(&("namespace", "orders".into())), "{error:?}");
    assert!(error.retry_delay().is_some() && error.is_retryable(), "{error:?}");
}

/// Starts so many Gets at a time and waits until all have ended.
async fn gets(postgres: &Rc<Postgres>, count: usize) -> Vec<Result<Vec<u8>, Error>> {
    let outcomes: Rc<RefCell<Vec<_>>> = Rc::default();
    let ended = Rc::new(rt::Signal::default());
    for _ in 0..count {
        let (postgres, outcomes, ended) = (postgres.clone(), outcomes.clone(), ended.clone());
        rt::spawn(async move {
            let outcome = get(&postgres, "key").await;
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
    let database = "prism_outage_nobody";
    let server = servers::empty_database(database);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    run(async move {
        let postgres = Postgres::start(config(address, database));
        let began = Instant::now();
        assert_unavailable(&get(&postgres, "key").await.unwrap_err(), &["BACKEND_UNREACHABLE"]);
        // The circuit is open: calls do not wait for an attempt.
        for _ in 0..1_000 {
            let error = get(&postgres, "key").await.unwrap_err();
            assert_unavailable(&error, &["BACKEND_UNREACHABLE"]);
        }
        assert!(began.elapsed() < LATE);
        assert!(postgres.facts().refused > 0 && postgres.facts().connected == 0);
        let _proxy = Proxy::between(TcpListener::bind(address).unwrap(), server);
        recovered(&postgres).await;
    });
}

#[test]
fn a_silent_server_is_given_up_and_taken_again() {
    let database = "prism_outage_silent";
    let proxy = Proxy::to(servers::empty_database(database));
    run(async move {
        let postgres = Rc::new(Postgres::start(config(proxy.address, database)));
        recovered(&postgres).await;
        proxy.set_silent(true);
        let began = Instant::now();
        for outcome in gets(&postgres, 100).await {
            let reasons = ["BACKEND_UNRESPONSIVE", "BACKEND_UNREACHABLE"];
            assert_unavailable(&outcome.unwrap_err(), &reasons);
        }
        assert!(began.elapsed() < 2 * PATIENCE + LATE, "{:?}", began.elapsed());
        proxy.set_silent(false);
        recovered(&postgres).await;
        assert_eq!(postgres.facts().calls_under_way, 0);
    });
}

#[test]
fn a_silent_server_is_noticed_also_when_nothing_is_asked() {
    let database = "prism_outage_idle";
    let proxy = Proxy::to(servers::empty_database(database));
    run(async move {
        let postgres = Postgres::start(config(proxy.address, database));
        recovered(&postgres).await;
        proxy.set_silent(true);
        let until = Instant::now() + LONG;
        while postgres.facts().outages == 0 {
            assert!(Instant::now() < until, "it was not noticed");
            rt::sleep(Duration::from_millis(5)).await;
        }
        proxy.set_silent(false);
        recovered(&postgres).await;
    });
}

/// What an administrator does to a connection, and to all of them while calls are under way.
#[test]
fn a_connection_that_is_ended_by_somebody_is_made_again() {
    let database = "prism_outage_ended";
    let address = servers::empty_database(database);
    run(async move {
        let postgres = Rc::new(Postgres::start(config(address, database)));
        recovered(&postgres).await;
        // Each has lasted, so that the next one is made at once and calls wait for it.
        rt::sleep(prism_adapters::breaker::STABLE_MIN).await;
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        assert_eq!(servers::psql(address, database, end), "1");
        for outcome in gets(&postgres, 100).await {
            if let Err(error) = outcome {
                assert_unavailable(&error, &["BACKEND_LOST", "BACKEND_NOT_READY"]);
            }
        }
        recovered(&postgres).await;
        assert_eq!(postgres.facts().connects, 2);
    });
}

#[test]
fn killed_and_started_again_it_has_what_it_confirmed() {
    let mut server = OwnPostgres::start(&[]);
    run(async move {
        let postgres = Postgres::start(config(server.address, "postgres"));
        recovered(&postgres).await;
        let mut confirmed = 1;
        for round in 0..2 {
            for number in 0..50 {
                let key = format!("{round} {number}");
                set(&postgres, &key, key.as_bytes()).await.unwrap();
                confirmed += 1;
            }
            server.kill();
            let began = Instant::now();
            assert_eq!(get(&postgres, "key").await.unwrap_err().kind(), Kind::Unavailable);
            assert!(began.elapsed() < 2 * PATIENCE + LATE);
            server.restart();
            recovered(&postgres).await;
        }
        let count = server.psql("SELECT count(*) FROM orders.keyvalue");
        assert_eq!(count, confirmed.to_string());
        assert!(postgres.facts().connects >= 3);
    });
}

#[test]
fn credentials_that_are_refused_and_put_right() {
    let database = "prism_outage_login";
    let address = servers::empty_database(database);
    run(async move {
        let guess = Some("guess".to_owned());
        let wrong = PostgresConfig { password: guess, ..config(address, database) };
        let error = get(&Postgres::start(wrong), "key").await.unwrap_err();
        assert_unavailable(&error, &["BACKEND_CREDENTIALS_REFUSED"]);
        assert!(!error.message().contains("guess"));
        let unknown = PostgresConfig { user: "nobody".to_owned(), ..config(address, database) };
        let error = get(&Postgres::start(unknown), "key").await.unwrap_err();
        assert_unavailable(&error, &["BACKEND_CREDENTIALS_REFUSED"]);
        let none = PostgresConfig { password: None, ..config(address, database) };
        let error = get(&Postgres::start(none), "key").await.unwrap_err();
        assert_unavailable(&error, &["BACKEND_CREDENTIALS_REFUSED"]);
        let absent = config(address, "prism_outage_absent");
        let error = get(&Postgres::start(absent), "key").await.unwrap_err();
        assert_eq!(
            (error.kind(), error.reason()),
            (Kind::FailedPrecondition, "BACKEND_DATABASE_MISSING"),
            "{error:?}"
        );
        recovered(&Postgres::start(config(address, database))).await;
    });
}

#[test]
fn a_role_that_may_not_do_everything() {
    let server = OwnPostgres::start(&[]);
    server.psql("CREATE ROLE reader LOGIN");
    run(async move {
        let reader =
            PostgresConfig { user: "reader".to_owned(), ..config(server.address, "postgres") };
        // It may not even create the schema that says what was created.
        let error = get(&Postgres::start(reader.clone()), "key").await.unwrap_err();
        assert_unavailable(&error, &["BACKEND_CREDENTIALS_REFUSED"]);
        recovered(&Postgres::start(config(server.address, "postgres"))).await;
        for grant in [
            "GRANT USAGE ON SCHEMA prism_meta, orders TO reader",
            "GRANT SELECT ON ALL TABLES IN SCHEMA prism_meta, orders TO reader",
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA prism_meta TO reader",
        ] {
            server.psql(grant);
        }
        let postgres = Postgres::start(reader);
        assert!(!get(&postgres, "key").await.unwrap().is_empty());
        let error = set(&postgres, "key", b"more").await.unwrap_err();
        assert_unavailable(&error, &["BACKEND_CREDENTIALS_REFUSED"]);
        assert!(!get(&postgres, "key").await.unwrap().is_empty(), "reads go on");
        assert_eq!(postgres.facts().connects, 1, "it is not the connection's fault");
    });
}

#[test]
fn read_only_and_out_of_connections() {
    let options = ["-c", "max_connections=3", "-c", "superuser_reserved_connections=0"];
    let server = OwnPostgres::start(&options);
    run(async move {
        let postgres = Postgres::start(config(server.address, "postgres"));
        recovered(&postgres).await;
        // As after a fail-over: the connection stands, and the server is a standby now.
        server.psql("ALTER SYSTEM SET default_transaction_read_only = on");
        server.psql("SELECT pg_reload_conf()");
        let until = Instant::now() + LONG;
        let error = loop {
            match set(&postgres, "key", b"more").await {
                Err(error) => break error,
                Ok(_) => assert!(Instant::now() < until, "it still takes writes"),
            }
        };
        assert_unavailable(&error, &["BACKEND_READ_ONLY"]);
        assert!(!get(&postgres, "key").await.unwrap().is_empty(), "reads go on");
        server.psql("ALTER SYSTEM RESET default_transaction_read_only");
        server.psql("SELECT pg_reload_conf()");
        recovered(&postgres).await;
        assert_eq!(postgres.facts().connects, 1, "none of it is the connection's fault");

        let more: Vec<_> =
            (0..2).map(|_| Postgres::start(config(server.address, "postgres"))).collect();
        for other in &more {
            recovered(other).await;
        }
        let one_too_many = Postgres::start(config(server.address, "postgres"));
        let error = get(&one_too_many, "key").await.unwrap_err();
        assert_unavailable(&error, &["BACKEND_NOT_READY"]);
        drop(more);
        recovered(&one_too_many).await;
    });
}

#[test]
fn what_is_not_a_postgres_or_goes_mad() {
    let database = "prism_outage_mad";
    let proxy = Proxy::to(servers::empty_database(database));
    run(async move {
        let postgres = Rc::new(Postgres::start(config(proxy.address, database)));
        recovered(&postgres).await;
        // Answers to nothing, half answers, nonsense: whatever it is, the connection is not to be trusted any more.
        for nonsense in [
            &b"C\x00\x00\x00\x0dSELECT 1\x00"[..],
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"D\xff\xff\xff\xff",
            b"Z\x00\x00\x00\x05Q",
        ] {
            let before = postgres.facts().outages;
            proxy.inject(nonsense);
            let until = Instant::now() + LONG;
            while postgres.facts().outages == before {
                assert!(Instant::now() < until, "{nonsense:?} was not noticed");
                rt::sleep(Duration::from_millis(1)).await;
            }
            recovered(&postgres).await;
            for outcome in gets(&postgres, 10).await {
                outcome.unwrap();
            }
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            use std::io::Write;
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    run(async move {
        let postgres = Postgres::start(config(address, database));
        let error = get(&postgres, "key").await.unwrap_err();
        assert_unavailable(&error, &["BACKEND_PROTOCOL", "BACKEND_UNREACHABLE", "BACKEND_LOST"]);
    });
}

#[test]
fn what_waits_is_bounded_and_callers_may_go() {
    let database = "prism_outage_bounded";
    let proxy = Proxy::to(servers::empty_database(database));
    run(async move {
        let postgres = Rc::new(Postgres::start(PostgresConfig {
            calls_max: 64,
            answer_timeout: LONG,
            connect_timeout: LONG,
            ping_after: LONG,
            ..config(proxy.address, database)
        }));
        recovered(&postgres).await;
        proxy.set_silent(true);
        let answered = Rc::new(Cell::new(0));
        let (patient, count) = (postgres.clone(), answered.clone());
        rt::spawn(async move {
            for outcome in gets(&patient, 64).await {
                outcome.unwrap();
                count.set(count.get() + 1);
            }
        });
        while postgres.facts().calls_under_way < 64 {
            rt::yield_now().await;
        }
        let error = get(&postgres, "key").await.unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::ResourceExhausted, "BACKEND_BUSY"));
        proxy.set_silent(false);
        while answered.get() < 64 {
            rt::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!((postgres.facts().calls_under_way, postgres.facts().connects), (0, 1));
    });
}
