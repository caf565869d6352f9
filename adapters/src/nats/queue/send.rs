//! Messages on their way into a queue.

use prism_io::clock::wall_us;
use prism_proto::catalogue::Method;
use prism_proto::view::queue::{SendBatchRequest, SendDelayedRequest, SendRequest};
use prism_proto::view::types::Message;

use super::super::Nats;
use super::super::errors;
use super::super::event::header_bytes;
use super::super::jetstream::{Holds, Stored, stored};
use super::super::lane::MESSAGE_TOO_LARGE;
use super::super::link::{Answer, Ask, Outgoing};
use super::message::{lane_of, outgoing};
use crate::call::Context;
use crate::error::Error;
use crate::interfaces::message::{due_us, identity};

/// What a message takes beside what an event takes, at most: when and to where it is brought, and what its sender said of that.
const EXTRA_BYTES: usize = 1024;

impl Nats {
    /// Puts messages into a queue, in their order: each one's identity, or why it was not sent.
    pub(super) async fn send_all(
        &self,
        context: &Context<'_>,
        queue: &str,
        messages: &[Message<'_>],
    ) -> Result<Vec<Result<String, Error>>, Error> {
        let bytes_max = self.link.payload_bytes_max();
        let fits = |message: &Message<'_>| {
            message.payload.len() + header_bytes(message) + EXTRA_BYTES <= bytes_max
        };
        let now_us = context.now_us.max(wall_us());
        let (mut ids, mut sent) = (Vec::new(), Vec::new());
        for (index, message) in messages.iter().enumerate() {
            let id = identity(context, index, message);
            let due_us = Some(due_us(message, context.now_us)).filter(|due_us| *due_us > now_us);
            if fits(message) {
                let lane = due_us.is_none().then(|| lane_of(message.ordering_key));
                sent.push((lane, outgoing(context, queue, message, &id, due_us)));
            }
            ids.push(id);
        }
        self.prepare_queue(context, queue, messages).await?;
        let mut outcomes = self.store_messages(context, queue, sent).await?.into_iter();
        let result = |(message, id): (&Message<'_>, String)| match fits(message) {
            true => {
                outcomes.next().unwrap_or_else(|| Err(errors::unexpected(context))).map(|()| id)
            }
            false => Err(errors::message_too_large(bytes_max)),
        };
        Ok(messages.iter().zip(ids).map(result).collect())
    }

    /// Has messages stored that go to these lanes, or to none yet, side by side; each one's outcome.
    pub(super) async fn store_messages(
        &self,
        context: &Context<'_>,
        queue: &str,
        messages: Vec<(Option<u8>, Outgoing)>,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let (lanes, messages): (Vec<_>, Vec<_>) = messages.into_iter().unzip();
        let (holds, key) = (Holds::Messages(queue), (context.namespace, queue));
        let answer = self.ask_stream(context, holds, &Ask::Each(messages)).await;
        if answer.as_ref().is_err_and(Error::is_retryable) {
            // Somebody may have deleted it.
            self.streams.forget(context, holds);
        }
        let Answer::Several(answers) = answer? else { return Err(errors::unexpected(context)) };
        let mut outcomes = Vec::with_capacity(answers.len());
        for (answer, lane) in answers.iter().zip(lanes) {
            outcomes.push(match stored(context, answer) {
                Ok(Stored::At(sequence)) => {
                    self.queues.leases.with(key, |known| {
                        if let Some(lane) = lane.and_then(|lane| known.lanes.get_mut(&lane)) {
                            lane.sent = lane.sent.max(sequence);
                        }
                    });
                    Ok(())
                }
                Ok(Stored::Unexpected) => return Err(errors::unexpected(context)),
                // It is that message's own.
                Err(error) if error.reason() == MESSAGE_TOO_LARGE => Err(error),
                Err(error) => return Err(error),
            });
        }
        self.queues.sources.tell(context.namespace, queue);
        Ok(outcomes)
    }

    /// Makes what messages need to be stored and handed out.
    async fn prepare_queue(
        &self,
        context: &Context<'_>,
        queue: &str,
        messages: &[Message<'_>],
    ) -> Result<(), Error> {
        let lanes = || messages.iter().map(|message| lane_of(message.ordering_key));
        self.ensure_stream(context, Holds::Messages(queue)).await?;
        if self.ensure_lanes(context, queue, lanes()).await? {
            return Ok(());
        }
        // Somebody has deleted it.
        self.streams.forget(context, Holds::Messages(queue));
        self.ensure_stream(context, Holds::Messages(queue)).await?;
        self.ensure_lanes(context, queue, lanes()).await.map(drop)
    }

    /// The same for what a record sends, so that it can be sent at once, in its turn.
    pub(in super::super) async fn prepare_record(
        &self,
        context: &Context<'_>,
        method: Method,
        request: &[u8],
    ) -> Result<(), Error> {
        match method {
            Method::QUEUE_SEND => {
                let Ok(request) = SendRequest::decode(request) else { return Ok(()) };
                self.prepare_queue(context, request.queue, request.message.as_slice()).await
            }
            Method::QUEUE_SEND_DELAYED => {
                let Ok(request) = SendDelayedRequest::decode(request) else { return Ok(()) };
                self.prepare_queue(context, request.queue, request.message.as_slice()).await
            }
            Method::QUEUE_SEND_BATCH => {
                let Ok(request) = SendBatchRequest::decode(request) else { return Ok(()) };
                let messages: Vec<_> = request.messages.iter().collect();
                self.prepare_queue(context, request.queue, &messages).await
            }
            _ => Ok(()),
        }
    }
}
