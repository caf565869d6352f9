//! What becomes of deliveries: dealt with, kept for longer, given back.

use async_nats::{Message, StatusCode};
use bytes::Bytes;
use futures_util::future::join_all;
use prism_io::clock::wall_us;
use serde_json::json;

use super::super::Nats;
use super::super::errors;
use super::super::jetstream::{Holds, NOT_FOUND, TTL, status};
use super::super::link::{Answer, Ask, Outgoing};
use super::super::place::{GIVEN_BACK, Place};
use super::super::subject;
use super::leases::{Lease, Receipt, Standing};
use super::message::consumer_name;
use crate::call::Context;
use crate::error::Error;

/// How long a mark outlives the delivery that it is about, in seconds.
const MARK_SECONDS: u64 = 60;

/// Receipts that are looked up side by side: with each comes its message.
const LOOKUPS_MAX: usize = 16;

/// What is said of a delivery that is not receipts' own to say: how often its message had been delivered, and until when it is its
/// receiver's, µs since the epoch; 0: not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    attempt: u64,
    until_us: u64,
}

impl Mark {
    fn read(payload: &[u8]) -> Option<Self> {
        let (attempt, until_us) = std::str::from_utf8(payload).ok()?.split_once(' ')?;
        Some(Mark { attempt: attempt.parse().ok()?, until_us: until_us.parse().ok()? })
    }
}

/// What has a message come again after so long.
pub(super) fn later(delay_us: u64) -> Bytes {
    match delay_us {
        0 => GIVEN_BACK.into(),
        us => format!("{GIVEN_BACK} {{\"delay\": {}}}", us.saturating_mul(1000)).into(),
    }
}

impl Nats {
    /// What the receipts are of, in their order; nothing for those that are good no more.
    pub(super) async fn check_receipts(
        &self,
        context: &Context<'_>,
        queue: &str,
        receipts: &[&str],
    ) -> Result<Vec<Option<Receipt>>, Error> {
        let key = (context.namespace, queue);
        let mut checked = Vec::with_capacity(receipts.len());
        let mut unknown = Vec::new();
        for text in receipts {
            let receipt = match Receipt::lane_of(text) {
                Some(lane) => self.lane(context, queue, lane).await?,
                None => None,
            };
            let receipt = receipt.and_then(|incarnation| Receipt::read(text, incarnation));
            let standing = |receipt: &Receipt| {
                self.queues.leases.standing(key, receipt, context.now_us.max(wall_us()))
            };
            match receipt.as_ref().map(standing) {
                Some(Standing::Good) => {}
                Some(Standing::Unknown) => unknown.push(checked.len()),
                Some(Standing::Over) | None => {
                    checked.push(None);
                    continue;
                }
            }
            checked.push(receipt);
        }
        for places in unknown.chunks(LOOKUPS_MAX) {
            let receipts: Vec<Receipt> =
                places.iter().filter_map(|place| checked[*place]).collect();
            for (place, is_good) in
                places.iter().zip(self.look_up(context, queue, &receipts).await?)
            {
                checked[*place] = checked[*place].filter(|_| is_good);
            }
        }
        Ok(checked)
    }

    /// Which receipts that are good no more are of messages that are gone, where the call has a record that may have been carried out
    /// before: then it was this record that has dealt with them.
    pub(super) async fn settled_before(
        &self,
        context: &Context<'_>,
        queue: &str,
        receipts: &[&str],
        checked: &[Option<Receipt>],
    ) -> Result<Vec<bool>, Error> {
        let mut settled = vec![false; receipts.len()];
        if !self.may_be_second(context) {
            return Ok(settled);
        }
        for (index, text) in receipts.iter().enumerate() {
            let Some(lane) = Receipt::lane_of(text).filter(|_| checked[index].is_none()) else {
                continue;
            };
            let incarnation = self.lane(context, queue, lane).await?;
            let receipt = incarnation.and_then(|incarnation| Receipt::read(text, incarnation));
            if let Some(Receipt { place, .. }) = receipt {
                let message = self.message_at(context, queue, place.sequence).await?;
                settled[index] = message.is_none();
            }
        }
        Ok(settled)
    }

    /// Whether receipts that nothing is known of are good.
    async fn look_up(
        &self,
        context: &Context<'_>,
        queue: &str,
        receipts: &[Receipt],
    ) -> Result<Vec<bool>, Error> {
        let now_us = context.now_us.max(wall_us());
        let marks = join_all(receipts.iter().map(|receipt| async {
            let subject = mark_subject(context, queue, receipt.place.sequence);
            self.last(context, &subject).await
        }));
        let mut stand = Vec::with_capacity(receipts.len());
        for (receipt, mark) in receipts.iter().zip(marks.await) {
            let mark = mark?.and_then(|record| record.value).and_then(|text| Mark::read(&text));
            let until_us = match mark {
                Some(mark) if mark.attempt > receipt.place.attempt => 0,
                Some(mark) if mark.attempt == receipt.place.attempt => mark.until_us,
                _ => receipt.until_us,
            };
            stand.push(now_us < until_us);
        }
        let messages = join_all(receipts.iter().map(|receipt| async {
            self.message_at(context, queue, receipt.place.sequence).await
        }));
        let there = messages.await.into_iter().zip(stand);
        there.map(|(message, stands)| Ok(message?.is_some() && stands)).collect()
    }

    /// The message of a queue that has this number, if it is there.
    pub(super) async fn message_at(
        &self,
        context: &Context<'_>,
        queue: &str,
        sequence: u64,
    ) -> Result<Option<Message>, Error> {
        let (holds, request) = (Holds::Messages(queue), json!({ "seq": sequence }));
        self.ensure_stream(context, holds).await?;
        if self.streams.is_replicated(context, holds) {
            return self.ask_leader_for(context, holds, request).await;
        }
        let api = format!("$JS.API.DIRECT.GET.{}", holds.stream(context));
        let message = Outgoing::plain(api, request.to_string().into());
        let message = self.link.one(context, message).await?;
        match status(&message) {
            0 => Ok(Some(message)),
            NOT_FOUND => Ok(None),
            _ if message.status == Some(StatusCode::NO_RESPONDERS) => Ok(None),
            _ => Err(errors::unexpected(context)),
        }
    }

    /// Tells the server what has become of deliveries, and waits until it knows.
    pub(super) async fn settle(
        &self,
        context: &Context<'_>,
        queue: &str,
        deliveries: impl Iterator<Item = (u8, Place, Bytes)>,
    ) -> Result<(), Error> {
        let stream = Holds::Messages(queue).stream(context);
        let message = |(lane, place, how): (u8, Place, Bytes)| {
            place.settled(&stream, &consumer_name(lane), how)
        };
        let messages: Vec<Outgoing> = deliveries.map(message).collect();
        if messages.is_empty() {
            return Ok(());
        }
        let Answer::Several(answers) = self.link.call(context, &Ask::Each(messages)).await? else {
            return Err(errors::unexpected(context));
        };
        if answers.iter().any(|answer| answer.status == Some(StatusCode::NO_RESPONDERS)) {
            // Somebody has deleted it, or JetStream is away.
            self.queues.leases.forget((context.namespace, queue));
            return Err(errors::no_jetstream(context));
        }
        Ok(())
    }

    /// Has a delivery end at another time; `is_released`: its receiver has given it back, and its message comes again then.
    pub(super) async fn change_lease(
        &self,
        context: &Context<'_>,
        queue: &str,
        receipt: &Receipt,
        (until_us, is_released): (u64, bool),
    ) -> Result<(), Error> {
        let Receipt { lane, place, .. } = *receipt;
        let mark =
            Mark { attempt: place.attempt, until_us: if is_released { 0 } else { until_us } };
        if is_released {
            // A receipt that is good no more is never good again, whatever happens in between.
            self.put_mark(context, queue, receipt, mark).await?;
        }
        let delay_us = until_us.saturating_sub(context.now_us.max(wall_us()));
        // Only a delay is written down there, so that the message comes again also after a restart of the server; what has none
        // comes again at once.
        let mut hows = vec![(lane, place, later(delay_us.max(1)))];
        if delay_us == 0 {
            hows.push((lane, place, later(0)));
        }
        self.settle(context, queue, hows.into_iter()).await?;
        if !is_released {
            self.put_mark(context, queue, receipt, mark).await?;
        }
        let lease = Lease { lane, place, until_us, is_released };
        self.queues.leases.note((context.namespace, queue), lease);
        Ok(())
    }

    async fn put_mark(
        &self,
        context: &Context<'_>,
        queue: &str,
        receipt: &Receipt,
        mark: Mark,
    ) -> Result<(), Error> {
        let end_us = mark.until_us.max(receipt.until_us);
        let left_us = end_us.saturating_sub(context.now_us.max(wall_us()));
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(TTL, (left_us / 1_000_000 + MARK_SECONDS).to_string());
        let subject = mark_subject(context, queue, receipt.place.sequence);
        let text = format!("{} {}", mark.attempt, mark.until_us);
        let message = Outgoing { headers: Some(headers), ..Outgoing::plain(subject, text.into()) };
        self.keep_beside(context, message).await
    }
}

/// The subject of a mark: no key has such a one.
fn mark_subject(context: &Context<'_>, queue: &str, sequence: u64) -> String {
    let mut subject = String::new();
    subject::put_bucket(&mut subject, context.namespace_name);
    subject.push_str("=lease.");
    subject.push_str(queue);
    subject.push_str(&format!(".{sequence}"));
    subject
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        assert_eq!(Mark::read(b"2 17"), Some(Mark { attempt: 2, until_us: 17 }));
        for bad in ["", "2", "2 x", "-1 4"] {
            assert_eq!(Mark::read(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(&later(0)[..], b"-NAK");
        assert_eq!(&later(5)[..], b"-NAK {\"delay\": 5000}");
    }
}
