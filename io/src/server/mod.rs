//! The driver of connections: moves bytes between a socket and the state machine of [`crate::grpc`] or, where a client speaks
//! HTTP/1.1, of [`crate::web`].
//!
//! One pass over a read buffer hands every complete call in it to the [`Service`]; whatever was answered by then, or by the
//! end of the turn, leaves in one write. A reader that does not read stops being read from. Idle connections hold one small
//! buffer; what comes in bulk goes through one large buffer that all connections of a thread share. It never looks into a message and decides nothing about a call.

mod buffers;
mod connection;
mod guard;
mod listen;
mod protocol;
mod registry;
mod secured;

pub use connection::{Connection, Refused, Standing, StreamCall, StreamClosed};
pub use guard::Traffic;
pub use listen::{Connections, accept};
pub use registry::{ConnectionView, Passed, Registry};
pub use secured::{Handshakes, Tls};

use std::rc::Rc;

use bytes::Bytes;

use crate::grpc::{Limits, RequestHead, RouteFn};
use crate::h2::StreamId;
use crate::web::Web;

/// The buffer for what is larger than one read, shared by the connections of a thread; also what one connection may bring in one turn.
pub const READ_BYTES_MAX: usize = 256 * 1024;
/// Output beyond which a connection is not read from until its peer has taken some, in bytes.
pub const OUTPUT_BYTES_PAUSE: usize = 1024 * 1024;

/// What one shard's connections have in common.
#[derive(Clone)]
pub struct Options {
    /// Bounds on what a peer may do ([`Limits::shared`]).
    pub limits: Rc<Limits>,
    /// Which paths there are.
    pub route: RouteFn,
    /// Most connections of this shard; more are closed at once and counted.
    pub connections_max: usize,
    /// Most connections of one peer (an IPv4 address, or a /64 of IPv6); more are closed at once and counted.
    pub connections_per_peer_max: usize,
    /// Most bytes that all of them may hold; beyond it the one that holds most is ended.
    pub buffered_bytes_max: usize,
    /// What it takes to serve gRPC-Web and Connect, and these also over HTTP/1.1. Without it there is gRPC alone.
    pub web: Option<Rc<Web>>,
}

impl Options {
    /// gRPC alone, without bounds on one peer and on what all connections hold: for tests and measurements.
    pub fn new(limits: Limits, route: RouteFn, connections_max: usize) -> Self {
        Self {
            limits: limits.shared(),
            route,
            connections_max,
            connections_per_peer_max: connections_max,
            buffered_bytes_max: usize::MAX,
            web: None,
        }
    }
}

/// What takes the calls of a connection.
pub trait Service: 'static {
    /// One complete request of a method whose client sends one message. Answered through `connection`, now or later.
    fn request(
        &self,
        connection: &Rc<Connection>,
        stream: StreamId,
        route: u32,
        head: RequestHead,
        message: Bytes,
    );

    /// The beginning of a call whose client streams.
    fn open(&self, call: StreamCall, route: u32, head: RequestHead);

    /// The caller of a request has gone before it was answered. Which other one has: [`Connection::is_open`].
    fn cancelled(&self, _connection: &Rc<Connection>, _stream: StreamId) {}

    /// One pass over a connection's input has ended.
    fn turn_ended(&self);
}
