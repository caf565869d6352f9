//! A queue on Kafka and PostgreSQL together: payloads lie in a topic, where they are cheap to keep and others can read them; the state of delivery
//! (receipts, attempts, leases, schedule, dead letters) lies in a table, where it can be changed.
//!
//! A message is first put into the topic `<namespace>-queue`, then its row into `"<namespace>".queue`, which says where the payload is. The
//! row is what counts: a payload whose row never came is delivered to nobody, and one that was sent twice has one row. So the lane's cell
//! is PostgreSQL's alone, and logged writes have one effect each as there.
//!
//! What was sent through this shard a moment ago is kept in memory, up to [`RECENT_BYTES_MAX`], so that most deliveries ask Kafka nothing. A
//! payload that Kafka refuses for its own sake (it is too large for the brokers) stands in the row. One that retention has removed is
//! a message that has expired: it is given up with the reason [`PAYLOAD_GONE`].

mod recent;

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use prism_proto::catalogue::Method;
use prism_proto::prism::queue::v1 as reply;
use prism_proto::prism::r#type::v1::{Delivery, Message};
use prism_proto::view::queue::{
    AcknowledgeRequest, ConfigureDeadLetterRequest, ExtendVisibilityRequest,
    GetScheduledCountRequest, ListDeadLettersRequest, ReceiveRequest, RedriveRequest,
    RejectRequest, ReleaseRequest, SendBatchRequest, SendDelayedRequest, SendRequest,
    SendWithPriorityRequest,
};
use prism_proto::view::types as view;
use prost::Message as _;

use self::recent::Recent;
use crate::backend::Admission;
use crate::call::{Context, NO_DEADLINE_NS, Reply};
use crate::ending::Endings;
use crate::error::{Error, Kind};
use crate::interfaces::message::identity;
use crate::interfaces::queue::{
    QueueBasic, QueueDeadLetter, QueueDelayed, QueuePriority, QueueVisibility,
};
use crate::kafka::payloads::{Kept, Place};
use crate::kafka::{Kafka, KafkaConfig, TopicShape};
use crate::lane::{Cell, LaneBackend, LaneOwner, LaneRecord, Outcome};
use crate::postgres::queue::elsewhere::{Elsewhere, take_place};
use crate::postgres::{Postgres, PostgresConfig};
use crate::reader::{Peek, PeekFuture, Peeked};

/// Bytes of payloads that a shard keeps in memory, at most.
pub const RECENT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The reason of a dead letter whose payload the topic does not have any more.
pub const PAYLOAD_GONE: &str = "PAYLOAD_GONE";

/// A shard's pair, see the module.
pub struct KafkaPostgres {
    messages: Kafka,
    state: Postgres,
    /// How long topics keep payloads, µs: those of namespaces that have a time of their own, and all others.
    kept_us: RefCell<HashMap<u32, u64, ahash::RandomState>>,
    kept_otherwise_us: Option<u64>,
    recent: RefCell<Recent>,
}

crate::backend! {
    KafkaPostgres: "kafka+postgres" =>
        queue_basic,
        queue_visibility,
        queue_dead_letter,
        queue_priority,
        queue_delayed,
}

impl KafkaPostgres {
    /// Begins to look for both; calls may be made at once. Needs the shard's runtime around it.
    pub fn start(messages: KafkaConfig, state: PostgresConfig) -> Self {
        let kept_otherwise_us = messages.retention.map(micros);
        KafkaPostgres {
            messages: Kafka::start(messages),
            state: Postgres::start(state),
            kept_us: RefCell::default(),
            kept_otherwise_us,
            recent: RefCell::new(Recent::new(RECENT_BYTES_MAX)),
        }
    }

    /// Has the topic of a namespace be made in another shape than the configuration's.
    pub fn shape_topics(&self, namespace: u32, shape: TopicShape) {
        self.kept_us.borrow_mut().extend(shape.retention.map(|kept| (namespace, micros(kept))));
        self.messages.shape_topics(namespace, shape);
    }

    /// How long the topic of a namespace keeps payloads, µs.
    fn kept_us(&self, namespace: u32) -> u64 {
        let own = self.kept_us.borrow().get(&namespace).copied();
        own.or(self.kept_otherwise_us).unwrap_or(u64::MAX)
    }

    /// Puts the payloads of messages that are about to be sent where they belong.
    async fn store(&self, context: &Context<'_>, sent: &[Sent<'_>]) -> Result<(), Error> {
        // Those of an attempt before this one are there already.
        let missing: Vec<_> =
            sent.iter().filter(|sent| self.state.announced.of(&sent.id).is_none()).collect();
        let kept: Vec<_> = missing
            .iter()
            .map(|sent| Kept { queue: sent.queue, id: &sent.id, message: &sent.message })
            .collect();
        let places = self.messages.put_payloads(context, &topic(context), &kept).await?;
        for (sent, place) in missing.iter().zip(places) {
            // One that Kafka refuses stays with its row.
            let Some(place) = place else { continue };
            let payload = sent.message.payload;
            let expires_us = sent.now_us.saturating_add(self.kept_us(context.namespace));
            let elsewhere = Elsewhere { place, bytes: payload.len(), expires_us };
            self.state.announced.announce(&sent.id, elsewhere);
            let mut recent = self.recent.borrow_mut();
            recent.put((context.namespace, place), Bytes::copy_from_slice(payload));
        }
        Ok(())
    }

    fn settle(&self, sent: &[Sent<'_>]) {
        sent.iter().for_each(|sent| self.state.announced.settle(&sent.id));
    }

    /// Puts the payload of one message where it belongs, has its row made, and forgets about it.
    async fn send_one(
        &self,
        context: &Context<'_>,
        queue: &str,
        message: Option<view::Message<'_>>,
        row: impl AsyncFnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let sent = [Sent::new(context, queue, 0, message.unwrap_or_default())];
        self.store(context, &sent).await?;
        let done = row().await;
        self.settle(&sent);
        done
    }

    /// The payloads at these places, from memory where they are there. What is not among them is gone.
    async fn payloads(
        &self,
        context: &Context<'_>,
        places: impl Iterator<Item = Place>,
    ) -> Result<HashMap<Place, Bytes>, Error> {
        let (mut found, mut wanted) = (HashMap::new(), Vec::new());
        for place in places {
            match self.recent.borrow().get((context.namespace, place)) {
                Some(payload) => drop(found.insert(place, payload)),
                None => wanted.push(place),
            }
        }
        if !wanted.is_empty() {
            let read = self.messages.payloads_at(context, &topic(context), wanted).await?;
            found.extend(read);
        }
        Ok(found)
    }

    /// Gives deliveries their payloads. Where that fails they were not made; those whose payload is gone are given up.
    async fn complete(
        &self,
        context: &Context<'_>,
        queue: &str,
        deliveries: Vec<Delivery>,
    ) -> Result<Vec<Delivery>, Error> {
        let mut deliveries: Vec<_> = deliveries
            .into_iter()
            .map(|mut delivery| {
                let place = delivery.message.as_mut().and_then(take_place);
                (delivery, place)
            })
            .collect();
        let places = deliveries.iter().filter_map(|(_, place)| *place);
        let payloads = match self.payloads(context, places).await {
            Ok(payloads) => payloads,
            Err(error) => {
                let receipts = deliveries.iter().map(|(delivery, _)| delivery.receipt.as_str());
                // Where this fails too, the leases end by themselves, and count.
                let late = Context { deadline_ns: NO_DEADLINE_NS, ..*context };
                let _ = self.state.put_back(&late, queue, receipts).await;
                return Err(error);
            }
        };
        let is_gone = |place: &Option<Place>| place.is_some_and(|at| !payloads.contains_key(&at));
        let mut gone: Vec<_> =
            deliveries.extract_if(.., |(_, place)| is_gone(place)).map(|(one, _)| one).collect();
        if !gone.is_empty() {
            let receipts = gone.iter().map(|delivery| delivery.receipt.as_str());
            self.state.give_up(context, (queue, PAYLOAD_GONE), receipts).await?;
            gone.clear();
        }
        let complete = deliveries.into_iter().map(|(mut delivery, place)| {
            if let (Some(place), Some(message)) = (place, delivery.message.as_mut()) {
                message.payload = payloads.get(&place).cloned().unwrap_or_default();
            }
            delivery
        });
        Ok(complete.collect())
    }

    /// The same with the answer of a Receive.
    async fn complete_reply(
        &self,
        context: &Context<'_>,
        queue: &str,
        answer: &Reply,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let received = reply::ReceiveResponse::decode(answer.to_bytes());
        let received = received.map_err(|_| unreadable(context))?;
        let deliveries = self.complete(context, queue, received.deliveries).await?;
        reply::ReceiveResponse { deliveries }.encode_raw(&mut reply.head);
        Ok(())
    }

    /// Messages that are told without being delivered; what is gone is told without its payload.
    async fn fill<'m>(
        &self,
        context: &Context<'_>,
        messages: impl Iterator<Item = &'m mut Message>,
    ) -> Result<(), Error> {
        let elsewhere: Vec<_> =
            messages.filter_map(|message| take_place(message).map(|at| (message, at))).collect();
        let places = elsewhere.iter().map(|(_, place)| *place);
        let payloads = self.payloads(context, places).await?;
        for (message, place) in elsewhere {
            message.payload = payloads.get(&place).cloned().unwrap_or_default();
        }
        Ok(())
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// The topic of a namespace's messages; one of a stream has a dot in its name.
fn topic(context: &Context<'_>) -> String {
    format!("{}-queue", context.namespace_name)
}

#[cold]
fn unreadable(context: &Context<'_>) -> Error {
    let name = context.namespace_name;
    let message = format!("postgres, the backend of {name}: what it has answered cannot be read");
    Error::new(Kind::Internal, "BACKEND_ANSWER_UNREADABLE", message)
}

/// A message that is about to be sent.
struct Sent<'a> {
    queue: &'a str,
    id: String,
    message: view::Message<'a>,
    /// Its log time, µs since the epoch.
    now_us: u64,
}

impl<'a> Sent<'a> {
    fn new(
        context: &Context<'_>,
        queue: &'a str,
        index: usize,
        message: view::Message<'a>,
    ) -> Self {
        Sent { queue, id: identity(context, index, &message), message, now_us: context.now_us }
    }

    /// Those of a record.
    fn of_record(record: &LaneRecord<'a>) -> Vec<Self> {
        let (context, request) = (&record.context, record.request);
        let one = |queue, message: Option<view::Message<'a>>| {
            vec![Sent::new(context, queue, 0, message.unwrap_or_default())]
        };
        // What cannot be read was refused before it got a record.
        match record.method {
            Method::QUEUE_SEND => SendRequest::decode(request)
                .map(|request| one(request.queue, request.message))
                .unwrap_or_default(),
            Method::QUEUE_SEND_WITH_PRIORITY => SendWithPriorityRequest::decode(request)
                .map(|request| one(request.queue, request.message))
                .unwrap_or_default(),
            Method::QUEUE_SEND_DELAYED => SendDelayedRequest::decode(request)
                .map(|request| one(request.queue, request.message))
                .unwrap_or_default(),
            Method::QUEUE_SEND_BATCH => SendBatchRequest::decode(request)
                .map(|request| {
                    let messages = request.messages.iter().enumerate();
                    let sent = |(index, message)| Sent::new(context, request.queue, index, message);
                    messages.map(sent).collect()
                })
                .unwrap_or_default(),
            _ => Vec::new(),
        }
    }
}

impl QueueBasic for KafkaPostgres {
    async fn send(
        &self,
        context: &Context<'_>,
        request: SendRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let (queue, message) = (request.queue, request.message);
        let row = async || self.state.send(context, request, reply).await;
        self.send_one(context, queue, message, row).await
    }

    async fn send_batch(
        &self,
        context: &Context<'_>,
        request: SendBatchRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let messages = request.messages.iter().enumerate();
        let sent = |(index, message)| Sent::new(context, request.queue, index, message);
        let sent: Vec<_> = messages.map(sent).collect();
        self.store(context, &sent).await?;
        let done = self.state.send_batch(context, request, reply).await;
        self.settle(&sent);
        done
    }

    async fn receive(
        &self,
        context: &Context<'_>,
        request: ReceiveRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        // Nothing is leased that could not be delivered.
        self.messages.check_reachable(context)?;
        let (queue, mut answer) = (request.queue, Reply::default());
        self.state.receive(context, request, &mut answer).await?;
        self.complete_reply(context, queue, &answer, reply).await
    }

    async fn acknowledge(
        &self,
        context: &Context<'_>,
        request: AcknowledgeRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        self.state.acknowledge(context, request, reply).await
    }

    async fn reject(
        &self,
        context: &Context<'_>,
        request: RejectRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        self.state.reject(context, request, reply).await
    }

    async fn messages_ready(&self, context: &Context<'_>, request: ReceiveRequest<'_>) {
        self.state.messages_ready(context, request).await;
    }
}

impl QueueVisibility for KafkaPostgres {
    async fn extend_visibility(
        &self,
        context: &Context<'_>,
        request: ExtendVisibilityRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        self.state.extend_visibility(context, request, reply).await
    }

    async fn release(
        &self,
        context: &Context<'_>,
        request: ReleaseRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        self.state.release(context, request, reply).await
    }
}

impl QueueDeadLetter for KafkaPostgres {
    async fn configure_dead_letter(
        &self,
        context: &Context<'_>,
        request: ConfigureDeadLetterRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        self.state.configure_dead_letter(context, request, reply).await
    }

    async fn list_dead_letters(
        &self,
        context: &Context<'_>,
        request: ListDeadLettersRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let mut answer = Reply::default();
        self.state.list_dead_letters(context, request, &mut answer).await?;
        let listed = reply::ListDeadLettersResponse::decode(answer.to_bytes());
        let mut listed = listed.map_err(|_| unreadable(context))?;
        let messages = listed.dead_letters.iter_mut().filter_map(|one| one.message.as_mut());
        self.fill(context, messages).await?;
        listed.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn redrive(
        &self,
        context: &Context<'_>,
        request: RedriveRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        self.state.redrive(context, request, reply).await
    }
}

impl QueuePriority for KafkaPostgres {
    async fn send_with_priority(
        &self,
        context: &Context<'_>,
        request: SendWithPriorityRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let (queue, message) = (request.queue, request.message);
        let row = async || self.state.send_with_priority(context, request, reply).await;
        self.send_one(context, queue, message, row).await
    }
}

impl QueueDelayed for KafkaPostgres {
    async fn send_delayed(
        &self,
        context: &Context<'_>,
        request: SendDelayedRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let (queue, message) = (request.queue, request.message);
        let row = async || self.state.send_delayed(context, request, reply).await;
        self.send_one(context, queue, message, row).await
    }

    async fn get_scheduled_count(
        &self,
        context: &Context<'_>,
        request: GetScheduledCountRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        self.state.get_scheduled_count(context, request, reply).await
    }
}

impl LaneBackend for KafkaPostgres {
    async fn resume(
        &self,
        context: &Context<'_>,
        owner: &LaneOwner,
    ) -> Result<Option<Cell>, Error> {
        self.state.resume(context, owner).await
    }

    async fn set_cell(&self, context: &Context<'_>, cell: &Cell) -> Result<(), Error> {
        self.state.set_cell(context, cell).await
    }

    async fn apply(
        &self,
        owner: &LaneOwner,
        records: &[LaneRecord<'_>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), Error> {
        let Some(first) = records.first() else { return Ok(()) };
        // A lane is one namespace's: its payloads go out together.
        let sent: Vec<_> = records.iter().flat_map(Sent::of_record).collect();
        self.store(&first.context, &sent).await?;
        if records.iter().any(|record| record.method == Method::QUEUE_RECEIVE) {
            self.messages.check_reachable(&first.context)?;
        }
        // Where this fails, what was announced stays so for the next attempt.
        self.state.apply(owner, records, outcomes).await?;
        self.settle(&sent);
        for (record, outcome) in records.iter().zip(outcomes) {
            let Ok(answer) = &*outcome else { continue };
            if record.method != Method::QUEUE_RECEIVE {
                continue;
            }
            let queue = ReceiveRequest::decode(record.request).map_or("", |request| request.queue);
            let mut reply = Reply::default();
            let done = self.complete_reply(&record.context, queue, answer, &mut reply).await;
            *outcome = done.map(|()| reply);
        }
        Ok(())
    }
}

impl Endings for KafkaPostgres {
    /// A payload that no row names is nobody's.
    async fn holds_data(&self, context: &Context<'_>) -> Result<bool, Error> {
        self.state.holds_data(context).await
    }

    async fn erase(&self, context: &Context<'_>) -> Result<(), Error> {
        self.state.erase(context).await?;
        self.messages.delete_payloads(context, &topic(context)).await
    }
}

impl Admission for KafkaPostgres {
    fn admit(&self, method: Method, request: &[u8]) -> Result<(), Error> {
        self.messages.admit(method, request)?;
        self.state.admit(method, request)
    }
}

impl Peek for KafkaPostgres {
    fn peek<'a>(
        &'a self,
        context: &'a Context<'a>,
        queue: &'a str,
        dead: bool,
        after: Option<u64>,
        messages_max: usize,
    ) -> PeekFuture<'a> {
        Box::pin(async move {
            let looked = self.state.peek(context, queue, dead, after, messages_max).await?;
            let (mut peeked, is_end): (Vec<Peeked>, bool) = looked;
            // A record has a message's attributes and its payload.
            let mut messages: Vec<_> = peeked
                .iter_mut()
                .map(|one| Message {
                    attributes: std::mem::take(&mut one.record.attributes),
                    payload: std::mem::take(&mut one.record.value),
                    ..Message::default()
                })
                .collect();
            self.fill(context, messages.iter_mut()).await?;
            for (one, message) in peeked.iter_mut().zip(messages) {
                one.record.attributes = message.attributes;
                one.record.value = message.payload;
            }
            Ok((peeked, is_end))
        })
    }
}
