//! What `prism queue`, `prism stream` and `prism pubsub` have in common: how far an answer has come, and messages as text and JSON.
//!
//! JSON holds a payload as `payload` where it is UTF-8, else as `payload_base64`; one object a line.

use std::collections::HashMap;

use prism_proto::google::rpc;
use prism_proto::prism::r#type::v1::{Delivery, Message, Position};
use serde_json::{Map, Value, json};

use super::Exit;
use super::output::{base64, line, printable, shown_value, text};
use super::reach::Standing;

/// How an answer stands.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// How many results there were.
    pub(super) results: u64,
    /// After so many no more are wanted.
    limit: Option<u64>,
    /// Nothing is a result of its own: exit code 4.
    wants_some: bool,
    /// Something was not done: exit code 5.
    pub(super) is_refused: bool,
}

impl Told {
    pub(super) fn upto(limit: Option<u64>) -> Self {
        Told { limit, ..Told::default() }
    }

    pub(super) fn some() -> Self {
        Told { wants_some: true, ..Told::default() }
    }

    /// Whether there is room for one more result, which then counts.
    pub(super) fn takes(&mut self) -> bool {
        let takes = !self.is_enough();
        self.results += u64::from(takes);
        takes
    }
}

impl Standing for Told {
    fn exit(&self) -> Exit {
        match (self.is_refused, self.wants_some && self.results == 0) {
            (true, _) => Exit::NotApplied,
            (false, true) => Exit::NotFound,
            (false, false) => Exit::Ok,
        }
    }

    fn is_enough(&self) -> bool {
        self.limit.is_some_and(|limit| self.results >= limit)
    }
}

/// NAME=VALUE, split at the first `=`.
pub(super) fn attributes(given: &[String]) -> Result<HashMap<String, String>, String> {
    let pair = |one: &String| match one.split_once('=') {
        Some((name, value)) => Ok((name.to_string(), value.to_string())),
        None => Err(format!("`{one}` is not NAME=VALUE")),
    };
    given.iter().map(pair).collect()
}

/// Something that was done: a word for people, an object for programs.
pub(super) fn done(word: &str, object: Value, json: bool) -> Vec<u8> {
    if json { line(object) } else { text(word) }
}

/// What became of each receipt.
pub(super) fn outcomes<'a>(
    receipts: &[String],
    statuses: impl Iterator<Item = Option<&'a rpc::Status>>,
    (word, json): (&str, bool),
    told: &mut Told,
) -> Vec<u8> {
    let mut shown = Vec::new();
    for (receipt, status) in receipts.iter().zip(statuses) {
        told.is_refused |= status.is_some();
        let error = status.map(|status| status.message.clone());
        shown.extend(match (json, error) {
            (true, error) => {
                line(json!({ "receipt": receipt, "done": error.is_none(), "error": error }))
            }
            (false, None) => text(&format!("{}\t{word}", printable(receipt))),
            (false, Some(error)) => {
                text(&format!("{}\trefused: {}", printable(receipt), printable(&error)))
            }
        });
    }
    shown
}

/// Bytes under a name, or in base64 under another.
pub(super) fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.into(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), base64(bytes).into()),
    };
}

/// Attributes and a media type, where there are any.
pub(super) fn put_beside(
    object: &mut Map<String, Value>,
    content_type: &str,
    attributes: &HashMap<String, String>,
) {
    if !content_type.is_empty() {
        object.insert("content_type".into(), content_type.into());
    }
    if !attributes.is_empty() {
        object.insert("attributes".into(), json!(attributes));
    }
}

pub(super) fn message_map(message: &Message) -> Map<String, Value> {
    let mut object = Map::from_iter([("id".into(), Value::from(message.id.as_str()))]);
    put_bytes(&mut object, "payload", &message.payload);
    put_beside(&mut object, &message.content_type, &message.attributes);
    if !message.ordering_key.is_empty() {
        object.insert("ordering_key".into(), message.ordering_key.as_str().into());
    }
    object
}

/// A delivery: its receipt, if it has one, and its payload; all of it as JSON.
pub(super) fn delivery(delivery: &Delivery, topic: Option<&str>, json: bool) -> Vec<u8> {
    let message = delivery.message.clone().unwrap_or_default();
    if !json {
        let payload = shown_value(&message.payload);
        return match &*delivery.receipt {
            "" => format!("{payload}\n").into_bytes(),
            receipt => text(&format!("{}\t{payload}", printable(receipt))),
        };
    }
    let mut object = message_map(&message);
    if let Some(topic) = topic {
        object.insert("topic".into(), topic.into());
    }
    if !delivery.receipt.is_empty() {
        object.insert("receipt".into(), delivery.receipt.as_str().into());
    }
    object.insert("attempt".into(), delivery.attempt.into());
    object.insert("sent_at".into(), delivery.sent_at.map(|time| time.to_string()).into());
    line(Value::Object(object))
}

/// A place as PARTITION:OFFSET.
pub(super) fn place(position: &Position) -> String {
    format!("{}:{}", position.partition, position.offset)
}

/// A place that was told as PARTITION:OFFSET.
pub(super) fn read_place(text: &str) -> Result<Position, String> {
    let place = text.split_once(':').and_then(|(partition, offset)| {
        let partition = partition.parse().ok()?;
        Some(Position { partition, offset: offset.to_string() })
    });
    place.ok_or_else(|| format!("`{text}` is not PARTITION:OFFSET"))
}
