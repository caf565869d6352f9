//! PostgreSQL's durable subscriptions: where each stands is a row, and so is what it has handed out and nobody has acknowledged.
//!
//! A stream takes a bounded number of events at a time, under a lease; what does not pass its filter it acknowledges itself. What a
//! stream leaves behind is given back at once, or at the end of its lease.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::{Rc, Weak};

use prism_io::rt::{self, Signal};
use prism_proto::prism::pubsub::v1 as reply;
use prism_proto::prism::r#type::v1::Delivery;
use prism_proto::view::pubsub::{
    AcknowledgeRequest, GetLastMessageIdRequest, PublishPersistentRequest, SubscribeDurableRequest,
};
use prism_proto::view::types::StartStart;
use prost::Message as _;

use super::super::batch::{Answer, Operation};
use super::super::codec::{Parameters, Row};
use super::super::messages::column;
use super::super::statements::{Namespace, Statement};
use super::super::{Pool, Postgres};
use super::rows::{event, position};
use super::tail::Topics;
use super::{PubSubStatement, other};
use crate::call::{Context, NO_DEADLINE_NS, PageSink, Reply};
use crate::error::{Error, Kind};
use crate::filter::Filter;
use crate::interfaces::message::{item_status, moment_us, span_ms, time};
use crate::interfaces::pubsub::PubSubPersistent;
use crate::limits::{IN_FLIGHT_DEFAULT, IN_FLIGHT_MAX, LEASE_DEFAULT_MS};
use crate::memory::pubsub::{mismatch, not_found, receipt_expired, response};

/// Events of one take, and bytes of them.
const EVENTS_MAX: i32 = 64;
const BYTES_MAX: i64 = 4 * 1024 * 1024;

/// Streams whose leftovers wait to be given back, at most: those beyond come again at the end of their leases.
const LEFT_MAX: usize = 4096;

/// A namespace and a subscription of it.
type Key = (u32, Box<str>);

/// What a stream has left behind: namespace, subscription, and the stream.
type Left = (Rc<Namespace>, Box<str>, i64);

/// The streams of durable subscriptions on this shard.
#[derive(Default)]
pub(in super::super) struct Streams {
    /// By namespace and subscription, in the order in which they came.
    attached: RefCell<HashMap<Key, BTreeSet<i64>>>,
    /// Those that have left.
    left: RefCell<Vec<Left>>,
    work: Signal,
    is_kept: Cell<bool>,
}

impl Streams {
    /// Begins to give back what streams leave behind, if that has not begun.
    fn keep(self: &Rc<Self>, pool: &Rc<Pool>, topics: &Rc<Topics>) {
        if !self.is_kept.replace(true) {
            rt::spawn(give_back(self.clone(), Rc::downgrade(pool), topics.clone()));
        }
    }

    /// Lets the task that gives back end; when its pool has gone.
    pub(in super::super) fn stop(&self) {
        self.work.set();
    }
}

async fn give_back(streams: Rc<Streams>, pool: Weak<Pool>, topics: Rc<Topics>) {
    loop {
        streams.work.wait().await;
        let Some(pool) = pool.upgrade() else { return };
        let left = streams.left.take();
        for (namespace, subscription, stream) in left {
            let parameters = Parameters::default().bytes(subscription.as_bytes()).int8(stream);
            let operation = other(PubSubStatement::Release, parameters);
            // What cannot be given back now comes again at the end of its lease.
            let link = pool.of_writes(namespace.number, 0);
            let _ = link.call(namespace.clone(), vec![operation], NO_DEADLINE_NS).await;
            topics.sources.tell(namespace.number, &source_name(&subscription));
        }
    }
}

/// A stream's part in a subscription; given up when it is dropped.
struct Attached {
    streams: Rc<Streams>,
    topics: Rc<Topics>,
    namespace: Rc<Namespace>,
    id: Box<str>,
    stream: i64,
}

impl Attached {
    fn is_first(&self) -> bool {
        let attached = self.streams.attached.borrow();
        let of_subscription = attached.get(&(self.namespace.number, self.id.clone()));
        of_subscription.and_then(BTreeSet::first) == Some(&self.stream)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut attached = self.streams.attached.borrow_mut();
        let key = (self.namespace.number, self.id.clone());
        if let Some(of_subscription) = attached.get_mut(&key) {
            of_subscription.remove(&self.stream);
            if of_subscription.is_empty() {
                attached.remove(&key);
            }
        }
        let mut left = self.streams.left.borrow_mut();
        if left.len() < LEFT_MAX {
            left.push((self.namespace.clone(), self.id.clone(), self.stream));
        }
        self.streams.work.set();
        self.topics.sources.tell(self.namespace.number, &source_name(&self.id));
    }
}

/// Topics have no such name.
fn source_name(id: &str) -> String {
    format!("/{id}")
}

/// The subscription as it is in its table.
struct Known {
    incarnation: i64,
    position: i64,
    stream: i64,
}

impl PubSubPersistent for Postgres {
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
        let lookup = Parameters::default().bytes(id.as_bytes());
        let mut operations = vec![other(PubSubStatement::Lookup, lookup)];
        operations.extend(request.receipts.iter().map(|receipt| {
            let (event, incarnation) = read_receipt(receipt);
            done(id, incarnation, event)
        }));
        let mut good = vec![false; operations.len()];
        let Answer { rows, .. } = self.write(context, operations).await?;
        match rows.iter().find(|(operation, _)| *operation == 0) {
            None => return Err(not_found(id)),
            Some((_, row)) if row.key != request.topic.as_bytes() => return Err(mismatch(id)),
            Some(_) => {}
        }
        for (operation, _) in &rows {
            if let Some(good) = good.get_mut(*operation as usize) {
                *good = true;
            }
        }
        self.topics.sources.tell(context.namespace, &source_name(id));
        let expired = item_status(&receipt_expired());
        let result =
            |good: &bool| reply::AcknowledgeResult { status: (!good).then(|| expired.clone()) };
        let results = good[1..].iter().map(result).collect();
        reply::AcknowledgeResponse { results }.encode_raw(&mut reply.head);
        Ok(())
    }

    async fn get_last_message_id(
        &self,
        context: &Context<'_>,
        request: GetLastMessageIdRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let parameters = Parameters::default().bytes(request.topic.as_bytes());
        let operation = other(PubSubStatement::Newest, parameters);
        let answer = self.read(context, vec![operation]).await?;
        let row = answer.row();
        let answer = reply::GetLastMessageIdResponse {
            message_id: row.map(|row| String::from_utf8_lossy(&row.key).into_owned()),
            position: row.map(|row| position(row.number)),
        };
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
        let known = self.make_subscription_row(context, &request).await?;
        let (namespace, id) = (context.namespace, request.subscription_id);
        let mut events = self.topics.sources.attend(namespace, request.topic);
        let changes_name = source_name(id);
        let mut changes = self.topics.sources.attend(namespace, &changes_name);
        let attached = self.attach(context, id, known.stream);
        let started = reply::Started {
            subscription_id: id.to_owned(),
            position: Some(position(known.position.saturating_add(1))),
        };
        sink.send(response(reply::subscribe_response::Event::Started(started))).await?;
        loop {
            let mut again_us = None;
            if !request.ordered || attached.is_first() {
                let now_us = sink.now_us();
                match self.take(context, &request, &known, now_us).await {
                    Ok(Taken::Gone) => return Ok(()),
                    Ok(Taken::Nothing(next_us)) => again_us = next_us,
                    Ok(Taken::Events(rows, until_us)) => {
                        let handed = (rows, until_us);
                        self.hand(context, (id, &known, &filter), handed, sink).await?;
                        continue;
                    }
                    // What was handed out already stays so, and the rest waits for PostgreSQL.
                    Err(error) if error.is_retryable() => {}
                    Err(error) => return Err(error),
                }
            }
            let look_us = sink.now_us().saturating_add(self.look_every.as_micros() as u64);
            let until_us = again_us.map_or(look_us, |again_us| look_us.min(again_us));
            sink.wait(events.told().or(changes.told()), until_us).await?;
        }
    }
}

/// What a stream has taken.
enum Taken {
    /// The subscription is gone.
    Gone,
    /// Nothing; and when something may come again.
    Nothing(Option<u64>),
    /// Events, and until when they are held.
    Events(Vec<Row>, u64),
}

impl Postgres {
    /// Makes the subscription if there is none of its name.
    async fn make_subscription_row(
        &self,
        context: &Context<'_>,
        request: &SubscribeDurableRequest<'_>,
    ) -> Result<Known, Error> {
        let id = request.subscription_id;
        let (begin_at, since_us, behind) = begin(request)?;
        let parameters = Parameters::default()
            .bytes(id.as_bytes())
            .bytes(request.topic.as_bytes())
            .bytes(request.filter.as_bytes())
            .boolean(request.ordered)
            .int4(begin_at)
            .moment(since_us)
            .int8(behind);
        // One version is its incarnation's, the other the stream's.
        let statement = Statement::PubSub(PubSubStatement::Subscribe);
        let operation = Operation::Other { statement, parameters, versions: 2 };
        let answer = self.write(context, vec![operation]).await?;
        let stream = answer.versions.first().map_or(0, |first| first + 1);
        let Some(row) = answer.row() else {
            let message = "what was to be read is gone: begin with the earliest";
            return Err(Error::new(Kind::OutOfRange, "POSITION_TRIMMED", message));
        };
        let is_it = row.key == request.topic.as_bytes()
            && row.value.as_deref() == Some(request.filter.as_bytes())
            && (row.length != 0) == request.ordered;
        match is_it {
            true => Ok(Known { incarnation: row.version, position: row.number, stream }),
            false => Err(mismatch(id)),
        }
    }

    fn attach(&self, context: &Context<'_>, id: &str, stream: i64) -> Attached {
        self.streams.keep(&self.pool, &self.topics);
        let key = (context.namespace, Box::from(id));
        self.streams.attached.borrow_mut().entry(key).or_default().insert(stream);
        Attached {
            streams: self.streams.clone(),
            topics: self.topics.clone(),
            namespace: self.pool.namespace(context.namespace, context.namespace_name),
            id: id.into(),
            stream,
        }
    }

    async fn take(
        &self,
        context: &Context<'_>,
        request: &SubscribeDurableRequest<'_>,
        known: &Known,
        now_us: u64,
    ) -> Result<Taken, Error> {
        let lease_us = request.ack_wait.as_ref().map_or(LEASE_DEFAULT_MS, span_ms) * 1000;
        let until_us = now_us.saturating_add(lease_us);
        let in_flight = match request.max_in_flight {
            0 => IN_FLIGHT_DEFAULT,
            asked => asked.min(IN_FLIGHT_MAX),
        };
        let parameters = Parameters::default()
            .bytes(request.subscription_id.as_bytes())
            .int8(known.incarnation)
            .int8(known.stream)
            .moment(now_us)
            .moment(until_us)
            .int4(i32::try_from(in_flight).unwrap_or(i32::MAX))
            .int4(EVENTS_MAX)
            .int8(BYTES_MAX);
        let operation = other(PubSubStatement::Fetch, parameters);
        let mut rows: Vec<Row> = self
            .write(context, vec![operation])
            .await?
            .rows
            .into_iter()
            .map(|(_, row)| row)
            .collect();
        if rows.first().is_some_and(|row| row.number < 0) {
            return Ok(Taken::Gone);
        }
        let next_us = rows.iter().find(|row| row.number == 0).and_then(|row| row.expires_us);
        rows.retain(|row| row.number > 0);
        Ok(if rows.is_empty() { Taken::Nothing(next_us) } else { Taken::Events(rows, until_us) })
    }

    /// Sends what was taken, as far as it is for the subscription and still held.
    async fn hand<S: PageSink>(
        &self,
        context: &Context<'_>,
        (id, known, filter): (&str, &Known, &Filter),
        (rows, until_us): (Vec<Row>, u64),
        sink: &mut S,
    ) -> Result<(), Error> {
        let mut not_for_it = Vec::new();
        let mut to_send = Vec::with_capacity(rows.len());
        for row in &rows {
            let event = event(row);
            let hears = filter.is_empty()
                || filter.matches(|name| event.message.attributes.get(name).map(String::as_str));
            // One that is no more has no payload.
            if row.value.is_some() && hears && event.expires_us > sink.now_us() {
                to_send.push((row, event));
            } else {
                not_for_it.push(done(id, known.incarnation, row.number));
            }
        }
        if !not_for_it.is_empty() {
            self.write(context, not_for_it).await?;
        }
        for (row, event) in to_send {
            if sink.now_us() >= until_us {
                break;
            }
            let delivery = reply::EventDelivery {
                topic: event.topic.to_string(),
                position: Some(position(row.number)),
                delivery: Some(Delivery {
                    receipt: format!("{:x}-{:x}", row.number, known.incarnation),
                    attempt: row.length,
                    sent_at: Some(time(event.sent_us)),
                    lease_expires_at: Some(time(until_us)),
                    message: Some(event.message),
                }),
            };
            let event = reply::subscribe_response::Event::Delivery(delivery);
            sink.send(response(event)).await?;
        }
        Ok(())
    }

    /// Deletes a durable subscription; whether there was one.
    pub(super) async fn delete_durable(
        &self,
        context: &Context<'_>,
        id: &str,
    ) -> Result<bool, Error> {
        let parameters = Parameters::default().bytes(id.as_bytes());
        let operation = other(PubSubStatement::Unsubscribe, parameters);
        let answer = self.write(context, vec![operation]).await?;
        self.topics.sources.tell(context.namespace, &source_name(id));
        Ok(answer.row().is_some())
    }
}

fn done(id: &str, incarnation: i64, event: i64) -> Operation {
    let values = vec![
        column(id.as_bytes()),
        column(&incarnation.to_be_bytes()),
        column(&event.to_be_bytes()),
    ];
    Operation::Row { statement: Statement::PubSub(PubSubStatement::Done), values }
}

/// The event and the incarnation of a receipt; of what is none, those of none.
fn read_receipt(receipt: &str) -> (i64, i64) {
    let numbers = receipt.split_once('-').and_then(|(event, incarnation)| {
        Some((i64::from_str_radix(event, 16).ok()?, i64::from_str_radix(incarnation, 16).ok()?))
    });
    numbers.unwrap_or((-1, -1))
}

/// Where a new subscription begins: the kind, the moment and the position that `pubsub_subscribe` takes.
fn begin(request: &SubscribeDurableRequest<'_>) -> Result<(i32, u64, i64), Error> {
    let (place, is_after) = match request.start.and_then(|start| start.start) {
        None | Some(StartStart::Latest(_)) => return Ok((0, 0, 0)),
        Some(StartStart::Earliest(_)) => return Ok((1, 0, 0)),
        Some(StartStart::Since(time)) => return Ok((2, moment_us(&time), 0)),
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
    match place.offset.parse::<i64>().ok().filter(|offset| *offset > 0) {
        Some(offset) => Ok((3, 0, offset - i64::from(!is_after))),
        None => {
            let expected = "is no offset of this topic that was told";
            Err(Error::field("POSITION_INVALID", format!("{field}.offset"), expected))
        }
    }
}
