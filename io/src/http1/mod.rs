//! HTTP/1.1 (RFC 9112): the parser of heads, the decoder of bodies, the small server of the admin port, and a client that gets one document.
//!
//! There is one parser, and it is strict: what two readers could take for two different things is refused, so that no
//! request can be smuggled past a proxy in front. Lines end with CR LF, names are tokens, lengths are given once, nothing
//! is folded. The calls that come over HTTP/1.1 on the data port are [`crate::web`]'s matter.

pub(crate) mod body;
pub mod fetch;
pub(crate) mod head;
mod server;

pub use server::{
    CONNECTIONS_MAX, EXCHANGE_TIMEOUT, HEAD_BYTES_MAX, IDLE_TIMEOUT, Request, Response, Server,
    Stop, Turn,
};
