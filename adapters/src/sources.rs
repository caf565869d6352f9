//! The news of a shard's sources: one [`News`] for each queue, topic or stream that somebody waits for, and no longer.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use crate::news::{Listener, News};

type ByName = HashMap<(u32, Box<str>), Rc<News>, ahash::RandomState>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Sources(RefCell<ByName>);

impl Sources {
    /// Tells those who wait for a source of a namespace that it has something new.
    pub(crate) fn tell(&self, namespace: u32, name: &str) {
        let sources = self.0.borrow();
        if sources.is_empty() {
            return;
        }
        if let Some(news) = sources.get(&(namespace, Box::from(name))) {
            news.tell();
        }
    }

    /// Waits for a source from now on.
    pub(crate) fn attend(&self, namespace: u32, name: &str) -> Attendance<'_> {
        let key = (namespace, Box::from(name));
        let news = self.0.borrow_mut().entry(key.clone()).or_default().clone();
        Attendance { sources: self, listener: Some(news.listen()), news, key }
    }
}

/// Somebody's wait for one source.
pub(crate) struct Attendance<'a> {
    sources: &'a Sources,
    listener: Option<Listener>,
    news: Rc<News>,
    key: (u32, Box<str>),
}

impl Attendance<'_> {
    /// Ready when something was told since the last time, or since the beginning.
    pub(crate) fn told(&mut self) -> &mut Listener {
        self.listener.get_or_insert_with(|| self.news.listen())
    }
}

impl Drop for Attendance<'_> {
    fn drop(&mut self) {
        self.listener = None;
        // One of the two is the table's.
        if Rc::strong_count(&self.news) == 2 {
            self.sources.0.borrow_mut().remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_known_as_long_as_somebody_waits_for_it() {
        let sources = Sources::default();
        let (first, second) = (sources.attend(1, "a"), sources.attend(1, "a"));
        sources.tell(1, "a");
        drop(first);
        assert_eq!(sources.0.borrow().len(), 1);
        drop(second);
        assert!(sources.0.borrow().is_empty());
    }
}
