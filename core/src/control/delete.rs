//! Delete: a namespace ends, with its data where that is said by name.
//!
//! In this order: it takes no calls any more; what it holds is counted; that it is deleted is on the disk; calls of it that are open end;
//! its memory is given back, or its backend outside takes it out. A crash before the disk leaves it as it was; after that no start brings
//! it back, whatever logs and snapshots still hold, and each start goes on with what a backend has still to take out.

use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use prism_adapters::{Error, Kind};
use prism_proto::prism::namespace::v1 as proto;
use prost::Message as _;

use super::{Asker, Question};
use crate::audit::event;
use crate::config::{Backend, Config};
use crate::plan::Obstacle;
use crate::registry::ToErase;
use crate::served::Served;
use crate::shard::{Ending, Errand};

/// How long a shard may take to count.
const PATIENCE: Duration = Duration::from_secs(20);

/// A namespace that its backend is taking out.
#[derive(Debug)]
pub(crate) struct Erasing {
    of: ToErase,
    /// Who waits for it, and the answer.
    waiting: Option<(Question, proto::DeleteResponse)>,
}

impl Served {
    /// Deletes a namespace; the question is answered when it is gone, or it is known that this takes longer.
    pub(super) fn delete(&mut self, question: Question, request: &proto::DeleteRequest) {
        match self.end(&question.asker, request) {
            Err(error) => question.answer(Err(error)),
            Ok((response, None)) => question.answer(Ok(response.encode_to_vec())),
            Ok((response, Some(of))) => self.erase(of, Some((question, response))),
        }
    }

    /// Ends a namespace: as it was, and what its backend has still to take out.
    fn end(
        &mut self,
        asker: &Asker,
        request: &proto::DeleteRequest,
    ) -> Result<(proto::DeleteResponse, Option<ToErase>), Error> {
        self.check_is_applied("delete")?;
        let name = request.namespace.clone();
        let (namespace, asked) = self.of(asker, &name)?;
        let described = self.described(namespace, asked);
        if asked.is_none() {
            let message = format!(
                "`{name}` is in the server's configuration, and was not applied: end it there"
            );
            let reason = Obstacle::Configured.name();
            return Err(Error::new(Kind::FailedPrecondition, reason, message));
        }
        let is_outside = namespace.backend != 0;
        if request.confirm != name {
            let expected = format!(
                "is the namespace's name once more, {name}, so that none is deleted by mistake"
            );
            return Err(Error::field("CONFIRM_MISSING", "confirm", expected));
        }
        let is_told = request.delete_data_of == name;
        if !request.delete_data_of.is_empty() && !is_told {
            let expected = "is the namespace's name, or nothing";
            return Err(Error::field("CONFIRM_MISSING", "delete_data_of", expected));
        }
        if self.shared.is_some() && !is_outside && !is_told {
            let message = format!(
                "`{name}` lies in each server's own store, and other servers may hold data of it: say its name as `delete_data_of` as well \
                 (`prism delete {name} --data {name}`), and they are gone"
            );
            let error = Error::new(Kind::FailedPrecondition, "NAMESPACE_HOLDS_DATA", message);
            return Err(error.with("namespace", name));
        }
        // Once while it is served, so that one that is refused never stops.
        self.check_is_empty(&name, is_told)?;
        self.serve_or_not(&name, false);
        let ended = self.check_is_empty(&name, is_told).and_then(|()| {
            let mut registry = self.registry.clone();
            registry.delete(&name, is_outside);
            registry.applied.forget(&name);
            self.remember(registry)
        });
        if let Err(error) = ended {
            self.serve_or_not(&name, true);
            return Err(error);
        }
        let mut config = Config::clone(&self.config);
        config.warnings.clear();
        config.namespaces.retain(|namespace| namespace.name != name);
        config.asked.retain(|asked| asked.plan.namespace != name);
        self.shown.set(&config);
        self.config = Arc::new(config);
        self.end_open_calls(&name);
        if !is_outside {
            // A namespace that ended may have the same name as one before it.
            let of_name = self.namespaces.iter().filter(|namespace| *namespace.name == *name);
            for namespace in of_name.filter(|namespace| namespace.backend == 0) {
                let ending = Ending { id: namespace.id, name: name.clone(), backend: 0 };
                // Nobody waits for it: no start brings it back.
                drop(self.errands[namespace.home].give(Errand::Erase(ending)));
            }
        }
        let by = asker.name();
        tracing::info!(by, namespace = name, "deleted");
        self.audit.event(event("delete", [("by", by.into()), ("namespace", name.as_str().into())]));
        let to_erase = self.registry.to_erase().into_iter().rfind(|of| of.name == name);
        let response = proto::DeleteResponse { namespace: Some(described) };
        Ok((response, to_erase.filter(|_| is_outside)))
    }

    /// Goes on with what backends have to take out of namespaces that were deleted before this start.
    pub(crate) fn go_on_erasing(&mut self) {
        for of in self.registry.to_erase() {
            self.erase(of, None);
        }
    }

    fn erase(&mut self, of: ToErase, waiting: Option<(Question, proto::DeleteResponse)>) {
        let is_it = |backend: &Backend| backend.name == of.backend;
        let Some(backend) = self.config.backends.iter().position(is_it) else {
            tracing::warn!(
                namespace = of.name,
                backend = of.backend,
                "it was deleted, and its data lies on a backend that is not configured any more: they stay there until it is"
            );
            if let Some((question, response)) = waiting {
                question.answer(Ok(still_ending(response).encode_to_vec()));
            }
            return;
        };
        let (id, tell) = (of.id, self.tell_erased.clone());
        let ending = Ending { id, name: of.name.clone(), backend };
        let shard = &self.errands[of.home % self.errands.len()];
        shard.give_and_hear(Errand::Erase(ending), move |told| tell(id, told.map(drop)));
        self.erasing.push(Erasing { of, waiting });
    }

    /// A backend has taken out a namespace, or cannot do so for now.
    pub(crate) fn hear_erased(&mut self, id: u32, told: Result<(), Error>) {
        let Some(at) = self.erasing.iter().position(|erasing| erasing.of.id == id) else { return };
        let waiting = self.erasing[at].waiting.take();
        let (name, backend) =
            (self.erasing[at].of.name.clone(), self.erasing[at].of.backend.clone());
        let is_done = match told {
            Ok(()) => {
                self.erasing.remove(at);
                let mut registry = self.registry.clone();
                registry.erased(id);
                tracing::info!(namespace = name, backend, "its backend has taken it out");
                let told = [("namespace", name.into()), ("backend", backend.into())];
                self.audit.event(event("erased", told));
                // Where that cannot be noted the next start has it done again.
                self.remember(registry).is_ok()
            }
            Err(error) => {
                tracing::warn!(
                    namespace = name,
                    backend,
                    reason = error.reason(),
                    "it was deleted, and its backend cannot take it out for now; it is asked again: {}",
                    error.message()
                );
                false
            }
        };
        if let Some((question, response)) = waiting {
            let response = if is_done { response } else { still_ending(response) };
            question.answer(Ok(response.encode_to_vec()));
        }
    }

    /// Whether a namespace of that name was deleted, and its backend has still to take it out.
    pub(super) fn is_erasing(&self, name: &str) -> bool {
        self.registry.to_erase().iter().any(|of| of.name == name)
    }

    fn check_is_empty(&self, name: &str, is_told: bool) -> Result<(), Error> {
        if is_told {
            return Ok(());
        }
        let of_name = self.namespaces.iter().filter(|of| *of.name == *name).last();
        let Some(namespace) = of_name else { return Ok(()) };
        let (id, backend) = (namespace.id, namespace.backend);
        let ending = Ending { id, name: name.to_owned(), backend };
        let counted = self.errands[namespace.home].give(Errand::Count(ending));
        let counted = counted.recv_timeout(PATIENCE).unwrap_or_else(|why| {
            let message = match why {
                RecvTimeoutError::Timeout => {
                    "the shard that holds it, or its backend, did not answer in time; try again"
                }
                RecvTimeoutError::Disconnected => "the shard that holds it has ended",
            };
            Err(Error::new(Kind::Unavailable, "SHARD_BUSY", message))
        })?;
        if counted == 0 {
            return Ok(());
        }
        let what = match backend {
            0 => format!("({counted} entries)"),
            _ => format!("on {}", namespace.backend_name),
        };
        let message = format!(
            "`{name}` holds data {what}, and nothing was deleted: say its name as `delete_data_of` as well \
             (`prism delete {name} --data {name}`), and they are gone"
        );
        let error = Error::new(Kind::FailedPrecondition, "NAMESPACE_HOLDS_DATA", message);
        Err(error.with("namespace", name.to_owned()))
    }

    fn serve_or_not(&self, name: &str, is_served: bool) {
        // The last of that name: those before it have ended.
        if let Some(namespace) = self.namespaces.iter().filter(|of| *of.name == *name).last() {
            namespace.terms.serve(is_served);
        }
    }
}

/// The answer where the data goes later.
fn still_ending(mut response: proto::DeleteResponse) -> proto::DeleteResponse {
    if let Some(namespace) = &mut response.namespace {
        namespace.state = proto::State::Ending.into();
    }
    response
}
