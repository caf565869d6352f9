//! TLS handshakes of new connections: a bounded number at a time, each for a bounded time, counted by what became of them.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::Service;
use super::listen::{Begun, Connections};
use crate::h2::Refusal;
use crate::tls::{Acceptor, Failure};
use crate::{clock, net, rt};

/// How one shard accepts TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificates, and how they are replaced.
    pub acceptor: Acceptor,
    /// Most handshakes at a time; a connection that comes on top is closed at once and counted.
    pub handshakes_max: usize,
    /// How long a handshake may take.
    pub timeout: Duration,
}

/// What became of the handshakes of one shard since the start.
#[derive(Default)]
pub struct Handshakes {
    /// Under way.
    pub in_flight: Cell<usize>,
    /// Done, with all that a handshake takes.
    pub full: Cell<u64>,
    /// Done, by taking an earlier connection up again.
    pub resumed: Cell<u64>,
    failed: [Cell<u64>; Failure::KINDS.len()],
}

impl Handshakes {
    /// How many failed, by [`Failure::KINDS`].
    pub fn failed(&self, kind: usize) -> u64 {
        self.failed[kind].get()
    }
}

fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

fn has_expired(stream: &net::Stream) -> bool {
    let now_s = clock::wall_us() / 1_000_000;
    stream.peer_identity().is_some_and(|peer| peer.validity.until_s < now_s)
}

fn expired() -> rustls::Error {
    rustls::Error::InvalidCertificate(rustls::CertificateError::Expired)
}

/// One handshake that is under way.
struct InFlight(Rc<Connections>);

impl InFlight {
    fn begin(connections: &Rc<Connections>, handshakes_max: usize) -> Option<Self> {
        let handshakes = connections.handshakes();
        if handshakes.in_flight.get() >= handshakes_max {
            connections.traffic().refuse(Refusal::Handshakes, 1);
            return None;
        }
        handshakes.in_flight.set(handshakes.in_flight.get() + 1);
        Some(Self(connections.clone()))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let in_flight = &self.0.handshakes().in_flight;
        in_flight.set(in_flight.get() - 1);
    }
}

/// Starts the handshake of a new connection, which is served when that is done.
pub(super) fn begin<S: Service>(
    tls: &Tls,
    stream: net::Stream,
    peer: SocketAddr,
    begun: Begun<S>,
    connections: &Rc<Connections>,
) {
    let Some(in_flight) = InFlight::begin(connections, tls.handshakes_max) else { return };
    let (acceptor, timeout, connections) = (tls.acceptor.clone(), tls.timeout, connections.clone());
    // A read that is given up stays with the kernel, and the socket with it, until the peer sends something or it is closed.
    let Ok(closer) = stream.closer() else { return };
    rt::spawn(async move {
        let result = rt::timeout(timeout, stream.accept(&acceptor)).await;
        drop(in_flight);
        let handshakes = connections.handshakes();
        if result.is_none() {
            closer.close();
            connections.traffic().refuse(Refusal::HandshakeTime, 1);
        }
        match result.unwrap_or(Err(Failure::TimedOut)) {
            // A ticket may outlive the certificate that it stands for.
            Ok(stream) if has_expired(&stream) => {
                count(&handshakes.failed[Failure::Untrusted(expired()).kind()]);
            }
            Ok(stream) => {
                count(if stream.is_resumed() { &handshakes.resumed } else { &handshakes.full });
                begun.serve(stream, peer, &connections);
            }
            Err(failure) => count(&handshakes.failed[failure.kind()]),
        }
    });
}
