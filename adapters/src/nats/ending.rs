//! The end of a namespace in NATS: its streams of JetStream are deleted, the lane's cell with the values among them.
//!
//! Its streams are `KV_<namespace>`, `EVENTS_<namespace>` and those that begin with `STREAM_<namespace>_`, `QUEUE_<namespace>_` or
//! `DEAD_<namespace>_` (no namespace has a `_` in its name); consumers go with their streams.

use serde_json::{Value, json};

use super::Nats;
use super::errors;
use super::jetstream::{ApiFailure, Holds, Record, STREAM_NOT_FOUND};
use super::subject;
use crate::call::Context;
use crate::ending::Endings;
use crate::error::Error;
use crate::interfaces::keyvalue_selection::PAGE_BYTES;

/// What the names of streams begin with of which a namespace may have many.
const KINDS: [&str; 3] = ["STREAM", "QUEUE", "DEAD"];

/// Messages of a bucket that are looked at with one read.
const PAGE_MESSAGES: usize = 256;

impl Endings for Nats {
    async fn holds_data(&self, context: &Context<'_>) -> Result<bool, Error> {
        for stream in self.streams_of(context).await? {
            let Some(info) = self.api_of(context, "INFO", &stream, &json!({})).await? else {
                continue;
            };
            if info["state"]["messages"].as_u64().unwrap_or(0) == 0 {
                continue;
            }
            let is_bucket = stream == Holds::Values.stream(context);
            if !is_bucket || self.bucket_holds_values(context).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn erase(&self, context: &Context<'_>) -> Result<(), Error> {
        loop {
            let streams = self.streams_of(context).await?;
            if streams.is_empty() {
                break;
            }
            for stream in streams {
                self.api_of(context, "DELETE", &stream, &json!({})).await?;
            }
        }
        self.streams.forget_all(context);
        self.cells.borrow_mut().retain(|(namespace, _), _| *namespace != context.namespace);
        self.resumed.borrow_mut().retain(|(namespace, _), _| *namespace != context.namespace);
        Ok(())
    }
}

impl Nats {
    /// Whether there is a value in the namespace's bucket: what keeps the place of something else there is none, and neither are the marks
    /// that deletes have left.
    async fn bucket_holds_values(&self, context: &Context<'_>) -> Result<bool, Error> {
        let mut all = String::new();
        subject::put_bucket(&mut all, context.namespace_name);
        all.push('>');
        let mut next = 1;
        loop {
            let page = match self.walk(context, &all, next, PAGE_MESSAGES, PAGE_BYTES).await {
                // It is somebody else's, with whatever is in it.
                Err(error) if error.reason() == "BACKEND_STREAM_UNFIT" => return Ok(true),
                page => page?,
            };
            let is_value = |record: &Record| {
                record.value.is_some()
                    && !subject::is_beside(context.namespace_name, &record.subject)
            };
            if page.records.iter().any(is_value) {
                return Ok(true);
            }
            match page.records.last() {
                Some(last) if page.behind > 0 => next = last.sequence + 1,
                _ => return Ok(false),
            }
        }
    }

    /// The names of the namespace's streams.
    async fn streams_of(&self, context: &Context<'_>) -> Result<Vec<String>, Error> {
        let whole = [Holds::Values, Holds::Events].map(|holds| holds.stream(context));
        let begins = KINDS.map(|kind| format!("{kind}_{}_", context.namespace_name));
        let (mut found, mut offset) = (Vec::new(), 0);
        loop {
            let subject = "$JS.API.STREAM.NAMES".to_owned();
            let answer = self.api(context, subject, &json!({ "offset": offset })).await;
            let page = answer.map_err(|failure| failure.error(context))?;
            let names = page["streams"].as_array().map(Vec::as_slice).unwrap_or_default();
            let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
            offset += names.len() as u64;
            let is_of = |name: &&&str| {
                whole.iter().any(|whole| whole == **name)
                    || begins.iter().any(|begin| name.starts_with(begin))
            };
            found.extend(names.iter().filter(is_of).map(|name| (*name).to_owned()));
            let total = page["total"].as_u64().ok_or_else(|| errors::unexpected(context))?;
            if names.is_empty() || offset >= total {
                return Ok(found);
            }
        }
    }

    /// Asks the API for something about a stream; nothing where there is none.
    async fn api_of(
        &self,
        context: &Context<'_>,
        verb: &str,
        stream: &str,
        request: &Value,
    ) -> Result<Option<Value>, Error> {
        match self.api(context, format!("$JS.API.STREAM.{verb}.{stream}"), request).await {
            Ok(answer) => Ok(Some(answer)),
            Err(ApiFailure::Api(error)) if error.err_code == STREAM_NOT_FOUND => Ok(None),
            Err(failure) => Err(failure.error(context)),
        }
    }
}
