//! RFC 9113 for both roles, with nothing above HTTP/2: every cell of the table of stream states, the client's side section by
//! section, flow control and settings that change while things are on their way, and the two steps of a drain.

mod h2_support;

use bytes::{Bytes, BytesMut};
use h2_support::{Reader, Writer};
use prism_io::h2::bare::{BareConnection, BareEvent};
use prism_io::h2::frame::PREFACE;
use prism_io::h2::state::{Received, State, TABLE, Verdict};
use prism_io::h2::{CloseReason, ErrorCode, Fields, Limits, Output, Role, StreamId};
use std::collections::HashMap;

/// One end, talked to in lines of text.
struct End {
    core: BareConnection,
    writer: Writer,
    reader: Reader,
    input: BytesMut,
    output: Output,
    streams: HashMap<u32, StreamId>,
    /// Payload is given back to the windows as soon as it came.
    releasing: bool,
}

fn fields(text: &str) -> Fields {
    let mut fields = Fields::new();
    for word in text.split_whitespace() {
        let at = word[1..].find('=').expect("name=value") + 1;
        let bytes = word.as_bytes();
        fields.push(&bytes[..at], &bytes[at + 1..]);
    }
    fields
}

fn show(fields: &Fields) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    fields.iter().map(|(name, value)| format!(" {}={}", text(name), text(value))).collect()
}

const REQUEST: &str = ":method=GET :scheme=http :path=/ :authority=a";

impl End {
    fn fresh(role: Role, limits: &Limits) -> Self {
        Self {
            core: BareConnection::new(role, limits, 0),
            writer: Writer::new(),
            reader: Reader::new(),
            input: BytesMut::new(),
            output: Output::default(),
            streams: HashMap::new(),
            releasing: true,
        }
    }

    /// After the handshake.
    fn new(role: Role, limits: &Limits) -> Self {
        let mut end = Self::fresh(role, limits);
        let mut hello = if role == Role::Server { PREFACE.to_vec() } else { Vec::new() };
        end.written(); // A client's preface is no frame.
        hello.extend(end.writer.frames("SETTINGS -\nSETTINGS a"));
        end.feed(&hello);
        end
    }

    /// What it wants to have written, as lines; a client's preface is left out.
    fn written(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        self.core.swap_output(&mut self.output);
        let all = self.output.segments().collect::<Vec<_>>().concat();
        self.reader.lines(all.strip_prefix(PREFACE.as_slice()).unwrap_or(&all), &mut lines);
        lines
    }

    fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        self.input.extend_from_slice(bytes);
        self.core.receive(&mut self.input, 0);
        let mut lines = Vec::new();
        while let Some(event) = self.core.poll_event() {
            let end = |end: bool| if end { " end" } else { "" };
            lines.push(match event {
                BareEvent::Head { stream, fields, end: ends, .. } => {
                    self.streams.insert(stream.number(), stream);
                    format!("Head {}{}{}", stream.number(), end(ends), show(&fields))
                }
                BareEvent::Data { stream, payload, end: ends } => {
                    if self.releasing {
                        self.core.release(stream, payload.len());
                    }
                    format!("Data {} {}{}", stream.number(), payload.len(), end(ends))
                }
                BareEvent::Trailers { stream, fields } => {
                    format!("Trailers {}{}", stream.number(), show(&fields))
                }
                BareEvent::Reset { stream, code } => format!("Reset {} {code:?}", stream.number()),
                BareEvent::GoAway { last, .. } => format!("GoAway {last}"),
            });
        }
        lines.extend(self.written());
        lines
    }

    fn say(&mut self, text: &str) -> Vec<String> {
        let bytes = self.writer.frames(text);
        self.feed(&bytes)
    }

    fn open(&mut self, end: bool) -> u32 {
        let stream = self.core.open(&fields(REQUEST), end).expect("a stream");
        self.streams.insert(stream.number(), stream);
        self.written();
        stream.number()
    }

    fn answer(&mut self, number: u32, end: bool) -> Vec<String> {
        assert!(self.core.send_head(self.streams[&number], &fields(":status=200"), end));
        self.written()
    }

    fn send(&mut self, number: u32, bytes: usize, end: bool) -> Vec<String> {
        assert!(self.core.send_data(self.streams[&number], vec![7; bytes].into(), end));
        self.written()
    }
}

/// Brings an end into a state; the number of the stream that is in it. `None` where the role cannot come there.
fn bring(role: Role, state: State) -> Option<(End, u32)> {
    let mut end = End::new(role, &Limits::default());
    let number = match (role, state) {
        (Role::Server, State::Idle) => 5,
        (Role::Server, State::Barred) => 2,
        (Role::Server, State::Open) => {
            end.say("HEADERS 5 h @silent");
            5
        }
        // A server that ends first resets the rest of the request.
        (Role::Server, State::HalfClosedLocal) => return None,
        (Role::Server, State::HalfClosedRemote) => {
            end.say("HEADERS 5 eh @silent");
            5
        }
        (Role::Server, State::ResetByUs) => {
            end.say("HEADERS 5 h @silent");
            end.core.reset(end.streams[&5], ErrorCode::CANCEL);
            assert_eq!(end.written(), ["RST_STREAM 5 CANCEL"]);
            5
        }
        (Role::Server, State::Closed) => {
            end.say("HEADERS 5 eh @silent");
            end.answer(5, true);
            5
        }
        (Role::Server, State::Passed) => {
            end.say("HEADERS 7 h @silent");
            5
        }
        (Role::Client, State::Idle) => return None,
        (Role::Client, State::Barred) => 1,
        (Role::Client, State::Open | State::HalfClosedLocal) => {
            let number = end.open(state == State::HalfClosedLocal);
            end.say(&format!("HEADERS {number} h :status=200"));
            number
        }
        (Role::Client, State::HalfClosedRemote) => {
            let number = end.open(false);
            end.say(&format!("HEADERS {number} eh :status=200"));
            number
        }
        (Role::Client, State::ResetByUs) => {
            let number = end.open(false);
            end.core.reset(end.streams[&number], ErrorCode::CANCEL);
            end.written();
            number
        }
        (Role::Client, State::Closed) => {
            let number = end.open(true);
            end.say(&format!("HEADERS {number} eh :status=200"));
            number
        }
        (Role::Client, State::Passed) => {
            for _ in 0..100 {
                let number = end.open(true);
                end.say(&format!("HEADERS {number} eh :status=200"));
            }
            1
        }
    };
    Some((end, number))
}

/// Section 5.1: every state and every frame, as the table says.
#[test]
fn every_cell_of_the_table_of_states() {
    const FRAMES: [(Received, &str); 5] = [
        (Received::Data, "DATA {} - #1"),
        (Received::Headers, "HEADERS {} eh x=y"),
        (Received::Priority, "PRIORITY {} 99"),
        (Received::RstStream, "RST {} 8"),
        (Received::WindowUpdate, "WU {} 1"),
    ];
    let mut seen = 0;
    for role in [Role::Server, Role::Client] {
        for (state, verdicts) in TABLE {
            for (received, frame) in FRAMES {
                let Some((mut end, number)) = bring(role, state) else { continue };
                let frame = match (state, received) {
                    (State::Idle, Received::Headers) => "HEADERS {} eh @silent",
                    _ => frame,
                };
                let lines =
                    end.say(&format!("{}\nPING -", frame.replace("{}", &number.to_string())));
                let what = format!("{role:?} {state:?} {received:?}: {lines:?}");
                let verdict = verdicts[received as usize];
                assert_eq!(verdict, state.on(received));
                let goaway = lines.iter().find(|line| line.starts_with("GOAWAY"));
                let reset = lines.iter().find(|line| line.starts_with("RST_STREAM"));
                let event = lines.iter().find(|line| {
                    ["Head", "Data", "Trailers", "Reset"].iter().any(|e| line.starts_with(e))
                });
                let named = |line: Option<&String>, code: ErrorCode| {
                    line.is_some_and(|line| line.ends_with(&format!("{code:?}")))
                };
                match verdict {
                    Verdict::ConnectionError(code) => assert!(named(goaway, code), "{what}"),
                    Verdict::StreamError(code) => {
                        assert!(goaway.is_none() && named(reset, code), "{what}");
                    }
                    Verdict::Ignore => {
                        assert!(goaway.is_none() && reset.is_none() && event.is_none(), "{what}");
                    }
                    // A WINDOW_UPDATE shows only in what is sent after it.
                    Verdict::Accept => assert!(
                        goaway.is_none()
                            && reset.is_none()
                            && event.is_some() == (received != Received::WindowUpdate),
                        "{what}"
                    ),
                }
                let alive = lines.contains(&"PING ack".to_string());
                assert_eq!(alive, goaway.is_none(), "{what}");
                seen += 1;
            }
        }
    }
    assert_eq!(seen, (7 + 7) * 5);
}

/// The client's side. Stream 1 waits for its response with its request ended, stream 3 with its request open.
const CLIENT: &[(&str, &str, &str)] = &[
    (
        "6.2 a response",
        "HEADERS 1 h :status=200 a=b\nDATA 1 e #3",
        "Head 1 :status=200 a=b\nData 1 3 end",
    ),
    ("8.1 a response without a body", "HEADERS 1 eh :status=204", "Head 1 end :status=204"),
    (
        "8.1 trailers",
        "HEADERS 1 h :status=200\nDATA 1 - #3\nHEADERS 1 eh x=y",
        "Head 1 :status=200\nData 1 3\nTrailers 1 x=y",
    ),
    (
        "8.1 trailers without END_STREAM",
        "HEADERS 1 h :status=200\nHEADERS 1 h x=y",
        "Head 1 :status=200\nReset 1 PROTOCOL_ERROR\nRST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.1 informational responses come before the final one",
        "HEADERS 1 h :status=100\nHEADERS 1 h :status=103 link=x\nHEADERS 1 eh :status=200",
        "Head 1 end :status=200",
    ),
    (
        "8.1 an informational response that ends the stream",
        "HEADERS 1 eh :status=100",
        "Reset 1 PROTOCOL_ERROR\nRST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.1 an informational response after the final one",
        "HEADERS 1 h :status=200\nHEADERS 1 eh :status=100",
        "Head 1 :status=200\nReset 1 PROTOCOL_ERROR\nRST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.1 DATA before the response",
        "DATA 1 - #1",
        "Reset 1 PROTOCOL_ERROR\nRST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.1 DATA after an informational response",
        "HEADERS 1 h :status=100\nDATA 1 - #1",
        "Reset 1 PROTOCOL_ERROR\nRST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.1 a whole response and then RST_STREAM(NO_ERROR)",
        "HEADERS 3 eh :status=200\nRST 3 0",
        "Head 3 end :status=200\nReset 3 NO_ERROR",
    ),
    (
        "8.1.1 content-length below the payload",
        "HEADERS 1 h :status=200 content-length=2\nDATA 1 e #3",
        "Head 1 :status=200 content-length=2\nReset 1 PROTOCOL_ERROR\nRST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.1.1 content-length above the payload",
        "HEADERS 1 h :status=200 content-length=4\nDATA 1 e #3",
        "Head 1 :status=200 content-length=4\nReset 1 PROTOCOL_ERROR\nRST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.2.1 upper case",
        "HEADERS 1 eh :status=200 A=b",
        "Reset 1 PROTOCOL_ERROR\nRST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.2.2 connection",
        "HEADERS 1 eh :status=200 connection=close",
        "Reset 1 PROTOCOL_ERROR\nRST_STREAM 1 PROTOCOL_ERROR",
    ),
    ("8.3.2 no :status", "HEADERS 1 eh a=b", "Reset 1 PROTOCOL_ERROR\nRST_STREAM 1 PROTOCOL_ERROR"),
    (
        "8.3.2 two :status",
        "HEADERS 1 eh :status=200 :status=200",
        "Reset 1 PROTOCOL_ERROR\nRST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.3.2 :status that is none",
        "HEADERS 1 eh :status=2x0",
        "Reset 1 PROTOCOL_ERROR\nRST_STREAM 1 PROTOCOL_ERROR",
    ),
    (
        "8.3.2 a request's pseudo-header",
        "HEADERS 1 eh :status=200 :path=/",
        "Reset 1 PROTOCOL_ERROR\nRST_STREAM 1 PROTOCOL_ERROR",
    ),
    ("8.6 101", "HEADERS 1 h :status=101", "Reset 1 PROTOCOL_ERROR\nRST_STREAM 1 PROTOCOL_ERROR"),
    ("6.5.2 ENABLE_PUSH of 1 from a server", "SETTINGS - 2=1", "GOAWAY 0 PROTOCOL_ERROR"),
    ("6.5.2 ENABLE_PUSH of 0 from a server", "SETTINGS - 2=0", "SETTINGS ack"),
    ("6.6 PUSH_PROMISE", "RAW 5 4 1 0000000282", "GOAWAY 0 PROTOCOL_ERROR"),
    ("5.1.1 a stream of the server's", "HEADERS 2 eh :status=200", "GOAWAY 0 PROTOCOL_ERROR"),
    ("5.1.1 a stream that was not opened", "HEADERS 9 eh :status=200", "GOAWAY 0 PROTOCOL_ERROR"),
    ("6.4 a refused stream", "RST 3 7", "Reset 3 REFUSED_STREAM"),
    ("6.7 PING", "PING -", "PING ack"),
    (
        "6.8 GOAWAY: what is above was not processed",
        "GOAWAY 1 0\nHEADERS 1 eh :status=200",
        "GoAway 1\nHead 1 end :status=200",
    ),
    (
        "6.8 GOAWAY in two steps",
        "GOAWAY 2147483647 0\nPING -\nGOAWAY 3 0\nHEADERS 3 eh :status=200",
        "GoAway 2147483647\nGoAway 3\nHead 3 end :status=200\nPING ack",
    ),
    (
        "6.8 a second GOAWAY that names a higher stream brings nothing back",
        "GOAWAY 1 0\nGOAWAY 3 0\nHEADERS 1 eh :status=200\nPING -",
        "GoAway 1\nGoAway 3\nHead 1 end :status=200",
    ),
    ("7 an error code that is not known", "RST 3 305419896", "Reset 3 ErrorCode(0x12345678)"),
    (
        "6.10 a response in parts",
        "HEADERS 1 e :status=200\nCONT 1 - a=b\nCONT 1 h c=d",
        "Head 1 end :status=200 a=b c=d",
    ),
];

#[test]
fn the_client_does_as_the_rfc_says() {
    for (section, input, expected) in CLIENT {
        let start = || {
            let mut end = End::new(Role::Client, &Limits::default());
            end.open(true);
            end.open(false);
            end
        };
        let mut end = start();
        let expected: Vec<_> = expected.lines().collect();
        assert_eq!(end.say(input), expected, "{section}");
        // Also byte by byte; frames and events may come in another order then.
        let mut end = start();
        let bytes = end.writer.frames(input);
        let mut seen: Vec<_> = bytes.iter().flat_map(|byte| end.feed(&[*byte])).collect();
        let mut expected: Vec<_> = expected.into_iter().map(String::from).collect();
        seen.sort();
        expected.sort();
        assert_eq!(seen, expected, "{section}, byte by byte");
    }
}

/// Section 3.4, the client's side: preface first, and the server's first frame has to be SETTINGS.
#[test]
fn a_client_begins_and_expects_settings() {
    let mut end = End::fresh(Role::Client, &Limits::default());
    end.core.swap_output(&mut end.output);
    assert!(end.output.inline.starts_with(PREFACE));
    assert_eq!(end.say("PING -"), ["GOAWAY 0 PROTOCOL_ERROR"]);
}

/// Section 5.1.2: the server's limit counts as soon as it is known, also when it falls below what is open.
#[test]
fn the_peers_limit_of_streams_may_change() {
    let mut end = End::new(Role::Client, &Limits::default());
    let first = end.open(true);
    end.open(true);
    end.say("SETTINGS - 3=1");
    assert!(end.core.open(&fields(REQUEST), true).is_none());
    end.say(&format!("HEADERS {first} eh :status=200"));
    assert!(end.core.open(&fields(REQUEST), true).is_none());
    end.say("SETTINGS - 3=2");
    assert!(end.core.open(&fields(REQUEST), true).is_some());
}

/// Section 6.9.2: a window may become negative, and is worked off before anything is sent again; in both roles.
#[test]
fn a_smaller_initial_window_makes_a_window_negative() {
    for role in [Role::Server, Role::Client] {
        let mut end = End::new(role, &Limits::default());
        assert_eq!(end.say("SETTINGS - 4=10"), ["SETTINGS ack"]);
        let number = match role {
            Role::Server => {
                end.say("HEADERS 1 eh @silent");
                end.answer(1, false);
                1
            }
            Role::Client => end.open(false),
        };
        assert_eq!(end.send(number, 30, true), [format!("DATA {number} 10")]);
        assert_eq!(end.say("SETTINGS - 4=3"), ["SETTINGS ack"]); // -7
        assert!(end.say(&format!("WU {number} 5")).is_empty()); // -2
        assert!(end.say(&format!("WU {number} 2")).is_empty()); // 0
        assert_eq!(end.say(&format!("WU {number} 2")), [format!("DATA {number} 2")]);
        assert_eq!(
            end.say("SETTINGS - 4=20"),
            ["SETTINGS ack".into(), format!("DATA {number} 17")]
        );
        assert_eq!(end.core.queued_bytes(), 1);
        assert_eq!(end.say(&format!("WU {number} 100")), [format!("DATA {number} 1 end")]);
    }
}

/// Section 6.9.1: the connection's window holds all streams back, whatever theirs allow, and they take turns.
#[test]
fn the_connections_window_is_shared() {
    let mut end = End::new(Role::Server, &Limits::default());
    end.say("SETTINGS - 4=1000000\nHEADERS 1 eh @silent\nHEADERS 3 eh @silent");
    end.answer(1, false);
    end.answer(3, false);
    let sent = end.send(1, 70_000, true);
    let bytes: usize =
        sent.iter().map(|line| line.split(' ').nth(2).unwrap().parse::<usize>().unwrap()).sum();
    assert_eq!(bytes, 65_535);
    assert!(end.send(3, 10, true).is_empty());
    assert_eq!(end.say("WU 0 4470"), ["DATA 1 4465 end", "DATA 3 5"]);
    assert_eq!(end.say("WU 0 5"), ["DATA 3 5 end"]);
}

/// Sections 4.2 and 6.5.2: the peer's SETTINGS_MAX_FRAME_SIZE holds from its acknowledgement on, up and down.
#[test]
fn the_peers_frame_size_may_change() {
    let mut end = End::new(Role::Server, &Limits::default());
    end.say("SETTINGS - 4=1000000\nWU 0 1000000\nHEADERS 1 eh @silent");
    end.answer(1, false);
    assert_eq!(end.send(1, 20_000, false), ["DATA 1 16384", "DATA 1 3616"]);
    end.say("SETTINGS - 5=20000");
    assert_eq!(end.send(1, 20_000, false), ["DATA 1 20000"]);
    end.say("SETTINGS - 5=16384");
    assert_eq!(end.send(1, 20_000, true), ["DATA 1 16384", "DATA 1 3616 end"]);
}

/// Section 6.9.2: a window of ours below the default counts from when the peer has acknowledged it.
#[test]
fn our_smaller_window_counts_from_its_acknowledgement() {
    let limits = Limits { stream_window_bytes: 1000, ..Limits::default() };
    let mut end = End::fresh(Role::Server, &limits);
    end.releasing = false;
    end.feed(PREFACE);
    end.say("SETTINGS -");
    // Not acknowledged yet: 65,535 are allowed.
    assert_eq!(end.say("HEADERS 1 h @silent\nDATA 1 - #16000")[1], "Data 1 16000");
    assert!(end.say("SETTINGS a\nHEADERS 5 h @silent").len() == 1);
    // The window is negative now: nothing fits but an end.
    let late = end.say("DATA 1 - #1");
    assert_eq!(late, ["Reset 1 FLOW_CONTROL_ERROR", "RST_STREAM 1 FLOW_CONTROL_ERROR"]);
    // A stream that begins now has the smaller one.
    assert_eq!(end.say("DATA 5 - #1000"), ["Data 5 1000"]);
    assert!(end.say("DATA 5 - #1").contains(&"RST_STREAM 5 FLOW_CONTROL_ERROR".to_string()));

    let mut end = End::fresh(Role::Server, &limits);
    end.releasing = false;
    end.feed(PREFACE);
    end.say("SETTINGS -\nHEADERS 1 h @silent\nDATA 1 - #16000\nSETTINGS a");
    assert_eq!(end.say("DATA 1 e #0"), ["Data 1 0 end"]);
}

/// Section 6.9: windows follow consumption, and padding is given back by itself.
#[test]
fn windows_follow_consumption() {
    let limits = Limits {
        stream_window_bytes: 20_000,
        connection_window_bytes: 65_535,
        ..Limits::default()
    };
    let mut end = End::new(Role::Server, &limits);
    end.releasing = false;
    end.say("HEADERS 1 h @silent");
    assert_eq!(end.say("DATA 1 - #12000"), ["Data 1 12000"]);
    let stream = end.streams[&1];
    end.core.release(stream, 9_999);
    assert!(end.written().is_empty(), "not worth a frame");
    end.core.release(stream, 1);
    assert_eq!(end.written(), ["WINDOW_UPDATE 1 10000"]);
    // Four bytes of each of these frames are padding and its length: nobody has to consume them.
    let padded = end.say(&"DATA 1 p #0\n".repeat(10));
    assert!(padded.is_empty());
    end.core.release(stream, 2_000);
    end.core.release(stream, 7_960);
    assert_eq!(end.written(), ["WINDOW_UPDATE 1 10000"]);
}

/// Section 6.9: DATA that nobody takes, on streams that are gone, is given back to the connection.
#[test]
fn data_on_a_reset_stream_does_not_use_up_the_connection() {
    let limits = Limits { connection_window_bytes: 65_535, ..Limits::default() };
    let mut end = End::new(Role::Server, &limits);
    end.say("HEADERS 1 h @silent");
    end.core.reset(end.streams[&1], ErrorCode::CANCEL);
    end.written();
    let mut given = 0;
    for _ in 0..20 {
        for line in end.say("DATA 1 - #16000") {
            let more = line.strip_prefix("WINDOW_UPDATE 0 ").unwrap_or_else(|| panic!("{line}"));
            given += more.parse::<u32>().unwrap();
        }
    }
    assert!(given > 20 * 16_000 - 65_535, "{given}");
}

/// Section 8.1: trailers wait behind the DATA that a window holds back.
#[test]
fn trailers_wait_for_their_data() {
    let mut end = End::new(Role::Server, &Limits::default());
    end.say("SETTINGS - 4=5\nHEADERS 1 eh @silent");
    end.answer(1, false);
    assert_eq!(end.send(1, 10, false), ["DATA 1 5"]);
    assert!(end.core.send_trailers(end.streams[&1], fields("x=y")));
    assert!(end.written().is_empty());
    assert_eq!(end.say("WU 1 5"), ["DATA 1 5", "HEADERS 1 end x=y"]);
    assert_eq!(end.core.open_streams(), 0);
}

/// Section 6.8: the server leaves in two steps, so that nothing on its way is lost.
#[test]
fn a_server_leaves_in_two_steps() {
    let drained = |by_ping: bool| {
        let mut end = End::new(Role::Server, &Limits::default());
        end.say("HEADERS 1 eh @silent");
        end.core.drain(0);
        assert_eq!(end.written(), ["GOAWAY 2147483647 NO_ERROR", "PING"]);
        end.core.drain(0);
        assert!(end.written().is_empty(), "once is enough");
        // On its way when the client heard of it.
        assert_eq!(end.say("HEADERS 3 eh @silent").len(), 1);
        if by_ping {
            assert_eq!(end.say("RAW 6 1 0 647261696e6e6f77"), ["GOAWAY 3 NO_ERROR"]);
        } else {
            end.core.handle_timeout(Limits::default().drain_ping_timeout_ns);
            assert_eq!(end.written(), ["GOAWAY 3 NO_ERROR"]);
        }
        // What comes after it is not processed, and said to be so.
        assert!(end.say("HEADERS 5 h @silent\nDATA 5 e #3").is_empty());
        end.answer(1, true);
        assert_eq!(end.core.close_reason(), None);
        end.answer(3, true);
        assert_eq!(end.core.close_reason(), Some(CloseReason::Done));
    };
    drained(true);
    drained(false);
}

/// RFC 7541, sections 6.2.3 and 7.1: what came as a never-indexed literal goes on as one, from end to end to end.
#[test]
fn never_indexed_literals_stay_so() {
    let mut server = End::new(Role::Server, &Limits::default());
    // `password: secret`, appendix C.2.3, behind the request's own fields.
    let secret = "100870617373776f726406736563726574";
    let block = server.writer.block(&["@silent", &format!("0x{secret}")]);
    let mut head = Vec::new();
    prism_io::h2::frame::put_header(&mut head, block.len(), 1, 5, 1);
    head.extend(block);
    server.input.extend_from_slice(&head);
    server.core.receive(&mut server.input, 0);
    let Some(BareEvent::Head { fields, .. }) = server.core.poll_event() else { panic!() };
    let marked: Vec<_> = fields.iter_marked().filter(|(_, _, sensitive)| *sensitive).collect();
    assert_eq!(marked, [(&b"password"[..], &b"secret"[..], true)]);

    let mut client = BareConnection::new(Role::Client, &Limits::default(), 0);
    for _ in 0..3 {
        client.open(&fields, true).expect("a stream");
        let mut output = Output::default();
        client.swap_output(&mut output);
        let sent = output.segments().collect::<Vec<_>>().concat();
        let wanted = h2_support::unhex(secret);
        assert!(sent.windows(wanted.len()).any(|window| window == wanted), "{sent:02x?}");
    }
}

/// RFC 7541, section 4.2: the peer's table size is kept to from the next block on, and our own is asked for.
#[test]
fn header_table_sizes_change_on_both_sides() {
    let mut end = End::new(Role::Server, &Limits::default());
    let head = |end: &mut End, number: u32| {
        end.say(&format!("HEADERS {number} eh @silent"));
        assert!(end.core.send_head(
            end.streams[&number],
            &fields(":status=200 custom=value"),
            true
        ));
        end.core.swap_output(&mut end.output);
        end.output.inline[9..].to_vec()
    };
    let (first, second) = (head(&mut end, 1), head(&mut end, 3));
    assert!(first.len() > 10 && second == [0x88, 0xbe], "{first:02x?} {second:02x?}");
    end.say("SETTINGS - 1=0");
    let third = head(&mut end, 5);
    assert_eq!(third[..2], [0x20, 0x88], "an update to 0, and nothing of the table");
    assert!(third.len() > 10, "{third:02x?}");
    end.say("SETTINGS - 1=4096");
    let fourth = head(&mut end, 7);
    assert_eq!(fourth[..3], [0x3f, 0xe1, 0x1f], "an update to 4,096");
    assert_eq!(head(&mut end, 9), [0x88, 0xbe]);

    // Ours: the peer has to say that it follows, once it has acknowledged.
    let limits = Limits { header_table_bytes: 100, ..Limits::default() };
    for (block, expected) in [
        ("@silent", "GOAWAY 1 COMPRESSION_ERROR"), // no update
        ("0x3f46 @silent", "GOAWAY 1 COMPRESSION_ERROR"), // to 101
        ("0x3f45 0x3f00 @silent", "Head 1 end"),   // to 100, then to 31
    ] {
        let mut end = End::new(Role::Server, &limits);
        end.writer.encoder.begin(&mut Vec::new()); // no update by itself
        let lines = end.say(&format!("HEADERS 1 eh {block}"));
        assert!(lines.len() == 1 && lines[0].starts_with(expected), "{block}: {lines:?}");
    }
}

/// What is queued when a connection ends is not kept.
#[test]
fn a_connection_that_ends_lets_go_of_what_waits() {
    let mut end = End::new(Role::Server, &Limits::default());
    end.say("SETTINGS - 4=0\nHEADERS 1 eh @silent");
    end.answer(1, false);
    let payload = Bytes::from(vec![1; 100_000]);
    assert!(end.core.send_data(end.streams[&1], payload.clone(), true));
    assert_eq!(end.core.queued_bytes(), 100_000);
    end.say("PING -\nRAW 6 0 1 0000000000000000");
    assert_eq!(end.core.queued_bytes(), 0);
    assert!(payload.is_unique());
}
