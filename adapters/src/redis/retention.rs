//! How long a stream's records stay, by age and by number: what holds lies beside the stream, under
//! `_prism:retention:<namespace>:<stream>`.
//!
//! Redis removes nothing from a stream by itself. What is surplus goes when Compact is called, and otherwise as records are appended
//! here: with the first one since the start, and with one in so many. Redis counts no bytes of a stream and keeps nothing by key, so
//! that neither is offered.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use prism_io::rt;
use prism_proto::prism::stream::v1 as reply;
use prism_proto::view::stream::{CompactRequest, GetRetentionRequest, SetRetentionRequest};
use prost::Message as _;

use super::Redis;
use super::codec::{self, Replies, Value};
use super::connection::Link;
use super::errors::{self, BACKEND};
use super::keyvalue::Answer;
use super::scripts::Script;
use super::tail;
use crate::call::{Context, Reply};
use crate::error::{Error, Kind};
use crate::interfaces::message::span_ms;
use crate::interfaces::stream::StreamRetention;

const AGE: &[u8] = b"max-age-ms";
const RECORDS: &[u8] = b"max-records";

/// A stream is trimmed with one append in so many.
const APPENDS_PER_TRIM: usize = 128;
/// Streams whose appends are counted.
const STREAMS_MAX: usize = 4096;
/// Scripts that one trim runs, each of which removes a bounded number of records.
const ROUNDS_MAX: usize = 100_000;

/// Records that were appended here since a stream was last trimmed.
#[derive(Debug, Default)]
pub(super) struct Trims(RefCell<HashMap<(u32, Box<str>), usize, ahash::RandomState>>);

impl Trims {
    /// Counts records; whether the stream is to be trimmed now.
    pub(super) fn is_due(&self, namespace: u32, stream: &str, appended: usize) -> bool {
        let mut counted = self.0.borrow_mut();
        let key = (namespace, Box::from(stream));
        if let Some(count) = counted.get_mut(&key) {
            *count += appended;
            let is_due = *count >= APPENDS_PER_TRIM;
            *count = if is_due { 0 } else { *count };
            return is_due;
        }
        if counted.len() >= STREAMS_MAX {
            counted.clear();
        }
        counted.insert(key, 0);
        true
    }
}

/// The name of a stream's key, and of what it keeps.
fn keys(context: &Context<'_>, stream: &str) -> [Vec<u8>; 2] {
    let name = format!("{}:{stream}", context.namespace_name);
    [name.clone().into_bytes(), format!("_prism:retention:{name}").into_bytes()]
}

impl StreamRetention for Redis {
    async fn set_retention(
        &self,
        context: &Context<'_>,
        request: SetRetentionRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let asked = request.retention.unwrap_or_default();
        if asked.max_bytes.is_some() || asked.by_key {
            return Err(not_offered());
        }
        let [_, kept] = keys(context, request.stream);
        let text = |number: Option<u64>| number.map_or(String::new(), |number| number.to_string());
        let (age_ms, records) = (asked.max_age.as_ref().map(span_ms), asked.max_records);
        let write = |out: &mut Vec<u8>| {
            codec::put_command(out, 6);
            let bounds = [text(age_ms), text(records)];
            let parts =
                [&b"HSET"[..], &kept, AGE, bounds[0].as_bytes(), RECORDS, bounds[1].as_bytes()];
            parts.iter().for_each(|part| codec::put(out, part));
        };
        let read = self.link.call(context, 1, write).await?;
        Answer::new(context, &read).integer()?;
        let retention = Some(shown(age_ms, records));
        reply::SetRetentionResponse { retention }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_retention(
        &self,
        context: &Context<'_>,
        request: GetRetentionRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let [_, kept] = keys(context, request.stream);
        let write = |out: &mut Vec<u8>| {
            codec::put_command(out, 4);
            [&b"HMGET"[..], &kept, AGE, RECORDS].iter().for_each(|part| codec::put(out, part));
        };
        let read = self.link.call(context, 1, write).await?;
        let mut answer = Answer::new(context, &read);
        if answer.array()? != 2 {
            return Err(errors::unexpected(context));
        }
        let mut number = || -> Result<Option<u64>, Error> {
            let text = answer.blob()?.and_then(|text| std::str::from_utf8(text).ok());
            Ok(text.and_then(|text| text.parse().ok()))
        };
        let retention = Some(shown(number()?, number()?));
        let plan = Some(shown(None, None));
        reply::GetRetentionResponse { retention, plan }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn compact(
        &self,
        context: &Context<'_>,
        request: CompactRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let keys = keys(context, request.stream);
        let write = |out: &mut Vec<u8>| keys.iter().for_each(|key| codec::put(out, key));
        let read = self.script(context, Script::StreamTrim, 2, 0, write).await?;
        let is_done = Answer::new(context, &read).integer()? == 1;
        if !is_done {
            rt::spawn(trim(self.link.clone(), keys));
        }
        let state = match is_done {
            true => reply::CompactionState::Done,
            false => reply::CompactionState::Scheduled,
        };
        reply::CompactResponse { state: state.into() }.encode_raw(&mut reply.head);
        Ok(())
    }
}

impl Redis {
    /// Counts records that were appended, and trims their stream now and then.
    pub(super) fn note_appended(&self, context: &Context<'_>, stream: &str, appended: usize) {
        if self.trims.is_due(context.namespace, stream, appended) {
            rt::spawn(trim(self.link.clone(), keys(context, stream)));
        }
    }
}

/// Removes what may go, round by round; where that fails, the next trim goes on.
async fn trim(link: Rc<Link>, keys: [Vec<u8>; 2]) {
    for _ in 0..ROUNDS_MAX {
        let read = tail::call(&link, |out| {
            codec::put_command(out, 5);
            codec::put(out, b"EVAL");
            codec::put(out, Script::StreamTrim.source().as_bytes());
            codec::put_number(out, keys.len() as u64);
            keys.iter().for_each(|key| codec::put(out, key));
        });
        let Some(read) = read.await else { return };
        if Replies::new(&read).next() != Ok(Value::Integer(0)) {
            return;
        }
    }
}

fn shown(age_ms: Option<u64>, max_records: Option<u64>) -> reply::Retention {
    let max_age = age_ms.map(|ms| prost_types::Duration {
        seconds: (ms / 1000) as i64,
        nanos: (ms % 1000) as i32 * 1_000_000,
    });
    reply::Retention { max_age, max_bytes: None, max_records, by_key: false }
}

#[cold]
fn not_offered() -> Error {
    let message = "Redis keeps a stream's records by age and by their number, not by bytes or by key: leave max_bytes and by_key \
                   out, or take a namespace on another backend";
    Error::new(Kind::Unimplemented, "RETENTION_NOT_OFFERED", message).with("backend", BACKEND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_trimmed_with_its_first_append_and_one_in_so_many() {
        let trims = Trims::default();
        assert!(trims.is_due(1, "s", 1) && trims.is_due(2, "s", 1) && trims.is_due(1, "t", 1));
        let due = (0..3 * APPENDS_PER_TRIM).filter(|_| trims.is_due(1, "s", 1)).count();
        assert_eq!(due, 3);
        assert!(trims.is_due(1, "s", 1_000));
        for stream in 0..2 * STREAMS_MAX {
            trims.is_due(3, &stream.to_string(), 1);
        }
        assert!(trims.0.borrow().len() <= STREAMS_MAX);
    }
}
