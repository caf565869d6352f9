//! What this shard knows of the deliveries that it has made: until when each is its receiver's.
//!
//! It is a memory of what a receipt and the server say too, so that most receipts are looked at without asking: those that it knows nothing
//! of (handed out by another host, or before a restart, or too many) are looked up. What it knows of brings a message back at the very
//! moment that its receiver was told, and not some time later.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use super::super::place::Place;
use super::message::LANES;
use crate::shared::Key;

/// Deliveries that a shard remembers at most; those beyond are looked up when somebody asks.
const LEASES_MAX: usize = 65_536;

/// Queues that a shard remembers at most.
const QUEUES_MAX: usize = 4096;

/// What a delivery is good for, in the hands of its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Receipt {
    pub(super) lane: u8,
    pub(super) place: Place,
    /// Until when it was to be its receiver's, when it was handed out; µs since the epoch.
    pub(super) until_us: u64,
}

impl Receipt {
    /// As its receiver is told it; good for one incarnation of its lane's consumer.
    pub(super) fn to_text(self, incarnation: u128) -> String {
        format!("{:x}-{:x}-{}", self.lane, self.until_us, self.place.receipt(incarnation))
    }

    /// The lane that a receipt is of; nothing where it is none.
    pub(super) fn lane_of(text: &str) -> Option<u8> {
        let lane = u8::from_str_radix(text.split_once('-')?.0, 16).ok()?;
        (lane <= LANES).then_some(lane)
    }

    /// Reads a receipt of this incarnation.
    pub(super) fn read(text: &str, incarnation: u128) -> Option<Self> {
        let mut words = text.splitn(3, '-');
        let mut word = || words.next();
        let lane = u8::from_str_radix(word()?, 16).ok()?;
        let until_us = u64::from_str_radix(word()?, 16).ok()?;
        let place = Place::of_receipt(word()?, incarnation)?;
        let receipt = Receipt { lane, place, until_us };
        (lane <= LANES && receipt.to_text(incarnation) == text).then_some(receipt)
    }
}

/// A delivery that is under way, or was given back for later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) lane: u8,
    pub(super) place: Place,
    /// When its message comes again, µs since the epoch.
    pub(super) until_us: u64,
    /// Its receiver has given it back.
    pub(super) is_released: bool,
}

/// What is known of a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Good,
    Over,
    Unknown,
}

/// A lane of a queue, as this shard knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lane {
    /// Which consumer of its name hands it out.
    pub(super) incarnation: u128,
    /// The number of the last message that this shard has sent to it.
    pub(super) sent: u64,
    /// The number up to which its messages are known to have been handed out.
    pub(super) taken: u64,
}

/// A queue, as this shard knows it.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) lanes: BTreeMap<u8, Lane>,
    leases: BTreeMap<u64, Lease>,
    /// When it was last looked for lanes, µs since the epoch.
    pub(super) looked_us: u64,
    /// Who is first in the next turn.
    pub(super) turn: usize,
}

impl Known {
    /// Messages that come again at `now_us` or before.
    pub(super) fn due(&self, now_us: u64) -> usize {
        self.leases.values().filter(|lease| lease.until_us <= now_us).count()
    }

    /// When the next message comes again after `now_us`.
    pub(super) fn next_us(&self, now_us: u64) -> Option<u64> {
        self.leases.values().map(|lease| lease.until_us).filter(|us| *us > now_us).min()
    }

    /// How many messages of a lane are known to be away at `now_us`.
    pub(super) fn away(&self, lane: u8, now_us: u64) -> u64 {
        let is_away = |lease: &&Lease| lease.lane == lane && lease.until_us > now_us;
        self.leases.values().filter(is_away).count() as u64
    }
}

/// The queues of a shard.
#[derive(Debug, Default)]
pub(super) struct Leases {
    queues: RefCell<HashMap<Key, Known>>,
    count: Cell<usize>,
}

impl Leases {
    /// Looks at what is known of a queue, or changes it.
    pub(super) fn with<R>(
        &self,
        (namespace, queue): (u32, &str),
        work: impl FnOnce(&mut Known) -> R,
    ) -> R {
        let mut queues = self.queues.borrow_mut();
        let key = (namespace, Box::from(queue));
        if queues.len() >= QUEUES_MAX && !queues.contains_key(&key) {
            queues.clear();
            self.count.set(0);
        }
        work(queues.entry(key).or_default())
    }

    /// Forgets all about a queue.
    pub(super) fn forget(&self, (namespace, queue): (u32, &str)) {
        if let Some(known) = self.queues.borrow_mut().remove(&(namespace, Box::from(queue))) {
            self.count.set(self.count.get() - known.leases.len());
        }
    }

    /// Notes a delivery, in place of an earlier one of its message.
    pub(super) fn note(&self, queue: (u32, &str), lease: Lease) {
        if self.count.get() >= LEASES_MAX {
            let mut queues = self.queues.borrow_mut();
            queues.values_mut().for_each(|known| known.leases.clear());
            self.count.set(0);
        }
        let before = self.with(queue, |known| known.leases.insert(lease.place.sequence, lease));
        if before.is_none() {
            self.count.set(self.count.get() + 1);
        }
    }

    /// Notes that a message is not away any more.
    pub(super) fn done(&self, queue: (u32, &str), sequence: u64) {
        if self.with(queue, |known| known.leases.remove(&sequence)).is_some() {
            self.count.set(self.count.get() - 1);
        }
    }

    /// Takes out those whose messages come again at `now_us` or before, oldest message first.
    pub(super) fn take_due(&self, queue: (u32, &str), now_us: u64) -> Vec<Lease> {
        let due = self.with(queue, |known| {
            let due: Vec<Lease> =
                known.leases.values().filter(|lease| lease.until_us <= now_us).copied().collect();
            known.leases.retain(|_, lease| lease.until_us > now_us);
            due
        });
        self.count.set(self.count.get() - due.len());
        due
    }

    /// What is known of a receipt at `now_us`.
    pub(super) fn standing(&self, queue: (u32, &str), receipt: &Receipt, now_us: u64) -> Standing {
        let place = &receipt.place;
        let lease = self.with(queue, |known| known.leases.get(&place.sequence).copied());
        match lease {
            Some(lease) if lease.place.attempt > place.attempt => Standing::Over,
            Some(lease) if lease.place.attempt == place.attempt => {
                match !lease.is_released && now_us < lease.until_us {
                    true => Standing::Good,
                    false => Standing::Over,
                }
            }
            _ => Standing::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: (u32, &str) = (1, "jobs");

    fn place(sequence: u64, attempt: u64) -> Place {
        Place { attempt, sequence, delivery: 12, stored_ns: 99 }
    }

    fn lease(sequence: u64, attempt: u64, until_us: u64) -> Lease {
        Lease { lane: 3, place: place(sequence, attempt), until_us, is_released: false }
    }

    #[test]
    fn a_receipt_comes_back_as_it_was_told_and_cannot_be_written_otherwise() {
        let receipt = Receipt { lane: 12, place: place(9, 2), until_us: 1_700_000_000_000_000 };
        let text = receipt.to_text(7);
        assert_eq!(Receipt::lane_of(&text), Some(12));
        assert_eq!(Receipt::read(&text, 7), Some(receipt));
        assert_eq!(Receipt::read(&text, 8), None, "of another incarnation");
        for bad in ["", "nonsense", "c", "c-1", "0c-1-9-c-2-63-7", "ff-1-9-c-2-63-7"] {
            assert_eq!(Receipt::read(bad, 7), None, "{bad}");
        }
        assert_eq!(Receipt::lane_of("41-1"), None, "there are so many lanes");
    }

    #[test]
    fn a_receipt_stands_as_long_as_its_delivery() {
        let leases = Leases::default();
        let receipt = |attempt| Receipt { lane: 3, place: place(9, attempt), until_us: 100 };
        let standing = |attempt, now_us| leases.standing(QUEUE, &receipt(attempt), now_us);
        assert_eq!(standing(1, 50), Standing::Unknown);
        leases.note(QUEUE, lease(9, 2, 100));
        assert_eq!((standing(1, 50), standing(2, 50)), (Standing::Over, Standing::Good));
        assert_eq!((standing(2, 100), standing(3, 50)), (Standing::Over, Standing::Unknown));
        leases.note(QUEUE, Lease { is_released: true, ..lease(9, 2, 100) });
        assert_eq!(standing(2, 50), Standing::Over);
        leases.done(QUEUE, 9);
        assert_eq!((standing(2, 50), leases.count.get()), (Standing::Unknown, 0));
    }

    #[test]
    fn what_has_ended_is_taken_once_and_what_is_away_is_counted() {
        let leases = Leases::default();
        for (sequence, until_us) in [(1, 30), (2, 10), (3, 20)] {
            leases.note(QUEUE, lease(sequence, 1, until_us));
        }
        leases.with(QUEUE, |known| {
            assert_eq!((known.due(20), known.next_us(20)), (2, Some(30)));
            assert_eq!((known.away(3, 20), known.away(0, 20)), (1, 0));
        });
        let due: Vec<u64> =
            leases.take_due(QUEUE, 20).iter().map(|lease| lease.place.sequence).collect();
        assert_eq!(due, [2, 3]);
        assert_eq!((leases.take_due(QUEUE, 20), leases.count.get()), (Vec::new(), 1));
        leases.forget(QUEUE);
        assert_eq!(leases.count.get(), 0);
    }

    #[test]
    fn too_many_deliveries_are_forgotten() {
        let leases = Leases::default();
        for sequence in 0..=LEASES_MAX as u64 {
            leases.note(QUEUE, lease(sequence, 1, 10));
        }
        assert_eq!(leases.count.get(), 1);
    }
}
