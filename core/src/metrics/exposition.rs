//! The numbers as Prometheus reads them: the text exposition format, version 0.0.4.
//!
//! Families are complete and contiguous, label values are escaped, and a series that was never counted is left out,
//! except for those without labels of their own.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prism_io::h2::Refusal;

use crate::audit::AuditView;

use super::cell::Totals;
use super::families::{Described, Reading};
use super::{CODE_NAMES, CODES, Metrics, ShardNumbers};

/// The content type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the exported buckets, as shown and in nanoseconds.
const BOUNDS: [(&str, u64); 19] = [
    ("0.00001", 10_000),
    ("0.000025", 25_000),
    ("0.00005", 50_000),
    ("0.0001", 100_000),
    ("0.00025", 250_000),
    ("0.0005", 500_000),
    ("0.001", 1_000_000),
    ("0.0025", 2_500_000),
    ("0.005", 5_000_000),
    ("0.01", 10_000_000),
    ("0.025", 25_000_000),
    ("0.05", 50_000_000),
    ("0.1", 100_000_000),
    ("0.25", 250_000_000),
    ("0.5", 500_000_000),
    ("1", 1_000_000_000),
    ("2.5", 2_500_000_000),
    ("10", 10_000_000_000),
    ("30", 30_000_000_000),
];

/// The percentiles of `prism_latency_seconds`.
const PERCENTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)];

/// The places of namespaces by what they are called: one that came after another of its name was deleted goes on with its series.
fn places_by_name(shape: &ShardNumbers) -> Vec<(&str, Vec<usize>)> {
    let mut numbers = HashMap::new();
    let mut places: Vec<(&str, Vec<usize>)> = Vec::new();
    for place in 0..=shape.labels.places() {
        let name = shape.namespace_label(place);
        let number = *numbers.entry(name).or_insert(places.len());
        match places.get_mut(number) {
            Some((_, of_name)) => of_name.push(place),
            None => places.push((name, vec![place])),
        }
    }
    places
}

impl Metrics {
    /// Every family in the text exposition format. `process` adds numbers of the whole process to it.
    pub fn render(&self, process: &ProcessNumbers) -> String {
        let mut out = String::with_capacity(16 << 10);
        process.render(&mut out);
        self.render_reloads(&mut out);
        if let Some(first) = self.shards.first() {
            self.render_calls(&mut out, first);
            self.render_errors(&mut out, first);
            self.render_lanes(&mut out, first);
            self.render_outboxes(&mut out, first);
            self.render_shards(&mut out);
        }
        out
    }

    fn render_reloads(&self, out: &mut String) {
        let name = "prism_config_reloads_total";
        family(out, name, "counter", "Reloads of requests and platform, by outcome.");
        for (count, outcome) in self.reloads.iter().zip(["applied", "refused"]) {
            line(out, name, &format!("outcome=\"{outcome}\""), count.load(Ordering::Relaxed));
        }
    }

    fn render_calls(&self, out: &mut String, shape: &ShardNumbers) {
        struct Series {
            labels: String,
            codes: [u64; CODES],
            totals: Totals,
        }
        let mut series = Vec::new();
        for (namespace, places) in places_by_name(shape) {
            for (api, api_name) in shape.labels.apis.iter().enumerate() {
                let mut codes = [0; CODES];
                let mut totals = Totals::default();
                let of_place = |place: &usize| {
                    let place = *place;
                    self.shards.iter().filter_map(move |shard| shard.calls(place, api))
                };
                for calls in places.iter().flat_map(of_place) {
                    for (sum, counter) in codes.iter_mut().zip(&calls.codes) {
                        *sum += counter.get();
                    }
                    calls.duration.add_to(&mut totals);
                }
                if codes.iter().any(|count| *count > 0) {
                    let (namespace, api_name) = (escape(namespace), escape(api_name));
                    let labels = format!("namespace=\"{namespace}\",api=\"{api_name}\"");
                    series.push(Series { labels, codes, totals });
                }
            }
        }
        family(out, "prism_requests_total", "counter", "Calls that ended, by gRPC status.");
        for Series { labels, codes, .. } in &series {
            for (count, status) in codes.iter().zip(CODE_NAMES).filter(|(count, _)| **count > 0) {
                line(out, "prism_requests_total", &format!("{labels},status=\"{status}\""), count);
            }
        }
        let name = "prism_request_duration_seconds";
        let help = "Time from the last byte of a request to its answer.";
        family(out, name, "histogram", help);
        for Series { labels, totals, .. } in &series {
            histogram(out, name, labels, totals);
        }
        let name = "prism_latency_seconds";
        let help = "Percentiles of prism_request_duration_seconds since the start, rounded up by at most 12.5 %.";
        family(out, name, "gauge", help);
        for Series { labels, totals, .. } in &series {
            for (percentile, share) in PERCENTILES {
                if let Some(seconds) = totals.quantile_seconds(share) {
                    line(out, name, &format!("{labels},percentile=\"{percentile}\""), seconds);
                }
            }
        }
    }

    fn render_lanes(&self, out: &mut String, shape: &ShardNumbers) {
        let mut rows = Vec::new();
        for namespace in 0..shape.labels.places() {
            let name = shape.namespace_label(namespace);
            for lane in self.shards.iter().filter_map(|shard| shard.lanes[namespace].get()) {
                let mut described = Vec::new();
                lane.describe(&mut described);
                rows.push((format!("namespace=\"{}\"", escape(name)), described));
            }
        }
        render_rows(out, &rows);
    }

    fn render_outboxes(&self, out: &mut String, shape: &ShardNumbers) {
        let mut rows = Vec::new();
        for namespace in 0..shape.labels.places() {
            // A namespace has one home.
            let known = self.shards.iter().find_map(|shard| shard.known_outbox(namespace));
            if let Some(outbox) = known {
                let mut described = Vec::new();
                outbox.describe(&mut described);
                let name = escape(shape.namespace_label(namespace));
                rows.push((format!("namespace=\"{name}\""), described));
            }
        }
        render_rows(out, &rows);
    }

    fn render_errors(&self, out: &mut String, shape: &ShardNumbers) {
        let name = "prism_backend_errors_total";
        family(out, name, "counter", "Errors that backends gave, by their kind as a gRPC status.");
        for (namespace, places) in places_by_name(shape) {
            let of_place = |place: &usize| {
                let place = *place;
                self.shards.iter().filter_map(move |shard| shard.backend_errors[place].get())
            };
            let rows: Vec<_> = places.iter().flat_map(of_place).collect();
            for (backend, backend_name) in shape.labels.backends.iter().enumerate() {
                for (code, kind) in CODE_NAMES.iter().enumerate() {
                    let count: u64 = rows.iter().map(|row| row[backend * CODES + code].get()).sum();
                    if count > 0 {
                        let namespace = escape(namespace);
                        let labels = format!(
                            "namespace=\"{namespace}\",backend=\"{backend_name}\",kind=\"{kind}\""
                        );
                        line(out, name, &labels, count);
                    }
                }
            }
        }
        let name = "prism_tls_handshakes_failed_total";
        family(out, name, "counter", "TLS handshakes that came to nothing, by kind.");
        for (index, kind) in prism_io::tls::Failure::KINDS.iter().enumerate() {
            let count: u64 = self.shards.iter().map(|shard| shard.tls_failed[index].get()).sum();
            line(out, name, &format!("kind=\"{kind}\""), count);
        }
        let name = "prism_refused_total";
        family(
            out,
            name,
            "counter",
            "Calls that Prism refused before a backend saw them, by reason.",
        );
        for (index, reason) in shape.labels.reasons.iter().enumerate() {
            let count: u64 = self.shards.iter().map(|shard| shard.refused[index].get()).sum();
            line(out, name, &format!("reason=\"{reason}\""), count);
        }
        let name = "prism_transport_refused_total";
        let help = "What the transport refused or cut off for the sake of the other clients, by kind (docs/transport.md).";
        family(out, name, "counter", help);
        for kind in Refusal::ALL {
            let of_shard =
                |shard: &Arc<ShardNumbers>| shard.transport_refused[*kind as usize].get();
            let count: u64 = self.shards.iter().map(of_shard).sum();
            line(out, name, &format!("kind=\"{}\"", kind.name()), count);
        }
    }

    fn render_shards(&self, out: &mut String) {
        let described: Vec<Vec<Described<'_>>> = self
            .shards
            .iter()
            .map(|shard| {
                let mut described = Vec::new();
                shard.wal.describe(&mut described);
                shard.connections.describe(&mut described);
                shard.tls.describe(&mut described);
                shard.store.describe(&mut described);
                shard.mesh.describe(&mut described);
                described
            })
            .collect();
        for index in 0..described[0].len() {
            for (shard, described) in described.iter().enumerate() {
                let (name, help, reading) = &described[index];
                let kind = match reading {
                    Reading::Counter(_) => "counter",
                    Reading::Gauge(_) => "gauge",
                    Reading::Histogram(_) => "histogram",
                };
                if shard == 0 {
                    family(out, name, kind, help.trim());
                }
                let labels = format!("shard=\"{shard}\"");
                match reading {
                    Reading::Counter(value) | Reading::Gauge(value) => {
                        line(out, name, &labels, value);
                    }
                    Reading::Histogram(cells) => {
                        let mut totals = Totals::default();
                        cells.add_to(&mut totals);
                        histogram(out, name, &labels, &totals);
                    }
                }
            }
        }
    }
}

/// Numbers of the whole process.
#[derive(Debug, Clone, Default)]
pub struct ProcessNumbers {
    /// When the process started, in seconds since 1970.
    pub started_seconds: f64,
    /// Whether every shard serves and none drains.
    pub ready: bool,
    /// Log lines dropped because the writer was behind.
    pub log_lines_dropped: u64,
    /// Processor time used, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// Open file descriptors.
    pub open_files: u64,
    /// The audit log, where there is one.
    pub audit: Option<AuditView>,
    /// How often keys were got from issuers' URLs, how often that failed, and how old the oldest are, where there are any.
    pub keys: Option<(u64, u64, Option<Duration>)>,
}

impl ProcessNumbers {
    /// Fills in what `/proc/self` tells; what cannot be read stays as it is.
    pub fn read_proc(mut self) -> Self {
        /// `USER_HZ` is 100 on every architecture that Linux tells user space about.
        const TICKS_PER_SECOND: f64 = 100.0;
        if let Ok(stat) = fs::read_to_string("/proc/self/stat")
            && let Some((_, fields)) = stat.rsplit_once(") ")
        {
            let field = |index: usize| fields.split(' ').nth(index)?.parse::<f64>().ok();
            self.cpu_seconds =
                (field(11).unwrap_or(0.0) + field(12).unwrap_or(0.0)) / TICKS_PER_SECOND;
        }
        if let Ok(status) = fs::read_to_string("/proc/self/status")
            && let Some(line) = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))
            && let Some(kib) = line.trim().strip_suffix(" kB")
        {
            self.resident_bytes = kib.trim().parse::<u64>().unwrap_or(0) << 10;
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            self.open_files = files.count().saturating_sub(1) as u64;
        }
        self
    }

    fn render(&self, out: &mut String) {
        family(out, "prism_build_info", "gauge", "Always 1; the labels tell the build.");
        let labels = format!("version=\"{}\"", escape(env!("CARGO_PKG_VERSION")));
        line(out, "prism_build_info", &labels, 1);
        let mut single = |name, kind, help, value: f64| {
            family(out, name, kind, help);
            line(out, name, "", value);
        };
        let ready = f64::from(u8::from(self.ready));
        single("prism_ready", "gauge", "1 when every shard serves and none drains.", ready);
        single(
            "prism_log_lines_dropped_total",
            "counter",
            "Log lines dropped because the log's reader was too slow.",
            self.log_lines_dropped as f64,
        );
        single(
            "process_start_time_seconds",
            "gauge",
            "Start of the process, in seconds since 1970.",
            self.started_seconds,
        );
        single(
            "process_cpu_seconds_total",
            "counter",
            "Processor time used, user and system.",
            self.cpu_seconds,
        );
        single(
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory.",
            self.resident_bytes as f64,
        );
        single("process_open_fds", "gauge", "Open file descriptors.", self.open_files as f64);
        if let Some((fetched, failed, oldest)) = self.keys {
            let name = "prism_token_keys_fetched_total";
            single(name, "counter", "Key sets got from issuers' URLs.", fetched as f64);
            let name = "prism_token_keys_failed_total";
            single(
                name,
                "counter",
                "Key sets that could not be got; those before stay.",
                failed as f64,
            );
            let (name, help) =
                ("prism_token_keys_age_seconds", "Age of the oldest key set from a URL.");
            single(name, "gauge", help, oldest.unwrap_or_default().as_secs_f64());
        }
        if let Some(audit) = &self.audit {
            let (lines, suppressed) = audit.counts();
            let name = "prism_audit_lines_total";
            single(name, "counter", "Lines written into the audit log.", lines as f64);
            single(
                "prism_audit_denials_suppressed_total",
                "counter",
                "Denials that the audit log only counts, because there were too many.",
                suppressed as f64,
            );
            let (name, help) = ("prism_audit_sequence", "Number of the audit log's last line.");
            single(name, "gauge", help, audit.head().sequence as f64);
            single(
                "prism_audit_failed",
                "gauge",
                "1 when the audit log cannot be written until the next start.",
                f64::from(u8::from(audit.has_failed())),
            );
        }
    }
}

/// Families whose series are named by these labels, each row with all of them; histograms are not among them.
fn render_rows(out: &mut String, rows: &[(String, Vec<Described<'_>>)]) {
    let Some((_, first)) = rows.first() else { return };
    for index in 0..first.len() {
        for (number, (labels, described)) in rows.iter().enumerate() {
            let (name, help, reading) = &described[index];
            let (kind, value) = match reading {
                Reading::Counter(value) => ("counter", *value),
                Reading::Gauge(value) => ("gauge", *value),
                Reading::Histogram(_) => continue,
            };
            if number == 0 {
                family(out, name, kind, help);
            }
            line(out, name, labels, value);
        }
    }
}

fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let help = help.replace('\\', "\\\\").replace('\n', "\\n");
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = match labels {
        "" => writeln!(out, "{name} {value}"),
        labels => writeln!(out, "{name}{{{labels}}} {value}"),
    };
}

fn histogram(out: &mut String, name: &str, labels: &str, totals: &Totals) {
    let bucket = format!("{name}_bucket");
    for (bound, bound_ns) in BOUNDS {
        let count = totals.count_within(bound_ns);
        line(out, &bucket, &format!("{labels},le=\"{bound}\""), count);
    }
    let count = totals.count();
    line(out, &bucket, &format!("{labels},le=\"+Inf\""), count);
    line(out, &format!("{name}_sum"), labels, totals.sum_seconds());
    line(out, &format!("{name}_count"), labels, count);
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::super::{Labels, Metrics};
    use super::*;

    fn example() -> Metrics {
        let labels = Labels {
            namespaces: vec!["orders".into(), "users".into()],
            added: Box::default(),
            apis: vec!["keyvalue"],
            backends: vec!["memstore".to_owned()],
            reasons: vec!["WAL_FULL", "MESSAGE_TOO_LARGE"],
        };
        let (metrics, shards) = Metrics::new(labels, 2);
        for shard in &shards {
            for _ in 0..50 {
                shard.request(Some(0), 0, 0, 80_000);
            }
            shard.request(Some(0), 0, 5, 3_000_000);
            shard.wal.append_bytes.add(4096);
            shard.wal.sync.record_ns(200_000);
        }
        shards[0].request(None, 0, 5, 1_000);
        shards[0].request(Some(99), 0, 200, 1_000);
        shards[1].backend_error(1, 0, 8);
        shards[1].refused(1);
        shards[1].transport_refused(Refusal::Pings, 2);
        shards[1].transport_refused(Refusal::Pings, 3);
        shards[0].transport_refused(Refusal::Pings, 1);
        shards[1].connections.open.add(3);
        shards[1].connections.open.subtract(1);
        metrics
    }

    /// The value of every series; fails where the text is not valid exposition format.
    fn parse(text: &str) -> HashMap<String, f64> {
        let mut series = HashMap::new();
        let mut seen = HashSet::new();
        let (mut name, mut kind) = (String::new(), String::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                name = rest.split(' ').next().unwrap().to_string();
                assert!(seen.insert(name.clone()), "family {name} is there twice");
                assert!(rest.len() > name.len() + 1, "family {name} has no help");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (of, rest) = rest.split_once(' ').unwrap();
                assert_eq!(of, name, "a type follows its help");
                kind = rest.to_string();
            } else {
                let (id, value) = line.rsplit_once(' ').unwrap();
                let of = id.split('{').next().unwrap();
                let suffix = of.strip_prefix(&name).unwrap_or_else(|| panic!("{of} in {name}"));
                match kind.as_str() {
                    "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix)),
                    "counter" => assert!(suffix.is_empty() && of.ends_with("_total"), "{of}"),
                    "gauge" => assert!(suffix.is_empty() && !of.ends_with("_total"), "{of}"),
                    other => panic!("{other} is not a type"),
                }
                let clash = series.insert(id.to_string(), value.parse().unwrap());
                assert_eq!(clash, None, "{id} is there twice");
            }
        }
        series
    }

    #[test]
    fn the_exposition_is_valid_and_sums_the_shards() {
        let text = example().render(&ProcessNumbers::default().read_proc());
        let series = parse(&text);
        let expected = [
            (r#"prism_requests_total{namespace="orders",api="keyvalue",status="success"}"#, 100.0),
            (r#"prism_requests_total{namespace="orders",api="keyvalue",status="not_found"}"#, 2.0),
            (r#"prism_requests_total{namespace="-",api="keyvalue",status="not_found"}"#, 1.0),
            (r#"prism_requests_total{namespace="-",api="keyvalue",status="unknown"}"#, 1.0),
            (r#"prism_request_duration_seconds_count{namespace="orders",api="keyvalue"}"#, 102.0),
            (
                r#"prism_request_duration_seconds_bucket{namespace="orders",api="keyvalue",le="0.0001"}"#,
                100.0,
            ),
            (
                r#"prism_request_duration_seconds_bucket{namespace="orders",api="keyvalue",le="+Inf"}"#,
                102.0,
            ),
            (
                r#"prism_latency_seconds{namespace="orders",api="keyvalue",percentile="p50"}"#,
                0.000081919,
            ),
            (
                r#"prism_backend_errors_total{namespace="users",backend="memstore",kind="resource_exhausted"}"#,
                1.0,
            ),
            (r#"prism_refused_total{reason="WAL_FULL"}"#, 0.0),
            (r#"prism_refused_total{reason="MESSAGE_TOO_LARGE"}"#, 1.0),
            (r#"prism_transport_refused_total{kind="pings"}"#, 4.0),
            (r#"prism_transport_refused_total{kind="streams"}"#, 0.0),
            (r#"prism_wal_append_bytes_total{shard="0"}"#, 4096.0),
            (r#"prism_wal_sync_duration_seconds_count{shard="1"}"#, 1.0),
            (r#"prism_connections{shard="1"}"#, 2.0),
            ("prism_ready", 0.0),
        ];
        for (id, value) in expected {
            assert_eq!(series.get(id), Some(&value), "{id}");
        }
        assert!(series["process_resident_memory_bytes"] > 0.0);
        assert!(!text.contains("namespace=\"users\",api"), "a series nobody counted is left out");
    }

    #[test]
    fn buckets_never_shrink_towards_infinity() {
        let text = example().render(&ProcessNumbers::default());
        let mut last: HashMap<String, u64> = HashMap::new();
        for line in text.lines().filter(|line| line.contains("_bucket{")) {
            let (id, value) = line.rsplit_once(' ').unwrap();
            let (id, _) = id.split_once("le=").unwrap();
            let value: u64 = value.parse().unwrap();
            let before = last.insert(id.to_string(), value).unwrap_or(0);
            assert!(value >= before, "{line}");
        }
        assert!(!last.is_empty());
    }

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
