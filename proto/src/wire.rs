//! Zero-copy protobuf: reads and writes the wire format in place.
//!
//! For code that must not allocate per call: the router, the request views and
//! the reply encoders. Everything borrows from the buffer it was given; every
//! length is checked; nothing panics on any input and nothing recurses.
//! Semantics are those of the protobuf encoding specification
//! (<https://protobuf.dev/programming-guides/encoding/>), with fewer freedoms
//! where noted. It never knows what a field means, except that field 1 of
//! every request is its namespace.

use std::fmt;

mod repeated;
mod write;

pub use repeated::{Element, Repeated, RepeatedIter};
pub use write::{bytes_field_len, put_bytes, put_length, put_tag, put_varint, varint_len};

/// Groups nested deeper than this inside an unknown field are refused.
pub const GROUP_DEPTH_MAX: usize = 64;

/// Why bytes are not the message that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The buffer ends inside a field.
    Truncated,
    /// A varint has more than ten bytes or more than 64 bits.
    VarintOverflow,
    /// A tag with field number 0, or beyond 32 bits.
    InvalidTag,
    /// Wire types 6 and 7 do not exist; an end of group without its start.
    InvalidWireType,
    /// A known field with a wire type that its declared type does not have.
    WrongWireType {
        /// The field's number.
        field: u32,
    },
    /// A string field that is not UTF-8.
    InvalidUtf8 {
        /// The field's number.
        field: u32,
    },
    /// A field that may be there only once.
    Duplicate {
        /// The field's number.
        field: u32,
    },
    /// Groups nested deeper than [`GROUP_DEPTH_MAX`], or closed in the wrong order.
    InvalidGroup,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Truncated => f.write_str("the message ends inside a field"),
            DecodeError::VarintOverflow => f.write_str("a varint is longer than 64 bits"),
            DecodeError::InvalidTag => f.write_str("invalid field number"),
            DecodeError::InvalidWireType => f.write_str("invalid wire type"),
            DecodeError::WrongWireType { field } => {
                write!(f, "field {field} has the wrong wire type")
            }
            DecodeError::InvalidUtf8 { field } => write!(f, "field {field} is not UTF-8"),
            DecodeError::Duplicate { field } => write!(f, "field {field} is given twice"),
            DecodeError::InvalidGroup => f.write_str("invalid group"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// How a field's value is laid out; the low three bits of its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WireType {
    /// A varint.
    Varint = 0,
    /// Eight bytes.
    Fixed64 = 1,
    /// A length and as many bytes.
    LengthDelimited = 2,
    /// The start of a group (obsolete).
    StartGroup = 3,
    /// The end of a group (obsolete).
    EndGroup = 4,
    /// Four bytes.
    Fixed32 = 5,
}

/// The tag of a field: number and wire type as they are on the wire.
pub const fn tag(number: u32, wire: WireType) -> u32 {
    number << 3 | wire as u32
}

/// Reads a message front to back.
///
/// After an error the position is unspecified; the message is to be dropped.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    buf: &'a [u8],
    pos: usize,
}

impl<'a> Reader<'a> {
    /// Reads `buf` from its beginning.
    #[inline]
    pub const fn new(buf: &'a [u8]) -> Self {
        Reader { buf, pos: 0 }
    }

    /// The whole buffer, also what was read already.
    #[inline]
    pub const fn buffer(&self) -> &'a [u8] {
        self.buf
    }

    /// Bytes read so far.
    #[inline]
    pub const fn position(&self) -> usize {
        self.pos
    }

    /// Nothing is left.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.pos >= self.buf.len()
    }

    /// The next tag (see [`tag`]), or `None` at the end. Its field number is not 0.
    #[inline]
    pub fn tag(&mut self) -> Result<Option<u32>, DecodeError> {
        let Some(&first) = self.buf.get(self.pos) else { return Ok(None) };
        let tag = if first < 0x80 {
            self.pos += 1;
            u32::from(first)
        } else {
            u32::try_from(self.varint()?).map_err(|_| DecodeError::InvalidTag)?
        };
        if tag < 8 { Err(DecodeError::InvalidTag) } else { Ok(Some(tag)) }
    }

    /// The next varint.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        match self.buf.get(self.pos) {
            Some(&byte) if byte < 0x80 => {
                self.pos += 1;
                Ok(u64::from(byte))
            }
            Some(_) => self.varint_slow(),
            None => Err(DecodeError::Truncated),
        }
    }

    fn varint_slow(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for index in 0..10 {
            let &byte = self.buf.get(self.pos).ok_or(DecodeError::Truncated)?;
            self.pos += 1;
            if index == 9 && byte > 1 {
                return Err(DecodeError::VarintOverflow);
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::VarintOverflow)
    }

    /// The next `len` bytes.
    #[inline]
    fn take(&mut self, len: u64) -> Result<&'a [u8], DecodeError> {
        let rest = &self.buf[self.pos..];
        if len > rest.len() as u64 {
            return Err(DecodeError::Truncated);
        }
        self.pos += len as usize;
        Ok(&rest[..len as usize])
    }

    /// The next length and its bytes.
    #[inline]
    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.varint()?;
        self.take(len)
    }

    /// The next length and its bytes, which must be UTF-8. `field` is for the error.
    #[inline]
    pub fn string(&mut self, field: u32) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::InvalidUtf8 { field })
    }

    /// The next four bytes.
    #[inline]
    pub fn fixed32(&mut self) -> Result<[u8; 4], DecodeError> {
        let mut out = [0; 4];
        out.copy_from_slice(self.take(4)?);
        Ok(out)
    }

    /// The next eight bytes.
    #[inline]
    pub fn fixed64(&mut self) -> Result<[u8; 8], DecodeError> {
        let mut out = [0; 8];
        out.copy_from_slice(self.take(8)?);
        Ok(out)
    }

    /// Passes over the value whose tag was just read.
    #[inline]
    pub fn skip(&mut self, tag: u32) -> Result<(), DecodeError> {
        match tag & 7 {
            0 => self.varint().map(drop),
            1 => self.take(8).map(drop),
            2 => self.bytes().map(drop),
            3 => self.skip_group(tag >> 3),
            5 => self.take(4).map(drop),
            _ => Err(DecodeError::InvalidWireType),
        }
    }

    #[cold]
    fn skip_group(&mut self, number: u32) -> Result<(), DecodeError> {
        let mut open = [0u32; GROUP_DEPTH_MAX];
        open[0] = number;
        let mut depth = 1;
        while depth > 0 {
            let tag = self.tag()?.ok_or(DecodeError::Truncated)?;
            match tag & 7 {
                3 if depth == GROUP_DEPTH_MAX => return Err(DecodeError::InvalidGroup),
                3 => {
                    open[depth] = tag >> 3;
                    depth += 1;
                }
                4 if open[depth - 1] == tag >> 3 => depth -= 1,
                4 => return Err(DecodeError::InvalidGroup),
                _ => self.skip(tag)?,
            }
        }
        Ok(())
    }

    /// Passes over a field that is not among `known`; one that is has come
    /// with the wrong wire type.
    #[inline]
    pub fn skip_unknown(&mut self, tag: u32, known: &[u32]) -> Result<(), DecodeError> {
        if known.contains(&(tag >> 3)) {
            return Err(DecodeError::WrongWireType { field: tag >> 3 });
        }
        self.skip(tag)
    }
}

/// A field's value as it is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A varint.
    Varint(u64),
    /// Eight bytes, little-endian.
    Fixed64([u8; 8]),
    /// A string, bytes, a message or packed scalars.
    Bytes(&'a [u8]),
    /// Four bytes, little-endian.
    Fixed32([u8; 4]),
    /// A group, passed over.
    Group,
}

/// The top-level fields of a message, in wire order, as (number, value).
/// Ends after the first error.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    reader: Reader<'a>,
    failed: bool,
}

/// The top-level fields of the message in `buf`.
pub const fn fields(buf: &[u8]) -> Fields<'_> {
    Fields { reader: Reader::new(buf), failed: false }
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Result<Option<(u32, Value<'a>)>, DecodeError> {
        let Some(tag) = self.reader.tag()? else { return Ok(None) };
        let value = match tag & 7 {
            0 => Value::Varint(self.reader.varint()?),
            1 => Value::Fixed64(self.reader.fixed64()?),
            2 => Value::Bytes(self.reader.bytes()?),
            5 => Value::Fixed32(self.reader.fixed32()?),
            _ => {
                self.reader.skip(tag)?;
                Value::Group
            }
        };
        Ok(Some((tag >> 3, value)))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.read().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

/// What the router needs of a request.
///
/// Bytes as received: whoever compares them with the names of namespaces, or
/// hashes them, has no need to know that they are UTF-8; decoding checks it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route<'a> {
    /// Field 1; empty when it is not there.
    pub namespace: &'a [u8],
    /// The key field; empty when it is not there or not asked for.
    pub key: &'a [u8],
}

/// Reads the namespace (field 1) and, in the same pass over the top-level
/// tags, the string field `key_field`. Values of other fields are passed over.
///
/// Either field twice is refused: for a scalar given twice the last one
/// counts, and no reader on the way may be of another opinion.
pub fn route(buf: &[u8], key_field: Option<u32>) -> Result<Route<'_>, DecodeError> {
    const NAMESPACE: u32 = 1;
    let key_field = key_field.unwrap_or(0);
    let mut reader = Reader::new(buf);
    let mut route = Route::default();
    let (mut namespace_seen, mut key_seen) = (false, false);
    while let Some(tag) = reader.tag()? {
        let field = tag >> 3;
        if field != NAMESPACE && field != key_field {
            reader.skip(tag)?;
            continue;
        }
        if tag & 7 != WireType::LengthDelimited as u32 {
            return Err(DecodeError::WrongWireType { field });
        }
        let (slot, seen) = if field == NAMESPACE {
            (&mut route.namespace, &mut namespace_seen)
        } else {
            (&mut route.key, &mut key_seen)
        };
        if std::mem::replace(seen, true) {
            return Err(DecodeError::Duplicate { field });
        }
        *slot = reader.bytes()?;
    }
    Ok(route)
}

/// The namespace of a request: its field 1, empty when it is not there.
/// Refuses a request that carries it twice.
pub fn namespace_of(buf: &[u8]) -> Result<&str, DecodeError> {
    let namespace = route(buf, None)?.namespace;
    std::str::from_utf8(namespace).map_err(|_| DecodeError::InvalidUtf8 { field: 1 })
}

/// The top-level string field `number`, or `None` when it is not there.
/// Refuses a message that carries it twice.
pub fn field_str(buf: &[u8], number: u32) -> Result<Option<&str>, DecodeError> {
    let mut reader = Reader::new(buf);
    let mut found = None;
    while let Some(tag) = reader.tag()? {
        if tag >> 3 != number {
            reader.skip(tag)?;
        } else if tag & 7 != WireType::LengthDelimited as u32 {
            return Err(DecodeError::WrongWireType { field: number });
        } else if found.is_some() {
            return Err(DecodeError::Duplicate { field: number });
        } else {
            found = Some(reader.string(number)?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_and_key_are_read_past_everything_else() {
        let mut request = Vec::new();
        put_bytes(&mut request, 9, b"unknown");
        put_tag(&mut request, 7, WireType::Fixed64);
        request.extend_from_slice(&[0; 8]);
        put_bytes(&mut request, 2, b"key");
        put_bytes(&mut request, 1, "m\u{fc}nchen".as_bytes());
        assert_eq!(namespace_of(&request), Ok("m\u{fc}nchen"));
        let routed = Route { namespace: "m\u{fc}nchen".as_bytes(), key: b"key" };
        assert_eq!(route(&request, Some(2)), Ok(routed));
        assert_eq!(route(&request, None).map(|route| route.key), Ok(b"".as_slice()));
        assert_eq!(field_str(&request, 2), Ok(Some("key")));
        assert_eq!(field_str(&request, 3), Ok(None));
        assert_eq!(namespace_of(b""), Ok(""));
    }

    #[test]
    fn a_namespace_given_twice_is_refused_even_when_it_is_the_same() {
        let mut request = Vec::new();
        put_bytes(&mut request, 1, b"a");
        put_bytes(&mut request, 2, b"k");
        put_bytes(&mut request, 1, b"a");
        assert_eq!(namespace_of(&request), Err(DecodeError::Duplicate { field: 1 }));
        put_bytes(&mut request, 2, b"k");
        assert_eq!(field_str(&request, 2), Err(DecodeError::Duplicate { field: 2 }));
    }

    #[test]
    fn what_is_no_string_is_no_namespace() {
        assert_eq!(namespace_of(b"\x0a\x01\xff"), Err(DecodeError::InvalidUtf8 { field: 1 }));
        assert_eq!(namespace_of(b"\x08\x01"), Err(DecodeError::WrongWireType { field: 1 }));
        assert_eq!(namespace_of(b"\x0a\x02a"), Err(DecodeError::Truncated));
        assert_eq!(
            namespace_of(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
            Err(DecodeError::Truncated)
        );
        assert_eq!(namespace_of(b"\x02\x00"), Err(DecodeError::InvalidTag));
        assert_eq!(namespace_of(b"\x17"), Err(DecodeError::InvalidWireType));
        assert_eq!(namespace_of(b"\x0c"), Err(DecodeError::WrongWireType { field: 1 }));
        assert_eq!(namespace_of(b"\x14"), Err(DecodeError::InvalidWireType));
    }

    #[test]
    fn overlong_varints_are_refused() {
        let longest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(Reader::new(&longest).varint(), Ok(u64::MAX));
        let mut beyond = longest;
        beyond[9] = 2;
        assert_eq!(Reader::new(&beyond).varint(), Err(DecodeError::VarintOverflow));
        assert_eq!(Reader::new(&[0x80; 11]).varint(), Err(DecodeError::VarintOverflow));
        assert_eq!(Reader::new(&[0x80; 9]).varint(), Err(DecodeError::Truncated));
    }

    #[test]
    fn groups_are_passed_over_without_recursion() {
        let nested = |depth: usize| [vec![0x33; depth], vec![0x34; depth]].concat();
        assert_eq!(namespace_of(&nested(GROUP_DEPTH_MAX)), Ok(""));
        assert_eq!(namespace_of(&nested(GROUP_DEPTH_MAX + 1)), Err(DecodeError::InvalidGroup));
        assert_eq!(namespace_of(&vec![0x33; 1 << 20]), Err(DecodeError::InvalidGroup));
        assert_eq!(namespace_of(&[0x33, 0x3c]), Err(DecodeError::InvalidGroup));
        assert_eq!(namespace_of(&[0x33]), Err(DecodeError::Truncated));
    }

    #[test]
    fn fields_end_after_the_first_error() {
        let mut buf = Vec::new();
        put_bytes(&mut buf, 1, b"x");
        put_tag(&mut buf, 3, WireType::Varint);
        put_varint(&mut buf, 300);
        buf.push(0x0a);
        let read: Vec<_> = fields(&buf).collect();
        assert_eq!(
            read,
            [
                Ok((1, Value::Bytes(b"x".as_slice()))),
                Ok((3, Value::Varint(300))),
                Err(DecodeError::Truncated)
            ]
        );
    }
}
