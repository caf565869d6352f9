//! NATS's scans: a walk through the namespace's stream in the order in which its values were written.
//!
//! The stream holds one message per key, so that every message is a value that stands, the mark of a deleted key, or the lane's
//! cell. A page token says from which number on to go on, which is as durable as the stream. A key that is written again
//! meanwhile is found again behind: none is missed that was there throughout, and one may be told twice. The server narrows the
//! walk to the tokens that a prefix has whole (`user.` of `user.4`), Prism to the rest.

use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};

use prism_proto::view::keyvalue::{CountRequest, CountResponse, ScanKeysRequest, ScanRequest};
use prism_proto::view::types::Entry;
use prism_proto::wire;
use siphasher::sip::SipHasher13;

use super::Nats;
use super::errors;
use super::jetstream::Record;
use super::operation::version;
use super::subject;
use crate::call::{Context, PageSink, Reply};
use crate::error::Error;
use crate::interfaces::keyvalue::KeyValueScan;
use crate::interfaces::keyvalue_selection::{
    Matcher, PAGE_BYTES, PAGE_ITEMS_FIELD, PAGE_TOKEN_FIELD, Page, Selection, page_entries,
};
use crate::limits::{COUNT_MAX_DEFAULT, check_key};

/// Messages that one read brings, at most.
const WALK_MESSAGES_MAX: usize = 512;

/// The same for short pages.
const WALK_MESSAGES_MIN: usize = 32;

/// Bytes that one read brings, about.
const WALK_BYTES_MAX: usize = 4 * PAGE_BYTES;

/// A page ends after so many reads, even if they have found nothing.
const PAGE_WALKS_MAX: usize = 64;

/// Room for the page token at the end of a page.
const TOKEN_BYTES_MAX: usize = 48;

/// Different keys that one Count can tell apart: it remembers 8 bytes of each.
const COUNT_KEYS_MAX: u64 = 2_000_000;

/// Keys of the hash that signs tokens: the same everywhere, because tokens are.
const HASH_KEYS: (u64, u64) = (0x7072_6973_6d2d_7363, 0x616e_2d6e_6174_7300);

/// A walk through the stream.
struct Walk<'a> {
    selection: Selection<'a>,
    filter: String,
    /// Where it goes on when what was read is told.
    next: u64,
    /// Keys and values that were read and are not told yet.
    read: VecDeque<(String, Record)>,
    has_more: bool,
}

impl<'a> Walk<'a> {
    fn new(context: &Context<'_>, selection: Selection<'a>, next: u64) -> Self {
        let filter = subject::under(context.namespace_name, selection.literal_prefix());
        Walk { selection, filter, next, read: VecDeque::new(), has_more: true }
    }

    fn is_over(&self) -> bool {
        self.read.is_empty() && !self.has_more
    }

    /// Where to go on after what was told.
    fn place(&self) -> u64 {
        self.read.front().map_or(self.next, |(_, record)| record.sequence)
    }
}

/// What a page tells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tell {
    Keys,
    Entries,
}

impl KeyValueScan for Nats {
    async fn count(
        &self,
        context: &Context<'_>,
        request: CountRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let mut walk = Walk::new(context, Selection::from(request.selection), 0);
        let limit = if request.limit == 0 { COUNT_MAX_DEFAULT } else { request.limit };
        let limit = limit.min(COUNT_KEYS_MAX);
        // A key that is written meanwhile is found twice.
        let mut seen = HashSet::new();
        let mut exact = true;
        while exact && !walk.is_over() {
            self.walk_on(context, &mut walk, WALK_MESSAGES_MAX).await?;
            for (key, _) in walk.read.drain(..) {
                let mut hasher = SipHasher13::new_with_keys(HASH_KEYS.0, HASH_KEYS.1);
                hasher.write(key.as_bytes());
                let hash = hasher.finish();
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

impl Nats {
    async fn send_pages<S: PageSink>(
        &self,
        context: &Context<'_>,
        selection: Selection<'_>,
        page_size: u32,
        page_token: &str,
        tell: Tell,
        sink: &mut S,
    ) -> Result<(), Error> {
        let mut walk = Walk::new(context, selection, read_token(context, selection, page_token)?);
        let entries_max = page_entries(page_size);
        let count = (2 * entries_max).clamp(WALK_MESSAGES_MIN, WALK_MESSAGES_MAX);
        loop {
            let bytes_max = context.limits.max_message_size.saturating_sub(TOKEN_BYTES_MAX);
            let mut page = Page::new(entries_max, bytes_max);
            let mut walks = 0;
            while !page.is_full() && !walk.is_over() {
                if walk.read.is_empty() {
                    if walks == PAGE_WALKS_MAX {
                        break;
                    }
                    walks += 1;
                    self.walk_on(context, &mut walk, count).await?;
                } else {
                    put_next(context, &mut page, &mut walk, tell)?;
                }
            }
            let (mut bytes, is_last) = (page.into_bytes(), walk.is_over());
            if !is_last {
                let token = sign(context, selection, walk.place());
                wire::put_bytes(&mut bytes, PAGE_TOKEN_FIELD, token.as_bytes());
            }
            sink.send(bytes.into()).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Reads on: the selected values among the next messages.
    async fn walk_on(
        &self,
        context: &Context<'_>,
        walk: &mut Walk<'_>,
        count: usize,
    ) -> Result<(), Error> {
        let walked = self.walk(context, &walk.filter, walk.next, count, WALK_BYTES_MAX).await?;
        walk.has_more = walked.behind > 0 && !walked.records.is_empty();
        let matcher = Matcher::new(walk.selection);
        for record in walked.records {
            walk.next = record.sequence + 1;
            let key = subject::to_key(context.namespace_name, &record.subject);
            // A key that no call can name is somebody else's.
            let key = key.filter(|key| record.value.is_some() && check_key("key", key).is_ok());
            if let Some(key) = key.filter(|key| matcher.matches(key.as_bytes())) {
                walk.read.push_back((key, record));
            }
        }
        Ok(())
    }
}

/// Puts the next key or entry on the page, if it has room.
fn put_next(
    context: &Context<'_>,
    page: &mut Page,
    walk: &mut Walk<'_>,
    tell: Tell,
) -> Result<(), Error> {
    let Some((key, record)) = walk.read.front() else { return Ok(()) };
    let value = record.value.as_deref().unwrap_or_default();
    let fits = match tell {
        Tell::Keys => page.put(key.len(), |page| {
            wire::put_bytes(page, PAGE_ITEMS_FIELD, key.as_bytes());
        }),
        Tell::Entries => {
            if value.len() > context.limits.value_bytes_max() {
                return Err(errors::too_large(context));
            }
            let version = version(record.sequence);
            let entry = Entry { key: Some(key), version: Some(&version), expires_at: None, value };
            let length = entry.encoded_len();
            page.put(length, |page| {
                wire::put_length(page, PAGE_ITEMS_FIELD, length);
                entry.encode(page);
            })
        }
    };
    if fits {
        walk.read.pop_front();
    }
    Ok(())
}

/// A page token: the place that the page before has come to, bound to what is asked for.
pub(super) fn sign(context: &Context<'_>, selection: impl Hash, place: u64) -> String {
    let mut hasher = SipHasher13::new_with_keys(HASH_KEYS.0, HASH_KEYS.1);
    (context.namespace, context.namespace_name, context.partition).hash(&mut hasher);
    (selection, place).hash(&mut hasher);
    format!("{place:016x}{:016x}", hasher.finish())
}

/// The place where the page before has ended; 0 for the first page.
pub(super) fn read_token(
    context: &Context<'_>,
    selection: impl Hash + Copy,
    token: &str,
) -> Result<u64, Error> {
    if token.is_empty() {
        return Ok(0);
    }
    let place = token.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    place.filter(|place| sign(context, selection, *place) == token).ok_or_else(|| {
        let expected = "does not belong to this namespace and selection: begin without one";
        Error::field("PAGE_TOKEN_INVALID", "page_token", expected)
    })
}
