-- Counts the idempotency records decided after $1 (milliseconds): those that still answer a replay.
SELECT count(*) FROM idempotency_records WHERE decided_at > to_timestamp($1::bigint / 1000.0)
