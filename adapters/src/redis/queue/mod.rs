//! Redis's queues: a message is a hash, and sorted sets say which one is next.
//!
//! `<namespace>:<queue>` is a hash of what is known about the queue; a message is `<namespace>:<queue>:message:<number>`, and its number stands in
//! `…:messages`, and in one of `…:ready`, `…:later`, `…:leased` and `…:dead` (see `queue.lua`). Each call is one script. A receipt is the
//! message's number and which delivery of it it was, which is in the hash: it outlives Prism, and any host takes it. Who waits for
//! messages is told of them by Redis ([`wake`](super::wake)).
//!
//! - `deliveries`: messages sent, delivered and given up
//! - `peek`: looking at messages without taking them

mod deliveries;
mod peek;

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

use self::deliveries::{dead_letter, delivery, put_message, read_receipt};
use super::Redis;
use super::codec;
use super::errors;
use super::fields::Kept;
use super::keyvalue::{Answer, put_key};
use super::scan::{Place, read_token, sign};
use super::scripts::Script;
use crate::call::{Context, Reply};
use crate::error::{Error, Kind};
use crate::interfaces::keyvalue_selection::page_entries;
use crate::interfaces::message::{identity, item_status, span_ms, time};
use crate::interfaces::queue::{
    QueueBasic, QueueDeadLetter, QueueDelayed, QueuePriority, QueueVisibility,
};
use crate::limits::LEASE_DEFAULT_MS;

/// Bytes of an answer that are kept free beside its deliveries.
const ANSWER_SPARE_BYTES: usize = 256;
/// Dead letters that one script looks at, and puts back, at most: some ten milliseconds of Redis's time.
const REDRIVEN_MAX: &[u8] = b"1000";
/// The reason of a dead letter that was delivered too often.
const MAX_DELIVERIES: &str = "MAX_DELIVERIES";

/// Messages that were looked at.
struct Looked {
    /// There are no more.
    is_all: bool,
    /// Their numbers, since when they are dead letters though nobody has noticed, and what is kept of them.
    found: Vec<(u64, Option<u64>, Kept)>,
}

/// What there is in a queue.
struct Counted {
    /// Messages to be received, at least.
    there: usize,
    /// When there may be more, µs since the epoch.
    next_us: Option<u64>,
    /// Messages whose time has not come.
    scheduled: u64,
}

fn encode(reply: &mut Reply, answer: &impl prost::Message) {
    answer.encode_raw(&mut reply.head);
}

#[cold]
fn receipt_expired() -> Error {
    let message = "the receipt's delivery is over: the message was acknowledged, given up, or is delivered again";
    Error::new(Kind::FailedPrecondition, "RECEIPT_EXPIRED", message)
}

/// The name of a queue's keys in a cluster: in braces, which all of them begin with.
pub(super) fn tagged(context: &Context<'_>, queue: &str) -> String {
    format!("{{{}:{queue}}}", context.namespace_name)
}

/// A number that a script tells as text.
fn number(context: &Context<'_>, text: Option<&[u8]>) -> Result<u64, Error> {
    let text = text.and_then(|text| std::str::from_utf8(text).ok());
    text.and_then(|text| text.parse().ok()).ok_or_else(|| errors::unexpected(context))
}

impl Redis {
    /// Runs a script of queues: `write` adds its arguments behind the time, of which there are so many.
    async fn queue_script(
        &self,
        context: &Context<'_>,
        queue: &str,
        script: Script,
        arguments: usize,
        write: impl Fn(&mut Vec<u8>),
    ) -> Result<bytes::Bytes, Error> {
        let is_cluster = self.cluster().is_some();
        let put = |out: &mut Vec<u8>| {
            codec::put_number(out, context.now_us);
            write(out);
        };
        if !is_cluster {
            let write = |out: &mut Vec<u8>| {
                put_key(out, context, queue);
                put(out);
            };
            return self.script(context, script, 1, 1 + arguments, write).await;
        }
        // All keys of a queue are in the slot of its name. The second key is never there: with it Redis refuses the script while the slot
        // is on its way to another node (TRYAGAIN), when some of the keys that the script makes up would be here and some there.
        let at = self.at_key(context, queue);
        let write = |out: &mut Vec<u8>| {
            let name = tagged(context, queue);
            codec::put(out, name.as_bytes());
            codec::put_pieces(out, [name.as_bytes(), b":never", b""]);
            put(out);
        };
        self.script_at(context, at, script, 2, 1 + arguments, write).await
    }

    async fn send_messages<'a>(
        &self,
        context: &Context<'_>,
        queue: &str,
        messages: impl Iterator<Item = Message<'a>>,
    ) -> Result<Vec<String>, Error> {
        let (mut ids, mut arguments, mut parts) = (Vec::new(), Vec::new(), 0);
        for (index, message) in messages.enumerate() {
            let id = identity(context, index, &message);
            parts += put_message(&mut arguments, context, &id, &message);
            ids.push(id);
        }
        let write = |out: &mut Vec<u8>| out.extend_from_slice(&arguments);
        let read = self.queue_script(context, queue, Script::QueueSend, parts, write).await?;
        Answer::new(context, &read).integer()?;
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

    /// Ends deliveries for good; tells why receipts were not good, in their order.
    async fn settle<'a>(
        &self,
        context: &Context<'_>,
        queue: &str,
        (what, reason): (&[u8], &str),
        receipts: impl Iterator<Item = &'a str>,
    ) -> Result<Vec<Option<Status>>, Error> {
        let receipts: Vec<_> = receipts.map(read_receipt).collect();
        let write = |out: &mut Vec<u8>| {
            codec::put(out, what);
            codec::put(out, reason.as_bytes());
            for (number, lease) in &receipts {
                codec::put_number(out, *number);
                codec::put(out, lease.as_bytes());
            }
        };
        let arguments = 2 + 2 * receipts.len();
        let read = self.queue_script(context, queue, Script::QueueSettle, arguments, write).await?;
        let mut answer = Answer::new(context, &read);
        if answer.array()? != receipts.len() as u64 {
            return Err(errors::unexpected(context));
        }
        let expired = item_status(&receipt_expired());
        let status = |_| Ok((answer.integer()? == 0).then(|| expired.clone()));
        receipts.iter().map(status).collect()
    }

    /// Has a delivery end at another time.
    async fn change(
        &self,
        context: &Context<'_>,
        (queue, receipt): (&str, &str),
        what: &[u8],
        until_us: u64,
    ) -> Result<(), Error> {
        let (number, lease) = read_receipt(receipt);
        let write = |out: &mut Vec<u8>| {
            codec::put(out, what);
            codec::put_number(out, number);
            codec::put(out, lease.as_bytes());
            codec::put_number(out, until_us);
        };
        let read = self.queue_script(context, queue, Script::QueueChange, 4, write).await?;
        match Answer::new(context, &read).integer()? {
            0 => Err(receipt_expired()),
            _ => Ok(()),
        }
    }

    /// The next messages of a queue, or dead letters, behind a number: as many as fit into so many bytes, the first always.
    async fn look_into(
        &self,
        context: &Context<'_>,
        (queue, dead): (&str, bool),
        after: u64,
        messages_max: usize,
        room: usize,
    ) -> Result<Looked, Error> {
        let which: &[u8] = if dead { b"dead" } else { b"messages" };
        let write = |out: &mut Vec<u8>| {
            codec::put(out, which);
            codec::put_number(out, after);
            codec::put_number(out, messages_max as u64);
            codec::put_number(out, room as u64);
        };
        let read = self.queue_script(context, queue, Script::QueueList, 4, write).await?;
        let mut answer = Answer::new(context, &read);
        let parts = answer.array()?;
        let is_all = answer.integer()? == 1;
        let mut found = Vec::new();
        for _ in 0..parts / 3 {
            let place = number(context, answer.blob()?)?;
            let given_up = answer.blob()?.filter(|text| !text.is_empty());
            let given_up_us = given_up.map(|text| number(context, Some(text))).transpose()?;
            found.push((place, given_up_us, Kept::read(&mut answer)?));
        }
        Ok(Looked { is_all, found })
    }

    /// Puts dead letters back, a page of them at a time; how many that were.
    async fn redrive_pages(
        &self,
        context: &Context<'_>,
        request: &RedriveRequest<'_>,
    ) -> Result<u64, Error> {
        let mut left = if request.limit == 0 { u64::MAX } else { request.limit.into() };
        let mut redriven = 0;
        // What dies again meanwhile is behind the last that is meant.
        let (mut after, mut last) = (b"0".to_vec(), Vec::new());
        // A part of a lane's batch cannot go on: it takes one page, or looks for those that are named among all.
        let is_alone = !self.link.is_grouping();
        let looked_at: &[u8] = match request.message_ids.is_empty() || is_alone {
            true => REDRIVEN_MAX,
            false => b"-1",
        };
        loop {
            let write = |out: &mut Vec<u8>| {
                codec::put_number(out, left.min(u32::MAX.into()));
                [looked_at, &after, &last].iter().for_each(|part| codec::put(out, part));
                request.message_ids.iter().for_each(|id| codec::put(out, id.as_bytes()));
            };
            let (arguments, script) = (4 + request.message_ids.len(), Script::QueueRedrive);
            let read = self.queue_script(context, request.queue, script, arguments, write).await?;
            let mut answer = Answer::new(context, &read);
            if answer.array()? != 3 {
                return Err(errors::unexpected(context));
            }
            let page = answer.integer()?.unsigned_abs();
            (redriven, left) = (redriven + page, left.saturating_sub(page));
            after = answer.blob()?.unwrap_or_default().to_vec();
            last = answer.blob()?.unwrap_or_default().to_vec();
            if !is_alone || after.is_empty() || left == 0 {
                return Ok(redriven);
            }
        }
    }

    async fn count_messages(&self, context: &Context<'_>, queue: &str) -> Result<Counted, Error> {
        let read = self.queue_script(context, queue, Script::QueueCount, 0, |_| {}).await?;
        let mut answer = Answer::new(context, &read);
        if answer.array()? != 3 {
            return Err(errors::unexpected(context));
        }
        let (there, next_us) = (answer.integer()?, answer.integer()?);
        Ok(Counted {
            there: usize::try_from(there).unwrap_or(0),
            next_us: u64::try_from(next_us).ok(),
            scheduled: u64::try_from(answer.integer()?).unwrap_or(0),
        })
    }
}

impl QueueBasic for Redis {
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
        // With the number of the delivery it is one that no other has, also where the queue was deleted by hand meanwhile.
        let lease = format!("{:x}", context.now_us);
        let write = |out: &mut Vec<u8>| {
            codec::put_number(out, wanted.into());
            codec::put_number(out, until_us);
            codec::put_number(out, room as u64);
            codec::put(out, lease.as_bytes());
        };
        let script = Script::QueueReceive;
        let received = self.queue_script(context, request.queue, script, 4, write).await;
        self.promises.give_back((context.namespace, request.queue), wanted as usize);
        let read = received?;
        let mut answer = Answer::new(context, &read);
        let mut deliveries = Vec::new();
        for _ in 0..answer.array()? / 3 {
            let place = number(context, answer.blob()?)?;
            let attempt = u32::try_from(answer.integer()?).unwrap_or(u32::MAX);
            let kept = Kept::read(&mut answer)?;
            deliveries.push(delivery(kept, place, (attempt, &lease), until_us));
        }
        encode(reply, &reply::ReceiveResponse { deliveries });
        Ok(())
    }

    async fn acknowledge(
        &self,
        context: &Context<'_>,
        request: AcknowledgeRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let (what, receipts) = ((&b"acknowledge"[..], ""), request.receipts.iter());
        let statuses = self.settle(context, request.queue, what, receipts).await?;
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
        let (what, receipts) = ((&b"reject"[..], request.reason), request.receipts.iter());
        let statuses = self.settle(context, request.queue, what, receipts).await?;
        let results = statuses.into_iter().map(|status| reply::RejectResult { status }).collect();
        encode(reply, &reply::RejectResponse { results });
        Ok(())
    }

    async fn messages_ready(&self, context: &Context<'_>, request: ReceiveRequest<'_>) {
        let wanted = request.max_messages.max(1) as usize;
        let queue = (context.namespace, request.queue);
        let mut context = *context;
        let key_name = match self.cluster() {
            None => format!("{}:{}", context.namespace_name, request.queue),
            Some(_) => tagged(&context, request.queue),
        };
        let mut told = None;
        loop {
            // What is wrong, the call itself hears.
            let Ok(counted) = self.count_messages(&context, request.queue).await else { return };
            if self.promises.claim(queue, counted.there, wanted, context.now_us) {
                return;
            }
            if let Some(told) = told.take() {
                let ends = [counted.next_us, self.promises.end_us(queue)];
                match ends.into_iter().flatten().min() {
                    Some(us) => {
                        let left = Duration::from_micros(us.saturating_sub(context.now_us));
                        rt::timeout(left, told).await;
                    }
                    None => told.await,
                }
                context.now_us = context.now_us.max(clock::wall_us());
            }
            // Then it looks again: something may have come in between.
            let Ok(listener) = self.topics.attend(&context, &key_name).await else { return };
            told = Some(listener);
        }
    }
}

impl QueueVisibility for Redis {
    async fn extend_visibility(
        &self,
        context: &Context<'_>,
        request: ExtendVisibilityRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let lease_us = request.visibility_timeout.as_ref().map_or(0, span_ms) * 1000;
        let until_us = context.now_us.saturating_add(lease_us);
        self.change(context, (request.queue, request.receipt), b"extend", until_us).await?;
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
        self.change(context, (request.queue, request.receipt), b"release", due_us).await
    }
}

impl QueueDeadLetter for Redis {
    async fn configure_dead_letter(
        &self,
        context: &Context<'_>,
        request: ConfigureDeadLetterRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        let write = |out: &mut Vec<u8>| codec::put_number(out, request.max_deliveries.into());
        let script = Script::QueueConfigure;
        let read = self.queue_script(context, request.queue, script, 1, write).await?;
        Answer::new(context, &read).integer().map(drop)
    }

    async fn list_dead_letters(
        &self,
        context: &Context<'_>,
        request: ListDeadLettersRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let after = read_token(context, request.queue, request.page_token)?.cursor;
        let page = page_entries(request.page_size);
        let room = context.limits.max_message_size.saturating_sub(ANSWER_SPARE_BYTES);
        let queue = (request.queue, true);
        let Looked { is_all, found } = self.look_into(context, queue, after, page, room).await?;
        let mut answer = reply::ListDeadLettersResponse::default();
        let last = found.last().map(|(number, ..)| *number);
        if let (false, Some(last)) = (is_all, last) {
            answer.next_page_token = sign(context, request.queue, Place::at(last));
        }
        let letters = found.into_iter().map(|(_, since_us, kept)| dead_letter(kept, since_us));
        answer.dead_letters = letters.collect();
        encode(reply, &answer);
        Ok(())
    }

    async fn redrive(
        &self,
        context: &Context<'_>,
        request: RedriveRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let redriven = self.redrive_pages(context, &request).await?;
        encode(reply, &reply::RedriveResponse { redriven });
        Ok(())
    }
}

impl QueuePriority for Redis {
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

impl QueueDelayed for Redis {
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
        let count = self.count_messages(context, request.queue).await?.scheduled;
        encode(reply, &reply::GetScheduledCountResponse { count });
        Ok(())
    }
}
