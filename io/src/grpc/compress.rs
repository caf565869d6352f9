//! gzip of single messages (gRPC `compression.md`; RFC 1952 around RFC 1951), both ways.
//!
//! Messages are worked on whole, with one state per thread: a connection that compresses holds no memory for it. What a message
//! may grow to is checked before and while it grows, so that a bomb costs its limit in memory and a time that is linear in its
//! length and in that limit. Never keeps a dictionary from one message to the next, so that no message tells of another.

use bytes::Bytes;
use flate2::{Compress, Compression, Crc, Decompress, FlushCompress, FlushDecompress, Status};
use std::cell::RefCell;

/// What `grpc-accept-encoding` says of us.
pub(crate) const ACCEPTED: &[u8] = b"identity,gzip";
/// The name of the one encoding that is not `identity`.
pub(crate) const GZIP: &[u8] = b"gzip";
/// Bytes of a gzip header without optional fields.
const HEADER_BYTES: usize = 10;
/// Bytes of the trailer: CRC-32 and length.
const TRAILER_BYTES: usize = 8;
/// First capacity of what is decompressed, per byte that came: the length in the trailer is only a claim.
const GROWTH_FIRST: usize = 8;

/// What `grpc-encoding` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Encoding {
    /// Absent, or `identity`.
    #[default]
    Identity,
    /// `gzip`.
    Gzip,
    /// Anything else.
    Unknown,
}

impl Encoding {
    pub(crate) fn parse(value: &[u8]) -> Self {
        match value {
            b"identity" => Self::Identity,
            b"gzip" => Self::Gzip,
            _ => Self::Unknown,
        }
    }
}

/// Whether a `grpc-accept-encoding` lists gzip.
pub(crate) fn accepts_gzip(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|name| name.trim_ascii() == GZIP)
}

/// When the messages of an answer are compressed, if their reader takes that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compressing {
    /// Never.
    #[default]
    Never,
    /// From `Limits::compress_bytes_min` on, and only if they become smaller.
    WhereItPays,
    /// All but empty ones, whatever comes of it.
    Always,
}

/// Why a message could not be decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InflateError {
    /// It would be larger than the limit.
    TooLarge,
    /// It is not one whole gzip member.
    Malformed,
}

struct Codec {
    inflate: Decompress,
    /// Made at the first message that is compressed: it is large.
    deflate: Option<Compress>,
}

thread_local! {
    static CODEC: RefCell<Codec> =
        RefCell::new(Codec { inflate: Decompress::new(false), deflate: None });
}

/// Decompresses a message to at most `bytes_max` bytes.
pub fn inflate(message: &[u8], bytes_max: usize) -> Result<Bytes, InflateError> {
    let body = body(message).ok_or(InflateError::Malformed)?;
    let (body, trailer) =
        body.split_last_chunk::<TRAILER_BYTES>().ok_or(InflateError::Malformed)?;
    let [a, b, c, d, e, f, g, h] = *trailer;
    let crc = u32::from_le_bytes([a, b, c, d]);
    let length = u32::from_le_bytes([e, f, g, h]) as usize;
    if length > bytes_max {
        return Err(InflateError::TooLarge);
    }
    let plain = CODEC.with_borrow_mut(|codec| {
        codec.inflate.reset(false);
        // One byte more than is claimed, so that its end is seen without another round.
        let first = (length + 1).min(body.len().saturating_mul(GROWTH_FIRST));
        let mut plain = Vec::with_capacity(first.max(64));
        let mut rest = body;
        loop {
            let before = (codec.inflate.total_in(), plain.len());
            let status = codec
                .inflate
                .decompress_vec(rest, &mut plain, FlushDecompress::None)
                .map_err(|_| InflateError::Malformed)?;
            let taken = (codec.inflate.total_in() - before.0) as usize;
            rest = &rest[taken..];
            if plain.len() > length {
                return Err(InflateError::Malformed);
            }
            if status == Status::StreamEnd {
                break;
            }
            if plain.len() == plain.capacity() {
                let grown = (2 * plain.capacity()).min(length + 1);
                plain.reserve_exact(grown - plain.len());
            } else if taken == 0 && plain.len() == before.1 {
                return Err(InflateError::Malformed); // cut short
            }
        }
        // Another member, or anything else behind the first, is nothing that gRPC sends.
        if rest.is_empty() { Ok(plain) } else { Err(InflateError::Malformed) }
    })?;
    let mut sum = Crc::new();
    sum.update(&plain);
    if sum.sum() != crc || plain.len() != length {
        return Err(InflateError::Malformed);
    }
    Ok(plain.into())
}

/// What follows the header of a gzip member (RFC 1952, section 2.3).
fn body(member: &[u8]) -> Option<&[u8]> {
    const HCRC: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    let (&[0x1f, 0x8b, 8, flags, ..], mut rest) = member.split_first_chunk::<HEADER_BYTES>()?
    else {
        return None;
    };
    if flags & EXTRA != 0 {
        let (length, tail) = rest.split_first_chunk::<2>()?;
        rest = tail.get(usize::from(u16::from_le_bytes(*length))..)?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let end = rest.iter().position(|byte| *byte == 0)?;
            rest = &rest[end + 1..];
        }
    }
    if flags & HCRC != 0 {
        rest = rest.get(2..)?;
    }
    // Bits that the RFC reserves must be zero.
    (flags & 0xe0 == 0).then_some(rest)
}

/// Compresses a message that consists of `parts`. `None` when that would not make it smaller than `bytes_max`.
pub(crate) fn deflate(parts: [&[u8]; 2], bytes_max: usize) -> Option<Vec<u8>> {
    const HEADER: [u8; HEADER_BYTES] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    if bytes_max <= HEADER_BYTES + TRAILER_BYTES {
        return None;
    }
    CODEC.with_borrow_mut(|codec| {
        let deflate =
            codec.deflate.get_or_insert_with(|| Compress::new(Compression::fast(), false));
        deflate.reset();
        let mut out = Vec::with_capacity(bytes_max);
        out.extend_from_slice(&HEADER);
        let mut sum = Crc::new();
        for part in parts {
            sum.update(part);
            let start = deflate.total_in();
            while (deflate.total_in() - start) < part.len() as u64 {
                let rest = &part[(deflate.total_in() - start) as usize..];
                deflate.compress_vec(rest, &mut out, FlushCompress::None).ok()?;
                if out.len() == out.capacity() {
                    return None;
                }
            }
        }
        loop {
            match deflate.compress_vec(&[], &mut out, FlushCompress::Finish).ok()? {
                Status::StreamEnd => break,
                _ if out.len() == out.capacity() => return None,
                _ => {}
            }
        }
        out.extend_from_slice(&sum.sum().to_le_bytes());
        out.extend_from_slice(&sum.amount().to_le_bytes());
        (out.len() < bytes_max).then_some(out)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(plain: &[u8]) -> Vec<u8> {
        deflate([plain, b""], plain.len() + 1024).unwrap()
    }

    #[test]
    fn messages_go_there_and_back() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .take(100_000)
        .collect();
        for plain in [&b""[..], b"a", &[0; 1_000_000], &noise] {
            let middle = plain.len() / 3;
            let bytes_max = plain.len() + 1024;
            let coded = deflate([&plain[..middle], &plain[middle..]], bytes_max).unwrap();
            assert_eq!(inflate(&coded, plain.len()).unwrap(), plain);
            for cut in [coded.len() - 1, coded.len() / 2, 10, 9, 0] {
                assert!(inflate(&coded[..cut], bytes_max).is_err(), "{cut}");
            }
        }
        assert!(deflate([&noise, b""], noise.len()).is_none(), "noise does not become smaller");
    }

    /// What Python's `gzip.compress` and `gzip --name` write, extra fields and a header checksum included.
    #[test]
    fn headers_of_others_are_understood() {
        let ours = packed(b"hello");
        let body = &ours[HEADER_BYTES..];
        let with = |flags: u8, fields: &[u8]| {
            [&[0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 2, 3], fields, body].concat()
        };
        for (flags, fields) in [
            (0, &b""[..]),
            (1, b""),
            (8, b"a.txt\0"),
            (16, b"words\0"),
            (4, b"\x03\0abc"),
            (2, b"\xaa\xbb"),
            (31, b"\x01\0xname\0comment\0\x01\x02"),
        ] {
            assert_eq!(inflate(&with(flags, fields), 5).unwrap(), "hello", "{flags}");
        }
        for (flags, fields) in [(8, &b"endless"[..]), (4, b"\xff\xff"), (0x20, b"")] {
            assert_eq!(inflate(&with(flags, fields), 5), Err(InflateError::Malformed), "{flags}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let good = packed(b"some text, some text, some text");
        for at in 0..good.len() {
            // The time, the extra flags and the system mean nothing to us.
            if (4..10).contains(&at) {
                continue;
            }
            let mut bad = good.clone();
            bad[at] ^= 0x81;
            assert!(inflate(&bad, 1000).is_err(), "byte {at}");
        }
        assert_eq!(inflate(&[&good[..], &good].concat(), 1000), Err(InflateError::Malformed));
        assert!(inflate(&[&good[..], b"x"].concat(), 1000).is_err());
    }

    #[test]
    fn a_bomb_ends_at_its_limit() {
        let mut bomb = packed(&vec![0; 10_000_000]);
        assert!(bomb.len() < 100_000);
        assert_eq!(inflate(&bomb, 9_999_999), Err(InflateError::TooLarge));
        assert_eq!(inflate(&bomb, 10_000_000).unwrap().len(), 10_000_000);
        // One that lies about its length.
        let end = bomb.len() - 4;
        bomb[end..].copy_from_slice(&5u32.to_le_bytes());
        assert_eq!(inflate(&bomb, 100_000), Err(InflateError::Malformed));
        assert_eq!(inflate(&bomb, 20_000_000), Err(InflateError::Malformed));
    }

    #[test]
    fn gzip_is_found_in_a_list() {
        for yes in ["gzip", "identity,gzip", "identity, deflate, gzip", "gzip , x"] {
            assert!(accepts_gzip(yes.as_bytes()), "{yes}");
        }
        for no in ["", "identity", "xgzip", "gzip-2", "GZIP"] {
            assert!(!accepts_gzip(no.as_bytes()), "{no}");
        }
    }
}
