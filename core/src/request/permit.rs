//! Whether a call may go on: it names a namespace that is served, and that offers the method.

use std::cell::Cell;

use prism_adapters::{Error, Kind};
use prism_proto::catalogue::Method;
use prism_proto::wire;

use crate::namespaces::Namespace;
use crate::shard::Shard;

/// The namespace that a request names, if it may be called with `method`.
pub(crate) fn permit<'a>(
    shard: &'a Shard,
    method: Method,
    message: &[u8],
    seen: &Cell<Option<usize>>,
) -> Result<&'a Namespace, Error> {
    let name = wire::namespace_of(message).map_err(malformed)?;
    let Some(namespace) = shard.namespaces.get(name) else {
        return Err(unknown(shard, name));
    };
    seen.set(Some(namespace.index));
    if !method.offered_by(namespace.offers) {
        return Err(not_offered(namespace, method));
    }
    if message.len() > namespace.message_bytes_max {
        return Err(Error::new(
            Kind::ResourceExhausted,
            "MESSAGE_TOO_LARGE",
            format!(
                "the request has {} bytes, namespace {} takes {}; raise its max_message_size or send less",
                message.len(),
                namespace.name,
                namespace.message_bytes_max
            ),
        )
        .with("namespace", namespace.name.to_string()));
    }
    Ok(namespace)
}

/// What a request that cannot be decoded is answered.
#[cold]
pub(crate) fn malformed(error: wire::DecodeError) -> Error {
    Error::new(
        Kind::InvalidArgument,
        "REQUEST_MALFORMED",
        format!(
            "the request is not a valid message: {error}; regenerate the client from Prism's .proto files"
        ),
    )
}

#[cold]
fn unknown(shard: &Shard, name: &str) -> Error {
    if name.is_empty() {
        return Error::field(
            "NAMESPACE_MISSING",
            "namespace",
            "set field 1, namespace, in every request",
        );
    }
    let served: Vec<&str> =
        shard.namespaces.iter().take(5).map(|namespace| &*namespace.name).collect();
    // The name is the caller's: it is shown, cut, but never becomes a label.
    let shown: String = name.chars().filter(|character| !character.is_control()).take(63).collect();
    Error::new(
        Kind::NotFound,
        "NAMESPACE_UNKNOWN",
        format!("namespace {shown:?} is not served here; served are: {}", served.join(", ")),
    )
    .with("namespace", shown)
}

#[cold]
fn not_offered(namespace: &Namespace, method: Method) -> Error {
    let interface = method.interface().map_or("", |interface| interface.name());
    Error::new(
        Kind::Unimplemented,
        "INTERFACE_NOT_OFFERED",
        format!(
            "namespace {} (client_api: {}) does not offer {}; {}",
            namespace.name,
            namespace.api.name(),
            method.path(),
            match method.interface() {
                Some(interface) =>
                    format!("a namespace with client_api: {} offers {interface}", interface.model()),
                None => format!("it needs one of {:?}", method.needs_any()),
            }
        ),
    )
    .with("namespace", namespace.name.to_string())
    .with("interface", interface)
}
