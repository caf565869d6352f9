-- A namespace of the model KeyValue, one schema each. To go back by hand: DROP SCHEMA {schema} CASCADE, and
-- DELETE FROM prism_meta.migrations WHERE schema_name = the same.
CREATE SCHEMA IF NOT EXISTS {schema};

CREATE TABLE {schema}.keyvalue (
  -- Bytewise order, which scans and their page tokens rely on.
  key text COLLATE "C" PRIMARY KEY,
  value bytea NOT NULL,
  -- Changes with every write and is never used again. By hand: UPDATE … SET value = …, version = DEFAULT.
  version bigint NOT NULL DEFAULT nextval('prism_meta.epochs') << 32,
  -- From then on the entry is as good as gone; the sweeper deletes it later.
  expires_at timestamptz
);
CREATE INDEX keyvalue_expires_at ON {schema}.keyvalue (expires_at) WHERE expires_at IS NOT NULL;

-- Checks conditions and, if all of them hold, carries out operations.
--
-- A condition requires of its key 1 absence, 2 existence, 3 this value, 4 this version. An operation on its key: 0 delete, 1 put,
-- 2 put and keep the expiry. Tells, per condition that does not hold, its number from 0 and the entry that is there instead: the
-- first always, of the others as many as fit into `room` bytes. With `tell_previous` also, as number -1, the entry that was under
-- the first operation's key. A value longer than `value_max` is not told. What is put gets the versions from `first_version` on.
CREATE FUNCTION {schema}.transact(
  moment timestamptz,
  condition_keys text[], requirements smallint[], operands bytea[],
  operation_keys text[], actions smallint[], new_values bytea[], new_expiries timestamptz[],
  room bigint, value_max int, tell_previous boolean, first_version bigint
) RETURNS TABLE (told_number bigint, told_key text, told_value bytea, told_length int, told_version bigint, told_expiry timestamptz)
LANGUAGE plpgsql AS $$
DECLARE
  entry {schema}.keyvalue%ROWTYPE;
  there boolean;
  holds boolean;
  failed boolean := false;
  taken bigint;
BEGIN
  PERFORM 1 FROM {schema}.keyvalue k WHERE k.key = ANY (condition_keys || operation_keys) ORDER BY k.key FOR UPDATE;
  IF tell_previous THEN
    SELECT * INTO entry FROM {schema}.keyvalue k
    WHERE k.key = operation_keys[1] AND (k.expires_at IS NULL OR k.expires_at > moment);
    IF FOUND THEN
      told_number := -1;
      told_key := '';
      told_length := octet_length(entry.value);
      told_value := CASE WHEN told_length <= value_max THEN entry.value END;
      told_version := entry.version;
      told_expiry := entry.expires_at;
      RETURN NEXT;
    END IF;
  END IF;
  FOR number IN 1 .. coalesce(cardinality(condition_keys), 0) LOOP
    SELECT * INTO entry FROM {schema}.keyvalue k
    WHERE k.key = condition_keys[number] AND (k.expires_at IS NULL OR k.expires_at > moment);
    there := FOUND;
    holds := CASE requirements[number]
      WHEN 1 THEN NOT there
      WHEN 2 THEN there
      WHEN 3 THEN there AND entry.value = operands[number]
      ELSE there AND int8send(entry.version) = operands[number]
    END;
    IF NOT holds THEN
      taken := CASE WHEN there THEN octet_length(entry.value) + 128 ELSE 16 END;
      IF NOT failed OR taken <= room THEN
        room := room - taken;
        told_number := number - 1;
        told_key := '';
        told_length := octet_length(entry.value);
        told_value := CASE WHEN told_length <= value_max AND NOT tell_previous THEN entry.value END;
        told_version := entry.version;
        told_expiry := entry.expires_at;
        RETURN NEXT;
      END IF;
      failed := true;
    END IF;
  END LOOP;
  IF failed THEN
    RETURN;
  END IF;
  FOR number IN 1 .. coalesce(cardinality(operation_keys), 0) LOOP
    IF actions[number] = 0 THEN
      DELETE FROM {schema}.keyvalue k WHERE k.key = operation_keys[number];
    ELSE
      INSERT INTO {schema}.keyvalue AS k (key, value, version, expires_at)
      VALUES (operation_keys[number], new_values[number], first_version + number - 1, new_expiries[number])
      ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value, version = EXCLUDED.version, expires_at = CASE
        WHEN actions[number] = 2 THEN CASE WHEN k.expires_at > moment THEN k.expires_at END
        ELSE EXCLUDED.expires_at
      END;
    END IF;
  END LOOP;
END $$;
