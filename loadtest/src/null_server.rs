//! `prism-loadtest null-server`: answers Get and Set through Prism's own transport without doing anything.
//!
//! It shows the ceiling of the generator and of the transport: what a real server adds on top of it is the price of real work. It stores nothing, checks nothing and knows
//! no namespace.

use std::io::{Result, Write};
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;

use bytes::Bytes;
use prism_io::grpc::{Message, RequestHead, Route};
use prism_io::h2::{Limits, StreamId};
use prism_io::server::{self, Connection, Connections, Options, Service, StreamCall};
use prism_io::{net, rt};
use prism_proto::prism::keyvalue::v1::{GetResponse, SetResponse};
use prism_proto::prism::r#type::v1::Entry;
use prost::Message as _;

use crate::kv::workload::Kind;

/// Most connections that are accepted.
const CONNECTIONS_MAX: usize = 100_000;

struct Null {
    found: Vec<u8>,
    stored: Vec<u8>,
}

impl Service for Null {
    fn request(
        &self,
        connection: &Rc<Connection>,
        stream: StreamId,
        route: u32,
        _head: RequestHead,
        _message: Bytes,
    ) {
        let answer = if route == Kind::Read as u32 { &self.found } else { &self.stored };
        connection.respond(stream, Message::new(answer), &[]);
    }

    fn open(&self, _call: StreamCall, _route: u32, _head: RequestHead) {
        unreachable!("no route streams");
    }

    fn turn_ended(&self) {}
}

/// The route of Get and of Set; everything else is UNIMPLEMENTED.
pub fn route(path: &[u8]) -> Option<Route> {
    let kind = [Kind::Read, Kind::Write].into_iter().find(|kind| kind.path().as_bytes() == path)?;
    Some(Route { id: kind as u32, client_streaming: false, server_streaming: false })
}

/// The answers to Get, with a value of `value_bytes`, and to Set.
pub fn answers(value_bytes: usize) -> (Vec<u8>, Vec<u8>) {
    let entry = Entry { value: vec![b'v'; value_bytes].into(), ..Entry::default() };
    let found = GetResponse { found: true, entry: Some(entry) };
    let stored = SetResponse { applied: true, ..SetResponse::default() };
    (found.encode_to_vec(), stored.encode_to_vec())
}

/// Serves on `address` from one loop, pinned to `core` if one is named, until the process ends. Prints where it listens.
pub fn run(address: SocketAddr, core: Option<usize>, value_bytes: usize) -> Result<()> {
    if let Some(core) = core {
        rt::pin(core)?;
    }
    let socket = net::bind_shared(address, 1)?.pop().expect("one was asked for");
    println!("{}", socket.local_addr()?);
    std::io::stdout().flush()?;
    serve(socket, value_bytes)
}

/// Serves the connections of a bound socket from the calling thread, for ever.
pub fn serve(socket: TcpListener, value_bytes: usize) -> Result<()> {
    let (found, stored) = answers(value_bytes);
    rt::run(async move {
        let options = Options::new(Limits::default(), route, CONNECTIONS_MAX);
        let connections = Rc::new(Connections::default());
        rt::spawn(connections.clone().watch());
        let listener = net::Listener::new(socket)?;
        server::accept(listener, Rc::new(Null { found, stored }), options, connections).await;
        Ok(())
    })?
}
