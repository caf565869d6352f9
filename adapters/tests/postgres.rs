//! PostgreSQL, a real one: the conformance suite, random calls against the model, what psql sees, and many calls at once.

mod servers;

use std::rc::Rc;
use std::time::Duration;

use prism_adapters::conformance::{Direct, Versions, random_sequence, run};
use prism_adapters::postgres::{Postgres, PostgresConfig};
use prism_adapters::{Backend, Context, Error, Limits, Reply};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::{
    CompareAndSwapRequest, CompareAndSwapResponse, CountRequest, CountResponse, GetRequest,
    GetResponse, SetRequest, SetResponse, compare_and_swap_request,
};
use prost::Message;
use servers::psql;

/// An empty database, and settings for it. The sweeper goes by the clock on the wall, which the suite's time is not.
fn config(database: &str) -> PostgresConfig {
    let address = servers::empty_database(database);
    PostgresConfig {
        password: Some("prism".to_owned()),
        database: database.to_owned(),
        sweep_every: None,
        ..PostgresConfig::at(address.ip().to_string(), address.port(), "prism")
    }
}

async fn call<R: Message + Default>(
    postgres: &Postgres,
    method: Method,
    request: &impl Message,
) -> Result<R, Error> {
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
    let request = request.encode_to_vec();
    postgres.unary_checked(&context, method, &request, Postgres::SERVES, &mut reply).await?;
    Ok(R::decode(reply.to_bytes()).expect("a valid message"))
}

fn get(key: &str) -> GetRequest {
    GetRequest { namespace: "orders".to_owned(), key: key.to_owned() }
}

fn set(key: &str, value: &[u8]) -> SetRequest {
    SetRequest {
        namespace: "orders".to_owned(),
        key: key.to_owned(),
        value: value.to_vec().into(),
        ..SetRequest::default()
    }
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

#[test]
fn postgres_serves_what_it_declares() {
    let config = config("prism_conformance");
    rt::run(async {
        let client = Direct::new(Postgres::start(config));
        let ran = run(&client).await;
        assert!(ran.len() > 60, "{ran:?}");
    })
    .unwrap();
}

#[test]
fn one_connection_is_enough_and_time_may_pass_in_truth() {
    let config = PostgresConfig { pool: 1, ..config("prism_conformance_real") };
    rt::run(async {
        let client = Direct::in_real_time(Postgres::start(config), Versions::Revision);
        let ran = run(&client).await;
        assert!(ran.len() > 60, "{ran:?}");
        assert_eq!(client.backend.facts().connects, 1);
    })
    .unwrap();
}

#[test]
fn random_sequences_agree_with_a_model() {
    let seed = match std::env::var("PRISM_SEED") {
        Ok(seed) => seed.parse().expect("PRISM_SEED is a number"),
        Err(_) => wall_us(),
    };
    let config = config("prism_random");
    rt::run(async move {
        let client = Direct::new(Postgres::start(config));
        for round in 0..2 {
            random_sequence(&client, seed.wrapping_add(round), 2_000).await;
        }
    })
    .unwrap();
}

#[test]
fn psql_reads_and_writes_the_same_data() {
    let database = "prism_read_back";
    let config = config(database);
    let address = servers::address("postgres");
    let sql = move |statement: &str| psql(address, database, statement);
    rt::run(async move {
        let postgres =
            Postgres::start(PostgresConfig { application_name: "prism-test".to_owned(), ..config });
        let request =
            SetRequest { ttl: seconds(3_600), ..set("{7}:status", "bezahlt €".as_bytes()) };
        let stored: SetResponse = call(&postgres, Method::KEYVALUE_SET, &request).await.unwrap();
        assert_eq!(
            sql("SELECT convert_from(value, 'UTF8') FROM orders.keyvalue WHERE key = '{7}:status'"),
            "bezahlt €"
        );
        let left = sql("SELECT extract(epoch FROM expires_at - now())::int FROM orders.keyvalue");
        assert!((3_590..=3_600).contains(&left.parse::<u64>().unwrap()), "{left}");
        let version = sql("SELECT encode(int8send(version), 'hex') FROM orders.keyvalue");
        let hex: String =
            stored.version.unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(version, hex);
        assert_eq!(
            sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'prism-test'"),
            "2"
        );
        assert_eq!(
            sql("SELECT schema_name, model, version FROM prism_meta.migrations ORDER BY 1, 2, 3"),
            "orders|keyvalue|1\norders|keyvalue|2\nprism_meta|meta|1"
        );

        // What is written by hand has a version of its own, and a swap on the one before fails.
        sql("INSERT INTO orders.keyvalue (key, value) VALUES ('by hand', 'written by hand')");
        let response: GetResponse =
            call(&postgres, Method::KEYVALUE_GET, &get("by hand")).await.unwrap();
        let entry = response.entry.unwrap();
        assert_eq!(&entry.value[..], b"written by hand");
        sql("UPDATE orders.keyvalue SET value = 'again', version = DEFAULT WHERE key = 'by hand'");
        let expected =
            Some(compare_and_swap_request::Expected::ExpectedVersion(entry.version.unwrap()));
        let request = CompareAndSwapRequest {
            namespace: "orders".to_owned(),
            key: "by hand".to_owned(),
            value: b"swapped".to_vec().into(),
            expected,
            ..CompareAndSwapRequest::default()
        };
        let method = Method::KEYVALUE_COMPARE_AND_SWAP;
        let response: CompareAndSwapResponse = call(&postgres, method, &request).await.unwrap();
        assert!(!response.swapped);
        let current = response.current.unwrap();
        assert_eq!(&current.value[..], b"again");
        let expected =
            Some(compare_and_swap_request::Expected::ExpectedVersion(current.version.unwrap()));
        let request = CompareAndSwapRequest { expected, ..request };
        let response: CompareAndSwapResponse = call(&postgres, method, &request).await.unwrap();
        assert!(response.swapped);
        assert_eq!(postgres.facts().connects, 2);

        // A schema that is dropped is said to be missing, and made again.
        sql("DROP SCHEMA orders CASCADE");
        let error = call::<SetResponse>(&postgres, Method::KEYVALUE_SET, &set("k", b"v")).await;
        assert_eq!(error.unwrap_err().reason(), "BACKEND_SCHEMA_MISSING");
        call::<SetResponse>(&postgres, Method::KEYVALUE_SET, &set("k", b"v")).await.unwrap();
        assert_eq!(sql("SELECT count(*) FROM orders.keyvalue"), "1");
    })
    .unwrap();
}

/// Calls made at once share a commit, each has its own version, and the last of a key stays.
#[test]
fn calls_of_a_turn_share_a_batch() {
    let config = config("prism_batches");
    rt::run(async move {
        let postgres = Rc::new(Postgres::start(config));
        call::<SetResponse>(&postgres, Method::KEYVALUE_SET, &set("first", b"")).await.unwrap();
        let before = postgres.facts();
        let (done, answers) =
            (Rc::new(rt::Signal::default()), Rc::new(std::cell::RefCell::new(Vec::new())));
        for number in 0..200u32 {
            let (postgres, done, answers) = (postgres.clone(), done.clone(), answers.clone());
            rt::spawn(async move {
                let request = set(&format!("key-{}", number % 150), &number.to_be_bytes());
                let stored: SetResponse =
                    call(&postgres, Method::KEYVALUE_SET, &request).await.unwrap();
                answers.borrow_mut().push(stored.version.unwrap());
                if answers.borrow().len() == 200 {
                    done.set();
                }
            });
        }
        done.wait().await;
        let mut versions = answers.take();
        versions.sort_unstable();
        versions.dedup();
        assert_eq!(versions.len(), 200);
        let facts = postgres.facts();
        assert_eq!(facts.calls - before.calls, 200);
        assert!(facts.batches - before.batches <= 4, "{facts:?} {before:?}");
        for number in 0..150u32 {
            let response: GetResponse =
                call(&postgres, Method::KEYVALUE_GET, &get(&format!("key-{number}")))
                    .await
                    .unwrap();
            let last = if number < 50 { number + 150 } else { number };
            assert_eq!(&response.entry.unwrap().value[..], &last.to_be_bytes());
        }
    })
    .unwrap();
}

/// One call that cannot be done costs those beside it nothing.
#[test]
fn a_row_that_somebody_holds_costs_its_own_call_alone() {
    let database = "prism_locked";
    let config = PostgresConfig { lock_timeout: Duration::from_millis(100), ..config(database) };
    let address = servers::address("postgres");
    rt::run(async move {
        let postgres = Rc::new(Postgres::start(config));
        call::<SetResponse>(&postgres, Method::KEYVALUE_SET, &set("held", b"1")).await.unwrap();
        // Holds the row until it is told to go on: the end of its input.
        let mut holder = std::process::Command::new("psql")
            .args(["-X", "-q", "-A", "-t", "-U", "prism", "-d", database])
            .args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()])
            .env("PGPASSWORD", "prism")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = holder.stdin.take().unwrap();
        let mut output = std::io::BufReader::new(holder.stdout.take().unwrap());
        std::io::Write::write_all(
            &mut input,
            b"BEGIN; SELECT 'held' FROM orders.keyvalue WHERE key = 'held' FOR UPDATE;\n",
        )
        .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        assert_eq!(line, "held\n");

        let others = Rc::new(std::cell::Cell::new(0));
        let done = Rc::new(rt::Signal::default());
        for number in 0..10 {
            let (postgres, others, done) = (postgres.clone(), others.clone(), done.clone());
            rt::spawn(async move {
                let request = set(&format!("other-{number}"), b"2");
                call::<SetResponse>(&postgres, Method::KEYVALUE_SET, &request).await.unwrap();
                others.set(others.get() + 1);
                if others.get() == 10 {
                    done.set();
                }
            });
        }
        let held = call::<SetResponse>(&postgres, Method::KEYVALUE_SET, &set("held", b"2")).await;
        let error = held.unwrap_err();
        assert_eq!((error.reason(), error.is_retryable()), ("BACKEND_LOCKED", true), "{error:?}");
        done.wait().await;
        drop(input);
        holder.wait().unwrap();
        call::<SetResponse>(&postgres, Method::KEYVALUE_SET, &set("held", b"3")).await.unwrap();
        assert_eq!(postgres.facts().connects, 2);
    })
    .unwrap();
}

#[test]
fn what_has_expired_is_swept() {
    let database = "prism_sweep";
    let config =
        PostgresConfig { sweep_every: Some(Duration::from_millis(20)), ..config(database) };
    let address = servers::address("postgres");
    rt::run(async move {
        let postgres = Postgres::start(config);
        call::<SetResponse>(&postgres, Method::KEYVALUE_SET, &set("stays", b"")).await.unwrap();
        let old = "INSERT INTO orders.keyvalue (key, value, expires_at) \
                   SELECT 'old-' || n, '', now() - interval '1 hour' FROM generate_series(1, 1200) n; \
                   INSERT INTO orders.keyvalue (key, value, expires_at) VALUES ('just now', '', now())";
        psql(address, database, old);
        let request = CountRequest { namespace: "orders".to_owned(), ..CountRequest::default() };
        let counted: CountResponse =
            call(&postgres, Method::KEYVALUE_COUNT, &request).await.unwrap();
        assert_eq!(counted.count, 1, "what has expired is not counted, however late it is deleted");
        let until = std::time::Instant::now() + servers::LONG;
        while psql(address, database, "SELECT count(*) FROM orders.keyvalue") != "2" {
            assert!(std::time::Instant::now() < until, "it is not swept");
            rt::sleep(Duration::from_millis(10)).await;
        }
    })
    .unwrap();
}
