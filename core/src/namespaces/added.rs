//! Namespaces that came while the server runs: a table that only grows, of a size that is fixed at start.
//!
//! One thread adds, all look up, without a lock or an allocation; what was found stays where it is.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::Namespace;

/// The table.
#[derive(Debug, Default)]
pub(super) struct Added {
    places: Box<[OnceLock<Namespace>]>,
    count: AtomicUsize,
    /// By hash of the name, the next free one where that is taken: one more than a place; 0: free. At least half are free.
    slots: Box<[AtomicU32]>,
    hasher: ahash::RandomState,
}

impl Added {
    /// One for so many.
    pub(super) fn with_room(places: usize) -> Self {
        let slots = if places == 0 { 0 } else { (2 * places).next_power_of_two() };
        Self {
            places: (0..places).map(|_| OnceLock::new()).collect(),
            count: AtomicUsize::new(0),
            slots: (0..slots).map(|_| AtomicU32::new(0)).collect(),
            hasher: ahash::RandomState::new(),
        }
    }

    /// How many there can be.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// The one at a place.
    pub(super) fn at(&self, place: usize) -> Option<&Namespace> {
        self.places.get(place)?.get()
    }

    /// All of them, in the order in which they came.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Namespace> {
        self.places.iter().map_while(OnceLock::get)
    }

    /// The one of that name.
    pub(super) fn get(&self, name: &str) -> Option<&Namespace> {
        if self.len() == 0 {
            return None;
        }
        let mut slot = self.first_slot(name);
        loop {
            let place = self.slots[slot].load(Ordering::Acquire).checked_sub(1)?;
            let found = self.at(place as usize)?;
            if *found.name == *name && found.terms.is_served() {
                return Some(found);
            }
            slot = (slot + 1) % self.slots.len();
        }
    }

    /// Adds one; `false` where there is no room. Called by one thread alone.
    pub(super) fn add(&self, namespace: Namespace) -> bool {
        let place = self.len();
        if place >= self.places.len() {
            return false;
        }
        let mut slot = self.first_slot(&namespace.name);
        while self.slots[slot].load(Ordering::Relaxed) != 0 {
            slot = (slot + 1) % self.slots.len();
        }
        if self.places[place].set(namespace).is_err() {
            return false;
        }
        self.count.store(place + 1, Ordering::Release);
        self.slots[slot].store(place as u32 + 1, Ordering::Release);
        true
    }

    fn first_slot(&self, name: &str) -> usize {
        self.hasher.hash_one(name) as usize & (self.slots.len() - 1)
    }
}
