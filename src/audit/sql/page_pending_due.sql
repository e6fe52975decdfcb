SELECT order_id::text AS id, to_json((extract(epoch FROM hold_expires_at) * 1000)::bigint) AS shown
FROM orders
WHERE status = 'pending' AND order_id > coalesce(nullif($1, '')::uuid, '00000000-0000-0000-0000-000000000000')
ORDER BY order_id LIMIT $2
