//! The figures beside the bars that they have to pass and the aims that they are meant to reach.

use prism_benches::aims::Row;

use crate::around::Around;
use crate::calls::{Calls, Case};

pub(crate) fn rows(calls: &Calls, around: &Around) -> Vec<Row> {
    let cpu = |case, peer, shape| calls.of(case, shape).cpu_us / calls.of(peer, shape).cpu_us;
    let get = |shape| cpu(Case::GetMemory, Case::GetTonic, shape);
    let set = |shape| cpu(Case::SetWal, Case::SetTonic, shape);
    let rate = |case, shape| calls.of(case, shape).requests_per_second;
    let saturated = rate(Case::SetWal, (64, 16)) / rate(Case::SetTonic, (8, 16));
    let parts = calls.raw_write_p50_us + calls.of(Case::GetMemory, (1, 1)).p50_us;
    let idle = calls.of(Case::SetWal, (1, 1)).p50_us / parts;
    let mebibytes = around.idle_bytes as f64 / f64::from(1 << 20);
    let [few, new] = &around.recoveries;
    vec![
        Row::at_most("Get, memory 8×16: CPU against tonic", get((8, 16)), 0.25, 0.12, "×"),
        Row::at_most("Get, memory 64×1: CPU against tonic", get((64, 1)), 0.6, 0.45, "×"),
        Row::at_most("Get, memory 512×1: CPU against tonic", get((512, 1)), 0.45, 0.32, "×"),
        Row::at_most("Set, wal 8×16: CPU against tonic", set((8, 16)), 0.6, 0.35, "×"),
        Row::at_most("Set, wal 64×1: CPU against tonic", set((64, 1)), 0.9, 0.65, "×"),
        Row::at_least("Set, wal 64×16: req/s against tonic at 8×16", saturated, 2.5, 5.0),
        Row::at_most("Set, wal 1×1: p50 against raw write + Get", idle, 1.8, 1.5, "×"),
        Row::at_most("resident, idle, two shards", mebibytes, 40.0, 20.0, "MiB"),
        Row::at_most("ready on an empty data directory", around.ready_ms, 200.0, 100.0, "ms"),
        Row::at_least("recovery against sequential read, 10,000 keys", few.ratio, 0.5, 0.8),
        Row::at_least("recovery against sequential read, every key new", new.ratio, 0.5, 0.8),
        Row::at_most("idle connection", around.bytes_per_connection / 1024.0, 24.0, 8.0, "KiB"),
    ]
}
