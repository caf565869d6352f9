//! The load: one thread, one loop, Prism's client state machine on its sockets; the same against both servers.
//!
//! Closed loops: each answer lets the next request of its connection go. One pass over a read takes every answer in it, and what they let go leaves
//! in one write.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hdrhistogram::Histogram;
use prism_io::clock::monotonic_ns;
use prism_io::grpc::{ClientConnection, ClientEvent, Code, Limits, Message};
use prism_io::h2::Output;
use prism_io::net::{ReadHalf, Stream, WriteHalf};
use prism_io::rt::{self, Signal};
use prism_io::tls::Connector;
use prism_loadtest::process::cpu_ns;
use prism_loadtest::report::{Latency, histogram};
use prost::Message as _;
use serde::Serialize;

use crate::echo::{Payload, STREAM, StreamRequest, UNARY};

const READ_BYTES: usize = 256 << 10;
const READ_BYTES_MIN: usize = 16 << 10;
/// How long the answers that are missing at the end are waited for.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is called, and how large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// Echoes of a 16 B key and a value.
    Echo {
        /// Bytes of the value.
        value_bytes: usize,
    },
    /// Streams of messages with values of 128 B.
    Stream {
        /// Messages of each.
        messages: u64,
        /// See [`StreamRequest`].
        through_channel: bool,
    },
}

/// Bytes of the value in each message of a stream.
pub const STREAMED_BYTES: u32 = 128;

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The server.
    pub address: SocketAddr,
    /// Speak TLS.
    pub tls: Option<&'static Connector>,
    /// The server's process id.
    pub server: u32,
    /// Where the load runs.
    pub core: usize,
    /// What is called.
    pub kind: Kind,
    /// Connections.
    pub connections: usize,
    /// Calls in flight on each.
    pub in_flight: usize,
    /// Load before the measurement.
    pub warmup: Duration,
    /// The measurement.
    pub duration: Duration,
}

/// What a run found. "Messages" are answers; of a stream each of its messages.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Messages in the measured window.
    pub messages: u64,
    /// The same per second.
    pub messages_per_second: f64,
    /// Of calls, whole streams included.
    pub latency: Latency,
    /// CPU time of the server per message.
    pub server_cpu_us: f64,
    /// Share of its core that the server used.
    pub server_busy: f64,
    /// Share of its core that the load used: near one, it was the bottleneck itself.
    pub load_busy: f64,
}

struct Tally {
    measure_ns: u64,
    end_ns: u64,
    latencies: Histogram<u64>,
    messages: u64,
    /// The first fault, if there was one.
    fault: Option<String>,
    open: usize,
}

struct Shared {
    tally: RefCell<Tally>,
    settled: Signal,
    load: Load,
    message: Vec<u8>,
    value: Bytes,
}

/// Runs it on a thread of its own, pinned to its core.
pub fn run(load: Load) -> Result<Figures> {
    let thread = std::thread::spawn(move || {
        rt::pin(load.core)?;
        rt::run(measure(load))?
    });
    thread.join().map_err(|_| Error::other("the load broke down"))?
}

fn thread_cpu_ns() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let used = text.split_whitespace().next().and_then(|word| word.parse().ok());
    used.ok_or_else(|| Error::other("unreadable schedstat"))
}

async fn measure(load: Load) -> Result<Figures> {
    let (message, value) = match load.kind {
        Kind::Echo { value_bytes } => {
            let key = Bytes::from_static(b"0123456789abcdef");
            let payload = Payload { key, value: vec![b'v'; value_bytes].into() };
            let encoded = Bytes::from(payload.encode_to_vec());
            let head = encoded.len() - value_bytes;
            (encoded[..head].to_vec(), encoded.slice(head..))
        }
        Kind::Stream { messages, through_channel } => {
            let request = StreamRequest { messages, value_bytes: STREAMED_BYTES, through_channel };
            (request.encode_to_vec(), Bytes::new())
        }
    };
    let tally = Tally {
        measure_ns: u64::MAX,
        end_ns: u64::MAX,
        latencies: histogram(),
        messages: 0,
        fault: None,
        open: load.connections,
    };
    let tally = RefCell::new(tally);
    let shared = Rc::new(Shared { tally, settled: Signal::default(), load, message, value });
    let mut sockets = Vec::new();
    for _ in 0..load.connections {
        let socket = Stream::connect(load.address).await?;
        sockets.push(match load.tls {
            None => socket,
            Some(connector) => socket.secure_to(connector).await.map_err(Error::other)?,
        });
    }
    for socket in sockets {
        rt::spawn(serve(shared.clone(), socket));
    }
    rt::sleep(load.warmup).await;
    let (begin_ns, server_ns, load_ns) = (monotonic_ns(), cpu_ns(load.server)?, thread_cpu_ns()?);
    {
        let mut tally = shared.tally.borrow_mut();
        tally.measure_ns = begin_ns;
        tally.messages = 0;
    }
    rt::sleep(load.duration).await;
    let (now_ns, server_end_ns, load_end_ns) =
        (monotonic_ns(), cpu_ns(load.server)?, thread_cpu_ns()?);
    let messages = {
        let mut tally = shared.tally.borrow_mut();
        tally.end_ns = now_ns;
        tally.messages
    };
    let settled = async {
        while shared.tally.borrow().open > 0 {
            shared.settled.wait().await;
        }
    };
    let in_time = rt::timeout(TIMEOUT, settled).await.is_some();
    let tally = shared.tally.borrow();
    if let Some(fault) = &tally.fault {
        return Err(Error::other(fault.clone()));
    }
    if !in_time || messages == 0 {
        return Err(Error::other(format!("answers are missing; {messages} came")));
    }
    let window_ns = (now_ns - begin_ns) as f64;
    Ok(Figures {
        messages,
        messages_per_second: messages as f64 * 1e9 / window_ns,
        latency: Latency::of(&tally.latencies),
        server_cpu_us: (server_end_ns - server_ns) as f64 / 1e3 / messages as f64,
        server_busy: (server_end_ns - server_ns) as f64 / window_ns,
        load_busy: (load_end_ns - load_ns) as f64 / window_ns,
    })
}

struct Connection {
    shared: Rc<Shared>,
    client: RefCell<ClientConnection>,
    /// When each call was started, by its stream.
    started: RefCell<HashMap<u32, u64>>,
    discarded: Cell<u64>,
    ended: Cell<bool>,
}

async fn serve(shared: Rc<Shared>, socket: Stream) {
    let authority = shared.load.address.to_string();
    // Windows that are never what a server waits for.
    let limits = Limits {
        stream_window_bytes: 16 << 20,
        connection_window_bytes: 64 << 20,
        ..Limits::default()
    };
    let mut client = ClientConnection::new(&limits, &authority, monotonic_ns());
    if socket.is_secured() {
        client.over_tls();
    }
    let connection = Connection {
        client: RefCell::new(client),
        started: RefCell::default(),
        discarded: Cell::new(0),
        ended: Cell::new(false),
        shared: shared.clone(),
    };
    let (read, write) = socket.split();
    let mut reading = pin!(connection.read_all(read));
    let mut writing = pin!(connection.write_all(write));
    let result = std::future::poll_fn(|context| {
        if let Poll::Ready(result) = reading.as_mut().poll(context) {
            return Poll::Ready(result);
        }
        writing.as_mut().poll(context)
    })
    .await;
    let mut tally = shared.tally.borrow_mut();
    if let Err(error) = result {
        tally.fault.get_or_insert(error.to_string());
    }
    tally.open -= 1;
    shared.settled.set();
}

impl Connection {
    /// Until the measurement has ended and everything is answered.
    async fn read_all(&self, mut read: ReadHalf) -> Result<()> {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        loop {
            if buffer.capacity() - buffer.len() < READ_BYTES_MIN {
                buffer.reserve(READ_BYTES);
            }
            let (result, filled) = read.read(buffer).await;
            buffer = filled;
            if result? == 0 {
                return Err(Error::other("the server closed a connection"));
            }
            let now_ns = monotonic_ns();
            self.client.borrow_mut().receive(&mut buffer, now_ns);
            self.take_answers(now_ns)?;
            self.fill(now_ns);
            if self.started.borrow().is_empty() {
                self.ended.set(true);
                return Ok(());
            }
        }
    }

    fn take_answers(&self, now_ns: u64) -> Result<()> {
        let mut client = self.client.borrow_mut();
        let mut tally = self.shared.tally.borrow_mut();
        while let Some(event) = client.poll_event() {
            match event {
                ClientEvent::Message { .. } => tally.messages += 1,
                ClientEvent::Finished { stream, finished } => {
                    if finished.code != Code::Ok {
                        let text = format!("{}: {}", finished.code.name(), finished.message);
                        return Err(Error::other(text));
                    }
                    let started = self.started.borrow_mut().remove(&stream.number());
                    if let Some(started_ns) = started
                        && started_ns >= tally.measure_ns
                        && now_ns < tally.end_ns
                    {
                        tally.latencies.saturating_record(now_ns - started_ns);
                    }
                }
                ClientEvent::Headers { .. } | ClientEvent::Writable { .. } => {}
            }
        }
        // Of streams only the framing is read, so that the generator is not what is measured.
        let discarded = client.discarded();
        tally.messages += discarded - self.discarded.replace(discarded);
        Ok(())
    }

    fn fill(&self, now_ns: u64) {
        let Shared { tally, load, message, value, .. } = &*self.shared;
        if now_ns >= tally.borrow().end_ns {
            return;
        }
        let path = match load.kind {
            Kind::Echo { .. } => UNARY,
            Kind::Stream { .. } => STREAM,
        };
        let (mut client, mut started) = (self.client.borrow_mut(), self.started.borrow_mut());
        while started.len() < load.in_flight && client.room() > 0 {
            let message = Message { head: message, tail: value.clone() };
            let stream = match load.kind {
                Kind::Echo { .. } => client.call(path.as_bytes(), message, &[], None),
                // `call` is for one answer: it gives the window back by itself.
                Kind::Stream { .. } => {
                    client.start(path.as_bytes(), &[], None).inspect(|&stream| {
                        client.discard(stream);
                        if client.send_message(stream, message).is_ok() {
                            client.half_close(stream);
                        }
                    })
                }
            };
            let Ok(stream) = stream else { return };
            started.insert(stream.number(), now_ns);
        }
    }

    async fn write_all(&self, mut write: WriteHalf) -> Result<()> {
        let mut output = Output::default();
        self.fill(monotonic_ns());
        loop {
            // Whatever gives it work happens in the poll before this one, in the same task.
            std::future::poll_fn(|_| {
                output.clear();
                self.client.borrow_mut().swap_output(&mut output);
                if output.is_empty() { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            let result;
            (result, output) = write.write_output(output, |_| ()).await;
            result?;
        }
    }
}
