//! The five interfaces of QueueService.
//!
//! What the methods mean stands in `prism/queue/v1/queue.proto`; the conformance suite holds every backend to it. A
//! backend mints ids and delivers with what [`message`](super::message) offers. Receive itself never waits: what `wait` asks for is
//! done by whoever calls, with [`QueueBasic::messages_ready`].

use prism_proto::catalogue::{Interface, Method};
use prism_proto::view::queue::{
    AcknowledgeRequest, ConfigureDeadLetterRequest, ExtendVisibilityRequest,
    GetScheduledCountRequest, ListDeadLettersRequest, ReceiveRequest, RedriveRequest,
    RejectRequest, ReleaseRequest, SendBatchRequest, SendDelayedRequest, SendRequest,
    SendWithPriorityRequest,
};

use super::{Check, malformed};
use crate::backend::wrong_shape;
use crate::call::{Context, PageSink, Reply};
use crate::error::{Error, Kind};
use crate::limits::Limits;

interface! {
    /// Messages, each for one receiver.
    queue_basic: QueueBasic {
        unary QUEUE_SEND => send(SendRequest) -> SendResponse;
        unary QUEUE_SEND_BATCH => send_batch(SendBatchRequest) -> SendBatchResponse;
        unary QUEUE_RECEIVE => receive(ReceiveRequest) -> ReceiveResponse;
        unary QUEUE_ACKNOWLEDGE => acknowledge(AcknowledgeRequest) -> AcknowledgeResponse;
        unary QUEUE_REJECT => reject(RejectRequest) -> RejectResponse;
        ready QUEUE_RECEIVE => messages_ready(ReceiveRequest);
    }
}

interface! {
    /// How long a message stays with its receiver.
    queue_visibility: QueueVisibility {
        unary QUEUE_EXTEND_VISIBILITY => extend_visibility(ExtendVisibilityRequest) -> ExtendVisibilityResponse;
        unary QUEUE_RELEASE => release(ReleaseRequest) -> ReleaseResponse;
    }
}

interface! {
    /// Messages that were given up.
    queue_dead_letter: QueueDeadLetter {
        unary QUEUE_CONFIGURE_DEAD_LETTER => configure_dead_letter(ConfigureDeadLetterRequest) -> ConfigureDeadLetterResponse;
        unary QUEUE_LIST_DEAD_LETTERS => list_dead_letters(ListDeadLettersRequest) -> ListDeadLettersResponse;
        unary QUEUE_REDRIVE => redrive(RedriveRequest) -> RedriveResponse;
    }
}

interface! {
    /// Messages that go before others.
    queue_priority: QueuePriority {
        unary QUEUE_SEND_WITH_PRIORITY => send_with_priority(SendWithPriorityRequest) -> SendWithPriorityResponse;
    }
}

interface! {
    /// Messages for later.
    queue_delayed: QueueDelayed {
        unary QUEUE_SEND_DELAYED => send_delayed(SendDelayedRequest) -> SendDelayedResponse;
        unary QUEUE_GET_SCHEDULED_COUNT => get_scheduled_count(GetScheduledCountRequest) -> GetScheduledCountResponse;
    }
}

/// The refusal of a receipt that is good no more.
#[cold]
pub(crate) fn receipt_expired() -> Error {
    let message = "the receipt's delivery is over: the message was acknowledged, given up, or is delivered again";
    Error::new(Kind::FailedPrecondition, "RECEIPT_EXPIRED", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_catalogue_is_declared_once() {
        super::super::assert_declared(&[
            (queue_basic::INTERFACE, queue_basic::METHODS),
            (queue_visibility::INTERFACE, queue_visibility::METHODS),
            (queue_dead_letter::INTERFACE, queue_dead_letter::METHODS),
            (queue_priority::INTERFACE, queue_priority::METHODS),
            (queue_delayed::INTERFACE, queue_delayed::METHODS),
        ]);
    }
}
