//! What the rows of queues and topics have in common: columns of a message, and a message from columns.

use std::collections::HashMap;

use prism_proto::prism::r#type::v1::Message;

use super::codec::Row;

/// A value of a column.
pub(super) fn column(bytes: &[u8]) -> Option<Box<[u8]>> {
    Some(bytes.into())
}

/// Attributes as the column has them: an object of texts.
pub(super) fn json<'a>(attributes: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let object: serde_json::Map<_, _> =
        attributes.map(|(name, value)| (name.to_owned(), value.into())).collect();
    serde_json::Value::Object(object).to_string()
}

/// Attributes from the column; what is no text, written by hand, is told as JSON writes it.
pub(super) fn attributes(json: &str) -> HashMap<String, String> {
    let Ok(serde_json::Value::Object(object)) = serde_json::from_str(json) else {
        return HashMap::new();
    };
    let text = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    object.into_iter().map(|(name, value)| (name, text(value))).collect()
}

/// The message of a row: its key is the id, its value the payload.
pub(super) fn read_message(
    row: &Row,
    content_type: String,
    attributes: HashMap<String, String>,
    ordering_key: String,
) -> Message {
    Message {
        id: String::from_utf8_lossy(&row.key).into_owned(),
        content_type,
        attributes,
        ordering_key,
        payload: row.value.clone().unwrap_or_default(),
        ..Message::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were() {
        let given = [("country", "CH"), ("note", "\"quoted\" é\t")];
        let read = attributes(&json(given.into_iter()));
        assert_eq!(read, given.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        assert_eq!(attributes(r#"{"n": 7, "deep": {"a": null}}"#)["deep"], r#"{"a":null}"#);
        assert!(attributes("[]").is_empty() && attributes("nonsense").is_empty());
    }
}
