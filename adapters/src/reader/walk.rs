//! The pages of a backend's own read or scan, sifted and handed on.

use std::cell::Cell;
use std::cmp::Ordering;
use std::pin::pin;

use bytes::Bytes;
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1 as keyvalue;
use prism_proto::prism::reader::v1 as reader;
use prism_proto::prism::stream::v1 as stream;
use prism_proto::prism::r#type::v1::Entry;
use prost::Message as _;

use super::cursor;
use super::request::{End, Of, Read};
use crate::backend::wrong_shape;
use crate::call::PageSink;
use crate::error::{Error, Kind};

/// An idle read that follows tells its cursor this often.
const IDLE_CURSOR_US: u64 = 15_000_000;

/// Where sifted records go.
pub(super) trait Out {
    /// Takes the next records, and where to go on after them.
    async fn page(
        &mut self,
        records: Vec<reader::Record>,
        cursor: &str,
        caught_up: bool,
    ) -> Result<(), Error>;

    /// As [`PageSink::now_us`].
    fn now_us(&self) -> u64;

    /// As [`PageSink::wait`].
    async fn wait(&mut self, event: impl Future<Output = ()>, until_us: u64) -> Result<(), Error>;
}

/// Pages of Read for a caller.
pub(super) struct Pages<'a, S> {
    pub(super) sink: &'a mut S,
}

impl<S: PageSink> Out for Pages<'_, S> {
    async fn page(
        &mut self,
        records: Vec<reader::Record>,
        cursor: &str,
        caught_up: bool,
    ) -> Result<(), Error> {
        let page = reader::ReadResponse { records, cursor: cursor.to_owned(), caught_up };
        self.sink.send(page.encode_to_vec().into()).await
    }

    fn now_us(&self) -> u64 {
        self.sink.now_us()
    }

    async fn wait(&mut self, event: impl Future<Output = ()>, until_us: u64) -> Result<(), Error> {
        self.sink.wait(event, until_us).await
    }
}

/// The number of records.
pub(super) struct Counted {
    pub(super) count: u64,
    pub(super) now_us: u64,
}

impl Out for Counted {
    async fn page(&mut self, records: Vec<reader::Record>, _: &str, _: bool) -> Result<(), Error> {
        self.count += records.len() as u64;
        Ok(())
    }

    fn now_us(&self) -> u64 {
        self.now_us
    }

    async fn wait(&mut self, _: impl Future<Output = ()>, _: u64) -> Result<(), Error> {
        Err(wrong_shape(Method::READER_COUNT))
    }
}

/// A read on its way: takes the backend's pages as their [`PageSink`].
pub(super) struct Walk<'a, O> {
    read: Read,
    out: &'a mut O,
    /// Where the next page of the backend begins.
    base: String,
    /// Records that may still come.
    left: u64,
    /// Partitions that have come to the end that was asked for.
    ended: Vec<u32>,
    /// Everything that was asked for has been handed over.
    is_done: bool,
}

impl<'a, O: Out> Walk<'a, O> {
    pub(super) fn new(read: Read, base: String, out: &'a mut O) -> Self {
        let left = if read.limit == 0 { u64::MAX } else { read.limit };
        Walk { read, out, base, left, ended: Vec::new(), is_done: false }
    }

    /// How the backend's call has ended, for the caller.
    pub(super) fn end(self, outcome: Result<(), Error>) -> Result<(), Error> {
        if self.is_done { Ok(()) } else { outcome }
    }

    /// The end of the call: nothing more is wanted.
    fn done(&mut self) -> Error {
        self.is_done = true;
        Error::new(Kind::Cancelled, "READ_ENDED", "everything that was asked for has been read")
    }

    /// Whether a record lies behind the end that was asked for.
    fn is_behind(&mut self, record: &reader::Record) -> bool {
        let Some(position) = &record.position else { return false };
        let behind = match &self.read.end {
            End::Natural => false,
            End::Until(until_us) => {
                let time = record.timestamp.unwrap_or_default();
                let us = time.seconds.max(0) as u64 * 1_000_000 + time.nanos.max(0) as u64 / 1000;
                self.ended.contains(&position.partition) || us >= *until_us
            }
            End::Before(before) => offset_order(&position.offset, &before.offset) != Ordering::Less,
        };
        if behind && !self.ended.contains(&position.partition) {
            self.ended.push(position.partition);
        }
        behind
    }

    /// Whether all that was asked for has ended.
    fn all_ended(&self, caught_up: bool) -> bool {
        let partitions = &self.read.partitions;
        let ended = !partitions.is_empty()
            && partitions.iter().all(|partition| self.ended.contains(partition));
        ended || self.is_past() && caught_up
    }

    /// Whether nothing more can come before the end that was asked for.
    fn is_past(&self) -> bool {
        matches!(self.read.end, End::Until(until_us) if self.out.now_us() >= until_us)
    }

    /// A page of the backend: its records, where to go on after it, and whether nothing more was there.
    fn unpack(&self, message: Bytes) -> Result<(Vec<reader::Record>, String, bool), Error> {
        if let Of::Stream(_) = self.read.of {
            let page = stream::ReadResponse::decode(message).map_err(unreadable)?;
            let records = page.records.into_iter().map(record_of_stream).collect();
            return Ok((records, cursor::of_stream(&page.cursor), page.caught_up));
        }
        let page = keyvalue::ScanResponse::decode(message).map_err(unreadable)?;
        let record = |mut entry: Entry| {
            let key = entry.key.take().unwrap_or_default();
            record_of_entry(key, entry)
        };
        let records = page.entries.into_iter().map(record).collect();
        let cursor = cursor::of_page(&page.next_page_token);
        Ok((records, cursor, page.next_page_token.is_empty()))
    }

    async fn hand_on(
        &mut self,
        records: Vec<reader::Record>,
        after: String,
        caught_up: bool,
    ) -> Result<(), Error> {
        let (mut kept, mut is_whole) = (Vec::new(), true);
        for record in records {
            if self.left == 0 {
                is_whole = false;
                break;
            }
            if self.is_behind(&record) || !self.read.takes(&record) {
                continue;
            }
            self.left -= 1;
            kept.push(record);
            if kept.len() == self.read.page_size {
                // The page of the backend may be larger: to go on in it is to begin it again.
                let full = std::mem::take(&mut kept);
                if self.left > 0 {
                    self.out.page(full, &self.base, false).await?;
                } else {
                    kept = full;
                }
            }
        }
        let goes_on = if is_whole { after } else { self.base.clone() };
        self.out.page(kept, &goes_on, caught_up && is_whole).await?;
        self.base = goes_on;
        match self.left == 0 || self.all_ended(caught_up) {
            true => Err(self.done()),
            false => Ok(()),
        }
    }
}

impl<O: Out> PageSink for Walk<'_, O> {
    async fn send(&mut self, message: Bytes) -> Result<(), Error> {
        let (records, after, caught_up) = self.unpack(message)?;
        self.hand_on(records, after, caught_up).await
    }

    fn now_us(&self) -> u64 {
        self.out.now_us()
    }

    async fn wait(&mut self, event: impl Future<Output = ()>, until_us: u64) -> Result<(), Error> {
        let (mut event, heard) = (pin!(event), Cell::new(false));
        loop {
            let idle_us = self.out.now_us().saturating_add(IDLE_CURSOR_US);
            let end_us = match self.read.end {
                End::Until(end_us) => end_us,
                _ => u64::MAX,
            };
            let hearing = async {
                event.as_mut().await;
                heard.set(true);
            };
            self.out.wait(hearing, idle_us.min(until_us).min(end_us)).await?;
            if heard.get() || self.out.now_us() >= until_us {
                return Ok(());
            }
            if self.is_past() {
                return Err(self.done());
            }
            if self.out.now_us() >= idle_us {
                self.out.page(Vec::new(), &self.base, true).await?;
            }
        }
    }

    async fn write(&mut self, method: Method, _: Vec<u8>) -> Result<Bytes, Error> {
        Err(wrong_shape(method))
    }
}

/// Takes the first record of a stream's read, and no more.
pub(super) struct First {
    found: Option<reader::Record>,
    is_done: bool,
    now_us: u64,
}

impl First {
    pub(super) fn new(now_us: u64) -> Self {
        First { found: None, is_done: false, now_us }
    }

    pub(super) fn end(self, outcome: Result<(), Error>) -> Result<Option<reader::Record>, Error> {
        if self.is_done { Ok(self.found) } else { outcome.map(|()| self.found) }
    }
}

impl PageSink for First {
    async fn send(&mut self, message: Bytes) -> Result<(), Error> {
        let page = stream::ReadResponse::decode(message).map_err(unreadable)?;
        let Some(record) = page.records.into_iter().next() else { return Ok(()) };
        self.found = Some(record_of_stream(record));
        self.is_done = true;
        Err(Error::new(Kind::Cancelled, "READ_ENDED", "the record has been read"))
    }

    fn now_us(&self) -> u64 {
        self.now_us
    }

    async fn wait(&mut self, _: impl Future<Output = ()>, _: u64) -> Result<(), Error> {
        Err(wrong_shape(Method::READER_GET))
    }

    async fn write(&mut self, method: Method, _: Vec<u8>) -> Result<Bytes, Error> {
        Err(wrong_shape(method))
    }
}

fn record_of_stream(record: stream::StreamRecord) -> reader::Record {
    reader::Record {
        source: None,
        position: record.position,
        key: record.key,
        content_type: record.content_type,
        attributes: record.attributes,
        timestamp: record.timestamp,
        version: None,
        expires_at: None,
        deleted: record.tombstone,
        value: record.value,
    }
}

pub(super) fn record_of_entry(key: String, entry: Entry) -> reader::Record {
    reader::Record {
        key: Some(key),
        version: entry.version,
        expires_at: entry.expires_at,
        value: entry.value,
        ..reader::Record::default()
    }
}

/// A fault of ours: what a backend's adapter has written cannot be read.
#[cold]
pub(super) fn unreadable(error: prost::DecodeError) -> Error {
    Error::new(Kind::Internal, "CALL_SHAPE", format!("a page cannot be read: {error}"))
}

/// The order of two offsets of a partition: numbers, or numbers joined by dashes.
fn offset_order(one: &str, other: &str) -> Ordering {
    let parts = |offset: &str| -> Option<Vec<u64>> {
        offset.split('-').map(|part| part.parse().ok()).collect()
    };
    match (parts(one), parts(other)) {
        (Some(one), Some(other)) => one.cmp(&other),
        _ => (one.len(), one).cmp(&(other.len(), other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_ordered_as_their_backends_count() {
        for (one, other) in [("9", "10"), ("0", "1"), ("5-9", "5-10"), ("5-9", "6-0"), ("a", "b")] {
            assert_eq!(offset_order(one, other), Ordering::Less, "{one} {other}");
            assert_eq!(offset_order(other, one), Ordering::Greater, "{one} {other}");
        }
        assert_eq!(offset_order("7", "7"), Ordering::Equal);
    }
}
