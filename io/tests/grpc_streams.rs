//! Calls that stream over real sockets: a slow handler holds its client back, a slow client its handler, and a deadline ends both.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use prism_io::grpc::{
    ClientConnection, ClientEvent, Code, Finished, Limits, Message, Output, RequestHead, Route,
    StreamId,
};
use prism_io::rt::{self, Flag};
use prism_io::server::{Connection, Connections, Options, Service, StreamCall, accept};
use prism_io::{clock, net};

const LONG: Duration = Duration::from_secs(20);
const MESSAGE_BYTES: usize = 1000;
const STREAM_WINDOW: u32 = 100_000;

/// What the two threads tell each other.
#[derive(Default)]
struct Shared {
    /// Messages that the handler has taken or sent.
    handled: AtomicU64,
    /// Handlers that found their call closed.
    closed: AtomicU64,
    /// Lets the handler of `/t/Sink` begin to read.
    begin: Flag,
    stop: Flag,
}

struct Streams(Arc<Shared>);

impl Service for Streams {
    fn request(
        &self,
        connection: &Rc<Connection>,
        stream: StreamId,
        _route: u32,
        head: RequestHead,
        _message: Bytes,
    ) {
        // `/t/Source`: as much as the client takes.
        let (shared, call) = (self.0.clone(), connection.stream(stream));
        call.end_in(head.timeout);
        rt::spawn(async move {
            while call.send(Message::new(&[1; MESSAGE_BYTES])).await.is_ok() {
                shared.handled.fetch_add(1, SeqCst);
            }
            shared.closed.fetch_add(1, SeqCst);
        });
    }

    fn open(&self, call: StreamCall, _route: u32, _head: RequestHead) {
        // `/t/Sink`: reads once it may.
        let shared = self.0.clone();
        rt::spawn(async move {
            shared.begin.wait().await;
            loop {
                match call.next().await {
                    Ok(Some(message)) => assert_eq!(message.len(), MESSAGE_BYTES),
                    Ok(None) => return call.finish(&[]),
                    Err(_) => break,
                }
                shared.handled.fetch_add(1, SeqCst);
            }
            shared.closed.fetch_add(1, SeqCst);
        });
    }

    fn turn_ended(&self) {}
}

fn route(path: &[u8]) -> Option<Route> {
    let sink = path == b"/t/Sink";
    Some(Route { id: u32::from(sink), client_streaming: sink, server_streaming: true })
}

/// A server on a thread of its own, until it is dropped.
struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            rt::run(async move {
                let limits = Limits { stream_window_bytes: STREAM_WINDOW, ..Limits::default() };
                let options = Options::new(limits, route, 10);
                let connections = Rc::new(Connections::default());
                let listener = net::Listener::new(listener).unwrap();
                rt::spawn(connections.clone().watch());
                let service = Rc::new(Streams(of_thread.clone()));
                rt::spawn(accept(listener, service, options, connections.clone()));
                of_thread.stop.wait().await;
                connections.abort();
                // What ends with the connections has its turn.
                let began = Instant::now();
                while connections.open() > 0 && began.elapsed() < LONG {
                    rt::yield_now().await;
                }
            })
            .unwrap();
        });
        Self { address, shared, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.set();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// A client that blocks.
struct Client {
    socket: TcpStream,
    grpc: ClientConnection,
    output: Output,
    input: BytesMut,
    /// Bytes of DATA and everything else that were written.
    written: usize,
    messages: Cell<usize>,
    finished: Option<Finished>,
}

impl Client {
    fn connect(address: SocketAddr, stream_window_bytes: u32) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let limits = Limits { stream_window_bytes, ..Limits::default() };
        let mut client = Self {
            socket,
            grpc: ClientConnection::new(&limits, "test:1", clock::monotonic_ns()),
            output: Output::default(),
            input: BytesMut::new(),
            written: 0,
            messages: Cell::new(0),
            finished: None,
        };
        // The server's settings, before which there are other windows.
        let began = Instant::now();
        while client.turn() == 0 && began.elapsed() < LONG {}
        client
    }

    /// Writes what there is and reads what has come; how many bytes moved.
    fn turn(&mut self) -> usize {
        self.grpc.swap_output(&mut self.output);
        let bytes = self.output.segments().collect::<Vec<_>>().concat();
        let mut moved = bytes.len();
        self.socket.set_nonblocking(false).unwrap();
        self.socket.write_all(&bytes).unwrap();
        self.socket.set_nonblocking(true).unwrap();
        self.written += bytes.len();
        let mut part = [0; 64 << 10];
        if let Ok(count) = self.socket.read(&mut part) {
            moved += count;
            self.input.extend_from_slice(&part[..count]);
            self.grpc.receive(&mut self.input, clock::monotonic_ns());
            while let Some(event) = self.grpc.poll_event() {
                match event {
                    ClientEvent::Message { .. } => self.messages.set(self.messages.get() + 1),
                    ClientEvent::Finished { finished, .. } => self.finished = Some(finished),
                    _ => {}
                }
            }
        }
        moved
    }

    /// Turns until nothing has moved for a while, on this side or at the handler's.
    fn until_quiet(&mut self, handled: &AtomicU64) {
        let (began, mut quiet_since, mut seen) = (Instant::now(), Instant::now(), 0);
        while quiet_since.elapsed() < Duration::from_millis(200) {
            let now = handled.load(SeqCst);
            if self.turn() > 0 || now != seen {
                (quiet_since, seen) = (Instant::now(), now);
            }
            assert!(began.elapsed() < LONG, "it never becomes quiet");
        }
    }

    fn until_finished(&mut self) -> Finished {
        let began = Instant::now();
        while self.finished.is_none() {
            self.turn();
            assert!(began.elapsed() < LONG, "the call does not end");
        }
        self.finished.take().unwrap()
    }
}

#[test]
fn a_slow_handler_holds_its_client_back() {
    const MESSAGES: usize = 1000;
    let server = Server::start();
    let mut client = Client::connect(server.address, 1 << 20);
    let stream = client.grpc.start(b"/t/Sink", &[], None).unwrap();
    for _ in 0..MESSAGES {
        client.grpc.send_message(stream, Message::new(&[7; MESSAGE_BYTES])).unwrap();
    }
    client.grpc.half_close(stream);
    client.until_quiet(&server.shared.handled);
    // The window, its frames' headers, and what every connection begins with.
    let held = client.written;
    assert!((90_000..105_000).contains(&held), "{held} bytes were let through");
    server.shared.begin.set();
    assert_eq!(client.until_finished().code, Code::Ok);
    assert_eq!(server.shared.handled.load(SeqCst), MESSAGES as u64);
    assert!(client.written >= MESSAGES * MESSAGE_BYTES);
}

#[test]
fn a_slow_client_holds_its_handler_back() {
    let server = Server::start();
    let mut client = Client::connect(server.address, STREAM_WINDOW);
    let stream = client.grpc.start(b"/t/Source", &[], None).unwrap();
    client.grpc.send_message(stream, Message::new(b"")).unwrap();
    client.grpc.half_close(stream);
    client.until_quiet(&server.shared.handled);
    // The client's window and what a stream may have queued; nothing is released.
    let sent = server.shared.handled.load(SeqCst) as usize * MESSAGE_BYTES;
    let bound = STREAM_WINDOW as usize + Limits::default().stream_queue_bytes as usize;
    assert!(
        (STREAM_WINDOW as usize - MESSAGE_BYTES..=bound + MESSAGE_BYTES).contains(&sent),
        "{sent}"
    );
    // Whatever is taken makes room for as much.
    client.grpc.release(stream, STREAM_WINDOW as usize);
    client.until_quiet(&server.shared.handled);
    let more = server.shared.handled.load(SeqCst) as usize * MESSAGE_BYTES - sent;
    assert!(
        (STREAM_WINDOW as usize / 2..=STREAM_WINDOW as usize + MESSAGE_BYTES).contains(&more),
        "{more}"
    );
    // A client that gives up frees its handler.
    client.grpc.cancel(stream);
    let began = Instant::now();
    while server.shared.closed.load(SeqCst) == 0 && began.elapsed() < LONG {
        client.turn();
    }
    assert_eq!(server.shared.closed.load(SeqCst), 1);
}

#[test]
fn a_deadline_ends_calls_that_stream() {
    let server = Server::start();
    server.shared.begin.set();
    for path in [&b"/t/Sink"[..], b"/t/Source"] {
        let mut client = Client::connect(server.address, STREAM_WINDOW);
        let timeout = Some(Duration::from_millis(50));
        let began = Instant::now();
        let stream = client.grpc.start(path, &[], timeout).unwrap();
        client.grpc.send_message(stream, Message::new(&[7; MESSAGE_BYTES])).unwrap();
        if path == b"/t/Source" {
            client.grpc.half_close(stream);
        }
        let closed = server.shared.closed.load(SeqCst);
        while server.shared.closed.load(SeqCst) == closed && began.elapsed() < LONG {
            client.turn();
        }
        assert!(began.elapsed() >= Duration::from_millis(50) && began.elapsed() < LONG);
        if path == b"/t/Source" {
            // The status comes behind what is queued.
            client.grpc.release(stream, usize::MAX);
        }
        assert_eq!(client.until_finished().code, Code::DeadlineExceeded);
    }
}
