//! StreamService on NATS: a stream is a stream of JetStream over the subject `$STREAM.<namespace>.<stream>`, an offset a number in it.
//!
//! It has one partition. What is appended under the condition of what is last is, by the server, which looks at the stream as a whole.

use std::hash::Hasher;
use std::time::Duration;

use prism_io::rt;
use prism_proto::prism::stream::v1 as reply;
use prism_proto::view::stream::{
    AppendBatchRequest, AppendRequest, GetLatestOffsetRequest, NewRecord, ReadRequest,
};
use prism_proto::view::types::{Position, Start, StartStart};
use prost::Message as _;
use serde_json::json;
use siphasher::sip::SipHasher13;

use super::Nats;
use super::durable::{position, rfc3339};
use super::errors;
use super::jetstream::{ApiFailure, Holds, STREAM_NOT_FOUND, Stored, stored};
use super::lane::MESSAGE_TOO_LARGE;
use super::link::{Answer, Ask, Outgoing};
use super::record::{header_bytes, identity, outgoing, record};
use crate::call::{Context, PageSink, Reply};
use crate::error::{Error, Kind};
use crate::interfaces::keyvalue_selection::PAGE_BYTES;
use crate::interfaces::message::{item_status, message_id, moment_us};
use crate::interfaces::stream::StreamBasic;
use crate::limits::PAGE_ENTRIES_DEFAULT;

/// How long a reader that follows waits before it looks for what was appended another way.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a record takes in a page beside itself, and a page beside its records, at most.
const FIELD_BYTES: usize = 6;
const CURSOR_BYTES: usize = 64;

/// What JetStream says of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    /// The first record that is there; where there is none, the next that will be.
    pub(super) first: u64,
    /// The last that there was.
    pub(super) last: u64,
    /// How many there are.
    pub(super) count: u64,
}

/// When a reader that follows looks again.
fn look_us(now_us: u64) -> u64 {
    now_us.saturating_add(LOOK_EVERY.as_micros() as u64)
}

impl StreamBasic for Nats {
    async fn append(
        &self,
        context: &Context<'_>,
        request: AppendRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let expected = request.expected_last.as_ref().map(expected_last).transpose()?;
        let record = request.record.unwrap_or_default();
        let appended = self.append_all(context, request.stream, &[record], expected).await?;
        let first = appended.into_iter().next().unwrap_or_else(|| Err(errors::unexpected(context)));
        let position = Some(position(first?));
        reply::AppendResponse { position }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn append_batch(
        &self,
        context: &Context<'_>,
        request: AppendBatchRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let records: Vec<_> = request.records.iter().collect();
        let appended = self.append_all(context, request.stream, &records, None).await?;
        let results = appended.into_iter().map(|one| match one {
            Ok(sequence) => {
                reply::AppendBatchResult { status: None, position: Some(position(sequence)) }
            }
            Err(error) => {
                reply::AppendBatchResult { status: Some(item_status(&error)), position: None }
            }
        });
        reply::AppendBatchResponse { results: results.collect() }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_latest_offset(
        &self,
        context: &Context<'_>,
        request: GetLatestOffsetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let extent = self.extent(context, request.stream).await?;
        let positions = (extent.count > 0).then(|| position(extent.last)).into_iter().collect();
        reply::GetLatestOffsetResponse { positions }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn read<S: PageSink>(
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
        let mut news = self.deliveries.sources.attend(context.namespace, stream);
        let extent = self.extent(context, stream).await?;
        let start = request.start.unwrap_or_default();
        let mut after = self.place(context, stream, &start, &extent).await?;
        let upto = if request.follow { u64::MAX } else { extent.last };
        let mut left = if request.limit == 0 { u64::MAX } else { request.limit };
        let mut told_end = false;
        loop {
            let count = left.min(PAGE_ENTRIES_DEFAULT as u64) as usize;
            let page = match self.page(context, stream, &mut after, upto, count).await {
                // Who follows waits until NATS is there again, and goes on from where it stands.
                Err(error) if request.follow && error.is_retryable() => {
                    sink.wait(news.told(), look_us(sink.now_us())).await?;
                    continue;
                }
                page => page?,
            };
            let (records, at_end) = page;
            left -= records.len() as u64;
            let has_records = !records.is_empty();
            // The end is told once, until there was more.
            if has_records || !told_end {
                let cursor = cursor(context.namespace, stream, after);
                let caught_up = request.follow && at_end;
                let message = reply::ReadResponse { records, cursor, caught_up };
                sink.send(message.encode_to_vec().into()).await?;
                told_end = at_end;
            }
            if left == 0 || at_end && !request.follow {
                return Ok(());
            }
            if at_end {
                sink.wait(news.told(), look_us(sink.now_us())).await?;
            } else {
                rt::yield_now().await;
            }
        }
    }
}

impl Nats {
    /// Appends records, in their order; each one's number, or why it could not be appended. Where one is not stored, all fail.
    async fn append_all(
        &self,
        context: &Context<'_>,
        stream: &str,
        records: &[NewRecord<'_>],
        expected_last: Option<u64>,
    ) -> Result<Vec<Result<u64, Error>>, Error> {
        let holds = Holds::Records(stream);
        let subject = holds.subjects(context);
        let bytes_max = self.link.payload_bytes_max();
        let fits = |record: &NewRecord<'_>| record.value.len() + header_bytes(record) <= bytes_max;
        // What has a record may be sent a second time.
        let is_logged = context.revision.is_logged();
        let sent: Vec<Outgoing> = records
            .iter()
            .enumerate()
            .filter(|(_, record)| fits(record))
            .map(|(index, record)| {
                let id = is_logged.then(|| message_id(context, index));
                outgoing(&subject, record, expected_last, id.as_deref())
            })
            .collect();
        let mut appended = Vec::with_capacity(sent.len());
        if !sent.is_empty() {
            let answer = self.ask_stream(context, holds, &Ask::Each(sent)).await;
            if answer.as_ref().is_err_and(Error::is_retryable) {
                // Somebody may have deleted it.
                self.streams.forget(context, holds);
            }
            let Answer::Several(answers) = answer? else {
                return Err(errors::unexpected(context));
            };
            for answer in &answers {
                appended.push(match stored(context, answer) {
                    Ok(Stored::At(sequence)) => Ok(sequence),
                    Ok(Stored::Unexpected) => match expected_last {
                        Some(last) if is_logged && self.is_there(context, stream, last).await? => {
                            Ok(last.saturating_add(1))
                        }
                        _ => return Err(not_last()),
                    },
                    // It is that record's own.
                    Err(error) if error.reason() == MESSAGE_TOO_LARGE => Err(error),
                    Err(error) => return Err(error),
                });
            }
            self.deliveries.sources.tell(context.namespace, stream);
        }
        let mut appended = appended.into_iter();
        let outcomes = records.iter().map(|record| match fits(record) {
            true => appended.next().unwrap_or_else(|| Err(errors::unexpected(context))),
            false => Err(errors::message_too_large(bytes_max)),
        });
        Ok(outcomes.collect())
    }

    /// Whether what follows a record is what this call is to append: it has arrived before, and its answer was lost.
    async fn is_there(
        &self,
        context: &Context<'_>,
        stream: &str,
        last: u64,
    ) -> Result<bool, Error> {
        let holds = Holds::Records(stream);
        let subject = holds.subjects(context);
        let next = last.saturating_add(1);
        let request = json!({ "seq": next, "next_by_subj": subject, "batch": 1 });
        let walked = self.read_batch(context, holds, request).await?;
        Ok(walked.records.first().is_some_and(|(sequence, message)| {
            *sequence == next && identity(message) == Some(&message_id(context, 0))
        }))
    }

    /// Where a stream begins and ends; one that is not there has nothing.
    pub(super) async fn extent(
        &self,
        context: &Context<'_>,
        stream: &str,
    ) -> Result<Extent, Error> {
        let mut info =
            match self.stream_api(context, "INFO", Holds::Records(stream), &json!({})).await {
                Err(ApiFailure::Api(error)) if error.err_code == STREAM_NOT_FOUND => {
                    return Ok(Extent { first: 1, ..Extent::default() });
                }
                info => info.map_err(|failure| failure.error(context))?,
            };
        let state = info["state"].take();
        let number = |name: &str| state[name].as_u64().ok_or_else(|| errors::unexpected(context));
        let (first, last, count) = (number("first_seq")?, number("last_seq")?, number("messages")?);
        // Of one that nothing was appended to the first is 0.
        Ok(Extent { first: first.max(1), last, count })
    }

    /// Records behind a number, up to another; moves the number on. Whether there are no more of them.
    pub(super) async fn page(
        &self,
        context: &Context<'_>,
        stream: &str,
        after: &mut u64,
        upto: u64,
        count: usize,
    ) -> Result<(Vec<reply::StreamRecord>, bool), Error> {
        if *after >= upto {
            return Ok((Vec::new(), true));
        }
        let holds = Holds::Records(stream);
        let request = json!({
            "seq": *after + 1,
            "next_by_subj": holds.subjects(context),
            "batch": count,
            "max_bytes": PAGE_BYTES.min(context.limits.max_message_size / 2),
        });
        let walked = self.read_batch(context, holds, request).await?;
        // What was not there when it was looked for is told of later.
        let is_gap = match walked.records.first() {
            Some((first, _)) => *first > *after + 1,
            None => walked.behind == 0,
        };
        if is_gap {
            let extent = self.extent(context, stream).await?;
            if extent.first > *after + 1 {
                return Err(trimmed(extent.first));
            }
        }
        let mut records = Vec::with_capacity(walked.records.len());
        let mut at_end = walked.behind == 0;
        let mut bytes = 0;
        for (sequence, message) in walked.records {
            if sequence > upto {
                at_end = true;
                break;
            }
            let record = record(sequence, message);
            if record.encoded_len() > context.limits.max_message_size {
                return Err(errors::too_large(context));
            }
            // Another page has what would make this one too long.
            bytes += record.encoded_len() + FIELD_BYTES;
            if bytes + CURSOR_BYTES > context.limits.max_message_size && !records.is_empty() {
                at_end = false;
                break;
            }
            *after = sequence;
            records.push(record);
        }
        at_end |= *after >= upto || records.is_empty() && walked.behind == 0;
        Ok((records, at_end))
    }

    /// The number behind which a reader begins.
    pub(super) async fn place(
        &self,
        context: &Context<'_>,
        stream: &str,
        start: &Start<'_>,
        extent: &Extent,
    ) -> Result<u64, Error> {
        let known = |after: u64| match after.saturating_add(1) < extent.first {
            true => Err(trimmed(extent.first)),
            false => Ok(after),
        };
        match start.start {
            None | Some(StartStart::Earliest(_)) => Ok(extent.first - 1),
            Some(StartStart::Latest(_)) => Ok(extent.last),
            Some(StartStart::Since(moment)) => {
                self.before_moment(context, stream, moment_us(&moment), extent).await
            }
            Some(StartStart::At(position)) | Some(StartStart::After(position)) => {
                let is_after = matches!(start.start, Some(StartStart::After(_)));
                let field = if is_after { "start.after" } else { "start.at" };
                check_partition(&format!("{field}.partition"), position.partition)?;
                let offset = offset(&position).filter(|offset| *offset <= extent.last);
                let offset = offset.ok_or_else(|| unknown_position(field))?;
                known(if is_after { offset } else { offset - 1 })
            }
            Some(StartStart::Cursor(text)) => {
                let after = read_cursor(context.namespace, stream, text).ok_or_else(|| {
                    let expected = "does not belong to this namespace and stream";
                    Error::field("CURSOR_INVALID", "start.cursor", expected)
                })?;
                known(after)
            }
        }
    }

    /// The number before the first record that was stored at a moment or later.
    pub(super) async fn before_moment(
        &self,
        context: &Context<'_>,
        stream: &str,
        moment_us: u64,
        extent: &Extent,
    ) -> Result<u64, Error> {
        if extent.count == 0 {
            return Ok(extent.last);
        }
        let holds = Holds::Records(stream);
        let request = json!({
            "start_time": rfc3339(moment_us),
            "next_by_subj": holds.subjects(context),
            "batch": 1,
        });
        let walked = self.read_batch(context, holds, request).await?;
        Ok(walked.records.first().map_or(extent.last, |(sequence, _)| sequence - 1))
    }
}

pub(super) fn offset(position: &Position<'_>) -> Option<u64> {
    let is_plain = position.offset.bytes().all(|byte| byte.is_ascii_digit());
    position.offset.parse().ok().filter(|offset| is_plain && *offset > 0)
}

/// The number that a record is to be the last of.
fn expected_last(position: &Position<'_>) -> Result<u64, Error> {
    check_partition("expected_last.partition", position.partition)?;
    offset(position).ok_or_else(|| unknown_position("expected_last"))
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
    let expected = "is no offset of this partition that was told";
    Error::field("POSITION_INVALID", format!("{field}.offset"), expected)
}

#[cold]
fn not_last() -> Error {
    let message = "the newest record of the stream is another one: read on and decide again";
    Error::new(Kind::FailedPrecondition, "EXPECTED_LAST_MISMATCH", message)
}

#[cold]
pub(super) fn trimmed(earliest: u64) -> Error {
    let message = format!(
        "what was to be read has been removed from the stream: its earliest record is {earliest}"
    );
    Error::new(Kind::OutOfRange, "POSITION_TRIMMED", message)
        .with("partition", "0")
        .with("earliest", earliest.to_string())
}

/// A cursor: the place, and what binds it to its stream.
pub(super) fn cursor(namespace: u32, stream: &str, after: u64) -> String {
    let mut hasher = SipHasher13::new_with_keys(u64::from(namespace), 0x6375_7273_6f72);
    hasher.write(stream.as_bytes());
    hasher.write_u64(after);
    format!("{after}.{:016x}", hasher.finish())
}

fn read_cursor(namespace: u32, stream: &str, text: &str) -> Option<u64> {
    let after = text.split_once('.')?.0.parse().ok()?;
    (cursor(namespace, stream, after) == text).then_some(after)
}
