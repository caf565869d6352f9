//! What callers see of a Redis that is down, silent, restarting, refusing, full or not one at all: a failure that says so, in
//! time, and a recovery without being told.

mod servers;

use std::cell::Cell;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::{Duration, Instant};

use prism_adapters::breaker::Backoff;
use prism_adapters::conformance::{Client, Direct, Failure, Opened, Versions};
use prism_adapters::redis::{Login, Redis, RedisConfig};
use prism_adapters::{Backend, Context, Error, Kind, Limits, Reply};
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1 as pubsub;
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::r#type::v1::{Message, Start, start};
use prism_proto::view::keyvalue::{GetRequest, SetRequest};
use prost::Message as _;
use servers::{LONG, OwnRedis, Proxy};

/// How long the tests let Redis be silent.
const PATIENCE: Duration = Duration::from_millis(300);

/// How much later than that a call may end on a busy machine.
const LATE: Duration = Duration::from_secs(3);

fn config(address: SocketAddr) -> RedisConfig {
    RedisConfig {
        connect_timeout: PATIENCE,
        answer_timeout: PATIENCE,
        ping_after: PATIENCE,
        backoff: Backoff {
            delay_min: Duration::from_millis(5),
            delay_max: Duration::from_millis(50),
        },
        ..RedisConfig::at(address.ip().to_string(), address.port())
    }
}

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(3 * LONG, test).await.expect("the test ends in time") })
        .unwrap();
}

async fn call(redis: &Redis, method: Method, request: &[u8]) -> Result<Vec<u8>, Error> {
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
    redis.unary_checked(&context, method, request, Redis::SERVES, &mut reply).await?;
    Ok(reply.to_bytes().to_vec())
}

async fn set(redis: &Redis, key: &str, value: &[u8]) -> Result<Vec<u8>, Error> {
    let mut request = Vec::new();
    SetRequest { namespace: "orders", key, value, ..SetRequest::default() }.encode(&mut request);
    call(redis, Method::KEYVALUE_SET, &request).await
}

async fn get(redis: &Redis, key: &str) -> Result<Vec<u8>, Error> {
    let mut request = Vec::new();
    GetRequest { namespace: "orders", key }.encode(&mut request);
    call(redis, Method::KEYVALUE_GET, &request).await
}

/// Calls until it succeeds; every failure on the way is one that may pass.
async fn recovered(redis: &Redis) {
    let until = Instant::now() + LONG;
    while let Err(error) = get(redis, "key").await {
        assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
        assert!(Instant::now() < until, "it does not recover: {error:?}");
        rt::sleep(Duration::from_millis(5)).await;
    }
}

fn assert_unavailable(error: &Error, reason: &str) {
    assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, reason), "{error:?}");
    assert!(error.metadata().contains(&("backend", "redis".into())), "{error:?}");
    assert!(error.metadata().contains(&("namespace", "orders".into())), "{error:?}");
    assert!(error.retry_delay().is_some() && error.is_retryable(), "{error:?}");
}

/// Starts so many Gets at a time and waits until all have ended.
async fn gets(redis: &Rc<Redis>, count: usize) -> Vec<Result<Vec<u8>, Error>> {
    let outcomes: Rc<std::cell::RefCell<Vec<_>>> = Rc::default();
    let ended = Rc::new(rt::Signal::default());
    for _ in 0..count {
        let (redis, outcomes, ended) = (redis.clone(), outcomes.clone(), ended.clone());
        rt::spawn(async move {
            let outcome = get(&redis, "key").await;
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
    let server = servers::address("redis");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    run(async move {
        let redis = Redis::start(config(address));
        let began = Instant::now();
        assert_unavailable(&get(&redis, "key").await.unwrap_err(), "BACKEND_UNREACHABLE");
        assert!(began.elapsed() < LATE);
        // The circuit is open: calls do not wait for an attempt.
        for _ in 0..1_000 {
            assert_unavailable(&get(&redis, "key").await.unwrap_err(), "BACKEND_UNREACHABLE");
        }
        assert!(redis.facts().refused > 0 && !redis.facts().is_connected);
        let _proxy = Proxy::between(TcpListener::bind(address).unwrap(), server);
        recovered(&redis).await;
    });
}

#[test]
fn a_silent_server_is_given_up_and_taken_again() {
    let proxy = Proxy::to(servers::address("redis"));
    run(async move {
        let redis = Rc::new(Redis::start(config(proxy.address)));
        recovered(&redis).await;
        proxy.set_silent(true);
        let began = Instant::now();
        for outcome in gets(&redis, 100).await {
            assert_unavailable(&outcome.unwrap_err(), "BACKEND_UNRESPONSIVE");
        }
        assert!(
            (PATIENCE / 2..PATIENCE + LATE).contains(&began.elapsed()),
            "{:?}",
            began.elapsed()
        );
        // Nor does a connection come about now, and nobody waits for long.
        let began = Instant::now();
        while get(&redis, "key").await.unwrap_err().reason() != "BACKEND_UNREACHABLE" {
            assert!(began.elapsed() < PATIENCE + LATE);
            rt::sleep(Duration::from_millis(5)).await;
        }
        proxy.set_silent(false);
        recovered(&redis).await;
        assert_eq!(redis.facts().calls_under_way, 0);
    });
}

#[test]
fn a_silent_server_is_noticed_also_when_nothing_is_asked() {
    let proxy = Proxy::to(servers::address("redis"));
    run(async move {
        let redis = Redis::start(config(proxy.address));
        recovered(&redis).await;
        proxy.set_silent(true);
        let began = Instant::now();
        while redis.facts().outages == 0 {
            assert!(began.elapsed() < 3 * PATIENCE + LATE);
            rt::sleep(Duration::from_millis(5)).await;
        }
        proxy.set_silent(false);
        recovered(&redis).await;
    });
}

#[test]
fn a_lost_connection_fails_what_is_under_way_and_nothing_else() {
    let proxy = Proxy::to(servers::address("redis"));
    run(async move {
        let redis = Rc::new(Redis::start(config(proxy.address)));
        recovered(&redis).await;
        // It has lasted: the next one is made at once, and calls wait for it.
        rt::sleep(prism_adapters::breaker::STABLE_MIN).await;
        proxy.set_silent(true);
        let (waiting, ended) = (redis.clone(), Rc::new(Cell::new(None)));
        let outcome = ended.clone();
        rt::spawn(async move { outcome.set(Some(get(&waiting, "key").await)) });
        while redis.facts().calls_under_way == 0 {
            rt::yield_now().await;
        }
        proxy.cut();
        proxy.set_silent(false);
        while redis.facts().outages == 0 {
            rt::yield_now().await;
        }
        let failed = loop {
            if let Some(outcome) = ended.take() {
                break outcome;
            }
            rt::yield_now().await;
        };
        assert_unavailable(&failed.unwrap_err(), "BACKEND_LOST");
        for outcome in gets(&redis, 100).await {
            outcome.unwrap();
        }
        assert_eq!(redis.facts().connects, 2);
    });
}

#[test]
fn killed_and_started_again_it_has_what_it_confirmed() {
    let mut server = OwnRedis::start(&[]);
    run(async move {
        let redis = Redis::start(config(server.address));
        recovered(&redis).await;
        let mut confirmed = 0;
        for round in 0..3 {
            for number in 0..50 {
                let key = format!("{round} {number}");
                set(&redis, &key, key.as_bytes()).await.unwrap();
                confirmed += 1;
            }
            server.kill();
            let began = Instant::now();
            assert_eq!(get(&redis, "key").await.unwrap_err().kind(), Kind::Unavailable);
            assert!(began.elapsed() < PATIENCE + LATE);
            server.restart();
            recovered(&redis).await;
        }
        assert_eq!(server.cli(&["DBSIZE"]), confirmed.to_string());
        // A fresh process knows the scripts again: they are loaded with the connection.
        assert!(redis.facts().connects >= 4);
    });
}

#[test]
fn credentials_that_are_refused_and_put_right() {
    let address = servers::address("redis");
    run(async move {
        let login = |password: &str| {
            Some(Login { user: "prism".to_owned(), password: password.to_owned() })
        };
        let redis = Redis::start(RedisConfig { login: login("guess"), ..config(address) });
        let error = get(&redis, "key").await.unwrap_err();
        assert_unavailable(&error, "BACKEND_CREDENTIALS_REFUSED");
        assert!(!error.message().contains("guess"));
        let redis = Redis::start(RedisConfig { login: login("prism-secret"), ..config(address) });
        get(&redis, "key").await.unwrap();
        let (user, password) = ("nobody".to_owned(), String::new());
        let unknown = Some(Login { user, password });
        let redis = Redis::start(RedisConfig { login: unknown, ..config(address) });
        let error = get(&redis, "key").await.unwrap_err();
        assert_unavailable(&error, "BACKEND_CREDENTIALS_REFUSED");
    });
    let server = OwnRedis::start(&["--requirepass", "only-a-password"]);
    run(async move {
        let redis = Redis::start(config(server.address));
        let error = get(&redis, "key").await.unwrap_err();
        assert_unavailable(&error, "BACKEND_CREDENTIALS_REFUSED");
        let (user, password) = ("default".to_owned(), "only-a-password".to_owned());
        let login = Some(Login { user, password });
        let redis = Redis::start(RedisConfig { login, ..config(server.address) });
        get(&redis, "key").await.unwrap();
    });
}

#[test]
fn a_user_who_may_not_do_everything() {
    let server = OwnRedis::start(&[]);
    let rules = ["on", ">secret", "~*", "+@read", "+@connection", "+@scripting"];
    assert_eq!(server.cli(&[&["ACL", "SETUSER", "reader"], &rules[..]].concat()), "OK");
    run(async move {
        let login = Some(Login { user: "reader".to_owned(), password: "secret".to_owned() });
        let redis = Redis::start(RedisConfig { login, ..config(server.address) });
        get(&redis, "key").await.unwrap();
        let error = set(&redis, "key", b"value").await.unwrap_err();
        assert_unavailable(&error, "BACKEND_CREDENTIALS_REFUSED");
        get(&redis, "key").await.unwrap();
        assert_eq!(redis.facts().connects, 1);
    });
}

#[test]
fn full_read_only_and_unable_to_persist() {
    let server = OwnRedis::start(&["--maxmemory-policy", "noeviction"]);
    run(async move {
        let redis = Redis::start(config(server.address));
        set(&redis, "key", b"value").await.unwrap();
        assert_eq!(server.cli(&["CONFIG", "SET", "maxmemory", "1"]), "OK");
        let error = set(&redis, "key", b"more").await.unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::ResourceExhausted, "BACKEND_FULL"));
        assert!(error.is_retryable());
        assert!(!get(&redis, "key").await.unwrap().is_empty(), "reads go on");
        assert_eq!(server.cli(&["CONFIG", "SET", "maxmemory", "0"]), "OK");
        set(&redis, "key", b"more").await.unwrap();

        assert_eq!(server.cli(&["CONFIG", "SET", "replica-serve-stale-data", "yes"]), "OK");
        assert_eq!(server.cli(&["REPLICAOF", "127.0.0.1", "1"]), "OK");
        let error = set(&redis, "key", b"value").await.unwrap_err();
        assert_unavailable(&error, "BACKEND_READ_ONLY");
        assert!(!get(&redis, "key").await.unwrap().is_empty(), "reads go on");
        assert_eq!(server.cli(&["REPLICAOF", "NO", "ONE"]), "OK");
        set(&redis, "key", b"value").await.unwrap();
        assert_eq!(redis.facts().connects, 1, "none of it is the connection's fault");
    });
}

#[test]
fn a_node_of_a_cluster_is_refused_with_its_name() {
    let server = OwnRedis::start(&["--cluster-enabled", "yes"]);
    run(async move {
        let redis = Redis::start(config(server.address));
        let error = get(&redis, "key").await.unwrap_err();
        assert_eq!(
            (error.kind(), error.reason()),
            (Kind::FailedPrecondition, "BACKEND_IS_CLUSTER")
        );
    });
}

#[test]
fn what_is_not_a_redis_or_goes_mad() {
    let proxy = Proxy::to(servers::address("redis"));
    run(async move {
        let redis = Rc::new(Redis::start(config(proxy.address)));
        recovered(&redis).await;
        // Answers to nothing, half answers, nonsense: whatever it is, the connection is not to be trusted any more.
        for nonsense in [&b"+OK\r\n"[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$999999999999\r\n"]
        {
            let before = redis.facts().outages;
            proxy.inject(nonsense);
            let until = Instant::now() + LONG;
            while redis.facts().outages == before {
                assert!(Instant::now() < until, "it was not noticed");
                rt::sleep(Duration::from_millis(1)).await;
            }
            recovered(&redis).await;
            for outcome in gets(&redis, 10).await {
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
        let redis = Redis::start(config(address));
        let error = get(&redis, "key").await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(["BACKEND_PROTOCOL", "BACKEND_UNREACHABLE"].contains(&error.reason()), "{error:?}");
    });
}

#[test]
fn what_waits_is_bounded_and_callers_may_go() {
    let proxy = Proxy::to(servers::address("redis"));
    run(async move {
        let answer_timeout = Duration::from_secs(5);
        let redis = Rc::new(Redis::start(RedisConfig {
            calls_max: 64,
            answer_timeout,
            ..config(proxy.address)
        }));
        recovered(&redis).await;
        proxy.set_silent(true);
        // Callers who do not wait to the end leave their places to answers that may still come.
        let began = Instant::now();
        for _ in 0..32 {
            let short = Duration::from_millis(2);
            assert!(rt::timeout(short, get(&redis, "key")).await.is_none());
        }
        assert!(began.elapsed() < answer_timeout / 2);
        assert_eq!(redis.facts().calls_under_way, 32);
        let (patient, ended) = (redis.clone(), Rc::new(Cell::new(0)));
        let count = ended.clone();
        rt::spawn(async move {
            for outcome in gets(&patient, 32).await {
                outcome.unwrap();
                count.set(count.get() + 1);
            }
        });
        while redis.facts().calls_under_way < 64 {
            rt::yield_now().await;
        }
        let error = get(&redis, "key").await.unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::ResourceExhausted, "BACKEND_BUSY"));
        proxy.set_silent(false);
        while ended.get() < 32 {
            rt::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!((redis.facts().calls_under_way, redis.facts().connects), (0, 1));
    });
}

#[test]
fn a_name_is_looked_up_and_a_wrong_one_says_so() {
    let address = servers::address("redis");
    run(async move {
        let named = RedisConfig { host: "localhost".to_owned(), ..config(address) };
        let patient = RedisConfig { connect_timeout: LONG, ..named };
        get(&Redis::start(patient), "key").await.unwrap();
        let wrong = RedisConfig { host: "no host has this name".to_owned(), ..config(address) };
        let error = get(&Redis::start(wrong), "key").await.unwrap_err();
        assert_unavailable(&error, "BACKEND_UNREACHABLE");
    });
}

/// A client of topics and streams.
fn client(config: RedisConfig) -> Direct<Redis> {
    Direct::in_real_time(Redis::start(config), Versions::Digest)
}

async fn publish(client: &Direct<Redis>, text: &'static str) -> Result<(), Failure> {
    let message = Some(Message { payload: text.into(), ..Default::default() });
    let (namespace, topic) = (client.namespace().to_owned(), "t".to_owned());
    let request = pubsub::PublishRequest { namespace, topic, message };
    client.unary(Method::PUBSUB_PUBLISH, request.encode_to_vec()).await.map(drop)
}

/// Subscribes, as soon as that is possible.
async fn subscribed(client: &Direct<Redis>) -> <Direct<Redis> as Client>::Opened<'_> {
    let (namespace, topic) = (client.namespace().to_owned(), "t".to_owned());
    let request = pubsub::SubscribeRequest { namespace, topic, ..Default::default() };
    let request = request.encode_to_vec();
    let until = Instant::now() + LONG;
    loop {
        let mut opened = client.open(Method::PUBSUB_SUBSCRIBE, request.clone()).await.unwrap();
        match opened.next().await {
            Ok(started) => {
                started.expect("a stream begins with `started`");
                return opened;
            }
            Err(failure) => assert_eq!(failure.code, 14, "{failure:?}"),
        }
        assert!(Instant::now() < until, "it does not recover");
        rt::sleep(Duration::from_millis(5)).await;
    }
}

/// A subscriber that has heard something.
async fn heard(client: &Direct<Redis>) -> <Direct<Redis> as Client>::Opened<'_> {
    let until = Instant::now() + LONG;
    loop {
        let mut opened = subscribed(client).await;
        if publish(client, "heard").await.is_ok() && opened.next().await.is_ok() {
            return opened;
        }
        assert!(Instant::now() < until, "it does not recover");
        rt::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_subscriber_to_whom_nothing_comes_is_told_when_the_server_falls_silent() {
    let proxy = Proxy::to(servers::address("redis"));
    run(async move {
        let client = client(config(proxy.address));
        for how in [|proxy: &Proxy| proxy.set_silent(true), |proxy: &Proxy| proxy.cut()] {
            let mut opened = heard(&client).await;
            how(&proxy);
            let failure = loop {
                // An event of an attempt before may still come.
                if let Err(failure) = opened.next().await {
                    break failure;
                }
            };
            assert_eq!((failure.code, &*failure.reason), (14, "SUBSCRIPTION_CUT_OFF"));
            proxy.set_silent(false);
        }
        heard(&client).await;
    });
}

async fn append(client: &Direct<Redis>, text: &str) -> Result<(), Failure> {
    let (namespace, stream) = (client.namespace().to_owned(), "s".to_owned());
    let value = text.as_bytes().to_vec().into();
    let record = Some(stream::NewRecord { value, ..Default::default() });
    let request = stream::AppendRequest { namespace, stream, record, expected_last: None };
    client.unary(Method::STREAM_APPEND, request.encode_to_vec()).await.map(drop)
}

#[test]
fn a_follower_misses_nothing_over_outages() {
    let mut server = OwnRedis::start(&[]);
    run(async move {
        let client = client(config(server.address));
        let request = |start| {
            let (namespace, stream) = (client.namespace().to_owned(), "s".to_owned());
            let start = Some(Start { start: Some(start) });
            let request = stream::ReadRequest {
                namespace,
                stream,
                start,
                follow: true,
                ..Default::default()
            };
            request.encode_to_vec()
        };
        let mut cursor = start::Start::Earliest(());
        let mut opened =
            client.open(Method::STREAM_READ, request(cursor.clone())).await.expect("opened");
        let mut heard: Vec<String> = Vec::new();
        for round in 0..4 {
            let until = Instant::now() + LONG;
            let text = round.to_string();
            while let Err(failure) = append(&client, &text).await {
                assert_eq!(failure.code, 14, "{failure:?}");
                assert!(Instant::now() < until, "it does not recover");
                rt::sleep(Duration::from_millis(5)).await;
            }
            while heard.last() != Some(&text) {
                match opened.next().await {
                    Ok(page) => {
                        let page = page.expect("it goes on");
                        let page = stream::ReadResponse::decode(page).expect("a valid message");
                        let texts = page.records.iter().map(|one| one.value.to_vec());
                        heard.extend(texts.map(|text| String::from_utf8(text).expect("text")));
                        cursor = start::Start::Cursor(page.cursor);
                    }
                    // Whoever looks just then is told, and goes on from its cursor.
                    Err(failure) => {
                        assert_eq!(failure.code, 14, "{failure:?}");
                        assert!(Instant::now() < until, "it does not recover");
                        rt::sleep(Duration::from_millis(5)).await;
                        let again = client.open(Method::STREAM_READ, request(cursor.clone()));
                        opened = again.await.expect("opened");
                    }
                }
            }
            server.kill();
            server.restart();
        }
        // What was tried again may be there twice; nothing is missing, and nothing comes again to its reader.
        heard.dedup();
        assert_eq!(heard, ["0", "1", "2", "3"]);
    });
}
