-- Texts that several processes of Prism share, each with a version that every change raises. To go back by hand: DROP TABLE
-- prism_meta.documents, and DELETE FROM prism_meta.migrations WHERE schema_name = 'prism_meta' AND model = 'documents'.
CREATE TABLE IF NOT EXISTS prism_meta.documents (
  name text PRIMARY KEY,
  version bigint NOT NULL,
  document text NOT NULL,
  changed_at timestamptz NOT NULL DEFAULT now()
);
