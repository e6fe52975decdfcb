-- How long the oldest event has waited (0 if the outbox is empty), and when the newest list of
-- popular products was made.
SELECT
    coalesce(
        (SELECT greatest((extract(epoch FROM now() - created_at) * 1000)::bigint, 0)
         FROM outbox ORDER BY outbox_id LIMIT 1),
        0) AS oldest_ms,
    (SELECT (extract(epoch FROM max(refreshed_at)) * 1000)::bigint FROM popular_refreshes) AS popular_refreshed_ms
