//! RESP3, the protocol of Redis: commands written, replies found and read, in place.
//!
//! Specification: <https://redis.io/docs/latest/develop/reference/protocol-spec/>. A [`Framer`] says where a reply ends,
//! looking at every byte once however the replies are cut by the network; [`Replies`] then reads what is whole. Neither
//! allocates, recurses, or panics on any input. What a reply may make us hold is bounded. redis-protocol is the oracle
//! of its test.

use std::fmt;

/// The longest line: a simple string, an error, a number.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// The longest blob. Replies are asked for such that none is near it.
const BLOB_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Elements of one reply, those of nested ones included.
const ELEMENTS_MAX: u64 = 1 << 20;

/// The longest reply.
pub(super) const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Digits of the largest number, and a sign.
const NUMBER_BYTES_MAX: usize = 20;

/// Begins a command of so many parts, its name included.
#[inline]
pub(super) fn put_command(out: &mut Vec<u8>, parts: usize) {
    out.push(b'*');
    put_decimal(out, parts as u64);
    out.extend_from_slice(b"\r\n");
}

/// Adds a part.
#[inline]
pub(super) fn put(out: &mut Vec<u8>, part: &[u8]) {
    put_pieces(out, [part, b"", b""]);
}

/// Adds a part that comes in pieces.
#[inline]
pub(super) fn put_pieces(out: &mut Vec<u8>, pieces: [&[u8]; 3]) {
    out.push(b'$');
    put_decimal(out, pieces.iter().map(|piece| piece.len() as u64).sum());
    out.extend_from_slice(b"\r\n");
    for piece in pieces {
        out.extend_from_slice(piece);
    }
    out.extend_from_slice(b"\r\n");
}

/// Adds a number as a part.
#[inline]
pub(super) fn put_number(out: &mut Vec<u8>, number: u64) {
    let mut buffer = [0; NUMBER_BYTES_MAX];
    put(out, decimal(number, &mut buffer));
}

fn put_decimal(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(decimal(number, &mut [0; NUMBER_BYTES_MAX]));
}

fn decimal(mut number: u64, buffer: &mut [u8; NUMBER_BYTES_MAX]) -> &[u8] {
    let mut at = buffer.len();
    loop {
        at -= 1;
        buffer[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &buffer[at..];
        }
    }
}

/// The peer does not speak RESP3, or more of it than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProtocolError(pub(super) &'static str);

impl fmt::Display for ProtocolError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }
}

/// A whole reply at the beginning of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) length: usize,
    /// It answers nothing: the server speaks by itself.
    pub(super) is_push: bool,
}

/// Finds the end of one reply after the other. What it has looked at it does not look at again.
#[derive(Debug, Default)]
pub(super) struct Framer {
    /// Bytes of the reply's whole elements so far.
    scanned: usize,
    /// Elements that must still come; 0: the next one begins a reply.
    missing: u64,
    /// Elements that were announced so far.
    announced: u64,
    is_push: bool,
    /// There is nothing to be found before the buffer has so many bytes.
    wanted: usize,
}

impl Framer {
    /// The reply that `buffer` begins with, once it is whole. After that the next call is about the next reply.
    #[inline]
    pub(super) fn find(&mut self, buffer: &[u8]) -> Result<Option<Frame>, ProtocolError> {
        if buffer.len() < self.wanted || buffer.is_empty() {
            return Ok(None);
        }
        if self.missing == 0 {
            self.missing = 1;
            self.is_push = buffer[0] == b'>';
        }
        while self.missing > 0 {
            let rest = &buffer[self.scanned..];
            let Some((element, length)) = read_element(rest)? else {
                self.wanted = self.wanted.max(buffer.len() + 1);
                return Ok(None);
            };
            if rest.len() < length {
                self.wanted = self.scanned + length;
                if self.wanted > REPLY_BYTES_MAX {
                    return Err(ProtocolError("a reply is longer than any may be"));
                }
                return Ok(None);
            }
            self.scanned += length;
            // An attribute comes before the element that it is about.
            self.missing -= u64::from(!matches!(element, Element::Attribute(_)));
            let more = match element {
                Element::Scalar(_) => 0,
                Element::Array(count) => count,
                Element::Map(pairs) | Element::Attribute(pairs) => pairs.saturating_mul(2),
            };
            self.announced = self.announced.saturating_add(more);
            if self.announced > ELEMENTS_MAX || self.scanned > REPLY_BYTES_MAX {
                return Err(ProtocolError("a reply is longer than any may be"));
            }
            self.missing += more;
        }
        let frame = Frame { length: self.scanned, is_push: self.is_push };
        *self = Framer::default();
        Ok(Some(frame))
    }

    /// How many bytes the buffer has at least when the reply is whole, as far as that is known.
    pub(super) fn wanted(&self) -> usize {
        self.wanted
    }
}

enum Element<'a> {
    Scalar(Value<'a>),
    Array(u64),
    Map(u64),
    Attribute(u64),
}

/// The element that `bytes` begins with, and its length; a blob's value is empty as long as the bytes are not all there.
/// `None`: not even its first line is whole.
#[inline]
fn read_element(bytes: &[u8]) -> Result<Option<(Element<'_>, usize)>, ProtocolError> {
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
        let long = bytes.len() > LINE_BYTES_MAX;
        return if long { Err(ProtocolError("a line does not end")) } else { Ok(None) };
    };
    let Some((&kind, line)) = bytes[..end].split_first() else {
        return Err(ProtocolError("an empty line where an element begins"));
    };
    let Some((b'\r', line)) = line.split_last() else {
        return Err(ProtocolError("a line does not end with CR LF"));
    };
    let length = end + 1;
    let scalar = |value| Ok(Some((Element::Scalar(value), length)));
    match kind {
        b'$' | b'!' | b'=' => {
            if kind == b'$' && line == b"-1" {
                return scalar(Value::Null);
            }
            let count = count(line)?;
            if count > BLOB_BYTES_MAX as u64 {
                return Err(ProtocolError("a blob is longer than any may be"));
            }
            let (begin, end) = (length, length + count as usize);
            let blob = match bytes.get(begin..end + 2) {
                Some([blob @ .., b'\r', b'\n']) => blob,
                Some(_) => return Err(ProtocolError("a blob does not end with CR LF")),
                None => b"",
            };
            let value = match (kind, blob) {
                (b'!', error) => Value::Error(error),
                // A verbatim string says in three letters first what it is of.
                (b'=', [_, _, _, b':', text @ ..]) => Value::Blob(text),
                (_, blob) => Value::Blob(blob),
            };
            Ok(Some((Element::Scalar(value), end + 2)))
        }
        b'+' => scalar(Value::Simple(line)),
        b'-' => scalar(Value::Error(line)),
        b':' => scalar(Value::Integer(integer(line)?)),
        b'_' => scalar(Value::Null),
        b'#' => scalar(Value::Boolean(line == b"t")),
        b',' | b'(' => scalar(Value::Simple(line)),
        b'*' if line == b"-1" => scalar(Value::Null),
        b'*' | b'~' | b'>' => Ok(Some((Element::Array(count(line)?), length))),
        b'%' => Ok(Some((Element::Map(count(line)?), length))),
        b'|' => Ok(Some((Element::Attribute(count(line)?), length))),
        _ => Err(ProtocolError("an element of a type that RESP3 does not have")),
    }
}

#[inline]
fn count(digits: &[u8]) -> Result<u64, ProtocolError> {
    match digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
        true => Err(ProtocolError("a length is not a number")),
        false => Ok(digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))),
    }
}

#[inline]
fn integer(line: &[u8]) -> Result<i64, ProtocolError> {
    if let Ok(number) = count(line) {
        return Ok(number as i64);
    }
    let text = std::str::from_utf8(line).ok();
    text.and_then(|text| text.parse().ok()).ok_or(ProtocolError("an integer is not a number"))
}

/// One element of a reply.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    /// A simple string, or a number that is no 64-bit integer.
    Simple(&'a [u8]),
    Error(&'a [u8]),
    Integer(i64),
    Blob(&'a [u8]),
    Null,
    Boolean(bool),
    /// So many elements follow.
    Array(u64),
    /// So many pairs of elements follow.
    Map(u64),
}

/// Reads whole replies, element by element. What the server said unasked in between is passed over.
#[derive(Clone, Debug)]
pub(super) struct Replies<'a> {
    rest: &'a [u8],
}

impl<'a> Replies<'a> {
    /// What a [`Framer`] has found to be whole.
    #[inline]
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Replies { rest: bytes }
    }

    /// The elements of what the server says by itself, and how many they are.
    pub(super) fn of_push(frame: &'a [u8]) -> Result<(u64, Self), ProtocolError> {
        match read_element(frame)? {
            Some((Element::Array(count), length)) => {
                let rest = frame.get(length..).ok_or(ProtocolError("a push is cut"))?;
                Ok((count, Replies { rest }))
            }
            _ => Err(ProtocolError("a push is no array")),
        }
    }

    /// The next element; those of an array follow it.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Value<'a>, ProtocolError> {
        loop {
            let is_push = self.rest.first() == Some(&b'>');
            let (element, length) =
                read_element(self.rest)?.ok_or(ProtocolError("a reply is missing"))?;
            self.rest = self.rest.get(length..).ok_or(ProtocolError("a reply is cut"))?;
            match element {
                Element::Scalar(value) => return Ok(value),
                Element::Array(count) if is_push => self.skip(count)?,
                Element::Array(count) => return Ok(Value::Array(count)),
                Element::Map(pairs) => return Ok(Value::Map(pairs)),
                Element::Attribute(pairs) => self.skip(pairs.saturating_mul(2))?,
            }
        }
    }

    /// Passes over so many elements and all that is in them.
    pub(super) fn skip(&mut self, count: u64) -> Result<(), ProtocolError> {
        let mut left = count;
        while left > 0 {
            left -= 1;
            left = left.saturating_add(match self.next()? {
                Value::Array(count) => count,
                Value::Map(pairs) => pairs.saturating_mul(2),
                _ => 0,
            });
        }
        Ok(())
    }

    /// Whether everything was read.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use redis_protocol::resp3::encode;
    use redis_protocol::resp3::types::BytesFrame;

    use super::*;

    /// Finds the replies in `bytes`, handed over in pieces of `piece` bytes.
    fn frames(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, ProtocolError> {
        let (mut framer, mut frames, mut begin) = (Framer::default(), Vec::new(), 0);
        for end in (0..bytes.len()).step_by(piece).map(|at| (at + piece).min(bytes.len())) {
            while let Some(frame) = framer.find(&bytes[begin..end])? {
                begin += frame.length;
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    #[test]
    fn commands_as_they_go_out() {
        let mut out = Vec::new();
        put_command(&mut out, 4);
        put(&mut out, b"SET");
        put_pieces(&mut out, [b"orders", b":", "ключ".as_bytes()]);
        put(&mut out, b"");
        put_number(&mut out, u64::MAX);
        let expected =
            "*4\r\n$3\r\nSET\r\n$15\r\norders:ключ\r\n$0\r\n\r\n$20\r\n18446744073709551615\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn replies_are_found_however_they_are_cut() {
        let replies: [&[u8]; 14] = [
            b"+OK\r\n",
            b"-ERR no\r\n",
            b":-12\r\n",
            b"$5\r\na\r\n\nb\r\n",
            b"$0\r\n\r\n",
            b"_\r\n",
            b"$-1\r\n",
            b"*0\r\n",
            b"*3\r\n:1\r\n*2\r\n$1\r\na\r\n_\r\n#t\r\n",
            b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n:2\r\n",
            b">2\r\n+message\r\n$2\r\nhi\r\n",
            b"|1\r\n+ttl\r\n:3\r\n+after an attribute\r\n",
            b"~1\r\n,1.5\r\n",
            b"!3\r\nERR\r\n",
        ];
        let all = replies.concat();
        for piece in 1..40 {
            let found = frames(&all, piece).unwrap();
            let lengths: Vec<usize> = found.iter().map(|frame| frame.length).collect();
            assert_eq!(lengths, replies.iter().map(|reply| reply.len()).collect::<Vec<_>>());
            let pushes = found.iter().filter(|frame| frame.is_push).count();
            assert_eq!(pushes, 1);
        }
        let mut read = Replies::new(&all);
        let mut values = Vec::new();
        while !read.is_empty() {
            values.push(read.next().unwrap());
        }
        assert!(!values.contains(&Value::Simple(b"message")), "pushes answer nothing");
        assert!(values.contains(&Value::Blob(b"a\r\n\nb")));
        assert_eq!(&values[values.len() - 1], &Value::Error(b"ERR"));
    }

    #[test]
    fn nonsense_ends_it() {
        for bytes in [
            &b"\r\n"[..],
            b"HTTP/1.1 200 OK\r\n",
            b"+OK\n",
            b"$x\r\n",
            b"$-2\r\n",
            b":1x\r\n",
            b"*-2\r\n",
            b"$3\r\nabcd\r\n",
            b"$99999999999\r\n",
            b"*1048577\r\n",
            b"%600000\r\n",
            b"*99999999999999999999\r\n",
            b"$?\r\n",
        ] {
            assert!(frames(bytes, 1000).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
        let endless = vec![b'+'; LINE_BYTES_MAX + 2];
        assert!(frames(&endless, 1000).is_err());
        let nested = b"*1\r\n".repeat(100_000);
        assert_eq!(frames(&nested, 4096).unwrap(), [], "nesting takes no stack");
    }

    /// A reply as redis-protocol builds and writes it.
    fn reply() -> impl Strategy<Value = BytesFrame> {
        let text = || "[a-zA-Z0-9 ]{0,20}".prop_map(bytes::Bytes::from);
        let blob = || prop::collection::vec(any::<u8>(), 0..100).prop_map(bytes::Bytes::from);
        let leaf = prop_oneof![
            blob().prop_map(|data| BytesFrame::BlobString { data, attributes: None }),
            text().prop_map(|data| BytesFrame::SimpleString { data, attributes: None }),
            any::<i64>().prop_map(|data| BytesFrame::Number { data, attributes: None }),
            any::<bool>().prop_map(|data| BytesFrame::Boolean { data, attributes: None }),
            Just(BytesFrame::Null),
            "[A-Z]{3,9} [a-z ]{0,20}"
                .prop_map(|data| BytesFrame::SimpleError { data: data.into(), attributes: None }),
        ];
        leaf.prop_recursive(3, 40, 6, |inner| {
            prop::collection::vec(inner, 0..6)
                .prop_map(|data| BytesFrame::Array { data, attributes: None })
        })
    }

    /// Reads one reply and compares it with the oracle's.
    fn assert_same(read: &mut Replies<'_>, expected: &BytesFrame) {
        match (read.next().unwrap(), expected) {
            (Value::Blob(blob), BytesFrame::BlobString { data, .. }) => assert_eq!(blob, data),
            (Value::Simple(text), BytesFrame::SimpleString { data, .. }) => assert_eq!(text, data),
            (Value::Integer(number), BytesFrame::Number { data, .. }) => assert_eq!(number, *data),
            (Value::Boolean(truth), BytesFrame::Boolean { data, .. }) => assert_eq!(truth, *data),
            (Value::Null, BytesFrame::Null) => {}
            (Value::Error(text), BytesFrame::SimpleError { data, .. }) => {
                assert_eq!(text, data.as_bytes());
            }
            (Value::Array(count), BytesFrame::Array { data, .. }) => {
                assert_eq!(count, data.len() as u64);
                data.iter().for_each(|element| assert_same(read, element));
            }
            (value, expected) => panic!("{value:?} instead of {expected:?}"),
        }
    }

    proptest! {
        #[test]
        fn replies_are_read_as_redis_protocol_writes_them(
            expected in prop::collection::vec(reply(), 1..6),
            piece in 1usize..200,
        ) {
            let mut bytes = bytes::BytesMut::new();
            for frame in &expected {
                encode::complete::extend_encode(&mut bytes, frame, false).unwrap();
            }
            prop_assert_eq!(frames(&bytes, piece).unwrap().len(), expected.len());
            let mut read = Replies::new(&bytes);
            expected.iter().for_each(|frame| assert_same(&mut read, frame));
            prop_assert!(read.is_empty());
        }

        #[test]
        fn no_input_makes_it_panic_and_cuts_change_nothing(
            bytes in prop::collection::vec(
                prop_oneof![
                    4 => prop::sample::select(&b"*$:+-_#%|>!=,(~0123456789\r\n"[..]),
                    1 => any::<u8>(),
                ],
                0..300,
            ),
            piece in 1usize..20,
        ) {
            let whole = frames(&bytes, bytes.len().max(1));
            if let (Ok(whole), Ok(cut)) = (&whole, frames(&bytes, piece)) {
                prop_assert_eq!(whole, &cut);
            }
            if let Ok(whole) = whole {
                let length = whole.iter().map(|frame| frame.length).sum::<usize>();
                let mut read = Replies::new(&bytes[..length]);
                while read.next().is_ok() {}
            }
        }
    }

    #[test]
    fn a_verbatim_string_is_its_text() {
        for (bytes, text) in [
            (&b"=10\r\ntxt:id=3 a\r\n"[..], &b"id=3 a"[..]),
            (b"=4\r\ntxt:\r\n", b""),
            (b"=3\r\nodd\r\n", b"odd"),
            (b"$7\r\ntxt:abc\r\n", b"txt:abc"),
        ] {
            assert_eq!(Replies::new(bytes).next(), Ok(Value::Blob(text)));
        }
    }

    #[test]
    fn a_long_blob_is_not_looked_at_again_and_again() {
        let blob = [b"$1000000\r\n", &vec![b'\n'; 1_000_000][..], b"\r\n"].concat();
        let mut framer = Framer::default();
        assert_eq!(framer.find(&blob[..20]).unwrap(), None);
        assert_eq!(framer.wanted(), blob.len());
        assert_eq!(framer.find(&blob[..blob.len() - 1]).unwrap(), None);
        assert!(framer.find(&blob).unwrap().is_some());
    }
}
