//! What comes to a subject, on its way from the connection to the shard.
//!
//! It holds a bounded amount. A shard that falls behind by more is told so and loses the rest: a core subject has no way to be slowed
//! down, and a subscriber that waits would hold the connection up for everybody.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use prism_io::bell::Bell;
use tokio::sync::Notify;

/// Messages that may wait.
const MESSAGES_MAX: usize = 16 * 1024;

/// Bytes that may wait.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    held: Mutex<Held>,
    bell: Bell,
    /// Set when the shard has left.
    left: Notify,
}

#[derive(Debug, Default)]
struct Held {
    messages: VecDeque<Message>,
    bytes: usize,
    is_over: bool,
    is_ended: bool,
}

/// What a look finds.
#[derive(Debug)]
pub(super) enum Found {
    Message(Message),
    /// Nothing for now.
    Nothing,
    /// The shard was behind by more than may wait: what came after is lost.
    Overflow,
    /// Nothing comes any more.
    Ended,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, message: Message) {
        let mut held = self.lock();
        let bytes = held.bytes + message.length;
        let is_full = held.messages.len() >= MESSAGES_MAX || bytes > BYTES_MAX;
        if held.is_over || (is_full && !held.messages.is_empty()) {
            held.is_over = true;
        } else {
            held.bytes = bytes;
            held.messages.push_back(message);
        }
        drop(held);
        self.bell.ring();
    }

    /// Says that nothing comes any more.
    pub(super) fn end(&self) {
        self.lock().is_ended = true;
        self.bell.ring();
    }

    /// Takes what came first.
    pub(super) fn take(&self) -> Found {
        let mut held = self.lock();
        match held.messages.pop_front() {
            Some(message) => {
                held.bytes -= message.length;
                Found::Message(message)
            }
            None if held.is_over => Found::Overflow,
            None if held.is_ended => Found::Ended,
            None => Found::Nothing,
        }
    }

    /// What rings when there is something.
    pub(super) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Nobody takes anything any more.
    pub(super) fn leave(&self) {
        self.left.notify_one();
        self.bell.ring();
    }
}

/// Says that nothing comes any more, however that has come about.
struct Ending(Arc<Inbox>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Fills an inbox until the shard leaves it or the connection ends.
pub(super) async fn forward(mut subscriber: Subscriber, inbox: Arc<Inbox>) {
    let ending = Ending(inbox.clone());
    loop {
        tokio::select! {
            message = subscriber.next() => match message {
                Some(message) => ending.0.put(message),
                None => return,
            },
            () = inbox.left.notified() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Message {
        Message {
            subject: "orders.t".into(),
            reply: None,
            payload: Default::default(),
            headers: None,
            status: None,
            description: None,
            length,
        }
    }

    #[test]
    fn it_holds_so_much_and_then_says_that_the_rest_is_lost() {
        for (length, count) in [(1, MESSAGES_MAX), (BYTES_MAX / 4, 4), (2 * BYTES_MAX, 1)] {
            let inbox = Inbox::default();
            for _ in 0..count + 10 {
                inbox.put(message(length));
            }
            inbox.end();
            for _ in 0..count {
                assert!(matches!(inbox.take(), Found::Message(_)));
            }
            inbox.put(message(1));
            assert!(matches!(inbox.take(), Found::Overflow));
        }
    }

    #[test]
    fn what_has_come_is_taken_before_the_end() {
        let inbox = Inbox::default();
        let heard = inbox.bell().heard();
        assert!(matches!(inbox.take(), Found::Nothing));
        inbox.put(message(1));
        drop(Ending(Arc::new(Inbox::default())));
        inbox.end();
        assert_ne!(inbox.bell().heard(), heard);
        assert!(matches!(inbox.take(), Found::Message(_)));
        assert!(matches!(inbox.take(), Found::Ended));
    }
}
