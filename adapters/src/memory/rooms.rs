//! Where the models beside key-value keep their data: as entries in lanes of their own.
//!
//! Whatever a model must know again after a restart is an entry, so that snapshots, replay and the account of memory hold for it
//! as they do for keys and values. What is quicker to find otherwise stands beside, in indexes that are made from the
//! entries when a snapshot is restored. A room's lane has a number that no partition of a namespace has.

use bytes::Bytes;

use super::Memstore;
use super::entry::Value;
use super::store::Expiry;
use crate::call::Context;

/// Partitions of namespaces have smaller numbers.
const ROOMS_FROM: u16 = 0xff00;

/// Whose data a lane holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Room {
    Queues = ROOMS_FROM,
    Streams = ROOMS_FROM + 1,
    Groups = ROOMS_FROM + 2,
    Topics = ROOMS_FROM + 3,
    Outbox = ROOMS_FROM + 4,
}

/// The key of an entry: what it is, of whom, and its number there.
pub(super) fn room_key(kind: u8, name: &str, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + name.len() + rest.len());
    key.extend_from_slice(&[kind, name.len() as u8]);
    key.extend_from_slice(name.as_bytes());
    key.extend_from_slice(rest);
    key
}

/// A key as [`room_key`] made it.
pub(super) fn read_room_key(key: &[u8]) -> Option<(u8, &str, &[u8])> {
    let (&[kind, length], rest) = key.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(length as usize)?;
    Some((kind, std::str::from_utf8(name).ok()?, rest))
}

/// Numbers at the front of an entry's value, little-endian.
pub(super) struct Numbers<'a>(pub(super) &'a [u8]);

impl Numbers<'_> {
    /// The next number; 0 past the end, which only a shorter value of an older version has.
    pub(super) fn next(&mut self) -> u64 {
        let Some((number, rest)) = self.0.split_first_chunk() else { return 0 };
        self.0 = rest;
        u64::from_le_bytes(*number)
    }
}

/// Numbers as [`Numbers`] reads them.
pub(super) fn put_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
}

impl Memstore {
    /// Stores an entry of a room.
    pub(super) fn keep(&self, context: &Context<'_>, room: Room, key: &[u8], value: &[u8]) {
        let mut store = self.store.borrow_mut();
        let lane = store.lane_or_new(context.namespace, room as u16, context.namespace_name);
        let spot = store.locate(lane, key);
        store.put(spot, key, value, Expiry::Keep, context.revision, context.now_us);
    }

    /// Takes an entry of a room out, if it is there.
    pub(super) fn forget(&self, context: &Context<'_>, room: Room, key: &[u8]) {
        let mut store = self.store.borrow_mut();
        if let Some(lane) = store.lane(context.namespace, room as u16) {
            let spot = store.locate(lane, key);
            store.remove(spot, context.now_us);
        }
    }

    /// An entry of a room; a large one is shared, not copied.
    pub(super) fn kept(&self, namespace: u32, room: Room, key: &[u8]) -> Option<Bytes> {
        let store = self.store.borrow();
        Some(match store.get(namespace, room as u16, key, 0)?.value() {
            Value::Small(value) => Bytes::copy_from_slice(value),
            Value::Large(value) => value.clone(),
        })
    }

    /// Shows every entry of a room, in no order: namespace, key and value.
    pub(super) fn each_kept(&self, room: Room, mut show: impl FnMut(u32, &[u8], &[u8])) {
        let store = self.store.borrow();
        for lane in store.lanes.iter().filter(|lane| lane.partition == room as u16) {
            for position in 0..lane.entries.end() {
                if let Some(entry) = lane.entries.get(position) {
                    let value = entry.value(&store.payloads).bytes();
                    show(lane.namespace, entry.key(&store.payloads), value);
                }
            }
        }
    }
}
