//! The hot path allocates nothing once it is warm.

mod model;

use model::{head, small};
use prism_io::disk::sim::Simulation;
use prism_wal::driver::start;
use prism_wal::{LogConfig, Operation, recover};

#[test]
fn appending_writing_and_reading_back_allocate_nothing() {
    let mut disk = Simulation::new(0);
    let config = LogConfig { segment_bytes: 8 << 20, seal_after_us: u64::MAX >> 1, ..small() };
    let recovered = recover(&mut disk, &config, &mut |_: &prism_wal::Record<'_>| {}).unwrap();
    let mut log = start(&mut disk, recovered, config, [1; 16], 0).unwrap();
    let mut round = |calls: usize| {
        let mut bytes = 0;
        for _ in 0..calls {
            log.append(5, &head(1), &[7; 100]).unwrap();
        }
        while let Some(Operation::Write { token, buffer, .. }) = log.poll_operation(5) {
            drop(buffer);
            log.handle_completion(token, Ok(()), 5);
            while let Some(batch) = log.poll_durable() {
                bytes += batch.records().map(|record| record.body.len()).sum::<usize>();
            }
        }
        assert_eq!(bytes, calls * 100);
    };
    // Every buffer of the pool and every queue has seen its largest use.
    for _ in 0..20 {
        round(100);
    }
    let counted = allocation_counter::measure(|| {
        for _ in 0..50 {
            round(100);
        }
    });
    assert_eq!(counted.count_total, 0, "{counted:?}");
}
