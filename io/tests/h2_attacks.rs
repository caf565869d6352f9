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
    assert_eq!(refused, 41);
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
    assert_eq!(server.grpc.open_streams(), 3);
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

    let mut server = Server::fresh(&limits);
    server.feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    server.say("SETTINGS -");
    assert_eq!(server.grpc.poll_timeout(), Some(limits.settings_timeout_ns));
    server.grpc.handle_timeout(limits.settings_timeout_ns);
    let mut lines = Vec::new();
    server.turn(&mut lines);
    assert_eq!(lines, ["GOAWAY 0 SETTINGS_TIMEOUT"]);
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
