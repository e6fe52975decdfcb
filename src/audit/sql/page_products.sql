SELECT product_id AS id, json_build_object('name', name, 'price', price, 'status', status) AS shown
FROM products WHERE product_id > $1 ORDER BY product_id LIMIT $2
