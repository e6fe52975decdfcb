-- A key that is older than a day may be used again; its record is then replaced.
INSERT INTO idempotency_records (scope, request_hash, reply, decided_at)
SELECT r.scope, r.request_hash, r.reply, to_timestamp(r.at_ms / 1000.0::float8)
FROM unnest($1::text[], $2::bytea[], $3::bytea[], $4::bigint[]) AS r (scope, request_hash, reply, at_ms)
ON CONFLICT (scope) DO UPDATE
SET request_hash = excluded.request_hash, reply = excluded.reply, decided_at = excluded.decided_at
