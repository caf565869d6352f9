//! Starts that are refused, each with its exit code and a word on what to do; and what looks alike but is no reason to refuse.

mod harness;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use harness::mounts::RamDisk;
use harness::{Caller, PATIENCE, directory, prism, run, serve};
use prism_wal::RecordKind;
use prism_wal::format::{BATCH_HEADER_BYTES, BatchHeader};

/// Pages of the log: a batch begins on one.
const PAGE: u64 = 4096;

#[test]
fn a_data_directory_in_use_is_refused_and_its_user_is_not_disturbed() {
    let directory = directory();
    let server = serve(directory.path()).start();
    let (code, errors) = serve(directory.path()).refused();
    assert_eq!(code, 73, "{errors}");
    let process = format!("in use by process {}", server.id());
    assert!(errors.contains(&process) && errors.contains("choose another"), "{errors}");
    let data = server.data.to_str().unwrap().to_owned();
    let (code, _, errors) = prism(&["wal", "verify", "--data-dir", &data]);
    assert_eq!(code, 73, "{errors}");
    let listen = server.listen;
    run(async move {
        Caller::to(listen, "keyvalue").await.set("key", b"value").await;
    });
    server.stop();
}

#[test]
fn a_data_directory_that_cannot_be_written_is_refused() {
    let directory = directory();
    let file = directory.path().join("data");
    fs::write(&file, "not a directory").unwrap();
    let below = file.join("below");
    for path in [&file, &below, Path::new("/proc/prism-data"), Path::new("/dev/null/prism")] {
        let (code, errors) = serve(directory.path()).data(path).refused();
        assert_eq!(code, 73, "{}: {errors}", path.display());
        let plain = errors.lines().find(|line| line.starts_with("prism: ")).unwrap_or_default();
        assert!(plain.contains("/") && !plain.contains("Os {"), "{errors}");
    }
    assert_eq!(fs::read_to_string(file).unwrap(), "not a directory");
}

#[test]
fn a_port_in_use_is_refused() {
    let directory = directory();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--listen", "--admin"] {
        let (code, errors) = serve(directory.path()).flag(flag, &address).refused();
        assert_eq!(code, 69, "{errors}");
        assert!(errors.contains(&address) && errors.contains(flag), "{errors}");
    }
    // Also that of another Prism, whose port several sockets share.
    let server = serve(directory.path()).start();
    let other = harness::directory();
    let address = server.listen.to_string();
    let (code, errors) = serve(other.path()).flag("--listen", &address).refused();
    assert_eq!(code, 69, "{errors}");
    server.stop();
}

#[test]
fn a_configuration_that_is_wrong_is_refused_with_its_place() {
    let directory = directory();
    let cases = [
        (
            "lisen: 127.0.0.1:7400\n",
            "prism.yaml:1:1: unknown key `lisen`",
            "did you mean `listen`?",
        ),
        ("shards: 1\nwal:\n  segment_bytes: 3KiB\n", "prism.yaml:3:18:", "write a size from"),
        ("namespaces:\n  - {name: A, client_api: keyvalue}\n", "prism.yaml:2:12:", "lower-case"),
        ("namespaces: [\n", "prism.yaml:", ""),
        ("limits: {streams: 0}\n", "prism.yaml:1:19:", "write a whole number"),
    ];
    for (text, place, remedy) in cases {
        let (code, errors) = serve(directory.path()).config(text).refused();
        assert_eq!(code, 78, "{text}: {errors}");
        assert!(errors.contains(place) && errors.contains(remedy), "{text}: {errors}");
    }
    assert!(!directory.path().join("data").exists(), "nothing was made");
    let missing = directory.path().join("missing.yaml");
    let (code, _, errors) = prism(&["serve", "--config", missing.to_str().unwrap()]);
    assert_eq!(code, 78, "{errors}");
    assert!(errors.contains("missing.yaml"), "{errors}");
}

#[test]
fn a_file_system_without_o_direct_is_used_with_a_warning_or_refused() {
    let Some(disk) = RamDisk::new() else { return };
    let setup = |direct: &str| {
        serve(&disk.path).config(&format!("wal: {{segment_bytes: 20MiB, direct: {direct}}}\n"))
    };
    let (code, errors) = setup("required").refused();
    assert_eq!(code, 73, "{errors}");
    assert!(errors.contains("O_DIRECT") && errors.contains("ext4"), "{errors}");
    for direct in ["preferred", "off"] {
        let server = setup(direct).start();
        assert!(server.screen.contains("through the page cache"), "{}", server.screen);
        server.wait_says("O_DIRECT");
        let listen = server.listen;
        run(async move {
            let caller = Caller::to(listen, "keyvalue").await;
            caller.set("key", b"value").await;
        });
        server.kill();
    }
    let server = setup("preferred").start();
    let listen = server.listen;
    run(async move {
        assert!(Caller::to(listen, "keyvalue").await.get("key").await.is_some());
    });
    server.stop();
}

#[test]
fn a_log_through_the_page_cache_serves_where_it_is_asked_for() {
    let directory = directory();
    let setup = || serve(directory.path()).config("wal: {segment_bytes: 20MiB, direct: off}\n");
    let server = setup().start();
    assert!(server.screen.contains("through the page cache"), "{}", server.screen);
    let listen = server.listen;
    run(async move {
        Caller::to(listen, "keyvalue").await.set("key", b"value").await;
    });
    server.kill();
    let server = setup().start();
    let listen = server.listen;
    run(async move {
        assert!(Caller::to(listen, "keyvalue").await.get("key").await.is_some());
    });
    server.stop();
}

const KEYS: u64 = 20;

/// A data directory whose server was killed after so many acknowledged writes of a batch each, with its segment.
fn killed(path: &Path) -> PathBuf {
    let server = serve(path).start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        for key in 0..KEYS {
            caller.set(&format!("key-{key}"), format!("value-{key}").as_bytes()).await;
        }
    });
    let segment = server.data.join("shard-000/wal/segment-00000000.wal");
    // The log is idle now, and soon a seal proves the last write.
    let end = Instant::now() + PATIENCE;
    while batches(&segment).last().is_none_or(|(_, kind)| *kind != RecordKind::Seal as u8) {
        assert!(Instant::now() < end, "no seal");
        std::thread::yield_now();
    }
    server.kill();
    segment
}

/// Where the batches of a segment begin, and of which kind the first record of each is.
fn batches(segment: &Path) -> Vec<(u64, u8)> {
    let file = fs::File::open(segment).unwrap();
    let (mut found, mut offset) = (Vec::new(), 0);
    loop {
        let mut page = [0; PAGE as usize];
        file.read_exact_at(&mut page, offset).unwrap();
        let Ok((header, _)) = BatchHeader::decode(&page[..BATCH_HEADER_BYTES]) else {
            return found;
        };
        found.push((offset, page[BATCH_HEADER_BYTES + 4]));
        offset += header.padded_bytes() as u64;
    }
}

fn flip(file: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

/// The offset of the first batch that holds `text`.
fn batch_with(segment: &Path, text: &[u8]) -> u64 {
    let bytes = fs::read(segment).unwrap();
    let found = bytes.windows(text.len()).position(|window| window == text).expect("it is there");
    found as u64 / PAGE * PAGE
}

#[test]
fn a_flipped_byte_in_acknowledged_data_refuses_the_start_until_it_is_repaired() {
    let directory = directory();
    let segment = killed(directory.path());
    let damaged = batch_with(&segment, b"value-7");
    flip(&segment, damaged + 150);
    let before = fs::read(&segment).unwrap();
    let (code, errors) = serve(directory.path()).refused();
    assert_eq!(code, 65, "{errors}");
    let place = format!("segment-00000000.wal at offset {damaged}");
    for part in [place.as_str(), "LSN", "prism wal verify", "prism wal repair"] {
        assert!(errors.contains(part), "{part}: {errors}");
    }
    assert!(fs::read(&segment).unwrap() == before, "a refusal changes nothing");

    let data = directory.path().join("data");
    let data = data.to_str().unwrap();
    let (code, text, errors) = prism(&["wal", "verify", "--data-dir", data]);
    assert_eq!(code, 65, "{text}{errors}");
    assert!((text + &errors).contains(&damaged.to_string()));
    let (code, text, errors) = prism(&["wal", "repair", "--yes", "--data-dir", data]);
    assert_eq!(code, 0, "{text}{errors}");
    let server = serve(directory.path()).start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        for key in 0..KEYS {
            let value = caller.get(&format!("key-{key}")).await;
            let expected = format!("value-{key}").into_bytes();
            // What comes before the damage is kept; nothing but what was written is ever read.
            assert!(if key < 7 {
                value == Some(expected)
            } else {
                value.is_none_or(|value| value == expected)
            });
        }
        caller.set("after", b"repair").await;
    });
    server.stop();
}

#[test]
fn a_torn_tail_is_cut_and_the_server_starts() {
    let directory = directory();
    let segment = killed(directory.path());
    // The last batch is a seal, of which nobody was told: torn, it is as if it had never been written.
    let (last, _) = *batches(&segment).last().unwrap();
    flip(&segment, last + 20);
    let server = serve(directory.path()).start();
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "keyvalue").await;
        for key in 0..KEYS {
            let value = caller.get(&format!("key-{key}")).await;
            assert_eq!(value, Some(format!("value-{key}").into_bytes()));
        }
    });
    server.stop();
}

#[test]
fn a_damaged_registry_is_refused() {
    let directory = directory();
    let server = serve(directory.path()).start();
    server.stop();
    fs::write(directory.path().join("data/registry.json"), "{\"format\": 1").unwrap();
    let (code, errors) = serve(directory.path()).refused();
    assert_eq!(code, 65, "{errors}");
    assert!(errors.contains("registry.json") && errors.contains("backup"), "{errors}");
}
