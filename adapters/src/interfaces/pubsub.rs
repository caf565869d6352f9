//! The five interfaces of PubSubService.
//!
//! What the methods mean stands in `prism/pubsub/v1/pubsub.proto`; the conformance suite holds every backend to it. A
//! backend mints ids and delivers with what [`message`](super::message) offers, evaluates filters with
//! [`Filter`](crate::filter::Filter) and matches patterns with [`topic::matches`](crate::topic::matches). Every subscription's stream begins with
//! `Started`, sends only as fast as its [`PageSink`] takes, and waits for news with [`PageSink::wait`].

use prism_proto::catalogue::{Interface, Method};
use prism_proto::view::pubsub::{
    AcknowledgeRequest, GetLastMessageIdRequest, PublishBatchRequest, PublishOrderedRequest,
    PublishPersistentRequest, PublishRequest, PublishWithAttributesRequest,
    SubscribeDurableRequest, SubscribeFilteredRequest, SubscribePatternRequest, SubscribeRequest,
    UnsubscribeRequest,
};

use super::{Check, malformed};
use crate::backend::wrong_shape;
use crate::call::{Context, PageSink, Reply};
use crate::error::Error;
use crate::limits::Limits;

interface! {
    /// Events for those who are subscribed.
    pubsub_basic: PubSubBasic {
        unary PUBSUB_PUBLISH => publish(PublishRequest) -> PublishResponse;
        unary PUBSUB_PUBLISH_BATCH => publish_batch(PublishBatchRequest) -> PublishBatchResponse;
        unary PUBSUB_UNSUBSCRIBE => unsubscribe(UnsubscribeRequest) -> UnsubscribeResponse;
        stream PUBSUB_SUBSCRIBE => subscribe(SubscribeRequest) -> SubscribeResponse;
    }
}

interface! {
    /// Events of all topics that match a pattern.
    pubsub_wildcards: PubSubWildcards {
        stream PUBSUB_SUBSCRIBE_PATTERN => subscribe_pattern(SubscribePatternRequest) -> SubscribePatternResponse;
    }
}

interface! {
    /// Events that wait for their subscribers. Where the backend's state is the log, SubscribeDurable has its own request
    /// written when it has to make the subscription.
    pubsub_persistent: PubSubPersistent {
        unary PUBSUB_PUBLISH_PERSISTENT => publish_persistent(PublishPersistentRequest) -> PublishPersistentResponse;
        unary PUBSUB_ACKNOWLEDGE => acknowledge(AcknowledgeRequest) -> AcknowledgeResponse;
        unary PUBSUB_GET_LAST_MESSAGE_ID => get_last_message_id(GetLastMessageIdRequest) -> GetLastMessageIdResponse;
        stream PUBSUB_SUBSCRIBE_DURABLE => subscribe_durable(SubscribeDurableRequest) -> SubscribeDurableResponse;
        record PUBSUB_SUBSCRIBE_DURABLE => make_subscription;
    }
}

interface! {
    /// Events chosen by their attributes.
    pubsub_filtering: PubSubFiltering {
        unary PUBSUB_PUBLISH_WITH_ATTRIBUTES => publish_with_attributes(PublishWithAttributesRequest) -> PublishWithAttributesResponse;
        stream PUBSUB_SUBSCRIBE_FILTERED => subscribe_filtered(SubscribeFilteredRequest) -> SubscribeFilteredResponse;
    }
}

interface! {
    /// Events that keep their order per key.
    pubsub_ordering: PubSubOrdering {
        unary PUBSUB_PUBLISH_ORDERED => publish_ordered(PublishOrderedRequest) -> PublishOrderedResponse;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_catalogue_is_declared_once() {
        super::super::assert_declared(&[
            (pubsub_basic::INTERFACE, pubsub_basic::METHODS),
            (pubsub_wildcards::INTERFACE, pubsub_wildcards::METHODS),
            (pubsub_persistent::INTERFACE, pubsub_persistent::METHODS),
            (pubsub_filtering::INTERFACE, pubsub_filtering::METHODS),
            (pubsub_ordering::INTERFACE, pubsub_ordering::METHODS),
        ]);
    }
}
