-- The records decided after $1 (milliseconds), ordered by time and therefore day by day.
SELECT scope, request_hash, reply, (date_part('epoch', decided_at) * 1000)::bigint
FROM idempotency_records
WHERE decided_at > to_timestamp($1::bigint / 1000.0::float8)
ORDER BY decided_at
