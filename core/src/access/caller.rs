//! Somebody who asks about namespaces themselves, and what they may.

use std::sync::Arc;

use super::{ADMIN, Access, FIRST};
use crate::audit::Who;
use crate::config::request::Api;

/// Who asks, as the table that was in force when they asked has them.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(super) table: Arc<Access>,
    pub(super) row: u32,
    /// As their token or certificate says.
    pub(super) who: Arc<Who>,
}

impl Caller {
    /// Whether they may change the namespace with that id, and see all of it.
    pub(crate) fn may_change(&self, id: u32) -> bool {
        self.table.rights(self.row, id) & ADMIN != 0
    }

    /// Whether they may have a namespace of that name that is a team's: it is their own team's, or they were granted to change all
    /// of such names.
    pub(crate) fn may_have(&self, name: &str, api: Api, team: &str) -> bool {
        let reigns = self.table.changes.get(self.row as usize);
        let granted = reigns
            .into_iter()
            .flatten()
            .any(|reign| reign.names.matches(name) && reign.api.is_none_or(|of| of == api));
        granted || self.is_of(team)
    }

    /// Whether they are of a team.
    pub(crate) fn is_of(&self, team: &str) -> bool {
        self.team() == Some(team)
    }

    fn team(&self) -> Option<&str> {
        let known = self.row.checked_sub(FIRST)?;
        Some(&self.table.identities.get(known as usize)?.team)
    }

    /// What they are called where it is written down what they did.
    pub(crate) fn name(&self) -> String {
        self.who.id.to_string()
    }
}
