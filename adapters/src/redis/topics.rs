//! Who hears what on this shard: one more connection to Redis, on which it subscribes to channels and patterns of channels.
//!
//! All who are subscribed to one topic or pattern share a [`Tail`]. What comes is put in the lines of those who hear it, in the pass
//! that reads it: each line is bounded, and a subscriber that stays too far behind is told so, so that a slow one holds nobody up. When
//! the connection ends, events may be lost, and the streams end and say so.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};

use prism_io::clock::wall_us;

use super::codec::{self, ProtocolError, Replies, Value};
use super::config::{Doors, RedisConfig};
use super::connection::Link;
use super::errors;
use super::event::{self, BESIDE, beside, channel};
use super::keyvalue::Answer;
use super::wake::Wakes;
use crate::call::{Context, NO_DEADLINE_NS};
use crate::error::Error;
use crate::memory::pubsub::{Standing, Subscriptions};
use crate::shared::{Key, Shared};

/// See the module.
pub(super) struct Topics {
    config: RedisConfig,
    /// Where it may connect to: every node of a cluster hears all that is published.
    doors: Doors,
    link: RefCell<Option<Rc<Link>>>,
    pub(super) subscriptions: Subscriptions,
    /// Who waits for messages of queues.
    pub(super) wakes: Wakes,
    tails: Shared<Tail>,
    /// By the channel, or the pattern of channels, that Redis is asked for.
    ears: RefCell<HashMap<Box<str>, Ear>>,
    /// Tails that there were.
    tails_made: Cell<u64>,
    is_stopped: Cell<bool>,
}

/// What comes by one subscription of Redis.
#[derive(Default)]
struct Ear {
    listeners: Vec<Listener>,
    /// What is beside payloads that are to come, the next one as a rule.
    besides: VecDeque<Beside>,
}

/// What is beside a payload.
struct Beside {
    channel: Box<[u8]>,
    lines: Box<[u8]>,
    /// The payload's mark, where it need not come next.
    mark: Option<u64>,
}

/// What is beside payloads that have not come, at most.
const BESIDES_MAX: usize = 1024;

impl Ear {
    /// What is beside a payload that has come: what was marked as its own, else what came just before.
    fn take_beside(&mut self, channel: &[u8], payload: &[u8]) -> Option<Beside> {
        if self.besides.back().is_some_and(|beside| beside.mark.is_none()) {
            return self.besides.pop_back().filter(|beside| *beside.channel == *channel);
        }
        if self.besides.is_empty() {
            return None;
        }
        let mark = Some(event::mark(payload));
        let is_its_own = |one: &Beside| one.mark == mark && *one.channel == *channel;
        let at = self.besides.iter().position(is_its_own)?;
        self.besides.remove(at)
    }
}

/// A tail, for as long as it stands.
struct Listener {
    number: u64,
    key: Key,
    namespace_name: Box<str>,
    tail: Weak<Tail>,
}

/// What comes to a topic or a pattern, for all who are subscribed to it on this shard; ends when the last of them has left.
pub(super) struct Tail {
    topics: Weak<Topics>,
    name: Name,
    number: u64,
}

impl Drop for Tail {
    fn drop(&mut self) {
        if let Some(topics) = self.topics.upgrade() {
            topics.leave(&self.name, self.number);
        }
    }
}

/// What Redis is asked for.
struct Name {
    text: String,
    is_pattern: bool,
}

impl Name {
    /// The channel of a topic; of a pattern all channels that begin as it does, since Redis's `*` also stands for dots, and what a caller
    /// writes there would cost Redis as much as it likes.
    fn of(namespace: &str, heard: &str) -> Self {
        match heard.split('.').position(|token| matches!(token, "*" | ">")) {
            None => Name { text: channel(namespace, heard), is_pattern: false },
            Some(plain) => {
                let tokens: Vec<_> = heard.split('.').take(plain).chain(["*"]).collect();
                Name { text: channel(namespace, &tokens.join(".")), is_pattern: true }
            }
        }
    }

    /// Adds the command that subscribes to one of its two channels, or the one that ends that.
    fn put(&self, out: &mut Vec<u8>, plain: &[u8], pattern: &[u8], channel: &str) {
        codec::put_command(out, 2);
        codec::put(out, if self.is_pattern { pattern } else { plain });
        codec::put(out, channel.as_bytes());
    }
}

impl Topics {
    pub(super) fn new(config: RedisConfig, doors: Doors) -> Rc<Self> {
        let client_name = format!("{}-topics", config.client_name);
        Rc::new(Topics {
            config: RedisConfig { client_name, ..config },
            doors,
            link: RefCell::default(),
            subscriptions: Subscriptions::default(),
            wakes: Wakes::default(),
            tails: Shared::default(),
            ears: RefCell::default(),
            tails_made: Cell::new(0),
            is_stopped: Cell::new(false),
        })
    }

    /// Ends it for good.
    pub(super) fn stop(&self) {
        self.is_stopped.set(true);
        if let Some(link) = self.link.take() {
            link.stop();
        }
    }

    /// Hears a topic or a pattern: nothing is missed that is published after this, and nothing comes any more whose publisher had been
    /// answered before, so whoever listens attaches now.
    pub(super) async fn tail(
        self: &Rc<Self>,
        context: &Context<'_>,
        heard: &str,
    ) -> Result<Rc<Tail>, Error> {
        let key: Key = (context.namespace, heard.into());
        // Others may wait for the same subscription for longer.
        let context = &Context { deadline_ns: NO_DEADLINE_NS, ..*context };
        let make = async || self.make_tail(context, key.clone()).await;
        let tail = self.tails.get(&key, make).await?;
        // Events are on their way on a connection of their own, and this comes behind them.
        let link = self.link();
        let read = link.call(context, 1, |out| {
            codec::put_command(out, 1);
            codec::put(out, b"PING");
        });
        let read = read.await?;
        Answer::new(context, &read).next()?;
        // The connection may have been lost behind that answer.
        let stands = match self.ears.borrow().get(&*tail.name.text) {
            Some(ear) => ear.listeners.iter().any(|one| one.number == tail.number),
            None => false,
        };
        if !stands {
            self.tails.forget(&key, &Rc::downgrade(&tail));
            return Err(link.refusal(context));
        }
        Ok(tail)
    }

    async fn make_tail(
        self: &Rc<Self>,
        context: &Context<'_>,
        key: Key,
    ) -> Result<Rc<Tail>, Error> {
        let link = self.link();
        self.tails_made.set(self.tails_made.get() + 1);
        let number = self.tails_made.get();
        let name = Name::of(context.namespace_name, &key.1);
        let channels = [beside(&name.text), name.text.clone()];
        let tail = Rc::new(Tail { topics: Rc::downgrade(self), name, number });
        let listener = Listener {
            number,
            key,
            namespace_name: context.namespace_name.into(),
            tail: Rc::downgrade(&tail),
        };
        let ear_name = tail.name.text.as_str();
        self.ears.borrow_mut().entry(ear_name.into()).or_default().listeners.push(listener);
        // To one that is there already it subscribes once more: that changes nothing, and its answer says that it stands.
        for channel in &channels {
            let write =
                |out: &mut Vec<u8>| tail.name.put(out, b"SUBSCRIBE", b"PSUBSCRIBE", channel);
            let read = link.call(context, 1, write).await?;
            if read.first() != Some(&b'>') {
                Answer::new(context, &read).next()?;
                return Err(errors::unexpected(context));
            }
        }
        Ok(tail)
    }

    /// The connection, which is made when it is first needed.
    pub(super) fn link(self: &Rc<Self>) -> Rc<Link> {
        let make = || Link::start_for(self.config.clone(), Rc::downgrade(self), self.doors.clone());
        let link = self.link.borrow_mut().get_or_insert_with(make).clone();
        if self.is_stopped.get() {
            link.stop();
        }
        link
    }

    fn leave(&self, name: &Name, number: u64) {
        let mut ears = self.ears.borrow_mut();
        let Some(ear) = ears.get_mut(name.text.as_str()) else { return };
        ear.listeners.retain(|one| one.number != number);
        if !ear.listeners.is_empty() {
            return;
        }
        ears.remove(name.text.as_str());
        drop(ears);
        if let Some(link) = &*self.link.borrow() {
            link.tell(2, |out| {
                for channel in [&name.text, &beside(&name.text)] {
                    name.put(out, b"UNSUBSCRIBE", b"PUNSUBSCRIBE", channel);
                }
            });
        }
    }

    /// The connection is gone, and with it every subscription.
    pub(super) fn cut_off(&self) {
        self.wakes.cut_off();
        let ears = self.ears.take();
        for one in ears.into_values().flat_map(|ear| ear.listeners) {
            self.tails.forget(&one.key, &one.tail);
            self.subscriptions.end(one.key.0, &one.key.1, Standing::CutOff);
        }
    }

    /// Takes what Redis says by itself; returns whether it is a reply.
    pub(super) fn hear(&self, frame: &[u8]) -> Result<bool, ProtocolError> {
        let (count, mut parts) = Replies::of_push(frame)?;
        let mut text = || match parts.next() {
            Ok(Value::Blob(text) | Value::Simple(text)) => Ok(text),
            Ok(_) => Ok(&b""[..]),
            Err(error) => Err(error),
        };
        match (text()?, count) {
            (b"message", 3) => {
                let channel = text()?;
                if !self.wakes.hear(&String::from_utf8_lossy(channel)) {
                    self.take(channel, channel, text()?);
                }
                Ok(false)
            }
            (b"pmessage", 4) => {
                let (pattern, channel) = (text()?, text()?);
                self.take(pattern, channel, text()?);
                Ok(false)
            }
            (b"subscribe" | b"psubscribe", 3) => {
                let channel = text()?;
                self.wakes.subscribed(&String::from_utf8_lossy(channel));
                // What came for the one of the two channels before the other was there belongs to nothing.
                if let Some(ear) = self.ears.borrow_mut().get_mut(&*name_of(channel)) {
                    ear.besides.clear();
                }
                Ok(true)
            }
            (b"unsubscribe" | b"punsubscribe", 3) => Ok(true),
            _ => Ok(false),
        }
    }

    /// Gives what came by a subscription of Redis to those who hear it.
    fn take(&self, by: &[u8], channel: &[u8], content: &[u8]) {
        let mut ears = self.ears.borrow_mut();
        let Some(ear) = ears.get_mut(&*name_of(by)) else { return };
        if by.starts_with(BESIDE.as_bytes()) {
            let channel = channel.strip_prefix(BESIDE.as_bytes()).unwrap_or(channel);
            if ear.besides.len() == BESIDES_MAX {
                ear.besides.pop_front();
            }
            let mark = event::marked(content);
            ear.besides.push_back(Beside { channel: channel.into(), lines: content.into(), mark });
            return;
        }
        let beside = ear.take_beside(channel, content);
        let lines = beside.as_ref().map(|beside| &*beside.lines);
        for listener in &ear.listeners {
            let namespace = &listener.namespace_name;
            if let Some(event) = event::event(namespace, channel, lines, content, wall_us()) {
                let (namespace, heard) = (listener.key.0, &*listener.key.1);
                self.subscriptions.publish_to(namespace, heard, event);
            }
        }
    }
}

/// By what an ear is known whose subscription this is.
fn name_of(by: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(by.strip_prefix(BESIDE.as_bytes()).unwrap_or(by))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_is_asked_for_a_channel_or_for_all_that_begin_so() {
        for (heard, text, is_pattern) in [
            ("a.b", "orders.a.b", false),
            ("*", "orders.*", true),
            (">", "orders.*", true),
            ("a.*", "orders.a.*", true),
            ("a.>", "orders.a.*", true),
            ("a.*.c.*.>", "orders.a.*", true),
            ("*.b", "orders.*", true),
        ] {
            let name = Name::of("orders", heard);
            assert_eq!((&*name.text, name.is_pattern), (text, is_pattern), "{heard}");
        }
    }

    #[test]
    fn what_is_beside_a_payload_finds_it_though_others_come_in_between() {
        let mut ear = Ear::default();
        let beside = |lines: &str, payload: Option<&[u8]>| Beside {
            channel: b"orders.a"[..].into(),
            lines: lines.as_bytes().into(),
            mark: payload.map(event::mark),
        };
        let take = |ear: &mut Ear, channel: &[u8], payload: &[u8]| {
            let found = ear.take_beside(channel, payload);
            found.map(|found| String::from_utf8(found.lines.into()).unwrap())
        };
        // As the nodes of a cluster may mix what two of them publish.
        ear.besides.extend([beside("1", Some(b"one")), beside("2", Some(b"two"))]);
        assert_eq!(take(&mut ear, b"orders.a", b"by hand"), None);
        assert_eq!(take(&mut ear, b"orders.b", b"two"), None);
        assert_eq!(take(&mut ear, b"orders.a", b"two").as_deref(), Some("2"));
        assert_eq!(take(&mut ear, b"orders.a", b"one").as_deref(), Some("1"));
        // Without a mark it is beside what comes next, and nothing else.
        ear.besides.push_back(beside("3", None));
        assert_eq!(take(&mut ear, b"orders.a", b"three").as_deref(), Some("3"));
        ear.besides.push_back(beside("4", None));
        assert_eq!(take(&mut ear, b"orders.b", b"four"), None);
        assert_eq!(take(&mut ear, b"orders.a", b"four"), None);
        let line = event::mark_line(b"one");
        assert_eq!(event::marked(format!("id 7\n{line}").as_bytes()), Some(event::mark(b"one")));
        assert_eq!(event::marked(b"id 7\n"), None);
    }

    #[test]
    fn what_redis_says_by_itself_is_understood_or_passed_over() {
        let config = RedisConfig::at("127.0.0.1", 1);
        let topics = Topics::new(config.clone(), config.doors());
        for (frame, is_reply) in [
            (&b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"[..], true),
            (b">3\r\n$12\r\npunsubscribe\r\n_\r\n:0\r\n", true),
            (b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n", false),
            (b">4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$1\r\na\r\n$2\r\n\xff\xfe\r\n", false),
            (b">2\r\n$10\r\ninvalidate\r\n_\r\n", false),
            (b">1\r\n:7\r\n", false),
        ] {
            assert_eq!(topics.hear(frame), Ok(is_reply), "{:?}", String::from_utf8_lossy(frame));
        }
        for frame in [&b">0\r\n"[..], b">3\r\n$7\r\nmessage\r\n"] {
            assert!(topics.hear(frame).is_err(), "{:?}", String::from_utf8_lossy(frame));
        }
    }
}
