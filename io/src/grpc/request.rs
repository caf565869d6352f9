//! What a server is told: routes, heads of requests, events.

use super::compress::{Encoding, accepts_gzip};
use super::head::ContentType;
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
    /// The message that came with it was compressed; it is no more.
    pub compressed: bool,
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
        /// The message as it came.
        message: Bytes,
        /// It is still compressed, so that no more than one has to be held plain: to be given to [`inflate`] when it is
        /// consumed.
        ///
        /// [`inflate`]: super::compress::inflate
        compressed: bool,
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

/// What is remembered of a head besides metadata and timeout: heads repeat.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadFacts {
    pub(super) route: Option<Route>,
    pub(super) post: bool,
    pub(super) content_type: ContentType,
    pub(super) te: bool,
    pub(super) timeout_ok: bool,
    pub(super) encoding: Encoding,
    pub(super) accepts_gzip: bool,
    /// The same of the whole body of an answer (`accept-encoding`), as Connect has it.
    pub(super) http_accepts_gzip: bool,
}

impl HeadFacts {
    const NONE: Self = Self {
        route: None,
        post: false,
        content_type: ContentType::Other,
        te: false,
        timeout_ok: true,
        encoding: Encoding::Identity,
        accepts_gzip: false,
        http_accepts_gzip: false,
    };

    /// Whether everything is there and right, apart from the route.
    #[inline]
    pub(super) fn make_a_call(&self) -> bool {
        self.post && self.content_type == ContentType::Grpc && self.te && self.timeout_ok
    }
}

/// Gathers what matters of a request's head.
pub(super) struct HeadSink {
    pub(super) route_of: RouteFn,
    pub(super) trailers: bool,
    pub(super) facts: HeadFacts,
    /// The path, when it leads nowhere.
    pub(super) unknown_path: Vec<u8>,
    pub(super) head: RequestHead,
    other: Other,
    /// Of heads that repeat.
    saved: [HeadFacts; HEADS_REMEMBERED],
}

/// What a head that is not gRPC's says instead.
#[derive(Default)]
struct Other {
    seen: bool,
    method: Vec<u8>,
    content_type: Vec<u8>,
}

impl HeadSink {
    /// Method and content type of a head that is not gRPC's.
    pub(super) fn not_grpc(&self) -> (&[u8], &[u8]) {
        let other = |value| if self.other.seen { value } else { &[][..] };
        let method = if self.facts.post { b"POST" } else { other(&self.other.method) };
        (method, other(&self.other.content_type))
    }

    #[cold]
    fn other(&mut self, of: impl FnOnce(&mut Other) -> &mut Vec<u8>, value: &[u8]) {
        let other = &mut self.other;
        if !std::mem::replace(&mut other.seen, true) {
            other.method.clear();
            other.content_type.clear();
        }
        let kept = of(other);
        kept.clear();
        kept.extend_from_slice(value);
    }

    pub(super) fn new(route_of: RouteFn) -> Self {
        Self {
            route_of,
            trailers: false,
            facts: HeadFacts::NONE,
            unknown_path: Vec::new(),
            head: RequestHead::default(),
            other: Other::default(),
            saved: [HeadFacts::NONE; HEADS_REMEMBERED],
        }
    }
}

impl Sink for HeadSink {
    #[inline]
    fn begin(&mut self, trailers: bool) {
        self.trailers = trailers;
        self.facts = HeadFacts::NONE;
        self.other.seen = false;
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
        let facts = &mut self.facts;
        match field.kind {
            FieldKind::Method => {
                facts.post = field.value == b"POST";
                if !facts.post {
                    self.other(|other| &mut other.method, field.value);
                }
            }
            FieldKind::Path => {
                facts.route = (self.route_of)(field.value);
                if facts.route.is_none() {
                    self.unknown_path.clear();
                    self.unknown_path.extend_from_slice(field.value);
                }
            }
            FieldKind::ContentType => {
                facts.content_type = ContentType::parse(field.value);
                if facts.content_type == ContentType::Other {
                    self.other(|other| &mut other.content_type, field.value);
                }
            }
            FieldKind::GrpcTimeout => {
                self.head.timeout = timeout::parse(field.value);
                facts.timeout_ok = self.head.timeout.is_some();
            }
            FieldKind::GrpcEncoding => facts.encoding = Encoding::parse(field.value),
            FieldKind::GrpcAcceptEncoding => facts.accepts_gzip |= accepts_gzip(field.value),
            // HTTP/2 has refused every other value.
            FieldKind::Te => facts.te = true,
            FieldKind::Scheme
            | FieldKind::Authority
            | FieldKind::ContentLength
            | FieldKind::UserAgent => {}
            FieldKind::AcceptEncoding => facts.http_accepts_gzip |= accepts_gzip(field.value),
            _ if field.name == b"cookie" => {
                self.head.metadata.join(field.name, b"; ", field.value, field.sensitive);
            }
            _ => self.head.metadata.push_marked(field.name, field.value, field.sensitive),
        }
    }

    fn save(&mut self, number: usize) -> bool {
        let repeats = self.facts.route.is_some()
            && !self.other.seen
            && self.head.timeout.is_none()
            && self.head.metadata.is_empty();
        if repeats {
            self.saved[number] = self.facts;
        }
        repeats
    }

    #[inline]
    fn restore(&mut self, number: usize) {
        self.facts = self.saved[number];
    }
}
