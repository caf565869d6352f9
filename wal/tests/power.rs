//! Power cuts at every operation, with any subset of the unflushed sectors lost or torn; failing operations; crashes in
//! recovery. Every message names the seed that repeats it.

mod model;

use model::{Promises, Running, power_on, small};
use prism_io::disk::sim::{Fault, SectorFate, Seeded, Simulation};
use prism_wal::{AppendError, LogConfig, State};

const START_US: u64 = 1_700_000_000_000_000;

/// Runs the workload of a seed until `fault` strikes at operation `at`, or to its end.
fn workload(
    seed: u64,
    config: &LogConfig,
    steps: usize,
    fault: Option<(u64, Fault)>,
) -> (Simulation, Promises, u64) {
    let disk = Simulation::new(START_US);
    if let Some((at, fault)) = fault {
        disk.fail(at, fault);
    }
    let mut random = Seeded::new(seed);
    match Running::open(&disk, config, Promises::default(), &mut random) {
        Ok(mut running) => {
            running.run(&mut random, steps);
            let operations = disk.operations();
            (disk, running.promises, operations)
        }
        Err(promises) => (disk, promises, 0),
    }
}

/// Recovers, appends, crashes without warning and recovers again.
fn recovers(disk: &Simulation, config: &LogConfig, promises: Promises, seed: u64) {
    let mut random = Seeded::new(seed);
    let Ok(mut running) = Running::open(disk, config, promises, &mut random) else {
        panic!("the power stays on");
    };
    let _ = running.append(1, b"after the crash");
    running.settle();
    disk.cut_power();
    power_on(disk, &mut random);
    let mut promises = running.promises;
    promises.recover(disk, config).unwrap();
}

#[test]
fn power_cut_at_every_operation_with_every_subset_of_sectors() {
    let config = small();
    for seed in 0..1 {
        let (_, _, operations) = workload(seed, &config, 60, None);
        for at in 0..operations {
            eprintln!("seed {seed}, power cut at operation {at}");
            let (disk, promises, _) = workload(seed, &config, 60, Some((at, Fault::PowerCut)));
            let sectors = disk.unflushed_sectors();
            // A page is eight sectors: every subset. Larger writes: as many subsets, chosen by the seed.
            for subset in 0..if sectors == 0 { 1 } else { 256u64 } {
                let fork = disk.fork();
                let mut random = Seeded::new(subset);
                let mut index = 0;
                fork.power_on(&mut || {
                    index += 1;
                    let kept = if sectors <= 8 {
                        subset >> (index - 1) & 1 == 1
                    } else {
                        random.below(2) == 1
                    };
                    if kept { SectorFate::Kept } else { SectorFate::Lost }
                });
                promises
                    .clone()
                    .recover(&fork, &config)
                    .unwrap_or_else(|error| panic!("subset {subset}: {error}"));
            }
            power_on(&disk, &mut Seeded::new(at));
            recovers(&disk, &config, promises, at);
        }
    }
}

#[test]
fn power_cut_with_two_writes_in_flight() {
    let config = LogConfig { writes_in_flight_max: 2, ..small() };
    for seed in 100..103 {
        let (_, _, operations) = workload(seed, &config, 120, None);
        for at in (0..operations).step_by(4) {
            eprintln!("seed {seed}, power cut at operation {at}");
            let (disk, promises, _) = workload(seed, &config, 120, Some((at, Fault::PowerCut)));
            for fates in 0..8 {
                let fork = disk.fork();
                power_on(&fork, &mut Seeded::new(fates));
                recovers(&fork, &config, promises.clone(), fates);
            }
        }
    }
}

#[test]
fn a_long_life_of_crashes() {
    // `PRISM_SIM_SEEDS=2000 cargo test --release -p prism-wal --test power long_life` for a longer run.
    let seeds = std::env::var("PRISM_SIM_SEEDS")
        .map_or(12, |seeds| seeds.parse().expect("a number of seeds"));
    for seed in 200..200 + seeds {
        let config = LogConfig { writes_in_flight_max: 1 + (seed % 2) as usize, ..small() };
        let disk = Simulation::new(START_US);
        let mut random = Seeded::new(seed);
        let mut promises = Promises::default();
        for life in 0..40 {
            eprintln!("seed {seed}, life {life}");
            let cut = disk.operations() + random.below(120);
            if random.below(8) > 0 {
                disk.fail(cut, Fault::PowerCut);
            }
            promises = match Running::open(&disk, &config, promises, &mut random) {
                Ok(mut running) => {
                    running.run(&mut random, 300);
                    if !disk.is_off() && random.below(2) == 0 {
                        running.close();
                    }
                    running.promises
                }
                Err(promises) => promises,
            };
            disk.cut_power();
            power_on(&disk, &mut random);
        }
        promises.recover(&disk, &config).unwrap();
    }
}

#[test]
fn a_crash_in_recovery_changes_nothing() {
    let config = LogConfig { writes_in_flight_max: 2, ..small() };
    for seed in 300..304 {
        let (disk, promises, _) =
            workload(seed, &config, 150, Some((seed % 50 + 10, Fault::PowerCut)));
        power_on(&disk, &mut Seeded::new(seed));
        let mut expected = promises.clone();
        expected.recover(&disk, &config).unwrap();
        for at in 0.. {
            eprintln!("seed {seed}, crash at operation {at} of the start");
            let fork = disk.fork();
            fork.fail(fork.operations() + at, Fault::PowerCut);
            let started =
                Running::open(&fork, &config, promises.clone(), &mut Seeded::new(9_000 + at));
            let finished = started.is_ok();
            let promises = started.map_or_else(|promises| promises, |running| running.promises);
            for fates in 0..8 {
                let fork = fork.fork();
                fork.cut_power();
                power_on(&fork, &mut Seeded::new(fates));
                let mut promises = promises.clone();
                promises.recover(&fork, &config).unwrap();
                assert!(
                    promises
                        .appended
                        .range(promises.trim_upto + 1..)
                        .eq(expected.appended.range(promises.trim_upto + 1..))
                );
                recovers(&fork, &config, promises, fates);
            }
            if finished {
                break;
            }
        }
    }
}

#[test]
fn after_a_failed_write_nothing_is_acknowledged() {
    let config = LogConfig { writes_in_flight_max: 2, ..small() };
    for seed in 400..402 {
        let (_, _, operations) = workload(seed, &config, 80, None);
        for at in 10..operations {
            let disk = Simulation::new(START_US);
            let mut random = Seeded::new(seed);
            let mut running =
                Running::open(&disk, &config, Promises::default(), &mut random).ok().unwrap();
            disk.fail(at, Fault::Io);
            let mut durable_upto = None;
            for _ in 0..80 {
                running.step(&mut random);
                if running.log.state() == State::Failed {
                    let at_failure = *durable_upto.get_or_insert(running.promises.durable_upto);
                    assert_eq!(
                        running.promises.durable_upto, at_failure,
                        "seed {seed}, operation {at}"
                    );
                    assert_eq!(running.append(1, b"too late"), Err(AppendError::Failed));
                    assert!(running.log.poll_operation(disk.now_us()).is_none());
                }
            }
            disk.cut_power();
            power_on(&disk, &mut random);
            recovers(&disk, &config, running.promises, at);
        }
    }
}
