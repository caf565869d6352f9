//! The audit log through the real binary: what stands in it, what does not, that no answer leaves without its line, and that
//! tampering is found.

mod harness;

use std::fs;
use std::path::{Path, PathBuf};

use harness::tokens::{ISSUER, Signer, claims};
use harness::{Caller, Server, Setup, directory, prism, run, serve};
use prism_io::grpc::Code;
use prism_proto::catalogue::Method;
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::transact::v1 as transact;
use prism_proto::prism::transact::v1::transaction_request::Request;
use prism_proto::prism::r#type::v1::{Start, start};
use prost::Message as _;
use serde_json::Value;

const REQUESTS: &str = "namespace: orders
team: payments
client_api: keyvalue
policies: {audit_logging: enabled}
---
namespace: carts
team: payments
client_api: keyvalue
---
namespace: facts
team: payments
client_api: stream
policies: {audit_logging: true}
---
namespace: moves
team: payments
client_api: transact
policies: {audit_logging: true}
";

/// A server that knows two identities, with its files in a folder.
fn setup(folder: &Path) -> Setup {
    let path = |name: &str| folder.join(name);
    let platform = format!(
        "tokens: [{{issuer: '{ISSUER}', audience: [prism], keys: {}}}]
identities:
  - {{id: checkout, issuer: '{ISSUER}', team: payments}}
  - {{id: report, issuer: '{ISSUER}', team: analytics}}
",
        path("keys.json").display()
    );
    fs::write(path("requests.yaml"), REQUESTS).unwrap();
    fs::write(path("platform.yaml"), platform).unwrap();
    fs::write(path("keys.json"), Signer::new(1).keys()).unwrap();
    serve(folder).shards(2).config(&format!(
        "wal: {{segment_bytes: 20MiB}}\nplatform: {}\nrequests: {}\n",
        path("platform.yaml").display(),
        path("requests.yaml").display()
    ))
}

/// A server on the same files that asks nobody who they are, with one namespace that is written down.
fn open_setup(folder: &Path) -> Setup {
    serve(folder).shards(2).config(
        "wal: {segment_bytes: 20MiB}\nnamespaces: [{name: orders, client_api: keyvalue, audit_logging: true}]\n",
    )
}

fn files(data: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join("audit")).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    files
}

fn text(data: &Path) -> String {
    files(data).iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// The lines that are whole: the last may be on its way, or what a kill has left of one.
fn lines(data: &Path) -> Vec<Value> {
    let text = text(data);
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The lines of an event, with one more condition.
fn of<'a>(lines: &'a [Value], event: &str, key: &str, value: &str) -> Vec<&'a Value> {
    let fits = |line: &&Value| line["event"] == event && (key.is_empty() || line[key] == value);
    lines.iter().filter(fits).collect()
}

fn verify(data: &Path, more: &[&str]) -> (i32, Value) {
    let data = data.to_str().unwrap();
    let mut arguments = vec!["audit", "verify", "--data-dir", data, "-o", "json"];
    arguments.extend(more);
    let (code, output, errors) = prism(&arguments);
    let report = serde_json::from_str(&output).unwrap_or_else(|_| panic!("{output}{errors}"));
    (code, report)
}

fn assert_whole(data: &Path) -> Value {
    let (code, report) = verify(data, &[]);
    assert_eq!((code, &report["ok"]), (0, &Value::Bool(true)), "{report}");
    assert_eq!(report["from_the_beginning"], true);
    report
}

#[test]
fn accesses_denials_and_changes_are_written_down_without_keys_and_values() {
    let directory = directory();
    let server = setup(directory.path()).start();
    let listen = server.listen;
    run(async move {
        let orders = Caller::to(listen, "orders").await;
        let good = Signer::new(1).token(&claims("checkout"));
        let other = Signer::new(1).token(&claims("report"));
        let forged = Signer::new(2).token(&claims("checkout"));
        let trace =
            ("traceparent", &b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"[..]);
        let metadata = [("authorization", good.as_bytes()), trace];
        let (key, value) = ("secret-key", b"secret-value");
        orders.try_set(&metadata, &orders.set_request(key, value)).await.expect("stored");
        assert!(orders.try_get(&metadata, key).await.expect("read").0.found);
        // Nobody asked for these to be written down.
        orders.of("carts").try_get(&metadata[..1], key).await.expect("read");
        for (token, code) in [(&other, Code::PermissionDenied), (&forged, Code::Unauthenticated)] {
            let refused = orders.try_get(&[("authorization", token.as_bytes())], key).await;
            assert_eq!(refused.expect_err("not let in").code, code);
        }
        // A request that is let in and wrong is an access too.
        let wrong = orders.try_get(&metadata[..1], "").await.expect_err("no key");
        assert_eq!(wrong.code, Code::InvalidArgument);
    });
    server.signal("HUP");
    server.wait_says("were read again");
    fs::write(directory.path().join("requests.yaml"), "namespace: A\n").unwrap();
    server.signal("HUP");
    server.wait_says("no namespace was changed");
    server.wait_says("were not replaced");
    let data = server.data.clone();
    server.stop();

    let lines = lines(&data);
    let accesses = of(&lines, "access", "", "");
    let told: Vec<_> = accesses
        .iter()
        .map(|line| (line["method"].as_str().unwrap(), line["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(
        told,
        [
            (Method::KEYVALUE_SET.path(), "success"),
            (Method::KEYVALUE_GET.path(), "success"),
            (Method::KEYVALUE_GET.path(), "invalid_argument")
        ]
    );
    for line in &accesses {
        assert_eq!(line["namespace"], "orders");
        assert_eq!(line["who"], "checkout");
        assert_eq!(line["issuer"], ISSUER);
        assert!(line["from"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
        assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
    }
    assert_eq!(accesses[0]["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(accesses[2]["trace_id"], Value::Null);
    let denied = of(&lines, "denied", "outcome", "permission_denied");
    assert_eq!(denied.len(), 1);
    assert_eq!(denied[0]["who"], "report");
    assert_eq!(denied[0]["why"], "nothing grants it");
    assert_eq!(of(&lines, "denied", "outcome", "unauthenticated").len(), 1);
    assert_eq!(of(&lines, "start", "", "").len(), 1);
    assert_eq!(of(&lines, "reload", "outcome", "applied").len(), 2, "namespaces and access");
    let refused = of(&lines, "reload", "outcome", "refused");
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(refused[0]["errors"][0].as_str().unwrap().contains("requests.yaml:1:"), "{refused:?}");
    assert_eq!(lines.last().unwrap()["event"], "stop");
    let text = text(&data);
    for secret in ["secret-key", "secret-value", "eyJ"] {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
    assert_whole(&data);
}

#[test]
fn a_stream_and_a_transaction_have_a_line_for_begin_and_end() {
    let directory = directory();
    let server = setup(directory.path()).start();
    let listen = server.listen;
    run(async move {
        let facts = Caller::to(listen, "facts").await;
        let good = Signer::new(1).token(&claims("checkout"));
        let metadata = [("authorization", good.as_bytes())];
        let request = stream::ReadRequest {
            namespace: "facts".to_owned(),
            stream: "s".to_owned(),
            start: Some(Start { start: Some(start::Start::Earliest(())) }),
            ..Default::default()
        };
        let (path, message) = (Method::STREAM_READ.path(), request.encode_to_vec());
        let begun = facts.client.stream(path, &metadata, &message, harness::PATIENCE);
        let mut reply = begun.await.expect("begun");
        while reply.next().await.expect("readable").is_some() {}

        let path = Method::TRANSACT_TRANSACTION.path();
        let mut reply =
            facts.client.open(path, &metadata, harness::PATIENCE).await.expect("opened");
        for request in [Request::Begin(transact::Begin::default()), Request::Commit(())] {
            let namespace = "moves".to_owned();
            let request = transact::TransactionRequest { namespace, id: 1, request: Some(request) };
            reply.send(&request.encode_to_vec()).expect("room");
            reply.next().await.expect("answered").expect("an answer");
        }
        assert!(reply.next().await.expect("the end").is_none());
    });
    let data = server.data.clone();
    server.stop();
    let lines = lines(&data);
    for namespace in ["facts", "moves"] {
        let accesses = of(&lines, "access", "namespace", namespace);
        let outcomes: Vec<_> =
            accesses.iter().map(|line| line["outcome"].as_str().unwrap()).collect();
        assert_eq!(outcomes, ["begun", "success"], "{accesses:?}");
    }
    assert_whole(&data);
}

/// Messages of a transaction reach another namespace: that is an access to it.
#[test]
fn a_transaction_that_sends_has_a_line_for_where_it_sends_to() {
    use prism_proto::prism::r#type::v1::{Message, Operation, Put, operation::Action};

    let directory = directory();
    let server = setup(directory.path()).start();
    let listen = server.listen;
    run(async move {
        let moves = Caller::to(listen, "moves").await;
        let good = Signer::new(1).token(&claims("checkout"));
        let metadata = [("authorization", good.as_bytes())];
        let message = || transact::OutboxMessage {
            target_namespace: "facts".to_owned(),
            target: "s".to_owned(),
            message: Some(Message { payload: "secret".into(), ..Default::default() }),
        };
        let put = Put { value: "1".into(), ..Put::default() };
        let write = transact::WriteRequest {
            namespace: "moves".to_owned(),
            operations: vec![Operation { key: "a".into(), action: Some(Action::Put(put)) }],
            messages: vec![message(), message()],
            ..Default::default()
        };
        let method = Method::TRANSACT_WRITE;
        let answer = moves.call::<transact::WriteResponse>(method, &metadata, &write).await;
        assert!(answer.expect("written").0.committed);
        let path = Method::TRANSACT_TRANSACTION.path();
        let opened = moves.client.open(path, &metadata, harness::PATIENCE).await;
        let mut reply = opened.expect("opened");
        let begin = Request::Begin(transact::Begin::default());
        for request in [begin, Request::Message(message()), Request::Commit(())] {
            let namespace = "moves".to_owned();
            let request = transact::TransactionRequest { namespace, id: 1, request: Some(request) };
            reply.send(&request.encode_to_vec()).expect("room");
            reply.next().await.expect("answered").expect("an answer");
        }
        assert!(reply.next().await.expect("the end").is_none());
    });
    let data = server.data.clone();
    server.stop();
    let lines = lines(&data);
    let told: Vec<_> = of(&lines, "access", "namespace", "facts")
        .iter()
        .map(|line| (line["method"].as_str().unwrap(), line["outcome"].as_str().unwrap()))
        .collect();
    let expected = [Method::TRANSACT_WRITE, Method::TRANSACT_TRANSACTION];
    assert_eq!(told, expected.map(|method| (method.path(), "begun")));
    assert!(!text(&data).contains("secret"));
    assert_whole(&data);
}

#[test]
fn denials_that_are_too_many_are_counted() {
    const DENIALS: usize = 150;
    let directory = directory();
    let server = setup(directory.path()).start();
    let listen = server.listen;
    run(async move {
        // One connection is one shard.
        let orders = Caller::to(listen, "orders").await;
        for _ in 0..DENIALS {
            assert_eq!(orders.try_get(&[], "key").await.unwrap_err().code, Code::Unauthenticated);
        }
    });
    // The last few are told as a number once a line has been earned for it.
    let all = || {
        let lines = lines(&server.data);
        let counted: u64 = lines.iter().filter_map(|line| line["suppressed_before"].as_u64()).sum();
        (of(&lines, "denied", "", "").len() as u64, counted)
    };
    let end = std::time::Instant::now() + harness::PATIENCE;
    while all().0 + all().1 < DENIALS as u64 {
        assert!(std::time::Instant::now() < end, "{:?}", all());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let (told, counted) = all();
    assert!(told >= 100 && told + counted == DENIALS as u64, "{told} told, {counted} counted");
    let suppressed = server.metric("prism_audit_denials_suppressed_total");
    assert_eq!(suppressed, counted as f64);
    let data = server.data.clone();
    server.stop();
    assert_whole(&data);
}

/// Reads until the server is gone: how many calls were answered.
fn read_until_killed(server: Server, calls: usize) -> usize {
    let (listen, id) = (server.listen, server.id());
    let answered = run(async move {
        let callers = [Caller::to(listen, "orders").await, Caller::to(listen, "orders").await];
        let mut answered = 0;
        for number in 0.. {
            if number == calls {
                harness::signal(id, "KILL");
            }
            let caller = &callers[number % 2];
            let written = caller.try_set(&[], &caller.set_request("key", b"value")).await;
            if written.is_err() {
                break;
            }
            answered += 1;
        }
        answered
    });
    server.kill();
    answered
}

#[test]
fn after_a_kill_every_answered_call_has_its_line_and_the_chain_goes_on() {
    let directory = directory();
    let mut answered = 0;
    for calls in [1, 7, 40] {
        let server = open_setup(directory.path()).start();
        let data = server.data.clone();
        answered += read_until_killed(server, calls);
        let lines = lines(&data);
        let told = of(&lines, "access", "outcome", "success");
        assert!(told.len() >= answered, "{} lines, {answered} answers", told.len());
        assert_eq!(told[0]["who"], "anonymous");
        // The kill may have come in the middle of a write.
        let (code, report) = verify(&data, &[]);
        let cut = report["faults"][0]["what"].as_str().is_some_and(|what| what.contains("cut off"));
        assert!(code == 0 || report["faults_count"] == 1 && cut, "{report}");
    }
    let server = open_setup(directory.path()).start();
    let data = server.data.clone();
    server.stop();
    assert_whole(&data);
    // What a power cut leaves of a line.
    let last = files(&data).pop().unwrap();
    let mut text = fs::read(&last).unwrap();
    text.extend_from_slice(b"{\"sequence\":");
    fs::write(&last, text).unwrap();
    let (code, report) = verify(&data, &[]);
    assert_eq!(code, 65, "{report}");
    assert!(report["faults"][0]["what"].as_str().unwrap().contains("cut off"), "{report}");
    open_setup(directory.path()).start().stop();
    assert_whole(&data);
    assert_eq!(lines(&data).iter().filter(|line| line["cut_bytes"] == 12).count(), 1);
    assert_eq!(of(&lines(&data), "start", "", "").len(), 5);
}

#[test]
fn every_kind_of_tampering_is_found() {
    let directory = directory();
    let server = open_setup(directory.path()).start();
    let listen = server.listen;
    run(async move {
        let orders = Caller::to(listen, "orders").await;
        for _ in 0..10 {
            orders.set("key", b"value").await;
        }
    });
    let page = server.admin_page("/audit");
    let data = server.data.clone();
    server.stop();
    let report = assert_whole(&data);
    let file = files(&data).pop().unwrap();
    let whole = fs::read_to_string(&file).unwrap();
    let all: Vec<&str> = whole.lines().collect();
    let tampered = |lines: &[&str], says: &str| {
        fs::write(&file, lines.join("\n") + "\n").unwrap();
        let (code, report) = verify(&data, &[]);
        assert_eq!(code, 65, "{says}: {report}");
        assert!(report["faults"][0]["what"].as_str().unwrap().contains(says), "{says}: {report}");
    };
    let forged = all[4].replace("anonymous", "anonymouse");
    let mut lines = all.clone();
    lines[4] = &forged;
    tampered(&lines, "was changed");
    let mut lines = all.clone();
    lines.remove(4);
    tampered(&lines, "line 5 is missing");
    let mut lines = all.clone();
    lines.swap(4, 5);
    tampered(&lines, "line 5 is missing");
    let mut lines = all.clone();
    lines.insert(4, all[3]);
    tampered(&lines, "there twice");
    let mut lines = all.clone();
    lines[4] = &all[4][..40];
    tampered(&lines, "no line of an audit log");
    tampered(&all[1..], "does not begin with");

    // What is missing at the end only a head tells that was kept elsewhere.
    fs::write(&file, all[..all.len() - 3].join("\n") + "\n").unwrap();
    assert_whole(&data);
    let kept = |head: &Value| {
        format!("{}:{}", head["sequence"].as_u64().unwrap(), head["hash"].as_str().unwrap())
    };
    let (code, found) = verify(&data, &["--head", &kept(&report["head"])]);
    assert_eq!(code, 65, "{found}");
    assert!(found["faults"][0]["what"].as_str().unwrap().contains("missing"), "{found}");
    fs::write(&file, &whole).unwrap();
    let (_, body) = page.split_once("\r\n\r\n").expect("a body");
    let told: Value = serde_json::from_str(body.trim()).expect("JSON");
    for head in [kept(&report["head"]), kept(&told)] {
        let (code, report) = verify(&data, &["--head", &head]);
        assert_eq!(code, 0, "{report}");
    }

    // For people, and where there is nothing to verify.
    let (code, text, _) = prism(&["audit", "verify", file.to_str().unwrap()]);
    assert_eq!(code, 0);
    assert!(text.contains("lines in 1 files: as they were written\nhead "), "{text}");
    let nowhere = directory.path().join("nowhere");
    let (code, _, errors) = prism(&["audit", "verify", "--data-dir", nowhere.to_str().unwrap()]);
    assert_eq!(code, 73, "{errors}");
}

#[test]
fn where_nothing_can_be_written_only_those_are_refused_who_have_to_be() {
    let directory = directory();
    let config = "wal: {segment_bytes: 20MiB}
audit: {directory: /proc/prism-audit}
namespaces:
  - {name: orders, client_api: keyvalue, audit_logging: true}
  - {name: carts, client_api: keyvalue}
";
    let server = serve(directory.path()).config(config).start();
    server.wait_says("namespaces with audit_logging refuse their calls");
    let listen = server.listen;
    run(async move {
        let orders = Caller::to(listen, "orders").await;
        let refused = orders.try_get(&[], "key").await.expect_err("it cannot be written down");
        assert_eq!((refused.code, refused.reason.as_str()), (Code::Unavailable, "AUDIT_FAILED"));
        orders.of("carts").set("key", b"value").await;
    });
    assert_eq!(server.metric("prism_audit_failed"), 1.0);
    server.stop();
}
