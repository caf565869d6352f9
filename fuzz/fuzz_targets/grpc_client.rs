//! Any bytes against a gRPC client: no panic, and every call ends exactly once.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use prism_io::grpc::{ClientConnection, ClientEvent, Limits, Message, Output};
use prism_io::h2::frame::{put_header, put_settings};

fuzz_target!(|data: &[u8]| {
    let limits =
        Limits { message_bytes_max: 10_000, gather_bytes_max: 15_000, ..Limits::default() };
    let mut client = ClientConnection::new(&limits, "a", 0);
    let mut calls = Vec::new();
    for _ in 0..3 {
        calls.extend(client.call(b"/a/b", Message::new(b"abc"), &[], None));
        calls.extend(client.start(b"/a/c", &[("x-bin", b"y")], None));
    }
    let mut wire = BytesMut::new();
    let mut first = Vec::new();
    put_settings(&mut first, &[]);
    wire.extend_from_slice(&first);
    let mut output = Output::default();
    let mut rest = data;
    let mut finished = 0;
    while let [kind, flags, stream, count, tail @ ..] = rest {
        let (payload, tail) = tail.split_at(usize::from(*count).min(tail.len()));
        rest = tail;
        let mut frame = Vec::new();
        put_header(&mut frame, payload.len(), kind % 11, *flags, u32::from(*stream));
        wire.extend_from_slice(&frame);
        wire.extend_from_slice(payload);
        client.receive(&mut wire, 0);
        while let Some(event) = client.poll_event() {
            match event {
                ClientEvent::Finished { stream, .. } => {
                    assert!(calls.contains(&stream));
                    calls.retain(|call| *call != stream);
                    finished += 1;
                }
                ClientEvent::Message { stream, message, .. } => client.release(stream, message.len()),
                _ => {}
            }
        }
        client.swap_output(&mut output);
    }
    client.lost();
    while let Some(event) = client.poll_event() {
        if let ClientEvent::Finished { .. } = event {
            finished += 1;
        }
    }
    assert_eq!((finished, client.open_streams()), (6, 0));
});
