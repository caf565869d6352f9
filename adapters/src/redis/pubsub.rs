//! PubSubService on Redis: a topic is the channel `<namespace>.<topic>`, an event its payload.
//!
//! Whoever is subscribed when an event is published hears it, here or with any client of Redis; a publish is answered when Redis has
//! handed it out. Nothing is stored.

use prism_proto::prism::pubsub::v1 as reply;
use prism_proto::view::pubsub::{
    PublishBatchRequest, PublishRequest, SubscribePatternRequest, SubscribeRequest,
    UnsubscribeRequest,
};
use prism_proto::view::types as view;
use prost::Message as _;

use super::Redis;
use super::codec;
use super::event::{beside, channel, lines, mark_line};
use super::keyvalue::{Answer, At};
use super::scripts::Script;
use crate::call::{Context, PageSink, Reply};
use crate::error::Error;
use crate::interfaces::message::identity;
use crate::interfaces::pubsub::{PubSubBasic, PubSubWildcards};
use crate::memory::pubsub::{Heard, deliver};

impl PubSubBasic for Redis {
    async fn publish(
        &self,
        context: &Context<'_>,
        request: PublishRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let messages = [request.message.unwrap_or_default()];
        let mut ids = self.publish_all(context, request.topic, &messages).await?;
        let message_id = ids.pop().unwrap_or_default();
        reply::PublishResponse { message_id, position: None }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn publish_batch(
        &self,
        context: &Context<'_>,
        request: PublishBatchRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let messages: Vec<_> = request.messages.iter().collect();
        let ids = self.publish_all(context, request.topic, &messages).await?;
        let results = ids.into_iter().map(|message_id| reply::PublishBatchResult {
            status: None,
            message_id,
            position: None,
        });
        let answer = reply::PublishBatchResponse { results: results.collect() };
        answer.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn unsubscribe(
        &self,
        context: &Context<'_>,
        request: UnsubscribeRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        self.topics.subscriptions.delete(context.namespace, request.subscription_id);
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

impl PubSubWildcards for Redis {
    async fn subscribe_pattern<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: SubscribePatternRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let heard = Heard::Pattern(request.pattern.into());
        self.listen(context, request.pattern, request.subscription_id, heard, sink).await
    }
}

impl Redis {
    /// Publishes events to a topic, in their order; their identities.
    async fn publish_all(
        &self,
        context: &Context<'_>,
        topic: &str,
        messages: &[view::Message<'_>],
    ) -> Result<Vec<String>, Error> {
        let ids = messages.iter().enumerate();
        let ids: Vec<_> = ids.map(|(index, sent)| identity(context, index, sent)).collect();
        let channel = channel(context.namespace_name, topic);
        let write = |out: &mut Vec<u8>| {
            codec::put(out, beside(&channel).as_bytes());
            codec::put(out, channel.as_bytes());
            for (message, id) in messages.iter().zip(&ids) {
                let mut lines = lines(message, id);
                if self.cluster().is_some() {
                    lines.push_str(&mark_line(message.payload));
                }
                codec::put(out, lines.as_bytes());
                codec::put(out, message.payload);
            }
        };
        let read = self
            .script_at(context, At::Anywhere, Script::Publish, 0, 2 + 2 * messages.len(), write)
            .await?;
        Answer::new(context, &read).integer()?;
        Ok(ids)
    }

    async fn listen<S: PageSink>(
        &self,
        context: &Context<'_>,
        topic: &str,
        id: &str,
        heard: Heard,
        sink: &mut S,
    ) -> Result<(), Error> {
        let _tail = self.topics.tail(context, topic).await?;
        let attached = self.topics.subscriptions.attach(context.namespace, id, heard)?;
        deliver(&attached, sink).await
    }
}
