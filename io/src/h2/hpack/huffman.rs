//! The static Huffman code of HPACK (RFC 7541, section 5.2 and appendix B).
//!
//! The code is canonical, so the lengths are the whole table: codes and the decoding tables are computed from them when the
//! crate is compiled. Up to ten bits (every letter and digit) decode with one look-up, the rest by comparing with the first
//! code of each length. It never allocates by itself: decoded bytes are appended to a buffer of the caller.

/// Bits of a code by symbol; the last one is EOS.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// Symbol number of EOS, which must not appear in a string.
const EOS: u16 = 256;
const LENGTH_MIN: usize = 5;
const LENGTH_MAX: usize = 30;
const FAST_BITS: u32 = 10;

struct Tables {
    /// Code by symbol, right-justified.
    codes: [u32; 257],
    /// Symbols in the order of their codes.
    by_code: [u16; 257],
    /// For a length: its first code, left-justified to 32 bits, and where its symbols start in `by_code`.
    first: [u32; LENGTH_MAX + 2],
    offset: [u16; LENGTH_MAX + 2],
    /// `symbol << 8 | length` by the next ten bits, 0 for longer codes.
    fast: [u16; 1 << FAST_BITS],
}

static TABLES: Tables = tables();

const fn tables() -> Tables {
    let mut t = Tables {
        codes: [0; 257],
        by_code: [0; 257],
        first: [u32::MAX; LENGTH_MAX + 2],
        offset: [0; LENGTH_MAX + 2],
        fast: [0; 1 << FAST_BITS],
    };
    let mut code: u32 = 0;
    let mut count = 0;
    let mut length = LENGTH_MIN;
    while length <= LENGTH_MAX {
        t.first[length] = code << (32 - length as u32);
        t.offset[length] = count as u16;
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                t.codes[symbol] = code;
                t.by_code[count] = symbol as u16;
                if length as u32 <= FAST_BITS {
                    let spare = FAST_BITS - length as u32;
                    let mut k = 0;
                    while k < 1 << spare {
                        t.fast[((code << spare) + k) as usize] =
                            (symbol as u16) << 8 | length as u16;
                        k += 1;
                    }
                }
                code += 1;
                count += 1;
            }
            symbol += 1;
        }
        code <<= 1;
        length += 1;
    }
    t
}

/// A string that is not a valid Huffman coding: an EOS symbol, padding of more than seven bits or with zeros in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid;

/// Appends the decoded bytes of `source` to `into`. At most `8/5 × source.len()` bytes are appended.
pub fn decode(source: &[u8], into: &mut Vec<u8>) -> Result<(), Invalid> {
    into.reserve(source.len() * 8 / LENGTH_MIN + 1);
    let mut bits: u64 = 0; // left-justified
    let mut have: u32 = 0;
    let mut rest = source;
    loop {
        while have <= 56 {
            let Some((&byte, tail)) = rest.split_first() else { break };
            bits |= u64::from(byte) << (56 - have);
            have += 8;
            rest = tail;
        }
        if have < LENGTH_MIN as u32 {
            break;
        }
        let entry = TABLES.fast[(bits >> (64 - FAST_BITS)) as usize];
        let (symbol, length) =
            if entry != 0 { (entry >> 8, u32::from(entry & 0xff)) } else { long(bits) };
        if length > have {
            break; // what is left can only be padding
        }
        if symbol == EOS {
            return Err(Invalid);
        }
        into.push(symbol as u8);
        bits <<= length;
        have -= length;
    }
    // Padding: the most significant bits of EOS, all ones, fewer than eight.
    if have >= 8 || (have > 0 && bits >> (64 - have) != (1 << have) - 1) {
        return Err(Invalid);
    }
    Ok(())
}

/// A code of more than ten bits: the longest length whose first code is not above the bits.
#[cold]
fn long(bits: u64) -> (u16, u32) {
    let window = (bits >> 32) as u32;
    let mut length = FAST_BITS as usize + 1;
    while length < LENGTH_MAX && window >= TABLES.first[length + 1] {
        length += 1;
    }
    let index = (window - TABLES.first[length]) >> (32 - length as u32);
    (TABLES.by_code[TABLES.offset[length] as usize + index as usize], length as u32)
}

/// Bytes that `encode` would append.
pub fn encoded_len(source: &[u8]) -> usize {
    source.iter().map(|&byte| usize::from(LENGTHS[byte as usize])).sum::<usize>().div_ceil(8)
}

/// Appends the coded form of `source`, padded with ones.
pub fn encode(source: &[u8], into: &mut Vec<u8>) {
    let mut bits: u64 = 0; // right-justified
    let mut have: u32 = 0;
    for &byte in source {
        let length = u32::from(LENGTHS[byte as usize]);
        bits = bits << length | u64::from(TABLES.codes[byte as usize]);
        have += length;
        while have >= 8 {
            have -= 8;
            into.push((bits >> have) as u8);
        }
    }
    if have > 0 {
        into.push(((bits << (8 - have)) as u8) | (0xff >> have));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_goes_there_and_back() {
        for byte in 0..=255u8 {
            for count in 1..6 {
                let plain = vec![byte; count];
                let mut coded = Vec::new();
                encode(&plain, &mut coded);
                assert_eq!(coded.len(), encoded_len(&plain));
                let mut back = Vec::new();
                decode(&coded, &mut back).unwrap();
                assert_eq!(back, plain);
            }
        }
        let all: Vec<u8> = (0..=255).rev().chain(0..=255).collect();
        let (mut coded, mut back) = (Vec::new(), Vec::new());
        encode(&all, &mut coded);
        decode(&coded, &mut back).unwrap();
        assert_eq!(back, all);
    }

    /// RFC 7541, section 5.2: EOS and wrong padding are decoding errors.
    #[test]
    fn refuses_eos_and_wrong_padding() {
        let decode = |source: &[u8]| decode(source, &mut Vec::new());
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff]), Err(Invalid)); // EOS
        assert_eq!(decode(&[0x1f, 0xff]), Err(Invalid)); // 'a' and eleven bits of padding
        assert_eq!(decode(&[0x1f]), Ok(())); // 'a' and 111
        assert_eq!(decode(&[0x18]), Err(Invalid)); // 'a' and 000
        assert_eq!(decode(&[0xff]), Err(Invalid)); // eight bits of padding
        assert_eq!(decode(&[]), Ok(()));
    }
}
