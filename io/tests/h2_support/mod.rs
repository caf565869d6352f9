//! Frames as text, in and out, for the tests of HTTP/2 and gRPC.
#![allow(dead_code, unreachable_pub)]

use bytes::BytesMut;
use prism_io::grpc::{Event, Limits, Message, Output, Route, ServerConnection};
use prism_io::h2::ErrorCode;
use prism_io::h2::StreamId;
use prism_io::h2::frame::{FrameHeader, HEADER_BYTES, PREFACE, put_header};
use prism_io::h2::hpack::{Decoder, Encoder, Indexing};

pub fn route(path: &[u8]) -> Option<Route> {
    let (id, client_streaming, server_streaming) = match path {
        b"/t/Unary" => (1, false, false),
        b"/t/Silent" => (2, false, false),
        b"/t/Stream" => (3, true, true),
        _ => return None,
    };
    Some(Route { id, client_streaming, server_streaming })
}

const REQUEST: &str = ":method=POST :scheme=http :path=/t/Unary :authority=a te=trailers \
     content-type=application/grpc";

/// Turns lines of text into frames. See the tests for the language.
pub struct Writer {
    pub encoder: Encoder,
}

impl Writer {
    pub fn new() -> Self {
        Self { encoder: Encoder::new(0) }
    }

    pub fn block(&mut self, words: &[&str]) -> Vec<u8> {
        let mut block = Vec::new();
        self.encoder.begin(&mut block);
        let all = words.iter().flat_map(|word| match *word {
            "@req" => REQUEST.split_whitespace().collect::<Vec<_>>(),
            "@silent" | "@stream" => Vec::from_iter(REQUEST.split_whitespace()),
            other => vec![other],
        });
        for word in all {
            if let Some(hex) = word.strip_prefix("0x") {
                block.extend(unhex(hex));
                continue;
            }
            let at = word[1..].find('=').expect("name=value") + 1;
            let (name, value) = (&word[..at], &word[at + 1..]);
            let value = match (name, words.contains(&"@silent"), words.contains(&"@stream")) {
                (":path", true, _) => "/t/Silent",
                (":path", _, true) => "/t/Stream",
                _ => value,
            };
            let value = value.replace('_', " ").replace("\\n", "\n");
            self.encoder.field(&mut block, name.as_bytes(), value.as_bytes(), Indexing::Plain);
        }
        block
    }

    /// `HEADERS 1 eh @req`, `CONT 1 h …`, `DATA 1 e msg:abc`, `SETTINGS - 4=10`, `PING - 8 bytes`, `RST 1 8`, `WU 0 100`,
    /// `PRIORITY 3 1`, `GOAWAY 0 0`, `RAW kind flags stream hex`. Flags: e END_STREAM, h END_HEADERS, p PADDED by three,
    /// P PRIORITY on itself, a ACK, - none.
    pub fn frames(&mut self, text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |at: usize| words[at].parse::<u32>().expect("a number");
            let (kind, stream, flags, payload) = match words[0] {
                "HEADERS" => (1, number(1), words[2], self.block(&words[3..])),
                "CONT" => (9, number(1), words[2], self.block(&words[3..])),
                "DATA" => (0, number(1), words[2], data(&words[3..])),
                "SETTINGS" => {
                    let mut payload = Vec::new();
                    for pair in &words[2..] {
                        let (id, value) = pair.split_once('=').expect("id=value");
                        payload.extend(id.parse::<u16>().unwrap().to_be_bytes());
                        payload.extend(value.parse::<u32>().unwrap().to_be_bytes());
                    }
                    (4, 0, words[1], payload)
                }
                "PING" => (6, 0, words[1], b"pingpong".to_vec()),
                "RST" => (3, number(1), "-", number(2).to_be_bytes().to_vec()),
                "WU" => (8, number(1), "-", number(2).to_be_bytes().to_vec()),
                "PRIORITY" => {
                    let mut payload = number(2).to_be_bytes().to_vec();
                    payload.push(15);
                    (2, number(1), "-", payload)
                }
                "GOAWAY" => {
                    let mut payload = number(1).to_be_bytes().to_vec();
                    payload.extend(number(2).to_be_bytes());
                    (7, 0, "-", payload)
                }
                "RAW" => {
                    let payload = words.get(4).map(|hex| unhex(hex)).unwrap_or_default();
                    let kind = number(1) as u8;
                    put_header(&mut out, payload.len(), kind, number(2) as u8, number(3));
                    out.extend(payload);
                    continue;
                }
                other => panic!("unknown line {other}"),
            };
            let mut bits = 0;
            let mut payload = payload;
            for flag in flags.chars() {
                match flag {
                    'e' | 'a' => bits |= 1,
                    'h' => bits |= 4,
                    'P' => {
                        bits |= 0x20;
                        let mut dependency = stream.to_be_bytes().to_vec();
                        dependency.push(0);
                        payload.splice(0..0, dependency);
                    }
                    'p' => {
                        bits |= 8;
                        payload.insert(0, 3);
                        payload.extend([0; 3]);
                    }
                    '-' => {}
                    other => panic!("unknown flag {other}"),
                }
            }
            put_header(&mut out, payload.len(), kind, bits, stream);
            out.extend(payload);
        }
        out
    }
}

fn data(words: &[&str]) -> Vec<u8> {
    let mut payload = Vec::new();
    for word in words {
        if let Some(text) = word.strip_prefix("msg:") {
            payload.push(0);
            payload.extend((text.len() as u32).to_be_bytes());
            payload.extend(text.as_bytes());
        } else if let Some(count) = word.strip_prefix('#') {
            payload.extend(vec![0; count.parse().unwrap()]);
        } else {
            payload.extend(unhex(word));
        }
    }
    payload
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// Turns frames into lines of text.
pub struct Reader {
    decoder: Decoder,
    rest: Vec<u8>,
}

impl Reader {
    pub fn new() -> Self {
        Self { decoder: Decoder::new(), rest: Vec::new() }
    }

    pub fn lines(&mut self, bytes: &[u8], into: &mut Vec<String>) {
        self.rest.extend_from_slice(bytes);
        while let Some(header) = self.rest.first_chunk::<HEADER_BYTES>() {
            let header = FrameHeader::parse(header);
            let end = HEADER_BYTES + header.length as usize;
            if self.rest.len() < end {
                break;
            }
            let payload: Vec<u8> = self.rest[HEADER_BYTES..end].to_vec();
            self.rest.drain(..end);
            let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
            let end_stream = if header.flags & 1 == 1 { " end" } else { "" };
            into.push(match header.kind {
                0 => format!("DATA {} {}{end_stream}", header.stream, payload.len()),
                1 => {
                    let mut line = format!("HEADERS {}{end_stream}", header.stream);
                    self.decoder
                        .decode(&payload, |field| {
                            if field.name != b"content-type" {
                                line.push(' ');
                                line += &String::from_utf8_lossy(field.name);
                                line.push('=');
                                line += &String::from_utf8_lossy(field.value);
                            }
                        })
                        .expect("a good block");
                    line
                }
                3 => format!("RST_STREAM {} {:?}", header.stream, ErrorCode(word(0))),
                4 if header.flags & 1 == 1 => "SETTINGS ack".to_string(),
                4 => format!("SETTINGS {}", payload.len() / 6),
                6 if header.flags & 1 == 1 => "PING ack".to_string(),
                6 => "PING".to_string(),
                7 => format!("GOAWAY {} {:?}", word(0), ErrorCode(word(4))),
                8 => format!("WINDOW_UPDATE {} {}", header.stream, word(0)),
                9 => format!("CONTINUATION {} {}", header.stream, payload.len()),
                other => format!("KIND {other}"),
            });
        }
    }
}

/// A server that echoes unary calls on `/t/Unary`, never answers `/t/Silent`, and shows what happens as text.
pub struct Server {
    pub grpc: ServerConnection,
    pub writer: Writer,
    pub reader: Reader,
    pub input: BytesMut,
    pub output: Output,
    pub now_ns: u64,
    pub echo: bool,
    /// The call that began last.
    pub stream: Option<StreamId>,
}

impl Server {
    /// Before the preface.
    pub fn fresh(limits: &Limits) -> Self {
        Self {
            grpc: ServerConnection::new(limits, route, 0),
            writer: Writer::new(),
            reader: Reader::new(),
            input: BytesMut::new(),
            output: Output::default(),
            now_ns: 0,
            echo: true,
            stream: None,
        }
    }

    /// After the handshake.
    pub fn new(limits: &Limits) -> Self {
        let mut server = Self::fresh(limits);
        let mut hello = PREFACE.to_vec();
        hello.extend(server.writer.frames("SETTINGS -\nSETTINGS a"));
        let lines = server.feed(&hello);
        assert!(lines.contains(&"SETTINGS ack".to_string()), "{lines:?}");
        server
    }

    pub fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        self.input.extend_from_slice(bytes);
        let mut lines = Vec::new();
        self.grpc.receive(&mut self.input, self.now_ns);
        self.turn(&mut lines);
        lines
    }

    pub fn turn(&mut self, lines: &mut Vec<String>) {
        loop {
            while let Some(event) = self.grpc.poll_event() {
                lines.push(match event {
                    Event::Request { stream, route, message, head } => {
                        self.stream = Some(stream);
                        if route == 1 && self.echo {
                            self.grpc.respond(stream, Message::new(&message), &[]);
                        }
                        let packed = if head.compressed { " packed" } else { "" };
                        format!("Request {} {}{packed}", stream.number(), message.len())
                    }
                    Event::Open { stream, .. } => {
                        self.stream = Some(stream);
                        format!("Open {}", stream.number())
                    }
                    Event::Message { stream, message, compressed } => {
                        let packed = if compressed { " packed" } else { "" };
                        format!("Message {} {}{packed}", stream.number(), message.len())
                    }
                    Event::HalfClose { stream } => format!("HalfClose {}", stream.number()),
                    Event::Cancelled { stream } => format!("Cancelled {}", stream.number()),
                    Event::Writable { stream } => format!("Writable {}", stream.number()),
                });
            }
            self.grpc.swap_output(&mut self.output);
            if self.output.is_empty() {
                break;
            }
            for segment in self.output.segments() {
                self.reader.lines(segment, lines);
            }
        }
    }

    /// What was refused since the last time, by the metric's label.
    pub fn refused(&mut self) -> Vec<(&'static str, u32)> {
        let mut all = Vec::new();
        self.grpc.take_refusals(|kind, count| all.push((kind.name(), count)));
        all
    }

    pub fn say(&mut self, text: &str) -> Vec<String> {
        let bytes = self.writer.frames(text);
        self.feed(&bytes)
    }
}
