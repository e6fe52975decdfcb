UPDATE orders
SET status = 'paid',
    payment_reference = c.payment_reference,
    balance_after = c.balance_after,
    paid_at = to_timestamp(c.at_ms / 1000.0::float8)
FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[])
    AS c (order_id, payment_reference, balance_after, at_ms)
WHERE orders.order_id = c.order_id AND orders.status = 'pending'
