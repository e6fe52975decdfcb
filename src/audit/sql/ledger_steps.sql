-- In each wallet's ledger, every balance is the previous balance plus the entry's amount.
SELECT user_id || ' entry ' || entry_id AS id,
       (before + amount)::text AS expected,
       balance_after::text AS found
FROM (
    SELECT user_id, entry_id, amount, balance_after,
           lag(balance_after, 1, 0::bigint) OVER (PARTITION BY user_id ORDER BY entry_id) AS before
    FROM wallet_entries
) AS steps
WHERE balance_after <> before + amount
