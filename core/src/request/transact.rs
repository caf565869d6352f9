//! TransactService's single calls: KeyValue's Transact under another name, with bounds of their own.
//!
//! Both requests and both answers have the same fields under the same numbers, so that the message is taken as it is: one
//! implementation, one kind of record in the log, one outcome to remember. A Write with messages has records of its own kind
//! ([`outbox`](super::outbox)).

use std::collections::HashSet;

use prism_adapters::{Error, Kind, outbox};
use prism_proto::catalogue::Method;
use prism_proto::view::keyvalue::TransactRequest;

use super::Origin;
use super::permit::malformed;

/// Distinct keys of a transaction, those of conditions included.
pub(super) const KEYS_MAX: usize = 100;
/// Bytes of a transaction.
pub(super) const BYTES_MAX: usize = 4 << 20;

/// The method that a call is carried out as.
///
/// # Errors
/// What TransactService refuses beyond KeyValue.
#[inline]
pub(super) fn carried_out_as(
    method: Method,
    origin: &Origin,
    message: &[u8],
) -> Result<Method, Error> {
    match method {
        Method::TRANSACT_EXECUTE | Method::TRANSACT_WRITE => {
            // The shard's own are commits, which were held to the bounds step by step.
            if matches!(origin, Origin::Caller { .. }) {
                check(message)?;
            }
            let has_messages = method == Method::TRANSACT_WRITE && outbox::count(message) > 0;
            Ok(if has_messages { method } else { Method::KEYVALUE_TRANSACT })
        }
        // Of this method only the shard itself makes calls that are no streams.
        Method::TRANSACT_TRANSACTION if matches!(origin, Origin::Caller { .. }) => {
            Err(Error::new(Kind::Internal, "CALL_SHAPE", "a transaction step by step is a stream"))
        }
        _ => Ok(method),
    }
}

#[cold]
fn check(message: &[u8]) -> Result<(), Error> {
    if message.len() > BYTES_MAX {
        return Err(too_large());
    }
    let request = TransactRequest::decode(message).map_err(malformed)?;
    let conditions = request.conditions.iter().map(|condition| condition.key);
    let operations = request.operations.iter().map(|operation| operation.key);
    let keys: HashSet<&str> = conditions.chain(operations).take(2 * KEYS_MAX + 1).collect();
    if keys.len() > KEYS_MAX { Err(too_many_keys()) } else { Ok(()) }
}

/// A transaction of more keys than it may have.
#[cold]
pub(super) fn too_many_keys() -> Error {
    let expected =
        format!("a transaction has at most {KEYS_MAX} distinct keys, those of conditions included");
    Error::field("TOO_MANY_KEYS", "operations", expected)
}

/// A transaction of more bytes than it may have.
#[cold]
pub(super) fn too_large() -> Error {
    let message = format!("a transaction has at most {BYTES_MAX} bytes; make several of it");
    Error::new(Kind::ResourceExhausted, "TRANSACTION_TOO_LARGE", message)
}
