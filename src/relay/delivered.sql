-- Takes the confirmed rows ($1) out of the outbox and counts those that were really there. One statement, so one
-- transaction: a row that another relay took away in between is neither lost nor counted twice.
WITH gone AS (
    DELETE FROM outbox WHERE outbox_id = ANY ($1) RETURNING 1
)
UPDATE relay_progress
SET events_published = events_published + (SELECT count(*) FROM gone)
