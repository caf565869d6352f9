//! What a connection wants to have written: one buffer, and large payloads by reference between its parts.

use super::frame;
use bytes::Bytes;

/// Bytes to write, in order. Small replies are always in `inline` alone, so that one `write` does it.
#[derive(Debug, Default)]
pub struct Output {
    /// Frames and small payloads.
    pub inline: Vec<u8>,
    /// Large payloads, each to be written after the first `at` bytes of `inline`; `at` never decreases.
    pub large: Vec<Large>,
    large_bytes: usize,
    last_data: Option<LastData>,
}

/// The DATA frame that was put last. More of the same stream may join it as long as nothing has been put behind it.
#[derive(Debug, Clone, Copy)]
struct LastData {
    stream: u32,
    /// Where its header begins in `inline`.
    start: usize,
    /// Bytes of its payload.
    bytes: usize,
    /// `inline` and `large` end here if nothing came behind it.
    end: (usize, usize),
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
        self.last_data = None;
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

    /// Puts the header of `bytes` more of DATA, or makes the last frame longer by them when it is the stream's, is open (no END_STREAM),
    /// stands at the end, and stays within `frame_bytes_max`. `put` then appends the payload.
    #[inline]
    pub(crate) fn put_data(
        &mut self,
        stream: u32,
        bytes: usize,
        end_stream: bool,
        frame_bytes_max: usize,
        put: impl FnOnce(&mut Self),
    ) {
        let here = (self.inline.len(), self.large.len());
        let flags = if end_stream { frame::flag::END_STREAM } else { 0 };
        let mut data = match self.last_data {
            Some(last)
                if last.stream == stream
                    && last.end == here
                    && last.bytes + bytes <= frame_bytes_max =>
            {
                let [_, a, b, c] = ((last.bytes + bytes) as u32).to_be_bytes();
                let header = &mut self.inline[last.start..last.start + frame::HEADER_BYTES];
                header[..3].copy_from_slice(&[a, b, c]);
                header[4] = flags;
                LastData { bytes: last.bytes + bytes, ..last }
            }
            _ => {
                frame::put_header(&mut self.inline, bytes, frame::kind::DATA, flags, stream);
                LastData { stream, start: here.0, bytes, end: here }
            }
        };
        put(self);
        data.end = (self.inline.len(), self.large.len());
        self.last_data = if end_stream { None } else { Some(data) };
    }

    /// Makes the last frame longer by a small payload behind a prefix, if it is the stream's and [`Output::put_data`] would; `false`:
    /// nothing was put.
    #[inline]
    pub(crate) fn join_data<const PREFIX: usize>(
        &mut self,
        stream: u32,
        prefix: [u8; PREFIX],
        [head, tail]: [&[u8]; 2],
        frame_bytes_max: usize,
    ) -> bool {
        let Some(last) = &mut self.last_data else { return false };
        let bytes = last.bytes + PREFIX + head.len() + tail.len();
        let is_open = last.stream == stream && last.end == (self.inline.len(), self.large.len());
        if !is_open || bytes > frame_bytes_max {
            return false;
        }
        let [_, a, b, c] = (bytes as u32).to_be_bytes();
        self.inline[last.start..last.start + 3].copy_from_slice(&[a, b, c]);
        self.inline.reserve(bytes - last.bytes);
        self.inline.extend_from_slice(&prefix);
        self.inline.extend_from_slice(head);
        if !tail.is_empty() {
            self.inline.extend_from_slice(tail);
        }
        last.bytes = bytes;
        last.end.0 = self.inline.len();
        true
    }

    pub(crate) fn push_large(&mut self, bytes: Bytes) {
        self.large_bytes += bytes.len();
        self.large.push(Large { at: self.inline.len(), bytes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9113, section 6.1: how DATA is cut into frames means nothing, but END_STREAM ends the stream.
    #[test]
    fn data_joins_the_last_frame_of_its_stream() {
        let mut output = Output::default();
        let mut put = |stream, text: &'static [u8], end| {
            output.put_data(stream, text.len(), end, 8, |output| {
                if text.len() > 3 {
                    output.push_large(Bytes::from_static(text));
                } else {
                    output.inline.extend_from_slice(text);
                }
            });
        };
        put(1, b"ab", false);
        put(1, b"LARGE", false);
        put(1, b"c", false);
        put(1, b"d", false); // the frame is full
        put(3, b"e", false);
        put(1, b"f", false);
        put(1, b"", true);
        put(1, b"g", false); // never behind END_STREAM
        let all = output.segments().collect::<Vec<_>>().concat();
        let mut frames = Vec::new();
        let mut rest = &all[..];
        while let Some((header, more)) = rest.split_first_chunk() {
            let header = frame::FrameHeader::parse(header);
            let (payload, more) = more.split_at(header.length as usize);
            frames.push((header.stream, payload, header.has(frame::flag::END_STREAM)));
            rest = more;
        }
        let expected: [(u32, &[u8], bool); 5] = [
            (1, b"abLARGEc", false),
            (1, b"d", false),
            (3, b"e", false),
            (1, b"f", true),
            (1, b"g", false),
        ];
        assert_eq!(frames, expected);
        output.inline.extend_from_slice(b"another frame");
        let before = output.inline.len();
        output.put_data(1, 0, true, 8, |_| ());
        assert_eq!(output.inline.len(), before + frame::HEADER_BYTES);
    }

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
