//! The extended protocol as far as it is used: a statement's call written, a row read. Everything is binary.
//!
//! Login, simple queries and the framing of answers are postgres-protocol's; written here is what stands in every batch, and the
//! bound on what a peer may announce. <https://www.postgresql.org/docs/15/protocol-message-formats.html>

use bytes::{Bytes, BytesMut};
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::{DataRowBody, Message};

/// Longest message that is taken: PostgreSQL's own bound on a value is 1 GiB, ours on what we ask for far below this.
pub(super) const MESSAGE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Columns that the rows of every statement begin with.
const COLUMNS: usize = 6;

/// Columns that may follow them.
const MORE_MAX: usize = 16;

/// µs from the Unix epoch to PostgreSQL's, the beginning of 2000.
const EPOCH_US: i64 = 946_684_800_000_000;

/// The peer does not speak the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProtocolError(pub(super) &'static str);

/// Types of array elements. <https://www.postgresql.org/docs/15/catalog-pg-type.html>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Int2 = 21,
    Int8 = 20,
    Text = 25,
    Bytea = 17,
    Timestamptz = 1184,
}

/// Adds a message whose body `write` writes.
fn put_message(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    put_sized(out, true, write);
}

/// Adds a length in front of what `write` writes; whether it counts itself.
fn put_sized(out: &mut Vec<u8>, counts_itself: bool, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = out.len() - at - if counts_itself { 0 } else { 4 };
    // What is sent is bounded far below 2 GiB by the limits of a message and of a batch.
    out[at..at + 4].copy_from_slice(&(length as u32).to_be_bytes());
}

/// Adds a request to prepare a statement under this name.
pub(super) fn put_parse(out: &mut Vec<u8>, name: &str, statement: &str) {
    put_message(out, b'P', |out| {
        for text in [name, statement] {
            out.extend_from_slice(text.as_bytes());
            out.push(0);
        }
        out.extend_from_slice(&[0, 0]);
    });
}

/// Adds a request to run a prepared statement with these parameters.
pub(super) fn put_execute(out: &mut Vec<u8>, name: &str, parameters: &Parameters) {
    put_message(out, b'B', |out| {
        out.push(0);
        out.extend_from_slice(name.as_bytes());
        // Parameters and columns all in binary.
        out.extend_from_slice(&[0, 0, 1, 0, 1]);
        out.extend_from_slice(&parameters.count.to_be_bytes());
        out.extend_from_slice(&parameters.bytes);
        out.extend_from_slice(&[0, 1, 0, 1]);
    });
    put_message(out, b'E', |out| out.extend_from_slice(&[0; 5]));
}

/// Adds the end of a batch: what stands before it is one transaction.
pub(super) fn put_sync(out: &mut Vec<u8>) {
    put_message(out, b'S', |_| {});
}

/// Parameters of one call of a statement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    count: u16,
    bytes: Vec<u8>,
}

impl Parameters {
    /// Length in bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds text or bytes.
    pub(super) fn bytes(mut self, value: &[u8]) -> Self {
        self.count += 1;
        put_bytes(&mut self.bytes, Some(value));
        self
    }

    pub(super) fn int4(self, value: i32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn int8(self, value: i64) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn boolean(self, value: bool) -> Self {
        self.bytes(&[value.into()])
    }

    /// Adds a moment, µs since the Unix epoch.
    pub(super) fn moment(self, us: u64) -> Self {
        self.int8(from_unix_us(us))
    }

    /// Adds an array; an element may be null.
    pub(super) fn array<V: AsRef<[u8]>>(
        mut self,
        element: Type,
        values: impl ExactSizeIterator<Item = Option<V>>,
    ) -> Self {
        self.count += 1;
        put_sized(&mut self.bytes, false, |out| {
            let length = values.len() as u32;
            let dimensions = u32::from(length > 0);
            for word in [dimensions, 1, element as u32] {
                out.extend_from_slice(&word.to_be_bytes());
            }
            if length > 0 {
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(&1u32.to_be_bytes());
            }
            for value in values {
                put_bytes(out, value.as_ref().map(AsRef::as_ref));
            }
        });
        self
    }
}

fn put_bytes(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        Some(value) => {
            out.extend_from_slice(&(value.len() as u32).to_be_bytes());
            out.extend_from_slice(value);
        }
        None => out.extend_from_slice(&(-1i32).to_be_bytes()),
    }
}

/// A moment as PostgreSQL writes it.
pub(super) fn from_unix_us(us: u64) -> i64 {
    i64::try_from(us).unwrap_or(i64::MAX).saturating_sub(EPOCH_US)
}

fn to_unix_us(us: i64) -> u64 {
    us.saturating_add(EPOCH_US).max(0) as u64
}

/// A row of an answer; what every statement tells begins with the same columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    /// Which of the things that were asked for it is about.
    pub(super) number: i64,
    pub(super) key: Bytes,
    /// The value, if it was asked for and not longer than was asked for.
    pub(super) value: Option<Bytes>,
    /// The value's length in bytes.
    pub(super) length: u32,
    pub(super) version: i64,
    /// µs since the Unix epoch.
    pub(super) expires_us: Option<u64>,
    /// What else the statement tells.
    pub(super) more: Vec<Option<Bytes>>,
}

impl Row {
    /// Text of a further column; empty for none.
    pub(super) fn text(&self, place: usize) -> String {
        let bytes = self.more.get(place).and_then(Option::as_deref).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// A number of a further column of type `bigint`.
    pub(super) fn number(&self, place: usize) -> Option<i64> {
        let bytes = self.more.get(place)?.as_deref()?;
        bytes.try_into().ok().map(i64::from_be_bytes)
    }

    /// A moment of a further column, µs since the Unix epoch.
    pub(super) fn moment(&self, place: usize) -> Option<u64> {
        self.number(place).map(to_unix_us)
    }

    pub(super) fn read(body: &DataRowBody) -> Result<Self, ProtocolError> {
        let bytes = body.buffer_bytes();
        let mut columns: [Option<Bytes>; COLUMNS] = Default::default();
        let (mut ranges, mut count) = (body.ranges(), 0);
        let mut more = Vec::new();
        while let Some(range) = ranges.next().map_err(|_| ProtocolError("a row is cut"))? {
            if range.as_ref().is_some_and(|range| range.end > bytes.len()) {
                return Err(ProtocolError("a row is cut"));
            }
            let value = range.map(|range| bytes.slice(range));
            match columns.get_mut(count) {
                Some(column) => *column = value,
                None => more.push(value),
            }
            count += 1;
        }
        if !(COLUMNS..=COLUMNS + MORE_MAX).contains(&count) {
            return Err(ProtocolError("a row has other columns than were asked for"));
        }
        let [number, key, value, length, version, expires] = columns;
        let int8 = |column: &Option<Bytes>| -> Result<Option<i64>, ProtocolError> {
            let Some(bytes) = column else { return Ok(None) };
            let bytes = bytes[..].try_into().map_err(|_| ProtocolError("a number is none"))?;
            Ok(Some(i64::from_be_bytes(bytes)))
        };
        let length = match &length {
            None => 0,
            Some(bytes) => {
                let bytes = bytes[..].try_into().map_err(|_| ProtocolError("a number is none"))?;
                u32::from_be_bytes(bytes)
            }
        };
        Ok(Row {
            number: int8(&number)?.unwrap_or_default(),
            key: key.unwrap_or_default(),
            value,
            length,
            version: int8(&version)?.unwrap_or_default(),
            expires_us: int8(&expires)?.map(to_unix_us),
            more,
        })
    }
}

/// The next whole message of what was read.
///
/// # Errors
/// The peer talks nonsense; nothing that comes after it can be understood.
pub(super) fn next_message(read: &mut BytesMut) -> Result<Option<Message>, ProtocolError> {
    if let Some(length) = read.get(1..5) {
        let length = u32::from_be_bytes(length.try_into().unwrap_or_default()) as usize;
        if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
            return Err(ProtocolError("a message of an impossible length"));
        }
        if read.len() <= length {
            // In one piece, rather than a little more for each read.
            read.reserve(length + 1 - read.len());
            return Ok(None);
        }
    }
    Message::parse(read).map_err(|_| ProtocolError("a message that PostgreSQL does not send"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_call_of_a_statement_as_it_goes_out() {
        let parameters = Parameters::default()
            .bytes(b"k")
            .array(Type::Int8, [Some(1i64.to_be_bytes()), None].into_iter());
        let mut out = Vec::new();
        put_execute(&mut out, "s", &parameters);
        put_sync(&mut out);
        let mut expected = b"B\0\0\0\x3e\0s\0\0\x01\0\x01\0\x02\0\0\0\x01k".to_vec();
        expected.extend_from_slice(b"\0\0\0\x24\0\0\0\x01\0\0\0\x01\0\0\0\x14\0\0\0\x02\0\0\0\x01");
        expected.extend_from_slice(b"\0\0\0\x08\0\0\0\0\0\0\0\x01\xff\xff\xff\xff\0\x01\0\x01");
        expected.extend_from_slice(b"E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04");
        assert_eq!(out, expected);
    }

    fn row(columns: &[Option<&[u8]>]) -> Vec<u8> {
        let mut out = Vec::new();
        put_message(&mut out, b'D', |out| {
            out.extend_from_slice(&(columns.len() as u16).to_be_bytes());
            columns.iter().for_each(|column| put_bytes(out, *column));
        });
        out
    }

    fn read(bytes: &[u8]) -> Result<Row, ProtocolError> {
        match next_message(&mut BytesMut::from(bytes))? {
            Some(Message::DataRow(body)) => Row::read(&body),
            _ => Err(ProtocolError("no row")),
        }
    }

    #[test]
    fn rows_are_read_and_others_refused() {
        let (one, zero) = (1i64.to_be_bytes(), 0i64.to_be_bytes());
        let length = 3u32.to_be_bytes();
        let whole =
            [Some(&one[..]), Some(b"key"), Some(b"val"), Some(&length), Some(&one), Some(&zero)];
        let found = read(&row(&whole)).unwrap();
        assert_eq!((found.number, &found.key[..], found.length), (1, &b"key"[..], 3));
        assert_eq!(found.expires_us, Some(946_684_800_000_000));
        let nulls = read(&row(&[None; 6])).unwrap();
        assert_eq!(nulls, Row::default());
        assert!(read(&row(&whole[..5])).is_err());
        assert!(read(&row(&[Some(b"short"), None, None, None, None, None])).is_err());
        assert!(read(b"D\0\0\0\x02").is_err());
        assert!(read(b"D\xff\xff\xff\xff").is_err());
    }

    #[test]
    fn moments_come_back_as_they_were() {
        for us in [0, 1, 1_700_000_000_123_456, 253_402_300_799_999_999] {
            assert_eq!(to_unix_us(from_unix_us(us)), us);
        }
    }

    proptest! {
        #[test]
        fn no_input_makes_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), tag in any::<u8>()) {
            for whole in [false, true] {
                if whole && bytes.len() >= 5 {
                    let length = bytes.len() as u32 - 1;
                    bytes[1..5].copy_from_slice(&length.to_be_bytes());
                    bytes[0] = tag;
                }
                let mut read = BytesMut::from(&bytes[..]);
                while let Ok(Some(message)) = next_message(&mut read) {
                    if let Message::DataRow(body) = message {
                        let _ = Row::read(&body);
                    }
                }
            }
        }
    }
}
