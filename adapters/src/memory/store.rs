//! The state of a shard's memstore: lanes of entries, their expiry, and the memory they take.
//!
//! It promises that the same changes in the same order give the same state, that an expired entry is
//! never seen, and that no change takes longer for the store being large. It does no I/O, asks no
//! clock, and refuses nothing by itself: what must be refused is refused before there is a record.

use ahash::RandomState;
use hashbrown::HashTable;

use super::entry::{Entry, NEVER, Stored};
use super::index::Index;
use super::payloads::Payloads;
use super::slab::{NOWHERE, Slab};
use super::snapshot::Cut;
use super::wheel::{LEVELS, Wheel};
use crate::call::Revision;

/// Keys whose entries are fetched ahead at once: as many misses as a core has under way, with room to spare.
const FETCH_KEYS_MAX: usize = 16;
/// What an empty lane takes, about.
const LANE_BYTES: usize = size_of::<Lane>() + 64;

/// The entries of one (namespace, partition).
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) namespace: u32,
    pub(crate) partition: u16,
    pub(crate) namespace_name: Box<str>,
    pub(crate) entries: Slab<Entry>,
    /// How many entries have an expiry.
    pub(crate) expiring: usize,
    /// Its namespace's account.
    account: u32,
    index: Index,
}

/// What the lanes of one namespace take together.
#[derive(Debug)]
struct Account {
    namespace: u32,
    first_lane: u32,
    used_bytes: usize,
}

/// Where a key is or would be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    pub(crate) lane: u32,
    hash: u64,
    /// Its entry, also when that has expired; else [`NOWHERE`].
    position: u32,
}

/// What a write makes of an entry's expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// As it was; a new entry does not expire.
    Keep,
    /// At this time, µs since the epoch, or [`NEVER`].
    At(u64),
}

/// A shard's entries, see the module.
#[derive(Debug, Default)]
pub(crate) struct Store {
    hasher: RandomState,
    pub(crate) lanes: Vec<Lane>,
    lane_index: HashTable<u32>,
    accounts: Vec<Account>,
    account_index: HashTable<u32>,
    wheel: Wheel,
    pub(crate) payloads: Payloads,
    /// About how much memory everything takes, in bytes.
    used_bytes: usize,
    /// Everything that expired until then may have been reaped; no change comes from before.
    horizon_us: u64,
    /// Counts the snapshots begun; entries carry the one in which they were last changed.
    pub(crate) generation: u32,
    /// The snapshot that is being taken.
    pub(crate) cut: Option<Cut>,
}

impl Store {
    /// About how much memory everything takes, in bytes.
    pub(crate) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// What the lanes of a namespace take of it, and the namespace's name; nothing if it has no lane.
    #[inline]
    pub(crate) fn namespace_bytes(&self, namespace: u32) -> Option<(usize, &str)> {
        let account = &self.accounts[self.account(namespace)? as usize];
        let name = &self.lanes[account.first_lane as usize].namespace_name;
        Some((account.used_bytes, name))
    }

    #[inline]
    fn account(&self, namespace: u32) -> Option<u32> {
        let is_it = |&number: &u32| self.accounts[number as usize].namespace == namespace;
        self.account_index.find(self.hasher.hash_one(namespace), is_it).copied()
    }

    fn account_or_new(&mut self, namespace: u32, first_lane: u32) -> u32 {
        if let Some(number) = self.account(namespace) {
            return number;
        }
        let number = self.accounts.len() as u32;
        self.accounts.push(Account { namespace, first_lane, used_bytes: 0 });
        let hash = self.hasher.hash_one(namespace);
        let (hasher, accounts) = (&self.hasher, &self.accounts);
        self.account_index.insert_unique(hash, number, |&number| {
            hasher.hash_one(accounts[number as usize].namespace)
        });
        number
    }

    #[inline]
    fn take(&mut self, lane: u32, bytes: usize) {
        let account = self.lanes[lane as usize].account;
        self.accounts[account as usize].used_bytes += bytes;
        self.used_bytes += bytes;
    }

    #[inline]
    fn give_back(&mut self, lane: u32, bytes: usize) {
        let account = self.lanes[lane as usize].account;
        self.accounts[account as usize].used_bytes -= bytes;
        self.used_bytes -= bytes;
    }

    /// How many entries there are, those that have expired and are not yet reaped included.
    pub(crate) fn entries(&self) -> usize {
        self.lanes.iter().map(|lane| lane.entries.len()).sum()
    }

    /// The lane's number, if anything was ever written to it.
    #[inline]
    pub(crate) fn lane(&self, namespace: u32, partition: u16) -> Option<u32> {
        let hash = self.hasher.hash_one((namespace, partition));
        let is_it = |&number: &u32| {
            let lane = &self.lanes[number as usize];
            lane.namespace == namespace && lane.partition == partition
        };
        self.lane_index.find(hash, is_it).copied()
    }

    /// The lane's number; makes the lane if it is not there.
    #[inline]
    pub(crate) fn lane_or_new(&mut self, namespace: u32, partition: u16, name: &str) -> u32 {
        match self.lane(namespace, partition) {
            Some(number) => number,
            None => self.new_lane(namespace, partition, name),
        }
    }

    #[cold]
    fn new_lane(&mut self, namespace: u32, partition: u16, name: &str) -> u32 {
        let number = self.lanes.len() as u32;
        let account = self.account_or_new(namespace, number);
        self.lanes.push(Lane {
            namespace,
            partition,
            namespace_name: name.into(),
            entries: Slab::default(),
            expiring: 0,
            account,
            index: Index::default(),
        });
        let hash = self.hasher.hash_one((namespace, partition));
        let (hasher, lanes) = (&self.hasher, &self.lanes);
        self.lane_index.insert_unique(hash, number, |&number| {
            let lane = &lanes[number as usize];
            hasher.hash_one((lane.namespace, lane.partition))
        });
        self.take(number, LANE_BYTES + name.len());
        number
    }

    /// Where `key` is or would be in a lane.
    #[inline]
    pub(crate) fn locate(&self, lane: u32, key: &[u8]) -> Spot {
        let hash = self.hasher.hash_one(key);
        let entries = &self.lanes[lane as usize];
        let is_it = |position| entries.entries.at(position).key(&self.payloads) == key;
        let found = entries.index.find(hash, is_it);
        Spot { lane, hash, position: found.unwrap_or(NOWHERE) }
    }

    /// Brings what calls for these keys will touch into the processor's caches. The look-ups of one call wait for memory one
    /// after the other; those of several keys at once wait together.
    pub(crate) fn fetch(&self, lane: u32, keys: &[&[u8]]) {
        let lane = &self.lanes[lane as usize];
        let mut positions = [NOWHERE; FETCH_KEYS_MAX];
        for (position, key) in positions.iter_mut().zip(keys) {
            *position = lane.index.guess(self.hasher.hash_one(*key)).unwrap_or(NOWHERE);
        }
        let mut touched = 0;
        for position in positions {
            if let Some(entry) = lane.entries.get(position) {
                touched ^= entry.key(&self.payloads).first().copied().unwrap_or_default();
            }
        }
        std::hint::black_box(touched);
    }

    /// The entry at a spot, unless it has expired.
    #[inline]
    pub(crate) fn live(&self, spot: Spot, now_us: u64) -> Option<Stored<'_>> {
        let entry = self.lanes[spot.lane as usize].entries.get(spot.position)?;
        entry.is_live(now_us).then_some(Stored { entry, payloads: &self.payloads })
    }

    /// The entry of a key, unless it has expired.
    #[inline]
    pub(crate) fn get(
        &self,
        namespace: u32,
        partition: u16,
        key: &[u8],
        now_us: u64,
    ) -> Option<Stored<'_>> {
        self.live(self.locate(self.lane(namespace, partition)?, key), now_us)
    }

    /// Stores a value; the spot was located after the last change of the lane.
    pub(crate) fn put(
        &mut self,
        spot: Spot,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
        revision: Revision,
        now_us: u64,
    ) {
        debug_assert!(now_us >= self.horizon_us, "a change from before what has been reaped");
        if spot.position == NOWHERE {
            return self.insert(spot, key, value, expiry, revision, now_us);
        }
        let was_live = self.live(spot, now_us).is_some();
        self.save_before_change(spot.lane, spot.position);
        let entry = self.lanes[spot.lane as usize].entries.at_mut(spot.position);
        let before_bytes = entry.memory_bytes();
        entry.replace(&mut self.payloads, key, value, revision);
        let after_bytes = entry.memory_bytes();
        self.take(spot.lane, after_bytes);
        self.give_back(spot.lane, before_bytes);
        let expires_us = match expiry {
            Expiry::Keep if was_live => return,
            Expiry::Keep => NEVER,
            Expiry::At(expires_us) => expires_us,
        };
        self.set_timer(spot.lane, spot.position, expires_us, now_us);
    }

    fn insert(
        &mut self,
        spot: Spot,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
        revision: Revision,
        now_us: u64,
    ) {
        let entry = Entry::new(&mut self.payloads, key, value, revision, self.generation);
        self.take(spot.lane, entry.memory_bytes());
        let lane = &mut self.lanes[spot.lane as usize];
        let position = lane.entries.insert(entry);
        let (hasher, entries, payloads) = (&self.hasher, &lane.entries, &self.payloads);
        let hash_of = |position| hasher.hash_one(entries.at(position).key(payloads));
        lane.index.insert(spot.hash, position, hash_of);
        if let Expiry::At(expires_us) = expiry {
            self.set_timer(spot.lane, position, expires_us, now_us);
        }
    }

    /// Gives a live entry another expiry; its version stays.
    pub(crate) fn set_expiry(&mut self, spot: Spot, expires_us: u64, now_us: u64) {
        debug_assert!(now_us >= self.horizon_us, "a change from before what has been reaped");
        self.save_before_change(spot.lane, spot.position);
        self.set_timer(spot.lane, spot.position, expires_us, now_us);
    }

    /// Takes a key out; it may not be there, or have expired.
    pub(crate) fn remove(&mut self, spot: Spot, now_us: u64) {
        debug_assert!(now_us >= self.horizon_us, "a change from before what has been reaped");
        if spot.position != NOWHERE {
            self.remove_at(spot.lane, spot.position, spot.hash);
        }
    }

    /// Reaps at most `budget` entries that have expired at `horizon_us`.
    ///
    /// No change with an earlier log time may come after it: each must find what was there at its
    /// own time, however late it is applied. Returns how many entries were reaped.
    pub(crate) fn expire(&mut self, horizon_us: u64, budget: usize) -> usize {
        self.horizon_us = self.horizon_us.max(horizon_us);
        let mut looks = budget.saturating_mul(LEVELS);
        let mut reaped = 0;
        while reaped < budget
            && let Some((lane, position)) = self.wheel.pop_due(horizon_us, &mut looks)
        {
            self.give_back(lane, Wheel::TIMER_BYTES);
            let lane_entries = &mut self.lanes[lane as usize];
            let entry = lane_entries.entries.at_mut(position);
            debug_assert!(!entry.is_live(horizon_us));
            entry.timer = NOWHERE;
            lane_entries.expiring -= 1;
            let hash = self.hasher.hash_one(entry.key(&self.payloads));
            self.remove_at(lane, position, hash);
            reaped += 1;
        }
        reaped
    }

    /// Takes out what is at a place of a lane; whether there was anything.
    pub(super) fn erase_at(&mut self, lane: u32, position: u32) -> bool {
        let Some(entry) = self.lanes[lane as usize].entries.get(position) else { return false };
        let hash = self.hasher.hash_one(entry.key(&self.payloads));
        self.remove_at(lane, position, hash);
        true
    }

    fn remove_at(&mut self, lane: u32, position: u32, hash: u64) {
        self.save_before_change(lane, position);
        self.set_timer(lane, position, NEVER, 0);
        let removed_from = &mut self.lanes[lane as usize];
        removed_from.index.remove(hash, position);
        let removed = removed_from.entries.remove(position);
        let bytes = removed.memory_bytes();
        removed.give_back(&mut self.payloads);
        self.give_back(lane, bytes);
    }

    /// Puts the entry as it is into the snapshot that is being taken, if that still lacks it.
    #[inline]
    fn save_before_change(&mut self, lane: u32, position: u32) {
        let entry = self.lanes[lane as usize].entries.at_mut(position);
        if entry.generation != self.generation {
            if let Some(cut) = &mut self.cut {
                cut.save(lane, position, Stored { entry, payloads: &self.payloads });
            }
            entry.generation = self.generation;
        }
    }

    fn set_timer(&mut self, lane: u32, position: u32, expires_us: u64, now_us: u64) {
        let entry = self.lanes[lane as usize].entries.at_mut(position);
        if entry.expires_us == expires_us {
            return;
        }
        entry.expires_us = expires_us;
        match (entry.timer != NOWHERE, expires_us != NEVER) {
            (true, true) => self.wheel.reschedule(entry.timer, expires_us),
            (true, false) => {
                self.wheel.cancel(std::mem::replace(&mut entry.timer, NOWHERE));
                self.give_back(lane, Wheel::TIMER_BYTES);
                self.lanes[lane as usize].expiring -= 1;
            }
            (false, true) => {
                entry.timer = self.wheel.schedule(lane, position, expires_us, now_us);
                self.take(lane, Wheel::TIMER_BYTES);
                self.lanes[lane as usize].expiring += 1;
            }
            (false, false) => {}
        }
    }
}
