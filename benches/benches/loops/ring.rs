//! The loop that was tried in the runtime's place: a ring of our own, for sockets and log, around the same state machine.
//!
//! Multishot accept and receive into a ring of provided buffers; completions run when the loop asks for them (SINGLE_ISSUER, DEFER_TASKRUN); one
//! `io_uring_enter` per turn hands over every answer, the log write and the wait. Sends do not wait (MSG_DONTWAIT) and complete silently
//! (SKIP_SUCCESS). An experiment: it knows no time-outs, bounds nothing beyond its buffers, and ends with its process.
#![allow(unsafe_code)]

use std::io::{Error, Result};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};
use prism_benches::write::{self, Offsets, aligned};
use prism_io::clock::monotonic_ns;
use prism_io::grpc::{Event, Limits, Message, Output, ServerConnection, StreamId};

use prism_benches::echo::{Log, echo, route};

const ENTRIES: u32 = 4096;
const BUFFERS: u16 = 1024;
const BUFFER_BYTES: usize = 8192;
const BUFFER_GROUP: u16 = 0;
/// Bytes of the chunk that requests are slices of.
const CHUNK_BYTES: usize = 256 << 10;

const AT_ONCE: i32 = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;

/// What a completion is of, in the upper byte of its user data; below it 24 bits of the slot's generation and its number.
const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
const SEND_REST: u64 = 3;
const LOG: u64 = 4;

fn user_data(kind: u64, slot: usize, generation: u32) -> u64 {
    kind << 56 | u64::from(generation & 0xff_ffff) << 32 | slot as u64
}

/// Buffers that the kernel picks from when something arrives.
struct Buffers {
    /// Page-aligned entries, shared with the kernel.
    entries: *mut BufRingEntry,
    memory: Vec<u8>,
    tail: u16,
}

impl Buffers {
    fn register(ring: &IoUring) -> Result<Self> {
        let bytes = usize::from(BUFFERS) * size_of::<BufRingEntry>();
        // SAFETY: an anonymous mapping of its own; the result is checked.
        let entries = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if entries == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        // SAFETY: the mapping holds as many entries, and neither it nor the memory goes away before the process does.
        unsafe {
            ring.submitter().register_buf_ring(entries as u64, BUFFERS, BUFFER_GROUP)?;
        }
        let memory = vec![0; usize::from(BUFFERS) * BUFFER_BYTES];
        let mut buffers = Self { entries: entries.cast(), memory, tail: 0 };
        (0..BUFFERS).for_each(|id| buffers.give(id));
        buffers.publish();
        Ok(buffers)
    }

    fn bytes(&self, id: u16, count: usize) -> &[u8] {
        &self.memory[usize::from(id) * BUFFER_BYTES..][..count]
    }

    fn give(&mut self, id: u16) {
        let index = usize::from(self.tail & (BUFFERS - 1));
        let address = self.memory[usize::from(id) * BUFFER_BYTES..].as_mut_ptr();
        // SAFETY: the index is within the mapping; the kernel reads an entry only once the tail has passed it.
        let entry = unsafe { &mut *self.entries.add(index) };
        entry.set_addr(address as u64);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&mut self) {
        // SAFETY: the first entry is valid, and the tail in it is shared with the kernel as an atomic of 16 bits.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

struct Connection {
    socket: OwnedFd,
    grpc: ServerConnection,
    /// What came of a frame that is not whole yet.
    rest: BytesMut,
    /// Handed to the kernel in this turn; empty again in the next one.
    output: Output,
    dirty: bool,
    /// A send that waits until the socket has room: how much of the output has left.
    blocked: Option<usize>,
    /// A multishot receive is armed.
    armed: bool,
}

struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

/// An answer that waits for the log.
struct Parked {
    slot: usize,
    generation: u32,
    stream: StreamId,
    head: Vec<u8>,
    value: Bytes,
}

struct Loop {
    ring: IoUring,
    buffers: Buffers,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots with answers to send.
    dirty: Vec<usize>,
    /// Slots whose receive has to be armed again.
    unarmed: Vec<usize>,
    chunk: BytesMut,
    log: Option<LogFile>,
    parked: Vec<Parked>,
}

struct LogFile {
    file: std::fs::File,
    offsets: Offsets,
    buffer: (Vec<u8>, usize),
    /// Answers behind the write that is going on.
    writing: Vec<Parked>,
}

/// Serves the connections of `socket` until the process ends.
pub(crate) fn serve(socket: TcpListener, log: Option<&Log>) -> Result<()> {
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(4 * ENTRIES)
        .build(ENTRIES)?;
    let buffers = Buffers::register(&ring)?;
    let log = match log {
        Some(log) => Some(LogFile {
            file: write::open(&log.file)?,
            offsets: Offsets::new(0, 1, Log::BATCH_BYTES_MAX),
            buffer: aligned(Log::BATCH_BYTES_MAX),
            writing: Vec::new(),
        }),
        None => None,
    };
    let mut it = Loop {
        ring,
        buffers,
        slots: Vec::new(),
        free: Vec::new(),
        dirty: Vec::new(),
        unarmed: Vec::new(),
        chunk: BytesMut::with_capacity(CHUNK_BYTES),
        log,
        parked: Vec::new(),
    };
    it.accept(&socket)?;
    let mut completions = Vec::new();
    loop {
        it.send_all()?;
        it.write_log()?;
        for slot in std::mem::take(&mut it.unarmed) {
            it.receive(slot)?;
        }
        it.ring.submit_and_wait(1)?;
        completions.clear();
        completions.extend(it.ring.completion());
        let now_ns = monotonic_ns();
        for completion in &completions {
            it.complete(completion, &socket, now_ns)?;
        }
        it.buffers.publish();
    }
}

impl Loop {
    fn push(&mut self, entry: squeue::Entry) -> Result<()> {
        // SAFETY: what every entry points to (descriptors, outputs, buffers) stays where it is until its completion, or, for sends that do not
        // wait, until the `enter` that carries them out.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    fn accept(&mut self, socket: &TcpListener) -> Result<()> {
        let entry = opcode::AcceptMulti::new(Fd(socket.as_raw_fd())).build();
        self.push(entry.user_data(user_data(ACCEPT, 0, 0)))
    }

    fn receive(&mut self, number: usize) -> Result<()> {
        let slot = &mut self.slots[number];
        let Some(connection) = &mut slot.connection else { return Ok(()) };
        if std::mem::replace(&mut connection.armed, true) {
            return Ok(());
        }
        let entry = opcode::RecvMulti::new(Fd(connection.socket.as_raw_fd()), BUFFER_GROUP).build();
        let user_data = user_data(RECEIVE, number, slot.generation);
        self.push(entry.user_data(user_data))
    }

    fn complete(&mut self, entry: &cqueue::Entry, socket: &TcpListener, now_ns: u64) -> Result<()> {
        let data = entry.user_data();
        let (kind, number) = (data >> 56, data as u32 as usize);
        let generation = (data >> 32) as u32 & 0xff_ffff;
        match kind {
            ACCEPT => {
                if entry.result() >= 0 {
                    self.open(entry.result())?;
                }
                if !cqueue::more(entry.flags()) {
                    self.accept(socket)?;
                }
            }
            RECEIVE => self.received(entry, number, generation, now_ns),
            SEND | SEND_REST => self.sent(entry, number, generation, kind)?,
            _ => self.logged(entry.result())?,
        }
        Ok(())
    }

    fn open(&mut self, descriptor: i32) -> Result<()> {
        // SAFETY: the kernel has just handed it out, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let stream = std::net::TcpStream::from(socket);
        stream.set_nodelay(true)?;
        let connection = Connection {
            socket: stream.into(),
            grpc: ServerConnection::new(&Limits::default(), route, monotonic_ns()),
            rest: BytesMut::new(),
            output: Output::default(),
            dirty: false,
            blocked: None,
            armed: false,
        };
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, connection: None });
            self.slots.len() - 1
        });
        self.slots[number].connection = Some(connection);
        self.receive(number)
    }

    fn close(&mut self, number: usize) {
        let slot = &mut self.slots[number];
        match slot.connection.take() {
            // Its output is lent to the kernel for as long as that likes.
            Some(connection) if connection.blocked.is_some() => {
                Box::leak(Box::new(connection));
            }
            _ => {}
        }
        slot.generation = (slot.generation + 1) & 0xff_ffff;
        self.free.push(number);
    }

    fn received(&mut self, entry: &cqueue::Entry, number: usize, generation: u32, now_ns: u64) {
        let Self { buffers, slots, chunk, dirty, unarmed, parked, log, .. } = self;
        let slot = &mut slots[number];
        let buffer = cqueue::buffer_select(entry.flags());
        let Some(connection) = slot.connection.as_mut().filter(|_| slot.generation == generation)
        else {
            buffer.into_iter().for_each(|id| buffers.give(id));
            return;
        };
        if !cqueue::more(entry.flags()) {
            connection.armed = false;
            unarmed.push(number);
        }
        let (Some(id), Ok(count @ 1..)) = (buffer, usize::try_from(entry.result())) else {
            // Out of buffers: it is armed again at the end of the turn. Anything else is the end.
            if entry.result() != -libc::ENOBUFS {
                self.close(number);
            }
            return;
        };
        // One copy, so that the buffer goes back at once; the chunk is warm, and free again when the requests are done.
        chunk.reserve(connection.rest.len() + count);
        chunk.put_slice(&connection.rest);
        chunk.put_slice(buffers.bytes(id, count));
        buffers.give(id);
        let mut input = chunk.split();
        connection.grpc.receive(&mut input, now_ns);
        while let Some(event) = connection.grpc.poll_event() {
            let Event::Request { stream, message, .. } = event else { continue };
            let Some((head, value)) = echo(message) else { continue };
            if log.is_some() {
                parked.push(Parked { slot: number, generation, stream, head, value });
            } else {
                connection.grpc.respond(stream, Message { head: &head, tail: value }, &[]);
            }
        }
        connection.rest.clear();
        connection.rest.extend_from_slice(&input);
        if !std::mem::replace(&mut connection.dirty, true) {
            dirty.push(number);
        }
    }

    fn send_all(&mut self) -> Result<()> {
        for number in std::mem::take(&mut self.dirty) {
            let slot = &mut self.slots[number];
            let Some(connection) = &mut slot.connection else { continue };
            connection.dirty = false;
            if connection.blocked.is_some() {
                continue;
            }
            // What the last turn sent has left: its send failed or the kernel has copied it.
            connection.grpc.swap_output(&mut connection.output);
            if connection.output.is_empty() {
                continue;
            }
            assert!(connection.output.is_contiguous(), "answers are small");
            let bytes = &connection.output.inline;
            let send = opcode::Send::new(
                Fd(connection.socket.as_raw_fd()),
                bytes.as_ptr(),
                bytes.len() as u32,
            );
            let entry = send.flags(AT_ONCE).build().flags(squeue::Flags::SKIP_SUCCESS);
            let user_data = user_data(SEND, number, slot.generation);
            self.push(entry.user_data(user_data))?;
        }
        Ok(())
    }

    /// A send that did not take everything, or one that was waited for.
    fn sent(
        &mut self,
        entry: &cqueue::Entry,
        number: usize,
        generation: u32,
        kind: u64,
    ) -> Result<()> {
        let slot = &mut self.slots[number];
        let Some(connection) = slot.connection.as_mut().filter(|_| slot.generation == generation)
        else {
            return Ok(());
        };
        let taken = match entry.result() {
            count @ 0.. => count as usize,
            error if error == -libc::EAGAIN && kind == SEND => 0,
            _ => {
                self.close(number);
                return Ok(());
            }
        };
        let start = connection.blocked.unwrap_or(0) + taken;
        let rest = &connection.output.inline[start..];
        if rest.is_empty() {
            connection.blocked = None;
            if !std::mem::replace(&mut connection.dirty, true) {
                self.dirty.push(number);
            }
            return Ok(());
        }
        connection.blocked = Some(start);
        let send =
            opcode::Send::new(Fd(connection.socket.as_raw_fd()), rest.as_ptr(), rest.len() as u32);
        let user_data = user_data(SEND_REST, number, generation);
        let entry = send.flags(libc::MSG_NOSIGNAL).build().user_data(user_data);
        self.push(entry)
    }

    /// One write in flight; what parks meanwhile goes with the next.
    fn write_log(&mut self) -> Result<()> {
        let Some(log) = &mut self.log else { return Ok(()) };
        if !log.writing.is_empty() || self.parked.is_empty() {
            return Ok(());
        }
        let taken = self.parked.len().min(Log::RECORDS_MAX);
        log.writing.extend(self.parked.drain(..taken));
        let bytes = Log::batch_bytes(taken);
        let entry = opcode::Write::new(
            Fd(log.file.as_raw_fd()),
            log.buffer.0[log.buffer.1..].as_ptr(),
            bytes as u32,
        );
        let entry = entry.offset(log.offsets.take()).build().user_data(user_data(LOG, 0, 0));
        self.push(entry)
    }

    fn logged(&mut self, result: i32) -> Result<()> {
        if result < 0 {
            return Err(Error::from_raw_os_error(-result));
        }
        let Some(log) = &mut self.log else { return Ok(()) };
        for answer in log.writing.drain(..) {
            let slot = &mut self.slots[answer.slot];
            let Some(connection) =
                slot.connection.as_mut().filter(|_| slot.generation == answer.generation)
            else {
                continue;
            };
            let message = Message { head: &answer.head, tail: answer.value };
            connection.grpc.respond(answer.stream, message, &[]);
            if !std::mem::replace(&mut connection.dirty, true) {
                self.dirty.push(answer.slot);
            }
        }
        Ok(())
    }
}
