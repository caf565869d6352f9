//! The last number of every lane.
//!
//! Promises: numbers of a lane are contiguous from 1 and never given twice; the table fits the record that carries it into
//! every segment.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::format::{LANE_ENTRY_BYTES, get_u16, get_u32, get_u64, put_u16, put_u32, put_u64};
use crate::record::Lane;

/// Marks the entry that carries the floor.
const FLOOR_FLAG: u16 = 1;

/// Multiplies by the golden ratio: ids are given out by Prism, so nobody can choose them to collide.
#[derive(Clone, Copy, Default)]
pub(crate) struct LaneHasher(u64);

impl Hasher for LaneHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = (self.0.rotate_left(17) ^ u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u32(u32::from(value));
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

/// Last `lane_seq` by lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lanes {
    /// Where lanes begin that the table does not name; above 0 only after a repair that may have lost a lane's first
    /// records.
    floor: u64,
    last: HashMap<Lane, u64, BuildHasherDefault<LaneHasher>>,
}

impl Lanes {
    /// The last number given in this lane, 0 for none (after a repair: the last that may have been given).
    pub fn last(&self, lane: Lane) -> u64 {
        self.last.get(&lane).copied().unwrap_or(self.floor)
    }

    /// Lanes that ever wrote.
    pub fn len(&self) -> usize {
        self.last.len()
    }

    /// Whether no lane ever wrote.
    pub fn is_empty(&self) -> bool {
        self.last.is_empty()
    }

    /// Every lane with its last number, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Lane, u64)> + '_ {
        self.last.iter().map(|(lane, last)| (*lane, *last))
    }

    /// The next number of the lane; `None` when it would be one lane too many.
    #[inline]
    pub(crate) fn advance(&mut self, lane: Lane, lanes_max: usize) -> Option<u64> {
        if let Some(last) = self.last.get_mut(&lane) {
            *last += 1;
            return Some(*last);
        }
        if self.last.len() >= lanes_max {
            return None;
        }
        let first = self.floor + 1;
        self.last.insert(lane, first);
        Some(first)
    }

    pub(crate) fn set(&mut self, lane: Lane, last: u64) {
        self.last.insert(lane, last);
    }

    /// Leaves out `count` numbers in every lane, so that none that might have been used is used again.
    pub(crate) fn skip(&mut self, count: u64) {
        self.floor += count;
        self.last.values_mut().for_each(|last| *last += count);
    }

    pub(crate) fn encoded_bytes(&self) -> usize {
        (self.last.len() + usize::from(self.floor > 0)) * LANE_ENTRY_BYTES
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut entries: Vec<(Lane, u64)> = self.iter().collect();
        entries.sort_unstable();
        let mut bytes = vec![0; self.encoded_bytes()];
        let mut slots = bytes.chunks_exact_mut(LANE_ENTRY_BYTES);
        if self.floor > 0 {
            let entry = slots.next().expect("counted in");
            put_u16(entry, 6, FLOOR_FLAG);
            put_u64(entry, 8, self.floor);
        }
        for (entry, (lane, last)) in slots.zip(entries) {
            put_u32(entry, 0, lane.namespace);
            put_u16(entry, 4, lane.partition);
            put_u64(entry, 8, last);
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Lanes> {
        if !bytes.len().is_multiple_of(LANE_ENTRY_BYTES) {
            return None;
        }
        let mut lanes = Lanes::default();
        for entry in bytes.chunks_exact(LANE_ENTRY_BYTES) {
            if get_u16(entry, 6) == FLOOR_FLAG {
                lanes.floor = get_u64(entry, 8);
                continue;
            }
            let lane = Lane { namespace: get_u32(entry, 0), partition: get_u16(entry, 4) };
            lanes.set(lane, get_u64(entry, 8));
        }
        Some(lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_count_on_their_own_and_survive() {
        let (a, b) = (Lane { namespace: 1, partition: 0 }, Lane { namespace: 1, partition: 1 });
        let mut lanes = Lanes::default();
        assert_eq!(
            [lanes.advance(a, 2), lanes.advance(a, 2), lanes.advance(b, 2)],
            [Some(1), Some(2), Some(1)]
        );
        assert_eq!(lanes.advance(Lane { namespace: 2, partition: 0 }, 2), None, "one too many");
        assert_eq!(Lanes::decode(&lanes.encode()), Some(lanes.clone()));
        lanes.skip(10);
        assert_eq!((lanes.last(a), lanes.last(b)), (12, 11));
        assert_eq!(Lanes::decode(&lanes.encode()), Some(lanes.clone()));
        assert_eq!(
            lanes.last(Lane { namespace: 9, partition: 9 }),
            10,
            "a lane that was lost altogether"
        );
    }
}
