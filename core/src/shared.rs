//! What is applied, kept in a PostgreSQL for several servers: on a thread of its own, which asks for the control thread.
//!
//! The document has a version, and is replaced only where it is still at the version that a change was made from: of two servers that
//! apply at once one is too late, and plans again. Every server hears of changes by NOTIFY, and looks once a second besides. While the
//! database is away nothing is applied; everything else goes on with what was known last, which the data directory remembers.

use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SyncSender, TryRecvError, channel, sync_channel,
};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use prism_adapters::postgres::{Document, PostgresConfig};
use prism_adapters::{Error, Kind};
use prism_io::bell::Bell;
use prism_io::rt;
use serde::{Deserialize, Serialize};

use crate::applied::Applied;

/// How often it is looked for changes that nobody has told of.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a change may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where what is applied is shared.
#[derive(Debug, Clone)]
pub(crate) struct SharedConfig {
    pub(crate) postgres: PostgresConfig,
    /// What the database is called among the platform's backends.
    pub(crate) backend: String,
    /// What the document is called there.
    pub(crate) name: String,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shared {
    /// 128 random bits in hexadecimal: a document that was made anew is another one.
    pub(crate) id: String,
    pub(crate) applied: Applied,
}

/// What the thread tells of the document.
#[derive(Debug)]
pub(crate) enum Seen {
    /// It is at this version, as is known already.
    Same,
    /// It is another one, or none yet (version 0).
    Changed(u64, String),
    /// The database cannot be asked.
    Away(Error),
}

/// The thread, asked for changes. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct SharedStore {
    asks: mpsc::Sender<Ask>,
    bell: Arc<Bell>,
    pub(crate) backend: String,
}

#[derive(Debug)]
struct Ask {
    before: u64,
    after: u64,
    text: String,
    answer: SyncSender<Result<bool, Error>>,
}

impl Drop for SharedStore {
    fn drop(&mut self) {
        self.bell.ring();
    }
}

impl SharedStore {
    /// Starts the thread; `known`: the version that is known already.
    pub(crate) fn start(
        config: SharedConfig,
        known: u64,
        tell: impl Fn(Seen) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (asks, asked) = channel();
        let bell = Arc::new(Bell::default());
        let (rung, backend) = (bell.clone(), config.backend.clone());
        std::thread::Builder::new().name("registry".to_owned()).spawn(move || {
            let document = Document::new(config.postgres, config.name);
            let kept = rt::run(keep(document, known, asked, rung, Box::new(tell)));
            if let Err(error) = kept {
                tracing::error!(
                    "the loop of the shared registry cannot run: {error}; see `prism doctor`"
                );
            }
        })?;
        Ok(Self { asks, bell, backend })
    }

    /// Replaces the document of version `before`; `false` where another server was quicker.
    pub(crate) fn replace(&self, before: u64, after: u64, text: String) -> Result<bool, Error> {
        let (answer, answered) = sync_channel(1);
        let gone = || {
            let message = "the shared registry is not looked after any more; restart the server";
            Error::new(Kind::Unavailable, "REGISTRY_UNREACHABLE", message)
        };
        self.asks.send(Ask { before, after, text, answer }).map_err(|_| gone())?;
        self.bell.ring();
        match answered.recv_timeout(PATIENCE) {
            Ok(outcome) => outcome.map_err(|error| self.away(&error)),
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
            Err(RecvTimeoutError::Timeout) => {
                let message = format!("it did not answer within {} s", PATIENCE.as_secs());
                Err(self.away(&Error::new(Kind::Unavailable, "BACKEND_UNRESPONSIVE", message)))
            }
        }
    }

    fn away(&self, error: &Error) -> Error {
        let message = format!(
            "what is applied is kept on `{}` for all servers, and it cannot be asked now; whether the change was taken shows when it is \
             back: {}",
            self.backend,
            error.message()
        );
        Error::new(Kind::Unavailable, "REGISTRY_UNREACHABLE", message).with("cause", error.reason())
    }
}

/// Looks after the document until nobody can ask for changes any more.
async fn keep(
    mut document: Document,
    mut known: u64,
    asked: Receiver<Ask>,
    bell: Arc<Bell>,
    tell: Box<dyn Fn(Seen) + Send>,
) {
    let told = document.told();
    loop {
        let heard = bell.heard();
        loop {
            match asked.try_recv() {
                Ok(ask) => {
                    let replaced = document.replace(ask.before, ask.after, &ask.text).await;
                    if let Ok(true) = replaced {
                        known = ask.after;
                    }
                    // Whoever asked may have gone: then it is seen as anybody else's change.
                    let _ = ask.answer.send(replaced);
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        tell(match document.read(known).await {
            Ok(None) => Seen::Same,
            Ok(Some((version, text))) => {
                known = version;
                Seen::Changed(version, text)
            }
            Err(error) => Seen::Away(error),
        });
        let (mut rung, mut news) = (std::pin::pin!(bell.wait(heard)), std::pin::pin!(told.wait()));
        let either = std::future::poll_fn(|context| {
            if rung.as_mut().poll(context).is_ready() {
                return std::task::Poll::Ready(());
            }
            news.as_mut().poll(context)
        });
        let _ = rt::timeout(LOOK_EVERY, either).await;
    }
}
