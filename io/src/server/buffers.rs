//! Output buffers that the connections of a thread share.
//!
//! A connection has one from the first byte that it wants to have written until it is written, and none while it is idle. The one that
//! is given out next is the one that came back last, which the processor's caches still hold: with many connections of few calls that is
//! one buffer for all of them.

use std::cell::RefCell;

use crate::h2::Output;

/// Buffers that are kept; those of more connections that answer at the same time come from the allocator.
const KEPT_MAX: usize = 64;

/// Those above this are large; few of them are kept, for the connections that answer with much at a time.
const SMALL_BYTES_MAX: usize = 16 * 1024;

/// Large ones that are kept.
const LARGE_KEPT_MAX: usize = 2;

/// Larger ones than this go to the allocator.
const LARGE_BYTES_MAX: usize = 1024 * 1024;

struct Spare {
    outputs: Vec<Output>,
    /// How many of them are large.
    large: usize,
    /// The most that one held since [`rest`] last looked.
    most_bytes: usize,
}

const NONE: Spare = Spare { outputs: Vec::new(), large: 0, most_bytes: 0 };

thread_local! {
    static SPARE: RefCell<Spare> = const { RefCell::new(NONE) };
}

/// An empty output, with a buffer if one is to spare.
#[inline]
pub(super) fn take() -> Output {
    SPARE.with_borrow_mut(|spare| {
        let output = spare.outputs.pop().unwrap_or_default();
        spare.large -= usize::from(output.inline.capacity() > SMALL_BYTES_MAX);
        output
    })
}

/// Takes an output back that has been written; whatever it still holds is forgotten.
#[inline]
pub(super) fn give_back(mut output: Output) {
    let (bytes, held_bytes) = (output.inline.capacity(), output.inline.len());
    if bytes == 0 || bytes > LARGE_BYTES_MAX {
        return;
    }
    output.clear();
    SPARE.with_borrow_mut(|spare| {
        spare.most_bytes = spare.most_bytes.max(held_bytes);
        let is_large = bytes > SMALL_BYTES_MAX;
        if spare.outputs.len() < KEPT_MAX && !(is_large && spare.large == LARGE_KEPT_MAX) {
            spare.large += usize::from(is_large);
            spare.outputs.push(output);
        }
    });
}

/// To be called now and then: gives large ones to the allocator when small ones would have done since it was last called.
pub(super) fn rest() {
    SPARE.with_borrow_mut(|spare| {
        if std::mem::take(&mut spare.most_bytes) <= SMALL_BYTES_MAX && spare.large > 0 {
            spare.outputs.retain(|output| output.inline.capacity() <= SMALL_BYTES_MAX);
            spare.large = 0;
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
        give_back(with_capacity(100));
        give_back(with_capacity(200));
        give_back(with_capacity(2 * LARGE_BYTES_MAX));
        give_back(Output::default());
        let taken = [take(), take(), take()];
        assert!(taken.iter().all(Output::is_empty));
        assert_eq!(taken.map(|output| output.inline.capacity()), [200, 100, 0]);
        for _ in 0..2 * KEPT_MAX {
            give_back(with_capacity(10));
        }
        assert_eq!(SPARE.with_borrow(|spare| spare.outputs.len()), KEPT_MAX);
    }

    #[test]
    fn few_large_ones_are_kept() {
        let give_back_large = || {
            let mut output = Output::default();
            output.inline.resize(LARGE_BYTES_MAX, 0);
            give_back(output);
        };
        let kept = || SPARE.with_borrow(|spare| (spare.outputs.len(), spare.large));
        (0..4 * LARGE_KEPT_MAX).for_each(|_| give_back_large());
        assert_eq!(kept(), (LARGE_KEPT_MAX, LARGE_KEPT_MAX));
        assert_eq!(take().inline.capacity(), LARGE_BYTES_MAX);
        assert_eq!(kept(), (LARGE_KEPT_MAX - 1, LARGE_KEPT_MAX - 1));
        give_back_large();
        assert_eq!(kept(), (LARGE_KEPT_MAX, LARGE_KEPT_MAX));
        rest();
        assert_eq!(kept(), (LARGE_KEPT_MAX, LARGE_KEPT_MAX), "they were needed");
        let mut small = take();
        small.inline.push(1);
        give_back(small);
        rest();
        assert_eq!(kept(), (0, 0), "they were not needed any more");
    }
}
