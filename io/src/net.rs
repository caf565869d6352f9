//! TCP: listeners that share a port between shards, and owned read and write halves on the ring.
//!
//! Promises: a port that another process listens on is refused, although the shards of this process share it. Above the halves
//! nobody sees whether TLS is spoken.
#![allow(unsafe_code)]

mod output;
pub(crate) mod ready;
mod room;
mod secured;

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt, OwnedReadHalf, OwnedWriteHalf, Splitable};
use socket2::{Domain, Protocol, Socket, Type};

use crate::rt::Flag;
use ready::Reading;
pub(crate) use room::READ_BYTES;
use room::make_room;

/// Connections that the kernel may hold for a listener before `accept` takes them.
pub const ACCEPT_BACKLOG: i32 = 4096;

/// Sockets of one address, one for each shard: the kernel spreads the connections among them (SO_REUSEPORT).
///
/// With port 0 all of them share the port that the kernel chose for the first. Fails with `AddrInUse` when another
/// process listens there, also when that one uses SO_REUSEPORT itself.
pub fn bind_shared(address: SocketAddr, count: usize) -> io::Result<Vec<std::net::TcpListener>> {
    assert!(count > 0, "a server has at least one shard");
    let probe = socket(address)?;
    probe.bind(&address.into())?;
    let address = match probe.local_addr()?.as_socket() {
        Some(bound) => bound,
        None => address,
    };
    drop(probe);
    (0..count)
        .map(|_| {
            let socket = socket(address)?;
            socket.set_reuse_port(true)?;
            socket.bind(&address.into())?;
            socket.listen(ACCEPT_BACKLOG)?;
            Ok(socket.into())
        })
        .collect()
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// A listener of one shard.
pub struct Listener(monoio::net::TcpListener);

impl Listener {
    /// Takes a bound socket into this thread's loop.
    pub fn new(socket: std::net::TcpListener) -> io::Result<Self> {
        ready::listen()?;
        // Completions do the waiting on the ring; epoll needs a socket that never blocks.
        socket.set_nonblocking(true)?;
        Ok(Self(monoio::net::TcpListener::from_std(socket)?))
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        let (socket, peer) = self.0.accept().await?;
        Ok((Stream::new(socket)?, peer))
    }
}

/// A connected socket, in clear or with TLS.
pub struct Stream {
    socket: monoio::net::TcpStream,
    tls: Option<secured::Established>,
}

impl Stream {
    fn new(socket: monoio::net::TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        Ok(Self { socket, tls: None })
    }

    /// Connects to `address`, in clear.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::new(monoio::net::TcpStream::connect_addr(address).await?)
    }

    /// Reads in clear, behind what `buffer` holds: what a peer says before TLS begins ([`Stream::secure_to`]). Zero bytes: the peer is done.
    pub async fn read_in_clear(&mut self, mut buffer: BytesMut) -> (io::Result<usize>, BytesMut) {
        debug_assert!(self.tls.is_none(), "TLS has begun");
        make_room(&mut buffer);
        let filled = buffer.len();
        let (result, slice) = self.socket.read(buffer.slice_mut(filled..)).await;
        (result, slice.into_inner())
    }

    /// Writes in clear: what is said to a peer before TLS begins.
    pub async fn write_in_clear(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        debug_assert!(self.tls.is_none(), "TLS has begun");
        self.socket.write_all(bytes).await.0.map(drop)
    }

    /// What ends this connection from outside of its halves, also while they wait for the peer.
    pub fn closer(&self) -> io::Result<Closer> {
        // SAFETY: the descriptor is open as long as the stream lives; it is duplicated before this returns.
        let socket = unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) };
        socket.try_clone_to_owned().map(Closer)
    }

    /// Separate halves, for a task that reads and one that writes.
    pub fn split(self) -> (ReadHalf, WriteHalf) {
        let descriptor = self.descriptor();
        let (read, write) = self.socket.into_split();
        let (opening, sealing) = self.tls.map(secured::Established::split).unzip();
        (
            ReadHalf { reading: Reading::new(descriptor), _socket: read, descriptor, opening },
            WriteHalf { socket: write, descriptor, sealing },
        )
    }
}

/// Ends a connection whose halves are in the hands of others; see [`Stream::closer`].
pub struct Closer(OwnedFd);

impl Closer {
    /// Ends both directions: reads and writes that wait on the halves return.
    pub fn close(&self) {
        // SAFETY: the descriptor is our own, and shutdown touches no memory of ours. An error says that the peer was quicker.
        unsafe { libc::shutdown(self.0.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

/// The addresses of `host`, an IP address or a name. A name is looked up on a thread that ends with the lookup, because the
/// system's resolver blocks; it is not waited for longer than the caller polls.
pub async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (host, found) = (host.to_owned(), Arc::new((Flag::default(), Mutex::new(None))));
    let looked_up = found.clone();
    std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
        let addresses = (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
        if let Ok(mut result) = looked_up.1.lock() {
            *result = Some(addresses);
        }
        looked_up.0.set();
    })?;
    found.0.wait().await;
    let result = found.1.lock().ok().and_then(|mut result| result.take());
    result.unwrap_or_else(|| Err(io::Error::other("the lookup of the name has failed")))
}

/// The receiving half of a socket.
pub struct ReadHalf {
    // Before the socket, so that it goes first.
    reading: Reading,
    _socket: OwnedReadHalf<monoio::net::TcpStream>,
    descriptor: RawFd,
    opening: Option<Box<secured::Opening>>,
}

impl ReadHalf {
    /// Reads behind what `buffer` holds already, once something has come: into its spare capacity or, where it has hardly any, into a
    /// buffer that all connections of a thread share. Zero bytes: the peer is done. With TLS the buffer may grow, by what one read of
    /// records holds.
    pub async fn read(&mut self, mut buffer: BytesMut) -> (io::Result<usize>, BytesMut) {
        if let Some(opening) = &mut self.opening {
            return opening.read(&self.reading, self.descriptor, buffer).await;
        }
        loop {
            if let Err(error) = self.reading.ready().await {
                return (Err(error), buffer);
            }
            make_room(&mut buffer);
            match receive_at_once(self.descriptor, &self.reading, &mut buffer) {
                Err(error) if is_passing(&error) => {}
                result => return (result, buffer),
            }
        }
    }

    /// Whether TLS is spoken: what a read waits for are records, in a buffer of their own.
    pub(crate) fn is_secured(&self) -> bool {
        self.opening.is_some()
    }

    /// Takes a buffer back for the next connection that has something to read, unless there is something left in it.
    pub(crate) fn give_back(&self, buffer: BytesMut) -> BytesMut {
        match (buffer.is_empty(), self.is_secured()) {
            (false, _) => buffer,
            (true, true) => secured::keep_plain(buffer),
            (true, false) => {
                room::keep(buffer);
                BytesMut::new()
            }
        }
    }

    /// Reads what is there already, like [`ReadHalf::read`]; `WouldBlock` when that is nothing.
    pub(crate) fn read_at_once(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match &mut self.opening {
            Some(opening) => opening.read_at_once(&self.reading, self.descriptor, buffer),
            None => receive_at_once(self.descriptor, &self.reading, buffer),
        }
    }

    /// Whether the peer has hung up without closing TLS first: what it sent may be only a part of what it meant.
    pub fn is_truncated(&self) -> bool {
        self.opening.as_ref().is_some_and(|opening| opening.is_truncated())
    }
}

/// Whether the same read may work the next time.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Reads what is there already behind what `buffer` holds, which has room; `WouldBlock` when that is nothing.
fn receive_at_once(socket: RawFd, reading: &Reading, buffer: &mut BytesMut) -> io::Result<usize> {
    let read = |room: &mut [MaybeUninit<u8>]| {
        // SAFETY: the kernel writes no more than the room that it is told of; a descriptor that is not open is an error and
        // nothing worse.
        let count =
            unsafe { libc::recv(socket, room.as_mut_ptr().cast(), room.len(), libc::MSG_DONTWAIT) };
        let result = usize::try_from(count).map_err(|_| io::Error::last_os_error());
        reading.note(&result, room.len());
        result
    };
    // SAFETY: the kernel has written as many bytes as it says.
    unsafe { room::fill(buffer, read) }
}

/// The sending half of a socket.
pub struct WriteHalf {
    socket: OwnedWriteHalf<monoio::net::TcpStream>,
    descriptor: RawFd,
    sealing: Option<Box<secured::Sealing>>,
}

impl WriteHalf {
    /// Writes all of `buffer` and gives it back.
    pub async fn write_all(&mut self, buffer: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        if self.sealing.is_some() {
            return (self.write_sealed([&buffer[..]].into_iter(), |_| ()).await, buffer);
        }
        let (result, buffer) = self.socket.write_all(buffer).await;
        (result.map(|_| ()), buffer)
    }

    /// Writes all of `chunk`, which others may share.
    pub async fn write_shared(&mut self, chunk: bytes::Bytes) -> io::Result<()> {
        if self.sealing.is_some() {
            return self.write_sealed([&chunk[..]].into_iter(), |_| ()).await;
        }
        self.socket.write_all(chunk).await.0.map(|_| ())
    }

    /// Writes all `parts` through TLS; `progress` is told how much, each time the kernel has taken some.
    async fn write_sealed(
        &mut self,
        parts: impl Iterator<Item = &[u8]>,
        progress: impl Fn(usize),
    ) -> io::Result<()> {
        let sealing = self.sealing.as_mut().expect("asked by those who know that TLS is spoken");
        for piece in parts.flat_map(|part| part.chunks(secured::SEALED_BYTES_MAX)) {
            if sealing.seal(piece)? {
                sealing.flush(&mut self.socket, self.descriptor, &progress).await?;
            }
        }
        sealing.flush(&mut self.socket, self.descriptor, &progress).await?;
        sealing.rest();
        Ok(())
    }

    /// Ends both directions; a read that waits on the other half returns. TLS says goodbye as far as the socket takes it.
    pub fn close(&mut self) {
        if let Some(sealing) = &mut self.sealing {
            sealing.close_now(self.descriptor);
        }
        // SAFETY: the descriptor is open as long as this half lives, and shutdown touches no memory of ours. An error says
        // that the peer was quicker.
        unsafe { libc::shutdown(self.descriptor, libc::SHUT_RDWR) };
    }

    /// Ends the sending direction.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        use monoio::io::AsyncWriteRent;
        if let Some(sealing) = &mut self.sealing {
            sealing.close(&mut self.socket, self.descriptor).await?;
        }
        self.socket.shutdown().await
    }
}
