//! One stored entry: key and value in one place, and what is known about them.

use std::num::NonZeroU16;
use std::ops::Deref;

use bytes::Bytes;

use super::payloads::{Payloads, Slot};
use super::slab::{NOWHERE, Slab};
use crate::call::{BY_REFERENCE_BYTES_MIN, Revision};

/// The expiry of what does not expire.
pub(crate) const NEVER: u64 = u64::MAX;

/// What an allocation costs beyond its bytes, about.
const ALLOCATION_BYTES: usize = 16;

/// What an entry costs in the index, about: its item at the usual load.
const INDEX_BYTES: usize = 14;

/// A slot is kept for a new value unless that would waste more than half of it.
const REUSE_SLACK_BYTES: usize = 64;

#[derive(Debug)]
enum Payload {
    /// The key, then the value, then anything.
    Small(Slot),
    /// A large value, and any that there is no slot for.
    Large(Box<Large>),
}

#[derive(Debug)]
struct Large {
    key: Box<[u8]>,
    value: Bytes,
}

/// A value as it is stored: to be copied, or to be shared.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    /// Less than [`BY_REFERENCE_BYTES_MIN`].
    Small(&'a [u8]),
    /// That or more.
    Large(&'a Bytes),
}

impl<'a> Value<'a> {
    /// The bytes of the value.
    #[inline]
    pub(crate) fn bytes(self) -> &'a [u8] {
        match self {
            Value::Small(value) => value,
            Value::Large(value) => value,
        }
    }
}

/// A key with its value, version and expiry.
#[derive(Debug)]
pub(crate) struct Entry {
    payload: Payload,
    lsn: u64,
    minor: u64,
    /// When it expires, µs since the epoch; [`NEVER`] when it does not.
    pub(crate) expires_us: u64,
    epoch: u32,
    /// The snapshot generation in which it was last changed.
    pub(crate) generation: u32,
    /// Its timer in the wheel, or [`NOWHERE`].
    pub(crate) timer: u32,
    value_bytes: u32,
    key_bytes: NonZeroU16,
}

impl Entry {
    /// An entry without an expiry and without a timer.
    pub(crate) fn new(
        payloads: &mut Payloads,
        key: &[u8],
        value: &[u8],
        revision: Revision,
        generation: u32,
    ) -> Self {
        let key_bytes = u16::try_from(key.len()).ok().and_then(NonZeroU16::new);
        Entry {
            payload: Payload::new(payloads, key, value),
            lsn: revision.lsn,
            minor: revision.minor,
            expires_us: NEVER,
            epoch: revision.epoch,
            generation,
            timer: NOWHERE,
            value_bytes: value.len() as u32,
            key_bytes: key_bytes.expect("keys have 1 to 1,024 bytes"),
        }
    }

    #[inline]
    pub(crate) fn key<'a>(&'a self, payloads: &'a Payloads) -> &'a [u8] {
        match &self.payload {
            Payload::Small(slot) => payloads.bytes(slot, self.key_bytes.get() as usize),
            Payload::Large(large) => &large.key,
        }
    }

    #[inline]
    pub(crate) fn value<'a>(&'a self, payloads: &'a Payloads) -> Value<'a> {
        match &self.payload {
            Payload::Small(slot) => {
                let start = self.key_bytes.get() as usize;
                Value::Small(&payloads.bytes(slot, start + self.value_bytes as usize)[start..])
            }
            Payload::Large(large) if large.value.len() < BY_REFERENCE_BYTES_MIN => {
                Value::Small(&large.value)
            }
            Payload::Large(large) => Value::Large(&large.value),
        }
    }

    /// Whether it has not expired.
    #[inline]
    pub(crate) fn is_live(&self, now_us: u64) -> bool {
        self.expires_us > now_us
    }

    #[inline]
    pub(crate) fn revision(&self) -> Revision {
        Revision { lsn: self.lsn, epoch: self.epoch, minor: self.minor }
    }

    /// Puts another value in its place, into the same memory where that is possible; `key` is its key.
    pub(crate) fn replace(
        &mut self,
        payloads: &mut Payloads,
        key: &[u8],
        value: &[u8],
        revision: Revision,
    ) {
        (self.lsn, self.epoch, self.minor) = (revision.lsn, revision.epoch, revision.minor);
        self.value_bytes = value.len() as u32;
        let start = self.key_bytes.get() as usize;
        let end = start + value.len();
        match &mut self.payload {
            Payload::Small(slot) if fits(slot.capacity(), end, value.len()) => {
                payloads.bytes_mut(slot, end)[start..].copy_from_slice(value);
            }
            Payload::Large(large) if large.value.len() == value.len() => {
                match std::mem::take(&mut large.value).try_into_mut() {
                    Ok(mut unshared) => {
                        unshared.copy_from_slice(value);
                        large.value = unshared.freeze();
                    }
                    Err(_) => large.value = Bytes::copy_from_slice(value),
                }
            }
            _ => {
                let new = Payload::new(payloads, key, value);
                std::mem::replace(&mut self.payload, new).give_back(payloads);
            }
        }
    }

    /// Ends it: its memory is free for others.
    pub(crate) fn give_back(self, payloads: &mut Payloads) {
        self.payload.give_back(payloads);
    }

    /// About how much memory it takes, slot and index included.
    pub(crate) fn memory_bytes(&self) -> usize {
        let payload = match &self.payload {
            Payload::Small(slot) => slot.capacity(),
            Payload::Large(large) => {
                large.key.len() + large.value.len() + size_of::<Large>() + 3 * ALLOCATION_BYTES
            }
        };
        payload + Slab::<Entry>::SLOT_BYTES + INDEX_BYTES
    }
}

impl Payload {
    fn new(payloads: &mut Payloads, key: &[u8], value: &[u8]) -> Payload {
        let bytes = key.len() + value.len();
        if value.len() < BY_REFERENCE_BYTES_MIN
            && let Some(slot) = payloads.take(bytes)
        {
            let (for_key, for_value) = payloads.bytes_mut(&slot, bytes).split_at_mut(key.len());
            for_key.copy_from_slice(key);
            for_value.copy_from_slice(value);
            return Payload::Small(slot);
        }
        let value = Bytes::copy_from_slice(value);
        Payload::Large(Box::new(Large { key: key.into(), value }))
    }

    fn give_back(self, payloads: &mut Payloads) {
        if let Payload::Small(slot) = self {
            payloads.give_back(slot);
        }
    }
}

/// An entry together with where its bytes may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored<'s> {
    pub(crate) entry: &'s Entry,
    pub(crate) payloads: &'s Payloads,
}

impl<'s> Stored<'s> {
    #[inline]
    pub(crate) fn key(self) -> &'s [u8] {
        self.entry.key(self.payloads)
    }

    #[inline]
    pub(crate) fn value(self) -> Value<'s> {
        self.entry.value(self.payloads)
    }
}

impl Deref for Stored<'_> {
    type Target = Entry;
    #[inline]
    fn deref(&self) -> &Entry {
        self.entry
    }
}

fn fits(capacity: usize, needed: usize, value_bytes: usize) -> bool {
    value_bytes < BY_REFERENCE_BYTES_MIN
        && needed <= capacity
        && capacity <= 2 * needed + REUSE_SLACK_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::KEY_BYTES_MAX;

    #[test]
    fn a_slot_is_one_cache_line() {
        assert_eq!(Slab::<Entry>::SLOT_BYTES, 64);
    }

    #[test]
    fn values_of_every_size_replace_each_other() {
        let sizes = [0, 1, 100, 128, 4_095, 4_096, 4_096, 5_000, 10, 0, 100_000, 3];
        let mut payloads = Payloads::default();
        let mut entry = Entry::new(&mut payloads, b"key", b"first", Revision::logged(1), 0);
        for (lsn, size) in sizes.into_iter().enumerate() {
            let value: Vec<u8> = (0..size).map(|index| (index + lsn) as u8).collect();
            entry.replace(&mut payloads, b"key", &value, Revision::logged(lsn as u64));
            assert_eq!(entry.key(&payloads), b"key");
            assert_eq!(entry.value(&payloads).bytes(), value);
            assert_eq!(entry.revision(), Revision::logged(lsn as u64));
            let is_large = matches!(entry.value(&payloads), Value::Large(_));
            assert_eq!(is_large, size >= BY_REFERENCE_BYTES_MIN);
        }
    }

    #[test]
    fn a_long_key_with_a_long_value_is_small() {
        let mut payloads = Payloads::default();
        let (key, value) = ([1; KEY_BYTES_MAX], [2; BY_REFERENCE_BYTES_MIN - 1]);
        let entry = Entry::new(&mut payloads, &key, &value, Revision::logged(1), 0);
        assert!(matches!(entry.payload, Payload::Small(_)));
        assert_eq!(entry.key(&payloads), key);
        assert_eq!(entry.value(&payloads).bytes(), value);
    }

    #[test]
    fn a_small_value_without_a_slot_is_as_good() {
        let mut payloads = Payloads::default();
        let (key, value) = ([1; 4_000], [2; 4_000]);
        let mut entry = Entry::new(&mut payloads, &key, &value, Revision::logged(1), 0);
        assert!(matches!(entry.payload, Payload::Large(_)), "it stands for memory having run out");
        assert!(matches!(entry.value(&payloads), Value::Small(found) if found == value));
        entry.replace(&mut payloads, &key, &[3; 10], Revision::logged(2));
        assert!(matches!(entry.payload, Payload::Small(_)));
        assert_eq!(entry.key(&payloads), key);
        assert_eq!(entry.value(&payloads).bytes(), [3; 10]);
    }

    #[test]
    fn a_shared_value_is_not_overwritten() {
        let mut payloads = Payloads::default();
        let mut entry = Entry::new(&mut payloads, b"key", &[1; 8_192], Revision::logged(1), 0);
        let Value::Large(shared) = entry.value(&payloads) else { panic!("it is shared") };
        let shared = shared.clone();
        entry.replace(&mut payloads, b"key", &[2; 8_192], Revision::logged(2));
        assert_eq!(shared, vec![1; 8_192]);
        assert_eq!(entry.value(&payloads).bytes(), vec![2; 8_192]);
    }
}
