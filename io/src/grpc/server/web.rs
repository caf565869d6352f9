//! gRPC-Web and Connect over HTTP/2: what is not gRPC by its head becomes an exchange of [`crate::web`].
//!
//! None of it is on the way of a gRPC call.

use std::rc::Rc;

use bytes::Bytes;

use super::ServerConnection;
use crate::grpc::message::{Message, PREFIX_BYTES, SendError};
use crate::grpc::request::Event;
use crate::grpc::status::{Code, Status};
use crate::h2::hpack::Indexing;
use crate::h2::hpack::encode::literal;
use crate::h2::{Refusal, StreamId};
use crate::web::{Asked, Coding, Exchange, Part, Verdict, Web, begin};

/// A request that is not gRPC's, while its body comes and until it is answered.
#[derive(Debug)]
pub(super) enum Held {
    /// It becomes a call, or is one.
    Call(Box<Exchange>),
    /// It has its answer already, to be sent at its end.
    Answered(Part),
}

impl Held {
    /// Bytes of its body that are held.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Call(exchange) => exchange.held_bytes(),
            Self::Answered(_) => 0,
        }
    }
}

impl ServerConnection {
    /// Also serves gRPC-Web and Connect.
    pub fn serve_web(&mut self, web: Rc<Web>) {
        self.web = Some(web);
    }

    /// A head that is not gRPC's. False when nothing else is spoken here.
    pub(super) fn begin_web(&mut self, stream: StreamId, end: bool) -> bool {
        let Some(web) = self.web.clone() else { return false };
        let fields = std::mem::take(&mut self.sink.head.metadata);
        let sink = &self.sink;
        let (method, content_type) = sink.not_grpc();
        let without_body = method == b"HEAD";
        let asked = Asked {
            method,
            target: if sink.facts.route.is_none() { &sink.unknown_path } else { b"" },
            route: sink.facts.route,
            // Browsers speak HTTP/2 only over TLS, where a name has a certificate.
            host: "",
            content_type,
            grpc_timeout: sink.head.timeout,
            grpc_timeout_ok: sink.facts.timeout_ok,
            coding: Coding {
                grpc: sink.facts.encoding,
                grpc_accepts_gzip: sink.facts.accepts_gzip,
                http_accepts_gzip: sink.facts.http_accepts_gzip,
            },
            fields,
        };
        let held = match begin(&web, sink.route_of, asked) {
            Verdict::Call(exchange, head) => {
                self.core.streams.at(stream.slot()).app.head = head;
                Held::Call(exchange)
            }
            Verdict::Refused(mut exchange, code, message) => {
                self.counts.streams_failed += 1;
                Held::Answered(exchange.fail(&web.schema, &Status::new(code, &message)))
            }
            Verdict::Answer(answer) => {
                if answer.status == 403 {
                    self.core.refusals.count(Refusal::Origin);
                }
                self.count_answered(answer.status);
                let mut part = answer.into_part();
                if without_body {
                    part.tail = Bytes::new();
                }
                Held::Answered(part)
            }
        };
        self.core.streams.at(stream.slot()).app.web = Some(Box::new(held));
        if end {
            let event = self.web_data(stream, Bytes::new(), true);
            self.events.extend(event);
        }
        true
    }

    /// Counts a request by the status of its answer.
    fn count_answered(&mut self, status: u16) {
        match status {
            400.. => self.counts.streams_failed += 1,
            _ => self.counts.streams_succeeded += 1,
        }
    }

    fn count_sent(&mut self) {
        self.counts.messages_sent += 1;
        self.counts.last_sent_ns = self.core.now_ns;
    }

    /// A piece of a request's body.
    #[cold]
    pub(super) fn web_data(
        &mut self,
        stream: StreamId,
        payload: Bytes,
        end: bool,
    ) -> Option<Event> {
        let payload_bytes = payload.len() as u32;
        let event = self.take_piece(stream, payload, end);
        self.core.release(stream, payload_bytes);
        event
    }

    fn take_piece(&mut self, stream: StreamId, payload: Bytes, end: bool) -> Option<Event> {
        let web = self.web.clone()?;
        let limits = &self.core.limits;
        let (max, gather_max) = (limits.message_bytes_max, limits.gather_bytes_max as usize);
        let call = &mut self.core.streams.at(stream.slot()).app;
        let exchange = match call.web.as_deref_mut()? {
            Held::Call(exchange) => exchange,
            // As with any HTTP server, the request is heard out.
            Held::Answered(part) => {
                if end {
                    let part = std::mem::take(part);
                    self.finish_call(stream);
                    self.put_part(stream, part);
                }
                return None;
            }
        };
        let held_bytes = exchange.held_bytes();
        let taken = if self.gathered + payload.len() > gather_max {
            self.core.refusals.count(Refusal::Gathered);
            let message = "too many large messages at once on this connection";
            Err((Code::ResourceExhausted, message.to_owned()))
        } else {
            let taken = exchange.take(&web, payload, max);
            if taken.is_err() {
                self.core.refusals.count(Refusal::MessageSize);
            }
            taken
        };
        self.gathered += exchange.held_bytes() - held_bytes;
        let outcome = match taken {
            Ok(()) if end => {
                self.gathered -= exchange.held_bytes();
                let message = exchange.message(&web, max);
                self.inflated += exchange.inflated_bytes();
                message
            }
            Ok(()) => {
                if exchange.held_bytes() > held_bytes {
                    exchange.unshare();
                }
                return None;
            }
            Err(refused) => Err(refused),
        };
        match outcome {
            Ok(message) => {
                call.shown = true;
                self.counts.messages_received += 1;
                self.counts.last_received_ns = self.core.now_ns;
                let (head, route) = (std::mem::take(&mut call.head), exchange.route_id());
                Some(Event::Request { stream, route, head, message })
            }
            Err((code, message)) => {
                self.web_fail(stream, &Status::new(code, &message));
                None
            }
        }
    }

    /// Ends a call: its exchange, and what knows of its messages.
    fn end_exchange(&mut self, stream: StreamId) -> Option<(Box<Exchange>, Rc<Web>)> {
        let web = self.web.clone()?;
        let held = self.core.streams.at(stream.slot()).app.web.take()?;
        self.gathered -= held.bytes();
        self.finish_call(stream);
        match *held {
            Held::Call(exchange) => Some((exchange, web)),
            Held::Answered(_) => None,
        }
    }

    #[cold]
    pub(super) fn web_respond(
        &mut self,
        stream: StreamId,
        message: Message<'_>,
        trailers: &[(&str, &[u8])],
    ) -> bool {
        let Some((mut exchange, web)) = self.end_exchange(stream) else { return false };
        let mut part = exchange.respond(&web.schema, message, trailers);
        if !self.core.queue_has_room(part.body_bytes()) {
            self.core.refusals.count(Refusal::Queued);
            let message = "carried out, but the reply did not fit: the client reads too slowly";
            let status = Status { trailers, ..Status::new(Code::ResourceExhausted, message) };
            part = exchange.fail(&web.schema, &status);
            self.counts.streams_failed += 1;
        } else {
            // What could not be put into the caller's format has failed after all.
            let status = part.head.as_ref().map_or(200, |(status, _)| *status);
            self.count_answered(status);
            self.count_sent();
        }
        self.put_part(stream, part);
        true
    }

    #[cold]
    pub(super) fn web_fail(&mut self, stream: StreamId, status: &Status<'_>) -> bool {
        let Some((mut exchange, web)) = self.end_exchange(stream) else { return false };
        let part = exchange.fail(&web.schema, status);
        self.counts.streams_failed += 1;
        self.put_part(stream, part);
        true
    }

    #[cold]
    pub(super) fn web_finish(&mut self, stream: StreamId, trailers: &[(&str, &[u8])]) -> bool {
        let Some((mut exchange, web)) = self.end_exchange(stream) else { return false };
        let part = exchange.finish(&web.schema, trailers);
        self.counts.streams_succeeded += 1;
        self.put_part(stream, part);
        true
    }

    #[cold]
    pub(super) fn web_send(
        &mut self,
        stream: StreamId,
        message: &Message<'_>,
    ) -> Result<bool, SendError> {
        let Some(web) = self.web.clone() else { return Err(SendError::Closed) };
        let bytes = PREFIX_BYTES + message.len();
        if bytes > self.core.limits.queue_bytes_max as usize {
            let message = "a message too large to be queued";
            self.web_fail(stream, &Status::new(Code::ResourceExhausted, message));
            return Err(SendError::Closed);
        }
        if !self.core.queue_has_room(bytes) {
            self.core.want_room(stream.slot());
            return Err(SendError::QueueFull);
        }
        let call = &mut self.core.streams.at(stream.slot()).app;
        let Some(Held::Call(exchange)) = call.web.as_deref_mut() else {
            return Err(SendError::Closed);
        };
        let part = exchange.send(&web.schema, message);
        if part.end {
            self.end_exchange(stream);
            self.counts.streams_failed += 1;
            self.put_part(stream, part);
            return Err(SendError::Closed);
        }
        self.put_part(stream, part);
        self.count_sent();
        Ok(self.core.is_writable(stream.slot()))
    }

    /// Writes or queues a piece of an answer.
    fn put_part(&mut self, stream: StreamId, part: Part) {
        let slot = stream.slot();
        if part.end {
            self.core.streams.at(slot).app.finished = true;
        }
        let body_bytes = part.body_bytes();
        let Part { head, body, mut tail, end } = part;
        if let Some((status, fields)) = head {
            let only = end && body_bytes == 0;
            self.core.put_block(stream.number(), only, |encoder, out| {
                encoder.field(out, b":status", status.to_string().as_bytes(), Indexing::Plain);
                fields.iter().for_each(|(name, value)| literal(out, name, value));
                if end && status != 204 {
                    literal(out, b"content-length", body_bytes.to_string().as_bytes());
                }
            });
            self.core.streams.at(slot).headers_sent = true;
            if only {
                self.core.end_local(slot);
                return;
            }
        }
        if body_bytes == 0 {
            if end {
                self.core.end_data(slot);
            }
            return;
        }
        let mut start = &body[..];
        let whole;
        if tail.is_empty() {
            // A large JSON text goes out from where it lies.
            whole = Bytes::from(body);
            (start, tail) = (&[], whole);
        }
        if !self.core.send_data(slot, &[], start, &tail, end) {
            // The answer of the last resort did not fit either: the client has read nothing for a long time.
            self.reset(stream, crate::h2::ErrorCode::ENHANCE_YOUR_CALM);
        }
    }
}
