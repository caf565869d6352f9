//! What a server says: heads, messages, trailers, each written into the output or queued behind the client's windows.

use bytes::Bytes;

use super::ServerConnection;
use crate::grpc::compress::{self, Compressing, GZIP};
use crate::grpc::head::{
    CONTENT_TYPE, CONTENT_TYPE_GRPC, GRPC_ENCODING, GRPC_STATUS, custom_fields,
};
use crate::grpc::message::{Message, PREFIX_BYTES, SendError, prefix};
use crate::grpc::metadata::encode_base64;
use crate::grpc::status::{Code, Status, percent_encode};
use crate::h2::hpack::{Encoder, Indexing, encode::literal};
use crate::h2::queue::REFERENCE_BYTES_MIN;
use crate::h2::{Fields, Limits, Refusal, StreamId};

fn encode_ok_head(encoder: &mut Encoder, out: &mut Vec<u8>) {
    encoder.field(out, b":status", b"200", Indexing::Index);
    encoder.field(out, CONTENT_TYPE, CONTENT_TYPE_GRPC, Indexing::Index);
}

impl ServerConnection {
    /// Sends the head of an answer; `gzip` names it as the encoding of its messages.
    #[inline]
    fn put_ok_head(&mut self, stream: StreamId, gzip: bool) {
        if gzip {
            return self.put_head(stream, true, &[]);
        }
        let cache = &mut self.ok_head;
        self.core.put_block(stream.number(), false, |encoder, out| {
            cache.put(encoder, out, encode_ok_head);
        });
        self.core.streams.at(stream.slot()).headers_sent = true;
    }

    fn put_head(&mut self, stream: StreamId, gzip: bool, metadata: &[(&str, &[u8])]) {
        let scratch = &mut self.scratch;
        self.core.put_block(stream.number(), false, |encoder, out| {
            encode_ok_head(encoder, out);
            if gzip {
                encoder.field(out, GRPC_ENCODING, GZIP, Indexing::Index);
            }
            custom_fields(metadata, scratch, &mut |name, value| {
                encoder.repeating(out, name, value)
            });
        });
        self.core.streams.at(stream.slot()).headers_sent = true;
    }

    /// Says when the messages of an answer that follow are compressed, if the client takes gzip. Messages can only be compressed
    /// if this is called before the first of them, or if `Limits::compress_bytes_min` has it so.
    pub fn set_compressing(&mut self, stream: StreamId, compressing: Compressing) {
        let Some(entry) = self.core.streams.get_mut(stream) else { return };
        entry.app.compressing = compressing;
        if !entry.headers_sent {
            entry.app.announces_gzip = entry.app.accepts_gzip;
        }
    }

    /// The message in gzip, if that is allowed and wanted.
    #[inline]
    fn deflate(&mut self, stream: StreamId, message: &Message<'_>) -> Option<Bytes> {
        let min = self.core.limits.compress_bytes_min as usize;
        let call = &self.core.streams.at(stream.slot()).app;
        if !call.announces_gzip || message.is_empty() {
            return None;
        }
        let bytes_max = match call.compressing {
            Compressing::Never => return None,
            Compressing::WhereItPays if message.len() < min => return None,
            Compressing::WhereItPays => message.len(),
            Compressing::Always => {
                // Noise grows a little.
                let grown = message.len() + message.len() / 8 + 64;
                if self.core.queue_has_room(PREFIX_BYTES + grown) { grown } else { message.len() }
            }
        };
        compress::deflate([message.head, &message.tail], bytes_max).map(Bytes::from)
    }

    /// Sends or queues a message behind its prefix.
    #[inline]
    fn put_message(&mut self, slot: usize, message: &Message<'_>, deflated: Option<Bytes>) {
        let Message { head, tail } = message;
        self.counts.messages_sent += 1;
        self.counts.last_sent_ns = self.core.now_ns;
        let taken = match deflated {
            None => self.core.send_data(slot, &message.prefix(), head, tail, false),
            Some(tail) => self.core.send_data(slot, &prefix(true, tail.len()), b"", &tail, false),
        };
        debug_assert!(taken);
    }

    /// Answers a call with one message and status OK. False when the call is gone. An answer for which the connection's
    /// queue has no room becomes RESOURCE_EXHAUSTED.
    pub fn respond(
        &mut self,
        stream: StreamId,
        message: Message<'_>,
        trailers: &[(&str, &[u8])],
    ) -> bool {
        if !self.answerable(stream) {
            return false;
        }
        if self.is_web(stream) {
            return self.web_respond(stream, message, trailers);
        }
        if message.len() > self.core.limits.send_bytes_max as usize {
            return self.too_large_to_send(stream, message.len(), trailers);
        }
        if !self.core.queue_has_room(PREFIX_BYTES + message.len()) {
            self.core.refusals.count(Refusal::Queued);
            let message = "carried out, but the reply did not fit: the client reads too slowly";
            let code = Code::ResourceExhausted;
            return self.fail(stream, &Status { code, message, details: &[], trailers });
        }
        let deflated = self.deflate(stream, &message);
        if !self.core.streams.at(stream.slot()).headers_sent {
            self.put_ok_head(stream, deflated.is_some());
        }
        self.put_message(stream.slot(), &message, deflated);
        self.put_trailers(stream, Code::Ok, trailers, |_, _| {});
        true
    }

    #[cold]
    fn too_large_to_send(
        &mut self,
        stream: StreamId,
        bytes: usize,
        trailers: &[(&str, &[u8])],
    ) -> bool {
        let max = self.core.limits.send_bytes_max;
        self.core.refusals.count(Refusal::ReplySize);
        let message = format!("carried out, but the reply of {bytes} bytes is larger than {max}");
        let code = Code::ResourceExhausted;
        self.fail(stream, &Status { code, message: &message, details: &[], trailers })
    }

    /// Ends a call that has failed: trailers alone when nothing was sent, else trailers behind what was sent. False when the
    /// call is gone. Details that do not fit `Limits::trailer_bytes_max` are left out, then the message is cut.
    pub fn fail(&mut self, stream: StreamId, status: &Status<'_>) -> bool {
        if !self.answerable(stream) {
            return false;
        }
        if self.is_web(stream) {
            return self.web_fail(stream, status);
        }
        let max = self.core.limits.trailer_bytes_max as usize;
        let custom: usize =
            status.trailers.iter().map(|(name, v)| name.len() + v.len() * 4 / 3).sum();
        let room = max.saturating_sub(custom);
        let details_bytes = status.details.len() * 4 / 3 + 32;
        let with_details =
            !status.details.is_empty() && details_bytes + status.message.len() <= room;
        let message_room = if with_details { room - details_bytes } else { room };
        let mut is_whole = with_details || status.details.is_empty();
        self.put_trailers(stream, status.code, status.trailers, |out, scratch| {
            if !status.message.is_empty() {
                scratch.clear();
                is_whole &= percent_encode(status.message, message_room, scratch);
                out(b"grpc-message", scratch);
            }
            if with_details {
                scratch.clear();
                encode_base64(status.details, scratch);
                out(b"grpc-status-details-bin", scratch);
            }
        });
        if !is_whole {
            self.core.refusals.count(Refusal::TrailerSize);
        }
        true
    }

    /// Ends the answer: writes or queues the trailers; `more` shows further fields.
    #[inline]
    fn put_trailers(
        &mut self,
        stream: StreamId,
        code: Code,
        trailers: &[(&str, &[u8])],
        more: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]), &mut Vec<u8>),
    ) {
        let slot = stream.slot();
        self.finish_call(stream);
        match code {
            Code::Ok => self.counts.streams_succeeded += 1,
            _ => self.counts.streams_failed += 1,
        }
        let scratch = &mut self.scratch;
        let trailers_only = !self.core.streams.at(slot).headers_sent;
        if !self.core.queue_is_empty(slot) {
            let mut fields = Fields::new();
            fields.push(GRPC_STATUS, code.digits().as_bytes());
            let mut push = |name: &[u8], value: &[u8]| fields.push(name, value);
            more(&mut push, scratch);
            custom_fields(trailers, scratch, &mut push);
            self.core.queue_trailers(slot, fields);
            self.core.make_ready(slot);
            return;
        }
        let cache = &mut self.ok_trailers;
        self.core.put_block(stream.number(), true, |encoder, out| {
            if trailers_only {
                encode_ok_head(encoder, out);
            }
            if code == Code::Ok {
                cache.put(encoder, out, |encoder, out| {
                    encoder.field(out, GRPC_STATUS, b"0", Indexing::Index);
                });
            } else {
                literal(out, GRPC_STATUS, code.digits().as_bytes());
            }
            let mut push = |name: &[u8], value: &[u8]| literal(out, name, value);
            more(&mut push, scratch);
            custom_fields(trailers, scratch, &mut |name, value| {
                encoder.repeating(out, name, value)
            });
        });
        self.core.streams.at(slot).headers_sent = true;
        self.core.end_local(slot);
    }

    /// Sends the head of a streaming answer with custom metadata; without it the first message sends a plain one.
    pub fn send_headers(&mut self, stream: StreamId, metadata: &[(&str, &[u8])]) -> bool {
        if !self.answerable(stream)
            || self.core.streams.at(stream.slot()).headers_sent
            || self.is_web(stream)
        {
            return false;
        }
        let gzip = self.core.streams.at(stream.slot()).app.announces_gzip;
        self.put_head(stream, gzip, metadata);
        true
    }

    /// Sends or queues one message of a streaming answer. `Ok(false)`: it was taken, but wait for `Writable` before the next.
    pub fn send_message(
        &mut self,
        stream: StreamId,
        message: Message<'_>,
    ) -> Result<bool, SendError> {
        self.try_send(stream, &message)
    }

    /// The same for a message that the caller keeps until it was taken.
    #[inline]
    pub(crate) fn try_send(
        &mut self,
        stream: StreamId,
        message: &Message<'_>,
    ) -> Result<bool, SendError> {
        if self.join_message(stream, message) {
            return Ok(true);
        }
        if !self.answerable(stream) {
            return Err(SendError::Closed);
        }
        if self.is_web(stream) {
            return self.web_send(stream, message);
        }
        let bytes = PREFIX_BYTES + message.len();
        let Limits { queue_bytes_max: queue, send_bytes_max: max, .. } = *self.core.limits;
        if bytes > queue as usize || message.len() > max as usize {
            let too_large = message.len() > max as usize;
            self.core.refusals.count(if too_large { Refusal::ReplySize } else { Refusal::Queued });
            self.violation(stream, Code::ResourceExhausted, "a message too large to be sent");
            return Err(SendError::Closed);
        }
        if !self.core.queue_has_room(bytes) {
            self.core.want_room(stream.slot());
            return Err(SendError::QueueFull);
        }
        let deflated = self.deflate(stream, message);
        let entry = self.core.streams.at(stream.slot());
        if !entry.headers_sent {
            let gzip = entry.app.announces_gzip;
            self.put_ok_head(stream, gzip);
        }
        self.put_message(stream.slot(), message, deflated);
        Ok(self.core.is_writable(stream.slot()))
    }

    /// Sends a small message behind the one before it, in the same frame: the usual case where there are many. `false`: nothing
    /// was taken.
    #[inline]
    fn join_message(&mut self, stream: StreamId, message: &Message<'_>) -> bool {
        if message.tail.len() >= REFERENCE_BYTES_MIN
            || message.len() > self.core.limits.send_bytes_max as usize
            || self.core.is_closed()
        {
            return false;
        }
        let Some(entry) = self.core.streams.get(stream) else { return false };
        let call = &entry.app;
        if !entry.headers_sent || call.finished || call.web.is_some() || call.announces_gzip {
            return false;
        }
        let parts = [message.head, &message.tail];
        let joined = self.core.join_data(stream.slot(), message.prefix(), parts);
        if joined {
            self.counts.messages_sent += 1;
            self.counts.last_sent_ns = self.core.now_ns;
        }
        joined
    }

    /// Ends a streaming answer with status OK, after what is queued.
    pub fn finish(&mut self, stream: StreamId, trailers: &[(&str, &[u8])]) -> bool {
        if !self.answerable(stream) {
            return false;
        }
        if self.is_web(stream) {
            return self.web_finish(stream, trailers);
        }
        self.put_trailers(stream, Code::Ok, trailers, |_, _| {});
        true
    }

    /// Whether a stream has room for another message; if not, `Writable` will say when.
    pub fn is_writable(&self, stream: StreamId) -> bool {
        self.answerable(stream)
            && self.core.streams.get(stream).is_some_and(|entry| {
                entry.queue_bytes < self.core.limits.stream_queue_bytes as usize
            })
    }
}
