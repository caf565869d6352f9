//! Figures beside the bars that they have to pass and the aims that they are meant to reach.

use serde::Serialize;

use crate::report::Table;

/// One measure with its bar and its aim.
#[derive(Serialize)]
pub struct Row {
    measure: &'static str,
    measured: f64,
    bar: f64,
    aim: f64,
    unit: &'static str,
    /// Larger is better.
    at_least: bool,
}

impl Row {
    /// A measure that is better the smaller it is.
    pub fn at_most(
        measure: &'static str,
        measured: f64,
        bar: f64,
        aim: f64,
        unit: &'static str,
    ) -> Self {
        Self { measure, measured, bar, aim, unit, at_least: false }
    }

    /// A measure that is better the larger it is.
    pub fn at_least(measure: &'static str, measured: f64, bar: f64, aim: f64) -> Self {
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

/// All of `rows` with their verdicts.
pub fn table(rows: &[Row]) -> Table {
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
