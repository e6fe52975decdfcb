-- Each order and each cancellation was put into the outbox once. Not so where an entry was skipped by hand.
SELECT 'events' AS id, made::text AS expected, written::text AS found
FROM (
    SELECT (SELECT count(*) + count(*) FILTER (WHERE status = 'cancelled') FROM orders) AS made,
           (SELECT coalesce(sum(events_written), 0) FROM cell_cursors) AS written
) AS counts
WHERE made <> written AND NOT EXISTS (SELECT 1 FROM log_quarantine)
