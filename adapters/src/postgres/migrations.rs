//! What Prism makes in a database, version by version: the `.sql` files beside this one.
//!
//! Every file is applied once, in one transaction that also notes it in `prism_meta.migrations`, under a lock that lets one
//! process at a time do so.

use super::errors::{Outage, SqlError};
use super::session::{Failure, Session};
use super::statements::Namespace;

/// What a schema is for, in `prism_meta.migrations`, and its files from version 1 on.
const META: (&str, &[&str]) = ("meta", &[include_str!("meta_0001.sql")]);

/// What is made in a namespace's schema when it is first needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Model {
    /// How far logged records have come.
    Lane,
    /// Keys with values.
    KeyValue,
    /// Queues.
    Queue,
    /// Topics.
    PubSub,
}

impl Model {
    /// Its name in `prism_meta.migrations`.
    fn name(self) -> &'static str {
        match self {
            Model::Lane => "lane",
            Model::KeyValue => "keyvalue",
            Model::Queue => "queue",
            Model::PubSub => "pubsub",
        }
    }

    /// A table that is there when it has been made.
    fn table(self) -> &'static str {
        match self {
            Model::Lane => "cell",
            Model::KeyValue => "keyvalue",
            Model::Queue => "queue",
            Model::PubSub => "pubsub",
        }
    }

    /// Its files, from version 1 on.
    fn files(self) -> &'static [&'static str] {
        match self {
            Model::Lane => &[include_str!("lane_0001.sql")],
            Model::KeyValue => {
                &[include_str!("keyvalue_0001.sql"), include_str!("keyvalue_0002.sql")]
            }
            Model::Queue => &[include_str!("queue/queue_0001.sql")],
            Model::PubSub => &[include_str!("pubsub/pubsub_0001.sql")],
        }
    }
}

/// The schema of what Prism keeps for itself; no namespace's name has an underscore.
const META_SCHEMA: &str = "prism_meta";

/// Taken while a migration is applied: "prism" in ASCII.
const LOCK: i64 = 0x70_7269_736d;

/// Makes sure of `prism_meta`.
pub(super) async fn bring_meta_up_to_date(session: &mut Session) -> Result<(), Outage> {
    let found = session.query("SELECT to_regclass('prism_meta.epochs')").await?;
    if found.first().is_some_and(Option::is_some) {
        return Ok(());
    }
    let (model, files) = META;
    let noted = note(META_SCHEMA, model, 1);
    let apply = format!("SELECT pg_advisory_xact_lock({LOCK}); {} {noted}", files[0]);
    session.query(&apply).await?;
    Ok(())
}

/// Makes sure of a model in a namespace's schema.
pub(super) async fn bring_up_to_date(
    session: &mut Session,
    namespace: &Namespace,
    model: Model,
) -> Result<(), Failure> {
    let latest = model.files().len();
    if version(session, namespace, model).await? == latest {
        return Ok(());
    }
    session
        .query(&format!("BEGIN; SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock({LOCK})"))
        .await?;
    let applied = apply(session, namespace, model).await;
    let end = if applied.is_ok() { "COMMIT" } else { "ROLLBACK" };
    session.query(end).await?;
    applied
}

async fn apply(session: &mut Session, namespace: &Namespace, model: Model) -> Result<(), Failure> {
    let files = model.files();
    let from = version(session, namespace, model).await?;
    if from > files.len() {
        let message = format!(
            "the schema {} has version {from}, this Prism knows {}: a newer one has been here",
            namespace.schema,
            files.len()
        );
        return Err(Failure::Outage(Outage::unfit("BACKEND_SCHEMA_NEWER", message)));
    }
    for (number, file) in files.iter().enumerate().skip(from) {
        let file = file.replace("{schema}", &namespace.schema);
        session
            .query(&format!("{file} {}", note(&namespace.name, model.name(), number + 1)))
            .await?;
    }
    Ok(())
}

/// Which version a schema has; 0 if it is not there, whatever is noted.
async fn version(
    session: &mut Session,
    namespace: &Namespace,
    model: Model,
) -> Result<usize, Failure> {
    let found = session
        .query(&format!(
            "SELECT coalesce(max(version), 0) FROM prism_meta.migrations WHERE schema_name = {} AND model = '{}' \
             AND to_regclass({}) IS NOT NULL",
            literal(&namespace.name),
            model.name(),
            literal(&format!("{}.{}", namespace.schema, model.table())),
        ))
        .await?;
    let version = found.into_iter().next().flatten().and_then(|text| text.parse().ok());
    version
        .ok_or_else(|| Failure::Sql(SqlError::new("XX000", "a migration's version is no number")))
}

fn note(schema: &str, model: &str, version: usize) -> String {
    format!(
        "INSERT INTO prism_meta.migrations (schema_name, model, version) VALUES ({}, '{model}', {version}) \
         ON CONFLICT (schema_name, model, version) DO UPDATE SET applied_at = now();",
        literal(schema)
    )
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
