//! What topics keep for durable subscriptions, and how far each has come.
//!
//! Events, subscriptions and their progress are state. The streams of a subscription and what is under way to them are not: they
//! end with the process, and whoever subscribes again gets what is not done.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::super::delivery::{Flow, Progress};
use crate::call::Revision;
use crate::filter::Filter;

/// Events that every subscription has done with, and that a topic keeps for those to come.
const KEPT_EVENTS: usize = 1000;
/// Bytes of such events.
const KEPT_BYTES: u64 = 8 << 20;

/// What is known about an event beside its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) sent_us: u64,
    /// From then on it is not delivered; `u64::MAX` is never.
    pub(super) expires_us: u64,
    pub(super) bytes: u64,
}

/// The events of one topic.
#[derive(Debug, Default)]
pub(crate) struct Topic {
    pub(super) events: BTreeMap<u64, Known>,
    /// The number of the next event.
    pub(super) next: u64,
    bytes: u64,
    /// Its durable subscriptions.
    pub(super) durable: Vec<Box<str>>,
}

impl Topic {
    /// Takes an event in; also one that a snapshot held, in any order.
    pub(super) fn insert(&mut self, number: u64, known: Known) {
        self.next = self.next.max(number + 1);
        self.bytes += known.bytes;
        self.events.insert(number, known);
    }

    pub(super) fn remove(&mut self, number: u64) {
        if let Some(known) = self.events.remove(&number) {
            self.bytes -= known.bytes;
        }
    }

    /// There is more than is kept for subscriptions to come.
    pub(super) fn is_large(&self) -> bool {
        self.events.len() > KEPT_EVENTS || self.bytes > KEPT_BYTES
    }

    /// The first event that is there, or the next one.
    pub(super) fn first(&self) -> u64 {
        self.events.first_key_value().map_or(self.next, |(number, _)| *number)
    }

    /// The first event that is not older.
    pub(super) fn since(&self, time_us: u64) -> u64 {
        let mut events = self.events.iter();
        events.find(|(_, known)| known.sent_us >= time_us).map_or(self.next, |(number, _)| *number)
    }
}

/// One durable subscription.
#[derive(Debug)]
pub(crate) struct Durable {
    /// The write that made it: another of the same name has another.
    pub(super) created: Revision,
    pub(super) topic: Box<str>,
    pub(super) filter_text: Box<str>,
    pub(super) filter: Filter,
    /// One stream at a time receives, and what comes again comes in its order.
    pub(super) ordered: bool,
    pub(super) progress: Progress,
    flow: Flow,
    /// In the order in which they came.
    streams: BTreeMap<u64, Stream>,
}

/// A stream of a durable subscription.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    pub(super) ack_wait_us: u64,
    pub(super) in_flight_max: u32,
    in_flight: u32,
}

impl Stream {
    pub(super) fn new(ack_wait_us: u64, in_flight_max: u32) -> Self {
        Stream { ack_wait_us, in_flight_max, in_flight: 0 }
    }
}

/// An event on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handed {
    pub(super) number: u64,
    pub(super) attempt: u32,
    pub(super) until_us: u64,
}

impl Durable {
    pub(super) fn new(
        created: Revision,
        topic: &str,
        (filter_text, filter): (&str, Filter),
        ordered: bool,
        start: u64,
    ) -> Self {
        Durable {
            created,
            topic: topic.into(),
            filter_text: filter_text.into(),
            filter,
            ordered,
            progress: Progress::begin(start),
            flow: Flow::default(),
            streams: BTreeMap::new(),
        }
    }

    pub(super) fn attach(&mut self, number: u64, stream: Stream) {
        self.streams.insert(number, stream);
    }

    pub(super) fn detach(&mut self, number: u64) {
        self.streams.remove(&number);
        self.flow.leave(number);
    }

    /// The next event for a stream, if there is one and it may have it. `first_from` is the first event from a number on that
    /// the subscription hears.
    pub(super) fn hand(
        &mut self,
        stream: u64,
        end: u64,
        now_us: u64,
        first_from: impl Fn(u64) -> Option<u64>,
    ) -> Option<Handed> {
        let streams = &mut self.streams;
        self.flow.expire(now_us, self.ordered, |to| {
            if let Some(stream) = streams.get_mut(&to) {
                stream.in_flight = stream.in_flight.saturating_sub(1);
            }
        });
        let is_first = streams.first_key_value().is_some_and(|(first, _)| *first == stream);
        let taker = streams.get_mut(&stream)?;
        if taker.in_flight >= taker.in_flight_max || self.ordered && !is_first {
            return None;
        }
        let Some(number) = self.flow.head(&self.progress, first_from) else {
            // What was looked at and is not for it need not be looked at again.
            if self.progress.takes_more() {
                self.flow.skip(end);
            }
            return None;
        };
        let until_us = now_us.saturating_add(taker.ack_wait_us);
        taker.in_flight += 1;
        let attempt = self.flow.deliver(number, stream, until_us);
        Some(Handed { number, attempt, until_us })
    }

    /// Marks an event as done; whether it was not.
    pub(super) fn acknowledge(&mut self, number: u64) -> bool {
        let marked = self.progress.mark(number);
        if marked
            && let Some(to) = self.flow.end(number)
            && let Some(stream) = self.streams.get_mut(&to)
        {
            stream.in_flight = stream.in_flight.saturating_sub(1);
        }
        marked
    }

    /// When the next delivery's time is over.
    pub(super) fn next_end_us(&self) -> Option<u64> {
        self.flow.next_end_us()
    }

    /// A receipt; bound to the namespace and to this subscription.
    pub(super) fn receipt(&self, namespace: u32, id: &str, number: u64) -> String {
        let Revision { lsn, epoch, minor } = self.created;
        let mut hasher = SipHasher13::new_with_keys(u64::from(namespace), 0x6475_7261_626c);
        hasher.write(id.as_bytes());
        [lsn, u64::from(epoch), minor, number].iter().for_each(|one| hasher.write_u64(*one));
        format!("{number:x}-{:016x}", hasher.finish())
    }

    /// The event whose receipt it is.
    pub(super) fn read_receipt(&self, namespace: u32, id: &str, receipt: &str) -> Option<u64> {
        let number = u64::from_str_radix(receipt.split_once('-')?.0, 16).ok()?;
        (self.receipt(namespace, id, number) == receipt).then_some(number)
    }
}

type ByName<T> = HashMap<(u32, Box<str>), T, ahash::RandomState>;

/// What the topics of a shard keep.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    pub(super) by_name: ByName<Topic>,
    /// By the id of the subscription.
    pub(super) durable: ByName<Durable>,
    /// The number of the stream that was attached last.
    pub(super) attached: u64,
}

impl Topics {
    /// Forgets what is kept for a namespace.
    pub(crate) fn forget(&mut self, namespace: u32) {
        self.by_name.retain(|(of, _), _| *of != namespace);
        self.durable.retain(|(of, _), _| *of != namespace);
    }
}
