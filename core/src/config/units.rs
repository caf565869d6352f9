//! Sizes, times and rates as people write them: `50KB`, `64MiB`, `30days`, `10ms`, `1h30m`, `5k`.
//!
//! The one place where such text becomes a number, so that every file, flag and message agrees. Decimal units are
//! powers of 1,000 and binary units powers of 1,024 (IEC 80000-13); arithmetic is exact, and whatever cannot be
//! represented is refused, never rounded. Never guesses a missing unit of time.

use std::fmt;
use std::time::Duration;

/// Why a quantity was refused, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitError {
    /// What is wrong with the text.
    pub message: String,
    /// What to write instead.
    pub remedy: String,
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.remedy)
    }
}

impl std::error::Error for UnitError {}

const SIZE_REMEDY: &str = "write a number of bytes or a size such as 50KB, 64MiB or 1.5GiB";
const TIME_REMEDY: &str = "write a number and its unit, such as 10ms, 30s, 1h30m or 30days";
const RATE_REMEDY: &str = "write a number per second such as 200, 5k or 1.5M, or 300/min";

/// A size in bytes. `KB MB GB TB` are powers of 1,000, `KiB MiB GiB TiB` powers of 1,024; a bare number counts
/// bytes. A bare `K` or `M` is refused, because half of its readers mean the other one.
pub fn bytes(text: &str) -> Result<u64, UnitError> {
    let refuse = |message| Err(UnitError { message, remedy: SIZE_REMEDY.into() });
    let Some((number, unit, "")) = quantity(text) else {
        return refuse(format!("`{text}` is not a size"));
    };
    let scale: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" | "byte" | "bytes" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        short @ ("k" | "m" | "g" | "t" | "ki" | "mi" | "gi" | "ti") => {
            let letter = short[..1].to_ascii_uppercase();
            let digits = number.text;
            return Err(UnitError {
                message: format!("`{text}` may mean powers of 1,000 or of 1,024"),
                remedy: format!("write {digits}{letter}B (1,000) or {digits}{letter}iB (1,024)"),
            });
        }
        other => return refuse(format!("`{other}` is not a unit of size")),
    };
    match number.times(scale) {
        Some(bytes) => Ok(bytes),
        None => refuse(format!("`{text}` is not a whole number of bytes below 2^64")),
    }
}

/// A span of time. Units `ns us ms s min h days weeks` (and their usual spellings); several may follow one another
/// (`1h30m`). `m` is minutes. A number without a unit is refused, except `0`.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    let refuse = |message| Err(UnitError { message, remedy: TIME_REMEDY.into() });
    let mut total_ns: u64 = 0;
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    loop {
        let Some((number, unit, after)) = quantity(rest) else {
            return refuse(format!("`{text}` is not a span of time"));
        };
        let scale_ns: u64 = match unit {
            "ns" | "nanos" => 1,
            "us" | "µs" | "μs" | "micros" => 1_000,
            "ms" | "millis" => 1_000_000,
            "s" | "sec" | "secs" | "second" | "seconds" => 1_000_000_000,
            "m" | "min" | "mins" | "minute" | "minutes" => 60_000_000_000,
            "h" | "hr" | "hour" | "hours" => 3_600_000_000_000,
            "d" | "day" | "days" => 86_400_000_000_000,
            "w" | "week" | "weeks" => 604_800_000_000_000,
            "" => {
                return Err(UnitError {
                    message: format!("`{text}` has no unit of time"),
                    remedy: format!(
                        "write {0}s for seconds or {0}ms for milliseconds",
                        number.text
                    ),
                });
            }
            other => return refuse(format!("`{other}` is not a unit of time")),
        };
        let sum = number.times(scale_ns).and_then(|part_ns| total_ns.checked_add(part_ns));
        match sum {
            Some(sum) => total_ns = sum,
            None => {
                return refuse(format!(
                    "`{text}` is not a whole number of nanoseconds below 584 years"
                ));
            }
        }
        rest = after;
        if rest.is_empty() {
            return Ok(Duration::from_nanos(total_ns));
        }
    }
}

/// Events per second: `200`, `5k`, `1.5M`, `5k/s`, `300/min`, `10/h`. `k`, `M` and `G` are powers of 1,000.
pub fn rate(text: &str) -> Result<f64, UnitError> {
    let refuse = |message| Err(UnitError { message, remedy: RATE_REMEDY.into() });
    let (count, per) = match text.split_once('/') {
        Some((count, per)) => (count, per.trim()),
        None => (text, "s"),
    };
    let Some((number, unit, "")) = quantity(count) else {
        return refuse(format!("`{text}` is not a rate"));
    };
    let scale: u64 = match unit {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        other => return refuse(format!("`{other}` is not a factor of a rate")),
    };
    let seconds = match per {
        "s" | "sec" | "second" => 1.0,
        "m" | "min" | "minute" => 60.0,
        "h" | "hour" => 3_600.0,
        "d" | "day" => 86_400.0,
        other => return refuse(format!("`{other}` is not what a rate is counted per")),
    };
    match number.times(scale) {
        Some(count) => Ok(count as f64 / seconds),
        None => refuse(format!("`{text}` is not a whole number of events")),
    }
}

/// Bytes a second: `10MB/s`, `64KiB/s`.
pub fn byte_rate(text: &str) -> Result<u64, UnitError> {
    let size = text.trim().strip_suffix("/s").ok_or_else(|| UnitError {
        message: format!("`{text}` is not a number of bytes a second"),
        remedy: "write a size and `/s`, such as 10MB/s".into(),
    })?;
    bytes(size)
}

/// An objective for latency: a percentile stays under a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// Above 0 and below 100.
    pub percentile: f64,
    /// What it stays under.
    pub below: Duration,
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{} < {}", self.percentile, show_duration(self.below))
    }
}

/// An objective for latency: `p99 < 10ms`; `<=` is taken for `<`.
pub fn objective(text: &str) -> Result<Objective, UnitError> {
    let refuse = || UnitError {
        message: format!("`{text}` is not an objective for latency"),
        remedy: "write a percentile and the time that it stays under, such as `p99 < 10ms`".into(),
    };
    let (percentile, below) = text.split_once('<').ok_or_else(refuse)?;
    let percentile = percentile.trim().strip_prefix('p').ok_or_else(refuse)?;
    let is_number = percentile.chars().all(|c| c.is_ascii_digit() || c == '.');
    let percentile: f64 = percentile.parse().ok().filter(|_| is_number).ok_or_else(refuse)?;
    let below = duration(below.strip_prefix('=').unwrap_or(below))?;
    if percentile <= 0.0 || percentile >= 100.0 || below.is_zero() {
        return Err(refuse());
    }
    Ok(Objective { percentile, below })
}

/// A day of the Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    /// 1970 to 9999.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
}

impl Date {
    /// The day, in UTC, of a time in seconds since 1970 (Hinnant, "chrono-compatible low-level date algorithms").
    pub fn of_unix_seconds(seconds: u64) -> Self {
        let days = seconds / 86_400 + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months count from March, so that the leap day is the last of the year.
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        Self { year: year.min(9_999) as u16, month: month as u8, day: day as u8 }
    }

    fn days_of_month(year: u16, month: u8) -> u8 {
        let is_leap =
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        match month {
            2 => 28 + u8::from(is_leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

/// A day as ISO 8601 writes it: `2027-01-31`.
pub fn date(text: &str) -> Result<Date, UnitError> {
    let read = || {
        let mut parts = text.split('-');
        let mut part = |digits: usize| {
            let part = parts.next()?;
            let fits = part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit());
            fits.then(|| part.parse::<u16>().ok())?
        };
        let (year, month, day) = (part(4)?, part(2)? as u8, part(2)? as u8);
        let is_day = parts.next().is_none()
            && year >= 1970
            && (1..=12).contains(&month)
            && (1..=Date::days_of_month(year, month)).contains(&day);
        is_day.then_some(Date { year, month, day })
    };
    read().ok_or_else(|| UnitError {
        message: format!("`{text}` is not a day"),
        remedy: "write year, month and day, such as 2027-01-31".into(),
    })
}

/// Events a second for people: `5k/s`, `0.2/s`; reads back where it is a whole number a second.
pub fn show_rate(rate: f64) -> String {
    for (scale, letter) in [(1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if rate >= scale && (rate * 1e3 / scale).fract() == 0.0 {
            return format!("{}{letter}/s", rate / scale);
        }
    }
    // What is whole in a longer time was written so, and is read back so.
    for (seconds, per) in [(1.0, "s"), (60.0, "min"), (3_600.0, "h"), (86_400.0, "d")] {
        let count = rate * seconds;
        if count.round() >= 1.0 && (count - count.round()).abs() < 1e-6 {
            return format!("{}/{per}", count.round());
        }
    }
    format!("{}/s", (rate * 1e3).round() / 1e3)
}

/// A size as the shortest exact text that [`bytes`] reads back to the same number.
pub fn show_bytes(bytes: u64) -> String {
    let units: [(u64, &str); 8] = [
        (1 << 40, "TiB"),
        (1_000_000_000_000, "TB"),
        (1 << 30, "GiB"),
        (1_000_000_000, "GB"),
        (1 << 20, "MiB"),
        (1_000_000, "MB"),
        (1 << 10, "KiB"),
        (1_000, "KB"),
    ];
    for (scale, unit) in units {
        if bytes >= scale && bytes.is_multiple_of(scale) {
            return format!("{}{unit}", bytes / scale);
        }
    }
    format!("{bytes}B")
}

/// A size for people, rounded to one decimal of a binary unit (`15.2GiB`); not meant to be read back.
pub fn round_bytes(bytes: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (scale, unit) in units {
        if bytes >= scale {
            let text = format!("{:.1}", bytes as f64 / scale as f64);
            return format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text));
        }
    }
    format!("{bytes}B")
}

/// A span of time as text that [`duration`] reads back to the same span, in its largest whole unit.
pub fn show_duration(span: Duration) -> String {
    let ns = span.as_nanos();
    let units: [(u128, &str); 7] = [
        (86_400_000_000_000, "days"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "min"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
        (1, "ns"),
    ];
    for (scale, unit) in units {
        if ns >= scale && ns.is_multiple_of(scale) {
            return format!("{}{unit}", ns / scale);
        }
    }
    "0".into()
}

/// A decimal number, kept exact: `digits / 10^decimals`.
struct Number<'a> {
    text: &'a str,
    digits: u128,
    decimals: u32,
}

impl Number<'_> {
    /// The number times `scale`, where that is a whole number that fits.
    fn times(&self, scale: u64) -> Option<u64> {
        let product = self.digits.checked_mul(u128::from(scale))?;
        let divisor = 10u128.checked_pow(self.decimals)?;
        if !product.is_multiple_of(divisor) {
            return None;
        }
        u64::try_from(product / divisor).ok()
    }
}

/// Splits the first quantity off: its number, its unit (letters, perhaps none), and what follows. `None` where the
/// text does not start with a number. Digits may be grouped by `_`; a space may stand before the unit.
fn quantity(text: &str) -> Option<(Number<'_>, &str, &str)> {
    let text = text.trim();
    let number_end =
        text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    let (number, rest) = text.split_at(number_end);
    let (whole, fraction) = match number.split_once('.') {
        Some((_, "")) => return None,
        Some((whole, fraction)) => (whole, fraction),
        None => (number, ""),
    };
    if !whole.starts_with(|c: char| c.is_ascii_digit()) || fraction.contains('.') {
        return None;
    }
    let mut digits: u128 = 0;
    for c in whole.chars().chain(fraction.chars()).filter(|c| *c != '_') {
        digits = digits.checked_mul(10)?.checked_add(u128::from(c.to_digit(10)?))?;
    }
    let decimals = u32::try_from(fraction.chars().filter(|c| *c != '_').count()).ok()?;
    let rest = rest.trim_start();
    let unit_end = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
    let (unit, after) = rest.split_at(unit_end);
    Some((Number { text: number, digits, decimals }, unit, after.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_the_way_people_write_them() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("4_194_304", 4_194_304),
            ("12B", 12),
            ("50KB", 50_000),
            ("50kb", 50_000),
            ("64MiB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("2TB", 2_000_000_000_000),
            ("1TiB", 1 << 40),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, expected) in cases {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn sizes_that_mean_nothing_are_refused_with_a_remedy() {
        let cases = [
            (
                "",
                "`` is not a size (write a number of bytes or a size such as 50KB, 64MiB or 1.5GiB)",
            ),
            (
                "-1",
                "`-1` is not a size (write a number of bytes or a size such as 50KB, 64MiB or 1.5GiB)",
            ),
            (
                "64M",
                "`64M` may mean powers of 1,000 or of 1,024 (write 64MB (1,000) or 64MiB (1,024))",
            ),
            (
                "64Mi",
                "`64Mi` may mean powers of 1,000 or of 1,024 (write 64MB (1,000) or 64MiB (1,024))",
            ),
            (
                "3 parsecs",
                "`parsecs` is not a unit of size (write a number of bytes or a size such as 50KB, 64MiB or 1.5GiB)",
            ),
            (
                "1.5B",
                "`1.5B` is not a whole number of bytes below 2^64 (write a number of bytes or a size such as 50KB, 64MiB or 1.5GiB)",
            ),
            (
                "99999999999TiB",
                "`99999999999TiB` is not a whole number of bytes below 2^64 (write a number of bytes or a size such as 50KB, 64MiB or 1.5GiB)",
            ),
            (
                "1MB2KB",
                "`1MB2KB` is not a size (write a number of bytes or a size such as 50KB, 64MiB or 1.5GiB)",
            ),
            (
                "1.",
                "`1.` is not a size (write a number of bytes or a size such as 50KB, 64MiB or 1.5GiB)",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(bytes(text).unwrap_err().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn times_are_read_the_way_people_write_them() {
        let cases = [
            ("0", 0),
            ("10ms", 10_000_000),
            ("250us", 250_000),
            ("250µs", 250_000),
            ("1.5s", 1_500_000_000),
            ("30days", 30 * 86_400_000_000_000),
            ("30 days", 30 * 86_400_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1h 30min", 5_400_000_000_000),
            ("2weeks", 14 * 86_400_000_000_000),
        ];
        for (text, expected_ns) in cases {
            assert_eq!(duration(text), Ok(Duration::from_nanos(expected_ns)), "{text}");
        }
    }

    #[test]
    fn times_that_mean_nothing_are_refused_with_a_remedy() {
        let cases = [
            ("30", "`30` has no unit of time (write 30s for seconds or 30ms for milliseconds)"),
            (
                "soon",
                "`soon` is not a span of time (write a number and its unit, such as 10ms, 30s, 1h30m or 30days)",
            ),
            (
                "5 months",
                "`months` is not a unit of time (write a number and its unit, such as 10ms, 30s, 1h30m or 30days)",
            ),
            (
                "0.5ns",
                "`0.5ns` is not a whole number of nanoseconds below 584 years (write a number and its unit, such as 10ms, 30s, 1h30m or 30days)",
            ),
            (
                "1000000days",
                "`1000000days` is not a whole number of nanoseconds below 584 years (write a number and its unit, such as 10ms, 30s, 1h30m or 30days)",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(duration(text).unwrap_err().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn rates_count_per_second_unless_they_say_otherwise() {
        for (text, expected) in
            [("200", 200.0), ("5k", 5_000.0), ("1.5M/s", 1_500_000.0), ("300/min", 5.0)]
        {
            assert_eq!(rate(text), Ok(expected), "{text}");
        }
        assert_eq!(
            rate("5kk").unwrap_err().to_string(),
            "`kk` is not a factor of a rate (write a number per second such as 200, 5k or 1.5M, or 300/min)"
        );
    }

    #[test]
    fn rates_of_bytes_objectives_and_days_are_read_or_refused() {
        assert_eq!(byte_rate("10MB/s"), Ok(10_000_000));
        assert!(byte_rate("10MB").is_err() && byte_rate("10MB/min").is_err());
        for text in ["p99 < 10ms", "p99<10ms", "p99 <= 10ms"] {
            assert_eq!(objective(text).unwrap().to_string(), "p99 < 10ms", "{text}");
        }
        for text in ["p99", "99 < 10ms", "p100 < 1s", "p0 < 1s", "p-1 < 1s", "p99 < 0", "p99 < 5"] {
            assert!(objective(text).is_err(), "{text}");
        }
        for text in ["1970-01-01", "2024-02-29", "2026-11-26", "9999-12-31"] {
            assert_eq!(date(text).unwrap().to_string(), text);
        }
        for text in [
            "2023-02-29",
            "2027-13-01",
            "2027-1-1",
            "27-01-01",
            "2027-01-01-1",
            "soon",
            "+027-01-01",
        ] {
            assert_eq!(date(text).unwrap_err().message, format!("`{text}` is not a day"));
        }
        for (seconds, expected) in
            [(0, "1970-01-01"), (951_782_400, "2000-02-29"), (1_795_651_200, "2026-11-26")]
        {
            assert_eq!(Date::of_unix_seconds(seconds).to_string(), expected);
        }
        for (rate, expected) in [
            (5_000.0, "5k/s"),
            (200.0, "200/s"),
            (1.5e6, "1.5M/s"),
            (0.2, "12/min"),
            (10.0 / 3_600.0, "10/h"),
        ] {
            assert_eq!(show_rate(rate), expected);
        }
    }

    #[test]
    fn what_is_shown_reads_back_as_itself() {
        for value in [0, 1, 999, 1_000, 1_024, 50_000, 4 << 20, 64 << 20, 3 << 29, u64::MAX] {
            assert_eq!(bytes(&show_bytes(value)), Ok(value));
        }
        for span in [0, 1, 1_500, 250_000, 10_000_000, 90_000_000_000, 30 * 86_400_000_000_000] {
            let span = Duration::from_nanos(span);
            assert_eq!(duration(&show_duration(span)), Ok(span));
        }
        assert_eq!(show_bytes(64 << 20), "64MiB");
        assert_eq!(round_bytes(16_321_000_000), "15.2GiB");
        assert_eq!(round_bytes(4 << 30), "4GiB");
        assert_eq!(show_duration(Duration::from_secs(86_400 * 30)), "30days");
    }
}
