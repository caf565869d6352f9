//! Redis's scans: SCAN over the namespace's keys, in pages.
//!
//! Redis matches the literal prefix, Prism the rest of a glob. One SCAN brings a batch of keys, which may be more than a page
//! takes; its keys are told in the order of their hashes, so that a page token can say how far into the batch it is: it
//! names the cursors before and after the batch and the last hash told. Continued, the keys from the first cursor on are asked
//! for again, and those that have been told are passed over as far as the second cursor. When keys come and go meanwhile a SCAN
//! may end elsewhere; one that would go beyond is made smaller. So none is missed that was there throughout, and a key
//! is told twice only where Redis has resized its table. A token is signed, for the namespace and the selection, and outlives
//! Prism, because so do Redis's cursors.

use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use bytes::Bytes;
use prism_proto::view::keyvalue::{CountRequest, CountResponse, ScanKeysRequest, ScanRequest};
use prism_proto::view::types::Entry;
use prism_proto::wire;
use siphasher::sip::SipHasher13;

use super::Redis;
use super::codec::{self, Value};
use super::connection::Link;
use super::errors;
use super::keyvalue::{Answer, Stored, value_bytes_max};
use crate::call::{Context, PageSink, Reply};
use crate::error::Error;
use crate::interfaces::keyvalue::KeyValueScan;
use crate::interfaces::keyvalue_selection::{
    Matcher, PAGE_BYTES, PAGE_ITEMS_FIELD, PAGE_TOKEN_FIELD, Page, Selection, page_entries,
};
use crate::limits::{COUNT_MAX_DEFAULT, check_key};

/// Keys that one SCAN looks at, about, at most: well below a millisecond of Redis's time.
const SCAN_KEYS_MAX: u64 = 512;

/// The same for short pages, as long as something is found.
const SCAN_KEYS_MIN: u64 = 32;

/// A page ends after so many SCANs, even if they have found nothing.
const PAGE_SCANS_MAX: usize = 64;

/// Keys whose values are read at a time.
const READ_KEYS_MAX: usize = 128;

/// Room for the page token at the end of a page.
const TOKEN_BYTES_MAX: usize = 112;

/// How often a walk through a cluster begins again because slots have moved.
const ROUNDS_MAX: u32 = 8;

/// Different keys that one Count can tell apart: it remembers 8 bytes of each.
const COUNT_KEYS_MAX: u64 = 2_000_000;

/// Keys of the hash, for order and signature: the same everywhere, because tokens are.
const HASH_KEYS: (u64, u64) = (0x7072_6973_6d2d_7363, 0x616e_2d72_6564_6973);

/// Where a walk goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) cursor: u64,
    /// From `cursor` until here the keys up to the hash `told` have been told already.
    until: u64,
    told: u64,
    node: NodePlace,
}

/// At which node of a cluster a walk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct NodePlace {
    number: u32,
    /// How often the walk has begun again because slots have moved.
    round: u32,
    /// Who had which slots when this round began; 0: it begins now.
    fingerprint: u64,
}

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.cursor, self.until, self.told).hash(state);
        if self.node != NodePlace::default() {
            self.node.hash(state);
        }
    }
}

impl Place {
    /// One that is known by its cursor alone.
    pub(super) fn at(cursor: u64) -> Self {
        Place { cursor, ..Place::default() }
    }
}

/// The keys of one SCAN that are not told yet.
#[derive(Default)]
struct Batch {
    /// Where it began, where it ended, and how far into it the walk has come.
    place: Place,
    keys: VecDeque<(u64, Bytes)>,
    has_come: bool,
    /// What the token said that this walk began with.
    token: Place,
    /// The node of a cluster that comes after the one that the keys are of; absent: there is no other.
    next_node: Option<NodePlace>,
}

impl Batch {
    /// The keys up to here are told.
    fn told(&mut self) {
        if let Some((hash, _)) = self.keys.pop_front() {
            self.place.told = hash;
        }
    }

    fn is_last(&self) -> bool {
        self.has_come && self.keys.is_empty() && self.place.until == 0 && self.next_node.is_none()
    }

    /// Where to go on after what was told.
    fn place(&self) -> Place {
        if !self.has_come || !self.keys.is_empty() {
            return self.place;
        }
        if let (0, Some(node)) = (self.place.until, self.next_node) {
            return Place { node, ..Place::default() };
        }
        let (cursor, node) = (self.place.until, self.place.node);
        let is_in_token = order(cursor) < order(self.token.until) && self.token.told > 0;
        match is_in_token && node == self.token.node {
            true => Place { cursor, ..self.token },
            false => Place { cursor, until: 0, told: 0, node },
        }
    }
}

/// SCAN counts its cursor up from the highest bit down; that it ends with 0.
fn order(cursor: u64) -> u64 {
    if cursor == 0 { u64::MAX } else { cursor.reverse_bits() }
}

/// What a page tells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tell {
    Keys,
    Entries,
}

impl KeyValueScan for Redis {
    async fn count(
        &self,
        context: &Context<'_>,
        request: CountRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let selection = Selection::from(request.selection);
        let limit = if request.limit == 0 { COUNT_MAX_DEFAULT } else { request.limit };
        let limit = limit.min(COUNT_KEYS_MAX);
        // SCAN may tell a key twice when the table has shrunk meanwhile.
        let mut seen = HashSet::new();
        let mut batch = Batch::default();
        let mut exact = true;
        while exact && !batch.is_last() {
            self.scan_on(context, selection, SCAN_KEYS_MAX, &mut batch).await?;
            for (hash, _) in batch.keys.drain(..) {
                if seen.len() as u64 == limit && !seen.contains(&hash) {
                    exact = false;
                    break;
                }
                seen.insert(hash);
            }
        }
        CountResponse { count: seen.len() as u64, exact }.encode(&mut reply.head);
        Ok(())
    }

    async fn scan<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: ScanRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let (selection, token) = (Selection::from(request.selection), request.page_token);
        self.send_pages(context, selection, request.page_size, token, Tell::Entries, sink).await
    }

    async fn scan_keys<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: ScanKeysRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let (selection, token) = (Selection::from(request.selection), request.page_token);
        self.send_pages(context, selection, request.page_size, token, Tell::Keys, sink).await
    }
}

impl Redis {
    async fn send_pages<S: PageSink>(
        &self,
        context: &Context<'_>,
        selection: Selection<'_>,
        page_size: u32,
        page_token: &str,
        tell: Tell,
        sink: &mut S,
    ) -> Result<(), Error> {
        let place = read_token(context, selection, page_token)?;
        let mut batch = Batch { place, token: place, ..Batch::default() };
        let entries_max = page_entries(page_size);
        let mut count = (2 * entries_max as u64).clamp(SCAN_KEYS_MIN, SCAN_KEYS_MAX);
        loop {
            let bytes_max = context.limits.max_message_size.saturating_sub(TOKEN_BYTES_MAX);
            let mut page = Page::new(entries_max, bytes_max);
            let mut scans = 0;
            while !page.is_full() && !batch.is_last() {
                if batch.keys.is_empty() {
                    if scans == PAGE_SCANS_MAX {
                        break;
                    }
                    scans += 1;
                    self.scan_on(context, selection, count, &mut batch).await?;
                    if batch.keys.is_empty() {
                        count = (2 * count).min(SCAN_KEYS_MAX);
                    }
                } else if tell == Tell::Keys {
                    tell_key(&mut page, &mut batch);
                } else {
                    let now_us = sink.now_us().max(context.now_us);
                    let context = Context { now_us, ..*context };
                    self.tell_entries(&context, &mut page, &mut batch).await?;
                }
            }
            let (mut bytes, last) = (page.into_bytes(), batch.is_last());
            if !last {
                let token = sign(context, selection, batch.place());
                wire::put_bytes(&mut bytes, PAGE_TOKEN_FIELD, token.as_bytes());
            }
            sink.send(bytes.into()).await?;
            if last {
                return Ok(());
            }
        }
    }

    /// The next SCAN, of about so many keys: the selected ones that it brings and that are not told yet.
    async fn scan_on(
        &self,
        context: &Context<'_>,
        selection: Selection<'_>,
        mut count: u64,
        batch: &mut Batch,
    ) -> Result<(), Error> {
        let mut from = batch.place();
        if let Some(cluster) = self.cluster()
            && from.node.fingerprint != 0
            && (from.node.fingerprint >> 32) as u32 != cluster.order()
        {
            // The nodes are not those any more that the numbers are of.
            from = Place { node: next_round(context, from.node)?, ..Place::default() };
            batch.token = Place::default();
        }
        let (link, is_last_node) = self.node_to_scan(context, &mut from.node).await?;
        let pattern = escaped(selection.literal_prefix());
        let namespace = context.namespace_name.as_bytes();
        loop {
            let write = |out: &mut Vec<u8>| {
                codec::put_command(out, 8);
                codec::put(out, b"SCAN");
                codec::put_number(out, from.cursor);
                codec::put(out, b"MATCH");
                codec::put_pieces(out, [namespace, b":", &pattern]);
                codec::put(out, b"COUNT");
                codec::put_number(out, count);
                codec::put(out, b"TYPE");
                codec::put(out, b"string");
            };
            let read = link.call(context, 1, write).await?;
            let mut answer = Answer::new(context, &read);
            answer.array()?;
            let until = answer.blob()?.and_then(|digits| std::str::from_utf8(digits).ok());
            let until: Option<u64> = until.and_then(|digits| digits.parse().ok());
            let until = until.ok_or_else(|| errors::unexpected(context))?;
            let told = if order(until) <= order(from.until) { from.told } else { 0 };
            if told != from.told && count > 1 {
                count = (count / 4).max(1);
                continue;
            }
            let matcher = Matcher::new(selection);
            let mut keys = Vec::new();
            for _ in 0..answer.array()? {
                let key = answer.blob()?.and_then(|key| key.get(namespace.len() + 1..));
                let key = key.unwrap_or_default();
                // A key that no call can name is somebody else's.
                let ours = std::str::from_utf8(key).is_ok_and(|key| check_key("key", key).is_ok());
                let hash = hash(key);
                if ours && hash > told && matcher.matches(key) {
                    keys.push((hash, read.slice_ref(key)));
                }
            }
            keys.sort_unstable();
            keys.dedup();
            batch.place = Place { cursor: from.cursor, until, told, node: from.node };
            batch.next_node = match (until, is_last_node) {
                (0, false) => Some(NodePlace { number: from.node.number + 1, ..from.node }),
                (0, true) => self.round_after(context, from.node).await?,
                _ => None,
            };
            (batch.keys, batch.has_come) = (keys.into(), true);
            return Ok(());
        }
    }

    /// The connection of the node that a walk is at, and whether it is the last; of a cluster's first one, the round begins here.
    async fn node_to_scan(
        &self,
        context: &Context<'_>,
        node: &mut NodePlace,
    ) -> Result<(Rc<Link>, bool), Error> {
        let Some(cluster) = self.cluster() else { return Ok((self.link.clone(), true)) };
        let links = Box::pin(cluster.masters(context)).await?;
        if node.fingerprint == 0 {
            // Where slots are on their way now, the round is known to be in vain, but for what it finds.
            let now = Box::pin(cluster.fingerprint(context)).await?;
            node.fingerprint = now.unwrap_or(u64::from(cluster.order()) << 32);
        }
        let at = node.number as usize;
        let link = links.get(at).ok_or_else(|| errors::nodes_unknown(context))?;
        Ok((link.clone(), at + 1 == links.len()))
    }

    /// Where a walk goes on that has come to its end: nowhere, unless slots were given to other nodes meanwhile, whose keys may have been
    /// where the walk had been already.
    async fn round_after(
        &self,
        context: &Context<'_>,
        node: NodePlace,
    ) -> Result<Option<NodePlace>, Error> {
        let Some(cluster) = self.cluster() else { return Ok(None) };
        let now = Box::pin(cluster.fingerprint(context)).await?;
        if now == Some(node.fingerprint) {
            return Ok(None);
        }
        next_round(context, node).map(Some)
    }

    /// Reads the values of the next keys and puts them on the page.
    async fn tell_entries(
        &self,
        context: &Context<'_>,
        page: &mut Page,
        batch: &mut Batch,
    ) -> Result<(), Error> {
        let count = batch.keys.len().min(READ_KEYS_MAX).min(page.entries_left());
        let value_max = value_bytes_max(context);
        let room = PAGE_BYTES.saturating_sub(page.len()).min(value_max);
        let first = if page.is_empty() { value_max } else { room };
        let keys = batch.keys.range(..count).map(|(_, key)| key_of(key));
        let read = self.read_keys(context, keys, (room, first, true)).await?;
        let mut answer = Answer::new(context, &read);
        let found = answer.array()? / 2;
        for _ in 0..found {
            let (value, expiry) = (answer.next(), answer.integer()?);
            let stored = match value {
                Ok(Value::Blob(value)) => Stored::read(context, Some(value), expiry)?,
                // The first by itself is longer than any answer may be; what follows another waits for the next page.
                Ok(_) if page.is_empty() => return Err(errors::too_large(context)),
                Ok(_) => break,
                // It has become something else than a string since.
                Err(error) if error.reason() == "BACKEND_WRONG_TYPE" => None,
                Err(error) => return Err(error),
            };
            let Some((_, key)) = batch.keys.front() else { break };
            if let Some(stored) = stored {
                let entry = Entry { key: Some(key_of(key)), ..stored.view() };
                let length = entry.encoded_len();
                let fits = page.put(length, |page| {
                    wire::put_length(page, PAGE_ITEMS_FIELD, length);
                    entry.encode(page);
                });
                if !fits {
                    return Ok(());
                }
            }
            batch.told();
            if page.is_full() {
                return Ok(());
            }
        }
        if found < count as u64 {
            page.fill();
        }
        Ok(())
    }
}

fn next_round(context: &Context<'_>, node: NodePlace) -> Result<NodePlace, Error> {
    match node.round < ROUNDS_MAX {
        true => Ok(NodePlace { number: 0, round: node.round + 1, fingerprint: 0 }),
        false => Err(errors::slots_move(context)),
    }
}

fn tell_key(page: &mut Page, batch: &mut Batch) {
    let Some((_, key)) = batch.keys.front() else { return };
    if page.put(key.len(), |page| wire::put_bytes(page, PAGE_ITEMS_FIELD, key)) {
        batch.told();
    }
}

/// That keys are UTF-8 was checked when they came.
fn key_of(key: &[u8]) -> &str {
    std::str::from_utf8(key).unwrap_or_default()
}

/// A pattern of Redis for what begins with `prefix`.
fn escaped(prefix: &[u8]) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(prefix.len() + 1);
    for &byte in prefix {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\' | b'^') {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
    pattern.push(b'*');
    pattern
}

/// The place of a key within its batch; never 0.
fn hash(key: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(HASH_KEYS.0, HASH_KEYS.1);
    hasher.write(key);
    hasher.finish().max(1)
}

/// A token that says where a list of `selection` goes on.
pub(super) fn sign(context: &Context<'_>, selection: impl Hash, place: Place) -> String {
    let mut hasher = SipHasher13::new_with_keys(HASH_KEYS.0, HASH_KEYS.1);
    (context.namespace, context.namespace_name, context.partition).hash(&mut hasher);
    (selection, place).hash(&mut hasher);
    let Place { cursor, until, told, node } = place;
    let seal = hasher.finish();
    let mut token = format!("{cursor:016x}{until:016x}{told:016x}{seal:016x}");
    if node != NodePlace::default() {
        let NodePlace { number, round, fingerprint } = node;
        token.push_str(&format!("{number:08x}{round:08x}{fingerprint:016x}"));
    }
    token
}

/// Where it goes on; at the beginning where there is no token.
pub(super) fn read_token(
    context: &Context<'_>,
    selection: impl Hash + Copy,
    token: &str,
) -> Result<Place, Error> {
    if token.is_empty() {
        return Ok(Place::default());
    }
    let number = |from| u64::from_str_radix(token.get(from..from + 16)?, 16).ok();
    let node = || {
        let (both, fingerprint) = (number(64)?, number(80)?);
        Some(NodePlace { number: (both >> 32) as u32, round: both as u32, fingerprint })
    };
    let place = || {
        let node = if token.len() > 64 { node()? } else { NodePlace::default() };
        Some(Place { cursor: number(0)?, until: number(16)?, told: number(32)?, node })
    };
    place().filter(|place| sign(context, selection, *place) == token).ok_or_else(|| {
        let expected = "does not belong to this namespace and selection: begin without one";
        Error::field("PAGE_TOKEN_INVALID", "page_token", expected)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_takes_for_a_pattern_is_escaped() {
        assert_eq!(escaped(b"a*b?[c]\\^-d"), b"a\\*b\\?\\[c\\]\\\\\\^-d*");
    }

    #[test]
    fn a_batch_knows_where_it_is() {
        let keys = VecDeque::from([(3, Bytes::from("a")), (9, Bytes::from("b"))]);
        let node = NodePlace::default();
        let place = Place { cursor: 5, until: 7, told: 0, node };
        let token = Place { cursor: 5, until: 15, told: 2, node };
        let mut batch = Batch { place, keys, has_come: true, token, next_node: None };
        assert_eq!(batch.place(), place);
        batch.told();
        assert_eq!(batch.place(), Place { told: 3, ..place });
        batch.told();
        assert_eq!(
            batch.place(),
            Place { cursor: 7, until: 15, told: 2, node },
            "the token holds on"
        );
        assert!(!batch.is_last());
        batch.place.until = 15;
        assert_eq!(batch.place(), Place { cursor: 15, until: 0, told: 0, node });
        batch.place.until = 0;
        assert!(batch.is_last());
        let next = NodePlace { number: 1, ..node };
        batch.next_node = Some(next);
        assert!(!batch.is_last());
        assert_eq!(batch.place(), Place { node: next, ..Place::default() }, "without the token");
    }

    #[test]
    fn cursors_are_counted_from_the_highest_bit_down() {
        // As SCAN goes through a table of eight buckets.
        let cursors = [4, 2, 6, 1, 5, 3, 7, 0];
        assert!(cursors.is_sorted_by_key(|&cursor| order(cursor)));
    }
}
