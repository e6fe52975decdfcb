SELECT p.limit_number || ' ' || p.user_id AS id, to_json(p.bought) AS shown
FROM purchases AS p
JOIN products USING (limit_number)
WHERE products.per_user_limit IS NOT NULL
    AND (p.limit_number, p.user_id) > (coalesce(nullif(split_part($1, ' ', 1), '')::bigint, 0), split_part($1, ' ', 2))
ORDER BY p.limit_number, p.user_id LIMIT $2
