//! StreamService on Redis: a stream is a Redis stream under `<namespace>:<stream>`, an offset is its `ms-seq`.
//!
//! An entry's fields are `value` (or `tombstone`), `key` and `content-type` where there are any, and each attribute under its own
//! name; an attribute that is called like one of ours is `attribute.<name>`. A stream has one partition.

use prism_proto::prism::stream::v1 as reply;
use prism_proto::prism::r#type::v1::Position;
use prism_proto::view::stream::{
    AppendBatchRequest, AppendRequest, GetLatestOffsetRequest, NewRecord, ReadRequest,
};
use prism_proto::view::types as view;
use prost::Message as _;

use super::Redis;
use super::codec::{self, Value};
use super::errors;
use super::keyvalue::{Answer, put_key};
use super::scripts::Script;
use super::walk::{check_partition, unknown_position};
use crate::call::{Context, PageSink, Reply};
use crate::error::{Error, Kind};
use crate::interfaces::message::{item_status, time};
use crate::interfaces::stream::StreamBasic;

/// The fields of an entry that are no attributes.
const OWN_FIELDS: [&str; 4] = ["value", "tombstone", "key", "content-type"];
/// What the field of an attribute begins with that is called like one of them; attributes have no dots.
pub(super) const ATTRIBUTE: &str = "attribute.";

/// An entry's place in a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) ms: u64,
    pub(super) seq: u64,
}

impl Id {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| {
            let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| is_plain)
        };
        let (ms, seq) = text.split_once('-')?;
        Some(Id { ms: number(ms)?, seq: number(seq)? })
    }

    pub(super) fn read(context: &Context<'_>, text: Option<&[u8]>) -> Result<Self, Error> {
        let text = text.and_then(|text| std::str::from_utf8(text).ok());
        text.and_then(Id::parse).ok_or_else(|| errors::unexpected(context))
    }

    /// The id before it; that of nothing before the first.
    pub(super) fn before(self) -> Self {
        match (self.ms, self.seq) {
            (0, 0) => self,
            (ms, 0) => Id { ms: ms - 1, seq: u64::MAX },
            (ms, seq) => Id { ms, seq: seq - 1 },
        }
    }

    pub(super) fn text(self) -> String {
        format!("{}-{}", self.ms, self.seq)
    }

    pub(super) fn position(self) -> Position {
        Position { partition: 0, offset: self.text() }
    }
}

/// Adds the command that appends a record.
fn put_append(out: &mut Vec<u8>, context: &Context<'_>, stream: &str, record: &NewRecord<'_>) {
    codec::put_command(out, 3 + count_parts(record));
    codec::put(out, b"XADD");
    put_key(out, context, stream);
    codec::put(out, b"*");
    put_parts(out, record);
}

/// How many parts the fields of a record and their values are.
fn count_parts(record: &NewRecord<'_>) -> usize {
    let beside = usize::from(record.key.is_some()) + usize::from(!record.content_type.is_empty());
    2 * (1 + beside + record.attributes.len())
}

fn put_parts(out: &mut Vec<u8>, record: &NewRecord<'_>) {
    match record.tombstone {
        true => [&b"tombstone"[..], b"1"].map(|part| codec::put(out, part)),
        false => [&b"value"[..], record.value].map(|part| codec::put(out, part)),
    };
    if let Some(key) = record.key {
        codec::put(out, b"key");
        codec::put(out, key.as_bytes());
    }
    if !record.content_type.is_empty() {
        codec::put(out, b"content-type");
        codec::put(out, record.content_type.as_bytes());
    }
    for attribute in record.attributes.iter() {
        let prefix = if OWN_FIELDS.contains(&attribute.key) { ATTRIBUTE } else { "" };
        codec::put_pieces(out, [prefix.as_bytes(), attribute.key.as_bytes(), b""]);
        codec::put(out, attribute.value.as_bytes());
    }
}

/// Reads an entry, whoever has written it; what is no text is read as well as may be.
pub(super) fn read_entry(
    context: &Context<'_>,
    answer: &mut Answer<'_>,
) -> Result<(Id, reply::StreamRecord), Error> {
    if answer.array()? != 2 {
        return Err(errors::unexpected(context));
    }
    let id = Id::read(context, answer.blob()?)?;
    let parts = answer.array()?;
    let mut record = reply::StreamRecord {
        position: Some(id.position()),
        timestamp: Some(time(id.ms.saturating_mul(1000))),
        ..Default::default()
    };
    for _ in 0..parts / 2 {
        let (name, value) =
            (answer.blob()?.unwrap_or_default(), answer.blob()?.unwrap_or_default());
        let text = || String::from_utf8_lossy(value).into_owned();
        match name {
            b"value" => record.value = value.to_vec().into(),
            b"tombstone" => record.tombstone = true,
            b"key" => record.key = Some(text()),
            b"content-type" => record.content_type = text(),
            name => {
                let name = String::from_utf8_lossy(name);
                let name = name.strip_prefix(ATTRIBUTE).unwrap_or(&name).to_owned();
                record.attributes.insert(name, text());
            }
        }
    }
    Ok((id, record))
}

impl StreamBasic for Redis {
    async fn append(
        &self,
        context: &Context<'_>,
        request: AppendRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let record = request.record.unwrap_or_default();
        if let Some(expected) = request.expected_last {
            let id = self.append_behind(context, request.stream, &expected, &record).await?;
            self.note_appended(context, request.stream, 1);
            reply::AppendResponse { position: Some(id.position()) }.encode_raw(&mut reply.head);
            return Ok(());
        }
        let write = |out: &mut Vec<u8>| put_append(out, context, request.stream, &record);
        let read = self.link.call(context, 1, write).await?;
        let id = Id::read(context, Answer::new(context, &read).blob()?)?;
        self.note_appended(context, request.stream, 1);
        reply::AppendResponse { position: Some(id.position()) }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn append_batch(
        &self,
        context: &Context<'_>,
        request: AppendBatchRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let records: Vec<_> = request.records.iter().collect();
        let write = |out: &mut Vec<u8>| {
            records.iter().for_each(|record| put_append(out, context, request.stream, record));
        };
        let read = self.link.call(context, records.len(), write).await?;
        let mut answer = Answer::new(context, &read);
        let mut results = Vec::with_capacity(records.len());
        for _ in &records {
            let id = match answer.blob() {
                Ok(id) => Id::read(context, id),
                Err(error) => Err(error),
            };
            results.push(match id {
                Ok(id) => reply::AppendBatchResult { status: None, position: Some(id.position()) },
                Err(error) => {
                    reply::AppendBatchResult { status: Some(item_status(&error)), position: None }
                }
            });
        }
        self.note_appended(context, request.stream, records.len());
        reply::AppendBatchResponse { results }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_latest_offset(
        &self,
        context: &Context<'_>,
        request: GetLatestOffsetRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let page = self.look(context, request.stream, (Id::default(), Id::default()), 0).await?;
        let has_records = page.first > Id::default();
        let positions = has_records.then(|| page.last.position()).into_iter().collect();
        reply::GetLatestOffsetResponse { positions }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn read<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: ReadRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        self.read_stream(context, request, sink).await
    }
}

impl Redis {
    /// Appends a record if the newest one is the one that is expected.
    async fn append_behind(
        &self,
        context: &Context<'_>,
        stream: &str,
        expected: &view::Position<'_>,
        record: &NewRecord<'_>,
    ) -> Result<Id, Error> {
        check_partition("expected_last.partition", expected.partition)?;
        let behind =
            Id::parse(expected.offset).ok_or_else(|| unknown_position("expected_last.offset"))?;
        let write = |out: &mut Vec<u8>| {
            put_key(out, context, stream);
            codec::put(out, behind.text().as_bytes());
            put_parts(out, record);
        };
        let arguments = 1 + count_parts(record);
        let read = self.script(context, Script::StreamAppend, 1, arguments, write).await?;
        let mut answer = Answer::new(context, &read);
        match answer.next()? {
            Value::Blob(id) => Id::read(context, Some(id)),
            Value::Array(1) => {
                let newest = answer.blob()?.unwrap_or_default();
                Err(not_last(&String::from_utf8_lossy(newest)))
            }
            _ => Err(errors::unexpected(context)),
        }
    }
}

#[cold]
fn not_last(newest: &str) -> Error {
    let message =
        format!("the newest record of the stream is another one than expected_last: {newest}");
    Error::new(Kind::FailedPrecondition, "EXPECTED_LAST_MISMATCH", message)
        .with("latest", newest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_strictly_and_keep_their_order() {
        let id = |ms, seq| Id { ms, seq };
        assert_eq!(Id::parse("7-0"), Some(id(7, 0)));
        assert_eq!(id(7, 0).before(), id(6, u64::MAX));
        assert!(id(6, u64::MAX) < id(7, 0) && id(7, 0) < id(7, 1));
        for wrong in ["", "7", "7-", "-7", "+7-0", "7-0-0", "7-x", "99999999999999999999-0"] {
            assert_eq!(Id::parse(wrong), None, "{wrong}");
        }
    }
}
