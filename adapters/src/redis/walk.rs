//! Reading a Redis stream: a place, one page at a time, and a wait for what comes.

use std::hash::Hasher;

use prism_io::rt;
use prism_proto::prism::stream::v1 as reply;
use prism_proto::view::stream::ReadRequest;
use prism_proto::view::types::{Start, StartStart};
use prost::Message as _;
use siphasher::sip::SipHasher13;

use super::Redis;
use super::codec;
use super::errors;
use super::keyvalue::{Answer, put_key};
use super::scripts::Script;
use super::stream::{Id, read_entry};
use crate::call::{Context, NO_END, PageSink};
use crate::error::{Error, Kind};
use crate::interfaces::keyvalue_selection::PAGE_BYTES;
use crate::interfaces::message::moment_us;
use crate::limits::PAGE_ENTRIES_DEFAULT;

/// Behind every id that there can be.
const END: Id = Id { ms: u64::MAX, seq: u64::MAX };

/// What Redis says of a stream.
#[derive(Default)]
pub(super) struct Page {
    /// The first record that is there; nothing where there is none.
    pub(super) first: Id,
    /// The last that there was.
    pub(super) last: Id,
    records: Vec<reply::StreamRecord>,
    /// The last of these.
    upto: Option<Id>,
}

impl Redis {
    /// Looks at a stream: so many of its records behind one id, up to another.
    pub(super) async fn look(
        &self,
        context: &Context<'_>,
        stream: &str,
        (after, upto): (Id, Id),
        count: usize,
    ) -> Result<Page, Error> {
        let bytes = PAGE_BYTES.min(context.limits.max_message_size / 2);
        let write = |out: &mut Vec<u8>| {
            put_key(out, context, stream);
            codec::put(out, after.text().as_bytes());
            codec::put(out, upto.text().as_bytes());
            codec::put_number(out, count as u64);
            codec::put_number(out, bytes as u64);
        };
        let read = self.script(context, Script::StreamRead, 1, 4, write).await?;
        let mut answer = Answer::new(context, &read);
        let (parts, mut page) = (answer.array()?, Page::default());
        if parts < 2 {
            return Ok(page);
        }
        page.first = Id::read(context, answer.blob()?)?;
        page.last = Id::read(context, answer.blob()?)?;
        for _ in 2..parts {
            let (id, record) = read_entry(context, &mut answer)?;
            if record.encoded_len() > context.limits.max_message_size {
                return Err(errors::too_large(context));
            }
            page.upto = Some(id);
            page.records.push(record);
        }
        Ok(page)
    }

    pub(super) async fn read_stream<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: ReadRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        for (index, partition) in request.partitions.iter().enumerate() {
            check_partition(&format!("partitions[{index}]"), partition)?;
        }
        let stream = request.stream;
        // Before the first look, so that nothing is missed between a look and a wait.
        let mut attendance =
            request.follow.then(|| self.tail.attend(context.namespace_name, stream));
        let page = self.look(context, stream, (Id::default(), Id::default()), 0).await?;
        let mut after = place(context, stream, &request.start.unwrap_or_default(), &page)?;
        let upto = if request.follow { END } else { page.last };
        let mut left = if request.limit == 0 { u64::MAX } else { request.limit };
        let mut told_end = false;
        loop {
            let count = left.min(PAGE_ENTRIES_DEFAULT as u64) as usize;
            let page = self.look(context, stream, (after, upto), count).await?;
            after = page.upto.unwrap_or(after);
            left -= page.records.len() as u64;
            let has_records = !page.records.is_empty();
            let at_end = !has_records || after >= page.last.min(upto);
            // The end is told once, until there was more.
            if has_records || !told_end {
                let message = reply::ReadResponse {
                    records: page.records,
                    cursor: cursor(context.namespace, stream, after),
                    caught_up: request.follow && at_end,
                };
                sink.send(message.encode_to_vec().into()).await?;
                told_end = at_end;
            }
            match &mut attendance {
                _ if left == 0 => return Ok(()),
                None if at_end => return Ok(()),
                Some(attendance) if at_end => sink.wait(attendance.told(), NO_END).await?,
                _ => rt::yield_now().await,
            }
        }
    }
}

/// The id behind which a reader begins.
fn place(context: &Context<'_>, stream: &str, start: &Start<'_>, now: &Page) -> Result<Id, Error> {
    let known = |asked: Id| match now.first == Id::default() || asked < now.first {
        true if asked > Id::default() => Err(trimmed(now.first)),
        _ => Ok(()),
    };
    match start.start {
        None | Some(StartStart::Earliest(_)) => Ok(Id::default()),
        Some(StartStart::Latest(_)) => Ok(now.last),
        Some(StartStart::Since(time)) => Ok(Id { ms: moment_us(&time) / 1000, seq: 0 }.before()),
        Some(StartStart::At(position)) | Some(StartStart::After(position)) => {
            let is_after = matches!(start.start, Some(StartStart::After(_)));
            let field = if is_after { "start.after" } else { "start.at" };
            check_partition(&format!("{field}.partition"), position.partition)?;
            let id = Id::parse(position.offset).filter(|id| *id <= now.last);
            let id = id.ok_or_else(|| {
                let expected = "is no offset of this partition that was told";
                Error::field("POSITION_INVALID", format!("{field}.offset"), expected)
            })?;
            known(id)?;
            Ok(if is_after { id } else { id.before() })
        }
        Some(StartStart::Cursor(text)) => {
            let id = read_cursor(context.namespace, stream, text).ok_or_else(|| {
                let expected = "does not belong to this namespace and stream";
                Error::field("CURSOR_INVALID", "start.cursor", expected)
            })?;
            known(id).map(|()| id)
        }
    }
}

fn check_partition(field: &str, partition: u32) -> Result<(), Error> {
    match partition {
        0 => Ok(()),
        _ => {
            let expected = format!("is {partition}, the only partition is 0");
            Err(Error::field("PARTITION_UNKNOWN", field, expected))
        }
    }
}

#[cold]
fn trimmed(earliest: Id) -> Error {
    let earliest = earliest.text();
    let message = format!(
        "what was to be read has been removed from the stream: its earliest record is {earliest}"
    );
    Error::new(Kind::OutOfRange, "POSITION_TRIMMED", message)
        .with("partition", "0")
        .with("earliest", earliest)
}

/// A cursor: the place, and what binds it to its stream.
fn cursor(namespace: u32, stream: &str, place: Id) -> String {
    let mut hasher = SipHasher13::new_with_keys(u64::from(namespace), 0x6375_7273_6f72);
    hasher.write(stream.as_bytes());
    hasher.write_u64(place.ms);
    hasher.write_u64(place.seq);
    format!("{}.{:016x}", place.text(), hasher.finish())
}

fn read_cursor(namespace: u32, stream: &str, text: &str) -> Option<Id> {
    let place = Id::parse(text.split_once('.')?.0)?;
    (cursor(namespace, stream, place) == text).then_some(place)
}
