//! The interfaces of PubSubService on NATS: a topic is the core subject `<namespace>.<topic>`.
//!
//! Whoever is subscribed when an event is published hears it, here or with any client of NATS. A publish is answered when the server has taken
//! it; one that has a record, and one of what is to last, when JetStream has stored it. The subscriptions of a shard share one [`Tail`] per topic or pattern, and each has a bounded line of its own, so that a slow one
//! holds nobody up. When the connection ends, events may be lost, and the streams end and say so.

use std::rc::{Rc, Weak};
use std::sync::Arc;

use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::prism::pubsub::v1 as reply;
use prism_proto::prism::r#type::v1::Position;
use prism_proto::view::pubsub::{
    PublishBatchRequest, PublishOrderedRequest, PublishRequest, PublishWithAttributesRequest,
    SubscribeFilteredRequest, SubscribePatternRequest, SubscribeRequest, UnsubscribeRequest,
};
use prism_proto::view::types as view;
use prost::Message as _;

use super::Nats;
use super::consumer::Of;
use super::durable::position;
use super::errors;
use super::event::{event, header_bytes, outgoing, subject};
use super::inbox::{Found, Inbox};
use super::jetstream::{Holds, Stored, stored};
use super::lane::MESSAGE_TOO_LARGE;
use super::link::{Answer, Ask, Outgoing};
use crate::call::{Context, PageSink, Reply};
use crate::error::Error;
use crate::filter::Filter;
use crate::interfaces::message::{identity, item_status};
use crate::interfaces::pubsub::{PubSubBasic, PubSubFiltering, PubSubOrdering, PubSubWildcards};
use crate::memory::pubsub::{Heard, Standing, Subscriptions, deliver};
use crate::shared::{Key, Shared};

/// Messages that are shared out before the other tasks of the shard have their turn.
const EVENTS_PER_TURN: usize = 64;

/// The identity of an event, and its place where it is stored.
pub(super) type Published = (String, Option<Position>);

/// Who listens on this shard.
#[derive(Default)]
pub(super) struct Topics {
    subscriptions: Subscriptions,
    tails: Shared<Tail>,
}

/// What comes to a topic or a pattern, for all who are subscribed to it on this shard; ends when the last of them has left.
struct Tail(Arc<Inbox>);

impl Drop for Tail {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl PubSubBasic for Nats {
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
        let results = published.into_iter().map(|published| match published {
            Ok((message_id, position)) => {
                reply::PublishBatchResult { status: None, message_id, position }
            }
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
        let of = Of::subscription(id);
        let existed = self.delete_consumer(context, of).await?;
        self.deliveries.forget(context.namespace, of);
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

impl PubSubWildcards for Nats {
    async fn subscribe_pattern<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: SubscribePatternRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        // A pattern means to NATS what it means to Prism.
        let heard = Heard::Pattern(request.pattern.into());
        self.listen(context, request.pattern, request.subscription_id, heard, sink).await
    }
}

impl PubSubFiltering for Nats {
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

impl PubSubOrdering for Nats {
    async fn publish_ordered(
        &self,
        context: &Context<'_>,
        request: PublishOrderedRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        // What one connection publishes, everybody hears in its order.
        let (message_id, position) =
            self.publish_one(context, request.topic, request.message).await?;
        reply::PublishOrderedResponse { message_id, position }.encode_raw(&mut reply.head);
        Ok(())
    }
}

impl Nats {
    async fn publish_one(
        &self,
        context: &Context<'_>,
        topic: &str,
        message: Option<view::Message<'_>>,
    ) -> Result<Published, Error> {
        let published = self.publish_all(context, topic, &[message.unwrap_or_default()]).await?;
        published.into_iter().next().unwrap_or_else(|| Err(errors::unexpected(context)))
    }

    /// Publishes events to a topic, in their order; each one's identity and place, or why it could not be sent.
    async fn publish_all(
        &self,
        context: &Context<'_>,
        topic: &str,
        messages: &[view::Message<'_>],
    ) -> Result<Vec<Result<Published, Error>>, Error> {
        // What is logged was promised to last.
        if context.revision.is_logged() {
            return self.publish_stored(context, topic, messages).await;
        }
        let (published, sent) = self.outgoing_all(context, topic, messages);
        if !sent.is_empty() {
            self.link.call(context, &Ask::Tell(sent)).await?;
        }
        Ok(published.into_iter().map(|one| one.map(|id| (id, None))).collect())
    }

    /// Has events stored, in their order; each one's identity and place, or why it could not be sent. Where one is not stored, all fail.
    pub(super) async fn publish_stored(
        &self,
        context: &Context<'_>,
        topic: &str,
        messages: &[view::Message<'_>],
    ) -> Result<Vec<Result<Published, Error>>, Error> {
        let (published, sent) = self.outgoing_all(context, topic, messages);
        let mut sequences = Vec::with_capacity(sent.len());
        if !sent.is_empty() {
            let answer = self.ask_stream(context, Holds::Events, &Ask::Each(sent)).await;
            if answer.as_ref().is_err_and(Error::is_retryable) {
                // Somebody may have deleted it.
                self.streams.forget(context, Holds::Events);
            }
            let Answer::Several(answers) = answer? else {
                return Err(errors::unexpected(context));
            };
            for answer in &answers {
                sequences.push(match stored(context, answer) {
                    Ok(Stored::At(sequence)) => Ok(sequence),
                    Ok(Stored::Unexpected) => return Err(errors::unexpected(context)),
                    // It is that event's own.
                    Err(error) if error.reason() == MESSAGE_TOO_LARGE => Err(error),
                    Err(error) => return Err(error),
                });
            }
            self.deliveries.sources.tell(context.namespace, topic);
        }
        let mut sequences = sequences.into_iter();
        let placed = published.into_iter().map(|one| {
            let id = one?;
            let sequence = sequences.next().ok_or_else(|| errors::unexpected(context))?;
            Ok((id, Some(position(sequence?))))
        });
        Ok(placed.collect())
    }

    /// Events as messages: of each its identity, or why it cannot be sent; and those that can.
    fn outgoing_all(
        &self,
        context: &Context<'_>,
        topic: &str,
        messages: &[view::Message<'_>],
    ) -> (Vec<Result<String, Error>>, Vec<Outgoing>) {
        let bytes_max = self.link.payload_bytes_max();
        let mut published = Vec::with_capacity(messages.len());
        let mut sent = Vec::with_capacity(messages.len());
        for (index, message) in messages.iter().enumerate() {
            if message.payload.len() + header_bytes(message) > bytes_max {
                published.push(Err(errors::message_too_large(bytes_max)));
                continue;
            }
            let id = identity(context, index, message);
            sent.push(outgoing(context.namespace_name, topic, message, &id));
            published.push(Ok(id));
        }
        (published, sent)
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

    async fn tail(&self, context: &Context<'_>, heard: &str) -> Result<Rc<Tail>, Error> {
        let key: Key = (context.namespace, heard.into());
        self.topics.tails.get(&key, async || self.make_tail(context, key.clone()).await).await
    }

    async fn make_tail(&self, context: &Context<'_>, key: Key) -> Result<Rc<Tail>, Error> {
        let inbox = Arc::new(Inbox::default());
        let tail = Rc::new(Tail(inbox.clone()));
        let subject = subject(context.namespace_name, &key.1);
        self.link.call(context, &Ask::subscribe(subject, inbox.clone())).await?;
        let (topics, namespace_name) = (self.topics.clone(), context.namespace_name.into());
        let follower = Follower { topics, key, namespace_name, inbox };
        rt::spawn(follower.run(Rc::downgrade(&tail)));
        Ok(tail)
    }
}

/// What shares out the events of a tail.
struct Follower {
    topics: Rc<Topics>,
    key: Key,
    namespace_name: Box<str>,
    inbox: Arc<Inbox>,
}

impl Follower {
    async fn run(self, tail: Weak<Tail>) {
        let (namespace, heard) = (self.key.0, &*self.key.1);
        while tail.strong_count() > 0 {
            let rung = self.inbox.bell().heard();
            let Some(standing) = self.share_out() else {
                self.inbox.bell().wait(rung).await;
                continue;
            };
            if standing != Standing::Open {
                self.topics.tails.forget(&self.key, &tail);
                return self.topics.subscriptions.end(namespace, heard, standing);
            }
            rt::yield_now().await;
        }
        self.topics.tails.forget(&self.key, &tail);
    }

    /// Shares out some of what has come; nothing when there is no more for now, else how it goes on.
    fn share_out(&self) -> Option<Standing> {
        let (namespace, heard) = (self.key.0, &*self.key.1);
        for _ in 0..EVENTS_PER_TURN {
            match self.inbox.take() {
                Found::Message(message) => {
                    if let Some(event) = event(&self.namespace_name, message, wall_us()) {
                        self.topics.subscriptions.publish_to(namespace, heard, event);
                    }
                }
                Found::Nothing => return None,
                Found::Overflow => return Some(Standing::Behind),
                Found::Ended => return Some(Standing::CutOff),
            }
        }
        Some(Standing::Open)
    }
}
