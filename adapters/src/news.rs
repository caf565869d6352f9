//! News: how what has arrived at a source is told to those who wait for it, on one shard.
//!
//! A source (a topic, a queue, a partition) has one [`News`]; whoever reads it takes a [`Listener`] *before* it looks, so that nothing is
//! missed between its look and its wait. It carries no data: a reader looks again by itself, from where it stands, so that a
//! slow one holds nothing and holds nobody up.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Tells its listeners that there is something new.
#[derive(Debug, Default)]
pub struct News {
    told: Cell<u64>,
    listeners: Cell<u64>,
    waiting: RefCell<HashMap<u64, Waker>>,
}

impl News {
    /// Wakes everybody who waits.
    pub fn tell(&self) {
        self.told.set(self.told.get() + 1);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_values().for_each(Waker::wake);
    }

    /// Somebody who hears of everything that is told from now on.
    pub fn listen(self: &Rc<Self>) -> Listener {
        let number = self.listeners.get();
        self.listeners.set(number + 1);
        Listener { news: Rc::clone(self), heard: self.told.get(), number }
    }
}

/// Ready when something was told since it was made or was last ready.
#[derive(Debug)]
pub struct Listener {
    news: Rc<News>,
    heard: u64,
    number: u64,
}

impl Future for Listener {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let told = self.news.told.get();
        if self.heard != told {
            self.heard = told;
            return Poll::Ready(());
        }
        self.news.waiting.borrow_mut().insert(self.number, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.news.waiting.borrow_mut().remove(&self.number);
    }
}

impl Listener {
    /// Ready when either was told something.
    pub fn or<'a>(&'a mut self, other: &'a mut Listener) -> Either<'a> {
        Either(self, other)
    }
}

/// See [`Listener::or`].
#[derive(Debug)]
pub struct Either<'a>(&'a mut Listener, &'a mut Listener);

impl Future for Either<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Either(one, other) = &mut *self;
        // Both are asked, so that either wakes.
        let ready = Pin::new(&mut **one).poll(context).is_ready();
        match Pin::new(&mut **other).poll(context).is_ready() || ready {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_missed_and_nothing_is_left_behind() {
        let news = Rc::new(News::default());
        let mut context = Context::from_waker(Waker::noop());
        let mut listener = news.listen();
        assert!(Pin::new(&mut listener).poll(&mut context).is_pending());
        news.tell();
        news.tell();
        assert!(Pin::new(&mut listener).poll(&mut context).is_ready());
        assert!(Pin::new(&mut listener).poll(&mut context).is_pending());
        drop(listener);
        assert!(news.waiting.borrow().is_empty());
    }
}
