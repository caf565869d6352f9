//! What both ends need for heads and trailers: names, cached header blocks, custom fields.

use super::metadata::encode_base64;
use crate::h2::hpack::Encoder;

pub(super) const CONTENT_TYPE: &[u8] = b"content-type";
pub(super) const CONTENT_TYPE_GRPC: &[u8] = b"application/grpc";
pub(super) const GRPC_ENCODING: &[u8] = b"grpc-encoding";
pub(super) const GRPC_STATUS: &[u8] = b"grpc-status";

/// What a content-type says of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum ContentType {
    /// gRPC with protobuf: `application/grpc` or `application/grpc+proto`, in any case and with any parameters.
    Grpc,
    /// gRPC with messages that are something else, such as `application/grpc+json`.
    OtherMessages,
    /// No gRPC.
    #[default]
    Other,
}

impl ContentType {
    #[inline]
    pub(super) fn parse(value: &[u8]) -> Self {
        // As nearly everybody writes it.
        if value == CONTENT_TYPE_GRPC { Self::Grpc } else { Self::parse_any(value) }
    }

    fn parse_any(value: &[u8]) -> Self {
        let end = value.iter().position(|byte| *byte == b';').unwrap_or(value.len());
        let essence = value[..end].trim_ascii();
        let Some((start, rest)) = essence.split_at_checked(CONTENT_TYPE_GRPC.len()) else {
            return Self::Other;
        };
        if !start.eq_ignore_ascii_case(CONTENT_TYPE_GRPC) {
            return Self::Other;
        }
        match rest {
            b"" => Self::Grpc,
            _ if rest.eq_ignore_ascii_case(b"+proto") => Self::Grpc,
            [b'+', _, ..] => Self::OtherMessages,
            _ => Self::Other,
        }
    }
}

/// A header block that repeats, valid as long as the encoder's epoch is the same.
#[derive(Debug, Default)]
pub(super) struct CachedBlock {
    epoch: u64,
    bytes: Vec<u8>,
}

impl CachedBlock {
    /// Appends the block from the cache, or by `encode`, whose result is kept once it no longer changes the table.
    #[inline]
    pub(super) fn put(
        &mut self,
        encoder: &mut Encoder,
        out: &mut Vec<u8>,
        encode: impl FnOnce(&mut Encoder, &mut Vec<u8>),
    ) {
        if self.epoch == encoder.epoch() && !self.bytes.is_empty() {
            out.extend_from_slice(&self.bytes);
            return;
        }
        let (start, epoch) = (out.len(), encoder.epoch());
        encode(encoder, out);
        self.bytes.clear();
        if encoder.epoch() == epoch {
            self.bytes.extend_from_slice(&out[start..]);
            self.epoch = epoch;
        }
    }
}

/// Shows custom fields with the values of `-bin` names in base64.
pub(super) fn custom_fields(
    fields: &[(&str, &[u8])],
    scratch: &mut Vec<u8>,
    push: &mut dyn FnMut(&[u8], &[u8]),
) {
    for &(name, value) in fields {
        if name.ends_with("-bin") {
            scratch.clear();
            encode_base64(value, scratch);
            push(name.as_bytes(), scratch);
        } else {
            push(name.as_bytes(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types() {
        use ContentType::{Grpc, Other, OtherMessages};
        for (value, kind) in [
            ("application/grpc", Grpc),
            ("application/grpc+proto", Grpc),
            ("Application/GRPC+Proto", Grpc),
            ("application/grpc;charset=utf-8", Grpc),
            ("application/grpc+proto ; x=y", Grpc),
            ("application/grpc+json", OtherMessages),
            ("application/grpc+protobuf", OtherMessages),
            ("application/grpc+", Other),
            ("application/grpc-web", Other),
            ("application/grpc-web+proto", Other),
            ("application/grpcx", Other),
            ("application/json", Other),
            ("", Other),
        ] {
            assert_eq!(ContentType::parse(value.as_bytes()), kind, "{value}");
        }
    }
}
