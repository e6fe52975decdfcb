-- Wallets $1 to $2, each charged once. They are not inserted in the order of their ids, as in a shop that
-- has grown over time.
INSERT INTO wallets (user_id, balance, updated_at)
SELECT 'w' || lpad((i * 6180339887 % 10000000000)::text, 10, '0'), 10000, date_trunc('milliseconds', now())
FROM generate_series($1::bigint, $2::bigint) AS i;

INSERT INTO wallet_entries (user_id, kind, amount, balance_after, ref_id, at)
SELECT 'w' || lpad((i * 6180339887 % 10000000000)::text, 10, '0'), 'charge', 10000, 10000, gen_random_uuid(),
       date_trunc('milliseconds', now())
FROM generate_series($1::bigint, $2::bigint) AS i;
