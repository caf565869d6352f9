//! That the shard is about to end, told to calls that wait for something else.

use std::cell::Cell;
use std::rc::Rc;

use prism_adapters::{Error, Kind, News};

/// Whether the shard is about to end.
#[derive(Default)]
pub(crate) struct Stopping {
    begun: Cell<bool>,
    news: Rc<News>,
}

impl Stopping {
    /// It is.
    pub(super) fn begin(&self) {
        self.begun.set(true);
        self.news.tell();
    }

    /// Whether it is.
    pub(crate) fn is_begun(&self) -> bool {
        self.begun.get()
    }

    /// Waits until it is.
    pub(crate) async fn wait(&self) {
        let told = self.news.listen();
        if !self.begun.get() {
            told.await;
        }
    }

    /// What a stream ends with that could last for ever.
    pub(crate) fn error() -> Error {
        Error::new(
            Kind::Unavailable,
            "SHUTTING_DOWN",
            "this server is shutting down: go on with another one, or with this one when it is back",
        )
    }
}
