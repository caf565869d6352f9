//! What a request's head asks for: a call, a page, permission to call (CORS), or something that cannot be had.

use std::time::Duration;

use bytes::Bytes;

use super::exchange::{Exchange, Wire};
use super::{Answer, Web};
use crate::grpc::compress::{Encoding, accepts_gzip};
use crate::grpc::metadata::decode_base64;
use crate::grpc::{Code, Metadata, RequestHead, Route, RouteFn};

/// A head, whichever protocol it came by. Names of fields are in lower case.
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a [u8],
    /// Path and query. Of no interest where the path alone has a route.
    pub(crate) target: &'a [u8],
    /// Where the whole target leads.
    pub(crate) route: Option<Route>,
    /// What the client calls us; empty where that is of no interest.
    pub(crate) host: &'a str,
    pub(crate) content_type: &'a [u8],
    /// `grpc-timeout`, and whether it could be read.
    pub(crate) grpc_timeout: Option<Duration>,
    pub(crate) grpc_timeout_ok: bool,
    pub(crate) coding: Coding,
    /// The other fields.
    pub(crate) fields: Metadata,
}

/// What a head says of compression in the fields that gRPC knows as well.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Coding {
    /// `grpc-encoding`.
    pub(crate) grpc: Encoding,
    /// Whether `grpc-accept-encoding` lists gzip.
    pub(crate) grpc_accepts_gzip: bool,
    /// Whether `accept-encoding` does.
    pub(crate) http_accepts_gzip: bool,
}

/// What is to be done with a request.
pub(crate) enum Verdict {
    /// A call; its body is to come, if it was not in the target.
    Call(Box<Exchange>, RequestHead),
    /// A call that has failed already.
    Refused(Box<Exchange>, Code, String),
    /// No call.
    Answer(Answer),
}

/// Fields that belong to HTTP, browsers or the protocols and are no metadata of a call.
const NO_METADATA: &[&[u8]] = &[
    b"accept",
    b"accept-encoding",
    b"accept-language",
    b"access-control-request-headers",
    b"access-control-request-method",
    b"access-control-request-private-network",
    b"cache-control",
    b"connect-accept-encoding",
    b"connect-content-encoding",
    b"connect-protocol-version",
    b"connect-timeout-ms",
    b"connection",
    b"content-encoding",
    b"content-length",
    b"content-type",
    b"cookie",
    b"dnt",
    b"expect",
    b"grpc-accept-encoding",
    b"grpc-encoding",
    b"grpc-timeout",
    b"host",
    b"http2-settings",
    b"keep-alive",
    b"origin",
    b"pragma",
    b"priority",
    b"proxy-connection",
    b"referer",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"upgrade-insecure-requests",
    b"user-agent",
    b"x-grpc-web",
    b"x-user-agent",
];

/// What a POST may carry, for answers that say so.
const CONTENT_TYPES: &str = "application/json, application/proto, application/connect+json, application/connect+proto, \
     application/grpc-web+proto, application/grpc-web-text+proto";

/// How long a browser may remember that it may call, seconds; browsers take two hours at most.
const PREFLIGHT_AGE: &[u8] = b"7200";

/// Decides about a request by its head.
pub(crate) fn begin(web: &Web, route_of: RouteFn, asked: Asked<'_>) -> Verdict {
    let origin = asked.fields.get("origin").map(Box::<[u8]>::from);
    if origin.as_deref().is_some_and(|origin| !web.origins.allows(origin)) {
        return Verdict::Answer(Answer::text(
            403,
            "This page may not call Prism from a browser: its origin is not among web.allowed_origins of the configuration.",
        ));
    }
    let verdict = match asked.method {
        b"POST" => post(web, &asked, origin.clone()),
        b"GET" | b"HEAD" => get(web, route_of, &asked, origin.clone()),
        b"OPTIONS" => Verdict::Answer(options(&asked, origin.as_deref())),
        _ => {
            let mut answer = Answer::text(405, "Calls are POSTs; GET / tells more.");
            answer.fields.push(b"allow", b"GET, HEAD, POST, OPTIONS");
            Verdict::Answer(answer)
        }
    };
    match verdict {
        Verdict::Answer(mut answer) => {
            put_cors(origin.as_deref(), &mut answer.fields);
            Verdict::Answer(answer)
        }
        call => call,
    }
}

/// What lets the page of an allowed origin read an answer.
pub(super) fn put_cors(origin: Option<&[u8]>, fields: &mut crate::h2::Fields) {
    if let Some(origin) = origin {
        fields.push(b"access-control-allow-origin", origin);
        fields.push(b"access-control-expose-headers", b"*");
        fields.push(b"vary", b"origin");
    }
}

/// OPTIONS: a browser asks whether it may call, or somebody what there is.
fn options(asked: &Asked<'_>, origin: Option<&[u8]>) -> Answer {
    let mut answer = Answer { status: 204, ..Answer::default() };
    if origin.is_none() || asked.fields.get("access-control-request-method").is_none() {
        answer.fields.push(b"allow", b"GET, HEAD, POST, OPTIONS");
        return answer;
    }
    let fields = &mut answer.fields;
    fields.push(b"access-control-allow-methods", b"GET, POST");
    let names = asked.fields.get("access-control-request-headers").unwrap_or_default();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_, ".contains(byte);
    if !names.is_empty() && names.iter().all(plain) {
        // Any metadata may come with a call.
        fields.push(b"access-control-allow-headers", names);
    }
    if asked.fields.get("access-control-request-private-network").is_some() {
        fields.push(b"access-control-allow-private-network", b"true");
    }
    fields.push(b"access-control-max-age", PREFLIGHT_AGE);
    answer
}

/// How a content type has its messages written; `None` if it is none of ours.
fn wire(content_type: &[u8]) -> Option<Wire> {
    let essence = content_type.split(|&byte| byte == b';').next().unwrap_or_default();
    Some(match essence.trim_ascii().to_ascii_lowercase().as_slice() {
        b"application/json" => Wire::Connect { json: true },
        b"application/proto" => Wire::Connect { json: false },
        b"application/connect+json" => Wire::ConnectStream { json: true },
        b"application/connect+proto" => Wire::ConnectStream { json: false },
        b"application/grpc-web" | b"application/grpc-web+proto" => Wire::GrpcWeb { text: false },
        b"application/grpc-web-text" | b"application/grpc-web-text+proto" => {
            Wire::GrpcWeb { text: true }
        }
        _ => return None,
    })
}

fn post(web: &Web, asked: &Asked<'_>, origin: Option<Box<[u8]>>) -> Verdict {
    let wire = wire(asked.content_type);
    let Some(route) = asked.route else {
        let (status, text) = missing(web, asked);
        return match wire {
            Some(wire @ Wire::Connect { .. }) => {
                let mut exchange = Exchange::new(wire, None, origin);
                exchange.status = Some(status);
                Verdict::Refused(Box::new(exchange), Code::Unimplemented, text)
            }
            _ => Verdict::Answer(Answer::text(status, text)),
        };
    };
    let Some(wire) = wire else {
        return Verdict::Answer(unsupported(asked.content_type));
    };
    let mut exchange = Box::new(Exchange::new(wire, Some(route), origin));
    if route.client_streaming {
        let message = "the client of this method streams, which takes gRPC over HTTP/2";
        return Verdict::Refused(exchange, Code::Unimplemented, message.into());
    }
    if route.server_streaming != wire.streams() && !matches!(wire, Wire::GrpcWeb { .. }) {
        // Connect, "Unary Response": an unsupported content type for this type of method.
        exchange.status = Some(415);
        let message = if route.server_streaming {
            "this method answers with a stream: call it with content-type application/connect+json or +proto, with gRPC-Web, \
             or with gRPC (grpcurl, prism kv)"
        } else {
            "this method answers with one message: call it with content-type application/json or application/proto"
        };
        return Verdict::Refused(exchange, Code::Unimplemented, message.into());
    }
    let compressed = match request_encoding(asked, wire) {
        Ok(encoding) => encoding == Encoding::Gzip,
        Err((code, message)) => return Verdict::Refused(exchange, code, message),
    };
    exchange.set_coding(web, compressed, accepts_answer(asked, wire));
    match call_head(asked, wire) {
        Ok(head) => Verdict::Call(exchange, head),
        Err((code, message)) => Verdict::Refused(exchange, code, message),
    }
}

/// How the request's messages may be compressed: unary Connect says it of the body, the others of messages that carry a flag.
fn request_encoding(asked: &Asked<'_>, wire: Wire) -> Result<Encoding, (Code, String)> {
    let of = |name| asked.fields.get(name).map_or(Encoding::Identity, Encoding::parse);
    let (body, messages) = match wire {
        Wire::Connect { .. } => (of("content-encoding"), Encoding::Identity),
        Wire::ConnectStream { .. } => (Encoding::Identity, of("connect-content-encoding")),
        Wire::GrpcWeb { .. } => (Encoding::Identity, asked.coding.grpc),
    };
    if wire.streams_frames() && of("content-encoding") != Encoding::Identity {
        let message = "the messages of this protocol are compressed one by one, not the body with all of them";
        return Err((Code::Unimplemented, message.to_owned()));
    }
    match (body, messages) {
        (Encoding::Unknown, _) | (_, Encoding::Unknown) => Err((
            Code::Unimplemented,
            "messages can be compressed with gzip and with nothing else".to_owned(),
        )),
        (Encoding::Gzip, _) | (_, Encoding::Gzip) => Ok(Encoding::Gzip),
        _ => Ok(Encoding::Identity),
    }
}

/// Whether whoever asks takes gzip in the answer.
fn accepts_answer(asked: &Asked<'_>, wire: Wire) -> bool {
    let lists = |name| asked.fields.get(name).is_some_and(accepts_gzip);
    match wire {
        Wire::Connect { .. } => asked.coding.http_accepts_gzip || lists("accept-encoding"),
        Wire::ConnectStream { .. } => lists("connect-accept-encoding"),
        Wire::GrpcWeb { .. } => asked.coding.grpc_accepts_gzip,
    }
}

/// The 404 of a path, with advice.
fn missing(web: &Web, asked: &Asked<'_>) -> (u16, String) {
    let path = asked.target.split(|&byte| byte == b'?').next().unwrap_or_default();
    match web.page(path, asked.host) {
        // Pages are for GET.
        (200, _) => (404, "calls are POSTs to /package.Service/Method; GET / tells more".into()),
        (status, text) => (status, text.trim_end().to_owned()),
    }
}

fn unsupported(content_type: &[u8]) -> Answer {
    let text = if content_type.starts_with(b"application/grpc") {
        "gRPC needs HTTP/2 (with prior knowledge, no upgrade), and this connection is HTTP/1.1. What works over HTTP/1.1 is \
         application/json, application/proto and application/grpc-web."
    } else {
        "Say with the content-type what the body is: curl -H 'content-type: application/json' -d '{…}'."
    };
    let mut answer = Answer::text(415, text);
    answer.fields.push(b"accept-post", CONTENT_TYPES.as_bytes());
    answer
}

/// Timeout, metadata, and what the protocol demands of a call's head.
fn call_head(asked: &Asked<'_>, wire: Wire) -> Result<RequestHead, (Code, String)> {
    let invalid = |message: &str| Err((Code::InvalidArgument, message.to_owned()));
    let get = |name| asked.fields.get(name);
    let mut head = RequestHead::default();
    match wire {
        Wire::GrpcWeb { .. } => {
            if !asked.grpc_timeout_ok {
                return invalid("malformed grpc-timeout");
            }
            head.timeout = asked.grpc_timeout;
        }
        Wire::Connect { .. } | Wire::ConnectStream { .. } => {
            if get("connect-protocol-version").is_some_and(|version| version != b"1") {
                return invalid("connect-protocol-version has to be 1, or absent");
            }
            if let Some(text) = get("connect-timeout-ms") {
                match connect_timeout(text) {
                    None => return invalid("connect-timeout-ms is a number of at most ten digits"),
                    timeout => head.timeout = timeout,
                }
            }
        }
    }
    for (name, value) in asked.fields.iter() {
        if NO_METADATA.binary_search(&name).is_err() && !name.starts_with(b"sec-") {
            head.metadata.push(name, value);
        }
    }
    Ok(head)
}

/// `connect-timeout-ms`: at most ten digits.
fn connect_timeout(text: &[u8]) -> Option<Duration> {
    let digits = (1..=10).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    digits.then(|| {
        Duration::from_millis(text.iter().fold(0, |sum, byte| sum * 10 + u64::from(byte - b'0')))
    })
}

/// GET: a page, or Connect's call of a method without side effects, with the message in the query.
fn get(web: &Web, route_of: RouteFn, asked: &Asked<'_>, origin: Option<Box<[u8]>>) -> Verdict {
    let mut parts = asked.target.splitn(2, |&byte| byte == b'?');
    let (path, query) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let Some(route) = asked.route.or_else(|| route_of(path)) else {
        let (status, text) = web.page(path, asked.host);
        return Verdict::Answer(Answer::text(status, text));
    };
    let callable =
        (web.schema.is_read)(route.id) && !route.server_streaming && !route.client_streaming;
    if !callable || asked.method == b"HEAD" {
        let mut answer = Answer::text(
            405,
            "This method is called with POST: curl -H 'content-type: application/json' -d '{…}'.",
        );
        answer.fields.push(b"allow", b"POST, OPTIONS");
        return Verdict::Answer(answer);
    }
    let query = match Query::parse(query) {
        Ok(query) => query,
        Err(message) => return Verdict::Answer(Answer::text(400, message)),
    };
    if !web.origins.trusts_host(asked.host) {
        return Verdict::Answer(Answer::text(
            403,
            "GET calls are not answered under this host name, which a web page may have chosen: use POST, or add the name's \
             origin to web.allowed_origins of the configuration.",
        ));
    }
    let wire = Wire::Connect { json: query.json };
    let mut exchange = Box::new(Exchange::new(wire, Some(route), origin));
    exchange.from_query = true;
    if query.encoding == Encoding::Unknown {
        let message = "messages can be compressed with gzip and with nothing else".to_owned();
        return Verdict::Refused(exchange, Code::Unimplemented, message);
    }
    exchange.set_coding(web, query.encoding == Encoding::Gzip, accepts_answer(asked, wire));
    match call_head(asked, wire) {
        Ok(head) => {
            exchange.put_whole(query.message);
            Verdict::Call(exchange, head)
        }
        Err((code, message)) => Verdict::Refused(exchange, code, message),
    }
}

/// The query of a GET (Connect, "Unary-Get-Request").
struct Query {
    message: Bytes,
    json: bool,
    encoding: Encoding,
}

impl Query {
    fn parse(query: &[u8]) -> Result<Self, String> {
        let (mut message, mut json, mut base64) = (None, None, false);
        let mut encoding = Encoding::Identity;
        for pair in query.split(|&byte| byte == b'&').filter(|pair| !pair.is_empty()) {
            let mut halves = pair.splitn(2, |&byte| byte == b'=');
            let name = halves.next().unwrap_or_default();
            let value = unescape(halves.next().unwrap_or_default())
                .ok_or("a % in the query is not followed by two hexadecimal digits")?;
            match name {
                b"message" => message = Some(value),
                b"encoding" => match value.as_slice() {
                    b"json" => json = Some(true),
                    b"proto" => json = Some(false),
                    _ => return Err("the query's encoding is json or proto".into()),
                },
                b"base64" => base64 = value == b"1",
                b"compression" if value.is_empty() => {}
                b"compression" => encoding = Encoding::parse(&value),
                b"connect" if value != b"v1" => return Err("the query's connect is v1".into()),
                _ => {}
            }
        }
        let (Some(mut message), Some(json)) = (message, json) else {
            return Err(
                "a GET calls a method with ?encoding=json&message=<JSON, percent-encoded>".into()
            );
        };
        if base64 {
            for byte in &mut message {
                *byte = match *byte {
                    b'-' => b'+',
                    b'_' => b'/',
                    other => other,
                };
            }
            message =
                decode_base64(&message).ok_or("the query's message is not URL-safe base64")?;
        }
        Ok(Self { message: message.into(), json, encoding })
    }
}

/// Undoes the escapes of a query.
fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.iter().copied();
    let digit = |rest: &mut dyn Iterator<Item = u8>| (rest.next()? as char).to_digit(16);
    while let Some(byte) = rest.next() {
        plain.push(match byte {
            b'%' => (digit(&mut rest)? << 4 | digit(&mut rest)?) as u8,
            b'+' => b' ',
            other => other,
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_metadata_are_sorted() {
        assert!(NO_METADATA.is_sorted());
    }

    #[test]
    fn queries() {
        let parse = |text: &str| {
            Query::parse(text.as_bytes()).map(|query| (query.message.to_vec(), query.json))
        };
        assert_eq!(parse("encoding=json&message=%7B%7d+a"), Ok((b"{} a".to_vec(), true)));
        let binary = parse("connect=v1&base64=1&encoding=proto&message=-_8");
        assert_eq!(binary, Ok((vec![0xfb, 0xff], false)));
        assert_eq!(parse("message=&encoding=proto"), Ok((vec![], false)));
        for bad in [
            "",
            "message=a",
            "encoding=json",
            "message=a&encoding=xml",
            "message=%7&encoding=json",
            "message=%zz&encoding=json",
            "message=a&encoding=json&base64=1",
            "message=a&encoding=json&connect=v2",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn timeouts() {
        assert_eq!(connect_timeout(b"0"), Some(Duration::ZERO));
        assert_eq!(connect_timeout(b"9999999999"), Some(Duration::from_millis(9_999_999_999)));
        for bad in ["", "-1", "1s", "1.5", "10000000000"] {
            assert_eq!(connect_timeout(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn content_types() {
        let essence = |text: &str| wire(text.as_bytes());
        assert_eq!(essence("application/json"), Some(Wire::Connect { json: true }));
        assert_eq!(essence("Application/JSON; charset=utf-8"), Some(Wire::Connect { json: true }));
        assert_eq!(essence("application/grpc-web"), Some(Wire::GrpcWeb { text: false }));
        assert_eq!(essence("application/grpc-web-text+proto"), Some(Wire::GrpcWeb { text: true }));
        for bad in
            ["", "text/plain", "application/jsonx", "application/grpc", "application/grpc-web+json"]
        {
            assert_eq!(essence(bad), None, "{bad}");
        }
    }
}
