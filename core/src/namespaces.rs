//! The namespaces that are served: what a call's first field resolves to.
//!
//! The table is shared by all shards and only grows while they run ([`added`]). Ids and home shards come from the data
//! directory ([`crate::registry`]), so that a namespace keeps its data over restarts, renamings of others, and changes of the
//! number of shards.

mod added;
mod terms;

use prism_adapters::kafka::TopicShape;
use std::collections::HashMap;
use std::hash::Hasher;

use prism_proto::catalogue::Interfaces;
use siphasher::sip::SipHasher13;

use added::Added;
pub(crate) use terms::Terms;

use crate::config::{self, ClientApi, Config, Durability, Topics};
use crate::registry::Registry;

/// Namespaces that may come between two starts, where they are planned from files.
const ADDED_MAX: usize = 1024;

/// One namespace as the shards see it.
#[derive(Debug)]
pub(crate) struct Namespace {
    /// Its number, for ever; stands in the log.
    pub(crate) id: u32,
    /// Its place in the configuration, by which metrics count.
    pub(crate) index: usize,
    /// Its name.
    pub(crate) name: Box<str>,
    /// The client API that it serves.
    pub(crate) api: ClientApi,
    /// Its backend's place in the configuration; 0 is the embedded store.
    pub(crate) backend: usize,
    /// What that is called.
    pub(crate) backend_name: Box<str>,
    /// What may change while it is served.
    pub(crate) terms: Terms,
    /// The strongest level that a call may ask for.
    pub(crate) durability_max: Durability,
    /// How its topics are kept.
    pub(crate) topics: Topics,
    /// What it offers.
    pub(crate) offers: Interfaces,
    /// The shard that owns it.
    pub(crate) home: usize,
    /// Most bytes that the store may hold for it.
    pub(crate) memory_bytes_max: u64,
    /// How long an idempotency key is remembered, in µs of log time.
    pub(crate) idempotency_window_us: u64,
    /// Whether its backend stores messages with the data of a transaction.
    pub(crate) has_outbox: bool,
    /// How its topics are made on a Kafka.
    pub(crate) topic_shape: TopicShape,
    /// Of a reader: the places of the namespaces that it reads instead of its own data.
    pub(crate) reads: Box<[usize]>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Namespaces {
    list: Vec<Namespace>,
    by_name: HashMap<Box<str>, usize, ahash::RandomState>,
    added: Added,
}

impl Namespace {
    /// When its callers hear "done".
    #[inline]
    pub(crate) fn durability(&self) -> Durability {
        self.terms.durability()
    }

    /// What adapters hold its requests to.
    #[inline]
    pub(crate) fn limits(&self) -> prism_adapters::Limits {
        prism_adapters::Limits { max_message_size: self.terms.message_bytes_max() }
    }
}

impl Namespaces {
    /// The table of a configuration, with ids and homes from `registry` (which learns the new ones).
    pub(crate) fn new(config: &Config, registry: &mut Registry, shards: usize) -> Self {
        let list: Vec<Namespace> = config
            .namespaces
            .iter()
            .enumerate()
            .map(|(index, namespace)| Namespace {
                index,
                ..Self::entry(config, namespace, registry, shards)
            })
            .collect();
        let by_name = list
            .iter()
            .enumerate()
            .map(|(index, namespace)| (namespace.name.clone(), index))
            .collect();
        Self { list, by_name, added: Added::with_room(places_for_added(config)) }
    }

    /// The entry of a configured namespace, placed in the registry; its index is still to be set.
    pub(crate) fn entry(
        config: &Config,
        namespace: &config::Namespace,
        registry: &mut Registry,
        shards: usize,
    ) -> Namespace {
        let backend = &config.backends[namespace.backend].name;
        let (id, home) = registry.place(&namespace.name, backend, namespace.home, shards);
        Namespace {
            id,
            index: 0,
            name: namespace.name.as_str().into(),
            api: namespace.client_api,
            backend: namespace.backend,
            backend_name: config.backends[namespace.backend].name.as_str().into(),
            terms: Terms::of(namespace, Self::is_audited(config, namespace)),
            durability_max: config.backends[namespace.backend].durability_max(),
            topics: namespace.topics,
            offers: config.backends[namespace.backend]
                .offers(namespace.client_api, namespace.topics),
            home,
            memory_bytes_max: namespace.memory_bytes_max,
            idempotency_window_us: namespace.idempotency_window.as_micros() as u64,
            has_outbox: config.backends[namespace.backend].has_outbox(namespace.client_api),
            topic_shape: namespace.topic_shape,
            reads: namespace.reads.as_slice().into(),
        }
    }

    /// Whether calls of a namespace are written down: for its own sake, or for that of one that it reads.
    fn is_audited(config: &Config, namespace: &config::Namespace) -> bool {
        let mut read = namespace.reads.iter().map(|at| &config.namespaces[*at]);
        namespace.audit_logging || read.any(|source| source.audit_logging)
    }

    /// How many may still be added.
    pub(crate) fn room(&self) -> usize {
        self.added.places() - self.added.len()
    }

    /// How many were added.
    pub(crate) fn added(&self) -> usize {
        self.added.len()
    }

    /// How many there can be, those that may be added among them.
    pub(crate) fn places(&self) -> usize {
        self.list.len() + self.added.places()
    }

    /// Serves one more from now on, which must be new; there must be [`Self::room`]. For the control thread alone.
    pub(crate) fn add(&self, mut namespace: Namespace) {
        namespace.index = self.list.len() + self.added.len();
        let has_room = self.added.add(namespace);
        debug_assert!(has_room, "the caller looks for room first");
    }

    /// The namespace of that name.
    #[inline]
    pub(crate) fn get(&self, name: &str) -> Option<&Namespace> {
        match self.by_name.get(name) {
            Some(&index) if self.list[index].terms.is_served() => Some(&self.list[index]),
            _ => self.added.get(name),
        }
    }

    /// The namespace at that place of the configuration, those that were added after it.
    pub(crate) fn at(&self, index: usize) -> &Namespace {
        match self.list.get(index).or_else(|| self.added.at(index - self.list.len())) {
            Some(namespace) => namespace,
            None => unreachable!("a place comes from the namespace that has it"),
        }
    }

    /// The namespace with that id, if there is one since the start.
    pub(crate) fn by_id(&self, id: u32) -> Option<&Namespace> {
        self.iter().find(|namespace| namespace.id == id)
    }

    /// All of them, in the order of the configuration.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Namespace> {
        self.list.iter().chain(self.added.iter())
    }
}

/// How many namespaces may be added to those of a configuration.
pub(crate) fn places_for_added(config: &Config) -> usize {
    if config.planned.is_some() { ADDED_MAX } else { 0 }
}

/// The home of a new namespace among `shards`: the one whose hash with the name is highest, so that a change of the number
/// of shards moves as few as possible (rendezvous hashing).
pub(crate) fn rendezvous(name: &str, shards: usize) -> usize {
    let score = |shard: &usize| {
        let mut hasher = SipHasher13::new_with_keys(0, *shard as u64);
        hasher.write(name.as_bytes());
        hasher.finish()
    };
    (0..shards).max_by_key(score).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_shard_takes_only_its_share() {
        let names: Vec<String> = (0..1000).map(|number| format!("namespace-{number}")).collect();
        let mut moved = 0;
        for name in &names {
            let (four, five) = (rendezvous(name, 4), rendezvous(name, 5));
            assert!(four < 4 && five < 5);
            if four != five {
                assert_eq!(five, 4, "{name} moved between old shards");
                moved += 1;
            }
        }
        assert!((100..300).contains(&moved), "about a fifth moves: {moved}");
    }

    #[test]
    fn what_is_added_is_found_beside_what_was_there() {
        let mut config = config::load(None, &config::Flags::default()).expect("the defaults");
        let mut registry =
            Registry::load(std::path::Path::new("/nowhere"), [0; 16]).expect("a fresh one");
        config.planned = Some(config::PlannedFrom { requests: None, platform: None });
        let namespaces = Namespaces::new(&config, &mut registry, 2);
        let first = namespaces.iter().count();
        for number in 0..ADDED_MAX {
            let asked = config::Namespace {
                name: format!("added-{number}"),
                ..config.namespaces[0].clone()
            };
            namespaces.add(Namespaces::entry(&config, &asked, &mut registry, 2));
        }
        assert_eq!((namespaces.room(), namespaces.added()), (0, ADDED_MAX));
        for number in 0..ADDED_MAX {
            let found = namespaces.get(&format!("added-{number}")).expect("it was added");
            assert_eq!(found.index, first + number);
            assert_eq!(namespaces.at(found.index).id, found.id);
            assert_eq!(namespaces.by_id(found.id).map(|same| same.index), Some(found.index));
        }
        assert!(namespaces.get("added-x").is_none());
        assert_eq!(namespaces.iter().count(), first + ADDED_MAX);
    }
}
