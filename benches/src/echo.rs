//! What the transport's benchmark calls: a service that does as little as a service can, so that what it costs is the transport.

use std::path::PathBuf;

use bytes::Bytes;
use prism_io::grpc::Route;
use prost::Message;

use crate::write::PAGE;

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

/// The route of [`UNARY`].
pub const UNARY_ROUTE: u32 = 0;
/// The route of [`STREAM`].
pub const STREAM_ROUTE: u32 = 1;

/// The two methods.
pub fn route(path: &[u8]) -> Option<Route> {
    let (id, server_streaming) = match path {
        _ if path == UNARY.as_bytes() => (UNARY_ROUTE, false),
        _ if path == STREAM.as_bytes() => (STREAM_ROUTE, true),
        _ => return None,
    };
    Some(Route { id, client_streaming: false, server_streaming })
}

/// Decodes a [`Payload`] and encodes it again: all but the bytes of its value, which come last.
pub fn echo(message: Bytes) -> Option<(Vec<u8>, Bytes)> {
    let payload = Payload::decode(message).ok()?;
    let mut head = Vec::with_capacity(payload.key.len() + 16);
    Payload { key: payload.key, value: Bytes::new() }.encode_raw(&mut head);
    if !payload.value.is_empty() {
        prost::encoding::encode_key(2, prost::encoding::WireType::LengthDelimited, &mut head);
        prost::encoding::encode_varint(payload.value.len() as u64, &mut head);
    }
    Some((head, payload.value))
}

/// Answers only after a durable write: as many records as wait, in one write, one write in flight.
#[derive(Clone, Debug)]
pub struct Log {
    /// Prepared with [`crate::write::prepare`].
    pub file: PathBuf,
}

impl Log {
    /// Bytes of one request in the log.
    const RECORD_BYTES: usize = 192;
    /// Most bytes of one write.
    pub const BATCH_BYTES_MAX: usize = 128 << 10;
    /// Most requests behind one write.
    pub const RECORDS_MAX: usize = Self::BATCH_BYTES_MAX / Self::RECORD_BYTES;

    /// Bytes of a write for so many requests, in whole pages.
    pub fn batch_bytes(records: usize) -> usize {
        (records * Self::RECORD_BYTES).next_multiple_of(PAGE)
    }
}
