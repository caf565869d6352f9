//! Status codes and their form in trailers (gRPC `statuscodes.md` and `PROTOCOL-HTTP2.md`).

/// A gRPC status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// All codes, by number.
    pub const ALL: [Self; 17] = [
        Self::Ok,
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// The code of a number; numbers that are not defined are `Unknown`.
    pub fn from_number(number: u32) -> Self {
        Self::ALL.get(number as usize).copied().unwrap_or(Self::Unknown)
    }

    /// The number.
    #[inline]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The number in ASCII, as `grpc-status` has it.
    pub fn digits(self) -> &'static str {
        const DIGITS: [&str; 17] = [
            "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15",
            "16",
        ];
        DIGITS[self as usize]
    }

    /// Reads `grpc-status`.
    pub fn parse(value: &[u8]) -> Self {
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        number.map_or(Self::Unknown, Self::from_number)
    }

    /// The name as the specification writes it, such as `RESOURCE_EXHAUSTED`.
    pub fn name(self) -> &'static str {
        const NAMES: [&str; 17] = [
            "OK",
            "CANCELLED",
            "UNKNOWN",
            "INVALID_ARGUMENT",
            "DEADLINE_EXCEEDED",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "RESOURCE_EXHAUSTED",
            "FAILED_PRECONDITION",
            "ABORTED",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
            "INTERNAL",
            "UNAVAILABLE",
            "DATA_LOSS",
            "UNAUTHENTICATED",
        ];
        NAMES[self as usize]
    }

    /// What an HTTP status without a gRPC status stands for (gRPC `http-grpc-status-mapping.md`).
    pub fn from_http(status: u16) -> Self {
        match status {
            400 | 431 => Self::Internal,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::Unimplemented,
            429 | 502 | 503 | 504 => Self::Unavailable,
            _ => Self::Unknown,
        }
    }
}

/// How a call ends when it fails (or, with `Code::Ok`, ends well).
#[derive(Debug, Clone, Copy)]
pub struct Status<'a> {
    /// `grpc-status`
    pub code: Code,
    /// `grpc-message`, plain; it is percent-encoded on the way out.
    pub message: &'a str,
    /// `grpc-status-details-bin`: an encoded `google.rpc.Status`, or nothing.
    pub details: &'a [u8],
    /// Custom trailers, names in lower case; the values of `-bin` names are plain and base64-encoded on the way out.
    pub trailers: &'a [(&'a str, &'a [u8])],
}

impl<'a> Status<'a> {
    /// A status without details.
    pub fn new(code: Code, message: &'a str) -> Self {
        Self { code, message, details: &[], trailers: &[] }
    }
}

/// Appends `message` percent-encoded: everything but printable ASCII, and `%` itself. Stops before `bytes_max`; false: the message was
/// cut there.
pub(crate) fn percent_encode(message: &str, bytes_max: usize, into: &mut Vec<u8>) -> bool {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let (start, mut is_whole) = (into.len(), true);
    for c in message.chars() {
        let mut buffer = [0; 4];
        let bytes = c.encode_utf8(&mut buffer).as_bytes();
        let plain = bytes.len() == 1 && matches!(bytes[0], 0x20..=0x7e) && bytes[0] != b'%';
        let size = if plain { 1 } else { bytes.len() * 3 };
        if into.len() - start + size > bytes_max {
            is_whole = false;
            break;
        }
        for &byte in bytes {
            if plain {
                into.push(byte);
            } else {
                into.extend_from_slice(&[
                    b'%',
                    HEX[usize::from(byte >> 4)],
                    HEX[usize::from(byte & 15)],
                ]);
            }
        }
    }
    // White space at the ends is not allowed in a field value.
    if into.len() > start && into.ends_with(b" ") {
        into.pop();
        into.extend_from_slice(b"%20");
    }
    if into.get(start) == Some(&b' ') {
        into.splice(start..=start, *b"%20");
    }
    is_whole
}

/// Decodes `grpc-message`; what is not a valid escape or not UTF-8 is kept as well as it can be.
pub(crate) fn percent_decode(value: &[u8]) -> String {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let mut plain = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%'
            && let [high, low, after @ ..] = tail
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            plain.push(high << 4 | low);
            rest = after;
        } else {
            plain.push(byte);
            rest = tail;
        }
    }
    match String::from_utf8(plain) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_agree_with_their_numbers() {
        for (number, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(code.number()), number);
            assert_eq!(code.digits(), number.to_string());
            assert_eq!(Code::parse(code.digits().as_bytes()), code);
        }
        for odd in ["17", "-1", "", "x", "99999999999"] {
            assert_eq!(Code::parse(odd.as_bytes()), Code::Unknown);
        }
    }

    #[test]
    fn messages_go_there_and_back() {
        for (plain, coded) in [
            ("", ""),
            ("plain text", "plain text"),
            ("100%", "100%25"),
            ("zwölf\n", "zw%C3%B6lf%0A"),
            (" a ", "%20a%20"),
            (" ", "%20"),
            ("\t", "%09"),
        ] {
            let mut out = Vec::new();
            assert!(percent_encode(plain, 1000, &mut out));
            assert_eq!(String::from_utf8_lossy(&out), coded);
            assert_eq!(percent_decode(&out), plain);
        }
        assert_eq!(percent_decode(b"a%2"), "a%2");
        assert_eq!(percent_decode(b"%zz%41"), "%zzA");
        assert_eq!(percent_decode(b"%ff"), "\u{fffd}");
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let mut out = Vec::new();
        assert!(!percent_encode("aöb", 6, &mut out));
        assert_eq!(out, b"a");
    }
}
