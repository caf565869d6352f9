//! The *log* plan of topics on Redis: a topic is a Redis stream under `<namespace>:<topic>`, an event one of its entries, whose id is its
//! position.
//!
//! Beside the *volatile* plan (channels, [`pubsub`](super::pubsub)) it is what a namespace may have instead: its events are stored, can have
//! attributes and ordering keys, and wait for durable subscriptions; patterns are not offered. What all durable subscriptions are done
//! with is removed as events are published, but for what came in the last minute and the newest.
//!
//! - `event`: events as entries, and back
//! - `tail`: subscriptions that end with their streams
//! - `durable`: subscriptions that keep their place

mod durable;
mod event;
mod tail;

use std::rc::Rc;

use prism_io::rt;
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1 as reply;
use prism_proto::prism::r#type::v1::Position;
use prism_proto::view::pubsub::{
    PublishBatchRequest, PublishOrderedRequest, PublishRequest, PublishWithAttributesRequest,
    SubscribeFilteredRequest, SubscribeRequest, UnsubscribeRequest,
};
use prism_proto::view::types::Message;
use prost::Message as _;

use self::durable::Streams;
use self::event::put_event;
use self::tail::Listeners;
use super::Redis;
use super::codec;
use super::errors;
use super::keyvalue::Answer;
use super::scripts::Script;
use super::stream::Id;
use crate::backend::Admission;
use crate::call::{Context, PageSink, Reply};
use crate::ending::Endings;
use crate::error::Error;
use crate::filter::Filter;
use crate::interfaces::message::{identity, item_status};
use crate::interfaces::pubsub::{PubSubBasic, PubSubFiltering, PubSubOrdering};
use crate::lane::{Cell, LaneBackend, LaneOwner, LaneRecord, Outcome};
use crate::memory::pubsub::{Heard, deliver};

/// How long an event stays in any case, for those who listen without keeping their place.
const KEPT_MS: u64 = 60_000;

/// A shard's topics on the log plan, over its Redis; see the module.
pub struct TopicLog {
    redis: Rc<Redis>,
    listeners: Rc<Listeners>,
    streams: Rc<Streams>,
}

crate::backend! {
    TopicLog: "redis" =>
        pubsub_basic,
        pubsub_persistent,
        pubsub_filtering,
        pubsub_ordering,
}

impl TopicLog {
    /// Over a Redis, whose connections it shares.
    pub fn over(redis: Rc<Redis>) -> Self {
        TopicLog { redis, listeners: Rc::default(), streams: Rc::default() }
    }

    async fn publish_one(
        &self,
        context: &Context<'_>,
        topic: &str,
        message: Option<Message<'_>>,
    ) -> Result<(String, Option<Position>), Error> {
        let message = std::iter::once(message.unwrap_or_default());
        let published = self.publish_all(context, topic, message).await?;
        match published.into_iter().next() {
            Some((id, place)) => Ok((id, Some(place?))),
            None => Err(errors::unexpected(context)),
        }
    }

    /// Stores events: their identities, and where they are or why they are not.
    async fn publish_all<'a>(
        &self,
        context: &Context<'_>,
        topic: &str,
        messages: impl Iterator<Item = Message<'a>>,
    ) -> Result<Vec<(String, Result<Position, Error>)>, Error> {
        let (mut ids, mut commands) = (Vec::new(), Vec::new());
        for (index, message) in messages.enumerate() {
            let id = identity(context, index, &message);
            put_event(&mut commands, context, topic, &id, &message);
            ids.push(id);
        }
        let write = |out: &mut Vec<u8>| out.extend_from_slice(&commands);
        let read = self.redis.link.call(context, ids.len(), write).await?;
        let mut answer = Answer::new(context, &read);
        let mut published = Vec::with_capacity(ids.len());
        for id in ids {
            let place = match answer.blob() {
                Ok(place) => Id::read(context, place).map(Id::position),
                Err(error) => Err(error),
            };
            published.push((id, place));
        }
        self.note_published(context, topic, published.len());
        Ok(published)
    }

    /// Counts events that were published, and trims their topic now and then.
    fn note_published(&self, context: &Context<'_>, topic: &str, published: usize) {
        if self.redis.trims.is_due(context.namespace, topic, published) {
            let stream = format!("{}:{topic}", context.namespace_name);
            let link = self.redis.link.clone();
            rt::spawn(async move {
                let trim = super::tail::call(&link, |out| {
                    codec::put_command(out, 5);
                    codec::put(out, b"EVAL");
                    codec::put(out, Script::TopicTrim.source().as_bytes());
                    codec::put_number(out, 1);
                    codec::put(out, stream.as_bytes());
                    codec::put_number(out, KEPT_MS);
                });
                // Where that fails, the next one goes on.
                drop(trim.await);
            });
        }
    }

    async fn listen<S: PageSink>(
        &self,
        context: &Context<'_>,
        (topic, id): (&str, &str),
        heard: Heard,
        sink: &mut S,
    ) -> Result<(), Error> {
        let _tail = self.listeners.tail(&self.redis, context, topic).await?;
        // Nothing that is published after this is missed, and nothing from before comes.
        let attached = self.listeners.subscriptions.attach(context.namespace, id, heard)?;
        deliver(&attached, sink).await
    }
}

impl PubSubBasic for TopicLog {
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
        let published = self.publish_all(context, request.topic, request.messages.iter()).await?;
        let result = |(message_id, place): (String, Result<Position, Error>)| match place {
            Ok(position) => {
                reply::PublishBatchResult { status: None, message_id, position: Some(position) }
            }
            Err(error) => reply::PublishBatchResult {
                status: Some(item_status(&error)),
                ..Default::default()
            },
        };
        let results = published.into_iter().map(result).collect();
        reply::PublishBatchResponse { results }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn unsubscribe(
        &self,
        context: &Context<'_>,
        request: UnsubscribeRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let existed = self.delete_durable(context, request.subscription_id).await?;
        self.listeners.subscriptions.delete(context.namespace, request.subscription_id);
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
        self.listen(context, (request.topic, request.subscription_id), heard, sink).await
    }
}

impl PubSubFiltering for TopicLog {
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
        self.listen(context, (request.topic, request.subscription_id), heard, sink).await
    }
}

impl PubSubOrdering for TopicLog {
    async fn publish_ordered(
        &self,
        context: &Context<'_>,
        request: PublishOrderedRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        // Everybody reads events in the order of their ids.
        let (message_id, position) =
            self.publish_one(context, request.topic, request.message).await?;
        reply::PublishOrderedResponse { message_id, position }.encode_raw(&mut reply.head);
        Ok(())
    }
}

impl LaneBackend for TopicLog {
    async fn resume(
        &self,
        context: &Context<'_>,
        owner: &LaneOwner,
    ) -> Result<Option<Cell>, Error> {
        self.redis.resume(context, owner).await
    }

    async fn set_cell(&self, context: &Context<'_>, cell: &Cell) -> Result<(), Error> {
        self.redis.set_cell(context, cell).await
    }

    async fn apply(
        &self,
        owner: &LaneOwner,
        records: &[LaneRecord<'_>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Error> {
        self.redis.apply_to(self, owner, records, outcomes).await
    }
}

impl Endings for TopicLog {
    async fn holds_data(&self, context: &Context<'_>) -> Result<bool, Error> {
        self.redis.holds_data(context).await
    }

    async fn erase(&self, context: &Context<'_>) -> Result<(), Error> {
        self.redis.erase(context).await
    }
}

impl Admission for TopicLog {
    /// As its Redis does.
    fn admit(&self, method: Method, request: &[u8]) -> Result<(), Error> {
        self.redis.admit(method, request)
    }
}
