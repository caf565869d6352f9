//! The index of a lane: from a key's hash to the position of its entry.
//!
//! A small lane has one table; past [`SPLIT_ENTRIES`] entries it has 256, each with its share of the
//! hashes, so that the pause for making a table larger stays a fraction of a millisecond. An item
//! carries half of the hash: growing reads only the table, and a look-up rarely touches a wrong entry.

use hashbrown::HashTable;

/// Past so many entries a lane's index is split.
const SPLIT_ENTRIES: usize = 4096;
const TABLES: usize = 256;

/// Which bits of the hash choose the table: none of those that an item keeps.
const TABLE_SHIFT: u32 = 40;

#[derive(Clone, Copy, Debug)]
struct Item {
    hash: u32,
    position: u32,
}

impl Item {
    /// A hash for the table with both ends mixed: it uses the lowest bits and the highest seven.
    fn spread(self) -> u64 {
        spread(self.hash)
    }
}

fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Positions by hash, see the module.
#[derive(Debug)]
pub(crate) struct Index {
    tables: Vec<HashTable<Item>>,
}

impl Default for Index {
    fn default() -> Self {
        Index { tables: vec![HashTable::new()] }
    }
}

impl Index {
    /// The position whose entry is the one that `is_it` accepts.
    #[inline]
    pub(crate) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let short = hash as u32;
        self.tables[self.table(hash)]
            .find(spread(short), |item| item.hash == short && is_it(item.position))
            .map(|item| item.position)
    }

    /// The position of the first item with that half of the hash, whatever its entry: nearly always the right one.
    #[inline]
    pub(crate) fn guess(&self, hash: u64) -> Option<u32> {
        let short = hash as u32;
        let found = self.tables[self.table(hash)].find(spread(short), |item| item.hash == short);
        found.map(|item| item.position)
    }

    /// Adds a position that is not there; `hash_of` tells the hashes of those that are.
    pub(crate) fn insert(&mut self, hash: u64, position: u32, hash_of: impl Fn(u32) -> u64) {
        if self.tables.len() == 1 && self.tables[0].len() >= SPLIT_ENTRIES {
            self.split(hash_of);
        }
        let item = Item { hash: hash as u32, position };
        let table = self.table(hash);
        self.tables[table].insert_unique(item.spread(), item, |item| item.spread());
    }

    /// Takes a position out that is there.
    pub(crate) fn remove(&mut self, hash: u64, position: u32) {
        let table = self.table(hash);
        let found =
            self.tables[table].find_entry(spread(hash as u32), |item| item.position == position);
        found.expect("every entry is in its index").remove();
    }

    #[inline]
    fn table(&self, hash: u64) -> usize {
        (hash >> TABLE_SHIFT) as usize & (self.tables.len() - 1)
    }

    fn split(&mut self, hash_of: impl Fn(u32) -> u64) {
        let all = std::mem::take(&mut self.tables[0]);
        let share = all.len() / TABLES;
        self.tables = (0..TABLES).map(|_| HashTable::with_capacity(share)).collect();
        for item in all {
            let table = self.table(hash_of(item.position));
            self.tables[table].insert_unique(item.spread(), item, |item| item.spread());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(position: u32) -> u64 {
        u64::from(position).wrapping_mul(0xd6e8_feb8_6659_fd93)
    }

    #[test]
    fn every_position_is_found_before_and_after_the_split() {
        let mut index = Index::default();
        for position in 0..20_000 {
            index.insert(hash(position), position, hash);
        }
        assert_eq!(index.tables.len(), TABLES);
        for position in (0..20_000).step_by(3) {
            index.remove(hash(position), position);
        }
        for position in 0..20_000 {
            let found = index.find(hash(position), |other| other == position);
            assert_eq!(found, (position % 3 != 0).then_some(position));
        }
    }
}
