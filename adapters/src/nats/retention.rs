//! How long records stay: the limits of their stream, as NATS's own tools show them.
//!
//! JetStream keeps to them by itself: to numbers and bytes at once, to ages when their time is up. It does not look at keys.

use std::time::Duration;

use prism_proto::prism::stream::v1 as reply;
use prism_proto::view::stream::{CompactRequest, GetRetentionRequest, SetRetentionRequest};
use prost::Message as _;
use serde_json::{Value, json};

use super::Nats;
use super::errors::BACKEND;
use super::jetstream::{ApiFailure, DUPLICATE_WINDOW, Holds, STREAM_NOT_FOUND};
use crate::call::{Context, Reply};
use crate::error::{Error, Kind};
use crate::interfaces::message::span_ms;
use crate::interfaces::stream::StreamRetention;

/// The shortest age that JetStream takes.
const AGE_MIN: Duration = Duration::from_millis(100);

/// What a stream's limits mean.
fn shown(config: &Value) -> reply::Retention {
    let bound = |name: &str| config[name].as_i64().filter(|bound| *bound > 0);
    reply::Retention {
        max_age: bound("max_age").map(|ns| prost_types::Duration {
            seconds: ns / 1_000_000_000,
            nanos: (ns % 1_000_000_000) as i32,
        }),
        max_bytes: bound("max_bytes").map(i64::unsigned_abs),
        max_records: bound("max_msgs").map(i64::unsigned_abs),
        by_key: false,
    }
}

impl StreamRetention for Nats {
    async fn set_retention(
        &self,
        context: &Context<'_>,
        request: SetRetentionRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let asked = request.retention.unwrap_or_default();
        if asked.by_key {
            return Err(by_key_not_offered());
        }
        let holds = Holds::Records(request.stream);
        self.ensure_stream(context, holds).await?;
        let bound =
            |asked: Option<u64>| asked.map_or(-1, |bound| bound.min(i64::MAX as u64) as i64);
        let age = asked.max_age.as_ref().map(|age| Duration::from_millis(span_ms(age)));
        let age_ns = age.map_or(0, |age| age.max(AGE_MIN).as_nanos().min(i64::MAX as u128) as u64);
        let set = async {
            let mut config =
                self.stream_api(context, "INFO", holds, &json!({})).await?["config"].take();
            config["max_age"] = age_ns.into();
            config["max_bytes"] = bound(asked.max_bytes).into();
            config["max_msgs"] = bound(asked.max_records).into();
            // It may not be longer than the age.
            let window = DUPLICATE_WINDOW.as_nanos() as u64;
            config["duplicate_window"] =
                if age_ns > 0 { window.min(age_ns) } else { window }.into();
            let answer = self.stream_api(context, "UPDATE", holds, &config).await?;
            Ok(shown(&answer["config"]))
        };
        let retention = set.await.map_err(|failure: ApiFailure| failure.error(context))?;
        reply::SetRetentionResponse { retention: Some(retention) }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_retention(
        &self,
        context: &Context<'_>,
        request: GetRetentionRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let retention = Some(self.retention(context, request.stream).await?);
        // Nothing but the streams' own limits is planned.
        let plan = Some(reply::Retention::default());
        reply::GetRetentionResponse { retention, plan }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn compact(
        &self,
        context: &Context<'_>,
        request: CompactRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let retention = self.retention(context, request.stream).await?;
        let state = match retention.max_age {
            Some(_) => reply::CompactionState::Scheduled,
            None => reply::CompactionState::Done,
        };
        reply::CompactResponse { state: state.into() }.encode_raw(&mut reply.head);
        Ok(())
    }
}

impl Nats {
    async fn retention(
        &self,
        context: &Context<'_>,
        stream: &str,
    ) -> Result<reply::Retention, Error> {
        match self.stream_api(context, "INFO", Holds::Records(stream), &json!({})).await {
            Ok(info) => Ok(shown(&info["config"])),
            Err(ApiFailure::Api(error)) if error.err_code == STREAM_NOT_FOUND => {
                Ok(reply::Retention::default())
            }
            Err(failure) => Err(failure.error(context)),
        }
    }
}

#[cold]
fn by_key_not_offered() -> Error {
    let message = "the streams on NATS forget by age, bytes and number, not by key: leave by_key out, or take a namespace on \
                   another backend";
    Error::new(Kind::Unimplemented, "RETENTION_NOT_OFFERED", message).with("backend", BACKEND)
}
