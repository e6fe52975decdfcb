SELECT product_id AS id,
       json_build_object(
           'name', name, 'price', price, 'status', status,
           'sale_from', (extract(epoch FROM sale_from) * 1000)::bigint,
           'sale_until', (extract(epoch FROM sale_until) * 1000)::bigint,
           'per_user_limit', per_user_limit,
           'limit_number', CASE WHEN per_user_limit IS NOT NULL THEN limit_number END) AS shown
FROM products WHERE product_id > $1 ORDER BY product_id LIMIT $2
