//! The durable subscriptions of PubSubService on memstore, and the way of topics to the store and back.
//!
//! An event of a topic is kept if it is published as persistent, or if the topic has a durable subscription. It stays until all of
//! them have done with it, and some of the newest stay for subscriptions that begin in the past.

use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1 as reply;
use prism_proto::prism::r#type::v1::{Delivery, Message, Position};
use prism_proto::view::protobuf::Empty;
use prism_proto::view::pubsub::{
    AcknowledgeRequest, GetLastMessageIdRequest, PublishPersistentRequest, SubscribeDurableRequest,
};
use prism_proto::view::types::{Start, StartStart};
use prost::Message as _;

use super::super::Memstore;
use super::super::delivery::Progress;
use super::super::rooms::{Numbers, Room, put_numbers, read_room_key, room_key};
use super::topics::{Durable, Handed, Known, Stream, Topic, Topics};
use crate::call::{Context, NO_END, PageSink, Reply, Revision};
use crate::error::{Error, Kind};
use crate::filter::Filter;
use crate::interfaces::message::{item_status, moment_us, span_ms, time};
use crate::interfaces::pubsub::PubSubPersistent;
use crate::limits::{IN_FLIGHT_DEFAULT, IN_FLIGHT_MAX, LEASE_DEFAULT_MS};

/// An event: two numbers and the message as it is delivered. Never changes.
const EVENT: u8 = b'e';
/// Where a topic goes on whose newest event is gone.
const NEXT: u8 = b'n';
/// A subscription: what it hears, and the write that made it.
const SUBSCRIPTION: u8 = b's';
/// How far a subscription is.
const PROGRESS: u8 = b'p';
/// What is counted for an event beside its content.
const EVENT_BYTES: u64 = 64;

impl PubSubPersistent for Memstore {
    async fn publish_persistent(
        &self,
        context: &Context<'_>,
        request: PublishPersistentRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let (message_id, position) =
            self.publish_event(context, request.topic, request.message, 0, true);
        reply::PublishPersistentResponse { message_id, position }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn acknowledge(
        &self,
        context: &Context<'_>,
        request: AcknowledgeRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let (namespace, id) = (context.namespace, request.subscription_id);
        let mut topics = self.topics.borrow_mut();
        let Topics { by_name, durable, .. } = &mut *topics;
        let found = durable.get_mut(&(namespace, id.into()));
        let Some(subscription) = found else { return Err(not_found(id)) };
        if *subscription.topic != *request.topic {
            return Err(mismatch(id));
        }
        let mut results = Vec::with_capacity(request.receipts.len());
        for receipt in request.receipts.iter() {
            let number = subscription.read_receipt(namespace, id, receipt);
            let done = number.is_some_and(|number| subscription.acknowledge(number));
            let status = (!done).then(|| item_status(&receipt_expired()));
            results.push(reply::AcknowledgeResult { status });
        }
        let topic = by_name.entry((namespace, request.topic.into())).or_default();
        self.settle(context, topic, subscription);
        self.keep_durable_progress(context, id, &subscription.progress);
        self.trim_topic(context, request.topic, &mut topics);
        drop(topics);
        self.tell_durable(namespace, id);
        reply::AcknowledgeResponse { results }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_last_message_id(
        &self,
        context: &Context<'_>,
        request: GetLastMessageIdRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let topics = self.topics.borrow();
        let topic = topics.by_name.get(&(context.namespace, request.topic.into()));
        let last = topic.and_then(|topic| topic.events.last_key_value()).map(|(number, _)| *number);
        let event = |number| self.kept_event(context.namespace, request.topic, number);
        let answer = reply::GetLastMessageIdResponse {
            message_id: last.and_then(event).map(|message| message.id),
            position: last.map(position),
        };
        answer.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn subscribe_durable<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: SubscribeDurableRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        if self.has_durable(context, &request)? {
            return self.deliver_durable(context, request, sink).await;
        }
        let mut record = Vec::with_capacity(request.encoded_len());
        request.encode(&mut record);
        sink.write(Method::PUBSUB_SUBSCRIBE_DURABLE, record).await?;
        self.deliver_durable(context, request, sink).await
    }

    async fn make_subscription(
        &self,
        context: &Context<'_>,
        request: &[u8],
        _: &mut Reply,
    ) -> Result<(), Error> {
        let request =
            SubscribeDurableRequest::decode(request).map_err(crate::interfaces::malformed)?;
        if self.has_durable(context, &request)? {
            return Ok(());
        }
        let filter = Filter::parse(request.filter)
            .map_err(|what| Error::field("FILTER_INVALID", "filter", what))?;
        let (namespace, id) = (context.namespace, request.subscription_id);
        let mut topics = self.topics.borrow_mut();
        let Topics { by_name, durable, .. } = &mut *topics;
        let latest = Start { start: Some(StartStart::Latest(Empty {})) };
        let topic = by_name.entry((namespace, request.topic.into())).or_default();
        let start = place(topic, &request.start.unwrap_or(latest))?;
        let filter = (request.filter, filter);
        let subscription =
            Durable::new(context.revision, request.topic, filter, request.ordered, start);
        self.keep_subscription(context, id, &subscription);
        self.keep_durable_progress(context, id, &subscription.progress);
        topic.durable.push(id.into());
        durable.insert((namespace, id.into()), subscription);
        Ok(())
    }
}

impl Memstore {
    /// Keeps an event, if it is to be kept; where.
    pub(super) fn keep_event(
        &self,
        context: &Context<'_>,
        name: &str,
        (message, expires_us): (&Message, u64),
        is_persistent: bool,
    ) -> Option<Position> {
        let mut topics = self.topics.borrow_mut();
        let key = (context.namespace, Box::from(name));
        let is_heard = topics.by_name.get(&key).is_some_and(|topic| !topic.durable.is_empty());
        if !is_persistent && !is_heard {
            return None;
        }
        let topic = topics.by_name.entry(key).or_default();
        let (number, sent_us) = (topic.next, context.now_us);
        let mut value = Vec::with_capacity(16 + message.encoded_len());
        put_numbers(&mut value, &[sent_us, expires_us]);
        message.encode_raw(&mut value);
        self.keep(context, Room::Topics, &event_key(name, number), &value);
        let bytes = value.len() as u64 + EVENT_BYTES;
        topic.insert(number, Known { sent_us, expires_us, bytes });
        self.trim_topic(context, name, &mut topics);
        drop(topics);
        self.event_sources.tell(context.namespace, name);
        Some(position(number))
    }

    /// Whether events are kept for anybody on this shard.
    pub(in super::super) fn has_durable_subscriptions(&self) -> bool {
        !self.topics.borrow().durable.is_empty()
    }

    /// Forgets a durable subscription; whether there was one.
    pub(super) fn forget_durable(&self, context: &Context<'_>, id: &str) -> bool {
        let mut topics = self.topics.borrow_mut();
        let Some(gone) = topics.durable.remove(&(context.namespace, id.into())) else {
            return false;
        };
        self.forget(context, Room::Topics, &room_key(SUBSCRIPTION, id, &[]));
        self.forget(context, Room::Topics, &room_key(PROGRESS, id, &[]));
        if let Some(topic) = topics.by_name.get_mut(&(context.namespace, gone.topic.clone())) {
            topic.durable.retain(|other| **other != *id);
        }
        self.trim_topic(context, &gone.topic, &mut topics);
        drop(topics);
        self.tell_durable(context.namespace, id);
        true
    }

    /// Whether there is such a subscription.
    ///
    /// # Errors
    /// FAILED_PRECONDITION `SUBSCRIPTION_MISMATCH`: it hears something else.
    fn has_durable(
        &self,
        context: &Context<'_>,
        request: &SubscribeDurableRequest<'_>,
    ) -> Result<bool, Error> {
        let topics = self.topics.borrow();
        let key = (context.namespace, Box::from(request.subscription_id));
        let Some(there) = topics.durable.get(&key) else { return Ok(false) };
        let is_it = *there.topic == *request.topic
            && *there.filter_text == *request.filter
            && there.ordered == request.ordered;
        if is_it { Ok(true) } else { Err(mismatch(request.subscription_id)) }
    }

    /// Sends what a subscription hears and has not done, as fast as its stream takes and acknowledges it.
    async fn deliver_durable<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: SubscribeDurableRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let (namespace, id) = (context.namespace, request.subscription_id);
        let mut events = self.event_sources.attend(namespace, request.topic);
        let mut changes = self.event_sources.attend(namespace, &source_name(id));
        let Some((attached, next)) = self.attach_durable(context, &request) else { return Ok(()) };
        let started =
            reply::Started { subscription_id: id.to_owned(), position: Some(position(next)) };
        sink.send(super::calls::response(reply::subscribe_response::Event::Started(started)))
            .await?;
        loop {
            match attached.next(sink.now_us()) {
                Next::Say(delivery) => {
                    let event = reply::subscribe_response::Event::Delivery(*delivery);
                    sink.send(super::calls::response(event)).await?;
                }
                Next::Wait(until_us) => {
                    sink.wait(events.told().or(changes.told()), until_us).await?;
                }
                Next::End => return Ok(()),
            }
        }
    }

    fn attach_durable<'a>(
        &'a self,
        context: &Context<'_>,
        request: &SubscribeDurableRequest<'a>,
    ) -> Option<(Attached<'a>, u64)> {
        let (namespace, id) = (context.namespace, request.subscription_id);
        let ack_wait_us = request.ack_wait.as_ref().map_or(LEASE_DEFAULT_MS, span_ms) * 1000;
        let in_flight_max = match request.max_in_flight {
            0 => IN_FLIGHT_DEFAULT,
            asked => asked.min(IN_FLIGHT_MAX),
        };
        let mut topics = self.topics.borrow_mut();
        topics.attached += 1;
        let number = topics.attached;
        let subscription = topics.durable.get_mut(&(namespace, id.into()))?;
        subscription.attach(number, Stream::new(ack_wait_us, in_flight_max));
        let next = subscription.progress.next();
        let created = subscription.created;
        Some((Attached { store: self, namespace, id, created, number }, next))
    }

    /// The first event from a number on that a subscription hears.
    fn heard_from(
        &self,
        namespace: u32,
        topic: &Topic,
        (name, filter): (&str, &Filter),
        (from, now_us): (u64, u64),
    ) -> Option<u64> {
        let hears = |number: u64, known: &Known| {
            known.expires_us > now_us
                && (filter.is_empty()
                    || self.kept_event(namespace, name, number).is_some_and(|message| {
                        filter.matches(|one| message.attributes.get(one).map(String::as_str))
                    }))
        };
        let mut events = topic.events.range(from..);
        events.find(|(number, known)| hears(**number, known)).map(|(number, _)| *number)
    }

    /// Moves a subscription on past what is not for it.
    fn settle(&self, context: &Context<'_>, topic: &Topic, subscription: &mut Durable) {
        let Durable { progress, filter, topic: name, .. } = subscription;
        progress.settle(|from| {
            let place = (from, context.now_us);
            self.heard_from(context.namespace, topic, (name, filter), place).unwrap_or(topic.next)
        });
    }

    /// Removes the oldest events that all subscriptions have done with, as far as there are more than are kept.
    fn trim_topic(&self, context: &Context<'_>, name: &str, topics: &mut Topics) {
        let Topics { by_name, durable, .. } = topics;
        let Some(topic) = by_name.get_mut(&(context.namespace, name.into())) else { return };
        if !topic.is_large() {
            return;
        }
        let mut done = topic.next;
        for id in &topic.durable {
            let Some(subscription) = durable.get_mut(&(context.namespace, id.clone())) else {
                continue;
            };
            let before = subscription.progress.next();
            self.settle(context, topic, subscription);
            if subscription.progress.next() != before {
                self.keep_durable_progress(context, id, &subscription.progress);
            }
            done = done.min(subscription.progress.next());
        }
        while topic.is_large()
            && let number = topic.first()
            && number < done
        {
            topic.remove(number);
            self.forget(context, Room::Topics, &event_key(name, number));
            if number + 1 == topic.next {
                // No number is used twice, whatever is left.
                let mut value = Vec::new();
                put_numbers(&mut value, &[topic.next]);
                self.keep(context, Room::Topics, &room_key(NEXT, name, &[]), &value);
            }
        }
    }

    fn tell_durable(&self, namespace: u32, id: &str) {
        self.event_sources.tell(namespace, &source_name(id));
    }

    fn kept_event(&self, namespace: u32, topic: &str, number: u64) -> Option<Message> {
        let value = self.kept(namespace, Room::Topics, &event_key(topic, number))?;
        Message::decode(value.slice(16..)).ok()
    }

    fn keep_durable_progress(&self, context: &Context<'_>, id: &str, progress: &Progress) {
        let mut value = Vec::new();
        progress.put(&mut value);
        self.keep(context, Room::Topics, &room_key(PROGRESS, id, &[]), &value);
    }

    fn keep_subscription(&self, context: &Context<'_>, id: &str, subscription: &Durable) {
        let Revision { lsn, epoch, minor } = subscription.created;
        let (topic, filter) = (&subscription.topic, &subscription.filter_text);
        let mut value = Vec::new();
        let ordered = u64::from(subscription.ordered);
        put_numbers(&mut value, &[lsn, u64::from(epoch), minor, ordered, topic.len() as u64]);
        value.extend_from_slice(topic.as_bytes());
        value.extend_from_slice(filter.as_bytes());
        self.keep(context, Room::Topics, &room_key(SUBSCRIPTION, id, &[]), &value);
    }

    /// What the topics of a restored store hold.
    pub(in super::super) fn restore_topics(&self) -> Topics {
        let mut topics = Topics::default();
        let mut progress = Vec::new();
        self.each_kept(Room::Topics, |namespace, key, value| {
            let Some((kind, name, rest)) = read_room_key(key) else { return };
            let mut numbers = Numbers(value);
            let key = (namespace, Box::from(name));
            match kind {
                EVENT => {
                    let number = rest.try_into().map_or(0, u64::from_be_bytes);
                    let (sent_us, expires_us) = (numbers.next(), numbers.next());
                    let bytes = value.len() as u64 + EVENT_BYTES;
                    let topic = topics.by_name.entry(key).or_default();
                    topic.insert(number, Known { sent_us, expires_us, bytes });
                }
                NEXT => {
                    let topic = topics.by_name.entry(key).or_default();
                    topic.next = topic.next.max(numbers.next());
                }
                SUBSCRIPTION => {
                    if let Some(subscription) = read_subscription(value) {
                        let topic = (namespace, subscription.topic.clone());
                        topics.by_name.entry(topic).or_default().durable.push(name.into());
                        topics.durable.insert(key, subscription);
                    }
                }
                PROGRESS => progress.push((key, Progress::read(value))),
                _ => {}
            }
        });
        for (key, progress) in progress {
            if let Some(subscription) = topics.durable.get_mut(&key) {
                subscription.progress = progress;
            }
        }
        // In the order of their names: what is written in it is the same, whatever order they were found in.
        topics.by_name.values_mut().for_each(|topic| topic.durable.sort_unstable());
        topics
    }
}

fn read_subscription(value: &[u8]) -> Option<Durable> {
    let mut numbers = Numbers(value);
    let (lsn, epoch, minor) = (numbers.next(), numbers.next() as u32, numbers.next());
    let (ordered, topic_bytes) = (numbers.next() != 0, numbers.next() as usize);
    let (topic, filter) = numbers.0.split_at_checked(topic_bytes)?;
    let (topic, filter) = (std::str::from_utf8(topic).ok()?, std::str::from_utf8(filter).ok()?);
    let created = Revision { lsn, epoch, minor };
    Some(Durable::new(created, topic, (filter, Filter::parse(filter).ok()?), ordered, 0))
}

/// What is next for a stream.
enum Next {
    Say(Box<reply::EventDelivery>),
    /// Until then, if nothing is told before.
    Wait(u64),
    /// The subscription was deleted.
    End,
}

/// A stream's part in a subscription; given up when it is dropped.
struct Attached<'a> {
    store: &'a Memstore,
    namespace: u32,
    id: &'a str,
    created: Revision,
    number: u64,
}

impl Attached<'_> {
    fn next(&self, now_us: u64) -> Next {
        let (store, namespace) = (self.store, self.namespace);
        let mut topics = store.topics.borrow_mut();
        let Topics { by_name, durable, .. } = &mut *topics;
        let found = durable.get_mut(&(namespace, self.id.into()));
        let Some(subscription) = found.filter(|one| one.created == self.created) else {
            return Next::End;
        };
        let (name, filter) = (subscription.topic.clone(), subscription.filter.clone());
        let Some(topic) = by_name.get(&(namespace, name.clone())) else {
            return Next::Wait(NO_END);
        };
        let first_from =
            |from| store.heard_from(namespace, topic, (&name, &filter), (from, now_us));
        let handed = subscription.hand(self.number, topic.next, now_us, first_from);
        let Some(Handed { number, attempt, until_us }) = handed else {
            return Next::Wait(subscription.next_end_us().unwrap_or(NO_END));
        };
        let sent_us = topic.events.get(&number).map_or(0, |known| known.sent_us);
        Next::Say(Box::new(reply::EventDelivery {
            topic: name.to_string(),
            position: Some(position(number)),
            delivery: Some(Delivery {
                message: store.kept_event(namespace, &name, number),
                receipt: subscription.receipt(namespace, self.id, number),
                attempt,
                sent_at: Some(time(sent_us)),
                lease_expires_at: Some(time(until_us)),
            }),
        }))
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        let mut topics = self.store.topics.borrow_mut();
        if let Some(subscription) = topics.durable.get_mut(&(self.namespace, self.id.into())) {
            subscription.detach(self.number);
        }
        drop(topics);
        self.store.tell_durable(self.namespace, self.id);
    }
}

fn event_key(topic: &str, number: u64) -> Vec<u8> {
    room_key(EVENT, topic, &number.to_be_bytes())
}

/// Topics have no such name.
fn source_name(id: &str) -> String {
    format!("/{id}")
}

fn position(number: u64) -> Position {
    Position { partition: 0, offset: number.to_string() }
}

/// Where a new subscription begins.
fn place(topic: &Topic, start: &Start<'_>) -> Result<u64, Error> {
    let (position, is_after) = match start.start {
        None | Some(StartStart::Latest(_)) => return Ok(topic.next),
        Some(StartStart::Earliest(_)) => return Ok(topic.first()),
        Some(StartStart::Since(time)) => return Ok(topic.since(moment_us(&time))),
        Some(StartStart::Cursor(_)) => {
            let expected = "is of no topic: begin at a position or a moment";
            return Err(Error::field("CURSOR_INVALID", "start.cursor", expected));
        }
        Some(StartStart::At(position)) => (position, false),
        Some(StartStart::After(position)) => (position, true),
    };
    let field = if is_after { "start.after" } else { "start.at" };
    if position.partition != 0 {
        let expected = "must be 0: a topic has one partition";
        return Err(Error::field("PARTITION_UNKNOWN", format!("{field}.partition"), expected));
    }
    let offset = position.offset.parse::<u64>().ok().filter(|offset| *offset <= topic.next);
    let Some(offset) = offset else {
        let expected = "is no offset of this topic that was told";
        return Err(Error::field("POSITION_INVALID", format!("{field}.offset"), expected));
    };
    let (place, first) = (offset + u64::from(is_after), topic.first());
    if place < first {
        let message = format!("what was to be read is gone: the earliest event is {first}");
        return Err(Error::new(Kind::OutOfRange, "POSITION_TRIMMED", message)
            .with("earliest", first.to_string()));
    }
    Ok(place)
}

#[cold]
pub(crate) fn not_found(id: &str) -> Error {
    let message = format!("there is no durable subscription {id}: SubscribeDurable makes it");
    Error::new(Kind::NotFound, "SUBSCRIPTION_NOT_FOUND", message)
}

#[cold]
pub(crate) fn mismatch(id: &str) -> Error {
    let message = format!(
        "the subscription {id} has another topic or filter, or is ordered otherwise: use the same, or another id"
    );
    Error::new(Kind::FailedPrecondition, "SUBSCRIPTION_MISMATCH", message)
}

#[cold]
pub(crate) fn receipt_expired() -> Error {
    Error::new(
        Kind::FailedPrecondition,
        "RECEIPT_EXPIRED",
        "the receipt is of no delivery of this subscription that waits for it: the event was acknowledged before",
    )
}
