//! One document by HTTPS, or in clear from this machine: for what the control side needs now and then. Blocking, with a loop of its
//! own that ends with it.
//!
//! Follows no redirect, and takes no answer whose length is not known. Bounded in bytes and in time.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use bytes::BytesMut;

use super::body::{BodyDecoder, Taken};
use super::head::{BodyLength, field};
use crate::net::{self, Stream};
use crate::rt;
use crate::tls::{Connector, Roots};

/// Longest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// What is read at a time.
const READ_BYTES: usize = 16 << 10;

/// Where a document is: `https://host/path`, or `http://` where the host is this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    text: String,
    is_secured: bool,
    host: String,
    port: u16,
    path: String,
}

impl Url {
    /// Reads one; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (is_secured, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return Err("it begins neither with https:// nor with http://"),
        };
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains(['#', '@']) {
            return Err("a URL has neither blanks nor `#` nor a name and password");
        }
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| "its port is no number from 1 to 65535")?)
            }
            _ => (authority, if is_secured { 443 } else { 80 }),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || port == 0 {
            return Err("it has no host, or port 0");
        }
        let is_here = host == "localhost"
            || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
        if !is_secured && !is_here {
            return Err("http:// is for this machine alone; write https://");
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { text: text.to_owned(), is_secured, host: host.to_owned(), port, path })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Gets a document of at most so many bytes within a time; over TLS its server has to lead to one of `roots`. The error is for
/// people. For a thread without a loop.
pub fn fetch(
    url: &Url,
    roots: &Roots,
    bytes_max: usize,
    within: Duration,
) -> Result<Vec<u8>, String> {
    let (url, roots) = (url.clone(), roots.clone());
    let got = rt::run(async move { rt::timeout(within, get(&url, &roots, bytes_max)).await });
    match got {
        Ok(Some(got)) => got,
        Ok(None) => Err(format!("no answer within {within:?}")),
        Err(error) => Err(format!("no event loop: {error}")),
    }
}

async fn get(url: &Url, roots: &Roots, bytes_max: usize) -> Result<Vec<u8>, String> {
    let text = |error: std::io::Error| error.to_string();
    let addresses = net::resolve(&url.host, url.port).await.map_err(text)?;
    let mut stream = Err(format!("{} has no address", url.host));
    for address in addresses {
        stream = Stream::connect(address).await.map_err(|error| format!("{address}: {error}"));
        if stream.is_ok() {
            break;
        }
    }
    let mut stream = stream?;
    if url.is_secured {
        let connector =
            Connector::for_backend(roots, &url.host, None).map_err(|error| error.to_string())?;
        stream = stream.secure_to(&connector).await.map_err(|error| error.to_string())?;
    }
    let (mut read, mut write) = stream.split();
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: {host}:{}\r\naccept: application/json\r\nconnection: close\r\n\r\n",
        url.path, url.port
    );
    write.write_all(request.into_bytes()).await.0.map_err(text)?;
    let mut input = BytesMut::new();
    let mut body: Option<BodyDecoder> = None;
    let mut document = Vec::new();
    loop {
        if body.is_none() {
            body = head(&mut input)?.map(BodyDecoder::new);
        }
        while let Some(decoder) = &mut body {
            match decoder.take(&mut input).map_err(|refused| refused.1.to_owned())? {
                Taken::Partial => break,
                Taken::End => return Ok(document),
                Taken::Piece(piece) if document.len() + piece.len() <= bytes_max => {
                    document.extend_from_slice(&piece)
                }
                Taken::Piece(_) => {
                    return Err(format!("the answer is longer than {bytes_max} bytes"));
                }
            }
        }
        input.reserve(READ_BYTES);
        let (count, filled) = read.read(input).await;
        input = filled;
        if count.map_err(text)? == 0 {
            return Err("the connection ended before the answer did".to_owned());
        }
    }
}

/// Takes the head of an answer off the input, once it is there: how long its body is.
fn head(input: &mut BytesMut) -> Result<Option<BodyLength>, String> {
    let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") else {
        return match input.len() > HEAD_BYTES_MAX {
            true => Err("the head of the answer is too long".to_owned()),
            false => Ok(None),
        };
    };
    let head = input.split_to(end + 4);
    let mut lines = head[..end]
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let status = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let mut words = status.split(' ');
    if !words.next().is_some_and(|word| word.starts_with("HTTP/1.")) || words.next() != Some("200")
    {
        return Err(format!("the answer is `{}`, not 200", status.escape_debug()));
    }
    let mut length = None;
    for line in lines {
        let (name, value) = field(line).map_err(|refused| refused.1.to_owned())?;
        let value = std::str::from_utf8(value).unwrap_or_default();
        let one = match name.to_ascii_lowercase().as_str() {
            "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => BodyLength::Chunked,
            "transfer-encoding" => {
                return Err(format!("the transfer-encoding `{}`", value.escape_debug()));
            }
            "content-length" => {
                BodyLength::Known(value.parse().map_err(|_| "its length is no number")?)
            }
            "content-encoding" => {
                return Err("the answer is compressed, and was not to be".to_owned());
            }
            _ => continue,
        };
        if length.replace(one).is_some() {
            return Err("its length is there twice".to_owned());
        }
    }
    length.map(Some).ok_or_else(|| "its length is not told".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// A server that answers one request with these pieces, and the outcome.
    fn answered(pieces: &'static [&'static str], bytes_max: usize) -> Result<Vec<u8>, String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/keys?a=b", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                socket.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            assert!(request.starts_with(b"GET /keys?a=b HTTP/1.1\r\n"));
            pieces.iter().for_each(|piece| socket.write_all(piece.as_bytes()).unwrap());
        });
        let got =
            fetch(&Url::parse(&url).unwrap(), &Roots::System, bytes_max, Duration::from_secs(30));
        server.join().unwrap();
        got
    }

    #[test]
    fn a_document_comes_by_its_length_or_in_chunks() {
        let by_length: &[&str] = &["HTTP/1.1 200 OK\r\nContent-", "Length: 5\r\n\r\nhel", "lo"];
        assert_eq!(answered(by_length, 5).as_deref(), Ok(&b"hello"[..]));
        let chunked: &[&str] = &[
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n",
            "2\r\nlo\r\n0\r\n\r\n",
        ];
        assert_eq!(answered(chunked, 100).as_deref(), Ok(&b"hello"[..]));
    }

    #[test]
    fn what_is_not_the_document_is_refused() {
        let cases: [(&[&str], &str); 6] = [
            (&["HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n"], "not 200"),
            (&["HTTP/1.1 200 OK\r\n\r\nhello"], "length is not told"),
            (&["HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello"], "twice"),
            (&["HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello"], "ended before"),
            (
                &["HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n", "0123456789abcdef"],
                "longer than",
            ),
            (&["SSH-2.0-x\r\n\r\n"], "not 200"),
        ];
        for (pieces, says) in cases {
            let error = answered(pieces, 10).expect_err(says);
            assert!(error.contains(says), "{says}: {error}");
        }
    }

    #[test]
    fn a_url_is_secured_or_of_this_machine() {
        for text in [
            "https://h/a",
            "https://h:8443",
            "http://127.0.0.1:1/a",
            "http://[::1]:1/",
            "http://localhost?a",
        ] {
            assert_eq!(Url::parse(text).map(|url| url.to_string()).as_deref(), Ok(text));
        }
        let url = Url::parse("https://h?a=b").unwrap();
        assert_eq!((url.port, url.path.as_str()), (443, "/?a=b"));
        for text in [
            "http://h/a",
            "ftp://h",
            "https://",
            "https://u:p@h/",
            "https://h:x/",
            "https://h/a b",
            "h",
        ] {
            assert!(Url::parse(text).is_err(), "{text}");
        }
    }
}
