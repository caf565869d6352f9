//! What comes to the streams that somebody follows: one connection per shard, on which one blocking XREAD waits for all of them.
//!
//! It only tells that there is something; each reader looks by itself, on the shard's other connection. While nobody
//! follows it asks for nothing. A stream that somebody begins to follow is waited for with the next XREAD.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use prism_io::rt;

use super::codec::{self, Replies, Value};
use super::config::RedisConfig;
use super::connection::Link;
use super::scripts::Script;
use crate::call::{Context, Revision};
use crate::limits::Limits;
use crate::news::{Listener, News};

/// How long one XREAD waits at most; the next one takes along who has come meanwhile.
const WAIT: Duration = Duration::from_millis(200);

/// A stream that somebody follows.
struct Followed {
    news: Rc<News>,
    readers: usize,
    /// Its last id as it was told; empty: not told yet.
    end: Box<[u8]>,
}

/// See the module.
pub(super) struct Tail {
    config: RedisConfig,
    link: RefCell<Option<Rc<Link>>>,
    followed: RefCell<HashMap<Box<[u8]>, Followed>>,
    is_running: Cell<bool>,
    is_stopped: Cell<bool>,
}

/// Somebody who follows a stream.
pub(super) struct Attendance {
    tail: Rc<Tail>,
    key: Box<[u8]>,
    listener: Listener,
}

impl Attendance {
    /// Ready when something was told since the last time, or since the beginning.
    pub(super) fn told(&mut self) -> &mut Listener {
        &mut self.listener
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        let mut followed = self.tail.followed.borrow_mut();
        if let Some(one) = followed.get_mut(&self.key) {
            one.readers -= 1;
            if one.readers == 0 {
                followed.remove(&self.key);
            }
        }
    }
}

impl Tail {
    pub(super) fn new(config: RedisConfig) -> Self {
        let client_name = format!("{}-tail", config.client_name);
        Tail {
            config: RedisConfig { client_name, ..config },
            link: RefCell::default(),
            followed: RefCell::default(),
            is_running: Cell::new(false),
            is_stopped: Cell::new(false),
        }
    }

    /// Follows a stream from now on.
    pub(super) fn attend(self: &Rc<Self>, namespace: &str, stream: &str) -> Attendance {
        let key: Box<[u8]> = format!("{namespace}:{stream}").into_bytes().into();
        let mut followed = self.followed.borrow_mut();
        let one = followed.entry(key.clone()).or_insert_with(|| Followed {
            news: Rc::default(),
            readers: 0,
            end: Box::default(),
        });
        one.readers += 1;
        let listener = one.news.listen();
        drop(followed);
        if !self.is_running.replace(true) {
            let link = self
                .link
                .borrow_mut()
                .get_or_insert_with(|| Link::start(self.config.clone()))
                .clone();
            rt::spawn(Self::run(Rc::downgrade(self), link));
        }
        Attendance { tail: self.clone(), key, listener }
    }

    /// Ends it for good.
    pub(super) fn stop(&self) {
        self.is_stopped.set(true);
        if let Some(link) = self.link.take() {
            link.stop();
        }
    }

    async fn run(tail: Weak<Self>, link: Rc<Link>) {
        loop {
            let Some(this) = tail.upgrade() else { return };
            let keys: Vec<_> = this.followed.borrow().keys().cloned().collect();
            if keys.is_empty() || this.is_stopped.get() {
                return this.is_running.set(false);
            }
            let ends = ends(&link, &keys).await;
            if let Some(ends) = &ends {
                this.tell(&keys, ends);
            }
            drop(this);
            let went_on = match ends {
                Some(ends) => wait(&link, &keys, &ends).await,
                None => false,
            };
            if !went_on {
                rt::sleep(WAIT).await;
            }
        }
    }

    /// Tells those whose stream has another end than before.
    fn tell(&self, keys: &[Box<[u8]>], ends: &[Box<[u8]>]) {
        let mut followed = self.followed.borrow_mut();
        for (key, end) in keys.iter().zip(ends) {
            if let Some(one) = followed.get_mut(key)
                && one.end != *end
            {
                one.end = end.clone();
                one.news.tell();
            }
        }
    }
}

/// Calls without a namespace of their own: what fails is tried again, and told to nobody.
pub(super) async fn call(link: &Link, write: impl FnOnce(&mut Vec<u8>)) -> Option<bytes::Bytes> {
    let limits = Limits::default();
    let context = Context {
        namespace: 0,
        namespace_name: "",
        partition: 0,
        now_us: 0,
        revision: Revision::default(),
        limits: &limits,
        deadline_ns: crate::NO_DEADLINE_NS,
    };
    link.call(&context, 1, write).await.ok()
}

/// The last id of each stream; empty for what is none.
async fn ends(link: &Link, keys: &[Box<[u8]>]) -> Option<Vec<Box<[u8]>>> {
    let read = call(link, |out| {
        codec::put_command(out, 3 + keys.len());
        codec::put(out, b"EVAL");
        codec::put(out, Script::StreamEnds.source().as_bytes());
        codec::put_number(out, keys.len() as u64);
        keys.iter().for_each(|key| codec::put(out, key));
    })
    .await?;
    let mut replies = Replies::new(&read);
    let Ok(Value::Array(count)) = replies.next() else { return None };
    let end = |_| match replies.next() {
        Ok(Value::Blob(end)) => Some(end.into()),
        _ => None,
    };
    (0..count).map(end).collect::<Option<Vec<_>>>().filter(|ends| ends.len() == keys.len())
}

/// Waits until one of the streams goes on; false if it cannot.
async fn wait(link: &Link, keys: &[Box<[u8]>], ends: &[Box<[u8]>]) -> bool {
    let streams: Vec<_> = keys.iter().zip(ends).filter(|(_, end)| !end.is_empty()).collect();
    if streams.is_empty() {
        return false;
    }
    let read = call(link, |out| {
        codec::put_command(out, 6 + 2 * streams.len());
        codec::put(out, b"XREAD");
        codec::put(out, b"COUNT");
        codec::put(out, b"1");
        codec::put(out, b"BLOCK");
        codec::put_number(out, WAIT.as_millis() as u64);
        codec::put(out, b"STREAMS");
        streams.iter().for_each(|(key, _)| codec::put(out, key));
        streams.iter().for_each(|(_, end)| codec::put(out, end));
    });
    let read = read.await;
    read.is_some_and(|read| !matches!(Replies::new(&read).next(), Err(_) | Ok(Value::Error(_))))
}
