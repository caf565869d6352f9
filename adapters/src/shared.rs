//! What those who need the same thing on a shard share: made once, by the first of them, and there as long as somebody holds it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use crate::news::News;

/// Whose it is: the namespace's number, and a name.
pub(crate) type Key = (u32, Box<str>);

type ByKey<T> = RefCell<HashMap<Key, T, ahash::RandomState>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    held: ByKey<Weak<T>>,
    /// What is being made, and who waits for that.
    begun: ByKey<Rc<News>>,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Shared { held: RefCell::default(), begun: RefCell::default() }
    }
}

/// Something is being made; whoever waits for it hears when that ends, however it does.
struct Beginning<'a>(&'a ByKey<Rc<News>>, Key);

impl Drop for Beginning<'_> {
    fn drop(&mut self) {
        let begun = self.0.borrow_mut().remove(&self.1);
        if let Some(begun) = begun {
            begun.tell();
        }
    }
}

impl<T> Shared<T> {
    /// What there is under this key, or what `make` makes.
    pub(crate) async fn get<E>(
        &self,
        key: &Key,
        make: impl AsyncFnOnce() -> Result<Rc<T>, E>,
    ) -> Result<Rc<T>, E> {
        loop {
            if let Some(held) = self.held.borrow().get(key).and_then(Weak::upgrade) {
                return Ok(held);
            }
            let begun = self.begun.borrow().get(key).map(News::listen);
            match begun {
                Some(told) => told.await,
                None => break,
            }
        }
        self.begun.borrow_mut().insert(key.clone(), Rc::default());
        let _beginning = Beginning(&self.begun, key.clone());
        let made = make().await?;
        self.held.borrow_mut().insert(key.clone(), Rc::downgrade(&made));
        Ok(made)
    }

    /// Has the next who needs it make another; nothing if there already is another.
    pub(crate) fn forget(&self, key: &Key, which: &Weak<T>) {
        let mut held = self.held.borrow_mut();
        if held.get(key).is_some_and(|held| held.ptr_eq(which)) {
            held.remove(key);
        }
    }
}
