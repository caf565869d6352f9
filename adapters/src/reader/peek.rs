//! Reading a queue without taking anything: its messages, waiting or leased, and its dead letters, oldest first.

use prism_proto::prism::reader::v1 as reader;

use super::cursor;
use super::request::Read;
use super::walk::Out;
use crate::call::Context;
use crate::error::Error;

/// Messages that are looked at in one turn.
const PEEKED_MAX: usize = 64;

/// A message that was looked at.
#[derive(Debug)]
pub struct Peeked {
    /// Its number in the queue; later messages have greater ones.
    pub number: u64,
    /// The message as a record.
    pub record: reader::Record,
}

/// A store of queues whose messages can be looked at.
pub trait Peek {
    /// The next messages of a queue, or dead letters, with greater numbers than `after`, at most `messages_max` and as many as
    /// fit on a page; and whether there are no more.
    fn peek(
        &self,
        context: &Context<'_>,
        queue: &str,
        dead: bool,
        after: Option<u64>,
        messages_max: usize,
    ) -> (Vec<Peeked>, bool);
}

/// Reads a queue. The end is what is there when the read comes to it.
pub(super) async fn read<O: Out>(
    peek: &dyn Peek,
    context: &Context<'_>,
    (queue, dead): (&str, bool),
    read: Read,
    out: &mut O,
) -> Result<(), Error> {
    let mut after = cursor::after_number(&read.start)?;
    let mut left = if read.limit == 0 { u64::MAX } else { read.limit };
    let page_size = read.page_size.min(PEEKED_MAX);
    loop {
        let most = (page_size as u64).min(left).max(1) as usize;
        let now = Context { now_us: out.now_us(), ..*context };
        let (peeked, is_end) = peek.peek(&now, queue, dead, after, most);
        after = peeked.last().map(|one| one.number).or(after);
        let base = match after {
            Some(number) => cursor::of_number(number),
            None => cursor::begin(&read.start, context.now_us),
        };
        let records: Vec<_> =
            peeked.into_iter().map(|one| one.record).filter(|one| read.takes(one)).collect();
        left -= records.len() as u64;
        out.page(records, &base, is_end).await?;
        if is_end || left == 0 {
            return Ok(());
        }
        prism_io::rt::yield_now().await;
    }
}
