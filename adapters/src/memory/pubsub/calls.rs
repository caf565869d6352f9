//! The interfaces of PubSubService on memstore.

use prism_proto::prism::pubsub::v1 as reply;
use prism_proto::prism::r#type::v1::{Delivery, Position};
use prism_proto::view::pubsub::{
    PublishBatchRequest, PublishOrderedRequest, PublishRequest, PublishWithAttributesRequest,
    SubscribeFilteredRequest, SubscribePatternRequest, SubscribeRequest, UnsubscribeRequest,
};
use prism_proto::view::types as view;
use prost::Message as _;

use super::super::Memstore;
use super::subscriptions::{Attached, Event, Heard, Standing};
use crate::call::{Context, NO_END, PageSink, Reply};
use crate::error::{Error, Kind};
use crate::filter::Filter;
use crate::interfaces::message::{expires_us, identity, owned, time};
use crate::interfaces::pubsub::{PubSubBasic, PubSubFiltering, PubSubOrdering, PubSubWildcards};

impl PubSubBasic for Memstore {
    async fn publish(
        &self,
        context: &Context<'_>,
        request: PublishRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let (message_id, position) =
            self.publish_event(context, request.topic, request.message, 0, false);
        reply::PublishResponse { message_id, position }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn publish_batch(
        &self,
        context: &Context<'_>,
        request: PublishBatchRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let results = request.messages.iter().enumerate().map(|(index, message)| {
            let (message_id, position) =
                self.publish_event(context, request.topic, Some(message), index, false);
            reply::PublishBatchResult { status: None, message_id, position }
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
        self.subscriptions.delete(context.namespace, request.subscription_id);
        // Only of a durable one is it said: replay, which knows no other subscribers, has to give the same answer.
        let existed = self.forget_durable(context, request.subscription_id).then_some(true);
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
        self.deliver(context, request.subscription_id, heard, sink).await
    }
}

impl PubSubWildcards for Memstore {
    async fn subscribe_pattern<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: SubscribePatternRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let heard = Heard::Pattern(request.pattern.into());
        self.deliver(context, request.subscription_id, heard, sink).await
    }
}

impl PubSubFiltering for Memstore {
    async fn publish_with_attributes(
        &self,
        context: &Context<'_>,
        request: PublishWithAttributesRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let (message_id, position) =
            self.publish_event(context, request.topic, request.message, 0, false);
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
        self.deliver(context, request.subscription_id, heard, sink).await
    }
}

impl PubSubOrdering for Memstore {
    async fn publish_ordered(
        &self,
        context: &Context<'_>,
        request: PublishOrderedRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        // Every subscriber hears everything in the order of its records.
        let (message_id, position) =
            self.publish_event(context, request.topic, request.message, 0, false);
        reply::PublishOrderedResponse { message_id, position }.encode_raw(&mut reply.head);
        Ok(())
    }
}

impl Memstore {
    /// Gives an event to those who are subscribed, and keeps it where it is to be kept: its identity, and where it is.
    pub(super) fn publish_event(
        &self,
        context: &Context<'_>,
        topic: &str,
        message: Option<view::Message<'_>>,
        index: usize,
        is_persistent: bool,
    ) -> (String, Option<Position>) {
        let sent = message.unwrap_or_default();
        let id = identity(context, index, &sent);
        let (message, expires_us) = (owned(&sent, id.clone()), expires_us(&sent));
        let position = self.keep_event(context, topic, (&message, expires_us), is_persistent);
        let event = Event { topic: topic.into(), sent_us: context.now_us, expires_us, message };
        self.subscriptions.publish(context.namespace, event);
        (id, position)
    }

    async fn deliver<S: PageSink>(
        &self,
        context: &Context<'_>,
        id: &str,
        heard: Heard,
        sink: &mut S,
    ) -> Result<(), Error> {
        let attached = self.subscriptions.attach(context.namespace, id, heard)?;
        deliver(&attached, sink).await
    }
}

/// Sends what a subscription hears, as fast as its stream takes it. The messages of all three kinds of streams are the same.
pub(crate) async fn deliver<S: PageSink>(
    attached: &Attached<'_>,
    sink: &mut S,
) -> Result<(), Error> {
    let subscription = attached.subscription.clone();
    let started = reply::Started { subscription_id: subscription.id.to_string(), position: None };
    sink.send(response(reply::subscribe_response::Event::Started(started))).await?;
    let mut told = subscription.news.listen();
    loop {
        while let Some(event) = attached.take() {
            if event.expires_us <= sink.now_us() {
                continue;
            }
            let delivery = reply::EventDelivery {
                topic: event.topic.to_string(),
                position: None,
                delivery: Some(Delivery {
                    attempt: 1,
                    sent_at: Some(time(event.sent_us)),
                    message: Some(event.message.clone()),
                    ..Default::default()
                }),
            };
            drop(event);
            sink.send(response(reply::subscribe_response::Event::Delivery(delivery))).await?;
        }
        match subscription.standing.get() {
            Standing::Open => sink.wait(&mut told, NO_END).await?,
            Standing::Deleted => return Ok(()),
            Standing::Behind => return Err(behind()),
            Standing::CutOff => return Err(cut_off()),
        }
    }
}

pub(crate) fn response(event: reply::subscribe_response::Event) -> bytes::Bytes {
    reply::SubscribeResponse { event: Some(event) }.encode_to_vec().into()
}

#[cold]
fn behind() -> Error {
    let message = "this subscriber took events more slowly than they came, and those that follow are lost to it: \
                   subscribe again, read faster, or share the subscription among several streams";
    Error::new(Kind::OutOfRange, "SUBSCRIBER_BEHIND", message)
}

#[cold]
fn cut_off() -> Error {
    let message = "the connection that brings the events was lost, and events may have been lost with it: subscribe again";
    Error::new(Kind::Unavailable, "SUBSCRIPTION_CUT_OFF", message)
        .retry_after(std::time::Duration::from_millis(200))
}
