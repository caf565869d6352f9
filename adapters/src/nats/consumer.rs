//! Durable subscriptions, and groups of streams, as durable consumers of the stream that a namespace's events, or the records, lie in.
//!
//! The consumer has the name of the subscription or group, with `=` where that has dots; what a consumer has no place for (the filter, whether
//! the order is kept, how much a member may hold) is in its metadata. Whoever has a client of NATS sees it, and may take from it.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::Nats;
use super::errors;
use super::jetstream::{ApiFailure, Holds, STREAM_NOT_FOUND};
use crate::call::Context;
use crate::error::Error;

/// Errors of the API that decide what to do next.
const CONSUMER_NOT_FOUND: u64 = 10014;
const CONSUMER_EXISTS: [u64; 2] = [10013, 10148];
const JETSTREAM_OFF: [u64; 2] = [10039, 10076];

/// The metadata of a consumer.
const FILTER: &str = "prism-filter";
const ORDERED: &str = "prism-ordered";
const IN_FLIGHT: &str = "prism-max-in-flight";

/// Whose consumer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Of<'a> {
    /// What it hands out.
    pub(super) holds: Holds<'a>,
    /// The name of the subscription or group.
    pub(super) id: &'a str,
}

impl<'a> Of<'a> {
    /// That of a durable subscription.
    pub(super) fn subscription(id: &'a str) -> Self {
        Of { holds: Holds::Events, id }
    }

    /// That of a group of a stream.
    pub(super) fn group(stream: &'a str, group: &'a str) -> Self {
        Of { holds: Holds::Records(stream), id: group }
    }

    /// What tells it from others of its namespace. No name has a `/`.
    pub(super) fn key(&self) -> Cow<'a, str> {
        match self.holds {
            Holds::Records(stream) => format!("{stream}/{}", self.id).into(),
            _ => self.id.into(),
        }
    }

    /// The stream of a group; no name where it is of no group.
    pub(super) fn stream(&self) -> &'a str {
        match self.holds {
            Holds::Records(stream) => stream,
            _ => "",
        }
    }

    /// The source that tells of it; no topic or stream has such a name.
    pub(super) fn source_name(&self) -> String {
        format!("/{}", self.key())
    }

    /// Its name. No name of a subscription or group has a `=`, and none of a consumer a dot.
    pub(super) fn name(&self) -> String {
        self.id.replace('.', "=")
    }
}

/// A consumer as it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Consumer {
    /// What no other of its name has: when it was made.
    pub(super) incarnation: u128,
    /// The subject of the topic that it hears.
    pub(super) subject: String,
    /// In the form of a request; empty: everything.
    pub(super) filter: String,
    pub(super) is_ordered: bool,
    /// What a member of the group may hold; nothing for a subscription.
    pub(super) in_flight: Option<u32>,
    /// How long an event may go without its acknowledgement, µs.
    pub(super) ack_wait_us: u64,
    /// The number in the stream up to which it has handed out.
    pub(super) delivered: u64,
    /// The number in the stream up to which everything was acknowledged.
    pub(super) acknowledged: u64,
    /// How many it has to hand out, or to hear of.
    pub(super) left: u64,
}

/// Where a new consumer begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// With what is published from now on.
    New,
    /// With the first that is there.
    First,
    /// With the one of this number.
    At(u64),
    /// With what was stored at this moment, in the form of RFC 3339.
    Since(String),
}

impl Consumer {
    fn of(answer: &Value) -> Option<Self> {
        let config = &answer["config"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Some(Consumer {
            incarnation: incarnation(answer)?,
            subject: text(&config["filter_subject"]),
            filter: text(&config["metadata"][FILTER]),
            is_ordered: config["metadata"][ORDERED] == "true",
            in_flight: config["metadata"][IN_FLIGHT].as_str().and_then(|most| most.parse().ok()),
            ack_wait_us: config["ack_wait"].as_u64()? / 1000,
            delivered: answer["delivered"]["stream_seq"].as_u64()?,
            acknowledged: answer["ack_floor"]["stream_seq"].as_u64().unwrap_or_default(),
            left: ["num_pending", "num_ack_pending"]
                .map(|name| answer[name].as_u64().unwrap_or_default())
                .iter()
                .sum(),
        })
    }

    /// Whether it is a subscription that hears the same.
    pub(super) fn is_same(&self, other: &Consumer) -> bool {
        (&self.subject, &self.filter, self.is_ordered)
            == (&other.subject, &other.filter, other.is_ordered)
    }

    /// As it is to be made.
    pub(super) fn config(&self, name: &str, begin: &Begin) -> Value {
        let mut config = json!({
            "name": name,
            "durable_name": name,
            "filter_subject": self.subject,
            "ack_policy": "explicit",
            "ack_wait": self.ack_wait_us.saturating_mul(1000),
            "max_deliver": -1,
            "max_ack_pending": if self.is_ordered { 1 } else { -1 },
            "replay_policy": "instant",
            "metadata": { FILTER: self.filter, ORDERED: self.is_ordered.to_string() },
        });
        if let Some(in_flight) = self.in_flight {
            config["metadata"] = json!({ IN_FLIGHT: in_flight.to_string() });
        }
        let policy = match begin {
            Begin::New => "new",
            Begin::First => "all",
            Begin::At(sequence) => {
                config["opt_start_seq"] = (*sequence).into();
                "by_start_sequence"
            }
            Begin::Since(moment) => {
                config["opt_start_time"] = moment.as_str().into();
                "by_start_time"
            }
        };
        config["deliver_policy"] = policy.into();
        config
    }
}

impl Nats {
    /// A consumer, if it is there.
    pub(super) async fn consumer(
        &self,
        context: &Context<'_>,
        of: Of<'_>,
    ) -> Result<Option<Consumer>, Error> {
        match self.consumer_api(context, of.holds, "INFO", &of.name(), &json!({})).await {
            Ok(answer) => {
                let consumer = Consumer::of(&answer);
                consumer.map(Some).ok_or_else(|| errors::unexpected(context))
            }
            Err(failure) if is_missing(&failure) => Ok(None),
            Err(failure) => Err(failure.error(context)),
        }
    }

    /// Makes a consumer; nothing if there is one meanwhile.
    pub(super) async fn make_consumer(
        &self,
        context: &Context<'_>,
        of: Of<'_>,
        config: &Value,
    ) -> Result<Option<Consumer>, Error> {
        let request = json!({
            "stream_name": of.holds.stream(context),
            "config": config,
            "action": "create",
        });
        match self.consumer_api(context, of.holds, "CREATE", &of.name(), &request).await {
            Ok(answer) => {
                let consumer = Consumer::of(&answer);
                consumer.map(Some).ok_or_else(|| errors::unexpected(context))
            }
            Err(ApiFailure::Api(error)) if CONSUMER_EXISTS.contains(&error.err_code) => Ok(None),
            Err(failure) => Err(failure.error(context)),
        }
    }

    /// Has a consumer wait so long for acknowledgements from now on.
    pub(super) async fn set_ack_wait(
        &self,
        context: &Context<'_>,
        of: Of<'_>,
        ack_wait_us: u64,
    ) -> Result<(), Error> {
        let (holds, name) = (of.holds, of.name());
        let set = async {
            let mut info = self.consumer_api(context, holds, "INFO", &name, &json!({})).await?;
            let mut config = info["config"].take();
            config["ack_wait"] = ack_wait_us.saturating_mul(1000).into();
            let request = json!({
                "stream_name": holds.stream(context),
                "config": config,
                "action": "update",
            });
            self.consumer_api(context, holds, "CREATE", &name, &request).await.map(drop)
        };
        set.await.map_err(|failure: ApiFailure| failure.error(context))
    }

    /// Deletes a consumer; whether there was one.
    pub(super) async fn delete_consumer(
        &self,
        context: &Context<'_>,
        of: Of<'_>,
    ) -> Result<bool, Error> {
        match self.consumer_api(context, of.holds, "DELETE", &of.name(), &json!({})).await {
            Ok(_) => Ok(true),
            // Where there is no JetStream there are no consumers.
            Err(ApiFailure::NoJetStream) => Ok(false),
            Err(ApiFailure::Api(error)) if JETSTREAM_OFF.contains(&error.err_code) => Ok(false),
            Err(failure) if is_missing(&failure) => Ok(false),
            Err(failure) => Err(failure.error(context)),
        }
    }

    /// Asks the API for something about a consumer of a stream of the namespace.
    pub(super) async fn consumer_api(
        &self,
        context: &Context<'_>,
        holds: Holds<'_>,
        verb: &str,
        consumer: &str,
        request: &Value,
    ) -> Result<Value, ApiFailure> {
        let subject = format!("$JS.API.CONSUMER.{verb}.{}.{consumer}", holds.stream(context));
        self.api(context, subject, request).await
    }
}

/// The subject that a consumer of a stream is asked for messages on.
pub(super) fn next_subject(stream: &str, consumer: &str) -> String {
    format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}")
}

/// Which consumer of its name it is, by what the server says of it: when it was made.
pub(super) fn incarnation(answer: &Value) -> Option<u128> {
    let digits = answer["created"].as_str()?.bytes().filter(u8::is_ascii_digit).take(38);
    Some(digits.fold(0, |all, digit| all * 10 + u128::from(digit - b'0')))
}

/// Whether there is no such consumer, or no stream that it could be of.
pub(super) fn is_missing(failure: &ApiFailure) -> bool {
    let missing = [CONSUMER_NOT_FOUND, STREAM_NOT_FOUND];
    matches!(failure, ApiFailure::Api(error) if missing.contains(&error.err_code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_is_known_again_by_what_the_server_says_of_it() {
        let answer = json!({
            "created": "2026-11-27T01:55:26.1234567Z",
            "config": {
                "filter_subject": "orders.eu.new",
                "ack_wait": 30_000_000_000_u64,
                "metadata": { FILTER: "a = 1", ORDERED: "true" },
            },
            "delivered": { "consumer_seq": 3, "stream_seq": 9 },
        });
        let consumer = Consumer::of(&answer).unwrap();
        assert_eq!(consumer.incarnation, 202_611_270_155_261_234_567);
        assert_eq!((consumer.delivered, consumer.ack_wait_us), (9, 30_000_000));
        let again = json!({
            "created": "now",
            "config": consumer.config("a=b", &Begin::At(7)),
            "delivered": { "stream_seq": 0 },
        });
        assert_eq!(again["config"]["opt_start_seq"], 7);
        assert!(Consumer::of(&again).unwrap().is_same(&consumer));
        for bad in [json!({}), json!({ "created": 7 }), json!({ "created": "x", "config": {} })] {
            assert_eq!(Consumer::of(&bad), None);
        }
    }

    #[test]
    fn subscriptions_have_consumers_of_different_names() {
        assert_eq!(Of::subscription("eu.billing_2-a").name(), "eu=billing_2-a");
        let (one, other) = (Of::group("a", "b"), Of::group("a", "c"));
        assert_ne!(one.source_name(), other.source_name());
    }
}
