//! What a reply promises, held against the server: durability levels, reads after writes, and retries with idempotency keys.

mod harness;

use harness::calls::{Fields, trailer};
use harness::frames::{End, Raw};
use harness::{Caller, Neighbour, Server, directory, run, serve, together};
use prism_io::grpc::Code;
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1::compare_and_swap_request::Expected;
use prism_proto::prism::keyvalue::v1::{CompareAndSwapRequest, SetCondition, SetRequest};
use prost::Message;

const LEVEL: &str = "prism-durability";
const KEY: &str = "prism-idempotency-key";

/// Namespaces of either level, enough of them to have some on each of two shards.
const NAMES: [&str; 8] = ["m-a", "m-b", "m-c", "m-d", "w-a", "w-b", "w-c", "w-d"];

fn level_of(name: &str) -> &'static str {
    if name.starts_with('m') { "memory" } else { "wal" }
}

fn server(path: &std::path::Path) -> Server {
    let mut namespaces = vec![("keyvalue", "wal")];
    namespaces.extend(NAMES.map(|name| (name, level_of(name))));
    serve(path).shards(2).namespaces(&namespaces).start()
}

#[test]
fn a_write_reaches_the_level_of_its_namespace_or_more_never_less() {
    let directory = directory();
    let server = server(directory.path());
    let neighbour = Neighbour::of(&server);
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "").await;
        for name in NAMES {
            let caller = caller.of(name);
            let own = level_of(name);
            let order =
                |level: &str| ["memory", "wal", "strong"].iter().position(|one| *one == level);
            // From less to more: once a namespace has a record in the log, its later writes go there as well.
            for asked in ["memory", "wal", "strong"] {
                let metadata: Fields<'_> = &[(LEVEL, asked.as_bytes())];
                let stored = caller.try_set(metadata, &caller.set_request("key", b"value")).await;
                let (_, trailers) = stored.unwrap();
                let expected = if order(asked) > order(own) { asked } else { own };
                assert_eq!(trailer(&trailers, LEVEL), Some(expected), "{name} asked for {asked}");
                let lsn = trailer(&trailers, "prism-lsn");
                assert_eq!(lsn.is_some(), expected != "memory", "{name}: {lsn:?}");
                assert_eq!(trailer(&trailers, "prism-replayed"), None);
            }
            let (_, trailers) = caller.try_get(&[], "key").await.unwrap();
            assert!(trailers.is_empty(), "a read has no level: {trailers:?}");
        }
    });
    neighbour.leave();
    server.stop();
}

#[test]
fn what_was_acknowledged_is_read_on_every_connection() {
    let directory = directory();
    let server = server(directory.path());
    let neighbour = Neighbour::of(&server);
    let listen = server.listen;
    run(async move {
        // So many connections that both shards have some.
        let callers = together((0..6).map(|_| Caller::to(listen, ""))).await;
        for round in 0..30 {
            for name in NAMES {
                let writer = callers[round % callers.len()].of(name);
                let value = format!("{round}");
                let written = writer.set("key", value.as_bytes()).await;
                let token = written.get("prism-lsn").map(<[u8]>::to_vec);
                for caller in &callers {
                    let reader = caller.of(name);
                    assert_eq!(
                        reader.get("key").await.as_deref(),
                        Some(value.as_bytes()),
                        "{name}"
                    );
                    if let Some(token) = &token {
                        let (answer, _) = reader
                            .try_get(&[("prism-after", token.as_slice())], "key")
                            .await
                            .unwrap();
                        assert_eq!(answer.entry.unwrap().value, value.as_bytes());
                    }
                }
            }
        }
        let written = callers[0].of("w-a").set("key", b"last").await;
        let token = trailer(&written, "prism-lsn").unwrap();
        let (shard, lsn) = token.split_once('-').expect("a shard and a record");
        let beyond = u64::from_str_radix(lsn, 16).unwrap() + 1_000_000;
        let other = if shard == "0" { "1" } else { "0" };
        for unknown in [format!("{shard}-{beyond:x}"), format!("{other}-1"), "ffff-1".into()] {
            let after: Fields<'_> = &[("prism-after", unknown.as_bytes())];
            let refusal = callers[0].of("w-a").try_get(after, "key").await.expect_err("not there");
            assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, "READ_BEHIND"));
        }
    });
    assert!(server.metric("prism_mesh_sent_total") > 0.0);
    neighbour.leave();
    server.stop();
}

/// Calls of every kind with a key, whose repetition would show: the name, what it is called with, and the first outcome.
async fn keyed_calls(caller: &Caller, again: bool) {
    let replayed = again.then_some("true");
    let keyed = |name: &str| format!("{}-{name}", caller.namespace).into_bytes();

    // From nothing to one: a second time it would find one.
    let key = keyed("swap");
    let swap = caller.swap_request("counter", None, b"1");
    let (answer, trailers) = caller.try_swap(&[(KEY, &key)], &swap).await.unwrap();
    assert!(answer.swapped, "{}: again {again}", caller.namespace);
    assert_eq!(trailer(&trailers, "prism-replayed"), replayed);
    assert!(
        matches!(trailer(&trailers, LEVEL), Some("wal")),
        "a key implies the log: {trailers:?}"
    );
    assert!(trailer(&trailers, "prism-lsn").is_some());

    // The previous value of the first time is none; of a second time it would be its own.
    let key = keyed("previous");
    let set = SetRequest { return_previous: true, ..caller.set_request("previous", b"mine") };
    let (answer, trailers) = caller.try_set(&[(KEY, &key)], &set).await.unwrap();
    assert_eq!(answer.previous, None);
    assert_eq!(trailer(&trailers, "prism-replayed"), replayed);

    // Only if it is absent: applied the first time, so it is told the same.
    let key = keyed("absent");
    let only_if = SetCondition::Absent.into();
    let set = SetRequest { only_if, ..caller.set_request("absent", b"mine") };
    let (answer, trailers) = caller.try_set(&[(KEY, &key)], &set).await.unwrap();
    assert!(answer.applied);
    assert_eq!(trailer(&trailers, "prism-replayed"), replayed);

    // One that failed the first time stays failed, although it would work by now.
    let key = keyed("failed");
    let swap = caller.swap_request("failed", Some(b"there"), b"swapped");
    let (answer, trailers) = caller.try_swap(&[(KEY, &key)], &swap).await.unwrap();
    assert!(!answer.swapped);
    assert_eq!(answer.current, None, "what was there then");
    assert_eq!(trailer(&trailers, "prism-replayed"), replayed);
    if !again {
        caller.set("failed", b"there").await;
    }

    assert_eq!(caller.get("counter").await.as_deref(), Some(&b"1"[..]));
    assert_eq!(caller.get("failed").await.as_deref(), Some(&b"there"[..]));

    // The same key with another body is no retry.
    let key = keyed("previous");
    let other = SetRequest { return_previous: true, ..caller.set_request("previous", b"other") };
    let reused = caller.try_set(&[(KEY, &key)], &other).await.expect_err("another request");
    let told = (reused.code, reused.reason.as_str());
    assert_eq!(told, (Code::FailedPrecondition, "IDEMPOTENCY_KEY_REUSED"), "{reused:?}");
    assert_eq!(caller.get("previous").await.as_deref(), Some(&b"mine"[..]));

    // The same key of another caller is another key.
    let key = keyed("absent");
    let metadata: Fields<'_> = &[(KEY, &key), ("authorization", b"Bearer somebody-else")];
    let (answer, trailers) = caller.try_set(metadata, &set).await.unwrap();
    assert!(!answer.applied);
    assert_eq!(trailer(&trailers, "prism-replayed"), replayed);
}

async fn keyed_calls_everywhere(listen: std::net::SocketAddr, again: bool) {
    let caller = Caller::to(listen, "").await;
    for name in NAMES {
        keyed_calls(&caller.of(name), again).await;
    }
}

#[test]
fn a_retry_gets_the_first_outcome_and_has_no_second_effect() {
    let directory = directory();
    let first = server(directory.path());
    let neighbour = Neighbour::of(&first);
    let listen = first.listen;
    run(keyed_calls_everywhere(listen, false));
    run(keyed_calls_everywhere(listen, true));
    neighbour.leave();
    first.kill();

    let second = server(directory.path());
    run(keyed_calls_everywhere(second.listen, true));
    second.stop();

    let third = server(directory.path());
    run(keyed_calls_everywhere(third.listen, true));
    third.stop();
}

#[test]
fn of_many_calls_with_one_key_at_once_one_is_applied() {
    let directory = directory();
    let server = server(directory.path());
    let neighbour = Neighbour::of(&server);
    let listen = server.listen;
    run(async move {
        let callers = together((0..4).map(|_| Caller::to(listen, ""))).await;
        for round in 0..10 {
            for name in NAMES {
                let key = format!("once-{name}-{round}");
                let attempts = (0..40).map(|attempt| {
                    let (caller, key) = (callers[attempt % callers.len()].of(name), key.clone());
                    async move {
                        let swap = caller.swap_request(&key, None, b"once");
                        caller.try_swap(&[(KEY, key.as_bytes())], &swap).await
                    }
                });
                let mut first = 0;
                for outcome in together(attempts).await {
                    let (answer, trailers) =
                        outcome.unwrap_or_else(|refusal| panic!("{refusal:?}"));
                    assert!(answer.swapped, "{key} was applied twice");
                    first += usize::from(trailer(&trailers, "prism-replayed").is_none());
                }
                assert_eq!(first, 1, "{key}: one call is the first");
            }
        }
    });
    neighbour.leave();
    server.stop();
}

#[test]
fn a_deadline_that_passes_says_whether_the_write_takes_effect() {
    let directory = directory();
    let server = server(directory.path());
    let neighbour = Neighbour::of(&server);
    let mut told = std::collections::BTreeMap::<String, Vec<(&'static str, String)>>::new();
    for name in NAMES.into_iter().filter(|name| level_of(name) == "wal") {
        let mut raw = Raw::open(&server);
        for number in 0..300_u32 {
            let (stream, key) = (number * 2 + 1, format!("late-{number}"));
            let swap = CompareAndSwapRequest {
                namespace: name.to_owned(),
                key: key.clone(),
                expected: Some(Expected::ExpectedAbsent(())),
                value: vec![1; 40_000].into(),
                ..Default::default()
            };
            // Around the time that a log write takes.
            let timeout = format!("{}u", 20 + number * 10);
            let path = Method::KEYVALUE_COMPARE_AND_SWAP.path();
            let metadata = [("grpc-timeout", &*timeout), (KEY, &*key)];
            raw.call(stream, path, &metadata, &swap.encode_to_vec());
            let reason = match raw.end_of(stream) {
                End::Status(code) if code == "0" => "OK".to_owned(),
                End::Status(code) if code == "4" => raw.reason(),
                other => panic!("{other:?}"),
            };
            told.entry(reason).or_default().push((name, key));
        }
    }
    neighbour.leave();
    let listen = server.listen;
    let applied = |keys: Vec<(&'static str, String)>| {
        run(async move {
            let caller = Caller::to(listen, "").await;
            let found =
                keys.iter().map(|(name, key)| async { caller.of(name).get(key).await.is_some() });
            together(found).await
        })
    };
    for (reason, keys) in told {
        let (count, applied) = (keys.len(), applied(keys.clone()));
        match reason.as_str() {
            "OK" | "OUTCOME_PENDING" => assert!(applied.iter().all(|applied| *applied), "{reason}"),
            "NOT_APPLIED" => {
                let wrong = applied.iter().filter(|applied| **applied).count();
                assert_eq!(wrong, 0, "of {count} writes told NOT_APPLIED so many were applied");
            }
            other => panic!("a deadline ends with {other}"),
        }
        // Whatever was told: a retry under the same key has the effect once, and learns its outcome.
        run(async move {
            let caller = Caller::to(listen, "").await;
            let mut replayed = 0;
            // As many at once as the connection's budget for bytes in flight has room for.
            for keys in keys.chunks(100) {
                let retries = keys.iter().map(|(name, key)| {
                    let caller = caller.of(name);
                    async move {
                        let swap = caller.swap_request(key, None, &[1; 40_000]);
                        let (answer, trailers) =
                            caller.try_swap(&[(KEY, key.as_bytes())], &swap).await.unwrap();
                        assert!(answer.swapped, "{name}/{key} was applied twice");
                        trailer(&trailers, "prism-replayed").is_some()
                    }
                });
                replayed += together(retries).await.iter().filter(|replayed| **replayed).count();
            }
            assert_eq!(replayed, if reason == "NOT_APPLIED" { 0 } else { keys.len() }, "{reason}");
        });
    }
    server.stop();
}
