//! A server of a small service over either protocol, and what browsers' frames look like.
//!
//! `/t/Echo` (a read) answers with its message, `/t/Fail` with NOT_FOUND and its message, `/t/Count` with the numbers up to
//! its message. A message is text; its JSON is the text in quotes.
#![allow(dead_code, unreachable_pub)]

use std::io::{Read, Write};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use prism_io::grpc::{
    Code, Event, Limits, Message, Output, RequestHead, Route, ServerConnection, Status, StreamId,
};
use prism_io::h2::Refusal;
use prism_io::web::{Http1Connection, Origins, Schema, Web};

pub fn route(path: &[u8]) -> Option<Route> {
    let (id, client_streaming, server_streaming) = match path {
        b"/t/Echo" => (1, false, false),
        b"/t/Fail" => (2, false, false),
        b"/t/Count" => (3, false, true),
        b"/t/Talk" => (4, true, true),
        _ => return None,
    };
    Some(Route { id, client_streaming, server_streaming })
}

const SCHEMA: Schema = Schema {
    request_from_json: |_, json, into| {
        let text = std::str::from_utf8(json).map_err(|_| "not UTF-8")?.trim();
        let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        into.extend_from_slice(inner.ok_or("not JSON")?.as_bytes());
        Ok(())
    },
    reply_to_json: |_, message, into| {
        into.push(b'"');
        into.extend_from_slice(message);
        into.push(b'"');
        Ok(())
    },
    details_to_json: |details, into| {
        into.extend_from_slice(format!("[{:?}]", String::from_utf8_lossy(details)).as_bytes());
    },
    is_read: |route| route == 1,
    page: |path, seen| match path {
        "/" => (200, format!("the page of {}", seen.host)),
        _ => (404, format!("no {path}")),
    },
};

pub fn web() -> Rc<Web> {
    let origins = Origins::default();
    Rc::new(Web {
        schema: SCHEMA,
        origins,
        json_bytes_max: 500,
        is_secured: false,
        compress_bytes_min: 100,
    })
}

/// The service on one connection.
pub struct Site {
    pub http1: Option<Http1Connection>,
    pub http2: Option<ServerConnection>,
    pub input: BytesMut,
    pub now_ns: u64,
    /// Calls are not answered by themselves.
    pub wait: bool,
    pub waiting: Vec<(StreamId, (u32, Bytes))>,
    pub seen: Vec<String>,
    pub heads: Vec<RequestHead>,
}

impl Site {
    pub fn http1() -> Self {
        Self::with(&Limits::default())
    }

    pub fn with(limits: &Limits) -> Self {
        Self {
            http1: Some(Http1Connection::new(web(), limits, route, 0)),
            http2: None,
            input: BytesMut::new(),
            now_ns: 0,
            wait: false,
            waiting: Vec::new(),
            seen: Vec::new(),
            heads: Vec::new(),
        }
    }

    pub fn http2(limits: &Limits) -> Self {
        let mut connection = ServerConnection::new(limits, route, 0);
        connection.serve_web(web());
        Self { http1: None, http2: Some(connection), ..Self::with(limits) }
    }

    /// Takes bytes, and gives what is written.
    pub fn feed(&mut self, bytes: &[u8]) -> String {
        String::from_utf8_lossy(&self.feed_bytes(bytes)).into_owned()
    }

    pub fn feed_bytes(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.input.extend_from_slice(bytes);
        match (&mut self.http1, &mut self.http2) {
            (Some(connection), _) => connection.receive(&mut self.input, self.now_ns),
            (_, Some(connection)) => connection.receive(&mut self.input, self.now_ns),
            _ => unreachable!(),
        }
        let mut all = Vec::new();
        loop {
            self.turn();
            let written = self.written_bytes();
            if written.is_empty() {
                return all;
            }
            all.extend(written);
        }
    }

    /// Works through the events.
    pub fn turn(&mut self) {
        loop {
            let event = match (&mut self.http1, &mut self.http2) {
                (Some(connection), _) => connection.poll_event(),
                (_, Some(connection)) => connection.poll_event(),
                _ => unreachable!(),
            };
            match event {
                None => return,
                Some(Event::Request { stream, route, head, message }) => {
                    let text = String::from_utf8_lossy(&message).into_owned();
                    self.seen.push(format!("Request {} {text}", stream.number()));
                    self.heads.push(head);
                    match self.wait {
                        true => self.waiting.push((stream, (route, message))),
                        false => self.answer(stream, route, &message),
                    }
                }
                Some(Event::Cancelled { stream }) => {
                    self.seen.push(format!("Cancelled {}", stream.number()));
                }
                Some(_) => {}
            }
        }
    }

    fn answer(&mut self, stream: StreamId, route: u32, message: &[u8]) {
        let text = String::from_utf8_lossy(message);
        let trailers: &[(&str, &[u8])] = &[("level", b"wal")];
        let failed = Status { code: Code::NotFound, message: &text, details: b"ab", trailers };
        macro_rules! on {
            ($connection:ident) => {
                match route {
                    1 => {
                        assert!($connection.respond(stream, Message::new(message), trailers));
                    }
                    2 => {
                        assert!($connection.fail(stream, &failed));
                    }
                    _ => {
                        for number in 1..=text.parse::<u32>().unwrap() {
                            let number = number.to_string();
                            let sent =
                                $connection.send_message(stream, Message::new(number.as_bytes()));
                            assert!(sent.is_ok());
                        }
                        assert!($connection.finish(stream, &[]));
                    }
                }
            };
        }
        match (&mut self.http1, &mut self.http2) {
            (Some(connection), _) => on!(connection),
            (_, Some(connection)) => on!(connection),
            _ => unreachable!(),
        }
    }

    /// Answers the call that has waited longest.
    pub fn answer_waiting(&mut self) -> String {
        let (stream, (route, message)) = self.waiting.remove(0);
        self.answer(stream, route, &message);
        let written = self.written();
        self.turn();
        written + &self.written()
    }

    pub fn written(&mut self) -> String {
        String::from_utf8_lossy(&self.written_bytes()).into_owned()
    }

    pub fn written_bytes(&mut self) -> Vec<u8> {
        let mut output = Output::default();
        match (&mut self.http1, &mut self.http2) {
            (Some(connection), _) => connection.swap_output(&mut output),
            (_, Some(connection)) => connection.swap_output(&mut output),
            _ => unreachable!(),
        }
        output.segments().collect::<Vec<_>>().concat()
    }

    /// It is that late now; what is written for it.
    pub fn time(&mut self, now_ns: u64) -> String {
        self.now_ns = now_ns;
        if let Some(connection) = &mut self.http1 {
            connection.handle_timeout(now_ns);
        }
        self.turn();
        self.written()
    }

    pub fn is_closed(&self) -> bool {
        match (&self.http1, &self.http2) {
            (Some(connection), _) => connection.is_closed(),
            (_, Some(connection)) => connection.is_closed(),
            _ => unreachable!(),
        }
    }

    pub fn refusals(&mut self) -> Vec<(Refusal, u32)> {
        let mut all = Vec::new();
        match (&mut self.http1, &mut self.http2) {
            (Some(connection), _) => {
                connection.take_refusals(|kind, count| all.push((kind, count)))
            }
            (_, Some(connection)) => {
                connection.take_refusals(|kind, count| all.push((kind, count)))
            }
            _ => unreachable!(),
        }
        all
    }
}

/// A message behind its prefix.
pub fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut frame = vec![flag];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    frame
}

/// The messages of a body, with their flags.
pub fn unframed(mut body: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((prefix, rest)) = body.split_first_chunk::<5>() {
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        frames.push((prefix[0], rest[..length].to_vec()));
        body = &rest[length..];
    }
    assert!(body.is_empty(), "a frame is cut");
    frames
}

/// A body without its chunks, to its end.
pub fn dechunk(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|two| two == b"\r\n").expect("a line");
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        let start = end + 2;
        whole.extend_from_slice(&body[start..start + size]);
        assert_eq!(&body[start + size..start + size + 2], b"\r\n");
        body = &body[start + size + 2..];
        if size == 0 {
            assert!(body.is_empty(), "something behind the last chunk");
            return whole;
        }
    }
}

/// One gzip member.
pub fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// What one gzip member holds.
pub fn gunzip(member: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(member).read_to_end(&mut plain).expect("one gzip member");
    plain
}
