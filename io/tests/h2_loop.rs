//! Client and server against each other in memory.

use bytes::{Bytes, BytesMut};
use prism_io::grpc::{
    ClientConnection, ClientEvent, Code, Event, Finished, Limits, Message, Output, Route,
    ServerConnection, Status, StreamId,
};
use std::time::Duration;

fn route(path: &[u8]) -> Option<Route> {
    let (id, client_streaming, server_streaming) = match path {
        b"/test.Echo/Unary" => (1, false, false),
        b"/test.Echo/Server" => (2, false, true),
        b"/test.Echo/Client" => (3, true, false),
        b"/test.Echo/Both" => (4, true, true),
        _ => return None,
    };
    Some(Route { id, client_streaming, server_streaming })
}

/// Both ends and what is on its way between them.
struct Wire {
    client: ClientConnection,
    server: ServerConnection,
    to_server: BytesMut,
    to_client: BytesMut,
    output: Output,
}

impl Wire {
    fn new(limits: &Limits) -> Self {
        Self {
            client: ClientConnection::new(limits, "test:1", 0),
            server: ServerConnection::new(limits, route, 0),
            to_server: BytesMut::new(),
            to_client: BytesMut::new(),
            output: Output::default(),
        }
    }

    /// Moves what the client has written and returns the server's events.
    fn serve(&mut self) -> Vec<Event> {
        self.client.swap_output(&mut self.output);
        for segment in self.output.segments() {
            self.to_server.extend_from_slice(segment);
        }
        self.server.receive(&mut self.to_server, 0);
        std::iter::from_fn(|| self.server.poll_event()).collect()
    }

    /// Moves what the server has written and returns the client's events.
    fn answer(&mut self) -> Vec<ClientEvent> {
        self.server.swap_output(&mut self.output);
        for segment in self.output.segments() {
            self.to_client.extend_from_slice(segment);
        }
        self.client.receive(&mut self.to_client, 0);
        std::iter::from_fn(|| self.client.poll_event()).collect()
    }
}

fn finished(event: Option<&ClientEvent>) -> (StreamId, &Finished) {
    match event {
        Some(ClientEvent::Finished { stream, finished }) => (*stream, finished),
        other => panic!("no Finished but {other:?}"),
    }
}

#[test]
fn a_unary_call_with_metadata_and_trailers() {
    let mut wire = Wire::new(&Limits::default());
    for round in 0..3 {
        let metadata: [(&str, &[u8]); 2] = [("prism-after", b"7"), ("odd-bin", &[0, 255])];
        let timeout = Some(Duration::from_millis(250));
        let body = vec![b'x'; 20];
        let call =
            wire.client.call(b"/test.Echo/Unary", Message::new(&body), &metadata, timeout).unwrap();
        let mut events = wire.serve();
        let Some(Event::Request { stream, route, head, message }) = events.pop() else {
            panic!("{events:?}")
        };
        assert!(events.is_empty());
        assert_eq!((route, head.timeout), (1, timeout));
        assert_eq!(head.metadata.get("prism-after"), Some(&b"7"[..]));
        assert_eq!(head.metadata.get_bin("odd-bin"), Some(vec![0, 255]));
        assert_eq!(head.metadata.iter().count(), 2);
        assert_eq!(message, body);
        let answer = Message { head: b"head", tail: message };
        assert!(wire.server.respond(stream, answer, &[("prism-lsn", b"12"), ("x-bin", &[1])]));
        assert_eq!(wire.server.open_streams(), 0);

        let events = wire.answer();
        let Some(ClientEvent::Message { stream, message, .. }) = events.get(1) else {
            panic!("{events:?}")
        };
        assert_eq!((*stream, &message[..]), (call, &b"headxxxxxxxxxxxxxxxxxxxx"[..]));
        let (stream, status) = finished(events.get(2));
        assert_eq!((stream, status.code, events.len()), (call, Code::Ok, 3), "round {round}");
        assert_eq!(status.trailers.get("prism-lsn"), Some(&b"12"[..]));
        assert_eq!(status.trailers.get_bin("x-bin"), Some(vec![1]));
        assert_eq!(wire.client.open_streams(), 0);
    }
}

/// Heads that repeat are remembered by the server: that must not show, whatever else comes with them.
#[test]
fn heads_that_repeat_mean_the_same() {
    let mut wire = Wire::new(&Limits::default());
    let value: [(&str, &[u8]); 1] = [("k", b"v")];
    for round in 0..6u64 {
        for (path, route_wanted) in [(&b"/test.Echo/Unary"[..], 1), (b"/test.Echo/Server", 2)] {
            for (metadata, seconds) in [(&[][..], None), (&value[..], Some(round)), (&[], Some(9))]
            {
                let timeout = seconds.map(Duration::from_secs);
                wire.client.call(path, Message::new(b"m"), metadata, timeout).unwrap();
                let Some(Event::Request { stream, route, head, .. }) = wire.serve().pop() else {
                    panic!("no request")
                };
                assert_eq!((route, head.timeout), (route_wanted, timeout));
                assert_eq!(head.metadata.iter().count(), metadata.len());
                wire.server.respond(stream, Message::default(), &[]);
                wire.answer();
            }
        }
        assert!(wire.client.call(b"/test.Echo/None", Message::default(), &[], None).is_ok());
        assert!(wire.serve().is_empty());
        assert_eq!(finished(wire.answer().last()).1.code, Code::Unimplemented);
    }
}

#[test]
fn a_failed_call_carries_message_and_details() {
    let mut wire = Wire::new(&Limits::default());
    wire.client.call(b"/test.Echo/Unary", Message::default(), &[], None).unwrap();
    let events = wire.serve();
    let [Event::Request { stream, .. }] = &events[..] else { panic!("{events:?}") };
    wire.server.fail(
        *stream,
        &Status {
            code: Code::NotFound,
            message: "no such key: \u{fc}%",
            details: &[8, 5, 0, 255],
            trailers: &[("retry", b"no")],
        },
    );
    let events = wire.answer();
    let (_, status) = finished(events.first());
    assert_eq!(status.code, Code::NotFound);
    assert_eq!(status.message, "no such key: \u{fc}%");
    assert_eq!(status.details, [8, 5, 0, 255]);
    assert_eq!(status.trailers.get("retry"), Some(&b"no"[..]));
}

#[test]
fn an_unknown_path_is_unimplemented_and_named() {
    let mut wire = Wire::new(&Limits::default());
    wire.client.call(b"/test.Echo/Nothing", Message::default(), &[], None).unwrap();
    assert!(wire.serve().is_empty());
    let events = wire.answer();
    let (_, status) = finished(events.first());
    assert_eq!(status.code, Code::Unimplemented);
    assert_eq!(status.message, "unknown method /test.Echo/Nothing");
    assert_eq!((wire.client.open_streams(), wire.server.open_streams()), (0, 0));
}

/// A message far beyond frame size and windows goes there and back whole.
#[test]
fn a_large_message_goes_there_and_back() {
    let limits = Limits {
        stream_window_bytes: 70_000,
        connection_window_bytes: 100_000,
        ..Limits::default()
    };
    let mut wire = Wire::new(&limits);
    let body: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let tail = Bytes::from(body.clone());
    wire.client.call(b"/test.Echo/Unary", Message { head: &[], tail }, &[], None).unwrap();
    let mut got = None;
    let mut done = false;
    for _ in 0..200 {
        for event in wire.serve() {
            let Event::Request { stream, message, .. } = event else { panic!("{event:?}") };
            assert_eq!(message, body);
            wire.server.respond(stream, Message { head: &[], tail: message }, &[]);
        }
        for event in wire.answer() {
            match event {
                ClientEvent::Message { message, .. } => got = Some(message),
                ClientEvent::Finished { finished, .. } => done = finished.code == Code::Ok,
                _ => {}
            }
        }
    }
    assert_eq!(got.as_deref(), Some(&body[..]));
    assert!(done);
    assert_eq!((wire.client.open_streams(), wire.server.open_streams()), (0, 0));
    assert_eq!(wire.server.queued_bytes(), 0);
}

#[test]
fn both_sides_stream() {
    let mut wire = Wire::new(&Limits::default());
    let call = wire.client.start(b"/test.Echo/Both", &[], None).unwrap();
    let mut events = wire.serve();
    let Some(Event::Open { stream, route: 4, .. }) = events.pop() else { panic!("{events:?}") };
    for round in 0..10u8 {
        wire.client.send_message(call, Message::new(&[round; 3])).unwrap();
        wire.client.send_message(call, Message::new(&[round; 0])).unwrap();
        let events = wire.serve();
        for event in &events {
            let Event::Message { message, .. } = event else { panic!("{event:?}") };
            wire.server.send_message(stream, Message::new(message)).unwrap();
            wire.server.release(stream, message.len());
        }
        assert_eq!(events.len(), 2);
        let events = wire.answer();
        let messages = events.iter().filter(|e| matches!(e, ClientEvent::Message { .. })).count();
        assert_eq!(messages, 2);
    }
    wire.client.half_close(call);
    assert!(matches!(wire.serve()[..], [Event::HalfClose { .. }]));
    wire.server.finish(stream, &[("a", b"b")]);
    let events = wire.answer();
    assert_eq!(finished(events.first()).1.code, Code::Ok);
    assert_eq!((wire.client.open_streams(), wire.server.open_streams()), (0, 0));
}

#[test]
fn cancelled_calls_are_reported_once() {
    let mut wire = Wire::new(&Limits::default());
    let call = wire.client.call(b"/test.Echo/Unary", Message::default(), &[], None).unwrap();
    assert_eq!(wire.serve().len(), 1);
    wire.client.cancel(call);
    let Some(ClientEvent::Finished { finished, .. }) = wire.client.poll_event() else { panic!() };
    assert_eq!(finished.code, Code::Cancelled);
    let events = wire.serve();
    let [Event::Cancelled { stream }] = events[..] else { panic!("{events:?}") };
    assert!(!wire.server.respond(stream, Message::default(), &[]));
    assert!(wire.answer().is_empty());
    // And when the connection is lost.
    wire.client.call(b"/test.Echo/Unary", Message::default(), &[], None).unwrap();
    assert_eq!(wire.serve().len(), 1);
    wire.server.lost();
    assert!(matches!(wire.server.poll_event(), Some(Event::Cancelled { .. })));
    assert!(wire.server.poll_event().is_none());
}

#[test]
fn a_drain_finishes_what_runs() {
    let mut wire = Wire::new(&Limits::default());
    wire.client.call(b"/test.Echo/Unary", Message::default(), &[], None).unwrap();
    let Some(Event::Request { stream, .. }) = wire.serve().pop() else { panic!() };
    wire.answer();
    wire.server.drain(5);
    wire.answer();
    assert!(!wire.server.is_closed());
    wire.serve(); // the PING's acknowledgement
    assert!(!wire.server.is_closed());
    wire.server.respond(stream, Message::default(), &[]);
    let events = wire.answer();
    assert_eq!(finished(events.last()).1.code, Code::Ok);
    assert!(wire.server.is_closed() && wire.client.is_closed());
    assert!(wire.client.call(b"/test.Echo/Unary", Message::default(), &[], None).is_err());
}

mod interleavings {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// One move of the test, by a number.
    #[derive(Debug, Clone)]
    enum Move {
        Call { bytes: usize, timeout: bool },
        Start,
        Send { nth: usize, bytes: usize },
        HalfClose { nth: usize },
        Cancel { nth: usize },
        ToServer { bytes: usize },
        ToClient { bytes: usize },
        Answer { nth: usize },
    }

    fn moves() -> impl Strategy<Value = Move> {
        let size = prop_oneof![0..50usize, 0..5_000usize, 20_000..60_000usize];
        prop_oneof![
            3 => (size.clone(), any::<bool>())
                .prop_map(|(bytes, timeout)| Move::Call { bytes, timeout }),
            1 => Just(Move::Start),
            3 => (0..8usize, size.clone()).prop_map(|(nth, bytes)| Move::Send { nth, bytes }),
            1 => (0..8usize).prop_map(|nth| Move::HalfClose { nth }),
            1 => (0..8usize).prop_map(|nth| Move::Cancel { nth }),
            5 => (1..30_000usize).prop_map(|bytes| Move::ToServer { bytes }),
            5 => (1..30_000usize).prop_map(|bytes| Move::ToClient { bytes }),
            5 => (0..8usize).prop_map(|nth| Move::Answer { nth }),
        ]
    }

    #[derive(Default)]
    struct Expectation {
        sent: Vec<u8>,
        got: Vec<u8>,
        finished: Option<Code>,
        cancelled: bool,
    }

    struct World {
        wire: Wire,
        client_out: Vec<u8>,
        server_out: Vec<u8>,
        calls: BTreeMap<u32, (StreamId, bool, Expectation)>,
        waiting: Vec<(StreamId, Bytes)>,
        streams: Vec<(StreamId, Vec<Bytes>, bool)>,
    }

    impl World {
        /// Hands at most `bytes` bytes to the server, which takes note of what it got.
        fn feed_server(&mut self, bytes: usize) {
            self.wire.client.swap_output(&mut self.wire.output);
            for segment in self.wire.output.segments() {
                self.client_out.extend_from_slice(segment);
            }
            let count = bytes.min(self.client_out.len());
            self.wire.to_server.extend_from_slice(&self.client_out[..count]);
            self.client_out.drain(..count);
            self.wire.server.receive(&mut self.wire.to_server, 0);
            while let Some(event) = self.wire.server.poll_event() {
                match event {
                    Event::Request { stream, message, .. } => self.waiting.push((stream, message)),
                    Event::Open { stream, .. } => self.streams.push((stream, Vec::new(), false)),
                    Event::Message { stream, message, .. } => {
                        let open = self.streams.iter_mut().find(|(id, ..)| *id == stream);
                        open.expect("an open stream").1.push(message);
                    }
                    Event::HalfClose { stream } => {
                        let open = self.streams.iter_mut().find(|(id, ..)| *id == stream);
                        open.expect("an open stream").2 = true;
                    }
                    Event::Cancelled { stream } => {
                        let before = self.waiting.len() + self.streams.len();
                        self.waiting.retain(|(id, _)| *id != stream);
                        self.streams.retain(|(id, ..)| *id != stream);
                        let known = before > self.waiting.len() + self.streams.len();
                        // Unless it was answered, and the answer has not reached the client.
                        let _ = known;
                    }
                    Event::Writable { .. } => {}
                }
            }
        }

        /// Answers what waits: everything of one call.
        fn answer(&mut self, nth: usize) {
            if !self.waiting.is_empty() {
                let (stream, message) = self.waiting.remove(nth % self.waiting.len());
                self.wire.server.respond(stream, Message { head: &[], tail: message }, &[]);
            }
            if !self.streams.is_empty() {
                let at = nth % self.streams.len();
                let (stream, messages, closed) = &mut self.streams[at];
                for message in messages.drain(..) {
                    self.wire.server.release(*stream, message.len());
                    let tail = Message { head: &[], tail: message };
                    self.wire.server.send_message(*stream, tail).expect("it is open");
                }
                if *closed {
                    self.wire.server.finish(*stream, &[]);
                    self.streams.remove(at);
                }
            }
        }

        fn feed_client(&mut self, bytes: usize) {
            self.wire.server.swap_output(&mut self.wire.output);
            for segment in self.wire.output.segments() {
                self.server_out.extend_from_slice(segment);
            }
            let count = bytes.min(self.server_out.len());
            self.wire.to_client.extend_from_slice(&self.server_out[..count]);
            self.server_out.drain(..count);
            self.wire.client.receive(&mut self.wire.to_client, 0);
            self.client_events();
        }

        fn client_events(&mut self) {
            while let Some(event) = self.wire.client.poll_event() {
                match event {
                    ClientEvent::Message { stream, message, .. } => {
                        self.wire.client.release(stream, message.len());
                        let call = self.calls.get_mut(&stream.number()).expect("a known call");
                        call.2.got.extend_from_slice(&message);
                    }
                    ClientEvent::Finished { stream, finished } => {
                        let call = self.calls.get_mut(&stream.number()).expect("a known call");
                        assert_eq!(call.2.finished, None, "finished twice");
                        call.2.finished = Some(finished.code);
                    }
                    _ => {}
                }
            }
        }

        fn nth_open(&mut self, nth: usize) -> Option<u32> {
            let open: Vec<u32> = self
                .calls
                .iter()
                .filter(|(_, call)| call.1 && call.2.finished.is_none())
                .map(|(number, _)| *number)
                .collect();
            (!open.is_empty()).then(|| open[nth % open.len()])
        }

        fn make(&mut self, step: Move) {
            match step {
                Move::Call { bytes, timeout } => {
                    let body: Vec<u8> = (0..bytes).map(|n| n as u8).collect();
                    let timeout = timeout.then_some(Duration::from_secs(3));
                    let message = Message::new(&body);
                    let call = self.wire.client.call(b"/test.Echo/Unary", message, &[], timeout);
                    let Ok(call) = call else { return };
                    let expectation = Expectation { sent: body, ..Expectation::default() };
                    self.calls.insert(call.number(), (call, false, expectation));
                }
                Move::Start => {
                    let Ok(call) = self.wire.client.start(b"/test.Echo/Both", &[], None) else {
                        return;
                    };
                    self.calls.insert(call.number(), (call, true, Expectation::default()));
                }
                Move::Send { nth, bytes } => {
                    let Some(number) = self.nth_open(nth) else { return };
                    let call = self.calls.get_mut(&number).expect("it is known");
                    let body: Vec<u8> = (0..bytes).map(|n| (n + nth) as u8).collect();
                    if self.wire.client.send_message(call.0, Message::new(&body)).is_ok() {
                        call.2.sent.extend_from_slice(&body);
                    }
                }
                Move::HalfClose { nth } => {
                    if let Some(number) = self.nth_open(nth) {
                        self.wire.client.half_close(self.calls[&number].0);
                    }
                }
                Move::Cancel { nth } => {
                    if let Some(number) = self.nth_open(nth) {
                        let call = self.calls.get_mut(&number).expect("it is known");
                        call.2.cancelled = true;
                        self.wire.client.cancel(call.0);
                        self.client_events();
                    }
                }
                Move::ToServer { bytes } => self.feed_server(bytes),
                Move::ToClient { bytes } => self.feed_client(bytes),
                Move::Answer { nth } => self.answer(nth),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 300,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Whatever the order of moves and the cuts of the bytes: every call that is not cancelled gets back what it sent.
        #[test]
        fn every_call_gets_back_what_it_sent(
            steps in proptest::collection::vec(moves(), 1..120),
            stream_window_bytes in 1_000..200_000u32,
        ) {
            let limits =
                Limits { stream_window_bytes, connection_window_bytes: 100_000, ..Limits::default() };
            let mut world = World {
                wire: Wire::new(&limits),
                client_out: Vec::new(),
                server_out: Vec::new(),
                calls: BTreeMap::new(),
                waiting: Vec::new(),
                streams: Vec::new(),
            };
            for step in steps {
                world.make(step);
            }
            let open: Vec<StreamId> = world.calls.values().filter(|c| c.1).map(|c| c.0).collect();
            for call in open {
                world.wire.client.half_close(call);
            }
            for round in 0..5_000 {
                world.feed_server(usize::MAX);
                // In turns: what one stream does not consume keeps the connection's window from the others.
                world.answer(round);
                world.feed_client(usize::MAX);
                if world.calls.values().all(|call| call.2.finished.is_some()) {
                    break;
                }
            }
            for (number, (_, _, call)) in &world.calls {
                if call.cancelled {
                    prop_assert_eq!(call.finished, Some(Code::Cancelled));
                } else {
                    prop_assert_eq!(call.finished, Some(Code::Ok), "call {}", number);
                    prop_assert!(call.got == call.sent, "call {} got something else", number);
                }
            }
            world.feed_server(usize::MAX);
            prop_assert_eq!(world.wire.client.open_streams(), 0);
            prop_assert_eq!(world.wire.server.open_streams(), 0);
            prop_assert_eq!(world.wire.server.queued_bytes(), 0);
            prop_assert!(!world.wire.client.is_closed() && !world.wire.server.is_closed());
        }
    }
}
