//! A well-behaved connection that works while another one does not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Caller, PATIENCE, Server};

/// The longest that one of its calls may take while something else happens.
const SLOWEST: Duration = Duration::from_secs(5);

/// Writes and reads without a pause on a thread and a connection of its own. What it meets is told by [`Neighbour::leave`].
pub struct Neighbour {
    leaving: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<Duration>>,
}

impl Neighbour {
    /// Moves in, and comes back after its first round.
    pub fn of(server: &Server) -> Self {
        let leaving = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let (address, left, counted) = (server.listen, leaving.clone(), rounds.clone());
        let thread = std::thread::spawn(move || super::run(live(address, left, counted)));
        let neighbour = Self { leaving, rounds, thread: Some(thread) };
        neighbour.wait_rounds(1);
        neighbour
    }

    /// Waits until it has done so many more rounds.
    pub fn wait_rounds(&self, more: u64) {
        let until = self.rounds.load(Ordering::Relaxed) + more;
        let end = Instant::now() + PATIENCE;
        while self.rounds.load(Ordering::Relaxed) < until {
            let thread = self.thread.as_ref().expect("it has not left");
            assert!(!thread.is_finished() && Instant::now() < end, "the neighbour is stuck");
            std::thread::yield_now();
        }
    }

    /// Ends it: every call was answered as it should, and none took long.
    pub fn leave(mut self) {
        self.wait_rounds(3);
        self.leaving.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it leaves once");
        let slowest = thread.join().expect("every call of the neighbour was served");
        assert!(slowest < SLOWEST, "a call of the neighbour took {slowest:?}");
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.leaving.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn live(address: SocketAddr, leaving: Arc<AtomicBool>, rounds: Arc<AtomicU64>) -> Duration {
    static NEIGHBOURS: AtomicU64 = AtomicU64::new(0);
    let key = format!("neighbour-{}", NEIGHBOURS.fetch_add(1, Ordering::Relaxed));
    let caller = Caller::to(address, "keyvalue").await;
    let mut slowest = Duration::ZERO;
    while !leaving.load(Ordering::Relaxed) {
        let round = rounds.load(Ordering::Relaxed).to_string();
        let begin = Instant::now();
        caller.set(&key, round.as_bytes()).await;
        assert_eq!(caller.get(&key).await.as_deref(), Some(round.as_bytes()));
        slowest = slowest.max(begin.elapsed());
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    slowest
}
