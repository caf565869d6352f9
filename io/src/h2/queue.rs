//! DATA of one stream that waits for a window or for room in the output.
//!
//! Small messages stand behind one another in chunks, so that many of them cost few allocations; large payloads are kept by
//! reference. How much may wait is the connection's business (`Limits`), which counts the bytes.

use super::output::Output;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;

/// From this many bytes on a payload is written from where it lies instead of being copied into the output.
pub(crate) const REFERENCE_BYTES_MIN: usize = 4096;
/// Capacity of a chunk that more than one message is put into.
const CHUNK_BYTES: usize = 16 << 10;

#[derive(Debug, Default)]
pub(crate) struct Queue {
    chunks: VecDeque<Bytes>,
    /// Behind the chunks: what still grows.
    last: BytesMut,
}

impl Queue {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.last.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
        self.last = BytesMut::new();
    }

    /// Appends a copy of `parts`.
    pub(crate) fn push(&mut self, parts: [&[u8]; 3]) {
        let bytes = parts.iter().map(|part| part.len()).sum();
        if self.last.capacity() - self.last.len() < bytes {
            // The first message alone takes what it needs: most queues never hold a second one.
            let capacity = if self.is_empty() { bytes } else { bytes.max(CHUNK_BYTES) };
            self.seal();
            self.last = BytesMut::with_capacity(capacity);
        }
        parts.iter().for_each(|part| self.last.extend_from_slice(part));
    }

    /// Appends `bytes` by reference.
    pub(crate) fn push_shared(&mut self, bytes: Bytes) {
        self.seal();
        self.chunks.push_back(bytes);
    }

    fn seal(&mut self) {
        if !self.last.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.last).freeze());
        }
    }

    /// Moves that many bytes from the front into `output`; there have to be as many.
    pub(crate) fn move_to(&mut self, output: &mut Output, bytes: usize) {
        let mut left = bytes;
        while left > 0 {
            if self.chunks.is_empty() {
                self.seal();
            }
            let Some(front) = self.chunks.front_mut() else {
                unreachable!("no more is moved than is queued");
            };
            let part = left.min(front.len());
            if part >= REFERENCE_BYTES_MIN {
                output.push_large(front.split_to(part));
            } else {
                output.inline.extend_from_slice(&front[..part]);
                front.advance(part);
            }
            if front.is_empty() {
                self.chunks.pop_front();
            }
            left -= part;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_in_order_however_it_is_taken() {
        for taken in [1, 3, 1000, 5000, 70_000] {
            let (mut queue, mut expected) = (Queue::default(), Vec::new());
            for number in 0..2000u32 {
                let word = number.to_be_bytes();
                queue.push([&word, b"", &word[..2]]);
                expected.extend_from_slice(&word);
                expected.extend_from_slice(&word[..2]);
                if number % 500 == 7 {
                    let large = Bytes::from(vec![number as u8; 10_000]);
                    expected.extend_from_slice(&large);
                    queue.push_shared(large);
                }
            }
            let (mut found, mut left) = (Vec::new(), expected.len());
            while left > 0 {
                assert!(!queue.is_empty());
                let mut output = Output::default();
                let part = taken.min(left);
                queue.move_to(&mut output, part);
                output.segments().for_each(|segment| found.extend_from_slice(segment));
                left -= part;
            }
            assert!(queue.is_empty());
            assert!(found == expected, "in parts of {taken}");
        }
    }

    #[test]
    fn many_small_messages_share_few_chunks() {
        let mut queue = Queue::default();
        for _ in 0..1000 {
            queue.push([&[0; 5], &[1; 130], b""]);
        }
        queue.seal();
        assert!(queue.chunks.len() <= 2 + 135_000 / (CHUNK_BYTES - 135), "{}", queue.chunks.len());
    }
}
