//! A log directory with arbitrary contents: recovery, inspection and repair answer, and never panic.
//!
//! The first byte chooses between raw segment bytes and a real log with bytes changed; in the latter case checksums may
//! be made right again, so that what lies behind them is reached too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prism_fuzz as _;
use prism_io::disk::Storage;
use prism_io::disk::sim::Simulation;
use prism_wal::driver::{execute, start};
use prism_wal::format::{BATCH_HEADER_BYTES, BatchHeader, body_crc, seed, segment_name};
use prism_wal::inspect::inspect;
use prism_wal::repair::repair;
use prism_wal::{Lane, LogConfig, RecordHead, recover};

const PAGE: usize = 4096;

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 64 << 10,
        segments_max: 6,
        segments_ready: 2,
        batch_bytes: 8 << 10,
        record_bytes_max: 4 << 10,
        gather_bytes_max: 32 << 10,
        checkpoint_bytes_max: 256,
        lanes_max: 8,
        ..LogConfig::default()
    }
}

/// A log with a few batches in two epochs.
fn written(config: &LogConfig) -> Simulation {
    let mut disk = Simulation::new(0);
    for epoch in 1..3u8 {
        let recovered =
            recover(&mut disk, config, &mut |_: &prism_wal::Record<'_>| {}).expect("a sound log");
        let mut log = start(&mut disk, recovered, config.clone(), [epoch; 16], 0).expect("room");
        for call in 0..4u8 {
            let lane = Lane { namespace: u32::from(call % 2), partition: 0 };
            let head = RecordHead { lane, idempotency_key: b"key", ..RecordHead::default() };
            log.append(0, &head, &[call; 200]).expect("room");
            while let Some(operation) = log.poll_operation(0) {
                let (token, result) = execute(&mut disk, &operation);
                log.handle_completion(token, result, 0);
            }
        }
    }
    disk
}

/// Makes the checksums of everything that still looks like a batch right.
fn correct(bytes: &mut [u8]) {
    let mut offset = 0;
    while offset + PAGE <= bytes.len() {
        let nonce = bytes[offset + 16..offset + 32].try_into().expect("sixteen bytes");
        let length =
            u32::from_le_bytes(bytes[offset + 84..offset + 88].try_into().expect("four bytes"))
                as usize;
        if let Some(body) = bytes[offset..].get(BATCH_HEADER_BYTES..length) {
            let crc = body_crc(seed(&nonce), body);
            bytes[offset + 88..offset + 92].copy_from_slice(&crc.to_le_bytes());
        }
        let header = &bytes[offset..offset + BATCH_HEADER_BYTES];
        let crc = crc32c::crc32c_append(seed(&nonce), &header[..12]);
        let crc = crc32c::crc32c_append(crc, &header[16..]);
        bytes[offset + 12..offset + 16].copy_from_slice(&crc.to_le_bytes());
        let taken =
            BatchHeader::decode(&bytes[offset..]).map_or(PAGE, |(header, _)| header.padded_bytes());
        offset += taken.max(PAGE);
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&mode, input)) = input.split_first() else { return };
    let config = config();
    let mut disk = if mode & 1 == 0 { Simulation::new(0) } else { written(&config) };
    if mode & 1 == 0 {
        for (number, part) in input.chunks(16 << 10).take(3).enumerate() {
            let name = if number == 2 {
                "checkpoint.wal".to_string()
            } else {
                segment_name(number as u32)
            };
            disk.create_zeroed(&name, config.segment_bytes).expect("room");
            disk.change(&name, |bytes| bytes[..part.len()].copy_from_slice(part));
        }
    } else {
        for patch in input.chunks_exact(4) {
            let name = match patch[0] % 3 {
                0 => "checkpoint.wal".to_string(),
                number => segment_name(u32::from(number) - 1),
            };
            let offset = usize::from(patch[1]) << 8 | usize::from(patch[2]);
            if disk.bytes(&name).is_some_and(|bytes| bytes.len() > offset) {
                disk.change(&name, |bytes| bytes[offset] = patch[3]);
            }
        }
        if mode & 2 != 0 {
            for number in 0..2 {
                if disk.bytes(&segment_name(number)).is_some() {
                    disk.change(&segment_name(number), |bytes| correct(bytes));
                }
            }
        }
    }
    let found = recover(&mut disk, &config, &mut |_: &prism_wal::Record<'_>| {});
    let _ = inspect(&mut disk, &config, &mut |item| drop(item.to_string()));
    let repaired = repair(&mut disk, &config, [9; 16], 0);
    // With forged checksums a log may contradict itself; then it is enough that nothing panics.
    let honest = mode & 3 != 3;
    match repaired {
        Ok(report) if honest => {
            assert_eq!(
                report.refusals.is_empty(),
                found.is_ok(),
                "a repair does what recovery refused"
            );
            recover(&mut disk, &config, &mut |_: &prism_wal::Record<'_>| {})
                .expect("a repaired log is accepted");
        }
        Ok(_) => drop(recover(&mut disk, &config, &mut |_: &prism_wal::Record<'_>| {})),
        Err(_) => assert!(found.is_err(), "what is accepted needs no repair"),
    }
});
