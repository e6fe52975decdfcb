SELECT product_id AS id, to_json(stock) AS shown FROM products WHERE product_id > $1 ORDER BY product_id LIMIT $2
