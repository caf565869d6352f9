//! Reading a queue without taking anything: its messages, waiting or leased, and its dead letters, oldest first.

use std::pin::Pin;

use prism_proto::prism::reader::v1 as reader;
use prism_proto::prism::r#type::v1::Message;

use super::cursor;
use super::request::Read;
use super::walk::Out;
use crate::call::Context;
use crate::error::Error;
use crate::interfaces::message::time;

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

impl Peeked {
    /// A message of a queue with its number, accepted at `sent_us`, µs since the epoch.
    pub(crate) fn new(number: u64, message: Message, sent_us: u64) -> Self {
        let record = reader::Record {
            key: Some(message.id),
            content_type: message.content_type,
            attributes: message.attributes,
            timestamp: Some(time(sent_us)),
            expires_at: message.expires_at,
            value: message.payload,
            ..reader::Record::default()
        };
        Peeked { number, record }
    }
}

/// What is found: messages, and whether there are no more.
pub type PeekFuture<'a> = Pin<Box<dyn Future<Output = Result<(Vec<Peeked>, bool), Error>> + 'a>>;

/// A store of queues whose messages can be looked at.
pub trait Peek {
    /// The next messages of a queue, or dead letters, with greater numbers than `after`, at most `messages_max` and as many as
    /// fit on a page; and whether there are no more.
    fn peek<'a>(
        &'a self,
        context: &'a Context<'a>,
        queue: &'a str,
        dead: bool,
        after: Option<u64>,
        messages_max: usize,
    ) -> PeekFuture<'a>;
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
        let (peeked, is_end) = peek.peek(&now, queue, dead, after, most).await?;
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
