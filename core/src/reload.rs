//! SIGHUP where namespaces are planned from files: reads the files again, and serves what they ask for in addition.
//!
//! All or nothing: a reload that is refused changes no namespace, says why at every place, and counts. What would touch calls that
//! run (a namespace changed or taken away, other backends, a new namespace on a backend outside the process) is refused and
//! takes effect at the next start. A new namespace's id is on the disk before its first call.

use std::sync::Arc;

use crate::admin::ShownConfig;
use crate::config::{Config, Namespace};
use crate::metrics::Metrics;
use crate::namespaces::Namespaces;
use crate::planned;
use crate::registry::Registry;

/// What a running server was configured with, and where additions go.
pub(crate) struct Reload {
    /// As it is served now.
    pub(crate) config: Arc<Config>,
    pub(crate) registry: Registry,
    pub(crate) namespaces: Arc<Namespaces>,
    pub(crate) shards: usize,
    pub(crate) metrics: Metrics,
    pub(crate) shown: ShownConfig,
}

impl Reload {
    /// Reads the files again and serves what is new in them: the names, or why not.
    pub(crate) fn run(&mut self) -> Result<Vec<String>, Vec<String>> {
        let outcome = self.try_run();
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

    fn try_run(&mut self) -> Result<Vec<String>, Vec<String>> {
        let mut config = Config::clone(&self.config);
        config.warnings.clear();
        planned::resolve(&mut config)?;
        let added = additions(&self.config, &config)?;
        let room = self.namespaces.room();
        if added.len() > room {
            return Err(vec![format!(
                "{} namespaces are new, and there is room for {room} until the next start; restart the server",
                added.len()
            )]);
        }
        if added.is_empty() {
            return Ok(Vec::new());
        }
        let mut registry = self.registry.clone();
        let entries: Vec<_> = added
            .iter()
            .map(|namespace| Namespaces::entry(&config, namespace, &mut registry, self.shards))
            .collect();
        registry.store(&config.data_dir).map_err(|error| {
            vec![format!("{} cannot be written: {error}", config.data_dir.display())]
        })?;
        self.registry = registry;
        for (number, entry) in entries.into_iter().enumerate() {
            // Its label first, so that no call of it is counted without.
            self.metrics.name_added(self.namespaces.added() + number, &entry.name);
            self.namespaces.add(entry);
        }
        config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let names = added.iter().map(|namespace| namespace.name.clone()).collect();
        self.shown.set(&config);
        self.config = Arc::new(config);
        Ok(names)
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
    for namespace in added.iter().filter(|namespace| namespace.backend != 0) {
        let backend = next.backends.get(namespace.backend).map_or("", |backend| &backend.name);
        errors.push(format!(
            "namespace `{}` lies on backend `{backend}`, to which shards connect when they start: restart the server",
            namespace.name
        ));
    }
    if errors.is_empty() { Ok(added) } else { Err(errors) }
}
