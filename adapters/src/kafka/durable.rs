//! Events that last: a topic of Kafka keeps them anyway, and a durable subscription is a group of Kafka's, `<namespace>:<id>`, in which this
//! Prism takes part with one consumer for all streams of the subscription ([`super::session`]).
//!
//! The streams share the events one by one. A receipt is of the subscription, not of a generation: it is good until the event is done, also
//! after a restart.

use std::rc::Rc;

use prism_proto::prism::pubsub::v1 as reply;
use prism_proto::prism::r#type::v1::Delivery;
use prism_proto::view::pubsub::{
    AcknowledgeRequest, GetLastMessageIdRequest, PublishPersistentRequest, SubscribeDurableRequest,
};
use prism_proto::view::types::StartStart;
use prost::Message as _;

use super::Kafka;
use super::cluster::Cluster;
use super::crowd::{Handed, Manner, Terms};
use super::errors::too_large;
use super::groups::Receipt;
use super::names::{subscription_of, topic_of};
use super::notes::Note;
use super::pubsub::event_of;
use super::reader::Reader;
use super::session::{Part, Wanted};
use super::stream::position;
use super::tail::last_records;
use crate::call::{Context, NO_END, PageSink, Reply};
use crate::error::{Error, Kind};
use crate::filter::Filter;
use crate::interfaces::message::{item_status, span_ms, time};
use crate::interfaces::pubsub::PubSubPersistent;
use crate::limits::{IN_FLIGHT_DEFAULT, IN_FLIGHT_MAX, LEASE_DEFAULT_MS};
use crate::memory::pubsub::{mismatch, not_found, receipt_expired, response};
use crate::sharing::{Refused, Seal};

fn seal<'a>(context: &Context<'_>, id: &'a str, note: &Note) -> Seal<'a> {
    Seal { namespace: context.namespace, names: [id, ""], created: [note.since_us, 0, 0] }
}

impl PubSubPersistent for Kafka {
    async fn publish_persistent(
        &self,
        context: &Context<'_>,
        request: PublishPersistentRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let (message_id, position) =
            self.publish_one(context, request.topic, request.message).await?;
        reply::PublishPersistentResponse { message_id, position }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn acknowledge(
        &self,
        context: &Context<'_>,
        request: AcknowledgeRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let id = request.subscription_id;
        let group = subscription_of(context.namespace_name, id);
        let note = match self.known_note(context, &group) {
            Some(note) => Some(note),
            None => self.note(context, &group).await?,
        };
        let note = note.ok_or_else(|| not_found(id))?;
        if note.topic != topic_of(context.namespace_name, request.topic) {
            return Err(mismatch(id));
        }
        let seal = seal(context, id, &note);
        let receipts: Vec<_> =
            request.receipts.iter().map(|text| Receipt::read(&seal, text, false)).collect();
        let done = self.acknowledge_all(context, &group, &note, &receipts).await?;
        let result = |one: Result<(), Refused>| reply::AcknowledgeResult {
            status: one.err().map(|_| item_status(&receipt_expired())),
        };
        let results = done.into_iter().map(result).collect();
        reply::AcknowledgeResponse { results }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_last_message_id(
        &self,
        context: &Context<'_>,
        request: GetLastMessageIdRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let topic = topic_of(context.namespace_name, request.topic);
        let mut answer = reply::GetLastMessageIdResponse { message_id: None, position: None };
        if let Some(bounds) = self.bounds(context, &topic, None, false).await? {
            let question = move |cluster: &Cluster, reader: &Reader| {
                last_records(cluster, reader, &topic, &bounds, |_| true)
            };
            let last = self.link.ask_reading(context, question).await?;
            let numbered = (0_u32..).zip(last);
            let newest = numbered
                .filter_map(|(partition, last)| Some((partition, last?)))
                .max_by_key(|(_, last)| last.time_ms);
            if let Some((partition, last)) = newest {
                let place = position(partition, last.offset);
                let of_place = || format!("{partition}-{}", last.offset);
                answer.message_id = Some(last.id.clone().unwrap_or_else(of_place));
                answer.position = Some(place);
            }
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
        let id = request.subscription_id;
        let group = subscription_of(context.namespace_name, id);
        let note = self.subscription(context, &group, &request).await?;
        let terms = Terms {
            ack_wait_us: request.ack_wait.as_ref().map_or(LEASE_DEFAULT_MS, span_ms) * 1000,
            in_flight_max: match request.max_in_flight {
                0 => IN_FLIGHT_DEFAULT,
                asked => asked.min(IN_FLIGHT_MAX),
            },
        };
        let manner = if note.is_ordered { Manner::OneAtATime } else { Manner::Records };
        let wanted = Wanted { group, note: note.clone(), manner, filter: Some(filter) };
        let part = self.sessions.join((context, &self.link), wanted, ("", terms)).await?;
        // A place would be one of each partition.
        let started = reply::Started { subscription_id: id.to_owned(), position: None };
        sink.send(response(reply::subscribe_response::Event::Started(started))).await?;
        self.hand_on(context, (request.topic, &seal(context, id, &note)), &part, sink).await
    }
}

impl Kafka {
    /// The subscription that a request is about, made if there is none.
    async fn subscription(
        &self,
        context: &Context<'_>,
        group: &str,
        request: &SubscribeDurableRequest<'_>,
    ) -> Result<Rc<Note>, Error> {
        let id = request.subscription_id;
        let mut note = Note {
            since_us: context.now_us,
            topic: topic_of(context.namespace_name, request.topic),
            is_by_record: true,
            filter: request.filter.to_owned(),
            is_ordered: request.ordered,
            ..Note::default()
        };
        match self.note(context, group).await? {
            Some(there) if there.is_like(&note) => return Ok(there),
            Some(_) => return Err(mismatch(id)),
            None => {}
        }
        let start = request.start.unwrap_or_default();
        if matches!(start.start, Some(StartStart::Cursor(_))) {
            let expected = "is of no topic: begin at a position or a moment";
            return Err(Error::field("CURSOR_INVALID", "start.cursor", expected));
        }
        note.starts = self.starts(context, request.topic, &start).await?;
        let placed = self.place_group(context, group, &note, None).await?;
        placed.map_err(|_| taken(id))?;
        self.set_note(context, group, Some(&note)).await?;
        Ok(self.known_note(context, group).unwrap_or_else(|| Rc::new(note)))
    }

    /// Sends what a subscription's stream is handed, until it leaves or the subscription is gone.
    async fn hand_on<S: PageSink>(
        &self,
        context: &Context<'_>,
        (topic, seal): (&str, &Seal<'_>),
        part: &Part,
        sink: &mut S,
    ) -> Result<(), Error> {
        let session = &part.session;
        let mut news = session.news.listen();
        loop {
            if let Some(error) = session.failure(context) {
                return Err(error);
            }
            if !session.is_open() {
                return Ok(());
            }
            let now_us = sink.now_us();
            let handed = session.crowd.borrow_mut().hand(part.number, now_us);
            let Some(Handed { partition, offset, attempt, until_us, record }) = handed else {
                let until_us = session.crowd.borrow().next_end_us().unwrap_or(NO_END);
                sink.wait(&mut news, until_us).await?;
                continue;
            };
            let event = event_of(topic, &*record);
            if event.expires_us <= now_us {
                // Nobody gets it any more: that counts as done, as what the filter leaves out does.
                let _ = session.crowd.borrow_mut().acknowledge(partition, offset);
                continue;
            }
            let delivery = reply::EventDelivery {
                topic: topic.to_owned(),
                position: Some(position(partition, offset as i64)),
                delivery: Some(Delivery {
                    message: Some(event.message),
                    receipt: seal.receipt(0, partition.into(), offset),
                    attempt,
                    sent_at: Some(time(event.sent_us)),
                    lease_expires_at: Some(time(until_us)),
                }),
            };
            if delivery.encoded_len() > context.limits.max_message_size {
                return Err(too_large(context, partition, offset as i64));
            }
            sink.send(response(reply::subscribe_response::Event::Delivery(delivery))).await?;
        }
    }
}

#[cold]
fn taken(id: &str) -> Error {
    let message = format!(
        "others take part in a group of Kafka's that has the name of the subscription {id}, which is none of Prism's: end \
         them, or use another id"
    );
    Error::new(Kind::FailedPrecondition, "SUBSCRIPTION_MISMATCH", message)
}
