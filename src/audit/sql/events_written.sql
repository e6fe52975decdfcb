-- Each payment, each cancellation and each end of a hold was put into the outbox once. A skipped
-- entry wrote neither an order nor an event.
SELECT 'events' AS id, made::text AS expected, written::text AS found
FROM (
    SELECT (
               SELECT count(*) FILTER (
                          WHERE status = 'paid' OR status = 'cancelled' AND (hold_expires_at IS NULL OR paid_at IS NOT NULL)
                      ) + count(*) FILTER (WHERE status IN ('cancelled', 'expired'))
               FROM orders
           ) AS made,
           (SELECT coalesce(sum(events_written), 0) FROM cell_cursors) AS written
) AS counts
WHERE made <> written
