-- The migrations that were made. `oldest` is the newest migration that a binary must know, at
-- least, to use the schema. `made_at` is null while steps are left.
CREATE TABLE IF NOT EXISTS schema_migrations (
    number      integer PRIMARY KEY CHECK (number > 0),
    name        text    NOT NULL,
    checksum    bytea   NOT NULL,
    oldest      integer NOT NULL CHECK (oldest BETWEEN 1 AND number),
    steps_made  integer NOT NULL DEFAULT 0,
    made_at     timestamptz
);
