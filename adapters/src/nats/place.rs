//! The place of a delivery: what the server puts into the subject of its acknowledgement, and what a receipt is made of, so that receipts
//! need no memory and outlive Prism.

use bytes::Bytes;

use super::link::Outgoing;

/// What says that a delivery was dealt with.
pub(super) const ACKNOWLEDGED: &str = "+ACK";
/// What says that it is given back at once.
pub(super) const GIVEN_BACK: &str = "-NAK";

/// The place of a delivery, as the server puts it in the subject of its acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) attempt: u64,
    /// Its number in the stream.
    pub(super) sequence: u64,
    /// Its number among the deliveries of its consumer.
    pub(super) delivery: u64,
    /// When it was stored, ns since the epoch.
    pub(super) stored_ns: u64,
}

impl Place {
    /// `$JS.ACK.<stream>.<consumer>.<attempt>.<sequence>.<delivery>.<time>.<pending>`, or with domain and account before the stream, and
    /// maybe more behind.
    pub(super) fn of(reply: &str) -> Option<Self> {
        let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let numbers = match tokens.len() {
            7 => &tokens[2..],
            9.. => &tokens[4..],
            _ => return None,
        };
        let number = |index: usize| numbers.get(index)?.parse().ok();
        Some(Place {
            attempt: number(0)?,
            sequence: number(1)?,
            delivery: number(2)?,
            stored_ns: number(3)?,
        })
    }

    /// The subject of its acknowledgement to a consumer of a stream.
    pub(super) fn subject(&self, stream: &str, consumer: &str) -> String {
        let Place { attempt, sequence, delivery, stored_ns } = self;
        format!("$JS.ACK.{stream}.{consumer}.{attempt}.{sequence}.{delivery}.{stored_ns}.0")
    }

    /// The message that says to the consumer what has become of it.
    pub(super) fn settled(&self, stream: &str, consumer: &str, how: impl Into<Bytes>) -> Outgoing {
        Outgoing::plain(self.subject(stream, consumer), how.into())
    }

    /// What whoever has the delivery shows to acknowledge it; good for one incarnation of its consumer.
    pub(super) fn receipt(&self, incarnation: u128) -> String {
        let Place { attempt, sequence, delivery, stored_ns } = self;
        format!("{sequence:x}-{delivery:x}-{attempt:x}-{stored_ns:x}-{incarnation:x}")
    }

    /// Reads a receipt of this incarnation; nothing where it is none.
    pub(super) fn of_receipt(receipt: &str, incarnation: u128) -> Option<Self> {
        let mut words = receipt.split('-');
        let mut number = || u64::from_str_radix(words.next()?, 16).ok();
        let (sequence, delivery) = (number()?, number()?);
        let place = Place { sequence, delivery, attempt: number()?, stored_ns: number()? };
        // Read back it is the same: nobody has put anything else in.
        (receipt == place.receipt(incarnation)).then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { attempt: 2, sequence: 10, delivery: 12, stored_ns: 99 };

    #[test]
    fn a_place_is_read_from_either_form_of_a_reply() {
        for reply in [
            "$JS.ACK.EVENTS_orders.a=b.2.10.12.99.0",
            "$JS.ACK._.hash.EVENTS_orders.a=b.2.10.12.99.0",
            "$JS.ACK.hub.hash.EVENTS_orders.a=b.2.10.12.99.0.token",
        ] {
            assert_eq!(Place::of(reply), Some(PLACE), "{reply}");
        }
        assert_eq!(PLACE.subject("EVENTS_orders", "a=b"), "$JS.ACK.EVENTS_orders.a=b.2.10.12.99.0");
        for reply in ["", "$JS.ACK.", "$JS.ACK.s.c.1.2", "$JS.ACK.s.c.1.2.3.x.0", "orders.a"] {
            assert_eq!(Place::of(reply), None, "{reply}");
        }
    }

    #[test]
    fn a_receipt_is_good_for_its_incarnation_alone_and_cannot_be_written_otherwise() {
        let receipt = PLACE.receipt(7);
        assert_eq!(Place::of_receipt(&receipt, 7), Some(PLACE));
        for bad in ["", "nonsense", "0-0", "a-c-2-63", "a-c-2-63-7-7", "A-c-2-63-7", "+a-c-2-63-7"]
        {
            assert_eq!(Place::of_receipt(bad, 7), None, "{bad}");
        }
        assert_eq!(Place::of_receipt(&receipt, 8), None);
    }
}
