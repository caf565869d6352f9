//! What is asked of PostgreSQL about topics; the rest of it are functions of `pubsub_0001.sql`.

use super::super::codec::Type;

/// A statement about topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in super::super) enum PubSubStatement {
    /// Tells positions.
    Publish,
    /// The newest event of all topics.
    End,
    /// The events of all topics after one, with payloads as far as they fit into so many bytes; the first always.
    After,
    /// The newest event of a topic.
    Newest,
    Subscribe,
    Unsubscribe,
    Fetch,
    /// Tells the topic of a subscription.
    Lookup,
    /// Tells which events were not done before.
    Done,
    /// Gives back what a stream has.
    Release,
    /// Deletes what subscriptions have done with, but for the newest, a bounded number at a time.
    Sweep,
}

impl PubSubStatement {
    pub(in super::super) fn word(self) -> &'static str {
        match self {
            PubSubStatement::Publish => "pubsub_publish",
            PubSubStatement::End => "pubsub_end",
            PubSubStatement::After => "pubsub_after",
            PubSubStatement::Newest => "pubsub_newest",
            PubSubStatement::Subscribe => "pubsub_subscribe",
            PubSubStatement::Unsubscribe => "pubsub_unsubscribe",
            PubSubStatement::Fetch => "pubsub_fetch",
            PubSubStatement::Lookup => "pubsub_lookup",
            PubSubStatement::Done => "pubsub_done",
            PubSubStatement::Release => "pubsub_release",
            PubSubStatement::Sweep => "pubsub_sweep",
        }
    }

    pub(in super::super) fn columns(self) -> &'static [Type] {
        use Type::{Bytea, Int8, Text, Timestamptz};
        match self {
            PubSubStatement::Publish => {
                &[Text, Text, Bytea, Text, Text, Text, Timestamptz, Timestamptz]
            }
            PubSubStatement::Done => &[Text, Int8, Int8],
            _ => &[],
        }
    }

    pub(in super::super) fn text(self) -> &'static str {
        match self {
            PubSubStatement::Publish => {
                "WITH stored AS (INSERT INTO {schema}.pubsub (topic, message_id, payload, content_type, attributes, ordering_key, \
                 expires_at, published_at) \
                 SELECT topic, message_id::uuid, payload, content_type, attributes::jsonb, ordering_key, expires_at, published_at \
                 FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::text[], $6::text[], $7::timestamptz[], \
                 $8::timestamptz[]) WITH ORDINALITY AS sent (topic, message_id, payload, content_type, attributes, ordering_key, \
                 expires_at, published_at, number) ORDER BY number RETURNING id, message_id) \
                 SELECT number, ''::text, NULL::bytea, 0, stored.id, NULL::timestamptz \
                 FROM unnest($2::text[]) WITH ORDINALITY AS sent (message_id, number) \
                 JOIN stored ON stored.message_id = sent.message_id::uuid"
            }
            PubSubStatement::End => {
                "SELECT coalesce(max(id), 0), ''::text, NULL::bytea, 0, 0::bigint, NULL::timestamptz FROM {schema}.pubsub"
            }
            PubSubStatement::After => {
                "SELECT id, message_id::text, CASE WHEN sum(octet_length(payload) + 512) OVER before <= $3::bigint \
                 OR row_number() OVER before = 1 THEN payload END, 1, 0::bigint, published_at, topic, content_type, \
                 attributes::text, ordering_key, expires_at FROM (SELECT * FROM {schema}.pubsub WHERE id > $1::bigint \
                 ORDER BY id LIMIT $2::bigint) AS page WINDOW before AS (ORDER BY id) ORDER BY id"
            }
            PubSubStatement::Newest => {
                "SELECT id, message_id::text, NULL::bytea, 0, 0::bigint, published_at FROM {schema}.pubsub WHERE topic = $1::text \
                 ORDER BY id DESC LIMIT 1"
            }
            PubSubStatement::Subscribe => {
                "SELECT position, topic, convert_to(filter, 'UTF8'), ordered::int, incarnation, NULL::timestamptz \
                 FROM {schema}.pubsub_subscribe($1::text, $2::text, $3::text, $4::boolean, $5::int, $6::timestamptz, $7::bigint, \
                 $8::bigint)"
            }
            PubSubStatement::Unsubscribe => {
                "DELETE FROM {schema}.pubsub_subscription WHERE subscription = $1::text \
                 RETURNING 0::bigint, topic, NULL::bytea, 0, 0::bigint, NULL::timestamptz"
            }
            PubSubStatement::Fetch => {
                "SELECT told_id, coalesce(message_id::text, ''), payload, told_attempts, 0::bigint, coalesce(told_until, published_at), \
                 topic, content_type, attributes::text, ordering_key, expires_at \
                 FROM {schema}.pubsub_fetch($1::text, $2::bigint, $3::bigint, $4::timestamptz, $5::timestamptz, $6::int, $7::int, \
                 $8::bigint) LEFT JOIN {schema}.pubsub ON id = told_id ORDER BY told_id"
            }
            PubSubStatement::Lookup => {
                "SELECT 0::bigint, topic, NULL::bytea, 0, 0::bigint, NULL::timestamptz FROM {schema}.pubsub_subscription \
                 WHERE subscription = $1::text"
            }
            PubSubStatement::Done => {
                "DELETE FROM {schema}.pubsub_delivery d USING unnest($1::text[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS done \
                 (subscription, incarnation, event_id, number), {schema}.pubsub_subscription s \
                 WHERE d.subscription = done.subscription AND d.event_id = done.event_id AND s.subscription = done.subscription \
                 AND s.incarnation = done.incarnation RETURNING number, ''::text, NULL::bytea, 0, 0::bigint, NULL::timestamptz"
            }
            PubSubStatement::Release => {
                "UPDATE {schema}.pubsub_delivery SET visible_at = 'epoch' WHERE subscription = $1::text AND stream = $2::bigint \
                 RETURNING 0::bigint, ''::text, NULL::bytea, 0, 0::bigint, NULL::timestamptz"
            }
            PubSubStatement::Sweep => {
                "WITH RECURSIVE topics AS ((SELECT topic FROM {schema}.pubsub ORDER BY topic LIMIT 1) UNION ALL \
                 SELECT (SELECT e.topic FROM {schema}.pubsub e WHERE e.topic > t.topic ORDER BY e.topic LIMIT 1) FROM topics t \
                 WHERE t.topic IS NOT NULL), \
                 kept AS (SELECT t.topic, (SELECT e.id FROM {schema}.pubsub e WHERE e.topic = t.topic ORDER BY e.id DESC OFFSET 999 \
                 LIMIT 1) AS from_id, (SELECT min(least(s.position + 1, (SELECT min(d.event_id) FROM {schema}.pubsub_delivery d \
                 WHERE d.subscription = s.subscription))) FROM {schema}.pubsub_subscription s WHERE s.topic = t.topic) AS undone \
                 FROM topics t WHERE t.topic IS NOT NULL), \
                 gone AS (DELETE FROM {schema}.pubsub WHERE id IN (SELECT e.id FROM kept JOIN {schema}.pubsub e \
                 ON e.topic = kept.topic AND e.id < least(kept.from_id, kept.undone) WHERE kept.from_id IS NOT NULL \
                 AND e.published_at <= $1::timestamptz ORDER BY e.id LIMIT 500) RETURNING topic, id), \
                 noted AS (INSERT INTO {schema}.pubsub_trimmed AS t (topic, id) SELECT topic, max(id) FROM gone GROUP BY topic \
                 ON CONFLICT (topic) DO UPDATE SET id = greatest(t.id, EXCLUDED.id)) \
                 SELECT id, ''::text, NULL::bytea, 0, 0::bigint, NULL::timestamptz FROM gone"
            }
        }
    }
}
