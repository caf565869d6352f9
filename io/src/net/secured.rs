//! TLS on a socket: the driver of [`crate::tls`].
//!
//! A handshake is one task's business from the first byte to the last. After it the reading half opens records into its caller's
//! buffer, and the writing half makes one write of all that it is given. What TLS itself has to say later (an alert, the
//! answer to a key update) leaves with the next write, or at the end. A peer that hangs up without saying so first is
//! told from one that has closed: the bytes before it may be only a part of what was meant.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, OwnedWriteHalf};
use monoio::net::TcpStream;

use super::output::send_at_once;
use super::ready::Reading;
use super::{Stream, is_passing, receive_at_once};
use crate::rt;
use crate::tls::{Acceptor, Cleartext, Connector, Failure, PeerIdentity, Phase, Sealed, Session};

/// The buffer that records are read into, while there is little to read. 3 KiB: one of sixteen small calls.
const RECORDS_BYTES_MIN: usize = 3 * 1024;
/// And the largest, for a peer that sends much. 64 KiB: four large records.
const RECORDS_BYTES_MAX: usize = 64 * 1024;
/// What a peer may have us hold of its handshake: the largest message that rustls takes, in records.
const HANDSHAKE_BYTES_MAX: usize = 80 * 1024;
/// Records that are sealed before they are written; what is behind them waits unsealed.
pub(crate) const SEALED_BYTES_MAX: usize = 64 * 1024;
/// The largest buffer for records that goes from one connection to another.
const RECORDS_SHARED_BYTES_MAX: usize = 2 * RECORDS_BYTES_MIN;
/// How long a peer whose handshake failed may take to read why.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// And what it may still send until then.
const LAST_WORDS_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    /// What plaintext is opened into, and what is sealed: one of each for all connections of a thread, because none waits with it. A
    /// connection that is idle has none.
    static PLAIN: Cell<BytesMut> = Cell::default();
    /// What records are read into.
    static RECORDS: Cell<BytesMut> = Cell::default();
    static SEALED: Cell<Sealed> = Cell::default();
}

/// Keeps a buffer for plaintext until something has come, and gives none in exchange.
pub(super) fn keep_plain(mut buffer: BytesMut) -> BytesMut {
    if buffer.capacity() > 0 {
        buffer.clear();
        PLAIN.set(buffer);
    }
    BytesMut::new()
}

/// What both halves share.
struct Shared {
    session: Session,
    /// What TLS itself has to say; it comes before everything that is sealed later.
    urgent: Sealed,
    /// The peer has hung up without a close_notify.
    truncated: bool,
}

/// A connection whose handshake is done.
pub(super) struct Established {
    shared: Rc<RefCell<Shared>>,
    records: BytesMut,
    plain: BytesMut,
}

impl Stream {
    /// Does the server's side of a handshake. The peer hears why where it fails. Takes as long as the peer likes.
    pub async fn accept(self, acceptor: &Acceptor) -> Result<Self, Failure> {
        let session = acceptor.session()?;
        self.secure(session, true).await
    }

    /// Does the client's side of a handshake. Takes as long as the peer likes.
    pub async fn secure_to(self, connector: &Connector) -> Result<Self, Failure> {
        let session = connector.session()?;
        self.secure(session, false).await
    }

    async fn secure(mut self, session: Session, is_server: bool) -> Result<Self, Failure> {
        let mut handshake = Handshake {
            session,
            records: BytesMut::with_capacity(RECORDS_BYTES_MIN),
            plain: BytesMut::new(),
            sealed: Sealed::default(),
        };
        match handshake.run(&mut self.socket, is_server).await {
            Ok(()) => {}
            Err(failure) => {
                let told = !matches!(failure, Failure::Disconnected(_));
                if told {
                    rt::timeout(LAST_WORDS, let_read(&mut self.socket)).await;
                }
                return Err(failure);
            }
        }
        let Handshake { session, records, plain, .. } = handshake;
        let shared = Shared { session, urgent: Sealed::default(), truncated: false };
        self.tls = Some(Established { shared: Rc::new(RefCell::new(shared)), records, plain });
        Ok(self)
    }
}

struct Handshake {
    session: Session,
    records: BytesMut,
    plain: BytesMut,
    sealed: Sealed,
}

impl Handshake {
    async fn run(&mut self, socket: &mut TcpStream, is_server: bool) -> Result<(), Failure> {
        let mut told_apart = !is_server;
        loop {
            if !told_apart && !self.records.is_empty() {
                match Cleartext::of(&self.records) {
                    None => told_apart = true,
                    Some(Cleartext::Unclear) => {
                        self.read(socket).await?;
                        continue;
                    }
                    Some(clear) => {
                        socket.write_all(clear.answer()).await.0?;
                        return Err(Failure::Cleartext);
                    }
                }
            }
            let received =
                self.session.receive(&mut self.records, &mut self.plain, &mut self.sealed);
            if !self.sealed.is_empty() {
                let (bytes, filled) = self.sealed.take();
                let (result, bytes) = socket.write_all(bytes.slice(..filled)).await;
                self.sealed.put_back(bytes.into_inner());
                // The reason why it failed says more than that the peer did not wait for it.
                if received.is_ok() {
                    result?;
                }
            }
            match received? {
                Phase::Handshaking => self.read(socket).await?,
                Phase::Open | Phase::PeerClosed => return Ok(()),
            }
        }
    }

    async fn read(&mut self, socket: &mut TcpStream) -> Result<(), Failure> {
        if self.records.len() >= HANDSHAKE_BYTES_MAX {
            let text = "a handshake message longer than any is".to_owned();
            return Err(Failure::Malformed(rustls::Error::General(text)));
        }
        if self.records.capacity() - self.records.len() < RECORDS_BYTES_MIN / 4 {
            self.records.reserve(RECORDS_BYTES_MIN);
        }
        let filled = self.records.len();
        let buffer = std::mem::take(&mut self.records);
        let (result, slice) = socket.read(buffer.slice_mut(filled..)).await;
        self.records = slice.into_inner();
        match result? {
            0 => Err(Failure::Disconnected(io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(()),
        }
    }
}

/// Lets the peer read our last words: a socket that is closed with unread input throws them away.
async fn let_read(socket: &mut TcpStream) {
    if socket.shutdown().await.is_err() {
        return;
    }
    let mut left = LAST_WORDS_BYTES_MAX;
    let mut buffer = vec![0; RECORDS_BYTES_MIN];
    loop {
        let result;
        (result, buffer) = socket.read(buffer).await;
        match result {
            Ok(count) if count > 0 && count < left => left -= count,
            _ => return,
        }
    }
}

impl Established {
    pub(super) fn split(self) -> (Box<Opening>, Box<Sealing>) {
        let Self { shared, records, plain } = self;
        let opening = Opening {
            shared: shared.clone(),
            records,
            early: plain,
            room: RECORDS_BYTES_MIN,
            ended: None,
        };
        let sealing = Sealing { shared, sealed: Sealed::default(), torn: false };
        (Box::new(opening), Box::new(sealing))
    }
}

/// The reading half's part.
pub(super) struct Opening {
    shared: Rc<RefCell<Shared>>,
    /// Records, the last one perhaps in part.
    records: BytesMut,
    /// Plaintext that came with the end of the handshake.
    early: BytesMut,
    /// The size of the next buffer for records.
    room: usize,
    /// How it ended; told after the plaintext before it.
    ended: Option<Result<(), io::Error>>,
}

impl Opening {
    /// See [`super::ReadHalf::read`].
    pub(super) async fn read(
        &mut self,
        reading: &Reading,
        descriptor: RawFd,
        mut plain: BytesMut,
    ) -> (io::Result<usize>, BytesMut) {
        loop {
            if let Some(result) = self.take(&mut plain) {
                return (result, plain);
            }
            self.rest();
            if let Err(error) = reading.ready().await {
                return (Err(error), plain);
            }
            match self.receive(reading, descriptor) {
                Err(error) if !is_passing(&error) => return (Err(error), plain),
                _ => {}
            }
        }
    }

    /// Takes records that are there already.
    fn receive(&mut self, reading: &Reading, socket: RawFd) -> io::Result<()> {
        self.make_room();
        let room = self.records.capacity() - self.records.len();
        let count = receive_at_once(socket, reading, &mut self.records)?;
        self.note(count, room);
        Ok(())
    }

    /// Gives the buffer for records back, unless a part of one is in it.
    fn rest(&mut self) {
        if self.records.is_empty() && self.records.capacity() > 0 {
            let records = std::mem::take(&mut self.records);
            // A large one is not for those who have little to say.
            if records.capacity() <= RECORDS_SHARED_BYTES_MAX {
                RECORDS.set(records);
            }
        }
    }

    /// See [`super::ReadHalf::read_at_once`].
    pub(super) fn read_at_once(
        &mut self,
        reading: &Reading,
        socket: RawFd,
        plain: &mut BytesMut,
    ) -> io::Result<usize> {
        loop {
            if let Some(result) = self.take(plain) {
                return result;
            }
            self.receive(reading, socket)?;
        }
    }

    /// What there is to be read by now: plaintext, or the end.
    fn take(&mut self, plain: &mut BytesMut) -> Option<io::Result<usize>> {
        let before = plain.len();
        if !self.early.is_empty() {
            plain.extend_from_slice(&std::mem::take(&mut self.early));
        }
        self.open(plain);
        if plain.len() > before {
            return Some(Ok(plain.len() - before));
        }
        self.ended.take().map(|ended| ended.map(|()| 0))
    }

    /// So much was read into so much room.
    fn note(&mut self, count: usize, room: usize) {
        if count == 0 {
            // After our goodbye the peer's is not listened to any more.
            let mut shared = self.shared.borrow_mut();
            shared.truncated = !shared.session.is_closing();
            self.ended = Some(match shared.truncated {
                false => Ok(()),
                true => {
                    let text = "the peer hung up without closing TLS";
                    Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
                }
            });
        } else if count == room {
            self.room = (self.room * 2).min(RECORDS_BYTES_MAX);
        } else if count < self.room / 4 {
            self.room = (self.room / 2).max(RECORDS_BYTES_MIN);
        }
    }

    /// Opens the whole records that are there.
    fn open(&mut self, plain: &mut BytesMut) {
        if self.ended.is_some() || self.records.is_empty() {
            return;
        }
        let shared = &mut *self.shared.borrow_mut();
        if plain.capacity() == 0 {
            *plain = PLAIN.take();
        }
        // Takes the same memory again, unless a slice of what came by it is still held somewhere.
        plain.reserve(self.records.len());
        match shared.session.receive(&mut self.records, plain, &mut shared.urgent) {
            Ok(Phase::PeerClosed) => self.ended = Some(Ok(())),
            Ok(_) => {}
            Err(error) => {
                self.ended = Some(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
        }
    }

    fn make_room(&mut self) {
        if self.records.is_empty() {
            if self.records.capacity() == 0 {
                self.records = RECORDS.take();
            }
            if self.records.capacity() < self.room {
                self.records.reserve(self.room);
            }
            return;
        }
        // The rest of a record whose length is known, and what fits behind it.
        let whole = match self.records[..] {
            [_, _, _, high, low, ..] => 5 + usize::from(u16::from_be_bytes([high, low])),
            _ => 5,
        };
        let wanted = whole.saturating_sub(self.records.len()).max(self.room / 2);
        if self.records.capacity() - self.records.len() < wanted {
            self.records.reserve(wanted.max(self.room));
        }
    }

    pub(super) fn is_truncated(&self) -> bool {
        self.shared.borrow().truncated
    }
}

/// The writing half's part.
pub(super) struct Sealing {
    shared: Rc<RefCell<Shared>>,
    sealed: Sealed,
    /// A write was begun and has not ended: nothing can follow it.
    torn: bool,
}

impl Sealing {
    /// Adds `part` to what the next [`Sealing::flush`] writes. Returns whether it is time for that.
    pub(super) fn seal(&mut self, part: &[u8]) -> io::Result<bool> {
        let shared = &mut *self.shared.borrow_mut();
        if self.sealed.is_unused() {
            self.sealed = SEALED.take();
        }
        shared.take_urgent(&mut self.sealed);
        shared.session.seal(part, &mut self.sealed).map_err(io::Error::other)?;
        Ok(self.sealed.len() >= SEALED_BYTES_MAX)
    }

    /// Writes what was sealed; `progress` is told each time the kernel has taken some.
    pub(super) async fn flush(
        &mut self,
        socket: &mut OwnedWriteHalf<TcpStream>,
        descriptor: RawFd,
        progress: impl Fn(usize),
    ) -> io::Result<()> {
        {
            let shared = &mut *self.shared.borrow_mut();
            shared.take_urgent(&mut self.sealed);
            shared.session.flush(&mut self.sealed).map_err(io::Error::other)?;
        }
        self.torn = true;
        let (mut bytes, filled) = self.sealed.take();
        let mut written = 0;
        while written < filled {
            let count = match send_at_once(descriptor, &bytes[written..filled]) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // The socket is full: the ring waits until there is room.
                    let (result, slice) = socket.write(bytes.slice(written..filled)).await;
                    bytes = slice.into_inner();
                    match result? {
                        0 => return Err(io::ErrorKind::WriteZero.into()),
                        count => count,
                    }
                }
                Err(error) => return Err(error),
            };
            written += count;
            progress(count);
        }
        self.sealed.put_back(bytes);
        self.torn = false;
        Ok(())
    }

    /// Gives the buffers back once everything is written.
    pub(super) fn rest(&mut self) {
        let sealed = std::mem::take(&mut self.sealed);
        // What one connection has left unsent, no other may find.
        if sealed.is_blank() {
            SEALED.set(sealed);
        }
    }

    /// Says goodbye, and writes what is still to be said.
    pub(super) async fn close(
        &mut self,
        socket: &mut OwnedWriteHalf<TcpStream>,
        descriptor: RawFd,
    ) -> io::Result<()> {
        if self.torn {
            return Ok(());
        }
        self.say_goodbye();
        self.flush(socket, descriptor, |_| ()).await
    }

    /// The same, as far as the socket takes it at once.
    pub(super) fn close_now(&mut self, socket: RawFd) {
        if self.torn {
            return;
        }
        self.say_goodbye();
        // The peer may have gone: then nobody misses it.
        let _ = send_at_once(socket, self.sealed.as_slice());
        self.sealed.clear(0);
    }

    fn say_goodbye(&mut self) {
        let shared = &mut *self.shared.borrow_mut();
        shared.take_urgent(&mut self.sealed);
        shared.session.close(&mut self.sealed);
    }
}

impl Shared {
    fn take_urgent(&mut self, sealed: &mut Sealed) {
        if !self.urgent.is_empty() {
            sealed.append(&self.urgent);
            self.urgent.clear(0);
        }
    }
}

impl Stream {
    /// Whether TLS is spoken on it.
    pub fn is_secured(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether the handshake took an earlier connection up again.
    pub fn is_resumed(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.shared.borrow().session.is_resumed())
    }

    /// Who the client has shown to be, if it was asked and answered.
    pub fn peer_identity(&self) -> Option<PeerIdentity> {
        self.tls.as_ref()?.shared.borrow().session.peer_identity()
    }

    /// The protocol that both sides have agreed on (ALPN), if they named any.
    pub fn protocol(&self) -> Option<Vec<u8>> {
        self.tls.as_ref()?.shared.borrow().session.protocol().map(<[u8]>::to_vec)
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
