//! `grpc-timeout` (gRPC `PROTOCOL-HTTP2.md`): at most eight digits and a unit.

use std::time::Duration;

/// Reads a timeout. `None` when it is malformed.
pub fn parse(value: &[u8]) -> Option<Duration> {
    let (&unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let mut number = 0u64;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        number = number * 10 + u64::from(digit - b'0');
    }
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Appends a timeout in the finest unit that holds it in eight digits, rounded up.
pub fn write(timeout: Duration, into: &mut Vec<u8>) {
    const NUMBER_MAX: u128 = 99_999_999;
    const UNITS: [(u8, u128); 6] = [
        (b'n', 1),
        (b'u', 1_000),
        (b'm', 1_000_000),
        (b'S', 1_000_000_000),
        (b'M', 60_000_000_000),
        (b'H', 3_600_000_000_000),
    ];
    let ns = timeout.as_nanos();
    let fitting = UNITS.iter().find(|(_, unit_ns)| ns.div_ceil(*unit_ns) <= NUMBER_MAX);
    let (unit, number) = match fitting {
        Some((unit, unit_ns)) => (*unit, ns.div_ceil(*unit_ns) as u64),
        None => (b'H', NUMBER_MAX as u64),
    };
    let mut digits = [0; 8];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    into.extend_from_slice(&digits[at..]);
    into.push(unit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_unit_and_refuses_the_rest() {
        for (text, timeout) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("0n", Some(Duration::ZERO)),
            ("100000000n", None),
            ("1", None),
            ("S", None),
            ("", None),
            ("1s", None),
            ("-1S", None),
            ("1 S", None),
        ] {
            assert_eq!(parse(text.as_bytes()), timeout, "{text}");
        }
    }

    #[test]
    fn written_timeouts_are_never_shorter() {
        for ns in [0, 1, 99_999_999, 100_000_000, 123_456_789_012, u64::MAX] {
            let timeout = Duration::from_nanos(ns);
            let mut text = Vec::new();
            write(timeout, &mut text);
            assert!(text.len() <= 9 && parse(&text).unwrap() >= timeout, "{ns}");
        }
    }
}
