//! Promises to calls on their way: of those who wait for a queue's messages, only as many are let go as there are messages.

use std::cell::RefCell;
use std::collections::HashMap;

/// Queues whose promises are remembered at most; those beyond lose theirs, which wakes a call too many.
const QUEUES_MAX: usize = 4096;

/// Claims are forgotten after this time: a call that was refused before it came to its turn takes none.
const KEPT_US: u64 = 1_000_000;

/// What calls on their way to one queue have been promised.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Claims {
    messages: usize,
    /// When the last was made, µs since the epoch.
    at_us: u64,
}

impl Claims {
    /// So many messages are promised at `now_us`.
    pub(crate) fn promised(&mut self, now_us: u64) -> usize {
        if self.at_us.saturating_add(KEPT_US) < now_us {
            self.messages = 0;
        }
        self.messages
    }

    /// Promises at most `wanted` of the messages that are there beyond what others were promised; `false` if there are none.
    pub(crate) fn claim(&mut self, there: usize, wanted: usize, now_us: u64) -> bool {
        let free = there.saturating_sub(self.promised(now_us));
        if free > 0 {
            (self.messages, self.at_us) = (self.messages + wanted.min(free), now_us);
        }
        free > 0
    }

    /// When the promises that there are will be forgotten.
    pub(crate) fn end_us(&self) -> Option<u64> {
        (self.messages > 0).then_some(self.at_us.saturating_add(KEPT_US + 1))
    }

    /// A call for so many messages has had its turn.
    pub(crate) fn give_back(&mut self, wanted: usize) {
        self.messages = self.messages.saturating_sub(wanted);
    }
}

/// What calls on their way to the queues of a shard have been promised, by namespace and queue.
#[derive(Debug, Default)]
pub(crate) struct Promises(RefCell<HashMap<(u32, Box<str>), Claims>>);

impl Promises {
    /// Lets a call for `wanted` messages go if there are some beyond what others were promised.
    pub(crate) fn claim(
        &self,
        queue: (u32, &str),
        there: usize,
        wanted: usize,
        now_us: u64,
    ) -> bool {
        let mut claims = self.0.borrow_mut();
        if claims.len() >= QUEUES_MAX {
            claims.clear();
        }
        claims.entry((queue.0, queue.1.into())).or_default().claim(there, wanted, now_us)
    }

    /// So many messages of a queue are promised at `now_us`.
    pub(crate) fn promised(&self, queue: (u32, &str), now_us: u64) -> usize {
        let mut claims = self.0.borrow_mut();
        claims.get_mut(&(queue.0, queue.1.into())).map_or(0, |claims| claims.promised(now_us))
    }

    /// When the promises that there are of a queue will be forgotten.
    pub(crate) fn end_us(&self, queue: (u32, &str)) -> Option<u64> {
        self.0.borrow().get(&(queue.0, queue.1.into())).and_then(Claims::end_us)
    }

    /// A call for so many messages has had its turn.
    pub(crate) fn give_back(&self, queue: (u32, &str), wanted: usize) {
        let mut claims = self.0.borrow_mut();
        if claims.is_empty() {
            return;
        }
        let key = (queue.0, queue.1.into());
        if let Some(of_queue) = claims.get_mut(&key) {
            of_queue.give_back(wanted);
            if of_queue.end_us().is_none() {
                claims.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_promised_than_is_there_and_promises_are_forgotten() {
        let mut claims = Claims::default();
        assert!(claims.claim(3, 2, 10) && claims.claim(3, 2, 10));
        assert!(!claims.claim(3, 1, 10), "all three are promised");
        claims.give_back(2);
        assert!(claims.claim(3, 1, 10));
        let end_us = claims.end_us().unwrap();
        assert!(!claims.claim(2, 1, end_us - 1) && claims.claim(2, 1, end_us));
    }
}
