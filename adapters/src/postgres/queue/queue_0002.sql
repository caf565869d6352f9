-- A message's payload may lie elsewhere: its attributes then say where, and how long it is ("prism.bytes"), which counts when messages are
-- put together for an answer. To go back by hand: the function of queue_0001.sql instead.
-- Leases at most so many messages until then, as many as fit into so many bytes, the first always.
CREATE OR REPLACE FUNCTION {schema}.queue_receive(
  of_queue text, moment timestamptz, wanted int, lease_until timestamptz, room bigint, new_lease bigint
) RETURNS SETOF {schema}.queue LANGUAGE plpgsql AS $$
DECLARE
  one record;
  taken bigint[] := '{}';
BEGIN
  PERFORM {schema}.queue_give_up(of_queue, moment);
  FOR one IN
    SELECT m.id, octet_length(m.payload) + octet_length(m.content_type) + octet_length(m.attributes::text)
      + coalesce(octet_length(m.ordering_key), 0) + coalesce((m.attributes ->> 'prism.bytes')::bigint, 0) + 512 AS bytes
    FROM {schema}.queue m
    WHERE m.queue = of_queue AND m.visible_at <= moment AND (m.expires_at IS NULL OR m.expires_at > moment)
      AND (m.ordering_key IS NULL OR NOT EXISTS (
        SELECT FROM {schema}.queue o
        WHERE o.queue = m.queue AND o.ordering_key = m.ordering_key AND o.id < m.id
          AND (o.expires_at IS NULL OR o.expires_at > moment OR (o.lease IS NOT NULL AND o.visible_at > moment))))
    ORDER BY coalesce(m.priority, 0::smallint) DESC, m.id
    LIMIT wanted FOR UPDATE SKIP LOCKED
  LOOP
    room := room - one.bytes;
    EXIT WHEN room < 0 AND cardinality(taken) > 0;
    taken := taken || one.id;
  END LOOP;
  RETURN QUERY
    WITH leased AS (
      UPDATE {schema}.queue m SET attempts = m.attempts + 1, lease = new_lease, visible_at = lease_until
      WHERE m.id = ANY (taken) RETURNING m.*
    )
    SELECT * FROM leased ORDER BY coalesce(leased.priority, 0::smallint) DESC, leased.id;
END $$;
