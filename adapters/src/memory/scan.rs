//! memstore's scans: a walk over the slots of a lane, in pages.
//!
//! What is in its slot from the walk's begin to its end is met exactly once; the walk ends where the
//! lane ended when it began. It looks at a bounded number of slots, or sends a page, then gives way.
//! No page is longer than a message may be, but for an entry that is too long by itself. A page token
//! says how far the walk has come; it is signed, for the lane and the selection, with a key that lives
//! as long as the process, because so do the positions.

use std::hash::BuildHasher;

use prism_io::rt::yield_now;
use prism_proto::view::keyvalue::{CountRequest, CountResponse, ScanKeysRequest, ScanRequest};
use prism_proto::view::types::Entry as EntryView;
use prism_proto::wire;

use super::Memstore;
use super::entry::Stored;
use super::keyvalue::view;
use crate::call::{Context, PageSink, Reply};
use crate::error::Error;
use crate::interfaces::keyvalue::KeyValueScan;
use crate::interfaces::keyvalue_selection::{
    Matcher, PAGE_BYTES, PAGE_ITEMS_FIELD, PAGE_TOKEN_FIELD, Selection, page_entries,
};
use crate::limits::COUNT_MAX_DEFAULT;

/// Slots that are looked at before others have a turn.
const STEP_SLOTS: u32 = 1024;

/// A page ends when so many slots have been looked at, even if nothing in them matched.
const PAGE_SLOTS_MAX: u32 = 128 * STEP_SLOTS;

/// Room for the page token at the end of a page.
const TOKEN_BYTES_MAX: usize = 64;

/// How far a walk has come: the next slot, and the one before which it ends.
#[derive(Clone, Copy, Debug)]
struct Walk {
    position: u32,
    end: u32,
}

impl KeyValueScan for Memstore {
    async fn count(
        &self,
        context: &Context<'_>,
        request: CountRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let selection = Selection::from(request.selection);
        let limit = if request.limit == 0 { COUNT_MAX_DEFAULT } else { request.limit };
        let (count, exact) = self.count_matches(context, selection, limit).await;
        CountResponse { count, exact }.encode(&mut reply.head);
        Ok(())
    }

    async fn scan<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: ScanRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let selection = Selection::from(request.selection);
        let put = |page: &mut Vec<u8>, key: &str, entry: Stored<'_>, room: usize| {
            let version = entry.revision().version();
            let entry = EntryView { key: Some(key), ..view(entry, &version) };
            let length = entry.encoded_len();
            let fits = wire::bytes_field_len(PAGE_ITEMS_FIELD, length) <= room;
            if fits {
                wire::put_length(page, PAGE_ITEMS_FIELD, length);
                entry.encode(page);
            }
            fits
        };
        self.send_pages(context, selection, request.page_size, request.page_token, sink, put).await
    }

    async fn scan_keys<S: PageSink>(
        &self,
        context: &Context<'_>,
        request: ScanKeysRequest<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        let selection = Selection::from(request.selection);
        let put = |page: &mut Vec<u8>, key: &str, _: Stored<'_>, room: usize| {
            let fits = wire::bytes_field_len(PAGE_ITEMS_FIELD, key.len()) <= room;
            if fits {
                wire::put_bytes(page, PAGE_ITEMS_FIELD, key.as_bytes());
            }
            fits
        };
        self.send_pages(context, selection, request.page_size, request.page_token, sink, put).await
    }
}

impl Memstore {
    /// Sends the rest of the walk page by page. `put` adds an entry to a page if it fits into the
    /// bytes that are left, and says whether it did.
    async fn send_pages<S: PageSink>(
        &self,
        context: &Context<'_>,
        selection: Selection<'_>,
        page_size: u32,
        page_token: &str,
        sink: &mut S,
        put: impl Fn(&mut Vec<u8>, &str, Stored<'_>, usize) -> bool,
    ) -> Result<(), Error> {
        let mut walk = self.begin_walk(context, selection, page_token)?;
        let page_entries = page_entries(page_size);
        let page_bytes = context.limits.max_message_size.saturating_sub(TOKEN_BYTES_MAX);
        loop {
            let mut page = Vec::new();
            let mut entries = 0;
            let page_end = walk.end.min(walk.position.saturating_add(PAGE_SLOTS_MAX));
            loop {
                let is_full = |page: &mut Vec<u8>, key: &str, entry: Stored<'_>| {
                    // The limit may have been lowered since the entry was stored: the walk goes on,
                    // with the entry on a page of its own.
                    let room = match page.is_empty() {
                        true => usize::MAX,
                        false => page_bytes.saturating_sub(page.len()),
                    };
                    if !put(page, key, entry, room) {
                        return Taken::NotThis;
                    }
                    entries += 1;
                    match entries == page_entries || page.len() >= PAGE_BYTES {
                        true => Taken::AndFull,
                        false => Taken::AndMore,
                    }
                };
                let now_us = sink.now_us().max(context.now_us);
                let full =
                    self.walk_step(context, selection, &mut walk, now_us, &mut page, is_full);
                if full || walk.position >= page_end {
                    break;
                }
                yield_now().await;
            }
            let last = walk.position == walk.end;
            if !last {
                let token = self.sign(context, selection, walk);
                wire::put_bytes(&mut page, PAGE_TOKEN_FIELD, token.as_bytes());
            }
            sink.send(page.into()).await?;
            if last {
                return Ok(());
            }
            yield_now().await;
        }
    }

    /// Looks at the next slots; whether the page is full.
    fn walk_step(
        &self,
        context: &Context<'_>,
        selection: Selection<'_>,
        walk: &mut Walk,
        now_us: u64,
        page: &mut Vec<u8>,
        mut take: impl FnMut(&mut Vec<u8>, &str, Stored<'_>) -> Taken,
    ) -> bool {
        let store = self.store.borrow();
        let Some(lane) = store.lane(context.namespace, context.partition) else { return false };
        let (entries, payloads) = (&store.lanes[lane as usize].entries, &store.payloads);
        let matcher = Matcher::new(selection);
        let upto = walk.end.min(walk.position.saturating_add(STEP_SLOTS));
        while walk.position < upto {
            if let Some(entry) = entries.get(walk.position)
                && entry.is_live(now_us)
                && matcher.matches(entry.key(payloads))
            {
                let entry = Stored { entry, payloads };
                let key = std::str::from_utf8(entry.key()).expect("keys are UTF-8");
                match take(page, key, entry) {
                    Taken::NotThis => return true,
                    Taken::AndFull => {
                        walk.position += 1;
                        return true;
                    }
                    Taken::AndMore => {}
                }
            }
            walk.position += 1;
        }
        false
    }

    async fn count_matches(
        &self,
        context: &Context<'_>,
        selection: Selection<'_>,
        limit: u64,
    ) -> (u64, bool) {
        let whole = {
            let store = self.store.borrow();
            let Some(lane) = store.lane(context.namespace, context.partition) else {
                return (0, true);
            };
            let lane = &store.lanes[lane as usize];
            // Without expiries every entry counts, and their number is known.
            let known = matches!(selection, Selection::All) && lane.expiring == 0;
            if known {
                let count = lane.entries.len() as u64;
                return (count.min(limit), count <= limit);
            }
            Walk { position: 0, end: lane.entries.end() }
        };
        let mut walk = whole;
        let mut count = 0;
        loop {
            let mut nothing = Vec::new();
            let beyond = self.walk_step(
                context,
                selection,
                &mut walk,
                context.now_us,
                &mut nothing,
                |_, _, _| {
                    if count == limit {
                        return Taken::NotThis;
                    }
                    count += 1;
                    Taken::AndMore
                },
            );
            if beyond || walk.position == walk.end {
                return (count, !beyond);
            }
            yield_now().await;
        }
    }

    fn begin_walk(
        &self,
        context: &Context<'_>,
        selection: Selection<'_>,
        page_token: &str,
    ) -> Result<Walk, Error> {
        if page_token.is_empty() {
            let store = self.store.borrow();
            let lane = store.lane(context.namespace, context.partition);
            let end = lane.map_or(0, |lane| store.lanes[lane as usize].entries.end());
            return Ok(Walk { position: 0, end });
        }
        read_token(page_token)
            .filter(|walk| self.sign(context, selection, *walk) == page_token)
            .ok_or_else(|| {
                let expected = "does not belong to this namespace and selection, or is from before \
                                a restart: begin without one";
                Error::field("PAGE_TOKEN_INVALID", "page_token", expected)
            })
    }

    fn sign(&self, context: &Context<'_>, selection: Selection<'_>, walk: Walk) -> String {
        let lane = (context.namespace, context.partition);
        let signature = self.page_signer.hash_one((lane, selection, walk.position, walk.end));
        format!("{:08x}{:08x}{signature:016x}", walk.position, walk.end)
    }
}

fn read_token(token: &str) -> Option<Walk> {
    let number = |from, to| u32::from_str_radix(token.get(from..to)?, 16).ok();
    let walk = Walk { position: number(0, 8)?, end: number(8, 16)? };
    (walk.position <= walk.end).then_some(walk)
}

/// What became of an entry that matched.
enum Taken {
    /// The page is full without it.
    NotThis,
    /// It is on the page, which is full.
    AndFull,
    /// It is on the page.
    AndMore,
}
