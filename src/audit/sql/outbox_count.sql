-- Every event that was put into the outbox and is not published is still in it.
SELECT 'outbox' AS id, waiting::text AS expected, present::text AS found
FROM (
    SELECT (SELECT coalesce(sum(events_written), 0) FROM cell_cursors)
               - (SELECT coalesce(sum(events_published), 0) FROM relay_progress) AS waiting,
           (SELECT count(*) FROM outbox) AS present
) AS counts
WHERE waiting <> present
