//! What a running server serves, on the control thread: how it was configured, and where changes go.
//!
//! SIGHUP reads the files that namespaces are planned from again, and serves what they ask for: what is new, what has other terms
//! (durability, limits, quotas), and what they ask for no more ends, its data left where it is. All or nothing: a reload that is refused
//! changes no namespace, says why at every place, and counts. What would take data elsewhere (another backend or API) is refused. A new
//! namespace's id is on the disk before its first call.

use std::sync::Arc;

use prism_adapters::Error;

use crate::access::InForce;
use crate::access::keys::KeyStore;
use crate::admin::ShownConfig;
use crate::audit::Audit;
use crate::config::{ClientApi, Config, Namespace};
use crate::control::delete::Erasing;
use crate::control::shared::SharedState;
use crate::metrics::Metrics;
use crate::namespaces::Namespaces;
use crate::planned;
use crate::registry::Registry;
use crate::shard::{Errand, Errands};

/// Tells the control thread what became of a namespace that a backend is to take out, by its id.
pub(crate) type TellErased = Arc<dyn Fn(u32, Result<(), Error>) + Send + Sync>;

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
    pub(crate) tell_erased: TellErased,
    /// What backends are taking out.
    pub(crate) erasing: Vec<Erasing>,
    /// Where what is applied is shared with other servers.
    pub(crate) shared: Option<SharedState>,
}

/// What a reload comes to.
#[derive(Debug, Default, PartialEq)]
struct Reload {
    added: Vec<Namespace>,
    changed: Vec<Namespace>,
    ended: Vec<String>,
}

impl Reload {
    /// Each kind of change with the names of its namespaces.
    fn told(&self) -> Vec<String> {
        let names = |of: &[Namespace]| of.iter().map(|one| one.name.clone()).collect::<Vec<_>>();
        let kinds = [
            ("serving also", names(&self.added)),
            ("with other terms", names(&self.changed)),
            ("not served any more", self.ended.clone()),
        ];
        let told = kinds.into_iter().filter(|(_, names)| !names.is_empty());
        told.map(|(what, names)| format!("{what} {}", names.join(", "))).collect()
    }
}

impl Served {
    /// Reads the files again and serves what they ask for: what has changed, or why nothing has.
    pub(crate) fn reload(&mut self) -> Result<Vec<String>, Vec<String>> {
        let outcome = self.try_reload();
        self.metrics.count_reload(outcome.is_ok());
        match &outcome {
            Ok(changes) if changes.is_empty() => {
                tracing::info!("SIGHUP: the requests ask for nothing new")
            }
            Ok(changes) => tracing::info!("SIGHUP: {}", changes.join("; ")),
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

    /// Plans again, and serves what that comes to.
    pub(crate) fn try_reload(&mut self) -> Result<Vec<String>, Vec<String>> {
        let mut config = Config::clone(&self.config);
        config.warnings.clear();
        planned::resolve(&mut config)?;
        let reload = changes(&self.config, &config)?;
        let is_back = |namespace: &Namespace| self.ended(&namespace.name).is_some();
        let (back, new): (Vec<_>, Vec<_>) = reload.added.iter().partition(|of| is_back(of));
        if let Some(pending) = new.iter().find(|namespace| self.is_pending(&namespace.name)) {
            return Err(vec![format!(
                "the log holds writes of namespace `{}` for its backend, which only a start takes up: restart the server",
                pending.name
            )]);
        }
        if let Some(moved) = back.iter().find(|namespace| !self.is_as_it_was(namespace)) {
            return Err(vec![format!(
                "namespace `{}` is asked for again with another API or backend than it had: restart the server",
                moved.name
            )]);
        }
        let room = self.namespaces.room();
        if new.len() > room {
            return Err(vec![format!(
                "{} namespaces are new, and there is room for {room} until the next start; restart the server",
                new.len()
            )]);
        }
        let mut registry = self.registry.clone();
        let entries: Vec<_> = new
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
        for namespace in &reload.changed {
            if let Some(served) = self.namespaces.get(&namespace.name) {
                served.terms.set(namespace);
            }
        }
        for namespace in back {
            if let Some(ended) = self.ended(&namespace.name) {
                ended.terms.set(namespace);
                ended.terms.end(false);
            }
        }
        self.serve_also(entries);
        for name in &reload.ended {
            self.end_open_calls(name);
        }
        self.shown.set(&config);
        self.config = Arc::new(config);
        Ok(reload.told())
    }

    /// The namespace of that name that has ended since the start, and was not deleted.
    fn ended(&self, name: &str) -> Option<&crate::namespaces::Namespace> {
        let id = self.registry.id_of(name)?;
        self.namespaces.by_id(id).filter(|namespace| namespace.terms.has_ended())
    }

    /// Whether a namespace that has ended is asked for as it was, but for its terms.
    fn is_as_it_was(&self, asked: &Namespace) -> bool {
        self.ended(&asked.name)
            .is_some_and(|ended| ended.api == asked.client_api && ended.backend == asked.backend)
    }

    /// The namespace of that name takes no calls any more, and those that are open end.
    pub(crate) fn end_open_calls(&self, name: &str) {
        // The last of that name: those before it have ended.
        if let Some(namespace) = self.namespaces.iter().filter(|of| *of.name == *name).last() {
            namespace.terms.end(true);
            for errands in &self.errands {
                // Each shard tells its own; nobody has to wait for it.
                drop(errands.give(Errand::TellEnded));
            }
        }
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

/// What `next` has otherwise than `now`; or why that needs a restart.
fn changes(now: &Config, next: &Config) -> Result<Reload, Vec<String>> {
    let (mut reload, mut errors) = (Reload::default(), Vec::new());
    if now.backends != next.backends {
        errors.push("the platform's backends have changed: restart the server".to_owned());
    }
    for served in &now.namespaces {
        let name = &served.name;
        let Some(asked) = next.namespaces.iter().find(|namespace| namespace.name == *name) else {
            reload.ended.push(name.clone());
            continue;
        };
        // Where it lives is settled since it was placed.
        let asked = Namespace { home: served.home, ..asked.clone() };
        let size_stays = served.client_api == ClientApi::Queue
            && served.max_message_size != asked.max_message_size;
        if asked == *served {
            continue;
        }
        match asked.is_with_other_terms(served) {
            _ if size_stays => errors.push(format!(
                "namespace `{name}` is a queue, and its messages are asked for with another size: what its receivers got is told again                  from the log at a start, and depends on it; leave the size, or take another name"
            )),
            true => reload.changed.push(asked),
            false => errors.push(format!(
                "namespace `{name}` is asked for with another API or backend: restart the server to change it"
            )),
        }
    }
    let is_new =
        |namespace: &&Namespace| now.namespaces.iter().all(|served| served.name != namespace.name);
    reload.added = next.namespaces.iter().filter(is_new).cloned().collect();
    if errors.is_empty() { Ok(reload) } else { Err(errors) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{self, Durability, Flags, Quotas};

    fn with(change: impl Fn(&mut Namespace)) -> Config {
        let mut config = config::load(None, &Flags::default()).expect("the defaults");
        config.namespaces.iter_mut().for_each(change);
        config
    }

    #[test]
    fn only_terms_change_while_a_namespace_is_served() {
        let now = with(|_| ());
        assert_eq!(changes(&now, &now), Ok(Reload::default()));
        let terms: [fn(&mut Namespace); 5] = [
            |of| of.durability = Durability::Strong,
            |of| of.in_flight_bytes_max += 1,
            |of| of.backlog_records_max += 1,
            |of| of.audit_logging = true,
            |of| of.quotas = Quotas { subscriptions: Some(7), ..Quotas::default() },
        ];
        for change in terms {
            let next = with(change);
            let reload = changes(&now, &next).expect("they may");
            assert_eq!(reload.changed, next.namespaces);
            assert!(reload.added.is_empty() && reload.ended.is_empty());
        }
        let others: [fn(&mut Namespace); 3] = [
            |of| of.backend += 1,
            |of| of.memory_bytes_max += 1,
            |of| of.idempotency_window += Duration::from_secs(1),
        ];
        for change in others {
            let next = with(change);
            assert_eq!(changes(&now, &next).expect_err("they stay").len(), now.namespaces.len());
        }
        let larger = changes(&now, &with(|of| of.max_message_size += 1)).expect_err("of a queue");
        assert!(larger.len() == 1 && larger[0].contains("is a queue"), "{larger:?}");
    }

    #[test]
    fn what_is_not_asked_for_any_more_ends() {
        let now = with(|_| ());
        let mut next = now.clone();
        let gone = next.namespaces.remove(0);
        let reload = changes(&now, &next).expect("it may");
        assert_eq!((reload.ended.as_slice(), reload.changed.len()), (&[gone.name.clone()][..], 0));
        let reload = changes(&next, &now).expect("it may");
        assert_eq!(reload.told(), [format!("serving also {}", gone.name)]);
    }
}
