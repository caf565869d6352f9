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

/// A table of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: &'static str,
    /// Whether its rows are the namespace's data, and not what Prism needs beside them.
    pub(super) is_data: bool,
}

const fn data(name: &'static str) -> Table {
    Table { name, is_data: true }
}

const fn beside(name: &'static str) -> Table {
    Table { name, is_data: false }
}

impl Model {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [Self::Lane, Self::KeyValue, Self::Queue, Self::PubSub];

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

    /// The tables that its files make.
    pub(super) fn tables(self) -> &'static [Table] {
        match self {
            Model::Lane => const { &[beside("cell")] },
            Model::KeyValue => const { &[data("keyvalue"), data("outbox")] },
            Model::Queue => {
                const { &[data("queue"), data("queue_dead_letter"), beside("queue_setting")] }
            }
            Model::PubSub => {
                const {
                    &[
                        data("pubsub"),
                        data("pubsub_subscription"),
                        data("pubsub_delivery"),
                        beside("pubsub_trimmed"),
                    ]
                }
            }
        }
    }

    /// The functions that its files make.
    fn functions(self) -> &'static [&'static str] {
        match self {
            Model::Lane => &["move_cell"],
            Model::KeyValue => &["transact"],
            Model::Queue => &["queue_give_up", "queue_receive", "queue_redrive"],
            Model::PubSub => &["pubsub_in_turn", "pubsub_subscribe", "pubsub_fetch"],
        }
    }

    /// Drops everything that its files make in a namespace's schema; what is not there is left out. Indexes and triggers go with
    /// their tables.
    pub(super) fn drop_all(self, namespace: &Namespace) -> String {
        let schema = &namespace.schema;
        let mut text = String::new();
        for table in self.tables() {
            text += &format!("DROP TABLE IF EXISTS {schema}.{} CASCADE; ", table.name);
        }
        // By name and kind of arguments, whatever those are in the version that made it.
        for function in self.functions() {
            text += &format!(
                "DO $$ DECLARE made regprocedure; BEGIN FOR made IN SELECT p.oid::regprocedure FROM pg_proc p \
                 JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = {} AND p.proname = {} \
                 LOOP EXECUTE 'DROP FUNCTION ' || made || ' CASCADE'; END LOOP; END $$; ",
                literal(&namespace.name),
                literal(function),
            );
        }
        text
    }

    /// Its files, from version 1 on.
    fn files(self) -> &'static [&'static str] {
        match self {
            Model::Lane => &[include_str!("lane_0001.sql")],
            Model::KeyValue => {
                &[include_str!("keyvalue_0001.sql"), include_str!("keyvalue_0002.sql")]
            }
            Model::Queue => {
                &[include_str!("queue/queue_0001.sql"), include_str!("queue/queue_0002.sql")]
            }
            Model::PubSub => &[include_str!("pubsub/pubsub_0001.sql")],
        }
    }
}

/// The schema of what Prism keeps for itself; no namespace's name has an underscore.
const META_SCHEMA: &str = "prism_meta";

/// Taken while a migration is applied: "prism" in ASCII.
pub(super) const LOCK: i64 = 0x70_7269_736d;

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

/// Makes sure of the table of texts that processes share.
pub(super) async fn make_documents(session: &mut Session) -> Result<(), Outage> {
    let found = session.query("SELECT to_regclass('prism_meta.documents')").await?;
    if found.first().is_some_and(Option::is_some) {
        return Ok(());
    }
    let noted = note(META_SCHEMA, "documents", 1);
    let file = include_str!("documents_0001.sql");
    session.query(&format!("SELECT pg_advisory_xact_lock({LOCK}); {file} {noted}")).await?;
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

/// A text as a literal.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_a_model_makes_is_known_where_it_is_dropped() {
        for model in Model::ALL {
            let (mut tables, mut functions) = (Vec::new(), Vec::new());
            for line in model.files().iter().flat_map(|file| file.lines()) {
                let mut words = line.split(|c: char| c.is_whitespace() || c == '(');
                let found = words.find_map(|word| word.strip_prefix("{schema}."));
                match found {
                    Some(name) if line.starts_with("CREATE TABLE ") => tables.push(name),
                    Some(name) if line.starts_with("CREATE FUNCTION ") => functions.push(name),
                    // One that a later file makes anew is there once.
                    Some(name)
                        if line.starts_with("CREATE OR REPLACE FUNCTION ")
                            && !functions.contains(&name) =>
                    {
                        functions.push(name);
                    }
                    _ => {}
                }
            }
            let known: Vec<_> = model.tables().iter().map(|table| table.name).collect();
            assert_eq!((tables, functions), (known, model.functions().to_vec()), "{model:?}");
        }
    }
}
