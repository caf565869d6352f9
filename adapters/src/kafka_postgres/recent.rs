//! Payloads that were sent a moment ago and are about to be delivered.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::kafka::payloads::Place;

/// What an entry takes beside its payload, in bytes, roughly.
const ENTRY_BYTES: usize = 96;

/// The last payloads, up to a number of bytes; the oldest go.
pub(super) struct Recent {
    payloads: HashMap<(u32, Place), Bytes, ahash::RandomState>,
    order: VecDeque<(u32, Place)>,
    bytes: usize,
    bytes_max: usize,
}

impl Recent {
    pub(super) fn new(bytes_max: usize) -> Self {
        Recent { payloads: HashMap::default(), order: VecDeque::new(), bytes: 0, bytes_max }
    }

    pub(super) fn get(&self, key: (u32, Place)) -> Option<Bytes> {
        self.payloads.get(&key).cloned()
    }

    /// Keeps a payload; a place is never used again for another.
    pub(super) fn put(&mut self, key: (u32, Place), payload: Bytes) {
        let bytes = payload.len() + ENTRY_BYTES;
        if bytes > self.bytes_max || self.payloads.contains_key(&key) {
            return;
        }
        while self.bytes + bytes > self.bytes_max {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(gone) = self.payloads.remove(&oldest) {
                self.bytes -= gone.len() + ENTRY_BYTES;
            }
        }
        self.bytes += bytes;
        self.order.push_back(key);
        self.payloads.insert(key, payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_when_there_is_no_room() {
        let mut recent = Recent::new(3 * (10 + ENTRY_BYTES));
        let payload = Bytes::from_static(b"0123456789");
        for offset in 0..4 {
            recent.put((1, (0, offset)), payload.clone());
        }
        let there = |offset| recent.get((1, (0, offset))).is_some();
        assert_eq!([0, 1, 2, 3].map(there), [false, true, true, true]);
        assert_eq!(recent.bytes, 3 * (10 + ENTRY_BYTES));
    }

    #[test]
    fn what_is_larger_than_all_of_it_is_not_kept() {
        let mut recent = Recent::new(100);
        recent.put((1, (0, 0)), Bytes::from(vec![0; 101]));
        assert_eq!((recent.get((1, (0, 0))), recent.bytes), (None, 0));
    }
}
