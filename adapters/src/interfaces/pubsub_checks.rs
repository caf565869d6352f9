//! What makes a PubSubService request valid, on every backend.

use prism_proto::view::pubsub::{
    AcknowledgeRequest, GetLastMessageIdRequest, PublishBatchRequest, PublishOrderedRequest,
    PublishPersistentRequest, PublishRequest, PublishWithAttributesRequest,
    SubscribeDurableRequest, SubscribeFilteredRequest, SubscribePatternRequest, SubscribeRequest,
    UnsubscribeRequest,
};
use prism_proto::view::types::Message;

use super::Check;
use super::message_checks::{
    Carries, check_filter, check_lease, check_message, check_receipts, check_start,
};
use crate::error::Error;
use crate::limits::{Limits, check_batch_count};
use crate::topic::{check_name, check_pattern};

fn check_publish<'a>(
    topic: &str,
    message: Option<Message<'a>>,
    limits: &Limits,
) -> Result<Message<'a>, Error> {
    check_name("topic", topic)?;
    let Some(message) = message else {
        return Err(Error::field(
            "MESSAGE_MISSING",
            "message",
            "must be given; its payload may be empty",
        ));
    };
    check_message("message", &message, Carries::Event, limits)?;
    Ok(message)
}

impl Check for PublishRequest<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        check_publish(self.topic, self.message, limits).map(drop)
    }
}

impl Check for PublishPersistentRequest<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        check_publish(self.topic, self.message, limits).map(drop)
    }
}

impl Check for PublishWithAttributesRequest<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        let message = check_publish(self.topic, self.message, limits)?;
        if message.attributes.is_empty() {
            let expected = "must have at least one; Publish takes events without";
            return Err(Error::field("ATTRIBUTES_MISSING", "message.attributes", expected));
        }
        Ok(())
    }
}

impl Check for PublishOrderedRequest<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        let message = check_publish(self.topic, self.message, limits)?;
        if message.ordering_key.is_empty() {
            let expected = "must be given; Publish takes events without";
            return Err(Error::field("ORDERING_KEY_MISSING", "message.ordering_key", expected));
        }
        Ok(())
    }
}

impl Check for PublishBatchRequest<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        check_name("topic", self.topic)?;
        check_batch_count("messages", self.messages.len())?;
        for (index, message) in self.messages.iter().enumerate() {
            check_message(&format!("messages[{index}]"), &message, Carries::Event, limits)?;
        }
        Ok(())
    }
}

/// The name of a subscription that may be new: nothing, or an id of the caller's.
fn check_subscription(id: &str) -> Result<(), Error> {
    if id.is_empty() { Ok(()) } else { check_name("subscription_id", id) }
}

impl Check for SubscribeRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("topic", self.topic)?;
        check_subscription(self.subscription_id)
    }
}

impl Check for SubscribePatternRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_pattern("pattern", self.pattern)?;
        check_subscription(self.subscription_id)
    }
}

impl Check for SubscribeFilteredRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("topic", self.topic)?;
        check_filter("filter", self.filter)?;
        check_subscription(self.subscription_id)
    }
}

impl Check for SubscribeDurableRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("topic", self.topic)?;
        check_name("subscription_id", self.subscription_id)?;
        self.start.map_or(Ok(()), |start| check_start(&start))?;
        check_filter("filter", self.filter)?;
        check_lease("ack_wait", self.ack_wait)
    }
}

impl Check for UnsubscribeRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("subscription_id", self.subscription_id)
    }
}

impl Check for AcknowledgeRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("topic", self.topic)?;
        check_name("subscription_id", self.subscription_id)?;
        check_receipts(self.receipts.iter())
    }
}

impl Check for GetLastMessageIdRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("topic", self.topic)
    }
}
