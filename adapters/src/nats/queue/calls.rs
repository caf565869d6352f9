//! The interfaces of QueueService.

use prism_io::clock::wall_us;
use prism_proto::google::rpc::Status;
use prism_proto::prism::queue::v1 as reply;
use prism_proto::view::queue::{
    AcknowledgeRequest, ConfigureDeadLetterRequest, ExtendVisibilityRequest,
    GetScheduledCountRequest, ListDeadLettersRequest, ReceiveRequest, RedriveRequest,
    RejectRequest, ReleaseRequest, SendBatchRequest, SendDelayedRequest, SendRequest,
};
use prism_proto::view::types::Message;
use prost::Message as _;
use serde_json::json;

use super::super::Nats;
use super::super::errors;
use super::super::holds::later_subject;
use super::super::jetstream::Holds;
use super::super::place::ACKNOWLEDGED;
use super::leases::Receipt;
use super::receive::MAX_DELIVERIES;
use crate::call::{Context, Reply};
use crate::error::Error;
use crate::interfaces::message::{item_status, span_ms, time};
use crate::interfaces::queue::{
    QueueBasic, QueueDeadLetter, QueueDelayed, QueueVisibility, receipt_expired,
};
use crate::limits::LEASE_DEFAULT_MS;

/// Why receipts were not good, in their order; what was settled before is none of them.
fn statuses(
    receipts: &[Option<Receipt>],
    settled: Vec<bool>,
) -> impl Iterator<Item = Option<Status>> {
    let expired = item_status(&receipt_expired());
    let is_expired = |(receipt, settled): (&Option<Receipt>, bool)| receipt.is_none() && !settled;
    receipts.iter().zip(settled).map(move |one| is_expired(one).then(|| expired.clone()))
}

impl Nats {
    async fn send_one(
        &self,
        context: &Context<'_>,
        queue: &str,
        message: Option<Message<'_>>,
    ) -> Result<String, Error> {
        let sent = self.send_all(context, queue, &[message.unwrap_or_default()]).await?;
        sent.into_iter().next().unwrap_or_else(|| Err(errors::unexpected(context)))
    }

    async fn receipt_of(
        &self,
        context: &Context<'_>,
        queue: &str,
        text: &str,
    ) -> Result<Receipt, Error> {
        let checked = self.check_receipts(context, queue, &[text]).await?;
        checked.into_iter().next().flatten().ok_or_else(receipt_expired)
    }
}

impl QueueBasic for Nats {
    async fn send(
        &self,
        context: &Context<'_>,
        request: SendRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let message_id = self.send_one(context, request.queue, request.message).await?;
        reply::SendResponse { message_id }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn send_batch(
        &self,
        context: &Context<'_>,
        request: SendBatchRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let messages: Vec<_> = request.messages.iter().collect();
        let sent = self.send_all(context, request.queue, &messages).await?;
        let results = sent.into_iter().map(|one| match one {
            Ok(message_id) => reply::SendBatchResult { status: None, message_id },
            Err(error) => {
                let status = Some(item_status(&error));
                reply::SendBatchResult { status, message_id: String::new() }
            }
        });
        reply::SendBatchResponse { results: results.collect() }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn receive(
        &self,
        context: &Context<'_>,
        request: ReceiveRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let wanted = request.max_messages.max(1) as usize;
        let lease_us = request.visibility_timeout.as_ref().map_or(LEASE_DEFAULT_MS, span_ms) * 1000;
        let taken = self.take_messages(context, request.queue, wanted, lease_us).await;
        self.queues.promises.give_back((context.namespace, request.queue), wanted);
        reply::ReceiveResponse { deliveries: taken? }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn acknowledge(
        &self,
        context: &Context<'_>,
        request: AcknowledgeRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let texts: Vec<&str> = request.receipts.iter().collect();
        let receipts = self.check_receipts(context, request.queue, &texts).await?;
        let settled = self.settled_before(context, request.queue, &texts, &receipts).await?;
        let good = || receipts.iter().flatten();
        let done = good().map(|one| (one.lane, one.place, ACKNOWLEDGED.into()));
        self.settle(context, request.queue, done).await?;
        let queue = (context.namespace, request.queue);
        good().for_each(|one| self.queues.leases.done(queue, one.place.sequence));
        // The next message of a key may be in line now.
        self.queues.sources.tell(context.namespace, request.queue);
        let results =
            statuses(&receipts, settled).map(|status| reply::AcknowledgeResult { status });
        reply::AcknowledgeResponse { results: results.collect() }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn reject(
        &self,
        context: &Context<'_>,
        request: RejectRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let texts: Vec<&str> = request.receipts.iter().collect();
        let receipts = self.check_receipts(context, request.queue, &texts).await?;
        let settled = self.settled_before(context, request.queue, &texts, &receipts).await?;
        let good: Vec<Receipt> = receipts.iter().flatten().copied().collect();
        self.reject_all(context, request.queue, &good, request.reason).await?;
        self.queues.sources.tell(context.namespace, request.queue);
        let results = statuses(&receipts, settled).map(|status| reply::RejectResult { status });
        reply::RejectResponse { results: results.collect() }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn messages_ready(&self, context: &Context<'_>, request: ReceiveRequest<'_>) {
        let wanted = request.max_messages.max(1) as usize;
        self.wait_for_messages(context, request.queue, wanted).await;
    }
}

impl QueueVisibility for Nats {
    async fn extend_visibility(
        &self,
        context: &Context<'_>,
        request: ExtendVisibilityRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let receipt = self.receipt_of(context, request.queue, request.receipt).await?;
        let lease_us = request.visibility_timeout.as_ref().map_or(0, span_ms) * 1000;
        let until_us = context.now_us.max(wall_us()).saturating_add(lease_us);
        self.change_lease(context, request.queue, &receipt, (until_us, false)).await?;
        let lease_expires_at = Some(time(until_us));
        reply::ExtendVisibilityResponse { lease_expires_at }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn release(
        &self,
        context: &Context<'_>,
        request: ReleaseRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        let receipt = self.receipt_of(context, request.queue, request.receipt).await?;
        let now_us = context.now_us.max(wall_us());
        let settings = self.settings(context, request.queue).await?;
        let Receipt { lane, place, .. } = receipt;
        if settings.is_over(place.attempt)
            && let Some(message) = self.message_at(context, request.queue, place.sequence).await?
        {
            let letter = (MAX_DELIVERIES, place.attempt, now_us);
            let given_up = (lane, place, &message);
            self.give_up(context, request.queue, given_up, settings, letter).await?;
        } else {
            let delay_us = request.delay.as_ref().map_or(0, span_ms) * 1000;
            let until_us = now_us.saturating_add(delay_us);
            self.change_lease(context, request.queue, &receipt, (until_us, true)).await?;
        }
        self.queues.sources.tell(context.namespace, request.queue);
        Ok(())
    }
}

impl QueueDeadLetter for Nats {
    async fn configure_dead_letter(
        &self,
        context: &Context<'_>,
        request: ConfigureDeadLetterRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        self.set_max_deliveries(context, request.queue, request.max_deliveries).await
    }

    async fn list_dead_letters(
        &self,
        context: &Context<'_>,
        request: ListDeadLettersRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let page = (request.page_size, request.page_token);
        let answer = self.dead_letters(context, request.queue, page).await?;
        answer.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn redrive(
        &self,
        context: &Context<'_>,
        request: RedriveRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let ids: Vec<&str> = request.message_ids.iter().collect();
        let limit = if request.limit == 0 { u64::MAX } else { request.limit.into() };
        let redriven = self.redrive_letters(context, request.queue, (&ids, limit)).await?;
        reply::RedriveResponse { redriven }.encode_raw(&mut reply.head);
        Ok(())
    }
}

impl QueueDelayed for Nats {
    async fn send_delayed(
        &self,
        context: &Context<'_>,
        request: SendDelayedRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let message_id = self.send_one(context, request.queue, request.message).await?;
        reply::SendDelayedResponse { message_id }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_scheduled_count(
        &self,
        context: &Context<'_>,
        request: GetScheduledCountRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let holds = Holds::Messages(request.queue);
        let mut count = 0;
        if self.has_stream(context, holds).await? {
            let subjects = later_subject(context, request.queue, "*");
            self.ensure_stream(context, holds).await?;
            if self.streams.is_replicated(context, holds) {
                count = self.count_by_leader(context, holds, &subjects).await?;
                reply::GetScheduledCountResponse { count }.encode_raw(&mut reply.head);
                return Ok(());
            }
            // The server tells with the first how many are behind it.
            let first = json!({ "seq": 1, "next_by_subj": subjects, "batch": 1 });
            let walked = self.read_batch(context, holds, first).await?;
            count = walked.records.len() as u64 + walked.behind;
        }
        reply::GetScheduledCountResponse { count }.encode_raw(&mut reply.head);
        Ok(())
    }
}
