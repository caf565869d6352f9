//! What is asked of PostgreSQL: one statement for each kind of thing, prepared per namespace and connection.
//!
//! All of them tell rows that begin with the same six columns ([`Row`](super::codec::Row)): number, key, value, length, version, expiry.
//! Those of queues and topics stand in [`queue`](super::queue) and [`pubsub`](super::pubsub). None
//! asks PostgreSQL for the time: calls bring theirs.

use std::cell::Cell;

use super::codec::Type;
use super::migrations::Model;
use super::pubsub::PubSubStatement;
use super::queue::QueueStatement;

/// A namespace as PostgreSQL knows it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Namespace {
    pub(super) number: u32,
    pub(super) name: String,
    /// The name as an identifier, in its quotes.
    pub(super) schema: String,
    /// What it was called for, as bits.
    models: Cell<u8>,
    /// It was deleted: nothing of it is made any more.
    has_ended: Cell<bool>,
}

impl Namespace {
    pub(super) fn new(number: u32, name: &str) -> Self {
        Namespace {
            number,
            name: name.to_owned(),
            schema: format!("\"{}\"", name.replace('"', "\"\"")),
            models: Cell::new(0),
            has_ended: Cell::new(false),
        }
    }

    /// Notes that it is called for a model.
    pub(super) fn note(&self, model: Model) {
        self.models.set(self.models.get() | 1 << model as u8);
    }

    /// From now on no call of it is carried out.
    pub(super) fn end(&self) {
        self.has_ended.set(true);
    }

    /// Whether it was deleted.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.get()
    }

    /// Whether it was called for a model.
    pub(super) fn uses(&self, model: Model) -> bool {
        self.models.get() & 1 << model as u8 != 0
    }
}

/// A statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Statement {
    /// Entries of keys, by their number from 1.
    Get,
    /// The same, values only as long as they fit into so many bytes together.
    GetMany,
    Put,
    /// Tells what was there, by the key's number from 1.
    Delete,
    Transact,
    /// The same, with messages for the outbox.
    Write,
    /// The messages of the outbox behind one, without their contents.
    OutboxList,
    /// Messages of the outbox, contents only as long as they fit into so many bytes together; the first always.
    OutboxRead,
    OutboxDone,
    Expire,
    Persist,
    /// The keys after one, from a prefix on.
    Keys,
    /// The same with values, as long as they fit into so many bytes together; the first always.
    Entries,
    /// Deletes what has expired, a bounded number at a time.
    Sweep,
    CellResume,
    CellSet,
    CellMove,
    Queue(QueueStatement),
    PubSub(PubSubStatement),
}

/// Entries that one sweep deletes at most.
pub(super) const SWEEP_ENTRIES_MAX: usize = 500;

impl Statement {
    fn word(self) -> &'static str {
        match self {
            Statement::Get => "get",
            Statement::GetMany => "get_many",
            Statement::Put => "put",
            Statement::Delete => "delete",
            Statement::Transact => "transact",
            Statement::Write => "write",
            Statement::OutboxList => "outbox_list",
            Statement::OutboxRead => "outbox_read",
            Statement::OutboxDone => "outbox_done",
            Statement::Expire => "expire",
            Statement::Persist => "persist",
            Statement::Keys => "keys",
            Statement::Entries => "entries",
            Statement::Sweep => "sweep",
            Statement::CellResume => "cell_resume",
            Statement::CellSet => "cell_set",
            Statement::CellMove => "cell_move",
            Statement::Queue(statement) => statement.word(),
            Statement::PubSub(statement) => statement.word(),
        }
    }

    /// What it needs to be in the namespace's schema.
    pub(super) fn model(self) -> Model {
        match self {
            Statement::CellResume | Statement::CellSet | Statement::CellMove => Model::Lane,
            Statement::Queue(_) => Model::Queue,
            Statement::PubSub(_) => Model::PubSub,
            _ => Model::KeyValue,
        }
    }

    /// The types of its parameters, where each is an array with an element per row
    /// ([`Operation::Row`](super::batch::Operation::Row)); rows that it tells are numbered like them, from 1.
    pub(super) fn columns(self) -> &'static [Type] {
        match self {
            Statement::Queue(statement) => statement.columns(),
            Statement::PubSub(statement) => statement.columns(),
            _ => &[],
        }
    }

    /// What a connection calls it when it is prepared.
    pub(super) fn name(self, namespace: &Namespace) -> String {
        format!("{}_{}", self.word(), namespace.number)
    }

    /// Its text.
    pub(super) fn text(self, namespace: &Namespace) -> String {
        let text = match self {
            Statement::Get => {
                "SELECT number, ''::text, CASE WHEN octet_length(value) <= $2::int THEN value END, octet_length(value), version, \
                 expires_at FROM unnest($1::text[]) WITH ORDINALITY AS asked (key, number) JOIN {schema}.keyvalue USING (key)"
            }
            Statement::GetMany => {
                "SELECT number, ''::text, CASE WHEN sum(octet_length(value) + 96) OVER (ORDER BY number) <= $2::bigint THEN value END, \
                 octet_length(value), version, expires_at \
                 FROM unnest($1::text[]) WITH ORDINALITY AS asked (key, number) JOIN {schema}.keyvalue USING (key)"
            }
            Statement::Put => {
                "INSERT INTO {schema}.keyvalue AS k (key, value, version, expires_at) \
                 SELECT * FROM unnest($1::text[], $2::bytea[], $3::bigint[], $4::timestamptz[]) \
                 ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value, version = EXCLUDED.version, expires_at = EXCLUDED.expires_at"
            }
            Statement::Delete => {
                "DELETE FROM {schema}.keyvalue k USING unnest($1::text[]) WITH ORDINALITY AS asked (key, number) \
                 WHERE k.key = asked.key RETURNING number, ''::text, NULL::bytea, 0, version, expires_at"
            }
            Statement::Transact => {
                "SELECT * FROM {schema}.transact($1::timestamptz, $2::text[], $3::smallint[], $4::bytea[], $5::text[], \
                 $6::smallint[], $7::bytea[], $8::timestamptz[], $9::bigint, $10::int, $11::boolean, $12::bigint)"
            }
            Statement::Write => {
                "WITH done AS MATERIALIZED (SELECT * FROM {schema}.transact($1::timestamptz, $2::text[], $3::smallint[], $4::bytea[], \
                 $5::text[], $6::smallint[], $7::bytea[], $8::timestamptz[], $9::bigint, $10::int, $11::boolean, $22::bigint)), \
                 sent AS (INSERT INTO {schema}.outbox (message_id, target_namespace, target, payload, content_type, attributes, \
                 ordering_key, priority, deliver_at, expires_at, committed_at) \
                 SELECT message_id::uuid, target_namespace, target, payload, content_type, attributes::jsonb, ordering_key, \
                 priority::smallint, deliver_at, expires_at, $1::timestamptz \
                 FROM unnest($12::text[], $13::text[], $14::text[], $15::bytea[], $16::text[], $17::text[], $18::text[], \
                 $19::bigint[], $20::timestamptz[], $21::timestamptz[]) WITH ORDINALITY AS given (message_id, target_namespace, \
                 target, payload, content_type, attributes, ordering_key, priority, deliver_at, expires_at, number) \
                 WHERE NOT EXISTS (SELECT FROM done) ORDER BY number) \
                 SELECT * FROM done"
            }
            Statement::OutboxList => {
                "SELECT 0::bigint, ''::text, NULL::bytea, 0, id, committed_at, target_namespace, target, ordering_key \
                 FROM {schema}.outbox WHERE id > $1::bigint ORDER BY id LIMIT $2::bigint"
            }
            Statement::OutboxRead => {
                "SELECT 0::bigint, message_id::text, CASE WHEN sum(octet_length(payload) + 512) OVER before <= $2::bigint \
                 OR row_number() OVER before = 1 THEN payload END, 0, id, committed_at, content_type, attributes::text, \
                 ordering_key, priority::bigint, deliver_at, expires_at, target_namespace, target \
                 FROM {schema}.outbox WHERE id = ANY ($1::bigint[]) WINDOW before AS (ORDER BY id) ORDER BY id"
            }
            Statement::OutboxDone => {
                "DELETE FROM {schema}.outbox WHERE id = ANY ($1::bigint[]) \
                 RETURNING 0::bigint, ''::text, NULL::bytea, 0, 0::bigint, NULL::timestamptz"
            }
            Statement::Expire => {
                "UPDATE {schema}.keyvalue SET expires_at = $3::timestamptz \
                 WHERE key = $1::text AND (expires_at IS NULL OR expires_at > $2::timestamptz) \
                 RETURNING 0::bigint, ''::text, NULL::bytea, 0, version, expires_at"
            }
            Statement::Persist => {
                "UPDATE {schema}.keyvalue SET expires_at = NULL \
                 WHERE key = $1::text AND (expires_at IS NULL OR expires_at > $2::timestamptz) \
                 RETURNING 0::bigint, ''::text, NULL::bytea, 0, version, expires_at"
            }
            Statement::Keys => {
                "SELECT 0::bigint, key, NULL::bytea, 0, version, expires_at FROM {schema}.keyvalue \
                 WHERE key > $1::text AND key >= $2::text ORDER BY key LIMIT $3::bigint"
            }
            Statement::Entries => {
                "SELECT 0::bigint, key, CASE WHEN (sum(length) OVER before <= $4::bigint OR row_number() OVER before = 1) \
                 AND length <= $5::int THEN value END, length, version, expires_at \
                 FROM (SELECT key, value, octet_length(value) AS length, version, expires_at FROM {schema}.keyvalue \
                 WHERE key > $1::text AND key >= $2::text ORDER BY key LIMIT $3::bigint) AS page \
                 WINDOW before AS (ORDER BY key) ORDER BY key"
            }
            Statement::Sweep => {
                "DELETE FROM {schema}.keyvalue WHERE key IN (SELECT key FROM {schema}.keyvalue WHERE expires_at <= $1::timestamptz \
                 ORDER BY expires_at LIMIT 500 FOR UPDATE SKIP LOCKED) \
                 RETURNING 0::bigint, ''::text, NULL::bytea, 0, version, expires_at"
            }
            Statement::CellResume => {
                "INSERT INTO {schema}.cell AS c (partition, session) VALUES ($1::int, $2::bigint) \
                 ON CONFLICT (partition) DO UPDATE SET session = EXCLUDED.session \
                 RETURNING epoch, ''::text, directory_id, 0, lane_seq, NULL::timestamptz"
            }
            Statement::CellSet => {
                "UPDATE {schema}.cell SET directory_id = $3::bytea, epoch = $4::bigint, lane_seq = $5::bigint \
                 WHERE partition = $1::int AND session = $2::bigint \
                 RETURNING epoch, ''::text, directory_id, 0, lane_seq, NULL::timestamptz"
            }
            Statement::CellMove => {
                "SELECT 0::bigint, ''::text, NULL::bytea, 0, 0::bigint, NULL::timestamptz \
                 FROM {schema}.move_cell($1::int, $2::bigint, $3::bytea, $4::bigint, $5::bigint, $6::bigint)"
            }
            Statement::Queue(statement) => statement.text(),
            Statement::PubSub(statement) => statement.text(),
        };
        text.replace("{schema}", &namespace.schema)
    }
}
