//! What Prism notes of a namespace's consumer groups and durable subscriptions: records of the compacted topic `_prism.groups.<namespace>`, with
//! the group's name in Kafka as the key and JSON as the value. A group that has none is not there for Prism.
//!
//! A shard reads the topic from where it has read before whenever somebody creates, joins, moves or looks at a group, so that several Prisms agree.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use rdkafka::message::Message as _;
use serde_json::{Value, json};

use super::Kafka;
use super::cluster::{Cluster, Outgoing, Outlet};
use super::errors::{Fault, too_many_groups};
use super::lane::make_compacted;
use super::link::Parcels;
use super::names::notes_topic;
use super::reader::{Found, Reader};
use super::tail::LOOK;
use crate::call::Context;
use crate::error::Error;

/// Groups and durable subscriptions of a namespace, at most.
const GROUPS_MAX: usize = 16 * 1024;

/// What is noted of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// When it was created, µs since the epoch: what tells it from another one that had its name.
    pub(super) since_us: u64,
    /// The topic, as Kafka calls it.
    pub(super) topic: String,
    /// Of a consumer group: any record may go to any member.
    pub(super) is_by_record: bool,
    /// Of a consumer group; the streams of a subscription tell their own.
    pub(super) ack_wait_ms: u64,
    pub(super) in_flight_max: u32,
    /// Of a subscription: what it hears; empty: everything.
    pub(super) filter: String,
    /// Of a subscription: it keeps the order.
    pub(super) is_ordered: bool,
    /// Where each partition began.
    pub(super) starts: Vec<u64>,
}

impl Note {
    fn to_json(&self) -> String {
        json!({
            "since-us": self.since_us,
            "topic": self.topic,
            "by-record": self.is_by_record,
            "ack-wait-ms": self.ack_wait_ms,
            "max-in-flight": self.in_flight_max,
            "filter": self.filter,
            "ordered": self.is_ordered,
            "starts": self.starts,
        })
        .to_string()
    }

    fn read(text: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(text).ok()?;
        let number = |name: &str| value[name].as_u64();
        let starts = value["starts"].as_array()?.iter().map(Value::as_u64);
        Some(Note {
            since_us: number("since-us")?,
            topic: value["topic"].as_str()?.to_owned(),
            is_by_record: value["by-record"].as_bool()?,
            ack_wait_ms: number("ack-wait-ms")?,
            in_flight_max: number("max-in-flight")?.try_into().ok()?,
            filter: value["filter"].as_str()?.to_owned(),
            is_ordered: value["ordered"].as_bool()?,
            starts: starts.collect::<Option<_>>()?,
        })
    }

    /// Whether nothing but the time and the place of their beginnings tells them apart.
    pub(super) fn is_like(&self, other: &Note) -> bool {
        let Note { since_us, starts, .. } = self.clone();
        *self == Note { since_us, starts, ..other.clone() }
    }

    /// Where a partition begins of which Kafka keeps nothing.
    pub(super) fn start(&self, partition: u32) -> u64 {
        self.starts.get(partition as usize).copied().unwrap_or(0)
    }
}

/// The notes of a namespace, as far as they were read.
#[derive(Default)]
struct Book {
    read_to: Cell<i64>,
    by_group: RefCell<HashMap<Box<str>, Rc<Note>, ahash::RandomState>>,
}

impl Book {
    fn take_in(&self, group: &str, text: Option<&[u8]>) {
        let mut by_group = self.by_group.borrow_mut();
        match text.and_then(Note::read) {
            None => by_group.remove(group),
            Some(note) => by_group.insert(group.into(), Rc::new(note)),
        };
    }
}

/// The notes of a shard's namespaces.
#[derive(Default)]
pub(super) struct Notes(RefCell<HashMap<u32, Rc<Book>, ahash::RandomState>>);

/// An offset, a group, and what is noted of it; nothing: it is gone.
type Line = (i64, Box<str>, Option<Vec<u8>>);

impl Kafka {
    /// What is noted of a group, as far as this shard has read.
    pub(super) fn known_note(&self, context: &Context<'_>, group: &str) -> Option<Rc<Note>> {
        self.book(context).by_group.borrow().get(group).cloned()
    }

    /// What is noted of a group now.
    pub(super) async fn note(
        &self,
        context: &Context<'_>,
        group: &str,
    ) -> Result<Option<Rc<Note>>, Error> {
        let (book, topic) = (self.book(context), notes_topic(context.namespace_name));
        if self.link.partitions(context, &topic, false).await?.is_some() {
            let from = book.read_to.get();
            let question =
                move |cluster: &Cluster, reader: &Reader| read_lines(cluster, reader, &topic, from);
            let (lines, end) = self.link.ask_reading(context, question).await?;
            for (offset, group, text) in lines {
                // Somebody else may have read on meanwhile.
                if offset >= book.read_to.get() {
                    book.take_in(&group, text.as_deref());
                }
            }
            book.read_to.set(book.read_to.get().max(end));
        }
        Ok(self.known_note(context, group))
    }

    /// Notes something of a group; nothing: it is gone.
    pub(super) async fn set_note(
        &self,
        context: &Context<'_>,
        group: &str,
        note: Option<&Note>,
    ) -> Result<(), Error> {
        let (book, topic) = (self.book(context), notes_topic(context.namespace_name));
        if note.is_some() && book.by_group.borrow().len() >= GROUPS_MAX {
            return Err(too_many_groups(context, GROUPS_MAX));
        }
        if self.link.partitions(context, &topic, false).await?.is_none() {
            let name = topic.clone();
            self.link.ask_in_turn(context, move |cluster| make_compacted(cluster, &name)).await?;
        }
        let text = note.map(Note::to_json);
        let send = |outlet: Outlet<'_>, mut parcels: Parcels| {
            outlet.send(Outgoing {
                topic: &topic,
                partition: Some(0),
                payload: text.as_ref().map(String::as_bytes),
                key: Some(group.as_bytes()),
                timestamp: None,
                headers: None,
                delivery_opaque: parcels.of(0),
            });
        };
        // Noting it again does no harm: it is part of no transaction.
        let landed = self.link.deliver_by(context, None, 1, send).await?;
        let landed = landed.into_iter().next().unwrap_or_else(|| Err(Fault::closed()));
        self.place(context, &topic, landed)?;
        book.take_in(group, text.as_ref().map(String::as_bytes));
        Ok(())
    }

    fn book(&self, context: &Context<'_>) -> Rc<Book> {
        self.notes.0.borrow_mut().entry(context.namespace).or_default().clone()
    }
}

/// What was noted from an offset on, and where that ends. Blocks.
fn read_lines(
    cluster: &Cluster,
    reader: &Reader,
    topic: &str,
    from: i64,
) -> Result<(Vec<Line>, i64), Fault> {
    let bounds = cluster.bounds(topic, 1, None)?;
    let bound = |of: &[i64]| of.first().copied().unwrap_or_default();
    let (from, end) = (from.max(bound(&bounds.first)), bound(&bounds.end));
    let mut lines = Vec::new();
    if from >= end {
        return Ok((lines, from));
    }
    reader.go_to(cluster, topic, &[(0, from)])?;
    let until = Instant::now() + cluster.config().answer_timeout;
    loop {
        match reader.look_for(LOOK) {
            Found::Record(record) if record.topic() == topic => {
                let offset = record.offset();
                if let Some(Ok(group)) = record.key().map(std::str::from_utf8) {
                    lines.push((offset, group.into(), record.payload().map(<[u8]>::to_vec)));
                }
                if offset + 1 >= end {
                    return Ok((lines, offset + 1));
                }
            }
            Found::End(_) => return Ok((lines, end)),
            // It goes on by itself when it can.
            Found::Record(_) | Found::Failure(_) | Found::Nothing => {}
        }
        if Instant::now() > until {
            return Err(Fault::unresponsive(cluster.config().answer_timeout));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_reads_back_and_nothing_else_is_one() {
        let note = Note {
            since_us: u64::MAX,
            topic: "orders.placed".to_owned(),
            is_by_record: true,
            ack_wait_ms: 30_000,
            in_flight_max: 100,
            filter: "kind = \"a\"".to_owned(),
            is_ordered: true,
            starts: vec![0, 7],
        };
        assert_eq!(Note::read(note.to_json().as_bytes()), Some(note.clone()));
        assert_eq!((note.start(1), note.start(2)), (7, 0));
        assert!(note.is_like(&Note { since_us: 1, starts: vec![], ..note.clone() }));
        assert!(!note.is_like(&Note { is_ordered: false, ..note.clone() }));
        for bad in ["", "{}", "[]", "{\"since-us\": 1}"] {
            assert_eq!(Note::read(bad.as_bytes()), None, "{bad}");
        }
    }
}
