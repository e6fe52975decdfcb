-- The lines of all pending orders, order by order.
SELECT o.order_id, o.user_id, o.subtotal, o.discount, o.total, o.coupon_id, coalesce(o.wallet_amount, o.total) AS wallet_amount,
    (extract(epoch FROM o.ordered_at) * 1000)::bigint AS ordered_at_ms,
    (extract(epoch FROM o.hold_expires_at) * 1000)::bigint AS hold_expires_at_ms,
    o.reference, i.product_id, i.name, i.unit_price, i.quantity, i.amount, i.limit_number
FROM orders AS o
JOIN order_items AS i USING (order_id)
WHERE o.status = 'pending'
ORDER BY o.order_id, i.line_no
