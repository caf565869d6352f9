//! The figures beside the bars that they have to pass and the aims that they are meant to reach.

use prism_benches::report::Table;
use serde::Serialize;

use crate::around::Around;
use crate::calls::{Calls, Case};

/// One measure with its bar and its aim.
#[derive(Serialize)]
pub(crate) struct Row {
    measure: &'static str,
    measured: f64,
    bar: f64,
    aim: f64,
    unit: &'static str,
    /// Larger is better.
    at_least: bool,
}

impl Row {
    fn at_most(
        measure: &'static str,
        measured: f64,
        bar: f64,
        aim: f64,
        unit: &'static str,
    ) -> Self {
        Self { measure, measured, bar, aim, unit, at_least: false }
    }

    fn at_least(measure: &'static str, measured: f64, bar: f64, aim: f64) -> Self {
        Self { measure, measured, bar, aim, unit: "×", at_least: true }
    }

    fn reaches(&self, mark: f64) -> bool {
        if self.at_least { self.measured >= mark } else { self.measured <= mark }
    }

    fn verdict(&self) -> &'static str {
        match (self.reaches(self.bar), self.reaches(self.aim)) {
            (_, true) => "aim reached",
            (true, false) => "bar passed",
            (false, false) => "FALLS SHORT",
        }
    }
}

pub(crate) fn rows(calls: &Calls, around: &Around) -> Vec<Row> {
    let cpu = |case, peer, shape| calls.of(case, shape).cpu_us / calls.of(peer, shape).cpu_us;
    let get = |shape| cpu(Case::GetMemory, Case::GetTonic, shape);
    let set = |shape| cpu(Case::SetWal, Case::SetTonic, shape);
    let rate = |case, shape| calls.of(case, shape).requests_per_second;
    let saturated = rate(Case::SetWal, (64, 16)) / rate(Case::SetTonic, (8, 16));
    let parts = calls.raw_write_p50_us + calls.of(Case::GetMemory, (1, 1)).p50_us;
    let idle = calls.of(Case::SetWal, (1, 1)).p50_us / parts;
    let mebibytes = around.idle_bytes as f64 / f64::from(1 << 20);
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
        Row::at_least("recovery against sequential read", around.recovery_ratio, 0.5, 0.8),
        Row::at_most("idle connection", around.bytes_per_connection / 1024.0, 24.0, 8.0, "KiB"),
    ]
}

pub(crate) fn table(rows: &[Row]) -> Table {
    let mut table =
        Table::new("Against bar and aim", &["measure", "measured", "bar", "aim", "verdict"]);
    for row in rows {
        let sign = if row.at_least { "≥" } else { "≤" };
        let digits = if row.measured < 10.0 { 2 } else { 1 };
        table.row(vec![
            row.measure.to_owned(),
            format!("{:.digits$} {}", row.measured, row.unit),
            format!("{sign} {}", row.bar),
            format!("{sign} {}", row.aim),
            row.verdict().to_owned(),
        ]);
    }
    table
}
