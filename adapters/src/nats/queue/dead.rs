//! Messages that were given up.

use async_nats::Message;
use prism_io::clock::wall_us;
use prism_proto::prism::queue::v1 as reply;
use prost::Message as _;
use serde_json::{Value, json};

use super::super::Nats;
use super::super::errors;
use super::super::jetstream::{ApiFailure, Holds, STREAM_NOT_FOUND, Stored, stored};
use super::super::link::{Answer, Ask};
use super::super::place::Place;
use super::super::scan::{read_token, sign};
use super::leases::Receipt;
use super::message::{Kept, dead_letter, redriven};
use crate::call::Context;
use crate::error::Error;
use crate::interfaces::keyvalue_selection::page_entries;

/// After how many deliveries a message is a dead letter, in the metadata of the queue's stream.
const MAX_DELIVERIES: &str = "prism-max-deliveries";

/// Says to the server that nobody is to have a message any more.
const GIVEN_UP: &str = "+TERM";

/// What binds page tokens to dead letters.
const DEAD_LETTERS: &str = "dead letters";

/// Bytes of an answer that are kept free beside its dead letters, and what one takes beside itself, at most.
const ANSWER_SPARE_BYTES: usize = 256;
const LETTER_SPARE_BYTES: usize = 16;

/// Dead letters that are put back side by side, and bytes of them.
const REDRIVEN_MAX: usize = 64;
const REDRIVEN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What becomes of a queue's messages that are given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    /// They are kept.
    keeps_dead: bool,
    /// After so many deliveries; 0: only those that are rejected.
    max_deliveries: u64,
}

impl Settings {
    fn of(config: &Value) -> Self {
        let max = config["metadata"][MAX_DELIVERIES].as_str();
        let max_deliveries = max.and_then(|max| max.parse().ok()).unwrap_or_default();
        Settings { keeps_dead: max.is_some(), max_deliveries }
    }

    /// Whether a message was delivered often enough.
    pub(super) fn is_over(&self, deliveries: u64) -> bool {
        self.max_deliveries > 0 && deliveries >= self.max_deliveries
    }
}

impl Nats {
    /// The settings of a queue.
    pub(super) async fn settings(
        &self,
        context: &Context<'_>,
        queue: &str,
    ) -> Result<Settings, Error> {
        match self.stream_api(context, "INFO", Holds::Messages(queue), &json!({})).await {
            Ok(info) => Ok(Settings::of(&info["config"])),
            Err(ApiFailure::Api(error)) if error.err_code == STREAM_NOT_FOUND => {
                Ok(Settings::default())
            }
            Err(failure) => Err(failure.error(context)),
        }
    }

    /// Says when messages of a queue become dead letters.
    pub(super) async fn set_max_deliveries(
        &self,
        context: &Context<'_>,
        queue: &str,
        max_deliveries: u32,
    ) -> Result<(), Error> {
        let holds = Holds::Messages(queue);
        // What has ended already, has by the settings of then.
        self.pass_time(context, queue).await?;
        self.ensure_stream(context, holds).await?;
        let set = async {
            let mut config =
                self.stream_api(context, "INFO", holds, &json!({})).await?["config"].take();
            config["metadata"][MAX_DELIVERIES] = max_deliveries.to_string().into();
            self.stream_api(context, "UPDATE", holds, &config).await.map(drop)
        };
        set.await.map_err(|failure: ApiFailure| failure.error(context))
    }

    /// Makes a dead letter of a message, where its queue keeps any, and has nobody get it again. Done twice it leaves one.
    pub(super) async fn give_up(
        &self,
        context: &Context<'_>,
        queue: &str,
        (lane, place, message): (u8, Place, &Message),
        settings: Settings,
        letter: (&str, u64, u64),
    ) -> Result<(), Error> {
        if settings.keeps_dead {
            let dead = dead_letter(context, (queue, place.sequence), message, letter);
            let ask = Ask::One(dead);
            let Answer::One(answer) = self.ask_stream(context, Holds::Dead(queue), &ask).await?
            else {
                return Err(errors::unexpected(context));
            };
            if stored(context, &answer)? == Stored::Unexpected {
                return Err(errors::unexpected(context));
            }
        }
        self.settle(context, queue, std::iter::once((lane, place, GIVEN_UP.into()))).await?;
        self.queues.leases.done((context.namespace, queue), place.sequence);
        Ok(())
    }

    /// Gives up what receipts are of.
    pub(super) async fn reject_all(
        &self,
        context: &Context<'_>,
        queue: &str,
        receipts: &[Receipt],
        reason: &str,
    ) -> Result<(), Error> {
        if receipts.is_empty() {
            return Ok(());
        }
        let settings = self.settings(context, queue).await?;
        for Receipt { lane, place, .. } in receipts {
            let letter = (reason, place.attempt, context.now_us.max(wall_us()));
            // One that has gone was settled with a call before this one.
            if let Some(message) = self.message_at(context, queue, place.sequence).await? {
                let given_up = (*lane, *place, &message);
                self.give_up(context, queue, given_up, settings, letter).await?;
            }
        }
        Ok(())
    }

    /// A page of a queue's dead letters, oldest first.
    pub(super) async fn dead_letters(
        &self,
        context: &Context<'_>,
        queue: &str,
        (page_size, page_token): (u32, &str),
    ) -> Result<reply::ListDeadLettersResponse, Error> {
        let from = read_token(context, (DEAD_LETTERS, queue), page_token)?;
        self.pass_time(context, queue).await?;
        let holds = Holds::Dead(queue);
        let mut answer = reply::ListDeadLettersResponse::default();
        if !self.has_stream(context, holds).await? {
            return Ok(answer);
        }
        let page = page_entries(page_size);
        let room = context.limits.max_message_size.saturating_sub(ANSWER_SPARE_BYTES);
        let request = json!({
            "seq": from.max(1),
            "next_by_subj": holds.subjects(context),
            "batch": page,
            "max_bytes": room / 2,
        });
        let walked = self.read_batch(context, holds, request).await?;
        let (mut bytes, mut next) = (0, None);
        for (sequence, message) in walked.records {
            let letter = Kept::read(message, sequence, None).dead_letter();
            bytes += letter.encoded_len() + LETTER_SPARE_BYTES;
            if bytes > room && !answer.dead_letters.is_empty() {
                next = Some(sequence);
                break;
            }
            answer.dead_letters.push(letter);
            next = (walked.behind > 0).then_some(sequence + 1);
        }
        if let Some(next) = next {
            answer.next_page_token = sign(context, (DEAD_LETTERS, queue), next);
        }
        Ok(answer)
    }

    /// Puts dead letters back into their queue; how many.
    pub(super) async fn redrive_letters(
        &self,
        context: &Context<'_>,
        queue: &str,
        (ids, limit): (&[&str], u64),
    ) -> Result<u64, Error> {
        let holds = Holds::Dead(queue);
        self.pass_time(context, queue).await?;
        if !self.has_stream(context, holds).await? {
            return Ok(0);
        }
        // Those that come meanwhile are for another call.
        let info = self.stream_api(context, "INFO", holds, &json!({})).await;
        let info = info.map_err(|failure| failure.error(context))?;
        let last = info["state"]["last_seq"].as_u64().ok_or_else(|| errors::unexpected(context))?;
        let (mut done, mut from) = (0, 1);
        while done < limit && from <= last {
            let request = json!({
                "seq": from,
                "next_by_subj": holds.subjects(context),
                "batch": REDRIVEN_MAX,
                "max_bytes": REDRIVEN_BYTES_MAX,
            });
            let walked = self.read_batch(context, holds, request).await?;
            let Some((end, _)) = walked.records.last() else { break };
            from = end + 1;
            let is_chosen = |(sequence, message): &(u64, Message)| {
                let kept = || Kept::read(message.clone(), *sequence, None);
                *sequence <= last && (ids.is_empty() || ids.contains(&&*kept().message.id))
            };
            let left = usize::try_from(limit - done).unwrap_or(usize::MAX);
            let chosen: Vec<_> = walked.records.into_iter().filter(is_chosen).take(left).collect();
            done += self.put_back(context, queue, &chosen).await?;
        }
        Ok(done)
    }

    async fn put_back(
        &self,
        context: &Context<'_>,
        queue: &str,
        letters: &[(u64, Message)],
    ) -> Result<u64, Error> {
        let now_us = context.now_us.max(wall_us());
        self.ensure_stream(context, Holds::Messages(queue)).await?;
        let mut messages = Vec::with_capacity(letters.len());
        for (sequence, message) in letters {
            let (lane, message) = redriven(context, queue, (*sequence, message), now_us);
            self.ensure_lanes(context, queue, std::iter::once(lane)).await?;
            messages.push((Some(lane), message));
        }
        let outcomes = self.store_messages(context, queue, messages).await?;
        let mut done = 0;
        for ((sequence, _), outcome) in letters.iter().zip(outcomes) {
            // One that is stored goes, one that was refused stays.
            if outcome.is_err() {
                continue;
            }
            let request = json!({ "seq": sequence, "no_erase": true });
            let deleted =
                self.stream_api(context, "MSG.DELETE", Holds::Dead(queue), &request).await;
            match deleted {
                Ok(_) => done += 1,
                // Somebody has deleted it meanwhile.
                Err(ApiFailure::Api(error)) if error.code == 404 || error.code == 400 => done += 1,
                Err(failure) => return Err(failure.error(context)),
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_from_the_metadata_of_the_stream() {
        let of = |max: &str| Settings::of(&json!({ "metadata": { MAX_DELIVERIES: max } }));
        assert!(!Settings::of(&json!({})).keeps_dead);
        assert!(of("0").keeps_dead && !of("0").is_over(1_000));
        assert!(of("2").is_over(2) && !of("2").is_over(1));
    }
}
