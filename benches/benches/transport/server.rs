//! The echo on Prism's transport: what `tonic-echo` does, above `prism_io::server`.

use std::io::{Result, Write};
use std::rc::Rc;

use bytes::Bytes;
use prism_benches::echo::{Payload, STREAM, StreamRequest, UNARY};
use prism_io::grpc::{Code, Limits, Message, RequestHead, Route, Status};
use prism_io::h2::StreamId;
use prism_io::server::{self, Connection, Connections, Options, Service, StreamCall};
use prism_io::{net, rt};
use prost::Message as _;

const CONNECTIONS_MAX: usize = 20_000;
const UNARY_ROUTE: u32 = 0;
const STREAM_ROUTE: u32 = 1;

struct Echo;

pub(crate) fn route(path: &[u8]) -> Option<Route> {
    let (id, server_streaming) = match path {
        _ if path == UNARY.as_bytes() => (UNARY_ROUTE, false),
        _ if path == STREAM.as_bytes() => (STREAM_ROUTE, true),
        _ => return None,
    };
    Some(Route { id, client_streaming: false, server_streaming })
}

impl Service for Echo {
    fn request(
        &self,
        connection: &Rc<Connection>,
        stream: StreamId,
        route: u32,
        _head: RequestHead,
        message: Bytes,
    ) {
        if route == STREAM_ROUTE {
            let call = connection.stream(stream);
            rt::spawn(send_all(call, message));
            return;
        }
        match echo(message) {
            Some((head, value)) => {
                connection.respond(stream, Message { head: &head, tail: value }, &[])
            }
            None => connection.fail(stream, &Status::new(Code::InvalidArgument, "not a payload")),
        }
    }

    fn open(&self, _call: StreamCall, _route: u32, _head: RequestHead) {
        unreachable!("no client streams");
    }

    fn turn_ended(&self) {}
}

/// Decodes a request and encodes it again: all but the bytes of its value, which come last.
pub(crate) fn echo(message: Bytes) -> Option<(Vec<u8>, Bytes)> {
    let payload = Payload::decode(message).ok()?;
    let mut head = Vec::with_capacity(payload.key.len() + 16);
    Payload { key: payload.key, value: Bytes::new() }.encode_raw(&mut head);
    if !payload.value.is_empty() {
        prost::encoding::encode_key(2, prost::encoding::WireType::LengthDelimited, &mut head);
        prost::encoding::encode_varint(payload.value.len() as u64, &mut head);
    }
    Some((head, payload.value))
}

async fn send_all(call: StreamCall, request: Bytes) {
    let Ok(StreamRequest { messages, value_bytes, .. }) = StreamRequest::decode(request) else {
        return call.fail(&Status::new(Code::InvalidArgument, "not a request for a stream"));
    };
    let value = Bytes::from(vec![b'v'; value_bytes as usize]);
    let mut encoded = Vec::new();
    for _ in 0..messages {
        encoded.clear();
        Payload { key: Bytes::new(), value: value.clone() }.encode_raw(&mut encoded);
        if call.send(Message::new(&encoded)).await.is_err() {
            return;
        }
    }
    call.finish(&[]);
}

/// `serve <core>`: prints where it listens and serves until it is killed.
pub(crate) fn run(core: usize) -> Result<()> {
    rt::pin(core)?;
    let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
    println!("{}", socket.local_addr()?);
    std::io::stdout().flush()?;
    rt::run(async move {
        let options =
            Options { limits: Limits::default(), route, connections_max: CONNECTIONS_MAX };
        let connections = Rc::new(Connections::default());
        rt::spawn(connections.clone().watch());
        server::accept(net::Listener::new(socket)?, Rc::new(Echo), options, connections).await;
        Ok(())
    })?
}
