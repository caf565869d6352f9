//! PostgreSQL's scans: the primary key in its bytewise order, a page after the other.
//!
//! PostgreSQL seeks to the literal prefix, Prism matches the rest of a glob and ends where the prefix does. A page token is the last
//! key that was told, signed for the namespace and the selection: so none is missed or told twice that was there throughout, and a
//! token outlives Prism.

use std::hash::{Hash, Hasher};

use prism_proto::view::keyvalue::{CountRequest, CountResponse, ScanKeysRequest, ScanRequest};
use prism_proto::view::types::Entry;
use prism_proto::wire;
use siphasher::sip::SipHasher13;

use super::Postgres;
use super::batch::{Answer, Operation};
use super::codec::{Parameters, Row};
use super::errors;
use super::keyvalue::{Stored, is_live, value_bytes_max};
use super::statements::Statement;
use crate::call::{Context, PageSink, Reply};
use crate::error::Error;
use crate::interfaces::keyvalue::KeyValueScan;
use crate::interfaces::keyvalue_selection::{
    Matcher, PAGE_BYTES, PAGE_ITEMS_FIELD, PAGE_TOKEN_FIELD, Page, Selection, page_entries,
};
use crate::limits::{COUNT_MAX_DEFAULT, KEY_BYTES_MAX, check_key};

/// Keys of one read of a count.
const COUNT_KEYS: usize = 5_000;

/// Keys of one read of a scan, at least: a glob may leave few of them.
const SCAN_KEYS_MIN: usize = 64;

/// Keys of one read with values.
const ENTRIES_MAX: usize = 256;

/// A page ends after so many reads, even if they have found nothing.
const PAGE_READS_MAX: usize = 64;

/// Room for the page token at the end of a page: a signature and a key.
const TOKEN_BYTES_MAX: usize = KEY_BYTES_MAX + 32;

/// Keys of the signature's hash: the same everywhere, because tokens are.
const HASH_KEYS: (u64, u64) = (0x7072_6973_6d2d_7363, 0x616e_2d70_6f73_7467);

/// What a page tells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tell {
    Keys,
    Entries,
}

/// A walk over keys.
struct Walk<'a> {
    prefix: &'a str,
    matcher: Matcher<'a>,
    /// The last key that was looked at.
    after: String,
    is_over: bool,
}

impl<'a> Walk<'a> {
    fn new(selection: Selection<'a>, after: String) -> Self {
        let prefix = selection.literal_prefix();
        // A glob is cut between characters: its prefix is the part that is whole.
        let prefix = match std::str::from_utf8(prefix) {
            Ok(prefix) => prefix,
            Err(error) => std::str::from_utf8(&prefix[..error.valid_up_to()]).unwrap_or_default(),
        };
        Walk { prefix, matcher: Matcher::new(selection), after, is_over: false }
    }

    fn parameters(&self, limit: usize) -> Parameters {
        Parameters::default()
            .bytes(self.after.as_bytes())
            .bytes(self.prefix.as_bytes())
            .int8(limit as i64)
    }

    /// Whether a row is within the walk; the key if it is to be told.
    fn key_of<'r>(&mut self, context: &Context<'_>, row: &'r Row) -> Option<&'r str> {
        if self.is_over || !row.key.starts_with(self.prefix.as_bytes()) {
            self.is_over = true;
            return None;
        }
        let key = std::str::from_utf8(&row.key).ok()?;
        // A key that no call can name is somebody else's.
        let ours = check_key("key", key).is_ok();
        (ours && is_live(context, row) && self.matcher.matches(&row.key)).then_some(key)
    }
}

impl KeyValueScan for Postgres {
    async fn count(
        &self,
        context: &Context<'_>,
        request: CountRequest<'_>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let mut walk = Walk::new(Selection::from(request.selection), String::new());
        let limit = if request.limit == 0 { COUNT_MAX_DEFAULT } else { request.limit };
        let (mut count, mut exact) = (0, true);
        'walk: while !walk.is_over {
            let answer = self.keys(context, &walk, COUNT_KEYS).await?;
            walk.is_over = answer.rows.len() < COUNT_KEYS;
            let mut is_over = walk.is_over;
            walk.is_over = false;
            for (_, row) in &answer.rows {
                if walk.key_of(context, row).is_some() {
                    if count == limit {
                        exact = false;
                        break 'walk;
                    }
                    count += 1;
                }
                is_over |= walk.is_over;
            }
            walk.is_over = is_over;
            advance(&mut walk, &answer);
        }
        CountResponse { count, exact }.encode(&mut reply.head);
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

/// The walk goes on after the last key that was read.
fn advance(walk: &mut Walk<'_>, answer: &Answer) {
    if let Some((_, row)) = answer.rows.last() {
        walk.after = String::from_utf8_lossy(&row.key).into_owned();
    }
}

impl Postgres {
    async fn keys(
        &self,
        context: &Context<'_>,
        walk: &Walk<'_>,
        limit: usize,
    ) -> Result<Answer, Error> {
        let parameters = walk.parameters(limit);
        let operation = Operation::Other { statement: Statement::Keys, parameters, versions: 0 };
        self.read(context, vec![operation]).await
    }

    async fn entries(
        &self,
        context: &Context<'_>,
        walk: &Walk<'_>,
        limit: usize,
    ) -> Result<Answer, Error> {
        let parameters =
            walk.parameters(limit).int8(PAGE_BYTES as i64).int4(value_bytes_max(context));
        let operation = Operation::Other { statement: Statement::Entries, parameters, versions: 0 };
        self.read(context, vec![operation]).await
    }

    async fn send_pages<S: PageSink>(
        &self,
        context: &Context<'_>,
        selection: Selection<'_>,
        page_size: u32,
        page_token: &str,
        tell: Tell,
        sink: &mut S,
    ) -> Result<(), Error> {
        let mut walk = Walk::new(selection, read_token(context, selection, page_token)?);
        let entries_max = page_entries(page_size);
        loop {
            let bytes_max = context.limits.max_message_size.saturating_sub(TOKEN_BYTES_MAX);
            let mut page = Page::new(entries_max, bytes_max);
            let mut reads = 0;
            while !page.is_full() && !walk.is_over && reads < PAGE_READS_MAX {
                reads += 1;
                let now_us = sink.now_us().max(context.now_us);
                let context = Context { now_us, ..*context };
                self.fill(&context, &mut walk, &mut page, tell).await?;
            }
            let mut bytes = page.into_bytes();
            let last = walk.is_over;
            if !last {
                let token = sign(context, selection, &walk.after);
                wire::put_bytes(&mut bytes, PAGE_TOKEN_FIELD, token.as_bytes());
            }
            sink.send(bytes.into()).await?;
            if last {
                return Ok(());
            }
        }
    }

    /// Reads on and puts what is found on the page, as far as it has room.
    async fn fill(
        &self,
        context: &Context<'_>,
        walk: &mut Walk<'_>,
        page: &mut Page,
        tell: Tell,
    ) -> Result<(), Error> {
        // One more than has room tells whether there is more.
        let wanted = (page.entries_left() + 1).max(SCAN_KEYS_MIN);
        let (answer, limit) = match tell {
            Tell::Keys => (self.keys(context, walk, wanted).await?, wanted),
            Tell::Entries => {
                let limit = wanted.min(ENTRIES_MAX);
                (self.entries(context, walk, limit).await?, limit)
            }
        };
        let is_last = answer.rows.len() < limit;
        for (place, (_, row)) in answer.rows.iter().enumerate() {
            let key = walk.key_of(context, row);
            if walk.is_over {
                return Ok(());
            }
            if page.is_full() && key.is_some() {
                return Ok(());
            }
            if let Some(key) = key {
                let told = match tell {
                    Tell::Keys => page.put(key.len(), |page| {
                        wire::put_bytes(page, PAGE_ITEMS_FIELD, key.as_bytes());
                    }),
                    // What follows another waits for the next read.
                    Tell::Entries if row.value.is_none() && place > 0 => return Ok(()),
                    Tell::Entries => {
                        let stored = Stored::read(context, row)?;
                        let stored = stored.ok_or_else(|| errors::too_large(context))?;
                        let entry = Entry { key: Some(key), ..stored.view() };
                        let length = entry.encoded_len();
                        page.put(length, |page| {
                            wire::put_length(page, PAGE_ITEMS_FIELD, length);
                            entry.encode(page);
                        })
                    }
                };
                if !told {
                    return Ok(());
                }
            }
            walk.after = String::from_utf8_lossy(&row.key).into_owned();
        }
        walk.is_over = is_last;
        Ok(())
    }
}

/// A page token: where the page has ended, signed for the namespace and what was asked for.
pub(super) fn sign(context: &Context<'_>, selection: impl Hash, after: &str) -> String {
    let mut hasher = SipHasher13::new_with_keys(HASH_KEYS.0, HASH_KEYS.1);
    (context.namespace, context.namespace_name, context.partition).hash(&mut hasher);
    (selection, after).hash(&mut hasher);
    format!("{:016x}{after}", hasher.finish())
}

/// Where the page before has ended; empty for the first page.
pub(super) fn read_token(
    context: &Context<'_>,
    selection: impl Hash,
    token: &str,
) -> Result<String, Error> {
    if token.is_empty() {
        return Ok(String::new());
    }
    let after = token.get(16..).unwrap_or_default();
    match sign(context, selection, after) == token {
        true => Ok(after.to_owned()),
        false => {
            let expected = "does not belong to this namespace and selection: begin without one";
            Err(Error::field("PAGE_TOKEN_INVALID", "page_token", expected))
        }
    }
}
