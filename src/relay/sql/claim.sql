-- The next events in order, from $3 on: at most $1 rows and $2 bytes, but at least one row. Without
-- $3, every window would walk over all deleted rows that are still visible to some transaction.
SELECT outbox_id, event_id, routing_key, payload, created_secs
FROM (
    SELECT outbox_id, event_id, routing_key, payload,
           extract(epoch FROM created_at)::bigint AS created_secs,
           row_number() OVER in_order AS place,
           sum(octet_length(payload)) OVER in_order AS bytes
    FROM (SELECT * FROM outbox WHERE outbox_id >= $3 ORDER BY outbox_id LIMIT $1) AS head
    WINDOW in_order AS (ORDER BY outbox_id)
) AS sized
WHERE bytes <= $2 OR place = 1
ORDER BY outbox_id
