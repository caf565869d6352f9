//! Query over keys and values: as a scan finds them, or by key.
//!
//! In the order of keys a walk over all keys keeps the next [`WALK_KEYS`] of them, and pages are cut from those; nothing is sorted
//! that is larger.

use std::collections::BTreeSet;

use bytes::Bytes;
use prism_proto::catalogue::{Interface, Interfaces, Method};
use prism_proto::prism::keyvalue::v1::{self as keyvalue, scan_keys_request};
use prism_proto::prism::reader::v1 as reader;
use prism_proto::prism::r#type::v1::{Start, start};
use prost::Message as _;

use super::request::{
    End, Of, Read, check_filter, check_source, key_prefix, malformed, not_readable, page_size,
};
use super::walk::{Out, unreadable};
use super::{cursor, get_key};
use crate::backend::{Backend, wrong_shape};
use crate::call::{Context, PageSink};
use crate::error::{Error, Kind};
use crate::filter::Filter;
use crate::interfaces::keyvalue_selection::PAGE_BYTES;

/// Keys that one walk keeps, at least a page's worth: at most 4 MiB of them.
const WALK_KEYS: usize = 4096;

/// Before the last key of a page in the order of keys.
const BEHIND: &str = "a.";
const BEFORE: &str = "d.";

/// A query.
pub(super) struct Query {
    filter: Filter,
    /// By key, and whether the largest is first.
    by_key: Option<bool>,
    page_size: usize,
    page_token: String,
}

impl Query {
    pub(super) fn new(request: &[u8], offered: Interfaces) -> Result<Query, Error> {
        let asked = reader::QueryRequest::decode(request).map_err(malformed)?;
        let of = check_source(asked.source, Interface::KeyValueScan, offered)?;
        if of != Of::Keys {
            return Err(not_readable("", "by Query, what has no keys of its own"));
        }
        if !asked.fields.is_empty() {
            let expected = "must be empty: values are bytes without fields";
            return Err(Error::field("FIELDS_INVALID", "fields", expected));
        }
        let by_key = match asked.sort.as_slice() {
            [] => None,
            [by] if by.field == "key" => Some(by.descending),
            _ => {
                let message = "only the order of keys can be had here, `sort: [{field: \"key\"}]`: any other needs an index, \
                               and values have none";
                return Err(Error::new(Kind::FailedPrecondition, "INDEX_REQUIRED", message));
            }
        };
        let query = Query {
            filter: check_filter(&asked.filter)?,
            by_key,
            page_size: page_size(asked.page_size),
            page_token: asked.page_token,
        };
        query.place()?;
        Ok(query)
    }

    /// The key that a page in the order of keys begins after.
    fn place(&self) -> Result<Option<String>, Error> {
        let Some(descending) = self.by_key else {
            cursor::page_token(&self.start())?;
            return Ok(None);
        };
        if self.page_token.is_empty() {
            return Ok(None);
        }
        let mark = if descending { BEFORE } else { BEHIND };
        let key = self.page_token.strip_prefix(mark).map(str::to_owned);
        key.map(Some).ok_or_else(token_invalid)
    }

    /// Where the scan begins.
    fn start(&self) -> Start {
        let start = match self.page_token.as_str() {
            "" => start::Start::Earliest(()),
            token => start::Start::Cursor(token.to_owned()),
        };
        Start { start: Some(start) }
    }

    pub(super) async fn answer<B: Backend, S: PageSink>(
        self,
        backend: &B,
        context: &Context<'_>,
        sink: &mut S,
    ) -> Result<(), Error> {
        if let Some(descending) = self.by_key {
            return self.in_order(backend, context, descending, sink).await;
        }
        let read = Read {
            of: Of::Keys,
            start: self.start(),
            end: End::Natural,
            partitions: Vec::new(),
            key_prefix: String::new(),
            filter: self.filter,
            follow: false,
            page_size: self.page_size,
            limit: 0,
        };
        super::read_into((backend, None), context, read, &mut QueryPages { sink }).await
    }

    async fn in_order<B: Backend, S: PageSink>(
        self,
        backend: &B,
        context: &Context<'_>,
        descending: bool,
        sink: &mut S,
    ) -> Result<(), Error> {
        let mut place = self.place()?;
        let walk_keys = self.page_size.max(WALK_KEYS);
        loop {
            let mut nearest = Nearest {
                filter: &self.filter,
                after: place.take(),
                descending,
                // One more tells whether there are more.
                keys_max: walk_keys + 1,
                keys: BTreeSet::new(),
                now_us: sink.now_us(),
            };
            let prefix = Some(key_prefix(&self.filter)).filter(|prefix| !prefix.is_empty());
            let prefix =
                prefix.map(|prefix| scan_keys_request::Selection::Prefix(prefix.to_owned()));
            let request = keyvalue::ScanKeysRequest {
                namespace: context.namespace_name.to_owned(),
                selection: prefix,
                ..keyvalue::ScanKeysRequest::default()
            };
            let (bytes, now) =
                (request.encode_to_vec(), Context { now_us: sink.now_us(), ..*context });
            backend.stream(&now, Method::KEYVALUE_SCAN_KEYS, &bytes, &mut nearest).await?;
            let mut keys: Vec<String> = nearest.keys.into_iter().collect();
            if descending {
                keys.reverse();
            }
            let is_last = keys.len() <= walk_keys;
            keys.truncate(walk_keys);
            place = keys.last().cloned();
            let (mut records, mut page_bytes) = (Vec::new(), 0);
            let last = keys.len().saturating_sub(1);
            let token = |key: &str, is_end: bool| match (is_end, descending) {
                (true, _) => String::new(),
                (false, true) => format!("{BEFORE}{key}"),
                (false, false) => format!("{BEHIND}{key}"),
            };
            let is_empty = keys.is_empty();
            for (index, key) in keys.into_iter().enumerate() {
                let now = Context { now_us: sink.now_us(), ..*context };
                let found = get_key(backend, &now, key.clone()).await?;
                page_bytes += found.as_ref().map_or(0, prost::Message::encoded_len);
                records.extend(found);
                let is_full = records.len() >= self.page_size || page_bytes >= PAGE_BYTES;
                if is_full || index == last {
                    let next_page_token = token(&key, is_last && index == last);
                    let page = reader::QueryResponse {
                        records: std::mem::take(&mut records),
                        next_page_token,
                    };
                    page_bytes = 0;
                    sink.send(page.encode_to_vec().into()).await?;
                }
            }
            if is_empty {
                sink.send(reader::QueryResponse::default().encode_to_vec().into()).await?;
            }
            if is_last {
                return Ok(());
            }
        }
    }
}

#[cold]
fn token_invalid() -> Error {
    let expected = "must be a token as it was told, of the same request";
    Error::field("PAGE_TOKEN_INVALID", "page_token", expected)
}

/// Pages of Query for a caller.
struct QueryPages<'a, S> {
    sink: &'a mut S,
}

impl<S: PageSink> Out for QueryPages<'_, S> {
    async fn page(
        &mut self,
        records: Vec<reader::Record>,
        cursor: &str,
        _: bool,
    ) -> Result<(), Error> {
        let next_page_token = if cursor == cursor::END { "" } else { cursor }.to_owned();
        let page = reader::QueryResponse { records, next_page_token };
        self.sink.send(page.encode_to_vec().into()).await
    }

    fn now_us(&self) -> u64 {
        self.sink.now_us()
    }

    async fn wait(&mut self, event: impl Future<Output = ()>, until_us: u64) -> Result<(), Error> {
        self.sink.wait(event, until_us).await
    }
}

/// The next keys in their order, of all that a scan finds.
struct Nearest<'a> {
    filter: &'a Filter,
    after: Option<String>,
    descending: bool,
    keys_max: usize,
    keys: BTreeSet<String>,
    now_us: u64,
}

impl Nearest<'_> {
    fn take(&mut self, key: String) {
        let is_behind = self.after.as_ref().is_none_or(|after| match self.descending {
            true => key < *after,
            false => key > *after,
        });
        let fields = |name: &str| (name == "key").then_some(key.as_str());
        if !is_behind || !self.filter.matches(fields) {
            return;
        }
        self.keys.insert(key);
        if self.keys.len() > self.keys_max {
            match self.descending {
                true => self.keys.pop_first(),
                false => self.keys.pop_last(),
            };
        }
    }
}

impl PageSink for Nearest<'_> {
    async fn send(&mut self, message: Bytes) -> Result<(), Error> {
        let page = keyvalue::ScanKeysResponse::decode(message).map_err(unreadable)?;
        page.keys.into_iter().for_each(|key| self.take(key));
        Ok(())
    }

    fn now_us(&self) -> u64 {
        self.now_us
    }

    async fn wait(&mut self, _: impl Future<Output = ()>, _: u64) -> Result<(), Error> {
        Err(wrong_shape(Method::READER_QUERY))
    }

    async fn write(&mut self, method: Method, _: Vec<u8>) -> Result<Bytes, Error> {
        Err(wrong_shape(method))
    }
}
