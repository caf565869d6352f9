//! Where the bytes of small entries are: slots of fixed sizes in spans, spans in regions of memory.
//!
//! A slot is found by its position, which is stable for as long as the slot is taken. A span has slots of one size; one that has
//! emptied serves whatever size is asked for next, and a region that has emptied goes back to the kernel, all but one. The first
//! region takes memory page by page, so that a small store stays small; the others take it span by span, which spares a store
//! that grows nearly all of its page faults. Nothing is ever moved, and no slot costs more for the store being large.

use std::collections::BTreeSet;

use prism_io::region::{REGION_BYTES, Region};

use super::slab::NOWHERE;

/// More than that has no place here.
pub(crate) const PAYLOAD_BYTES_MAX: usize = class_units(CLASSES as u8 - 1) * UNIT_BYTES;

/// Positions count units, and slots are multiples of them.
const UNIT_BYTES: usize = 16;
const UNIT_BITS: u32 = UNIT_BYTES.trailing_zeros();

const SPAN_BITS: u32 = 16;
const SPAN_UNITS: usize = 1 << (SPAN_BITS - UNIT_BITS);
const REGION_SPANS: usize = REGION_BYTES >> SPAN_BITS;
const REGION_UNITS: usize = REGION_BYTES / UNIT_BYTES;
/// As many as positions can tell apart: 64 GiB.
const REGIONS_MAX: usize = NOWHERE as usize / REGION_UNITS;

/// Sizes of slots: each unit up to 32 of them, then sixteen to the doubling, up to 320 units (5 KiB).
const CLASSES: usize = 84;

/// A bit for each span of a region that nobody has.
type SpanSet = u32;
const _: () = assert!(SpanSet::BITS as usize == REGION_SPANS);

/// A slot that is taken. Who has it gives it back ([`Payloads::give_back`]).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    position: u32,
    class: u8,
}

impl Slot {
    /// Bytes that fit into it.
    pub(crate) fn capacity(&self) -> usize {
        class_units(self.class) * UNIT_BYTES
    }
}

#[derive(Debug)]
struct Held {
    /// Nothing once it has gone back to the kernel.
    region: Option<Region>,
    free: SpanSet,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    class: u8,
    /// Slots that are taken.
    taken: u16,
    /// Slots that were ever taken: those behind them have never been.
    begun: u16,
    /// The slot that was given back last; its first bytes say which was before.
    vacant: u32,
    /// Its neighbours among the spans of its class that have a free slot.
    previous: u32,
    next: u32,
}

const NO_SPAN: Span =
    Span { class: 0, taken: 0, begun: 0, vacant: NOWHERE, previous: NOWHERE, next: NOWHERE };

/// Slots by position, see the module.
#[derive(Debug)]
pub(crate) struct Payloads {
    regions: Vec<Held>,
    spans: Vec<Span>,
    /// The regions that have a free span.
    roomy: BTreeSet<u32>,
    /// Numbers of regions that have gone back.
    gone: BTreeSet<u32>,
    /// The one region that is kept although all of it is free.
    empty: Option<u32>,
    /// Of each class, a span that has a free slot.
    with_room: [u32; CLASSES],
}

impl Default for Payloads {
    fn default() -> Self {
        Payloads {
            regions: Vec::new(),
            spans: Vec::new(),
            roomy: BTreeSet::new(),
            gone: BTreeSet::new(),
            empty: None,
            with_room: [NOWHERE; CLASSES],
        }
    }
}

impl Payloads {
    /// A slot for so many bytes, of which it contains anything. `None` for more than [`PAYLOAD_BYTES_MAX`], and when the kernel
    /// gives no more regions.
    #[inline]
    pub(crate) fn take(&mut self, bytes: usize) -> Option<Slot> {
        let class = class_of(bytes)?;
        let mut number = self.with_room[class as usize];
        if number == NOWHERE {
            number = self.take_span(class)?;
        }
        let span = &mut self.spans[number as usize];
        let (units, vacant) = (class_units(class), span.vacant);
        span.taken += 1;
        let is_full = span.taken == class_slots(class);
        let mut position = vacant;
        if vacant == NOWHERE {
            position = number * SPAN_UNITS as u32 + u32::from(span.begun) * units as u32;
            span.begun += 1;
        } else {
            let next = *self.bytes_at(vacant, 4).first_chunk().expect("four bytes");
            self.spans[number as usize].vacant = u32::from_le_bytes(next);
        }
        if is_full {
            self.unlink(number);
        }
        Some(Slot { position, class })
    }

    /// Frees a slot.
    #[inline]
    pub(crate) fn give_back(&mut self, slot: Slot) {
        let Slot { position, class } = slot;
        let number = position / SPAN_UNITS as u32;
        let span = &mut self.spans[number as usize];
        debug_assert!(span.class == class && span.taken > 0, "a slot that nobody has");
        let was_full = span.taken == class_slots(class);
        let before = std::mem::replace(&mut span.vacant, position);
        span.taken -= 1;
        let is_empty = span.taken == 0;
        if was_full {
            self.link(number);
        }
        match is_empty {
            true => self.give_back_span(number),
            false => self.bytes_at_mut(position, 4).copy_from_slice(&before.to_le_bytes()),
        }
    }

    /// The first bytes of a slot.
    #[inline]
    pub(crate) fn bytes(&self, slot: &Slot, bytes: usize) -> &[u8] {
        self.bytes_at(slot.position, bytes)
    }

    /// The first bytes of a slot, to be changed.
    #[inline]
    pub(crate) fn bytes_mut(&mut self, slot: &Slot, bytes: usize) -> &mut [u8] {
        self.bytes_at_mut(slot.position, bytes)
    }

    #[inline]
    fn bytes_at(&self, position: u32, bytes: usize) -> &[u8] {
        let region = self.regions[position as usize / REGION_UNITS].region.as_ref();
        let start = position as usize % REGION_UNITS * UNIT_BYTES;
        &region.expect("the region of a slot that is taken")[start..start + bytes]
    }

    #[inline]
    fn bytes_at_mut(&mut self, position: u32, bytes: usize) -> &mut [u8] {
        let region = self.regions[position as usize / REGION_UNITS].region.as_mut();
        let start = position as usize % REGION_UNITS * UNIT_BYTES;
        &mut region.expect("the region of a slot that is taken")[start..start + bytes]
    }

    /// Puts a span among those of its class that have a free slot.
    fn link(&mut self, number: u32) {
        let class = self.spans[number as usize].class as usize;
        let next = std::mem::replace(&mut self.with_room[class], number);
        let span = &mut self.spans[number as usize];
        (span.previous, span.next) = (NOWHERE, next);
        if next != NOWHERE {
            self.spans[next as usize].previous = number;
        }
    }

    fn unlink(&mut self, number: u32) {
        let Span { class, previous, next, .. } = self.spans[number as usize];
        match previous {
            NOWHERE => self.with_room[class as usize] = next,
            _ => self.spans[previous as usize].next = next,
        }
        if next != NOWHERE {
            self.spans[next as usize].previous = previous;
        }
    }

    #[cold]
    fn take_span(&mut self, class: u8) -> Option<u32> {
        let region = match self.roomy.first() {
            Some(&region) => region,
            None => self.take_region()?,
        };
        self.empty = self.empty.filter(|&empty| empty != region);
        let held = &mut self.regions[region as usize];
        let index = held.free.trailing_zeros();
        held.free &= held.free - 1;
        if held.free == 0 {
            self.roomy.remove(&region);
        }
        if region > 0 {
            let start = (index as usize) << SPAN_BITS;
            let memory = held.region.as_mut().expect("a region that has a free span");
            memory.populate(start..start + (1 << SPAN_BITS));
        }
        let number = region * REGION_SPANS as u32 + index;
        self.spans[number as usize] = Span { class, ..NO_SPAN };
        self.link(number);
        Some(number)
    }

    #[cold]
    fn give_back_span(&mut self, number: u32) {
        self.unlink(number);
        let region = number / REGION_SPANS as u32;
        let free = &mut self.regions[region as usize].free;
        *free |= 1 << (number % REGION_SPANS as u32);
        let is_empty = *free == SpanSet::MAX;
        self.roomy.insert(region);
        if is_empty {
            // The one with the lowest number is kept, the last of all the one that has small pages.
            let other = self.empty.unwrap_or(region);
            self.empty = Some(region.min(other));
            if region != other {
                self.give_back_region(region.max(other));
            }
        }
    }

    fn take_region(&mut self) -> Option<u32> {
        let number = self.gone.first().map_or(self.regions.len(), |&number| number as usize);
        if number == REGIONS_MAX {
            return None;
        }
        let held = Held { region: Some(Region::new().ok()?), free: SpanSet::MAX };
        if self.gone.pop_first().is_some() {
            self.regions[number] = held;
        } else {
            self.regions.push(held);
            self.spans.resize(self.regions.len() * REGION_SPANS, NO_SPAN);
        }
        self.roomy.insert(number as u32);
        Some(number as u32)
    }

    fn give_back_region(&mut self, number: u32) {
        self.regions[number as usize] = Held { region: None, free: 0 };
        self.roomy.remove(&number);
        self.gone.insert(number);
    }
}

/// The smallest size of slots for so many bytes.
#[inline]
const fn class_of(bytes: usize) -> Option<u8> {
    if bytes > PAYLOAD_BYTES_MAX {
        return None;
    }
    let units = if bytes == 0 { 1 } else { bytes.div_ceil(UNIT_BYTES) };
    // How often sixteen sizes were passed that stand closer together.
    let coarser = ((units - 1) | 16).ilog2() - 4;
    Some((coarser as usize * 16 + units.div_ceil(1 << coarser) - 1) as u8)
}

/// Units of a slot of that size.
#[inline]
const fn class_units(class: u8) -> usize {
    let coarser = (class as usize / 16).saturating_sub(1);
    (class as usize - coarser * 16 + 1) << coarser
}

/// Slots of that size in a span.
#[inline]
const fn class_slots(class: u8) -> u16 {
    const SLOTS: [u16; CLASSES] = {
        let mut slots = [0; CLASSES];
        let mut class = 0;
        while class < CLASSES {
            slots[class] = (SPAN_UNITS / class_units(class as u8)) as u16;
            class += 1;
        }
        slots
    };
    SLOTS[class as usize]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Payloads {
        /// Regions that the kernel has given and not got back.
        fn held(&self) -> usize {
            self.regions.iter().filter(|held| held.region.is_some()).count()
        }

        fn store(&mut self, contents: &[u8]) -> Slot {
            let slot = self.take(contents.len()).unwrap();
            self.bytes_mut(&slot, contents.len()).copy_from_slice(contents);
            slot
        }
    }

    #[test]
    fn every_size_fits_its_slot_and_wastes_no_more_than_a_sixteenth() {
        for bytes in 0..=PAYLOAD_BYTES_MAX {
            let class = class_of(bytes).unwrap();
            let capacity = class_units(class) * UNIT_BYTES;
            assert!(bytes <= capacity, "{bytes} bytes in {capacity}");
            assert!(capacity <= bytes + UNIT_BYTES + bytes / 16, "{bytes} bytes in {capacity}");
            assert!(class == 0 || bytes > class_units(class - 1) * UNIT_BYTES || bytes == 0);
        }
        assert_eq!(PAYLOAD_BYTES_MAX, 5_120);
        assert_eq!(class_of(PAYLOAD_BYTES_MAX), Some(CLASSES as u8 - 1));
        assert_eq!(Payloads::default().take(PAYLOAD_BYTES_MAX + 1), None);
    }

    #[test]
    fn memory_comes_down_when_slots_are_given_back() {
        let mut payloads = Payloads::default();
        let mut fill = || (0..20_000).map(|_| payloads.take(1_040).unwrap()).collect::<Vec<_>>();
        let slots = fill();
        assert_eq!(payloads.held(), 11, "60 of them to the span, 32 spans to the region");
        for slot in slots {
            payloads.give_back(slot);
        }
        assert_eq!((payloads.held(), payloads.empty), (1, Some(0)));
        let slots: Vec<Slot> = (0..2_000).map(|_| payloads.take(100).unwrap()).collect();
        assert_eq!(payloads.held(), 1, "spans serve another size");
        drop(slots);
    }

    #[test]
    fn one_slot_that_comes_and_goes_takes_no_region_each_time() {
        let mut payloads = Payloads::default();
        let full: Vec<Slot> = (0..60 * 32).map(|_| payloads.take(1_040).unwrap()).collect();
        let next = payloads.take(1_040).unwrap();
        payloads.give_back(next);
        assert_eq!((payloads.held(), payloads.empty), (2, Some(1)));
        let again = payloads.take(1_040).unwrap();
        assert_eq!((payloads.held(), payloads.empty), (2, None));
        drop((full, again));
    }

    /// What is done to the payloads, and to the plain copies that they are compared with.
    #[derive(Clone, Debug)]
    enum Step {
        Store { bytes: usize, fill: u8 },
        Replace { which: usize, bytes: usize, fill: u8 },
        GiveBack { which: usize },
        GiveBackAll,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // A few sizes that come often, so that spans fill, and any other.
        let bytes = prop_oneof![Just(5_000usize), Just(4_100), Just(16), 0..=PAYLOAD_BYTES_MAX];
        let step = prop_oneof![
            8 => (bytes.clone(), any::<u8>()).prop_map(|(bytes, fill)| Step::Store { bytes, fill }),
            3 => (any::<usize>(), bytes, any::<u8>())
                .prop_map(|(which, bytes, fill)| Step::Replace { which, bytes, fill }),
            4 => any::<usize>().prop_map(|which| Step::GiveBack { which }),
            1 => prop_oneof![9 => Just(Step::GiveBack { which: 0 }), 1 => Just(Step::GiveBackAll)],
        ];
        prop::collection::vec(step, 1..1_500)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn slots_keep_what_was_put_into_them(steps in steps()) {
            let mut payloads = Payloads::default();
            let mut kept: Vec<(Slot, Vec<u8>)> = Vec::new();
            for step in steps {
                match step {
                    Step::Store { bytes, fill } => {
                        let contents = vec![fill; bytes];
                        kept.push((payloads.store(&contents), contents));
                    }
                    Step::Replace { which, bytes, fill } if !kept.is_empty() => {
                        let which = which % kept.len();
                        let contents = vec![fill; bytes];
                        let new = (payloads.store(&contents), contents);
                        payloads.give_back(std::mem::replace(&mut kept[which], new).0);
                    }
                    Step::GiveBack { which } if !kept.is_empty() => {
                        let (slot, contents) = kept.swap_remove(which % kept.len());
                        prop_assert_eq!(payloads.bytes(&slot, contents.len()), contents);
                        payloads.give_back(slot);
                    }
                    Step::GiveBackAll => {
                        kept.drain(..).for_each(|(slot, _)| payloads.give_back(slot));
                        prop_assert!(payloads.held() <= 1);
                    }
                    _ => {}
                }
                let taken: usize = payloads.spans.iter().map(|span| usize::from(span.taken)).sum();
                prop_assert_eq!(taken, kept.len());
            }
            for (slot, contents) in kept {
                prop_assert_eq!(payloads.bytes(&slot, contents.len()), contents);
                payloads.give_back(slot);
            }
            prop_assert!(payloads.held() <= 1);
            prop_assert!(payloads.with_room.iter().all(|&span| span == NOWHERE));
        }
    }
}
