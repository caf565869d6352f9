//! Cursors: where a read goes on, as text that callers hand back as it is.
//!
//! A letter says what follows: the backend's own cursor of a stream, the page token of a scan, the number of a message, or the
//! start that a read began with, before its first page was whole. What the backend binds to its source stays bound.

use prism_proto::prism::r#type::v1::{Start, start};
use prost::Message as _;

use crate::error::Error;

/// Stored state was read to its end.
pub(super) const END: &str = "e.";
const STREAM: &str = "c.";
const PAGE: &str = "k.";
const NUMBER: &str = "n.";
const START: &str = "s.";

/// How much earlier a read of what comes from now on begins when it is resumed before its first page: records that are under
/// way may be stamped a little earlier.
const LATEST_MARGIN_US: u64 = 5_000_000;

/// After a page of a stream.
pub(super) fn of_stream(cursor: &str) -> String {
    format!("{STREAM}{cursor}")
}

/// After a page of a scan.
pub(super) fn of_page(token: &str) -> String {
    if token.is_empty() { END.to_owned() } else { format!("{PAGE}{token}") }
}

/// After the message with this number.
pub(super) fn of_number(number: u64) -> String {
    format!("{NUMBER}{number}")
}

/// Where a read stands that has handed over nothing yet.
pub(super) fn begin(start: &Start, now_us: u64) -> String {
    let start = match &start.start {
        Some(start::Start::Cursor(cursor)) => return cursor.clone(),
        Some(start::Start::Latest(())) => {
            let since_us = now_us.saturating_sub(LATEST_MARGIN_US);
            let (seconds, nanos) =
                ((since_us / 1_000_000) as i64, (since_us % 1_000_000 / 1000) as i32 * 1_000_000);
            Start { start: Some(start::Start::Since(prost_types::Timestamp { seconds, nanos })) }
        }
        _ => start.clone(),
    };
    let hex: String = start.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{START}{hex}")
}

fn invalid() -> Error {
    let expected = "must be a cursor as it was told, of the same namespace and source";
    Error::field("CURSOR_INVALID", "start.cursor", expected)
}

/// The start that a cursor stands for.
fn read_start(hex: &str) -> Result<Start, Error> {
    let digits = hex.as_bytes().chunks(2);
    let byte = |pair: &[u8]| {
        std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok())
    };
    let bytes: Option<Vec<u8>> = digits.map(byte).collect();
    let start = bytes.and_then(|bytes| Start::decode(&bytes[..]).ok());
    match start {
        Some(Start { start: None | Some(start::Start::Cursor(_)) }) | None => Err(invalid()),
        Some(start) => Ok(start),
    }
}

/// The start of a stream's read for the backend.
pub(super) fn resumed(start: &Start) -> Result<Start, Error> {
    let Some(start::Start::Cursor(cursor)) = &start.start else { return Ok(start.clone()) };
    if let Some(cursor) = cursor.strip_prefix(STREAM) {
        return Ok(Start { start: Some(start::Start::Cursor(cursor.to_owned())) });
    }
    cursor.strip_prefix(START).ok_or_else(invalid).and_then(read_start)
}

/// The page token of a scan; `None` at its end.
pub(super) fn page_token(start: &Start) -> Result<Option<String>, Error> {
    let Some(start::Start::Cursor(cursor)) = &start.start else { return Ok(Some(String::new())) };
    if cursor == END {
        return Ok(None);
    }
    if let Some(token) = cursor.strip_prefix(PAGE) {
        return Ok(Some(token.to_owned()));
    }
    cursor.strip_prefix(START).ok_or_else(invalid).and_then(read_start).map(|_| Some(String::new()))
}

/// The number of the message that a read of a queue goes on after; `None` from the first.
pub(super) fn after_number(start: &Start) -> Result<Option<u64>, Error> {
    let Some(start::Start::Cursor(cursor)) = &start.start else { return Ok(None) };
    if let Some(number) = cursor.strip_prefix(NUMBER) {
        return number.parse().map(Some).map_err(|_| invalid());
    }
    cursor.strip_prefix(START).ok_or_else(invalid).and_then(read_start).map(|_| None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(cursor: &str) -> Start {
        Start { start: Some(start::Start::Cursor(cursor.to_owned())) }
    }

    #[test]
    fn a_cursor_leads_back_to_where_it_was_made() {
        let earliest = Start { start: Some(start::Start::Earliest(())) };
        assert_eq!(resumed(&at(&begin(&earliest, 7))), Ok(earliest.clone()));
        assert_eq!(page_token(&at(&begin(&earliest, 7))), Ok(Some(String::new())));
        assert_eq!(after_number(&at(&begin(&earliest, 7))), Ok(None));
        assert_eq!(resumed(&at(&of_stream("x"))), Ok(at("x")));
        assert_eq!(page_token(&at(&of_page("x"))), Ok(Some("x".to_owned())));
        assert_eq!(page_token(&at(&of_page(""))), Ok(None));
        assert_eq!(after_number(&at(&of_number(12))), Ok(Some(12)));
        let latest = Start { start: Some(start::Start::Latest(())) };
        let resumed = resumed(&at(&begin(&latest, 60_000_000))).unwrap();
        let since = prost_types::Timestamp { seconds: 55, nanos: 0 };
        assert_eq!(resumed.start, Some(start::Start::Since(since)));
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        for text in ["", "x", "s.", "s.zz", "s.0", "n.x", "s.32022d2d", "ü"] {
            assert!(resumed(&at(text)).is_err(), "{text}");
            assert!(page_token(&at(text)).is_err(), "{text}");
            assert!(after_number(&at(text)).is_err(), "{text}");
        }
    }
}
