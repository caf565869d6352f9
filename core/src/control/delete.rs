//! Delete: a namespace ends, with its data where that is said by name.
//!
//! In this order: it takes no calls any more; what it holds is counted; that it is deleted is on the disk; its memory is given
//! back. A crash before the disk leaves it as it was; after that no start brings it back, whatever logs and snapshots still hold.

use std::sync::Arc;
use std::time::Duration;

use prism_adapters::{Error, Kind};
use prism_proto::prism::namespace::v1 as proto;

use super::Asker;
use crate::audit::event;
use crate::config::Config;
use crate::plan::Obstacle;
use crate::served::Served;
use crate::shard::Errand;

/// How long a shard may take to count.
const PATIENCE: Duration = Duration::from_secs(20);

impl Served {
    pub(super) fn delete(
        &mut self,
        asker: &Asker,
        request: &proto::DeleteRequest,
    ) -> Result<proto::DeleteResponse, Error> {
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
        if namespace.backend != 0 {
            let message = format!(
                "`{name}` lies on {}, and this build deletes from the embedded store only: delete its data there, and leave it unused",
                described.backend
            );
            return Err(Error::new(Kind::Unimplemented, "DELETE_NOT_OFFERED", message));
        }
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
        // Once while it is served, so that one that is refused never stops.
        self.check_is_empty(&name, is_told)?;
        self.serve_or_end(&name, false);
        let ended = self.check_is_empty(&name, is_told).and_then(|()| {
            let mut registry = self.registry.clone();
            registry.delete(&name);
            registry.applied.forget(&name);
            self.remember(registry)
        });
        if let Err(error) = ended {
            self.serve_or_end(&name, true);
            return Err(error);
        }
        let mut config = Config::clone(&self.config);
        config.warnings.clear();
        config.namespaces.retain(|namespace| namespace.name != name);
        config.asked.retain(|asked| asked.plan.namespace != name);
        self.shown.set(&config);
        self.config = Arc::new(config);
        // A namespace that ended may have the same name as one before it.
        let of_name = self.namespaces.iter().filter(|namespace| *namespace.name == *name);
        for namespace in of_name {
            // Nobody waits for it: no start brings it back.
            drop(self.errands[namespace.home].give(Errand::Erase(namespace.id)));
        }
        let by = asker.name();
        tracing::info!(by, namespace = name, "deleted");
        self.audit.event(event("delete", [("by", by.into()), ("namespace", name.into())]));
        Ok(proto::DeleteResponse { namespace: Some(described) })
    }

    fn check_is_empty(&self, name: &str, is_told: bool) -> Result<(), Error> {
        if is_told {
            return Ok(());
        }
        let of_name = self.namespaces.iter().filter(|of| *of.name == *name).last();
        let Some(namespace) = of_name else { return Ok(()) };
        let counted = self.errands[namespace.home].give(Errand::Count(namespace.id));
        let counted = counted.recv_timeout(PATIENCE).map_err(|_| {
            let message = "the shard that holds it did not answer in time; try again";
            Error::new(Kind::Unavailable, "SHARD_BUSY", message)
        })?;
        if counted == 0 {
            return Ok(());
        }
        let message = format!(
            "`{name}` holds data ({counted} entries), and nothing was deleted: say its name as `delete_data_of` as well \
             (`prism delete {name} --data {name}`), and they are gone"
        );
        let error = Error::new(Kind::FailedPrecondition, "NAMESPACE_HOLDS_DATA", message);
        Err(error.with("namespace", name.to_owned()))
    }

    fn serve_or_end(&self, name: &str, is_served: bool) {
        // The last of that name: those before it have ended.
        if let Some(namespace) = self.namespaces.iter().filter(|of| *of.name == *name).last() {
            namespace.terms.serve(is_served);
        }
    }
}
