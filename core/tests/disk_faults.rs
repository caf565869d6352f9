//! Disks that are full or gone, on a file system of their own (loop device and ext4, where the machine allows it).

mod harness;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::rc::Rc;

use harness::mounts::LoopDisk;
use harness::{Caller, Server, run, serve, together};
use prism_io::grpc::Code;
use prism_io::rt;

/// A log that the disk bounds, not the configuration, and that nothing trims.
const UNBOUNDED: &str = "
wal: {segment_bytes: 20MiB, bytes_max: 4GiB}
memory: {snapshot_bytes: 1GiB, snapshot_interval: 1h}
";

fn holds(server: &Server, expected: &Rc<BTreeMap<String, Vec<u8>>>) {
    let (listen, expected) = (server.listen, expected.as_ref().clone());
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        for (key, value) in expected {
            assert!(caller.get(&key).await == Some(value), "{key}");
        }
    });
}

#[test]
fn a_full_disk_refuses_writes_and_recovers_by_itself() {
    let Some(disk) = LoopDisk::new(240) else { return };
    let ballast = disk.path.join("ballast");
    fs::write(&ballast, vec![0xb; 60 << 20]).unwrap();
    let setup = || serve(&disk.path).config(UNBOUNDED);
    let server = setup().start();
    let listen = server.listen;
    let written = run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        let mut written = BTreeMap::new();
        // Each is half a megabyte; the disk has room for some hundreds of them.
        let value = |number: usize| vec![number as u8; 512 << 10];
        let mut refusal = None;
        for number in 0..600 {
            let key = format!("key-{}", number % 50);
            match caller.try_set(&[], &caller.set_request(&key, &value(number))).await {
                Ok(_) => drop(written.insert(key, value(number))),
                // The disk is behind, not full yet.
                Err(refused) if refused.reason == "WAL_BUSY" => {
                    rt::sleep(refused.retry.expect("after which time to try again")).await;
                }
                Err(refused) => {
                    refusal = Some(refused);
                    break;
                }
            }
        }
        let refusal = refusal.expect("the disk is full by now");
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::ResourceExhausted, "WAL_FULL"));
        let retry = refusal.retry.expect("after which time to try again");
        for (key, value) in &written {
            assert!(caller.get(key).await.as_ref() == Some(value), "reads go on: {key}");
        }
        // On a slow machine a snapshot may have made room by now.
        match caller.try_set(&[], &caller.set_request("still", &value(0))).await {
            Ok(_) => drop(written.insert("still".to_owned(), value(0))),
            Err(refused) => {
                assert!(refused.is_for_want_of_log(), "{refused:?}");
                assert_eq!(caller.get("still").await, None, "a refused write has no effect");
            }
        }

        fs::remove_file(&ballast).unwrap();
        let recovered = async {
            // As the refusal says: try again after that time.
            while caller.try_set(&[], &caller.set_request("after", &value(1))).await.is_err() {
                rt::sleep(retry).await;
            }
        };
        rt::timeout(harness::PATIENCE, recovered).await.expect("it recovers by itself");
        written.insert("after".to_owned(), value(1));
        written
    });
    assert!(server.metric("prism_wal_refused_full_total") >= 1.0);
    server.assert_well();
    server.kill();
    let server = setup().start();
    holds(&server, &Rc::new(written));
    server.stop();
}

#[test]
fn after_a_failed_write_nothing_is_acknowledged_and_a_new_start_recovers() {
    let Some(mut disk) = LoopDisk::new(240) else { return };
    let path = disk.path.clone();
    let setup = || serve(&path).shards(2).config(UNBOUNDED);
    let server = setup().start();
    let listen = server.listen;
    let broken = Rc::new(RefCell::new(false));
    // Eight writers; after the disk has gone, none of them hears "done" for a write that was sent then.
    let (acknowledged, sent, failures) = run({
        let (disk_path, broken) = (disk.path.clone(), broken.clone());
        async move {
            let writers = (0..8_u64).map(|writer| {
                let (disk_path, broken) = (disk_path.clone(), broken.clone());
                async move {
                    let caller = Caller::to(listen, "keyvalue").await;
                    let key = format!("key-{writer}");
                    for number in 1_u64.. {
                        let was_broken = *broken.borrow();
                        let request = caller.set_request(&key, &number.to_le_bytes());
                        match caller.try_set(&[], &request).await {
                            Ok(_) => assert!(!was_broken, "acknowledged without a disk"),
                            Err(refusal) => return (key, number - 1, number, refusal),
                        }
                        if writer == 0 && number == 50 {
                            harness::mounts::shut_down(&disk_path);
                            *broken.borrow_mut() = true;
                        }
                    }
                    unreachable!("it ends with a failure")
                }
            });
            let (mut acknowledged, mut sent, mut failures) =
                (BTreeMap::new(), BTreeMap::new(), Vec::new());
            for (key, last, under_way, refusal) in together(writers).await {
                acknowledged.insert(key.clone(), last);
                sent.insert(key, under_way);
                failures.push(refusal);
            }
            (acknowledged, sent, failures)
        }
    });
    for failure in &failures {
        assert_eq!(failure.code, Code::Unavailable, "{failure:?}");
    }
    let told = failures.iter().filter(|failure| failure.reason == "WAL_FAILED").count();
    assert!(told > 0, "somebody is told why: {failures:?}");
    let (code, errors) = server.wait_end();
    assert_eq!(code, 74, "{errors}");
    assert!(errors.contains("check the disk"), "{errors}");

    disk.unmount().unwrap();
    disk.mount().unwrap();
    let server = setup().start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        for (key, last) in acknowledged {
            let value = caller.get(&key).await.expect("it was acknowledged");
            let number = u64::from_le_bytes(value.try_into().unwrap());
            assert!((last..=sent[&key]).contains(&number), "{key}: {number}, acknowledged {last}");
        }
        caller.set("after", b"recovery").await;
    });
    server.stop();
}

/// Takes all the room that is left.
fn fill_up(disk: &LoopDisk) {
    let piece = |number: usize| disk.path.join(format!("ballast-{number}"));
    let full = (0..1000).find(|number| fs::write(piece(*number), vec![0xb; 1 << 20]).is_err());
    assert!(full.is_some(), "the disk is full");
}

#[test]
fn a_first_start_on_a_full_disk_is_refused() {
    let Some(disk) = LoopDisk::new(64) else { return };
    fill_up(&disk);
    let (code, errors) = serve(&disk.path).config(UNBOUNDED).refused();
    assert_eq!(code, 73, "{errors}");
    assert!(errors.to_lowercase().contains("space"), "{errors}");
}

#[test]
fn a_full_disk_does_not_stop_a_restart() {
    let Some(disk) = LoopDisk::new(140) else { return };
    let setup = || serve(&disk.path).config(UNBOUNDED);
    let server = setup().start();
    let listen = server.listen;
    run(async move {
        Caller::to(listen, "keyvalue").await.set("key", b"value").await;
    });
    // The segments that are held ready are made beside the first calls.
    server.wait_for_metric("prism_wal_segments_reserve", |ready| ready >= 3.0);
    fill_up(&disk);
    server.kill();
    let server = setup().start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        assert!(caller.get("key").await.is_some(), "what was acknowledged can be read");
        caller.set("another", b"value").await;
    });
    server.assert_well();
}

#[test]
fn a_snapshot_without_room_fails_alone_and_succeeds_later() {
    let Some(disk) = LoopDisk::new(240) else { return };
    let config = "
wal: {segment_bytes: 20MiB, bytes_max: 120MiB}
memory: {snapshot_bytes: 8MiB, snapshot_interval: 1s}
";
    let server = serve(&disk.path).config(config).start();
    server.wait_for_metric("prism_wal_segments_reserve", |ready| ready >= 3.0);
    fill_up(&disk);
    let (listen, path) = (server.listen, disk.path.clone());
    let value = |number: usize| vec![number as u8; 512 << 10];
    let (server, written) = run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        let (mut written, mut freed) = (BTreeMap::new(), false);
        let work = async {
            // Three times what the log may hold: without snapshots it cannot be trimmed.
            for number in 0..700 {
                let key = format!("key-{}", number % 20);
                let request = caller.set_request(&key, &value(number));
                while let Err(refusal) = caller.try_set(&[], &request).await {
                    assert!(refusal.is_for_want_of_log(), "{refusal:?}");
                    let failed = server.metric("prism_memstore_snapshots_failed_total") >= 1.0;
                    if failed && !std::mem::replace(&mut freed, true) {
                        (0..1000).for_each(|piece| {
                            drop(fs::remove_file(path.join(format!("ballast-{piece}"))));
                        });
                    }
                    rt::sleep(refusal.retry.expect("after which time to try again")).await;
                }
                written.insert(key, value(number));
            }
        };
        rt::timeout(harness::PATIENCE, work).await.expect("it recovers by itself");
        assert!(freed, "the log was full for want of a snapshot");
        (server, written)
    });
    assert!(server.metric("prism_memstore_snapshots_failed_total") >= 1.0);
    assert!(server.metric("prism_memstore_snapshots_total") >= 2.0);
    server.kill();
    let server = serve(&disk.path).config(config).start();
    holds(&server, &Rc::new(written));
    server.stop();
}
