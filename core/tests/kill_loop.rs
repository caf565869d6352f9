//! `kill -9` under load, again and again, with every write noted outside of the process that is killed.
//!
//! Writers on several connections store ever higher numbers under keys of their own, three ways: a plain Set; a Set with an
//! idempotency key that returns what was there before; a CompareAndSwap with an idempotency key. Each write is noted before it
//! is sent and after it is acknowledged. The binary is killed at a random moment and started again; then every key must hold
//! what was acknowledged last or what was under way, and every keyed write is repeated: what was under way must be applied
//! once, what was acknowledged must be answered from memory.
//!
//! `PRISM_KILL_ROUNDS` says how often (default 20; `dev/kill-loop 1000` for many), `PRISM_SEED` repeats what is random.

mod harness;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use harness::calls::trailer;
use harness::{Caller, Refusal, directory, run, serve, together};
use prism_io::grpc::{Code, Metadata};
use prism_io::rt;
use prism_proto::prism::keyvalue::v1::SetRequest;

const ROUNDS_DEFAULT: u64 = 20;
const CONNECTIONS: usize = 6;
const WRITERS: usize = 36;
/// The longest that the server lives under load in one round.
const LIFE_MAX: Duration = Duration::from_millis(500);
/// After so many rounds it goes on with an empty data directory: outcomes are remembered for a day, and would add up.
const ROUNDS_PER_DIRECTORY: u64 = 100;
/// Keyed writes of a key that are repeated after each restart.
const REPEATED: u64 = 3;

/// Namespaces on either of two shards.
const NAMES: [&str; 4] = ["w-a", "w-b", "w-c", "w-d"];

/// Small segments and many snapshots, so that the kills hit trimming and snapshotting as well.
const CONFIG: &str = "
wal: {segment_bytes: 20MiB, bytes_max: 400MiB}
memory: {snapshot_bytes: 1MiB, snapshot_interval: 1s}
";

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// How a key is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Plain,
    Keyed,
    Swapped,
}

impl Way {
    /// The way of a key, which its number tells.
    fn of(key: &str) -> Self {
        let number = key.strip_prefix("key-").and_then(|number| number.parse::<usize>().ok());
        [Way::Plain, Way::Keyed, Way::Swapped][number.expect("a key of the journal") % 3]
    }
}

/// What is known of a key outside of the server. Number 0 stands for no value.
#[derive(Clone, Debug)]
struct History {
    namespace: &'static str,
    way: Way,
    acknowledged: u64,
    sent: u64,
    /// The number that was there before each keyed write, by its number: the answer that its retries must get.
    before: BTreeMap<u64, u64>,
}

/// The journal: every key by its name. One writer has each key, with one write under way.
type Journal = BTreeMap<String, History>;

fn fresh_journal() -> Journal {
    let keys = (0..WRITERS).map(|writer| {
        let key = format!("key-{writer}");
        let way = Way::of(&key);
        let namespace = NAMES[writer / 3 % NAMES.len()];
        let history = History { namespace, way, acknowledged: 0, sent: 0, before: BTreeMap::new() };
        (key, history)
    });
    keys.collect()
}

/// The value of a number: it names the key and has a length that varies, up to several pages.
fn value(key: &str, number: u64) -> Vec<u8> {
    let mut value = format!("{number} {key} ").into_bytes();
    // The answers of keyed writes hold values and are remembered for a day: theirs are small.
    let length = if Way::of(key) == Way::Plain { number * 37 % 9000 } else { number % 200 };
    value.resize(value.len() + length as usize, b'v');
    value
}

/// The number of a value that was read.
fn number(key: &str, found: Option<&[u8]>) -> u64 {
    let Some(found) = found else { return 0 };
    let digits = found.split(|byte| *byte == b' ').next().unwrap_or_default();
    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    let number = number.unwrap_or_else(|| panic!("{key} holds a value that nobody wrote"));
    assert!(found == value(key, number), "{key} holds a value that nobody wrote");
    number
}

/// Sends write `number` of `key`, whether for the first time or again. What there was before, where the answer tells.
async fn write(
    caller: &Caller,
    key: &str,
    way: Way,
    number: u64,
    before: u64,
) -> Result<(Option<u64>, Metadata), Refusal> {
    let idempotency_key = format!("{key}-{number}");
    let keyed = [("prism-idempotency-key", idempotency_key.as_bytes())];
    let set = caller.set_request(key, &value(key, number));
    match way {
        Way::Plain => Ok((None, caller.try_set(&[], &set).await?.1)),
        Way::Keyed => {
            let set = SetRequest { return_previous: true, ..set };
            let (answer, trailers) = caller.try_set(&keyed, &set).await?;
            let previous = answer.previous.map(|entry| entry.value);
            Ok((Some(self::number(key, previous.as_deref())), trailers))
        }
        Way::Swapped => {
            let expected = (before > 0).then(|| value(key, before));
            let swap = caller.swap_request(key, expected.as_deref(), &value(key, number));
            let (answer, trailers) = caller.try_swap(&keyed, &swap).await?;
            let found = match answer.swapped {
                true => before,
                false => self::number(key, answer.current.map(|entry| entry.value).as_deref()),
            };
            assert!(
                answer.swapped,
                "{key}: swapping {before} for {number} found {found}: lost or applied twice"
            );
            Ok((Some(found), trailers))
        }
    }
}

/// Writes on all connections until the server is gone. `begun` hears of every acknowledged write.
async fn load(
    listen: SocketAddr,
    journal: Rc<RefCell<Journal>>,
    begun: std::sync::mpsc::Sender<()>,
) {
    let callers = together((0..CONNECTIONS).map(|_| Caller::to(listen, ""))).await;
    let keys: Vec<(String, History)> = journal.borrow().clone().into_iter().collect();
    let writers = keys.into_iter().enumerate().map(|(index, (key, history))| {
        let caller = callers[index % CONNECTIONS].of(history.namespace);
        let (journal, begun) = (journal.clone(), begun.clone());
        async move {
            loop {
                let (number, before) = {
                    let mut journal = journal.borrow_mut();
                    let history = journal.get_mut(&key).expect("a key of the journal");
                    let before = history.acknowledged;
                    history.sent += 1;
                    history.before.insert(history.sent, before);
                    (history.sent, before)
                };
                let outcome = loop {
                    match write(&caller, &key, history.way, number, before).await {
                        // Many starts in a row use up the log until two snapshots are taken. It recovers by itself.
                        Err(refusal) if refusal.is_for_want_of_log() => {
                            rt::sleep(refusal.retry.expect("when to try again")).await;
                        }
                        outcome => break outcome,
                    }
                };
                match outcome {
                    Ok((found, trailers)) => {
                        assert!(found.is_none_or(|found| found == before), "{key}: {found:?}");
                        assert_eq!(trailer(&trailers, "prism-durability"), Some("wal"));
                        assert_eq!(trailer(&trailers, "prism-replayed"), None);
                        journal.borrow_mut().get_mut(&key).expect("it stays").acknowledged = number;
                        let _ = begun.send(());
                    }
                    Err(refusal) => {
                        assert_eq!(refusal.code, Code::Unavailable, "{refusal:?}");
                        return;
                    }
                }
            }
        }
    });
    together(writers).await;
}

/// Holds the journal against the server, and settles what was under way when it was killed.
async fn compare(listen: SocketAddr, journal: Rc<RefCell<Journal>>) {
    let callers = together((0..CONNECTIONS).map(|_| Caller::to(listen, ""))).await;
    let keys: Vec<(String, History)> = journal.borrow().clone().into_iter().collect();
    let checks = keys.into_iter().enumerate().map(|(index, (key, history))| {
        let caller = callers[(index + 1) % CONNECTIONS].of(history.namespace);
        let journal = journal.clone();
        async move {
            let History { way, acknowledged, sent, .. } = history;
            let found = number(&key, caller.get(&key).await.as_deref());
            assert!(
                (acknowledged..=sent).contains(&found),
                "{key} holds {found}, acknowledged {acknowledged}, sent {sent}"
            );
            let settled = if way == Way::Plain { found } else { sent };
            if way != Way::Plain {
                // From the one under way, which may or may not have been applied, back to those that certainly were.
                for number in (1..=sent).rev().take(REPEATED as usize) {
                    let before = history.before[&number];
                    let again = write(&caller, &key, way, number, before).await;
                    let (answered, trailers) =
                        again.unwrap_or_else(|refusal| panic!("{key}: {refusal:?}"));
                    assert_eq!(
                        answered,
                        Some(before),
                        "{key}: a retry of {number} got another answer"
                    );
                    let replayed = trailer(&trailers, "prism-replayed").is_some();
                    assert!(
                        replayed == (number <= found),
                        "{key}: {number} was applied twice or forgotten (found {found})"
                    );
                    let now = self::number(&key, caller.get(&key).await.as_deref());
                    assert_eq!(now, sent, "{key}: a retry of {number} had an effect");
                }
            }
            let mut journal = journal.borrow_mut();
            let history = journal.get_mut(&key).expect("it stays");
            (history.acknowledged, history.sent) = (settled, settled);
            let kept = settled.saturating_sub(REPEATED);
            history.before.retain(|number, _| *number > kept && *number <= settled);
        }
    });
    together(checks).await;
}

fn environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_applied_twice() {
    let rounds = environment("PRISM_KILL_ROUNDS").unwrap_or(ROUNDS_DEFAULT);
    let seed = environment("PRISM_SEED")
        .unwrap_or_else(|| std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    eprintln!("{rounds} rounds, PRISM_SEED={seed}");
    let mut random = Random(seed);
    let (begin, mut acknowledged) = (Instant::now(), 0);
    for first in (0..rounds).step_by(ROUNDS_PER_DIRECTORY as usize) {
        let rounds = first..rounds.min(first + ROUNDS_PER_DIRECTORY);
        acknowledged += kill_and_compare(rounds, &mut random, seed);
    }
    eprintln!("{acknowledged} acknowledged writes over {rounds} kills in {:?}", begin.elapsed());
}

/// These rounds, on a data directory of their own; how many writes were acknowledged.
fn kill_and_compare(rounds: Range<u64>, random: &mut Random, seed: u64) -> usize {
    let directory = directory();
    let namespaces = NAMES.map(|name| (name, "wal"));
    let setup = || serve(directory.path()).shards(2).config(CONFIG).namespaces(&namespaces);
    let (mut journal, mut acknowledged) = (fresh_journal(), 0);
    for round in rounds {
        let life = Duration::from_micros(random.below(LIFE_MAX.as_micros() as u64));
        let server = setup().start();
        let listen = server.listen;
        let (tell, begun) = channel();
        let work = std::thread::spawn(move || {
            run(async move {
                let journal = Rc::new(RefCell::new(journal));
                compare(listen, journal.clone()).await;
                load(listen, journal.clone(), tell).await;
                Rc::try_unwrap(journal).expect("all writers have ended").into_inner()
            })
        });
        // Its life under load begins with the first write that is acknowledged.
        let mut dies = Instant::now() + harness::PATIENCE;
        let mut count = 0;
        loop {
            match begun.recv_timeout(dies.saturating_duration_since(Instant::now())) {
                Ok(()) if count == 0 => (count, dies) = (1, Instant::now() + life),
                Ok(()) => count += 1,
                Err(RecvTimeoutError::Timeout) => break,
                // It failed: what about stands on stderr.
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        server.assert_well();
        server.kill();
        journal = work.join().unwrap_or_else(|_| panic!("round {round}, PRISM_SEED={seed}"));
        count += begun.try_iter().count();
        assert!(count > 0, "round {round}: the server answered nothing");
        acknowledged += count;
    }
    let server = setup().start();
    let listen = server.listen;
    run(compare(listen, Rc::new(RefCell::new(journal))));
    server.stop();
    acknowledged
}
