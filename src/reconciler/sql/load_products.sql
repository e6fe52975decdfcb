SELECT product_id, name, price, status, stock, per_user_limit, limit_number, attributes,
    (extract(epoch FROM sale_from) * 1000)::bigint AS sale_from_ms,
    (extract(epoch FROM sale_until) * 1000)::bigint AS sale_until_ms
FROM products
