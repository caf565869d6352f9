//! The encoder of HPACK (RFC 7541, section 6).
//!
//! The caller says what will repeat: such a field enters the peer's dynamic table once and is one byte from then on, until it
//! is evicted. The encoder keeps only what it needs to find a field again; an `epoch` tells callers that cached blocks of
//! theirs have become stale.

use super::decode::TABLE_BYTES_DEFAULT;
use super::huffman;
use super::table::{ENTRY_OVERHEAD_BYTES, STATIC, STATIC_ENTRIES};
use std::collections::VecDeque;

/// What the peer may keep of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Indexing {
    /// It will repeat: insert it into the dynamic table.
    Index,
    /// It will not.
    Plain,
    /// It is secret: no hop may ever index it (section 7.1.3).
    Never,
}

#[derive(Debug)]
struct Entry {
    name: Box<[u8]>,
    value: Box<[u8]>,
}

impl Entry {
    fn size(&self) -> usize {
        self.name.len() + self.value.len() + ENTRY_OVERHEAD_BYTES
    }
}

/// Encodes the header blocks of one direction of a connection, in their order.
#[derive(Debug)]
pub struct Encoder {
    /// Newest first.
    entries: VecDeque<Entry>,
    size: usize,
    capacity: usize,
    /// The table size that we would use if the peer allows it.
    capacity_wanted: usize,
    /// A size update to announce: the lowest capacity since the last block.
    update: Option<usize>,
    epoch: u64,
    /// Fields inserted so far: an entry's number tells where it stands now.
    inserted: u64,
    /// What `repeating` has been shown; allocated with the first.
    recent: Option<Box<[Recent; RECENT]>>,
}

/// A field that was sent, to know it when it comes again.
#[derive(Debug, Clone, Copy, Default)]
struct Recent {
    /// Of name and value; 0 is none.
    tag: u64,
    /// The number of its entry, from 1; 0 while it has none.
    entry: u64,
}

/// Fields that are remembered by `repeating`; a power of two.
const RECENT: usize = 32;
/// A field above this many bytes is not worth a place in the table.
const REPEATING_BYTES_MAX: usize = 256;

impl Encoder {
    /// An encoder that uses at most `table_bytes` of the peer's table.
    pub fn new(table_bytes: usize) -> Self {
        let capacity = table_bytes.min(TABLE_BYTES_DEFAULT);
        Self {
            entries: VecDeque::new(),
            size: 0,
            capacity,
            capacity_wanted: table_bytes,
            update: (capacity < TABLE_BYTES_DEFAULT).then_some(capacity),
            epoch: 0,
            inserted: 0,
            recent: None,
        }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE.
    pub fn set_table_bytes_max(&mut self, bytes: usize) {
        let capacity = bytes.min(self.capacity_wanted);
        if capacity == self.capacity {
            return;
        }
        self.update = Some(self.update.map_or(capacity, |lowest| lowest.min(capacity)));
        self.capacity = capacity;
        self.evict(capacity);
        self.epoch += 1;
    }

    /// Changes whenever an index of an earlier block stops being what it was.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// To be called before the first field of every block: announces a changed table size (section 4.2).
    #[inline]
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some(lowest) = self.update.take() {
            integer(out, 0x20, 5, lowest);
            if lowest != self.capacity {
                integer(out, 0x20, 5, self.capacity);
            }
        }
    }

    /// Whether the next block has to start with a size update, so that a cached block must not be used.
    #[inline]
    pub fn update_due(&self) -> bool {
        self.update.is_some()
    }

    /// Appends one field. The name must be lower-case already.
    pub fn field(&mut self, out: &mut Vec<u8>, name: &[u8], value: &[u8], indexing: Indexing) {
        let mut name_index = 0;
        for (position, (n, v, _)) in STATIC.iter().enumerate() {
            if n.as_bytes() == name {
                if v.as_bytes() == value && indexing != Indexing::Never {
                    integer(out, 0x80, 7, position + 1);
                    return;
                }
                if name_index == 0 {
                    name_index = position + 1;
                }
            }
        }
        for (position, entry) in self.entries.iter().enumerate() {
            if *entry.name == *name {
                let index = STATIC_ENTRIES + 1 + position;
                if *entry.value == *value && indexing != Indexing::Never {
                    integer(out, 0x80, 7, index);
                    return;
                }
                if name_index == 0 {
                    name_index = index;
                }
            }
        }
        let size = name.len() + value.len() + ENTRY_OVERHEAD_BYTES;
        match indexing {
            Indexing::Index if size <= self.capacity => {
                integer(out, 0x40, 6, name_index);
                if name_index == 0 {
                    string(out, name);
                }
                string(out, value);
                self.evict(self.capacity - size);
                self.size += size;
                self.entries.push_front(Entry { name: name.into(), value: value.into() });
                self.inserted += 1;
                self.epoch += 1;
            }
            _ => {
                let pattern = if indexing == Indexing::Never { 0x10 } else { 0 };
                integer(out, pattern, 4, name_index);
                if name_index == 0 {
                    plain_string(out, name);
                }
                plain_string(out, value);
            }
        }
    }

    /// Appends a field of which nobody knows whether it repeats: a literal the first time, inserted into the table the second, and one
    /// index from then on. The name must be lower-case already.
    pub fn repeating(&mut self, out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
        if name.len() + value.len() > REPEATING_BYTES_MAX {
            return literal(out, name, value);
        }
        let tag = tag_of(name, value);
        let at = tag as usize % RECENT;
        let recent = &mut self.recent.get_or_insert_default()[at];
        if recent.tag != tag {
            *recent = Recent { tag, entry: 0 };
            return literal(out, name, value);
        }
        let behind = self.inserted.wrapping_sub(recent.entry) as usize;
        if recent.entry != 0
            && let Some(entry) = self.entries.get(behind)
            && *entry.name == *name
            && *entry.value == *value
        {
            return integer(out, 0x80, 7, STATIC_ENTRIES + 1 + behind);
        }
        let before = self.inserted;
        self.field(out, name, value, Indexing::Index);
        if self.inserted != before
            && let Some(recent) = &mut self.recent
        {
            recent[at].entry = self.inserted;
        }
    }

    fn evict(&mut self, size_max: usize) {
        while self.size > size_max {
            let Some(entry) = self.entries.pop_back() else { break };
            self.size -= entry.size();
        }
    }
}

/// A number for a field. Two that share one cost an index, never a wrong field.
fn tag_of(name: &[u8], value: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut mix = (name.len() as u64) << 32 | value.len() as u64;
    for text in [name, value] {
        for chunk in text.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            mix = (mix ^ u64::from_le_bytes(word)).wrapping_mul(ODD);
            mix ^= mix >> 29;
        }
    }
    mix | 1 << 63
}

/// Appends a literal that is not indexed and whose name is in neither table; independent of any encoder's state.
#[inline]
pub fn literal(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.push(0);
    plain_string(out, name);
    plain_string(out, value);
}

/// An integer with a prefix of `bits` bits under `pattern` (section 5.1).
#[inline]
fn integer(out: &mut Vec<u8>, pattern: u8, bits: u32, value: usize) {
    let mask = (1usize << bits) - 1;
    if value < mask {
        out.push(pattern | value as u8);
        return;
    }
    out.push(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// A string as it is: the cheapest to write and to read.
#[inline]
fn plain_string(out: &mut Vec<u8>, text: &[u8]) {
    integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

/// A string that is written once for many uses: Huffman-coded when that is shorter.
fn string(out: &mut Vec<u8>, text: &[u8]) {
    let coded = huffman::encoded_len(text);
    if coded < text.len() {
        integer(out, 0x80, 7, coded);
        huffman::encode(text, out);
    } else {
        plain_string(out, text);
    }
}
