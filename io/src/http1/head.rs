//! The head of a request: request line and fields (RFC 9112, sections 2, 3, 5 and 6; RFC 9110, section 7).

use std::fmt::Write as _;

/// What a status is called (RFC 9110, section 15).
pub(crate) fn phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        499 => "Client Closed Request",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// Why a head is refused: the status, and words for people. The connection cannot go on: where the next request begins is
/// not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) u16, pub(crate) &'static str);

/// How the end of a body is found (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyLength {
    /// So many bytes; 0 without a body.
    Known(u64),
    /// It comes in chunks.
    Chunked,
}

/// A request's head, as slices of the input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) method: &'a str,
    /// Path and query; `*` of an OPTIONS request.
    pub(crate) target: &'a str,
    /// Host and port as the client names them; empty where an HTTP/1.0 client did not.
    pub(crate) host: &'a str,
    /// HTTP/1.1, not 1.0.
    pub(crate) is_1_1: bool,
    /// The connection ends after the answer: the client wants it so, or speaks HTTP/1.0.
    pub(crate) close: bool,
    pub(crate) body: BodyLength,
    /// The client waits for 100 (Continue) before it sends the body.
    pub(crate) expects_continue: bool,
    fields: &'a [u8],
}

impl<'a> Head<'a> {
    /// The fields as they were sent: names in any case, values without the white space around them.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        lines(self.fields).filter_map(|line| field(line).ok())
    }
}

/// What stands at the front of the input.
#[derive(Debug)]
pub(crate) enum Parsed<'a> {
    /// More is needed.
    Partial,
    /// A head, and its length.
    Whole(Head<'a>, usize),
    /// Nothing that can be served.
    Refused(Refused),
}

/// Parses the head at the front of `input`, of at most `bytes_max`. The first `searched` bytes are known not to hold its end.
pub(crate) fn parse(input: &[u8], searched: usize, bytes_max: usize) -> Parsed<'_> {
    let window = &input[..input.len().min(bytes_max)];
    let from = searched.saturating_sub(3).min(window.len());
    let end = window[from..].windows(4).position(|four| four == b"\r\n\r\n").map(|at| from + at);
    // Looked at first, so that it is found however the bytes were cut.
    let mut before = from.checked_sub(1).map(|at| window[at]);
    for &byte in &window[from..end.unwrap_or(window.len())] {
        if byte == b'\n' && before != Some(b'\r') {
            return Parsed::Refused(Refused(400, "lines end with CR LF"));
        }
        before = Some(byte);
    }
    let Some(end) = end else {
        if input.len() < bytes_max {
            return Parsed::Partial;
        }
        return Parsed::Refused(if window.contains(&b'\n') {
            Refused(431, "the request's head is too large")
        } else {
            Refused(414, "the request's target is too long")
        });
    };
    match read(&input[..end]) {
        Ok(head) => Parsed::Whole(head, end + 4),
        Err(refused) => Parsed::Refused(refused),
    }
}

/// The lines of a head; the last one has no line end.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = (!text.is_empty()).then_some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let (line, after) = match text.windows(2).position(|two| two == b"\r\n") {
            Some(at) => (&text[..at], Some(&text[at + 2..])),
            None => (text, None),
        };
        rest = after;
        Some(line)
    })
}

/// A field line (RFC 9112, section 5). White space before the colon and folded lines are refused with everything else that
/// is no token.
pub(crate) fn field(line: &[u8]) -> Result<(&str, &[u8]), Refused> {
    let colon = line.iter().position(|&byte| byte == b':').unwrap_or(0);
    let (name, value) = (&line[..colon], line.get(colon + 1..).unwrap_or(&[]));
    if name.is_empty() || !name.iter().all(|&byte| is_token(byte)) {
        return Err(Refused(400, "a line of the head is not `name: value`"));
    }
    if value.iter().any(|&byte| byte.is_ascii_control() && byte != b'\t') {
        return Err(Refused(400, "a field's value holds a control character"));
    }
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    // A token is ASCII.
    Ok((std::str::from_utf8(name).unwrap_or_default(), &value[start..end]))
}

/// Characters of a token (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn read(head: &[u8]) -> Result<Head<'_>, Refused> {
    let mut all = lines(head);
    let request = all.next().unwrap_or_default();
    let fields = head.get(request.len() + 2..).unwrap_or_default();
    let request = std::str::from_utf8(request)
        .ok()
        .filter(|line| line.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()))
        .ok_or(Refused(400, "the request line is not plain ASCII"))?;
    let mut words = request.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refused(400, "the request line is not `METHOD target HTTP/1.1`"));
    };
    if method.is_empty() || !method.bytes().all(is_token) {
        return Err(Refused(400, "the method is not a token"));
    }
    let is_1_1 = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        _ => return Err(Refused(505, "this is HTTP/1.1 or, with prior knowledge, HTTP/2")),
    };
    let (authority, target) = split_target(method, target)?;
    let mut body = Framing::default();
    let mut host = None;
    let (mut close, mut expects_continue) = (!is_1_1, false);
    for line in all {
        let (name, value) = field(line)?;
        if name.eq_ignore_ascii_case("host") {
            let value = std::str::from_utf8(value)
                .ok()
                .filter(|value| value.bytes().all(|byte| byte.is_ascii_graphic()))
                .ok_or(Refused(400, "the Host field is not plain ASCII"))?;
            if host.replace(value).is_some() {
                return Err(Refused(400, "two Host fields"));
            }
        } else if name.eq_ignore_ascii_case("connection") {
            let mut options = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
            close |= options.any(|option| option.eq_ignore_ascii_case(b"close"));
        } else if name.eq_ignore_ascii_case("expect") {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return Err(Refused(417, "the only expectation known is 100-continue"));
            }
            expects_continue = is_1_1;
        } else {
            body.field(name, value, is_1_1)?;
        }
    }
    if host.is_none() && is_1_1 {
        return Err(Refused(400, "an HTTP/1.1 request has a Host field"));
    }
    Ok(Head {
        method,
        target,
        host: authority.or(host).unwrap_or_default(),
        is_1_1,
        close,
        body: body.length()?,
        expects_continue,
        fields,
    })
}

/// The authority (of an absolute target), and path with query (RFC 9112, section 3.2).
fn split_target<'a>(method: &str, target: &'a str) -> Result<(Option<&'a str>, &'a str), Refused> {
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok((None, target));
    }
    let rest = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"));
    let Some(rest) = rest else {
        return Err(Refused(400, "the target is neither a path nor a URL"));
    };
    let slash = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(slash);
    if authority.is_empty() || authority.contains(['?', '#', '@']) {
        return Err(Refused(400, "the target is neither a path nor a URL"));
    }
    Ok((Some(authority), if path.is_empty() { "/" } else { path }))
}

/// What the fields say of the body.
#[derive(Default)]
struct Framing {
    length: Option<u64>,
    chunked: bool,
}

impl Framing {
    fn field(&mut self, name: &str, value: &[u8], is_1_1: bool) -> Result<(), Refused> {
        if name.eq_ignore_ascii_case("content-length") {
            let digits = !value.is_empty()
                && value.len() <= 18
                && value.iter().all(|byte| byte.is_ascii_digit());
            if !digits || self.length.is_some() {
                return Err(Refused(400, "Content-Length is one number, given once"));
            }
            let number = value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
            self.length = Some(number);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !is_1_1 || self.chunked {
                return Err(Refused(400, "Transfer-Encoding is given once, and by HTTP/1.1 alone"));
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refused(501, "the only transfer coding known is chunked"));
            }
            self.chunked = true;
        }
        Ok(())
    }

    fn length(&self) -> Result<BodyLength, Refused> {
        match (self.length, self.chunked) {
            (Some(_), true) => {
                Err(Refused(400, "Content-Length and Transfer-Encoding contradict each other"))
            }
            (_, true) => Ok(BodyLength::Chunked),
            (length, false) => Ok(BodyLength::Known(length.unwrap_or(0))),
        }
    }
}

/// Appends a status line.
pub(crate) fn put_status(status: u16, into: &mut String) {
    let _ = write!(into, "HTTP/1.1 {status} {}\r\n", phrase(status));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(input: &[u8]) -> u16 {
        match parse(input, 0, 4096) {
            Parsed::Partial => 0,
            Parsed::Whole(..) => 200,
            Parsed::Refused(Refused(status, _)) => status,
        }
    }

    #[test]
    fn a_head_is_read_whole() {
        let text = b"POST http://a.example:1/x?y HTTP/1.1\r\nHost: b\r\nX-A: \t1 \r\ncontent-length: 12\r\nExpect: 100-Continue\r\nConnection: TE, close\r\n\r\nrest";
        let Parsed::Whole(head, length) = parse(text, 0, 4096) else { panic!("not whole") };
        assert_eq!(&text[length..], b"rest");
        assert_eq!((head.method, head.target, head.host), ("POST", "/x?y", "a.example:1"));
        assert!(head.is_1_1 && head.close && head.expects_continue);
        assert_eq!(head.body, BodyLength::Known(12));
        let fields: Vec<_> = head.fields().collect();
        assert_eq!(fields.len(), 5);
        assert_eq!(fields[1], ("X-A", &b"1"[..]));
        for cut in 0..length {
            assert!(matches!(parse(&text[..cut], 0, 4096), Parsed::Partial), "cut at {cut}");
            let Parsed::Whole(_, again) = parse(text, cut, 4096) else { panic!("missed") };
            assert_eq!(again, length);
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let with =
            |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes();
        for (fields, wanted) in [
            ("", 200),
            ("Content-Length: 5\r\n", 200),
            ("Transfer-Encoding: chunked\r\n", 200),
            ("Transfer-Encoding: CHUNKED\r\n", 200),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", 400),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
            ("Content-Length: 5, 5\r\n", 400),
            ("Content-Length: +5\r\n", 400),
            ("Content-Length: -5\r\n", 400),
            ("Content-Length: 0x5\r\n", 400),
            ("Content-Length:\r\n", 400),
            ("Content-Length: 9999999999999999999\r\n", 400),
            ("Transfer-Encoding: gzip, chunked\r\n", 501),
            ("Transfer-Encoding: chunked, identity\r\n", 501),
            ("Transfer-Encoding: xchunked\r\n", 501),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Content-Length : 5\r\n", 400),
            (" Content-Length: 5\r\n", 400),
            ("X: a\r\n folded\r\n", 400),
            ("X: a\r\n\tfolded\r\n", 400),
            ("X: a\rb\r\n", 400),
            ("X: a\nContent-Length: 5\r\n", 400),
            ("X: a\0b\r\n", 400),
            ("no colon\r\n", 400),
            (": nameless\r\n", 400),
            ("Host: b\r\n", 400),
            ("Expect: the-spanish-inquisition\r\n", 417),
        ] {
            assert_eq!(status(&with(fields)), wanted, "{fields:?}");
        }
    }

    #[test]
    fn request_lines() {
        for (line, wanted) in [
            ("GET / HTTP/1.1", 200),
            ("OPTIONS * HTTP/1.1", 200),
            ("GET http://a/ HTTP/1.1", 200),
            ("GET http://a HTTP/1.1", 200),
            ("GET * HTTP/1.1", 400),
            ("GET http:///a HTTP/1.1", 400),
            ("GET http://u@a/ HTTP/1.1", 400),
            ("CONNECT a:1 HTTP/1.1", 400),
            ("GET  / HTTP/1.1", 400),
            ("GET / HTTP/1.1 ", 400),
            (" GET / HTTP/1.1", 400),
            ("GET /", 400),
            ("GET /\u{e9} HTTP/1.1", 400),
            ("GET /\t HTTP/1.1", 400),
            ("G{T / HTTP/1.1", 400),
            ("GET / HTTP/1.2", 505),
            ("GET / HTTP/2.0", 505),
            ("GET / http/1.1", 505),
        ] {
            assert_eq!(status(format!("{line}\r\nHost: a\r\n\r\n").as_bytes()), wanted, "{line:?}");
        }
        assert_eq!(status(b"GET / HTTP/1.0\r\n\r\n"), 200);
        assert_eq!(status(b"GET / HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(status(b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
        assert_eq!(status(b"GET / HTTP/1.1\nHost: a\n\n"), 400);
        assert_eq!(status(&[b'x'; 4096]), 414);
        assert_eq!(status(&b"GET / HTTP/1.1\r\n".repeat(300)), 431);
    }
}
