//! Reading a stream: a place in each partition, one page at a time, and a wait for what comes.

use std::hash::Hasher;

use prism_io::rt;
use prism_proto::prism::stream::v1 as reply;
use prism_proto::view::protobuf::Timestamp;
use prism_proto::view::stream::ReadRequest;
use prism_proto::view::types::{Start, StartStart};
use prost::Message as _;
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::types::RDKafkaErrorCode as Code;
use siphasher::sip::SipHasher13;

use super::Kafka;
use super::cluster::Bounds;
use super::errors::{Fault, too_large};
use super::names::topic_of;
use super::reader::{Found, Lease};
use super::record::put_record;
use super::stream::check_partition;
use crate::call::{Context, NO_END, PageSink};
use crate::error::{Error, Kind};
use crate::interfaces::keyvalue_selection::PAGE_BYTES;
use crate::interfaces::message::moment_us;
use crate::limits::PAGE_ENTRIES_DEFAULT;

/// What a page has beside its records, at most.
const PAGE_BESIDE_BYTES: usize = 6 * 1024;

/// A reader's way through a stream.
pub(super) struct Walk {
    /// The partitions that are read.
    chosen: Vec<bool>,
    /// The next record of each partition.
    next: Vec<i64>,
    /// Where it ends in each partition.
    ends: Vec<i64>,
    /// Partitions whose end was seen since their last record.
    at_end: Vec<bool>,
    /// A record that had no room on the page before, with its place.
    held: Option<(Vec<u8>, usize, i64)>,
    /// Records that it still may read.
    left: u64,
    follow: bool,
}

/// Records on their way to the caller.
#[derive(Default)]
struct Page {
    /// As they stand in the answer.
    bytes: Vec<u8>,
    records: usize,
}

/// Why a page was ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PageEnd {
    /// It is full, or as much was read as may be.
    Full,
    /// Everything was read up to the end.
    CaughtUp,
    /// There may be more, which has not come yet.
    Waiting,
}

/// What is to be read of a stream.
pub(super) struct Range<'a> {
    pub(super) stream: &'a str,
    pub(super) start: Start<'a>,
    /// Empty: all of them.
    pub(super) partitions: Vec<u32>,
    /// Of those no other than this one.
    pub(super) only: Option<u32>,
    /// Records at most; 0: no limit.
    pub(super) limit: u64,
    pub(super) follow: bool,
}

/// A moment in Kafka's time.
pub(super) fn moment_ms(time: &Timestamp) -> i64 {
    (moment_us(time) / 1000) as i64
}

/// The moment that a reader begins at, if it does, in Kafka's time.
pub(super) fn since_ms(start: &Start<'_>) -> Option<i64> {
    match &start.start {
        Some(StartStart::Since(time)) => Some(moment_ms(time)),
        _ => None,
    }
}

impl Kafka {
    pub(super) async fn read_stream<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: ReadRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let topic = topic_of(context.namespace_name, request.stream);
        let start = request.start.unwrap_or_default();
        // Who follows a stream that is not there yet waits for its first record.
        let bounds = self.bounds_or_none(context, &topic, since_ms(&start), request.follow).await?;
        let range = Range {
            stream: request.stream,
            start,
            partitions: request.partitions.iter().collect(),
            only: None,
            limit: request.limit,
            follow: request.follow,
        };
        let ends = bounds.end.clone();
        self.read_range(context, &topic, range, (bounds, ends), sink).await
    }

    /// Where a stream's partitions begin and end, also of one that is not there yet.
    pub(super) async fn bounds_or_none(
        &self,
        context: &Context<'_>,
        topic: &str,
        since_ms: Option<i64>,
        make: bool,
    ) -> Result<Bounds, Error> {
        let bounds = self.bounds(context, topic, since_ms, make).await?;
        Ok(bounds.unwrap_or_else(|| {
            let zero = vec![0; self.link.partitions_planned(context) as usize];
            Bounds { first: zero.clone(), end: zero.clone(), since: zero }
        }))
    }

    /// Reads a range of a stream, which has these bounds, up to these offsets.
    pub(super) async fn read_range<S: PageSink>(
        &self,
        context: &Context<'_>,
        topic: &str,
        range: Range<'_>,
        (bounds, ends): (Bounds, Vec<i64>),
        sink: &mut S,
    ) -> Result<(), Error> {
        let count = bounds.end.len() as u32;
        let mut chosen = vec![range.partitions.is_empty(); bounds.end.len()];
        for (index, partition) in range.partitions.iter().enumerate() {
            check_partition(&format!("partitions[{index}]"), *partition, count)?;
            chosen[*partition as usize] = true;
        }
        for (number, chosen) in chosen.iter_mut().enumerate() {
            *chosen &= range.only.is_none_or(|only| only as usize == number);
        }
        let next = places(context, range.stream, &range.start, &bounds)?;
        let walk = Walk {
            at_end: vec![false; chosen.len()],
            chosen,
            next,
            ends,
            held: None,
            left: if range.limit == 0 { u64::MAX } else { range.limit },
            follow: range.follow,
        };
        self.walk(context, range.stream, topic, walk, sink).await
    }

    async fn walk<S: PageSink>(
        &self,
        context: &Context<'_>,
        stream: &str,
        topic: &str,
        mut walk: Walk,
        sink: &mut S,
    ) -> Result<(), Error> {
        let places = walk.to_fetch();
        let reader = match places.is_empty() {
            true => None,
            false => Some(self.link.reader(context, topic, places).await?),
        };
        let (mut told_end, mut page) = (false, Page::default());
        loop {
            let heard = reader.as_ref().map_or(0, |reader| reader.heard());
            let end = match &reader {
                None => PageEnd::CaughtUp,
                Some(reader) => self.fill(context, topic, reader, &mut walk, &mut page).await?,
            };
            let at_end = end == PageEnd::CaughtUp;
            // The end is told once, until there was more.
            if page.records > 0 || at_end && !told_end {
                let rest = reply::ReadResponse {
                    records: Vec::new(),
                    cursor: cursor(context.namespace, stream, &walk.next),
                    caught_up: walk.follow && at_end,
                };
                rest.encode_raw(&mut page.bytes);
                sink.send(std::mem::take(&mut page).bytes.into()).await?;
                told_end = at_end;
            }
            match (end, &reader) {
                _ if walk.left == 0 || at_end && !walk.follow => return Ok(()),
                (PageEnd::Full, _) => rt::yield_now().await,
                (_, Some(reader)) if walk.follow => sink.wait(reader.wait(heard), NO_END).await?,
                (_, Some(reader)) => {
                    let timeout = self.link.config().answer_timeout;
                    let waited = rt::timeout(timeout, reader.wait(heard)).await;
                    waited
                        .ok_or_else(|| self.link.error(context, &Fault::unresponsive(timeout)))?;
                }
                (_, None) => return Ok(()),
            }
        }
    }

    /// Puts on a page what has come.
    async fn fill(
        &self,
        context: &Context<'_>,
        topic: &str,
        reader: &Lease,
        walk: &mut Walk,
        page: &mut Page,
    ) -> Result<PageEnd, Error> {
        if let Some((bytes, number, offset)) = walk.held.take() {
            page.bytes = bytes;
            page.records = 1;
            walk.pass(number, offset);
        }
        loop {
            if walk.left == 0
                || page.records >= PAGE_ENTRIES_DEFAULT
                || page.bytes.len() >= PAGE_BYTES
            {
                return Ok(PageEnd::Full);
            }
            if !walk.follow && walk.is_done() {
                return Ok(PageEnd::CaughtUp);
            }
            match reader.look() {
                Found::Record(record) => {
                    if record.topic() == topic && !walk.take(context, &record, page)? {
                        return Ok(PageEnd::Full);
                    }
                }
                Found::End(partition) => walk.note_end(partition),
                Found::Nothing if walk.follow && walk.is_done() => return Ok(PageEnd::CaughtUp),
                Found::Nothing => return Ok(PageEnd::Waiting),
                Found::Failure(error) => self.weigh(context, topic, walk, &error).await?,
            }
        }
    }

    /// Ends a reader for whose failure its consumer has no remedy.
    async fn weigh(
        &self,
        context: &Context<'_>,
        topic: &str,
        walk: &Walk,
        error: &KafkaError,
    ) -> Result<(), Error> {
        let fault = Fault::of(error);
        if error.rdkafka_error_code() == Some(Code::AutoOffsetReset) {
            if let Some(bounds) = self.bounds(context, topic, None, false).await? {
                check_not_trimmed(&walk.chosen, &walk.next, &bounds)?;
            }
            return Err(self.link.error(context, &fault));
        }
        if fault.is_missing {
            self.link.forget(topic);
            return Err(self.link.error(context, &fault));
        }
        match fault.reason {
            "BACKEND_CREDENTIALS_REFUSED" => Err(self.link.error(context, &fault)),
            // The consumer goes on by itself when it can. What it says of connections may be of one that is made anew at once.
            _ => Ok(()),
        }
    }
}

impl Walk {
    /// The partitions that have anything to read, and from where.
    fn to_fetch(&self) -> Vec<(u32, i64)> {
        let all = self.next.iter().enumerate();
        all.filter(|(number, next)| {
            self.chosen[*number] && (self.follow || **next < self.ends[*number])
        })
        .map(|(number, next)| (number as u32, *next))
        .collect()
    }

    /// Whether there is nothing more in any partition.
    fn is_done(&self) -> bool {
        (0..self.next.len()).all(|number| {
            !self.chosen[number]
                || self.at_end[number]
                || !self.follow && self.next[number] >= self.ends[number]
        })
    }

    fn note_end(&mut self, partition: u32) {
        if let Some(at_end) = self.at_end.get_mut(partition as usize) {
            *at_end = true;
        }
    }

    /// Puts a record on a page; false when it has no room there.
    fn take(
        &mut self,
        context: &Context<'_>,
        record: &rdkafka::message::BorrowedMessage<'_>,
        page: &mut Page,
    ) -> Result<bool, Error> {
        let (number, offset) = (record.partition() as usize, record.offset());
        let is_wanted = self.chosen.get(number) == Some(&true) && offset >= self.next[number];
        if !is_wanted {
            return Ok(true);
        }
        if !self.follow && offset >= self.ends[number] {
            // Nothing before the end is left: what is missing there was compacted or belongs to transactions.
            self.at_end[number] = true;
            return Ok(true);
        }
        let (before, message_max) = (page.bytes.len(), context.limits.max_message_size);
        put_record(&mut page.bytes, record);
        if page.bytes.len() - before > message_max {
            return Err(too_large(context, number as u32, offset));
        }
        if before > 0 && page.bytes.len() + PAGE_BESIDE_BYTES > message_max {
            self.held = Some((page.bytes.split_off(before), number, offset));
            return Ok(false);
        }
        self.pass(number, offset);
        page.records += 1;
        Ok(true)
    }
    /// Goes on behind a record.
    fn pass(&mut self, number: usize, offset: i64) {
        self.next[number] = offset + 1;
        self.at_end[number] = false;
        self.left -= 1;
    }
}

/// Where a reader begins in each partition.
pub(super) fn places(
    context: &Context<'_>,
    stream: &str,
    start: &Start<'_>,
    bounds: &Bounds,
) -> Result<Vec<i64>, Error> {
    Ok(match start.start {
        None | Some(StartStart::Earliest(_)) => bounds.first.clone(),
        Some(StartStart::Latest(_)) => bounds.end.clone(),
        Some(StartStart::Since(_)) => bounds.since.clone(),
        Some(StartStart::At(position)) | Some(StartStart::After(position)) => {
            let is_after = matches!(start.start, Some(StartStart::After(_)));
            let field = if is_after { "start.after" } else { "start.at" };
            let count = bounds.end.len() as u32;
            check_partition(&format!("{field}.partition"), position.partition, count)?;
            let number = position.partition as usize;
            let offset = position.offset.parse::<i64>().ok();
            let Some(offset) = offset.filter(|offset| (0..=bounds.end[number]).contains(offset))
            else {
                let expected = "is no offset of this partition that was told";
                return Err(Error::field("POSITION_INVALID", format!("{field}.offset"), expected));
            };
            let mut places = bounds.first.clone();
            places[number] = (offset + i64::from(is_after)).min(bounds.end[number]);
            check_not_trimmed(&vec![true; places.len()], &places, bounds)?;
            places
        }
        Some(StartStart::Cursor(text)) => {
            let read = read_cursor(context.namespace, stream, text);
            let mut places = read.ok_or_else(|| {
                let expected = "does not belong to this namespace and stream";
                Error::field("CURSOR_INVALID", "start.cursor", expected)
            })?;
            // Partitions that the topic has got since then are read from their beginning.
            let new = bounds.first.iter().skip(places.len()).copied().collect::<Vec<_>>();
            places.extend(new);
            places.truncate(bounds.first.len());
            check_not_trimmed(&vec![true; places.len()], &places, bounds)?;
            places
        }
    })
}

/// Whether what is to be read next is still there.
pub(super) fn check_not_trimmed(
    chosen: &[bool],
    next: &[i64],
    bounds: &Bounds,
) -> Result<(), Error> {
    for (partition, first) in bounds.first.iter().enumerate() {
        if chosen.get(partition) == Some(&true) && next[partition] < *first {
            return Err(trimmed(partition, *first));
        }
    }
    Ok(())
}

#[cold]
fn trimmed(partition: usize, earliest: i64) -> Error {
    let message = format!(
        "retention has removed what was to be read of partition {partition}: its earliest record is {earliest}"
    );
    Error::new(Kind::OutOfRange, "POSITION_TRIMMED", message)
        .with("partition", partition.to_string())
        .with("earliest", earliest.to_string())
}

/// A cursor: the places, and what binds them to their stream.
fn cursor(namespace: u32, stream: &str, places: &[i64]) -> String {
    let mut hasher = SipHasher13::new_with_keys(u64::from(namespace), 0x6375_7273_6f72);
    hasher.write(stream.as_bytes());
    places.iter().for_each(|place| hasher.write_i64(*place));
    let places: Vec<_> = places.iter().map(|place| format!("{place:x}")).collect();
    format!("{}.{:016x}", places.join("-"), hasher.finish())
}

fn read_cursor(namespace: u32, stream: &str, text: &str) -> Option<Vec<i64>> {
    let parts = text.split_once('.')?.0.split('-');
    let places: Option<Vec<i64>> = parts
        .map(|place| i64::from_str_radix(place, 16).ok().filter(|place| *place >= 0))
        .collect();
    places.filter(|places| cursor(namespace, stream, places) == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_belongs_to_its_stream() {
        let places = vec![0, i64::MAX, 7];
        let text = cursor(1, "orders", &places);
        assert_eq!(read_cursor(1, "orders", &text), Some(places));
        assert_eq!(read_cursor(2, "orders", &text), None);
        assert_eq!(read_cursor(1, "other", &text), None);
        for wrong in ["", ".", "-1.0", "x", "0-1", &text.replacen('0', "1", 1)] {
            assert_eq!(read_cursor(1, "orders", wrong), None, "{wrong}");
        }
    }
}
