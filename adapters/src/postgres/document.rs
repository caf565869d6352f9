//! A text that several processes share: read, replaced where nobody else was quicker, and its changes heard of.
//!
//! On a connection of its own, which is made again when it is lost. A change is told by NOTIFY to everybody who listens; who waits looks
//! again from time to time all the same, because what is told while a connection is away is lost.

use std::rc::Rc;

use prism_io::rt::{self, Signal};

use super::config::PostgresConfig;
use super::errors::{Fault, Outage};
use super::migrations::{self, literal};
use super::session::{Failure, Session};
use crate::call::{Context, NO_DEADLINE_NS, Revision};
use crate::error::Error;
use crate::limits::Limits;

/// The channel of NOTIFY.
const CHANNEL: &str = "prism_documents";

/// See the module. Needs the runtime of its thread around every call.
pub struct Document {
    config: PostgresConfig,
    name: String,
    session: Option<Session>,
    /// Set when something was told, or the connection has ended.
    told: Rc<Signal>,
}

impl Document {
    /// The text of this name. Connects when it is first asked for something.
    pub fn new(config: PostgresConfig, name: impl Into<String>) -> Self {
        Document { config, name: name.into(), session: None, told: Rc::default() }
    }

    /// Version and text, unless the version is `known`; version 0 is that there is none yet.
    ///
    /// # Errors
    /// The database is away or refuses to work.
    pub async fn read(&mut self, known: u64) -> Result<Option<(u64, String)>, Error> {
        let of_name = format!("FROM prism_meta.documents WHERE name = {}", literal(&self.name));
        let found = self.ask(&format!("SELECT version {of_name}")).await?;
        let version = match found.first() {
            None => 0,
            Some(version) => number(version.as_deref()).ok_or_else(|| self.nonsense())?,
        };
        if version == known {
            return Ok(None);
        }
        if version == 0 {
            return Ok(Some((0, String::new())));
        }
        // Both in one row, because they may have changed meanwhile.
        let found = self.ask(&format!("SELECT version || ' ' || document {of_name}")).await?;
        let row = found.into_iter().next().flatten().unwrap_or_default();
        let (version, text) = row.split_once(' ').unwrap_or_default();
        let version = number(Some(version)).ok_or_else(|| self.nonsense())?;
        Ok(Some((version, text.to_owned())))
    }

    /// Replaces the text of version `before` (0: there is none yet) by that of version `after`; `false` where it is at another one.
    ///
    /// # Errors
    /// As [`Document::read`]; whether it was replaced is not known where the connection was lost meanwhile.
    pub async fn replace(&mut self, before: u64, after: u64, text: &str) -> Result<bool, Error> {
        let (name, text) = (literal(&self.name), literal(text));
        let change = match before {
            0 => format!(
                "INSERT INTO prism_meta.documents (name, version, document) VALUES ({name}, {after}, {text}) \
                 ON CONFLICT (name) DO NOTHING RETURNING version"
            ),
            before => format!(
                "UPDATE prism_meta.documents SET version = {after}, document = {text}, changed_at = now() \
                 WHERE name = {name} AND version = {before} RETURNING version"
            ),
        };
        // One message is one transaction: whoever is told finds it there.
        let changed = self.ask(&format!("{change}; NOTIFY {CHANNEL}")).await?;
        Ok(!changed.is_empty())
    }

    /// Set when it may have changed, or the connection has ended.
    pub fn told(&self) -> Rc<Signal> {
        self.told.clone()
    }

    async fn ask(&mut self, text: &str) -> Result<Vec<Option<String>>, Error> {
        let answer = match self.session().await {
            Ok(session) => session.query(text).await,
            Err(outage) => Err(Failure::Outage(outage)),
        };
        answer.map_err(|failure| {
            let fault = match failure {
                Failure::Sql(error) => Fault::Sql(error),
                Failure::Outage(outage) => {
                    self.session = None;
                    Fault::Outage(outage)
                }
            };
            self.error(&fault)
        })
    }

    /// The connection, made anew if there is none.
    async fn session(&mut self) -> Result<&mut Session, Outage> {
        if self.session.as_ref().is_some_and(|session| session.outage().is_some()) {
            self.session = None;
        }
        let session = match self.session.take() {
            Some(session) => session,
            None => {
                let timeout = self.config.connect_timeout;
                let connected = rt::timeout(timeout, Session::connect(&self.config, &self.told));
                let mut session =
                    connected.await.unwrap_or_else(|| Err(Outage::connect_timed_out(timeout)))?;
                migrations::make_documents(&mut session).await?;
                session.query(&format!("LISTEN {CHANNEL}")).await?;
                session
            }
        };
        Ok(self.session.insert(session))
    }

    fn nonsense(&self) -> Error {
        self.error(&Fault::Outage(Outage::unfit(
            "BACKEND_ERROR",
            "the table prism_meta.documents does not hold what Prism writes there".to_owned(),
        )))
    }

    fn error(&self, fault: &Fault) -> Error {
        let limits = Limits::default();
        let context = Context {
            namespace: 0,
            namespace_name: &self.name,
            partition: 0,
            now_us: 0,
            revision: Revision::default(),
            limits: &limits,
            deadline_ns: NO_DEADLINE_NS,
        };
        fault.error(&context, self.config.backoff.delay_min)
    }
}

fn number(text: Option<&str>) -> Option<u64> {
    text?.parse().ok()
}
