//! The echo on the product's loop with as bare a driver as the ring's: no time-outs, no account of what is held, no abort. What is between it and the
//! product's driver is the driver; what is between it and the ring is the loop.

use std::cell::RefCell;
use std::io::Result;
use std::net::TcpListener;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use monoio::buf::IoBuf;
use prism_benches::echo::{Log, echo, route};
use prism_benches::write::{self, Offsets, aligned};
use prism_io::clock::monotonic_ns;
use prism_io::grpc::{Event, Limits, Message, ServerConnection};
use prism_io::h2::{Output, StreamId};
use prism_io::net::{Listener, ReadHalf, WriteHalf};
use prism_io::rt::{self, Signal};

/// Bytes of a read buffer, as the product begins with.
const READ_BYTES: usize = 3 * 1024;

struct Connection {
    grpc: RefCell<ServerConnection>,
    /// Not there while somebody writes.
    write: RefCell<Option<(WriteHalf, Output)>>,
}

/// An answer that waits for the log.
struct Parked {
    connection: Rc<Connection>,
    stream: StreamId,
    head: Vec<u8>,
    value: Bytes,
}

#[derive(Default)]
struct Waiting {
    parked: RefCell<Vec<Parked>>,
    some: Signal,
}

/// Serves the connections of `socket` until the process ends.
pub(crate) fn serve(socket: TcpListener, log: Option<Log>) -> Result<()> {
    rt::run(async move {
        let waiting = log.map(|log| {
            let waiting = Rc::new(Waiting::default());
            let writing = write_log(waiting.clone(), log);
            rt::spawn(async move { writing.await.expect("the log is written") });
            waiting
        });
        let listener = Listener::new(socket)?;
        loop {
            let (stream, _) = listener.accept().await?;
            let (read, write) = stream.split();
            let grpc = ServerConnection::new(&Limits::default(), route, monotonic_ns());
            let write = RefCell::new(Some((write, Output::default())));
            let connection = Rc::new(Connection { grpc: RefCell::new(grpc), write });
            rt::spawn(connection.read_all(read, waiting.clone()));
        }
    })?
}

impl Connection {
    async fn read_all(self: Rc<Self>, mut read: ReadHalf, waiting: Option<Rc<Waiting>>) {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        loop {
            if buffer.capacity() - buffer.len() < READ_BYTES / 4 {
                buffer.reserve(READ_BYTES);
            }
            let (result, filled) = read.read(buffer).await;
            buffer = filled;
            if !matches!(result, Ok(count) if count > 0) {
                break;
            }
            self.grpc.borrow_mut().receive(&mut buffer, monotonic_ns());
            self.answer(waiting.as_ref());
            self.flush().await;
        }
        if let Some((mut write, _)) = self.write.take() {
            write.close();
        }
    }

    fn answer(self: &Rc<Self>, waiting: Option<&Rc<Waiting>>) {
        let mut grpc = self.grpc.borrow_mut();
        while let Some(event) = grpc.poll_event() {
            let Event::Request { stream, message, .. } = event else { continue };
            let Some((head, value)) = echo(message) else { continue };
            match waiting {
                None => {
                    grpc.respond(stream, Message { head: &head, tail: value }, &[]);
                }
                Some(waiting) => {
                    let connection = self.clone();
                    waiting.parked.borrow_mut().push(Parked { connection, stream, head, value });
                    waiting.some.set();
                }
            }
        }
    }

    /// Writes what there is, unless somebody does so already, who then takes it along.
    async fn flush(&self) {
        let Some((mut write, mut output)) = self.write.take() else { return };
        loop {
            self.grpc.borrow_mut().swap_output(&mut output);
            if output.is_empty() {
                break;
            }
            let (result, buffers) = write.write_output(output, |_| ()).await;
            output = buffers;
            output.clear();
            if result.is_err() {
                write.close();
                break;
            }
        }
        self.write.replace(Some((write, output)));
    }
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
            for Parked { connection, stream, head, value } in &batch {
                let message = Message { head, tail: value.clone() };
                connection.grpc.borrow_mut().respond(*stream, message, &[]);
            }
            // Those with several answers leave the later ones nothing to write.
            for parked in batch {
                parked.connection.flush().await;
            }
        }
    }
}
