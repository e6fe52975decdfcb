-- Each wallet's balance is the sum of its ledger entries, and no entry lacks a wallet.
SELECT user_id AS id,
       coalesce(l.total, 0)::text AS expected,
       coalesce(w.balance::text, 'no wallet') AS found
FROM wallets w
FULL JOIN (SELECT user_id, sum(amount) AS total FROM wallet_entries GROUP BY user_id) l USING (user_id)
WHERE coalesce(l.total, 0) IS DISTINCT FROM w.balance
