//! Events that last: published to JetStream and acknowledged by it, and handed to durable subscriptions until they are acknowledged.

use std::rc::Rc;
use std::time::Duration;

use async_nats::StatusCode;
use prism_proto::prism::pubsub::v1 as reply;
use prism_proto::prism::r#type::v1::{Delivery as Delivered, Position};
use prism_proto::view::pubsub::{
    AcknowledgeRequest, GetLastMessageIdRequest, PublishPersistentRequest, SubscribeDurableRequest,
};
use prism_proto::view::types::StartStart;
use prost::Message as _;
use serde_json::json;

use super::Nats;
use super::consumer::{Begin, Consumer, Of};
use super::delivery::{Attached, Delivery, Pulled, Stream, Subscription};
use super::errors;
use super::event::{event, subject};
use super::jetstream::{Holds, SEQUENCE, number};
use super::link::{Answer, Ask, Outgoing};
use super::place::{ACKNOWLEDGED, Place};
use crate::call::{Context, NO_END, PageSink, Reply};
use crate::error::{Error, Kind};
use crate::filter::Filter;
use crate::interfaces::message::{item_status, moment_us, span_ms, time};
use crate::interfaces::pubsub::PubSubPersistent;
use crate::limits::{IN_FLIGHT_DEFAULT, IN_FLIGHT_MAX, LEASE_DEFAULT_MS};
use crate::memory::pubsub::{Event, mismatch, not_found, receipt_expired, response};

/// How long a stream waits before it looks for what was published another way, or comes again.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Streams of durable subscriptions on a shard, at most: each may have a call under way.
const STREAMS_MAX: usize = 4096;

/// How often a subscription is looked for that others make and delete meanwhile.
const ATTEMPTS_MAX: usize = 8;

/// The place of an event: its number in the stream.
pub(super) fn position(sequence: u64) -> Position {
    Position { partition: 0, offset: sequence.to_string() }
}

/// The event of a stored message; it has an identity, also where somebody else has published it without one.
fn stored_event(
    namespace: &str,
    message: async_nats::Message,
    sequence: u64,
    stored_us: u64,
) -> Option<Event> {
    let mut event = event(namespace, message, stored_us)?;
    if event.message.id.is_empty() {
        event.message.id = sequence.to_string();
    }
    Some(event)
}

impl PubSubPersistent for Nats {
    async fn publish_persistent(
        &self,
        context: &Context<'_>,
        request: PublishPersistentRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let message = request.message.unwrap_or_default();
        let published = self.publish_stored(context, request.topic, &[message]).await?;
        let first =
            published.into_iter().next().unwrap_or_else(|| Err(errors::unexpected(context)));
        let (message_id, position) = first?;
        reply::PublishPersistentResponse { message_id, position }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn acknowledge(
        &self,
        context: &Context<'_>,
        request: AcknowledgeRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let of = Of::subscription(request.subscription_id);
        let receipts: Vec<&str> = request.receipts.iter().collect();
        let subscription = self.subscription_of(context, of, request.topic).await?;
        let good = self.acknowledge_receipts(context, of, &subscription, &receipts).await?;
        let good = good.ok_or_else(|| not_found(of.id))?;
        let expired = item_status(&receipt_expired());
        let result = |is_good: &bool| reply::AcknowledgeResult {
            status: (!is_good).then(|| expired.clone()),
        };
        let results = good.iter().map(result).collect();
        reply::AcknowledgeResponse { results }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_last_message_id(
        &self,
        context: &Context<'_>,
        request: GetLastMessageIdRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let subject = subject(context.namespace_name, request.topic);
        let last = self.last_message(context, Holds::Events, &subject).await?;
        let mut answer = reply::GetLastMessageIdResponse { message_id: None, position: None };
        if let Some(mut message) = last {
            let sequence = number(&message, SEQUENCE).ok_or_else(|| errors::unexpected(context))?;
            message.subject = subject.into();
            let event = stored_event(context.namespace_name, message, sequence, context.now_us);
            answer.message_id = event.map(|event| event.message.id);
            answer.position = Some(position(sequence));
        }
        answer.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn subscribe_durable<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: SubscribeDurableRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let filter = Filter::parse(request.filter)
            .map_err(|what| Error::field("FILTER_INVALID", "filter", what))?;
        if self.deliveries.attached() >= STREAMS_MAX {
            return Err(errors::busy(context, STREAMS_MAX));
        }
        let (subscription, next) = self.join_subscription(context, &request).await?;
        let (namespace, id) = (context.namespace, request.subscription_id);
        let of = Of::subscription(id);
        let mut events = self.deliveries.sources.attend(namespace, request.topic);
        let changes_name = of.source_name();
        let mut changes = self.deliveries.sources.attend(namespace, &changes_name);
        let in_flight = match request.max_in_flight {
            0 => IN_FLIGHT_DEFAULT,
            asked => asked.min(IN_FLIGHT_MAX),
        };
        let with = (&self.link, &self.deliveries);
        let Attached(stream) = &Stream::attach(context, with, of, subscription, in_flight as usize);
        let started =
            reply::Started { subscription_id: id.to_owned(), position: Some(position(next)) };
        sink.send(response(reply::subscribe_response::Event::Started(started))).await?;
        loop {
            self.hand_on(context, stream, &filter, sink).await?;
            if stream.subscription.is_gone.get() {
                return Ok(());
            }
            let room = stream.room(sink.now_us());
            if room > 0 && self.take(context, of, stream, room, sink).await? {
                continue;
            }
            let look_us = sink.now_us().saturating_add(LOOK_EVERY.as_micros() as u64);
            sink.wait(events.told().or(changes.told()), look_us).await?;
        }
    }
}

/// The places that receipts of this subscription stand for.
fn places(subscription: &Subscription, receipts: &[&str]) -> Vec<Option<Place>> {
    let incarnation = subscription.consumer.incarnation;
    receipts.iter().map(|receipt| Place::of_receipt(receipt, incarnation)).collect()
}

impl Nats {
    /// A durable subscription of a topic that has to be there.
    async fn subscription_of(
        &self,
        context: &Context<'_>,
        of: Of<'_>,
        topic: &str,
    ) -> Result<Rc<Subscription>, Error> {
        let known = self.known_consumer(context, of).await?.ok_or_else(|| not_found(of.id))?;
        match known.consumer.subject == subject(context.namespace_name, topic) {
            true => Ok(known),
            false => Err(mismatch(of.id)),
        }
    }

    /// What this shard knows of a consumer, looked for where it knows nothing; nothing where there is none.
    pub(super) async fn known_consumer(
        &self,
        context: &Context<'_>,
        of: Of<'_>,
    ) -> Result<Option<Rc<Subscription>>, Error> {
        if let Some(known) = self.deliveries.known(context.namespace, of) {
            return Ok(Some(known));
        }
        let found = self.consumer(context, of).await?;
        Ok(found.map(|consumer| self.deliveries.note(context.namespace, of, consumer)))
    }

    /// Acknowledges what receipts are of; which of them were good, or nothing where there is no such consumer any more.
    pub(super) async fn acknowledge_receipts(
        &self,
        context: &Context<'_>,
        of: Of<'_>,
        known: &Rc<Subscription>,
        receipts: &[&str],
    ) -> Result<Option<Vec<bool>>, Error> {
        let mut known = known.clone();
        let mut places = places(&known, receipts);
        let is_beyond = |place: &Option<Place>| {
            place.is_some_and(|place| place.sequence > known.delivered.get())
        };
        if places.iter().any(is_beyond) {
            // Another host may have handed it out.
            let Some(found) = self.consumer(context, of).await? else {
                self.deliveries.forget(context.namespace, of);
                return Ok(None);
            };
            known = self.deliveries.note(context.namespace, of, found);
            places = self::places(&known, receipts);
            for place in &mut places {
                *place = place.filter(|place| place.sequence <= known.delivered.get());
            }
        }
        let (stream, consumer) = (of.holds.stream(context), of.name());
        let good = places.iter().flatten();
        let messages: Vec<Outgoing> =
            good.clone().map(|place| place.settled(&stream, &consumer, ACKNOWLEDGED)).collect();
        if !messages.is_empty() {
            let Answer::Several(answers) = self.link.call(context, &Ask::Each(messages)).await?
            else {
                return Err(errors::unexpected(context));
            };
            if answers.iter().any(|answer| answer.status == Some(StatusCode::NO_RESPONDERS)) {
                // Somebody has deleted it, or JetStream is away.
                self.deliveries.forget(context.namespace, of);
                return match self.consumer(context, of).await? {
                    Some(_) => Err(errors::no_jetstream(context)),
                    None => Ok(None),
                };
            }
        }
        good.for_each(|place| known.done(place.sequence));
        self.deliveries.sources.tell(context.namespace, &of.source_name());
        Ok(Some(places.iter().map(Option::is_some).collect()))
    }

    /// The subscription that a request is about, made if there is none, and the number of the event that it hears next.
    async fn join_subscription(
        &self,
        context: &Context<'_>,
        request: &SubscribeDurableRequest<'_>,
    ) -> Result<(Rc<Subscription>, u64), Error> {
        let of = Of::subscription(request.subscription_id);
        let asked_us = request.ack_wait.as_ref().map(|wait| span_ms(wait) * 1000);
        let wanted = Consumer {
            incarnation: 0,
            subject: subject(context.namespace_name, request.topic),
            filter: request.filter.to_owned(),
            is_ordered: request.ordered,
            in_flight: None,
            ack_wait_us: asked_us.unwrap_or(LEASE_DEFAULT_MS * 1000),
            delivered: 0,
            acknowledged: 0,
            left: 0,
        };
        self.ensure_stream(context, Holds::Events).await?;
        for _ in 0..ATTEMPTS_MAX {
            let mut found = self.consumer(context, of).await?;
            if let Some(consumer) = &mut found {
                if !consumer.is_same(&wanted) {
                    return Err(mismatch(of.id));
                }
                if let Some(asked_us) = asked_us.filter(|asked| *asked != consumer.ack_wait_us) {
                    self.set_ack_wait(context, of, asked_us).await?;
                    consumer.ack_wait_us = asked_us;
                }
            } else {
                let begin = self.begin(context, request).await?;
                let config = wanted.config(&of.name(), &begin);
                found = self.make_consumer(context, of, &config).await?;
            }
            if let Some(consumer) = found {
                let next = consumer.delivered.saturating_add(1);
                return Ok((self.deliveries.note(context.namespace, of, consumer), next));
            }
        }
        Err(errors::contended(context))
    }

    /// Where a new subscription begins.
    async fn begin(
        &self,
        context: &Context<'_>,
        request: &SubscribeDurableRequest<'_>,
    ) -> Result<Begin, Error> {
        let (place, is_after) = match request.start.and_then(|start| start.start) {
            None | Some(StartStart::Latest(_)) => return Ok(Begin::New),
            Some(StartStart::Earliest(_)) => return Ok(Begin::First),
            Some(StartStart::Since(moment)) => {
                return Ok(Begin::Since(rfc3339(moment_us(&moment))));
            }
            Some(StartStart::Cursor(_)) => {
                let expected = "is of no topic: begin at a position or a moment";
                return Err(Error::field("CURSOR_INVALID", "start.cursor", expected));
            }
            Some(StartStart::At(position)) => (position, false),
            Some(StartStart::After(position)) => (position, true),
        };
        let field = if is_after { "start.after" } else { "start.at" };
        if place.partition != 0 {
            let expected = "must be 0: a topic has one partition";
            return Err(Error::field("PARTITION_UNKNOWN", format!("{field}.partition"), expected));
        }
        let offset = place.offset.parse::<u64>().ok().filter(|offset| *offset > 0);
        let state = self.stream_api(context, "INFO", Holds::Events, &json!({})).await;
        let state = state.map_err(|failure| failure.error(context))?["state"].take();
        let bound = |name: &str| state[name].as_u64().ok_or_else(|| errors::unexpected(context));
        let (first, last) = (bound("first_seq")?, bound("last_seq")?);
        let Some(offset) = offset.filter(|offset| *offset <= last.saturating_add(1)) else {
            let expected = "is no offset of this topic that was told";
            return Err(Error::field("POSITION_INVALID", format!("{field}.offset"), expected));
        };
        let begin = offset.saturating_add(u64::from(is_after));
        if begin < first {
            let message = format!("what was to be read is gone: the earliest event is {first}");
            return Err(Error::new(Kind::OutOfRange, "POSITION_TRIMMED", message)
                .with("earliest", first.to_string()));
        }
        Ok(Begin::At(begin))
    }

    /// Has a stream take what is there; whether it has taken something.
    pub(super) async fn take<S: PageSink>(
        &self,
        context: &Context<'_>,
        of: Of<'_>,
        stream: &Rc<Stream>,
        room: usize,
        sink: &mut S,
    ) -> Result<bool, Error> {
        stream.begin_pull(room);
        let pulled = loop {
            let mut ended = stream.pull_ended();
            match stream.pulled() {
                Some(pulled) => break pulled,
                None => sink.wait(&mut ended, NO_END).await?,
            }
        };
        match pulled {
            Pulled::Events => Ok(true),
            Pulled::Nothing => Ok(false),
            Pulled::Unheard => {
                match self.consumer(context, of).await {
                    Ok(found) => self.deliveries.forget_unless(context.namespace, of, found),
                    Err(error) if error.is_retryable() => {}
                    Err(error) => return Err(error),
                }
                Ok(false)
            }
            // What was handed out already stays so, and the rest waits for NATS.
            Pulled::Failed(error) if error.is_retryable() => Ok(false),
            Pulled::Failed(error) => Err(error),
        }
    }

    /// Sends what a stream has in hand, as far as it is for the subscription.
    async fn hand_on<S: PageSink>(
        &self,
        context: &Context<'_>,
        stream: &Stream,
        filter: &Filter,
        sink: &mut S,
    ) -> Result<(), Error> {
        let mut not_for_it = Vec::new();
        while let Some(Delivery { place, message, until_us }) = stream.next(sink.now_us()) {
            let stored_us = place.stored_ns / 1000;
            let event = stored_event(context.namespace_name, message, place.sequence, stored_us);
            let hears = |event: &Event| {
                let named = |name: &str| event.message.attributes.get(name).map(String::as_str);
                event.expires_us > sink.now_us() && (filter.is_empty() || filter.matches(named))
            };
            let Some(event) = event.filter(hears) else {
                not_for_it.push(place);
                continue;
            };
            let delivery = reply::EventDelivery {
                topic: event.topic.to_string(),
                position: Some(position(place.sequence)),
                delivery: Some(Delivered {
                    receipt: place.receipt(stream.subscription.consumer.incarnation),
                    attempt: u32::try_from(place.attempt).unwrap_or(u32::MAX),
                    sent_at: Some(time(event.sent_us)),
                    lease_expires_at: Some(time(until_us)),
                    message: Some(event.message),
                }),
            };
            let event = reply::subscribe_response::Event::Delivery(delivery);
            sink.send(response(event)).await?;
        }
        if !not_for_it.is_empty() {
            let messages = not_for_it.iter().map(|place| stream.acknowledgement(place));
            // Those that it does not hear of come again, and are acknowledged then.
            if self.link.call(context, &Ask::Tell(messages.collect())).await.is_ok() {
                not_for_it.iter().for_each(|place| stream.subscription.done(place.sequence));
            }
        }
        Ok(())
    }
}

/// The latest moment that the server can reckon with, µs since the epoch: it counts ns in 63 bits.
const MOMENT_MAX_US: u64 = i64::MAX as u64 / 1000;

/// A moment in µs since the epoch in the form of RFC 3339; the latest that the server knows, if it is later.
pub(super) fn rfc3339(us: u64) -> String {
    let us = us.min(MOMENT_MAX_US);
    let seconds = (us / 1_000_000) as i64;
    let nanos = (us % 1_000_000 * 1000) as i32;
    prost_types::Timestamp { seconds, nanos }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_the_server_reads_them() {
        assert_eq!(rfc3339(1_700_000_000_123_000), "2023-11-14T22:13:20.123Z");
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(u64::MAX), "2262-04-11T23:47:16.854775Z");
    }
}
