//! A slab of slots in chunks: a position is stable for as long as its slot is occupied.
//!
//! Growing adds a chunk and never copies what is there (but for the first chunk, which grows up to
//! its full size so that a small lane stays small). A scan is a walk over positions: what stays in
//! its slot is met once, whatever comes and goes around it. It never shrinks and never moves a slot.

const CHUNK_BITS: u32 = 12;

/// Slots in one chunk.
pub(crate) const CHUNK_SLOTS: usize = 1 << CHUNK_BITS;

/// No position; also the end of the list of vacant slots.
pub(crate) const NOWHERE: u32 = u32::MAX;

#[derive(Debug)]
enum Slot<T> {
    /// Free; the position of the next free slot.
    Vacant(u32),
    Occupied(T),
}

/// Slots by position, see the module.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    chunks: Vec<Vec<Slot<T>>>,
    vacant: u32,
    end: u32,
    occupied: u32,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { chunks: Vec::new(), vacant: NOWHERE, end: 0, occupied: 0 }
    }
}

impl<T> Slab<T> {
    /// Bytes that one slot takes.
    pub(crate) const SLOT_BYTES: usize = size_of::<Slot<T>>();

    /// How many slots are occupied.
    pub(crate) fn len(&self) -> usize {
        self.occupied as usize
    }

    /// One past the highest position ever used.
    pub(crate) fn end(&self) -> u32 {
        self.end
    }

    /// Puts `value` into a free slot and says where.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        self.occupied += 1;
        if self.vacant != NOWHERE {
            let position = self.vacant;
            let slot = self.slot_mut(position);
            let Slot::Vacant(next) = *slot else { unreachable!("a free slot is occupied") };
            *slot = Slot::Occupied(value);
            self.vacant = next;
            return position;
        }
        let position = self.end;
        assert!(position < NOWHERE, "a lane holds fewer than 2^32 - 1 entries");
        let chunk = (position >> CHUNK_BITS) as usize;
        if chunk == self.chunks.len() {
            let capacity = if chunk == 0 { 4 } else { CHUNK_SLOTS };
            self.chunks.push(Vec::with_capacity(capacity));
        }
        self.chunks[chunk].push(Slot::Occupied(value));
        self.end += 1;
        position
    }

    /// Takes the value out of an occupied slot.
    pub(crate) fn remove(&mut self, position: u32) -> T {
        let vacant = self.vacant;
        let slot = std::mem::replace(self.slot_mut(position), Slot::Vacant(vacant));
        let Slot::Occupied(value) = slot else { unreachable!("removed from a free slot") };
        self.vacant = position;
        self.occupied -= 1;
        value
    }

    /// What the slot holds, if it is occupied.
    #[inline]
    pub(crate) fn get(&self, position: u32) -> Option<&T> {
        match self.chunks.get((position >> CHUNK_BITS) as usize)?.get(offset(position))? {
            Slot::Occupied(value) => Some(value),
            Slot::Vacant(_) => None,
        }
    }

    /// What the slot holds, which is occupied.
    #[inline]
    pub(crate) fn at(&self, position: u32) -> &T {
        self.get(position).expect("an occupied slot")
    }

    /// What the slot holds, which is occupied.
    #[inline]
    pub(crate) fn at_mut(&mut self, position: u32) -> &mut T {
        match self.slot_mut(position) {
            Slot::Occupied(value) => value,
            Slot::Vacant(_) => unreachable!("a free slot was asked for its value"),
        }
    }

    #[inline]
    fn slot_mut(&mut self, position: u32) -> &mut Slot<T> {
        &mut self.chunks[(position >> CHUNK_BITS) as usize][offset(position)]
    }
}

#[inline]
fn offset(position: u32) -> usize {
    position as usize & (CHUNK_SLOTS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_stable_and_reused_after_removal() {
        let mut slab = Slab::default();
        let positions: Vec<u32> = (0..10_000u32).map(|value| slab.insert(value)).collect();
        assert_eq!(slab.end(), 10_000);
        for &position in &positions {
            assert_eq!(*slab.at(position), position);
        }
        assert_eq!(slab.remove(5_000), 5_000);
        assert_eq!(slab.get(5_000), None);
        assert_eq!(slab.insert(7), 5_000);
        assert_eq!(slab.len(), 10_000);
        assert_eq!(slab.end(), 10_000);
        assert_eq!(slab.get(10_000), None);
    }
}
