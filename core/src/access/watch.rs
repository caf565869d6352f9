//! Streams that stand: what lets a stream in may end while it lasts, and then it ends too.
//!
//! A stream is ended when its token or certificate has expired, and when a new table ([`super::InForce`]) does not grant any more what
//! it was let in with, or does not take its token. Looked at in the shard's housekeeping, a bounded number at a time.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use prism_adapters::{Error, Kind};
use prism_io::rt::Signal;
use prism_io::server::Connection;
use slab::Slab;

use super::gate::{AUTHORIZATION, bearer, is_loopback, permission_denied, until_ns, wanted};
use super::{ANONYMOUS, Access, tokens};
use crate::config::access::AnonymousFrom;
use crate::namespaces::Namespace;
use crate::request::Call;

/// Streams that one look at a new table is for: to verify a token takes a tenth of a millisecond.
const CHECKED_AT_ONCE: usize = 32;

/// The streams of a shard's callers that stand.
#[derive(Default)]
pub(super) struct Watch {
    streams: RefCell<Slab<Rc<Watched>>>,
    /// The epoch of the table that they were let in by, or have been looked at for.
    epoch: Cell<u32>,
    to_check: RefCell<VecDeque<usize>>,
}

struct Watched {
    connection: Rc<Connection>,
    /// The value of `authorization`.
    authorization: Option<Box<[u8]>>,
    /// The one that it names, and the one that holds its data.
    namespaces: [u32; 2],
    wanted: u8,
    until_ns: Cell<u64>,
    /// Why it ends.
    end: RefCell<Option<Error>>,
    signal: Signal,
}

/// A stream's place among those that are watched; given back when it is dropped.
struct Place<'a> {
    watch: &'a Watch,
    key: usize,
    watched: Rc<Watched>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.watch.streams.borrow_mut().try_remove(self.key);
    }
}

impl Watch {
    /// Does `work` for as long as what its call was let in with holds.
    pub(super) async fn over<T>(
        &self,
        (connection, call): (&Rc<Connection>, &Call),
        namespaces: [&Namespace; 2],
        holds_until_ns: u64,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let watched = Rc::new(Watched {
            connection: connection.clone(),
            authorization: call.metadata.get(AUTHORIZATION).map(Into::into),
            namespaces: namespaces.map(|namespace| namespace.id),
            wanted: wanted(call.method),
            until_ns: Cell::new(holds_until_ns),
            end: RefCell::new(None),
            signal: Signal::default(),
        });
        let key = self.streams.borrow_mut().insert(watched.clone());
        let place = Place { watch: self, key, watched };
        let watched = &place.watched;
        let (mut work, mut end) = (pin!(work), pin!(watched.signal.wait()));
        std::future::poll_fn(|context| {
            if end.as_mut().poll(context).is_ready() {
                let error = watched.end.take().unwrap_or_else(holds_no_more);
                return Poll::Ready(Err(error));
            }
            work.as_mut().poll(context)
        })
        .await
    }

    /// Ends what has expired, and looks again at some where `access` is new.
    pub(super) fn look(&self, access: &Access, epoch: u32, now_ns: u64) {
        let streams = self.streams.borrow();
        let mut to_check = self.to_check.borrow_mut();
        if self.epoch.replace(epoch) != epoch {
            to_check.clear();
            to_check.extend(streams.iter().map(|(key, _)| key));
        }
        for _ in 0..CHECKED_AT_ONCE.min(to_check.len()) {
            // A place that was given to another stream meanwhile is looked at for nothing.
            let watched = to_check.pop_front().and_then(|key| streams.get(key));
            if let Some(watched) = watched {
                match watched.check(access) {
                    Ok(holds_until_ns) => watched.until_ns.set(holds_until_ns),
                    Err(error) => watched.finish(error),
                }
            }
        }
        for (_, watched) in streams.iter().filter(|(_, watched)| watched.until_ns.get() <= now_ns) {
            watched.finish(holds_no_more());
        }
    }
}

impl Watched {
    fn finish(&self, error: Error) {
        self.end.replace(Some(error));
        self.signal.set();
    }

    /// Until when it may go on by this table, monotonic ns.
    fn check(&self, access: &Access) -> Result<u64, Error> {
        let (row, holds_until_ns) = match (&self.authorization, self.connection.identity()) {
            (Some(value), _) => {
                let verified =
                    bearer(value).and_then(|token| tokens::verify(&access.issuers, token).ok());
                let verified = verified.ok_or_else(holds_no_more)?;
                (
                    access.row_of(&verified.subject, Some(verified.issuer)),
                    until_ns(verified.until_s),
                )
            }
            (None, Some(identity)) => {
                (access.row_of(&identity.name, None), until_ns(identity.validity.until_s))
            }
            (None, None) => match access.anonymous_from {
                Some(AnonymousFrom::Anywhere) => (ANONYMOUS, u64::MAX),
                Some(AnonymousFrom::Loopback) if is_loopback(&self.connection) => {
                    (ANONYMOUS, u64::MAX)
                }
                _ => return Err(holds_no_more()),
            },
        };
        let may = |namespace: &u32| access.rights(row, *namespace) & self.wanted != 0;
        if self.namespaces.iter().all(may) { Ok(holds_until_ns) } else { Err(permission_denied()) }
    }
}

/// What the caller of a stream hears whose token or certificate has ended.
#[cold]
fn holds_no_more() -> Error {
    let message = "the token or certificate that this call came with holds no more; call again with one that does";
    Error::new(Kind::Unauthenticated, "UNAUTHENTICATED", message)
}
