//! Whether calls are served: told by the shards, asked by the admin port and the health service.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Which shards serve, and whether the process drains. `Clone` shares it.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Flags>);

#[derive(Debug)]
struct Flags {
    serving: Box<[AtomicBool]>,
    draining: AtomicBool,
}

impl Readiness {
    /// Of a process whose `shards` do not serve yet.
    pub fn new(shards: usize) -> Self {
        let serving = (0..shards).map(|_| AtomicBool::new(false)).collect();
        Self(Arc::new(Flags { serving, draining: AtomicBool::new(false) }))
    }

    /// The shard has recovered its log and listens.
    pub fn serving(&self, shard: usize) {
        self.0.serving[shard].store(true, Relaxed);
    }

    /// The shard has stopped.
    pub fn stopped(&self, shard: usize) {
        self.0.serving[shard].store(false, Relaxed);
    }

    /// The process takes no new calls any more.
    pub fn drain(&self) {
        self.0.draining.store(true, Relaxed);
    }

    /// Whether the process drains.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Relaxed)
    }

    /// What is missing, in words; `None` when the process is ready.
    pub fn missing(&self) -> Option<String> {
        if self.is_draining() {
            return Some("draining".into());
        }
        let shards = self.0.serving.len();
        let silent = self.0.serving.iter().filter(|serving| !serving.load(Relaxed)).count();
        (silent > 0).then(|| format!("{silent} of {shards} shards do not serve yet"))
    }
}
