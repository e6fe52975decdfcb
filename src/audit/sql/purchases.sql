-- What a user has bought under a limit is in the user's pending and paid orders. (Counts of limits
-- that were removed are not kept up: nothing reads them any more.)
SELECT limit_number || ' ' || user_id AS id, coalesce(o.pieces, 0)::text AS expected, coalesce(p.bought, 0)::text AS found
FROM purchases AS p
FULL JOIN (
    SELECT i.limit_number, o.user_id, sum(i.quantity) AS pieces
    FROM order_items AS i JOIN orders AS o USING (order_id)
    WHERE i.limit_number IS NOT NULL AND o.status IN ('paid', 'pending')
    GROUP BY i.limit_number, o.user_id
) AS o USING (limit_number, user_id)
WHERE coalesce(o.pieces, 0) <> coalesce(p.bought, 0)
    AND limit_number IN (SELECT limit_number FROM products WHERE per_user_limit IS NOT NULL)
