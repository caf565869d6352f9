//! Prism's HTTP/2 beside the `h2` crate: the same frames in, the same outcome.
//!
//! `frames` makes sequences of well- and ill-formed frames out of arbitrary bytes, `ours` and `theirs` put them through the
//! two state machines under the same small application, `seen` is what can be observed of either, and `compare` feeds both
//! frame by frame and looks after each. Where the RFC leaves a choice, or one of the two departs from it, `differences` has a
//! line that says so; whatever is not in that table is a finding. Nothing here is part of the product, and nothing that
//! serves may depend on it.

pub mod compare;
pub mod differences;
pub mod frames;
pub mod ours;
pub mod seed;
pub mod seen;
pub mod theirs;

pub use prism_io::h2::Role;

/// Receive window of each stream, as both ends announce it, bytes.
pub const STREAM_WINDOW_BYTES: u32 = 20_000;
/// Streams that a peer may have open at once.
pub const STREAMS_MAX: u32 = 8;
/// Requests that a client has under way when the frames begin.
pub const CLIENT_REQUESTS: u32 = 4;

/// What the application under both state machines does with a stream: it depends on the number alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Application {
    /// A server answers once the request is complete, with that many bytes; `None`: never.
    pub answer_bytes: Option<usize>,
    /// Trailers follow the answer.
    pub trailers: bool,
    /// What was received is consumed at once; otherwise never, so that the windows run out.
    pub consumes: bool,
}

impl Application {
    /// What it does with the stream `number`.
    pub fn of(number: u32) -> Self {
        const BYTES: [Option<usize>; 6] =
            [Some(0), Some(100), None, Some(30_000), Some(7), Some(70_000)];
        let nth = number as usize / 2;
        Self {
            answer_bytes: BYTES[nth % BYTES.len()],
            trailers: nth.is_multiple_of(2),
            consumes: !nth.is_multiple_of(4),
        }
    }
}
