//! What a server may say, to a gRPC client: no panic, bounded memory, and every call ends exactly once.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use prism_fuzz::bounded;
use prism_io::grpc::{ClientConnection, ClientEvent, Limits, Message, Output};
use prism_judge::Role;
use prism_judge::frames::Sequence;

fuzz_target!(|data: &[u8]| {
    let sequence = Sequence::new(Role::Client, data);
    let input_bytes = sequence.bytes().len();
    bounded((300 << 10) + 4 * input_bytes, || {
        let limits =
            Limits { message_bytes_max: 10_000, gather_bytes_max: 15_000, ..Limits::default() };
        let mut client = ClientConnection::new(&limits, "a", 0);
        let mut calls = Vec::new();
        for _ in 0..3 {
            calls.extend(client.call(b"/a/b", Message::new(b"abc"), &[], None));
            calls.extend(client.start(b"/a/c", &[("x-bin", b"y")], None));
        }
        let mut wire = BytesMut::new();
        let mut output = Output::default();
        let mut finished = 0;
        for (nth, frame) in sequence.frames.iter().enumerate() {
            wire.extend_from_slice(&frame.bytes());
            // Several frames of one read now and then.
            if data.get(nth).is_some_and(|byte| byte & 3 == 0) {
                continue;
            }
            client.receive(&mut wire, 0);
            while let Some(event) = client.poll_event() {
                match event {
                    ClientEvent::Finished { stream, .. } => {
                        assert!(calls.contains(&stream));
                        calls.retain(|call| *call != stream);
                        finished += 1;
                    }
                    ClientEvent::Message { stream, message, .. } => {
                        assert!(calls.contains(&stream));
                        client.release(stream, message.len());
                    }
                    ClientEvent::Headers { stream, .. } | ClientEvent::Writable { stream } => {
                        assert!(calls.contains(&stream));
                    }
                }
            }
            client.swap_output(&mut output);
        }
        client.lost();
        while let Some(event) = client.poll_event() {
            if let ClientEvent::Finished { stream, .. } = event {
                assert!(calls.contains(&stream));
                calls.retain(|call| *call != stream);
                finished += 1;
            }
        }
        assert_eq!((finished, client.open_streams()), (6, 0));
    });
});
