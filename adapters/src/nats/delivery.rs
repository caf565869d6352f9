//! What the streams of durable subscriptions, and of groups' members, on this shard have in hand.
//!
//! A stream takes what is there and does not have the server wait for more: a request that waits there would go on taking events
//! for a stream that has gone. It looks when something was published through this shard, and from time to time. What it asks for comes to a
//! task of its own, so that events on their way to a stream that ends meanwhile are not lost until their lease is over: they are given
//! back, in their order, with all that it has in hand.
//!
//! An ordered subscription has one event in flight (its consumer has `max_ack_pending` 1), so that what comes again comes before what follows,
//! whoever has died in between. Its requests may wait, since they keep the order.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use async_nats::{Message, Subject};
use prism_io::clock::wall_us;
use prism_io::rt::{self, Signal};
use serde_json::json;

use super::consumer::{Consumer, Of, next_subject};
use super::errors;
use super::link::{Answer, Ask, Link, Outgoing};
use super::place::{ACKNOWLEDGED, GIVEN_BACK, Place};
use crate::call::Context;
use crate::error::Error;
use crate::limits::Limits;
use crate::news::{Listener, News};
use crate::shared::Key;
use crate::sources::Sources;

/// Events of one request, and bytes of them where the server takes no larger messages.
const EVENTS_MAX: usize = 64;
const BYTES_MIN: usize = 4 * 1024 * 1024;

/// How long a request of an ordered subscription waits for an event.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Subscriptions that are remembered while nobody is attached to them.
const KEPT_MAX: usize = 4096;

/// An event in hand.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) place: Place,
    pub(super) message: Message,
    /// Until when it is this stream's, µs since the epoch.
    pub(super) until_us: u64,
}

/// What of an event in hand has to be known to give it back.
#[derive(Debug)]
struct Held {
    stream: u64,
    until_us: u64,
    reply: Subject,
}

/// A durable subscription or a group, as this shard knows it.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) consumer: Consumer,
    pub(super) ack_wait_us: Cell<u64>,
    /// The number in the stream up to which its events are known to have been handed out.
    pub(super) delivered: Cell<u64>,
    pub(super) is_gone: Cell<bool>,
    held: RefCell<BTreeMap<u64, Held>>,
    /// Those that are attached.
    streams: Cell<usize>,
}

impl Subscription {
    fn new(consumer: Consumer) -> Self {
        Subscription {
            ack_wait_us: Cell::new(consumer.ack_wait_us),
            delivered: Cell::new(consumer.delivered),
            is_gone: Cell::new(false),
            held: RefCell::default(),
            streams: Cell::new(0),
            consumer,
        }
    }

    /// Notes that an event is done with.
    pub(super) fn done(&self, sequence: u64) {
        self.held.borrow_mut().remove(&sequence);
    }
}

/// The durable subscriptions of a shard.
#[derive(Default)]
pub(super) struct Deliveries {
    subscriptions: RefCell<HashMap<Key, Rc<Subscription>>>,
    pub(super) sources: Sources,
    streams: Cell<u64>,
    /// Those that have ended.
    left: RefCell<Vec<Rc<Stream>>>,
    work: Signal,
    is_kept: Cell<bool>,
    is_stopped: Cell<bool>,
}

impl Deliveries {
    pub(super) fn known(&self, namespace: u32, of: Of<'_>) -> Option<Rc<Subscription>> {
        self.subscriptions.borrow().get(&(namespace, of.key().into())).cloned()
    }

    /// Notes what there is.
    pub(super) fn note(&self, namespace: u32, of: Of<'_>, consumer: Consumer) -> Rc<Subscription> {
        if let Some(known) = self.known(namespace, of) {
            if known.consumer.incarnation == consumer.incarnation {
                known.ack_wait_us.set(consumer.ack_wait_us);
                known.delivered.set(known.delivered.get().max(consumer.delivered));
                return known;
            }
            self.forget(namespace, of);
        }
        let subscription = Rc::new(Subscription::new(consumer));
        let mut subscriptions = self.subscriptions.borrow_mut();
        if subscriptions.len() >= KEPT_MAX {
            subscriptions.retain(|_, one| one.streams.get() > 0);
        }
        subscriptions.insert((namespace, of.key().into()), subscription.clone());
        subscription
    }

    /// Notes that there is none any more; its streams end.
    pub(super) fn forget(&self, namespace: u32, of: Of<'_>) {
        let known = self.subscriptions.borrow_mut().remove(&(namespace, of.key().into()));
        if let Some(known) = known {
            known.is_gone.set(true);
            self.sources.tell(namespace, &of.source_name());
        }
    }

    /// Notes that there is none any more, unless this is the one.
    pub(super) fn forget_unless(&self, namespace: u32, of: Of<'_>, found: Option<Consumer>) {
        match found {
            Some(consumer) => drop(self.note(namespace, of, consumer)),
            None => self.forget(namespace, of),
        }
    }

    /// Streams that are attached.
    pub(super) fn attached(&self) -> usize {
        self.subscriptions.borrow().values().map(|one| one.streams.get()).sum()
    }

    /// Begins to give back what streams leave behind, if that has not begun.
    fn keep(self: &Rc<Self>) {
        if !self.is_kept.replace(true) {
            rt::spawn(give_back(self.clone()));
        }
    }

    /// Lets the task that gives back end.
    pub(super) fn stop(&self) {
        self.is_stopped.set(true);
        self.work.set();
    }

    fn leave(&self, stream: &Rc<Stream>) {
        if !self.is_stopped.get() {
            self.left.borrow_mut().push(stream.clone());
            self.work.set();
        }
    }
}

async fn give_back(deliveries: Rc<Deliveries>) {
    loop {
        for stream in deliveries.left.take() {
            stream.give_back().await;
        }
        if deliveries.is_stopped.get() {
            return;
        }
        deliveries.work.wait().await;
    }
}

/// How a request for events has ended.
#[derive(Debug)]
pub(super) enum Pulled {
    Events,
    Nothing,
    /// The server knows of no such consumer.
    Unheard,
    Failed(Error),
}

/// A stream of a durable subscription.
pub(super) struct Stream {
    link: Rc<Link>,
    deliveries: Rc<Deliveries>,
    namespace: u32,
    namespace_name: Box<str>,
    /// The stream of JetStream, its consumer, and the source that tells of it.
    jetstream: String,
    consumer: String,
    source: String,
    pub(super) subscription: Rc<Subscription>,
    number: u64,
    /// Deliveries without acknowledgement at most.
    in_flight_max: usize,
    ready: RefCell<VecDeque<Delivery>>,
    is_pulling: Cell<bool>,
    has_left: Cell<bool>,
    pulled: RefCell<Option<Pulled>>,
    news: Rc<News>,
}

/// A stream's part in its subscription; given up when it is dropped.
pub(super) struct Attached(pub(super) Rc<Stream>);

impl Drop for Attached {
    fn drop(&mut self) {
        let stream = &self.0;
        stream.has_left.set(true);
        stream.subscription.streams.set(stream.subscription.streams.get() - 1);
        stream.tell();
        // Where it waits for events, they are given back when they have come.
        if !stream.is_pulling.get() {
            stream.deliveries.leave(stream);
        }
    }
}

impl Stream {
    /// Attaches a stream to a subscription.
    pub(super) fn attach(
        context: &Context<'_>,
        (link, deliveries): (&Rc<Link>, &Rc<Deliveries>),
        of: Of<'_>,
        subscription: Rc<Subscription>,
        in_flight_max: usize,
    ) -> Attached {
        deliveries.keep();
        let number = deliveries.streams.get() + 1;
        deliveries.streams.set(number);
        subscription.streams.set(subscription.streams.get() + 1);
        Attached(Rc::new(Stream {
            link: link.clone(),
            deliveries: deliveries.clone(),
            namespace: context.namespace,
            namespace_name: context.namespace_name.into(),
            jetstream: of.holds.stream(context),
            consumer: of.name(),
            source: of.source_name(),
            subscription,
            number,
            in_flight_max,
            ready: RefCell::default(),
            is_pulling: Cell::new(false),
            has_left: Cell::new(false),
            pulled: RefCell::default(),
            news: Rc::default(),
        }))
    }

    fn tell(&self) {
        self.deliveries.sources.tell(self.namespace, &self.source);
    }

    /// The message that acknowledges a delivery.
    pub(super) fn acknowledgement(&self, place: &Place) -> Outgoing {
        place.settled(&self.jetstream, &self.consumer, ACKNOWLEDGED)
    }

    /// The next event in hand that may be handed on.
    pub(super) fn next(&self, now_us: u64) -> Option<Delivery> {
        loop {
            let delivery = self.ready.borrow_mut().pop_front()?;
            if now_us < delivery.until_us {
                return Some(delivery);
            }
            self.subscription.done(delivery.place.sequence);
        }
    }

    /// How many events it may ask for now; 0: none.
    pub(super) fn room(&self, now_us: u64) -> usize {
        let subscription = &self.subscription;
        let mut held = subscription.held.borrow_mut();
        // They come again, to whoever is there.
        held.retain(|_, one| now_us < one.until_us);
        if subscription.consumer.is_ordered {
            return usize::from(held.is_empty());
        }
        let mine = held.values().filter(|one| one.stream == self.number).count();
        self.in_flight_max.saturating_sub(mine).min(EVENTS_MAX)
    }

    /// Asks for events. Whoever stops waiting for them loses none.
    pub(super) fn begin_pull(self: &Rc<Self>, count: usize) {
        self.is_pulling.set(true);
        let stream = self.clone();
        rt::spawn(async move { stream.run_pull(count).await });
    }

    /// How that has ended, once it has.
    pub(super) fn pulled(&self) -> Option<Pulled> {
        self.pulled.take()
    }

    /// Ready when it has.
    pub(super) fn pull_ended(&self) -> Listener {
        self.news.listen()
    }

    async fn run_pull(self: Rc<Self>, count: usize) {
        let limits = Limits::default();
        let context = self.context(&limits);
        let subject = next_subject(&self.jetstream, &self.consumer);
        let bytes = BYTES_MIN.max(2 * self.link.payload_bytes_max());
        let mut request = json!({ "batch": count, "no_wait": true, "max_bytes": bytes });
        if self.subscription.consumer.is_ordered {
            let expires = WAIT_MAX.min(self.link.answer_timeout() / 2);
            request["expires"] = (expires.as_nanos() as u64).into();
        }
        let message = Outgoing::plain(subject, request.to_string().into());
        let pulled = match self.link.call(&context, &Ask::pull(message, count)).await {
            Ok(Answer::Several(messages)) => self.arrived(messages, wall_us()),
            Ok(_) => Pulled::Failed(errors::unexpected(&context)),
            Err(error) => Pulled::Failed(error),
        };
        *self.pulled.borrow_mut() = Some(pulled);
        self.is_pulling.set(false);
        self.news.tell();
        if self.has_left.get() {
            self.give_back().await;
        }
    }

    fn arrived(&self, messages: Vec<Message>, now_us: u64) -> Pulled {
        let subscription = &self.subscription;
        let until_us = now_us.saturating_add(subscription.ack_wait_us.get());
        let mut pulled = Pulled::Nothing;
        for message in messages {
            if message.status.is_some() {
                let is_deleted =
                    message.description.as_deref().is_some_and(|text| text.contains("Deleted"));
                let is_unheard = message.status == Some(async_nats::StatusCode::NO_RESPONDERS);
                if is_unheard || is_deleted {
                    pulled = Pulled::Unheard;
                }
                continue;
            }
            let place = message.reply.as_deref().and_then(Place::of);
            let (Some(place), Some(reply)) = (place, message.reply.clone()) else { continue };
            let delivered = subscription.delivered.get().max(place.sequence);
            subscription.delivered.set(delivered);
            let held = Held { stream: self.number, until_us, reply };
            subscription.held.borrow_mut().insert(place.sequence, held);
            self.ready.borrow_mut().push_back(Delivery { place, message, until_us });
            pulled = Pulled::Events;
        }
        pulled
    }

    /// Gives back all that it has in hand, so that it comes again at once.
    async fn give_back(&self) {
        self.ready.borrow_mut().clear();
        let mut back = Vec::new();
        self.subscription.held.borrow_mut().retain(|_, one| {
            let is_mine = one.stream == self.number;
            if is_mine {
                back.push(Outgoing::plain(one.reply.clone(), GIVEN_BACK.into()));
            }
            !is_mine
        });
        if !back.is_empty() && !self.subscription.is_gone.get() {
            let limits = Limits::default();
            // What cannot be given back now comes again at the end of its lease.
            let _ = self.link.call(&self.context(&limits), &Ask::Tell(back)).await;
        }
        self.tell();
    }

    fn context<'a>(&'a self, limits: &'a Limits) -> Context<'a> {
        Context {
            namespace: self.namespace,
            namespace_name: &self.namespace_name,
            partition: 0,
            now_us: wall_us(),
            revision: Default::default(),
            limits,
            deadline_ns: crate::NO_DEADLINE_NS,
        }
    }
}
