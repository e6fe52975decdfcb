SELECT user_id AS id, to_json(balance) AS shown FROM wallets WHERE user_id > $1 ORDER BY user_id LIMIT $2
