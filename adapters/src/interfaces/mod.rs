//! One trait per interface, and what holds for its requests on every backend.
//!
//! Each interface is declared once (`interface!`); from the declaration come the trait that a
//! backend implements and the module, named like the interface, that takes a call to its method.

use prism_proto::catalogue::{Interface, Interfaces, Method};
use prism_proto::wire::{self, DecodeError, Value};

use crate::backend::not_offered;
use crate::error::{Error, Kind};
use crate::limits::Limits;

/// Declares an interface: a module with its name, its trait, and its methods.
macro_rules! interface {
    (
        $(#[$attribute:meta])*
        $interface:ident: $Interface:ident {
            $(unary $UNARY:ident => $unary:ident($Unary:ident) -> $UnaryReply:ident;)*
            $(stream $STREAM:ident => $stream:ident($Stream:ident) -> $StreamReply:ident;)*
            $(record $RECORD:ident => $record:ident;)*
            $(ready $READY:ident => $ready:ident($Ready:ident);)*
        }
    ) => {
        $(#[$attribute])*
        #[allow(async_fn_in_trait)] // Futures stay on their shard: they need no `Send`.
        pub trait $Interface {
            $(
                #[doc = concat!("Replies with a `", stringify!($UnaryReply), "`.")]
                async fn $unary(
                    &self,
                    context: &Context<'_>,
                    request: $Unary<'_>,
                    reply: &mut Reply,
                ) -> Result<(), Error>;
            )*
            $(
                #[doc = concat!("Sends `", stringify!($StreamReply), "`s.")]
                async fn $stream<S: PageSink>(
                    &self,
                    context: &Context<'_>,
                    request: $Stream<'_>,
                    sink: &mut S,
                ) -> Result<(), Error>;
            )*
            $(
                /// Carries out what a stream of this method had written ([`PageSink::write`]); only where the
                /// backend's state is the log.
                #[allow(unused_variables)]
                async fn $record(
                    &self,
                    context: &Context<'_>,
                    request: &[u8],
                    reply: &mut Reply,
                ) -> Result<(), Error> {
                    Err(wrong_shape(Method::$RECORD))
                }
            )*
            $(
                /// Comes back when the call may find something, at once where it may now; may be early. The call
                /// itself never waits: whoever calls waits here, within the caller's time and outside the lane.
                async fn $ready(&self, context: &Context<'_>, request: $Ready<'_>);
            )*
        }

        #[doc = concat!("The way of a call to its method of [`", stringify!($Interface), "`].")]
        pub mod $interface {
            #[allow(unused_imports)]
            use super::*;

            /// The interface.
            pub const INTERFACE: Interface = Interface::$Interface;

            /// The interface's methods, as they are declared here.
            pub const METHODS: &[Method] = &[$(Method::$UNARY,)* $(Method::$STREAM,)*];

            /// Decodes a request and checks it.
            #[inline]
            pub(crate) fn validate(
                method: Method,
                request: &[u8],
                limits: &Limits,
            ) -> Result<(), Error> {
                match method {
                    $(Method::$UNARY => {
                        $Unary::decode(request).map_err(malformed)?.check(limits)
                    })*
                    $(Method::$STREAM => {
                        $Stream::decode(request).map_err(malformed)?.check(limits)
                    })*
                    _ => Err(wrong_shape(method)),
                }
            }

            /// Decodes a unary call, checks it if it was not checked before, and has it answered.
            #[inline]
            #[allow(unused_variables)]
            pub async fn unary<B: $Interface>(
                backend: &B,
                context: &Context<'_>,
                method: Method,
                request: &[u8],
                check: bool,
                reply: &mut Reply,
            ) -> Result<(), Error> {
                match method {
                    $(Method::$UNARY => {
                        let request = $Unary::decode(request).map_err(malformed)?;
                        if check {
                            request.check(context.limits)?;
                        }
                        backend.$unary(context, request, reply).await
                    })*
                    $(Method::$RECORD => backend.$record(context, request, reply).await,)*
                    _ => Err(wrong_shape(method)),
                }
            }

            /// Waits until a call that may wait may find something; see [`crate::Backend::ready`].
            #[allow(unused_variables)]
            pub async fn ready<B: $Interface>(
                backend: &B,
                context: &Context<'_>,
                method: Method,
                request: &[u8],
            ) {
                match method {
                    $(Method::$READY => {
                        if let Ok(request) = $Ready::decode(request) {
                            backend.$ready(context, request).await
                        }
                    })*
                    _ => {}
                }
            }

            /// Decodes a streaming call and has it answered.
            #[allow(unused_variables)]
            pub async fn stream<B: $Interface, S: PageSink>(
                backend: &B,
                context: &Context<'_>,
                method: Method,
                request: &[u8],
                sink: &mut S,
            ) -> Result<(), Error> {
                match method {
                    $(Method::$STREAM => {
                        let request = $Stream::decode(request).map_err(malformed)?;
                        backend.$stream(context, request, sink).await
                    })*
                    _ => Err(wrong_shape(method)),
                }
            }
        }
    };
}

pub mod keyvalue;
mod keyvalue_checks;
mod keyvalue_logged;
pub(crate) mod keyvalue_replies;
pub(crate) mod keyvalue_selection;

mod logged;
pub mod message;
mod message_checks;
pub mod pubsub;
mod pubsub_checks;
pub mod queue;
mod queue_checks;
pub mod stream;
mod stream_checks;

pub use keyvalue_logged::read_from_log;
pub use logged::{LogPlace, answers_from_log, reply_from_log};

pub use keyvalue::{
    keyvalue_basic, keyvalue_batch, keyvalue_cas, keyvalue_scan, keyvalue_transactional,
    keyvalue_ttl,
};
pub use pubsub::{
    pubsub_basic, pubsub_filtering, pubsub_ordering, pubsub_persistent, pubsub_wildcards,
};
pub use queue::{queue_basic, queue_dead_letter, queue_delayed, queue_priority, queue_visibility};
pub use stream::{
    stream_basic, stream_consumer_groups, stream_partitioning, stream_replay, stream_retention,
};

/// Says of a request all that can be said without looking at what is stored.
///
/// `offered` is what the namespace's plan offers. Nothing that fails here may get a record in the
/// log; what passes may be carried out without being checked again.
///
/// # Errors
/// UNIMPLEMENTED `INTERFACE_NOT_OFFERED`; INVALID_ARGUMENT with the fields at fault.
#[inline]
pub fn validate(
    method: Method,
    request: &[u8],
    offered: Interfaces,
    limits: &Limits,
) -> Result<(), Error> {
    check_offered(method, request, offered)?;
    validate_offered(method, request, offered, limits)
}

/// The same for a call that relays a message of an outbox, which has its identity already.
///
/// # Errors
/// As [`validate`].
pub fn validate_relayed(
    method: Method,
    request: &[u8],
    offered: Interfaces,
    limits: &Limits,
) -> Result<(), Error> {
    check_needs(method, request, offered)?;
    validate_offered(method, request, offered, limits)
}

#[inline]
fn validate_offered(
    method: Method,
    request: &[u8],
    offered: Interfaces,
    limits: &Limits,
) -> Result<(), Error> {
    macro_rules! by_interface {
        ($($interface:ident),* $(,)?) => {
            match method.interface() {
                $(Some($interface::INTERFACE) => $interface::validate(method, request, limits),)*
                _ if matches!(method, Method::TRANSACT_WRITE | Method::TRANSACT_TRANSACTION) => {
                    crate::outbox::validate(method, request, limits)
                }
                _ => crate::reader::validate(method, request, offered),
            }
        };
    }
    by_interface!(
        keyvalue_basic,
        keyvalue_scan,
        keyvalue_ttl,
        keyvalue_transactional,
        keyvalue_batch,
        keyvalue_cas,
        pubsub_basic,
        pubsub_wildcards,
        pubsub_persistent,
        pubsub_filtering,
        pubsub_ordering,
        queue_basic,
        queue_visibility,
        queue_dead_letter,
        queue_priority,
        queue_delayed,
        stream_basic,
        stream_consumer_groups,
        stream_replay,
        stream_retention,
        stream_partitioning,
    )
}

/// Whether the method, and every field of the request that needs an interface of its own, is offered; and that no message brings
/// an identity, which is for Prism to mint.
///
/// # Errors
/// UNIMPLEMENTED `INTERFACE_NOT_OFFERED`, INVALID_ARGUMENT `MESSAGE_ID_GIVEN`.
#[inline]
pub fn check_offered(method: Method, request: &[u8], offered: Interfaces) -> Result<(), Error> {
    check_needs(method, request, offered)?;
    message::check_no_id(method, request)
}

#[inline]
fn check_needs(method: Method, request: &[u8], offered: Interfaces) -> Result<(), Error> {
    if !method.offered_by(offered) {
        return Err(not_offered("", method));
    }
    for need in method.field_needs() {
        if !offered.contains(need.interface) && is_set(request, need.path).map_err(malformed)? {
            return Err(field_not_offered(method, need.path, need.interface));
        }
    }
    Ok(())
}

/// A request that says of itself whether it is valid, without looking at what is stored.
pub trait Check {
    /// INVALID_ARGUMENT with the field at fault.
    fn check(&self, limits: &Limits) -> Result<(), Error>;
}

/// INVALID_ARGUMENT: the bytes are not the message that they should be.
#[cold]
pub fn malformed(error: DecodeError) -> Error {
    let message = format!("the request is not a valid message: {error}");
    Error::new(Kind::InvalidArgument, "REQUEST_MALFORMED", message)
}

/// Whether the field at the end of `path` is there, in any element of what is repeated on the way.
fn is_set(message: &[u8], path: &[u32]) -> Result<bool, DecodeError> {
    let Some((&number, rest)) = path.split_first() else { return Ok(true) };
    for field in wire::fields(message) {
        let (found, value) = field?;
        if found != number {
            continue;
        }
        let set = match value {
            Value::Varint(value) if rest.is_empty() => value != 0,
            Value::Bytes(inner) => is_set(inner, rest)?,
            _ => rest.is_empty(),
        };
        if set {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cold]
fn field_not_offered(method: Method, path: &[u32], interface: Interface) -> Error {
    let numbers: Vec<_> = path.iter().map(u32::to_string).collect();
    let message = format!(
        "field {} of {} needs the interface {interface}, which this namespace does not offer: \
         leave it out, or ask for a plan on a backend that serves it",
        numbers.join("."),
        method.path()
    );
    Error::new(Kind::Unimplemented, "INTERFACE_NOT_OFFERED", message)
        .with("interface", interface.name())
}

#[cfg(test)]
fn assert_declared(interfaces: &[(Interface, &[Method])]) {
    for (interface, declared) in interfaces {
        let mut declared = declared.to_vec();
        declared.sort_unstable();
        assert_eq!(declared, interface.methods().collect::<Vec<_>>(), "{interface}");
    }
}
