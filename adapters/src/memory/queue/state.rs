//! Which message of a queue is next, and what becomes of it; knows times and numbers, and no payload.
//!
//! Of the messages with one ordering key only the oldest is in any line; the others wait behind it, until it has gone.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::call::Revision;
use crate::claims::Claims;

/// Which delivery of a message it is: the record that made it, and the place among those of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) revision: Revision,
    pub(super) index: u32,
    /// When it ends, µs since the epoch.
    pub(super) until_us: u64,
}

/// What is known about a message beside its content.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) priority: u8,
    pub(super) sent_us: u64,
    /// Not to be delivered before.
    pub(super) due_us: u64,
    /// Not to be delivered from then on; `u64::MAX` is never.
    pub(super) expires_us: u64,
    pub(super) attempts: u32,
    pub(super) lease: Option<Lease>,
    pub(super) ordering_key: Option<Box<str>>,
}

/// What the passing of time has done to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// It has expired.
    Expired,
    /// Its last lease has ended, at this time.
    GivenUp { at_us: u64 },
}

/// One queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    messages: BTreeMap<u64, Known>,
    /// To be delivered now, highest priority and oldest first.
    waiting: BTreeSet<(Reverse<u8>, u64)>,
    /// By the time from which on they may be delivered.
    later: BTreeSet<(u64, u64)>,
    /// By the end of their lease.
    leased: BTreeSet<(u64, u64)>,
    /// By their expiry, those that have one.
    expiring: BTreeSet<(u64, u64)>,
    /// By ordering key: all of its messages.
    keys: HashMap<Box<str>, BTreeSet<u64>, ahash::RandomState>,
    /// The dead letters by the numbers that they had, oldest first: their ids.
    pub(super) dead: BTreeMap<u64, Box<str>>,
    /// After so many deliveries a message is a dead letter; 0 is never.
    pub(super) max_deliveries: u32,
    /// It was said what becomes of dead letters.
    pub(super) keeps_dead: bool,
    /// The number of the next message or dead letter.
    next: u64,
    /// Messages that calls on their way have been promised.
    claims: Claims,
}

impl Queue {
    /// A number that none of its messages and dead letters has.
    pub(super) fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    pub(super) fn message(&self, number: u64) -> Option<&Known> {
        self.messages.get(&number)
    }

    /// The messages with greater numbers than `after`, oldest first.
    pub(super) fn messages_after(&self, after: Option<u64>) -> impl Iterator<Item = (u64, &Known)> {
        let from = after.map_or(0, |after| after.saturating_add(1));
        self.messages.range(from..).map(|(number, known)| (*number, known))
    }

    /// The messages that the passing of time until `now_us` has made dead letters, oldest first.
    pub(super) fn given_up(&self, now_us: u64) -> impl Iterator<Item = (u64, u64)> {
        let gone = move |message: &Known| {
            let ended = message.lease.is_some_and(|lease| lease.until_us <= now_us);
            ended && self.max_deliveries > 0 && message.attempts >= self.max_deliveries
        };
        let ended = self.messages.iter().filter(move |(_, message)| gone(message));
        ended.filter_map(|(number, message)| Some((*number, message.lease?.until_us)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.dead.is_empty() && !self.keeps_dead
    }

    /// Takes a message in; also one that a snapshot held.
    pub(super) fn insert(&mut self, number: u64, known: Known) {
        self.next = self.next.max(number + 1);
        // One that waits behind another expires when it comes in line.
        let mut is_head = true;
        if let Some(key) = &known.ordering_key {
            let of_key = self.keys.entry(key.clone()).or_default();
            let head = of_key.first().copied();
            of_key.insert(number);
            is_head = of_key.first() == Some(&number);
            if is_head && let Some(before) = head {
                self.step_out(before);
            }
        }
        self.messages.insert(number, known);
        if is_head {
            self.line_up(number);
        }
    }

    /// Takes a dead letter in.
    pub(super) fn insert_dead(&mut self, number: u64, id: &str) {
        self.next = self.next.max(number + 1);
        self.dead.insert(number, id.into());
    }

    /// Tells what a snapshot knows of a message's deliveries.
    pub(super) fn restore_deliveries(
        &mut self,
        number: u64,
        attempts: u32,
        lease: Option<Lease>,
        due_us: u64,
    ) {
        if let Some(message) = self.messages.get_mut(&number) {
            message.attempts = attempts;
        }
        let is_head = self.message(number).is_some_and(|message| match &message.ordering_key {
            Some(key) => self.keys.get(key).and_then(BTreeSet::first) == Some(&number),
            None => true,
        });
        if is_head {
            self.change(number, lease, due_us);
        } else if let Some(message) = self.messages.get_mut(&number) {
            (message.lease, message.due_us) = (lease, due_us);
        }
    }

    /// Lets the time pass until `now_us`; tells what has become of a message by it, one at a time.
    pub(super) fn pass(&mut self, now_us: u64) -> Option<(u64, Passed)> {
        while let Some(&(until_us, number)) = self.leased.first()
            && until_us <= now_us
        {
            self.leased.pop_first();
            let max = self.max_deliveries;
            let message = self.messages.get_mut(&number)?;
            message.lease = None;
            if max > 0 && message.attempts >= max {
                return Some((number, Passed::GivenUp { at_us: until_us }));
            }
            self.line_up(number);
        }
        while let Some(&(expires_us, number)) = self.expiring.first()
            && expires_us <= now_us
        {
            self.expiring.pop_first();
            // One that is leased may still be acknowledged; it goes when it would be in line again.
            if self.messages.get(&number).is_some_and(|message| message.lease.is_none()) {
                return Some((number, Passed::Expired));
            }
        }
        while let Some(&(due_us, number)) = self.later.first()
            && due_us <= now_us
        {
            self.later.pop_first();
            let priority = self.messages.get(&number).map_or(0, |message| message.priority);
            self.waiting.insert((Reverse(priority), number));
        }
        None
    }

    /// The message that is next, if there is one; after [`Queue::pass`].
    pub(super) fn head(&self) -> Option<u64> {
        self.waiting.first().map(|&(_, number)| number)
    }

    /// Delivers a message that is in line.
    pub(super) fn lease(&mut self, number: u64, lease: Lease) -> Option<&Known> {
        self.step_out(number);
        let message = self.messages.get_mut(&number)?;
        message.attempts += 1;
        message.lease = Some(lease);
        self.leased.insert((lease.until_us, number));
        Some(message)
    }

    /// Gives a leased message another end of its lease; nothing is back in line at `due_us`.
    pub(super) fn change(&mut self, number: u64, lease: Option<Lease>, due_us: u64) {
        self.step_out(number);
        if let Some(message) = self.messages.get_mut(&number) {
            (message.lease, message.due_us) = (lease, due_us);
        }
        self.line_up(number);
    }

    /// Takes a message out; the next one of its key comes in line.
    pub(super) fn remove(&mut self, number: u64) -> Option<Known> {
        self.step_out(number);
        let message = self.messages.remove(&number)?;
        self.expiring.remove(&(message.expires_us, number));
        if let Some(key) = &message.ordering_key
            && let Some(of_key) = self.keys.get_mut(key)
        {
            of_key.remove(&number);
            match of_key.first().copied() {
                Some(next) => self.line_up(next),
                None => drop(self.keys.remove(key)),
            }
        }
        Some(message)
    }

    /// Messages whose time has not come at `now_us`.
    pub(super) fn scheduled(&self, now_us: u64) -> u64 {
        let later = |message: &&Known| message.due_us > now_us && message.expires_us > now_us;
        self.messages.values().filter(later).count() as u64
    }

    /// Whether a Receive would find something at `now_us` beyond what others were promised; promises it at most `wanted`. Else,
    /// when it is worth to look again.
    pub(super) fn claim(&mut self, wanted: usize, now_us: u64) -> Result<(), Option<u64>> {
        let come = |line: &BTreeSet<(u64, u64)>| line.range(..=(now_us, u64::MAX)).count();
        let there = self.waiting.len() + come(&self.later) + come(&self.leased);
        if self.claims.claim(there, wanted, now_us) {
            return Ok(());
        }
        let next = |line: &BTreeSet<(u64, u64)>| {
            line.range((now_us, u64::MAX)..).next().map(|&(time_us, _)| time_us)
        };
        Err([next(&self.later), next(&self.leased), self.claims.end_us()]
            .into_iter()
            .flatten()
            .min())
    }

    /// A Receive for so many messages has had its turn.
    pub(super) fn give_claim_back(&mut self, wanted: usize) {
        self.claims.give_back(wanted);
    }

    fn line_up(&mut self, number: u64) {
        let Some(message) = self.messages.get(&number) else { return };
        match message.lease {
            Some(lease) => drop(self.leased.insert((lease.until_us, number))),
            None => {
                self.later.insert((message.due_us, number));
                if message.expires_us != u64::MAX {
                    self.expiring.insert((message.expires_us, number));
                }
            }
        }
    }

    fn step_out(&mut self, number: u64) {
        let Some(message) = self.messages.get(&number) else { return };
        if let Some(lease) = message.lease {
            self.leased.remove(&(lease.until_us, number));
        }
        self.later.remove(&(message.due_us, number));
        self.waiting.remove(&(Reverse(message.priority), number));
    }
}
