-- What PostgreSQL does not have although it was answered, and where each epoch began. Only additions: a binary of an earlier
-- version runs beside this, except where it must not (see the trigger).
-- oldest: 2

-- step: the cursor knows that a fact is being skipped
-- While `skipping` is set, what follows the cursor in its epoch is applied by differences, without the facts that an operator
-- has skipped. `skip_steps` counts the steps that were made so.
ALTER TABLE cell_cursors
    ADD COLUMN skipping boolean NOT NULL DEFAULT false,
    ADD COLUMN skip_steps bigint NOT NULL DEFAULT 0;

-- A binary that does not know `skipping` would write after-images, in which the skipped fact is contained.
CREATE FUNCTION rushgate_guard_skipping() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a fact of cell % is being skipped: this version cannot apply what follows it', OLD.cell
        USING ERRCODE = '55000';
END
$$;
CREATE TRIGGER guard_skipping BEFORE UPDATE ON cell_cursors FOR EACH ROW
    WHEN (OLD.skipping AND NEW.skip_steps = OLD.skip_steps AND (NEW.epoch, NEW.seq) <> (OLD.epoch, OLD.seq))
    EXECUTE FUNCTION rushgate_guard_skipping();

-- step: where the cursor stood when an epoch began: the end of the one before.
CREATE TABLE cell_epochs (
    cell            integer NOT NULL,
    epoch           bigint  NOT NULL,
    previous_epoch  bigint  NOT NULL,
    previous_seq    bigint  NOT NULL,
    previous_tip    text    NOT NULL,
    opened_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (cell, epoch)
);

-- step: facts that were answered and are not, or not exactly so, in PostgreSQL. `fact` counts from 1 within its entry. `told` is what
-- was answered, `holds` (of a changed fact) what is true instead, `raw` the fact as it stood in the entry, `counted`
-- whether `rushgate_decisions_lost_total` has it.
--   skipped: by an operator · gone: could no longer hold without the skipped one · changed: holds, with other numbers ·
--   lost: a rebuild found it in a log that does not follow what PostgreSQL has
CREATE TABLE quarantined_facts (
    cell            integer NOT NULL,
    epoch           bigint  NOT NULL,
    seq             bigint  NOT NULL,
    tip             text    NOT NULL,
    fact            integer NOT NULL CHECK (fact > 0),
    outcome         text    NOT NULL CHECK (outcome IN ('skipped', 'gone', 'changed', 'lost')),
    kind            text    NOT NULL,
    user_id         text    COLLATE "C",
    id              uuid,
    told            jsonb   NOT NULL,
    holds           jsonb,
    keyed           boolean NOT NULL,
    reason          text    NOT NULL,
    raw             bytea   NOT NULL,
    counted         boolean NOT NULL DEFAULT false,
    reported_at     timestamptz,
    quarantined_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (cell, epoch, seq, tip, fact)
);
CREATE INDEX quarantined_facts_by_id ON quarantined_facts (id);
CREATE INDEX quarantined_facts_uncounted ON quarantined_facts (cell) WHERE NOT counted;

-- step: whole entries; those that cannot be read, and those of a log that does not follow what PostgreSQL has, of which Redis may have
-- held several at one place.
ALTER TABLE log_quarantine
    ADD COLUMN reported_at timestamptz,
    DROP CONSTRAINT log_quarantine_pkey,
    ADD PRIMARY KEY (cell, epoch, seq, tip);
