-- Orders by their ids. $1: orders
SELECT
    order_id, user_id, status, subtotal, discount, total, coupon_id, balance_after,
    (extract(epoch FROM ordered_at) * 1000)::bigint AS ordered_at_ms,
    (extract(epoch FROM cancelled_at) * 1000)::bigint AS cancelled_at_ms,
    reference, external, wallet_amount, payment_reference,
    (extract(epoch FROM hold_expires_at) * 1000)::bigint AS hold_expires_at_ms,
    (extract(epoch FROM expired_at) * 1000)::bigint AS expired_at_ms,
    (extract(epoch FROM paid_at) * 1000)::bigint AS paid_at_ms
FROM orders
WHERE order_id = ANY($1)
