//! The nodes of a Redis Cluster as one shard sees them: a connection to each that has slots, and which of them a call goes to.
//!
//! Which node has which slots is asked when the shard starts, and again when a node says MOVED or a connection is lost, at most
//! [`ASKED_AGAIN_MIN`] after the last time. A call goes to the node of its slot on that node's connection, as on a Redis by itself. Where
//! it is sent on (MOVED, ASK) it follows, a bounded number of times; all commands of such a call are sent again, so that a call of
//! several commands is one that may be. Where some of a call's keys are here and some there (TRYAGAIN) it waits a little.
//!
//! - `slots`: slots of keys, what nodes say of themselves; without I/O
//! - `lane`: logged writes
//! - `many`: calls over several keys, and over all nodes
//! - `served`: what a cluster offers

mod lane;
mod many;
mod served;
mod slots;

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prism_io::clock::monotonic_ns;
use prism_io::rt::{self, Signal};

pub(super) use self::lane::{LaneCells, lane_slot};
pub use self::served::RedisCluster;
use self::slots::{Address, Nodes, Redirection, SLOTS};
pub(super) use self::slots::{slot_of, slot_of_whole};
use super::codec::{self, Framer, Replies, Value};
use super::config::{Doors, RedisConfig};
use super::connection::{ConnectionFacts, Link};
use super::errors::{self, Outage};
use super::tail;
use crate::call::Context;
use crate::error::{Error, Kind};
use crate::news::News;

/// The nodes are not asked again sooner than this.
const ASKED_AGAIN_MIN: Duration = Duration::from_millis(100);
/// They are asked so often even if nothing seems to have changed.
const ASKED_AGAIN_MAX: Duration = Duration::from_secs(30);
/// Times that one call is sent somewhere else.
const REDIRECTIONS_MAX: usize = 8;
/// How long a call waits at first whose keys are on their way, and in all.
const TRY_AGAIN_MIN: Duration = Duration::from_millis(2);
const TRY_AGAIN_MAX: Duration = Duration::from_secs(1);
/// No node.
const NOBODY: u16 = u16::MAX;

struct Node {
    address: Address,
    link: Rc<Link>,
}

/// Who has which slots.
#[derive(Default)]
struct Map {
    /// How often it was learnt; 0: not yet.
    version: u64,
    nodes: Vec<Node>,
    /// By slot, the node in `nodes`.
    slots: Vec<u16>,
    /// Nodes without slots, until their last calls have ended.
    retired: Vec<Rc<Link>>,
}

/// See the module.
pub(super) struct Cluster {
    config: RedisConfig,
    /// Where nodes were last known to be, those of the configuration at the end.
    doors: Doors,
    map: RefCell<Map>,
    /// Tells when the nodes were asked.
    asked: Rc<News>,
    /// Why they could not be asked the last time.
    outage: RefCell<Option<Outage>>,
    stale: Signal,
    /// Who knows best.
    hint: RefCell<Option<Rc<Link>>>,
    /// Who was asked last what any node can do: what is published there one after the other stays in that order.
    anyone: RefCell<Option<Rc<Link>>>,
    is_stopped: Cell<bool>,
    moved: Cell<u64>,
    sent_on: Cell<u64>,
}

impl Cluster {
    /// Begins to ask who has which slots. Needs a runtime around it.
    pub(super) fn start(config: RedisConfig) -> Rc<Self> {
        let cluster = Rc::new(Cluster {
            doors: config.doors(),
            config,
            map: RefCell::default(),
            asked: Rc::default(),
            outage: RefCell::default(),
            stale: Signal::default(),
            hint: RefCell::default(),
            anyone: RefCell::default(),
            is_stopped: Cell::new(false),
            moved: Cell::new(0),
            sent_on: Cell::new(0),
        });
        rt::spawn(Self::keep(Rc::downgrade(&cluster)));
        cluster
    }

    /// Where nodes are, the same for everybody who needs any of them.
    pub(super) fn doors(&self) -> Doors {
        self.doors.clone()
    }

    /// Ends it for good.
    pub(super) fn stop(&self) {
        self.is_stopped.set(true);
        self.anyone.take();
        let map = self.map.take();
        map.nodes.iter().for_each(|node| node.link.stop());
        map.retired.iter().for_each(|link| link.stop());
        self.outage.replace(Some(Outage::closed()));
        self.asked.tell();
        self.stale.set();
    }

    /// What the connections have done together so far; it is connected when all of them are.
    pub(super) fn facts(&self) -> ConnectionFacts {
        let (moved, asked) = (self.moved.get(), self.sent_on.get());
        let map = self.map.borrow();
        let is_connected = !map.nodes.is_empty();
        let mut all = ConnectionFacts { moved, asked, is_connected, ..Default::default() };
        for link in map.nodes.iter().map(|node| &node.link).chain(&map.retired) {
            let one = link.facts();
            all.calls += one.calls;
            all.writes += one.writes;
            all.reads += one.reads;
            all.connects += one.connects;
            all.outages += one.outages;
            all.refused += one.refused;
            all.calls_under_way += one.calls_under_way;
        }
        for node in &map.nodes {
            all.is_connected &= node.link.facts().is_connected;
        }
        all
    }

    /// Makes a call at the node of its slot, at any where it has none, and wherever that sends it.
    pub(super) async fn call(
        &self,
        context: &Context<'_>,
        slot: Option<u16>,
        replies: usize,
        write: impl Fn(&mut Vec<u8>),
    ) -> Result<Bytes, Error> {
        let mut link = self.link_of(context, slot).await?;
        let (mut is_asking, mut redirections) = (false, 0);
        let (begun_ns, mut pause) = (monotonic_ns(), TRY_AGAIN_MIN);
        loop {
            let answered = match is_asking {
                false => link.call(context, replies, &write).await,
                true => ask(&link, context, replies, &write).await,
            };
            let answer = answered.inspect_err(|error| {
                if error.kind() == Kind::Unavailable {
                    self.stale.set();
                }
            })?;
            let redirection = redirection(&answer, replies, &link.address());
            is_asking = false;
            match redirection {
                None => return Ok(answer),
                Some(Redirection::Moved(slot, address)) => {
                    self.moved.set(self.moved.get() + 1);
                    link = self.moved(slot, &address);
                }
                Some(Redirection::Ask(address)) => {
                    self.sent_on.set(self.sent_on.get() + 1);
                    link = self.link_at(&address);
                    is_asking = true;
                }
                Some(Redirection::TryAgain) => {
                    let waited = Duration::from_nanos(monotonic_ns() - begun_ns);
                    if waited >= TRY_AGAIN_MAX || monotonic_ns() >= context.deadline_ns {
                        return Ok(answer);
                    }
                    rt::sleep(pause).await;
                    pause = (2 * pause).min(TRY_AGAIN_MAX / 10);
                    link = self.link_of(context, slot).await?;
                    continue;
                }
            }
            redirections += 1;
            if redirections > REDIRECTIONS_MAX {
                return Err(errors::sent_around(context, redirections));
            }
        }
    }

    /// The connections to all nodes that have slots, in an order that only a change of the nodes changes.
    pub(super) async fn masters(&self, context: &Context<'_>) -> Result<Vec<Rc<Link>>, Error> {
        self.learnt(context).await?;
        Ok(self.map.borrow().nodes.iter().map(|node| node.link.clone()).collect())
    }

    async fn link_of(&self, context: &Context<'_>, slot: Option<u16>) -> Result<Rc<Link>, Error> {
        if let Some(link) = self.known(slot) {
            return Ok(link);
        }
        self.learnt(context).await?;
        self.known(slot).ok_or_else(|| {
            self.stale.set();
            errors::slot_unserved(context, slot)
        })
    }

    fn known(&self, slot: Option<u16>) -> Option<Rc<Link>> {
        let map = self.map.borrow();
        let Some(slot) = slot else { return self.any_of(&map.nodes) };
        let node = map.nodes.get(usize::from(*map.slots.get(usize::from(slot))?));
        node.map(|node| node.link.clone())
    }

    /// The node that was taken the last time as long as its connection stands, else another whose does, if there is one.
    fn any_of(&self, nodes: &[Node]) -> Option<Rc<Link>> {
        let stands = |node: &&Node| node.link.session() > 0;
        let mut anyone = self.anyone.borrow_mut();
        let is_last = |node: &&Node| {
            anyone.as_ref().is_some_and(|last| Rc::ptr_eq(last, &node.link)) && stands(node)
        };
        let node = nodes.iter().find(is_last).or_else(|| nodes.iter().find(stands));
        let link = node.or(nodes.first())?.link.clone();
        *anyone = Some(link.clone());
        Some(link)
    }

    /// Waits until the nodes have been asked once, or could not be.
    async fn learnt(&self, context: &Context<'_>) -> Result<(), Error> {
        let asked = self.asked.listen();
        if self.map.borrow().version == 0 && self.outage.borrow().is_none() {
            asked.await;
        }
        if self.map.borrow().version > 0 {
            return Ok(());
        }
        let outage = self.outage.borrow().clone().unwrap_or_else(Outage::lost);
        Err(outage.error(context, self.config.backoff.delay_min))
    }

    /// A node says that this slot is there now.
    fn moved(&self, slot: u16, address: &Address) -> Rc<Link> {
        let link = self.link_at(address);
        let mut map = self.map.borrow_mut();
        let node = map.nodes.iter().position(|node| Rc::ptr_eq(&node.link, &link));
        if let (Some(node), true) = (node, map.slots.len() == SLOTS) {
            map.slots[usize::from(slot)] = node as u16;
        }
        self.hint.replace(Some(link.clone()));
        self.stale.set();
        link
    }

    /// The connection to a node, which is begun where there is none.
    fn link_at(&self, address: &Address) -> Rc<Link> {
        let mut map = self.map.borrow_mut();
        if let Some(node) = map.nodes.iter().find(|node| node.address == *address) {
            return node.link.clone();
        }
        let link = self.connect(address);
        map.nodes.push(Node { address: address.clone(), link: link.clone() });
        link
    }

    fn connect(&self, address: &Address) -> Rc<Link> {
        let (host, port) = address.clone();
        let link =
            Link::start(RedisConfig { host, port, others: Vec::new(), ..self.config.clone() });
        if self.is_stopped.get() {
            link.stop();
        }
        link
    }

    /// Asks the nodes again whenever that is called for, as long as the cluster is held.
    async fn keep(cluster: Weak<Self>) {
        // Before any node is known, and while none answers, one is looked for among all that ever were.
        let mut seed: Option<Rc<Link>> = None;
        loop {
            let Some(this) = cluster.upgrade() else { break };
            if this.is_stopped.get() {
                break;
            }
            let is_learnt = this.ask_nodes(&mut seed).await;
            if is_learnt && let Some(seed) = seed.take() {
                seed.stop();
            }
            this.asked.tell();
            let since = monotonic_ns();
            drop(this);
            rt::sleep(ASKED_AGAIN_MIN).await;
            // In steps, so that a cluster that is dropped is let go of.
            while let (true, Some(this)) = (is_learnt, cluster.upgrade()) {
                let waited = Duration::from_nanos(monotonic_ns() - since);
                if waited >= ASKED_AGAIN_MAX {
                    break;
                }
                if rt::timeout(Duration::from_millis(250), this.stale.wait()).await.is_some() {
                    break;
                }
            }
        }
        if let Some(seed) = seed {
            seed.stop();
        }
    }

    /// Asks one node after the other until one answers; whether one did.
    async fn ask_nodes(&self, seed: &mut Option<Rc<Link>>) -> bool {
        let mut candidates: Vec<_> = self.hint.take().into_iter().collect();
        candidates.extend(self.map.borrow().nodes.iter().map(|node| node.link.clone()));
        candidates.retain(|link| link.session() > 0);
        for link in &candidates {
            if self.learn_from(link).await {
                return true;
            }
        }
        let doors = self.doors.clone();
        let new = || Link::start_for(self.config.clone(), Weak::new(), doors);
        let link = seed.get_or_insert_with(new).clone();
        self.learn_from(&link).await
    }

    async fn learn_from(&self, link: &Rc<Link>) -> bool {
        // Another one may answer sooner than this one is given up.
        let looked = rt::timeout(self.config.connect_timeout, look(link)).await;
        match looked.unwrap_or_else(|| Err(Some(link.last_outage()))) {
            Ok(nodes) if !nodes.masters.is_empty() => {
                if !self.is_stopped.get() {
                    self.learn(&nodes);
                }
                true
            }
            Ok(_) => {
                self.outage.replace(Some(Outage::no_slots()));
                false
            }
            Err(outage) => {
                self.outage.replace(outage);
                false
            }
        }
    }

    /// Takes over what a node knows.
    fn learn(&self, nodes: &Nodes) {
        let mut map = self.map.borrow_mut();
        let mut old = std::mem::take(&mut map.nodes);
        map.slots = vec![NOBODY; SLOTS];
        for (number, master) in nodes.masters.iter().enumerate() {
            let at = old.iter().position(|node| node.address == master.address);
            let link = match at {
                Some(at) => old.swap_remove(at).link,
                None => self.connect(&master.address),
            };
            map.nodes.push(Node { address: master.address.clone(), link });
            for range in &master.ranges {
                let range = usize::from(*range.start())..=usize::from(*range.end());
                map.slots[range].fill(number as u16);
            }
        }
        map.retired.extend(old.into_iter().map(|node| node.link));
        map.retired.retain(|link| {
            let is_done = link.facts().calls_under_way == 0;
            if is_done {
                link.stop();
            }
            !is_done
        });
        map.version += 1;
        let mut doors: Vec<_> = nodes.masters.iter().map(|one| one.address.clone()).collect();
        let of_config = self.config.doors().take();
        doors
            .extend(of_config.into_iter().filter(|door| !doors.contains(door)).collect::<Vec<_>>());
        self.doors.replace(doors);
        self.outage.replace(None);
    }
}

/// What a node says of the nodes; or why it does not, where that is known.
async fn look(link: &Link) -> Result<Nodes, Option<Outage>> {
    let read = tail::call(link, |out| {
        codec::put_command(out, 2);
        codec::put(out, b"CLUSTER");
        codec::put(out, b"NODES");
    });
    let Some(read) = read.await else { return Err(Some(link.last_outage())) };
    match Replies::new(&read).next() {
        Ok(Value::Blob(text) | Value::Simple(text)) => {
            Ok(Nodes::read(&String::from_utf8_lossy(text), &link.address()))
        }
        Ok(Value::Error(text)) => Err(Some(Outage::of_greeting(text))),
        _ => Err(None),
    }
}

/// Makes a call at a node whose slot is on its way there: each command is announced by ASKING.
async fn ask(
    link: &Link,
    context: &Context<'_>,
    replies: usize,
    write: impl Fn(&mut Vec<u8>),
) -> Result<Bytes, Error> {
    let nonsense = |_| errors::unexpected(context);
    let mut commands = Vec::new();
    write(&mut commands);
    let (mut announced, mut framer, mut at) = (Vec::new(), Framer::default(), 0);
    while let Some(frame) = framer.find(&commands[at..]).map_err(nonsense)? {
        codec::put_command(&mut announced, 1);
        codec::put(&mut announced, b"ASKING");
        announced.extend_from_slice(&commands[at..at + frame.length]);
        at += frame.length;
    }
    let read = link.call(context, 2 * replies, |out| out.extend_from_slice(&announced)).await?;
    let (mut answers, mut framer, mut at) = (BytesMut::new(), Framer::default(), 0);
    for number in 0..2 * replies {
        let frame = framer.find(&read[at..]).map_err(nonsense)?;
        let frame = frame.ok_or_else(|| errors::unexpected(context))?;
        if number % 2 == 1 {
            answers.extend_from_slice(&read[at..at + frame.length]);
        }
        at += frame.length;
    }
    Ok(answers.freeze())
}

/// Where one of the replies of a call sends it.
fn redirection(answer: &[u8], replies: usize, asked: &Address) -> Option<Redirection> {
    let mut left = Replies::new(answer);
    if replies == 1 && answer.first() != Some(&b'-') {
        return None;
    }
    for _ in 0..replies {
        match left.next().ok()? {
            Value::Error(text) => {
                if let Some(found) = Redirection::read(text, asked) {
                    return Some(found);
                }
            }
            Value::Array(count) => left.skip(count).ok()?,
            Value::Map(pairs) => left.skip(2 * pairs).ok()?,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_reply_of_a_call_may_send_it_on() {
        let asked = ("a".to_owned(), 1);
        let read = |answer: &[u8], replies| redirection(answer, replies, &asked);
        assert_eq!(read(b"$2\r\nab\r\n:1\r\n", 2), None);
        assert_eq!(read(b"*2\r\n:1\r\n-TRYAGAIN x\r\n:1\r\n", 2), None, "what is in it is its own");
        assert_eq!(read(b"-WRONGTYPE x\r\n", 1), None);
        let moved = Redirection::Moved(7, ("b".to_owned(), 2));
        assert_eq!(read(b"$2\r\nab\r\n-MOVED 7 b:2\r\n", 2), Some(moved));
        assert_eq!(read(b"-ASK 7 b:2\r\n:1\r\n", 2), Some(Redirection::Ask(("b".to_owned(), 2))));
    }
}
