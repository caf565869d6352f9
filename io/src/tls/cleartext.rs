//! What is said to a peer that does not speak TLS where we do, and to one that does where we do not.

/// A fatal alert, handshake_failure (RFC 8446, section 6.2), for a client that begins TLS on a port without it.
pub const ALERT_FOR_TLS: [u8; 7] = [21, 3, 1, 0, 2, 2, 40];

/// The content type that opens every TLS connection (RFC 8446, section 5.1); no protocol in clear begins so.
pub const HANDSHAKE: u8 = 22;
/// The first bytes of HTTP/2 with prior knowledge.
const PREFACE: &[u8] = b"PRI";

/// SETTINGS without any, then GOAWAY with INADEQUATE_SECURITY and a word for people.
const HTTP2: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x19\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0cthis port has TLS";

const HTTP1: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 52\r\n\
    connection: close\r\n\r\nThis port speaks TLS: use https, or a client's TLS.\n";

/// What the first bytes of a connection are, where TLS was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleartext {
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A request of HTTP/1.
    Http1,
    /// Too little to tell.
    Unclear,
}

impl Cleartext {
    /// What these first bytes are; `None` for TLS, and for what is neither and gets TLS's own alert.
    pub fn of(first: &[u8]) -> Option<Self> {
        match first {
            [] | [HANDSHAKE, ..] => None,
            _ if !first.iter().take(PREFACE.len()).all(u8::is_ascii_uppercase) => None,
            _ if first.len() < PREFACE.len() => Some(Self::Unclear),
            _ if first.starts_with(PREFACE) => Some(Self::Http2),
            _ => Some(Self::Http1),
        }
    }

    /// What is answered before the connection is closed.
    pub fn answer(self) -> &'static [u8] {
        match self {
            Self::Http2 => HTTP2,
            Self::Http1 => HTTP1,
            Self::Unclear => b"",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell() {
        assert_eq!(Cleartext::of(b""), None);
        assert_eq!(Cleartext::of(&[22, 3, 1, 2, 0]), None);
        assert_eq!(Cleartext::of(b"\0\0\0"), None, "gets an alert");
        assert_eq!(Cleartext::of(b"PR"), Some(Cleartext::Unclear));
        assert_eq!(Cleartext::of(b"PRI * HTTP/2.0\r\n"), Some(Cleartext::Http2));
        assert_eq!(Cleartext::of(b"POST / HTTP/1.1\r\n"), Some(Cleartext::Http1));
    }

    #[test]
    fn the_answers_are_well_formed() {
        let goaway = &HTTP2[9..];
        assert_eq!(usize::from(goaway[2]) + 9, goaway.len(), "the length of the frame");
        assert_eq!((goaway[3], goaway[16]), (7, 12), "GOAWAY, INADEQUATE_SECURITY");
        let text = std::str::from_utf8(HTTP1).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
    }
}
