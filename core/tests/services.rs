//! Reader and Transact through the whole proxy: over the embedded store and outside backends, from either shard.

mod harness;
#[path = "../../adapters/tests/servers/mod.rs"]
mod servers;

use std::time::Duration;

use bytes::Bytes;
use harness::{Caller, PATIENCE, Refusal, Server, directory, run, serve};
use prism_io::client::StreamReply;
use prism_io::grpc::Code;
use prism_proto::catalogue::Method;
use prism_proto::prism::queue::v1 as queue;
use prism_proto::prism::reader::v1 as reader;
use prism_proto::prism::reader::v1::source::Source as Named;
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::transact::v1 as transact;
use prism_proto::prism::transact::v1::transaction_request::Request;
use prism_proto::prism::transact::v1::transaction_response::Response;
use prism_proto::prism::r#type::v1::{
    Condition, Delivery, Message, Operation, Put, Start, condition::Requirement, operation::Action,
    start,
};
use prost::Message as _;
use servers::OwnRedis;

fn put(key: &str, value: &str) -> Operation {
    let put = Put { value: value.to_owned().into(), ..Put::default() };
    Operation { key: key.to_owned(), action: Some(Action::Put(put)) }
}

fn condition(key: &str, requirement: Requirement) -> Condition {
    Condition { key: key.to_owned(), requirement: Some(requirement) }
}

async fn execute(
    caller: &Caller,
    conditions: Vec<Condition>,
    operations: Vec<Operation>,
) -> Result<transact::ExecuteResponse, Box<Refusal>> {
    let namespace = caller.namespace.clone();
    let request = transact::ExecuteRequest { namespace, conditions, operations };
    caller
        .call(Method::TRANSACT_EXECUTE, &[], &request)
        .await
        .map(|(answer, _)| answer)
        .map_err(Box::new)
}

/// A transaction step by step.
struct Steps {
    stream: StreamReply,
    namespace: String,
    id: u64,
}

impl Steps {
    async fn begin(caller: &Caller, begin: transact::Begin) -> Self {
        let path = Method::TRANSACT_TRANSACTION.path();
        let stream = caller.client.open(path, &[], PATIENCE).await.expect("opened");
        let mut steps = Steps { stream, namespace: caller.namespace.clone(), id: 0 };
        match steps.ask(Request::Begin(begin)).await.expect("begun") {
            Response::Begun(begun) => {
                assert!(!begun.transaction_id.is_empty() && begun.expires_at.is_some());
            }
            other => panic!("{other:?}"),
        }
        steps
    }

    async fn serializable(caller: &Caller) -> Self {
        Self::begin(caller, transact::Begin::default()).await
    }

    async fn read_committed(caller: &Caller) -> Self {
        let isolation = transact::Isolation::ReadCommitted.into();
        Self::begin(caller, transact::Begin { isolation, idle_timeout: None }).await
    }

    async fn ask(&mut self, request: Request) -> Result<Response, Box<Refusal>> {
        self.id += 1;
        let namespace = self.namespace.clone();
        let message =
            transact::TransactionRequest { namespace, id: self.id, request: Some(request) };
        self.stream.send(&message.encode_to_vec()).expect("sent");
        let answer = self.stream.next().await.map_err(|failure| Box::new(failure.into()))?;
        let answer = answer.expect("every request is answered");
        let answer = transact::TransactionResponse::decode(answer).expect("a valid answer");
        assert_eq!(answer.id, self.id);
        Ok(answer.response.expect("a response"))
    }

    async fn get(&mut self, key: &str) -> Option<Bytes> {
        let get = transact::TransactionGet { key: key.to_owned() };
        match self.ask(Request::Get(get)).await.expect("read") {
            Response::Record(record) => record.entry.map(|entry| entry.value),
            other => panic!("{other:?}"),
        }
    }

    async fn put(&mut self, key: &str, value: &str) {
        let put = Put { value: value.to_owned().into(), ..Put::default() };
        let put = transact::TransactionPut { key: key.to_owned(), put: Some(put) };
        assert_eq!(self.ask(Request::Put(put)).await.expect("buffered"), Response::Accepted(()));
    }

    async fn delete(&mut self, key: &str) {
        let delete = transact::TransactionDelete { key: key.to_owned() };
        let answer = self.ask(Request::Delete(delete)).await.expect("buffered");
        assert_eq!(answer, Response::Accepted(()));
    }

    async fn require(&mut self, condition: Condition) {
        let answer = self.ask(Request::Condition(condition)).await.expect("buffered");
        assert_eq!(answer, Response::Accepted(()));
    }

    async fn commit(mut self) -> Result<Response, Box<Refusal>> {
        let answer = self.ask(Request::Commit(())).await?;
        assert_eq!(self.stream.next().await.expect("a clean end"), None);
        Ok(answer)
    }
}

fn committed(answer: Result<Response, Box<Refusal>>) -> transact::Committed {
    match answer {
        Ok(Response::Committed(committed)) => committed,
        other => panic!("{other:?}"),
    }
}

async fn value(caller: &Caller, key: &str) -> Option<Vec<u8>> {
    caller.get(key).await.map(|value| value.to_vec())
}

/// What TransactService promises, in one namespace; an empty message is refused there for this reason.
async fn transactions_hold(caller: &Caller, message_refused: &str) {
    // Execute.
    let answer = execute(caller, vec![], vec![put("a", "1"), put("b", "2")]).await.unwrap();
    assert!(answer.committed && answer.results.len() == 2);
    let wrong = vec![condition("a", Requirement::Value(Bytes::from_static(b"9")))];
    let answer = execute(caller, wrong, vec![put("a", "3")]).await.unwrap();
    assert!(!answer.committed && answer.results.is_empty());
    assert_eq!(answer.failures[0].current.as_ref().unwrap().value, "1");
    assert_eq!(value(caller, "a").await.unwrap(), b"1");
    let many = (0..101).map(|number| condition(&number.to_string(), Requirement::Absent(())));
    let refused = execute(caller, many.collect(), vec![put("a", "3")]).await.unwrap_err();
    assert_eq!(refused.reason, "TOO_MANY_KEYS", "{refused:?}");
    let write = transact::WriteRequest {
        namespace: caller.namespace.clone(),
        operations: vec![put("a", "1")],
        ..Default::default()
    };
    let (answer, _): (transact::WriteResponse, _) =
        caller.call(Method::TRANSACT_WRITE, &[], &write).await.unwrap();
    assert!(answer.committed && answer.message_ids.is_empty());
    let write =
        transact::WriteRequest { messages: vec![transact::OutboxMessage::default()], ..write };
    let refused = caller.call::<transact::WriteResponse>(Method::TRANSACT_WRITE, &[], &write).await;
    assert_eq!(refused.unwrap_err().reason, message_refused);

    // A transaction sees what it has written, and nobody else does before the commit.
    let mut steps = Steps::serializable(caller).await;
    assert_eq!(steps.get("a").await.unwrap(), "1");
    steps.put("a", "first").await;
    steps.put("a", "5").await;
    steps.delete("b").await;
    assert_eq!(steps.get("a").await.unwrap(), "5");
    assert_eq!(steps.get("b").await, None);
    assert_eq!(value(caller, "a").await.unwrap(), b"1");
    let done = committed(steps.commit().await);
    assert_eq!(done.results.len(), 3, "one for each put and delete");
    assert_eq!(value(caller, "a").await.unwrap(), b"5");
    assert_eq!(value(caller, "b").await, None);

    // What was read must still be so, also of what was absent, also where nothing is written.
    for (key, is_written) in [("a", true), ("absent", true), ("a", false)] {
        let mut steps = Steps::serializable(caller).await;
        steps.get(key).await;
        if is_written {
            steps.put("other", "x").await;
        }
        caller.set(key, b"changed").await;
        let refused = steps.commit().await.unwrap_err();
        assert_eq!((refused.code, &*refused.reason), (Code::Aborted, "CONFLICT"), "{refused:?}");
        caller.set(key, b"again").await;
    }
    assert_eq!(value(caller, "other").await, None);
    let mut steps = Steps::serializable(caller).await;
    steps.get("a").await;
    committed(steps.commit().await);

    // With READ_COMMITTED only the conditions count.
    let mut steps = Steps::read_committed(caller).await;
    steps.get("a").await;
    caller.set("a", b"6").await;
    assert_eq!(steps.get("a").await.unwrap(), "6", "it sees what is committed");
    steps.put("c", "7").await;
    steps.require(condition("a", Requirement::Exists(()))).await;
    committed(steps.commit().await);
    let mut steps = Steps::read_committed(caller).await;
    steps.require(condition("a", Requirement::Exists(()))).await;
    steps.require(condition("c", Requirement::Absent(()))).await;
    steps.put("d", "8").await;
    match steps.commit().await {
        Ok(Response::RolledBack(back)) => {
            assert_eq!(back.failures.iter().map(|one| one.index).collect::<Vec<_>>(), [1]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(value(caller, "d").await, None);

    // A rollback, and a caller who goes away, leave nothing.
    let mut steps = Steps::serializable(caller).await;
    steps.put("e", "9").await;
    match steps.ask(Request::Rollback(())).await {
        Ok(Response::RolledBack(back)) => assert!(back.failures.is_empty()),
        other => panic!("{other:?}"),
    }
    let mut steps = Steps::serializable(caller).await;
    steps.put("e", "9").await;
    drop(steps);
    assert_eq!(value(caller, "e").await, None);

    // Bounds.
    let idle = Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 });
    let begin = transact::Begin { idle_timeout: idle, ..Default::default() };
    let mut steps = Steps::begin(caller, begin).await;
    let expired = Refusal::from(steps.stream.next().await.unwrap_err());
    assert_eq!((expired.code, &*expired.reason), (Code::Aborted, "TRANSACTION_EXPIRED"));
    let mut steps = Steps::serializable(caller).await;
    for number in 0..100 {
        steps.put(&format!("many-{number}"), "x").await;
    }
    let put = transact::TransactionPut { key: "one-more".to_owned(), put: Some(Put::default()) };
    assert_eq!(steps.ask(Request::Put(put)).await.unwrap_err().reason, "TOO_MANY_KEYS");
    let mut steps = Steps::serializable(caller).await;
    let again = steps.ask(Request::Begin(transact::Begin::default())).await.unwrap_err();
    assert_eq!(again.reason, "BEGIN_REPEATED");
    let mut steps = Steps::serializable(caller).await;
    let message = steps.ask(Request::Message(transact::OutboxMessage::default())).await;
    assert_eq!(message.unwrap_err().reason, message_refused);
}

/// Runs them in each of these namespaces.
fn transact_in(
    server: &Server,
    namespaces: &'static [&'static str],
    message_refused: &'static str,
) {
    let listen = server.listen;
    run(async move {
        for namespace in namespaces {
            let caller = Caller::to(listen, namespace).await;
            transactions_hold(&caller, message_refused).await;
        }
    });
    server.assert_well();
}

#[test]
fn transactions_on_the_embedded_store_from_either_shard() {
    let directory = directory();
    let mut config = "wal: {segment_bytes: 20MiB}\nnamespaces:\n".to_owned();
    for name in ["t-a", "t-b", "t-c", "t-d"] {
        config += &format!("  - {{name: {name}, client_api: transact}}\n");
    }
    config += "  - {name: volatile, client_api: transact, durability: memory}\n  \
               - {name: kv, client_api: keyvalue}\n  - {name: facts, client_api: stream}\n";
    let server = serve(directory.path()).shards(2).config(&config).start();
    let namespaces = &["t-a", "t-b", "t-c", "t-d", "volatile", "kv"];
    transact_in(&server, namespaces, "TARGET_MISSING");
    let listen = server.listen;
    run(async move {
        let facts = Caller::to(listen, "facts").await;
        let refused = execute(&facts, vec![], vec![put("a", "1")]).await.unwrap_err();
        assert_eq!(refused.reason, "INTERFACE_NOT_OFFERED");
        // Of those that read the same and write it, one at a time comes through.
        let caller = Caller::to(listen, "t-a").await;
        caller.set("counter", b"0").await;
        let mut both = [Steps::serializable(&caller).await, Steps::serializable(&caller).await];
        for steps in &mut both {
            assert_eq!(steps.get("counter").await.unwrap(), "0");
            steps.put("counter", "1").await;
        }
        let [one, other] = both;
        committed(one.commit().await);
        assert_eq!(other.commit().await.unwrap_err().reason, "CONFLICT");
    });
    server.stop();
}

#[test]
fn transactions_on_redis() {
    let redis = OwnRedis::start(&[]);
    let directory = directory();
    let config = format!(
        "backends:\n  - {{name: cache, type: redis, address: \"{}\"}}\nnamespaces:\n  \
         - {{name: on-redis, client_api: transact, backend: cache, durability: memory}}\n  \
         - {{name: logged, client_api: transact, backend: cache, durability: wal}}\n  \
         - {{name: strong, client_api: transact, backend: cache, durability: strong}}\n",
        redis.address
    );
    let server = serve(directory.path()).shards(2).config(&config).start();
    transact_in(&server, &["on-redis", "logged", "strong"], "TARGET_MISSING");
    server.stop();
}

#[test]
fn transactions_on_postgres() {
    const DATABASE: &str = "prism_transact";
    let address = servers::empty_database(DATABASE);
    let directory = directory();
    let password = directory.path().join("postgres-password");
    std::fs::write(&password, "prism\n").unwrap();
    let config = format!(
        "backends:\n  - {{name: db, type: postgres, address: \"{address}\", user: prism, database: {DATABASE}, \
         password_file: \"{}\"}}\nnamespaces:\n  \
         - {{name: on-postgres, client_api: transact, backend: db, durability: memory}}\n  \
         - {{name: logged, client_api: transact, backend: db, durability: wal}}\n  \
         - {{name: strong, client_api: transact, backend: db, durability: strong}}\n",
        password.display()
    );
    let server = serve(directory.path()).shards(2).config(&config).start();
    transact_in(&server, &["on-postgres", "logged", "strong"], "TARGET_MISSING");
    server.stop();
}

async fn read(
    caller: &Caller,
    source: Named,
    change: impl FnOnce(&mut reader::ReadRequest),
) -> Result<Vec<reader::Record>, Box<Refusal>> {
    let mut request = reader::ReadRequest {
        namespace: caller.namespace.clone(),
        source: Some(reader::Source { source: Some(source) }),
        start: Some(Start { start: Some(start::Start::Earliest(())) }),
        ..Default::default()
    };
    change(&mut request);
    let (path, request) = (Method::READER_READ.path(), request.encode_to_vec());
    let begun = caller.client.stream(path, &[], &request, PATIENCE).await;
    let mut reply = begun.map_err(|failure| Box::new(failure.into()))?;
    let mut records = Vec::new();
    while let Some(page) = reply.next().await.map_err(|failure| Box::new(failure.into()))? {
        records.extend(reader::ReadResponse::decode(page).expect("a valid page").records);
    }
    Ok(records)
}

fn texts(records: &[reader::Record]) -> Vec<String> {
    records.iter().map(|one| String::from_utf8(one.value.to_vec()).expect("text")).collect()
}

async fn send(caller: &Caller, text: &str) {
    let message = Message { payload: text.to_owned().into(), ..Default::default() };
    let request = queue::SendRequest {
        namespace: "queue".to_owned(),
        queue: "q".to_owned(),
        message: Some(message),
    };
    caller.call::<queue::SendResponse>(Method::QUEUE_SEND, &[], &request).await.expect("sent");
}

async fn receive(caller: &Caller, max_messages: u32) -> Vec<String> {
    let request = queue::ReceiveRequest {
        namespace: "queue".to_owned(),
        queue: "q".to_owned(),
        max_messages,
        visibility_timeout: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        ..Default::default()
    };
    let answer = caller.call::<queue::ReceiveResponse>(Method::QUEUE_RECEIVE, &[], &request).await;
    let deliveries = answer.expect("received").0.deliveries;
    let text = |delivery: Delivery| {
        String::from_utf8(delivery.message.unwrap_or_default().payload.to_vec()).expect("text")
    };
    deliveries.into_iter().map(text).collect()
}

/// The reader that is there without a configuration: each source leads to the namespace that holds it.
#[test]
fn a_reader_reads_other_namespaces_and_moves_nothing() {
    let directory = directory();
    let server = serve(directory.path()).shards(2).config("wal: {segment_bytes: 20MiB}\n").start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "reader").await;
        caller.of("keyvalue").set("greeting", b"hello").await;
        for text in ["0", "1", "2"] {
            send(&caller, text).await;
        }
        let record = stream::NewRecord { value: Bytes::from_static(b"fact"), ..Default::default() };
        let append = stream::AppendRequest {
            namespace: "stream".to_owned(),
            stream: "s".to_owned(),
            record: Some(record),
            expected_last: None,
        };
        let appended = caller.call::<stream::AppendResponse>(Method::STREAM_APPEND, &[], &append);
        appended.await.expect("appended");

        let keys = read(&caller, Named::Keys(()), |_| ()).await.unwrap();
        assert_eq!(
            (keys[0].key.as_deref(), texts(&keys)),
            (Some("greeting"), vec!["hello".into()])
        );
        let facts = read(&caller, Named::Stream("s".to_owned()), |_| ()).await.unwrap();
        assert_eq!(texts(&facts), ["fact"]);
        let queue = || Named::Queue("q".to_owned());
        assert_eq!(texts(&read(&caller, queue(), |_| ()).await.unwrap()), ["0", "1", "2"]);
        let two = read(&caller, queue(), |request| {
            (request.limit, request.page_size) = (2, 1);
        });
        assert_eq!(texts(&two.await.unwrap()), ["0", "1"]);
        // Looking at it took nothing, also no lease; what is leased can be looked at as well.
        assert_eq!(receive(&caller, 10).await, ["0", "1", "2"]);
        assert_eq!(texts(&read(&caller, queue(), |_| ()).await.unwrap()), ["0", "1", "2"]);
        let dead = read(&caller, Named::DeadLetters("q".to_owned()), |_| ()).await.unwrap();
        assert_eq!(dead, []);
        let count = reader::CountRequest {
            namespace: "reader".to_owned(),
            source: Some(reader::Source { source: Some(queue()) }),
            ..Default::default()
        };
        let counted = caller.call::<reader::CountResponse>(Method::READER_COUNT, &[], &count).await;
        assert_eq!(counted.unwrap().0, reader::CountResponse { count: 3, exact: true });
        let follow = read(&caller, queue(), |request| request.follow = true).await.unwrap_err();
        assert_eq!(follow.reason, "FOLLOW_NOT_OFFERED");

        // A reader writes nothing, and says what it does not read.
        let set = caller.set_request("a", b"1");
        let refused = caller.try_set(&[], &set).await.unwrap_err();
        assert_eq!(refused.reason, "INTERFACE_NOT_OFFERED");
        let topic = read(&caller, Named::Topic("t".to_owned()), |_| ()).await.unwrap_err();
        assert_eq!(topic.reason, "SOURCE_NOT_OFFERED", "{topic:?}");
        // The namespaces themselves can be read as well.
        let own = caller.of("keyvalue");
        assert_eq!(texts(&read(&own, Named::Keys(()), |_| ()).await.unwrap()), ["hello"]);
        let other = read(&own, queue(), |_| ()).await.unwrap_err();
        assert_eq!(other.reason, "SOURCE_NOT_OFFERED");
    });
    server.stop();
}

/// A queue in PostgreSQL is looked into as one on the embedded store: nothing is taken, what is leased is there, and dead letters are read.
#[test]
fn a_reader_looks_into_queues_in_postgres() {
    const DATABASE: &str = "prism_peek";
    let address = servers::empty_database(DATABASE);
    let directory = directory();
    let password = directory.path().join("postgres-password");
    std::fs::write(&password, "prism\n").unwrap();
    let config = format!(
        "wal: {{segment_bytes: 20MiB}}\nbackends:\n  \
         - {{name: db, type: postgres, address: \"{address}\", user: prism, database: {DATABASE}, password_file: \"{}\"}}\n\
         namespaces:\n  - {{name: queue, client_api: queue, backend: db, durability: wal}}\n  \
         - {{name: view, client_api: reader, reads: [queue]}}\n",
        password.display()
    );
    let server = serve(directory.path()).shards(2).config(&config).start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "view").await;
        for text in ["0", "1", "2", "3", "4"] {
            send(&caller, text).await;
        }
        let queue = || Named::Queue("q".to_owned());
        let all = ["0", "1", "2", "3", "4"];
        let records = read(&caller, queue(), |_| ()).await.unwrap();
        assert_eq!(texts(&records), all);
        assert!(records.iter().all(|record| record.key.is_some() && record.timestamp.is_some()));
        let three = read(&caller, queue(), |request| (request.limit, request.page_size) = (3, 2));
        assert_eq!(texts(&three.await.unwrap()), ["0", "1", "2"]);
        // A cursor goes on where it stood.
        let request = reader::ReadRequest {
            namespace: "view".to_owned(),
            source: Some(reader::Source { source: Some(queue()) }),
            start: Some(Start { start: Some(start::Start::Earliest(())) }),
            page_size: 2,
            ..Default::default()
        };
        let (path, request) = (Method::READER_READ.path(), request.encode_to_vec());
        let mut reply = caller.client.stream(path, &[], &request, PATIENCE).await.expect("begun");
        let page = reply.next().await.expect("alive").expect("a page");
        let page = reader::ReadResponse::decode(page).expect("a valid page");
        assert_eq!(texts(&page.records), ["0", "1"]);
        drop(reply);
        let rest = read(&caller, queue(), |request| {
            let start = Some(start::Start::Cursor(page.cursor.clone()));
            request.start = Some(Start { start });
        });
        assert_eq!(texts(&rest.await.unwrap()), ["2", "3", "4"]);
        // Looking at it took nothing, and what is leased can be looked at as well.
        assert_eq!(receive(&caller, 1).await, ["0"]);
        assert_eq!(texts(&read(&caller, queue(), |_| ()).await.unwrap()), all);
        let dead = || Named::DeadLetters("q".to_owned());
        assert_eq!(read(&caller, dead(), |_| ()).await.unwrap(), []);

        let configure = queue::ConfigureDeadLetterRequest {
            namespace: "queue".to_owned(),
            queue: "q".to_owned(),
            ..Default::default()
        };
        let method = Method::QUEUE_CONFIGURE_DEAD_LETTER;
        let answer = caller.call::<queue::ConfigureDeadLetterResponse>(method, &[], &configure);
        answer.await.expect("configured");
        let receive = queue::ReceiveRequest {
            namespace: "queue".to_owned(),
            queue: "q".to_owned(),
            max_messages: 1,
            ..Default::default()
        };
        let answer =
            caller.call::<queue::ReceiveResponse>(Method::QUEUE_RECEIVE, &[], &receive).await;
        let receipts = answer.unwrap().0.deliveries.into_iter().map(|one| one.receipt).collect();
        let reject = queue::RejectRequest {
            namespace: "queue".to_owned(),
            queue: "q".to_owned(),
            receipts,
            ..Default::default()
        };
        let answer = caller.call::<queue::RejectResponse>(Method::QUEUE_REJECT, &[], &reject).await;
        assert!(answer.expect("rejected").0.results.iter().all(|one| one.status.is_none()));
        assert_eq!(texts(&read(&caller, dead(), |_| ()).await.unwrap()), ["1"]);
        assert_eq!(texts(&read(&caller, queue(), |_| ()).await.unwrap()), ["0", "2", "3", "4"]);
        let count = reader::CountRequest {
            namespace: "view".to_owned(),
            source: Some(reader::Source { source: Some(queue()) }),
            limit: 3,
            ..Default::default()
        };
        let counted = caller.call::<reader::CountResponse>(Method::READER_COUNT, &[], &count).await;
        assert_eq!(counted.unwrap().0, reader::CountResponse { count: 3, exact: false });
    });
    server.assert_well();
    server.stop();
}

/// Who follows a stream that is idle hears where to go on, and the end of the server.
#[test]
fn an_idle_follow_says_where_it_stands() {
    let directory = directory();
    let server = serve(directory.path()).shards(2).config("wal: {segment_bytes: 20MiB}\n").start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "reader").await;
        let request = reader::ReadRequest {
            namespace: "reader".to_owned(),
            source: Some(reader::Source { source: Some(Named::Stream("idle".to_owned())) }),
            start: Some(Start { start: Some(start::Start::Latest(())) }),
            follow: true,
            ..Default::default()
        };
        let (path, request) = (Method::READER_READ.path(), request.encode_to_vec());
        let limit = PATIENCE + Duration::from_secs(30);
        let mut reply = caller.client.stream(path, &[], &request, limit).await.expect("begun");
        for _ in 0..2 {
            let page = reply.next().await.expect("alive").expect("alive");
            let page = reader::ReadResponse::decode(page).expect("a valid page");
            assert!(page.records.is_empty() && page.caught_up && !page.cursor.is_empty());
        }
    });
    server.stop();
}
