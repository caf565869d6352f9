//! Durable subscriptions: each is a consumer group of its topic's stream, whose consumers are the streams of its subscribers.
//!
//! What Redis keeps no place for lies in the hash `_prism:subscription:<namespace>:<subscription>`: its `topic`, `filter`, whether it is
//! `ordered`, and since when it stands (`since-us`), so that another of its name knows no receipt of it. What was handed out and is not
//! acknowledged are Redis's pending entries; what a stream leaves behind is given back at once, or late when its time is over.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use prism_io::rt;
use prism_proto::prism::pubsub::v1 as reply;
use prism_proto::prism::r#type::v1::Delivery;
use prism_proto::view::pubsub::{
    AcknowledgeRequest, GetLastMessageIdRequest, PublishPersistentRequest, SubscribeDurableRequest,
};
use prost::Message as _;

use super::super::Redis;
use super::super::codec::{self, Value};
use super::super::errors;
use super::super::groups::Beginning;
use super::super::keyvalue::{Answer, put_key};
use super::super::scripts::Script;
use super::super::stream::Id;
use super::super::tail;
use super::super::walk::{trimmed_to, unknown_position};
use super::TopicLog;
use super::event::read_event;
use crate::call::{Context, PageSink, Reply};
use crate::error::Error;
use crate::filter::Filter;
use crate::interfaces::message::{item_status, span_ms, time};
use crate::interfaces::pubsub::PubSubPersistent;
use crate::limits::{IN_FLIGHT_DEFAULT, IN_FLIGHT_MAX, LEASE_DEFAULT_MS};
use crate::memory::pubsub::{Event, mismatch, not_found, receipt_expired, response};
use crate::shared::Key;
use crate::sharing::Seal;
use crate::sources::Sources;

/// Events of one take, and bytes of them.
const EVENTS_MAX: usize = 64;
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// How often it is looked again while Redis cannot be asked.
const AGAIN_US: u64 = 200_000;

/// The streams of durable subscriptions on this shard.
#[derive(Default)]
pub(super) struct Streams {
    /// By namespace and subscription, in the order in which they came.
    attached: RefCell<HashMap<Key, BTreeSet<u64>>>,
    /// Streams that there were.
    came: Cell<u64>,
    sources: Sources,
}

/// A stream's part in a subscription; given up when it is dropped.
struct Attached {
    streams: Rc<Streams>,
    redis: Rc<Redis>,
    namespace_name: Box<str>,
    key: Key,
    topic: Box<str>,
    number: u64,
    /// What Redis calls the consumer.
    consumer: Box<str>,
}

impl Attached {
    fn is_first(&self) -> bool {
        let attached = self.streams.attached.borrow();
        attached.get(&self.key).and_then(BTreeSet::first) == Some(&self.number)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut attached = self.streams.attached.borrow_mut();
        if let Some(of_subscription) = attached.get_mut(&self.key) {
            of_subscription.remove(&self.number);
            if of_subscription.is_empty() {
                attached.remove(&self.key);
            }
        }
        drop(attached);
        let (streams, redis, key) = (self.streams.clone(), self.redis.clone(), self.key.clone());
        let stream = format!("{}:{}", self.namespace_name, self.topic);
        let consumer = self.consumer.clone();
        rt::spawn(async move {
            // What cannot be given back now comes again when its time is over.
            let _ = tail::call(&redis.link, |out| {
                codec::put_command(out, 6);
                codec::put(out, b"EVAL");
                codec::put(out, Script::TopicLeave.source().as_bytes());
                codec::put_number(out, 1);
                let parts = [&*stream, &*key.1, &*consumer];
                parts.iter().for_each(|part| codec::put(out, part.as_bytes()));
            })
            .await;
            streams.sources.tell(key.0, &key.1);
        });
    }
}

/// Adds the names of a topic's stream and of what is kept of a subscription.
fn put_keys(out: &mut Vec<u8>, context: &Context<'_>, topic: &str, id: &str) {
    put_key(out, context, topic);
    put_kept(out, context, id);
}

fn put_kept(out: &mut Vec<u8>, context: &Context<'_>, id: &str) {
    let name = format!("{}:{id}", context.namespace_name);
    codec::put_pieces(out, [b"_prism:subscription:", name.as_bytes(), b""]);
}

fn seal(namespace: u32, id: &str) -> Seal<'_> {
    // The second is no name of a group, whose receipts are none of a subscription.
    Seal { namespace, names: [id, "/"], created: [0; 3] }
}

/// What a stream has taken.
enum Taken {
    /// The subscription is gone.
    Gone,
    /// Events, which delivery each is, and in how many µs something may come again.
    Events(Vec<(u32, Id, Event)>, Option<u64>),
}

impl PubSubPersistent for TopicLog {
    async fn publish_persistent(
        &self,
        context: &Context<'_>,
        request: PublishPersistentRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let (message_id, position) =
            self.publish_one(context, request.topic, request.message).await?;
        reply::PublishPersistentResponse { message_id, position }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn acknowledge(
        &self,
        context: &Context<'_>,
        request: AcknowledgeRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let id = request.subscription_id;
        let handed: Vec<_> = request
            .receipts
            .iter()
            .map(|receipt| seal(context.namespace, id).read(receipt))
            .collect();
        let done = handed.iter().flatten().map(|&(since_us, ms, seq)| (since_us, Id { ms, seq }));
        let count = done.clone().count();
        let accepted = self.acknowledge_all(context, request.topic, id, done).await?;
        if accepted.len() != count {
            return Err(errors::unexpected(context));
        }
        self.streams.sources.tell(context.namespace, id);
        let (expired, mut accepted) = (item_status(&receipt_expired()), accepted.into_iter());
        let results = handed.iter().map(|one| {
            let is_done = one.is_some() && accepted.next() == Some(true);
            reply::AcknowledgeResult { status: (!is_done).then(|| expired.clone()) }
        });
        let results = results.collect();
        reply::AcknowledgeResponse { results }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_last_message_id(
        &self,
        context: &Context<'_>,
        request: GetLastMessageIdRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let write = |out: &mut Vec<u8>| {
            codec::put_command(out, 6);
            codec::put(out, b"XREVRANGE");
            put_key(out, context, request.topic);
            [&b"+"[..], b"-", b"COUNT", b"1"].iter().for_each(|part| codec::put(out, part));
        };
        let read = self.redis.link.call(context, 1, write).await?;
        let mut answer = Answer::new(context, &read);
        let mut told = reply::GetLastMessageIdResponse::default();
        if answer.array()? == 1 {
            let (id, event) = read_event(context, request.topic, &mut answer)?;
            told.message_id = Some(event.message.id);
            told.position = Some(id.position());
        }
        told.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn subscribe_durable<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: SubscribeDurableRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let filter = Filter::parse(request.filter)
            .map_err(|what| Error::field("FILTER_INVALID", "filter", what))?;
        let (namespace, id) = (context.namespace, request.subscription_id);
        let (since_us, last) = self.make_group(context, &request).await?;
        let mut events = self.redis.tail.attend(context.namespace_name, request.topic);
        let mut changes = self.streams.sources.attend(namespace, id);
        let attached = self.attach(context, &request, sink.now_us());
        let next = Id { ms: last.ms, seq: last.seq.saturating_add(1) };
        let started =
            reply::Started { subscription_id: id.to_owned(), position: Some(next.position()) };
        sink.send(response(reply::subscribe_response::Event::Started(started))).await?;
        loop {
            let mut until_us = u64::MAX;
            if !request.ordered || attached.is_first() {
                let now_us = sink.now_us();
                match self.take(context, &request, since_us, &attached.consumer).await {
                    Ok(Taken::Gone) => return Ok(()),
                    Ok(Taken::Events(taken, again_us)) if taken.is_empty() => {
                        until_us = again_us.map_or(u64::MAX, |us| now_us.saturating_add(us));
                    }
                    Ok(Taken::Events(taken, _)) => {
                        let handed = (since_us, taken, now_us);
                        self.hand(context, &request, &filter, handed, sink).await?;
                        continue;
                    }
                    // What was handed out already stays so, and the rest waits for Redis.
                    Err(error) if error.is_retryable() => {
                        until_us = now_us.saturating_add(AGAIN_US);
                    }
                    Err(error) => return Err(error),
                }
            }
            sink.wait(events.told().or(changes.told()), until_us).await?;
        }
    }
}

impl TopicLog {
    /// Makes the subscription if there is none of its name: since when it stands, and what it was handed last.
    async fn make_group(
        &self,
        context: &Context<'_>,
        request: &SubscribeDurableRequest<'_>,
    ) -> Result<(u64, Id), Error> {
        let (topic, id) = (request.topic, request.subscription_id);
        let start = request.start.unwrap_or_default();
        let (begun, field) = Beginning::of(context, topic, &start)?;
        let text = |id: Option<Id>, none: &str| id.map_or(none.to_owned(), Id::text);
        let (told, behind) = (text(begun.told, ""), text(begun.behind, "$"));
        let ordered = if request.ordered { "1" } else { "0" };
        let write = |out: &mut Vec<u8>| {
            put_keys(out, context, topic, id);
            for part in [id, topic, request.filter, ordered, &told, &behind] {
                codec::put(out, part.as_bytes());
            }
        };
        let read = self.redis.script(context, Script::TopicSubscribe, 2, 6, write).await?;
        let mut answer = Answer::new(context, &read);
        match answer.next()? {
            Value::Blob(b"mismatch") => Err(mismatch(id)),
            Value::Blob(b"unknown") => Err(unknown_position(&field)),
            Value::Array(2) => {
                let (first, id) = (answer.blob()?, answer.blob()?);
                let id = Id::read(context, id)?;
                if first == Some(b"trimmed") {
                    return Err(trimmed_to(id));
                }
                let since_us = first.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
                Ok((since_us.ok_or_else(|| errors::unexpected(context))?, id))
            }
            _ => Err(errors::unexpected(context)),
        }
    }

    fn attach(
        &self,
        context: &Context<'_>,
        request: &SubscribeDurableRequest<'_>,
        now_us: u64,
    ) -> Attached {
        let number = self.streams.came.get() + 1;
        self.streams.came.set(number);
        // Others know it by this name: of this process, of this start, of this stream.
        let consumer: Box<str> =
            format!("{}-{now_us:x}-{number:x}", self.redis.link.client_name()).into();
        let key: Key = (context.namespace, request.subscription_id.into());
        let mut attached = self.streams.attached.borrow_mut();
        attached.entry(key.clone()).or_default().insert(number);
        Attached {
            streams: self.streams.clone(),
            redis: self.redis.clone(),
            namespace_name: context.namespace_name.into(),
            key,
            topic: request.topic.into(),
            number,
            consumer,
        }
    }

    async fn take(
        &self,
        context: &Context<'_>,
        request: &SubscribeDurableRequest<'_>,
        since_us: u64,
        consumer: &str,
    ) -> Result<Taken, Error> {
        let (topic, id) = (request.topic, request.subscription_id);
        let in_flight = match request.max_in_flight {
            0 => IN_FLIGHT_DEFAULT,
            asked => asked.min(IN_FLIGHT_MAX),
        };
        let write = |out: &mut Vec<u8>| {
            put_keys(out, context, topic, id);
            codec::put(out, id.as_bytes());
            codec::put_number(out, since_us);
            codec::put(out, consumer.as_bytes());
            codec::put_number(out, EVENTS_MAX as u64);
            codec::put_number(out, BYTES_MAX as u64);
            codec::put_number(out, ack_wait_ms(request));
            codec::put_number(out, in_flight.into());
            codec::put(out, if request.ordered { b"1" } else { b"0" });
        };
        let read = self.redis.script(context, Script::TopicNext, 2, 8, write).await?;
        let mut answer = Answer::new(context, &read);
        let parts = answer.array()?;
        if parts == 0 {
            return Ok(Taken::Gone);
        }
        let again_us = u64::try_from(answer.integer()?).ok().map(|ms| ms.saturating_mul(1000));
        let mut taken = Vec::new();
        for _ in 0..(parts - 1) / 2 {
            let attempt = u32::try_from(answer.integer()?).unwrap_or(u32::MAX);
            let (id, event) = read_event(context, topic, &mut answer)?;
            taken.push((attempt, id, event));
        }
        Ok(Taken::Events(taken, again_us))
    }

    /// Sends what was taken, as far as it is for the subscription and still held.
    async fn hand<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: &SubscribeDurableRequest<'_>,
        filter: &Filter,
        (since_us, taken, taken_us): (u64, Vec<(u32, Id, Event)>, u64),
        sink: &mut S,
    ) -> Result<(), Error> {
        let (topic, id) = (request.topic, request.subscription_id);
        let now_us = sink.now_us();
        let is_for_it = |event: &Event| {
            let attribute = |name: &str| event.message.attributes.get(name).map(String::as_str);
            event.expires_us > now_us && (filter.is_empty() || filter.matches(attribute))
        };
        let (to_send, others): (Vec<_>, Vec<_>) =
            taken.into_iter().partition(|(_, _, event)| is_for_it(event));
        if !others.is_empty() {
            let done = others.iter().map(|(_, id, _)| (since_us, *id));
            self.acknowledge_all(context, topic, id, done).await?;
        }
        let until_us = taken_us.saturating_add(ack_wait_ms(request).saturating_mul(1000));
        let seal = seal(context.namespace, id);
        for (attempt, id, event) in to_send {
            if sink.now_us() >= until_us {
                break;
            }
            let delivery = reply::EventDelivery {
                topic: topic.to_owned(),
                position: Some(id.position()),
                delivery: Some(Delivery {
                    receipt: seal.receipt(since_us, id.ms, id.seq),
                    attempt,
                    sent_at: Some(time(event.sent_us)),
                    lease_expires_at: Some(time(until_us)),
                    message: Some(event.message),
                }),
            };
            let event = reply::subscribe_response::Event::Delivery(delivery);
            sink.send(response(event)).await?;
        }
        Ok(())
    }

    /// Takes note of what was done; for each whether it waited for that.
    async fn acknowledge_all(
        &self,
        context: &Context<'_>,
        topic: &str,
        id: &str,
        done: impl Iterator<Item = (u64, Id)> + Clone,
    ) -> Result<Vec<bool>, Error> {
        let count = done.clone().count();
        let write = |out: &mut Vec<u8>| {
            put_keys(out, context, topic, id);
            codec::put(out, topic.as_bytes());
            codec::put(out, id.as_bytes());
            for (since_us, id) in done.clone() {
                codec::put_number(out, since_us);
                codec::put(out, id.text().as_bytes());
            }
        };
        let arguments = 2 + 2 * count;
        let read =
            self.redis.script(context, Script::TopicAcknowledge, 2, arguments, write).await?;
        let mut answer = Answer::new(context, &read);
        match answer.next()? {
            Value::Array(count) => (0..count).map(|_| Ok(answer.integer()? == 1)).collect(),
            Value::Blob(b"missing") => Err(not_found(id)),
            Value::Blob(b"mismatch") => Err(mismatch(id)),
            _ => Err(errors::unexpected(context)),
        }
    }

    /// Deletes a durable subscription; whether there was one.
    pub(super) async fn delete_durable(
        &self,
        context: &Context<'_>,
        id: &str,
    ) -> Result<bool, Error> {
        let write = |out: &mut Vec<u8>| {
            put_kept(out, context, id);
            codec::put(out, id.as_bytes());
            codec::put_pieces(out, [context.namespace_name.as_bytes(), b":", b""]);
        };
        let read = self.redis.script(context, Script::TopicUnsubscribe, 1, 2, write).await?;
        let existed = Answer::new(context, &read).integer()? == 1;
        self.streams.sources.tell(context.namespace, id);
        Ok(existed)
    }
}

fn ack_wait_ms(request: &SubscribeDurableRequest<'_>) -> u64 {
    request.ack_wait.as_ref().map_or(LEASE_DEFAULT_MS, span_ms)
}
