//! The per-core runtime: one event loop on one pinned thread.
//!
//! Promises: everything spawned here stays on its thread; the loop sleeps in the kernel when nothing is ready. Falls back
//! to epoll where io_uring is missing and says so through [`driver`]. Never shares state between threads; that is what
//! [`crate::mesh`] is for.

use std::cell::{Cell, OnceCell};
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use atomic_waker::AtomicWaker;
use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use crate::{affinity, net};

/// Entries of the submission queue of one shard's ring.
pub const RING_ENTRIES: u32 = 4096;

/// Which completion interface the loop of this thread uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Linux io_uring: network and log share one ring.
    IoUring,
    /// epoll, where the kernel has no io_uring or forbids it; log writes then go through blocking calls.
    Epoll,
}

impl Driver {
    /// The name that an operator sees.
    pub fn name(self) -> &'static str {
        match self {
            Driver::IoUring => "io_uring",
            Driver::Epoll => "epoll",
        }
    }
}

/// Which driver a runtime of this process would use, found by asking the kernel.
pub fn driver() -> Driver {
    if monoio::utils::detect_uring() { Driver::IoUring } else { Driver::Epoll }
}

/// Pins the calling thread to `core` (numbered as in `/proc/cpuinfo`).
pub fn pin(core: usize) -> io::Result<()> {
    affinity::remember();
    monoio::utils::bind_to_cpu_set([core]).map_err(|error| {
        io::Error::other(format!("could not pin the thread to core {core}: {error}"))
    })
}

/// Runs `main` to its end on the calling thread, in a fresh runtime. Tasks still spawned are dropped after that.
///
/// `main` runs as a task among the others: the future that the runtime blocks on is polled again at once when it yields
/// and would starve them.
pub fn run<F: Future + 'static>(main: F) -> io::Result<F::Output>
where
    F::Output: 'static,
{
    net::ready::begin_anew();
    match driver() {
        Driver::IoUring => {
            let builder =
                || RuntimeBuilder::<TimeDriver<IoUringDriver>>::new().with_entries(RING_ENTRIES);
            // Kernels before 6.0 do not know these flags; everything works without them, at a higher price.
            let mut runtime = match builder().uring_builder(one_thread()).build() {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => builder().build()?,
                built => built?,
            };
            Ok(runtime.block_on(async move { monoio::spawn(main).await }))
        }
        Driver::Epoll => {
            let mut runtime = RuntimeBuilder::<TimeDriver<LegacyDriver>>::new().build()?;
            Ok(runtime.block_on(async move { monoio::spawn(main).await }))
        }
    }
}

/// A ring of which one thread submits and reaps, so that the kernel need not interrupt it to run completions.
fn one_thread() -> io_uring::Builder {
    let mut builder = io_uring::IoUring::builder();
    builder.setup_coop_taskrun().setup_single_issuer();
    builder
}

thread_local! {
    /// Set once the loop of this thread polls.
    static BUSY_POLL: OnceCell<Rc<BusyPoll>> = const { OnceCell::new() };
}

/// What the task that keeps a loop awake is told.
#[derive(Default)]
struct BusyPoll {
    /// Things that have come, and that more may follow soon.
    seen: Cell<u64>,
    some: Signal,
}

/// Something has come for the tasks of this thread.
#[inline]
pub(crate) fn note_activity() {
    BUSY_POLL.with(|poll| {
        if let Some(poll) = poll.get() {
            poll.seen.set(poll.seen.get().wrapping_add(1));
            poll.some.set();
        }
    });
}

/// From now on the loop of this thread keeps asking the kernel for completions until nothing has come for `span`, and only then
/// sleeps. For hosts that own their cores: it trades CPU time for the time that a wake-up takes. The other tasks run as before.
///
/// Fails where there is no io_uring.
pub fn busy_poll(span: Duration) -> io::Result<()> {
    if driver() != Driver::IoUring {
        return Err(io::Error::other("busy polling needs io_uring"));
    }
    // Its readiness is a completion that is always there. Asked for it, the loop turns without sleeping, and on its way looks at
    // everything that it looks at before it would sleep: other completions, timers, wakes from other threads.
    let (ready, _peer) = monoio::net::UnixStream::pair()?;
    let poll = BUSY_POLL.with(|poll| poll.get_or_init(Rc::default).clone());
    spawn(async move {
        let _peer = _peer;
        loop {
            poll.some.wait().await;
            let (mut last, mut seen) = (Instant::now(), poll.seen.get());
            while last.elapsed() < span {
                if ready.writable(false).await.is_err() {
                    return;
                }
                if seen != poll.seen.get() {
                    (last, seen) = (Instant::now(), poll.seen.get());
                }
            }
        }
    });
    Ok(())
}

/// Starts `task` on this thread's loop. It runs until it ends or the runtime does.
pub fn spawn<F>(task: F)
where
    F: Future<Output = ()> + 'static,
{
    drop(monoio::spawn(task));
}

/// Waits at least `duration` (millisecond resolution).
pub async fn sleep(duration: Duration) {
    monoio::time::sleep(duration).await;
}

/// Waits for `future` at most `duration`; `None` when the time was up first.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
    monoio::time::timeout(duration, future).await.ok()
}

/// Lets the other tasks of this thread run before going on.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        // A task that wakes itself goes to the front of the runtime's queue and starves the rest; one that another wakes goes
        // to its end.
        let waker = context.waker().clone();
        spawn(async move { waker.wake() });
        Poll::Pending
    })
    .await;
}

/// A wake-up for one waiting task of the same thread. Setting it twice before the wait is one wake-up.
#[derive(Default)]
pub struct Signal {
    set: Cell<bool>,
    waiter: Cell<Option<Waker>>,
}

impl Signal {
    /// Wakes the waiting task, or the next one that waits.
    pub fn set(&self) {
        if !self.set.replace(true)
            && let Some(waker) = self.waiter.take()
        {
            waker.wake();
        }
    }

    /// Sets it and wakes nobody: for the waiting task itself, which looks at it before its turn ends.
    pub(crate) fn note(&self) {
        self.set.set(true);
    }

    /// Takes the wake-up back that nobody has waited for yet.
    pub(crate) fn clear(&self) {
        self.set.set(false);
    }

    /// Waits until [`Signal::set`] was called, and takes that wake-up.
    pub async fn wait(&self) {
        std::future::poll_fn(|context| {
            if self.set.replace(false) {
                return Poll::Ready(());
            }
            // A waker registered by an earlier poll of the same task need not be cloned again.
            match self.waiter.take() {
                Some(waker) if waker.will_wake(context.waker()) => self.waiter.set(Some(waker)),
                _ => self.waiter.set(Some(context.waker().clone())),
            }
            Poll::Pending
        })
        .await;
    }
}

/// A wake-up for one waiting task from any thread, for good: once set it stays set.
#[derive(Default)]
pub struct Flag {
    set: AtomicBool,
    waker: AtomicWaker,
}

impl Flag {
    /// Sets the flag and wakes the waiting task.
    pub fn set(&self) {
        self.set.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// Waits until it is set.
    pub async fn wait(&self) {
        std::future::poll_fn(|context| {
            self.waker.register(context.waker());
            if self.is_set() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_yields_lets_the_others_go_on() {
        let turns = run(async {
            let (turns, ended) = (Rc::new(Cell::new(0)), Rc::new(Signal::default()));
            for _ in 0..2 {
                let (turns, ended) = (turns.clone(), ended.clone());
                spawn(async move {
                    let number = turns.get() % 2;
                    // Each waits for the other's turn, so that one alone would never end.
                    while turns.get() < 100 {
                        if turns.get() % 2 == number {
                            turns.set(turns.get() + 1);
                        }
                        yield_now().await;
                    }
                    ended.set();
                });
            }
            ended.wait().await;
            turns.get()
        });
        assert_eq!(turns.unwrap(), 100);
    }

    #[test]
    fn a_loop_that_polls_hears_of_timers_sockets_and_other_threads() {
        if driver() != Driver::IoUring {
            return assert!(run(async { busy_poll(Duration::from_millis(1)) }).unwrap().is_err());
        }
        run(async {
            busy_poll(Duration::from_secs(60)).unwrap();
            note_activity();
            yield_now().await;
            sleep(Duration::from_millis(5)).await;
            let flag = std::sync::Arc::new(Flag::default());
            let other = flag.clone();
            let thread = std::thread::spawn(move || other.set());
            timeout(Duration::from_secs(20), flag.wait()).await.expect("a wake from elsewhere");
            thread.join().unwrap();
        })
        .unwrap();
    }

    #[test]
    fn a_signal_set_before_the_wait_is_not_lost() {
        let woken = run(async {
            let signal = Rc::new(Signal::default());
            signal.set();
            signal.wait().await;
            let (other, count) = (signal.clone(), Rc::new(Cell::new(0)));
            let counter = count.clone();
            spawn(async move {
                other.wait().await;
                counter.set(counter.get() + 1);
            });
            yield_now().await;
            assert_eq!(count.get(), 0, "one set wakes one wait");
            signal.set();
            while count.get() == 0 {
                yield_now().await;
            }
            count.get()
        });
        assert_eq!(woken.unwrap(), 1);
    }
}
