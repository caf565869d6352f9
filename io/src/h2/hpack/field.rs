//! What a header field is, and whether it may be there at all (RFC 9113, section 8.2).

/// The fields that HTTP/2 and gRPC give a meaning; everything else is `Other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldKind {
    /// `:method`
    Method,
    /// `:scheme`
    Scheme,
    /// `:path`
    Path,
    /// `:authority`
    Authority,
    /// `:status`
    Status,
    /// A pseudo-header that is not defined.
    UnknownPseudo,
    /// `connection`, `keep-alive`, `proxy-connection`, `transfer-encoding`, `upgrade`: malformed in HTTP/2.
    ConnectionSpecific,
    /// `host`
    Host,
    /// `te`
    Te,
    /// `content-type`
    ContentType,
    /// `content-length`
    ContentLength,
    /// `user-agent`
    UserAgent,
    /// `accept-encoding`
    AcceptEncoding,
    /// `grpc-timeout`
    GrpcTimeout,
    /// `grpc-encoding`
    GrpcEncoding,
    /// `grpc-accept-encoding`
    GrpcAcceptEncoding,
    /// `grpc-status`
    GrpcStatus,
    /// `grpc-message`
    GrpcMessage,
    /// `grpc-status-details-bin`
    GrpcStatusDetails,
    /// Anything else.
    Other,
}

impl FieldKind {
    /// Classifies a name.
    pub fn of(name: &[u8]) -> Self {
        match name {
            b":method" => Self::Method,
            b":scheme" => Self::Scheme,
            b":path" => Self::Path,
            b":authority" => Self::Authority,
            b":status" => Self::Status,
            [b':', ..] => Self::UnknownPseudo,
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding"
            | b"upgrade" => Self::ConnectionSpecific,
            b"host" => Self::Host,
            b"te" => Self::Te,
            b"content-type" => Self::ContentType,
            b"content-length" => Self::ContentLength,
            b"user-agent" => Self::UserAgent,
            b"accept-encoding" => Self::AcceptEncoding,
            b"grpc-timeout" => Self::GrpcTimeout,
            b"grpc-encoding" => Self::GrpcEncoding,
            b"grpc-accept-encoding" => Self::GrpcAcceptEncoding,
            b"grpc-status" => Self::GrpcStatus,
            b"grpc-message" => Self::GrpcMessage,
            b"grpc-status-details-bin" => Self::GrpcStatusDetails,
            _ => Self::Other,
        }
    }

    /// A bit of its own, for sets of kinds.
    #[inline]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Whether a byte may stand in a field name: a token character (RFC 9110, section 5.6.2) that is not upper-case.
const fn is_name_byte(byte: u8) -> bool {
    matches!(byte,
        b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`'
        | b'|' | b'~' | b'0'..=b'9' | b'a'..=b'z')
}

static NAME_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = is_name_byte(byte as u8);
        byte += 1;
    }
    table
};

/// Whether a field name keeps to RFC 9113, section 8.2.1; a leading colon is a pseudo-header's.
pub fn name_is_valid(name: &[u8]) -> bool {
    let rest = name.strip_prefix(b":").unwrap_or(name);
    !rest.is_empty() && rest.iter().all(|&byte| NAME_BYTES[byte as usize])
}

/// Whether a byte may stand in a method (RFC 9110, section 9.1: a token).
const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || is_name_byte(byte)
}

/// Whether a byte may stand in a scheme (RFC 3986, section 3.1).
const fn is_scheme_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

/// Whether a byte may stand in a host and port (RFC 3986, section 3.2): no userinfo, which section 8.3.1 forbids, and nothing that
/// begins another part of a URI.
const fn is_authority_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.'
                | b'_'
                | b'~'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
                | b':'
                | b'['
                | b']'
                | b'%'
        )
}

static AUTHORITY_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = is_authority_byte(byte as u8);
        byte += 1;
    }
    table
};

/// Whether a path holds no white space, control character or fragment, which would end it for the next hop.
fn of_target(path: &[u8]) -> bool {
    path.iter().all(|&byte| byte > b' ' && byte != 0x7f && byte != b'#')
}

/// Whether a field may have that value: no NUL, LF or CR in it, no white space around it (RFC 9113, section 8.2.1), no field of
/// one connection only (8.2.2), no pseudo-header that is not defined, and well-formed parts of the target (8.3.1).
pub fn value_is_valid(kind: FieldKind, value: &[u8]) -> bool {
    let edge = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let allowed = match kind {
        FieldKind::ConnectionSpecific | FieldKind::UnknownPseudo => false,
        FieldKind::Te => value == b"trailers",
        FieldKind::Path => (value.starts_with(b"/") && of_target(value)) || value == b"*",
        FieldKind::Authority | FieldKind::Host => {
            value.iter().all(|&byte| AUTHORITY_BYTES[byte as usize])
        }
        FieldKind::Method => !value.is_empty() && value.iter().all(|&byte| is_token_byte(byte)),
        FieldKind::Scheme => match value {
            [first, rest @ ..] => {
                first.is_ascii_alphabetic() && rest.iter().all(|&byte| is_scheme_byte(byte))
            }
            [] => false,
        },
        _ => true,
    };
    allowed
        && !edge(value.first())
        && !edge(value.last())
        && !value.iter().any(|&byte| matches!(byte, 0 | b'\n' | b'\r'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["te", ":path", "x-a_b.c~1", "grpc-status"] {
            assert!(name_is_valid(good.as_bytes()), "{good}");
        }
        for bad in ["", ":", "Te", "a b", "a:b", "a\n", "é", "::path", "a\u{7f}"] {
            assert!(!name_is_valid(bad.as_bytes()), "{bad:?}");
        }
    }

    #[test]
    fn values() {
        for good in ["", "a", "a b", "a\tb", "é"] {
            assert!(value_is_valid(FieldKind::Other, good.as_bytes()), "{good:?}");
        }
        for bad in [" a", "a ", "\ta", "a\0b", "a\r", "a\nb"] {
            assert!(!value_is_valid(FieldKind::Other, bad.as_bytes()), "{bad:?}");
        }
        assert!(value_is_valid(FieldKind::Te, b"trailers"));
        assert!(!value_is_valid(FieldKind::Te, b"gzip"));
        assert!(!value_is_valid(FieldKind::Path, b"a"));
        assert!(!value_is_valid(FieldKind::ConnectionSpecific, b"close"));
        for (kind, good, bad) in [
            (
                FieldKind::Path,
                &["/", "/a.b/C?d=e", "/%20"][..],
                &["", "a", "/a b", "/a#b", "/a\u{7f}", "/\t", "**"][..],
            ),
            (
                FieldKind::Authority,
                &["", "a", "a:1", "[::1]:2", "%2Ftmp"],
                &["u@a", "a/b", "a b", "a\\b", "a?b", "a#b"],
            ),
            (FieldKind::Host, &["a"], &["u@a"]),
            (FieldKind::Method, &["GET", "x-y"], &["", "G T", "GET/"]),
            (FieldKind::Scheme, &["http", "a+b"], &["", "1a", "http:", "ht tp"]),
        ] {
            for value in good {
                assert!(value_is_valid(kind, value.as_bytes()), "{kind:?} {value:?}");
            }
            for value in bad {
                assert!(!value_is_valid(kind, value.as_bytes()), "{kind:?} {value:?}");
            }
        }
    }
}
