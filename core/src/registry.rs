//! What a data directory remembers of itself: its id, the number of its logs, the id and home of every namespace that it ever
//! held, and what was applied ([`crate::applied`]).
//!
//! Kept in `registry.json`, replaced as a whole before the first request of a start is served, and with every change of what is
//! applied: an id and the request that asked for it come at once. Ids are never used again, and a namespace that is no longer
//! configured keeps its data.

use std::io;
use std::path::Path;

use prism_io::disk;
use serde::{Deserialize, Serialize};

use crate::applied::Applied;
use crate::namespaces::rendezvous;

/// The file's name.
pub(crate) const FILE: &str = "registry.json";
/// The format that this version writes and reads.
const FORMAT: u32 = 1;
/// As [`FORMAT`], with what was applied: a version that does not know of it would serve less than was asked for.
const FORMAT_APPLIED: u32 = 2;

/// The contents of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Registry {
    format: u32,
    /// 128 random bits in hexadecimal; seeds what must differ between data directories.
    pub(crate) data_directory: String,
    /// How often a process has started on this directory.
    pub(crate) starts: u32,
    /// The number of logs that are known to be there: each of their shards has served.
    #[serde(default)]
    pub(crate) logs: usize,
    /// The number of shards; a log may be missing that was never begun.
    pub(crate) shards: usize,
    namespaces: Vec<Placed>,
    /// What was applied.
    #[serde(default, skip_serializing_if = "Applied::is_empty")]
    pub(crate) applied: Applied,
    /// The document that it is shared by with other servers ([`crate::shared::Shared::id`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) shared: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Placed {
    id: u32,
    name: String,
    home: usize,
    /// The backend that holds its data; absent in files of versions that knew only the embedded one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backend: Option<String>,
    /// It was deleted: what the logs and snapshots still hold of it is nothing any more, and another may have its name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_deleted: bool,
    /// It was deleted, and its backend outside may still hold some of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    to_erase: bool,
}

/// A namespace that was deleted, and of which its backend may still hold something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToErase {
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) home: usize,
    /// What the backend is called.
    pub(crate) backend: String,
}

impl Registry {
    /// The registry of `directory`, or a fresh one if it has none. `random` is used for a fresh one only.
    pub(crate) fn load(directory: &Path, random: [u8; 16]) -> io::Result<Self> {
        let Some(text) = disk::read_whole(directory, FILE)? else {
            return Ok(Self {
                format: FORMAT,
                data_directory: random.iter().map(|byte| format!("{byte:02x}")).collect(),
                starts: 0,
                logs: 0,
                shards: 0,
                namespaces: Vec::new(),
                applied: Applied::default(),
                shared: None,
            });
        };
        let path = directory.join(FILE);
        let registry: Self = serde_json::from_slice(&text).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{}: {error}; restore the file from a backup of the data directory",
                    path.display()
                ),
            )
        })?;
        if ![FORMAT, FORMAT_APPLIED].contains(&registry.format) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{}: format {} is not known to this version (it reads {FORMAT} and {FORMAT_APPLIED}); start the version \
                     of Prism that wrote it",
                    path.display(),
                    registry.format
                ),
            ));
        }
        Ok(registry)
    }

    /// Replaces the file; when this returns, it is on stable storage.
    pub(crate) fn store(&self, directory: &Path) -> io::Result<()> {
        let format = if self.applied.is_empty() { FORMAT } else { FORMAT_APPLIED };
        let shown = Self { format, ..self.clone() };
        let text = serde_json::to_vec_pretty(&shown).map_err(io::Error::other)?;
        disk::replace_whole(directory, FILE, &text)
    }

    /// The backend that holds a namespace's data, where one is known to.
    pub(crate) fn backend_of(&self, name: &str) -> Option<&str> {
        self.there().find(|placed| placed.name == name)?.backend.as_deref()
    }

    /// The id of a namespace, if it holds one of that name.
    pub(crate) fn id_of(&self, name: &str) -> Option<u32> {
        Some(self.there().find(|placed| placed.name == name)?.id)
    }

    /// Every namespace that it holds: name, backend where that is known, home.
    pub(crate) fn placed(&self) -> impl Iterator<Item = (&str, Option<&str>, usize)> {
        self.there().map(|placed| (placed.name.as_str(), placed.backend.as_deref(), placed.home))
    }

    fn there(&self) -> impl Iterator<Item = &Placed> {
        self.namespaces.iter().filter(|placed| !placed.is_deleted)
    }

    /// From now on the namespace of that name is no more; `is_outside`: its backend has to take it out.
    pub(crate) fn delete(&mut self, name: &str, is_outside: bool) {
        let is_it = |placed: &&mut Placed| placed.name == name && !placed.is_deleted;
        for placed in self.namespaces.iter_mut().filter(is_it) {
            (placed.is_deleted, placed.to_erase) = (true, is_outside);
        }
    }

    /// The backend of a deleted namespace has taken it out.
    pub(crate) fn erased(&mut self, id: u32) {
        self.namespaces.iter_mut().filter(|of| of.id == id).for_each(|of| of.to_erase = false);
    }

    /// The namespaces that their backends have to take out.
    pub(crate) fn to_erase(&self) -> Vec<ToErase> {
        let found = self.namespaces.iter().filter(|placed| placed.to_erase);
        let of = |placed: &Placed| ToErase {
            id: placed.id,
            name: placed.name.clone(),
            home: placed.home,
            backend: placed.backend.clone().unwrap_or_default(),
        };
        found.map(of).collect()
    }

    /// The ids of the namespaces that were deleted.
    pub(crate) fn deleted(&self) -> Vec<u32> {
        let deleted = self.namespaces.iter().filter(|placed| placed.is_deleted);
        deleted.map(|placed| placed.id).collect()
    }

    /// The ids of the namespaces whose data lies elsewhere than in the backend `embedded`.
    pub(crate) fn outside(&self, embedded: &str) -> Vec<u32> {
        let outside = |placed: &&Placed| placed.backend.as_deref().is_some_and(|of| of != embedded);
        self.namespaces.iter().filter(outside).map(|placed| placed.id).collect()
    }

    /// The key under which request bodies are hashed.
    pub(crate) fn hash_key(&self) -> (u64, u64) {
        let number = u128::from_str_radix(&self.data_directory, 16).unwrap_or_default();
        ((number >> 64) as u64, number as u64)
    }

    /// The id and home of a namespace on a backend; a new one gets the next id and a home among `shards`, `pin` where that is
    /// one of them.
    pub(crate) fn place(
        &mut self,
        name: &str,
        backend: &str,
        pin: Option<usize>,
        shards: usize,
    ) -> (u32, usize) {
        let mut there = self.namespaces.iter_mut().filter(|placed| !placed.is_deleted);
        if let Some(placed) = there.find(|placed| placed.name == name) {
            placed.backend = Some(backend.to_owned());
            return (placed.id, placed.home);
        }
        // Id 0 is for records of the log itself.
        let id = self.namespaces.iter().map(|placed| placed.id).max().unwrap_or(0) + 1;
        let home = pin.filter(|pin| *pin < shards).unwrap_or_else(|| rendezvous(name, shards));
        let backend = Some(backend.to_owned());
        let name = name.to_owned();
        let (is_deleted, to_erase) = (false, false);
        self.namespaces.push(Placed { id, name, home, backend, is_deleted, to_erase });
        (id, home)
    }
}
