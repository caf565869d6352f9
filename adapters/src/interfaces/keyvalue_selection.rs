//! Which keys a scan or a count is about, and how its pages are laid out; the same on every backend.

use prism_proto::view::keyvalue::{
    CountRequestSelection, ScanKeysRequestSelection, ScanRequestSelection,
};
use prism_proto::wire;

use crate::glob::Glob;
use crate::limits::{PAGE_ENTRIES_DEFAULT, PAGE_ENTRIES_MAX};

/// A page ends when it has so many bytes.
pub(crate) const PAGE_BYTES: usize = 64 * 1024;

/// Field numbers of a page: what was found, and the token that continues after it.
pub(crate) const PAGE_ITEMS_FIELD: u32 = 1;
pub(crate) const PAGE_TOKEN_FIELD: u32 = 2;

/// Which keys.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) enum Selection<'a> {
    All,
    Prefix(&'a [u8]),
    Glob(&'a [u8]),
}

impl<'a> Selection<'a> {
    /// What every selected key begins with.
    pub(crate) fn literal_prefix(self) -> &'a [u8] {
        match self {
            Selection::All => b"",
            Selection::Prefix(prefix) => prefix,
            Selection::Glob(glob) => Glob::parse(glob).map_or(b"", |glob| glob.literal_prefix()),
        }
    }
}

macro_rules! selection_from {
    ($($request:ident),*) => {
        $(impl<'a> From<Option<$request<'a>>> for Selection<'a> {
            fn from(selection: Option<$request<'a>>) -> Self {
                match selection {
                    None => Selection::All,
                    Some($request::Prefix(prefix)) => Selection::Prefix(prefix.as_bytes()),
                    Some($request::Glob(glob)) => Selection::Glob(glob.as_bytes()),
                }
            }
        })*
    };
}

selection_from!(CountRequestSelection, ScanRequestSelection, ScanKeysRequestSelection);

/// Says of one key after the other whether it is selected.
pub(crate) enum Matcher<'a> {
    Prefix(&'a [u8]),
    Glob(Option<Glob<'a>>),
}

impl<'a> Matcher<'a> {
    pub(crate) fn new(selection: Selection<'a>) -> Self {
        match selection {
            Selection::All => Matcher::Prefix(b""),
            Selection::Prefix(prefix) => Matcher::Prefix(prefix),
            Selection::Glob(glob) => Matcher::Glob(Glob::parse(glob).ok()),
        }
    }

    pub(crate) fn matches(&self, key: &[u8]) -> bool {
        match self {
            Matcher::Prefix(prefix) => key.starts_with(prefix),
            Matcher::Glob(glob) => glob.is_some_and(|glob| glob.matches(key)),
        }
    }
}

/// How many entries a page may have, for what the caller asked.
pub(crate) fn page_entries(page_size: u32) -> usize {
    match page_size as usize {
        0 => PAGE_ENTRIES_DEFAULT,
        size => size.min(PAGE_ENTRIES_MAX),
    }
}

/// A page that is being filled.
pub(crate) struct Page {
    bytes: Vec<u8>,
    entries: usize,
    entries_max: usize,
    bytes_max: usize,
    is_full: bool,
}

impl Page {
    /// An empty one for so many entries, of so many bytes.
    pub(crate) fn new(entries_max: usize, bytes_max: usize) -> Self {
        Page { bytes: Vec::new(), entries: 0, entries_max, bytes_max, is_full: false }
    }

    /// Adds one item of so many bytes, written by `write`, unless the page has no room for it; the first always has.
    pub(crate) fn put(&mut self, length: usize, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let room = self.bytes_max.saturating_sub(self.bytes.len());
        if !self.bytes.is_empty() && wire::bytes_field_len(PAGE_ITEMS_FIELD, length) > room {
            self.is_full = true;
            return false;
        }
        write(&mut self.bytes);
        self.entries += 1;
        self.is_full = self.entries == self.entries_max || self.bytes.len() >= PAGE_BYTES;
        true
    }

    /// Takes nothing more.
    pub(crate) fn fill(&mut self) {
        self.is_full = true;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// How many entries it can still take.
    pub(crate) fn entries_left(&self) -> usize {
        self.entries_max - self.entries
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
