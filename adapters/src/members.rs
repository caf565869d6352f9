//! Who takes part in the groups of a shard's streams, where that is known to the shard alone: a namespace's members are all on its home.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

type ByGroup = HashMap<(u32, Box<str>), BTreeMap<u64, Box<str>>, ahash::RandomState>;

/// See the module. A group goes by a name that says its stream too.
#[derive(Debug, Default)]
pub(crate) struct Members {
    /// By namespace and group, in the order in which they joined.
    by_group: RefCell<ByGroup>,
    joined: Cell<u64>,
}

impl Members {
    /// Who takes part.
    pub(crate) fn names(&self, namespace: u32, group: &str) -> Vec<String> {
        let by_group = self.by_group.borrow();
        let members = by_group.get(&(namespace, group.into()));
        members.into_iter().flat_map(BTreeMap::values).map(|name| name.to_string()).collect()
    }

    /// Takes a stream in; one of the same name that took part before takes part no longer. One without a name is given one.
    pub(crate) fn join(&self, namespace: u32, group: &str, member: &str, now_us: u64) -> Part<'_> {
        let number = self.joined.get() + 1;
        self.joined.set(number);
        let member: Box<str> = match member {
            "" => format!("m-{now_us:x}-{number:x}").into(),
            member => member.into(),
        };
        let key = (namespace, group.into());
        let mut by_group = self.by_group.borrow_mut();
        let members = by_group.entry(key.clone()).or_default();
        members.retain(|_, other| *other != member);
        members.insert(number, member.clone());
        drop(by_group);
        Part { members: self, key, number, member }
    }
}

/// A stream's part in a group; given up when it is dropped.
pub(crate) struct Part<'a> {
    members: &'a Members,
    key: (u32, Box<str>),
    number: u64,
    /// The member's name.
    pub(crate) member: Box<str>,
}

impl Part<'_> {
    /// Whether nobody has joined in its place.
    pub(crate) fn stands(&self) -> bool {
        let by_group = self.members.by_group.borrow();
        by_group.get(&self.key).is_some_and(|members| members.contains_key(&self.number))
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        let mut by_group = self.members.by_group.borrow_mut();
        if let Some(members) = by_group.get_mut(&self.key) {
            members.remove(&self.number);
            if members.is_empty() {
                by_group.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_joins_again_takes_its_own_place() {
        let members = Members::default();
        let (a, b) = (members.join(1, "s/g", "a", 7), members.join(1, "s/g", "", 7));
        assert_eq!(members.names(1, "s/g"), ["a", "m-7-2"]);
        let again = members.join(1, "s/g", "a", 9);
        assert!(!a.stands() && b.stands() && again.stands());
        drop(a);
        assert_eq!(members.names(1, "s/g"), ["m-7-2", "a"], "it left nobody else's place");
        assert!(members.names(2, "s/g").is_empty());
        drop((b, again));
        assert!(members.by_group.borrow().is_empty());
    }
}
