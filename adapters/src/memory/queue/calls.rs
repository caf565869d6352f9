//! The interfaces of QueueService on memstore.

use std::hash::BuildHasher;

use prism_proto::prism::queue::v1 as reply;
use prism_proto::prism::r#type::v1::{Delivery, Message};
use prism_proto::view::protobuf::Duration;
use prism_proto::view::queue::{
    AcknowledgeRequest, ConfigureDeadLetterRequest, ExtendVisibilityRequest,
    GetScheduledCountRequest, ListDeadLettersRequest, ReceiveRequest, RedriveRequest,
    RejectRequest, ReleaseRequest, SendBatchRequest, SendDelayedRequest, SendRequest,
    SendWithPriorityRequest,
};
use prism_proto::view::types as view;
use prost::Message as _;

use super::super::Memstore;
use super::entries::DeadLetter;
use super::state::{Known, Lease, Passed, Queue};
use crate::call::{Context, Reply, Revision};
use crate::error::Error;
use crate::interfaces::keyvalue_selection::page_entries;
use crate::interfaces::message::{due_us, expires_us, identity, item_status, owned, span_ms, time};
use crate::interfaces::queue::{
    QueueBasic, QueueDeadLetter, QueueDelayed, QueuePriority, QueueVisibility, receipt_expired,
};
use crate::limits::LEASE_DEFAULT_MS;

/// The reason of a dead letter that was delivered too often.
const MAX_DELIVERIES: &str = "MAX_DELIVERIES";
/// Bytes of an answer that are kept free beside its deliveries.
const ANSWER_SPARE_BYTES: usize = 256;

impl QueueBasic for Memstore {
    async fn send(
        &self,
        context: &Context<'_>,
        request: SendRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let message_id = self.put_message(context, request.queue, request.message, 0);
        encode(reply, &reply::SendResponse { message_id });
        Ok(())
    }

    async fn send_batch(
        &self,
        context: &Context<'_>,
        request: SendBatchRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let results = request.messages.iter().enumerate().map(|(index, message)| {
            let message_id = self.put_message(context, request.queue, Some(message), index);
            reply::SendBatchResult { status: None, message_id }
        });
        let answer = reply::SendBatchResponse { results: results.collect() };
        encode(reply, &answer);
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
        let room_bytes = context.limits.max_message_size.saturating_sub(ANSWER_SPARE_BYTES);
        let mut answer = reply::ReceiveResponse::default();
        let mut answer_bytes = 0;
        self.with_queue(context, request.queue, |queue| {
            queue.give_claim_back(wanted);
            while answer.deliveries.len() < wanted
                && let Some(number) = queue.head()
            {
                let Some(message) = self.kept_message(context.namespace, request.queue, number)
                else {
                    unreachable!("a message that is known is kept");
                };
                let index = answer.deliveries.len() as u32;
                let until_us = context.now_us.saturating_add(lease_us);
                let lease = Lease { revision: context.revision, index, until_us };
                let bytes = message.encoded_len() + ANSWER_SPARE_BYTES;
                // The first always fits: what a namespace takes in, it can deliver.
                if index > 0 && answer_bytes + bytes > room_bytes {
                    break;
                }
                let Some(known) = queue.lease(number, lease) else { break };
                answer_bytes += bytes;
                self.keep_deliveries(context, request.queue, number, known);
                answer.deliveries.push(Delivery {
                    receipt: receipt(number, &lease),
                    attempt: known.attempts,
                    sent_at: Some(time(known.sent_us)),
                    lease_expires_at: Some(time(until_us)),
                    message: Some(message),
                });
            }
        });
        encode(reply, &answer);
        Ok(())
    }

    async fn acknowledge(
        &self,
        context: &Context<'_>,
        request: AcknowledgeRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let mut results = Vec::with_capacity(request.receipts.len());
        self.with_queue(context, request.queue, |queue| {
            for receipt in request.receipts.iter() {
                let leased = find(queue, receipt);
                let status = leased.as_ref().err().map(item_status);
                if let Ok((number, _)) = leased {
                    queue.remove(number);
                    self.forget_message(context, request.queue, number);
                }
                results.push(reply::AcknowledgeResult { status });
            }
        });
        encode(reply, &reply::AcknowledgeResponse { results });
        Ok(())
    }

    async fn reject(
        &self,
        context: &Context<'_>,
        request: RejectRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let mut results = Vec::with_capacity(request.receipts.len());
        self.with_queue(context, request.queue, |queue| {
            for receipt in request.receipts.iter() {
                let leased = find(queue, receipt);
                let status = leased.as_ref().err().map(item_status);
                if let Ok((number, _)) = leased {
                    let (reason, at_us) = (request.reason, context.now_us);
                    self.give_up(context, request.queue, queue, (number, reason, at_us));
                }
                results.push(reply::RejectResult { status });
            }
        });
        encode(reply, &reply::RejectResponse { results });
        Ok(())
    }

    async fn messages_ready(&self, context: &Context<'_>, request: ReceiveRequest<'_>) {
        let wanted = request.max_messages.max(1) as usize;
        let mut attendance = self.queue_sources.attend(context.namespace, request.queue);
        let mut now_us = context.now_us;
        loop {
            let key = (context.namespace, Box::from(request.queue));
            let again_us = match self.queues.borrow_mut().get_mut(&key) {
                Some(queue) => match queue.claim(wanted, now_us) {
                    Ok(()) => return,
                    Err(again_us) => again_us,
                },
                None => None,
            };
            match again_us {
                Some(again_us) => {
                    let left = std::time::Duration::from_micros(again_us.saturating_sub(now_us));
                    prism_io::rt::timeout(left, attendance.told()).await;
                }
                None => attendance.told().await,
            }
            now_us = now_us.max(prism_io::clock::wall_us());
        }
    }
}

impl QueuePriority for Memstore {
    async fn send_with_priority(
        &self,
        context: &Context<'_>,
        request: SendWithPriorityRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let message_id = self.put_message(context, request.queue, request.message, 0);
        encode(reply, &reply::SendWithPriorityResponse { message_id });
        Ok(())
    }
}

impl QueueDelayed for Memstore {
    async fn send_delayed(
        &self,
        context: &Context<'_>,
        request: SendDelayedRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let message_id = self.put_message(context, request.queue, request.message, 0);
        encode(reply, &reply::SendDelayedResponse { message_id });
        Ok(())
    }

    async fn get_scheduled_count(
        &self,
        context: &Context<'_>,
        request: GetScheduledCountRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let queues = self.queues.borrow();
        let queue = queues.get(&(context.namespace, Box::from(request.queue)));
        let count = queue.map_or(0, |queue| queue.scheduled(context.now_us));
        encode(reply, &reply::GetScheduledCountResponse { count });
        Ok(())
    }
}

impl QueueVisibility for Memstore {
    async fn extend_visibility(
        &self,
        context: &Context<'_>,
        request: ExtendVisibilityRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let lease_us = request.visibility_timeout.as_ref().map_or(0, span_ms) * 1000;
        let until_us = context.now_us.saturating_add(lease_us);
        self.with_queue(context, request.queue, |queue| {
            let (number, lease) = find(queue, request.receipt)?;
            let due_us = queue.message(number).map_or(0, |known| known.due_us);
            queue.change(number, Some(Lease { until_us, ..lease }), due_us);
            if let Some(known) = queue.message(number) {
                self.keep_deliveries(context, request.queue, number, known);
            }
            Ok::<_, Error>(())
        })?;
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
        let delay: Option<Duration> = request.delay;
        let due_us = context.now_us.saturating_add(delay.as_ref().map_or(0, span_ms) * 1000);
        self.with_queue(context, request.queue, |queue| {
            let (number, _) = find(queue, request.receipt)?;
            if let Some(known) = queue.message(number)
                && queue.max_deliveries > 0
                && known.attempts >= queue.max_deliveries
            {
                let given_up = (number, MAX_DELIVERIES, context.now_us);
                self.give_up(context, request.queue, queue, given_up);
                return Ok(());
            }
            queue.change(number, None, due_us);
            if let Some(known) = queue.message(number) {
                self.keep_deliveries(context, request.queue, number, known);
            }
            Ok::<_, Error>(())
        })
    }
}

impl QueueDeadLetter for Memstore {
    async fn configure_dead_letter(
        &self,
        context: &Context<'_>,
        request: ConfigureDeadLetterRequest<'_>,
        _: &mut Reply,
    ) -> Result<(), Error> {
        self.with_queue(context, request.queue, |queue| {
            (queue.max_deliveries, queue.keeps_dead) = (request.max_deliveries, true);
            self.keep_settings(context, request.queue, queue);
        });
        Ok(())
    }

    async fn list_dead_letters(
        &self,
        context: &Context<'_>,
        request: ListDeadLettersRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let from = match request.page_token {
            "" => 0,
            token => self.read_token(context, request.queue, token)?,
        };
        let queues = self.queues.borrow();
        let mut answer = reply::ListDeadLettersResponse::default();
        let Some(queue) = queues.get(&(context.namespace, Box::from(request.queue))) else {
            return Ok(());
        };
        // What has been given up by now, though nothing was written since: at most as many as were leased.
        let mut numbers: Vec<(u64, Option<u64>)> =
            queue.given_up(context.now_us).map(|(number, at_us)| (number, Some(at_us))).collect();
        numbers.retain(|&(number, _)| number >= from);
        let page = page_entries(request.page_size);
        numbers.extend(queue.dead.range(from..).take(page + 1).map(|(number, _)| (*number, None)));
        numbers.sort_unstable();
        let mut bytes = 0;
        for (number, at_us) in numbers {
            let letter = match at_us {
                None => self.kept_dead(context.namespace, request.queue, number),
                Some(at_us) => queue.message(number).and_then(|known| {
                    let message = self.kept_message(context.namespace, request.queue, number)?;
                    Some(dead_letter(known, MAX_DELIVERIES, at_us, message))
                }),
            };
            let Some(letter) = letter else { continue };
            let letter = reply::DeadLetter {
                reason: letter.reason,
                attempts: letter.attempts,
                sent_at: Some(time(letter.sent_us)),
                dead_at: Some(time(letter.dead_us)),
                message: Some(letter.message),
            };
            bytes += letter.encoded_len() + 16;
            let is_full = bytes + ANSWER_SPARE_BYTES > context.limits.max_message_size;
            if answer.dead_letters.len() == page || is_full && !answer.dead_letters.is_empty() {
                answer.next_page_token = self.sign_token(context, request.queue, number);
                break;
            }
            answer.dead_letters.push(letter);
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
        let limit = if request.limit == 0 { u64::MAX } else { u64::from(request.limit) };
        let mut redriven = 0;
        self.with_queue(context, request.queue, |queue| {
            let wanted: std::collections::HashSet<&str> = request.message_ids.iter().collect();
            let chosen = |id: &str| wanted.is_empty() || wanted.contains(id);
            let dead = queue.dead.iter().filter(|(_, id)| chosen(id));
            let numbers: Vec<u64> = dead.map(|(number, _)| *number).collect();
            for number in numbers {
                if redriven == limit {
                    break;
                }
                let letter = self.kept_dead(context.namespace, request.queue, number);
                queue.dead.remove(&number);
                self.forget_dead(context, request.queue, number);
                let Some(letter) = letter else { continue };
                let known = Known {
                    priority: letter.message.priority.unwrap_or(0) as u8,
                    sent_us: context.now_us,
                    due_us: context.now_us,
                    expires_us: letter.message.expires_at.map_or(u64::MAX, |at| {
                        (at.seconds.max(0) as u64) * 1_000_000 + (at.nanos / 1000) as u64
                    }),
                    attempts: 0,
                    lease: None,
                    ordering_key: ordering_key(&letter.message),
                };
                let next = queue.next_number();
                self.keep_message(context, request.queue, next, (&known, &letter.message));
                queue.insert(next, known);
                redriven += 1;
            }
        });
        self.queue_sources.tell(context.namespace, request.queue);
        encode(reply, &reply::RedriveResponse { redriven });
        Ok(())
    }
}

impl Memstore {
    /// Works on a queue after the time has passed for it; one that is left with nothing is no more.
    fn with_queue<R>(
        &self,
        context: &Context<'_>,
        name: &str,
        work: impl FnOnce(&mut Queue) -> R,
    ) -> R {
        let mut queues = self.queues.borrow_mut();
        let key = (context.namespace, Box::from(name));
        let queue = queues.entry(key).or_default();
        while let Some((number, passed)) = queue.pass(context.now_us) {
            match passed {
                Passed::Expired => {
                    queue.remove(number);
                    self.forget_message(context, name, number);
                }
                Passed::GivenUp { at_us } => {
                    self.give_up(context, name, queue, (number, MAX_DELIVERIES, at_us));
                }
            }
        }
        let result = work(queue);
        if queue.is_empty() {
            queues.remove(&(context.namespace, Box::from(name)));
        }
        result
    }

    fn put_message(
        &self,
        context: &Context<'_>,
        queue: &str,
        message: Option<view::Message<'_>>,
        index: usize,
    ) -> String {
        let sent = message.unwrap_or_default();
        let id = identity(context, index, &sent);
        let message = owned(&sent, id.clone());
        let known = Known {
            priority: sent.priority.unwrap_or(0) as u8,
            sent_us: context.now_us,
            due_us: due_us(&sent, context.now_us),
            expires_us: expires_us(&sent),
            attempts: 0,
            lease: None,
            ordering_key: ordering_key(&message),
        };
        self.with_queue(context, queue, |state| {
            let number = state.next_number();
            self.keep_message(context, queue, number, (&known, &message));
            state.insert(number, known);
        });
        self.queue_sources.tell(context.namespace, queue);
        id
    }

    /// Makes a dead letter of a message, or removes it where the queue keeps none.
    fn give_up(
        &self,
        context: &Context<'_>,
        name: &str,
        queue: &mut Queue,
        (number, reason, at_us): (u64, &str, u64),
    ) {
        let message = self.kept_message(context.namespace, name, number);
        let known = queue.remove(number);
        self.forget_message(context, name, number);
        if let (true, Some(known), Some(message)) = (queue.keeps_dead, known, message) {
            queue.insert_dead(number, &message.id);
            self.keep_dead(context, name, number, &dead_letter(&known, reason, at_us, message));
        }
    }

    fn sign_token(&self, context: &Context<'_>, queue: &str, number: u64) -> String {
        let signature = self.page_signer.hash_one((context.namespace, queue, number));
        format!("{number:016x}{signature:016x}")
    }

    fn read_token(&self, context: &Context<'_>, queue: &str, token: &str) -> Result<u64, Error> {
        let number = token.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        number.filter(|number| self.sign_token(context, queue, *number) == token).ok_or_else(|| {
            let expected = "does not belong to this namespace and queue, or is from before a \
                            restart: begin without one";
            Error::field("PAGE_TOKEN_INVALID", "page_token", expected)
        })
    }
}

fn dead_letter(known: &Known, reason: &str, dead_us: u64, message: Message) -> DeadLetter {
    let (attempts, sent_us) = (known.attempts, known.sent_us);
    DeadLetter { attempts, sent_us, dead_us, reason: reason.to_owned(), message }
}

fn ordering_key(message: &Message) -> Option<Box<str>> {
    (!message.ordering_key.is_empty()).then(|| message.ordering_key.as_str().into())
}

fn encode(reply: &mut Reply, answer: &impl prost::Message) {
    answer.encode_raw(&mut reply.head);
}

/// A receipt: the message's number and the delivery's record.
fn receipt(number: u64, lease: &Lease) -> String {
    let Revision { lsn, epoch, minor } = lease.revision;
    format!("{number:x}-{lsn:x}-{epoch:x}-{minor:x}-{:x}", lease.index)
}

/// The message whose present delivery a receipt is of.
fn find(queue: &Queue, receipt: &str) -> Result<(u64, Lease), Error> {
    let mut numbers = receipt.split('-').map(|digits| u64::from_str_radix(digits, 16).ok());
    let mut next = || numbers.next().flatten();
    let found = (|| {
        let number = next()?;
        let (lsn, epoch) = (next()?, u32::try_from(next()?).ok()?);
        let (minor, index) = (next()?, next()?);
        let lease = queue.message(number)?.lease?;
        let is_it =
            lease.revision == Revision { lsn, epoch, minor } && u64::from(lease.index) == index;
        is_it.then_some((number, lease))
    })();
    found.ok_or_else(receipt_expired)
}
