//! The end of a namespace in PostgreSQL: what Prism has made in its schema is dropped, and the schema if nothing else is in it.
//!
//! On a connection of its own, in one transaction under the lock of the migrations, so that another process that makes the schema at
//! the same time comes before or after. What somebody else has put into the schema stays, and the schema with it.

use std::rc::Rc;

use prism_io::rt;

use super::Postgres;
use super::errors::{Fault, Outage};
use super::migrations::{self, LOCK, Model};
use super::session::{Failure, Session};
use super::statements::Namespace;
use crate::call::Context;
use crate::ending::Endings;
use crate::error::Error;

impl Endings for Postgres {
    async fn holds_data(&self, context: &Context<'_>) -> Result<bool, Error> {
        let namespace = Namespace::new(context.namespace, context.namespace_name);
        let looked = self.aside(async |session: &mut Session| {
            for table in
                Model::ALL.iter().flat_map(|model| model.tables()).filter(|table| table.is_data)
            {
                let name = format!("{}.{}", namespace.schema, table.name);
                let there = format!("SELECT to_regclass({})::text", migrations::literal(&name));
                if session.query(&there).await?.first().is_none_or(Option::is_none) {
                    continue;
                }
                if !session.query(&format!("SELECT 1 FROM {name} LIMIT 1")).await?.is_empty() {
                    return Ok(true);
                }
            }
            Ok(false)
        });
        looked.await.map_err(|fault| fault.error(context, self.retry_delay()))
    }

    async fn erase(&self, context: &Context<'_>) -> Result<(), Error> {
        // Whoever looks after namespaces by themselves passes over it from now on.
        self.pool.end(context.namespace);
        let namespace = Namespace::new(context.namespace, context.namespace_name);
        let erased = self.aside(async |session: &mut Session| {
            // One message is one transaction.
            let mut drop = format!("SELECT pg_advisory_xact_lock({LOCK}); ");
            for model in Model::ALL {
                drop += &model.drop_all(&namespace);
            }
            drop += &format!(
                "DELETE FROM prism_meta.migrations WHERE schema_name = {}",
                migrations::literal(&namespace.name)
            );
            session.query(&drop).await?;
            let schema = &namespace.schema;
            match session.query(&format!("DROP SCHEMA IF EXISTS {schema} RESTRICT")).await {
                // Somebody else has something in it.
                Err(Failure::Sql(error)) if error.is_still_used() => Ok(()),
                dropped => dropped.map(drop_rows),
            }
        });
        erased.await.map_err(|fault| fault.error(context, self.retry_delay()))
    }
}

fn drop_rows(_: Vec<Option<String>>) {}

impl Postgres {
    /// Does something on a connection of its own, beside those of calls.
    async fn aside<T>(
        &self,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, Failure>,
    ) -> Result<T, Fault> {
        let config = self.pool.links[0].config();
        let told = Rc::default();
        let connected = rt::timeout(config.connect_timeout, Session::connect(config, &told));
        let connected = connected
            .await
            .unwrap_or_else(|| Err(Outage::connect_timed_out(config.connect_timeout)));
        let mut session = connected.map_err(Fault::Outage)?;
        work(&mut session).await.map_err(|failure| match failure {
            Failure::Sql(error) => Fault::Sql(error),
            Failure::Outage(outage) => Fault::Outage(outage),
        })
    }

    fn retry_delay(&self) -> std::time::Duration {
        self.pool.links[0].retry_delay()
    }
}
