//! PostgreSQL's topics: events as rows of one table, each under a number that is its position.
//!
//! Events that are published at once share a statement. Who is subscribed hears at once of what is published through this shard, and
//! looks again every [`PostgresConfig::look_every`](super::PostgresConfig::look_every) for what came another way; those who keep no
//! place share one reader of the table. The sweeper removes what all durable subscriptions have done with, but for the newest.
//!
//! - `statements`, `pubsub_0001.sql`: what is asked, and what it is asked of
//! - `rows`: events as rows, and back
//! - `tail`: subscriptions that end with their streams
//! - `durable`: subscriptions that keep their place

mod durable;
mod rows;
mod statements;
mod tail;

use prism_proto::prism::pubsub::v1 as reply;
use prism_proto::prism::r#type::v1::Position;
use prism_proto::view::pubsub::{
    PublishBatchRequest, PublishOrderedRequest, PublishRequest, PublishWithAttributesRequest,
    SubscribeFilteredRequest, SubscribePatternRequest, SubscribeRequest, UnsubscribeRequest,
};
use prism_proto::view::types::Message;
use prost::Message as _;

pub(super) use self::durable::Streams;
use self::rows::{position, publish};
pub(super) use self::statements::PubSubStatement;
pub(super) use self::tail::Topics;
use super::Postgres;
use super::batch::Operation;
use super::codec::Parameters;
use super::statements::Statement;
use crate::call::{Context, PageSink, Reply};
use crate::error::Error;
use crate::filter::Filter;
use crate::interfaces::message::identity;
use crate::interfaces::pubsub::{PubSubBasic, PubSubFiltering, PubSubOrdering, PubSubWildcards};
use crate::memory::pubsub::{Heard, deliver};

fn other(statement: PubSubStatement, parameters: Parameters) -> Operation {
    Operation::Other { statement: Statement::PubSub(statement), parameters, versions: 0 }
}

impl PubSubBasic for Postgres {
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
        let result = |(message_id, position)| reply::PublishBatchResult {
            status: None,
            message_id,
            position,
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
        self.topics.subscriptions.delete(context.namespace, request.subscription_id);
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
        self.listen(context, request.subscription_id, heard, sink).await
    }
}

impl PubSubWildcards for Postgres {
    async fn subscribe_pattern<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: SubscribePatternRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let heard = Heard::Pattern(request.pattern.into());
        self.listen(context, request.subscription_id, heard, sink).await
    }
}

impl PubSubFiltering for Postgres {
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
        self.listen(context, request.subscription_id, heard, sink).await
    }
}

impl PubSubOrdering for Postgres {
    async fn publish_ordered(
        &self,
        context: &Context<'_>,
        request: PublishOrderedRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        // Everybody reads events in the order of their numbers.
        let (message_id, position) =
            self.publish_one(context, request.topic, request.message).await?;
        reply::PublishOrderedResponse { message_id, position }.encode_raw(&mut reply.head);
        Ok(())
    }
}

impl Postgres {
    async fn publish_one(
        &self,
        context: &Context<'_>,
        topic: &str,
        message: Option<Message<'_>>,
    ) -> Result<(String, Option<Position>), Error> {
        let message = std::iter::once(message.unwrap_or_default());
        let published = self.publish_all(context, topic, message).await?;
        Ok(published.into_iter().next().unwrap_or_default())
    }

    /// Stores events and tells those who wait for them: identities, and where they are.
    async fn publish_all<'a>(
        &self,
        context: &Context<'_>,
        topic: &str,
        messages: impl Iterator<Item = Message<'a>>,
    ) -> Result<Vec<(String, Option<Position>)>, Error> {
        let (mut published, mut operations) = (Vec::new(), Vec::new());
        for (index, message) in messages.enumerate() {
            let id = identity(context, index, &message);
            operations.push(publish(context, topic, &id, &message));
            published.push((id, None));
        }
        let answer = self.write(context, operations).await?;
        for (operation, row) in &answer.rows {
            if let Some((_, place)) = published.get_mut(*operation as usize) {
                *place = Some(position(row.version));
            }
        }
        self.topics.sources.tell(context.namespace, topic);
        self.topics.sources.tell(context.namespace, tail::ALL);
        Ok(published)
    }

    async fn listen<S: PageSink>(
        &self,
        context: &Context<'_>,
        id: &str,
        heard: Heard,
        sink: &mut S,
    ) -> Result<(), Error> {
        let namespace = self.pool.namespace(context.namespace, context.namespace_name);
        let tail = self.topics.tail(&self.pool, namespace, self.look_every).await;
        let link = self.pool.of_reads(context.namespace, context.partition);
        let _tail = tail.map_err(|fault| fault.error(context, link.retry_delay()))?;
        // Nothing that is published after this is missed, and nothing from before comes.
        let attached = self.topics.subscriptions.attach(context.namespace, id, heard)?;
        deliver(&attached, sink).await
    }
}
