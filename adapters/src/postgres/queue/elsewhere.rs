//! Payloads that are not in a message's row: the row says where they are, in attributes that no caller can give (their names have a
//! dot), so that a person sees it too.
//!
//! Whoever puts payloads elsewhere does so before the message is sent here, and says so by its identity.

use std::cell::RefCell;
use std::collections::HashMap;

use prism_proto::prism::r#type::v1::Message;

use crate::kafka::payloads::Place;

/// The attribute that names the place, `<partition>/<offset>`.
const PLACE: &str = "prism.kafka";

/// The attribute that says how long the payload is, in bytes; `queue_0002.sql` counts with it.
const BYTES: &str = "prism.bytes";

/// A payload that is elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elsewhere {
    pub(crate) place: Place,
    pub(crate) bytes: usize,
    /// When it goes, µs since the epoch; the message expires then at the latest.
    pub(crate) expires_us: u64,
}

impl Elsewhere {
    /// As attributes.
    pub(super) fn attributes(&self) -> [(&'static str, String); 2] {
        let (partition, offset) = self.place;
        [(PLACE, format!("{partition}/{offset}")), (BYTES, self.bytes.to_string())]
    }
}

/// Takes the place out of a message's attributes; absent where the payload is in the message itself.
pub(crate) fn take_place(message: &mut Message) -> Option<Place> {
    let text = message.attributes.remove(PLACE)?;
    message.attributes.remove(BYTES);
    let (partition, offset) = text.split_once('/')?;
    Some((partition.parse().ok()?, offset.parse().ok()?))
}

/// Messages that are about to be sent and whose payload is elsewhere, by identity.
#[derive(Default)]
pub(crate) struct Announced(RefCell<HashMap<Box<str>, Elsewhere, ahash::RandomState>>);

/// Messages that are announced at most; those that never came after all are forgotten by it.
const ANNOUNCED_MAX: usize = 64 * 1024;

impl Announced {
    /// What is known of a message.
    pub(crate) fn of(&self, id: &str) -> Option<Elsewhere> {
        let announced = self.0.borrow();
        if announced.is_empty() { None } else { announced.get(id).copied() }
    }

    pub(crate) fn announce(&self, id: &str, payload: Elsewhere) {
        let mut announced = self.0.borrow_mut();
        if announced.len() >= ANNOUNCED_MAX {
            announced.clear();
        }
        announced.insert(id.into(), payload);
    }

    /// The message has come.
    pub(crate) fn settle(&self, id: &str) {
        self.0.borrow_mut().remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_comes_back_out_of_the_attributes_and_leaves_the_others() {
        let payload = Elsewhere { place: (3, i64::MAX), bytes: 7, expires_us: u64::MAX };
        let own = [("kind", "x".to_owned())];
        let all = own.iter().cloned().chain(payload.attributes());
        let attributes = all.map(|(name, value)| (name.to_owned(), value)).collect();
        let mut message = Message { attributes, ..Message::default() };
        assert_eq!(take_place(&mut message), Some((3, i64::MAX)));
        assert_eq!(message.attributes, [("kind".to_owned(), "x".to_owned())].into());
        assert_eq!(take_place(&mut message), None);
    }

    #[test]
    fn only_what_was_announced_is_elsewhere() {
        let announced = Announced::default();
        let payload = Elsewhere { place: (0, 1), bytes: 2, expires_us: 3 };
        announced.announce("a", payload);
        assert_eq!((announced.of("a"), announced.of("b")), (Some(payload), None));
        announced.settle("a");
        assert_eq!(announced.of("a"), None);
    }
}
