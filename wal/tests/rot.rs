//! Damage at rest: every bit, page and file of a log changed. Either it is noticed, or nothing of what was acknowledged is
//! missing and nothing else appears.

mod model;

use model::{Promises, Running, small};
use prism_io::disk::sim::{Seeded, Simulation};
use prism_wal::format::{BATCH_HEADER_BYTES, BatchHeader, segment_name};
use prism_wal::{LogConfig, RecoverError};

const PAGE: usize = 4096;
const START_US: u64 = 1_700_000_000_000_000;

/// A log whose every acknowledged record is proven: `calls` batches and a seal; then the power goes.
fn sealed(config: &LogConfig, calls: usize, trim_behind: Option<u64>) -> (Simulation, Promises) {
    let disk = Simulation::new(START_US);
    let mut random = Seeded::new(calls as u64);
    let mut running = Running::open(&disk, config, Promises::default(), &mut random).ok().unwrap();
    let mut last = 0;
    for call in 0..calls {
        last =
            running.append((call % 2) as u32, &vec![call as u8; 30 + (call * 700) % 3500]).unwrap();
        running.submit();
        running.complete(0);
        if let Some(behind) = trim_behind.filter(|behind| last > *behind) {
            running.trim(last - behind).unwrap();
            while !running.pending.is_empty() {
                running.complete(0);
                running.submit();
            }
        }
    }
    running.settle();
    disk.cut_power();
    model::power_on(&disk, &mut random);
    // Seals are promised to nobody.
    running.promises.durable_upto = last;
    (disk, running.promises)
}

/// Whether the damage was noticed; if not, everything must be there.
fn noticed(disk: &Simulation, config: &LogConfig, promises: &Promises) -> bool {
    match promises.clone().recover(disk, config) {
        Ok(_) => false,
        Err(RecoverError::Read { .. }) => panic!("nothing is unreadable"),
        Err(_) => true,
    }
}

fn segment_files(disk: &Simulation) -> Vec<String> {
    (0..20).map(segment_name).filter(|name| disk.bytes(name).is_some()).collect()
}

#[test]
fn every_bit_of_a_segment_flipped() {
    let config = LogConfig { segment_bytes: 48 << 10, ..small() };
    let (disk, promises) = sealed(&config, 3, None);
    let name = segment_name(0);
    let bytes = disk.bytes(&name).unwrap();
    let mut offset = 0;
    let mut batches = Vec::new();
    while let Ok((header, _)) = BatchHeader::decode(&bytes[offset..offset + BATCH_HEADER_BYTES]) {
        batches.push((offset, header.bytes as usize, header.padded_bytes()));
        offset += header.padded_bytes();
    }
    assert_eq!(batches.len(), 5, "open, three calls, seal");
    for (index, (start, used, padded)) in batches.iter().enumerate() {
        let is_seal = index + 1 == batches.len();
        // Of the zeros at the end every bit would tell the same; one in each few bytes is enough.
        let content = (0..used * 8).step_by(if *used > 1000 { 11 } else { 1 });
        for bit in content.chain((used * 8..padded * 8).step_by(1009)) {
            let fork = disk.fork();
            fork.change(&name, |bytes| bytes[start + bit / 8] ^= 1 << (bit % 8));
            let noticed = noticed(&fork, &config, &promises);
            assert!(
                noticed || is_seal,
                "batch {index}, bit {bit} of an acknowledged batch went unnoticed"
            );
        }
    }
    for bit in (offset * 8..bytes.len() * 8).step_by(4099) {
        let fork = disk.fork();
        fork.change(&name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
        assert!(!noticed(&fork, &config, &promises), "bit {bit} behind the end means nothing");
    }
}

#[test]
fn every_page_zeroed_or_swapped() {
    let config = small();
    let (disk, promises) = sealed(&config, 40, None);
    let files = segment_files(&disk);
    let mut caught = 0;
    for name in &files {
        for page in 0..16 {
            let fork = disk.fork();
            let mut was_zero = true;
            fork.change(name, |bytes| {
                let page = &mut bytes[page * PAGE..][..PAGE];
                was_zero = page.iter().all(|&byte| byte == 0);
                page.fill(0);
            });
            let noticed = noticed(&fork, &config, &promises);
            assert!(!(was_zero && noticed), "{name}, page {page}");
            caught += usize::from(noticed);
            for other in page + 1..16 {
                let fork = disk.fork();
                fork.change(name, |bytes| {
                    let (low, high) = bytes.split_at_mut(other * PAGE);
                    low[page * PAGE..][..PAGE].swap_with_slice(&mut high[..PAGE]);
                });
                self::noticed(&fork, &config, &promises);
            }
        }
    }
    assert!(caught > 40, "{caught} of the zeroed pages were noticed");
}

#[test]
fn every_segment_cut_short_or_taken_away() {
    let config = small();
    let (disk, promises) = sealed(&config, 30, None);
    for name in segment_files(&disk) {
        for length in (0..64 << 10).step_by(PAGE / 2) {
            let fork = disk.fork();
            fork.change(&name, |bytes| bytes.truncate(length));
            noticed(&fork, &config, &promises);
        }
    }
    for name in segment_files(&disk) {
        let mut fork = disk.fork();
        prism_io::disk::Storage::remove(&mut fork, &name).unwrap();
        noticed(&fork, &config, &promises);
    }
}

#[test]
fn names_of_segment_files_mean_nothing() {
    let config = small();
    let (disk, promises) = sealed(&config, 30, None);
    let files = segment_files(&disk);
    for one in &files {
        for other in &files {
            let fork = disk.fork();
            let (a, b) = (fork.bytes(one).unwrap(), fork.bytes(other).unwrap());
            fork.change(one, |bytes| *bytes = b);
            fork.change(other, |bytes| *bytes = a);
            assert!(!noticed(&fork, &config, &promises), "{one} and {other} exchanged");
        }
    }
}

#[test]
fn stale_pages_of_recycled_segments() {
    let config = small();
    // What the files held one round before.
    let (old, _) = sealed(&config, 60, Some(12));
    let (disk, promises) = sealed(&config, 90, Some(12));
    // The seeds differ, and so do the nonces; stale pages of the same epoch come from the same run, stopped earlier.
    for name in segment_files(&disk) {
        for page in 0..16 {
            let fork = disk.fork();
            let stale = old.bytes(&name).unwrap()[page * PAGE..][..PAGE].to_vec();
            fork.change(&name, |bytes| bytes[page * PAGE..][..PAGE].copy_from_slice(&stale));
            noticed(&fork, &config, &promises);
        }
    }
    let disk = Simulation::new(START_US);
    let mut random = Seeded::new(5);
    let mut running = Running::open(&disk, &config, Promises::default(), &mut random).ok().unwrap();
    let mut snapshots = Vec::new();
    let mut last = 0;
    for call in 0..120 {
        last = running.append(1, &[call; 2500]).unwrap();
        running.settle();
        if last > 20 {
            running.trim(last - 20).unwrap();
            running.settle();
        }
        if call % 10 == 0 {
            snapshots.push(disk.fork());
        }
    }
    assert!(running.log.status().counters.recycled > 5);
    running.promises.durable_upto = last;
    disk.cut_power();
    model::power_on(&disk, &mut random);
    for (index, snapshot) in snapshots.iter().enumerate() {
        for name in segment_files(snapshot) {
            for page in 0..16 {
                let fork = disk.fork();
                let stale = snapshot.bytes(&name).unwrap()[page * PAGE..][..PAGE].to_vec();
                fork.change(&name, |bytes| bytes[page * PAGE..][..PAGE].copy_from_slice(&stale));
                eprintln!("snapshot {index}, {name}, page {page}");
                noticed(&fork, &config, &running.promises);
            }
        }
    }
}

#[test]
fn losing_the_checkpoint_slots_loses_nothing() {
    let config = small();
    let (disk, promises) = sealed(&config, 30, Some(9));
    let slots = disk.bytes("checkpoint.wal").unwrap();
    for bit in (0..slots.len() * 8).step_by(61) {
        let fork = disk.fork();
        fork.change("checkpoint.wal", |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
        assert!(!noticed(&fork, &config, &promises), "bit {bit}");
    }
    let mut fork = disk.fork();
    fork.change("checkpoint.wal", |bytes| bytes.fill(0));
    assert!(!noticed(&fork, &config, &promises));
    prism_io::disk::Storage::remove(&mut fork, "checkpoint.wal").unwrap();
    assert!(!noticed(&fork, &config, &promises));
    let recovered = promises.clone().recover(&fork, &config).unwrap();
    assert_eq!(
        recovered.checkpoint_data,
        promises.trim_upto.to_le_bytes(),
        "the data is in the log as well"
    );
}
