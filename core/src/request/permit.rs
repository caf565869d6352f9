//! Whether a call may go on: it names a namespace that is served, its caller may call that, it offers the method, and its quota has
//! room.

use std::cell::Cell;

use prism_adapters::{Error, Kind, reader};
use prism_proto::catalogue::{Interface, Method};
use prism_proto::wire;

use super::Call;
use crate::access::Gate;
use crate::config::ClientApi;
use crate::namespaces::{Namespace, Namespaces};

/// The reason of a refusal because no such namespace is served.
pub(crate) const NAMESPACE_UNKNOWN: &str = "NAMESPACE_UNKNOWN";

/// Where calls come in: the namespaces that there are, who may call them, and what they may use.
pub(crate) trait Door {
    fn namespaces(&self) -> &Namespaces;

    /// Who may what; `None`: everybody everything.
    fn gate(&self) -> Option<&Gate>;

    /// Counts a call of so many bytes against its namespace's quota, or refuses it.
    fn charge(&self, namespace: &Namespace, call: &Call, bytes: usize) -> Result<(), Error>;
}

/// The namespace that a call is about, if it offers the method and its caller may call it: the one that the request names, or of
/// a reader the one that holds the source, which its caller has to be allowed to read too. `seen` learns which it names.
#[inline]
pub(crate) fn permit<'a, D: Door>(
    door: &'a D,
    call: &Call,
    message: &[u8],
    seen: &Cell<Option<usize>>,
) -> Result<&'a Namespace, Error> {
    let method = call.method;
    let name = wire::namespace_of(message).map_err(malformed)?;
    let namespace = door.namespaces().get(name);
    seen.set(namespace.map(|namespace| namespace.index));
    if let Some(gate) = door.gate() {
        gate.admit(call, name, namespace)?;
    }
    let Some(namespace) = namespace else {
        return Err(unknown(door.namespaces(), name));
    };
    let is_reader = namespace.api == ClientApi::Reader;
    if is_reader && !reader::serves(method) {
        return Err(not_offered(namespace, method));
    }
    let called = namespace;
    let namespace = match is_reader && !called.reads.is_empty() {
        true => {
            let source = read_by(door.namespaces(), called, message)?;
            if let Some(gate) = door.gate() {
                gate.admit(call, &source.name, Some(source))?;
            }
            source
        }
        false => called,
    };
    if !method.offered_by(namespace.offers) {
        return Err(not_offered(namespace, method));
    }
    if message.len() > called.terms.message_bytes_max() {
        return Err(Error::new(
            Kind::ResourceExhausted,
            "MESSAGE_TOO_LARGE",
            format!(
                "the request has {} bytes, namespace {} takes {}; raise its max_message_size or send less",
                message.len(),
                called.name,
                called.terms.message_bytes_max()
            ),
        )
        .with("namespace", called.name.to_string()));
    }
    door.charge(namespace, call, message.len())?;
    Ok(namespace)
}

/// Which of the namespaces that a reader reads holds the source of a request.
fn read_by<'a>(
    namespaces: &'a Namespaces,
    reader: &Namespace,
    message: &[u8],
) -> Result<&'a Namespace, Error> {
    let model = reader::model_of(message)?;
    let mut read = reader.reads.iter().map(|at| namespaces.at(*at));
    read.find(|namespace| namespace.api.model() == model).ok_or_else(|| {
        let message = format!(
            "namespace {} reads none that holds {model} data: add one to its `reads`, or call that namespace itself",
            reader.name
        );
        Error::new(Kind::Unimplemented, "SOURCE_NOT_OFFERED", message)
            .with("namespace", reader.name.to_string())
    })
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
pub(super) fn unknown(namespaces: &Namespaces, name: &str) -> Error {
    if name.is_empty() {
        return Error::field(
            "NAMESPACE_MISSING",
            "namespace",
            "set field 1, namespace, in every request",
        );
    }
    let served = namespaces.iter().filter(|namespace| namespace.terms.is_served());
    let served: Vec<&str> = served.take(5).map(|namespace| &*namespace.name).collect();
    // The name is the caller's: it is shown, cut, but never becomes a label.
    let shown: String = name.chars().filter(|character| !character.is_control()).take(63).collect();
    Error::new(
        Kind::NotFound,
        NAMESPACE_UNKNOWN,
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
                None => {
                    let any: Vec<_> = method.needs_any().iter().map(Interface::name).collect();
                    format!("it needs one of {}", any.join(", "))
                }
            }
        ),
    )
    .with("namespace", namespace.name.to_string())
    .with("interface", interface)
}
