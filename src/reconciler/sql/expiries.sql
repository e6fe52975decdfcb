UPDATE orders
SET status = 'expired',
    balance_after = e.balance_after,
    coupon_returned = e.coupon_returned,
    expired_at = to_timestamp(e.at_ms / 1000.0::float8)
FROM unnest($1::uuid[], $2::bigint[], $3::boolean[], $4::bigint[])
    AS e (order_id, balance_after, coupon_returned, at_ms)
WHERE orders.order_id = e.order_id AND orders.status = 'pending'
