-- A page of a user's orders, newest first: ids are UUIDv7, so their order is that of time, and the index
-- orders_by_user serves the page without sorting. A plan that is kept for all parameters makes a filter of
-- "$2 IS NULL OR ..." and reads all newer orders; this way the index is entered at $2.
-- $1: user, $2: the last order of the page before, or null, $3: limit
SELECT
    order_id, user_id, status, subtotal, discount, total, coupon_id, balance_after,
    (extract(epoch FROM ordered_at) * 1000)::bigint AS ordered_at_ms,
    (extract(epoch FROM cancelled_at) * 1000)::bigint AS cancelled_at_ms
FROM orders
WHERE user_id = $1 AND order_id < coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
ORDER BY order_id DESC
LIMIT $3
