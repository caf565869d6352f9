//! One HTTP/2 connection: its state, its beginning and its end.
//!
//! `receive` (frames in) and `send` (frames out) hold the rest of the implementation.

use super::block::{Block, RememberedHeads};
use super::flow::{ReceiveWindow, SendWindow};
use super::frame::{self, ErrorCode, PREFACE, setting};
use super::hpack::{Decoder, Encoder};
use super::keepalive::Keepalive;
use super::limits::{Budget, Limits};
use super::output::Output;
use super::refusal::{Refusal, Refusals};
use super::state::State;
use super::stream::{RecentlyClosed, Recycle, StreamId, StreamTable};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher};
use std::rc::Rc;

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Accepts streams.
    Server,
    /// Opens streams.
    Client,
}

/// Why a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// It was drained, or the peer left in good order.
    Done,
    /// We ended it: a connection error (RFC 9113, section 5.4.1), with words for people.
    Error(ErrorCode, &'static str),
    /// The peer's GOAWAY carried an error.
    Peer(ErrorCode),
    /// The first bytes were HTTP/1; a short answer says what this port speaks.
    Http1,
    /// The first bytes were those of TLS, which this port does not speak; the answer is TLS's alert.
    Tls,
    /// The first bytes were neither HTTP/2 nor HTTP/1, nor TLS.
    NotHttp2,
    /// The driver reported that the socket has ended.
    Lost,
}

/// What stops the processing of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// RFC 9113, section 5.4.1.
    Connection(ErrorCode, &'static str),
    /// RFC 9113, section 5.4.2.
    Stream(u32, ErrorCode),
    /// A limit that only somebody who means harm exceeds: the connection ends with ENHANCE_YOUR_CALM.
    Limit(Refusal, &'static str),
}

/// One thing that has arrived, for the layer above.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// The head of a request or a final response went to the sink.
    Head { stream: StreamId, end: bool, too_large: bool },
    /// Trailers went to the sink, as far as they are within the limit; the peer's side has ended.
    Trailers { stream: StreamId },
    /// A part of the payload. `flow` bytes (padding excluded) are to be released once they are consumed.
    Data { stream: StreamId, payload: Bytes, end: bool },
    /// The stream was reset, by the peer, or by us because of a stream error. It is still in the table: `forget` it.
    Reset { stream: StreamId, code: ErrorCode },
    /// A stream that was full has room again.
    Writable { stream: StreamId },
    /// The peer's GOAWAY (client: streams above `last` will not be processed).
    GoAway { last: u32 },
}

/// Takes the fields of a head or of trailers, in order. They have been checked by RFC 9113, sections 8.2 and 8.3.
pub(crate) trait Sink {
    /// A new head or trailers begin.
    fn begin(&mut self, trailers: bool);
    /// One field; `:status` of informational responses is not shown.
    fn field(&mut self, field: &super::hpack::Field<'_>);
    /// Remembers what the fields of this head have come to so far, under one of `HEADS_REMEMBERED` numbers. False when that is
    /// not a matter of a few words.
    fn save(&mut self, number: usize) -> bool;
    /// Goes back to what was saved.
    fn restore(&mut self, number: usize);
}

/// What the peer has set (RFC 9113, section 6.5.2).
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerSettings {
    pub(crate) initial_window: u32,
    pub(crate) frame_bytes_max: u32,
    pub(crate) streams_max: u32,
    pub(crate) header_list_bytes_max: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Server: the client's preface has not been seen whole.
    Preface,
    /// The peer's SETTINGS have to come first.
    FirstSettings,
    /// Frames flow.
    Open,
    /// Nothing is read any more; what is in the output is still to be written.
    Closed(CloseReason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drain {
    No,
    /// The first GOAWAY and the PING are out; the second follows on its acknowledgement or at this time.
    Announced {
        until_ns: u64,
    },
    /// The last GOAWAY is out: streams above the number are ignored.
    Last(u32),
}

/// The payload of the PING between the two GOAWAYs.
pub(crate) const DRAIN_PING: [u8; 8] = *b"drainnow";

pub(crate) struct Budgets {
    pub(crate) peer_resets: Budget,
    pub(crate) provoked_resets: Budget,
    pub(crate) pings: Budget,
    pub(crate) settings: Budget,
    pub(crate) empty_data: Budget,
    pub(crate) idle_frames: Budget,
    pub(crate) window_updates: Budget,
}

/// What has been waited for since when, for the time-outs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clocks {
    /// The connection began, or its preface was complete.
    pub(crate) started_ns: u64,
    /// Something was received.
    pub(crate) heard: bool,
    /// A frame has begun and is not whole: since when, and whether it may be part of a header block.
    pub(crate) partial: Option<(u64, bool)>,
    /// Bytes of the frame that is not whole.
    pub(crate) partial_bytes: u32,
    /// The last stream ended.
    pub(crate) idle_since_ns: u64,
    /// When the streams are looked at next for peers that read or write too slowly.
    pub(crate) readers_due_ns: u64,
    pub(crate) writers_due_ns: u64,
}

pub(crate) struct Connection<T> {
    pub(crate) role: Role,
    /// The same for many connections, so that what they all read is in the processor's caches once.
    pub(crate) limits: Rc<Limits>,
    pub(crate) now_ns: u64,
    pub(crate) phase: Phase,
    pub(crate) clocks: Clocks,
    pub(crate) keepalive: Keepalive,
    /// Whole frames that are being worked through, and how far.
    pub(crate) inbox: Bytes,
    pub(crate) position: usize,
    pub(crate) decoder: Decoder,
    pub(crate) encoder: Encoder,
    /// A header block whose CONTINUATION frames have not all come.
    pub(crate) block: Option<Block>,
    pub(crate) heads: RememberedHeads,
    pub(crate) streams: StreamTable<T>,
    pub(crate) peer: PeerSettings,
    pub(crate) send_window: SendWindow,
    pub(crate) receive_window: ReceiveWindow,
    pub(crate) output: Output,
    /// Slots of streams with something queued that their own window allows.
    pub(crate) ready: VecDeque<u32>,
    pub(crate) queue_bytes: usize,
    /// Some stream had to stop because the connection's queue was full.
    pub(crate) room_wanted: bool,
    /// Streams to report as writable.
    pub(crate) writable: VecDeque<StreamId>,
    /// Highest stream that the peer has opened.
    pub(crate) last_peer_stream: u32,
    /// Next stream that we open.
    pub(crate) next_local_stream: u32,
    pub(crate) closed: RecentlyClosed,
    pub(crate) reset_by_us: RecentlyClosed,
    pub(crate) budgets: Budgets,
    /// What was refused or cut off, and not yet asked for.
    pub(crate) refusals: Refusals,
    /// Streams that were reset for being too slow; the layer above is still to hear of it.
    pub(crate) too_slow: VecDeque<StreamId>,
    pub(crate) settings_acknowledged: bool,
    pub(crate) drain: Drain,
    /// The peer's GOAWAY.
    pub(crate) peer_goaway: Option<(u32, ErrorCode)>,
}

/// Longest method of HTTP/1 that is recognised.
const METHOD_BYTES_MAX: usize = 16;
/// Ended streams that are remembered, to name the error of a frame that comes too late.
const CLOSED_REMEMBERED: usize = 64;
/// Streams reset by us that are remembered: what the peer had already sent for them is ignored.
const RESET_REMEMBERED: usize = 1024;
/// Streams that a client may open before it has seen the server's SETTINGS.
const STREAMS_BEFORE_SETTINGS: u32 = 100;

/// What spreads the age of connections.
fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

impl<T: Recycle> Connection<T> {
    /// `limits` have to be clamped.
    pub(crate) fn new(role: Role, limits: Rc<Limits>, now_ns: u64) -> Self {
        debug_assert_eq!(*limits, limits.clamped());
        let budget = |rate| Budget::new(rate, now_ns);
        let mut connection = Self {
            role,
            now_ns,
            phase: match role {
                Role::Server => Phase::Preface,
                Role::Client => Phase::FirstSettings,
            },
            clocks: Clocks {
                started_ns: now_ns,
                heard: false,
                partial: None,
                partial_bytes: 0,
                idle_since_ns: now_ns,
                readers_due_ns: now_ns.saturating_add(limits.slow_reader_min.period_ns),
                writers_due_ns: now_ns.saturating_add(limits.slow_writer_min.period_ns),
            },
            keepalive: Keepalive::new(&limits, random(), now_ns),
            inbox: Bytes::new(),
            position: 0,
            decoder: Decoder::new(),
            encoder: Encoder::new(limits.header_table_bytes as usize),
            block: None,
            heads: RememberedHeads::default(),
            streams: StreamTable::new(),
            peer: PeerSettings {
                initial_window: frame::WINDOW_DEFAULT,
                frame_bytes_max: frame::FRAME_BYTES_DEFAULT,
                streams_max: STREAMS_BEFORE_SETTINGS,
                header_list_bytes_max: u32::MAX,
            },
            send_window: SendWindow::new(frame::WINDOW_DEFAULT),
            receive_window: ReceiveWindow::new(
                limits.connection_window_bytes,
                limits.connection_window_bytes,
            ),
            output: Output::default(),
            ready: VecDeque::new(),
            queue_bytes: 0,
            room_wanted: false,
            writable: VecDeque::new(),
            last_peer_stream: 0,
            next_local_stream: 1,
            closed: RecentlyClosed::new(CLOSED_REMEMBERED),
            reset_by_us: RecentlyClosed::new(RESET_REMEMBERED),
            budgets: Budgets {
                peer_resets: budget(limits.peer_resets),
                provoked_resets: budget(limits.provoked_resets),
                pings: budget(limits.pings),
                settings: budget(limits.settings),
                empty_data: budget(limits.empty_data),
                idle_frames: budget(limits.idle_frames),
                window_updates: budget(limits.window_updates),
            },
            refusals: Refusals::default(),
            too_slow: VecDeque::new(),
            settings_acknowledged: false,
            drain: Drain::No,
            peer_goaway: None,
            limits,
        };
        if role == Role::Client {
            connection.output.inline.extend_from_slice(PREFACE);
            connection.put_settings();
        }
        connection
    }

    /// Our half of the preface: SETTINGS, and the connection's window.
    pub(crate) fn put_settings(&mut self) {
        let limits = &self.limits;
        let out = &mut self.output.inline;
        let common = [
            (setting::HEADER_TABLE_SIZE, limits.header_table_bytes),
            (setting::INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
            (setting::MAX_FRAME_SIZE, limits.frame_bytes_max),
            (setting::MAX_HEADER_LIST_SIZE, limits.header_list_bytes_max),
        ];
        let [a, b, c, d] = common;
        let own = match self.role {
            Role::Server => (setting::MAX_CONCURRENT_STREAMS, limits.streams_max),
            Role::Client => (setting::ENABLE_PUSH, 0),
        };
        frame::put_settings(out, &[a, b, c, d, own]);
        let more = limits.connection_window_bytes - frame::WINDOW_DEFAULT;
        if more > 0 {
            frame::put_window_update(out, 0, more);
        }
    }

    /// Takes the whole frames from the front of `input` and leaves the rest. Does nothing while earlier ones are unprocessed:
    /// `poll` until it returns `None` first.
    pub(crate) fn accept(&mut self, input: &mut BytesMut, now_ns: u64) {
        self.now_ns = now_ns;
        self.clocks.heard |= !input.is_empty();
        self.keepalive.heard(now_ns);
        if self.phase == Phase::Preface && !self.accept_preface(input) {
            return;
        }
        if self.is_closed() {
            input.clear();
            return;
        }
        if !self.inbox.is_empty() {
            return;
        }
        let bytes = &input[..];
        let mut whole = 0;
        while let Some(header) = bytes.get(whole..whole + frame::HEADER_BYTES) {
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
            if length > self.limits.frame_bytes_max {
                // Found again, and refused, when its turn comes.
                whole += frame::HEADER_BYTES;
                break;
            }
            let next = whole + frame::HEADER_BYTES + length as usize;
            if next > bytes.len() {
                break;
            }
            whole = next;
        }
        if whole > 0 {
            self.inbox = input.split_to(whole).freeze();
            self.position = 0;
        }
        if input.is_empty() {
            self.clocks.partial = None;
        } else {
            self.partial_frame(input, whole > 0);
        }
    }

    /// The beginning of a frame waits for the rest of it, which has to come in time.
    #[cold]
    fn partial_frame(&mut self, input: &[u8], is_new: bool) {
        use frame::kind::{CONTINUATION, HEADERS};
        let since_ns = match self.clocks.partial {
            Some((since_ns, _)) if !is_new => since_ns,
            _ => self.now_ns,
        };
        // A kind that has not come yet is the smallest of frames.
        let of_block = input.get(3).is_none_or(|&kind| kind == HEADERS || kind == CONTINUATION);
        self.clocks.partial = Some((since_ns, of_block));
        self.clocks.partial_bytes = match *input {
            [a, b, c, ..] => u32::from_be_bytes([0, a, b, c]),
            _ => 0,
        };
    }

    /// True once the client's preface has been consumed.
    fn accept_preface(&mut self, input: &mut BytesMut) -> bool {
        let seen = input.len().min(PREFACE.len());
        if input[..seen] == PREFACE[..seen] {
            if seen < PREFACE.len() {
                return false;
            }
            let _ = input.split_to(seen);
            self.phase = Phase::FirstSettings;
            self.put_settings();
            return true;
        }
        if input[0] == crate::tls::HANDSHAKE {
            self.output.inline.extend_from_slice(&crate::tls::ALERT_FOR_TLS);
            self.phase = Phase::Closed(CloseReason::Tls);
            input.clear();
            return false;
        }
        let token = input.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
        if token == input.len() && token <= METHOD_BYTES_MAX {
            return false; // may become the request line of HTTP/1
        }
        let method = input.get(token) == Some(&b' ')
            && (1..=METHOD_BYTES_MAX).contains(&token)
            && input[..token] != PREFACE[..3];
        if method && input.len() == token + 1 {
            return false; // what follows shows whether it is a target
        }
        let http1 = method && matches!(input[token + 1], b'/' | b'*' | b'a'..=b'z');
        if http1 {
            const BODY: &str = "This port speaks gRPC over HTTP/2 with prior knowledge, not HTTP/1.1.\n\
                 Use a gRPC client, grpcurl, or curl --http2-prior-knowledge.\n";
            let answer = format!(
                "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n{BODY}",
                BODY.len()
            );
            self.output.inline.extend_from_slice(answer.as_bytes());
            self.phase = Phase::Closed(CloseReason::Http1);
        } else {
            frame::put_goaway(
                &mut self.output.inline,
                0,
                ErrorCode::PROTOCOL_ERROR,
                "not an HTTP/2 preface",
            );
            self.phase = Phase::Closed(CloseReason::NotHttp2);
        }
        input.clear();
        false
    }

    /// Ends the connection with a GOAWAY. Streams stay in the table until the layer above has taken them.
    #[cold]
    pub(crate) fn fail(&mut self, code: ErrorCode, reason: &'static str) {
        if self.is_closed() {
            return;
        }
        let last = self.last_served();
        frame::put_goaway(&mut self.output.inline, last, code, reason);
        self.close(CloseReason::Error(code, reason));
    }

    /// Counts a refusal and ends the connection for it.
    #[cold]
    pub(crate) fn cut_off(&mut self, kind: Refusal, code: ErrorCode, reason: &'static str) {
        if !self.is_closed() {
            self.refusals.count(kind);
            self.fail(code, reason);
        }
    }

    /// The highest stream of the peer's that may have been served; what GOAWAY says of it never grows.
    pub(crate) fn last_served(&self) -> u32 {
        match self.drain {
            Drain::Last(last) => last,
            _ => self.last_peer_stream,
        }
    }

    pub(crate) fn close(&mut self, reason: CloseReason) {
        if !self.is_closed() {
            self.phase = Phase::Closed(reason);
        }
        self.inbox = Bytes::new();
        self.block = None;
        self.ready.clear();
        self.too_slow.clear();
        self.drop_queues();
    }

    /// What waited for a window will never be sent.
    fn drop_queues(&mut self) {
        if self.queue_bytes > 0 {
            self.queue_bytes = 0;
            let live: Vec<usize> = self.streams.live().collect();
            for slot in live {
                let stream = self.streams.at(slot);
                stream.queue_bytes = 0;
                stream.queue.clear();
            }
        }
    }

    /// Where a stream stands, and its slot while it is live.
    #[inline]
    pub(crate) fn locate(&mut self, number: u32) -> (State, Option<usize>) {
        match self.streams.find(number) {
            Some(slot) => {
                let stream = self.streams.at(slot);
                (State::of_live(stream.local_closed, stream.remote_closed), Some(slot))
            }
            None => (self.state_of_dead(number), None),
        }
    }

    fn state_of_dead(&self, number: u32) -> State {
        let ours = (number & 1 == 1) == (self.role == Role::Client);
        if ours && number >= self.next_local_stream {
            State::Barred
        } else if !ours && number > self.last_peer_stream {
            // Push is off, so a server opens none.
            if self.role == Role::Client { State::Barred } else { State::Idle }
        } else if self.reset_by_us.contains(number) {
            State::ResetByUs
        } else if self.closed.contains(number) {
            State::Closed
        } else {
            State::Passed
        }
    }

    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed(_))
    }

    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        match self.phase {
            Phase::Closed(reason) => Some(reason),
            _ => None,
        }
    }

    /// Begins to drain: GOAWAY(2³¹−1) and a PING, so that streams on their way are still served.
    pub(crate) fn drain(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        if self.drain != Drain::No || self.is_closed() {
            return;
        }
        if self.phase != Phase::Open {
            // Nothing was asked yet; there is nothing to finish.
            if self.phase == Phase::FirstSettings {
                frame::put_goaway(&mut self.output.inline, 0, ErrorCode::NO_ERROR, "");
            }
            self.close(CloseReason::Done);
            return;
        }
        let out = &mut self.output.inline;
        frame::put_goaway(out, frame::STREAM_ID_MAX, ErrorCode::NO_ERROR, "");
        frame::put_ping(out, false, DRAIN_PING);
        let until_ns = now_ns.saturating_add(self.limits.drain_ping_timeout_ns);
        self.drain = Drain::Announced { until_ns };
    }

    /// The second step of a drain.
    pub(crate) fn drain_last(&mut self) {
        if let Drain::Announced { .. } = self.drain {
            let last = self.last_peer_stream;
            frame::put_goaway(&mut self.output.inline, last, ErrorCode::NO_ERROR, "");
            self.drain = Drain::Last(last);
            self.close_if_drained();
        }
    }

    #[inline]
    pub(crate) fn close_if_drained(&mut self) {
        let leaving = matches!(self.drain, Drain::Last(_))
            || (self.role == Role::Client && self.peer_goaway.is_some());
        if leaving && self.streams.len() == 0 {
            self.close(CloseReason::Done);
        }
    }

    /// Gives back what streams have left behind, if nothing is going on; whether that is so.
    pub(crate) fn shrink(&mut self) -> bool {
        if self.streams.len() > 0 || !self.inbox.is_empty() || !self.output.is_empty() {
            return false;
        }
        self.streams.shrink();
        self.ready = VecDeque::new();
        self.writable = VecDeque::new();
        self.output = Output::default();
        self.heads = RememberedHeads::default();
        true
    }
}
