//! Reading a Redis stream: a place, one page at a time, and a wait for what comes.

use std::hash::Hasher;

use bytes::Bytes;
use prism_io::rt;
use prism_proto::prism::stream::v1 as reply;
use prism_proto::view::stream::{ReadRequest, ReplayRangeRequest, ReplayRangeRequestEnd};
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
    /// How many records there ever were.
    added: u64,
    /// How many there are.
    length: u64,
    /// The record that follows those of the page.
    following: Option<Id>,
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
        if parts < 5 {
            return Ok(page);
        }
        page.first = Id::read(context, answer.blob()?)?;
        page.last = Id::read(context, answer.blob()?)?;
        page.added = answer.integer()?.unsigned_abs();
        page.length = answer.integer()?.unsigned_abs();
        let following = answer.blob()?.filter(|id| !id.is_empty());
        page.following = following.map(|id| Id::read(context, Some(id))).transpose()?;
        for _ in 5..parts {
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
        check_partitions(request.partitions.iter())?;
        let walk = Walk {
            stream: request.stream,
            start: request.start.unwrap_or_default(),
            limit: request.limit,
            follow: request.follow,
            upto: END,
        };
        let page = |records, cursor, caught_up| {
            reply::ReadResponse { records, cursor, caught_up }.encode_to_vec().into()
        };
        self.walk(context, walk, sink, page).await
    }

    pub(super) async fn replay_stream<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: ReplayRangeRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        check_partitions(request.partitions.iter())?;
        let upto = match &request.end {
            None => END,
            Some(ReplayRangeRequestEnd::Until(time)) => {
                Id { ms: moment_us(time) / 1000, seq: 0 }.before()
            }
            Some(ReplayRangeRequestEnd::Before(position)) => {
                check_partition("before.partition", position.partition)?;
                let id = Id::parse(position.offset);
                id.ok_or_else(|| unknown_position("before.offset"))?.before()
            }
        };
        let start = request.start.unwrap_or_default();
        let walk =
            Walk { stream: request.stream, start, limit: request.limit, follow: false, upto };
        let page = |records, cursor, _| {
            reply::ReplayRangeResponse { records, cursor }.encode_to_vec().into()
        };
        self.walk(context, walk, sink, page).await
    }

    /// Reads a stream, page by page, each of which `message` makes of its records, its cursor, and whether its reader has caught up.
    async fn walk<S: PageSink>(
        &self,
        context: &Context<'_>,
        walk: Walk<'_>,
        sink: &mut S,
        message: impl Fn(Vec<reply::StreamRecord>, String, bool) -> Bytes,
    ) -> Result<(), Error> {
        let (stream, follow) = (walk.stream, walk.follow);
        // Before the first look, so that nothing is missed between a look and a wait.
        let mut attendance = follow.then(|| self.tail.attend(context.namespace_name, stream));
        let page = self.look(context, stream, (Id::default(), Id::default()), 0).await?;
        let mut place = place(context, stream, &walk.start, &page)?;
        let upto = if follow { END } else { page.last.min(walk.upto) };
        let mut left = if walk.limit == 0 { u64::MAX } else { walk.limit };
        let mut told_end = false;
        loop {
            let count = left.min(PAGE_ENTRIES_DEFAULT as u64) as usize;
            let page = self.look(context, stream, (place.after, upto), count).await?;
            place.check(&page)?;
            place.go_on(&page);
            left -= page.records.len() as u64;
            let has_records = !page.records.is_empty();
            let at_end = page.following.is_none_or(|next| next > upto);
            // The end is told once, until there was more.
            if has_records || !told_end {
                let cursor = cursor(context.namespace, stream, place);
                sink.send(message(page.records, cursor, follow && at_end)).await?;
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

/// What of a stream is read.
struct Walk<'a> {
    stream: &'a str,
    start: Start<'a>,
    /// Records at most; 0: no limit.
    limit: u64,
    /// Goes on with records as they come.
    follow: bool,
    /// The last id that is read.
    upto: Id,
}

/// Where a reader stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// It has read up to here.
    pub(super) after: Id,
    behind: Behind,
}

/// What is known of the records behind a place, so that it is noticed when one of them is removed unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// Whatever is there is as good as what was.
    Anything,
    /// Nothing is known.
    Unknown,
    /// This one comes next.
    Record(Id),
    /// Nothing was there when there had been so many records ever.
    Nothing(u64),
}

impl Place {
    /// # Errors
    /// OUT_OF_RANGE `POSITION_TRIMMED`: records behind it may have been removed.
    fn check(&self, now: &Page) -> Result<(), Error> {
        if now.length > 0 && now.first <= self.after {
            return Ok(());
        }
        // All up to the place are gone.
        let is_lost = match self.behind {
            Behind::Anything => false,
            Behind::Unknown => true,
            Behind::Record(next) => now.length == 0 || now.first > next,
            Behind::Nothing(added) => now.added.checked_sub(added) != Some(now.length),
        };
        if is_lost { Err(trimmed_to(now.first)) } else { Ok(()) }
    }

    /// Goes on behind what was read.
    fn go_on(&mut self, page: &Page) {
        if page.upto.is_none() && self.behind == Behind::Anything {
            return;
        }
        self.after = page.upto.unwrap_or(self.after);
        self.behind = page.following.map_or(Behind::Nothing(page.added), Behind::Record);
    }
}

/// Where a reader begins.
fn place(
    context: &Context<'_>,
    stream: &str,
    start: &Start<'_>,
    now: &Page,
) -> Result<Place, Error> {
    let anywhere = |after| Place { after, behind: Behind::Anything };
    match start.start {
        None | Some(StartStart::Earliest(_)) => Ok(anywhere(Id::default())),
        Some(StartStart::Latest(_)) => {
            Ok(Place { after: now.last, behind: Behind::Nothing(now.added) })
        }
        Some(StartStart::Since(time)) => {
            Ok(anywhere(Id { ms: moment_us(&time) / 1000, seq: 0 }.before()))
        }
        Some(StartStart::At(position)) | Some(StartStart::After(position)) => {
            let is_after = matches!(start.start, Some(StartStart::After(_)));
            let field = if is_after { "start.after" } else { "start.at" };
            check_partition(&format!("{field}.partition"), position.partition)?;
            let id = Id::parse(position.offset).filter(|id| *id <= now.last);
            let id = id.ok_or_else(|| unknown_position(&format!("{field}.offset")))?;
            Ok(match id {
                id if id == Id::default() => anywhere(id),
                id if !is_after => Place { after: id.before(), behind: Behind::Record(id) },
                after if after == now.last => Place { after, behind: Behind::Nothing(now.added) },
                after => Place { after, behind: Behind::Unknown },
            })
        }
        Some(StartStart::Cursor(text)) => {
            read_cursor(context.namespace, stream, text).ok_or_else(|| {
                let expected = "does not belong to this namespace and stream";
                Error::field("CURSOR_INVALID", "start.cursor", expected)
            })
        }
    }
}

fn check_partitions(partitions: impl Iterator<Item = u32>) -> Result<(), Error> {
    for (index, partition) in partitions.enumerate() {
        check_partition(&format!("partitions[{index}]"), partition)?;
    }
    Ok(())
}

pub(super) fn check_partition(field: &str, partition: u32) -> Result<(), Error> {
    match partition {
        0 => Ok(()),
        _ => {
            let expected = format!("is {partition}, the only partition is 0");
            Err(Error::field("PARTITION_UNKNOWN", field, expected))
        }
    }
}

#[cold]
pub(super) fn unknown_position(field: &str) -> Error {
    Error::field("POSITION_INVALID", field, "is no offset of this partition that was told")
}

/// What was to be read is gone; the first id that is there, that of nothing where there is none.
#[cold]
pub(super) fn trimmed_to(first: Id) -> Error {
    let earliest = if first == Id::default() { "none".to_owned() } else { first.text() };
    let message = format!(
        "what was to be read has been removed from the stream: its earliest record is {earliest}"
    );
    Error::new(Kind::OutOfRange, "POSITION_TRIMMED", message)
        .with("partition", "0")
        .with("earliest", earliest)
}

/// A cursor: the place, and what binds it to its stream.
fn cursor(namespace: u32, stream: &str, place: Place) -> String {
    let (kind, behind) = match place.behind {
        Behind::Anything => ("a", Id::default()),
        Behind::Unknown => ("u", Id::default()),
        Behind::Record(next) => ("r", next),
        Behind::Nothing(added) => ("n", Id { ms: added, seq: 0 }),
    };
    let mut hasher = SipHasher13::new_with_keys(u64::from(namespace), 0x6375_7273_6f72);
    hasher.write(stream.as_bytes());
    hasher.write(kind.as_bytes());
    for number in [place.after.ms, place.after.seq, behind.ms, behind.seq] {
        hasher.write_u64(number);
    }
    format!("{}.{kind}{}.{:016x}", place.after.text(), behind.text(), hasher.finish())
}

pub(super) fn read_cursor(namespace: u32, stream: &str, text: &str) -> Option<Place> {
    let mut parts = text.split('.');
    let (after, behind) = (Id::parse(parts.next()?)?, parts.next()?);
    let (kind, id) = (behind.get(..1)?, Id::parse(behind.get(1..)?)?);
    let behind = match kind {
        "a" => Behind::Anything,
        "u" => Behind::Unknown,
        "r" => Behind::Record(id),
        "n" => Behind::Nothing(id.ms),
        _ => return None,
    };
    let place = Place { after, behind };
    (cursor(namespace, stream, place) == text).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn id(ms: u64) -> Id {
        Id { ms, seq: 0 }
    }

    #[test]
    fn a_reader_notices_what_was_removed_unread_and_nothing_else() {
        let page =
            |first, added, length| Page { first: id(first), added, length, ..Page::default() };
        for (behind, now, is_lost) in [
            (Behind::Unknown, page(5, 9, 4), false),
            (Behind::Unknown, page(6, 9, 4), true),
            (Behind::Anything, page(6, 9, 4), false),
            (Behind::Record(id(6)), page(6, 9, 4), false),
            (Behind::Record(id(6)), page(7, 9, 3), true),
            (Behind::Record(id(6)), page(0, 9, 0), true),
            (Behind::Nothing(5), page(5, 5, 1), false),
            (Behind::Nothing(5), page(0, 5, 0), false),
            (Behind::Nothing(5), page(6, 7, 2), false),
            (Behind::Nothing(5), page(7, 7, 1), true),
            (Behind::Nothing(5), page(0, 7, 0), true),
            // It was deleted and begun again.
            (Behind::Nothing(5), page(9, 2, 2), true),
        ] {
            let place = Place { after: id(5), behind };
            let checked = place.check(&now);
            assert_eq!(checked.is_err(), is_lost, "{behind:?} {} {}", now.first.ms, now.added);
            assert!(
                checked.is_ok() || checked.is_err_and(|one| one.reason() == "POSITION_TRIMMED")
            );
        }
    }

    #[test]
    fn a_cursor_is_the_place_and_of_its_stream() {
        for behind in
            [Behind::Anything, Behind::Unknown, Behind::Record(id(7)), Behind::Nothing(u64::MAX)]
        {
            let place = Place { after: id(5), behind };
            let text = cursor(1, "s", place);
            assert_eq!(read_cursor(1, "s", &text), Some(place), "{text}");
            assert_eq!(read_cursor(2, "s", &text), None);
            assert_eq!(read_cursor(1, "t", &text), None);
            assert_eq!(read_cursor(1, "s", &text.replace('5', "6")), None);
        }
        for wrong in ["", ".", "5-0", "5-0.u", "5-0.é0-0.0", "5-0.u0-0.0000000000000000"] {
            assert_eq!(read_cursor(1, "s", wrong), None, "{wrong}");
        }
    }
}
