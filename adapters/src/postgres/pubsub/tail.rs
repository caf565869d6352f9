//! What comes to the topics of a namespace, for all who are subscribed without keeping their place: one reader per shard and
//! namespace, which ends when the last of them has left. It goes on where it stood when PostgreSQL has been away.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use prism_io::rt;

use super::super::Pool;
use super::super::batch::{Answer, Operation};
use super::super::codec::Parameters;
use super::super::errors::Fault;
use super::super::statements::Namespace;
use super::rows::event;
use super::{PubSubStatement, other};
use crate::call::NO_DEADLINE_NS;
use crate::memory::pubsub::Subscriptions;
use crate::news::News;
use crate::sources::Sources;

/// Events of one read, and bytes of their payloads.
const EVENTS_MAX: i64 = 64;
const BYTES_MAX: i64 = 4 * 1024 * 1024;

/// The source of a namespace's events; no topic has this name.
pub(super) const ALL: &str = "";

/// Who listens on this shard.
#[derive(Default)]
pub(in super::super) struct Topics {
    pub(super) subscriptions: Subscriptions,
    /// What is told: topics, and under [`ALL`] all of them.
    pub(super) sources: Sources,
    tails: RefCell<HashMap<u32, Weak<Tail>>>,
}

/// Held by those who listen.
pub(super) struct Tail {
    topics: Weak<Topics>,
    namespace: u32,
    /// The event that was read last, and who waits for the next.
    last: Cell<i64>,
    moved: Rc<News>,
}

impl Drop for Tail {
    fn drop(&mut self) {
        if let Some(topics) = self.topics.upgrade() {
            topics.sources.tell(self.namespace, ALL);
        }
    }
}

impl Topics {
    /// The tail of a namespace, which has read everything that was published before it was asked for, and nothing else that
    /// whoever asked has not the chance to hear.
    pub(super) async fn tail(
        self: &Rc<Self>,
        pool: &Rc<Pool>,
        namespace: Rc<Namespace>,
        look_every: Duration,
    ) -> Result<Rc<Tail>, Fault> {
        let end = end(pool, &namespace).await?;
        let running = self.tails.borrow().get(&namespace.number).and_then(Weak::upgrade);
        let Some(tail) = running else {
            return Ok(self.begin(pool, namespace, end, look_every));
        };
        let mut moved = tail.moved.listen();
        while tail.last.get() < end {
            self.sources.tell(namespace.number, ALL);
            if rt::timeout(look_every, &mut moved).await.is_none() {
                // Whoever asked hears what keeps the tail.
                self::end(pool, &namespace).await?;
            }
        }
        Ok(tail)
    }

    fn begin(
        self: &Rc<Self>,
        pool: &Rc<Pool>,
        namespace: Rc<Namespace>,
        last: i64,
        look_every: Duration,
    ) -> Rc<Tail> {
        let number = namespace.number;
        let (topics, last, moved) = (Rc::downgrade(self), Cell::new(last), Rc::default());
        let tail = Rc::new(Tail { topics, namespace: number, last, moved });
        self.tails.borrow_mut().insert(number, Rc::downgrade(&tail));
        let (topics, pool) = (self.clone(), Rc::downgrade(pool));
        let reader = Reader { topics, pool, namespace, look_every };
        rt::spawn(reader.run(Rc::downgrade(&tail)));
        tail
    }
}

/// The newest event.
async fn end(pool: &Rc<Pool>, namespace: &Rc<Namespace>) -> Result<i64, Fault> {
    let answer = ask(pool, namespace, PubSubStatement::End, Parameters::default()).await?;
    Ok(answer.row().map_or(0, |row| row.number))
}

async fn ask(
    pool: &Rc<Pool>,
    namespace: &Rc<Namespace>,
    statement: PubSubStatement,
    parameters: Parameters,
) -> Result<Answer, Fault> {
    let operations: Vec<Operation> = vec![other(statement, parameters)];
    pool.of_reads(namespace.number, 0).call(namespace.clone(), operations, NO_DEADLINE_NS).await
}

/// What shares the events out.
struct Reader {
    topics: Rc<Topics>,
    pool: Weak<Pool>,
    namespace: Rc<Namespace>,
    look_every: Duration,
}

impl Reader {
    async fn run(self, tail: Weak<Tail>) {
        let (topics, number) = (self.topics.clone(), self.namespace.number);
        let mut attendance = topics.sources.attend(number, ALL);
        while let Some(held) = tail.upgrade() {
            let came = self.share_out(&held).await;
            drop(held);
            match came {
                // There may be more.
                Some(true) => rt::yield_now().await,
                Some(false) => drop(rt::timeout(self.look_every, attendance.told()).await),
                None => break,
            }
        }
        let mut tails = topics.tails.borrow_mut();
        if tails.get(&number).is_some_and(|tail| tail.strong_count() == 0) {
            tails.remove(&number);
        }
    }

    /// Reads on; whether something came, `None` when there is nothing to read from any more.
    async fn share_out(&self, tail: &Tail) -> Option<bool> {
        let pool = self.pool.upgrade()?;
        let parameters =
            Parameters::default().int8(tail.last.get()).int8(EVENTS_MAX).int8(BYTES_MAX);
        // What PostgreSQL cannot say now, it says later.
        let Ok(answer) = ask(&pool, &self.namespace, PubSubStatement::After, parameters).await
        else {
            return Some(false);
        };
        let mut came = false;
        for (_, row) in &answer.rows {
            // A payload that is not told is so the next time.
            if row.value.is_none() {
                break;
            }
            tail.last.set(row.number);
            self.topics.subscriptions.publish(self.namespace.number, event(row));
            came = true;
        }
        if came {
            tail.moved.tell();
        }
        Some(came)
    }
}
