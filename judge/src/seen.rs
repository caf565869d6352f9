//! What can be observed of one end of a connection: what its application was told, and what it wrote.

use prism_io::h2::frame::{FrameHeader, HEADER_BYTES, flag, kind};
use prism_io::h2::hpack::Decoder;
use std::collections::BTreeMap;

/// Fields by name; the order of the values of one name is kept, that of the names is nobody's business (RFC 9110, section 5.3).
pub type FieldMap = BTreeMap<String, Vec<Vec<u8>>>;

/// What the application was told of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Pseudo-headers and fields of the request or the final response.
    pub head: Option<FieldMap>,
    /// The payload so far.
    pub body: Vec<u8>,
    /// Trailers.
    pub trailers: Option<FieldMap>,
    /// The peer has ended its side.
    pub ended: bool,
    /// The stream was reset, with that code.
    pub reset: Option<u32>,
}

/// What was written on a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// `:status` of the answer, or `:path` of the request.
    pub head: Option<Vec<u8>>,
    /// Bytes of DATA.
    pub data_bytes: usize,
    /// END_STREAM was set.
    pub ended: bool,
    /// RST_STREAM, with that code; the first one.
    pub reset: Option<u32>,
}

/// Window updates by stream. Equal to any other: see `Seen::granted`.
#[derive(Debug, Clone, Default)]
pub struct Granted(pub BTreeMap<u32, u64>);

impl PartialEq for Granted {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Granted {}

/// Everything that was observed of one end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// By stream.
    pub told: BTreeMap<u32, Told>,
    /// By stream.
    pub written: BTreeMap<u32, Written>,
    /// Payloads of the PINGs that were acknowledged.
    pub pongs: Vec<[u8; 8]>,
    /// SETTINGS that were acknowledged.
    pub settings_acknowledged: usize,
    /// The last GOAWAY that was written: last stream and code.
    pub goaway: Option<(u32, u32)>,
    /// Bytes by which WINDOW_UPDATEs have opened the windows, 0 being the connection's. When to send one is a matter of taste.
    pub granted: Granted,
    /// The end reads no more.
    pub closed: bool,
}

impl Seen {
    /// What was told of a stream.
    pub fn told(&mut self, stream: u32) -> &mut Told {
        self.told.entry(stream).or_default()
    }
}

/// Reads what an end writes into a `Seen`.
#[derive(Debug, Default)]
pub struct OutputReader {
    rest: Vec<u8>,
    decoder: Decoder,
    block: Vec<u8>,
    preface_read: bool,
}

impl OutputReader {
    /// Takes bytes as they were written. A client's preface is skipped.
    ///
    /// # Panics
    /// When what was written is not HTTP/2: both ends have to keep to the frame layer whatever they are fed.
    pub fn read(&mut self, bytes: &[u8], seen: &mut Seen) {
        self.rest.extend_from_slice(bytes);
        if !self.preface_read {
            if self.rest.len() < HEADER_BYTES {
                return;
            }
            if self.rest.starts_with(b"PRI ") {
                if self.rest.len() < 24 {
                    return;
                }
                self.rest.drain(..24);
            }
            self.preface_read = true;
        }
        let mut at = 0;
        while let Some(header) = self.rest[at..].first_chunk::<HEADER_BYTES>() {
            let header = FrameHeader::parse(header);
            let start = at + HEADER_BYTES;
            let end = start + header.length as usize;
            let Some(payload) = self.rest.get(start..end) else { break };
            at = end;
            let word =
                |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"));
            let end_stream = header.has(flag::END_STREAM);
            match header.kind {
                kind::DATA => {
                    let written = seen.written.entry(header.stream).or_default();
                    assert!(written.head.is_some() && !written.ended, "DATA where none may be");
                    written.data_bytes += payload.len();
                    written.ended |= end_stream;
                }
                kind::HEADERS | kind::CONTINUATION => {
                    self.block.extend_from_slice(payload);
                    if header.kind == kind::HEADERS {
                        let written = seen.written.entry(header.stream).or_default();
                        assert!(!written.ended, "HEADERS after the end");
                        written.ended = end_stream;
                    }
                    if header.has(flag::END_HEADERS) {
                        let written = seen.written.entry(header.stream).or_default();
                        let block = std::mem::take(&mut self.block);
                        let fields = self.decoder.decode(&block, |field| {
                            if matches!(field.name, b":status" | b":path") {
                                written.head = Some(field.value.to_vec());
                            }
                        });
                        fields.expect("a sound block");
                    }
                }
                kind::RST_STREAM => {
                    let written = seen.written.entry(header.stream).or_default();
                    written.reset.get_or_insert(word(0));
                }
                kind::WINDOW_UPDATE => {
                    *seen.granted.0.entry(header.stream).or_default() += u64::from(word(0));
                }
                kind::SETTINGS if header.has(flag::ACK) => seen.settings_acknowledged += 1,
                kind::PING if header.has(flag::ACK) => {
                    seen.pongs.push(payload.try_into().expect("eight bytes"));
                }
                kind::GOAWAY => seen.goaway = Some((word(0), word(4))),
                _ => {}
            }
        }
        self.rest.drain(..at);
    }
}
