//! A list of header fields in one buffer.

/// Names and values, one after the other in a single allocation; none at all while it is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// Per field: bytes of the name (u32, its highest bit for a sensitive field), bytes of the value (u32), name, value.
    bytes: Vec<u8>,
}

const SENSITIVE: u32 = 1 << 31;

impl Fields {
    /// An empty list.
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// Whether there are no fields.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends a field.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.push_marked(name, value, false);
    }

    /// Appends a field that may be sensitive: came, and is to go on, as a never-indexed literal (RFC 7541, section 6.2.3).
    pub fn push_marked(&mut self, name: &[u8], value: &[u8], sensitive: bool) {
        self.bytes.reserve(8 + name.len() + value.len());
        let mark = if sensitive { SENSITIVE } else { 0 };
        self.bytes.extend_from_slice(&(name.len() as u32 | mark).to_le_bytes());
        self.bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
    }

    /// Forgets the fields and keeps the buffer.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// All fields, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.iter_marked().map(|(name, value, _)| (name, value))
    }

    /// All fields, in order, and whether each is sensitive.
    pub fn iter_marked(&self) -> impl Iterator<Item = (&[u8], &[u8], bool)> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            let (lengths, tail) = rest.split_first_chunk::<8>()?;
            let [a, b, c, d, e, f, g, h] = *lengths;
            let marked = u32::from_le_bytes([a, b, c, d]);
            let name_bytes = (marked & !SENSITIVE) as usize;
            let value_bytes = u32::from_le_bytes([e, f, g, h]) as usize;
            let (name, tail) = tail.split_at(name_bytes);
            let (value, tail) = tail.split_at(value_bytes);
            rest = tail;
            Some((name, value, marked & SENSITIVE != 0))
        })
    }

    /// The value of the first field with that name.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_duplicates() {
        let mut fields = Fields::new();
        assert!(fields.is_empty() && fields.get(b"a").is_none());
        fields.push(b"a", b"1");
        fields.push(b"b", b"");
        fields.push(b"a", b"2");
        let all: Vec<_> = fields.iter().collect();
        assert_eq!(all, [(&b"a"[..], &b"1"[..]), (b"b", b""), (b"a", b"2")]);
        assert_eq!(fields.get(b"a"), Some(&b"1"[..]));
        fields.push_marked(b"secret", b"3", true);
        let marks: Vec<_> = fields.iter_marked().map(|(_, _, sensitive)| sensitive).collect();
        assert_eq!(
            (marks, fields.get(b"secret")),
            (vec![false, false, false, true], Some(&b"3"[..]))
        );
    }
}
