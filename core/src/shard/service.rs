//! How calls come in: paths to methods, and each call into its slot.

use std::cell::OnceCell;
use std::rc::Rc;

use bytes::Bytes;
use prism_adapters::{Error, Kind};
use prism_io::grpc::{Message, RequestHead, Route};
use prism_io::h2::StreamId;
use prism_io::server::{Connection, Service, StreamCall};
use prism_proto::catalogue::{Access, Method};

use super::{Shard, control};
use crate::control::Method as Control;
use crate::request::{Call, Origin, stream, transaction};
use crate::{services, status};

/// Route numbers from here on are the services of gRPC itself; below are the stable numbers of methods.
const OWN: u32 = 1 << 16;
const HEALTH_CHECK: u32 = OWN;
const HEALTH_WATCH: u32 = OWN + 1;
const REFLECTION: u32 = OWN + 2;
const HEALTH_LIST: u32 = OWN + 3;
/// From here on the methods of NamespaceService, in their order.
const CONTROL: u32 = OWN + 16;

/// The services of gRPC that every shard answers.
pub(super) const OWN_SERVICES: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// The method behind a path.
pub(crate) fn route(path: &[u8]) -> Option<Route> {
    if let Some(method) = Method::by_path(path) {
        return Some(Route {
            id: u32::from(method.id()),
            client_streaming: method.client_streaming(),
            server_streaming: method.server_streaming(),
        });
    }
    let (id, client_streaming, server_streaming) = match path {
        b"/grpc.health.v1.Health/Check" => (HEALTH_CHECK, false, false),
        b"/grpc.health.v1.Health/List" => (HEALTH_LIST, false, false),
        b"/grpc.health.v1.Health/Watch" => (HEALTH_WATCH, false, true),
        b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        | b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => {
            (REFLECTION, true, true)
        }
        _ => {
            let of_path = |control: &Control| control.path().as_bytes() == path;
            (CONTROL + Control::ALL.iter().position(of_path)? as u32, false, false)
        }
    };
    Some(Route { id, client_streaming, server_streaming })
}

/// Whether what a route leads to changes nothing: reads, and the services of gRPC itself.
pub(crate) fn is_read(route: u32) -> bool {
    match (method(route), control_method(route)) {
        (Some(method), _) => method.access() == Access::Read,
        (None, Some(control)) => control.is_read(),
        (None, None) => true,
    }
}

fn control_method(route: u32) -> Option<Control> {
    Control::ALL.get(route.checked_sub(CONTROL)? as usize).copied()
}

fn method(route: u32) -> Option<Method> {
    u16::try_from(route).ok().and_then(Method::by_id)
}

/// A shard as what its connections hand their calls to.
pub(super) struct Front(pub(super) Rc<Shard>);

impl Service for Front {
    fn request(
        &self,
        connection: &Rc<Connection>,
        stream: StreamId,
        route: u32,
        head: RequestHead,
        message: Bytes,
    ) {
        let Some(method) = method(route) else {
            return match control_method(route) {
                Some(method) => control::ask(&self.0, connection, stream, method, head, &message),
                None => self.own_request(connection, stream, route, &head, &message),
            };
        };
        let received_ns = connection.received_ns();
        let span_ns = match head.timeout {
            Some(timeout) => u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX),
            None if stream::is_endless(method) => stream::NO_DEADLINE_NS,
            None => self.0.default_deadline_ns,
        };
        let call = Call {
            origin: Origin::Caller { connection: connection.clone(), stream },
            method,
            metadata: head.metadata,
            deadline_ns: received_ns.saturating_add(span_ns),
            received_ns,
            message,
            audited: OnceCell::new(),
            is_relayed: false,
        };
        if method.server_streaming() {
            stream::start(&self.0, connection.stream(stream), call);
        } else {
            self.0.start(call);
        }
    }

    fn open(&self, call: StreamCall, route: u32, head: RequestHead) {
        match method(route) {
            Some(Method::TRANSACT_TRANSACTION) => transaction::start(&self.0, call, head),
            Some(method) => stream::refuse_client_streaming(&self.0, call, method),
            None => match self.0.take_stream() {
                Some(place) => services::reflect(call, self.0.health.clone(), place),
                None => status::with_status(&stream::busy(), |status| call.fail(status)),
            },
        }
    }

    fn cancelled(&self, _: &Rc<Connection>, _: StreamId) {
        self.0.deadlines.caller_gone();
    }

    fn turn_ended(&self) {
        // Calls that others of the same pass have woken.
        if let Some(calls) = self.0.calls.get() {
            calls.poll_woken();
        }
    }
}

impl Front {
    fn own_request(
        &self,
        connection: &Rc<Connection>,
        stream_id: StreamId,
        route: u32,
        head: &RequestHead,
        message: &[u8],
    ) {
        let health = &self.0.health;
        match route {
            HEALTH_CHECK | HEALTH_LIST => {
                let answer = if route == HEALTH_LIST { services::list } else { services::check };
                match answer(health, message) {
                    Ok(answer) => connection.respond(stream_id, Message::new(&answer), &[]),
                    Err(error) => {
                        status::with_status(&error, |status| connection.fail(stream_id, status))
                    }
                }
            }
            HEALTH_WATCH => match self.0.take_stream() {
                Some(place) => {
                    let call = connection.stream(stream_id);
                    call.end_in(head.timeout);
                    services::watch(health.clone(), call, message, place)
                }
                None => status::with_status(&stream::busy(), |status| {
                    connection.fail(stream_id, status)
                }),
            },
            _ => {
                let error =
                    Error::new(Kind::Internal, "ROUTE_UNKNOWN", "a path was routed to no method");
                status::with_status(&error, |status| connection.fail(stream_id, status));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_routed_to_itself() {
        for expected in Method::all() {
            let route = route(expected.path().as_bytes()).unwrap();
            assert_eq!(method(route.id), Some(expected));
        }
        assert!(route(b"/prism.keyvalue.v1.KeyValueService/Gets").is_none());
        for expected in Control::ALL {
            let route = route(expected.path().as_bytes()).unwrap();
            assert_eq!(control_method(route.id), Some(expected));
            assert_eq!(is_read(route.id), expected.is_read());
        }
        for service in OWN_SERVICES {
            assert!(!service.starts_with("prism."));
        }
    }
}
