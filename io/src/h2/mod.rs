//! HTTP/2 (RFC 9113) as a state machine without I/O, both roles.
//!
//! Bytes go in (`Connection::accept`), one thing at a time comes out (`Connection::poll`), and what is to be written gathers
//! in an `Output`. It keeps to the RFC in what it accepts, takes the time as an argument, bounds everything by `Limits`, and
//! allocates nothing per stream after warm-up. It does not know gRPC: heads go field by field to a `Sink` of the layer above,
//! payloads are handed out as slices of the read buffer. It never touches a socket or a clock.

pub mod bare;
pub(crate) mod block;
pub(crate) mod connection;
pub mod fields;
pub(crate) mod flow;
pub mod frame;
mod heads;
pub mod hpack;
pub(crate) mod keepalive;
pub mod limits;
pub mod output;
pub(crate) mod queue;
mod receive;
pub mod refusal;
pub(crate) mod send;
pub mod state;
pub(crate) mod stream;
mod timers;

pub use bare::{BareConnection, BareEvent};
pub use connection::{CloseReason, Role};
pub use fields::Fields;
pub use frame::ErrorCode;
pub use limits::{Limits, Pace, Rate};
pub use output::{Large, Output};
pub use refusal::{REFUSALS, Refusal};
pub use stream::StreamId;
