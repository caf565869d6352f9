//! PostgreSQL's queues: messages as rows of one table, leased by `FOR UPDATE SKIP LOCKED`.
//!
//! A receipt is the message's number and the number of the delivery, which is in the row: it outlives Prism, and any host takes it.
//! Messages that are sent at once share a statement. Who waits for messages hears at once of what is sent through this shard, and
//! looks again every [`PostgresConfig::look_every`](super::PostgresConfig::look_every) for what came another way.
//!
//! - `statements`, `queue_0001.sql`: what is asked, and what it is asked of
//! - `rows`: messages as rows, and back
//! - `peek`: looking at messages without taking them
//! - `elsewhere`: payloads that are not in the row ([`crate::kafka_postgres`])

pub(crate) mod elsewhere;
mod peek;
mod rows;
mod statements;

use std::time::Duration;

use prism_io::{clock, rt};
use prism_proto::google::rpc::Status;
use prism_proto::prism::queue::v1 as reply;
use prism_proto::view::queue::{
    AcknowledgeRequest, ConfigureDeadLetterRequest, ExtendVisibilityRequest,
    GetScheduledCountRequest, ListDeadLettersRequest, ReceiveRequest, RedriveRequest,
    RejectRequest, ReleaseRequest, SendBatchRequest, SendDelayedRequest, SendRequest,
    SendWithPriorityRequest,
};
use prism_proto::view::types::Message;

use self::rows::{dead_letter, delivery, read_receipt, send};
pub(super) use self::statements::QueueStatement;
use super::Postgres;
use super::batch::{Answer, Operation, moment};
use super::codec::{Parameters, Type};
use super::messages::column;
use super::scan::{read_token, sign};
use super::statements::Statement;
use crate::call::{Context, Reply};
use crate::claims::Promises;
use crate::error::{Error, Kind};
use crate::interfaces::keyvalue_selection::page_entries;
use crate::interfaces::message::{identity, item_status, span_ms, time};
use crate::interfaces::queue::{
    QueueBasic, QueueDeadLetter, QueueDelayed, QueuePriority, QueueVisibility,
};
use crate::limits::LEASE_DEFAULT_MS;
use crate::sources::Sources;

/// Bytes of an answer that are kept free beside its deliveries.
const ANSWER_SPARE_BYTES: usize = 256;

/// Those who wait for messages on this shard.
#[derive(Default)]
pub(super) struct Waiting {
    sources: Sources,
    promises: Promises,
}

fn other(statement: QueueStatement, parameters: Parameters) -> Operation {
    Operation::Other { statement: Statement::Queue(statement), parameters, versions: 0 }
}

fn encode(reply: &mut Reply, answer: &impl prost::Message) {
    answer.encode_raw(&mut reply.head);
}

#[cold]
fn receipt_expired() -> Error {
    let message = "the receipt's delivery is over: the message was acknowledged, given up, or is delivered again";
    Error::new(Kind::FailedPrecondition, "RECEIPT_EXPIRED", message)
}

impl Postgres {
    async fn send_messages<'a>(
        &self,
        context: &Context<'_>,
        queue: &str,
        messages: impl Iterator<Item = Message<'a>>,
    ) -> Result<Vec<String>, Error> {
        let (mut ids, mut operations) = (Vec::new(), Vec::new());
        for (index, message) in messages.enumerate() {
            let id = identity(context, index, &message);
            operations.push(send(context, queue, &id, &message, self.announced.of(&id)));
            ids.push(id);
        }
        self.write(context, operations).await?;
        self.waiting.sources.tell(context.namespace, queue);
        Ok(ids)
    }

    async fn send_message(
        &self,
        context: &Context<'_>,
        queue: &str,
        message: Option<Message<'_>>,
    ) -> Result<String, Error> {
        let message = std::iter::once(message.unwrap_or_default());
        let ids = self.send_messages(context, queue, message).await?;
        Ok(ids.into_iter().next().unwrap_or_default())
    }

    /// Has a statement look at each receipt; tells why receipts were not good, in their order.
    async fn settle<'a>(
        &self,
        context: &Context<'_>,
        statement: QueueStatement,
        (queue, reason): (&str, Option<&str>),
        receipts: impl Iterator<Item = &'a str>,
    ) -> Result<Vec<Option<Status>>, Error> {
        let operation = |receipt| {
            let (id, lease) = read_receipt(receipt);
            let mut values = vec![
                column(queue.as_bytes()),
                column(&id.to_be_bytes()),
                column(&lease.to_be_bytes()),
                column(&moment(context.now_us)),
            ];
            // What PostgreSQL cannot hold is not worth to lose the call for.
            values.extend(reason.map(|reason| column(reason.replace('\0', " ").as_bytes())));
            Operation::Row { statement: Statement::Queue(statement), values }
        };
        let operations: Vec<_> = receipts.map(operation).collect();
        let mut good = vec![false; operations.len()];
        for (operation, _) in self.write(context, operations).await?.rows {
            if let Some(good) = good.get_mut(operation as usize) {
                *good = true;
            }
        }
        // The next message of a key may be in line now.
        self.waiting.sources.tell(context.namespace, queue);
        let expired = item_status(&receipt_expired());
        Ok(good.into_iter().map(|good| (!good).then(|| expired.clone())).collect())
    }

    /// Undoes deliveries that reached nobody, so that they do not count as attempts.
    pub(crate) async fn put_back(
        &self,
        context: &Context<'_>,
        queue: &str,
        receipts: impl Iterator<Item = &str>,
    ) -> Result<(), Error> {
        self.settle(context, QueueStatement::PutBack, (queue, None), receipts).await.map(drop)
    }

    /// Gives messages up whose payload is nowhere any more.
    pub(crate) async fn give_up(
        &self,
        context: &Context<'_>,
        (queue, reason): (&str, &str),
        receipts: impl Iterator<Item = &str>,
    ) -> Result<(), Error> {
        let queue = (queue, Some(reason));
        self.settle(context, QueueStatement::Reject, queue, receipts).await.map(drop)
    }

    /// Has a statement change one delivery.
    async fn change(
        &self,
        context: &Context<'_>,
        statement: QueueStatement,
        (queue, receipt): (&str, &str),
        until_us: u64,
    ) -> Result<Answer, Error> {
        let (id, lease) = read_receipt(receipt);
        let parameters = Parameters::default()
            .bytes(queue.as_bytes())
            .int8(id)
            .int8(lease)
            .moment(context.now_us)
            .moment(until_us);
        let answer = self.write(context, vec![other(statement, parameters)]).await?;
        match answer.rows.is_empty() {
            true => Err(receipt_expired()),
            false => Ok(answer),
        }
    }
}

impl QueueBasic for Postgres {
    async fn send(
        &self,
        context: &Context<'_>,
        request: SendRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let message_id = self.send_message(context, request.queue, request.message).await?;
        encode(reply, &reply::SendResponse { message_id });
        Ok(())
    }

    async fn send_batch(
        &self,
        context: &Context<'_>,
        request: SendBatchRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let ids = self.send_messages(context, request.queue, request.messages.iter()).await?;
        let result = |message_id| reply::SendBatchResult { status: None, message_id };
        encode(reply, &reply::SendBatchResponse { results: ids.into_iter().map(result).collect() });
        Ok(())
    }

    async fn receive(
        &self,
        context: &Context<'_>,
        request: ReceiveRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let wanted = request.max_messages.max(1);
        let lease_us = request.visibility_timeout.as_ref().map_or(LEASE_DEFAULT_MS, span_ms) * 1000;
        let until_us = context.now_us.saturating_add(lease_us);
        let room = context.limits.max_message_size.saturating_sub(ANSWER_SPARE_BYTES);
        let parameters = Parameters::default()
            .bytes(request.queue.as_bytes())
            .moment(context.now_us)
            .int4(i32::try_from(wanted).unwrap_or(i32::MAX))
            .moment(until_us)
            .int8(i64::try_from(room).unwrap_or(i64::MAX));
        // The version is the number of the delivery.
        let statement = Statement::Queue(QueueStatement::Receive);
        let operation = Operation::Other { statement, parameters, versions: 1 };
        let answered = self.write(context, vec![operation]).await;
        self.waiting.promises.give_back((context.namespace, request.queue), wanted as usize);
        let rows = answered?.rows;
        let deliveries = rows.iter().map(|(_, row)| delivery(row, until_us)).collect();
        encode(reply, &reply::ReceiveResponse { deliveries });
        Ok(())
    }

    async fn acknowledge(
        &self,
        context: &Context<'_>,
        request: AcknowledgeRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let (statement, receipts) = (QueueStatement::Acknowledge, request.receipts.iter());
        let statuses = self.settle(context, statement, (request.queue, None), receipts).await?;
        let result = |status| reply::AcknowledgeResult { status };
        let results = statuses.into_iter().map(result).collect();
        encode(reply, &reply::AcknowledgeResponse { results });
        Ok(())
    }

    async fn reject(
        &self,
        context: &Context<'_>,
        request: RejectRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let (statement, receipts) = (QueueStatement::Reject, request.receipts.iter());
        let queue = (request.queue, Some(request.reason));
        let statuses = self.settle(context, statement, queue, receipts).await?;
        let results = statuses.into_iter().map(|status| reply::RejectResult { status }).collect();
        encode(reply, &reply::RejectResponse { results });
        Ok(())
    }

    async fn messages_ready(&self, context: &Context<'_>, request: ReceiveRequest<'_>) {
        let wanted = request.max_messages.max(1) as usize;
        let queue = (context.namespace, request.queue);
        let mut attendance = self.waiting.sources.attend(context.namespace, request.queue);
        let mut context = *context;
        loop {
            let limit = self.waiting.promises.promised(queue, context.now_us) + 1;
            let parameters = Parameters::default()
                .bytes(request.queue.as_bytes())
                .moment(context.now_us)
                .int8(limit as i64);
            let operation = other(QueueStatement::InLine, parameters);
            // What is wrong, the call itself hears.
            let Ok(answer) = self.read(&context, vec![operation]).await else { return };
            let (there, next_us) = match answer.row() {
                Some(row) => (row.number as usize, row.expires_us),
                None => (0, None),
            };
            if self.waiting.promises.claim(queue, there, wanted, context.now_us) {
                return;
            }
            let next = next_us.map(|us| Duration::from_micros(us.saturating_sub(context.now_us)));
            let left = next.map_or(self.look_every, |next| next.min(self.look_every));
            rt::timeout(left, attendance.told()).await;
            context.now_us = context.now_us.max(clock::wall_us());
        }
    }
}

impl QueueVisibility for Postgres {
    async fn extend_visibility(
        &self,
        context: &Context<'_>,
        request: ExtendVisibilityRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let lease_us = request.visibility_timeout.as_ref().map_or(0, span_ms) * 1000;
        let until_us = context.now_us.saturating_add(lease_us);
        let delivery = (request.queue, request.receipt);
        self.change(context, QueueStatement::Extend, delivery, until_us).await?;
        let lease_expires_at = Some(time(until_us));
        encode(reply, &reply::ExtendVisibilityResponse { lease_expires_at });
        Ok(())
    }

    async fn release(
        &self,
        context: &Context<'_>,
        request: ReleaseRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        let delay_us = request.delay.as_ref().map_or(0, span_ms) * 1000;
        let due_us = context.now_us.saturating_add(delay_us);
        let delivery = (request.queue, request.receipt);
        self.change(context, QueueStatement::Release, delivery, due_us).await?;
        self.waiting.sources.tell(context.namespace, request.queue);
        Ok(())
    }
}

impl QueueDeadLetter for Postgres {
    async fn configure_dead_letter(
        &self,
        context: &Context<'_>,
        request: ConfigureDeadLetterRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        let queue = Parameters::default().bytes(request.queue.as_bytes());
        // What has ended already, has by the settings of then.
        let ended = queue.clone().moment(context.now_us);
        let operations = vec![
            other(QueueStatement::GiveUp, ended.clone()),
            other(QueueStatement::EndLeases, ended),
            other(QueueStatement::Configure, queue.int8(request.max_deliveries.into())),
        ];
        self.write(context, operations).await.map(drop)
    }

    async fn list_dead_letters(
        &self,
        context: &Context<'_>,
        request: ListDeadLettersRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let after = read_token(context, request.queue, request.page_token)?;
        let after = i64::from_str_radix(&after, 16).unwrap_or(-1);
        let page = page_entries(request.page_size);
        let room = context.limits.max_message_size.saturating_sub(ANSWER_SPARE_BYTES);
        let parameters = Parameters::default()
            .bytes(request.queue.as_bytes())
            .moment(context.now_us)
            .int8(after)
            .int8(page as i64 + 1)
            .int8(i64::try_from(room).unwrap_or(i64::MAX));
        let operation = other(QueueStatement::DeadLetters, parameters);
        let rows = self.read(context, vec![operation]).await?.rows;
        let mut answer = reply::ListDeadLettersResponse::default();
        let mut last = after;
        for (_, row) in &rows {
            // A payload that is not told did not fit any more.
            if answer.dead_letters.len() == page || row.value.is_none() {
                answer.next_page_token = sign(context, request.queue, &format!("{last:x}"));
                break;
            }
            answer.dead_letters.push(dead_letter(row));
            last = row.version;
        }
        encode(reply, &answer);
        Ok(())
    }

    async fn redrive(
        &self,
        context: &Context<'_>,
        request: RedriveRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let ids: Vec<&str> = request.message_ids.iter().collect();
        let most = if request.limit == 0 { i64::MAX } else { request.limit.into() };
        let ids = ids.iter().map(|id| (!id.contains('\0')).then_some(id.as_bytes()));
        let parameters = Parameters::default()
            .bytes(request.queue.as_bytes())
            .moment(context.now_us)
            .array(Type::Text, ids)
            .int8(most);
        let operation = other(QueueStatement::Redrive, parameters);
        let answer = self.write(context, vec![operation]).await?;
        self.waiting.sources.tell(context.namespace, request.queue);
        let redriven = answer.row().map_or(0, |row| row.number.max(0) as u64);
        encode(reply, &reply::RedriveResponse { redriven });
        Ok(())
    }
}

impl QueuePriority for Postgres {
    async fn send_with_priority(
        &self,
        context: &Context<'_>,
        request: SendWithPriorityRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let message_id = self.send_message(context, request.queue, request.message).await?;
        encode(reply, &reply::SendWithPriorityResponse { message_id });
        Ok(())
    }
}

impl QueueDelayed for Postgres {
    async fn send_delayed(
        &self,
        context: &Context<'_>,
        request: SendDelayedRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let message_id = self.send_message(context, request.queue, request.message).await?;
        encode(reply, &reply::SendDelayedResponse { message_id });
        Ok(())
    }

    async fn get_scheduled_count(
        &self,
        context: &Context<'_>,
        request: GetScheduledCountRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let parameters = Parameters::default().bytes(request.queue.as_bytes());
        let parameters = parameters.moment(context.now_us);
        let operation = other(QueueStatement::Scheduled, parameters);
        let answer = self.read(context, vec![operation]).await?;
        let count = answer.row().map_or(0, |row| row.number.max(0) as u64);
        encode(reply, &reply::GetScheduledCountResponse { count });
        Ok(())
    }
}
