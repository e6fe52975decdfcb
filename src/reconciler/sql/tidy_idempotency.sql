-- Removes the records that are older than a day and an hour at $1 (the gate's clock in
-- milliseconds), at most $2 of them.
DELETE FROM idempotency_records
WHERE scope IN (
    SELECT scope FROM idempotency_records
    WHERE decided_at < to_timestamp($1::bigint / 1000.0::float8) - interval '25 hours'
    ORDER BY decided_at
    LIMIT $2
)
