//! A call's deadline goes with it to its backend: what is late before it is sent never arrives, and what PostgreSQL works on for nobody
//! is given up.

mod servers;

use std::cell::RefCell;
use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use prism_adapters::kafka::{Kafka, KafkaConfig};
use prism_adapters::nats::{Nats, NatsConfig};
use prism_adapters::postgres::{Postgres, PostgresConfig};
use prism_adapters::redis::{Redis, RedisConfig};
use prism_adapters::{Backend, Context, Error, Kind, Limits, NO_DEADLINE_NS, PageSink, Reply};
use prism_io::clock::{monotonic_ns, wall_us};
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::{GetRequest, GetResponse, SetRequest};
use prism_proto::prism::stream::v1::{AppendRequest, NewRecord, ReadRequest, ReadResponse};
use prism_proto::prism::r#type::v1::{Start, start};
use prost::Message as _;
use servers::{LONG, OwnNats, Proxy};

/// A deadline that passes while a connection is being made.
const SHORT: Duration = Duration::from_millis(50);

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(6 * LONG, test).await.expect("the test ends in time") })
        .unwrap();
}

/// A name that no other run has used.
fn fresh(name: &str) -> String {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
    format!("{name}-{since:x}")
}

fn context(limits: &Limits, deadline_ns: u64) -> Context<'_> {
    Context {
        namespace: 1,
        namespace_name: "orders",
        partition: 0,
        now_us: wall_us(),
        revision: Default::default(),
        limits,
        deadline_ns,
    }
}

async fn call<B: Backend>(
    backend: &B,
    method: Method,
    request: &impl prost::Message,
    deadline_ns: u64,
) -> Result<Vec<u8>, Error> {
    let (limits, mut reply) = (Limits::default(), Reply::default());
    let (context, request) = (context(&limits, deadline_ns), request.encode_to_vec());
    backend.unary_checked(&context, method, &request, B::SERVES, &mut reply).await?;
    Ok(reply.to_bytes().to_vec())
}

async fn set<B: Backend>(backend: &B, key: &str, deadline_ns: u64) -> Result<(), Error> {
    let (namespace, key, value) = ("orders".to_owned(), key.to_owned(), key.as_bytes().to_vec());
    let request = SetRequest { namespace, key, value: value.into(), ..Default::default() };
    call(backend, Method::KEYVALUE_SET, &request, deadline_ns).await.map(drop)
}

async fn is_there<B: Backend>(backend: &B, key: &str) -> bool {
    let request = GetRequest { namespace: "orders".to_owned(), key: key.to_owned() };
    let reply = call(backend, Method::KEYVALUE_GET, &request, NO_DEADLINE_NS).await.unwrap();
    GetResponse::decode(&reply[..]).unwrap().found
}

#[track_caller]
fn assert_not_sent(error: &Error, backend: &'static str) {
    let found = (error.kind(), error.reason());
    assert_eq!(found, (Kind::DeadlineExceeded, "BACKEND_NOT_ASKED"), "{error:?}");
    assert!(error.metadata().contains(&("backend", backend.into())), "{error:?}");
}

/// Two writes wait for a connection, one of them not long enough.
async fn what_is_late_never_arrives<B: Backend + 'static>(backend: B, proxy: Proxy) {
    let (backend, late, patient) = (Rc::new(backend), fresh("late"), fresh("patient"));
    let deadline_ns = monotonic_ns() + SHORT.as_nanos() as u64;
    let outcomes: Rc<RefCell<Vec<_>>> = Rc::default();
    for (key, deadline_ns) in [(late.clone(), deadline_ns), (patient.clone(), NO_DEADLINE_NS)] {
        let (backend, outcomes) = (backend.clone(), outcomes.clone());
        rt::spawn(async move {
            let outcome = set(&*backend, &key, deadline_ns).await;
            outcomes.borrow_mut().push((key, outcome));
        });
    }
    rt::yield_now().await;
    while monotonic_ns() < deadline_ns {
        rt::sleep(SHORT / 10).await;
    }
    proxy.set_silent(false);
    let until = Instant::now() + 3 * LONG;
    while outcomes.borrow().len() < 2 {
        assert!(Instant::now() < until, "calls do not end");
        rt::sleep(Duration::from_millis(1)).await;
    }
    for (key, outcome) in outcomes.take() {
        match key == late {
            true => assert_not_sent(&outcome.unwrap_err(), B::NAME),
            false => outcome.unwrap(),
        }
    }
    assert!(is_there(&*backend, &patient).await);
    assert!(!is_there(&*backend, &late).await, "it was sent although nobody waited any more");
}

fn silent(server: SocketAddr) -> Proxy {
    let proxy = Proxy::to(server);
    proxy.set_silent(true);
    proxy
}

#[test]
fn redis_is_not_sent_what_is_late() {
    let proxy = silent(servers::address("redis"));
    run(async move {
        let address = proxy.address;
        let config = RedisConfig {
            connect_timeout: 3 * LONG,
            ..RedisConfig::at(address.ip().to_string(), address.port())
        };
        what_is_late_never_arrives(Redis::start(config), proxy).await;
    });
}

#[test]
fn nats_is_not_sent_what_is_late() {
    let server = OwnNats::start("");
    let proxy = silent(server.address);
    run(async move {
        let address = proxy.address;
        let config = NatsConfig {
            connect_timeout: 3 * LONG,
            answer_timeout: LONG,
            ..NatsConfig::at(address.ip().to_string(), address.port())
        };
        what_is_late_never_arrives(Nats::start(config), proxy).await;
    });
}

fn postgres(address: SocketAddr, database: &str) -> PostgresConfig {
    PostgresConfig {
        password: Some("prism".to_owned()),
        database: database.to_owned(),
        sweep_every: None,
        pool: 1,
        connect_timeout: 3 * LONG,
        answer_timeout: 3 * LONG,
        lock_timeout: 3 * LONG,
        ..PostgresConfig::at(address.ip().to_string(), address.port(), "prism")
    }
}

#[test]
fn postgres_is_not_sent_what_is_late() {
    let database = "prism_deadlines_sent";
    let proxy = silent(servers::empty_database(database));
    run(async move {
        let config = postgres(proxy.address, database);
        what_is_late_never_arrives(Postgres::start(config), proxy).await;
    });
}

/// Somebody else's transaction, which holds the row of a key until it is dropped.
struct Holder {
    psql: Child,
    said: BufReader<ChildStdout>,
}

impl Holder {
    fn of(address: SocketAddr, database: &str, key: &str) -> Self {
        let mut psql = Command::new("psql")
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "prism", "-d", database])
            .args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()])
            .env("PGPASSWORD", "prism")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("psql, of the Debian package postgresql-client, is there");
        let said = BufReader::new(psql.stdout.take().unwrap());
        let mut holder = Holder { psql, said };
        let statements =
            format!("BEGIN;\nSELECT key FROM orders.keyvalue WHERE key = '{key}' FOR UPDATE;\n");
        holder.psql.stdin.as_mut().unwrap().write_all(statements.as_bytes()).unwrap();
        let mut line = String::new();
        holder.said.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), key);
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.psql.stdin.take());
        let _ = self.psql.wait();
    }
}

#[test]
fn postgres_gives_up_what_nobody_waits_for() {
    let database = "prism_deadlines_cancelled";
    let address = servers::empty_database(database);
    run(async move {
        let config = postgres(address, database);
        let patience = config.answer_timeout;
        let postgres = Postgres::start(config);
        set(&postgres, "locked", NO_DEADLINE_NS).await.unwrap();
        let changed = "SELECT xmin FROM orders.keyvalue WHERE key = 'locked'";
        let before = servers::psql(address, database, changed);
        let holder = Holder::of(address, database, "locked");
        let (began, mut span) = (Instant::now(), 2 * SHORT);
        let error = loop {
            let deadline_ns = monotonic_ns() + span.as_nanos() as u64;
            let error = set(&postgres, "locked", deadline_ns).await.unwrap_err();
            if error.reason() != "BACKEND_NOT_ASKED" {
                break error;
            }
            // The machine is so slow that it was not even sent.
            span *= 2;
        };
        let found = (error.kind(), error.reason());
        assert_eq!(found, (Kind::DeadlineExceeded, "BACKEND_TIMEOUT"), "{error:?}");
        assert!(began.elapsed() < patience / 2, "PostgreSQL was left to it");
        // The connection is free, and none of what comes after is given up in its place.
        for number in 0..100 {
            set(&postgres, &format!("free {number}"), NO_DEADLINE_NS).await.unwrap();
        }
        drop(holder);
        assert_eq!(servers::psql(address, database, changed), before, "it took effect");
        assert_eq!(postgres.facts().connects, 1);
    });
}

/// The same where a caller goes away before its time is up.
#[test]
fn postgres_gives_up_what_its_caller_has_left() {
    let database = "prism_deadlines_left";
    let address = servers::empty_database(database);
    run(async move {
        let postgres = Postgres::start(postgres(address, database));
        set(&postgres, "locked", NO_DEADLINE_NS).await.unwrap();
        let holder = Holder::of(address, database, "locked");
        {
            let mut left = std::pin::pin!(set(&postgres, "locked", NO_DEADLINE_NS));
            let waits = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND \
                 wait_event_type = 'Lock'"
            );
            let until = Instant::now() + LONG;
            while servers::psql(address, database, &waits) != "1" {
                assert!(Instant::now() < until, "it does not wait for the row");
                let early = rt::timeout(SHORT / 5, left.as_mut()).await;
                assert!(early.is_none(), "somebody holds the row: {early:?}");
            }
        }
        // The connection, of which there is one, is free again long before PostgreSQL would give up by itself.
        for number in 0..10 {
            set(&postgres, &format!("free {number}"), NO_DEADLINE_NS).await.unwrap();
        }
        assert_eq!(postgres.facts().connects, 1);
        drop(holder);
    });
}

/// Counts the records of the pages that it is sent.
#[derive(Default)]
struct Count(usize);

impl PageSink for Count {
    async fn send(&mut self, message: bytes::Bytes) -> Result<(), Error> {
        self.0 += ReadResponse::decode(message).unwrap().records.len();
        Ok(())
    }

    fn now_us(&self) -> u64 {
        wall_us()
    }

    async fn wait(&mut self, event: impl Future<Output = ()>, _: u64) -> Result<(), Error> {
        event.await;
        Ok(())
    }

    async fn write(&mut self, _: Method, _: Vec<u8>) -> Result<bytes::Bytes, Error> {
        unreachable!("a backend outside keeps what a stream changes itself")
    }
}

#[test]
fn kafka_is_not_handed_what_is_late() {
    let address = servers::address("kafka");
    run(async move {
        let answer_timeout = 2 * LONG;
        let config = KafkaConfig { answer_timeout, ..KafkaConfig::at(vec![address.to_string()]) };
        let (kafka, stream) = (Kafka::start(config), fresh("deadlines"));
        let record = Some(NewRecord { value: b"record".to_vec().into(), ..Default::default() });
        let request = AppendRequest {
            namespace: "orders".to_owned(),
            stream: stream.clone(),
            record,
            ..Default::default()
        };
        let append = async |deadline_ns| {
            call(&kafka, Method::STREAM_APPEND, &request, deadline_ns).await.map(drop)
        };
        // Before the stream is there, when it has to be made first, and after.
        assert_not_sent(&append(monotonic_ns()).await.unwrap_err(), "kafka");
        append(NO_DEADLINE_NS).await.unwrap();
        assert_not_sent(&append(monotonic_ns()).await.unwrap_err(), "kafka");
        let request = ReadRequest {
            namespace: "orders".to_owned(),
            stream,
            start: Some(Start { start: Some(start::Start::Earliest(())) }),
            ..Default::default()
        };
        let (limits, mut count) = (Limits::default(), Count::default());
        let (context, bytes) = (context(&limits, NO_DEADLINE_NS), request.encode_to_vec());
        kafka.stream(&context, Method::STREAM_READ, &bytes, &mut count).await.unwrap();
        assert_eq!(count.0, 1);
    });
}
