//! Sequences of frames out of arbitrary bytes: mostly such as a peer may send, so that the connection lives long enough for
//! the others to matter, and each kind of mistake now and then.

use crate::{CLIENT_REQUESTS, Role};
use arbitrary::{Result, Unstructured};
use prism_io::h2::frame::{FrameHeader, PREFACE, flag, kind};
use prism_io::h2::hpack::{Encoder, Indexing, huffman};
use std::fmt::Write as _;

/// Most frames of a sequence.
pub const FRAMES_MAX: usize = 60;
/// Payload of the largest frame that may be sent, bytes.
const FRAME_BYTES_MAX: usize = 16_384;

/// One frame as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream, maybe with the reserved bit.
    pub stream: u32,
    /// What follows the nine bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// As it goes over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let length = self.payload.len() as u32;
        let mut bytes =
            FrameHeader { length, kind: self.kind, flags: self.flags, stream: self.stream }
                .bytes()
                .to_vec();
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// A line for people.
    pub fn describe(&self) -> String {
        const NAMES: [&str; 10] = [
            "DATA",
            "HEADERS",
            "PRIORITY",
            "RST_STREAM",
            "SETTINGS",
            "PUSH_PROMISE",
            "PING",
            "GOAWAY",
            "WINDOW_UPDATE",
            "CONTINUATION",
        ];
        let mut line = match NAMES.get(self.kind as usize) {
            Some(name) => (*name).to_string(),
            None => format!("KIND {}", self.kind),
        };
        let _ = write!(
            line,
            " stream {} flags {:#x}, {} bytes:",
            self.stream,
            self.flags,
            self.payload.len()
        );
        for &byte in self.payload.iter().take(120) {
            let _ = match byte {
                b' '..=b'~' if byte != b'\\' => write!(line, "{}", byte as char),
                _ => write!(line, "\\{byte:02x}"),
            };
        }
        line
    }
}

/// What the peer of a server, or of a client, says: the first frame is its SETTINGS, the preface of a client comes before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Whose state machine is to take the frames.
    pub role: Role,
    /// In order.
    pub frames: Vec<Frame>,
}

impl Sequence {
    /// Makes a sequence; the same bytes give the same one.
    pub fn new(role: Role, bytes: &[u8]) -> Self {
        let mut maker = Maker::new(role);
        let mut input = Unstructured::new(bytes);
        // Nothing but the end of the bytes stops it early.
        let _ = maker.settings(&mut input, true);
        if maker.frames.is_empty() {
            maker.put(kind::SETTINGS, 0, 0, Vec::new());
        }
        maker.put(kind::SETTINGS, flag::ACK, 0, Vec::new());
        while maker.frames.len() < FRAMES_MAX && !input.is_empty() && maker.step(&mut input).is_ok()
        {
        }
        Self { role, frames: maker.frames }
    }

    /// What goes before the frames.
    pub fn opening(&self) -> &'static [u8] {
        match self.role {
            Role::Server => PREFACE,
            Role::Client => b"",
        }
    }

    /// Everything as it goes over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.opening().to_vec();
        for frame in &self.frames {
            bytes.extend(frame.bytes());
        }
        bytes
    }
}

/// Makes frames and remembers what they have brought about, as far as it matters to what makes sense next.
struct Maker {
    role: Role,
    frames: Vec<Frame>,
    encoder: Encoder,
    next_stream: u32,
    /// Streams that the peer may still send on, as far as we know.
    open: Vec<u32>,
    /// Streams whose head was sent (role of a client: responses).
    headed: Vec<u32>,
    /// A header block waits for CONTINUATION: its stream and what is left of it.
    block: Option<(u32, Vec<u8>)>,
}

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

impl Maker {
    fn new(role: Role) -> Self {
        let open = match role {
            Role::Server => Vec::new(),
            Role::Client => (0..CLIENT_REQUESTS).map(|nth| nth * 2 + 1).collect(),
        };
        Self {
            role,
            frames: Vec::new(),
            encoder: Encoder::new(4096),
            next_stream: 1,
            open,
            headed: Vec::new(),
            block: None,
        }
    }

    fn put(&mut self, kind: u8, flags: u8, stream: u32, payload: Vec<u8>) {
        self.frames.push(Frame { kind, flags, stream, payload });
    }

    /// A stream to speak of: mostly an open one.
    fn stream(&self, input: &mut Unstructured<'_>) -> Result<u32> {
        let choice = input.int_in_range(0..=15u8)?;
        Ok(match choice {
            0 => u32::from(input.arbitrary::<u8>()? % 32),
            1 => self.next_stream,
            2 => self.next_stream.saturating_sub(2),
            _ if self.open.is_empty() => self.next_stream.saturating_sub(2).max(1),
            _ => *input.choose(&self.open)?,
        })
    }

    fn close(&mut self, stream: u32) {
        self.open.retain(|&open| open != stream);
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        if self.block.is_some() && input.ratio(15, 16)? {
            return self.go_on_with_block(input);
        }
        match input.int_in_range(0..=99u8)? {
            0..=33 => self.head(input)?,
            34..=55 => self.data(input)?,
            56..=61 => self.trailers(input)?,
            62..=66 => {
                let (stream, code) =
                    (self.stream(input)?, u32::from(input.arbitrary::<u8>()? % 15));
                self.close(stream);
                self.put(kind::RST_STREAM, 0, stream, code.to_be_bytes().to_vec());
            }
            67..=74 => {
                let stream = if input.arbitrary()? { 0 } else { self.stream(input)? };
                let increment = match input.int_in_range(0..=31u8)? {
                    0 => 0,
                    1 => i32::MAX as u32,
                    2 => input.arbitrary()?,
                    _ => u32::from(input.arbitrary::<u16>()?) + 1,
                };
                self.put(kind::WINDOW_UPDATE, 0, stream, increment.to_be_bytes().to_vec());
            }
            75..=79 => self.settings(input, false)?,
            80..=81 => self.ping(input)?,
            82..=84 => {
                let stream = self.stream(input)?;
                let on = if input.ratio(1, 8)? { stream } else { 0 };
                let mut payload = on.to_be_bytes().to_vec();
                payload.push(15);
                self.put(kind::PRIORITY, 0, stream, payload);
            }
            85 => {
                let (last, code) = (self.stream(input)?, u32::from(input.ratio(1, 8)?));
                let mut payload = last.to_be_bytes().to_vec();
                payload.extend(code.to_be_bytes());
                self.put(kind::GOAWAY, 0, 0, payload);
            }
            86..=87 => {
                let (kind, flags) = (input.int_in_range(10..=255u8)?, input.arbitrary()?);
                let stream = self.stream(input)?;
                let payload = small(input)?;
                self.put(kind, flags, stream, payload);
            }
            88 => {
                let (stream, payload) = (self.stream(input)?, small(input)?);
                self.put(kind::CONTINUATION, flag::END_HEADERS, stream, payload);
            }
            89 => {
                let mut payload = (self.next_stream + 1).to_be_bytes().to_vec();
                payload.extend([0x82, 0x84, 0x86]);
                let stream = self.stream(input)?;
                self.put(kind::PUSH_PROMISE, flag::END_HEADERS, stream, payload);
            }
            90..=95 => {
                let stream = self.head_stream(input)?;
                let mut block = self.sound_beginning(stream);
                raw_block(input, &mut block)?;
                let end = input.arbitrary()?;
                self.put_block(input, stream, end, block)?;
            }
            96 => {
                // The right type, the wrong size.
                let kind = input.int_in_range(2..=8u8)?;
                let stream = if matches!(kind, 4 | 6 | 7) { 0 } else { self.stream(input)? };
                let payload = small(input)?;
                self.put(kind, 0, stream, payload);
            }
            97 => {
                // The right size, the wrong stream.
                let kind = input.int_in_range(0..=9u8)?;
                let bytes = [4, 4, 5, 4, 6, 8, 8, 8, 4, 1][kind as usize];
                let stream = if matches!(kind, 4 | 6 | 7) { self.stream(input)? } else { 0 };
                self.put(kind, flag::END_HEADERS, stream, vec![0; bytes]);
            }
            98 => {
                let stream = self.stream(input)?;
                self.put(kind::DATA, 0, stream, vec![0; FRAME_BYTES_MAX + 1]);
            }
            _ => {
                let frame = Frame {
                    kind: input.arbitrary::<u8>()? % 12,
                    flags: input.arbitrary()?,
                    stream: input.arbitrary::<u32>()? & 0x8000_000f,
                    payload: small(input)?,
                };
                self.frames.push(frame);
            }
        }
        Ok(())
    }

    fn ping(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let flags = u8::from(input.ratio(1, 8)?);
        let payload: [u8; 8] = input.arbitrary()?;
        self.put(kind::PING, flags, 0, payload.to_vec());
        Ok(())
    }

    fn settings(&mut self, input: &mut Unstructured<'_>, first: bool) -> Result<()> {
        let mut payload = Vec::new();
        let most = if first { 2 } else { 3 };
        for _ in 0..input.int_in_range(0..=most)? {
            let id = input.int_in_range(1..=8u16)?;
            let wild = !first && input.ratio(1, 16)?;
            let value = match id {
                _ if wild => input.arbitrary()?,
                1 => u32::from(input.arbitrary::<u16>()? % 5000),
                2 => u32::from(self.role == Role::Server && input.arbitrary()?),
                3 => u32::from(input.arbitrary::<u8>()?) + CLIENT_REQUESTS,
                4 => u32::from(input.arbitrary::<u16>()?),
                5 => 16_384 + u32::from(input.arbitrary::<u16>()?),
                6 => 1 << 20,
                _ => input.arbitrary()?,
            };
            // Extended CONNECT is another protocol.
            if id != 8 {
                payload.extend(id.to_be_bytes());
                payload.extend(value.to_be_bytes());
            }
        }
        self.put(kind::SETTINGS, 0, 0, payload);
        if !first && input.ratio(1, 16)? {
            self.put(kind::SETTINGS, flag::ACK, 0, Vec::new());
        }
        Ok(())
    }

    /// The stream of a head: mostly one that may have one.
    fn head_stream(&mut self, input: &mut Unstructured<'_>) -> Result<u32> {
        if input.ratio(1, 24)? {
            return self.stream(input);
        }
        if self.role == Role::Client {
            let free: Vec<u32> =
                self.open.iter().copied().filter(|open| !self.headed.contains(open)).collect();
            let stream =
                if free.is_empty() { self.stream(input)? } else { *input.choose(&free)? };
            return Ok(stream);
        }
        if input.ratio(1, 24)? {
            self.next_stream += 2 * u32::from(input.arbitrary::<u8>()? % 4);
        }
        let stream = self.next_stream;
        self.next_stream += 2;
        Ok(stream)
    }

    /// What a raw head needs before it, in indices; nothing where trailers are due.
    fn sound_beginning(&self, stream: u32) -> Vec<u8> {
        match self.role {
            _ if self.headed.contains(&stream) => Vec::new(),
            Role::Server => vec![0x83, 0x86, 0x84],
            Role::Client => vec![0x88],
        }
    }

    fn head(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let headed = self.open.iter().all(|open| self.headed.contains(open));
        if self.role == Role::Client && headed && input.ratio(31, 32)? {
            return if self.open.is_empty() { self.ping(input) } else { self.data(input) };
        }
        let stream = self.head_stream(input)?;
        let mut fields = match self.role {
            Role::Server => request(input)?,
            Role::Client => response(input)?,
        };
        let informational = self.role == Role::Client && fields[0].1.first() == Some(&b'1');
        regular(input, &mut fields)?;
        if input.ratio(1, 10)? {
            spoil(input, &mut fields)?;
        }
        let end = !informational && input.ratio(1, 3)?;
        let block = self.encode(input, &fields)?;
        self.put_block(input, stream, end, block)?;
        if informational {
            return Ok(());
        }
        self.headed.push(stream);
        if end {
            self.close(stream);
        } else if self.role == Role::Server {
            self.open.push(stream);
        }
        Ok(())
    }

    fn trailers(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let stream = self.stream(input)?;
        let mut fields = Vec::new();
        regular(input, &mut fields)?;
        if input.ratio(1, 10)? {
            spoil(input, &mut fields)?;
        }
        let end = input.ratio(15, 16)?;
        let block = self.encode(input, &fields)?;
        self.put_block(input, stream, end, block)?;
        self.close(stream);
        Ok(())
    }

    fn data(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let mut stream = self.stream(input)?;
        if self.role == Role::Client && !self.headed.contains(&stream) && input.ratio(31, 32)? {
            // A response begins with its head.
            let headed: Vec<u32> =
                self.open.iter().copied().filter(|open| self.headed.contains(open)).collect();
            if headed.is_empty() {
                return self.ping(input);
            }
            stream = *input.choose(&headed)?;
        }
        let end = input.ratio(1, 4)?;
        let mut payload = match input.int_in_range(0..=7u8)? {
            0 => vec![b'd'; usize::from(input.arbitrary::<u16>()?) % (FRAME_BYTES_MAX - 300)],
            1 => Vec::new(),
            _ => small(input)?,
        };
        let mut flags = u8::from(end);
        if input.ratio(1, 6)? {
            let pad: u8 = input.arbitrary()?;
            flags |= flag::PADDED;
            payload.insert(0, pad);
            if input.ratio(15, 16)? {
                payload.extend(vec![0; usize::from(pad)]);
            }
        }
        if end {
            self.close(stream);
        }
        self.put(kind::DATA, flags, stream, payload);
        Ok(())
    }

    fn encode(&mut self, input: &mut Unstructured<'_>, fields: &Fields) -> Result<Vec<u8>> {
        let mut block = Vec::new();
        if input.ratio(1, 24)? {
            self.encoder.set_table_bytes_max(usize::from(input.arbitrary::<u16>()? % 4097));
        }
        self.encoder.begin(&mut block);
        for (name, value) in fields {
            let indexing = *input.choose(&[Indexing::Index, Indexing::Plain, Indexing::Never])?;
            self.encoder.field(&mut block, name, value, indexing);
        }
        Ok(block)
    }

    /// HEADERS with padding or a priority now and then, and CONTINUATION frames.
    fn put_block(
        &mut self,
        input: &mut Unstructured<'_>,
        stream: u32,
        end: bool,
        block: Vec<u8>,
    ) -> Result<()> {
        let mut flags = u8::from(end);
        let whole = input.ratio(7, 8)? && block.len() < FRAME_BYTES_MAX - 300;
        let cut = if whole {
            flags |= flag::END_HEADERS;
            block.len()
        } else {
            input.int_in_range(0..=block.len().min(FRAME_BYTES_MAX - 300))?
        };
        let mut payload = Vec::new();
        let mut pad = 0;
        if input.ratio(1, 8)? {
            flags |= flag::PADDED;
            pad = input.arbitrary::<u8>()?;
            payload.push(pad);
        }
        if input.ratio(1, 8)? {
            flags |= flag::PRIORITY;
            let on = if input.ratio(1, 32)? { stream } else { 0x8000_0000 };
            payload.extend(on.to_be_bytes());
            payload.push(3);
        }
        payload.extend_from_slice(&block[..cut]);
        payload.extend(vec![0; usize::from(pad)]);
        if !whole {
            self.block = Some((stream, block[cut..].to_vec()));
        }
        self.put(kind::HEADERS, flags, stream, payload);
        Ok(())
    }

    fn go_on_with_block(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let Some((stream, rest)) = self.block.take() else { return Ok(()) };
        let last = input.ratio(3, 4)?;
        let most = rest.len().min(FRAME_BYTES_MAX);
        let cut = if last { most } else { input.int_in_range(0..=most)? };
        let last = last && cut == rest.len();
        self.put(
            kind::CONTINUATION,
            if last { flag::END_HEADERS } else { 0 },
            stream,
            rest[..cut].to_vec(),
        );
        if !last {
            self.block = Some((stream, rest[cut..].to_vec()));
        }
        Ok(())
    }
}

/// A few bytes.
fn small(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let count = input.int_in_range(0..=20usize)?;
    Ok(input.bytes(count.min(input.len()))?.to_vec())
}

fn pair(name: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
    (name.as_bytes().to_vec(), value.as_bytes().to_vec())
}

fn request(input: &mut Unstructured<'_>) -> Result<Fields> {
    let method =
        *input.choose(&["POST", "POST", "GET", "PUT", "HEAD", "DELETE", "OPTIONS", "X-Y"])?;
    if input.ratio(1, 32)? {
        return Ok(vec![pair(":method", "CONNECT"), pair(":authority", "host:443")]);
    }
    let scheme = *input.choose(&["http", "https"])?;
    let path = *input.choose(&["/", "/a.b/C", "/a?b=c", "/a/%20/~b"])?;
    let mut fields = vec![pair(":method", method), pair(":scheme", scheme), pair(":path", path)];
    if input.ratio(7, 8)? {
        let authority = *input.choose(&["a", "a:80", "[::1]:7400"])?;
        fields.push(pair(":authority", authority));
        if input.ratio(1, 8)? {
            let host = if input.ratio(1, 4)? { "b" } else { authority };
            fields.push(pair("host", host));
        }
    }
    Ok(fields)
}

fn response(input: &mut Unstructured<'_>) -> Result<Fields> {
    let status = *input.choose(&["200", "200", "200", "404", "204", "500", "100", "103", "599"])?;
    Ok(vec![pair(":status", status)])
}

/// Some fields that may be in any head.
fn regular(input: &mut Unstructured<'_>, fields: &mut Fields) -> Result<()> {
    const KNOWN: [(&str, &str); 10] = [
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "grpc/1"),
        ("x-a", "1"),
        ("x-a", "2"),
        ("cookie", "a=b"),
        ("accept-encoding", "gzip"),
        ("x-bin", ""),
        ("grpc-timeout", "1S"),
        ("via", "a"),
    ];
    for _ in 0..input.int_in_range(0..=5u8)? {
        match input.int_in_range(0..=11usize)? {
            known @ 0..=9 => fields.push(pair(KNOWN[known].0, KNOWN[known].1)),
            10 => {
                let value = small(input)?.iter().map(|byte| b' ' + byte % 95).collect();
                fields.push((b"x-text".to_vec(), value));
            }
            _ => {
                let length = input.arbitrary::<u8>()?.to_string();
                fields.push(pair("content-length", &length));
            }
        }
    }
    Ok(())
}

/// One of the mistakes that the RFC names (sections 8.2 and 8.3).
fn spoil(input: &mut Unstructured<'_>, fields: &mut Fields) -> Result<()> {
    const WRONG: [(&str, &str); 23] = [
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("keep-alive", "1"),
        ("proxy-connection", "close"),
        ("te", "gzip"),
        ("X-Upper", "1"),
        ("x a", "1"),
        ("", "1"),
        (":", "1"),
        (":unknown", "1"),
        (":status", "200"),
        (":method", "GET"),
        (":path", "/b"),
        (":path", ""),
        (":path", "no-slash"),
        (":scheme", "http"),
        (":authority", "a b"),
        ("content-length", "x"),
        ("content-length", "99999999999999999999999"),
        (":protocol", "websocket"),
        ("x-colon:", "1"),
        ("host", "c"),
    ];
    match input.int_in_range(0..=5u8)? {
        0 if !fields.is_empty() => {
            let at = input.choose_index(fields.len())?;
            fields.remove(at);
        }
        1 if fields.len() > 1 => {
            let (a, b) = (input.choose_index(fields.len())?, input.choose_index(fields.len())?);
            fields.swap(a, b);
        }
        2 if !fields.is_empty() => {
            let at = input.choose_index(fields.len())?;
            fields[at].1 = small(input)?;
        }
        3 if !fields.is_empty() => {
            let at = input.choose_index(fields.len())?;
            let byte = *input.choose(b"\0\n\r\t \x7f\x80\xff")?;
            let place = input.choose_index(fields[at].1.len() + 1)?;
            fields[at].1.insert(place, byte);
        }
        _ => {
            let (name, value) = *input.choose(&WRONG)?;
            let at = input.choose_index(fields.len() + 1)?;
            fields.insert(at, pair(name, value));
        }
    }
    Ok(())
}

/// Representations of HPACK as they come (RFC 7541, section 6), sound one by one for the most part.
pub fn raw_block(input: &mut Unstructured<'_>, block: &mut Vec<u8>) -> Result<()> {
    for _ in 0..input.int_in_range(0..=6u8)? {
        match input.int_in_range(0..=15u8)? {
            0..=3 => put_integer(block, 0x80, 7, 15 + usize::from(input.arbitrary::<u8>()? % 60)),
            4 => {
                let index = usize::from(input.arbitrary::<u16>()?) % 300;
                put_integer(block, 0x80, 7, index);
            }
            5 => put_integer(block, 0x20, 5, usize::from(input.arbitrary::<u16>()? % 5000)),
            6 => {
                let byte = input.arbitrary()?;
                block.push(byte);
            }
            _ => {
                let (start, bits) = *input.choose(&[(0x40, 6), (0x00, 4), (0x10, 4)])?;
                let index = match input.int_in_range(0..=3u8)? {
                    0 => 15 + usize::from(input.arbitrary::<u8>()? % 50),
                    _ => 0,
                };
                put_integer(block, start, bits, index);
                if index == 0 {
                    let mut name = small(input)?;
                    name.iter_mut().for_each(|byte| *byte = b'a' + *byte % 26);
                    name.push(b'x');
                    put_string(input, block, &name)?;
                }
                let value: Vec<u8> = small(input)?.iter().map(|byte| b'!' + byte % 94).collect();
                put_string(input, block, &value)?;
            }
        }
    }
    Ok(())
}

/// An integer with a prefix of `bits` bits (RFC 7541, section 5.1).
pub fn put_integer(out: &mut Vec<u8>, start: u8, bits: u32, value: usize) {
    let mask = (1 << bits) - 1;
    if value < mask {
        out.push(start | value as u8);
        return;
    }
    out.push(start | mask as u8);
    let mut rest = value - mask;
    while rest >= 128 {
        out.push((rest % 128) as u8 | 0x80);
        rest /= 128;
    }
    out.push(rest as u8);
}

fn put_string(input: &mut Unstructured<'_>, out: &mut Vec<u8>, text: &[u8]) -> Result<()> {
    let mut coded = Vec::new();
    if input.arbitrary()? {
        huffman::encode(text, &mut coded);
        // Padding that is none (RFC 7541, section 5.2).
        if input.ratio(1, 64)? {
            coded.push(0xff);
        }
        put_integer(out, 0x80, 7, coded.len());
        out.extend_from_slice(&coded);
    } else {
        let lie = usize::from(input.ratio(1, 64)?);
        put_integer(out, 0, 7, text.len() + lie);
        out.extend_from_slice(text);
    }
    Ok(())
}
