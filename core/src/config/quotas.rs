//! What a namespace may use at a time: the keys of a namespace in the configuration of `prism serve`.

use std::fmt;

use super::described::{ByteRate, Count, Rate, Scalar};
use super::error::Problem;
use super::tree::Section;

/// What a namespace may use at a time, beside bytes in flight and backlog; `None`: as much as comes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Quotas {
    /// Requests a second.
    pub requests_per_second: Option<f64>,
    /// Bytes of requests a second.
    pub bytes_per_second: Option<u64>,
    /// Streamed calls of topics, streams and readers that are open at a time.
    pub subscriptions: Option<u32>,
}

pub(super) fn read(section: &Section<'_>) -> Quotas {
    Quotas {
        requests_per_second: one(section, "requests_per_second_max").map(|Rate(rate)| rate),
        bytes_per_second: one(section, "bytes_per_second_max").map(|ByteRate(rate)| rate),
        subscriptions: one(section, "subscriptions_max").map(|Count(count)| count),
    }
}

/// The value of a key, where it is there and right.
pub(super) fn one<T: Scalar>(section: &Section<'_>, key: &'static str) -> Option<T> {
    let read =
        |text: &str| T::parse(text).map_err(|(message, remedy)| Problem::new(message, remedy));
    section.optional(key, read).map(|setting| setting.value)
}

impl fmt::Display for Quotas {
    /// As lines of a namespace that [`read`] takes back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(rate) = self.requests_per_second {
            writeln!(f, "    requests_per_second_max: {}", Rate(rate))?;
        }
        if let Some(rate) = self.bytes_per_second {
            writeln!(f, "    bytes_per_second_max: {}", ByteRate(rate))?;
        }
        if let Some(count) = self.subscriptions {
            writeln!(f, "    subscriptions_max: {count}")?;
        }
        Ok(())
    }
}
