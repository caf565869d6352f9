//! The namespaces that are served: what a call's first field resolves to.
//!
//! The table is made once, shared by all shards and never changed while they run. Ids and home shards come from the data
//! directory ([`crate::registry`]), so that a namespace keeps its data over restarts, renamings of others, and changes of the
//! number of shards.

use std::collections::HashMap;
use std::hash::Hasher;

use prism_proto::catalogue::Interfaces;
use siphasher::sip::SipHasher13;

use crate::config::{ClientApi, Config, Durability};
use crate::registry::Registry;

/// One namespace as the shards see it.
#[derive(Debug, Clone)]
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
    /// When its callers hear "done".
    pub(crate) durability: Durability,
    /// The strongest level that a call may ask for.
    pub(crate) durability_max: Durability,
    /// What it offers.
    pub(crate) offers: Interfaces,
    /// The shard that owns it.
    pub(crate) home: usize,
    /// Largest request message in bytes.
    pub(crate) message_bytes_max: usize,
    /// Most bytes of requests in flight.
    pub(crate) bytes_in_flight_max: u64,
    /// Most bytes that the store may hold for it.
    pub(crate) memory_bytes_max: u64,
    /// Most logged writes that may wait for a backend outside.
    pub(crate) backlog_records_max: u64,
    /// How long an idempotency key is remembered, in µs of log time.
    pub(crate) idempotency_window_us: u64,
    /// What adapters hold its requests to.
    pub(crate) limits: prism_adapters::Limits,
    /// Of a reader: the places of the namespaces that it reads instead of its own data.
    pub(crate) reads: Box<[usize]>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Namespaces {
    list: Vec<Namespace>,
    by_name: HashMap<Box<str>, usize, ahash::RandomState>,
}

impl Namespaces {
    /// The table of a configuration, with ids and homes from `registry` (which learns the new ones).
    pub(crate) fn new(config: &Config, registry: &mut Registry, shards: usize) -> Self {
        let list: Vec<Namespace> = config
            .namespaces
            .iter()
            .enumerate()
            .map(|(index, namespace)| {
                let backend = &config.backends[namespace.backend].name;
                let (id, home) = registry.place(&namespace.name, backend, namespace.home, shards);
                let message_bytes_max = namespace.max_message_size as usize;
                Namespace {
                    id,
                    index,
                    name: namespace.name.as_str().into(),
                    api: namespace.client_api,
                    backend: namespace.backend,
                    backend_name: config.backends[namespace.backend].name.as_str().into(),
                    durability: namespace.durability,
                    durability_max: config.backends[namespace.backend].durability_max(),
                    offers: config.backends[namespace.backend]
                        .serves()
                        .intersection(namespace.client_api.model().interfaces()),
                    home,
                    message_bytes_max,
                    bytes_in_flight_max: namespace.in_flight_bytes_max,
                    memory_bytes_max: namespace.memory_bytes_max,
                    backlog_records_max: namespace.backlog_records_max,
                    idempotency_window_us: namespace.idempotency_window.as_micros() as u64,
                    limits: prism_adapters::Limits { max_message_size: message_bytes_max },
                    reads: namespace.reads.as_slice().into(),
                }
            })
            .collect();
        let by_name = list
            .iter()
            .enumerate()
            .map(|(index, namespace)| (namespace.name.clone(), index))
            .collect();
        Self { list, by_name }
    }

    /// The namespace of that name.
    #[inline]
    pub(crate) fn get(&self, name: &str) -> Option<&Namespace> {
        self.by_name.get(name).map(|&index| &self.list[index])
    }

    /// The namespace at that place of the configuration.
    pub(crate) fn at(&self, index: usize) -> &Namespace {
        &self.list[index]
    }

    /// The namespace with that id, if it is served.
    pub(crate) fn by_id(&self, id: u32) -> Option<&Namespace> {
        self.list.iter().find(|namespace| namespace.id == id)
    }

    /// All of them, in the order of the configuration.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Namespace> {
        self.list.iter()
    }
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
}
