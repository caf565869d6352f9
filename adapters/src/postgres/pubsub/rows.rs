//! Events as rows, and back.

use prism_proto::prism::r#type::v1::Position;
use prism_proto::view::types as view;

use super::super::batch::{Operation, moment};
use super::super::codec::Row;
use super::super::messages::{attributes, column, json, read_message};
use super::super::statements::Statement;
use super::PubSubStatement;
use crate::call::Context;
use crate::interfaces::message::{expires_us, time};
use crate::memory::pubsub::Event;

/// An event that is published.
pub(super) fn publish(
    context: &Context<'_>,
    topic: &str,
    id: &str,
    message: &view::Message<'_>,
) -> Operation {
    let expires_us = Some(expires_us(message)).filter(|us| *us != u64::MAX);
    let key = Some(message.ordering_key).filter(|key| !key.is_empty());
    let values = vec![
        column(topic.as_bytes()),
        column(id.as_bytes()),
        column(message.payload),
        column(message.content_type.as_bytes()),
        column(json(message.attributes.iter().map(|one| (one.key, one.value))).as_bytes()),
        key.and_then(|key| column(key.as_bytes())),
        expires_us.and_then(|us| column(&moment(us))),
        column(&moment(context.now_us)),
    ];
    Operation::Row { statement: Statement::PubSub(PubSubStatement::Publish), values }
}

/// The event of a row of one of the statements that tell events.
pub(super) fn event(row: &Row) -> Event {
    let expires_us = row.moment(4);
    let mut message = read_message(row, row.text(1), attributes(&row.text(2)), row.text(3));
    message.expires_at = expires_us.map(time);
    Event {
        topic: row.text(0).into(),
        sent_us: row.expires_us.unwrap_or_default(),
        expires_us: expires_us.unwrap_or(u64::MAX),
        message,
    }
}

/// Where an event is.
pub(super) fn position(id: i64) -> Position {
    Position { partition: 0, offset: id.to_string() }
}
