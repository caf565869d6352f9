//! What a client is told of an answer: its head and its trailers.

use super::compress::Encoding;
use super::head::ContentType;
use super::metadata::{Metadata, decode_base64};
use super::status::{Code, percent_decode};
use crate::h2::connection::Sink;
use crate::h2::hpack::{Field, FieldKind};

/// Gathers what matters of an answer's head or trailers.
#[derive(Default)]
pub(super) struct AnswerSink {
    pub(super) status: u16,
    pub(super) grpc: bool,
    pub(super) encoding: Encoding,
    pub(super) code: Option<Code>,
    pub(super) message: String,
    pub(super) details: Vec<u8>,
    pub(super) metadata: Metadata,
}

impl Sink for AnswerSink {
    #[inline]
    fn begin(&mut self, _trailers: bool) {
        self.status = 0;
        self.grpc = false;
        self.encoding = Encoding::Identity;
        self.code = None;
        self.message.clear();
        self.details.clear();
        if !self.metadata.is_empty() {
            self.metadata = Metadata::new();
        }
    }

    #[inline]
    fn field(&mut self, field: &Field<'_>) {
        match field.kind {
            FieldKind::Status => {
                let number = std::str::from_utf8(field.value).ok().and_then(|v| v.parse().ok());
                self.status = number.unwrap_or(0);
            }
            FieldKind::ContentType => {
                self.grpc = ContentType::parse(field.value) == ContentType::Grpc;
            }
            FieldKind::GrpcStatus => self.code = Some(Code::parse(field.value)),
            FieldKind::GrpcEncoding => self.encoding = Encoding::parse(field.value),
            FieldKind::GrpcMessage => self.message = percent_decode(field.value),
            FieldKind::GrpcStatusDetails => {
                self.details = decode_base64(field.value).unwrap_or_default();
            }
            FieldKind::ContentLength
            | FieldKind::AcceptEncoding
            | FieldKind::GrpcAcceptEncoding => {}
            _ => self.metadata.push_marked(field.name, field.value, field.sensitive),
        }
    }

    // Only heads of requests are remembered; answers have two or three fields.
    fn save(&mut self, _number: usize) -> bool {
        false
    }

    fn restore(&mut self, _number: usize) {}
}
