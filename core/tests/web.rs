//! The data port as browsers and curl see it: JSON and gRPC-Web over plain sockets, through the same request path as gRPC.

mod harness;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use harness::{Caller, Neighbour, PATIENCE, Server, directory, run, serve};
use prism_proto::prism::keyvalue::v1 as kv;
use prost::Message;
use serde_json::{Value, json};

const KEYVALUE: &str = "/prism.keyvalue.v1.KeyValueService";

/// One answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (known, value) = line.split_once(": ")?;
            known.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection of HTTP/1.1.
struct Http {
    stream: BufReader<TcpStream>,
}

impl Http {
    fn to(server: &Server) -> Self {
        let stream = TcpStream::connect(server.listen).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.get_mut().write_all(bytes).is_ok()
    }

    /// Reads one answer.
    fn answer(&mut self) -> Answer {
        let mut head = String::new();
        loop {
            let mut line = String::new();
            let count = self.stream.read_line(&mut line).expect("an answer in time");
            assert!(count > 0, "the server closed in the middle of {head:?}");
            if line == "\r\n" {
                break;
            }
            head += &line;
        }
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
        let mut answer = Answer { status, head, body: Vec::new() };
        if let Some(length) = answer.field("content-length") {
            let mut body = vec![0; length.parse().expect("a number")];
            self.stream.read_exact(&mut body).expect("the whole body");
            answer.body = body;
        } else if answer.field("transfer-encoding") == Some("chunked") {
            answer.body = self.chunks();
        }
        answer
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut whole = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("a size");
            let size = usize::from_str_radix(line.trim_end(), 16).expect("a size");
            let mut chunk = vec![0; size + 2];
            self.stream.read_exact(&mut chunk).expect("a chunk");
            assert_eq!(&chunk[size..], b"\r\n");
            whole.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return whole;
            }
        }
    }

    fn post(&mut self, method: &str, content_type: &str, fields: &str, body: &[u8]) -> Answer {
        let head = format!(
            "POST {KEYVALUE}/{method} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n{fields}\r\n",
            body.len()
        );
        self.send(&[head.as_bytes(), body].concat());
        self.answer()
    }

    fn call(&mut self, method: &str, fields: &str, body: &Value) -> Answer {
        self.post(method, "application/json", fields, body.to_string().as_bytes())
    }

    /// Everything until the server closes.
    fn until_closed(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }
}

fn server(path: &std::path::Path) -> Server {
    // Two shards, so that the home of a namespace is often another than that of the connection.
    serve(path)
        .shards(2)
        .namespaces(&[("keyvalue", "wal"), ("n-a", "wal"), ("n-b", "memory")])
        .start()
}

#[test]
fn json_calls_take_the_same_way_as_grpc_ones() {
    let directory = directory();
    let server = server(directory.path());
    let neighbour = Neighbour::of(&server);
    let listen = server.listen;
    for namespace in ["keyvalue", "n-a", "n-b"] {
        // Several connections, so that both shards accept some.
        for round in 0..4 {
            let mut http = Http::to(&server);
            let key = format!("k{round}");
            let set =
                json!({"namespace": namespace, "key": key, "value": "aGVsbG8=", "ttl": "3600s"});
            let answer = http.call("Set", "", &set);
            assert_eq!(
                (answer.status, &answer.json()["applied"]),
                (200, &json!(true)),
                "{answer:?}"
            );
            let level = if namespace == "n-b" { "memory" } else { "wal" };
            assert_eq!(answer.field("trailer-prism-durability"), Some(level), "{answer:?}");
            assert_eq!(answer.field("trailer-prism-lsn").is_some(), level == "wal");
            let answer = http.call("Get", "", &json!({"namespace": namespace, "key": key}));
            let entry = &answer.json()["entry"];
            assert_eq!(entry["value"], "aGVsbG8=", "{answer:?}");
            assert!(entry["expiresAt"].as_str().is_some_and(|time| time.ends_with('Z')), "{entry}");
            if level == "memory" {
                // A namespace that has something in the log goes on with it.
                continue;
            }
            // The level that a call asks for.
            let answer = http.call("Set", "Prism-Durability: strong\r\n", &set);
            assert_eq!(answer.field("trailer-prism-durability"), Some("strong"), "{answer:?}");
        }
        run(async move {
            let caller = Caller::to(listen, namespace).await;
            assert_eq!(caller.get("k0").await.as_deref(), Some(&b"hello"[..]), "and gRPC sees it");
        });
    }
    neighbour.leave();
    server.stop();
}

#[test]
fn an_idempotency_key_works_over_http_and_across_protocols() {
    let directory = directory();
    let server = server(directory.path());
    let mut http = Http::to(&server);
    let swap = json!({"namespace": "n-a", "key": "once", "expectedAbsent": {}, "value": "YQ=="});
    let key = "prism-idempotency-key: k-1\r\n";
    let first = http.call("CompareAndSwap", key, &swap);
    assert_eq!((first.status, &first.json()["swapped"]), (200, &json!(true)), "{first:?}");
    assert_eq!(first.field("trailer-prism-replayed"), None);
    let again = Http::to(&server).call("CompareAndSwap", key, &swap);
    assert_eq!(again.json()["swapped"], json!(true), "{again:?}");
    assert_eq!(again.field("trailer-prism-replayed"), Some("true"));
    assert_eq!(again.field("trailer-prism-lsn"), first.field("trailer-prism-lsn"));
    // The same call by gRPC is the same call.
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "n-a").await;
        let request = caller.swap_request("once", None, b"a");
        let key: &[(&str, &[u8])] = &[("prism-idempotency-key", b"k-1")];
        let (answer, trailers) = caller.try_swap(key, &request).await.expect("the first outcome");
        assert!(answer.swapped);
        assert_eq!(trailers.get("prism-replayed"), Some(&b"true"[..]));
    });
    let mut other = swap.clone();
    other["value"] = json!("Yg==");
    let reused = http.call("CompareAndSwap", key, &other);
    assert_eq!(reused.status, 400, "{reused:?}");
    assert_eq!(reused.json()["details"][0]["debug"]["reason"], "IDEMPOTENCY_KEY_REUSED");
    server.stop();
}

#[test]
fn refusals_say_what_grpc_says() {
    let directory = directory();
    let server = server(directory.path());
    let mut http = Http::to(&server);
    for (method, fields, body, status, code, said) in [
        (
            "Get",
            "",
            json!({"namespace": "nowhere", "key": "a"}),
            404,
            "not_found",
            "NAMESPACE_UNKNOWN",
        ),
        (
            "Get",
            "",
            json!({"namespace": "keyvalue", "key": ""}),
            400,
            "invalid_argument",
            "KEY_INVALID",
        ),
        ("Get", "", json!({"key": "a"}), 400, "invalid_argument", "NAMESPACE_MISSING"),
        ("Get", "", json!({"namespace": "keyvalue", "kee": "a"}), 400, "invalid_argument", "kee"),
        (
            "Set",
            "prism-durability: best\r\n",
            json!({"namespace": "keyvalue", "key": "a"}),
            400,
            "invalid_argument",
            "DURABILITY_INVALID",
        ),
        (
            "Set",
            "connect-timeout-ms: 0\r\n",
            json!({"namespace": "keyvalue", "key": "late"}),
            504,
            "deadline_exceeded",
            "NOT_APPLIED",
        ),
    ] {
        let answer = http.call(method, fields, &body);
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.json()["code"], code, "{answer:?}");
        assert!(answer.text().contains(said), "{answer:?}");
    }
    assert_eq!(
        http.call("Get", "", &json!({"namespace": "keyvalue", "key": "late"})).json()["found"],
        json!(false)
    );
    // Refusals are counted as those of gRPC are.
    assert!(server.metric("prism_refused_total") >= 1.0);
    server.stop();
}

#[test]
fn grpc_web_streams_a_scan() {
    let directory = directory();
    let server = server(directory.path());
    let listen = server.listen;
    run(async move {
        let caller = Caller::to(listen, "n-a").await;
        for number in 0..60 {
            caller.set(&format!("s/{number}"), &[7; 5000]).await;
        }
    });
    let request = kv::ScanRequest { namespace: "n-a".into(), page_size: 10, ..Default::default() };
    let message = request.encode_to_vec();
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    let mut http = Http::to(&server);
    for content_type in ["application/grpc-web+proto", "application/connect+proto"] {
        let answer = http.post("Scan", content_type, "", &body);
        assert_eq!((answer.status, answer.field("content-type")), (200, Some(content_type)));
        let (mut keys, mut rest, mut end) = (0, &answer.body[..], None);
        while let Some((prefix, after)) = rest.split_first_chunk::<5>() {
            let length = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
            let (frame, after) = after.split_at(length);
            match prefix[0] {
                0 => keys += kv::ScanResponse::decode(frame).expect("a page").entries.len(),
                _ => end = Some(String::from_utf8(frame.to_vec()).unwrap()),
            }
            rest = after;
        }
        let wanted = if content_type.contains("web") { "grpc-status: 0\r\n" } else { "{}" };
        assert_eq!((keys, end.as_deref()), (60, Some(wanted)));
    }
    // One that is left in the middle costs nothing for long.
    let mut leaver = Http::to(&server);
    let head = format!(
        "POST {KEYVALUE}/Scan HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc-web\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    leaver.send(&[head.as_bytes(), &body].concat());
    let mut some = [0; 1000];
    leaver.stream.read_exact(&mut some).expect("the beginning of a stream");
    drop((leaver, http));
    server.wait_for_metric("prism_connections", |open| open == 0.0);
    server.stop();
}

#[test]
fn what_is_sent_ahead_is_answered_in_order() {
    let directory = directory();
    let server = server(directory.path());
    let mut http = Http::to(&server);
    let request = |number: usize| {
        let body =
            json!({"namespace": "n-a", "key": format!("p{number}"), "value": "YWJj".repeat(300)})
                .to_string();
        format!(
            "POST {KEYVALUE}/Set HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    // Writes, which wait for the disk; many more than are held ahead.
    let all: String = (0..100).map(request).collect();
    let mut writer = http.stream.get_ref().try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        writer.write_all(all.as_bytes()).unwrap();
        // The client's side ends, and the answers come all the same.
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut last = 0;
    for number in 0..100 {
        let answer = http.answer();
        assert_eq!(answer.status, 200, "{number}: {answer:?}");
        let lsn = answer.field("trailer-prism-lsn").unwrap().split_once('-').unwrap().1;
        let lsn = u64::from_str_radix(lsn, 16).unwrap();
        assert!(lsn > last, "in order");
        last = lsn;
    }
    sender.join().unwrap();
    assert_eq!(http.until_closed(), b"");
    server.stop();
}

#[test]
fn nothing_that_is_sent_makes_the_port_hang() {
    let directory = directory();
    let server = serve(directory.path())
        .config("wal: {segment_bytes: 20MiB}\ntransport: {headers_timeout: 1s}\n")
        .shards(2)
        .start();
    let neighbour = Neighbour::of(&server);
    let began = Instant::now();
    for (sent, answered) in [
        (&b"GET / HTTP/1.1\r\nhost: prism:7400\r\nconnection: close\r\n\r\n"[..], "HTTP/1.1 200 OK"),
        (b"GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK"),
        (b"\r\nGET / HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK"),
        (b"GET /metrics HTTP/1.0\r\n\r\n", "HTTP/1.1 404 Not Found"),
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        (b"GET / HTTP/1.1\nhost: a\n\n", "HTTP/1.1 400 Bad Request"),
        (b"GET nothing\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", "HTTP/1.1 400"),
        (b"POST /x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 99999999\r\n\r\n", "HTTP/1.1 404"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "\x15\x03"), // TLS: its alert
        (b"\0\x01\x02\x03", "\0\0"),
        (b"get / http/1.1\r\n\r\n", "\0\0"),
    ] {
        let mut http = Http::to(&server);
        http.send(sent);
        let answer = String::from_utf8_lossy(&http.until_closed()).into_owned();
        assert!(answer.starts_with(answered), "{sent:?}: {answer:?}");
    }
    assert!(began.elapsed() < PATIENCE, "all of them took {:?}", began.elapsed());
    neighbour.leave();
    // Many at once that say half a head, and their neighbour.
    let neighbour = Neighbour::of(&server);
    let mut slow: Vec<Http> = (0..200).map(|_| Http::to(&server)).collect();
    for http in &mut slow {
        http.send(b"POST /prism.keyvalue.v1.KeyValueService/Set HTTP/1.1\r\nhost: a\r\nx:");
    }
    neighbour.leave();
    for mut http in slow {
        let answer = String::from_utf8_lossy(&http.until_closed()).into_owned();
        assert!(answer.starts_with("HTTP/1.1 408 ") || answer.is_empty(), "{answer}");
    }
    server.wait_for_metric("prism_connections", |open| open == 0.0);
    server.assert_well();
}

#[test]
fn a_large_value_comes_back_whole() {
    let directory = directory();
    let server = server(directory.path());
    let value: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let set = kv::SetRequest {
        namespace: "n-a".into(),
        key: "large".into(),
        value: value.clone().into(),
        ..Default::default()
    };
    let mut http = Http::to(&server);
    let answer = http.post("Set", "application/proto", "", &set.encode_to_vec());
    assert_eq!(answer.status, 200, "{answer:?}");
    let get = kv::GetRequest { namespace: "n-a".into(), key: "large".into() };
    let answer = http.post("Get", "application/proto", "", &get.encode_to_vec());
    let reply = kv::GetResponse::decode(answer.body.as_slice()).expect("a reply");
    assert!(reply.entry.expect("it is there").value == value);
    let answer = http.call("Get", "", &json!({"namespace": "n-a", "key": "large"}));
    let text = answer.json()["entry"]["value"].as_str().expect("base64").len();
    assert_eq!(text, value.len().div_ceil(3) * 4);
    // JSON is taken up to a limit of its own.
    let json = format!("{{\"namespace\":\"n-a\",\"key\":\"{}\"}}", "k".repeat(2 << 20));
    let answer = http.post("Get", "application/json", "", json.as_bytes());
    assert_eq!(answer.status, 429, "{answer:?}");
    assert!(answer.text().contains("protobuf"), "{answer:?}");
    server.stop();
}

#[test]
fn pages_of_strangers_may_not_call() {
    let directory = directory();
    let server = serve(directory.path())
        .config("wal: {segment_bytes: 20MiB}\nweb: {allowed_origins: [\"https://console.example.com\"]}\n")
        .start();
    let get = json!({"namespace": "keyvalue", "key": "a"});
    let mut http = Http::to(&server);
    let answer = http.call("Get", "origin: https://console.example.com\r\n", &get);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.field("access-control-allow-origin"), Some("https://console.example.com"));
    for origin in ["http://localhost:3000", "https://evil.example", "null"] {
        let answer = http.call("Get", &format!("origin: {origin}\r\n"), &get);
        assert_eq!(answer.status, 403, "{origin}: {answer:?}");
    }
    let refused = "prism_transport_refused_total{kind=\"origin\"}";
    server.wait_for_metric(refused, |count| count == 3.0);
    server.stop();
}

/// A drain waits for the running call and ends idle connections.
#[test]
fn a_drain_ends_idle_connections() {
    let directory = directory();
    let server = server(directory.path());
    let mut http = Http::to(&server);
    assert_eq!(http.call("Get", "", &json!({"namespace": "n-a", "key": "a"})).status, 200);
    let began = Instant::now();
    server.stop();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(http.until_closed(), b"");
}

/// `/debug/connections` counts what passes over HTTP/1.1, whatever protocol it is.
#[test]
fn what_passes_over_http_1_is_counted() {
    let directory = directory();
    let server = server(directory.path());
    let mut http = Http::to(&server);
    let set = json!({"namespace": "keyvalue", "key": "counted", "value": "aGVsbG8="});
    assert_eq!(http.call("Set", "", &set).status, 200);
    assert_eq!(http.call("Get", "", &json!({"namespace": "nowhere", "key": "k"})).status, 404);
    let scan = kv::ScanRequest { namespace: "keyvalue".into(), ..Default::default() };
    let message = scan.encode_to_vec();
    let framed = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    assert_eq!(http.post("Scan", "application/grpc-web", "", &framed).status, 200);
    http.send(b"GET /no-such-page HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert_eq!(http.answer().status, 404);
    // What others see of a connection is brought up to date four times a second.
    let end = Instant::now() + PATIENCE;
    loop {
        let page = server.admin_page("/debug/connections");
        let body = page.split_once("\r\n\r\n").expect("a head").1;
        let page: Value = serde_json::from_str(body).expect("JSON");
        let one = &page["connections"][0];
        let count = |name: &str| one[name].as_u64().expect("a number");
        if count("streams_started") == 4 && count("streams_succeeded") == 2 {
            assert_eq!((count("streams_failed"), count("streams_open")), (2, 0), "{one}");
            assert_eq!((count("messages_received"), count("messages_sent")), (3, 2), "{one}");
            assert!(one["last_stream_seconds_ago"].is_number(), "{one}");
            break;
        }
        assert!(Instant::now() < end, "{page}");
        std::thread::yield_now();
    }
    drop(http);
    server.stop();
}
