//! Looking at a queue's messages and dead letters without taking anything.

use prost::Message as _;
use serde_json::json;

use super::super::Nats;
use super::super::event::expires_at_us;
use super::super::jetstream::Holds;
use super::message::Kept;
use crate::call::Context;
use crate::error::Error;
use crate::interfaces::keyvalue_selection::PAGE_BYTES;
use crate::reader::{Peek, PeekFuture, Peeked};

impl Peek for Nats {
    fn peek<'a>(
        &'a self,
        context: &'a Context<'a>,
        queue: &'a str,
        dead: bool,
        after: Option<u64>,
        messages_max: usize,
    ) -> PeekFuture<'a> {
        Box::pin(self.peek_at(context, (queue, dead), after, messages_max))
    }
}

impl Nats {
    async fn peek_at(
        &self,
        context: &Context<'_>,
        (queue, dead): (&str, bool),
        after: Option<u64>,
        messages_max: usize,
    ) -> Result<(Vec<Peeked>, bool), Error> {
        // What was delivered often enough is a dead letter, though nothing was written since.
        self.pass_time(context, queue).await?;
        let holds = if dead { Holds::Dead(queue) } else { Holds::Messages(queue) };
        if !self.has_stream(context, holds).await? {
            return Ok((Vec::new(), true));
        }
        let mut next = after.map_or(1, |after| after.saturating_add(1)).max(1);
        loop {
            let request = json!({
                "seq": next,
                "next_by_subj": ">",
                "batch": messages_max,
                "max_bytes": PAGE_BYTES.min(context.limits.max_message_size / 2),
            });
            let walked = self.read_batch(context, holds, request).await?;
            let (mut peeked, mut bytes) = (Vec::new(), 0);
            for (sequence, message) in walked.records {
                let kept = Kept::read(message, sequence, None);
                next = sequence + 1;
                if !dead && expires_at_us(&kept.message) <= context.now_us {
                    continue;
                }
                let message_bytes = kept.message.encoded_len() + 64;
                // One that is larger than a page has a page of its own.
                if bytes > 0 && bytes + message_bytes > context.limits.max_message_size {
                    return Ok((peeked, false));
                }
                bytes += message_bytes;
                peeked.push(Peeked::new(sequence, kept.message, kept.sent_us));
            }
            // A page whose messages have all expired says nothing of those behind.
            if walked.behind == 0 || !peeked.is_empty() {
                return Ok((peeked, walked.behind == 0));
            }
        }
    }
}
