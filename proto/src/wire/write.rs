//! The writing half: everything is appended to a `Vec`.

use super::{WireType, tag};

/// Bytes that `value` takes as a varint: 1 to 10.
#[inline]
pub const fn varint_len(value: u64) -> usize {
    // Seven bits to a byte: ceil(bits / 7) as (bits * 9 + 64) / 64, exact for 1 to 64 bits.
    let bits = 64 - (value | 1).leading_zeros();
    ((bits * 9 + 64) / 64) as usize
}

/// Appends a varint.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a tag.
#[inline]
pub fn put_tag(out: &mut Vec<u8>, number: u32, wire: WireType) {
    put_varint(out, u64::from(tag(number, wire)));
}

/// Appends a whole length-delimited field.
#[inline]
pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_length(out, number, bytes.len());
    out.extend_from_slice(bytes);
}

/// Appends tag and length of a length-delimited field; its bytes come next.
#[inline]
pub fn put_length(out: &mut Vec<u8>, number: u32, len: usize) {
    put_tag(out, number, WireType::LengthDelimited);
    put_varint(out, len as u64);
}

/// Bytes of a length-delimited field with `len` bytes of content.
#[inline]
pub const fn bytes_field_len(number: u32, len: usize) -> usize {
    varint_len((number << 3) as u64) + varint_len(len as u64) + len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Reader;

    #[test]
    fn varints_are_as_long_as_said_and_read_back() {
        let edges = (0..64).flat_map(|bit| {
            let power = 1u64 << bit;
            [power - 1, power, power.wrapping_add(1), !power]
        });
        for value in edges.chain([u64::MAX]) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
            assert_eq!(out.len(), prost::encoding::encoded_len_varint(value));
            assert_eq!(Reader::new(&out).varint(), Ok(value));
        }
    }

    #[test]
    fn a_bytes_field_is_as_long_as_said() {
        for (number, len) in [(1, 0), (15, 127), (16, 128), (2047, 3), (2048, 20_000)] {
            let mut out = Vec::new();
            put_bytes(&mut out, number, &vec![7; len]);
            assert_eq!(out.len(), bytes_field_len(number, len));
        }
    }
}
