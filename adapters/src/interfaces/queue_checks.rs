//! What makes a QueueService request valid, on every backend.

use prism_proto::view::queue::{
    AcknowledgeRequest, ConfigureDeadLetterRequest, ExtendVisibilityRequest,
    GetScheduledCountRequest, ListDeadLettersRequest, ReceiveRequest, RedriveRequest,
    RejectRequest, ReleaseRequest, SendBatchRequest, SendDelayedRequest, SendRequest,
    SendWithPriorityRequest,
};
use prism_proto::view::types::Message;

use super::Check;
use super::keyvalue_checks::check_count;
use super::message_checks::{
    Carries, check_lease, check_message, check_receipt, check_receipts, check_span, check_text,
};
use crate::error::Error;
use crate::limits::{BATCH_ITEMS_MAX, DELAY_MAX_MS, LEASE_MAX_MS, Limits, check_batch_count};
use crate::topic::check_name;

fn check_send<'a>(
    queue: &str,
    message: Option<Message<'a>>,
    limits: &Limits,
) -> Result<Message<'a>, Error> {
    check_name("queue", queue)?;
    let Some(message) = message else {
        return Err(Error::field(
            "MESSAGE_MISSING",
            "message",
            "must be given; its payload may be empty",
        ));
    };
    check_message("message", &message, Carries::Message, limits)?;
    Ok(message)
}

impl Check for SendRequest<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        check_send(self.queue, self.message, limits).map(drop)
    }
}

impl Check for SendWithPriorityRequest<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        let message = check_send(self.queue, self.message, limits)?;
        if message.priority.is_none() {
            let expected = "must be given; Send takes messages without";
            return Err(Error::field("PRIORITY_MISSING", "message.priority", expected));
        }
        Ok(())
    }
}

impl Check for SendDelayedRequest<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        let message = check_send(self.queue, self.message, limits)?;
        if message.delivery_time.is_none() {
            let expected = "give a delay or deliver_at; Send takes messages without";
            return Err(Error::field("DELIVERY_TIME_MISSING", "message.delivery_time", expected));
        }
        Ok(())
    }
}

impl Check for SendBatchRequest<'_> {
    fn check(&self, limits: &Limits) -> Result<(), Error> {
        check_name("queue", self.queue)?;
        check_batch_count("messages", self.messages.len())?;
        for (index, message) in self.messages.iter().enumerate() {
            check_message(&format!("messages[{index}]"), &message, Carries::Message, limits)?;
        }
        Ok(())
    }
}

impl Check for ReceiveRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("queue", self.queue)?;
        check_count("max_messages", self.max_messages as usize, BATCH_ITEMS_MAX)?;
        if let Some(wait) = &self.wait {
            check_span("wait", wait, 0, LEASE_MAX_MS)?;
        }
        check_lease("visibility_timeout", self.visibility_timeout)
    }
}

impl Check for AcknowledgeRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("queue", self.queue)?;
        check_receipts(self.receipts.iter())
    }
}

impl Check for RejectRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("queue", self.queue)?;
        check_text("reason", self.reason)?;
        check_receipts(self.receipts.iter())
    }
}

impl Check for ExtendVisibilityRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("queue", self.queue)?;
        check_receipt("receipt", self.receipt)?;
        let span = self.visibility_timeout.unwrap_or_default();
        check_span("visibility_timeout", &span, 1, LEASE_MAX_MS)
    }
}

impl Check for ReleaseRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("queue", self.queue)?;
        check_receipt("receipt", self.receipt)?;
        self.delay.map_or(Ok(()), |delay| check_span("delay", &delay, 0, DELAY_MAX_MS))
    }
}

impl Check for ConfigureDeadLetterRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("queue", self.queue)
    }
}

impl Check for ListDeadLettersRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("queue", self.queue)
    }
}

impl Check for RedriveRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("queue", self.queue)?;
        check_count("message_ids", self.message_ids.len(), BATCH_ITEMS_MAX)
    }
}

impl Check for GetScheduledCountRequest<'_> {
    fn check(&self, _: &Limits) -> Result<(), Error> {
        check_name("queue", self.queue)
    }
}
