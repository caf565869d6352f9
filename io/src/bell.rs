//! A bell that any thread rings and one task of a loop hears.

use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use atomic_waker::AtomicWaker;

/// See the module. Rings are counted, so that none is missed between a look at what it announces and the wait for the next.
#[derive(Debug, Default)]
pub struct Bell {
    rings: AtomicU64,
    waker: AtomicWaker,
}

impl Bell {
    /// Wakes the task that waits, or lets the next wait end at once.
    pub fn ring(&self) {
        self.rings.fetch_add(1, Ordering::Release);
        self.waker.wake();
    }

    /// How often it has rung. Ask before looking at what it announces.
    pub fn heard(&self) -> u64 {
        self.rings.load(Ordering::Acquire)
    }

    /// Waits until it has rung since `heard`.
    pub async fn wait(&self, heard: u64) {
        std::future::poll_fn(|context| {
            self.waker.register(context.waker());
            if self.heard() == heard { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }
}
