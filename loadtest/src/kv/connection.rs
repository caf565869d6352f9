//! One connection of the generator: the state machine of [`prism_io::grpc`] on a socket, with nothing in between.
//!
//! One pass over a read buffer takes every answer in it and lets as many requests go; they leave in one write. Reading and writing go on side by side
//! in one task, so that two full sockets cannot wait for each other.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{Error, Result};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::BytesMut;
use prism_io::clock::monotonic_ns;
use prism_io::grpc::{ClientConnection, ClientEvent, Message};
use prism_io::h2::{Limits, Output, StreamId};
use prism_io::net::{ReadHalf, Stream, WriteHalf};
use prism_io::rt;

use super::Load;
use super::worker::{Sent, Shared, Worker};

/// Bytes of the read buffer, of which answers are slices.
const READ_BYTES: usize = 64 * 1024;
/// A read is not begun with less room than this.
const READ_BYTES_MIN: usize = 4 * 1024;

/// Stream numbers are all different already; multiplying spreads them over the table.
#[derive(Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only stream numbers are hashed");
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

struct State {
    client: ClientConnection,
    sent: HashMap<u32, Sent, BuildHasherDefault<NumberHasher>>,
    durability: Option<String>,
    lost: bool,
    /// The connection's task, while it has nothing to write.
    writer: Option<Waker>,
}

/// A connection and its requests in flight.
#[derive(Clone)]
pub(crate) struct Connection {
    state: Rc<RefCell<State>>,
    shared: Rc<Shared>,
}

impl Connection {
    /// Connects, and serves the connection from then on.
    pub(crate) async fn open(load: &Load, shared: Rc<Shared>) -> Result<Self> {
        let mut stream = Stream::connect(load.endpoint).await.map_err(|error| {
            Error::new(error.kind(), format!("no connection to {}: {error}", load.endpoint))
        })?;
        if let Some(connector) = &load.tls {
            stream = stream.secure_to(connector).await.map_err(|failure| {
                Error::other(format!("no TLS with {}: {failure}", load.endpoint))
            })?;
        }
        let mut client =
            ClientConnection::new(&Limits::default(), &load.endpoint.to_string(), monotonic_ns());
        if stream.is_secured() {
            client.over_tls();
        }
        let state = State {
            client,
            sent: HashMap::default(),
            durability: load.durability.clone(),
            lost: false,
            writer: None,
        };
        let connection = Self { state: Rc::new(RefCell::new(state)), shared };
        let (read, write) = stream.split();
        rt::spawn(connection.clone().serve(read, write));
        Ok(connection)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.state.borrow().sent.len()
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.state.borrow().lost
    }

    /// Whether one more request may be sent now.
    pub(crate) fn has_room(&self, worker: &Worker) -> bool {
        let state = self.state.borrow();
        !state.lost && state.sent.len() < worker.in_flight_max() && state.client.room() > 0
    }

    /// Sends one request; there must be room.
    pub(crate) fn send(&self, sent: Sent, message: &[u8]) {
        let mut state = self.state.borrow_mut();
        if state.send(&self.shared, sent, message) {
            state.wake();
        }
    }

    /// Sends what the loop lets go, up to what may be in flight.
    pub(crate) fn fill(&self, now_ns: u64) {
        let mut state = self.state.borrow_mut();
        state.fill(&self.shared, now_ns);
        state.wake();
    }

    async fn serve(self, read: ReadHalf, write: WriteHalf) {
        let mut reading = pin!(self.read_all(read));
        let mut writing = pin!(self.write_all(write));
        // First what has come, then what it lets go: the writer finds the requests of this very turn.
        std::future::poll_fn(|context| {
            let ended = reading.as_mut().poll(context).is_ready();
            if ended | writing.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
        let mut state = self.state.borrow_mut();
        state.lost = true;
        let in_flight = state.sent.len();
        state.sent.clear();
        self.shared.worker.borrow_mut().lost(in_flight);
        if in_flight > 0 {
            self.shared.busy.set(self.shared.busy.get() - 1);
        }
        self.shared.settled.set();
    }

    async fn read_all(&self, mut read: ReadHalf) {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        loop {
            if buffer.capacity() - buffer.len() < READ_BYTES_MIN {
                buffer.reserve(READ_BYTES);
            }
            let (result, filled) = read.read(buffer).await;
            buffer = filled;
            if !matches!(result, Ok(count) if count > 0) {
                return;
            }
            let now_ns = monotonic_ns();
            let mut state = self.state.borrow_mut();
            state.client.receive(&mut buffer, now_ns);
            state.take_answers(&self.shared, now_ns);
            if state.client.is_closed() {
                return;
            }
            state.fill(&self.shared, now_ns);
        }
    }

    async fn write_all(&self, mut write: WriteHalf) {
        let mut output = Output::default();
        loop {
            std::future::poll_fn(|context| {
                let mut state = self.state.borrow_mut();
                output.clear();
                state.client.swap_output(&mut output);
                if !output.is_empty() {
                    return Poll::Ready(());
                }
                match &mut state.writer {
                    Some(waker) if waker.will_wake(context.waker()) => {}
                    waker => *waker = Some(context.waker().clone()),
                }
                Poll::Pending
            })
            .await;
            let result;
            (result, output) = write.write_output(output, |_| ()).await;
            if result.is_err() {
                return;
            }
        }
    }
}

impl State {
    /// False when the connection takes no more.
    #[inline]
    fn send(&mut self, shared: &Shared, sent: Sent, message: &[u8]) -> bool {
        let metadata = self.durability.as_ref().map(|level| ("prism-durability", level.as_bytes()));
        let path = sent.kind.path().as_bytes();
        let metadata = metadata.as_slice();
        let Ok(stream) = self.client.call(path, Message::new(message), metadata, None) else {
            return false;
        };
        if self.sent.is_empty() {
            shared.busy.set(shared.busy.get() + 1);
        }
        self.sent.insert(stream.number(), sent);
        true
    }

    fn fill(&mut self, shared: &Shared, now_ns: u64) {
        let mut worker = shared.worker.borrow_mut();
        while self.sent.len() < worker.in_flight_max() && self.client.room() > 0 {
            let Some((sent, message)) = worker.next(now_ns) else { return };
            if !self.send(shared, sent, message) {
                return;
            }
        }
    }

    fn take_answers(&mut self, shared: &Shared, now_ns: u64) {
        let mut worker = shared.worker.borrow_mut();
        // Most messages come right before the end of their answer: only the others are looked up.
        let mut found = None;
        let before = self.sent.len();
        while let Some(event) = self.client.poll_event() {
            match event {
                ClientEvent::Message { stream, message, .. } => {
                    let earlier = if message.is_empty() { None } else { found.replace(stream) };
                    if let Some(sent) =
                        earlier.and_then(|stream| self.sent.get_mut(&stream.number()))
                    {
                        sent.found = true;
                    }
                }
                ClientEvent::Finished { stream, finished } => {
                    if let Some(sent) = self.sent.remove(&stream.number()) {
                        let found = found.take_if(|found| *found == stream).is_some() || sent.found;
                        worker.answered(sent, finished.code, found, now_ns);
                    }
                }
                ClientEvent::Headers { .. } | ClientEvent::Writable { .. } => {}
            }
        }
        if let Some(sent) = found.and_then(|stream: StreamId| self.sent.get_mut(&stream.number())) {
            sent.found = true;
        }
        if before > 0 && self.sent.is_empty() {
            shared.busy.set(shared.busy.get() - 1);
            shared.settled.set();
        }
    }

    fn wake(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }
}
