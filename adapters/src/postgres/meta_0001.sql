-- What Prism keeps for itself in a database: which migrations its schemas have had, and a number for every connection.
CREATE SCHEMA IF NOT EXISTS prism_meta;
CREATE TABLE IF NOT EXISTS prism_meta.migrations (
  schema_name text NOT NULL,
  model text NOT NULL,
  version int NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (schema_name, model, version)
);
-- The upper half of every version: a connection takes the next number and counts its writes below it.
CREATE SEQUENCE IF NOT EXISTS prism_meta.epochs AS bigint MAXVALUE 2147483647;
