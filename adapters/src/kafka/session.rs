//! This shard's part in a group of Kafka's: one consumer, whose records are shared among all who take part here ([`super::crowd`]).
//!
//! It begins with the first who takes part and ends a little after the last has left. Kafka's own protocol shares the partitions among
//! the Prisms, and whoever else takes part in the group. What is done is committed as soon as somebody waits for that, and else from
//! time to time.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prism_io::bell::Bell;
use prism_io::clock::{monotonic_ns, wall_us};
use prism_io::rt;
use rdkafka::message::{Message as _, OwnedMessage};

use super::cluster::{Cluster, Turn};
use super::crowd::{Awaited, Crowd, Manner, Standing, Terms};
use super::errors::Fault;
use super::link::Link;
use super::notes::Note;
use super::offsets::{commit, committed};
use super::pubsub::is_heard;
use super::reader::{Found, Reader};
use crate::call::Context;
use crate::error::Error;
use crate::filter::Filter;
use crate::news::News;

/// How long it stays after the last has left: whoever comes back soon finds it as it was.
const LINGER: Duration = Duration::from_secs(2);

/// How often it looks whether there is room for its consumer, where there was none.
const ROOM: Duration = Duration::from_millis(20);

/// How often it looks whether there is anything to do that nobody tells.
const TICK: Duration = Duration::from_millis(500);

/// How often what is done is committed where nobody waits for it.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// Records that are read before the other tasks of the shard have their turn.
const RECORDS_PER_TURN: usize = 256;

/// Bytes that a partition's window has at least, whatever is shared out.
const WINDOW_BYTES_MIN: usize = 64 * 1024;

/// How it stands with a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// It takes nobody in any more.
    Ending,
    /// Kafka knows that it has left.
    Ended,
}

/// Of which group, topic and kind.
pub(super) struct Wanted {
    /// As Kafka calls it.
    pub(super) group: String,
    pub(super) note: Rc<Note>,
    pub(super) manner: Manner,
    /// Of a subscription: what it hears. The rest counts as done, and so does what has expired.
    pub(super) filter: Option<Filter>,
}

/// See the module.
pub(super) struct Session {
    link: Rc<Link>,
    wanted: Wanted,
    pub(super) crowd: RefCell<Crowd<Rc<OwnedMessage>>>,
    /// Tells those who take part, or wait for a commit, that something has changed.
    pub(super) news: Rc<News>,
    /// Tells the session.
    bell: Arc<Bell>,
    state: Cell<State>,
    /// Why it has ended by itself.
    fault: RefCell<Option<Fault>>,
    /// How many commits have failed, and why the last of them has.
    commits_failed: Cell<u64>,
    commit_fault: RefCell<Option<Fault>>,
    reader: RefCell<Option<Arc<Reader>>>,
}

/// Somebody's part in a session; given up when it is dropped.
pub(super) struct Part {
    pub(super) session: Rc<Session>,
    pub(super) number: u64,
    pub(super) name: Box<str>,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.session.crowd.borrow_mut().leave(self.number);
        self.session.tell();
    }
}

/// The sessions of a shard, by the group's name in Kafka.
#[derive(Default)]
pub(super) struct Sessions(RefCell<HashMap<Box<str>, Rc<Session>, ahash::RandomState>>);

impl Sessions {
    /// That of a group, if there is one.
    pub(super) fn of(&self, group: &str) -> Option<Rc<Session>> {
        self.0.borrow().get(group).cloned()
    }

    /// Takes somebody in, in a session that is begun if there is none.
    pub(super) async fn join(
        self: &Rc<Self>,
        (context, link): (&Context<'_>, &Rc<Link>),
        wanted: Wanted,
        (name, terms): (&str, Terms),
    ) -> Result<Part, Error> {
        let session = loop {
            match self.of(&wanted.group) {
                Some(session) if session.is_open() && session.is_of(&wanted.note) => break session,
                Some(session) => {
                    session.end();
                    session.ended(context).await?;
                }
                None => break self.begin(link, wanted),
            }
        };
        let (number, name) = session.crowd.borrow_mut().join(name, terms, context.now_us);
        session.tell();
        Ok(Part { session, number, name })
    }

    fn begin(self: &Rc<Self>, link: &Rc<Link>, wanted: Wanted) -> Rc<Session> {
        if !link.has_room_for_a_reader() {
            // Those that nobody takes part in any more give way.
            let sessions = self.0.borrow();
            sessions.values().filter(|one| one.crowd.borrow().is_empty()).for_each(|one| one.end());
        }
        let group: Box<str> = wanted.group.as_str().into();
        let session = Rc::new(Session {
            link: link.clone(),
            crowd: RefCell::new(Crowd::new(wanted.manner)),
            wanted,
            news: Rc::default(),
            bell: Arc::default(),
            state: Cell::new(State::Open),
            fault: RefCell::default(),
            commits_failed: Cell::new(0),
            commit_fault: RefCell::default(),
            reader: RefCell::default(),
        });
        self.0.borrow_mut().insert(group.clone(), session.clone());
        let (sessions, running) = (self.clone(), session.clone());
        rt::spawn(async move {
            running.run().await;
            sessions.0.borrow_mut().remove(&group);
            running.state.set(State::Ended);
            running.news.tell();
        });
        session
    }

    /// Ends the session of a group, if there is one; comes back when Kafka knows.
    pub(super) async fn end(&self, context: &Context<'_>, group: &str) -> Result<(), Error> {
        match self.of(group) {
            None => Ok(()),
            Some(session) => {
                session.end();
                session.ended(context).await
            }
        }
    }

    /// Ends all of them.
    pub(super) fn stop(&self) {
        let sessions: Vec<_> = self.0.borrow().values().cloned().collect();
        let readers: Vec<_> = sessions.iter().filter_map(|one| one.reader.take()).collect();
        sessions.iter().for_each(|session| session.end());
        if !readers.is_empty() {
            // Each says good-bye to the cluster first.
            drop(std::thread::spawn(move || drop(readers)));
        }
    }
}

impl Session {
    /// Whether it is of the group that this is noted of, not of one that had its name.
    pub(super) fn is_of(&self, note: &Note) -> bool {
        self.wanted.note.since_us == note.since_us
    }

    pub(super) fn is_open(&self) -> bool {
        self.state.get() == State::Open
    }

    /// Why it has ended by itself, if it has.
    pub(super) fn failure(&self, context: &Context<'_>) -> Option<Error> {
        self.fault.borrow().as_ref().map(|fault| self.link.error(context, fault))
    }

    /// Takes nobody in any more; its streams end.
    fn end(&self) {
        if self.is_open() {
            self.state.set(State::Ending);
        }
        self.tell();
    }

    /// Tells all that something has changed.
    fn tell(&self) {
        self.news.tell();
        self.bell.ring();
    }

    /// Waits until Kafka knows that it has left.
    async fn ended(&self, context: &Context<'_>) -> Result<(), Error> {
        let timeout = self.link.config().answer_timeout;
        let mut news = self.news.listen();
        let wait = async {
            while self.state.get() != State::Ended {
                (&mut news).await;
            }
        };
        let waited = rt::timeout(timeout, wait).await;
        waited.ok_or_else(|| self.link.error(context, &Fault::unresponsive(timeout)))
    }

    /// Waits until Kafka has said which partitions are here; false where it ends before.
    pub(super) async fn begun(&self, context: &Context<'_>) -> Result<bool, Error> {
        let timeout = self.link.config().answer_timeout;
        let mut news = self.news.listen();
        let wait = async {
            while self.is_open() && self.crowd.borrow().generation() == 0 {
                (&mut news).await;
            }
            self.is_open()
        };
        let waited = rt::timeout(timeout, wait).await;
        waited.ok_or_else(|| self.link.error(context, &Fault::not_yet()))
    }

    /// Waits until what was acknowledged is kept by Kafka; which of it is not, because its partition was given away before.
    pub(super) async fn kept(
        &self,
        context: &Context<'_>,
        awaited: &[Awaited],
    ) -> Result<Vec<bool>, Error> {
        let timeout = self.link.config().answer_timeout;
        let failed = self.commits_failed.get();
        let mut news = self.news.listen();
        let wait = async {
            loop {
                let standings: Vec<_> = {
                    let mut crowd = self.crowd.borrow_mut();
                    let standings: Vec<_> = awaited.iter().map(|one| crowd.standing(one)).collect();
                    crowd.is_awaited |= standings.contains(&Standing::NotYet);
                    standings
                };
                if !standings.contains(&Standing::NotYet) {
                    return Ok(standings.iter().map(|one| *one == Standing::Kept).collect());
                }
                if self.state.get() == State::Ended || self.commits_failed.get() != failed {
                    let fault = self.commit_fault.borrow().clone();
                    return Err(fault.unwrap_or_else(Fault::not_yet));
                }
                self.bell.ring();
                (&mut news).await;
            }
        };
        let kept = rt::timeout(timeout, wait).await;
        let kept = kept.unwrap_or_else(|| Err(Fault::unresponsive(timeout)));
        kept.map_err(|fault| self.link.error(context, &fault))
    }

    async fn run(&self) {
        let until_ns = monotonic_ns() + self.link.config().answer_timeout.as_nanos() as u64;
        let counted = loop {
            match self.link.count_reader() {
                Ok(counted) => break counted,
                Err(fault) if monotonic_ns() > until_ns => return self.fail(fault),
                Err(_) if !self.is_open() || self.link.is_stopped() => return,
                Err(_) => rt::sleep(ROOM).await,
            }
        };
        let begun = self.ask(|| {
            let (group, topic) = (self.wanted.group.clone(), self.wanted.note.topic.clone());
            let bell = self.bell.clone();
            move |cluster: &Cluster| Reader::member(cluster, &group, &topic, bell).map(Arc::new)
        });
        match begun.await {
            Err(fault) => self.fail(fault),
            Ok(reader) if self.link.is_stopped() => drop(std::thread::spawn(move || drop(reader))),
            Ok(reader) => {
                *self.reader.borrow_mut() = Some(reader);
                self.attend().await;
                self.leave().await;
            }
        }
        drop(counted);
    }

    /// Asks beside the shard, and again as long as too much is asked there already.
    async fn ask<T: Send + 'static, Q>(&self, question: impl Fn() -> Q) -> Result<T, Fault>
    where
        Q: FnOnce(&Cluster) -> Result<T, Fault> + Send + 'static,
    {
        loop {
            match self.link.ask_anyway(question()).await {
                Err(fault) if fault.reason == "BACKEND_BUSY" && !self.link.is_stopped() => {
                    rt::sleep(ROOM).await;
                }
                answer => return answer,
            }
        }
    }

    fn fail(&self, fault: Fault) {
        *self.fault.borrow_mut() = Some(fault);
        self.end();
    }

    /// Does what there is to do until it is to end.
    async fn attend(&self) {
        let mut crowded_ns = monotonic_ns();
        let mut kept_ns = crowded_ns;
        loop {
            let heard = self.bell.heard();
            let Some(reader) = self.reader.borrow().clone() else { return };
            if !self.is_open() || self.link.is_stopped() {
                return self.let_go(reader);
            }
            let has_followed = self.follow(&reader).await;
            if self.crowd.borrow().is_to_be_shared() {
                self.crowd.borrow_mut().begin_generation();
                self.settle(&reader).await;
            }
            let has_more = self.read(&reader);
            self.steer(&reader);
            let now_ns = monotonic_ns();
            let is_due = now_ns - kept_ns >= COMMIT_EVERY.as_nanos() as u64;
            if is_due || self.crowd.borrow().is_awaited {
                kept_ns = now_ns;
                self.keep(&reader).await;
            }
            if !self.crowd.borrow().is_empty() {
                crowded_ns = now_ns;
            } else if now_ns - crowded_ns >= LINGER.as_nanos() as u64 {
                return self.end();
            }
            self.let_go(reader);
            match has_more || has_followed {
                true => rt::yield_now().await,
                false => drop(rt::timeout(TICK, self.bell.wait(heard)).await),
            }
        }
    }

    /// Gives up its hold of the consumer; when that is the last, its end is not waited for here.
    fn let_go(&self, reader: Arc<Reader>) {
        if self.link.is_stopped() {
            drop(std::thread::spawn(move || drop(reader)));
        }
    }

    /// Commits what is done and leaves Kafka's group.
    async fn leave(&self) {
        let Some(reader) = self.reader.take() else { return };
        self.keep(&reader).await;
        let (bell, has_left) = (self.bell.clone(), Arc::new(AtomicBool::new(false)));
        let told = has_left.clone();
        std::thread::spawn(move || {
            drop(reader);
            told.store(true, Ordering::Release);
            bell.ring();
        });
        loop {
            let heard = self.bell.heard();
            if has_left.load(Ordering::Acquire) {
                return;
            }
            self.bell.wait(heard).await;
        }
    }

    /// Follows what Kafka has done with the partitions; whether there was anything.
    async fn follow(&self, reader: &Arc<Reader>) -> bool {
        let Some(turn) = reader.next_turn() else { return false };
        match turn {
            Turn::TakenBack => {
                self.crowd.borrow_mut().suspend();
                let rested = self.ask(|| {
                    let reader = reader.clone();
                    move |_: &Cluster| Ok(reader.rest())
                });
                let _ = rested.await;
            }
            Turn::Given(partitions) => self.take_up(reader, partitions).await,
        }
        true
    }

    async fn take_up(&self, reader: &Arc<Reader>, partitions: Vec<u32>) {
        let places = loop {
            let asked = self.ask(|| {
                let (asking, topic) = (reader.clone(), self.wanted.note.topic.clone());
                let numbers = partitions.clone();
                move |cluster: &Cluster| committed(cluster, &asking, &topic, &numbers)
            });
            let told = asked.await;
            match told {
                Ok(places) => break places,
                Err(_) if !self.is_open() || self.link.is_stopped() => return,
                Err(_) => rt::sleep(TICK).await,
            }
        };
        let start = |partition: &u32| self.wanted.note.start(*partition);
        let given: BTreeMap<_, _> = partitions
            .iter()
            .zip(places)
            .map(|(partition, place)| (*partition, (place, start(partition))))
            .collect();
        let is_new = self.crowd.borrow_mut().take_up(&given);
        let assigned = self.ask(|| {
            let (cursors, topic) = (self.crowd.borrow().cursors(), self.wanted.note.topic.clone());
            let assigning = reader.clone();
            move |cluster: &Cluster| {
                assigning.go_to(cluster, &topic, &cursors)?;
                let numbers: Vec<_> = cursors.iter().map(|(partition, _)| *partition).collect();
                assigning.pause(&topic, &numbers, false);
                Ok(())
            }
        });
        if let Err(fault) = assigned.await {
            // Without it nothing would be read: who takes part is to join again.
            return self.fail(fault);
        }
        match is_new {
            true => self.settle(reader).await,
            false => self.news.tell(),
        }
    }

    /// Has Kafka keep the new generation, and lets it begin.
    async fn settle(&self, reader: &Arc<Reader>) {
        self.keep(reader).await;
        self.crowd.borrow_mut().settle();
        self.news.tell();
    }

    /// Commits what is done, and all else that Kafka does not keep yet.
    async fn keep(&self, reader: &Arc<Reader>) {
        let places = {
            let mut crowd = self.crowd.borrow_mut();
            crowd.is_awaited = false;
            crowd.to_keep()
        };
        if !places.is_empty() {
            let kept = self.ask(|| {
                let (committing, topic) = (reader.clone(), self.wanted.note.topic.clone());
                let asked = places.clone();
                move |cluster: &Cluster| commit(cluster, &committing, &topic, &asked)
            });
            match kept.await {
                Ok(()) => self.crowd.borrow_mut().note_kept(&places),
                // Kafka shares the partitions anew: who has them then commits, or they are lost.
                Err(fault) if fault.is_regrouped => rt::sleep(Duration::from_millis(20)).await,
                Err(fault) => {
                    *self.commit_fault.borrow_mut() = Some(fault);
                    self.commits_failed.set(self.commits_failed.get() + 1);
                }
            }
        }
        self.news.tell();
    }

    /// Takes in what has come; whether there may be more.
    fn read(&self, reader: &Reader) -> bool {
        let (mut has_news, mut has_more) = (false, true);
        for _ in 0..RECORDS_PER_TURN {
            match reader.look() {
                Found::Record(record) => {
                    let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
                    let bytes = length(record.payload()) + length(record.key());
                    let filter = self.wanted.filter.as_ref();
                    let is_heard = filter.is_none_or(|filter| is_heard(filter, &record, wall_us()));
                    let (number, offset) = (record.partition() as u32, record.offset() as u64);
                    let record = is_heard.then(|| Rc::new(record.detach()));
                    self.crowd.borrow_mut().put(number, offset, bytes, record);
                    has_news = true;
                }
                Found::End(_) => {}
                Found::Nothing => {
                    has_more = false;
                    break;
                }
                Found::Failure(error) => {
                    let fault = Fault::of(&error);
                    if fault.is_missing {
                        self.link.forget(&self.wanted.note.topic);
                    }
                    // Otherwise the consumer goes on by itself when it can.
                    if fault.reason == "BACKEND_CREDENTIALS_REFUSED" {
                        self.fail(fault);
                    }
                }
            }
        }
        if has_news {
            self.news.tell();
        }
        has_more
    }

    /// Stops the fetch of partitions whose window is full, and has others go on.
    fn steer(&self, reader: &Reader) {
        let mut crowd = self.crowd.borrow_mut();
        let partitions = crowd.places().len().max(1);
        let bytes_max = self.link.config().fetched_bytes_max / partitions;
        let (stop, go_on) = crowd.steer(bytes_max.max(WINDOW_BYTES_MIN));
        reader.pause(&self.wanted.note.topic, &stop, true);
        reader.pause(&self.wanted.note.topic, &go_on, false);
    }
}
