//! gRPC-Web and Connect over HTTP/1.1: what goes over the wire, to the letter, and what a hostile client gets.

mod web_support;

use prism_io::grpc::{CloseReason, Code, ErrorCode, Event, Limits, Message, Status};
use prism_io::h2::Refusal;
use web_support::{Site, dechunk, framed, gunzip, gzip, unframed};

/// Head and body of an answer.
fn split(answer: &[u8]) -> (String, &[u8]) {
    let at = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a whole head");
    (String::from_utf8_lossy(&answer[..at]).into_owned(), &answer[at + 4..])
}

const SECOND_NS: u64 = 1_000_000_000;

fn post(path: &str, content_type: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n{fields}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn json(path: &str, body: &str) -> Vec<u8> {
    post(path, "application/json", "", body.as_bytes())
}

/// The same body in chunks of `part` bytes.
fn chunked(path: &str, content_type: &str, body: &[u8], part: usize) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for chunk in body.chunks(part) {
        request.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend(chunk);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    request
}

#[test]
fn a_connect_call_in_json() {
    let mut site = Site::http1();
    let answer = site.feed(&json("/t/Echo", "\"hi\""));
    assert_eq!(
        answer,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-content-type-options: nosniff\r\n\
         trailer-level: wal\r\ncontent-length: 4\r\n\r\n\"hi\""
    );
    assert_eq!(site.seen, ["Request 1 hi"]);
    // The connection goes on.
    assert!(site.feed(&json("/t/Echo", "\"2\"")).ends_with("\r\n\r\n\"2\""));
}

#[test]
fn every_way_of_writing_a_message_takes_any_cut() {
    let text = "AAAAAAJoaQ=="; // a frame with "hi" in base64
    let requests = [
        (json("/t/Echo", "\"hi\""), "\r\n\r\n\"hi\"".to_string()),
        (post("/t/Echo", "application/proto", "", b"hi"), "\r\n\r\nhi".to_string()),
        (chunked("/t/Echo", "application/proto", b"hi", 1), "\r\n\r\nhi".to_string()),
        // Empty lines before a request are passed over.
        (
            [b"\r\n\r\n".to_vec(), post("/t/Echo", "application/proto", "", b"hi")].concat(),
            "\r\n\r\nhi".to_string(),
        ),
        (
            post("/t/Echo", "application/grpc-web+proto", "", &framed(0, b"hi")),
            "\r\n\r\n\0\0\0\0\u{2}hi\u{80}\0\0\0\u{1c}grpc-status: 0\r\nlevel: wal\r\n".to_string(),
        ),
        (
            post("/t/Echo", "application/grpc-web-text", "", text.as_bytes()),
            "\r\n\r\nAAAAAAJoaQ==gAAAABxncnBjLXN0YXR1czogMA0KbGV2ZWw6IHdhbA0K".to_string(),
        ),
    ];
    for (request, end) in &requests {
        let whole = Site::http1().feed(request);
        let end: Vec<u8> = end.chars().map(|c| c as u8).collect();
        let end = String::from_utf8_lossy(&end).into_owned();
        assert!(whole.ends_with(&end), "{whole:?} does not end with {end:?}");
        for part in 1..request.len() {
            let mut site = Site::http1();
            let mut answer = String::new();
            for piece in request.chunks(part) {
                answer += &site.feed(piece);
            }
            assert_eq!(answer, whole, "in parts of {part}");
            assert_eq!(site.seen, ["Request 1 hi"]);
        }
    }
}

#[test]
fn requests_sent_ahead_are_answered_in_their_order() {
    let mut site = Site::http1();
    site.wait = true;
    let three = [json("/t/Echo", "\"1\""), json("/t/Echo", "\"2\""), json("/t/Echo", "\"3\"")];
    assert_eq!(site.feed(&three.concat()), "");
    assert_eq!(site.seen, ["Request 1 1"], "one at a time");
    for nth in 1..=3 {
        let answer = site.answer_waiting();
        assert!(answer.ends_with(&format!("\"{nth}\"")), "{answer}");
    }
    assert_eq!(site.seen, ["Request 1 1", "Request 2 2", "Request 3 3"]);
    assert!(!site.is_closed());
    // More than a bound is not read while one is being answered.
    site.feed(&json("/t/Echo", "\"4\""));
    assert!(site.http1.as_ref().unwrap().wants_input());
    site.feed(&[b'x'; 70_000]);
    assert!(!site.http1.as_ref().unwrap().wants_input());
    let answer = site.answer_waiting();
    assert!(answer.contains("\"4\"HTTP/1.1 414"), "{answer}");
    assert!(site.is_closed());
}

#[test]
fn a_late_answer_goes_to_nobody() {
    let mut site = Site::http1();
    site.wait = true;
    site.feed(&json("/t/Echo", "\"1\""));
    let first = site.waiting[0].0;
    site.answer_waiting();
    site.feed(&json("/t/Echo", "\"2\""));
    let http1 = site.http1.as_mut().unwrap();
    assert!(!http1.respond(first, Message::new(b"late"), &[]));
    assert!(!http1.fail(first, &Status::new(Code::Internal, "late")));
    assert!(!http1.finish(first, &[]));
    assert!(http1.send_message(first, Message::new(b"late")).is_err());
    assert!(site.answer_waiting().ends_with("\"2\""));
}

#[test]
fn nothing_is_smuggled() {
    let second = "POST /t/Echo HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n\"\"";
    for fields in [
        "content-length: 2\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 2\r\n",
        "content-length: 2\r\ncontent-length: 2\r\n",
        "content-length: 2\r\ncontent-length: 200\r\n",
        "content-length: 2,2\r\n",
        "content-length: +2\r\n",
        "content-length : 2\r\n",
        "content-length:\r\n 2\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding:\x0bchunked\r\n",
        "x: y\n\r\n",
        "x: y\rcontent-length: 2\r\n",
        "host: b\r\n",
    ] {
        let mut site = Site::http1();
        let request = format!(
            "POST /t/Echo HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n{fields}\r\n\"\"{second}"
        );
        let answer = site.feed(request.as_bytes());
        assert!(
            answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.1 501 "),
            "{fields:?}: {answer}"
        );
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "one answer, and the end: {answer}");
        assert!(site.seen.is_empty(), "{fields:?}: {:?}", site.seen);
        let http1 = site.http1.as_mut().unwrap();
        assert!(matches!(
            http1.close_reason(),
            Some(CloseReason::Error(ErrorCode::PROTOCOL_ERROR, _))
        ));
        assert_eq!(site.refusals(), [(Refusal::MalformedHead, 1)]);
    }
    // Bodies as well.
    for body in [
        "5\r\nhello!\r\n",
        "fffffffffffffffff\r\n",
        "2\n\"\"\r\n0\r\n\r\n",
        "0x2\r\n\"\"\r\n",
        "2\r\n\"\"\r\n0\r\nx y\r\n\r\n",
    ] {
        let mut site = Site::http1();
        let request = format!(
            "POST /t/Echo HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{body}{second}"
        );
        let answer = site.feed(request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 "), "{body:?}: {answer}");
        assert!(site.seen.is_empty() && site.is_closed());
    }
}

#[test]
fn no_caller_writes_lines_into_an_answer() {
    let mut site = Site::http1();
    site.feed(&json("/t/Fail", "\"a\\r\\nx-evil: 1\""));
    let trailers: &[(&str, &[u8])] = &[("a", b"b\r\nx-evil: 1")];
    site.wait = true;
    site.feed(&json("/t/Echo", "\"x\""));
    let (stream, _) = site.waiting.remove(0);
    site.http1.as_mut().unwrap().respond(stream, Message::new(b"x"), trailers);
    let answer = site.written();
    assert!(answer.contains("trailer-a: b  x-evil: 1\r\n"), "{answer}");
}

#[test]
fn a_client_that_asks_first_is_told_to_go_on_or_not() {
    let head = |path: &str, bytes: usize| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {bytes}\r\n\r\n"
        )
    };
    let mut site = Site::http1();
    assert_eq!(site.feed(head("/t/Echo", 4).as_bytes()), "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(site.feed(b"\"hi\"").starts_with("HTTP/1.1 200 OK\r\n"));
    let answer = Site::http1().feed(head("/t/Nothing", 4).as_bytes());
    assert!(
        answer.starts_with("HTTP/1.1 404 ") && answer.contains("connection: close"),
        "{answer}"
    );
    let answer = Site::http1().feed(head("/t/Echo", 1 << 30).as_bytes());
    assert!(
        answer.starts_with("HTTP/1.1 429 ") && answer.contains("resource_exhausted"),
        "{answer}"
    );
}

#[test]
fn what_is_too_large_ends_early() {
    let limits = Limits { message_bytes_max: 1000, ..Limits::default() };
    for request in [
        post("/t/Echo", "application/proto", "", &[0; 1001]),
        post("/t/Echo", "application/proto", "", &[0; 100_000]),
        chunked("/t/Echo", "application/proto", &[0; 2000], 100),
        post("/t/Echo", "application/json", "", &[b' '; 600]), // the site's limit for JSON is 500
    ] {
        let mut site = Site::with(&limits);
        let answer = site.feed(&request);
        assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
        assert!(answer.contains("{\"code\":\"resource_exhausted\""), "{answer}");
        assert!(site.seen.is_empty() && site.is_closed());
        assert_eq!(site.refusals(), [(Refusal::MessageSize, 1)]);
    }
    // The prefix does not count.
    let mut site = Site::with(&limits);
    let message = framed(0, &[b'x'; 1000]);
    site.feed(&post("/t/Echo", "application/grpc-web", "", &message));
    assert_eq!(site.seen.len(), 1);

    let mut site = Site::with(&limits);
    let long = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(20_000));
    assert!(site.feed(long.as_bytes()).starts_with("HTTP/1.1 414 "));
    assert_eq!(site.refusals(), [(Refusal::HeaderList, 1)]);
    let mut site = Site::with(&limits);
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(5000));
    assert!(site.feed(many.as_bytes()).starts_with("HTTP/1.1 431 "));
}

#[test]
fn slow_clients_are_ended_in_time() {
    let limits = Limits::default();
    // A head that does not end.
    let mut site = Site::http1();
    site.feed(b"GET / HTTP/1.1\r\nhost:");
    site.time(limits.headers_timeout_ns - 1);
    assert!(!site.is_closed());
    let answer = site.time(limits.headers_timeout_ns);
    assert!(answer.starts_with("HTTP/1.1 408 ") && site.is_closed(), "{answer}");
    assert_eq!(site.refusals(), [(Refusal::HeaderTime, 1)]);
    // One whose bytes drip.
    let mut site = Site::http1();
    for second in 0.. {
        site.now_ns = second * SECOND_NS;
        site.feed(b"x");
        site.time(second * SECOND_NS);
        if site.is_closed() {
            assert_eq!(second * SECOND_NS, limits.headers_timeout_ns);
            break;
        }
    }
    // A body that drips.
    let mut site = Site::http1();
    site.feed(b"POST /t/Echo HTTP/1.1\r\nhost: a\r\ncontent-type: application/proto\r\ncontent-length: 1000\r\n\r\n");
    for second in 1.. {
        site.now_ns = second * SECOND_NS;
        site.feed(b"x");
        let answer = site.time(second * SECOND_NS);
        if site.is_closed() {
            assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
            assert_eq!(second * SECOND_NS, limits.slow_writer_min.period_ns);
            break;
        }
    }
    assert_eq!(site.refusals(), [(Refusal::SlowWriter, 1)]);
    // One that says nothing more.
    let mut site = Site::http1();
    site.feed(&json("/t/Echo", "\"hi\""));
    assert_eq!(site.time(limits.idle_timeout_ns), "");
    assert!(site.is_closed());
    // A call may take as long as it takes: its deadline is not this room's matter.
    let mut site = Site::http1();
    site.wait = true;
    site.feed(&json("/t/Echo", "\"hi\""));
    site.time(10 * limits.idle_timeout_ns);
    assert!(!site.is_closed());
}

#[test]
fn a_client_that_hangs_up_is_known_to_be_gone() {
    let mut site = Site::http1();
    site.wait = true;
    site.feed(&json("/t/Echo", "\"hi\""));
    site.http1.as_mut().unwrap().lost();
    site.turn();
    assert_eq!(site.seen, ["Request 1 hi", "Cancelled 1"]);
    // One that has only closed its side waits for its answers.
    let mut site = Site::http1();
    site.wait = true;
    site.feed(&[json("/t/Echo", "\"1\""), json("/t/Echo", "\"2\"")].concat());
    site.http1.as_mut().unwrap().input_ended();
    site.turn();
    assert!(!site.is_closed());
    assert!(site.answer_waiting().ends_with("\"1\""));
    assert!(site.answer_waiting().ends_with("\"2\""));
    site.turn();
    assert!(site.is_closed());
    // In the middle of a request there is nothing to wait for.
    let mut site = Site::http1();
    site.feed(b"POST /t/Echo HTTP/1.1\r\n");
    site.http1.as_mut().unwrap().input_ended();
    site.turn();
    assert!(site.is_closed());
}

#[test]
fn a_stream_comes_in_chunks() {
    let mut site = Site::http1();
    let answer = site.feed_bytes(&post("/t/Count", "application/grpc-web", "", &framed(0, b"3")));
    let (head, body) = split(&answer);
    assert!(
        head.ends_with("content-type: application/grpc-web+proto\r\ntransfer-encoding: chunked"),
        "{head}"
    );
    let body = dechunk(body);
    let frames = unframed(&body);
    assert_eq!(frames[..3], [(0, b"1".to_vec()), (0, b"2".to_vec()), (0, b"3".to_vec())]);
    assert_eq!(frames[3], (0x80, b"grpc-status: 0\r\n".to_vec()));
    // The connection goes on.
    assert!(site.feed(&json("/t/Echo", "\"hi\"")).ends_with("\"hi\""));

    let mut site = Site::http1();
    let answer =
        site.feed_bytes(&post("/t/Count", "application/connect+json", "", &framed(0, b"\"2\"")));
    let body = dechunk(split(&answer).1);
    let wanted = [(0, b"\"1\"".to_vec()), (0, b"\"2\"".to_vec()), (2, b"{}".to_vec())];
    assert_eq!(unframed(&body), wanted);
}

#[test]
fn http_1_0_ends_with_its_answer() {
    let mut site = Site::http1();
    let request = "POST /t/Count HTTP/1.0\r\ncontent-type: application/grpc-web\r\ncontent-length: 6\r\n\r\n\0\0\0\0\u{1}2";
    let answer = site.feed_bytes(request.as_bytes());
    let (head, body) = split(&answer);
    assert!(head.contains("connection: close") && !head.contains("chunked"), "{head}");
    assert_eq!(unframed(body).len(), 3, "two messages and the trailers");
    assert!(site.is_closed());
}

#[test]
fn a_reader_that_lags_is_waited_for() {
    let limits = Limits { stream_queue_bytes: 100, queue_bytes_max: 1000, ..Limits::default() };
    let mut site = Site::with(&limits);
    site.wait = true;
    site.feed(&post("/t/Count", "application/grpc-web", "", &framed(0, b"3")));
    let (stream, _) = site.waiting.remove(0);
    let http1 = site.http1.as_mut().unwrap();
    assert_eq!(http1.send_message(stream, Message::new(&[7; 20])), Ok(false), "with its head");
    assert!(!http1.is_writable(stream));
    while http1.send_message(stream, Message::new(&[7; 20])).is_ok() {}
    assert!(http1.output().len() <= 1000);
    site.written();
    assert!(matches!(site.http1.as_mut().unwrap().poll_event(), Some(Event::Writable { .. })));
    assert!(site.http1.as_ref().unwrap().is_writable(stream));
    // A stream that is given up does not look whole.
    site.http1.as_mut().unwrap().abandon(stream);
    let end = site.written();
    assert!(site.is_closed() && end.contains("grpc-status: 13"), "{end}");
}

#[test]
fn pages_and_wrong_turns() {
    for (request, status, said) in [
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", 200, "the page of a"),
        ("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n", 200, "content-length: 14"),
        ("GET http://b:1/?x HTTP/1.1\r\nhost: a\r\n\r\n", 200, "the page of b:1"),
        ("GET /x HTTP/1.1\r\nhost: a\r\n\r\n", 404, "no /x"),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n",
            200,
            "the page",
        ),
        ("PUT /t/Echo HTTP/1.1\r\nhost: a\r\n\r\n", 405, "allow: GET, HEAD, POST, OPTIONS"),
        ("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", 204, "allow: "),
        (
            "POST /t/Echo HTTP/1.1\r\nhost: a\r\n\r\n",
            415,
            "curl -H 'content-type: application/json'",
        ),
        (
            "POST /t/Echo HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\n\r\n",
            415,
            "gRPC needs HTTP/2",
        ),
        (
            "POST /t/Echo HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\n\r\n",
            415,
            "accept-post: application/json",
        ),
        (
            "POST /x HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\r\n",
            404,
            "\"code\":\"unimplemented\"",
        ),
        ("POST / HTTP/1.1\r\nhost: a\r\n\r\n", 404, "calls are POSTs"),
        ("GET / HTTP/3.0\r\nhost: a\r\n\r\n", 505, "HTTP/1.1"),
        ("GET /t/Echo HTTP/1.1\r\nhost: a\r\n\r\n", 400, "encoding=json"),
        ("GET /t/Fail?encoding=json&message=1 HTTP/1.1\r\nhost: a\r\n\r\n", 405, "allow: POST"),
    ] {
        let answer = Site::http1().feed(request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        assert!(answer.contains(said), "{request}: {answer}");
        assert!(!answer.contains("\r\n\r\nthe page") || !request.starts_with("HEAD"), "{answer}");
    }
}

#[test]
fn a_read_may_be_a_get() {
    let get = |query: &str, host: &str| {
        let mut site = Site::http1();
        let request = format!("GET /t/Echo?{query} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        (site.feed(request.as_bytes()), site.seen)
    };
    let (answer, seen) = get("connect=v1&encoding=json&message=%22hi%22", "localhost:7400");
    assert!(
        answer.ends_with("\r\n\r\n\"hi\"") && answer.contains("cache-control: no-store"),
        "{answer}"
    );
    assert_eq!(seen, ["Request 1 hi"]);
    let (answer, _) = get("encoding=proto&base64=1&message=aGk", "10.0.0.1");
    assert!(answer.ends_with("\r\n\r\nhi"), "{answer}");
    // A page whose own name leads here (DNS rebinding) makes such requests without an origin.
    let (answer, seen) = get("encoding=json&message=%22hi%22", "evil.example:7400");
    assert!(answer.starts_with("HTTP/1.1 403 ") && seen.is_empty(), "{answer}");
}

#[test]
fn pages_of_other_origins_may_not_call() {
    let with = |origin: &str| {
        let mut site = Site::http1();
        let fields = format!("origin: {origin}\r\n");
        let request = post("/t/Echo", "application/json", &fields, b"\"hi\"");
        (site.feed(&request), site.seen.len(), site.refusals())
    };
    let (answer, calls, _) = with("http://localhost:3000");
    assert!(answer.contains("access-control-allow-origin: http://localhost:3000\r\n"), "{answer}");
    assert!(
        answer.contains("vary: origin\r\n") && !answer.contains("allow-credentials"),
        "{answer}"
    );
    assert_eq!(calls, 1);
    for origin in ["https://evil.example", "null", "http://localhost.evil.example"] {
        let (answer, calls, refusals) = with(origin);
        assert!(
            answer.starts_with("HTTP/1.1 403 ") && answer.contains("web.allowed_origins"),
            "{answer}"
        );
        assert!(!answer.contains("access-control"), "{answer}");
        assert_eq!((calls, refusals), (0, vec![(Refusal::Origin, 1)]));
    }
    // The browser asks first.
    let preflight = "OPTIONS /t/Echo HTTP/1.1\r\nhost: a\r\norigin: http://localhost:3000\r\naccess-control-request-method: POST\r\n\
         access-control-request-headers: content-type,connect-protocol-version,prism-durability\r\n\r\n";
    let answer = Site::http1().feed(preflight.as_bytes());
    for line in [
        "HTTP/1.1 204 No Content\r\n",
        "access-control-allow-origin: http://localhost:3000\r\n",
        "access-control-allow-methods: GET, POST\r\n",
        "access-control-allow-headers: content-type,connect-protocol-version,prism-durability\r\n",
        "access-control-max-age: 7200\r\n",
    ] {
        assert!(answer.contains(line), "{answer}");
    }
    let answer = Site::http1()
        .feed(preflight.replace("http://localhost:3000", "https://evil.example").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("access-control"), "{answer}");
}

#[test]
fn failures_are_told_as_each_protocol_has_it() {
    let body = "\"not here\"";
    let answer = Site::http1().feed(&json("/t/Fail", body));
    assert!(
        answer.starts_with("HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\n"),
        "{answer}"
    );
    assert!(answer.contains("trailer-level: wal\r\n"), "{answer}");
    assert!(
        answer.ends_with("{\"code\":\"not_found\",\"message\":\"not here\",\"details\":[\"ab\"]}"),
        "{answer}"
    );
    let answer = Site::http1().feed(&post("/t/Fail", "application/proto", "", b"no"));
    assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
    let answer =
        Site::http1().feed(&post("/t/Fail", "application/grpc-web", "", &framed(0, b"no, 100%")));
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("grpc-status: 5\r\ngrpc-message: no, 100%25\r\ngrpc-status-details-bin: YWI\r\nlevel: wal\r\n"), "{answer}");
    for (fields, body, said) in [
        ("", "{", "not JSON"),
        ("connect-protocol-version: 2\r\n", "\"\"", "connect-protocol-version"),
        ("connect-timeout-ms: soon\r\n", "\"\"", "connect-timeout-ms"),
        ("content-encoding: br\r\n", "\"\"", "gzip"),
        ("content-encoding: gzip\r\n", "\"\"", "not valid gzip"),
    ] {
        let mut site = Site::http1();
        let answer = site.feed(&post("/t/Echo", "application/json", fields, body.as_bytes()));
        assert!(
            answer.contains(said)
                && answer.starts_with(if fields.contains("br") {
                    "HTTP/1.1 501"
                } else {
                    "HTTP/1.1 400"
                }),
            "{answer}"
        );
        assert!(site.seen.is_empty() && !site.is_closed());
    }
    for (path, content_type) in
        [("/t/Count", "application/json"), ("/t/Echo", "application/connect+proto")]
    {
        let answer = Site::http1().feed(&post(path, content_type, "", b""));
        assert!(answer.starts_with("HTTP/1.1 415 "), "{path} as {content_type}: {answer}");
    }
}

#[test]
fn metadata_and_timeouts_come_along() {
    let mut site = Site::http1();
    let fields = "Connect-Timeout-Ms: 1500\r\nPrism-Idempotency-Key: k\r\nX-Bin: y\r\nuser-agent: z\r\ncookie: secret\r\nsec-fetch-mode: cors\r\n";
    site.feed(&post("/t/Echo", "application/json", fields, b"\"hi\""));
    let head = site.heads.pop().unwrap();
    assert_eq!(head.timeout, Some(std::time::Duration::from_millis(1500)));
    let names: Vec<_> =
        head.metadata.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(names, ["prism-idempotency-key", "x-bin"]);
    site.feed(&post("/t/Echo", "application/grpc-web", "grpc-timeout: 2S\r\n", &framed(0, b"")));
    assert_eq!(site.heads.pop().unwrap().timeout, Some(std::time::Duration::from_secs(2)));
}

#[test]
fn a_drain_lets_the_running_call_end() {
    let mut site = Site::http1();
    site.wait = true;
    site.feed(&[json("/t/Echo", "\"1\""), json("/t/Echo", "\"2\"")].concat());
    site.http1.as_mut().unwrap().drain(0);
    let answer = site.answer_waiting();
    assert!(answer.contains("connection: close\r\n") && answer.ends_with("\"1\""), "{answer}");
    site.turn();
    assert!(site.is_closed());
    assert_eq!(
        site.seen,
        ["Request 1 1"],
        "the second was not begun, and may be repeated elsewhere"
    );
}

#[test]
fn bodies_and_messages_may_be_compressed_both_ways() {
    let text = "hello ".repeat(50);
    let ask = |content_type, fields, body: &[u8]| {
        let mut site = Site::http1();
        let answer = site.feed_bytes(&post("/t/Echo", content_type, fields, body));
        let (head, body) = split(&answer);
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        assert_eq!(site.seen, [format!("Request 1 {text}")]);
        (head, body.to_vec())
    };
    let quoted = format!("\"{text}\"");
    for (content_type, plain) in [("application/proto", &text), ("application/json", &quoted)] {
        let both = "content-encoding: gzip\r\nAccept-Encoding: br, gzip\r\n";
        let (head, body) = ask(content_type, both, &gzip(plain.as_bytes()));
        assert!(head.contains("\r\ncontent-encoding: gzip"), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert_eq!(gunzip(&body), plain.as_bytes());
        // Only who takes it gets it.
        let (head, body) = ask(content_type, "content-encoding: gzip\r\n", &gzip(plain.as_bytes()));
        assert!(!head.contains("content-encoding"), "{head}");
        assert_eq!(body, plain.as_bytes());
    }
    let compressed = framed(1, &gzip(text.as_bytes()));
    let fields = "grpc-encoding: gzip\r\ngrpc-accept-encoding: gzip\r\n";
    let (head, body) = ask("application/grpc-web", fields, &compressed);
    assert!(head.contains("\r\ngrpc-encoding: gzip"), "{head}");
    let frames = unframed(&body);
    assert_eq!(frames[0].0, 1);
    assert_eq!(gunzip(&frames[0].1), text.as_bytes());
    let (_, body) = ask("application/grpc-web", "grpc-encoding: gzip\r\n", &compressed);
    assert_eq!(unframed(&body)[0], (0, text.clone().into_bytes()));
    // A flag without an encoding.
    for content_type in ["application/grpc-web", "application/grpc-web+proto"] {
        let answer = Site::http1().feed(&post("/t/Echo", content_type, "", &compressed));
        assert!(answer.contains("grpc-status: 3") && answer.contains("no encoding"), "{answer}");
    }
    // In the target of a GET, in base64.
    let mut target = String::new();
    for byte in gzip(quoted.as_bytes()) {
        target.push_str(&format!("%{byte:02x}"));
    }
    let get = format!(
        "GET /t/Echo?encoding=json&compression=gzip&message={target} HTTP/1.1\r\nhost: localhost\r\n\r\n"
    );
    let answer = Site::http1().feed(get.as_bytes());
    assert!(answer.ends_with(&format!("\r\n\r\n{quoted}")), "{answer}");
}

/// What a body may grow to is its limit, of JSON the smaller one.
#[test]
fn a_compressed_body_that_grows_is_cut_off() {
    let limits = Limits { message_bytes_max: 100_000, ..Limits::default() };
    let bomb = gzip(&vec![b'a'; 10_000_000]);
    assert!(bomb.len() < limits.message_bytes_max as usize);
    for (content_type, fields, body) in [
        ("application/proto", "content-encoding: gzip\r\n", bomb.clone()),
        ("application/json", "content-encoding: gzip\r\n", gzip(&[b' '; 600])),
        ("application/grpc-web", "grpc-encoding: gzip\r\n", framed(1, &bomb)),
    ] {
        let mut site = Site::with(&limits);
        let answer = site.feed(&post("/t/Echo", content_type, fields, &body));
        assert!(answer.contains("once decompressed"), "{content_type}: {answer}");
        let expected =
            if content_type.contains("grpc") { "grpc-status: 8" } else { "HTTP/1.1 429 " };
        assert!(answer.contains(expected), "{content_type}: {answer}");
        assert!(site.seen.is_empty());
    }
}
