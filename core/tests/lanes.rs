//! Logged writes on their way to a real Redis: in order and with one effect each, whatever dies on the way.

mod harness;
#[path = "../../adapters/tests/servers/mod.rs"]
mod servers;

use std::path::Path;
use std::time::{Duration, Instant};

use harness::frames::{End, Raw};
use harness::{Caller, PATIENCE, Server, Setup, directory, run, serve};
use prism_io::grpc::Code;
use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1 as kv;
use prost::Message as _;
use servers::{OwnCluster, OwnRedis, Proxy, redis_cli};

const STRONG: [(&str, &[u8]); 1] = [("prism-durability", b"strong")];

/// A server with the namespaces `orders` (level `wal`) and `memory` on a Redis, and `embedded` beside them.
fn setup(path: &Path, redis: std::net::SocketAddr, options: &str) -> Setup {
    serve(path).config(&format!(
        "backends:\n  - {{name: cache, type: redis, address: \"{redis}\"{options}}}\nnamespaces:\n  \
         - {{name: orders, client_api: keyvalue, backend: cache, durability: wal}}\n  \
         - {{name: memory, client_api: keyvalue, backend: cache, durability: memory}}\n  \
         - {{name: embedded, client_api: keyvalue}}\n"
    ))
}

/// Waits until Redis has everything that was acknowledged: a write that Redis itself has to answer stands behind it all.
fn drained(server: &Server) {
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "orders").await;
        let until = Instant::now() + PATIENCE;
        while let Err(refusal) = caller.try_set(&STRONG, &caller.set_request("last", b"")).await {
            assert!(Instant::now() < until, "{refusal:?}");
            rt::sleep(Duration::from_millis(5)).await;
        }
    });
    server.wait_for_metric("prism_lane_pending_records", |pending| pending == 0.0);
}

fn key(number: usize) -> String {
    format!("key-{}", number % 50)
}

#[test]
fn acknowledged_writes_outlive_the_outage_of_redis_and_the_death_of_the_server() {
    let mut redis = OwnRedis::start(&[]);
    let directory = directory();
    let setup = setup(directory.path(), redis.address, "");
    let server = setup.start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "orders").await;
        caller.set("early", b"bird").await;
        assert_eq!(caller.get("early").await.as_deref(), Some(&b"bird"[..]));
        let strong = caller.try_set(&STRONG, &caller.set_request("strong", b"s")).await;
        let (answer, trailers) = strong.expect("Redis is there");
        assert!(answer.applied && answer.version.is_some(), "the backend has answered");
        assert_eq!(harness::calls::trailer(&trailers, "prism-durability"), Some("strong"));
    });
    redis.kill();
    run(async move {
        let caller = Caller::to(listen, "orders").await;
        for number in 0..2000usize {
            caller.set(&key(number), number.to_string().as_bytes()).await;
        }
        caller.delete("key-7").await;
        // Reads see them before Redis does.
        assert_eq!(caller.get("key-49").await.as_deref(), Some(&b"1999"[..]));
        assert_eq!(caller.get("key-7").await, None);
        // What needs Redis is refused before there is a record, as soon as it is known to be away.
        let until = Instant::now() + PATIENCE;
        loop {
            let asked = caller.try_set(&STRONG, &caller.set_request("key-1", b"no")).await;
            let refused = asked.expect_err("there is no Redis");
            assert!(Instant::now() < until, "{refused:?}");
            if refused.reason == "LANE_BEHIND" {
                assert_eq!(refused.code, Code::Unavailable, "{refused:?}");
                assert!(refused.message.contains("orders"), "{refused:?}");
                break;
            }
        }
        let swap = caller.swap_request("key-1", Some(b"1951"), b"no");
        assert_eq!(caller.try_swap(&[], &swap).await.expect_err("no Redis").reason, "LANE_BEHIND");
        let of_key = Caller::to(listen, "embedded").await;
        of_key.set("k", b"v").await;
    });
    assert!(server.metric("prism_lane_stalled") >= 1.0);
    server.kill();

    // The log holds them over a start without Redis, too.
    let server = setup.start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "orders").await;
        caller.set("key-3", b"after the start").await;
    });
    redis.restart();
    drained(&server);
    let get = |key: &str| redis.cli(&["GET", &format!("orders:{key}")]);
    for number in (1950..2000usize).filter(|number| ![7, 3].contains(&(number % 50))) {
        assert_eq!(get(&key(number)), number.to_string());
    }
    assert_eq!(get("key-3"), "after the start");
    assert_eq!(redis.cli(&["EXISTS", "orders:key-7"]), "0");
    // One early and one strong, 2,000, a delete, and one after the start. A strong write that was begun when Redis had just
    // gone may have a record, too.
    let cell = redis.cli(&["GET", "_prism:cell:orders:0"]);
    let last: u64 = cell.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((2004..2100).contains(&last), "{cell}");
    run(async move {
        let caller = Caller::to(listen, "orders").await;
        assert_eq!(caller.get("key-49").await.as_deref(), Some(&b"1999"[..]));
    });
    server.stop();
}

#[test]
fn what_memory_does_not_hold_is_read_again_from_the_log() {
    let mut redis = OwnRedis::start(&[]);
    let directory = directory();
    let setup = setup(directory.path(), redis.address, "");
    let server = setup.start();
    let listen = server.listen;
    redis.kill();
    // Twice as much as a lane keeps in memory.
    const VALUES: usize = 320;
    let value = |number: usize| vec![b'a' + (number % 26) as u8; 50_000 + number];
    run(async move {
        let caller = Caller::to(listen, "orders").await;
        for number in 0..VALUES {
            caller.set_when_there_is_room(&format!("large-{number}"), &value(number)).await;
        }
    });
    redis.restart();
    drained(&server);
    let length = |number: usize| redis.cli(&["STRLEN", &format!("orders:large-{number}")]);
    for number in 0..VALUES {
        assert_eq!(length(number), (50_000 + number).to_string());
    }
    assert_eq!(redis.cli(&["GET", "_prism:cell:orders:0"]).rsplit(' ').next(), Some("321"));
    server.stop();
}

#[test]
fn each_swap_takes_effect_once_while_the_connection_is_cut_again_and_again() {
    let redis = OwnRedis::start(&[]);
    let proxy = Proxy::to(redis.address);
    let directory = directory();
    let server = setup(directory.path(), proxy.address, "").start();
    let listen = server.listen;
    let swapped = run(async move {
        let caller = Caller::to(listen, "orders").await;
        let begun = caller.try_set(&STRONG, &caller.set_request("counter", b"0")).await;
        begun.expect("Redis is there");
        let (mut count, mut lost, mut cut_at) = (0u64, 0, 0);
        let until = Instant::now() + PATIENCE;
        while count < 400 {
            assert!(Instant::now() < until, "only {count}");
            if count % 70 == 69 && cut_at != count {
                proxy.cut();
                cut_at = count;
            }
            let (from, to) = (count.to_string(), (count + 1).to_string());
            let swap = caller.swap_request("counter", Some(from.as_bytes()), to.as_bytes());
            match caller.try_swap(&[], &swap).await {
                Ok((answer, _)) => {
                    // If an earlier attempt had taken effect, this one must find its value.
                    let current = answer.current.map(|entry| entry.value);
                    assert!(answer.swapped || current.as_deref() == Some(to.as_bytes()), "{count}");
                    count += 1;
                }
                Err(refusal) => {
                    let passing = ["LANE_BEHIND", "ANSWER_LOST", "BACKEND_UNREACHABLE"];
                    assert!(passing.contains(&&*refusal.reason), "{refusal:?}");
                    lost += 1;
                    rt::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        println!("{lost} answers were lost or refused");
        count
    });
    drained(&server);
    assert_eq!(redis.cli(&["GET", "orders:counter"]), swapped.to_string());
    assert!(server.metric("prism_lane_resumes_total") >= 5.0, "the lane went back and forth");
    server.stop();
}

/// A master of a cluster dies under the writes, and its replica takes over with what it has: nothing that was acknowledged is missing.
#[test]
fn acknowledged_writes_outlive_a_fail_over_in_a_redis_cluster() {
    let mut cluster = OwnCluster::start(3, 1, 2_000);
    let directory = directory();
    let server = setup(directory.path(), cluster.address(), ", cluster: true").start();
    let listen = server.listen;
    let write = move |numbers: std::ops::Range<usize>| {
        run(async move {
            let caller = Caller::to(listen, "orders").await;
            for number in numbers {
                caller.set(&format!("k{number}"), number.to_string().as_bytes()).await;
            }
        });
    };
    write(0..300);
    cluster.nodes[0].kill();
    write(300..1_000);
    drained(&server);
    assert_eq!(cluster.nodes[3].cli(&["ROLE"]).lines().next(), Some("master"));
    run(async move {
        let caller = Caller::to(listen, "orders").await;
        for number in 0..1_000 {
            let value = caller.get(&format!("k{number}")).await;
            assert_eq!(value.as_deref(), Some(number.to_string().as_bytes()), "k{number}");
        }
    });
    server.stop();
}

#[test]
fn what_redis_has_lost_is_sent_again_while_the_log_holds_it() {
    let mut redis = OwnRedis::start(&["--appendonly", "no"]);
    let directory = directory();
    let server = setup(directory.path(), redis.address, "").start();
    let listen = server.listen;
    let set = move |key: &'static str| {
        run(async move { Caller::to(listen, "orders").await.set(key, b"value").await });
    };
    set("one");
    set("two");
    drained(&server);
    // Without a file it comes back empty.
    redis.kill();
    redis.restart();
    set("three");
    drained(&server);
    for key in ["one", "two", "three"] {
        assert_eq!(redis.cli(&["GET", &format!("orders:{key}")]), "value", "{key}");
    }
    server.wait_says("its backend went back");
    server.stop();
}

#[test]
fn a_lane_of_another_data_directory_is_left_alone() {
    let redis = OwnRedis::start(&[]);
    let (one, other) = (directory(), directory());
    let first = setup(one.path(), redis.address, "").start();
    let second = setup(other.path(), redis.address, "").start();
    let (listen_first, listen_second) = (first.listen, second.listen);
    run(async move {
        Caller::to(listen_first, "orders").await.set("key", b"of the first").await;
    });
    drained(&first);
    run(async move {
        let caller = Caller::to(listen_second, "orders").await;
        let until = Instant::now() + PATIENCE;
        let refusal = loop {
            match caller.try_set(&[], &caller.set_request("key", b"of the second")).await {
                Ok(_) => assert!(Instant::now() < until, "it is not noticed"),
                Err(refusal) => break refusal,
            }
        };
        assert_eq!(refusal.reason, "LANE_BEHIND", "{refusal:?}");
        assert!(refusal.message.contains("another data directory"), "{refusal:?}");
    });
    assert_eq!(redis.cli(&["GET", "orders:key"]), "of the first");
    second.terminate();
    let (code, errors) = second.wait_end();
    assert_eq!(code, 75, "what cannot drain is said: {errors}");
    first.stop();
}

#[test]
fn a_namespace_does_not_move_to_another_backend_by_itself() {
    let redis = OwnRedis::start(&[]);
    let directory = directory();
    setup(directory.path(), redis.address, "").start().stop();
    let (code, errors) = serve(directory.path()).namespaces(&[("orders", "wal")]).refused();
    assert_eq!(code, 78, "{errors}");
    assert!(errors.contains("orders") && errors.contains("backend: cache"), "{errors}");
}

#[test]
fn keyed_retries_get_the_first_answer_where_the_log_can_give_it() {
    let redis = OwnRedis::start(&[]);
    let directory = directory();
    let setup = setup(directory.path(), redis.address, "");
    let server = setup.start();
    let listen = server.listen;
    let keyed = move |value: &'static [u8]| {
        run(async move {
            let caller = Caller::to(listen, "orders").await;
            let fields: [(&str, &[u8]); 1] = [("prism-idempotency-key", b"once")];
            let answer = caller.try_set(&fields, &caller.set_request("key", value)).await;
            let (_, trailers) = answer.map_err(|refusal| refusal.reason)?;
            Ok::<_, String>(harness::calls::trailer(&trailers, "prism-replayed").is_some())
        })
    };
    assert!(!keyed(b"first").expect("stored"));
    run(async move { Caller::to(listen, "orders").await.set("key", b"second").await });
    assert!(keyed(b"first").expect("the first answer"));
    assert_eq!(keyed(b"other").expect_err("another body"), "IDEMPOTENCY_KEY_REUSED");
    run(async move {
        let caller = Caller::to(listen, "orders").await;
        assert_eq!(caller.get("key").await.as_deref(), Some(&b"second"[..]));
        let fields: [(&str, &[u8]); 1] = [("prism-idempotency-key", b"swap")];
        let swap = caller.swap_request("key", Some(b"second"), b"third");
        let refused = caller.try_swap(&fields, &swap).await.expect_err("only Redis knows");
        assert_eq!(refused.reason, "DURABILITY_NOT_OFFERED");
    });
    drained(&server);
    assert_eq!(redis_cli(redis.address, 0, &["GET", "orders:key"]), "second");
    server.stop();
}

/// What is known of one key outside of the server: the number acknowledged last, and the one sent last.
type Journal = std::rc::Rc<std::cell::RefCell<[(u64, u64); 12]>>;

/// The number that a value holds; 0 for none.
fn number(value: Option<&[u8]>) -> u64 {
    value.map_or(0, |value| std::str::from_utf8(value).unwrap().parse().unwrap())
}

/// Writes ever higher numbers under twelve keys until the server is gone: every third by compare-and-swap, which needs the
/// answer of Redis.
async fn load(listen: std::net::SocketAddr, journal: Journal) {
    let caller = Caller::to(listen, "orders").await;
    let writers = (0..12usize).map(|index| {
        let (caller, journal) = (caller.clone(), journal.clone());
        async move {
            let key = format!("number-{index}");
            loop {
                let (acknowledged, sent) = journal.borrow()[index];
                let next = sent + 1;
                journal.borrow_mut()[index].1 = next;
                let text = next.to_string();
                let outcome = if index % 3 == 2 {
                    let before = acknowledged.to_string();
                    let expected = (acknowledged > 0).then_some(before.as_bytes());
                    let swap = caller.swap_request(&key, expected, text.as_bytes());
                    caller.try_swap(&[], &swap).await.map(|(answer, _)| {
                        let found = number(answer.current.as_ref().map(|entry| &entry.value[..]));
                        // One of the earlier attempts, whose outcome was not heard, may have taken effect.
                        let may_be = (acknowledged..=sent).contains(&found);
                        assert!(answer.swapped || may_be, "{key}: {found}, {acknowledged}");
                        if answer.swapped { next } else { found }
                    })
                } else {
                    let set = caller.set_request(&key, text.as_bytes());
                    caller.try_set(&[], &set).await.map(|_| next)
                };
                match outcome {
                    Ok(now) => journal.borrow_mut()[index].0 = now,
                    Err(refusal) if refusal.reason.is_empty() => return,
                    Err(_) => rt::sleep(Duration::from_millis(2)).await,
                }
            }
        }
    });
    harness::together(writers).await;
}

/// Holds the journal against what is read through the server, and settles what was open.
async fn compare(listen: std::net::SocketAddr, journal: Journal) {
    let caller = Caller::to(listen, "orders").await;
    for index in 0..12 {
        let key = format!("number-{index}");
        let until = Instant::now() + PATIENCE;
        let found = loop {
            match caller.try_get(&[], &key).await {
                Ok((answer, _)) => {
                    break number(answer.entry.as_ref().map(|entry| &entry.value[..]));
                }
                Err(refusal) => assert!(Instant::now() < until, "{refusal:?}"),
            }
            rt::sleep(Duration::from_millis(5)).await;
        };
        let (acknowledged, sent) = journal.borrow()[index];
        assert!(
            (acknowledged..=sent).contains(&found),
            "{key} holds {found}, acknowledged {acknowledged}, sent {sent}"
        );
        journal.borrow_mut()[index] = (found, found);
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_either_side_is_killed_under_load() {
    let rounds: u64 = match std::env::var("PRISM_KILL_ROUNDS") {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => 9,
    };
    let mut redis = OwnRedis::start(&[]);
    let directory = directory();
    // Small segments and many snapshots, so that the log is trimmed behind what Redis has confirmed.
    let options = "wal: {segment_bytes: 20MiB, bytes_max: 400MiB}\n\
                   memory: {snapshot_bytes: 1MiB, snapshot_interval: 1s}\n";
    let setup = serve(directory.path()).config(&format!(
        "{options}backends:\n  - {{name: cache, type: redis, address: \"{}\"}}\nnamespaces:\n  \
         - {{name: orders, client_api: keyvalue, backend: cache, durability: wal}}\n",
        redis.address
    ));
    let mut known = [(0, 0); 12];
    for round in 0..rounds {
        let server = setup.start();
        let (listen, id) = (server.listen, server.id());
        // It lives for an eighth to half a second under load, the same in every run.
        let life = Duration::from_millis(125 + round * 97 % 375);
        let killer = std::thread::spawn({
            let (redis_id, with_redis) = (redis.id(), round % 3 == 1);
            move || {
                std::thread::sleep(life / 2);
                if with_redis {
                    harness::signal(redis_id, "KILL");
                }
                std::thread::sleep(life / 2);
                harness::signal(id, "KILL");
            }
        });
        known = run(async move {
            let journal = Journal::new(std::cell::RefCell::new(known));
            load(listen, journal.clone()).await;
            journal.take()
        });
        killer.join().unwrap();
        server.kill();
        if round % 3 == 1 {
            redis.kill();
            redis.restart();
        }
        let server = setup.start();
        let listen = server.listen;
        known = run(async move {
            let journal = Journal::new(std::cell::RefCell::new(known));
            compare(listen, journal.clone()).await;
            journal.take()
        });
        server.kill();
    }
    let server = setup.start();
    drained(&server);
    for (index, (acknowledged, _)) in known.iter().enumerate() {
        let stored = redis.cli(&["GET", &format!("orders:number-{index}")]);
        assert_eq!(number(Some(stored.as_bytes())), *acknowledged);
    }
    let all: u64 = known.iter().map(|(acknowledged, _)| acknowledged).sum();
    assert!(all > 50 * rounds, "there was load: {known:?}");
    server.stop();
}

/// A deadline is the caller's: what is in the log goes on to the backend, whoever still waits.
#[test]
fn a_deadline_stops_nothing_that_is_logged() {
    let redis = OwnRedis::start(&[]);
    let proxy = Proxy::to(redis.address);
    let directory = directory();
    let server = setup(directory.path(), proxy.address, "").start();
    drained(&server);
    proxy.set_silent(true);
    let mut raw = Raw::open(&server);
    let in_time = [("grpc-timeout", "300m")];
    // Only Redis can answer a swap, and it is silent.
    let swap = kv::CompareAndSwapRequest {
        namespace: "orders".into(),
        key: "logged".into(),
        expected: Some(kv::compare_and_swap_request::Expected::ExpectedAbsent(())),
        value: b"value".to_vec().into(),
        ..Default::default()
    };
    raw.call(1, Method::KEYVALUE_COMPARE_AND_SWAP.path(), &in_time, &swap.encode_to_vec());
    assert_eq!(raw.end_of(1), End::Status("4".into()));
    assert_eq!(raw.reason(), "OUTCOME_PENDING");
    proxy.set_silent(false);
    drained(&server);
    assert_eq!(redis.cli(&["GET", "orders:logged"]), "value");
    server.stop();
}
