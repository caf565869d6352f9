//! The writing half of the witness.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::rc::Rc;
use std::time::Duration;

use prism_io::client::{Client, Failure, Reply};
use prism_io::clock::monotonic_ns;
use prism_io::grpc::Code;
use prism_io::rt::{self, Signal};
use prism_proto::catalogue::Method;
use prism_proto::prism::keyvalue::v1 as keyvalue;
use prost::Message;

use super::record::{Header, History, Journal, Way};
use super::{Options, Summary};
use crate::random::Random;

/// First pause before a connection is made again, and after a refusal; doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

struct Witness {
    options: Options,
    header: Header,
    journal: RefCell<Journal>,
    histories: RefCell<BTreeMap<String, History>>,
    summary: RefCell<Summary>,
    links: Vec<Link>,
    end_ns: u64,
    /// When the server last answered anything.
    answered_ns: Cell<u64>,
    writing: Cell<usize>,
    ended: Signal,
    failure: RefCell<Option<Error>>,
}

/// One connection, made again when it is lost.
#[derive(Default)]
struct Link {
    client: RefCell<Option<Client>>,
    connecting: Cell<bool>,
}

/// What an answer says about the write.
enum Outcome {
    Acknowledged(Reply),
    /// It may or may not have had its effect.
    Unknown,
    /// It had none, and will have none; perhaps later.
    Refused,
    /// It will never work.
    Wrong(String),
}

/// Writes for the time that `options` says, across deaths of the server. Fails when the server is gone for too long or refuses what is
/// asked as such.
pub fn write(options: Options) -> Result<Summary> {
    rt::run(run(options))?
}

async fn run(options: Options) -> Result<Summary> {
    let run = format!("{:x}-{:x}", prism_io::clock::wall_us(), std::process::id());
    let header =
        Header { run, namespace: options.namespace.clone(), value_bytes: options.value_bytes };
    let (journal, contents) = Journal::open(&options.journal, &header)?;
    if contents.header.namespace != options.namespace {
        return Err(Error::other(format!(
            "the journal is one of namespace {}",
            contents.header.namespace
        )));
    }
    let summary = Summary { acknowledged: contents.acknowledgements, ..Summary::default() };
    let now_ns = monotonic_ns();
    let witness = Rc::new(Witness {
        header: contents.header,
        journal: RefCell::new(journal),
        histories: RefCell::new(contents.histories),
        summary: RefCell::new(summary),
        links: (0..options.connections.max(1)).map(|_| Link::default()).collect(),
        end_ns: now_ns + options.duration.as_nanos() as u64,
        answered_ns: Cell::new(now_ns),
        writing: Cell::new(options.writers),
        ended: Signal::default(),
        failure: RefCell::new(None),
        options,
    });
    for violation in contents.violations {
        witness.summary.borrow_mut().violation(violation);
    }
    for number in 0..witness.options.writers {
        let witness = witness.clone();
        rt::spawn(async move {
            if let Err(error) = witness.writer(number).await {
                witness.failure.borrow_mut().get_or_insert(error);
            }
            witness.writing.set(witness.writing.get() - 1);
            witness.ended.set();
        });
    }
    while witness.writing.get() > 0 {
        witness.ended.wait().await;
    }
    if let Some(error) = witness.failure.take() {
        return Err(error);
    }
    let mut summary = witness.summary.take();
    let histories = witness.histories.borrow();
    summary.keys = histories.len() as u64;
    summary.open = histories.values().filter(|history| history.is_open()).count() as u64;
    Ok(summary)
}

impl Witness {
    fn is_over(&self) -> bool {
        monotonic_ns() >= self.end_ns || self.failure.borrow().is_some()
    }

    async fn writer(&self, number: usize) -> Result<()> {
        let keys: Vec<String> = (0..self.options.keys).map(|key| self.key(number, key)).collect();
        let mut random = Random::new(self.options.seed ^ (number as u64) << 32);
        let link = &self.links[number % self.links.len()];
        while !self.is_over() {
            let key = &keys[random.below(keys.len() as u64) as usize];
            self.step(key, link).await?;
        }
        Ok(())
    }

    /// The name of a key, whose first letter says how it is written.
    fn key(&self, writer: usize, key: usize) -> String {
        let place = (key as f64 + 0.5) / self.options.keys as f64;
        let way = match self.options.keyed {
            keyed if place < keyed / 2.0 => Way::Counter,
            keyed if place < keyed => Way::Keyed,
            _ => Way::Plain,
        };
        format!("{}-{}-{writer}-{key}", way.letter(), self.header.run)
    }

    /// The next write of `key`, or the one under way once more.
    async fn step(&self, key: &str, link: &Link) -> Result<()> {
        let way = Way::of(key);
        let history = self.histories.borrow().get(key).cloned().unwrap_or_default();
        let again = way != Way::Plain && history.is_open();
        let number = if again { history.sent } else { history.sent + 1 };
        if !again {
            self.journal.borrow_mut().sent(key, number)?;
            self.histories.borrow_mut().entry(key.to_owned()).or_default().sent = number;
        }
        let (method, message) = self.request(key, way, number, history.acknowledged);
        let mut repeated = again;
        let mut pause = PAUSE_MIN;
        loop {
            let Some(client) = self.client(link).await? else { return Ok(()) };
            if std::mem::replace(&mut repeated, true) {
                self.summary.borrow_mut().repeated += 1;
            }
            let outcome = self.call(&client, key, way, number, method, &message).await;
            match outcome {
                Outcome::Acknowledged(reply) => {
                    return self.acknowledged(key, way, number, history.acknowledged, &reply);
                }
                Outcome::Wrong(text) => return Err(Error::other(text)),
                Outcome::Refused if way == Way::Plain => {
                    self.journal.borrow_mut().refused(key, number)?;
                    self.summary.borrow_mut().refused += 1;
                    let refused = |history: &mut History| history.refused.insert(number);
                    self.histories.borrow_mut().get_mut(key).map(refused);
                    rt::sleep(pause).await;
                    return Ok(());
                }
                // What has no key must not be repeated: a later write could be overtaken.
                Outcome::Unknown if way == Way::Plain => return Ok(()),
                Outcome::Unknown | Outcome::Refused => {
                    if self.is_over() {
                        return Ok(());
                    }
                    rt::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    fn request(&self, key: &str, way: Way, number: u64, before: u64) -> (Method, Vec<u8>) {
        let (namespace, name) = (self.header.namespace.clone(), key.to_owned());
        let value = self.header.value(key, number).into();
        if way != Way::Counter {
            let return_previous = way == Way::Keyed;
            let set = keyvalue::SetRequest {
                namespace,
                key: name,
                value,
                return_previous,
                ..Default::default()
            };
            return (Method::KEYVALUE_SET, set.encode_to_vec());
        }
        use keyvalue::compare_and_swap_request::Expected;
        let expected = Some(match before {
            0 => Expected::ExpectedAbsent(()),
            before => Expected::ExpectedValue(self.header.value(key, before).into()),
        });
        let swap = keyvalue::CompareAndSwapRequest {
            namespace,
            key: name,
            value,
            expected,
            ..Default::default()
        };
        (Method::KEYVALUE_COMPARE_AND_SWAP, swap.encode_to_vec())
    }

    async fn call(
        &self,
        client: &Client,
        key: &str,
        way: Way,
        number: u64,
        method: Method,
        message: &[u8],
    ) -> Outcome {
        let name = format!("{key}-{number}");
        let mut metadata: Vec<(&str, &[u8])> = Vec::with_capacity(2);
        if way != Way::Plain {
            metadata.push(("prism-idempotency-key", name.as_bytes()));
        }
        if let Some(level) = &self.options.durability {
            metadata.push(("prism-durability", level.as_bytes()));
        }
        let answer = client.unary(method.path(), &metadata, message, self.options.timeout).await;
        match answer {
            Ok(reply) => {
                self.answered_ns.set(monotonic_ns());
                Outcome::Acknowledged(reply)
            }
            Err(failure) => judge(&failure),
        }
    }

    fn acknowledged(
        &self,
        key: &str,
        way: Way,
        number: u64,
        before: u64,
        reply: &Reply,
    ) -> Result<()> {
        self.journal.borrow_mut().acknowledged(key, number)?;
        {
            let mut histories = self.histories.borrow_mut();
            let history = histories.entry(key.to_owned()).or_default();
            history.acknowledged = number;
            history.refused.clear();
        }
        let mut summary = self.summary.borrow_mut();
        summary.acknowledged += 1;
        summary.replayed += u64::from(reply.trailers.get("prism-replayed").is_some());
        let violation = match way {
            Way::Plain => None,
            Way::Keyed => self.check_previous(key, before, reply)?,
            Way::Counter => {
                let answer = keyvalue::CompareAndSwapResponse::decode(reply.message.clone())?;
                (!answer.swapped).then(|| {
                    let found = answer.current.map(|entry| self.header.number(key, &entry.value));
                    format!(
                        "{key}: swapping {before} for {number} found {}: lost, or applied twice",
                        found.map_or("nothing".into(), in_words)
                    )
                })
            }
        };
        if let Some(text) = violation {
            self.journal.borrow_mut().violation(&text)?;
            summary.violation(text);
        }
        Ok(())
    }

    /// A keyed Set must always be told what was there before its first time.
    fn check_previous(&self, key: &str, before: u64, reply: &Reply) -> Result<Option<String>> {
        let answer = keyvalue::SetResponse::decode(reply.message.clone())?;
        let found = match answer.previous {
            None => Some(0),
            Some(entry) => self.header.number(key, &entry.value),
        };
        Ok((found != Some(before)).then(|| {
            format!("{key}: a keyed Set after {before} was told that {} was there", in_words(found))
        }))
    }

    /// The link's connection, made anew if need be. `None` when the time was up first.
    async fn client(&self, link: &Link) -> Result<Option<Client>> {
        let mut pause = PAUSE_MIN;
        loop {
            let client = link.client.borrow().clone().filter(|client| !client.is_closed());
            if client.is_some() {
                return Ok(client);
            }
            if self.is_over() {
                return Ok(None);
            }
            let silent_ns = monotonic_ns().saturating_sub(self.answered_ns.get());
            if u128::from(silent_ns) > self.options.give_up.as_nanos() {
                let seconds = self.options.give_up.as_secs();
                return Err(Error::other(format!("no answer from the server for {seconds} s")));
            }
            if !link.connecting.replace(true) {
                let connected =
                    rt::timeout(self.options.timeout, Client::connect(self.options.endpoint)).await;
                link.connecting.set(false);
                if let Some(Ok(client)) = connected {
                    if link.client.replace(Some(client)).is_some() {
                        self.summary.borrow_mut().reconnects += 1;
                    }
                    continue;
                }
            }
            rt::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

fn in_words(number: Option<u64>) -> String {
    number.map_or("a value that nobody wrote".into(), |number| number.to_string())
}

fn judge(failure: &Failure) -> Outcome {
    match failure.code {
        Code::ResourceExhausted => Outcome::Refused,
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Aborted
        | Code::Internal => Outcome::Unknown,
        code => Outcome::Wrong(format!("the server answers {}: {}", code.name(), failure.message)),
    }
}
