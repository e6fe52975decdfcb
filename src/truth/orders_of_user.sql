-- A page of a user's orders, newest first: ids are UUIDv7, so their order is that of time, and the index
-- orders_by_user serves the page without sorting. $1: user, $2: the last order of the page before, or null, $3: limit
SELECT
    order_id, user_id, status, subtotal, discount, total, coupon_id, balance_after,
    (extract(epoch FROM ordered_at) * 1000)::bigint AS ordered_at_ms,
    (extract(epoch FROM cancelled_at) * 1000)::bigint AS cancelled_at_ms
FROM orders
WHERE user_id = $1 AND ($2::uuid IS NULL OR order_id < $2)
ORDER BY order_id DESC
LIMIT $3
