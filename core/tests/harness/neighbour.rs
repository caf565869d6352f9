//! A well-behaved connection that works while another one does not.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prism_io::tls::Connector;

use super::{Caller, PATIENCE, Server};

/// The longest that one of its calls may take while something else happens.
const SLOWEST: Duration = Duration::from_secs(5);

/// Writes and reads without a pause on a thread and a connection of its own. What it meets is told by [`Neighbour::leave`].
pub struct Neighbour {
    leaving: Arc<AtomicBool>,
    /// How long each of its rounds took.
    rounds: Arc<Mutex<Vec<Duration>>>,
    thread: Option<JoinHandle<()>>,
}

impl Neighbour {
    /// Moves in, and comes back after its first round.
    pub fn of(server: &Server) -> Self {
        Self::trusting(server, None)
    }

    /// The same over TLS, where it is given whom to trust.
    pub fn trusting(server: &Server, connector: Option<Connector>) -> Self {
        let leaving = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(Mutex::new(Vec::new()));
        let (address, left, counted) = (server.listen, leaving.clone(), rounds.clone());
        let thread =
            std::thread::spawn(move || super::run(live(address, connector, left, counted)));
        let neighbour = Self { leaving, rounds, thread: Some(thread) };
        neighbour.wait_rounds(1);
        neighbour
    }

    /// Rounds that it has done.
    pub fn rounds(&self) -> usize {
        self.rounds.lock().unwrap().len()
    }

    /// Waits until it has done so many more rounds.
    pub fn wait_rounds(&self, more: usize) {
        let until = self.rounds() + more;
        let end = Instant::now() + PATIENCE;
        while self.rounds() < until {
            let thread = self.thread.as_ref().expect("it has not left");
            assert!(!thread.is_finished() && Instant::now() < end, "the neighbour is stuck");
            std::thread::yield_now();
        }
    }

    /// The 99th percentile of its rounds from number `first` on.
    pub fn p99_from(&self, first: usize) -> Duration {
        let mut rounds = self.rounds.lock().unwrap()[first..].to_vec();
        rounds.sort_unstable();
        rounds[(rounds.len() * 99).div_ceil(100) - 1]
    }

    /// Ends it: every call was answered as it should, and none took long.
    pub fn leave(mut self) {
        self.wait_rounds(3);
        self.leaving.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it leaves once");
        thread.join().expect("every call of the neighbour was served");
        let slowest = self.rounds.lock().unwrap().iter().max().copied().unwrap_or_default();
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

async fn live(
    address: SocketAddr,
    connector: Option<Connector>,
    leaving: Arc<AtomicBool>,
    rounds: Arc<Mutex<Vec<Duration>>>,
) {
    static NEIGHBOURS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let key = format!("neighbour-{}", NEIGHBOURS.fetch_add(1, Ordering::Relaxed));
    let caller = match &connector {
        None => Caller::to(address, "keyvalue").await,
        Some(connector) => Caller::secured(address, connector, "keyvalue").await,
    };
    let mut round = 0;
    while !leaving.load(Ordering::Relaxed) {
        let value = round.to_string();
        let begin = Instant::now();
        caller.set(&key, value.as_bytes()).await;
        assert_eq!(caller.get(&key).await.as_deref(), Some(value.as_bytes()));
        rounds.lock().unwrap().push(begin.elapsed());
        round += 1;
    }
}
