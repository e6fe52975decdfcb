-- Deletes the confirmed rows ($1) from the outbox and counts those that were still there. This is
-- one statement, and so one transaction: a row that another relay has deleted meanwhile is neither
-- lost nor counted twice. Claims need not look below $2 any more.
WITH gone AS (
    DELETE FROM outbox WHERE outbox_id = ANY ($1) RETURNING 1
)
UPDATE relay_progress
SET events_published = events_published + (SELECT count(*) FROM gone),
    outbox_floor = greatest(outbox_floor, $2)
