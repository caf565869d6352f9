//! Custom metadata of a call, and the base64 of its binary values (gRPC `PROTOCOL-HTTP2.md`, RFC 4648).

use crate::h2::Fields;

/// Metadata as it was received, without what HTTP/2 and gRPC use for themselves. Allocates only when there is some.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata(Fields);

impl Metadata {
    /// No metadata.
    pub const fn new() -> Self {
        Self(Fields::new())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first value of a name (lower case), as received.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name.as_bytes())
    }

    /// The first value of a `-bin` name, decoded. `None` when it is absent or not base64.
    pub fn get_bin(&self, name: &str) -> Option<Vec<u8>> {
        // Several values may have been joined by commas.
        let value = self.get(name)?;
        decode_base64(value.split(|&byte| byte == b',').next()?.trim_ascii())
    }

    /// All values of a name (lower case), as received. One value may be several, joined by commas.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(n, _)| *n == name.as_bytes()).map(|(_, value)| value)
    }

    /// All values of a `-bin` name, decoded, those that were joined by commas included; `None` for one that is not base64.
    pub fn get_all_bin<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Option<Vec<u8>>> {
        self.get_all(name)
            .flat_map(|value| value.split(|&byte| byte == b','))
            .map(|value| decode_base64(value.trim_ascii()))
    }

    /// All fields in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter()
    }

    /// All fields, and whether each came as a never-indexed literal, which it must stay when it is passed on (RFC 7541, section 6.2.3).
    pub fn iter_marked(&self) -> impl Iterator<Item = (&[u8], &[u8], bool)> {
        self.0.iter_marked()
    }

    /// Appends a field as it is, marked if it came as a never-indexed literal.
    pub(crate) fn push_marked(&mut self, name: &[u8], value: &[u8], sensitive: bool) {
        self.0.push_marked(name, value, sensitive);
    }

    /// Appends a field, or its value to that of the name's first one, behind a separator: cookies may come in several fields, so that each
    /// is indexed by itself (RFC 9113, section 8.2.3).
    #[cold]
    pub(crate) fn join(&mut self, name: &[u8], separator: &[u8], value: &[u8], sensitive: bool) {
        if self.0.get(name).is_none() {
            return self.push_marked(name, value, sensitive);
        }
        let mut joined = Fields::new();
        let mut is_first = true;
        for (known, known_value, known_sensitive) in self.0.iter_marked() {
            if known == name && std::mem::take(&mut is_first) {
                let whole = [known_value, separator, value].concat();
                joined.push_marked(known, &whole, known_sensitive || sensitive);
            } else {
                joined.push_marked(known, known_value, known_sensitive);
            }
        }
        self.0 = joined;
    }

    /// Appends a field as it is.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.0.push(name, value);
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

const fn values() -> [u8; 256] {
    let mut values = [0xff; 256];
    let mut at = 0;
    while at < 64 {
        values[ALPHABET[at] as usize] = at as u8;
        at += 1;
    }
    values
}

static VALUES: [u8; 256] = values();

/// Appends base64 without padding, which every implementation has to accept.
pub(crate) fn encode_base64(plain: &[u8], into: &mut Vec<u8>) {
    into.reserve(plain.len() * 4 / 3 + 3);
    for chunk in plain.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..=chunk.len() {
            into.push(ALPHABET[(bits >> (18 - 6 * at) & 63) as usize]);
        }
    }
}

/// Decodes base64 with or without padding; `None` when it is not.
pub(crate) fn decode_base64(coded: &[u8]) -> Option<Vec<u8>> {
    let trimmed = match coded {
        [rest @ .., b'=', b'='] | [rest @ .., b'='] => rest,
        all => all,
    };
    if trimmed.len() != coded.len() && !coded.len().is_multiple_of(4) {
        return None;
    }
    let mut plain = Vec::with_capacity(trimmed.len() * 3 / 4);
    for chunk in trimmed.chunks(4) {
        if chunk.len() == 1 {
            return None;
        }
        let mut bits = 0u32;
        for at in 0..4 {
            let value = chunk.get(at).map_or(0, |&byte| VALUES[byte as usize]);
            if value == 0xff {
                return None;
            }
            bits = bits << 6 | u32::from(value);
        }
        let [_, a, b, c] = bits.to_be_bytes();
        plain.extend_from_slice(&[a, b, c][..chunk.len() - 1]);
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4648, section 10, with and without padding.
    #[test]
    fn base64_vectors() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            let bare = coded.trim_end_matches('=');
            let mut out = Vec::new();
            encode_base64(plain.as_bytes(), &mut out);
            assert_eq!(out, bare.as_bytes());
            for form in [coded, bare] {
                assert_eq!(decode_base64(form.as_bytes()).as_deref(), Some(plain.as_bytes()));
            }
        }
        for bad in ["Z", "Zg=", "Zm9v=", "Z===", "Zm 9", "Zm9-", "="] {
            assert_eq!(decode_base64(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn binary_values() {
        let mut metadata = Metadata::new();
        metadata.push(b"a-bin", b"AAH/,Zm9v");
        metadata.push(b"b-bin", b"?");
        assert_eq!(metadata.get_bin("a-bin"), Some(vec![0, 1, 255]));
        assert_eq!(metadata.get_bin("b-bin"), None);
        assert_eq!(metadata.get_bin("c-bin"), None);
        metadata.push(b"a-bin", b"Zg==, Zg,?");
        let all: Vec<_> = metadata.get_all_bin("a-bin").collect();
        let some = |plain: &[u8]| Some(plain.to_vec());
        assert_eq!(all, [some(&[0, 1, 255]), some(b"foo"), some(b"f"), some(b"f"), None]);
        assert_eq!(metadata.get_all("a-bin").count(), 2);
    }
}
