//! What connections hold on to: little of what was sent while nobody takes it, and nothing of a burst once its calls have ended.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use prism_io::grpc::{ClientConnection, ClientEvent, Limits, Message, RequestHead, Route};
use prism_io::h2::{Output, StreamId};
use prism_io::server::{Connection, Connections, Options, Service, StreamCall, accept};
use prism_io::{net, rt};

/// Counts by thread: the server has one to itself, and hands no memory to others.
struct Counting;

thread_local! {
    static LIVE_BYTES: Cell<i64> = const { Cell::new(0) };
}

fn count(bytes: i64) {
    let _ = LIVE_BYTES.try_with(|live| live.set(live.get() + bytes));
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller keeps to the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the pointer came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64);
        // SAFETY: the pointer came from `System` with this layout, and `size` is the caller's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const DEADLINE: Duration = Duration::from_secs(60);
const ECHO: &[u8] = b"/t.Memory/Echo";
const FACTS: &[u8] = b"/t.Memory/Facts";
const HOLD: &[u8] = b"/t.Memory/Hold";
const KEEP: &[u8] = b"/t.Memory/Keep";
const DROP: &[u8] = b"/t.Memory/Drop";
const PARK: &[u8] = b"/t.Memory/Park";
const RELEASE: &[u8] = b"/t.Memory/Release";

fn route(path: &[u8]) -> Option<Route> {
    let id = [ECHO, FACTS, HOLD, KEEP, DROP, PARK, RELEASE]
        .iter()
        .position(|known| *known == path)? as u32;
    Some(Route { id, client_streaming: path == HOLD, server_streaming: false })
}

struct Memory {
    connections: Rc<Connections>,
    /// Streams that nobody reads from.
    held: RefCell<Vec<StreamCall>>,
    /// Messages of calls that wait for something.
    kept: RefCell<Vec<Bytes>>,
    /// Calls that are answered together.
    parked: RefCell<Vec<(Rc<Connection>, StreamId)>>,
}

impl Service for Memory {
    fn request(
        &self,
        connection: &Rc<Connection>,
        stream: StreamId,
        route: u32,
        _head: RequestHead,
        message: Bytes,
    ) {
        match route {
            0 => connection.respond(stream, Message::new(&message), &[]),
            1 => {
                let live = LIVE_BYTES.get() as u64;
                let buffered = self.connections.traffic().buffered_bytes() as u64;
                let facts = [live.to_be_bytes(), buffered.to_be_bytes()].concat();
                connection.respond(stream, Message::new(&facts), &[]);
            }
            3 => {
                self.kept.borrow_mut().push(connection.keep(message));
                connection.respond(stream, Message::new(b""), &[]);
            }
            5 => self.parked.borrow_mut().push((connection.clone(), stream)),
            6 => {
                let parked = self.parked.take();
                for (connection, stream) in &parked {
                    connection.respond(*stream, Message::new(&[7; 3000]), &[]);
                }
                let count = (parked.len() as u64).to_be_bytes();
                connection.respond(stream, Message::new(&count), &[]);
            }
            _ => {
                self.held.borrow_mut().clear();
                self.kept.borrow_mut().clear();
                connection.respond(stream, Message::new(b""), &[]);
            }
        }
    }

    fn open(&self, call: StreamCall, _route: u32, _head: RequestHead) {
        self.held.borrow_mut().push(call);
    }

    fn turn_ended(&self) {}
}

fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        rt::run(async move {
            let connections = Rc::new(Connections::default());
            rt::spawn(connections.clone().watch());
            let service = Rc::new(Memory {
                connections: connections.clone(),
                held: RefCell::default(),
                kept: RefCell::default(),
                parked: RefCell::default(),
            });
            let options = Options::new(Limits::default(), route, 10);
            accept(net::Listener::new(listener).unwrap(), service, options, connections).await;
        })
    });
    address
}

struct Client {
    socket: TcpStream,
    grpc: ClientConnection,
    input: BytesMut,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut client = Self {
            socket,
            grpc: ClientConnection::new(&Limits::default(), "test", 0),
            input: BytesMut::new(),
        };
        // The server's settings have come when the first answer has.
        client.call(ECHO, b"");
        client
    }

    fn write(&mut self) {
        let mut output = Output::default();
        self.grpc.swap_output(&mut output);
        self.socket.write_all(&output.segments().collect::<Vec<_>>().concat()).unwrap();
    }

    /// Writes what there is, and reads until so many calls have ended. Returns what they were answered.
    fn finish(&mut self, calls: usize) -> Vec<Bytes> {
        let (mut answers, mut finished) = (Vec::new(), 0);
        let mut piece = vec![0; 64 << 10];
        loop {
            self.write();
            if finished >= calls {
                return answers;
            }
            let count = self.socket.read(&mut piece).unwrap();
            assert!(count > 0, "the server has hung up: {:?}", self.grpc.close_reason());
            self.input.extend_from_slice(&piece[..count]);
            self.grpc.receive(&mut self.input, 0);
            while let Some(event) = self.grpc.poll_event() {
                match event {
                    ClientEvent::Message { stream, message, .. } => {
                        self.grpc.release(stream, message.len());
                        answers.push(message);
                    }
                    ClientEvent::Finished { .. } => finished += 1,
                    _ => {}
                }
            }
        }
    }

    fn call(&mut self, path: &[u8], message: &[u8]) -> Vec<Bytes> {
        self.start(path, message);
        self.finish(1)
    }

    fn start(&mut self, path: &[u8], message: &[u8]) {
        self.grpc.call(path, Message::new(message), &[], None).unwrap();
    }

    /// Bytes that the server's thread holds, and what it counts as buffered.
    fn facts(&mut self) -> [i64; 2] {
        let answer = self.call(FACTS, b"")[0].clone();
        [&answer[..8], &answer[8..]].map(|part| i64::from_be_bytes(part.try_into().unwrap()))
    }

    /// Asks until the server's thread holds no more than that.
    fn live_bytes_fall_to(&mut self, most: i64) {
        let begun = Instant::now();
        loop {
            let [live, _] = self.facts();
            if live <= most {
                return;
            }
            assert!(begun.elapsed() < DEADLINE, "{live} bytes are held, {most} at most were to be");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Passes that each bring one small message which is kept among a quarter of a megabyte which is not.
const PASSES: usize = 100;
const BULK: [u8; 15_000] = [7; 15_000];
const BULK_CALLS: usize = 16;

/// What it may cost the server to keep as many small messages; the buffers that they came in would be 25 MiB.
const KEPT_BYTES_MAX: i64 = 2 << 20;

#[test]
fn a_message_that_nobody_takes_does_not_keep_its_read_buffer() {
    let address = serve();
    let (mut client, mut observer) = (Client::connect(address), Client::connect(address));
    let stream = client.grpc.start(HOLD, &[], None).unwrap();
    let pass = |client: &mut Client| {
        for call in 0..BULK_CALLS {
            client.start(ECHO, &BULK);
            if call == BULK_CALLS / 2 {
                client.grpc.send_message(stream, Message::new(b"small")).unwrap();
            }
        }
        client.finish(BULK_CALLS);
    };
    // The large buffer that is shared, and the tables.
    pass(&mut client);
    let [before, buffered] = observer.facts();
    (0..PASSES).for_each(|_| pass(&mut client));
    observer.live_bytes_fall_to(before + KEPT_BYTES_MAX);
    let [_, more] = observer.facts();
    assert!(more - buffered >= (PASSES * 5) as i64, "{buffered} and then {more} count as buffered");
    client.call(DROP, b"");
    let [_, rest] = observer.facts();
    assert!(rest < buffered, "{rest} bytes count as buffered for a call that has ended");
}

#[test]
fn a_message_that_its_call_keeps_does_not_keep_its_read_buffer() {
    let address = serve();
    let (mut client, mut observer) = (Client::connect(address), Client::connect(address));
    let pass = |client: &mut Client| {
        for call in 0..BULK_CALLS {
            let kept = call == BULK_CALLS / 2;
            client.start(if kept { KEEP } else { ECHO }, if kept { b"small" } else { &BULK });
        }
        client.finish(BULK_CALLS);
    };
    pass(&mut client);
    let [before, _] = observer.facts();
    (0..PASSES).for_each(|_| pass(&mut client));
    observer.live_bytes_fall_to(before + KEPT_BYTES_MAX);
}

#[test]
fn what_a_burst_took_is_given_back_when_its_calls_have_ended() {
    const CALLS: usize = 1000;
    let address = serve();
    let (mut client, mut observer) = (Client::connect(address), Client::connect(address));
    let [before, _] = observer.facts();
    (0..CALLS).for_each(|_| client.start(PARK, b""));
    client.write();
    let mut released = 0;
    while released < CALLS as u64 {
        let answer = observer.call(RELEASE, b"")[0].clone();
        released += u64::from_be_bytes(answer[..].try_into().unwrap());
    }
    client.finish(CALLS);
    // The tables of so many streams are half a megabyte, and their answers were three. What stays is what all connections share.
    observer.live_bytes_fall_to(before + (384 << 10));
    assert_eq!(client.call(ECHO, b"and goes on")[0], &b"and goes on"[..]);
}
