-- The balance of each wallet after the last entry that touched it.
INSERT INTO wallets (user_id, balance, updated_at)
SELECT w.user_id, w.balance, to_timestamp(w.at_ms / 1000.0::float8)
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS w (user_id, balance, at_ms)
ON CONFLICT (user_id) DO UPDATE SET balance = excluded.balance, updated_at = excluded.updated_at
