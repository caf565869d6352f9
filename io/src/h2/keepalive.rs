//! Keepalive of a connection, both ways, and its age (gRPC `keepalive.md`, proposals A8 and A9).
//!
//! We ask a silent peer with a PING whether it is still there, and end the connection when nothing at all comes back in time. A peer
//! that asks us more often than it may gets strikes, and beyond a few of them GOAWAY with `too_many_pings`; HEADERS and DATA of
//! ours forgive them, because a client may measure with PINGs what it is sent. A connection that has become old is drained, and
//! ended after a time of grace. Holds numbers only: the connection writes the frames.

use super::limits::Limits;

/// The payload of a PING that asks whether the peer is there.
pub(crate) const KEEPALIVE_PING: [u8; 8] = *b"arethere";

/// What is due now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Ask the peer whether it is there.
    Ask,
    /// It did not say so in time.
    Gone,
    /// The connection is old: drain it.
    Old,
    /// It was told to leave, and has had its time.
    Overdue,
}

#[derive(Debug)]
pub(crate) struct Keepalive {
    /// When something came last; asked anew when that is `interval_ns` ago.
    heard_ns: u64,
    interval_ns: u64,
    timeout_ns: u64,
    /// When the PING went out that is not answered.
    asked_ns: Option<u64>,
    /// When the connection is drained for its age, `u64::MAX` if never, and when it ends.
    old_ns: u64,
    overdue_ns: u64,
    grace_ns: u64,
    /// When the peer's last PING came, since we sent something.
    pinged_ns: Option<u64>,
    strikes: u32,
    /// PINGs of ours, and how many of them are not acknowledged.
    asked: u64,
    unanswered: u64,
}

impl Keepalive {
    /// `random` spreads the age, so that connections made together do not end together.
    pub(crate) fn new(limits: &Limits, random: u64, now_ns: u64) -> Self {
        let old_ns = match limits.connection_age_max_ns {
            u64::MAX => u64::MAX,
            // Ten per cent either way, as gRPC has it.
            age_ns => now_ns.saturating_add(age_ns / 10 * 9 + random % (age_ns / 5).max(1)),
        };
        Self {
            heard_ns: now_ns,
            interval_ns: limits.keepalive_interval_ns,
            timeout_ns: limits.keepalive_timeout_ns,
            asked_ns: None,
            old_ns,
            overdue_ns: u64::MAX,
            grace_ns: limits.connection_age_grace_ns,
            pinged_ns: None,
            strikes: 0,
            asked: 0,
            unanswered: 0,
        }
    }

    /// Something has come, whatever it was.
    #[inline]
    pub(crate) fn heard(&mut self, now_ns: u64) {
        self.heard_ns = now_ns;
        self.asked_ns = None;
    }

    /// The PING is out.
    pub(crate) fn asked(&mut self) {
        self.asked += 1;
        self.unanswered += 1;
    }

    /// PINGs that have gone out.
    pub(crate) fn asked_count(&self) -> u64 {
        self.asked
    }

    /// The peer has acknowledged a PING of ours. False when it was not asked.
    pub(crate) fn answered(&mut self) -> bool {
        let due = self.unanswered > 0;
        self.unanswered -= u64::from(due);
        due
    }

    /// We have sent HEADERS or DATA: the peer's PINGs are forgiven.
    #[inline]
    pub(crate) fn sent(&mut self) {
        self.strikes = 0;
        self.pinged_ns = None;
    }

    /// The peer has sent a PING. False when it does so too often.
    pub(crate) fn pinged(&mut self, limits: &Limits, now_ns: u64) -> bool {
        let early = self
            .pinged_ns
            .is_some_and(|last_ns| now_ns.saturating_sub(last_ns) < limits.ping_interval_min_ns);
        self.pinged_ns = Some(now_ns);
        self.strikes += u32::from(early);
        self.strikes <= limits.ping_strikes_max
    }

    /// When something is due; `u64::MAX` is never.
    pub(crate) fn due_ns(&self) -> u64 {
        let peer_ns = match self.asked_ns {
            Some(asked_ns) => asked_ns.saturating_add(self.timeout_ns),
            None => self.heard_ns.saturating_add(self.interval_ns),
        };
        peer_ns.min(self.old_ns).min(self.overdue_ns)
    }

    /// What is due at `now_ns`, if anything is; called again until nothing is.
    pub(crate) fn due(&mut self, now_ns: u64) -> Option<Due> {
        if now_ns >= self.overdue_ns {
            self.overdue_ns = u64::MAX;
            return Some(Due::Overdue);
        }
        if now_ns >= self.old_ns {
            self.old_ns = u64::MAX;
            self.overdue_ns = now_ns.saturating_add(self.grace_ns);
            return Some(Due::Old);
        }
        match self.asked_ns {
            Some(asked_ns) if now_ns >= asked_ns.saturating_add(self.timeout_ns) => Some(Due::Gone),
            None if now_ns >= self.heard_ns.saturating_add(self.interval_ns) => {
                self.asked_ns = Some(now_ns);
                Some(Due::Ask)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn limits() -> Limits {
        Limits {
            keepalive_interval_ns: 60 * SECOND_NS,
            keepalive_timeout_ns: 20 * SECOND_NS,
            connection_age_max_ns: 1000 * SECOND_NS,
            connection_age_grace_ns: 50 * SECOND_NS,
            ping_interval_min_ns: 10 * SECOND_NS,
            ping_strikes_max: 2,
            ..Limits::default()
        }
    }

    #[test]
    fn a_silent_peer_is_asked_and_then_given_up() {
        let mut keepalive = Keepalive::new(&limits(), 0, 0);
        assert_eq!((keepalive.due_ns(), keepalive.due(60 * SECOND_NS - 1)), (60 * SECOND_NS, None));
        assert_eq!(keepalive.due(60 * SECOND_NS), Some(Due::Ask));
        assert_eq!((keepalive.due(60 * SECOND_NS), keepalive.due_ns()), (None, 80 * SECOND_NS));
        keepalive.heard(70 * SECOND_NS);
        assert_eq!((keepalive.due(129 * SECOND_NS), keepalive.due_ns()), (None, 130 * SECOND_NS));
        assert_eq!(keepalive.due(131 * SECOND_NS), Some(Due::Ask));
        assert_eq!(keepalive.due(151 * SECOND_NS), Some(Due::Gone));
    }

    #[test]
    fn an_old_connection_is_drained_and_then_ended() {
        let mut earliest = u64::MAX;
        let mut latest = 0;
        for random in [0, 1, u64::MAX / 3, u64::MAX / 2, u64::MAX] {
            let mut keepalive = Keepalive::new(&limits(), random, 0);
            keepalive.interval_ns = u64::MAX;
            let old_ns = keepalive.due_ns();
            (earliest, latest) = (earliest.min(old_ns), latest.max(old_ns));
            assert_eq!(keepalive.due(old_ns), Some(Due::Old));
            assert_eq!(keepalive.due(old_ns), None);
            assert_eq!(keepalive.due_ns(), old_ns + 50 * SECOND_NS);
            assert_eq!(keepalive.due(old_ns + 50 * SECOND_NS), Some(Due::Overdue));
        }
        assert!(earliest >= 900 * SECOND_NS && latest < 1100 * SECOND_NS && earliest < latest);
        let off = Keepalive::new(&Limits::default(), 7, 0);
        assert_eq!(off.due_ns(), u64::MAX);
    }

    #[test]
    fn pings_that_come_too_often_are_strikes_until_we_send() {
        let limits = limits();
        let mut keepalive = Keepalive::new(&limits, 0, 0);
        // The first costs nothing, and so does each that keeps its distance.
        for at in [0, 10, 20, 31] {
            assert!(keepalive.pinged(&limits, at * SECOND_NS));
        }
        assert!(keepalive.pinged(&limits, 32 * SECOND_NS));
        assert!(keepalive.pinged(&limits, 33 * SECOND_NS));
        keepalive.sent();
        for _ in 0..3 {
            assert!(keepalive.pinged(&limits, 34 * SECOND_NS));
        }
        assert!(!keepalive.pinged(&limits, 35 * SECOND_NS));
    }
}
