//! What has to happen in time: preface, settings, header blocks, frames and messages that have begun, the two steps of a drain,
//! idle connections, peers that read or write too slowly.
//!
//! The driver asks `poll_timeout` when to come back and tells `handle_timeout` what time it is; nothing here reads a clock.

use super::connection::{Clocks, CloseReason, Connection, Drain, Phase, Role};
use super::frame::{self, ErrorCode};
use super::keepalive::{Due, KEEPALIVE_PING};
use super::refusal::Refusal;
use super::stream::Recycle;

/// A time-out of an open connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    /// Our SETTINGS are to be acknowledged.
    Settings,
    /// A header block is to be whole.
    Headers,
    /// A frame is to be whole.
    Frame,
    /// The second GOAWAY is to follow the first.
    Drain,
    /// There has been no call for long.
    Idle,
    /// The streams are to be looked at for readers, and for writers, that are too slow.
    Readers,
    Writers,
    /// A silent peer is to be asked whether it is there, or to have answered; or the connection is old.
    Keepalive,
}

impl<T: Recycle> Connection<T> {
    /// When `handle_timeout` is to be called, in the clock of `now_ns`.
    pub(crate) fn poll_timeout(&self) -> Option<u64> {
        match self.phase {
            Phase::Closed(_) => None,
            Phase::Preface | Phase::FirstSettings => Some(self.beginning_due_ns()),
            Phase::Open => self.next_timer().map(|(due_ns, _)| due_ns),
        }
    }

    fn beginning_due_ns(&self) -> u64 {
        let Clocks { started_ns, heard, .. } = self.clocks;
        let whole_ns = started_ns.saturating_add(self.limits.preface_timeout_ns);
        if heard {
            return whole_ns;
        }
        whole_ns.min(started_ns.saturating_add(self.limits.first_byte_timeout_ns))
    }

    fn next_timer(&self) -> Option<(u64, Timer)> {
        let (limits, clocks) = (&self.limits, &self.clocks);
        let mut next: Option<(u64, Timer)> = None;
        let mut at = |due_ns: u64, timer: Timer| {
            if due_ns != u64::MAX && next.is_none_or(|(earliest, _)| due_ns < earliest) {
                next = Some((due_ns, timer));
            }
        };
        if !self.settings_acknowledged {
            at(clocks.started_ns.saturating_add(limits.settings_timeout_ns), Timer::Settings);
        }
        if let Some(block) = &self.block {
            at(block.begun_ns.saturating_add(limits.headers_timeout_ns), Timer::Headers);
        }
        match clocks.partial {
            Some((since_ns, true)) => {
                at(since_ns.saturating_add(limits.headers_timeout_ns), Timer::Headers);
            }
            Some((since_ns, false)) => {
                at(limits.slow_writer_min.due_ns(since_ns, clocks.partial_bytes), Timer::Frame);
            }
            None => {}
        }
        if let Drain::Announced { until_ns } = self.drain {
            at(until_ns, Timer::Drain);
        }
        at(self.keepalive.due_ns(), Timer::Keepalive);
        if self.role == Role::Client {
            return next;
        }
        if self.streams.len() > 0 {
            if limits.slow_reader_min.bytes > 0 {
                at(clocks.readers_due_ns, Timer::Readers);
            }
            if limits.slow_writer_min.bytes > 0 {
                at(clocks.writers_due_ns, Timer::Writers);
            }
        } else if self.drain == Drain::No {
            at(clocks.idle_since_ns.saturating_add(limits.idle_timeout_ns), Timer::Idle);
        }
        next
    }

    /// Does what is due. Poll afterwards: streams may have been reset.
    pub(crate) fn handle_timeout(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        match self.phase {
            Phase::Closed(_) => {}
            Phase::Preface | Phase::FirstSettings => {
                if now_ns >= self.beginning_due_ns() {
                    self.no_beginning();
                }
            }
            Phase::Open => {
                while let Some((due_ns, timer)) = self.next_timer()
                    && due_ns <= now_ns
                    && !self.is_closed()
                {
                    self.fire(timer);
                }
            }
        }
    }

    fn no_beginning(&mut self) {
        if self.phase == Phase::FirstSettings {
            return self.cut_off(
                Refusal::PrefaceTime,
                ErrorCode::SETTINGS_TIMEOUT,
                "no SETTINGS in time",
            );
        }
        // It may not speak HTTP/2 at all, so nothing is said to it.
        let heard = self.clocks.heard;
        self.refusals.count(if heard { Refusal::PrefaceTime } else { Refusal::FirstByteTime });
        self.close(CloseReason::Error(ErrorCode::PROTOCOL_ERROR, "no HTTP/2 preface in time"));
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::Settings => self.cut_off(
                Refusal::SettingsTime,
                ErrorCode::SETTINGS_TIMEOUT,
                "SETTINGS not acknowledged in time",
            ),
            Timer::Headers => self.cut_off(
                Refusal::HeaderTime,
                ErrorCode::ENHANCE_YOUR_CALM,
                "a header block was not whole in time",
            ),
            Timer::Frame => self.cut_off(
                Refusal::SlowWriter,
                ErrorCode::ENHANCE_YOUR_CALM,
                "a frame was not whole in time",
            ),
            Timer::Drain => {
                self.refusals.count(Refusal::DrainTime);
                self.drain_last();
            }
            Timer::Idle => {
                self.refusals.count(Refusal::IdleTime);
                self.drain(self.now_ns);
            }
            Timer::Readers => self.look_at_readers(),
            Timer::Writers => self.look_at_writers(),
            Timer::Keepalive => self.keep_alive(),
        }
    }

    fn keep_alive(&mut self) {
        let Some(due) = self.keepalive.due(self.now_ns) else { return };
        match due {
            // A client without a call has nothing to lose.
            Due::Ask if self.role == Role::Client && self.streams.len() == 0 => {
                self.keepalive.heard(self.now_ns);
            }
            Due::Ask => {
                self.keepalive.asked();
                frame::put_ping(&mut self.output.inline, false, KEEPALIVE_PING);
            }
            Due::Gone => {
                self.refusals.count(Refusal::KeepaliveTime);
                let reason = "no answer to a keepalive PING";
                // Whatever would be said to it would wait in the socket.
                self.close(CloseReason::Error(ErrorCode::NO_ERROR, reason));
            }
            Due::Old => {
                self.refusals.count(Refusal::ConnectionAge);
                self.drain(self.now_ns);
            }
            Due::Overdue => {
                let last = self.last_served();
                frame::put_goaway(&mut self.output.inline, last, ErrorCode::NO_ERROR, "max_age");
                self.close(CloseReason::Done);
            }
        }
    }

    /// Resets the streams of which something was queued all the time and too little of it was taken.
    fn look_at_readers(&mut self) {
        let least = self.limits.slow_reader_min;
        self.clocks.readers_due_ns = self.now_ns.saturating_add(least.period_ns);
        let live: Vec<usize> = self.streams.live().collect();
        for slot in live {
            let stream = self.streams.at(slot);
            let queued = stream.queue_bytes > 0;
            let slow = queued && stream.was_queued && stream.sent_bytes < least.bytes;
            stream.was_queued = queued;
            stream.sent_bytes = 0;
            if slow {
                self.reset_slow(slot, Refusal::SlowReader);
            }
        }
    }

    /// Resets the streams of which something was unfinished all the time and too little of it came.
    fn look_at_writers(&mut self) {
        let least = self.limits.slow_writer_min;
        self.clocks.writers_due_ns = self.now_ns.saturating_add(least.period_ns);
        let live: Vec<usize> = self.streams.live().collect();
        for slot in live {
            let stream = self.streams.at(slot);
            let awaited = !stream.remote_closed && stream.app.awaits_more();
            let slow = awaited && stream.awaited_more && stream.received_bytes < least.bytes;
            stream.awaited_more = awaited;
            stream.received_bytes = 0;
            if slow {
                self.reset_slow(slot, Refusal::SlowWriter);
            }
        }
    }

    fn reset_slow(&mut self, slot: usize, kind: Refusal) {
        self.refusals.count(kind);
        let stream = self.streams.id(slot);
        frame::put_reset(&mut self.output.inline, stream.number(), ErrorCode::ENHANCE_YOUR_CALM);
        self.reset_by_us.push(stream.number());
        self.too_slow.push_back(stream);
    }
}
