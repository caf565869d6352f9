//! Space, sizes and time: what fits, what is refused, and that it gets better by itself.

mod model;

use model::{Promises, Running, head, small};
use prism_io::disk::is_out_of_space;
use prism_io::disk::sim::{Seeded, Simulation};
use prism_wal::driver::start;
use prism_wal::{AppendError, LogConfig, Operation, RecordKind, State, recover};

fn running(config: &LogConfig) -> Running {
    let disk = Simulation::new(1_000_000);
    let mut running =
        Running::open(&disk, config, Promises::default(), &mut Seeded::new(1)).ok().unwrap();
    running.settle();
    running
}

/// Appends until the log is full; returns how many went in.
fn fill(running: &mut Running) -> usize {
    for count in 0..10_000 {
        match running.append(1, &[9; 3000]) {
            Ok(_) => {}
            Err(AppendError::Full) => return count,
            Err(error) => panic!("{error}"),
        }
        running.settle();
    }
    panic!("the log never fills");
}

#[test]
fn a_full_log_still_settles_and_trims_and_takes_calls_again_by_itself() {
    let config = small();
    let mut running = running(&config);
    let count = fill(&mut running);
    assert!(count > 30, "{count}");
    assert!(running.log.status().full);
    assert_eq!(
        running.disk.bytes("segment-00000006.wal"),
        None,
        "never more segments than allowed"
    );
    // Internal records have a segment of their own, and a trim fits even when they have used it up.
    let mut internal = 0;
    while running
        .log
        .append_internal(running.disk.now_us(), RecordKind::Settlement, &head(1), &[1; 3000])
        .is_ok()
    {
        internal += 1;
        running.settle();
    }
    assert!(internal > 4, "{internal}");
    assert_eq!(running.append(1, b"no"), Err(AppendError::Full));
    let used = running.log.used_segments().to_vec();
    running.trim(used[2].last_lsn).unwrap();
    running.submit();
    assert_eq!(
        running.log.used_segments().len(),
        used.len(),
        "nothing is recycled before the trim is durable"
    );
    running.settle();
    assert_eq!(running.log.used_segments()[0].first_lsn, used[3].first_lsn);
    running.append(1, b"again").unwrap();
    running.settle();
    let disk = running.disk.clone();
    disk.cut_power();
    model::power_on(&disk, &mut Seeded::new(2));
    running.promises.recover(&disk, &config).unwrap();
}

#[test]
fn a_full_disk_refuses_calls_until_there_is_room() {
    let config = small();
    let disk = Simulation::new(1_000_000);
    disk.set_space(Some(3 * config.segment_bytes));
    let mut running =
        Running::open(&disk, &config, Promises::default(), &mut Seeded::new(1)).ok().unwrap();
    fill(&mut running);
    assert!(running.log.status().counters.create_failures > 0);
    assert_eq!(running.log.state(), State::Open, "a full disk is no failure");
    let due = running.log.poll_timeout().expect("it is tried again");
    disk.set_space(None);
    disk.advance(due.saturating_sub(disk.now_us()));
    running.settle();
    running.append(1, b"there is room again").unwrap();
    running.settle();
}

#[test]
fn calls_that_outrun_the_making_of_segments_are_told_that_the_disk_is_behind() {
    let config = LogConfig { gather_bytes_max: 1 << 20, ..small() };
    let mut running = running(&config);
    let refused = (0..1000).find_map(|_| running.append(1, &[9; 3000]).err());
    assert_eq!(refused, Some(AppendError::Busy), "more segments may be made");
    assert_eq!(running.log.status().counters.refused_full, 0);
    running.settle();
    running.append(1, b"now there is one").unwrap();
}

#[test]
fn a_start_on_a_full_disk_says_so() {
    let config = small();
    let mut disk = Simulation::new(1_000_000);
    disk.set_space(Some(1000));
    let recovered = recover(&mut disk, &config, &mut |_: &prism_wal::Record<'_>| {}).unwrap();
    let error = start(&mut disk, recovered, config, [1; 16], 0).unwrap_err();
    assert!(error.to_string().contains("the disk is full"), "{error}");
    assert!(is_out_of_space(&std::io::ErrorKind::StorageFull.into()));
}

#[test]
fn what_is_too_large_or_too_much_is_refused() {
    let config = LogConfig { lanes_max: 2, ..small() };
    let mut running = running(&config);
    let too_large = AppendError::TooLarge { bytes: 4097, bytes_max: 4096 };
    assert_eq!(running.append(1, &[0; 4097]), Err(too_large));
    running.append(1, &[0; 4096]).unwrap();
    running.append(2, &[]).unwrap();
    assert_eq!(running.append(3, &[]), Err(AppendError::TooManyLanes));
    let key = [b'k'; 129];
    let long_key = prism_wal::RecordHead { idempotency_key: &key, ..head(1) };
    assert!(matches!(running.log.append(0, &long_key, b""), Err(AppendError::TooLarge { .. })));
    let busy = (0..100).find_map(|_| running.append(1, &[0; 4000]).err());
    assert_eq!(busy, Some(AppendError::Busy), "gathering is bounded while the disk does nothing");
    running.settle();
    running.append(1, &[0; 4000]).unwrap();
}

#[test]
fn calls_share_a_write_while_one_is_in_flight() {
    let mut running = running(&small());
    running.append(1, b"goes out at once").unwrap();
    running.submit();
    assert_eq!(running.pending.len(), 1);
    for _ in 0..10 {
        running.append(1, b"gathers").unwrap();
    }
    running.submit();
    assert_eq!(running.pending.len(), 1, "one write in flight");
    let before = running.log.status().counters.batches;
    running.complete(0);
    running.submit();
    running.complete(0);
    assert_eq!(running.log.status().counters.batches, before + 2, "ten calls in one write");
}

#[test]
fn with_two_writes_in_flight_only_the_contiguous_prefix_is_handed_out() {
    let mut running = running(&LogConfig { writes_in_flight_max: 2, ..small() });
    let first = running.append(1, b"first").unwrap();
    running.submit();
    let second = running.append(1, b"second").unwrap();
    running.submit();
    assert_eq!(running.pending.len(), 2);
    running.complete(1);
    assert_eq!(running.promises.durable_upto, first - 1);
    running.complete(0);
    assert_eq!(running.promises.durable_upto, second);
}

#[test]
fn an_idle_log_is_sealed_once() {
    let mut running = running(&small());
    running.append(1, b"call").unwrap();
    running.submit();
    running.complete(0);
    let seals = running.log.status().counters.seals;
    assert!(running.log.poll_operation(running.disk.now_us()).is_none());
    let due = running.log.poll_timeout().expect("a seal is due");
    assert!(matches!(running.log.poll_operation(due), Some(Operation::Write { .. })));
    assert_eq!(running.log.status().counters.seals, seals + 1);
}

#[test]
fn log_time_never_runs_backwards() {
    let mut running = running(&small());
    let before = running.log.append(9_000_000, &head(1), b"").unwrap().log_time_us;
    let after = running.log.append(5, &head(1), b"").unwrap().log_time_us;
    assert_eq!((before, after), (9_000_000, 9_000_000));
}

#[test]
fn a_clean_close_is_recognised_and_nothing_is_accepted_after_it() {
    let config = small();
    let mut running = running(&config);
    running.append(1, b"last call").unwrap();
    running.close();
    assert_eq!(running.log.state(), State::Closed);
    assert_eq!(running.append(1, b"too late"), Err(AppendError::NotOpen));
    let recovered = running.promises.recover(&running.disk, &config).unwrap();
    assert!(recovered.report.clean);
}
