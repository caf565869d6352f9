//! Requests that cannot be served, each with the status that says why, while a neighbour goes on undisturbed.

mod harness;

use harness::calls::Fields;
use harness::frames::{End, Raw};
use harness::{Caller, Neighbour, Refusal, Server, directory, run, serve};
use prism_io::grpc::Code;
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::{GetRequest, SetRequest};
use prism_proto::wire::put_bytes;
use prost::Message;

/// The namespaces of these tests; eight names are on both of two shards.
const NAMES: [&str; 8] = ["n-a", "n-b", "n-c", "n-d", "n-e", "n-f", "n-g", "n-h"];

/// A server with two shards, so that the same connection reaches namespaces here and there.
fn server(path: &std::path::Path) -> Server {
    let mut namespaces = vec![("keyvalue", "wal")];
    namespaces.extend(NAMES.map(|name| (name, "wal")));
    serve(path).shards(2).namespaces(&namespaces).start()
}

/// A Get or Set of fields as they are.
fn fields(fields: &[(u32, &[u8])]) -> Vec<u8> {
    let mut message = Vec::new();
    fields.iter().for_each(|(number, bytes)| put_bytes(&mut message, *number, bytes));
    message
}

/// Makes one call and returns how it was refused.
async fn refusal(caller: &Caller, method: Method, metadata: Fields<'_>, message: &[u8]) -> Refusal {
    let answer = caller.raw(method.path(), metadata, message).await;
    let refusal = answer.expect_err("the call is refused");
    assert!(refusal.message.len() < 1024, "told in a few words: {}", refusal.message);
    refusal
}

#[test]
fn what_is_not_a_request_is_malformed() {
    let directory = directory();
    let server = server(directory.path());
    let neighbour = Neighbour::of(&server);
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "n-a").await;
        for name in NAMES {
            let name = name.as_bytes();
            let long = [0xff; 64];
            let malformed: [(&str, Vec<u8>); 9] = [
                ("field 1 twice", fields(&[(1, name), (2, b"key"), (1, name)])),
                (
                    "field 1 twice, first one other",
                    fields(&[(1, b"other"), (1, name), (2, b"key")]),
                ),
                ("bad UTF-8 in the namespace", fields(&[(1, b"n-\xff"), (2, b"key")])),
                ("overlong UTF-8 in the key", fields(&[(1, name), (2, b"\xc0\x80")])),
                ("bad UTF-8 in the key", fields(&[(1, name), (2, b"k\xffy")])),
                ("cut short", fields(&[(1, name), (2, b"key")])[..name.len() + 4].to_vec()),
                ("the namespace as a number", vec![0x08, 0x01]),
                ("an endless varint", long.to_vec()),
                ("field 0", [fields(&[(1, name)]), vec![0x02, 0x00]].concat()),
            ];
            for (what, message) in &malformed {
                for method in [Method::KEYVALUE_GET, Method::KEYVALUE_SET] {
                    let refusal = refusal(&caller, method, &[], message).await;
                    let told = (refusal.code, refusal.reason.as_str());
                    assert_eq!(
                        told,
                        (Code::InvalidArgument, "REQUEST_MALFORMED"),
                        "{what}: {refusal:?}"
                    );
                }
            }
        }
    });
    neighbour.leave();
    server.assert_well();
}

#[test]
fn a_key_has_one_to_1024_bytes_without_control_characters() {
    let directory = directory();
    let server = server(directory.path());
    let neighbour = Neighbour::of(&server);
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "n-a").await;
        for namespace in NAMES {
            let caller = caller.of(namespace);
            let long = "k".repeat(1025);
            let umlauts = "ü".repeat(513);
            let bad = ["", &long, &umlauts, "a\0b", "a\nb", "\u{7f}", "a\u{85}b"];
            for key in bad {
                let get = GetRequest { namespace: namespace.to_owned(), key: key.to_owned() };
                let set = caller.set_request(key, b"value");
                for (method, message) in [
                    (Method::KEYVALUE_GET, get.encode_to_vec()),
                    (Method::KEYVALUE_SET, set.encode_to_vec()),
                ] {
                    let refusal = refusal(&caller, method, &[], &message).await;
                    let told = (refusal.code, refusal.reason.as_str());
                    assert_eq!(
                        told,
                        (Code::InvalidArgument, "KEY_INVALID"),
                        "{key:?}: {refusal:?}"
                    );
                    assert_eq!(refusal.fields, ["key"]);
                }
            }
            // The longest key, and one in which nothing is wrong but its looks.
            for key in ["k".repeat(1024).as_str(), "{}%\u{202e}💣/../"] {
                caller.set(key, b"fine").await;
                assert_eq!(caller.get(key).await.as_deref(), Some(&b"fine"[..]));
            }
        }
    });
    neighbour.leave();
    server.assert_well();
}

#[test]
fn an_unknown_namespace_or_method_is_told_so() {
    let directory = directory();
    let server = server(directory.path());
    let neighbour = Neighbour::of(&server);
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "n-a").await;
        let get = |namespace: &str| {
            GetRequest { namespace: namespace.to_owned(), key: "key".to_owned() }.encode_to_vec()
        };
        for name in ["unheard-of", "N-A", "n-a ", "a\u{0}b", &"x".repeat(100_000)] {
            let refusal = refusal(&caller, Method::KEYVALUE_GET, &[], &get(name)).await;
            let told = (refusal.code, refusal.reason.as_str());
            assert_eq!(told, (Code::NotFound, "NAMESPACE_UNKNOWN"), "{refusal:?}");
        }
        let none = refusal(&caller, Method::KEYVALUE_GET, &[], &get("")).await;
        assert_eq!((none.code, none.reason.as_str()), (Code::InvalidArgument, "NAMESPACE_MISSING"));
        assert_eq!(none.fields, ["namespace"]);
        for path in
            ["/prism.keyvalue.v1.KeyValueService/Gets", "/nobody.Service/Get", "/", "/a/b/c"]
        {
            let unknown = caller.raw(path, &[], &get("n-a")).await.expect_err("unknown");
            assert_eq!(unknown.code, Code::Unimplemented, "{path}: {unknown:?}");
        }
    });
    // Names that callers make up do not become labels of metrics.
    let metrics = server.admin_page("/metrics");
    assert!(!metrics.contains("unheard-of") && !metrics.contains("xxxx"), "{metrics}");
    neighbour.leave();
    server.assert_well();
}

#[test]
fn metadata_that_makes_no_sense_is_refused() {
    let directory = directory();
    let server = server(directory.path());
    let neighbour = Neighbour::of(&server);
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "n-a").await;
        let long = [b'k'; 129];
        let bad: [(&str, &[u8], &str); 9] = [
            ("prism-durability", b"WAL", "DURABILITY_INVALID"),
            ("prism-durability", b"", "DURABILITY_INVALID"),
            ("prism-idempotency-key", b"", "IDEMPOTENCY_KEY_INVALID"),
            ("prism-idempotency-key", &long, "IDEMPOTENCY_KEY_INVALID"),
            ("prism-idempotency-key", b"\xc3\xbc", "IDEMPOTENCY_KEY_INVALID"),
            ("prism-after", b"", "AFTER_INVALID"),
            ("prism-after", b"yesterday", "AFTER_INVALID"),
            ("prism-after", b"-1", "AFTER_INVALID"),
            ("prism-after", b"fffff-1", "AFTER_INVALID"),
        ];
        for namespace in NAMES {
            let caller = caller.of(namespace);
            let set = caller.set_request("key", b"value").encode_to_vec();
            let get = GetRequest { namespace: namespace.to_owned(), key: "key".into() };
            for (name, value, reason) in bad {
                let read = name == "prism-after";
                let method = if read { Method::KEYVALUE_GET } else { Method::KEYVALUE_SET };
                let message = if read { get.encode_to_vec() } else { set.clone() };
                let refusal = refusal(&caller, method, &[(name, value)], &message).await;
                let told = (refusal.code, refusal.reason.as_str());
                assert_eq!(told, (Code::InvalidArgument, reason), "{name}: {value:?}: {refusal:?}");
                assert_eq!(refusal.fields, [name]);
            }
            assert_eq!(caller.get("key").await, None, "nothing of it had an effect");
        }
    });
    neighbour.leave();
    server.assert_well();
}

#[test]
fn an_expired_deadline_is_told_before_anything_happens() {
    let directory = directory();
    let server = server(directory.path());
    let neighbour = Neighbour::of(&server);
    let mut raw = Raw::open(&server);
    let mut stream = 1;
    for namespace in NAMES {
        let set =
            SetRequest { namespace: namespace.into(), key: "late".into(), ..Default::default() };
        for timeout in ["1n", "0n", "0H"] {
            raw.call(
                stream,
                Method::KEYVALUE_SET.path(),
                &[("grpc-timeout", timeout)],
                &set.encode_to_vec(),
            );
            assert_eq!(raw.end_of(stream), End::Status("4".into()), "DEADLINE_EXCEEDED");
            stream += 2;
        }
    }
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "").await;
        for namespace in NAMES {
            assert_eq!(caller.of(namespace).get("late").await, None, "nothing happened");
        }
    });
    neighbour.leave();
    server.assert_well();
}

#[test]
fn an_oversized_message_is_refused_and_the_connection_goes_on() {
    let directory = directory();
    let server = server(directory.path());
    let neighbour = Neighbour::of(&server);
    let mut raw = Raw::open(&server);
    let set = Method::KEYVALUE_SET.path();
    let mut message =
        SetRequest { namespace: "n-a".into(), key: "large".into(), ..Default::default() };
    message.value = vec![0; 5 << 20].into();
    raw.call(1, set, &[], &message.encode_to_vec());
    assert_eq!(raw.end_of(1), End::Status("8".into()), "RESOURCE_EXHAUSTED");
    // One that only says that it will be large, and never comes.
    raw.head(3, set, &[], 0);
    raw.frame(0, 0, 3, &[0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
    assert_eq!(raw.end_of(3), End::Status("8".into()), "RESOURCE_EXHAUSTED");
    message.value = vec![7; 3 << 20].into();
    raw.call(5, set, &[], &message.encode_to_vec());
    assert_eq!(raw.end_of(5), End::Status("0".into()), "what fits is served");

    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "n-a").await;
        let request = caller.set_request("large", &vec![0; (4 << 20) - 100]);
        let refusal = caller.try_set(&[], &request).await.expect_err("it would not fit an answer");
        assert_eq!(refusal.reason, "VALUE_TOO_LARGE", "{refusal:?}");
        assert_eq!(caller.get("large").await.map(|value| value.len()), Some(3 << 20));
    });
    neighbour.leave();
    server.assert_well();
}
