//! Accepting connections, and looking after those that are there.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::guard::{Peers, Place, Traffic};
use super::secured::{self, Handshakes, Tls};
use super::{Connection, Options, Service, buffers};
use crate::h2::Refusal;
use crate::{clock, net, rt};

/// How often time-outs of connections are looked at.
const SWEEP: Duration = Duration::from_millis(250);
/// How long accepting rests after the system refused a socket (out of files or memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One of the connections that are open, and of its peer's, until its task has ended.
pub(super) struct Open(
    Rc<Cell<usize>>,
    #[expect(dead_code, reason = "held until it is dropped")] Place,
);

impl Open {
    fn new(count: &Rc<Cell<usize>>, place: Place) -> Self {
        count.set(count.get() + 1);
        Self(count.clone(), place)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The connections of one shard.
#[derive(Default)]
pub struct Connections {
    list: RefCell<Vec<Weak<Connection>>>,
    open: Rc<Cell<usize>>,
    traffic: Rc<Traffic>,
    peers: Rc<Peers>,
    accepted: Cell<u64>,
    draining: Cell<bool>,
    tls: Option<Tls>,
    handshakes: Handshakes,
}

impl Connections {
    /// Connections that speak TLS from the first byte on.
    pub fn with_tls(tls: Tls) -> Self {
        Self { tls: Some(tls), ..Self::default() }
    }

    /// What became of TLS handshakes.
    pub fn handshakes(&self) -> &Handshakes {
        &self.handshakes
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.open.get()
    }

    /// What has passed over them.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Connections that were accepted since the start.
    pub fn accepted(&self) -> u64 {
        self.accepted.get()
    }

    /// Stops accepting, and tells every peer to go elsewhere.
    pub fn drain(&self) {
        self.draining.set(true);
        self.each(|connection| connection.drain());
    }

    /// Whether every call has ended and every answer has been handed to the kernel.
    pub fn is_drained(&self) -> bool {
        let mut drained = true;
        self.each(|connection| {
            drained &= connection.open_streams() == 0 && connection.is_flushed()
        });
        drained
    }

    /// Whether every answer that was given has been handed to the kernel.
    pub fn is_flushed(&self) -> bool {
        let mut flushed = true;
        self.each(|connection| flushed &= connection.is_flushed());
        flushed
    }

    /// Calls that have not ended, over all connections.
    pub fn open_streams(&self) -> usize {
        let mut streams = 0;
        self.each(|connection| streams += connection.open_streams());
        streams
    }

    /// Ends every connection as it stands.
    pub fn abort(&self) {
        self.each(|connection| connection.abort());
    }

    fn each(&self, mut act: impl FnMut(&Connection)) {
        for connection in self.list.borrow().iter().filter_map(Weak::upgrade) {
            act(&connection);
        }
    }

    /// Looks after the time-outs of all connections, and after what they hold together, for ever.
    pub async fn watch(self: Rc<Self>) {
        let mut swept_ns = clock::monotonic_ns();
        loop {
            if rt::timeout(SWEEP, self.traffic.overfull.wait()).await.is_some() {
                self.relieve();
            }
            let now_ns = clock::monotonic_ns();
            if now_ns - swept_ns >= SWEEP.as_nanos() as u64 {
                swept_ns = now_ns;
                self.each(|connection| connection.handle_timeout(now_ns));
                self.end_revoked();
                buffers::rest();
                self.list.borrow_mut().retain(|connection| connection.strong_count() > 0);
            }
        }
    }

    /// Ends the connections whose client's certificate has been revoked.
    fn end_revoked(&self) {
        let Some(tls) = &self.tls else { return };
        let (number, revoked) = tls.acceptor.revoked();
        self.each(|connection| connection.check_revocation(number, &revoked));
    }

    /// Ends the connections that hold most, until the others have room again.
    fn relieve(&self) {
        while self.traffic.is_overfull() {
            let list: Vec<_> = self.list.borrow().iter().filter_map(Weak::upgrade).collect();
            let largest = list.iter().max_by_key(|connection| connection.held_bytes());
            let Some(largest) = largest.filter(|largest| largest.held_bytes() > 0) else { return };
            largest.cut_off(Refusal::ShardBuffers, "this shard's buffers are full");
        }
    }
}

/// Accepts connections of `listener` and serves each of them until it ends, or until `connections` drain.
pub async fn accept<S: Service>(
    listener: net::Listener,
    service: Rc<S>,
    options: Options,
    connections: Rc<Connections>,
) {
    connections.traffic.set_buffered_bytes_max(options.buffered_bytes_max);
    while !connections.draining.get() {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                rt::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if connections.draining.get() {
            continue;
        }
        if connections.open.get() >= options.connections_max {
            connections.traffic.refuse(Refusal::Connections, 1);
            continue;
        }
        let place = connections.peers.admit(peer.ip(), options.connections_per_peer_max);
        let Some(place) = place else {
            connections.traffic.refuse(Refusal::ConnectionsPerPeer, 1);
            continue;
        };
        connections.accepted.set(connections.accepted.get() + 1);
        let open = Open::new(&connections.open, place);
        match &connections.tls {
            None => serve(stream, peer, open, &service, &options, &connections),
            Some(tls) => {
                let begun = Begun { service: service.clone(), options: options.clone(), open };
                secured::begin(tls, stream, peer, begun, &connections);
            }
        }
    }
}

/// What a connection is served with once its handshake is done.
pub(super) struct Begun<S> {
    service: Rc<S>,
    options: Options,
    open: Open,
}

impl<S: Service> Begun<S> {
    pub(super) fn serve(
        self,
        stream: net::Stream,
        peer: SocketAddr,
        connections: &Rc<Connections>,
    ) {
        serve(stream, peer, self.open, &self.service, &self.options, connections);
    }
}

/// Starts the task of a connection.
fn serve<S: Service>(
    stream: net::Stream,
    peer: SocketAddr,
    open: Open,
    service: &Rc<S>,
    options: &Options,
    connections: &Rc<Connections>,
) {
    let connection =
        Connection::new(options, peer, stream.peer_identity(), connections.traffic.clone());
    let connection = Rc::new(connection);
    connections.list.borrow_mut().push(Rc::downgrade(&connection));
    if connections.draining.get() {
        // The drain began amid the handshake.
        connection.drain();
    }
    rt::spawn(connection.serve(stream, service.clone(), open));
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::StreamCall;
    use super::*;
    use crate::grpc::{ClientConnection, Limits, Message, RequestHead, Route};
    use crate::h2::{Output, StreamId};

    /// Answers every call with `REPLY_BYTES`.
    struct Large;

    const REPLY_BYTES: usize = 4 << 20;
    /// More than the sockets of a loopback connection hold.
    const CALLS: usize = 12;

    impl Service for Large {
        fn request(
            &self,
            connection: &Rc<Connection>,
            stream: StreamId,
            _route: u32,
            _head: RequestHead,
            _message: Bytes,
        ) {
            let tail = Bytes::from(vec![0; REPLY_BYTES]);
            connection.respond(stream, Message { head: b"", tail }, &[]);
        }

        fn open(&self, _call: StreamCall, _route: u32, _head: RequestHead) {}

        fn turn_ended(&self) {}
    }

    fn server(listener: std::net::TcpListener) -> Rc<Connections> {
        let connections = Rc::new(Connections::default());
        let options = Options::new(
            Limits::default(),
            |_| Some(Route { id: 1, client_streaming: false, server_streaming: false }),
            10,
        );
        let listener = net::Listener::new(listener).unwrap();
        rt::spawn(accept(listener, Rc::new(Large), options, connections.clone()));
        connections
    }

    /// A client that asks for more than it will ever read.
    async fn mute_client(address: SocketAddr) -> (net::ReadHalf, net::WriteHalf) {
        let limits = Limits {
            stream_window_bytes: 1 << 30,
            connection_window_bytes: 1 << 30,
            ..Limits::default()
        };
        let mut client = ClientConnection::new(&limits, "test", 0);
        for _ in 0..CALLS {
            client.call(b"/test.Large/Get", Message::new(b"a"), &[], None).unwrap();
        }
        let mut output = Output::default();
        client.swap_output(&mut output);
        let (read, mut write) = net::Stream::connect(address).await.unwrap().split();
        write.write_all(output.inline).await.0.unwrap();
        (read, write)
    }

    /// Waits until the server is stuck in a write.
    async fn stuck(connections: &Connections) {
        let mut now_ns = 0;
        let mut unchanged = 0;
        let mut sent = 0;
        while unchanged < 1000 {
            rt::yield_now().await;
            now_ns += 1;
            connections.each(|connection| connection.check_progress(now_ns));
            let sent_now = connections.traffic.sent_bytes.get();
            let stuck = sent_now > 0 && sent_now == sent && !connections.is_flushed();
            unchanged = if stuck { unchanged + 1 } else { 0 };
            sent = sent_now;
        }
    }

    async fn gone(connections: &Connections) {
        let gone = async {
            while connections.open() > 0 {
                rt::yield_now().await;
            }
        };
        rt::timeout(Duration::from_secs(20), gone).await.expect("its task ends");
    }

    #[test]
    fn a_peer_that_does_not_read_cannot_hold_an_aborted_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        rt::run(async move {
            let connections = server(listener);
            let _client = mute_client(address).await;
            stuck(&connections).await;
            assert_eq!(connections.open(), 1);
            connections.abort();
            gone(&connections).await;
            assert_eq!(connections.traffic().faulted.get(), 0);
        })
        .unwrap();
    }

    #[test]
    fn a_peer_that_does_not_read_is_ended_in_time() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        rt::run(async move {
            let connections = server(listener);
            let _client = mute_client(address).await;
            stuck(&connections).await;
            let check = |now_ns| connections.each(|connection| connection.check_progress(now_ns));
            let period_ns = Limits::default().slow_reader_min.period_ns;
            check(period_ns / 2);
            assert_eq!(connections.traffic().faulted.get(), 0);
            check(2 * period_ns);
            check(3 * period_ns);
            gone(&connections).await;
            assert_eq!(connections.traffic().faulted.get(), 1);
        })
        .unwrap();
    }
}
