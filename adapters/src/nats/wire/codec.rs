//! NATS's client protocol, without I/O: what a server says, found in what was read, and messages as they are said to it.
//!
//! <https://docs.nats.io/reference/reference-protocols/nats-protocol>. Nothing that a server says makes it panic, and a line or a message
//! that is longer than any server's is refused before it is read.

use std::ops::Range;
use std::str::FromStr;

use async_nats::header::{HeaderName, HeaderValue};
use async_nats::{HeaderMap, Message, StatusCode, Subject};
use bytes::{Buf, Bytes, BytesMut};

use super::super::link::Outgoing;

/// A line of a server's; the longest says of a cluster where all of its servers are.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// A message with its headers: no server may be told to take longer ones.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What every block of headers begins with.
const VERSION: &str = "NATS/1.0";

/// The peer says something that no NATS says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProtocolError(pub(super) &'static str);

/// One thing that a server says. Ranges are places in what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// What it is and takes, as JSON.
    Info(Range<usize>),
    Message(Head),
    Ping,
    Pong,
    Ok,
    /// In words.
    Error(Range<usize>),
}

/// The first line of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) subject: Range<usize>,
    /// Where its headers begin.
    start: usize,
    header_bytes: usize,
    /// Headers and payload.
    bytes: usize,
}

/// Finds where things end; it remembers what it has looked at.
#[derive(Debug, Default)]
pub(super) struct Framer {
    scanned: usize,
    wanted: usize,
}

impl Framer {
    /// What `read` begins with, once all of it is there, and how long that is.
    ///
    /// # Errors
    /// The peer talks nonsense; nothing that comes after it can be understood.
    pub(super) fn find(&mut self, read: &[u8]) -> Result<Option<(Frame, usize)>, ProtocolError> {
        if read.len() < self.wanted {
            return Ok(None);
        }
        let unseen = read.get(self.scanned..).unwrap_or_default();
        let end = unseen.iter().position(|byte| *byte == b'\n').map(|at| self.scanned + at + 1);
        if end.unwrap_or(read.len()) > LINE_BYTES_MAX {
            return Err(ProtocolError("a line that is longer than any of NATS"));
        }
        let Some(end) = end else {
            self.scanned = read.len();
            return Ok(None);
        };
        let line = read[..end - 1].strip_suffix(b"\r").unwrap_or(&read[..end - 1]);
        let mut frame = parse(line)?;
        let length = match &mut frame {
            Frame::Message(head) => {
                head.start = end;
                end + head.bytes + 2
            }
            _ => end,
        };
        if read.len() < length {
            (self.scanned, self.wanted) = (end - 1, length);
            return Ok(None);
        }
        if length > end && !read[..length].ends_with(b"\r\n") {
            return Err(ProtocolError("a message that does not end where it says"));
        }
        *self = Framer::default();
        Ok(Some((frame, length)))
    }

    /// How long what was read has to be until there is something to find, as far as that is known.
    pub(super) fn wanted(&self) -> usize {
        self.wanted
    }
}

fn parse(line: &[u8]) -> Result<Frame, ProtocolError> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let name_end = line.iter().position(is_blank).unwrap_or(line.len());
    let mut name = [0; 4];
    let Some(upper) = name.get_mut(..name_end) else {
        return Err(ProtocolError("something that no NATS says"));
    };
    upper.copy_from_slice(&line[..name_end]);
    upper.make_ascii_uppercase();
    let rest = name_end..line.len();
    match &name[..name_end] {
        b"MSG" => head(line, name_end, false),
        b"HMSG" => head(line, name_end, true),
        b"PING" => Ok(Frame::Ping),
        b"PONG" => Ok(Frame::Pong),
        b"+OK" => Ok(Frame::Ok),
        b"-ERR" => Ok(Frame::Error(rest)),
        b"INFO" => Ok(Frame::Info(rest)),
        _ => Err(ProtocolError("something that no NATS says")),
    }
}

/// `SUBJECT ID [REPLY] [HEADER BYTES] BYTES`.
fn head(line: &[u8], from: usize, has_headers: bool) -> Result<Frame, ProtocolError> {
    const WRONG: ProtocolError = ProtocolError("a message whose first line is not one");
    let mut words: [Range<usize>; 5] = std::array::from_fn(|_| 0..0);
    let (mut count, mut at) = (0, from);
    while at < line.len() {
        if matches!(line[at], b' ' | b'\t') {
            at += 1;
            continue;
        }
        let rest = &line[at..];
        let length = rest.iter().position(|byte| matches!(byte, b' ' | b'\t'));
        let end = at + length.unwrap_or(rest.len());
        *words.get_mut(count).ok_or(WRONG)? = at..end;
        (count, at) = (count + 1, end);
    }
    let sizes = 1 + usize::from(has_headers);
    if count != 2 + sizes && count != 3 + sizes {
        return Err(WRONG);
    }
    let size = |word: &Range<usize>| {
        let size = decimal(&line[word.clone()]).and_then(|size| usize::try_from(size).ok());
        size.filter(|size| *size <= MESSAGE_BYTES_MAX)
            .ok_or(ProtocolError("a message that is longer than any of NATS"))
    };
    let bytes = size(&words[count - 1])?;
    let header_bytes = if has_headers { size(&words[count - 2])? } else { 0 };
    if header_bytes > bytes {
        return Err(WRONG);
    }
    Ok(Frame::Message(Head { subject: words[0].clone(), start: 0, header_bytes, bytes }))
}

/// A number without a sign.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    let is_short = (1..=19).contains(&digits.len());
    let add = |number: u64, digit: &u8| match digit {
        b'0'..=b'9' => Some(number * 10 + u64::from(digit - b'0')),
        _ => None,
    };
    if is_short { digits.iter().try_fold(0, add) } else { None }
}

/// Takes a message out of what was read. Its own subject is one of ours, and is left out.
///
/// # Errors
/// Its headers are none.
pub(super) fn take(
    read: &mut BytesMut,
    head: &Head,
    length: usize,
) -> Result<Message, ProtocolError> {
    let mut payload = read.split_to(length).freeze();
    payload.advance(head.start);
    payload.truncate(head.bytes);
    let block = payload.split_to(head.header_bytes);
    let (mut headers, mut status, mut description) = (None, None, None);
    if !block.is_empty() {
        let read;
        (read, status, description) = read_headers(&block)?;
        headers = Some(read);
    }
    let length = head.bytes;
    let subject = Subject::from_static("");
    Ok(Message { subject, reply: None, payload, headers, status, description, length })
}

/// Headers, and what a server says beside them. One that could not have been sent is left out.
pub(super) type Headers = (HeaderMap, Option<StatusCode>, Option<String>);

pub(super) fn read_headers(block: &[u8]) -> Result<Headers, ProtocolError> {
    let text = std::str::from_utf8(block).map_err(|_| ProtocolError("headers that are no text"))?;
    let text = text.strip_prefix(VERSION).ok_or(ProtocolError("headers that are none"))?;
    let mut lines = text.split("\r\n").peekable();
    let first = lines.next().unwrap_or_default().trim();
    let (code, description) = first.split_once(' ').unwrap_or((first, ""));
    let status = match code {
        "" => None,
        code => {
            let code = StatusCode::from_bytes(code.as_bytes());
            Some(code.map_err(|_| ProtocolError("a status that is none"))?)
        }
    };
    let mut headers = HeaderMap::new();
    while let Some(line) = lines.next() {
        let Some((name, value)) = line.split_once(':') else { continue };
        let mut value = value.to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with([' ', '\t'])) {
            value.push_str(more);
        }
        if let Ok(name) = HeaderName::from_str(name)
            && let Ok(value) = HeaderValue::from_str(value.trim())
        {
            headers.append(name, value);
        }
    }
    let description = description.trim();
    Ok((headers, status, (!description.is_empty()).then(|| description.to_owned())))
}

/// Whether a message can be sent to this subject. Whatever else is in it would be taken for the rest of the line.
pub(super) fn is_subject(subject: &str) -> bool {
    !subject.is_empty() && subject.bytes().all(|byte| byte > b' ' && byte != 0x7f)
}

/// How many bytes the headers of a message take.
fn header_len(headers: &HeaderMap) -> usize {
    let line = |name: &str, value: &str| name.len() + value.len() + 4;
    let lines = headers.iter().map(|(name, values)| {
        values.iter().map(|value| line(name.as_ref(), value.as_str())).sum::<usize>()
    });
    VERSION.len() + 4 + lines.sum::<usize>()
}

fn headers_of(message: &Outgoing) -> Option<&HeaderMap> {
    message.headers.as_ref().filter(|headers| !headers.is_empty())
}

/// What a server counts of a message against its `max_payload`.
pub(super) fn payload_len(message: &Outgoing) -> usize {
    headers_of(message).map_or(0, header_len) + message.payload.len()
}

/// Adds a message to what is to be sent; `reply` writes where its answer is to go, and a blank behind it.
pub(super) fn put_message(out: &mut Vec<u8>, message: &Outgoing, reply: impl FnOnce(&mut Vec<u8>)) {
    let headers = headers_of(message);
    out.reserve(message.subject.len() + payload_len(message) + 96);
    out.extend_from_slice(if headers.is_some() { b"HPUB " } else { b"PUB " });
    out.extend_from_slice(message.subject.as_bytes());
    out.push(b' ');
    reply(out);
    if let Some(headers) = headers {
        let length = header_len(headers);
        put_decimal(out, length as u64);
        out.push(b' ');
        put_decimal(out, (length + message.payload.len()) as u64);
        out.extend_from_slice(b"\r\n");
        put_headers(out, headers);
    } else {
        put_decimal(out, message.payload.len() as u64);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(&message.payload);
    out.extend_from_slice(b"\r\n");
}

fn put_headers(out: &mut Vec<u8>, headers: &HeaderMap) {
    out.extend_from_slice(VERSION.as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, values) in headers.iter() {
        for value in values {
            let name: &str = name.as_ref();
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_str().as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
}

pub(super) fn put_decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// What a server says in words, without the quotes around it.
pub(super) fn words(read: &[u8], range: &Range<usize>) -> String {
    let text = String::from_utf8_lossy(read.get(range.clone()).unwrap_or_default());
    text.trim().trim_matches('\'').to_owned()
}

/// The JSON of an INFO.
pub(super) fn json(read: &[u8], range: &Range<usize>) -> Bytes {
    Bytes::copy_from_slice(read.get(range.clone()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &[u8] = b"INFO {\"version\":\"2.12.1\"}\r\nPING\r\nMSG _I.x.7 1 5\r\nhello\r\n\
        HMSG _I.x.12-3 1 reply.to 46 48\r\nNATS/1.0 404 No Messages\r\nNats-Sequence: 9\r\n\r\nok\r\npong\r\n+OK\r\n\
        -ERR 'Permissions Violation for Publish to \"a.b\"'\r\nMSG\t_I.x.8\t1\t0\r\n\r\n";

    /// All that is found in what comes in these pieces, as text.
    fn found<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<Vec<String>, ProtocolError> {
        let (mut read, mut framer, mut all) = (BytesMut::new(), Framer::default(), Vec::new());
        for piece in pieces {
            read.extend_from_slice(piece);
            while let Some((frame, length)) = framer.find(&read)? {
                all.push(match frame {
                    Frame::Message(head) => {
                        let subject = words(&read, &head.subject);
                        let message = take(&mut read, &head, length)?;
                        let status = message.status.map(|status| status.as_u16());
                        let sequence =
                            message.headers.as_ref().and_then(|all| all.get("Nats-Sequence"));
                        format!("{subject} {status:?} {sequence:?} {:?}", message.payload)
                    }
                    frame => {
                        let said = match &frame {
                            Frame::Info(range) | Frame::Error(range) => words(&read, range),
                            frame => format!("{frame:?}"),
                        };
                        read.advance(length);
                        said
                    }
                });
            }
        }
        Ok(all)
    }

    #[test]
    fn wherever_it_is_cut_the_same_is_found() {
        let whole = found(std::iter::once(SAID)).unwrap();
        let expected = [
            r#"{"version":"2.12.1"}"#,
            "Ping",
            r#"_I.x.7 None None b"hello""#,
            r#"_I.x.12-3 Some(404) Some(HeaderValue { inner: "9" }) b"ok""#,
            "Pong",
            "Ok",
            r#"Permissions Violation for Publish to "a.b""#,
            r#"_I.x.8 None None b"""#,
        ];
        assert_eq!(whole, expected);
        assert_eq!(found(SAID.chunks(1)).unwrap(), whole);
        for cut in 0..=SAID.len() {
            let (begin, end) = SAID.split_at(cut);
            assert_eq!(found([begin, end].into_iter()).unwrap(), whole, "cut at {cut}");
            // What has not come yet is waited for.
            assert!(found(std::iter::once(begin)).unwrap().len() <= whole.len());
        }
    }

    #[test]
    fn nonsense_is_told_and_never_a_panic() {
        let long = [b'x'; LINE_BYTES_MAX + 1];
        let cases: [&[u8]; 14] = [
            b"HTTP/1.1 400 Bad Request\r\n",
            b"\r\n",
            b"MSG\r\n",
            b"MSG a 1\r\n",
            b"MSG a 1 r 5 6\r\n",
            b"MSG a 1 -5\r\n",
            b"MSG a 1 99999999999999999999\r\n",
            b"MSG a 1 67108865\r\n",
            b"HMSG a 1 5\r\n",
            b"HMSG a 1 9 5\r\nNATS/1.0 \r\n",
            b"HMSG a 1 5 5\r\nhello\r\n",
            b"HMSG a 1 14 14\r\nNATS/1.0 x\r\n\r\n\r\n",
            b"MSG a 1 2\r\nhello\r\n",
            &long,
        ];
        for said in cases {
            assert!(found(std::iter::once(said)).is_err(), "{:?}", String::from_utf8_lossy(said));
        }
        // Whatever byte goes wrong, it is an error or something else, and the end is reached.
        for (at, wrong) in
            (0..SAID.len()).flat_map(|at| [0, b' ', b'\n', b'9', 0xff].map(|wrong| (at, wrong)))
        {
            let mut said = SAID.to_vec();
            said[at] = wrong;
            let _ = found(std::iter::once(&said[..]));
        }
    }

    #[test]
    fn a_header_that_nobody_could_send_is_left_out() {
        let block = b"NATS/1.0\r\nGood: a\r\n b\r\nN\xc3\xa4me: x\r\nno colon\r\nEmpty:\r\n\r\n";
        let (headers, status, description) = read_headers(block).unwrap();
        assert_eq!(headers.get("Good").unwrap().as_str(), "a b");
        assert_eq!(headers.get("Empty").unwrap().as_str(), "");
        assert_eq!((headers.len(), status, description), (2, None, None));
    }

    #[test]
    fn messages_are_said_as_the_server_reads_them() {
        let said = |message: &Outgoing| {
            let mut out = Vec::new();
            put_message(&mut out, message, |out| out.extend_from_slice(b"_I.7 "));
            String::from_utf8(out).unwrap()
        };
        let plain = Outgoing::plain("a.b", Bytes::from_static(b"hello"));
        assert_eq!(said(&plain), "PUB a.b _I.7 5\r\nhello\r\n");
        assert_eq!(payload_len(&plain), 5);
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", "x y");
        let message = Outgoing { headers: Some(headers), ..plain };
        let text = "HPUB a.b _I.7 30 35\r\nNATS/1.0\r\nNats-Msg-Id: x y\r\n\r\nhello\r\n";
        assert_eq!(said(&message), text);
        assert_eq!(payload_len(&message), 35);
        let empty = Outgoing { headers: Some(HeaderMap::new()), ..message };
        assert_eq!(said(&empty), "PUB a.b _I.7 5\r\nhello\r\n");
        for (subject, may_be) in
            [("a.b", true), ("ä.b", true), ("", false), ("a b", false), ("a\r\nPING", false)]
        {
            assert_eq!(is_subject(subject), may_be, "{subject:?}");
        }
        let mut out = Vec::new();
        [0, 9, 10, u64::MAX].into_iter().for_each(|number| put_decimal(&mut out, number));
        assert_eq!(out, b"091018446744073709551615");
    }
}
