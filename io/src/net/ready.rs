//! Which sockets of this thread have something to read: one edge-triggered epoll for all of them, and one wait of the loop for it.
//!
//! A read on the ring costs a failed attempt, a wait that is armed for it, and a completion; here a socket is registered once, a wake-up
//! brings all that are ready, and a read is one system call into a buffer that all connections share. Figures:
//! `docs/decisions/0006-event-loop.md`.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::{Rc, Weak};
use std::time::Duration;

use slab::Slab;

use crate::rt::{self, Signal};

/// Sockets that one look brings at most; the next look follows at once.
const EVENTS_MAX: usize = 256;
/// Pause after a wait that failed.
const FAILED_PAUSE: Duration = Duration::from_millis(1);
/// What is to be told: input, and the peer's end, each once when it comes.
const INTEREST: libc::c_int = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET;
/// Nothing more will come, which is to be read like everything else.
const ENDS: libc::c_int = libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR;

thread_local! {
    /// That of the runtime which runs on this thread.
    static THIS: RefCell<Weak<Readiness>> = const { RefCell::new(Weak::new()) };
}

/// The sockets that this thread waits for.
struct Readiness {
    epoll: OwnedFd,
    sources: RefCell<Slab<Rc<Source>>>,
}

/// A runtime begins on this thread: one before it, which may have left tasks behind, listens no more.
pub(crate) fn begin_anew() {
    THIS.take();
}

/// Begins to listen before there are sockets to hear of: when open files run out, those that are there are still read.
pub(super) fn listen() -> io::Result<()> {
    Readiness::this().map(drop)
}

/// What is known of one socket.
#[derive(Default)]
struct Source {
    /// Something may be there to be read.
    some: Signal,
    ended: Cell<bool>,
}

impl Readiness {
    /// That of this thread, which begins to listen with the first socket.
    fn this() -> io::Result<Rc<Self>> {
        if let Some(this) = THIS.with_borrow(Weak::upgrade) {
            return Ok(this);
        }
        // SAFETY: no memory is involved; the result is checked.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        // The loop waits for it as for any socket: being readable is all that it is asked for.
        let waited_for = monoio::net::UnixStream::from_std(UnixStream::from(epoll.try_clone()?))?;
        let this = Rc::new(Self { epoll, sources: RefCell::default() });
        THIS.set(Rc::downgrade(&this));
        let listening = this.clone();
        rt::spawn(async move {
            loop {
                // Where the wait itself fails, looking now and then is slower, but nobody is forgotten.
                if waited_for.readable(false).await.is_err() {
                    rt::sleep(FAILED_PAUSE).await;
                }
                listening.look();
            }
        });
        Ok(this)
    }

    /// Wakes those that have something to read.
    fn look(&self) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        // SAFETY: the kernel writes at most as many events as it is told that there is room for.
        let count = unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), EVENTS_MAX as i32, 0)
        };
        rt::note_activity();
        let sources = self.sources.borrow();
        for event in events.iter().take(usize::try_from(count).unwrap_or(0)) {
            // One that has gone may have left its number to another, which then looks once for nothing.
            let Some(source) = sources.get(event.u64 as usize) else { continue };
            if event.events & ENDS as u32 != 0 {
                source.ended.set(true);
            }
            source.some.set();
        }
    }
}

/// One socket's place among those that this thread waits for, taken with the first wait.
pub(super) struct Reading {
    descriptor: RawFd,
    place: OnceCell<Place>,
}

struct Place {
    descriptor: RawFd,
    readiness: Rc<Readiness>,
    key: usize,
    source: Rc<Source>,
    /// The last read has left something, which is not announced again.
    left: Cell<bool>,
}

impl Reading {
    /// Of a socket that stays open for longer than this.
    pub(super) fn new(descriptor: RawFd) -> Self {
        Self { descriptor, place: OnceCell::new() }
    }

    /// Waits until there may be something to read, or the end.
    pub(super) async fn ready(&self) -> io::Result<()> {
        let place = match self.place.get() {
            Some(place) => place,
            None => {
                let place = Place::take(self.descriptor)?;
                self.place.get_or_init(|| place)
            }
        };
        if place.left.replace(false) {
            // A peer that sends faster than it is read from is one among others, and has to hear what it is told meanwhile.
            rt::yield_now().await;
        } else {
            place.source.some.wait().await;
        }
        Ok(())
    }

    /// A read of `room` bytes had this result.
    #[inline]
    pub(super) fn note(&self, result: &io::Result<usize>, room: usize) {
        let Some(Place { source, left, .. }) = self.place.get() else { return };
        let is_some_left = match result {
            Ok(count) => *count == room || source.ended.get(),
            Err(error) => error.kind() == io::ErrorKind::Interrupted,
        };
        left.set(is_some_left);
        if !is_some_left {
            source.some.clear();
        }
    }
}

impl Place {
    fn take(descriptor: RawFd) -> io::Result<Self> {
        let readiness = Readiness::this()?;
        let source = Rc::<Source>::default();
        let key = readiness.sources.borrow_mut().insert(source.clone());
        let place = Self { descriptor, readiness, key, source, left: Cell::new(false) };
        let mut event = libc::epoll_event { events: INTEREST as u32, u64: key as u64 };
        // SAFETY: both descriptors are open, and the kernel only reads the event.
        let result = unsafe {
            libc::epoll_ctl(
                place.readiness.epoll.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                descriptor,
                &mut event,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(place) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let epoll = self.readiness.epoll.as_raw_fd();
        // SAFETY: both descriptors are open: the socket's outlives this. An error says that it was not registered.
        unsafe {
            libc::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, self.descriptor, std::ptr::null_mut())
        };
        self.readiness.sources.borrow_mut().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Shutdown, TcpStream};

    use bytes::BytesMut;

    use super::*;
    use crate::net::{Listener, READ_BYTES, ReadHalf, bind_shared};

    /// A listener, and a peer of each connection that it accepts.
    struct Peers(Listener, std::net::SocketAddr);

    impl Peers {
        fn new() -> Self {
            let socket = bind_shared(([127, 0, 0, 1], 0).into(), 1).unwrap().remove(0);
            let address = socket.local_addr().unwrap();
            Self(Listener::new(socket).unwrap(), address)
        }

        async fn connect(&self) -> (ReadHalf, crate::net::WriteHalf, TcpStream) {
            let peer = TcpStream::connect(self.1).unwrap();
            let (read, write) = self.0.accept().await.unwrap().0.split();
            (read, write, peer)
        }
    }

    async fn read(half: &mut ReadHalf) -> Vec<u8> {
        let reading = half.read(BytesMut::new());
        let (count, bytes) =
            rt::timeout(Duration::from_secs(30), reading).await.expect("a wake-up for the read");
        assert_eq!(count.unwrap(), bytes.len());
        bytes.to_vec()
    }

    #[test]
    fn what_a_read_has_left_and_the_end_behind_it_need_no_other_wake_up() {
        rt::run(async {
            let peers = Peers::new();
            for bytes in [1, READ_BYTES, READ_BYTES + 1, 5 * READ_BYTES] {
                let (mut half, _write, mut peer) = peers.connect().await;
                let sent: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
                peer.write_all(&sent).unwrap();
                peer.shutdown(Shutdown::Write).unwrap();
                let mut received = Vec::new();
                loop {
                    let part = read(&mut half).await;
                    if part.is_empty() {
                        break;
                    }
                    received.extend(part);
                }
                assert!(received == sent, "{bytes} bytes, and then the end");
                assert!(read(&mut half).await.is_empty(), "it stays ended");
            }
        })
        .unwrap();
    }

    #[test]
    fn each_socket_is_woken_for_its_own_also_when_others_have_had_its_number() {
        rt::run(async {
            let peers = Peers::new();
            for round in 0..20_u8 {
                let (mut idle, _idle_write, _idle_peer) = peers.connect().await;
                let (mut half, _write, mut peer) = peers.connect().await;
                // It waits, and gives up.
                let waiting = idle.read(BytesMut::new());
                assert!(rt::timeout(Duration::from_millis(1), waiting).await.is_none());
                for part in [&[round][..], &[round, 1], &[round, 1, 2]] {
                    peer.write_all(part).unwrap();
                    assert_eq!(read(&mut half).await, part);
                }
                // Half of them outlive the round before.
                if round % 2 == 0 {
                    drop(half);
                }
            }
        })
        .unwrap();
    }

    /// Somebody who sends without end, and a server that reads all of it, keep nobody else from their turn.
    #[test]
    fn a_socket_that_always_has_something_leaves_the_others_their_turns() {
        rt::run(async {
            let (mut half, mut write, mut peer) = Peers::new().connect().await;
            let turns = Rc::new(Cell::new(0));
            let counter = turns.clone();
            rt::spawn(async move {
                loop {
                    rt::yield_now().await;
                    counter.set(counter.get() + 1);
                }
            });
            let ends = peer.try_clone().unwrap();
            let sender = std::thread::spawn(move || while peer.write_all(&[0; 1 << 16]).is_ok() {});
            let mut reads = 0;
            while turns.get() < 100 {
                assert!(!read(&mut half).await.is_empty());
                reads += 1;
                assert!(reads < 100_000, "the other task had {} turns", turns.get());
            }
            write.close();
            drop(half);
            drop(write);
            // Where our window was shut, it would wait for ever: nothing that it sends finds out that nobody is there.
            let _ = ends.shutdown(Shutdown::Both);
            sender.join().unwrap();
        })
        .unwrap();
    }

    #[test]
    fn a_closed_half_is_woken() {
        rt::run(async {
            let (mut half, mut write, _peer) = Peers::new().connect().await;
            rt::spawn(async move { write.close() });
            assert!(read(&mut half).await.is_empty());
        })
        .unwrap();
    }

    #[test]
    fn a_second_runtime_on_the_thread_begins_anew() {
        for _ in 0..2 {
            rt::run(async {
                let (mut half, _write, mut peer) = Peers::new().connect().await;
                peer.write_all(b"once").unwrap();
                assert_eq!(read(&mut half).await, b"once");
            })
            .unwrap();
        }
    }
}
