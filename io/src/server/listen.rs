//! Accepting connections, and looking after those that are there.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::{Connection, Options, Service};
use crate::{clock, net, rt};

/// How often time-outs of connections are looked at.
const SWEEP: Duration = Duration::from_millis(250);
/// How long accepting rests after the system refused a socket (out of files or memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What has passed over all connections of a shard since the start.
#[derive(Default)]
pub struct Traffic {
    /// Bytes read.
    pub received_bytes: Cell<u64>,
    /// Bytes written.
    pub sent_bytes: Cell<u64>,
    /// Connections that were ended for a fault of the peer's.
    pub faulted: Cell<u64>,
}

/// The connections of one shard.
#[derive(Default)]
pub struct Connections {
    list: RefCell<Vec<Weak<Connection>>>,
    open: Rc<Cell<usize>>,
    traffic: Rc<Traffic>,
    accepted: Cell<u64>,
    refused: Cell<u64>,
    draining: Cell<bool>,
}

impl Connections {
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

    /// Connections that were closed at once because there were too many.
    pub fn refused(&self) -> u64 {
        self.refused.get()
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

    /// Looks after the time-outs of all connections, for ever.
    pub async fn watch(self: Rc<Self>) {
        loop {
            rt::sleep(SWEEP).await;
            let now_ns = clock::monotonic_ns();
            self.each(|connection| connection.handle_timeout(now_ns));
            self.list.borrow_mut().retain(|connection| connection.strong_count() > 0);
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
    while !connections.draining.get() {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                rt::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if connections.draining.get() || connections.open.get() >= options.connections_max {
            connections.refused.set(connections.refused.get() + 1);
            continue;
        }
        connections.accepted.set(connections.accepted.get() + 1);
        connections.open.set(connections.open.get() + 1);
        let connection = Rc::new(Connection::new(&options, peer, connections.traffic.clone()));
        connections.list.borrow_mut().push(Rc::downgrade(&connection));
        let (read, write) = stream.split();
        rt::spawn(connection.clone().write_all(write, service.clone()));
        let (service, open) = (service.clone(), connections.open.clone());
        rt::spawn(async move {
            connection.read_all(read, service).await;
            open.set(open.get() - 1);
        });
    }
}
