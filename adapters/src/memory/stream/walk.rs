//! Reading a stream: a place in each partition, one page at a time, and a wait for news at the end.

use std::hash::Hasher;

use prism_io::rt::yield_now;
use prism_proto::prism::stream::v1 as reply;
use prism_proto::view::stream::ReadRequest;
use prism_proto::view::types::{Start, StartStart};
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
type Places = [u64; PARTITIONS];

impl Memstore {
    pub(super) async fn read_stream<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: ReadRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let (namespace, name) = (context.namespace, request.stream);
        let start = request.start.unwrap_or_default();
        let mut chosen = [request.partitions.is_empty(); PARTITIONS];
        for (index, partition) in request.partitions.iter().enumerate() {
            chosen[known_partition(&format!("partitions[{index}]"), partition)?] = true;
        }
        let begin = |stream: &Stream| {
            let ends: Places = std::array::from_fn(|number| stream.partitions[number].next);
            Ok::<_, Error>((places(context, name, stream, &start)?, ends))
        };
        let (mut next, ends) = self.with_stream(namespace, name, begin)?;
        let mut left = if request.limit == 0 { u64::MAX } else { request.limit };
        let mut attendance = self.stream_sources.attend(namespace, name);
        let mut told_end = false;
        loop {
            let ends = if request.follow { [u64::MAX; PARTITIONS] } else { ends };
            let mut page = reply::ReadResponse::default();
            let at_end =
                self.fill(context, name, (&chosen, &ends), (&mut next, &mut left), &mut page)?;
            let has_records = !page.records.is_empty();
            page.caught_up = request.follow && at_end;
            page.cursor = cursor(namespace, name, &next);
            // The end is told once, until there was more.
            if has_records || !told_end {
                sink.send(page.encode_to_vec().into()).await?;
                told_end = at_end;
            }
            if left == 0 || at_end && !request.follow {
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
        (chosen, ends): (&[bool; PARTITIONS], &Places),
        (next, left): (&mut Places, &mut u64),
        page: &mut reply::ReadResponse,
    ) -> Result<bool, Error> {
        let mut bytes = 0;
        self.with_stream(context.namespace, name, |stream| {
            for (partition, of) in stream.partitions.iter().enumerate() {
                if !chosen[partition] {
                    continue;
                }
                if next[partition] < of.first() && next[partition] < ends[partition] {
                    return Err(trimmed(partition, of.first()));
                }
                let upto = ends[partition].max(next[partition]);
                for &offset in of.records.range(next[partition]..upto).map(|(offset, _)| offset) {
                    let is_full = page.records.len() >= PAGE_ENTRIES_DEFAULT || bytes >= PAGE_BYTES;
                    if is_full || *left == 0 {
                        return Ok(false);
                    }
                    let record = self.kept_record(context.namespace, (name, partition), offset);
                    let Some(record) = record else {
                        unreachable!("a record that is known is kept");
                    };
                    let record_bytes = record.encoded_len() + 512;
                    // One that is larger than a page has a message of its own.
                    if bytes > 0 && bytes + record_bytes > context.limits.max_message_size {
                        return Ok(false);
                    }
                    bytes += record_bytes;
                    page.records.push(record);
                    next[partition] = offset + 1;
                    *left -= 1;
                }
            }
            Ok(true)
        })
    }
}

/// Where a reader begins in each partition.
fn places(
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
            let of = &stream.partitions[partition];
            let offset = position.offset.parse::<u64>().ok().filter(|offset| *offset <= of.next);
            let Some(offset) = offset else {
                let expected = "is no offset of this partition that was told";
                return Err(Error::field("POSITION_INVALID", format!("{field}.offset"), expected));
            };
            let place = offset + u64::from(is_after);
            if place < of.first() {
                return Err(trimmed(partition, of.first()));
            }
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
