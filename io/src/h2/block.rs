//! Header blocks: gathering their frames, decoding them, and checking the message head (RFC 9113, sections 4.3 and 8).

use super::connection::{Connection, Fault, Role, Sink};
use super::frame::ErrorCode;
use super::hpack::table::ENTRY_OVERHEAD_BYTES;
use super::hpack::{DecodeError, Field, FieldKind};
use super::refusal::Refusal;
use super::stream::Recycle;

/// A header block that has begun and waits for CONTINUATION frames.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) stream: u32,
    pub(crate) end_stream: bool,
    pub(crate) depends_on_itself: bool,
    pub(crate) continuations: u32,
    pub(crate) begun_ns: u64,
    pub(crate) bytes: Vec<u8>,
}

/// What a decoded head turned out to be.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) malformed: bool,
    pub(crate) too_large: bool,
    pub(crate) too_many: bool,
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

const METHOD: u32 = FieldKind::Method.bit();
const SCHEME: u32 = FieldKind::Scheme.bit();
const PATH: u32 = FieldKind::Path.bit();
const AUTHORITY: u32 = FieldKind::Authority.bit();
const STATUS: u32 = FieldKind::Status.bit();
const PSEUDO: u32 = METHOD | SCHEME | PATH | AUTHORITY | STATUS;

/// What is known of a head so far.
#[derive(Debug, Default, Clone, Copy)]
struct Check {
    head: Head,
    /// Kinds of fields that were there.
    seen: u32,
    list_bytes: usize,
    count: u32,
    connect: bool,
    options: bool,
    asterisk: bool,
    /// What `:authority` and `host` name, to be compared; 0 while they are not there.
    authority: u64,
    host: u64,
}

/// What a list may hold.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    list_bytes_max: usize,
    count_max: u32,
    /// Secret of this connection, so that nobody finds two names that come to the same number.
    key: u64,
}

/// A number for the name of a host, letters of either case alike.
fn host_number(key: u64, name: &[u8]) -> u64 {
    let mut mix = key;
    for chunk in name.chunks(7) {
        let word = chunk.iter().fold(chunk.len() as u64, |word, byte| {
            word << 8 | u64::from(byte.to_ascii_lowercase())
        });
        mix = (mix ^ word).wrapping_mul(key).rotate_left(29);
    }
    mix | 1
}

impl Check {
    #[inline]
    fn field<S: Sink>(&mut self, field: &Field<'_>, wanted: u32, bounds: Bounds, sink: &mut S) {
        let head = &mut self.head;
        self.list_bytes += field.name.len() + field.value.len() + ENTRY_OVERHEAD_BYTES;
        self.count += 1;
        if self.list_bytes > bounds.list_bytes_max || self.count > bounds.count_max || !field.valid
        {
            head.too_large |= self.list_bytes > bounds.list_bytes_max;
            head.too_many |= self.count > bounds.count_max;
            head.malformed |= !field.valid;
            return;
        }
        let bit = field.kind.bit();
        if bit & PSEUDO != 0 && (bit & wanted == 0 || self.seen & (bit | !PSEUDO) != 0) {
            // Not of this kind of message, twice, or after a regular field.
            head.malformed = true;
            return;
        }
        self.seen |= bit;
        match field.kind {
            FieldKind::Method => {
                self.connect = field.value == b"CONNECT";
                self.options = field.value == b"OPTIONS";
            }
            FieldKind::Path => self.asterisk = field.value == b"*",
            FieldKind::Authority => self.authority = host_number(bounds.key, field.value),
            FieldKind::Host => {
                head.malformed |= self.host != 0;
                self.host = host_number(bounds.key, field.value);
            }
            FieldKind::Status => match status(field.value) {
                Some(status) => head.status = status,
                None => head.malformed = true,
            },
            FieldKind::ContentLength => match decimal(field.value) {
                Some(length) if head.content_length.is_none_or(|known| known == length) => {
                    head.content_length = Some(length);
                }
                _ => head.malformed = true,
            },
            _ => {}
        }
        sink.field(field);
    }
}

/// Beginnings of request heads that are remembered per connection.
pub(crate) const HEADS_REMEMBERED: usize = 8;
/// Longest beginning that is remembered, bytes.
const REMEMBERED_BYTES_MAX: usize = 24;

/// The beginning of a head that consists of one-byte indices: as long as the table is the same, so is what they stand for.
#[derive(Debug, Default, Clone, Copy)]
struct Remembered {
    bytes: [u8; REMEMBERED_BYTES_MAX],
    len: usize,
    epoch: u64,
    check: Check,
}

/// Heads repeat: a client sends the same few bytes with every call of a method. Allocated with the first one.
#[derive(Debug, Default)]
pub(crate) struct RememberedHeads(Vec<Remembered>);

impl RememberedHeads {
    /// How many bytes at the front of a block are one-byte indices.
    #[inline]
    fn run(block: &[u8]) -> usize {
        block.iter().position(|&byte| byte < 0x80 || byte == 0xff).unwrap_or(block.len())
    }

    #[inline]
    fn number(run: &[u8]) -> usize {
        let mix = run.iter().fold(0u32, |mix, &byte| mix.wrapping_mul(5) + u32::from(byte));
        mix as usize % HEADS_REMEMBERED
    }

    #[inline]
    fn find(&self, run: &[u8], number: usize, epoch: u64) -> Option<Check> {
        let known = self.0.get(number)?;
        (known.epoch == epoch && known.bytes[..known.len] == *run).then_some(known.check)
    }

    #[cold]
    fn keep(&mut self, run: &[u8], number: usize, epoch: u64, check: Check) {
        self.0.resize(HEADS_REMEMBERED, Remembered::default());
        let entry = &mut self.0[number];
        entry.bytes[..run.len()].copy_from_slice(run);
        entry.len = run.len();
        entry.epoch = epoch;
        entry.check = check;
    }
}

impl<T: Recycle> Connection<T> {
    /// Decodes a whole block and shows its fields to the sink.
    #[inline]
    pub(crate) fn decode_block<S: Sink>(
        &mut self,
        block: &[u8],
        kind: HeadKind,
        sink: &mut S,
    ) -> Result<Head, Fault> {
        if kind == HeadKind::Ignored {
            self.decoder.decode(block, |_| {}).map_err(compression_error)?;
            return Ok(Head::default());
        }
        let bounds = Bounds {
            list_bytes_max: self.limits.header_list_bytes_max as usize,
            count_max: self.limits.header_count_max,
            key: self.streams.secret(),
        };
        let wanted = match kind {
            HeadKind::Request => METHOD | SCHEME | PATH | AUTHORITY,
            HeadKind::Response => STATUS,
            HeadKind::Trailers | HeadKind::Ignored => 0,
        };
        sink.begin(kind == HeadKind::Trailers);
        let mut check = Check::default();
        let mut rest = block;
        if kind == HeadKind::Request {
            rest = self.remembered_head(block, &mut check, wanted, bounds, sink)?;
        }
        let decoded =
            self.decoder.decode(rest, |field: &Field<'_>| check.field(field, wanted, bounds, sink));
        let Check { mut head, seen, connect, .. } = check;
        decoded.map_err(compression_error)?;
        if head.too_large || head.too_many {
            self.refusals.count(if head.too_large {
                Refusal::HeaderList
            } else {
                Refusal::HeaderCount
            });
            head.too_large = true;
        }
        let required = match kind {
            HeadKind::Request if connect => METHOD | AUTHORITY,
            HeadKind::Request => METHOD | SCHEME | PATH,
            HeadKind::Response => STATUS,
            HeadKind::Trailers | HeadKind::Ignored => 0,
        };
        // A list that was cut at its limit may have lost them.
        if !head.too_large && seen & required != required {
            head.malformed = true;
        }
        if connect && seen & (SCHEME | PATH) != 0 || check.asterisk && !check.options {
            head.malformed = true;
        }
        // Two names for one host: the next hop may believe the other one (section 8.3.1).
        if check.host != 0 && check.authority != 0 && check.host != check.authority {
            head.malformed = true;
        }
        Ok(head)
    }

    /// Takes the one-byte indices at the front of a request's block, from memory if they were there before. Returns the rest.
    #[inline]
    fn remembered_head<'a, S: Sink>(
        &mut self,
        block: &'a [u8],
        check: &mut Check,
        wanted: u32,
        bounds: Bounds,
        sink: &mut S,
    ) -> Result<&'a [u8], Fault> {
        let (run, rest) = block.split_at(RememberedHeads::run(block));
        let number = RememberedHeads::number(run);
        let epoch = self.decoder.epoch();
        // A size update is allowed at the start of a block alone; a table that changes with each head is not worth it.
        let next = rest.first().map_or(0, |byte| byte & 0xe0);
        if !(2..=REMEMBERED_BYTES_MAX).contains(&run.len()) || next != 0 || epoch == u64::MAX {
            return Ok(block);
        }
        if let Some(known) = self.heads.find(run, number, epoch) {
            *check = known;
            sink.restore(number);
            return Ok(rest);
        }
        let look = |field: &Field<'_>| check.field(field, wanted, bounds, sink);
        self.decoder.decode(run, look).map_err(compression_error)?;
        if !check.head.malformed
            && !check.head.too_large
            && !check.head.too_many
            && sink.save(number)
        {
            self.heads.keep(run, number, epoch, *check);
        }
        Ok(rest)
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

#[cold]
fn compression_error(error: DecodeError) -> Fault {
    Fault::Connection(
        ErrorCode::COMPRESSION_ERROR,
        match error {
            DecodeError::Truncated => "header block ends inside a field",
            DecodeError::IntegerOverflow => "integer in header block too large",
            DecodeError::InvalidIndex => "index beyond the header tables",
            DecodeError::InvalidHuffman => "invalid Huffman coding",
            DecodeError::InvalidSizeUpdate => "invalid header table size update",
        },
    )
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
