//! The decoder of HPACK (RFC 7541, sections 3 and 6).
//!
//! It promises to keep its table in step with the peer's whatever the caller does with the fields, and to do work that is
//! linear in the block. Any error is fatal to the connection (COMPRESSION_ERROR).

use super::field::{self, FieldKind};
use super::huffman;
use super::table::{DynamicTable, Field, STATIC, STATIC_ENTRIES};

/// SETTINGS_HEADER_TABLE_SIZE before anything was agreed on.
pub const TABLE_BYTES_DEFAULT: usize = 4096;

/// Why a block could not be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// The block ends inside a representation.
    Truncated,
    /// An integer beyond what any field needs (section 5.1).
    IntegerOverflow,
    /// An index beyond both tables, or 0 (section 2.3.3).
    InvalidIndex,
    /// A string that is not a valid Huffman coding (section 5.2).
    InvalidHuffman,
    /// A size update above the agreed maximum, not at the start of a block, or one that is missing (section 4.2).
    InvalidSizeUpdate,
}

/// Decodes the header blocks of one direction of a connection, in their order.
#[derive(Debug)]
pub struct Decoder {
    table: DynamicTable,
    /// What the peer may raise the table to.
    table_bytes_max: usize,
    /// The maximum was lowered below the table's size: the next block has to start with an update.
    update_due: bool,
    scratch: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder with the default table of 4,096 bytes, of which nothing is allocated yet.
    pub fn new() -> Self {
        Self {
            table: DynamicTable::new(TABLE_BYTES_DEFAULT),
            table_bytes_max: TABLE_BYTES_DEFAULT,
            update_due: false,
            scratch: Vec::new(),
        }
    }

    /// Our SETTINGS_HEADER_TABLE_SIZE, once the peer has acknowledged it.
    pub fn set_table_bytes_max(&mut self, bytes: usize) {
        self.table_bytes_max = bytes;
        self.update_due = bytes < self.table.capacity();
    }

    /// The dynamic table, for tests and counters.
    pub fn table(&self) -> &DynamicTable {
        &self.table
    }

    /// Changes whenever an index of an earlier block stops being what it was, and while a size update is due.
    #[inline]
    pub fn epoch(&self) -> u64 {
        if self.update_due { u64::MAX } else { self.table.epoch() }
    }

    /// Decodes one whole block and calls `each` with every field.
    #[inline]
    pub fn decode(
        &mut self,
        block: &[u8],
        mut each: impl FnMut(&Field<'_>),
    ) -> Result<(), DecodeError> {
        let mut rest = block;
        while let Some(&byte) = rest.first() {
            if byte & 0xe0 != 0x20 {
                break;
            }
            let bytes = integer(&mut rest, 5)?;
            if bytes > self.table_bytes_max {
                return Err(DecodeError::InvalidSizeUpdate);
            }
            self.table.resize(bytes);
            self.update_due = false;
        }
        if self.update_due {
            return Err(DecodeError::InvalidSizeUpdate);
        }
        while let Some(&byte) = rest.first() {
            if byte & 0x80 != 0 {
                let index = if byte != 0xff {
                    rest = &rest[1..];
                    usize::from(byte & 0x7f)
                } else {
                    integer(&mut rest, 7)?
                };
                each(&self.indexed(index)?);
            } else if byte & 0xe0 == 0x20 {
                return Err(DecodeError::InvalidSizeUpdate);
            } else {
                self.literal(byte, &mut rest, &mut each)?;
            }
        }
        Ok(())
    }

    #[inline]
    fn indexed(&self, index: usize) -> Result<Field<'_>, DecodeError> {
        if index > STATIC_ENTRIES {
            self.table.get(index - STATIC_ENTRIES - 1).ok_or(DecodeError::InvalidIndex)
        } else {
            let (name, value, kind) =
                STATIC.get(index.wrapping_sub(1)).ok_or(DecodeError::InvalidIndex)?;
            Ok(Field {
                name: name.as_bytes(),
                value: value.as_bytes(),
                kind: *kind,
                valid: !matches!(kind, FieldKind::ConnectionSpecific),
                sensitive: false,
            })
        }
    }

    #[inline(never)]
    fn literal(
        &mut self,
        byte: u8,
        rest: &mut &[u8],
        each: &mut impl FnMut(&Field<'_>),
    ) -> Result<(), DecodeError> {
        let index_it = byte & 0x40 != 0;
        let sensitive = byte & 0xf0 == 0x10;
        let name_index = integer(rest, if index_it { 6 } else { 4 })?;
        self.scratch.clear();
        let name_raw = if name_index == 0 { string(rest, &mut self.scratch)? } else { None };
        let name_bytes = self.scratch.len();
        let value_raw = string(rest, &mut self.scratch)?;
        let value = value_raw.unwrap_or(&self.scratch[name_bytes..]);

        if name_index == 0 {
            let name = name_raw.unwrap_or(&self.scratch[..name_bytes]);
            let kind = FieldKind::of(name);
            let valid = field::name_is_valid(name) && field::value_is_valid(kind, value);
            if index_it {
                self.table.insert(name, value, kind, valid);
            }
            each(&Field { name, value, kind, valid, sensitive });
            return Ok(());
        }
        let named = self.indexed(name_index)?;
        let (name, kind) = (named.name, named.kind);
        let name_ok = name_index <= STATIC_ENTRIES || named.valid || field::name_is_valid(name);
        let valid = name_ok && field::value_is_valid(kind, value);
        each(&Field { name, value, kind, valid, sensitive });
        if index_it {
            match name_index.checked_sub(STATIC_ENTRIES + 1) {
                Some(index) => self.table.insert_with_name_of(index, value, valid),
                None => {
                    let (name, _, kind) = &STATIC[name_index - 1];
                    self.table.insert(name.as_bytes(), value, *kind, valid);
                }
            }
        }
        Ok(())
    }
}

/// An integer with a prefix of `bits` bits (section 5.1), at most 2²⁸ or so.
#[inline]
pub(super) fn integer(rest: &mut &[u8], bits: u32) -> Result<usize, DecodeError> {
    let (&first, mut tail) = rest.split_first().ok_or(DecodeError::Truncated)?;
    let mask = (1usize << bits) - 1;
    let mut value = usize::from(first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (&byte, more) = tail.split_first().ok_or(DecodeError::Truncated)?;
            tail = more;
            if shift > 21 {
                return Err(DecodeError::IntegerOverflow);
            }
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = tail;
    Ok(value)
}

/// A string (section 5.2): borrowed from the block, or `None` when it was Huffman-coded and is now at the end of `scratch`.
#[inline]
fn string<'a>(rest: &mut &'a [u8], scratch: &mut Vec<u8>) -> Result<Option<&'a [u8]>, DecodeError> {
    let coded = *rest.first().ok_or(DecodeError::Truncated)? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let (text, tail) = rest.split_at_checked(length).ok_or(DecodeError::Truncated)?;
    *rest = tail;
    if !coded {
        return Ok(Some(text));
    }
    huffman::decode(text, scratch).map_err(|_| DecodeError::InvalidHuffman)?;
    Ok(None)
}
