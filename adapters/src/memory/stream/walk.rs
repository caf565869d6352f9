//! Reading a stream: a place in each partition, one page at a time, and a wait for news at the end.

use std::hash::Hasher;

use prism_io::rt::yield_now;
use prism_proto::prism::stream::v1 as reply;
use prism_proto::view::stream::{ReadRequest, ReplayRangeRequest, ReplayRangeRequestEnd};
use prism_proto::view::types::{Position, Start, StartStart};
use prism_proto::wire::Repeated;
use prost::Message as _;
use siphasher::sip::SipHasher13;

use super::super::Memstore;
use super::calls::known_partition;
use super::state::{PARTITIONS, Stream};
use crate::call::{Context, NO_END, PageSink};
use crate::error::{Error, Kind};
use crate::interfaces::keyvalue_selection::PAGE_BYTES;
use crate::interfaces::message::moment_us;
use crate::limits::PAGE_ENTRIES_DEFAULT;

/// The next record in each partition.
pub(super) type Places = [u64; PARTITIONS];

/// A reader's way through a stream.
struct Walk {
    chosen: [bool; PARTITIONS],
    next: Places,
    /// Where it ends; `u64::MAX` where it follows.
    ends: Places,
    /// Records that may still come.
    left: u64,
    /// The partition that is looked at first: they take turns, so that none waits for ever behind a busy one.
    turn: usize,
}

impl Memstore {
    pub(super) async fn read_stream<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: ReadRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let start = request.start.unwrap_or_default();
        let chosen = chosen(&request.partitions)?;
        let walk = self.with_stream(context.namespace, request.stream, |stream| {
            let next = places(context, request.stream, stream, &start)?;
            let ends = match request.follow {
                true => [u64::MAX; PARTITIONS],
                false => ends(stream),
            };
            Ok::<_, Error>(Walk { chosen, next, ends, left: limit(request.limit), turn: 0 })
        })?;
        self.walk(context, request.stream, walk, request.follow, sink).await
    }

    pub(super) async fn replay_stream<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: ReplayRangeRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let start = request.start.unwrap_or_default();
        let mut chosen = chosen(&request.partitions)?;
        let walk = self.with_stream(context.namespace, request.stream, |stream| {
            let next = places(context, request.stream, stream, &start)?;
            let mut ends = ends(stream);
            match &request.end {
                None => {}
                Some(ReplayRangeRequestEnd::Until(time)) => {
                    let time_us = moment_us(time);
                    ends = std::array::from_fn(|number| stream.partitions[number].since(time_us));
                }
                Some(ReplayRangeRequestEnd::Before(position)) => {
                    let partition = known_partition("before.partition", position.partition)?;
                    ends[partition] = known_offset("before", stream, position)?;
                    let others = chosen.iter_mut().enumerate();
                    others.for_each(|(number, chosen)| *chosen &= number == partition);
                }
            }
            Ok::<_, Error>(Walk { chosen, next, ends, left: limit(request.limit), turn: 0 })
        })?;
        // A page that has not caught up is the same in both answers.
        self.walk(context, request.stream, walk, false, sink).await
    }

    async fn walk<S: PageSink>(
        &self,
        context: &Context<'_>,
        name: &str,
        mut walk: Walk,
        follow: bool,
        sink: &mut S,
    ) -> Result<(), Error> {
        let mut attendance = self.stream_sources.attend(context.namespace, name);
        let mut told_end = false;
        loop {
            let mut page = reply::ReadResponse::default();
            let at_end = self.fill(context, name, &mut walk, &mut page)?;
            let has_records = !page.records.is_empty();
            page.caught_up = follow && at_end;
            page.cursor = cursor(context.namespace, name, &walk.next);
            // The end is told once, until there was more.
            if has_records || !told_end {
                sink.send(page.encode_to_vec().into()).await?;
                told_end = at_end;
            }
            if walk.left == 0 || at_end && !follow {
                return Ok(());
            }
            match at_end {
                true => sink.wait(attendance.told(), NO_END).await?,
                false => yield_now().await,
            }
        }
    }

    /// Puts the next records on a page; whether nothing more was there.
    fn fill(
        &self,
        context: &Context<'_>,
        name: &str,
        walk: &mut Walk,
        page: &mut reply::ReadResponse,
    ) -> Result<bool, Error> {
        let mut bytes = 0;
        self.with_stream(context.namespace, name, |stream| {
            for step in 0..PARTITIONS {
                let partition = (walk.turn + step) % PARTITIONS;
                let (of, next) = (&stream.partitions[partition], &mut walk.next[partition]);
                let end = walk.ends[partition];
                if !walk.chosen[partition] {
                    continue;
                }
                if *next < of.first() && *next < end {
                    return Err(trimmed(partition, of.first()));
                }
                for &offset in of.records.range(*next..end.max(*next)).map(|(offset, _)| offset) {
                    let is_full = page.records.len() >= PAGE_ENTRIES_DEFAULT || bytes >= PAGE_BYTES;
                    let record = self.kept_record(context.namespace, (name, partition), offset);
                    let Some(record) = record else {
                        unreachable!("a record that is known is kept");
                    };
                    let record_bytes = record.encoded_len() + 512;
                    // One that is larger than a page has a message of its own.
                    let is_large =
                        bytes > 0 && bytes + record_bytes > context.limits.max_message_size;
                    if is_full || walk.left == 0 || is_large {
                        walk.turn = (partition + 1) % PARTITIONS;
                        return Ok(false);
                    }
                    bytes += record_bytes;
                    page.records.push(record);
                    *next = offset + 1;
                    walk.left -= 1;
                }
            }
            Ok(true)
        })
    }
}

/// Which partitions are to be read.
fn chosen(partitions: &Repeated<'_, u32>) -> Result<[bool; PARTITIONS], Error> {
    let mut chosen = [partitions.is_empty(); PARTITIONS];
    for (index, partition) in partitions.iter().enumerate() {
        chosen[known_partition(&format!("partitions[{index}]"), partition)?] = true;
    }
    Ok(chosen)
}

fn ends(stream: &Stream) -> Places {
    std::array::from_fn(|number| stream.partitions[number].next)
}

fn limit(asked: u64) -> u64 {
    if asked == 0 { u64::MAX } else { asked }
}

/// Where a reader begins in each partition.
pub(super) fn places(
    context: &Context<'_>,
    name: &str,
    stream: &Stream,
    start: &Start<'_>,
) -> Result<Places, Error> {
    let of_each = |place: &dyn Fn(usize) -> u64| -> Places { std::array::from_fn(place) };
    let first = |number: usize| stream.partitions[number].first();
    Ok(match start.start {
        None | Some(StartStart::Earliest(_)) => of_each(&first),
        Some(StartStart::Latest(_)) => of_each(&|number| stream.partitions[number].next),
        Some(StartStart::Since(time)) => {
            let time_us = moment_us(&time);
            of_each(&|number| stream.partitions[number].since(time_us))
        }
        Some(StartStart::At(position)) | Some(StartStart::After(position)) => {
            let is_after = matches!(start.start, Some(StartStart::After(_)));
            let field = if is_after { "start.after" } else { "start.at" };
            let partition = known_partition(&format!("{field}.partition"), position.partition)?;
            let place = known_place(field, stream, &position, is_after)?;
            let mut places = of_each(&first);
            places[partition] = place;
            places
        }
        Some(StartStart::Cursor(text)) => {
            read_cursor(context.namespace, name, text).ok_or_else(|| {
                let expected = "does not belong to this namespace and stream";
                Error::field("CURSOR_INVALID", "start.cursor", expected)
            })?
        }
    })
}

/// The place of a record that was told, or behind it.
pub(super) fn known_place(
    field: &str,
    stream: &Stream,
    position: &Position<'_>,
    is_after: bool,
) -> Result<u64, Error> {
    let partition = known_partition(&format!("{field}.partition"), position.partition)?;
    let place = known_offset(field, stream, position)? + u64::from(is_after);
    let first = stream.partitions[partition].first();
    if place < first { Err(trimmed(partition, first)) } else { Ok(place) }
}

/// The offset of a record of a known partition, or of its next one.
fn known_offset(field: &str, stream: &Stream, position: &Position<'_>) -> Result<u64, Error> {
    let partition = known_partition(&format!("{field}.partition"), position.partition)?;
    let of = &stream.partitions[partition];
    let offset = position.offset.parse::<u64>().ok().filter(|offset| *offset <= of.next);
    offset.ok_or_else(|| {
        let expected = "is no offset of this partition that was told";
        Error::field("POSITION_INVALID", format!("{field}.offset"), expected)
    })
}

#[cold]
fn trimmed(partition: usize, earliest: u64) -> Error {
    let message = format!(
        "retention has removed what was to be read of partition {partition}: its earliest record is {earliest}"
    );
    Error::new(Kind::OutOfRange, "POSITION_TRIMMED", message)
        .with("partition", partition.to_string())
        .with("earliest", earliest.to_string())
}

/// A cursor: the places, and what binds them to their stream.
fn cursor(namespace: u32, name: &str, places: &Places) -> String {
    let mut hasher = SipHasher13::new_with_keys(u64::from(namespace), 0x6375_7273_6f72);
    hasher.write(name.as_bytes());
    places.iter().for_each(|place| hasher.write_u64(*place));
    let places: Vec<_> = places.iter().map(|place| format!("{place:x}")).collect();
    format!("{}.{:016x}", places.join("-"), hasher.finish())
}

fn read_cursor(namespace: u32, name: &str, text: &str) -> Option<Places> {
    let mut places = [0; PARTITIONS];
    let mut parts = text.split_once('.')?.0.split('-');
    for place in &mut places {
        *place = u64::from_str_radix(parts.next()?, 16).ok()?;
    }
    (cursor(namespace, name, &places) == text).then_some(places)
}
