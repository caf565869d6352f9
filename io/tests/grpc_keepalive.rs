//! Keepalive and age of a connection, as its peer sees them (gRPC `keepalive.md`, proposals A8 and A9).

mod h2_support;

use h2_support::Server;
use prism_io::grpc::{ClientConnection, ClientEvent, CloseReason, Code, Limits, Message, Output};
use prism_io::h2::ErrorCode;

const SECOND_NS: u64 = 1_000_000_000;

fn limits() -> Limits {
    Limits {
        ping_interval_min_ns: 10 * SECOND_NS,
        keepalive_interval_ns: 60 * SECOND_NS,
        keepalive_timeout_ns: 20 * SECOND_NS,
        connection_age_grace_ns: 30 * SECOND_NS,
        idle_timeout_ns: u64::MAX,
        ..Limits::default()
    }
}

/// Lets the time pass until `now_s`, and shows what is written then.
fn at(server: &mut Server, now_s: u64) -> Vec<String> {
    server.now_ns = now_s * SECOND_NS;
    server.grpc.handle_timeout(server.now_ns);
    let mut lines = Vec::new();
    server.turn(&mut lines);
    lines
}

#[test]
fn a_silent_client_is_asked_and_then_given_up() {
    let mut server = Server::new(&limits());
    server.say("HEADERS 1 h @silent\nDATA 1 e msg:a");
    assert_eq!(at(&mut server, 59), [""; 0]);
    assert_eq!(at(&mut server, 60), ["PING"]);
    // Any byte is a sign of life; the acknowledgement costs nothing, but only when it was asked for.
    server.now_ns = 70 * SECOND_NS;
    assert_eq!(server.say("RAW 6 1 0 6172657468657265"), [""; 0]);
    assert_eq!(at(&mut server, 129), [""; 0]);
    assert_eq!(at(&mut server, 130), ["PING"]);
    assert_eq!(server.grpc.counts().keepalives_sent, 2);
    assert_eq!(at(&mut server, 149), [""; 0]);
    assert_eq!(at(&mut server, 150), ["Cancelled 1"]);
    let reason = server.grpc.close_reason();
    assert!(matches!(reason, Some(CloseReason::Error(ErrorCode::NO_ERROR, _))), "{reason:?}");
    assert_eq!(server.refused(), [("keepalive_time", 1)]);
}

#[test]
fn clients_that_ping_too_often_are_told() {
    let mut server = Server::new(&limits());
    let ping = |server: &mut Server, now_s: u64| {
        server.now_ns = now_s * SECOND_NS;
        server.say("PING -")
    };
    for now_s in [0, 10, 20, 25, 26] {
        assert_eq!(ping(&mut server, now_s), ["PING ack"], "{now_s}");
    }
    // Sending something forgives the strikes.
    assert!(server.say("HEADERS 1 h @req\nDATA 1 e msg:a").contains(&"DATA 1 6".to_string()));
    for now_s in [27, 28, 29] {
        assert_eq!(ping(&mut server, now_s), ["PING ack"], "{now_s}");
    }
    assert_eq!(ping(&mut server, 30), ["GOAWAY 1 ENHANCE_YOUR_CALM"]);
    let reason = server.grpc.close_reason();
    let told = CloseReason::Error(ErrorCode::ENHANCE_YOUR_CALM, "too_many_pings");
    assert_eq!(reason, Some(told));
    assert_eq!(server.refused(), [("pings", 1)]);
}

#[test]
fn an_old_connection_is_drained_and_its_calls_have_their_time() {
    let limits = Limits {
        connection_age_max_ns: 100 * SECOND_NS,
        keepalive_interval_ns: u64::MAX,
        ..limits()
    };
    let mut server = Server::new(&limits);
    server.say("HEADERS 1 h @silent\nDATA 1 e msg:a");
    assert_eq!(at(&mut server, 89), [""; 0]);
    assert_eq!(at(&mut server, 111), ["GOAWAY 2147483647 NO_ERROR", "PING"]);
    // A call that was on its way is served; after the PING has come back none is.
    assert_eq!(server.say("HEADERS 3 h @req\nDATA 3 e msg:a").first().unwrap(), "Request 3 1");
    assert_eq!(server.say("RAW 6 1 0 647261696e6e6f77"), ["GOAWAY 3 NO_ERROR"]);
    assert_eq!(server.say("HEADERS 5 h @req\nDATA 5 e msg:a"), [""; 0]);
    assert!(!server.grpc.is_closed());
    assert_eq!(at(&mut server, 141), ["Cancelled 1", "GOAWAY 3 NO_ERROR"]);
    assert_eq!(server.refused(), [("connection_age", 1)]);
    assert_eq!(server.grpc.close_reason(), Some(CloseReason::Done));
}

#[test]
fn an_old_connection_without_calls_ends_in_good_order() {
    let limits = Limits { connection_age_max_ns: 100 * SECOND_NS, ..limits() };
    let mut server = Server::new(&limits);
    server.say("HEADERS 1 h @req\nDATA 1 e msg:a");
    server.now_ns = 80 * SECOND_NS;
    server.say("PING -");
    let lines = at(&mut server, 111);
    assert_eq!(lines, ["GOAWAY 2147483647 NO_ERROR", "PING"]);
    assert_eq!(server.say("RAW 6 1 0 647261696e6e6f77"), ["GOAWAY 1 NO_ERROR"]);
    assert_eq!(server.grpc.close_reason(), Some(CloseReason::Done));
}

#[test]
fn a_client_asks_only_while_it_waits() {
    let mut client = ClientConnection::new(&limits(), "test:1", 0);
    let mut server = Server::fresh(&Limits::default());
    server.echo = false;
    let mut output = Output::default();
    let mut written = |client: &mut ClientConnection, server: &mut Server| {
        client.swap_output(&mut output);
        let bytes = output.segments().collect::<Vec<_>>().concat();
        server.input.extend_from_slice(&bytes);
        let all = server.input.split();
        server.grpc.receive(&mut all.clone(), 0);
        while server.grpc.poll_event().is_some() {}
        let mut answer = Output::default();
        server.grpc.swap_output(&mut answer);
        let mut answer = answer.segments().collect::<Vec<_>>().concat();
        (bytes, std::mem::take(&mut answer))
    };
    let (_, answer) = written(&mut client, &mut server);
    client.receive(&mut bytes::BytesMut::from(&answer[..]), 0);
    while client.poll_event().is_some() {}
    let (_, answer) = written(&mut client, &mut server);
    client.receive(&mut bytes::BytesMut::from(&answer[..]), 0);
    while client.poll_event().is_some() {}
    // Nothing to wait for: nothing is asked.
    client.handle_timeout(60 * SECOND_NS);
    assert!(written(&mut client, &mut server).0.is_empty());
    client.call(b"/t/Silent", Message::new(b"a"), &[], None).unwrap();
    written(&mut client, &mut server);
    client.handle_timeout(130 * SECOND_NS);
    let (bytes, _) = written(&mut client, &mut server);
    assert_eq!(bytes, b"\0\0\x08\x06\0\0\0\0\0arethere");
    client.handle_timeout(150 * SECOND_NS);
    let end = std::iter::from_fn(|| client.poll_event()).find_map(|event| match event {
        ClientEvent::Finished { finished, .. } => Some(finished.code),
        _ => None,
    });
    assert_eq!(end, Some(Code::Unavailable));
}

#[test]
fn calls_and_messages_are_counted() {
    let mut server = Server::new(&Limits::default());
    server.now_ns = 5;
    server.say("HEADERS 1 h @req\nDATA 1 e msg:a");
    server.now_ns = 6;
    server.say("HEADERS 3 eh @req");
    server.now_ns = 7;
    server.say("HEADERS 5 h @stream\nDATA 5 - msg:a msg:b");
    server.say("RST 5 8");
    server.now_ns = 8;
    server.say("HEADERS 7 h @silent\nDATA 7 e msg:a");
    let counts = server.grpc.counts();
    assert_eq!(
        (counts.streams_started, counts.streams_succeeded, counts.streams_failed),
        (4, 1, 2)
    );
    assert_eq!((counts.messages_received, counts.messages_sent), (4, 1));
    assert_eq!((counts.last_stream_ns, counts.last_received_ns, counts.last_sent_ns), (8, 8, 5));
    server.grpc.lost();
    while server.grpc.poll_event().is_some() {}
    assert_eq!(server.grpc.counts().streams_failed, 3);
}
