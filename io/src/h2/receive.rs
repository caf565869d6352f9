//! Frames in (RFC 9113, sections 5 and 6): stream states, settings, windows, and the budgets against floods.

use super::connection::{CloseReason, Connection, DRAIN_PING, Fault, Incoming, Phase, Role, Sink};
use super::frame::{self, ErrorCode, FrameHeader, HEADER_BYTES, flag, kind, setting};
use super::keepalive::KEEPALIVE_PING;
use super::refusal::Refusal;
use super::state::{Received, State, Verdict};
use super::stream::{Recycle, StreamId};
use bytes::Bytes;

pub(super) type Handled = Result<Option<Incoming>, Fault>;

pub(super) const fn protocol(reason: &'static str) -> Fault {
    Fault::Connection(ErrorCode::PROTOCOL_ERROR, reason)
}

pub(super) const fn size(reason: &'static str) -> Fault {
    Fault::Connection(ErrorCode::FRAME_SIZE_ERROR, reason)
}

pub(super) const fn calm(kind: Refusal, reason: &'static str) -> Fault {
    Fault::Limit(kind, reason)
}

impl<T: Recycle> Connection<T> {
    /// Works on until there is something to tell; `None` when all that was accepted is processed.
    #[inline]
    pub(crate) fn poll<S: Sink>(&mut self, sink: &mut S) -> Option<Incoming> {
        if let Some(stream) = self.writable.pop_front() {
            return Some(Incoming::Writable { stream });
        }
        while let Some(stream) = self.too_slow.pop_front() {
            if self.streams.get(stream).is_some() {
                return Some(Incoming::Reset { stream, code: ErrorCode::ENHANCE_YOUR_CALM });
            }
        }
        if self.inbox.is_empty() {
            return None;
        }
        // Out of `self` while it is read, so that the handlers can change everything else.
        let inbox = std::mem::take(&mut self.inbox);
        while let Some(bytes) = inbox[self.position..].first_chunk::<HEADER_BYTES>() {
            if self.is_closed() {
                return None;
            }
            let header = FrameHeader::parse(bytes);
            let start = self.position + HEADER_BYTES;
            if header.length > self.limits.frame_bytes_max {
                let reason = "frame larger than SETTINGS_MAX_FRAME_SIZE";
                self.cut_off(Refusal::FrameSize, ErrorCode::FRAME_SIZE_ERROR, reason);
                return None;
            }
            self.position = start + header.length as usize;
            match self.frame(header, &inbox, start, sink) {
                Ok(None) => {}
                Ok(Some(incoming)) => {
                    if self.position < inbox.len() && !self.is_closed() {
                        self.inbox = inbox;
                    }
                    return Some(incoming);
                }
                Err(fault) => match self.fault(fault) {
                    None => {}
                    Some(incoming) => {
                        if self.position < inbox.len() {
                            self.inbox = inbox;
                        }
                        return Some(incoming);
                    }
                },
            }
        }
        None
    }

    /// What a frame did wrong has its consequence, and is counted.
    #[cold]
    fn fault(&mut self, fault: Fault) -> Option<Incoming> {
        let fault = match fault {
            Fault::Stream(number, code) => match self.stream_error(number, code) {
                Ok(incoming) => return incoming,
                Err(fault) => fault,
            },
            fault => fault,
        };
        match fault {
            Fault::Connection(code, reason) => {
                self.cut_off(Refusal::ConnectionError, code, reason);
            }
            Fault::Limit(kind, reason) => self.cut_off(kind, ErrorCode::ENHANCE_YOUR_CALM, reason),
            Fault::Stream(..) => {}
        }
        None
    }

    #[inline]
    fn frame<S: Sink>(
        &mut self,
        header: FrameHeader,
        inbox: &Bytes,
        start: usize,
        sink: &mut S,
    ) -> Handled {
        let payload = &inbox[start..start + header.length as usize];
        if self.phase == Phase::FirstSettings {
            if header.kind != kind::SETTINGS || header.has(flag::ACK) {
                return Err(protocol("the first frame has to be SETTINGS"));
            }
            self.phase = Phase::Open;
        }
        if let Some(block) = &self.block
            && (header.kind != kind::CONTINUATION || header.stream != block.stream)
        {
            return Err(protocol("a header block was interrupted"));
        }
        match header.kind {
            kind::DATA => self.data(header, inbox, start),
            kind::HEADERS => self.headers(header, payload, sink),
            kind::CONTINUATION => self.continuation(header, payload, sink),
            kind::WINDOW_UPDATE => self.window_update(header, payload),
            kind::RST_STREAM => self.rst_stream(header, payload),
            kind::SETTINGS => self.settings(header, payload),
            kind::PING => self.ping(header, payload),
            kind::GOAWAY => self.goaway(header, payload),
            kind::PRIORITY => self.priority(header, payload),
            kind::PUSH_PROMISE => Err(protocol("PUSH_PROMISE is not allowed here")),
            _ => self.idle_frame(Refusal::IdleFrames),
        }
    }

    /// A frame that asks for nothing: tolerated at a rate.
    pub(super) fn idle_frame(&mut self, kind: Refusal) -> Handled {
        if self.budgets.idle_frames.take(self.now_ns) {
            Ok(None)
        } else {
            Err(calm(kind, "too many frames without effect"))
        }
    }

    /// DATA without a byte that ends nothing: tolerated at a rate.
    fn empty_data(&mut self) -> Handled {
        if self.budgets.empty_data.take(self.now_ns) {
            Ok(None)
        } else {
            Err(calm(Refusal::EmptyData, "too many empty DATA frames"))
        }
    }

    #[inline]
    fn data(&mut self, header: FrameHeader, inbox: &Bytes, start: usize) -> Handled {
        let (length, number) = (header.length, header.stream);
        if number == 0 {
            return Err(protocol("DATA on stream 0"));
        }
        let (state, slot) = self.locate(number);
        let verdict = state.on(Received::Data);
        if let Verdict::ConnectionError(code) = verdict {
            return Err(Fault::Connection(code, "DATA on a stream that was not opened"));
        }
        let mut end = start + length as usize;
        let mut start = start;
        if header.has(flag::PADDED) {
            let Some(&pad) = inbox[start..end].first() else {
                return Err(size("padded DATA without a pad length"));
            };
            start += 1;
            if usize::from(pad) > end - start {
                return Err(protocol("more padding than payload"));
            }
            end -= usize::from(pad);
        }
        if !self.receive_window.receive(length) {
            return Err(Fault::Connection(
                ErrorCode::FLOW_CONTROL_ERROR,
                "more DATA than the connection's window",
            ));
        }
        let payload_bytes = (end - start) as u32;
        let (Some(slot), Verdict::Accept) = (slot, verdict) else {
            // Nobody will consume it: the connection's window opens again at once.
            self.release_connection(length);
            return match verdict {
                Verdict::StreamError(code) => Err(Fault::Stream(number, code)),
                _ if payload_bytes == 0 => self.empty_data(),
                _ => Ok(None),
            };
        };
        let stream = self.streams.at(slot);
        if !stream.headers_received {
            self.release_connection(length);
            return Err(Fault::Stream(number, ErrorCode::PROTOCOL_ERROR));
        }
        let end_stream = header.has(flag::END_STREAM);
        let fits = stream.receive_window.receive(length);
        let mut content_ok = true;
        if let Some(left) = &mut stream.content_left {
            match left.checked_sub(u64::from(payload_bytes)) {
                Some(rest) => {
                    *left = rest;
                    content_ok = rest == 0 || !end_stream;
                }
                None => content_ok = false,
            }
        }
        if !fits || !content_ok {
            let code = if fits { ErrorCode::PROTOCOL_ERROR } else { ErrorCode::FLOW_CONTROL_ERROR };
            self.release_connection(length);
            return Err(Fault::Stream(number, code));
        }
        stream.remote_closed = end_stream;
        stream.received_bytes = stream.received_bytes.saturating_add(payload_bytes);
        let stream = self.streams.id(slot);
        if payload_bytes != length {
            self.release(stream, length - payload_bytes);
        }
        if payload_bytes == 0 && !end_stream {
            return self.empty_data();
        }
        Ok(Some(Incoming::Data { stream, payload: inbox.slice(start..end), end: end_stream }))
    }

    fn window_update(&mut self, header: FrameHeader, payload: &[u8]) -> Handled {
        let Ok(bytes) = <[u8; 4]>::try_from(payload) else {
            return Err(size("WINDOW_UPDATE is four bytes"));
        };
        let increment = i64::from(u32::from_be_bytes(bytes) & frame::WINDOW_MAX);
        if !self.budgets.window_updates.take(self.now_ns) {
            return Err(calm(Refusal::WindowUpdates, "too many WINDOW_UPDATE frames"));
        }
        if header.stream == 0 {
            if increment == 0 {
                return Err(protocol("WINDOW_UPDATE of 0"));
            }
            return match self.send_window.shift(increment) {
                Ok(()) => Ok(None),
                Err(_) => Err(Fault::Connection(
                    ErrorCode::FLOW_CONTROL_ERROR,
                    "the connection's window grew past 2^31-1",
                )),
            };
        }
        let (state, slot) = self.locate(header.stream);
        let slot = match (state.on(Received::WindowUpdate), slot) {
            (Verdict::Accept, Some(slot)) => slot,
            (Verdict::ConnectionError(code), _) => {
                return Err(Fault::Connection(code, "WINDOW_UPDATE on an idle stream"));
            }
            // Crossed with the end of the stream, as happens all the time.
            _ => return self.idle_frame(Refusal::IdleFrames),
        };
        if increment == 0 {
            return Err(Fault::Stream(header.stream, ErrorCode::PROTOCOL_ERROR));
        }
        if self.streams.at(slot).send_window.shift(increment).is_err() {
            return Err(Fault::Stream(header.stream, ErrorCode::FLOW_CONTROL_ERROR));
        }
        self.make_ready(slot);
        Ok(None)
    }

    fn rst_stream(&mut self, header: FrameHeader, payload: &[u8]) -> Handled {
        let Ok(bytes) = <[u8; 4]>::try_from(payload) else {
            return Err(size("RST_STREAM is four bytes"));
        };
        if header.stream == 0 {
            return Err(protocol("RST_STREAM on stream 0"));
        }
        let (state, slot) = self.locate(header.stream);
        let slot = match (state.on(Received::RstStream), slot) {
            (Verdict::Accept, Some(slot)) => slot,
            (Verdict::ConnectionError(code), _) => {
                return Err(Fault::Connection(code, "RST_STREAM on an idle stream"));
            }
            _ => return self.idle_frame(Refusal::IdleFrames),
        };
        if self.role == Role::Server && !self.budgets.peer_resets.take(self.now_ns) {
            return Err(calm(Refusal::PeerResets, "too many streams reset"));
        }
        let stream = self.streams.id(slot);
        let code = ErrorCode(u32::from_be_bytes(bytes));
        Ok(Some(Incoming::Reset { stream, code }))
    }

    fn settings(&mut self, header: FrameHeader, payload: &[u8]) -> Handled {
        if header.stream != 0 {
            return Err(protocol("SETTINGS on a stream"));
        }
        if header.has(flag::ACK) {
            if !payload.is_empty() {
                return Err(size("acknowledged SETTINGS carry nothing"));
            }
            if !self.settings_acknowledged {
                self.settings_acknowledged = true;
                self.decoder.set_table_bytes_max(self.limits.header_table_bytes as usize);
                let shrunk = frame::WINDOW_DEFAULT.saturating_sub(self.limits.stream_window_bytes);
                if shrunk > 0 {
                    let live: Vec<usize> = self.streams.live().collect();
                    for slot in live {
                        self.streams.at(slot).receive_window.shrink(shrunk);
                    }
                }
                return Ok(None);
            }
            return self.idle_frame(Refusal::IdleFrames);
        }
        if !payload.len().is_multiple_of(6) {
            return Err(size("SETTINGS are six bytes each"));
        }
        if !self.budgets.settings.take(self.now_ns) {
            return Err(calm(Refusal::Settings, "too many SETTINGS"));
        }
        for entry in payload.chunks_exact(6) {
            let id = u16::from_be_bytes([entry[0], entry[1]]);
            let value = u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]);
            match id {
                setting::HEADER_TABLE_SIZE => self.encoder.set_table_bytes_max(value as usize),
                setting::ENABLE_PUSH if value > 1 || (value == 1 && self.role == Role::Client) => {
                    return Err(protocol("ENABLE_PUSH has to be 0 or a client's 1"));
                }
                setting::MAX_CONCURRENT_STREAMS => self.peer.streams_max = value,
                setting::INITIAL_WINDOW_SIZE => self.initial_window(value)?,
                setting::MAX_FRAME_SIZE => {
                    if !(frame::FRAME_BYTES_DEFAULT..=frame::FRAME_BYTES_MAX).contains(&value) {
                        return Err(protocol("MAX_FRAME_SIZE out of range"));
                    }
                    self.peer.frame_bytes_max = value;
                }
                setting::MAX_HEADER_LIST_SIZE => self.peer.header_list_bytes_max = value,
                _ => {}
            }
        }
        self.control_room()?;
        frame::put_header(&mut self.output.inline, 0, kind::SETTINGS, flag::ACK, 0);
        Ok(None)
    }

    fn initial_window(&mut self, value: u32) -> Result<(), Fault> {
        const OVERFLOW: Fault =
            Fault::Connection(ErrorCode::FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE too large");
        if value > frame::WINDOW_MAX {
            return Err(OVERFLOW);
        }
        let delta = i64::from(value) - i64::from(self.peer.initial_window);
        self.peer.initial_window = value;
        let live: Vec<usize> = self.streams.live().collect();
        for slot in live {
            let stream = self.streams.at(slot);
            if stream.local_closed {
                continue; // nothing will be sent, so there is no window to overflow (section 6.9.2)
            }
            stream.send_window.shift(delta).map_err(|_| OVERFLOW)?;
            self.make_ready(slot);
        }
        Ok(())
    }

    fn ping(&mut self, header: FrameHeader, payload: &[u8]) -> Handled {
        if header.stream != 0 {
            return Err(protocol("PING on a stream"));
        }
        let Ok(bytes) = <[u8; 8]>::try_from(payload) else {
            return Err(size("PING is eight bytes"));
        };
        if header.has(flag::ACK) {
            if bytes == KEEPALIVE_PING && self.keepalive.answered() {
                return Ok(None);
            }
            if bytes == DRAIN_PING {
                self.drain_last();
                return Ok(None);
            }
            return self.idle_frame(Refusal::IdleFrames);
        }
        let fair = self.role == Role::Client || self.keepalive.pinged(&self.limits, self.now_ns);
        if !fair || !self.budgets.pings.take(self.now_ns) {
            return Err(calm(Refusal::Pings, "too_many_pings"));
        }
        self.control_room()?;
        frame::put_ping(&mut self.output.inline, true, bytes);
        Ok(None)
    }

    fn goaway(&mut self, header: FrameHeader, payload: &[u8]) -> Handled {
        if header.stream != 0 {
            return Err(protocol("GOAWAY on a stream"));
        }
        let Some(bytes) = payload.first_chunk::<8>() else {
            return Err(size("GOAWAY is at least eight bytes"));
        };
        let [a, b, c, d, e, f, g, h] = *bytes;
        let last = u32::from_be_bytes([a, b, c, d]) & frame::STREAM_ID_MAX;
        let code = ErrorCode(u32::from_be_bytes([e, f, g, h]));
        if self.peer_goaway.is_some() && !self.budgets.settings.take(self.now_ns) {
            return Err(calm(Refusal::Settings, "too many GOAWAYs"));
        }
        self.peer_goaway = Some((last, code));
        if self.role == Role::Server && code != ErrorCode::NO_ERROR {
            self.close(CloseReason::Peer(code));
            return Ok(None);
        }
        if self.role == Role::Server && self.streams.len() == 0 {
            self.close(CloseReason::Done);
        }
        Ok(Some(Incoming::GoAway { last }))
    }

    fn priority(&mut self, header: FrameHeader, payload: &[u8]) -> Handled {
        if header.stream == 0 {
            return Err(protocol("PRIORITY on stream 0"));
        }
        let Ok(bytes) = <[u8; 5]>::try_from(payload) else {
            return self.priority_error(header.stream, ErrorCode::FRAME_SIZE_ERROR);
        };
        if dependency(&bytes) == header.stream {
            return self.priority_error(header.stream, ErrorCode::PROTOCOL_ERROR);
        }
        self.idle_frame(Refusal::Priorities)
    }

    /// A stream error, but an idle stream cannot be reset (section 5.1).
    fn priority_error(&mut self, number: u32, code: ErrorCode) -> Handled {
        match self.locate(number).0 {
            State::Idle | State::Barred => Err(Fault::Connection(code, "invalid PRIORITY")),
            _ => Err(Fault::Stream(number, code)),
        }
    }

    /// RST_STREAM for what the peer did wrong. Err when it does so too often.
    fn stream_error(&mut self, number: u32, code: ErrorCode) -> Handled {
        if !self.budgets.provoked_resets.take(self.now_ns) {
            return Err(calm(Refusal::ProvokedResets, "too many stream errors provoked"));
        }
        self.control_room()?;
        self.refusals.count(match code {
            ErrorCode::REFUSED_STREAM => Refusal::Streams,
            _ => Refusal::StreamError,
        });
        frame::put_reset(&mut self.output.inline, number, code);
        self.reset_by_us.push(number);
        let Some(slot) = self.streams.find(number) else { return Ok(None) };
        let stream = self.streams.id(slot);
        Ok(Some(Incoming::Reset { stream, code }))
    }

    /// Answers to control frames need room in the output: a peer that only sends is cut off.
    fn control_room(&self) -> Result<(), Fault> {
        if self.output.inline.len() > self.limits.output_bytes_max as usize {
            return Err(calm(Refusal::Output, "the peer does not read"));
        }
        Ok(())
    }

    /// Payload of a stream was consumed: both windows may open again.
    #[inline]
    pub(crate) fn release(&mut self, stream: StreamId, bytes: u32) {
        self.release_connection(bytes);
        if let Some(entry) = self.streams.get_mut(stream)
            && !entry.remote_closed
            && let Some(increment) = entry.receive_window.release(bytes)
            && !matches!(self.phase, Phase::Closed(_))
        {
            frame::put_window_update(&mut self.output.inline, stream.number(), increment);
        }
    }

    /// Payload that was released is kept after all: both windows stay shut for as much more.
    #[inline]
    pub(crate) fn withhold(&mut self, stream: StreamId, bytes: u32) {
        self.receive_window.withhold(bytes);
        if let Some(entry) = self.streams.get_mut(stream) {
            entry.receive_window.withhold(bytes);
        }
    }

    #[inline]
    pub(crate) fn release_connection(&mut self, bytes: u32) {
        if let Some(increment) = self.receive_window.release(bytes)
            && !self.is_closed()
        {
            frame::put_window_update(&mut self.output.inline, 0, increment);
        }
    }
}

pub(super) fn dependency(priority: &[u8; 5]) -> u32 {
    u32::from_be_bytes([priority[0], priority[1], priority[2], priority[3]]) & frame::STREAM_ID_MAX
}
