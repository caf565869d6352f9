//! What the connections of a shard may take together: how many of one peer there are, and how many bytes all of them hold.
//!
//! It counts and says no; who is to be ended for it is decided by `listen`, which knows the connections.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::sync::Arc;

use super::registry::Registry;
use crate::grpc::Counts;
use crate::h2::{REFUSALS, Refusal};
use crate::rt::Signal;

/// What has passed over all connections of a shard since the start, and what they hold.
pub struct Traffic {
    /// Bytes read.
    pub received_bytes: Cell<u64>,
    /// Bytes written.
    pub sent_bytes: Cell<u64>,
    /// Connections that were ended for a fault of the peer's.
    pub faulted: Cell<u64>,
    /// Calls and messages.
    pub counts: Cell<Counts>,
    /// The connections that are open; may be given to another thread.
    pub registry: Arc<Registry>,
    /// The number of the newest connection.
    pub(super) newest: Cell<u64>,
    /// Connections whose peers hung up without closing TLS.
    pub truncated: Cell<u64>,
    /// Clients that began TLS on a port without it.
    pub unexpected_tls: Cell<u64>,
    refused: [Cell<u64>; REFUSALS],
    buffered_bytes: Cell<usize>,
    buffered_bytes_max: Cell<usize>,
    /// Set when connections hold more than they may.
    pub(super) overfull: Signal,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            received_bytes: Cell::new(0),
            sent_bytes: Cell::new(0),
            faulted: Cell::new(0),
            counts: Cell::default(),
            registry: Arc::default(),
            newest: Cell::new(0),
            truncated: Cell::new(0),
            unexpected_tls: Cell::new(0),
            refused: std::array::from_fn(|_| Cell::new(0)),
            buffered_bytes: Cell::new(0),
            buffered_bytes_max: Cell::new(usize::MAX),
            overfull: Signal::default(),
        }
    }
}

impl Traffic {
    /// How often each kind of refusal has happened.
    pub fn refused(&self, mut each: impl FnMut(Refusal, u64)) {
        for (&kind, count) in Refusal::ALL.iter().zip(&self.refused) {
            each(kind, count.get());
        }
    }

    /// Bytes that connections hold: unfinished messages, and answers that wait to be taken.
    pub fn buffered_bytes(&self) -> usize {
        self.buffered_bytes.get()
    }

    pub(super) fn refuse(&self, kind: Refusal, count: u32) {
        let counter = &self.refused[kind as usize];
        counter.set(counter.get() + u64::from(count));
    }

    pub(super) fn set_buffered_bytes_max(&self, bytes: usize) {
        self.buffered_bytes_max.set(bytes);
    }

    /// A connection that held `before` bytes holds `now`.
    #[inline]
    pub(super) fn hold(&self, before: usize, now: usize) {
        self.buffered_bytes.set(self.buffered_bytes.get() - before + now);
        if now > before && self.is_overfull() {
            self.overfull.set();
        }
    }

    #[inline]
    pub(super) fn is_overfull(&self) -> bool {
        self.buffered_bytes.get() > self.buffered_bytes_max.get()
    }
}

/// Connections by peer.
#[derive(Default)]
pub(super) struct Peers(RefCell<HashMap<IpAddr, usize>>);

/// A connection's place among those of its peer; given back when it is dropped.
pub(super) struct Place {
    peers: Rc<Peers>,
    peer: IpAddr,
}

impl Peers {
    /// A place for a connection of `address`, unless its peer has `max` already.
    pub(super) fn admit(self: &Rc<Self>, address: IpAddr, max: usize) -> Option<Place> {
        let peer = peer_of(address);
        let mut counts = self.0.borrow_mut();
        let count = counts.entry(peer).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Place { peers: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.peers.0.borrow_mut();
        if let Some(count) = counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}

/// Who is meant by an address: of IPv6 the first 64 bits, because one host has all the rest to itself.
fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let network = v6.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_so_many_places_and_gives_them_back() {
        let peers = Rc::new(Peers::default());
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = peers.admit(address("10.0.0.1"), 2);
        let second = peers.admit(address("::ffff:10.0.0.1"), 2);
        assert!(first.is_some() && second.is_some());
        assert!(peers.admit(address("10.0.0.1"), 2).is_none());
        assert!(peers.admit(address("10.0.0.2"), 2).is_some());
        drop(second);
        assert!(peers.admit(address("10.0.0.1"), 2).is_some());
        drop(first);
        assert!(peers.0.borrow().is_empty());
        let one = peers.admit(address("2001:db8:0:1::1"), 1);
        assert!(one.is_some() && peers.admit(address("2001:db8:0:1:ffff::2"), 1).is_none());
        assert!(peers.admit(address("2001:db8:0:2::1"), 1).is_some());
    }

    #[test]
    fn what_is_held_is_summed_and_bounded() {
        let traffic = Traffic::default();
        traffic.set_buffered_bytes_max(100);
        traffic.hold(0, 60);
        traffic.hold(0, 40);
        assert!(!traffic.is_overfull());
        traffic.hold(40, 41);
        assert!(traffic.is_overfull());
        traffic.hold(60, 0);
        assert_eq!((traffic.buffered_bytes(), traffic.is_overfull()), (41, false));
        traffic.refuse(Refusal::Pings, 3);
        traffic
            .refused(|kind, count| assert_eq!(count, if kind == Refusal::Pings { 3 } else { 0 }));
    }
}
