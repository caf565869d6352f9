//! The body of a request, by its length or in chunks (RFC 9112, sections 6 and 7).

use bytes::{Bytes, BytesMut};

use super::head::{BodyLength, Refused, field};

/// Longest line before a chunk, its extensions included, bytes.
const CHUNK_LINE_BYTES_MAX: usize = 256;
/// Most bytes of the fields behind the last chunk.
const TRAILER_BYTES_MAX: usize = 8 << 10;
/// Most digits of a chunk's size.
const CHUNK_DIGITS_MAX: usize = 15;

/// Cuts a body off the front of the input.
#[derive(Debug)]
pub(crate) enum BodyDecoder {
    /// So many bytes are left.
    Known(u64),
    /// A line with a chunk's size comes next.
    ChunkLine,
    /// So many bytes of a chunk are left.
    Chunk(u64),
    /// The line end behind a chunk comes next.
    ChunkEnd,
    /// The fields behind the last chunk, of which so many bytes have come. They are checked and dropped.
    Trailers(usize),
    /// It has ended.
    Done,
}

/// What was at the front of the input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// More is needed.
    Partial,
    /// A piece of the body.
    Piece(Bytes),
    /// The body has ended; what is left belongs to the next request.
    End,
}

impl BodyDecoder {
    pub(crate) fn new(length: BodyLength) -> Self {
        match length {
            BodyLength::Known(bytes) => Self::Known(bytes),
            BodyLength::Chunked => Self::ChunkLine,
        }
    }

    /// Takes the next piece.
    pub(crate) fn take(&mut self, input: &mut BytesMut) -> Result<Taken, Refused> {
        loop {
            match self {
                Self::Known(0) | Self::Done => {
                    *self = Self::Done;
                    return Ok(Taken::End);
                }
                Self::Chunk(0) => *self = Self::ChunkEnd,
                Self::Known(left) | Self::Chunk(left) => {
                    if input.is_empty() {
                        return Ok(Taken::Partial);
                    }
                    let count = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= count as u64;
                    return Ok(Taken::Piece(input.split_to(count).freeze()));
                }
                Self::ChunkLine => match line(input, CHUNK_LINE_BYTES_MAX)? {
                    None => return Ok(Taken::Partial),
                    Some(line) => {
                        *self = match chunk_size(&line)? {
                            0 => Self::Trailers(0),
                            size => Self::Chunk(size),
                        }
                    }
                },
                Self::ChunkEnd => {
                    let Some(end) = input.first_chunk::<2>() else {
                        return match input.first() {
                            None | Some(b'\r') => Ok(Taken::Partial),
                            Some(_) => Err(Refused(400, "a chunk is longer than its size says")),
                        };
                    };
                    if end != b"\r\n" {
                        return Err(Refused(400, "a chunk is longer than its size says"));
                    }
                    let _ = input.split_to(2);
                    *self = Self::ChunkLine;
                }
                Self::Trailers(taken) => match line(input, TRAILER_BYTES_MAX - *taken)? {
                    None => return Ok(Taken::Partial),
                    Some(line) if line.is_empty() => *self = Self::Done,
                    Some(line) => {
                        field(&line)?;
                        *taken = (*taken + line.len() + 2).min(TRAILER_BYTES_MAX);
                    }
                },
            }
        }
    }
}

/// Takes a line off the input, without its end.
fn line(input: &mut BytesMut, bytes_max: usize) -> Result<Option<BytesMut>, Refused> {
    let window = &input[..input.len().min(bytes_max)];
    let Some(at) = window.iter().position(|&byte| byte == b'\n') else {
        if input.len() >= bytes_max {
            return Err(Refused(400, "a line between the chunks is too long"));
        }
        return Ok(None);
    };
    if at == 0 || input[at - 1] != b'\r' {
        return Err(Refused(400, "lines end with CR LF"));
    }
    let mut line = input.split_to(at + 1);
    line.truncate(at - 1);
    Ok(Some(line))
}

/// The size of a chunk (RFC 9112, section 7.1). Extensions are passed over.
fn chunk_size(line: &[u8]) -> Result<u64, Refused> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let rest = &line[digits..];
    let extension = rest.trim_ascii_start();
    let valid = (1..=CHUNK_DIGITS_MAX).contains(&digits)
        && (rest.is_empty() || extension.starts_with(b";"))
        && !rest.iter().any(|&byte| byte.is_ascii_control() && byte != b'\t');
    if !valid {
        return Err(Refused(400, "a chunk's size is not a hexadecimal number"));
    }
    let value = |byte: u8| u64::from((byte as char).to_digit(16).unwrap_or(0));
    Ok(line[..digits].iter().fold(0, |size, &byte| size << 4 | value(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body in an input that comes in parts, and what is left behind it.
    fn decode(length: BodyLength, input: &[u8], part: usize) -> Result<(Vec<u8>, Vec<u8>), u16> {
        let (mut decoder, mut buffer) = (BodyDecoder::new(length), BytesMut::new());
        let mut body = Vec::new();
        let mut parts = input.chunks(part);
        loop {
            match decoder.take(&mut buffer).map_err(|Refused(status, _)| status)? {
                Taken::Piece(piece) => body.extend_from_slice(&piece),
                Taken::End => {
                    parts.for_each(|part| buffer.extend_from_slice(part));
                    return Ok((body, buffer.to_vec()));
                }
                Taken::Partial => match parts.next() {
                    Some(part) => buffer.extend_from_slice(part),
                    None => return Err(0),
                },
            }
        }
    }

    #[test]
    fn any_cut_gives_the_same_body() {
        let chunked =
            b"5\r\nhello\r\n1;a=\"b\"\r\n,\r\n00006 ;x\r\n world\r\n0\r\nx-sum: 1\r\n\r\nGET /";
        for part in 1..=chunked.len() {
            let decoded = decode(BodyLength::Chunked, chunked, part);
            assert_eq!(decoded, Ok((b"hello, world".to_vec(), b"GET /".to_vec())), "{part}");
            let known = decode(BodyLength::Known(5), b"helloGET /", part);
            assert_eq!(known, Ok((b"hello".to_vec(), b"GET /".to_vec())));
        }
        assert_eq!(decode(BodyLength::Known(0), b"x", 1), Ok((vec![], b"x".to_vec())));
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for bad in [
            "\r\n",
            "g\r\n",
            "0x5\r\nhello\r\n",
            "+5\r\nhello\r\n",
            "-1\r\n",
            " 5\r\nhello\r\n",
            "5 5\r\nhello\r\n",
            "5\nhello\r\n",
            "5\r\nhello",
            "5\r\nhello\n",
            "5\r\nhello!\r\n",
            "5\r\nhello\rx",
            "ffffffffffffffff\r\n",
            "5;a\rb\r\nhello\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\na: b\n\r\n",
        ] {
            let decoded = decode(BodyLength::Chunked, bad.as_bytes(), 1000);
            let wanted = if bad == "5\r\nhello" { Err(0) } else { Err(400) };
            assert_eq!(decoded, wanted, "{bad:?}");
        }
        let long = format!("5;{}\r\n", "a".repeat(CHUNK_LINE_BYTES_MAX));
        assert_eq!(decode(BodyLength::Chunked, long.as_bytes(), 7), Err(400));
        let trailers = format!("0\r\n{}\r\n", "a: b\r\n".repeat(TRAILER_BYTES_MAX));
        assert_eq!(decode(BodyLength::Chunked, trailers.as_bytes(), 1000), Err(400));
    }
}
