//! The section `grpc`: what the protocol does by itself: compression, keepalive, and the age of connections.

use std::fmt;
use std::time::Duration;

use super::error::{Origin, Problem};
use super::read::{count, seconds, size, span};
use super::tree::{Node, Report, Section, Value};
use super::units::{show_bytes, show_duration};

/// What the protocol does by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grpc {
    /// Replies of at least this many bytes are compressed with gzip for clients that take it, where that makes them smaller;
    /// `None`: none are. Requests may always come compressed.
    pub compress_bytes_min: Option<u64>,
    /// Largest message of a reply, in bytes.
    pub reply_bytes_max: u64,
    /// A client that has been silent for this long is asked whether it is there; `None`: never.
    pub keepalive_interval: Option<Duration>,
    /// How long it may take to say so.
    pub keepalive_timeout: Duration,
    /// A client that asks us more often than this, and is sent nothing in between, gets strikes.
    pub ping_interval_min: Duration,
    /// Most strikes before its connection is ended.
    pub ping_strikes_max: u32,
    /// A connection of this age is asked to leave; `None`: never.
    pub connection_age_max: Option<Duration>,
    /// How long its calls may then take to finish.
    pub connection_age_grace: Duration,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const DAY: Duration = seconds(86_400);

/// Reads the section.
pub(super) fn read(section: Option<Section<'_>>, report: &Report) -> Grpc {
    let nothing = Node { origin: Origin::Default, value: Value::Nothing };
    let section = section.unwrap_or_else(|| Section::new(&nothing, "grpc", report));
    let bytes = off_or(size(256, 64 * MIB));
    let interval = off_or(span(seconds(1), 365 * DAY));
    let grpc = Grpc {
        compress_bytes_min: section.value("compress_bytes_min", None, bytes).value,
        reply_bytes_max: section.value("reply_bytes_max", 64 * MIB, size(64 * KIB, 64 * MIB)).value,
        keepalive_interval: section
            .value("keepalive_interval", Some(seconds(120)), &interval)
            .value,
        keepalive_timeout: section
            .value("keepalive_timeout", seconds(20), span(seconds(1), seconds(3_600)))
            .value,
        ping_interval_min: section
            .value("ping_interval_min", seconds(10), span(Duration::ZERO, DAY))
            .value,
        ping_strikes_max: section.value("ping_strikes_max", 2, count(0, 1_000)).value,
        connection_age_max: section.value("connection_age_max", None, &interval).value,
        connection_age_grace: section
            .value("connection_age_grace", seconds(60), span(Duration::ZERO, DAY))
            .value,
    };
    section.finish();
    grpc
}

/// A value, or `off`.
fn off_or<T>(
    read: impl Fn(&str) -> Result<T, Problem>,
) -> impl Fn(&str) -> Result<Option<T>, Problem> {
    move |text| match text {
        "off" => Ok(None),
        _ => read(text).map(Some).map_err(|Problem { message, remedy }| {
            Problem::new(message, format!("{remedy}, or `off`"))
        }),
    }
}

impl fmt::Display for Grpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let off = |shown: Option<String>| shown.unwrap_or_else(|| "off".into());
        writeln!(f, "grpc:")?;
        writeln!(f, "  compress_bytes_min: {}", off(self.compress_bytes_min.map(show_bytes)))?;
        writeln!(f, "  reply_bytes_max: {}", show_bytes(self.reply_bytes_max))?;
        writeln!(f, "  keepalive_interval: {}", off(self.keepalive_interval.map(show_duration)))?;
        writeln!(f, "  keepalive_timeout: {}", show_duration(self.keepalive_timeout))?;
        writeln!(f, "  ping_interval_min: {}", show_duration(self.ping_interval_min))?;
        writeln!(f, "  ping_strikes_max: {}", self.ping_strikes_max)?;
        writeln!(f, "  connection_age_max: {}", off(self.connection_age_max.map(show_duration)))?;
        writeln!(f, "  connection_age_grace: {}", show_duration(self.connection_age_grace))
    }
}
