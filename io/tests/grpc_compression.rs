//! Compressed messages between client and server, in memory.

use bytes::{Bytes, BytesMut};
use prism_io::grpc::compress::inflate;
use prism_io::grpc::{
    ClientConnection, ClientEvent, Code, Compressing, Event, Finished, Limits, Message, Output,
    Route, SendError, ServerConnection, StreamId,
};

fn route(path: &[u8]) -> Option<Route> {
    let streams = path == b"/t/Stream";
    Some(Route { id: 1, client_streaming: streams, server_streaming: streams })
}

struct Wire {
    client: ClientConnection,
    server: ServerConnection,
    output: Output,
    buffer: BytesMut,
    bytes_to_client: usize,
}

impl Wire {
    fn new(limits: &Limits, accepts: bool) -> Self {
        let mut client = ClientConnection::new(limits, "test:1", 0);
        if accepts {
            client.accept_compressed();
        }
        Self {
            client,
            server: ServerConnection::new(limits, route, 0),
            output: Output::default(),
            buffer: BytesMut::new(),
            bytes_to_client: 0,
        }
    }

    fn serve(&mut self) -> Vec<Event> {
        self.client.swap_output(&mut self.output);
        self.output.segments().for_each(|part| self.buffer.extend_from_slice(part));
        self.server.receive(&mut self.buffer, 0);
        std::iter::from_fn(|| self.server.poll_event()).collect()
    }

    fn answer(&mut self) -> Vec<ClientEvent> {
        self.server.swap_output(&mut self.output);
        self.bytes_to_client += self.output.len();
        self.output.segments().for_each(|part| self.buffer.extend_from_slice(part));
        self.client.receive(&mut self.buffer, 0);
        std::iter::from_fn(|| self.client.poll_event()).collect()
    }

    /// The server's stream of a call that asks with `message`, and that message.
    fn ask(&mut self, message: &[u8]) -> (StreamId, Bytes, bool) {
        self.client.call(b"/t/Unary", Message::new(message), &[], None).unwrap();
        match self.serve().pop() {
            Some(Event::Request { stream, message, head, .. }) => {
                (stream, message, head.compressed)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Messages as they came, whether compressed, and the end.
    fn answers(&mut self) -> (Vec<(Bytes, bool)>, Option<Finished>) {
        let (mut messages, mut end) = (Vec::new(), None);
        for event in self.answer() {
            match event {
                ClientEvent::Message { message, compressed, .. } => {
                    messages.push((message, compressed));
                }
                ClientEvent::Finished { finished, .. } => end = Some(finished),
                _ => {}
            }
        }
        (messages, end)
    }
}

const LIMITS: fn() -> Limits = || Limits { compress_bytes_min: 1000, ..Limits::default() };

#[test]
fn an_answer_is_compressed_where_that_pays_and_is_allowed() {
    let text = vec![b'a'; 50_000];
    for (accepts, configured, wanted, bytes, packed) in [
        (true, true, None, 50_000, true),
        (false, true, None, 50_000, false),
        (true, false, None, 50_000, false),
        (true, true, None, 999, false),
        (true, true, Some(Compressing::Never), 50_000, false),
        (true, false, Some(Compressing::Always), 10, true),
        (true, true, Some(Compressing::Always), 0, false),
        (false, true, Some(Compressing::Always), 50_000, false),
    ] {
        let limits = if configured { LIMITS() } else { Limits::default() };
        let mut wire = Wire::new(&limits, accepts);
        let (stream, _, _) = wire.ask(b"x");
        if let Some(wanted) = wanted {
            wire.server.set_compressing(stream, wanted);
        }
        let (head, tail) = text[..bytes].split_at(bytes / 3);
        let reply = Message { head, tail: Bytes::copy_from_slice(tail) };
        assert!(wire.server.respond(stream, reply, &[("a", b"b")]));
        let (messages, end) = wire.answers();
        let [(message, compressed)] = &messages[..] else { panic!("{messages:?}") };
        assert_eq!(*compressed, packed, "{accepts} {configured} {wanted:?} {bytes}");
        let plain = if packed { inflate(message, bytes).unwrap() } else { message.clone() };
        assert_eq!(plain, &text[..bytes]);
        assert_eq!(end.unwrap().code, Code::Ok);
        assert!(!packed || bytes < 50_000 || wire.bytes_to_client < 1000);
    }
}

#[test]
fn a_handler_chooses_message_by_message() {
    let mut wire = Wire::new(&Limits::default(), true);
    let call = wire.client.start(b"/t/Stream", &[], None).unwrap();
    let Some(Event::Open { stream, .. }) = wire.serve().pop() else { panic!() };
    let body = [7; 5000];
    for compressing in [Compressing::Never, Compressing::Always, Compressing::Never] {
        wire.server.set_compressing(stream, compressing);
        wire.server.send_message(stream, Message::new(&body)).unwrap();
    }
    let (messages, _) = wire.answers();
    let packed: Vec<bool> = messages.iter().map(|(_, packed)| *packed).collect();
    assert_eq!(packed, [false, true, false]);
    assert_eq!(inflate(&messages[1].0, 5000).unwrap(), &body[..]);
    // Nothing can be compressed once a head that does not say so is out.
    let _ = call;
    wire.client.start(b"/t/Stream", &[], None).unwrap();
    let Some(Event::Open { stream, .. }) = wire.serve().pop() else { panic!() };
    wire.server.send_message(stream, Message::new(&body)).unwrap();
    wire.server.set_compressing(stream, Compressing::Always);
    wire.server.send_message(stream, Message::new(&body)).unwrap();
    assert!(wire.answers().0.iter().all(|(_, packed)| !packed));
}

#[test]
fn requests_are_decompressed_within_the_limit() {
    let limits = Limits { message_bytes_max: 100_000, ..Limits::default() };
    let mut wire = Wire::new(&limits, false);
    wire.client.compress_requests(1);
    let (_, message, compressed) = wire.ask(&[5; 100_000]);
    assert_eq!((&message[..], compressed), (&[5; 100_000][..], true));
    let (_, message, compressed) = wire.ask(b"");
    assert_eq!((&message[..], compressed), (&b""[..], false));
    wire.client.call(b"/t/Unary", Message::new(&[5; 100_001]), &[], None).unwrap();
    assert!(wire.serve().is_empty(), "a bomb is not shown");
    let (_, end) = wire.answers();
    assert_eq!(end.unwrap().code, Code::ResourceExhausted);
}

/// Much that comes of little has its turns: the loop is given back, and nothing is lost.
#[test]
fn decompression_pauses() {
    let mut wire = Wire::new(&Limits::default(), false);
    wire.client.compress_requests(1);
    // The windows are open from the handshake on.
    wire.serve();
    wire.answer();
    let message = vec![0; 3 << 20];
    for _ in 0..5 {
        wire.client.call(b"/t/Unary", Message::new(&message), &[], None).unwrap();
    }
    let mut turns = Vec::new();
    turns.push(wire.serve().len());
    while wire.server.is_paused() {
        wire.server.resume();
        turns.push(std::iter::from_fn(|| wire.server.poll_event()).count());
    }
    assert_eq!(turns, [2, 2, 1]);
}

#[test]
fn what_is_too_large_to_send_fails_its_call() {
    let limits = Limits { send_bytes_max: 1000, ..Limits::default() };
    let mut wire = Wire::new(&limits, false);
    let (stream, _, _) = wire.ask(b"x");
    assert!(wire.server.respond(stream, Message::new(&[0; 1001]), &[("position", b"7")]));
    let (messages, end) = wire.answers();
    let end = end.unwrap();
    assert!(messages.is_empty());
    assert_eq!(
        (end.code, end.trailers.get("position")),
        (Code::ResourceExhausted, Some(&b"7"[..]))
    );
    wire.client.start(b"/t/Stream", &[], None).unwrap();
    let Some(Event::Open { stream, .. }) = wire.serve().pop() else { panic!() };
    assert!(wire.server.send_message(stream, Message::new(&[0; 1000])).is_ok());
    let sent = wire.server.send_message(stream, Message::new(&[0; 1001]));
    assert_eq!(sent, Err(SendError::Closed));
    assert_eq!(wire.answers().1.unwrap().code, Code::ResourceExhausted);
}

#[test]
fn a_client_that_did_not_ask_refuses_compressed_answers() {
    // A server that compresses without being asked: made of one that was asked, by another client.
    let mut wire = Wire::new(&LIMITS(), true);
    let (stream, _, _) = wire.ask(b"x");
    wire.server.respond(stream, Message::new(&[0; 5000]), &[]);
    let mut other = ClientConnection::new(&Limits::default(), "test:1", 0);
    other.call(b"/t/Unary", Message::new(b"x"), &[], None).unwrap();
    wire.server.swap_output(&mut wire.output);
    wire.output.segments().for_each(|part| wire.buffer.extend_from_slice(part));
    other.receive(&mut wire.buffer, 0);
    let end = std::iter::from_fn(|| other.poll_event()).find_map(|event| match event {
        ClientEvent::Finished { finished, .. } => Some(finished.code),
        _ => None,
    });
    assert_eq!(end, Some(Code::Internal));
}
