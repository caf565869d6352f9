//! Looking at a queue's messages and dead letters without taking anything.

use super::super::Redis;
use super::{ANSWER_SPARE_BYTES, Looked};
use crate::call::Context;
use crate::error::Error;
use crate::reader::{Peek, PeekFuture, Peeked};

impl Peek for Redis {
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

impl Redis {
    async fn peek_at(
        &self,
        context: &Context<'_>,
        (queue, dead): (&str, bool),
        after: Option<u64>,
        messages_max: usize,
    ) -> Result<(Vec<Peeked>, bool), Error> {
        let room = context.limits.max_message_size.saturating_sub(ANSWER_SPARE_BYTES);
        // Numbers begin with 1.
        let after = after.unwrap_or(0);
        let Looked { is_all, found } =
            self.look_into(context, (queue, dead), after, messages_max, room).await?;
        let peeked = found
            .into_iter()
            .map(|(number, _, kept)| Peeked::new(number, kept.message, kept.sent_us))
            .collect();
        Ok((peeked, is_all))
    }
}
