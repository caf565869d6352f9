//! The tables of HPACK (RFC 7541, section 2.3 and appendix A): the static one and the dynamic one of a decoder.
//!
//! An entry knows what its field is (`FieldKind`) and whether it may appear in a message at all, so that a field that
//! repeats is looked at once in the life of a connection. The dynamic table keeps its strings in one buffer that is used as
//! a sliding window: after warm-up an insertion does not allocate.

use super::field::FieldKind;
use std::collections::VecDeque;

/// What an entry costs beyond its strings (RFC 7541, section 4.1).
pub const ENTRY_OVERHEAD_BYTES: usize = 32;
/// Entries of the static table; indices start at 1.
pub const STATIC_ENTRIES: usize = 61;

/// A field with its strings borrowed from a table, a block or a scratch buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Name as received; a pseudo-header has its colon.
    pub name: &'a [u8],
    /// Value as received.
    pub value: &'a [u8],
    /// What the name stands for.
    pub kind: FieldKind,
    /// Whether the field may be in a message at all (RFC 9113, sections 8.2 and 8.3).
    pub valid: bool,
    /// A never-indexed literal (RFC 7541, section 6.2.3): must stay one when it is passed on.
    pub sensitive: bool,
}

/// The static table (RFC 7541, appendix A).
#[rustfmt::skip]
pub static STATIC: [(&str, &str, FieldKind); STATIC_ENTRIES] = [
    (":authority", "", FieldKind::Authority),
    (":method", "GET", FieldKind::Method),
    (":method", "POST", FieldKind::Method),
    (":path", "/", FieldKind::Path),
    (":path", "/index.html", FieldKind::Path),
    (":scheme", "http", FieldKind::Scheme),
    (":scheme", "https", FieldKind::Scheme),
    (":status", "200", FieldKind::Status),
    (":status", "204", FieldKind::Status),
    (":status", "206", FieldKind::Status),
    (":status", "304", FieldKind::Status),
    (":status", "400", FieldKind::Status),
    (":status", "404", FieldKind::Status),
    (":status", "500", FieldKind::Status),
    ("accept-charset", "", FieldKind::Other),
    ("accept-encoding", "gzip, deflate", FieldKind::AcceptEncoding),
    ("accept-language", "", FieldKind::Other),
    ("accept-ranges", "", FieldKind::Other),
    ("accept", "", FieldKind::Other),
    ("access-control-allow-origin", "", FieldKind::Other),
    ("age", "", FieldKind::Other),
    ("allow", "", FieldKind::Other),
    ("authorization", "", FieldKind::Other),
    ("cache-control", "", FieldKind::Other),
    ("content-disposition", "", FieldKind::Other),
    ("content-encoding", "", FieldKind::Other),
    ("content-language", "", FieldKind::Other),
    ("content-length", "", FieldKind::ContentLength),
    ("content-location", "", FieldKind::Other),
    ("content-range", "", FieldKind::Other),
    ("content-type", "", FieldKind::ContentType),
    ("cookie", "", FieldKind::Other),
    ("date", "", FieldKind::Other),
    ("etag", "", FieldKind::Other),
    ("expect", "", FieldKind::Other),
    ("expires", "", FieldKind::Other),
    ("from", "", FieldKind::Other),
    ("host", "", FieldKind::Host),
    ("if-match", "", FieldKind::Other),
    ("if-modified-since", "", FieldKind::Other),
    ("if-none-match", "", FieldKind::Other),
    ("if-range", "", FieldKind::Other),
    ("if-unmodified-since", "", FieldKind::Other),
    ("last-modified", "", FieldKind::Other),
    ("link", "", FieldKind::Other),
    ("location", "", FieldKind::Other),
    ("max-forwards", "", FieldKind::Other),
    ("proxy-authenticate", "", FieldKind::Other),
    ("proxy-authorization", "", FieldKind::Other),
    ("range", "", FieldKind::Other),
    ("referer", "", FieldKind::Other),
    ("refresh", "", FieldKind::Other),
    ("retry-after", "", FieldKind::Other),
    ("server", "", FieldKind::Other),
    ("set-cookie", "", FieldKind::Other),
    ("strict-transport-security", "", FieldKind::Other),
    ("transfer-encoding", "", FieldKind::ConnectionSpecific),
    ("user-agent", "", FieldKind::UserAgent),
    ("vary", "", FieldKind::Other),
    ("via", "", FieldKind::Other),
    ("www-authenticate", "", FieldKind::Other),
];

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Position of the name in the stream of all bytes ever inserted; the value follows it.
    position: u64,
    name_bytes: u32,
    value_bytes: u32,
    kind: FieldKind,
    valid: bool,
}

impl Entry {
    fn size(&self) -> usize {
        self.name_bytes as usize + self.value_bytes as usize + ENTRY_OVERHEAD_BYTES
    }
}

/// A dynamic table (RFC 7541, section 2.3.2), newest entry first.
#[derive(Debug)]
pub struct DynamicTable {
    entries: VecDeque<Entry>,
    /// The strings of the live entries, and dead bytes before them until the next compaction.
    bytes: Vec<u8>,
    /// Position of `bytes[0]`.
    base: u64,
    size: usize,
    capacity: usize,
    epoch: u64,
}

impl DynamicTable {
    /// An empty table of at most `capacity` bytes by the RFC's count. Nothing is allocated yet.
    pub fn new(capacity: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: Vec::new(), base: 0, size: 0, capacity, epoch: 0 }
    }

    /// Bytes in use by the RFC's count.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The table's present maximum in bytes by the RFC's count.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Changes with every insertion and eviction.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Changes the maximum and evicts what no longer fits.
    pub fn resize(&mut self, capacity: usize) {
        self.epoch += 1;
        self.capacity = capacity;
        self.evict(capacity);
    }

    /// The field at `index`, 0 being the newest.
    #[inline]
    pub fn get(&self, index: usize) -> Option<Field<'_>> {
        let entry = self.entries.get(index)?;
        let start = (entry.position - self.base) as usize;
        let middle = start + entry.name_bytes as usize;
        Some(Field {
            name: &self.bytes[start..middle],
            value: &self.bytes[middle..middle + entry.value_bytes as usize],
            kind: entry.kind,
            valid: entry.valid,
            sensitive: false,
        })
    }

    /// Inserts a field, evicting old ones. One that is larger than the table empties it (section 4.4).
    pub fn insert(&mut self, name: &[u8], value: &[u8], kind: FieldKind, valid: bool) {
        self.epoch += 1;
        let size = name.len() + value.len() + ENTRY_OVERHEAD_BYTES;
        if size > self.capacity {
            self.evict(0);
            return;
        }
        self.evict(self.capacity - size);
        self.make_room(name.len() + value.len());
        let position = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.size += size;
        self.entries.push_front(Entry {
            position,
            name_bytes: name.len() as u32,
            value_bytes: value.len() as u32,
            kind,
            valid,
        });
    }

    /// Inserts a field with the name of the entry at `index`, which may itself be evicted by this (section 4.4).
    pub fn insert_with_name_of(&mut self, index: usize, value: &[u8], valid: bool) {
        let Some(&named) = self.entries.get(index) else { return };
        self.epoch += 1;
        let size = named.name_bytes as usize + value.len() + ENTRY_OVERHEAD_BYTES;
        if size > self.capacity {
            self.evict(0);
            return;
        }
        // Evicting only forgets: the name's bytes are there until the next compaction, so copy them first.
        self.make_room(named.name_bytes as usize + value.len());
        let start = (named.position - self.base) as usize;
        let position = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_within(start..start + named.name_bytes as usize);
        self.bytes.extend_from_slice(value);
        while self.size > self.capacity - size {
            let Some(entry) = self.entries.pop_back() else { break };
            self.size -= entry.size();
        }
        self.size += size;
        self.entries.push_front(Entry {
            position,
            name_bytes: named.name_bytes,
            value_bytes: value.len() as u32,
            kind: named.kind,
            valid,
        });
    }

    fn evict(&mut self, size_max: usize) {
        while self.size > size_max {
            let Some(entry) = self.entries.pop_back() else { break };
            self.size -= entry.size();
        }
        if self.entries.is_empty() {
            self.base += self.bytes.len() as u64;
            self.bytes.clear();
        }
    }

    /// Slides the live bytes to the front when an append would grow the buffer and enough of it is dead.
    fn make_room(&mut self, more: usize) {
        if self.bytes.len() + more <= self.bytes.capacity() {
            return;
        }
        let dead = match self.entries.back() {
            Some(oldest) => (oldest.position - self.base) as usize,
            None => self.bytes.len(),
        };
        if dead >= self.bytes.len() - dead && dead >= more {
            self.bytes.drain(..dead);
            self.base += dead as u64;
        } else {
            let target = (2 * (self.bytes.len() + more)).max(512);
            self.bytes.reserve_exact(target - self.bytes.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_of_the_static_table_agree_with_the_names() {
        for (name, _, kind) in &STATIC {
            assert_eq!(FieldKind::of(name.as_bytes()), *kind, "{name}");
        }
    }

    #[test]
    fn the_buffer_stays_small_while_entries_come_and_go() {
        let mut table = DynamicTable::new(256);
        for n in 0..10_000u32 {
            let value = n.to_string();
            table.insert(b"grpc-timeout", value.as_bytes(), FieldKind::GrpcTimeout, true);
            assert_eq!(table.get(0).unwrap().value, value.as_bytes());
            let oldest = table.get(table.len() - 1).unwrap();
            assert_eq!(oldest.name, b"grpc-timeout");
            assert!(table.size() <= 256 && table.bytes.capacity() <= 1024);
        }
    }
}
