//! Lanes to backends outside the process: logged writes on their way there, in the order of their records.
//!
//! A record comes here when it is durable. A caller whose answer the log can give hears it then; all others hear it when the
//! backend has answered. One task per lane ([`drive`]) sends what is pending, a batch at a time, and goes back to the backend's
//! own watermark after every failure. Promises: records reach the backend in their order and each takes effect once; what a
//! backend has not confirmed stays in the log, however long it is away; memory holds a window of the newest records and
//! everything older is read again from the log ([`again`]).

mod again;
mod drive;
mod queue;

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use prism_adapters::interfaces::{answers_from_log, read_from_log};
use prism_adapters::lane::LaneOwner;
use prism_adapters::{Error, Kind, Reply};
use prism_io::clock::monotonic_ns;
use prism_io::rt::Signal;
use prism_proto::catalogue::{Interface, Method};
use prism_proto::wire;
use prism_wal::{DurableBatch, Lane, Record};
use slab::Slab;

use crate::config::Durability;
use crate::metrics::ShardMetrics;
use crate::namespaces::{Namespace, Namespaces};
use crate::request::{Logged, reply_from_log};
use crate::shard::{Shard, has_ended};

pub(super) use drive::drive;
pub(crate) use queue::FoundLanes;
use queue::{Queue, Waiting};

/// How far a confirmed record may be behind before it may be trimmed is looked at no more often than this.
const HISTORY_STEP: Duration = Duration::from_millis(100);

/// What the platform says about a backend that loses data it has confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    /// What was confirmed so long ago is not lost any more.
    pub(crate) window: Duration,
    /// Whether the lane goes on when more than that is gone.
    pub(crate) goes_on: bool,
}

/// The lanes of one shard that lead outside.
pub(crate) struct Lanes {
    /// By the namespace's place in the configuration. One that comes later gets its lane with its first call.
    list: Box<[OnceCell<Rc<OutsideLane>>]>,
    /// Those that are there, without gaps: as many are looked through as there are lanes, and not as there are namespaces.
    there: Box<[OnceCell<Rc<OutsideLane>>]>,
    owner: LaneOwner,
    /// Up to here the log may be trimmed for the sake of namespaces that are not configured any more.
    orphans_lsn: u64,
}

/// One lane to a backend outside.
pub(crate) struct OutsideLane {
    /// The namespace's place in the configuration.
    namespace: usize,
    lane: Lane,
    owner: LaneOwner,
    loss: Loss,
    queue: RefCell<Queue>,
    /// Set when there is something for the task to do.
    work: Signal,
    /// Who waits until a record of the lane is confirmed, by its number.
    readers: RefCell<Slab<(u64, Waker)>>,
    /// Why it does not go on.
    stalled: RefCell<Option<Error>>,
    /// Its namespace has ended: nothing more is brought to the backend.
    is_closed: Cell<bool>,
    /// Its task has ended.
    is_at_rest: Cell<bool>,
}

impl Lanes {
    /// Those of the namespaces that `of_shard` has a backend outside for, going on from what the log holds; with room for all
    /// that may come.
    pub(super) fn new(
        namespaces: &Namespaces,
        of_shard: impl Fn(&Namespace) -> Option<Loss>,
        owner: LaneOwner,
        found: &FoundLanes,
        last_of_lane: impl Fn(Lane) -> u64,
    ) -> Self {
        let places = || (0..namespaces.places()).map(|_| OnceCell::new()).collect();
        let (list, there) = (places(), places());
        let lanes = Self { list, there, owner, orphans_lsn: found.orphans_lsn() };
        for namespace in namespaces.iter() {
            if let Some(loss) = of_shard(namespace) {
                let last_seq = last_of_lane(lane_of(namespace));
                lanes.begin(namespace, loss, Queue::new(found.of(namespace.id), last_seq));
            }
        }
        lanes
    }

    /// Makes the lane of a namespace that came while the shard runs; nothing of it is pending.
    pub(super) fn begin_new(
        &self,
        namespace: &Namespace,
        loss: Loss,
        last_of_lane: impl Fn(Lane) -> u64,
    ) -> &Rc<OutsideLane> {
        self.begin(namespace, loss, Queue::new(None, last_of_lane(lane_of(namespace))))
    }

    fn begin(&self, namespace: &Namespace, loss: Loss, queue: Queue) -> &Rc<OutsideLane> {
        self.list[namespace.index].get_or_init(|| {
            let lane = Rc::new(OutsideLane {
                namespace: namespace.index,
                lane: lane_of(namespace),
                owner: self.owner,
                loss,
                queue: RefCell::new(queue),
                work: Signal::default(),
                readers: RefCell::default(),
                stalled: RefCell::new(None),
                is_closed: Cell::new(false),
                is_at_rest: Cell::new(false),
            });
            // There are as many places as namespaces.
            let free = self.there.iter().find(|place| place.get().is_none());
            let _ = free.map(|place| place.set(lane.clone()));
            lane
        })
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Rc<OutsideLane>> {
        self.there.iter().map_while(OnceCell::get)
    }

    /// The lane of the namespace at that place of the configuration, if it leads outside.
    #[inline]
    pub(crate) fn of(&self, namespace: usize) -> Option<&Rc<OutsideLane>> {
        self.list.get(namespace)?.get()
    }

    /// The log may be trimmed up to this record without losing what a backend has not confirmed, or may still lose.
    pub(crate) fn trimmable_lsn(&self) -> u64 {
        let now_ns = monotonic_ns();
        let of_lanes = self.iter().map(|lane| {
            lane.queue.borrow_mut().trimmable_lsn(now_ns, lane.loss.window.as_nanos() as u64)
        });
        of_lanes.min().unwrap_or(u64::MAX).min(self.orphans_lsn)
    }

    /// Records that their backends have not confirmed.
    pub(crate) fn pending(&self) -> u64 {
        self.iter().map(|lane| lane.queue.borrow().pending()).sum()
    }

    /// Calls that wait for a backend's confirmation.
    pub(crate) fn waiting(&self) -> usize {
        self.iter().map(|lane| lane.queue.borrow().calls.len()).sum()
    }

    /// Answers the callers whose time is up, and has the others' deadlines watched.
    pub(crate) fn expire(&self, shard: &Shard, now_ns: u64) {
        for lane in self.iter() {
            for waiting in lane.queue.borrow_mut().calls.iter_mut() {
                if let Some(deadline_ns) = waiting.logged.expire(shard, now_ns) {
                    shard.deadlines.watch(deadline_ns);
                }
            }
        }
    }
}

fn lane_of(namespace: &Namespace) -> Lane {
    Lane { namespace: namespace.id, partition: 0 }
}

impl OutsideLane {
    /// Whether an unlogged write must be logged as well, so that the lane keeps one order.
    pub(crate) fn holds(&self) -> bool {
        !self.queue.borrow().is_drained()
    }

    /// Refuses a write that could not be carried out in time, before it has a record.
    pub(crate) fn admit(
        &self,
        namespace: &Namespace,
        level: Durability,
        method: Method,
        request: &[u8],
    ) -> Result<(), Error> {
        let pending = self.queue.borrow().pending();
        let most = namespace.terms.backlog_records_max();
        if pending >= most {
            let text = format!(
                "{pending} writes of namespace {} wait for its backend {}, as many as may: retry when it has caught up, or raise \
                 the namespace's backlog_records_max",
                namespace.name, namespace.backend_name
            );
            let most = format!("{most} logged writes that wait");
            let error = Error::new(Kind::ResourceExhausted, "BACKLOG_FULL", text)
                .quota(format!("namespace:{}", namespace.name), most);
            return Err(self.named(error, namespace).retry_after(Duration::from_secs(1)));
        }
        let Some(stalled) = &*self.stalled.borrow() else { return Ok(()) };
        // Where somebody has to act first, nothing more is promised.
        let may_pass = stalled.kind() != Kind::FailedPrecondition;
        if may_pass && level <= Durability::Wal && answers_from_log(method, request) {
            return Ok(());
        }
        Err(self.behind(namespace, stalled))
    }

    #[cold]
    fn behind(&self, namespace: &Namespace, stalled: &Error) -> Error {
        let text = format!(
            "the backend {} of namespace {} does not take writes at the moment, and this call needs its answer: {}",
            namespace.backend_name,
            namespace.name,
            stalled.message()
        );
        let error = Error::new(Kind::Unavailable, "LANE_BEHIND", text);
        self.named(error, namespace)
            .with("cause", stalled.reason())
            .retry_after(Duration::from_secs(1))
    }

    fn named(&self, error: Error, namespace: &Namespace) -> Error {
        error
            .with("namespace", namespace.name.to_string())
            .with("backend", namespace.backend_name.to_string())
    }

    /// Takes over a durable record with the call behind it, and answers the caller if the log can.
    pub(crate) fn take(
        &self,
        shard: &Shard,
        logged: Logged,
        (batch, index): (&DurableBatch, usize),
        record: &Record<'_>,
        now_ns: u64,
    ) {
        if self.is_closed.get() {
            let name = &shard.namespaces.at(self.namespace).name;
            return logged.fail(shard, has_ended(name), now_ns);
        }
        self.queue.borrow_mut().push(batch, index, record);
        self.work.set();
        let mut reply = shard.replies.take();
        let from_log = reply_from_log(record, &mut reply);
        if from_log && logged.rest.level <= Durability::Wal {
            return logged.end(shard, Ok(reply), record.log_time_us, now_ns);
        }
        shard.deadlines.watch(logged.call.deadline_ns);
        let from_log = from_log.then_some(reply);
        let waiting = Waiting { lane_seq: record.lane_seq, logged, from_log };
        self.queue.borrow_mut().calls.push_back(waiting);
    }

    /// Answers a read from what is on its way to the backend (`true`), or waits until the backend has all that the read may
    /// ask for. May be given up.
    pub(crate) async fn before_read(
        &self,
        namespace: &Namespace,
        method: Method,
        request: &[u8],
        now_us: u64,
        reply: &mut Reply,
    ) -> Result<bool, Error> {
        let upto = {
            let queue = self.queue.borrow();
            if queue.is_drained() {
                return Ok(false);
            }
            let of_key = method.interface() == Some(Interface::KeyValueBasic);
            let key = method.key_field().filter(|_| of_key);
            match key.map(|field| wire::route(request, Some(field))) {
                Some(Ok(route)) => {
                    let upto = queue.last_of_key(route.key);
                    if upto <= queue.confirmed_seq {
                        return Ok(false);
                    }
                    if let Some(record) = queue.of_single_key(route.key)
                        && let Some(write) = Method::by_id(record.head.method)
                    {
                        let write = (write, record.body, record.log_time_us);
                        if read_from_log(write, method, now_us, reply) {
                            return Ok(true);
                        }
                    }
                    upto
                }
                _ => queue.last_seq,
            }
        };
        self.confirmed(namespace, upto).await.map(|()| false)
    }

    /// Waits until the backend has confirmed the lane's records up to `seq`. May be given up.
    pub(crate) async fn confirmed(&self, namespace: &Namespace, seq: u64) -> Result<(), Error> {
        let mut place = Place { lane: self, key: None };
        std::future::poll_fn(|context| {
            if self.queue.borrow().confirmed_seq >= seq {
                return Poll::Ready(Ok(()));
            }
            if let Some(stalled) = &*self.stalled.borrow() {
                return Poll::Ready(Err(self.behind(namespace, stalled)));
            }
            let mut readers = self.readers.borrow_mut();
            match place.key {
                Some(key) => readers[key].1.clone_from(context.waker()),
                None => place.key = Some(readers.insert((seq, context.waker().clone()))),
            }
            Poll::Pending
        })
        .await
    }

    /// Waits until everything that the lane has taken over so far is confirmed.
    pub(crate) async fn caught_up(&self, namespace: &Namespace) -> Result<(), Error> {
        let last_seq = self.queue.borrow().last_seq;
        self.confirmed(namespace, last_seq).await
    }

    /// Brings what an operator sees of it up to date.
    pub(crate) fn show(&self, metrics: &ShardMetrics, now_us: u64) {
        let (queue, shown) = (self.queue.borrow(), metrics.lane(self.namespace));
        shown.pending.set(queue.pending());
        shown.age_us.set(queue.oldest_us().map_or(0, |oldest_us| now_us.saturating_sub(oldest_us)));
        shown.stalled.set(u64::from(self.stalled.borrow().is_some()));
    }

    /// Tells everybody who waits that the log has failed.
    pub(crate) fn fail(&self, shard: &Shard, error: impl Fn() -> Error, now_ns: u64) {
        let calls = std::mem::take(&mut self.queue.borrow_mut().calls);
        for waiting in calls {
            waiting.logged.fail(shard, error(), now_ns);
        }
    }

    /// Its namespace has ended: what is pending is given up, and who waits for it hears so.
    pub(crate) fn close(&self, shard: &Shard) {
        self.is_closed.set(true);
        self.queue.borrow_mut().give_up();
        let name = &shard.namespaces.at(self.namespace).name;
        self.fail(shard, || has_ended(name), monotonic_ns());
        self.stalled.replace(None);
        self.wake_readers();
        self.work.set();
    }

    /// Whether nothing of it is on its way to the backend any more, once it is closed.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.is_at_rest.get()
    }

    fn wake_readers(&self) {
        let confirmed_seq = self.queue.borrow().confirmed_seq;
        let all = self.stalled.borrow().is_some();
        for (_, (seq, waker)) in self.readers.borrow().iter() {
            if all || confirmed_seq >= *seq {
                waker.wake_by_ref();
            }
        }
    }
}

/// A reader's place among those that wait; given up when it is dropped.
struct Place<'a> {
    lane: &'a OutsideLane,
    key: Option<usize>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.lane.readers.borrow_mut().remove(key);
        }
    }
}
