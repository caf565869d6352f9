//! HEADERS and CONTINUATION in: new streams, responses, trailers (RFC 9113, sections 4.3, 5.1 and 6.2).

use super::block::{Block, Head, HeadKind};
use super::connection::{Connection, Drain, Fault, Incoming, Sink};
use super::flow::{ReceiveWindow, SendWindow};
use super::frame::{self, ErrorCode, FrameHeader, flag};
use super::receive::{Handled, calm, dependency, protocol, size};
use super::refusal::Refusal;
use super::state::{Received, Verdict};
use super::stream::Recycle;

impl<T: Recycle> Connection<T> {
    pub(super) fn headers<S: Sink>(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        sink: &mut S,
    ) -> Handled {
        let number = header.stream;
        if number == 0 {
            return Err(protocol("HEADERS on stream 0"));
        }
        let mut block = payload;
        if header.flags & (flag::PADDED | flag::PRIORITY) != 0 {
            let mut pad = 0;
            if header.has(flag::PADDED) {
                let (&first, rest) =
                    block.split_first().ok_or(size("padded HEADERS without a pad length"))?;
                (pad, block) = (usize::from(first), rest);
            }
            if header.has(flag::PRIORITY) {
                let (priority, rest) =
                    block.split_first_chunk::<5>().ok_or(size("HEADERS too short"))?;
                block = rest;
                let depends_on_itself = dependency(priority) == number;
                let end = block.len().checked_sub(pad);
                block = &block[..end.ok_or(protocol("more padding than payload"))?];
                return self.block_part(header, block, depends_on_itself, sink);
            }
            let end = block.len().checked_sub(pad);
            block = &block[..end.ok_or(protocol("more padding than payload"))?];
        }
        self.block_part(header, block, false, sink)
    }

    #[inline]
    fn block_part<S: Sink>(
        &mut self,
        header: FrameHeader,
        part: &[u8],
        depends_on_itself: bool,
        sink: &mut S,
    ) -> Handled {
        let (stream, end_stream) = (header.stream, header.has(flag::END_STREAM));
        if part.len() > self.limits.header_block_bytes_max as usize {
            return Err(calm(Refusal::HeaderBlock, "header block too large"));
        }
        if header.has(flag::END_HEADERS) {
            return self.head(stream, end_stream, depends_on_itself, part, sink);
        }
        self.block = Some(Block {
            stream,
            end_stream,
            depends_on_itself,
            continuations: 0,
            begun_ns: self.now_ns,
            bytes: part.to_vec(),
        });
        Ok(None)
    }

    pub(super) fn continuation<S: Sink>(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        sink: &mut S,
    ) -> Handled {
        let Some(block) = &mut self.block else {
            return Err(protocol("CONTINUATION without a header block"));
        };
        block.continuations += 1;
        if block.continuations > self.limits.continuations_max {
            return Err(calm(Refusal::Continuations, "too many CONTINUATION frames"));
        }
        if block.bytes.len() + payload.len() > self.limits.header_block_bytes_max as usize {
            return Err(calm(Refusal::HeaderBlock, "header block too large"));
        }
        block.bytes.extend_from_slice(payload);
        if !header.has(flag::END_HEADERS) {
            return Ok(None);
        }
        match self.block.take() {
            Some(b) => self.head(b.stream, b.end_stream, b.depends_on_itself, &b.bytes, sink),
            None => Ok(None),
        }
    }

    /// A whole header block.
    fn head<S: Sink>(
        &mut self,
        number: u32,
        end: bool,
        depends_on_itself: bool,
        block: &[u8],
        sink: &mut S,
    ) -> Handled {
        let (state, slot) = self.locate(number);
        match (state.on(Received::Headers), slot) {
            (Verdict::Accept, Some(slot)) => return self.head_of_known(slot, end, block, sink),
            (Verdict::Accept, None) => {}
            (verdict, _) => {
                // Whatever becomes of it, the tables stay in step.
                self.decode_block(block, HeadKind::Ignored, sink)?;
                return match verdict {
                    Verdict::ConnectionError(code) => {
                        Err(Fault::Connection(code, "HEADERS on a stream that is not to have them"))
                    }
                    Verdict::StreamError(code) => Err(Fault::Stream(number, code)),
                    Verdict::Accept | Verdict::Ignore => self.idle_frame(Refusal::IdleFrames),
                };
            }
        }
        if let Drain::Last(_) = self.drain {
            // Announced as not processed: the client repeats it elsewhere.
            self.decode_block(block, HeadKind::Ignored, sink)?;
            self.reset_by_us.push(number);
            self.last_peer_stream = number;
            return Ok(None);
        }
        self.last_peer_stream = number;
        if self.streams.len() >= self.limits.streams_max as usize {
            self.decode_block(block, HeadKind::Ignored, sink)?;
            return Err(Fault::Stream(number, ErrorCode::REFUSED_STREAM));
        }
        let head = self.decode_block(block, HeadKind::Request, sink)?;
        if head.malformed || depends_on_itself {
            self.refusals.count(Refusal::MalformedHead);
            return Err(Fault::Stream(number, ErrorCode::PROTOCOL_ERROR));
        }
        if end && head.content_length.is_some_and(|length| length > 0) {
            return Err(Fault::Stream(number, ErrorCode::PROTOCOL_ERROR));
        }
        let slot = self.open(number);
        let stream = self.streams.at(slot);
        stream.headers_received = true;
        stream.remote_closed = end;
        stream.content_left = head.content_length;
        let stream = self.streams.id(slot);
        Ok(Some(Incoming::Head { stream, end, too_large: head.too_large }))
    }

    /// Puts a new stream into the table.
    #[inline]
    pub(crate) fn open(&mut self, number: u32) -> usize {
        let bytes = self.limits.stream_window_bytes;
        // Until the peer has seen our SETTINGS it goes by the default (section 6.9.2).
        let open =
            if self.settings_acknowledged { bytes } else { bytes.max(frame::WINDOW_DEFAULT) };
        self.streams.insert(
            number,
            SendWindow::new(self.peer.initial_window),
            ReceiveWindow::new(open, bytes),
        )
    }

    /// A response of ours as a client, or trailers.
    fn head_of_known<S: Sink>(
        &mut self,
        slot: usize,
        end: bool,
        block: &[u8],
        sink: &mut S,
    ) -> Handled {
        let stream = self.streams.at(slot);
        let number = stream.number;
        let received = stream.headers_received;
        let content_left = stream.content_left;
        let kind = self.head_kind(received);
        let Head { malformed, too_large, content_length, status, .. } =
            self.decode_block(block, kind, sink)?;
        let stream = self.streams.id(slot);
        if malformed {
            self.refusals.count(Refusal::MalformedHead);
        }
        if kind == HeadKind::Trailers {
            if malformed || !end || content_left.is_some_and(|left| left > 0) {
                return Err(Fault::Stream(number, ErrorCode::PROTOCOL_ERROR));
            }
            self.streams.at(slot).remote_closed = true;
            return Ok(Some(Incoming::Trailers { stream }));
        }
        // What never has content may say how long it would be (section 8.1.1).
        let bodiless = matches!(status, 204 | 304);
        if malformed || (end && !bodiless && content_length.is_some_and(|length| length > 0)) {
            return Err(Fault::Stream(number, ErrorCode::PROTOCOL_ERROR));
        }
        if (100..200).contains(&status) && !too_large {
            // Informational (section 8.1): another head follows.
            if end || status == 101 {
                return Err(Fault::Stream(number, ErrorCode::PROTOCOL_ERROR));
            }
            return self.idle_frame(Refusal::IdleFrames);
        }
        let entry = self.streams.at(slot);
        entry.headers_received = true;
        entry.remote_closed = end;
        entry.content_left = content_length;
        Ok(Some(Incoming::Head { stream, end, too_large }))
    }
}
