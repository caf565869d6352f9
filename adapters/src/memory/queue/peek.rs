//! Looking at a queue's messages and dead letters without taking anything.

use std::collections::BTreeMap;

use prost::Message as _;

use super::super::Memstore;
use super::state::Queue;
use crate::call::Context;
use crate::interfaces::keyvalue_selection::PAGE_BYTES;
use crate::reader::{Peek, PeekFuture, Peeked};

impl Peek for Memstore {
    fn peek<'a>(
        &'a self,
        context: &'a Context<'a>,
        name: &'a str,
        dead: bool,
        after: Option<u64>,
        messages_max: usize,
    ) -> PeekFuture<'a> {
        let peeked = self.peek_now(context, (name, dead), after, messages_max);
        Box::pin(std::future::ready(Ok(peeked)))
    }
}

impl Memstore {
    fn peek_now(
        &self,
        context: &Context<'_>,
        (name, dead): (&str, bool),
        after: Option<u64>,
        messages_max: usize,
    ) -> (Vec<Peeked>, bool) {
        let queues = self.queues.borrow();
        let Some(queue) = queues.get(&(context.namespace, Box::from(name))) else {
            return (Vec::new(), true);
        };
        let numbers: Vec<u64> = if dead {
            dead_after(queue, after, context.now_us, messages_max)
        } else {
            let gone: BTreeMap<u64, u64> = queue.given_up(context.now_us).collect();
            let alive = queue.messages_after(after).filter(|(number, known)| {
                known.expires_us > context.now_us && !gone.contains_key(number)
            });
            // One more tells whether there are more.
            alive.map(|(number, _)| number).take(messages_max + 1).collect()
        };
        let (mut peeked, mut bytes) = (Vec::new(), 0);
        for number in numbers {
            if peeked.len() == messages_max || bytes >= PAGE_BYTES {
                return (peeked, false);
            }
            let known = queue.message(number);
            let letter = match dead {
                true => self.kept_dead(context.namespace, name, number),
                false => None,
            };
            let found = match (letter, known) {
                (Some(letter), _) => Some((letter.message, letter.sent_us)),
                (None, Some(known)) => {
                    let message = self.kept_message(context.namespace, name, number);
                    message.map(|message| (message, known.sent_us))
                }
                (None, None) => None,
            };
            let Some((message, sent_us)) = found else { continue };
            let message_bytes = message.encoded_len() + 64;
            // One that is larger than a page has a page of its own.
            if bytes > 0 && bytes + message_bytes > context.limits.max_message_size {
                return (peeked, false);
            }
            bytes += message_bytes;
            peeked.push(Peeked::new(number, message, sent_us));
        }
        (peeked, true)
    }
}

/// The numbers of the dead letters after one, also of what was given up by now though nothing was written since.
fn dead_after(queue: &Queue, after: Option<u64>, now_us: u64, messages_max: usize) -> Vec<u64> {
    let from = after.map_or(0, |after| after.saturating_add(1));
    let given_up =
        queue.given_up(now_us).map(|(number, _)| number).filter(|number| *number >= from);
    let mut numbers: Vec<u64> = given_up.collect();
    numbers.extend(queue.dead.range(from..).take(messages_max + 1).map(|(number, _)| *number));
    numbers.sort_unstable();
    numbers.truncate(messages_max + 1);
    numbers
}
