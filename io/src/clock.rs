//! Time as numbers: a monotonic clock for spans and deadlines, a wall clock for log time and expiry.
//!
//! State machines take these numbers as arguments and never ask for them themselves.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

static START: OnceLock<Instant> = OnceLock::new();

/// Nanoseconds since the first call in this process; never runs backwards.
pub fn monotonic_ns() -> u64 {
    let start = *START.get_or_init(Instant::now);
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Microseconds since the Unix epoch. May jump when the host's clock is set.
pub fn wall_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|span| u64::try_from(span.as_micros()).unwrap_or(u64::MAX))
        .unwrap_or(0)
}
