//! Flow-control windows (RFC 9113, section 6.9).
//!
//! A send window says how much may still be sent, a receive window how much the peer may still send and when to tell it that
//! it may send more. Both are plain numbers: who owns the bytes is not their business.

use super::frame::WINDOW_MAX;

/// What we may still send. Negative after the peer lowered SETTINGS_INITIAL_WINDOW_SIZE (section 6.9.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SendWindow(i64);

/// A window was grown past 2³¹−1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowOverflow;

impl SendWindow {
    pub(crate) fn new(bytes: u32) -> Self {
        Self(i64::from(bytes))
    }

    #[inline]
    pub(crate) fn available(self) -> usize {
        self.0.max(0) as usize
    }

    #[inline]
    pub(crate) fn take(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.available());
        self.0 -= bytes as i64;
    }

    /// A WINDOW_UPDATE, or a changed initial size.
    pub(crate) fn shift(&mut self, delta: i64) -> Result<(), WindowOverflow> {
        let shifted = self.0 + delta;
        if shifted > i64::from(WINDOW_MAX) {
            return Err(WindowOverflow);
        }
        self.0 = shifted;
        Ok(())
    }
}

/// What the peer may still send, and what we have consumed but not yet announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReceiveWindow {
    open: i64,
    /// Negative while more is withheld than has been consumed.
    released: i64,
    threshold: u32,
}

impl ReceiveWindow {
    /// A window of `open` bytes, kept at `bytes` by updates of at least half of it.
    pub(crate) fn new(open: u32, bytes: u32) -> Self {
        Self { open: i64::from(open), released: 0, threshold: (bytes / 2).max(1) }
    }

    /// The peer has taken note of a smaller initial size (section 6.9.2).
    pub(crate) fn shrink(&mut self, bytes: u32) {
        self.open -= i64::from(bytes);
    }

    /// Payload has arrived. False: the peer sent more than it may. None at all is always allowed (section 6.9.1).
    #[inline]
    pub(crate) fn receive(&mut self, bytes: u32) -> bool {
        self.open -= i64::from(bytes);
        self.open >= 0 || bytes == 0
    }

    /// Payload was consumed; returns the increment to announce, if it is worth a frame.
    #[inline]
    pub(crate) fn release(&mut self, bytes: u32) -> Option<u32> {
        self.released += i64::from(bytes);
        if self.released < i64::from(self.threshold) {
            return None;
        }
        let increment = std::mem::take(&mut self.released).min(i64::from(WINDOW_MAX)) as u32;
        self.open += i64::from(increment);
        Some(increment)
    }

    /// Payload that was released is kept after all: as much of what comes next is not announced until it is released again.
    #[inline]
    pub(crate) fn withhold(&mut self, bytes: u32) {
        self.released -= i64::from(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9113, sections 6.9.1 and 6.9.2.
    #[test]
    fn a_send_window_may_go_negative_but_not_over() {
        let mut window = SendWindow::new(100);
        window.take(80);
        window.shift(-50).unwrap();
        assert_eq!(window.available(), 0);
        window.shift(31).unwrap();
        assert_eq!(window.available(), 1);
        assert_eq!(window.shift(i64::from(WINDOW_MAX)), Err(WindowOverflow));
        window.shift(i64::from(WINDOW_MAX) - 1).unwrap();
    }

    #[test]
    fn a_receive_window_is_reopened_by_halves() {
        let mut window = ReceiveWindow::new(100, 100);
        assert!(window.receive(100));
        assert_eq!(window.release(49), None);
        assert_eq!(window.release(1), Some(50));
        assert!(window.receive(50));
        assert!(window.receive(0));
        assert!(!window.receive(1));
        assert!(window.receive(0), "an end needs no window, not even where it is negative");
    }

    #[test]
    fn what_is_withheld_is_announced_only_once_it_is_released_again() {
        let mut window = ReceiveWindow::new(100, 100);
        assert!(window.receive(100));
        assert_eq!(window.release(100), Some(100));
        window.withhold(150);
        assert!(window.receive(100));
        assert_eq!(window.release(100), None);
        assert!(!window.receive(1));
        assert_eq!(window.release(150), Some(100));
    }
}
