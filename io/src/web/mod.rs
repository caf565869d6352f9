//! Calls from browsers, curl and everything else that speaks HTTP but not gRPC: gRPC-Web and Connect, over HTTP/1.1 and
//! HTTP/2, on the same port and through the same request path as gRPC.
//!
//! - gRPC-Web (gRPC `PROTOCOL-WEB.md`): binary and base64, unary and server-streaming.
//! - Connect (<https://connectrpc.com/docs/protocol>): unary with JSON or protobuf bodies, GET for methods without side
//!   effects, and server-streaming.
//! - CORS (Fetch standard, section 3.2) for the origins that were allowed; requests from others are refused, not merely
//!   left without an answer that a page could read.
//!
//! A state machine without I/O or clock, like [`crate::grpc`], whose events it speaks: nothing above knows by which protocol
//! a call came. It knows no message; what it has to know of them comes in a [`Schema`]. It never serves files or sessions.

mod exchange;
pub mod http1;
mod origins;
mod request;

pub use http1::Http1Connection;
pub use origins::{InvalidOrigin, Origins};

pub(crate) use exchange::{Exchange, Part};
pub(crate) use request::{Asked, Coding, Verdict, begin};

use bytes::Bytes;

/// Appends what a message of a route is in the other form, or says what is wrong with it.
pub type Convert = fn(route: u32, from: &[u8], into: &mut Vec<u8>) -> Result<(), String>;

/// What the layer above knows of its messages and pages.
#[derive(Clone, Copy)]
pub struct Schema {
    /// Appends the request message of a route that a JSON text stands for, or says what is wrong with the text.
    pub request_from_json: Convert,
    /// Appends a reply message of a route as JSON, or says why that cannot be done.
    pub reply_to_json: Convert,
    /// Appends the details of an encoded `google.rpc.Status` as a JSON array of Connect's error details; nothing if there
    /// are none.
    pub details_to_json: fn(status: &[u8], into: &mut Vec<u8>),
    /// Whether the method of a route changes nothing, so that GET may call it.
    pub is_read: fn(route: u32) -> bool,
    /// What a person is told who GETs a path that is no method, and the status.
    pub page: fn(path: &str, seen: Seen<'_>) -> (u16, String),
}

/// How a client sees us.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// What it calls us; empty where it does not say.
    pub host: &'a str,
    /// Whether it speaks TLS.
    pub is_secured: bool,
}

/// What all connections have in common.
#[derive(Clone)]
pub struct Web {
    /// What is known of messages.
    pub schema: Schema,
    /// Pages from where a browser may call.
    pub origins: Origins,
    /// Largest JSON text of a request, bytes; a larger one fails with RESOURCE_EXHAUSTED. Reading JSON takes many times the
    /// work of reading protobuf, and all of it in one turn of the loop.
    pub json_bytes_max: u32,
    /// Whether connections speak TLS.
    pub is_secured: bool,
    /// Smallest message of an answer that is compressed, bytes, if its reader takes gzip; `u32::MAX` compresses none.
    pub compress_bytes_min: u32,
}

impl Web {
    pub(crate) fn page(&self, path: &[u8], host: &str) -> (u16, String) {
        let seen = Seen { host, is_secured: self.is_secured };
        (self.schema.page)(&String::from_utf8_lossy(path), seen)
    }
}

/// Whether the first bytes of a connection are those of HTTP/1: `None` as long as it cannot be told.
pub(crate) fn is_http1(input: &[u8]) -> Option<bool> {
    const METHOD_BYTES_MAX: usize = 16;
    // An empty line before the first request is passed over (RFC 9112, section 2.2).
    let input = input.strip_prefix(b"\r\n").unwrap_or(input);
    let token = input.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    match input.get(token) {
        None if token <= METHOD_BYTES_MAX && input != b"PRI" => None,
        // A method is followed by a target: a path, `*`, or a URI.
        Some(b' ') if (1..=METHOD_BYTES_MAX).contains(&token) && &input[..token] != b"PRI" => {
            input.get(token + 1).map(|byte| matches!(byte, b'/' | b'*' | b'a'..=b'z'))
        }
        _ => Some(false),
    }
}

/// An answer that is no call's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: crate::h2::Fields,
    pub(crate) body: Bytes,
}

impl Answer {
    /// An answer in plain text.
    pub(crate) fn text(status: u16, text: impl Into<String>) -> Self {
        let mut text = text.into();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let mut answer = Self { status, body: text.into(), ..Self::default() };
        answer.fields.push(b"content-type", b"text/plain; charset=utf-8");
        answer.fields.push(b"x-content-type-options", b"nosniff");
        answer
    }

    pub(crate) fn into_part(self) -> Part {
        Part {
            head: Some((self.status, self.fields)),
            body: Vec::new(),
            tail: self.body,
            end: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_protocol() {
        for (input, wanted) in [
            ("", None),
            ("G", None),
            ("GET", None),
            ("GET ", None),
            ("POST /", Some(true)),
            ("PROPFIND /", Some(true)),
            ("\r\nGET /", Some(true)),
            ("PR", None),
            ("PRI", Some(false)),
            ("PRI * HTTP/2.0\r\n", Some(false)),
            ("PRIX /", Some(true)),
            ("INVALID CONNECTION PREFACE", Some(false)),
            ("ABCDEFGHIJKLMNOPQ", Some(false)),
            ("get / ", Some(false)),
            (" ", Some(false)),
            ("\x16\x03\x01", Some(false)),
            ("SSH-2.0", Some(false)),
        ] {
            assert_eq!(is_http1(input.as_bytes()), wanted, "{input:?}");
        }
    }
}
