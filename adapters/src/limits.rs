//! The limits of the API, the same on every backend, and the checks against them.
//!
//! A check names the field at fault, so that it becomes a `google.rpc.BadRequest`. Nothing here
//! looks at what is stored.

use prism_proto::view::protobuf::{Duration, Timestamp};

use crate::error::Error;
use crate::glob::Glob;

/// A key's length in bytes.
pub const KEY_BYTES_MAX: usize = 1024;

/// A prefix's length in bytes: that of a key.
pub const PREFIX_BYTES_MAX: usize = KEY_BYTES_MAX;

/// A glob's length in bytes.
pub const GLOB_BYTES_MAX: usize = 256;

/// Operations of one Transact.
pub const TRANSACT_OPERATIONS_MAX: usize = 100;

/// Conditions of one Transact.
pub const TRANSACT_CONDITIONS_MAX: usize = 100;

/// Items of one batch.
pub const BATCH_ITEMS_MAX: usize = 1000;

/// Entries of one page; more is taken as this.
pub const PAGE_ENTRIES_MAX: usize = 1000;

/// Entries of one page when the caller leaves the choice.
pub const PAGE_ENTRIES_DEFAULT: usize = 256;

/// Keys that Count counts when the caller leaves the choice.
pub const COUNT_MAX_DEFAULT: u64 = 1_000_000;

/// The longest time to live: a hundred years, in milliseconds.
pub const TTL_MAX_MS: i64 = 100 * 365 * 86_400_000;

/// Attributes of one message.
pub const ATTRIBUTES_MAX: usize = 8;

/// An attribute's value, in bytes.
pub const ATTRIBUTE_BYTES_MAX: usize = 1024;

/// A content type's length in bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 256;

/// The highest priority of a message.
pub const PRIORITY_MAX: u32 = 9;

/// A receipt's length in bytes.
pub const RECEIPT_BYTES_MAX: usize = 256;

/// An offset's length in bytes.
pub const OFFSET_BYTES_MAX: usize = 64;

/// A cursor's length in bytes.
pub const CURSOR_BYTES_MAX: usize = 4096;

/// Partitions of one stream.
pub const PARTITIONS_MAX: usize = 256;

/// The longest lease and the longest wait: 12 hours, in milliseconds.
pub const LEASE_MAX_MS: u64 = 12 * 3_600_000;

/// The lease of a delivery when the caller leaves the choice: 30 seconds, in milliseconds.
pub const LEASE_DEFAULT_MS: u64 = 30_000;

/// The longest delay of a message: a year, in milliseconds.
pub const DELAY_MAX_MS: u64 = 366 * 86_400_000;

/// The longest retention: a hundred years, in milliseconds.
pub const RETENTION_MAX_MS: u64 = TTL_MAX_MS as u64;

/// Deliveries without acknowledgement of one stream, at most; more is taken as this.
pub const IN_FLIGHT_MAX: u32 = 1000;

/// Deliveries without acknowledgement when the caller leaves the choice.
pub const IN_FLIGHT_DEFAULT: u32 = 100;

/// The last second of a `google.protobuf.Timestamp`: the end of the year 9999.
const TIMESTAMP_SECONDS_MAX: i64 = 253_402_300_799;

/// The first second of a `google.protobuf.Timestamp`: the beginning of the year 1.
const TIMESTAMP_SECONDS_MIN: i64 = -62_135_596_800;

/// What a message holds beside one value, at most: key, version, times, tags, a page token.
pub const MESSAGE_OVERHEAD_BYTES_MAX: usize = 2048;

const _: () = assert!(MESSAGE_OVERHEAD_BYTES_MAX >= KEY_BYTES_MAX + 512);

/// What a namespace may set for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of a request or response message in bytes; the default is 4 MiB.
    pub max_message_size: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { max_message_size: 4 * 1024 * 1024 }
    }
}

impl Limits {
    /// The longest value, in bytes: any message that carries it stays within `max_message_size`.
    pub fn value_bytes_max(&self) -> usize {
        self.max_message_size.saturating_sub(MESSAGE_OVERHEAD_BYTES_MAX)
    }

    /// A value is not too long.
    #[inline]
    pub fn check_value(&self, field: &str, value: &[u8]) -> Result<(), Error> {
        if value.len() <= self.value_bytes_max() {
            return Ok(());
        }
        let expected = format!(
            "has {} bytes, at most {} fit into a message of this namespace",
            value.len(),
            self.value_bytes_max()
        );
        Err(Error::field("VALUE_TOO_LARGE", field, expected))
    }
}

/// A key has 1 to 1,024 bytes and no control characters. (That it is UTF-8 was checked on decoding.)
#[inline]
pub fn check_key(field: &str, key: &str) -> Result<(), Error> {
    if key.is_empty() {
        return Err(Error::field("KEY_INVALID", field, "must not be empty"));
    }
    if key.len() > KEY_BYTES_MAX {
        let expected = format!("has {} bytes, at most {KEY_BYTES_MAX} are allowed", key.len());
        return Err(Error::field("KEY_INVALID", field, expected));
    }
    check_no_control("KEY_INVALID", field, key)
}

/// A text has no control characters: U+0000–U+001F and U+007F–U+009F, Unicode's category Cc.
#[inline]
fn check_no_control(reason: &'static str, field: &str, text: &str) -> Result<(), Error> {
    // One pass over the bytes without a branch: ASCII control characters, and 0xC2 as the only
    // byte with which U+0080–U+009F can begin.
    let suspicious = text
        .bytes()
        .fold(false, |found, byte| found | (byte < 0x20) | (byte == 0x7f) | (byte == 0xc2));
    if suspicious && text.chars().any(char::is_control) {
        let expected = "must not contain control characters (encode binary keys as base64url)";
        return Err(Error::field(reason, field, expected));
    }
    Ok(())
}

/// A prefix could begin a key.
pub fn check_prefix(field: &str, prefix: &str) -> Result<(), Error> {
    if prefix.len() > PREFIX_BYTES_MAX {
        let expected =
            format!("has {} bytes, at most {PREFIX_BYTES_MAX} are allowed", prefix.len());
        return Err(Error::field("PREFIX_INVALID", field, expected));
    }
    check_no_control("PREFIX_INVALID", field, prefix)
}

/// A glob is well-formed and not too long.
pub fn check_glob(field: &str, glob: &str) -> Result<(), Error> {
    if glob.len() > GLOB_BYTES_MAX {
        let expected = format!("has {} bytes, at most {GLOB_BYTES_MAX} are allowed", glob.len());
        return Err(Error::field("GLOB_INVALID", field, expected));
    }
    match Glob::parse(glob.as_bytes()) {
        Ok(_) => Ok(()),
        Err(expected) => Err(Error::field("GLOB_INVALID", field, expected)),
    }
}

/// A time to live in milliseconds; what is below a millisecond is cut off.
pub fn ttl_ms(field: &str, ttl: &Duration) -> Result<u64, Error> {
    let sound = (0..1_000_000_000).contains(&ttl.nanos);
    let ms = ttl.seconds.saturating_mul(1000).saturating_add(i64::from(ttl.nanos) / 1_000_000);
    if sound && (1..=TTL_MAX_MS).contains(&ms) {
        return Ok(ms as u64);
    }
    Err(Error::field("TTL_INVALID", field, "must be 1 millisecond to 100 years"))
}

/// A batch has 1 to 1,000 items.
pub fn check_batch_count(field: &str, count: usize) -> Result<(), Error> {
    match count {
        0 => Err(Error::field("BATCH_EMPTY", field, "must not be empty")),
        1..=BATCH_ITEMS_MAX => Ok(()),
        _ => {
            let expected = format!("has {count} items, at most {BATCH_ITEMS_MAX} are allowed");
            Err(Error::field("TOO_MANY_ITEMS", field, expected))
        }
    }
}

/// A point in time in milliseconds since the epoch, 0 for what lies before it.
pub fn timestamp_ms(field: &str, time: &Timestamp) -> Result<u64, Error> {
    let sound = (0..1_000_000_000).contains(&time.nanos)
        && (TIMESTAMP_SECONDS_MIN..=TIMESTAMP_SECONDS_MAX).contains(&time.seconds);
    if !sound {
        return Err(Error::field("TIME_INVALID", field, "must be in the years 1 to 9999"));
    }
    let ms = time.seconds * 1000 + i64::from(time.nanos) / 1_000_000;
    Ok(ms.max(0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_at_their_limits() {
        for good in ["a", "ключ", "{tag}:1", "a b", "é", "\u{a0}", &"k".repeat(1024)] {
            check_key("key", good).unwrap();
        }
        for bad in ["", "a\nb", "\u{0}", "\u{7f}", "\u{85}", &"k".repeat(1025)] {
            let error = check_key("items[2].key", bad).unwrap_err();
            assert_eq!(
                (error.reason(), &*error.violations()[0].field),
                ("KEY_INVALID", "items[2].key")
            );
        }
    }

    #[test]
    fn times_to_live_at_their_limits() {
        let ttl = |seconds, nanos| ttl_ms("ttl", &Duration { seconds, nanos });
        assert_eq!(ttl(0, 1_000_000).unwrap(), 1);
        assert_eq!(ttl(1, 999_999_999).unwrap(), 1_999);
        assert_eq!(ttl(TTL_MAX_MS / 1000, 0).unwrap(), TTL_MAX_MS as u64);
        for (seconds, nanos) in
            [(0, 0), (0, 999_999), (-1, 0), (1, -1), (1, 1_000_000_000), (i64::MAX, 0)]
        {
            assert_eq!(ttl(seconds, nanos).unwrap_err().reason(), "TTL_INVALID");
        }
        let time = |seconds, nanos| timestamp_ms("expires_at", &Timestamp { seconds, nanos });
        assert_eq!(time(-5, 0).unwrap(), 0);
        assert_eq!(time(5, 6_000_000).unwrap(), 5_006);
        assert!(time(TIMESTAMP_SECONDS_MAX + 1, 0).is_err());
    }
}
