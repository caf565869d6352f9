//! The mesh between shards: one bounded ring per ordered pair, and one wake for an idle receiver.
//!
//! Promises: messages of one sender arrive in order; a send never waits and never allocates; a full ring gives the message
//! back. Never a lock on the way.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use atomic_waker::AtomicWaker;
use crossbeam_queue::ArrayQueue;

/// Messages that one receiver takes from one sender before it looks at the next, so that none starves the others.
pub const MESSAGES_PER_TURN: usize = 256;

struct Inbox<M> {
    /// Indexed by sender.
    rings: Box<[ArrayQueue<M>]>,
    idle: AtomicBool,
    waker: AtomicWaker,
}

/// One shard's end of the mesh.
pub struct Port<M> {
    shard: usize,
    inboxes: Arc<[Inbox<M>]>,
    /// A port is used by the one thread that owns it.
    single: std::marker::PhantomData<std::cell::Cell<()>>,
}

/// Ports for `shards` shards; each ordered pair holds up to `capacity` messages.
pub fn mesh<M: Send>(shards: usize, capacity: usize) -> Vec<Port<M>> {
    let inboxes: Arc<[Inbox<M>]> = (0..shards)
        .map(|to| Inbox {
            // Nobody sends to itself.
            rings: (0..shards)
                .map(|from| ArrayQueue::new(if from == to { 1 } else { capacity }))
                .collect(),
            idle: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        })
        .collect();
    (0..shards)
        .map(|shard| Port { shard, inboxes: inboxes.clone(), single: std::marker::PhantomData })
        .collect()
}

impl<M: Send> Port<M> {
    /// The shard that this port belongs to.
    pub fn shard(&self) -> usize {
        self.shard
    }

    /// Puts `message` into the ring towards `to`, or gives it back when that ring is full.
    pub fn send(&self, to: usize, message: M) -> Result<(), M> {
        let inbox = &self.inboxes[to];
        inbox.rings[self.shard].push(message)?;
        // Pairs with the store in `receive`: either the receiver sees the message or this sees it idle.
        std::sync::atomic::fence(Ordering::SeqCst);
        if inbox.idle.load(Ordering::Relaxed) && inbox.idle.swap(false, Ordering::AcqRel) {
            inbox.waker.wake();
        }
        Ok(())
    }

    /// Hands every message that arrives to `deliver`, for ever; `turn` is called after each pass that delivered some.
    pub async fn receive(
        self: Rc<Self>,
        mut deliver: impl FnMut(usize, M),
        mut turn: impl FnMut(),
    ) {
        let inbox = &self.inboxes[self.shard];
        loop {
            let mut delivered = 0;
            for (from, ring) in inbox.rings.iter().enumerate() {
                for _ in 0..MESSAGES_PER_TURN {
                    let Some(message) = ring.pop() else { break };
                    deliver(from, message);
                    delivered += 1;
                }
            }
            if delivered > 0 {
                crate::rt::note_activity();
                turn();
                crate::rt::yield_now().await;
                continue;
            }
            std::future::poll_fn(|context| {
                inbox.waker.register(context.waker());
                inbox.idle.store(true, Ordering::Relaxed);
                std::sync::atomic::fence(Ordering::SeqCst);
                if inbox.rings.iter().any(|ring| !ring.is_empty()) {
                    inbox.idle.store(false, Ordering::Relaxed);
                    return Poll::Ready(());
                }
                // A wake that was not meant for the mesh only polls once more.
                Poll::Pending
            })
            .await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_gives_the_message_back() {
        let ports = mesh::<u32>(2, 2);
        assert_eq!(ports[0].send(1, 1), Ok(()));
        assert_eq!(ports[0].send(1, 2), Ok(()));
        assert_eq!(ports[0].send(1, 3), Err(3));
        assert_eq!(ports[1].send(0, 4), Ok(()), "the other direction has its own ring");
    }

    #[test]
    fn messages_arrive_in_order_over_threads_and_idle_receivers_wake() {
        const MESSAGES: u32 = 20_000;
        let mut ports = mesh::<u32>(2, 64);
        let (receiver, sender) = (ports.pop().unwrap(), ports.pop().unwrap());
        let sending = std::thread::spawn(move || {
            for value in 0..MESSAGES {
                let mut message = value;
                while let Err(back) = sender.send(1, message) {
                    message = back;
                    std::thread::yield_now();
                }
            }
        });
        let received = crate::rt::run(async move {
            let done = Rc::new(crate::rt::Signal::default());
            let (signal, mut next) = (done.clone(), 0);
            crate::rt::spawn(Rc::new(receiver).receive(
                move |from, value| {
                    assert_eq!((from, value), (0, next));
                    next += 1;
                    if next == MESSAGES {
                        signal.set();
                    }
                },
                || (),
            ));
            crate::rt::timeout(std::time::Duration::from_secs(60), done.wait()).await
        });
        sending.join().unwrap();
        assert!(received.unwrap().is_some(), "all messages arrive");
    }
}
