//! The life of a stream as one table (RFC 9113, section 5.1): what a received frame does in each state.
//!
//! The code asks the table and nothing else; `docs/transport.md` shows it, and a test compares the two. It knows states and
//! frames, never contents: what is wrong inside a frame is found by those who read it.

use super::frame::ErrorCode;

/// Where a stream stands as seen from this end. A server reserves no streams (push is off), so there is no such state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not used yet; the peer may open it.
    Idle,
    /// Not used yet, and not the peer's to open: our numbers, or those of push.
    Barred,
    /// Both ends may send.
    Open,
    /// We have sent END_STREAM.
    HalfClosedLocal,
    /// The peer has sent END_STREAM.
    HalfClosedRemote,
    /// We have reset it, or announced that we do not process it: what was on its way is expected.
    ResetByUs,
    /// It has ended, by END_STREAM of both ends or by the peer's RST_STREAM.
    Closed,
    /// Below the highest number used, and either never opened or ended too long ago to be remembered.
    Passed,
}

/// The frames whose fate depends on the state. PUSH_PROMISE is an error everywhere, and CONTINUATION follows its HEADERS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// DATA
    Data,
    /// HEADERS, once its block is whole: opens a stream, or brings a response or trailers.
    Headers,
    /// PRIORITY
    Priority,
    /// RST_STREAM
    RstStream,
    /// WINDOW_UPDATE
    WindowUpdate,
}

/// What is to be done with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has its effect.
    Accept,
    /// It has no effect but what it does to the connection (its window, the header tables), and is counted.
    Ignore,
    /// A stream error (section 5.4.2).
    StreamError(ErrorCode),
    /// A connection error (section 5.4.1).
    ConnectionError(ErrorCode),
}

use ErrorCode as Code;
use Verdict::{Accept, ConnectionError, Ignore, StreamError};

/// By state, then by frame.
#[rustfmt::skip]
pub const TABLE: [(State, [Verdict; 5]); 8] = [
    //                        DATA                                   HEADERS                                PRIORITY RST_STREAM                            WINDOW_UPDATE
    (State::Idle,             [ConnectionError(Code::PROTOCOL_ERROR), Accept,                                Ignore, ConnectionError(Code::PROTOCOL_ERROR), ConnectionError(Code::PROTOCOL_ERROR)]),
    (State::Barred,           [ConnectionError(Code::PROTOCOL_ERROR), ConnectionError(Code::PROTOCOL_ERROR), Ignore, ConnectionError(Code::PROTOCOL_ERROR), ConnectionError(Code::PROTOCOL_ERROR)]),
    (State::Open,             [Accept,                                Accept,                                Ignore, Accept,                                Accept]),
    (State::HalfClosedLocal,  [Accept,                                Accept,                                Ignore, Accept,                                Accept]),
    (State::HalfClosedRemote, [StreamError(Code::STREAM_CLOSED),      StreamError(Code::STREAM_CLOSED),      Ignore, Accept,                                Accept]),
    (State::ResetByUs,        [Ignore,                                Ignore,                                Ignore, Ignore,                                Ignore]),
    (State::Closed,           [StreamError(Code::STREAM_CLOSED),      ConnectionError(Code::STREAM_CLOSED),  Ignore, Ignore,                                Ignore]),
    (State::Passed,           [StreamError(Code::STREAM_CLOSED),      ConnectionError(Code::PROTOCOL_ERROR), Ignore, Ignore,                                Ignore]),
];

impl State {
    /// The state of a stream that is in the table of live ones.
    #[inline]
    pub(crate) fn of_live(local_closed: bool, remote_closed: bool) -> Self {
        match (local_closed, remote_closed) {
            (_, true) => Self::HalfClosedRemote,
            (true, false) => Self::HalfClosedLocal,
            (false, false) => Self::Open,
        }
    }

    /// What the table says.
    #[inline]
    pub fn on(self, received: Received) -> Verdict {
        TABLE[self as usize].1[received as usize]
    }

    /// As `docs/transport.md` writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Barred => "idle, not the peer's to open",
            Self::Open => "open",
            Self::HalfClosedLocal => "half-closed (local)",
            Self::HalfClosedRemote => "half-closed (remote)",
            Self::ResetByUs => "closed by our RST_STREAM",
            Self::Closed => "closed",
            Self::Passed => "closed long ago, or skipped",
        }
    }
}

const _: () = {
    let mut at = 0;
    while at < TABLE.len() {
        assert!(TABLE[at].0 as usize == at, "the rows are in the order of the states");
        at += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(verdict: Verdict) -> String {
        match verdict {
            Accept => "accepted".into(),
            Ignore => "ignored".into(),
            StreamError(code) => format!("stream {code:?}"),
            ConnectionError(code) => format!("connection {code:?}"),
        }
    }

    #[test]
    fn the_documentation_shows_this_very_table() {
        let page = include_str!("../../../docs/transport.md");
        for (state, verdicts) in TABLE {
            let cells: Vec<String> = verdicts.into_iter().map(cell).collect();
            let row = format!("| {} | {} |", state.name(), cells.join(" | "));
            assert!(page.contains(&row), "docs/transport.md has no row\n{row}");
        }
    }
}
