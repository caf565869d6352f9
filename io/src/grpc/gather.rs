//! The memory that large messages are gathered in.
//!
//! Fresh pages cost more than the copy into them, so buffers of large messages go back to a pool of their thread when the last slice
//! of the message is dropped. The pool holds a bounded number of bytes and never more than was in use before. What a buffer held is
//! not cleared: nobody sees more of it than was written.

use bytes::Bytes;
use std::cell::RefCell;

/// Smaller buffers are left to the allocator, which keeps their pages by itself.
const POOLED_BYTES_MIN: usize = 64 << 10;
/// Most bytes of the buffers that wait on one thread.
const SPARE_BYTES_MAX: usize = 8 << 20;
/// Capacities are multiples of this, so that messages of about the same size fit each other's buffers.
const STEP_BYTES: usize = 64 << 10;
/// First capacity when little of a message has come and no buffer waits: a length is only a claim.
const FIRST_BYTES: usize = 64 << 10;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer that one message of a known length is gathered in.
#[derive(Debug)]
pub(crate) struct GatherBuffer(Vec<u8>);

impl GatherBuffer {
    /// A buffer for `wanted` bytes, of which `come` have.
    pub(crate) fn new(wanted: usize, come: usize) -> Self {
        if let Some(spare) = take_spare(wanted) {
            return Self(spare);
        }
        Self(Vec::with_capacity(wanted.min(FIRST_BYTES.max(2 * come))))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Appends `part`; no more than `wanted` bytes will come in all.
    pub(crate) fn extend(&mut self, part: &[u8], wanted: usize) {
        if self.0.len() + part.len() > self.0.capacity() {
            // Enough has come to believe the length; the kernel gives the pages only as they fill.
            let capacity = wanted.next_multiple_of(STEP_BYTES);
            self.0.reserve_exact(capacity - self.0.len());
        }
        self.0.extend_from_slice(part);
    }

    /// The message. Its buffer goes back when nobody holds a slice of it any more.
    pub(crate) fn finish(mut self) -> Bytes {
        if self.0.capacity() >= POOLED_BYTES_MIN {
            return Bytes::from_owner(self);
        }
        std::mem::take(&mut self.0).into()
    }
}

impl AsRef<[u8]> for GatherBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for GatherBuffer {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.0);
        if buffer.capacity() < POOLED_BYTES_MIN {
            return;
        }
        buffer.clear();
        // A thread that ends has no pool any more.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            let held: usize = spare.iter().map(Vec::capacity).sum();
            if held + buffer.capacity() <= SPARE_BYTES_MAX {
                spare.push(buffer);
            }
        });
    }
}

/// The smallest buffer that waits and is large enough, unless it is much too large.
fn take_spare(wanted: usize) -> Option<Vec<u8>> {
    if wanted < POOLED_BYTES_MIN {
        return None;
    }
    SPARE.with_borrow_mut(|spare| {
        let fits = |buffer: &Vec<u8>| (wanted..=4 * wanted).contains(&buffer.capacity());
        let fitting = spare.iter().enumerate().filter(|(_, buffer)| fits(buffer));
        let (best, _) = fitting.min_by_key(|(_, buffer)| buffer.capacity())?;
        Some(spare.swap_remove(best))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(bytes: usize, fill: u8) -> Bytes {
        let mut buffer = GatherBuffer::new(bytes, 0);
        while buffer.len() < bytes {
            let part = (bytes - buffer.len()).min(16 << 10);
            buffer.extend(&vec![fill; part], bytes);
        }
        buffer.finish()
    }

    fn spare_bytes() -> usize {
        SPARE.with_borrow(|spare| spare.iter().map(Vec::capacity).sum())
    }

    #[test]
    fn a_buffer_is_used_again_once_its_message_is_gone() {
        let first = gathered(1 << 20, 1);
        let address = first.as_ptr();
        let slice = first.slice(7..100);
        drop(first);
        assert_eq!(spare_bytes(), 0, "a slice still holds it");
        drop(slice);
        let second = gathered((1 << 20) - 5, 2);
        assert_eq!(second.as_ptr(), address);
        assert!(second.len() == (1 << 20) - 5 && second.iter().all(|&byte| byte == 2));
        // Small messages do not take it, and leave nothing behind.
        drop(second);
        assert_ne!(gathered(1000, 3).as_ptr(), address);
        assert_eq!(spare_bytes(), 1 << 20);
    }

    #[test]
    fn what_waits_is_bounded() {
        let messages: Vec<Bytes> = (0..20).map(|_| gathered(1 << 20, 0)).collect();
        drop(messages);
        assert_eq!(spare_bytes(), SPARE_BYTES_MAX);
    }
}
