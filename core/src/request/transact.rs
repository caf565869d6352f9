//! TransactService's single calls: KeyValue's Transact under another name, with bounds of their own.
//!
//! Both requests and both answers have the same fields under the same numbers, so that the message is taken as it is: one
//! implementation, one kind of record in the log, one outcome to remember.

use std::collections::HashSet;

use prism_adapters::{Error, Kind};
use prism_proto::catalogue::Method;
use prism_proto::view::keyvalue::TransactRequest;
use prism_proto::wire;

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
pub(super) fn carried_out_as(method: Method, message: &[u8]) -> Result<Method, Error> {
    match method {
        Method::TRANSACT_EXECUTE | Method::TRANSACT_WRITE => {
            check(method, message)?;
            Ok(Method::KEYVALUE_TRANSACT)
        }
        _ => Ok(method),
    }
}

#[cold]
fn check(method: Method, message: &[u8]) -> Result<(), Error> {
    /// The field `messages` of Write.
    const MESSAGES: u32 = 4;
    if message.len() > BYTES_MAX {
        return Err(too_large());
    }
    if method == Method::TRANSACT_WRITE {
        for field in wire::fields(message) {
            if field.map_err(malformed)?.0 == MESSAGES {
                return Err(no_outbox());
            }
        }
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

/// The refusal of messages in a transaction.
#[cold]
pub(super) fn no_outbox() -> Error {
    let message = "this build does not relay messages of a transaction yet (the outbox): leave `messages` out, and send \
                   them when the transaction is committed";
    Error::new(Kind::Unimplemented, "OUTBOX_NOT_OFFERED", message)
}
