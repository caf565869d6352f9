//! Log lines: JSON in the shape that Prism promises, or text for a terminal, written by a thread of their own.
//!
//! A line is put together on the thread that logs and handed over through a bounded queue; when the reader of the log is
//! too slow, lines are dropped and counted, and no shard ever waits for it. The writer thread is the one thread beside
//! those of the architecture: a write to a pipe can block for as long as its reader likes, which neither a shard nor the
//! control thread may.
//!
//! Never logs keys or values of requests; callers pass names and numbers only.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::config::{Level, Log, LogFormat};

/// Most lines that wait for the writer.
const LINES_WAITING_MAX: usize = 4096;
/// Longest line, in bytes; a longer one is cut.
const LINE_BYTES_MAX: usize = 8 << 10;
/// How long the end of the process waits for the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Lines dropped since the start of the process.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How many lines were dropped because the log's reader was too slow.
pub fn dropped() -> u64 {
    DROPPED.load(Relaxed)
}

/// Keeps the writer; dropping it writes what waits, for at most a second.
#[derive(Debug)]
pub struct Flush {
    queue: SyncSender<Message>,
    ending: Arc<AtomicBool>,
    done: Receiver<()>,
}

impl Drop for Flush {
    fn drop(&mut self) {
        self.ending.store(true, SeqCst);
        // Refused when the queue is full; then the writer finds `ending` when it has emptied it.
        let _ = self.queue.try_send(Message::End);
        let _ = self.done.recv_timeout(FLUSH_TIMEOUT);
    }
}

/// Sends the process's log lines to stderr. Keep what it returns until the end of the process. Does nothing a second
/// time.
pub fn start(log: &Log) -> std::io::Result<Flush> {
    let (layer, flush) = Lines::start(log.format, std::io::stderr())?;
    // async-nats calls an error what the adapter has it do, and says at every attempt what calls are told anyway.
    let ours = filter_fn(|line| !line.target().starts_with("async_nats"));
    let filter = level_filter(log.level);
    let subscriber = tracing_subscriber::registry().with(filter).with(ours).with(layer);
    // Fails only when somebody else has set one, as tests in one process do.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(flush)
}

fn level_filter(level: Level) -> LevelFilter {
    match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}

/// What is logged of one request.
#[derive(Debug, Clone, Copy)]
pub struct RequestLine<'a> {
    /// The namespace it named, if that is served.
    pub namespace: &'a str,
    /// The client API.
    pub api: &'a str,
    /// The method in lower case: `get`.
    pub operation: &'a str,
    /// From its last byte to its answer.
    pub latency: Duration,
    /// The backend that answered; empty when none was asked.
    pub backend: &'a str,
    /// The trace id of `traceparent`; empty without one.
    pub trace_id: &'a str,
    /// The gRPC status code, 0 to 16.
    pub code: u8,
}

/// Logs a request: at `debug` when it succeeded, at `info` when its caller was refused, at `warn` when Prism or a backend
/// could not, at `error` when something is broken.
pub fn request(line: &RequestLine<'_>) {
    macro_rules! log {
        ($level:ident) => {
            tracing::$level!(
                namespace = line.namespace,
                api = line.api,
                operation = line.operation,
                latency_ms = line.latency.as_micros() as f64 / 1e3,
                backend = line.backend,
                trace_id = line.trace_id,
                code = line.code,
            )
        };
    }
    match line.code {
        0 => log!(debug),
        13 | 15 => log!(error),
        2 | 4 | 8 | 14 => log!(warn),
        _ => log!(info),
    }
}

enum Message {
    Line(String),
    End,
}

/// Turns events into lines and hands them to the writer.
#[derive(Debug)]
struct Lines {
    format: LogFormat,
    queue: SyncSender<Message>,
    /// Lines that this writer has not told of.
    lost: Arc<AtomicU64>,
}

impl Lines {
    /// The layer and the guard of a writer thread that ends with the guard.
    fn start(
        format: LogFormat,
        mut output: impl Write + Send + 'static,
    ) -> std::io::Result<(Self, Flush)> {
        let (queue, waiting) = sync_channel(LINES_WAITING_MAX);
        let (tell, done) = sync_channel(1);
        let ending = Arc::new(AtomicBool::new(false));
        let is_ending = ending.clone();
        let lost = Arc::new(AtomicU64::new(0));
        let untold = lost.clone();
        std::thread::Builder::new().name("prism-log".into()).spawn(move || {
            let mut next = waiting.recv().ok();
            while let Some(Message::Line(line)) = next {
                // Where even stderr is gone there is nobody left to tell.
                let _ = output.write_all(line.as_bytes());
                let lost = untold.swap(0, Relaxed);
                if lost > 0 {
                    let _ = output.write_all(dropped_line(format, lost).as_bytes());
                }
                next = match waiting.try_recv() {
                    Ok(message) => Some(message),
                    Err(_) if is_ending.load(SeqCst) => None,
                    Err(_) => waiting.recv().ok(),
                };
            }
            let _ = output.flush();
            let _ = tell.try_send(());
        })?;
        Ok((Self { format, queue: queue.clone(), lost }, Flush { queue, ending, done }))
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let line = match self.format {
            LogFormat::Json => json_line(event, SystemTime::now()),
            LogFormat::Text => text_line(event, SystemTime::now()),
        };
        if self.queue.try_send(Message::Line(line)).is_err() {
            // Several threads drop; lines are rare, so that atomic additions are no cost that counts.
            self.lost.fetch_add(1, Relaxed);
            DROPPED.fetch_add(1, Relaxed);
        }
    }
}

fn dropped_line(format: LogFormat, count: u64) -> String {
    let now = timestamp(SystemTime::now());
    let message = "log lines dropped: the reader of the log is too slow";
    match format {
        LogFormat::Json => format!(
            "{{\"time\":\"{now}\",\"level\":\"warn\",\"message\":\"{message}\",\"dropped\":{count}}}\n"
        ),
        LogFormat::Text => format!("{now} WARN  {message} dropped={count}\n"),
    }
}

fn level_name(metadata: &Metadata<'_>) -> &'static str {
    match *metadata.level() {
        tracing::Level::ERROR => "error",
        tracing::Level::WARN => "warn",
        tracing::Level::INFO => "info",
        tracing::Level::DEBUG => "debug",
        tracing::Level::TRACE => "trace",
    }
}

fn json_line(event: &Event<'_>, now: SystemTime) -> String {
    let mut fields = JsonFields { line: String::with_capacity(256), full: false };
    let level = level_name(event.metadata());
    let _ = write!(fields.line, "{{\"time\":\"{}\",\"level\":\"{level}\"", timestamp(now));
    event.record(&mut fields);
    fields.line.push_str("}\n");
    fields.line
}

struct JsonFields {
    line: String,
    full: bool,
}

impl JsonFields {
    /// Adds a field whose value is JSON already; leaves it out where the line would become too long.
    fn add(&mut self, field: &Field, json: &str) {
        if self.full || self.line.len() + field.name().len() + json.len() > LINE_BYTES_MAX {
            self.full = true;
            return;
        }
        let _ = write!(self.line, ",\"{}\":{json}", field.name());
    }
}

impl Visit for JsonFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        let value = cut(value);
        self.add(field, &serde_json::Value::from(value).to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &value.to_string());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &value.to_string());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, &serde_json::Value::from(value).to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, if value { "true" } else { "false" });
    }
}

fn text_line(event: &Event<'_>, now: SystemTime) -> String {
    let mut fields = TextFields { message: String::new(), rest: String::new() };
    event.record(&mut fields);
    let level = level_name(event.metadata()).to_uppercase();
    format!("{} {level:<5} {}{}\n", timestamp(now), fields.message, fields.rest)
}

struct TextFields {
    message: String,
    rest: String,
}

impl Visit for TextFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        // Control characters of a value must not reach a terminal.
        let value = cut(value).escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'");
        if field.name() == "message" {
            self.message = value;
        } else if self.rest.len() + value.len() < LINE_BYTES_MAX {
            let _ = match value.contains([' ', '"']) || value.is_empty() {
                true => write!(self.rest, " {}={value:?}", field.name()),
                false => write!(self.rest, " {}={value}", field.name()),
            };
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// The text up to half of the longest line, on a character boundary.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LINE_BYTES_MAX / 2)]
}

/// A time as RFC 3339 in UTC, to the millisecond. Days become dates after Howard Hinnant, `civil_from_days`.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let days = (seconds / 86_400) as i64 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Condvar, Mutex};

    /// A log's reader that lets lines through only when told.
    #[derive(Clone, Default)]
    struct Gate(Arc<Inner>);

    #[derive(Default)]
    struct Inner {
        state: Mutex<(bool, Vec<u8>)>,
        opened: Condvar,
    }

    impl Gate {
        fn open(&self) {
            self.0.state.lock().unwrap().0 = true;
            self.0.opened.notify_all();
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.state.lock().unwrap().1.clone()).unwrap()
        }
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let guard = self.0.state.lock().unwrap();
            let mut guard = self.0.opened.wait_while(guard, |(open, _)| !*open).unwrap();
            guard.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, log: impl FnOnce()) -> String {
        let gate = Gate::default();
        gate.open();
        let (layer, flush) = Lines::start(format, gate.clone()).unwrap();
        let subscriber =
            tracing_subscriber::registry().with(level_filter(Level::Debug)).with(layer);
        tracing::subscriber::with_default(subscriber, log);
        drop(flush);
        gate.text()
    }

    #[test]
    fn a_request_is_logged_in_the_promised_shape() {
        let text = logged(LogFormat::Json, || {
            request(&RequestLine {
                namespace: "orders",
                api: "keyvalue",
                operation: "get",
                latency: Duration::from_micros(1_200),
                backend: "memstore",
                trace_id: "abc123",
                code: 5,
            });
        });
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (key, value) in [
            ("level", "info"),
            ("namespace", "orders"),
            ("api", "keyvalue"),
            ("operation", "get"),
            ("backend", "memstore"),
            ("trace_id", "abc123"),
        ] {
            assert_eq!(line[key], value, "{key}");
        }
        assert_eq!(line["latency_ms"], 1.2);
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn a_line_stays_one_line_and_bounded_whatever_it_holds() {
        let long = "x".repeat(100_000);
        let log = || {
            tracing::warn!(path = "a\nb\u{1b}[31m\"c", answer = 42, ok = true, "it \"is\" said");
            tracing::info!(text = long, more = long, last = 1, "long");
            tracing::trace!("not at this level");
        };
        let json = logged(LogFormat::Json, log);
        let lines: Vec<&str> = json.lines().collect();
        assert_eq!(lines.len(), 2);
        let first: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
        assert_eq!(first["message"], "it \"is\" said");
        assert_eq!(first["path"], "a\nb\u{1b}[31m\"c");
        assert_eq!((&first["answer"], &first["ok"]), (&42.into(), &true.into()));
        assert!(serde_json::from_str::<serde_json::Value>(lines[1]).is_ok());
        assert!(lines[1].len() <= LINE_BYTES_MAX + 2, "{} bytes", lines[1].len());

        let text = logged(LogFormat::Text, log);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].contains("WARN  it \"is\" said path="), "{}", lines[0]);
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn a_reader_that_stands_still_costs_lines_and_no_waiting() {
        let gate = Gate::default();
        let (layer, flush) = Lines::start(LogFormat::Json, gate.clone()).unwrap();
        let subscriber = tracing_subscriber::registry().with(LevelFilter::INFO).with(layer);
        let before = dropped();
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..LINES_WAITING_MAX + 100 {
                tracing::info!(number, "line");
            }
        });
        assert!(dropped() - before >= 98, "{} dropped", dropped() - before);
        gate.open();
        drop(flush);
        let text = gate.text();
        assert!(text.contains("\"number\":0}") && text.contains("\"dropped\":"), "{text}");
    }

    #[test]
    fn times_are_civil() {
        let at = |seconds, millis| {
            timestamp(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis))
        };
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_399, 999), "2000-02-28T23:59:59.999Z");
        assert_eq!(at(951_782_400, 0), "2000-02-29T00:00:00.000Z");
        assert_eq!(
            at(1_795_350_896, 5),
            "2026-11-22T11:21:36.005Z".replace("11:21:36", "12:34:56")
        );
    }
}
