//! The interfaces of PubSubService on Kafka: one topic per topic, and for those who are subscribed one consumer per shard and topic.
//!
//! An event's ordering key is the Kafka key, its attributes are headers; its identity and its expiry are headers of Prism's own.
//! Whoever is subscribed hears what is published from then on; the subscriptions of a shard share one [`Tail`] of the topic, and each has a
//! bounded line of its own, so that a slow one holds nobody up.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use prism_io::bell::Bell;
use prism_io::rt;
use prism_proto::prism::pubsub::v1 as reply;
use prism_proto::prism::r#type::v1::{Message, Position};
use prism_proto::view::pubsub::{
    PublishBatchRequest, PublishOrderedRequest, PublishRequest, PublishWithAttributesRequest,
    SubscribeFilteredRequest, SubscribeRequest, UnsubscribeRequest,
};
use prism_proto::view::types as view;
use prost::Message as _;
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::types::RDKafkaErrorCode as Code;

use super::Kafka;
use super::cluster::Outgoing;
use super::errors::Fault;
use super::link::Link;
use super::names::{partition_of, subscription_of, topic_of};
use super::reader::{Found, Lease};
use super::record::{ReadHeaders, headers, own_header, read_headers};
use super::stream::position;
use crate::call::{Context, PageSink, Reply};
use crate::error::Error;
use crate::filter::Filter;
use crate::interfaces::message::{expires_us, identity, item_status, time};
use crate::interfaces::pubsub::{PubSubBasic, PubSubFiltering, PubSubOrdering};
use crate::limits::Limits;
use crate::memory::pubsub::{Event, Heard, Subscriptions, deliver};
use crate::shared::{Key, Shared};

/// The headers of Prism's own.
pub(super) const MESSAGE_ID: &str = "prism.message-id";
/// Milliseconds since the epoch.
const EXPIRES_AT: &str = "prism.expires-at";

/// Records that are shared out before the other tasks of the shard have their turn.
const EVENTS_PER_TURN: usize = 64;

/// After so long a tail that has lost its topic looks for it again.
const AGAIN: Duration = Duration::from_millis(200);

/// Who listens on this shard.
#[derive(Default)]
pub(super) struct Topics {
    subscriptions: Subscriptions,
    tails: Shared<Tail>,
}

/// What comes to a topic, for all who are subscribed to it on this shard; ends when the last of them has left.
struct Tail {
    bell: RefCell<Arc<Bell>>,
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.bell.borrow().ring();
    }
}

impl PubSubBasic for Kafka {
    async fn publish(
        &self,
        context: &Context<'_>,
        request: PublishRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let (message_id, position) =
            self.publish_one(context, request.topic, request.message).await?;
        reply::PublishResponse { message_id, position }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn publish_batch(
        &self,
        context: &Context<'_>,
        request: PublishBatchRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let messages: Vec<_> = request.messages.iter().collect();
        let published = self.publish_all(context, request.topic, &messages).await?;
        let results = published.into_iter().map(|(message_id, landed)| match landed {
            Ok(position) => reply::PublishBatchResult { status: None, message_id, position },
            Err(error) => reply::PublishBatchResult {
                status: Some(item_status(&error)),
                message_id: String::new(),
                position: None,
            },
        });
        let answer = reply::PublishBatchResponse { results: results.collect() };
        answer.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn unsubscribe(
        &self,
        context: &Context<'_>,
        request: UnsubscribeRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let id = request.subscription_id;
        self.topics.subscriptions.delete(context.namespace, id);
        let group = subscription_of(context.namespace_name, id);
        let existed = self.delete_group(context, &group).await?;
        let existed = existed.map_err(|fault| self.link.error(context, &fault))?;
        // Only of a durable one is it said: of others each host knows its own.
        let existed = existed.then_some(true);
        reply::UnsubscribeResponse { existed }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn subscribe<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: SubscribeRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let heard = Heard::Topic(request.topic.into());
        self.listen(context, request.topic, request.subscription_id, heard, sink).await
    }
}

impl PubSubFiltering for Kafka {
    async fn publish_with_attributes(
        &self,
        context: &Context<'_>,
        request: PublishWithAttributesRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let (message_id, position) =
            self.publish_one(context, request.topic, request.message).await?;
        let answer = reply::PublishWithAttributesResponse { message_id, position };
        answer.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn subscribe_filtered<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: SubscribeFilteredRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let filter = Filter::parse(request.filter)
            .map_err(|what| Error::field("FILTER_INVALID", "filter", what))?;
        let heard = Heard::Filtered(request.topic.into(), filter);
        self.listen(context, request.topic, request.subscription_id, heard, sink).await
    }
}

impl PubSubOrdering for Kafka {
    async fn publish_ordered(
        &self,
        context: &Context<'_>,
        request: PublishOrderedRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        // A key has one partition, and a partition's order is everybody's.
        let (message_id, position) =
            self.publish_one(context, request.topic, request.message).await?;
        reply::PublishOrderedResponse { message_id, position }.encode_raw(&mut reply.head);
        Ok(())
    }
}

impl Kafka {
    pub(super) async fn publish_one(
        &self,
        context: &Context<'_>,
        topic: &str,
        message: Option<view::Message<'_>>,
    ) -> Result<(String, Option<Position>), Error> {
        let published = self.publish_all(context, topic, &[message.unwrap_or_default()]).await?;
        match published.into_iter().next() {
            Some((id, landed)) => Ok((id, landed?)),
            None => Err(self.link.error(context, &Fault::closed())),
        }
    }

    async fn publish_all(
        &self,
        context: &Context<'_>,
        topic: &str,
        messages: &[view::Message<'_>],
    ) -> Result<Vec<(String, Result<Option<Position>, Error>)>, Error> {
        let (topic, partitions) = self.known_topic(context, topic).await?;
        let ids = messages.iter().enumerate();
        let ids: Vec<_> = ids.map(|(index, sent)| identity(context, index, sent)).collect();
        let landed = self.link.deliver(context, &topic, messages.len(), |outlet, mut parcels| {
            for (index, message) in messages.iter().enumerate() {
                let key = Some(message.ordering_key).filter(|key| !key.is_empty());
                outlet.send(Outgoing {
                    topic: &topic,
                    partition: Some(partition_of(key, partitions) as i32),
                    payload: Some(message.payload),
                    key: key.map(str::as_bytes),
                    timestamp: Some((context.now_us / 1000) as i64),
                    headers: Some(headers_of(message, &ids[index])),
                    delivery_opaque: parcels.of(index),
                });
            }
        });
        let landed = landed.await?;
        let placed = landed.into_iter().map(|landed| self.place(context, &topic, landed));
        Ok(ids.into_iter().zip(placed).collect())
    }

    async fn listen<S: PageSink>(
        &self,
        context: &Context<'_>,
        topic: &str,
        id: &str,
        heard: Heard,
        sink: &mut S,
    ) -> Result<(), Error> {
        let attached = self.topics.subscriptions.attach(context.namespace, id, heard)?;
        // Nothing that is published after this is missed.
        let _tail = self.tail(context, topic).await?;
        deliver(&attached, sink).await
    }

    /// The tail of a topic, which is at its end when it is new.
    async fn tail(&self, context: &Context<'_>, topic: &str) -> Result<Rc<Tail>, Error> {
        let key: Key = (context.namespace, topic.into());
        self.topics.tails.get(&key, async || self.make_tail(context, topic).await).await
    }

    async fn make_tail(&self, context: &Context<'_>, topic: &str) -> Result<Rc<Tail>, Error> {
        let kafka_topic = topic_of(context.namespace_name, topic);
        let bounds = self.bounds(context, &kafka_topic, None, true).await?;
        let places = bounds.map(|bounds| bounds.end).unwrap_or_default();
        let numbered = (0_u32..).zip(places.iter().copied()).collect();
        let reader = self.link.reader(context, &kafka_topic, numbered).await?;
        let tail = Rc::new(Tail { bell: RefCell::new(reader.bell()) });
        let follower = Follower {
            link: self.link.clone(),
            topics: self.topics.clone(),
            namespace: context.namespace,
            namespace_name: context.namespace_name.into(),
            topic: topic.into(),
            kafka_topic,
            places,
        };
        rt::spawn(follower.run(Rc::downgrade(&tail), reader));
        Ok(tail)
    }
}

/// What shares out a topic's records.
struct Follower {
    link: Rc<Link>,
    topics: Rc<Topics>,
    namespace: u32,
    namespace_name: Box<str>,
    topic: Box<str>,
    kafka_topic: String,
    /// The next record of each partition.
    places: Vec<i64>,
}

impl Follower {
    async fn run(mut self, tail: Weak<Tail>, reader: Lease) {
        let mut reader = Some(reader);
        while tail.strong_count() > 0 {
            match &reader {
                Some(of) => {
                    if !self.share_out(of, &tail).await {
                        reader = None;
                    }
                }
                None => {
                    rt::sleep(AGAIN).await;
                    reader = self.begin_again(&tail).await;
                }
            }
        }
        self.topics.tails.forget(&(self.namespace, self.topic.clone()), &tail);
    }

    /// Shares out what has come; false when the reader cannot go on by itself.
    async fn share_out(&mut self, reader: &Lease, tail: &Weak<Tail>) -> bool {
        let heard = reader.heard();
        for _ in 0..EVENTS_PER_TURN {
            match reader.look() {
                Found::Record(record) if record.topic() == self.kafka_topic => {
                    let number = record.partition() as usize;
                    let is_new = self.places.get(number).is_some_and(|at| record.offset() >= *at);
                    if is_new {
                        self.places[number] = record.offset() + 1;
                        let event = event_of(&self.topic, &record);
                        self.topics.subscriptions.publish(self.namespace, event);
                    }
                }
                Found::Record(_) | Found::End(_) => {}
                Found::Nothing => {
                    if tail.strong_count() > 0 {
                        reader.wait(heard).await;
                    }
                    return true;
                }
                Found::Failure(error) => {
                    let fault = Fault::of(&error);
                    let is_trimmed = error.rdkafka_error_code() == Some(Code::AutoOffsetReset);
                    if fault.is_missing || is_trimmed {
                        self.link.forget(&self.kafka_topic);
                        return false;
                    }
                }
            }
        }
        rt::yield_now().await;
        true
    }

    /// A reader from where the last one stood, as far as that is still there.
    async fn begin_again(&mut self, tail: &Weak<Tail>) -> Option<Lease> {
        let limits = Limits::default();
        let context = Context {
            namespace: self.namespace,
            namespace_name: &self.namespace_name,
            partition: 0,
            now_us: prism_io::clock::wall_us(),
            revision: Default::default(),
            limits: &limits,
            deadline_ns: crate::NO_DEADLINE_NS,
        };
        let topic = self.kafka_topic.clone();
        let partitions = self.link.partitions(&context, &topic, true).await.ok()??;
        let bounds =
            self.link.ask(&context, move |cluster| cluster.bounds(&topic, partitions, None));
        let bounds = bounds.await.ok()?;
        self.places.resize(bounds.end.len(), 0);
        for (place, (first, end)) in
            self.places.iter_mut().zip(bounds.first.iter().zip(&bounds.end))
        {
            // Of a topic that was made anew the offsets begin again.
            *place = if *place > *end { *first } else { (*place).max(*first) };
        }
        let numbered = (0_u32..).zip(self.places.iter().copied()).collect();
        let reader = self.link.reader(&context, &self.kafka_topic, numbered).await.ok()?;
        *tail.upgrade()?.bell.borrow_mut() = reader.bell();
        Some(reader)
    }
}

/// The event that a record is.
pub(super) fn event_of<M: rdkafka::Message>(topic: &str, record: &M) -> Event {
    let ReadHeaders { content_type, attributes } = read_headers(record);
    let key = record.key().map(|key| String::from_utf8_lossy(key).into_owned());
    let place = position(record.partition() as u32, record.offset());
    let expires_us = expiry_us(record);
    let sent_ms = record.timestamp().to_millis().unwrap_or(0).max(0) as u64;
    let id = own_header(record, MESSAGE_ID)
        .unwrap_or_else(|| format!("{}-{}", place.partition, place.offset));
    Event {
        topic: topic.into(),
        sent_us: sent_ms.saturating_mul(1000),
        expires_us,
        message: Message {
            id,
            content_type,
            attributes,
            ordering_key: key.unwrap_or_default(),
            expires_at: (expires_us != u64::MAX).then(|| time(expires_us)),
            payload: bytes::Bytes::copy_from_slice(record.payload().unwrap_or_default()),
            ..Default::default()
        },
    }
}

/// From when on an event is not delivered; `u64::MAX`: it always is.
fn expiry_us<M: rdkafka::Message>(record: &M) -> u64 {
    let ms = own_header(record, EXPIRES_AT).and_then(|text| text.parse::<u64>().ok());
    ms.map_or(u64::MAX, |ms| ms.saturating_mul(1000))
}

/// Whether a subscription with this filter hears an event at this time.
pub(super) fn is_heard<M: rdkafka::Message>(filter: &Filter, record: &M, now_us: u64) -> bool {
    if expiry_us(record) <= now_us {
        return false;
    }
    if filter.is_empty() {
        return true;
    }
    let attributes = read_headers(record).attributes;
    filter.matches(|name| attributes.get(name).map(String::as_str))
}

fn headers_of(message: &view::Message<'_>, id: &str) -> OwnedHeaders {
    let attributes: Vec<_> = message.attributes.iter().map(|one| (one.key, one.value)).collect();
    let all = headers(message.content_type, attributes.into_iter()).unwrap_or_default();
    let all = all.insert(Header { key: MESSAGE_ID, value: Some(id) });
    match expires_us(message) {
        u64::MAX => all,
        us => all.insert(Header { key: EXPIRES_AT, value: Some(&(us / 1000).to_string()) }),
    }
}
