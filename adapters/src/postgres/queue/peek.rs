//! Looking at a queue's messages and dead letters without taking anything.

use super::super::Postgres;
use super::super::codec::Parameters;
use super::rows::message;
use super::{ANSWER_SPARE_BYTES, QueueStatement, other};
use crate::call::Context;
use crate::error::Error;
use crate::reader::{Peek, PeekFuture, Peeked};

impl Peek for Postgres {
    fn peek<'a>(
        &'a self,
        context: &'a Context<'a>,
        queue: &'a str,
        dead: bool,
        after: Option<u64>,
        messages_max: usize,
    ) -> PeekFuture<'a> {
        Box::pin(self.look(context, (queue, dead), after, messages_max))
    }
}

impl Postgres {
    async fn look(
        &self,
        context: &Context<'_>,
        (queue, dead): (&str, bool),
        after: Option<u64>,
        messages_max: usize,
    ) -> Result<(Vec<Peeked>, bool), Error> {
        let statement = if dead { QueueStatement::DeadLetters } else { QueueStatement::Peek };
        let room = context.limits.max_message_size.saturating_sub(ANSWER_SPARE_BYTES);
        let after = after.map_or(-1, |after| i64::try_from(after).unwrap_or(i64::MAX));
        // One more tells whether there are more.
        let parameters = Parameters::default()
            .bytes(queue.as_bytes())
            .moment(context.now_us)
            .int8(after)
            .int8(i64::try_from(messages_max).unwrap_or(i64::MAX).saturating_add(1))
            .int8(i64::try_from(room).unwrap_or(i64::MAX));
        let rows = self.read(context, vec![other(statement, parameters)]).await?.rows;
        // A payload that is not told did not fit any more.
        let told = rows.iter().map(|(_, row)| row).take_while(|row| row.value.is_some());
        let peeked: Vec<_> = told
            .take(messages_max)
            .map(|row| {
                let number = u64::try_from(row.version).unwrap_or(0);
                Peeked::new(number, message(row), row.expires_us.unwrap_or_default())
            })
            .collect();
        let is_end = peeked.len() == rows.len();
        Ok((peeked, is_end))
    }
}
