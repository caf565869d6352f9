//! PostgreSQL's outbox: messages are rows of the namespace's table `outbox`, written in the transaction of the data and deleted when
//! they have arrived.
//!
//! Which rows there are is known beside (in [`Outboxes`]), and learnt again from the table when the shard starts, when a Write has
//! ended, and from time to time: a row that a psql has written is relayed like any other.

use prism_proto::prism::transact::v1::OutboxMessage;
use prism_proto::prism::r#type::v1::Message;
use prism_proto::prism::r#type::v1::message::DeliveryTime;
use prism_proto::view::keyvalue::TransactRequest;
use prism_proto::wire;

use super::Postgres;
use super::batch::{Operation, moment};
use super::codec::{Parameters, Row, Type};
use super::messages::{attributes, json, read_message};
use super::statements::Statement;
use crate::call::{Context, Reply};
use crate::error::Error;
use crate::interfaces::malformed;
use crate::interfaces::message::{message_id, time};
use crate::outbox::{
    Chain, MESSAGE_IDS, Outgoing, Place, Target, deliver_us, expires_us, messages,
};

/// Rows that are learnt at once.
const ROWS_MAX: usize = 1000;
/// Bytes of messages that are read at once, but for one that is longer by itself.
const BYTES_MAX: i64 = 4 * 1024 * 1024;

/// The parameters of a Write's messages, behind those of its Transact.
fn with_messages(
    parameters: Parameters,
    ids: &[String],
    messages: &[OutboxMessage],
    now_us: u64,
) -> Parameters {
    let empty = Message::default();
    let sent = |one: &'_ OutboxMessage| one.message.clone().unwrap_or_default();
    let content: Vec<Message> = messages.iter().map(sent).collect();
    let of = |place: usize| content.get(place).unwrap_or(&empty);
    let each = || 0..messages.len();
    let text = |value: &str| Some(value.as_bytes().to_vec());
    let at = |us: Option<u64>| us.map(moment);
    parameters
        .array(Type::Text, ids.iter().map(|id| Some(id.as_bytes())))
        .array(Type::Text, messages.iter().map(|one| text(&one.target_namespace)))
        .array(Type::Text, messages.iter().map(|one| text(&one.target)))
        .array(Type::Bytea, each().map(|place| Some(&of(place).payload)))
        .array(Type::Text, each().map(|place| text(&of(place).content_type)))
        .array(
            Type::Text,
            each().map(|place| {
                let pairs = of(place).attributes.iter();
                text(&json(pairs.map(|(name, value)| (name.as_str(), value.as_str()))))
            }),
        )
        .array(Type::Text, each().map(|place| text(&of(place).ordering_key)))
        .array(
            Type::Int8,
            each().map(|place| of(place).priority.map(|of| i64::from(of).to_be_bytes())),
        )
        .array(Type::Timestamptz, each().map(|place| at(deliver_us(of(place), now_us))))
        .array(Type::Timestamptz, each().map(|place| at(expires_us(of(place)))))
}

/// The chain of a row that tells one.
fn chain(row: &Row) -> Chain {
    let target = Target { namespace: row.text(0).into(), name: row.text(1).into() };
    Chain { target, ordering_key: row.text(2).into() }
}

/// The message of a row, as it was sent.
fn message(row: &Row) -> OutboxMessage {
    let sent = Message {
        priority: row.number(3).map(|priority| priority.clamp(0, 9) as u32),
        delivery_time: row.moment(4).map(|at| DeliveryTime::DeliverAt(time(at))),
        expires_at: row.moment(5).map(time),
        ..read_message(row, row.text(0), attributes(&row.text(1)), row.text(2))
    };
    OutboxMessage { target_namespace: row.text(6), target: row.text(7), message: Some(sent) }
}

fn other(statement: Statement, parameters: Parameters) -> Operation {
    Operation::Other { statement, parameters, versions: 0 }
}

fn place(row: &Row) -> Place {
    Place { lsn: row.version.max(0) as u64, index: 0 }
}

impl Postgres {
    /// Carries out a Write with messages: like a Transact, and stores the messages if it is committed.
    pub(super) async fn write_with_messages(
        &self,
        context: &Context<'_>,
        request: &[u8],
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let transact = TransactRequest::decode(request).map_err(malformed)?;
        let messages = messages(request)?;
        let ids: Vec<_> = (0..messages.len()).map(|index| message_id(context, index)).collect();
        let with = |parameters| with_messages(parameters, &ids, &messages, context.now_us);
        if self.transact_with(context, transact, (Statement::Write, with), reply).await? {
            for id in &ids {
                wire::put_bytes(&mut reply.head, MESSAGE_IDS, id.as_bytes());
            }
        }
        Ok(())
    }

    /// Learns which messages the outbox of a namespace holds: all of them, or those behind the newest that is known. Only a look at
    /// all finds what an earlier connection has committed late.
    ///
    /// # Errors
    /// The backend is away; worth trying again.
    pub async fn outbox_refresh(&self, context: &Context<'_>, all: bool) -> Result<(), Error> {
        let newest = self.outboxes.borrow().newest(context.namespace).filter(|_| !all);
        let mut after = newest.map_or(0, signed);
        loop {
            let parameters = Parameters::default().int8(after).int8(ROWS_MAX as i64);
            let answer = self.read(context, vec![other(Statement::OutboxList, parameters)]).await?;
            let mut outboxes = self.outboxes.borrow_mut();
            for (_, row) in &answer.rows {
                after = after.max(row.version);
                let known = (row.expires_us.unwrap_or_default(), chain(row));
                outboxes.insert(context.namespace, place(row), known);
            }
            if answer.rows.len() < ROWS_MAX {
                return Ok(());
            }
        }
    }

    /// The oldest messages of a chain, at most so many.
    ///
    /// # Errors
    /// The backend is away; worth trying again.
    pub async fn outbox_messages(
        &self,
        context: &Context<'_>,
        chain: &Chain,
        count: usize,
    ) -> Result<Vec<Outgoing>, Error> {
        let oldest = self.outboxes.borrow().oldest(context.namespace, chain, count);
        let ids = oldest.iter().map(|(place, _)| Some(signed(*place).to_be_bytes()));
        let parameters = Parameters::default().array(Type::Int8, ids).int8(BYTES_MAX);
        let answer = self.read(context, vec![other(Statement::OutboxRead, parameters)]).await?;
        let rows = || answer.rows.iter().map(|(_, row)| row);
        // One that is not there any more was taken out by hand.
        let mut outboxes = self.outboxes.borrow_mut();
        for (gone, _) in oldest.iter().filter(|(known, _)| rows().all(|row| place(row) != *known)) {
            outboxes.remove(context.namespace, *gone);
        }
        let fits = rows().take_while(|row| row.value.is_some());
        Ok(fits
            .map(|row| Outgoing {
                place: place(row),
                accepted_us: row.expires_us.unwrap_or_default(),
                message: message(row),
            })
            .collect())
    }

    /// Deletes messages that have arrived.
    ///
    /// # Errors
    /// The backend is away; they are relayed again.
    pub async fn outbox_done(&self, context: &Context<'_>, arrived: &[Place]) -> Result<(), Error> {
        let ids = arrived.iter().map(|place| Some(signed(*place).to_be_bytes()));
        let parameters = Parameters::default().array(Type::Int8, ids);
        self.write(context, vec![other(Statement::OutboxDone, parameters)]).await?;
        let mut outboxes = self.outboxes.borrow_mut();
        for place in arrived {
            outboxes.remove(context.namespace, *place);
        }
        Ok(())
    }
}

/// The `id` of a row.
fn signed(place: Place) -> i64 {
    i64::try_from(place.lsn).unwrap_or(i64::MAX)
}
