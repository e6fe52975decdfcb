-- The pieces that each user has bought under a limit, after the last entry that changed them.
INSERT INTO purchases (limit_number, user_id, bought)
SELECT p.limit_number, p.user_id, p.bought
FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS p (limit_number, user_id, bought)
ON CONFLICT (limit_number, user_id) DO UPDATE SET bought = excluded.bought
