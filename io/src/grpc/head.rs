//! What both ends need for heads and trailers: names, cached header blocks, custom fields.

use super::metadata::encode_base64;
use crate::h2::hpack::Encoder;

pub(super) const CONTENT_TYPE: &[u8] = b"content-type";
pub(super) const CONTENT_TYPE_GRPC: &[u8] = b"application/grpc";
pub(super) const GRPC_STATUS: &[u8] = b"grpc-status";

/// `application/grpc`, alone or with `+proto` or parameters.
#[inline]
pub(super) fn is_grpc(content_type: &[u8]) -> bool {
    match content_type.strip_prefix(b"application/grpc") {
        Some(b"" | b"+proto" | [b';', ..]) => true,
        Some(rest) => rest.starts_with(b"+proto;"),
        None => false,
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
