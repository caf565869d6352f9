//! The bounds of a connection, each with its default and what happens at it, and the token buckets that enforce rates.

use std::rc::Rc;

/// Bounds of an HTTP/2 connection and of the gRPC calls on it. Every field has a safe default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest gRPC message that is accepted, bytes; a larger one fails its call with RESOURCE_EXHAUSTED. 4 MiB.
    pub message_bytes_max: u32,
    /// Largest gRPC message that is sent, bytes; a larger one fails its call with RESOURCE_EXHAUSTED. 64 MiB.
    pub send_bytes_max: u32,
    /// Smallest message of an answer that is compressed, bytes, if its reader takes gzip; `u32::MAX` compresses none unless its
    /// handler asks for it. `u32::MAX`.
    pub compress_bytes_min: u32,
    /// Largest header list (RFC 9113, section 6.5.2), bytes; a larger request gets 431. 16 KiB.
    pub header_list_bytes_max: u32,
    /// Most fields of a header list; a larger request gets 431. 128.
    pub header_count_max: u32,
    /// Largest encoded header block over all of its frames, bytes; beyond it the connection ends. 32 KiB.
    pub header_block_bytes_max: u32,
    /// Most CONTINUATION frames of one header block; beyond it the connection ends. 16.
    pub continuations_max: u32,
    /// Most streams that the peer may have open; more are refused (REFUSED_STREAM). 1,024.
    pub streams_max: u32,
    /// Receive window of a stream (our SETTINGS_INITIAL_WINDOW_SIZE), bytes. 1 MiB.
    pub stream_window_bytes: u32,
    /// Receive window of the connection, bytes: bounds what was received and not yet released. 4 MiB.
    pub connection_window_bytes: u32,
    /// Largest frame payload that we accept (our SETTINGS_MAX_FRAME_SIZE), bytes. 16 KiB.
    pub frame_bytes_max: u32,
    /// HPACK table that we offer and at most use, bytes. 4 KiB.
    pub header_table_bytes: u32,
    /// Most bytes of unfinished messages that are being gathered on a connection; a message beyond it fails with
    /// RESOURCE_EXHAUSTED. 16 MiB.
    pub gather_bytes_max: u32,
    /// DATA stops being moved from the streams into the output at this many bytes. 512 KiB.
    pub output_bytes_high: u32,
    /// Most bytes of control frames and headers that wait for a peer that does not read; beyond it the connection ends. 1 MiB.
    pub output_bytes_max: u32,
    /// A stream is writable below this many queued bytes. 64 KiB.
    pub stream_queue_bytes: u32,
    /// Most bytes queued on all streams of a connection; a reply beyond it fails with RESOURCE_EXHAUSTED. 64 MiB.
    pub queue_bytes_max: u32,
    /// Most bytes of custom trailers, status message and details in one reply; the details go first, then the message is cut.
    /// 7 KiB, because most clients refuse more than 8.
    pub trailer_bytes_max: u32,
    /// Resets by the peer (Rapid Reset): burst and rate.
    pub peer_resets: Rate,
    /// Resets that the peer provoked (MadeYouReset, refused streams, frames on closed streams): burst and rate.
    pub provoked_resets: Rate,
    /// PING frames; each one of our HEADERS or DATA frames refills the burst.
    pub pings: Rate,
    /// A client that sends two PINGs closer together than this, while it is sent nothing, gets a strike, nanoseconds. 0: none.
    pub ping_interval_min_ns: u64,
    /// Most strikes; beyond them the connection ends with `too_many_pings`. 2.
    pub ping_strikes_max: u32,
    /// A peer that has been silent for this long is asked with a PING whether it is there, nanoseconds. `u64::MAX`: never. A client
    /// asks only while it has calls.
    pub keepalive_interval_ns: u64,
    /// How long it may then stay silent, nanoseconds. 20 s.
    pub keepalive_timeout_ns: u64,
    /// A connection is drained at this age, give or take a tenth, nanoseconds. `u64::MAX`: never.
    pub connection_age_max_ns: u64,
    /// How long its calls may then take, nanoseconds. 60 s.
    pub connection_age_grace_ns: u64,
    /// SETTINGS frames.
    pub settings: Rate,
    /// DATA frames without a byte and without END_STREAM.
    pub empty_data: Rate,
    /// PRIORITY frames, unknown frames, acknowledgements of nothing, and frames of streams that have ended; each HEADERS frame of
    /// ours refills the burst, because an end crosses with what the peer had sent before it heard of it.
    pub idle_frames: Rate,
    /// WINDOW_UPDATE frames; each one of our HEADERS or DATA frames refills the burst.
    pub window_updates: Rate,
    /// Time for the first byte of a connection, nanoseconds. 5 s.
    pub first_byte_timeout_ns: u64,
    /// Time for the whole preface and the first SETTINGS, nanoseconds. 10 s.
    pub preface_timeout_ns: u64,
    /// Time for the acknowledgement of our SETTINGS, nanoseconds. 20 s.
    pub settings_timeout_ns: u64,
    /// Time for a header block from its first byte to its last, nanoseconds. 10 s.
    pub headers_timeout_ns: u64,
    /// A connection without a call for this long is asked to leave (GOAWAY), nanoseconds. 30 min; `u64::MAX` is for ever.
    pub idle_timeout_ns: u64,
    /// What a peer has to read at least of replies that wait for its windows, or of the socket. 64 KiB in 60 s.
    pub slow_reader_min: Pace,
    /// What a peer has to write at least of a frame or a message that it has begun. 32 KiB in 30 s.
    pub slow_writer_min: Pace,
    /// Time between the two GOAWAYs of a drain if the PING is not answered, nanoseconds. 1 s.
    pub drain_ping_timeout_ns: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes_max: 4 << 20,
            send_bytes_max: 64 << 20,
            compress_bytes_min: u32::MAX,
            header_list_bytes_max: 16 << 10,
            header_count_max: 128,
            header_block_bytes_max: 32 << 10,
            continuations_max: 16,
            streams_max: 1024,
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 4 << 20,
            frame_bytes_max: 16 << 10,
            header_table_bytes: 4 << 10,
            gather_bytes_max: 16 << 20,
            output_bytes_high: 512 << 10,
            output_bytes_max: 1 << 20,
            stream_queue_bytes: 64 << 10,
            queue_bytes_max: 64 << 20,
            trailer_bytes_max: 7 << 10,
            peer_resets: Rate { burst: 1000, per_second: 200 },
            provoked_resets: Rate { burst: 1000, per_second: 100 },
            pings: Rate { burst: 100, per_second: 2 },
            ping_interval_min_ns: 0,
            ping_strikes_max: 2,
            keepalive_interval_ns: u64::MAX,
            keepalive_timeout_ns: 20_000_000_000,
            connection_age_max_ns: u64::MAX,
            connection_age_grace_ns: 60_000_000_000,
            settings: Rate { burst: 50, per_second: 5 },
            empty_data: Rate { burst: 100, per_second: 10 },
            idle_frames: Rate { burst: 1000, per_second: 500 },
            window_updates: Rate { burst: 10_000, per_second: 1000 },
            first_byte_timeout_ns: 5_000_000_000,
            preface_timeout_ns: 10_000_000_000,
            settings_timeout_ns: 20_000_000_000,
            headers_timeout_ns: 10_000_000_000,
            idle_timeout_ns: 1_800_000_000_000,
            slow_reader_min: Pace { bytes: 64 << 10, period_ns: 60 * NS_PER_SECOND },
            slow_writer_min: Pace { bytes: 32 << 10, period_ns: 30 * NS_PER_SECOND },
            drain_ping_timeout_ns: 1_000_000_000,
        }
    }
}

impl Limits {
    /// The nearest values that are allowed, for many connections.
    pub fn shared(&self) -> Rc<Self> {
        Rc::new(self.clamped())
    }

    /// The nearest values that the RFC allows and that do not contradict each other.
    pub fn clamped(mut self) -> Self {
        use super::frame::{FRAME_BYTES_DEFAULT, FRAME_BYTES_MAX, WINDOW_DEFAULT, WINDOW_MAX};
        self.frame_bytes_max = self.frame_bytes_max.clamp(FRAME_BYTES_DEFAULT, FRAME_BYTES_MAX);
        self.stream_window_bytes = self.stream_window_bytes.clamp(1, WINDOW_MAX);
        self.connection_window_bytes =
            self.connection_window_bytes.clamp(WINDOW_DEFAULT, WINDOW_MAX);
        self.header_block_bytes_max = self.header_block_bytes_max.max(1024);
        self.slow_reader_min.period_ns = self.slow_reader_min.period_ns.max(NS_PER_SECOND);
        self.slow_writer_min.period_ns = self.slow_writer_min.period_ns.max(NS_PER_SECOND);
        self
    }
}

/// A burst that is refilled at a steady rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Most events at once.
    pub burst: u32,
    /// Events per second in the long run.
    pub per_second: u32,
}

/// The least that has to move while something waits to be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Bytes in each period; 0 asks for nothing.
    pub bytes: u32,
    /// How long a period is, nanoseconds.
    pub period_ns: u64,
}

impl Pace {
    /// When `bytes` have to be there that began to come at `since_ns`: a period, and more where they need more than one.
    pub(crate) fn due_ns(self, since_ns: u64, bytes: u32) -> u64 {
        if self.bytes == 0 {
            return u64::MAX;
        }
        since_ns.saturating_add(self.period_ns.saturating_mul(u64::from(bytes / self.bytes) + 1))
    }
}

const NS_PER_SECOND: u64 = 1_000_000_000;

/// A token bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    rate: Rate,
    left: u32,
    refilled_ns: u64,
}

impl Budget {
    pub(crate) fn new(rate: Rate, now_ns: u64) -> Self {
        Self { rate, left: rate.burst, refilled_ns: now_ns }
    }

    /// Takes one token; false when there is none.
    pub(crate) fn take(&mut self, now_ns: u64) -> bool {
        if self.left == 0 {
            let elapsed_ns = now_ns.saturating_sub(self.refilled_ns);
            let tokens = u128::from(elapsed_ns) * u128::from(self.rate.per_second)
                / u128::from(NS_PER_SECOND);
            if tokens == 0 {
                return false;
            }
            self.left = tokens.min(u128::from(self.rate.burst)) as u32;
            self.refilled_ns = now_ns;
            if self.left == 0 {
                return false;
            }
        }
        self.left -= 1;
        true
    }

    /// Fills it up at once.
    #[inline]
    pub(crate) fn refill(&mut self) {
        self.left = self.rate.burst;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_do_not_contradict_each_other() {
        let limits = Limits::default();
        assert_eq!(limits.clamped(), limits);
        assert!(limits.header_list_bytes_max <= limits.header_block_bytes_max);
        assert!(limits.stream_window_bytes <= limits.connection_window_bytes);
        assert!(limits.message_bytes_max <= limits.gather_bytes_max);
        assert!(limits.message_bytes_max <= limits.queue_bytes_max);
        assert!(limits.output_bytes_high <= limits.output_bytes_max);
    }

    #[test]
    fn a_budget_allows_its_burst_and_then_its_rate() {
        let mut budget = Budget::new(Rate { burst: 3, per_second: 2 }, 0);
        let take = |budget: &mut Budget, now_ns, wanted: u32| {
            (0..wanted).filter(|_| budget.take(now_ns)).count()
        };
        assert_eq!(take(&mut budget, 0, 10), 3);
        assert_eq!(take(&mut budget, NS_PER_SECOND / 2, 10), 1);
        assert_eq!(take(&mut budget, 100 * NS_PER_SECOND, 10), 3);
        budget.refill();
        assert_eq!(take(&mut budget, 100 * NS_PER_SECOND, 10), 3);
    }
}
