//! A unary call allocates nothing once everything is warm, on either end.
#![allow(unsafe_code)]

use bytes::BytesMut;
use prism_io::grpc::{
    ClientConnection, ClientEvent, Event, Limits, Message, Output, Route, ServerConnection,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the pointer came from `System` with this layout, and `size` is the caller's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn route(_: &[u8]) -> Option<Route> {
    Some(Route { id: 1, client_streaming: false, server_streaming: false })
}

const CALLS: usize = 16;

fn turns(
    turns: usize,
    client: &mut ClientConnection,
    server: &mut ServerConnection,
    wires: &mut [BytesMut; 2],
    output: &mut Output,
) -> usize {
    let timeout = Some(std::time::Duration::from_secs(1));
    let mut finished = 0;
    for _ in 0..turns {
        for _ in 0..CALLS {
            client.call(b"/prism.Echo/Get", Message::new(&[7; 160]), &[], timeout).unwrap();
        }
        client.swap_output(output);
        wires[0].reserve(64 << 10);
        wires[0].extend_from_slice(&output.inline);
        server.receive(&mut wires[0], 0);
        while let Some(event) = server.poll_event() {
            let Event::Request { stream, message, .. } = event else { panic!("{event:?}") };
            server.respond(stream, Message::new(&message), &[("prism-lsn", b"12345678")]);
        }
        server.swap_output(output);
        wires[1].reserve(64 << 10);
        wires[1].extend_from_slice(&output.inline);
        client.receive(&mut wires[1], 0);
        while let Some(event) = client.poll_event() {
            if let ClientEvent::Finished { .. } = event {
                finished += 1;
            }
        }
    }
    finished
}

#[test]
fn a_unary_call_allocates_nothing_after_warm_up() {
    let limits = Limits::default();
    let mut client = ClientConnection::new(&limits, "localhost:7400", 0);
    let mut server = ServerConnection::new(&limits, route, 0);
    let mut wires = [BytesMut::new(), BytesMut::new()];
    let mut output = Output::default();
    turns(200, &mut client, &mut server, &mut wires, &mut output);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let finished = turns(1000, &mut client, &mut server, &mut wires, &mut output);
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert_eq!(finished, 1000 * CALLS);
    // The client keeps the custom trailer that each answer carries: that one allocation is its own.
    assert_eq!(allocations, finished as u64, "{allocations} allocations in {finished} calls");
}
