//! Known attacks by name: what stops each, and that ordinary use does not come near it.

mod h2_support;

use h2_support::Server;
use prism_io::grpc::{CloseReason, ErrorCode, Limits};

const SECOND_NS: u64 = 1_000_000_000;

/// Repeats `text` until the server ends the connection; how often it went well.
fn until_calm(server: &mut Server, rounds_max: u32, mut text: impl FnMut(u32) -> String) -> u32 {
    for round in 0..rounds_max {
        let lines = server.say(&text(round));
        if server.grpc.is_closed() {
            let last = lines.last().cloned().unwrap_or_default();
            assert!(last.starts_with("GOAWAY") && last.ends_with("ENHANCE_YOUR_CALM"), "{lines:?}");
            assert!(matches!(
                server.grpc.close_reason(),
                Some(CloseReason::Error(ErrorCode::ENHANCE_YOUR_CALM, _))
            ));
            assert_eq!(server.grpc.open_streams(), 0);
            return round;
        }
    }
    rounds_max
}

#[test]
fn rapid_reset() {
    let limits = Limits::default();
    let mut server = Server::new(&limits);
    let attack = |round: u32| {
        let stream = round * 2 + 1;
        format!("HEADERS {stream} h @silent\nDATA {stream} e msg:a\nRST {stream} 8")
    };
    assert_eq!(until_calm(&mut server, 100_000, attack), limits.peer_resets.burst);
    // As many cancelled calls at the allowed rate are nobody's attack.
    let mut server = Server::new(&limits);
    let rate = u64::from(limits.peer_resets.per_second);
    let rounds = limits.peer_resets.burst * 5;
    let slow = |round: u32| {
        let stream = round * 2 + 1;
        format!("HEADERS {stream} h @silent\nRST {stream} 8")
    };
    for round in 0..rounds {
        server.now_ns = u64::from(round) * SECOND_NS / rate;
        server.say(&slow(round));
        assert!(!server.grpc.is_closed(), "round {round}");
    }
}

#[test]
fn made_you_reset() {
    let limits = Limits::default();
    for provoke in ["WU {} 0", "DATA {} e #1\nDATA {} e #1", "PRIORITY {} {}"] {
        let mut server = Server::new(&limits);
        let attack = |round: u32| {
            let stream = (round * 2 + 1).to_string();
            format!("HEADERS {stream} h @silent\n{}", provoke.replace("{}", &stream))
        };
        let rounds = until_calm(&mut server, 100_000, attack);
        assert!(rounds <= limits.provoked_resets.burst, "{provoke}: {rounds}");
    }
}

#[test]
fn continuation_flood() {
    let limits = Limits::default();
    let mut server = Server::new(&limits);
    server.say("HEADERS 1 - @req");
    assert_eq!(until_calm(&mut server, 1000, |_| "CONT 1 -".into()), limits.continuations_max);
    // And by bytes.
    let mut server = Server::new(&limits);
    server.say("HEADERS 1 - @req");
    let long = "a".repeat(16_000);
    assert!(until_calm(&mut server, 1000, |_| format!("CONT 1 - x={long}")) <= 2);
}

#[test]
fn empty_data() {
    let limits = Limits::default();
    let mut server = Server::new(&limits);
    server.say("HEADERS 1 h @silent");
    assert_eq!(until_calm(&mut server, 10_000, |_| "DATA 1 - #0".into()), limits.empty_data.burst);
    let mut server = Server::new(&limits);
    server.say("HEADERS 1 h @silent");
    // Padding does not make a frame less empty.
    assert_eq!(until_calm(&mut server, 10_000, |_| "DATA 1 p #0".into()), limits.empty_data.burst);
}

#[test]
fn ping_flood() {
    let limits = Limits::default();
    let mut server = Server::new(&limits);
    assert_eq!(until_calm(&mut server, 10_000, |_| "PING -".into()), limits.pings.burst);
    // A client that pings beside its calls, as some do to estimate the bandwidth, is well.
    let mut server = Server::new(&limits);
    for round in 0..limits.pings.burst * 10 {
        let stream = round * 2 + 1;
        server.say(&format!("HEADERS {stream} h @req\nDATA {stream} e msg:a\nPING -\nPING -"));
        assert!(!server.grpc.is_closed());
    }
}

#[test]
fn settings_flood() {
    let limits = Limits::default();
    let mut server = Server::new(&limits);
    let rounds = until_calm(&mut server, 10_000, |_| "SETTINGS - 4=1".into());
    assert!(rounds < limits.settings.burst, "{rounds}");
}

#[test]
fn frames_without_effect() {
    let limits = Limits::default();
    for frame in ["PRIORITY 1 3", "RAW 99 0 1 0000", "PING a", "SETTINGS a"] {
        let mut server = Server::new(&limits);
        let rounds = until_calm(&mut server, 100_000, |_| frame.into());
        assert_eq!(rounds, limits.idle_frames.burst, "{frame}");
    }
}

/// A peer that sends PINGs and never reads: the answers it piles up are bounded.
#[test]
fn a_peer_that_never_reads() {
    let limits = Limits {
        output_bytes_max: 1000,
        pings: prism_io::h2::Rate { burst: u32::MAX, per_second: 0 },
        ..Limits::default()
    };
    let mut server = Server::new(&limits);
    let ping = server.writer.frames("PING -");
    for _ in 0..1000 {
        server.input.extend_from_slice(&ping);
        server.grpc.receive(&mut server.input, 0);
        assert!(server.grpc.poll_event().is_none());
    }
    assert!(server.grpc.is_closed());
    assert!(server.grpc.output().len() < 1100);
    assert_eq!(server.refused(), [("output", 1)]);
}

/// Zero window: answers wait, their number of bytes is bounded, and small errors still go out.
#[test]
fn zero_window() {
    // Up to the last byte: the ninth answer fits, a tenth would by its message alone.
    let limits = Limits { queue_bytes_max: 10_049, ..Limits::default() };
    let mut server = Server::new(&limits);
    server.say("SETTINGS - 4=0");
    let message = "m".repeat(1000);
    let mut refused = 0;
    for round in 0..50u32 {
        let stream = round * 2 + 1;
        let lines = server.say(&format!("HEADERS {stream} h @req\nDATA {stream} e msg:{message}"));
        refused += usize::from(lines.iter().any(|line| line.contains("grpc-status=8")));
        assert!(server.grpc.queued_bytes() <= 10_049);
    }
    assert_eq!((refused, server.refused()), (41, vec![("queued", 41)]));
    // And it goes on where it stopped.
    let lines = server.say("SETTINGS - 4=100000");
    assert_eq!(lines.iter().filter(|line| line.ends_with("end grpc-status=0")).count(), 9);
    assert_eq!((server.grpc.open_streams(), server.grpc.queued_bytes()), (0, 0));
}

#[test]
fn more_streams_than_announced() {
    let limits = Limits { streams_max: 3, ..Limits::default() };
    let mut server = Server::new(&limits);
    for stream in [1, 3, 5] {
        assert!(server.say(&format!("HEADERS {stream} h @silent")).is_empty());
    }
    assert_eq!(server.say("HEADERS 7 h @silent"), ["RST_STREAM 7 REFUSED_STREAM"]);
    assert!(server.say("RST 1 8\nHEADERS 9 h @silent").is_empty());
    assert_eq!((server.grpc.open_streams(), server.refused()), (3, vec![("streams", 1)]));
}

#[test]
fn header_list_and_hpack_bomb() {
    let mut server = Server::new(&Limits::default());
    // One large entry, then many references to it: a small block, a huge list.
    let big = format!("40{:02x}78{}{}", 1, "7fa11e", "61".repeat(4000));
    let bomb = format!("HEADERS 1 h 0x3fe11f @req 0x{big} 0x{}", "be".repeat(10_000));
    let lines = server.say(&bomb);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("HEADERS 1 end :status=431"), "{lines:?}");
    assert_eq!(lines[1], "RST_STREAM 1 NO_ERROR");
    assert_eq!(server.refused(), [("header_list", 1)]);
    // The tables are still in step.
    let lines = server.say("HEADERS 3 h @req\nDATA 3 e msg:a");
    assert_eq!(lines[0], "Request 3 1");
}

/// RFC 9113, section 6.9: more than either window is an error of its own.
#[test]
fn window_overrun() {
    let limits = Limits { stream_window_bytes: 70_000, ..Limits::default() };
    let mut server = Server::new(&limits);
    let lines = server.say(
        "HEADERS 1 h @stream
         DATA 1 - 00000fffff #16000
         DATA 1 - #16000
         DATA 1 - #16000
         DATA 1 - #16000
         DATA 1 - #16000
         PING -",
    );
    // What is being gathered was given back, so nothing is overrun here.
    assert!(lines.contains(&"PING ack".to_string()), "{lines:?}");
    let mut server = Server::new(&limits);
    let text = format!("HEADERS 1 h @stream\n{}", "DATA 1 - 0000003e7b #15995\n".repeat(6));
    let lines = server.say(&text);
    assert!(lines.contains(&"RST_STREAM 1 FLOW_CONTROL_ERROR".to_string()), "{lines:?}");
    assert!(server.refused().contains(&("stream_error", 1)));
}

/// The same, section 6.9.1: streams that each keep to their window, and together overrun the connection's.
#[test]
fn the_window_of_a_connection_overrun() {
    let limits = Limits {
        stream_window_bytes: 70_000,
        connection_window_bytes: 100_000,
        ..Limits::default()
    };
    let mut server = Server::new(&limits);
    let stream = |number: u32| {
        let data = format!("DATA {number} - 0000003e7b #15995\n").repeat(4);
        format!("HEADERS {number} h @stream\n{data}")
    };
    let lines = server.say(&stream(1));
    assert!(!lines.iter().any(|line| line.contains("FLOW_CONTROL_ERROR")), "{lines:?}");
    let lines = server.say(&stream(3));
    let ends = |line: &String| line.starts_with("GOAWAY") && line.ends_with("FLOW_CONTROL_ERROR");
    assert!(lines.iter().any(ends), "{lines:?}");
    assert_eq!(server.refused(), [("connection_error", 1)]);
}

#[test]
fn slow_preface_and_settings() {
    let limits = Limits::default();
    let mut server = Server::fresh(&limits);
    server.feed(b"PRI * HT");
    assert_eq!(server.grpc.poll_timeout(), Some(limits.preface_timeout_ns));
    server.grpc.handle_timeout(limits.preface_timeout_ns - 1);
    assert!(!server.grpc.is_closed());
    server.grpc.handle_timeout(limits.preface_timeout_ns);
    assert!(server.grpc.is_closed() && server.grpc.poll_timeout().is_none());
    assert_eq!(server.refused(), [("preface_time", 1)]);

    let mut server = Server::fresh(&limits);
    server.feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    server.say("SETTINGS -");
    assert_eq!(server.grpc.poll_timeout(), Some(limits.settings_timeout_ns));
    server.grpc.handle_timeout(limits.settings_timeout_ns);
    let mut lines = Vec::new();
    server.turn(&mut lines);
    assert_eq!(lines, ["GOAWAY 0 SETTINGS_TIMEOUT"]);
    assert_eq!(server.refused(), [("settings_time", 1)]);
}

#[test]
fn stream_numbers_run_out() {
    let mut server = Server::new(&Limits::default());
    let lines = server.say("HEADERS 2147483647 h @req\nDATA 2147483647 e msg:a");
    assert_eq!(lines[0], "Request 2147483647 1");
    assert_eq!(server.say("HEADERS 1 h @req"), ["GOAWAY 2147483647 PROTOCOL_ERROR"]);
}

/// Lengths are only claims: what is being gathered is bounded per connection.
#[test]
fn many_unfinished_large_messages() {
    let limits = Limits { gather_bytes_max: 10 << 20, ..Limits::default() };
    let mut server = Server::new(&limits);
    let mut refused = 0;
    for round in 0..5u32 {
        let stream = round * 2 + 1;
        let text = format!("HEADERS {stream} h @silent\nDATA {stream} - 0000400000 #10");
        refused += server.say(&text).iter().filter(|l| l.contains("grpc-status=8")).count();
    }
    assert_eq!(refused, 3);
    // The cancelled ones make room.
    assert!(server.say("RST 1 8\nHEADERS 21 h @silent\nDATA 21 - 0000400000 #10").is_empty());
}

/// What a burst has left behind can be given back, and calls go on after it.
#[test]
fn an_idle_connection_gives_its_memory_back() {
    let mut server = Server::new(&Limits::default());
    for round in 0..200u32 {
        server.say(&format!("HEADERS {} h @silent", round * 2 + 1));
    }
    server.grpc.shrink();
    assert_eq!(server.grpc.open_streams(), 200);
    for round in 0..200u32 {
        server.say(&format!("RST {} 8", round * 2 + 1));
    }
    server.grpc.shrink();
    let lines = server.say("HEADERS 1001 h @req\nDATA 1001 e msg:a\nRST 1 8\nWU 3 5");
    assert_eq!(lines[0], "Request 1001 1");
    assert!(!server.grpc.is_closed());
}

/// The lines that a time-out brings.
fn at(server: &mut Server, now_ns: u64) -> Vec<String> {
    server.now_ns = now_ns;
    server.grpc.handle_timeout(now_ns);
    let mut lines = Vec::new();
    server.turn(&mut lines);
    lines
}

#[test]
fn window_updates_by_the_byte() {
    let limits = Limits::default();
    let mut server = Server::new(&limits);
    let attack = |_| "WU 0 1".to_string();
    assert_eq!(until_calm(&mut server, 100_000, attack), limits.window_updates.burst);
    assert_eq!(server.refused(), [("window_updates", 1)]);
    // Beside answers they are what a reader does.
    let mut server = Server::new(&limits);
    for round in 0..limits.window_updates.burst / 100 {
        let stream = round * 2 + 1;
        let updates = "WU 0 1\n".repeat(200);
        server.say(&format!("HEADERS {stream} h @req\nDATA {stream} e msg:a\n{updates}"));
        assert!(!server.grpc.is_closed());
    }
}

/// Frames of streams that have ended are looked at, so they count, in both directions.
#[test]
fn frames_of_streams_that_have_ended() {
    let limits = Limits::default();
    for frame in ["RST 1 8", "WU 1 1", "HEADERS 1 eh x=y"] {
        let mut server = Server::new(&limits);
        server.say("HEADERS 1 h @silent\nRST 1 8\nHEADERS 3 h @silent\nWU 3 0");
        let frame = if frame.starts_with("HEADERS") { "HEADERS 3 eh x=y" } else { frame };
        assert_eq!(until_calm(&mut server, 100_000, |_| frame.into()), limits.idle_frames.burst);
    }
}

/// What is encoded is bounded as well as what is decoded, in one frame and over several.
#[test]
fn a_header_block_too_large() {
    let limits = Limits { header_block_bytes_max: 1024, ..Limits::default() };
    let half = "be".repeat(600);
    for text in
        [format!("HEADERS 1 h 0x{half}{half}"), format!("HEADERS 1 - 0x{half}\nCONT 1 h 0x{half}")]
    {
        let mut server = Server::new(&limits);
        assert_eq!(server.say(&text), ["GOAWAY 0 ENHANCE_YOUR_CALM"]);
        assert_eq!(server.refused(), [("header_block", 1)]);
    }
}

/// A message is refused by the length that it claims.
#[test]
fn a_message_too_large() {
    let limits = Limits { message_bytes_max: 1000, ..Limits::default() };
    let mut server = Server::new(&limits);
    let lines = server.say("HEADERS 1 h @req\nDATA 1 - 00000003e9");
    assert!(lines[0].contains("grpc-status=8"), "{lines:?}");
    assert_eq!(server.refused(), [("message_size", 1)]);
}

#[test]
fn many_fields() {
    let limits = Limits { header_count_max: 20, ..Limits::default() };
    let mut server = Server::new(&limits);
    let most = "a=b ".repeat(14);
    assert!(server.say(&format!("HEADERS 1 h @req {most}")).is_empty());
    let lines = server.say(&format!("HEADERS 3 h @req {most} a=b"));
    assert!(lines[0].starts_with("HEADERS 3 end :status=431"), "{lines:?}");
    assert_eq!(server.refused(), [("header_count", 1)]);
}

/// A header block that dribbles: over CONTINUATION frames, within one frame, and within the nine bytes of its header.
#[test]
fn a_header_block_that_dribbles() {
    let limits = Limits::default();
    let due_ns = limits.headers_timeout_ns;
    let block = {
        let mut server = Server::new(&limits);
        server.writer.frames("HEADERS 1 h @silent")
    };
    for first in [1, 3, 5, 9, 20] {
        let mut server = Server::new(&limits);
        server.now_ns = 5;
        assert!(server.feed(&block[..first]).is_empty());
        // More of it does not begin the time anew.
        server.now_ns = due_ns;
        server.feed(&block[first..first + 1]);
        assert_eq!(server.grpc.poll_timeout(), Some(due_ns + 5), "after {first} bytes");
        assert!(at(&mut server, due_ns + 4).is_empty());
        assert_eq!(at(&mut server, due_ns + 5), ["GOAWAY 0 ENHANCE_YOUR_CALM"]);
        assert_eq!(server.refused(), [("header_time", 1)]);
    }
    let mut server = Server::new(&limits);
    server.say("HEADERS 1 - @silent");
    for part in 1..10 {
        server.now_ns = part * SECOND_NS;
        server.say("CONT 1 -");
    }
    assert_eq!(at(&mut server, due_ns), ["GOAWAY 0 ENHANCE_YOUR_CALM"]);
    // A block that comes in time leaves nothing behind.
    let mut server = Server::new(&limits);
    server.say("HEADERS 1 - @silent\nCONT 1 h");
    assert_ne!(server.grpc.poll_timeout(), Some(due_ns));
}

/// A frame that has begun may take as long as the least pace allows, and no longer.
#[test]
fn a_frame_that_dribbles() {
    let limits = Limits::default();
    let mut server = Server::new(&limits);
    server.say("HEADERS 1 h @silent");
    let data = server.writer.frames("DATA 1 - 0000003a98 #14995");
    server.feed(&data[..10]);
    let due_ns = limits.slow_writer_min.period_ns;
    assert!(at(&mut server, due_ns - 1).is_empty());
    let lines = at(&mut server, due_ns);
    assert!(lines.contains(&"GOAWAY 1 ENHANCE_YOUR_CALM".to_string()), "{lines:?}");
    assert_eq!(server.refused(), [("slow_writer", 1)]);
}

/// A request that has begun has to come; one whose client streams may be silent between two messages.
#[test]
fn slow_writers() {
    let limits = Limits { keepalive_interval_ns: u64::MAX, ..Limits::default() };
    let period_ns = limits.slow_writer_min.period_ns;
    let mut server = Server::new(&limits);
    server.say(
        "HEADERS 1 h @silent\nHEADERS 3 h @stream\nHEADERS 5 h @stream\nDATA 5 - 00000000ff00",
    );
    server.say("HEADERS 7 h @silent\nDATA 7 - 0000100000 #100");
    let mut ended = Vec::new();
    for second in 1..=2 * period_ns / SECOND_NS {
        // Stream 7 is slow as well, but keeps the pace.
        server.now_ns = second * SECOND_NS;
        server.say("DATA 7 - #2000");
        ended.extend(at(&mut server, second * SECOND_NS));
    }
    ended.sort();
    assert_eq!(
        ended,
        ["Cancelled 5", "RST_STREAM 1 ENHANCE_YOUR_CALM", "RST_STREAM 5 ENHANCE_YOUR_CALM"]
    );
    assert_eq!(server.refused(), [("slow_writer", 2)]);
    assert_eq!(server.grpc.open_streams(), 2);
}

/// An answer that waits has to be taken; who takes a little all the time is served.
#[test]
fn slow_readers() {
    let limits = Limits { keepalive_interval_ns: u64::MAX, ..Limits::default() };
    let period_ns = limits.slow_reader_min.period_ns;
    let mut server = Server::new(&limits);
    let message = "m".repeat(10_000);
    server.say("SETTINGS - 4=0");
    let request = |stream: u32| format!("HEADERS {stream} h @req\nDATA {stream} e msg:{message}");
    server.say(&request(1));
    // As many requests as bring 64 KiB and more in each period.
    let mut resets = Vec::new();
    let mut stream = 3;
    for second in 1..=3 * period_ns / SECOND_NS {
        server.now_ns = second * SECOND_NS;
        server.say(&request(stream));
        server.say(&format!("WU {stream} 20000\nWU 0 20000"));
        stream += 2;
        resets.extend(at(&mut server, second * SECOND_NS));
    }
    assert_eq!(resets, ["RST_STREAM 1 ENHANCE_YOUR_CALM"]);
    assert_eq!(server.refused(), [("slow_reader", 1)]);
    assert_eq!((server.grpc.open_streams(), server.grpc.queued_bytes()), (0, 0));
    // Nothing is asked for with 0.
    let off = prism_io::h2::Pace { bytes: 0, period_ns };
    let limits = Limits { slow_reader_min: off, slow_writer_min: off, ..limits };
    let mut server = Server::new(&limits);
    server.say(&format!("SETTINGS - 4=0\n{}\nHEADERS 3 h @silent", request(1)));
    assert_eq!(server.grpc.poll_timeout(), None);
}

/// A connection without a call is asked to leave, and one with a call is not.
#[test]
fn idle_connections_are_asked_to_leave() {
    let idle_timeout_ns = 100 * SECOND_NS;
    let limits = Limits { idle_timeout_ns, keepalive_interval_ns: u64::MAX, ..Limits::default() };
    let mut server = Server::new(&limits);
    server.now_ns = 50 * SECOND_NS;
    server.say("HEADERS 1 h @req\nDATA 1 e msg:a");
    assert!(at(&mut server, idle_timeout_ns).is_empty());
    server.say("HEADERS 3 h @silent");
    assert!(at(&mut server, 2 * idle_timeout_ns - 1).is_empty());
    server.say("RST 3 8");
    let due_ns = 3 * idle_timeout_ns - 1;
    assert!(at(&mut server, due_ns - 1).is_empty());
    assert_eq!(at(&mut server, due_ns), ["GOAWAY 2147483647 NO_ERROR", "PING"]);
    assert_eq!(at(&mut server, due_ns + SECOND_NS), ["GOAWAY 3 NO_ERROR"]);
    assert!(server.grpc.is_closed());
    assert_eq!(server.refused(), [("drain_time", 1), ("idle_time", 1)]);
}

#[test]
fn nothing_said_at_all() {
    let limits = Limits::default();
    let mut server = Server::fresh(&limits);
    assert_eq!(server.grpc.poll_timeout(), Some(limits.first_byte_timeout_ns));
    assert!(at(&mut server, limits.first_byte_timeout_ns).is_empty());
    assert!(server.grpc.is_closed());
    assert_eq!(server.refused(), [("first_byte_time", 1)]);
}

/// A whole message in a request that has no end counts as long as that is so, and a small one does not keep its read buffer.
#[test]
fn requests_without_an_end() {
    let limits = Limits { gather_bytes_max: 3000, message_bytes_max: 1000, ..Limits::default() };
    let mut server = Server::new(&limits);
    let message = "m".repeat(900);
    let mut refusals = 0;
    for call in 0..5 {
        let stream = call * 2 + 1;
        let lines = server.say(&format!("HEADERS {stream} h @req\nDATA {stream} - msg:{message}"));
        refusals += lines.iter().filter(|line| line.contains("grpc-status=8")).count();
    }
    assert_eq!((refusals, server.grpc.buffered_bytes()), (2, 2700));
    // Ended, or cancelled, they make room.
    let lines = server.say("DATA 1 e #0\nRST 3 8");
    assert_eq!(lines[0], "Request 1 900");
    assert_eq!(server.grpc.buffered_bytes(), 900);
    assert_eq!(server.refused(), [("gathered", 2)]);
}
