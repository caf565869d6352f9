//! Which messages the outboxes of a shard hold, by chain; the messages themselves lie in the store.

use std::collections::BTreeMap;

use super::{Chain, OutboxFacts, Place, Target};

/// By ordering key: the messages of a chain, and when they were committed.
type Chains = BTreeMap<Box<str>, BTreeMap<Place, u64>>;

/// What one namespace still has to relay.
#[derive(Debug, Default)]
struct Outbox {
    targets: BTreeMap<Target, Chains>,
    /// All of them, in the order of commits.
    places: BTreeMap<Place, (u64, Chain)>,
}

/// The outboxes of a shard, by namespace; those that are empty are not there.
#[derive(Debug, Default)]
pub struct Outboxes(BTreeMap<u32, Outbox>);

impl Outboxes {
    /// Takes note of a message and when it was committed, µs since the epoch. A second time changes nothing.
    pub(crate) fn insert(&mut self, namespace: u32, place: Place, known: (u64, Chain)) {
        let (accepted_us, chain) = known;
        let outbox = self.0.entry(namespace).or_default();
        let chains = outbox.targets.entry(chain.target.clone()).or_default();
        chains.entry(chain.ordering_key.clone()).or_default().insert(place, accepted_us);
        outbox.places.insert(place, (accepted_us, chain));
    }

    /// Forgets what a namespace has.
    pub(crate) fn forget(&mut self, namespace: u32) {
        self.0.remove(&namespace);
    }

    /// Takes a message out; whether it was there.
    pub(crate) fn remove(&mut self, namespace: u32, place: Place) -> bool {
        let Some(outbox) = self.0.get_mut(&namespace) else { return false };
        let Some((_, chain)) = outbox.places.remove(&place) else { return false };
        if let Some(chains) = outbox.targets.get_mut(&chain.target) {
            if let Some(places) = chains.get_mut(&chain.ordering_key) {
                places.remove(&place);
                if places.is_empty() {
                    chains.remove(&chain.ordering_key);
                }
            }
            if chains.is_empty() {
                outbox.targets.remove(&chain.target);
            }
        }
        if outbox.places.is_empty() {
            self.0.remove(&namespace);
        }
        true
    }

    /// The newest message of a namespace.
    pub(crate) fn newest(&self, namespace: u32) -> Option<Place> {
        self.0.get(&namespace)?.places.keys().next_back().copied()
    }

    /// The oldest messages of a chain with the times of their commits, at most so many.
    pub(crate) fn oldest(&self, namespace: u32, chain: &Chain, count: usize) -> Vec<(Place, u64)> {
        let places = self
            .0
            .get(&namespace)
            .and_then(|outbox| outbox.targets.get(&chain.target)?.get(&chain.ordering_key));
        let known = places.into_iter().flatten().take(count);
        known.map(|(place, accepted_us)| (*place, *accepted_us)).collect()
    }

    /// Chains of a namespace that have messages and are not under way: of each target no more than `room` has for it.
    pub fn chains(
        &self,
        namespace: u32,
        room: impl Fn(&Target) -> usize,
        is_under_way: impl Fn(&Chain) -> bool,
    ) -> Vec<Chain> {
        let mut found = Vec::new();
        for (target, chains) in self.0.get(&namespace).iter().flat_map(|of| &of.targets) {
            let room = room(target);
            // The room first: there may be many chains.
            if room > 0 {
                let chains = chains.keys().map(|ordering_key| Chain {
                    target: target.clone(),
                    ordering_key: ordering_key.clone(),
                });
                found.extend(chains.filter(|chain| !is_under_way(chain)).take(room));
            }
        }
        found
    }

    /// What an operator sees of a namespace's outbox.
    pub fn facts(&self, namespace: u32) -> OutboxFacts {
        let Some(outbox) = self.0.get(&namespace) else { return OutboxFacts::default() };
        let oldest_us = outbox.places.values().next().map(|(accepted_us, _)| *accepted_us);
        OutboxFacts { messages: outbox.places.len() as u64, oldest_us }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(name: &str, ordering_key: &str) -> Chain {
        let target = Target { namespace: "jobs".into(), name: name.into() };
        Chain { target, ordering_key: ordering_key.into() }
    }

    fn place(lsn: u64) -> Place {
        Place { lsn, index: 0 }
    }

    #[test]
    fn chains_have_their_oldest_messages_and_go_when_they_are_empty() {
        let mut all = Outboxes::default();
        for (lsn, of) in [(1, chain("a", "")), (2, chain("a", "k")), (3, chain("a", ""))] {
            all.insert(7, place(lsn), (100 * lsn, of.clone()));
            all.insert(7, place(lsn), (100 * lsn, of));
        }
        all.insert(7, place(4), (400, chain("b", "")));
        assert_eq!(all.facts(7), OutboxFacts { messages: 4, oldest_us: Some(100) });
        assert_eq!(all.newest(7), Some(place(4)));
        let every = all.chains(7, |_| 9, |_| false);
        assert_eq!(every, [chain("a", ""), chain("a", "k"), chain("b", "")]);
        let few = all.chains(7, |target| usize::from(&*target.name == "a"), |one| *one == every[0]);
        assert_eq!(few, [chain("a", "k")]);
        assert_eq!(all.oldest(7, &every[0], 1), [(place(1), 100)]);
        for lsn in 1..=4 {
            assert!(all.remove(7, place(lsn)) && !all.remove(7, place(lsn)));
        }
        assert_eq!(all.facts(7), OutboxFacts::default());
        assert!(all.chains(7, |_| 9, |_| false).is_empty() && all.0.is_empty());
    }
}
