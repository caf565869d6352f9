//! Stopping and starting again: what was acknowledged is there, whatever ended the process.

mod harness;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::calls::{Fields, trailer};
use harness::{Caller, Server, directory, run, serve, together};
use prism_io::grpc::Code;
use prism_io::rt;
use prism_proto::grpc::health::v1::health_check_response::ServingStatus;
use prism_proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};
use prism_proto::prism::keyvalue::v1::SetRequest;
use prost::Message;

#[test]
fn sigterm_drains() {
    let directory = directory();
    let server = serve(directory.path()).shards(2).start();
    let (listen, id) = (server.listen, server.id());
    let written = run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        let request = HealthCheckRequest::default().encode_to_vec();
        let timeout = Duration::from_secs(60);
        let watch = caller.client.stream("/grpc.health.v1.Health/Watch", &[], &request, timeout);
        let mut watch = watch.await.unwrap();
        let status = |message: bytes::Bytes| HealthCheckResponse::decode(message).unwrap().status();
        let first = watch.next().await.unwrap().expect("the status now");
        assert_eq!(status(first), ServingStatus::Serving);

        // Calls are under way when the signal comes; each ends well or is refused as unavailable.
        let writers = (0..16).map(|writer| async move {
            let caller = Caller::to(listen, "keyvalue").await;
            let mut number = 0_u64;
            loop {
                let request = caller.set_request(&format!("key-{writer}"), &number.to_le_bytes());
                match caller.try_set(&[], &request).await {
                    Ok(_) => number += 1,
                    Err(refusal) => {
                        assert_eq!(refusal.code, Code::Unavailable, "{refusal:?}");
                        return (writer, number);
                    }
                }
                if writer == 0 && number == 20 {
                    harness::signal(id, "TERM");
                }
            }
        });
        let written = together(writers).await;
        let then = watch.next().await.unwrap().expect("the status after the signal");
        assert_eq!(status(then), ServingStatus::NotServing);
        assert_eq!(watch.next().await.expect_err("the end").code, Code::Unavailable);
        written
    });
    let (code, errors) = server.wait_end();
    assert_eq!(code, 0, "{errors}");

    let server = serve(directory.path()).shards(2).start();
    assert!(server.screen.contains("Recovered"), "{}", server.screen);
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        for (writer, count) in written {
            let value = caller.get(&format!("key-{writer}")).await;
            let number = value.map(|value| u64::from_le_bytes(value.try_into().unwrap()));
            // A call whose answer was lost with the connection may have had its effect.
            let expected = [count.checked_sub(1), Some(count)];
            assert!(expected.contains(&number), "writer {writer}: {number:?} after {count}");
        }
    });
    server.stop();
}

#[test]
fn sigkill_loses_nothing_acknowledged_and_no_version_comes_twice() {
    const NAMES: [&str; 8] = ["m-a", "m-b", "m-c", "m-d", "w-a", "w-b", "w-c", "w-d"];
    let is_logged = |name: &str| name.starts_with('w');
    let directory = directory();
    let namespaces = NAMES.map(|name| (name, if is_logged(name) { "wal" } else { "memory" }));
    let setup = || serve(directory.path()).shards(2).namespaces(&namespaces);
    let mut versions = HashSet::new();
    for round in 0..4_u32 {
        let server = setup().start();
        let listen = server.listen;
        let seen = run(async move {
            let caller = Caller::to(listen, "").await;
            let mut seen = Vec::new();
            for name in NAMES {
                let caller = caller.of(name);
                for key in 0..20 {
                    let key = format!("key-{key}");
                    let before = round.checked_sub(1).map(|round| round.to_string().into_bytes());
                    if is_logged(name) {
                        assert_eq!(caller.get(&key).await, before, "{name}, round {round}");
                    }
                    caller.set(&key, b"between").await;
                    seen.push((name, key.clone(), caller.version(&key).await.expect("a version")));
                    caller.delete(&key).await;
                    caller.set(&key, round.to_string().as_bytes()).await;
                    seen.push((name, key.clone(), caller.version(&key).await.expect("a version")));
                }
            }
            seen
        });
        for version in seen {
            assert!(versions.insert(version.clone()), "{version:?} was used before");
        }
        if round % 2 == 0 { server.kill() } else { server.stop() }
    }
}

#[test]
fn expiries_go_on_over_a_restart() {
    let directory = directory();
    let server = serve(directory.path()).start();
    let listen = server.listen;
    let ttl = |milliseconds: i64| {
        let nanos = (milliseconds % 1000 * 1_000_000) as i32;
        Some(prost_types::Duration { seconds: milliseconds / 1000, nanos })
    };
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        for (key, milliseconds) in [("hour", 3_600_000), ("moment", 1)] {
            let request = caller.set_request(key, b"value");
            let request = SetRequest { ttl: ttl(milliseconds), ..request };
            caller.try_set(&[], &request).await.unwrap();
        }
        caller.set("forever", b"value").await;
    });
    server.kill();
    let server = serve(directory.path()).start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        let left = caller.ttl("hour").await.expect("it expires");
        let hour = Duration::from_secs(3600);
        assert!(left < hour && left > hour - Duration::from_secs(300), "{left:?}");
        assert_eq!(caller.get("hour").await.as_deref(), Some(&b"value"[..]));
        assert_eq!(caller.get("moment").await, None);
        assert_eq!(caller.ttl("forever").await, None);
        assert!(caller.get("forever").await.is_some());
    });
    server.stop();
}

#[test]
fn a_start_that_is_killed_is_begun_again() {
    let directory = directory();
    let setup = || serve(directory.path()).shards(2);
    let server = setup().start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        for key in 0..200 {
            caller.set(&format!("key-{key}"), &[key as u8; 3000]).await;
        }
    });
    server.kill();
    // Somewhere in the start, which takes a fraction of a second.
    for attempt in 0..8 {
        setup().start_and_kill(Duration::from_millis(attempt * 25));
    }
    let server = setup().start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        for key in 0..200 {
            let value = caller.get(&format!("key-{key}")).await;
            assert_eq!(value.as_deref(), Some(&[key as u8; 3000][..]), "key-{key}");
        }
    });
    server.stop();
}

#[test]
fn another_number_of_shards_and_other_namespaces_find_the_data_where_it_was() {
    const NAMES: [&str; 6] = ["w-a", "w-b", "w-c", "w-d", "w-e", "w-f"];
    let directory = directory();
    // The last ones come later, the first ones go and come back.
    let starts: [(usize, &[&str]); 5] =
        [(2, &NAMES[..4]), (1, &NAMES[2..]), (3, &NAMES), (1, &NAMES[..1]), (2, &NAMES)];
    let mut expected: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for (round, (shards, names)) in starts.into_iter().enumerate() {
        let namespaces: Vec<_> = names.iter().map(|name| (*name, "wal")).collect();
        let server = serve(directory.path()).shards(shards).namespaces(&namespaces).start();
        let (listen, before) = (server.listen, expected.clone());
        let value = format!("round {round}").into_bytes();
        expected.extend(names.iter().map(|name| (*name, value.clone())));
        let names = names.to_vec();
        run(async move {
            let caller = Caller::to(listen, "").await;
            for name in names {
                let caller = caller.of(name);
                assert_eq!(caller.get("key").await.as_ref(), before.get(name), "{name}, {round}");
                caller.set("key", &value).await;
            }
        });
        if round % 2 == 0 { server.kill() } else { server.stop() }
    }
}

#[test]
fn a_piece_of_the_data_directory_that_is_missing_refuses_the_start() {
    for (piece, shards) in [("shard-000/wal", 1), ("shard-000", 1), ("shard-001", 2)] {
        let directory = directory();
        let setup = || serve(directory.path()).shards(shards);
        let server = setup().start();
        let listen = server.listen;
        run(async move {
            Caller::to(listen, "keyvalue").await.set("key", b"value").await;
        });
        server.kill();
        let path = directory.path().join("data").join(piece);
        if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.unwrap();
        let (code, errors) = setup().refused();
        assert_eq!(code, 65, "without {piece}: {errors}");
    }
}

/// A log of small segments, and snapshots as often as can be.
const TRIMMED: &str = "
wal: {segment_bytes: 20MiB, bytes_max: 200MiB}
memory: {snapshot_bytes: 8MiB, snapshot_interval: 1s}
";

/// Writes `rounds` times to 32 keys of 256 KiB each, and returns what must be there then.
fn fill(server: &Server, from: u32, rounds: u32) -> BTreeMap<String, Vec<u8>> {
    let listen = server.listen;
    run(async move {
        let callers = together((0..4).map(|_| Caller::to(listen, "keyvalue"))).await;
        let written = together((0..32_usize).map(|key| {
            let caller = callers[key % callers.len()].clone();
            async move {
                let name = format!("key-{key}");
                let mut value = Vec::new();
                for round in from..from + rounds {
                    value = [round.to_le_bytes().as_slice(), &vec![key as u8; 256 << 10]].concat();
                    set_when_there_is_room(&caller, &name, &value).await;
                }
                (name, value)
            }
        }))
        .await;
        written.into_iter().collect()
    })
}

/// Writes may come faster than snapshots make room; then the server says when to try again.
async fn set_when_there_is_room(caller: &Caller, key: &str, value: &[u8]) {
    while let Err(refusal) = caller.try_set(&[], &caller.set_request(key, value)).await {
        assert!(refusal.is_for_want_of_log(), "{refusal:?}");
        rt::sleep(refusal.retry.expect("after which time to try again")).await;
    }
}

/// A call that can be applied once only, and a key that expires in an hour.
fn keyed_once(server: &Server, again: bool) {
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        let swap = caller.swap_request("once", None, b"value");
        let keyed: Fields<'_> = &[("prism-idempotency-key", b"once")];
        let (answer, trailers) = caller.try_swap(keyed, &swap).await.unwrap();
        assert!(answer.swapped, "applied twice");
        assert_eq!(trailer(&trailers, "prism-replayed"), again.then_some("true"));
        if !again {
            let ttl = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
            let request = SetRequest { ttl, ..caller.set_request("hour", b"value") };
            caller.try_set(&[], &request).await.unwrap();
        }
        let left = caller.ttl("hour").await.expect("it expires");
        assert!((3000..=3600).contains(&left.as_secs()), "{left:?}");
    });
}

fn holds(server: &Server, expected: &BTreeMap<String, Vec<u8>>) {
    let (listen, expected) = (server.listen, expected.clone());
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        for (key, value) in expected {
            assert!(caller.get(&key).await.as_deref() == Some(&value[..]), "{key}");
        }
    });
}

/// The snapshots of shard 0, oldest first.
fn snapshots(data: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join("shard-000/snapshots")).unwrap();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "prism"));
    found.sort();
    found
}

fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn snapshots_let_the_log_be_trimmed_and_bring_everything_back() {
    let directory = directory();
    let setup = || serve(directory.path()).config(TRIMMED);
    let server = setup().start();
    keyed_once(&server, false);
    // 50 × 32 × 256 KiB: twice what the log may hold.
    let mut expected = fill(&server, 0, 50);
    server.wait_for_metric("prism_memstore_snapshots_total", |count| count >= 2.0);
    server.wait_for_metric("prism_wal_segments_pinned", |segments| segments <= 4.0);
    let segments = server.metric("prism_wal_segments");
    assert!(segments <= 10.0, "{segments} segments of 20 MiB where 200 MiB are allowed");
    assert_eq!(server.metric("prism_memstore_snapshots_failed_total"), 0.0);
    // And some more, so that the log holds what the newest snapshot does not.
    expected.extend(fill(&server, 50, 1));
    server.assert_well();
    server.kill();

    let server = setup().start();
    holds(&server, &expected);
    // The record of the keyed call was trimmed long ago; its outcome is remembered all the same.
    keyed_once(&server, true);
    server.kill();

    // The newest snapshot is damaged: the older one and the log have everything.
    let found = snapshots(&directory.path().join("data"));
    // A kill between the writing of a third and the removal of the first leaves three.
    assert!(matches!(found.len(), 2 | 3), "{found:?}");
    damage(found.last().unwrap());
    let server = setup().start();
    server.wait_says("damaged and was set aside");
    holds(&server, &expected);
    keyed_once(&server, true);
    server.kill();

    // All are damaged: the log alone does not go back far enough, so there is no start.
    let found = snapshots(&directory.path().join("data"));
    found.iter().for_each(|path| damage(path));
    let (code, errors) = setup().refused();
    assert_eq!(code, 65, "{errors}");
    assert!(errors.contains("no snapshot is good") && errors.contains("backup"), "{errors}");
    // A refusal changes nothing: a second attempt is told the same.
    assert_eq!(setup().refused().0, 65);
}
