//! Apply: requests for namespaces become what is served, all of them or none.
//!
//! In this order: everything is planned and checked; the registry with the requests and the ids of new namespaces is on the disk;
//! then it is served. A crash in between leaves the old state or, at the next start, the new one. No backend is asked for
//! anything: what a namespace needs there is made by its first calls, so that one that is away leaves nothing half made.

use std::sync::Arc;

use prism_adapters::{Error, Kind};
use prism_proto::prism::namespace::v1 as proto;

use super::Asker;
use super::answers::{documents, shortened};
use super::describe::Change;
use crate::audit::event;
use crate::config::request::{Document, read_requests};
use crate::config::{Config, NAMESPACES_MAX, Namespace, Origin};
use crate::namespaces::Namespaces;
use crate::plan::{Asked, Obstacle};
use crate::planned;
use crate::registry::Registry;
use crate::served::Served;

/// The longest text of one request that is remembered.
const REQUEST_BYTES_MAX: usize = 64 << 10;

impl Served {
    pub(super) fn apply(
        &mut self,
        asker: &Asker,
        request: &proto::ApplyRequest,
    ) -> Result<proto::ApplyResponse, Error> {
        self.check_is_applied("apply")?;
        let documents = documents(&request.namespace, &request.document)?;
        self.check_asker(asker, &documents)?;
        let changes = self.changes(&documents)?;
        if !request.plan_token.is_empty() && request.plan_token != self.token(&changes) {
            let message = "what was planned is not what would be applied now: somebody else was quicker, or the platform has changed; plan again";
            return Err(Error::new(Kind::Aborted, "PLAN_CHANGED", message));
        }
        refuse(&changes)?;
        let texts = texts(&request.document, &documents)?;
        self.check_room(&changes)?;
        let outcomes = self.take(asker, &changes, documents, &texts)?;
        Ok(proto::ApplyResponse { outcomes })
    }

    /// Refuses what changes namespaces where a file decides which there are.
    pub(super) fn check_is_applied(&self, what: &str) -> Result<(), Error> {
        let file = |file: &std::path::Path| file.display().to_string();
        let (why, remedy) = match &self.config.planned {
            Some(from) if from.requests.is_none() => return Ok(()),
            Some(from) => {
                let requests = from.requests.as_deref().map(file).unwrap_or_default();
                let remedy = match what {
                    "approve" => "write it under `approvals` of the platform file, and send SIGHUP",
                    "delete" => "take it out there, and restart the server",
                    _ => "change it there, and send SIGHUP to the server",
                };
                (format!("the requests in {requests} are the truth here"), remedy)
            }
            None => {
                let listed = self.config.file.as_deref().map(file).unwrap_or_default();
                let remedy = "change it there, or leave `namespaces` and `backends` out of it, and restart the server";
                (format!("{listed} lists the namespaces"), remedy)
            }
        };
        let message = format!("this server takes no `{what}`: {why}; {remedy}");
        Err(Error::new(Kind::FailedPrecondition, "FILES_DECIDE", message))
    }

    fn check_room(&self, changes: &[Change]) -> Result<(), Error> {
        let created = changes.iter().filter(|of| of.kind == proto::Change::Create).count();
        let left = NAMESPACES_MAX.saturating_sub(self.config.namespaces.len());
        let room = self.namespaces.room().min(left);
        if created <= room {
            return Ok(());
        }
        let message = format!(
            "{created} namespaces are new, and there is room for {room} until the next start: restart the server, or serve some of \
             them with another Prism"
        );
        Err(Error::new(Kind::ResourceExhausted, Obstacle::NoRoom.name(), message))
    }

    /// Remembers and serves changes of which none is refused; each as it was done.
    fn take(
        &mut self,
        asker: &Asker,
        changes: &[Change],
        documents: Vec<Document>,
        texts: &[String],
    ) -> Result<Vec<proto::Outcome>, Error> {
        let (by, at) = (asker.name(), planned::today().to_string());
        let mut config = Config::clone(&self.config);
        config.warnings.clear();
        let mut registry = self.registry.clone();
        let (mut added, mut changed) = (Vec::new(), Vec::new());
        for ((change, document), text) in changes.iter().zip(documents).zip(texts) {
            let (Some(plan), Some(namespace)) = (&change.outcome.plan, &change.asked) else {
                continue;
            };
            let name = &namespace.name;
            let is_same = registry.applied.request(name).is_some_and(|of| of.text == *text);
            if is_same && change.kind == proto::Change::None {
                continue;
            }
            registry.applied.set(name, text, &by, &at);
            let asked = Arc::new(Asked { document, plan: plan.clone() });
            config.asked.retain(|before| before.plan.namespace != *name);
            config.asked.push(asked);
            match config.namespaces.iter_mut().find(|served| served.name == *name) {
                Some(served) => {
                    *served = namespace.clone();
                    changed.push(namespace);
                }
                None => {
                    config.namespaces.push(namespace.clone());
                    added.push(namespace);
                }
            }
        }
        let is_changed = !added.is_empty() || !changed.is_empty();
        if is_changed {
            let entries: Vec<_> = added
                .iter()
                .map(|namespace| Namespaces::entry(&config, namespace, &mut registry, self.shards))
                .collect();
            self.remember(registry)?;
            for namespace in &changed {
                if let Some(served) = self.namespaces.get(&namespace.name) {
                    served.terms.set(namespace);
                }
            }
            self.serve_also(entries);
            self.shown.set(&config);
            self.config = Arc::new(config);
            // After the namespaces: one that is new is denied to everybody until it is among the grants.
            let _ = self.reload_access();
            let names = |list: &[&Namespace]| {
                list.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ")
            };
            let (new, changed) = (names(&added), names(&changed));
            tracing::info!(by, new, changed, "applied");
            let told = [("by", by.into()), ("new", cut(new)), ("changed", cut(changed))];
            self.audit.event(event("apply", told));
        }
        Ok(self.outcomes(changes))
    }

    /// Puts what is applied where it is shared, and on the disk; from then on it is so.
    pub(super) fn remember(&mut self, mut registry: Registry) -> Result<(), Error> {
        self.share(&mut registry)?;
        registry.store(&self.config.data_dir).map_err(|error| {
            tracing::error!("{} cannot be written: {error}", self.config.data_dir.display());
            if registry.applied.version() != self.registry.applied.version()
                && let Some(shared) = &mut self.shared
            {
                shared.stop();
            }
            let message =
                "the data directory cannot be written, so nothing was changed; who runs this server finds the reason in its log";
            Error::new(Kind::Unavailable, "REGISTRY_UNWRITABLE", message)
        })?;
        self.registry = registry;
        Ok(())
    }
}

/// A text as a line of the audit log has it.
fn cut(text: String) -> serde_json::Value {
    /// Names of a thousand namespaces would make a line of their own length.
    const CHARACTERS_MAX: usize = 2000;
    text.chars().take(CHARACTERS_MAX).collect::<String>().into()
}

/// Refuses all of it where one is refused.
fn refuse(changes: &[Change]) -> Result<(), Error> {
    let refused: Vec<_> = changes.iter().filter(|change| change.is_refused()).collect();
    let Some(first) = refused.first() else { return Ok(()) };
    let reason = match first.outcome.refusals.first() {
        Some(refusal) => refusal.rule.name(),
        None => first.hindrances.first().map_or(Obstacle::Configured, |one| one.obstacle).name(),
    };
    let texts = shortened(refused.iter().flat_map(|change| change.refused()).collect());
    let message = format!("nothing was applied:\n{texts}");
    Err(Error::new(Kind::FailedPrecondition, reason, message))
}

/// The text of each request of a document.
fn texts(document: &str, documents: &[Document]) -> Result<Vec<String>, Error> {
    let lines: Vec<&str> = document.lines().collect();
    let begins: Vec<usize> = documents.iter().map(|one| first_line(one, &lines)).collect();
    let mut texts = Vec::new();
    for (index, one) in documents.iter().enumerate() {
        let end = begins.get(index + 1).copied().unwrap_or(lines.len());
        let of_document = lines.get(begins[index]..end).unwrap_or_default();
        // Up to the next mark between documents, which only stands at the beginning of a line.
        let is_mark = |line: &&str| line.starts_with("---") || line.starts_with("...");
        let marked = of_document.iter().skip(1).position(is_mark);
        let of_document = &of_document[..marked.map_or(of_document.len(), |at| at + 1)];
        let text = format!("{}\n", of_document.join("\n").trim_end());
        let name = &one.request.namespace.value;
        let again = read_requests(&[(name.0.clone(), text.clone())]);
        let is_right = again.is_ok_and(
            |again| matches!(again.as_slice(), [again] if again.request.namespace.value == *name),
        );
        if !is_right || text.len() > REQUEST_BYTES_MAX {
            let expected = format!(
                "the request for `{name}` cannot be kept as a text of its own, of {REQUEST_BYTES_MAX} bytes at most: begin it on a \
                 line of its own, and use no anchors of another document"
            );
            return Err(Error::field("REQUEST_INVALID", "document", expected));
        }
        texts.push(text);
    }
    Ok(texts)
}

/// The place among the lines at which a request begins, a mark before it on the same line among it.
fn first_line(document: &Document, lines: &[&str]) -> usize {
    match document.origin {
        Origin::Place { line, .. } => (line.max(1) as usize - 1).min(lines.len()),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(document: &str) -> Vec<String> {
        let documents = documents("", document).expect("it is right");
        texts(document, &documents).expect("each has its text")
    }

    #[test]
    fn every_request_keeps_its_own_text() {
        let orders = "namespace: orders\nteam: a\nclient_api: queue\nneeds:\n  durability: strong # says why\n";
        let mail = "namespace: mail\nteam: a\nclient_api: pubsub\n";
        assert_eq!(split(orders), [orders]);
        for document in [
            format!("{orders}---\n{mail}"),
            format!("# both\n---\n{orders}\n\n--- # and\n# more\n{mail}"),
            format!("{orders}...\n---\n{mail}...\n"),
        ] {
            assert_eq!(split(&document), [orders, mail], "{document}");
        }
        let inline = "--- {namespace: a, team: b, client_api: queue}\n--- {namespace: c, team: d, client_api: queue}\n";
        let texts = split(inline);
        assert_eq!(texts[1], "--- {namespace: c, team: d, client_api: queue}\n");
    }
}
