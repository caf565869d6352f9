//! Promises to calls on their way: of those who wait for a queue's messages, only as many are let go as there are messages.

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
