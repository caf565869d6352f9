//! The section `transport:`: what one peer may do to the others, each bound with its key, its range and how it is written.
//!
//! One table is read from, shown from and defaulted from, so that none of the three can forget a bound. The bounds themselves, with
//! their defaults and what happens at each, are [`prism_io::grpc::Limits`]; `docs/transport.md` has them for operators.

use std::fmt;
use std::time::Duration;

use prism_io::grpc::Limits;
use prism_io::h2::{Pace, Rate};

use super::error::{Origin, Problem};
use super::read::{count, size, span};
use super::tree::{Node, Report, Section, Value};
use super::units::{show_bytes, show_duration};

/// Bounds on what a peer may do, beside those of [`Limits`](super::Limits) that are about calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    /// Of one connection. Its message size and streams are those of `limits:`.
    pub connection: Limits,
    /// Most connections of one peer: an IPv4 address, or a /64 of IPv6.
    pub connections_per_peer_max: u32,
    /// Most bytes that all connections of a shard may hold: beyond it the one that holds most is ended.
    pub shard_buffer_bytes_max: u64,
}

/// How a bound is written, and between which values.
enum Bound {
    Bytes(fn(&mut Limits) -> &mut u32, u64, u64),
    Count(fn(&mut Limits) -> &mut u32, u32, u32),
    Rate(fn(&mut Limits) -> &mut Rate),
    Pace(fn(&mut Limits) -> &mut Pace),
    Time(fn(&mut Limits) -> &mut u64, Duration, Duration),
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const WINDOW_MAX: u64 = prism_io::h2::frame::WINDOW_MAX as u64;
const SHORT: Duration = Duration::from_millis(10);
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// Every bound of a connection, in the order in which it is shown.
const BOUNDS: &[(&str, Bound)] = &[
    ("header_list_bytes_max", Bound::Bytes(|l| &mut l.header_list_bytes_max, KIB, MIB)),
    ("header_count_max", Bound::Count(|l| &mut l.header_count_max, 16, 10_000)),
    ("header_block_bytes_max", Bound::Bytes(|l| &mut l.header_block_bytes_max, KIB, MIB)),
    ("continuations_max", Bound::Count(|l| &mut l.continuations_max, 0, 1000)),
    ("header_table_bytes", Bound::Bytes(|l| &mut l.header_table_bytes, 0, 64 * KIB)),
    ("frame_bytes_max", Bound::Bytes(|l| &mut l.frame_bytes_max, 16 * KIB, 16 * MIB - 1)),
    ("stream_window_bytes", Bound::Bytes(|l| &mut l.stream_window_bytes, 16 * KIB, WINDOW_MAX)),
    (
        "connection_window_bytes",
        Bound::Bytes(|l| &mut l.connection_window_bytes, 65_535, WINDOW_MAX),
    ),
    ("gather_bytes_max", Bound::Bytes(|l| &mut l.gather_bytes_max, 4 * KIB, 1 << 30)),
    ("stream_queue_bytes", Bound::Bytes(|l| &mut l.stream_queue_bytes, KIB, 64 * MIB)),
    ("queue_bytes_max", Bound::Bytes(|l| &mut l.queue_bytes_max, 64 * KIB, 1 << 30)),
    ("output_bytes_max", Bound::Bytes(|l| &mut l.output_bytes_max, 256 * KIB, 64 * MIB)),
    ("trailer_bytes_max", Bound::Bytes(|l| &mut l.trailer_bytes_max, KIB, 64 * KIB)),
    ("peer_resets", Bound::Rate(|l| &mut l.peer_resets)),
    ("provoked_resets", Bound::Rate(|l| &mut l.provoked_resets)),
    ("pings", Bound::Rate(|l| &mut l.pings)),
    ("settings", Bound::Rate(|l| &mut l.settings)),
    ("empty_data", Bound::Rate(|l| &mut l.empty_data)),
    ("idle_frames", Bound::Rate(|l| &mut l.idle_frames)),
    ("window_updates", Bound::Rate(|l| &mut l.window_updates)),
    ("first_byte_timeout", Bound::Time(|l| &mut l.first_byte_timeout_ns, SHORT, HOUR)),
    ("preface_timeout", Bound::Time(|l| &mut l.preface_timeout_ns, SHORT, HOUR)),
    ("settings_timeout", Bound::Time(|l| &mut l.settings_timeout_ns, SHORT, HOUR)),
    ("headers_timeout", Bound::Time(|l| &mut l.headers_timeout_ns, SHORT, HOUR)),
    ("drain_ping_timeout", Bound::Time(|l| &mut l.drain_ping_timeout_ns, SHORT, HOUR)),
    ("idle_timeout", Bound::Time(|l| &mut l.idle_timeout_ns, SHORT, YEAR)),
    ("slow_reader_min", Bound::Pace(|l| &mut l.slow_reader_min)),
    ("slow_writer_min", Bound::Pace(|l| &mut l.slow_writer_min)),
];

const PEER_KEY: &str = "connections_per_peer_max";
const BUFFER_KEY: &str = "shard_buffer_bytes_max";
/// Room for what one connection may hold by its own bounds.
const BUFFER_DEFAULT: u64 = 256 * MIB;

/// Reads the section. What `limits:` says comes first, because some bounds follow from it.
pub(super) fn read_transport(
    section: Option<Section<'_>>,
    limits: &super::Limits,
    report: &Report,
) -> Transport {
    let nothing = Node { origin: Origin::Default, value: Value::Nothing };
    let section = section.unwrap_or_else(|| Section::new(&nothing, "transport", report));
    let message_bytes_max = limits.message_bytes_max as u32;
    let mut connection =
        Limits { message_bytes_max, streams_max: limits.streams, ..Limits::default() };
    connection.gather_bytes_max = connection.gather_bytes_max.max(message_bytes_max);
    connection.queue_bytes_max = connection.queue_bytes_max.max(message_bytes_max);
    for (key, bound) in BOUNDS {
        let origin = match bound {
            Bound::Bytes(field, min, max) => {
                section.optional(key, size(*min, *max)).map(|setting| {
                    *field(&mut connection) = setting.value as u32;
                    setting.origin
                })
            }
            Bound::Count(field, min, max) => {
                section.optional(key, count(*min, *max)).map(|setting| {
                    *field(&mut connection) = setting.value;
                    setting.origin
                })
            }
            Bound::Rate(field) => section.optional(key, rate).map(|setting| {
                *field(&mut connection) = setting.value;
                setting.origin
            }),
            Bound::Pace(field) => section.optional(key, pace).map(|setting| {
                *field(&mut connection) = setting.value;
                setting.origin
            }),
            Bound::Time(field, min, max) => {
                section.optional(key, span(*min, *max)).map(|setting| {
                    *field(&mut connection) = nanoseconds(setting.value);
                    setting.origin
                })
            }
        };
        if let Some(origin) = origin
            && matches!(*key, "gather_bytes_max" | "queue_bytes_max")
            && connection.gather_bytes_max.min(connection.queue_bytes_max) < message_bytes_max
        {
            let message = format!(
                "transport.{key} is less than one message of {}",
                show_bytes(u64::from(message_bytes_max))
            );
            report.error(origin, Problem::new(message, "raise it to limits.message_bytes_max"));
        }
    }
    let windows = (connection.stream_window_bytes, connection.connection_window_bytes);
    if windows.0 > windows.1 {
        let message = format!(
            "transport.stream_window_bytes: {} is more than the connection's {}",
            show_bytes(windows.0.into()),
            show_bytes(windows.1.into())
        );
        let remedy = "lower it, or raise connection_window_bytes";
        report.error(section.origin, Problem::new(message, remedy));
    }
    // One peer alone leaves a quarter to the others.
    let peers = (limits.connections_max / 4 * 3).max(1);
    let transport = Transport {
        connections_per_peer_max: section.value(PEER_KEY, peers, count(1, 1_000_000)).value,
        shard_buffer_bytes_max: section.value(BUFFER_KEY, BUFFER_DEFAULT, size(MIB, 1 << 40)).value,
        connection,
    };
    section.finish();
    transport
}

/// Shows the section as it is read.
pub(super) fn show_transport(transport: &Transport, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "transport:")?;
    writeln!(f, "  {PEER_KEY}: {}", transport.connections_per_peer_max)?;
    writeln!(f, "  {BUFFER_KEY}: {}", show_bytes(transport.shard_buffer_bytes_max))?;
    let mut limits = transport.connection;
    for (key, bound) in BOUNDS {
        let shown = match bound {
            Bound::Bytes(field, ..) => show_bytes(u64::from(*field(&mut limits))),
            Bound::Count(field, ..) => field(&mut limits).to_string(),
            Bound::Rate(field) => {
                let Rate { burst, per_second } = *field(&mut limits);
                format!("{burst} + {per_second}/s")
            }
            Bound::Pace(field) => {
                let Pace { bytes, period_ns } = *field(&mut limits);
                let period = show_duration(Duration::from_nanos(period_ns));
                format!("{} / {period}", show_bytes(u64::from(bytes)))
            }
            Bound::Time(field, ..) => show_duration(Duration::from_nanos(*field(&mut limits))),
        };
        writeln!(f, "  {key}: {shown}")?;
    }
    Ok(())
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// `1000 + 200/s`: so many at once, and so many a second in the long run.
fn rate(text: &str) -> Result<Rate, Problem> {
    let wrong = || {
        let message = format!("`{text}` is not a burst and a rate");
        Problem::new(message, "write how many at once and how many a second, such as 1000 + 200/s")
    };
    let (burst, per_second) = text.split_once('+').ok_or_else(wrong)?;
    let per_second = per_second.trim().strip_suffix("/s").ok_or_else(wrong)?;
    let number = |text: &str| count::<u32>(0, 10_000_000)(text.trim()).map_err(|_| wrong());
    Ok(Rate { burst: number(burst)?.max(1), per_second: number(per_second)? })
}

/// `64KiB / 60s`: so much at least in each such time; 0 asks for nothing.
fn pace(text: &str) -> Result<Pace, Problem> {
    let Some((bytes, period)) = text.split_once('/') else {
        let message = format!("`{text}` is not a size in a time");
        return Err(Problem::new(message, "write what has to move at least, such as 64KiB / 60s"));
    };
    let bytes = size(0, 1 << 30)(bytes.trim())? as u32;
    let period = span(Duration::from_secs(1), HOUR)(period.trim())?;
    Ok(Pace { bytes, period_ns: nanoseconds(period) })
}
