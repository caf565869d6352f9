//! What a run found out: latencies, rates, failures; as text for people and as JSON for programs.
//!
//! All times are microseconds. A request's latency counts from the moment at which it was meant to be sent, so that a server that stalls
//! cannot hide it by making the generator wait (no coordinated omission).

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest latency that is told apart, nanoseconds; anything longer counts as this.
const LATENCY_MAX_NS: u64 = 600_000_000_000;

/// An empty histogram of nanoseconds with three significant digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("the bounds are constants")
}

/// Percentiles of a set of latencies, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Requests measured.
    pub count: u64,
    /// Arithmetic mean.
    pub mean_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 90th percentile.
    pub p90_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// 99.99th percentile.
    pub p9999_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Latency {
    /// Percentiles of `histogram`, which holds nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
            count: histogram.len(),
            mean_us: histogram.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            p9999_us: at(0.9999),
            max_us: histogram.max() as f64 / 1e3,
        }
    }
}

/// The outcome of one run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Where the load went.
    pub endpoint: String,
    /// What the load was, in words.
    pub load: String,
    /// Length of the measured window, seconds.
    pub seconds: f64,
    /// Requests that were answered in the window, failures included.
    pub requests: u64,
    /// The same per second.
    pub requests_per_second: f64,
    /// The rate that was asked for, requests per second; absent in a closed loop.
    pub wanted_per_second: Option<f64>,
    /// Latency of the requests that succeeded.
    pub latency: Latency,
    /// Of these the reads.
    pub reads: Latency,
    /// And the writes.
    pub writes: Latency,
    /// Reads that found no entry.
    pub not_found: u64,
    /// Failed requests by the name of their gRPC status, over the whole run.
    pub errors: BTreeMap<String, u64>,
    /// Answers of the namespace that was asked beside, in the window, by the name of their gRPC status.
    #[serde(default)]
    pub beside: BTreeMap<String, u64>,
    /// Requests that no answer came to within the time limit.
    pub unanswered: u64,
    /// Connections that ended before the run did.
    pub connections_lost: u64,
    /// CPU time of the watched server per request, microseconds.
    pub server_cpu_us: Option<f64>,
    /// CPU time of this generator per request, microseconds.
    pub generator_cpu_us: f64,
    /// Share of its cores that the generator used: near one, it was the bottleneck itself (an open loop always is near one: it spins to be on
    /// time).
    pub generator_busy: f64,
}

impl Report {
    /// Whether every request was answered with OK.
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.unanswered == 0 && self.connections_lost == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{} at {}, measured for {:.1} s", self.load, self.endpoint, self.seconds)?;
        write!(out, "  requests    {} ({:.0} per second", self.requests, self.requests_per_second)?;
        match self.wanted_per_second {
            Some(wanted) => writeln!(out, " of {wanted:.0} wanted)")?,
            None => writeln!(out, ")")?,
        }
        writeln!(
            out,
            "  latency µs  {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "p50", "p90", "p99", "p99.9", "p99.99", "max"
        )?;
        let rows = [("all", &self.latency), ("reads", &self.reads), ("writes", &self.writes)];
        for (name, row) in rows.into_iter().filter(|(_, row)| row.count > 0) {
            writeln!(
                out,
                "    {name:<9} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1}",
                row.p50_us, row.p90_us, row.p99_us, row.p999_us, row.p9999_us, row.max_us
            )?;
        }
        if let Some(cpu_us) = self.server_cpu_us {
            writeln!(out, "  server      {cpu_us:.2} µs of CPU per request")?;
        }
        writeln!(
            out,
            "  generator   {:.2} µs of CPU per request, {:.0} % busy",
            self.generator_cpu_us,
            self.generator_busy * 100.0
        )?;
        if self.not_found > 0 {
            writeln!(out, "  not found   {} reads", self.not_found)?;
        }
        for (status, count) in &self.beside {
            writeln!(out, "  beside      {count} answers with {status}")?;
        }
        for (status, count) in &self.errors {
            writeln!(out, "  failed      {count} with {status}")?;
        }
        if self.unanswered > 0 {
            writeln!(out, "  unanswered  {}", self.unanswered)?;
        }
        if self.connections_lost > 0 {
            writeln!(out, "  lost        {} connections", self.connections_lost)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_come_from_the_histogram() {
        let mut latencies = histogram();
        for microseconds in 1..=1000u64 {
            latencies.record(microseconds * 1000).unwrap();
        }
        let found = Latency::of(&latencies);
        assert_eq!(found.count, 1000);
        assert!((found.p50_us - 500.0).abs() < 1.0 && (found.p99_us - 990.0).abs() < 1.0);
        assert_eq!(Latency::of(&histogram()), Latency::default());
    }

    #[test]
    fn a_report_survives_json() {
        let report =
            Report { requests: 3, errors: [("UNAVAILABLE".into(), 1)].into(), ..Report::default() };
        let text = serde_json::to_string(&report).unwrap();
        let again: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(again.requests, 3);
        assert!(!again.is_clean());
        assert!(report.to_string().contains("failed      1 with UNAVAILABLE"));
    }
}
