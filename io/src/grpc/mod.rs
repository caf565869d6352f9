//! gRPC over HTTP/2 as a state machine without I/O, both roles.
//!
//! It keeps to the protocol page (gRPC `PROTOCOL-HTTP2.md`): content types, `te`, timeouts, message framing, metadata with
//! binary values, status and trailers. It does not know any service: a function of the caller turns paths into routes, and
//! messages are bytes.

mod answer;
pub mod client;
pub mod compress;
pub mod counts;
mod gather;
mod head;
pub mod message;
pub mod metadata;
pub mod request;
pub mod server;
pub mod status;
pub mod timeout;

pub use crate::h2::{CloseReason, ErrorCode, Fields, Limits, Output, StreamId};
pub use client::{Busy, ClientConnection, ClientEvent, Finished};
pub use compress::Compressing;
pub use counts::Counts;
pub use message::{Message, SendError};
pub use metadata::Metadata;
pub use request::{Event, RequestHead, Route, RouteFn};
pub use server::ServerConnection;
pub use status::{Code, Status};
