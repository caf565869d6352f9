//! How long records stay: the topic's own settings, as Kafka's tools show them.
//!
//! `max_age` is `retention.ms`, `max_bytes` is `retention.bytes` (per partition there: each gets its share), `by_key` is
//! `cleanup.policy`. Kafka removes whole segments in its own time; it does not count records.

use prism_proto::prism::stream::v1 as reply;
use prism_proto::view::stream::{CompactRequest, GetRetentionRequest, SetRetentionRequest};
use prost::Message as _;

use super::Kafka;
use super::errors::BACKEND;
use super::names::topic_of;
use crate::call::{Context, Reply};
use crate::error::{Error, Kind};
use crate::interfaces::message::span_ms;
use crate::interfaces::stream::StreamRetention;

const AGE: &str = "retention.ms";
const BYTES: &str = "retention.bytes";
const POLICY: &str = "cleanup.policy";

/// What a topic keeps; `-1` is without a bound, as Kafka writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    age_ms: i64,
    /// Of each partition.
    bytes: i64,
    by_key: bool,
    /// Whether age and bytes count: not where only the newest of each key stays.
    is_bounded: bool,
}

impl Kept {
    fn shown(&self, partitions: u32) -> reply::Retention {
        let bound = |number: i64| (self.is_bounded && number >= 0).then_some(number as u64);
        reply::Retention {
            max_age: bound(self.age_ms).map(|ms| prost_types::Duration {
                seconds: (ms / 1000) as i64,
                nanos: (ms % 1000) as i32 * 1_000_000,
            }),
            max_bytes: bound(self.bytes).map(|bytes| bytes.saturating_mul(partitions.into())),
            max_records: None,
            by_key: self.by_key,
        }
    }
}

impl StreamRetention for Kafka {
    async fn set_retention(
        &self,
        context: &Context<'_>,
        request: SetRetentionRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let asked = request.retention.unwrap_or_default();
        if asked.max_records.is_some() {
            return Err(records_not_offered());
        }
        let (topic, partitions) = self.known_topic(context, request.stream).await?;
        // What the plan keeps is the most that may be kept.
        let planned = self.planned_ms(context);
        let asked_ms = asked.max_age.as_ref().map(|age| span_ms(age).min(i64::MAX as u64) as i64);
        let age_ms = match (asked_ms, planned) {
            (Some(asked), Some(planned)) => asked.min(planned),
            (asked, planned) => asked.or(planned).unwrap_or(-1),
        };
        let bytes = asked
            .max_bytes
            .map_or(-1, |bytes| (bytes / u64::from(partitions)).clamp(1, i64::MAX as u64) as i64);
        let is_bounded = age_ms >= 0 || bytes >= 0;
        let kept = Kept { age_ms, bytes, by_key: asked.by_key, is_bounded };
        let policy = match (asked.by_key, is_bounded) {
            (true, true) => "compact,delete",
            (true, false) => "compact",
            (false, _) => "delete",
        };
        let settings =
            [(AGE, age_ms.to_string()), (BYTES, bytes.to_string()), (POLICY, policy.to_owned())];
        self.link.ask(context, move |cluster| cluster.set(&topic, &settings)).await?;
        let retention = Some(kept.shown(partitions));
        reply::SetRetentionResponse { retention }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_retention(
        &self,
        context: &Context<'_>,
        request: GetRetentionRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let plan = Kept {
            age_ms: self.planned_ms(context).unwrap_or(-1),
            bytes: -1,
            by_key: false,
            is_bounded: true,
        };
        let plan = plan.shown(1);
        let topic = topic_of(context.namespace_name, request.stream);
        let retention = match self.link.partitions(context, &topic, false).await? {
            None => plan,
            Some(partitions) => self.kept(context, &topic).await?.shown(partitions),
        };
        let (retention, plan) = (Some(retention), Some(plan));
        reply::GetRetentionResponse { retention, plan }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn compact(
        &self,
        _: &Context<'_>,
        _: CompactRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        // Kafka cleans in its own time, by the topic's settings; nobody can have it do so now.
        let state = reply::CompactionState::Scheduled.into();
        reply::CompactResponse { state }.encode_raw(&mut reply.head);
        Ok(())
    }
}

impl Kafka {
    fn planned_ms(&self, context: &Context<'_>) -> Option<i64> {
        self.link.shape(context).retention.map(|span| span.as_millis() as i64)
    }

    async fn kept(&self, context: &Context<'_>, topic: &str) -> Result<Kept, Error> {
        let topic = topic.to_owned();
        let settings = self.link.ask(context, move |cluster| cluster.settings(&topic)).await?;
        let number = |name: &str| {
            settings.get(name).and_then(|(value, _)| value.parse::<i64>().ok()).unwrap_or(-1)
        };
        let policy = settings.get(POLICY).map_or("delete", |(value, _)| value);
        Ok(Kept {
            age_ms: number(AGE),
            bytes: number(BYTES),
            by_key: policy.contains("compact"),
            is_bounded: policy.contains("delete"),
        })
    }
}

#[cold]
fn records_not_offered() -> Error {
    let message = "Kafka keeps records by age, bytes and key, not by their number: leave max_records out, or take a namespace on \
                   another backend";
    Error::new(Kind::Unimplemented, "RETENTION_NOT_OFFERED", message).with("backend", BACKEND)
}
