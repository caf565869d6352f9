//! Header blocks: gathering their frames, decoding them, and checking the message head (RFC 9113, sections 4.3 and 8).

use super::connection::{Connection, Fault, Role, Sink};
use super::frame::ErrorCode;
use super::hpack::table::ENTRY_OVERHEAD_BYTES;
use super::hpack::{DecodeError, Field, FieldKind};

/// A header block that has begun and waits for CONTINUATION frames.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) stream: u32,
    pub(crate) end_stream: bool,
    pub(crate) depends_on_itself: bool,
    pub(crate) continuations: u32,
    pub(crate) bytes: Vec<u8>,
}

/// What a decoded head turned out to be.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) malformed: bool,
    pub(crate) too_large: bool,
    pub(crate) content_length: Option<u64>,
    /// `:status` of a response.
    pub(crate) status: u16,
}

/// Which rules a block has to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadKind {
    Request,
    Response,
    Trailers,
    /// The fields are of no interest; the table has to stay in step.
    Ignored,
}

const SEEN_METHOD: u8 = 1;
const SEEN_SCHEME: u8 = 2;
const SEEN_PATH: u8 = 4;
const SEEN_AUTHORITY: u8 = 8;
const SEEN_STATUS: u8 = 16;

impl<T: Default> Connection<T> {
    /// Decodes a whole block and shows its fields to the sink.
    #[inline]
    pub(crate) fn decode_block<S: Sink>(
        &mut self,
        block: &[u8],
        kind: HeadKind,
        sink: &mut S,
    ) -> Result<Head, Fault> {
        let mut head = Head::default();
        let mut seen = 0u8;
        let mut regular = false;
        let mut connect = false;
        let mut list_bytes = 0usize;
        let list_bytes_max = self.limits.header_list_bytes_max as usize;
        let wanted = match kind {
            HeadKind::Request => SEEN_METHOD | SEEN_SCHEME | SEEN_PATH | SEEN_AUTHORITY,
            HeadKind::Response => SEEN_STATUS,
            HeadKind::Trailers | HeadKind::Ignored => 0,
        };
        if kind != HeadKind::Ignored {
            sink.begin(kind == HeadKind::Trailers);
        }
        let decoded = self.decoder.decode(block, |field: Field<'_>| {
            if kind == HeadKind::Ignored {
                return;
            }
            list_bytes += field.name.len() + field.value.len() + ENTRY_OVERHEAD_BYTES;
            if list_bytes > list_bytes_max {
                head.too_large = true;
                return;
            }
            if !field.valid {
                head.malformed = true;
                return;
            }
            match field.kind {
                FieldKind::Method
                | FieldKind::Scheme
                | FieldKind::Path
                | FieldKind::Authority
                | FieldKind::Status => {
                    let bit = match field.kind {
                        FieldKind::Method => SEEN_METHOD,
                        FieldKind::Scheme => SEEN_SCHEME,
                        FieldKind::Path => SEEN_PATH,
                        FieldKind::Authority => SEEN_AUTHORITY,
                        _ => SEEN_STATUS,
                    };
                    if regular || seen & bit != 0 || wanted & bit == 0 {
                        head.malformed = true;
                    }
                    seen |= bit;
                    match field.kind {
                        FieldKind::Method => connect = field.value == b"CONNECT",
                        FieldKind::Path => head.malformed |= !path_is_valid(field.value),
                        FieldKind::Status => match status(field.value) {
                            Some(status) => head.status = status,
                            None => head.malformed = true,
                        },
                        _ => {}
                    }
                }
                FieldKind::UnknownPseudo | FieldKind::ConnectionSpecific => head.malformed = true,
                FieldKind::Te => {
                    regular = true;
                    head.malformed |= field.value != b"trailers";
                }
                FieldKind::ContentLength => {
                    regular = true;
                    match decimal(field.value) {
                        Some(length) if head.content_length.is_none_or(|known| known == length) => {
                            head.content_length = Some(length);
                        }
                        _ => head.malformed = true,
                    }
                }
                _ => regular = true,
            }
            if !head.malformed {
                sink.field(&field);
            }
        });
        if let Err(error) = decoded {
            return Err(Fault::Connection(
                ErrorCode::COMPRESSION_ERROR,
                match error {
                    DecodeError::Truncated => "header block ends inside a field",
                    DecodeError::IntegerOverflow => "integer in header block too large",
                    DecodeError::InvalidIndex => "index beyond the header tables",
                    DecodeError::InvalidHuffman => "invalid Huffman coding",
                    DecodeError::InvalidSizeUpdate => "invalid header table size update",
                },
            ));
        }
        let required = match kind {
            HeadKind::Request if connect => SEEN_METHOD | SEEN_AUTHORITY,
            HeadKind::Request => SEEN_METHOD | SEEN_SCHEME | SEEN_PATH,
            HeadKind::Response => SEEN_STATUS,
            HeadKind::Trailers | HeadKind::Ignored => 0,
        };
        // A list that was cut at its limit may have lost them.
        if !head.too_large && seen & required != required {
            head.malformed = true;
        }
        if connect && seen & (SEEN_SCHEME | SEEN_PATH) != 0 {
            head.malformed = true;
        }
        Ok(head)
    }

    /// Which kind of head a stream's next block is.
    pub(crate) fn head_kind(&self, headers_received: bool) -> HeadKind {
        match (headers_received, self.role) {
            (true, _) => HeadKind::Trailers,
            (false, Role::Server) => HeadKind::Request,
            (false, Role::Client) => HeadKind::Response,
        }
    }
}

/// An absolute path, or the asterisk of OPTIONS (RFC 9113, section 8.3.1).
#[inline]
fn path_is_valid(path: &[u8]) -> bool {
    matches!(path.first(), Some(b'/')) || path == b"*"
}

fn status(value: &[u8]) -> Option<u16> {
    match *value {
        [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
            Some(u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0'))
        }
        _ => None,
    }
}

fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0u64, |sum, &byte| {
        byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0'))
    })
}
