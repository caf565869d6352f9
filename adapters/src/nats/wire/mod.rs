//! The shard's own connection to a NATS, for whatever is answered by one message: publishes that JetStream acknowledges, those that nobody
//! does, and requests.
//!
//! - `codec`: the protocol, without I/O
//! - `calls`: what is under way, and which answer belongs to whom; without I/O
//! - `greeting`: INFO and CONNECT
//! - `connection`: the bytes moved, outages survived (with [`crate::breaker`])

mod calls;
mod codec;
mod connection;
mod greeting;

use async_nats::HeaderMap;

pub(super) use self::connection::Wire;

/// Reads a block of headers as it is stored; nothing where it is none. Where there is no block there are no headers.
pub(super) fn headers(block: &[u8]) -> Option<HeaderMap> {
    match block.is_empty() {
        true => Some(HeaderMap::new()),
        false => codec::read_headers(block).ok().map(|(headers, ..)| headers),
    }
}
