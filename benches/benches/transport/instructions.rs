//! A unary echo through HTTP/2 and gRPC over memory: how many instructions the server's end costs, counted by callgrind.
//!
//! The only figure here that another load on the machine cannot change.

use std::io::{Error, Result};
use std::process::{Command, Stdio};

use bytes::BytesMut;
use prism_io::grpc::{
    ClientConnection, ClientEvent, Event, Limits, Message, Output, ServerConnection,
};
use serde::Serialize;

use prism_benches::echo::{Payload, UNARY, echo, route};
use prost::Message as _;

/// Calls that are counted.
const CALLS: u64 = 20_000;
const VALUE_BYTES: usize = 128;

/// Instructions of user code per echo at the server's end.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Instructions {
    /// HTTP/2 and gRPC, 16 calls in one pass.
    pub(crate) batched: f64,
    /// The same with one call in each pass.
    pub(crate) alone: f64,
    /// 16 calls in one pass, and each message decoded and encoded again by prost.
    pub(crate) with_prost: f64,
}

/// None, with a word about it, where there is no valgrind.
pub(crate) fn count() -> Result<Option<Instructions>> {
    let version = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
    if !version.is_ok_and(|status| status.success()) {
        eprintln!("instructions are not counted: there is no valgrind (apt install valgrind)");
        return Ok(None);
    }
    Ok(Some(Instructions {
        batched: counted(16, false)?,
        alone: counted(1, false)?,
        with_prost: counted(16, true)?,
    }))
}

fn counted(calls_per_turn: u64, prost: bool) -> Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*server_turn*")
        .arg(std::env::current_exe()?)
        .args(["turns", &calls_per_turn.to_string(), &prost.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected : "));
    let collected = collected.and_then(|(_, count)| count.trim().parse::<f64>().ok());
    match collected {
        Some(instructions) if instructions > 0.0 => Ok(instructions / CALLS as f64),
        _ => Err(Error::other(format!("callgrind counted nothing: {text}"))),
    }
}

/// One pass of the server over what the client has sent.
#[inline(never)]
fn server_turn(
    server: &mut ServerConnection,
    input: &mut BytesMut,
    output: &mut Output,
    prost: bool,
) {
    server.receive(input, 0);
    while let Some(event) = server.poll_event() {
        let Event::Request { stream, message, .. } = event else { continue };
        if prost {
            let (head, tail) = echo(message).expect("it is a payload");
            server.respond(stream, Message { head: &head, tail }, &[]);
        } else {
            server.respond(stream, Message::new(&message), &[]);
        }
    }
    server.swap_output(output);
}

/// `turns <calls per turn> <prost>`: what callgrind runs.
pub(crate) fn run(calls_per_turn: u64, prost: bool) {
    let limits = Limits::default();
    let mut server = ServerConnection::new(&limits, route, 0);
    let mut client = ClientConnection::new(&limits, "localhost:7400", 0);
    let (mut to_server, mut to_client) = (BytesMut::new(), BytesMut::new());
    let (mut from_server, mut from_client) = (Output::default(), Output::default());
    let body =
        Payload { key: vec![7; 16].into(), value: vec![7; VALUE_BYTES].into() }.encode_to_vec();
    let (mut asked, mut answered) = (0, 0);
    while answered < CALLS {
        client.receive(&mut to_client, 0);
        while let Some(event) = client.poll_event() {
            answered += u64::from(matches!(event, ClientEvent::Finished { .. }));
        }
        for _ in 0..calls_per_turn.min(CALLS - asked) {
            client.call(UNARY.as_bytes(), Message::new(&body), &[], None).expect("there is room");
            asked += 1;
        }
        client.swap_output(&mut from_client);
        to_server.reserve(64 << 10);
        to_server.extend_from_slice(&from_client.inline);
        server_turn(&mut server, &mut to_server, &mut from_server, prost);
        to_client.reserve(64 << 10);
        to_client.extend_from_slice(&from_server.inline);
    }
}
