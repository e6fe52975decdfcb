-- Each order and each cancellation was put into the outbox once. A skipped entry wrote neither an
-- order nor an event.
SELECT 'events' AS id, made::text AS expected, written::text AS found
FROM (
    SELECT (SELECT count(*) + count(*) FILTER (WHERE status = 'cancelled') FROM orders) AS made,
           (SELECT coalesce(sum(events_written), 0) FROM cell_cursors) AS written
) AS counts
WHERE made <> written
