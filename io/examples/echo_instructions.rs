//! A unary echo through HTTP/2 and gRPC over memory: how many instructions the server's end costs, and how long both take.
//!
//! `cargo run --release --example echo_instructions -p prism-io` prints nanoseconds per call. For instructions:
//! `valgrind --tool=callgrind --toggle-collect='*server_turn*' target/release/examples/echo_instructions 20000` and divide
//! what was collected by the number of calls.

use bytes::BytesMut;
use prism_io::grpc::{
    ClientConnection, ClientEvent, Event, Limits, Message, Output, Route, ServerConnection,
};
use std::time::Instant;

const CALLS_PER_TURN: u64 = 16;

fn route(path: &[u8]) -> Option<Route> {
    (path == b"/prism.keyvalue.v1.KeyValueService/Get").then_some(Route {
        id: 1,
        client_streaming: false,
        server_streaming: false,
    })
}

#[inline(never)]
fn server_turn(server: &mut ServerConnection, input: &mut BytesMut, output: &mut Output) -> u64 {
    let mut calls = 0;
    server.receive(input, 0);
    while let Some(event) = server.poll_event() {
        if let Event::Request { stream, message, .. } = event {
            server.respond(stream, Message::new(&message), &[]);
            calls += 1;
        }
    }
    server.swap_output(output);
    calls
}

#[inline(never)]
fn client_turn(
    client: &mut ClientConnection,
    input: &mut BytesMut,
    body: &[u8],
    calls: u64,
) -> u64 {
    let mut done = 0;
    client.receive(input, 0);
    while let Some(event) = client.poll_event() {
        if let ClientEvent::Finished { .. } = event {
            done += 1;
        }
    }
    for _ in 0..calls {
        let path = b"/prism.keyvalue.v1.KeyValueService/Get";
        client.call(path, Message::new(body), &[], None).expect("there is room");
    }
    done
}

fn main() {
    let calls: u64 = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(2_000_000);
    let limits = Limits::default();
    let mut server = ServerConnection::new(&limits, route, 0);
    let mut client = ClientConnection::new(&limits, "localhost:7400", 0);
    let (mut to_server, mut to_client) = (BytesMut::new(), BytesMut::new());
    let (mut from_server, mut from_client) = (Output::default(), Output::default());
    let body = [7u8; 160];
    let (mut served, mut done, mut server_ns, mut client_ns) = (0, 0, 0, 0);
    while served < calls {
        let start = Instant::now();
        done += client_turn(&mut client, &mut to_client, &body, CALLS_PER_TURN);
        client.swap_output(&mut from_client);
        client_ns += start.elapsed().as_nanos();
        to_server.reserve(64 << 10);
        to_server.extend_from_slice(&from_client.inline);
        let start = Instant::now();
        served += server_turn(&mut server, &mut to_server, &mut from_server);
        server_ns += start.elapsed().as_nanos();
        to_client.reserve(64 << 10);
        to_client.extend_from_slice(&from_server.inline);
    }
    println!(
        "{served} served, {done} done; server {:.0} ns, client {:.0} ns per call",
        server_ns as f64 / served as f64,
        client_ns as f64 / served as f64,
    );
}
