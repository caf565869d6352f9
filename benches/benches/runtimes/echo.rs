//! The transport: Prism's HTTP/2 and gRPC answering Get without doing anything, on each runtime's own sockets.
//!
//! The state machine is the same everywhere; what differs is who reads and writes.

use std::io::{Error, Result, Write};
use std::net::SocketAddr;
use std::process::Command;

use bytes::BytesMut;
use prism_benches::prism::binary;
use prism_benches::process::Server;
use prism_benches::report::{Table, median};
use prism_io::clock::monotonic_ns;
use prism_io::grpc::{Event, Message, ServerConnection};
use prism_io::h2::{Limits, Output};
use prism_loadtest::null_server;
use prism_loadtest::report::Report;
use serde::Serialize;

use crate::Plan;

const RUNTIMES: [&str; 3] = ["monoio", "glommio", "tokio"];
/// Connections and requests in flight on each.
const SHAPES: [(usize, usize); 4] = [(8, 16), (64, 1), (512, 1), (1, 1)];
/// Bytes of a read buffer.
const READ_BYTES: usize = 64 << 10;
const VALUE_BYTES: usize = 128;

/// One runtime in one shape.
#[derive(Serialize)]
pub(crate) struct Row {
    runtime: &'static str,
    connections: usize,
    in_flight: usize,
    rounds: Vec<Report>,
}

pub(crate) fn compare(plan: &Plan) -> Result<Vec<Row>> {
    let loadtest = binary("prism-loadtest")?;
    let mut servers = Vec::new();
    for runtime in RUNTIMES {
        let mut command = Command::new(std::env::current_exe()?);
        let mut server =
            Server::start(command.args(["serve", runtime, &plan.server_core.to_string()]))?;
        let address = server.line()?;
        servers.push((runtime, server, address));
    }
    let mut rows = Vec::new();
    for (connections, in_flight) in SHAPES {
        let row = |runtime| Row { runtime, connections, in_flight, rounds: Vec::new() };
        let mut group: Vec<Row> = RUNTIMES.map(row).into();
        for _ in 0..plan.rounds {
            for (row, (_, server, address)) in group.iter_mut().zip(&servers) {
                let output = Command::new(&loadtest)
                    .args(["kv", "--output", "json", "--mix", "1:0", "--no-preload"])
                    .args(["--endpoint", address, "--cores", &plan.load_core.to_string()])
                    .args(["--connections", &connections.to_string()])
                    .args(["--in-flight", &in_flight.to_string()])
                    .args([
                        "--warmup",
                        "200ms",
                        "--duration",
                        if plan.quick { "200ms" } else { "2s" },
                    ])
                    .args(["--server-pid", &server.id().to_string()])
                    .output()?;
                if !output.status.success() {
                    let text = String::from_utf8_lossy(&output.stdout);
                    return Err(Error::other(format!("{}: {text}", row.runtime)));
                }
                row.rounds.push(serde_json::from_slice(&output.stdout)?);
            }
        }
        rows.append(&mut group);
    }
    Ok(rows)
}

pub(crate) fn table(rows: &[Row]) -> Table {
    let columns = ["", "req/s", "p50 µs", "p99 µs", "p99.9 µs", "server CPU µs"];
    let mut table = Table::new("The transport alone, connections × in flight, medians", &columns);
    for row in rows {
        let of =
            |field: fn(&Report) -> f64| median(&row.rounds.iter().map(field).collect::<Vec<_>>());
        table.row(vec![
            format!("{}×{} {}", row.connections, row.in_flight, row.runtime),
            format!("{:.0}", of(|round| round.requests_per_second)),
            format!("{:.0}", of(|round| round.latency.p50_us)),
            format!("{:.0}", of(|round| round.latency.p99_us)),
            format!("{:.0}", of(|round| round.latency.p999_us)),
            format!("{:.2}", of(|round| round.server_cpu_us.unwrap_or(f64::NAN))),
        ]);
    }
    table
}

/// `serve <runtime> <core>`: prints where it listens and serves until it is killed.
pub(crate) fn child(arguments: &[String]) -> Result<()> {
    let [runtime, core] = arguments else {
        return Err(Error::other("serve takes two arguments"));
    };
    let core = core.parse().map_err(Error::other)?;
    if runtime == "glommio" {
        return on_glommio(core);
    }
    prism_io::rt::pin(core)?;
    let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
    say(socket.local_addr()?)?;
    match runtime.as_str() {
        "monoio" => null_server::serve(socket, VALUE_BYTES),
        "tokio" => on_tokio(socket),
        other => Err(Error::other(format!("unknown runtime {other}"))),
    }
}

fn say(address: SocketAddr) -> Result<()> {
    println!("{address}");
    std::io::stdout().flush()
}

/// A connection without its socket.
struct Turn {
    grpc: ServerConnection,
    input: BytesMut,
    output: Output,
    answer: Vec<u8>,
}

impl Turn {
    fn new() -> Self {
        Self {
            grpc: ServerConnection::new(&Limits::default(), null_server::route, monotonic_ns()),
            input: BytesMut::with_capacity(READ_BYTES),
            output: Output::default(),
            answer: null_server::answers(VALUE_BYTES).0,
        }
    }

    /// Answers what has been read, and returns what is to be written.
    fn take(&mut self) -> &[u8] {
        self.grpc.receive(&mut self.input, monotonic_ns());
        while let Some(event) = self.grpc.poll_event() {
            if let Event::Request { stream, .. } = event {
                self.grpc.respond(stream, Message::new(&self.answer), &[]);
            }
        }
        self.grpc.swap_output(&mut self.output);
        assert!(self.output.is_contiguous(), "answers are small");
        self.input.reserve(READ_BYTES / 2);
        &self.output.inline
    }
}

fn on_tokio(socket: std::net::TcpListener) -> Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        socket.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(socket)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::task::spawn_local(async move {
                let mut turn = Turn::new();
                while matches!(stream.read_buf(&mut turn.input).await, Ok(count) if count > 0) {
                    if stream.write_all(turn.take()).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

fn on_glommio(core: usize) -> Result<()> {
    use futures_lite::{AsyncReadExt, AsyncWriteExt};
    use glommio::{LocalExecutorBuilder, Placement};
    let serve = || async move {
        let listener = glommio::net::TcpListener::bind("127.0.0.1:0").map_err(in_words)?;
        say(listener.local_addr().map_err(in_words)?)?;
        loop {
            let mut stream = listener.accept().await.map_err(in_words)?;
            stream.set_nodelay(true).map_err(in_words)?;
            glommio::spawn_local(async move {
                let mut turn = Turn::new();
                // It reads into slices alone: one more copy, small beside the system call.
                let mut buffer = vec![0; READ_BYTES];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    turn.input.extend_from_slice(&buffer[..count]);
                    if stream.write_all(turn.take()).await.is_err() {
                        return;
                    }
                }
            })
            .detach();
        }
    };
    let executor = LocalExecutorBuilder::new(Placement::Fixed(core)).spawn(serve);
    executor.map_err(in_words)?.join().map_err(in_words)?
}

/// glommio's errors carry what cannot cross threads; their text can.
pub(crate) fn in_words(error: glommio::GlommioError<()>) -> Error {
    Error::other(error.to_string())
}
