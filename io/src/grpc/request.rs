//! What a server is told: routes, heads of requests, events.

use super::head::is_grpc;
use super::metadata::Metadata;
use super::timeout;
use crate::h2::StreamId;
use crate::h2::block::HEADS_REMEMBERED;
use crate::h2::connection::Sink;
use crate::h2::hpack::{Field, FieldKind};
use bytes::Bytes;
use std::time::Duration;

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The caller's number of the method.
    pub id: u32,
    /// The client sends any number of messages: `Open`, `Message`, `HalfClose` instead of `Request`.
    pub client_streaming: bool,
    /// The server sends any number of messages: `send_message` and `finish` instead of `respond`.
    pub server_streaming: bool,
}

/// Finds the route of a path such as `/package.Service/Method`.
pub type RouteFn = fn(path: &[u8]) -> Option<Route>;

/// What came with a call besides its messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// `grpc-timeout`, counted from when the request was read. To be enforced by the caller.
    pub timeout: Option<Duration>,
    /// Custom metadata.
    pub metadata: Metadata,
}

/// One thing that has happened on a connection.
#[derive(Debug)]
pub enum Event {
    /// A call of a method whose client sends exactly one message, and that message.
    Request {
        /// To answer to.
        stream: StreamId,
        /// `Route::id`
        route: u32,
        /// Timeout and metadata.
        head: RequestHead,
        /// The message; a slice of the read buffer if it came in one frame.
        message: Bytes,
    },
    /// A call of a method whose client streams has begun.
    Open {
        /// To answer to.
        stream: StreamId,
        /// `Route::id`
        route: u32,
        /// Timeout and metadata.
        head: RequestHead,
    },
    /// A message of an open stream; give its window back with `release` once it is consumed.
    Message {
        /// Whose.
        stream: StreamId,
        /// The message.
        message: Bytes,
    },
    /// The client of an open stream has sent everything.
    HalfClose {
        /// Whose.
        stream: StreamId,
    },
    /// A call that was shown before is gone: reset by the client, or its connection has ended. Its stream must not be answered
    /// (answers are ignored).
    Cancelled {
        /// Which.
        stream: StreamId,
    },
    /// A stream on which `send_message` said stop has room again.
    Writable {
        /// Which.
        stream: StreamId,
    },
}

/// Gathers what matters of a request's head.
pub(super) struct HeadSink {
    pub(super) route_of: RouteFn,
    pub(super) trailers: bool,
    pub(super) post: bool,
    pub(super) grpc: bool,
    pub(super) timeout_ok: bool,
    pub(super) encoded: bool,
    pub(super) route: Option<Route>,
    /// The path, when it leads nowhere.
    pub(super) unknown_path: Vec<u8>,
    pub(super) head: RequestHead,
    /// Route, `post`, `grpc`, `timeout_ok`, `encoded` of heads that repeat.
    saved: [(Option<Route>, bool, bool, bool, bool); HEADS_REMEMBERED],
}

impl HeadSink {
    pub(super) fn new(route_of: RouteFn) -> Self {
        Self {
            route_of,
            trailers: false,
            post: false,
            grpc: false,
            timeout_ok: true,
            encoded: false,
            route: None,
            unknown_path: Vec::new(),
            head: RequestHead::default(),
            saved: [(None, false, false, false, false); HEADS_REMEMBERED],
        }
    }
}

impl Sink for HeadSink {
    #[inline]
    fn begin(&mut self, trailers: bool) {
        self.trailers = trailers;
        self.post = false;
        self.grpc = false;
        self.timeout_ok = true;
        self.encoded = false;
        self.route = None;
        self.head.timeout = None;
        if !self.head.metadata.is_empty() {
            self.head.metadata = Metadata::new();
        }
    }

    #[inline]
    fn field(&mut self, field: &Field<'_>) {
        if self.trailers {
            return;
        }
        match field.kind {
            FieldKind::Method => self.post = field.value == b"POST",
            FieldKind::Path => {
                self.route = (self.route_of)(field.value);
                if self.route.is_none() {
                    self.unknown_path.clear();
                    self.unknown_path.extend_from_slice(field.value);
                }
            }
            FieldKind::ContentType => self.grpc = is_grpc(field.value),
            FieldKind::GrpcTimeout => {
                self.head.timeout = timeout::parse(field.value);
                self.timeout_ok = self.head.timeout.is_some();
            }
            FieldKind::GrpcEncoding => self.encoded = field.value != b"identity",
            FieldKind::Scheme
            | FieldKind::Authority
            | FieldKind::Te
            | FieldKind::ContentLength
            | FieldKind::UserAgent
            | FieldKind::AcceptEncoding
            | FieldKind::GrpcAcceptEncoding => {}
            _ => self.head.metadata.push(field.name, field.value),
        }
    }

    fn save(&mut self, number: usize) -> bool {
        if self.route.is_none() || self.head.timeout.is_some() || !self.head.metadata.is_empty() {
            return false;
        }
        self.saved[number] = (self.route, self.post, self.grpc, self.timeout_ok, self.encoded);
        true
    }

    #[inline]
    fn restore(&mut self, number: usize) {
        (self.route, self.post, self.grpc, self.timeout_ok, self.encoded) = self.saved[number];
    }
}
