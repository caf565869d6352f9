//! The recovery table of the log's design, row by row.

mod model;

use model::{Promises, Running, head, nonce, small};
use prism_io::disk::Storage;
use prism_io::disk::sim::{Fault, SectorFate, Seeded, Simulation};
use prism_wal::driver::start;
use prism_wal::format::segment_name;
use prism_wal::repair::repair;
use prism_wal::{Damage, LogConfig, LsnRange, RecordHead, RecoverError, recover};

const PAGE: usize = 4096;

fn open(disk: &Simulation, config: &LogConfig, promises: Promises, seed: u64) -> Running {
    Running::open(disk, config, promises, &mut Seeded::new(seed)).ok().unwrap()
}

fn power_cycle(disk: &Simulation, fate: SectorFate) {
    disk.cut_power();
    disk.power_on(&mut || fate);
}

/// A log with `calls` acknowledged calls, one batch each, without a seal, whose process was killed.
fn written(config: &LogConfig, calls: usize) -> (Simulation, Promises) {
    let disk = Simulation::new(1_000_000);
    let mut running = open(&disk, config, Promises::default(), 77);
    for call in 0..calls {
        running.append(1, &[call as u8; 3000]).unwrap();
        running.submit();
        running.complete(0);
    }
    power_cycle(&disk, SectorFate::Lost);
    (disk, running.promises)
}

fn refusal(disk: &Simulation, config: &LogConfig) -> RecoverError {
    let operations = disk.operations();
    let error = recover(&mut disk.clone(), config, &mut |_: &prism_wal::Record<'_>| {})
        .expect_err("refused");
    assert_eq!(disk.operations(), operations, "a refusal touches nothing");
    error
}

fn damage(disk: &Simulation, config: &LogConfig) -> Damage {
    match refusal(disk, config) {
        RecoverError::Damaged(damage) => damage,
        error => panic!("{error}"),
    }
}

#[test]
fn unknown_format_version_is_refused() {
    let config = small();
    let (disk, _) = written(&config, 2);
    disk.change(&segment_name(0), |bytes| {
        bytes[8] = 2;
        let seed = crc32c::crc32c(&bytes[16..32]);
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed, &bytes[..12]), &bytes[16..128]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    });
    assert!(matches!(refusal(&disk, &config), RecoverError::UnknownVersion { version: 2, .. }));
}

#[test]
fn unknown_semantics_version_is_refused() {
    let config = small();
    let disk = Simulation::new(0);
    let mut running = open(&disk, &config, Promises::default(), 1);
    running.log.append(0, &RecordHead { semantics: 2, ..head(1) }, b"from the future").unwrap();
    running.submit();
    running.complete_any();
    power_cycle(&disk, SectorFate::Lost);
    assert!(matches!(
        refusal(&disk, &config),
        RecoverError::UnknownSemantics { lsn: 3, semantics: 2, .. }
    ));
}

#[test]
fn the_log_of_another_shard_is_refused() {
    let (disk, _) = written(&small(), 2);
    let other = LogConfig { shard: 1, ..small() };
    assert!(matches!(
        refusal(&disk, &other),
        RecoverError::OtherShard { found: 0, expected: 1, .. }
    ));
}

#[test]
fn a_read_error_is_never_taken_for_a_torn_tail() {
    let config = small();
    let (disk, _) = written(&config, 2);
    for name in [segment_name(0), "checkpoint.wal".to_string()] {
        disk.set_unreadable(&name, true);
        assert!(matches!(refusal(&disk, &config), RecoverError::Read { file, .. } if file == name));
        disk.set_unreadable(&name, false);
    }
}

#[test]
fn zero_or_stale_headers_make_spare_segments() {
    let config = small();
    let (mut disk, promises) = written(&config, 2);
    let mut running = open(&disk, &config, promises, 78);
    let trimmed = running.append(1, b"the first epoch is not needed any more").unwrap();
    running.settle();
    running.trim(trimmed - 1).unwrap();
    running.settle();
    power_cycle(&disk, SectorFate::Lost);
    disk.create_zeroed(&segment_name(8), config.segment_bytes).unwrap();
    disk.create_zeroed("segment-00000003.wal.new", 100).unwrap();
    let recovered = running.promises.recover(&disk, &config).unwrap();
    assert!(recovered.spare.contains(&0) && recovered.spare.contains(&8), "{recovered:?}");
    assert_eq!(recovered.useless, ["segment-00000003.wal.new"]);
}

#[test]
fn a_gap_in_the_sequence_is_refused() {
    let config = small();
    let (mut disk, _) = written(&config, 40);
    disk.remove(&segment_name(1)).unwrap();
    let error = refusal(&disk, &config);
    let RecoverError::Gap { lost, .. } = &error else { panic!("{error}") };
    assert_eq!(lost.first, 1, "{error}");
    assert!(error.to_string().contains("prism wal repair"));
}

#[test]
fn a_first_lsn_beyond_what_was_trimmed_is_refused() {
    let config = small();
    let (mut disk, _) = written(&config, 40);
    disk.remove(&segment_name(0)).unwrap();
    let RecoverError::Gap { lost, .. } = refusal(&disk, &config) else { panic!("a gap") };
    assert_eq!(lost.first, 1);
}

#[test]
fn damage_that_a_later_batch_proves_is_refused_with_file_offset_and_range() {
    let config = small();
    let (disk, _) = written(&config, 3);
    disk.change(&segment_name(0), |bytes| bytes[2 * PAGE + 500] ^= 1);
    let damage = damage(&disk, &config);
    assert_eq!((damage.file.as_str(), damage.offset), ("segment-00000000.wal", 2 * PAGE as u64));
    assert_eq!(damage.lost, LsnRange { first: 4, last: 4 });
    assert_eq!(damage.proof, "the batch at offset 12288 of segment-00000000.wal");
}

#[test]
fn damage_that_a_checkpoint_proves_is_refused() {
    let config = small();
    let disk = Simulation::new(0);
    let mut running = open(&disk, &config, Promises::default(), 3);
    running.append(1, b"call").unwrap();
    running.settle();
    running.trim(1).unwrap();
    running.settle();
    power_cycle(&disk, SectorFate::Lost);
    // Everything behind the call is gone as well: only the slot knows.
    disk.change(&segment_name(0), |bytes| bytes[PAGE..].fill(0));
    let damage = damage(&disk, &config);
    assert!(damage.proof.contains("checkpoint.wal"), "{damage:?}");
    assert_eq!(damage.lost.first, 3);
}

#[test]
fn damage_that_a_clean_close_proves_is_refused() {
    let config = small();
    let disk = Simulation::new(0);
    let mut running = open(&disk, &config, Promises::default(), 4);
    running.append(1, b"call").unwrap();
    running.close();
    disk.change(&segment_name(0), |bytes| bytes[PAGE + 300] ^= 4);
    assert_eq!(damage(&disk, &config).lost, LsnRange { first: 3, last: 4 });
}

#[test]
fn a_torn_tail_that_nothing_proves_is_cut_and_void_for_good() {
    let config = small();
    let disk = Simulation::new(0);
    let mut running = open(&disk, &config, Promises::default(), 5);
    running.append(1, b"acknowledged").unwrap();
    running.submit();
    running.complete(0);
    running.append(1, &[1; 2000]).unwrap();
    running.submit();
    disk.cut_power();
    let mut sector = 0;
    disk.power_on(&mut || {
        sector += 1;
        if sector == 3 { SectorFate::Lost } else { SectorFate::Kept }
    });
    let torn = disk.bytes(&segment_name(0)).unwrap();
    let mut running = open(&disk, &config, running.promises, 6);
    let cut = running.promises.recover(&disk, &config).unwrap().report.cut;
    assert_eq!(cut, None, "the second start finds it decided");
    running.promises.durable_upto = running.log.durable_upto();
    running.append(1, b"goes on").unwrap();
    running.settle();
    power_cycle(&disk, SectorFate::Lost);
    // Even if the missing sector turned up after all.
    disk.change(&segment_name(0), |bytes| {
        *bytes = torn.clone();
        bytes[2 * PAGE + 1024..2 * PAGE + 1536].fill(1);
    });
    running.promises.recover(&disk, &config).unwrap();
}

#[test]
fn valid_batches_beyond_the_recorded_end_are_void() {
    let config = LogConfig { writes_in_flight_max: 2, ..small() };
    let disk = Simulation::new(0);
    let mut running = open(&disk, &config, Promises::default(), 7);
    running.settle();
    running.append(1, b"torn").unwrap();
    running.submit();
    let void = running.append(1, b"whole, but behind a torn one").unwrap();
    running.submit();
    assert_eq!(running.pending.len(), 2);
    disk.cut_power();
    let mut sector = 0;
    disk.power_on(&mut || {
        sector += 1;
        if sector <= 8 { SectorFate::Lost } else { SectorFate::Kept }
    });
    let mut promises = running.promises;
    let recovered = promises.recover(&disk, &config).unwrap();
    let cut = recovered.report.cut.clone().expect("something was cut");
    assert_eq!((cut.first_lsn, cut.void_batches), (void - 1, 1));
    for seed in 8..12 {
        let mut running = open(&disk, &config, promises, seed);
        running.append(1, b"in a later epoch").unwrap();
        running.settle();
        power_cycle(&disk, SectorFate::Lost);
        promises = running.promises;
        promises.recover(&disk, &config).unwrap();
    }
}

#[test]
fn damage_before_the_recorded_end_is_refused() {
    let config = small();
    let (disk, promises) = written(&config, 3);
    open(&disk, &config, promises, 9);
    power_cycle(&disk, SectorFate::Lost);
    disk.change(&segment_name(0), |bytes| bytes[3 * PAGE + 200] ^= 1);
    let damage = damage(&disk, &config);
    assert_eq!(
        (damage.file.as_str(), damage.lost),
        ("segment-00000000.wal", LsnRange { first: 5, last: 5 })
    );
    assert_eq!(damage.proof, "a later start recorded where the log ended");
}

#[test]
fn a_torn_open_batch_with_nothing_after_it_leaves_the_epoch_before() {
    let config = small();
    for torn in 0..8 {
        let (disk, mut promises) = written(&config, 3);
        let recovered = promises.recover(&disk, &config).unwrap();
        for segment in 0..recovered.used.len() as u64 {
            disk.fail(disk.operations() + segment + 1, Fault::PowerCut);
        }
        let started =
            start(&mut disk.clone(), recovered, config.clone(), nonce(&mut Seeded::new(10)), 0);
        assert!(started.is_err() && disk.is_off());
        let mut sector = 0;
        disk.power_on(&mut || {
            sector += 1;
            if sector > torn { SectorFate::Lost } else { SectorFate::Kept }
        });
        let recovered = promises.recover(&disk, &config).unwrap();
        let whole = recovered.end.epoch == 2;
        assert!(whole || recovered.end.epoch == 1, "sector {torn}");
    }
}

#[test]
fn a_damaged_open_batch_with_valid_batches_after_it_is_refused() {
    let config = small();
    let (disk, promises) = written(&config, 3);
    let mut running = open(&disk, &config, promises, 11);
    running.append(1, b"in the second epoch").unwrap();
    running.settle();
    let open_file = running.log.used_segments().last().unwrap().file;
    power_cycle(&disk, SectorFate::Lost);
    for byte in [20, 200] {
        let fork = disk.fork();
        fork.change(&segment_name(open_file), |bytes| bytes[byte] ^= 1);
        assert_eq!(damage(&fork, &config).lost.first, 6, "byte {byte}");
    }
}

#[test]
fn an_accepted_log_is_synced_before_the_open_batch_is_written() {
    let config = small();
    let (disk, mut promises) = written(&config, 3);
    let recovered = promises.recover(&disk, &config).unwrap();
    disk.fail(disk.operations(), Fault::Io);
    let before = disk.bytes(&segment_name(1));
    assert!(start(&mut disk.clone(), recovered, config.clone(), [3; 16], 0).is_err());
    assert_eq!(
        disk.bytes(&segment_name(1)),
        before,
        "nothing is written on top of what could not be synced"
    );
}

#[test]
fn a_repair_keeps_the_good_prefix_and_never_gives_a_number_twice() {
    let config = small();
    let (disk, promises) = written(&config, 40);
    disk.change(&segment_name(1), |bytes| bytes[3 * PAGE + 500] ^= 1);
    let damage = damage(&disk, &config);
    for crash_at in 0.. {
        let fork = disk.fork();
        fork.fail(fork.operations() + crash_at, Fault::PowerCut);
        let mut report = repair(&mut fork.clone(), &config, [50; 16], 0);
        let crashed = fork.is_off();
        // Plans for later faults are dropped too.
        fork.power_on(&mut || SectorFate::Lost);
        if crashed {
            report = repair(&mut fork.clone(), &config, [51; 16], 0);
        }
        let report = report.unwrap_or_else(|error| panic!("crash at {crash_at}: {error}"));
        let mut kept = promises.clone();
        kept.durable_upto = damage.lost.first - 1;
        kept.appended.retain(|lsn, _| *lsn < damage.lost.first);
        kept.recover(&fork, &config).unwrap();
        if !report.refusals.is_empty() {
            assert_eq!(report.lost, [damage.lost]);
            assert_eq!(report.kept_upto, damage.lost.first - 1);
            let copy = report
                .quarantined
                .iter()
                .find(|copy| copy.ends_with("segment-00000001.wal"))
                .unwrap();
            assert_eq!(
                fork.bytes(copy),
                disk.bytes(&segment_name(1)),
                "the damage is kept for whoever wants to look"
            );
        }
        let mut running = open(&fork, &config, kept, 60);
        let given = running.log.append(0, &head(1), b"after the repair").unwrap();
        assert!(given.lsn > promises.durable_upto && given.lane_seq > 40, "{given:?}");
        let other = running.log.append(0, &head(2), b"a lane that may have been lost").unwrap();
        assert!(other.lane_seq > 1);
        if !crashed {
            assert!(
                repair(&mut fork.clone(), &config, [52; 16], 0).unwrap().refusals.is_empty(),
                "once is enough"
            );
            break;
        }
    }
}

#[test]
fn a_repair_of_a_missing_beginning_keeps_what_is_there() {
    let config = small();
    let (mut disk, promises) = written(&config, 40);
    disk.remove(&segment_name(0)).unwrap();
    let report = repair(&mut disk, &config, [70; 16], 0).unwrap();
    assert_eq!((report.lost[0].first, report.kept_upto), (1, promises.durable_upto));
    let mut lsns = Vec::new();
    recover(&mut disk, &config, &mut |record: &prism_wal::Record<'_>| lsns.push(record.lsn))
        .unwrap();
    assert_eq!(lsns.last(), Some(&promises.durable_upto));
    assert_eq!(lsns.first(), promises.appended.keys().find(|lsn| **lsn > report.lost[0].last));
}

#[test]
fn a_repair_of_a_log_of_which_nothing_is_left_is_accepted_and_so_is_its_trimming() {
    let config = small();
    let (mut disk, promises) = written(&config, 3);
    disk.change(&segment_name(0), |bytes| bytes[20] ^= 1);
    let report = repair(&mut disk, &config, [80; 16], 0).unwrap();
    assert_eq!((report.kept_upto, report.lost.len()), (0, 1));
    assert!(report.next_lsn > promises.durable_upto);
    recover(&mut disk, &config, &mut |_: &prism_wal::Record<'_>| panic!("nothing is left"))
        .unwrap();
}

#[test]
fn what_a_repair_kept_can_be_trimmed_and_recycled() {
    let config = small();
    let (disk, promises) = written(&config, 3);
    disk.change(&segment_name(0), |bytes| bytes[2 * PAGE + 500] ^= 1);
    let report = repair(&mut disk.clone(), &config, [81; 16], 0).unwrap();
    assert_eq!(report.kept_upto, 3);
    let kept = Promises {
        appended: promises.appended.into_iter().filter(|(lsn, _)| *lsn <= 3).collect(),
        durable_upto: 3,
        trim_upto: 0,
    };
    let mut running = open(&disk, &config, kept, 82);
    running.trim(report.kept_upto).unwrap();
    running.settle();
    assert_ne!(running.log.used_segments()[0].file, 0, "what was kept is recycled");
    disk.change(&segment_name(0), |bytes| bytes.fill(0));
    power_cycle(&disk, SectorFate::Lost);
    running.promises.recover(&disk, &config).unwrap();
}
