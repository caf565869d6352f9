//! Messages of a transaction before its commit: whether their targets take them, their caller may send there, and there is room.
//!
//! What passes is stored with the transaction's data; the shard's outbox relays it afterwards.

use prism_adapters::{Error, Kind, interfaces, outbox};
use prism_io::clock;
use prism_proto::prism::transact::v1::OutboxMessage;

use super::{Call, Origin, audited};
use crate::config::ClientApi;
use crate::namespaces::Namespace;
use crate::shard::{RETRY_DELAY, Shard};

/// What the call of a relayed message has beside what its caller gave: an identity, a moment for a delay.
const RELAYED_BYTES: usize = 128;

/// Refuses a Write whose messages could not be relayed, where its caller is.
///
/// # Errors
/// The namespace has no outbox, or a target does not take its message from this caller.
pub(super) async fn admit(
    shard: &Shard,
    call: &Call,
    namespace: &Namespace,
    message: &[u8],
) -> Result<(), Error> {
    admit_in(namespace)?;
    // Those of a transaction step by step were looked at one by one.
    if !matches!(call.origin, Origin::Caller { .. }) {
        return Ok(());
    }
    let mut targets: Vec<&Namespace> = Vec::new();
    for (index, message) in outbox::messages(message)?.iter().enumerate() {
        let target = check(shard, call, &format!("messages[{index}]"), message)?;
        if targets.iter().all(|known| known.index != target.index) {
            targets.push(target);
        }
    }
    for target in targets {
        audited::send_to(shard, call, target).await?;
    }
    Ok(())
}

/// Refuses messages in a namespace that has no outbox.
pub(super) fn admit_in(namespace: &Namespace) -> Result<(), Error> {
    if namespace.has_outbox {
        return Ok(());
    }
    let message = format!(
        "the backend of namespace {} does not store messages with its data (the outbox): leave `messages` out, and send them \
         when the transaction is committed, or use a namespace with `client_api: transact` on the embedded store or on PostgreSQL",
        namespace.name
    );
    Err(Error::new(Kind::Unimplemented, "OUTBOX_NOT_OFFERED", message)
        .with("namespace", namespace.name.to_string()))
}

/// The namespace that a message goes to. Refuses one that its target does not take, or not from this caller; `field` is what the
/// message is called.
pub(super) fn check<'a>(
    shard: &'a Shard,
    call: &Call,
    field: &str,
    message: &OutboxMessage,
) -> Result<&'a Namespace, Error> {
    let name = &*message.target_namespace;
    let target = shard.namespaces.get(name);
    if name.is_empty() {
        let expected = "must name a namespace of queues, topics or streams";
        return Err(Error::field("TARGET_MISSING", format!("{field}.target_namespace"), expected));
    }
    if let Some(gate) = &shard.gate {
        gate.admit(call, name, target)?;
    }
    let Some(target) = target else {
        let expected = "no such namespace is served here";
        return Err(Error::field("TARGET_UNKNOWN", format!("{field}.target_namespace"), expected));
    };
    if target.api == ClientApi::Reader {
        let expected = "must be a namespace that can be written to, which a reader never is";
        return Err(Error::field("TARGET_INVALID", format!("{field}.target_namespace"), expected));
    }
    if message.message.is_none() {
        let expected = "must be given; its payload may be empty";
        return Err(Error::field("MESSAGE_MISSING", format!("{field}.message"), expected));
    }
    let (method, request) = outbox::call(target.api.model(), field, message, clock::wall_us())?;
    if request.len() + RELAYED_BYTES > target.terms.message_bytes_max() {
        let message = format!(
            "{field} has {} bytes as a request, its target namespace {} takes {}; send less, or raise its max_message_size",
            request.len() + RELAYED_BYTES,
            target.name,
            target.terms.message_bytes_max()
        );
        return Err(Error::new(Kind::ResourceExhausted, "MESSAGE_TOO_LARGE", message)
            .with("namespace", target.name.to_string()));
    }
    let valid = interfaces::validate(method, &request, target.offers, &target.limits());
    valid.map(|()| target).map_err(|error| {
        error.within(|name| name_of(field, name)).with("namespace", target.name.to_string())
    })
}

/// What a field of the call to a target is called in the request that holds its message as `field`.
fn name_of(field: &str, name: &str) -> String {
    match name.split_once('.') {
        Some((_, of_message)) => format!("{field}.message.{of_message}"),
        None => format!("{field}.target"),
    }
}

/// Refuses a Write whose messages would be more than the outbox of its namespace, whose home is here, may hold. What is on its
/// way to the disk is not counted: the namespace's bytes in flight bound it.
pub(crate) fn room(shard: &Shard, namespace: &Namespace, message: &[u8]) -> Result<(), Error> {
    let known = shard.backend(namespace).outboxes();
    let held = known.map_or(0, |known| known.borrow().facts(namespace.id).messages);
    if held + outbox::count(message) as u64 <= namespace.terms.backlog_records_max() {
        return Ok(());
    }
    let text = format!(
        "{held} messages of namespace {} wait to be relayed, about as many as may: retry when their targets have caught up, or \
         raise the namespace's backlog_records_max",
        namespace.name
    );
    Err(Error::new(Kind::ResourceExhausted, "OUTBOX_FULL", text)
        .with("namespace", namespace.name.to_string())
        .retry_after(RETRY_DELAY))
}
