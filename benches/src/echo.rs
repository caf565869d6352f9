//! What the transport's benchmark calls: a service that does as little as a service can, so that what it costs is the transport.

use bytes::Bytes;
use prost::Message;

/// `Unary`: the answer is the request.
pub const UNARY: &str = "/prism.bench.v1.Echo/Unary";
/// `Stream`: as many messages as were asked for.
pub const STREAM: &str = "/prism.bench.v1.Echo/Stream";

/// A message that is echoed, or one of a stream.
#[derive(Clone, PartialEq, Message)]
pub struct Payload {
    /// As a key would be: short.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// As a value would be: of any size.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// What a stream is to consist of.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct StreamRequest {
    /// How many messages.
    #[prost(uint64, tag = "1")]
    pub messages: u64,
    /// Bytes of the value in each.
    #[prost(uint32, tag = "2")]
    pub value_bytes: u32,
    /// The peer alone: from a task of its own through a channel, as its users' guide does it, instead of from an iterator, which is
    /// the fastest that it knows.
    #[prost(bool, tag = "3")]
    pub through_channel: bool,
}
