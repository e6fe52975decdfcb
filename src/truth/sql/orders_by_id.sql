-- Orders by their ids. $1: orders
SELECT
    order_id, user_id, status, subtotal, discount, total, coupon_id, balance_after,
    (extract(epoch FROM ordered_at) * 1000)::bigint AS ordered_at_ms,
    (extract(epoch FROM cancelled_at) * 1000)::bigint AS cancelled_at_ms
FROM orders
WHERE order_id = ANY($1)
