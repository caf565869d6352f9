//! What comes to a topic, for all who are subscribed without keeping their place: one reader per shard and topic, which ends when the
//! last of them has left. It goes on where it stood when Redis has been away.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use prism_io::clock::wall_us;
use prism_io::rt;

use super::super::Redis;
use super::super::codec;
use super::super::keyvalue::{Answer, put_key};
use super::super::scripts::Script;
use super::super::stream::Id;
use super::event::read_event;
use crate::call::{Context, NO_DEADLINE_NS, Revision};
use crate::error::Error;
use crate::limits::Limits;
use crate::memory::pubsub::{Event, Subscriptions};
use crate::news::News;
use crate::shared::Key;

/// Events of one read, and bytes of them.
const EVENTS_MAX: usize = 64;
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long to wait when Redis cannot be read from.
const AGAIN: Duration = Duration::from_millis(200);

/// Who listens on this shard.
#[derive(Default)]
pub(super) struct Listeners {
    pub(super) subscriptions: Subscriptions,
    tails: RefCell<HashMap<Key, Weak<TopicTail>>>,
}

/// Held by those who listen to a topic.
pub(super) struct TopicTail {
    /// The event that was read last, and who waits for the next.
    last: Cell<Id>,
    moved: Rc<News>,
    /// Tells the reader that nobody listens any more.
    left: Rc<News>,
}

impl Drop for TopicTail {
    fn drop(&mut self) {
        self.left.tell();
    }
}

/// Where a topic stands, and events of it.
struct Read {
    last: Id,
    events: Vec<(Id, Event)>,
}

impl Listeners {
    /// The tail of a topic, which has read everything that was published before it was asked for, and nothing else that
    /// whoever asked has not the chance to hear.
    pub(super) async fn tail(
        self: &Rc<Self>,
        redis: &Rc<Redis>,
        context: &Context<'_>,
        topic: &str,
    ) -> Result<Rc<TopicTail>, Error> {
        let end = read(redis, context, topic, (Id::default(), 0)).await?.last;
        let key: Key = (context.namespace, topic.into());
        let running = self.tails.borrow().get(&key).and_then(Weak::upgrade);
        let Some(tail) = running else {
            let last = Cell::new(end);
            let tail = Rc::new(TopicTail { last, moved: Rc::default(), left: Rc::default() });
            self.tails.borrow_mut().insert(key.clone(), Rc::downgrade(&tail));
            let reader = Reader {
                listeners: self.clone(),
                redis: Rc::downgrade(redis),
                namespace_name: context.namespace_name.into(),
                key,
            };
            rt::spawn(reader.run(Rc::downgrade(&tail), tail.left.clone()));
            return Ok(tail);
        };
        let mut moved = tail.moved.listen();
        while tail.last.get() < end {
            if rt::timeout(AGAIN, &mut moved).await.is_none() {
                // Whoever asked hears what keeps the tail.
                read(redis, context, topic, (Id::default(), 0)).await?;
            }
        }
        Ok(tail)
    }
}

/// Reads so many events behind an id.
async fn read(
    redis: &Redis,
    context: &Context<'_>,
    topic: &str,
    (after, count): (Id, usize),
) -> Result<Read, Error> {
    let write = |out: &mut Vec<u8>| {
        put_key(out, context, topic);
        codec::put(out, after.text().as_bytes());
        codec::put(out, b"+");
        codec::put_number(out, count as u64);
        codec::put_number(out, BYTES_MAX as u64);
    };
    let bytes = redis.script(context, Script::StreamRead, 1, 4, write).await?;
    let mut answer = Answer::new(context, &bytes);
    let parts = answer.array()?;
    if parts < 5 {
        return Ok(Read { last: Id::default(), events: Vec::new() });
    }
    answer.next()?;
    let last = Id::read(context, answer.blob()?)?;
    for _ in 2..5 {
        answer.next()?;
    }
    let event = |_| read_event(context, topic, &mut answer);
    Ok(Read { last, events: (5..parts).map(event).collect::<Result<_, _>>()? })
}

/// What shares the events of a topic out.
struct Reader {
    listeners: Rc<Listeners>,
    redis: Weak<Redis>,
    namespace_name: Box<str>,
    key: Key,
}

impl Reader {
    async fn run(self, tail: Weak<TopicTail>, left: Rc<News>) {
        let Some(redis) = self.redis.upgrade() else { return };
        let mut attendance = redis.tail.attend(&self.namespace_name, &self.key.1);
        drop(redis);
        let mut left = left.listen();
        loop {
            let (Some(redis), Some(held)) = (self.redis.upgrade(), tail.upgrade()) else { break };
            let came = self.share_out(&redis, &held).await;
            drop((redis, held));
            match came {
                // There may be more.
                Ok(true) => rt::yield_now().await,
                Ok(false) => attendance.told().or(&mut left).await,
                // What Redis cannot say now, it says later.
                Err(_) => rt::sleep(AGAIN).await,
            }
        }
        let mut tails = self.listeners.tails.borrow_mut();
        if tails.get(&self.key).is_some_and(|tail| tail.strong_count() == 0) {
            tails.remove(&self.key);
        }
    }

    /// Reads on; whether something came.
    async fn share_out(&self, redis: &Redis, tail: &TopicTail) -> Result<bool, Error> {
        let limits = Limits::default();
        let context = Context {
            namespace: self.key.0,
            namespace_name: &self.namespace_name,
            partition: 0,
            now_us: wall_us(),
            deadline_ns: NO_DEADLINE_NS,
            revision: Revision::default(),
            limits: &limits,
        };
        let from = (tail.last.get(), EVENTS_MAX);
        let Read { events, .. } = read(redis, &context, &self.key.1, from).await?;
        let came = !events.is_empty();
        for (id, event) in events {
            tail.last.set(id);
            self.listeners.subscriptions.publish(self.key.0, event);
        }
        if came {
            tail.moved.tell();
        }
        Ok(came)
    }
}
