//! gRPC-Web and Connect over HTTP/2, on a connection that carries gRPC as well.

mod h2_support;
mod web_support;

use std::collections::BTreeMap;

use bytes::Bytes;
use h2_support::Writer;
use prism_io::grpc::{Limits, Message};
use prism_io::h2::Refusal;
use prism_io::h2::frame::{FrameHeader, HEADER_BYTES, PREFACE, flag, kind};
use prism_io::h2::hpack::Decoder;
use web_support::{Site, framed, gunzip, gzip, unframed};

/// A client that keeps what comes of every stream.
struct Client {
    site: Site,
    writer: Writer,
    decoder: Decoder,
    rest: Vec<u8>,
    answers: BTreeMap<u32, Answer>,
}

#[derive(Debug, Default, Clone)]
struct Answer {
    fields: Vec<(String, String)>,
    body: Vec<u8>,
    ended: bool,
    reset: Option<u32>,
}

impl Answer {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    fn new(limits: &Limits) -> Self {
        let (site, writer) = (Site::http2(limits), Writer::new());
        let (decoder, rest, answers) = (Decoder::new(), Vec::new(), BTreeMap::new());
        let mut client = Self { site, writer, decoder, rest, answers };
        let hello = [PREFACE.to_vec(), client.writer.frames("SETTINGS -\nSETTINGS a")].concat();
        client.feed(&hello);
        client
    }

    fn feed(&mut self, bytes: &[u8]) {
        let written = self.site.feed_bytes(bytes);
        self.read(&written);
    }

    fn read(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        while let Some(header) = self.rest.first_chunk::<HEADER_BYTES>() {
            let head = FrameHeader::parse(header);
            let end = HEADER_BYTES + head.length as usize;
            if self.rest.len() < end {
                return;
            }
            let payload: Vec<u8> = self.rest.drain(..end).skip(HEADER_BYTES).collect();
            let answer = self.answers.entry(head.stream).or_default();
            match head.kind {
                kind::DATA => answer.body.extend(payload),
                kind::HEADERS => {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    let fields = &mut answer.fields;
                    let decoded = self.decoder.decode(&payload, |field| {
                        fields.push((text(field.name), text(field.value)))
                    });
                    decoded.expect("a good block");
                }
                kind::RST_STREAM => {
                    answer.reset = Some(u32::from_be_bytes(payload[..4].try_into().unwrap()));
                }
                kind::GOAWAY => panic!("GOAWAY {payload:?}"),
                _ => {}
            }
            answer.ended |=
                matches!(head.kind, kind::DATA | kind::HEADERS) && head.has(flag::END_STREAM);
        }
    }

    /// Sends a request whose words are fields, as [`Writer`] has them.
    fn ask(&mut self, stream: u32, words: &str, body: Option<&[u8]>) -> Answer {
        let end = if body.is_none() { "eh" } else { "h" };
        let head = format!("HEADERS {stream} {end} :scheme=http :authority=a {words}");
        let mut bytes = self.writer.frames(&head);
        if let Some(body) = body {
            let mut pieces = body.chunks(16_384).peekable();
            if pieces.peek().is_none() {
                prism_io::h2::frame::put_header(
                    &mut bytes,
                    0,
                    kind::DATA,
                    flag::END_STREAM,
                    stream,
                );
            }
            while let Some(piece) = pieces.next() {
                let end = if pieces.peek().is_none() { flag::END_STREAM } else { 0 };
                prism_io::h2::frame::put_header(&mut bytes, piece.len(), kind::DATA, end, stream);
                bytes.extend_from_slice(piece);
            }
        }
        self.feed(&bytes);
        self.answers.get(&stream).cloned().unwrap_or_default()
    }

    fn post(&mut self, stream: u32, path: &str, content_type: &str, body: &[u8]) -> Answer {
        let words = format!(":method=POST :path={path} content-type={content_type}");
        self.ask(stream, &words, Some(body))
    }
}

#[test]
fn all_of_them_share_a_connection() {
    let mut client = Client::new(&Limits::default());
    let json = client.post(1, "/t/Echo", "application/json", b"\"hi\"");
    assert_eq!(json.field(":status"), Some("200"));
    assert_eq!(json.field("content-length"), Some("4"));
    assert_eq!(json.field("trailer-level"), Some("wal"));
    assert!(json.ended && json.reset.is_none() && json.text() == "\"hi\"", "{json:?}");

    let proto = client.post(3, "/t/Echo", "application/proto", b"hi");
    assert_eq!((proto.text().as_str(), proto.ended), ("hi", true));

    let web = client.post(5, "/t/Echo", "application/grpc-web+proto", &framed(0, b"hi"));
    let trailers = (0x80, b"grpc-status: 0\r\nlevel: wal\r\n".to_vec());
    assert_eq!(unframed(&web.body), [(0, b"hi".to_vec()), trailers]);
    assert!(web.ended);

    let count = client.post(7, "/t/Count", "application/grpc-web", &framed(0, b"3"));
    assert_eq!(unframed(&count.body).len(), 4);
    assert!(count.ended);

    let words = ":method=POST :path=/t/Echo te=trailers content-type=application/grpc";
    let grpc = client.ask(9, words, Some(&framed(0, b"hi")));
    assert_eq!(unframed(&grpc.body), [(0, b"hi".to_vec())]);
    assert_eq!(grpc.field("grpc-status"), Some("0"));

    let failed = client.post(11, "/t/Fail", "application/json", b"\"no\"");
    assert_eq!(failed.field(":status"), Some("404"));
    assert!(failed.text().starts_with("{\"code\":\"not_found\""), "{failed:?}");
    assert_eq!(client.site.http2.as_ref().unwrap().open_streams(), 0);
}

#[test]
fn a_remembered_head_of_grpc_is_not_taken_for_another() {
    let mut client = Client::new(&Limits::default());
    // The same path and method again and again, so that the heads' common beginning is remembered.
    for round in 0..8 {
        let stream = 1 + round * 4;
        let json = client.post(stream, "/t/Echo", "application/json", b"\"hi\"");
        assert_eq!(json.text(), "\"hi\"", "{json:?}");
        let words = ":method=POST :path=/t/Echo te=trailers content-type=application/grpc";
        let grpc = client.ask(stream + 2, words, Some(&framed(0, b"hi")));
        assert_eq!(grpc.field("grpc-status"), Some("0"), "{grpc:?}");
    }
}

#[test]
fn a_request_is_heard_out_before_it_is_refused() {
    let mut client = Client::new(&Limits::default());
    for (nth, (words, status, said)) in [
        (":method=POST :path=/t/Nothing content-type=application/json", "404", "unimplemented"),
        (":method=POST :path=/t/Echo", "415", "content-type"),
        (":method=POST :path=/t/Echo content-type=text/plain", "415", "content-type"),
        (":method=PUT :path=/t/Echo", "405", "POST"),
        (
            ":method=POST :path=/t/Echo content-type=application/json origin=https://evil.example",
            "403",
            "web.allowed_origins",
        ),
        (":method=POST :path=/t/Count content-type=application/json", "415", "stream"),
        (
            ":method=POST :path=/t/Talk content-type=application/connect+proto",
            "200",
            "unimplemented",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = client.ask(1 + 2 * nth as u32, words, Some(&[b'x'; 40_000]));
        assert_eq!(answer.field(":status"), Some(status), "{words}: {answer:?}");
        assert!(answer.text().contains(said), "{words}: {answer:?}");
        assert!(answer.ended && answer.reset.is_none(), "{words}: {answer:?}");
    }
    assert!(client.site.seen.is_empty());
    assert_eq!(client.site.refusals(), [(Refusal::Origin, 1)]);
}

#[test]
fn pages_and_gets() {
    let mut client = Client::new(&Limits::default());
    let page = client.ask(1, ":method=GET :path=/", None);
    assert_eq!((page.field(":status"), page.ended), (Some("200"), true));
    assert!(page.text().contains("the page"), "{page:?}");
    let head = client.ask(3, ":method=HEAD :path=/", None);
    assert_eq!((head.field(":status"), head.text().as_str(), head.ended), (Some("200"), "", true));
    let get = client.ask(5, ":method=GET :path=/t/Echo?encoding=json&message=%22hi%22", None);
    assert_eq!(get.text(), "\"hi\"", "{get:?}");
    let bare = client.ask(7, ":method=GET :path=/t/Echo", None);
    assert_eq!(bare.field(":status"), Some("400"));
    let words = ":method=OPTIONS :path=/t/Echo origin=http://localhost:1 access-control-request-method=POST";
    let preflight = client.ask(9, words, None);
    assert_eq!(preflight.field(":status"), Some("204"));
    assert_eq!(preflight.field("access-control-allow-origin"), Some("http://localhost:1"));
    assert!(preflight.ended && preflight.body.is_empty());
}

#[test]
fn bodies_are_bounded() {
    let limits =
        Limits { message_bytes_max: 50_000, gather_bytes_max: 60_000, ..Limits::default() };
    let mut client = Client::new(&limits);
    let large = client.post(1, "/t/Echo", "application/proto", &[0; 60_000]);
    assert_eq!(large.field(":status"), Some("429"), "{large:?}");
    let json = client.post(3, "/t/Echo", "application/json", &[b' '; 501]);
    assert_eq!(json.field(":status"), Some("429"), "{json:?}");
    // Two that are not whole, together above the connection's bound.
    let start = |stream: u32| {
        let mut writer = Writer::new();
        let mut bytes = writer.frames(&format!(
            "HEADERS {stream} h :scheme=http :authority=a :method=POST :path=/t/Echo content-type=application/proto"
        ));
        for _ in 0..2 {
            prism_io::h2::frame::put_header(&mut bytes, 16_000, kind::DATA, 0, stream);
            bytes.extend([0; 16_000]);
        }
        bytes
    };
    client.feed(&start(5));
    client.feed(&start(7));
    assert_eq!(client.answers[&7].field(":status"), Some("429"));
    assert!(!client.answers.contains_key(&5) || client.answers[&5].fields.is_empty());
    let kinds = client.site.refusals();
    assert!(
        kinds.contains(&(Refusal::MessageSize, 2))
            && kinds.iter().any(|(kind, _)| *kind == Refusal::Gathered),
        "{kinds:?}"
    );
    // What is left of the first gives its room back.
    let reset = client.writer.frames("RST 5 8");
    client.feed(&reset);
    assert_eq!(client.site.http2.as_ref().unwrap().buffered_bytes(), 0);
    let after = client.post(9, "/t/Echo", "application/proto", &[b'x'; 50_000]);
    assert_eq!(after.body.len(), 50_000);
}

#[test]
fn a_large_answer_waits_for_the_window() {
    let limits = Limits { queue_bytes_max: 300_000, ..Limits::default() };
    let mut client = Client::new(&limits);
    client.site.wait = true;
    client.post(1, "/t/Echo", "application/proto", b"x");
    let (stream, _) = client.site.waiting.remove(0);
    let tail = Bytes::from(vec![7; 200_000]);
    let http2 = client.site.http2.as_mut().unwrap();
    assert!(http2.respond(stream, Message { head: b"", tail: tail.clone() }, &[]));
    let written = client.site.written_bytes();
    client.read(&written);
    assert_eq!(client.answers[&1].body.len(), 65_535, "as much as the window takes");
    // Another that does not fit beside it is told so.
    client.post(3, "/t/Echo", "application/json", b"\"x\"");
    let (second, _) = client.site.waiting.remove(0);
    let http2 = client.site.http2.as_mut().unwrap();
    http2.respond(second, Message { head: b"", tail }, &[]);
    let window = client.writer.frames("WU 0 400000\nWU 1 400000\nWU 3 400000");
    client.feed(&window);
    assert_eq!((client.answers[&1].body.len(), client.answers[&1].ended), (200_000, true));
    let told = client.answers[&3].clone();
    assert!(told.ended && told.text().contains("resource_exhausted"), "{told:?}");
}

#[test]
fn a_client_that_resets_is_known_to_be_gone() {
    let mut client = Client::new(&Limits::default());
    client.site.wait = true;
    client.post(1, "/t/Count", "application/grpc-web", &framed(0, b"3"));
    let reset = client.writer.frames("RST 1 8");
    client.feed(&reset);
    assert_eq!(client.site.seen, ["Request 1 3", "Cancelled 1"]);
    let (stream, _) = client.site.waiting.remove(0);
    let http2 = client.site.http2.as_mut().unwrap();
    assert!(!http2.respond(stream, Message::new(b"late"), &[]));
    assert!(http2.send_message(stream, Message::new(b"late")).is_err());
}

#[test]
fn compression_is_the_same_as_over_http1() {
    let mut client = Client::new(&Limits::default());
    let text = "hello ".repeat(50);
    let words = ":method=POST :path=/t/Echo content-type=application/proto content-encoding=gzip accept-encoding=gzip";
    let unary = client.ask(1, words, Some(&gzip(text.as_bytes())));
    assert_eq!(unary.field("content-encoding"), Some("gzip"));
    assert_eq!(gunzip(&unary.body), text.as_bytes());

    let words = ":method=POST :path=/t/Echo content-type=application/grpc-web grpc-encoding=gzip grpc-accept-encoding=gzip";
    let web = client.ask(3, words, Some(&framed(1, &gzip(text.as_bytes()))));
    assert_eq!(web.field("grpc-encoding"), Some("gzip"));
    let frames = unframed(&web.body);
    assert_eq!((frames[0].0, gunzip(&frames[0].1)), (1, text.into_bytes()));

    // Messages of a stream that are too small to be compressed say so, each by itself.
    let words = ":method=POST :path=/t/Count content-type=application/connect+proto connect-content-encoding=gzip \
         connect-accept-encoding=gzip";
    let stream = client.ask(5, words, Some(&framed(1, &gzip(b"3"))));
    assert_eq!(stream.field("connect-content-encoding"), Some("gzip"));
    let frames = unframed(&stream.body);
    assert_eq!(frames.len(), 4);
    assert_eq!(frames[2], (0, b"3".to_vec()));

    let words = ":method=POST :path=/t/Echo content-type=application/proto content-encoding=gzip";
    let bad = client.ask(7, words, Some(b"no gzip"));
    assert_eq!(bad.field(":status"), Some("400"));
    let words = ":method=POST :path=/t/Echo content-type=application/grpc-web grpc-encoding=snappy";
    let unknown = client.ask(9, words, Some(&framed(1, b"?")));
    assert!(String::from_utf8_lossy(&unknown.body).contains("grpc-status: 12"), "{unknown:?}");
}
