//! The gRPC protocol page, case by case: requests in, answers out.

mod h2_support;

use h2_support::Server;
use prism_io::grpc::Limits;

const CASES: &[(&str, &str, &str)] = &[
    (
        "an unknown path",
        "HEADERS 1 eh :method=POST :scheme=http :path=/no/Such te=trailers content-type=application/grpc",
        "HEADERS 1 end :status=200 grpc-status=12 grpc-message=unknown method /no/Such",
    ),
    (
        "an unknown path whose client is still sending",
        "HEADERS 1 h :method=POST :scheme=http :path=/no/Such te=trailers content-type=application/grpc
         DATA 1 e msg:a",
        "HEADERS 1 end :status=200 grpc-status=12 grpc-message=unknown method /no/Such
         RST_STREAM 1 NO_ERROR",
    ),
    (
        "another content-type",
        "HEADERS 1 eh :method=POST :scheme=http :path=/t/Unary content-type=application/json",
        "HEADERS 1 end :status=415 grpc-status=13 grpc-message=the content-type has to be application/grpc",
    ),
    (
        "gRPC-Web is not gRPC",
        "HEADERS 1 eh :method=POST :scheme=http :path=/t/Unary content-type=application/grpc-web",
        "HEADERS 1 end :status=415 grpc-status=13 grpc-message=the content-type has to be application/grpc",
    ),
    (
        "no content-type",
        "HEADERS 1 eh :method=POST :scheme=http :path=/t/Unary",
        "HEADERS 1 end :status=415 grpc-status=13 grpc-message=the content-type has to be application/grpc",
    ),
    (
        "another method",
        "HEADERS 1 eh :method=GET :scheme=http :path=/t/Unary te=trailers content-type=application/grpc",
        "HEADERS 1 end :status=405 allow=POST grpc-status=13 grpc-message=gRPC requests are POSTs",
    ),
    (
        "a malformed timeout",
        "HEADERS 1 eh @req grpc-timeout=1s",
        "HEADERS 1 end :status=200 grpc-status=13 grpc-message=malformed grpc-timeout",
    ),
    (
        "+proto and parameters are fine",
        "HEADERS 1 h :method=POST :scheme=http :path=/t/Silent te=trailers content-type=Application/gRPC+proto;x=y
         DATA 1 e msg:a",
        "Request 1 1",
    ),
    (
        "messages that are not protobuf",
        "HEADERS 1 eh :method=POST :scheme=http :path=/t/Unary te=trailers content-type=application/grpc+json",
        "HEADERS 1 end :status=200 grpc-status=12 grpc-message=messages have to be protobuf: application/grpc or application/grpc+proto",
    ),
    (
        "no te",
        "HEADERS 1 eh :method=POST :scheme=http :path=/t/Unary content-type=application/grpc",
        "HEADERS 1 end :status=200 grpc-status=13 grpc-message=te: trailers is missing: a proxy on the way may not pass trailers on",
    ),
    (
        "END_STREAM before a message",
        "HEADERS 1 eh @req",
        "HEADERS 1 end :status=200 grpc-status=13 grpc-message=the request ended before its message",
    ),
    (
        "END_STREAM on empty DATA before a message",
        "HEADERS 1 h @req
         DATA 1 e #0",
        "HEADERS 1 end :status=200 grpc-status=13 grpc-message=the request ended before its message",
    ),
    (
        "END_STREAM on empty DATA after the message",
        "HEADERS 1 h @silent
         DATA 1 - msg:abc
         DATA 1 e #0",
        "Request 1 3",
    ),
    (
        "END_STREAM inside a message",
        "HEADERS 1 h @req
         DATA 1 e 0000000005 6161",
        "HEADERS 1 end :status=200 grpc-status=13 grpc-message=the request ended inside a message",
    ),
    (
        "END_STREAM inside a prefix",
        "HEADERS 1 h @req
         DATA 1 e 0000",
        "HEADERS 1 end :status=200 grpc-status=13 grpc-message=the request ended inside a message",
    ),
    (
        "a message in many frames",
        "HEADERS 1 h @silent
         DATA 1 - 00
         DATA 1 - 000000
         DATA 1 - 0461
         DATA 1 - 6161
         DATA 1 e 61",
        "Request 1 4",
    ),
    (
        "two messages for a unary method",
        "HEADERS 1 h @req
         DATA 1 e msg:a msg:b",
        "HEADERS 1 end :status=200 grpc-status=13 grpc-message=more than one request message",
    ),
    (
        "an empty message",
        "HEADERS 1 h @req
         DATA 1 e msg:",
        "Request 1 0
         HEADERS 1 :status=200
         DATA 1 5
         HEADERS 1 end grpc-status=0",
    ),
    (
        "a message above the limit",
        "HEADERS 1 h @req
         DATA 1 - 0000400001 #10",
        "HEADERS 1 end :status=200 grpc-status=8 grpc-message=message of 4194305 bytes, the limit is 4194304
         RST_STREAM 1 NO_ERROR",
    ),
    (
        "a compressed message in an encoding that is not known",
        "HEADERS 1 h @req grpc-encoding=snappy
         DATA 1 e 0100000001 61",
        "HEADERS 1 end :status=200 grpc-status=12 grpc-message=messages can be compressed with gzip and with nothing else grpc-accept-encoding=identity,gzip",
    ),
    (
        "a compressed message without an encoding",
        "HEADERS 1 h @req
         DATA 1 e 0100000001 61",
        "HEADERS 1 end :status=200 grpc-status=13 grpc-message=a compressed message without grpc-encoding",
    ),
    (
        "a compressed message",
        "HEADERS 1 h @silent grpc-encoding=gzip
         DATA 1 e 0100000019 1f8b08000000000002ffcb48cdc9c9070086a6103605000000",
        "Request 1 5 packed",
    ),
    (
        "a compressed message that is cut short",
        "HEADERS 1 h @req grpc-encoding=gzip
         DATA 1 e 0100000018 1f8b08000000000002ffcb48cdc9c9070086a61036050000",
        "HEADERS 1 end :status=200 grpc-status=13 grpc-message=a compressed message is not valid gzip",
    ),
    (
        "a compressed message that claims to grow above the limit",
        "HEADERS 1 h @req grpc-encoding=gzip
         DATA 1 e 0100000019 1f8b08000000000002ffcb48cdc9c9070086a6103605000001",
        "HEADERS 1 end :status=200 grpc-status=8 grpc-message=a message larger than 4194304 bytes once decompressed",
    ),
    (
        "identity means that nothing is compressed",
        "HEADERS 1 h @req grpc-encoding=identity
         DATA 1 e 0100000001 61",
        "HEADERS 1 end :status=200 grpc-status=13 grpc-message=a compressed message without grpc-encoding",
    ),
    (
        "client streaming: compressed and plain messages in turns",
        "HEADERS 1 h @stream grpc-encoding=gzip
         DATA 1 e msg:a 0100000001 61 msg:bc",
        "Open 1
         Message 1 1
         Message 1 1 packed
         Message 1 2
         HalfClose 1",
    ),
    (
        "an encoding that is announced and not used",
        "HEADERS 1 h @silent grpc-encoding=gzip
         DATA 1 e msg:a",
        "Request 1 1",
    ),
    (
        "a compressed flag of 2",
        "HEADERS 1 h @req
         DATA 1 e 0200000001 61",
        "HEADERS 1 end :status=200 grpc-status=13 grpc-message=invalid compressed flag of a message",
    ),
    (
        "client streaming: many messages in one frame, one in two",
        "HEADERS 1 h @stream
         DATA 1 - msg:a msg: msg:bcd 00000000
         DATA 1 - 026162
         DATA 1 e #0",
        "Open 1
         Message 1 1
         Message 1 0
         Message 1 3
         Message 1 2
         HalfClose 1",
    ),
    ("client streaming: no message at all", "HEADERS 1 eh @stream", "Open 1\nHalfClose 1"),
    (
        "client streaming: END_STREAM inside a message",
        "HEADERS 1 h @stream
         DATA 1 e 0000000005 6161",
        "Open 1
         Cancelled 1
         HEADERS 1 end :status=200 grpc-status=13 grpc-message=the request ended inside a message",
    ),
    (
        "client streaming: cancelled",
        "HEADERS 1 h @stream
         DATA 1 - msg:a
         RST 1 8",
        "Open 1
         Message 1 1
         Cancelled 1",
    ),
    (
        "a header list above the limit",
        "HEADERS 1 eh @req x=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "HEADERS 1 end :status=431 grpc-status=8 grpc-message=request headers too large",
    ),
];

#[test]
fn every_case_is_answered_as_the_protocol_says() {
    let mut wrong = Vec::new();
    for (name, input, expected) in CASES {
        let mut limits = Limits::default();
        if name.contains("header list") {
            limits.header_list_bytes_max = 300;
        }
        let mut server = Server::new(&limits);
        let seen = server.say(input);
        let expected: Vec<_> = expected.lines().map(|l| l.trim().to_string()).collect();
        if seen != expected {
            wrong.push(format!("{name}:\n  expected {expected:?}\n  seen     {seen:?}"));
        }
        // Whatever happened to that call, the connection goes on.
        let lines = server.say("HEADERS 101 h @req\nDATA 101 e msg:ok");
        assert_eq!(lines[0], "Request 101 2", "{name}");
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Window updates follow consumption: what is not released keeps the client from sending.
#[test]
fn a_streaming_client_is_held_back_until_its_messages_are_consumed() {
    use prism_io::grpc::Event;
    let limits = Limits { stream_window_bytes: 100_000, ..Limits::default() };
    let mut server = Server::new(&limits);
    let message = "m".repeat(10_000);
    let text = format!("HEADERS 1 h @stream\n{}", format!("DATA 1 - msg:{message}\n").repeat(9));
    let bytes = server.writer.frames(&text);
    server.input.extend_from_slice(&bytes);
    server.grpc.receive(&mut server.input, 0);
    let mut stream = None;
    while let Some(event) = server.grpc.poll_event() {
        if let Event::Open { stream: id, .. } = event {
            stream = Some(id);
        }
    }
    let stream = stream.expect("it was opened");
    assert!(server.grpc.output().is_empty());
    for consumed in 1..=9 {
        server.grpc.release(stream, 10_000);
        let updated = !server.grpc.output().is_empty();
        assert_eq!(updated, consumed >= 5, "{consumed}");
    }
    let mut lines = Vec::new();
    server.turn(&mut lines);
    assert_eq!(lines, ["WINDOW_UPDATE 1 50025"]);
    // More than was handed out cannot be released.
    server.grpc.release(stream, 10_000_000);
    assert!(server.grpc.output().is_empty());
}

/// Streams with something to send take turns, and a full one says so and hears when there is room.
#[test]
fn a_full_stream_hears_when_there_is_room() {
    use prism_io::grpc::{Event, Message};
    let mut server = Server::new(&Limits::default());
    assert!(server.say("WU 0 1000000").is_empty());
    assert_eq!(server.say("SETTINGS - 4=1000\nHEADERS 1 h @stream"), ["Open 1", "SETTINGS ack"]);
    let bytes = server.writer.frames("HEADERS 3 h @stream");
    server.input.extend_from_slice(&bytes);
    server.grpc.receive(&mut server.input, 0);
    let Some(Event::Open { stream, .. }) = server.grpc.poll_event() else { panic!() };
    let body = [0; 10_000];
    let mut sent = 0;
    while server.grpc.send_message(stream, Message::new(&body)).unwrap() {
        sent += 1;
        assert!(sent < 100);
    }
    assert_eq!(sent, 6);
    assert!(!server.grpc.is_writable(stream));
    assert_eq!(server.refused(), [("stream_queue", 1)]);
    assert_eq!(server.say("WU 3 1000"), ["HEADERS 3 :status=200", "DATA 3 2000"]);
    let lines = server.say("WU 3 10000");
    assert_eq!(lines, ["DATA 3 10000", "Writable 3"]);
    assert!(server.grpc.is_writable(stream));
    // The rest, then the trailers.
    assert!(server.grpc.finish(stream, &[("a", b"b")]));
    let lines = server.say("WU 3 100000");
    assert_eq!(lines.last().unwrap(), "RST_STREAM 3 NO_ERROR");
    assert_eq!(lines[lines.len() - 2], "HEADERS 3 end grpc-status=0 a=b");
    assert_eq!(server.grpc.queued_bytes(), 0);
}

/// RFC 9113, section 4.3: a block that is larger than the peer's frames is continued.
#[test]
fn long_trailers_are_continued() {
    use prism_io::grpc::{Event, Message};
    let mut server = Server::new(&Limits::default());
    server.echo = false;
    let bytes = server.writer.frames("HEADERS 1 h @req\nDATA 1 e msg:a");
    server.input.extend_from_slice(&bytes);
    server.grpc.receive(&mut server.input, 0);
    let Some(Event::Request { stream, .. }) = server.grpc.poll_event() else { panic!() };
    let long = vec![b'x'; 40_000];
    server.grpc.respond(stream, Message::new(b"abc"), &[("long", &long)]);
    let mut output = prism_io::grpc::Output::default();
    server.grpc.swap_output(&mut output);
    let mut frames = Vec::new();
    let mut rest = &output.inline[..];
    while let Some(header) = rest.first_chunk::<9>() {
        let header = prism_io::h2::frame::FrameHeader::parse(header);
        frames.push((header.kind, header.flags, header.length));
        rest = &rest[9 + header.length as usize..];
    }
    assert_eq!(frames[2..], [(1, 1, 16_384), (9, 0, 16_384), (9, 4, frames[4].2)]);
}

/// A message may be larger than the window, but the next one waits until it is consumed, however many frames it came in.
#[test]
fn a_gathered_message_counts_until_it_is_consumed() {
    let limits = Limits { stream_window_bytes: 100_000, ..Limits::default() };
    let mut server = Server::new(&limits);
    let frame = "DATA 1 - #10000\n";
    assert_eq!(server.say("HEADERS 1 h @stream"), ["Open 1"]);
    // 300,000 bytes behind their prefix: the window is given back as they come.
    let mut lines = server.say(&format!("DATA 1 - 00000493e0\n{}", frame.repeat(9)));
    for _ in 0..21 {
        lines.extend(server.say(frame));
    }
    let granted: usize = lines
        .iter()
        .filter_map(|line| line.strip_prefix("WINDOW_UPDATE 1 "))
        .map(|bytes| bytes.parse::<usize>().unwrap())
        .sum();
    assert!(granted >= 200_005 && lines.contains(&"Message 1 300000".to_string()), "{lines:?}");
    // What is left of the window may be used; no more is granted, neither for gathered messages nor for empty ones.
    let left = 100_000 + granted - 300_005;
    assert!(left >= 50_000, "{left}");
    let lines = server.say(&format!("DATA 1 - 0000009c40\n{}", frame.repeat(4)));
    assert_eq!(lines, ["Message 1 40000"]);
    assert_eq!(server.say(&"DATA 1 - msg:\n".repeat(100)), vec!["Message 1 0"; 100]);
    let stream = server.stream.expect("it was opened");
    server.grpc.release(stream, 300_000);
    let mut lines = Vec::new();
    server.turn(&mut lines);
    assert_eq!(lines, [format!("WINDOW_UPDATE 1 {}", 100_000 - left)]);
}

/// A reply that is larger than any may be is told to its caller instead of being sent, by itself or within a stream.
#[test]
fn a_reply_too_large() {
    use prism_io::grpc::{Message, SendError};
    let limits = Limits { send_bytes_max: 1000, ..Limits::default() };
    let mut server = Server::new(&limits);
    server.echo = false;
    server.say("HEADERS 1 h @req\nDATA 1 e msg:a");
    let unary = server.stream.expect("it was asked");
    server.say("HEADERS 3 h @stream");
    let streaming = server.stream.expect("it was opened");
    assert!(server.grpc.respond(unary, Message::new(&[0; 1001]), &[]));
    let sent = server.grpc.send_message(streaming, Message::new(&[0; 1001]));
    assert_eq!(sent, Err(SendError::Closed));
    let mut lines = Vec::new();
    server.turn(&mut lines);
    let refused = lines.iter().filter(|line| line.contains("grpc-status=8")).count();
    assert_eq!((refused, server.refused()), (2, vec![("reply_size", 2)]), "{lines:?}");
}

/// What a handler has done stays done: its trailers reach a client that has no room for the reply.
#[test]
fn a_reply_that_does_not_fit_keeps_its_trailers() {
    use prism_io::grpc::Message;
    let limits = Limits { queue_bytes_max: 1000, ..Limits::default() };
    let mut server = Server::new(&limits);
    server.echo = false;
    server.say("HEADERS 1 h @req\nDATA 1 e msg:a");
    let stream = server.stream.expect("it was asked");
    assert!(server.grpc.respond(stream, Message::new(&[0; 1000]), &[("position", b"7")]));
    let mut lines = Vec::new();
    server.turn(&mut lines);
    assert_eq!(
        lines,
        [
            "HEADERS 1 end :status=200 grpc-status=8 grpc-message=carried out, but the reply did not fit: \
          the client reads too slowly position=7"
        ]
    );
}

/// The queue of the connection may be full of other streams' messages: the one that waits hears when they have left.
#[test]
fn a_full_connection_says_when_there_is_room() {
    use prism_io::grpc::{Message, SendError};
    let limits = Limits { queue_bytes_max: 10_000, ..Limits::default() };
    let mut server = Server::new(&limits);
    server.say("SETTINGS - 4=0\nHEADERS 1 h @stream");
    let first = server.stream.expect("it was opened");
    server.say("HEADERS 3 h @stream");
    let second = server.stream.expect("it was opened");
    assert_eq!(server.grpc.send_message(first, Message::new(&[0; 9000])), Ok(true));
    let message = [0; 2000];
    for _ in 0..2 {
        let sent = server.grpc.send_message(second, Message::new(&message));
        assert_eq!(sent, Err(SendError::QueueFull));
        assert!(!server.say("WU 1 1000").contains(&"Writable 3".to_string()));
    }
    assert!(server.say("WU 1 5000").contains(&"Writable 3".to_string()));
    assert_eq!(server.grpc.send_message(second, Message::new(&message)), Ok(true));
    // Also when they leave by being reset.
    let sent = server.grpc.send_message(second, Message::new(&[0; 6000]));
    assert_eq!(sent, Err(SendError::QueueFull));
    let lines = server.say("RST 1 8");
    assert_eq!(lines, ["Cancelled 1", "Writable 3", "HEADERS 3 :status=200"]);
    // What can never fit ends the call.
    let sent = server.grpc.send_message(second, Message::new(&[0; 10_000]));
    assert_eq!(sent, Err(SendError::Closed));
    assert!(server.say("WU 3 100000").iter().any(|line| line.contains("grpc-status=8")));
}
