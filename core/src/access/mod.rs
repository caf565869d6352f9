//! Who may do what: identities, what they are granted, and the table of both that calls are looked up in.
//!
//! [`Access`] is compiled from the platform file and the requests' `access:`, on the control thread, and replaced as a whole. A
//! shard's [`Gate`] finds out once per connection and epoch who calls, and then reads one byte of the table per call. What is not
//! granted is denied. A refusal says nothing of what there is: why stands in the log.

mod caller;
mod failures;
mod gate;
pub(crate) mod keys;
mod provider;
mod tokens;
mod watch;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use caller::Caller;
pub(crate) use gate::{Asking, Called, Gate, permission_denied, who_connects};
use keys::{KeyStore, Remote};
use tokens::Issuer;

use crate::config::access::{AnonymousFrom, Grant, GrantMay};
use crate::config::platform::Platform;
use crate::config::request::{Api, Document, May, Who};
use crate::namespaces::Namespaces;

/// May read.
const READ: u8 = 1;
/// May write.
const WRITE: u8 = 2;
/// May change the namespace itself.
const ADMIN: u8 = 4;

/// The row of those who are somebody, but nobody that the platform knows.
const STRANGER: u32 = 0;
/// The row of those who do not say who they are.
const ANONYMOUS: u32 = 1;
/// The row of the first identity.
const FIRST: u32 = 2;

/// Who is who and may what, at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    issuers: Vec<Issuer>,
    identities: Vec<Known>,
    anonymous_from: Option<AnonymousFrom>,
    /// What each may, by the namespace's id.
    rows: Vec<Box<[u8]>>,
    /// Which namespaces each may change whether they are there or still to come, by row.
    changes: Vec<Vec<Reign>>,
}

/// Namespaces that somebody was granted to change, by their names.
#[derive(Debug, Clone)]
struct Reign {
    names: Pattern,
    /// Only those that serve this.
    api: Option<Api>,
}

/// An identity that the platform knows.
#[derive(Debug, Clone)]
struct Known {
    pattern: Pattern,
    /// Of tokens; `None`: of certificates.
    issuer: Option<Box<str>>,
    team: Box<str>,
}

/// A text, or how it begins.
#[derive(Debug, Clone)]
struct Pattern {
    begin: Box<str>,
    is_whole: bool,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let begin = text.strip_suffix('*');
        Self { begin: begin.unwrap_or(text).into(), is_whole: begin.is_none() }
    }

    fn matches(&self, text: &str) -> bool {
        if self.is_whole { text == &*self.begin } else { text.starts_with(&*self.begin) }
    }
}

const fn rights(may: GrantMay) -> u8 {
    match may {
        GrantMay::Read => READ,
        GrantMay::Write => READ | WRITE,
        GrantMay::Admin => READ | WRITE | ADMIN,
    }
}

impl Access {
    /// Compiles the table. `None` where the platform knows no identities: everybody may do everything then. Fails where the keys
    /// of an issuer cannot be read from their file; those of a URL may come later.
    pub(crate) fn compile(
        platform: &Platform,
        requests: &[Document],
        namespaces: &Namespaces,
        keys: &KeyStore,
    ) -> Result<Option<Self>, String> {
        let is_configured = !platform.identities.is_empty()
            || !platform.tokens.is_empty()
            || !platform.grants.is_empty()
            || platform.anonymous.is_some();
        if !is_configured {
            return Ok(None);
        }
        let issuers = platform.tokens.iter().map(|issuer| Issuer::load(issuer, keys));
        let issuers = issuers.collect::<Result<_, _>>()?;
        let ids = namespaces.iter().map(|namespace| namespace.id as usize + 1).max().unwrap_or(0);
        let mut rows = vec![vec![0; ids].into_boxed_slice(); FIRST as usize];
        let mut changes: Vec<Vec<Reign>> = vec![Vec::new(), Vec::new()];
        if let Some(anonymous) = &platform.anonymous {
            let pattern = Pattern::new(&anonymous.value.namespace.value.0);
            if anonymous.value.may.value == GrantMay::Admin {
                let names = Pattern::new(&anonymous.value.namespace.value.0);
                changes[ANONYMOUS as usize].push(Reign { names, api: None });
            }
            for namespace in namespaces.iter().filter(|of| pattern.matches(&of.name)) {
                rows[ANONYMOUS as usize][namespace.id as usize] = rights(anonymous.value.may.value);
            }
        }
        for identity in &platform.identities {
            let team = &identity.team.value;
            let service = identity.service.as_ref().map(|service| &service.value);
            let is_meant = |who: &Who| match who {
                Who::Team(name) => name == team,
                Who::Service(name) => Some(name) == service,
            };
            let to_this = |grant: &&Grant| grant.who().is_some_and(|who| is_meant(&who));
            let reigns = platform.grants.iter().filter(to_this).filter_map(|grant| {
                let names = Pattern::new(&grant.namespace.value.0);
                let api = grant.api.map(|api| api.value);
                (grant.may.value == GrantMay::Admin).then_some(Reign { names, api })
            });
            changes.push(reigns.collect());
            let mut row = vec![0; ids];
            for namespace in namespaces.iter() {
                let allowed = &mut row[namespace.id as usize];
                for grant in platform.grants.iter().filter(to_this) {
                    let api = grant.api.map(|api| api.value.name());
                    if Pattern::new(&grant.namespace.value.0).matches(&namespace.name)
                        && api.is_none_or(|api| api == namespace.api.name())
                    {
                        *allowed |= rights(grant.may.value);
                    }
                }
                let request = requests
                    .iter()
                    .map(|document| &document.request)
                    .find(|request| request.namespace.value.0 == *namespace.name);
                let Some(request) = request else { continue };
                let owners = &request.access.owners;
                if request.team.value == *team || owners.iter().any(|one| is_meant(&one.who.value))
                {
                    *allowed |= rights(GrantMay::Admin);
                }
                for one in request.access.consumers.iter().filter(|one| is_meant(&one.who.value)) {
                    *allowed |= match one.may {
                        May::Read => rights(GrantMay::Read),
                        May::Write => rights(GrantMay::Write),
                    };
                }
            }
            rows.push(row.into_boxed_slice());
        }
        let known = platform.identities.iter().map(|identity| Known {
            pattern: Pattern::new(&identity.id.value.0),
            issuer: identity.issuer.as_ref().map(|issuer| issuer.value.0.as_str().into()),
            team: identity.team.value.0.as_str().into(),
        });
        let identities = known.collect();
        let anonymous_from =
            platform.anonymous.as_ref().map(|anonymous| anonymous.value.from.value);
        Ok(Some(Self { issuers, identities, anonymous_from, rows, changes }))
    }

    /// The same with the last good keys of those issuers that have them at a URL.
    fn with_keys_of(&self, keys: &KeyStore) -> Self {
        let issuers = self.issuers.iter().map(|issuer| issuer.with_keys_of(keys)).collect();
        Self { issuers, ..self.clone() }
    }

    /// The row of an identity: of those that match it, the one that says most.
    fn row_of(&self, id: &str, issuer: Option<&str>) -> u32 {
        let of =
            self.identities.iter().enumerate().filter(|(_, known)| {
                known.issuer.as_deref() == issuer && known.pattern.matches(id)
            });
        let best = of.max_by_key(|(_, known)| (known.pattern.is_whole, known.pattern.begin.len()));
        best.map_or(STRANGER, |(index, _)| FIRST + index as u32)
    }

    #[inline]
    fn rights(&self, row: u32, namespace: u32) -> u8 {
        let row = self.rows.get(row as usize);
        row.and_then(|row| row.get(namespace as usize)).copied().unwrap_or(0)
    }
}

/// The table that is in force, for all shards.
#[derive(Debug)]
pub(crate) struct InForce {
    /// Changes with the table; never 0.
    epoch: AtomicU32,
    table: Mutex<Arc<Access>>,
    /// Held by who makes a new table out of what there is.
    changing: Mutex<()>,
}

impl InForce {
    pub(crate) fn new(access: Access) -> Arc<Self> {
        Arc::new(Self {
            epoch: AtomicU32::new(1),
            table: Mutex::new(Arc::new(access)),
            changing: Mutex::default(),
        })
    }

    /// The right to make another table; nobody else makes one while it is held.
    pub(crate) fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where issuers have their keys that have them at a URL.
    fn remotes(&self) -> Vec<Remote> {
        let (_, table) = self.table();
        table.issuers.iter().filter_map(|issuer| issuer.remote.clone()).collect()
    }

    /// From now on this table is in force; every shard sees it with its next call.
    pub(crate) fn replace(&self, access: Access) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        *table = Arc::new(access);
        // Of some four thousand million replacements one would be missed.
        let next = self.epoch.load(Ordering::Relaxed).wrapping_add(1).max(1);
        self.epoch.store(next, Ordering::Release);
    }

    #[inline]
    fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    fn table(&self) -> (u32, Arc<Access>) {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        (self.epoch(), table.clone())
    }
}
