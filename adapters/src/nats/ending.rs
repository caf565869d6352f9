//! The end of a namespace in NATS: its streams of JetStream are deleted, the lane's cell with the values among them.
//!
//! Its streams are `KV_<namespace>`, `EVENTS_<namespace>` and those that begin with `STREAM_<namespace>_`, `QUEUE_<namespace>_` or
//! `DEAD_<namespace>_` (no namespace has a `_` in its name); consumers go with their streams.

use serde_json::{Value, json};

use super::Nats;
use super::errors;
use super::jetstream::{ApiFailure, Holds, STREAM_NOT_FOUND};
use super::subject;
use crate::call::Context;
use crate::ending::Endings;
use crate::error::Error;

/// What the names of streams begin with of which a namespace may have many.
const KINDS: [&str; 3] = ["STREAM", "QUEUE", "DEAD"];

impl Endings for Nats {
    async fn holds_data(&self, context: &Context<'_>) -> Result<bool, Error> {
        for stream in self.streams_of(context).await? {
            // Of a bucket the cells of lanes are none of its data.
            let cells = subject::of_cells(context.namespace_name);
            let request = json!({ "subjects_filter": cells });
            let Some(info) = self.api_of(context, "INFO", &stream, &request).await? else {
                continue;
            };
            let cells = info["state"]["subjects"].as_object().map_or(0, |cells| cells.len() as u64);
            if info["state"]["messages"].as_u64().unwrap_or(0) > cells {
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
        Ok(())
    }
}

impl Nats {
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
