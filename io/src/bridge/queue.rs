//! One direction of a bridge: a bounded queue, and a wake for its reader when it has gone idle.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::Poll;

use atomic_waker::AtomicWaker;
use crossbeam_queue::ArrayQueue;

pub(super) struct Queue<M> {
    ring: ArrayQueue<M>,
    idle: AtomicBool,
    waker: AtomicWaker,
}

impl<M> Queue<M> {
    pub(super) fn new(capacity: usize) -> Self {
        let ring = ArrayQueue::new(capacity.max(1));
        Self { ring, idle: AtomicBool::new(false), waker: AtomicWaker::new() }
    }

    /// Puts a message in, or gives it back. Wakes the reader only if it is idle.
    pub(super) fn push(&self, message: M) -> Result<(), M> {
        self.ring.push(message)?;
        // Pairs with the store in `wait`: either the reader sees the message or this sees it idle.
        fence(Ordering::SeqCst);
        if self.idle.load(Ordering::Relaxed) && self.idle.swap(false, Ordering::AcqRel) {
            self.waker.wake();
        }
        Ok(())
    }

    pub(super) fn pop(&self) -> Option<M> {
        self.ring.pop()
    }

    /// Has the reader look again at what it waits for.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    /// Waits until there is a message, or `is_over`. For one reader.
    pub(super) async fn wait(&self, is_over: impl Fn() -> bool) {
        poll_fn(|context| {
            self.waker.register(context.waker());
            self.idle.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if !self.ring.is_empty() || is_over() {
                self.idle.store(false, Ordering::Relaxed);
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }
}
