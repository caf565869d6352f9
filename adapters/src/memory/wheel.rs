//! A hierarchical timing wheel: which entries have to be reaped, and when.
//!
//! Eight levels of 64 slots, one millisecond at the bottom; a timer is a node in a list, so that
//! scheduling, moving and cancelling are constant and allocate nothing once the nodes exist
//! (Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", 1987). Work is done in steps of one
//! timer, counted by the caller. It knows no clock and never decides what is expired:
//! it only says what should be looked at now.

use super::slab::{NOWHERE, Slab};

/// Levels; a timer is looked at no more often than this before it is due.
pub(crate) const LEVELS: usize = 8;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;

/// The last millisecond that can be told apart: 2^48 - 1, in the year 10889.
const LAST_MS: u64 = (1 << (SLOT_BITS * LEVELS as u32)) - 1;

#[derive(Debug)]
struct Level {
    occupied: u64,
    heads: [u32; SLOTS],
}

#[derive(Debug)]
struct Node {
    lane: u32,
    position: u32,
    due_ms: u64,
    previous: u32,
    next: u32,
    level: u8,
    slot: u8,
}

/// Timers for (lane, position) pairs, see the module.
#[derive(Debug)]
pub(crate) struct Wheel {
    elapsed_ms: u64,
    levels: Box<[Level; LEVELS]>,
    nodes: Slab<Node>,
}

impl Default for Wheel {
    fn default() -> Self {
        let level = |_| Level { occupied: 0, heads: [NOWHERE; SLOTS] };
        Wheel {
            elapsed_ms: 0,
            levels: Box::new(std::array::from_fn(level)),
            nodes: Slab::default(),
        }
    }
}

impl Wheel {
    /// Bytes that one timer takes.
    pub(crate) const TIMER_BYTES: usize = Slab::<Node>::SLOT_BYTES;

    /// A timer that is due at `due_us` (µs since the epoch); `now_us` lets an empty wheel catch up.
    pub(crate) fn schedule(&mut self, lane: u32, position: u32, due_us: u64, now_us: u64) -> u32 {
        if self.nodes.len() == 0 {
            self.elapsed_ms = self.elapsed_ms.max((now_us / 1000).min(LAST_MS));
        }
        let due_ms = due_us.div_ceil(1000).min(LAST_MS);
        let node =
            Node { lane, position, due_ms, previous: NOWHERE, next: NOWHERE, level: 0, slot: 0 };
        let timer = self.nodes.insert(node);
        self.link(timer);
        timer
    }

    /// Makes an existing timer due at another time.
    pub(crate) fn reschedule(&mut self, timer: u32, due_us: u64) {
        self.unlink(timer);
        self.nodes.at_mut(timer).due_ms = due_us.div_ceil(1000).min(LAST_MS);
        self.link(timer);
    }

    /// Forgets a timer.
    pub(crate) fn cancel(&mut self, timer: u32) {
        self.unlink(timer);
        self.nodes.remove(timer);
    }

    /// The next timer that is due at `now_us`, taken out of the wheel, as (lane, position).
    ///
    /// Every timer that is looked at costs one of `looks`; `None` when nothing is due any more or
    /// none is left.
    pub(crate) fn pop_due(&mut self, now_us: u64, looks: &mut usize) -> Option<(u32, u32)> {
        let now_ms = (now_us / 1000).min(LAST_MS);
        while *looks > 0 {
            let Some((start_ms, level, slot)) = self.next_slot().filter(|next| next.0 <= now_ms)
            else {
                self.elapsed_ms = self.elapsed_ms.max(now_ms);
                return None;
            };
            self.elapsed_ms = self.elapsed_ms.max(start_ms);
            *looks -= 1;
            let timer = self.levels[level].heads[slot];
            self.unlink(timer);
            if self.nodes.at(timer).due_ms <= now_ms {
                let node = self.nodes.remove(timer);
                return Some((node.lane, node.position));
            }
            self.link(timer);
        }
        None
    }

    /// The occupied slot that begins first: (its begin in ms, level, slot).
    fn next_slot(&self) -> Option<(u64, usize, usize)> {
        let mut first: Option<(u64, usize, usize)> = None;
        for (number, level) in self.levels.iter().enumerate() {
            if level.occupied == 0 {
                continue;
            }
            let shift = SLOT_BITS * number as u32;
            let current = (self.elapsed_ms >> shift) as usize & (SLOTS - 1);
            let ahead = level.occupied.rotate_right(current as u32).trailing_zeros() as usize;
            let slot = (current + ahead) & (SLOTS - 1);
            let begin = self.elapsed_ms >> (shift + SLOT_BITS) << (shift + SLOT_BITS);
            let start_ms = begin + ((slot as u64) << shift);
            debug_assert!(slot >= current, "a timer was left behind");
            if first.is_none_or(|other| start_ms < other.0) {
                first = Some((start_ms, number, slot));
            }
        }
        first
    }

    fn link(&mut self, timer: u32) {
        let elapsed_ms = self.elapsed_ms;
        let due_ms = self.nodes.at(timer).due_ms.max(elapsed_ms);
        let distance = (elapsed_ms ^ due_ms) | (SLOTS as u64 - 1);
        let level = ((63 - distance.leading_zeros()) / SLOT_BITS) as usize;
        let slot = (due_ms >> (SLOT_BITS * level as u32)) as usize & (SLOTS - 1);
        let head = self.levels[level].heads[slot];
        let node = self.nodes.at_mut(timer);
        (node.level, node.slot) = (level as u8, slot as u8);
        (node.previous, node.next) = (NOWHERE, head);
        if head != NOWHERE {
            self.nodes.at_mut(head).previous = timer;
        }
        self.levels[level].heads[slot] = timer;
        self.levels[level].occupied |= 1 << slot;
    }

    fn unlink(&mut self, timer: u32) {
        let node = self.nodes.at(timer);
        let (previous, next) = (node.previous, node.next);
        let (level, slot) = (node.level as usize, node.slot as usize);
        if next != NOWHERE {
            self.nodes.at_mut(next).previous = previous;
        }
        if previous != NOWHERE {
            self.nodes.at_mut(previous).next = next;
        } else {
            self.levels[level].heads[slot] = next;
            if next == NOWHERE {
                self.levels[level].occupied &= !(1 << slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(wheel: &mut Wheel, now_us: u64) -> Vec<u32> {
        let mut budget = usize::MAX;
        let mut due: Vec<u32> =
            std::iter::from_fn(|| wheel.pop_due(now_us, &mut budget)).map(|pair| pair.1).collect();
        due.sort_unstable();
        due
    }

    #[test]
    fn every_timer_fires_at_its_time_and_not_before() {
        let mut wheel = Wheel::default();
        let start = 1_700_000_000_000_000;
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut due = Vec::new();
        for position in 0..5_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let after = random >> (20 + random % 40);
            let at = start + after % (400 * 86_400_000_000);
            due.push(at);
            wheel.schedule(0, position, at, start);
        }
        let mut times = due.clone();
        times.sort_unstable();
        let mut fired = vec![false; due.len()];
        for at in times {
            for now in [at.saturating_sub(1), at.div_ceil(1000) * 1000] {
                for position in drain(&mut wheel, now) {
                    assert!(!fired[position as usize]);
                    assert!(due[position as usize] <= now);
                    fired[position as usize] = true;
                }
                for (position, &at) in due.iter().enumerate() {
                    assert!(fired[position] || at.div_ceil(1000) * 1000 > now / 1000 * 1000);
                }
            }
        }
        assert!(fired.iter().all(|&fired| fired));
    }

    #[test]
    fn moved_and_cancelled_timers() {
        let mut wheel = Wheel::default();
        let first = wheel.schedule(0, 1, 10_000_000, 0);
        let second = wheel.schedule(0, 2, 10_000_000, 0);
        wheel.schedule(0, 3, 10_000_000, 0);
        wheel.reschedule(first, 3_600_000_000);
        wheel.cancel(second);
        assert!(drain(&mut wheel, 9_999_999).is_empty());
        assert_eq!(drain(&mut wheel, 10_000_000), [3]);
        assert!(drain(&mut wheel, 3_599_999_999).is_empty());
        assert_eq!(drain(&mut wheel, 3_600_000_000), [1]);
    }

    #[test]
    fn work_is_bounded_by_the_budget() {
        let mut wheel = Wheel::default();
        for position in 0..1_000 {
            wheel.schedule(0, position, 5_000_000, 0);
        }
        let mut budget = 10;
        while wheel.pop_due(5_000_000, &mut budget).is_some() {}
        assert_eq!(budget, 0);
        wheel.schedule(0, 1_000, 1, 0);
        assert_eq!(drain(&mut wheel, 5_000_000).len(), 991, "what is past is due at once");
    }
}
