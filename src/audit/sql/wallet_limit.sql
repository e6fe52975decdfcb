-- What a wallet holds and what the user's pending orders took from it fit into the wallet together,
-- so that the ends of holds can give it back.
SELECT user_id AS id, 'at most 1000000' AS expected, (coalesce(w.balance, 0) + o.won)::text AS found
FROM (SELECT user_id, sum(wallet_amount) AS won FROM orders WHERE status = 'pending' GROUP BY user_id) AS o
LEFT JOIN wallets AS w USING (user_id)
WHERE coalesce(w.balance, 0) + o.won > 1000000
