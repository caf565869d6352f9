//! One call: its request's body into a message, and its answer into a head and pieces of a body.

use bytes::{Bytes, BytesMut};

use super::request::put_cors;
use super::{Schema, Web};
use crate::grpc::compress::{GZIP, InflateError, deflate, inflate};
use crate::grpc::message::{PREFIX_BYTES, unshare};
use crate::grpc::metadata::{decode_base64, encode_base64};
use crate::grpc::status::percent_encode;
use crate::grpc::{Code, Message, Route, Status};
use crate::h2::Fields;

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// Connect, unary: the body is the message.
    Connect { json: bool },
    /// Connect, streaming: messages behind prefixes, and the status in a last one.
    ConnectStream { json: bool },
    /// gRPC-Web: as gRPC, with the trailers in a last message; as text, all of it in base64.
    GrpcWeb { text: bool },
}

/// Flag of a compressed message.
const COMPRESSED: u8 = 1;
/// Flag of Connect's last message, which holds the status.
const END_OF_STREAM: u8 = 2;
/// Flag of the message of gRPC-Web that holds the trailers.
const TRAILERS: u8 = 0x80;

impl Wire {
    /// Whether the answer may have any number of messages.
    pub(super) fn streams(self) -> bool {
        matches!(self, Self::ConnectStream { .. })
    }

    fn json(self) -> bool {
        matches!(self, Self::Connect { json: true } | Self::ConnectStream { json: true })
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Connect { json: true } => "application/json",
            Self::Connect { json: false } => "application/proto",
            Self::ConnectStream { json: true } => "application/connect+json",
            Self::ConnectStream { json: false } => "application/connect+proto",
            Self::GrpcWeb { text: false } => "application/grpc-web+proto",
            Self::GrpcWeb { text: true } => "application/grpc-web-text+proto",
        }
    }

    /// Whether the body is a row of messages, each behind its prefix.
    pub(super) fn streams_frames(self) -> bool {
        !matches!(self, Self::Connect { .. })
    }

    /// Most bytes of a body with a message of `message_bytes_max`.
    fn body_bytes_max(self, message_bytes_max: usize) -> usize {
        match self {
            Self::Connect { .. } => message_bytes_max,
            Self::ConnectStream { .. } | Self::GrpcWeb { text: false } => {
                PREFIX_BYTES + message_bytes_max
            }
            Self::GrpcWeb { text: true } => (PREFIX_BYTES + message_bytes_max).div_ceil(3) * 4,
        }
    }
}

/// A piece of an answer: its head if it is the first, and a part of the body.
#[derive(Debug, Default)]
pub(crate) struct Part {
    /// HTTP status and fields, without `content-length`.
    pub(crate) head: Option<(u16, Fields)>,
    pub(crate) body: Vec<u8>,
    /// Follows `body`.
    pub(crate) tail: Bytes,
    /// It is the last.
    pub(crate) end: bool,
}

impl Part {
    /// Bytes of the body in it.
    pub(crate) fn body_bytes(&self) -> usize {
        self.body.len() + self.tail.len()
    }
}

/// The body as far as it has come.
#[derive(Debug, Default)]
enum Body {
    #[default]
    Empty,
    /// In one piece, where it was read.
    Whole(Bytes),
    Gathered(BytesMut),
}

/// One call.
#[derive(Debug)]
pub(crate) struct Exchange {
    wire: Wire,
    /// Absent for a method that there is not, which can only fail.
    route: Option<Route>,
    /// The page that calls, if it is one.
    origin: Option<Box<[u8]>>,
    /// HTTP status of a failure, where its code does not decide it.
    pub(super) status: Option<u16>,
    /// The message came with the target: a GET.
    pub(super) from_query: bool,
    body: Body,
    head_sent: bool,
    /// The request's messages may be compressed; in unary Connect, its body is.
    is_compressed: bool,
    /// Smallest message of the answer that is compressed; absent where the reader does not take it.
    compress_bytes_min: Option<usize>,
    inflated_bytes: usize,
}

/// Why a body is no message.
pub(crate) type BadBody = (Code, String);

impl Exchange {
    pub(super) fn new(wire: Wire, route: Option<Route>, origin: Option<Box<[u8]>>) -> Self {
        Self {
            wire,
            route,
            origin,
            status: None,
            from_query: false,
            body: Body::Empty,
            head_sent: false,
            is_compressed: false,
            compress_bytes_min: None,
            inflated_bytes: 0,
        }
    }

    /// Says how the request may be compressed with gzip, and whether the answer may.
    pub(super) fn set_coding(&mut self, web: &Web, is_compressed: bool, accepts: bool) {
        self.is_compressed = is_compressed;
        let min = web.compress_bytes_min;
        self.compress_bytes_min = (accepts && min < u32::MAX).then_some(min as usize);
    }

    /// Bytes that were made of a compressed request.
    pub(crate) fn inflated_bytes(&self) -> usize {
        self.inflated_bytes
    }

    /// Most bytes of the request's message, as it is written.
    fn request_bytes_max(&self, web: &Web, message_bytes_max: u32) -> usize {
        match self.wire.json() {
            true => message_bytes_max.min(web.json_bytes_max) as usize,
            false => message_bytes_max as usize,
        }
    }

    fn inflate(&mut self, message: &[u8], bytes_max: usize) -> Result<Bytes, BadBody> {
        let inflated = inflate(message, bytes_max);
        self.inflated_bytes += match &inflated {
            Ok(plain) => plain.len(),
            Err(InflateError::TooLarge) => message.len(),
            Err(InflateError::Malformed) => bytes_max,
        };
        inflated.map_err(|error| match error {
            InflateError::TooLarge => {
                let message = format!("a message larger than {bytes_max} bytes once decompressed");
                (Code::ResourceExhausted, message)
            }
            InflateError::Malformed => {
                let message = "a compressed message is not valid gzip";
                (Code::InvalidArgument, message.to_owned())
            }
        })
    }

    /// The message compressed, if the reader takes that and it becomes smaller.
    fn deflate(&self, parts: [&[u8]; 2]) -> Option<Vec<u8>> {
        let bytes = parts[0].len() + parts[1].len();
        let min = self.compress_bytes_min?;
        if bytes < min { None } else { deflate(parts, bytes) }
    }

    /// The route that is called.
    pub(crate) fn route_id(&self) -> u32 {
        self.route.map_or(0, |route| route.id)
    }

    /// Bytes of the body that are held; a message that came in the target is a part of the head.
    pub(crate) fn held_bytes(&self) -> usize {
        match &self.body {
            _ if self.from_query => 0,
            Body::Empty => 0,
            Body::Whole(bytes) => bytes.len(),
            Body::Gathered(bytes) => bytes.len(),
        }
    }

    pub(super) fn put_whole(&mut self, body: Bytes) {
        self.body = Body::Whole(body);
    }

    /// The rest of the body is still to come: what there is of it must not keep its whole read buffer.
    pub(crate) fn unshare(&mut self) {
        if let Body::Whole(piece) = &mut self.body {
            unshare(piece);
        }
    }

    /// Takes a piece of the body.
    pub(crate) fn take(
        &mut self,
        web: &Web,
        piece: Bytes,
        message_bytes_max: u32,
    ) -> Result<(), BadBody> {
        if self.from_query || piece.is_empty() {
            return Ok(());
        }
        let json = self.wire.json();
        let limit =
            if json { message_bytes_max.min(web.json_bytes_max) } else { message_bytes_max };
        if self.held_bytes() + piece.len() > self.wire.body_bytes_max(limit as usize) {
            let what = if json { "JSON text" } else { "message" };
            let advice = if json && limit < message_bytes_max {
                "; send protobuf, which may be larger"
            } else {
                ""
            };
            let message = format!("{what} of more than {limit} bytes{advice}");
            return Err((Code::ResourceExhausted, message));
        }
        match &mut self.body {
            Body::Empty => self.body = Body::Whole(piece),
            Body::Whole(first) => {
                let mut all = BytesMut::with_capacity(2 * (first.len() + piece.len()));
                all.extend_from_slice(first);
                all.extend_from_slice(&piece);
                self.body = Body::Gathered(all);
            }
            Body::Gathered(all) => all.extend_from_slice(&piece),
        }
        Ok(())
    }

    /// The message, once the body is whole.
    pub(crate) fn message(&mut self, web: &Web, message_bytes_max: u32) -> Result<Bytes, BadBody> {
        let mut body = match std::mem::take(&mut self.body) {
            Body::Empty => Bytes::new(),
            Body::Whole(bytes) => bytes,
            Body::Gathered(bytes) => bytes.freeze(),
        };
        let mut compressed = self.is_compressed;
        match self.wire {
            Wire::Connect { .. } => {}
            Wire::ConnectStream { .. } | Wire::GrpcWeb { text: false } => {
                (body, compressed) = unframe(body)?;
            }
            Wire::GrpcWeb { text: true } => {
                let plain = decode_segments(&body)
                    .ok_or_else(|| (Code::InvalidArgument, "the body is not base64".to_owned()))?;
                (body, compressed) = unframe(plain.into())?;
            }
        }
        if compressed && !self.is_compressed {
            let message = "a compressed message, but the request names no encoding".to_owned();
            return Err((Code::InvalidArgument, message));
        }
        // A message without a byte need not be compressed (Connect, "Enveloped-Message", and unary bodies alike).
        if compressed && !body.is_empty() {
            let bytes_max = self.request_bytes_max(web, message_bytes_max);
            body = self.inflate(&body, bytes_max)?;
        }
        if self.wire.json() {
            let mut message = Vec::new();
            (web.schema.request_from_json)(self.route_id(), &body, &mut message)
                .map_err(|text| (Code::InvalidArgument, text))?;
            body = message.into();
        }
        if body.len() > message_bytes_max as usize {
            let message =
                format!("message of {} bytes, the limit is {message_bytes_max}", body.len());
            return Err((Code::ResourceExhausted, message));
        }
        Ok(body)
    }

    /// The whole answer of a unary call. For a method whose server streams, a stream of one message.
    pub(crate) fn respond(
        &mut self,
        schema: &Schema,
        message: Message<'_>,
        trailers: &[(&str, &[u8])],
    ) -> Part {
        let Wire::Connect { json } = self.wire else {
            let mut part = self.send(schema, &message);
            let end = self.end(schema, &Status { trailers, ..Status::new(Code::Ok, "") });
            part.body.extend_from_slice(&std::mem::take(&mut part.tail));
            part.body.extend_from_slice(&end.body);
            part.end = true;
            return part;
        };
        let (mut body, mut tail) = (Vec::new(), Bytes::new());
        if json {
            if let Err(status) = self.to_json(schema, &message, &mut body) {
                return self
                    .fail(schema, &Status { trailers, ..Status::new(Code::Internal, &status) });
            }
        } else {
            body.extend_from_slice(message.head);
            tail = message.tail;
        }
        let mut head = self.head(200, self.wire.content_type(), trailers);
        if let Some(deflated) = self.deflate([&body, &tail]) {
            (body, tail) = (deflated, Bytes::new());
            head.1.push(b"content-encoding", GZIP);
        }
        Part { head: Some(head), body, tail, end: true }
    }

    /// One message of a streamed answer.
    pub(crate) fn send(&mut self, schema: &Schema, message: &Message<'_>) -> Part {
        let head = self.head_once();
        let mut body = Vec::new();
        let mut tail = Bytes::new();
        if self.wire.json() {
            let mut text = Vec::new();
            if let Err(status) = self.to_json(schema, message, &mut text) {
                let end = self.end(schema, &Status::new(Code::Internal, &status));
                return Part { head, ..end };
            }
            match self.deflate([&text, b""]) {
                Some(deflated) => put_frame(COMPRESSED, &[&deflated], &mut body),
                None => put_frame(0, &[&text], &mut body),
            }
            return Part { head, body, tail, end: false };
        }
        let deflated = self.deflate([message.head, &message.tail]);
        if self.wire == (Wire::GrpcWeb { text: true }) {
            let mut plain = Vec::with_capacity(PREFIX_BYTES + message.len());
            match deflated {
                Some(deflated) => put_frame(COMPRESSED, &[&deflated], &mut plain),
                None => put_frame(0, &[message.head, &message.tail], &mut plain),
            }
            encode_padded(&plain, &mut body);
        } else if let Some(deflated) = deflated {
            put_frame(COMPRESSED, &[&deflated], &mut body);
        } else {
            body.extend_from_slice(&message.prefix());
            body.extend_from_slice(message.head);
            tail = message.tail.clone();
        }
        Part { head, body, tail, end: false }
    }

    /// The end of a streamed answer that went well.
    pub(crate) fn finish(&mut self, schema: &Schema, trailers: &[(&str, &[u8])]) -> Part {
        self.end(schema, &Status { trailers, ..Status::new(Code::Ok, "") })
    }

    /// The end of a call that has failed.
    pub(crate) fn fail(&mut self, schema: &Schema, status: &Status<'_>) -> Part {
        let Wire::Connect { .. } = self.wire else { return self.end(schema, status) };
        let mut body = Vec::new();
        put_error(schema, status, &mut body);
        let number = self.status.unwrap_or(http_status(status.code));
        let mut head = self.head(number, "application/json", status.trailers);
        if number == 405 {
            head.1.push(b"allow", b"POST");
        }
        Part { head: Some(head), body, tail: Bytes::new(), end: true }
    }

    /// The last piece of a streamed answer: status and trailers.
    fn end(&mut self, schema: &Schema, status: &Status<'_>) -> Part {
        let mut head = self.head_once();
        let mut text = Vec::new();
        let mut body = Vec::new();
        if let Wire::GrpcWeb { text: base64 } = self.wire {
            put_trailers(status, &mut text);
            if base64 {
                let mut plain = Vec::new();
                put_frame(TRAILERS, &[&text], &mut plain);
                encode_padded(&plain, &mut body);
            } else {
                put_frame(TRAILERS, &[&text], &mut body);
            }
        } else {
            if let (Some((number, _)), Some(refused)) = (&mut head, self.status) {
                *number = refused;
            }
            put_end_of_stream(schema, status, &mut text);
            put_frame(END_OF_STREAM, &[&text], &mut body);
        }
        Part { head, body, tail: Bytes::new(), end: true }
    }

    fn head_once(&mut self) -> Option<(u16, Fields)> {
        let first = !std::mem::replace(&mut self.head_sent, true);
        first.then(|| {
            let mut head = self.head(200, self.wire.content_type(), &[]);
            let name: &[u8] = match self.wire {
                Wire::GrpcWeb { .. } => b"grpc-encoding",
                _ => b"connect-content-encoding",
            };
            if self.compress_bytes_min.is_some() {
                head.1.push(name, GZIP);
            }
            head
        })
    }

    /// The head of an answer; trailers of a unary Connect call stand in it.
    fn head(&self, status: u16, content_type: &str, trailers: &[(&str, &[u8])]) -> (u16, Fields) {
        let mut fields = Fields::new();
        fields.push(b"content-type", content_type.as_bytes());
        if matches!(self.wire, Wire::Connect { .. }) {
            fields.push(b"x-content-type-options", b"nosniff");
        }
        if self.from_query {
            fields.push(b"cache-control", b"no-store");
        }
        let mut coded = Vec::new();
        for &(name, value) in trailers {
            fields.push(format!("trailer-{name}").as_bytes(), text_of(name, value, &mut coded));
        }
        put_cors(self.origin.as_deref(), &mut fields);
        (status, fields)
    }

    fn to_json(
        &self,
        schema: &Schema,
        message: &Message<'_>,
        into: &mut Vec<u8>,
    ) -> Result<(), String> {
        let Message { head, tail } = message;
        let whole;
        let bytes = if tail.is_empty() {
            head
        } else if head.is_empty() {
            &tail[..]
        } else {
            whole = [head, &tail[..]].concat();
            &whole
        };
        (schema.reply_to_json)(self.route_id(), bytes, into)
    }
}

/// Appends a message behind its prefix.
fn put_frame(flag: u8, parts: &[&[u8]], into: &mut Vec<u8>) {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    into.push(flag);
    into.extend_from_slice(&(bytes as u32).to_be_bytes());
    parts.iter().for_each(|part| into.extend_from_slice(part));
}

/// The one message of a body, and whether it is compressed.
fn unframe(mut body: Bytes) -> Result<(Bytes, bool), BadBody> {
    let invalid = |message: &str| Err((Code::InvalidArgument, message.to_owned()));
    let Some(&[flag, a, b, c, d]) = body.first_chunk::<PREFIX_BYTES>() else {
        return invalid("the request ended before its message");
    };
    if flag & !COMPRESSED != 0 {
        return invalid("the request does not begin with a message");
    }
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    let _ = body.split_to(PREFIX_BYTES);
    match body.len() {
        have if have < length => invalid("the request ended inside a message"),
        have if have > length => invalid("more than one request message"),
        _ => Ok((body, flag == COMPRESSED)),
    }
}

/// Appends base64 with padding.
fn encode_padded(plain: &[u8], into: &mut Vec<u8>) {
    let start = into.len();
    encode_base64(plain, into);
    while !(into.len() - start).is_multiple_of(4) {
        into.push(b'=');
    }
}

/// Decodes base64 that may consist of several pieces, each with its padding (gRPC `PROTOCOL-WEB.md`).
fn decode_segments(coded: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(coded.len() / 4 * 3);
    let mut rest = coded;
    while !rest.is_empty() {
        let end = rest
            .iter()
            .position(|&byte| byte == b'=')
            .map_or(rest.len(), |at| (at / 4 * 4 + 4).min(rest.len()));
        let (segment, after) = rest.split_at(end);
        plain.extend_from_slice(&decode_base64(segment)?);
        rest = after;
    }
    Some(plain)
}

/// A trailer's value in ASCII.
fn text_of<'a>(name: &str, value: &'a [u8], coded: &'a mut Vec<u8>) -> &'a [u8] {
    if !name.ends_with("-bin") {
        return value;
    }
    coded.clear();
    encode_base64(value, coded);
    coded
}

/// The trailers of gRPC-Web, as HTTP/1.1 would write them.
fn put_trailers(status: &Status<'_>, into: &mut Vec<u8>) {
    let mut line = |name: &str, value: &[u8]| {
        into.extend_from_slice(name.as_bytes());
        into.extend_from_slice(b": ");
        into.extend_from_slice(value);
        into.extend_from_slice(b"\r\n");
    };
    line("grpc-status", status.code.digits().as_bytes());
    let mut coded = Vec::new();
    if !status.message.is_empty() {
        percent_encode(status.message, usize::MAX, &mut coded);
        line("grpc-message", &coded);
    }
    if !status.details.is_empty() {
        line("grpc-status-details-bin", text_of("-bin", status.details, &mut coded));
    }
    for &(name, value) in status.trailers {
        line(name, text_of(name, value, &mut coded));
    }
}

/// The last message of a Connect stream.
fn put_end_of_stream(schema: &Schema, status: &Status<'_>, into: &mut Vec<u8>) {
    into.push(b'{');
    if status.code != Code::Ok {
        into.extend_from_slice(b"\"error\":");
        put_error(schema, status, into);
    }
    let mut coded = Vec::new();
    for (nth, &(name, value)) in status.trailers.iter().enumerate() {
        if nth > 0 {
            into.push(b',');
        } else if status.code != Code::Ok {
            into.extend_from_slice(b",\"metadata\":{");
        } else {
            into.extend_from_slice(b"\"metadata\":{");
        }
        put_string(name, into);
        into.extend_from_slice(b":[");
        put_string(&String::from_utf8_lossy(text_of(name, value, &mut coded)), into);
        into.push(b']');
    }
    if !status.trailers.is_empty() {
        into.push(b'}');
    }
    into.push(b'}');
}

/// An error as Connect writes it.
fn put_error(schema: &Schema, status: &Status<'_>, into: &mut Vec<u8>) {
    into.extend_from_slice(b"{\"code\":");
    put_string(code_name(status.code), into);
    if !status.message.is_empty() {
        into.extend_from_slice(b",\"message\":");
        put_string(status.message, into);
    }
    if !status.details.is_empty() {
        let (start, name) = (into.len(), b",\"details\":");
        into.extend_from_slice(name);
        (schema.details_to_json)(status.details, into);
        if into.len() == start + name.len() {
            into.truncate(start);
        }
    }
    into.push(b'}');
}

/// Appends a JSON string (RFC 8259, section 7).
fn put_string(text: &str, into: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    into.push(b'"');
    for &byte in text.as_bytes() {
        match byte {
            b'"' | b'\\' => into.extend_from_slice(&[b'\\', byte]),
            b'\n' => into.extend_from_slice(b"\\n"),
            0..0x20 | 0x7f => {
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                into.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
            _ => into.push(byte),
        }
    }
    into.push(b'"');
}

/// What Connect calls a code.
fn code_name(code: Code) -> &'static str {
    const NAMES: [&str; 17] = [
        "ok",
        "canceled",
        "unknown",
        "invalid_argument",
        "deadline_exceeded",
        "not_found",
        "already_exists",
        "permission_denied",
        "resource_exhausted",
        "failed_precondition",
        "aborted",
        "out_of_range",
        "unimplemented",
        "internal",
        "unavailable",
        "data_loss",
        "unauthenticated",
    ];
    NAMES[usize::from(code.number())]
}

/// The HTTP status of a failed unary call (Connect, "Error Codes").
fn http_status(code: Code) -> u16 {
    match code {
        Code::Ok => 200,
        Code::Cancelled => 499,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::DeadlineExceeded => 504,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::PermissionDenied => 403,
        Code::ResourceExhausted => 429,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::Unauthenticated => 401,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_in_pieces() {
        let mut coded = Vec::new();
        for piece in ["f", "fo", "foo", "fooba"] {
            encode_padded(piece.as_bytes(), &mut coded);
        }
        assert_eq!(decode_segments(&coded).as_deref(), Some(&b"ffofoofooba"[..]));
        assert_eq!(decode_segments(b"Zg").as_deref(), Some(&b"f"[..]));
        assert_eq!(decode_segments(b""), Some(vec![]));
        for bad in ["=", "Z===", "Zg=", "Zg==Z", "Zg==!!!!", "Zm9v\n"] {
            assert_eq!(decode_segments(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn json_strings() {
        let mut text = Vec::new();
        put_string("a\"b\\c\n\u{1}\u{7f}ü💣", &mut text);
        assert_eq!(String::from_utf8(text).unwrap(), "\"a\\\"b\\\\c\\n\\u0001\\u007fü💣\"");
    }

    #[test]
    fn every_failure_has_a_status_of_its_own_kind() {
        for code in Code::ALL {
            let status = http_status(code);
            assert_eq!(status == 200, code == Code::Ok);
            assert_eq!(
                code_name(code).replace("canceled", "cancelled"),
                code.name().to_lowercase()
            );
        }
    }

    #[test]
    fn a_body_holds_one_message() {
        let body = |bytes: &[u8]| unframe(Bytes::copy_from_slice(bytes)).map_err(|(code, _)| code);
        assert_eq!(body(&[0, 0, 0, 0, 1, 7]).unwrap(), (Bytes::from_static(&[7]), false));
        assert_eq!(body(&[1, 0, 0, 0, 1, 7]).unwrap(), (Bytes::from_static(&[7]), true));
        assert_eq!(body(&[0, 0, 0, 0, 0]).unwrap(), (Bytes::new(), false));
        for (bad, code) in [
            (&[][..], Code::InvalidArgument),
            (&[0, 0, 0, 0], Code::InvalidArgument),
            (&[0, 0, 0, 0, 2, 1], Code::InvalidArgument),
            (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Code::InvalidArgument),
            (&[0x80, 0, 0, 0, 0], Code::InvalidArgument),
            (&[2, 0, 0, 0, 0], Code::InvalidArgument),
        ] {
            assert_eq!(body(bad), Err(code), "{bad:?}");
        }
    }
}
