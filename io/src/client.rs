//! A gRPC client on the loop of one thread: many calls at a time over one connection.
//!
//! For the command line, for tests and for everything that is no hot path. Every call ends: with the server's status, at its
//! deadline, or with the connection. A peer that talks nonsense ends the connection, never the process; what it may make us
//! hold is bounded by [`Limits`]. It does not connect again by itself and does not look into messages.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::clock::monotonic_ns;
use crate::grpc::client::Busy;
use crate::grpc::compress::{InflateError, inflate};
use crate::grpc::{
    ClientConnection, ClientEvent, Code, Finished, Limits, Message, Metadata, Output,
};
use crate::h2::StreamId;
use crate::net::{ReadHalf, Stream, WriteHalf};
use crate::rt::{self, Signal};
use crate::tls::{self, Connector};

/// Calls that may wait for the server to allow another stream; more are refused with RESOURCE_EXHAUSTED.
pub const WAITING_MAX: usize = 4096;
/// Times that one call may be refused before it was processed, and is sent again.
const REFUSALS_MAX: usize = 8;
/// Bytes of the read buffer, of which messages are slices.
const READ_BYTES: usize = 16 * 1024;
/// A read is not begun with less room than this.
const READ_BYTES_MIN: usize = 1024;

/// The answer to a unary call that ended with OK.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The message, encoded.
    pub message: Bytes,
    /// Custom trailers.
    pub trailers: Metadata,
}

/// How a call has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// `grpc-status`, or what stands for it.
    pub code: Code,
    /// `grpc-message`, or a description of what went wrong on the way.
    pub message: String,
    /// `grpc-status-details-bin`: an encoded `google.rpc.Status`, or nothing.
    pub details: Vec<u8>,
    /// Custom trailers.
    pub trailers: Metadata,
    /// The server has certainly not processed the call: it can be repeated without harm.
    pub unprocessed: bool,
}

impl Failure {
    fn local(code: Code, message: &str) -> Self {
        let (details, trailers) = (Vec::new(), Metadata::new());
        Self { code, message: message.to_owned(), details, trailers, unprocessed: false }
    }
}

impl From<Finished> for Failure {
    fn from(finished: Finished) -> Self {
        let Finished { code, message, details, trailers, unprocessed } = finished;
        Self { code, message, details, trailers, unprocessed }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}: {}", self.code.name(), self.message)
    }
}

impl std::error::Error for Failure {}

/// A connection; clones share it. It ends when the last of them is dropped.
#[derive(Clone)]
pub struct Client {
    link: Rc<Link>,
    /// Counts the clones: the connection's own tasks hold the link as well.
    _handle: Rc<Handle>,
}

struct Handle(Rc<Link>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.grpc.borrow_mut().shut_down();
        self.0.work.set();
    }
}

struct Link {
    grpc: RefCell<ClientConnection>,
    message_bytes_max: usize,
    calls: RefCell<HashMap<u32, Rc<Call>>>,
    /// Callers that wait for the server to allow another stream.
    waiting: RefCell<VecDeque<Waker>>,
    /// Set when there may be something to write.
    work: Signal,
    ended: Cell<bool>,
}

/// One call under way, between its caller and the connection.
#[derive(Default)]
struct Call {
    /// As they came, and whether they are compressed; what is held of them counts against the window.
    messages: RefCell<VecDeque<(Bytes, bool)>>,
    finished: RefCell<Option<Finished>>,
    caller: Cell<Option<Waker>>,
}

impl Call {
    fn wake(&self) {
        if let Some(caller) = self.caller.take() {
            caller.wake();
        }
    }
}

/// What makes a call end when its caller goes away.
struct Guard {
    link: Rc<Link>,
    stream: StreamId,
    call: Rc<Call>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.link.calls.borrow_mut().remove(&self.stream.number()).is_some() {
            self.link.grpc.borrow_mut().cancel(self.stream);
            self.link.work.set();
            self.link.wake_waiting();
        }
    }
}

impl Client {
    /// Connects to `address` with the default limits.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::connect_with(address, &Limits::default()).await
    }

    /// Connects to `address`; `limits` bound what the server may send.
    pub async fn connect_with(address: SocketAddr, limits: &Limits) -> io::Result<Self> {
        let stream = Stream::connect(address).await?;
        Ok(Self::over(stream, &address.to_string(), limits))
    }

    /// Connects to `address` with TLS; `authority` is what the server is called in requests.
    pub async fn connect_secured(
        address: SocketAddr,
        connector: &Connector,
        authority: &str,
        limits: &Limits,
    ) -> Result<Self, tls::Failure> {
        let stream = Stream::connect(address).await?.secure_to(connector).await?;
        Ok(Self::over(stream, authority, limits))
    }

    /// A connection over a socket that stands.
    fn over(stream: Stream, authority: &str, limits: &Limits) -> Self {
        let mut grpc = ClientConnection::new(limits, authority, monotonic_ns());
        grpc.accept_compressed();
        if stream.is_secured() {
            grpc.over_tls();
        }
        let link = Rc::new(Link {
            grpc: RefCell::new(grpc),
            message_bytes_max: limits.message_bytes_max as usize,
            calls: RefCell::default(),
            waiting: RefCell::default(),
            work: Signal::default(),
            ended: Cell::new(false),
        });
        let (read, write) = stream.split();
        rt::spawn(link.clone().read_all(read));
        rt::spawn(link.clone().write_all(write));
        rt::spawn(link.clone().watch());
        link.work.set();
        Self { _handle: Rc::new(Handle(link.clone())), link }
    }

    /// Whether the connection has ended: no call will succeed any more.
    pub fn is_closed(&self) -> bool {
        self.link.ended.get() || self.link.grpc.borrow().is_closed()
    }

    /// A unary call of `path` (`/package.Service/Method`). Names of `metadata` are in lower case; values of `-bin` names are
    /// plain. Takes at most `timeout`, which the server is told as well. What the server refused before it looked at it, because
    /// we did not know yet how many calls it takes at once, is sent again.
    pub async fn unary(
        &self,
        path: &str,
        metadata: &[(&str, &[u8])],
        message: &[u8],
        timeout: Duration,
    ) -> Result<Reply, Failure> {
        let call = async {
            let mut refusals = 0;
            loop {
                match self.attempt(path, metadata, message, timeout).await {
                    Err(failure) if failure.unprocessed && refusals < REFUSALS_MAX => refusals += 1,
                    result => return result,
                }
            }
        };
        rt::timeout(timeout, call).await.unwrap_or_else(|| Err(too_late()))
    }

    async fn attempt(
        &self,
        path: &str,
        metadata: &[(&str, &[u8])],
        message: &[u8],
        timeout: Duration,
    ) -> Result<Reply, Failure> {
        let mut reply = self.begin(path, metadata, message, timeout).await?;
        let Some(message) = reply.receive().await? else {
            return Err(Failure::local(Code::Internal, "the answer has no message"));
        };
        if reply.receive().await?.is_some() {
            return Err(Failure::local(Code::Internal, "the answer has more than one message"));
        }
        Ok(Reply { message, trailers: reply.trailers })
    }

    /// A call of `path` whose server sends any number of messages, for at most `timeout` in all.
    pub async fn stream(
        &self,
        path: &str,
        metadata: &[(&str, &[u8])],
        message: &[u8],
        timeout: Duration,
    ) -> Result<StreamReply, Failure> {
        let begin = self.begin(path, metadata, message, timeout);
        rt::timeout(timeout, begin).await.unwrap_or_else(|| Err(too_late()))
    }

    async fn begin(
        &self,
        path: &str,
        metadata: &[(&str, &[u8])],
        message: &[u8],
        timeout: Duration,
    ) -> Result<StreamReply, Failure> {
        let reply = self.open(path, metadata, timeout).await?;
        reply.send(message)?;
        reply.half_close();
        Ok(reply)
    }

    /// A call of `path` in which both sides send any number of messages, for at most `timeout` in all.
    pub async fn open(
        &self,
        path: &str,
        metadata: &[(&str, &[u8])],
        timeout: Duration,
    ) -> Result<StreamReply, Failure> {
        let end_ns = monotonic_ns().saturating_add(timeout.as_nanos() as u64);
        let stream = std::future::poll_fn(|context| {
            let mut grpc = self.link.grpc.borrow_mut();
            match grpc.start(path.as_bytes(), metadata, Some(timeout)) {
                Ok(stream) => Poll::Ready(Ok(stream)),
                Err(Busy::Streams) => self.link.wait(context),
                Err(Busy::Queue) => Poll::Ready(Err(queue_full())),
                Err(Busy::Leaving) => {
                    let text = "the connection has ended or is about to";
                    Poll::Ready(Err(Failure::local(Code::Unavailable, text)))
                }
            }
        })
        .await?;
        let call = Rc::new(Call::default());
        self.link.calls.borrow_mut().insert(stream.number(), call.clone());
        let guard = Guard { link: self.link.clone(), stream, call };
        self.link.work.set();
        Ok(StreamReply { guard, end_ns, ended: false, trailers: Metadata::new() })
    }
}

fn too_late() -> Failure {
    Failure::local(Code::DeadlineExceeded, "no answer within the time limit")
}

fn inflate_failed(error: InflateError) -> Failure {
    match error {
        InflateError::TooLarge => {
            Failure::local(Code::ResourceExhausted, "a message too large once decompressed")
        }
        InflateError::Malformed => {
            Failure::local(Code::Internal, "a compressed message is not valid gzip")
        }
    }
}

fn queue_full() -> Failure {
    Failure::local(Code::ResourceExhausted, "too much is waiting to be sent on this connection")
}

/// A call whose server sends any number of messages. Dropping it cancels the call.
pub struct StreamReply {
    guard: Guard,
    end_ns: u64,
    ended: bool,
    trailers: Metadata,
}

impl StreamReply {
    /// The next message, `None` after the last one. What has been taken lets the server send more.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let left = Duration::from_nanos(self.end_ns.saturating_sub(monotonic_ns()));
        match rt::timeout(left, self.receive()).await {
            Some(result) => result,
            None => {
                self.ended = true;
                Err(too_late())
            }
        }
    }

    /// Sends one message of a call that was opened ([`Client::open`]).
    pub fn send(&self, message: &[u8]) -> Result<(), Failure> {
        let link = &self.guard.link;
        let sent = link.grpc.borrow_mut().send_message(self.guard.stream, Message::new(message));
        link.work.set();
        sent.map(drop).map_err(|_| queue_full())
    }

    /// Says that no more messages are sent.
    pub fn half_close(&self) {
        self.guard.link.grpc.borrow_mut().half_close(self.guard.stream);
        self.guard.link.work.set();
    }

    /// Custom trailers, once `next` has returned `None`.
    pub fn trailers(&self) -> &Metadata {
        &self.trailers
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, Failure> {
        if self.ended {
            return Ok(None);
        }
        let Guard { link, stream, call } = &self.guard;
        std::future::poll_fn(|context| {
            if let Some((message, compressed)) = call.messages.borrow_mut().pop_front() {
                link.grpc.borrow_mut().release(*stream, message.len());
                link.work.set();
                if !compressed {
                    return Poll::Ready(Ok(Some(message)));
                }
                let plain = inflate(&message, link.message_bytes_max);
                return Poll::Ready(plain.map(Some).map_err(inflate_failed));
            }
            let Some(finished) = call.finished.take() else {
                call.caller.set(Some(context.waker().clone()));
                return Poll::Pending;
            };
            self.ended = true;
            if finished.code == Code::Ok {
                self.trailers = finished.trailers;
                return Poll::Ready(Ok(None));
            }
            Poll::Ready(Err(finished.into()))
        })
        .await
    }
}

impl Link {
    fn wait(&self, context: &mut Context<'_>) -> Poll<Result<StreamId, Failure>> {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= WAITING_MAX {
            let text = "too many calls wait for the server to take more";
            return Poll::Ready(Err(Failure::local(Code::ResourceExhausted, text)));
        }
        waiting.push_back(context.waker().clone());
        Poll::Pending
    }

    /// Lets the callers that wait try again; the wakers of those that have gone are harmless.
    fn wake_waiting(&self) {
        let waiting = self.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }

    fn deliver(&self) {
        let mut ended = false;
        loop {
            let event = self.grpc.borrow_mut().poll_event();
            let Some(event) = event else { break };
            match event {
                ClientEvent::Message { stream, message, compressed } => {
                    let call = self.calls.borrow().get(&stream.number()).cloned();
                    match call {
                        Some(call) => {
                            call.messages.borrow_mut().push_back((message, compressed));
                            call.wake();
                        }
                        None => self.grpc.borrow_mut().release(stream, message.len()),
                    }
                }
                ClientEvent::Finished { stream, finished } => {
                    ended = true;
                    let call = self.calls.borrow_mut().remove(&stream.number());
                    if let Some(call) = call {
                        call.finished.replace(Some(finished));
                        call.wake();
                    }
                }
                ClientEvent::Headers { .. } | ClientEvent::Writable { .. } => {}
            }
        }
        if ended || self.grpc.borrow().room() > 0 || self.grpc.borrow().is_closed() {
            self.wake_waiting();
        }
    }

    async fn read_all(self: Rc<Self>, mut read: ReadHalf) {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        loop {
            if buffer.capacity() - buffer.len() < READ_BYTES_MIN {
                buffer.reserve(READ_BYTES);
            }
            let (result, filled) = read.read(buffer).await;
            buffer = filled;
            if !matches!(result, Ok(count) if count > 0) {
                break;
            }
            self.grpc.borrow_mut().receive(&mut buffer, monotonic_ns());
            self.deliver();
            self.work.set();
        }
        self.end();
    }

    async fn write_all(self: Rc<Self>, mut write: WriteHalf) {
        let mut output = Output::default();
        while !self.ended.get() {
            self.work.wait().await;
            loop {
                output.clear();
                self.grpc.borrow_mut().swap_output(&mut output);
                if output.is_empty() {
                    break;
                }
                let result;
                (result, output) = write.write_output(output, |_| ()).await;
                if result.is_err() {
                    self.end();
                    break;
                }
                self.deliver();
            }
            if self.grpc.borrow().is_closed() {
                break;
            }
        }
        // The reader sees the end of the socket and gives up what is still open.
        write.close();
    }

    /// Holds the peer to its time limits; there are none once the connection stands.
    async fn watch(self: Rc<Self>) {
        while !self.ended.get() {
            let due_ns = self.grpc.borrow().poll_timeout();
            let Some(due_ns) = due_ns else { return };
            let left = due_ns.saturating_sub(monotonic_ns());
            // Rounded up to the loop's clock, so that the time is over when it says so.
            rt::sleep(Duration::from_nanos(left) + Duration::from_millis(1)).await;
            self.grpc.borrow_mut().handle_timeout(monotonic_ns());
            self.deliver();
            self.work.set();
        }
    }

    fn end(&self) {
        self.grpc.borrow_mut().lost();
        self.ended.set(true);
        self.deliver();
        self.work.set();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::{RequestHead, Route, Status};
    use crate::server::{self, Connection, Connections, Options, Service, StreamCall};

    const LONG: Duration = Duration::from_secs(20);

    /// Echoes, counts up, or keeps silent.
    struct Peer;

    impl Service for Peer {
        fn request(
            &self,
            connection: &Rc<Connection>,
            stream: StreamId,
            route: u32,
            head: RequestHead,
            message: Bytes,
        ) {
            match route {
                0 => {
                    let value = head.metadata.get("x-word").unwrap_or_default();
                    connection.respond(stream, Message::new(&message), &[("x-word", value)]);
                }
                1 => connection.fail(stream, &Status::new(Code::NotFound, "nothing here")),
                2 => {}
                _ => {
                    let call = connection.stream(stream);
                    rt::spawn(async move {
                        for number in 0..100_000u32 {
                            if call.send(Message::new(&number.to_be_bytes())).await.is_err() {
                                return;
                            }
                        }
                        call.finish(&[("x-word", b"done")]);
                    });
                }
            }
        }

        fn open(&self, _call: StreamCall, _route: u32, _head: RequestHead) {}

        fn turn_ended(&self) {}
    }

    fn route(path: &[u8]) -> Option<Route> {
        let names: [&[u8]; 4] = [b"/t/Echo", b"/t/Missing", b"/t/Silent", b"/t/Count"];
        let id = names.iter().position(|name| *name == path)? as u32;
        Some(Route { id, client_streaming: false, server_streaming: id == 3 })
    }

    fn with_server<F>(test: impl FnOnce(SocketAddr, Rc<Connections>) -> F + 'static)
    where
        F: std::future::Future<Output = ()> + 'static,
    {
        rt::run(async {
            let local = "127.0.0.1:0".parse().unwrap();
            let socket = crate::net::bind_shared(local, 1).unwrap().pop().unwrap();
            let address = socket.local_addr().unwrap();
            let listener = crate::net::Listener::new(socket).unwrap();
            let limits = Limits { streams_max: 16, ..Limits::default() };
            let options = Options::new(limits, route, 8);
            let connections = Rc::new(Connections::default());
            rt::spawn(server::accept(listener, Rc::new(Peer), options, connections.clone()));
            // A task of its own, which may yield to the others.
            let ended = Rc::new(Signal::default());
            let test = test(address, connections);
            let signal = ended.clone();
            rt::spawn(async move {
                test.await;
                signal.set();
            });
            rt::timeout(LONG, ended.wait()).await.expect("the test ends in time");
        })
        .unwrap();
    }

    #[test]
    fn more_calls_than_streams_all_get_their_own_answer() {
        with_server(|address, _| async move {
            let client = Client::connect(address).await.unwrap();
            let (answers, all) = (Rc::new(Cell::new(0)), Rc::new(Signal::default()));
            for number in 0..500u32 {
                let (client, answers, all) = (client.clone(), answers.clone(), all.clone());
                rt::spawn(async move {
                    let word = number.to_string();
                    let metadata = [("x-word", word.as_bytes())];
                    // Some are larger than a frame, and all together than the windows.
                    let message = vec![number as u8; 1 + number as usize * 100];
                    let reply = client.unary("/t/Echo", &metadata, &message, LONG).await.unwrap();
                    assert_eq!(reply.message, message);
                    assert_eq!(reply.trailers.get("x-word"), Some(word.as_bytes()));
                    answers.set(answers.get() + 1);
                    all.set();
                });
            }
            while answers.get() < 500 {
                all.wait().await;
            }
        });
    }

    #[test]
    fn failures_come_as_they_are() {
        with_server(|address, _| async move {
            let client = Client::connect(address).await.unwrap();
            let missing = client.unary("/t/Missing", &[], b"", LONG).await.unwrap_err();
            assert_eq!((missing.code, &*missing.message), (Code::NotFound, "nothing here"));
            let unknown = client.unary("/t/Nonsense", &[], b"", LONG).await.unwrap_err();
            assert_eq!(unknown.code, Code::Unimplemented);
            assert!(!client.is_closed());
        });
    }

    #[test]
    fn silence_ends_at_the_deadline_and_frees_the_stream() {
        with_server(|address, _| async move {
            let client = Client::connect(address).await.unwrap();
            for _ in 0..40 {
                let short = Duration::from_millis(2);
                let late = client.unary("/t/Silent", &[], b"", short).await.unwrap_err();
                assert_eq!(late.code, Code::DeadlineExceeded);
            }
            assert!(client.link.calls.borrow().is_empty());
            assert_eq!(client.unary("/t/Echo", &[], b"x", LONG).await.unwrap().message, "x");
        });
    }

    #[test]
    fn a_stream_is_read_to_its_end_or_given_up() {
        with_server(|address, _| async move {
            let client = Client::connect(address).await.unwrap();
            let mut given_up = client.stream("/t/Count", &[], b"", LONG).await.unwrap();
            assert_eq!(given_up.next().await.unwrap().unwrap(), &[0, 0, 0, 0][..]);
            drop(given_up);
            let mut whole = client.stream("/t/Count", &[], b"", LONG).await.unwrap();
            let mut next = 0u32;
            while let Some(message) = whole.next().await.unwrap() {
                assert_eq!(message, &next.to_be_bytes()[..]);
                next += 1;
            }
            assert_eq!((next, whole.trailers().get("x-word")), (100_000, Some(&b"done"[..])));
            assert_eq!(whole.next().await, Ok(None), "the end stays the end");
        });
    }

    #[test]
    fn the_connection_ends_with_its_last_handle() {
        with_server(|address, connections| async move {
            let client = Client::connect(address).await.unwrap();
            client.unary("/t/Echo", &[], b"x", LONG).await.unwrap();
            let clone = client.clone();
            drop(client);
            clone.unary("/t/Echo", &[], b"x", LONG).await.unwrap();
            assert_eq!(connections.open(), 1);
            drop(clone);
            while connections.open() > 0 {
                rt::yield_now().await;
            }
        });
    }

    /// A peer that answers the connection with `bytes` and closes it if `close`.
    fn against(bytes: &'static [u8], close: bool) -> Failure {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let peer = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let (mut socket, _) = listener.accept().unwrap();
            // The preface and the first call come before the answer.
            socket.read_exact(&mut [0; 24]).unwrap();
            socket.write_all(bytes).unwrap();
            if !close {
                // Until the client hangs up; a runtime that ends amid a read may keep its socket open until the process ends.
                socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                let _ = socket.read_to_end(&mut Vec::new());
            }
        });
        let failure = rt::run(async move {
            let client = Client::connect(address).await.unwrap();
            let failure = client.unary("/t/Echo", &[], b"x", LONG).await.unwrap_err();
            assert!(client.is_closed());
            let later = client.unary("/t/Echo", &[], b"x", LONG).await.unwrap_err();
            assert_eq!(later.code, Code::Unavailable);
            failure
        })
        .unwrap();
        peer.join().unwrap();
        failure
    }

    #[test]
    fn a_peer_that_talks_nonsense_or_hangs_up_is_unavailable() {
        assert_eq!(against(b"HTTP/1.1 400 Bad Request\r\n\r\n", false).code, Code::Unavailable);
        assert_eq!(against(b"", true).code, Code::Unavailable);
        // A DATA frame before SETTINGS.
        assert_eq!(against(&[0, 0, 1, 0, 0, 0, 0, 0, 1, 7], false).code, Code::Unavailable);
    }
}
