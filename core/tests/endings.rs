//! Namespaces that end through the real binary: with what they keep on real backends, over crashes in the middle, and with the
//! calls that are open.

mod harness;
#[path = "../../adapters/tests/servers/mod.rs"]
mod servers;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use harness::{Caller, PATIENCE, Refusal, Setup, directory, run, serve};
use prism_io::client::StreamReply;
use prism_io::grpc::Code;
use prism_proto::catalogue::Method;
use prism_proto::prism::namespace::v1 as proto;
use prism_proto::prism::pubsub::v1 as pubsub;
use prism_proto::prism::queue::v1 as queue;
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::transact::v1 as transact;
use prism_proto::prism::transact::v1::transaction_request::Request;
use prism_proto::prism::r#type::v1 as types;
use prost::Message;
use servers::OwnRedis;

/// Longer than anything here takes, on a machine that does other work as well.
const LONG: Duration = Duration::from_secs(120);

/// A name that no other run has, on servers that many share.
fn name(of: &str) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    format!("end-{of}-{:x}-{:x}", std::process::id(), since.as_micros())
}

/// A server that namespaces are applied to, with one backend of this type.
fn with_backend(folder: &Path, kind: &str, backend: &str) -> Setup {
    let platform = folder.join("platform.yaml");
    let text = format!(
        "backends: [{{name: there, type: {kind}, {backend}}}]\nallowed_backends: [{kind}]\n"
    );
    std::fs::write(&platform, text).unwrap();
    serve(folder)
        .shards(2)
        .config(&format!("wal: {{segment_bytes: 20MiB}}\nplatform: {}\n", platform.display()))
}

fn ask<Answer: Message + Default + 'static>(
    address: SocketAddr,
    method: &'static str,
    request: &impl Message,
) -> Result<Answer, Box<Refusal>> {
    let request = request.encode_to_vec();
    run(async move {
        let caller = Caller::to(address, "").await;
        let path = format!("/prism.namespace.v1.NamespaceService/{method}");
        let reply = caller.client.unary(&path, &[], &request, LONG).await;
        let reply = reply.map_err(|failure| Box::new(Refusal::from(failure)))?;
        Ok(Answer::decode(reply.message).expect("a valid answer"))
    })
}

fn apply(address: SocketAddr, name: &str, rest: &str) -> Result<(), Box<Refusal>> {
    let document = format!("namespace: {name}\nteam: web\n{rest}\n");
    let request = proto::ApplyRequest { document, ..Default::default() };
    ask::<proto::ApplyResponse>(address, "Apply", &request).map(drop)
}

fn delete(address: SocketAddr, name: &str, data: &str) -> Result<proto::State, Box<Refusal>> {
    let request = proto::DeleteRequest {
        namespace: name.to_owned(),
        confirm: name.to_owned(),
        delete_data_of: data.to_owned(),
    };
    let deleted = ask::<proto::DeleteResponse>(address, "Delete", &request)?;
    Ok(deleted.namespace.expect("as it was").state())
}

/// What a namespace keeps under the name `kept`: one value, message or record.
#[derive(Clone, Copy, PartialEq)]
enum Keeps {
    Values,
    Messages,
    Records,
}

impl Keeps {
    fn api(self) -> &'static str {
        match self {
            Keeps::Values => "keyvalue",
            Keeps::Messages => "queue",
            Keeps::Records => "stream",
        }
    }

    async fn put(self, caller: &Caller) -> Result<(), Refusal> {
        let (namespace, payload) = (caller.namespace.clone(), "kept".into());
        match self {
            Keeps::Values => {
                caller.try_set(&[], &caller.set_request("kept", b"kept")).await.map(drop)
            }
            Keeps::Messages => {
                let message = Some(types::Message { payload, ..Default::default() });
                let request = queue::SendRequest { namespace, queue: "kept".to_owned(), message };
                let sent = caller.call::<queue::SendResponse>(Method::QUEUE_SEND, &[], &request);
                sent.await.map(drop)
            }
            Keeps::Records => {
                let record = Some(stream::NewRecord { value: payload, ..Default::default() });
                let stream = "kept".to_owned();
                let request =
                    stream::AppendRequest { namespace, stream, record, ..Default::default() };
                let appended =
                    caller.call::<stream::AppendResponse>(Method::STREAM_APPEND, &[], &request);
                appended.await.map(drop)
            }
        }
    }

    /// How many are there.
    async fn count(self, caller: &Caller) -> usize {
        let namespace = caller.namespace.clone();
        match self {
            Keeps::Values => {
                let until = Instant::now() + LONG;
                loop {
                    match caller.try_get(&[], "kept").await {
                        Ok((answer, _)) => return usize::from(answer.found),
                        // Its lane has not heard yet that the backend is back.
                        Err(refusal) if refusal.code == Code::Unavailable => {
                            assert!(Instant::now() < until, "{refusal:?}");
                            prism_io::rt::sleep(Duration::from_millis(10)).await;
                        }
                        Err(refusal) => panic!("{refusal:?}"),
                    }
                }
            }
            Keeps::Messages => {
                let request = queue::ReceiveRequest {
                    namespace,
                    queue: "kept".to_owned(),
                    max_messages: 10,
                    ..Default::default()
                };
                let got =
                    caller.call::<queue::ReceiveResponse>(Method::QUEUE_RECEIVE, &[], &request);
                got.await.expect("received").0.deliveries.len()
            }
            Keeps::Records => {
                let start = types::Start { start: Some(types::start::Start::Earliest(())) };
                let request = stream::ReadRequest {
                    namespace,
                    stream: "kept".to_owned(),
                    start: Some(start),
                    ..Default::default()
                };
                let (path, bytes) = (Method::STREAM_READ.path(), request.encode_to_vec());
                let mut reply = caller.client.stream(path, &[], &bytes, LONG).await.expect("begun");
                let mut count = 0;
                loop {
                    match reply.next().await {
                        Ok(Some(page)) => {
                            let page = stream::ReadResponse::decode(page).expect("a valid page");
                            count += page.records.len();
                        }
                        Ok(None) => return count,
                        // A stream that nobody has appended to.
                        Err(failure) if failure.code == Code::NotFound => return count,
                        Err(failure) => panic!("{failure:?}"),
                    }
                }
            }
        }
    }
}

fn put(address: SocketAddr, namespace: &str, keeps: Keeps) {
    let namespace = namespace.to_owned();
    run(async move {
        let caller = Caller::to(address, &namespace).await;
        let until = Instant::now() + LONG;
        // A broker may need a moment for a topic that is new.
        while let Err(refusal) = keeps.put(&caller).await {
            assert!(refusal.code == Code::Unavailable && Instant::now() < until, "{refusal:?}");
            prism_io::rt::yield_now().await;
        }
    });
}

fn count(address: SocketAddr, namespace: &str, keeps: Keeps) -> usize {
    let namespace = namespace.to_owned();
    run(async move { keeps.count(&Caller::to(address, &namespace).await).await })
}

/// A namespace goes with what it keeps on its backend, another one whose name begins so stays, and a new one of the name is empty.
/// `look` tells what the backend itself has of a namespace, where that can be asked for.
fn ends_on(setup: &Setup, keeps: Keeps, needs: &str, look: &dyn Fn(&str) -> Option<String>) {
    let is_gone = |name: &str| assert_eq!(look(name).unwrap_or_default(), "", "{name}");
    let server = setup.start();
    let listen = server.listen;
    let gone = name("gone");
    let stays = format!("{gone}-x");
    let rest = format!("client_api: {}\nneeds: {needs}", keeps.api());
    for namespace in [&gone, &stays] {
        apply(listen, namespace, &rest).expect("applied");
    }
    assert_eq!(delete(listen, &gone, ""), Ok(proto::State::Ready), "it held nothing yet");
    apply(listen, &gone, &rest).expect("applied");
    for namespace in [&gone, &stays] {
        put(listen, namespace, keeps);
    }
    let refusal = delete(listen, &gone, "").expect_err("it holds data");
    assert_eq!(refusal.reason, "NAMESPACE_HOLDS_DATA", "{}", refusal.message);
    put(listen, &gone, keeps);
    assert_ne!(look(&gone).as_deref(), Some(""), "it is where we look");
    assert_eq!(delete(listen, &gone, &gone), Ok(proto::State::Ready));
    is_gone(&gone);
    let refusal = run({
        let gone = gone.clone();
        async move { keeps.put(&Caller::to(listen, &gone).await).await.expect_err("it is gone") }
    });
    assert_eq!(refusal.reason, "NAMESPACE_UNKNOWN");
    // Nobody who was at it makes it anew.
    server.kill();
    let server = setup.start();
    let listen = server.listen;
    is_gone(&gone);
    apply(listen, &gone, &rest).expect("applied");
    put(listen, &gone, keeps);
    assert_eq!(count(listen, &gone, keeps), 1, "it began empty");
    assert_eq!(count(listen, &stays, keeps), 1, "another is as it was");
    for namespace in [&gone, &stays] {
        assert_eq!(delete(listen, namespace, namespace), Ok(proto::State::Ready));
        is_gone(namespace);
    }
    server.stop();
}

#[test]
fn keys_go_from_redis() {
    let (folder, redis) = (directory(), servers::address("redis"));
    let setup = with_backend(folder.path(), "redis", &format!("address: \"{redis}\""));
    let look = |name: &str| {
        let keys =
            |pattern: String| servers::redis_cli(redis, 0, &["--scan", "--pattern", &pattern]);
        Some([keys(format!("{name}:*")), keys(format!("_prism:*:{name}:*"))].concat())
    };
    ends_on(&setup, Keeps::Values, "{durability: eventual}", &look);
}

#[test]
fn a_schema_goes_from_postgresql() {
    const DATABASE: &str = "prism_endings";
    let folder = directory();
    let postgres = servers::empty_database(DATABASE);
    let password = folder.path().join("postgres-password");
    std::fs::write(&password, "prism\n").unwrap();
    let backend = format!(
        "address: \"{postgres}\", user: prism, database: {DATABASE}, password_file: \"{}\"",
        password.display()
    );
    let setup = with_backend(folder.path(), "postgres", &backend);
    let look = |name: &str| {
        let found = "SELECT nspname FROM pg_namespace WHERE nspname = ";
        let noted = "SELECT schema_name FROM prism_meta.migrations WHERE schema_name = ";
        let statements = format!("{found} '{name}' UNION {noted} '{name}'");
        Some(servers::psql(postgres, DATABASE, &statements))
    };
    ends_on(&setup, Keeps::Values, "{durability: strong}", &look);
    ends_on(&setup, Keeps::Messages, "{durability: strong}", &look);

    // What somebody else has put into the schema stays, and the schema with it.
    let server = setup.start();
    let shared = name("shared");
    let rest = "client_api: keyvalue\nneeds: {durability: strong}";
    apply(server.listen, &shared, rest).expect("applied");
    put(server.listen, &shared, Keeps::Values);
    let own =
        format!("CREATE TABLE \"{shared}\".own (a int); INSERT INTO \"{shared}\".own VALUES (1)");
    servers::psql(postgres, DATABASE, &own);
    assert_eq!(delete(server.listen, &shared, &shared), Ok(proto::State::Ready));
    let left =
        format!("SELECT table_name FROM information_schema.tables WHERE table_schema = '{shared}'");
    assert_eq!(servers::psql(postgres, DATABASE, &left), "own");
    server.stop();
}

#[test]
fn topics_go_from_kafka() {
    let (folder, kafka) = (directory(), servers::address("kafka"));
    let setup =
        with_backend(folder.path(), "kafka", &format!("brokers: [\"{kafka}\"], replication: 1"));
    ends_on(&setup, Keeps::Records, "{durability: eventual}", &|_| None);
}

#[test]
fn streams_go_from_nats() {
    let (folder, nats) = (directory(), servers::address("nats"));
    let setup = with_backend(folder.path(), "nats", &format!("address: \"{nats}\""));
    ends_on(&setup, Keeps::Records, "{durability: eventual}", &|_| None);
}

/// The backend is away when the namespace is deleted, and the server dies before it is back.
#[test]
fn an_end_that_was_begun_is_brought_to_its_end_by_the_next_start() {
    let (folder, mut redis) = (directory(), OwnRedis::start(&[]));
    let setup = with_backend(folder.path(), "redis", &format!("address: \"{}\"", redis.address));
    let server = setup.start();
    let rest = "client_api: keyvalue\nneeds: {durability: eventual}";
    for namespace in ["gone", "stays"] {
        apply(server.listen, namespace, rest).expect("applied");
        put(server.listen, namespace, Keeps::Values);
    }
    // Nothing is on its way any more.
    let listen = server.listen;
    run(async move {
        for namespace in ["gone", "stays"] {
            let caller = Caller::to(listen, namespace).await;
            let strong: (&str, &[u8]) = ("prism-durability", b"strong");
            let request = caller.set_request("kept", b"kept");
            caller.try_set(&[strong], &request).await.expect("Redis has it");
        }
    });
    redis.kill();
    // Whether it holds data nobody can tell now, and so it is not ended.
    let refusal = delete(server.listen, "gone", "").expect_err("who knows");
    assert_eq!(refusal.code, Code::Unavailable, "{}", refusal.message);
    // Logged, on its way to the backend, and given up with the namespace.
    put(server.listen, "gone", Keeps::Values);
    assert_eq!(delete(server.listen, "gone", "gone"), Ok(proto::State::Ending));
    server.wait_for_metric("prism_lane_pending_records", |pending| pending == 0.0);
    let again = apply(server.listen, "gone", rest).expect_err("its data is still there");
    assert_eq!(again.reason, "NAMESPACE_ENDING", "{}", again.message);
    server.kill();
    let server = setup.start();
    let again = apply(server.listen, "gone", rest).expect_err("its data is still there");
    assert_eq!(again.reason, "NAMESPACE_ENDING", "{}", again.message);
    redis.restart();
    let until = Instant::now() + LONG;
    while let Err(refusal) = apply(server.listen, "gone", rest) {
        assert_eq!(refusal.reason, "NAMESPACE_ENDING", "{}", refusal.message);
        assert!(Instant::now() < until, "it goes on for ever: {}", server.errors());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(count(server.listen, "gone", Keeps::Values), 0);
    assert_eq!(count(server.listen, "stays", Keeps::Values), 1);
    assert_eq!(redis.cli(&["--scan", "--pattern", "*gone:*"]), "");
    server.stop();
}

/// More keys than one piece has.
#[test]
fn many_keys_go_in_pieces() {
    let (folder, redis) = (directory(), OwnRedis::start(&[]));
    let setup = with_backend(folder.path(), "redis", &format!("address: \"{}\"", redis.address));
    let server = setup.start();
    let rest = "client_api: keyvalue\nneeds: {durability: eventual}";
    apply(server.listen, "gone", rest).expect("applied");
    let fill = "for i = 1, 20000 do redis.call('SET', 'gone:' .. i, i) redis.call('SET', 'other:' .. i, i) end";
    redis.cli(&["EVAL", fill, "0"]);
    assert_eq!(delete(server.listen, "gone", "gone"), Ok(proto::State::Ready));
    assert_eq!(redis.cli(&["DBSIZE"]), "20000");
    server.stop();
}

async fn open(caller: &Caller, method: Method, request: &impl Message) -> StreamReply {
    let request = request.encode_to_vec();
    caller.client.stream(method.path(), &[], &request, LONG).await.expect("begun")
}

/// Waits for the end of a stream, which is a refusal.
async fn end_of(mut reply: StreamReply) -> Refusal {
    loop {
        match reply.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended well"),
            Err(failure) => return failure.into(),
        }
    }
}

#[test]
fn open_calls_of_a_namespace_end_with_it() {
    let folder = directory();
    let server = serve(folder.path()).shards(2).start();
    let listen = server.listen;
    for (name, api) in
        [("topics", "pubsub"), ("records", "stream"), ("jobs", "queue"), ("accounts", "transact")]
    {
        apply(listen, name, &format!("client_api: {api}")).expect("applied");
    }
    run(async move {
        let (mut open_calls, mut connections) = (Vec::new(), Vec::new());
        // Connections land on either shard.
        for _ in 0..4 {
            let topics = Caller::to(listen, "topics").await;
            connections.push(topics.clone());
            let (namespace, topic) = (topics.namespace.clone(), "t".to_owned());
            let request =
                pubsub::SubscribeRequest { namespace, topic: topic.clone(), ..Default::default() };
            let mut reply = open(&topics, Method::PUBSUB_SUBSCRIBE, &request).await;
            reply.next().await.expect("it stands").expect("told");
            open_calls.push(("topics", reply));
            let request = pubsub::SubscribeDurableRequest {
                namespace: "topics".to_owned(),
                topic,
                subscription_id: "lasting".to_owned(),
                ..Default::default()
            };
            let mut reply = open(&topics, Method::PUBSUB_SUBSCRIBE_DURABLE, &request).await;
            reply.next().await.expect("it stands").expect("told");
            open_calls.push(("topics", reply));

            let records = topics.of("records");
            Keeps::Records.put(&records).await.expect("appended");
            let start = Some(types::Start { start: Some(types::start::Start::Earliest(())) });
            let request = stream::ReadRequest {
                namespace: "records".to_owned(),
                stream: "kept".to_owned(),
                start,
                follow: true,
                ..Default::default()
            };
            let mut reply = open(&records, Method::STREAM_READ, &request).await;
            reply.next().await.expect("read").expect("told");
            open_calls.push(("records", reply));
            let request = stream::CreateConsumerGroupRequest {
                namespace: "records".to_owned(),
                stream: "kept".to_owned(),
                group: "g".to_owned(),
                ..Default::default()
            };
            let made = records
                .call::<stream::CreateConsumerGroupResponse>(
                    Method::STREAM_CREATE_CONSUMER_GROUP,
                    &[],
                    &request,
                )
                .await;
            assert!(made.is_ok() || made.is_err_and(|refusal| refusal.code == Code::AlreadyExists));
            let request = stream::JoinConsumerGroupRequest {
                namespace: "records".to_owned(),
                stream: "kept".to_owned(),
                group: "g".to_owned(),
                ..Default::default()
            };
            let mut reply = open(&records, Method::STREAM_JOIN_CONSUMER_GROUP, &request).await;
            reply.next().await.expect("joined").expect("told");
            open_calls.push(("records", reply));

            let accounts = topics.of("accounts");
            let path = Method::TRANSACT_TRANSACTION.path();
            let mut reply = accounts.client.open(path, &[], LONG).await.expect("opened");
            let request = transact::TransactionRequest {
                namespace: "accounts".to_owned(),
                id: 1,
                request: Some(Request::Begin(transact::Begin::default())),
            };
            reply.send(&request.encode_to_vec()).expect("room");
            reply.next().await.expect("begun").expect("told");
            open_calls.push(("accounts", reply));
        }
        // A receive that waits longer than the test may take.
        let received = std::thread::spawn(move || {
            run(async move {
                let waiting = Caller::to(listen, "jobs").await;
                let request = queue::ReceiveRequest {
                    namespace: "jobs".to_owned(),
                    queue: "kept".to_owned(),
                    wait: Some(prost_types::Duration { seconds: 110, nanos: 0 }),
                    ..Default::default()
                };
                let (path, request) = (Method::QUEUE_RECEIVE.path(), request.encode_to_vec());
                let received = waiting.client.unary(path, &[], &request, LONG).await;
                received.map(drop).map_err(|failure| Refusal::from(failure).reason)
            })
        });
        let deleted = std::thread::spawn(move || {
            for name in ["topics", "records", "jobs", "accounts"] {
                delete(listen, name, name).expect("deleted");
            }
        });
        for (namespace, reply) in open_calls {
            let ended = prism_io::rt::timeout(PATIENCE, end_of(reply)).await.expect("it ends");
            assert_eq!((ended.code, ended.reason.as_str()), (Code::NotFound, "NAMESPACE_ENDED"));
            assert!(ended.message.contains(namespace), "{}", ended.message);
        }
        deleted.join().expect("deleted");
        let received = received.join().expect("it ended");
        assert_eq!(received, Err("NAMESPACE_UNKNOWN".to_owned()));
    });
    server.stop();
}
