SELECT user_id AS id, to_json(count(*) || ':' || sum(wallet_amount)) AS shown
FROM orders
WHERE status = 'pending' AND user_id > $1
GROUP BY user_id ORDER BY user_id LIMIT $2
