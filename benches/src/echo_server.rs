//! The echo on Prism's transport: what `tonic-echo` does, above `prism_io::server`; with a log, if asked for.

use std::cell::RefCell;
use std::io::Result;
use std::net::TcpListener;
use std::rc::Rc;

use bytes::Bytes;
use monoio::buf::IoBuf;
use prism_io::grpc::{Code, Limits, Message, RequestHead, Status};
use prism_io::h2::StreamId;
use prism_io::rt::Signal;
use prism_io::server::{self, Connection, Connections, Options, Service, StreamCall, Tls};
use prism_io::{net, rt};
use prost::Message as _;

use crate::echo::{Log, STREAM_ROUTE, StreamRequest, echo, route};
use crate::write::{self, Offsets, aligned};

const CONNECTIONS_MAX: usize = 20_000;

struct Echo {
    /// Answers that wait for the log, if there is one.
    waiting: Option<Rc<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    parked: RefCell<Vec<Parked>>,
    some: Signal,
}

struct Parked {
    connection: Rc<Connection>,
    stream: StreamId,
    head: Vec<u8>,
    value: Bytes,
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
        let Some((head, value)) = echo(message) else {
            let status = Status::new(Code::InvalidArgument, "not a payload");
            return connection.fail(stream, &status);
        };
        match &self.waiting {
            None => connection.respond(stream, Message { head: &head, tail: value }, &[]),
            Some(waiting) => {
                let connection = connection.clone();
                waiting.parked.borrow_mut().push(Parked { connection, stream, head, value });
                waiting.some.set();
            }
        }
    }

    fn open(&self, _call: StreamCall, _route: u32, _head: RequestHead) {
        unreachable!("no client streams");
    }

    fn turn_ended(&self) {}
}

async fn send_all(call: StreamCall, request: Bytes) {
    let Ok(StreamRequest { messages, value_bytes, .. }) = StreamRequest::decode(request) else {
        return call.fail(&Status::new(Code::InvalidArgument, "not a request for a stream"));
    };
    let value = vec![b'v'; value_bytes as usize];
    let mut encoded = Vec::new();
    for _ in 0..messages {
        // As Prism's own handlers write their answers: into a buffer that they keep.
        encoded.clear();
        prost::encoding::encode_key(2, prost::encoding::WireType::LengthDelimited, &mut encoded);
        prost::encoding::encode_varint(value.len() as u64, &mut encoded);
        encoded.extend_from_slice(&value);
        if call.send(Message::new(&encoded)).await.is_err() {
            return;
        }
    }
    call.finish(&[]);
}

/// One write in flight; what parks meanwhile goes with the next.
async fn write_log(waiting: Rc<Waiting>, log: Log) -> Result<()> {
    let file = monoio::fs::File::from_std(write::open(&log.file)?)?;
    let mut offsets = Offsets::new(0, 1, Log::BATCH_BYTES_MAX);
    let (mut buffer, start) = aligned(Log::BATCH_BYTES_MAX);
    loop {
        waiting.some.wait().await;
        while !waiting.parked.borrow().is_empty() {
            let batch: Vec<Parked> = {
                let mut parked = waiting.parked.borrow_mut();
                let taken = parked.len().min(Log::RECORDS_MAX);
                parked.drain(..taken).collect()
            };
            let slice = buffer.slice(start..start + Log::batch_bytes(batch.len()));
            let (result, slice) = file.write_all_at(slice, offsets.take()).await;
            result?;
            buffer = slice.into_inner();
            for Parked { connection, stream, head, value } in batch {
                connection.respond(stream, Message { head: &head, tail: value }, &[]);
            }
        }
    }
}

/// Serves the connections of `socket` from the calling thread until the process ends.
pub fn serve(socket: TcpListener, log: Option<Log>) -> Result<()> {
    serve_with(socket, log, None)
}

/// The same, over TLS where that is given.
pub fn serve_with(socket: TcpListener, log: Option<Log>, tls: Option<Tls>) -> Result<()> {
    rt::run(async move {
        let options = Options::new(Limits::default(), route, CONNECTIONS_MAX);
        let connections = Rc::new(tls.map_or_else(Connections::default, Connections::with_tls));
        rt::spawn(connections.clone().watch());
        let waiting = log.map(|log| {
            let waiting = Rc::new(Waiting::default());
            let writing = write_log(waiting.clone(), log);
            rt::spawn(async move { writing.await.expect("the log is written") });
            waiting
        });
        let service = Rc::new(Echo { waiting });
        server::accept(net::Listener::new(socket)?, service, options, connections).await;
        Ok(())
    })?
}
