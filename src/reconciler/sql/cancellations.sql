UPDATE orders
SET status = 'cancelled',
    balance_after = c.balance_after,
    coupon_returned = c.coupon_returned,
    cancelled_at = to_timestamp(c.at_ms / 1000.0::float8)
FROM unnest($1::uuid[], $2::bigint[], $3::boolean[], $4::bigint[])
    AS c (order_id, balance_after, coupon_returned, at_ms)
WHERE orders.order_id = c.order_id AND orders.status IN ('paid', 'pending')
