//! What the control thread has a shard do beside its calls: one after the other, and answered by number.

use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prism_adapters::memory::Erasure;
use prism_io::rt::{self, Flag};

use super::Shard;

/// Entries that are taken out before the loop is given back.
const ERASE_BUDGET: usize = 512;
/// How often it is looked whether records have been applied.
const TICK: Duration = Duration::from_millis(2);

/// Something to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errand {
    /// Count the entries of the namespace with that id, once every record that is in the log now has been applied.
    Count(u32),
    /// Take out everything that the namespace with that id keeps; it takes no calls any more. Answered with 0 when it is done.
    Erase(u32),
}

/// The way of errands from the control thread to a shard.
#[derive(Default)]
pub(crate) struct Errands(Mutex<Inbox>);

#[derive(Default)]
struct Inbox {
    waiting: Vec<(Errand, SyncSender<usize>)>,
    /// Set when something waits; a new one each time.
    told: Arc<Flag>,
}

impl Errands {
    /// Has the shard do it; its answer comes when it is done, and never where the shard ends before.
    pub(crate) fn give(&self, errand: Errand) -> Receiver<usize> {
        let (answer, answered) = sync_channel(1);
        let mut inbox = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.waiting.push((errand, answer));
        inbox.told.set();
        answered
    }

    async fn next(&self) -> Vec<(Errand, SyncSender<usize>)> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner).told.clone();
        told.wait().await;
        let mut inbox = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.told = Arc::default();
        std::mem::take(&mut inbox.waiting)
    }
}

/// Does a shard's errands as long as it lives.
pub(super) async fn run(shard: Rc<Shard>, errands: Arc<Errands>) {
    loop {
        for (errand, answer) in errands.next().await {
            let counted = carry_out(&shard, errand).await;
            // Whoever gave it may have gone.
            let _ = answer.try_send(counted);
        }
    }
}

async fn carry_out(shard: &Shard, errand: Errand) -> usize {
    let upto = shard.log.last_lsn();
    while shard.log.applied_lsn() < upto {
        rt::sleep(TICK).await;
    }
    match errand {
        Errand::Count(namespace) => shard.store.namespace_entries(namespace),
        Errand::Erase(namespace) => {
            let mut erasure = Erasure::new(namespace);
            while !shard.store.erase(&mut erasure, ERASE_BUDGET) {
                rt::yield_now().await;
            }
            0
        }
    }
}
