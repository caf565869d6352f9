//! RFC 9113 section by section: frames in, events and frames out. Each case also runs cut at every byte.

mod h2_support;

use h2_support::{Server, Writer};
use prism_io::grpc::{Event, Limits};

/// Section, what is sent after the handshake, what is to be seen.
const CASES: &[(&str, &str, &str)] = &[
    (
        "a unary call",
        "HEADERS 1 h @req
         DATA 1 e msg:hello",
        "Request 1 5
         HEADERS 1 :status=200
         DATA 1 10
         HEADERS 1 end grpc-status=0",
    ),
    (
        "4.1 unknown frame types are ignored",
        "RAW 77 255 1 0102
         PING -",
        "PING ack",
    ),
    (
        "4.2 a frame above SETTINGS_MAX_FRAME_SIZE",
        "HEADERS 1 h @silent
         DATA 1 - #16385",
        "GOAWAY 1 FRAME_SIZE_ERROR",
    ),
    (
        "4.3 a header block that does not decode",
        "HEADERS 1 eh 0xffff",
        "GOAWAY 1 COMPRESSION_ERROR",
    ),
    (
        "4.3 frames between the parts of a header block",
        "HEADERS 1 - @req
         PING -",
        "GOAWAY 0 PROTOCOL_ERROR",
    ),
    (
        "4.3 CONTINUATION of another stream",
        "HEADERS 1 - @req
         CONT 3 h",
        "GOAWAY 0 PROTOCOL_ERROR",
    ),
    ("5.1 idle: DATA", "DATA 1 e #1", "GOAWAY 0 PROTOCOL_ERROR"),
    ("5.1 idle: RST_STREAM", "RST 1 0", "GOAWAY 0 PROTOCOL_ERROR"),
    ("5.1 idle: WINDOW_UPDATE", "WU 1 100", "GOAWAY 0 PROTOCOL_ERROR"),
    ("5.1 idle: CONTINUATION", "CONT 1 h", "GOAWAY 0 PROTOCOL_ERROR"),
    (
        "5.1 half-closed (remote): DATA",
        "HEADERS 1 h @silent
         DATA 1 e msg:a
         DATA 1 e msg:a",
        "Request 1 1
         Cancelled 1
         RST_STREAM 1 STREAM_CLOSED",
    ),
    (
        "5.1 half-closed (remote): HEADERS",
        "HEADERS 1 h @silent
         DATA 1 e msg:a
         HEADERS 1 eh @req",
        "Request 1 1
         Cancelled 1
         RST_STREAM 1 STREAM_CLOSED",
    ),
    (
        "5.1 closed by END_STREAM: DATA",
        "HEADERS 1 h @req
         DATA 1 e msg:a
         DATA 1 e msg:a",
        "Request 1 1
         HEADERS 1 :status=200
         DATA 1 6
         HEADERS 1 end grpc-status=0
         RST_STREAM 1 STREAM_CLOSED",
    ),
    (
        "5.1 closed by END_STREAM: HEADERS",
        "HEADERS 1 h @req
         DATA 1 e msg:a
         HEADERS 1 eh @req",
        "Request 1 1
         HEADERS 1 :status=200
         DATA 1 6
         HEADERS 1 end grpc-status=0
         GOAWAY 1 STREAM_CLOSED",
    ),
    (
        "5.1 closed by END_STREAM: WINDOW_UPDATE and RST_STREAM are ignored",
        "HEADERS 1 h @req
         DATA 1 e msg:a
         WU 1 5
         RST 1 8",
        "Request 1 1
         HEADERS 1 :status=200
         DATA 1 6
         HEADERS 1 end grpc-status=0",
    ),
    (
        "5.1 closed by RST_STREAM of the peer: DATA",
        "HEADERS 1 h @silent
         RST 1 8
         DATA 1 e #1",
        "RST_STREAM 1 STREAM_CLOSED",
    ),
    (
        "5.1 closed by our RST_STREAM: what was on its way is ignored",
        "HEADERS 1 h @silent
         DATA 1 e msg:a
         DATA 1 - #1
         DATA 1 - #1
         PING -",
        "Request 1 1
         Cancelled 1
         RST_STREAM 1 STREAM_CLOSED
         PING ack",
    ),
    ("5.1.1 an even stream", "HEADERS 2 eh @req", "GOAWAY 0 PROTOCOL_ERROR"),
    (
        "5.1.1 a lower stream that was never used",
        "HEADERS 5 h @silent
         HEADERS 3 h @silent",
        "GOAWAY 5 PROTOCOL_ERROR",
    ),
    (
        "5.3.1 HEADERS that depend on themselves",
        "HEADERS 1 ehP @req",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "5.3.1 PRIORITY that depends on itself",
        "HEADERS 1 h @silent
         PRIORITY 1 1",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "5.5 an unknown frame inside a header block",
        "HEADERS 1 - @req\nRAW 99 0 1",
        "GOAWAY 0 PROTOCOL_ERROR",
    ),
    ("6.1 DATA on stream 0", "RAW 0 0 0 00", "GOAWAY 0 PROTOCOL_ERROR"),
    (
        "6.1 padding is taken off and counted",
        "HEADERS 1 hp @req
         DATA 1 ep msg:abc",
        "Request 1 3
         HEADERS 1 :status=200
         DATA 1 8
         HEADERS 1 end grpc-status=0",
    ),
    (
        "6.1 more padding than payload",
        "HEADERS 1 h @silent\nRAW 0 8 1 050000",
        "GOAWAY 1 PROTOCOL_ERROR",
    ),
    ("6.1 padded without a length", "HEADERS 1 h @silent\nRAW 0 8 1", "GOAWAY 1 FRAME_SIZE_ERROR"),
    ("6.2 HEADERS on stream 0", "RAW 1 5 0 82", "GOAWAY 0 PROTOCOL_ERROR"),
    ("6.2 more padding than block", "RAW 1 13 1 0582", "GOAWAY 0 PROTOCOL_ERROR"),
    ("6.3 PRIORITY on stream 0", "RAW 2 0 0 0000000001", "GOAWAY 0 PROTOCOL_ERROR"),
    (
        "6.3 PRIORITY of the wrong size",
        "HEADERS 1 h @silent
         RAW 2 0 1 00000000",
        "RST_STREAM 1 FRAME_SIZE_ERROR",
    ),
    ("6.3 PRIORITY on an idle stream is ignored", "PRIORITY 9 1\nPING -", "PING ack"),
    ("6.4 RST_STREAM on stream 0", "RAW 3 0 0 00000000", "GOAWAY 0 PROTOCOL_ERROR"),
    (
        "6.4 RST_STREAM of the wrong size",
        "HEADERS 1 h @silent\nRAW 3 0 1 0000",
        "GOAWAY 1 FRAME_SIZE_ERROR",
    ),
    (
        "6.4 RST_STREAM cancels the call",
        "HEADERS 1 h @silent
         DATA 1 e msg:a
         RST 1 8",
        "Request 1 1
         Cancelled 1",
    ),
    ("6.5 SETTINGS on a stream", "RAW 4 0 1", "GOAWAY 0 PROTOCOL_ERROR"),
    ("6.5 SETTINGS of the wrong size", "RAW 4 0 0 000000", "GOAWAY 0 FRAME_SIZE_ERROR"),
    (
        "6.5 acknowledged SETTINGS with a payload",
        "RAW 4 1 0 000100000000",
        "GOAWAY 0 FRAME_SIZE_ERROR",
    ),
    ("6.5.2 ENABLE_PUSH of 2", "SETTINGS - 2=2", "GOAWAY 0 PROTOCOL_ERROR"),
    ("6.5.2 INITIAL_WINDOW_SIZE of 2^31", "SETTINGS - 4=2147483648", "GOAWAY 0 FLOW_CONTROL_ERROR"),
    ("6.5.2 MAX_FRAME_SIZE of 16383", "SETTINGS - 5=16383", "GOAWAY 0 PROTOCOL_ERROR"),
    ("6.5.2 MAX_FRAME_SIZE of 2^24", "SETTINGS - 5=16777216", "GOAWAY 0 PROTOCOL_ERROR"),
    ("6.5.2 unknown settings are ignored", "SETTINGS - 99=1", "SETTINGS ack"),
    ("6.5.3 SETTINGS are acknowledged", "SETTINGS - 1=0 3=7", "SETTINGS ack"),
    ("6.6 PUSH_PROMISE of a client", "RAW 5 4 1 00000002", "GOAWAY 0 PROTOCOL_ERROR"),
    ("6.7 PING", "PING -", "PING ack"),
    ("6.7 PING on a stream", "RAW 6 0 1 0000000000000000", "GOAWAY 0 PROTOCOL_ERROR"),
    ("6.7 PING of the wrong size", "RAW 6 0 0 00", "GOAWAY 0 FRAME_SIZE_ERROR"),
    ("6.7 PING acknowledgements are not answered", "PING a\nPING -", "PING ack"),
    ("6.8 GOAWAY on a stream", "RAW 7 0 1 0000000000000000", "GOAWAY 0 PROTOCOL_ERROR"),
    ("6.8 GOAWAY of the wrong size", "RAW 7 0 0 00", "GOAWAY 0 FRAME_SIZE_ERROR"),
    ("6.8 GOAWAY without open streams closes", "GOAWAY 0 0\nPING -", ""),
    (
        "6.8 after GOAWAY open calls are finished",
        "HEADERS 1 h @req
         GOAWAY 0 0
         DATA 1 e msg:a",
        "Request 1 1
         HEADERS 1 :status=200
         DATA 1 6
         HEADERS 1 end grpc-status=0",
    ),
    ("6.9 WINDOW_UPDATE of 0 on the connection", "WU 0 0", "GOAWAY 0 PROTOCOL_ERROR"),
    (
        "6.9 WINDOW_UPDATE of 0 on a stream",
        "HEADERS 1 h @silent\nWU 1 0",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    ("6.9 WINDOW_UPDATE of the wrong size", "RAW 8 0 0 0000", "GOAWAY 0 FRAME_SIZE_ERROR"),
    ("6.9.1 overflow of the connection's window", "WU 0 2147483647", "GOAWAY 0 FLOW_CONTROL_ERROR"),
    (
        "6.9.1 overflow of a stream's window",
        "HEADERS 1 h @silent
         WU 1 2147483647",
        "RST_STREAM 1 FLOW_CONTROL_ERROR",
    ),
    (
        "6.9.2 a changed initial size overflows an open stream",
        "HEADERS 1 h @silent
         WU 1 2147418112
         SETTINGS - 4=65536",
        "GOAWAY 1 FLOW_CONTROL_ERROR",
    ),
    (
        "6.9.2 a window of 0 holds the answer, then a change of it lets it go",
        "SETTINGS - 4=3
         HEADERS 1 h @req
         DATA 1 e msg:hello
         SETTINGS - 4=10",
        "Request 1 5
         SETTINGS ack
         HEADERS 1 :status=200
         DATA 1 3
         SETTINGS ack
         DATA 1 7
         HEADERS 1 end grpc-status=0",
    ),
    (
        "6.10 CONTINUATION",
        "HEADERS 1 - @req\nCONT 1 -\nCONT 1 h\nDATA 1 e msg:a",
        "Request 1 1
         HEADERS 1 :status=200
         DATA 1 6
         HEADERS 1 end grpc-status=0",
    ),
    (
        "6.10 CONTINUATION after END_HEADERS",
        "HEADERS 1 h @silent\nCONT 1 h",
        "GOAWAY 1 PROTOCOL_ERROR",
    ),
    (
        "6.8 a second GOAWAY may name a stream as high as the first did",
        "HEADERS 1 h @req
         GOAWAY 2147483647 0
         GOAWAY 0 0
         DATA 1 e msg:a",
        "Request 1 1
         HEADERS 1 :status=200
         DATA 1 6
         HEADERS 1 end grpc-status=0",
    ),
    (
        "6.8 a second GOAWAY that names a higher one changes nothing",
        "HEADERS 1 h @req
         GOAWAY 0 0
         GOAWAY 8 0
         DATA 1 e msg:a",
        "Request 1 1
         HEADERS 1 :status=200
         DATA 1 6
         HEADERS 1 end grpc-status=0",
    ),
    ("6.8 GOAWAY with an error ends the connection", "HEADERS 1 h @silent\nGOAWAY 0 2\nPING -", ""),
    (
        "7 an error code that is not known ends a stream like any other",
        "HEADERS 1 h @silent
         DATA 1 e msg:a
         RST 1 305419896
         PING -",
        "Request 1 1
         Cancelled 1
         PING ack",
    ),
    (
        "7 an error code that is not known ends a connection like any other",
        "HEADERS 1 h @silent
         DATA 1 e msg:a
         GOAWAY 0 305419896
         PING -",
        "Request 1 1
         Cancelled 1",
    ),
    (
        "8.1 trailers without END_STREAM",
        "HEADERS 1 h @silent\nHEADERS 1 h a=b",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.1 pseudo-headers in trailers",
        "HEADERS 1 h @silent\nHEADERS 1 eh :path=/",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.1 a request may end with trailers",
        "HEADERS 1 h @req
         DATA 1 - msg:a
         HEADERS 1 eh x=y",
        "Request 1 1
         HEADERS 1 :status=200
         DATA 1 6
         HEADERS 1 end grpc-status=0",
    ),
    (
        "8.1.1 content-length above the payload",
        "HEADERS 1 h @silent content-length=7
         DATA 1 e msg:a",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.1.1 content-length below the payload",
        "HEADERS 1 h @silent content-length=5
         DATA 1 e msg:a",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.1.1 content-length without a payload",
        "HEADERS 1 eh @silent content-length=1",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.1.1 content-length twice",
        "HEADERS 1 h @req content-length=1 content-length=2",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.1.1 content-length that is none",
        "HEADERS 1 h @req content-length=+1",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    ("8.2.1 upper case", "HEADERS 1 eh @req X-Y=z", "RST_STREAM 1 PROTOCOL_ERROR"),
    ("8.2.1 a line feed in a value", "HEADERS 1 eh @req x=a\\nb", "RST_STREAM 1 PROTOCOL_ERROR"),
    ("8.2.1 white space before a value", "HEADERS 1 eh @req x=_b", "RST_STREAM 1 PROTOCOL_ERROR"),
    ("8.2.2 connection", "HEADERS 1 eh @req connection=close", "RST_STREAM 1 PROTOCOL_ERROR"),
    (
        "8.2.2 transfer-encoding",
        "HEADERS 1 eh @req transfer-encoding=chunked",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    ("8.2.2 te other than trailers", "HEADERS 1 eh @req te=gzip", "RST_STREAM 1 PROTOCOL_ERROR"),
    (
        "8.2.3 cookies may come in several fields",
        "HEADERS 1 h @req cookie=a=b cookie=c=d
         DATA 1 e msg:a",
        "Request 1 1
         HEADERS 1 :status=200
         DATA 1 6
         HEADERS 1 end grpc-status=0",
    ),
    ("8.3 an unknown pseudo-header", "HEADERS 1 eh :x=y @req", "RST_STREAM 1 PROTOCOL_ERROR"),
    (
        "8.3 a response's pseudo-header",
        "HEADERS 1 eh :status=200 @req",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.3 a pseudo-header after a field",
        "HEADERS 1 eh :method=POST :scheme=http a=b :path=/t/Unary",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    ("8.3.1 no :method", "HEADERS 1 eh :scheme=http :path=/t/Unary", "RST_STREAM 1 PROTOCOL_ERROR"),
    ("8.3.1 no :scheme", "HEADERS 1 eh :method=POST :path=/t/Unary", "RST_STREAM 1 PROTOCOL_ERROR"),
    ("8.3.1 no :path", "HEADERS 1 eh :method=POST :scheme=http", "RST_STREAM 1 PROTOCOL_ERROR"),
    (
        "8.3.1 an empty :path",
        "HEADERS 1 eh :method=POST :scheme=http :path=",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    ("8.3.1 two :path", "HEADERS 1 eh :path=/t/Unary @req", "RST_STREAM 1 PROTOCOL_ERROR"),
    (
        "8.3.1 a :path that is not absolute",
        "HEADERS 1 eh :method=POST :scheme=http :path=t",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.5 CONNECT is well-formed, and no call",
        "HEADERS 1 eh :method=CONNECT :authority=a:1
         PING -",
        "HEADERS 1 :status=405 allow=POST
         DATA 1 56 end
         PING ack",
    ),
    (
        "8.5 CONNECT without an authority",
        "HEADERS 1 eh :method=CONNECT",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.5 CONNECT with a scheme",
        "HEADERS 1 eh :method=CONNECT :scheme=http :authority=a:1",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.5 CONNECT with a path",
        "HEADERS 1 eh :method=CONNECT :path=/ :authority=a",
        "RST_STREAM 1 PROTOCOL_ERROR",
    ),
];

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim().to_string()).filter(|line| !line.is_empty()).collect()
}

/// Events in their order and frames in their order: how the two mix depends on how the input was cut.
fn sorted(seen: Vec<String>) -> (Vec<String>, Vec<String>) {
    seen.into_iter().partition(|line| {
        ["Request", "Open", "Message", "HalfClose", "Cancelled", "Writable"]
            .iter()
            .any(|event| line.starts_with(event))
    })
}

#[test]
fn every_case_gives_what_the_rfc_says() {
    let mut wrong = Vec::new();
    for (section, input, expected) in CASES {
        let mut server = Server::new(&Limits::default());
        let seen = server.say(input);
        if seen != lines(expected) {
            wrong
                .push(format!("{section}:\n  expected {:?}\n  seen     {seen:?}", lines(expected)));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_case_gives_the_same_wherever_it_is_cut() {
    for (section, input, expected) in CASES {
        let bytes = Writer::new().frames(input);
        let expected = sorted(lines(expected));
        for cut in 1..bytes.len().min(120) {
            let mut server = Server::new(&Limits::default());
            let mut seen = server.feed(&bytes[..cut]);
            seen.extend(server.feed(&bytes[cut..]));
            assert_eq!(sorted(seen), expected, "{section}, cut at {cut}");
        }
        if bytes.len() < 2000 {
            let mut server = Server::new(&Limits::default());
            let seen = bytes.iter().flat_map(|byte| server.feed(&[*byte])).collect();
            assert_eq!(sorted(seen), expected, "{section}, byte by byte");
        }
    }
}

/// RFC 9113, section 3.4.
#[test]
fn the_preface() {
    let limits = Limits::default();
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // In any pieces; nothing is sent before it is whole.
    let mut server = Server::fresh(&limits);
    for byte in &hello[..hello.len() - 1] {
        assert!(server.feed(&[*byte]).is_empty());
    }
    assert_eq!(server.feed(b"\n"), ["SETTINGS 5", "WINDOW_UPDATE 0 4128769"]);
    // The first frame has to be SETTINGS.
    assert_eq!(server.say("PING -"), ["GOAWAY 0 PROTOCOL_ERROR"]);
    assert!(server.grpc.is_closed());

    let mut server = Server::fresh(&limits);
    assert_eq!(server.feed(b"PRI * HTTP/2.1\r\n\r\n"), ["GOAWAY 0 PROTOCOL_ERROR"]);
    let mut server = Server::fresh(&limits);
    assert_eq!(server.feed(b"\0\0\0\x04\0"), ["GOAWAY 0 PROTOCOL_ERROR"]);
    assert!(server.grpc.is_closed());
    // A client that begins TLS gets an alert of it.
    let mut server = Server::fresh(&limits);
    server.input.extend_from_slice(b"\x16\x03\x01\x02\x00");
    server.grpc.receive(&mut server.input, 0);
    assert_eq!(server.grpc.output().inline, prism_io::tls::ALERT_FOR_TLS);
    assert!(server.grpc.is_closed());
}

#[test]
fn http_1_gets_an_answer_in_its_own_words() {
    for request in
        ["GET / HTTP/1.1\r\nhost: a\r\n\r\n", "POST /t/Unary HTTP/1.1\r\n", "PUT /", "PATCH / "]
    {
        let mut server = Server::fresh(&Limits::default());
        for byte in request.as_bytes() {
            server.input.extend_from_slice(&[*byte]);
            server.grpc.receive(&mut server.input, 0);
            assert!(server.grpc.poll_event().is_none());
        }
        let text = String::from_utf8(server.grpc.output().inline.clone()).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{request}: {text}");
        assert!(text.contains("gRPC over HTTP/2 with prior knowledge"));
        assert!(server.grpc.is_closed());
    }
}

/// Section 7: every code that the peer may end a stream with does the same to its call.
#[test]
fn every_error_code_ends_a_stream() {
    for code in (0..16).chain([0x7fff_ffff, u32::MAX]) {
        let mut server = Server::new(&Limits::default());
        server.say("HEADERS 1 h @silent\nDATA 1 e msg:a");
        assert_eq!(server.say(&format!("RST 1 {code}")), ["Cancelled 1"], "{code}");
        assert_eq!(server.say("PING -"), ["PING ack"], "{code}");
    }
}

/// Section 8.2.3: who reads the fields of a head finds one cookie.
#[test]
fn cookies_are_put_together() {
    let mut server = Server::new(&Limits::default());
    let head = "HEADERS 1 h @stream cookie=a=b x=y cookie=c=d cookie=e=f";
    let bytes = server.writer.frames(head);
    server.input.extend_from_slice(&bytes);
    server.grpc.receive(&mut server.input, 0);
    let Some(Event::Open { head, .. }) = server.grpc.poll_event() else { panic!("no call") };
    let cookies: Vec<_> = head.metadata.get_all("cookie").collect();
    assert_eq!(cookies, [b"a=b; c=d; e=f"]);
    assert_eq!(head.metadata.get("x"), Some(&b"y"[..]));
}

/// Section 6.8: the last stream that is named never becomes a higher one, whatever the connection ends of.
#[test]
fn a_goaway_never_names_more_than_the_one_before() {
    let mut server = Server::new(&Limits::default());
    server.say("HEADERS 1 h @silent\nDATA 1 e msg:a");
    server.grpc.drain(0);
    let mut lines = Vec::new();
    server.turn(&mut lines);
    assert_eq!(lines, ["GOAWAY 2147483647 NO_ERROR", "PING"]);
    assert_eq!(server.say("RAW 6 1 0 647261696e6e6f77"), ["GOAWAY 1 NO_ERROR"]);
    assert_eq!(server.say("HEADERS 3 h @silent\nHEADERS 5 h @silent"), [""; 0]);
    assert_eq!(server.say("RAW 6 0 0 00"), ["Cancelled 1", "GOAWAY 1 FRAME_SIZE_ERROR"]);
}
