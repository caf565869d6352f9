//! What is known about a stream beside the content of its records; knows times and numbers, and asks no clock.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hasher;

use siphasher::sip::SipHasher13;

/// Partitions of every stream.
pub(super) const PARTITIONS: usize = 4;

/// What is known about a record.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// When it was accepted, µs since the epoch, on its millisecond.
    pub(super) time_us: u64,
    /// What retention counts.
    pub(super) bytes: u64,
    pub(super) key: Option<Box<str>>,
}

/// One partition.
#[derive(Debug, Default)]
pub(super) struct Partition {
    pub(super) records: BTreeMap<u64, Known>,
    /// The offset of the next record.
    pub(super) next: u64,
    /// By key: the offset of its newest record.
    newest: HashMap<Box<str>, u64, ahash::RandomState>,
}

/// How long records stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retention {
    /// `u64::MAX` is without a bound, here and below.
    pub(super) age_ms: u64,
    pub(super) bytes: u64,
    pub(super) records: u64,
    pub(super) by_key: bool,
}

impl Retention {
    pub(super) const ALL: Retention =
        Retention { age_ms: u64::MAX, bytes: u64::MAX, records: u64::MAX, by_key: false };
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(super) partitions: [Partition; PARTITIONS],
    pub(super) retention: Retention,
    bytes: u64,
    records: u64,
}

impl Default for Stream {
    fn default() -> Self {
        let partitions = Default::default();
        Stream { partitions, retention: Retention::ALL, bytes: 0, records: 0 }
    }
}

/// The partition of a key: by its first `{…}`, else by the whole.
pub(super) fn partition_of(key: Option<&str>) -> usize {
    let Some(key) = key else { return 0 };
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let mut hasher = SipHasher13::new_with_keys(0, 0);
    hasher.write(tag.filter(|tag| !tag.is_empty()).unwrap_or(key).as_bytes());
    (hasher.finish() % PARTITIONS as u64) as usize
}

impl Partition {
    /// The offset of the oldest record that is there, or of the next one.
    pub(super) fn first(&self) -> u64 {
        self.records.first_key_value().map_or(self.next, |(offset, _)| *offset)
    }

    /// The newest record's offset.
    pub(super) fn last(&self) -> Option<u64> {
        self.records.last_key_value().map(|(offset, _)| *offset)
    }

    /// The first offset whose record is not older than `time_us`. Times do not decrease with offsets.
    pub(super) fn since(&self, time_us: u64) -> u64 {
        let (mut from, mut to) = (self.first(), self.next);
        while from < to {
            let middle = from + (to - from) / 2;
            // Between two offsets records may be missing: the next one that is there decides.
            match self.records.range(middle..to).next() {
                Some((&offset, known)) if known.time_us < time_us => from = offset + 1,
                _ => to = middle,
            }
        }
        from
    }
}

impl Stream {
    /// Takes a record in; also one that a snapshot held, in any order.
    pub(super) fn insert(&mut self, partition: usize, offset: u64, known: Known) {
        let of = &mut self.partitions[partition];
        of.next = of.next.max(offset + 1);
        self.bytes += known.bytes;
        self.records += 1;
        if let Some(key) = &known.key {
            let newest = of.newest.entry(key.clone()).or_insert(offset);
            *newest = (*newest).max(offset);
        }
        of.records.insert(offset, known);
    }

    /// Takes a record out; whether it was its partition's newest.
    pub(super) fn remove(&mut self, partition: usize, offset: u64) -> bool {
        let of = &mut self.partitions[partition];
        let Some(known) = of.records.remove(&offset) else { return false };
        self.bytes -= known.bytes;
        self.records -= 1;
        if let Some(key) = &known.key
            && of.newest.get(key) == Some(&offset)
        {
            of.newest.remove(key);
        }
        offset + 1 == of.next
    }

    /// The record that one with this key replaces.
    pub(super) fn replaced(&self, partition: usize, key: &str) -> Option<u64> {
        let newest = &self.partitions[partition].newest;
        self.retention.by_key.then(|| newest.get(key).copied()).flatten()
    }

    /// A record that retention does not keep at `now_us`: of all partitions the oldest.
    pub(super) fn surplus(&self, now_us: u64) -> Option<(usize, u64)> {
        let heads = self.partitions.iter().enumerate().filter_map(|(partition, of)| {
            let (offset, known) = of.records.first_key_value()?;
            Some((known.time_us, partition, *offset))
        });
        let (time_us, partition, offset) = heads.min()?;
        let oldest_us = now_us.saturating_sub(self.retention.age_ms.saturating_mul(1000));
        let goes = time_us < oldest_us
            || self.bytes > self.retention.bytes
            || self.records > self.retention.records;
        goes.then_some((partition, offset))
    }

    /// The records whose keys have a newer one. Looks at every record.
    pub(super) fn outdated(&self) -> Vec<(usize, u64)> {
        let mut outdated = Vec::new();
        for (partition, of) in self.partitions.iter().enumerate() {
            for (offset, known) in &of.records {
                let newest = known.key.as_ref().and_then(|key| of.newest.get(key));
                if newest.is_some_and(|newest| newest > offset) {
                    outdated.push((partition, *offset));
                }
            }
        }
        outdated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_found_also_between_records_that_are_gone() {
        let mut stream = Stream::default();
        for offset in 0..100 {
            let known = Known { time_us: offset / 3 * 10, bytes: 1, key: None };
            stream.insert(0, offset, known);
        }
        for offset in (0..100).filter(|offset| offset % 7 < 4) {
            stream.remove(0, offset);
        }
        let partition = &stream.partitions[0];
        for time_us in 0..400 {
            let from = partition.since(time_us);
            assert!(partition.records.range(..from).all(|(_, known)| known.time_us < time_us));
            assert!(partition.records.range(from..).all(|(_, known)| known.time_us >= time_us));
        }
    }

    #[test]
    fn a_tag_in_braces_decides_the_partition() {
        assert_eq!(partition_of(Some("{a}:1")), partition_of(Some("x{a}2")));
        assert_eq!(partition_of(None), 0);
        let used: std::collections::HashSet<_> =
            (0..100).map(|number| partition_of(Some(&number.to_string()))).collect();
        assert_eq!(used.len(), PARTITIONS);
    }
}
