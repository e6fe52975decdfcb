-- How many events wait (counted up to $1) and for how long the oldest has.
SELECT (SELECT count(*) FROM (SELECT 1 FROM outbox LIMIT $1) AS counted) AS rows,
       coalesce(
           (SELECT (extract(epoch FROM now() - created_at) * 1000)::bigint
            FROM outbox ORDER BY outbox_id LIMIT 1),
           0) AS oldest_ms
