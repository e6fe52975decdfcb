-- A page of a user's orders, newest first. Ids are UUIDv7, so their order is the order of time, and
-- the index orders_by_user serves the page without sorting. In a plan that is cached for all
-- parameters, "$2 IS NULL OR ..." would become a filter that reads all newer orders. The coalesce
-- makes the index scan start at $2.
--
-- $1: user, $2: the last order of the page before, or null, $3: limit
SELECT
    order_id, user_id, status, subtotal, discount, total, coupon_id, balance_after,
    (extract(epoch FROM ordered_at) * 1000)::bigint AS ordered_at_ms,
    (extract(epoch FROM cancelled_at) * 1000)::bigint AS cancelled_at_ms,
    reference, external, wallet_amount, payment_reference,
    (extract(epoch FROM hold_expires_at) * 1000)::bigint AS hold_expires_at_ms,
    (extract(epoch FROM expired_at) * 1000)::bigint AS expired_at_ms,
    (extract(epoch FROM paid_at) * 1000)::bigint AS paid_at_ms
FROM orders
WHERE user_id = $1 AND order_id < coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
ORDER BY order_id DESC
LIMIT $3
