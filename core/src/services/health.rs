//! `grpc.health.v1.Health`: whether this process serves, and each of its services.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Poll, Waker};

use prism_adapters::{Error, Kind};
use prism_io::grpc::Message;
use prism_io::rt;
use prism_io::server::StreamCall;
use prism_proto::grpc::health::v1::health_check_response::ServingStatus;
use prism_proto::grpc::health::v1::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use prost::Message as _;
use slab::Slab;

use crate::shard::StreamPlace;
use crate::status;

/// Whether this shard serves.
pub(crate) struct Health {
    services: Vec<&'static str>,
    serving: Cell<bool>,
    watchers: RefCell<Slab<Waker>>,
}

impl Health {
    /// The health of `services`, which serve until told otherwise.
    pub(crate) fn new(services: Vec<&'static str>) -> Self {
        Self { services, serving: Cell::new(true), watchers: RefCell::default() }
    }

    /// The names of all services that answer here.
    pub(crate) fn services(&self) -> &[&'static str] {
        &self.services
    }

    /// From now on nothing serves.
    pub(crate) fn stop(&self) {
        self.serving.set(false);
        self.watchers.borrow().iter().for_each(|(_, waker)| waker.wake_by_ref());
    }

    fn status(&self, service: &str) -> ServingStatus {
        // The empty name stands for the process.
        match service.is_empty() || self.services.contains(&service) {
            false => ServingStatus::ServiceUnknown,
            true if self.serving.get() => ServingStatus::Serving,
            true => ServingStatus::NotServing,
        }
    }

    /// Waits until nothing serves any more.
    pub(crate) async fn stopped(&self) {
        let mut place = Place { health: self, key: None };
        std::future::poll_fn(|context| {
            if !self.serving.get() {
                return Poll::Ready(());
            }
            let mut watchers = self.watchers.borrow_mut();
            match place.key {
                Some(key) => watchers[key].clone_from(context.waker()),
                None => place.key = Some(watchers.insert(context.waker().clone())),
            }
            Poll::Pending
        })
        .await;
    }
}

/// A watcher's place; given up when it is dropped.
struct Place<'a> {
    health: &'a Health,
    key: Option<usize>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.health.watchers.borrow_mut().remove(key);
        }
    }
}

fn encoded(status: ServingStatus) -> Vec<u8> {
    HealthCheckResponse { status: status.into() }.encode_to_vec()
}

fn service_of(message: &[u8]) -> Result<String, Error> {
    HealthCheckRequest::decode(message).map(|request| request.service).map_err(|error| {
        Error::new(
            Kind::InvalidArgument,
            "REQUEST_MALFORMED",
            format!("the request is not a HealthCheckRequest: {error}"),
        )
    })
}

/// `Check`: the encoded answer.
pub(crate) fn check(health: &Health, message: &[u8]) -> Result<Vec<u8>, Error> {
    let service = service_of(message)?;
    match health.status(&service) {
        ServingStatus::ServiceUnknown => Err(Error::new(
            Kind::NotFound,
            "SERVICE_UNKNOWN",
            "no such service is served here; ask with an empty name for the whole server",
        )),
        status => Ok(encoded(status)),
    }
}

/// `List`: the status of the process, under the empty name, and of each service.
pub(crate) fn list(health: &Health, message: &[u8]) -> Result<Vec<u8>, Error> {
    HealthListRequest::decode(message).map_err(|error| {
        let text = format!("the request is not a HealthListRequest: {error}");
        Error::new(Kind::InvalidArgument, "REQUEST_MALFORMED", text)
    })?;
    let names = std::iter::once("").chain(health.services.iter().copied());
    let statuses = names
        .map(|name| {
            let status = health.status(name).into();
            (name.to_owned(), HealthCheckResponse { status })
        })
        .collect();
    Ok(HealthListResponse { statuses }.encode_to_vec())
}

/// `Watch`: the status now and after each change, until the caller goes.
pub(crate) fn watch(health: Rc<Health>, stream: StreamCall, message: &[u8], place: StreamPlace) {
    let service = match service_of(message) {
        Ok(service) => service,
        Err(error) => return status::with_status(&error, |status| stream.fail(status)),
    };
    rt::spawn(async move {
        let _place = place;
        loop {
            let known = health.status(&service);
            if stream.send(Message::new(&encoded(known))).await.is_err() {
                return;
            }
            if !health.serving.get() {
                // The last word of a server that drains: the watch must not hold up its end.
                let error =
                    Error::new(Kind::Unavailable, "SHUTTING_DOWN", "this server is shutting down");
                return status::with_status(&error, |status| stream.fail(status));
            }
            let mut changed = std::pin::pin!(health.stopped());
            let mut closed = std::pin::pin!(stream.closed());
            let gone = std::future::poll_fn(|context| {
                if closed.as_mut().poll(context).is_ready() {
                    return Poll::Ready(true);
                }
                changed.as_mut().poll(context).map(|()| false)
            })
            .await;
            if gone {
                return;
            }
        }
    });
}
