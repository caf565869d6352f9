//! The keys that issuers have at a URL: got on a thread of their own, again and again, and the last good ones are kept.
//!
//! A failure never takes keys away: it is counted, told, and tried again. The last good ones are in the data directory as well
//! ([`FILE`]), for a start while they cannot be got. Until keys could be got for the first time, an issuer has none, and none of its
//! tokens is taken.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prism_io::disk;
use prism_io::http1::fetch::{Url, fetch};
use prism_io::tls::Roots;
use serde::{Deserialize, Serialize};

use super::InForce;
use super::tokens::{KEYS_BYTES_MAX, Key, keys_of};

/// How long one try may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failure it is tried again this soon, or at the usual time where that is sooner.
const RETRY: Duration = Duration::from_secs(30);
/// The last good keys, in the data directory: public ones, as they were got.
const FILE: &str = "keys.json";
/// Keys are got again this often, unless the issuer says otherwise.
pub(super) const REFRESH: Duration = Duration::from_secs(300);

/// Where an issuer's keys are.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub(super) url: Url,
    /// Whose certificate its server has to have.
    pub(super) roots: Roots,
    /// How often they are got again.
    pub(super) refresh: Duration,
}

/// The keys that were got, for all issuers.
#[derive(Debug, Default)]
pub(crate) struct KeyStore {
    /// By URL.
    good: Mutex<HashMap<String, Good>>,
    /// Where they are kept over a restart.
    directory: Option<PathBuf>,
    fetched: AtomicU64,
    failed: AtomicU64,
}

#[derive(Debug)]
struct Good {
    text: Vec<u8>,
    at: Instant,
    /// An earlier process has got them, and this one has not tried yet.
    is_of_before: bool,
}

/// Keys as they are kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// When they were got, in seconds of Unix time.
    at_s: u64,
    text: String,
}

impl KeyStore {
    /// One that keeps them in a data directory, with those that are there.
    pub(crate) fn kept_in(directory: &Path) -> Self {
        let read = disk::read_whole(directory, FILE).and_then(|text| match text {
            Some(text) => serde_json::from_slice(&text).map_err(std::io::Error::other),
            None => Ok(BTreeMap::new()),
        });
        let kept: BTreeMap<String, Kept> = read.unwrap_or_else(|error| {
            let file = directory.join(FILE);
            tracing::warn!("{} cannot be read, and keys are got anew: {error}", file.display());
            BTreeMap::new()
        });
        let now_s = unix_s();
        let good = kept.into_iter().map(|(url, Kept { at_s, text })| {
            let age = Duration::from_secs(now_s.saturating_sub(at_s));
            let at = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
            (url, Good { text: text.into_bytes(), at, is_of_before: true })
        });
        let good = Mutex::new(good.collect());
        Self { good, directory: Some(directory.to_owned()), ..Self::default() }
    }

    /// Keeps what is good now over a restart.
    fn keep(&self) {
        let Some(directory) = &self.directory else { return };
        let now_s = unix_s();
        let kept: BTreeMap<_, _> = self
            .good()
            .iter()
            .map(|(url, good)| {
                let at_s = now_s.saturating_sub(good.at.elapsed().as_secs());
                let text = String::from_utf8_lossy(&good.text).into_owned();
                (url.clone(), Kept { at_s, text })
            })
            .collect();
        let written = serde_json::to_vec_pretty(&kept).map_err(std::io::Error::other);
        if let Err(error) = written.and_then(|text| disk::replace_whole(directory, FILE, &text)) {
            let file = directory.join(FILE);
            tracing::warn!(
                "{} cannot be written, and a start may be without keys: {error}",
                file.display()
            );
        }
    }

    /// The last good keys; got now where this process has not tried yet, and none where there are none.
    pub(super) fn known(&self, remote: &Remote) -> Vec<Key> {
        let is_tried = match self.good().get_mut(&remote.url.to_string()) {
            Some(good) => !std::mem::replace(&mut good.is_of_before, false),
            None => false,
        };
        if !is_tried {
            self.refresh(remote);
        }
        self.last(remote)
    }

    /// The last good keys; none where there are none yet.
    pub(super) fn last(&self, remote: &Remote) -> Vec<Key> {
        let good = self.good();
        let good = good.get(&remote.url.to_string());
        good.and_then(|good| keys_of(&good.text).ok()).unwrap_or_default()
    }

    /// Gets keys again; whether they are others than before, or `None` where that failed.
    fn refresh(&self, remote: &Remote) -> Option<bool> {
        let got = fetch(&remote.url, &remote.roots, KEYS_BYTES_MAX as usize, FETCH_TIMEOUT);
        match got.and_then(|text| keys_of(&text).map(|_| text)) {
            Ok(text) => {
                self.fetched.fetch_add(1, Ordering::Relaxed);
                let (at, is_of_before) = (Instant::now(), false);
                let new = Good { text: text.clone(), at, is_of_before };
                let before = self.good().insert(remote.url.to_string(), new);
                self.keep();
                Some(before.is_none_or(|before| before.text != text))
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                let goes_on = match self.good().contains_key(&remote.url.to_string()) {
                    true => "those before stay in force",
                    false => "no token of this issuer is taken until they can",
                };
                tracing::error!("the keys at {} cannot be got: {error}; {goes_on}", remote.url);
                None
            }
        }
    }

    fn good(&self) -> MutexGuard<'_, HashMap<String, Good>> {
        self.good.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often keys were got, how often that failed, and how old the oldest are.
    pub(crate) fn numbers(&self) -> (u64, u64, Option<Duration>) {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let oldest = self.good().values().map(|good| good.at.elapsed()).max();
        (read(&self.fetched), read(&self.failed), oldest)
    }
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Gets keys again when it is time, and whenever it is told to, until nobody can tell it any more.
fn keep_fresh(store: &KeyStore, in_force: &InForce, told: &Receiver<()>) {
    // At the start, perhaps.
    let mut has_failed = store.numbers().1 > 0;
    loop {
        let remotes = in_force.remotes();
        let usual = remotes.iter().map(|remote| remote.refresh).min();
        let wait = usual.map(|usual| if has_failed { usual.min(RETRY) } else { usual });
        let heard = match wait {
            Some(wait) => told.recv_timeout(wait),
            None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        if heard == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        let outcomes: Vec<_> =
            in_force.remotes().iter().map(|remote| store.refresh(remote)).collect();
        has_failed = outcomes.contains(&None);
        if outcomes.contains(&Some(true)) {
            let _changing = in_force.change();
            let (_, table) = in_force.table();
            in_force.replace(table.with_keys_of(store));
            tracing::info!("an issuer's keys were replaced by those at its URL");
        }
    }
}

/// Starts [`keep_fresh`] on a thread; what it returns tells it to look now.
pub(crate) fn start(
    store: Arc<KeyStore>,
    in_force: Arc<InForce>,
) -> std::io::Result<std::sync::mpsc::SyncSender<()>> {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("keys".to_owned());
    thread.spawn(move || keep_fresh(&store, &in_force, &told))?;
    Ok(tell)
}
