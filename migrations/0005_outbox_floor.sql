-- Where the relay's claims begin: below it, no event is left and none will come.
-- oldest: 2
ALTER TABLE relay_progress ADD COLUMN outbox_floor bigint NOT NULL DEFAULT 0 CHECK (outbox_floor >= 0);
