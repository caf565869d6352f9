//! Frames out: heads, DATA within both windows, trailers, resets.
//!
//! What a window does not allow waits in its stream's queue, by reference where it is large, and moves on with WINDOW_UPDATE.
//! Streams with something to send take turns.

use super::connection::Connection;
use super::fields::Fields;
use super::frame::{self, ErrorCode, flag, kind};
use super::hpack::{Encoder, Indexing};
use super::limits::Limits;
use super::output::Output;
use super::queue::REFERENCE_BYTES_MIN;
use super::refusal::Refusal;
use super::stream::{Ending, Recycle, StreamId};
use bytes::Bytes;

/// Most bytes of one stream in a row, so that a large reply does not hold up the small ones.
const TURN_BYTES: usize = 64 << 10;

impl<T: Recycle> Connection<T> {
    /// Appends a HEADERS frame (and CONTINUATION frames if the peer's frames are too small). `encode` appends the block.
    #[inline]
    pub(crate) fn put_block(
        &mut self,
        number: u32,
        end_stream: bool,
        encode: impl FnOnce(&mut Encoder, &mut Vec<u8>),
    ) {
        let out = &mut self.output.inline;
        let start = out.len();
        let end = if end_stream { flag::END_STREAM } else { 0 };
        frame::put_header(out, 0, kind::HEADERS, end | flag::END_HEADERS, number);
        self.encoder.begin(out);
        encode(&mut self.encoder, out);
        let block_bytes = out.len() - start - frame::HEADER_BYTES;
        if block_bytes > self.peer.frame_bytes_max as usize {
            self.split_block(start, number, end);
        } else {
            let [_, a, b, c] = (block_bytes as u32).to_be_bytes();
            out[start..start + 3].copy_from_slice(&[a, b, c]);
        }
        self.budgets.pings.refill();
        self.keepalive.sent();
        self.budgets.window_updates.refill();
        self.budgets.idle_frames.refill();
    }

    /// Cuts the block at the end of the output into frames.
    #[cold]
    fn split_block(&mut self, start: usize, number: u32, end: u8) {
        let out = &mut self.output.inline;
        let block = out.split_off(start + frame::HEADER_BYTES);
        out.truncate(start);
        let parts = block.chunks(self.peer.frame_bytes_max as usize);
        let count = parts.len();
        for (nth, part) in parts.enumerate() {
            let last = if nth + 1 == count { flag::END_HEADERS } else { 0 };
            let (kind, flags) =
                if nth == 0 { (kind::HEADERS, end | last) } else { (kind::CONTINUATION, last) };
            frame::put_header(out, part.len(), kind, flags, number);
            out.extend_from_slice(part);
        }
    }

    /// Bytes of DATA that may be put into the output for this stream right now, in one frame.
    #[inline]
    pub(crate) fn room(&mut self, slot: usize) -> usize {
        if self.output.len() >= self.limits.output_bytes_high as usize {
            return 0;
        }
        let connection = self.send_window.available();
        let frame = self.peer.frame_bytes_max as usize;
        let stream = self.streams.at(slot);
        if !stream.queue.is_empty() {
            return 0;
        }
        stream.send_window.available().min(connection).min(frame)
    }

    /// Accounts for DATA that the caller has put into the output.
    #[inline]
    pub(crate) fn sent(&mut self, slot: usize, bytes: usize) {
        self.send_window.take(bytes);
        self.streams.at(slot).send_window.take(bytes);
        self.budgets.pings.refill();
        self.keepalive.sent();
        self.budgets.window_updates.refill();
    }

    /// Sends a small piece of DATA behind a prefix by making the last frame longer, which is its stream's; `false`: nothing was
    /// taken. What a frame means to budgets and clocks was accounted for when it was begun.
    #[inline]
    pub(crate) fn join_data<const PREFIX: usize>(
        &mut self,
        slot: usize,
        prefix: [u8; PREFIX],
        parts: [&[u8]; 2],
    ) -> bool {
        let bytes = PREFIX + parts[0].len() + parts[1].len();
        let stream = self.streams.at(slot);
        let window = stream.send_window.available().min(self.send_window.available());
        if bytes > window
            || !stream.queue.is_empty()
            || self.output.len() >= self.limits.output_bytes_high as usize
            || !self.output.join_data(
                stream.number,
                prefix,
                parts,
                self.peer.frame_bytes_max as usize,
            )
        {
            return false;
        }
        stream.send_window.take(bytes);
        self.send_window.take(bytes);
        true
    }

    /// Sends or queues DATA made of three parts. False when the connection's queue is full: nothing was taken.
    #[inline]
    pub(crate) fn send_data(
        &mut self,
        slot: usize,
        prefix: &[u8],
        head: &[u8],
        tail: &Bytes,
        end: bool,
    ) -> bool {
        let total = prefix.len() + head.len() + tail.len();
        if total <= self.room(slot) {
            let number = self.streams.at(slot).number;
            let frame_bytes_max = self.peer.frame_bytes_max as usize;
            self.output.put_data(number, total, end, frame_bytes_max, |output| {
                output.inline.extend_from_slice(prefix);
                output.inline.extend_from_slice(head);
                if tail.len() >= REFERENCE_BYTES_MIN {
                    output.push_large(tail.clone());
                } else if !tail.is_empty() {
                    output.inline.extend_from_slice(tail);
                }
            });
            self.sent(slot, total);
            if end {
                self.end_local(slot);
            }
            return true;
        }
        if !self.queue_has_room(total) {
            return false;
        }
        self.enqueue(slot, prefix, head, tail);
        if end {
            self.end_data(slot);
        }
        self.make_ready(slot);
        self.pump();
        true
    }

    /// Whether that many bytes may still be queued on this connection.
    #[inline]
    pub(crate) fn queue_has_room(&self, bytes: usize) -> bool {
        self.queue_bytes + bytes <= self.limits.queue_bytes_max as usize
    }

    fn enqueue(&mut self, slot: usize, prefix: &[u8], head: &[u8], tail: &Bytes) {
        let bytes = prefix.len() + head.len() + tail.len();
        self.queue_bytes += bytes;
        let stream = self.streams.at(slot);
        stream.queue_bytes += bytes;
        if tail.len() >= REFERENCE_BYTES_MIN {
            stream.queue.push([prefix, head, &[]]);
            stream.queue.push_shared(tail.clone());
        } else {
            stream.queue.push([prefix, head, tail]);
        }
    }

    /// Ends our side with END_STREAM on DATA, after what is queued.
    pub(crate) fn end_data(&mut self, slot: usize) {
        let stream = self.streams.at(slot);
        if stream.queue.is_empty() {
            let number = stream.number;
            let frame_bytes_max = self.peer.frame_bytes_max as usize;
            self.output.put_data(number, 0, true, frame_bytes_max, |_| ());
            self.end_local(slot);
        } else {
            stream.ending = Ending::Flag;
        }
    }

    /// Whether trailers can be written at once.
    #[inline]
    pub(crate) fn queue_is_empty(&mut self, slot: usize) -> bool {
        self.streams.at(slot).queue.is_empty()
    }

    /// Trailers to be sent after what is queued.
    pub(crate) fn queue_trailers(&mut self, slot: usize, trailers: Fields) {
        debug_assert!(!self.queue_is_empty(slot));
        self.streams.at(slot).ending = Ending::Trailers(Box::new(trailers));
    }

    /// END_STREAM is out. A server that ends first tells the client to stop (RFC 9113, section 8.1).
    #[inline]
    pub(crate) fn end_local(&mut self, slot: usize) {
        let stream = self.streams.at(slot);
        stream.local_closed = true;
        if stream.remote_closed {
            self.forget(slot);
        } else if self.role == super::connection::Role::Server {
            let number = stream.number;
            frame::put_reset(&mut self.output.inline, number, ErrorCode::NO_ERROR);
            self.reset_by_us.push(number);
            self.forget(slot);
        }
    }

    /// Resets a stream of our own accord.
    pub(crate) fn reset(&mut self, stream: StreamId, code: ErrorCode) {
        if self.streams.get(stream).is_none() {
            return;
        }
        if !self.is_closed() {
            frame::put_reset(&mut self.output.inline, stream.number(), code);
        }
        self.reset_by_us.push(stream.number());
        self.forget(stream.slot());
    }

    /// Takes an ended stream out of the table, with what is queued on it.
    #[inline]
    pub(crate) fn forget(&mut self, slot: usize) {
        self.closed.push(self.streams.at(slot).number);
        self.queue_bytes -= self.streams.remove(slot);
        self.offer_room();
        if self.streams.len() == 0 {
            self.clocks.idle_since_ns = self.now_ns;
        }
        self.close_if_drained();
    }

    /// Puts a stream into the round of those that may send, if it has something and its window is open.
    pub(crate) fn make_ready(&mut self, slot: usize) {
        let stream = self.streams.at(slot);
        if !stream.in_ready && !stream.queue.is_empty() && stream.send_window.available() > 0 {
            stream.in_ready = true;
            self.ready.push_back(slot as u32);
        }
    }

    /// Moves queued DATA into the output, stream after stream, as far as the windows and the output's bound allow.
    #[inline]
    pub(crate) fn pump(&mut self) {
        if !self.ready.is_empty() {
            self.pump_ready();
        }
    }

    #[cold]
    fn pump_ready(&mut self) {
        let queued = self.queue_bytes;
        while self.send_window.available() > 0
            && self.output.len() < self.limits.output_bytes_high as usize
        {
            let Some(slot) = self.ready.pop_front() else { break };
            let slot = slot as usize;
            self.streams.at(slot).in_ready = false;
            if self.streams.at(slot).queue.is_empty() {
                continue;
            }
            self.pump_stream(slot);
        }
        if self.queue_bytes < queued {
            self.offer_room();
        }
    }

    /// A stream has to stop because the connection's queue is full: it becomes writable when that is half empty.
    #[cold]
    pub(crate) fn want_room(&mut self, slot: usize) {
        self.streams.at(slot).wants_room = true;
        self.room_wanted = true;
    }

    /// Wakes the streams that wait for the connection's queue, once others have left it.
    #[inline]
    fn offer_room(&mut self) {
        if self.room_wanted && self.queue_bytes <= self.limits.queue_bytes_max as usize / 2 {
            self.offer_room_to_all();
        }
    }

    #[cold]
    fn offer_room_to_all(&mut self) {
        self.room_wanted = false;
        let live: Vec<usize> = self.streams.live().collect();
        for slot in live {
            let stream = self.streams.at(slot);
            // Streams with a long queue of their own hear when it has become short.
            if stream.wants_room && stream.queue_bytes < self.limits.stream_queue_bytes as usize {
                stream.wants_room = false;
                let id = self.streams.id(slot);
                self.writable.push_back(id);
            }
        }
    }

    /// One stream's turn.
    fn pump_stream(&mut self, slot: usize) {
        let mut turn = TURN_BYTES;
        loop {
            let frame_bytes_max = self.peer.frame_bytes_max as usize;
            let connection = self.send_window.available();
            let stream = self.streams.at(slot);
            let bytes = stream
                .queue_bytes
                .min(stream.send_window.available())
                .min(connection)
                .min(frame_bytes_max);
            if bytes == 0 || turn == 0 {
                break;
            }
            turn = turn.saturating_sub(bytes);
            let last = bytes == stream.queue_bytes && matches!(stream.ending, Ending::Flag);
            self.output.put_data(stream.number, bytes, last, frame_bytes_max, |output| {
                stream.queue.move_to(output, bytes);
            });
            stream.queue_bytes -= bytes;
            stream.sent_bytes = stream.sent_bytes.saturating_add(bytes as u32);
            self.queue_bytes -= bytes;
            self.sent(slot, bytes);
        }
        let room_below = self.limits.stream_queue_bytes as usize;
        let stream = self.streams.at(slot);
        if stream.wants_room && stream.queue_bytes < room_below {
            stream.wants_room = false;
            let id = self.streams.id(slot);
            self.writable.push_back(id);
        }
        let stream = self.streams.at(slot);
        if !stream.queue.is_empty() {
            self.make_ready(slot);
            return;
        }
        match std::mem::take(&mut stream.ending) {
            Ending::Open => {}
            Ending::Flag => self.end_local(slot),
            Ending::Trailers(fields) => {
                let number = stream.number;
                self.put_block(number, true, |encoder, out| {
                    for (name, value, sensitive) in fields.iter_marked() {
                        let indexing = if sensitive { Indexing::Never } else { Indexing::Plain };
                        encoder.field(out, name, value, indexing);
                    }
                });
                self.end_local(slot);
            }
        }
    }

    /// Whether more may be queued on a stream; if not, its `Writable` is wanted.
    pub(crate) fn is_writable(&mut self, slot: usize) -> bool {
        let Limits { stream_queue_bytes, .. } = *self.limits;
        let stream = self.streams.at(slot);
        let room = stream.queue_bytes < stream_queue_bytes as usize;
        if !room && !std::mem::replace(&mut stream.wants_room, true) {
            self.refusals.count(Refusal::StreamQueue);
        }
        room
    }

    /// Takes everything there is to write in exchange for `output`, which is emptied.
    #[inline]
    pub(crate) fn swap_output(&mut self, output: &mut Output) {
        self.pump();
        output.clear();
        std::mem::swap(&mut self.output, output);
    }
}
