//! Namespaces that come to their end while calls of them are open: those end too, and what they keep on their backend goes.

use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use prism_adapters::call::NO_DEADLINE_NS;
use prism_adapters::{Context, Error, Kind, Limits, News, Revision};
use prism_io::{clock, rt};

use super::Shard;
use super::errands::{Ending, Told};
use crate::namespaces::Namespace;
use crate::request::NAMESPACE_UNKNOWN;

/// How long calls that were let in before may go on.
const CALLS_PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether they have ended.
const TICK: Duration = Duration::from_millis(2);
/// How long a backend that could not be asked is left alone: the first time, and after many.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Tells open calls of a shard that namespaces have ended.
#[derive(Default)]
pub(crate) struct Endings(Rc<News>);

impl Endings {
    /// Some have.
    pub(super) fn tell(&self) {
        self.0.tell();
    }

    /// Waits until one of these has ended.
    pub(crate) async fn wait<'a>(&self, namespaces: [&'a Namespace; 2]) -> &'a Namespace {
        let mut told = self.0.listen();
        loop {
            let ended = namespaces.into_iter().find(|namespace| namespace.terms.has_ended());
            match ended {
                Some(ended) => return ended,
                None => (&mut told).await,
            }
        }
    }

    /// Does the work of a call on these namespaces for as long as there are both.
    pub(crate) async fn unless_ended<T>(
        &self,
        namespaces: [&Namespace; 2],
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let (mut ended, mut work) = (pin!(self.wait(namespaces)), pin!(work));
        std::future::poll_fn(|context| {
            if let Poll::Ready(namespace) = ended.as_mut().poll(context) {
                return Poll::Ready(Err(has_ended(&namespace.name)));
            }
            work.as_mut().poll(context).map_err(|error| {
                let gone = namespaces.into_iter().find(|of| !of.terms.is_served());
                match gone.filter(|_| error.reason() == NAMESPACE_UNKNOWN) {
                    // A call of its own came just before it was told.
                    Some(gone) => has_ended(&gone.name),
                    None => error,
                }
            })
        })
        .await
    }
}

/// What an open call hears whose namespace has ended.
#[cold]
pub(crate) fn has_ended(name: &str) -> Error {
    let message = format!(
        "namespace {name} has ended while this call was open: it was deleted, or is not asked for any more"
    );
    Error::new(Kind::NotFound, "NAMESPACE_ENDED", message).with("namespace", name.to_owned())
}

/// Whether there is anything of a namespace on its backend outside, or on its way there.
pub(super) async fn holds_data(shard: &Shard, ending: &Ending) -> Result<bool, Error> {
    let namespace = shard.namespaces.by_id(ending.id);
    let lane = namespace.and_then(|namespace| shard.lanes.of(namespace.index));
    if lane.is_some_and(|lane| lane.holds()) {
        return Ok(true);
    }
    let limits = Limits::default();
    shard.backend_at(ending.backend).holds_data(&context(ending, &limits)).await
}

/// Closes the lane of a namespace that takes no calls any more, and waits until nothing of it is under way.
pub(super) async fn leave(shard: &Shard, id: u32) {
    let Some(namespace) = shard.namespaces.by_id(id) else { return };
    let lane = shard.lanes.of(namespace.index);
    if let Some(lane) = lane {
        lane.close(shard);
    }
    let until_ns = clock::monotonic_ns() + CALLS_PATIENCE.as_nanos() as u64;
    let is_under_way = || {
        let of_calls = shard.in_flight[namespace.index].get() > 0;
        of_calls || lane.is_some_and(|lane| !lane.is_at_rest())
    };
    while is_under_way() && clock::monotonic_ns() < until_ns {
        rt::sleep(TICK).await;
    }
}

/// Has the backend take out a namespace that takes no calls any more. Goes on until that is done; the first failure is told.
pub(super) async fn erase(shard: &Shard, ending: &Ending, tell: &dyn Fn(Told)) {
    leave(shard, ending.id).await;
    let (limits, mut pause) = (Limits::default(), PAUSE_MIN);
    while let Err(error) = shard.backend_at(ending.backend).erase(&context(ending, &limits)).await {
        if pause == PAUSE_MIN {
            tell(Err(error));
        }
        rt::sleep(pause).await;
        pause = (2 * pause).min(PAUSE_MAX);
    }
    tell(Ok(0));
}

fn context<'a>(ending: &'a Ending, limits: &'a Limits) -> Context<'a> {
    Context {
        namespace: ending.id,
        namespace_name: &ending.name,
        partition: 0,
        now_us: clock::wall_us(),
        revision: Revision::default(),
        limits,
        // It is done whoever waits.
        deadline_ns: NO_DEADLINE_NS,
    }
}
