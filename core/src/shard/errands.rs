//! What the control thread has a shard do beside its calls, each in a task of its own.

use std::rc::Rc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prism_adapters::Error;
use prism_adapters::memory::Erasure;
use prism_io::rt::{self, Flag};

use super::{Shard, endings};

/// Entries that are taken out before the loop is given back.
const ERASE_BUDGET: usize = 512;
/// How often it is looked whether records have been applied.
const TICK: Duration = Duration::from_millis(2);

/// A namespace that may end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) id: u32,
    pub(crate) name: String,
    /// Its backend's place in the configuration.
    pub(crate) backend: usize,
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Errand {
    /// Count what a namespace holds, once every record that is in the log now has been applied; of a backend outside 1 is some.
    Count(Ending),
    /// Take out everything that a namespace keeps; it takes no calls any more. Answered with 0 when it is done; a backend outside that
    /// cannot be asked is told first, and asked again.
    Erase(Ending),
    /// Give up what is on its way to a namespace's backend outside, and forget what is known of it here: it takes no calls any more, and
    /// another server has the backend take it out.
    Forget(Ending),
    /// Open calls of namespaces that have ended end.
    TellEnded,
}

/// What has become of an errand.
pub(crate) type Told = Result<usize, Error>;

/// Where that is told.
type Tell = Box<dyn Fn(Told) + Send>;

/// The way of errands from the control thread to a shard.
#[derive(Default)]
pub(crate) struct Errands(Mutex<Inbox>);

#[derive(Default)]
struct Inbox {
    waiting: Vec<(Errand, Tell)>,
    /// Set when something waits; a new one each time.
    told: Arc<Flag>,
}

impl Errands {
    /// Has the shard do it; its answer comes when it is done, and never where the shard ends before.
    pub(crate) fn give(&self, errand: Errand) -> Receiver<Told> {
        let (answer, answered) = sync_channel(1);
        // Whoever gave it may have gone.
        self.give_and_hear(errand, move |told| drop(answer.try_send(told)));
        answered
    }

    /// The same, and everything that there is to tell is told there, on the shard's thread.
    pub(crate) fn give_and_hear(&self, errand: Errand, tell: impl Fn(Told) + Send + 'static) {
        let mut inbox = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.waiting.push((errand, Box::new(tell)));
        inbox.told.set();
    }

    async fn next(&self) -> Vec<(Errand, Tell)> {
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
        for (errand, tell) in errands.next().await {
            let shard = shard.clone();
            rt::spawn(async move { carry_out(&shard, errand, &*tell).await });
        }
    }
}

async fn carry_out(shard: &Shard, errand: Errand, tell: &dyn Fn(Told)) {
    match errand {
        Errand::TellEnded => {
            shard.endings.tell();
            tell(Ok(0));
        }
        Errand::Count(of) if of.backend == 0 => {
            settled(shard).await;
            tell(Ok(shard.store.namespace_entries(of.id)));
        }
        Errand::Count(of) => {
            settled(shard).await;
            tell(endings::holds_data(shard, &of).await.map(usize::from));
        }
        Errand::Erase(of) if of.backend == 0 => {
            settled(shard).await;
            erase_here(shard, of.id).await;
            tell(Ok(0));
        }
        Errand::Forget(of) => {
            settled(shard).await;
            erase_here(shard, of.id).await;
            endings::leave(shard, of.id).await;
            tell(Ok(0));
        }
        Errand::Erase(of) => {
            settled(shard).await;
            // What its idempotency keys have come to is here.
            erase_here(shard, of.id).await;
            endings::erase(shard, &of, tell).await;
        }
    }
}

/// Waits until every record that is in the log now has been applied.
async fn settled(shard: &Shard) {
    let upto = shard.log.last_lsn();
    while shard.log.applied_lsn() < upto {
        rt::sleep(TICK).await;
    }
}

async fn erase_here(shard: &Shard, namespace: u32) {
    let mut erasure = Erasure::new(namespace);
    while !shard.store.erase(&mut erasure, ERASE_BUDGET) {
        rt::yield_now().await;
    }
}
