//! What a connection wants to have written: one buffer, and large payloads by reference between its parts.

use bytes::Bytes;

/// Bytes to write, in order. Small replies are always in `inline` alone, so that one `write` does it.
#[derive(Debug, Default)]
pub struct Output {
    /// Frames and small payloads.
    pub inline: Vec<u8>,
    /// Large payloads, each to be written after the first `at` bytes of `inline`; `at` never decreases.
    pub large: Vec<Large>,
    large_bytes: usize,
}

/// A payload that is written from where it lies.
#[derive(Debug, Clone)]
pub struct Large {
    /// How many bytes of `inline` come before it.
    pub at: usize,
    /// The payload.
    pub bytes: Bytes,
}

impl Output {
    /// Bytes in all.
    #[inline]
    pub fn len(&self) -> usize {
        self.inline.len() + self.large_bytes
    }

    /// Whether there is nothing to write.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.inline.is_empty() && self.large.is_empty()
    }

    /// Whether `inline` is all there is.
    #[inline]
    pub fn is_contiguous(&self) -> bool {
        self.large.is_empty()
    }

    /// Forgets everything and keeps the buffers.
    pub fn clear(&mut self) {
        self.inline.clear();
        self.large.clear();
        self.large_bytes = 0;
    }

    /// The slices to write, in order (for a vectored write). None is empty.
    pub fn segments(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        let inline = &self.inline;
        self.large
            .iter()
            .flat_map(move |large| {
                let before = &inline[start..large.at];
                start = large.at;
                [before, &large.bytes[..]]
            })
            .chain(std::iter::once(&inline[self.large.last().map_or(0, |last| last.at)..]))
            .filter(|slice| !slice.is_empty())
    }

    pub(crate) fn push_large(&mut self, bytes: Bytes) {
        self.large_bytes += bytes.len();
        self.large.push(Large { at: self.inline.len(), bytes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_come_in_order() {
        let mut output = Output::default();
        output.inline.extend_from_slice(b"ab");
        output.push_large(Bytes::from_static(b"LARGE"));
        output.push_large(Bytes::from_static(b"MORE"));
        output.inline.extend_from_slice(b"c");
        assert_eq!(output.segments().collect::<Vec<_>>(), [&b"ab"[..], b"LARGE", b"MORE", b"c"]);
        assert_eq!(output.len(), 12);
        output.clear();
        assert!(output.is_empty() && output.segments().next().is_none());
    }
}
