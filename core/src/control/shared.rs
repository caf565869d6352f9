//! What is applied, where several servers share it: a change of another server is taken over, and one of this server is put there first.
//!
//! A server that has not yet seen the document, or has applied namespaces of its own before, changes nothing: it says so until somebody
//! decides. What another server has deleted ends here too, and with it what this server's embedded store holds of it; that was said by
//! name there, because nobody can ask every server whether it holds some.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prism_adapters::{Error, Kind};

use crate::audit::event;
use crate::config::Config;
use crate::registry::Registry;
use crate::served::Served;
use crate::shard::{Ending, Errand};
use crate::shared::{Seen, Shared, SharedStore};

/// How long a start waits for the document.
pub(crate) const START_PATIENCE: Duration = Duration::from_secs(5);

/// How it stands with the shared registry.
#[derive(Debug)]
pub(crate) struct SharedState {
    pub(crate) store: SharedStore,
    /// The version that was seen last; `None`: none yet.
    version: Option<u64>,
    /// Why nothing is taken over or put there.
    trouble: Option<String>,
    /// Since when the database cannot be asked.
    away_since: Option<Instant>,
}

impl SharedState {
    pub(crate) fn new(store: SharedStore) -> Self {
        Self { store, version: None, trouble: None, away_since: None }
    }

    /// Nothing is shared any more, because this server could not keep what it had put there.
    pub(super) fn stop(&mut self) {
        let trouble = "what was put into the shared registry could not be written to the data directory: restart this server";
        self.trouble = Some(trouble.to_owned());
    }

    /// Whether it has been seen, or is known to be away.
    pub(crate) fn is_known(&self) -> bool {
        self.version.is_some() || self.away_since.is_some()
    }
}

impl Served {
    /// Hears what was seen of the shared registry.
    pub(crate) fn hear_shared(&mut self, seen: Seen) {
        let Some(state) = &mut self.shared else { return };
        let known = self.registry.applied.version();
        let backend = state.store.backend.clone();
        if let Seen::Away(error) = &seen {
            if state.away_since.is_none() {
                state.away_since = Some(Instant::now());
                tracing::error!(
                    backend,
                    version = known,
                    reason = error.reason(),
                    "the shared registry cannot be asked: what is served is what was known last, and nothing is applied until it can: {}",
                    error.message()
                );
            }
            return;
        }
        if let Some(since) = state.away_since.take() {
            let away_s = since.elapsed().as_secs();
            tracing::info!(backend, away_s, "the shared registry can be asked again");
        }
        let (version, text) = match seen {
            Seen::Changed(version, text) => (version, text),
            Seen::Same | Seen::Away(_) => {
                let is_shared = self.registry.shared.is_some();
                state.version.get_or_insert(if is_shared { known } else { 0 });
                return;
            }
        };
        state.version = Some(version);
        // Put there by this server.
        if version == known && version > 0 && self.registry.shared.is_some() {
            return;
        }
        let outcome = self.take_over(version, &text);
        self.metrics.count_reload(outcome.is_ok());
        let Some(state) = &mut self.shared else { return };
        state.trouble = outcome.as_ref().err().map(|errors| errors.join("; "));
        match &outcome {
            Ok(changes) => tracing::info!(
                backend,
                version,
                "the shared registry has changed: {}",
                if changes.is_empty() { "nothing here".to_owned() } else { changes.join("; ") }
            ),
            Err(errors) => {
                for error in errors {
                    tracing::error!(backend, version, "the shared registry: {error}");
                }
                tracing::error!(
                    "the change of the shared registry is not served here; what was served before goes on"
                );
            }
        }
        let (outcome, key, told) = match outcome {
            Ok(changes) => ("applied", "changes", changes),
            Err(errors) => ("refused", "errors", errors),
        };
        let told = [
            ("of", "registry".into()),
            ("outcome", outcome.into()),
            ("version", version.into()),
            (key, told.into()),
        ];
        self.audit.event(event("reload", told));
    }

    /// Serves what the shared registry says; what has changed, or why not.
    fn take_over(&mut self, version: u64, text: &str) -> Result<Vec<String>, Vec<String>> {
        let wrong = |text: String| vec![text];
        if version == 0 {
            return match &self.registry.shared {
                None => Ok(Vec::new()),
                Some(_) => Err(wrong(
                    "the document that this server has shared is gone: restore the database, or take `registry` out of the platform file"
                        .to_owned(),
                )),
            };
        }
        let shared: Shared = serde_json::from_str(text)
            .map_err(|error| wrong(format!("the document cannot be read: {error}")))?;
        match &self.registry.shared {
            Some(id) if *id != shared.id => {
                return Err(wrong(
                    "the document is another one than this server has shared before: restore the database, or begin with an empty data \
                     directory"
                        .to_owned(),
                ));
            }
            Some(_) if shared.applied.version() < self.registry.applied.version() => {
                return Err(wrong(format!(
                    "the document went back, from change {} to {}: restore the newest state of the database",
                    self.registry.applied.version(),
                    shared.applied.version()
                )));
            }
            None if !self.registry.applied.texts().is_empty() => {
                return Err(wrong(
                    "this server has namespaces that were applied to it alone, and would lose them: begin with an empty data directory, and \
                     apply them again; or take `registry` out of the platform file"
                        .to_owned(),
                ));
            }
            _ => {}
        }
        let ended = self.registry.applied.ended_in(&shared.applied);
        let mut registry = self.registry.clone();
        for name in &ended {
            // Whoever deleted it has its backend outside take it out.
            registry.delete(name, false);
        }
        (registry.applied, registry.shared) = (shared.applied, Some(shared.id));
        registry.store(&self.config.data_dir).map_err(|error| {
            wrong(format!("{} cannot be written: {error}", self.config.data_dir.display()))
        })?;
        self.registry = registry;
        self.end_elsewhere(&ended);
        let outcome = self.try_reload();
        // After the namespaces: one that is new is denied to everybody until it is among the grants.
        let _ = self.reload_access();
        let mut changes = outcome?;
        if !ended.is_empty() {
            changes.push(format!("ended {}", ended.join(", ")));
        }
        Ok(changes)
    }

    /// Ends namespaces that another server has deleted.
    fn end_elsewhere(&mut self, names: &[String]) {
        let mut config = Config::clone(&self.config);
        config.namespaces.retain(|namespace| !names.contains(&namespace.name));
        config.asked.retain(|asked| !names.contains(&asked.plan.namespace));
        for name in names {
            let of_name = self.namespaces.iter().filter(|of| *of.name == **name).last();
            let Some(namespace) = of_name else { continue };
            let (id, backend, home) = (namespace.id, namespace.backend, namespace.home);
            self.end_open_calls(name);
            let ending = Ending { id, name: name.clone(), backend };
            // Nobody waits for it: no start brings it back.
            drop(self.errands[home].give(match backend {
                0 => Errand::Erase(ending),
                _ => Errand::Forget(ending),
            }));
        }
        self.config = Arc::new(config);
    }

    /// Puts what is to be applied into the shared registry, where there is one; only then it is so.
    pub(super) fn share(&mut self, registry: &mut Registry) -> Result<(), Error> {
        let Some(state) = &self.shared else { return Ok(()) };
        let (before, after) = (self.registry.applied.version(), registry.applied.version());
        if before == after {
            return Ok(());
        }
        let refuse =
            |reason, message: String| Err(Error::new(Kind::FailedPrecondition, reason, message));
        if let Some(trouble) = &state.trouble {
            return refuse("REGISTRY_DIFFERS", format!("nothing is applied here: {trouble}"));
        }
        let Some(version) = state.version else {
            let message = "what other servers have applied is not known here yet; try again";
            return Err(Error::new(Kind::Unavailable, "REGISTRY_UNREACHABLE", message));
        };
        if version == 0 && registry.shared.is_none() {
            let random = prism_wal::driver::random_nonce().map_err(|error| {
                let message = format!("there are no random numbers: {error}");
                Error::new(Kind::Unavailable, "REGISTRY_UNREACHABLE", message)
            })?;
            registry.shared = Some(random.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        let id = registry.shared.clone().unwrap_or_default();
        let shared = Shared { id, applied: registry.applied.clone() };
        let text = serde_json::to_string(&shared).map_err(|error| {
            Error::new(Kind::Internal, "REGISTRY_UNWRITABLE", error.to_string())
        })?;
        if !state.store.replace(version, after, text)? {
            let message = "another server has changed what is applied at the same time, and was quicker: plan again";
            return Err(Error::new(Kind::Aborted, "PLAN_CHANGED", message));
        }
        if let Some(state) = &mut self.shared {
            state.version = Some(after);
        }
        Ok(())
    }
}
