//! What is asked of PostgreSQL about queues; the rest of it are functions of `queue_0001.sql`.

use super::super::codec::Type;

/// A statement about queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in super::super) enum QueueStatement {
    Send,
    Receive,
    /// Tells which receipts were good.
    Acknowledge,
    /// The same.
    Reject,
    /// Tells whether the receipt was good.
    Extend,
    /// The same.
    Release,
    /// Undoes deliveries that reached nobody.
    PutBack,
    /// Makes dead letters of the messages whose last lease has ended.
    GiveUp,
    /// Ends the leases whose time is over.
    EndLeases,
    Configure,
    DeadLetters,
    /// The messages that wait or are leased, behind one.
    Peek,
    Redrive,
    Scheduled,
    /// How many messages are in line, at most so many, and when it is worth to look again.
    InLine,
    /// Deletes what has expired, a bounded number at a time.
    Sweep,
}

/// What a message's row tells beside payload, attempts, number and time of sending; see [`delivery`](super::rows::delivery).
macro_rules! message {
    ($table:literal) => {
        concat!(
            "SELECT 0::bigint, message_id::text, payload, attempts, id, sent_at, content_type, attributes::text, ordering_key, \
             priority::bigint, delay_ms, deliver_at, expires_at, lease",
            $table
        )
    };
}

impl QueueStatement {
    pub(in super::super) fn word(self) -> &'static str {
        match self {
            QueueStatement::Send => "queue_send",
            QueueStatement::Receive => "queue_receive",
            QueueStatement::Acknowledge => "queue_acknowledge",
            QueueStatement::Reject => "queue_reject",
            QueueStatement::Extend => "queue_extend",
            QueueStatement::Release => "queue_release",
            QueueStatement::PutBack => "queue_put_back",
            QueueStatement::GiveUp => "queue_give_up",
            QueueStatement::EndLeases => "queue_end_leases",
            QueueStatement::Configure => "queue_configure",
            QueueStatement::DeadLetters => "queue_dead_letters",
            QueueStatement::Peek => "queue_peek",
            QueueStatement::Redrive => "queue_redrive",
            QueueStatement::Scheduled => "queue_scheduled",
            QueueStatement::InLine => "queue_in_line",
            QueueStatement::Sweep => "queue_sweep",
        }
    }

    pub(in super::super) fn columns(self) -> &'static [Type] {
        use Type::{Bytea, Int8, Text, Timestamptz};
        match self {
            QueueStatement::Send => &[
                Text,
                Text,
                Bytea,
                Text,
                Text,
                Text,
                Int8,
                Int8,
                Timestamptz,
                Timestamptz,
                Timestamptz,
                Timestamptz,
            ],
            QueueStatement::Acknowledge | QueueStatement::PutBack => {
                &[Text, Int8, Int8, Timestamptz]
            }
            QueueStatement::Reject => &[Text, Int8, Int8, Timestamptz, Text],
            _ => &[],
        }
    }

    pub(in super::super) fn text(self) -> &'static str {
        match self {
            QueueStatement::Send => {
                "INSERT INTO {schema}.queue (queue, message_id, payload, content_type, attributes, ordering_key, priority, delay_ms, \
                 deliver_at, expires_at, sent_at, visible_at) \
                 SELECT queue, message_id::uuid, payload, content_type, attributes::jsonb, ordering_key, priority::smallint, delay_ms, \
                 deliver_at, expires_at, sent_at, visible_at \
                 FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], \
                 $9::timestamptz[], $10::timestamptz[], $11::timestamptz[], $12::timestamptz[]) WITH ORDINALITY AS sent (queue, \
                 message_id, payload, content_type, attributes, ordering_key, priority, delay_ms, deliver_at, expires_at, sent_at, \
                 visible_at, number) ORDER BY number"
            }
            QueueStatement::Receive => message!(
                " FROM {schema}.queue_receive($1::text, $2::timestamptz, $3::int, $4::timestamptz, $5::bigint, $6::bigint)"
            ),
            QueueStatement::Acknowledge => {
                "DELETE FROM {schema}.queue m USING unnest($1::text[], $2::bigint[], $3::bigint[], $4::timestamptz[]) WITH ORDINALITY \
                 AS done (queue, id, lease, moment, number) \
                 WHERE m.id = done.id AND m.queue = done.queue AND m.lease = done.lease AND m.visible_at > done.moment \
                 RETURNING done.number, ''::text, NULL::bytea, 0, 0::bigint, NULL::timestamptz"
            }
            QueueStatement::Reject => {
                "WITH gone AS (DELETE FROM {schema}.queue m USING unnest($1::text[], $2::bigint[], $3::bigint[], $4::timestamptz[], \
                 $5::text[]) WITH ORDINALITY AS given (queue, id, lease, moment, reason, number) \
                 WHERE m.id = given.id AND m.queue = given.queue AND m.lease = given.lease AND m.visible_at > given.moment \
                 RETURNING m AS message, given.reason, given.moment, given.number), \
                 kept AS (INSERT INTO {schema}.queue_dead_letter SELECT (gone.message).*, gone.reason, gone.moment FROM gone \
                 WHERE EXISTS (SELECT FROM {schema}.queue_setting s WHERE s.queue = (gone.message).queue)) \
                 SELECT number, ''::text, NULL::bytea, 0, 0::bigint, NULL::timestamptz FROM gone"
            }
            QueueStatement::Extend => {
                "UPDATE {schema}.queue SET visible_at = $5::timestamptz \
                 WHERE queue = $1::text AND id = $2::bigint AND lease = $3::bigint AND visible_at > $4::timestamptz \
                 RETURNING 0::bigint, ''::text, NULL::bytea, 0, 0::bigint, visible_at"
            }
            QueueStatement::Release => {
                "WITH held AS (SELECT m.id, coalesce(s.max_deliveries > 0 AND m.attempts >= s.max_deliveries, false) AS is_over \
                 FROM {schema}.queue m LEFT JOIN {schema}.queue_setting s ON s.queue = m.queue \
                 WHERE m.queue = $1::text AND m.id = $2::bigint AND m.lease = $3::bigint AND m.visible_at > $4::timestamptz \
                 FOR UPDATE OF m), \
                 freed AS (UPDATE {schema}.queue m SET lease = NULL, visible_at = $5::timestamptz FROM held \
                 WHERE m.id = held.id AND NOT held.is_over), \
                 gone AS (DELETE FROM {schema}.queue m USING held WHERE m.id = held.id AND held.is_over RETURNING m AS message), \
                 kept AS (INSERT INTO {schema}.queue_dead_letter \
                 SELECT (gone.message).*, 'MAX_DELIVERIES', $4::timestamptz FROM gone) \
                 SELECT 0::bigint, ''::text, NULL::bytea, 0, 0::bigint, NULL::timestamptz FROM held"
            }
            QueueStatement::PutBack => {
                "UPDATE {schema}.queue m SET attempts = m.attempts - 1, lease = NULL, visible_at = given.moment \
                 FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::timestamptz[]) WITH ORDINALITY \
                 AS given (queue, id, lease, moment, number) \
                 WHERE m.id = given.id AND m.queue = given.queue AND m.lease = given.lease \
                 RETURNING given.number, ''::text, NULL::bytea, 0, 0::bigint, NULL::timestamptz"
            }
            QueueStatement::GiveUp => {
                "SELECT 0::bigint, ''::text, NULL::bytea, 0, 0::bigint, NULL::timestamptz \
                 FROM {schema}.queue_give_up($1::text, $2::timestamptz)"
            }
            QueueStatement::EndLeases => {
                "UPDATE {schema}.queue SET lease = NULL \
                 WHERE queue = $1::text AND visible_at <= $2::timestamptz AND lease IS NOT NULL"
            }
            QueueStatement::Configure => {
                "INSERT INTO {schema}.queue_setting (queue, max_deliveries) VALUES ($1::text, $2::bigint) \
                 ON CONFLICT (queue) DO UPDATE SET max_deliveries = EXCLUDED.max_deliveries"
            }
            QueueStatement::DeadLetters => {
                "SELECT 0::bigint, message_id::text, CASE WHEN sum(bytes) OVER before <= $5::bigint OR row_number() OVER before = 1 \
                 THEN payload END, attempts, id, sent_at, content_type, attributes::text, ordering_key, priority::bigint, delay_ms, \
                 deliver_at, expires_at, lease, reason, dead_at FROM (SELECT *, octet_length(payload) + octet_length(content_type) \
                 + octet_length(attributes::text) + coalesce(octet_length(ordering_key), 0) + octet_length(reason) \
                 + coalesce((attributes ->> 'prism.bytes')::bigint, 0) + 512 AS bytes \
                 FROM (SELECT d.* FROM {schema}.queue_dead_letter d WHERE d.queue = $1::text AND d.id > $3::bigint \
                 UNION ALL SELECT m.*, 'MAX_DELIVERIES', m.visible_at FROM {schema}.queue m \
                 JOIN {schema}.queue_setting s ON s.queue = m.queue WHERE m.queue = $1::text AND m.id > $3::bigint \
                 AND m.visible_at <= $2::timestamptz AND m.lease IS NOT NULL AND s.max_deliveries > 0 \
                 AND m.attempts >= s.max_deliveries) AS dead ORDER BY id LIMIT $4::bigint) AS page \
                 WINDOW before AS (ORDER BY id) ORDER BY id"
            }
            QueueStatement::Peek => {
                "SELECT 0::bigint, message_id::text, CASE WHEN sum(bytes) OVER before <= $5::bigint OR row_number() OVER before = 1 \
                 THEN payload END, attempts, id, sent_at, content_type, attributes::text, ordering_key, priority::bigint, delay_ms, \
                 deliver_at, expires_at, lease FROM (SELECT m.*, octet_length(m.payload) + octet_length(m.content_type) \
                 + octet_length(m.attributes::text) + coalesce(octet_length(m.ordering_key), 0) \
                 + coalesce((m.attributes ->> 'prism.bytes')::bigint, 0) + 512 AS bytes FROM {schema}.queue m \
                 WHERE m.queue = $1::text AND m.id > $3::bigint AND (m.expires_at IS NULL OR m.expires_at > $2::timestamptz) \
                 AND NOT (m.visible_at <= $2::timestamptz AND m.lease IS NOT NULL AND EXISTS (SELECT FROM {schema}.queue_setting s \
                 WHERE s.queue = m.queue AND s.max_deliveries > 0 AND m.attempts >= s.max_deliveries)) \
                 ORDER BY m.id LIMIT $4::bigint) AS page WINDOW before AS (ORDER BY id) ORDER BY id"
            }
            QueueStatement::Redrive => {
                "SELECT {schema}.queue_redrive($1::text, $2::timestamptz, $3::text[], $4::bigint), ''::text, NULL::bytea, 0, \
                 0::bigint, NULL::timestamptz"
            }
            QueueStatement::Scheduled => {
                "SELECT count(*), ''::text, NULL::bytea, 0, 0::bigint, NULL::timestamptz FROM {schema}.queue \
                 WHERE queue = $1::text AND visible_at > $2::timestamptz AND lease IS NULL \
                 AND (expires_at IS NULL OR expires_at > $2::timestamptz)"
            }
            QueueStatement::InLine => {
                "SELECT (SELECT count(*) FROM (SELECT FROM {schema}.queue m WHERE m.queue = $1::text \
                 AND m.visible_at <= $2::timestamptz AND (m.expires_at IS NULL OR m.expires_at > $2::timestamptz) \
                 AND (m.ordering_key IS NULL OR NOT EXISTS (SELECT FROM {schema}.queue o WHERE o.queue = m.queue \
                 AND o.ordering_key = m.ordering_key AND o.id < m.id AND (o.expires_at IS NULL OR o.expires_at > $2::timestamptz \
                 OR (o.lease IS NOT NULL AND o.visible_at > $2::timestamptz)))) LIMIT $3::bigint) AS found), ''::text, NULL::bytea, 0, \
                 0::bigint, (SELECT min(visible_at) FROM {schema}.queue WHERE queue = $1::text AND visible_at > $2::timestamptz)"
            }
            QueueStatement::Sweep => {
                "DELETE FROM {schema}.queue WHERE id IN (SELECT id FROM {schema}.queue WHERE expires_at <= $1::timestamptz \
                 AND (lease IS NULL OR visible_at <= $1::timestamptz) ORDER BY expires_at LIMIT 500 FOR UPDATE SKIP LOCKED) \
                 RETURNING 0::bigint, ''::text, NULL::bytea, 0, 0::bigint, NULL::timestamptz"
            }
        }
    }
}
