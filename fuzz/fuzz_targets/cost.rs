//! The same frames again and again, on ever new streams: eight times as many cost eight times as much, at either end, with the
//! limits as they are by default and with none on rates.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use prism_fuzz::linear;
use prism_io::h2::frame::{PREFACE, kind};
use prism_io::h2::{BareConnection, BareEvent, Fields, Limits, Output, Rate, Role};
use prism_judge::frames::{Frame, Sequence};

/// Bytes of the short run.
const SHORT_BYTES: usize = 16 << 10;

fn limits(rates: bool) -> Limits {
    if rates {
        return Limits::default();
    }
    let never = Rate { burst: u32::MAX, per_second: 0 };
    Limits {
        peer_resets: never,
        provoked_resets: never,
        pings: never,
        settings: never,
        empty_data: never,
        idle_frames: never,
        ..Limits::default()
    }
}

/// Puts the frames' streams behind those of the repetitions before.
fn moved(frame: &Frame, repetition: usize, streams: u32) -> Vec<u8> {
    let mut frame = frame.clone();
    let on_stream = !matches!(frame.kind, kind::SETTINGS | kind::PING | kind::GOAWAY);
    if on_stream && frame.stream & 0x7fff_ffff != 0 {
        frame.stream = (frame.stream & 0x7fff_ffff) + repetition as u32 * streams;
    }
    frame.bytes()
}

fn run(sequence: &Sequence, limits: &Limits, bytes_max: usize) {
    let mut connection = BareConnection::new(sequence.role, limits, 0);
    if sequence.role == Role::Client {
        let mut fields = Fields::new();
        fields.push(b":path", b"/");
        while connection.open(&fields, true).is_some() {}
    }
    let streams = sequence.frames.iter().map(|frame| frame.stream & 0xffff).max().unwrap_or(0);
    let streams = streams.next_multiple_of(2) + 2;
    let mut input = BytesMut::from(if sequence.role == Role::Server { &PREFACE[..] } else { b"" });
    let mut output = Output::default();
    let (mut taken, mut repetition) = (0, 0);
    let mut answer = Fields::new();
    answer.push(b":status", b"200");
    while taken < bytes_max && connection.close_reason().is_none() {
        // Of one read, as they come from a socket.
        while input.len() < 8192 {
            for frame in &sequence.frames {
                input.extend(moved(frame, repetition, streams));
            }
            repetition += 1;
        }
        taken += input.len();
        connection.receive(&mut input, 0);
        while let Some(event) = connection.poll_event() {
            match event {
                BareEvent::Data { stream, payload, end } => {
                    connection.release(stream, payload.len());
                    if end {
                        connection.send_head(stream, &answer, true);
                    }
                }
                BareEvent::Head { stream, end: true, .. } | BareEvent::Trailers { stream, .. } => {
                    connection.send_head(stream, &answer, true);
                }
                _ => {}
            }
        }
        connection.swap_output(&mut output);
        assert!(output.len() <= 2 << 20);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    let role = if first & 1 == 0 { Role::Server } else { Role::Client };
    let sequence = Sequence::new(role, data);
    let limits = limits(first & 2 == 0);
    linear(|times| run(&sequence, &limits, SHORT_BYTES * times));
});
