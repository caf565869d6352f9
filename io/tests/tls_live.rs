//! TLS on sockets: what handshakes may cost, what those get who do not speak it, and how connections end.

mod tls_support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prism_io::client::Client;
use prism_io::grpc::{Limits, Message, RequestHead, Route};
use prism_io::h2::{Refusal, StreamId};
use prism_io::server::{Connection, Connections, Options, Service, StreamCall, Tls, accept};
use prism_io::tls::{Connector, Failure, Roots};
use prism_io::{net, rt};
use tls_support::{Files, files};

const PATIENCE: Duration = Duration::from_secs(20);

/// Echoes.
struct Echo;

impl Service for Echo {
    fn request(
        &self,
        connection: &Rc<Connection>,
        stream: StreamId,
        _route: u32,
        _head: RequestHead,
        message: Bytes,
    ) {
        connection.respond(stream, Message { head: b"", tail: message }, &[]);
    }

    fn open(&self, _call: StreamCall, _route: u32, _head: RequestHead) {}

    fn turn_ended(&self) {}
}

fn serve(connections: &Rc<Connections>) -> SocketAddr {
    let local = "127.0.0.1:0".parse().unwrap();
    let socket = net::bind_shared(local, 1).unwrap().pop().unwrap();
    let address = socket.local_addr().unwrap();
    let route = |_: &[u8]| Some(Route { id: 0, client_streaming: false, server_streaming: false });
    let options = Options::new(Limits::default(), route, 100);
    let listener = net::Listener::new(socket).unwrap();
    rt::spawn(accept(listener, Rc::new(Echo), options, connections.clone()));
    rt::spawn(connections.clone().watch());
    address
}

/// Runs `test` against a server that takes so many handshakes at a time, each for so long.
fn with_server<F>(
    handshakes_max: usize,
    timeout: Duration,
    test: impl FnOnce(SocketAddr, Rc<Connections>, Files) -> F + 'static,
) where
    F: Future<Output = ()> + 'static,
{
    rt::run(async move {
        let files = files();
        let tls = Tls { acceptor: files.acceptor(), handshakes_max, timeout };
        let connections = Rc::new(Connections::with_tls(tls));
        let address = serve(&connections);
        rt::timeout(PATIENCE, test(address, connections, files)).await.expect("it ends in time");
    })
    .unwrap();
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        // Time passes only for a loop that may rest.
        rt::sleep(Duration::from_millis(1)).await;
    }
}

async fn secured(address: SocketAddr, files: &Files) -> Client {
    let (connector, limits) = (files.connector(), Limits::default());
    Client::connect_secured(address, &connector, "localhost", &limits).await.unwrap()
}

async fn echo(client: &Client, message: &[u8]) {
    let reply = client.unary("/t/Echo", &[], message, PATIENCE).await.unwrap();
    assert!(reply.message == message);
}

/// Everything that the server says to these bytes, until it closes. A thread of its own: the loop serves meanwhile.
async fn answer(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.write_all(bytes).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let reader = std::thread::spawn(move || {
        let mut heard = Vec::new();
        match socket.read_to_end(&mut heard) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => heard,
        }
    });
    until("an answer", || reader.is_finished()).await;
    reader.join().unwrap()
}

fn failed(connections: &Connections, kind: &str) -> u64 {
    let kind = Failure::KINDS.iter().position(|name| *name == kind).unwrap();
    connections.handshakes().failed(kind)
}

fn refused_as(connections: &Connections, wanted: Refusal) -> u64 {
    let mut refused = 0;
    connections.traffic().refused(|kind, count| refused += if kind == wanted { count } else { 0 });
    refused
}

#[test]
fn calls_go_through_whatever_their_size() {
    with_server(8, PATIENCE, |address, connections, files| async move {
        let client = secured(address, &files).await;
        for length in [0, 1, 100, 5_000, 16_384, 70_000, 1 << 20, 3 << 20] {
            let message: Vec<u8> = (0..length).map(|at| (at * 31) as u8).collect();
            echo(&client, &message).await;
        }
        assert_eq!(connections.handshakes().full.get(), 1);
        drop(client);
        until("the connection ends", || connections.open() == 0).await;
        assert_eq!(connections.traffic().truncated.get(), 0, "our client says goodbye");
    });
}

#[test]
fn a_connection_is_taken_up_again_by_its_ticket() {
    with_server(8, PATIENCE, |address, connections, files| async move {
        let (connector, limits) = (files.connector(), Limits::default());
        for _ in 0..3 {
            let client =
                Client::connect_secured(address, &connector, "localhost", &limits).await.unwrap();
            echo(&client, b"x").await;
        }
        let handshakes = connections.handshakes();
        assert_eq!((handshakes.full.get(), handshakes.resumed.get()), (1, 2));
    });
}

#[test]
fn those_who_speak_in_clear_are_told_so() {
    with_server(8, PATIENCE, |address, connections, _files| async move {
        let heard = answer(address, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let text = String::from_utf8(heard).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("speaks TLS"), "{text}");
        let heard = answer(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
        assert!(heard.ends_with(b"this port has TLS"), "{heard:?}");
        let heard = answer(address, b"\0\x01\x02\x03\x04\x05\x06\x07").await;
        assert_eq!(heard.first(), Some(&21), "an alert: {heard:?}");
        until("they are counted by kind", || {
            (failed(&connections, "cleartext"), failed(&connections, "malformed")) == (2, 1)
        })
        .await;
        let client = Client::connect(address).await.unwrap();
        let failure = client.unary("/t/Echo", &[], b"x", PATIENCE).await.unwrap_err();
        assert!(failure.message.contains("TLS") || client.is_closed(), "{failure}");
        until("all is over", || connections.open() == 0).await;
    });
}

#[test]
fn one_who_begins_tls_on_a_port_in_clear_gets_an_alert() {
    rt::run(async {
        let connections = Rc::new(Connections::default());
        let address = serve(&connections);
        let files = files();
        let limits = Limits::default();
        let connector = files.connector();
        let attempt = Client::connect_secured(address, &connector, "localhost", &limits);
        let failure = rt::timeout(PATIENCE, attempt).await.expect("no hang").err().unwrap();
        assert!(matches!(failure, Failure::Alert(_)), "{failure}");
        until("it is counted", || connections.traffic().unexpected_tls.get() == 1).await;
    })
    .unwrap();
}

#[test]
fn handshakes_in_flight_are_bounded_and_end_in_time() {
    with_server(4, Duration::from_millis(300), |address, connections, files| async move {
        let client = secured(address, &files).await;
        let mut silent: Vec<_> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
        // One of them speaks, slowly.
        silent[0].write_all(&[22, 3, 1]).unwrap();
        until("they are under way", || connections.handshakes().in_flight.get() == 4).await;
        let refused = answer(address, b"").await;
        assert!(refused.is_empty());
        assert_eq!(refused_as(&connections, Refusal::Handshakes), 1);
        // Whoever is in already feels nothing of it.
        echo(&client, b"still here").await;
        until("they were given up", || failed(&connections, "timeout") == 4).await;
        assert_eq!(refused_as(&connections, Refusal::HandshakeTime), 4);
        for socket in &mut silent {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            assert!(socket.read(&mut [0]).is_ok_and(|read| read == 0), "its socket is closed");
        }
        until("their places are free", || connections.handshakes().in_flight.get() == 0).await;
        echo(&secured(address, &files).await, b"and others come in again").await;
    });
}

#[test]
fn a_handshake_cut_off_anywhere_is_counted_and_leaves_nothing() {
    with_server(64, PATIENCE, |address, connections, files| async move {
        let mut session = files.connector().session().unwrap();
        let mut hello = prism_io::tls::Sealed::default();
        session.start(&mut hello).unwrap();
        let hello = hello.as_slice();
        let cuts = (0..hello.len()).step_by(7).chain([hello.len()]);
        for (before, cut) in (0..).zip(cuts) {
            let mut socket = TcpStream::connect(address).unwrap();
            socket.write_all(&hello[..cut]).unwrap();
            drop(socket);
            until("it is counted", || failed(&connections, "disconnected") > before).await;
        }
        assert_eq!(connections.handshakes().in_flight.get(), 0);
        assert_eq!(connections.open(), 0);
    });
}

#[test]
fn a_server_that_is_not_who_it_should_be_is_refused_and_hears_why() {
    with_server(8, PATIENCE, |address, connections, files| async move {
        let limits = Limits::default();
        let wrong_name = Connector::new(&Roots::File(files.path("ca.pem")), "example.com").unwrap();
        let strangers = tls_support::files();
        for connector in [wrong_name, strangers.connector()] {
            let attempt = Client::connect_secured(address, &connector, "localhost", &limits).await;
            let failure = attempt.err().unwrap();
            assert!(matches!(failure, Failure::Untrusted(_)), "{failure}");
        }
        until("it heard", || failed(&connections, "alert") == 2).await;
    });
}

#[test]
fn a_peer_that_hangs_up_without_goodbye_is_told_apart() {
    with_server(8, PATIENCE, |address, connections, files| async move {
        let connector = files.connector();
        let stream = net::Stream::connect(address).await.unwrap();
        let stream = stream.secure_to(&connector).await.unwrap();
        assert_eq!(stream.protocol().as_deref(), Some(&b"h2"[..]));
        until("it is in", || connections.handshakes().full.get() == 1).await;
        // Dropped, not closed.
        drop(stream.split());
        until("it is counted", || connections.traffic().truncated.get() == 1).await;
    });
}

#[test]
fn the_servers_goodbye_comes_before_the_end() {
    with_server(8, PATIENCE, |address, _connections, files| async move {
        let stream = net::Stream::connect(address).await.unwrap();
        let (mut read, mut write) = stream.secure_to(&files.connector()).await.unwrap().split();
        // Not HTTP/2: the answer, then the end.
        write.write_all(b"\0\0\0\0\0\0\0\0\0\0".to_vec()).await.0.unwrap();
        let mut heard = bytes::BytesMut::with_capacity(1024);
        loop {
            let (result, buffer) = read.read(heard).await;
            heard = buffer;
            heard.reserve(1024);
            if result.expect("no truncation") == 0 {
                break;
            }
        }
        assert!(!heard.is_empty());
        assert!(!read.is_truncated());
    });
}
