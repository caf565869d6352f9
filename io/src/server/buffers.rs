//! Output buffers that the connections of a thread share.
//!
//! A connection has one from the first byte that it wants to have written until it is written, and none while it is idle. The one that
//! is given out next is the one that came back last, which the processor's caches still hold: with many connections of few calls that is
//! one buffer for all of them.

use std::cell::RefCell;

use crate::h2::Output;

/// Buffers that are kept; those of more connections that answer at the same time come from the allocator.
const KEPT_MAX: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<Output>> = const { RefCell::new(Vec::new()) };
}

/// An empty output, with a buffer if one is to spare.
#[inline]
pub(super) fn take() -> Output {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Takes an output back that has been written; whatever it still holds is forgotten. One above `bytes_max` goes to the allocator.
#[inline]
pub(super) fn give_back(mut output: Output, bytes_max: usize) {
    let bytes = output.inline.capacity();
    if bytes == 0 || bytes > bytes_max {
        return;
    }
    output.clear();
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < KEPT_MAX {
            spare.push(output);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_given_back_is_the_next_one_taken() {
        let with_capacity = |bytes| {
            let mut output = Output::default();
            output.inline.reserve_exact(bytes);
            output.inline.push(1);
            output
        };
        give_back(with_capacity(100), 1000);
        give_back(with_capacity(200), 1000);
        give_back(with_capacity(2000), 1000);
        give_back(Output::default(), 1000);
        let taken = [take(), take(), take()];
        assert!(taken.iter().all(Output::is_empty));
        assert_eq!(taken.map(|output| output.inline.capacity()), [200, 100, 0]);
        for _ in 0..2 * KEPT_MAX {
            give_back(with_capacity(10), 1000);
        }
        assert_eq!(SPARE.with_borrow(Vec::len), KEPT_MAX);
    }
}
