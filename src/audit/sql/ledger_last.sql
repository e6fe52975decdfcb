-- The balance after a wallet's last ledger entry is the wallet's balance.
SELECT user_id AS id, l.balance_after::text AS expected, w.balance::text AS found
FROM wallets w
JOIN (
    SELECT DISTINCT ON (user_id) user_id, balance_after
    FROM wallet_entries
    ORDER BY user_id, entry_id DESC
) AS l USING (user_id)
WHERE l.balance_after <> w.balance
