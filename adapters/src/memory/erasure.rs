//! The end of a namespace: everything that it keeps is taken out, a piece at a time.

use super::Memstore;
use super::store::Store;

/// How far the data of a namespace has been taken out.
#[derive(Debug)]
pub struct Erasure {
    namespace: u32,
    has_begun: bool,
    lane: usize,
    position: u32,
}

impl Erasure {
    /// Of a namespace that takes no calls any more, and of which no record is still to be applied.
    pub fn new(namespace: u32) -> Self {
        Self { namespace, has_begun: false, lane: 0, position: 0 }
    }
}

impl Memstore {
    /// How many entries a namespace has, those of its queues, streams and topics and of what was acknowledged among them.
    pub fn namespace_entries(&self, namespace: u32) -> usize {
        let store = self.store.borrow();
        let of_namespace = store.lanes.iter().filter(|lane| lane.namespace == namespace);
        of_namespace.map(|lane| lane.entries.len()).sum()
    }

    /// Takes out at most `budget` entries more, looking at a few times as many places; `true` when nothing is left.
    pub fn erase(&self, erasure: &mut Erasure, budget: usize) -> bool {
        if !erasure.has_begun {
            erasure.has_begun = true;
            // What leads to entries goes before them: nothing is found that is half there.
            self.forget_indexes(erasure.namespace);
        }
        self.store.borrow_mut().erase(erasure, budget)
    }

    fn forget_indexes(&self, namespace: u32) {
        self.queues.borrow_mut().retain(|(of, _), _| *of != namespace);
        self.streams.borrow_mut().retain(|(of, _), _| *of != namespace);
        self.groups.forget(namespace);
        self.topics.borrow_mut().forget(namespace);
        self.outboxes.borrow_mut().forget(namespace);
    }
}

impl Store {
    fn erase(&mut self, erasure: &mut Erasure, budget: usize) -> bool {
        /// Places that are looked at for each entry that may go: free ones cost little.
        const LOOKS: usize = 8;
        let (mut left, mut looks) = (budget, budget.saturating_mul(LOOKS));
        while let Some(lane) = self.lanes.get(erasure.lane) {
            if lane.namespace != erasure.namespace || erasure.position >= lane.entries.end() {
                (erasure.lane, erasure.position) = (erasure.lane + 1, 0);
                continue;
            }
            if left == 0 || looks == 0 {
                return false;
            }
            looks -= 1;
            left -= usize::from(self.erase_at(erasure.lane as u32, erasure.position));
            erasure.position += 1;
        }
        true
    }
}
