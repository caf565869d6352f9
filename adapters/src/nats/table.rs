//! The calls under way on the client's connection, each with what has come of its answer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ahash::AHashMap;
use async_nats::{Message, Subject};
use prism_io::bridge::Ticket;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::errors::Outage;
use super::inbox::Inbox;
use super::link::{Answer, Asked};

/// Answers to one call, at most, the last one included.
pub(super) const ANSWERS_PER_CALL_MAX: usize = 2049;

/// A call whose answer has not come.
pub(super) struct Waiting {
    pub(super) ticket: Ticket<Asked, Answer>,
    pub(super) subject: Subject,
    pub(super) gathering: Gathering,
}

/// What has come of an answer.
pub(super) enum Gathering {
    One,
    /// Until one has a status, or there are so many.
    Many(Vec<Message>, usize),
}

impl Gathering {
    pub(super) fn many(count: usize) -> Self {
        Gathering::Many(Vec::new(), count.min(ANSWERS_PER_CALL_MAX))
    }
}

/// The calls under way. Its lock is never waited for: those who take it are parts of one task.
#[derive(Default)]
pub(super) struct Table {
    calls: Mutex<Calls>,
    /// There is something to watch.
    pub(super) work: Notify,
}

#[derive(Default)]
struct Calls {
    waiting: AHashMap<u64, Waiting>,
    /// When each is given up, in the order in which they were sent; some have ended meanwhile.
    due: VecDeque<(Instant, u64)>,
    last: u64,
    /// When something last came.
    heard: Option<Instant>,
    /// What is subscribed to, and where it goes.
    inboxes: Vec<(Subject, Weak<Inbox>)>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, waiting: Waiting, patience: Duration) -> u64 {
        let mut calls = self.lock();
        calls.last += 1;
        let number = calls.last;
        calls.forget_ended();
        calls.waiting.insert(number, waiting);
        let is_first = calls.due.is_empty();
        calls.due.push_back((Instant::now() + patience, number));
        drop(calls);
        if is_first {
            self.work.notify_one();
        }
        number
    }

    /// Adds what has come to what a call waits for; whether it goes on waiting.
    pub(super) fn answer(&self, number: u64, message: Message) -> bool {
        let mut calls = self.lock();
        calls.heard = Some(Instant::now());
        let Some(waiting) = calls.waiting.get_mut(&number) else { return false };
        match &mut waiting.gathering {
            Gathering::One => {}
            Gathering::Many(messages, count) => {
                messages.push(message);
                let is_last = messages.last().is_some_and(|last| last.status.is_some());
                if !is_last && messages.len() < *count {
                    return true;
                }
                let messages = std::mem::take(messages);
                calls.complete(number, Answer::Several(messages));
                return false;
            }
        }
        calls.complete(number, Answer::One(message));
        false
    }

    pub(super) fn fail(&self, number: u64, outage: &Outage) {
        self.lock().complete(number, Answer::Failed(outage.clone()));
    }

    pub(super) fn fail_all(&self, outage: &Outage) {
        for (_, waiting) in self.lock().waiting.drain() {
            waiting.ticket.complete(Answer::Failed(outage.clone()));
        }
    }

    /// Fails the calls that the server says this user may not make.
    pub(super) fn refuse(&self, text: &str) {
        let outage = Outage::credentials_refused(text);
        let mut calls = self.lock();
        let is_meant = |waiting: &Waiting| text.contains(&format!("\"{}\"", waiting.subject));
        let refused: Vec<u64> =
            calls.waiting.iter().filter(|(_, one)| is_meant(one)).map(|(one, _)| *one).collect();
        for number in refused {
            calls.complete(number, Answer::Failed(outage.clone()));
        }
        // It is told of some time after the server has answered what followed.
        for (subject, inbox) in &calls.inboxes {
            if let Some(inbox) = inbox.upgrade()
                && text.contains(&format!("\"{subject}\""))
            {
                inbox.end();
            }
        }
    }

    /// Notes what is subscribed to.
    pub(super) fn subscribed(&self, subject: Subject, inbox: &Arc<Inbox>) {
        let mut calls = self.lock();
        calls.inboxes.retain(|(_, inbox)| inbox.strong_count() > 0);
        calls.inboxes.push((subject, Arc::downgrade(inbox)));
    }

    /// The oldest call under way, and when it is given up.
    pub(super) fn oldest(&self) -> Option<(Instant, u64)> {
        let mut calls = self.lock();
        calls.forget_ended();
        calls.due.front().copied()
    }

    pub(super) fn is_silent_since(&self, time: Instant) -> bool {
        self.lock().heard.is_none_or(|heard| heard < time)
    }
}

impl Calls {
    /// Has a call that is under way first in the order, if there is one.
    fn forget_ended(&mut self) {
        while let Some((_, number)) = self.due.front()
            && !self.waiting.contains_key(number)
        {
            self.due.pop_front();
        }
    }

    fn complete(&mut self, number: u64, answer: Answer) {
        if let Some(waiting) = self.waiting.remove(&number) {
            waiting.ticket.complete(answer);
        }
    }
}
