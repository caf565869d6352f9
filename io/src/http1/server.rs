//! A small HTTP/1.1 server for GET requests, for the control thread: metrics, health, configuration.
//!
//! One thread, `poll(2)` and non-blocking sockets, so that a slow client costs the others nothing. Everything is bounded:
//! heads, connections, and the time that a request or an answer may take; when all connections are taken, the one that
//! would time out first gives way to a new one. Serves no request bodies, no TLS and no authentication, and therefore
//! belongs on loopback or behind something that has them. Never used for data.

#![allow(unsafe_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::head::{self, BodyLength, Parsed, phrase};

/// Largest request head, in bytes.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
/// Most open connections.
pub const CONNECTIONS_MAX: usize = 32;
/// How long a client may take to send a request head, or to take an answer.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long no connection is accepted after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long a connection may stay open between requests.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// A request, without its head fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// The path as it was sent, without the query.
    pub path: &'a str,
    /// What follows `?`; empty without one.
    pub query: &'a str,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// 200 to 599.
    pub status: u16,
    /// The media type of the body.
    pub content_type: &'static str,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Response {
    /// An answer in plain text.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        let body = body.into().into_bytes();
        Self { status, content_type: "text/plain; charset=utf-8", body }
    }
}

/// Wakes a [`Server`] from another thread and tells it to stop.
#[derive(Debug)]
pub struct Stop(UnixStream);

impl Stop {
    /// Stops the server; does nothing when it has stopped.
    pub fn stop(&self) {
        // A failure means that the server is gone, which is what was asked for.
        let _ = (&self.0).write(&[1]);
    }
}

/// The server. Dropping it closes every connection.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    stopped: UnixStream,
    stop: UnixStream,
    connections: Vec<Connection>,
    exchange_timeout: Duration,
    /// No descriptor was left for a new connection: do not ask again before this.
    accept_after: Option<Instant>,
}

/// Whether the server goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Call [`Server::turn`] again.
    GoOn,
    /// Somebody called [`Stop::stop`].
    Stopped,
}

impl Server {
    /// Listens on `address`; port 0 lets the kernel choose.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let (stopped, stop) = UnixStream::pair()?;
        stopped.set_nonblocking(true)?;
        let (connections, exchange_timeout) = (Vec::new(), EXCHANGE_TIMEOUT);
        Ok(Self { listener, stopped, stop, connections, exchange_timeout, accept_after: None })
    }

    /// Where it listens.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// A handle that stops it from another thread.
    pub fn stop_handle(&self) -> io::Result<Stop> {
        Ok(Stop(self.stop.try_clone()?))
    }

    /// Serves until [`Stop::stop`] is called.
    pub fn run(&mut self, mut answer: impl FnMut(&Request<'_>) -> Response) -> io::Result<()> {
        while self.turn(None, &mut answer)? == Turn::GoOn {}
        Ok(())
    }

    /// Waits until a socket is ready or `wait` has passed (for ever without it), and serves what is there.
    pub fn turn(
        &mut self,
        wait: Option<Duration>,
        answer: &mut impl FnMut(&Request<'_>) -> Response,
    ) -> io::Result<Turn> {
        let ready = self.poll(wait)?;
        if ready.stop {
            return Ok(Turn::Stopped);
        }
        let now = Instant::now();
        let mut index = 0;
        for is_ready in ready.connections {
            let connection = &mut self.connections[index];
            let open = if is_ready { connection.turn(now, answer) } else { true };
            if open && connection.deadline > now {
                index += 1;
            } else {
                self.connections.swap_remove(index);
                // What was swapped in keeps no readiness; the next turn finds it.
                break;
            }
        }
        self.connections.retain(|connection| connection.deadline > now);
        if ready.listener {
            self.accept(now);
        }
        Ok(Turn::GoOn)
    }

    fn accept(&mut self, now: Instant) {
        self.accept_after = None;
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(_) => {
                    // Out of descriptors or memory; the listener stays readable, so asking at once would spin.
                    self.accept_after = Some(now + ACCEPT_PAUSE);
                    return;
                }
            };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.connections.len() >= CONNECTIONS_MAX {
                let first = |(_, connection): &(usize, &Connection)| connection.deadline;
                if let Some((index, _)) = self.connections.iter().enumerate().min_by_key(first) {
                    self.connections.swap_remove(index);
                }
            }
            self.connections.push(Connection::new(stream, now, self.exchange_timeout));
        }
    }

    fn poll(&self, wait: Option<Duration>) -> io::Result<Ready> {
        let interest = |fd: i32, events| libc::pollfd { fd, events, revents: 0 };
        let mut interests = Vec::with_capacity(self.connections.len() + 2);
        interests.push(interest(self.stopped.as_raw_fd(), libc::POLLIN));
        let now = Instant::now();
        let accepts = self.accept_after.is_none_or(|after| after <= now);
        let events = if accepts { libc::POLLIN } else { 0 };
        interests.push(interest(self.listener.as_raw_fd(), events));
        for connection in &self.connections {
            let events = if connection.output.is_empty() { libc::POLLIN } else { libc::POLLOUT };
            interests.push(interest(connection.stream.as_raw_fd(), events));
        }
        let deadlines = self.connections.iter().map(|connection| connection.deadline);
        let deadline = deadlines.chain(self.accept_after.filter(|_| !accepts)).min();
        let until_deadline = deadline.map(|deadline| deadline.saturating_duration_since(now));
        let timeout = match (wait, until_deadline) {
            (Some(wait), Some(until)) => Some(wait.min(until)),
            (wait, until) => wait.or(until),
        };
        // Rounded up, so that the deadline has passed when poll returns.
        let timeout_ms = timeout.map_or(-1, |timeout| {
            i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        // SAFETY: the pointer and length are those of a live, exclusively borrowed vector of pollfd, and every file
        // descriptor in it belongs to a socket that `self` owns and that stays open during the call.
        let count = unsafe {
            libc::poll(interests.as_mut_ptr(), interests.len() as libc::nfds_t, timeout_ms)
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != ErrorKind::Interrupted {
                return Err(error);
            }
            interests.iter_mut().for_each(|interest| interest.revents = 0);
        }
        let mut ready = interests.iter().map(|interest| interest.revents != 0);
        let stop = ready.next().unwrap_or(false);
        let listener = ready.next().unwrap_or(false);
        Ok(Ready { stop, listener, connections: ready.collect() })
    }
}

struct Ready {
    stop: bool,
    listener: bool,
    connections: Vec<bool>,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    close_after: bool,
    exchange_timeout: Duration,
    deadline: Instant,
}

impl Connection {
    fn new(stream: TcpStream, now: Instant, exchange_timeout: Duration) -> Self {
        Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            close_after: false,
            exchange_timeout,
            deadline: now + exchange_timeout,
        }
    }

    /// Reads, answers and writes what can be without waiting. False when the connection is over.
    fn turn(&mut self, now: Instant, answer: &mut impl FnMut(&Request<'_>) -> Response) -> bool {
        if self.output.is_empty() {
            let mut chunk = [0; HEAD_BYTES_MAX];
            match self.stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(count) => {
                    if self.input.is_empty() {
                        self.deadline = now + self.exchange_timeout;
                    }
                    self.input.extend_from_slice(&chunk[..count]);
                }
                Err(error) if is_transient(&error) => return true,
                Err(_) => return false,
            }
        }
        loop {
            if self.output.is_empty() && !self.answer_next(now, answer) {
                return true;
            }
            match self.stream.write(&self.output[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if is_transient(&error) => return true,
                Err(_) => return false,
            }
            if self.sent < self.output.len() {
                continue;
            }
            if self.close_after {
                return false;
            }
            self.output.clear();
            self.sent = 0;
            self.deadline = now + IDLE_TIMEOUT;
        }
    }

    /// Puts the answer to the next whole request into the output. False where there is none yet.
    fn answer_next(
        &mut self,
        now: Instant,
        answer: &mut impl FnMut(&Request<'_>) -> Response,
    ) -> bool {
        let Some(head) = parse(&self.input) else { return false };
        let response = match head.verdict {
            Ok(ref request) => answer(request),
            Err(status) => Response::text(status, format!("{}\n", phrase(status))),
        };
        self.close_after = head.close;
        write_response(&mut self.output, &response, head.close, head.without_body);
        self.input.drain(..head.length);
        self.deadline = now + self.exchange_timeout;
        true
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

struct Answered<'a> {
    /// The request, or the status that refuses it.
    verdict: Result<Request<'a>, u16>,
    length: usize,
    close: bool,
    without_body: bool,
}

/// The request at the front of `input`, if it is whole. This server takes no bodies.
fn parse(input: &[u8]) -> Option<Answered<'_>> {
    let refuse = |status| {
        let (length, close, without_body) = (input.len(), true, false);
        Some(Answered { verdict: Err(status), length, close, without_body })
    };
    let (head, length) = match head::parse(input, 0, HEAD_BYTES_MAX) {
        Parsed::Partial => return None,
        Parsed::Whole(head, length) => (head, length),
        Parsed::Refused(head::Refused(status, _)) => return refuse(status),
    };
    if head.body != BodyLength::Known(0) {
        return refuse(413);
    }
    let (path, query) = head.target.split_once('?').unwrap_or((head.target, ""));
    let verdict = match head.method {
        "GET" | "HEAD" => Ok(Request { path, query }),
        _ => Err(405),
    };
    Some(Answered { verdict, length, close: head.close, without_body: head.method == "HEAD" })
}

fn write_response(output: &mut Vec<u8>, response: &Response, close: bool, without_body: bool) {
    let Response { status, content_type, body } = response;
    let head = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{}{}\r\n",
        phrase(*status),
        body.len(),
        if *status == 405 { "Allow: GET, HEAD\r\n" } else { "" },
        if close { "Connection: close\r\n" } else { "" },
    );
    output.extend_from_slice(head.as_bytes());
    if !without_body {
        output.extend_from_slice(body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::{self, JoinHandle};

    struct Running {
        address: SocketAddr,
        stop: Stop,
        thread: JoinHandle<io::Result<()>>,
    }

    impl Running {
        fn start() -> Self {
            Self::start_with(EXCHANGE_TIMEOUT)
        }

        fn start_with(exchange_timeout: Duration) -> Self {
            let mut server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            server.exchange_timeout = exchange_timeout;
            let (address, stop) = (server.local_address().unwrap(), server.stop_handle().unwrap());
            let thread = thread::spawn(move || {
                server.run(|request| match request.path {
                    "/hello" => Response::text(200, format!("hello {}", request.query)),
                    "/large" => Response::text(200, "x".repeat(8 << 20)),
                    _ => Response::text(404, "nothing here"),
                })
            });
            Self { address, stop, thread }
        }

        fn connect(&self) -> TcpStream {
            let stream = TcpStream::connect(self.address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream
        }

        /// Sends `request` and reads until the server closes.
        fn exchange(&self, request: &[u8]) -> String {
            let mut stream = self.connect();
            stream.write_all(request).unwrap();
            let mut answer = Vec::new();
            // A reset after the answer is the server's right: it refused bytes that it had not read.
            let _ = stream.read_to_end(&mut answer);
            String::from_utf8(answer).unwrap()
        }

        fn end(self) {
            self.stop.stop();
            self.thread.join().unwrap().unwrap();
        }
    }

    #[test]
    fn requests_are_answered_and_bad_ones_refused() {
        let server = Running::start();
        let cases: [(&[u8], &str); 14] = [
            (b"GET /hello?you HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "200 OK"),
            (b"GET /hello HTTP/1.0\r\n\r\n", "200 OK"),
            (b"HEAD /hello HTTP/1.0\r\n\r\n", "200 OK"),
            (b"GET /other HTTP/1.0\r\n\r\n", "404 Not Found"),
            (b"POST /hello HTTP/1.0\r\nContent-Length: 0\r\n\r\n", "405 Method Not Allowed"),
            (b"POST /hello HTTP/1.0\r\nContent-Length: 5\r\n\r\nabcde", "413 Content Too Large"),
            (
                b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
                "413 Content Too Large",
            ),
            (b"GET /hello HTTP/1.1\r\n\r\n", "400 Bad Request"),
            (b"GET hello HTTP/1.1\r\nHost: a\r\n\r\n", "400 Bad Request"),
            (b"GET  /hello HTTP/1.1\r\nHost: a\r\n\r\n", "400 Bad Request"),
            (b"GET /hello HTTP/1.1\r\nHost : a\r\n\r\n", "400 Bad Request"),
            (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", "400 Bad Request"),
            (b"GET /hello HTTP/2.0\r\nHost: a\r\n\r\n", "505 HTTP Version Not Supported"),
            (&[b'x'; HEAD_BYTES_MAX], "414 URI Too Long"),
        ];
        for (request, status) in cases {
            let answer = server.exchange(request);
            let shown = String::from_utf8_lossy(request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{shown}: {answer}");
        }
        assert!(server.exchange(cases[0].0).ends_with("\r\n\r\nhello you"));
        assert!(server.exchange(cases[2].0).ends_with("Content-Length: 6\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"));
        server.end();
    }

    #[test]
    fn a_connection_serves_several_requests_also_in_one_packet() {
        let server = Running::start();
        let twice = b"GET /hello?1 HTTP/1.1\r\nHost: a\r\n\r\nGET /hello?2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let answer = server.exchange(twice);
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2);
        assert!(answer.contains("hello 1") && answer.ends_with("hello 2"), "{answer}");
        server.end();
    }

    #[test]
    fn a_large_answer_arrives_whole() {
        let server = Running::start();
        let answer = server.exchange(b"GET /large HTTP/1.0\r\n\r\n");
        assert_eq!(answer.split_once("\r\n\r\n").unwrap().1.len(), 8 << 20);
        server.end();
    }

    #[test]
    fn slow_clients_do_not_keep_the_others_waiting() {
        let server = Running::start();
        let mut slow: Vec<TcpStream> = Vec::new();
        for _ in 0..2 * CONNECTIONS_MAX {
            let mut stream = server.connect();
            stream.write_all(b"GET /hello HTTP/1.1\r\nHo").unwrap();
            slow.push(stream);
        }
        // A client that never reads its answer blocks only itself.
        let mut deaf = server.connect();
        deaf.write_all(b"GET /large HTTP/1.0\r\n\r\n").unwrap();
        let began = Instant::now();
        let answer = server.exchange(b"GET /hello HTTP/1.0\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(began.elapsed() < EXCHANGE_TIMEOUT, "it took {:?}", began.elapsed());
        // The oldest gave way.
        assert_eq!(slow[0].read(&mut [0; 16]).unwrap_or(0), 0);
        server.end();
    }

    #[test]
    fn a_silent_client_is_dropped_in_time() {
        let server = Running::start_with(Duration::from_millis(50));
        let mut stream = server.connect();
        stream.write_all(b"GET /").unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0, "closed by the server");
        server.end();
    }
}
