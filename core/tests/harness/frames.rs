//! HTTP/2 by hand, for saying what no client would.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use prism_io::grpc::Metadata;
use prism_io::h2::ErrorCode;
use prism_io::h2::frame::{self, FrameHeader, HEADER_BYTES, PREFACE, flag, kind};
use prism_io::h2::hpack::{Decoder, encode::literal};
use prism_proto::google::rpc::{ErrorInfo, Status};
use prism_proto::rpc::detail;
use prost::Message;

use super::{PATIENCE, Server};

/// One frame as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub head: FrameHeader,
    pub payload: Vec<u8>,
}

/// A connection without manners.
pub struct Raw {
    stream: TcpStream,
    decoder: Decoder,
    /// What came in the last block of headers.
    pub last: Metadata,
}

/// How a connection or a call of it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// GOAWAY with an error.
    Goaway(ErrorCode),
    /// The stream was reset.
    Reset(ErrorCode),
    /// Trailers: `grpc-status`, and the HTTP status where it is not 200.
    Status(String),
    /// The socket was closed without a word.
    Closed,
}

impl Raw {
    /// A connection on which nothing was sent.
    pub fn bare(server: &Server) -> Self {
        let stream = TcpStream::connect(server.listen).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, decoder: Decoder::new(), last: Metadata::new() }
    }

    /// A connection with the preface and empty SETTINGS sent, and the server's SETTINGS acknowledged.
    pub fn open(server: &Server) -> Self {
        Self::open_with(server, &[])
    }

    /// The same with settings of ours.
    pub fn open_with(server: &Server, settings: &[(u16, u32)]) -> Self {
        let mut raw = Self::bare(server);
        let mut bytes = PREFACE.to_vec();
        frame::put_settings(&mut bytes, settings);
        raw.send(&bytes);
        let first = raw.read().expect("the server's SETTINGS");
        assert_eq!(first.head.kind, kind::SETTINGS);
        raw.frame(kind::SETTINGS, flag::ACK, 0, &[]);
        raw
    }

    /// Sends bytes as they are. What the server no longer takes is lost, as for any peer.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends one frame; `false` when the server has closed the connection.
    pub fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        frame::put_header(&mut bytes, payload.len(), kind, flags, stream);
        bytes.extend_from_slice(payload);
        self.send(&bytes)
    }

    /// Sends the head of a call of `path`.
    pub fn head(&mut self, stream: u32, path: &str, extra: &[(&str, &str)], flags: u8) -> bool {
        self.frame(kind::HEADERS, flag::END_HEADERS | flags, stream, &head(path, extra))
    }

    /// Sends a whole unary call.
    pub fn call(&mut self, stream: u32, path: &str, extra: &[(&str, &str)], message: &[u8]) {
        let mut bytes = Vec::new();
        let block = head(path, extra);
        frame::put_header(&mut bytes, block.len(), kind::HEADERS, flag::END_HEADERS, stream);
        bytes.extend_from_slice(&block);
        let body = framed(message);
        let pieces = body.chunks(16_384).collect::<Vec<_>>();
        for (index, piece) in pieces.iter().enumerate() {
            let end = if index + 1 == pieces.len() { flag::END_STREAM } else { 0 };
            frame::put_header(&mut bytes, piece.len(), kind::DATA, end, stream);
            bytes.extend_from_slice(piece);
        }
        self.send(&bytes);
    }

    /// The next frame, `None` at the end of the connection.
    pub fn read(&mut self) -> Option<Frame> {
        let mut head = [0; HEADER_BYTES];
        self.fill(&mut head)?;
        let head = FrameHeader::parse(&head);
        let mut payload = vec![0; head.length as usize];
        self.fill(&mut payload)?;
        Some(Frame { head, payload })
    }

    fn fill(&mut self, into: &mut [u8]) -> Option<()> {
        match self.stream.read_exact(into) {
            Ok(()) => Some(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("the server says nothing for {PATIENCE:?}")
            }
            Err(_) => None,
        }
    }

    /// Reads until `stream`, or the whole connection, ends.
    pub fn end_of(&mut self, stream: u32) -> End {
        let code = |payload: &[u8], at: usize| {
            ErrorCode(u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes")))
        };
        while let Some(Frame { head, payload }) = self.read() {
            match head.kind {
                kind::GOAWAY => return End::Goaway(code(&payload, 4)),
                kind::RST_STREAM if head.stream == stream => return End::Reset(code(&payload, 0)),
                kind::HEADERS => {
                    let status = self.status(&payload);
                    if head.stream == stream && head.has(flag::END_STREAM) {
                        return End::Status(status);
                    }
                }
                _ => {}
            }
        }
        End::Closed
    }

    /// The end of the whole connection, whatever happens to its streams: GOAWAY's code, and that the socket is closed then.
    pub fn end(&mut self) -> End {
        let mut end = End::Closed;
        while let Some(Frame { head, payload }) = self.read() {
            if head.kind == kind::GOAWAY {
                let code = payload[4..8].try_into().expect("four bytes");
                end = End::Goaway(ErrorCode(u32::from_be_bytes(code)));
            }
        }
        end
    }

    /// Whatever comes until the server closes the connection.
    pub fn until_closed(&mut self) -> Vec<u8> {
        let (mut all, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return all,
                Ok(count) => all.extend_from_slice(&piece[..count]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    panic!("the server keeps the connection for {PATIENCE:?}")
                }
                Err(_) => return all,
            }
        }
    }

    fn status(&mut self, block: &[u8]) -> String {
        let (mut status, mut last) = (String::new(), Metadata::new());
        let each = |field: &prism_io::h2::hpack::Field<'_>| {
            let value = String::from_utf8_lossy(field.value).into_owned();
            match field.name {
                b"grpc-status" => status = value,
                b":status" if value != "200" => status = format!("HTTP {value}"),
                _ => last.push(field.name, field.value),
            }
        };
        self.decoder.decode(block, each).expect("a block of headers");
        self.last = last;
        status
    }

    /// The reason in the last status.
    pub fn reason(&self) -> String {
        let details = self.last.get_bin("grpc-status-details-bin").unwrap_or_default();
        let status = Status::decode(details.as_slice()).expect("details are a Status");
        detail::<ErrorInfo>(&status).map_or(String::new(), |info| info.reason)
    }

    /// Ends the connection from this side without waiting.
    pub fn close(self) {}
}

/// The header block of a gRPC call, all literals, so that it is the same anywhere.
pub fn head(path: &str, extra: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let ours = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "prism"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ];
    for (name, value) in ours.iter().chain(extra) {
        literal(&mut block, name.as_bytes(), value.as_bytes());
    }
    block
}

/// A message with its gRPC prefix.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut body = vec![0];
    body.extend_from_slice(&(message.len() as u32).to_be_bytes());
    body.extend_from_slice(message);
    body
}
