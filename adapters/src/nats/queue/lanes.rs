//! The lanes of a queue: a consumer each, which hands out its messages.
//!
//! Messages without an ordering key have one that hands out as many as are asked for. Those with a key have one of sixty-four, by the hash of the
//! key, that hands out the next message when the one before was dealt with (`max_ack_pending` 1): so the server itself keeps the order
//! of a key, whoever receives, and whoever dies. The keys of a lane wait for one another.

use std::time::Duration;

use async_nats::{Message, StatusCode};
use prism_io::clock::wall_us;
use serde_json::{Value, json};

use super::super::Nats;
use super::super::consumer::{incarnation, is_missing, next_subject};
use super::super::errors;
use super::super::holds::Holds;
use super::super::jetstream::{ApiFailure, STREAM_NOT_FOUND, status};
use super::super::link::{Answer, Ask, Outgoing};
use super::super::place::Place;
use super::leases::Known;
use super::message::{UNORDERED, consumer_name, lane_named, subject_of};
use crate::call::Context;
use crate::error::Error;
use crate::limits::LEASE_DEFAULT_MS;

/// How long it is taken for granted that a queue has no other lanes than those known.
const LOOK_EVERY_US: u64 = 500_000;

/// How long the server looks for a message that has to be there: it hears of what was stored some time after who has stored it.
const SURE_WAIT: Duration = Duration::from_secs(1);

/// How long it looks in a lane whose message somebody else may have.
const UNSURE_WAIT: Duration = Duration::from_millis(50);

/// The code of the answer to a request that the next message is too long for.
const CONFLICT: u16 = 409;

/// A lane that may have messages, and how long to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) lane: u8,
    pub(super) wait: Duration,
    /// How many messages there are for sure.
    pub(super) there: usize,
    /// How many somebody has of whom this shard knows nothing.
    pub(super) elsewhere: usize,
}

/// What a look into a lane has brought.
#[derive(Debug, Default)]
pub(super) struct Pulled {
    pub(super) messages: Vec<(Place, Message)>,
    /// The next message is longer than was asked for.
    pub(super) is_too_long: bool,
    /// There is no such consumer.
    pub(super) is_unheard: bool,
}

/// What the server says of a lane's consumer.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    pending: u64,
    unacknowledged: u64,
}

impl Known {
    fn line(&self, lane: u8, told: Told, now_us: u64) -> Option<Line> {
        let Told { pending, unacknowledged } = told;
        let mine = self.lanes.get(&lane).copied().unwrap_or_default();
        let is_sure = mine.sent > mine.taken;
        let away = self.away(lane, now_us);
        let elsewhere = unacknowledged.saturating_sub(away) as usize;
        let there = pending.max(u64::from(is_sure)) as usize;
        if lane == UNORDERED {
            let wait = if is_sure { SURE_WAIT } else { Duration::ZERO };
            return Some(Line { lane, wait, there, elsewhere });
        }
        let wait = match (away, elsewhere, there) {
            (0, 0, 1..) => SURE_WAIT,
            // Its lease may be over, and the message comes again.
            (0, 1.., _) => UNSURE_WAIT,
            _ => return None,
        };
        Some(Line { lane, wait, there: there.min(usize::from(elsewhere == 0)), elsewhere })
    }
}

impl Nats {
    /// Makes the consumers of these lanes, as far as they are not known to be there; `false`: there is no such queue.
    pub(super) async fn ensure_lanes(
        &self,
        context: &Context<'_>,
        queue: &str,
        lanes: impl Iterator<Item = u8>,
    ) -> Result<bool, Error> {
        let holds = Holds::Messages(queue);
        for lane in lanes {
            if self.known_lane(context, queue, lane).is_some() {
                continue;
            }
            let name = consumer_name(lane);
            let request = json!({
                "stream_name": holds.stream(context),
                "config": {
                    "name": name,
                    "durable_name": name,
                    "filter_subject": subject_of(context, queue, lane),
                    "deliver_policy": "all",
                    "ack_policy": "explicit",
                    "ack_wait": LEASE_DEFAULT_MS * 1_000_000,
                    "max_deliver": -1,
                    "max_ack_pending": if lane == UNORDERED { -1 } else { 1 },
                    "replay_policy": "instant",
                },
            });
            match self.consumer_api(context, holds, "CREATE", &name, &request).await {
                Ok(answer) => self.note_lane(context, queue, lane, &answer)?,
                Err(failure) if is_missing(&failure) => return Ok(false),
                Err(failure) => return Err(failure.error(context)),
            }
        }
        Ok(true)
    }

    fn known_lane(&self, context: &Context<'_>, queue: &str, lane: u8) -> Option<u128> {
        let queue = (context.namespace, queue);
        self.queues.leases.with(queue, |known| Some(known.lanes.get(&lane)?.incarnation))
    }

    fn note_lane(
        &self,
        context: &Context<'_>,
        queue: &str,
        lane: u8,
        answer: &Value,
    ) -> Result<(), Error> {
        let incarnation = incarnation(answer).ok_or_else(|| errors::unexpected(context))?;
        let queue = (context.namespace, queue);
        let is_other = self.queues.leases.with(queue, |known| {
            known.lanes.get(&lane).is_some_and(|lane| lane.incarnation != incarnation)
        });
        if is_other {
            // Somebody has made it anew, and what was known was of another.
            self.queues.leases.forget(queue);
        }
        self.queues.leases.with(queue, |known| {
            known.lanes.entry(lane).or_default().incarnation = incarnation;
        });
        Ok(())
    }

    /// Which consumer hands a lane out; nothing where there is none.
    pub(super) async fn lane(
        &self,
        context: &Context<'_>,
        queue: &str,
        lane: u8,
    ) -> Result<Option<u128>, Error> {
        if let Some(known) = self.known_lane(context, queue, lane) {
            return Ok(Some(known));
        }
        let (holds, name) = (Holds::Messages(queue), consumer_name(lane));
        match self.consumer_api(context, holds, "INFO", &name, &json!({})).await {
            Ok(answer) => {
                self.note_lane(context, queue, lane, &answer)?;
                Ok(self.known_lane(context, queue, lane))
            }
            Err(failure) if is_missing(&failure) => Ok(None),
            Err(failure) => Err(failure.error(context)),
        }
    }

    /// The lanes that may have messages, that without keys always; nothing where there is no such queue. With `is_exact` the server
    /// is asked in any case.
    pub(super) async fn lines(
        &self,
        context: &Context<'_>,
        queue: &str,
        is_exact: bool,
    ) -> Result<Option<Vec<Line>>, Error> {
        if !self.ensure_lanes(context, queue, std::iter::once(UNORDERED)).await? {
            self.queues.leases.forget((context.namespace, queue));
            return Ok(None);
        }
        let now_us = wall_us();
        let key = (context.namespace, queue);
        let is_plain = self.queues.leases.with(key, |known| {
            known.lanes.len() == 1 && now_us.saturating_sub(known.looked_us) < LOOK_EVERY_US
        });
        if is_plain && !is_exact {
            let line = |known: &mut Known| known.line(UNORDERED, Told::default(), now_us);
            return Ok(Some(self.queues.leases.with(key, line).into_iter().collect()));
        }
        let subject = format!("$JS.API.CONSUMER.LIST.{}", Holds::Messages(queue).stream(context));
        let listed = match self.api(context, subject, &json!({ "offset": 0 })).await {
            Ok(mut answer) => answer["consumers"].take(),
            Err(ApiFailure::Api(error)) if error.err_code == STREAM_NOT_FOUND => {
                self.queues.leases.forget(key);
                return Ok(None);
            }
            Err(failure) => return Err(failure.error(context)),
        };
        let mut told = Vec::new();
        for consumer in listed.as_array().into_iter().flatten() {
            let Some(lane) = consumer["name"].as_str().and_then(lane_named) else { continue };
            self.note_lane(context, queue, lane, consumer)?;
            let number = |name: &str| consumer[name].as_u64().unwrap_or_default();
            let (pending, unacknowledged) = (number("num_pending"), number("num_ack_pending"));
            told.push((lane, Told { pending, unacknowledged }));
        }
        told.sort_unstable_by_key(|(lane, _)| *lane);
        let lines = self.queues.leases.with(key, |known| {
            known.looked_us = now_us;
            told.into_iter().filter_map(|(lane, told)| known.line(lane, told, now_us)).collect()
        });
        Ok(Some(lines))
    }

    /// Looks into a lane for messages, and takes them.
    pub(super) async fn pull(
        &self,
        context: &Context<'_>,
        queue: &str,
        line: &Line,
        (count, bytes_max): (usize, Option<usize>),
    ) -> Result<Pulled, Error> {
        let stream = Holds::Messages(queue).stream(context);
        let mut request = json!({ "batch": count, "no_wait": true });
        if !line.wait.is_zero() {
            let wait = line.wait.min(self.link.answer_timeout() / 2);
            request["expires"] = (wait.as_nanos() as u64).into();
        }
        if let Some(bytes_max) = bytes_max {
            request["max_bytes"] = bytes_max.into();
        }
        let subject = next_subject(&stream, &consumer_name(line.lane));
        let message = Outgoing::plain(subject, request.to_string().into());
        let Answer::Several(messages) = self.link.call(context, &Ask::pull(message, count)).await?
        else {
            return Err(errors::unexpected(context));
        };
        let mut pulled = Pulled::default();
        for message in messages {
            if message.status == Some(StatusCode::NO_RESPONDERS) {
                pulled.is_unheard = true;
            } else if message.status.is_some() {
                let says = message.description.as_deref().unwrap_or_default();
                pulled.is_unheard |= says.contains("Deleted");
                pulled.is_too_long |= status(&message) == CONFLICT && says.contains("MaxBytes");
            } else if let Some(place) = message.reply.as_deref().and_then(Place::of) {
                pulled.messages.push((place, message));
            }
        }
        self.queues.leases.with((context.namespace, queue), |known| {
            let Some(lane) = known.lanes.get_mut(&line.lane) else { return };
            let last = pulled.messages.iter().map(|(place, _)| place.sequence).max();
            lane.taken = lane.taken.max(last.unwrap_or_default());
            if pulled.messages.is_empty() && !pulled.is_too_long {
                // Whatever was sent, somebody else has had it.
                lane.taken = lane.taken.max(lane.sent);
            }
        });
        Ok(pulled)
    }
}

#[cfg(test)]
mod tests {
    use super::super::leases::Lane;
    use super::*;

    #[test]
    fn a_lane_with_a_message_in_flight_is_left_alone() {
        let mut known = Known::default();
        let told = |pending, unacknowledged| Told { pending, unacknowledged };
        let line = |known: &Known, lane, told| known.line(lane, told, 10);
        assert_eq!(line(&known, 3, told(0, 0)), None);
        assert_eq!(line(&known, 3, told(2, 0)).unwrap().wait, SURE_WAIT);
        assert_eq!(line(&known, 3, told(2, 1)).unwrap().wait, UNSURE_WAIT);
        assert_eq!(line(&known, UNORDERED, told(0, 0)).unwrap().wait, Duration::ZERO);
        known.lanes.insert(3, Lane { incarnation: 1, sent: 9, taken: 7 });
        assert_eq!(line(&known, 3, told(0, 0)).unwrap().there, 1, "it was sent from here");
    }
}
