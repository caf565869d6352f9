//! What a running server serves, on the control thread: how it was configured, and where additions go.
//!
//! SIGHUP reads the files that namespaces are planned from again, and serves what they ask for in addition. All or nothing: a
//! reload that is refused changes no namespace, says why at every place, and counts. What would touch calls that run (a namespace
//! changed or taken away, other backends) is refused and takes effect at the next start. A new namespace's id is on the disk
//! before its first call.

use std::sync::Arc;

use crate::access::InForce;
use crate::access::keys::KeyStore;
use crate::admin::ShownConfig;
use crate::audit::Audit;
use crate::config::{Config, Namespace};
use crate::metrics::Metrics;
use crate::namespaces::Namespaces;
use crate::planned;
use crate::registry::Registry;
use crate::shard::Errands;

/// What a running server serves.
pub(crate) struct Served {
    /// As it is served now.
    pub(crate) config: Arc<Config>,
    pub(crate) registry: Registry,
    pub(crate) namespaces: Arc<Namespaces>,
    /// Who may what; `None`: everybody everything.
    pub(crate) access: Option<Arc<InForce>>,
    /// What the keys of issuers are, as far as they were fetched.
    pub(crate) keys: Arc<KeyStore>,
    /// Where changes are written down.
    pub(crate) audit: Audit,
    pub(crate) shards: usize,
    /// By shard: what it is to do.
    pub(crate) errands: Vec<Arc<Errands>>,
    /// Ids of namespaces that were not served at the start, and of which logs hold writes for backends outside.
    pub(crate) orphans: Vec<u32>,
    pub(crate) metrics: Metrics,
    pub(crate) shown: ShownConfig,
}

impl Served {
    /// Reads the files again and serves what is new in them: the names, or why not.
    pub(crate) fn reload(&mut self) -> Result<Vec<String>, Vec<String>> {
        let outcome = self.try_reload();
        self.metrics.count_reload(outcome.is_ok());
        match &outcome {
            Ok(added) if added.is_empty() => {
                tracing::info!("SIGHUP: the requests ask for nothing new")
            }
            Ok(added) => tracing::info!("SIGHUP: serving also {}", added.join(", ")),
            Err(errors) => {
                for error in errors {
                    tracing::error!("SIGHUP: {error}");
                }
                tracing::error!("SIGHUP: no namespace was changed; what was served before goes on");
            }
        }
        outcome
    }

    /// Reads again who may what. What cannot be read leaves in force what there is. `None` where there is nothing of the kind.
    pub(crate) fn reload_access(&self) -> Option<Result<(), String>> {
        let _changing = self.access.as_ref().map(|in_force| in_force.change());
        let access = planned::access(&self.config, &self.namespaces, &self.registry, &self.keys);
        match (access, &self.access) {
            (Ok(Some(access)), Some(in_force)) => {
                in_force.replace(access);
                tracing::info!("identities, keys and grants were read again");
                Some(Ok(()))
            }
            (Ok(None), None) => None,
            (Ok(_), _) => {
                let why = "the platform file begins or ceases to know identities, which takes a restart; what was in force stays so";
                tracing::error!("{why}");
                Some(Err(why.to_owned()))
            }
            (Err(error), _) => {
                tracing::error!(
                    "identities, keys and grants were not replaced, those before stay in force: {error}"
                );
                Some(Err(error))
            }
        }
    }

    fn try_reload(&mut self) -> Result<Vec<String>, Vec<String>> {
        let mut config = Config::clone(&self.config);
        config.warnings.clear();
        planned::resolve(&mut config)?;
        let added = additions(&self.config, &config)?;
        if let Some(pending) = added.iter().find(|namespace| self.is_pending(&namespace.name)) {
            return Err(vec![format!(
                "the log holds writes of namespace `{}` for its backend, which only a start takes up: restart the server",
                pending.name
            )]);
        }
        let room = self.namespaces.room();
        if added.len() > room {
            return Err(vec![format!(
                "{} namespaces are new, and there is room for {room} until the next start; restart the server",
                added.len()
            )]);
        }
        let mut registry = self.registry.clone();
        let entries: Vec<_> = added
            .iter()
            .map(|namespace| Namespaces::entry(&config, namespace, &mut registry, self.shards))
            .collect();
        if !entries.is_empty() {
            registry.store(&config.data_dir).map_err(|error| {
                vec![format!("{} cannot be written: {error}", config.data_dir.display())]
            })?;
            self.registry = registry;
        }
        config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        self.serve_also(entries);
        let names = added.into_iter().map(|namespace| namespace.name).collect();
        self.shown.set(&config);
        self.config = Arc::new(config);
        Ok(names)
    }

    /// Whether a log holds writes of a namespace that is not served for a backend outside: its lane begins with them, at a start.
    pub(crate) fn is_pending(&self, name: &str) -> bool {
        self.registry.id_of(name).is_some_and(|id| self.orphans.contains(&id))
    }

    /// Serves new namespaces, whose ids are on the disk and for which there is room.
    pub(crate) fn serve_also(&self, entries: Vec<crate::namespaces::Namespace>) {
        for entry in entries {
            // Its label first, so that no call of it is counted without.
            self.metrics.name_added(self.namespaces.added(), &entry.name);
            self.namespaces.add(entry);
        }
    }
}

/// The namespaces that `next` has and `now` has not; or why `next` needs a restart.
fn additions(now: &Config, next: &Config) -> Result<Vec<Namespace>, Vec<String>> {
    let mut errors = Vec::new();
    if now.backends != next.backends {
        errors.push("the platform's backends have changed: restart the server".to_owned());
    }
    for served in &now.namespaces {
        let name = &served.name;
        match next.namespaces.iter().find(|namespace| namespace.name == *name) {
            None => errors.push(format!(
                "namespace `{name}` is not asked for any more: restart the server to end it; its data stays"
            )),
            // Where it lives is settled since it was placed.
            Some(asked) if Namespace { home: served.home, ..asked.clone() } != *served => errors
                .push(format!(
                    "namespace `{name}` is asked for in another way: restart the server to change it"
                )),
            Some(_) => {}
        }
    }
    let is_new =
        |namespace: &&Namespace| now.namespaces.iter().all(|served| served.name != namespace.name);
    let added: Vec<_> = next.namespaces.iter().filter(is_new).cloned().collect();
    if errors.is_empty() { Ok(added) } else { Err(errors) }
}
