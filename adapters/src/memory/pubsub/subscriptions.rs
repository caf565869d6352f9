//! Who hears what: subscriptions by topic and by pattern, and the line of events of each.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use prism_proto::prism::r#type::v1::Message;
use prost::Message as _;

use crate::error::{Error, Kind};
use crate::filter::Filter;
use crate::news::News;
use crate::topic;

/// Events that wait for one subscription.
const LINE_EVENTS_MAX: usize = 1024;
/// Bytes of events that wait for one subscription; one event may be larger.
const LINE_BYTES_MAX: usize = 4 << 20;
/// Bytes of events that wait for all subscriptions of a shard; an event counts for each.
const LINES_BYTES_MAX: usize = 64 << 20;
/// What an event takes beside its content, about.
const EVENT_BYTES: usize = 256;

/// An event on its way; its subscribers share it.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) topic: Box<str>,
    pub(crate) sent_us: u64,
    /// From then on it is not delivered; `u64::MAX` is never.
    pub(crate) expires_us: u64,
    pub(crate) message: Message,
}

/// What a subscription hears.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    Topic(Box<str>),
    Pattern(Box<str>),
    Filtered(Box<str>, Filter),
}

/// How a subscription stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Open,
    /// It stayed behind by more than may wait.
    Behind,
    /// It was deleted.
    Deleted,
    /// What brings the events was cut off; some may be lost.
    CutOff,
}

/// One subscription.
#[derive(Debug)]
pub(crate) struct Subscription {
    namespace: u32,
    pub(crate) id: Box<str>,
    heard: Heard,
    line: RefCell<VecDeque<Rc<Event>>>,
    line_bytes: Cell<usize>,
    pub(crate) standing: Cell<Standing>,
    streams: Cell<usize>,
    pub(crate) news: Rc<News>,
}

type ByName<T> = HashMap<(u32, Box<str>), T, ahash::RandomState>;

/// The subscriptions of a shard.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    by_topic: RefCell<ByName<Vec<Rc<Subscription>>>>,
    by_pattern: RefCell<HashMap<u32, Vec<Rc<Subscription>>, ahash::RandomState>>,
    by_id: RefCell<ByName<Rc<Subscription>>>,
    waiting_bytes: Cell<usize>,
    minted: Cell<u64>,
}

impl Subscriptions {
    /// Puts an event in the line of everybody who hears its topic.
    pub(crate) fn publish(&self, namespace: u32, event: Event) {
        let by_topic = self.by_topic.borrow();
        let by_pattern = self.by_pattern.borrow();
        let of_topic = by_topic.get(&(namespace, event.topic.clone()));
        let of_patterns = by_pattern.get(&namespace);
        if of_topic.is_none() && of_patterns.is_none() {
            return;
        }
        let event = Rc::new(event);
        let bytes = event.message.encoded_len() + EVENT_BYTES;
        for subscription in of_topic.into_iter().chain(of_patterns).flatten() {
            if subscription.hears(&event) {
                self.line_up(subscription, &event, bytes);
            }
        }
    }

    /// Puts an event in the line of everybody who hears by this very topic or pattern.
    pub(crate) fn publish_to(&self, namespace: u32, heard: &str, event: Event) {
        let listeners = self.who_hear(namespace, heard);
        if listeners.is_empty() {
            return;
        }
        let event = Rc::new(event);
        let bytes = event.message.encoded_len() + EVENT_BYTES;
        for subscription in listeners.iter().filter(|subscription| subscription.hears(&event)) {
            self.line_up(subscription, &event, bytes);
        }
    }

    /// Ends everybody who hears by this very topic or pattern, because events were lost to them.
    pub(crate) fn end(&self, namespace: u32, heard: &str, standing: Standing) {
        for subscription in self.who_hear(namespace, heard) {
            if subscription.standing.get() == Standing::Open {
                subscription.standing.set(standing);
                subscription.news.tell();
                self.take_out(&subscription);
            }
        }
    }

    fn who_hear(&self, namespace: u32, heard: &str) -> Vec<Rc<Subscription>> {
        let by_topic = self.by_topic.borrow();
        let by_pattern = self.by_pattern.borrow();
        let of_topic = by_topic.get(&(namespace, Box::from(heard))).into_iter().flatten();
        let is_same = |one: &&Rc<Subscription>| match &one.heard {
            Heard::Pattern(pattern) => **pattern == *heard,
            Heard::Topic(_) | Heard::Filtered(..) => false,
        };
        let of_pattern = by_pattern.get(&namespace).into_iter().flatten().filter(is_same);
        of_topic.chain(of_pattern).cloned().collect()
    }

    fn line_up(&self, subscription: &Subscription, event: &Rc<Event>, bytes: usize) {
        if subscription.standing.get() != Standing::Open {
            return;
        }
        let mut line = subscription.line.borrow_mut();
        let line_bytes = subscription.line_bytes.get() + bytes;
        let is_full = line.len() >= LINE_EVENTS_MAX
            || line_bytes > LINE_BYTES_MAX
            || self.waiting_bytes.get() + bytes > LINES_BYTES_MAX;
        if is_full && !line.is_empty() {
            subscription.standing.set(Standing::Behind);
        } else {
            line.push_back(event.clone());
            subscription.line_bytes.set(line_bytes);
            self.waiting_bytes.set(self.waiting_bytes.get() + bytes);
        }
        subscription.news.tell();
    }

    /// Attaches a stream to a subscription, which is made if there is none of this id.
    ///
    /// # Errors
    /// FAILED_PRECONDITION `SUBSCRIPTION_MISMATCH`: there is one that hears something else.
    pub(crate) fn attach(
        &self,
        namespace: u32,
        id: &str,
        heard: Heard,
    ) -> Result<Attached<'_>, Error> {
        let id: Box<str> = match id {
            "" => {
                self.minted.set(self.minted.get() + 1);
                let now_us = prism_io::clock::wall_us();
                format!("s-{now_us:x}-{:x}", self.minted.get()).into()
            }
            id => id.into(),
        };
        let key = (namespace, id.clone());
        if let Some(subscription) = self.by_id.borrow().get(&key) {
            if subscription.heard != heard {
                return Err(mismatch(&id));
            }
            subscription.streams.set(subscription.streams.get() + 1);
            return Ok(Attached { subscriptions: self, subscription: subscription.clone() });
        }
        let subscription = Rc::new(Subscription {
            namespace,
            id,
            heard,
            line: RefCell::default(),
            line_bytes: Cell::new(0),
            standing: Cell::new(Standing::Open),
            streams: Cell::new(1),
            news: Rc::default(),
        });
        self.by_id.borrow_mut().insert(key, subscription.clone());
        match &subscription.heard {
            Heard::Topic(topic) | Heard::Filtered(topic, _) => {
                let key = (namespace, topic.clone());
                self.by_topic.borrow_mut().entry(key).or_default().push(subscription.clone());
            }
            Heard::Pattern(_) => {
                let mut patterns = self.by_pattern.borrow_mut();
                patterns.entry(namespace).or_default().push(subscription.clone());
            }
        }
        Ok(Attached { subscriptions: self, subscription })
    }

    /// Deletes a subscription, if there is one of this id; its streams end.
    pub(crate) fn delete(&self, namespace: u32, id: &str) {
        let found = self.by_id.borrow().get(&(namespace, Box::from(id))).cloned();
        if let Some(subscription) = found {
            subscription.standing.set(Standing::Deleted);
            subscription.news.tell();
            self.remove(&subscription);
        }
    }

    /// Forgets a subscription and its line.
    fn remove(&self, subscription: &Rc<Subscription>) {
        self.take_out(subscription);
        subscription.line.borrow_mut().clear();
        let bytes = subscription.line_bytes.replace(0);
        self.waiting_bytes.set(self.waiting_bytes.get() - bytes);
    }

    /// Forgets a subscription; what waits in its line is left to its streams.
    fn take_out(&self, subscription: &Rc<Subscription>) {
        let is_other = |other: &Rc<Subscription>| !Rc::ptr_eq(other, subscription);
        let namespace = subscription.namespace;
        let mut by_id = self.by_id.borrow_mut();
        let key = (namespace, subscription.id.clone());
        if by_id.get(&key).is_some_and(|found| Rc::ptr_eq(found, subscription)) {
            by_id.remove(&key);
        }
        match &subscription.heard {
            Heard::Topic(topic) | Heard::Filtered(topic, _) => {
                let mut by_topic = self.by_topic.borrow_mut();
                let key = (namespace, topic.clone());
                if let Some(list) = by_topic.get_mut(&key) {
                    list.retain(is_other);
                    if list.is_empty() {
                        by_topic.remove(&key);
                    }
                }
            }
            Heard::Pattern(_) => {
                let mut by_pattern = self.by_pattern.borrow_mut();
                if let Some(list) = by_pattern.get_mut(&namespace) {
                    list.retain(is_other);
                    if list.is_empty() {
                        by_pattern.remove(&namespace);
                    }
                }
            }
        }
    }
}

impl Subscription {
    fn hears(&self, event: &Event) -> bool {
        match &self.heard {
            Heard::Topic(_) => true,
            Heard::Pattern(pattern) => topic::matches(pattern, &event.topic),
            Heard::Filtered(_, filter) => {
                filter.matches(|name| event.message.attributes.get(name).map(String::as_str))
            }
        }
    }
}

/// A stream's part in a subscription; given up when it is dropped.
pub(crate) struct Attached<'a> {
    subscriptions: &'a Subscriptions,
    pub(crate) subscription: Rc<Subscription>,
}

impl Attached<'_> {
    /// The next event of the line.
    pub(crate) fn take(&self) -> Option<Rc<Event>> {
        let event = self.subscription.line.borrow_mut().pop_front()?;
        let bytes = event.message.encoded_len() + EVENT_BYTES;
        self.subscription.line_bytes.set(self.subscription.line_bytes.get() - bytes);
        let waiting = &self.subscriptions.waiting_bytes;
        waiting.set(waiting.get() - bytes);
        Some(event)
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        let streams = &self.subscription.streams;
        streams.set(streams.get() - 1);
        if streams.get() == 0 {
            self.subscriptions.remove(&self.subscription);
        }
    }
}

#[cold]
fn mismatch(id: &str) -> Error {
    let message = format!(
        "the subscription {id} hears another topic, pattern or filter: join it with the same, or use another id"
    );
    Error::new(Kind::FailedPrecondition, "SUBSCRIPTION_MISMATCH", message)
}
